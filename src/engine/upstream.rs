//! A real-time node's link to the presence nodes: for whom to vouch, whom to ask about, what was
//! answered.
//!
//! Owns the beat datagrams until they are sealed and the questions until they are taken. Vouching
//! for everybody once in an interval fills datagrams as they come by; a publisher who has just
//! connected gets one at once. Opens no socket: the links send both. Which node a publisher
//! belongs to is the wire's (`wire/nodes.rs`).

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashSet;

use super::mail::{Decided, Mail, Whom};
use super::parts::{Engine, Role};
use crate::metrics::Counter;
use crate::planted::{self, Planted};
use crate::presence::{Presence, Source};
use crate::realtime::watches::{Marked, Target};
use crate::slot::Slot;
use crate::time::{Mono, Now, Unix};
use crate::wire::User;
use crate::wire::beat::{FleetKey, Writer};
use crate::wire::nodes::Nodes;
use crate::wire::record::Told;

/// Longest time that a datagram waits to be filled, in ms: as late as a beat may be for it.
const LINGER_MS: u64 = 200;
/// Time between two steps of the vouching, in ms: so finely an interval's beats are spread.
pub(super) const STEP_MS: u64 = 100;
/// How long a pair of nodes that have lost sight of each other leaves the other's view alone when
/// it is back, in ms. A presence node that was cut off has heard no beats and counts everybody
/// offline; so the beats come first, and neither does the presence node publish nor the real-time
/// node ask before all real-time nodes have noticed. The links hold it against their own times.
pub const SETTLE_MS: u64 = 6_000;
/// Time in which all publishers of a presence node are vouched for once when it is back, in ms.
pub const REVOUCH_MS: u64 = 1_000;
/// Places of the tables that one slice of a pass looks at.
const REASKED_PER_CALL: u32 = 8_192;

/// Beat datagrams, sealed, back to back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Datagrams {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl<'d> FromIterator<&'d [u8]> for Datagrams {
    fn from_iter<I: IntoIterator<Item = &'d [u8]>>(datagrams: I) -> Datagrams {
        let mut all = Datagrams::default();
        datagrams
            .into_iter()
            .for_each(|datagram| all.push(datagram));
        all
    }
}

impl Datagrams {
    fn push(&mut self, datagram: &[u8]) {
        self.bytes.extend_from_slice(datagram);
        self.ends.push(self.bytes.len());
    }

    /// Each of them, in the order in which they were sealed.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, end)| &self.bytes[start..*end])
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

/// What leaves a shard for other nodes.
#[derive(Clone, Debug)]
pub enum Outbound {
    /// To a presence node, by its index: beats.
    Beats { node: usize, datagrams: Datagrams },
    /// To a presence node: questions. An answer comes as [`Mail::Answered`].
    Asks {
        node: usize,
        /// Whose state is wanted; each is a legal id, and may have been asked for before.
        users: Vec<Box<str>>,
        /// The node was out of sight, and a pass over all who are watched has come to these, or
        /// goes on without having found any. Else somebody has begun to watch them.
        anew: bool,
    },
    /// To every real-time node: transitions.
    Publish(Arc<Decided>),
}

/// What presence nodes answered, taken over: see [`adopt_answers`].
#[derive(Debug)]
pub struct Answered {
    /// What is news.
    pub decided: Decided,
    /// Who has never been seen and has no slot.
    pub unseen: Vec<Box<str>>,
    /// All others who were answered for, news or not.
    pub sure: Vec<Slot>,
}

/// Takes over answers that a presence node computed at `as_of` by its clock. The shards are told by
/// [`Mail::Answered`]. Returns also how many found no room.
pub fn adopt_answers(
    presence: &Presence,
    answers: &[Told],
    as_of: Unix,
    now: Now,
) -> (Answered, u64) {
    let mut answered = Answered {
        decided: Decided {
            at: now.mono,
            transitions: Vec::new(),
        },
        unseen: Vec::new(),
        sure: Vec::new(),
    };
    let mut refused = 0;
    for told in answers {
        let user = told.user.user();
        // Whoever was never seen gets no slot for having been asked about.
        let slot = match (presence.lookup(user), told.since) {
            (Some(slot), _) => slot,
            (None, None) => {
                answered.unseen.push(user.as_str().into());
                continue;
            }
            (None, Some(_)) => match presence.intern(user) {
                Ok(slot) => slot,
                Err(_) => {
                    refused += 1;
                    continue;
                }
            },
        };
        let news = presence.adopt(slot, told, Source::Answered(as_of), now);
        answered.decided.transitions.extend(news);
        answered.sure.push(slot);
    }
    (answered, refused)
}

/// The link, as one shard has it.
#[derive(Debug)]
pub(super) struct Upstream {
    nodes: Arc<Nodes>,
    lanes: Vec<Lane>,
    outbound: VecDeque<Outbound>,
    /// Slots that were asked about and whose answer has not come by mail: this shard's streams have
    /// not been told it, even if the node knows it.
    awaited: HashSet<u32, foldhash::fast::RandomState>,
}

/// What is gathered for one presence node.
#[derive(Debug, Default)]
struct Lane {
    /// Those whose turn it is in the interval.
    paced: Pack,
    /// Those who have just connected.
    fresh: Pack,
    asks: Vec<Box<str>>,
    /// Those who are watched and must be asked about anew. Some while a pass looks for them, even
    /// if it finds nobody.
    asks_anew: Option<Vec<Box<str>>>,
    reask: Option<Reask>,
}

/// A datagram being filled, and those that are full.
#[derive(Debug, Default)]
struct Pack {
    writer: Option<(Writer, Mono)>,
    sealed: Datagrams,
    entries: u64,
}

/// A pass over everything that is watched, to ask one node about what is not confirmed.
#[derive(Clone, Copy, Debug)]
struct Reask {
    name: Option<usize>,
    slot: u32,
    not_before: Mono,
    /// Unsure: names that have been answered for are passed over.
    whom: Whom,
}

impl Pack {
    /// `sent_at`: what its node's clock shows.
    fn push(&mut self, user: User<'_>, key: &FleetKey, now: Mono, sent_at: impl Fn() -> Unix) {
        self.entries += 1;
        // Twice at most: an empty datagram has room for any user.
        while !self
            .writer
            .get_or_insert_with(|| (Writer::new(false, sent_at(), key), now))
            .0
            .push(user)
        {
            self.seal(key);
        }
    }

    fn seal(&mut self, key: &FleetKey) {
        if let Some((mut writer, _)) = self.writer.take() {
            self.sealed.push(writer.seal_in_place(key));
        }
    }

    fn due(&self) -> Mono {
        self.writer
            .as_ref()
            .map_or(Mono::NEVER, |(_, began)| began.plus_ms(LINGER_MS))
    }
}

impl Upstream {
    /// Some in the one role that has it.
    pub(super) fn of(role: &Role) -> Option<Upstream> {
        let Role::Realtime(nodes) = role else {
            return None;
        };
        assert!(!nodes.is_empty(), "a real-time node has presence nodes");
        Some(Upstream {
            nodes: Arc::clone(nodes),
            lanes: (0..nodes.len()).map(|_| Lane::default()).collect(),
            outbound: VecDeque::new(),
            awaited: HashSet::default(),
        })
    }

    /// Says that a publisher is connected: in its turn, or at once. By the clock of its node, as
    /// far as that is known: a beat goes before or after a goodbye that came there as they were
    /// sent, whatever this node's clock says.
    pub(super) fn vouch(
        &mut self,
        presence: &Presence,
        slot: Slot,
        at_once: bool,
        key: &FleetKey,
        now: Now,
    ) {
        let user = presence.user(slot);
        let node = self.nodes.of(user.as_bytes());
        let lane = &mut self.lanes[node];
        let pack = if at_once {
            &mut lane.fresh
        } else {
            &mut lane.paced
        };
        pack.push(user, key, now.mono, || presence.clock_of(node, now));
    }

    fn ask(&mut self, user: &str) {
        self.lanes[self.nodes.of(user.as_bytes())]
            .asks
            .push(user.into());
    }

    /// When something is due to leave.
    pub(super) fn next(&self) -> Mono {
        let reask = |lane: &Lane| lane.reask.map_or(Mono::NEVER, |reask| reask.not_before);
        let dues = self
            .lanes
            .iter()
            .map(|lane| lane.paced.due().min(reask(lane)));
        dues.min().unwrap_or(Mono::NEVER)
    }

    fn gather(&mut self, key: &FleetKey, now: Now) -> u64 {
        let mut entries = 0;
        for (node, lane) in self.lanes.iter_mut().enumerate() {
            lane.fresh.seal(key);
            if now.mono >= lane.paced.due() {
                lane.paced.seal(key);
            }
            for pack in [&mut lane.fresh, &mut lane.paced] {
                if !pack.sealed.is_empty() {
                    let datagrams = std::mem::take(&mut pack.sealed);
                    self.outbound.push_back(Outbound::Beats { node, datagrams });
                }
                entries += std::mem::take(&mut pack.entries);
            }
            if let Some(users) = lane.asks_anew.take() {
                let anew = true;
                self.outbound
                    .push_back(Outbound::Asks { node, users, anew });
            }
            if !lane.asks.is_empty() {
                let (users, anew) = (std::mem::take(&mut lane.asks), false);
                self.outbound
                    .push_back(Outbound::Asks { node, users, anew });
            }
        }
        entries
    }
}

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

impl Mail {
    /// What answers amount to in a turn's budget.
    pub(super) fn weight_of_answers(answered: &Answered) -> usize {
        1 + (answered.sure.len() + answered.unseen.len()) / 64
    }
}
