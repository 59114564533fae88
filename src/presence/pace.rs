//! How fast new users are made, over all shards of a node.
//!
//! Owns the one word that says when the next one would be due if they came evenly (a leaky bucket
//! as a virtual schedule): a burst of one second's worth passes, then they come at the rate. A user
//! who is known costs nothing here.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::time::Mono;

const SECOND_NANOS: u64 = 1_000_000_000;

/// When the next is due, in nanoseconds since boot.
#[derive(Debug, Default)]
pub struct Pace(AtomicU64);

impl Pace {
    /// Takes one if the rate allows; 0 allows all.
    pub fn take(&self, per_second: u32, now: Mono) -> bool {
        if per_second == 0 {
            return true;
        }
        let (now, step) = (now.micros() * 1_000, SECOND_NANOS / u64::from(per_second));
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due| {
                (due < now + SECOND_NANOS).then(|| due.max(now) + step)
            });
        taken.is_ok()
    }

    /// Nothing is owed: one that was made now would say the same.
    pub fn is_rested(&self, now: Mono) -> bool {
        self.0.load(Ordering::Relaxed) <= now.micros() * 1_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_taken_at_once_and_then_the_rate() {
        let pace = Pace::default();
        let at = |ms| Mono::from_micros(5_000_000).plus_ms(ms);
        let taken = |ms| (0..10_000).filter(|_| pace.take(2_000, at(ms))).count();
        assert!(pace.is_rested(at(0)));
        assert_eq!(taken(0), 2_000);
        assert_eq!(taken(0), 0);
        assert_eq!(taken(10), 20);
        assert_eq!(taken(1_000), 1_980);
        assert!(!pace.is_rested(at(1_999)) && pace.is_rested(at(2_000)));
        assert_eq!(taken(90_000), 2_000);
        assert_eq!(
            (0..10_000).filter(|_| pace.take(0, at(90_000))).count(),
            10_000
        );
    }
}
