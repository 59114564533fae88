//! Graceful shutdown: in which order connections end, and how long it goes on.
//!
//! Owns the pass that spreads their ends over some time, so that their clients do not come back
//! together. Never ends one itself.

use std::ops::Range;

use super::pass::Pass;
use crate::time::Mono;

/// Time between two steps, in ms.
const STEP_MS: u64 = 20;

/// Time beyond the drain's in which those who have just connected may ask, in ms.
const HEARING_MS: u64 = 500;

/// The shutdown, once it has begun.
#[derive(Debug, Default)]
pub(super) struct Draining {
    pass: Option<Pass>,
    /// The time over which all end, in ms.
    over_ms: u64,
    /// How far apart in time those who are sent away come back, in ms.
    spread_ms: u64,
    due: Mono,
}

impl Draining {
    /// Begins it; what is said of a second beginning is passed over.
    pub(super) fn begin(&mut self, over_ms: u64, spread_ms: u64, now: Mono) {
        if self.pass.is_none() {
            self.over_ms = over_ms;
            self.spread_ms = spread_ms;
            self.pass = Some(Pass::new(now));
            self.due = now;
        }
    }

    /// How long it goes on, in ms.
    pub(super) fn rest_ms(&self, now: Mono) -> u64 {
        let begun = self.pass.map_or(now, |pass| pass.started);
        begun.plus_ms(self.over_ms).ms_since(now)
    }

    /// How far apart in time those who are sent away come back, in ms.
    pub(super) fn spread_ms(&self) -> u64 {
        self.spread_ms
    }

    /// Whether one that has asked nothing yet is not waited for any more.
    pub(super) fn is_past_hearing(&self, now: Mono) -> bool {
        self.pass.is_some_and(|pass| {
            now.ms_since(pass.started) >= self.over_ms.saturating_add(HEARING_MS)
        })
    }

    /// Whether it has begun.
    pub(super) fn has_begun(&self) -> bool {
        self.pass.is_some()
    }

    /// When the next step is due.
    pub(super) fn due(&self) -> Mono {
        match self.pass {
            Some(_) => self.due,
            None => Mono::NEVER,
        }
    }

    /// The places whose connections end now.
    pub(super) fn step(&mut self, places: u32, now: Mono) -> Range<u32> {
        let Some(pass) = self.pass.as_mut().filter(|_| now >= self.due) else {
            return 0..0;
        };
        let stretch = pass.go_on(now, self.over_ms, places);
        self.due = now.plus_ms(if stretch.enough { STEP_MS } else { 0 });
        // At the end it goes round again: for who was answered, or accepted, behind the cursor.
        if stretch.places.end >= places && now.ms_since(pass.started) >= self.over_ms {
            pass.cursor = 0;
        }
        stretch.places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_its_time_and_goes_round_again() {
        let at = |ms| Mono::default().plus_ms(ms);
        let mut draining = Draining::default();
        assert_eq!(
            (draining.due(), draining.step(10, at(0))),
            (Mono::NEVER, 0..0)
        );
        draining.begin(100, 7, at(1_000));
        draining.begin(0, 9, at(1_010));
        assert_eq!((draining.rest_ms(at(1_030)), draining.spread_ms()), (70, 7));
        assert_eq!(draining.rest_ms(at(2_000)), 0);
        assert!(!draining.is_past_hearing(at(1_599)) && draining.is_past_hearing(at(1_600)));
        assert_eq!(draining.due(), at(1_000));
        assert_eq!(draining.step(10, at(1_000)), 0..0);
        assert_eq!(draining.step(10, at(1_019)), 0..0);
        assert_eq!(draining.step(10, at(1_020)), 0..2);
        assert_eq!(draining.step(10, at(1_100)), 2..10);
        assert_eq!(draining.step(10, at(1_120)), 0..10);
    }
}
