//! Cells in a memory: what outlives what, and which memories are refused.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use greendot::presence::{Archive, ArchiveFault, MemoryChoice, OpenReport, Presence, StoreOptions};
use greendot::slot::{CHUNK_SLOTS, Slot};
use greendot::store::{StoreFault, StoreFaultKind};
use tempfile::TempDir;

use crate::{FILES, at, beat, contents, copy, open, options, sweep, user};

/// A folder for memories. None: there is no tmpfs here.
fn tmpfs() -> Option<TempDir> {
    let made = tempfile::Builder::new()
        .prefix("greendot-test-")
        .tempdir_in("/dev/shm");
    let root = made.ok().filter(|root| {
        let stat = rustix::fs::statfs(root.path());
        stat.is_ok_and(|stat| stat.f_type as u64 & 0xffff_ffff == 0x0102_1994)
    });
    if root.is_none() {
        eprintln!("SKIPPED: /dev/shm is no tmpfs");
    }
    root
}

fn in_memory(dir: &Path, root: &Path, boot_id: u8) -> StoreOptions {
    StoreOptions {
        memory: MemoryChoice::In(root.to_owned()),
        ..options(dir, boot_id)
    }
}

fn open_in(dir: &Path, root: &Path, boot_id: u8, ms: u64) -> (Presence, OpenReport) {
    Presence::open(&in_memory(dir, root, boot_id), at(ms)).expect("it opens")
}

fn refused(dir: &Path, root: &Path) -> StoreFault {
    let before = (contents(dir), memories(root));
    let opened = Presence::open(&in_memory(dir, root, 1), at(0));
    let fault = opened.err().expect("it is refused");
    assert_eq!((contents(dir), memories(root)), before);
    fault
}

fn memories(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).expect("it is there");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("read").path()).collect();
    paths.sort();
    paths
}

/// A cycle of the write-back.
fn write_back(presence: &Arc<Presence>, ms: u64) {
    let mut writer = presence.write_back(u64::MAX);
    while writer
        .slice(at(ms))
        .expect("written back")
        .cycle_ms
        .is_none()
    {}
}

#[test]
fn what_was_accepted_outlives_the_process_without_a_write_to_the_folder() {
    let Some(root) = tmpfs() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (presence, report) = open_in(dir.path(), root.path(), 1, 0);
    let memory = report.memory.expect("there is one");
    assert_eq!(memories(root.path()), std::slice::from_ref(&memory));
    for (path, mode) in [(memory.clone(), 0o700), (memory.join("users.log"), 0o600)] {
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, mode);
    }
    let before = contents(dir.path());
    let (ann, bob) = (beat(&presence, "ann", 0), beat(&presence, "bob", 0));
    sweep(&presence, 0, false);
    beat(&presence, "ann", 7_000);
    presence.record_leave(bob, at(7_000).unix, at(7_000));
    beat(&presence, "eve", 7_000);
    presence.note_told_back(61_500, at(7_000));
    assert_eq!(contents(dir.path()), before, "no shard touches the folder");
    drop(presence);

    // Whatever the flags say then.
    for choice in [MemoryChoice::Off, MemoryChoice::In(root.path().to_owned())] {
        let options = StoreOptions {
            memory: choice,
            ..options(dir.path(), 1)
        };
        let (presence, report) = Presence::open(&options, at(8_000)).unwrap();
        assert_eq!(
            report,
            OpenReport {
                users: 3,
                online: 2,
                memory: Some(memory.clone()),
                ..OpenReport::default()
            }
        );
        let heard = |slot| presence.state(slot, at(8_000)).last_active;
        assert_eq!(heard(ann), Some(at(7_000).unix));
        assert_eq!(presence.lookup(user("eve")), Some(Slot::new(2)));
        assert_eq!(presence.away_ms_before(), 61_500);
        assert!(presence.resumable(at(7_000).unix, at(8_000)).is_ok());
    }
    assert_eq!(memories(root.path()), [memory]);
}

#[test]
fn a_folder_whose_latest_state_is_in_memory_is_not_read_as_if_it_were_whole() {
    let Some(root) = tmpfs() else { return };
    let dir = tempfile::tempdir().unwrap();
    let presence = open_in(dir.path(), root.path(), 1, 0).0;
    beat(&presence, "ann", 0);
    drop(presence);
    let Err(ArchiveFault::Store(fault)) = Archive::read(dir.path()) else {
        panic!("it lacks ann");
    };
    assert_eq!(fault.kind(), StoreFaultKind::InMemory);
    let memory = memories(root.path()).remove(0);
    for part in [memory.to_str().unwrap(), "start the greendot"] {
        assert!(fault.to_string().contains(part), "{fault}");
    }
    open_in(dir.path(), root.path(), 1, 1)
        .0
        .close(at(2))
        .unwrap();
    assert_eq!(Archive::read(dir.path()).unwrap().users().count(), 1);
}

#[test]
fn after_a_close_the_folder_alone_is_the_store() {
    let Some(root) = tmpfs() else { return };
    let dir = tempfile::tempdir().unwrap();
    for (run, boot_id) in [1, 1, 2].into_iter().enumerate() {
        let (presence, report) = open_in(dir.path(), root.path(), boot_id, run as u64 * 1_000);
        assert_eq!((report.users as usize, report.clean), (run * 5_000, true));
        for user in 0..5_000 {
            beat(&presence, &format!("user {run} {user}"), run as u64 * 1_000);
        }
        sweep(&presence, run as u64 * 1_000, false);
        presence.close(at(run as u64 * 1_000 + 10)).unwrap();
        assert_eq!(memories(root.path()), [""; 0].map(PathBuf::from));
    }
    let (presence, report) = open(dir.path(), 3, 3_000);
    assert_eq!(
        (report.users, report.online, report.clean, report.memory),
        (15_000, 15_000, true, None)
    );
    for (run, user) in [(0, 0), (1, 4_999), (2, 17)] {
        let slot = presence.lookup(self::user(&format!("user {run} {user}")));
        let state = presence.state(slot.expect("it is known"), at(3_000));
        assert_eq!(state.last_active, Some(at(run * 1_000).unix));
        assert_eq!(state.since, Some(at(run * 1_000).unix));
    }
}

#[test]
fn after_a_power_cut_there_is_what_was_copied_to_the_folder() {
    let Some(root) = tmpfs() else { return };
    let dir = tempfile::tempdir().unwrap();
    let presence = Arc::new(open_in(dir.path(), root.path(), 1, 0).0);
    let ann = beat(&presence, "ann", 0);
    for user in 0..2 * CHUNK_SLOTS {
        beat(&presence, &format!("user {user}"), 0);
    }
    sweep(&presence, 0, false);
    write_back(&presence, 5);
    let written = contents(dir.path());
    write_back(&presence, 6);
    let again = contents(dir.path());
    // Nothing has changed but a header, and the room for users to come.
    for (again, written) in again.iter().zip(&written) {
        let pages = written.chunks(4_096).zip(again.chunks(4_096)).skip(1);
        assert!(pages.into_iter().all(|(written, again)| written == again));
    }
    beat(&presence, "ann", 7_000);
    beat(&presence, "late", 7_000);
    drop(presence);
    for memory in memories(root.path()) {
        fs::remove_dir_all(memory).unwrap();
    }
    // A boot empties every tmpfs; without one somebody has removed it.
    for boot_id in [2, 1] {
        let copied = tempfile::tempdir().unwrap();
        copy(dir.path(), copied.path());
        let (presence, report) = open_in(copied.path(), root.path(), boot_id, 8_000);
        assert!(report.power_cut, "{report:?}");
        let users = 2 * CHUNK_SLOTS + 1;
        assert_eq!((report.users, report.online), (users, users));
        assert_eq!(presence.lookup(user("late")), None);
        let state = presence.state(ann, at(8_000));
        assert_eq!(state.last_active, Some(at(0).unix));
        assert_eq!(state.since, Some(at(8_000).unix));
        presence.close(at(8_001)).unwrap();
    }
}

#[test]
fn a_copy_of_the_folder_does_not_take_the_memory_of_the_original() {
    let Some(root) = tmpfs() else { return };
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let presence = Arc::new(open_in(dir.path(), root.path(), 1, 0).0);
    beat(&presence, "ann", 0);
    write_back(&presence, 1);
    beat(&presence, "bob", 2);
    copy(dir.path(), other.path());
    // While the original runs, the copy is what a power cut would have left.
    let (copied, report) = open_in(other.path(), root.path(), 1, 10);
    assert_eq!((report.users, report.power_cut), (1, true));
    assert_eq!(memories(root.path()).len(), 2);
    copied.close(at(11)).unwrap();
    drop(copied);
    assert_eq!(memories(root.path()).len(), 1, "the original's stays");
    // While it does not, nobody knows which of the two shall go on.
    copy(dir.path(), other.path());
    drop(presence);
    let fault = refused(other.path(), root.path());
    assert_eq!(fault.kind(), StoreFaultKind::OtherMemory, "{fault}");
    let inode = |dir: &Path| fs::metadata(dir.join("users.log")).unwrap().ino();
    for part in [
        memories(root.path())[0].display().to_string(),
        format!("inode {}", inode(dir.path())),
        format!("inode {}", inode(other.path())),
    ] {
        assert!(fault.to_string().contains(&part), "{fault}: {part}");
    }
    assert_eq!(open_in(dir.path(), root.path(), 1, 20).1.users, 2);
}

#[test]
fn a_memory_that_is_not_this_folders_or_not_ours_alone_is_refused() {
    let Some(root) = tmpfs() else { return };
    let dir = tempfile::tempdir().unwrap();
    drop(open_in(dir.path(), root.path(), 1, 0));
    let memory = memories(root.path()).remove(0);
    let mode =
        |mode| fs::set_permissions(&memory, std::os::unix::fs::PermissionsExt::from_mode(mode));
    mode(0o750).unwrap();
    let fault = refused(dir.path(), root.path());
    assert!(fault.to_string().contains("mode 40750"), "{fault}");
    mode(0o700).unwrap();
    // A byte of a header, and a file of another generation.
    let log = memory.join("users.log");
    let good = fs::read(&log).unwrap();
    let mut damaged = good.clone();
    damaged[32] ^= 1;
    fs::write(&log, &damaged).unwrap();
    assert_eq!(
        refused(dir.path(), root.path()).kind(),
        StoreFaultKind::HeaderDamaged
    );
    let crc = crc32c::crc32c(&damaged[..508]).to_le_bytes();
    damaged[508..512].copy_from_slice(&crc);
    fs::write(&log, &damaged).unwrap();
    let fault = refused(dir.path(), root.path());
    assert_eq!(fault.kind(), StoreFaultKind::OtherMemory);
    assert!(
        fault.to_string().contains("generation 1,") && fault.to_string().contains("generation 0,"),
        "{fault}"
    );
    fs::write(&log, &good).unwrap();
    // A link in its place.
    let moved = root.path().join("moved");
    fs::rename(&memory, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &memory).unwrap();
    let fault = refused(dir.path(), root.path());
    assert!(fault.to_string().contains("mode 120777"), "{fault}");
    fs::remove_file(&memory).unwrap();
    fs::rename(&moved, &memory).unwrap();
    assert!(!open_in(dir.path(), root.path(), 1, 5).1.power_cut);
}

#[test]
fn an_older_copy_of_the_folder_beside_a_newer_memory_is_refused() {
    let Some(root) = tmpfs() else { return };
    let (dir, backup) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    open(dir.path(), 1, 0).0.close(at(1)).unwrap();
    copy(dir.path(), backup.path());
    let presence = open_in(dir.path(), root.path(), 1, 2).0;
    beat(&presence, "ann", 3);
    drop(presence);
    // In place: the files stay the ones that they are.
    copy(backup.path(), dir.path());
    let fault = refused(dir.path(), root.path());
    assert_eq!(fault.kind(), StoreFaultKind::OtherMemory, "{fault}");
    assert!(
        fault.to_string().contains("newer than generation 1"),
        "{fault}"
    );
}

#[test]
fn an_opening_that_is_cut_short_at_any_step_is_begun_anew() {
    let Some(root) = tmpfs() else { return };
    for was_in_memory in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let presence = match was_in_memory {
            true => open_in(dir.path(), root.path(), 1, 0).0,
            false => open(dir.path(), 1, 0).0,
        };
        beat(&presence, "ann", 0);
        sweep(&presence, 0, false);
        presence.close(at(1)).unwrap();
        drop(presence);
        let before = contents(dir.path());
        // As it is once the headers of so many files are written, in their order, and the memory is
        // there, whole, without its maps, or not at all.
        for (headers, left) in [(1, 0), (1, 1), (1, 3), (2, 3)] {
            let (presence, report) = open_in(dir.path(), root.path(), 1, 2);
            drop(presence);
            for name in &FILES[headers..] {
                let at = FILES.iter().position(|file| file == name).unwrap();
                fs::write(dir.path().join(name), &before[at]).unwrap();
            }
            let memory = report.memory.unwrap();
            for name in &FILES[left..] {
                fs::remove_file(memory.join(name)).unwrap();
            }
            if left == 0 {
                fs::remove_dir(&memory).unwrap();
            }
            let (presence, report) = open_in(dir.path(), root.path(), 1, 3);
            assert_eq!((report.users, report.power_cut), (1, false));
            assert!(!report.clean, "what was cut short is not believed");
            assert_eq!(report.memory, Some(memory), "of the life that had begun");
            assert_eq!(memories(root.path()).len(), 1);
            assert_eq!(
                presence.state(Slot::new(0), at(3)).last_active,
                Some(at(0).unix)
            );
            presence.close(at(4)).unwrap();
            drop(presence);
            for (name, bytes) in FILES.iter().zip(&before) {
                fs::write(dir.path().join(name), bytes).unwrap();
            }
        }
    }
}

#[test]
fn a_memory_grows_with_its_users_and_the_folder_follows() {
    let Some(root) = tmpfs() else { return };
    let dir = tempfile::tempdir().unwrap();
    let presence = Arc::new(open_in(dir.path(), root.path(), 1, 0).0);
    let id = |user| format!("{user:0128}");
    let mut made = 0;
    // Without a writer there is room for so many; whoever is known is served as ever.
    while presence.intern(user(&id(made))).is_ok() {
        made += 1;
    }
    assert!(made > 20_000, "{made}");
    for _ in 0..3 {
        write_back(&presence, 1);
        assert!(presence.intern(user(&id(made))).is_ok());
        for more in 0..20_000 {
            presence.intern(user(&id(made + more))).unwrap();
        }
        made += 20_000;
    }
    write_back(&presence, 2);
    drop(presence);
    for memory in memories(root.path()) {
        fs::remove_dir_all(memory).unwrap();
    }
    let (presence, report) = open(dir.path(), 2, 3);
    assert_eq!((report.users, report.power_cut), (made, true));
    assert_eq!(
        presence.lookup(user(&id(made - 1))),
        Some(Slot::new(made - 1))
    );
}

#[test]
fn a_file_of_the_folder_that_is_cut_short_is_written_anew_from_the_memory() {
    let Some(root) = tmpfs() else { return };
    for name in FILES {
        let dir = tempfile::tempdir().unwrap();
        let presence = Arc::new(open_in(dir.path(), root.path(), 1, 0).0);
        for user in 0..5_000 {
            beat(&presence, &format!("user {user}"), 0);
        }
        sweep(&presence, 0, false);
        let mut writer = presence.write_back(u64::MAX);
        let mut cycle = |ms| {
            let mut failed = 0;
            loop {
                match writer.slice(at(ms)) {
                    Ok(report) if report.cycle_ms.is_some() => return (failed, report.loss),
                    Ok(_) => {}
                    Err(_) => failed += 1,
                }
            }
        };
        assert_eq!(cycle(5), (0, None));
        let cut = || {
            let file = fs::File::options().write(true).open(dir.path().join(name));
            file.unwrap().set_len(100).unwrap();
        };
        cut();
        // One user alone, whose cell is on the last page, changes. Nothing is looked for yet.
        beat(&presence, "user 4999", 6);
        assert_eq!(cycle(6), (u32::from(name != "users.log"), None), "{name}");
        cut();
        let (failed, loss) = cycle(5_000);
        assert_eq!((failed, loss.map(|loss| loss.file)), (0, Some(name)));
        assert_eq!(cycle(6_000), (0, None), "{name}");
        drop((presence, writer));
        for memory in memories(root.path()) {
            fs::remove_dir_all(memory).unwrap();
        }
        let (presence, report) = open(dir.path(), 2, 8_000);
        assert_eq!((report.users, report.online), (5_000, 5_000), "{name}");
        for (id, ms) in [("user 0", 0), ("user 4999", 6)] {
            let slot = presence.lookup(user(id)).expect("it is known");
            assert_eq!(
                presence.state(slot, at(8_000)).last_active,
                Some(at(ms).unix)
            );
        }
    }
}

#[test]
fn a_folder_that_is_named_for_the_memory_and_will_not_do_is_refused() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let store = dir.path().join("store");
    let opened = Presence::open(&in_memory(&store, dir.path(), 1), at(0));
    let fault = opened.err().expect("it is refused");
    assert_eq!(fault.kind(), StoreFaultKind::NoMemory, "{fault}");
    assert!(fault.to_string().contains("not on a tmpfs"), "{fault}");
    assert!(!store.exists(), "nothing is left behind");
}
