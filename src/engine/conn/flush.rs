//! Which connections are flushed, and what a write comes to.
//!
//! Owns the queue's verbs: who has something to say is queued by what gives it something to say.
//! Never encodes a state.

use super::life::{Conns, Flushing};
use crate::metrics::{Counter, Counters};
use crate::realtime::outbox::{Written, book};
use crate::realtime::watches::{MarkCount, Target};
use crate::realtime::{ConnId, Phase};
use crate::slot::Slot;
use crate::time::Mono;

/// What is to be done with a connection all of whose bytes are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) enum Flushed {
    /// Nothing, or it has been done.
    Done,
    /// Requests waited for that: they are served now.
    ServeHeld,
}

impl Conns {
    /// Has one flushed if there is something to write to it, said since `since`.
    pub(in crate::engine) fn queue_if_due(&mut self, index: u32, since: Mono) {
        let conn = self.table.at(index);
        if conn.is_owed() || self.watches.marks(index) > 0 {
            self.queue.push(index, conn, since);
        }
    }

    /// Has one flushed.
    pub(super) fn queue(&mut self, index: u32, since: Mono) {
        self.queue.push(index, self.table.at(index), since);
    }

    /// Marks a publisher for some `max` of those who watch it, from the stream at `from` on, and
    /// has them flushed: without event ids while the publisher is in doubt. Returns also where to
    /// go on.
    pub(in crate::engine) fn mark_some(
        &mut self,
        slot: u32,
        from: u32,
        max: usize,
        since: Mono,
    ) -> (MarkCount, Option<u32>) {
        let (queue, table) = (&mut self.queue, &mut self.table);
        let in_doubt = self.presence.is_stale(Slot::new(slot));
        self.watches.mark_some(slot, from, max, |index| {
            let conn = table.at(index);
            if in_doubt {
                conn.set_unsure(true);
            }
            queue.push(index, conn, since);
        })
    }

    /// Some `max` of those who watch a slot watch `to` instead, and are flushed. Returns how many.
    pub(in crate::engine) fn move_watchers(
        &mut self,
        slot: u32,
        to: Target,
        max: usize,
        since: Mono,
    ) -> usize {
        let (queue, table) = (&mut self.queue, &mut self.table);
        self.watches.move_from_slot(slot, to, max, |conn| {
            queue.push(conn, table.at(conn), since)
        })
    }

    /// Those who watch this user by name may be told that it was never seen, and are flushed.
    pub(in crate::engine) fn answer_name(&mut self, user: &str, since: Mono) {
        let (queue, table) = (&mut self.queue, &mut self.table);
        self.watches
            .answer(user, |conn| queue.push(conn, table.at(conn), since));
    }

    /// The socket takes bytes again.
    pub(in crate::engine) fn writable(&mut self, id: ConnId, now: Mono) {
        if let Some(conn) = self.table.get_mut(id) {
            conn.unblock();
            self.queue_if_due(id.index, now);
        }
    }

    /// The next one to flush, and since when it has something to say.
    pub(in crate::engine) fn next_flush(&mut self) -> Option<(ConnId, Mono)> {
        self.queue.pop(&mut self.table)
    }

    /// The place of the one that is likely to be flushed next.
    pub(in crate::engine) fn expected_flush(&self) -> Option<u32> {
        self.queue.first()
    }

    /// Nobody is to be flushed.
    pub(in crate::engine) fn is_flushed(&self) -> bool {
        self.queue.is_empty()
    }

    /// How many are to be flushed.
    pub(in crate::engine) fn awaiting_flush(&self) -> usize {
        self.queue.len()
    }

    /// So many bytes are offered to its socket: of its own, or of the buffer that all share.
    pub(in crate::engine) fn offer(&mut self, conn: ConnId, shared: bool, offered_bytes: usize) {
        self.flushing = Some(Flushing {
            conn,
            shared,
            offered_bytes,
        });
    }

    /// The socket took the first `n` bytes of what was offered; `shared` is the buffer of all.
    pub(in crate::engine) fn wrote(
        &mut self,
        id: ConnId,
        n: usize,
        shared: &[u8],
        now: Mono,
        counters: &mut Counters,
    ) -> Flushed {
        let Some(flushing) = self.flushing.take() else {
            return Flushed::Done;
        };
        let Some(conn) = self.table.get_mut(id).filter(|_| flushing.conn == id) else {
            return Flushed::Done;
        };
        let n = n.min(flushing.offered_bytes);
        counters.add(Counter::Flushes, 1);
        counters.add(Counter::BytesOut, n as u64);
        let written = book(conn, flushing.shared.then_some(shared), n, now);
        if n > 0 && conn.phase() == Phase::Streaming {
            conn.moment = self.timers.tick_at(now);
        }
        match written {
            Written::All => self.flushed(id, now, counters),
            Written::Some => {
                counters.add(Counter::FlushesPartial, 1);
                let stall = self.timers.tick_in(now, self.settings.write_stall_max_ms);
                self.timers.set_sooner(id.index, stall);
                Flushed::Done
            }
        }
    }

    /// All that was offered is written: what now?
    pub(in crate::engine) fn flushed(
        &mut self,
        id: ConnId,
        now: Mono,
        counters: &mut Counters,
    ) -> Flushed {
        let conn = self.table.at(id.index);
        match conn.phase() {
            Phase::Closing => self.finish(id, now),
            Phase::Idle | Phase::Reading if conn.is_paused() => return Flushed::ServeHeld,
            // It said its last while its request was with another shard.
            Phase::Idle if conn.has_hung_up() => self.end(id, Counter::ClosedPeer, now, counters),
            _ => self.queue_if_due(id.index, now),
        }
        Flushed::Done
    }
}
