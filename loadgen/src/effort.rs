//! How hard the generator's own thread had to work.
//!
//! Owns the sum of two shares of the time: not waiting in poll, and waiting for a core that another
//! process had. The second one is what a generator on a crowded machine would otherwise charge to
//! the server.

use std::fs;

use crate::clock;

/// The start of a stretch of work.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    start_us: u64,
    asleep_us: u64,
    run_delay_us: u64,
}

impl Effort {
    /// Begins now; `asleep_us`: how long the thread has waited in poll so far.
    pub fn begin(asleep_us: u64) -> Effort {
        Effort {
            start_us: clock::now_us(),
            asleep_us,
            run_delay_us: run_delay_us(),
        }
    }

    /// Share of the time since the beginning, 0 to 1, in which the thread worked or was kept from
    /// working.
    pub fn busy(&self, asleep_us: u64) -> f64 {
        let elapsed_us = (clock::now_us() - self.start_us).max(1);
        let kept_us = run_delay_us() - self.run_delay_us;
        let worked_us = elapsed_us.saturating_sub(asleep_us - self.asleep_us);
        ((worked_us + kept_us) as f64 / elapsed_us as f64).min(1.0)
    }
}

/// How long this thread has been ready to run without a core, us; 0 where the kernel does not say.
fn run_delay_us() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    parse_run_delay_ns(&text).unwrap_or(0) / 1_000
}

fn parse_run_delay_ns(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_field_is_the_delay() {
        assert_eq!(parse_run_delay_ns("1005917 531519 2\n"), Some(531_519));
        assert_eq!(parse_run_delay_ns(""), None);
    }
}
