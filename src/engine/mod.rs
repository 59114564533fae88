//! One shard without a kernel.
//!
//! Bytes, batches of beats, mail and a [`Now`] go in; bytes to write, closes, mail and one deadline
//! come out. Owns a shard's connections, watches and timers and its share of the sweep; shares the
//! presence database with the other shards. Reads no clock, opens no socket, spawns nothing, and
//! returns no error for what a peer sent: the peer is answered and counted.
//!
//! How to drive it, each turn: [`Engine::begin_turn`] first; then any number of `handle_*`;
//! [`Engine::handle_timeout`]; then poll until dry: [`Engine::poll_flush`] (each answered by
//! [`Engine::handle_flushed`]), [`Engine::poll_close`], [`Engine::poll_resume`],
//! [`Engine::poll_mail`], [`Engine::poll_outbound`]; sleep until [`Engine::poll_timeout`].

mod beats;
mod calls;
mod conn;
mod fanout;
mod horizon;
#[cfg(feature = "planted")]
mod late;
mod mail;
pub mod settings;
mod silence;
mod told;
pub mod turn;
mod upkeep;
mod upstream;

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

pub use calls::{NODE_HEADER, Refusals, instance_of};
pub use fanout::record_of;
pub use horizon::LAG_MS_MAX as ID_LAG_MS_MAX;
pub use mail::{Decided, Edit, EditOutcome, IfFull, Letter, Mail, ShardId, To, Why};
pub use upstream::{
    Answered, Datagrams, Outbound, REVOUCH_MS, SETTLE_MS, adopt_answers, doubt_known,
};

use crate::metrics::{Board, Counter, Counters, Gauge};
use crate::presence::{Presence, Sweep, Transition};
use crate::realtime::outbox::{FlushQueue, Written, book};
use crate::realtime::timers::Timers;
use crate::realtime::watches::Watches;
use crate::realtime::{ConnId, Conns, Phase, conn::flag};
use crate::slot::Slot;
use crate::time::{Mono, Now};
use crate::wire::beat::Keys;
use crate::wire::nodes::Nodes;
use crate::wire::request::RequestLimits;
use calls::Pending;
use fanout::Fanout;
use horizon::Horizon;
use mail::Posts;
use settings::{SLEEP_MS_MAX, SURPLUS_CONNS, SURPLUS_HEARING_MS, Settings};
use silence::Silence;
use upkeep::Upkeep;
use upstream::Upstream;

/// Which half of the platform a node is. Decides at start which parts its engines have, and which
/// paths they serve.
#[derive(Clone, Debug)]
pub enum Role {
    /// Both halves: streams and stamps in one process.
    All,
    /// Stamps and sweep; publishes transitions to real-time nodes.
    Presence,
    /// Streams and watches; vouches for its publishers to these presence nodes, whose states it
    /// mirrors.
    Realtime(Arc<Nodes>),
}

/// What an engine is made of.
#[derive(Clone)]
pub struct EngineParts {
    /// Intervals and limits.
    pub settings: Arc<Settings>,
    /// Which shard this is.
    pub shard: ShardId,
    /// Of how many.
    pub shards: ShardId,
    /// What the node is.
    pub role: Role,
    /// The node's presence database; a mirror in the role [`Role::Realtime`] and in no other.
    pub presence: Arc<Presence>,
    /// Fleet keys that sign beats.
    pub keys: Arc<Keys>,
    /// The same for all shards of a process: makes stream ids unguessable.
    pub secret: [u8; 32],
    /// Of the jitter.
    pub seed: u64,
    /// What `/metrics` shows.
    pub board: Arc<Board>,
    /// Boot: expiries are held until `offline_after_ms` after it.
    pub now: Now,
}

/// Bytes for one connection's socket.
#[derive(Debug)]
pub struct Flush<'a> {
    /// Whose.
    pub conn: ConnId,
    /// What to write.
    pub bytes: &'a [u8],
}

/// A connection to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Close {
    /// Which.
    pub conn: ConnId,
    /// How.
    pub how: CloseHow,
}

/// How a connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseHow {
    /// The engine has forgotten it; drop the socket.
    Close,
    /// Shut down our sending half and go on reading into the engine, until it says Close.
    ShutdownWrite,
}

/// One shard's engine.
pub struct Engine {
    settings: Arc<Settings>,
    limits: RequestLimits,
    shard: ShardId,
    shards: ShardId,
    role: Role,
    presence: Arc<Presence>,
    keys: Arc<Keys>,
    secret: [u8; 32],
    random: fastrand::Rng,
    board: Arc<Board>,
    counters: Counters,

    conns: Conns,
    streams: usize,
    watches: Watches,
    timers: Timers,
    queue: FlushQueue,
    fanout: Fanout,
    /// The flush that waits for [`Engine::handle_flushed`].
    flushing: Option<Flushing>,
    #[cfg(feature = "planted")]
    late: late::Late,
    body: Vec<u8>,

    silence: Silence,
    horizon: Horizon,
    /// None where nobody's stamps are kept.
    sweep: Option<Sweep>,
    upstream: Option<Upstream>,
    upkeep: Upkeep,
    transitions: Vec<Transition>,

    /// Requests that wait for another shard, by connection.
    waiting: HashMap<u32, Pending, foldhash::fast::RandomState>,
    posts: Posts,
    closes: VecDeque<Close>,
    resumes: VecDeque<ConnId>,
}

#[derive(Clone, Copy)]
struct Flushing {
    conn: ConnId,
    /// The bytes offered are in the shared buffer, not in the connection's own.
    shared: bool,
    offered_bytes: usize,
}

impl Engine {
    /// An engine without connections.
    pub fn new(parts: EngineParts) -> Engine {
        let settings = parts.settings;
        let now = parts.now;
        let mirrors = matches!(parts.role, Role::Realtime(_));
        assert_eq!(
            mirrors,
            parts.presence.is_mirror(),
            "a real-time node mirrors, and no other does"
        );
        Engine {
            limits: settings.request_limits(),
            shard: parts.shard,
            shards: parts.shards,
            presence: parts.presence,
            keys: parts.keys,
            secret: parts.secret,
            random: fastrand::Rng::with_seed(parts.seed),
            board: parts.board,
            counters: Counters::new(),
            conns: Conns::default(),
            streams: 0,
            watches: Watches::default(),
            timers: Timers::new(now.mono),
            queue: FlushQueue::default(),
            fanout: Fanout::default(),
            flushing: None,
            #[cfg(feature = "planted")]
            late: Vec::new(),
            body: Vec::new(),
            silence: Silence::new(now, settings.offline_after_ms),
            horizon: Horizon::new(now.mono),
            sweep: (!mirrors).then(|| Sweep::new(parts.shard, parts.shards)),
            upstream: Upstream::of(&parts.role),
            upkeep: Upkeep::new(now.mono),
            transitions: Vec::new(),
            waiting: HashMap::default(),
            posts: Posts::new(parts.shards, matches!(parts.role, Role::Presence)),
            closes: VecDeque::new(),
            resumes: VecDeque::new(),
            role: parts.role,
            settings,
        }
    }

    /// First call of every turn: looks for stalls, suspends and steps of the wall clock.
    pub fn begin_turn(&mut self, now: Now) {
        let seen = self.silence.observe(now, self.poll_timeout());
        if let Some((from, _)) = seen.step {
            self.counters.add(Counter::ClockSteps, 1);
            self.presence.note_clock_step(from, now);
            self.horizon.clock_stepped(from, now);
        }
        if seen.stalled {
            self.counters.add(Counter::Stalls, 1);
            self.upkeep.hold_timers(now.mono);
        }
        if seen.stalled || seen.step.is_some() {
            // Its socket may hold beats for any shard's publishers, and it takes turns to read them
            // all. And a shard that sleeps through a step back and one forward sees no step
            // forward, though stamps of the time in between look older by it.
            self.presence.hold_expiries_until(self.silence.held_until());
        }
        let steps = self.upstream.is_some() && self.streams > 0;
        let sleep_ms_max = if steps {
            upstream::STEP_MS
        } else {
            SLEEP_MS_MAX
        };
        self.presence.note_turn(self.shard, now);
        self.upkeep.turn_began(now.mono, sleep_ms_max);
        self.horizon
            .turn_began(self.presence.published_up_to(), now);
        self.fanout.forget();
        #[cfg(feature = "planted")]
        self.index_late();
    }

    /// A connection was accepted. None: more than can even be refused politely; close the socket.
    pub fn handle_accept(&mut self, now: Now) -> Option<ConnId> {
        let surplus = self.conns.len() >= self.settings.conns_max;
        if surplus {
            self.counters.add(Counter::LimitConns, 1);
            if self.conns.len() >= self.settings.conns_max + SURPLUS_CONNS {
                return None;
            }
        }
        self.counters.add(Counter::ConnsAccepted, 1);
        let id = self.conns.insert();
        let mut deadline_ms = self.settings.request_deadline_ms;
        if surplus {
            deadline_ms = deadline_ms.min(SURPLUS_HEARING_MS);
        }
        let deadline = self.timers.tick_in(now.mono, deadline_ms);
        let conn = self.conns.at(id.index);
        conn.moment = deadline;
        conn.put(flag::SURPLUS, surplus);
        self.timers.set(id.index, deadline);
        Some(id)
    }

    /// The socket takes bytes again after it took less than was offered.
    pub fn handle_writable(&mut self, id: ConnId, now: Now) {
        let Some(conn) = self.conns.get_mut(id) else {
            return;
        };
        conn.put(flag::BLOCKED, false);
        self.queue_if_due(id.index, now.mono);
    }

    /// The socket took the first `n` bytes of the last [`Engine::poll_flush`]. If it took fewer
    /// than were offered, the connection is left alone until [`Engine::handle_writable`].
    pub fn handle_flushed(&mut self, id: ConnId, n: usize, now: Now) {
        let Some(flushing) = self.flushing.take() else {
            return;
        };
        let Some(conn) = self.conns.get_mut(id).filter(|_| flushing.conn == id) else {
            return;
        };
        let n = n.min(flushing.offered_bytes);
        self.counters.add(Counter::Flushes, 1);
        self.counters.add(Counter::BytesOut, n as u64);
        let offered = flushing.shared.then(|| self.fanout.shared());
        let written = book(conn, offered, n, now.mono);
        if n > 0 && conn.phase() == Phase::Streaming {
            conn.moment = self.timers.tick_at(now.mono);
        }
        match written {
            Written::All => self.flushed(id, now),
            Written::Some => {
                self.counters.add(Counter::FlushesPartial, 1);
                let stall = self
                    .timers
                    .tick_in(now.mono, self.settings.write_stall_max_ms);
                self.timers.set_sooner(id.index, stall);
            }
        }
    }

    /// All that was offered is written: what now?
    fn flushed(&mut self, id: ConnId, now: Now) {
        let conn = self.conns.at(id.index);
        match conn.phase() {
            Phase::Closing => self.finish(id, now),
            Phase::Idle | Phase::Reading if conn.has(flag::PAUSED) => self.serve_held(id, now),
            // It said its last while its request was with another shard.
            Phase::Idle if conn.has(flag::EOF) => self.end(id, Counter::ClosedPeer, now),
            _ => self.queue_if_due(id.index, now.mono),
        }
    }

    /// The socket failed, was reset, or its peer is gone; the shard has dropped it.
    pub fn handle_closed(&mut self, id: ConnId, _now: Now) {
        self.gone(id, Counter::ClosedReset);
    }

    /// The kernel has given up a peer that acknowledged nothing for `write_stall_max_ms`; the shard
    /// has dropped it.
    pub fn handle_timed_out(&mut self, id: ConnId, _now: Now) {
        if self.conns.get(id).is_some() {
            self.counters.add(Counter::LimitWriteStall, 1);
            self.counters.add(Counter::EvictedUserTimeout, 1);
        }
        self.gone(id, Counter::ClosedEvicted);
    }

    fn gone(&mut self, id: ConnId, reason: Counter) {
        if let Some(conn) = self.conns.get(id) {
            // One that was ending has been counted with its reason.
            if !matches!(conn.phase(), Phase::Closing | Phase::Lingering) {
                self.counters.add(reason, 1);
            }
            self.forget(id);
        }
    }

    /// Next bytes to write; must be answered by [`Engine::handle_flushed`] before the next call.
    /// How many flushes a turn may take is the caller's budget (`flushes_per_turn_max`).
    pub fn poll_flush(&mut self, now: Now) -> Option<Flush<'_>> {
        let (id, shared) = loop {
            let (index, since) = self.queue.pop()?;
            let Some(id) = self.conns.id_at(index) else {
                continue;
            };
            let conn = self.conns.at(index);
            if !conn.has(flag::QUEUED) {
                continue;
            }
            conn.put(flag::QUEUED, false);
            let shared = conn.unsent_bytes() == 0;
            if conn.phase() == Phase::Streaming {
                self.encode(index, shared, since, now);
            } else if shared {
                self.flushed(id, now);
                continue;
            }
            let offered = if shared {
                !self.fanout.shared().is_empty()
            } else {
                self.conns.at(index).unsent_bytes() > 0
            };
            if offered {
                break (id, shared);
            }
        };
        let bytes = if shared {
            self.fanout.shared()
        } else {
            self.conns.at(id.index).io().unsent()
        };
        self.flushing = Some(Flushing {
            conn: id,
            shared,
            offered_bytes: bytes.len(),
        });
        Some(Flush { conn: id, bytes })
    }

    /// A connection to end.
    pub fn poll_close(&mut self) -> Option<Close> {
        self.closes.pop_front()
    }

    /// A connection whose reading was paused and may go on: what its socket has said meanwhile is
    /// to be read now.
    pub fn poll_resume(&mut self) -> Option<ConnId> {
        self.resumes.pop_front()
    }

    /// Mail to post.
    pub fn poll_mail(&mut self) -> Option<Letter> {
        let letter = self.posts.poll();
        if letter.is_some() {
            self.counters.add(Counter::MailPosted, 1);
        }
        letter
    }

    /// When the next turn must begin at the latest; not later than now if work is left over.
    pub fn poll_timeout(&self) -> Mono {
        if !self.queue.is_empty() || self.upkeep.has_backlog() {
            return Mono::default();
        }
        let outbound = self.upstream.as_ref().map_or(Mono::NEVER, Upstream::next);
        let timers = self.upkeep.fires_at(self.timers.next());
        timers.min(self.upkeep.next()).min(outbound)
    }

    /// What has been counted; the shard adds what only it can see, and publishes once a turn.
    pub fn counters(&mut self) -> &mut Counters {
        let gauges = [
            (Gauge::Conns, self.conns.len()),
            (Gauge::Streams, self.streams),
            (
                Gauge::WatchesBySlot,
                self.watches.len() - self.watches.named_len(),
            ),
            (Gauge::WatchesByName, self.watches.named_len()),
            (Gauge::ExpiriesHeld, usize::from(self.silence.is_holding())),
        ];
        for (gauge, value) in gauges {
            self.counters.set(gauge, value as u64);
        }
        &mut self.counters
    }

    /// Queues a connection that has something to write.
    fn queue_if_due(&mut self, index: u32, since: Mono) {
        let conn = self.conns.at(index);
        let due = conn.unsent_bytes() > 0
            || conn.flags & (flag::SNAPSHOT | flag::COMMENT) != 0
            || self.watches.marks(index) > 0;
        if due {
            self.queue.push(index, conn, since);
        }
    }

    /// Has the slot's owner look at it before the next sweep.
    fn look(&mut self, slot: Slot, now: Now) {
        let owner = slot.owner(self.shards);
        if owner == self.shard {
            self.look_own(slot, now);
        } else {
            self.posts.look(owner, slot);
        }
    }

    /// Ends a connection: what is unsent goes out first.
    fn end(&mut self, id: ConnId, reason: Counter, now: Now) {
        self.counters.add(reason, 1);
        let stall = self
            .timers
            .tick_in(now.mono, self.settings.write_stall_max_ms);
        let Some(conn) = self.conns.get_mut(id) else {
            return;
        };
        if conn.phase() == Phase::Streaming {
            self.streams -= 1;
            self.watches.clear(id.index);
            conn.put(flag::SNAPSHOT | flag::COMMENT, false);
        }
        conn.go(Phase::Closing);
        conn.moment = stall;
        if let Some(io) = &mut conn.io {
            io.input = Vec::new();
            io.chunked = None;
        }
        if conn.unsent_bytes() == 0 {
            self.finish(id, now);
        } else {
            self.timers.set(id.index, stall);
            self.queue_if_due(id.index, now.mono);
        }
    }

    /// The last byte of a connection in [`Phase::Closing`] is out.
    fn finish(&mut self, id: ConnId, now: Now) {
        let conn = self.conns.at(id.index);
        if conn.has(flag::LINGER) && !conn.has(flag::EOF) && self.settings.linger_ms > 0 {
            conn.go(Phase::Lingering);
            conn.tidy();
            let deadline = self.timers.tick_in(now.mono, self.settings.linger_ms);
            self.timers.set(id.index, deadline);
            self.closes.push_back(Close {
                conn: id,
                how: CloseHow::ShutdownWrite,
            });
        } else {
            self.drop_conn(id);
        }
    }

    /// Ends a connection at once and has the shard drop its socket.
    fn drop_conn(&mut self, id: ConnId) {
        self.forget(id);
        self.closes.push_back(Close {
            conn: id,
            how: CloseHow::Close,
        });
    }

    /// Takes a connection out of every table.
    fn forget(&mut self, id: ConnId) {
        if self
            .conns
            .get(id)
            .is_some_and(|conn| conn.phase() == Phase::Streaming)
        {
            self.streams -= 1;
            self.watches.clear(id.index);
        }
        self.timers.clear(id.index);
        self.waiting.remove(&id.index);
        if self.conns.remove(id) {
            let places = self.conns.places();
            self.timers.cut_off(places);
            self.watches.cut_off(places);
        }
    }

    /// Panics if two tables disagree. For tests and the simulator.
    pub fn check_invariants(&mut self) {
        self.watches.check_invariants();
        let mut streams = 0;
        for index in 0..self.conns.places() {
            let live = self.conns.id_at(index).is_some();
            let conn = self.conns.at(index);
            let streaming = conn.phase() == Phase::Streaming;
            streams += usize::from(streaming);
            assert!(
                streaming || self.watches.of(index) == 0,
                "conn {index} watches and is no stream"
            );
            assert!(
                !streaming || conn.unsent_bytes() <= self.settings.outbox_bytes_max,
                "stream {index} has {} bytes unsent",
                conn.unsent_bytes()
            );
            let waits = conn.flags & (flag::QUEUED | flag::BLOCKED) != 0;
            assert!(
                !streaming || waits || self.watches.marks(index) == 0,
                "stream {index} has marks and nobody will flush it"
            );
            assert!(live || conn.flags == 0, "a free place has flags");
            let waits = conn.phase() == Phase::Waiting;
            assert_eq!(
                waits,
                self.waiting.contains_key(&index),
                "conn {index} waits for an answer, or one waits for nobody"
            );
        }
        assert_eq!(streams, self.streams, "streams");
    }
}
