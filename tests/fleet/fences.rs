//! A life that is taken for dead: nothing more of it is taken, and others withdraw what it claims.

use greendot::fleet::Life;
use greendot::fleet::calls::fence;
use greendot::fleet::flags::UserFlags;
use greendot::fleet::held::{Enrolment, Kinds, life_field};
use greendot::fleet::message::What;
use greendot::fleet::replies::Outcome::{NotHere, Quiet, Told};
use greendot::fleet::replies::{Fenced, Refusal};
use greendot::time::Unix;

use crate::world::{ANN, BEN, BIRTH, HOT, World, beat, gone};

const PLAIN: UserFlags = UserFlags::PLAIN;
const ALL: Kinds = Kinds {
    beat: Some(Unix::from_ms(0)),
    stream: true,
    open: true,
    unattended: false,
};

fn fenced(world: &mut World, life: Life) -> Fenced {
    let call = fence(HOT, life, BIRTH, world.soon());
    Fenced::parse(&world.link.call(&call).bytes()).unwrap()
}

#[test]
fn nothing_of_a_fenced_life_is_taken_and_others_reap_it() {
    let Some(mut world) = World::start() else {
        return;
    };
    let arrived = ["bob", "carol"].map(|id| (id, What::Arrived(PLAIN)));
    let said = world
        .enrol(ANN, 1)
        .claim("bob", beat())
        .claim("carol", Kinds::STREAM_ONLY);
    said.expect(&[Told, Told], &arrived);
    world
        .enrol(BEN, 1)
        .claim("carol", beat())
        .expect_quiet(&[Quiet]);
    let answer = fenced(&mut world, ANN);
    let expected = Fenced {
        birth: BIRTH,
        number: 1,
        count: 2,
    };
    assert_eq!(answer, expected);
    let kept = Enrolment {
        is_fenced: true,
        k: 1,
        count: 2,
    };
    assert_eq!(world.enrolment(ANN), Some(kept));
    let before = world.dump();
    assert_eq!(fenced(&mut world, ANN), expected);
    assert_eq!(world.dump(), before, "once is enough");
    world.expect_silence();

    assert_eq!(
        world.in_turn(ANN, 2).claim("dave", beat()).refusal(),
        Refusal::Fenced
    );
    assert_eq!(
        world.enrol(ANN, 9).claim("dave", beat()).refusal(),
        Refusal::Fenced
    );
    let ended = [("bob", gone(PLAIN))];
    let reap = |world: &mut World| {
        let said = world.reap(ANN).withdraw("bob", ALL).withdraw("carol", ALL);
        said.expect(&[Told, Quiet], &ended);
    };
    reap(&mut world);
    assert_eq!(fenced(&mut world, ANN).count, 0);
    // A second reaper finds nothing.
    world
        .reap(ANN)
        .withdraw("bob", ALL)
        .expect_quiet(&[NotHere]);
    // Whoever came back elsewhere is not the fenced life's.
    let arrived = [("bob", What::Arrived(PLAIN))];
    world
        .in_turn(BEN, 2)
        .claim("bob", beat())
        .expect(&[Told], &arrived);
    world.reap(ANN).withdraw("bob", ALL).expect_quiet(&[Quiet]);
    assert_eq!((world.count(ANN), world.count(BEN)), (0, 2));
}

#[test]
fn a_reaper_touches_only_the_fenced() {
    let Some(mut world) = World::start() else {
        return;
    };
    world.enrol(ANN, 1).claim("bob", beat()).done();
    for life in [ANN, BEN] {
        let refusal = world.reap(life).withdraw("bob", ALL).refusal();
        assert_eq!(refusal, Refusal::NotEnrolled);
    }
    fenced(&mut world, ANN);
    let refusals = [
        world.reap(ANN).claim("bob", beat()).refusal(),
        world.reap(ANN).log_out("bob").refusal(),
        world
            .reap(ANN)
            .goodbye("bob", beat(), Unix::from_ms(1))
            .refusal(),
        world.reap(ANN).erase("bob").refusal(),
        world.reap(ANN).set_flags("bob", PLAIN).refusal(),
    ];
    assert_eq!(refusals, [Refusal::Arguments; 5]);
}

#[test]
fn a_life_that_was_never_here_is_fenced_all_the_same() {
    let Some(mut world) = World::start() else {
        return;
    };
    let expected = Fenced {
        birth: BIRTH,
        number: 0,
        count: 0,
    };
    assert_eq!(fenced(&mut world, ANN), expected);
    assert_eq!(
        world.enrol(ANN, 1).claim("bob", beat()).refusal(),
        Refusal::Fenced
    );
}

#[test]
fn fences_are_forgotten_after_an_hour_unless_somebody_is_to_be_reaped() {
    let Some(mut world) = World::start() else {
        return;
    };
    world.enrol(ANN, 1).claim("bob", beat()).done();
    let (old, kept) = (Life(*b"old "), Life(*b"kept"));
    for life in [ANN, old, kept] {
        fenced(&mut world, life);
    }
    let now = world.now().ms();
    let entry = |life: Life, minutes: u64| {
        let at = (now - minutes * 60_000).to_be_bytes();
        [&life.0[..], &at[2..]].concat()
    };
    let missing = Life(*b"miss");
    let ages = [
        entry(ANN, 61),
        entry(old, 61),
        entry(kept, 59),
        entry(missing, 61),
    ];
    world
        .link
        .ask([b"HSET", HOT.as_bytes(), b"\0F", &ages.concat()]);
    fenced(&mut world, BEN);
    let fences = world.field(b"\0F").unwrap();
    assert_eq!(fences[..20], [entry(ANN, 61), entry(kept, 59)].concat());
    assert_eq!((fences.len(), &fences[20..24]), (30, &BEN.0[..]));
    let is_there = [ANN, old, kept, BEN].map(|life| world.field(&life_field(life)).is_some());
    assert_eq!(is_there, [true, false, true, true]);
}

#[test]
fn no_more_fences_than_there_may_be_lives() {
    let Some(mut world) = World::start() else {
        return;
    };
    let at = world.now().ms().to_be_bytes();
    let fences: Vec<u8> = (0..1_024_u32)
        .flat_map(|life| [&life.to_be_bytes()[..], &at[2..]].concat())
        .collect();
    world.link.ask([b"HSET", HOT.as_bytes(), b"\0F", &fences]);
    let call = fence(HOT, ANN, BIRTH, world.soon());
    let refused = world.link.call(&call).refused();
    assert_eq!(Refusal::parse(&refused), Some(Refusal::Full));
    assert_eq!(world.enrolment(ANN), None);
}
