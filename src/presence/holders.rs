//! How many open streams vouch for each slot.
//!
//! Owns one small count a slot, in memory only: a goodbye takes nobody offline who still holds a
//! stream. Costs a byte for each slot up to the last page that was ever counted in, and nothing
//! where no streams are; a count beyond a byte goes on in a map, under a lock. Never looks at a
//! stamp, never knows whose stream it is.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering, fence};

use parking_lot::Mutex;

use super::Presence;
use crate::slot::Slot;
use crate::store::region::AnonymousArray;

/// From here on a count goes on in the map.
const FULL: u8 = u8::MAX;

pub(super) struct Holders {
    counts: AnonymousArray<AtomicU8>,
    /// What is beyond [`FULL`]; only of slots whose count is that.
    beyond: Mutex<HashMap<u32, u32, foldhash::fast::RandomState>>,
}

impl Holders {
    /// Nobody holds anything; address space for `users_max` slots.
    pub(super) fn new(users_max: u32) -> io::Result<Holders> {
        Ok(Holders {
            counts: AnonymousArray::new(users_max as usize)?,
            beyond: Mutex::default(),
        })
    }

    fn count(&self, slot: Slot) -> &AtomicU8 {
        &self.counts[slot.index() as usize]
    }

    fn hold(&self, slot: Slot) {
        let more = |count: u8| count.checked_add(1);
        let count = self.count(slot);
        if count
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, more)
            .is_ok()
        {
            return;
        }
        // A full count falls under the lock alone.
        let mut beyond = self.beyond.lock();
        if count
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, more)
            .is_err()
        {
            *beyond.entry(slot.index()).or_default() += 1;
        }
    }

    fn release(&self, slot: Slot) {
        let count = self.count(slot);
        let less = |count: u8| (count != FULL).then(|| count - 1);
        if count
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, less)
            .is_ok()
        {
            return;
        }
        let mut beyond = self.beyond.lock();
        match beyond.get_mut(&slot.index()) {
            None => {
                count.fetch_sub(1, Ordering::AcqRel);
            }
            Some(1) => {
                beyond.remove(&slot.index());
            }
            Some(more) => *more -= 1,
        }
    }
}

impl Presence {
    /// A stream that vouches for the slot's publisher has opened, or vouches again. Each needs its
    /// own [`Presence::release`].
    pub fn hold(&self, slot: Slot) {
        self.holders.hold(slot);
        // It was said of the only one.
        self.idle.set_word(slot, false);
    }

    /// How many streams of this node vouch for the slot's publisher; 255: or more.
    pub(super) fn held_by(&self, slot: Slot) -> u8 {
        self.holders.count(slot).load(Ordering::Acquire)
    }

    /// A stream that held the slot has ended, or vouches no more.
    pub fn release(&self, slot: Slot) {
        debug_assert!(self.is_held(slot), "{slot:?} is released and was not held");
        self.holders.release(slot);
        // Whoever comes to doubt looks for holders; see `Presence::adopt`.
        fence(Ordering::SeqCst);
        if !self.is_held(slot) {
            self.released(slot);
        }
    }

    /// Whether a stream of this node vouches for the slot's publisher: nobody else's goodbye is
    /// theirs then.
    pub fn is_held(&self, slot: Slot) -> bool {
        self.holders.count(slot).load(Ordering::Acquire) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_held(holders: &Holders, slot: u32) -> bool {
        holders.count(Slot::new(slot)).load(Ordering::Relaxed) != 0
    }

    #[test]
    fn a_slot_is_held_until_each_stream_has_released_it() {
        let holders = Holders::new(10).unwrap();
        for streams in [1, 2, 254, 255, 256, 700] {
            let slot = Slot::new(3);
            (0..streams).for_each(|_| holders.hold(slot));
            for _ in 0..streams {
                assert!(is_held(&holders, 3) && !is_held(&holders, 4), "{streams}");
                holders.release(slot);
            }
            assert!(!is_held(&holders, 3), "{streams}");
            assert!(holders.beyond.lock().is_empty());
        }
    }

    #[test]
    fn counts_are_exact_whoever_counts_meanwhile() {
        let holders = Holders::new(1).unwrap();
        let slot = Slot::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        (0..100).for_each(|_| holders.hold(slot));
                        (0..100).for_each(|_| holders.release(slot));
                    }
                });
            }
        });
        assert!(!is_held(&holders, 0) && holders.beyond.lock().is_empty());
    }
}
