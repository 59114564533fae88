//! Users at none of whose devices anybody is.
//!
//! Owns the rule: only what a device says of itself counts, and silence says nothing. A device says
//! it with a beat. Each beat that does not say it takes all back; so for as long as a device takes
//! to be offline, only such beats must have come. Costs the beat path nothing but a bit that it
//! clears. Costs four bytes a slot, up to the last page in which anybody was idle, for when such
//! beats began. That is in memory only: after a start they begin anew. Never publishes.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use super::beats::SILENT;
use super::online::{LOOK, STATUSES, chunk_of};
use super::{BeatOutcome, Presence};
use crate::slot::Slot;
use crate::store::cells::{Stamp, StampFlags};
use crate::store::region::AnonymousArray;
use crate::store::write_back::STAMPS_DIRTY;
use crate::time::{Mono, Now, Unix};

/// The word of a user's only stream, beside the time.
const WORD: u32 = 1 << 31;

/// For each slot, since when only such beats have come, in s and one more, rounded up (0: not
/// known); and whether nobody is at the device that holds its only stream.
pub(super) struct Idle {
    since: AnonymousArray<AtomicU32>,
}

impl Idle {
    /// Address space for `users_max` slots.
    pub(super) fn new(users_max: u32) -> io::Result<Idle> {
        let since = AnonymousArray::new(users_max as usize)?;
        Ok(Idle { since })
    }

    fn cell(&self, slot: Slot) -> &AtomicU32 {
        &self.since[slot.index() as usize]
    }

    fn begin(&self, slot: Slot, now: Mono) {
        let since = (now.ms().div_ceil(1_000) + 1) as u32 & !WORD;
        let begun = |known: u32| Some(known & WORD | since);
        // It always says something.
        let _ = self
            .cell(slot)
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, begun);
    }

    /// None: not known.
    fn since(&self, slot: Slot) -> Option<Mono> {
        let since = self.cell(slot).load(Ordering::Relaxed) & !WORD;
        let since_s = u64::from(since.checked_sub(1)?);
        Some(Mono::default().plus_ms(since_s * 1_000))
    }

    /// Whether a user's only stream has the word.
    pub(super) fn has_word(&self, slot: Slot) -> bool {
        self.cell(slot).load(Ordering::Relaxed) & WORD != 0
    }

    pub(super) fn set_word(&self, slot: Slot, idle: bool) {
        // Most never have it, and their page is not touched.
        if self.has_word(slot) != idle {
            self.cell(slot).fetch_xor(WORD, Ordering::Relaxed);
        }
    }
}

impl Presence {
    /// Records a beat of a device that says that nobody is at it. If for `after_ms` only such have
    /// come, that is news, and the slot's owner must look.
    pub fn record_idle_beat(
        &self,
        slot: Slot,
        sent_at: Unix,
        after_ms: u64,
        now: Now,
    ) -> BeatOutcome {
        // It takes back a silence, and not what other idle beats have said.
        let outcome = self.record_beat_clearing(SILENT, slot, sent_at, now);
        if outcome == BeatOutcome::BeforeLeave {
            return outcome;
        }
        let said = |stamp: Stamp| {
            let since = self.idle.since(slot);
            let since = since.filter(|since| stamp.has(StampFlags::IDLE) && *since <= now.mono);
            match since {
                _ if stamp.has(StampFlags::UNATTENDED) => None,
                Some(since) if now.mono.ms_since(since) < after_ms => None,
                Some(_) => Some(stamp.with(StampFlags::UNATTENDED)),
                None => {
                    self.idle.begin(slot, now.mono);
                    Some(stamp.with(StampFlags::IDLE))
                }
            }
        };
        let cell = self.stamps.cell(slot);
        let before = cell.fetch_update(Ordering::SeqCst, Ordering::Relaxed, said);
        match before {
            Ok(before) if before.has(StampFlags::IDLE) => self.is_attended_news(slot),
            _ => outcome,
        }
    }

    /// Somebody is at one of a user's devices, which says so without a beat. True: that is news,
    /// and the slot's owner must look.
    pub fn say_attended(&self, slot: Slot) -> bool {
        self.idle.set_word(slot, false);
        let idle = StampFlags::IDLE.and(StampFlags::UNATTENDED);
        let attended = |stamp: Stamp| stamp.has(idle).then(|| stamp.without(idle));
        let cell = self.stamps.cell(slot);
        let before = cell.fetch_update(Ordering::SeqCst, Ordering::Relaxed, attended);
        let news = before.is_ok_and(|before| before.has(StampFlags::UNATTENDED));
        if news {
            self.is_attended_news(slot);
        }
        news
    }

    /// Nobody is at the device that holds a user's only stream on this node. Of several none is
    /// meant.
    pub fn say_unattended(&self, slot: Slot) {
        if self.held_by(slot) == 1 {
            self.idle.set_word(slot, true);
        }
    }

    /// Whether [`Presence::say_unattended`] holds.
    pub fn is_unattended_word(&self, slot: Slot) -> bool {
        self.idle.has_word(slot) && self.held_by(slot) == 1
    }

    /// Whether somebody is at a user's devices has changed.
    #[cold]
    pub(super) fn is_attended_news(&self, slot: Slot) -> BeatOutcome {
        let flags = LOOK | STATUSES | STAMPS_DIRTY;
        self.online.raise(chunk_of(slot), flags);
        BeatOutcome::StoredNews
    }
}
