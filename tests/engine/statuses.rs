//! What a user says of itself: who is told it, and who is told less.

use greendot::engine::Role;

use super::harness::{
    Peer, World, json, posted, record, request, snapshot, status_and_slug, told, unseen,
};
use super::platform::{Half, Platform};

const SHARDS: [u16; 2] = [1, 2];

/// A world of so many shards, and a watcher of bob on each; bob's slot belongs to the last.
fn world(shards: u16) -> (World, Vec<Peer>) {
    let mut world = World::new(shards);
    world.make_slots((u32::from(shards) - 1) * 4_096);
    let watchers: Vec<_> = (0..usize::from(shards))
        .map(|shard| world.stream(shard, "watch=bob", 1).0)
        .collect();
    for watcher in &watchers {
        world.expect(*watcher, snapshot(0, &[unseen("bob")]));
    }
    (world, watchers)
}

/// All were told this of bob, now, and nothing else but pings.
#[track_caller]
fn all_told(world: &mut World, watchers: &[Peer], event: &str) {
    for watcher in watchers {
        let received = super::harness::without_pings(&world.received(*watcher));
        assert_eq!(received, event);
    }
}

#[track_caller]
fn quiet(world: &mut World, watchers: &[Peer]) {
    all_told(world, watchers, "");
}

fn say(world: &mut World, shard: usize, target: &str, body: &str) -> String {
    let asker = world.connect(shard);
    world.send(asker, posted(target, body)).turn();
    let answer = world.received(asker);
    world.reset(asker);
    answer
}

/// Bob's own record, as it is answered.
fn own(
    status: &str,
    since: impl Into<Option<u64>>,
    last_active: impl Into<Option<u64>>,
    invisible: bool,
) -> String {
    let mut body = record("bob", status, since, last_active);
    body.pop();
    json(&format!("{body},\"invisible\":{invisible}}}"))
}

#[test]
fn a_status_is_told_as_a_transition_and_kept() {
    for shards in SHARDS {
        let (mut world, watchers) = world(shards);
        let answer = say(
            &mut world,
            0,
            "/v1/status",
            r#"{"user":"bob","status":"busy"}"#,
        );
        let mut nobody = record("bob", "offline", None, None);
        nobody.pop();
        assert_eq!(answer, json(&format!("{nobody},\"invisible\":false}}")));
        quiet(&mut world, &watchers);
        world.at(1_000).beat(0, &["bob"]);
        all_told(
            &mut world,
            &watchers,
            &told(1_000, &record("bob", "busy", 1_000, 1_000)),
        );
        world.at(2_000);
        let away = r#"{"user":"bob","status":"away"}"#;
        let answer = say(&mut world, 0, "/v1/status", away);
        assert_eq!(answer, own("away", 2_000, 1_000, false));
        all_told(
            &mut world,
            &watchers,
            &told(2_000, &record("bob", "away", 2_000, 1_000)),
        );
        assert_eq!(say(&mut world, 0, "/v1/status", away), answer, "no news");
        quiet(&mut world, &watchers);
        assert_eq!(world.ask(0, "bob"), record("bob", "away", 2_000, 1_000));
        // With a beat, and with a stream; the last who says it wins.
        world.at(3_000);
        say(
            &mut world,
            0,
            "/v1/beat",
            r#"{"users":["bob"],"status":"online"}"#,
        );
        all_told(
            &mut world,
            &watchers,
            &told(3_000, &record("bob", "online", 3_000, 3_000)),
        );
        world.at(4_000);
        let (_, _) = world.stream(0, "user=bob&status=busy", 0);
        all_told(
            &mut world,
            &watchers,
            &told(4_000, &record("bob", "busy", 4_000, 4_000)),
        );
        world.at(5_000).restart(1_000);
        let state = world.ask(0, "bob");
        assert_eq!(state, record("bob", "busy", 4_000, 4_000));
        world.beat(0, &["bob"]).turn();
        let (late, _) = world.stream(0, "watch=bob", 1);
        let ms = world.ms();
        world.expect(late, snapshot(ms, &[record("bob", "busy", 4_000, ms)]));
    }
}

/// Lost mail is made good by the sweep.
#[test]
fn a_status_that_nobody_was_told_to_look_at_is_found_by_the_sweep() {
    let (mut world, watchers) = world(1);
    world.at(1_000).beat(0, &["bob"]).turn();
    let slot = world
        .presence()
        .lookup(greendot::wire::User::parse(b"bob").unwrap());
    all_told(
        &mut world,
        &watchers,
        &told(1_000, &record("bob", "online", 1_000, 1_000)),
    );
    let said = greendot::wire::record::Said {
        status: Some(greendot::status::Status::Away),
        invisible: None,
    };
    assert!(world.presence().say(slot.unwrap(), said));
    quiet(&mut world, &watchers);
    world.pass(1_000);
    let received = world.received(watchers[0]);
    assert!(
        received.contains("\"status\":\"away\",\"online\":true"),
        "{received}"
    );
}

#[test]
fn who_is_invisible_looks_like_whoever_said_goodbye_to_everybody_but_themselves() {
    for shards in SHARDS {
        let (mut world, watchers) = world(shards);
        world.at(1_000);
        let (bob, id) = world.stream(0, "user=bob&status=busy", 0);
        all_told(
            &mut world,
            &watchers,
            &told(1_000, &record("bob", "busy", 1_000, 1_000)),
        );
        world.at(2_000);
        let hide = r#"{"user":"bob","invisible":true}"#;
        let answer = say(&mut world, 0, "/v1/status", hide);
        assert_eq!(answer, own("busy", 2_000, 1_000, true));
        let gone = record("bob", "offline", 2_000, 2_000);
        all_told(&mut world, &watchers, &told(2_000, &gone));
        world.expect_open(bob);
        // His stream vouches for him, and he beats.
        for ms in [3_000, 12_000, 40_000] {
            world.at(ms);
            let beat = say(&mut world, 0, "/v1/beat", r#"{"users":["bob","ann"]}"#);
            assert_eq!(beat, json(r#"{"invisible":["bob"]}"#));
            let beat = say(&mut world, 0, &format!("/v1/stream/{id}/beat"), "{}");
            assert!(beat.starts_with("HTTP/1.1 2"), "{beat}");
            quiet(&mut world, &watchers);
            assert_eq!(world.ask(0, "bob"), gone);
            let query = say(&mut world, 0, "/v1/presence/query", r#"{"users":["bob"]}"#);
            assert_eq!(query, json(&format!("{{\"presence\":[{gone}]}}")));
            let (late, _) = world.stream(0, "watch=bob", 1);
            world.expect(late, snapshot(ms, std::slice::from_ref(&gone)));
            world.reset(late);
            assert_eq!(world.presence().online(), 1, "ann");
        }
        world.at(41_000);
        let show = r#"{"user":"bob","invisible":false}"#;
        let answer = say(&mut world, 0, "/v1/status", show);
        assert_eq!(answer, own("busy", 41_000, 40_000, false));
        all_told(
            &mut world,
            &watchers,
            &told(41_000, &record("bob", "busy", 41_000, 40_000)),
        );
    }
}

#[test]
fn who_is_invisible_from_the_first_never_flashes_online() {
    for open in [
        "user=bob&invisible=true",
        "user=bob&invisible=true&status=away",
    ] {
        let (mut world, watchers) = world(2);
        world.at(1_000);
        let (bob, _) = world.stream(0, open, 0);
        world.pass(60_000);
        quiet(&mut world, &watchers);
        assert_eq!(world.ask(1, "bob"), unseen("bob"));
        world.expect_open(bob);
    }
    let (mut world, watchers) = world(1);
    let beat = r#"{"users":["bob"],"invisible":true}"#;
    assert_eq!(
        say(&mut world, 0, "/v1/beat", beat),
        json(r#"{"invisible":["bob"]}"#)
    );
    world.pass(60_000);
    quiet(&mut world, &watchers);
    assert_eq!(
        (world.presence().users(), world.presence().online()),
        (1, 0)
    );
}

#[test]
fn what_says_nothing_is_refused() {
    let mut world = World::new(1);
    for (target, body) in [
        ("/v1/status", "{}"),
        ("/v1/status", r#"{"user":"bob"}"#),
        ("/v1/status", r#"{"status":"busy"}"#),
        ("/v1/status", r#"{"user":"bob","status":"offline"}"#),
        ("/v1/status", r#"{"user":"bob","status":"asleep"}"#),
        ("/v1/status", r#"{"user":"bob","invisible":"yes"}"#),
        ("/v1/status", r#"{"user":"bob","status":"busy","mood":1}"#),
        ("/v1/beat", r#"{"users":["bob"],"status":"unknown"}"#),
        ("/v1/stream", r#"{"user":"bob","status":"unknown"}"#),
    ] {
        let answer = say(&mut world, 0, target, body);
        assert_eq!(
            status_and_slug(&answer),
            ("HTTP/1.1 400 Bad Request", "bad-json"),
            "{body}"
        );
    }
    for query in [
        "user=bob&status=unknown",
        "user=bob&invisible=1",
        "user=bob&status=busy&status=away",
        "status=busy",
    ] {
        let asker = world.connect(0);
        world.get(asker, &format!("/v1/stream?{query}")).turn();
        let answer = world.received(asker);
        assert_eq!(
            status_and_slug(&answer),
            ("HTTP/1.1 400 Bad Request", "bad-query"),
            "{query}"
        );
    }
    assert_eq!(world.presence().users(), 0);
}

/// A presence node takes statuses of users, and of nodes many at once.
#[test]
fn a_presence_node_takes_statuses() {
    let mut world = World::of_role(1, Role::Presence, 100);
    let busy = r#"{"user":"bob","status":"busy"}"#;
    let answer = say(&mut world, 0, "/v1/status", busy);
    assert_eq!(answer, own("offline", None, None, false));
    let many = r#"{"users":["bob","ann"],"invisible":true}"#;
    let answer = say(&mut world, 0, "/v1/status", many);
    assert_eq!(
        status_and_slug(&answer),
        ("HTTP/1.1 400 Bad Request", "bad-json")
    );
    let token = world.key().service_token();
    let asked = posted("/v1/status", many);
    let asked = asked.replace(
        "Host: a",
        &format!("Host: a\r\nAuthorization: Bearer {token}"),
    );
    let node = world.connect(0);
    world.send(node, asked);
    let hidden = |user| unseen(user).replace('}', ",\"invisible\":true}");
    let body = format!("{{\"presence\":[{},{}]}}", hidden("bob"), hidden("ann"));
    world.expect(node, json(&body));
}

/// A presence node and a real-time node of two shards, and a watcher of bob on each of them.
fn split() -> (Platform, Vec<Peer>) {
    let mut platform = Platform::split(2);
    let realtime = platform.at(Half::Streams);
    let watchers = (0..2).map(|shard| realtime.stream(shard, "watch=bob", 1).0);
    let watchers: Vec<Peer> = watchers.collect();
    platform.turn();
    for watcher in &watchers {
        platform.at(Half::Streams).received(*watcher);
    }
    (platform, watchers)
}

impl Platform {
    /// What a request comes to, behind all that the nodes tell each other of it.
    fn say(&mut self, half: Half, target: &str, body: &str) -> String {
        let asker = self.at(half).connect(0);
        self.at(half).send(asker, posted(target, body));
        self.turn();
        let answer = self.at(half).received(asker);
        self.at(half).reset(asker);
        answer
    }

    /// All were told this of bob, and nothing else but pings.
    #[track_caller]
    fn all_told(&mut self, watchers: &[Peer], record: Option<&str>) {
        for watcher in watchers {
            let received =
                super::harness::without_pings(&self.at(Half::Streams).received(*watcher));
            let data = received.lines().filter(|line| line.starts_with("data: "));
            let expected = record.map(|record| format!("data: {record}"));
            assert_eq!(
                data.collect::<Vec<_>>(),
                Vec::from_iter(expected.as_deref())
            );
        }
    }

    fn opens(&mut self, query: &str) -> Peer {
        let realtime = self.at(Half::Streams);
        let peer = realtime.connect(1);
        realtime.send(peer, request("GET", &format!("/v1/stream?{query}")));
        self.turn();
        peer
    }
}

#[test]
fn a_real_time_node_passes_statuses_on_and_answers_as_any_other() {
    let (mut platform, watchers) = split();
    let busy = r#"{"user":"bob","status":"busy"}"#;
    let answer = platform.say(Half::Streams, "/v1/status", busy);
    assert_eq!(answer, own("offline", None, None, false));
    platform.all_told(&watchers, None);
    let opened = platform.at(Half::Streams).ms();
    platform.opens("user=bob");
    let here = record("bob", "busy", opened, opened);
    platform.all_told(&watchers, Some(&here));
    platform.pass(4_000);
    platform.all_told(&watchers, None);
    let said = platform.at(Half::Streams).ms();
    let away = r#"{"user":"bob","status":"away"}"#;
    let answer = platform.say(Half::Streams, "/v1/status", away);
    assert_eq!(answer, own("away", said, opened, false));
    platform.all_told(&watchers, Some(&record("bob", "away", said, opened)));
    // What is no status is refused here.
    let answer = platform.say(Half::Streams, "/v1/status", r#"{"user":"bob"}"#);
    assert_eq!(
        status_and_slug(&answer),
        ("HTTP/1.1 400 Bad Request", "bad-json")
    );
}

#[test]
fn who_is_invisible_at_a_real_time_node_has_gone_at_once_and_for_all() {
    let (mut platform, watchers) = split();
    let opened = platform.at(Half::Streams).ms();
    let bob = platform.opens("user=bob");
    platform.all_told(&watchers, Some(&record("bob", "online", opened, opened)));
    platform.pass(3_000);
    platform.all_told(&watchers, None);
    let said = platform.at(Half::Streams).ms();
    let hide = r#"{"user":"bob","invisible":true}"#;
    let answer = platform.say(Half::Streams, "/v1/status", hide);
    assert_eq!(answer, own("online", said, opened, true));
    let gone = record("bob", "offline", said, said);
    platform.all_told(&watchers, Some(&gone));
    // His beats go on, and nobody takes them for lost.
    platform.pass(90_000);
    platform.all_told(&watchers, None);
    assert_eq!(platform.at(Half::Presence).ask(0, "bob"), gone);
    platform.at(Half::Streams).expect_open(bob);
    let late = platform.opens("watch=bob");
    let late = platform.at(Half::Streams).received(late);
    assert!(late.contains(&gone) && late.contains("\nid: "), "{late}");
    assert!(platform.is_well() && !platform.beats_are_gone());
    platform.pass(1_000);
    let shown = platform.at(Half::Streams).ms();
    let show = r#"{"user":"bob","invisible":false}"#;
    let answer = platform.say(Half::Streams, "/v1/status", show);
    assert!(answer.contains("\"status\":\"online\""), "{answer}");
    for watcher in &watchers {
        let told = platform.at(Half::Streams).received(*watcher);
        let since = format!("\"since\":{}", super::harness::START + shown);
        assert!(told.contains(&since), "{told}");
    }
}

/// Also where a presence node has just started and knows nobody: beats say it too.
#[test]
fn who_opens_a_stream_invisibly_at_a_real_time_node_never_flashes_online() {
    let (mut platform, watchers) = split();
    let bob = platform.opens("user=bob&invisible=true&status=busy");
    platform.pass(60_000);
    platform.all_told(&watchers, None);
    assert_eq!(platform.at(Half::Presence).ask(0, "bob"), unseen("bob"));
    platform.at(Half::Streams).expect_open(bob);
    platform.lose_files();
    platform.pass(60_000);
    // Asked for anew, and the same.
    platform.all_told(&watchers, Some(&unseen("bob")));
    assert_eq!(platform.at(Half::Presence).ask(0, "bob"), unseen("bob"));
    let show = r#"{"user":"bob","invisible":false}"#;
    let answer = platform.say(Half::Streams, "/v1/status", show);
    assert!(answer.contains("\"status\":\"busy\""), "{answer}");
    // A beat that says it says nothing of whoever is known.
    platform.pass(1_000);
    platform.say(
        Half::Presence,
        "/v1/status",
        r#"{"user":"bob","status":"away"}"#,
    );
    platform.pass(30_000);
    let state = platform.at(Half::Presence).ask(0, "bob");
    assert!(state.contains("\"status\":\"away\""), "{state}");
}

#[test]
fn what_no_presence_node_takes_is_refused_and_nobody_flashes_online() {
    let (mut platform, watchers) = split();
    platform.cut(true);
    platform.pass(4_000);
    let hide = r#"{"user":"bob","invisible":true}"#;
    let answer = platform.say(Half::Streams, "/v1/status", hide);
    assert_eq!(
        status_and_slug(&answer),
        ("HTTP/1.1 503 Service Unavailable", "overloaded")
    );
    let bob = platform.opens("user=bob&invisible=true");
    let told = platform.at(Half::Streams).received(bob);
    assert!(told.contains("event: overloaded\n"), "{told}");
    assert!(told.ends_with("data: {\"reason\":\"busy\"}\n\n"), "{told}");
    platform.at(Half::Streams).expect_closed(bob);
    platform.cut(false);
    platform.pass(20_000);
    platform.all_told(&watchers, None);
    assert_eq!(platform.at(Half::Presence).ask(0, "bob"), unseen("bob"));
}
