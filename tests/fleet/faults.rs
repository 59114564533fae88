//! Calls that come twice, late, out of turn or not at all, and partitions that are older than what
//! was acknowledged, or new.

use greendot::fleet::calls::{Caller, Mode, Renewal, Vouch, fence, renew};
use greendot::fleet::flags::UserFlags;
use greendot::fleet::held::Enrolment;
use greendot::fleet::library::renamed;
use greendot::fleet::message::{Base, Follows, Message, What};
use greendot::fleet::partition::LANES;
use greendot::fleet::replies::Outcome::{Quiet, Told};
use greendot::fleet::replies::{Refusal, Vouched};
use greendot::fleet::{Birth, LIBRARY, Life};
use greendot::time::Unix;

use crate::redis::{Answer, Server};
use crate::world::{ANN, BEN, BIRTH, HOT, World, beat, gone, user};

const PLAIN: UserFlags = UserFlags::PLAIN;

#[test]
fn a_call_that_comes_twice_does_nothing() {
    let Some(mut world) = World::start() else {
        return;
    };
    let arrived = [("bob", What::Arrived(PLAIN))];
    world
        .enrol(ANN, 1)
        .claim("bob", beat())
        .expect(&[Told], &arrived);
    let ended = [("bob", gone(PLAIN))];
    world
        .in_turn(ANN, 2)
        .withdraw("bob", beat())
        .expect(&[Told], &ended);
    let before = world.dump();
    // The first call again: its user would be here for ever.
    for k in [0, 1, 2] {
        let duplicate = Vouched::Duplicate { k: 2, count: 0 };
        assert_eq!(
            world.in_turn(ANN, k).claim("bob", beat()).vouched(),
            duplicate
        );
        assert_eq!(
            world.enrol(ANN, k).claim("bob", beat()).vouched(),
            duplicate
        );
    }
    assert_eq!(world.dump(), before);
    world.expect_silence();
}

#[test]
fn a_call_that_is_missing_is_noticed() {
    let Some(mut world) = World::start() else {
        return;
    };
    world.enrol(ANN, 1).claim("bob", beat()).done();
    let refusal = world.in_turn(ANN, 3).claim("carol", beat()).refusal();
    assert_eq!(refusal, Refusal::Gap(1));
    // A reconcile leaps, and from there it goes on in turn.
    let (outcomes, _) = world.enrol(ANN, 17).claim("carol", beat()).done();
    assert_eq!(outcomes, [Told]);
    assert_eq!(
        world.in_turn(ANN, 18).claim("bob", beat()).done().0,
        [Quiet]
    );
    let largest = (1 << 48) - 1;
    world.enrol(ANN, largest - 2).done();
    let refusal = world.in_turn(ANN, largest).refusal();
    assert_eq!(refusal, Refusal::Gap(largest - 2), "all its digits");
}

#[test]
fn who_is_not_enrolled_says_nothing() {
    let Some(mut world) = World::start() else {
        return;
    };
    let refusal = world.in_turn(ANN, 1).claim("bob", beat()).refusal();
    assert_eq!(refusal, Refusal::NotEnrolled);
    let (outcomes, _) = world.enrol(ANN, 1).done();
    assert_eq!(outcomes, []);
    assert_eq!(world.meta().unwrap().number, 0);
    assert_eq!(world.in_turn(ANN, 2).claim("bob", beat()).done().0, [Told]);
    assert_eq!(world.in_turn(BEN, 3).refusal(), Refusal::NotEnrolled);
}

#[test]
fn what_was_held_up_is_void() {
    let Some(mut world) = World::start() else {
        return;
    };
    world.enrol(ANN, 1).claim("bob", beat()).done();
    let before = world.dump();
    let late = Unix::from_ms(world.now().ms() - 1);
    let mut withdraws = Vec::new();
    for mode in [Mode::InTurn, Mode::Enrol, Mode::Reap] {
        let mut vouch = Vouch::new(&Caller {
            life: ANN,
            mode,
            birth: BIRTH,
            k: 2,
            not_after: late,
        });
        vouch.withdraw(user("bob"), beat(), late);
        withdraws.push(vouch.call(HOT));
    }
    let renewal = Renewal {
        life: ANN,
        instance: *b"instance",
        not_after: late,
        silence_ms: 1,
        amnesty_ms: 1,
        info: "",
    };
    withdraws.push(fence(HOT, ANN, BIRTH, late));
    withdraws.push(renew(LANES[0], &renewal));
    for call in withdraws {
        let refused = world.link.call(&call).refused();
        let Some(Refusal::Late(now)) = Refusal::parse(&refused) else {
            panic!("{refused}");
        };
        assert!(now > late && now.ms_since(late) < 60_000);
    }
    assert_eq!(world.dump(), before);
    assert_eq!(world.link.ask(["EXISTS", LANES[0]]), Answer::Number(0));
}

#[test]
fn a_failover_that_lost_calls_is_noticed_by_their_owner() {
    let Some(mut world) = World::start() else {
        return;
    };
    world.enrol(ANN, 1).claim("bob", beat()).done();
    let replica = world.dump();
    world.in_turn(ANN, 2).claim("carol", beat()).done();
    world.in_turn(ANN, 3).withdraw("bob", beat()).done();
    let heard: Vec<Vec<u8>> = (0..3).map(|_| world.heard()).collect();
    let base = Base {
        birth: BIRTH,
        number: 3,
    };
    world.restore(replica);

    assert_eq!(world.in_turn(ANN, 4).refusal(), Refusal::Gap(1));
    // The audit sees the same: number and count are not ours.
    let lost = Enrolment {
        is_fenced: false,
        k: 1,
        count: 1,
    };
    assert_eq!(world.enrolment(ANN), Some(lost));
    let reconciled = world
        .enrol(ANN, 5)
        .claim("carol", beat())
        .withdraw("bob", beat())
        .done();
    assert_eq!(reconciled.0, [Told, Told]);
    assert!(world.here("carol").is_some() && world.here("bob").is_none());
    // The new primary uses a number again: without a base that was read from it, who is ahead takes
    // that for known. So a base counts for one server only.
    let again = world.heard();
    let message = Message::parse(&again).unwrap();
    assert_eq!(message.number(), 2);
    assert_ne!(again, heard[1]);
    assert_eq!(base.follows(&message), Follows::InBase);
}

#[test]
fn a_partition_that_is_new_is_another_one() {
    let Some(mut world) = World::start() else {
        return;
    };
    world.enrol(ANN, 1).claim("bob", beat()).done();
    world.heard();
    let base = Base {
        birth: BIRTH,
        number: 1,
    };
    world.link.ask(["FLUSHALL"]);
    assert_eq!(world.in_turn(ANN, 2).refusal(), Refusal::NotEnrolled);
    let other = Birth(*b"anniver.");
    for (k, birth) in [(3, other), (4, BIRTH)] {
        let mut vouch = Vouch::new(&Caller {
            life: ANN,
            mode: Mode::Enrol,
            birth,
            k,
            not_after: world.soon(),
        });
        let id = k.to_string();
        vouch.claim(user(&id), Some(PLAIN), beat(), None);
        world.link.call(&vouch.call(HOT)).bytes();
        let bytes = world.heard();
        let message = Message::parse(&bytes).unwrap();
        // What a caller proposes counts only where there is none.
        assert_eq!((message.birth, message.number()), (other, k - 2));
        assert_eq!(base.follows(&message), Follows::Repair);
    }
}

#[test]
fn what_is_malformed_changes_nothing() {
    let Some(mut world) = World::start() else {
        return;
    };
    world.enrol(ANN, 1).claim("bob", beat()).done();
    let before = world.dump();
    let good = {
        let mut vouch = Vouch::new(&Caller {
            life: ANN,
            mode: Mode::InTurn,
            birth: BIRTH,
            k: 2,
            not_after: world.soon(),
        });
        vouch.claim(user("carol"), Some(PLAIN), beat(), None);
        vouch.withdraw(user("bob"), beat(), Unix::default());
        let call = vouch.call(HOT);
        call.words().map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    let with = |at: usize, word: &[u8]| {
        let mut words = good.clone();
        words[at] = word.to_vec();
        words
    };
    let op = |at: usize, byte: u8| {
        let mut words = good.clone();
        words[5][at] = byte;
        words
    };
    let mut mode = good[4].clone();
    mode[4] = b'q';
    let mut many = good[..5].to_vec();
    many.push(good[5][..15].repeat(201));
    many.extend((0..201).map(|at| at.to_string().into_bytes()));
    let cases = [
        good[..4].to_vec(),
        good[..5].to_vec(),
        good[..7].to_vec(),
        with(4, &good[4][1..]),
        with(4, &mode),
        with(5, &good[5][1..]),
        with(6, b""),
        with(6, b"\0m"),
        with(6, b"bob"),
        with(6, &[b'x'; 129]),
        op(0, b'?'),
        op(1, 7),
        op(16, 3),
        op(1, 8),
        op(2, 0),
        op(2, 8),
        many,
    ];
    for words in cases {
        let refused = world.link.ask(&words).refused();
        assert_eq!(
            Refusal::parse(&refused),
            Some(Refusal::Arguments),
            "{refused}"
        );
    }
    for (function, word) in [("gd1_fence", &b"short"[..]), ("gd1_renew", b"short")] {
        for more in [&[word][..], &[word, b"info"], &[]] {
            let head = [&b"FCALL"[..], function.as_bytes(), b"1", HOT.as_bytes()];
            let refused = world.link.ask(head.iter().chain(more)).refused();
            assert_eq!(
                Refusal::parse(&refused),
                Some(Refusal::Arguments),
                "{refused}"
            );
        }
    }
    assert_eq!(world.dump(), before);
    world.link.ask(&good).bytes();
    assert!(world.here("carol").is_some(), "as it was it is in order");
}

#[test]
fn the_library_is_loaded_where_it_is_missing_and_beside_another() {
    let Some(server) = Server::start() else {
        return;
    };
    let mut link = server.link();
    let call = fence(HOT, Life(*b"ann "), BIRTH, Unix::from_ms(1));
    let refused = link.call(&call).refused();
    assert_eq!(Refusal::parse(&refused), Some(Refusal::NoLibrary));
    link.load();
    assert!(matches!(link.call(&call), Answer::Refused(why) if why.starts_with("GDLATE ")));
    // Twice is refused; nothing else comes of it.
    let again = link
        .ask([b"FUNCTION", &b"LOAD"[..], LIBRARY.as_bytes()])
        .refused();
    assert!(again.contains("already exists"), "{again}");
    let next = renamed("gd2");
    let loaded = link.ask([b"FUNCTION", &b"LOAD"[..], next.as_bytes()]);
    assert_eq!(loaded, Answer::Bytes(b"gd2".into()));
    assert!(matches!(link.call(&call), Answer::Refused(why) if why.starts_with("GDLATE ")));
}
