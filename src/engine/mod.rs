//! One shard without a kernel.
//!
//! Bytes, batches of beats, mail and a [`Now`] go in; bytes to write, closes, mail and one deadline
//! come out. Owns a shard's connections, watches and timers and its share of the sweep; shares the
//! presence database with the other shards. Reads no clock, opens no socket, spawns nothing, and
//! returns no error for what a peer sent: the peer is answered and counted.
//!
//! How to drive it, each turn: [`Engine::begin_turn`] first; then any number of `handle_*`;
//! [`Engine::handle_timeout`], then [`Engine::poll_asked`] until dry (each answered by
//! [`Engine::handle_acknowledged`]); [`Engine::work`] until nothing waits or the turn's time is
//! over; then poll until dry: [`Engine::poll_flush`] (each answered by
//! [`Engine::handle_flushed`]), [`Engine::poll_close`], [`Engine::poll_resume`],
//! [`Engine::poll_mail`], [`Engine::poll_outbound`]; sleep until [`Engine::poll_timeout`].

mod arrivals;
mod asking;
mod beats;
mod calls;
mod conn;
mod errand;
mod fanout;
mod farewells;
mod followers;
mod forgetting;
mod goodbyes;
mod homes;
mod homeward;
mod horizon;
#[cfg(any(debug_assertions, feature = "planted"))]
mod late;
mod mail;
mod operators;
mod parts;
mod passes;
mod records;
mod refused;
mod role;
pub mod settings;
mod silence;
mod telling;
mod told;
pub mod turn;
mod upstream;
mod vouching;
mod work;

#[cfg(feature = "cluster")]
pub(crate) use calls::own_in_fleet;
pub use calls::{NODE_HEADER, REFUSES_NEW, Refusals, instance_of, note_users};
pub use conn::addresses::Client;
pub use conn::life::{Close, CloseHow};
pub use errand::{Asker, Errand, Verdict};
pub use farewells::HOLDERS_MS_MAX;
pub use homes::{Home, HomeList, Homes, PartitionSet, Place};
pub use horizon::{LAG_MS_MAX as ID_LAG_MS_MAX, RESUME_SLACK_MS};
pub use mail::{
    Answered, Came, Decided, Edit, EditOutcome, Held, IfFull, Letter, Listed, Mail, Passed,
    ShardId, Taken, To, Weighed, Whom,
};
pub use operators::{Entrance, Operators};
use parts::VERIFYING_MICROS_PER_TURN;
pub use parts::{Engine, EngineParts};
pub use records::{record_of, told_of};
pub use refused::{REASONS, Refused};
pub use role::Role;
pub use upstream::{
    Datagrams, Erasure, Forward, Forwarded, Holders, HookOrder, HookReport, HookState, HookStates,
    LoggedOut, NodeAsk, NodeName, NodeStreams, Onward, Outbound, Part, REVOUCH_MS, SAMPLE_MS,
    SETTLE_MS, Sample, Say, Shows, StreamsAsk, USERS_PER_PART_MAX, Wanted, adopt_answers,
};

use core::net::IpAddr;
use std::sync::Arc;

use crate::metrics::{Counter, Counters, Gauge};
use crate::planted::{self, Planted};
use crate::presence::Presence;
use crate::realtime::{ConnId, Phase};
use crate::time::{Mono, Now};
use conn::addresses::CountsFor;
use conn::flush::Flushed;
use settings::SLEEP_MS_MAX;
use upstream::Upstream;

/// Bytes for one connection's socket.
#[derive(Debug)]
pub struct Flush<'a> {
    pub conn: ConnId,
    /// What to write.
    pub bytes: &'a [u8],
    /// The place of the connection that is flushed next, as far as is known yet.
    pub next: Option<u32>,
}

impl Engine {
    /// First call of every turn: looks for stalls, suspends and steps of the wall clock.
    pub fn begin_turn(&mut self, now: Now) {
        self.take_settings();
        self.date.set(now.unix);
        let seen = self.silence.observe(now, self.poll_timeout());
        if let Some((from, _)) = seen.step {
            self.counters.add(Counter::ClockSteps, 1);
            for database in self.databases() {
                database.note_clock_step(from, now);
            }
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
            self.heard.hold_expiries_until(self.silence.held_until());
        }
        let steps = self.node.role.passes_on() && self.conns.streams() > 0;
        let sleep_ms_max = if steps {
            upstream::STEP_MS
        } else {
            SLEEP_MS_MAX
        };
        for database in self.databases() {
            database.note_turn(self.node.shard, now);
        }
        self.pass_on_told();
        self.passes.turn_began(now.mono, sleep_ms_max);
        self.horizon
            .turn_began(self.presence.published_up_to(), now);
        self.fanout.forget();
        self.telling.turn_began(self.settings.work_per_slice_max);
        self.exposition = None;
        self.verifying_micros_left = VERIFYING_MICROS_PER_TURN;
        if let Some(before) = self.node.take_keyring() {
            self.passing.seal_all(before.fleet.signing());
            self.end_unlisted(&before);
        }
        self.take_homes(now);
        #[cfg(any(debug_assertions, feature = "planted"))]
        self.index_late();
    }

    /// What is told, and what is heard if that is another.
    fn databases(&self) -> impl Iterator<Item = &Presence> {
        let is_one = Arc::ptr_eq(&self.presence, &self.heard);
        let heard = (!is_one).then_some(&*self.heard);
        std::iter::once(&*self.presence).chain(heard)
    }

    /// A connection was accepted, by this listener and from this address, if that is known; it came
    /// `came_at`. None: more than can even be refused politely; close the socket.
    pub fn handle_accept(
        &mut self,
        entrance: Entrance,
        address: Option<IpAddr>,
        came_at: Mono,
        now: Now,
    ) -> Option<ConnId> {
        let address = match (entrance, address) {
            (Entrance::Public, Some(address)) => self.settings.counts_for(address),
            // Operators come from where everybody's traffic does, and are no crowd.
            (Entrance::Admin, _) | (_, None) => CountsFor::Exempt,
        };
        self.conns
            .accept(entrance, address, [came_at, now.mono], &mut self.counters)
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
        self.conns.count(id);
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
            Mail::Answered(answered) => self.take_answers(&answered, now),
            Mail::Reask { .. } if planted::is(Planted::ReaskIgnored) => {}
            Mail::Reask {
                node,
                pass,
                whom,
                not_before,
            } => self.begin_reask(node, Some(pass), whom, not_before),
            Mail::Settled { node, pass } => self.settled(node, pass),
            Mail::Told { node, up_to } => self.told_everything(node, up_to),
            Mail::ByConnection { node, on } => {
                if let Some(upstream) = &mut self.upstream {
                    upstream.set_by_connection(node, on);
                }
            }
            Mail::Resample { node, user } => self.resample(node, &user, now),
            Mail::Revouch { node, found_at } => self.passes.vouch_in_a_hurry(node, found_at),
            Mail::StreamBeats { from, beats } => self.take_stream_beats(from, &beats, now),
            Mail::StreamBeaten(outcomes) => self.finish_stream_beats(&outcomes, now),
            Mail::LoggedOut(slots) => self.logged_out_elsewhere(&slots, now),
            Mail::Forget(slot, at) => self.begin_to_forget(slot, at, now),
            Mail::Edited { conn, outcome } => self.finish_edit(conn, outcome, now),
            Mail::Holders(held) => self.take_holders(&held, now),
            Mail::Taken(taken) => self.finish_saying(&taken, now),
            Mail::Passed(passed) => self.finish_passing(&passed, now),
            Mail::Errand(errand) => self.run_errand(&errand, now),
            Mail::Listed { conn, listed } => self.online_listed(conn, &listed, now),
            Mail::Abroad { conn, told } => self.streams_abroad(conn, &told, now),
            Mail::Forwarded { conn, told } => self.finish_forward(conn, &told, now),
            Mail::Sought { conn, sought } => self.streams_sought(conn, &sought, now),
            Mail::Ran {
                conn,
                more,
                verdict,
            } => self.errand_ran(conn, more, verdict, now),
        }
    }

    /// Mail that the addressee's full mailbox did not take and that somebody waits for.
    pub fn handle_bounced(&mut self, mail: Mail, now: Now) {
        match mail {
            Mail::Edit(edit) => {
                self.counters.add(Counter::LimitMailboxBytes, 1);
                self.finish_edit(edit.asker.1, EditOutcome::Busy, now);
            }
            Mail::Errand(errand) => self.errand_bounced(&errand, now),
            Mail::StreamBeats { beats, .. } => self.refuse_stream_beats(&beats, now),
            _ => {}
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
        let next = self.conns.expected_flush();
        let bytes = if shared {
            self.fanout.shared()
        } else {
            self.conns.at(id.index).io().unsent()
        };
        Some(Flush {
            conn: id,
            bytes,
            next,
        })
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
        if !self.conns.is_flushed() || self.passes.has_backlog() || self.has_work() {
            return Mono::default();
        }
        let outbound = self.upstream.as_ref().map_or(Mono::NEVER, Upstream::next);
        let timers = self.passes.fires_at(self.conns.next_timer());
        let waits = self.arrivals.due().min(self.farewells.due());
        let waits = waits.min(self.passing.next());
        timers.min(self.passes.next()).min(outbound).min(waits)
    }

    /// What has been counted; the shard adds what only it can see, and publishes once a turn.
    pub fn counters(&mut self) -> &mut Counters {
        let watches = &self.conns.watches;
        let gauges = [
            (Gauge::Conns, self.conns.len()),
            (Gauge::Streams, self.conns.streams()),
            (Gauge::BufferedBytes, self.conns.buffered_bytes()),
            (Gauge::WatchesBySlot, watches.len() - watches.named_len()),
            (Gauge::WatchesByName, watches.named_len()),
            (
                Gauge::ExpiriesHeld,
                usize::from(self.silence.is_holding() || self.passes.is_draining()),
            ),
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
