//! users.log and the cells of its slots: torn tails, long logs, cells of nobody.

use std::fs;
use std::sync::Arc;

use greendot::presence::{OpenReport, Presence};
use greendot::slot::Slot;
use greendot::store::StoreFaultKind;

use crate::{
    ANN_AT, BOB_AT, FILES, FIRST_CELL, START_MS, assert_refused, at, beat, closed_store, contents,
    dirtied_bytes, open, options, patch, sweep, user,
};

#[test]
fn a_torn_tail_is_cut_and_its_cells_are_zeroed() {
    let dir = tempfile::tempdir().unwrap();
    closed_store(dir.path());
    let (presence, _) = open(dir.path(), 1, 100);
    let eve = beat(&presence, "eve", 100);
    sweep(&presence, 100, false);
    drop(presence);
    // Eve's record is torn in its CRC. No append leaves a second one behind that.
    patch(dir.path(), "users.log", BOB_AT + 12 + 11, &[0]);
    let (presence, report) = open(dir.path(), 1, 200);
    assert_eq!(
        report,
        OpenReport {
            users: 2,
            online: 2,
            torn_bytes: 11,
            ..OpenReport::default()
        }
    );
    assert_eq!(presence.lookup(user("eve")), None);
    // The slot is given anew, without a past.
    assert_eq!(presence.intern(user("kim")), Ok(eve));
    let state = presence.state(eve, at(200));
    assert_eq!(
        (state.status.is_online(), state.since, state.last_active),
        (false, None, None)
    );
    drop(presence);
    assert_eq!(
        open(dir.path(), 1, 300).1,
        OpenReport {
            users: 3,
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

/// Also after a clean close: a bit may have been flipped since, or users.log be an older one.
#[test]
fn cells_beyond_the_last_user_are_nobodys() {
    let stamp = (START_MS << 20).to_le_bytes();
    let online = (START_MS << 8 | 1).to_le_bytes();
    for (name, cell) in [("stamps.map", stamp), ("published.map", online)] {
        for slot in [2, 63, 4_095] {
            let dir = tempfile::tempdir().unwrap();
            closed_store(dir.path());
            patch(dir.path(), name, FIRST_CELL + 8 * slot, &cell);
            let (presence, report) = open(dir.path(), 1, 20);
            assert_eq!((report.users, report.online, report.clean), (2, 2, true));
            assert_eq!(sweep(&presence, 20, false), []);
            for n in 2..=slot {
                let made = presence.intern(user(&format!("user {n}"))).unwrap();
                let state = presence.state(made, at(20));
                assert_eq!((state.since, state.last_active), (None, None));
            }
            assert_eq!(sweep(&presence, 30, false), []);
        }
    }
}

/// A copy that was made while the server ran: its maps know more than its users.log.
#[test]
fn an_older_users_log_gives_nobody_a_past() {
    let dir = tempfile::tempdir().unwrap();
    let (presence, _) = open(dir.path(), 1, 0);
    beat(&presence, "ann", 0);
    let older = contents(dir.path())[0].clone();
    let bob = beat(&presence, "bob", 0);
    sweep(&presence, 0, false);
    presence.close(at(10)).unwrap();
    drop(presence);
    fs::write(dir.path().join("users.log"), older).unwrap();
    let (presence, report) = open(dir.path(), 1, 20);
    assert_eq!((report.users, report.online), (1, 1));
    assert_eq!(sweep(&presence, 20, false), []);
    assert_eq!(presence.intern(user("eve")), Ok(bob));
    let state = presence.state(bob, at(20));
    assert_eq!((state.since, state.last_active), (None, None));
}

/// What lies behind the last whole chunk of a map becomes cells when the map grows.
#[test]
fn a_map_that_is_longer_than_its_chunks_gives_nobody_a_past() {
    let dir = tempfile::tempdir().unwrap();
    closed_store(dir.path());
    for name in &FILES[1..] {
        let bytes = fs::metadata(dir.path().join(name)).unwrap().len();
        patch(dir.path(), name, bytes, &[0x11; 100]);
    }
    let (presence, _) = open(dir.path(), 1, 20);
    for n in 2..70_000 {
        presence.intern(user(&n.to_string())).unwrap();
    }
    let pasts = (2..70_000).map(|n| presence.state(Slot::new(n), at(20)));
    assert!(
        pasts
            .into_iter()
            .all(|state| state.last_active.is_none() && state.since.is_none())
    );
    assert_eq!(sweep(&presence, 20, false), []);
}

/// A process that dies leaves one record without a part of it, and nothing behind that. So a
/// flipped bit is damage, whether or not what it is in had been marked as synced.
#[test]
fn a_flipped_bit_among_records_is_no_unfinished_record() {
    let dir = tempfile::tempdir().unwrap();
    closed_store(dir.path());
    let (presence, _) = open(dir.path(), 1, 100);
    for n in 0..590 {
        presence.intern(user(&format!("user {n:03}"))).unwrap();
    }
    drop(presence);
    let record = |n: u64| BOB_AT + 12 + 17 * n;
    for boot_id in [1, 2] {
        for (n, at_byte) in [(0, 5), (1, 0), (77, 3), (300, 9), (588, 16)] {
            let offset = record(n) + at_byte;
            let good = contents(dir.path())[0][offset as usize];
            patch(dir.path(), "users.log", offset, &[good ^ 0x40]);
            let before = contents(dir.path());
            let opened = Presence::open(&options(dir.path(), boot_id), at(200));
            let fault = opened.err().expect("a damaged store");
            assert_eq!(fault.kind(), StoreFaultKind::RecordDamaged, "{n}: {fault}");
            assert!(contents(dir.path()) == before, "a refused file was changed");
            patch(dir.path(), "users.log", offset, &[good]);
        }
    }
    // The last one may be what an append has left.
    patch(dir.path(), "users.log", record(589) + 15, &[0, 0]);
    let (_, report) = open(dir.path(), 2, 200);
    assert_eq!((report.users, report.torn_bytes), (591, 15));
}

/// Or a power cut could take it for how far the log was written, and call damage a torn write.
#[test]
fn what_users_log_says_of_itself_is_on_disk_when_a_cycle_ends() {
    let dir = tempfile::tempdir().unwrap();
    let presence = Arc::new(open(dir.path(), 1, 0).0);
    beat(&presence, "ann", 0);
    let mut writer = presence.write_back(u64::MAX);
    while writer.slice(at(0)).unwrap().cycle_ms.is_none() {}
    let header = &contents(dir.path())[0][..512];
    let synced_bytes = u64::from_le_bytes(header[56..64].try_into().unwrap());
    assert_eq!(synced_bytes, BOB_AT);
    let before = dirtied_bytes();
    patch(dir.path(), "users.log", 0, &header[..8]);
    assert!(before == 0 || dirtied_bytes() > before);
}
