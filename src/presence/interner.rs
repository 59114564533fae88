//! User id to slot and back: exact, append-only, read without a lock.
//!
//! Owns the index over users.log and the one lock under which a slot is made. An id's bytes are
//! stored once, in the log, and compared there. A user who is forgotten leaves the index at once
//! and gets a tombstone in the log; the slot is given again when `forget.rs` says so. Never decides
//! who may have a slot.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crossbeam::epoch::Guard;
use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;
use parking_lot::{Mutex, RwLock};

use super::InternFault;
use super::index::{Index, Pile, Probe};
use super::reuse::{Odd, Reuse};
use crate::random;
use crate::slot::Slot;
use crate::store::log::Log;
use crate::store::record::{self, Record, RecordFault, Scan};
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
    reuse: RwLock<Reuse>,
    /// There may be a record that walking does not find.
    has_strays: AtomicBool,
    users: AtomicU32,
    /// Of these slots, those that have no user.
    vacant: AtomicU32,
    users_max: u32,
    /// Held to make a slot, or to forget who has one.
    appending: Mutex<Appending>,
}

/// What the log ends with.
struct Appending {
    /// Something else than the next slot's user has come since the group began: walking from the
    /// group's first record does not find the next.
    broken: bool,
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
    reuse: Reuse,
    users: u32,
    /// Records that can not follow each other, each good by itself: damage, and no torn write.
    pub(super) contradiction: Option<RecordFault>,
}

/// Reads a log of about `log_bytes` and builds what is found of it, on as many threads as there are
/// cores if it is long.
///
/// Errors: no memory, no random numbers. What is wrong with the log is in the [`Scan`].
pub(super) fn rebuild(bytes: &[u8], log_bytes: u64, users_max: u32) -> io::Result<(Rebuilt, Scan)> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let parts = (log_bytes / PART_BYTES_MIN).clamp(1, cores) as usize;
    rebuild_in(bytes, log_bytes, users_max, parts)
}

fn rebuild_in(
    bytes: &[u8],
    log_bytes: u64,
    users_max: u32,
    parts: usize,
) -> io::Result<(Rebuilt, Scan)> {
    let hasher = random_hasher()?;
    let groups: AnonymousArray<AtomicU64> =
        AnonymousArray::new(users_max.div_ceil(GROUP_SLOTS) as usize)?;
    let starts = record::split(bytes, log_bytes, parts, GROUP_SLOTS);
    let found: Vec<(Part, Scan)> = std::thread::scope(|scope| {
        let (hasher, groups, starts) = (&hasher, &groups, &starts);
        let threads: Vec<_> = (0..starts.len())
            .map(|from| {
                scope.spawn(move || {
                    let mut part = Part::new(users_max);
                    let to = starts.get(from + 1).copied();
                    let scan = record::scan(bytes, starts[from], to, |record, offset| {
                        part.take(record, offset, hasher, groups)
                    });
                    (part, scan)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a scan does not panic"))
            .collect()
    });
    // The log ends where the first part does that does not reach the next.
    let mut piles = Vec::new();
    let mut reuse = Reuse::default();
    let mut contradiction = None;
    let mut whole = Scan {
        users: 0,
        end: record::START.offset,
        fault: None,
    };
    for (start, (part, scan)) in starts.iter().zip(found) {
        if start.offset != whole.end || whole.fault.is_some() {
            break;
        }
        whole = scan;
        if let Err(fault) = reuse.apply(&part.odd, |slot| walk(bytes, &groups, slot)) {
            contradiction = Some(fault);
            break;
        }
        piles.push(part.pile);
    }
    if !reuse.dead().is_empty() {
        piles.iter_mut().for_each(|pile| pile.forget(reuse.dead()));
    }
    let rebuilt = Rebuilt {
        index: Index::build(users_max, piles),
        hasher,
        groups,
        reuse,
        users: whole.users,
        contradiction,
    };
    Ok((rebuilt, whole))
}

/// What one thread has read of the log.
struct Part {
    pile: Pile,
    odd: Vec<Odd>,
    /// Something else than the next slot's user has come since the group began.
    broken: bool,
}

impl Part {
    fn new(users_max: u32) -> Part {
        Part {
            pile: Pile::new(users_max),
            odd: Vec::new(),
            broken: false,
        }
    }

    fn take(
        &mut self,
        record: Record<'_>,
        offset: u64,
        hasher: &SeedableRandomState,
        groups: &[AtomicU64],
    ) {
        let (Record::New { slot, .. } | Record::Again { slot, .. } | Record::Gone { slot }) =
            record;
        // More users than users_max are counted, and refused by whoever opens the store.
        let Some(group) = groups.get((slot / GROUP_SLOTS) as usize) else {
            return;
        };
        let id = match record {
            Record::New { id, .. } => id,
            Record::Again { slot, id } => {
                self.broken = true;
                self.odd.push(Odd::Again { slot, offset });
                self.pile.add(hash(hasher, id), offset);
                return;
            }
            Record::Gone { slot } => {
                self.broken = true;
                self.odd.push(Odd::Gone { slot, offset });
                return;
            }
        };
        if slot.is_multiple_of(GROUP_SLOTS) {
            group.store(offset, Ordering::Relaxed);
            self.broken = false;
        } else if self.broken {
            self.odd.push(Odd::Stray { slot, offset });
        }
        self.pile.add(hash(hasher, id), offset);
    }
}

/// Where the record of a slot is that follows its group's first without others between.
fn walk(bytes: &[u8], groups: &[AtomicU64], slot: u32) -> u64 {
    let first = groups[(slot / GROUP_SLOTS) as usize].load(Ordering::Relaxed);
    (0..slot % GROUP_SLOTS).fold(first, |offset, _| {
        offset + u64::from(bytes[offset as usize]) + record::RECORD_OVERHEAD_BYTES as u64
    })
}

impl Rebuilt {
    /// Slots that have no user.
    pub(super) fn free(&self) -> &BTreeSet<u32> {
        self.reuse.free()
    }

    /// Whether nothing but new slots' users was ever appended.
    pub(super) fn is_plain(&self) -> bool {
        self.reuse.dead().is_empty() && self.reuse.free().is_empty()
    }

    /// Its free slots are left to whoever says when they may be given again.
    pub(super) fn finish(mut self, log: Log, users_max: u32) -> Interner {
        let plain = self.is_plain();
        let vacant = self.reuse.free().len() as u32;
        self.reuse.hold_free();
        Interner {
            vacant: AtomicU32::new(vacant),
            log,
            index: self.index,
            hasher: self.hasher,
            groups: self.groups,
            reuse: RwLock::new(self.reuse),
            has_strays: AtomicBool::new(!plain),
            users: AtomicU32::new(self.users),
            users_max,
            // What the last group holds is not known. That costs an entry for each of its slots
            // that has yet to come.
            appending: Mutex::new(Appending { broken: !plain }),
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

    /// How many slots have a user.
    pub(super) fn known(&self) -> u32 {
        // In this order: whatever is vacant by now is counted by then.
        let vacant = self.vacant.load(Ordering::Acquire);
        self.users() - vacant
    }

    /// As if a record were being written.
    #[cfg(test)]
    pub(super) fn hold_appending(&self) -> impl Drop + '_ {
        self.appending.lock()
    }

    #[cfg(test)]
    pub(super) fn reuse_len(&self) -> usize {
        self.reuse.read().free().len()
    }

    /// Nothing of the slot's last user is left anywhere: the next may have it.
    pub(super) fn release(&self, slot: Slot) {
        self.reuse.write().release(slot.index());
    }

    /// Takes a user out of the index and gives it a tombstone in the log. From here on nobody is
    /// found by that id; the slot is for nobody until [`Interner::release`]. None: nobody had it.
    /// Nor is anybody forgotten whom `may` says no to. `leave` is told the slot before the id is
    /// gone, and when its tombstone is written.
    ///
    /// Errors: the log could not grow; nothing has changed then.
    pub(super) fn forget(
        &self,
        user: User<'_>,
        guard: &Guard,
        may: impl FnOnce(Slot) -> bool,
        leave: impl FnOnce(Slot),
    ) -> io::Result<Option<Slot>> {
        let mut appending = self.appending.lock();
        let hash = self.hash(user);
        let mut probe = self.index.probe(hash, guard);
        let found = probe.find_map(|offset| Some((offset, self.slot_at(offset, user)?)));
        let Some((offset, slot)) = found.filter(|(_, slot)| may(*slot)) else {
            return Ok(None);
        };
        self.log.append_tombstone(slot.index())?;
        appending.broken = true;
        self.has_strays.store(true, Ordering::Release);
        leave(slot);
        self.vacant.fetch_add(1, Ordering::Release);
        self.index.remove(hash, offset, guard);
        Ok(Some(slot))
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
        let mut appending = self.appending.lock();
        if let Some(slot) = self.find(user, hash, guard) {
            return Ok(slot);
        }
        let ready = self.reuse.read().next_ready();
        if let Some(slot) = ready {
            let offset = self
                .log
                .append(slot, user.as_bytes())
                .map_err(AppendFault::NoSpace)?;
            appending.broken = true;
            self.reuse.write().give(slot, offset);
            self.vacant.fetch_sub(1, Ordering::Release);
            self.index.insert(hash, offset, guard);
            return Ok(Slot::new(slot));
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
            appending.broken = false;
        } else if appending.broken {
            self.reuse.write().stray_at(index, offset);
        }
        // The count before the index entry: whoever finds the slot finds it counted.
        self.users.store(index + 1, Ordering::Release);
        self.index.insert(hash, offset, guard);
        Ok(Slot::new(index))
    }

    /// The user of a slot that has been made; of one who has been forgotten, until the slot is
    /// another's.
    pub(super) fn user(&self, slot: Slot) -> User<'_> {
        assert!(slot.index() < self.users(), "a slot that was never made");
        let walk = || {
            let group = &self.groups[(slot.index() / GROUP_SLOTS) as usize];
            let first = group.load(Ordering::Relaxed);
            (0..slot.index() % GROUP_SLOTS).fold(first, |offset, _| self.log.next_offset(offset))
        };
        let stray = || self.reuse.read().stray(slot.index());
        let stray = if self.has_strays.load(Ordering::Acquire) {
            stray()
        } else {
            None
        };
        let offset = stray.unwrap_or_else(walk);
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
    random::fill(seeds.as_flattened_mut())?;
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
    use crossbeam::epoch;

    use super::*;
    use crate::store::region::MappedFile;

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

    /// However a log is parted, the same users are found, and the same contradictions.
    #[test]
    fn parts_of_a_log_with_tombstones_are_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        file.set_len(record::START.offset).unwrap();
        let file = MappedFile::map(file, path, 2 << 20).unwrap();
        let log = Log::new(file, record::START.offset);
        let name = |n: u32| format!("user {n}");
        for n in 0..200 {
            log.append(n, name(n).as_bytes()).unwrap();
            if n % 10 == 9 {
                log.append_tombstone(n / 2).unwrap();
            }
            if n % 20 == 19 {
                log.append(n / 2, format!("again {n}").as_bytes()).unwrap();
            }
        }
        let end = log.end();
        // SAFETY: the log's bytes before its end are never written again.
        let bytes = unsafe { log.file().bytes_at(0, end as usize) };
        let guard = epoch::pin();
        for parts in 1..=7 {
            let (rebuilt, scan) = rebuild_in(bytes, end, 1_000, parts).unwrap();
            assert_eq!((scan.users, scan.end, scan.fault), (200, end, None));
            assert_eq!(rebuilt.contradiction, None);
            assert_eq!(rebuilt.reuse.free().len(), 10);
            for n in 0..200 {
                let hash = hash(&rebuilt.hasher, name(n).as_bytes());
                let found = rebuilt
                    .index
                    .probe(hash, &guard)
                    .any(|offset| log.record(offset) == (n, name(n).as_bytes()));
                assert_eq!(found, n % 5 != 4 || n >= 100, "{n} of {parts} parts");
            }
        }
        log.append(150, b"a slot with a user").unwrap();
        let end = log.end();
        // SAFETY: as above.
        let bytes = unsafe { log.file().bytes_at(0, end as usize) };
        let (rebuilt, _) = rebuild_in(bytes, end, 1_000, 3).unwrap();
        let found = rebuilt.contradiction.map(|fault| fault.found);
        assert_eq!(found.as_deref(), Some("slot 150, which has a user"));
    }
}
