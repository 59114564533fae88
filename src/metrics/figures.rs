//! The figures by which an operator sees at a glance how a node is, and how they have been.
//!
//! Owns which these are, over what time rates and percentiles are taken, and how much of the past
//! is kept. One thread takes a look once a second: no shard's turn does anything for it, and no
//! beat. Never formats: `pages/figures.rs` does.
//!
//! Cost: at most four copies of each shard's cells, 15 KB a shard, and 13 KB for the past.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{BUCKET_BOUNDS_MICROS, Board, Call, Counter, Counters, Gauge, Histogram, StatusClass};
use crate::time::{Mono, Now, Unix};

/// The figures of the node as a whole whose past is kept, in the order of [`Shown::lines`].
pub const LINES: [&str; 9] = [
    "online",
    "users",
    "streams",
    "watches",
    "beats",
    "transitions",
    "states",
    "p50",
    "p99",
];

/// A value of each line. NaN: nothing is known, for nothing was observed.
type Values = [f64; LINES.len()];

/// Between two looks, in ms.
pub const LOOK_MS: u64 = 1_000;
const LOOKS_PER_STEP: u64 = 5;
/// Between two values of the past, in ms.
pub const STEP_MS: u64 = LOOK_MS * LOOKS_PER_STEP;
/// So many of them are kept: a quarter of an hour.
pub const STEPS_MAX: usize = 180;
const _: () = assert!(STEP_MS * STEPS_MAX as u64 == 15 * 60 * 1_000);

/// What stands for a percentile above the last bound of its histogram.
pub const BEYOND_SECONDS: f64 =
    2.0 * BUCKET_BOUNDS_MICROS[BUCKET_BOUNDS_MICROS.len() - 1] as f64 / 1e6;

/// All cells at one moment.
#[derive(Debug)]
struct Look {
    at: Now,
    shards: Vec<Counters>,
    /// Those of shards and process together.
    all: Counters,
}

/// What has been seen of a node.
#[derive(Debug, Default)]
pub struct Figures {
    looks: u64,
    last: Option<Arc<Look>>,
    before: Option<Arc<Look>>,
    /// Those at which the last two steps began.
    steps: VecDeque<Arc<Look>>,
    past: VecDeque<Values>,
}

/// The figures of the last look.
#[derive(Debug)]
pub struct Shown {
    pub at: Unix,
    pub lines: Values,
    /// By shard.
    pub shards: Vec<ShardShown>,
    /// A sweep, 99th percentile in seconds. NaN: there was none.
    pub sweep: f64,
    /// Every cell of shards and process together.
    pub all: Counters,
}

/// Those of one shard. Rates are a second's, percentiles in seconds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ShardShown {
    /// The part of the time that it worked.
    pub busy: f64,
    /// A turn, 99th percentile. NaN: there was none.
    pub turn: f64,
    pub conns: u64,
    pub streams: u64,
    pub watches: u64,
    pub requests: f64,
    pub beats: f64,
    pub states: f64,
}

impl Figures {
    /// A look at all that has been published.
    pub(super) fn look(&mut self, board: &Board, now: Now) {
        let shards: Vec<Counters> = board.shards.iter().map(|cells| cells.snapshot()).collect();
        let mut all = board.process.snapshot();
        for cells in &shards {
            all.add_all(cells);
        }
        let look = Arc::new(Look {
            at: now,
            shards,
            all,
        });
        self.before = self.last.replace(Arc::clone(&look));
        if self.looks.is_multiple_of(LOOKS_PER_STEP) {
            if let Some(begun) = self.steps.back() {
                if self.past.len() == STEPS_MAX {
                    self.past.pop_front();
                }
                self.past.push_back(lines(&look, begun, begun));
            }
            if self.steps.len() == 2 {
                self.steps.pop_front();
            }
            self.steps.push_back(look);
        }
        self.looks += 1;
    }

    /// How often has been looked.
    pub fn looks(&self) -> u64 {
        self.looks
    }

    /// What was seen last. None: nobody has looked yet.
    pub fn shown(&self) -> Option<Shown> {
        let last = self.last.as_ref()?;
        // Rates are those of the last second, percentiles of the last five to ten.
        let before = self.before.as_ref().unwrap_or(last);
        let earlier = self.steps.front().unwrap_or(last);
        let seconds = seconds_between(before, last);
        let shards = (0..last.shards.len())
            .map(|shard| {
                let (now, then) = (&last.shards[shard], &before.shards[shard]);
                let grown = |counter: Counter| grown(now, then, &[counter]);
                let beats = &BEATS.map(grown);
                let elapsed = grown(Counter::TurnElapsed);
                ShardShown {
                    busy: match elapsed > 0.0 {
                        true => grown(Counter::TurnBusy) / elapsed,
                        false => 0.0,
                    },
                    turn: quantile(now, &earlier.shards[shard], Histogram::TurnDuration, 0.99),
                    conns: now.gauge(Gauge::Conns),
                    streams: now.gauge(Gauge::Streams),
                    watches: watches(now),
                    requests: requests(now).wrapping_sub(requests(then)) as f64 / seconds,
                    beats: beats.iter().sum::<f64>() / seconds,
                    states: grown(Counter::StatesDelivered) / seconds,
                }
            })
            .collect();
        Some(Shown {
            at: last.at.unix,
            lines: lines(last, before, earlier),
            shards,
            sweep: quantile(&last.all, &earlier.all, Histogram::SweepDuration, 0.99),
            all: last.all.clone(),
        })
    }

    /// How each line has been, the oldest first.
    pub fn past(&self) -> impl Iterator<Item = &Values> {
        self.past.iter()
    }
}

const BEATS: [Counter; 4] = [
    Counter::BeatsUdp,
    Counter::BeatsHttp,
    Counter::BeatsStream,
    Counter::BeatsHolder,
];
const TRANSITIONS: [Counter; 2] = [Counter::TransitionsOnline, Counter::TransitionsOffline];

/// The lines as of `now`: rates since `before`, percentiles since `earlier`.
fn lines(now: &Look, before: &Look, earlier: &Look) -> Values {
    let (cells, then) = (&now.all, &before.all);
    let seconds = seconds_between(before, now);
    let within = |part| quantile(cells, &earlier.all, Histogram::DeliveryLatency, part);
    [
        cells.gauge(Gauge::UsersOnline) as f64,
        cells.gauge(Gauge::Users) as f64,
        cells.gauge(Gauge::Streams) as f64,
        watches(cells) as f64,
        grown(cells, then, &BEATS) / seconds,
        grown(cells, then, &TRANSITIONS) / seconds,
        grown(cells, then, &[Counter::StatesDelivered]) / seconds,
        within(0.5),
        within(0.99),
    ]
}

/// Never zero: of no time at all a rate is none.
fn seconds_between(before: &Look, now: &Look) -> f64 {
    let (from, to): (Mono, Mono) = (before.at.mono, now.at.mono);
    to.micros().saturating_sub(from.micros()).max(1_000) as f64 / 1e6
}

fn grown(now: &Counters, then: &Counters, counters: &[Counter]) -> f64 {
    let since = |&counter: &Counter| now.counter(counter).wrapping_sub(then.counter(counter));
    counters.iter().map(since).sum::<u64>() as f64
}

fn watches(cells: &Counters) -> u64 {
    cells.gauge(Gauge::WatchesBySlot) + cells.gauge(Gauge::WatchesByName)
}

fn requests(cells: &Counters) -> u64 {
    let of = |&call: &Call| StatusClass::ALL.iter().map(move |&class| (call, class));
    let each = Call::ALL.iter().flat_map(of);
    each.map(|(call, class)| cells.requests(call, class)).sum()
}

/// The bound in seconds that so great a part of what was observed since is within. NaN: nothing
/// was.
fn quantile(now: &Counters, then: &Counters, of: Histogram, part: f64) -> f64 {
    let buckets = now.buckets(of).iter().zip(then.buckets(of));
    let counts: Vec<u64> = buckets.map(|(now, then)| now.wrapping_sub(*then)).collect();
    let all: u64 = counts.iter().sum();
    if all == 0 {
        return f64::NAN;
    }
    let mut upto = 0;
    for (count, bound) in counts.iter().zip(BUCKET_BOUNDS_MICROS) {
        upto += count;
        if upto as f64 >= all as f64 * part {
            return bound as f64 / 1e6;
        }
    }
    BEYOND_SECONDS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A board of two shards that has been looked at after each of so many seconds, by this.
    fn looked(seconds: u64, mut each: impl FnMut(u64, &mut [Counters; 2])) -> Figures {
        let board = Board::new(2);
        let mut shards = [Counters::new(), Counters::new()];
        for second in 0..seconds {
            each(second, &mut shards);
            for (cells, counters) in board.shards.iter().zip(&shards) {
                cells.publish(counters);
            }
            board.process.set(Gauge::UsersOnline, second);
            board.look(Now {
                mono: Mono::default().plus_ms(second * 1_000),
                unix: Unix::from_ms(second * 1_000),
            });
        }
        std::mem::take(&mut *board.figures())
    }

    #[test]
    fn rates_are_of_a_second_and_percentiles_of_the_last_steps() {
        let figures = looked(12, |second, [one, other]| {
            one.add(Counter::BeatsUdp, 3 + second);
            one.add(Counter::BeatsHolder, 1);
            other.add(Counter::TransitionsOnline, 2);
            other.add_request(Call::Beat, 404);
            one.set(Gauge::WatchesByName, 4);
            other.set(Gauge::WatchesBySlot, 5);
            one.add(Counter::TurnElapsed, 1_000_000);
            one.add(Counter::TurnBusy, 250_000);
            // Of the fifth second and before, and so no more told of.
            let micros = if second <= 5 { 20_000_000 } else { 90 };
            one.observe_many(Histogram::DeliveryLatency, micros, 10);
            one.observe(Histogram::TurnDuration, 11);
            if second == 11 {
                one.observe(Histogram::DeliveryLatency, 900);
            }
        });
        let shown = figures.shown().expect("has been looked at");
        assert_eq!(figures.looks(), 12);
        assert_eq!(shown.at, Unix::from_ms(11_000));
        assert_eq!(
            shown.lines,
            [11.0, 0.0, 0.0, 9.0, 15.0, 2.0, 0.0, 0.000_1, 0.001]
        );
        assert!(shown.sweep.is_nan());
        let one = ShardShown {
            busy: 0.25,
            turn: 0.000_025,
            conns: 0,
            streams: 0,
            watches: 4,
            requests: 0.0,
            beats: 15.0,
            states: 0.0,
        };
        assert_eq!(shown.shards[0], one);
        let other = shown.shards[1];
        assert_eq!((other.watches, other.requests, other.busy), (5, 1.0, 0.0));
        assert!(other.turn.is_nan());
        assert_eq!(shown.all.counter(Counter::TransitionsOnline), 24);
        // A value a step: its rates are those of the whole step.
        let past: Vec<_> = figures
            .past()
            .map(|line| (line[0], line[4], line[7]))
            .collect();
        assert_eq!(past, [(5.0, 7.0, BEYOND_SECONDS), (10.0, 12.0, 0.000_1)]);
    }

    #[test]
    fn nothing_is_said_of_what_was_not_looked_at() {
        assert!(looked(0, |_, _| ()).shown().is_none());
        let once = looked(1, |_, [one, _]| one.add(Counter::BeatsUdp, 9));
        let shown = once.shown().expect("has been looked at");
        assert_eq!(shown.lines[4], 0.0);
        assert!(shown.lines[7].is_nan() && shown.lines[8].is_nan());
        assert_eq!(once.past().count(), 0);
    }

    #[test]
    fn the_past_is_a_quarter_of_an_hour() {
        let figures = looked(2_000, |_, _| ());
        let online: Vec<f64> = figures.past().map(|values| values[0]).collect();
        assert_eq!(online.len(), STEPS_MAX);
        assert_eq!((online[0], online[STEPS_MAX - 1]), (1_100.0, 1_995.0));
        assert_eq!(figures.steps.len(), 2);
    }
}
