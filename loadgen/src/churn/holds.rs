//! Whether the server may be holding expiries: after a stall of its own it puts off telling anybody
//! offline for silence, as it should.
//!
//! Owns the thread that asks. A server that does not answer may be stalled, and hold them next.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock;
use crate::exposition::Exposition;

/// Between two questions.
const INTERVAL: Duration = Duration::from_millis(250);
/// Who has not answered for this long, us, may be stalled.
const SILENCE_US_MAX: u64 = 750_000;

#[derive(Default)]
struct Known {
    answered_us: AtomicU64,
    held_us: AtomicU64,
    stop: AtomicBool,
}

/// What is known of the server's holds.
pub(super) struct Holds(Arc<Known>);

impl Holds {
    /// Asks `nodes` again and again, until dropped.
    pub(super) fn watch(nodes: Vec<SocketAddr>) -> Holds {
        let known = Arc::new(Known::default());
        known.answered_us.store(clock::now_us(), Ordering::Relaxed);
        let asker = Arc::clone(&known);
        std::thread::spawn(move || {
            let mut stalls_before = None;
            while !asker.stop.load(Ordering::Relaxed) {
                let answers = nodes.iter().map(|node| Exposition::scrape(*node));
                // Whoever does not answer has not answered: that is all that is to be known of it.
                if let Ok(all) = answers.collect::<Result<Vec<_>, _>>() {
                    let all: Exposition = all.into_iter().sum();
                    let stalls = all.sum("greendot_stalls_total", &[]);
                    let stalled = stalls_before
                        .replace(stalls)
                        .is_some_and(|before| before != stalls);
                    let now_us = clock::now_us();
                    if stalled || all.sum("greendot_expiries_held", &[]) > 0.0 {
                        asker.held_us.store(now_us, Ordering::Relaxed);
                    }
                    asker.answered_us.store(now_us, Ordering::Relaxed);
                }
                std::thread::sleep(INTERVAL);
            }
        });
        Holds(known)
    }

    /// Whether an expiry that was due before `now_us` may have been put off; `settle_us`: within
    /// this it would have been told.
    pub(super) fn may_hold(&self, now_us: u64, settle_us: u64) -> bool {
        let [answered_us, held_us] =
            [&self.0.answered_us, &self.0.held_us].map(|us| us.load(Ordering::Relaxed));
        now_us > answered_us + SILENCE_US_MAX || (held_us > 0 && now_us < held_us + settle_us)
    }
}

impl Drop for Holds {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_is_over_when_what_it_put_off_must_have_been_told() {
        let known = Known::default();
        known.answered_us.store(10_000_000, Ordering::Relaxed);
        let holds = Holds(Arc::new(known));
        assert!(!holds.may_hold(10_750_000, 500_000));
        assert!(holds.may_hold(10_750_001, 500_000));
        holds.0.held_us.store(10_000_000, Ordering::Relaxed);
        assert!(holds.may_hold(10_499_999, 500_000));
        assert!(!holds.may_hold(10_500_000, 500_000));
    }
}
