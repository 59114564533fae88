//! An outbox holds what to tell, not the telling.

use greendot::metrics::Counter;

use super::harness::{Peer, START, World, record, request, told};

const FLIPS: u64 = 100;

/// The users "p000".. in order of their slots.
fn publishers(n: usize) -> Vec<String> {
    (0..n).map(|n| format!("p{n:04}")).collect()
}

/// All of them beat, or all of them leave.
fn flip(world: &mut World, users: &[String], online: bool) {
    for some in users.chunks(100) {
        let some: Vec<&str> = some.iter().map(String::as_str).collect();
        if online {
            world.beat(0, &some);
        } else {
            world.leave(0, &some);
        }
    }
}

/// A reader of all of them that has read its snapshot.
fn reader(world: &mut World, users: &[String]) -> Peer {
    let peer = world.connect(0);
    let ask = serde_json::json!({ "watch": users }).to_string();
    world.post(peer, "/v1/stream", &ask);
    world.received(peer);
    peer
}

#[test]
fn a_reader_that_stops_costs_its_marks_and_then_gets_each_final_state_once() {
    let mut world = World::with(1, |settings| {
        settings.write_stall_max_ms = 120_000;
        settings.keep_alive_ms = 300_000;
    });
    world.checks = false;
    let users = publishers(1_000);
    flip(&mut world, &users, true);
    let slow = reader(&mut world, &users);
    let quick = reader(&mut world, &users);
    world.stall(slow);
    let begun = world.ms();
    for n in 0..FLIPS {
        world.at(begun + 600 * (n + 1));
        flip(&mut world, &users, n % 2 == 1);
        // Nobody else waits: each change in the very turn.
        let received = world.received(quick);
        assert_eq!(
            received.matches("event: presence\n").count(),
            1_000,
            "flip {n}"
        );
        assert_eq!(received.matches("\nid: ").count(), 1);
    }
    assert_eq!(world.ms(), 60_000);
    let max = world.settings.outbox_bytes_max;
    let bytes = world.count(0, Counter::BytesOut);
    world.engine(0).check_invariants();
    // What was encoded before it stopped, stale by now, is told first; then every state once, as it
    // is now.
    let stale_max = max / 80;
    world.read(slow, None);
    let received = world.received(slow);
    let final_state = |user: &str| record(user, "online", 60_000, 60_000);
    for user in &users {
        assert_eq!(received.matches(&final_state(user)).count(), 1, "{user}");
    }
    let events = received.matches("event: presence\n").count();
    assert!(events <= 1_000 + stale_max, "{events}");
    // Only the last event says up to when everything has been told.
    let (_, last) = received.trim_end().rsplit_once("\n\n").unwrap();
    let id = START + 60_000;
    assert!(
        last.starts_with(&format!("event: presence\nid: {id}\n")),
        "{last}"
    );
    let sent = world.count(0, Counter::BytesOut) - bytes;
    assert!(sent as usize <= max + 1_000 * 150, "{sent}");
    // Of 100 marks for each publisher it had one at a time.
    let coalesced = world.count(0, Counter::MarksCoalesced);
    assert!((97_000..=99_000).contains(&coalesced), "{coalesced}");
}

#[test]
fn a_stale_state_never_follows_a_newer_one() {
    let mut world = World::with(1, |settings| settings.outbox_bytes_max = 2_048);
    let users = publishers(100);
    flip(&mut world, &users, true);
    let slow = reader(&mut world, &users);
    world.stall(slow);
    let mut newest = vec![0; 100];
    let mut lines = String::new();
    for n in 1..=60 {
        world.at(n * 300);
        flip(
            &mut world,
            &users[(n as usize * 7) % 90..][..10],
            n % 2 == 0,
        );
        world.read(slow, 333);
        lines += &world.received(slow);
    }
    world.read(slow, None);
    lines += &world.received(slow);
    for line in lines.lines().filter_map(|line| line.strip_prefix("data: ")) {
        let told: serde_json::Value = serde_json::from_str(line).unwrap();
        let n: usize = told["user"].as_str().unwrap()[1..].parse().unwrap();
        let since = told["since"].as_u64().unwrap();
        assert!(since >= newest[n], "{line}");
        newest[n] = since;
    }
    for (n, user) in users.iter().enumerate() {
        let now = world.ask(0, user);
        let now: serde_json::Value = serde_json::from_str(&now).unwrap();
        let since = now["since"].as_u64().unwrap();
        assert!(newest[n] == since || newest[n] == 0, "{user} ends as it is");
    }
}

#[test]
fn who_takes_nothing_is_evicted_and_who_takes_a_little_lives() {
    let mut world = World::new(1);
    let dead = reader(&mut world, &publishers(1));
    let users = publishers(100);
    let slow = reader(&mut world, &users);
    world.stall(dead).stall(slow).at(1_000);
    let mut received = String::new();
    let before_bytes = world.received_bytes(slow);
    let mut ms = 1_000;
    for second in 0..120_u64 {
        flip(&mut world, &users, second % 2 == 0);
        for _ in 0..10 {
            ms += 100;
            world.at(ms).read(slow, 102);
        }
        received += &world.received(slow);
        let evicted = world.is_closed(dead);
        assert_eq!(evicted, ms > 31_064, "at {ms}");
        assert_eq!(evicted, world.was_reset(dead));
    }
    world.expect_open(slow).expect_nothing(dead);
    assert_eq!(world.count(0, Counter::LimitWriteStall), 1);
    assert_eq!(world.count(0, Counter::EvictedWriteStall), 1);
    let bytes = world.received_bytes(slow) - before_bytes;
    assert_eq!(bytes, 120 * 1_020, "it was never made to wait");
    world.read(slow, None);
    received += &world.received(slow);
    let since = world.ms() - 1_000;
    for user in &users {
        let last = received.rfind(&format!("\"user\":\"{user}\"")).unwrap();
        let expected = record(user, "offline", since, since);
        assert!(received[last - 1..].starts_with(&expected), "{user}");
    }
}

#[test]
fn whom_the_kernel_gives_up_is_counted_as_evicted() {
    let mut world = World::new(1);
    let dead = reader(&mut world, &publishers(1));
    let ending = world.connect(0);
    let last =
        request("GET", "/v1/presence/x").replace("Host: a\r\n", "Host: a\r\nConnection: close\r\n");
    world.stall(ending).send(ending, last).turn();
    let counts = |world: &mut World| {
        let counted = [
            Counter::LimitWriteStall,
            Counter::EvictedUserTimeout,
            Counter::ClosedEvicted,
            Counter::ClosedReset,
            Counter::ClosedDone,
        ];
        counted.map(|counter| world.count(0, counter))
    };
    assert_eq!(counts(&mut world), [0, 0, 0, 0, 1]);
    world.time_out(dead);
    assert_eq!(counts(&mut world), [1, 1, 1, 0, 1]);
    // One that was ending has been counted with its reason.
    world.time_out(ending);
    assert_eq!(counts(&mut world), [2, 2, 1, 0, 1]);
    // And one that the engine has done with is nobody.
    world.time_out(ending);
    assert_eq!(counts(&mut world), [2, 2, 1, 0, 1]);
}

#[test]
fn a_closing_reader_gets_the_rest_and_costs_no_turns() {
    let mut world = World::new(1);
    let users = publishers(200);
    let bob = world.connect(0);
    world.stall(bob);
    let ask = serde_json::json!({ "users": users }).to_string();
    let head = "POST /v1/presence/query HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\
                Content-Type: application/json\r\n";
    world
        .send(
            bob,
            format!("{head}Content-Length: {}\r\n\r\n{ask}", ask.len()),
        )
        .turn();
    for second in 0..60 {
        // `at` panics if the engine spins.
        world.at(second * 1_000).read(bob, 100);
    }
    assert_eq!(world.received_bytes(bob), 6_000);
    world
        .at(88_000)
        .expect_open(bob)
        .at(89_128)
        .expect_reset(bob);
    assert_eq!(world.count(0, Counter::EvictedWriteStall), 1);
}

#[test]
fn changes_between_two_writes_are_one() {
    let mut world = World::new(1);
    world.beat(0, &["p0000"]);
    let peer = reader(&mut world, &publishers(1));
    world.at(10).leave(0, &["p0000"]);
    let sent_at = world.now().unix.plus_ms(1);
    world.datagram_of(0, &["p0000"], sent_at, false);
    world.expect(peer, told(10, &record("p0000", "online", 11, 10)));
    assert_eq!(world.count(0, Counter::Marks), 1);
    assert_eq!(world.count(0, Counter::MarksCoalesced), 1);
}

#[test]
fn who_asks_on_and_reads_nothing_is_evicted_no_later() {
    let mut world = World::new(1);
    let bob = world.connect(0);
    world
        .stall(bob)
        .get(bob, "/v1/presence/x")
        .at(20_000)
        .get(bob, "/v1/presence/x");
    world
        .at(30_000)
        .expect_open(bob)
        .at(30_128)
        .expect_reset(bob);
    assert_eq!(world.count(0, Counter::EvictedWriteStall), 1);
}

/// By the server's own clock: no sooner than the time, and a tick of its timers later at most. What
/// it is owed does not matter, nor that it is asked whether it is there in between.
#[test]
fn who_reads_nothing_is_reset_when_the_time_is_over() {
    for (keep_alive_ms, began_ms) in [(15_000, 0), (15_000, 777), (600_000, 12_345)] {
        let mut world = World::with(1, |settings| settings.keep_alive_ms = keep_alive_ms);
        let bob = reader(&mut world, &publishers(1));
        world.stall(bob).at(began_ms).beat(0, &["p0000"]).turn();
        world.at(began_ms + 29_999).expect_open(bob);
        let mut ms = began_ms + 29_999;
        while !world.is_closed(bob) {
            ms += 1;
            world.at(ms).turn();
        }
        assert!((30_000..=30_064).contains(&(ms - began_ms)), "{ms}");
        world.expect_reset(bob).expect_nothing(bob);
        assert_eq!(world.count(0, Counter::EvictedWriteStall), 1);
    }
}

/// However much an outbox may hold: readers bound their lines.
#[test]
fn no_line_of_a_stream_is_longer_than_64_000_bytes() {
    let mut world = World::with(1, |settings| settings.outbox_bytes_max = 1 << 20);
    let users: Vec<String> = (0..2_000).map(|n| format!("{n:\"<128}")).collect();
    let alice = world.connect(0);
    let ask = serde_json::json!({ "watch": users }).to_string();
    world.post(alice, "/v1/stream", &ask);
    let received = world.received(alice);
    let longest = received.lines().map(str::len).max().unwrap();
    assert!((60_000..=64_000).contains(&longest), "{longest}");
    assert_eq!(received.matches("\"status\":\"offline\"").count(), 2_000);
    // Only the last part has an id.
    assert_eq!(received.matches("\nid: ").count(), 1);
}
