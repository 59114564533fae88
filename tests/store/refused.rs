//! Files that are refused, and what is made anew instead.

use std::fs;

use greendot::presence::{OpenReport, Presence, StoreFolder, StoreOptions};
use greendot::slot::Slot;
use greendot::store::StoreFaultKind;

use crate::{
    ANN_AT, BOB_AT, FILES, assert_refused, at, beat, closed_store, contents, copy, fault, open,
    options, patch, sweep,
};

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
            &[name, "offset 508", "CRC32C"],
        );
        patch(dir.path(), name, 30, &good[30..31]);
        assert_eq!(open(dir.path(), 1, 20).1.users, 2);
    }
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
        for cut in [0, 1, 511, needed - 1] {
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
        (BOB_AT + 5, b'B', "offset 4116: expected CRC32C"),
        (BOB_AT, 0, "offset 4108: expected records up to 4120"),
        (
            BOB_AT,
            200,
            "offset 4108: expected an id of 1 to 128 bytes, found a length of 200",
        ),
        (ANN_AT + 1, 9, "offset 4104: expected CRC32C"),
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
fn a_header_lost_before_what_follows_it_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    closed_store(dir.path());
    patch(dir.path(), "users.log", 0, &[0; 512]);
    assert_refused(dir.path(), StoreFaultKind::Foreign, &["users.log", "magic"]);
}

/// An older users.log beside newer maps, or the other way round.
#[test]
fn files_of_different_times_are_refused() {
    for name in FILES {
        let dir = tempfile::tempdir().unwrap();
        closed_store(dir.path());
        let older = fs::read(dir.path().join(name)).unwrap();
        for ms in [100, 200] {
            let (presence, _) = open(dir.path(), 1, ms);
            beat(&presence, "eve", ms);
            presence.close(at(ms)).unwrap();
        }
        let newer = fs::read(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name), older).unwrap();
        assert_refused(
            dir.path(),
            StoreFaultKind::OtherTime,
            &["offset 32", "generation", "different times"],
        );
        fs::write(dir.path().join(name), newer).unwrap();
        assert_eq!(open(dir.path(), 1, 300).1.users, 3);
    }
}

/// A file that is there and empty has lost what it had.
#[test]
fn an_empty_file_is_damaged_and_not_missing() {
    for name in FILES {
        let dir = tempfile::tempdir().unwrap();
        closed_store(dir.path());
        let good = fs::read(dir.path().join(name)).unwrap();
        for bad in [vec![], vec![0; good.len()]] {
            fs::write(dir.path().join(name), bad).unwrap();
            assert_refused(dir.path(), StoreFaultKind::Truncated, &[name, "backup"]);
        }
        fs::write(dir.path().join(name), &good).unwrap();
        assert_eq!(open(dir.path(), 1, 20).1.users, 2);
    }
}

#[test]
fn a_refused_opening_leaves_nothing_behind() {
    let outer = tempfile::tempdir().unwrap();
    let (dir, full) = (outer.path().join("new"), outer.path().join("full"));
    let folder = StoreFolder::lock(options(&dir, 1)).unwrap();
    assert_eq!(fault(&dir).kind(), StoreFaultKind::Locked);
    drop(folder);
    assert!(!dir.exists());
    fs::create_dir(&full).unwrap();
    closed_store(&full);
    fs::remove_file(full.join("users.log")).unwrap();
    assert_eq!(fault(&full).kind(), StoreFaultKind::Missing);
    assert!(!full.join("users.log").exists());
}
