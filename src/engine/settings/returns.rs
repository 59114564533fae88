//! How long readers who were sent away take to come back, and how long a start waits for them.
//!
//! Owns both sides of one promise: the delay that a drain tells, and the hold after a start, which
//! is longer than any delay that was told. Both grow with the crowd that comes back. Knows no
//! connection and no clock.
//!
//! Why the hold is enough: a reader that comes too early is refused and waits as long again. Its
//! last attempt in vain was before the start, so it is back within one delay after it.

use super::Settings;

/// What a start takes beside the least delay, in ms: a supervisor's second comes on top of neither.
const START_MS: u64 = 500;
/// Readers that may come back in one millisecond: some 20,000 streams a second can begin.
const RETURNS_PER_MS: u64 = 20;
/// Widest window, in ms: devices that only beat count as a crowd too, and none of them returns.
const SPREAD_MS_MAX: u64 = 60_000;
/// Of a long drain readers wait no longer than this, in ms: they come back to the draining node and
/// are told again.
const REST_MS_MAX: u64 = 60_000;
/// A start waits so much longer than the longest delay, in ms.
const SLACK_MS: u64 = 5_000;

impl Settings {
    /// Width of the window in which so many come back, in ms.
    pub(in crate::engine) fn return_spread_ms(&self, crowd: u64) -> u64 {
        (self.retry_ms / 2).max((crowd / RETURNS_PER_MS).min(SPREAD_MS_MAX))
    }

    /// The beginning of that window, in ms, for one who is sent away so long before the drain's
    /// end: after the start.
    pub(in crate::engine) fn return_after_ms(&self, rest_ms: u64) -> u64 {
        let rest_ms = rest_ms.min(REST_MS_MAX);
        rest_ms
            .saturating_add(START_MS)
            .saturating_add(self.retry_ms)
    }

    /// The longest delay that a drain of so many tells, in ms.
    pub fn away_ms_max(&self, crowd: u64) -> u64 {
        self.return_after_ms(self.drain_ms)
            .saturating_add(self.return_spread_ms(crowd))
    }

    /// The longest delay that a stream is told when it begins, in ms.
    pub(in crate::engine) fn retry_ms_max(&self) -> u64 {
        self.retry_ms.saturating_add(self.retry_ms / 2)
    }

    /// How long a start expires nobody, in ms: `crowd` were online, and were told delays of up to
    /// `away_ms`, perhaps by other settings.
    pub fn hold_ms(&self, crowd: u64, away_ms: u64) -> u64 {
        let away_ms = away_ms.max(self.away_ms_max(crowd));
        // Some readers jitter what they are told by a quarter.
        let back_ms = away_ms.saturating_add(away_ms / 4);
        back_ms.saturating_add(SLACK_MS).max(self.offline_after_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(drain_ms: u64, retry_ms: u64, offline_after_ms: u64) -> Settings {
        Settings {
            drain_ms,
            retry_ms,
            offline_after_ms,
            ..Settings::default()
        }
    }

    #[test]
    fn window_and_hold_grow_with_the_crowd() {
        let settings = Settings::default();
        let of = |crowd| {
            let spread_ms = settings.return_spread_ms(crowd);
            (
                spread_ms,
                settings.away_ms_max(crowd),
                settings.hold_ms(crowd, 0),
            )
        };
        assert_eq!(of(0), (1_500, 15_000, 25_000));
        assert_eq!(of(10_000), (1_500, 15_000, 25_000));
        assert_eq!(of(1_000_000), (50_000, 63_500, 84_375));
        assert_eq!(of(100_000_000), (60_000, 73_500, 96_875));
    }

    #[test]
    fn the_hold_outlasts_every_delay_whatever_the_settings() {
        for drain_ms in [0, 1, 2_000, 10_000, 60_000, 600_000, u64::MAX] {
            for retry_ms in [1, 300, 3_000, 60_000, u64::MAX / 2] {
                for offline_after_ms in [2, 1_500, 25_000, 600_000] {
                    let settings = settings(drain_ms, retry_ms, offline_after_ms);
                    for crowd in [0, 10_000, 100_000_000] {
                        let (longest_ms, hold_ms) =
                            (settings.away_ms_max(crowd), settings.hold_ms(crowd, 0));
                        assert!(hold_ms == u64::MAX || hold_ms >= longest_ms + SLACK_MS);
                        assert!(hold_ms >= offline_after_ms);
                    }
                }
            }
        }
    }

    #[test]
    fn a_start_waits_for_what_other_settings_have_told() {
        assert_eq!(settings(0, 1_000, 2_000).hold_ms(0, 0), 7_500);
        assert_eq!(settings(0, 1_000, 2_000).hold_ms(0, 40_000), 55_000);
    }

    #[test]
    fn of_a_long_drain_only_a_minute_is_waited() {
        assert_eq!(settings(600_000, 3_000, 25_000).away_ms_max(0), 65_000);
        assert_eq!(settings(0, 3_000, 25_000).return_after_ms(30_000), 33_500);
    }
}
