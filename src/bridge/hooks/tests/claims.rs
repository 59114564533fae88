//! What stands in Redis otherwise than a node writes it.

use super::*;

/// With two who were told and are forgotten by the next holder, and a partition that sleeps.
fn asleep() -> World {
    let mut world = World::new(1);
    world.choose(&[0]);
    world.come("a");
    world.come("b");
    world.go("b");
    world.run(60_000);
    world.told(0);
    world
}

fn comes_and_is_told(world: &mut World, wait_ms: u64) -> Vec<(String, Status, u64)> {
    world.come("c");
    let came = world.ms;
    world.run(wait_ms);
    let told = world.told(0);
    assert_eq!(told.last(), Some(&online("c", came)));
    world.run(1_100);
    assert_eq!(world.position().map(|mark| mark.number), Some(4));
    assert!(world.nodes[0].follow.refused > 0, "it is counted");
    told
}

#[test]
fn a_damaged_position_is_made_anew_and_everybody_is_told() {
    let ahead = Mark {
        birth: Birth([0; 8]),
        number: 3,
        since: at(1_000_000_000),
    };
    let ahead = ahead.encode();
    for value in [Some(&b"garbage"[..]), Some(b""), Some(&ahead), None] {
        let mut world = asleep();
        let key = world.position_key();
        world.db.strings.remove(&key);
        match value {
            Some(value) => drop(world.db.strings.insert(key, (value.into(), u64::MAX))),
            None => drop(world.db.foreign.insert(key, u64::MAX)),
        }
        let told = comes_and_is_told(&mut world, 1_000);
        let expected = [online("a", 1), offline("b", 3)];
        assert_eq!(told[..2], expected, "{value:?}");
        let refusal = world.nodes[0].follow.refusal.take();
        assert!(refusal.is_some_and(|text| text.contains("the position of a webhook")));
    }
}

#[test]
fn a_damaged_position_of_a_partition_that_is_told_is_written_again() {
    let mut world = World::new(1);
    world.choose(&[0]);
    world.come("a");
    world.run(2_000);
    world.told(0);
    let key = world.position_key();
    world.db.strings.insert(key, (b"garbage".into(), u64::MAX));
    let now = now(world.ms);
    world.nodes[0].follow.subscribed(0, now.mono);
    world.run(2_000);
    assert_eq!(world.told(0), []);
    assert_eq!(world.position().map(|mark| mark.number), Some(1));
}

#[test]
fn a_claim_that_nobody_holds_ends() {
    for value in [Some(&b"garbage"[..]), None] {
        let mut world = asleep();
        let key = format!("{}:by", world.position_key());
        match value {
            Some(value) => drop(world.db.strings.insert(key, (value.into(), u64::MAX))),
            None => drop(world.db.foreign.insert(key, u64::MAX)),
        }
        let told = comes_and_is_told(&mut world, REQUEST_MS + 12_000);
        assert_eq!(told.len(), 1, "nobody is told again: {value:?}");
    }
}

#[test]
fn a_bucket_that_is_none_keeps_nobody_else_from_being_told() {
    let mut world = asleep();
    world.db.strings.remove(&world.position_key());
    for bucket in 0..BUCKETS {
        let key = world.partitions.offline_key(world.partitions.at(0), bucket);
        world.db.foreign.insert(key, u64::MAX);
    }
    let told = comes_and_is_told(&mut world, 2_000);
    assert_eq!(told[0], online("a", 1));
}

#[test]
fn a_partition_that_can_not_be_read_is_counted_and_told_once_it_can() {
    let mut world = asleep();
    world.come("c");
    world.run(30_000);
    world.told(0);
    let hot = world.hot();
    world.come("d");
    let came = world.ms;
    world.told(0);
    world.run(30_000);
    world.db.foreign.insert(hot.clone(), u64::MAX);
    world.nodes[0].follow.subscribed(0, now(world.ms).mono);
    world.run(5_000);
    assert!(world.nodes[0].follow.refused > 1);
    world.db.foreign.remove(&hot);
    world.publish("d", What::Erased);
    let erased = world.ms;
    world.run(2_000);
    assert_eq!(world.told(0).last(), Some(&offline("d", erased)));
    assert!(erased > came);
}
