//! When users were erased, for as long as something that was sent before may still be under way.
//!
//! Owns one moment an id: what is published of the id's next user is later than it, so that the
//! order in which the two are told does not matter. Bounded; the oldest is given up first. Never
//! knows a slot.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

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
    since: HashMap<u64, Unix, foldhash::fast::RandomState>,
    /// In the order in which they came.
    order: VecDeque<(u64, Unix)>,
}

impl Erased {
    /// An id is erased as of `since`. Returns that, or the moment after an earlier erasure that was
    /// later.
    pub(super) fn note(&self, hash: u64, since: Unix, now: Unix) -> Unix {
        let mut recent = self.recent.lock();
        let Recent {
            since: known,
            order,
        } = &mut *recent;
        // Nothing that is older is taken for sent just now. A clock that was set back waits.
        while let Some((oldest, at)) = order.front().copied()
            && (at.plus_ms(BEHIND_MS_MAX) < now || order.len() >= ERASED_MAX)
        {
            order.pop_front();
            if known.get(&oldest) == Some(&at) {
                known.remove(&oldest);
            }
        }
        let before = known.get(&hash).map_or(0, |before| before.ms() + 1);
        let since = since.max(Unix::from_ms(before));
        known.insert(hash, since);
        order.push_back((hash, since));
        self.len.store(known.len(), Ordering::Release);
        since
    }

    /// As of when an id was last erased, if that was a moment ago.
    pub(super) fn since(&self, hash: u64) -> Option<Unix> {
        self.recent.lock().since.get(&hash).copied()
    }

    /// Nobody was erased lately.
    pub(super) fn is_empty(&self) -> bool {
        self.len.load(Ordering::Acquire) == 0
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
    fn the_oldest_erasure_is_given_up_for_the_newest() {
        let erased = Erased::default();
        for hash in 0..=ERASED_MAX as u64 {
            erased.note(hash, ms(hash), ms(0));
        }
        assert_eq!((erased.since(0), erased.since(1)), (None, Some(ms(1))));
        assert_eq!(erased.recent.lock().since.len(), ERASED_MAX);
    }
}
