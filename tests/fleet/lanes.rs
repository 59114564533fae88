//! Leases: when each life was heard of, by the lane's own clock, and when nobody may be taken for
//! dead.

use greendot::fleet::Life;
use greendot::fleet::calls::{Renewal, renew};
use greendot::fleet::partition::LANES;
use greendot::fleet::replies::{Lease, Refusal, Renewed};
use greendot::time::Unix;

use crate::redis::Answer;
use crate::world::{ANN, BEN, World};

const SILENCE_MS: u32 = 8_000;
const AMNESTY_MS: u32 = 25_000;

fn asked(world: &mut World, life: Life, instance: &[u8; 8], info: &str) -> Answer {
    let renewal = Renewal {
        life,
        instance: *instance,
        not_after: world.soon(),
        silence_ms: SILENCE_MS,
        amnesty_ms: AMNESTY_MS,
        info,
    };
    world.link.call(&renew(LANES[0], &renewal))
}

fn renewed(world: &mut World, life: Life, instance: &[u8; 8], info: &str) -> Renewed {
    let elements = asked(world, life, instance, info).list();
    let elements: Vec<Vec<u8>> = elements.into_iter().map(Answer::bytes).collect();
    let elements: Vec<&[u8]> = elements.iter().map(|element| &element[..]).collect();
    Renewed::parse(&elements).unwrap()
}

/// As if the lane had been written at another time.
fn set(world: &mut World, field: &[u8], at: Unix, tail: &[u8]) {
    let value = [&at.ms().to_be_bytes()[2..], tail].concat();
    world
        .link
        .ask([b"HSET", LANES[0].as_bytes(), field, &value]);
}

#[test]
fn everybody_hears_of_everybody() {
    let Some(mut world) = World::start() else {
        return;
    };
    let first = renewed(
        &mut world,
        ANN,
        b"instance",
        "10.0.0.1:8080 10.0.0.1:7946 0.1.0",
    );
    let second = renewed(&mut world, BEN, b"instanc2", "b");
    let lease = |life, renewed_at, instance: &[u8; 8], info: &str| Lease {
        life,
        renewed_at,
        instance: *instance,
        info: info.into(),
    };
    let ann = lease(
        ANN,
        first.now,
        b"instance",
        "10.0.0.1:8080 10.0.0.1:7946 0.1.0",
    );
    assert_eq!(first.lives, std::slice::from_ref(&ann));
    let ben = lease(BEN, second.now, b"instanc2", "b");
    assert_eq!(second.lives, [ann, ben.clone()]);
    let third = renewed(&mut world, ANN, b"instance", "moved");
    let ann = lease(ANN, third.now, b"instance", "moved");
    assert_eq!(third.lives, [ann, ben]);
    // Nobody had renewed here before the first, so it knew nothing of anybody's silence.
    let amnesty = first.now.plus_ms(u64::from(AMNESTY_MS));
    for renewed in [first, second, third] {
        assert_eq!(renewed.amnesty_until, amnesty);
    }
}

#[test]
fn after_a_silence_of_all_there_is_an_amnesty() {
    let Some(mut world) = World::start() else {
        return;
    };
    let now = world.now();
    let amnesty = |world: &mut World, newest: Unix| {
        set(world, b"\0t", newest, &[0, 0, 0, 0, 0, 7]);
        let renewed = renewed(world, ANN, b"instance", "");
        (
            renewed.amnesty_until,
            renewed.now.plus_ms(u64::from(AMNESTY_MS)),
        )
    };
    let early = |ms| Unix::from_ms(now.ms() - ms);
    // Somebody renewed lately: the amnesty of long ago stands.
    let (until, _) = amnesty(&mut world, early(1_000));
    assert_eq!(until, Unix::from_ms(7));
    // Nobody did, or the clock went back by more than that.
    for newest in [early(60_000), now.plus_ms(600_000)] {
        let (until, anew) = amnesty(&mut world, newest);
        assert_eq!(until, anew);
    }
}

#[test]
fn one_life_is_one_nodes() {
    let Some(mut world) = World::start() else {
        return;
    };
    let first = renewed(&mut world, ANN, b"instance", "");
    let refused = asked(&mut world, ANN, b"instanc2", "").refused();
    assert_eq!(Refusal::parse(&refused), Some(Refusal::Taken));
    let again = renewed(&mut world, ANN, b"instance", "");
    assert_eq!(again.lives.len(), 1);
    assert!(again.now >= first.now);
}

#[test]
fn who_was_silent_for_an_hour_is_forgotten() {
    let Some(mut world) = World::start() else {
        return;
    };
    let now = world.now().ms();
    set(
        &mut world,
        b"old ",
        Unix::from_ms(now - 61 * 60_000),
        b"instanc3",
    );
    set(
        &mut world,
        b"kept",
        Unix::from_ms(now - 59 * 60_000),
        b"instanc4",
    );
    let lives = renewed(&mut world, ANN, b"instance", "").lives;
    let lives: Vec<Life> = lives.iter().map(|lease| lease.life).collect();
    assert_eq!(lives, [ANN, Life(*b"kept")]);
    let old = world.link.ask(["HEXISTS", LANES[0], "old "]);
    assert_eq!(old, Answer::Number(0));
}

#[test]
fn what_another_program_put_there_is_dropped() {
    let Some(mut world) = World::start() else {
        return;
    };
    let now = world.now();
    set(&mut world, b"liv", now, b"instanc3");
    set(&mut world, b"live", now, b"short");
    world.link.ask(["HSET", LANES[0], "junk", "", "\0t", "x"]);
    let first = renewed(&mut world, ANN, b"instance", "");
    let lives: Vec<Life> = first.lives.iter().map(|lease| lease.life).collect();
    assert_eq!(lives, [ANN]);
    // What nobody could read of the last renewal says that there was none.
    let amnesty = first.now.plus_ms(u64::from(AMNESTY_MS));
    assert_eq!(first.amnesty_until, amnesty);
    let left = world.link.ask(["HLEN", LANES[0]]);
    assert_eq!(left, Answer::Number(2));
    assert_eq!(
        renewed(&mut world, ANN, b"instance", "").amnesty_until,
        amnesty
    );
}

#[test]
fn a_lane_has_room_for_so_many_lives() {
    let Some(mut world) = World::start() else {
        return;
    };
    let now = world.now();
    for life in 0..1_023_u32 {
        set(&mut world, &life.to_be_bytes(), now, b"instanc3");
    }
    assert_eq!(renewed(&mut world, ANN, b"instance", "").lives.len(), 1_024);
    let refused = asked(&mut world, BEN, b"instanc2", "").refused();
    assert_eq!(Refusal::parse(&refused), Some(Refusal::Full));
    assert_eq!(renewed(&mut world, ANN, b"instance", "").lives.len(), 1_024);
    let refused = asked(&mut world, ANN, b"instance", &"x".repeat(512)).list();
    assert_eq!(refused.len(), 1 + 2 * 1_024);
}
