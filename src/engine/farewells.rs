//! Goodbyes that a presence node does not believe at once: a stream of the user's may be open at a
//! real-time node, and then the goodbye is another device's.
//!
//! Owns them until all real-time nodes have answered or their time is over, and the questions until
//! the links take them. At most `leaves_put_off_max` wait, some 150 bytes each; beyond, silence
//! decides. In memory only: a crash loses them. Costs a question for each goodbye and real-time
//! node, up to 1,000 in one request. What a goodbye does to a stamp is `presence/beats.rs`'.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use super::errand::Asker;
use super::mail::{Held, ShardId};
use super::parts::Engine;
use super::upstream::{Holders, LoggedOut, Outbound};
use crate::metrics::Counter;
use crate::planted::{self, Planted};
use crate::slot::Slot;
use crate::time::{Mono, Now, Unix};
use crate::wire::{User, UserBuf};

/// A real-time node that has not answered by then is not waited for, in ms.
pub const HOLDERS_MS_MAX: u64 = 2_000;
/// Users in one question. The links make requests of several.
const USERS_PER_QUESTION: usize = 1_000;
/// Goodbyes whose time is over that one call decides.
const DECIDED_PER_CALL: usize = 8_192;

/// How a goodbye is ordered against beats.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Said {
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
pub(super) struct Farewells {
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
    pub(super) fn new(mirrors: usize) -> Farewells {
        Farewells {
            mirrors,
            ..Farewells::default()
        }
    }

    /// Whether real-time nodes are asked before a goodbye is believed.
    pub(super) fn ask(&self) -> bool {
        self.mirrors > 0
    }

    /// When the first need not wait any more.
    pub(super) fn due(&self) -> Mono {
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
    pub(super) fn poll(&mut self, shard: ShardId) -> Option<Outbound> {
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
    pub(super) fn end_streams(&mut self, users: &[UserBuf], at: Unix) {
        if self.ask() && !users.is_empty() {
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

    /// The user of a slot is forgotten, and its slot may be another's soon.
    pub(super) fn drop(&mut self, slot: Slot) {
        self.waiting.retain(|_, farewell| farewell.slot != slot);
    }

    fn take(&mut self, id: u64) -> Option<Farewell> {
        let farewell = self.waiting.remove(&id);
        if self.waiting.is_empty() {
            (self.due, self.waiting) = (VecDeque::new(), HashMap::default());
        }
        farewell
    }
}

impl Engine {
    /// A goodbye waits until real-time nodes have said whether a stream of the user's is open
    /// there. False: too many do already.
    pub(super) fn ask_holders(
        &mut self,
        slot: Slot,
        said: Said,
        source: Counter,
        asker: Option<Asker>,
        now: Now,
    ) -> bool {
        if self.farewells.waiting.len() >= self.settings.leaves_put_off_max {
            self.counters.add(Counter::LimitLeavesPutOff, 1);
            return false;
        }
        let farewell = Farewell {
            slot,
            said,
            source,
            asker,
            without: 0,
        };
        let user = self.presence.user(slot);
        self.farewells.push(user, farewell, now.mono);
        true
    }

    /// What a real-time node has answered.
    pub(super) fn take_holders(&mut self, held: &Held, now: Now) {
        if held.shard != self.node.shard {
            return;
        }
        for (id, is_held) in &held.answers {
            let Some(farewell) = self.farewells.waiting.get_mut(id) else {
                continue;
            };
            let is_held = *is_held && !planted::is(Planted::GoodbyeOfAll);
            farewell.without += usize::from(!is_held);
            if is_held {
                self.counters.add(Counter::LeavesHeld, 1);
                if let Some(farewell) = self.farewells.take(*id) {
                    self.farewell_decided(&farewell, false, now);
                }
            } else if farewell.without >= self.farewells.mirrors
                && let Some(farewell) = self.farewells.take(*id)
            {
                self.believe(&farewell, now);
            }
        }
    }

    /// Goodbyes for which not all real-time nodes have answered in time: what is known counts.
    pub(super) fn believe_overdue(&mut self, now: Now) {
        for _ in 0..DECIDED_PER_CALL {
            let Some(farewell) = self.farewells.next_overdue(now.mono) else {
                return;
            };
            self.counters.add(Counter::LeavesUnanswered, 1);
            self.believe(&farewell, now);
        }
    }

    fn believe(&mut self, farewell: &Farewell, now: Now) {
        let Farewell {
            slot, said, source, ..
        } = *farewell;
        let outcome = match said {
            Said::Sent { sent_at, came_at } => {
                self.presence.record_leave_since(slot, sent_at, came_at)
            }
            Said::PutOff { given_at } => self.presence.record_leave_of(slot, given_at),
        };
        let counts = self.count_leave(outcome, source);
        self.farewell_decided(farewell, counts, now);
    }

    /// `counts`: the slot's owner must look; the request that waits for it waits for that too.
    fn farewell_decided(&mut self, farewell: &Farewell, counts: bool, now: Now) {
        let slot = counts.then_some(farewell.slot);
        match farewell.asker {
            Some(asker) => self.errand_decided(asker, slot, now),
            None => {
                if let Some(slot) = slot {
                    self.look(slot, now);
                }
            }
        }
    }
}
