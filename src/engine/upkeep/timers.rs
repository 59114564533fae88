//! Deadlines of connections: requests, idle ones, keep-alive comments, stalls.
//!
//! Owns what a connection's timer means; when it fires is the wheel's (`realtime/timers.rs`).

use super::CONNS_PER_CALL;
use crate::engine::Engine;
use crate::metrics::Counter;
use crate::realtime::conn::flag;
use crate::realtime::timers::Tick;
use crate::realtime::{ConnId, Phase};
use crate::time::Now;
use crate::wire::response::problems;

impl Engine {
    pub(super) fn fire_timers(&mut self, now: Now) {
        if self.upkeep.fires_at(now.mono) > now.mono {
            return;
        }
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
        // One whose socket takes bytes again has only yet to be written to.
        let stalled_since = conn
            .io
            .as_ref()
            .and_then(|io| io.stalled_since)
            .filter(|_| conn.has(flag::BLOCKED));
        if stalled_since.is_some_and(|since| now.mono >= since.plus_ms(stall_ms)) {
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
                return self.keep_alive(id, now);
            }
            Phase::Lingering => return self.drop_conn(id),
            // Its stall is not over; nothing else ends it.
            Phase::Closing if due => {
                conn.moment = self
                    .timers
                    .tick_in(now.mono, self.settings.write_stall_max_ms);
            }
            // It is neither idle nor slow to ask: its requests wait until it has read. Only a stall
            // ends that.
            Phase::Idle | Phase::Reading if due && conn.has(flag::PAUSED) => {
                conn.moment = self
                    .timers
                    .tick_in(now.mono, self.settings.keep_alive_idle_ms);
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
                let detail =
                    "the request was not complete in time; its time is counted from its beginning";
                return self.fail(id, problems::REQUEST_TIMEOUT, detail, now);
            }
            Phase::Waiting if due => return self.abandon_parked(id, now),
            _ => {}
        }
        let moment = self.conns.at(id.index).moment;
        self.look_at(id.index, moment);
    }

    /// Looks at a connection at `due`, or when it has stalled for too long if that is sooner.
    pub(in crate::engine) fn look_at(&mut self, index: u32, due: Tick) {
        self.timers.set(index, due);
        let stalled_since = self
            .conns
            .at(index)
            .io
            .as_ref()
            .and_then(|io| io.stalled_since);
        if let Some(since) = stalled_since {
            let stall = self
                .timers
                .tick_at(since.plus_ms(self.settings.write_stall_max_ms));
            self.timers.set_sooner(index, stall);
        }
    }

    /// A stream that has been silent for its time says a comment; one that has not is looked at
    /// again when it would have been.
    fn keep_alive(&mut self, id: ConnId, now: Now) {
        let period_ms = self.keep_alive_ms(id.index);
        let quiet_until = self.timers.later(self.conns.at(id.index).moment, period_ms);
        if self.timers.reached(now.mono) >= quiet_until {
            let conn = self.conns.at(id.index);
            conn.put(flag::COMMENT, true);
            self.queue.push(id.index, conn, now.mono);
            let next = self.timers.tick_in(now.mono, period_ms);
            self.look_at(id.index, next);
        } else {
            self.look_at(id.index, quiet_until);
        }
    }

    /// A stream's own keep-alive period: up to a quarter shorter, so that streams opened together
    /// do not speak together.
    pub(in crate::engine) fn keep_alive_ms(&self, index: u32) -> u64 {
        let base = self.settings.keep_alive_ms;
        let spread = u64::from(index.wrapping_mul(0x9E37_79B9) >> 16);
        base - base / 4 * spread / 65_536
    }
}
