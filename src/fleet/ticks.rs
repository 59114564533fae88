//! When a node does what it does again and again.
//!
//! Renewals, audits, the read of revocations and the sign of life fall on common moments. So they
//! leave together, and Redis is woken once for all of them: to be woken costs it more than a whole
//! batch of small calls.

use crate::time::Mono;

/// The moments of one node: a fixed time apart, and at no other node's.
#[derive(Clone, Copy, Debug)]
pub struct Ticks {
    first_us: u64,
    period_us: u64,
}

impl Ticks {
    /// `period_ms` apart.
    pub fn new(period_ms: u64, random: &mut fastrand::Rng) -> Ticks {
        let first_us = random.u64(0..(period_ms * 1_000).max(1));
        Ticks::from(Mono::from_micros(first_us), period_ms)
    }

    /// The same from `first` on.
    pub fn from(first: Mono, period_ms: u64) -> Ticks {
        Ticks {
            first_us: first.micros(),
            period_us: (period_ms * 1_000).max(1),
        }
    }

    /// The last one that is not after `at`; `at` itself if there is none yet.
    pub fn not_after(&self, at: Mono) -> Mono {
        match at.micros().checked_sub(self.first_us) {
            Some(since) => Mono::from_micros(at.micros() - since % self.period_us),
            None => at,
        }
    }

    /// The next one after `after` that is `at`'s own, where each of many takes its turn once in
    /// `every` ticks: as many have theirs at one tick as at any other.
    pub fn own_after(&self, after: Mono, at: usize, every: u64) -> Mono {
        let every = every.max(1);
        let next = match after.micros().checked_sub(self.first_us) {
            Some(since) => since / self.period_us + 1,
            None => 0,
        };
        let ahead = (at as u64 % every + every - next % every) % every;
        Mono::from_micros(self.first_us + (next + ahead) * self.period_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICKS: Ticks = Ticks {
        first_us: 250,
        period_us: 1_000,
    };

    #[test]
    fn whatever_is_due_within_a_period_is_due_at_its_tick() {
        for (at, tick) in [
            (0, 0),
            (249, 249),
            (250, 250),
            (1_249, 250),
            (1_250, 1_250),
            (9_999, 9_250),
        ] {
            assert_eq!(
                TICKS.not_after(Mono::from_micros(at)),
                Mono::from_micros(tick)
            );
        }
    }

    #[test]
    fn each_takes_its_turn_at_its_own_tick_whenever_it_is_asked_for() {
        for (after, at, every, tick) in [
            (0, 0, 3, 250),
            (0, 2, 3, 2_250),
            (249, 0, 3, 250),
            // Not the tick that it is.
            (250, 0, 3, 3_250),
            (250, 1, 3, 1_250),
            (1_249, 1, 3, 1_250),
            (1_250, 1, 3, 4_250),
            (4_000, 7, 3, 4_250),
            // All of them at each.
            (250, 5, 1, 1_250),
            (250, 5, 0, 1_250),
        ] {
            assert_eq!(
                TICKS.own_after(Mono::from_micros(after), at, every),
                Mono::from_micros(tick)
            );
        }
    }
}
