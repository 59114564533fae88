//! What this process takes of the machine, for `/metrics`, as Prometheus' clients name it.
//!
//! Owns the reading of /proc/self. Runs on a thread of its own, so that no shard ever waits for
//! /proc: counting the descriptors of a million connections takes a while. What can not be read
//! stays unknown, and is not shown.

use std::fs;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::cgroup;
use crate::metrics::{Board, Counter, Gauge, LOOK_MS};
use crate::time::{Mono, boottime};

/// Between two looks. Whoever scrapes sees what was true then.
const LOOK: Duration = Duration::from_millis(LOOK_MS);
/// Counting descriptors one by one takes at most one part in so many of the time.
const COUNTING_RESTS: u64 = 100;

/// What has been read so far.
#[derive(Default)]
pub(super) struct Usage {
    /// CPU time that has been counted, in microseconds.
    counted_micros: u64,
    /// Descriptors are not counted one by one before.
    counting_due: Mono,
}

impl Usage {
    /// The first look. Taken before the node says that it listens, so that no scrape finds nothing.
    pub(super) fn first(board: &Board) -> Usage {
        let mut usage = Usage::default();
        usage.look(board);
        usage
    }

    /// Looks again and again until the sender of `stop` is dropped; each time so does `also`.
    pub(super) fn look_until(mut self, stop: &Receiver<()>, board: &Board, mut also: impl FnMut()) {
        while stop.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            self.look(board);
            also();
        }
    }

    fn look(&mut self, board: &Board) {
        let cells = &board.process;
        let micros = cpu_micros();
        cells.add(
            Counter::ProcessCpu,
            micros.saturating_sub(self.counted_micros),
        );
        self.counted_micros = micros;
        let memory = cgroup::memory();
        cells.set(Gauge::MemoryLimit, memory.map_or(0, |memory| memory.max));
        cells.set(Gauge::MemoryUsed, memory.map_or(0, |memory| memory.used));
        let soft = getrlimit(Resource::Nofile).current;
        cells.set(Gauge::ProcessMaxFds, soft.unwrap_or(u64::MAX));
        if let Some(fds) = self.open_fds() {
            cells.set(Gauge::ProcessOpenFds, fds);
        }
        let stat = fs::read_to_string("/proc/self/stat").ok();
        let Some(stat) = stat.as_deref().and_then(Stat::parse) else {
            return;
        };
        cells.set(Gauge::ProcessVirtualMemory, stat.virtual_bytes);
        cells.set(
            Gauge::ProcessResidentMemory,
            stat.resident_pages * page_size() as u64,
        );
        let booted = fs::read_to_string("/proc/stat").ok();
        if let Some(booted_s) = booted.as_deref().and_then(booted_s) {
            let ticks_per_s = clock_ticks_per_second().max(1);
            let since_boot = stat.start_ticks.saturating_mul(1_000_000) / ticks_per_s;
            // Shown once all is known.
            cells.set(
                Gauge::ProcessStartTime,
                booted_s.saturating_mul(1_000_000) + since_boot,
            );
        }
    }

    /// None: as before. Since Linux 6.2 the folder's size is their number; before they are counted,
    /// seldom if there are many.
    fn open_fds(&mut self) -> Option<u64> {
        const FOLDER: &str = "/proc/self/fd";
        let known = fs::metadata(FOLDER).ok()?.len();
        if known > 0 {
            return Some(known);
        }
        let began = boottime();
        if began < self.counting_due {
            return None;
        }
        // One of them is the folder's own.
        let count = fs::read_dir(FOLDER).ok()?.count().saturating_sub(1);
        let took_ms = boottime().ms_since(began);
        self.counting_due = boottime().plus_ms(took_ms.saturating_mul(COUNTING_RESTS));
        Some(count as u64)
    }
}

/// CPU time of all threads, those that have ended too.
fn cpu_micros() -> u64 {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    spent.tv_sec as u64 * 1_000_000 + spent.tv_nsec as u64 / 1_000
}

/// What is used of /proc/self/stat (proc_pid_stat(5)).
#[derive(PartialEq, Eq, Debug)]
struct Stat {
    /// From the boot of the machine on.
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Stat> {
        // The program's name, in parentheses, may hold any byte.
        let mut behind = text.rsplit_once(')')?.1.split_ascii_whitespace();
        // The first field behind it is the third.
        let start_ticks = behind.nth(22 - 3)?.parse().ok()?;
        let virtual_bytes = behind.next()?.parse().ok()?;
        let resident_pages = behind.next()?.parse().ok()?;
        Some(Stat {
            start_ticks,
            virtual_bytes,
            resident_pages,
        })
    }
}

/// When the machine was booted, in seconds of Unix time, of /proc/stat.
fn booted_s(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("btime "));
    line?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let text = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 11 12 0 0 20 0 5 0 4711 8192000 \
                    321 18446744073709551615 1 1";
        let stat = Stat {
            start_ticks: 4_711,
            virtual_bytes: 8_192_000,
            resident_pages: 321,
        };
        assert_eq!(Stat::parse(text), Some(stat));
        assert_eq!(Stat::parse("7 (a) S 1"), None);
        assert_eq!(Stat::parse(""), None);
        assert_eq!(
            booted_s("cpu 1 2\nbtime 1764009600\nx 1\n"),
            Some(1_764_009_600)
        );
        assert_eq!(booted_s("cpu 1 2\n"), None);
    }

    #[test]
    fn time_spent_is_counted_once() {
        let board = Board::new(1);
        let mut usage = Usage::default();
        usage.look(&board);
        usage.look(&board);
        let counted = board.process.snapshot().counter(Counter::ProcessCpu);
        assert!(counted > 0 && counted <= cpu_micros(), "{counted}");
    }
}
