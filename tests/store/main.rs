//! The store's files through faults: locks, foreign and damaged files, full disks, restarts, power
//! cuts.

mod clocks;
mod memory;
mod records;
mod refused;
mod restarts;
mod room;
mod write_back;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use greendot::presence::{
    BeatOutcome, OpenReport, Presence, StoreOptions, Sweep, SweepContext, Transition,
};
use greendot::slot::Slot;
use greendot::store::{StoreFault, StoreFaultKind};
use greendot::time::{Mono, Now, Unix};
use greendot::wire::User;

const OFFLINE_AFTER_MS: u64 = 25_000;
const START_MS: u64 = 1_764_009_600_000;
const FILES: [&str; 3] = ["users.log", "stamps.map", "published.map"];
/// In users.log: where "ann", the first record, begins, and "bob" after it.
const ANN_AT: u64 = 4_096;
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
        memory: greendot::presence::MemoryChoice::Off,
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
    sweep_at(presence, at(ms), hold_expiries)
}

fn sweep_at(presence: &Presence, now: Now, hold_expiries: bool) -> Vec<Transition> {
    let context = SweepContext {
        now,
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

/// Bytes of pages that this thread has found clean and made dirty (proc_pid_io(5)); on a file
/// system without a disk none.
fn dirtied_bytes() -> u64 {
    let io = fs::read_to_string("/proc/thread-self/io").unwrap_or_default();
    let line = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "));
    line.map_or(0, |bytes| bytes.parse().expect("a number of bytes"))
}
