//! Graceful shutdown: streams end one after the other, requests are answered, then nothing is left.

use greendot::metrics::Counter;

use super::harness::{CLOSE, STREAM_HEAD, World, json, json_head, posted, unseen};

#[test]
fn streams_end_spread_over_the_drain_with_a_wide_retry() {
    let mut world = World::new(1);
    let streams: Vec<_> = (0..100).map(|_| world.stream(0, "watch=x", 1).0).collect();
    for stream in &streams {
        world.received(*stream);
    }
    let idle = world.connect(0);
    world.get(idle, "/livez");
    world.received(idle);
    assert!(!world.engine(0).is_drained());
    world.at(1_000).drain().turn();
    let mut retries = Vec::new();
    let mut open = 100;
    for ms in (1_000..=11_020).step_by(20) {
        world.at(ms);
        let closed = streams
            .iter()
            .filter(|stream| world.is_closed(**stream))
            .count();
        let due = (ms - 1_000) as usize / 100;
        assert!(closed.abs_diff(due.min(100)) <= 1, "{closed} at {ms} ms");
        open = 100 - closed;
    }
    assert_eq!(open, 0);
    for stream in streams {
        world.expect_whole(stream);
        let goodbye = world.received(stream);
        let rest = goodbye.strip_prefix("event: goodbye\nretry: ").unwrap();
        let (retry, rest) = rest.split_once('\n').unwrap();
        assert_eq!(rest, "data: {\"reason\":\"draining\"}\n\n");
        retries.push(retry.parse::<u64>().unwrap());
    }
    retries.sort_unstable();
    assert!(retries[0] >= 3_000 && retries[99] <= 33_000);
    assert!(retries[99] - retries[0] > 15_000, "wide: {retries:?}");
    world.expect_nothing(idle).expect_closed(idle);
    assert!(world.engine(0).is_drained());
    assert_eq!(world.count(0, Counter::EventsGoodbye), 100);
    assert_eq!(world.count(0, Counter::ClosedDrain), 101);
}

#[test]
fn requests_under_way_are_answered_and_told_to_close() {
    let mut world = World::with(2, |settings| settings.drain_ms = 500);
    let half = world.connect(0);
    let post = posted("/v1/presence/query", "{\"users\":[\"x\"]}");
    world.send(half, &post[..40]);
    let (_, id) = world.stream(1, "", 0);
    let waits = world.connect(0);
    world.hold_mail(1, true);
    world
        .post(
            waits,
            &format!("/v1/stream/{id}/watch"),
            "{\"add\":[\"x\"]}",
        )
        .turn();
    // Who was waiting to be accepted is answered; who comes later finds nobody.
    let late = world.drain().connect(0);
    world.get(late, "/v1/stream?watch=x");
    let received = world.received(late);
    assert!(received.starts_with(&format!("{STREAM_HEAD}event: overloaded\nretry: ")));
    assert!(received.ends_with("data: {\"reason\":\"draining\"}\n\n"));
    world.expect_whole(late).expect_closed(late);
    assert_eq!(world.try_connect(0), None);
    world.at(1_000).expect_nothing(half).expect_open(half);
    world.send(half, &post[40..]);
    let body = format!("{{\"presence\":[{}]}}", unseen("x"));
    world
        .expect(half, json_head(body.len(), CLOSE) + &body)
        .expect_write_shut(half)
        // What it had sent on before it could know is not answered, and does not cost it the answer
        // before.
        .get(half, "/livez")
        .expect_nothing(half)
        .shut(half)
        .expect_closed(half);
    world.hold_mail(1, false);
    let answer = world.received(waits);
    assert!(
        answer.starts_with("HTTP/1.1 404") && answer.contains(CLOSE),
        "{answer}"
    );
    world
        .expect_write_shut(waits)
        .shut(waits)
        .expect_closed(waits);
    assert!(world.engine(0).is_drained() && world.engine(1).is_drained());
}

#[test]
fn a_drain_without_time_ends_all_at_once_and_states_survive() {
    let mut world = World::with(1, |settings| settings.drain_ms = 0);
    let streams: Vec<_> = (0..50)
        .map(|n| world.stream(0, &format!("user=u{n}"), 0).0)
        .collect();
    let asker = world.connect(0);
    world
        .get(asker, "/v1/presence/x")
        .expect(asker, json(&unseen("x")));
    world.drain();
    for stream in streams {
        world.expect_closed(stream);
    }
    assert!(world.engine(0).is_drained());
    world.restart(1_000);
    assert_eq!(world.presence().online(), 50);
}
