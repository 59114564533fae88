//! Who watches whom, from a seed and without a table: edge lists are computed when asked for.
//!
//! Owns the choice of each watcher's list. A million watchers cost no memory here.

use crate::population::mix;

/// How publishers are chosen.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Choice {
    /// Each publisher equally likely.
    Uniform,
    /// Publisher number `r - 1` with probability proportional to `r` to the minus `exponent` (above
    /// 0).
    Zipf {
        /// Steepness; contact lists of social networks are near 1.
        exponent: f64,
    },
}

/// The watch lists of all watchers.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Graph {
    /// Publishers to choose from, numbered from 0.
    pub publishers: u64,
    /// Publishers in each list, all different; fewer where there are fewer to choose from.
    pub watches: u32,
    /// How they are chosen.
    pub choice: Choice,
    /// The same seed gives the same graph.
    pub seed: u64,
}

impl Graph {
    /// The publishers that `watcher` follows, in the order they were drawn; never itself.
    pub fn watches_of(&self, watcher: u64) -> Vec<u64> {
        let mut rng = fastrand::Rng::with_seed(mix(self.seed ^ mix(watcher)));
        let others = self.publishers - u64::from(watcher < self.publishers);
        let wanted = u64::from(self.watches).min(others) as usize;
        let mut list: Vec<u64> = Vec::with_capacity(wanted);
        // A steep Zipf redraws the same few again and again: after enough draws the rest is taken
        // in order.
        let mut draws_left = 64 * wanted;
        let mut next_in_order = 0;
        while list.len() < wanted {
            let publisher = if draws_left > 0 {
                draws_left -= 1;
                match self.choice {
                    Choice::Uniform => rng.u64(..self.publishers),
                    Choice::Zipf { exponent } => zipf(&mut rng, self.publishers, exponent) - 1,
                }
            } else {
                next_in_order += 1;
                next_in_order - 1
            };
            if publisher != watcher && !list.contains(&publisher) {
                list.push(publisher);
            }
        }
        list
    }
}

/// A rank from 1 to `n`, by rejection from the inverted integral (Hörmann and Derflinger 1996): no
/// table, about one draw.
fn zipf(rng: &mut fastrand::Rng, n: u64, exponent: f64) -> u64 {
    let integral = |x: f64| {
        if exponent == 1.0 {
            x.ln()
        } else {
            (x.powf(1.0 - exponent) - 1.0) / (1.0 - exponent)
        }
    };
    let inverse = |y: f64| {
        if exponent == 1.0 {
            y.exp()
        } else {
            (1.0 + y * (1.0 - exponent)).powf(1.0 / (1.0 - exponent))
        }
    };
    let low = integral(1.5) - 1.0;
    let high = integral(n as f64 + 0.5);
    loop {
        let u = high + rng.f64() * (low - high);
        let rank = inverse(u).round().clamp(1.0, n as f64);
        if u >= integral(rank + 0.5) - rank.powf(-exponent) {
            return rank as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(publishers: u64, watches: u32, choice: Choice) -> Graph {
        Graph {
            publishers,
            watches,
            choice,
            seed: 1,
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_lists() {
        let g = graph(1_000, 5, Choice::Uniform);
        assert_eq!(g.watches_of(7), g.watches_of(7));
        assert_ne!(g.watches_of(7), g.watches_of(8));
        assert_ne!(g.watches_of(7), Graph { seed: 2, ..g }.watches_of(7));
    }

    /// Runs of another day, and of another machine, have the same graph.
    #[test]
    fn the_lists_of_seed_1() {
        let lists = |choice| [0, 7].map(|watcher| graph(1_000, 5, choice).watches_of(watcher));
        assert_eq!(lists(Choice::Uniform), UNIFORM);
        assert_eq!(lists(Choice::Zipf { exponent: 1.0 }), ZIPF);
    }

    const UNIFORM: [[u64; 5]; 2] = [[625, 271, 312, 27, 421], [994, 530, 676, 799, 15]];
    const ZIPF: [[u64; 5]; 2] = [[8, 130, 95, 816, 41], [0, 18, 5, 1, 888]];

    #[test]
    fn lists_are_distinct_and_without_oneself() {
        for choice in [
            Choice::Uniform,
            Choice::Zipf { exponent: 1.0 },
            Choice::Zipf { exponent: 3.0 },
        ] {
            let g = graph(12, 11, choice);
            for watcher in 0..12 {
                let mut list = g.watches_of(watcher);
                list.sort_unstable();
                assert_eq!(list, (0..12).filter(|p| *p != watcher).collect::<Vec<_>>());
            }
            assert_eq!(g.watches_of(99).len(), 11);
        }
    }

    #[test]
    fn fewer_publishers_than_watches() {
        assert_eq!(graph(1, 5, Choice::Uniform).watches_of(0), [0u64; 0]);
        assert_eq!(graph(1, 5, Choice::Uniform).watches_of(1), vec![0]);
    }

    #[test]
    fn zipf_has_its_frequencies() {
        let mut rng = fastrand::Rng::with_seed(1);
        for exponent in [0.8, 1.0, 1.5] {
            let mut counts = [0u32; 11];
            for _ in 0..200_000 {
                counts[zipf(&mut rng, 10, exponent) as usize] += 1;
            }
            let norm: f64 = (1..=10).map(|r| f64::from(r).powf(-exponent)).sum();
            for rank in 1..=10 {
                let expected = 200_000.0 * f64::from(rank).powf(-exponent) / norm;
                let got = f64::from(counts[rank as usize]);
                assert!(
                    (got - expected).abs() < 5.0 * expected.sqrt(),
                    "{exponent} {rank}: {got} {expected}"
                );
            }
        }
    }
}
