//! When a publisher is online: beats, silence, goodbyes, and clocks that misbehave.

use greendot::metrics::Counter;

use super::harness::{Peer, START, World, record, snapshot, told, without_pings};

/// A world of so many shards, a user whose slot belongs to the last, and a watcher on each shard.
fn world(shards: u16) -> (World, Vec<Peer>) {
    let mut world = World::new(shards);
    world.make_slots((u32::from(shards) - 1) * 4_096);
    world.beat(0, &["bob"]).turn();
    let watchers: Vec<_> = (0..usize::from(shards))
        .map(|shard| world.stream(shard, "watch=bob", 1).0)
        .collect();
    for watcher in &watchers {
        world.expect(*watcher, snapshot(0, &[record("bob", "online", 0, 0)]));
    }
    (world, watchers)
}

/// What a peer was told.
fn events(world: &mut World, peer: Peer) -> String {
    without_pings(&world.received(peer))
}

/// Nobody was told anything.
#[track_caller]
fn quiet(world: &mut World, watchers: &[Peer]) {
    for watcher in watchers {
        let received = events(world, *watcher);
        assert_eq!(received, "", "at {} ms", world.ms());
    }
}

#[test]
fn online_within_the_turn_and_offline_within_a_sweep() {
    for shards in [1, 2, 7] {
        let (mut world, watchers) = world(shards);
        world.checks = false;
        // Past the restart's grace.
        for ms in (10_000..=30_000).step_by(10_000) {
            world.at(ms).beat(usize::from(shards) / 2, &["bob"]);
        }
        world.at(55_000);
        quiet(&mut world, &watchers);
        world.at(55_250);
        let since = 55_000..=55_250;
        for watcher in &watchers {
            let received = world.received(*watcher);
            let (_, rest) = received
                .split_once("\"since\":")
                .unwrap_or_else(|| panic!("{received}"));
            let at: u64 = rest[..13].parse().unwrap();
            assert!(since.contains(&(at - START)), "{received}");
            assert!(
                received.contains(&record("bob", "offline", at - START, 30_000)),
                "{received}"
            );
        }
        for shard in 0..usize::from(shards) {
            let ms = 60_000 + shard as u64 * 100;
            world.at(ms).leave(shard, &["bob"]);
            world.at(ms + 50).beat(shard, &["bob"]);
            for watcher in &watchers {
                let received = world.received(*watcher);
                let expected = told(ms + 50, &record("bob", "online", ms + 50, ms + 50));
                assert!(received.ends_with(&expected), "{received}");
            }
        }
    }
}

#[test]
fn a_stall_and_a_suspend_flip_nobody() {
    for shards in [1, 2] {
        for stall_ms in [20_000, 60_000, 9 * 3_600_000] {
            let (mut world, watchers) = world(shards);
            for ms in (10_000..=60_000).step_by(10_000) {
                world.at(ms).beat(0, &["bob"]);
            }
            world.at(69_000).jump(stall_ms).turn();
            let woke = world.ms();
            assert!(world.count(0, Counter::Stalls) > 0);
            // The beats of the meantime are read a little later, and the next ones come as usual.
            world.at(woke + 5_000).beat(0, &["bob"]);
            world.at(woke + 14_000).beat(0, &["bob"]);
            world.at(woke + 39_000);
            quiet(&mut world, &watchers);
            // After so long a silence bob is missed as ever.
            world.at(woke + 39_250);
            let offline = world.ask(0, "bob");
            assert!(offline.contains("\"status\":\"offline\""), "{offline}");
            assert!(
                offline.ends_with(&format!("{}}}", START + woke + 14_000)),
                "{offline}"
            );
        }
    }
}

#[test]
fn a_stalled_shard_with_beats_in_its_socket_holds_the_other() {
    let (mut world, watchers) = world(2);
    for ms in (10_000..=60_000).step_by(10_000) {
        world.at(ms).beat(0, &["bob"]);
    }
    // Shard 1 owns bob; his beats wait in shard 0's socket.
    world.pass_without(0, 40_000);
    quiet(&mut world, &watchers[1..]);
    // Shard 0 wakes; the other's sweep comes before it has read.
    let now = world.now();
    world.engine(0).begin_turn(now);
    world.pass_without(0, 200);
    quiet(&mut world, &watchers[1..]);
    world.beat(0, &["bob"]).turn();
    world.pass(10_000);
    quiet(&mut world, &watchers);
}

#[test]
fn steps_of_the_wall_clock_flip_nobody() {
    for step_ms in [
        3_600_000,
        -3_600_000,
        86_400_000,
        -86_400_000,
        5_000,
        -5_000,
    ] {
        for shards in [1, 2] {
            let (mut world, watchers) = world(shards);
            for ms in (10_000..=60_000).step_by(10_000) {
                world.at(ms).beat(0, &["bob"]);
            }
            world.at(65_000).step_wall(step_ms);
            for ms in (70_000..=150_000).step_by(10_000) {
                world.at(ms).beat(0, &["bob"]);
                quiet(&mut world, &watchers);
            }
            assert!(world.count(0, Counter::ClockSteps) == 1, "{step_ms}");
            world.at(175_000);
            quiet(&mut world, &watchers);
            world.at(175_250);
            let offline = world.ask(0, "bob");
            assert!(
                offline.contains("\"status\":\"offline\""),
                "{step_ms}: {offline}"
            );
        }
    }
}

/// Bob's owner sees but one step back; the steps were two, and his stamp is from the time in
/// between.
#[test]
fn steps_back_and_forward_that_a_shard_sleeps_through_flip_nobody() {
    let (mut world, watchers) = world(2);
    for ms in (10_000..=60_000).step_by(10_000) {
        world.at(ms).beat(0, &["bob"]);
    }
    world.at(65_000).step_wall(-60_000).pass_without(1, 500);
    world.beat(0, &["bob"]).pass_without(1, 100);
    world.step_wall(20_000).pass_without(1, 900);
    world.pass(23_000);
    quiet(&mut world, &watchers);
    assert!(world.ask(0, "bob").contains("\"status\":\"online\""));
}

#[test]
fn a_goodbye_stands_against_what_was_sent_before_it() {
    for shards in [1, 2, 7] {
        let (mut world, watchers) = world(shards);
        let last = usize::from(shards) - 1;
        world.at(10_000).leave(0, &["bob"]);
        for watcher in &watchers {
            world.expect(
                *watcher,
                told(10_000, &record("bob", "offline", 10_000, 10_000)),
            );
        }
        let sent_at = |ms| greendot::time::Unix::from_ms(START + ms);
        // Late, duplicated, replayed; and another goodbye.
        for ms in [0, 9_999, 9_990, 9_999] {
            world.datagram_of(last, &["bob"], sent_at(ms), false);
            world.at(world.ms() + 1_000);
            world.datagram_of(0, &["bob"], sent_at(ms), false);
        }
        world.datagram_of(last, &["bob"], sent_at(10_000), true);
        for watcher in &watchers {
            assert_eq!(events(&mut world, *watcher), "");
        }
        let refused: u64 = (0..=last)
            .map(|n| world.count(n, Counter::BeatBeforeLeave))
            .sum();
        assert_eq!(refused, 8);
        let at = world.ms();
        world.datagram_of(last, &["bob"], sent_at(10_016), false);
        for watcher in &watchers {
            let received = world.received(*watcher);
            assert!(
                received.ends_with(&told(at, &record("bob", "online", at, at))),
                "{received}"
            );
        }
        // The goodbye again, as a replay: it undoes nothing.
        world.datagram_of(0, &["bob"], sent_at(10_000), true);
        world.pass(1_000);
        quiet(&mut world, &watchers);
    }
}

#[test]
fn a_restart_keeps_who_was_online_until_the_grace_is_over() {
    for shards in [1, 2] {
        let mut world = World::new(shards);
        world.beat(0, &["eve"]);
        world.at(25_001).beat(0, &["bob", "zoe"]);
        world.at(40_000);
        assert_eq!(world.ask(0, "eve"), record("eve", "offline", 25_250, 0));
        world.restart(60_000);
        assert_eq!(world.ms(), 100_000);
        let (alice, _) = world.stream(0, "watch=bob&watch=zoe&watch=eve", 3);
        world.expect(
            alice,
            snapshot(
                100_000,
                &[
                    record("eve", "offline", 25_250, 0),
                    record("bob", "online", 25_001, 25_001),
                    record("zoe", "online", 25_001, 25_001),
                ],
            ),
        );
        world
            .at(110_000)
            .beat(0, &["bob"])
            .at(120_000)
            .beat(0, &["bob"])
            .at(124_999);
        quiet(&mut world, &[alice]);
        world.at(125_250);
        let received = world.received(alice);
        let (_, rest) = received.split_once("\"since\":").unwrap();
        let since: u64 = rest[..13].parse::<u64>().unwrap() - START;
        assert!((125_000..=125_250).contains(&since));
        assert!(
            received.ends_with(&told(since, &record("zoe", "offline", since, 25_001))),
            "{received}"
        );
        assert_eq!(
            world.ask(0, "bob"),
            record("bob", "online", 25_001, 120_000)
        );
    }
}

/// A page that is reloaded: its goodbye and its next stream come in one moment, or the goodbye's
/// sender is ahead of the clock.
#[test]
fn who_comes_back_in_the_moment_of_the_goodbye_is_online() {
    let (mut world, _) = world(1);
    let page = world.connect(0);
    world.post(page, "/v1/leave", r#"{"users":["bob"]}"#);
    world.get(page, "/v1/stream?user=bob").turn();
    let status = world.ask(0, "bob");
    assert!(status.contains(r#""status":"online""#), "{status}");

    world.reset(page);
    let ahead = world.now().unix.plus_ms(2_000);
    world.datagram_of(0, &["bob"], ahead, true).turn();
    assert!(world.ask(0, "bob").contains(r#""status":"offline""#));
    let other = world.connect(0);
    world.post(other, "/v1/beat", r#"{"users":["bob"]}"#).turn();
    assert!(world.ask(0, "bob").contains(r#""status":"online""#));
}

/// What peers said and read while the process stood still counts before any deadline does, however
/// many turns it takes to see it.
#[test]
fn a_stall_of_ours_holds_no_peer_to_its_deadlines() {
    let mut world = World::new(1);
    world.beat(0, &["bob"]);
    let slow = world.connect(0);
    world.send(slow, "GET /v1/presence/b");
    let (reader, _) = world.stream(0, "watch=bob", 1);
    world.received(reader);
    world.stall(reader).at(1_000).leave(0, &["bob"]).turn();
    world.jump(60_000).turn();
    world.pass(900).send(slow, "ob HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(world.received(slow).starts_with("HTTP/1.1 200 OK\r\n"));
    world.read(reader, None);
    assert!(
        world
            .received(reader)
            .contains(&record("bob", "offline", 1_000, 1_000))
    );
    world.expect_open(reader);
    // From then on all is as ever.
    world.stall(reader).beat(0, &["bob"]).turn();
    world.send(slow, "GET").pass(31_000);
    world.expect_closed(reader).expect_closed(slow);
    assert_eq!(world.count(0, Counter::EvictedWriteStall), 1);
    assert_eq!(world.count(0, Counter::LimitRequestDeadline), 1);
}
