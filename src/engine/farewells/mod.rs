//! Goodbyes that a presence node does not believe at once: a stream of the user's may be open at a
//! real-time node, and then the goodbye is another device's.
//!
//! Owns them until all real-time nodes have answered or their time is over, and the questions until
//! the links take them. At most `leaves_put_off_max` wait, some 150 bytes each; beyond, silence
//! decides. In memory only: a crash loses them. Costs a question for each goodbye and real-time
//! node, up to 1,000 in one request. What a goodbye does to a stamp is `presence/beats.rs`'.

mod run;

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::engine::errand::Asker;
use crate::engine::mail::ShardId;
use crate::engine::upstream::{Holders, LoggedOut, Outbound};
use crate::metrics::Counter;
use crate::planted::{self, Planted};
use crate::slot::Slot;
use crate::time::{Mono, Unix};
use crate::wire::{User, UserBuf};

/// A real-time node that has not answered by then is not waited for, in ms.
pub const HOLDERS_MS_MAX: u64 = 2_000;
/// Users in one question. The links make requests of several.
const USERS_PER_QUESTION: usize = 1_000;

/// How a goodbye is ordered against beats.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) enum Said {
    /// By when it was sent; and if that is the same, by when it came.
    Sent { sent_at: Unix, came_at: Unix },
    /// It was put off: any beat that has come since takes it back.
    PutOff { given_at: Unix },
}

/// A goodbye that waits for answers.
#[derive(Clone, Copy, Debug)]
struct Farewell {
    slot: Slot,
    said: Said,
    /// What it is counted as if it counts.
    source: Counter,
    /// The request that waits for it.
    asker: Option<Asker>,
    /// Real-time nodes at which no stream of the user's is open.
    without: usize,
}

#[derive(Debug, Default)]
pub(in crate::engine) struct Farewells {
    /// Real-time nodes that are asked; without any nobody is.
    mirrors: usize,
    waiting: HashMap<u64, Farewell, foldhash::fast::RandomState>,
    /// The same in the order in which they came, and until when each waits.
    due: VecDeque<(Mono, u64)>,
    next: u64,
    asks: Vec<(u64, Box<str>)>,
    outbound: VecDeque<Outbound>,
}

impl Farewells {
    /// Of a presence node with so many real-time nodes.
    pub(in crate::engine) fn new(mirrors: usize) -> Farewells {
        Farewells {
            mirrors,
            ..Farewells::default()
        }
    }

    /// Whether real-time nodes are asked before a goodbye is believed.
    pub(in crate::engine) fn ask(&self) -> bool {
        self.mirrors > 0
    }

    /// When the first need not wait any more.
    pub(in crate::engine) fn due(&self) -> Mono {
        self.due.front().map_or(Mono::NEVER, |(due, _)| *due)
    }

    fn push(&mut self, user: User<'_>, farewell: Farewell, now: Mono) {
        let id = self.next;
        self.next += 1;
        self.waiting.insert(id, farewell);
        self.due.push_back((now.plus_ms(HOLDERS_MS_MAX), id));
        self.asks.push((id, user.as_str().into()));
    }

    /// What is for the links.
    pub(in crate::engine) fn poll(&mut self, shard: ShardId) -> Option<Outbound> {
        if !self.asks.is_empty() {
            let asks = std::mem::take(&mut self.asks);
            for asks in asks.chunks(USERS_PER_QUESTION) {
                let asks = asks.to_vec();
                let holders = Arc::new(Holders { shard, asks });
                self.outbound.push_back(Outbound::Holders(holders));
            }
        }
        self.outbound.pop_front()
    }

    /// All streams of these users end at every real-time node that were open then.
    pub(in crate::engine) fn end_streams(&mut self, users: &[UserBuf], at: Unix) {
        if self.ask() && !users.is_empty() && !planted::is(Planted::LogOutUntold) {
            let users = users.iter().map(|user| user.as_str().into()).collect();
            let end = Arc::new(LoggedOut { users, at });
            self.outbound.push_back(Outbound::EndStreams(end));
        }
    }

    /// One whose time is over.
    fn next_overdue(&mut self, now: Mono) -> Option<Farewell> {
        while let Some((due, id)) = self.due.front().copied()
            && due <= now
        {
            self.due.pop_front();
            if let Some(farewell) = self.take(id) {
                return Some(farewell);
            }
        }
        None
    }

    fn take(&mut self, id: u64) -> Option<Farewell> {
        let farewell = self.waiting.remove(&id);
        if self.waiting.is_empty() {
            (self.due, self.waiting) = (VecDeque::new(), HashMap::default());
        }
        farewell
    }
}
