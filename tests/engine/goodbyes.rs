//! A goodbye is one device's: what it says of a user with other devices, and what it does not.

use greendot::metrics::Counter;

use super::harness::{Peer, World, record, snapshot, told};

const SHARDS: [u16; 3] = [1, 2, 4];

/// A world of so many shards, and a watcher of bob on each; bob's slot belongs to the last.
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

/// Nobody was told anything.
#[track_caller]
fn quiet(world: &mut World, watchers: &[Peer]) {
    for watcher in watchers {
        let received = world.received(*watcher);
        let ms = world.ms();
        assert!(!received.contains("event: presence"), "{ms}: {received}");
    }
}

/// Everybody was told this of bob, and nothing else.
#[track_caller]
fn all_told(world: &mut World, watchers: &[Peer], status: &str, ms: u64) {
    for watcher in watchers {
        let received = world.received(*watcher);
        let expected = told(ms, &record("bob", status, ms, ms));
        assert!(received.ends_with(&expected), "{received}");
        assert_eq!(received.matches("event: presence").count(), 1, "{received}");
    }
}

#[test]
fn nothing_is_told_while_another_stream_is_open() {
    for shards in SHARDS {
        let (mut world, watchers) = world(shards);
        let last = usize::from(shards) - 1;
        let (phone, _) = world.stream(0, "user=bob", 0);
        let (desk, _) = world.stream(last, "user=bob", 0);
        let page = world.connect(last / 2);
        world.at(1_000).leave(0, &["bob"]);
        world.post(page, "/v1/leave", r#"{"users":["bob"]}"#);
        world.at(2_000).shut(phone).leave(last, &["bob"]);
        world.post(page, "/v1/leave", r#"{"users":["bob"]}"#);
        world.at(5_000);
        quiet(&mut world, &watchers);
        let held: u64 = (0..=last)
            .map(|n| world.count(n, Counter::LeavesHeld))
            .sum();
        assert_eq!(held, 4);
        // His last one is closed, which is no goodbye; then he says it.
        world.shut(desk).at(6_000);
        quiet(&mut world, &watchers);
        world.leave(0, &["bob"]);
        all_told(&mut world, &watchers, "offline", 6_000);
    }
}

/// A goodbye over HTTP, said at a shard; it must be answered so.
#[track_caller]
fn goodbye(world: &mut World, shard: usize, json: &str, answer: &str) {
    let asker = world.connect(shard);
    world.post(asker, "/v1/leave", json).turn();
    let received = world.received(asker);
    assert!(received.starts_with(answer), "{json}: {received}");
    world.reset(asker);
}

const GONE: &str = "HTTP/1.1 204 ";

#[test]
fn a_goodbye_that_names_a_stream_ends_it_at_once() {
    for shards in SHARDS {
        let (mut world, watchers) = world(shards);
        let last = usize::from(shards) - 1;
        let (phone, phone_id) = world.stream(0, "user=bob", 0);
        let (desk, desk_id) = world.stream(last, "user=bob", 0);
        let body = format!("{{\"stream\":\"{phone_id}\"}}");
        world.at(1_000);
        goodbye(&mut world, last, &body, GONE);
        let farewell = "event: goodbye\ndata: {\"reason\":\"left\"}\n\n";
        assert!(world.received(phone).ends_with(farewell));
        world.expect_closed(phone).expect_open(desk);
        quiet(&mut world, &watchers);
        // It is gone, and nobody else was named.
        goodbye(&mut world, 0, &body, "HTTP/1.1 404 ");
        world.at(2_000);
        let body = format!("{{\"stream\":\"{desk_id}\",\"users\":[\"bob\",\"nobody\"]}}");
        goodbye(&mut world, 0, &body, GONE);
        world.expect_closed(desk);
        all_told(&mut world, &watchers, "offline", 2_000);
        // The users' goodbye counts without the stream.
        world.at(3_000).beat(0, &["bob"]);
        all_told(&mut world, &watchers, "online", 3_000);
        world.at(4_000);
        goodbye(&mut world, 0, &body, GONE);
        all_told(&mut world, &watchers, "offline", 4_000);
        goodbye(&mut world, 0, r#"{"stream":"made up"}"#, "HTTP/1.1 404 ");
    }
}

/// `pagehide` says goodbye, and the reloaded page opens a stream in its place.
#[test]
fn a_page_that_is_reloaded_five_times_tells_its_watchers_nothing() {
    for shards in SHARDS {
        let (mut world, watchers) = world(shards);
        let last = usize::from(shards) - 1;
        let (mut page, mut id) = world.stream(0, "user=bob", 0);
        for reload in 0..5 {
            let shard = reload % usize::from(shards);
            let body = format!("{{\"stream\":\"{id}\",\"after_ms\":3000}}");
            goodbye(&mut world, last - shard, &body, GONE);
            world.expect_closed(page).pass(900);
            (page, id) = world.stream(shard, "user=bob", 0);
            world.pass(200);
        }
        world.pass(5_000);
        quiet(&mut world, &watchers);
        // And when it is closed for good, that is told after the three seconds, with the true time.
        let body = format!("{{\"stream\":\"{id}\",\"users\":[\"bob\"],\"after_ms\":3000}}");
        let said_at = world.ms();
        goodbye(&mut world, 0, &body, GONE);
        world.at(said_at + 2_999);
        quiet(&mut world, &watchers);
        world.at(said_at + 3_001);
        for watcher in &watchers {
            let received = world.received(*watcher);
            let (_, told) = received.split_once("event: presence").expect("told");
            assert!(told.contains("\"status\":\"offline\""), "{told}");
            let active = format!("\"last_active\":{}}}", super::harness::START + said_at);
            assert!(told.contains(&active), "{told}");
        }
    }
}

/// A beat has taken a goodbye back, the wall clock was set back, and another goodbye is put off, of
/// which the owner has yet to read: the first is not carried out in its place, nor where only the
/// beat's time looks older than it.
#[test]
fn a_goodbye_of_before_a_step_back_is_not_carried_out_in_place_of_a_later_one() {
    for step_ms in [42_000, 3_500] {
        for shards in [2, 4] {
            let (mut world, watchers) = world(shards);
            let last = usize::from(shards) - 1;
            let put_off = r#"{"users":["bob"],"after_ms":3000}"#;
            world.at(1_000);
            goodbye(&mut world, 0, put_off, GONE);
            world.step_wall(-step_ms).at(1_500);
            world.beat(0, &["bob"]).at(3_800);
            let asker = world.connect(0);
            world.hold_mail(last, true);
            world.post(asker, "/v1/leave", put_off).at(4_100);
            quiet(&mut world, &watchers);
            world.hold_mail(last, false).at(6_700);
            assert!(world.received(asker).starts_with(GONE));
            quiet(&mut world, &watchers);
            world.at(7_000);
            for watcher in &watchers {
                let received = world.received(*watcher);
                assert!(received.contains("\"status\":\"offline\""), "{received}");
            }
        }
    }
}

#[test]
fn a_sign_of_life_takes_back_a_goodbye_that_was_put_off() {
    for shards in SHARDS {
        let last = usize::from(shards) - 1;
        let put_off = r#"{"users":["bob"],"after_ms":3000}"#;
        // In the same moment, too, and however old a datagram is.
        for sign in 0..4 {
            let (mut world, watchers) = world(shards);
            world.at(1_000);
            goodbye(&mut world, 0, put_off, GONE);
            match sign {
                0 => drop(world.beat(last, &["bob"])),
                1 => {
                    let early = world.now().unix.minus_ms(900);
                    world.datagram_of(last, &["bob"], early, false);
                }
                2 => {
                    let asker = world.connect(0);
                    world.post(asker, "/v1/beat", r#"{"users":["bob"]}"#);
                }
                _ => drop(world.stream(last, "user=bob", 0)),
            }
            world.at(9_000);
            quiet(&mut world, &watchers);
        }
        let (mut world, watchers) = world(shards);
        world.at(1_000);
        goodbye(&mut world, 0, put_off, GONE);
        // The later one takes the place of the earlier.
        world.at(3_000);
        goodbye(&mut world, last, put_off, GONE);
        world.at(5_999);
        quiet(&mut world, &watchers);
        world.at(6_001);
        for watcher in &watchers {
            assert!(world.received(*watcher).contains("\"status\":\"offline\""));
        }
    }
}

#[test]
fn a_user_who_is_logged_out_is_told_goodbye_on_every_stream() {
    for shards in SHARDS {
        let (mut world, watchers) = world(shards);
        let last = usize::from(shards) - 1;
        let streams: Vec<_> = (0..=last)
            .flat_map(|shard| [shard; 2])
            .map(|shard| world.stream(shard, "user=bob", 0).0)
            .collect();
        let (carol, _) = world.stream(last, "user=carol", 0);
        world.at(1_000).beat(0, &["bob"]);
        let everywhere = r#"{"users":["bob","nobody"],"everywhere":true}"#;
        goodbye(&mut world, 0, everywhere, GONE);
        for stream in streams {
            let received = world.received(stream);
            let bye = "event: bye\nid: bye\ndata: {}\n\n";
            assert!(received.ends_with(bye), "{received}");
            world.expect_closed(stream);
        }
        world.expect_open(carol);
        all_told(&mut world, &watchers, "offline", 1_000);
        // What was sent before counts no more, and what comes back with the id is sent away.
        let early = world.now().unix.minus_ms(900);
        world.datagram_of(last, &["bob"], early, false);
        world.at(12_000);
        quiet(&mut world, &watchers);
        for target in ["user=bob&last_event_id=bye", "watch=bob&last_event_id=bye"] {
            let back = world.connect(last);
            world.get(back, &format!("/v1/stream?{target}"));
            assert!(world.received(back).starts_with(GONE));
        }
        // A new login has no such id.
        world.stream(0, "user=bob", 0);
        all_told(&mut world, &watchers, "online", 12_000);
    }
}

#[test]
fn a_login_behind_a_logout_is_spared() {
    for shards in [2, 4] {
        let (mut world, watchers) = world(shards);
        let last = usize::from(shards) - 1;
        world.at(1_000);
        let asker = world.connect(0);
        let (old, _) = world.stream(last, "user=bob", 0);
        world.post(asker, "/v1/leave", r#"{"users":["bob"],"everywhere":true}"#);
        world.turn();
        assert!(world.received(asker).starts_with(GONE));
        let (new, _) = world.stream(last, "user=bob", 0);
        world.at(15_000).expect_closed(old).expect_open(new);
        drop(watchers);
        assert!(world.ask(0, "bob").contains("\"status\":\"online\""));
    }
}

#[test]
fn goodbyes_that_contradict_themselves_are_refused() {
    let (mut world, watchers) = world(1);
    for body in [
        r#"{"users":["bob"],"everywhere":true,"after_ms":1}"#,
        r#"{"users":["bob"],"everywhere":true,"stream":"0.1"}"#,
        r#"{"users":["bob"],"after_ms":25001}"#,
        r#"{"users":["bob"],"after_ms":"3000"}"#,
        r#"{"everywhere":true}"#,
    ] {
        goodbye(&mut world, 0, body, "HTTP/1.1 400 ");
    }
    world.pass(1_000);
    quiet(&mut world, &watchers);
}

#[test]
fn as_many_goodbyes_wait_as_may() {
    let mut world = World::with(1, |settings| settings.leaves_put_off_max = 2);
    world.beat(0, &["ann", "bob", "carol"]);
    let put_off = |users: &str| format!("{{\"users\":[{users}],\"after_ms\":3000}}");
    goodbye(&mut world, 0, &put_off("\"ann\",\"bob\""), GONE);
    goodbye(&mut world, 0, &put_off("\"bob\""), GONE);
    goodbye(&mut world, 0, &put_off("\"carol\""), "HTTP/1.1 503 ");
    assert_eq!(world.count(0, Counter::LimitLeavesPutOff), 1);
    world.pass(4_000);
    goodbye(&mut world, 0, &put_off("\"carol\""), GONE);
    assert!(world.ask(0, "ann").contains("\"status\":\"offline\""));
    assert!(world.ask(0, "carol").contains("\"status\":\"online\""));
}
