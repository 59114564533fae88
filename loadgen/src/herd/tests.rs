use std::borrow::Cow;

use super::*;
use crate::graph::Choice;

fn herd(watches: u32) -> Herd {
    let plan = Plan {
        targets: vec!["127.0.0.1:1".parse().unwrap()],
        first: 0,
        count: 2,
        seal: None,
        rate: 10.0,
        in_flight: usize::MAX,
        population: Population::new(1),
        graph: Graph {
            publishers: 10,
            watches,
            choice: Choice::Uniform,
            seed: 1,
        },
        states: watches,
        publish: true,
        answer_pings: false,
        ready: Ready::Snapshot,
    };
    Herd::new(plan, 0).unwrap()
}

fn snapshot(herd: &mut Herd, conn: usize, users: usize) -> (u64, u64) {
    let record = "{\"user\":\"x\",\"status\":\"online\",\"since\":1,\"last_active\":1}";
    let data = format!("{{\"presence\":[{}]}}", vec![record; users].join(","));
    let event = Event {
        name: b"snapshot",
        data: Cow::Owned(data.into_bytes()),
    };
    herd.event(conn, 1_000, &event, Lasting::default());
    (herd.snapshot.count(), herd.progress.ready)
}

#[test]
fn a_snapshot_in_several_events_is_one() {
    let mut h = herd(5);
    assert_eq!(snapshot(&mut h, 0, 3), (0, 0));
    assert_eq!(snapshot(&mut h, 0, 2), (1, 1));
    assert_eq!(snapshot(&mut h, 0, 1), (1, 1));
    assert_eq!(snapshot(&mut h, 1, 5), (2, 2));
    let mut unwatching = herd(0);
    assert_eq!(snapshot(&mut unwatching, 0, 0), (1, 1));
}

/// What the generator's effort is measured for: the way up, and the way back of all.
#[test]
fn a_storm_is_over_when_all_were_lost_and_are_back() {
    let mut h = herd(0);
    assert!(!h.is_settled());
    (0..2).for_each(|conn| h.made_ready(conn, 1_000));
    assert!(h.is_settled());
    h.storm = true;
    assert!(!h.is_settled(), "ordered, but not cut yet");
    (0..2).for_each(|conn| h.unready(conn));
    h.made_ready(0, 2_000);
    assert!(!h.is_settled());
    h.made_ready(1, 2_000);
    assert!(h.is_settled());
}

/// A client waits for as long as it was told, and browsers for 3 s if they were told nothing.
#[test]
fn a_stream_comes_back_when_its_retry_says() {
    let mut h = herd(0);
    h.storm = true;
    let told = |retry_ms| Lasting {
        retry_ms,
        last_id: 0,
    };
    h.gone(0, 5_000_000, Gone::Eof, told(700));
    assert_eq!(h.next_return_us(), 5_700_000);
    h.returning.clear();
    h.gone(1, 5_000_000, Gone::Reset, told(0));
    assert!((8_000_000..8_100_000).contains(&h.next_return_us()));
    h.returning.clear();
    // After an answer like this an EventSource gives up.
    h.gone(1, 5_000_000, Gone::Status(503), told(700));
    assert_eq!((h.next_return_us(), h.given_up), (u64::MAX, 1));
}
