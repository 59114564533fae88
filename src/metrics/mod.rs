//! The table of everything that is counted, and the cells it is counted in.
//!
//! Owns names, labels and help texts, one row each; nothing else spells a metric. An engine adds to
//! plain [`Counters`] of its own and publishes them once a turn into its [`SharedCounters`], from
//! which any thread may read; so the hot path pays one add, and no lock. Never formats:
//! `pages/exposition.rs` does.

mod figures;
mod table;
mod warnings;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use figures::{BEYOND_SECONDS, Figures, LINES, LOOK_MS, STEP_MS, STEPS_MAX, Shown};
use parking_lot::{Mutex, MutexGuard};
pub use table::{Call, Counter, Gauge, Histogram, REQUESTS, Row, Scope, StatusClass, Unit};
pub use warnings::{WARNING_BYTES_MAX, WARNINGS_MAX, Warning, Warnings};

use crate::time::Now;

/// Upper bounds of the histograms' buckets, in microseconds, each inclusive; a last one takes the
/// rest.
pub const BUCKET_BOUNDS_MICROS: [u64; 18] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000,
    500_000, 1_000_000, 2_500_000, 10_000_000,
];
/// Buckets of a histogram, the one without a bound included.
pub const BUCKETS: usize = BUCKET_BOUNDS_MICROS.len() + 1;

const REQUEST_CELLS: usize = Call::ALL.len() * StatusClass::ALL.len();
const REQUESTS_AT: usize = Counter::COUNT;
const GAUGES_AT: usize = REQUESTS_AT + REQUEST_CELLS;
const HISTOGRAMS_AT: usize = GAUGES_AT + Gauge::COUNT;
/// A histogram's buckets and the sum of what was observed.
const HISTOGRAM_CELLS: usize = BUCKETS + 1;
const CELLS: usize = HISTOGRAMS_AT + Histogram::COUNT * HISTOGRAM_CELLS;

const fn request_at(call: Call, class: StatusClass) -> usize {
    REQUESTS_AT + call as usize * StatusClass::ALL.len() + class as usize
}

const fn histogram_at(histogram: Histogram) -> usize {
    HISTOGRAMS_AT + histogram as usize * HISTOGRAM_CELLS
}

/// One engine's counts, or a copy of them: plain numbers, 3 KB.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counters {
    cells: Box<[u64; CELLS]>,
}

impl Default for Counters {
    fn default() -> Self {
        Counters::new()
    }
}

impl Counters {
    pub fn new() -> Counters {
        Counters {
            cells: Box::new([0; CELLS]),
        }
    }

    /// Adds to a counter.
    pub fn add(&mut self, counter: Counter, n: u64) {
        let cell = &mut self.cells[counter as usize];
        *cell = cell.wrapping_add(n);
    }

    /// Counts an answered request.
    pub fn add_request(&mut self, call: Call, status: u16) {
        self.cells[request_at(call, StatusClass::of(status))] += 1;
    }

    /// Sets a gauge.
    pub fn set(&mut self, gauge: Gauge, value: u64) {
        self.cells[GAUGES_AT + gauge as usize] = value;
    }

    /// Adds one observation of `micros` microseconds to a histogram.
    pub fn observe(&mut self, histogram: Histogram, micros: u64) {
        self.observe_many(histogram, micros, 1);
    }

    /// Adds `n` observations of the same `micros`: one for all the streams told by one flush.
    pub fn observe_many(&mut self, histogram: Histogram, micros: u64, n: u64) {
        let at = histogram_at(histogram);
        let bucket = BUCKET_BOUNDS_MICROS.partition_point(|&bound| bound < micros);
        self.cells[at + bucket] += n;
        let sum = &mut self.cells[at + BUCKETS];
        *sum = sum.wrapping_add(micros.wrapping_mul(n));
    }

    /// Adds each cell of another's.
    fn add_all(&mut self, other: &Counters) {
        for (cell, value) in self.cells.iter_mut().zip(other.cells.iter()) {
            *cell = cell.wrapping_add(*value);
        }
    }

    /// All counters' values, in the order of [`Counter::ROWS`].
    pub fn counters(&self) -> &[u64] {
        &self.cells[..Counter::COUNT]
    }

    /// All gauges' values, in the order of [`Gauge::ROWS`].
    pub fn gauges(&self) -> &[u64] {
        &self.cells[GAUGES_AT..HISTOGRAMS_AT]
    }

    /// A counter's value.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.cells[counter as usize]
    }

    /// Requests of this call answered with this class.
    pub fn requests(&self, call: Call, class: StatusClass) -> u64 {
        self.cells[request_at(call, class)]
    }

    /// A gauge's value.
    pub fn gauge(&self, gauge: Gauge) -> u64 {
        self.cells[GAUGES_AT + gauge as usize]
    }

    /// A histogram's buckets, not cumulative, in the order of [`BUCKET_BOUNDS_MICROS`] and the
    /// rest.
    pub fn buckets(&self, histogram: Histogram) -> &[u64] {
        let at = histogram_at(histogram);
        &self.cells[at..at + BUCKETS]
    }

    /// Sum of a histogram's observations in microseconds.
    pub fn sum_micros(&self, histogram: Histogram) -> u64 {
        self.cells[histogram_at(histogram) + BUCKETS]
    }
}

/// One writer's counts as others see them. Each number is whole; two of them may be of different
/// turns.
#[derive(Debug)]
pub struct SharedCounters {
    cells: Box<[AtomicU64; CELLS]>,
}

impl Default for SharedCounters {
    fn default() -> Self {
        SharedCounters::new()
    }
}

impl SharedCounters {
    pub fn new() -> SharedCounters {
        SharedCounters {
            cells: Box::new([const { AtomicU64::new(0) }; CELLS]),
        }
    }

    /// Makes `counters` visible to others. For the only writer, once a turn: some 300 plain stores.
    pub fn publish(&self, counters: &Counters) {
        for (cell, &value) in self.cells.iter().zip(counters.cells.iter()) {
            cell.store(value, Ordering::Relaxed);
        }
    }

    /// Adds to a counter at once: for threads without a turn (the store's), each with cells that no
    /// engine publishes into.
    pub fn add(&self, counter: Counter, n: u64) {
        self.cells[counter as usize].fetch_add(n, Ordering::Relaxed);
    }

    /// A counter's value.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.cells[counter as usize].load(Ordering::Relaxed)
    }

    /// A gauge's value.
    pub fn gauge(&self, gauge: Gauge) -> u64 {
        self.cells[GAUGES_AT + gauge as usize].load(Ordering::Relaxed)
    }

    /// Sets a gauge at once; see [`SharedCounters::add`].
    pub fn set(&self, gauge: Gauge, value: u64) {
        self.cells[GAUGES_AT + gauge as usize].store(value, Ordering::Relaxed);
    }

    /// A copy of what has been published.
    pub fn snapshot(&self) -> Counters {
        let mut counters = Counters::new();
        for (value, cell) in counters.cells.iter_mut().zip(self.cells.iter()) {
            *value = cell.load(Ordering::Relaxed);
        }
        counters
    }
}

/// All that `/metrics` shows: one set of cells per shard, and one for the process as a whole, which
/// any thread may add to.
#[derive(Debug)]
pub struct Board {
    /// By shard; each written by its shard alone.
    pub shards: Vec<SharedCounters>,
    /// Rows with [`Scope::Process`]; written by `add` and `set` only.
    pub process: SharedCounters,
    /// Why the node is degraded, in words.
    troubles: Mutex<Vec<String>>,
    /// What the log has warned of.
    pub warnings: Arc<Warnings>,
    /// How the node has been.
    figures: Mutex<Figures>,
}

impl Board {
    /// Cells for `shards` shards.
    pub fn new(shards: usize) -> Board {
        Board {
            shards: (0..shards).map(|_| SharedCounters::new()).collect(),
            process: SharedCounters::new(),
            troubles: Mutex::default(),
            warnings: Arc::default(),
            figures: Mutex::default(),
        }
    }

    /// The same, with what the log warns of.
    pub fn with_warnings(self, warnings: Arc<Warnings>) -> Board {
        Board { warnings, ..self }
    }

    /// Whether the control group has next to no memory left: 95 % are taken.
    pub fn is_short_of_memory(&self) -> bool {
        let [limit, used] =
            [Gauge::MemoryLimit, Gauge::MemoryUsed].map(|of| self.process.gauge(of));
        limit > 0 && used >= limit / 20 * 19
    }

    /// Why the node is degraded now, in words; empty: it is not.
    pub fn set_troubles(&self, troubles: Vec<String>) {
        *self.troubles.lock() = troubles;
    }

    /// Once a second: what has been published becomes the node's figures.
    pub fn look(&self, now: Now) {
        self.figures.lock().look(self, now);
    }

    /// How the node is, and has been.
    pub fn figures(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock()
    }

    /// See [`Board::set_troubles`].
    pub fn troubles(&self) -> Vec<String> {
        self.troubles.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn all_rows() -> Vec<&'static Row> {
        let tables = [Counter::ROWS, Gauge::ROWS, Histogram::ROWS, &[REQUESTS]];
        tables.into_iter().flatten().collect()
    }

    #[test]
    fn rows_have_unique_series_and_help() {
        let mut seen = BTreeSet::new();
        for row in all_rows() {
            assert!(
                seen.insert((row.family, row.unit as u8, row.labels)),
                "{row:?} twice"
            );
            assert!(row.help.len() > 5 && !row.help.ends_with('.'), "{row:?}");
            let plain = |s: &str| s.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            assert!(plain(row.family), "{row:?}");
            // Unit and kind are appended by the exposition.
            for suffix in ["_total", "_bytes", "_seconds", "_ms"] {
                assert!(!row.family.ends_with(suffix), "{row:?}");
            }
        }
    }

    #[test]
    fn families_stand_together() {
        for rows in [Counter::ROWS, Gauge::ROWS, Histogram::ROWS] {
            let mut names: Vec<_> = rows.iter().map(|row| row.family).collect();
            names.dedup();
            let unique: BTreeSet<_> = names.iter().collect();
            assert_eq!(names.len(), unique.len());
        }
    }

    #[test]
    fn rows_are_found_by_variant() {
        assert_eq!(Counter::DatagramStale.row().labels, [("reason", "stale")]);
        assert_eq!(Counter::StoreWriteBackErrors as usize, Counter::COUNT - 1);
        assert_eq!(Gauge::Draining.row().family, "draining");
    }

    #[test]
    fn every_cell_is_its_own() {
        let mut counters = Counters::new();
        counters.add(Counter::StoreWriteBackErrors, 3);
        counters.add_request(Call::PresenceOne, 200);
        counters.add_request(Call::Other, 501);
        counters.set(Gauge::Conns, 7);
        counters.set(Gauge::Draining, 1);
        counters.observe(Histogram::TurnDuration, 10);
        counters.observe_many(Histogram::DeliveryLatency, u64::MAX / 4, 2);
        assert_eq!(counters.cells.iter().filter(|&&cell| cell != 0).count(), 9);
        assert_eq!(counters.counter(Counter::StoreWriteBackErrors), 3);
        assert_eq!(counters.requests(Call::PresenceOne, StatusClass::Good), 1);
        assert_eq!(counters.requests(Call::Other, StatusClass::Server), 1);
        assert_eq!(
            (
                counters.gauge(Gauge::Conns),
                counters.gauge(Gauge::Draining)
            ),
            (7, 1)
        );
        assert_eq!(counters.buckets(Histogram::DeliveryLatency)[BUCKETS - 1], 2);
    }

    #[test]
    fn buckets_include_their_bound() {
        let mut counters = Counters::new();
        for micros in [0, 10, 11, 25, 26, 10_000_000, 10_000_001] {
            counters.observe(Histogram::TurnDuration, micros);
        }
        let buckets = counters.buckets(Histogram::TurnDuration);
        assert_eq!((buckets[0], buckets[1], buckets[2]), (2, 2, 1));
        assert_eq!((buckets[BUCKETS - 2], buckets[BUCKETS - 1]), (1, 1));
        assert_eq!(counters.sum_micros(Histogram::TurnDuration), 20_000_073);
    }

    #[test]
    fn what_is_published_is_what_was_counted() {
        let mut counters = Counters::new();
        counters.add(Counter::Marks, 5);
        counters.observe(Histogram::SweepDuration, 99);
        let board = Board::new(2);
        board.shards[1].publish(&counters);
        board.process.add(Counter::StoreWriteBackCycles, 2);
        board.process.set(Gauge::Users, 9);
        assert_eq!(board.shards[1].snapshot(), counters);
        assert_eq!(board.shards[0].snapshot(), Counters::new());
        assert_eq!(
            board
                .process
                .snapshot()
                .counter(Counter::StoreWriteBackCycles),
            2
        );
        assert_eq!(board.process.snapshot().gauge(Gauge::Users), 9);
    }

    #[test]
    fn status_classes() {
        assert_eq!(StatusClass::of(204), StatusClass::Good);
        assert_eq!(StatusClass::of(431), StatusClass::Client);
        assert_eq!(StatusClass::of(505), StatusClass::Server);
    }
}
