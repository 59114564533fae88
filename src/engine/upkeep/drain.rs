//! Graceful shutdown.
//!
//! Owns the order in which connections end, spread over `drain_ms` so that their clients do not
//! come back together.

use super::Pass;
use crate::engine::Engine;
use crate::metrics::Counter;
use crate::realtime::{ConnId, Phase};
use crate::time::Now;
use crate::wire::sse;

/// Time between two steps of a drain.
const DRAIN_STEP_MS: u64 = 20;
/// Longest goodbye block in bytes.
const GOODBYE_BYTES_MAX: usize = 256;

impl Engine {
    /// Graceful shutdown: streams are closed one after the other over `drain_ms`, with a wide
    /// `retry:`.
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
        self.upkeep.is_draining() && self.conns.len() == 0
    }

    pub(super) fn drain_step(&mut self, now: Now) {
        let Some(drain) = self
            .upkeep
            .drain
            .filter(|_| now.mono >= self.upkeep.drain_due)
        else {
            return;
        };
        let (target, enough) = drain.target(now.mono, self.settings.drain_ms, self.conns.places());
        for index in drain.cursor..target {
            if let Some(id) = self.conns.id_at(index) {
                self.drain_conn(id, now);
            }
        }
        // At the end it goes round again: for who was answered, or accepted, behind the cursor.
        let round_again = target >= self.conns.places()
            && now.mono.ms_since(drain.started) >= self.settings.drain_ms;
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
                self.conns
                    .end(id, Counter::ClosedDrain, now.mono, &mut self.counters);
            }
            Phase::Idle if !conn.is_paused() => {
                self.conns
                    .end(id, Counter::ClosedDrain, now.mono, &mut self.counters)
            }
            // Whoever has a request under way is answered, and told to close.
            _ => {}
        }
    }
}
