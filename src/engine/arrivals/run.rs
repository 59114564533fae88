//! What a shard does with new users: it makes them at their rate, and tries again those who wait.
//!
//! Owns no state: the file beside does.

use crate::engine::parts::Engine;
use crate::metrics::Counter;
use crate::presence::InternFault;
use crate::realtime::ConnId;
use crate::slot::Slot;
use crate::time::Now;
use crate::wire::User;

/// Streams whose holders are tried again in one call.
const TRIED_PER_CALL: usize = 256;

impl Engine {
    /// The slot of a user whom a request names, made if need be and the rates allow.
    ///
    /// Errors: it has to be made and there is no room, or too many were made lately.
    pub(in crate::engine) fn take_in(
        &mut self,
        user: User<'_>,
        now: Now,
    ) -> Result<Slot, InternFault> {
        if let Some(slot) = self.presence.lookup(user) {
            return Ok(slot);
        }
        if !self.takes_new(now) {
            self.counters.add(Counter::LimitNewUsersOfConn, 1);
            return Err(InternFault::TooFast);
        }
        let made = self.presence.intern_in_time(user, now.mono);
        if made == Err(InternFault::TooFast) {
            self.counters.add(Counter::LimitNewUsers, 1);
        }
        made
    }

    /// Whether whose request is served may name one more user who may be new.
    pub(in crate::engine) fn takes_new(&mut self, now: Now) -> bool {
        let per_second = self.settings.new_users_per_conn_second_max as u32;
        self.arrivals.takes(per_second, now.mono)
    }

    /// Tries some of the streams' holders again who could not be made before.
    pub(in crate::engine) fn try_holders(&mut self, now: Now) {
        self.arrivals.rest_if_due(now.mono);
        for _ in 0..TRIED_PER_CALL {
            if self.arrivals.due() > now.mono {
                return;
            }
            let Some((_, stream)) = self.arrivals.due.pop_front() else {
                return;
            };
            let Some(coming) = self.arrivals.waiting.get(&stream) else {
                continue;
            };
            let by_holder = coming.by_holder;
            if !self.conns.is_stream(stream) {
                self.arrivals.forget(stream);
                continue;
            }
            if by_holder {
                self.conns.ping(stream.index, now.mono);
            } else if let Some(slot) = self.try_holder(stream, now) {
                self.asked.push_back((stream, slot));
                continue;
            }
            let due = now.mono.plus_ms(self.settings.beat_interval_ms);
            self.arrivals.due.push_back((due, stream));
        }
    }

    /// Whether a stream's holder is yet to be made.
    pub(in crate::engine) fn awaits_holder(&self, stream: ConnId) -> bool {
        self.arrivals.waiting.contains_key(&stream)
    }

    /// Makes the holder of a stream that has waited for it a publisher; None: not yet.
    pub(in crate::engine) fn try_holder(&mut self, stream: ConnId, now: Now) -> Option<Slot> {
        let coming = self.arrivals.waiting.get(&stream)?;
        let (user, maker, by_holder) = (coming.user.clone(), coming.maker, coming.by_holder);
        self.arrivals.called_by(Some(maker));
        match self.take_in(user.user(), now) {
            Ok(slot) => {
                self.arrivals.forget(stream);
                self.begin_to_publish(stream, slot, by_holder);
                Some(slot)
            }
            Err(fault) => {
                self.book_intern_fault(fault);
                None
            }
        }
    }

    /// A stream makes its holder a publisher.
    pub(in crate::engine) fn begin_to_publish(
        &mut self,
        stream: ConnId,
        slot: Slot,
        by_holder: bool,
    ) {
        let conn = self.conns.at(stream.index);
        conn.set_publisher(slot.index());
        if by_holder {
            conn.leave_beats_to_holder();
        }
        self.conns.hold(stream.index);
        self.passes.logging_out.spare(slot, stream);
    }
}
