//! The two kinds of time and the only clock.
//!
//! Owns the reading of CLOCK_BOOTTIME and CLOCK_REALTIME and the anchor between them. Everything
//! else takes a [`Now`] as an argument: the engine cannot read a clock, so the simulator can be
//! one. All arithmetic saturates.

use std::sync::atomic::{AtomicI64, Ordering};

/// Microseconds of CLOCK_BOOTTIME: never steps, counts through a suspend, means nothing on another
/// machine. For timeouts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Mono(u64);

/// Milliseconds since 1970-01-01T00:00:00Z: may step, means the same everywhere. For files and the
/// wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Unix(u64);

/// One reading of both clocks. Taken once a turn; everything in the turn happens at this moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// What timeouts and intervals are reckoned in.
    pub mono: Mono,
    /// For files and the wire.
    pub unix: Unix,
}

impl Mono {
    /// The furthest future: a deadline that never comes.
    pub const NEVER: Mono = Mono(u64::MAX);

    /// From microseconds since boot.
    pub const fn from_micros(micros: u64) -> Mono {
        Mono(micros)
    }

    /// Microseconds since boot.
    pub const fn micros(self) -> u64 {
        self.0
    }

    /// Whole milliseconds since boot.
    pub const fn ms(self) -> u64 {
        self.0 / 1_000
    }

    /// This moment and `ms` milliseconds.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Mono {
        Mono(self.0.saturating_add(ms.saturating_mul(1_000)))
    }

    /// This moment less `ms` milliseconds; not before boot.
    #[must_use]
    pub const fn minus_ms(self, ms: u64) -> Mono {
        Mono(self.0.saturating_sub(ms.saturating_mul(1_000)))
    }

    /// Whole milliseconds from `earlier` to this moment; 0 if `earlier` is later.
    pub const fn ms_since(self, earlier: Mono) -> u64 {
        self.micros_since(earlier) / 1_000
    }

    /// Microseconds from `earlier` to this moment; 0 if `earlier` is later.
    pub const fn micros_since(self, earlier: Mono) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Unix {
    /// Later than any other: the sending time of what was sent just now, by whoever asks.
    pub const LATEST: Unix = Unix(u64::MAX);

    /// From milliseconds since the epoch.
    pub const fn from_ms(ms: u64) -> Unix {
        Unix(ms)
    }

    /// Milliseconds since the epoch.
    pub const fn ms(self) -> u64 {
        self.0
    }

    /// This moment and `ms` milliseconds.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Unix {
        Unix(self.0.saturating_add(ms))
    }

    /// This moment less `ms` milliseconds; not before the epoch.
    #[must_use]
    pub const fn minus_ms(self, ms: u64) -> Unix {
        Unix(self.0.saturating_sub(ms))
    }

    /// Milliseconds from `earlier` to this moment; 0 if `earlier` is later.
    pub const fn ms_since(self, earlier: Unix) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Distance to `other` in milliseconds, whichever is later.
    pub const fn ms_apart(self, other: Unix) -> u64 {
        self.0.abs_diff(other.0)
    }
}

/// How far, in ms, the anchored time may be off the wall clock before it is anchored anew. A
/// smaller step is left to NTP's slewing.
pub const ANCHOR_TOLERANCE_MS: u64 = 1_000;

/// Two readings further apart than this, in ms, are not of one moment.
const TOGETHER_MS: u64 = 100;

/// The process's clock, shared by all threads: `unix` is an anchor plus `mono`, so it moves evenly
/// between two steps of the wall clock, and a step reaches every shard as one jump of `unix`
/// against `mono`, which the engine looks for.
#[derive(Debug)]
pub struct Clock {
    /// Unix ms less Mono ms.
    anchor_ms: AtomicI64,
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new()
    }
}

impl Clock {
    /// A clock anchored to the wall clock as it is.
    pub fn new() -> Clock {
        // A thread that was stopped between two readings has the wall clock later than it was.
        let apart = (0..5).map(|_| {
            let (mono, wall_us) = read_together();
            wall_us - mono.micros() as i64
        });
        Clock {
            anchor_ms: AtomicI64::new(nearest_ms(apart.min().unwrap_or_default())),
        }
    }

    /// Reads both clocks; anchors anew where the wall clock was stepped.
    pub fn now(&self) -> Now {
        // Before the clocks: an anchor that another thread sets meanwhile is newer than what is
        // read here.
        let mut anchor = self.anchor_ms.load(Ordering::Acquire);
        let (mono, wall_us) = read_together();
        let mono_ms = mono.ms() as i64;
        let off = wall_us / 1_000 - (mono_ms + anchor);
        if off.unsigned_abs() > ANCHOR_TOLERANCE_MS {
            // Whoever is first decides; a second thread that saw the same step takes the first
            // one's anchor.
            let fresh = nearest_ms(wall_us - mono.micros() as i64);
            anchor = match self.anchor_ms.compare_exchange(
                anchor,
                fresh,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => fresh,
                Err(other) => other,
            };
        }
        Now {
            mono,
            unix: Unix(u64::try_from(mono_ms + anchor).unwrap_or(0)),
        }
    }
}

/// The whole milliseconds that are nearest to so many microseconds. Of what both clocks show in
/// whole milliseconds the difference is one or the other: two processes of one machine would put
/// what comes to one right after the other in another order.
fn nearest_ms(micros: i64) -> i64 {
    (micros + 500).div_euclid(1_000)
}

/// Both clocks, the wall clock in microseconds, read within [`TOGETHER_MS`]: a thread that was
/// stopped between the two would see a step that never was.
fn read_together() -> (Mono, i64) {
    loop {
        let (mono, wall_us) = (boottime(), wall_us());
        if boottime().ms_since(mono) <= TOGETHER_MS {
            return (mono, wall_us);
        }
    }
}

/// CLOCK_BOOTTIME alone, for durations that are measured, not decided on.
pub fn boottime() -> Mono {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Mono(t.tv_sec as u64 * 1_000_000 + t.tv_nsec as u64 / 1_000)
}

fn wall_us() -> i64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    t.tv_sec * 1_000_000 + t.tv_nsec / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Mono::NEVER.plus_ms(1), Mono::NEVER);
        assert_eq!(Mono::from_micros(1_999).ms(), 1);
        assert_eq!(
            Mono::from_micros(5_000).ms_since(Mono::from_micros(9_000)),
            0
        );
        assert_eq!(Unix::from_ms(5).minus_ms(9), Unix::from_ms(0));
        assert_eq!(Unix::from_ms(5).ms_apart(Unix::from_ms(9)), 4);
    }

    #[test]
    fn an_anchor_is_the_nearest_millisecond() {
        for (micros, expected) in [(1_499, 1), (1_500, 2), (-1_499, -1), (-1_501, -2), (0, 0)] {
            assert_eq!(nearest_ms(micros), expected, "{micros}");
        }
    }

    /// What is made before and after a step is told by that.
    #[test]
    fn the_two_clocks_are_equally_far_apart_all_the_time() {
        let clock = Clock::new();
        let apart = || {
            let now = clock.now();
            now.unix.ms() - now.mono.ms()
        };
        let first = apart();
        assert!((0..100_000).all(|_| apart() == first));
    }

    #[test]
    fn a_step_of_the_wall_clock_is_one_jump() {
        let clock = Clock::new();
        // As if the wall clock had been stepped by an hour since the anchor was taken.
        clock.anchor_ms.fetch_sub(3_600_000, Ordering::Relaxed);
        let now = clock.now();
        assert!(now.unix.ms_apart(Unix(wall_us() as u64 / 1_000)) <= 100);
        // Within the tolerance the anchor stays.
        clock.anchor_ms.fetch_sub(500, Ordering::Relaxed);
        let anchor = clock.anchor_ms.load(Ordering::Relaxed);
        clock.now();
        assert_eq!(clock.anchor_ms.load(Ordering::Relaxed), anchor);
    }
}
