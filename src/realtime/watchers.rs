//! The publishers' side: who watches one publisher.
//!
//! Owns the choice of form: a chain for a few, a compressed bitmap for a crowd, so that neither a
//! hundred thousand subscriptions nor as many ends cost a scan each.

use roaring::RoaringBitmap;

use super::chains::{Chain, Chains};

/// Watchers beyond which a chain becomes a bitmap, and at which it becomes a chain again.
pub(super) const CROWD_MIN: u32 = 128;
const CROWD_LEAVE: u64 = 64;
/// Length of a chain's head that is a crowd's.
const CROWD: u32 = u32::MAX;
/// Length of a chain's head that says where else to look.
const STAND_IN: u32 = u32::MAX - 1;

/// Who watches one publisher: eight bytes, a chain's head or a crowd's place.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watchers(Chain);

/// All of a shard's.
#[derive(Debug, Default)]
pub(super) struct WatchersArena {
    chains: Chains,
    crowds: Vec<RoaringBitmap>,
    crowds_free: Vec<u32>,
}

impl Watchers {
    /// They are kept at the place of a name.
    pub(super) fn stand_in(place: u32) -> Watchers {
        Watchers(Chain {
            block: place,
            len: STAND_IN,
        })
    }

    /// The place of the name at which they are kept.
    pub(super) fn as_stand_in(self) -> Option<u32> {
        (self.0.len == STAND_IN).then_some(self.0.block)
    }

    fn crowd(self) -> Option<usize> {
        (self.0.len == CROWD).then_some(self.0.block as usize)
    }
}

impl WatchersArena {
    /// Adds a stream that does not watch yet.
    pub(super) fn insert(&mut self, watchers: &mut Watchers, conn: u32) {
        if let Some(crowd) = watchers.crowd() {
            self.crowds[crowd].insert(conn);
        } else if watchers.0.len < CROWD_MIN {
            self.chains.insert(&mut watchers.0, conn);
        } else {
            let mut bitmap: RoaringBitmap = self.chains.entries(watchers.0).collect();
            bitmap.insert(conn);
            self.chains.clear(&mut watchers.0);
            let crowd = self.crowds_free.pop().unwrap_or_else(|| {
                self.crowds.push(RoaringBitmap::new());
                self.crowds.len() as u32 - 1
            });
            self.crowds[crowd as usize] = bitmap;
            watchers.0 = Chain {
                block: crowd,
                len: CROWD,
            };
        }
    }

    /// Removes a stream; false if it did not watch.
    pub(super) fn remove(&mut self, watchers: &mut Watchers, conn: u32) -> bool {
        let Some(crowd) = watchers.crowd() else {
            return self.chains.remove(&mut watchers.0, conn);
        };
        let bitmap = &mut self.crowds[crowd];
        let removed = bitmap.remove(conn);
        if bitmap.len() <= CROWD_LEAVE {
            let few = std::mem::take(bitmap);
            self.crowds_free.push(crowd as u32);
            watchers.0 = Chain::EMPTY;
            for conn in few {
                self.chains.insert(&mut watchers.0, conn);
            }
        }
        removed
    }

    /// Calls `each` for every stream.
    pub(super) fn each(&self, watchers: Watchers, mut each: impl FnMut(u32)) {
        match watchers.crowd() {
            Some(crowd) => self.crowds[crowd].iter().for_each(each),
            None => self.chains.entries(watchers.0).for_each(&mut each),
        }
    }

    /// Calls `each` for the streams from `from` on, at most `max` of a crowd; returns where to go
    /// on. A few are all visited at once.
    pub(super) fn each_some(
        &self,
        watchers: Watchers,
        from: u32,
        max: usize,
        mut each: impl FnMut(u32),
    ) -> Option<u32> {
        let Some(crowd) = watchers.crowd() else {
            self.chains.entries(watchers.0).for_each(&mut each);
            return None;
        };
        let mut rest = self.crowds[crowd].range(from..);
        rest.by_ref().take(max).for_each(each);
        rest.next()
    }

    pub(super) fn len(&self, watchers: Watchers) -> usize {
        match watchers.crowd() {
            Some(crowd) => self.crowds[crowd].len() as usize,
            None => watchers.0.len(),
        }
    }

    pub(super) fn contains(&self, watchers: Watchers, conn: u32) -> bool {
        match watchers.crowd() {
            Some(crowd) => self.crowds[crowd].contains(conn),
            None => self.chains.entries(watchers.0).any(|other| other == conn),
        }
    }

    /// Room of the chains, in blocks.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.chains.capacity()
    }
}
