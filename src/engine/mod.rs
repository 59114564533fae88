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
mod passes;
pub mod settings;
mod silence;
mod told;
pub mod turn;
mod upstream;

use std::sync::Arc;

pub use calls::{NODE_HEADER, Refusals, instance_of};
pub use conn::life::{Close, CloseHow};
pub use fanout::record_of;
pub use horizon::LAG_MS_MAX as ID_LAG_MS_MAX;
pub use mail::{Decided, Edit, EditOutcome, IfFull, Letter, Mail, ShardId, To, Why};
pub use upstream::{
    Answered, Datagrams, Outbound, REVOUCH_MS, SETTLE_MS, adopt_answers, doubt_known,
};

use crate::metrics::{Board, Counter, Counters, Gauge};
use crate::planted::{self, Planted};
use crate::presence::{Presence, Sweep};
use crate::realtime::{ConnId, Phase};
use crate::time::{Mono, Now};
use crate::wire::beat::Keys;
use crate::wire::nodes::Nodes;
use crate::wire::request::RequestLimits;
use conn::flush::Flushed;
use conn::life::Conns;
use fanout::Fanout;
use horizon::Horizon;
use mail::Posts;
use passes::Passes;
use settings::{SLEEP_MS_MAX, Settings};
use silence::Silence;
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
    fanout: Fanout,
    #[cfg(feature = "planted")]
    late: late::Late,
    body: Vec<u8>,

    silence: Silence,
    horizon: Horizon,
    upstream: Option<Upstream>,
    passes: Passes,
    posts: Posts,
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
            conns: Conns::new(Arc::clone(&settings), now.mono),
            fanout: Fanout::default(),
            #[cfg(feature = "planted")]
            late: Vec::new(),
            body: Vec::new(),
            silence: Silence::new(now, settings.offline_after_ms),
            horizon: Horizon::new(now.mono),
            upstream: Upstream::of(&parts.role),
            passes: Passes::new(
                (!mirrors).then(|| Sweep::new(parts.shard, parts.shards)),
                now.mono,
            ),
            posts: Posts::new(parts.shards, matches!(parts.role, Role::Presence)),
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
            self.passes.hold_timers(now.mono);
        }
        if seen.stalled || seen.step.is_some() {
            // Its socket may hold beats for any shard's publishers, and it takes turns to read them
            // all. And a shard that sleeps through a step back and one forward sees no step
            // forward, though stamps of the time in between look older by it.
            self.presence.hold_expiries_until(self.silence.held_until());
        }
        let steps = self.upstream.is_some() && self.conns.streams() > 0;
        let sleep_ms_max = if steps {
            upstream::STEP_MS
        } else {
            SLEEP_MS_MAX
        };
        self.presence.note_turn(self.shard, now);
        self.passes.turn_began(now.mono, sleep_ms_max);
        self.horizon
            .turn_began(self.presence.published_up_to(), now);
        self.fanout.forget();
        #[cfg(feature = "planted")]
        self.index_late();
    }

    /// A connection was accepted. None: more than can even be refused politely; close the socket.
    pub fn handle_accept(&mut self, now: Now) -> Option<ConnId> {
        self.conns.accept(now.mono, &mut self.counters)
    }

    /// The socket takes bytes again after it took less than was offered.
    pub fn handle_writable(&mut self, id: ConnId, now: Now) {
        self.conns.writable(id, now.mono);
    }

    /// The socket took the first `n` bytes of the last [`Engine::poll_flush`]. If it took fewer
    /// than were offered, the connection is left alone until [`Engine::handle_writable`].
    pub fn handle_flushed(&mut self, id: ConnId, n: usize, now: Now) {
        let shared = self.fanout.shared();
        let flushed = self
            .conns
            .wrote(id, n, shared, now.mono, &mut self.counters);
        if flushed == Flushed::ServeHeld {
            self.serve_held(id, now);
        }
    }

    /// The peer closed its sending half: a request that is whole is answered, a stream's reader is
    /// gone.
    pub fn handle_eof(&mut self, id: ConnId, now: Now) {
        self.conns.hang_up(id, now.mono, &mut self.counters);
    }

    /// The socket failed, was reset, or its peer is gone; the shard has dropped it.
    pub fn handle_closed(&mut self, id: ConnId, _now: Now) {
        self.conns
            .gone(id, Counter::ClosedReset, &mut self.counters);
    }

    /// The kernel has given up a peer that acknowledged nothing for `write_stall_max_ms`; the shard
    /// has dropped it.
    pub fn handle_timed_out(&mut self, id: ConnId, _now: Now) {
        if self.conns.get(id).is_some() {
            self.counters.add(Counter::LimitWriteStall, 1);
            self.counters.add(Counter::EvictedUserTimeout, 1);
        }
        self.conns
            .gone(id, Counter::ClosedEvicted, &mut self.counters);
    }

    /// Mail from another shard.
    pub fn handle_mail(&mut self, mail: Mail, now: Now) {
        self.counters.add(Counter::MailReceived, 1);
        let decided_at = match &mail {
            Mail::Transitions(decided) => Some(decided.at),
            _ => None,
        };
        self.horizon.mail_read(decided_at, now);
        match mail {
            Mail::Transitions(decided) => {
                let Decided { at, transitions } = &*decided;
                for transition in transitions {
                    self.tell(*transition, *at);
                }
            }
            Mail::Look(slots) => {
                for slot in slots.iter() {
                    self.look_own(*slot, now);
                }
            }
            Mail::Edit(edit) => {
                let outcome = self.apply_edit(&edit, now);
                let (shard, conn) = edit.asker;
                self.posts.letter(shard, Mail::Edited { conn, outcome });
            }
            Mail::Answered(answered) => self.take_answers(&answered),
            Mail::Reask { .. } if planted::is(Planted::ReaskIgnored) => {}
            Mail::Reask {
                node,
                why,
                found_at,
            } => self.begin_reask(node, why, found_at),
            Mail::Edited { conn, outcome } => self.finish_edit(conn, outcome, now),
        }
    }

    /// Mail that the addressee's full mailbox did not take and that somebody waits for.
    pub fn handle_bounced(&mut self, mail: Mail, now: Now) {
        if let Mail::Edit(edit) = mail {
            self.finish_edit(edit.asker.1, EditOutcome::Busy, now);
        }
    }

    /// Next bytes to write; must be answered by [`Engine::handle_flushed`] before the next call.
    /// How many flushes a turn may take is the caller's budget (`flushes_per_turn_max`).
    pub fn poll_flush(&mut self, now: Now) -> Option<Flush<'_>> {
        let (id, shared) = loop {
            let (id, since) = self.conns.next_flush()?;
            let conn = self.conns.at(id.index);
            let shared = conn.unsent_bytes() == 0;
            if conn.phase() == Phase::Streaming {
                self.encode(id.index, shared, since, now);
            } else if shared {
                let flushed = self.conns.flushed(id, now.mono, &mut self.counters);
                if flushed == Flushed::ServeHeld {
                    self.serve_held(id, now);
                }
                continue;
            }
            let offered_bytes = if shared {
                self.fanout.shared().len()
            } else {
                self.conns.at(id.index).unsent_bytes()
            };
            if offered_bytes > 0 {
                self.conns.offer(id, shared, offered_bytes);
                break (id, shared);
            }
        };
        let bytes = if shared {
            self.fanout.shared()
        } else {
            self.conns.at(id.index).io().unsent()
        };
        Some(Flush { conn: id, bytes })
    }

    /// A connection to end.
    pub fn poll_close(&mut self) -> Option<Close> {
        self.conns.next_close()
    }

    /// A connection whose reading was paused and may go on: what its socket has said meanwhile is
    /// to be read now.
    pub fn poll_resume(&mut self) -> Option<ConnId> {
        self.conns.next_resume()
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
        if !self.conns.is_flushed() || self.passes.has_backlog() {
            return Mono::default();
        }
        let outbound = self.upstream.as_ref().map_or(Mono::NEVER, Upstream::next);
        let timers = self.passes.fires_at(self.conns.next_timer());
        timers.min(self.passes.next()).min(outbound)
    }

    /// What has been counted; the shard adds what only it can see, and publishes once a turn.
    pub fn counters(&mut self) -> &mut Counters {
        let watches = &self.conns.watches;
        let gauges = [
            (Gauge::Conns, self.conns.len()),
            (Gauge::Streams, self.conns.streams()),
            (Gauge::WatchesBySlot, watches.len() - watches.named_len()),
            (Gauge::WatchesByName, watches.named_len()),
            (Gauge::ExpiriesHeld, usize::from(self.silence.is_holding())),
        ];
        for (gauge, value) in gauges {
            self.counters.set(gauge, value as u64);
        }
        &mut self.counters
    }

    /// Panics if two tables disagree. For tests and the simulator.
    pub fn check_invariants(&mut self) {
        self.conns.check_invariants();
    }
}
