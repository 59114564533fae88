//! One node of a fleet, without a kernel.
//!
//! Owns what a node says to Redis and when, and what it makes of what it hears. Events and the
//! times at which they come go in; commands, and what the node's presence databases are told, come
//! out. Never opens a socket and never reads a clock; what is random comes from a seed.
//!
//! Each partition is on its own: what one cannot say or hear holds up no other. `Member::step` is
//! the one place where something is decided for a partition; everything that happens to one leads
//! there. What is known of a user is ordered by the numbers of messages: a read says of which
//! number it is, and so does the answer to a call.

mod claims;
mod counts;
mod ends;
mod flights;
mod forget;
mod hear;
mod lanes;
mod lease;
mod local;
mod look;
mod outcomes;
mod part;
mod read;
mod reap;
mod said;
mod say;
mod servers;
mod settings;
mod slots;
mod standing;

pub use counts::Counts;
pub use local::{Ending, How, Local, Mirrored, Own, State, Ticket};
pub use settings::{Disagreement, Layout, Settings};
pub use standing::{Peer, Standing};

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use claims::{Claims, NOWHERE};
use flights::{Asked, Flight};
use lanes::Lanes;
use part::{Hearing, Part};
use reap::{Dead, Reaping};
use servers::Servers;

use super::calls::Call;
use super::message::{self, Base};
use super::partition::Partitions;
use super::ticks::Ticks;
use super::traffic::{Command, Event, Server, Tag, To};
use super::{Birth, Life};
use crate::planted::{self, Planted};
use crate::slot::Slot;
use crate::time::{Mono, Now, Unix};

/// Longest time between two turns of a node that was not stopped.
const STALL_MS: u64 = 1_500;
/// Partitions that are looked at in one turn.
const STEPS_MAX: usize = 256;
/// Most of what is to be said once in one partition, while Redis is away.
const ACTS_MAX: usize = 4_096;
/// A partition with something to do that must wait looks again after that.
const AGAIN_MS: u64 = 200;

/// The core of one node.
#[derive(Debug)]
pub struct Member<L> {
    local: L,
    settings: Settings,
    partitions: Arc<Partitions>,
    random: fastrand::Rng,
    life: Life,
    instance: [u8; 8],

    outbox: VecDeque<Command>,
    flights: BTreeMap<Tag, Flight>,
    next_tag: u64,

    servers: Servers,
    ticks: Ticks,
    lanes: Lanes,
    layout_at: Mono,
    is_layout_asked: bool,
    is_agreed: bool,
    disagreement: Option<Disagreement>,

    parts: Vec<Part>,
    due: BTreeSet<(Mono, usize)>,
    claims: Claims,
    names: u32,

    dead: BTreeMap<Life, Dead>,
    reaping: Reaping,
    /// Lives that no lane has any more, since when.
    vanished: BTreeMap<Life, Mono>,
    peers: Vec<Peer>,
    forget_at: Mono,
    /// Where the walk for whom to forget goes on, as `forget.rs` packs it.
    forget_next: u64,
    reapers: crate::wire::nodes::Nodes,
    reap_tokens: u64,
    reap_filled_at: Mono,

    started_at: Mono,
    /// Nothing is taken back before, anywhere.
    settle_until: Mono,
    turned_at: Mono,
    has_joined: bool,
    is_fenced: bool,
    is_leaving: bool,
    has_expired: bool,
    refusal: Option<Box<str>>,
    counts: Counts,
}

impl<L: Local> Member<L> {
    /// Joins a fleet. `partitions` are as many as the settings say.
    pub fn new(
        settings: Settings,
        partitions: Arc<Partitions>,
        local: L,
        mut random: fastrand::Rng,
        now: Now,
    ) -> Member<L> {
        debug_assert_eq!(u32::from(partitions.count()), settings.layout.partitions);
        let mut instance = [0; 8];
        random.fill(&mut instance);
        let mut parts: Vec<Part> = partitions.all().map(Part::new).collect();
        for part in &mut parts {
            part.behind_since = now.mono;
        }
        let servers = Servers::new(settings.in_flight_max);
        Member {
            local,
            ticks: Ticks::new(settings.renew_ms, &mut random),
            settings,
            partitions,
            life: new_life(&mut random),
            random,
            instance,
            outbox: VecDeque::new(),
            flights: BTreeMap::new(),
            next_tag: 0,
            servers,
            lanes: Lanes::new(),
            layout_at: now.mono,
            is_layout_asked: false,
            is_agreed: false,
            disagreement: None,
            parts,
            due: BTreeSet::new(),
            claims: Claims::default(),
            names: 0,
            dead: BTreeMap::new(),
            reaping: Reaping::new(),
            vanished: BTreeMap::new(),
            peers: Vec::new(),
            forget_at: now.mono,
            forget_next: 0,
            reapers: crate::wire::nodes::Nodes::default(),
            reap_tokens: 0,
            reap_filled_at: now.mono,
            started_at: now.mono,
            settle_until: now.mono,
            turned_at: now.mono,
            has_joined: false,
            is_fenced: false,
            is_leaving: false,
            has_expired: false,
            refusal: None,
            counts: Counts::default(),
        }
    }

    // What the link has to say.

    /// Something came from Redis.
    pub fn handle_event(&mut self, event: Event, now: Now) {
        self.turn(now);
        match event {
            Event::Answered {
                tag,
                server,
                replies,
            } => {
                let Some(flight) = self.land(tag, now) else {
                    return;
                };
                self.servers.heard(server, flight.sent, now.mono);
                self.answered(flight, server, &replies, now);
            }
            Event::Failed { tag, why } => {
                if let Some(flight) = self.land(tag, now) {
                    self.failed(flight, why, now);
                }
            }
            Event::Subscribed { partition, server } => self.subscribed(partition, server, now),
            Event::Unsubscribed { partition } => {
                let part = &mut self.parts[partition.index()];
                if part.hearing != Hearing::Behind {
                    part.hearing = Hearing::Behind;
                    part.behind_since = now.mono;
                }
            }
            Event::Published {
                partition,
                server,
                message,
            } => self.published(partition.index(), server, message, now),
            Event::Heard { server, ago_ms } => {
                let began = Mono::from_micros(now.mono.micros().saturating_sub(ago_ms * 1_000));
                self.servers.heard(server, began, now.mono);
            }
            Event::Silent { server } => self.servers.silent(server),
        }
    }

    /// Time has passed. Also to be called at least once a second.
    pub fn handle_timeout(&mut self, now: Now) {
        self.turn(now);
        self.lease(now);
        self.forget(now);
        self.look_around(now);
        for _ in 0..STEPS_MAX {
            let Some(&(due, at)) = self.due.first() else {
                break;
            };
            if due > now.mono {
                break;
            }
            self.due.pop_first();
            self.parts[at].due = Mono::NEVER;
            self.step(at, now);
        }
    }

    /// What is to be sent, until there is nothing.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.outbox.pop_front()
    }

    /// When [`Member::handle_timeout`] is to be called next. May lie in the past: at once.
    pub fn poll_timeout(&self) -> Mono {
        let due = self.due.first().map_or(Mono::NEVER, |(due, _)| *due);
        let due = due.min(self.lease_due()).min(self.forget_due());
        due.min(self.servers.look_due())
    }

    // What the node has to say.

    /// What may be claimed of a user may have changed, or the slot is another user's.
    pub fn changed(&mut self, slot: Slot, now: Now) {
        let slot = slot.index();
        self.reach(slot);
        if slot >= self.claims.len() {
            return;
        }
        let partition = self.partition_of(slot);
        if partition != self.claims.partition(slot) {
            // Somebody else has the slot; who had it is erased, or will be found to be a stray.
            self.set_kinds(slot, 0);
            self.claims.set_partition(slot, partition);
        }
        if partition != NOWHERE {
            self.evaluate(slot, now);
            self.schedule(usize::from(partition), now.mono);
        }
    }

    /// Nothing is taken back from here on.
    pub fn leave(&mut self) {
        self.is_leaving = true;
    }

    /// The node's presence databases.
    pub fn local(&self) -> &L {
        &self.local
    }

    /// To change them; then say so by [`Member::changed`].
    pub fn local_mut(&mut self) -> &mut L {
        &mut self.local
    }

    // What all its parts use.

    /// A turn begins: was the node stopped since the last one?
    fn turn(&mut self, now: Now) {
        if now.mono.ms_since(self.turned_at) > STALL_MS {
            self.settle_until = now.mono.plus_ms(self.settle_ms());
        }
        self.turned_at = now.mono;
    }

    /// Decides what is to be done in a partition now, and when to look again.
    fn step(&mut self, at: usize, now: Now) {
        self.decide(at, now);
        if let Some(server) = self.parts[at].turn.take() {
            self.give_on(server, now);
        }
    }

    fn decide(&mut self, at: usize, now: Now) {
        self.parts[at].tidy();
        for ticket in self.parts[at].take_done(now.mono) {
            self.local.done(ticket);
        }
        let Some(server) = self.parts[at].server.filter(|_| self.is_agreed) else {
            return;
        };
        if self.parts[at].alarms {
            self.alarm(at, server, now);
        }
        self.look(at, server, now);
        self.read(at, server, now);
        self.say(at, server, now);
        self.reap(at, server, now);
        let part = &self.parts[at];
        let mut due = match part.is_looking {
            true => Mono::NEVER,
            false => part.look_at,
        };
        due = due.min(part.walk_again_at.unwrap_or(Mono::NEVER));
        due = due.min(part.done_due(now.mono)).min(part.unsaid_at);
        let says = !part.marks.is_empty() || !part.acts.is_empty() || !part.uncertain.is_empty();
        if says && part.flying.is_none() {
            due = due.min(part.retry_at.max(now.mono.plus_ms(1)));
        }
        let waits = !part.held.is_empty() || !part.alone.is_empty() || !part.acts.is_empty();
        let waits = waits || part.alarms;
        let reads = part.hearing == Hearing::InStep
            && part.reads == 0
            && (!part.asks.is_empty() || part.walk.is_some() || part.missed.is_some());
        if waits || reads || part.suspect.is_some() {
            due = due.min(now.mono.plus_ms(AGAIN_MS));
        }
        if now.mono < part.reads_at {
            due = due.min(part.reads_at);
        }
        if let Some(reap) = part.reap.as_ref().filter(|reap| !reap.is_asked) {
            due = due.min(reap.next_at.max(now.mono.plus_ms(10)));
        }
        // Whoever waits for its turn is called.
        let soonest_ms = match self.servers.is_waiting(server, at) {
            true => AGAIN_MS,
            false => 1,
        };
        if due != Mono::NEVER {
            self.schedule(at, due.max(now.mono.plus_ms(soonest_ms)));
        }
    }

    fn schedule(&mut self, at: usize, due: Mono) {
        let part = &mut self.parts[at];
        if due < part.due {
            self.due.remove(&(part.due, at));
            part.due = due;
            self.due.insert((due, at));
        }
    }

    /// That server has the partition.
    fn arrive(&mut self, at: usize, server: Server, now: Now) {
        let settle_until = now.mono.plus_ms(self.settle_ms());
        let part = &mut self.parts[at];
        if part.server == Some(server) {
            return;
        }
        if part.server.is_some() {
            part.settle_until = settle_until;
            part.look_at = now.mono;
            // Numbers of another server say nothing of this one's.
            part.claimed_as_of.clear();
            part.read_as_of.clear();
            self.reap_anew(at);
        }
        self.parts[at].server = Some(server);
    }

    /// All that a partition kept is lost.
    fn upset(&mut self, at: usize, now: Now) {
        // What all nodes agree on may be lost with it.
        self.layout_at = self.layout_at.min(now.mono.plus_ms(AGAIN_MS));
        self.parts[at].settle_until = now.mono.plus_ms(self.settle_ms());
        self.reap_anew(at);
        if let Some(server) = self.parts[at].server {
            self.servers.lost(server, now.mono);
        }
    }

    /// What one partition has lost the others of its server may have lost too. Each departure waits
    /// from when its partition's loss is seen, so all are looked at together.
    fn look_around(&mut self, now: Now) {
        while let Some(server) = self.servers.take_look(now.mono) {
            for at in 0..self.parts.len() {
                if self.parts[at].server == Some(server) {
                    self.parts[at].look_at = now.mono;
                    self.schedule(at, now.mono);
                }
            }
        }
    }

    /// Tells all nodes to look at a partition at once, by a message of a head alone. Whoever has
    /// nothing to claim there would find only by an audit that it is begun anew.
    fn alarm(&mut self, at: usize, server: Server, now: Now) {
        let base = Base {
            birth: self.new_birth(),
            number: 0,
        };
        let (hot, head) = (
            self.hot_key(at),
            message::encode(base, Unix::default(), &[]),
        );
        let call = Call::plain([&b"SPUBLISH"[..], hot.as_bytes(), &head]);
        let to = To::Partition(self.parts[at].id);
        // All who have somebody there must hear of it before departures have settled.
        self.parts[at].alarms = !self.send(Asked::Correct, to, server, vec![call], now);
    }

    fn hot_key(&self, at: usize) -> String {
        self.partitions.hot_key(self.parts[at].id)
    }

    /// Taken for dead, or by chance two have one life: begins a new one.
    fn begin_life(&mut self, now: Now) {
        self.counts.lives += 1;
        self.life = new_life(&mut self.random);
        self.is_fenced = true;
        self.lanes.begin_life(now.mono);
        self.claims.begin_life();
        for at in 0..self.parts.len() {
            let part = &mut self.parts[at];
            (part.k, part.count, part.count_off) = (0, 0, 0);
            (part.is_enrolled, part.leaps) = (false, true);
            part.marks.clear();
            part.held.clear();
            let flying = part.flying.take().into_iter().flatten();
            let unsaid: Vec<_> = flying.chain(std::mem::take(&mut part.uncertain)).collect();
            for entry in unsaid.into_iter().rev() {
                if let part::Op::Act(act, _) = entry.op {
                    let is_in_all = false;
                    part.acts.push_front(part::Act { is_in_all, ..act });
                }
            }
            part.claimed_as_of.clear();
            part.retry_at = now.mono;
            part.walk = Some(0);
            part.ends.are_due = true;
            part.look_at = now.mono;
            self.schedule(at, now.mono);
        }
    }

    fn new_birth(&mut self) -> Birth {
        let mut birth = [0; 8];
        self.random.fill(&mut birth);
        Birth(birth)
    }
}

fn new_life(random: &mut fastrand::Rng) -> Life {
    Life(random.u32(..).to_be_bytes())
}

/// Late is what comes after that, by the server's clock.
fn not_after(clock: Unix, void_after_ms: u64, bug: Planted) -> Unix {
    match planted::is(bug) {
        true => Unix::LATEST,
        false => clock.plus_ms(void_after_ms),
    }
}
