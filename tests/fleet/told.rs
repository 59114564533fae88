//! What is told of users beside that they come and go: flags, invisible users, erasures; and how
//! messages are numbered, dated and kept.

use greendot::fleet::flags::{Saying, UserFlags};
use greendot::fleet::held::{Kinds, META_FIELD, Meta, ring_field};
use greendot::fleet::message::{HEAD_BYTES, Message, What};
use greendot::fleet::replies::Outcome::{NotHere, Private, Quiet, Told, Updated};
use greendot::status::Status;
use greendot::time::Unix;

use crate::redis::Answer;
use crate::world::{ACTIVE, ANN, BEN, BIRTH, HOT, World, beat, gone};

const PLAIN: UserFlags = UserFlags::PLAIN;
const BUSY: UserFlags = UserFlags::new(Status::Busy, false);
const HIDDEN: UserFlags = UserFlags::new(Status::Away, true);

fn is(flags: UserFlags, since: Unix) -> [(&'static str, What); 1] {
    [("bob", What::Is { flags, since })]
}

#[test]
fn a_status_is_the_users_and_not_a_lifes() {
    let Some(mut world) = World::start() else {
        return;
    };
    // It is said before the user comes, and counts when it does.
    let keeps = |flags| [("bob", What::Keeps(flags))];
    world
        .enrol(ANN, 1)
        .set_flags("bob", BUSY)
        .expect(&[NotHere], &keeps(BUSY));
    let kept = world.here("bob").unwrap();
    assert_eq!((kept.flags, kept.is_here()), (BUSY, false));
    world
        .in_turn(ANN, 2)
        .set_flags("bob", BUSY)
        .expect_quiet(&[NotHere]);
    let arrived = [("bob", What::Arrived(BUSY))];
    world
        .in_turn(ANN, 3)
        .claim("bob", beat())
        .expect(&[Told], &arrived);
    world
        .enrol(BEN, 1)
        .claim("bob", beat())
        .expect_quiet(&[Quiet]);
    let since = world.here("bob").unwrap().since;

    let (outcomes, at) = world.in_turn(BEN, 2).set_flags("bob", PLAIN).done();
    assert_eq!(outcomes, [Updated]);
    world.expect_message(at, &is(PLAIN, at));
    let here = world.here("bob").unwrap();
    assert_eq!((here.flags, here.claims.len(), here.since), (PLAIN, 2, at));
    assert!(here.since > since);
    world
        .in_turn(BEN, 3)
        .set_flags("bob", PLAIN)
        .expect_quiet(&[Quiet]);
    // What is not said stays.
    let hidden = Saying {
        status: None,
        invisible: Some(true),
    };
    let (_, at) = world.in_turn(BEN, 4).set_flags("bob", BUSY).done();
    world.expect_message(at, &is(BUSY, at));
    let (outcomes, at) = world.in_turn(BEN, 5).say("bob", hidden).done();
    assert_eq!(outcomes, [Told]);
    world.expect_message(at, &is(UserFlags::new(Status::Busy, true), at));
}

#[test]
fn what_a_user_says_outlasts_its_stay() {
    let Some(mut world) = World::start() else {
        return;
    };
    world
        .enrol(ANN, 1)
        .set_flags("bob", BUSY)
        .set_flags("carol", PLAIN)
        .done();
    world.heard();
    world.base.number = 1;
    assert_eq!(world.here("carol"), None, "who says nothing is nobody");
    world.in_turn(ANN, 2).claim("bob", beat()).done();
    world.heard();
    world.base.number = 2;
    let ended = [("bob", gone(BUSY))];
    world
        .in_turn(ANN, 3)
        .withdraw("bob", beat())
        .expect(&[Told], &ended);
    let kept = world.here("bob").unwrap();
    assert_eq!((kept.flags, kept.is_here()), (BUSY, false));
    // It is taken back while the user is away.
    let keeps = [("bob", What::Keeps(PLAIN))];
    world
        .in_turn(ANN, 4)
        .set_flags("bob", PLAIN)
        .expect(&[NotHere], &keeps);
    assert_eq!(world.here("bob"), None);
}

#[test]
fn whoever_is_invisible_never_arrives() {
    let Some(mut world) = World::start() else {
        return;
    };
    let keeps = [("bob", What::Keeps(HIDDEN))];
    world
        .enrol(ANN, 1)
        .set_flags("bob", HIDDEN)
        .expect(&[NotHere], &keeps);
    let (outcomes, at) = world.in_turn(ANN, 2).claim("bob", beat()).done();
    assert_eq!(outcomes, [Told]);
    world.expect_message(at, &is(HIDDEN, at));
    let ended = [("bob", gone(HIDDEN))];
    world
        .in_turn(ANN, 3)
        .withdraw("bob", beat())
        .expect(&[Private], &ended);
    world.in_turn(ANN, 4).claim("bob", beat()).done();
    world.heard();
    world.base.number += 1;

    let (outcomes, at) = world.in_turn(ANN, 5).set_flags("bob", BUSY).done();
    assert_eq!(outcomes, [Updated]);
    world.expect_message(at, &is(BUSY, at));
    let (outcomes, at) = world.in_turn(ANN, 6).set_flags("bob", HIDDEN).done();
    assert_eq!(outcomes, [Told], "everybody else is told that it goes");
    world.expect_message(at, &is(HIDDEN, at));
    // What it is while it hides is nobody's business, and no change of when it hid.
    let other = UserFlags::new(Status::Busy, true);
    let (outcomes, later) = world.in_turn(ANN, 7).set_flags("bob", other).done();
    assert_eq!(outcomes, [Updated]);
    world.expect_message(later, &is(other, at));
    let out = What::LoggedOut {
        flags: other,
        last_active: ACTIVE,
    };
    world
        .in_turn(ANN, 8)
        .log_out("bob")
        .expect(&[Private], &[("bob", out)]);
}

#[test]
fn an_erasure_leaves_nothing_of_the_user() {
    let Some(mut world) = World::start() else {
        return;
    };
    world
        .enrol(ANN, 1)
        .claim("bob", beat())
        .claim("carol", beat())
        .done();
    world.enrol(BEN, 1).claim("bob", Kinds::OPEN_ONLY).done();
    world.heard();
    let (outcomes, _) = world.in_turn(BEN, 2).erase("bob").erase("dave").done();
    assert_eq!(outcomes, [Told, Told], "of whoever is offline too");
    let bytes = world.heard();
    let message = Message::parse(&bytes).unwrap();
    let said: Vec<_> = message
        .records()
        .map(|record| (record.user.as_str(), record.what))
        .collect();
    assert_eq!(said, [("bob", What::Erased), ("dave", What::Erased)]);

    assert_eq!([world.count(ANN), world.count(BEN)], [1, 0]);
    // The messages before are gone, and of this one the ring has the head alone.
    assert_eq!(world.ring(1), None);
    assert_eq!(world.ring(2), Some(bytes[..HEAD_BYTES].to_vec()));
    let all = world.link.ask(["HGETALL", HOT]).list();
    let names = |answer: &Answer| {
        let bytes = answer.clone().bytes();
        bytes.windows(3).any(|window| window == b"bob")
    };
    assert!(!all.iter().any(names));
    assert!(world.here("carol").is_some());
}

#[test]
fn the_ring_has_the_last_32_messages() {
    let Some(mut world) = World::start() else {
        return;
    };
    world.enrol(ANN, 1).claim("bob", beat()).done();
    for k in 2..=300 {
        let flags = if k % 2 == 0 { BUSY } else { PLAIN };
        world.in_turn(ANN, k).set_flags("bob", flags).done();
    }
    let heard: Vec<Vec<u8>> = (0..300).map(|_| world.heard()).collect();
    for number in 269..=300 {
        let kept = world.ring(number).unwrap();
        assert_eq!(kept, heard[number as usize - 1]);
        assert_eq!(Message::parse(&kept).unwrap().number(), number);
    }
    assert_eq!(ring_field(268), ring_field(300), "the older ones are gone");
    let fields = world.link.ask(["HLEN", HOT]);
    assert_eq!(fields, Answer::Number(32 + 3), "numbers, a life, a user");
}

#[test]
fn of_a_long_message_the_ring_keeps_the_head() {
    let Some(mut world) = World::start() else {
        return;
    };
    // 20 bytes, and 131 for each but the last.
    let users: Vec<String> = (0..8).map(|at| format!("{at:x>128}")).collect();
    for (k, last, is_long) in [(1, 84, false), (2, 85, true)] {
        let last = format!("{k:y>last$}");
        let mut said = world.enrol(ANN, k);
        for user in &users[..7] {
            said = said.claim(&format!("{k}{}", &user[1..]), beat());
        }
        said.claim(&last, beat()).done();
        let bytes = world.heard();
        assert_eq!(bytes.len() > 1_024, is_long, "{}", bytes.len());
        let kept = world.ring(k).unwrap();
        assert_eq!(
            kept,
            if is_long {
                bytes[..HEAD_BYTES].to_vec()
            } else {
                bytes
            }
        );
        assert_eq!(Message::parse_kept(&kept).unwrap().is_none(), is_long);
    }
}

#[test]
fn since_rises_whatever_the_clock_says() {
    let Some(mut world) = World::start() else {
        return;
    };
    // As a primary wrote it whose clock was ahead.
    let ahead = Meta {
        birth: BIRTH,
        number: 7,
        since: world.soon().plus_ms(60_000),
        left: Unix::default(),
    };
    let value = ahead.encode();
    world
        .link
        .ask([b"HSET", HOT.as_bytes(), META_FIELD, &value]);
    let (_, first) = world.enrol(ANN, 1).claim("bob", beat()).done();
    let (_, second) = world.in_turn(ANN, 2).claim("carol", beat()).done();
    assert_eq!(first, ahead.since.plus_ms(1));
    assert_eq!(second, ahead.since.plus_ms(2));
    let (_, unchanged) = world.in_turn(ANN, 3).claim("carol", beat()).done();
    assert_eq!(unchanged, second, "a call that tells nothing takes no time");
}
