//! `GET` and `POST /v1/stream`: a connection becomes a stream.
//!
//! Owns the order in which a watch is indexed before its state is read, so that no change falls
//! between the two.

use super::caller::Caller;
use super::errands::{Errands, WAIT_MS_MAX};
use super::ignored::Ignored;
use super::refused::Refused;
use super::served::{NewStream, Opening, Served, Then, intern_detail};
use crate::auth::TicketRefusal;
use crate::engine::arrivals::Maker;
use crate::engine::conn::addresses::CountsFor;
use crate::engine::conn::pending::Pending;
use crate::engine::errand::{Asker, Verdict};
use crate::engine::horizon;
use crate::engine::parts::Engine;
use crate::engine::role::Role;
use crate::engine::settings::OUTBOX_BYTES_FLOOR;
use crate::engine::upstream::Outbound;
use crate::metrics::Counter;
use crate::presence::InternFault;
use crate::realtime::ConnId;
use crate::realtime::watches::{NAME_BYTES, Target};
use crate::slot::Slot;
use crate::time::{Now, Unix};
use crate::wire::record::StreamAsk;
use crate::wire::response::{Answer, write_answer};
use crate::wire::sse;
use crate::wire::{User, UserBuf};

/// What always fits into the hello beside the members that each has.
const MORE_BYTES: usize = 128;
/// What an answer's head and a hello of default settings take, with a little room.
const HELLO_BYTES: usize = 640;

/// Whether there is room for a stream, and for its holder as a publisher.
pub(super) fn open(
    engine: &mut Engine,
    asker: ConnId,
    mut ask: StreamAsk,
    ignored: Ignored,
    caller: &Caller,
    now: Now,
) -> Served {
    // Who was logged out comes back: an EventSource that is answered so stays away for good.
    if ask.last_event_id.as_deref() == Some(sse::BYE) {
        return Answer::no_content().into();
    }
    let mut refused = Refused::default();
    let watch = std::mem::take(&mut ask.watch);
    let watch = refused.sift(None, watch, &mut engine.counters);
    if engine.passes.is_draining() {
        // Presence nodes know of no drain: that its holder is there they hear here. What the holder
        // says of itself would come behind that beat.
        let hears = engine.upstream.is_some() && ask.said.is_empty();
        let user = ask.user.as_ref().filter(|_| hears);
        if let Some(slot) = user.and_then(|user| engine.presence.lookup(user.user())) {
            engine.vouch_for(slot, true, Counter::BeatsStream, now);
        }
        return Served::Overloaded("draining");
    }
    // A stream takes more than it costs now, and the kernel would take the whole process for it.
    if engine.node.board.is_short_of_memory() {
        engine.counters.add(Counter::LimitMemory, 1);
        return Served::Overloaded("memory");
    }
    if engine.conns.watches.len() + watch.len() > engine.settings.watches_per_shard_max {
        engine.counters.add(Counter::LimitWatchesPerShard, 1);
        return Served::Overloaded("watches");
    }
    if !engine.names_fit(&watch) {
        engine.counters.add(Counter::LimitNamesBytes, 1);
        return Served::Overloaded("names");
    }
    let ticket = match engine.reserve_ticket(caller, now) {
        Ok(ticket) => ticket,
        Err(refused) => return refused,
    };
    let opening = Opening {
        ask,
        watch,
        refused,
        ignored,
        permit: engine.permit_of(caller, now),
        ticket,
    };
    if matches!(engine.node.role, Role::Fleet(_)) && opening.ticket.is_some() {
        return engine.ask_for_ticket(asker, opening, now);
    }
    opened(engine, asker, opening, now)
}

/// A stream for which there is room, and whose ticket, if it comes by one, nobody else has used.
fn opened(engine: &mut Engine, asker: ConnId, opening: Opening, now: Now) -> Served {
    let Opening {
        ask,
        watch,
        refused,
        ignored,
        permit,
        ticket,
    } = opening;
    let mut waits = None;
    let publisher = match ask.user {
        None => None,
        Some(user) => match engine.take_in(user.user(), now) {
            Ok(slot) => Some(slot),
            // What is said of whoever has no room would be forgotten.
            Err(fault) if !ask.said.is_empty() => {
                engine.book_intern_fault(fault);
                return Served::Overloaded(intern_detail(fault));
            }
            // The stream goes on, and its holder comes when there is room in time.
            Err(InternFault::TooFast) => {
                engine.counters.add(Counter::BeatTooFast, 1);
                waits = Some(user);
                None
            }
            Err(fault) => {
                engine.book_intern_fault(fault);
                return Served::Overloaded(intern_detail(fault));
            }
        },
    };
    let mut new = NewStream {
        publisher,
        waits,
        vouch: ask.vouch,
        watch,
        refused,
        ignored,
        last_event_id: ask.last_event_id,
        vouched: false,
        permit,
        ticket,
        follows: None,
    };
    if let Some(slot) = publisher
        && engine.node.role.passes_on()
        && !ask.said.is_empty()
    {
        // It goes before the first beat, so that nobody flashes online.
        let user = engine.presence.user(slot).into();
        let then = Then::Stream(Box::new(new));
        return engine.pass_saying_on(asker, user, (ask.said, true), then, now);
    }
    let mut errands = Errands::default();
    // Who has read the hello, or asks behind it, finds its holder online.
    if let Some(slot) = publisher
        && !engine.node.role.passes_on()
    {
        new.vouched = true;
        // Before the beat: who is invisible never flashes online.
        engine.say(slot, ask.said, &mut errands, now);
        let outcome = engine.heard.record_beat(slot, Unix::LATEST, now);
        if engine.count_beat(outcome, Counter::BeatsStream) {
            errands.look(engine, slot, now);
        }
    }
    errands.park(engine, asker, Then::Stream(Box::new(new)), now)
}

impl Engine {
    /// Asks the fleet whether the ticket has been used at another node.
    fn ask_for_ticket(&mut self, conn: ConnId, opening: Opening, now: Now) -> Served {
        let asker = Asker {
            shard: self.node.shard,
            conn,
            until: now.mono.plus_ms(WAIT_MS_MAX),
        };
        let ticket = opening.ticket.iter().zip(&mut self.upstream);
        for (ticket, upstream) in ticket {
            let id = ticket.id().bytes();
            upstream.outbound.push_back(Outbound::Ticket { asker, id });
        }
        let then = Then::Opens(Box::new(opening));
        self.parked_for(1, Verdict::Done, then, asker, now)
    }

    /// The fleet has said what it knows of the ticket by which a stream is opened.
    pub(super) fn open_by_ticket(
        &mut self,
        id: ConnId,
        mut opening: Opening,
        verdict: Verdict,
        now: Now,
    ) -> Served {
        if verdict == Verdict::Spent {
            if let Some(ticket) = opening.ticket.take() {
                ticket.spend();
            }
            return self.refuse_ticket(TicketRefusal::Used).into();
        }
        opened(self, id, opening, now)
    }

    /// Enters what a stream watches, moves its connection into its new life and says hello.
    pub(super) fn begin_stream(
        &mut self,
        id: ConnId,
        pending: &Pending,
        mut new: NewStream,
        now: Now,
    ) {
        self.counters.add_request(pending.call, 200);
        // Indexed first, read later: what changes in between is told twice rather than never.
        let watch = new.watch.iter();
        let mut targets: Vec<Target> = watch.map(|user| self.target(user.user())).collect();
        self.conns.watches.add(id.index, &mut targets, false);
        self.mark_untold(id.index, new.last_event_id.as_deref(), now);
        let by_holder = new.is_by_holder();
        self.say_hello(id, pending, &new, now);
        if let Some(ticket) = new.ticket.take() {
            ticket.spend();
        }
        let unsure = self.presence.is_follower();
        if pending.address != CountsFor::Exempt {
            self.conns.count_for(id.index, pending.address);
        }
        self.conns
            .stream_begins(id.index, unsure, new.permit, now.mono);
        let client = pending.client.as_deref();
        if !self.conns.note_reader(id.index, client, now.mono) {
            self.counters.add(Counter::LimitClientNames, 1);
        }
        if let Some(permit) = &new.permit
            && self.is_revoked_since(permit, now)
        {
            return self.say_revoked(id, now);
        }
        if let Some(sees_node) = new.follows {
            self.begin_to_follow(id, sees_node, now);
        }
        if let Some(slot) = new.publisher {
            if self.presence.is_leaving(slot) {
                // Its user was forgotten while the request was parked.
                return self.say_bye(id, now);
            }
            self.begin_to_publish(id, slot, by_holder);
            if let Some(upstream) = &self.upstream {
                let at = upstream.clock_of(&self.presence, slot, now);
                self.passes.logging_out.opens(slot, id, at, now.mono);
            }
            // Whoever opens a stream is here.
            if !new.vouched {
                self.vouch_for(slot, true, Counter::BeatsStream, now);
            }
        }
        if let Some(user) = new.waits {
            if by_holder {
                // It is asked, and says when it is here.
                self.conns.at(id.index).leave_beats_to_holder();
            }
            let due = now.mono.plus_ms(self.settings.beat_interval_ms);
            let maker = Maker::of(id, pending.address);
            self.arrivals.wait(id, user, maker, by_holder, due);
        }
        #[cfg(any(debug_assertions, feature = "planted"))]
        if crate::planted::is(crate::planted::Planted::SnapshotBeforeWatch) {
            self.index_later(id, &new.watch, now);
        }
    }

    /// Marks whom a new stream must be told: all that it watches, or those who may have changed
    /// since its last event id.
    fn mark_untold(&mut self, index: u32, last_event_id: Option<&str>, now: Now) {
        let since = last_event_id.and_then(|last| self.resumes_from(last.as_bytes(), now));
        let presence = &self.presence;
        self.conns
            .watches
            .mark_where(index, |target| match (since, target.as_slot()) {
                (None, _) => true,
                // Never seen by anybody; unless that is yet to be asked.
                (Some(since), None) => {
                    presence.is_follower() || presence.may_be_forgotten_since(None, since)
                }
                (Some(since), Some(slot)) => {
                    let slot = Slot::new(slot);
                    presence.changed_since(slot, since, now)
                        || presence.may_be_forgotten_since(Some(slot), since)
                }
            });
    }

    /// Since when a stream that was told this event id is told what has changed; None: it is told
    /// everything.
    fn resumes_from(&mut self, last_event_id: &[u8], now: Now) -> Option<Unix> {
        let judge = |id| self.presence.resumable(id, now);
        let since = horizon::resumes_from(last_event_id, judge);
        if let Err(why) = since {
            self.counters.add(why.counter(), 1);
        }
        let kind = match since {
            Ok(_) => Counter::ResumesPartial,
            Err(_) => Counter::ResumesFull,
        };
        self.counters.add(kind, 1);
        since.ok()
    }

    /// Whether there is room for those of these users who have neither a slot nor a name here.
    pub(in crate::engine) fn names_fit(&self, users: &[UserBuf]) -> bool {
        let watches = &self.conns.watches;
        let room = self.settings.names_bytes_max;
        let room = room.saturating_sub(watches.names_bytes());
        let bytes = |user: &UserBuf| user.as_str().len() + NAME_BYTES;
        // All of them seldom need more than there is, and then nobody is looked up.
        if users.iter().map(bytes).sum::<usize>() <= room {
            return true;
        }
        let is_new = |user: &&UserBuf| {
            watches.find_name(user.as_str()).is_none()
                && self.presence.lookup(user.user()).is_none()
        };
        users.iter().filter(is_new).map(bytes).sum::<usize>() <= room
    }

    fn say_hello(&mut self, id: ConnId, pending: &Pending, new: &NewStream, now: Now) {
        let mut more = Vec::new();
        let room = MORE_BYTES + self.settings.outbox_bytes_max - OUTBOX_BYTES_FLOOR;
        new.refused.write(room, &mut more);
        let left = room.saturating_sub(more.len());
        new.ignored.write(left, &mut more);
        let hello = sse::Hello {
            stream: &self.id_of(id),
            watching: self.conns.watches.of(id.index),
            server_time: now.unix.ms(),
            beat_interval_ms: self.settings.beat_interval_ms,
            offline_after_ms: self.settings.offline_after_ms,
            keep_alive_ms: self.settings.keep_alive_ms,
            retry_ms: self
                .random
                .u64(self.settings.retry_ms..=self.settings.retry_ms_max()),
            more: &more,
            by_holder: new.is_by_holder(),
        };
        let conn = self.conns.at(id.index);
        // At once: a buffer that grows while others do leaves holes of all sizes.
        let out = &mut conn.io().unsent;
        out.reserve(HELLO_BYTES + more.len());
        write_answer(out, &Answer::stream(), &pending.asker, &self.date);
        if !pending.asker.http10 {
            conn.begin_chunks();
        }
        conn.say(|out| hello.write(out));
        self.counters.add(Counter::EventsHello, 1);
    }

    /// Refuses a stream for load in the one way after which an EventSource comes back: 200, a long
    /// jittered `retry:`, the event `overloaded`, and the end.
    pub(in crate::engine) fn refuse_stream(
        &mut self,
        id: ConnId,
        pending: &Pending,
        why: &str,
        now: Now,
    ) {
        let retry_ms = match self.passes.is_draining() {
            true => self.away_ms(now),
            false => self.wide_retry_ms(),
        };
        let mut body = Vec::new();
        sse::write_overloaded(retry_ms, why, &mut body);
        if !pending.asker.head_only {
            self.counters.add(Counter::EventsOverloaded, 1);
        }
        self.send(id.index, pending, &Answer::events(body));
        self.conns
            .end(id, Counter::ClosedOverloaded, now.mono, &mut self.counters);
    }

    /// A reconnect delay that spreads a crowd over ten times the usual one.
    pub(in crate::engine) fn wide_retry_ms(&mut self) -> u64 {
        let base = self.settings.retry_ms;
        base + self.random.u64(0..=base.saturating_mul(10))
    }

    /// What a user id stands for on this shard: its slot, or its name until it has one. Those who
    /// watch by a name that has got a slot, of which the news is still to come, watch the slot from
    /// here on: a user is watched as one of the two by all.
    pub(in crate::engine) fn target(&mut self, user: User<'_>) -> Target {
        let target = match self.presence.lookup(user) {
            Some(slot) => {
                self.conns.watches.resolve(user.as_str(), slot.index());
                Target::slot(slot.index())
            }
            None => self.conns.watches.name(user),
        };
        self.ask_if_unsure(user.as_str(), target);
        target
    }
}
