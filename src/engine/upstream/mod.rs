//! A real-time node's link to the presence nodes, as one shard has it: for whom to vouch, and whom
//! to ask about.
//!
//! Owns the beat datagrams until they are sealed and the questions until they are taken. Vouching
//! for everybody once in an interval fills datagrams as they come by; a publisher who has just
//! connected gets one at once. Opens no socket: the links send both. Which node a publisher
//! belongs to is the wire's (`wire/nodes.rs`).

mod abroad;
mod answers;
mod delivery;
mod forward;
mod hooked;
mod outbound;
mod passing;

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashSet;

pub use abroad::{NodeAsk, NodeStreams, StreamsAsk};
pub use answers::adopt_answers;
pub use delivery::{SAMPLE_MS, Sample};
pub use forward::{Forward, Forwarded, NodeName, Onward, Shows};
pub use hooked::{HookOrder, HookReport, HookState, HookStates};
pub use outbound::{Datagrams, Erasure, Holders, LoggedOut, Outbound, Say};
pub(super) use passing::Room;
pub use passing::{Part, USERS_PER_PART_MAX, Wanted};

use delivery::Delivery;
use passing::Rooms;

use super::mail::Whom;
use super::role::Role;
use crate::presence::{Presence, UNTOLD_MS_MAX};
use crate::slot::Slot;
use crate::time::{Mono, Now, Unix};
use crate::wire::beat::{Flags, FleetKey, Writer};
use crate::wire::nodes::Nodes;
use crate::wire::{User, UserBuf};

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
/// The link, as one shard has it.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) nodes: Arc<Nodes>,
    pub(super) lanes: Vec<Lane>,
    pub(super) outbound: VecDeque<Outbound>,
    /// What this shard's calls take that wait for presence nodes.
    pub(super) rooms: Rooms,
    /// Slots that were asked about and whose answer has not come by mail: this shard's streams have
    /// not been told it, even if the node knows it.
    pub(super) awaited: HashSet<u32, foldhash::fast::RandomState>,
}

/// What is gathered for one presence node.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// Those whose turn it is in the interval.
    paced: Pack,
    /// Those who have just connected.
    fresh: Pack,
    /// Those who have said goodbye.
    gone: Pack,
    /// One that is looked for, while the others go over the connection too.
    probe: Pack,
    /// Those who go over the connection alone.
    bridge: Pack,
    delivery: Delivery,
    pub(super) asks: Vec<Box<str>>,
    /// Those who are watched and must be asked about anew.
    pub(super) asks_anew: Vec<Box<str>>,
    pub(super) reask: Option<Reask>,
    /// The pass that has just come to its end.
    pub(super) through: Option<u64>,
    /// Something was missed, this pass asks for it, and not all answers have come by mail: what
    /// this shard's streams have been told may be old.
    pub(super) asking: Option<u64>,
    /// Up to when the node has told everything that this shard's streams have been told.
    pub(super) told_up_to: Option<Mono>,
    /// This shard has taken a message over: when, and up to when everything is told with it. The
    /// first of those that not all shards have had the time to post.
    pub(super) heard: Option<(Mono, Mono)>,
}

/// Datagrams being filled, and those that are full.
#[derive(Debug, Default)]
struct Pack {
    /// One for each that is said of users: of most nothing is.
    writers: Vec<(Flags, Writer, Mono)>,
    sealed: Datagrams,
    entries: u64,
}

/// A pass over everything that is watched, to ask one node about what is not confirmed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reask {
    pub(super) name: Option<usize>,
    pub(super) slot: u32,
    /// None: this shard alone has reason for it.
    pub(super) pass: Option<u64>,
    pub(super) not_before: Mono,
    /// Unsure: names that have been answered for are passed over.
    pub(super) whom: Whom,
}

impl Pack {
    /// `sent_at`: what its node's clock shows.
    fn push(
        &mut self,
        flags: Flags,
        user: User<'_>,
        key: &FleetKey,
        now: Mono,
        sent_at: impl Fn() -> Unix,
    ) {
        self.entries += 1;
        self.write(flags, user, key, now, sent_at);
    }

    fn write(
        &mut self,
        flags: Flags,
        user: User<'_>,
        key: &FleetKey,
        now: Mono,
        sent_at: impl Fn() -> Unix,
    ) {
        // Twice at most: an empty datagram has room for any user.
        loop {
            let is_same = |(other, ..): &(Flags, Writer, Mono)| *other == flags;
            let at = self.writers.iter().position(is_same).unwrap_or_else(|| {
                let writer = Writer::of(flags, sent_at(), key);
                self.writers.push((flags, writer, now));
                self.writers.len() - 1
            });
            if self.writers[at].1.push(user) {
                return;
            }
            let (_, mut writer, _) = self.writers.swap_remove(at);
            self.sealed.push(writer.seal_in_place(key));
        }
    }

    fn seal(&mut self, key: &FleetKey) {
        for (_, writer, _) in &mut self.writers {
            self.sealed.push(writer.seal_in_place(key));
        }
        self.writers.clear();
    }

    fn due(&self) -> Mono {
        let began = self.writers.iter().map(|(.., began)| *began);
        began
            .min()
            .map_or(Mono::NEVER, |began| began.plus_ms(LINGER_MS))
    }
}

impl Upstream {
    /// Some in the roles that follow.
    pub(super) fn of(role: &Role) -> Option<Upstream> {
        let (Role::Realtime(nodes) | Role::Fleet(nodes)) = role else {
            return None;
        };
        assert!(!nodes.is_empty(), "who follows follows somebody");
        Some(Upstream {
            nodes: Arc::clone(nodes),
            lanes: (0..nodes.len()).map(|_| Lane::default()).collect(),
            outbound: VecDeque::new(),
            rooms: Rooms::default(),
            awaited: HashSet::default(),
        })
    }

    /// Says that a publisher is connected, and what was noted of them: in its turn, or at once. By
    /// the clock of its node, as
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
        let clock = || presence.clock_of(node, now);
        let sampled = lane.delivery.samples(slot, user, clock, now.mono);
        let pack = match () {
            () if sampled && lane.delivery.by_connection => &mut lane.probe,
            () if at_once => &mut lane.fresh,
            () => &mut lane.paced,
        };
        let flags = presence.beat_flags(slot);
        pack.push(flags, user, key, now.mono, clock);
    }

    /// Says over the link's connection that a publisher is connected, by the same clock.
    pub(super) fn vouch_by_connection(
        &mut self,
        presence: &Presence,
        slot: Slot,
        key: &FleetKey,
        now: Now,
    ) {
        let user = presence.user(slot);
        let node = self.nodes.of(user.as_bytes());
        let clock = || presence.clock_of(node, now);
        let flags = presence.beat_flags(slot);
        let bridge = &mut self.lanes[node].bridge;
        bridge.push(flags, user, key, now.mono, clock);
    }

    /// Whether a node's datagrams go over the link's connection too, because by UDP they do not
    /// arrive.
    pub(super) fn set_by_connection(&mut self, node: usize, by_connection: bool) {
        self.lanes[node].delivery.by_connection = by_connection;
    }

    /// See [`Upstream::set_by_connection`].
    pub(super) fn is_by_connection(&self, node: usize) -> bool {
        self.lanes[node].delivery.by_connection
    }

    /// Somebody whose beat was looked for alone, and goes over the connection now.
    pub(super) fn next_probed(&mut self, now: Mono) -> Option<Slot> {
        let mut lanes = self.lanes.iter_mut();
        lanes.find_map(|lane| lane.delivery.take_probed(now))
    }

    /// The next beat to a node is looked for there.
    pub(super) fn sample_next(&mut self, node: usize) {
        self.lanes[node].delivery.sample_next();
    }

    /// Passes on a goodbye that was said `ago_ms` ago.
    pub(super) fn leave(
        &mut self,
        presence: &Presence,
        user: User<'_>,
        ago_ms: u64,
        key: &FleetKey,
        now: Now,
    ) {
        let node = self.nodes.of(user.as_bytes());
        let lane = &mut self.lanes[node];
        // A beat of before it must not come behind it: in the same step of the clock it would undo
        // it.
        lane.paced.seal(key);
        let gone = &mut lane.gone;
        let sent_at = || presence.clock_of(node, now).minus_ms(ago_ms);
        if ago_ms > 0 {
            // A datagram has one time for all.
            gone.seal(key);
        }
        gone.write(Flags::LEAVE, user, key, now.mono, sent_at);
        if ago_ms > 0 {
            gone.seal(key);
        }
    }

    /// What the clock of a publisher's presence node shows.
    pub(super) fn clock_of(&self, presence: &Presence, slot: Slot, now: Now) -> Unix {
        let node = self.nodes.of(presence.user(slot).as_bytes());
        presence.clock_of(node, now)
    }

    /// Tells their presence nodes that these have been logged out here.
    pub(super) fn log_out(&mut self, presence: &Presence, users: &[UserBuf], now: Now) {
        for node in 0..self.lanes.len() {
            let of_node = |user: &&UserBuf| self.nodes.of(user.as_str().as_bytes()) == node;
            let users = users.iter().filter(of_node);
            let users: Vec<_> = users.map(|user| user.as_str().into()).collect();
            if !users.is_empty() {
                let at = presence.clock_of(node, now);
                let logged_out = LoggedOut { users, at };
                self.outbound
                    .push_back(Outbound::LogOut { node, logged_out });
            }
        }
    }

    /// Tells a user's presence node what the user says of itself.
    pub(super) fn say(&mut self, say: Say) {
        let node = self.nodes.of(say.user.as_str().as_bytes());
        self.outbound.push_back(Outbound::Say { node, say });
    }

    /// Asks a presence node for a part of somebody's call.
    pub(super) fn pass(&mut self, node: usize, part: Part) {
        self.outbound.push_back(Outbound::Pass { node, part });
    }

    pub(super) fn ask(&mut self, user: &str) {
        self.lanes[self.nodes.of(user.as_bytes())]
            .asks
            .push(user.into());
    }

    /// When something is due to leave.
    pub(super) fn next(&self) -> Mono {
        let reask = |lane: &Lane| lane.reask.map_or(Mono::NEVER, |reask| reask.not_before);
        let due = |lane: &Lane| lane.paced.due().min(lane.delivery.probed_due());
        let dues = self.lanes.iter().map(|lane| due(lane).min(reask(lane)));
        dues.min().unwrap_or(Mono::NEVER)
    }

    /// Up to when all nodes have told everything that this shard's streams have been told, or will
    /// be with their marks. None: one of them is being asked what was missed, or is not heard.
    pub(super) fn told_up_to(&self, now: Mono) -> Option<Mono> {
        let told = |lane: &Lane| {
            let told = lane.told_up_to.filter(|_| lane.asking.is_none());
            told.filter(|at| now.ms_since(*at) <= UNTOLD_MS_MAX)
        };
        // None is less than any.
        self.lanes.iter().map(told).min().flatten()
    }

    pub(super) fn gather(&mut self, key: &FleetKey, now: Now) -> u64 {
        let mut entries = 0;
        for (node, lane) in self.lanes.iter_mut().enumerate() {
            for pack in [
                &mut lane.fresh,
                &mut lane.gone,
                &mut lane.probe,
                &mut lane.bridge,
            ] {
                pack.seal(key);
            }
            if now.mono >= lane.paced.due() {
                lane.paced.seal(key);
            }
            let by_connection = lane.delivery.by_connection;
            for (pack, by_udp, by_connection) in [
                (&mut lane.fresh, true, by_connection),
                (&mut lane.paced, true, by_connection),
                (&mut lane.bridge, false, true),
                (&mut lane.probe, true, false),
                (&mut lane.gone, true, by_connection),
            ] {
                entries += std::mem::take(&mut pack.entries);
                if pack.sealed.is_empty() {
                    continue;
                }
                let datagrams = std::mem::take(&mut pack.sealed);
                if by_connection {
                    let datagrams = datagrams.clone();
                    self.outbound
                        .push_back(Outbound::Bundled { node, datagrams });
                }
                if by_udp {
                    self.outbound.push_back(Outbound::Beats { node, datagrams });
                }
            }
            if let Some(sample) = lane.delivery.take() {
                self.outbound.push_back(Outbound::Sample { node, sample });
            }
            let through = lane.through.take();
            if !lane.asks_anew.is_empty() || through.is_some() {
                let (users, anew) = (std::mem::take(&mut lane.asks_anew), true);
                self.outbound.push_back(Outbound::Asks {
                    node,
                    users,
                    anew,
                    through,
                });
            }
            if !lane.asks.is_empty() {
                let (users, anew, through) = (std::mem::take(&mut lane.asks), false, None);
                self.outbound.push_back(Outbound::Asks {
                    node,
                    users,
                    anew,
                    through,
                });
            }
        }
        entries
    }
}
