//! Gives the kernel back what a crowd took and has freed, as far as the allocator keeps it.
//!
//! Owns when glibc is told to. Left alone it keeps two kinds of memory: the free end of each arena,
//! up to 64 MiB after large blocks have been freed once (mallopt(3)), and free pages between blocks
//! that live on, for ever. Other allocators are left alone. Never looks at a connection; what has
//! gone is read from the gauges, and what a burst of requests and answers has left behind from the
//! memory that the process holds.

use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};

use rustix::param::page_size;

use crate::metrics::{Board, Gauge};
use crate::time::boottime;

/// Between two looks at the gauges.
const LOOK: Duration = Duration::from_secs(1);
/// Connections and watches that must have gone before it is worth it: some megabytes.
const GONE_MIN: u64 = 50_000;
/// Resident bytes by which the process must have grown since it was last told that it is worth it:
/// buffers of a burst, which no gauge shows.
const GROWN_BYTES_MIN: u64 = 16 << 20;
/// Looks for which the allocator is let be after it was told: while it looks, a shard that
/// allocates waits (2 ms after a million watches by name).
const RESTS: u32 = 5;

/// What a shard holds: each of these is some tens of bytes.
const HELD: [Gauge; 3] = [Gauge::Conns, Gauge::WatchesBySlot, Gauge::WatchesByName];

/// Bounds what the allocator keeps by itself. Call before threads are started.
pub(super) fn set_up() {
    #[cfg(target_env = "gnu")]
    {
        /// From this size on a block is a mapping of its own. glibc begins with twice as much, and
        /// raises it with each such block that is freed; then large tables grow by copying, into
        /// memory that the smaller ones left full of holes (with 1 MiB an idle stream costs 120
        /// bytes instead of 88).
        const MAPPED_BYTES_MIN: libc::c_int = 64 << 10;
        /// Most such mappings: a process may have 65,530 of all kinds (vm.max_map_count), and a
        /// full outbox is one.
        const MAPPINGS_MAX: libc::c_int = 16_384;
        /// Free bytes at the end of an arena.
        const FREE_END_BYTES_MAX: libc::c_int = 1 << 20;
        for (parameter, bytes) in [
            (libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN),
            (libc::M_MMAP_MAX, MAPPINGS_MAX),
            (libc::M_TRIM_THRESHOLD, FREE_END_BYTES_MAX),
        ] {
            // SAFETY: it takes two numbers, and keeps its own lock.
            let taken = unsafe { libc::mallopt(parameter, bytes) };
            if taken == 0 {
                tracing::debug!(parameter, "the allocator does not take the parameter");
            }
        }
    }
}

/// Looks until the sender of `stop` is dropped.
pub(super) fn give_back_until(stop: &Receiver<()>, board: &Board) {
    let (mut crowd, mut burst, mut rests) = (Crowd::default(), Burst::default(), 0_u32);
    while stop.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        let held = board.shards.iter().map(|shard| shard.snapshot());
        let held =
            held.map(|counters| HELD.iter().map(|gauge| counters.gauge(*gauge)).sum::<u64>());
        let gone = crowd.has_gone(held.sum());
        let over = burst.is_over(resident_bytes());
        rests = rests.saturating_sub(1);
        if (gone || over) && rests == 0 {
            crowd.forget();
            rests = RESTS;
            give_back();
            burst.forget(resident_bytes());
        }
    }
}

fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        let began = boottime();
        // SAFETY: it takes a number, and locks each arena in turn.
        unsafe { libc::malloc_trim(0) };
        tracing::debug!(
            micros = boottime().micros_since(began),
            "gave freed memory back"
        );
    }
}

/// What the process has in memory.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0_u64) * page_size() as u64
}

/// The resident memory, and what it was when the allocator had been told.
#[derive(Debug, Default)]
struct Burst {
    floor_bytes: u64,
    last_bytes: u64,
}

impl Burst {
    /// Whether the process has grown by so much that it is worth asking for what is free of it, and
    /// the growing has ended.
    fn is_over(&mut self, bytes: u64) -> bool {
        let ended = bytes <= self.last_bytes;
        self.last_bytes = bytes;
        self.floor_bytes = match self.floor_bytes {
            0 => bytes,
            floor => floor.min(bytes),
        };
        ended && bytes - self.floor_bytes >= GROWN_BYTES_MIN.max(self.floor_bytes / 8)
    }

    /// So much is left: it is in use.
    fn forget(&mut self, bytes: u64) {
        self.floor_bytes = bytes;
    }
}

/// How much is held, and how much has been.
#[derive(Debug, Default)]
struct Crowd {
    peak: u64,
    last: u64,
}

impl Crowd {
    /// Whether a quarter of what was held at most has gone, and the going has ended.
    fn has_gone(&mut self, held: u64) -> bool {
        let ended = held >= self.last;
        self.last = held;
        self.peak = self.peak.max(held);
        ended && self.peak - held >= GONE_MIN.max(self.peak / 4)
    }

    fn forget(&mut self) {
        self.peak = self.last;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_over_when_the_process_grows_no_more() {
        const MIB: u64 = 1 << 20;
        let mut burst = Burst::default();
        let looks = [50, 45, 80, 120, 120].map(|mib| burst.is_over(mib * MIB));
        assert_eq!(looks, [false, false, false, false, true]);
        // It was in use.
        burst.forget(118 * MIB);
        assert_eq!([120, 120].map(|mib| burst.is_over(mib * MIB)), [false; 2]);
        // It shrinks by itself, and what comes then is a burst again.
        let looks = [45, 61, 61].map(|mib| burst.is_over(mib * MIB));
        assert_eq!(looks, [false, false, true]);
    }

    #[test]
    fn a_crowd_has_gone_when_no_more_go() {
        let mut crowd = Crowd::default();
        let looks = [1_000_000, 900_000, 900_000, 700_000, 700_000];
        assert_eq!(
            looks.map(|held| crowd.has_gone(held)),
            [false, false, false, false, true]
        );
        crowd.forget();
        assert_eq!(
            [700_000, 0, 0].map(|held| crowd.has_gone(held)),
            [false, false, true]
        );
        crowd.forget();
        assert_eq!(
            [49_999, 0, 0].map(|held| crowd.has_gone(held)),
            [false, false, false]
        );
    }
}
