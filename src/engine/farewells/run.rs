//! What a presence node does with goodbyes that wait: it asks, hears, and decides.
//!
//! Owns no state: the file beside does.

use super::{Farewell, Said};
use crate::engine::errand::Asker;
use crate::engine::mail::Held;
use crate::engine::parts::Engine;
use crate::metrics::Counter;
use crate::planted::{self, Planted};
use crate::slot::Slot;
use crate::time::Now;

/// Goodbyes whose time is over that one call decides.
const DECIDED_PER_CALL: usize = 8_192;

impl Engine {
    /// A goodbye waits until real-time nodes have said whether a stream of the user's is open
    /// there. False: too many do already.
    pub(in crate::engine) fn ask_holders(
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
    pub(in crate::engine) fn take_holders(&mut self, held: &Held, now: Now) {
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
    pub(in crate::engine) fn believe_overdue(&mut self, now: Now) {
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
            Said::Sent { sent_at, came_at } => self
                .presence
                .record_leave_since(slot, sent_at, came_at, now.unix),
            Said::PutOff { given_at } => self.heard.record_leave_of(slot, given_at, now.unix),
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
