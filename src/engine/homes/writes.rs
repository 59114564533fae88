//! What callers of this node have said of users, until the fleet's word of it comes: whoever has
//! been told that a beat or goodbye was taken is not told the opposite a moment later.
//!
//! Owns what is kept, at most [`KEPT_MAX`] of it and none for longer than [`KEPT_MS`]. Nothing that
//! comes by UDP is kept: its sender has been told nothing.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::time::{Mono, Now, Unix};
use crate::wire::User;

/// How long the fleet's word is waited for, in ms. Then it counts as it is.
const KEPT_MS: u64 = 2_000;
/// Users of whom something is kept; beyond, the oldest is forgotten. Some 10 MB.
const KEPT_MAX: usize = 65_536;

/// What a caller has said of a user last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) struct OwnWrite {
    /// It has said goodbye; else it has beaten.
    pub(in crate::engine) is_gone: bool,
    /// When, by this node's clock.
    pub(in crate::engine) at: Unix,
    until: Mono,
    /// The fleet has said the same. An answer that is under way may be older than that.
    is_told: bool,
}

/// All that is kept.
#[derive(Debug, Default)]
pub(in crate::engine) struct OwnWrites {
    /// So that whoever asks takes no lock where there is nothing.
    count: AtomicUsize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    of: HashMap<Box<str>, OwnWrite, foldhash::fast::RandomState>,
    /// In the order in which they were said.
    order: VecDeque<(Mono, Box<str>)>,
}

impl OwnWrites {
    /// A caller has said this of a user. `is_told`: the fleet says the same by now, as far as is
    /// known here.
    pub(in crate::engine) fn note(&self, user: User<'_>, is_gone: bool, is_told: bool, now: Now) {
        let mut kept = self.kept.lock();
        kept.forget_old(now.mono);
        // What is known here may be from before the opposite was said.
        let before = kept.of.get(user.as_str());
        let is_opposite = before.is_some_and(|it| it.until > now.mono && it.is_gone != is_gone);
        let (at, until) = (now.unix, now.mono.plus_ms(KEPT_MS));
        kept.order.push_back((until, user.as_str().into()));
        let write = OwnWrite {
            is_gone,
            at,
            until,
            is_told: is_told && !is_opposite,
        };
        kept.of.insert(user.as_str().into(), write);
        self.count.store(kept.of.len(), Ordering::Release);
    }

    /// What a caller has said of a user, of whom the fleet says that it is there or not. None:
    /// nothing lately, or the fleet says the same.
    pub(in crate::engine) fn unlike(
        &self,
        user: User<'_>,
        is_here: bool,
        now: Mono,
    ) -> Option<OwnWrite> {
        if self.is_empty() {
            return None;
        }
        let kept = self.kept.lock();
        let write = kept.of.get(user.as_str()).copied()?;
        (write.until > now && write.is_gone == is_here).then_some(write)
    }

    /// The fleet says that a user is here, or not. The opposite of what was said here is news only
    /// if the fleet has said that too; else it is older.
    pub(in crate::engine) fn told(&self, user: User<'_>, is_here: bool) {
        if self.is_empty() {
            return;
        }
        let mut kept = self.kept.lock();
        let Some(write) = kept.of.get_mut(user.as_str()) else {
            return;
        };
        if write.is_gone != is_here {
            write.is_told = true;
        } else if write.is_told {
            kept.of.remove(user.as_str());
            self.count.store(kept.of.len(), Ordering::Release);
        }
    }

    /// The fleet has judged what was said: its own word counts.
    pub(in crate::engine) fn settle(&self, user: User<'_>) {
        if self.is_empty() {
            return;
        }
        let mut kept = self.kept.lock();
        kept.of.remove(user.as_str());
        self.count.store(kept.of.len(), Ordering::Release);
    }

    /// The fleet has ended a user's stay, or hidden it, at that time. What was said before is over.
    pub(in crate::engine) fn overrule(&self, user: User<'_>, at: Mono) {
        if self.is_empty() {
            return;
        }
        let mut kept = self.kept.lock();
        let said = kept.of.get(user.as_str());
        // Times of the fleet are whole milliseconds. Of both in one, the ending counts.
        if said.is_some_and(|write| write.until <= at.plus_ms(KEPT_MS + 1)) {
            kept.of.remove(user.as_str());
            self.count.store(kept.of.len(), Ordering::Release);
        }
    }

    /// Whether nothing is kept, or only what is too old.
    pub(in crate::engine) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }
}

impl Kept {
    fn forget_old(&mut self, now: Mono) {
        while let Some((until, user)) = self.order.front() {
            if *until > now && self.order.len() < KEPT_MAX {
                return;
            }
            // What was said since stays.
            if self.of.get(user).is_some_and(|write| write.until == *until) {
                self.of.remove(user);
            }
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Now {
        Now {
            mono: Mono::default().plus_ms(ms),
            unix: Unix::from_ms(1_000 + ms),
        }
    }

    fn user(name: &str) -> User<'_> {
        User::from_text(name).unwrap()
    }

    #[test]
    fn what_was_said_counts_until_the_fleet_says_it_or_for_two_seconds() {
        let writes = OwnWrites::default();
        assert!(writes.is_empty());
        writes.note(user("a"), false, false, at(0));
        let unlike = |is_here, ms| {
            let write = writes.unlike(user("a"), is_here, at(ms).mono);
            write.map(|write| (write.is_gone, write.at.ms()))
        };
        assert_eq!(unlike(false, 1), Some((false, 1_000)));
        assert_eq!(unlike(true, 1), None, "the fleet says so too");
        assert_eq!(unlike(false, 1_999), Some((false, 1_000)));
        assert_eq!(unlike(false, 2_000), None);
        // The last word counts.
        writes.note(user("a"), true, false, at(2_100));
        assert_eq!(unlike(true, 2_200), Some((true, 3_100)));
        assert_eq!(unlike(false, 2_200), None);
        writes.settle(user("a"));
        assert_eq!(unlike(true, 2_200), None);
        assert!(writes.is_empty());
    }

    /// An answer that was under way when the fleet's word came says what was before it.
    #[test]
    fn the_opposite_is_news_once_the_fleet_has_said_the_same() {
        let writes = OwnWrites::default();
        writes.note(user("a"), false, false, at(0));
        let counts = |is_here| writes.unlike(user("a"), is_here, at(1).mono).is_some();
        writes.told(user("a"), false);
        assert!(counts(false), "that was before");
        writes.told(user("a"), true);
        assert!(counts(false), "an old answer");
        writes.told(user("a"), false);
        assert!(!counts(false), "it has gone since");
        assert!(writes.is_empty());
        writes.told(user("b"), true);
    }

    #[test]
    fn whoever_was_known_to_be_here_has_gone_once_the_fleet_says_so() {
        let writes = OwnWrites::default();
        let counts = |ms| writes.unlike(user("a"), false, at(ms).mono).is_some();
        writes.note(user("a"), false, true, at(0));
        assert!(counts(1));
        writes.told(user("a"), false);
        assert!(!counts(1));
        // Of a goodbye that was said here just now the fleet may have yet to tell.
        writes.note(user("a"), true, true, at(10));
        writes.note(user("a"), false, true, at(11));
        writes.told(user("a"), false);
        assert!(counts(12));
    }

    #[test]
    fn an_ending_counts_over_what_was_said_before_it() {
        let writes = OwnWrites::default();
        let counts = |ms| writes.unlike(user("a"), false, at(ms).mono).is_some();
        for (ended, expected) in [(8, true), (9, false), (10, false), (1_000, false)] {
            writes.note(user("a"), false, false, at(10));
            writes.overrule(user("a"), at(ended).mono);
            writes.overrule(user("b"), at(1_000).mono);
            assert_eq!(counts(11), expected, "{ended}");
        }
        assert!(writes.is_empty());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let writes = OwnWrites::default();
        for number in 0..KEPT_MAX + 10 {
            writes.note(user(&format!("user-{number}")), false, false, at(5));
        }
        let kept = writes.kept.lock();
        assert_eq!((kept.of.len(), kept.order.len()), (KEPT_MAX, KEPT_MAX));
        drop(kept);
        writes.note(user("late"), false, false, at(5_000));
        let kept = writes.kept.lock();
        assert_eq!((kept.of.len(), kept.order.len()), (1, 1));
    }
}
