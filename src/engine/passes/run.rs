//! What the passes say is due is done.
//!
//! Owns the order of what time brings. Each call does a bounded piece of each pass; what is left
//! over makes the next turn begin at once. Never scans all of anything in one call.

use super::aging::VISITS_MAX;
use super::resync::Resynced;
use super::vouch::Due;
use crate::engine::conn::timers::{Fired, Overdue};
use crate::engine::parts::Engine;
use crate::engine::role::Role;
use crate::engine::upstream::REVOUCH_MS;
use crate::metrics::Counter;
use crate::planted::{self, Planted};
use crate::presence::SweepContext;
use crate::realtime::{ConnId, Phase};
use crate::slot::Slot;
use crate::time::Now;
use crate::wire::sse;

/// Timers that one call sees to: each may end a stream, or answer somebody.
const FIRED_PER_CALL: u32 = 1_024;

/// Used tickets that are forgotten when a sweep is due.
const TICKETS_FORGOTTEN: usize = 1_024;

impl Engine {
    /// Timers, sweep, vouching, resync, drain: a bounded piece of each. Call every turn.
    pub fn handle_timeout(&mut self, now: Now) {
        self.passes.backlog = false;
        self.fire_timers(now);
        let interval_ms = self.settings.sweep_interval_ms;
        if let Some(identity) = &self.node.keyring.identity
            && self.passes.sweeping.due() <= now.mono
        {
            identity.tickets.forget_old(TICKETS_FORGOTTEN, now);
        }
        if self.passes.sweeping.begin_if_due(interval_ms, now.mono) {
            self.forget_the_silent(now);
            self.let_go(now);
        }
        if !self.silence.holds(now.mono) {
            self.heard.note_returned();
        }
        self.say_put_off(now);
        self.believe_overdue(now);
        self.end_logged_out(now);
        self.end_revoked(now);
        self.seek_streams(now);
        self.vouch(now);
        self.age(now);
        self.try_holders(now);
        self.sweep_slice(now);
        self.resync_slice(now);
        self.reask_slice(now);
        self.passes.backlog |= self.settle_doubts(now);
        self.tell_followers(now);
        self.drain_step(now);
    }

    fn fire_timers(&mut self, now: Now) {
        if self.passes.fires_at(now.mono) > now.mono {
            return;
        }
        for _ in 0..FIRED_PER_CALL {
            match self.conns.fire(now.mono, &mut self.counters) {
                Fired::Nothing => return,
                Fired::SeenTo => {}
                Fired::Overdue(Overdue::Parked(id)) => self.abandon_parked(id, now),
                Fired::Overdue(Overdue::Request(id)) => self.time_out(id, now),
                Fired::Overdue(Overdue::Permit(id)) => self.say_expired(id, now),
            }
        }
        self.passes.backlog = true;
    }

    /// Vouches for the publishers of this shard's streams: all of them once in `beat_interval_ms`,
    /// evenly.
    fn vouch(&mut self, now: Now) {
        let (places, interval_ms) = (self.conns.places(), self.settings.beat_interval_ms);
        let due = self.passes.vouching.due(places, interval_ms, now.mono);
        self.vouch_for_all(due, now);
        let mut at = 0;
        while let Some(due) = self
            .passes
            .vouching
            .hurried(at, places, REVOUCH_MS, now.mono)
        {
            self.vouch_for_all(due, now);
            at += 1;
        }
        self.passes
            .vouching
            .forget_hurried(places, REVOUCH_MS, now.mono);
    }

    fn vouch_for_all(&mut self, mut due: Due, now: Now) {
        while let Some((id, slot)) = due.next(&mut self.conns) {
            if self.passes.logging_out.concerns(slot) {
                // Its stream may be one of those that end; one that does not has a turn again.
                continue;
            }
            if due
                .of
                .is_none_or(|node| self.belongs_to(self.presence.user(slot), node))
            {
                self.stream_due(id, slot, due.of.is_some(), now);
            }
        }
        self.passes.backlog |= !due.enough;
    }

    /// Ends streams that have lived for the longest life, less up to a fifth.
    fn age(&mut self, now: Now) {
        let (places, life_ms) = (self.conns.places(), self.settings.stream_life_ms);
        let period_ms = life_ms / u64::from(VISITS_MAX);
        let visits = self.passes.aging.go_on(places, period_ms, now.mono);
        self.passes.backlog |= !visits.enough;
        for index in visits {
            self.stream_ages(index, VISITS_MAX, now);
        }
    }

    fn sweep_context(&self, now: Now) -> SweepContext {
        SweepContext {
            now,
            // What others pass on may wait there.
            offline_after_ms: self.settings.offline_after_ms + self.passing.lingers_ms(),
            // Who is sent away by a drain, or finds nobody, is silent for our sake.
            hold_expiries: self.silence.holds(now.mono) || self.drain_holds(),
        }
    }

    fn sweep_slice(&mut self, now: Now) {
        let slots_max = self.settings.sweep_slots_per_turn_max as u32;
        let context = self.sweep_context(now);
        let sweeping = &mut self.passes.sweeping;
        if let Some(swept) = sweeping.slice(&self.heard, context, slots_max) {
            self.counters.add(Counter::SweepSlots, swept.slots_read);
            self.counters.add(Counter::UsersFlapping, swept.flaps);
            let kind = match swept.done {
                true => Counter::SweepCycles,
                false => Counter::LimitSweepSlotsPerTurn,
            };
            self.counters.add(kind, 1);
            self.tell_decided(now);
        }
    }

    /// Looks at one of this shard's own slots now.
    pub(in crate::engine) fn look_own(&mut self, slot: Slot, now: Now) {
        let context = self.sweep_context(now);
        self.passes.sweeping.look(&self.heard, context, slot);
        let before = self.posts.heard.len();
        self.tell_decided(now);
        if self.posts.has_bridge() && self.posts.heard.len() == before {
            // Nothing has changed since the last look; but the fleet's word may have come between.
            self.posts.heard.push(slot);
        }
    }

    fn tell_decided(&mut self, now: Now) {
        let decided = self.passes.sweeping.take_decided();
        for transition in &decided {
            match self.node.role {
                // What is heard here is told when the fleet says so.
                Role::Fleet(_) => self.posts.heard.push(transition.slot),
                _ => self.decided(*transition, now),
            }
        }
        self.passes.sweeping.give_back(decided);
    }

    /// This shard's mailbox overflowed: reads the published states anew instead of the mail that
    /// was lost.
    pub fn handle_resync(&mut self, now: Now) {
        self.counters.add(Counter::Resyncs, 1);
        self.counters.add(Counter::LimitMailbox, 1);
        let floor = self.horizon.mail_lost();
        if self.passes.resyncing.begin(floor) {
            // Answers may have been among what was lost.
            self.reask_rest(now);
        }
    }

    /// Some of those who have been silent for longer than anybody is kept.
    fn forget_the_silent(&mut self, now: Now) {
        let after_ms = self.settings.forget_after;
        if after_ms == 0 || self.presence.is_follower() || self.silence.holds(now.mono) {
            return;
        }
        let before = now.unix.minus_ms(after_ms);
        let (shard, shards) = (self.node.shard, self.node.shards);
        let retaining = &mut self.passes.retaining;
        for slot in retaining.look(&self.presence, shard, shards, before) {
            // Busy, or a full disk: the next round finds them again.
            if self.forget_silent(slot, before, now).is_err() {
                return;
            }
        }
    }

    fn resync_slice(&mut self, now: Now) {
        let mut news = std::mem::take(&mut self.passes.news);
        let watches = &self.conns.watches;
        let resynced = self
            .passes
            .resyncing
            .slice(&self.presence, watches, &mut news, now);
        for transition in news.drain(..) {
            self.tell(transition, now.mono);
        }
        self.passes.news = news;
        match resynced {
            Resynced::Nothing => {}
            Resynced::Again => self.reask_rest(now),
            Resynced::Done => {
                self.horizon.resync_ended();
                self.resync_done();
            }
        }
    }

    /// Graceful shutdown: streams are closed one after the other over `drain_ms`, and told when to
    /// come back; all now if `at_once`. Nobody is expired from here on. Those who come meanwhile
    /// are answered and let go.
    pub fn begin_drain(&mut self, at_once: bool, now: Now) {
        let over_ms = if at_once { 0 } else { self.settings.drain_ms };
        // The kernel spreads streams over the shards.
        let crowd = self.conns.streams() as u64 * u64::from(self.node.shards);
        let spread_ms = self.settings.return_spread_ms(crowd);
        self.passes.draining.begin(over_ms, spread_ms, now.mono);
        self.presence
            .note_told_back(self.settings.away_ms_max(crowd), now);
    }

    /// No connection is left.
    pub fn is_drained(&self) -> bool {
        self.passes.is_draining() && self.conns.len() == 0
    }

    fn drain_holds(&self) -> bool {
        self.passes.is_draining() && !planted::is(Planted::ExpiredWhileDraining)
    }

    /// How long one who is sent away by the drain stays away, in ms: until the next start is there,
    /// if others can not see to them meanwhile.
    pub(in crate::engine) fn away_ms(&mut self, now: Now) -> u64 {
        if planted::is(Planted::AwayBeyondHold) {
            return self.wide_retry_ms();
        }
        let draining = &self.passes.draining;
        let jitter_ms = self.random.u64(0..=draining.spread_ms());
        let mut after_ms = self.settings.return_after_ms(draining.rest_ms(now.mono));
        if self.node.role.follows() {
            // The presence nodes know of no drain: half of what they wait for, so that one attempt
            // may be in vain.
            let least_ms = self.settings.return_after_ms(0);
            after_ms = after_ms
                .min(self.settings.offline_after_ms / 2)
                .max(least_ms);
        }
        after_ms + jitter_ms
    }

    fn drain_step(&mut self, now: Now) {
        let places = self.conns.places();
        for index in self.passes.draining.step(places, now.mono) {
            if let Some(id) = self.conns.id_at(index) {
                self.drain_conn(id, now);
            }
        }
    }

    fn drain_conn(&mut self, id: ConnId, now: Now) {
        let away_ms = self.away_ms(now);
        let past_hearing = self.passes.draining.is_past_hearing(now.mono);
        let conn = self.conns.at(id.index);
        // Of whom nothing has come for longer nothing is known.
        let publisher = conn.publisher().filter(|_| conn.missed() <= 1);
        match conn.phase() {
            Phase::Streaming => {
                if conn.unsent_bytes() + sse::GOODBYE_BYTES_MAX <= self.settings.outbox_bytes_max {
                    conn.say(|out| sse::write_goodbye(away_ms, "draining", out));
                    self.counters.add(Counter::EventsGoodbye, 1);
                }
                // The time in which presence nodes miss its holder begins now.
                if let Some(slot) = publisher.filter(|_| self.upstream.is_some()) {
                    self.vouch_for_stream(id, Slot::new(slot), Counter::BeatsStream, now);
                }
            }
            // What one asks that has just connected may be on its way.
            Phase::Idle if !conn.is_paused() && (conn.was_served() || past_hearing) => {}
            // One with a request under way is answered, and told to close.
            _ => return,
        }
        self.conns
            .end(id, Counter::ClosedDrain, now.mono, &mut self.counters);
    }
}
