//! Beats, leaves and sweeps against exact outcomes. The files' faults are in tests/store.rs.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::store::cells::StampFlags;

const OFFLINE_AFTER_MS: u64 = 25_000;
const START_MS: u64 = 1_764_009_600_000;

/// A store in a folder of its own, with one shard's sweep.
struct World {
    presence: Presence,
    sweep: Sweep,
    hold: bool,
    _dir: tempfile::TempDir,
}

/// So many ms after the start, by both clocks.
pub(super) fn at(ms: u64) -> Now {
    Now {
        mono: Mono::from_micros(1_000_000_000 + ms * 1_000),
        unix: Unix::from_ms(START_MS + ms),
    }
}

fn user(id: &str) -> User<'_> {
    User::parse(id.as_bytes()).unwrap()
}

fn online(slot: Slot, first: bool) -> Transition {
    Transition {
        slot,
        status: Status::Online,
        first,
    }
}

fn offline(slot: Slot) -> Transition {
    Transition {
        slot,
        status: Status::Offline,
        first: false,
    }
}

impl World {
    fn new() -> World {
        World::with(1 << 20, 1)
    }

    fn with(users_max: u32, shards: u16) -> World {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            dir: dir.path().to_owned(),
            users_max,
            offline_after_ms: OFFLINE_AFTER_MS,
            restart_grace_ms: u64::MAX,
            shards,
            memory: crate::presence::MemoryChoice::Off,
            boot_id: [1; 16],
        };
        let (presence, report) = Presence::open(&options, at(0)).unwrap();
        assert_eq!(
            report,
            OpenReport {
                clean: true,
                ..OpenReport::default()
            }
        );
        World {
            presence,
            sweep: Sweep::new(0, shards),
            hold: false,
            _dir: dir,
        }
    }

    fn slot(&self, id: &str) -> Slot {
        self.presence.intern(user(id)).unwrap()
    }

    fn context(&self, now: Now) -> SweepContext {
        SweepContext {
            now,
            offline_after_ms: OFFLINE_AFTER_MS,
            hold_expiries: self.hold,
        }
    }

    fn beat(&self, slot: Slot, ms: u64) -> BeatOutcome {
        self.presence.record_beat(slot, at(ms).unix, at(ms))
    }

    fn leave(&self, slot: Slot, ms: u64) -> LeaveOutcome {
        self.presence.record_leave(slot, at(ms).unix, at(ms))
    }

    /// A whole cycle.
    fn swept(&mut self, now: Now) -> Vec<Transition> {
        let context = self.context(now);
        let mut out = Vec::new();
        self.sweep.begin();
        assert!(
            self.sweep
                .slice(&self.presence, context, u32::MAX, usize::MAX, &mut out)
        );
        self.presence.check_invariants();
        out
    }

    fn looked(&mut self, slot: Slot, ms: u64) -> Vec<Transition> {
        let context = self.context(at(ms));
        let mut out = Vec::new();
        self.sweep.look(&self.presence, context, slot, &mut out);
        out
    }

    fn state(&self, slot: Slot, ms: u64) -> (bool, Option<u64>, Option<u64>) {
        let state = self.presence.state(slot, at(ms));
        let since_start = |time: Option<Unix>| time.map(|unix| unix.ms() - START_MS);
        (
            state.status.is_online(),
            since_start(state.since),
            since_start(state.last_active),
        )
    }
}

/// The latest time received and the latest time sent, whichever beat brought it.
#[test]
fn a_stamp_keeps_when_the_latest_beat_was_sent() {
    let world = World::new();
    let ann = world.slot("ann");
    let times = |world: &World| {
        let stamp = world.presence.stamps.cell(ann).load(Ordering::Relaxed);
        (stamp.ms() - START_MS, stamp.sent().ms() - START_MS)
    };
    let beat = |world: &World, sent_ms: u64, ms| {
        let sent_at = Unix::from_ms(START_MS + sent_ms);
        world.presence.record_beat(ann, sent_at, at(ms));
    };
    beat(&world, 1_600, 2_000);
    assert_eq!(times(&world), (2_000, 1_600));
    beat(&world, 800, 2_003);
    assert_eq!(times(&world), (2_003, 1_600), "an older one that came late");
    beat(&world, 9_999, 2_010);
    assert_eq!(
        times(&world),
        (2_010, 2_000),
        "sent by a clock that is ahead"
    );
    world
        .presence
        .record_leave(ann, Unix::from_ms(START_MS + 2_020), at(2_100));
    assert_eq!(times(&world), (2_100, 2_016), "a goodbye was sent too");
}

#[test]
fn a_user_has_one_slot_whatever_its_length() {
    let world = World::new();
    let longest = "x".repeat(128);
    for (index, id) in ["a", longest.as_str(), "\u{1F7E2}é", "a/b", "a%2Fb", "a b+c"]
        .iter()
        .enumerate()
    {
        assert_eq!(world.presence.lookup(user(id)), None);
        assert_eq!(world.presence.intern(user(id)), Ok(Slot::new(index as u32)));
        assert_eq!(world.presence.intern(user(id)), Ok(Slot::new(index as u32)));
        assert_eq!(
            world.presence.lookup(user(id)),
            Some(Slot::new(index as u32))
        );
        assert_eq!(world.presence.user(Slot::new(index as u32)), user(id));
    }
    assert_eq!(world.presence.users(), 6);
    assert_eq!(world.presence.lookup(user("b")), None);
    assert_eq!(
        world.presence.users(),
        6,
        "a question leaves nothing behind"
    );
}

#[test]
fn growth_keeps_every_user_and_users_max_is_exact() {
    let users_max = 70_000;
    let world = World::with(users_max, 1);
    for n in 0..users_max {
        assert_eq!(
            world.presence.intern(user(&format!("user-{n}"))),
            Ok(Slot::new(n))
        );
    }
    assert_eq!(
        world.presence.intern(user("one more")),
        Err(InternFault::Full)
    );
    for n in 0..users_max {
        let id = format!("user-{n}");
        assert_eq!(world.presence.lookup(user(&id)), Some(Slot::new(n)));
        assert_eq!(world.presence.user(Slot::new(n)).as_str(), id);
    }
    assert_eq!(
        world.beat(Slot::new(users_max - 1), 5),
        BeatOutcome::StoredOffline
    );
    assert_eq!(
        world.state(Slot::new(users_max - 1), 5),
        (false, None, Some(5))
    );
}

#[test]
fn threads_that_intern_the_same_users_agree() {
    const THREADS: usize = 8;
    const USERS: usize = 3_000;
    let world = World::new();
    let barrier = Barrier::new(THREADS);
    let slots: Vec<Vec<Slot>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (presence, barrier) = (&world.presence, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    let mut slots = vec![Slot::new(0); USERS];
                    for step in 0..USERS {
                        // Each in an order of its own, so that they meet.
                        let n = (step * 7 + thread * 11) % USERS;
                        let id = format!("user-{n}");
                        slots[n] = presence.intern(user(&id)).unwrap();
                        assert_eq!(presence.lookup(user(&id)), Some(slots[n]));
                        assert_eq!(presence.user(slots[n]).as_str(), id);
                    }
                    slots
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(world.presence.users() as usize, USERS);
    assert!(slots.iter().all(|of_thread| *of_thread == slots[0]));
    let mut indexes: Vec<u32> = slots[0].iter().map(|slot| slot.index()).collect();
    indexes.sort_unstable();
    assert_eq!(indexes, (0..USERS as u32).collect::<Vec<_>>());
}

#[test]
fn silence_of_exactly_offline_after_is_fresh() {
    let mut world = World::new();
    let ann = world.slot("ann");
    assert_eq!(world.beat(ann, 1_000), BeatOutcome::StoredOffline);
    assert_eq!(world.swept(at(1_000)), [online(ann, true)]);
    assert_eq!(world.beat(ann, 2_000), BeatOutcome::Stored);
    assert_eq!(world.swept(at(27_000)), []);
    assert_eq!(world.looked(ann, 27_000), []);
    assert_eq!(world.swept(at(27_001)), [offline(ann)]);
    assert_eq!(world.state(ann, 27_001), (false, Some(27_001), Some(2_000)));
    assert_eq!(world.swept(at(27_002)), []);
    assert_eq!(world.beat(ann, 30_000), BeatOutcome::StoredOffline);
    assert_eq!(world.looked(ann, 30_000), [online(ann, false)]);
    assert_eq!(world.looked(ann, 30_000), []);
}

#[test]
fn the_last_slot_of_a_chunk_and_the_first_of_the_next_are_swept() {
    let mut world = World::new();
    for n in 0..=CHUNK_SLOTS {
        world.slot(&format!("user-{n}"));
    }
    let (last, first) = (Slot::new(CHUNK_SLOTS - 1), Slot::new(CHUNK_SLOTS));
    world.beat(last, 0);
    world.beat(first, 0);
    assert_eq!(world.presence.online(), 0);
    assert_eq!(
        world.swept(at(1)),
        [online(last, true), online(first, true)]
    );
    assert_eq!(world.presence.online(), 2);
    assert_eq!(world.swept(at(25_001)), [offline(last), offline(first)]);
    assert_eq!(world.presence.online(), 0);
}

#[test]
fn shards_sweep_their_own_chunks_and_no_others() {
    let mut world = World::with(1 << 20, 3);
    for n in 0..5 * CHUNK_SLOTS {
        let slot = world.slot(&format!("user-{n}"));
        if n % CHUNK_SLOTS == 77 {
            world.beat(slot, 0);
        }
    }
    for (shard, chunks) in [(0, vec![0, 3]), (1, vec![1, 4]), (2, vec![2])] {
        world.sweep = Sweep::new(shard, 3);
        let expected: Vec<_> = chunks
            .iter()
            .map(|chunk| online(Slot::new(chunk * CHUNK_SLOTS + 77), true))
            .collect();
        assert_eq!(world.swept(at(1)), expected, "shard {shard}");
    }
}

#[test]
fn a_slice_keeps_to_both_budgets_and_loses_nothing() {
    let mut world = World::new();
    let slots: Vec<Slot> = (0..3 * CHUNK_SLOTS)
        .map(|n| world.slot(&format!("user-{n}")))
        .collect();
    for slot in &slots {
        world.beat(*slot, 0);
    }
    let context = world.context(at(1));
    let mut out = Vec::new();
    world.sweep.begin();
    assert!(
        !world
            .sweep
            .slice(&world.presence, context, 64, usize::MAX, &mut out)
    );
    assert_eq!(out.len(), 64);
    assert!(
        !world
            .sweep
            .slice(&world.presence, context, u32::MAX, 10, &mut out)
    );
    assert_eq!(out.len(), 74);
    assert!(
        !world
            .sweep
            .slice(&world.presence, context, u32::MAX, 0, &mut out)
    );
    assert_eq!(out.len(), 74);
    world.sweep.begin();
    assert!(
        world
            .sweep
            .slice(&world.presence, context, u32::MAX, usize::MAX, &mut out)
    );
    assert_eq!(
        out,
        slots
            .iter()
            .map(|slot| online(*slot, true))
            .collect::<Vec<_>>()
    );
    // The very first word can be where a slice is full.
    let mut world = World::new();
    let ann = world.slot("ann");
    world.beat(ann, 0);
    let mut out = Vec::new();
    world.sweep.begin();
    assert!(
        !world
            .sweep
            .slice(&world.presence, context, u32::MAX, 0, &mut out)
    );
    assert!(
        world
            .sweep
            .slice(&world.presence, context, u32::MAX, 1, &mut out)
    );
    assert_eq!(out, [online(ann, true)]);
}

#[test]
fn skipped_chunks_count_against_the_budget() {
    let mut world = World::new();
    for n in 0..10 * CHUNK_SLOTS {
        world.slot(&format!("user-{n}"));
    }
    assert_eq!(world.swept(at(0)), []);
    let context = world.context(at(1));
    let mut out = Vec::new();
    world.sweep.begin();
    assert!(
        !world
            .sweep
            .slice(&world.presence, context, 9, usize::MAX, &mut out)
    );
    assert!(
        world
            .sweep
            .slice(&world.presence, context, 9, usize::MAX, &mut out)
    );
}

#[test]
fn held_expiries_spare_the_silent_but_not_those_who_left() {
    let mut world = World::new();
    let (ann, bob, eve) = (world.slot("ann"), world.slot("bob"), world.slot("eve"));
    world.beat(ann, 0);
    world.beat(bob, 0);
    world.swept(at(0));
    assert_eq!(world.leave(bob, 30_000), LeaveOutcome::Left);
    world.beat(eve, 60_000);
    world.hold = true;
    assert_eq!(world.swept(at(60_000)), [offline(bob), online(eve, true)]);
    assert_eq!(world.looked(ann, 60_000), []);
    world.hold = false;
    assert_eq!(world.swept(at(60_001)), [offline(ann)]);
}

#[test]
fn a_stalled_or_stepped_peer_holds_expiries() {
    let mut world = World::with(1 << 20, 2);
    let ann = world.slot("ann");
    world.beat(ann, 0);
    world.presence.note_turn(0, at(0));
    world.presence.note_turn(1, at(0));
    assert_eq!(world.swept(at(0)), [online(ann, true)]);
    world.presence.note_turn(0, at(26_000));
    assert_eq!(world.swept(at(26_000)), [], "shard 1 may hold ann's beats");
    assert_eq!(world.looked(ann, 26_000), []);
    let stepped = Now {
        mono: at(26_001).mono,
        unix: at(26_001).unix.minus_ms(3_600_000),
    };
    world.presence.note_turn(1, stepped);
    assert_eq!(
        world.swept(at(26_002)),
        [],
        "shard 1 stamps by another clock"
    );
    world.presence.note_turn(1, at(26_003));
    world.presence.hold_expiries_until(at(27_000).mono);
    assert_eq!(world.swept(at(26_999)), []);
    assert_eq!(world.swept(at(27_000)), [offline(ann)]);
}

#[test]
fn since_strictly_increases_whatever_the_clock_does() {
    let mut world = World::new();
    let ann = world.slot("ann");
    world.beat(ann, 5_000);
    world.looked(ann, 5_000);
    world.leave(ann, 5_000);
    assert_eq!(world.looked(ann, 5_000), [offline(ann)]);
    assert_eq!(world.state(ann, 5_000), (false, Some(5_001), Some(5_001)));
    // The wall clock goes back.
    world.presence.record_beat(ann, at(9_000).unix, at(4_000));
    assert_eq!(world.looked(ann, 4_000), [online(ann, false)]);
    assert_eq!(world.state(ann, 4_000).1, Some(5_002));
}

#[test]
fn a_stamp_ahead_of_the_clock_is_believed_for_as_long_as_a_silence_and_stays() {
    let mut world = World::new();
    let (ann, bob) = (world.slot("ann"), world.slot("bob"));
    world.beat(ann, 100_000);
    world.beat(bob, 100_000);
    assert_eq!(
        world.swept(at(100_000)),
        [online(ann, true), online(bob, true)]
    );
    // A step back by 90 s: a beat is stored as of now, and without one the stamp says that the
    // clock is behind.
    assert_eq!(world.state(ann, 10_000).2, Some(10_000));
    assert_eq!(world.beat(ann, 10_000), BeatOutcome::Stored);
    assert_eq!(world.state(ann, 200_000).2, Some(10_000));
    assert_eq!(world.swept(at(10_000)), []);
    assert_eq!(world.swept(at(34_999)), []);
    let told = [10_000, 34_999].map(|ms| world.state(bob, ms).2);
    assert_eq!(
        told,
        [Some(10_000); 2],
        "no time to come, and none that moves"
    );
    assert_eq!(world.swept(at(35_001)), [offline(ann), offline(bob)]);
    assert_eq!(world.state(bob, 200_000).2, Some(100_000), "it is not lost");
    // Less than a second ahead is another shard's turn, and stays.
    world.beat(ann, 50_000);
    world.beat(ann, 49_000);
    assert_eq!(world.state(ann, 200_000).2, Some(50_000));
}

/// Also in a chunk with nobody online, and whichever shard sees the step first.
#[test]
fn who_is_offline_when_the_clock_is_set_back_keeps_the_time() {
    let mut world = World::with(1 << 20, 2);
    let ann = world.slot("ann");
    world.presence.note_turn(0, at(100_000));
    world.presence.note_turn(1, at(100_000));
    world.beat(ann, 100_000);
    world.swept(at(99_999));
    world.leave(ann, 100_000);
    assert_eq!(world.swept(at(100_000)), [offline(ann)]);
    assert_eq!(world.swept(at(100_000)), []);
    let stepped = |mono_ms, unix_ms| Now {
        mono: at(mono_ms).mono,
        unix: at(unix_ms).unix,
    };
    world
        .presence
        .note_clock_step(at(100_001).unix, stepped(100_001, 10_000));
    world.presence.note_turn(0, stepped(100_001, 10_000));
    assert_eq!(world.swept(stepped(100_001, 10_000)), []);
    assert_eq!(
        world.state(ann, 200_000).2,
        Some(100_000),
        "the other shard may still stamp so"
    );
    world.presence.note_turn(1, stepped(100_002, 10_001));
    world
        .presence
        .note_clock_step(at(100_002).unix, stepped(100_002, 10_001));
    assert_eq!(world.swept(stepped(100_003, 10_002)), []);
    let told = [10_002, 90_000].map(|ms| world.state(ann, ms).2);
    assert_eq!(
        told,
        [Some(10_000); 2],
        "no time to come, and none that moves"
    );
    assert_eq!(world.state(ann, 200_000).2, Some(100_000), "it is not lost");
}

#[test]
fn a_goodbye_stands_against_older_beats_only() {
    let mut world = World::new();
    let ann = world.slot("ann");
    world.beat(ann, 1_000);
    world.looked(ann, 1_000);
    assert_eq!(
        world.presence.record_leave(ann, at(2_000).unix, at(2_100)),
        LeaveOutcome::Left
    );
    assert_eq!(world.looked(ann, 2_100), [offline(ann)]);
    assert_eq!(
        world.state(ann, 2_100),
        (false, Some(2_100), Some(2_100)),
        "a goodbye is a sign of life"
    );
    for late_ms in [2_200, 10_000, 32_000] {
        assert_eq!(
            world.presence.record_beat(ann, at(1_999).unix, at(late_ms)),
            BeatOutcome::BeforeLeave
        );
        assert_eq!(
            world
                .presence
                .record_leave(ann, at(2_000).unix, at(late_ms)),
            LeaveOutcome::Ignored
        );
    }
    assert_eq!(world.swept(at(32_000)), []);
    assert_eq!(
        world.presence.record_beat(ann, at(2_016).unix, at(2_200)),
        BeatOutcome::StoredOffline
    );
    assert_eq!(world.looked(ann, 2_200), [online(ann, false)]);
    assert_eq!(
        world.presence.record_beat(ann, at(2_216).unix, at(2_216)),
        BeatOutcome::Stored
    );
    // The goodbye comes again, and one from before it: both are older than the beat that undid it.
    assert_eq!(
        world.presence.record_leave(ann, at(2_000).unix, at(2_300)),
        LeaveOutcome::Ignored
    );
    assert_eq!(
        world.presence.record_leave(ann, at(1_500).unix, at(2_300)),
        LeaveOutcome::Ignored
    );
    assert_eq!(world.looked(ann, 2_300), []);
    assert_eq!(
        world.presence.record_leave(ann, at(3_000).unix, at(3_000)),
        LeaveOutcome::Left
    );
    assert_eq!(world.looked(ann, 3_000), [offline(ann)]);
    // A newer goodbye while LEFT raises the bar.
    assert_eq!(
        world.presence.record_leave(ann, at(4_000).unix, at(4_000)),
        LeaveOutcome::Ignored
    );
    assert_eq!(
        world.presence.record_beat(ann, at(3_500).unix, at(4_001)),
        BeatOutcome::BeforeLeave
    );
}

/// Of different sockets the later sent counts, whichever arrives first and however late; within a
/// step of 16 ms the later to arrive.
#[test]
fn a_goodbye_sent_before_an_accepted_beat_does_not_undo_it() {
    let world = World::new();
    let ann = world.slot("ann");
    let leave = |sent_ms, ms| {
        let sent_at = at(sent_ms).unix;
        world.presence.record_leave(ann, sent_at, at(ms))
    };
    world.presence.record_beat(ann, at(2_000).unix, at(2_010));
    assert_eq!(leave(1_950, 2_012), LeaveOutcome::Ignored);
    assert_eq!(leave(1_999, 30_000), LeaveOutcome::Ignored, "much later");
    // Another beat moves the time received on, and not what is known to be sent.
    world.presence.record_beat(ann, at(1_000).unix, at(30_001));
    assert_eq!(leave(1_999, 30_002), LeaveOutcome::Ignored);
    assert_eq!(leave(2_000, 30_003), LeaveOutcome::Left, "the same step");
    let beat = |sent_ms, ms| world.presence.record_beat(ann, at(sent_ms).unix, at(ms));
    assert_eq!(beat(1_999, 30_004), BeatOutcome::BeforeLeave);
    assert_eq!(beat(2_015, 30_004), BeatOutcome::StoredOffline);
}

/// What others are told of once it is published.
fn stamp_of(presence: &Presence, slot: Slot) -> Stamp {
    presence.stamps.cell(slot).load(Ordering::Relaxed)
}

/// A goodbye that was put off is taken back by any beat, in its own moment too; and one that was is
/// not carried out in place of a later one.
#[test]
fn a_beat_takes_back_a_goodbye_that_was_put_off() {
    let world = World::new();
    let ann = world.slot("ann");
    let presence = &world.presence;
    let given = |ms| presence.put_leave_off(ann, at(ms));
    let due = |given_at| presence.record_leave_of(ann, given_at, at(9_000).unix);
    world.beat(ann, 1_000);
    let first = given(1_000);
    world.beat(ann, 1_000);
    assert_eq!(due(first), LeaveOutcome::Ignored);
    let second = given(2_000);
    presence.record_beat(ann, at(500).unix, at(2_500));
    let third = given(3_000);
    assert_eq!(due(second), LeaveOutcome::Ignored);
    assert_eq!(due(third), LeaveOutcome::Left);
    let given_at = stamp_of(presence, ann).at();
    assert_eq!(given_at, Some(at(3_000).unix), "when it was given");
    assert_eq!(due(third), LeaveOutcome::Ignored);
    // Another shard's turn began a little later than this one's.
    world.beat(ann, 10_005);
    let given_at = given(10_000);
    assert_eq!(due(given_at), LeaveOutcome::Left);
}

/// The clock was set back by hours: what it says from then on is what counts.
#[test]
fn a_goodbye_that_is_put_off_behind_a_stamp_of_another_clock_waits_for_beats_as_ever() {
    let world = World::new();
    let presence = &world.presence;
    let [ann, bob] = ["ann", "bob"].map(|id| world.slot(id));
    for slot in [ann, bob] {
        world.beat(slot, 10_000_000);
    }
    let given = |slot, ms| presence.put_leave_off(slot, at(ms));
    let due = |slot, given_at, ms| presence.record_leave_of(slot, given_at, at(ms).unix);
    // Its mail is late: the one that a beat took back must not pass for it.
    let taken_back = given(ann, 10_000);
    world.beat(ann, 10_500);
    let later = given(ann, 10_600);
    assert_eq!(due(ann, taken_back, 12_000), LeaveOutcome::Ignored);
    assert_eq!(due(ann, later, 12_600), LeaveOutcome::Left);
    // No beat has come.
    let given_at = given(bob, 10_000);
    assert_eq!(due(bob, given_at, 12_000), LeaveOutcome::Left);
    let dated = [ann, bob].map(|slot| stamp_of(presence, slot).ms());
    assert_eq!(dated, [10_600, 10_000].map(|ms| at(ms).unix.ms()));
}

/// Of one that real-time nodes were asked about first: the clock was set back, by much or little.
#[test]
fn a_goodbye_that_waits_behind_a_stamp_of_another_clock_counts_unless_a_beat_has_come() {
    for ahead_ms in [4_000, 10_000_000] {
        let world = World::new();
        let presence = &world.presence;
        let [ann, bob] = ["ann", "bob"].map(|id| world.slot(id));
        for slot in [ann, bob] {
            world.beat(slot, 10_000 + ahead_ms);
        }
        let came_at = [ann, bob].map(|slot| presence.put_leave_off(slot, at(10_000)));
        assert_eq!(came_at, [at(10_000).unix; 2]);
        world.beat(ann, 10_500);
        let since = |slot| {
            let now = at(12_000).unix;
            presence.record_leave_since(slot, at(9_990).unix, at(10_000).unix, now)
        };
        assert_eq!(since(ann), LeaveOutcome::Ignored, "{ahead_ms}");
        assert_eq!(since(bob), LeaveOutcome::Left, "{ahead_ms}");
        assert_eq!(stamp_of(presence, bob).at(), Some(at(10_000).unix));
    }
}

/// A device whose clock is ahead says goodbye: another's beats count from that moment on.
#[test]
fn a_fast_clock_hurts_nobody_else() {
    for ahead_ms in [100, 20_000, 60_000] {
        let world = World::new();
        let ann = world.slot("ann");
        world.beat(ann, 1_000);
        let ahead = at(5_000 + ahead_ms).unix;
        assert_eq!(
            world.presence.record_leave(ann, ahead, at(5_000)),
            LeaveOutcome::Left
        );
        assert_eq!(world.beat(ann, 4_991), BeatOutcome::BeforeLeave);
        assert_eq!(world.beat(ann, 5_000), BeatOutcome::StoredOffline);
        // And its beats do not keep another's goodbye from counting.
        let ahead = at(6_000 + ahead_ms).unix;
        world.presence.record_beat(ann, ahead, at(6_000));
        assert_eq!(world.leave(ann, 6_000), LeaveOutcome::Left);
    }
}

/// The price of that: a device that is slow by 3 s is taken for offline for 3 s after another's
/// goodbye.
#[test]
fn a_slow_device_is_offline_for_as_long_as_it_is_slow_after_anothers_goodbye() {
    let world = World::new();
    let ann = world.slot("ann");
    let slow = |ms: u64| world.presence.record_beat(ann, at(ms - 3_000).unix, at(ms));
    slow(9_000);
    world.leave(ann, 10_000);
    assert_eq!(slow(12_990), BeatOutcome::BeforeLeave);
    assert_eq!(slow(13_000), BeatOutcome::StoredOffline);
}

#[test]
fn what_comes_over_a_connection_always_counts() {
    let world = World::new();
    let ann = world.slot("ann");
    let (presence, latest) = (&world.presence, Unix::LATEST);
    presence.record_beat(ann, at(9_000).unix, at(1_000));
    // Another shard's turn began a little earlier.
    for (ms, other_ms) in [(1_000, 990), (20_000, 19_990)] {
        presence.record_leave(ann, at(60_000).unix, at(ms));
        let outcome = presence.record_beat(ann, latest, at(other_ms));
        assert_eq!(outcome, BeatOutcome::StoredOffline);
        let outcome = presence.record_leave(ann, latest, at(other_ms));
        assert_eq!(outcome, LeaveOutcome::Left);
    }
}

#[test]
fn a_backward_step_refuses_no_honest_beat_for_long() {
    let world = World::new();
    let ann = world.slot("ann");
    world.beat(ann, 3_600_000);
    world.leave(ann, 3_600_000);
    assert_eq!(world.beat(ann, 1_000), BeatOutcome::StoredOffline);
}

#[test]
fn a_leave_of_a_slot_that_never_beat_has_no_last_activity() {
    let mut world = World::new();
    let ann = world.slot("ann");
    assert_eq!(world.leave(ann, 1_000), LeaveOutcome::Left);
    assert_eq!(world.looked(ann, 1_000), []);
    assert_eq!(world.state(ann, 1_000), (false, None, None));
    assert_eq!(world.beat(ann, 1_001), BeatOutcome::StoredOffline);
}

#[test]
fn a_batch_is_told_in_order_and_makes_slots() {
    let world = World::new();
    let ids: Vec<String> = (0..100).map(|n| format!("user-{n}")).collect();
    for id in ids.iter().step_by(2) {
        world.slot(id);
    }
    world.beat(world.slot("user-4"), 20);
    world.leave(world.slot("user-4"), 20);
    let mut beats: Vec<(User<'_>, Unix)> = ids.iter().map(|id| (user(id), at(10).unix)).collect();
    beats.push((user("user-0"), at(10).unix));
    let mut told = Vec::new();
    world
        .presence
        .record_beats(&beats, at(10), &mut |i, outcome| {
            told.push((i, outcome.unwrap()))
        });
    for (i, (index, (slot, outcome))) in told.iter().enumerate() {
        assert_eq!(*index, i);
        assert_eq!(world.presence.user(*slot), beats[i].0);
        let expected = if i == 4 {
            BeatOutcome::BeforeLeave
        } else {
            BeatOutcome::StoredOffline
        };
        assert_eq!(*outcome, expected);
    }
    assert_eq!((told.len(), world.presence.users()), (101, 100));
    assert_eq!(told[0].1.0, told[100].1.0);
}

#[test]
fn a_full_store_still_takes_the_beats_of_those_it_knows() {
    let world = World::with(1, 1);
    let mut told = Vec::new();
    world.presence.record_beats(
        &["ann", "bob", "ann"].map(|id| (user(id), at(1).unix)),
        at(1),
        &mut |_, outcome| told.push(outcome),
    );
    let ann = Ok((Slot::new(0), BeatOutcome::StoredOffline));
    let full = Err(BeatFault::Intern(InternFault::Full));
    assert_eq!(told, [ann, full, ann]);
}

/// Beats older than the goodbye hammer a slot from several threads while it leaves: none may undo
/// it.
#[test]
fn older_beats_racing_a_goodbye_never_undo_it() {
    let mut world = World::new();
    let ann = world.slot("ann");
    world.beat(ann, 0);
    // A thread that is not run for long has an old time. One older than a second is taken for a
    // step back of the clock, so all begin anew before so many rounds are over.
    for batch in 0..40 {
        race(&world.presence, ann, 1 + 50 * batch..=50 * (batch + 1));
    }
    world.swept(at(32_000));
}

/// Ends the threads that look at it, also when a check fails: they would be waited for.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn race(presence: &Presence, ann: Slot, rounds: std::ops::RangeInclusive<u64>) {
    let stop = AtomicBool::new(false);
    let clock_ms = AtomicU64::new(16 * rounds.start());
    std::thread::scope(|scope| {
        let _stops = OnDrop(&stop);
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let now = at(clock_ms.load(Ordering::Relaxed));
                    presence.record_beat(ann, at(0).unix, now);
                }
            });
        }
        for round in rounds {
            let now = at(16 * round);
            clock_ms.store(16 * round, Ordering::Relaxed);
            assert_eq!(
                presence.record_leave(ann, now.unix, now),
                LeaveOutcome::Left
            );
            for _ in 0..20 {
                let stamp = presence.stamps.cell(ann).load(Ordering::SeqCst);
                assert!(stamp.has(StampFlags::LEFT), "undone in round {round}");
            }
            // Sent as late as the goodbye, and behind it: this one does undo it.
            assert_ne!(
                presence.record_beat(ann, now.unix, now),
                BeatOutcome::BeforeLeave
            );
        }
    });
}

/// Two shards record, one sweeps: when all is quiet, one more sweep makes published and stamps
/// agree.
#[test]
fn beats_that_cross_sweeps_are_healed_by_the_next() {
    let mut world = World::new();
    let slots: Vec<Slot> = (0..200).map(|n| world.slot(&format!("user-{n}"))).collect();
    let World {
        presence, sweep, ..
    } = &mut world;
    let context = |ms| SweepContext {
        now: at(ms),
        offline_after_ms: 10,
        hold_expiries: false,
    };
    let mut out = Vec::new();
    let swept_ms = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..2_u64 {
            let (presence, slots, swept_ms) = (&*presence, &slots, &swept_ms);
            scope.spawn(move || {
                for ms in 0..2_000 {
                    // Shards whose clocks are a second apart expect another's step.
                    while ms > swept_ms.load(Ordering::Relaxed) + 500 {
                        std::thread::yield_now();
                    }
                    let slot = slots[(ms * 37 + thread * 13) as usize % slots.len()];
                    presence.record_beat(slot, at(ms).unix, at(ms));
                }
            });
        }
        for ms in (0..2_000).step_by(5) {
            swept_ms.store(ms, Ordering::Relaxed);
            sweep.begin();
            sweep.slice(presence, context(ms), u32::MAX, usize::MAX, &mut out);
        }
    });
    sweep.begin();
    sweep.slice(presence, context(2_000), u32::MAX, usize::MAX, &mut out);
    presence.check_invariants();
    for slot in &slots {
        let stamp = presence.stamps.cell(*slot).load(Ordering::SeqCst);
        assert_eq!(
            presence.online.has(*slot),
            stamp.ms() >= START_MS + 1_990,
            "{slot:?}"
        );
    }
    // Each slot's transitions alternate, beginning with online.
    for slot in &slots {
        for (n, transition) in out
            .iter()
            .filter(|transition| transition.slot == *slot)
            .enumerate()
        {
            assert_eq!(
                (transition.status.is_online(), transition.first),
                (n % 2 == 0, n == 0)
            );
        }
    }
}

/// One beat for each chunk, of a slot made while its owner sweeps: the chunk's flag is all that
/// tells of it.
#[test]
fn a_first_beat_that_crosses_a_sweep_is_not_passed_over() {
    let mut world = World::new();
    let World {
        presence, sweep, ..
    } = &mut world;
    let stop = AtomicBool::new(false);
    let mut out = Vec::new();
    let context = SweepContext {
        now: at(1),
        offline_after_ms: OFFLINE_AFTER_MS,
        hold_expiries: false,
    };
    std::thread::scope(|scope| {
        let (presence, stop) = (&*presence, &stop);
        scope.spawn(move || {
            for n in 0..100 * CHUNK_SLOTS {
                let slot = presence.intern(user(&n.to_string())).unwrap();
                if n % CHUNK_SLOTS == CHUNK_SLOTS / 2 {
                    presence.record_beat(slot, at(1).unix, at(1));
                }
            }
            stop.store(true, Ordering::Release);
        });
        while !stop.load(Ordering::Acquire) {
            sweep.begin();
            sweep.slice(presence, context, u32::MAX, usize::MAX, &mut out);
        }
    });
    sweep.begin();
    sweep.slice(presence, context, u32::MAX, usize::MAX, &mut out);
    let mut slots: Vec<u32> = out
        .iter()
        .map(|transition| transition.slot.index())
        .collect();
    slots.sort_unstable();
    let beaten: Vec<u32> = (0..100)
        .map(|chunk| chunk * CHUNK_SLOTS + CHUNK_SLOTS / 2)
        .collect();
    assert_eq!(slots, beaten);
}

#[test]
#[should_panic = "index out of bounds"]
fn a_slot_beyond_the_files_is_a_crash_not_a_stray_write() {
    let world = World::new();
    world.beat(Slot::new(1 << 19), 0);
}

#[test]
fn ids_are_resumable_but_for_a_step_back() {
    let world = World::new();
    let believed = |ms: u64| world.presence.resumable(at(ms).unix, at(100_000)).is_ok();
    assert!(believed(0) && believed(100_000) && believed(101_000));
    assert!(
        !believed(101_001)
            && world
                .presence
                .resumable(at(0).unix.minus_ms(1), at(100_000))
                .is_err()
    );
    let stepped = |mono_ms, from_ms, to_ms| {
        let (mono, unix) = (at(mono_ms).mono, at(to_ms).unix);
        world
            .presence
            .note_clock_step(at(from_ms).unix, Now { mono, unix });
    };
    stepped(10_000, 10_000, 50_000);
    assert!(believed(20_000), "a step forward doubts nothing");
    stepped(20_000, 60_000, 10_000);
    // What was lived through before and after that step, and a second.
    assert!(believed(9_999) && !believed(10_000) && !believed(11_000) && believed(11_001));
    assert!(believed(48_999) && !believed(49_000) && !believed(60_000) && believed(60_001));
}
