//! When to try again: after each failure in a row twice as late, up to a cap, and never in step
//! with others.

/// Failures in a row, and the jitter.
#[derive(Debug)]
pub(crate) struct Backoff {
    failures: u32,
    first_ms: u64,
    cap_ms: u64,
    random: fastrand::Rng,
}

impl Backoff {
    /// One whose delay after the first failure is `first_ms`, and `cap_ms` at most. `seed` is of
    /// the jitter.
    pub(crate) fn new(first_ms: u64, cap_ms: u64, seed: u64) -> Backoff {
        Backoff {
            failures: 0,
            first_ms,
            cap_ms,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// Something has succeeded.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The delay after one more failure, in ms: between half of what is due and all of it.
    pub(crate) fn after_failure_ms(&mut self) -> u64 {
        let due_ms = self
            .first_ms
            .saturating_mul(1 << self.failures.min(16))
            .min(self.cap_ms);
        self.failures = self.failures.saturating_add(1);
        due_ms / 2 + self.random.u64(0..=due_ms / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_begin_anew() {
        let mut backoff = Backoff::new(200, 2_000, 1);
        for due_ms in [200, 400, 800, 1_600, 2_000, 2_000] {
            let delay_ms = backoff.after_failure_ms();
            let due = due_ms / 2..=due_ms;
            assert!(due.contains(&delay_ms), "{delay_ms} of {due_ms}");
        }
        backoff.reset();
        assert!(backoff.after_failure_ms() <= 200);
    }

    #[test]
    fn two_do_not_keep_step() {
        let delays = |seed| {
            let mut backoff = Backoff::new(200, 2_000, seed);
            (0..8)
                .map(|_| backoff.after_failure_ms())
                .collect::<Vec<_>>()
        };
        assert_ne!(delays(1), delays(2));
    }

    #[test]
    fn no_time_is_too_long() {
        let mut backoff = Backoff::new(u64::MAX / 2, u64::MAX, 1);
        for _ in 0..100 {
            assert!(backoff.after_failure_ms() >= u64::MAX / 4);
        }
    }
}
