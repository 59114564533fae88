//! Deadlines of connections: requests, idle ones, keep-alives, stalls.
//!
//! Owns what a connection's timer means; when it fires is the wheel's (`realtime/timers.rs`).

use super::life::Conns;
use crate::metrics::{Counter, Counters};
use crate::realtime::timers::Tick;
use crate::realtime::{ConnId, Phase};
use crate::time::Mono;

/// What a timer has found that is more than a connection's own affair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) enum Overdue {
    /// A request that has not come whole in its time, or that has waited for so long to be served.
    Request(ConnId),
    /// A request that waits for another shard, which has not answered in time.
    Parked(ConnId),
    /// A stream whose token is void.
    Permit(ConnId),
}

/// What one look at the timers came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) enum Fired {
    /// No timer is due any more.
    Nothing,
    /// One was due, and is seen to.
    SeenTo,
    /// One was due, and somebody is to be answered.
    Overdue(Overdue),
}

impl Conns {
    /// Sees to the next timer that is due.
    pub(in crate::engine) fn fire(&mut self, now: Mono, counters: &mut Counters) -> Fired {
        let Some(index) = self.timers.pop(now) else {
            return Fired::Nothing;
        };
        match self
            .table
            .id_at(index)
            .and_then(|id| self.see_to(id, now, counters))
        {
            Some(overdue) => Fired::Overdue(overdue),
            None => Fired::SeenTo,
        }
    }

    /// When the first timer fires.
    pub(in crate::engine) fn next_timer(&self) -> Mono {
        self.timers.next()
    }

    /// Looks at one at `due`, or when it has stalled for too long if that is sooner. One whose
    /// socket takes bytes again stalls no more, whatever it has yet to be written: the write that
    /// is cut short sets the timer anew.
    pub(super) fn look_at(&mut self, index: u32, due: Tick) {
        self.timers.set(index, due);
        if let Some(permit) = self.permits.of(index) {
            self.timers.set_sooner(index, permit.until);
        }
        let conn = self.table.at(index);
        let blocked = conn.is_blocked();
        let since = conn.io.as_ref().and_then(|io| io.stalled_since);
        if let Some(since) = since.filter(|_| blocked) {
            let stall = since.plus_ms(self.settings.write_stall_max_ms);
            let stall = self.timers.tick_at(stall);
            self.timers.set_sooner(index, stall);
        }
    }

    /// A stream's own keep-alive period: up to a quarter shorter, so that streams opened together
    /// do not speak together.
    pub(super) fn keep_alive_ms(&self, index: u32) -> u64 {
        let base = self.settings.keep_alive_ms;
        let spread = u64::from(index.wrapping_mul(0x9E37_79B9) >> 16);
        base - base / 4 * spread / 65_536
    }

    /// Says a ping on a stream, however lately it was written to.
    pub(in crate::engine) fn ping(&mut self, index: u32, now: Mono) {
        self.table.at(index).owe_ping();
        self.queue(index, now);
    }

    /// Time since a stream was last written to, in ms, less up to two ticks.
    pub(in crate::engine) fn written_ms_ago(&mut self, index: u32, now: Mono) -> u64 {
        let written = self.table.at(index).moment;
        self.timers.ms_since(written, now)
    }

    /// Is what a connection's timer was set for due?
    fn see_to(&mut self, id: ConnId, now: Mono, counters: &mut Counters) -> Option<Overdue> {
        if self.has_stalled(id, now) {
            counters.add(Counter::LimitWriteStall, 1);
            counters.add(Counter::EvictedWriteStall, 1);
            // One that was ending has been counted with its reason.
            if !self.table.at(id.index).is_ending() {
                counters.add(Counter::ClosedEvicted, 1);
            }
            self.reset(id);
            return None;
        }
        let due = self.timers.reached(now) >= self.table.at(id.index).moment;
        let conn = self.table.at(id.index);
        let again_ms = match conn.phase() {
            Phase::Streaming => {
                let permit = self.permits.of(id.index);
                if permit.is_some_and(|permit| permit.until <= self.timers.reached(now)) {
                    return Some(Overdue::Permit(id));
                }
                self.keep_alive(id.index, now);
                return None;
            }
            Phase::Lingering => {
                self.cut(id);
                return None;
            }
            _ if !due => None,
            // Its stall is not over; nothing else ends it.
            Phase::Closing => Some(self.settings.write_stall_max_ms),
            // It is neither idle nor slow to ask: its requests wait until it has read. Only a stall
            // ends that.
            Phase::Idle | Phase::Reading if conn.is_paused() => {
                Some(self.settings.keep_alive_idle_ms)
            }
            Phase::Idle => {
                let (limit, reason) = if conn.was_served() {
                    (Counter::LimitKeepAliveIdle, Counter::ClosedIdle)
                } else {
                    (Counter::LimitRequestDeadline, Counter::ClosedDeadline)
                };
                counters.add(limit, 1);
                self.end(id, reason, now, counters);
                return None;
            }
            Phase::Reading | Phase::Deferred => {
                counters.add(Counter::LimitRequestDeadline, 1);
                return Some(Overdue::Request(id));
            }
            Phase::Waiting => return Some(Overdue::Parked(id)),
            Phase::Free => None,
        };
        if let Some(ms) = again_ms {
            self.table.at(id.index).moment = self.timers.tick_in(now, ms);
        }
        let moment = self.table.at(id.index).moment;
        self.look_at(id.index, moment);
        None
    }

    /// Whether its peer has acknowledged nothing for too long. One whose socket takes bytes again
    /// has only yet to be written to.
    fn has_stalled(&mut self, id: ConnId, now: Mono) -> bool {
        let conn = self.table.at(id.index);
        let since = conn.io.as_ref().and_then(|io| io.stalled_since);
        conn.is_blocked()
            && since.is_some_and(|since| now >= since.plus_ms(self.settings.write_stall_max_ms))
    }

    /// A stream that has been silent for its time says a ping; one that has not is looked at
    /// again when it would have been.
    fn keep_alive(&mut self, index: u32, now: Mono) {
        let period_ms = self.keep_alive_ms(index);
        let quiet_until = self.timers.later(self.table.at(index).moment, period_ms);
        if self.timers.reached(now) >= quiet_until {
            self.table.at(index).owe_ping();
            self.queue(index, now);
            let next = self.timers.tick_in(now, period_ms);
            self.look_at(index, next);
        } else {
            self.look_at(index, quiet_until);
        }
    }
}
