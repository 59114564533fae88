//! The write-back of a presence database: its files, lent to the store slice by slice.
//!
//! Owns nothing but where the write-back is. Runs on a thread of its own.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Presence;
use crate::store::WriteBackReport;
use crate::store::region::MappedFile;
use crate::store::write_back::{Files, Rolling};
use crate::time::{Now, Unix};

/// Writes back in rolling slices; runs on a thread of its own.
pub struct WriteBack {
    presence: Arc<Presence>,
    rolling: Rolling,
}

impl WriteBack {
    pub(super) fn new(presence: Arc<Presence>, bytes_per_second: u64) -> WriteBack {
        WriteBack {
            presence,
            rolling: Rolling::new(bytes_per_second),
        }
    }

    /// The budget's part of a cycle's length, in ms, when everything about `users` users has
    /// changed; the disk's comes on top.
    pub fn cycle_ms(users: u32, bytes_per_second: u64) -> u64 {
        Rolling::cycle_ms(users, bytes_per_second)
    }

    /// Does the next bit of work, and says how long to rest. Blocks for as long as the disk takes.
    ///
    /// Errors: the disk's. The next slice begins the cycle again, and the cycle then writes all of
    /// the file that failed, for nobody says what the disk lacks. The caller rests before that.
    pub fn slice(&mut self, now: Now) -> io::Result<WriteBackReport> {
        let presence = &self.presence;
        let report = presence.with_files(now.unix, |files| self.rolling.slice(files, now))?;
        if let Some(cycle_ms) = report.cycle_ms {
            let up_to_ms = now.mono.ms().saturating_sub(cycle_ms);
            presence.written_up_to_ms.store(up_to_ms, Ordering::Relaxed);
            presence.cycle_ended();
        }
        Ok(report)
    }
}

impl Presence {
    /// How long ago the last write-back began that came to its end, in ms; or the opening.
    pub fn unwritten_ms(&self, now: Now) -> u64 {
        let up_to_ms = self.written_up_to_ms.load(Ordering::Relaxed);
        now.mono.ms().saturating_sub(up_to_ms)
    }

    /// The memory that has the cells; None: they are in the folder's files.
    pub fn memory(&self) -> Option<&Path> {
        self.identity.memory()
    }

    /// Grows whenever the disk has answered the write-back of a memory.
    pub fn disk_answers(&self) -> u64 {
        let files = [
            self.interner.log().file(),
            self.stamps.file(),
            self.published.file(),
        ];
        files.into_iter().map(MappedFile::disk_answers).sum()
    }

    /// Writes everything back and marks the store as closed cleanly. The shards and the write-back
    /// have stopped before; the folder's lock goes with the last reference.
    ///
    /// Errors: the disk's; the store is then not marked, and opens as after a crash.
    pub fn close(&self, now: Now) -> io::Result<()> {
        // Of a step back since the last turns nobody else tells the next start.
        self.resume.stepped(now.unix, now);
        self.with_files(now.unix, |files| files.close(now.unix))
    }

    /// Lends the files. Before any shard has begun a turn all that was published stands in cells.
    fn with_files<T>(&self, now: Unix, use_them: impl FnOnce(&Files<'_>) -> T) -> T {
        use_them(&Files {
            log: self.interner.log(),
            stamps: &self.stamps,
            published: &self.published,
            headers: &self.identity,
            slots: self.users(),
            marks: self.online.flags(),
            // Beats for publishers who are online leave no mark: where somebody is online, stamps
            // change.
            lively: self.online.counts(),
            published_up_to: self.vigil.earliest_turn().unwrap_or(now),
            windows: &|| self.resume.ambiguous(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::StoreOptions;
    use super::super::tests::at;
    use super::*;
    use crate::slot::{CHUNK_SLOTS, Slot};
    use crate::store::header::{Header, Kind};
    use crate::wire::User;

    const CHUNK_BYTES: u64 = CHUNK_SLOTS as u64 * 8;

    fn options(dir: &Path) -> StoreOptions {
        StoreOptions {
            dir: dir.to_owned(),
            users_max: 1 << 20,
            offline_after_ms: 25_000,
            restart_grace_ms: u64::MAX,
            shards: 1,
            memory: crate::presence::MemoryChoice::Off,
            boot_id: [1; 16],
        }
    }

    /// A store with so many users, one cycle old.
    fn store(dir: &Path, users: u32) -> (Arc<Presence>, WriteBack) {
        let presence = Arc::new(Presence::open(&options(dir), at(0)).unwrap().0);
        make(&presence, 0, users);
        let mut write_back = presence.write_back(u64::MAX);
        cycle(&mut write_back, 0);
        (presence, write_back)
    }

    fn make(presence: &Presence, from: u32, to: u32) {
        for n in from..to {
            let slot = presence.intern(User::parse(format!("{n:032}").as_bytes()).unwrap());
            assert_eq!(slot, Ok(Slot::new(n)));
        }
    }

    /// Bytes of the log, of the stamps and of the published cells.
    fn cycle(write_back: &mut WriteBack, ms: u64) -> [u64; 3] {
        let [log, stamps, published, headers] = [0; 4].map(|_| write_back.slice(at(ms)).unwrap());
        assert_eq!((headers.bytes, headers.cycle_ms), (0, Some(0)));
        [log.bytes, stamps.bytes, published.bytes]
    }

    /// As the kernel does it: the next sync leaves clean pages, and fails.
    fn fail_next_sync(file: &MappedFile) {
        file.failing_syncs.store(1, Ordering::Relaxed);
    }

    fn header(file: &MappedFile, kind: Kind) -> Header {
        Header::decode(kind, &fs::read(file.path()).unwrap()).unwrap()
    }

    /// Pages that this thread has found clean and made dirty (proc_pid_io(5)).
    fn dirtied_pages() -> u64 {
        let io = fs::read_to_string("/proc/thread-self/io").unwrap_or_default();
        let line = io
            .lines()
            .find_map(|line| line.strip_prefix("write_bytes: "));
        line.map_or(0, |bytes| bytes.parse::<u64>().unwrap()) / 4_096
    }

    /// So many pages at least were made dirty by `doing`; on a file system without a disk none ever
    /// is.
    fn assert_dirties(pages: u64, doing: impl FnOnce()) {
        let before = dirtied_pages();
        doing();
        assert!(before == 0 || dirtied_pages() >= before + pages);
    }

    #[test]
    fn a_log_whose_sync_failed_is_written_anew_before_it_is_marked() {
        let dir = tempfile::tempdir().unwrap();
        let (presence, mut write_back) = store(dir.path(), 1_000);
        let log = presence.interner.log();
        let synced = log.end();
        assert_eq!(header(log.file(), Kind::Users).synced_bytes, synced);
        make(&presence, 1_000, 2_000);
        fail_next_sync(log.file());
        assert!(write_back.slice(at(1)).is_err());
        assert_eq!(header(log.file(), Kind::Users).synced_bytes, synced);
        // 41 bytes a record.
        assert_dirties(10, || {
            assert_eq!(write_back.slice(at(2)).unwrap().bytes, 41_000)
        });
        assert_eq!(
            header(log.file(), Kind::Users).synced_bytes,
            synced + 41_000
        );
        assert!(!log.file().is_doubted());
    }

    #[test]
    fn a_map_whose_sync_failed_is_written_anew_before_it_is_marked() {
        const CHUNKS: u64 = 3;
        let dir = tempfile::tempdir().unwrap();
        let (presence, mut write_back) = store(dir.path(), 3 * CHUNK_SLOTS);
        let watermark = || header(presence.published.file(), Kind::Published).watermark;
        presence.record_leave(Slot::new(0), at(1).unix, at(1));
        assert_eq!(cycle(&mut write_back, 1), [0, CHUNK_BYTES, 0]);
        presence.record_leave(Slot::new(1), at(2).unix, at(2));
        write_back.slice(at(2)).unwrap();
        fail_next_sync(presence.stamps.file());
        assert!(write_back.slice(at(2)).is_err());
        assert_eq!(watermark(), at(1).unix);
        // An error may be of any page, and is told but once.
        assert_dirties(CHUNKS * 8, || {
            assert_eq!(cycle(&mut write_back, 3), [0, CHUNKS * CHUNK_BYTES, 0]);
        });
        assert_eq!(watermark(), at(3).unix);
        assert_eq!(cycle(&mut write_back, 4), [0, 0, 0]);
        // The last sync of a cycle.
        for _ in 0..3 {
            write_back.slice(at(5)).unwrap();
        }
        fail_next_sync(presence.published.file());
        assert!(write_back.slice(at(5)).is_err());
        assert_dirties(CHUNKS * 8, || {
            assert_eq!(cycle(&mut write_back, 6), [0, 0, CHUNKS * CHUNK_BYTES]);
        });
    }

    #[test]
    fn a_close_does_not_believe_a_file_whose_sync_failed() {
        let dir = tempfile::tempdir().unwrap();
        let (presence, mut write_back) = store(dir.path(), 3 * CHUNK_SLOTS);
        let cut_short = |presence: &Presence, write_back: &mut WriteBack| {
            presence.record_leave(Slot::new(0), at(1).unix, at(1));
            fail_next_sync(presence.stamps.file());
            (0..2)
                .map(|_| write_back.slice(at(1)))
                .filter(Result::is_err)
                .count()
        };
        assert_eq!(cut_short(&presence, &mut write_back), 1);
        assert_dirties(3 * 8, || presence.close(at(2)).unwrap());
        drop((presence, write_back));
    }

    /// The page cache has a header that says so, and the disk has not.
    #[test]
    fn a_close_that_failed_says_nowhere_that_it_has_not() {
        for failing in [1, 0b10] {
            let dir = tempfile::tempdir().unwrap();
            let (presence, write_back) = store(dir.path(), 10);
            let file = presence.published.file();
            file.failing_syncs.store(failing, Ordering::Relaxed);
            assert!(presence.close(at(2)).is_err());
            assert!(!header(file, Kind::Published).clean, "{failing:b}");
            drop((presence, write_back));
            let (_, report) = Presence::open(&options(dir.path()), at(3)).unwrap();
            assert!(!report.clean);
        }
    }

    /// What the last run could not write back is in the page cache, marked as written.
    #[test]
    fn a_run_that_did_not_close_leaves_files_that_are_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        drop(store(dir.path(), 3 * CHUNK_SLOTS));
        let mut reopened = None;
        assert_dirties(2 * 3 * 8, || {
            reopened = Some(store(dir.path(), 3 * CHUNK_SLOTS))
        });
    }
}
