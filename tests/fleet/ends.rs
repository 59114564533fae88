//! Who was logged out or erased lately, for nodes that missed the message.

use greendot::fleet::held::{Ended, META_FIELD, Meta, end_tag};
use greendot::fleet::partition::ends_key;
use greendot::time::Unix;

use crate::redis::Answer;
use crate::world::{ANN, BIRTH, HOT, World, beat, user};

const HOUR_MS: u64 = 3_600_000;

impl World {
    fn set_ends(&mut self, value: &[u8]) {
        let key = ends_key(HOT);
        let done = self.link.ask([&b"SET"[..], key.as_bytes(), value]);
        assert_eq!(done, Answer::Word("OK".to_owned()));
    }

    fn ends(&mut self) -> Vec<Ended> {
        let value = self.link.ask(["GET", &ends_key(HOT)]).bytes();
        assert_eq!(value.len() % 13, 0);
        Ended::parse_all(&value).unwrap()
    }

    fn expires_in_ms(&mut self) -> i64 {
        match self.link.ask(["PTTL", &ends_key(HOT)]) {
            Answer::Number(ms) => ms,
            other => panic!("{other:?}"),
        }
    }
}

fn entry(what: u8, since: Unix, tag: &[u8; 6]) -> Vec<u8> {
    [&[what][..], &since.ms().to_be_bytes()[2..], tag].concat()
}

#[test]
fn the_last_256_are_kept_for_an_hour() {
    let Some(mut world) = World::start() else {
        return;
    };
    let names: Vec<String> = (0..260).map(|number| format!("user-{number}")).collect();
    let (first, then) = names.split_at(130);
    for (k, names) in [(1, first), (2, then)] {
        let said = names
            .iter()
            .fold(world.enrol(ANN, k), |said, name| said.log_out(name));
        said.done();
    }
    let tags: Vec<[u8; 6]> = world.ends().iter().map(|ended| ended.tag).collect();
    let expected = names[4..].iter().map(|name| end_tag(user(name)));
    assert_eq!(tags, expected.collect::<Vec<_>>());
    let left = world.expires_in_ms();
    assert!((1..=HOUR_MS as i64).contains(&left), "{left}");
}

#[test]
fn what_says_who_says_when_and_by_which_message() {
    let Some(mut world) = World::start() else {
        return;
    };
    world.enrol(ANN, 1).claim("bob", beat()).done();
    let (_, out) = world.in_turn(ANN, 2).log_out("bob").done();
    let (_, erased) = world.in_turn(ANN, 3).erase("eve").done();
    let ended = |since, name, is_erased| Ended {
        since,
        tag: end_tag(user(name)),
        is_erased,
    };
    let expected = [ended(out, "bob", false), ended(erased, "eve", true)];
    assert_eq!(world.ends(), expected);
}

#[test]
fn what_is_old_or_of_somebody_else_goes_with_the_next() {
    let Some(mut world) = World::start() else {
        return;
    };
    let now = world.now();
    let young = entry(b'x', now.minus_ms(HOUR_MS - 60_000), b"younge");
    let old = entry(b'!', now.minus_ms(HOUR_MS + 1), b"older!");
    for (k, had, kept) in [
        (
            1,
            [old.clone(), young.clone()].concat(),
            &[&b"younge"[..]][..],
        ),
        // No message of this partition was as late.
        (2, entry(b'!', now.plus_ms(HOUR_MS << 8), b"future"), &[]),
        (3, b"thirteen_here".to_vec(), &[]),
        (
            4,
            [b"thirteen_here".to_vec(), young.clone()].concat(),
            &[b"younge"],
        ),
        (5, [young.clone(), b"tail".to_vec()].concat(), &[b"younge"]),
        (6, b"x".to_vec(), &[]),
        (7, Vec::new(), &[]),
    ] {
        world.set_ends(&had);
        world.enrol(ANN, k).log_out("bob").done();
        let bob = end_tag(user("bob"));
        let expected: Vec<&[u8]> = kept.iter().copied().chain([&bob[..]]).collect();
        let ends = world.ends();
        let tags: Vec<&[u8]> = ends.iter().map(|ended| &ended.tag[..]).collect();
        assert_eq!(tags, expected, "{k}");
    }
    // A long string of somebody else, which is not read to its beginning.
    world.set_ends(&[vec![b'.'; 13 * 10_000], young.clone()].concat());
    world.enrol(ANN, 8).log_out("bob").done();
    assert_eq!(world.ends().len(), 2);
    // A key of another type.
    world.link.ask(["DEL", &ends_key(HOT)]);
    world.link.ask(["HSET", &ends_key(HOT), "some", "thing"]);
    world.enrol(ANN, 9).log_out("bob").done();
    assert_eq!(world.ends().len(), 1);
}

/// Another primary, whose clock is behind the last one's: time goes on from its last message.
#[test]
fn what_a_clock_that_was_ahead_has_dated_is_kept() {
    let Some(mut world) = World::start() else {
        return;
    };
    let ahead = Meta {
        birth: BIRTH,
        number: 7,
        since: world.now().plus_ms(2 * HOUR_MS),
        left: Unix::from_ms(0),
    };
    let (hot, meta) = (HOT.as_bytes(), ahead.encode());
    world.link.ask([&b"HSET"[..], hot, META_FIELD, &meta]);
    for (k, name) in [(1, "bob"), (2, "eve")] {
        world.enrol(ANN, k).log_out(name).done();
    }
    let ended = |ms, name| Ended {
        since: ahead.since.plus_ms(ms),
        tag: end_tag(user(name)),
        is_erased: false,
    };
    assert_eq!(world.ends(), [ended(1, "bob"), ended(2, "eve")]);
}
