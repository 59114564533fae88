//! A walk over the published states, in slices: what stands in for a queue that was full, or that
//! ended with its process.
//!
//! Owns how far it has come, since when states are news, and who has been told meanwhile and need
//! not be told again. Tells nobody.

use roaring::RoaringBitmap;

use crate::presence::Presence;
use crate::slot::Slot;
use crate::time::{Now, Unix};

/// Slots that one slice looks at, eight bytes each: well within a millisecond.
const SLOTS_PER_SLICE: u32 = 1 << 16;
/// The turns of shards do not begin together, in ms.
pub(super) const SLACK_MS: u64 = 1_000;

#[derive(Debug)]
pub(super) struct Walk {
    /// The next slot.
    slot: u32,
    /// What was published since is to be told.
    from: Unix,
    /// The same, as far as the store's times can be trusted; None: it has not begun.
    news_since: Option<Unix>,
    /// Another walk must follow, from there on.
    again: Option<Unix>,
    /// Slots before which it has not come, and that have been told since it began.
    told: RoaringBitmap,
}

/// What a slice has found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) slots: Vec<Slot>,
    /// There is nothing behind it.
    pub(super) is_over: bool,
}

impl Walk {
    /// Not begun.
    pub(super) fn new(from: Unix) -> Walk {
        Walk {
            slot: 0,
            from,
            news_since: None,
            again: None,
            told: RoaringBitmap::new(),
        }
    }

    /// More is to be found, of which this walk may have passed some. True: another one follows for
    /// it that did not before.
    pub(super) fn again(&mut self, from: Unix) -> bool {
        // Whoever was told since may be among those.
        self.told.clear();
        if self.news_since.is_none() {
            self.from = self.from.min(from);
            return false;
        }
        let before = self.again;
        self.again = Some(before.map_or(from, |other| other.min(from)));
        before.is_none()
    }

    /// What it finds was published since.
    pub(super) fn from(&self) -> Unix {
        self.from
    }

    /// The same, of what must follow too.
    pub(super) fn earliest(&self) -> Unix {
        self.again.map_or(self.from, |again| again.min(self.from))
    }

    /// Decides which states are news, if it has not begun. True: all are, and that is worth a word.
    pub(super) fn begin(&mut self, presence: &Presence, now: Now) -> bool {
        if self.news_since.is_some() {
            return false;
        }
        let is_sure = presence.resumable(self.from, now).is_ok();
        let since = match is_sure {
            true => self.from.minus_ms(SLACK_MS),
            // Before the store was made, by a clock that has been set back, or before a power cut.
            false => Unix::from_ms(0),
        };
        self.news_since = Some(since);
        !is_sure && presence.users() > 0
    }

    /// Looks at a bounded piece; finds at most `most` of those who are `wanted`.
    pub(super) fn slice(
        &mut self,
        presence: &Presence,
        now: Now,
        most: usize,
        wanted: impl Fn(Slot) -> bool,
    ) -> Found {
        let since = self.news_since.unwrap_or_default();
        let users = presence.users();
        let end = users.min(self.slot.saturating_add(SLOTS_PER_SLICE));
        let mut slots = Vec::new();
        while self.slot < end && slots.len() < most {
            let slot = Slot::new(self.slot);
            self.slot += 1;
            let is_told = !self.told.is_empty() && self.told.remove(slot.index());
            if !is_told && presence.changed_since(slot, since, now) && wanted(slot) {
                slots.push(slot);
            }
        }
        Found {
            slots,
            is_over: self.slot >= users,
        }
    }

    /// These have just been told.
    pub(super) fn told<'s>(&mut self, slots: impl Iterator<Item = &'s Slot>) {
        let ahead = slots.map(|slot| slot.index());
        self.told.extend(ahead.filter(|slot| *slot >= self.slot));
    }

    /// It is over: what follows it.
    pub(super) fn next(self) -> Option<Walk> {
        self.again.map(Walk::new)
    }
}
