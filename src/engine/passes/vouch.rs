//! Whose turn it is to be vouched for.
//!
//! Owns the pass over all streams, evenly once in an interval, and the short passes beside it, each
//! over the publishers of a presence node that is back. Never beats for anybody itself.

use std::ops::Range;

use super::pass::{Pass, Stretch};
use crate::engine::conn::life::Conns;
use crate::planted::{self, Planted};
use crate::realtime::{ConnId, Phase};
use crate::slot::Slot;
use crate::time::Mono;

#[derive(Debug)]
pub(super) struct Vouching {
    all: Pass,
    /// Places of the table that the pass reckons with. It shrinks by a tenth a pass at most: a
    /// stream that has a place in what is left of a large table would else be much later in the
    /// next pass than in this one.
    places: u32,
    hurried: Vec<(usize, Pass)>,
}

/// Publishers to be vouched for now.
#[derive(Debug)]
pub(super) struct Due {
    places: Range<u32>,
    /// Of this presence node alone, by its index.
    pub(super) of: Option<usize>,
    /// That is as far as the pass should have come.
    pub(super) enough: bool,
}

impl Due {
    fn new(stretch: Stretch, of: Option<usize>) -> Due {
        Due {
            places: stretch.places,
            of,
            enough: stretch.enough,
        }
    }

    /// The next publisher, and its stream.
    pub(super) fn next(&mut self, conns: &mut Conns) -> Option<(ConnId, Slot)> {
        let vouches = !planted::is(Planted::VouchedOnce);
        let (mut places, end) = (self.places.clone(), self.places.end);
        let found = places.find_map(|index| {
            let id = conns.id_at(index)?;
            let conn = conns.at(index);
            let publisher = conn.publisher();
            let slot = publisher.filter(|_| conn.phase() == Phase::Streaming && vouches)?;
            Some((id, Slot::new(slot)))
        });
        self.places = places.start..end;
        found
    }
}

impl Vouching {
    pub(super) fn new(now: Mono) -> Vouching {
        Vouching {
            all: Pass::new(now),
            places: 0,
            hurried: Vec::new(),
        }
    }

    /// Those whose turn it is in the pass over all, which takes `interval_ms`.
    pub(super) fn due(&mut self, places: u32, interval_ms: u64, now: Mono) -> Due {
        self.places = self.places.max(places);
        let stretch = self.all.go_on(now, interval_ms, self.places);
        let over_ms = now.ms_since(self.all.started);
        if stretch.enough && over_ms >= interval_ms {
            self.places -= self.places / 10;
            // After a long silence the next pass starts now, not in the past.
            self.all = Pass::new(match over_ms < 2 * interval_ms {
                true => self.all.started.plus_ms(interval_ms),
                false => now,
            });
        }
        Due::new(stretch, None)
    }

    /// All publishers of this presence node have a turn in a short time, whenever theirs is: others
    /// have heard their beats.
    pub(super) fn hurry(&mut self, node: usize, now: Mono) {
        if planted::is(Planted::HurryIgnored) {
            return;
        }
        self.hurried.retain(|(other, _)| *other != node);
        self.hurried.push((node, Pass::new(now)));
    }

    /// Those whose turn it is in the short pass at `at`, which takes `length_ms`. None: there are
    /// no more.
    pub(super) fn hurried(
        &mut self,
        at: usize,
        places: u32,
        length_ms: u64,
        now: Mono,
    ) -> Option<Due> {
        let (node, pass) = self.hurried.get_mut(at)?;
        let stretch = pass.go_on(now, length_ms, places);
        let due = Due::new(stretch, Some(*node));
        Some(due)
    }

    /// Forgets short passes that are over.
    pub(super) fn forget_hurried(&mut self, places: u32, length_ms: u64, now: Mono) {
        self.hurried
            .retain(|(_, pass)| now.ms_since(pass.started) < length_ms || pass.cursor < places);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono::default().plus_ms(ms)
    }

    fn due(vouching: &mut Vouching, places: u32, ms: u64) -> (Range<u32>, bool) {
        let due = vouching.due(places, 1_000, at(ms));
        (due.places, due.enough)
    }

    #[test]
    fn everybody_has_a_turn_in_each_interval() {
        let mut vouching = Vouching::new(at(0));
        assert_eq!(due(&mut vouching, 100, 250), (0..25, true));
        assert_eq!(due(&mut vouching, 100, 1_000), (25..100, true));
        assert_eq!(due(&mut vouching, 100, 1_250), (0..25, true));
        // After a long silence the rest, and a pass that starts now.
        assert_eq!(due(&mut vouching, 100, 9_000), (25..100, true));
        assert_eq!(due(&mut vouching, 100, 9_500), (0..50, true));
    }

    #[test]
    fn a_table_that_has_shrunk_is_reckoned_with_for_a_while() {
        let mut vouching = Vouching::new(at(0));
        assert_eq!(due(&mut vouching, 1_000, 1_000), (0..1_000, true));
        assert_eq!(due(&mut vouching, 10, 1_500), (0..450, true));
        assert_eq!(due(&mut vouching, 10, 2_000), (450..900, true));
        assert_eq!(due(&mut vouching, 10, 2_500), (0..405, true));
    }

    #[test]
    fn a_hurried_pass_ends_when_it_has_come_round() {
        let mut vouching = Vouching::new(at(0));
        let hurried = |vouching: &mut Vouching, ms| {
            let due = vouching.hurried(0, 100, 1_000, at(ms))?;
            vouching.forget_hurried(100, 1_000, at(ms));
            Some((due.of, due.places))
        };
        assert_eq!(hurried(&mut vouching, 0), None);
        vouching.hurry(3, at(100));
        assert_eq!(hurried(&mut vouching, 600), Some((Some(3), 0..50)));
        // It begins anew if the node is lost and found again.
        vouching.hurry(3, at(700));
        assert_eq!(hurried(&mut vouching, 1_200), Some((Some(3), 0..50)));
        assert_eq!(hurried(&mut vouching, 1_700), Some((Some(3), 50..100)));
        assert_eq!(hurried(&mut vouching, 1_701), None);
    }
}
