//! One cell a slot in a mapped file: stamps.map and published.map.
//!
//! Owns the growth of the files and the way to a slot's cell. Never decides what a cell says.

use std::io;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, Ordering};

use super::cells::Cell;
use super::region::{MappedFile, PAGE_BYTES};
use crate::cache::prefetch;
use crate::slot::{CHUNK_SLOTS, Slot};

/// Where the cells begin: the header has a page of its own.
pub(crate) const FIRST_CELL: u64 = PAGE_BYTES;
const GROWTH_SLOTS_MIN: u32 = 64 << 10;
/// 32 MiB: a shard waits for it.
const GROWTH_SLOTS_MAX: u32 = 4 << 20;
/// 2 MiB: a memory is zeroed when it grows.
const GROWTH_SLOTS_IN_MEMORY_MAX: u32 = 256 << 10;

/// Bytes of a file of so many cells.
pub(crate) fn file_bytes(slots: u32) -> u64 {
    FIRST_CELL + u64::from(slots) * 8
}

/// Whole chunks of cells in a file of so many bytes.
fn slots_of(bytes: u64) -> u32 {
    let slots = bytes.saturating_sub(FIRST_CELL) / 8;
    u32::try_from(slots).unwrap_or(u32::MAX) / CHUNK_SLOTS * CHUNK_SLOTS
}

/// Bytes of a file's header page and its whole chunks, if it has so many.
pub(crate) fn whole_bytes(bytes: u64) -> u64 {
    file_bytes(slots_of(bytes)).min(bytes)
}

/// Cells by which a file that has so many grows.
fn growth_slots(have: u32) -> u32 {
    (have / 4).clamp(GROWTH_SLOTS_MIN, GROWTH_SLOTS_MAX)
}

/// The cells of one file, which hold a `V` each.
pub(crate) struct CellFile<V> {
    file: MappedFile,
    of: PhantomData<V>,
    /// Cells that the file has room for; a multiple of CHUNK_SLOTS; only grows.
    capacity: AtomicU32,
}

impl<V: Sync> CellFile<V> {
    pub(crate) fn new(file: MappedFile) -> CellFile<V> {
        let capacity = slots_of(file.len_bytes());
        CellFile {
            file,
            of: PhantomData,
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
        let step = match self.file.behind() {
            None => growth_slots(have),
            Some(_) => growth_slots(have).min(GROWTH_SLOTS_IN_MEMORY_MAX),
        };
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
        let bytes = u64::from(self.capacity()) * 8;
        if self.file.is_doubted() {
            self.file.dirty(FIRST_CELL, bytes);
        }
        match self.file.behind() {
            None => self.file.sync()?,
            Some(_) => self.file.sync_range(FIRST_CELL, bytes)?,
        }
        self.file.believe();
        Ok(())
    }

    #[inline]
    pub(crate) fn cells(&self) -> &[Cell<V>] {
        self.file.cells(FIRST_CELL, self.capacity() as usize)
    }

    /// The cell of a slot that has been made.
    #[inline]
    pub(crate) fn cell(&self, slot: Slot) -> &Cell<V> {
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
