//! The store's files through faults: locks, foreign and damaged files, full disks, restarts, power
//! cuts.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use greendot::presence::{
    BeatOutcome, Flusher, InternFault, OpenReport, Presence, StoreOptions, Sweep, SweepContext,
    Transition,
};
use greendot::slot::Slot;
use greendot::status::Status;
use greendot::store::{StoreFault, StoreFaultKind};
use greendot::time::{Mono, Now, Unix};
use greendot::wire::User;

const OFFLINE_AFTER_MS: u64 = 25_000;
const START_MS: u64 = 1_764_009_600_000;
const FILES: [&str; 3] = ["users.log", "stamps.map", "published.map"];
/// In users.log: where "ann", the first record, begins, and "bob" after it.
const ANN_AT: u64 = 128;
const BOB_AT: u64 = ANN_AT + 12;
const FIRST_CELL: u64 = 4_096;

fn at(ms: u64) -> Now {
    Now {
        mono: Mono::from_micros(1_000_000_000 + ms * 1_000),
        unix: Unix::from_ms(START_MS + ms),
    }
}

fn user(id: &str) -> User<'_> {
    User::parse(id.as_bytes()).expect("as set up")
}

fn options(dir: &Path, boot_id: u8) -> StoreOptions {
    StoreOptions {
        dir: dir.to_owned(),
        users_max: 1 << 20,
        offline_after_ms: OFFLINE_AFTER_MS,
        restart_grace_ms: u64::MAX,
        shards: 1,
        boot_id: [boot_id; 16],
    }
}

fn open(dir: &Path, boot_id: u8, ms: u64) -> (Presence, OpenReport) {
    Presence::open(&options(dir, boot_id), at(ms)).expect("as set up")
}

fn fault(dir: &Path) -> StoreFault {
    Presence::open(&options(dir, 1), at(0))
        .err()
        .expect("a store that must not open")
}

fn sweep(presence: &Presence, ms: u64, hold_expiries: bool) -> Vec<Transition> {
    let context = SweepContext {
        now: at(ms),
        offline_after_ms: OFFLINE_AFTER_MS,
        hold_expiries,
    };
    let (mut sweep, mut out) = (Sweep::new(0, 1), Vec::new());
    sweep.begin();
    assert!(sweep.slice(presence, context, u32::MAX, usize::MAX, &mut out));
    presence.check_invariants();
    out
}

fn beat(presence: &Presence, id: &str, ms: u64) -> Slot {
    let slot = presence.intern(user(id)).expect("as set up");
    assert_ne!(
        presence.record_beat(slot, at(ms).unix, at(ms)),
        BeatOutcome::BeforeLeave
    );
    slot
}

/// A store with ann and bob, both online, closed.
fn closed_store(dir: &Path) {
    let (presence, _) = open(dir, 1, 0);
    beat(&presence, "ann", 0);
    beat(&presence, "bob", 0);
    sweep(&presence, 0, false);
    presence.close(at(10)).expect("as set up");
}

fn contents(dir: &Path) -> Vec<Vec<u8>> {
    FILES
        .iter()
        .map(|name| fs::read(dir.join(name)).unwrap_or_default())
        .collect()
}

fn patch(dir: &Path, name: &str, offset: u64, bytes: &[u8]) {
    fs::File::options()
        .write(true)
        .open(dir.join(name))
        .expect("as set up")
        .write_all_at(bytes, offset)
        .expect("as set up");
}

fn copy(from: &Path, to: &Path) {
    for name in FILES {
        fs::copy(from.join(name), to.join(name)).expect("as set up");
    }
}

/// The store refuses to open, tells why, and leaves every byte as it was.
fn assert_refused(dir: &Path, kind: StoreFaultKind, told: &[&str]) {
    let before = contents(dir);
    let fault = fault(dir);
    assert_eq!(fault.kind(), kind, "{fault}");
    for part in told {
        assert!(
            fault.to_string().contains(part),
            "{fault}: does not say {part}"
        );
    }
    assert_eq!(contents(dir), before, "a refused file was changed");
}

#[test]
fn a_second_open_is_refused_until_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (first, _) = open(dir.path(), 1, 0);
    beat(&first, "ann", 0);
    assert_refused(
        dir.path(),
        StoreFaultKind::Locked,
        &["users.log", "another process"],
    );
    drop(first);
    assert_eq!(open(dir.path(), 1, 0).1.users, 1);
}

#[test]
fn a_clean_restart_flips_nobody() {
    let dir = tempfile::tempdir().unwrap();
    closed_store(dir.path());
    let (presence, report) = open(dir.path(), 2, 100_000);
    assert_eq!(
        report,
        OpenReport {
            users: 2,
            online: 2,
            clean: true,
            ..OpenReport::default()
        }
    );
    assert_eq!(sweep(&presence, 100_000, true), []);
    let ann = presence.lookup(user("ann")).unwrap();
    let state = presence.state(ann, at(100_000));
    assert_eq!(
        (state.status.is_online(), state.since, state.last_active),
        (true, Some(at(0).unix), Some(at(0).unix))
    );
    assert!(
        presence.resumable(at(5).unix, at(100_000)).is_ok(),
        "nothing was lost"
    );
    let transitions = sweep(&presence, 125_001, false);
    assert_eq!(
        transitions
            .iter()
            .map(|t| (t.status.is_online(), t.first))
            .collect::<Vec<_>>(),
        [(false, false); 2]
    );
}

#[test]
fn a_crash_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (presence, _) = open(dir.path(), 1, 0);
    let ann = beat(&presence, "ann", 0);
    let bob = beat(&presence, "bob", 0);
    sweep(&presence, 0, false);
    beat(&presence, "ann", 7_000);
    presence.record_leave(bob, at(7_000).unix, at(7_000));
    // Killed before the owners looked. The page cache is what a later open sees.
    let eve = beat(&presence, "eve", 7_000);
    drop(presence);
    let (presence, report) = open(dir.path(), 1, 8_000);
    assert_eq!(
        report,
        OpenReport {
            users: 3,
            online: 2,
            ..OpenReport::default()
        }
    );
    assert_eq!(
        presence.state(ann, at(8_000)).last_active,
        Some(at(7_000).unix)
    );
    let transitions = sweep(&presence, 8_000, true);
    assert_eq!(
        transitions,
        [
            Transition {
                slot: bob,
                status: Status::Offline,
                first: false
            },
            Transition {
                slot: eve,
                status: Status::Online,
                first: true
            }
        ]
    );
    assert_eq!(
        presence.record_beat(bob, at(6_900).unix, at(8_000)),
        BeatOutcome::BeforeLeave,
        "the goodbye stands"
    );
    assert!(presence.resumable(at(7_000).unix, at(8_000)).is_ok());
}

#[test]
fn a_power_cut_leaves_what_was_flushed() {
    let (dir, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let presence = Arc::new(open(dir.path(), 1, 0).0);
    let (ann, bob) = (beat(&presence, "ann", 0), beat(&presence, "bob", 0));
    let zoe = beat(&presence, "zoe", 0);
    sweep(&presence, 0, false);
    beat(&presence, "ann", 30_000);
    assert_eq!(
        sweep(&presence, 30_000, false).len(),
        2,
        "bob and zoe go offline"
    );
    beat(&presence, "bob", 40_000);
    let mut flusher = presence.flusher(u64::MAX);
    let mut reports = Vec::new();
    while reports
        .last()
        .is_none_or(|report: &greendot::store::WriteBackReport| report.cycle_ms.is_none())
    {
        reports.push(flusher.slice(at(40_000 + reports.len() as u64)).unwrap());
    }
    assert_eq!(reports.len(), 4);
    assert_eq!(reports[3].cycle_ms, Some(3));
    copy(dir.path(), cut.path());
    // Not on the disk any more: bob's coming online, and eve.
    sweep(&presence, 41_000, false);
    beat(&presence, "eve", 41_000);

    let (presence, report) = open(cut.path(), 2, 90_000);
    assert_eq!(
        report,
        OpenReport {
            users: 3,
            online: 2,
            power_cut: true,
            ..OpenReport::default()
        }
    );
    let online = |slot| presence.state(slot, at(90_000));
    // Ann was published, bob fresh when the last stamp was written; nobody knows what was told of
    // them last.
    assert_eq!(
        (online(ann).status.is_online(), online(ann).since),
        (true, Some(at(90_000).unix))
    );
    assert_eq!(
        (online(bob).status.is_online(), online(bob).since),
        (true, Some(at(90_000).unix))
    );
    assert_eq!(
        (online(zoe).status.is_online(), online(zoe).since),
        (false, Some(at(30_000).unix))
    );
    assert_eq!(sweep(&presence, 90_000, true), []);
    let believed = |ms| presence.resumable(at(ms).unix, at(95_000)).is_ok();
    // What a stream was told after its last id may be lost, however old that id is.
    assert_eq!(
        [0, 40_000, 91_000, 91_001].map(believed),
        [false, false, false, true]
    );
    // The doubt is kept.
    presence.close(at(95_000)).unwrap();
    drop(presence);
    let (presence, report) = open(cut.path(), 2, 96_000);
    assert!(report.clean && presence.resumable(at(60_000).unix, at(96_000)).is_err());
}

#[test]
fn only_what_may_have_changed_is_written_back() {
    const CHUNK_BYTES: u64 = 32 << 10;
    let dir = tempfile::tempdir().unwrap();
    let presence = Arc::new(open(dir.path(), 1, 0).0);
    let ann = beat(&presence, "ann", 0);
    sweep(&presence, 0, false);
    let mut flusher = presence.flusher(1 << 20);
    // Bytes of the log, of the stamps, of the published cells; then the rest of the second.
    let mut cycle = |ms: u64| {
        let [log, stamps, published, headers] =
            [0, 1, 2, 3].map(|n| flusher.slice(at(ms + n)).unwrap());
        assert_eq!(
            (headers.bytes, headers.cycle_ms, headers.pause_ms),
            (0, Some(3), 997)
        );
        [log.bytes, stamps.bytes, published.bytes]
    };
    assert_eq!(cycle(0), [12, CHUNK_BYTES, CHUNK_BYTES]);
    // Ann is online: she may have beaten.
    assert_eq!(cycle(1_000), [0, CHUNK_BYTES, 0]);
    presence.record_leave(ann, at(2_000).unix, at(2_000));
    sweep(&presence, 2_000, false);
    assert_eq!(cycle(3_000), [0, CHUNK_BYTES, CHUNK_BYTES]);
    assert_eq!(
        cycle(4_000),
        [0, 0, 0],
        "a store that sleeps writes nothing"
    );
    beat(&presence, "ann", 5_000);
    let reports = [0, 1].map(|n| flusher.slice(at(5_000 + n)).unwrap());
    assert_eq!(
        (reports[1].bytes, reports[1].pause_ms),
        (CHUNK_BYTES, 31),
        "32 KiB at 1 MiB a second"
    );
    presence.close(at(6_000)).unwrap();
    assert_eq!(flusher.slice(at(6_000)).unwrap().bytes, 0);
    drop((flusher, presence));
    assert!(
        open(dir.path(), 1, 7_000).1.clean,
        "the closed store's flusher kept its hands off"
    );
}

/// Also one of less than a slice's usual size.
#[test]
fn a_small_budget_is_kept() {
    const CHUNK_BYTES: u64 = 32 << 10;
    let dir = tempfile::tempdir().unwrap();
    let presence = Arc::new(open(dir.path(), 1, 0).0);
    for n in 0..3 * 4_096 {
        beat(&presence, &n.to_string(), 0);
    }
    let told = |report: greendot::store::WriteBackReport| (report.bytes, report.pause_ms);
    // 9 bytes and an id of 1 to 5, for each user.
    let log_bytes = 9 * 12_288 + 10 + 90 * 2 + 900 * 3 + 9_000 * 4 + 2_288 * 5;
    let mut flusher = presence.flusher(100_000);
    assert_eq!(told(flusher.slice(at(0)).unwrap()), (100_000, 1_000));
    assert_eq!(
        told(flusher.slice(at(0)).unwrap()),
        (log_bytes - 100_000, (log_bytes - 100_000) / 100)
    );
    drop(flusher);
    let stamps = |bytes_per_second| {
        let mut flusher = presence.flusher(bytes_per_second);
        flusher.slice(at(0)).unwrap();
        told(flusher.slice(at(0)).unwrap())
    };
    // The smallest that can be set; two chunks a second; all of what is left.
    assert_eq!(stamps(4_096), (CHUNK_BYTES, 8_000));
    assert_eq!(stamps(2 * CHUNK_BYTES), (2 * CHUNK_BYTES, 1_000));
    beat(&presence, "0", 1);
    assert_eq!(stamps(1 << 20), (CHUNK_BYTES, 31));
}

#[test]
fn a_cycle_is_as_long_as_its_bytes() {
    let mib = 1 << 20;
    assert_eq!(Flusher::cycle_ms(0, 64 * mib), 1_000);
    assert_eq!(Flusher::cycle_ms(1_000_000, 64 * mib), 1_000);
    assert_eq!(Flusher::cycle_ms(1 << 24, 64 * mib), 4_000);
    assert_eq!(Flusher::cycle_ms(1 << 24, mib), 256_000);
}

/// Bytes of pages that this thread has found clean and made dirty (proc_pid_io(5)); on a file
/// system without a disk none.
fn dirtied_bytes() -> u64 {
    let io = fs::read_to_string("/proc/thread-self/io").unwrap_or_default();
    let line = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "));
    line.map_or(0, |bytes| bytes.parse().expect("a number of bytes"))
}

/// The end of a cycle leaves alone what has changed since its slice: that is the next cycle's.
#[test]
fn the_end_of_a_cycle_writes_no_cells() {
    let dir = tempfile::tempdir().unwrap();
    let presence = Arc::new(open(dir.path(), 1, 0).0);
    let mut flusher = presence.flusher(u64::MAX);
    // Nobody else writes this disk's pages back in the same moment, three times in a row.
    let quiet = (0..3).any(|round| {
        let ms = round * 1_000;
        beat(&presence, "ann", ms);
        sweep(&presence, ms, false);
        flusher.slice(at(ms)).unwrap();
        let stamps = flusher.slice(at(ms)).unwrap();
        assert_eq!(stamps.bytes, 32 << 10);
        // The page is dirty again, and stays so.
        beat(&presence, "ann", ms + 1);
        flusher.slice(at(ms)).unwrap();
        let end = flusher.slice(at(ms)).unwrap();
        assert!(end.cycle_ms.is_some());
        let before = dirtied_bytes();
        beat(&presence, "ann", ms + 2);
        // The first cycle of a run writes all: the files' lengths.
        round > 0 && dirtied_bytes() == before
    });
    assert!(
        quiet,
        "each cycle ended with a write of what its slice had written"
    );
}

#[test]
fn a_reboot_without_a_close_is_a_power_cut_and_a_crash_is_not() {
    let dir = tempfile::tempdir().unwrap();
    closed_store(dir.path());
    drop(open(dir.path(), 2, 1_000));
    assert_eq!(
        open(dir.path(), 2, 2_000).1,
        OpenReport {
            users: 2,
            online: 2,
            ..OpenReport::default()
        }
    );
    assert!(open(dir.path(), 3, 3_000).1.power_cut);
}

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
    let mut flusher = presence.flusher(u64::MAX);
    while flusher.slice(at(0)).unwrap().cycle_ms.is_none() {}
    drop((flusher, presence));
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

#[test]
fn foreign_other_and_damaged_headers_are_refused() {
    for (at, name) in FILES.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        closed_store(dir.path());
        let good = contents(dir.path())[at].clone();
        patch(dir.path(), name, 0, b"ELF");
        assert_refused(
            dir.path(),
            StoreFaultKind::Foreign,
            &[name, "offset 0", "magic"],
        );
        patch(dir.path(), name, 0, &good[..8]);
        patch(dir.path(), name, 8, &[1]);
        assert_refused(
            dir.path(),
            StoreFaultKind::Version,
            &[
                name,
                "offset 8",
                "version 2",
                "version 1",
                "use the greendot that wrote it",
            ],
        );
        patch(dir.path(), name, 8, &good[8..9]);
        patch(dir.path(), name, 30, &[good[30] ^ 1]);
        assert_refused(
            dir.path(),
            StoreFaultKind::HeaderDamaged,
            &[name, "offset 124", "CRC32C"],
        );
        patch(dir.path(), name, 30, &good[30..31]);
        assert_eq!(open(dir.path(), 1, 20).1.users, 2);
    }
}

#[test]
fn each_opening_is_a_generation() {
    let dir = tempfile::tempdir().unwrap();
    closed_store(dir.path());
    let generations = || {
        let files = contents(dir.path()).into_iter();
        let generation = |bytes: Vec<u8>| u64::from_le_bytes(bytes[24..32].try_into().unwrap());
        files.map(generation).collect::<Vec<_>>()
    };
    assert_eq!(generations(), [1; 3]);
    drop(open(dir.path(), 1, 20));
    assert_eq!(generations(), [2; 3]);
    fs::remove_file(dir.path().join("published.map")).unwrap();
    drop(open(dir.path(), 1, 30));
    assert_eq!(generations(), [3; 3], "the others remember it");
}

#[test]
fn truncated_files_are_refused() {
    for name in FILES {
        let dir = tempfile::tempdir().unwrap();
        closed_store(dir.path());
        let path = dir.path().join(name);
        let good = fs::read(&path).unwrap();
        let needed = if name == "users.log" {
            BOB_AT + 12
        } else {
            good.len() as u64
        };
        for cut in [1, 127, needed - 1] {
            fs::write(&path, &good[..cut as usize]).unwrap();
            assert_refused(
                dir.path(),
                StoreFaultKind::Truncated,
                &[name, &format!("offset {cut}"), "backup"],
            );
        }
        fs::write(&path, &good).unwrap();
        assert_eq!(open(dir.path(), 1, 20).1.users, 2);
    }
}

#[test]
fn files_of_two_stores_are_refused() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    closed_store(dir.path());
    closed_store(other.path());
    for name in &FILES[1..] {
        let own = fs::read(dir.path().join(name)).unwrap();
        fs::copy(other.path().join(name), dir.path().join(name)).unwrap();
        assert_refused(
            dir.path(),
            StoreFaultKind::OtherStore,
            &[name, "offset 16", "store id"],
        );
        fs::write(dir.path().join(name), own).unwrap();
    }
}

#[test]
fn maps_without_their_users_are_refused_and_lost_maps_are_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    closed_store(dir.path());
    let kept = tempfile::tempdir().unwrap();
    copy(dir.path(), kept.path());
    fs::remove_file(dir.path().join("users.log")).unwrap();
    assert_refused(dir.path(), StoreFaultKind::Missing, &["users.log"]);

    copy(kept.path(), dir.path());
    fs::remove_file(dir.path().join("stamps.map")).unwrap();
    let (presence, report) = open(dir.path(), 1, 50_000);
    assert_eq!(
        report,
        OpenReport {
            users: 2,
            online: 2,
            clean: true,
            stamps_rebuilt: true,
            ..OpenReport::default()
        }
    );
    assert_eq!(sweep(&presence, 50_000, true), []);
    assert_eq!(presence.state(Slot::new(0), at(50_000)).last_active, None);
    assert_eq!(sweep(&presence, 75_001, false).len(), 2);
    drop(presence);

    copy(kept.path(), dir.path());
    fs::remove_file(dir.path().join("published.map")).unwrap();
    let (presence, report) = open(dir.path(), 1, 50_000);
    assert_eq!(
        report,
        OpenReport {
            users: 2,
            online: 2,
            published_rebuilt: true,
            ..OpenReport::default()
        }
    );
    assert!(
        presence.resumable(at(5).unix, at(50_000)).is_err(),
        "nobody knows what was told"
    );
}

#[test]
fn damage_in_what_was_synced_is_refused() {
    for (offset, byte, told) in [
        (BOB_AT + 5, b'B', "offset 148: expected CRC32C"),
        (BOB_AT, 0, "offset 140: expected records up to 152"),
        (
            BOB_AT,
            200,
            "offset 140: expected an id of 1 to 128 bytes, found a length of 200",
        ),
        (ANN_AT + 1, 9, "offset 136: expected CRC32C"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        closed_store(dir.path());
        patch(dir.path(), "users.log", offset, &[byte]);
        assert_refused(
            dir.path(),
            StoreFaultKind::RecordDamaged,
            &["users.log", told, "backup"],
        );
    }
}

#[test]
fn a_torn_tail_is_cut_and_its_cells_are_zeroed() {
    let dir = tempfile::tempdir().unwrap();
    closed_store(dir.path());
    let (presence, _) = open(dir.path(), 1, 100);
    let eve = beat(&presence, "eve", 100);
    let zoe = beat(&presence, "zoe", 100);
    sweep(&presence, 100, false);
    drop(presence);
    // Eve's record is torn in its CRC; zoe's stands behind it.
    patch(dir.path(), "users.log", BOB_AT + 12 + 11, &[0, 0]);
    let (presence, report) = open(dir.path(), 1, 200);
    assert_eq!(
        report,
        OpenReport {
            users: 2,
            online: 2,
            torn_bytes: 24,
            ..OpenReport::default()
        }
    );
    assert_eq!(
        (presence.lookup(user("eve")), presence.lookup(user("zoe"))),
        (None, None)
    );
    // The slots are given anew, without a past.
    assert_eq!(presence.intern(user("kim")), Ok(eve));
    assert_eq!(presence.intern(user("leo")), Ok(zoe));
    for slot in [eve, zoe] {
        let state = presence.state(slot, at(200));
        assert_eq!(
            (state.status.is_online(), state.since, state.last_active),
            (false, None, None)
        );
    }
    drop(presence);
    assert_eq!(
        open(dir.path(), 1, 300).1,
        OpenReport {
            users: 4,
            online: 2,
            ..OpenReport::default()
        }
    );
}

/// On disk, before a slot is given anew: another write makes the page of its cell dirty.
#[test]
fn cells_without_a_record_are_zero_on_disk_when_the_store_opens() {
    let dir = tempfile::tempdir().unwrap();
    closed_store(dir.path());
    let (presence, _) = open(dir.path(), 1, 100);
    let eve = beat(&presence, "eve", 100);
    sweep(&presence, 100, false);
    drop(presence);
    patch(dir.path(), "users.log", BOB_AT + 12 + 11, &[0]);
    let (_presence, report) = open(dir.path(), 1, 200);
    assert_eq!(report.torn_bytes, 11);
    for name in &FILES[1..] {
        let before = dirtied_bytes();
        patch(
            dir.path(),
            name,
            FIRST_CELL + 8 * u64::from(eve.index()),
            &[0; 8],
        );
        assert!(before == 0 || dirtied_bytes() > before, "{name}");
    }
}

#[test]
fn a_log_that_is_read_in_parts_is_read_whole() {
    const USERS: u32 = 400_000;
    let id = |n: u32| format!("user-number-{n:06}");
    let dir = tempfile::tempdir().unwrap();
    let (presence, _) = open(dir.path(), 1, 0);
    for n in 0..USERS {
        assert_eq!(presence.intern(user(&id(n))), Ok(Slot::new(n)));
    }
    drop(presence);
    let (presence, report) = open(dir.path(), 1, 100);
    assert_eq!(
        report,
        OpenReport {
            users: USERS,
            ..OpenReport::default()
        }
    );
    for n in 0..USERS {
        assert_eq!(presence.lookup(user(&id(n))), Some(Slot::new(n)));
        assert_eq!(presence.user(Slot::new(n)).as_str(), id(n));
    }
    assert_eq!(presence.intern(user("one more")), Ok(Slot::new(USERS)));
    presence.close(at(200)).unwrap();
    drop(presence);
    // Records are 27 bytes. The first damage counts, in whichever part; those behind it are not
    // looked at.
    let record = |n: u64| ANN_AT + 27 * n;
    patch(dir.path(), "users.log", record(390_000) + 9, b"!");
    assert_refused(
        dir.path(),
        StoreFaultKind::RecordDamaged,
        &[&format!("offset {}:", record(390_000) + 23)],
    );
    patch(dir.path(), "users.log", record(20_000) + 9, b"!");
    assert_refused(
        dir.path(),
        StoreFaultKind::RecordDamaged,
        &[&format!("offset {}:", record(20_000) + 23)],
    );
    patch(dir.path(), "users.log", record(30_000), &[255]);
    assert_refused(
        dir.path(),
        StoreFaultKind::RecordDamaged,
        &[&format!("offset {}:", record(20_000) + 23)],
    );
}

#[test]
fn more_users_than_users_max_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    closed_store(dir.path());
    let before = contents(dir.path());
    let fault = Presence::open(
        &StoreOptions {
            users_max: 1,
            ..options(dir.path(), 1)
        },
        at(20),
    )
    .err()
    .unwrap();
    assert_eq!(fault.kind(), StoreFaultKind::TooManyUsers, "{fault}");
    assert_eq!(contents(dir.path()), before);
}

#[test]
fn an_empty_users_log_alone_is_a_new_store() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("users.log"), b"").unwrap();
    assert_eq!(
        open(dir.path(), 1, 0).1,
        OpenReport {
            clean: true,
            ..OpenReport::default()
        }
    );
}

/// The power fails in a store's first second: what the kernel had not written back by itself is
/// zeros.
#[test]
fn what_a_power_cut_leaves_of_a_first_moment_is_a_new_store() {
    for blank in [&["users.log"][..], &["users.log", "stamps.map"], &FILES] {
        let dir = tempfile::tempdir().unwrap();
        let (presence, _) = open(dir.path(), 1, 0);
        beat(&presence, "ann", 0);
        sweep(&presence, 0, false);
        drop(presence);
        for name in blank {
            let bytes = fs::metadata(dir.path().join(name)).unwrap().len();
            fs::write(dir.path().join(name), vec![0; bytes as usize]).unwrap();
        }
        let (presence, report) = open(dir.path(), 2, 1_000);
        assert_eq!(
            report,
            OpenReport {
                clean: true,
                ..OpenReport::default()
            }
        );
        assert_eq!(sweep(&presence, 1_000, false), []);
        let bob = presence.intern(user("bob")).unwrap();
        let state = presence.state(bob, at(1_000));
        assert_eq!(
            (state.status.is_online(), state.since, state.last_active),
            (false, None, None)
        );
        drop(presence);
        assert_eq!(open(dir.path(), 2, 2_000).1.users, 1);
    }
}

#[test]
fn a_header_lost_before_what_follows_it_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    closed_store(dir.path());
    patch(dir.path(), "users.log", 0, &[0; 128]);
    assert_refused(dir.path(), StoreFaultKind::Foreign, &["users.log", "magic"]);
}

/// Its headers are on disk when a new store opens, and on disk they are clean: another write makes
/// the page dirty.
#[test]
fn a_new_store_is_on_disk_before_anything_is_put_in() {
    let dir = tempfile::tempdir().unwrap();
    let (_presence, _) = open(dir.path(), 1, 0);
    for (name, magic) in FILES.iter().zip([b"GDUSERS", b"GDSTAMP", b"GDPUBLI"]) {
        let before = dirtied_bytes();
        patch(dir.path(), name, 0, magic);
        assert!(before == 0 || dirtied_bytes() > before, "{name}");
    }
}

#[test]
fn a_small_store_is_small_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (_presence, _) = Presence::open(
        &StoreOptions {
            users_max: 100,
            ..options(dir.path(), 1)
        },
        at(0),
    )
    .unwrap();
    let sizes: Vec<u64> = FILES
        .iter()
        .map(|name| fs::metadata(dir.path().join(name)).unwrap().len())
        .collect();
    assert_eq!(sizes, [128, FIRST_CELL + 4_096 * 8, FIRST_CELL + 4_096 * 8]);
}

#[test]
fn a_full_disk_refuses_new_users_and_keeps_the_rest() {
    const CHILD: &str = "GREENDOT_TEST_FSIZE_DIR";
    if let Some(dir) = std::env::var_os(CHILD) {
        return fill_under_a_file_size_limit(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_full_disk_refuses_new_users_and_keeps_the_rest",
            "--nocapture",
        ])
        .env(CHILD, dir.path())
        .output()
        .unwrap();
    assert!(
        child.status.success(),
        "{}{}",
        String::from_utf8_lossy(&child.stdout),
        String::from_utf8_lossy(&child.stderr)
    );
    // Without the limit the store opens and goes on where it was.
    let (presence, report) = open(dir.path(), 1, 100);
    assert_eq!((report.users, report.torn_bytes), (presence.users(), 0));
    assert!(presence.users() > 90_000);
    assert_eq!(
        presence.intern(user("one more")),
        Ok(Slot::new(report.users))
    );
}

/// In a process of its own: the limit is the process's.
fn fill_under_a_file_size_limit(dir: &Path) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(
        Resource::Fsize,
        Rlimit {
            current: Some(2 << 20),
            maximum,
        },
    )
    .expect("as set up");
    let (presence, _) = open(dir, 1, 0);
    let mut made = 0;
    let refused = loop {
        match presence.intern(user(&format!("user-{made}"))) {
            Ok(slot) => assert_eq!(slot, Slot::new(made)),
            Err(fault) => break fault,
        }
        made += 1;
    };
    assert_eq!(refused, InternFault::NoSpace);
    assert_eq!(presence.users(), made);
    // Those who are known are served as before.
    assert_eq!(presence.intern(user("user-0")), Ok(Slot::new(0)));
    let last = Slot::new(made - 1);
    assert_eq!(
        presence.record_beat(last, at(1).unix, at(1)),
        BeatOutcome::StoredOffline
    );
    assert_eq!(
        sweep(&presence, 1, false),
        [Transition {
            slot: last,
            status: Status::Online,
            first: true
        }]
    );
    assert_eq!(presence.intern(user("one more")), Err(InternFault::NoSpace));
    for name in FILES {
        assert!(fs::metadata(dir.join(name)).expect("as set up").len() <= 2 << 20);
    }
    setrlimit(
        Resource::Fsize,
        Rlimit {
            current: maximum,
            maximum,
        },
    )
    .expect("as set up");
    assert_eq!(presence.intern(user("room again")), Ok(Slot::new(made)));
    assert_eq!(presence.lookup(user("room again")), Some(Slot::new(made)));
}
