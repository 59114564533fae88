//! Users at none of whose devices anybody is, as these say: away, and back at once.

use greendot::wire::User;
use greendot::wire::beat::{Flags, Outset, Writer};

use super::harness::{
    NO_CONTENT, Peer, World, json, posted, record, request, snapshot, told, unseen, without_pings,
};
use super::platform::{Half, Platform};

const IDLE: &str = r#"{"users":["bob"],"idle_ms":300000}"#;
const BUSIED: &str = r#"{"users":["bob"],"idle_ms":299999}"#;
const SILENT: &str = r#"{"users":["bob"]}"#;

/// A watcher of bob, whom another shard decides about.
fn world() -> (World, Peer) {
    let mut world = World::new(2);
    world.make_slots(4_096);
    let watcher = world.stream(0, "watch=bob", 1).0;
    world.expect(watcher, snapshot(0, &[unseen("bob")]));
    (world, watcher)
}

fn say(world: &mut World, target: &str, body: &str) -> String {
    let asker = world.connect(0);
    world.send(asker, posted(target, body)).turn();
    let answer = world.received(asker);
    world.reset(asker);
    answer
}

/// A device beats with this at each of these moments.
fn beats(world: &mut World, body: &str, moments: &[u64]) {
    for ms in moments {
        world.at(*ms);
        assert_eq!(say(world, "/v1/beat", body), NO_CONTENT);
    }
}

/// The watcher was told this of bob since the last look, and nothing else but pings: status, since,
/// and when he was last active.
#[track_caller]
fn heard(world: &mut World, watcher: Peer, news: &[(&str, u64, u64)]) {
    let expected = news.iter().map(|(status, since, last_active)| {
        told(*since, &record("bob", status, *since, *last_active))
    });
    let received = without_pings(&world.received(watcher));
    assert_eq!(received, expected.collect::<String>());
}

#[test]
fn who_is_idle_for_as_long_as_a_silence_takes_is_away_and_back_with_a_beat() {
    let (mut world, watcher) = world();
    beats(&mut world, SILENT, &[1_000]);
    heard(&mut world, watcher, &[("online", 1_000, 1_000)]);
    beats(&mut world, IDLE, &[10_000, 20_000, 30_000, 34_999]);
    heard(&mut world, watcher, &[]);
    beats(&mut world, IDLE, &[35_000]);
    heard(&mut world, watcher, &[("away", 35_000, 35_000)]);
    beats(&mut world, IDLE, &[40_000, 50_000]);
    heard(&mut world, watcher, &[]);
    // Over a restart too.
    world.restart(1_000);
    assert_eq!(world.ask(0, "bob"), record("bob", "away", 35_000, 50_000));
    let watcher = world.stream(0, "watch=bob", 1).0;
    world.received(watcher);
    beats(&mut world, BUSIED, &[52_000]);
    heard(&mut world, watcher, &[("online", 52_000, 52_000)]);
    // Silence says nothing of it: he is offline, and back.
    beats(&mut world, IDLE, &[60_000, 70_000]);
    world.at(110_000);
    let received = world.received(watcher);
    assert!(received.contains("\"status\":\"offline\"") && !received.contains("away"));
    beats(&mut world, SILENT, &[111_000]);
    heard(&mut world, watcher, &[("online", 111_000, 111_000)]);
}

#[test]
fn one_device_at_which_somebody_is_is_enough() {
    let (mut world, watcher) = world();
    beats(&mut world, SILENT, &[1_000]);
    heard(&mut world, watcher, &[("online", 1_000, 1_000)]);
    for ms in (10_000..100_000).step_by(10_000) {
        beats(&mut world, IDLE, &[ms]);
        // It says nothing of that.
        world.at(ms + 5_000).beat(1, &["bob"]).turn();
    }
    heard(&mut world, watcher, &[]);
    beats(&mut world, IDLE, &[100_000, 110_000, 120_000]);
    heard(&mut world, watcher, &[]);
    beats(&mut world, IDLE, &[125_000]);
    heard(&mut world, watcher, &[("away", 125_000, 125_000)]);
    world.at(126_000).beat(1, &["bob"]);
    heard(&mut world, watcher, &[("online", 126_000, 126_000)]);
}

#[test]
fn what_a_user_says_counts_before_what_devices_say() {
    let (mut world, watcher) = world();
    beats(&mut world, SILENT, &[1_000]);
    say(
        &mut world,
        "/v1/status",
        r#"{"user":"bob","status":"busy"}"#,
    );
    world.received(watcher);
    beats(&mut world, IDLE, &[10_000, 20_000, 30_000, 40_000]);
    heard(&mut world, watcher, &[]);
    world.at(41_000);
    say(
        &mut world,
        "/v1/status",
        r#"{"user":"bob","status":"online"}"#,
    );
    heard(&mut world, watcher, &[("away", 41_000, 40_000)]);
    world.at(42_000);
    say(
        &mut world,
        "/v1/status",
        r#"{"user":"bob","status":"away"}"#,
    );
    beats(&mut world, SILENT, &[43_000]);
    // He says so himself.
    heard(&mut world, watcher, &[]);
    world.at(44_000);
    say(
        &mut world,
        "/v1/status",
        r#"{"user":"bob","invisible":true}"#,
    );
    heard(&mut world, watcher, &[("offline", 44_000, 44_000)]);
    for ms in [50_000, 60_000, 70_000, 80_000] {
        world.at(ms);
        say(&mut world, "/v1/beat", IDLE);
    }
    say(&mut world, "/v1/beat", SILENT);
    heard(&mut world, watcher, &[]);
}

#[test]
fn a_stream_says_it_once_and_until_it_says_something_else() {
    let (mut world, watcher) = world();
    let (_, id) = world.at(1_000).stream(0, "user=bob", 0);
    heard(&mut world, watcher, &[("online", 1_000, 1_000)]);
    let beat = format!("/v1/stream/{id}/beat");
    world.at(2_000);
    assert_eq!(say(&mut world, &beat, r#"{"idle_ms":400000}"#), NO_CONTENT);
    // The server beats for it.
    world.at(60_000);
    let received = without_pings(&world.received(watcher));
    let away = "\"status\":\"away\",\"online\":true";
    assert_eq!(received.matches("event: ").count(), 1, "{received}");
    assert!(received.contains(away), "{received}");
    world.at(61_000);
    assert_eq!(say(&mut world, &beat, r#"{"idle_ms":10}"#), NO_CONTENT);
    heard(&mut world, watcher, &[("online", 61_000, 61_000)]);
    world.at(150_000);
    heard(&mut world, watcher, &[]);
    // Of his only stream it may be said without its id.
    let idle = r#"{"user":"bob","idle_ms":300000}"#;
    say(&mut world, "/v1/status", idle);
    world.at(200_000);
    let received = without_pings(&world.received(watcher));
    assert!(received.contains(away), "{received}");
    world.at(201_000);
    let answer = say(&mut world, "/v1/status", r#"{"user":"bob","idle_ms":0}"#);
    assert!(answer.contains("\"status\":\"online\""), "{answer}");
    let received = without_pings(&world.received(watcher));
    assert!(received.contains("\"status\":\"online\""), "{received}");
    // Of two nobody knows which is meant.
    world.at(202_000).stream(1, "user=bob", 0);
    say(&mut world, "/v1/status", idle);
    world.at(300_000);
    heard(&mut world, watcher, &[]);
}

#[test]
fn a_datagram_says_it_and_a_node_may_be_told_to_pass_it_over() {
    for (away_after, expected) in [(300_000, "away"), (0, "online")] {
        let mut world = World::with(1, |settings| settings.away_after = away_after);
        for ms in [0, 10_000, 20_000, 30_000] {
            world.at(ms);
            let flags = Flags::of(Outset::PLAIN).with_idle(true);
            let mut writer = Writer::of(flags, world.now().unix, world.key());
            assert!(writer.push(User::parse(b"bob").expect("a user")));
            let datagram = writer.seal(world.key());
            world.datagram(0, &datagram).turn();
        }
        let since = if away_after > 0 { 30_000 } else { 0 };
        assert_eq!(world.ask(0, "bob"), record("bob", expected, since, 30_000));
    }
}

#[test]
fn what_is_no_time_is_refused() {
    let (mut world, _) = world();
    let (_, id) = world.stream(0, "user=bob", 0);
    for (target, body) in [
        ("/v1/beat", r#"{"users":["bob"],"idle_ms":-1}"#),
        ("/v1/status", r#"{"user":"bob","idle_ms":"long"}"#),
        (&*format!("/v1/stream/{id}/beat"), r#"{"idle":1}"#),
    ] {
        let answer = say(&mut world, target, body);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{target}: {answer}");
    }
    let answer = say(&mut world, "/v1/status", r#"{"user":"bob","idle_ms":5}"#);
    let own = record("bob", "online", 0, 0).replace('}', ",\"invisible\":false}");
    assert_eq!(answer, json(&own));
}

#[test]
fn it_holds_through_a_real_time_node() {
    let mut platform = Platform::split(2);
    let realtime = platform.at(Half::Streams);
    let bob = realtime.connect(1);
    realtime.send(bob, request("GET", "/v1/stream?user=bob"));
    platform.turn();
    let status = |platform: &mut Platform, body: &str| {
        let realtime = platform.at(Half::Streams);
        let asker = realtime.connect(0);
        realtime.send(asker, posted("/v1/status", body));
        platform.turn();
        platform.at(Half::Streams).received(asker)
    };
    platform.pass(1_000);
    status(&mut platform, r#"{"user":"bob","idle_ms":300000}"#);
    platform.pass(50_000);
    let state = platform.at(Half::Presence).ask(0, "bob");
    assert!(state.contains("\"status\":\"away\""), "{state}");
    let answer = status(&mut platform, r#"{"user":"bob","idle_ms":0}"#);
    assert!(answer.contains("\"status\":\"online\""), "{answer}");
    platform.pass(50_000);
    let state = platform.at(Half::Presence).ask(0, "bob");
    assert!(state.contains("\"status\":\"online\""), "{state}");
}
