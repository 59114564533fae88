//! Hash index of users.log: from the hash of an id to the offsets of the records that may hold it.
//!
//! Owns the tables. Reading takes no lock; one writer at a time. Many small segments grow one by
//! one, each by a quarter, so that a growth moves few entries and memory stays near the need. An
//! entry is `tag 24 bits | offset 40 bits` (0: free). The place of an entry follows from its tag,
//! so a growth never reads a record. Never compares ids: that is the interner's.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crossbeam::epoch::{self, Guard, Owned};

use crate::cache::prefetch;

const OFFSET_BITS: u32 = 40;
const OFFSET_MASK: u64 = (1 << OFFSET_BITS) - 1;
/// Where an entry points that is of nobody any more: behind the end of any log. It stays until its
/// segment grows, or walks for others of its neighbours would end at it.
const DEAD: u64 = OFFSET_MASK;
const TAG_BITS: u32 = 24;
/// Users of a segment when the store is full, if there are not too many segments then.
const SEGMENT_USERS: u32 = 16_384;
const SEGMENTS_MAX: u32 = 4_096;
const TABLE_ENTRIES_MIN: usize = 8;
/// Entries that most walks stay within.
const WALK_ENTRIES: usize = 3;

pub(super) struct Index {
    segments: Box<[Segment]>,
}

#[derive(Default)]
struct Segment {
    /// Null until the first entry.
    table: epoch::Atomic<Table>,
    /// Entries used; the writer's.
    used: AtomicU32,
}

struct Table {
    entries: Box<[AtomicU64]>,
}

/// A walk over the entries that carry one tag.
#[derive(Clone, Copy)]
pub(super) struct Probe<'g> {
    entries: &'g [AtomicU64],
    position: usize,
    tag: u64,
}

impl Index {
    /// An empty index for at most `users_max` users.
    pub(super) fn new(users_max: u32) -> Index {
        let segments = users_max.div_ceil(SEGMENT_USERS).clamp(1, SEGMENTS_MAX);
        Index {
            segments: (0..segments).map(|_| Segment::default()).collect(),
        }
    }

    /// An index of all records sorted into `piles` (as many as there are threads to fill the
    /// tables), each at its final size.
    pub(super) fn build(users_max: u32, mut piles: Vec<Pile>) -> Index {
        let mut index = Index::new(users_max);
        let share = index.segments.len().div_ceil(piles.len().max(1));
        let mut piles: Vec<_> = piles
            .iter_mut()
            .map(|pile| pile.entries.chunks_mut(share))
            .collect();
        std::thread::scope(|scope| {
            for segments in index.segments.chunks_mut(share) {
                let mut of_segments: Vec<_> = piles.iter_mut().filter_map(Iterator::next).collect();
                scope.spawn(move || {
                    for (at, segment) in segments.iter_mut().enumerate() {
                        let entries: Vec<_> = of_segments
                            .iter_mut()
                            .map(|pile| std::mem::take(&mut pile[at]))
                            .collect();
                        segment.fill(&entries);
                    }
                });
            }
        });
        index
    }

    /// Which segment a hash belongs to.
    #[inline]
    fn segment_of(&self, hash: u64) -> usize {
        segment_of(hash, self.segments.len())
    }

    /// Starts a walk over the records that may hold the id of this hash.
    #[inline]
    pub(super) fn probe<'g>(&self, hash: u64, guard: &'g Guard) -> Probe<'g> {
        let table = self.segments[self.segment_of(hash)]
            .table
            .load(Ordering::Acquire, guard);
        // SAFETY: null or a table that was published with Release and is freed only after every
        // guard pinned now is gone.
        match unsafe { table.as_ref() } {
            None => Probe::EMPTY,
            Some(table) => {
                let tag = tag_of(hash);
                Probe {
                    entries: &table.entries,
                    position: place(tag, table.entries.len()),
                    tag,
                }
            }
        }
    }

    /// Adds a record that is complete. One caller at a time.
    pub(super) fn insert(&self, hash: u64, offset: u64, guard: &Guard) {
        debug_assert!(offset != 0 && offset < 1 << OFFSET_BITS);
        let segment = &self.segments[self.segment_of(hash)];
        let used = segment.used.load(Ordering::Relaxed) as usize;
        let current = segment.table.load(Ordering::Relaxed, guard);
        // SAFETY: as in `probe`.
        let table = unsafe { current.as_ref() };
        let length = table.map_or(0, |table| table.entries.len());
        let entry = entry_of(hash, offset);
        let mut live = used;
        // At most four fifths full: a walk for an absent id then reads two cache lines, seldom
        // more.
        if (used + 1) * 5 > length * 4 {
            let old = table.map_or(&[][..], |table| &table.entries);
            let old = old.iter().map(|entry| entry.load(Ordering::Relaxed));
            let old = old.filter(|entry| *entry != 0 && entry & OFFSET_MASK != DEAD);
            live = old.clone().count();
            let grown = Table::with_length(length_for(live + 1, length));
            old.for_each(|entry| grown.put(entry));
            grown.put(entry);
            segment.table.store(Owned::new(grown), Ordering::Release);
            if !current.is_null() {
                // SAFETY: no longer reachable from the segment; `insert` has one caller at a time,
                // so it is retired once.
                unsafe { guard.defer_destroy(current) };
            }
        } else if let Some(table) = table {
            table.put(entry);
        }
        segment.used.store(live as u32 + 1, Ordering::Relaxed);
    }

    /// Takes out the entry of a record. One caller at a time, with [`Index::insert`].
    pub(super) fn remove(&self, hash: u64, offset: u64, guard: &Guard) {
        let table = self.segments[self.segment_of(hash)]
            .table
            .load(Ordering::Relaxed, guard);
        // SAFETY: as in `probe`.
        let entries = unsafe { table.as_ref() }.map_or(&[][..], |table| &table.entries);
        let (entry, dead) = (entry_of(hash, offset), entry_of(hash, DEAD));
        let start = place(tag_of(hash), entries.len());
        let walk = entries[start..].iter().chain(&entries[..start]);
        let mut walk = walk.take_while(|found| found.load(Ordering::Relaxed) != 0);
        if let Some(found) = walk.find(|found| found.load(Ordering::Relaxed) == entry) {
            found.store(dead, Ordering::Release);
        }
    }
}

/// Entries sorted by segment: an index in the making.
pub(super) struct Pile {
    entries: Vec<Vec<u64>>,
}

impl Pile {
    pub(super) fn new(users_max: u32) -> Pile {
        Pile {
            entries: vec![Vec::new(); segments_for(users_max)],
        }
    }

    #[inline]
    pub(super) fn add(&mut self, hash: u64, offset: u64) {
        let segment = segment_of(hash, self.entries.len());
        self.entries[segment].push(entry_of(hash, offset));
    }

    /// Takes out the entries of these offsets.
    pub(super) fn forget(&mut self, offsets: &BTreeSet<u64>) {
        let is_dead = |entry: &u64| offsets.contains(&(entry & OFFSET_MASK));
        for segment in &mut self.entries {
            segment.retain(|entry| !is_dead(entry));
        }
    }
}

impl Segment {
    /// Makes the table of a segment that has none, with the room that growths would have left on
    /// average.
    fn fill(&mut self, piles: &[Vec<u64>]) {
        let used: usize = piles.iter().map(Vec::len).sum();
        if used == 0 {
            return;
        }
        let table = Table::with_length(used + used / 3 + TABLE_ENTRIES_MIN);
        piles.iter().flatten().for_each(|entry| table.put(*entry));
        self.table = epoch::Atomic::new(table);
        self.used = AtomicU32::new(used as u32);
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        for segment in &mut self.segments {
            let table = std::mem::replace(&mut segment.table, epoch::Atomic::null());
            // SAFETY: `&mut self`: no reader is left, and the table was not retired, for it was
            // still in its segment.
            drop(unsafe { table.try_into_owned() });
        }
    }
}

impl Table {
    fn with_length(length: usize) -> Table {
        Table {
            entries: (0..length).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn put(&self, entry: u64) {
        let length = self.entries.len();
        let mut position = place(entry >> OFFSET_BITS, length);
        while self.entries[position].load(Ordering::Relaxed) != 0 {
            position = if position + 1 == length {
                0
            } else {
                position + 1
            };
        }
        self.entries[position].store(entry, Ordering::Release);
    }
}

impl Probe<'_> {
    pub(super) const EMPTY: Probe<'static> = Probe {
        entries: &[],
        position: 0,
        tag: 0,
    };

    /// Fetches the line that the walk starts on.
    #[inline]
    pub(super) fn prefetch(&self) {
        if let Some(entry) = self.entries.get(self.position) {
            prefetch(entry);
            // Most walks are shorter than this: on another line only if this one starts near its
            // line's end.
            prefetch(std::ptr::from_ref(entry).wrapping_add(WALK_ENTRIES));
        }
    }
}

impl Iterator for Probe<'_> {
    type Item = u64;

    /// The offset of the next record whose tag is the same; None after the last.
    #[inline]
    fn next(&mut self) -> Option<u64> {
        loop {
            let entry = self.entries.get(self.position)?.load(Ordering::Acquire);
            if entry == 0 {
                return None;
            }
            self.position += 1;
            if self.position == self.entries.len() {
                self.position = 0;
            }
            if entry >> OFFSET_BITS == self.tag && entry & OFFSET_MASK != DEAD {
                return Some(entry & OFFSET_MASK);
            }
        }
    }
}

/// Entries of the table that follows one of `length`, for so many that live. Where most of what
/// filled it is dead, the same room holds as many again before it is full.
fn length_for(live: usize, length: usize) -> usize {
    if live * 5 <= length * 3 {
        return length;
    }
    (length + length / 4).max(length + TABLE_ENTRIES_MIN)
}

fn segments_for(users_max: u32) -> usize {
    users_max.div_ceil(SEGMENT_USERS).clamp(1, SEGMENTS_MAX) as usize
}

#[inline]
fn segment_of(hash: u64, segments: usize) -> usize {
    (((hash >> 32) * segments as u64) >> 32) as usize
}

#[inline]
fn entry_of(hash: u64, offset: u64) -> u64 {
    tag_of(hash) << OFFSET_BITS | offset
}

#[inline]
fn tag_of(hash: u64) -> u64 {
    hash & ((1 << TAG_BITS) - 1)
}

/// Where the walk of a tag starts: in tag order, so that a growth copies nearly straight through.
#[inline]
fn place(tag: u64, length: usize) -> usize {
    ((tag * length as u64) >> TAG_BITS) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_found_through_all_growths() {
        let index = Index::new(100_000);
        let guard = epoch::pin();
        let hash = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        for n in 1..=50_000 {
            index.insert(hash(n), n, &guard);
            assert!(index.probe(hash(n), &guard).any(|offset| offset == n));
        }
        for n in 1..=50_000 {
            assert!(
                index.probe(hash(n), &guard).any(|offset| offset == n),
                "{n}"
            );
        }
        let entries: usize = index
            .segments
            .iter()
            .map(|segment| {
                let table = segment.table.load(Ordering::Relaxed, &guard);
                // SAFETY: as in `probe`.
                unsafe { table.as_ref() }.map_or(0, |table| table.entries.len())
            })
            .sum();
        assert!(
            entries * 8 <= 50_000 * 13,
            "{entries} entries for 50,000 users"
        );
    }

    #[test]
    fn entries_that_are_removed_are_not_found_and_leave_with_a_growth() {
        let index = Index::new(1);
        let guard = epoch::pin();
        let hash = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        for n in 128..10_000_u64 {
            // All of one tag, now and then: the walk goes on behind those that are gone.
            let hash = if n % 100 < 5 { 7 } else { hash(n) };
            index.insert(hash, n, &guard);
            if n % 3 == 0 {
                index.remove(hash, n, &guard);
                index.remove(hash, n, &guard);
            }
            let found = index.probe(hash, &guard).any(|offset| offset == n);
            assert_eq!(found, n % 3 != 0, "{n}");
        }
        let live = (128..10_000).filter(|n| n % 3 != 0).count();
        let used = index.segments[0].used.load(Ordering::Relaxed) as usize;
        assert!((live..live * 3 / 2).contains(&used), "{used} of {live}");
    }

    /// A hundred users who are erased and come again, for ever.
    #[test]
    fn a_table_does_not_grow_for_entries_that_are_removed() {
        let index = Index::new(1);
        let guard = epoch::pin();
        let hash = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        let length = || {
            let table = index.segments[0].table.load(Ordering::Relaxed, &guard);
            // SAFETY: as in `probe`.
            unsafe { table.as_ref() }.map_or(0, |table| table.entries.len())
        };
        for n in 1..=100_000 {
            index.insert(hash(n), n, &guard);
            if let Some(gone) = n.checked_sub(100).filter(|gone| *gone > 0) {
                index.remove(hash(gone), gone, &guard);
                assert!(!index.probe(hash(gone), &guard).any(|offset| offset == gone));
            }
            assert!(length() <= 225, "{} entries after {n}", length());
        }
        assert!((99_901..=100_000).all(|n| index.probe(hash(n), &guard).any(|found| found == n)));
        // Whoever stays is counted: the table grows for them.
        for n in 100_001..=101_000 {
            index.insert(hash(n), n, &guard);
        }
        assert!(
            (1_100 * 5 / 4..1_100 * 2).contains(&length()),
            "{}",
            length()
        );
    }

    #[test]
    fn an_index_built_from_piles_holds_and_takes_entries() {
        for parts in [1, 2, 3] {
            let hash = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
            let mut piles: Vec<Pile> = (0..parts).map(|_| Pile::new(100_000)).collect();
            for n in 1..=50_000 {
                piles[n as usize % parts].add(hash(n), n);
            }
            let index = Index::build(100_000, piles);
            let guard = epoch::pin();
            for n in 50_001..=70_000 {
                index.insert(hash(n), n, &guard);
            }
            for n in 1..=70_000 {
                assert!(
                    index.probe(hash(n), &guard).any(|offset| offset == n),
                    "{n} of {parts} parts"
                );
            }
        }
    }

    #[test]
    fn equal_hashes_are_all_walked_and_the_walk_wraps() {
        let index = Index::new(1);
        let guard = epoch::pin();
        // The highest tag starts at the table's last entry.
        for offset in 1..=5 {
            index.insert(u64::MAX, offset, &guard);
        }
        assert_eq!(
            index.probe(u64::MAX, &guard).collect::<Vec<_>>(),
            [1, 2, 3, 4, 5]
        );
        assert_eq!(
            index.probe(0, &guard).collect::<Vec<_>>(),
            Vec::<u64>::new()
        );
    }
}
