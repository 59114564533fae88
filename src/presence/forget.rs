//! Users who are forgotten, and when their slots may be another's.
//!
//! Owns the slots between the tombstone and the next user. Such a slot is found by nobody, its
//! cells are zero, and whatever still stamps it counts for nothing: no transition is decided of it.
//! It is given again only when all who may keep its number have let go of it (every shard: its
//! streams are ended, its watchers moved back to the name; every link to a real-time node), the
//! cells were zeroed once more behind that, and the tombstone and the zeroes are on disk. So nobody
//! is ever told one user's state as another's, whenever the process is killed or the power cut.
//! Never decides who is forgotten, never knows a stream.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering, fence};

use crossbeam::epoch;
use parking_lot::Mutex;

use super::Presence;
use super::erased::Erased;
use super::online::chunk_of;
use crate::planted::{self, Planted};
use crate::slot::Slot;
use crate::store::cells::{Published, Stamp};
use crate::store::write_back::{PUBLISHED_DIRTY, STAMPS_DIRTY};
use crate::time::{Now, Unix};
use crate::wire::{User, UserBuf};

/// Cycles of the write-back that must end before what was written before them is on disk for sure:
/// the one under way may have passed it.
const CYCLES: u64 = 2;
/// Slots that become free while the sweeps of transitions wait for it.
const FREED_PER_HOLD: usize = 256;

/// Why a user is not forgotten now.
#[derive(Debug)]
pub enum ForgetFault {
    /// As many as may be are on their way out.
    Busy,
    /// users.log could not grow.
    NoSpace(io::Error),
}

/// Slots that are nobody's and may not be another's yet.
#[derive(Default)]
pub(super) struct Forgetting {
    leaving: Mutex<Leaving>,
    /// Slots that the log said are free at boot, and the cycles that must end.
    at_boot: Mutex<(u64, Vec<Slot>)>,
    /// Since when ids are nobody's, or were.
    pub(super) erased: Erased,
    /// How many there are, asked without the lock.
    len: AtomicUsize,
    /// Links to real-time nodes, which keep slots beside the shards.
    links: AtomicU16,
    /// When somebody was last forgotten, or the store opened that knows no better. Unix ms.
    latest: AtomicU64,
}

#[derive(Default)]
struct Leaving {
    slots: HashMap<u32, Stage, foldhash::fast::RandomState>,
    /// Slots that somebody holds, by whose they were.
    held: HashMap<Box<str>, Vec<Slot>, foldhash::fast::RandomState>,
    /// Those that nobody holds, and the cycle of the write-back whose end each waits for.
    zeroed: VecDeque<(Slot, u64)>,
    /// Cycles that have ended.
    cycle: u64,
}

#[derive(Debug)]
enum Stage {
    /// These have yet to let go of it: shards, and behind their numbers the links. It is erased as
    /// of `since`.
    Held {
        by: Vec<u16>,
        user: UserBuf,
        since: Unix,
    },
    /// Zeroed behind all of them; cycles of the write-back must end.
    Zeroed,
}

impl Forgetting {
    /// At boot: slots that the log says are free, whose cells have just been zeroed. When their
    /// users were forgotten, and those of slots that have others since, nobody knows. Nobody can
    /// have anything of them, so they are not among those that are leaving.
    pub(super) fn of_free(free: Vec<Slot>, latest: Unix) -> Forgetting {
        Forgetting {
            at_boot: Mutex::new((CYCLES, free)),
            latest: AtomicU64::new(latest.ms()),
            ..Forgetting::default()
        }
    }

    /// Of the slots that were free at boot, those that the end of this cycle frees.
    fn free_since_boot(&self) -> Vec<Slot> {
        let mut at_boot = self.at_boot.lock();
        let (cycles, slots) = &mut *at_boot;
        *cycles = cycles.saturating_sub(1);
        match *cycles {
            0 => std::mem::take(slots),
            _ => Vec::new(),
        }
    }

    /// Whether the slot is nobody's and not yet another's.
    #[inline]
    pub(super) fn has(&self, slot: Slot) -> bool {
        self.len.load(Ordering::Acquire) > 0
            && self.leaving.lock().slots.contains_key(&slot.index())
    }

    #[cfg(test)]
    pub(super) fn is_free_to_ask(&self) -> bool {
        self.leaving.try_lock().is_some()
    }

    /// Nothing is kept of anybody.
    #[cfg(test)]
    pub(super) fn keeps_nothing(&self) -> bool {
        let leaving = self.leaving.lock();
        let sizes = [
            leaving.slots.len(),
            leaving.held.len(),
            leaving.zeroed.len(),
        ];
        sizes == [0; 3] && self.len() == 0
    }

    fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }
}

impl Presence {
    /// Forgets a user: from here on nobody is found by that id, which leaves a tombstone in
    /// users.log. The caller has every shard [`Presence::let_go`] of the slot that is returned, and
    /// its owner [`Presence::withdraw`] it before. None: nobody had the id. A beat of the same id
    /// makes a new user, with another slot.
    ///
    /// Errors: `max` are on their way out, or users.log could not grow; nothing has changed then.
    pub fn forget(
        &self,
        user: User<'_>,
        max: usize,
        now: Now,
    ) -> Result<Option<Slot>, ForgetFault> {
        self.forget_if(user, |_| true, max, now)
    }

    /// Forgets the user of a slot, as [`Presence::forget`] does, if [`Presence::is_silent_since`]
    /// still says so of it.
    pub fn forget_silent(
        &self,
        slot: Slot,
        before: Unix,
        max: usize,
        now: Now,
    ) -> Result<Option<Slot>, ForgetFault> {
        let still = |found| found == slot && self.is_silent_since(slot, before);
        self.forget_if(self.user(slot), still, max, now)
    }

    fn forget_if(
        &self,
        user: User<'_>,
        may: impl FnOnce(Slot) -> bool,
        max: usize,
        now: Now,
    ) -> Result<Option<Slot>, ForgetFault> {
        if self.forgetting.len() >= max {
            return Err(ForgetFault::Busy);
        }
        // Before the id is gone: who sees that it is sees that its slot is leaving.
        let leave = |slot| self.leave(slot, user, now);
        let forgotten = self.interner.forget(user, &epoch::pin(), may, leave);
        let forgotten = forgotten.map_err(ForgetFault::NoSpace)?;
        forgotten.inspect(|slot| self.take_back(*slot));
        Ok(forgotten)
    }

    /// The slot of a user is leaving.
    fn leave(&self, slot: Slot, user: User<'_>, now: Now) {
        let forgetting = &self.forgetting;
        let links = match planted::is(Planted::LinksNotAwaited) {
            false => forgetting.links.load(Ordering::Relaxed),
            true => 0,
        };
        let holders = self.shards() as u16 + links;
        let mut leaving = forgetting.leaving.lock();
        forgetting
            .len
            .store(leaving.slots.len() + 1, Ordering::SeqCst);
        // Its owner may be publishing it: either that is seen here, or the owner sees this and
        // takes it back.
        fence(Ordering::SeqCst);
        let published = self.published.cell(slot).load(Ordering::Acquire);
        let since = Unix::from_ms(now.unix.ms().max(published.since_ms() + 1));
        let hash = self.interner.hash(user);
        let stage = Stage::Held {
            by: (0..holders).collect(),
            user: user.into(),
            since: forgetting.erased.note(hash, since, now.unix),
        };
        leaving.slots.insert(slot.index(), stage);
        leaving
            .held
            .entry(user.as_str().into())
            .or_default()
            .push(slot);
        drop(leaving);
        forgetting
            .latest
            .fetch_max(now.unix.ms(), Ordering::Relaxed);
    }

    /// The slot's owner has just published it, and its user may be on the way out. True: it is
    /// taken back, and nobody is to be told.
    #[inline]
    pub(super) fn is_taken_back(&self, slot: Slot) -> bool {
        fence(Ordering::SeqCst);
        let leaves = self.forgetting.has(slot);
        if leaves {
            self.take_back(slot);
        }
        leaves
    }

    /// As of when a slot's user is erased, while somebody who is told the slot's state may not know
    /// of it yet. Later than all that was published of that user, earlier than what is of the next
    /// by that id.
    pub fn erased_since(&self, slot: Slot) -> Option<Unix> {
        if self.forgetting.len() == 0 {
            return None;
        }
        match self.forgetting.leaving.lock().slots.get(&slot.index()) {
            Some(Stage::Held { since, .. }) => Some(*since),
            _ => None,
        }
    }

    /// So many links to real-time nodes let go of slots too, each as the holder that
    /// [`Presence::link`] names. Said once, before anybody is forgotten.
    pub fn expect_links(&self, links: u16) {
        self.forgetting.links.store(links, Ordering::Relaxed);
    }

    /// The holder that a link is, beside the shards.
    pub fn link(&self, index: usize) -> u16 {
        (self.shards() + index) as u16
    }

    /// Slots that were this user's and are leaving: where somebody still watches one of these, it
    /// is for that user.
    pub fn leaving_of(&self, user: User<'_>) -> Vec<Slot> {
        if self.forgetting.len() == 0 {
            return Vec::new();
        }
        let leaving = self.forgetting.leaving.lock();
        leaving.held.get(user.as_str()).cloned().unwrap_or_default()
    }

    /// Whether a reader that was told everything up to `at` may have been told of somebody by this
    /// id, at `slot` if it has one, who has been forgotten since.
    pub fn may_be_forgotten_since(&self, slot: Option<Slot>, at: Unix) -> bool {
        let never = |slot: Slot| {
            let published = self.published.cell(slot).load(Ordering::Acquire);
            published == Published::NEVER
        };
        self.forgetting.latest.load(Ordering::Relaxed) >= at.ms() && slot.is_none_or(never)
    }

    /// Takes back what is published of a slot that is leaving once more. Its owner alone calls
    /// this: it may have been about to publish something.
    pub fn withdraw(&self, slot: Slot) {
        if self.forgetting.has(slot) {
            self.take_back(slot);
        }
    }

    fn take_back(&self, slot: Slot) {
        self.online.set(slot, false);
        self.published
            .cell(slot)
            .store(Published::NEVER, Ordering::Release);
        self.zero(slot);
    }

    /// Whether the slot is leaving, and whoever is told its state from now on is told that nobody
    /// was ever here.
    pub fn is_withdrawn(&self, slot: Slot) -> bool {
        let published = self.published.cell(slot).load(Ordering::Acquire);
        published == Published::NEVER && self.forgetting.has(slot)
    }

    /// A holder has nothing of the slot's last user any more, and will stamp it no more. The last
    /// of them zeroes it for good.
    pub fn let_go(&self, slot: Slot, holder: u16) {
        let mut leaving = self.forgetting.leaving.lock();
        let Leaving {
            slots,
            held,
            zeroed,
            cycle,
        } = &mut *leaving;
        let Some(Stage::Held { by, user, .. }) = slots.get_mut(&slot.index()) else {
            return;
        };
        by.retain(|other| *other != holder);
        if !by.is_empty() {
            return;
        }
        debug_assert!(!self.is_held(slot), "a stream holds {slot:?}");
        if let Some(theirs) = held.get_mut(user.as_str()) {
            theirs.retain(|other| *other != slot);
            if theirs.is_empty() {
                held.remove(user.as_str());
            }
        }
        slots.insert(slot.index(), Stage::Zeroed);
        zeroed.push_back((slot, *cycle + CYCLES));
        self.zero(slot);
        if planted::is(Planted::FreedUnwritten) {
            zeroed.pop_back();
            slots.remove(&slot.index());
            self.interner.release(slot);
        }
    }

    fn zero(&self, slot: Slot) {
        let cell = self.stamps.cell(slot);
        cell.store(Stamp::default(), Ordering::SeqCst);
        let dirty = STAMPS_DIRTY | PUBLISHED_DIRTY;
        self.online.raise(chunk_of(slot), dirty);
    }

    /// Whether a slot's user is offline, has been heard of, and not since `before`.
    pub fn is_silent_since(&self, slot: Slot, before: Unix) -> bool {
        let heard = self.stamps.cell(slot).load(Ordering::Acquire).ms();
        let published = self.published.cell(slot).load(Ordering::Acquire);
        let latest = heard.max(published.since_ms());
        let silent = latest > 0 && latest < before.ms() && !published.is_online();
        // Cells of one who is leaving say nothing of whoever has the id now.
        silent && !self.forgetting.has(slot)
    }

    /// Whether the slot is nobody's and on its way to another.
    pub fn is_leaving(&self, slot: Slot) -> bool {
        self.forgetting.has(slot)
    }

    /// Users known: slots that have one.
    pub fn known(&self) -> u32 {
        self.interner.known()
    }

    /// A cycle of the write-back has ended: what was written before it began is on disk. One thread
    /// calls this. Slots become free in slices, so that nobody waits for all of them.
    pub(super) fn cycle_ended(&self) {
        for slot in self.forgetting.free_since_boot() {
            self.interner.release(slot);
        }
        if self.forgetting.len() == 0 {
            return;
        }
        self.forgetting.leaving.lock().cycle += 1;
        loop {
            let mut leaving = self.forgetting.leaving.lock();
            let cycle = leaving.cycle;
            for _ in 0..FREED_PER_HOLD {
                let due = leaving.zeroed.front().filter(|(_, due)| *due <= cycle);
                let Some((slot, _)) = due.copied() else {
                    return;
                };
                // Free before it is no longer leaving: never neither.
                self.interner.release(slot);
                leaving.zeroed.pop_front();
                leaving.slots.remove(&slot.index());
                self.forgetting
                    .len
                    .store(leaving.slots.len(), Ordering::Release);
            }
        }
    }
}
