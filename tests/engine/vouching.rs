//! A stream vouches for its holder, again and again, as long as it is open.

use greendot::metrics::Counter;

use super::harness::{START, World};

/// When `user` was last vouched for.
fn last_active(world: &World, user: &str) -> u64 {
    let presence = world.presence();
    let user = greendot::wire::User::parse(user.as_bytes()).expect("a legal user");
    let slot = presence.lookup(user).expect("a slot");
    presence
        .state(slot, world.now())
        .last_active
        .expect("a beat")
        .ms()
        - START
}

#[test]
fn every_holder_is_vouched_for_while_the_table_grows() {
    let mut world = World::new(1);
    world.checks = false;
    let mut users: Vec<String> = Vec::new();
    for step in 0..400_u64 {
        world.at(step * 250);
        if step < 200 {
            for n in 0..5 {
                let user = format!("u{step}-{n}");
                world.stream(0, &format!("user={user}"), 0);
                users.push(user);
            }
        }
        for user in users.iter().step_by(7) {
            let age = world.ms() - last_active(&world, user);
            assert!(age <= 10_000 + 250, "{user} at {} ms: {age}", world.ms());
        }
    }
    assert_eq!(users.len(), 1_000);
    let beats = world.count(0, Counter::BeatsStream);
    world.at(200_000);
    let in_ten = (world.count(0, Counter::BeatsStream) - beats) as f64 / 10.025;
    assert!(
        (999.0..1_101.0).contains(&in_ten),
        "once an interval each: {in_ten}"
    );
    assert_eq!(world.count(0, Counter::TransitionsOffline), 0);
}

#[test]
fn nobody_is_vouched_for_after_the_close() {
    let mut world = World::new(2);
    let (reset, _) = world.stream(0, "user=a", 0);
    let (shut, _) = world.stream(1, "user=b", 0);
    let (stays, _) = world.stream(1, "user=c", 0);
    world.at(30_000).reset(reset).shut(shut).expect_closed(shut);
    let closed_at = ["a", "b"].map(|user| last_active(&world, user));
    world.at(54_000);
    assert_eq!(["a", "b"].map(|user| last_active(&world, user)), closed_at);
    assert!(closed_at.iter().all(|ms| (20_000..=30_000).contains(ms)));
    world.at(55_251);
    for user in ["a", "b"] {
        assert!(world.ask(0, user).contains("\"offline\""));
    }
    assert!(world.ask(0, "c").contains("\"online\""));
    // Another stream in the same place vouches for its own holder only.
    let (again, _) = world.stream(0, "", 0);
    world.at(80_000).expect_open(again).expect_open(stays);
    assert!(world.ask(1, "a").contains("\"offline\""));
}

#[test]
fn whoever_stays_when_a_crowd_goes_is_vouched_for_in_time() {
    let mut world = World::new(1);
    world.checks = false;
    let peers: Vec<_> = (0..2_000)
        .map(|n| world.stream(0, &format!("user=u{n}"), 0).0)
        .collect();
    world.at(15_000);
    for peer in &peers[100..] {
        world.reset(*peer);
    }
    for ms in (15_100..80_000).step_by(100) {
        world.at(ms);
        for n in (0..100).step_by(9) {
            let age = ms - last_active(&world, &format!("u{n}"));
            assert!(age <= 11_300, "u{n} at {ms} ms: {age}");
        }
    }
}
