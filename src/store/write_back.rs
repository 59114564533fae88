//! Writes the store back to disk, a little at a time, in the order that a power cut may interrupt.
//!
//! Owns the cycle: users.log, then stamps, then published, then the headers that say how far the
//! disk is. Only chunks that may have changed are written. Takes the files as they are lent for a
//! slice; shares no lock with who writes cells, and never decides anything.

use std::io;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use super::cells::{Published, Stamp};
use super::header::{Kind, Windows};
use super::headers::{Headers, OnDisk};
use super::log::Log;
use super::map::{CellFile, FIRST_CELL};
use super::record::FIRST_RECORD;
use super::region::FileLoss;
use crate::slot::CHUNK_SLOTS;
use crate::time::{Mono, Now, Unix};

/// Mark of a chunk: a stamp may have changed since it was last written back.
pub(crate) const STAMPS_DIRTY: u8 = 2;
/// Mark of a chunk: a published cell may have changed since it was last written back.
pub(crate) const PUBLISHED_DIRTY: u8 = 4;
const CHUNK_BYTES: u64 = CHUNK_SLOTS as u64 * 8;
/// Bytes written back by one slice at most, and no more than a second's: short enough that a budget
/// is kept evenly.
const SLICE_BYTES_MAX: u64 = 4 << 20;
/// Chunks asked by one slice at most.
const SLICE_CHUNKS_MAX: u32 = 64 << 10;
/// A cycle begins at most this often.
const CYCLE_MS_MIN: u64 = 1_000;
/// The files are looked for this often, in ms: a cycle may be long.
const LOOK_MS: u64 = 1_000;
/// In a memory, room that the folder's files have for users to come: 64 Ki of them.
pub(super) const CELLS_AHEAD_BYTES: u64 = 8 << 16;
/// The same in users.log, for ids of 50 bytes.
pub(super) const LOG_AHEAD_BYTES: u64 = 4 << 20;
/// A header that has nothing new to say is written again after so long, in ms: it says when it was
/// written, which is evidence against a clock that is behind.
const HEADER_MS_MAX: u64 = 3_600_000;

/// An open store's files, as who uses them lends them.
pub(crate) struct Files<'a> {
    pub(crate) log: &'a Log,
    pub(crate) stamps: &'a CellFile<Stamp>,
    pub(crate) published: &'a CellFile<Published>,
    pub(crate) headers: &'a Headers,
    /// Slots that have been given.
    pub(crate) slots: u32,
    /// By chunk: STAMPS_DIRTY and PUBLISHED_DIRTY, which are lowered here; other bits are others'.
    pub(crate) marks: &'a [AtomicU8],
    /// By chunk: not zero where stamps change without a mark.
    pub(crate) lively: &'a [AtomicU32],
    /// Every transition before it stands in a cell.
    pub(crate) published_up_to: Unix,
    /// The windows of event ids that are not believed, as they are now.
    pub(crate) windows: &'a dyn Fn() -> Windows,
}

/// A write-back in rolling slices, and where it is.
pub(crate) struct Rolling {
    bytes_per_second: u64,
    slice_bytes_max: u64,
    step: Step,
    cycle: Cycle,
    /// Bytes of users.log, and cells of the maps, up to which the files' lengths are known to be on
    /// disk; none at first.
    log_lasting: u64,
    stamps_lasting: u32,
    published_lasting: u32,
    /// When the header of stamps.map was last written.
    stamps_marked_at: Mono,
    /// When the files were last looked for, and what was not found.
    looked_at: Option<Mono>,
    loss: Option<Loss>,
}

/// What one slice did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteBackReport {
    /// Bytes written back.
    pub bytes: u64,
    /// A whole cycle ended with this slice; its length in ms.
    pub cycle_ms: Option<u64>,
    /// How long to rest before the next slice, in ms.
    pub pause_ms: u64,
    /// A file that is not the one any more that was opened, as was last found.
    pub loss: Option<Loss>,
}

/// A file of the store that the next start will not find as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Its name in the folder.
    pub file: &'static str,
    /// What has become of it.
    pub how: FileLoss,
    /// Which of a store's files it is.
    pub whose: LossOf,
}

/// Which of a store's files has been lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossOf {
    /// The one in the folder that has the state.
    Store,
    /// The one in the memory.
    Memory,
    /// The one in the folder that follows the memory.
    Follower,
}

impl Loss {
    /// All of the file is written anew.
    fn is_mended(self) -> bool {
        (self.whose, self.how) == (LossOf::Follower, FileLoss::Truncated)
    }
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

impl Rolling {
    pub(crate) fn new(bytes_per_second: u64) -> Rolling {
        Rolling {
            bytes_per_second: bytes_per_second.max(1),
            slice_bytes_max: SLICE_BYTES_MAX.min(bytes_per_second),
            step: Step::Begin,
            cycle: Cycle::default(),
            log_lasting: 0,
            stamps_lasting: 0,
            published_lasting: 0,
            stamps_marked_at: Mono::default(),
            looked_at: None,
            loss: None,
        }
    }

    /// The budget's part of a cycle's length, in ms, when everything about `users` users has
    /// changed; the disk's comes on top.
    pub(crate) fn cycle_ms(users: u32, bytes_per_second: u64) -> u64 {
        let maps_bytes = 2 * u64::from(users.div_ceil(CHUNK_SLOTS)) * CHUNK_BYTES;
        (maps_bytes.saturating_mul(1_000) / bytes_per_second.max(1)).max(CYCLE_MS_MIN)
    }

    /// Does the next bit of work, and says how long to rest. Blocks for as long as the disk takes.
    ///
    /// Errors: the disk's. The next slice begins the cycle again, and the cycle then writes all of
    /// the file that failed, for nobody says what the disk lacks (see `MappedFile::is_doubted`).
    /// The caller rests before that.
    pub(crate) fn slice(&mut self, files: &Files<'_>, now: Now) -> io::Result<WriteBackReport> {
        if files.headers.is_closed() {
            return Ok(WriteBackReport {
                pause_ms: CYCLE_MS_MIN,
                ..WriteBackReport::default()
            });
        }
        if self
            .looked_at
            .is_none_or(|at| now.mono.ms_since(at) >= LOOK_MS)
        {
            self.looked_at = Some(now.mono);
            self.loss = files.loss()?;
            if self.loss.is_some_and(|loss| loss.is_mended()) {
                self.restart();
            }
        }
        files.promise_ahead();
        let done = match self.step {
            Step::Begin => {
                self.begin(files, now);
                self.log(files, files.log_from(), now)
            }
            Step::Log { from } => self.log(files, from, now),
            Step::Stamps { chunk } => {
                self.cells(files, files.stamps, STAMPS_DIRTY, chunk)
                    .map(|(bytes, next)| {
                        self.step = next
                            .map_or(Step::Published { chunk: 0 }, |chunk| Step::Stamps { chunk });
                        self.report(bytes)
                    })
            }
            Step::Published { chunk } => self
                .cells(files, files.published, PUBLISHED_DIRTY, chunk)
                .map(|(bytes, next)| {
                    self.step = next.map_or(Step::Headers, |chunk| Step::Published { chunk });
                    self.report(bytes)
                }),
            Step::Headers => self.headers(files, now),
        };
        if done.is_err() {
            self.restart();
        }
        done.map(|report| WriteBackReport {
            loss: self.loss,
            ..report
        })
    }

    /// The cycle begins again, and believes nothing of what it has seen.
    fn restart(&mut self) {
        self.step = Step::Begin;
        (
            self.log_lasting,
            self.stamps_lasting,
            self.published_lasting,
        ) = (0, 0, 0);
    }

    fn begin(&mut self, files: &Files<'_>, now: Now) {
        self.cycle = Cycle {
            began_at: now.mono,
            watermark: files.published_up_to.min(now.unix),
            stamps_capacity: files.stamps.capacity(),
            published_capacity: files.published.capacity(),
            log_end: files.log.end(),
        };
    }

    /// users.log first: a slot is on disk before the header says that its stamps may be. Marked
    /// when all of it is, for a mark must be where a record ends.
    fn log(&mut self, files: &Files<'_>, from: u64, now: Now) -> io::Result<WriteBackReport> {
        let end = self.cycle.log_end;
        let to = end.min(from.saturating_add(self.slice_bytes_max));
        if to > from {
            files.sync_log_range(from, to)?;
        }
        if to < end {
            self.step = Step::Log { from: to };
            return Ok(self.report(to - from));
        }
        let file = files.log.file();
        if end > files.headers.log_synced_bytes() || file.is_doubted() {
            let length = file.len_bytes();
            if length > self.log_lasting {
                file.sync()?;
                self.log_lasting = length;
            }
            file.believe();
            // On disk as well: without it a power cut could not be told from damage.
            files.headers.mark_log(files.log, end, now.unix)?;
            file.sync_range(0, FIRST_RECORD)?;
        }
        self.step = Step::Stamps { chunk: 0 };
        Ok(self.report(to.saturating_sub(from)))
    }

    /// Writes back runs of chunks that may be dirty, or of all if the file is doubted, from `chunk`
    /// on; returns the bytes and where to go on.
    fn cells<V: Sync>(
        &self,
        files: &Files<'_>,
        cells: &CellFile<V>,
        flag: u8,
        chunk: u32,
    ) -> io::Result<(u64, Option<u32>)> {
        let doubted = cells.file().is_doubted();
        let chunks = files.slots.div_ceil(CHUNK_SLOTS);
        let last = chunks.min(chunk.saturating_add(SLICE_CHUNKS_MAX));
        let (mut bytes, mut at) = (0, chunk);
        while at < last && bytes < self.slice_bytes_max {
            let first = at;
            while at < last && bytes < self.slice_bytes_max {
                let chunk = at as usize;
                let marked = files.lower(chunk, flag);
                let lively = flag == STAMPS_DIRTY && files.is_lively(chunk);
                if !(marked || doubted || lively) {
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
                (first..at).for_each(|chunk| files.raise(chunk as usize, flag));
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
    fn headers(&mut self, files: &Files<'_>, now: Now) -> io::Result<WriteBackReport> {
        let Cycle {
            began_at,
            watermark,
            stamps_capacity,
            published_capacity,
            ..
        } = self.cycle;
        let (stamps, published) = (files.stamps.file(), files.published.file());
        let is_old = now.mono.ms_since(self.stamps_marked_at) > HEADER_MS_MAX;
        if stamps_capacity > self.stamps_lasting {
            stamps.sync()?;
        }
        if stamps_capacity > self.stamps_lasting || is_old {
            files
                .headers
                .mark_stamps(files.stamps, stamps_capacity, now.unix)?;
            stamps.sync_range(0, FIRST_CELL)?;
            self.stamps_lasting = stamps_capacity;
            self.stamps_marked_at = now.mono;
        }
        if published_capacity > self.published_lasting {
            published.sync()?;
            self.published_lasting = published_capacity;
        }
        let on_disk = OnDisk {
            capacity: published_capacity,
            watermark,
            clean: false,
        };
        files
            .headers
            .mark_published(files.published, files.windows, on_disk, now.unix)?;
        published.sync_range(0, FIRST_CELL)?;
        self.step = Step::Begin;
        let cycle_ms = now.mono.ms_since(began_at);
        Ok(WriteBackReport {
            bytes: 0,
            cycle_ms: Some(cycle_ms),
            pause_ms: CYCLE_MS_MIN.saturating_sub(cycle_ms),
            loss: None,
        })
    }

    fn report(&self, bytes: u64) -> WriteBackReport {
        let pause_ms = bytes.saturating_mul(1_000) / self.bytes_per_second;
        WriteBackReport {
            bytes,
            cycle_ms: None,
            pause_ms,
            loss: None,
        }
    }
}

impl Files<'_> {
    /// Whether each file is still where it was, and as long.
    fn loss(&self) -> io::Result<Option<Loss>> {
        let files = [
            (Kind::Users, self.log.file()),
            (Kind::Stamps, self.stamps.file()),
            (Kind::Published, self.published.file()),
        ];
        for (kind, file) in files {
            if let Some((how, path)) = file.loss()? {
                let whose = match file.behind() {
                    None => LossOf::Store,
                    Some(_) if path == file.path() => LossOf::Memory,
                    Some(_) => LossOf::Follower,
                };
                return Ok(Some(Loss {
                    file: kind.file_name(),
                    how,
                    whose,
                }));
            }
        }
        Ok(None)
    }

    /// Room for the users to come, should the disk stand still: see `MappedFile::promise_ahead`.
    /// Where there is none, those who are known are served as ever, and new ones are refused.
    fn promise_ahead(&self) {
        let [log, stamps, published] = [
            (self.log.file(), LOG_AHEAD_BYTES),
            (self.stamps.file(), CELLS_AHEAD_BYTES),
            (self.published.file(), CELLS_AHEAD_BYTES),
        ]
        .map(|(file, bytes)| file.promise_ahead(bytes));
        if let Err(error) = log.and(stamps).and(published) {
            tracing::debug!(%error, "the disk promises no more room for new users");
        }
    }

    /// From where on users.log is to be written. From a memory all of it where nobody knows what
    /// the disk has: there may be another file now than was written before.
    fn log_from(&self) -> u64 {
        let file = self.log.file();
        match file.behind().is_some() && file.is_doubted() {
            true => FIRST_RECORD,
            false => self.headers.log_synced_bytes(),
        }
    }

    /// Has the bytes of users.log from `from`, up to which it is on disk, to `to`, up to which
    /// there are records, on disk as well.
    fn sync_log_range(&self, from: u64, to: u64) -> io::Result<()> {
        let file = self.log.file();
        if file.is_doubted() {
            // SAFETY: the log's bytes before its end are never written again.
            unsafe { file.rewrite(from, to) }?;
        }
        file.sync_range(from, to - from)
    }

    /// Writes everything back and marks the store as closed cleanly. Nobody writes cells any more,
    /// and no write-back is under way.
    ///
    /// Errors: the disk's; the store is then not marked, and opens as after a crash.
    pub(crate) fn close(&self, now: Unix) -> io::Result<()> {
        self.headers.close();
        let on_disk = self.write_all(now)?;
        let clean = OnDisk {
            clean: true,
            ..on_disk
        };
        let mark = |says| {
            self.headers
                .mark_published(self.published, self.windows, says, now)
        };
        mark(clean)?;
        self.published.file().sync_start().inspect_err(|_| {
            // The page cache has it, and the next opening would believe it.
            if let Err(error) = mark(on_disk) {
                tracing::error!(%error, "published.map says that it was closed cleanly, and it was \
                                         not");
            }
        })?;
        self.headers.leave_memory();
        Ok(())
    }

    /// Writes everything back, headers included.
    fn write_all(&self, now: Unix) -> io::Result<OnDisk> {
        let (stamps, published) = (self.stamps.capacity(), self.published.capacity());
        let (file, end) = (self.log.file(), self.log.end());
        self.sync_log_range(self.log_from().min(end), end)?;
        file.sync()?;
        self.headers.mark_log(self.log, end, now)?;
        file.sync_start()?;
        self.stamps.sync()?;
        self.headers.mark_stamps(self.stamps, stamps, now)?;
        self.stamps.file().sync_start()?;
        self.published.sync()?;
        Ok(OnDisk {
            capacity: published,
            watermark: now,
            clean: false,
        })
    }

    fn is_lively(&self, chunk: usize) -> bool {
        self.lively[chunk].load(Ordering::Relaxed) > 0
    }

    fn raise(&self, chunk: usize, mark: u8) {
        self.marks[chunk].fetch_or(mark, Ordering::Release);
    }

    /// Lowers a mark; whether it was up. Everything written before it was raised is seen after
    /// this.
    fn lower(&self, chunk: usize, mark: u8) -> bool {
        self.marks[chunk].load(Ordering::Relaxed) & mark != 0
            && self.marks[chunk].fetch_and(!mark, Ordering::AcqRel) & mark != 0
    }
}
