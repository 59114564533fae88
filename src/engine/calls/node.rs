//! Calls about the node itself: whether it lives, whether it is ready, what it has counted.

use serde_json::json;

use super::served::RETRY_AFTER;
use crate::engine::parts::Engine;
use crate::metrics::Gauge;
use crate::pages::{DASHBOARD, exposition};
use crate::time::Now;
use crate::wire::response::{Answer, Cache, problems};

/// `GET /livez`.
pub(super) fn live(_engine: &mut Engine, _now: Now) -> Answer {
    Answer::ok("text/plain; charset=utf-8", &b"ok\n"[..])
}

/// `GET /readyz`.
pub(super) fn ready(engine: &mut Engine, _now: Now) -> Answer {
    if engine.passes.is_draining() {
        let problem = Answer::problem(problems::DRAINING, "the server is shutting down");
        return problem.with_lines(RETRY_AFTER);
    }
    // Degraded is ready: what is known is served, and sending the streams away would help nobody.
    let troubles = troubles(engine);
    let body = match troubles.is_empty() {
        true => "ready\n".to_owned(),
        false => format!("degraded: {}\n", troubles.join("; ")),
    };
    Answer::ok("text/plain; charset=utf-8", body.into_bytes())
}

/// Why the node is degraded, in words.
fn troubles(engine: &Engine) -> Vec<String> {
    let board = &engine.node.board;
    let mut troubles = board.troubles();
    for (gauge, trouble) in [
        (
            Gauge::StoreWriteBackLate,
            "the disk does not take the store",
        ),
        (
            Gauge::StoreFilesLost,
            "the data folder is not the one that is open",
        ),
    ] {
        if board.process.gauge(gauge) > 0 {
            troubles.insert(0, trouble.to_owned());
        }
    }
    troubles
}

/// `GET /`: the dashboard. It asks for its numbers itself; those of now stand in it for whoever
/// runs no script, where everybody who comes may read them.
pub(super) fn dashboard(engine: &mut Engine, _now: Now) -> Answer {
    let operators = engine.node.operators;
    let mut body = DASHBOARD.body.clone();
    if operators.are_open || operators.metrics_are_open {
        let all = |gauge: Gauge| -> u64 {
            let shards = engine.node.board.shards.iter();
            shards.map(|shard| shard.gauge(gauge)).sum()
        };
        for (id, value) in [
            ("online", engine.presence.online()),
            ("users", u64::from(engine.presence.known())),
            ("streams", all(Gauge::Streams)),
            (
                "watches",
                all(Gauge::WatchesBySlot) + all(Gauge::WatchesByName),
            ),
        ] {
            let place = format!("id=\"{id}\">");
            body = body.replacen(&format!("{place}\u{2013}"), &format!("{place}{value}"), 1);
        }
    }
    Answer {
        cache: Cache::Never,
        ..Answer::ok(DASHBOARD.content_type, body.into_bytes())
    }
}

/// `GET /v1/node`: what a person wants to know of the node beside its numbers.
pub(super) fn about(engine: &mut Engine, now: Now) -> Answer {
    let state = match (engine.passes.is_draining(), troubles(engine)) {
        (true, troubles) => ("draining", troubles),
        (false, troubles) if troubles.is_empty() => ("ready", troubles),
        (false, troubles) => ("degraded", troubles),
    };
    let warnings = engine.node.board.warnings.all();
    let warnings: Vec<_> = warnings
        .iter()
        .map(|warning| {
            json!({
                "at": warning.at.ms(),
                "level": if warning.error { "error" } else { "warning" },
                "text": warning.text,
                "times": warning.times,
            })
        })
        .collect();
    let about = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "role": engine.node.role.name(),
        "shards": engine.node.shards,
        "demo": engine.node.operators.demo && engine.node.role.holds_streams(),
        "now": now.unix.ms(),
        "state": state.0,
        "troubles": state.1,
        "warnings": warnings,
    });
    Answer::json(about.to_string().into_bytes())
}

/// `GET /metrics`.
pub(super) fn metrics(engine: &mut Engine, _now: Now) -> Answer {
    let (board, presence) = (&engine.node.board, &engine.presence);
    // Rendered once a turn: in that, nothing that it shows changes.
    let text = engine.exposition.get_or_insert_with(|| {
        let process = &board.process;
        process.set(Gauge::Users, u64::from(presence.known()));
        let max = process.gauge(Gauge::UsersMax);
        let room = presence.log_room();
        let alarm = u64::from(presence.users()) * 5 > max * 4 || room.is_scarce;
        process.set(Gauge::UsersAlarm, u64::from(alarm));
        process.set(Gauge::UsersLog, room.used_bytes);
        process.set(Gauge::UsersLogMax, room.max_bytes);
        process.set(Gauge::UsersOnline, presence.online());
        process.set(Gauge::UsersOverdue, presence.mass_silence());
        exposition::render(board).into()
    });
    Answer::ok(exposition::CONTENT_TYPE, text.as_bytes().to_vec())
}
