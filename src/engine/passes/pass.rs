//! A pass over a table of places that takes a given time.
//!
//! Owns how far it should have come by now. Knows no place.

use std::ops::Range;

use crate::time::Mono;

/// Connections that one call fires, vouches for or drains; slots that it reads anew.
pub(super) const PLACES_PER_CALL: u32 = 8_192;

/// A pass that goes round all places for as long as somebody is looked for.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// The next place to look at.
    cursor: u32,
    /// Places looked at since the beginning.
    seen: u64,
}

impl Round {
    /// When so many places have been seen, all that there are by now have been.
    pub(super) fn until(&self, places: u32) -> u64 {
        self.seen + u64::from(places)
    }

    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// The places to look at now, at most [`PLACES_PER_CALL`].
    pub(super) fn step(&mut self, places: u32) -> Range<u32> {
        let from = if self.cursor < places { self.cursor } else { 0 };
        let to = places.min(from + PLACES_PER_CALL);
        // A table that has become shorter is seen sooner.
        self.seen += u64::from((to - from).max(1));
        self.cursor = to;
        from..to
    }
}

/// A pass, as far as it has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pass {
    pub(super) started: Mono,
    pub(super) cursor: u32,
}

/// What one call does of a pass.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Stretch {
    pub(super) places: Range<u32>,
    /// That is as far as the pass should have come.
    pub(super) enough: bool,
}

impl Pass {
    pub(super) fn new(now: Mono) -> Pass {
        Pass {
            started: now,
            cursor: 0,
        }
    }

    /// Goes on to where a pass that takes `length_ms` over `places` should have come, at most
    /// [`PLACES_PER_CALL`] further.
    pub(super) fn go_on(&mut self, now: Mono, length_ms: u64, places: u32) -> Stretch {
        let elapsed_ms = now.ms_since(self.started).min(length_ms);
        let due = if length_ms == 0 {
            places
        } else {
            (u128::from(places) * u128::from(elapsed_ms) / u128::from(length_ms)) as u32
        };
        let target = due.min(self.cursor.saturating_add(PLACES_PER_CALL));
        let places = self.cursor..target.max(self.cursor);
        self.cursor = places.end;
        Stretch {
            enough: places.end >= due,
            places,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_even_and_bounded() {
        let start = Mono::default().plus_ms(1_000);
        let stretch = |cursor, ms, length_ms, places| {
            let started = start;
            let stretch = Pass { started, cursor }.go_on(start.plus_ms(ms), length_ms, places);
            (stretch.places, stretch.enough)
        };
        assert_eq!(stretch(0, 0, 10_000, 100), (0..0, true));
        assert_eq!(stretch(0, 2_500, 10_000, 100), (0..25, true));
        assert_eq!(stretch(25, 99_000, 10_000, 100), (25..100, true));
        assert_eq!(
            stretch(0, 99_000, 10_000, 1_000_000),
            (0..PLACES_PER_CALL, false)
        );
        // The table has grown: the places passed over are made up for.
        assert_eq!(stretch(25, 2_500, 10_000, 400), (25..100, true));
        // It has shrunk: what is gone is not looked at.
        assert_eq!(stretch(25, 0, 10_000, 7), (25..25, true));
        assert_eq!(stretch(0, 0, 0, 7), (0..7, true));
    }
}
