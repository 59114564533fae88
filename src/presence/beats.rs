//! Beats and goodbyes: what they do to a stamp.
//!
//! Owns the beat path: hash, probe, compare, one compare-and-swap. It takes no lock but for a user
//! who is new or has said goodbye, and allocates nothing; in a batch the cache misses of the users
//! overlap. Never publishes: that is the owner's, by its sweep.

use std::sync::atomic::Ordering;

use crossbeam::epoch;

use super::fresh::{AHEAD_MS_MAX, GONE};
use super::index::Probe;
use super::online::{LOOK, chunk_of};
use super::{BeatOutcome, InternFault, LeaveOutcome, Presence};
use crate::planted::{self, Planted};
use crate::slot::Slot;
use crate::store::cells::{Stamp, StampFlags};
use crate::store::flusher::STAMPS_DIRTY;
use crate::time::{Now, Unix};
use crate::wire::User;

/// Users whose cache misses overlap: more than a core can have under way, few enough to live on the
/// stack and in L1.
const BATCH_USERS: usize = 64;

impl Presence {
    /// Records a beat: one compare-and-swap of the stamp (a plain store could overwrite a LEFT set
    /// in between); the slow path for a LEFT slot.
    pub fn record_beat(&self, slot: Slot, sent_at: Unix, now: Now) -> BeatOutcome {
        if !self.stamp_unless_left(slot, sent_at, now) {
            return self.beat_on_left(slot, sent_at, now);
        }
        self.stored(slot)
    }

    /// Looks up and prefetches for a batch of users, each with its sender's time, then records:
    /// `each(index, outcome)`, in the order given; users without a slot get `intern`.
    pub fn record_beats(
        &self,
        beats: &[(User<'_>, Unix)],
        now: Now,
        each: &mut dyn FnMut(usize, Result<(Slot, BeatOutcome), InternFault>),
    ) {
        let guard = epoch::pin();
        for (batch, beats) in beats.chunks(BATCH_USERS).enumerate() {
            let mut hashes = [0; BATCH_USERS];
            let mut probes = [Probe::EMPTY; BATCH_USERS];
            let mut offsets = [None; BATCH_USERS];
            let mut slots = [None; BATCH_USERS];
            for (i, (user, _)) in beats.iter().enumerate() {
                hashes[i] = self.interner.hash(*user);
                probes[i] = self.interner.probe(hashes[i], &guard);
                probes[i].prefetch();
            }
            for (i, (user, _)) in beats.iter().enumerate() {
                offsets[i] = probes[i].next();
                if let Some(offset) = offsets[i] {
                    self.interner.log().prefetch(offset, user.as_bytes().len());
                }
            }
            for (i, (user, _)) in beats.iter().enumerate() {
                let first = offsets[i].and_then(|offset| self.interner.slot_at(offset, *user));
                // Another user with the same tag: seldom, so its misses need not overlap.
                slots[i] = first
                    .or_else(|| probes[i].find_map(|offset| self.interner.slot_at(offset, *user)));
                if let Some(slot) = slots[i] {
                    self.stamps.prefetch(slot);
                    self.online.prefetch(slot);
                }
            }
            for (i, (user, sent_at)) in beats.iter().enumerate() {
                let slot = slots[i].map_or_else(|| self.intern_new(*user, hashes[i], &guard), Ok);
                each(
                    batch * BATCH_USERS + i,
                    slot.map(|slot| (slot, self.record_beat(slot, *sent_at, now))),
                );
            }
        }
    }

    /// Records a goodbye. The leave counts as the publisher's last activity.
    pub fn record_leave(&self, slot: Slot, sent_at: Unix, now: Now) -> LeaveOutcome {
        let cell = self.stamps.cell(slot);
        let mut leaves = self.leaves.lock();
        if leaves
            .sent_at(slot, now)
            .is_some_and(|newest| sent_at <= newest)
        {
            return LeaveOutcome::Ignored;
        }
        let before = cell.load(Ordering::Acquire);
        // Older than any beat can be that made this stamp: undoing it would log out whoever came
        // back.
        let beaten_since = !before.has(StampFlags::LEFT)
            && sent_at.plus_ms(self.beat_skew_ms_max).ms() < before.ms()
            && before.ms() <= now.unix.plus_ms(AHEAD_MS_MAX).ms();
        if beaten_since {
            return LeaveOutcome::Ignored;
        }
        leaves.insert(slot, sent_at, now);
        let left = cell.fetch_update(Ordering::SeqCst, Ordering::Relaxed, |stamp| {
            (!stamp.has(StampFlags::LEFT)).then(|| match stamp.ms() {
                // A slot that was made and never beat stays without a last activity.
                0 => stamp.with(StampFlags::LEFT),
                _ => newer(stamp, sent_at, now.unix).with(StampFlags::LEFT),
            })
        });
        if left.is_err() {
            return LeaveOutcome::Ignored;
        }
        self.online.raise(chunk_of(slot), LOOK | STAMPS_DIRTY);
        LeaveOutcome::Left
    }

    /// Stamps a slot with this moment; false, and nothing done, if it has LEFT.
    #[inline]
    fn stamp_unless_left(&self, slot: Slot, sent_at: Unix, now: Now) -> bool {
        let cell = self.stamps.cell(slot);
        let mut stamp = cell.load(Ordering::Relaxed);
        loop {
            if stamp.has(StampFlags::LEFT) {
                return false;
            }
            let stamped = newer(stamp, sent_at, now.unix).without(StampFlags::EXPIRED);
            if stamped == stamp {
                return true;
            }
            // SeqCst: the stamp must be out before the online bit is read (see
            // `Presence::publish`).
            match cell.compare_exchange_weak(stamp, stamped, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(other) => stamp = other,
            }
        }
    }

    #[inline]
    fn stored(&self, slot: Slot) -> BeatOutcome {
        if self.online.has(slot) {
            return BeatOutcome::Stored;
        }
        self.online.raise(chunk_of(slot), LOOK | STAMPS_DIRTY);
        BeatOutcome::StoredOffline
    }

    /// A beat for a slot that has LEFT: it counts only if it was sent after the goodbye. The
    /// goodbye stays in the table until it expires, or its replay would count as a new one.
    #[cold]
    fn beat_on_left(&self, slot: Slot, sent_at: Unix, now: Now) -> BeatOutcome {
        let cell = self.stamps.cell(slot);
        let leaves = self.leaves.lock();
        let stamp = cell.load(Ordering::Acquire);
        // Leaves are recorded under the lock, so LEFT cannot come back while it is held; it may
        // have gone before.
        if stamp.has(StampFlags::LEFT) {
            let refused = match leaves.sent_at(slot, now) {
                Some(left_at) => sent_at <= left_at,
                // Forgotten: so long ago that any beat which is not stale was sent after it, or by
                // a restart; then the time at which the goodbye came is the best that is known. A
                // stamp ahead of every honest sender is from before a step.
                None => {
                    let left_ms = stamp.ms();
                    left_ms <= now.unix.plus_ms(self.beat_skew_ms_max).ms()
                        && sent_at.ms() <= left_ms
                }
            };
            if refused && !planted::is(Planted::GoodbyeUndone) {
                return BeatOutcome::BeforeLeave;
            }
            let came_back = cell.fetch_update(Ordering::SeqCst, Ordering::Relaxed, |stamp| {
                let left = stamp.has(StampFlags::LEFT);
                left.then(|| newer(stamp, sent_at, now.unix).without(GONE))
            });
            debug_assert!(came_back.is_ok(), "LEFT is cleared under the lock only");
        } else {
            self.stamp_unless_left(slot, sent_at, now);
        }
        // Even if the bit still says online: the goodbye may be on its way through the owner's
        // sweep.
        self.online.raise(chunk_of(slot), LOOK | STAMPS_DIRTY);
        if self.online.has(slot) {
            BeatOutcome::Stored
        } else {
            BeatOutcome::StoredOffline
        }
    }
}

/// The stamp after something sent at `sent_at` has come: neither of its times goes back, unless
/// they were ahead of the clock. What was sent is never dated later than it was received.
#[inline]
fn newer(stamp: Stamp, sent_at: Unix, now: Unix) -> Stamp {
    let sent = sent_at.min(now);
    if stamp.ms() <= now.ms() {
        return stamp.advanced(now, sent);
    }
    newer_than_now(stamp, sent, now)
}

/// The turns of shards do not begin together, so a stamp can be a little ahead of this one's.
#[cold]
fn newer_than_now(stamp: Stamp, sent: Unix, now: Unix) -> Stamp {
    if stamp.ms() > now.plus_ms(AHEAD_MS_MAX).ms() {
        return Stamp::new(now, sent, stamp.flags());
    }
    let received = Unix::from_ms(stamp.ms());
    Stamp::new(received, sent.max(stamp.sent()), stamp.flags())
}
