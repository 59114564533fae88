//! users.log, open: every user that was given a slot, in the order in which they were.
//!
//! Owns appending and the way to a record. Bytes before `end` are never written again, so they are
//! read without a lock. What a record's bytes mean is in record.rs; which user gets a slot is
//! decided elsewhere.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::record::{
    FIRST_RECORD, ID_AT, RECORD_BYTES_MAX, RECORD_OVERHEAD_BYTES, encode, encode_tombstone,
};
use super::region::{MappedFile, PAGE_BYTES};
use crate::cache::prefetch;

const GROWTH_BYTES_MIN: u64 = 1 << 20;
/// A shard waits for it.
const GROWTH_BYTES_MAX: u64 = 32 << 20;
/// A memory is zeroed when it grows.
const GROWTH_BYTES_IN_MEMORY_MAX: u64 = 2 << 20;

/// Kept for tombstones: whoever asks to be erased is, though there is no room for anybody new.
const ERASURES_BYTES: u64 = 1 << 20;
/// An index entry points no further.
const LOG_BYTES_MAX: u64 = 1 << 40;

/// Address space of a log that has `have_bytes`, for `users_max` users more with the longest ids.
/// So each start has the same room for erasures, and for who comes after them.
pub(crate) fn reserved_bytes(users_max: u32, have_bytes: u64) -> u64 {
    let more = u64::from(users_max) * RECORD_BYTES_MAX as u64 + 1 + ERASURES_BYTES;
    let bytes = (have_bytes.max(FIRST_RECORD) + more).next_multiple_of(PAGE_BYTES);
    bytes.min(LOG_BYTES_MAX - PAGE_BYTES)
}

/// What of a log is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogRoom {
    /// Bytes of records, and of those that follow only tombstones.
    pub used_bytes: u64,
    /// At so many no new user is taken in any more before the next start.
    pub max_bytes: u64,
    /// Less than a fifth is left of what this start has given.
    pub is_scarce: bool,
}

/// Bytes by which a log that has so many grows.
fn growth_bytes(have: u64) -> u64 {
    (have / 8).clamp(GROWTH_BYTES_MIN, GROWTH_BYTES_MAX)
}

/// The log, open for reading by all and for appending by one at a time.
pub(crate) struct Log {
    file: MappedFile,
    /// Bytes before this are records, complete and final.
    end: AtomicU64,
    /// The same when it was opened.
    opened_end: u64,
}

impl Log {
    /// A log whose records end at `end`, as a scan found it.
    pub(crate) fn new(file: MappedFile, end: u64) -> Log {
        Log {
            file,
            end: AtomicU64::new(end),
            opened_end: end,
        }
    }

    pub(crate) fn file(&self) -> &MappedFile {
        &self.file
    }

    /// Bytes written so far.
    pub(crate) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// What is used of the room that this start has given.
    pub(crate) fn room(&self) -> LogRoom {
        let (used_bytes, max_bytes) = (self.end(), self.users_bytes_max());
        let given = max_bytes.saturating_sub(self.opened_end);
        let left = max_bytes.saturating_sub(used_bytes);
        LogRoom {
            used_bytes,
            max_bytes,
            is_scarce: left <= given / 5,
        }
    }

    fn users_bytes_max(&self) -> u64 {
        self.file.reserved_bytes().saturating_sub(ERASURES_BYTES)
    }

    /// Appends the record of a slot; returns its offset. One caller at a time (the interner's
    /// lock).
    ///
    /// Errors: the file could not grow, or this start's room is used up; nothing has changed then.
    pub(crate) fn append(&self, slot: u32, id: &[u8]) -> io::Result<u64> {
        let mut record = [0; RECORD_BYTES_MAX];
        let length = encode(&mut record, slot, id);
        if self.end() + length as u64 >= self.users_bytes_max() {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "the records of users who are gone fill users.log: restart, or stop and run \
                 `greendot store compact`",
            ));
        }
        self.append_record(&record[..length])
    }

    /// Appends the tombstone of a slot; from then on its user is gone and the slot is free. One
    /// caller at a time, as above.
    ///
    /// Errors: the file could not grow; nothing has changed then.
    pub(crate) fn append_tombstone(&self, slot: u32) -> io::Result<u64> {
        self.append_record(&encode_tombstone(slot))
    }

    fn append_record(&self, record: &[u8]) -> io::Result<u64> {
        let offset = self.end();
        let end = offset + record.len() as u64;
        // One byte more: the zero that ends the log.
        if end + 1 > self.file.len_bytes() {
            self.grow(end + 1)?;
        }
        // SAFETY: readers stay below `end`, and the interner's lock lets one appender in at a time.
        unsafe { self.file.write_at(offset, record) };
        self.end.store(end, Ordering::Release);
        Ok(offset)
    }

    fn grow(&self, needed_bytes: u64) -> io::Result<()> {
        let have = self.file.len_bytes();
        let needed = needed_bytes.next_multiple_of(PAGE_BYTES);
        let step = match self.file.behind() {
            None => growth_bytes(have),
            Some(_) => growth_bytes(have).min(GROWTH_BYTES_IN_MEMORY_MAX),
        };
        let wanted = (have + step).next_multiple_of(PAGE_BYTES);
        let generous = wanted.clamp(needed, self.file.reserved_bytes().max(needed));
        // Where there is no room to be generous there may be enough for this one.
        self.file.grow(generous).or_else(|_| self.file.grow(needed))
    }

    /// Slot and id of the user's record at `offset`, which must come from `append` or a scan.
    #[inline(always)]
    pub(crate) fn record(&self, offset: u64) -> (u32, &[u8]) {
        let rest = self.final_bytes(offset, self.end().saturating_sub(offset) as usize);
        let slot = u32::from_le_bytes([rest[1], rest[2], rest[3], rest[4]]);
        (slot, &rest[ID_AT as usize..][..usize::from(rest[0])])
    }

    /// Where the record after the user's record at `offset` begins.
    pub(crate) fn next_offset(&self, offset: u64) -> u64 {
        offset + RECORD_OVERHEAD_BYTES as u64 + u64::from(self.final_bytes(offset, 1)[0])
    }

    /// Fetches the record at `offset` up to the end of its id, if that has `id_bytes`.
    #[inline]
    pub(crate) fn prefetch(&self, offset: u64, id_bytes: usize) {
        prefetch(self.file.address(offset));
        // A record of a common length lies on two lines one time in three.
        prefetch(self.file.address(offset + ID_AT + id_bytes as u64 - 1));
    }

    #[inline(always)]
    fn final_bytes(&self, offset: u64, length: usize) -> &[u8] {
        assert!(
            offset + length as u64 <= self.end(),
            "an offset that no record begins at"
        );
        // SAFETY: bytes before `end` are never written again (`append` starts at `end`, and it only
        // grows).
        unsafe { self.file.bytes_at(offset, length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_an_eighth_within_bounds() {
        let mib = 1 << 20;
        for (have, step) in [
            (0, mib),
            (64 * mib, 8 * mib),
            (256 * mib, 32 * mib),
            (4_096 * mib, 32 * mib),
        ] {
            assert_eq!(growth_bytes(have), step);
        }
    }
}
