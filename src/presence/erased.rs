//! When users were erased, for as long as something that was sent before may still be under way.
//!
//! Owns two moments an id. What is published of the id's next user is later than the one, so that
//! the order in which the two are told does not matter. What was sent before the other makes no
//! user. Bounded; the oldest is given up first, and a restart knows none. Never knows a slot.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::Presence;
use super::fresh::AHEAD_MS_MAX;
use crate::slot::Slot;
use crate::store::cells::BEHIND_MS_MAX;
use crate::time::Unix;

/// Erasures remembered at a time, some 50 bytes each.
const ERASED_MAX: usize = 65_536;

#[derive(Default)]
pub(super) struct Erased {
    recent: Mutex<Recent>,
    /// How many there are, asked without the lock.
    len: AtomicUsize,
}

/// By the hash of the id, which is seeded at random.
#[derive(Default)]
struct Recent {
    moments: HashMap<u64, Moments, foldhash::fast::RandomState>,
    /// In the order in which they came.
    order: VecDeque<(u64, Moments)>,
}

#[derive(Clone, Copy)]
struct Moments {
    /// Later than all that was published of the user.
    since: Unix,
    /// What the clock showed.
    at: Unix,
}

impl Erased {
    /// An id is erased as of `since`. Returns that, or the moment after an earlier erasure that was
    /// later.
    pub(super) fn note(&self, hash: u64, since: Unix, now: Unix) -> Unix {
        let mut recent = self.recent.lock();
        let Recent {
            moments: known,
            order,
        } = &mut *recent;
        // Nothing that is older is taken for sent just now. A clock that was set back waits.
        while let Some((oldest, at)) = order.front().copied()
            && (at.since.plus_ms(BEHIND_MS_MAX) < now || order.len() >= ERASED_MAX)
        {
            order.pop_front();
            if known.get(&oldest).is_some_and(|known| known.at == at.at) {
                known.remove(&oldest);
            }
        }
        let before = known.get(&hash).map_or(0, |before| before.since.ms() + 1);
        let since = since.max(Unix::from_ms(before));
        let moments = Moments { since, at: now };
        known.insert(hash, moments);
        order.push_back((hash, moments));
        self.len.store(known.len(), Ordering::Release);
        since
    }

    /// As of when an id was last erased, if that was a moment ago.
    pub(super) fn since(&self, hash: u64) -> Option<Unix> {
        let recent = self.recent.lock();
        recent.moments.get(&hash).map(|moments| moments.since)
    }

    /// Whether what was sent at `sent_at` was sent before the id was erased. A clock that was set
    /// back since says nothing of that.
    pub(super) fn is_before(&self, hash: u64, sent_at: Unix, now: Unix) -> bool {
        if self.is_empty() {
            return false;
        }
        let recent = self.recent.lock();
        recent
            .moments
            .get(&hash)
            .is_some_and(|moments| sent_at <= moments.at && moments.at <= now.plus_ms(AHEAD_MS_MAX))
    }

    /// Nobody was erased lately.
    pub(super) fn is_empty(&self) -> bool {
        self.len.load(Ordering::Acquire) == 0
    }
}

impl Presence {
    /// Whether this was sent before the id of that hash was erased.
    pub(super) fn is_before_erasure(&self, hash: u64, sent_at: Unix, now: Unix) -> bool {
        self.forgetting.erased.is_before(hash, sent_at, now)
    }

    /// Before when nothing may be dated that is published of a slot for the first time: its user
    /// may have been erased at another.
    pub(super) fn earliest_since(&self, slot: Slot) -> u64 {
        let erased = &self.forgetting.erased;
        if erased.is_empty() {
            return 0;
        }
        let since = erased.since(self.interner.hash(self.user(slot)));
        since.map_or(0, |since| since.ms() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Unix {
        Unix::from_ms(ms)
    }

    #[test]
    fn an_erasure_is_remembered_while_what_was_sent_before_may_come() {
        let erased = Erased::default();
        assert!(erased.is_empty());
        assert_eq!(erased.note(1, ms(5_000), ms(5_000)), ms(5_000));
        // Again, by a clock that was set back.
        assert_eq!(erased.note(1, ms(4_000), ms(4_000)), ms(5_001));
        erased.note(2, ms(5_000 + BEHIND_MS_MAX), ms(5_000 + BEHIND_MS_MAX));
        assert_eq!(erased.since(1), Some(ms(5_001)));
        erased.note(3, ms(5_002 + BEHIND_MS_MAX), ms(5_002 + BEHIND_MS_MAX));
        assert_eq!(erased.since(1), None);
        assert!(erased.since(2).is_some() && !erased.is_empty());
    }

    #[test]
    fn what_was_sent_before_an_erasure_is_told_from_what_was_sent_since() {
        let erased = Erased::default();
        assert!(!erased.is_before(1, ms(0), ms(5_000)));
        erased.note(1, ms(9_000), ms(5_000));
        let before = |sent_ms, now_ms| erased.is_before(1, ms(sent_ms), ms(now_ms));
        assert!(before(5_000, 5_000) && before(4_000, 20_000));
        assert!(!before(5_001, 5_001) && !erased.is_before(2, ms(4_000), ms(5_000)));
        assert!(!before(3_000, 3_999), "the clock was set back");
    }

    #[test]
    fn the_oldest_erasure_is_given_up_for_the_newest() {
        let erased = Erased::default();
        for hash in 0..=ERASED_MAX as u64 {
            erased.note(hash, ms(hash), ms(0));
        }
        assert_eq!((erased.since(0), erased.since(1)), (None, Some(ms(1))));
        assert_eq!(erased.recent.lock().moments.len(), ERASED_MAX);
    }
}
