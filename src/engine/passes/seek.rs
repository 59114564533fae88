//! Requests for lists of this shard's streams.
//!
//! Owns who waits for one, in the order in which they came, and how far the first of them has been
//! looked for: each turn goes on by a bounded number of places. Each is asked by a connection that
//! waits for nothing else, so there are no more than connections. Knows no stream.

use std::collections::VecDeque;
use std::ops::Range;

use super::pass::PLACES_PER_CALL;
use crate::engine::errand::{Asker, Seek};
use crate::engine::mail::Sought;
use crate::time::Mono;

#[derive(Debug, Default)]
pub(in crate::engine) struct Seeking {
    queue: VecDeque<(Asker, Seek)>,
    /// What has been found for the first.
    rows: Vec<u8>,
    found: usize,
}

/// The places to look at now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::engine) struct Stretch {
    pub(in crate::engine) seek: Seek,
    pub(in crate::engine) places: Range<u32>,
}

impl Seeking {
    /// Somebody wants to know.
    pub(in crate::engine) fn begin(&mut self, asker: Asker, seek: Seek) {
        self.queue.push_back((asker, seek));
    }

    /// Something is left to look at.
    pub(super) fn is_under_way(&self) -> bool {
        !self.queue.is_empty()
    }

    /// What to look at in this turn, of so many places. Who waits no longer is passed over.
    pub(in crate::engine) fn step(&mut self, places: u32, now: Mono) -> Option<Stretch> {
        while let Some((asker, _)) = self.queue.front()
            && now > asker.until
        {
            self.end();
        }
        let (_, seek) = self.queue.front()?;
        let to = seek.from.saturating_add(PLACES_PER_CALL).min(places);
        Some(Stretch {
            seek: seek.clone(),
            places: seek.from.min(to)..to,
        })
    }

    /// Where the rows of the first go.
    pub(in crate::engine) fn rows(&mut self) -> &mut Vec<u8> {
        &mut self.rows
    }

    /// So many have been found, up to this place. Returns what is to be told, and whom, once it is
    /// enough: all that was asked for, all that there is, or as much as there was time for.
    pub(in crate::engine) fn note(
        &mut self,
        found: usize,
        next: u32,
        places: u32,
        now: Mono,
    ) -> Option<(Asker, Sought)> {
        let (asker, seek) = self.queue.front_mut()?;
        let asker = *asker;
        self.found += found;
        seek.from = next;
        seek.most = seek.most.saturating_sub(found);
        let is_over = next >= places;
        if !is_over && seek.most > 0 && now < seek.until {
            return None;
        }
        let sought = Sought {
            rows: std::mem::take(&mut self.rows),
            found: self.found,
            next: (!is_over).then_some(next),
        };
        self.end();
        Some((asker, sought))
    }

    /// The first is done with.
    fn end(&mut self) {
        self.queue.pop_front();
        self.rows = Vec::new();
        self.found = 0;
        if self.queue.is_empty() {
            self.queue.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::realtime::ConnId;

    fn at(ms: u64) -> Mono {
        Mono::default().plus_ms(ms)
    }

    fn asker(index: u32, until_ms: u64) -> Asker {
        Asker {
            shard: 0,
            conn: ConnId {
                index,
                generation: 0,
            },
            until: at(until_ms),
        }
    }

    fn seek(from: u32, most: usize) -> Seek {
        Seek {
            user: None,
            from,
            most,
            until: at(500),
        }
    }

    fn places(seeking: &mut Seeking, places: u32, ms: u64) -> Option<Range<u32>> {
        seeking.step(places, at(ms)).map(|stretch| stretch.places)
    }

    #[test]
    fn one_after_the_other_is_seen_through() {
        let mut seeking = Seeking::default();
        assert_eq!(places(&mut seeking, 100, 0), None);
        seeking.begin(asker(1, 1_000), seek(0, 10));
        seeking.begin(asker(2, 1_000), seek(7, 10));
        let all = PLACES_PER_CALL + 5;
        assert_eq!(places(&mut seeking, all, 0), Some(0..PLACES_PER_CALL));
        seeking.rows().extend_from_slice(b"a");
        assert_eq!(seeking.note(1, PLACES_PER_CALL, all, at(0)), None);
        assert_eq!(places(&mut seeking, all, 0), Some(PLACES_PER_CALL..all));
        seeking.rows().extend_from_slice(b",b");
        let told = seeking.note(1, all, all, at(0));
        let whole = Sought {
            rows: b"a,b".to_vec(),
            found: 2,
            next: None,
        };
        assert_eq!(told, Some((asker(1, 1_000), whole)));
        // The next begins with nothing.
        assert_eq!(places(&mut seeking, 9, 0), Some(7..9));
        let none = Sought {
            rows: Vec::new(),
            found: 0,
            next: None,
        };
        assert_eq!(seeking.note(0, 9, 9, at(0)), Some((asker(2, 1_000), none)));
        assert!(!seeking.is_under_way());
    }

    #[test]
    fn enough_is_told_at_once_and_the_rest_has_a_place_to_go_on_from() {
        let mut seeking = Seeking::default();
        for (most, ms) in [(1, 0), (10, 500)] {
            seeking.begin(asker(1, 1_000), seek(0, most));
            assert_eq!(places(&mut seeking, 100, ms), Some(0..100));
            let told = seeking.note(1, 42, 100, at(ms));
            assert_eq!(told.map(|(_, sought)| sought.next), Some(Some(42)));
        }
        assert_eq!(seeking.note(1, 42, 100, at(0)), None);
    }

    #[test]
    fn who_waits_no_longer_and_a_table_that_has_shrunk_cost_nothing() {
        let mut seeking = Seeking::default();
        seeking.begin(asker(1, 100), seek(0, 1));
        seeking.begin(asker(2, 1_000), seek(50, 1));
        assert_eq!(places(&mut seeking, 10, 101), Some(10..10));
        let told = seeking.note(0, 10, 10, at(101));
        assert_eq!(told.map(|(asker, _)| asker.conn.index), Some(2));
        seeking.begin(asker(3, 100), seek(0, 1));
        assert_eq!(places(&mut seeking, 10, 101), None);
    }
}
