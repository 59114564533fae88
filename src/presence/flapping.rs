//! Who comes and goes too often: the last is told, when some time has passed.
//!
//! Owns one shard's memory of who had transitions lately, which is bounded; where it is full, those
//! whose last one is the longest ago are forgotten, and a flapping user's never is. Never decides
//! what is published.

use crate::slot::Slot;
use crate::time::Mono;

/// Time in which a user's transitions are counted, in ms.
const WINDOW: u32 = 10_000;
/// Most transitions in it that may be allowed.
pub const FLAP_TRANSITIONS_MAX: u32 = 14;
/// Sets of [`WAYS`] users; together a mebibyte a shard.
const SETS: usize = 4_096;
/// Users whose slots fall together.
const WAYS: usize = 4;
const _: () = assert!(size_of::<Entry>() == 64, "a cache line");

/// One user's latest transitions.
#[derive(Clone, Copy)]
struct Entry {
    /// Index of the slot, and one; 0: nobody's.
    owner: u32,
    /// Which of `times` is the oldest, and whether the last transition was held.
    next: u16,
    holding: bool,
    /// When the latest were, in ms of the monotonic clock, cut to 32 bits; a ring.
    times: [u32; FLAP_TRANSITIONS_MAX as usize],
}

/// Whether a transition may be published now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Allowed {
    Yes,
    /// It is to be held.
    No {
        /// The last one was not.
        first: bool,
    },
}

pub(super) struct Flapping {
    transitions_max: usize,
    entries: Box<[[Entry; WAYS]]>,
}

impl Flapping {
    /// None where all transitions are allowed: `transitions_max` is 0.
    pub(super) fn new(transitions_max: u32) -> Option<Flapping> {
        let empty = Entry {
            owner: 0,
            next: 0,
            holding: false,
            times: [0; FLAP_TRANSITIONS_MAX as usize],
        };
        (transitions_max > 0).then(|| Flapping {
            transitions_max: transitions_max.min(FLAP_TRANSITIONS_MAX) as usize,
            entries: vec![[empty; WAYS]; SETS].into_boxed_slice(),
        })
    }

    /// Asks for a transition, and counts it if it is allowed. `first`: it is the slot's first, so
    /// what is remembered of the slot is another user's.
    pub(super) fn allows(&mut self, slot: Slot, first: bool, now: Mono) -> Allowed {
        let (owner, now) = (slot.index() + 1, now.ms() as u32);
        // A shard's slots come in chunks; multiplied, they spread over all sets.
        let set = (slot.index().wrapping_mul(0x9e37_79b1) >> 16) as usize % SETS;
        let entries = &mut self.entries[set];
        let known = entries.iter_mut().find(|entry| entry.owner == owner);
        let Some(entry) = known.filter(|_| !first) else {
            self.remember(set, owner, now);
            return Allowed::Yes;
        };
        let oldest = &mut entry.times[usize::from(entry.next)];
        if now.wrapping_sub(*oldest) < WINDOW {
            let first = !entry.holding;
            entry.holding = true;
            return Allowed::No { first };
        }
        *oldest = now;
        entry.holding = false;
        entry.next = (entry.next + 1) % self.transitions_max as u16;
        Allowed::Yes
    }

    /// Takes the place of the user's own entry, or of the one whose last transition is the longest
    /// ago.
    fn remember(&mut self, set: usize, owner: u32, now: u32) {
        let max = self.transitions_max;
        let age = |entry: &Entry| {
            let last = (usize::from(entry.next) + max - 1) % max;
            match entry.owner {
                0 => u64::MAX - 1,
                known if known == owner => u64::MAX,
                // Whoever flaps is remembered rather than whoever came once.
                _ if entry.holding && now.wrapping_sub(entry.times[last]) < WINDOW => 0,
                _ => u64::from(now.wrapping_sub(entry.times[last])),
            }
        };
        let place = self.entries[set].iter_mut().max_by_key(|entry| age(entry));
        let entry = place.expect("a set has ways");
        let long_ago = now.wrapping_sub(WINDOW);
        *entry = Entry {
            owner,
            next: (1 % max) as u16,
            holding: false,
            times: [long_ago; FLAP_TRANSITIONS_MAX as usize],
        };
        entry.times[0] = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono::default().plus_ms(ms)
    }

    const YES: Allowed = Allowed::Yes;
    const HELD: Allowed = Allowed::No { first: true };
    const AGAIN: Allowed = Allowed::No { first: false };

    #[test]
    fn no_ten_seconds_have_more_than_are_allowed() {
        let mut flapping = Flapping::new(3).unwrap();
        let slot = Slot::new(7);
        for (ms, expected) in [
            (0, YES),
            (1_000, YES),
            (9_000, YES),
            (9_500, HELD),
            (9_999, AGAIN),
            // The first one is ten seconds ago.
            (10_000, YES),
            (10_001, HELD),
            (11_000, YES),
            (18_999, HELD),
            (19_000, YES),
        ] {
            assert_eq!(flapping.allows(slot, false, at(ms)), expected, "{ms}");
        }
        // Another user has the slot.
        assert_eq!(flapping.allows(slot, true, at(19_001)), YES);
        assert_eq!(flapping.allows(slot, false, at(19_002)), YES);
        assert!(Flapping::new(0).is_none());
    }

    #[test]
    fn one_transition_in_ten_seconds_is_the_least() {
        let mut flapping = Flapping::new(1).unwrap();
        let slot = Slot::new(0);
        for (ms, expected) in [(0, YES), (9_999, HELD), (10_000, YES), (19_999, HELD)] {
            assert_eq!(flapping.allows(slot, false, at(ms)), expected, "{ms}");
        }
    }

    #[test]
    fn a_million_who_come_once_push_out_none_who_flaps() {
        let mut flapping = Flapping::new(2).unwrap();
        let flapper = Slot::new(5);
        let (mut allowed, mut others) = (0, 10..);
        for ms in 0..100_000 {
            let asked = flapping.allows(flapper, false, at(ms));
            allowed += u32::from(asked == YES);
            for other in others.by_ref().take(10) {
                flapping.allows(Slot::new(other), true, at(ms));
            }
        }
        assert_eq!(allowed, 20);
    }
}
