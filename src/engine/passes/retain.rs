//! Users who have been silent for so long that they are forgotten (`--forget-after`).
//!
//! Owns how far the look over a shard's own slots has come. It is slow on purpose: a clock that is
//! wrong by years would have everybody forgotten, and whoever watches the metrics must have time to
//! stop it. Never forgets anybody itself.

use crate::presence::Presence;
use crate::slot::{CHUNK_SLOTS, Slot};
use crate::time::Unix;

/// Users whom one look gives up at most; there is one look in each sweep interval.
const FORGOTTEN_PER_LOOK: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Retaining {
    /// The next slot to look at.
    slot: u32,
}

impl Retaining {
    /// Looks at one chunk of those that belong to `shard` of `shards`; gives those who are offline
    /// and of whom nothing has been heard since `before`.
    pub(super) fn look(
        &mut self,
        presence: &Presence,
        shard: u16,
        shards: u16,
        before: Unix,
    ) -> Vec<Slot> {
        let users = presence.users();
        let chunk = self.slot / CHUNK_SLOTS;
        if self.slot >= users || chunk % u32::from(shards) != u32::from(shard) {
            let next = (self.slot / CHUNK_SLOTS + 1) * CHUNK_SLOTS;
            let own = (next / CHUNK_SLOTS..).find(|n| n % u32::from(shards) == u32::from(shard));
            let own = own.unwrap_or(0) * CHUNK_SLOTS;
            self.slot = if own < users {
                own
            } else {
                u32::from(shard) * CHUNK_SLOTS
            };
            if self.slot >= users {
                return Vec::new();
            }
        }
        let end = (self.slot / CHUNK_SLOTS + 1) * CHUNK_SLOTS;
        let mut found = Vec::new();
        for slot in (self.slot..end.min(users)).map(Slot::new) {
            if found.len() == FORGOTTEN_PER_LOOK {
                self.slot = slot.index();
                return found;
            }
            if presence.is_silent_since(slot, before) {
                found.push(slot);
            }
        }
        self.slot = end;
        found
    }
}
