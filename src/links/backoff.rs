//! When to try again: after each failure in a row twice as late, up to a cap, and never in step
//! with others.

/// Delay after the first failure, in ms.
const FIRST_MS: u64 = 200;
/// Longest delay, in ms. A link that works carries a request a second anyway.
pub(super) const CAP_MS: u64 = 2_000;

/// Failures in a row, and the jitter.
#[derive(Debug)]
pub(super) struct Backoff {
    failures: u32,
    random: fastrand::Rng,
}

impl Backoff {
    pub(super) fn new(seed: u64) -> Backoff {
        Backoff {
            failures: 0,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The delay after one more failure, in ms: between half of what is due and all of it.
    pub(super) fn after_failure_ms(&mut self) -> u64 {
        let due_ms = FIRST_MS
            .saturating_mul(1 << self.failures.min(16))
            .min(CAP_MS);
        self.failures = self.failures.saturating_add(1);
        due_ms / 2 + self.random.u64(0..=due_ms / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_begin_anew() {
        let mut backoff = Backoff::new(1);
        for due_ms in [200, 400, 800, 1_600, 2_000, 2_000] {
            let delay_ms = backoff.after_failure_ms();
            assert!(
                (due_ms / 2..=due_ms).contains(&delay_ms),
                "{delay_ms} of {due_ms}"
            );
        }
        backoff.reset();
        assert!(backoff.after_failure_ms() <= 200);
    }

    #[test]
    fn two_do_not_keep_step() {
        let delays = |seed| {
            let mut backoff = Backoff::new(seed);
            (0..8)
                .map(|_| backoff.after_failure_ms())
                .collect::<Vec<_>>()
        };
        assert_ne!(delays(1), delays(2));
    }
}
