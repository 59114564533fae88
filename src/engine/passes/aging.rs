//! How old streams are.
//!
//! Owns the pass that comes by each place once in a period. A place has its moment in the period by
//! its index alone (its bits reversed, as a fraction), whatever the size of the table: so two
//! visits are a period apart when the table has grown or shrunk, and neighbours, who came together,
//! are visited far from each other. Costs no timer and no memory of a stream's beginning. Ends
//! nobody itself.

use super::pass::PLACES_PER_CALL;
use crate::time::Mono;

/// Visits of a stream after which its life is over: they are a fifth of the longest life apart, and
/// the first comes within one fifth.
pub(super) const VISITS_MAX: u8 = 5;

/// Where in the period the pass is. A period is 2^32.
#[derive(Debug)]
pub(super) struct Aging {
    began: Mono,
    cursor: u64,
}

/// Places to visit now: buckets of the period from `next` to `end`, each a place's bits reversed.
#[derive(Debug)]
pub(super) struct Visits {
    next: u64,
    end: u64,
    /// How many low bits of an index there are.
    bits: u32,
    /// That is as far as the pass should have come.
    pub(super) enough: bool,
}

impl Aging {
    pub(super) fn new(now: Mono) -> Aging {
        Aging {
            began: now,
            cursor: 0,
        }
    }

    /// The places whose moment has come, of a table of so many; the pass takes `period_ms`. After a
    /// long silence each place has one visit, not one for each period that was slept through.
    pub(super) fn go_on(&mut self, places: u32, period_ms: u64, now: Mono) -> Visits {
        let elapsed_micros = u128::from(now.micros_since(self.began));
        let period_micros = u128::from(period_ms.max(1)) * 1_000;
        let reached = ((elapsed_micros << 32) / period_micros) as u64;
        self.cursor = self.cursor.max(reached.saturating_sub(1 << 32));
        let bits = u32::BITS - places.saturating_sub(1).leading_zeros();
        let bucket = |position: u64| position.div_ceil(1 << (u32::BITS - bits));
        let (next, due) = (bucket(self.cursor), bucket(reached));
        let end = due.min(next + u64::from(PLACES_PER_CALL));
        self.cursor = match end < due {
            true => end << (u32::BITS - bits),
            false => reached,
        };
        Visits {
            next,
            end,
            bits,
            enough: end == due,
        }
    }
}

impl Iterator for Visits {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if self.next >= self.end {
            return None;
        }
        let bucket = self.next as u32;
        self.next += 1;
        Some(match self.bits {
            0 => 0,
            bits => (bucket << (u32::BITS - bits)).reverse_bits(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD_MS: u64 = 1_000;

    fn at(ms: u64) -> Mono {
        Mono::default().plus_ms(ms)
    }

    /// When each of the first places is visited, stepping from `from` to `to` ms.
    fn visits(aging: &mut Aging, places: impl Fn(u64) -> u32, to: u64) -> Vec<Vec<u64>> {
        let mut seen = vec![Vec::new(); 1_000];
        for ms in (0..=to).step_by(5) {
            for place in aging.go_on(places(ms), PERIOD_MS, at(ms)) {
                if place < 1_000 {
                    seen[place as usize].push(ms);
                }
            }
        }
        seen
    }

    #[test]
    fn each_place_is_visited_once_in_a_period_however_the_table_grows_and_shrinks() {
        let sizes = |ms: u64| match ms / 700 % 3 {
            0 => 1_000,
            1 => 70_000,
            _ => 4_096,
        };
        let seen = visits(&mut Aging::new(at(0)), sizes, 10_000);
        for (place, visits) in seen.iter().enumerate() {
            assert!((9..=11).contains(&visits.len()), "{place}: {visits:?}");
            for pair in visits.windows(2) {
                assert!(
                    (990..=1_010).contains(&(pair[1] - pair[0])),
                    "{place}: {visits:?}"
                );
            }
        }
    }

    #[test]
    fn neighbours_are_visited_far_from_each_other() {
        let seen = visits(&mut Aging::new(at(0)), |_| 1_000, 1_000);
        for pair in seen.chunks(2) {
            let (one, other) = (pair[0][0], pair[1][0]);
            assert!(one.abs_diff(other) >= 400, "{one} {other}");
        }
    }

    #[test]
    fn a_table_of_one_and_of_none() {
        let mut aging = Aging::new(at(0));
        assert_eq!(aging.go_on(1, PERIOD_MS, at(0)).count(), 0);
        assert_eq!(aging.go_on(1, PERIOD_MS, at(10)).collect::<Vec<_>>(), [0]);
        assert_eq!(aging.go_on(1, PERIOD_MS, at(999)).count(), 0);
        assert_eq!(aging.go_on(1, PERIOD_MS, at(1_010)).count(), 1);
        // An empty table has one bucket too; who visits finds nobody there.
        assert!(aging.go_on(0, PERIOD_MS, at(2_010)).count() <= 1);
    }

    #[test]
    fn a_long_silence_is_one_visit_in_bounded_pieces() {
        let mut aging = Aging::new(at(0));
        let mut seen = vec![0; 100_000];
        let mut calls = 0;
        loop {
            let mut visits = aging.go_on(100_000, PERIOD_MS, at(90_000));
            let enough = visits.enough;
            let count = visits.by_ref().fold(0, |count, place| {
                if let Some(seen) = seen.get_mut(place as usize) {
                    *seen += 1;
                }
                count + 1
            });
            assert!(count <= PLACES_PER_CALL);
            calls += 1;
            if enough {
                break;
            }
        }
        assert!(seen.iter().all(|visits| *visits == 1));
        assert_eq!(calls, 131_072 / PLACES_PER_CALL);
    }
}
