//! Whom a shard of a real-time node asks about, and what it does with the answers.
//!
//! Owns when a question is due: a new watch, a first state told unasked, lost mail, a source that
//! was out of step. The lanes (`upstream/`) gather the questions; the links send them.

use super::mail::{Answered, Whom};
use super::parts::Engine;
use super::upstream::{Lane, Outbound, Reask};
use crate::metrics::Counter;
use crate::planted::{self, Planted};
use crate::realtime::watches::{Marked, Target};
use crate::slot::Slot;
use crate::time::{Mono, Now};
use crate::wire::User;

/// Places of the tables that one slice of a pass looks at.
const REASKED_PER_CALL: u32 = 8_192;

impl Engine {
    /// What is to be sent to other nodes. Empty in the role that has none.
    pub fn poll_outbound(&mut self, now: Now) -> Option<Outbound> {
        if let Some(decided) = self.posts.poll_publish() {
            return Some(Outbound::Publish(decided));
        }
        let upstream = self.upstream.as_mut()?;
        if upstream.outbound.is_empty() {
            let entries = upstream.gather(self.node.keys.signing(), now);
            self.counters.add(Counter::BeatsSent, entries);
        }
        upstream.outbound.pop_front()
    }

    /// Whether a user's presence node is the one at this index.
    pub(super) fn belongs_to(&self, user: User<'_>, node: usize) -> bool {
        self.upstream
            .as_ref()
            .is_some_and(|upstream| upstream.nodes.of(user.as_bytes()) == node)
    }

    /// Asks about a user who is about to be watched, if what is known is not what its presence node
    /// says.
    pub(super) fn ask_if_unsure(&mut self, user: &str, target: Target) {
        let Some(upstream) = &mut self.upstream else {
            return;
        };
        let sure = match target.as_slot() {
            // One whose question was forgotten is sure again by now, and still awaited.
            Some(slot) => {
                self.presence.is_sure(Slot::new(slot)) && !upstream.awaited.contains(&slot)
            }
            None => self.conns.watches.is_answered(target),
        };
        if !sure {
            upstream.ask(user);
            upstream.awaited.extend(target.as_slot());
        }
    }

    /// Asks about somebody whose first state has been told outside of any feed, if this shard
    /// watches it: until then it was known as never seen, by name, and that telling makes nothing
    /// sure.
    pub(super) fn ask_if_told_unasked(&mut self, slot: Slot) {
        let Some(upstream) = &mut self.upstream else {
            return;
        };
        let unasked = self.conns.watches.is_watched(slot.index()) && !self.presence.is_sure(slot);
        if unasked && !planted::is(Planted::NewcomerUnsure) {
            upstream.ask(self.presence.user(slot).as_str());
            upstream.awaited.insert(slot.index());
        }
    }

    /// Whether this shard has yet to hear the answer about somebody whom the stream watches.
    pub(super) fn awaits_answer(&self, conn: u32) -> bool {
        let Some(upstream) = &self.upstream else {
            return false;
        };
        self.conns.watches.any(conn, |watched| match watched {
            Marked::Slot(slot) => {
                upstream.awaited.contains(&slot) || !self.presence.is_sure(Slot::new(slot))
            }
            Marked::Name { answered, .. } => !answered,
        })
    }

    /// All that mail could have told has been told from the published states.
    pub(super) fn resync_done(&mut self) {
        if let Some(upstream) = &mut self.upstream {
            let open = |slot: u32| !self.presence.is_sure(Slot::new(slot));
            upstream.awaited.retain(|slot| open(*slot));
        }
    }

    /// Tells watchers what was answered.
    pub(super) fn take_answers(&mut self, answered: &Answered) {
        for transition in &answered.decided.transitions {
            if planted::is(Planted::AnswerUntold) {
                break;
            }
            self.tell(*transition, answered.decided.at);
        }
        for user in &answered.unseen {
            let at = answered.decided.at;
            self.conns.answer_name(user, at);
        }
        if let Some(upstream) = &mut self.upstream {
            for slot in &answered.sure {
                upstream.awaited.remove(&slot.index());
            }
        }
    }

    /// Begins to ask about all who are watched, belong to this presence node and are not sure.
    pub(super) fn begin_reask(&mut self, node: usize, whom: Whom, not_before: Mono) {
        let Some(upstream) = &mut self.upstream else {
            return;
        };
        // Of those whom nobody watches any more no answer need come.
        upstream
            .awaited
            .retain(|slot| self.conns.watches.is_watched(*slot));
        let Some(lane) = upstream.lanes.get_mut(node) else {
            return;
        };
        let under_way = lane.reask;
        let everybody = Whom::Everybody;
        let both = under_way.is_some_and(|other| other.whom == everybody) || whom == everybody;
        lane.reask = Some(Reask {
            name: Some(usize::MAX),
            slot: 0,
            not_before: under_way.map_or(not_before, |other| other.not_before.max(not_before)),
            whom: if both { everybody } else { whom },
        });
    }

    /// Mail was lost: begins to ask about those whom it may have told of.
    pub(super) fn reask_rest(&mut self, now: Now) {
        let nodes = self
            .upstream
            .as_ref()
            .map_or(0, |upstream| upstream.lanes.len());
        (0..nodes).for_each(|node| self.begin_reask(node, Whom::Unsure, now.mono));
    }

    /// A bounded piece of the passes. Whoever is watched by name is asked about, answered for or
    /// not.
    pub(super) fn reask_slice(&mut self, now: Now) {
        let Some(upstream) = &mut self.upstream else {
            return;
        };
        let due = |lane: &Lane| lane.reask.filter(|reask| now.mono >= reask.not_before);
        let mut first = None;
        for (node, lane) in upstream.lanes.iter_mut().enumerate() {
            if let Some(reask) = due(lane) {
                lane.asks_anew.get_or_insert_default();
                first = first.or(Some((node, reask)));
            }
        }
        let Some((node, mut reask)) = first else {
            return;
        };
        let (nodes, awaited) = (&upstream.nodes, &mut upstream.awaited);
        let lane = &mut upstream.lanes[node];
        let asks = lane.asks_anew.get_or_insert_default();
        let mut ask = |user: User<'_>| {
            let concerned = nodes.of(user.as_bytes()) == node;
            if concerned {
                asks.push(user.as_str().into());
            }
            concerned
        };
        if let Some(end) = reask.name {
            let rest = reask.whom == Whom::Unsure;
            reask.name =
                self.conns
                    .watches
                    .names_below(end, REASKED_PER_CALL as usize, |user, answered| {
                        if !(rest && answered) {
                            ask(user);
                        }
                    });
        } else {
            let end = self
                .presence
                .users()
                .min(reask.slot.saturating_add(REASKED_PER_CALL));
            for slot in (reask.slot..end).map(Slot::new) {
                // A question may have been forgotten that something told in step has made up for:
                // this shard awaits its answer all the same.
                let unsure = !self.presence.is_sure(slot) || awaited.contains(&slot.index());
                if self.conns.watches.is_watched(slot.index())
                    && unsure
                    && ask(self.presence.user(slot))
                {
                    awaited.insert(slot.index());
                }
            }
            reask.slot = end;
        }
        let done = reask.name.is_none() && reask.slot >= self.presence.users();
        lane.reask = (!done).then_some(reask);
    }
}
