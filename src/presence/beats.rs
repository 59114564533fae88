//! Beats and goodbyes: what they do to a stamp.
//!
//! Owns the beat path: hash, probe, compare, one compare-and-swap. It takes no lock but for a user
//! who is new, and allocates nothing; in a batch the cache misses of the users overlap. Owns the
//! order of beats and goodbyes too: of two, the one sent in the later step counts, and in the same
//! step the one that arrives later. Never publishes: that is the owner's, by its sweep.

use std::cmp::Ordering as Order;
use std::sync::atomic::Ordering;

use crossbeam::epoch;

use super::fresh::{AHEAD_MS_MAX, GONE};
use super::index::Probe;
use super::online::{LOOK, chunk_of};
use super::{BeatFault, BeatOutcome, LeaveOutcome, Presence};
use crate::planted::{self, Planted};
use crate::slot::Slot;
use crate::store::cells::{Stamp, StampFlags};
use crate::store::write_back::STAMPS_DIRTY;
use crate::time::{Now, Unix};
use crate::wire::User;
use crate::wire::beat::Flags;

/// Users whose cache misses overlap: more than a core can have under way, few enough to live on the
/// stack and in L1.
const BATCH_USERS: usize = 64;

/// What any beat takes back of a stamp that has not LEFT: a silence, and a goodbye that was put
/// off.
pub(super) const SILENT: StampFlags = StampFlags::EXPIRED.and(StampFlags::LEAVING);
/// And that nobody is at the devices, unless it says so itself.
const STALE: StampFlags = SILENT.and(StampFlags::IDLE).and(StampFlags::UNATTENDED);

impl Presence {
    /// Records a beat: one compare-and-swap of the stamp (a plain store could overwrite a LEFT set
    /// in between); the slow path for a LEFT slot.
    #[inline]
    pub fn record_beat(&self, slot: Slot, sent_at: Unix, now: Now) -> BeatOutcome {
        self.record_beat_clearing(STALE, slot, sent_at, now)
    }

    /// The same of a beat that takes these back.
    #[inline]
    pub(super) fn record_beat_clearing(
        &self,
        clears: StampFlags,
        slot: Slot,
        sent_at: Unix,
        now: Now,
    ) -> BeatOutcome {
        match self.stamp_unless_left(clears, slot, sent_at, now) {
            None => self.beat_on_left(clears, slot, sent_at, now),
            // Somebody is back who was away.
            Some(before) if is_back(before, clears) => self.is_attended_news(slot),
            Some(_) => self.stored(slot),
        }
    }

    /// Looks up and prefetches for a batch of users, each with its sender's time, then records:
    /// `each(index, outcome)`, in the order given; users without a slot get `intern`, but for what
    /// was sent before they were erased.
    pub fn record_beats(
        &self,
        beats: &[(User<'_>, Unix)],
        now: Now,
        each: &mut dyn FnMut(usize, Result<(Slot, BeatOutcome), BeatFault>),
    ) {
        self.record_beats_of(beats, Flags::BEAT, 0, now, each);
    }

    /// Looks up and prefetches for a batch of users: the slot of each who has one, in the order
    /// given. Those beyond the length of `slots` are not looked up.
    pub fn lookup_all<'u>(
        &self,
        users: impl Iterator<Item = User<'u>> + Clone,
        slots: &mut [Option<Slot>],
    ) {
        let guard = epoch::pin();
        let len = slots.len().min(BATCH_USERS);
        let mut probes = [Probe::EMPTY; BATCH_USERS];
        let mut offsets = [None; BATCH_USERS];
        for (probe, user) in probes.iter_mut().zip(users.clone()).take(len) {
            *probe = self.interner.probe(self.interner.hash(user), &guard);
            probe.prefetch();
        }
        for (i, user) in users.clone().take(len).enumerate() {
            offsets[i] = probes[i].next();
            if let Some(offset) = offsets[i] {
                self.interner.log().prefetch(offset, user.as_bytes().len());
            }
        }
        for (i, user) in users.take(len).enumerate() {
            let first = offsets[i].and_then(|offset| self.interner.slot_at(offset, user));
            slots[i] =
                first.or_else(|| probes[i].find_map(|offset| self.interner.slot_at(offset, user)));
        }
    }

    /// The same of beats that say this too. `after_ms`: for so long only idle ones must have come.
    pub fn record_beats_of(
        &self,
        beats: &[(User<'_>, Unix)],
        flags: Flags,
        after_ms: u64,
        now: Now,
        each: &mut dyn FnMut(usize, Result<(Slot, BeatOutcome), BeatFault>),
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
                let slot = slots[i].map_or_else(
                    || match self.is_before_erasure(hashes[i], *sent_at, now.unix) {
                        true => Err(BeatFault::BeforeErasure),
                        false => self
                            .intern_newcomer(*user, hashes[i], &guard, now.mono)
                            .map_err(BeatFault::Intern),
                    },
                    Ok,
                );
                if slot.is_err() {
                    self.note_refused_new(now.mono);
                }
                let record = |slot| {
                    if flags == Flags::BEAT {
                        return self.record_beat(slot, *sent_at, now);
                    }
                    self.begin_as(slot, flags.outset());
                    match flags.is_idle() {
                        true => self.record_idle_beat(slot, *sent_at, after_ms, now),
                        false => self.record_beat(slot, *sent_at, now),
                    }
                };
                let at = batch * BATCH_USERS + i;
                each(at, slot.map(|slot| (slot, record(slot))));
            }
        }
    }

    /// Records a goodbye, unless it was sent in an earlier step than something accepted before: it
    /// has been overtaken then. It counts as the publisher's last activity.
    pub fn record_leave(&self, slot: Slot, sent_at: Unix, now: Now) -> LeaveOutcome {
        let before =
            self.stamps
                .cell(slot)
                .fetch_update(Ordering::SeqCst, Ordering::Relaxed, |stamp| {
                    let order = sent_order(stamp, sent_at, now.unix);
                    let counts = if stamp.has_parted() {
                        // The same once more says nothing; a later one refuses more beats. So does
                        // one by the present clock where the last one's time is yet to come.
                        let is_ahead = stamp.ms() > now.unix.plus_ms(AHEAD_MS_MAX).ms();
                        (order.is_gt() || is_ahead) && stamp.ms() != 0
                    } else {
                        order.is_ge() || planted::is(Planted::GoodbyeUndoes)
                    };
                    counts.then(|| match stamp.ms() {
                        // A slot that was made and never beat stays without a last activity.
                        0 => stamp.without(StampFlags::LEAVING).parted(),
                        _ => {
                            let stamp = newer(stamp, sent_at, now.unix);
                            stamp.without(StampFlags::LEAVING).parted()
                        }
                    })
                });
        let Ok(before) = before else {
            return LeaveOutcome::Ignored;
        };
        self.online.raise(chunk_of(slot), LOOK | STAMPS_DIRTY);
        if before.has_parted() {
            LeaveOutcome::Ignored
        } else {
            LeaveOutcome::Left
        }
    }

    /// Takes note of a goodbye that is put off: [`Presence::record_leave_of`] records it unless a
    /// beat has come by then, from whomever and whenever it was sent. Returns when it was given.
    pub fn put_leave_off(&self, slot: Slot, now: Now) -> Unix {
        let leaving = |stamp: Stamp| {
            let news = !stamp.has_parted() && !stamp.has(StampFlags::LEAVING);
            news.then(|| stamp.with(StampFlags::LEAVING))
        };
        let cell = self.stamps.cell(slot);
        let before = cell.fetch_update(Ordering::SeqCst, Ordering::Relaxed, leaving);
        if before.is_ok() {
            self.online.raise(chunk_of(slot), STAMPS_DIRTY);
        }
        let (Ok(stamp) | Err(stamp)) = before;
        let received = Unix::from_ms(stamp.ms());
        // Another shard's turn may have begun a little later. A stamp further ahead is of before a
        // step back of the clock.
        match received <= now.unix.plus_ms(AHEAD_MS_MAX) {
            true => received.max(now.unix),
            false => now.unix,
        }
    }

    /// Records a goodbye that was given at `given_at` and put off until `now`, if no beat has come
    /// since.
    pub fn record_leave_of(&self, slot: Slot, given_at: Unix, now: Unix) -> LeaveOutcome {
        let left = |stamp: Stamp| {
            // Where a beat has taken it back, a later goodbye may have been put off since. A stamp
            // ahead of the clock is of no beat since a step back.
            let is_ahead = stamp.ms() > now.plus_ms(AHEAD_MS_MAX).ms();
            let counts = stamp.has(StampFlags::LEAVING)
                && !stamp.has_parted()
                && (stamp.ms() <= given_at.ms() || is_ahead);
            let dated = || match stamp.ms() {
                0 => stamp,
                _ => newer(stamp, given_at, given_at),
            };
            counts.then(|| dated().parted())
        };
        self.leave_if(slot, left)
    }

    /// Records a goodbye that came at `came_at` and was not believed at once (see
    /// [`Presence::put_leave_off`]), unless it has been overtaken since: by what was sent later, or
    /// in the same step and came later.
    pub fn record_leave_since(
        &self,
        slot: Slot,
        sent_at: Unix,
        came_at: Unix,
        now: Unix,
    ) -> LeaveOutcome {
        let sent_at = sent_at.min(came_at);
        let left = |stamp: Stamp| {
            // Of before a step back of the clock: it says nothing of what was sent since.
            let is_ahead = stamp.ms() > now.plus_ms(AHEAD_MS_MAX).ms();
            let order = if is_ahead {
                Order::Equal
            } else {
                stamp.order_of(sent_at)
            };
            let overtaken = order.is_lt() || order.is_eq() && !stamp.has(StampFlags::LEAVING);
            let counts = !stamp.has_parted() && !overtaken;
            let dated = || match stamp.ms() {
                0 => stamp,
                _ if is_ahead => Stamp::new(came_at, sent_at, stamp.flags()),
                // A beat that was sent before it may have come since.
                received => {
                    let received = came_at.max(Unix::from_ms(received));
                    newer(stamp, sent_at, received)
                }
            };
            counts.then(|| dated().without(StampFlags::LEAVING).parted())
        };
        self.leave_if(slot, left)
    }

    /// Has a slot's publisher leave, if a goodbye counts against its stamp: `left` says what the
    /// stamp is then.
    fn leave_if(&self, slot: Slot, left: impl Fn(Stamp) -> Option<Stamp>) -> LeaveOutcome {
        let cell = self.stamps.cell(slot);
        match cell.fetch_update(Ordering::SeqCst, Ordering::Relaxed, left) {
            Ok(_) => {
                self.online.raise(chunk_of(slot), LOOK | STAMPS_DIRTY);
                LeaveOutcome::Left
            }
            Err(_) => LeaveOutcome::Ignored,
        }
    }

    /// Whether the last word of a slot's publisher was a goodbye.
    pub fn has_left(&self, slot: Slot) -> bool {
        let stamp = self.stamps.cell(slot).load(Ordering::Acquire);
        stamp.has_parted()
    }

    /// Stamps a slot with this moment; None, and nothing done, if it has LEFT. Some: the stamp
    /// before.
    #[inline]
    fn stamp_unless_left(
        &self,
        clears: StampFlags,
        slot: Slot,
        sent_at: Unix,
        now: Now,
    ) -> Option<Stamp> {
        let cell = self.stamps.cell(slot);
        let mut stamp = cell.load(Ordering::Relaxed);
        loop {
            if stamp.has(StampFlags::LEFT) {
                return None;
            }
            let stamped = newer(stamp, sent_at, now.unix).without(clears);
            if stamped == stamp {
                return Some(stamp);
            }
            // SeqCst: the stamp must be out before the online bit is read (see
            // `Presence::publish`).
            match cell.compare_exchange_weak(stamp, stamped, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return Some(stamp),
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

    /// A beat for a slot that has LEFT: it counts unless it was sent in an earlier step than the
    /// goodbye. In the same step the later to arrive counts: a socket's own arrive in order. Of one
    /// who is invisible the stamp moves on, and nobody looks.
    #[cold]
    fn beat_on_left(&self, clears: StampFlags, slot: Slot, sent_at: Unix, now: Now) -> BeatOutcome {
        let uncovers = planted::is(Planted::BeatsUncover);
        let stamped =
            self.stamps
                .cell(slot)
                .fetch_update(Ordering::SeqCst, Ordering::Relaxed, |stamp| {
                    let refused = stamp.has_parted()
                        && sent_order(stamp, sent_at, now.unix).is_lt()
                        && !planted::is(Planted::GoodbyeUndone);
                    (!refused).then(|| {
                        let heard = newer(stamp, sent_at, now.unix).without(clears);
                        match stamp.has(StampFlags::INVISIBLE) && !uncovers {
                            true => heard,
                            false => heard.without(GONE),
                        }
                    })
                });
        let Ok(before) = stamped else {
            return BeatOutcome::BeforeLeave;
        };
        if before.has(StampFlags::INVISIBLE) && !uncovers {
            self.online.raise(chunk_of(slot), STAMPS_DIRTY);
            return BeatOutcome::Stored;
        }
        // Even if the bit still says online: the goodbye may be on its way through the owner's
        // sweep.
        self.online.raise(chunk_of(slot), LOOK | STAMPS_DIRTY);
        match self.online.has(slot) {
            // Whoever was told of the goodbye is to be told that it is over.
            true if before.has_parted() => BeatOutcome::StoredAgain,
            true => BeatOutcome::Stored,
            false => BeatOutcome::StoredOffline,
        }
    }
}

/// Whether a beat brings somebody back to devices at which nobody was.
#[inline]
fn is_back(before: Stamp, clears: StampFlags) -> bool {
    before.has(StampFlags::UNATTENDED) && clears == STALE
}

/// How the step in which something was sent compares with that of the latest that the stamp has
/// heard. Nothing counts as sent later than it was received; a stamp of before a step back of the
/// clock says nothing of what was sent since.
#[inline]
fn sent_order(stamp: Stamp, sent_at: Unix, now: Unix) -> Order {
    if stamp.ms() > now.plus_ms(AHEAD_MS_MAX).ms() {
        return Order::Equal;
    }
    let received = now.max(Unix::from_ms(stamp.ms()));
    stamp.order_of(sent_at.min(received))
}

/// The stamp after something sent at `sent_at` has come: neither of its times goes back, unless
/// they were ahead of the clock. What was sent is never dated later than it was received.
#[inline]
fn newer(stamp: Stamp, sent_at: Unix, now: Unix) -> Stamp {
    if stamp.ms() <= now.ms() {
        return stamp.advanced(now, sent_at.min(now));
    }
    newer_than_now(stamp, sent_at, now)
}

/// The turns of shards do not begin together, so a stamp can be a little ahead of this one's.
#[cold]
fn newer_than_now(stamp: Stamp, sent_at: Unix, now: Unix) -> Stamp {
    if stamp.ms() > now.plus_ms(AHEAD_MS_MAX).ms() {
        return Stamp::new(now, sent_at.min(now), stamp.flags());
    }
    let received = Unix::from_ms(stamp.ms());
    let sent = sent_at.min(received).max(stamp.sent());
    Stamp::new(received, sent, stamp.flags())
}
