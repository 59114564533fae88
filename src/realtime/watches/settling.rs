//! Names that stand for slots settle: in time their watches are by the slot, and the place is free.
//!
//! Owns the slots whose watchers are still at a name's place. An entry moves within its list, and
//! all entries of a place move at once, so that nobody sees half of it. Done in slices, behind
//! everything that somebody waits for. A crowd stays at its place, for among so many that costs
//! nothing. Changes no watch and no mark.

use super::{MARK, NAMED, Watches, find};
use crate::realtime::watchers::CROWD_MIN;

/// Words of a list that are moved for the price of a mark.
const WORDS_PER_MARK: usize = 1_024;
/// Slots for which room is kept.
const IDLE_SLOTS: usize = 1_024;

impl Watches {
    /// Whether watches are to be settled.
    pub fn has_settling(&self) -> bool {
        !self.settling.is_empty()
    }

    /// Settles the watches of some slots, for the price of about `max` marks. Returns the price.
    pub fn settle_some(&mut self, max: usize) -> usize {
        let mut price = 0;
        while price < max
            && let Some(slot) = self.settling.pop_front()
        {
            price += 1 + self.settle(slot);
        }
        if self.settling.is_empty() {
            self.settling.shrink_to(IDLE_SLOTS);
            self.give_back();
        }
        price
    }

    /// Returns the price in marks.
    fn settle(&mut self, slot: u32) -> usize {
        let stand_in = self.by_slot.get(&slot);
        let Some(name) = stand_in.and_then(|watchers| watchers.as_stand_in()) else {
            // Nobody watches the slot any more.
            return 0;
        };
        let watchers = self.names.watchers(name);
        let watches = self.watchers.len(watchers);
        if watches > CROWD_MIN as usize {
            return 0;
        }
        let mut price = 0;
        let (lists, follows) = (&mut self.lists, &self.follows);
        self.watchers.each(watchers, |conn| {
            let entries = lists.get_mut(follows[conn as usize].list);
            let (Ok(from), Err(to)) = (find(entries, NAMED | name), find(entries, slot)) else {
                unreachable!("a list has a target once, and both directions know of it")
            };
            // Slots stand before names.
            entries[from] = slot | (entries[from] & MARK);
            entries[to..=from].rotate_right(1);
            price += 1 + (from - to) / WORDS_PER_MARK;
        });
        self.standing_edges -= watches;
        self.names.remove(name);
        self.by_slot.insert(slot, watchers);
        price
    }
}
