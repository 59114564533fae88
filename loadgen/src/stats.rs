//! Latency histograms and whether a run may be believed.
//!
//! Owns the rules of certification. Latencies are microseconds, kept with three significant digits
//! from 1 us to 10 min. No percentile is told that the samples do not carry.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer as _, V2DeflateSerializer};
use serde::{Deserialize, Serialize};

/// Longest latency that is told apart, in us; longer ones count as this.
pub const LATENCY_US_MAX: u64 = 600_000_000;

/// Cells of a bucket of HdrHistogram with three significant digits.
const SUB_BUCKETS: u32 = 2_048;
/// Lines of a percentile file, and points of a plot, in which what is left halves.
const TICKS_PER_HALF: u32 = 5;

/// A histogram of microseconds. Between processes it travels as its compressed V2 encoding.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Latencies(
            Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)
                .expect("constant bounds that the crate allows"),
        )
    }
}

impl From<Latencies> for String {
    fn from(latencies: Latencies) -> String {
        latencies.to_base64()
    }
}

impl TryFrom<String> for Latencies {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Latencies, &'static str> {
        Latencies::from_base64(&text).ok_or("a damaged histogram")
    }
}

impl Latencies {
    /// Counts one latency.
    pub fn record(&mut self, us: u64) {
        self.0.saturating_record(us.max(1));
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that `percent` of all do not exceed, if there are enough of them: at least one
    /// must be beyond it, or it is the maximum by another name.
    pub fn carried_us(&self, percent: f64) -> Option<u64> {
        self.carries(percent / 100.0)
            .then(|| self.percentile_us(percent))
    }

    fn carries(&self, share: f64) -> bool {
        // Of 1,000 one is beyond p99.9, although 0.1 % of them is a little less in binary.
        self.count() as f64 * (1.0 - share) > 1.0 - 1e-9
    }

    /// The latency that `percent` of all do not exceed, be it the longest; 0 of none. For
    /// judgements; what is published is [`Latencies::carried_us`].
    pub fn percentile_us(&self, percent: f64) -> u64 {
        if self.0.is_empty() {
            return 0;
        }
        // 99.9 % of 1,000 is 999 of them, and a little more in binary.
        let share = (percent / 100.0 - 1e-12).max(0.0);
        self.0.value_at_quantile(share).min(self.0.max())
    }

    /// How many were `us` or longer.
    pub fn count_from_us(&self, us: u64) -> u64 {
        self.0.count_between(us, self.0.high())
    }

    /// The longest; 0 of none.
    pub fn max_us(&self) -> u64 {
        self.0.max()
    }

    /// The mean.
    pub fn mean_us(&self) -> f64 {
        self.0.mean()
    }

    /// Takes in what another counted.
    pub fn merge(&mut self, other: &Latencies) {
        self.0 += &other.0;
    }

    /// The compressed V2 encoding in base64 (`HISTFAAAA..`), as HdrHistogram's tools read it.
    pub fn to_base64(&self) -> String {
        let mut bytes = Vec::new();
        // Writing to a Vec cannot fail, and the counts are u64.
        V2DeflateSerializer::new()
            .serialize(&self.0, &mut bytes)
            .expect("a Vec takes every byte");
        STANDARD.encode(&bytes)
    }

    /// Reads what [`Latencies::to_base64`] wrote; None if it is damaged.
    pub fn from_base64(text: &str) -> Option<Latencies> {
        let bytes = STANDARD.decode(text).ok()?;
        let histogram = hdrhistogram::serialization::Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .ok()?;
        let mut all = Latencies::default();
        all.0.add(histogram).ok()?;
        Some(all)
    }

    /// Points of a percentile plot: (share of those at or below, us), at most a few hundred. The
    /// longest stands where the last share is that the samples carry.
    pub fn curve(&self) -> Vec<(f64, u64)> {
        let last_share = 1.0 - 1.0 / self.count().max(1) as f64;
        let all = self.0.iter_quantiles(TICKS_PER_HALF);
        all.map(|v| (v.quantile(), v.value_iterated_to().min(self.0.max())))
            .filter(|(share, _)| *share >= 1.0 || self.carries(*share))
            .map(|(share, us)| (share.min(last_share), us))
            .collect()
    }

    /// The percentile distribution as HdrHistogram's other implementations print it, which
    /// plotFiles draws.
    pub fn to_hgrm(&self) -> String {
        let mut out = String::from("       Value     Percentile TotalCount 1/(1-Percentile)\n\n");
        let ticks = (0..i32::MAX).flat_map(|half| {
            let left =
                move |tick| f64::from(2 * TICKS_PER_HALF - tick) / f64::from(2 * TICKS_PER_HALF);
            (0..TICKS_PER_HALF).map(move |tick| 1.0 - 0.5f64.powi(half) * left(tick))
        });
        for share in ticks.take_while(|share| self.carries(*share)) {
            let us = self.percentile_us(share * 100.0);
            let count = self.0.count_between(0, us);
            let left = 1.0 / (1.0 - share);
            let us = us as f64;
            let _ = writeln!(out, "{us:12.3} {share:2.12} {count:10} {left:14.2}");
        }
        let _ = writeln!(
            out,
            "{:12.3} {:2.12} {:10}",
            self.max_us() as f64,
            1.0,
            self.count()
        );
        let _ = writeln!(
            out,
            "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]\n\
             #[Max     = {:12.3}, Total count    = {:12}]\n\
             #[Buckets = {:12}, SubBuckets     = {:12}]",
            self.mean_us(),
            self.0.stdev(),
            self.max_us() as f64,
            self.count(),
            self.0.buckets(),
            SUB_BUCKETS
        );
        out
    }
}

/// What the generator knows of itself at the end of a run.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Strain {
    /// Share of the time in which its thread was not waiting for something to do, 0 to 1.
    pub busy: f64,
    /// p99 of how late it did what was due, us.
    pub lag_p99_us: u64,
    /// The schedule was "as fast as possible" and the server visibly gave way first (loss, or
    /// unread answers).
    pub server_gave_way: bool,
}

/// What helps a generator that was the bottleneck.
const REMEDY: &str = "give the generator a core of its own (--pin, and taskset for the server), \
                      ask for less a second, or split it (--streams-per-process)";

/// Busier than this, the generator may have been the bottleneck.
pub const BUSY_MAX: f64 = 0.9;

/// Why a run that published `measured` must not be published; empty: it may.
pub fn doubts(strain: &Strain, measured: &[(String, Latencies)]) -> Vec<String> {
    let mut doubts = Vec::new();
    if strain.busy > BUSY_MAX && !strain.server_gave_way {
        doubts.push(format!(
            "the generator was busy {:.0} % of the time (limit {:.0} %): the server may take more; \
             {REMEDY}",
            strain.busy * 100.0,
            BUSY_MAX * 100.0
        ));
    }
    let lag_us = strain.lag_p99_us;
    for (name, latencies) in measured {
        // Of fewer than a hundred it is the longest, and called so.
        let carried = latencies.carried_us(99.0);
        let (what, us) = match carried {
            Some(us) => ("p99", us),
            None => ("longest", latencies.max_us()),
        };
        if latencies.count() > 0 && lag_us * 10 > us {
            doubts.push(format!(
                "the generator's own lag (p99 {lag_us} us) is above a tenth of the {what} of \
                 \"{name}\" ({us} us); {REMEDY}"
            ));
        }
    }
    doubts
}

/// The middle one of `values` (the mean of the two middle ones); None of none.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[half]),
        _ => Some((sorted[half - 1] + sorted[half]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_exact_to_three_digits() {
        let mut latencies = Latencies::default();
        assert_eq!((latencies.percentile_us(99.0), latencies.max_us()), (0, 0));
        (1..=1_000).for_each(|us| latencies.record(us));
        assert_eq!(
            [50.0, 90.0, 99.0, 100.0].map(|p| latencies.percentile_us(p)),
            [500, 900, 990, 1_000]
        );
        latencies.record(0);
        latencies.record(u64::MAX);
        assert_eq!(
            (latencies.count(), latencies.percentile_us(0.0)),
            (1_002, 1)
        );
        assert!(latencies.max_us() >= LATENCY_US_MAX);
    }

    #[test]
    fn no_percentile_is_told_that_the_samples_do_not_carry() {
        let of = |count: u64| {
            let mut latencies = Latencies::default();
            (1..=count).for_each(|us| latencies.record(us));
            [50.0, 90.0, 99.0, 99.9].map(|p| latencies.carried_us(p))
        };
        assert_eq!(of(0), [None; 4]);
        assert_eq!(of(1), [None; 4]);
        assert_eq!(of(2), [Some(1), None, None, None]);
        assert_eq!(of(9), [Some(5), None, None, None]);
        assert_eq!(of(10), [Some(5), Some(9), None, None]);
        assert_eq!(of(99)[2..], [None, None]);
        assert_eq!(of(100)[2..], [Some(99), None]);
        assert_eq!(of(999)[3], None);
        assert_eq!(of(1_000)[3], Some(999));
        let mut latencies = Latencies::default();
        (1..=100).for_each(|us| latencies.record(us));
        let curve = latencies.curve();
        assert_eq!(curve.last(), Some(&(0.99, 100)), "{curve:?}");
        assert!(curve.iter().all(|(share, _)| *share <= 0.99), "{curve:?}");
    }

    /// Widths and order of columns are those of Java's `outputPercentileDistribution`.
    #[test]
    fn a_percentile_file_is_as_others_print_it() {
        let mut latencies = Latencies::default();
        (1..=4).for_each(|us| latencies.record(us));
        assert_eq!(
            latencies.to_hgrm(),
            "       Value     Percentile TotalCount 1/(1-Percentile)

       1.000 0.000000000000          1           1.00
       1.000 0.100000000000          1           1.11
       1.000 0.200000000000          1           1.25
       2.000 0.300000000000          2           1.43
       2.000 0.400000000000          2           1.67
       2.000 0.500000000000          2           2.00
       3.000 0.550000000000          3           2.22
       3.000 0.600000000000          3           2.50
       3.000 0.650000000000          3           2.86
       3.000 0.700000000000          3           3.33
       3.000 0.750000000000          3           4.00
       4.000 1.000000000000          4
#[Mean    =        2.500, StdDeviation   =        1.118]
#[Max     =        4.000, Total count    =            4]
#[Buckets =           20, SubBuckets     =         2048]
"
        );
    }

    #[test]
    fn histograms_survive_their_encoding() {
        let mut latencies = Latencies::default();
        [3, 70, 70, 900_000]
            .iter()
            .for_each(|us| latencies.record(*us));
        let text = latencies.to_base64();
        assert!(text.starts_with("HISTFAAAA"), "{text}");
        // The cookie, the length of the rest, and a zlib stream (RFC 1950: 32 KB window, default
        // level): what the format says, not what this crate reads.
        let bytes = STANDARD.decode(&text).unwrap();
        assert_eq!(bytes[..4], [0x1c, 0x84, 0x93, 0x14]);
        assert_eq!(bytes[4..8], (bytes.len() as u32 - 8).to_be_bytes());
        assert_eq!(bytes[8], 0x78);
        let mut read = Latencies::from_base64(&text).unwrap();
        assert_eq!(read.0, latencies.0);
        read.merge(&latencies);
        assert_eq!(read.count(), 8);
        assert!(Latencies::from_base64("HIST").is_none());
        assert!(Latencies::from_base64("*").is_none());
    }

    #[test]
    fn a_strained_generator_is_not_believed() {
        let fine = Strain {
            busy: 0.9,
            lag_p99_us: 100,
            server_gave_way: false,
        };
        let measured = [("each", 1_000), ("first", 500)].map(|(name, us)| {
            let mut latencies = Latencies::default();
            latencies.record(us);
            (name.to_owned(), latencies)
        });
        assert_eq!(doubts(&fine, &measured[..1]), Vec::<String>::new());
        assert_eq!(
            doubts(&Strain { busy: 0.91, ..fine }, &measured[..1]),
            [format!(
                "the generator was busy 91 % of the time (limit 90 %): the server may take more; \
                 {REMEDY}"
            )]
        );
        let gave_way = Strain {
            busy: 0.91,
            server_gave_way: true,
            ..fine
        };
        assert_eq!(doubts(&gave_way, &measured[..1]), Vec::<String>::new());
        // Every latency that is published, not only the longest.
        assert_eq!(
            doubts(&fine, &measured),
            [format!(
                "the generator's own lag (p99 100 us) is above a tenth of the longest of \"first\" \
                 (500 us); {REMEDY}"
            )]
        );
        let late = Strain {
            lag_p99_us: 101,
            ..fine
        };
        assert_eq!(doubts(&late, &measured).len(), 2);
        assert_eq!(doubts(&late, &[]), Vec::<String>::new());
    }

    #[test]
    fn medians() {
        assert_eq!(
            [&[][..], &[3.0], &[4.0, 1.0], &[9.0, 1.0, 2.0]].map(median),
            [None, Some(3.0), Some(2.5), Some(2.0)]
        );
    }
}
