//! When a node does what it does again and again.
//!
//! Renewals and audits fall on common moments, so that they leave in one write and Redis is woken
//! once for all of them: to be woken costs it more than a whole batch of small calls.

use crate::time::Mono;

/// The moments of one node: a fixed time apart, and at no other node's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticks {
    first_us: u64,
    period_us: u64,
}

impl Ticks {
    pub(super) fn new(period_ms: u64, random: &mut fastrand::Rng) -> Ticks {
        let period_us = (period_ms * 1_000).max(1);
        Ticks {
            first_us: random.u64(0..period_us),
            period_us,
        }
    }

    /// The last one that is not after `at`; `at` itself if there is none yet.
    pub(super) fn not_after(&self, at: Mono) -> Mono {
        match at.micros().checked_sub(self.first_us) {
            Some(since) => Mono::from_micros(at.micros() - since % self.period_us),
            None => at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_due_within_a_period_is_due_at_its_tick() {
        let ticks = Ticks {
            first_us: 250,
            period_us: 1_000,
        };
        for (at, tick) in [
            (0, 0),
            (249, 249),
            (250, 250),
            (1_249, 250),
            (1_250, 1_250),
            (9_999, 9_250),
        ] {
            assert_eq!(
                ticks.not_after(Mono::from_micros(at)),
                Mono::from_micros(tick)
            );
        }
    }
}
