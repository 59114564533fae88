//! Whom a shard of a real-time node asks about, and what it does with the answers.
//!
//! Owns when a question is due: a new watch, a first state told unasked, lost mail, a source that
//! was out of step. The lanes (`upstream/`) gather the questions; the links send them.

use std::sync::Arc;

use super::mail::{Answered, Mail, Whom};
use super::parts::Engine;
use super::upstream::{Lane, Outbound, Reask, Upstream};
use crate::metrics::Counter;
use crate::planted::{self, Planted};
use crate::presence::Transition;
use crate::realtime::watches::{Marked, Target};
use crate::slot::Slot;
use crate::time::{Mono, Now, Unix};
use crate::wire::User;

/// Places of the tables that one slice of a pass looks at.
const REASKED_PER_CALL: u32 = 8_192;
/// Places that are looked at for somebody whose beat may be looked for.
const LOOKED_AT_MAX: usize = 256;
/// States in doubt that one slice settles: each is told and asked about.
const SETTLED_PER_CALL: usize = 256;

impl Engine {
    /// What is to be sent to other nodes. Empty in the role that has none.
    pub fn poll_outbound(&mut self, now: Now) -> Option<Outbound> {
        if let Some(asker) = self.keeping.pop_front() {
            return Some(Outbound::Revoked(Some(asker)));
        }
        if std::mem::take(&mut self.passes_revocations_on) {
            return Some(Outbound::Revoked(None));
        }
        if let Some(decided) = self.posts.poll_publish() {
            return Some(Outbound::Publish(decided));
        }
        if let Some(of_here) = self.poll_of_here() {
            return Some(of_here);
        }
        let key = self.node.keyring.fleet.signing();
        if let Some(homeward) = self.passing.poll(key, now.mono) {
            return Some(homeward);
        }
        if let Some(erasure) = self.leaving.untold.pop_front() {
            return Some(Outbound::Erased(Arc::new(erasure)));
        }
        let Some(upstream) = &mut self.upstream else {
            return self.farewells.poll(self.node.shard);
        };
        while let Some(slot) = upstream.next_probed(now.mono) {
            let ends = self.passes.logging_out.concerns(slot);
            if self.presence.is_held(slot) && !ends {
                let key = self.node.keyring.fleet.signing();
                upstream.vouch_by_connection(&self.presence, slot, key, now);
            }
        }
        if upstream.outbound.is_empty() {
            let entries = upstream.gather(self.node.keyring.fleet.signing(), now);
            self.counters.add(Counter::BeatsSent, entries);
        }
        upstream.outbound.pop_front()
    }

    /// What the bridge to a fleet must hear of this node's own users.
    fn poll_of_here(&mut self) -> Option<Outbound> {
        if !self.posts.has_bridge() {
            return None;
        }
        // What is claimed behind it comes with it.
        if let Some(say) = self.posts.says.pop_front() {
            return Some(Outbound::Say { node: 0, say });
        }
        if let Some((user, asker)) = self.posts.erases.pop_front() {
            return Some(Outbound::Erase(user, asker));
        }
        // A goodbye is judged by what was claimed before it.
        if !self.posts.goodbyes.is_empty() {
            return Some(Outbound::Goodbyes(std::mem::take(&mut self.posts.goodbyes)));
        }
        if !self.posts.words.is_empty() {
            return Some(Outbound::Words(std::mem::take(&mut self.posts.words)));
        }
        self.conns.take_held(&mut self.posts.heard);
        (!self.posts.heard.is_empty())
            .then(|| Outbound::Heard(std::mem::take(&mut self.posts.heard)))
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

    /// Asks about a user, watched or not: a state that its source told was not taken over.
    pub(super) fn ask_presence_node(&mut self, user: User<'_>) {
        let slot = self.presence.lookup(user);
        if let Some(upstream) = &mut self.upstream {
            upstream.ask(user.as_str());
            upstream.awaited.extend(slot.map(Slot::index));
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

    /// A state was taken over, or is in doubt: a stream of this node vouches for whoever is told
    /// offline. Then the beats were lost, and one goes over the connection at once.
    pub(super) fn take_news(&mut self, transition: Transition, now: Now) {
        if self.presence.is_stale(transition.slot) {
            self.counters.add(Counter::ToldDoubted, 1);
            self.tell(transition, now.mono);
            self.posts.decide(transition, now.mono);
            self.vouch_by_connection(transition.slot, now);
        } else {
            self.decided(transition, now);
        }
    }

    fn vouch_by_connection(&mut self, slot: Slot, now: Now) {
        if self.passes.logging_out.concerns(slot) {
            return;
        }
        if self.posts.has_bridge() {
            // The fleet says that it has gone: it is claimed again, if it is here.
            return self.posts.heard.push(slot);
        }
        let key = self.node.keyring.fleet.signing();
        if let Some(upstream) = &mut self.upstream {
            upstream.vouch_by_connection(&self.presence, slot, key, now);
        }
    }

    /// What is in doubt no longer is told, a slice of it. One shard does it for all. True: there
    /// may be more.
    pub(super) fn settle_doubts(&mut self, now: Now) -> bool {
        if self.upstream.is_none() || self.node.shard != 0 {
            return false;
        }
        let presence = Arc::clone(&self.presence);
        let (believed, more) = presence.adopt_doubted(SETTLED_PER_CALL, now);
        for transition in believed {
            self.decided(transition, now);
            self.ask_presence_node(presence.user(transition.slot));
        }
        more
    }

    /// Tells watchers what was answered.
    pub(super) fn take_answers(&mut self, answered: &Answered, now: Now) {
        for transition in &answered.decided.transitions {
            if planted::is(Planted::AnswerUntold) {
                break;
            }
            self.tell(*transition, answered.decided.at);
            if self.node.shard == 0 && self.presence.is_stale(transition.slot) {
                self.vouch_by_connection(transition.slot, now);
            }
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

    /// Up to when everything is known here that anybody decides, and this shard's streams are told
    /// it with their marks. None: there is no telling.
    pub(super) fn known_up_to(&self, now: Now) -> Option<Unix> {
        let Some(upstream) = &self.upstream else {
            return Some(now.unix);
        };
        if self.presence.is_behind(now.mono) {
            return None;
        }
        let told = upstream.told_up_to(now.mono)?;
        Some(now.unix.minus_ms(now.mono.ms_since(told)))
    }

    /// This shard has taken over a message with which everything is told up to a time. That counts
    /// for nobody before all shards have posted what messages before it told.
    pub(super) fn hear_everything(&mut self, node: usize, up_to: Mono, now: Mono) {
        if let Some(upstream) = &mut self.upstream {
            // Kept if there is one: else one that comes each moment would never count.
            upstream.lanes[node].heard.get_or_insert((now, up_to));
        }
    }

    /// Passes on what messages have told up to a time, once what they told is in all mailboxes.
    pub(super) fn pass_on_told(&mut self) {
        let Some(upstream) = &mut self.upstream else {
            return;
        };
        for (node, lane) in upstream.lanes.iter_mut().enumerate() {
            let posted = |(at, _): &mut (Mono, Mono)| self.presence.has_turned_since(*at);
            if let Some((_, up_to)) = lane.heard.take_if(posted) {
                lane.told_up_to = lane.told_up_to.max(Some(up_to));
                self.posts.letter_to_others(Mail::Told { node, up_to });
            }
        }
    }

    /// What a node has told up to this time has come by mail.
    pub(super) fn told_everything(&mut self, node: usize, up_to: Mono) {
        if let Some(upstream) = &mut self.upstream {
            let told = &mut upstream.lanes[node].told_up_to;
            *told = (*told).max(Some(up_to));
        }
    }

    /// A beat for this user did not arrive: another one is looked for, by UDP alone. Somebody
    /// else's, if there is anybody: one alone says little of the link. Each shard sends one, and
    /// the link looks for the first.
    pub(super) fn resample(&mut self, node: usize, user: &str, now: Now) {
        let is_by_connection = |upstream: &Upstream| upstream.is_by_connection(node);
        // While all go over the connection too, this one does in a moment.
        if self.upstream.as_ref().is_none_or(is_by_connection) {
            return;
        }
        let slot = User::from_text(user).ok();
        let slot = slot.and_then(|user| self.presence.lookup(user));
        let is_mine = |slot: &Slot| slot.owner(self.node.shards) == self.node.shard;
        let same = slot.filter(|slot| is_mine(slot) && self.presence.is_held(*slot));
        let chosen = self.another_held(node, slot).or(same);
        if let Some((slot, upstream)) = chosen.zip(self.upstream.as_mut()) {
            upstream.sample_next(node);
            let key = self.node.keyring.fleet.signing();
            upstream.vouch(&self.presence, slot, true, key, now);
        }
    }

    /// A publisher of this presence node other than that one, for whom a stream here vouches. Looks
    /// at a few places.
    fn another_held(&mut self, node: usize, but: Option<Slot>) -> Option<Slot> {
        let places = self.conns.places();
        let from = self.random.u32(0..places.max(1));
        let mut looked_at = (from..places).chain(0..from).take(LOOKED_AT_MAX);
        looked_at.find_map(|index| {
            let id = self.conns.id_at(index)?;
            let slot = Slot::new(self.conns.at(id.index).publisher()?);
            let other = Some(slot) != but && self.presence.is_held(slot);
            let ends = self.passes.logging_out.concerns(slot);
            let fits = other && !ends && self.belongs_to(self.presence.user(slot), node);
            fits.then_some(slot)
        })
    }

    /// The answers to this pass have come by mail.
    pub(super) fn settled(&mut self, node: usize, pass: u64) {
        if let Some(upstream) = &mut self.upstream {
            upstream.lanes[node]
                .asking
                .take_if(|asking| *asking == pass);
        }
    }

    /// Begins to ask about all who are watched, belong to this presence node and are not sure.
    /// `pass`: all shards do.
    pub(super) fn begin_reask(
        &mut self,
        node: usize,
        pass: Option<u64>,
        whom: Whom,
        not_before: Mono,
    ) {
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
        // One that has not been answered in full is followed by this one.
        if whom == everybody || lane.asking.is_some() {
            lane.asking = pass.or(lane.asking);
        }
        lane.reask = Some(Reask {
            name: Some(usize::MAX),
            slot: 0,
            pass: pass.or(under_way.and_then(|other| other.pass)),
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
        (0..nodes).for_each(|node| self.begin_reask(node, None, Whom::Unsure, now.mono));
    }

    /// A bounded piece of the passes. Whoever is watched by name is asked about, answered for or
    /// not.
    pub(super) fn reask_slice(&mut self, now: Now) {
        let Some(upstream) = &mut self.upstream else {
            return;
        };
        let due = |lane: &Lane| lane.reask.filter(|reask| now.mono >= reask.not_before);
        let mut lanes = upstream.lanes.iter().enumerate();
        let Some((node, mut reask)) = lanes.find_map(|(node, lane)| Some((node, due(lane)?)))
        else {
            return;
        };
        let (nodes, awaited) = (&upstream.nodes, &mut upstream.awaited);
        let lane = &mut upstream.lanes[node];
        let asks = &mut lane.asks_anew;
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
        if done {
            lane.through = reask.pass;
        }
    }
}
