//! What nothing but its message says.

use super::*;

fn erased_at(told: &[(String, Status, u64)], since: u64) -> bool {
    told.last() == Some(&offline("a", since))
}

#[test]
fn an_erasure_wakes_a_partition_and_is_told() {
    for quiet_ms in [0, 5_000, 13_000, 60_000] {
        let mut world = World::new(1);
        world.choose(&[0]);
        world.come("a");
        world.run(quiet_ms);
        world.told(0);
        world.publish("a", What::Erased);
        let erased = world.ms;
        world.run(2_000);
        assert_eq!(world.told(0), [offline("a", erased)], "{quiet_ms}");
        assert_eq!(world.position().map(|mark| mark.number), Some(2));
        assert_eq!(world.nodes[0].follow.untold, 0);
    }
}

#[test]
fn an_erasure_that_comes_while_something_is_read_is_told_behind_it() {
    // Taking, reading the ring, walking: whatever is under way when it comes.
    for steps in 0..6 {
        let mut world = World::new(1);
        world.choose(&[0]);
        world.come("a");
        world.come("b");
        world.run(60_000);
        world.told(0);
        world.steps = Some(steps);
        world.go("b");
        world.publish("a", What::Erased);
        let erased = world.ms;
        world.steps = None;
        world.run(2_000);
        let told = world.told(0);
        assert!(erased_at(&told, erased), "{steps}: {told:?}");
        world.run(60_000);
        assert_eq!(world.told(0), [], "{steps}");
    }
}

#[test]
fn who_has_come_back_since_its_erasure_is_told_as_here() {
    for goes in [false, true] {
        let mut world = World::new(1);
        world.choose(&[0]);
        world.come("a");
        world.run(60_000);
        world.told(0);
        world.is_away = true;
        world.publish("a", What::Erased);
        world.come("a");
        if goes {
            world.go("a");
        }
        let last = world.ms;
        world.is_away = false;
        world.run(2_000);
        let expected = match goes {
            true => offline("a", last),
            false => online("a", last),
        };
        assert_eq!(world.told(0).last(), Some(&expected), "{goes}");
    }
}

/// What it was told of is known by nobody once its sender is dead. What was not is told.
#[test]
fn an_erasure_while_a_claim_of_the_dead_lasts_is_told_when_it_is_over() {
    let mut world = World::new(2);
    world.choose(&[0]);
    world.come("a");
    world.come("b");
    world.run(3_000);
    world.told(0);
    world.nodes[0].takes = false;
    world.come("b");
    world.nodes.remove(0);
    world.choose(&[0]);
    world.publish("a", What::Erased);
    let erased = world.ms;
    world.run(60_000);
    assert!(erased_at(&world.told(0), erased));
}

#[test]
fn an_erasure_that_finds_no_room_waits_for_it_and_beyond_the_queue_counts_as_untold() {
    let mut world = World::new(1);
    world.choose(&[0]);
    world.come("a");
    world.run(1_100);
    world.told(0);
    *world.nodes[0].room.lock() = 0;
    world.publish("a", What::Erased);
    let erased = world.ms;
    world.run(2_000);
    assert_eq!(world.told(0), []);
    *world.nodes[0].room.lock() = QUEUE_MAX;
    world.run(2_000);
    assert_eq!(world.told(0), [offline("a", erased)]);
    world.is_away = true;
    world.run(60_000);
    for user in 0..=QUEUE_MAX {
        world.publish(&format!("u{user}"), What::Erased);
    }
    assert_eq!(world.nodes[0].follow.untold, 1);
    world.is_away = false;
    world.run(10_000);
    let told = world.told(0);
    let users: std::collections::BTreeSet<_> = told.iter().map(|(user, ..)| user).collect();
    assert_eq!(users.len(), QUEUE_MAX);
    world.run(60_000);
    world.is_away = true;
    world.publish("a", What::Erased);
    world.choose(&[]);
    assert_eq!(
        world.nodes[0].follow.untold, 2,
        "given up with its partition"
    );
}

#[test]
fn who_hides_before_an_erasure_empties_the_ring_has_gone() {
    let mut world = World::new(1);
    world.choose(&[0]);
    world.come("a");
    world.come("b");
    world.run(60_000);
    world.told(0);
    world.is_away = true;
    let since = at(world.ms + 1);
    world.publish(
        "b",
        What::Is {
            flags: HIDDEN,
            since,
        },
    );
    let hid = world.ms;
    world.publish("a", What::Erased);
    let erased = world.ms;
    world.is_away = false;
    world.run(600);
    world.keep_gone("b", hid);
    world.run(2_000);
    assert_eq!(world.told(0), [offline("b", hid), offline("a", erased)]);
}
