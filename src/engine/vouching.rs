//! Who is here: what is done with a stream whose turn has come.
//!
//! Owns the rule of what a stream proves. A holder that beats for itself is asked by a ping, and
//! proves itself by its answer (`calls/stream_beat.rs`). For any other the open socket stands, as
//! long as the peer's kernel acknowledges what is written to it; the driver asks the kernel. Costs
//! a ping an interval of the ones, a system call an interval of the others. Ends streams that have
//! lived for long.

use super::parts::Engine;
use crate::metrics::Counter;
use crate::planted::{self, Planted};
use crate::realtime::{ConnId, Phase};
use crate::slot::Slot;
use crate::time::{Mono, Now};
use crate::wire::sse;

/// Reconnect delay of a stream that has lived for long, in ms: nobody else is told to go with it,
/// and its holder shall not be missed.
const RENEW_RETRY_MS: std::ops::RangeInclusive<u64> = 100..=500;

impl Engine {
    /// The turn of a publisher's stream has come; in a hurry if its presence node may have lost
    /// beats.
    pub(super) fn stream_due(&mut self, id: ConnId, slot: Slot, hurried: bool, now: Now) {
        let conn = self.conns.at(id.index);
        if !hurried {
            conn.miss();
            // Of whom nothing has come for so long may be gone: another device's goodbye counts.
            let interval_ms = self.settings.beat_interval_ms;
            let silent_ms = u64::from(conn.missed()).saturating_mul(interval_ms);
            // A real-time node doubts that somebody is offline who is held: it lets go before the
            // presence node has counted the same silence to its end.
            let lead_ms = match self.upstream {
                Some(_) => interval_ms - 1,
                None => 0,
            };
            if silent_ms.saturating_add(lead_ms) >= self.settings.offline_after_ms {
                self.conns.release(id.index);
            }
        }
        let conn = self.conns.at(id.index);
        let by_holder = conn.beats_by_holder();
        if by_holder {
            self.conns.ping(id.index, now.mono);
        }
        if !by_holder || planted::is(Planted::HolderVouchedFor) {
            self.asked.push_back((id, slot));
        }
    }

    /// A publisher's stream of which the kernel is to be asked: see
    /// [`Engine::handle_acknowledged`], which answers before the next call.
    pub fn poll_asked(&mut self) -> Option<ConnId> {
        self.asked.front().map(|(id, _)| *id)
    }

    /// Whether the peer of [`Engine::poll_asked`]'s stream has acknowledged all that was written to
    /// it; else the time since it last acknowledged anything, in ms.
    pub fn handle_acknowledged(&mut self, unacknowledged_ms: Option<u64>, now: Now) {
        let Some((id, slot)) = self.asked.pop_front() else {
            return;
        };
        if !self.conns.is_stream(id) {
            return;
        }
        let written_ms = self.conns.written_ms_ago(id.index, now.mono);
        let silent = unacknowledged_ms.is_some_and(|ms| self.is_silent(ms, written_ms, now.mono));
        if silent {
            self.counters.add(Counter::LimitAck, 1);
            return;
        }
        self.conns.hear(id.index);
        self.vouch_for_stream(id, slot, Counter::BeatsStream, now);
    }

    /// Whether something written more than `ack_max_ms` ago is not acknowledged. When the oldest of
    /// it was written is not known, but a stream is never silent for longer than its keep-alive
    /// period: so it was by then after the last acknowledgement, and by now if nothing was written
    /// since.
    fn is_silent(&self, unacknowledged_ms: u64, written_ms: u64, now: Mono) -> bool {
        let settings = &self.settings;
        let longest_ms = settings.ack_max_ms + settings.keep_alive_ms;
        // After a stall of ours nothing was written for long, and it may be on its way.
        !self.passes.was_stalled(settings.ack_max_ms, now)
            && unacknowledged_ms >= settings.ack_max_ms
            && (written_ms >= settings.ack_max_ms || unacknowledged_ms >= longest_ms)
    }

    /// A fifth of the longest life is over for the stream at a place; ends one that is that old.
    pub(super) fn stream_ages(&mut self, index: u32, visits_max: u8, now: Now) {
        let Some(id) = self.conns.id_at(index) else {
            return;
        };
        let conn = self.conns.at(index);
        if conn.phase() != Phase::Streaming || conn.grow_older() < visits_max {
            return;
        }
        if conn.unsent_bytes() + sse::GOODBYE_BYTES_MAX <= self.settings.outbox_bytes_max {
            let retry_ms = self.random.u64(RENEW_RETRY_MS);
            conn.say(|out| sse::write_goodbye(retry_ms, "stream-life", out));
            self.counters.add(Counter::EventsGoodbye, 1);
        }
        self.counters.add(Counter::LimitStreamLife, 1);
        self.conns
            .end(id, Counter::ClosedLife, now.mono, &mut self.counters);
    }
}
