//! How much the holders of tokens may ask, each by themselves.
//!
//! Owns a bucket a holder and a kind of call, in a table that all shards of a node share: else one
//! who asks over several connections had as much of each. The table has [`HOLDERS_MAX`] places. A
//! holder who is put out of it starts full. Costs one lock that is seldom waited for, and a line or
//! two of memory; where nobody is asked for a token there is no table.

use std::hash::BuildHasher;

use foldhash::quality::FixedState;
use parking_lot::Mutex;

use crate::time::Mono;
use crate::wire::User;

/// Holders whose buckets are known at a time.
pub const HOLDERS_MAX: usize = 65_536;
/// Places among which a holder's is: their names fill a line of memory.
const WAYS: usize = 8;
const SETS: usize = HOLDERS_MAX / WAYS;
const NANOS_PER_MINUTE: u64 = 60_000_000_000;

/// What has a bucket of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// Queries.
    Queries,
    /// Users asked for by queries, however often.
    Ids,
    /// Edits of watch lists.
    Edits,
    /// Streams opened.
    Streams,
    /// Users whom streams and edits begin to watch.
    Watches,
    /// Tickets.
    Tickets,
}

/// Kinds of [`Asked`].
const KINDS: usize = 6;

/// How fast a bucket fills, and how much it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rate {
    /// So much comes in a minute; 0: it is never empty.
    pub per_minute: u64,
    /// So much is in a full one; at least 1.
    pub burst: u64,
}

/// What the holder of a token may ask in a time; 0: as much as they like.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RateLimits {
    /// Queries in a second.
    pub queries_per_second_max: u64,
    /// Queries after a while without.
    pub queries_burst: u64,
    /// Users asked for in a minute.
    pub ids_per_minute_max: u64,
    /// Edits in a second.
    pub edits_per_second_max: u64,
    /// Edits after a while without.
    pub edits_burst: u64,
    /// Streams opened in a second.
    pub streams_per_second_max: u64,
    /// Streams opened after a while without.
    pub streams_burst: u64,
    /// Full watch lists in a minute.
    pub watch_lists_per_minute_max: u64,
    /// Tickets in a second.
    pub tickets_per_second_max: u64,
    /// Tickets after a while without.
    pub tickets_burst: u64,
}

impl Default for RateLimits {
    fn default() -> RateLimits {
        RateLimits {
            queries_per_second_max: 50,
            queries_burst: 200,
            ids_per_minute_max: 10_000,
            edits_per_second_max: 10,
            edits_burst: 50,
            streams_per_second_max: 1,
            streams_burst: 10,
            watch_lists_per_minute_max: 3,
            tickets_per_second_max: 1,
            tickets_burst: 10,
        }
    }
}

impl RateLimits {
    /// The buckets of a node whose streams watch at most so many.
    pub fn buckets(&self, watches_per_stream_max: usize) -> [Rate; KINDS] {
        let second = |rate: u64, burst| Rate {
            per_minute: rate.saturating_mul(60),
            burst,
        };
        let minute = |rate| Rate {
            per_minute: rate,
            burst: rate,
        };
        let list = watches_per_stream_max as u64;
        [
            second(self.queries_per_second_max, self.queries_burst),
            minute(self.ids_per_minute_max),
            second(self.edits_per_second_max, self.edits_burst),
            second(self.streams_per_second_max, self.streams_burst),
            minute(self.watch_lists_per_minute_max.saturating_mul(list)),
            second(self.tickets_per_second_max, self.tickets_burst),
        ]
    }
}

/// Why somebody has to wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exceeded {
    /// Of this they have asked too much.
    pub asked: Asked,
    /// Then there will be enough, in ms.
    pub wait_ms: u64,
}

/// The buckets of a node's holders.
#[derive(Debug)]
pub struct Rates {
    buckets: [Bucket; KINDS],
    hasher: FixedState,
    sets: Box<[Mutex<Set>]>,
}

/// A kind of bucket. An empty one is a time: that at which it will be full.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// In which one comes, in ns of the clock that never steps; 0: it is never empty.
    each_nanos: u64,
    burst: u64,
}

#[derive(Debug, Default)]
struct Set {
    /// Whose the places are; 0: nobody's.
    holders: [u64; WAYS],
    /// When each one's buckets are full.
    full_at: [[u64; KINDS]; WAYS],
    /// A bit each: asked since the hand came by.
    recent: u8,
    hand: u8,
}

impl Rates {
    /// All full. In the order of [`Asked`]; `seed` is nobody's to guess.
    pub fn new(rates: [Rate; KINDS], seed: u64) -> Rates {
        let limited = rates.iter().any(|rate| rate.per_minute > 0);
        let sets = if limited { SETS } else { 0 };
        Rates {
            buckets: rates.map(|rate| Bucket {
                each_nanos: NANOS_PER_MINUTE.checked_div(rate.per_minute).unwrap_or(0),
                burst: rate.burst.max(1),
            }),
            hasher: FixedState::with_seed(seed),
            sets: (0..sets).map(|_| Mutex::default()).collect(),
        }
    }

    /// Nobody has to wait.
    pub fn unlimited() -> Rates {
        Rates::new([Rate::default(); KINDS], 0)
    }

    /// A holder asks for so much of these, and has all of it, or nothing.
    ///
    /// Errors: there is not enough of one.
    pub fn take(&self, user: User<'_>, asks: &[(Asked, usize)], now: Mono) -> Result<(), Exceeded> {
        if self.sets.is_empty() {
            return Ok(());
        }
        let hash = self.hasher.hash_one(user.as_bytes());
        // The low bits choose the set; none is nobody.
        let mut set = self.sets[hash as usize % SETS].lock();
        let now_nanos = now.micros().saturating_mul(1_000);
        let place = set.place_of(hash | 1 << 63);
        let mut after = set.full_at[place];
        for (asked, count) in asks {
            let bucket = self.buckets[*asked as usize];
            let full_at = &mut after[*asked as usize];
            *full_at =
                bucket
                    .full_at(*full_at, *count as u64, now_nanos)
                    .map_err(|wait_nanos| Exceeded {
                        asked: *asked,
                        wait_ms: wait_nanos.div_ceil(1_000_000),
                    })?;
        }
        set.full_at[place] = after;
        Ok(())
    }
}

impl Bucket {
    /// When a bucket is full again that would be at `full_at`, and of which so much is taken.
    ///
    /// Errors: there is not enough in it; in so many ns there is. Who asks for more than a bucket
    /// holds has to find a full one.
    fn full_at(self, full_at: u64, count: u64, now: u64) -> Result<u64, u64> {
        let taken = count.min(self.burst).saturating_mul(self.each_nanos);
        let room = self.burst.saturating_mul(self.each_nanos);
        let after = full_at.max(now).saturating_add(taken);
        match after.saturating_sub(now).saturating_sub(room) {
            0 => Ok(after),
            missing => Err(missing),
        }
    }
}

impl Set {
    /// The place of a holder; one who has none gets that of whom the hand finds first who has not
    /// asked since it came by last.
    fn place_of(&mut self, holder: u64) -> usize {
        if let Some(place) = self.holders.iter().position(|it| *it == holder) {
            self.recent |= 1 << place;
            return place;
        }
        while self.recent & 1 << self.hand != 0 {
            self.recent &= !(1 << self.hand);
            self.hand = (self.hand + 1) % WAYS as u8;
        }
        let place = usize::from(self.hand);
        self.hand = (self.hand + 1) % WAYS as u8;
        self.holders[place] = holder;
        self.full_at[place] = [0; KINDS];
        // Whoever asks but once goes before those who come again.
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono::from_micros(3_600_000_000).plus_ms(ms)
    }

    /// The defaults, and what they come to.
    #[test]
    fn limits_as_they_are_set() {
        let rate = |per_minute, burst| Rate { per_minute, burst };
        let buckets = RateLimits::default().buckets(10_000);
        assert_eq!(
            buckets,
            [
                rate(3_000, 200),
                rate(10_000, 10_000),
                rate(600, 50),
                rate(60, 10),
                rate(30_000, 30_000),
                rate(60, 10),
            ]
        );
    }

    fn rates() -> Rates {
        let rate = |per_minute, burst| Rate { per_minute, burst };
        let rates = [
            rate(3_000, 200),
            rate(10_000, 10_000),
            rate(600, 50),
            rate(60, 10),
            rate(30, 30),
            rate(0, 0),
        ];
        Rates::new(rates, 7)
    }

    fn take(rates: &Rates, user: &str, asks: &[(Asked, usize)], ms: u64) -> Result<(), Exceeded> {
        rates.take(User::from_text(user).unwrap(), asks, at(ms))
    }

    /// How many in a row are let through.
    fn let_through(rates: &Rates, user: &str, asked: Asked, ms: u64) -> usize {
        (0..100_000)
            .take_while(|_| take(rates, user, &[(asked, 1)], ms).is_ok())
            .count()
    }

    #[test]
    fn a_burst_and_then_as_much_as_comes() {
        let rates = rates();
        let queries = |ms| let_through(&rates, "alice", Asked::Queries, ms);
        assert_eq!(queries(0), 200);
        assert_eq!(queries(19), 0);
        assert_eq!(queries(20), 1, "one in 20 ms");
        assert_eq!(queries(1_020), 50);
        assert_eq!(queries(1_000_000), 200, "no more than a burst is saved");
        // Others and other kinds have buckets of their own.
        assert_eq!(let_through(&rates, "bob", Asked::Queries, 1_000_000), 200);
        assert_eq!(let_through(&rates, "alice", Asked::Streams, 1_000_000), 10);
        assert_eq!(let_through(&rates, "alice", Asked::Tickets, 0), 100_000);
    }

    #[test]
    fn whoever_has_to_wait_is_told_for_how_long() {
        let rates = rates();
        assert_eq!(let_through(&rates, "alice", Asked::Streams, 0), 10);
        let wait = |ms| take(&rates, "alice", &[(Asked::Streams, 1)], ms);
        let exceeded = |wait_ms| {
            Err(Exceeded {
                asked: Asked::Streams,
                wait_ms,
            })
        };
        assert_eq!(wait(0), exceeded(1_000));
        assert_eq!(wait(1), exceeded(999));
        assert_eq!(wait(999), exceeded(1));
        assert_eq!(wait(1_000), Ok(()));
    }

    /// A query of a thousand users is a thousand, again and again the same ones.
    #[test]
    fn what_is_asked_counts_and_all_of_it_or_nothing() {
        let rates = rates();
        let both = [(Asked::Queries, 1), (Asked::Ids, 1_000)];
        let through = (0..200).take_while(|_| take(&rates, "alice", &both, 0).is_ok());
        assert_eq!(through.count(), 10);
        let refused = take(&rates, "alice", &both, 0).unwrap_err();
        assert_eq!((refused.asked, refused.wait_ms), (Asked::Ids, 6_000));
        assert_eq!(
            let_through(&rates, "alice", Asked::Queries, 0),
            190,
            "not charged"
        );
        // More than a bucket holds takes a full one.
        let many = [(Asked::Watches, 1_000)];
        assert_eq!(take(&rates, "bob", &many, 0), Ok(()));
        assert_eq!(take(&rates, "bob", &many, 59_999).unwrap_err().wait_ms, 1);
        assert_eq!(take(&rates, "bob", &many, 60_000), Ok(()));
    }

    /// A crowd of any size takes no more room; whoever asks again and again stays.
    #[test]
    fn the_table_is_bounded() {
        let rates = rates();
        assert_eq!(let_through(&rates, "alice", Asked::Streams, 0), 10);
        for n in 0..4 * HOLDERS_MAX {
            assert_eq!(
                take(&rates, &format!("user-{n}"), &[(Asked::Streams, 1)], 0),
                Ok(())
            );
            if n % 1_000 == 0 {
                assert!(
                    take(&rates, "alice", &[(Asked::Streams, 1)], 0).is_err(),
                    "{n}"
                );
            }
        }
        // Who was put out starts full.
        for n in 4 * HOLDERS_MAX..8 * HOLDERS_MAX {
            assert_eq!(
                take(&rates, &format!("user-{n}"), &[(Asked::Streams, 1)], 0),
                Ok(())
            );
        }
        assert_eq!(let_through(&rates, "alice", Asked::Streams, 0), 10);
        assert!(size_of::<Mutex<Set>>() <= 464);
    }

    #[test]
    fn without_limits_there_is_no_table() {
        let rates = Rates::unlimited();
        assert_eq!(let_through(&rates, "alice", Asked::Queries, 0), 100_000);
        assert!(rates.sets.is_empty());
    }
}
