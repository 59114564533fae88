//! Recent goodbyes, so that a beat sent before one does not undo it, however late it arrives.
//!
//! Owns the table: for each slot the newest `sent_at` of a leave, kept for twice `beat_skew_max_ms`: a datagram is refused
//! elsewhere once it is older than that. One entry a slot, cleaned up little by little. Does not know when a *beat* was sent
//! once it has been accepted (stamps hold the receiver's clock), so a leave that was overtaken by a newer beat and was never
//! seen before still logs its user out, until the next beat.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use super::Slot;
use crate::time::{Mono, Now, Unix};

/// Expired entries dropped by one insertion: more than one, so that the table shrinks while it is used.
const DROPPED_PER_INSERT_MAX: usize = 4;
/// Entries that an empty table may keep room for.
const IDLE_CAPACITY: usize = 1_024;

#[derive(Debug)]
pub(super) struct Leaves {
    by_slot: HashMap<u32, Leave, foldhash::fast::RandomState>,
    /// One record an entry, oldest first; an entry that was renewed since goes to the back when its record comes up.
    expiries: VecDeque<(Mono, Slot)>,
    skew_ms_max: u64,
}

#[derive(Clone, Copy, Debug)]
struct Leave {
    sent_at: Unix,
    kept_until: Mono,
}

impl Leaves {
    pub(super) fn new(skew_ms_max: u64) -> Leaves {
        Leaves {
            by_slot: HashMap::default(),
            expiries: VecDeque::new(),
            skew_ms_max,
        }
    }

    /// When the slot's newest leave was sent, if one is remembered. One that no datagram could carry any more, because the wall
    /// clock was stepped back by more than the skew since, says nothing.
    pub(super) fn sent_at(&self, slot: Slot, now: Now) -> Option<Unix> {
        let leave = self.by_slot.get(&slot.index())?;
        let possible = leave.sent_at <= now.unix.plus_ms(self.skew_ms_max);
        (leave.kept_until > now.mono && possible).then_some(leave.sent_at)
    }

    /// Remembers a leave that `sent_at` has just shown to be the newest.
    pub(super) fn insert(&mut self, slot: Slot, sent_at: Unix, now: Now) {
        self.drop_expired(now.mono);
        let leave = Leave {
            sent_at,
            kept_until: now.mono.plus_ms(self.skew_ms_max.saturating_mul(2)),
        };
        match self.by_slot.entry(slot.index()) {
            Entry::Occupied(mut entry) => *entry.get_mut() = leave,
            Entry::Vacant(entry) => {
                entry.insert(leave);
                self.expiries.push_back((leave.kept_until, slot));
            }
        }
        debug_assert_eq!(self.by_slot.len(), self.expiries.len());
    }

    fn drop_expired(&mut self, now: Mono) {
        for _ in 0..DROPPED_PER_INSERT_MAX {
            match self.expiries.front() {
                Some((at, slot)) if *at <= now => {
                    let slot = *slot;
                    self.expiries.pop_front();
                    match self.by_slot.get(&slot.index()) {
                        Some(leave) if leave.kept_until > now => self.expiries.push_back((leave.kept_until, slot)),
                        _ => {
                            self.by_slot.remove(&slot.index());
                        }
                    }
                }
                _ => break,
            }
        }
        if self.by_slot.is_empty() && self.by_slot.capacity() > IDLE_CAPACITY {
            self.by_slot.shrink_to(0);
            self.expiries.shrink_to(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::tests::at;

    #[test]
    fn a_leave_is_remembered_for_twice_the_skew() {
        let mut leaves = Leaves::new(30_000);
        let sent_at = at(5).unix;
        leaves.insert(Slot::new(3), sent_at, at(10));
        assert_eq!(leaves.sent_at(Slot::new(3), at(60_009)), Some(sent_at));
        assert_eq!(leaves.sent_at(Slot::new(3), at(60_010)), None);
        assert_eq!(leaves.sent_at(Slot::new(4), at(10)), None);
    }

    #[test]
    fn a_renewed_leave_lives_on_and_the_table_empties() {
        let mut leaves = Leaves::new(30_000);
        for slot in 0..2_000 {
            leaves.insert(Slot::new(slot), at(0).unix, at(0));
        }
        leaves.insert(Slot::new(0), at(40_000).unix, at(40_000));
        for n in 0..700 {
            leaves.insert(Slot::new(9_999), at(70_000).unix, at(70_000 + n));
        }
        assert_eq!(leaves.by_slot.len(), 2);
        assert_eq!(leaves.sent_at(Slot::new(0), at(99_999)), Some(at(40_000).unix));
        leaves.insert(Slot::new(1), at(200_000).unix, at(200_000));
        leaves.insert(Slot::new(1), at(200_000).unix, at(200_000));
        assert_eq!(leaves.by_slot.len(), 1);
    }

    #[test]
    fn a_leave_from_before_a_backward_step_says_nothing() {
        let mut leaves = Leaves::new(30_000);
        leaves.insert(Slot::new(3), at(0).unix, at(0));
        let stepped = Now {
            mono: at(100).mono,
            unix: at(0).unix.minus_ms(30_001),
        };
        assert_eq!(leaves.sent_at(Slot::new(3), stepped), None);
    }
}
