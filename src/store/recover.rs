//! What the cells of a store that was just mapped must say before anybody reads them.
//!
//! Owns what a crash, a power cut, a missing map or damage has left in them. Never touches a slot
//! while the store runs.

use std::sync::atomic::Ordering;

use super::cells::{CellValue, Published, Stamp, StampFlags};
use super::fault::StoreFault;
use super::map::{CellFile, file_bytes};
use super::open::{Last, Parts, os};
use super::region::MappedFile;
use super::write_back::{CELLS_AHEAD_BYTES, LOG_AHEAD_BYTES};
use crate::planted::{self, Planted};
use crate::slot::{CHUNK_SLOTS, Slot};
use crate::status::Status;
use crate::time::Unix;

/// A cell further ahead of the clock and of what the headers say than this, in ms, is damaged: a
/// day.
const IMPOSSIBLE_AHEAD_MS: u64 = 86_400_000;

/// What recovering did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Recovered {
    /// What was published is not what watchers were told last: nobody knows that.
    pub(crate) republished: bool,
    /// published.map was made anew from the stamps.
    pub(crate) published_rebuilt: bool,
    /// A time after this that nothing explains is damage. What it stands in says LEFT or EXPIRED,
    /// and was left alone.
    pub(crate) latest_possible: Unix,
}

impl Parts {
    /// Makes room for all slots, zeroes the cells of those that nobody has, and mends what can not
    /// be. `free`: slots whose users are gone. `explained`: of a time that is yet to come, that the
    /// clock is known to have been there.
    ///
    /// Errors: the system's.
    pub(crate) fn recover(
        &self,
        free: impl Iterator<Item = Slot>,
        explained: impl Fn(Unix) -> bool,
        offline_after_ms: u64,
        now: Unix,
    ) -> Result<Recovered, StoreFault> {
        let last = self.last;
        self.promise();
        prepare(&self.stamps, self.slots)?;
        prepare(&self.published, self.slots)?;
        // Of nobody, so that who is given the slot begins without a past.
        for slot in free {
            let (stamp, published) = (self.stamps.cell(slot), self.published.cell(slot));
            stamp.store(Stamp::default(), Ordering::Relaxed);
            published.store(Published::NEVER, Ordering::Relaxed);
        }
        if !last.clean && !last.is_new {
            // What the last run could not write back may be in the page cache, marked as written.
            [self.log.file(), self.stamps.file(), self.published.file()]
                .into_iter()
                .for_each(MappedFile::doubt);
        }
        let latest_possible = self.latest_possible(&explained, now);
        let impossible = |ms: u64| ms > latest_possible.ms() && !explained(Unix::from_ms(ms));
        self.replace_impossible(&impossible, now);
        let published_rebuilt = last.published_missing && !last.is_new && self.slots > 0;
        let republished = last.power_cut || published_rebuilt;
        if republished {
            self.republish(&impossible, offline_after_ms, now);
        }
        Ok(Recovered {
            republished,
            published_rebuilt,
            latest_possible,
        })
    }

    /// In a memory nothing grows beyond what the disk has room for. Where it has none for more
    /// users, those who are known are served as ever.
    fn promise(&self) {
        let maps = [self.stamps.file(), self.published.file()];
        let needed = file_bytes(self.slots.max(1).next_multiple_of(CHUNK_SLOTS));
        let maps = maps.map(|map| {
            let missing = needed.saturating_sub(map.len_bytes());
            map.promise_ahead(missing + CELLS_AHEAD_BYTES)
        });
        let log = self.log.file().promise_ahead(LOG_AHEAD_BYTES);
        for error in maps.into_iter().chain([log]).filter_map(Result::err) {
            tracing::warn!(%error, "the disk has no room for new users");
        }
    }

    /// How long nobody could be heard before `now`, in ms, if that was longer than `grace_ms`:
    /// since the newer of the last header of a run and the newest stamp that is not ahead of the
    /// clock. A header from the future says that the clock is behind, and nothing of an outage.
    pub(crate) fn outage_ms(&self, grace_ms: u64, now: Unix) -> Option<u64> {
        let Last {
            written_at, ran_at, ..
        } = self.last;
        if self.last.is_new || self.slots == 0 || written_at > now {
            return None;
        }
        let is_long = |last: Unix| (now.ms_since(last) > grace_ms).then(|| now.ms_since(last));
        is_long(ran_at)?;
        let heard = self.heard_ms();
        let newest_ms = heard.filter(|ms| *ms <= now.ms()).max().unwrap_or(0);
        is_long(ran_at.max(Unix::from_ms(newest_ms)))
    }

    /// When each publisher was last heard, as far as others may know, in ms.
    fn heard_ms(&self) -> impl Iterator<Item = u64> {
        let stamps = &self.stamps.cells()[..self.slots as usize];
        let published = &self.published.cells()[..self.slots as usize];
        let cells = stamps.iter().zip(published);
        cells.map(|(stamp, published)| {
            let published = published.load(Ordering::Relaxed);
            stamp.load(Ordering::Relaxed).heard_ms(published)
        })
    }

    /// Nobody is online any more since `now`, and nobody is until a beat comes. Returns how many
    /// were.
    pub(crate) fn take_all_offline(&self, now: Unix) -> u32 {
        let mut taken = 0;
        let stamps = &self.stamps.cells()[..self.slots as usize];
        let published = &self.published.cells()[..self.slots as usize];
        for (stamp, cell) in stamps.iter().zip(published) {
            let (heard, before) = (stamp.load(Ordering::Relaxed), cell.load(Ordering::Relaxed));
            let gone = heard.has_parted() || heard.has(StampFlags::EXPIRED);
            // Whoever was heard too late to be told, too: by a clock that is behind, at this start
            // or a later one, that was just now.
            if (before.is_online() || heard.ms() > 0) && !gone {
                stamp.store(heard.with(StampFlags::EXPIRED), Ordering::Relaxed);
            }
            if before.is_online() {
                let since = Unix::from_ms(now.ms().max(before.since_ms() + 1));
                cell.store(Published::new(since, Status::Offline), Ordering::Relaxed);
                taken += 1;
            }
        }
        taken
    }

    /// The clock may be behind: one that is not kept while the machine is off begins anywhere. But
    /// the headers say when they were written, and that is seldom long ago.
    fn latest_possible(&self, explained: &impl Fn(Unix) -> bool, now: Unix) -> Unix {
        let written_at = Some(self.last.written_at).filter(|at| !explained(*at));
        let known = now.max(self.last.watermark);
        known
            .max(written_at.unwrap_or_default())
            .plus_ms(IMPOSSIBLE_AHEAD_MS)
    }

    /// One impossible time would have everybody else silent since long, and event ids doubtful for
    /// as long. Of those who are gone nobody asks whether they are fresh: theirs stay.
    fn replace_impossible(&self, impossible: &impl Fn(u64) -> bool, now: Unix) {
        let gone = StampFlags::LEFT.and(StampFlags::EXPIRED);
        let stamps = replace(&self.stamps, self.slots, |stamp| {
            let never = Unix::from_ms(0);
            // Beyond what any clock says it is damage, whatever the flags are.
            let wrong = stamp.order() < 0 || (impossible(stamp.ms()) && !stamp.has(gone));
            wrong.then(|| Stamp::new(never, never, stamp.flags()))
        });
        let published = replace(&self.published, self.slots, |published| {
            impossible(published.since_ms()).then(|| Published::new(now, published.status()))
        });
        if stamps + published > 0 {
            tracing::warn!(
                stamps,
                published,
                "cells with impossible times, which only damage can have made, were given others"
            );
        }
    }

    /// After a power cut, or without a published.map: who was published online, or was fresh when
    /// the last stamp was written, is online, with a transition now, for nobody knows what watchers
    /// were told last.
    fn republish(&self, impossible: &impl Fn(u64) -> bool, offline_after_ms: u64, now: Unix) {
        let stamps = &self.stamps.cells()[..self.slots as usize];
        let published = &self.published.cells()[..self.slots as usize];
        let newest_ms = self.heard_ms().filter(|ms| !impossible(*ms)).max();
        let newest_ms = newest_ms.unwrap_or(0);
        for (stamp, cell) in stamps.iter().zip(published) {
            let (stamp, before) = (stamp.load(Ordering::Relaxed), cell.load(Ordering::Relaxed));
            let was_fresh = !stamp.has(StampFlags::LEFT.and(StampFlags::EXPIRED))
                && stamp.ms() != 0
                && newest_ms.saturating_sub(stamp.ms()) <= offline_after_ms;
            if was_fresh || before.is_online() {
                let since = Unix::from_ms(now.ms().max(before.since_ms() + 1));
                let status = match before.status() {
                    Status::Offline | Status::Unknown => stamp.shown_status(),
                    here => here,
                };
                cell.store(Published::new(since, status), Ordering::Relaxed);
            }
        }
    }
}

/// Makes room for the cells of all slots, and none of more.
fn prepare<V: CellValue + Sync>(cells: &CellFile<V>, slots: u32) -> Result<(), StoreFault> {
    let file = cells.file();
    cells
        .reserve(slots.max(1))
        .map_err(os("make room in", file.path()))?;
    // On disk before these slots are given anew: another power cut could keep the new record and
    // the old cells. After a clean close too, for nobody says what has become of the file since.
    if !planted::is(Planted::CellsBeyondTrusted) && zero_beyond(cells, slots) {
        cells.sync().map_err(os("write", file.path()))?;
    }
    Ok(())
}

/// Slots that users.log does not know have no cells: a power cut may have kept these and lost their
/// records, a backup may be older than the maps, or a disk may be bad. Whether there were any.
fn zero_beyond<V: CellValue + Sync>(cells: &CellFile<V>, slots: u32) -> bool {
    let beyond = &cells.cells()[slots as usize..];
    let used = beyond
        .iter()
        .filter(|cell| cell.load(Ordering::Relaxed).bits() != 0);
    used.map(|cell| cell.store(V::from_bits(0), Ordering::Relaxed))
        .count()
        > 0
}

/// Gives another value to the cells for which there is a better one. Returns how many.
fn replace<V: CellValue + Sync>(
    cells: &CellFile<V>,
    slots: u32,
    better: impl Fn(V) -> Option<V>,
) -> u32 {
    let mut replaced = 0;
    for cell in &cells.cells()[..slots as usize] {
        if let Some(value) = better(cell.load(Ordering::Relaxed)) {
            cell.store(value, Ordering::Relaxed);
            replaced += 1;
        }
    }
    replaced
}
