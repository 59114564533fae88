//! Who claims a user, and when it comes and goes.

use greendot::fleet::flags::{Saying, UserFlags};
use greendot::fleet::held::{Claim, Enrolment, Here, Kinds};
use greendot::fleet::message::What;
use greendot::fleet::replies::Outcome::{NotHere, Quiet, Told, Updated};
use greendot::status::Status;
use greendot::time::Unix;

use crate::world::{ANN, BEN, SENT, World, beat, gone};

const PLAIN: UserFlags = UserFlags::PLAIN;
const BUSY: UserFlags = UserFlags::new(Status::Busy, false);

#[test]
fn the_first_claim_is_an_arrival_and_the_last_withdrawal_an_end() {
    let Some(mut world) = World::start() else {
        return;
    };
    let arrived = [("bob", What::Arrived(PLAIN))];
    world
        .enrol(ANN, 1)
        .claim("bob", beat())
        .expect(&[Told], &arrived);
    let claim = |life| Claim {
        life,
        kinds: beat(),
    };
    let here = Here {
        since: world.meta().unwrap().since,
        flags: PLAIN,
        claims: vec![claim(ANN)],
    };
    assert_eq!(world.here("bob"), Some(here.clone()));

    world
        .enrol(BEN, 1)
        .claim("bob", beat())
        .expect_quiet(&[Quiet]);
    let both = Here {
        claims: vec![claim(ANN), claim(BEN)],
        ..here
    };
    assert_eq!(world.here("bob"), Some(both));
    world
        .in_turn(ANN, 2)
        .withdraw("bob", beat())
        .expect_quiet(&[Quiet]);
    let counts = [ANN, BEN].map(|life| world.enrolment(life));
    let enrolment = |k, count| {
        Some(Enrolment {
            is_fenced: false,
            k,
            count,
        })
    };
    assert_eq!(counts, [enrolment(2, 0), enrolment(1, 1)]);

    let ended = [("bob", gone(PLAIN))];
    world
        .in_turn(BEN, 2)
        .withdraw("bob", beat())
        .expect(&[Told], &ended);
    assert_eq!((world.here("bob"), world.count(BEN)), (None, 0));
}

#[test]
fn one_call_makes_one_message_of_all_its_users() {
    let Some(mut world) = World::start() else {
        return;
    };
    world
        .enrol(ANN, 1)
        .claim("bob", beat())
        .claim("carol", Kinds::STREAM_ONLY)
        .withdraw("dave", beat())
        .expect(
            &[Told, Told, NotHere],
            &[
                ("bob", What::Arrived(PLAIN)),
                ("carol", What::Arrived(PLAIN)),
            ],
        );
    assert_eq!(world.count(ANN), 2);
    world
        .in_turn(ANN, 2)
        .withdraw("bob", beat())
        .claim("erin", beat())
        .expect(
            &[Told, Told],
            &[("bob", gone(PLAIN)), ("erin", What::Arrived(PLAIN))],
        );
    assert_eq!(world.count(ANN), 2);
}

#[test]
fn kinds_add_up_and_are_taken_back_one_by_one() {
    let Some(mut world) = World::start() else {
        return;
    };
    let (later, all) = (Unix::from_ms(2_000), |beat| Kinds {
        beat,
        stream: true,
        open: true,
        unattended: false,
    });
    world.enrol(ANN, 1).claim("bob", Kinds::STREAM_ONLY).done();
    for (k, kinds) in [(2, Kinds::beat(later)), (3, Kinds::OPEN_ONLY), (4, beat())] {
        let (outcomes, _) = world.in_turn(ANN, k).claim("bob", kinds).done();
        assert_eq!(outcomes, [Quiet]);
    }
    // Of two beats the one that was sent later counts, whichever is told first.
    let claimed = world.here("bob").unwrap().claimed_by(ANN);
    assert_eq!(claimed, Some(all(Some(later))));
    assert_eq!(world.count(ANN), 1, "a life counts a user once");

    world.in_turn(ANN, 5).withdraw("bob", beat()).done();
    let claimed = world.here("bob").unwrap().claimed_by(ANN);
    assert_eq!(claimed, Some(all(None)));
    world.in_turn(ANN, 6).withdraw("bob", beat()).done();
    assert_eq!(world.here("bob").unwrap().claimed_by(ANN), claimed);
}

#[test]
fn an_open_stream_alone_keeps_nobody_here() {
    let Some(mut world) = World::start() else {
        return;
    };
    world
        .enrol(ANN, 1)
        .claim("bob", Kinds::OPEN_ONLY)
        .expect_quiet(&[NotHere]);
    assert_eq!((world.here("bob"), world.count(ANN)), (None, 0));

    let arrived = [("bob", What::Arrived(PLAIN))];
    world
        .enrol(BEN, 1)
        .claim("bob", beat())
        .expect(&[Told], &arrived);
    world
        .in_turn(ANN, 2)
        .claim("bob", Kinds::OPEN_ONLY)
        .expect_quiet(&[Quiet]);
    assert_eq!(world.count(ANN), 1);
    // The beats have ended, so the user has gone, and with it the mark of the open stream.
    let ended = [("bob", gone(PLAIN))];
    world
        .in_turn(BEN, 2)
        .withdraw("bob", beat())
        .expect(&[Told], &ended);
    assert_eq!(world.here("bob"), None);
    assert_eq!([world.count(ANN), world.count(BEN)], [0, 0]);
}

#[test]
fn nobody_withdraws_what_is_not_theirs() {
    let Some(mut world) = World::start() else {
        return;
    };
    world.enrol(ANN, 1).claim("bob", Kinds::beat(SENT)).done();
    let before = world.here("bob");
    world.enrol(BEN, 1).withdraw("bob", beat()).done();
    world
        .in_turn(ANN, 2)
        .withdraw("bob", Kinds::STREAM_ONLY)
        .done();
    assert_eq!(world.here("bob"), before);
    assert_eq!([world.count(ANN), world.count(BEN)], [1, 0]);
}

#[test]
fn whoever_is_claimed_again_is_here_since_then() {
    let Some(mut world) = World::start() else {
        return;
    };
    // Redis has lost all: nothing is told again, but of what it knows the latest counts.
    let (early, late) = (Unix::from_ms(5_000), Unix::from_ms(6_000));
    let still = |flags, since| [("bob", What::StillHere { flags, since })];
    world
        .enrol(ANN, 1)
        .claim_as("bob", PLAIN, beat(), early)
        .expect(&[Told], &still(PLAIN, early));
    assert_eq!(world.here("bob").unwrap().since, early);
    world
        .enrol(BEN, 1)
        .claim_as("bob", BUSY, beat(), early)
        .expect_quiet(&[Quiet]);
    let is = What::Is {
        flags: BUSY,
        since: late,
    };
    world
        .in_turn(BEN, 2)
        .claim_as("bob", BUSY, beat(), late)
        .expect(&[Updated], &[("bob", is)]);
    let here = world.here("bob").unwrap();
    assert_eq!((here.since, here.flags), (late, BUSY));
    // A time that is yet to come is nobody's.
    let soon = world.soon();
    world
        .in_turn(ANN, 2)
        .claim_as("bob", PLAIN, beat(), soon)
        .expect_quiet(&[Quiet]);
    let (outcomes, _) = world
        .in_turn(ANN, 3)
        .claim_as("carol", BUSY, beat(), soon)
        .done();
    assert_eq!(outcomes, [Told]);
    let carol = world.here("carol").unwrap();
    assert!(carol.since < soon && carol.flags == PLAIN);
}

/// A node that hears somebody while Redis is away does not know who hides.
#[test]
fn a_claim_without_flags_leaves_what_the_user_says_of_itself() {
    let Some(mut world) = World::start() else {
        return;
    };
    let hidden = UserFlags::new(Status::Busy, true);
    let is = |since| {
        let flags = hidden;
        [("bob", What::Is { flags, since })]
    };
    // Said before it ever came; and known since a moment ago, which is later.
    world
        .enrol(ANN, 1)
        .set_flags("bob", hidden)
        .expect(&[NotHere], &[("bob", What::Keeps(hidden))]);
    let said = world.now();
    let known = wait_past(&mut world, said);
    world
        .in_turn(ANN, 2)
        .claim_as("bob", None, beat(), known)
        .expect(&[Told], &is(known));
    assert_eq!(world.here("bob").unwrap().flags, hidden);
    // And of somebody who is here.
    let known = wait_past(&mut world, known);
    world
        .enrol(BEN, 1)
        .claim_as("bob", None, beat(), known)
        .expect(&[Updated], &is(known));
    assert_eq!(world.here("bob").unwrap().flags, hidden);
}

/// A moment later than that, by the server's clock.
fn wait_past(world: &mut World, at: Unix) -> Unix {
    let later = at.plus_ms(1);
    while world.now() < later.plus_ms(1) {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    later
}

#[test]
fn away_is_who_is_at_none_of_the_devices() {
    let Some(mut world) = World::start() else {
        return;
    };
    let idle = Kinds {
        unattended: true,
        ..beat()
    };
    let unattended = PLAIN.with_unattended(true);
    assert_eq!(unattended.shown(), Status::Away);
    let arrived = [("bob", What::Arrived(unattended))];
    world
        .enrol(ANN, 1)
        .claim("bob", idle)
        .expect(&[Told], &arrived);
    // Somebody is at a device that another node hears.
    let (outcomes, since) = world.enrol(BEN, 1).claim("bob", beat()).done();
    assert_eq!(outcomes, [Updated]);
    let is = |flags, since| [("bob", What::Is { flags, since })];
    world.expect_message(since, &is(PLAIN, since));
    let (outcomes, since) = world.in_turn(BEN, 2).claim("bob", idle).done();
    assert_eq!(outcomes, [Updated]);
    world.expect_message(since, &is(unattended, since));
    // Who is busy shows that.
    let busy = Saying {
        status: Some(Status::Busy),
        invisible: None,
    };
    let (_, since) = world.in_turn(BEN, 3).say("bob", busy).done();
    let flags = BUSY.with_unattended(true);
    world.expect_message(since, &is(flags, since));
    world
        .in_turn(BEN, 4)
        .claim("bob", beat())
        .expect_quiet(&[Quiet]);
    assert_eq!(world.here("bob").unwrap().flags, BUSY);
}
