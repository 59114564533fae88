//! Gives the kernel back what a crowd took and has freed, as far as the allocator keeps it.
//!
//! Owns when glibc is told to. Left alone it keeps two kinds of memory: the free end of each arena,
//! up to 64 MiB after large blocks have been freed once (mallopt(3)), and free pages between blocks
//! that live on, for ever. Other allocators are left alone. Never looks at a connection; what has
//! gone is read from the gauges.

use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};

use crate::metrics::{Board, Gauge};
use crate::time::boottime;

/// Between two looks at the gauges.
const LOOK: Duration = Duration::from_secs(1);
/// Connections and watches that must have gone before it is worth it: some megabytes.
const GONE_MIN: u64 = 50_000;
/// Looks for which the allocator is let be after it was told: while it looks, a shard that
/// allocates waits (2 ms after a million watches by name).
const RESTS: u32 = 5;

/// What a shard holds: each of these is some tens of bytes.
const HELD: [Gauge; 3] = [Gauge::Conns, Gauge::WatchesBySlot, Gauge::WatchesByName];

/// Bounds what the allocator keeps by itself. Call before threads are started.
pub(super) fn set_up() {
    #[cfg(target_env = "gnu")]
    {
        /// From this size on a block is a mapping of its own. glibc begins with the same, and
        /// raises it with each such block that is freed; then large tables grow by copying, into
        /// memory that the smaller ones left full of holes (with 1 MiB an idle stream costs 120
        /// bytes instead of 88).
        const MAPPED_BYTES_MIN: libc::c_int = 128 << 10;
        /// Free bytes at the end of an arena.
        const FREE_END_BYTES_MAX: libc::c_int = 1 << 20;
        for (parameter, bytes) in [
            (libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN),
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
    let (mut crowd, mut rests) = (Crowd::default(), 0_u32);
    while stop.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        let held = board.shards.iter().map(|shard| shard.snapshot());
        let held =
            held.map(|counters| HELD.iter().map(|gauge| counters.gauge(*gauge)).sum::<u64>());
        let gone = crowd.has_gone(held.sum());
        rests = rests.saturating_sub(1);
        if gone && rests == 0 {
            crowd.forget();
            rests = RESTS;
            give_back();
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
