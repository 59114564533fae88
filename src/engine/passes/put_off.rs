//! Goodbyes that were put off.
//!
//! Owns them until they are due, one a slot at most: a later one takes the place of an earlier. In
//! memory only: a crash loses them, and silence decides. Never decides whether one counts.

use std::collections::BTreeSet;

use hashbrown::HashMap;

use crate::engine::errand::PutOff;
use crate::slot::Slot;
use crate::time::Mono;

/// Some 100 bytes each.
#[derive(Debug, Default)]
pub(in crate::engine) struct PuttingOff {
    by_slot: HashMap<u32, (Mono, PutOff), foldhash::fast::RandomState>,
    /// The same, by when they are due.
    by_due: BTreeSet<(Mono, u32)>,
}

impl PuttingOff {
    /// Keeps one until it is due; false if `max` wait already.
    pub(in crate::engine) fn put_off(&mut self, goodbye: PutOff, due: Mono, max: usize) -> bool {
        let slot = goodbye.slot.index();
        if self.by_slot.len() >= max && !self.by_slot.contains_key(&slot) {
            return false;
        }
        if let Some((earlier, _)) = self.by_slot.insert(slot, (due, goodbye)) {
            self.by_due.remove(&(earlier, slot));
        }
        self.by_due.insert((due, slot));
        true
    }

    /// The one of a slot, if there is any, counts no more.
    pub(in crate::engine) fn drop(&mut self, slot: Slot) {
        if let Some((due, _)) = self.by_slot.remove(&slot.index()) {
            self.by_due.remove(&(due, slot.index()));
        }
    }

    /// When the first is due.
    pub(super) fn due(&self) -> Mono {
        self.by_due.first().map_or(Mono::NEVER, |(due, _)| *due)
    }

    /// One that is due.
    pub(super) fn next(&mut self, now: Mono) -> Option<PutOff> {
        let (_, slot) = self
            .by_due
            .first()
            .filter(|(due, _)| *due <= now)
            .copied()?;
        self.by_due.pop_first();
        let (_, goodbye) = self.by_slot.remove(&slot)?;
        if self.by_slot.is_empty() {
            self.by_slot.shrink_to_fit();
        }
        Some(goodbye)
    }
}
