//! From marks to bytes.
//!
//! Owns the moment at which a state is encoded: when its stream is flushed, from the state as it is
//! then. A publisher's record is encoded once a turn and copied to each of its watchers. Never
//! keeps a state for anybody; marks are kept instead.

use super::horizon;
use super::parts::Engine;
use super::records::record_of;
use super::settings::{EVENT_BYTES_MAX, LINE_BYTES_MAX};
use crate::metrics::{Counter, Histogram};
use crate::planted::{self, Planted};
use crate::presence::{Presence, Transition};
use crate::realtime::watches::Marked;
use crate::slot::Slot;
use crate::status::Status;
use crate::time::{Mono, Now, Unix};
use crate::wire::User;
use crate::wire::record::{LastActive, Record};
use crate::wire::response::{CHUNK_BYTES_MAX, CHUNK_FRAME_BYTES, open_chunk};
use crate::wire::sse::{self, PING_BYTES_MAX};

/// The bytes of a snapshot block that are not records.
const SNAPSHOT_BYTES: usize = 64;

/// The record of a user without a slot: never seen, or in a follower not answered for yet.
fn unseen<'n>(presence: &Presence, user: User<'n>, answered: bool) -> Record<'n> {
    let status = if answered || !presence.is_follower() {
        Status::Offline
    } else {
        Status::Unknown
    };
    Record::timeless(user, status)
}

impl Engine {
    /// A transition has been decided here, or taken over from the node that decided it: this
    /// shard's watchers are told, and it is gathered for the others. What makes transitions ends
    /// here, so that none is forgotten.
    pub(super) fn decided(&mut self, transition: Transition, now: Now) {
        let kind = if transition.status.is_online() {
            Counter::TransitionsOnline
        } else {
            Counter::TransitionsOffline
        };
        self.counters.add(kind, 1);
        self.tell(transition, now.mono);
        self.posts.decide(transition, now.mono);
    }

    /// A publisher's state has changed: whoever watches it on this shard must be told. `at` is when
    /// it was decided.
    pub(super) fn tell(&mut self, transition: Transition, at: Mono) {
        let slot = transition.slot.index();
        if !planted::is(Planted::EncodedWhenMarked) {
            self.fanout.records.at.remove(&slot);
        }
        let resolves = transition.first && !planted::is(Planted::NameNeverResolved);
        // News that is late of somebody who is forgotten: the name would lead to a slot of which
        // this shard has let go.
        if resolves
            && self.conns.watches.named_len() > 0
            && !self.presence.is_leaving(transition.slot)
        {
            let user = self.presence.user(transition.slot);
            self.conns.watches.resolve(user.as_str(), slot);
        }
        self.mark_watchers(slot, at);
        if planted::is(Planted::EncodedWhenMarked) && self.conns.watches.is_watched(slot) {
            let unix = Unix::from_ms(u64::MAX);
            self.fanout.records.at.remove(&slot);
            self.fanout
                .records
                .get(slot, &self.presence, Now { mono: at, unix });
        }
        if transition.first {
            self.ask_if_told_unasked(transition.slot);
        }
    }

    /// Encodes what a stream must be told, as far as its outbox goes: behind its unsent bytes, or
    /// into the shared buffer.
    pub(super) fn encode(&mut self, index: u32, shared: bool, since: Mono, now: Now) {
        let outbox_bytes_max = self.conns.outbox_bytes_max();
        let conn = self.conns.at(index);
        let (mut out, sent_bytes) = if shared {
            self.fanout.shared.clear();
            (std::mem::take(&mut self.fanout.shared), 0)
        } else {
            let io = conn.io();
            (std::mem::take(&mut io.unsent), io.sent_bytes)
        };
        let waits = out.len() > sent_bytes;
        // One chunk a write: records are copied behind its head, and nothing is moved.
        let chunk = conn.is_chunked().then(|| open_chunk(&mut out));
        let begun = out.len();
        let end = sent_bytes + outbox_bytes_max;
        let end = end
            .saturating_sub(CHUNK_FRAME_BYTES)
            .min(begun + CHUNK_BYTES_MAX);
        if conn.is_told_snapshot() {
            self.encode_snapshot(index, end, &mut out, now);
        } else if self.conns.watches.marks(index) > 0
            && self.encode_changes(index, end, &mut out, now) > 0
        {
            self.counters
                .observe(Histogram::DeliveryLatency, now.mono.micros_since(since));
        }
        let conn = self.conns.at(index);
        let quiet = out.len() == begun && !waits;
        let room = out.len() + PING_BYTES_MAX <= end;
        // Its holder beats at each, so it comes whatever else was said, and later if need be.
        let asks = conn.beats_by_holder();
        let waits_for_room = asks && !quiet && !room;
        let due = !waits_for_room && conn.take_ping();
        if due && (quiet || asks) {
            sse::write_ping(now.unix, &mut out);
            self.counters.add(Counter::EventsPing, 1);
        }
        if let Some(chunk) = chunk {
            chunk.close(&mut out);
        }
        if shared {
            self.fanout.shared = out;
        } else {
            conn.io().unsent = out;
        }
    }

    /// Up to when a stream that is told all its marks now has been told everything; None if there
    /// is no telling.
    fn told_up_to(&mut self, index: u32, now: Now) -> Option<Unix> {
        let unanswered = self.conns.at(index).is_unsure() && self.awaits_answer(index);
        // A reader that came back elsewhere from that id would not be told of them.
        self.conns.at(index).set_unsure(unanswered);
        let source = horizon::source(self.known_up_to(now), unanswered, now);
        let told = self.horizon.told_up_to(source, self.telling.oldest(), now);
        if let Err(why) = told {
            self.counters.add(why.counter(), 1);
        }
        told.ok()
    }

    /// Returns how many were told.
    fn encode_changes(&mut self, index: u32, end: usize, out: &mut Vec<u8>, now: Now) -> u64 {
        let fits =
            self.conns.watches.marks(index) * EVENT_BYTES_MAX <= end.saturating_sub(out.len());
        let start = self.first_told(index, fits);
        let up_to = self.told_up_to(index, now);
        let (presence, records) = (&*self.presence, &mut self.fanout.records);
        let level = self.conns.at(index).last_active();
        let mut told = 0;
        let left = self.conns.watches.take_marks(index, start, |mark| {
            if out.len() + EVENT_BYTES_MAX > end {
                return planted::is(Planted::MarkClearedEarly);
            }
            let id = up_to.filter(|_| mark.last);
            match mark.of {
                Marked::Slot(slot) if level == LastActive::Exact => {
                    sse::write_presence_encoded(records.get(slot, presence, now), id, out)
                }
                // Few streams are told less than all, and an encoding is cheap beside a write.
                Marked::Slot(slot) => {
                    let record = record_of(presence, Slot::new(slot), now);
                    sse::write_presence(&record.told_at(level), id, out);
                }
                Marked::Name { user, answered } => {
                    sse::write_presence(&unseen(presence, user, answered), id, out);
                }
            }
            told += 1;
            true
        });
        self.counters.add(Counter::EventsPresence, told);
        self.book_told(told, left);
        told
    }

    fn encode_snapshot(&mut self, index: u32, end: usize, out: &mut Vec<u8>, now: Now) {
        let room = end.saturating_sub(out.len()).min(LINE_BYTES_MAX);
        let end = out.len() + room;
        if room < SNAPSHOT_BYTES + EVENT_BYTES_MAX {
            return;
        }
        let fits = self.conns.watches.marks(index) * EVENT_BYTES_MAX + SNAPSHOT_BYTES <= room;
        let start = self.first_told(index, fits);
        let id = self.told_up_to(index, now);
        let presence = &*self.presence;
        let level = self.conns.at(index).last_active();
        sse::write_snapshot_open(id.filter(|_| fits), out);
        let mut told = 0;
        let left = self.conns.watches.take_marks(index, start, |mark| {
            if out.len() + EVENT_BYTES_MAX + SNAPSHOT_BYTES > end {
                return false;
            }
            let record = match mark.of {
                Marked::Slot(slot) => record_of(presence, Slot::new(slot), now).told_at(level),
                Marked::Name { user, answered } => unseen(presence, user, answered),
            };
            sse::write_snapshot_append(&record, out);
            told += 1;
            true
        });
        // Only the last part says up to when everything has been told.
        sse::write_snapshot_close(id.filter(|_| left == 0 && !fits), out);
        if left == 0 {
            self.conns.at(index).end_snapshot();
        }
        self.counters.add(Counter::EventsSnapshot, 1);
        self.book_told(told, left);
    }

    /// Where in a stream's list to begin: anywhere, unless all can be told at once.
    fn first_told(&mut self, index: u32, fits: bool) -> usize {
        if fits {
            0
        } else {
            self.random.usize(..self.conns.watches.of(index).max(1))
        }
    }

    fn book_told(&mut self, told: u64, left: usize) {
        self.counters.add(Counter::StatesDelivered, told);
        if left > 0 {
            let limit = match self.conns.is_crowded() {
                true => Counter::LimitBufferBytes,
                false => Counter::LimitOutboxBytes,
            };
            self.counters.add(limit, 1);
        }
    }
}
