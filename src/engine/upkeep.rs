//! What happens because time passes: timers, sweep, vouching, resync, drain.
//!
//! Owns the cursors of the passes over a shard's connections and slots. Each call does a bounded piece of each; what is left over
//! makes the next turn begin at once. Never scans all of anything in one call.

use super::Engine;
use super::mail::{Decided, Mail};
use crate::metrics::Counter;
use crate::planted::{self, Planted};
use crate::presence::{Slot, SweepContext, Transition};
use crate::realtime::conn::flag;
use crate::realtime::{ConnId, Phase};
use crate::time::{Mono, Now, Unix};
use crate::wire::response::problems;
use crate::wire::sse;

/// Connections that one call fires, vouches for or drains.
const CONNS_PER_CALL: u32 = 8_192;
/// Longest sleep: a shard whose last turn is older than a few of these counts as stalled for the others.
const SLEEP_MS_MAX: u64 = 500;
/// Time between two steps of a drain.
const DRAIN_STEP_MS: u64 = 20;
/// How much older than the last mail seen a lost piece of mail's transitions may be, in ms.
const RESYNC_SLACK_MS: u64 = 60_000;
/// Longest goodbye block in bytes.
const GOODBYE_BYTES_MAX: usize = 256;

/// The cursors.
#[derive(Debug)]
pub(super) struct Upkeep {
    sweep_due: Mono,
    sweeping: bool,
    vouch: Pass,
    drain: Option<Pass>,
    drain_due: Mono,
    sleep_until: Mono,
    resync: Option<Resync>,
    /// Up to when this shard's mail has been complete.
    mail_complete: Unix,
    /// The last call left something over.
    backlog: bool,
}

/// A pass over the connection table that takes a given time.
#[derive(Clone, Copy, Debug)]
struct Pass {
    started: Mono,
    cursor: u32,
}

/// A pass over the published states because mail was lost.
#[derive(Clone, Copy, Debug)]
struct Resync {
    slot: u32,
    name: Option<usize>,
    floor: Unix,
}

impl Pass {
    /// How far the pass should have come at `now` if it takes `length_ms` over `places`, at most [`CONNS_PER_CALL`] further; and
    /// whether that is as far as it should be.
    fn target(&self, now: Mono, length_ms: u64, places: u32) -> (u32, bool) {
        let elapsed_ms = now.ms_since(self.started).min(length_ms);
        let due = if length_ms == 0 {
            places
        } else {
            (u128::from(places) * u128::from(elapsed_ms) / u128::from(length_ms)) as u32
        };
        let target = due.min(self.cursor.saturating_add(CONNS_PER_CALL));
        (target.max(self.cursor), target >= due)
    }
}

impl Upkeep {
    pub(super) fn new(now: Mono) -> Upkeep {
        Upkeep {
            sweep_due: now,
            sweeping: false,
            vouch: Pass {
                started: now,
                cursor: 0,
            },
            drain: None,
            drain_due: now,
            sleep_until: now,
            resync: None,
            mail_complete: Unix::from_ms(0),
            backlog: false,
        }
    }

    pub(super) fn has_backlog(&self) -> bool {
        self.backlog || self.sweeping || self.resync.is_some()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// When the next piece is due.
    pub(super) fn next(&self) -> Mono {
        let due = self.sweep_due.min(self.sleep_until);
        match self.drain {
            Some(_) => due.min(self.drain_due),
            None => due,
        }
    }

    pub(super) fn turn_began(&mut self, now: Mono) {
        self.sleep_until = now.plus_ms(SLEEP_MS_MAX);
    }

    /// Mail lost from here on may carry times after the step.
    pub(super) fn clock_stepped(&mut self, to: Unix) {
        self.mail_complete = self.mail_complete.min(to);
    }
}

impl Engine {
    /// Timers, sweep, vouching, resync, drain: a bounded piece of each. Call every turn.
    pub fn handle_timeout(&mut self, now: Now) {
        self.upkeep.backlog = false;
        self.fire_timers(now);
        // A sweep that takes longer than its interval is followed by the next one at once.
        if now.mono >= self.upkeep.sweep_due && !self.upkeep.sweeping {
            self.upkeep.sweep_due = now.mono.plus_ms(self.settings.sweep_interval_ms);
            self.sweep.begin();
            self.upkeep.sweeping = true;
        }
        self.vouch(now);
        if self.upkeep.sweeping {
            self.sweep_slice(now);
        }
        self.resync_slice(now);
        self.drain_step(now);
    }

    fn fire_timers(&mut self, now: Now) {
        for _ in 0..CONNS_PER_CALL {
            let Some(index) = self.timers.pop(now.mono) else {
                return;
            };
            if let Some(id) = self.conns.id_at(index) {
                self.fire(id, now);
            }
        }
        self.upkeep.backlog = true;
    }

    /// A connection's timer: is what it was set for due?
    fn fire(&mut self, id: ConnId, now: Now) {
        let stall_ms = self.settings.write_stall_max_ms;
        let reached = self.timers.reached(now.mono);
        let conn = self.conns.at(id.index);
        let ending = conn.phase() == Phase::Closing;
        let stalled_since = conn.io.as_ref().and_then(|io| io.stalled_since);
        let stall_due = stalled_since.map(|since| since.plus_ms(stall_ms));
        if stall_due.is_some_and(|due| now.mono >= due) {
            self.counters.add(Counter::LimitWriteStall, 1);
            self.counters.add(Counter::EvictedWriteStall, 1);
            // One that was ending has been counted with its reason.
            if !ending {
                self.counters.add(Counter::ClosedEvicted, 1);
            }
            return self.drop_conn(id);
        }
        let due = reached >= conn.moment;
        match conn.phase() {
            Phase::Streaming => {
                self.keep_alive(id, now);
                return self.look_sooner(id, stall_due);
            }
            Phase::Lingering => return self.drop_conn(id),
            // Its stall is not over; nothing else ends it.
            Phase::Closing if due => {
                conn.moment = self.timers.tick_in(now.mono, self.settings.write_stall_max_ms);
            }
            // It is neither idle nor slow to ask: its requests wait until it has read. Only a stall ends that.
            Phase::Idle | Phase::Reading if due && conn.has(flag::PAUSED) => {
                conn.moment = self.timers.tick_in(now.mono, self.settings.keep_alive_idle_ms);
            }
            Phase::Idle if due => {
                let idle = conn.has(flag::SERVED);
                let (limit, reason) = if idle {
                    (Counter::LimitKeepAliveIdle, Counter::ClosedIdle)
                } else {
                    (Counter::LimitRequestDeadline, Counter::ClosedDeadline)
                };
                self.counters.add(limit, 1);
                return self.end(id, reason, now);
            }
            Phase::Reading if due => {
                self.counters.add(Counter::LimitRequestDeadline, 1);
                let detail = "the request was not complete in time; its time is counted from its beginning";
                return self.fail(id, problems::REQUEST_TIMEOUT, detail, now);
            }
            Phase::Waiting if due => return self.abandon_edit(id, now),
            _ => {}
        }
        let moment = self.conns.at(id.index).moment;
        self.timers.set(id.index, moment);
        self.look_sooner(id, stall_due);
    }

    fn look_sooner(&mut self, id: ConnId, due: Option<Mono>) {
        if let Some(due) = due {
            let tick = self.timers.tick_at(due);
            self.timers.set_sooner(id.index, tick);
        }
    }

    /// A stream that has been silent for its time says a comment; one that has not is looked at again when it would have been.
    fn keep_alive(&mut self, id: ConnId, now: Now) {
        let period_ms = self.keep_alive_ms(id.index);
        let quiet_until = self.timers.later(self.conns.at(id.index).moment, period_ms);
        if self.timers.reached(now.mono) >= quiet_until {
            let conn = self.conns.at(id.index);
            conn.put(flag::COMMENT, true);
            self.queue.push(id.index, conn, now.mono);
            let next = self.timers.tick_in(now.mono, period_ms);
            self.timers.set(id.index, next);
        } else {
            self.timers.set(id.index, quiet_until);
        }
    }

    /// A stream's own keep-alive period: up to a quarter shorter, so that streams opened together do not speak together.
    pub(super) fn keep_alive_ms(&self, index: u32) -> u64 {
        let base = self.settings.keep_alive_ms;
        let spread = u64::from(index.wrapping_mul(0x9E37_79B9) >> 16);
        base - base / 4 * spread / 65_536
    }

    /// Vouches for the publishers of this shard's streams: all of them once in `beat_interval_ms`, evenly.
    fn vouch(&mut self, now: Now) {
        let places = self.conns.places();
        let interval_ms = self.settings.beat_interval_ms;
        let (target, enough) = self.upkeep.vouch.target(now.mono, interval_ms, places);
        for index in self.upkeep.vouch.cursor..target {
            let conn = self.conns.at(index);
            if let Some(slot) = conn
                .publisher()
                .filter(|_| conn.phase() == Phase::Streaming)
                .filter(|_| !planted::is(Planted::VouchedOnce))
            {
                let slot = Slot::new(slot);
                let outcome = self.presence.record_beat(slot, Unix::LATEST, now);
                self.book_beat(slot, outcome, Counter::BeatsStream, now);
            }
        }
        let vouch = &mut self.upkeep.vouch;
        vouch.cursor = target;
        self.upkeep.backlog |= !enough;
        let over_ms = now.mono.ms_since(vouch.started);
        if enough && over_ms >= interval_ms {
            // After a long silence the next pass starts now, not in the past.
            let started = if over_ms < 2 * interval_ms {
                vouch.started.plus_ms(interval_ms)
            } else {
                now.mono
            };
            *vouch = Pass { started, cursor: 0 };
        }
        self.settle(now);
    }

    fn context(&self, now: Now) -> SweepContext {
        SweepContext {
            now,
            offline_after_ms: self.settings.offline_after_ms,
            hold_expiries: self.silence.holds(now.mono),
        }
    }

    fn sweep_slice(&mut self, now: Now) {
        let slots_max = self.settings.sweep_slots_per_turn_max as u32;
        let context = self.context(now);
        let mut transitions = std::mem::take(&mut self.transitions);
        let done = self.sweep.slice(
            &self.presence,
            context,
            slots_max,
            TRANSITIONS_PER_SLICE,
            &mut transitions,
        );
        self.transitions = transitions;
        self.upkeep.sweeping = !done;
        self.counters.add(Counter::SweepSlots, self.sweep.take_slots_read());
        if done {
            self.counters.add(Counter::SweepCycles, 1);
        } else {
            self.counters.add(Counter::LimitSweepSlotsPerTurn, 1);
        }
        self.settle(now);
    }

    /// Looks at one of this shard's own slots now.
    pub(super) fn look_own(&mut self, slot: Slot, now: Now) {
        let context = self.context(now);
        self.sweep.look(&self.presence, context, slot, &mut self.transitions);
    }

    /// Tells this shard's watchers what has been decided, and gathers it for the others.
    pub(super) fn settle(&mut self, now: Now) {
        if self.transitions.is_empty() {
            return;
        }
        let mut transitions = std::mem::take(&mut self.transitions);
        for transition in &transitions {
            let kind = if transition.online {
                Counter::TransitionsOnline
            } else {
                Counter::TransitionsOffline
            };
            self.counters.add(kind, 1);
            self.tell(*transition, now.mono);
        }
        self.posts.decide(&transitions, now.mono);
        transitions.clear();
        self.transitions = transitions;
    }

    /// Mail from another shard.
    pub fn handle_mail(&mut self, mail: Mail, now: Now) {
        self.counters.add(Counter::MailReceived, 1);
        self.upkeep.mail_complete = now.unix;
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
                self.settle(now);
            }
            Mail::Edit(edit) => {
                let outcome = self.apply_edit(&edit, now);
                let (shard, conn) = edit.asker;
                self.posts.letter(shard, Mail::Edited { conn, outcome });
            }
            Mail::Edited { conn, outcome } => self.finish_edit(conn, outcome, now),
        }
    }

    /// Mail that the addressee's full mailbox did not take and that somebody waits for.
    pub fn handle_bounced(&mut self, mail: Mail, now: Now) {
        if let Mail::Edit(edit) = mail {
            self.finish_edit(edit.asker.1, super::EditOutcome::Busy, now);
        }
    }

    /// This shard's mailbox overflowed: reads the published states anew instead of the mail that was lost.
    pub fn handle_resync(&mut self, _now: Now) {
        self.counters.add(Counter::Resyncs, 1);
        self.counters.add(Counter::LimitMailbox, 1);
        let floor = self.upkeep.mail_complete.minus_ms(RESYNC_SLACK_MS);
        let floor = self.upkeep.resync.map_or(floor, |resync| resync.floor.min(floor));
        self.upkeep.resync = Some(Resync {
            slot: 0,
            name: Some(0),
            floor,
        });
    }

    fn resync_slice(&mut self, now: Now) {
        let Some(mut resync) = self.upkeep.resync else {
            return;
        };
        if let Some(from) = resync.name {
            self.resync_names(from, &mut resync, now);
        } else {
            let end = self.presence.users().min(resync.slot.saturating_add(CONNS_PER_CALL));
            for slot in (resync.slot..end).map(Slot::new) {
                let state = self.presence.state(slot, now);
                let told = !planted::is(Planted::DeafResync);
                if told && state.since.is_some_and(|since| since > resync.floor) {
                    self.tell(
                        Transition {
                            slot,
                            online: state.online,
                            first: false,
                        },
                        now.mono,
                    );
                }
            }
            resync.slot = end;
        }
        let done = resync.name.is_none() && resync.slot >= self.presence.users();
        self.upkeep.resync = (!done).then_some(resync);
    }

    /// Names that have got a slot since: the first transition that would have said so may be lost.
    fn resync_names(&mut self, from: usize, resync: &mut Resync, now: Now) {
        let mut found = Vec::new();
        let presence = &self.presence;
        resync.name = self.watches.names_from(from, CONNS_PER_CALL as usize, |name| {
            let slot = crate::wire::User::parse(name.as_bytes())
                .ok()
                .and_then(|user| presence.lookup(user));
            found.extend(slot);
        });
        for slot in found {
            let online = self.presence.state(slot, now).online;
            self.tell(
                Transition {
                    slot,
                    online,
                    first: true,
                },
                now.mono,
            );
        }
    }

    /// Graceful shutdown: streams are closed one after the other over `drain_ms`, with a wide `retry:`.
    pub fn begin_drain(&mut self, now: Now) {
        if self.upkeep.drain.is_none() {
            self.upkeep.drain = Some(Pass {
                started: now.mono,
                cursor: 0,
            });
            self.upkeep.drain_due = now.mono;
        }
    }

    /// No connection is left.
    pub fn is_drained(&self) -> bool {
        self.upkeep.is_draining() && self.conns.is_empty()
    }

    fn drain_step(&mut self, now: Now) {
        let Some(drain) = self.upkeep.drain.filter(|_| now.mono >= self.upkeep.drain_due) else {
            return;
        };
        let (target, enough) = drain.target(now.mono, self.settings.drain_ms, self.conns.places());
        for index in drain.cursor..target {
            if let Some(id) = self.conns.id_at(index) {
                self.drain_conn(id, now);
            }
        }
        // At the end it goes round again: for who was answered, or accepted, behind the cursor.
        let round_again = target >= self.conns.places() && now.mono.ms_since(drain.started) >= self.settings.drain_ms;
        self.upkeep.drain = Some(Pass {
            cursor: if round_again { 0 } else { target },
            ..drain
        });
        self.upkeep.drain_due = now.mono.plus_ms(if enough { DRAIN_STEP_MS } else { 0 });
    }

    fn drain_conn(&mut self, id: ConnId, now: Now) {
        let retry_ms = self.wide_retry_ms();
        let outbox_bytes_max = self.settings.outbox_bytes_max;
        let conn = self.conns.at(id.index);
        match conn.phase() {
            Phase::Streaming => {
                if conn.unsent_bytes() + GOODBYE_BYTES_MAX <= outbox_bytes_max {
                    sse::write_goodbye(retry_ms, &mut conn.io().unsent);
                    self.counters.add(Counter::EventsGoodbye, 1);
                }
                self.end(id, Counter::ClosedDrain, now);
            }
            Phase::Idle if !conn.has(flag::PAUSED) => self.end(id, Counter::ClosedDrain, now),
            // Whoever has a request under way is answered, and told to close.
            _ => {}
        }
    }
}

/// Transitions that one sweep slice decides at most; the rest is found by the next slice.
const TRANSITIONS_PER_SLICE: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_even_and_bounded() {
        let start = Mono::default().plus_ms(1_000);
        let mut pass = Pass {
            started: start,
            cursor: 0,
        };
        assert_eq!(pass.target(start, 10_000, 100), (0, true));
        assert_eq!(pass.target(start.plus_ms(2_500), 10_000, 100), (25, true));
        assert_eq!(pass.target(start.plus_ms(99_000), 10_000, 100), (100, true));
        assert_eq!(
            pass.target(start.plus_ms(99_000), 10_000, 1_000_000),
            (CONNS_PER_CALL, false)
        );
        // The table has grown: the places passed over are made up for.
        pass.cursor = 25;
        assert_eq!(pass.target(start.plus_ms(2_500), 10_000, 400), (100, true));
        assert_eq!(pass.target(start, 0, 7), (25, true));
    }
}
