//! Whose silence was it? (As in HashiCorp's Lifeguard.)
//!
//! Owns the judgement that this process, not its publishers, was silent: a stalled turn, a suspend,
//! a step of the wall clock, or a restart. Until the doubt is over nobody may be expired. Sees
//! nothing but the sequence of `Now`s.

use crate::engine::settings::STALL_MS;
use crate::planted::{self, Planted};
use crate::time::{ANCHOR_TOLERANCE_MS, Mono, Now, Unix};

#[derive(Debug)]
pub(super) struct Silence {
    last: Now,
    hold_until: Mono,
    offline_after_ms: u64,
}

/// What one turn's beginning revealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Seen {
    /// The turn came too late.
    pub(super) stalled: bool,
    /// The wall clock was stepped: what it should have said, and what it says.
    pub(super) step: Option<(Unix, Unix)>,
}

impl Silence {
    /// A restart is a silence like any other: nobody could be heard, and for `hold_ms` not
    /// everybody has had time to return.
    pub(super) fn new(now: Now, hold_ms: u64, offline_after_ms: u64) -> Silence {
        let hold_ms = match planted::is(Planted::NoGraceAtBoot) {
            true => 0,
            false => hold_ms,
        };
        Silence {
            last: now,
            hold_until: now.mono.plus_ms(hold_ms),
            offline_after_ms,
        }
    }

    /// A turn begins that was promised to begin by `promised`.
    pub(super) fn observe(&mut self, now: Now, promised: Mono) -> Seen {
        let mut seen = Seen::default();
        let gap_ms = now.mono.ms_since(self.last.mono.max(promised));
        if gap_ms > STALL_MS {
            seen.stalled = true;
            self.hold(now.mono.plus_ms(gap_ms.min(self.offline_after_ms)));
        }
        let expected = self.last.unix.plus_ms(now.mono.ms_since(self.last.mono));
        // The clock anchors anew only beyond its tolerance; the margin is for two roundings to a
        // millisecond.
        if expected.ms_apart(now.unix) >= ANCHOR_TOLERANCE_MS - 2 {
            seen.step = Some((expected, now.unix));
            if now.unix > expected && !planted::is(Planted::StepExpires) {
                // All stamps look older by the step: only a whole offline_after_ms tells who is
                // silent.
                self.hold(now.mono.plus_ms(self.offline_after_ms));
            }
        }
        self.last = now;
        seen
    }

    /// Whether expiries are held.
    pub(super) fn holds(&self, now: Mono) -> bool {
        now < self.hold_until
    }

    /// Whether expiries were held when the last turn began.
    pub(super) fn is_holding(&self) -> bool {
        self.holds(self.last.mono)
    }

    /// Until when expiries are held.
    pub(super) fn held_until(&self) -> Mono {
        self.hold_until
    }

    fn hold(&mut self, until: Mono) {
        self.hold_until = self.hold_until.max(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mono_ms: u64, unix_ms: u64) -> Now {
        Now {
            mono: Mono::default().plus_ms(mono_ms),
            unix: Unix::from_ms(unix_ms),
        }
    }

    #[test]
    fn a_restart_holds_for_as_long_as_it_is_told() {
        let silence = Silence::new(at(100, 5_000), 40_000, 25_000);
        assert!(silence.holds(at(40_099, 0).mono));
        assert!(!silence.holds(at(40_100, 0).mono));
    }

    #[test]
    fn a_stall_holds_for_its_own_length_at_most_offline_after() {
        let mut silence = Silence::new(at(0, 0), 1, 25_000);
        assert_eq!(
            silence.observe(at(900, 900), at(0, 0).mono),
            Seen::default()
        );
        // Promised for 1,150; a second late is no stall yet.
        assert_eq!(
            silence.observe(at(2_150, 2_150), at(1_150, 0).mono),
            Seen::default()
        );
        assert!(!silence.holds(at(2_150, 0).mono));
        let stalled = Seen {
            stalled: true,
            step: None,
        };
        assert_eq!(
            silence.observe(at(7_400, 7_400), at(2_400, 0).mono),
            stalled
        );
        assert!(silence.holds(at(12_399, 0).mono) && !silence.holds(at(12_400, 0).mono));
        assert_eq!(
            silence.observe(at(100_000, 100_000), at(7_650, 0).mono),
            stalled
        );
        assert!(silence.holds(at(124_999, 0).mono) && !silence.holds(at(125_000, 0).mono));
    }

    #[test]
    fn steps_of_the_wall_clock() {
        let mut silence = Silence::new(at(0, 10_000_000), 1, 25_000);
        let forward = silence.observe(at(250, 13_600_250), at(250, 0).mono);
        assert_eq!(
            forward.step,
            Some((Unix::from_ms(10_000_250), Unix::from_ms(13_600_250)))
        );
        assert!(silence.holds(at(25_249, 0).mono) && !silence.holds(at(25_250, 0).mono));
        let back = silence.observe(at(30_000, 13_600_000), at(30_000, 0).mono);
        assert_eq!(
            back.step,
            Some((Unix::from_ms(13_630_000), Unix::from_ms(13_600_000)))
        );
        assert!(!silence.holds(at(30_000, 0).mono));
        assert_eq!(
            silence
                .observe(at(30_100, 13_600_600), at(30_100, 0).mono)
                .step,
            None
        );
    }
}
