//! How busy each of the server's shards was.
//!
//! Owns the ratio of work to time: of the time of the load, not of what was set up before or waited
//! for after.

use crate::exposition::Exposition;
use crate::report::Report;

/// Seconds that each shard has spent working, so far.
#[derive(Clone, Debug, Default)]
pub struct Work(Vec<(String, f64)>);

impl Work {
    /// As `metrics` says; nothing of a server that has no shards.
    pub fn of(metrics: &Exposition) -> Work {
        Work(metrics.by_label("greendot_turn_busy_seconds_total", "shard"))
    }

    /// Adds each shard's share of `load_s` that it has spent working since `before`, 0 to 1.
    pub fn report(&self, before: &Work, load_s: f64, report: &mut Report) {
        for (shard, busy_s) in &self.0 {
            let before_s = before
                .0
                .iter()
                .find(|(known, _)| known == shard)
                .map_or(0.0, |(_, busy_s)| *busy_s);
            let ratio = ((busy_s - before_s) / load_s.max(1e-6)).clamp(0.0, 1.0);
            report.value(&format!("shard_{shard}_busy_ratio"), ratio);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_busy_for_a_share_of_the_load() {
        let work =
            |busy: [f64; 2]| Work(vec![("0".to_owned(), busy[0]), ("1".to_owned(), busy[1])]);
        let mut report = Report::new("beats");
        work([3.0, 9.0]).report(&work([1.0, 1.0]), 4.0, &mut report);
        assert_eq!(
            (
                report.get("shard_0_busy_ratio"),
                report.get("shard_1_busy_ratio")
            ),
            (Some(0.5), Some(1.0))
        );
    }
}
