//! Recent goodbyes, so that a beat sent before one does not undo it, however late it arrives.
//!
//! Owns the table: for each slot the newest `sent_at` of a leave, kept for twice
//! `beat_skew_max_ms`: a datagram is refused elsewhere once it is older than that. One entry a
//! slot, [`LEAVES_MAX`] at most, cleaned up little by little. Does not know when a *beat* was sent
//! once it has been accepted (stamps hold the receiver's clock), so a leave that was overtaken by a
//! newer beat and was never seen before still logs its user out, until the next beat.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use crate::slot::Slot;
use crate::time::{Mono, Now, Unix};

/// Goodbyes remembered at most; beyond, the oldest is forgotten for the newest, and a beat sent
/// before it is judged by its stamp alone. So many are 4,369 a second for a minute; they take 17
/// MB, and to make room for as many takes the lock for some 10 ms.
pub(super) const LEAVES_MAX: usize = 1 << 18;
/// Expired entries dropped by one call of `tend`.
const DROPPED_PER_TEND_MAX: usize = 1_024;
/// Expired entries dropped by one insertion: more than one, so that the table shrinks while it is
/// used.
const DROPPED_PER_INSERT_MAX: usize = 4;
/// Entries that an empty table may keep room for.
const IDLE_CAPACITY: usize = 1_024;

#[derive(Debug)]
pub(super) struct Leaves {
    by_slot: HashMap<u32, Leave, foldhash::fast::RandomState>,
    /// One record an entry, oldest first; an entry that was renewed since goes to the back when its
    /// record comes up.
    expiries: VecDeque<(Mono, Slot)>,
    skew_ms_max: u64,
    /// Entries that had to go before their time, since this was last asked for.
    forgotten: u64,
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
            forgotten: 0,
        }
    }

    /// When the slot's newest leave was sent, if one is remembered. One that no datagram could
    /// carry any more, because the wall clock was stepped back by more than the skew since, says
    /// nothing.
    pub(super) fn sent_at(&self, slot: Slot, now: Now) -> Option<Unix> {
        let leave = self.by_slot.get(&slot.index())?;
        let possible = leave.sent_at <= now.unix.plus_ms(self.skew_ms_max);
        (leave.kept_until > now.mono && possible).then_some(leave.sent_at)
    }

    /// Remembers a leave that `sent_at` has just shown to be the newest.
    pub(super) fn insert(&mut self, slot: Slot, sent_at: Unix, now: Now) {
        self.drop_expired(now.mono, DROPPED_PER_INSERT_MAX);
        if self.by_slot.len() >= LEAVES_MAX
            && !self.by_slot.contains_key(&slot.index())
            && let Some((_, oldest)) = self.expiries.pop_front()
        {
            self.by_slot.remove(&oldest.index());
            self.forgotten += 1;
        }
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

    /// Drops some of what has expired, whether or not others leave. Returns how many were forgotten
    /// before their time since the last call.
    pub(super) fn tend(&mut self, now: Mono) -> u64 {
        self.drop_expired(now, DROPPED_PER_TEND_MAX);
        std::mem::take(&mut self.forgotten)
    }

    fn drop_expired(&mut self, now: Mono, count_max: usize) {
        for _ in 0..count_max {
            match self.expiries.front() {
                Some((at, slot)) if *at <= now => {
                    let slot = *slot;
                    self.expiries.pop_front();
                    match self.by_slot.get(&slot.index()) {
                        Some(leave) if leave.kept_until > now => {
                            self.expiries.push_back((leave.kept_until, slot))
                        }
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
        assert_eq!(
            leaves.sent_at(Slot::new(0), at(99_999)),
            Some(at(40_000).unix)
        );
        leaves.insert(Slot::new(1), at(200_000).unix, at(200_000));
        leaves.insert(Slot::new(1), at(200_000).unix, at(200_000));
        assert_eq!(leaves.by_slot.len(), 1);
    }

    #[test]
    fn the_table_empties_without_another_leave() {
        let mut leaves = Leaves::new(30_000);
        for slot in 0..2_000 {
            leaves.insert(Slot::new(slot), at(0).unix, at(0));
        }
        assert_eq!(leaves.tend(at(59_999).mono), 0);
        assert_eq!(leaves.by_slot.len(), 2_000);
        assert_eq!(leaves.tend(at(60_000).mono), 0);
        assert_eq!(leaves.by_slot.len(), 976);
        leaves.tend(at(60_000).mono);
        assert_eq!((leaves.by_slot.len(), leaves.by_slot.capacity()), (0, 0));
        assert_eq!((leaves.expiries.len(), leaves.expiries.capacity()), (0, 0));
    }

    #[test]
    fn beyond_its_limit_the_oldest_are_forgotten() {
        let mut leaves = Leaves::new(30_000);
        let slots = LEAVES_MAX as u32;
        for slot in 0..slots {
            leaves.insert(Slot::new(slot), at(0).unix, at(0));
        }
        leaves.insert(Slot::new(0), at(1).unix, at(1));
        assert_eq!(leaves.tend(at(1).mono), 0, "it is remembered already");
        for slot in slots..slots + 3 {
            leaves.insert(Slot::new(slot), at(2).unix, at(2));
        }
        assert_eq!(leaves.by_slot.len(), LEAVES_MAX);
        assert_eq!(leaves.sent_at(Slot::new(2), at(2)), None);
        assert_eq!(leaves.sent_at(Slot::new(3), at(2)), Some(at(0).unix));
        assert_eq!(
            leaves.sent_at(Slot::new(slots + 2), at(2)),
            Some(at(2).unix)
        );
        assert_eq!([leaves.tend(at(2).mono), leaves.tend(at(2).mono)], [3, 0]);
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
