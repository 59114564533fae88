//! Tokens that have been revoked: whose streams end.
//!
//! Owns the pass over all streams that finds theirs: of each, 12 bytes are looked at. Another
//! token's stream may end with them by chance, and comes back. Never says who is revoked: `auth`
//! keeps that.

use std::ops::Range;

use hashbrown::HashMap;

use super::pass::Round;
use crate::engine::conn::permits::{Origin, Steps, Tag};
use crate::time::Unix;

/// Revocations for which streams are looked for at once; others wait.
const MEANT_MAX: usize = 65_536;
/// Read of the journal in one call: a hash each.
const READ_PER_CALL: usize = 4_096;

#[derive(Debug)]
pub(in crate::engine) struct Revoking {
    meant: HashMap<Tag, Meant, foldhash::fast::RandomState>,
    /// As far as the journal has been read.
    read: u64,
    round: Round,
}

#[derive(Clone, Copy, Debug)]
struct Meant {
    /// Tokens that were made before.
    before: Unix,
    /// When so many places have been seen, all streams that were open have been.
    until: u64,
}

impl Revoking {
    /// The journal is read from there on.
    pub(super) fn new(read: u64) -> Revoking {
        Revoking {
            meant: HashMap::default(),
            read,
            round: Round::default(),
        }
    }

    /// From where on the journal is to be read, and how much of it now, where it ends at `end`.
    pub(in crate::engine) fn unread(&self, end: u64) -> Option<(u64, usize)> {
        let room = (MEANT_MAX - self.meant.len()).min(READ_PER_CALL);
        (self.read < end && room > 0).then_some((self.read, room))
    }

    /// The journal has been read as far as that.
    pub(in crate::engine) fn has_read(&mut self, to: u64) {
        self.read = to;
    }

    /// Streams end that are open among so many places by now, of tokens made before `before`.
    pub(in crate::engine) fn begin(&mut self, tag: Tag, before: Unix, places: u32) {
        let until = self.round.until(places);
        let meant = self.meant.entry(tag).or_insert(Meant { before, until });
        meant.before = meant.before.max(before);
        meant.until = until;
    }

    /// Whether a stream of this token ends.
    pub(in crate::engine) fn ends(&self, origin: Origin, steps: Steps, now: Unix) -> bool {
        let is_meant = |tag: Tag| {
            let meant = self.meant.get(&tag);
            meant.is_some_and(|meant| origin.is_from_before(meant.before, steps, now))
        };
        is_meant(origin.holder()) || origin.token().is_some_and(is_meant)
    }

    /// Something is left to look at.
    pub(super) fn is_under_way(&self) -> bool {
        !self.meant.is_empty()
    }

    /// The places to look at now.
    pub(in crate::engine) fn step(&mut self, places: u32) -> Range<u32> {
        // Those whose streams have all been seen, by the call before.
        let seen = self.round.seen();
        self.meant.retain(|_, meant| meant.until > seen);
        if self.meant.is_empty() {
            self.meant.shrink_to_fit();
            return 0..0;
        }
        self.round.step(places)
    }
}
