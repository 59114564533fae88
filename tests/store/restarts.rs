//! Restarts: clean ones, crashes, power cuts.

use std::fs;
use std::sync::Arc;

use greendot::presence::{BeatOutcome, OpenReport, StoreFolder, Transition};
use greendot::slot::Slot;
use greendot::status::Status;

use crate::{
    FILES, at, beat, closed_store, contents, copy, dirtied_bytes, open, options, patch, sweep, user,
};

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
fn a_power_cut_leaves_what_was_written_back() {
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
    let mut writer = presence.write_back(u64::MAX);
    let mut reports = Vec::new();
    while reports
        .last()
        .is_none_or(|report: &greendot::store::WriteBackReport| report.cycle_ms.is_none())
    {
        reports.push(writer.slice(at(40_000 + reports.len() as u64)).unwrap());
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
fn each_opening_is_a_generation() {
    let dir = tempfile::tempdir().unwrap();
    closed_store(dir.path());
    let generations = || {
        let files = contents(dir.path()).into_iter();
        let generation = |bytes: Vec<u8>| u64::from_le_bytes(bytes[32..40].try_into().unwrap());
        files.map(generation).collect::<Vec<_>>()
    };
    assert_eq!(generations(), [1; 3]);
    drop(open(dir.path(), 1, 20));
    assert_eq!(generations(), [2; 3]);
    fs::remove_file(dir.path().join("published.map")).unwrap();
    drop(open(dir.path(), 1, 30));
    assert_eq!(generations(), [3; 3], "the others remember it");
}

/// A child between fork and exec has the files of the process that made it, and their locks: they
/// outlive the store's close by a moment.
#[test]
fn a_lock_that_is_let_go_within_a_moment_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let (presence, _) = open(dir.path(), 1, 0);
    beat(&presence, "ann", 0);
    drop(presence);
    let held = fs::File::open(dir.path().join("users.log")).unwrap();
    held.lock().unwrap();
    let lets_go = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        drop(held);
    });
    assert_eq!(open(dir.path(), 1, 10).1.users, 1);
    lets_go.join().unwrap();
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

/// Whatever had been checked before the store was to be opened.
#[test]
fn a_start_that_fails_after_a_clean_stop_leaves_a_clean_store() {
    let dir = tempfile::tempdir().unwrap();
    closed_store(dir.path());
    let before = contents(dir.path());
    drop(StoreFolder::lock(options(dir.path(), 2)).unwrap());
    assert!(contents(dir.path()) == before);
    let (presence, report) = open(dir.path(), 3, 100);
    assert_eq!((report.clean, report.online), (true, 2));
    let since = presence.state(Slot::new(0), at(100)).since;
    assert_eq!(since, Some(at(0).unix));
}
