//! The server's wall clock, as its hellos tell it.
//!
//! Owns the distance between that clock and our monotonic one: states are told with the server's
//! times, and judging them by our own wall clock would accuse a server that is set otherwise. Never
//! reads a clock. Neither does a step of ours matter.

use serde::{Deserialize, Serialize};

/// Two clocks read once a turn and rounded to ms may seem apart by this even if they are not, ms.
const SLACK_MS: u64 = 20;

/// What is known of the server's time less our monotonic one, us: both bounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServerClock {
    low_us: i64,
    high_us: i64,
}

impl Default for ServerClock {
    fn default() -> Self {
        ServerClock {
            low_us: i64::MIN,
            high_us: i64::MAX,
        }
    }
}

impl ServerClock {
    /// A clock that reads `unix_ms` when ours says `now_us`: where the server says nothing of its
    /// time, our own wall clock.
    pub fn known(unix_ms: u64, now_us: u64) -> ServerClock {
        let mut clock = ServerClock::default();
        clock.hello(now_us, now_us, unix_ms);
        clock
    }

    /// The server named the time `unix_ms` after it was asked at `asked_us` and before that was
    /// heard at `heard_us`.
    pub fn hello(&mut self, asked_us: u64, heard_us: u64, unix_ms: u64) {
        self.merge(ServerClock {
            low_us: (unix_ms * 1_000) as i64 - heard_us as i64,
            high_us: (unix_ms * 1_000 + 999) as i64 - asked_us as i64,
        });
    }

    /// Takes in what another has heard.
    pub fn merge(&mut self, other: ServerClock) {
        self.low_us = self.low_us.max(other.low_us);
        self.high_us = self.high_us.min(other.high_us);
    }

    /// Whether anything was heard.
    pub fn is_known(&self) -> bool {
        self.low_us != i64::MIN
    }

    /// What the server's clock says at `now_us`, Unix ms; `now_us` in ms if nothing was heard.
    pub fn unix_ms(&self, now_us: u64) -> u64 {
        let offset_us = if self.is_known() {
            self.low_us.midpoint(self.high_us)
        } else {
            0
        };
        (now_us.saturating_add_signed(offset_us)) / 1_000
    }

    /// By how much that may be wrong, ms. Bounds that contradict each other are those of a clock
    /// that was set meanwhile.
    pub fn slack_ms(&self) -> u64 {
        let apart_us = if self.is_known() {
            self.low_us.abs_diff(self.high_us)
        } else {
            0
        };
        SLACK_MS + apart_us / 2_000
    }

    /// By how much the server's clock was set, at least, if it was: what it said contradicts what
    /// it had said, ms.
    pub fn was_set_by_ms(&self) -> u64 {
        let apart_us = self.low_us.saturating_sub(self.high_us);
        u64::try_from(apart_us / 1_000).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hello_narrows_the_distance() {
        let mut clock = ServerClock::default();
        assert_eq!((clock.is_known(), clock.slack_ms()), (false, 20));
        // 100 s ahead of our monotonic clock; 50 ms there and 10 back, then 10 and 50.
        clock.hello(1_000_000, 1_060_000, 101_050);
        assert_eq!((clock.unix_ms(2_000_000), clock.slack_ms()), (102_020, 50));
        clock.hello(2_000_000, 2_060_000, 102_010);
        assert_eq!((clock.unix_ms(3_000_000), clock.slack_ms()), (103_000, 30));
        assert_eq!(clock.was_set_by_ms(), 0);
        let mut other = ServerClock::default();
        other.merge(clock);
        assert_eq!(other, clock);
    }

    #[test]
    fn a_clock_that_is_set_contradicts_itself() {
        let mut clock = ServerClock::known(100_000, 0);
        assert_eq!((clock.unix_ms(5_000), clock.slack_ms()), (100_005, 20));
        clock.hello(1_000_000, 1_001_000, 101_000);
        assert_eq!(clock.was_set_by_ms(), 0);
        clock.hello(2_000_000, 2_001_000, 99_000);
        assert_eq!(clock.was_set_by_ms(), 3_000 - 1);
    }
}
