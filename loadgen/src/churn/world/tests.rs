use super::*;
use crate::common;
use std::borrow::Cow;

fn one_contact() -> (Common, ChurnArgs) {
    common::parsed("--users 1 --watchers 1 --contacts 1").unwrap()
}

fn world_of(flags: &(Common, ChurnArgs)) -> World<'_> {
    let mut world = World::new(&flags.0, &flags.1, Share { first: 0, count: 1 });
    world.server_clock = ServerClock::known(clock::unix_ms(), clock::now_us());
    world
}

const EVENT_NAMES: [&[u8]; 2] = [b"snapshot", b"presence"];

fn tell(world: &mut World<'_>, snapshot: bool, status: &str, since: Option<u64>) {
    let user = world.population.id(world.first_user);
    let user = String::from_utf8_lossy(&user);
    let time = since.map_or("null".to_owned(), |ms| ms.to_string());
    let online = status == "online";
    let record = format!(
        "{{\"user\":\"{user}\",\"status\":\"{status}\",\"online\":{online},\
         \"since\":{time},\"last_active\":{time}}}"
    );
    let data = if snapshot {
        format!("{{\"presence\":[{record}]}}")
    } else {
        record
    };
    let name = EVENT_NAMES[usize::from(!snapshot)];
    let data = Cow::Owned(data.into_bytes());
    world.event(
        0,
        clock::now_us(),
        &Event { name, data },
        Lasting::default(),
    );
}

/// Contact 0 as it is known, and what was found wrong: unreadable, told twice.
fn view(world: &World<'_>) -> (bool, bool, u64, [u64; 2]) {
    let contact = &world.watchers[0].contacts[0];
    let wrong = [world.found.unreadable, world.found.doubled];
    (contact.unknown, contact.online, contact.since, wrong)
}

#[test]
fn what_is_unknown_is_not_told_yet() {
    let cli = one_contact();
    let mut world = world_of(&cli);
    tell(&mut world, true, "unknown", None);
    assert_eq!(view(&world), (true, false, 0, [0, 0]));
    assert!(world.watchers[0].told);
    // Never seen: there is no time.
    tell(&mut world, false, "offline", None);
    assert_eq!(view(&world), (false, false, 0, [0, 0]));
    tell(&mut world, false, "online", Some(7));
    assert_eq!(view(&world), (false, true, 7, [0, 0]));
    // A node that was restarted tells again what had been told, once.
    tell(&mut world, true, "unknown", None);
    tell(&mut world, false, "online", Some(7));
    assert_eq!(view(&world), (false, true, 7, [0, 0]));
    tell(&mut world, false, "online", Some(7));
    assert_eq!(view(&world), (false, true, 7, [0, 1]));
    tell(&mut world, false, "offline", None);
    assert_eq!(view(&world), (false, true, 7, [1, 1]));
}

#[test]
fn a_state_may_come_again_in_place_of_a_skipped_one_or_behind_its_snapshot() {
    let cli = one_contact();
    let mut world = world_of(&cli);
    let doubled = |world: &World<'_>| world.found.doubled;
    tell(&mut world, true, "offline", Some(5));
    tell(&mut world, false, "offline", Some(5));
    assert_eq!(doubled(&world), 1, "long before the snapshot");
    tell(&mut world, false, "online", Some(6));
    tell(&mut world, false, "online", Some(6));
    assert_eq!(doubled(&world), 2, "nothing was skipped");
    tell(&mut world, false, "online", Some(8));
    tell(&mut world, false, "online", Some(8));
    assert_eq!(doubled(&world), 2, "offline was skipped");
    tell(&mut world, false, "online", Some(8));
    assert_eq!(doubled(&world), 3, "and only once");
    let now_ms = clock::unix_ms();
    tell(&mut world, true, "offline", Some(now_ms));
    tell(&mut world, false, "offline", Some(now_ms));
    assert_eq!(doubled(&world), 3, "came about while the stream was opened");
    tell(&mut world, false, "offline", Some(now_ms));
    assert_eq!(doubled(&world), 4, "and only once");
}

#[test]
fn a_snapshot_must_not_contradict_what_was_told() {
    let cli = one_contact();
    let mut world = world_of(&cli);
    let seen = |world: &World<'_>| {
        (
            world.found.contradictions,
            world.watchers[0].contacts[0].online,
        )
    };
    tell(&mut world, true, "offline", None);
    tell(&mut world, false, "online", Some(7));
    tell(&mut world, true, "online", Some(7));
    assert_eq!(seen(&world), (0, true));
    tell(&mut world, true, "offline", Some(7));
    assert_eq!(seen(&world), (1, false), "another status of the same time");
    tell(&mut world, false, "online", Some(7));
    assert_eq!(seen(&world), (2, true), "in an event as well");
    tell(&mut world, true, "offline", None);
    assert_eq!(
        seen(&world),
        (3, false),
        "a user that was known is said never to have been seen"
    );
}

#[test]
fn a_stall_of_ours_widens_what_is_allowed_for_a_while() {
    let cli = one_contact();
    let mut world = world_of(&cli);
    world.pulse_us = 10_000_000;
    for now_us in [10_050_000, 10_100_000, 10_400_000, 10_410_000] {
        world.pulse(now_us);
    }
    assert_eq!(world.stalls, [(10_400_000, 300_000)]);
    // --settle is 1 s.
    assert_eq!(
        [10_410_000, 11_700_000, 11_700_001].map(|now_us| world.settle_ms(now_us)),
        [1_300, 1_300, 1_000]
    );
    assert_eq!(
        [10_400_000, 10_400_001].map(|from_us| world.stalled_ms(from_us)),
        [300, 0]
    );
}

#[test]
fn a_late_beat_makes_the_next_no_later() {
    let cli = one_contact();
    let mut world = world_of(&cli);
    (world.beat_interval_ms, world.session_end_us[0]) = (1_000, 20_000_000);
    let next_us = world.next_beat_us(0, 10_000_000);
    assert!((10_900_000..11_100_000).contains(&next_us), "{next_us}");
    assert_eq!(world.next_beat_us(0, 19_500_000), 20_000_000);
    assert_eq!(world.next_beat_us(0, 20_000_000), 20_000_001);
}
