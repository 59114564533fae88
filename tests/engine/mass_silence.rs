//! Many who fall silent at once are held, or only counted; and who comes and goes too often is told
//! of seldom.

use greendot::metrics::{Counter, Gauge};

use super::harness::{START, World, record, snapshot, told, without_pings};

fn names(prefix: &str, users: usize) -> Vec<String> {
    (0..users).map(|n| format!("{prefix}-{n}")).collect()
}

fn beat(world: &mut World, names: &[String]) {
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    for some in names.chunks(100) {
        world.beat(0, some);
    }
}

/// Two shards that have so many users of whom no more is heard after 30 s, and five hundred others.
fn fallen_silent(silent: usize, hold_ms: u64) -> (World, Vec<String>, Vec<String>) {
    let mut world = World::with(2, |settings| settings.mass_offline_hold_ms = hold_ms);
    world.make_slots(4_096 - silent as u32 / 2);
    let (silent, others) = (names("silent", silent), names("other", 500));
    for ms in (0..=30_000).step_by(10_000) {
        world.at(ms);
        beat(&mut world, &silent);
        beat(&mut world, &others);
    }
    for ms in (40_000..=50_000).step_by(10_000) {
        world.at(ms);
        beat(&mut world, &others);
    }
    (world, silent, others)
}

/// Lets so much time pass in which the others beat, and gives how many are online, which is asked
/// once a second.
fn online(world: &mut World, until_ms: u64, others: &[String]) -> Vec<u64> {
    let mut online = Vec::new();
    while world.ms() < until_ms {
        let ms = world.ms() + 1_000;
        world.at(ms);
        if ms.is_multiple_of(10_000) {
            beat(world, others);
        }
        online.push(world.presence().online());
    }
    online
}

#[test]
fn a_mass_that_falls_silent_is_held_and_then_told() {
    let (mut world, _, others) = fallen_silent(1_000, 20_000);
    let mut expected = vec![1_500; 25];
    expected.resize(30, 500);
    // 25 s after their last beat, and 20 s more.
    assert_eq!(online(&mut world, 80_000, &others), expected);
    assert_eq!(world.count(0, Counter::TransitionsOffline), 500);
    assert_eq!(world.count(1, Counter::TransitionsOffline), 500);
}

#[test]
fn fewer_are_told_in_time_and_so_is_a_mass_where_none_is_held() {
    for (silent, hold_ms) in [(999, 20_000), (1_000, 0)] {
        let (mut world, _, others) = fallen_silent(silent, hold_ms);
        let mut expected = vec![silent as u64 + 500; 5];
        expected.resize(10, 500);
        assert_eq!(online(&mut world, 60_000, &others), expected, "{silent}");
    }
}

#[test]
fn who_is_heard_in_time_was_never_away_and_a_goodbye_is_told_at_once() {
    let (mut world, silent, others) = fallen_silent(1_100, 60_000);
    let (watcher, _) = world.stream(1, "watch=silent-0&watch=silent-1", 2);
    world.received(watcher);
    world.at(56_000).leave(0, &["silent-0"]).turn();
    let gone = record("silent-0", "offline", 56_000, 56_000);
    world.expect(watcher, told(56_000, &gone));
    world.at(58_000);
    assert_eq!(world.presence().mass_silence(), 1_099);
    world.at(60_000);
    beat(&mut world, &silent[1..]);
    beat(&mut world, &others);
    world.at(62_000);
    assert_eq!(world.presence().mass_silence(), 0);
    assert_eq!(online(&mut world, 70_000, &others), [1_599; 8]);
    let received = world.received(watcher);
    assert_eq!(without_pings(&received), "");
}

#[test]
fn a_stall_of_our_own_is_no_silence_of_theirs() {
    let (mut world, silent, others) = fallen_silent(1_000, 0);
    beat(&mut world, &silent);
    world.at(52_000);
    assert_eq!(world.presence().mass_silence(), 0);
    // The beats of these sixteen seconds may wait in a socket.
    world.jump(16_000).turn();
    world.at(70_000);
    assert_eq!(world.presence().mass_silence(), 0);
    beat(&mut world, &silent);
    assert_eq!(online(&mut world, 85_000, &others), [1_500; 15]);
}

/// What its socket holds are beats of all shards' users.
#[test]
fn another_shards_stall_is_no_silence_of_theirs() {
    let (mut world, silent, others) = fallen_silent(2_400, 0);
    beat(&mut world, &silent);
    world.at(52_000);
    assert_eq!(world.presence().mass_silence(), 0);
    world.pass_without(1, 18_000);
    assert_eq!(world.presence().mass_silence(), 0);
    beat(&mut world, &silent);
    beat(&mut world, &others);
    world.at(72_000);
    assert_eq!(world.presence().mass_silence(), 0);
    assert_eq!(online(&mut world, 85_000, &others), [2_900; 13]);
}

#[test]
fn a_metric_says_how_many_are_overdue() {
    let (mut world, ..) = fallen_silent(1_000, 60_000);
    let metrics = |world: &mut World| {
        let peer = world.connect(0);
        world.get(peer, "/metrics").received(peer)
    };
    assert!(metrics(&mut world).contains("greendot_users_overdue 1000\n"));
    assert_eq!(world.gauge(0, Gauge::ExpiriesHeld), 0);
}

#[test]
fn of_too_many_transitions_the_last_is_told_when_they_are_over() {
    let mut world = World::with(1, |settings| settings.flap_transitions_max = 4);
    world.at(40_000).beat(0, &["bob"]).turn();
    let (watcher, _) = world.stream(0, "watch=bob", 1);
    let bob = record("bob", "online", 40_000, 40_000);
    world.expect(watcher, snapshot(40_000, &[bob]));
    world.at(41_000).leave(0, &["bob"]);
    world.at(42_000).beat(0, &["bob"]);
    world.at(43_000).leave(0, &["bob"]).turn();
    let events = [
        ("offline", 41_000, 41_000),
        ("online", 42_000, 42_000),
        ("offline", 43_000, 43_000),
    ]
    .map(|(status, since, active)| told(since, &record("bob", status, since, active)));
    let received = world.received(watcher);
    assert_eq!(without_pings(&received), events.concat());
    // Held, all of them: the first of the four is not ten seconds ago.
    world.at(44_000).beat(0, &["bob"]);
    world.at(45_000).leave(0, &["bob"]);
    world.at(46_000).beat(0, &["bob"]);
    world.at(49_999);
    let received = world.received(watcher);
    assert_eq!(without_pings(&received), "");
    assert!(world.ask(0, "bob").contains("offline"));
    // The last is told, as soon as a sweep comes by.
    world.at(50_250);
    let received = without_pings(&world.received(watcher));
    let (_, since) = received.split_once("\"since\":").expect("an event");
    let since = since[..13].parse::<u64>().expect("a time") - START;
    assert!((50_000..=50_250).contains(&since), "{received}");
    let online = record("bob", "online", since, 46_000);
    assert_eq!(received, told(since, &online));
    // The next one may be told when the second of the four is ten seconds ago.
    world.at(50_500).leave(0, &["bob"]);
    world.at(50_999);
    assert!(world.ask(0, "bob").contains("online"));
    world.at(51_250);
    assert!(world.ask(0, "bob").contains("offline"));
    assert_eq!(world.count(0, Counter::UsersFlapping), 2);
}
