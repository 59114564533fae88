//! The steps of an opening, each by itself: check, map, recover, mark.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::StoreFaultKind;
use super::cells::{Published, Stamp, StampFlags};
use super::header::{Header, Kind};
use super::log::{self, START};
use super::open::{LogRead, Parts, check};
use crate::slot::{CHUNK_SLOTS, Slot};
use crate::status::Status;
use crate::time::Unix;

const NOW: Unix = Unix::from_ms(1_000_000);
const BOOT: [u8; 16] = [1; 16];

/// Of a folder, with whatever users.log says.
fn mapped(dir: &Path) -> Parts {
    let checked = check(dir, BOOT).unwrap();
    let (parts, ()) = checked
        .map(100, NOW, |bytes, _| {
            Ok(LogRead {
                made: (),
                scan: log::scan(bytes, START, None, |_, _| {}),
                contradiction: None,
            })
        })
        .unwrap();
    parts
}

/// A store of two users, marked as open and left like that.
fn left_open(dir: &Path) {
    let parts = mapped(dir);
    parts.mark([None; 2], NOW).unwrap();
    parts.log.append(0, b"ann").unwrap();
    parts.log.append(1, b"bob").unwrap();
    parts.headers.mark_log(&parts.log, parts.log.end()).unwrap();
    parts.stamps.reserve(2).unwrap();
    parts.published.reserve(2).unwrap();
}

fn header(dir: &Path, kind: Kind) -> Header {
    Header::decode(kind, &fs::read(dir.join(kind.file_name())).unwrap()).unwrap()
}

fn stamp(ms: u64) -> Stamp {
    Stamp::new(Unix::from_ms(ms), Unix::from_ms(ms), StampFlags::default())
}

#[test]
fn check_writes_nothing_and_says_what_the_last_run_was() {
    let dir = tempfile::tempdir().unwrap();
    let last = check(dir.path(), BOOT).unwrap().last;
    assert!(last.is_new && last.stamps_missing && last.published_missing);
    left_open(dir.path());
    let before = fs::read(dir.path().join("users.log")).unwrap();
    let last = check(dir.path(), BOOT).unwrap().last;
    assert!(!last.is_new && !last.clean && !last.power_cut);
    assert!(check(dir.path(), [2; 16]).unwrap().last.power_cut);
    assert_eq!(fs::read(dir.path().join("users.log")).unwrap(), before);
    fs::remove_file(dir.path().join("users.log")).unwrap();
    // The maps of a store whose write-back never ended a cycle are as good as none.
    assert!(check(dir.path(), BOOT).unwrap().last.is_new);
}

#[test]
fn check_refuses_a_folder_that_another_has() {
    let dir = tempfile::tempdir().unwrap();
    let _first = check(dir.path(), BOOT).unwrap();
    let fault = check(dir.path(), BOOT).err().unwrap();
    assert_eq!(fault.kind(), StoreFaultKind::Locked);
}

#[test]
fn map_cuts_a_torn_tail_and_raises_the_generation() {
    let dir = tempfile::tempdir().unwrap();
    left_open(dir.path());
    let path = dir.path().join("users.log");
    let file = fs::File::options().write(true).open(&path).unwrap();
    // A record of three bytes, of which two are there.
    file.write_all_at(&[3, 2, 0, 0, 0, b'e', b'v'], 152)
        .unwrap();
    let parts = mapped(dir.path());
    assert_eq!(
        (parts.slots, parts.torn_bytes, parts.log.end()),
        (2, 7, 152)
    );
    assert_eq!(fs::read(&path).unwrap()[152..160], [0; 8]);
    assert_eq!(parts.headers.header(Kind::Users).generation, 2);
    assert_eq!(
        header(dir.path(), Kind::Users).generation,
        1,
        "not marked yet"
    );
}

#[test]
fn map_refuses_what_was_synced_and_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    left_open(dir.path());
    let path = dir.path().join("users.log");
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"x", 146).unwrap();
    let read = |bytes: &[u8], _| {
        Ok(LogRead {
            made: (),
            scan: log::scan(bytes, START, None, |_, _| {}),
            contradiction: None,
        })
    };
    let fault = check(dir.path(), BOOT).unwrap().map(100, NOW, read);
    assert_eq!(fault.err().unwrap().kind(), StoreFaultKind::RecordDamaged);
}

#[test]
fn recover_leaves_cells_of_users_alone_and_zeroes_the_others() {
    let dir = tempfile::tempdir().unwrap();
    left_open(dir.path());
    let parts = mapped(dir.path());
    let day_ms = 86_400_000;
    let cell = |n| parts.stamps.cell(Slot::new(n));
    cell(0).store(stamp(999_000), Ordering::Relaxed);
    cell(1).store(stamp(1_000_001 + day_ms), Ordering::Relaxed);
    cell(2).store(stamp(5), Ordering::Relaxed);
    let recovered = parts
        .recover(std::iter::empty(), |_| false, 25_000, NOW)
        .unwrap();
    assert!(!recovered.republished && !recovered.published_rebuilt);
    let ms = [0, 1, 2].map(|n| cell(n).load(Ordering::Relaxed).ms());
    assert_eq!(ms, [999_000, 0, 0], "kept, impossible, of nobody");
    assert_eq!(parts.stamps.capacity(), CHUNK_SLOTS);

    cell(1).store(stamp(999_500), Ordering::Relaxed);
    let free = std::iter::once(Slot::new(0));
    parts.recover(free, |_| false, 25_000, NOW).unwrap();
    let ms = [0, 1].map(|n| cell(n).load(Ordering::Relaxed).ms());
    assert_eq!(ms, [0, 999_500], "a free slot has no past");
}

#[test]
fn recover_tells_anew_who_is_there_when_published_map_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    left_open(dir.path());
    let parts = mapped(dir.path());
    let (ann, bob) = (Slot::new(0), Slot::new(1));
    parts
        .stamps
        .cell(ann)
        .store(stamp(900_000), Ordering::Relaxed);
    parts
        .stamps
        .cell(bob)
        .store(stamp(925_000), Ordering::Relaxed);
    drop(parts);
    fs::remove_file(dir.path().join("published.map")).unwrap();
    let parts = mapped(dir.path());
    let recovered = parts
        .recover(std::iter::empty(), |_| false, 24_999, NOW)
        .unwrap();
    assert!(recovered.republished && recovered.published_rebuilt);
    let told = [ann, bob].map(|slot| parts.published.cell(slot).load(Ordering::Relaxed));
    assert_eq!(
        told,
        [Published::NEVER, Published::new(NOW, Status::Online)]
    );
}

#[test]
fn mark_says_whose_the_files_are_and_that_they_are_open() {
    let dir = tempfile::tempdir().unwrap();
    let parts = mapped(dir.path());
    let window = Some((Unix::from_ms(5), Unix::from_ms(6)));
    parts.mark([window, None], NOW).unwrap();
    drop(parts);
    let headers = [Kind::Users, Kind::Stamps, Kind::Published].map(|kind| header(dir.path(), kind));
    let [users, stamps, published] = headers;
    assert_eq!(users.store_id, stamps.store_id);
    assert_eq!(users.store_id, published.store_id);
    assert_eq!(headers.map(|header| header.generation), [1; 3]);
    assert_eq!((published.boot_id, published.clean), (BOOT, false));
    assert_eq!(published.ambiguous, [window, None]);
    assert_eq!(users.created_at, NOW);
}
