//! The index of a publisher, and how slots are dealt out among shards.
//!
//! Owns the arithmetic of slots and nothing else. Never knows what is kept for a slot.

/// Dense index of a publisher; below [`SLOTS_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(u32);

/// Most slots a store can have: the two top bits of a u32 are kept for the watch lists.
pub const SLOTS_MAX: u32 = 1 << 30;

/// Slots of one chunk: the unit of ownership, of skipping in the sweep and of growth. A multiple of
/// 64.
pub const CHUNK_SLOTS: u32 = 4_096;

const _: () = assert!(CHUNK_SLOTS.is_multiple_of(64) && SLOTS_MAX.is_multiple_of(CHUNK_SLOTS));

impl Slot {
    /// From an index below [`SLOTS_MAX`].
    pub const fn new(index: u32) -> Slot {
        debug_assert!(index < SLOTS_MAX);
        Slot(index)
    }

    pub const fn index(self) -> u32 {
        self.0
    }

    /// The chunk that it belongs to.
    pub const fn chunk(self) -> usize {
        (self.0 / CHUNK_SLOTS) as usize
    }

    /// Which of `shards` shards decides this slot's transitions.
    pub const fn owner(self, shards: u16) -> u16 {
        ((self.0 / CHUNK_SLOTS) % shards as u32) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_dealt_out_in_turn() {
        let cases = [(0, 0, 0), (4_095, 0, 0), (4_096, 1, 1), (12_288, 3, 0)];
        for (index, chunk, owner) in cases {
            let slot = Slot::new(index);
            assert_eq!((slot.chunk(), slot.owner(3)), (chunk, owner));
        }
    }
}
