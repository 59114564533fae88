//! Which slots are published online, one bit each, and what each chunk needs.
//!
//! Owns the bits, the counts per chunk and the chunk flags: memory only, rebuilt at boot. The bit
//! and the count of a slot are written by its owner alone; the flags by anybody. Never touches a
//! file.

use std::io;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::cache::prefetch;
use crate::slot::{CHUNK_SLOTS, Slot};
use crate::store::region::AnonymousArray;
use crate::store::write_back::{PUBLISHED_DIRTY, STAMPS_DIRTY};

/// Chunk flag: the next sweep must look, even if nobody is online in it.
pub(super) const LOOK: u8 = 1;
/// Chunk flag: the next sweep must compare statuses too, for somebody's has changed.
pub(super) const STATUSES: u8 = 8;
const _: () = assert!(
    (LOOK | STATUSES) & (STAMPS_DIRTY | PUBLISHED_DIRTY) == 0 && LOOK != STATUSES,
    "one bit each"
);
/// Words of bits in a chunk.
pub(super) const CHUNK_WORDS: u32 = CHUNK_SLOTS / 64;

pub(super) struct Online {
    bits: AnonymousArray<AtomicU64>,
    counts: AnonymousArray<AtomicU32>,
    flags: AnonymousArray<AtomicU8>,
}

impl Online {
    /// Nobody online; address space for `users_max` slots.
    pub(super) fn new(users_max: u32) -> io::Result<Online> {
        let chunks = users_max.div_ceil(CHUNK_SLOTS) as usize;
        Ok(Online {
            bits: AnonymousArray::new(chunks * CHUNK_WORDS as usize)?,
            counts: AnonymousArray::new(chunks)?,
            flags: AnonymousArray::new(chunks)?,
        })
    }

    /// The bits of slots 64 x `word` to 64 x `word` + 63.
    #[inline]
    pub(super) fn word(&self, word: u32) -> u64 {
        self.bits[word as usize].load(Ordering::Acquire)
    }

    #[inline]
    pub(super) fn has(&self, slot: Slot) -> bool {
        self.word(slot.index() / 64) >> (slot.index() % 64) & 1 != 0
    }

    #[inline]
    pub(super) fn prefetch(&self, slot: Slot) {
        prefetch(&self.bits[(slot.index() / 64) as usize]);
    }

    /// Sets or clears the bit of a slot. Only its owner calls this, when it has just published the
    /// change; or whoever forgets the slot's user.
    pub(super) fn set(&self, slot: Slot, online: bool) {
        let word = &self.bits[(slot.index() / 64) as usize];
        let bit = 1 << (slot.index() % 64);
        let count = &self.counts[chunk_of(slot)];
        let before = if online {
            word.fetch_or(bit, Ordering::Release)
        } else {
            word.fetch_and(!bit, Ordering::Release)
        };
        match (before & bit != 0, online) {
            (false, true) => {
                count.fetch_add(1, Ordering::Relaxed);
            }
            (true, false) => {
                count.fetch_sub(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    /// Sets the bits of a whole word at boot.
    pub(super) fn fill(&self, word: u32, bits: u64) {
        self.bits[word as usize].store(bits, Ordering::Relaxed);
        self.counts[(word / CHUNK_WORDS) as usize].fetch_add(bits.count_ones(), Ordering::Relaxed);
    }

    pub(super) fn raise(&self, chunk: usize, flags: u8) {
        self.flags[chunk].fetch_or(flags, Ordering::Release);
    }

    /// Lowers one flag; whether it was up. Everything done before it was raised is seen after this.
    #[inline]
    pub(super) fn lower(&self, chunk: usize, flag: u8) -> bool {
        self.flags[chunk].load(Ordering::Relaxed) & flag != 0
            && self.flags[chunk].fetch_and(!flag, Ordering::AcqRel) & flag != 0
    }

    /// The flags of all chunks: what the write-back lowers.
    pub(super) fn flags(&self) -> &[AtomicU8] {
        &self.flags
    }

    /// Publishers online, by chunk.
    pub(super) fn counts(&self) -> &[AtomicU32] {
        &self.counts
    }

    /// Publishers online in a chunk.
    #[inline]
    pub(super) fn count(&self, chunk: usize) -> u32 {
        self.counts[chunk].load(Ordering::Relaxed)
    }
}

/// Index of a slot's chunk.
#[inline]
pub(super) fn chunk_of(slot: Slot) -> usize {
    (slot.index() / CHUNK_SLOTS) as usize
}
