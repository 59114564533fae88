//! The steps of an opening, each by itself: check, map, recover, mark.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::StoreFaultKind;
use super::cells::{Published, Stamp, StampFlags};
use super::header::{Header, Home, Kind, MemoryPath};
use super::memory::MemoryChoice;
use super::open::{LogRead, Parts, check};
use super::record::{self, START};
use crate::slot::{CHUNK_SLOTS, Slot};
use crate::status::Status;
use crate::time::Unix;

const NOW: Unix = Unix::from_ms(1_000_000);
const BOOT: [u8; 16] = [1; 16];

/// Of a folder, with whatever users.log says.
fn mapped(dir: &Path) -> Parts {
    let checked = check(dir, BOOT, &MemoryChoice::Off).unwrap();
    let (parts, ()) = checked
        .map(100, NOW, |bytes, _| {
            Ok(LogRead {
                made: (),
                scan: record::scan(bytes, START, None, |_, _| {}),
                contradiction: None,
            })
        })
        .unwrap();
    parts
}

/// A store of two users, marked as open and left like that.
fn left_open(dir: &Path) {
    let mut parts = mapped(dir);
    parts.mark([None; 2], NOW).unwrap();
    parts.log.append(0, b"ann").unwrap();
    parts.log.append(1, b"bob").unwrap();
    let end = parts.log.end();
    parts.headers.mark_log(&parts.log, end, NOW).unwrap();
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
    let last = check(dir.path(), BOOT, &MemoryChoice::Off).unwrap().last;
    assert!(last.is_new && last.stamps_missing && last.published_missing);
    left_open(dir.path());
    let before = fs::read(dir.path().join("users.log")).unwrap();
    let last = check(dir.path(), BOOT, &MemoryChoice::Off).unwrap().last;
    assert!(!last.is_new && !last.clean && !last.power_cut);
    assert!(
        check(dir.path(), [2; 16], &MemoryChoice::Off)
            .unwrap()
            .last
            .power_cut
    );
    assert_eq!(fs::read(dir.path().join("users.log")).unwrap(), before);
    fs::remove_file(dir.path().join("users.log")).unwrap();
    // The maps of a store whose write-back never ended a cycle are as good as none.
    assert!(
        check(dir.path(), BOOT, &MemoryChoice::Off)
            .unwrap()
            .last
            .is_new
    );
}

#[test]
fn check_refuses_a_folder_that_another_has() {
    let dir = tempfile::tempdir().unwrap();
    let _first = check(dir.path(), BOOT, &MemoryChoice::Off).unwrap();
    let fault = check(dir.path(), BOOT, &MemoryChoice::Off).err().unwrap();
    assert_eq!(fault.kind(), StoreFaultKind::Locked);
}

#[test]
fn map_cuts_a_torn_tail_and_raises_the_generation() {
    let dir = tempfile::tempdir().unwrap();
    left_open(dir.path());
    let path = dir.path().join("users.log");
    let file = fs::File::options().write(true).open(&path).unwrap();
    // A record of three bytes, of which two are there.
    file.write_all_at(&[3, 2, 0, 0, 0, b'e', b'v'], 4_120)
        .unwrap();
    let parts = mapped(dir.path());
    assert_eq!(
        (parts.slots, parts.torn_bytes, parts.log.end()),
        (2, 7, 4_120)
    );
    assert_eq!(fs::read(&path).unwrap()[4_120..4_128], [0; 8]);
    let generation = |kind| header(dir.path(), kind).generation;
    let generations = [Kind::Users, Kind::Stamps, Kind::Published].map(generation);
    assert_eq!(generations, [2, 2, 1], "the last is not marked yet");
}

#[test]
fn map_refuses_what_was_synced_and_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    left_open(dir.path());
    let path = dir.path().join("users.log");
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"x", 4_114).unwrap();
    let read = |bytes: &[u8], _| {
        Ok(LogRead {
            made: (),
            scan: record::scan(bytes, START, None, |_, _| {}),
            contradiction: None,
        })
    };
    let fault = check(dir.path(), BOOT, &MemoryChoice::Off)
        .unwrap()
        .map(100, NOW, read);
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
    let mut parts = mapped(dir.path());
    let window = Some((Unix::from_ms(5), Unix::from_ms(6)));
    parts.mark([window, None], NOW).unwrap();
    drop(parts);
    let headers = [Kind::Users, Kind::Stamps, Kind::Published].map(|kind| header(dir.path(), kind));
    let [users, stamps, published] = headers;
    assert_eq!(users.store_id, stamps.store_id);
    assert_eq!(users.store_id, published.store_id);
    assert_eq!(headers.map(|header| header.generation), [1; 3]);
    assert_eq!(users.life, published.life);
    assert_ne!(users.life, 0);
    assert_eq!(headers.map(|header| header.boot_id), [BOOT; 3]);
    assert_eq!(headers.map(|header| header.written_at), [NOW; 3]);
    assert_eq!(headers.map(|header| header.home), [Home::Files; 3]);
    assert!(!published.clean);
    assert_eq!(published.ambiguous, [window, None]);
    assert_eq!(users.created_at, NOW);
}

/// Two openings in a row that are cut short must not leave generations that count alike.
#[test]
fn an_opening_that_was_cut_short_is_taken_up() {
    let dir = tempfile::tempdir().unwrap();
    left_open(dir.path());
    let of = |kind| {
        let header = header(dir.path(), kind);
        (header.generation, header.life)
    };
    let first = of(Kind::Published);
    drop(mapped(dir.path()));
    let begun = of(Kind::Users);
    assert_eq!((begun.0, of(Kind::Published)), (2, first));
    let mut parts = mapped(dir.path());
    assert_eq!(of(Kind::Users), begun, "no third generation");
    parts.mark([None; 2], NOW).unwrap();
    assert_eq!([Kind::Stamps, Kind::Published].map(of), [begun; 2]);
}

/// A sync that failed while a store was opened is told once; the next opening must not believe what
/// the page cache says. So users.log says first that an opening has begun.
#[test]
fn an_opening_that_failed_after_a_clean_close_leaves_no_clean_store() {
    let dir = tempfile::tempdir().unwrap();
    left_open(dir.path());
    patch_clean(dir.path());
    let last = check(dir.path(), BOOT, &MemoryChoice::Off).unwrap().last;
    assert!(last.clean && !last.power_cut);
    drop(mapped(dir.path()));
    for boot in [BOOT, [2; 16]] {
        let last = check(dir.path(), boot, &MemoryChoice::Off).unwrap().last;
        assert!(!last.clean, "it is doubted");
        assert!(!last.power_cut, "and nobody was told anything since");
    }
}

/// Rewrites published.map's header as a close does.
fn patch_clean(dir: &Path) {
    let mut published = header(dir, Kind::Published);
    published.clean = true;
    write_header(dir, published);
}

fn write_header(dir: &Path, header: Header) {
    let path = dir.join(header.kind.file_name());
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&header.encode(), 0).unwrap();
}

#[test]
fn files_of_different_times_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    left_open(dir.path());
    for (kind, generation, life) in [
        (Kind::Users, 0, 9),
        (Kind::Users, 1, 9),
        (Kind::Users, 3, 9),
        (Kind::Stamps, 0, 9),
        (Kind::Stamps, 2, 9),
        (Kind::Published, 1, 9),
        (Kind::Published, 2, 9),
    ] {
        let good = header(dir.path(), kind);
        write_header(
            dir.path(),
            Header {
                generation,
                life,
                ..good
            },
        );
        let fault = check(dir.path(), BOOT, &MemoryChoice::Off)
            .err()
            .expect("it is refused");
        assert_eq!(fault.kind(), StoreFaultKind::OtherTime, "{fault}");
        assert!(fault.to_string().contains("at offset 32: "), "{fault}");
        write_header(dir.path(), good);
    }
    assert!(check(dir.path(), BOOT, &MemoryChoice::Off).is_ok());
}

#[test]
fn a_store_whose_memory_is_gone_opens_as_after_a_power_cut_unless_it_was_closed() {
    let dir = tempfile::tempdir().unwrap();
    left_open(dir.path());
    let last = || check(dir.path(), BOOT, &MemoryChoice::Off).unwrap().last;
    assert!(!last().power_cut, "the page cache has all");
    let mut published = header(dir.path(), Kind::Published);
    published.home = Home::Memory(MemoryPath::new(Path::new("/dev/shm/gone")).unwrap());
    write_header(dir.path(), published);
    assert!(last().power_cut);
    patch_clean(dir.path());
    assert!(last().clean && !last().power_cut);
}

#[test]
fn a_refused_opening_leaves_nothing_behind() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("a/b");
    drop(check(&dir, BOOT, &MemoryChoice::Off).unwrap());
    assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 0);
    drop(mapped(&dir));
    assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 0);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("mine"), "").unwrap();
    drop(mapped(&dir));
    let names: Vec<_> = fs::read_dir(&dir).unwrap().collect();
    assert_eq!(names.len(), 1, "what was there stays: {names:?}");
    let mut parts = mapped(&dir);
    parts.mark([None; 2], NOW).unwrap();
    drop(parts);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 4);
}
