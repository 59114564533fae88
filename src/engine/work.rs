//! Work that waits for its slice: transitions whose watchers have yet to be marked, watches of
//! streams that have ended, and watches by the names of users who have slots by now.
//!
//! Owns how much of it is done at once. A turn's first marks are set where their transition is
//! told; what goes beyond waits, and is worked off in slices between which the driver looks at a
//! clock. So neither a beat for a thousand users whom a hundred streams watch, nor the end of a
//! thousand streams with ten thousand watches each, keeps others waiting. Never reads a state.

use super::parts::Engine;
use super::telling::News;
use crate::metrics::Counter;
use crate::time::{Mono, Now};

impl Engine {
    /// Has all who watch a slot marked: now, as far as the turn's allowance goes.
    pub(super) fn mark_watchers(&mut self, slot: u32, at: Mono) {
        if !self.conns.watches.is_watched(slot) {
            return;
        }
        let news = News { slot, from: 0, at };
        if self.telling.is_empty() && self.telling.allowance > 0 {
            let visited = self.mark_some(news, self.telling.allowance);
            self.telling.allowance = self.telling.allowance.saturating_sub(visited);
        } else {
            self.counters.add(Counter::LimitWorkPerSlice, 1);
            self.telling.push(news);
        }
    }

    /// Marks about `max` of those who watch a slot. Returns how many were visited, one at least.
    fn mark_some(&mut self, news: News, max: usize) -> usize {
        let (count, next) = self.conns.mark_some(news.slot, news.from, max, news.at);
        self.counters.add(Counter::Marks, count.marks);
        self.counters.add(Counter::MarksCoalesced, count.coalesced);
        if let Some(from) = next {
            self.counters.add(Counter::LimitWorkPerSlice, 1);
            self.telling.begin(News { from, ..news });
        }
        1 + (count.marks + count.coalesced) as usize
    }

    /// A slice of what waits: some watchers are marked, some watches of streams that have ended are
    /// ended, some by name are settled. False if nothing is left.
    pub fn work(&mut self, now: Now) -> bool {
        let max = self.settings.work_per_slice_max;
        let mut left = max;
        while left > 0
            && let Some(news) = self.telling.pop()
        {
            left = left.saturating_sub(self.mark_some(news, left));
        }
        if self.telling.is_empty() {
            self.telling.rest();
        }
        // Nobody waits for it: it gets what is left.
        let settled = self.conns.watches.settle_some(left);
        self.work_done += (max - left + settled) as u64;
        self.work_done += self.conns.end_some(max) as u64;
        self.work_done += self.forget_some(max, now) as u64;
        self.has_work()
    }

    /// Something waits for a slice.
    pub fn has_work(&self) -> bool {
        let watches = &self.conns.watches;
        !self.telling.is_empty()
            || watches.has_ending()
            || self.leaving.has_work()
            || watches.has_settling()
    }

    /// Watchers marked and watches ended in slices so far, for tests: the work that a clock would
    /// show.
    pub fn work_done(&self) -> u64 {
        self.work_done
    }
}
