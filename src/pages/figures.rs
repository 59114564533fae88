//! A node's figures as JSON: what `GET /v1/node/stream` tells, and the dashboard shows.
//!
//! Owns the names of their members, which docs/PROTOCOL.md and docs/asyncapi.yaml have too.

use serde_json::{Value, json};

use crate::metrics::{
    Board, Call, Counter, Gauge, LINES, REQUESTS, Row, STEP_MS, Shown, StatusClass,
};

/// Families whose rows say why something was refused, or which limit was reached.
const REFUSALS: [&str; 8] = [
    "tokens_refused",
    "tickets_refused",
    "datagrams_refused",
    "beats_refused",
    "items_refused",
    "limit_hits",
    "conns_evicted",
    "resumes_refused",
];

/// The figures of now. None: nobody has looked yet.
pub fn of_now(board: &Board) -> Option<String> {
    let shown = board.figures().shown()?;
    let shards: Vec<Value> = shown
        .shards
        .iter()
        .map(|shard| {
            json!({
                "busy": short(shard.busy),
                "turn": short(shard.turn),
                "conns": shard.conns,
                "streams": shard.streams,
                "watches": shard.watches,
                "requests": short(shard.requests),
                "beats": short(shard.beats),
                "states": short(shard.states),
            })
        })
        .collect();
    let gauge = |gauge| shown.all.gauge(gauge);
    let seconds = |gauge| short(shown.all.gauge(gauge) as f64 / 1e6);
    let lines = LINES.iter().zip(shown.lines);
    let mut figures = json!({
        "at": shown.at.ms(),
        "shards": shards,
        "refusals": refusals(&shown),
        "users_max": gauge(Gauge::UsersMax),
        "users_log_bytes": gauge(Gauge::UsersLog),
        "users_log_max_bytes": gauge(Gauge::UsersLogMax),
        "users_overdue": gauge(Gauge::UsersOverdue),
        "expiries_held": gauge(Gauge::ExpiriesHeld) > 0,
        "sweep": short(shown.sweep),
        "write_back": seconds(Gauge::StoreWriteBackCycle),
        "unwritten": seconds(Gauge::StoreUnwritten),
        "nodes_down": gauge(Gauge::NodesDown),
        "relay_queue": gauge(Gauge::RelayQueue),
        "beats_gone": gauge(Gauge::BeatsGone),
        "fleet_standing": gauge(Gauge::FleetStanding),
        "fleet_nodes": gauge(Gauge::FleetNodes),
        "fleet_partitions_stale": gauge(Gauge::FleetPartitionsStale),
        "fleet_connections": gauge(Gauge::FleetConnections),
        "memory_bytes": gauge(Gauge::ProcessResidentMemory),
    });
    for (name, value) in lines {
        figures[*name] = short(value);
    }
    Some(figures.to_string())
}

/// How each line has been in the last quarter of an hour, the oldest value first.
pub fn of_the_past(board: &Board) -> String {
    let figures = board.figures();
    let mut past = json!({ "step_ms": STEP_MS });
    for (at, name) in LINES.iter().enumerate() {
        past[*name] = figures.past().map(|values| short(values[at])).collect();
    }
    past.to_string()
}

/// Four digits do for a figure that is read at a glance; one that is whole is whole. Nothing known:
/// null.
fn short(value: f64) -> Value {
    if value.fract() == 0.0 && value >= 0.0 {
        return json!(value as u64);
    }
    let digits = format!("{value:.3e}");
    json!(digits.parse::<f64>().ok().filter(|value| value.is_finite()))
}

/// Everything that was refused or reached since the start.
fn refusals(shown: &Shown) -> Vec<Value> {
    let of_table = Counter::ALL.iter().filter_map(|&counter| {
        let Row { family, labels, .. } = counter.row();
        let reason = labels.first()?.1;
        REFUSALS
            .contains(family)
            .then(|| (*family, reason, shown.all.counter(counter)))
    });
    let classes = [StatusClass::Client, StatusClass::Server].into_iter();
    let requests = classes.map(|class| {
        let of = |&call: &Call| shown.all.requests(call, class);
        let times = Call::ALL.iter().map(of).sum();
        (REQUESTS.family, class.name(), times)
    });
    let all = requests.chain(of_table).filter(|&(.., times)| times > 0);
    all.map(|(what, reason, times)| json!({ "what": what, "reason": reason, "times": times }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Counters, STEPS_MAX};
    use crate::pages::DASHBOARD;
    use crate::time::{Mono, Now, Unix};

    fn at(second: u64) -> Now {
        Now {
            mono: Mono::default().plus_ms(second * 1_000),
            unix: Unix::from_ms(second * 1_000),
        }
    }

    #[test]
    fn figures_as_they_are_told() {
        let board = Board::new(1);
        assert_eq!(of_now(&board), None);
        let mut cells = Counters::new();
        board.look(at(0));
        cells.add(Counter::BeatsUdp, 2);
        cells.add(Counter::TokenExpired, 3);
        cells.add(Counter::ConnsAccepted, 5);
        cells.add_request(Call::Other, 404);
        cells.set(Gauge::Streams, 7);
        cells.set(Gauge::ExpiriesHeld, 1);
        board.shards[0].publish(&cells);
        board.process.set(Gauge::UsersOnline, 123_456_789);
        board.process.set(Gauge::StoreUnwritten, 1_234_567);
        board.look(at(3));
        let told: Value = serde_json::from_str(&of_now(&board).unwrap()).unwrap();
        assert_eq!(
            told,
            json!({
                "at": 3000, "online": 123_456_789, "users": 0, "streams": 7, "watches": 0,
                "beats": 0.6667, "transitions": 0, "states": 0, "p50": null, "p99": null,
                "shards": [{
                    "busy": 0, "turn": null, "conns": 0, "streams": 7, "watches": 0,
                    "requests": 0.3333, "beats": 0.6667, "states": 0,
                }],
                "refusals": [
                    { "what": "requests", "reason": "4xx", "times": 1 },
                    { "what": "tokens_refused", "reason": "expired", "times": 3 },
                ],
                "users_max": 0, "users_log_bytes": 0, "users_log_max_bytes": 0,
                "users_overdue": 0, "expiries_held": true, "sweep": null, "write_back": 0,
                "unwritten": 1.235, "nodes_down": 0, "relay_queue": 0, "beats_gone": 0,
                "fleet_standing": 0, "fleet_nodes": 0, "fleet_partitions_stale": 0,
                "fleet_connections": 0, "memory_bytes": 0,
            })
        );
    }

    #[test]
    fn the_past_as_it_is_told() {
        let board = Board::new(1);
        for second in 0..11 {
            board.process.set(Gauge::Users, second);
            board.look(at(second));
        }
        let told: Value = serde_json::from_str(&of_the_past(&board)).unwrap();
        assert_eq!(told["step_ms"], 5_000);
        assert_eq!(told["users"], json!([5, 10]));
        assert_eq!(told["p99"], json!([null, null]));
        assert_eq!(told.as_object().unwrap().len(), 1 + LINES.len());
        // Within what an outbox takes, beside hello and figures.
        for second in 11..=5 * STEPS_MAX as u64 {
            board
                .process
                .set(Gauge::Users, u64::from(u32::MAX) - second);
            board.look(at(second));
        }
        let bytes = of_the_past(&board).len();
        assert!(bytes < 16_000, "{bytes}");
    }

    /// Each line has its number on the page, and each member that the page reads is told.
    #[test]
    fn the_dashboard_reads_figures_that_exist() {
        for name in LINES {
            assert!(DASHBOARD.body.contains(&format!("id=\"{name}\"")), "{name}");
        }
        let board = Board::new(1);
        board.look(at(0));
        let told: Value = serde_json::from_str(&of_now(&board).unwrap()).unwrap();
        let script = DASHBOARD.body.split("figures.").skip(1);
        let name = |rest: &str| -> String {
            let is_of_name = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
            rest.chars().take_while(is_of_name).collect()
        };
        let read: Vec<String> = script.map(name).filter(|name| !name.is_empty()).collect();
        assert!(read.len() > 12, "{read:?}");
        for name in read {
            assert!(told.get(&name).is_some(), "{name}");
        }
    }
}
