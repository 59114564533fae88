//! Encoded records, and the buffers that flushes share.
//!
//! Owns a turn's encodings: a publisher's record is encoded once a turn and copied to each of its
//! watchers. Knows no stream.

use hashbrown::HashMap;

use super::settings::EVENT_BYTES_MAX;
use crate::planted::{self, Planted};
use crate::presence::Presence;
use crate::slot::Slot;
use crate::status::Status;
use crate::time::Now;
use crate::wire::record::Record;

/// Records for which room is kept.
const IDLE_RECORDS: usize = 1_024;
/// What turns need falls by one part in so many a turn.
const NEED_DECAY: usize = 64;
/// The buffers of a turn's flushes.
#[derive(Default)]
pub(super) struct Fanout {
    /// What is offered to a connection that has nothing unsent.
    pub(super) shared: Vec<u8>,
    pub(super) records: Records,
}

/// This turn's encoded records, by slot.
#[derive(Default)]
pub(super) struct Records {
    bytes: Vec<u8>,
    pub(super) at: HashMap<u32, (u32, u32), foldhash::fast::RandomState>,
    /// What turns need lately, in bytes and in records: the most, less a little each turn.
    need: [usize; 2],
}

impl Fanout {
    /// What was encoded for the last flush that needed no buffer of its own.
    pub(super) fn shared(&self) -> &[u8] {
        &self.shared
    }

    /// Forgets the last turn's encodings: `last_active` has moved on.
    pub(super) fn forget(&mut self) {
        if planted::is(Planted::EncodedWhenMarked) {
            return;
        }
        self.records.forget();
    }
}

impl Records {
    /// Forgets them, and gives back room that a burst took: clearing a map costs its room each
    /// time.
    fn forget(&mut self) {
        let used = [self.bytes.len(), self.at.len()];
        self.bytes.clear();
        self.at.clear();
        for (need, used) in self.need.iter_mut().zip(used) {
            *need = used.max(*need - need.div_ceil(NEED_DECAY));
        }
        let [bytes, records] = self.need;
        if self.bytes.capacity() > 4 * bytes.max(IDLE_RECORDS * EVENT_BYTES_MAX) {
            self.bytes.shrink_to(2 * bytes);
        }
        if self.at.capacity() > 4 * records.max(IDLE_RECORDS) {
            self.at.shrink_to(2 * records);
        }
    }

    pub(super) fn get(&mut self, slot: u32, presence: &Presence, now: Now) -> &[u8] {
        let (from, to) = *self.at.entry(slot).or_insert_with(|| {
            let from = self.bytes.len() as u32;
            record_of(presence, Slot::new(slot), now).write(&mut self.bytes);
            (from, self.bytes.len() as u32)
        });
        &self.bytes[from as usize..to as usize]
    }
}

/// A publisher's record, as it is now.
pub fn record_of(presence: &Presence, slot: Slot, now: Now) -> Record<'_> {
    let state = presence.state(slot, now);
    Record {
        user: presence.user(slot),
        status: state.status,
        since: state.since,
        last_active: state.last_active,
        stale: presence.is_stale(slot),
    }
}

/// What a real-time node is told of a slot. An erasure has its moment, for the id may have another
/// slot by now, of which the node may have been told first.
pub fn told_of(presence: &Presence, slot: Slot, now: Now) -> Record<'_> {
    let record = record_of(presence, slot, now);
    match presence.erased_since(slot) {
        None => record,
        since => Record {
            status: Status::Offline,
            since,
            last_active: None,
            ..record
        },
    }
}
