//! Watches by slot and by name against a model of two maps, and what a crowd leaves behind.

use super::*;
use crate::wire::User;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn told(watches: &mut Watches, conn: u32) -> Vec<u32> {
    let mut slots = Vec::new();
    watches.take_marks(conn, 0, |mark| {
        let Marked::Slot(slot) = mark.of else {
            panic!("{mark:?}")
        };
        slots.push(slot);
        true
    });
    slots
}

fn name_of(watches: &mut Watches, user: &str) -> Target {
    watches.name(User::from_text(user).unwrap())
}

#[test]
fn marks_are_told_once() {
    let mut watches = Watches::default();
    assert_eq!(
        watches.add(
            1,
            &mut vec![Target::slot(7), Target::slot(3), Target::slot(7)],
            false
        ),
        2
    );
    assert_eq!(watches.add(2, &mut vec![Target::slot(7)], false), 1);
    let mut first = Vec::new();
    assert_eq!(
        watches.mark(7, |conn| first.push(conn)),
        MarkCount {
            marks: 2,
            coalesced: 0
        }
    );
    assert_eq!(
        watches.mark(7, |conn| first.push(conn)),
        MarkCount {
            marks: 0,
            coalesced: 2
        }
    );
    assert_eq!(
        watches.mark(3, |conn| first.push(conn)),
        MarkCount {
            marks: 1,
            coalesced: 0
        }
    );
    assert_eq!(
        watches.mark(4, |conn| first.push(conn)),
        MarkCount::default()
    );
    first.sort_unstable();
    assert_eq!(first, [1, 2]);
    assert_eq!(told(&mut watches, 1), [3, 7]);
    assert_eq!((told(&mut watches, 1), watches.marks(2)), (vec![], 1));
    watches.check_invariants();
}

#[test]
fn whoever_is_added_again_is_marked_again() {
    let mut watches = Watches::default();
    let both = vec![Target::slot(3), name_of(&mut watches, "never seen")];
    assert_eq!(watches.add(1, &mut both.clone(), true), 2);
    assert_eq!(
        (watches.take_marks(1, 0, |_| true), watches.marks(1)),
        (0, 0)
    );
    assert_eq!(watches.add(1, &mut both.clone(), true), 0);
    assert_eq!(watches.marks(1), 2);
    // Marked already, once.
    assert_eq!(watches.add(1, &mut both.clone(), true), 0);
    assert_eq!(watches.marks(1), 2);
    watches.take_marks(1, 0, |_| true);
    assert_eq!(watches.add(1, &mut both.clone(), false), 0);
    assert_eq!(watches.marks(1), 0);
    watches.check_invariants();
}

#[test]
fn a_visit_that_stops_keeps_the_rest() {
    let mut watches = Watches::default();
    watches.add(0, &mut (0..5).map(Target::slot).collect(), true);
    let mut seen = Vec::new();
    let left = watches.take_marks(0, 0, |mark| {
        if seen.len() == 2 {
            return false;
        }
        seen.push(format!("{mark:?}"));
        true
    });
    assert_eq!(
        (left, &seen[..]),
        (
            3,
            &[
                "Mark { of: Slot(0), last: false }",
                "Mark { of: Slot(1), last: false }"
            ]
            .map(String::from)[..]
        )
    );
    let mut last = String::new();
    watches.take_marks(0, 0, |mark| {
        last = format!("{mark:?}");
        true
    });
    assert_eq!(last, "Mark { of: Slot(4), last: true }");
}

#[test]
fn a_name_becomes_a_slot_for_whoever_watched_it() {
    let mut watches = Watches::default();
    let name = name_of(&mut watches, "bob");
    watches.add(4, &mut vec![name, Target::slot(1)], false);
    let same = name_of(&mut watches, "bob");
    assert_eq!(same, name);
    watches.add(5, &mut vec![same], false);
    assert_eq!((watches.named_len(), watches.len()), (2, 3));
    assert!(watches.resolve("bob", 9));
    assert!(!watches.resolve("bob", 9));
    watches.check_invariants();
    let mut first = Vec::new();
    assert_eq!(watches.mark(9, |conn| first.push(conn)).marks, 2);
    assert_eq!(
        (first, watches.named_len(), watches.len()),
        (vec![5, 4], 0, 3)
    );
    assert_eq!(told(&mut watches, 5), [9]);
    // By its slot it is the same watch, and the name is another's.
    assert!(watches.has(4, Target::slot(9)) && watches.find_name("bob").is_none());
    assert_eq!(watches.add(4, &mut vec![Target::slot(9)], false), 0);
    assert_eq!(watches.add(6, &mut vec![Target::slot(9)], false), 1);
    watches.check_invariants();
    for conn in [4, 5, 6] {
        assert!(watches.remove(conn, Target::slot(9)));
    }
    watches.check_invariants();
    assert!(!watches.is_watched(9) && watches.len() == 1);
}

/// A stream with a long list pays for each name that gets its slot no more than one with a short
/// list: no list is moved or written but for the marks.
#[test]
fn a_name_gets_its_slot_without_a_list_being_rewritten() {
    const NAMES: u32 = 2_000;
    let mut watches = Watches::default();
    for conn in 0..10 {
        let mut targets = (0..NAMES)
            .map(|n| name_of(&mut watches, &format!("name {n}")))
            .collect();
        watches.add(conn, &mut targets, false);
    }
    let lists: Vec<u32> = watches.lists.get(watches.follows[3].list).to_vec();
    let written = watches.lists.written();
    for n in 0..NAMES {
        assert!(watches.resolve(&format!("name {n}"), 100 + n));
        assert_eq!(watches.mark(100 + n, |_| ()).marks, 10);
    }
    assert_eq!(watches.lists.written(), written);
    let now: Vec<u32> = watches.lists.get(watches.follows[3].list).to_vec();
    assert!(lists.iter().zip(&now).all(|(old, new)| old | MARK == *new));
    let mut slots = told(&mut watches, 3);
    slots.sort_unstable();
    assert_eq!(slots, (100..100 + NAMES).collect::<Vec<_>>());
    watches.check_invariants();
}

/// What a name took is given back once its user has a slot, though all go on watching.
#[test]
fn names_that_stand_for_slots_settle() {
    const NAMES: u32 = 20_000;
    let mut watches = Watches::default();
    for n in 0..NAMES {
        let name = name_of(&mut watches, &format!("name {n}"));
        for conn in [n % 100, 100 + n % 7] {
            watches.add(conn, &mut vec![name, Target::slot(n)], n % 2 == 0);
        }
    }
    let marks: Vec<usize> = (0..107).map(|conn| watches.marks(conn)).collect();
    for n in 0..NAMES {
        // Some slots are lower than others that are watched, some are higher.
        let slot = if n % 3 == 0 { 30_000 + n } else { 90_000 - n };
        assert!(watches.resolve(&format!("name {n}"), slot));
    }
    assert_eq!(watches.standing_edges, 2 * NAMES as usize);
    let mut slices = 0;
    while watches.has_settling() {
        // At most as much as it takes to find that the price is reached.
        assert!(watches.settle_some(1_000) <= 1_000 + 1 + 2 * (1 + 6_000 / 1_024));
        slices += 1;
        if slices % 10 == 0 {
            watches.check_invariants();
        }
    }
    watches.check_invariants();
    assert!((50..200).contains(&slices), "{slices}");
    assert_eq!(
        (watches.standing_edges, watches.len()),
        (0, 4 * NAMES as usize)
    );
    assert!(watches.names.sizes().iter().all(|size| *size <= 1_024));
    assert!((0..107).all(|conn| watches.marks(conn) == marks[conn as usize]));
    assert_eq!(watches.mark(30_003, |_| ()).marks, 2);
    assert_eq!(watches.mark(90_000 - 2, |_| ()).coalesced, 2);
}

/// A place that leads to a crowd is a share of nothing for each of them.
#[test]
fn a_crowd_stays_at_its_name() {
    let mut watches = Watches::default();
    let [few, crowd] = ["few", "crowd"].map(|user| name_of(&mut watches, user));
    for conn in 0..1_000 {
        watches.add(conn, &mut vec![crowd], true);
    }
    watches.add(7, &mut vec![few], true);
    assert!(watches.resolve("few", 1) && watches.resolve("crowd", 2));
    // It is gone before its turn has come.
    watches.clear(7);
    assert_eq!(
        (watches.settle_some(1_000), watches.has_settling()),
        (2, false)
    );
    assert_eq!(watches.standing_edges, 999);
    assert_eq!(watches.mark(2, |_| ()).coalesced, 999);
    watches.check_invariants();
}

/// Should a slot be watched before the name is told of, all are watchers of the slot in the end.
#[test]
fn a_name_whose_slot_is_watched_already_joins_it() {
    let mut watches = Watches::default();
    let name = name_of(&mut watches, "bob");
    watches.add(1, &mut vec![name, Target::slot(9)], false);
    watches.add(2, &mut vec![name], false);
    watches.add(3, &mut vec![Target::slot(9)], false);
    assert!(watches.resolve("bob", 9));
    watches.check_invariants();
    assert_eq!((watches.len(), watches.named_len()), (3, 0));
    assert_eq!(told(&mut watches, 2), [9]);
}

#[test]
fn a_crowd_is_marked_in_pieces() {
    let mut watches = Watches::default();
    for conn in 0..1_000 {
        watches.add(conn, &mut vec![Target::slot(5)], false);
    }
    let (mut from, mut pieces, mut marked) = (Some(0), 0, Vec::new());
    while let Some(at) = from {
        let (count, next) = watches.mark_some(5, at, 300, |conn| marked.push(conn));
        assert!(count.marks <= 300);
        (from, pieces) = (next, pieces + 1);
    }
    assert_eq!((pieces, marked), (4, (0..1_000).collect()));
}

/// While its watches end, a stream is marked by nobody; what is left is in both directions.
#[test]
fn a_long_list_is_ended_in_pieces() {
    let mut watches = Watches::default();
    let name = name_of(&mut watches, "bob");
    let mut targets: Vec<Target> = (0..1_000).map(Target::slot).collect();
    targets.push(name);
    watches.add(1, &mut targets.clone(), true);
    watches.add(2, &mut targets, false);
    assert!(!watches.end(1) && watches.is_ending(1));
    assert_eq!((watches.of(1), watches.marks(1)), (0, 0));
    assert!(!watches.has(1, name) && !watches.any(1, |_| true));
    let mut pieces = 0;
    loop {
        watches.check_invariants();
        assert_eq!(watches.mark(3, |conn| assert_eq!(conn, 2)).marks, 1);
        assert!(watches.resolve("bob", 5_000) == (pieces == 0));
        told(&mut watches, 2);
        let (ended, stream) = watches.end_some(300);
        pieces += 1;
        assert!(ended <= 300);
        if stream.is_some() {
            assert_eq!(stream, Some(1));
            break;
        }
    }
    assert_eq!(
        (pieces, watches.len(), watches.has_ending()),
        (4, 1_001, false)
    );
    assert!(watches.end(1), "nothing is left");
    watches.check_invariants();
    assert_eq!(watches.add(1, &mut vec![Target::slot(3)], true), 1);
}

/// For how many entries there is room: names, their index, publishers, words of lists, blocks of
/// chains, streams.
fn room(watches: &Watches) -> [usize; 6] {
    let [_, table, index] = watches.names.sizes();
    let (words, blocks) = (watches.lists.capacity(), watches.watchers.capacity());
    let (slots, streams) = (watches.by_slot.capacity(), watches.follows.capacity());
    [table, index, slots, words, blocks, streams]
}

#[test]
fn names_leave_nothing_behind() {
    let mut watches = Watches::default();
    for round in 0..1_000 {
        let name = name_of(&mut watches, &format!("nobody-{round}"));
        watches.add(0, &mut vec![name], true);
        watches.clear(0);
    }
    assert!(watches.is_empty() && watches.names.sizes()[0] == 0);
    assert!(
        room(&watches).iter().all(|room| *room <= 1_024),
        "{:?}",
        room(&watches)
    );
}

/// 100,000 watches by name and 100,000 by slot, of 100 streams; one of a stream in the middle
/// stays.
#[test]
fn what_a_crowd_took_is_given_back_though_somebody_stays() {
    let mut watches = Watches::default();
    for conn in 0..100 {
        for n in 0..1_000 {
            let name = name_of(&mut watches, &format!("nobody-{conn}-{n}"));
            let mut targets = vec![name, Target::slot(conn * 1_000 + n)];
            assert_eq!(watches.add(conn, &mut targets, false), 2);
        }
    }
    let lone = watches.find_name("nobody-50-777").unwrap();
    watches.mark_where(50, |target| target == lone);
    for conn in (0..100).filter(|conn| *conn != 50) {
        watches.clear(conn);
    }
    watches.check_invariants();
    for n in (0..1_000).filter(|n| *n != 777) {
        let name = watches.find_name(&format!("nobody-50-{n}")).unwrap();
        watches.remove_all(50, &[Target::slot(50_000 + n), name]);
    }
    watches.check_invariants();
    watches.cut_off(51);
    assert_eq!(
        (watches.len(), watches.named_len(), watches.marks(50)),
        (2, 1, 1)
    );
    // As many as an idle table keeps, and as many more as may go before it is worth moving what
    // stays.
    assert!(
        room(&watches).iter().all(|room| *room <= 4_096),
        "{:?}",
        room(&watches)
    );
    let lone = watches.find_name("nobody-50-777").unwrap();
    assert!(watches.has(50, lone) && watches.has(50, Target::slot(50_777)));
    let mut told = Vec::new();
    watches.take_marks(50, 0, |mark| {
        told.push(format!("{:?}", mark.of));
        true
    });
    assert_eq!(
        told,
        ["Name { user: User(\"nobody-50-777\"), answered: false }"]
    );
}

/// A pass over the names meets each that stays, though most go while it is under way.
#[test]
fn a_pass_over_names_misses_none_that_stays() {
    let mut watches = Watches::default();
    for n in 0..10_000 {
        let name = name_of(&mut watches, &format!("{n}"));
        watches.add(n % 10, &mut vec![name], false);
    }
    let mut met = BTreeSet::new();
    let mut meet = |name: User<'_>, _: bool| {
        met.insert(name.as_str().to_owned());
    };
    let next = watches.names_below(usize::MAX, 5_000, &mut meet);
    assert_eq!(next, Some(5_000));
    for conn in 0..9 {
        watches.clear(conn);
    }
    assert_eq!(watches.names.sizes()[0], 1_000);
    let mut next = next;
    while let Some(end) = next {
        next = watches.names_below(end, 100, &mut meet);
    }
    let stay: Vec<String> = (0..1_000).map(|n| format!("{}", n * 10 + 9)).collect();
    assert!(stay.iter().all(|name| met.contains(name)));
}

/// Crowds of names and slots come and go at random, so that what stays is moved again and again.
#[test]
fn what_is_moved_is_what_was_there() {
    const CONNS: u32 = 40;
    let mut random = fastrand::Rng::with_seed(7);
    let (mut watches, mut moves) = (Watches::default(), [0; 2]);
    let mut model: Vec<BTreeSet<Result<u32, String>>> = vec![BTreeSet::new(); CONNS as usize];
    for round in 0..3_000_u32 {
        let conn = random.u32(0..CONNS);
        let list = &mut model[conn as usize];
        let before = [watches.lists.capacity(), watches.names.sizes()[1]];
        let growing = round / 300 % 2 == 0;
        if growing || random.u8(0..8) == 0 {
            let count = if growing { 100 } else { 3 };
            for _ in 0..count {
                let n = random.u32(0..20_000);
                let (target, key) = match random.bool() {
                    true => (name_of(&mut watches, &n.to_string()), Err(n.to_string())),
                    false => (Target::slot(n), Ok(n)),
                };
                let added = watches.add(conn, &mut vec![target], random.bool());
                assert_eq!(added, usize::from(list.insert(key)));
            }
        } else if random.bool() {
            watches.clear(conn);
            list.clear();
            watches.settle_some(random.usize(0..4));
        } else if let Some(Err(name)) = list.iter().next_back().cloned() {
            let resolved = watches.resolve(&name, 1_000_000 + round);
            assert!(resolved);
            for list in model
                .iter_mut()
                .filter(|list| list.contains(&Err(name.clone())))
            {
                list.remove(&Err(name.clone()));
                list.insert(Ok(1_000_000 + round));
            }
        }
        let after = [watches.lists.capacity(), watches.names.sizes()[1]];
        for (moves, (before, after)) in moves.iter_mut().zip(before.iter().zip(&after)) {
            *moves += u32::from(after < before);
        }
        if round % 50 == 0 {
            watches.check_invariants();
            for (conn, list) in (0..).zip(&model) {
                assert_eq!(watches.of(conn), list.len());
                for key in list {
                    let target = match key {
                        Ok(slot) => Target::slot(*slot),
                        Err(name) => watches.find_name(name).expect("it is watched"),
                    };
                    assert!(watches.has(conn, target), "{conn} {key:?}");
                }
            }
        }
    }
    assert!(
        moves.iter().all(|moves| *moves >= 3),
        "seldom moved: {moves:?}"
    );
}

#[test]
fn a_crowd_comes_and_goes() {
    let mut watches = Watches::default();
    for conn in 0..1_000 {
        watches.add(conn, &mut vec![Target::slot(5)], false);
    }
    watches.check_invariants();
    let mut marked = 0;
    assert_eq!(watches.mark(5, |_| marked += 1).marks, 1_000);
    assert_eq!(marked, 1_000);
    for conn in 0..950 {
        watches.clear(conn);
    }
    watches.check_invariants();
    assert_eq!(
        watches.mark(5, |_| ()),
        MarkCount {
            marks: 0,
            coalesced: 50
        }
    );
    for conn in 950..1_000 {
        assert!(watches.remove(conn, Target::slot(5)));
    }
    assert!(!watches.is_watched(5) && watches.is_empty());
}

proptest! {
    #[test]
    fn agrees_with_two_maps(ops in prop::collection::vec((0..5_u8, 0..8_u32, 0..12_u32), 1..300)) {
        let mut watches = Watches::default();
        let mut model: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        let mut marks: BTreeSet<(u32, u32)> = BTreeSet::new();
        for (op, conn, slot) in ops {
            let list = model.entry(conn).or_default();
            match op {
                0 | 1 => {
                    let mut targets = vec![Target::slot(slot), Target::slot(slot + 1)];
                    let added = watches.add(conn, &mut targets, op == 1);
                    let both = [slot, slot + 1].into_iter();
                    let fresh: Vec<u32> = both.filter(|slot| list.insert(*slot)).collect();
                    prop_assert_eq!(added, fresh.len());
                    if op == 1 {
                        marks.extend([(conn, slot), (conn, slot + 1)]);
                    }
                }
                2 => {
                    prop_assert_eq!(watches.remove(conn, Target::slot(slot)), list.remove(&slot));
                    marks.remove(&(conn, slot));
                }
                3 => {
                    watches.mark(slot, |_| ());
                    let watching = model.iter().filter(|(_, list)| list.contains(&slot));
                    marks.extend(watching.map(|(conn, _)| (*conn, slot)));
                }
                _ => {
                    let due = marks.iter().filter(|(other, _)| *other == conn);
                    let due: Vec<u32> = due.map(|(_, slot)| *slot).collect();
                    prop_assert_eq!(told(&mut watches, conn), due);
                    marks.retain(|(other, _)| *other != conn);
                    if slot > 9 {
                        watches.clear(conn);
                        model.remove(&conn);
                    }
                }
            }
            watches.check_invariants();
        }
        for (conn, list) in &model {
            prop_assert_eq!(watches.of(*conn), list.len());
        }
    }
}
