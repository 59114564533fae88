//! User id to slot and back: exact, append-only, read without a lock.
//!
//! Owns the index over users.log and the one lock under which a slot is made. An id's bytes are
//! stored once, in the log, and compared there. Never decides who may have a slot.

use std::hash::{BuildHasher, Hasher};
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crossbeam::epoch::Guard;
use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;
use parking_lot::Mutex;

use super::InternFault;
use super::index::{Index, Pile, Probe};
use crate::slot::Slot;
use crate::store::log::{self, Log, Scan};
use crate::store::region::AnonymousArray;
use crate::wire::User;

/// Slots that share one stored record offset; the others' are found by walking, some 25 bytes a
/// step.
const GROUP_SLOTS: u32 = 8;
/// Bytes of log that are worth a thread at boot.
const PART_BYTES_MIN: u64 = 4 << 20;

pub(super) struct Interner {
    log: Log,
    index: Index,
    /// Seeded at random, so that nobody can prepare ids that collide.
    hasher: SeedableRandomState,
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
pub(super) struct Rebuilt {
    index: Index,
    hasher: SeedableRandomState,
    groups: AnonymousArray<AtomicU64>,
    users: u32,
}

/// Reads a log of about `log_bytes` and builds what is found of it, on as many threads as there are
/// cores if it is long.
///
/// Errors: no memory, no random numbers. What is wrong with the log is in the [`Scan`].
pub(super) fn rebuild(bytes: &[u8], log_bytes: u64, users_max: u32) -> io::Result<(Rebuilt, Scan)> {
    let hasher = random_hasher()?;
    let groups: AnonymousArray<AtomicU64> =
        AnonymousArray::new(users_max.div_ceil(GROUP_SLOTS) as usize)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let parts = (log_bytes / PART_BYTES_MIN).clamp(1, cores) as usize;
    let starts = log::split(bytes, log_bytes, parts);
    let part = |from: usize| {
        let mut pile = Pile::new(users_max);
        let scan = log::scan(
            bytes,
            starts[from],
            starts.get(from + 1).copied(),
            |slot, offset, id| {
                // More users than users_max are counted, and refused by whoever opens the store.
                if let Some(group) = groups.get((slot / GROUP_SLOTS) as usize) {
                    if slot.is_multiple_of(GROUP_SLOTS) {
                        group.store(offset, Ordering::Relaxed);
                    }
                    pile.add(hash(&hasher, id), offset);
                }
            },
        );
        (pile, scan)
    };
    let found: Vec<(Pile, Scan)> = std::thread::scope(|scope| {
        let part = &part;
        let threads: Vec<_> = (0..starts.len())
            .map(|from| scope.spawn(move || part(from)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a scan does not panic"))
            .collect()
    });
    // The log ends where the first part does that does not reach the next.
    let mut piles = Vec::new();
    let mut whole = Scan {
        users: 0,
        end: log::START.offset,
        fault: None,
    };
    for (start, (pile, scan)) in starts.iter().zip(found) {
        if start.offset != whole.end || whole.fault.is_some() {
            break;
        }
        piles.push(pile);
        whole = scan;
    }
    let rebuilt = Rebuilt {
        index: Index::build(users_max, piles),
        hasher,
        groups,
        users: whole.users,
    };
    Ok((rebuilt, whole))
}

impl Rebuilt {
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
    #[inline(always)]
    pub(super) fn slot_at(&self, offset: u64, user: User<'_>) -> Option<Slot> {
        let (slot, id) = self.log.record(offset);
        same(id, user.as_bytes()).then(|| Slot::new(slot))
    }

    pub(super) fn find(&self, user: User<'_>, hash: u64, guard: &Guard) -> Option<Slot> {
        self.index
            .probe(hash, guard)
            .find_map(|offset| self.slot_at(offset, user))
    }

    /// The user's slot, made if need be. `reserve` is asked for room for the slot before anything
    /// is written.
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
        let offset = self
            .log
            .append(index, user.as_bytes())
            .map_err(AppendFault::NoSpace)?;
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
        User::parse(id)
            .expect("the log holds legal ids: appended from a User, or checked by the scan")
    }
}

/// Whether two ids are the same. Of common lengths by two or four overlapping words instead of a
/// call: what follows a cache miss is kept short enough that the processor begins the next ones
/// meanwhile.
#[inline(always)]
fn same(a: &[u8], b: &[u8]) -> bool {
    fn words<const N: usize>(a: &[u8], b: &[u8]) -> Option<bool> {
        let (a_first, b_first) = (a.first_chunk::<N>()?, b.first_chunk::<N>()?);
        let (a_last, b_last) = (a.last_chunk::<N>()?, b.last_chunk::<N>()?);
        Some(a_first == b_first && a_last == b_last)
    }
    if a.len() != b.len() {
        return false;
    }
    let same = match a.len() {
        8..=16 => words::<8>(a, b),
        17..=32 => words::<16>(a, b),
        _ => None,
    };
    same.unwrap_or_else(|| a == b)
}

/// Both of its seeds are secret: with foldhash's fixed shared one, ids that end alike collide
/// whatever the other is.
fn random_hasher() -> io::Result<SeedableRandomState> {
    static SHARED: OnceLock<SharedSeed> = OnceLock::new();
    let mut seeds = [[0; 8]; 2];
    getrandom::fill(seeds.as_flattened_mut()).map_err(io::Error::other)?;
    let [seed, shared] = seeds.map(u64::from_le_bytes);
    let shared = SHARED.get_or_init(|| SharedSeed::from_u64(shared));
    Ok(SeedableRandomState::with_seed(seed, shared))
}

#[inline]
fn hash(hasher: &SeedableRandomState, id: &[u8]) -> u64 {
    let mut hasher = hasher.build_hasher();
    hasher.write(id);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_the_same_if_every_byte_is() {
        for length in 1..=40 {
            let a: Vec<u8> = (0..length).collect();
            assert!(same(&a, &a.clone()));
            assert!(!same(&a, &a[1..]));
            for at in 0..a.len() {
                let mut b = a.clone();
                b[at] ^= 1;
                assert!(!same(&a, &b), "byte {at} of {length}");
            }
        }
    }

    #[test]
    fn what_collides_under_the_fixed_seed_does_not_here() {
        let id = |n: u64| [n.to_ne_bytes(), 0x3f84_d5b5_b547_0917_u64.to_ne_bytes()].concat();
        let hashes = |hasher: &SeedableRandomState| [1, 2, 3].map(|n| hash(hasher, &id(n)));
        let fixed = SeedableRandomState::with_seed(7, SharedSeed::global_fixed());
        let [first, second, third] = hashes(&fixed);
        assert!(
            first == second && second == third,
            "foldhash has other seeds: the ids above no longer show it"
        );
        let [first, second, third] = hashes(&random_hasher().unwrap());
        assert!(first != second && second != third);
    }
}
