//! Transitions whose watchers have yet to be marked.
//!
//! Owns the order in which that is done, and how many watchers a turn visits at once. A slot waits
//! once, however often it changes meanwhile: a mark says that there is news, not which. Cost: a
//! slot that waits takes some 40 bytes, and only slots that are watched here wait. Marks nobody
//! itself.

use std::collections::VecDeque;

use hashbrown::HashSet;

use crate::time::Mono;

/// Slots for which room is kept.
const IDLE_SLOTS: usize = 1_024;

/// Transitions that wait to be marked.
#[derive(Debug, Default)]
pub(super) struct Telling {
    /// One whose watchers are marked in part.
    begun: Option<News>,
    /// None of their watchers is marked yet.
    queue: VecDeque<News>,
    /// The slots in `queue`.
    queued: HashSet<u32, foldhash::fast::RandomState>,
    /// When the oldest was decided of all that have waited since nothing did.
    oldest: Option<Mono>,
    /// Watchers that may be visited at once before the next turn.
    pub(super) allowance: usize,
}

/// A slot whose watchers are to be marked.
#[derive(Clone, Copy, Debug)]
pub(super) struct News {
    pub(super) slot: u32,
    /// The stream from which on.
    pub(super) from: u32,
    /// When it was decided.
    pub(super) at: Mono,
}

impl Telling {
    /// A turn begins.
    pub(super) fn turn_began(&mut self, allowance: usize) {
        self.allowance = allowance;
    }

    /// When the oldest was decided of those that wait.
    pub(super) fn oldest(&self) -> Option<Mono> {
        self.oldest
    }

    /// Some of a slot's watchers are marked, the rest not yet.
    pub(super) fn begin(&mut self, news: News) {
        self.oldest.get_or_insert(news.at);
        self.begun = Some(news);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.begun.is_none() && self.queue.is_empty()
    }

    pub(super) fn push(&mut self, news: News) {
        self.oldest = Some(self.oldest.map_or(news.at, |oldest| oldest.min(news.at)));
        if self.queued.insert(news.slot) {
            self.queue.push_back(news);
        }
    }

    pub(super) fn pop(&mut self) -> Option<News> {
        if let Some(begun) = self.begun.take() {
            return Some(begun);
        }
        let news = self.queue.pop_front()?;
        self.queued.remove(&news.slot);
        Some(news)
    }

    /// Nothing waits any more: what a burst took is given back.
    pub(super) fn rest(&mut self) {
        self.oldest = None;
        self.queue.shrink_to(IDLE_SLOTS);
        self.queued.shrink_to(IDLE_SLOTS);
    }
}
