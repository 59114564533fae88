//! Graceful shutdown: streams end one after the other, requests are answered, then nothing is left.

use greendot::metrics::{Counter, Gauge};

use super::harness::{CLOSE, STREAM_HEAD, World, json, json_head, posted, unseen};

/// What a stream is told that ends, or is refused, because of a drain.
fn told_retry_ms(received: &str, event: &str) -> u64 {
    let rest = received
        .strip_prefix(&format!("event: {event}\nretry: "))
        .unwrap_or_else(|| panic!("{received}"));
    let (retry, rest) = rest.split_once('\n').expect("a line");
    assert_eq!(rest, "data: {\"reason\":\"draining\"}\n\n");
    retry.parse().expect("digits")
}

/// Each is sent away for the rest of the drain, half a second for a start, and a retry of 3 to 4.5
/// s.
#[test]
fn streams_end_spread_over_the_drain_and_are_sent_away_until_the_next_start() {
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
    let mut closed_at = vec![None; 100];
    for ms in (1_000..=11_020).step_by(20) {
        world.at(ms);
        for (stream, closed_at) in streams.iter().zip(&mut closed_at) {
            if closed_at.is_none() && world.is_closed(*stream) {
                *closed_at = Some(ms);
            }
        }
        let closed = closed_at.iter().flatten().count();
        let due = (ms - 1_000) as usize / 100;
        assert!(closed.abs_diff(due.min(100)) <= 1, "{closed} at {ms} ms");
    }
    let mut jitters = Vec::new();
    for (stream, closed_at) in streams.into_iter().zip(closed_at) {
        world.expect_whole(stream);
        let retry_ms = told_retry_ms(&world.received(stream), "goodbye");
        let rest_ms = 11_000_u64.saturating_sub(closed_at.expect("all are closed"));
        jitters.push(retry_ms.checked_sub(rest_ms + 500 + 3_000).unwrap());
    }
    jitters.sort_unstable();
    assert!(
        jitters[99] <= 1_500 && jitters[99] - jitters[0] > 750,
        "{jitters:?}"
    );
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
    // Who comes meanwhile is answered and let go; who comes after that finds nobody.
    let late = world.drain().connect(0);
    world.get(late, "/v1/stream?watch=x");
    let received = world.received(late);
    let body = received.strip_prefix(STREAM_HEAD).expect("a stream");
    let retry_ms = told_retry_ms(body, "overloaded");
    assert!((4_000..=5_500).contains(&retry_ms), "{retry_ms}");
    world.expect_whole(late).expect_closed(late);
    let probe = world.connect(0);
    world.get(probe, "/readyz");
    assert!(world.received(probe).starts_with("HTTP/1.1 503 "));
    world.shut(probe).close().turn();
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

/// A probe's connection that is open and silent when its turn comes has yet to ask.
#[test]
fn one_that_has_just_connected_is_heard_while_it_drains() {
    let mut world = World::with(1, |settings| settings.drain_ms = 1_000);
    let stream = world.stream(0, "watch=x", 1).0;
    world.drain().at(100);
    let probe = world.connect(0);
    world.at(1_400).expect_closed(stream).expect_open(probe);
    world.get(probe, "/readyz");
    assert!(world.received(probe).starts_with("HTTP/1.1 503 "));
    world.shut(probe);
    let silent = world.connect(0);
    world.at(1_520).expect_closed(silent);
    assert!(world.engine(0).is_drained());
}

/// A drain that is longer than a silence may be turns nobody offline, whether they are away or have
/// vanished: that is found when the next start has waited for them.
#[test]
fn nobody_is_silent_while_it_drains() {
    let mut world = World::with(1, |settings| settings.drain_ms = 60_000);
    let bob = world.stream(0, "user=bob", 0).0;
    let watcher = world.stream(0, "watch=bob", 1).0;
    world.received(watcher);
    world.reset(bob);
    world.at(20_000).drain().at(45_000);
    assert_eq!(world.presence().online(), 1);
    assert_eq!(world.gauge(0, Gauge::ExpiriesHeld), 1);
    world.at(49_000).restart(2_000);
    // As long as those who were sent away last may take: 63.5 to 65 s, and a quarter; and 5 s.
    world.at(51_000 + 86_000);
    assert_eq!(world.presence().online(), 1);
    world.at(51_000 + 87_000);
    assert_eq!(world.presence().online(), 0);
}
