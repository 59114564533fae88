//! Writes the store back to disk, a little at a time, in the order that a power cut may interrupt.
//!
//! Owns the cycle: users.log, then stamps, then published, then the headers that say how far the disk is. Only chunks that
//! may have changed are written. Runs on a thread of its own and shares no lock with the beat path; never decides anything.

use std::io;
use std::sync::Arc;

use super::online::{PUBLISHED_DIRTY, STAMPS_DIRTY};
use super::stamps::{CellFile, FIRST_CELL};
use super::{CHUNK_SLOTS, Presence};
use crate::time::{Mono, Now, Unix};

const CHUNK_BYTES: u64 = CHUNK_SLOTS as u64 * 8;
/// Bytes written back by one slice at most, and no more than a second's: short enough that a budget is kept evenly.
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
    /// Cells up to which the two files' lengths are known to be on disk; none at first.
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
    Log,
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
            step: Step::Log,
            cycle: Cycle::default(),
            stamps_lasting: 0,
            published_lasting: 0,
        }
    }

    /// The budget's part of a cycle's length, in ms, when everything about `users` users has changed; the disk's comes on top.
    pub fn cycle_ms(users: u32, bytes_per_second: u64) -> u64 {
        let maps_bytes = 2 * u64::from(users.div_ceil(CHUNK_SLOTS)) * CHUNK_BYTES;
        (maps_bytes.saturating_mul(1_000) / bytes_per_second.max(1)).max(CYCLE_MS_MIN)
    }

    /// Does the next bit of work, and says how long to rest. Blocks for as long as the disk takes.
    ///
    /// Errors: the disk's. The slice is done again next time; the caller rests before that.
    pub fn slice(&mut self, now: Now) -> io::Result<FlushReport> {
        if self.presence.is_closed() {
            return Ok(FlushReport {
                pause_ms: CYCLE_MS_MIN,
                ..FlushReport::default()
            });
        }
        match self.step {
            Step::Log => self.log(now),
            Step::Stamps { chunk } => {
                let (bytes, next) = self.cells(&self.presence.stamps, STAMPS_DIRTY, chunk)?;
                self.step = next.map_or(Step::Published { chunk: 0 }, |chunk| Step::Stamps { chunk });
                Ok(self.report(bytes))
            }
            Step::Published { chunk } => {
                let (bytes, next) = self.cells(&self.presence.published, PUBLISHED_DIRTY, chunk)?;
                self.step = next.map_or(Step::Headers, |chunk| Step::Published { chunk });
                Ok(self.report(bytes))
            }
            Step::Headers => self.headers(now),
        }
    }

    /// users.log first: a slot is on disk before the header says that its stamps may be.
    fn log(&mut self, now: Now) -> io::Result<FlushReport> {
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
        let bytes = presence.log_bytes_unsynced(self.cycle.log_end);
        if bytes > 0 {
            presence.interner.log().file().sync()?;
            presence.mark_log_synced(self.cycle.log_end)?;
        }
        self.step = Step::Stamps { chunk: 0 };
        Ok(self.report(bytes))
    }

    /// Writes back runs of dirty chunks from `chunk` on; returns the bytes and where to go on.
    fn cells(&self, cells: &CellFile, flag: u8, chunk: u32) -> io::Result<(u64, Option<u32>)> {
        let online = &self.presence.online;
        let chunks = self.presence.users().div_ceil(CHUNK_SLOTS);
        let last = chunks.min(chunk.saturating_add(SLICE_CHUNKS_MAX));
        let (mut bytes, mut at) = (0, chunk);
        while at < last && bytes < self.slice_bytes_max {
            let first = at;
            // Beats for publishers who are online leave no flag: where somebody is online, stamps change.
            while at < last && bytes < self.slice_bytes_max {
                let flagged = online.lower(at as usize, flag);
                if !(flagged || flag == STAMPS_DIRTY && online.count(at as usize) > 0) {
                    break;
                }
                bytes += CHUNK_BYTES;
                at += 1;
            }
            if at == first {
                at += 1;
                continue;
            }
            let written = cells.file().sync_range(
                FIRST_CELL + u64::from(first) * CHUNK_BYTES,
                u64::from(at - first) * CHUNK_BYTES,
            );
            if let Err(error) = written {
                (first..at).for_each(|chunk| online.raise(chunk as usize, flag));
                return Err(error);
            }
        }
        Ok((bytes, (at < chunks).then_some(at)))
    }

    /// A slice's `sync_range` has waited for its cells and their metadata, so nothing is left but the files' lengths, where these have
    /// grown: to write all of a file back here would write all that has changed since its slice, unpaced.
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
        self.step = Step::Log;
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
