//! Whoever a source says is offline, while a stream of this very node vouches for them: that the
//! beats did not arrive is likelier than that they have gone.
//!
//! Owns those states, until when each is not believed, and whose streams have ended since. Knows no
//! stream and tells nobody. Costs a load where there are none; what is settled is taken in slices.

use std::collections::BTreeSet;
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
    /// In the order in which they end.
    order: BTreeSet<(Mono, u32)>,
    /// Slots for which a stream vouched that does so no more.
    let_go: BTreeSet<u32>,
}

/// What was taken of those that are to be believed.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) doubts: Vec<(Slot, Doubt)>,
    /// There may be others.
    pub(super) more: bool,
}

impl Doubts {
    /// This was told, and is not believed before `until`, or before the first one is.
    pub(super) fn insert(&self, slot: Slot, told: Told, source: Source, until: Mono) {
        let mut held = self.held.lock();
        let first = held.by_slot.get(&slot.index()).map(|doubt| doubt.until);
        let until = first.unwrap_or(until);
        held.order.insert((until, slot.index()));
        let doubt = Doubt {
            told,
            source,
            until,
        };
        held.by_slot.insert(slot.index(), doubt);
        self.count.store(held.by_slot.len(), Ordering::Release);
    }

    /// It is settled.
    pub(super) fn remove(&self, slot: Slot) {
        if !self.is_empty() {
            self.held.lock().remove(slot, &self.count);
        }
    }

    /// A stream vouches for it no more.
    pub(super) fn let_go(&self, slot: Slot) {
        if !self.is_empty() {
            let held = &mut *self.held.lock();
            if held.by_slot.contains_key(&slot.index()) {
                held.let_go.insert(slot.index());
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    pub(super) fn has(&self, slot: Slot) -> bool {
        !self.is_empty() && self.held.lock().by_slot.contains_key(&slot.index())
    }

    /// Those that are to be believed now, `max` looked at: the time is over, or no stream vouches
    /// for them any more.
    pub(super) fn take(&self, now: Mono, max: usize, is_held: impl Fn(Slot) -> bool) -> Taken {
        let mut taken = Taken::default();
        if self.is_empty() {
            return taken;
        }
        let held = &mut *self.held.lock();
        for _ in 0..max {
            let slot = match held.let_go.pop_first() {
                // Another one may have opened.
                Some(index) if is_held(Slot::new(index)) => continue,
                Some(index) => Slot::new(index),
                None => match held.order.first() {
                    Some((until, index)) if *until <= now => Slot::new(*index),
                    _ => return taken,
                },
            };
            let doubt = held.remove(slot, &self.count);
            taken.doubts.extend(doubt.map(|doubt| (slot, doubt)));
        }
        taken.more = true;
        taken
    }
}

impl Held {
    fn remove(&mut self, slot: Slot, count: &AtomicUsize) -> Option<Doubt> {
        let doubt = self.by_slot.remove(&slot.index())?;
        self.order.remove(&(doubt.until, slot.index()));
        self.let_go.remove(&slot.index());
        count.store(self.by_slot.len(), Ordering::Release);
        Some(doubt)
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
            heard: None,
        }
    }

    fn taken(doubts: &Doubts, ms: u64) -> Vec<u32> {
        let taken = doubts.take(at(ms), 9, |_| false);
        assert!(!taken.more, "all were looked at");
        taken.doubts.iter().map(|(slot, _)| slot.index()).collect()
    }

    fn doubts(each: &[(u32, u64)]) -> Doubts {
        let doubts = Doubts::default();
        for (slot, until_ms) in each {
            doubts.insert(Slot::new(*slot), told(), Source::Told, at(*until_ms));
        }
        doubts
    }

    #[test]
    fn each_is_believed_once_in_time_or_when_nothing_stands_against_it() {
        assert!(taken(&Doubts::default(), 9).is_empty());
        let doubts = doubts(&[(1, 100), (2, 110), (3, 120), (1, 200)]);
        assert!(taken(&doubts, 99).is_empty());
        for slot in [3, 7] {
            doubts.let_go(Slot::new(slot));
        }
        assert_eq!(taken(&doubts, 99), [3]);
        assert!(doubts.has(Slot::new(1)) && !doubts.has(Slot::new(3)));
        assert_eq!(taken(&doubts, 100), [1], "since it was first told");
        // Settled, and told anew.
        doubts.let_go(Slot::new(2));
        doubts.remove(Slot::new(2));
        doubts.insert(Slot::new(2), told(), Source::Told, at(300));
        assert!(taken(&doubts, 299).is_empty());
        assert_eq!(taken(&doubts, 300), [2]);
        assert!(doubts.is_empty());
    }

    #[test]
    fn whose_stream_has_ended_and_another_has_opened_stays_in_doubt() {
        let doubts = doubts(&[(1, 100)]);
        doubts.let_go(Slot::new(1));
        let taken_of_held = doubts.take(at(1), 9, |_| true);
        assert!(taken_of_held.doubts.is_empty() && !taken_of_held.more);
        assert!(taken(&doubts, 99).is_empty());
        doubts.let_go(Slot::new(1));
        assert_eq!(taken(&doubts, 99), [1]);
    }

    #[test]
    fn a_slice_looks_at_so_many_and_no_more() {
        let each: Vec<(u32, u64)> = (0..10).map(|slot| (slot, 100)).collect();
        let doubts = doubts(&each);
        for slot in [8, 9] {
            doubts.let_go(Slot::new(slot));
        }
        let mut sizes = Vec::new();
        loop {
            let taken = doubts.take(at(100), 4, |slot| slot.index() == 8);
            sizes.push(taken.doubts.len());
            if !taken.more {
                break;
            }
        }
        assert_eq!(sizes, [3, 4, 3], "one of the four was held");
        assert!(doubts.is_empty());
    }
}
