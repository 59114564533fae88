//! Clocks that were ahead, are behind, or were set back.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use greendot::presence::Presence;
use greendot::slot::Slot;
use greendot::status::Status;
use greendot::time::Now;

use crate::{
    FIRST_CELL, OFFLINE_AFTER_MS, START_MS, at, beat, contents, open, options, patch, sweep,
    sweep_at,
};

#[test]
fn a_wall_clock_set_back_while_closed_is_doubted() {
    let dir = tempfile::tempdir().unwrap();
    let (presence, _) = open(dir.path(), 1, 0);
    presence.close(at(50_000)).unwrap();
    drop(presence);
    let (presence, _) = open(dir.path(), 1, 20_000);
    let believed = |ms| presence.resumable(at(ms).unix, at(60_000)).is_ok();
    assert_eq!(
        [19_999, 20_000, 50_000, 50_001].map(believed),
        [true, false, false, true]
    );
}

/// The clock goes back and the process dies before it has seen that: stamps from the future tell.
#[test]
fn a_wall_clock_set_back_unseen_is_doubted() {
    let dir = tempfile::tempdir().unwrap();
    let (presence, _) = open(dir.path(), 1, 0);
    beat(&presence, "ann", 50_000);
    drop(presence);
    let (presence, _) = open(dir.path(), 1, 20_000);
    let believed = |ms| presence.resumable(at(ms).unix, at(90_000)).is_ok();
    assert_eq!(
        [
            19_999,
            20_000,
            50_000 + OFFLINE_AFTER_MS,
            50_001 + OFFLINE_AFTER_MS
        ]
        .map(believed),
        [true, false, false, true]
    );
}

/// Its transitions stay in the files, and are no reason to doubt anew at the next start.
#[test]
fn a_clock_that_was_ahead_is_forgiven_after_a_restart() {
    const YEAR_MS: u64 = 365 * 86_400_000;
    let dir = tempfile::tempdir().unwrap();
    let (presence, _) = open(dir.path(), 1, 0);
    let now = |mono_ms: u64, ms: u64| Now {
        mono: at(mono_ms).mono,
        unix: at(ms).unix,
    };
    presence.note_clock_step(at(10_000).unix, now(10_000, YEAR_MS));
    let ann = beat(&presence, "ann", YEAR_MS);
    assert_eq!(sweep(&presence, YEAR_MS, false).len(), 1);
    presence.note_clock_step(at(YEAR_MS + 5_000).unix, now(15_000, 15_000));
    presence.record_leave(ann, at(15_000).unix, at(15_000));
    assert_eq!(sweep(&presence, 15_000, false).len(), 1);
    assert_eq!(
        presence.state(ann, at(15_000)).since,
        Some(at(YEAR_MS + 1).unix)
    );
    presence.close(at(20_000)).unwrap();
    drop(presence);
    let (presence, _) = open(dir.path(), 1, 30_000);
    let since = presence.state(ann, at(30_000)).since;
    assert_eq!(since, Some(at(YEAR_MS + 1).unix), "it never goes back");
    let believed =
        |ids: [u64; 3]| ids.map(|ms| presence.resumable(at(ms).unix, at(2 * YEAR_MS)).is_ok());
    assert_eq!(believed([9_000, 16_000, 40_000]), [true; 3]);
    assert_eq!(
        believed([YEAR_MS, YEAR_MS + 5_000, YEAR_MS + 5_001]),
        [false, false, true]
    );
}

#[test]
fn a_cell_with_an_impossible_time_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let presence = Arc::new(open(dir.path(), 1, 0).0);
    let slots = ["ann", "bob", "eve"].map(|id| beat(&presence, id, 0));
    let mut writer = presence.write_back(u64::MAX);
    while writer.slice(at(0)).unwrap().cycle_ms.is_none() {}
    drop((writer, presence));
    let [ann, bob, eve] = slots;
    let cell = |slot: Slot| FIRST_CELL + 8 * u64::from(slot.index());
    let impossible = (START_MS + 86_400_001) << 20;
    patch(
        dir.path(),
        "stamps.map",
        cell(ann),
        &impossible.to_le_bytes(),
    );
    patch(
        dir.path(),
        "stamps.map",
        cell(bob),
        &(impossible - (1 << 20)).to_le_bytes(),
    );
    patch(dir.path(), "published.map", cell(eve), &[0xff; 8]);
    let (presence, report) = open(dir.path(), 1, 0);
    assert_eq!((report.users, report.online), (3, 1));
    let state = |slot| presence.state(slot, at(0));
    assert_eq!(
        (state(ann).last_active, state(bob).last_active),
        (None, Some(at(0).unix))
    );
    assert_eq!(
        (state(eve).status.is_online(), state(eve).since),
        (true, Some(at(0).unix))
    );
}

#[test]
fn an_impossible_time_is_not_when_the_power_failed() {
    let dir = tempfile::tempdir().unwrap();
    let presence = open(dir.path(), 1, 0).0;
    let [ann, bob] = ["ann", "bob"].map(|id| beat(&presence, id, 0));
    drop(presence);
    let cell = FIRST_CELL + 8 * u64::from(ann.index());
    patch(dir.path(), "stamps.map", cell, &[0xff; 8]);
    let (presence, report) = open(dir.path(), 2, 50_000);
    assert_eq!((report.power_cut, report.online), (true, 1));
    assert!(presence.state(bob, at(50_000)).status.is_online());
    assert!(presence.resumable(at(51_001).unix, at(60_000)).is_ok());
}

/// A store in which ann has said goodbye, bob was found silent and eve is online; closed.
fn one_of_each(dir: &Path) -> [Slot; 3] {
    let (presence, _) = open(dir, 1, 0);
    let slots = ["ann", "bob", "eve"].map(|id| beat(&presence, id, 0));
    sweep(&presence, 0, false);
    presence.record_leave(slots[0], at(1_000).unix, at(1_000));
    beat(&presence, "eve", 20_000);
    assert_eq!(sweep(&presence, 25_001, false).len(), 2);
    presence.close(at(30_000)).expect("as set up");
    slots
}

/// Without a clock that is kept while the machine is off, a machine starts anywhere.
#[test]
fn a_clock_that_is_behind_takes_no_time_from_anybody() {
    for behind_ms in [3_600_000, 400 * 86_400_000] {
        for lost in [None, Some("published.map")] {
            let behind = |ms| Now {
                mono: at(ms).mono,
                unix: at(ms).unix.minus_ms(behind_ms),
            };
            let dir = tempfile::tempdir().unwrap();
            let [ann, bob, eve] = one_of_each(dir.path());
            if let Some(name) = lost {
                fs::remove_file(dir.path().join(name)).unwrap();
            }
            let stamps = || contents(dir.path())[1][FIRST_CELL as usize..].to_vec();
            let before = stamps();
            let options = options(dir.path(), 1);
            let (presence, report) = Presence::open(&options, behind(40_000)).unwrap();
            assert_eq!(report.online, 1);
            // The headers were written when the store was closed.
            assert_eq!(report.clock_behind_ms, behind_ms - 10_000);
            assert_eq!(sweep_at(&presence, behind(40_000), false), []);
            assert_eq!(sweep_at(&presence, behind(65_000), false), []);
            let times = |stamps: &[u8]| {
                let cells = stamps.chunks(8).map(|cell| cell[1..].to_vec());
                cells.collect::<Vec<_>>()
            };
            assert!(times(&stamps()) == times(&before), "no time was touched");
            let of_the_gone = |stamps: Vec<u8>| stamps[..16].to_vec();
            assert!(of_the_gone(stamps()) == of_the_gone(before));
            // Nobody has heard of eve for as long as a silence takes, whatever the clock says.
            let gone = sweep_at(&presence, behind(65_001), false);
            let told: Vec<_> = gone.iter().map(|t| (t.slot, t.status)).collect();
            assert_eq!(told, [(eve, Status::Offline)]);
            // A new beat counts.
            presence.record_beat(bob, behind(66_000).unix, behind(66_000));
            assert_eq!(sweep_at(&presence, behind(66_000), false).len(), 1);
            let told = |ms| presence.state(ann, behind(ms)).last_active;
            assert_eq!(told(66_000), Some(behind(40_000).unix), "no time to come");
            assert_eq!(told(69_000), told(66_000), "and it stands still");
            drop(presence);

            let (presence, report) = open(dir.path(), 1, 70_000);
            assert_eq!(report.clock_behind_ms, 0);
            let active = [ann, bob, eve].map(|slot| presence.state(slot, at(70_000)).last_active);
            assert_eq!(
                active,
                [at(1_000).unix, behind(66_000).unix, at(20_000).unix].map(Some)
            );
        }
    }
}

/// Set back while the store runs: the same.
#[test]
fn a_clock_that_is_set_back_takes_no_time_from_who_is_offline() {
    let back = |ms| Now {
        mono: at(ms).mono,
        unix: at(ms).unix.minus_ms(3_600_000),
    };
    let dir = tempfile::tempdir().unwrap();
    let [ann, bob, eve] = one_of_each(dir.path());
    let (presence, _) = open(dir.path(), 1, 30_000);
    beat(&presence, "eve", 31_000);
    presence.note_clock_step(at(40_000).unix, back(40_000));
    assert_eq!(sweep_at(&presence, back(40_000), false), []);
    assert_eq!(sweep_at(&presence, back(65_000), false), []);
    let told = |slot, ms| presence.state(slot, back(ms)).last_active;
    for slot in [ann, bob] {
        assert_eq!(told(slot, 64_999), told(slot, 40_000), "it stands still");
    }
    assert_eq!(sweep_at(&presence, back(65_001), false).len(), 1, "eve");
    // And forward again.
    presence.note_clock_step(back(70_000).unix, at(70_000));
    let active = [ann, bob, eve].map(|slot| presence.state(slot, at(70_000)).last_active);
    assert_eq!(
        active,
        [at(1_000).unix, at(0).unix, at(31_000).unix].map(Some)
    );
}

/// Set back by less than a silence, the clock has passed the stamps again before it ends.
#[test]
fn a_small_step_back_makes_no_silence_longer() {
    let back = |ms| Now {
        mono: at(ms).mono,
        unix: at(ms).unix.minus_ms(20_000),
    };
    let dir = tempfile::tempdir().unwrap();
    let (presence, _) = open(dir.path(), 1, 0);
    let ann = beat(&presence, "ann", 0);
    let bob = beat(&presence, "bob", 0);
    sweep(&presence, 0, false);
    presence.note_clock_step(at(100).unix, back(100));
    assert_eq!(sweep_at(&presence, back(100), false), []);
    presence.record_beat(bob, back(10_000).unix, back(10_000));
    assert_eq!(sweep_at(&presence, back(25_100), false), []);
    let gone = sweep_at(&presence, back(25_101), false);
    let told: Vec<_> = gone.iter().map(|t| (t.slot, t.status)).collect();
    assert_eq!(told, [(ann, Status::Offline)]);
    assert_eq!(sweep_at(&presence, back(35_000), false), []);
    assert_eq!(sweep_at(&presence, back(35_001), false).len(), 1);
    assert_eq!(
        presence.state(ann, at(40_000)).last_active,
        Some(at(0).unix)
    );
}
