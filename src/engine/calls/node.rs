//! Calls about the node itself: whether it lives, whether it is ready, what it has counted.

use serde_json::json;

use super::caller::Caller;
use super::served::{NewStream, RETRY_AFTER, Served};
use crate::auth::Scope;
use crate::engine::parts::Engine;
use crate::engine::role::Role;
use crate::metrics::{Board, Counter, Gauge, WARNINGS_MAX};
use crate::pages::{DASHBOARD, exposition};
use crate::presence::Presence;
use crate::time::Now;
use crate::wire::response::{Answer, Cache, problems};

/// What the gauge `fleet_standing` shows of a node that is a member.
const IN_FLEET: u64 = 2;

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
    // A balancer sends new streams to other nodes; those that are here stay.
    let standing = engine.node.board.process.gauge(Gauge::FleetStanding);
    if matches!(engine.node.role, Role::Fleet(_)) && standing != IN_FLEET {
        let detail = "the node does not reach the fleet's database, or has just begun to; what it \
                      tells may be old";
        return Answer::problem(problems::FLEET_AWAY, detail).with_lines(RETRY_AFTER);
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
    if engine.presence.lacks_space() {
        troubles.push("the disk had no room for the last new user".to_owned());
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
    Answer::json(about_json(engine, WARNINGS_MAX, now).into_bytes())
}

/// `GET /v1/node/stream`: the same, and the node's figures, again and again.
pub(super) fn follow(engine: &mut Engine, caller: &Caller, now: Now) -> Served {
    if engine.passes.is_draining() {
        return Served::Overloaded("draining");
    }
    if !engine.has_room_for_follower() {
        engine.counters.add(Counter::LimitNodeStreams, 1);
        return Served::Overloaded("node-streams");
    }
    let permit = engine.permit_of(caller, now);
    let sees_node = caller.may(Scope::Admin);
    Served::Stream(Box::new(NewStream::of_figures(sees_node, permit)))
}

/// The same text with the last `warnings_max` warnings.
pub(in crate::engine) fn about_json(engine: &Engine, warnings_max: usize, now: Now) -> String {
    let state = match (engine.passes.is_draining(), troubles(engine)) {
        (true, troubles) => ("draining", troubles),
        (false, troubles) if troubles.is_empty() => ("ready", troubles),
        (false, troubles) => ("degraded", troubles),
    };
    let warnings = engine.node.board.warnings.all();
    let warnings: Vec<_> = warnings[warnings.len().saturating_sub(warnings_max)..]
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
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "role": engine.node.role.name(),
        "shards": engine.node.shards,
        "demo": engine.node.operators.demo && engine.node.role.holds_streams(),
        "now": now.unix.ms(),
        "state": state.0,
        "troubles": state.1,
        "warnings": warnings,
    })
    .to_string()
}

/// What the presence database alone knows becomes gauges.
pub fn note_users(board: &Board, presence: &Presence) {
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
}

/// `GET /metrics`.
pub(super) fn metrics(engine: &mut Engine, _now: Now) -> Answer {
    let (board, presence) = (&engine.node.board, &engine.presence);
    // Rendered once a turn: in that, nothing that it shows changes.
    let text = engine.exposition.get_or_insert_with(|| {
        note_users(board, presence);
        exposition::render(board).into()
    });
    Answer::ok(exposition::CONTENT_TYPE, text.as_bytes().to_vec())
}
