//! User id to slot and back: exact, append-only, read without a lock.
//!
//! Owns the index over users.log and the one lock under which a slot is made. An id's bytes are stored once, in the log, and
//! compared there. Never decides who may have a slot.

use std::hash::{BuildHasher, Hasher};
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crossbeam::epoch::{self, Guard};
use foldhash::quality::FixedState;
use parking_lot::Mutex;

use super::index::{Index, Probe};
use super::log::Log;
use super::region::AnonymousArray;
use super::{InternFault, Slot};
use crate::wire::User;

/// Slots that share one stored record offset; the others' are found by walking, some 25 bytes a step.
const GROUP_SLOTS: u32 = 8;

pub(super) struct Interner {
    log: Log,
    index: Index,
    /// Seeded at random, so that nobody can prepare ids that collide.
    hasher: FixedState,
    /// Offset of the first record of each group.
    groups: AnonymousArray<AtomicU64>,
    users: AtomicU32,
    users_max: u32,
    /// Held to make a slot.
    appending: Mutex<()>,
}

/// Why a slot was not made, with the system's reason for the log.
#[derive(Debug)]
pub(super) enum AppendFault {
    Full,
    NoSpace(io::Error),
}

impl From<&AppendFault> for InternFault {
    fn from(fault: &AppendFault) -> InternFault {
        match fault {
            AppendFault::Full => InternFault::Full,
            AppendFault::NoSpace(_) => InternFault::NoSpace,
        }
    }
}

/// The parts of an interner that a scan of the log fills.
pub(super) struct Rebuilding {
    index: Index,
    hasher: FixedState,
    groups: AnonymousArray<AtomicU64>,
    users: u32,
    guard: Guard,
}

impl Rebuilding {
    pub(super) fn new(users_max: u32) -> io::Result<Rebuilding> {
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(io::Error::other)?;
        Ok(Rebuilding {
            index: Index::new(users_max),
            hasher: FixedState::with_seed(u64::from_le_bytes(seed)),
            groups: AnonymousArray::new(users_max.div_ceil(GROUP_SLOTS) as usize)?,
            users: 0,
            guard: epoch::pin(),
        })
    }

    /// The next record of the log.
    pub(super) fn add(&mut self, offset: u64, id: &[u8]) {
        if let Some(group) = self.groups.get((self.users / GROUP_SLOTS) as usize) {
            if self.users.is_multiple_of(GROUP_SLOTS) {
                group.store(offset, Ordering::Relaxed);
            }
            self.index.insert(hash(&self.hasher, id), offset, &self.guard);
        }
        self.users += 1;
    }

    pub(super) fn finish(self, log: Log, users_max: u32) -> Interner {
        Interner {
            log,
            index: self.index,
            hasher: self.hasher,
            groups: self.groups,
            users: AtomicU32::new(self.users),
            users_max,
            appending: Mutex::new(()),
        }
    }
}

impl Interner {
    pub(super) fn log(&self) -> &Log {
        &self.log
    }

    pub(super) fn users(&self) -> u32 {
        self.users.load(Ordering::Acquire)
    }

    #[inline]
    pub(super) fn hash(&self, user: User<'_>) -> u64 {
        hash(&self.hasher, user.as_bytes())
    }

    #[inline]
    pub(super) fn probe<'g>(&self, hash: u64, guard: &'g Guard) -> Probe<'g> {
        self.index.probe(hash, guard)
    }

    /// The slot of the record at `offset` if it is this user's.
    #[inline]
    pub(super) fn slot_at(&self, offset: u64, user: User<'_>) -> Option<Slot> {
        let (slot, id) = self.log.record(offset);
        (id == user.as_bytes()).then(|| Slot::new(slot))
    }

    pub(super) fn find(&self, user: User<'_>, hash: u64, guard: &Guard) -> Option<Slot> {
        self.index
            .probe(hash, guard)
            .find_map(|offset| self.slot_at(offset, user))
    }

    /// The user's slot, made if need be. `reserve` is asked for room for the slot before anything is written.
    pub(super) fn intern(
        &self,
        user: User<'_>,
        hash: u64,
        guard: &Guard,
        reserve: impl FnOnce(u32) -> io::Result<()>,
    ) -> Result<Slot, AppendFault> {
        let _one_at_a_time = self.appending.lock();
        if let Some(slot) = self.find(user, hash, guard) {
            return Ok(slot);
        }
        let index = self.users.load(Ordering::Relaxed);
        if index >= self.users_max {
            return Err(AppendFault::Full);
        }
        reserve(index).map_err(AppendFault::NoSpace)?;
        let offset = self.log.append(index, user.as_bytes()).map_err(AppendFault::NoSpace)?;
        if index.is_multiple_of(GROUP_SLOTS) {
            self.groups[(index / GROUP_SLOTS) as usize].store(offset, Ordering::Relaxed);
        }
        // The count before the index entry: whoever finds the slot finds it counted.
        self.users.store(index + 1, Ordering::Release);
        self.index.insert(hash, offset, guard);
        Ok(Slot::new(index))
    }

    /// The user of a slot that has been made.
    pub(super) fn user(&self, slot: Slot) -> User<'_> {
        assert!(slot.index() < self.users(), "a slot that was never made");
        let mut offset = self.groups[(slot.index() / GROUP_SLOTS) as usize].load(Ordering::Relaxed);
        for _ in 0..slot.index() % GROUP_SLOTS {
            offset = self.log.next_offset(offset);
        }
        let (found, id) = self.log.record(offset);
        debug_assert_eq!(found, slot.index());
        User::parse(id).expect("the log holds legal ids: appended from a User, or checked by the scan")
    }
}

#[inline]
fn hash(hasher: &FixedState, id: &[u8]) -> u64 {
    let mut hasher = hasher.build_hasher();
    hasher.write(id);
    hasher.finish()
}
