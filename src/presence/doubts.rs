//! Whoever a source says is offline, while a stream of this very node vouches for them: that the
//! beats did not arrive is likelier than that they have gone.
//!
//! Owns those states, and until when each is not believed. Knows no stream and tells nobody. Costs
//! a load where there are none.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashMap;
use parking_lot::Mutex;

use super::follower::Source;
use crate::slot::Slot;
use crate::time::Mono;
use crate::wire::record::Told;

/// A state that is not believed yet.
#[derive(Clone, Debug)]
pub(super) struct Doubt {
    pub(super) told: Told,
    pub(super) source: Source,
    until: Mono,
}

#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// How many there are.
    count: AtomicUsize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    by_slot: HashMap<u32, Doubt, foldhash::fast::RandomState>,
    /// In the order in which they began, which is that in which they end.
    order: VecDeque<(Mono, Slot)>,
}

impl Doubts {
    /// This was told, and is not believed before `until`, or before the first one is.
    pub(super) fn insert(&self, slot: Slot, told: Told, source: Source, until: Mono) {
        let mut held = self.held.lock();
        let first = held.by_slot.get(&slot.index()).map(|doubt| doubt.until);
        if first.is_none() {
            held.order.push_back((until, slot));
        }
        let doubt = Doubt {
            told,
            source,
            until: first.unwrap_or(until),
        };
        held.by_slot.insert(slot.index(), doubt);
        self.count.store(held.by_slot.len(), Ordering::Release);
    }

    /// It is settled.
    pub(super) fn remove(&self, slot: Slot) {
        if !self.is_empty() {
            let mut held = self.held.lock();
            held.by_slot.remove(&slot.index());
            self.count.store(held.by_slot.len(), Ordering::Release);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    pub(super) fn has(&self, slot: Slot) -> bool {
        !self.is_empty() && self.held.lock().by_slot.contains_key(&slot.index())
    }

    /// Those that are to be believed now: the time is over, or nothing speaks against them any
    /// more.
    pub(super) fn take(&self, now: Mono, stands: impl Fn(Slot) -> bool) -> Vec<(Slot, Doubt)> {
        if self.is_empty() {
            return Vec::new();
        }
        let held = &mut *self.held.lock();
        let mut believed = Vec::new();
        let by_slot = &mut held.by_slot;
        held.order.retain(|(until, slot)| {
            // One that was settled may have been told anew since.
            let is_this = |doubt: &Doubt| doubt.until == *until;
            let Some(doubt) = by_slot.get(&slot.index()).filter(|doubt| is_this(doubt)) else {
                return false;
            };
            let over = doubt.until <= now || !stands(*slot);
            if over && let Some(doubt) = by_slot.remove(&slot.index()) {
                believed.push((*slot, doubt));
            }
            !over
        });
        self.count.store(held.by_slot.len(), Ordering::Release);
        believed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Status;
    use crate::wire::User;

    fn at(ms: u64) -> Mono {
        Mono::default().plus_ms(ms)
    }

    fn told() -> Told {
        Told {
            user: User::parse(b"bob").unwrap().into(),
            status: Status::Offline,
            since: None,
            last_active: None,
            stale: false,
        }
    }

    fn taken(doubts: &Doubts, ms: u64, stands: impl Fn(Slot) -> bool) -> Vec<u32> {
        let taken = doubts.take(at(ms), stands);
        taken.iter().map(|(slot, _)| slot.index()).collect()
    }

    #[test]
    fn each_is_believed_once_in_time_or_when_nothing_stands_against_it() {
        let doubts = Doubts::default();
        assert!(doubts.is_empty() && taken(&doubts, 9, |_| true).is_empty());
        for (slot, until_ms) in [(1, 100), (2, 110), (3, 120), (1, 200)] {
            doubts.insert(Slot::new(slot), told(), Source::Told, at(until_ms));
        }
        assert!(taken(&doubts, 99, |_| true).is_empty());
        assert_eq!(taken(&doubts, 99, |slot| slot.index() != 3), [3]);
        assert!(doubts.has(Slot::new(1)) && !doubts.has(Slot::new(3)));
        assert_eq!(
            taken(&doubts, 100, |_| true),
            [1],
            "since it was first told"
        );
        // Settled, and told anew.
        doubts.remove(Slot::new(2));
        doubts.insert(Slot::new(2), told(), Source::Told, at(300));
        assert!(taken(&doubts, 299, |_| true).is_empty());
        assert_eq!(taken(&doubts, 300, |_| true), [2]);
        assert!(doubts.is_empty());
    }
}
