//! Writes the store back to disk, a little at a time, in the order that a power cut may interrupt.
//!
//! Owns the cycle: users.log, then stamps, then published, then the headers that say how far the
//! disk is. Only chunks that may have changed are written. Runs on a thread of its own and shares
//! no lock with the beat path; never decides anything.

use std::io;
use std::sync::Arc;

use super::Presence;
use super::online::{PUBLISHED_DIRTY, STAMPS_DIRTY};
use crate::slot::CHUNK_SLOTS;
use crate::store::map::{CellFile, FIRST_CELL};
use crate::time::{Mono, Now, Unix};

const CHUNK_BYTES: u64 = CHUNK_SLOTS as u64 * 8;
/// Bytes written back by one slice at most, and no more than a second's: short enough that a budget
/// is kept evenly.
const SLICE_BYTES_MAX: u64 = 4 << 20;
/// Chunks asked by one slice at most.
const SLICE_CHUNKS_MAX: u32 = 64 << 10;
/// A cycle begins at most this often.
const CYCLE_MS_MIN: u64 = 1_000;

/// Writes back in rolling slices; runs on a thread of its own.
pub struct Flusher {
    presence: Arc<Presence>,
    bytes_per_second: u64,
    slice_bytes_max: u64,
    step: Step,
    cycle: Cycle,
    /// Bytes of users.log, and cells of the maps, up to which the files' lengths are known to be on
    /// disk; none at first.
    log_lasting: u64,
    stamps_lasting: u32,
    published_lasting: u32,
}

/// What one slice did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlushReport {
    /// Bytes written back.
    pub bytes: u64,
    /// A whole cycle ended with this slice; its length in ms.
    pub cycle_ms: Option<u64>,
    /// How long to rest before the next slice, in ms.
    pub pause_ms: u64,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Begin,
    Log { from: u64 },
    Stamps { chunk: u32 },
    Published { chunk: u32 },
    Headers,
}

/// What was true when the cycle began; on disk when it ends.
#[derive(Clone, Copy, Debug, Default)]
struct Cycle {
    began_at: Mono,
    watermark: Unix,
    stamps_capacity: u32,
    published_capacity: u32,
    log_end: u64,
}

impl Flusher {
    pub(super) fn new(presence: Arc<Presence>, bytes_per_second: u64) -> Flusher {
        Flusher {
            presence,
            bytes_per_second: bytes_per_second.max(1),
            slice_bytes_max: SLICE_BYTES_MAX.min(bytes_per_second),
            step: Step::Begin,
            cycle: Cycle::default(),
            log_lasting: 0,
            stamps_lasting: 0,
            published_lasting: 0,
        }
    }

    /// The budget's part of a cycle's length, in ms, when everything about `users` users has
    /// changed; the disk's comes on top.
    pub fn cycle_ms(users: u32, bytes_per_second: u64) -> u64 {
        let maps_bytes = 2 * u64::from(users.div_ceil(CHUNK_SLOTS)) * CHUNK_BYTES;
        (maps_bytes.saturating_mul(1_000) / bytes_per_second.max(1)).max(CYCLE_MS_MIN)
    }

    /// Does the next bit of work, and says how long to rest. Blocks for as long as the disk takes.
    ///
    /// Errors: the disk's. The next slice begins the cycle again, and the cycle then writes all of
    /// the file that failed, for nobody says what the disk lacks (see `MappedFile::is_doubted`).
    /// The caller rests before that.
    pub fn slice(&mut self, now: Now) -> io::Result<FlushReport> {
        if self.presence.is_closed() {
            return Ok(FlushReport {
                pause_ms: CYCLE_MS_MIN,
                ..FlushReport::default()
            });
        }
        let done = match self.step {
            Step::Begin => {
                self.begin(now);
                self.log(self.presence.log_synced_bytes())
            }
            Step::Log { from } => self.log(from),
            Step::Stamps { chunk } => {
                self.cells(&self.presence.stamps, STAMPS_DIRTY, chunk)
                    .map(|(bytes, next)| {
                        self.step = next
                            .map_or(Step::Published { chunk: 0 }, |chunk| Step::Stamps { chunk });
                        self.report(bytes)
                    })
            }
            Step::Published { chunk } => self
                .cells(&self.presence.published, PUBLISHED_DIRTY, chunk)
                .map(|(bytes, next)| {
                    self.step = next.map_or(Step::Headers, |chunk| Step::Published { chunk });
                    self.report(bytes)
                }),
            Step::Headers => self.headers(now),
        };
        if done.is_err() {
            self.step = Step::Begin;
            (
                self.log_lasting,
                self.stamps_lasting,
                self.published_lasting,
            ) = (0, 0, 0);
        }
        done
    }

    fn begin(&mut self, now: Now) {
        let presence = &self.presence;
        self.cycle = Cycle {
            began_at: now.mono,
            watermark: presence
                .vigil
                .earliest_turn()
                .map_or(now.unix, |turn| turn.min(now.unix)),
            stamps_capacity: presence.stamps.capacity(),
            published_capacity: presence.published.capacity(),
            log_end: presence.interner.log().end(),
        };
    }

    /// users.log first: a slot is on disk before the header says that its stamps may be. Marked
    /// when all of it is, for a mark must be where a record ends.
    fn log(&mut self, from: u64) -> io::Result<FlushReport> {
        let presence = &self.presence;
        let end = self.cycle.log_end;
        let to = end.min(from.saturating_add(self.slice_bytes_max));
        if to > from {
            presence.sync_log_range(from, to)?;
        }
        if to < end {
            self.step = Step::Log { from: to };
            return Ok(self.report(to - from));
        }
        if end > presence.log_synced_bytes() {
            let file = presence.interner.log().file();
            let length = file.len_bytes();
            if length > self.log_lasting {
                file.sync()?;
                self.log_lasting = length;
            }
            file.believe();
            presence.mark_log_synced(end)?;
        }
        self.step = Step::Stamps { chunk: 0 };
        Ok(self.report(to.saturating_sub(from)))
    }

    /// Writes back runs of chunks that may be dirty, or of all if the file is doubted, from `chunk`
    /// on; returns the bytes and where to go on.
    fn cells<V: Sync>(
        &self,
        cells: &CellFile<V>,
        flag: u8,
        chunk: u32,
    ) -> io::Result<(u64, Option<u32>)> {
        let online = &self.presence.online;
        let doubted = cells.file().is_doubted();
        let chunks = self.presence.users().div_ceil(CHUNK_SLOTS);
        let last = chunks.min(chunk.saturating_add(SLICE_CHUNKS_MAX));
        let (mut bytes, mut at) = (0, chunk);
        while at < last && bytes < self.slice_bytes_max {
            let first = at;
            // Beats for publishers who are online leave no flag: where somebody is online, stamps
            // change.
            while at < last && bytes < self.slice_bytes_max {
                let flagged = online.lower(at as usize, flag);
                if !(flagged || doubted || flag == STAMPS_DIRTY && online.count(at as usize) > 0) {
                    break;
                }
                bytes += CHUNK_BYTES;
                at += 1;
            }
            if at == first {
                at += 1;
                continue;
            }
            let (offset, length) = (
                FIRST_CELL + u64::from(first) * CHUNK_BYTES,
                u64::from(at - first) * CHUNK_BYTES,
            );
            if doubted {
                cells.file().dirty(offset, length);
            }
            let written = cells.file().sync_range(offset, length);
            if let Err(error) = written {
                (first..at).for_each(|chunk| online.raise(chunk as usize, flag));
                return Err(error);
            }
        }
        let next = (at < chunks).then_some(at);
        if doubted && next.is_none() {
            // A failure begins the cycle again: all of this pass, which began with the first chunk,
            // has succeeded.
            cells.file().believe();
        }
        Ok((bytes, next))
    }

    /// A slice's `sync_range` has waited for its cells and their metadata, so nothing is left but
    /// the files' lengths, where these have grown: to write all of a file back here would write all
    /// that has changed since its slice, unpaced.
    fn headers(&mut self, now: Now) -> io::Result<FlushReport> {
        let Cycle {
            began_at,
            watermark,
            stamps_capacity,
            published_capacity,
            ..
        } = self.cycle;
        let (stamps, published) = (self.presence.stamps.file(), self.presence.published.file());
        if stamps_capacity > self.stamps_lasting {
            stamps.sync()?;
            self.presence.mark_stamps_synced(stamps_capacity)?;
            stamps.sync_range(0, FIRST_CELL)?;
            self.stamps_lasting = stamps_capacity;
        }
        if published_capacity > self.published_lasting {
            published.sync()?;
            self.published_lasting = published_capacity;
        }
        self.presence
            .mark_published_synced(published_capacity, watermark, false)?;
        published.sync_range(0, FIRST_CELL)?;
        self.step = Step::Begin;
        let cycle_ms = now.mono.ms_since(began_at);
        Ok(FlushReport {
            bytes: 0,
            cycle_ms: Some(cycle_ms),
            pause_ms: CYCLE_MS_MIN.saturating_sub(cycle_ms),
        })
    }

    fn report(&self, bytes: u64) -> FlushReport {
        let pause_ms = bytes.saturating_mul(1_000) / self.bytes_per_second;
        FlushReport {
            bytes,
            cycle_ms: None,
            pause_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::atomic::Ordering;

    use super::super::StoreOptions;
    use super::super::tests::at;
    use super::*;
    use crate::slot::Slot;
    use crate::store::header::{Header, Kind};
    use crate::store::region::MappedFile;
    use crate::wire::User;

    /// A store with so many users, one cycle old.
    fn store(dir: &Path, users: u32) -> (Arc<Presence>, Flusher) {
        let options = StoreOptions {
            dir: dir.to_owned(),
            users_max: 1 << 20,
            offline_after_ms: 25_000,
            beat_skew_max_ms: 30_000,
            shards: 1,
            boot_id: [1; 16],
        };
        let presence = Arc::new(Presence::open(&options, at(0)).unwrap().0);
        make(&presence, 0, users);
        let mut flusher = presence.flusher(u64::MAX);
        cycle(&mut flusher, 0);
        (presence, flusher)
    }

    fn make(presence: &Presence, from: u32, to: u32) {
        for n in from..to {
            let slot = presence.intern(User::parse(format!("{n:032}").as_bytes()).unwrap());
            assert_eq!(slot, Ok(Slot::new(n)));
        }
    }

    /// Bytes of the log, of the stamps and of the published cells.
    fn cycle(flusher: &mut Flusher, ms: u64) -> [u64; 3] {
        let [log, stamps, published, headers] = [0; 4].map(|_| flusher.slice(at(ms)).unwrap());
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
        let (presence, mut flusher) = store(dir.path(), 1_000);
        let log = presence.interner.log();
        let synced = log.end();
        assert_eq!(header(log.file(), Kind::Users).synced_bytes, synced);
        make(&presence, 1_000, 2_000);
        fail_next_sync(log.file());
        assert!(flusher.slice(at(1)).is_err());
        assert_eq!(header(log.file(), Kind::Users).synced_bytes, synced);
        // 41 bytes a record.
        assert_dirties(10, || {
            assert_eq!(flusher.slice(at(2)).unwrap().bytes, 41_000)
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
        let (presence, mut flusher) = store(dir.path(), 3 * CHUNK_SLOTS);
        let watermark = || header(presence.published.file(), Kind::Published).watermark;
        presence.record_leave(Slot::new(0), at(1).unix, at(1));
        assert_eq!(cycle(&mut flusher, 1), [0, CHUNK_BYTES, 0]);
        presence.record_leave(Slot::new(1), at(2).unix, at(2));
        flusher.slice(at(2)).unwrap();
        fail_next_sync(presence.stamps.file());
        assert!(flusher.slice(at(2)).is_err());
        assert_eq!(watermark(), at(1).unix);
        // An error may be of any page, and is told but once.
        assert_dirties(CHUNKS * 8, || {
            assert_eq!(cycle(&mut flusher, 3), [0, CHUNKS * CHUNK_BYTES, 0]);
        });
        assert_eq!(watermark(), at(3).unix);
        assert_eq!(cycle(&mut flusher, 4), [0, 0, 0]);
        // The last sync of a cycle.
        for _ in 0..3 {
            flusher.slice(at(5)).unwrap();
        }
        fail_next_sync(presence.published.file());
        assert!(flusher.slice(at(5)).is_err());
        assert_dirties(CHUNKS * 8, || {
            assert_eq!(cycle(&mut flusher, 6), [0, 0, CHUNKS * CHUNK_BYTES]);
        });
    }

    #[test]
    fn a_close_does_not_believe_a_file_whose_sync_failed() {
        let dir = tempfile::tempdir().unwrap();
        let (presence, mut flusher) = store(dir.path(), 3 * CHUNK_SLOTS);
        let cut_short = |presence: &Presence, flusher: &mut Flusher| {
            presence.record_leave(Slot::new(0), at(1).unix, at(1));
            fail_next_sync(presence.stamps.file());
            (0..2)
                .map(|_| flusher.slice(at(1)))
                .filter(Result::is_err)
                .count()
        };
        assert_eq!(cut_short(&presence, &mut flusher), 1);
        assert_dirties(3 * 8, || presence.close(at(2)).unwrap());
        drop((presence, flusher));
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
