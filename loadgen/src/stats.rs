//! Latency histograms and whether a run may be believed.
//!
//! Owns the rules of certification. Latencies are microseconds, kept with three significant digits
//! from 1 us to 10 min.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer as _, V2Serializer};
use serde::{Deserialize, Serialize};

/// Longest latency that is told apart, in us; longer ones count as this.
pub const LATENCY_US_MAX: u64 = 600_000_000;

/// A histogram of microseconds. Between processes it travels as its V2 encoding.
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

    /// The latency that `percent` of all do not exceed; 0 of none.
    pub fn percentile_us(&self, percent: f64) -> u64 {
        if self.0.is_empty() {
            0
        } else {
            self.0.value_at_percentile(percent)
        }
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

    /// The V2 encoding in base64, as HdrHistogram's tools read it.
    pub fn to_base64(&self) -> String {
        let mut bytes = Vec::new();
        // Writing to a Vec cannot fail, and the counts are u64.
        V2Serializer::new()
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

    /// Points of a percentile plot: (share of those at or below, us), at most a few hundred.
    pub fn curve(&self) -> Vec<(f64, u64)> {
        self.0
            .iter_quantiles(5)
            .map(|v| (v.quantile(), v.value_iterated_to().min(self.0.max())))
            .collect()
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

/// Busier than this, the generator may have been the bottleneck.
pub const BUSY_MAX: f64 = 0.9;

/// Why a run that published `measured` must not be published; empty: it may.
pub fn doubts(strain: &Strain, measured: &[(String, Latencies)]) -> Vec<String> {
    let mut doubts = Vec::new();
    if strain.busy > BUSY_MAX && !strain.server_gave_way {
        doubts.push(format!(
            "the generator was busy {:.0} % of the time (limit {:.0} %): the server may take more",
            strain.busy * 100.0,
            BUSY_MAX * 100.0
        ));
    }
    let lag_us = strain.lag_p99_us;
    for (name, latencies) in measured {
        let p99_us = latencies.percentile_us(99.0);
        if latencies.count() > 0 && lag_us * 10 > p99_us {
            doubts.push(format!(
                "the generator's own lag (p99 {lag_us} us) is above a tenth of the p99 of \
                 \"{name}\" ({p99_us} us)"
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
    fn histograms_survive_their_encoding() {
        let mut latencies = Latencies::default();
        [3, 70, 70, 900_000]
            .iter()
            .for_each(|us| latencies.record(*us));
        let text = latencies.to_base64();
        assert!(text.starts_with("HISTE"), "{text}");
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
            ["the generator was busy 91 % of the time (limit 90 %): the server may take more"]
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
            [
                "the generator's own lag (p99 100 us) is above a tenth of the p99 of \"first\" \
                 (500 us)"
            ]
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
