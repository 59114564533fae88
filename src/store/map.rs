//! One u64 a slot in a mapped file: stamps.map and published.map.
//!
//! Owns the packing (Unix ms in the high 56 bits, flags in the low 8) and the growth of the files.
//! Never decides anything.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::region::{MappedFile, PAGE_BYTES, prefetch};
use crate::slot::{CHUNK_SLOTS, Slot};
use crate::status::Status;
use crate::time::Unix;

/// Where the cells begin: the header has a page of its own.
pub(crate) const FIRST_CELL: u64 = PAGE_BYTES;
/// Flag of a stamp: an explicit leave; not fresh whatever the time.
pub(crate) const LEFT: u64 = 1;
/// Flag of a stamp: its silence has been published. Not fresh until the next beat, even if the wall
/// clock goes back to when it was.
pub(crate) const EXPIRED: u64 = 1 << 7;
/// Flag of a published cell: online.
pub(crate) const ONLINE: u64 = 1;
/// Flags of a published cell that is online: in which way. Two bits; 3 is not used.
const TOLD_AWAY: u64 = 1 << 1;
const TOLD_BUSY: u64 = 2 << 1;
/// A stamp further ahead of the clock than this, in ms, was made before a backward step, and is
/// clamped.
pub(crate) const AHEAD_MS_MAX: u64 = 1_000;
const FLAGS: u64 = 0xff;
const FLAG_BITS: u32 = 8;
const GROWTH_SLOTS_MIN: u32 = 64 << 10;
/// 32 MiB: a shard waits for it.
const GROWTH_SLOTS_MAX: u32 = 4 << 20;

pub(crate) const fn pack(ms: u64, flags: u64) -> u64 {
    ms << FLAG_BITS | flags & FLAGS
}

pub(crate) const fn ms_of(cell: u64) -> u64 {
    cell >> FLAG_BITS
}

pub(crate) const fn flags_of(cell: u64) -> u64 {
    cell & FLAGS
}

/// The flags of a published cell that say a status.
pub(crate) const fn told_flags(status: Status) -> u64 {
    match status {
        Status::Online => ONLINE,
        Status::Away => ONLINE | TOLD_AWAY,
        Status::Busy => ONLINE | TOLD_BUSY,
        Status::Offline | Status::Unknown => 0,
    }
}

/// The status that a published cell says.
pub(crate) const fn told_status(published: u64) -> Status {
    if published & ONLINE == 0 {
        return Status::Offline;
    }
    match published & (TOLD_AWAY | TOLD_BUSY) {
        TOLD_AWAY => Status::Away,
        TOLD_BUSY => Status::Busy,
        _ => Status::Online,
    }
}

/// The time of a cell unless it has none, not later than `now`.
pub(crate) fn time_of(cell: u64, now: Unix) -> Option<Unix> {
    (ms_of(cell) != 0).then(|| Unix::from_ms(ms_of(cell)).min(now))
}

/// Bytes of a file of so many cells.
pub(crate) fn file_bytes(slots: u32) -> u64 {
    FIRST_CELL + u64::from(slots) * 8
}

/// Whole chunks of cells in a file of so many bytes.
fn slots_of(bytes: u64) -> u32 {
    let slots = bytes.saturating_sub(FIRST_CELL) / 8;
    u32::try_from(slots).unwrap_or(u32::MAX) / CHUNK_SLOTS * CHUNK_SLOTS
}

/// Cells by which a file that has so many grows.
fn growth_slots(have: u32) -> u32 {
    (have / 4).clamp(GROWTH_SLOTS_MIN, GROWTH_SLOTS_MAX)
}

/// The cells of one file.
pub(crate) struct CellFile {
    file: MappedFile,
    /// Cells that the file has room for; a multiple of CHUNK_SLOTS; only grows.
    capacity: AtomicU32,
}

impl CellFile {
    pub(crate) fn new(file: MappedFile) -> CellFile {
        let capacity = slots_of(file.len_bytes());
        CellFile {
            file,
            capacity: AtomicU32::new(capacity),
        }
    }

    pub(crate) fn file(&self) -> &MappedFile {
        &self.file
    }

    pub(crate) fn capacity(&self) -> u32 {
        self.capacity.load(Ordering::Acquire)
    }

    /// Makes room for at least `slots`, at most for what was reserved, some more if there is space.
    /// One caller at a time.
    pub(crate) fn reserve(&self, slots: u32) -> io::Result<()> {
        let have = self.capacity();
        if slots <= have {
            return Ok(());
        }
        let step = growth_slots(have);
        let reserved = slots_of(self.file.reserved_bytes());
        let needed = slots.next_multiple_of(CHUNK_SLOTS);
        let generous = have
            .saturating_add(step)
            .next_multiple_of(CHUNK_SLOTS)
            .clamp(needed, reserved.max(needed));
        // Where there is no room to be generous there may be enough for this one.
        let grow = |wanted| self.file.grow(file_bytes(wanted)).map(|()| wanted);
        let grown = grow(generous).or_else(|_| grow(needed))?;
        self.capacity.store(grown, Ordering::Release);
        Ok(())
    }

    /// Writes back everything and waits for the disk: all of it where a sync has failed.
    pub(crate) fn sync(&self) -> io::Result<()> {
        if self.file.is_doubted() {
            self.file.dirty(FIRST_CELL, u64::from(self.capacity()) * 8);
        }
        self.file.sync()?;
        self.file.believe();
        Ok(())
    }

    /// All cells.
    #[inline]
    pub(crate) fn cells(&self) -> &[AtomicU64] {
        self.file.cells(FIRST_CELL, self.capacity() as usize)
    }

    /// The cell of a slot that has been made.
    #[inline]
    pub(crate) fn cell(&self, slot: Slot) -> &AtomicU64 {
        &self.cells()[slot.index() as usize]
    }

    /// Fetches the line of a slot's cell.
    #[inline]
    pub(crate) fn prefetch(&self, slot: Slot) {
        prefetch(self.file.address(FIRST_CELL + u64::from(slot.index()) * 8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_as_it_was_said() {
        for status in Status::ALL.into_iter().take(4) {
            assert_eq!(told_status(pack(7, told_flags(status))), status);
        }
    }

    #[test]
    fn growth_is_a_quarter_within_bounds() {
        let cases = [
            (0, 65_536),
            (1 << 20, 1 << 18),
            (1 << 24, 4 << 20),
            (1 << 30, 4 << 20),
        ];
        for (have, step) in cases {
            assert_eq!(growth_slots(have), step);
        }
    }
}
