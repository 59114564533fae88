//! Unordered sets of u32 that come and go one at a time, by the million, in one arena.
//!
//! Owns the publishers' side of the watch lists: who watches whom. A chain is a list of blocks of
//! one size, so that growing leaves no block behind that nobody wants (a list that moves to the
//! next size class does); the price is one link to three entries. Never gives memory back by
//! itself: the owner moves what is left of a crowd to a new arena.

/// Entries of a block; the fourth word links to the next block.
const BLOCK_ENTRIES: u32 = 3;

/// A chain: its newest block, which is the only one that may be part full, and how many entries it
/// has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) block: u32,
    pub(super) len: u32,
}

#[derive(Debug, Default)]
pub(super) struct Chains {
    blocks: Vec<[u32; 4]>,
    /// First free block, plus one; a free block's first word is the next.
    free: u32,
}

impl Chain {
    pub(super) const EMPTY: Chain = Chain { block: 0, len: 0 };

    pub(super) fn len(self) -> usize {
        self.len as usize
    }
}

/// The entries of a chain, newest first.
#[derive(Debug)]
pub(super) struct Entries<'a> {
    blocks: &'a [[u32; 4]],
    block: u32,
    left: u32,
}

impl Iterator for Entries<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.left = self.left.checked_sub(1)?;
        let block = &self.blocks[self.block as usize];
        let at = self.left % BLOCK_ENTRIES;
        if at == 0 {
            self.block = block[3];
        }
        Some(block[at as usize])
    }
}

impl Chains {
    pub(super) fn entries(&self, chain: Chain) -> Entries<'_> {
        Entries {
            blocks: &self.blocks,
            block: chain.block,
            left: chain.len,
        }
    }

    /// Adds an entry that is not in the chain.
    pub(super) fn insert(&mut self, chain: &mut Chain, entry: u32) {
        let at = chain.len % BLOCK_ENTRIES;
        if at == 0 {
            let block = self.allocate();
            self.blocks[block as usize][3] = chain.block;
            chain.block = block;
        }
        self.blocks[chain.block as usize][at as usize] = entry;
        chain.len += 1;
    }

    /// Removes an entry; false if the chain has no such.
    pub(super) fn remove(&mut self, chain: &mut Chain, entry: u32) -> bool {
        let Some((block, at)) = self.find(*chain, entry) else {
            return false;
        };
        chain.len -= 1;
        let last_at = chain.len % BLOCK_ENTRIES;
        let newest = chain.block;
        self.blocks[block as usize][at as usize] = self.blocks[newest as usize][last_at as usize];
        if last_at == 0 {
            chain.block = self.blocks[newest as usize][3];
            self.release(newest);
        }
        true
    }

    /// Removes all entries.
    pub(super) fn clear(&mut self, chain: &mut Chain) {
        for _ in 0..chain.len.div_ceil(BLOCK_ENTRIES) {
            let next = self.blocks[chain.block as usize][3];
            self.release(chain.block);
            chain.block = next;
        }
        *chain = Chain::EMPTY;
    }

    fn find(&self, chain: Chain, entry: u32) -> Option<(u32, u32)> {
        let (mut block, mut left) = (chain.block, chain.len);
        while left > 0 {
            let held = (left - 1) % BLOCK_ENTRIES + 1;
            let words = &self.blocks[block as usize];
            if let Some(at) = words[..held as usize]
                .iter()
                .position(|other| *other == entry)
            {
                return Some((block, at as u32));
            }
            left -= held;
            block = words[3];
        }
        None
    }

    fn allocate(&mut self) -> u32 {
        match self.free.checked_sub(1) {
            Some(block) => {
                self.free = self.blocks[block as usize][0];
                block
            }
            None => {
                self.blocks.push([0; 4]);
                // Bounded by the watches, which watches_per_shard_max holds below 2^32.
                self.blocks.len() as u32 - 1
            }
        }
    }

    fn release(&mut self, block: u32) {
        self.blocks[block as usize][0] = self.free;
        self.free = block + 1;
    }
    /// Room, in blocks.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.blocks.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn sorted(chains: &Chains, chain: Chain) -> Vec<u32> {
        let mut entries: Vec<u32> = chains.entries(chain).collect();
        entries.sort_unstable();
        entries
    }

    #[test]
    fn blocks_are_used_again() {
        let mut chains = Chains::default();
        let mut chain = Chain::EMPTY;
        for round in 0..100 {
            for entry in 0..10 {
                chains.insert(&mut chain, entry);
            }
            assert_eq!(
                (sorted(&chains, chain), chain.len()),
                ((0..10).collect(), 10)
            );
            assert!(!chains.remove(&mut chain, 10));
            if round % 2 == 0 {
                chains.clear(&mut chain);
            } else {
                for entry in 0..10 {
                    assert!(chains.remove(&mut chain, entry));
                }
            }
        }
        assert_eq!((chain, chains.blocks.len()), (Chain::EMPTY, 4));
    }

    proptest! {
        #[test]
        fn many_chains_behave_as_sets(
            ops in prop::collection::vec((0..5_usize, 0..24_u32, 0..9_u8), 1..500)
        ) {
            let mut chains = Chains::default();
            let mut heads = [Chain::EMPTY; 5];
            let mut models: [BTreeSet<u32>; 5] = Default::default();
            for (which, entry, op) in ops {
                let (head, model) = (&mut heads[which], &mut models[which]);
                match op {
                    0 => {
                        chains.clear(head);
                        model.clear();
                    }
                    1..=3 => prop_assert_eq!(chains.remove(head, entry), model.remove(&entry)),
                    _ => {
                        if model.insert(entry) {
                            chains.insert(head, entry);
                        }
                    }
                }
                for (head, model) in heads.iter().zip(&models) {
                    let expected: Vec<u32> = model.iter().copied().collect();
                    prop_assert_eq!(sorted(&chains, *head), expected);
                }
            }
        }
    }
}
