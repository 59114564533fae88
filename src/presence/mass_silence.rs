//! Many who fall silent at once, without a goodbye: a link or a balancer has failed, sooner than
//! that all of them have gone.
//!
//! Owns the judgement, and for how long nobody is expired for its sake. Never reads a stamp: the
//! sweep counts who is overdue.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use crate::time::{Mono, Now};

/// So many overdue users are a mass, if they are more than a [`PART`]th of those online.
const USERS_MIN: u64 = 1_000;
/// See [`USERS_MIN`].
const PART: u64 = 5;
/// Who would be expired within this time, in ms, is overdue.
const AHEAD_MS: u64 = 10_000;

/// No mass is silent.
const QUIET: u64 = 0;
/// One is, and nobody would have been expired yet. Greater values: nobody is expired before then
/// (Mono microseconds).
const NOTICED: u64 = 1;

/// What is done about it. The default is nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct MassSilenceRule {
    /// Silence after which a publisher is overdue, in ms. 0: nobody is counted.
    pub overdue_after_ms: u64,
    /// How long a mass is not expired, in ms. 0: it is noticed, and not held.
    pub hold_ms: u64,
}

impl MassSilenceRule {
    /// Overdue is who has missed a beat, by half an interval, and will be expired within ten
    /// seconds.
    pub fn new(beat_interval_ms: u64, offline_after_ms: u64, hold_ms: u64) -> MassSilenceRule {
        let missed_ms = beat_interval_ms.saturating_mul(3) / 2;
        MassSilenceRule {
            overdue_after_ms: offline_after_ms.saturating_sub(AHEAD_MS).max(missed_ms),
            hold_ms,
        }
    }
}

pub(super) struct MassSilence {
    /// How many are overdue of each shard's.
    overdue: Box<[CachePadded<AtomicU64>]>,
    state: AtomicU64,
    /// Who falls silent before then (Mono microseconds) is somewhere else.
    excused_until: AtomicU64,
}

impl MassSilence {
    pub(super) fn new(shards: u16) -> MassSilence {
        MassSilence {
            overdue: (0..shards).map(|_| Default::default()).collect(),
            state: AtomicU64::new(QUIET),
            excused_until: AtomicU64::new(0),
        }
    }

    /// Many fall silent until then because others hear them, which is no mass silence.
    pub(super) fn excuse(&self, until: Mono) {
        self.excused_until
            .fetch_max(until.micros(), Ordering::AcqRel);
    }

    /// Whether silences are excused now.
    pub(super) fn is_excused(&self, now: Mono) -> bool {
        now.micros() < self.excused_until.load(Ordering::Acquire)
    }

    /// So many of a shard's publishers are overdue, of all who are online.
    pub(super) fn counted(&self, shard: u16, overdue: u64, online: u64) {
        self.overdue[usize::from(shard)].store(overdue, Ordering::Release);
        let all = self.overdue();
        if all < USERS_MIN || all * PART <= online {
            self.state.store(QUIET, Ordering::Release);
        } else {
            let _ =
                self.state
                    .compare_exchange(QUIET, NOTICED, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Whether somebody who would be expired at `now` is not, because many would be. The first one
    /// begins the hold; it is over sooner if enough of them are heard of again.
    pub(super) fn holds(&self, hold_ms: u64, now: Now) -> bool {
        let until = now.mono.plus_ms(hold_ms).micros().max(NOTICED + 1);
        let state = match self.state.load(Ordering::Acquire) {
            NOTICED if hold_ms > 0 => self
                .state
                .compare_exchange(NOTICED, until, Ordering::AcqRel, Ordering::Acquire)
                .map_or_else(|other| other, |_| until),
            state => state,
        };
        state > NOTICED && now.mono < Mono::from_micros(state)
    }

    /// How many are overdue.
    pub(super) fn overdue(&self) -> u64 {
        let counts = self.overdue.iter();
        counts.map(|count| count.load(Ordering::Acquire)).sum()
    }

    pub(super) fn is_on(&self) -> bool {
        self.state.load(Ordering::Acquire) != QUIET
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Unix;

    fn at(ms: u64) -> Now {
        Now {
            mono: Mono::default().plus_ms(ms),
            unix: Unix::from_ms(ms),
        }
    }

    #[test]
    fn a_mass_is_a_thousand_and_more_than_a_fifth() {
        let silence = MassSilence::new(2);
        for (overdue, online, is_mass) in [
            ([0, 0], 0, false),
            ([500, 499], 1_000, false),
            ([500, 500], 1_000, true),
            ([500, 500], 4_999, true),
            ([500, 500], 5_000, false),
            ([1_000, 1], 5_000, true),
        ] {
            silence.counted(0, 0, 0);
            silence.counted(1, 0, 0);
            silence.counted(0, overdue[0], online);
            silence.counted(1, overdue[1], online);
            assert_eq!(silence.is_on(), is_mass, "{overdue:?} of {online}");
        }
    }

    #[test]
    fn who_is_heard_elsewhere_is_excused() {
        let silence = MassSilence::new(1);
        assert!(!silence.is_excused(at(0).mono));
        silence.excuse(at(500).mono);
        silence.excuse(at(300).mono);
        assert!(silence.is_excused(at(499).mono) && !silence.is_excused(at(500).mono));
    }

    #[test]
    fn the_hold_lasts_from_the_first_who_would_be_expired_and_once() {
        let silence = MassSilence::new(1);
        assert!(!silence.holds(5_000, at(1_000)));
        silence.counted(0, 1_000, 1_000);
        assert!(!silence.holds(0, at(2_000)), "noticed, not held");
        assert!(silence.holds(5_000, at(10_000)));
        silence.counted(0, 1_000, 1_000);
        assert!(silence.holds(5_000, at(14_999)));
        assert!(!silence.holds(5_000, at(15_000)));
        assert!(!silence.holds(5_000, at(16_000)), "it is not held again");
        assert!(silence.is_on());
        // All are told, or heard of.
        silence.counted(0, 0, 1_000);
        silence.counted(0, 1_000, 1_000);
        assert!(silence.holds(5_000, at(20_000)));
        // Heard of in time.
        silence.counted(0, 200, 1_000);
        assert!(!silence.holds(5_000, at(21_000)));
    }

    #[test]
    fn overdue_is_who_has_missed_a_beat_and_has_ten_seconds_left() {
        let overdue = |beat, offline| MassSilenceRule::new(beat, offline, 0).overdue_after_ms;
        assert_eq!(overdue(10_000, 25_000), 15_000);
        assert_eq!(overdue(10_000, 60_000), 50_000);
        assert_eq!(overdue(1_000, 2_000), 1_500);
    }
}
