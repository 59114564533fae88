//! A goodbye is one device's, and is judged where all claims are.

use greendot::fleet::flags::UserFlags;
use greendot::fleet::held::Kinds;
use greendot::fleet::message::What;
use greendot::fleet::replies::Outcome::{Later, NotHere, Streams, Told};
use greendot::time::Unix;

use crate::world::{ACTIVE, ANN, BEN, SENT, World, beat, gone};

const PLAIN: UserFlags = UserFlags::PLAIN;
const NOTHING: Kinds = Kinds {
    beat: None,
    stream: false,
    open: false,
    unattended: false,
};

fn said(sent: Unix) -> What {
    What::Gone {
        flags: PLAIN,
        last_active: ACTIVE,
        said_at: Some(sent),
    }
}

#[test]
fn it_ends_the_beats_of_all_lives_that_were_sent_before() {
    let Some(mut world) = World::start() else {
        return;
    };
    world.enrol(ANN, 1).claim("bob", beat()).done();
    world.heard();
    world
        .enrol(BEN, 1)
        .claim("bob", Kinds::beat(SENT.plus_ms(9)))
        .done();
    world.base.number = 1;
    // BEN was told of a beat that was sent later: a home that has changed, or a device with a clock
    // of its own.
    let early = SENT.plus_ms(8);
    world
        .in_turn(ANN, 2)
        .goodbye("bob", NOTHING, early)
        .expect_quiet(&[Later]);
    assert_eq!(world.here("bob").unwrap().claims.len(), 2);
    let at = SENT.plus_ms(9);
    let ended = [("bob", said(at))];
    world
        .in_turn(ANN, 3)
        .goodbye("bob", NOTHING, at)
        .expect(&[Told], &ended);
    assert_eq!(world.here("bob"), None);
    assert_eq!([world.count(ANN), world.count(BEN)], [0, 0]);
    world
        .in_turn(ANN, 4)
        .goodbye("bob", NOTHING, at)
        .expect_quiet(&[NotHere]);
}

#[test]
fn any_stream_of_any_life_is_another_device() {
    let Some(mut world) = World::start() else {
        return;
    };
    let (at, mut k) = (SENT.plus_ms(60_000), 1);
    world.enrol(ANN, 1).claim("bob", beat()).done();
    world.enrol(BEN, 1).claim("bob", Kinds::OPEN_ONLY).done();
    world.heard();
    world.base.number = 1;
    for kinds in [Kinds::OPEN_ONLY, Kinds::STREAM_ONLY] {
        k += 1;
        world.in_turn(BEN, 2 * k - 2).claim("bob", kinds).done();
        let before = world.here("bob");
        world
            .in_turn(ANN, k)
            .goodbye("bob", NOTHING, at)
            .expect_quiet(&[Streams]);
        assert_eq!(world.here("bob"), before);
        world.in_turn(BEN, 2 * k - 1).withdraw("bob", kinds).done();
    }
    let ended = [("bob", said(at))];
    world
        .in_turn(ANN, k + 1)
        .goodbye("bob", NOTHING, at)
        .expect(&[Told], &ended);
    assert_eq!([world.count(ANN), world.count(BEN)], [0, 0]);
}

#[test]
fn the_stream_that_ends_with_it_is_no_other() {
    let Some(mut world) = World::start() else {
        return;
    };
    let both = Kinds {
        beat: Some(SENT),
        stream: false,
        open: true,
        unattended: false,
    };
    world.enrol(ANN, 1).claim("bob", both).done();
    world.heard();
    world.base.number = 1;
    let ended = [("bob", said(SENT))];
    world
        .in_turn(ANN, 2)
        .goodbye("bob", Kinds::OPEN_ONLY, SENT)
        .expect(&[Told], &ended);

    // It is blocked by another life's, and yet it has ended.
    world.in_turn(ANN, 3).claim("bob", both).done();
    world.heard();
    world.base.number += 1;
    world.enrol(BEN, 1).claim("bob", Kinds::STREAM_ONLY).done();
    world
        .in_turn(ANN, 4)
        .goodbye("bob", Kinds::OPEN_ONLY, SENT)
        .expect_quiet(&[Streams]);
    let claimed = world.here("bob").unwrap().claimed_by(ANN);
    assert_eq!(claimed, Some(beat()));
}

#[test]
fn a_last_stream_that_says_goodbye_ends_the_user() {
    let Some(mut world) = World::start() else {
        return;
    };
    world.enrol(ANN, 1).claim("bob", Kinds::STREAM_ONLY).done();
    world.enrol(BEN, 1).claim("bob", Kinds::OPEN_ONLY).done();
    world.heard();
    world.base.number = 1;
    // What is left proves no life, so it keeps nobody here.
    let ended = [("bob", said(SENT))];
    world
        .in_turn(ANN, 2)
        .goodbye("bob", Kinds::STREAM_ONLY, SENT)
        .expect(&[Told], &ended);
    assert_eq!([world.count(ANN), world.count(BEN)], [0, 0]);
}

#[test]
fn a_log_out_everywhere_asks_nobody() {
    let Some(mut world) = World::start() else {
        return;
    };
    world.enrol(ANN, 1).claim("bob", Kinds::STREAM_ONLY).done();
    world.heard();
    world
        .enrol(BEN, 1)
        .claim("bob", Kinds::beat(Unix::from_ms(1 << 40)))
        .done();
    world.base.number = 1;
    let out = What::LoggedOut {
        flags: PLAIN,
        last_active: ACTIVE,
    };
    world
        .in_turn(BEN, 2)
        .log_out("bob")
        .expect(&[Told], &[("bob", out)]);
    assert_eq!(world.here("bob"), None);
    assert_eq!([world.count(ANN), world.count(BEN)], [0, 0]);
    // Who is offline may have streams that nobody counts as a life: all nodes hear of it, and
    // nothing else changes; not of whom nobody has ever heard either.
    let ends = What::StreamsEnd(PLAIN);
    world
        .in_turn(BEN, 3)
        .log_out("bob")
        .log_out("nobody")
        .expect(&[NotHere, NotHere], &[("bob", ends), ("nobody", ends)]);
    assert_eq!([world.here("bob"), world.here("nobody")], [None, None]);
}

#[test]
fn silence_is_no_goodbye() {
    let Some(mut world) = World::start() else {
        return;
    };
    world.enrol(ANN, 1).claim("bob", beat()).done();
    world.heard();
    world.base.number = 1;
    let ended = [("bob", gone(PLAIN))];
    world
        .in_turn(ANN, 2)
        .withdraw("bob", beat())
        .expect(&[Told], &ended);
}
