//! `/metrics`: the counter table in Prometheus' text format.
//!
//! Owns the mapping from rows and cells to families and series. The format itself is
//! prometheus-client's.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::prometheus_text;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{self, Registry};

use crate::metrics::{
    BUCKET_BOUNDS_MICROS, Board, Call, Counter, Counters, Gauge, Histogram, REQUESTS, Row, Scope,
    StatusClass, Unit,
};
use crate::version;

/// Content type of [`render`].
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// The page: every row of the table, for every shard, as last published.
pub fn render(board: &Board) -> String {
    let mut text = String::new();
    let mut write = |registry: Registry| {
        prometheus_text::encode(&mut text, &registry).expect("a String takes everything");
    };
    let process = board.process.snapshot();
    let of_kernel = Snapshot {
        shards: Vec::new(),
        process: process.clone(),
        of_kernel: true,
    };
    let snapshot = Snapshot {
        shards: board
            .shards
            .iter()
            .enumerate()
            .map(|(shard, cells)| (shard.to_string(), cells.snapshot()))
            .collect(),
        process,
        of_kernel: false,
    };
    let mut registry = Registry::with_prefix("greendot");
    registry.register_collector(Box::new(snapshot));
    write(registry);
    // Unless nobody has looked yet: zeros would be lies.
    if of_kernel.process.gauge(Gauge::ProcessStartTime) > 0 {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(of_kernel));
        write(registry);
    }
    text
}

#[derive(Debug)]
struct Snapshot {
    /// Label and cells.
    shards: Vec<(String, Counters)>,
    process: Counters,
    /// What the kernel knows of the process, and nothing else; otherwise all but that.
    of_kernel: bool,
}

type Labels<'a> = Vec<(&'a str, &'a str)>;

impl Snapshot {
    /// Whose cells a row is read from, and the label that says so.
    fn owners(&self, scope: Scope) -> Vec<(Labels<'_>, &Counters)> {
        match scope {
            Scope::Shard => self
                .shards
                .iter()
                .map(|(shard, cells)| (vec![("shard", shard.as_str())], cells))
                .collect(),
            Scope::Process | Scope::Kernel => vec![(Vec::new(), &self.process)],
        }
    }

    /// The families that are shown here.
    fn families(&self, rows: &'static [Row]) -> Vec<Vec<(usize, &'static Row)>> {
        let mut all = families(rows);
        all.retain(|rows| (rows[0].1.scope == Scope::Kernel) == self.of_kernel);
        all
    }

    /// One family: `series` gives its rows' labels and values for one owner.
    fn family<'a, V: 'a>(
        &'a self,
        encoder: &mut DescriptorEncoder<'_>,
        row: &Row,
        kind: MetricType,
        series: impl Fn(&'a Counters) -> Vec<(Labels<'static>, V)>,
        write: impl Fn(&mut prometheus_client::encoding::MetricEncoder<'_>, V) -> fmt::Result,
    ) -> fmt::Result {
        let unit = unit_of(row.unit);
        let mut family = encoder.encode_descriptor(row.family, row.help, unit.as_ref(), kind)?;
        for (owner, cells) in self.owners(row.scope) {
            for (mut labels, value) in series(cells) {
                labels.extend(&owner);
                write(&mut family.encode_family(&labels)?, value)?;
            }
        }
        Ok(())
    }

    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let requests = |cells: &Counters| {
            let each = |&call: &Call| {
                let of_call = move |&class: &StatusClass| {
                    (
                        vec![("call", call.name()), ("class", class.name())],
                        cells.requests(call, class),
                    )
                };
                StatusClass::ALL.iter().map(of_call)
            };
            Call::ALL.iter().flat_map(each).collect()
        };
        self.family(
            encoder,
            &REQUESTS,
            MetricType::Counter,
            requests,
            |series, value| series.encode_counter::<NoLabelSet, u64, f64>(&value, None),
        )
    }

    fn counters(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for rows in self.families(Counter::ROWS) {
            self.family(
                encoder,
                rows[0].1,
                MetricType::Counter,
                |cells| values(&rows, cells.counters()),
                |series, value| match value {
                    Scaled::Whole(value) => {
                        series.encode_counter::<NoLabelSet, u64, f64>(&value, None)
                    }
                    Scaled::Seconds(value) => {
                        series.encode_counter::<NoLabelSet, f64, f64>(&value, None)
                    }
                },
            )?;
        }
        Ok(())
    }

    fn gauges(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for rows in self.families(Gauge::ROWS) {
            self.family(
                encoder,
                rows[0].1,
                MetricType::Gauge,
                |cells| values(&rows, cells.gauges()),
                |series, value| match value {
                    Scaled::Whole(value) => series.encode_gauge(&value),
                    Scaled::Seconds(value) => series.encode_gauge(&value),
                },
            )?;
        }
        Ok(())
    }

    fn histograms(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for &histogram in Histogram::ALL {
            let row = histogram.row();
            self.family(
                encoder,
                row,
                MetricType::Histogram,
                |cells| vec![(row.labels.to_vec(), Spread::of(cells, histogram))],
                |series, spread: Spread| {
                    series.encode_histogram::<NoLabelSet>(
                        spread.sum_seconds,
                        spread.count,
                        &spread.buckets,
                        None,
                    )
                },
            )?;
        }
        Ok(())
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if self.of_kernel {
            self.counters(&mut encoder)?;
            return self.gauges(&mut encoder);
        }
        let labels = [
            ("version", version::VERSION),
            ("commit", version::COMMIT),
            ("build", version::BUILD),
            ("target", version::TARGET),
        ];
        let help = "The program that answers";
        let mut build = encoder.encode_descriptor("build", help, None, MetricType::Info)?;
        build.encode_info(&labels)?;
        self.requests(&mut encoder)?;
        self.counters(&mut encoder)?;
        self.gauges(&mut encoder)?;
        self.histograms(&mut encoder)
    }
}

/// Labels and values of a family's rows.
fn values(rows: &[(usize, &'static Row)], cells: &[u64]) -> Vec<(Labels<'static>, Scaled)> {
    let value =
        |&(at, row): &(usize, &'static Row)| (row.labels.to_vec(), scaled(row.unit, cells[at]));
    rows.iter().map(value).collect()
}

/// Rows of the same family together, each with its index in the table.
fn families(rows: &'static [Row]) -> Vec<Vec<(usize, &'static Row)>> {
    let indexed: Vec<_> = rows.iter().enumerate().collect();
    indexed
        .chunk_by(|(_, one), (_, other)| one.family == other.family)
        .map(<[_]>::to_vec)
        .collect()
}

fn unit_of(unit: Unit) -> Option<registry::Unit> {
    match unit {
        Unit::Count => None,
        Unit::Bytes => Some(registry::Unit::Bytes),
        Unit::Micros => Some(registry::Unit::Seconds),
    }
}

enum Scaled {
    Whole(u64),
    Seconds(f64),
}

fn scaled(unit: Unit, value: u64) -> Scaled {
    match unit {
        Unit::Count | Unit::Bytes => Scaled::Whole(value),
        Unit::Micros => Scaled::Seconds(value as f64 / 1e6),
    }
}

struct Spread {
    sum_seconds: f64,
    count: u64,
    /// Upper bound in seconds, and what fell into this bucket alone: the encoder adds up.
    buckets: Vec<(f64, u64)>,
}

impl Spread {
    fn of(cells: &Counters, histogram: Histogram) -> Spread {
        let counts = cells.buckets(histogram);
        let bounds = BUCKET_BOUNDS_MICROS
            .iter()
            .map(|&bound| bound as f64 / 1e6)
            .chain([f64::INFINITY]);
        Spread {
            sum_seconds: cells.sum_micros(histogram) as f64 / 1e6,
            count: counts.iter().sum(),
            buckets: bounds.zip(counts.iter().copied()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn board() -> Board {
        let board = Board::new(2);
        let mut counters = Counters::new();
        counters.add(Counter::BeatsUdp, 70);
        counters.add(Counter::TurnBusy, 1_500_000);
        counters.add(Counter::BytesOut, 9);
        counters.add_request(Call::Stream, 200);
        counters.set(Gauge::WatchesByName, 4);
        counters.observe(Histogram::TurnDuration, 10);
        counters.observe(Histogram::TurnDuration, 30);
        counters.observe(Histogram::TurnDuration, 20_000_000);
        board.shards[1].publish(&counters);
        board.process.set(Gauge::Users, 5);
        board.process.set(Gauge::StoreWriteBackCycle, 250_000);
        board.process.add(Counter::ProcessCpu, 1_250_000);
        board.process.set(Gauge::ProcessOpenFds, 17);
        board.process.set(Gauge::ProcessResidentMemory, 4_096);
        board
            .process
            .set(Gauge::ProcessStartTime, 1_764_009_600_250_000);
        board
    }

    #[test]
    fn series_are_as_counted() {
        let text = render(&board());
        let expected = [
            &format!(
                "greendot_build_info{{version=\"{}\",commit=\"{}\",build=\"{}\",target=\"{}\"}} 1",
                version::VERSION,
                version::COMMIT,
                version::BUILD,
                version::TARGET
            ),
            "# TYPE greendot_beats_total counter",
            "# HELP greendot_beats_total Beats accepted, by source",
            "greendot_beats_total{source=\"udp\",shard=\"0\"} 0",
            "greendot_beats_total{source=\"udp\",shard=\"1\"} 70",
            "greendot_requests_total{call=\"stream\",class=\"2xx\",shard=\"1\"} 1",
            "greendot_turn_busy_seconds_total{shard=\"1\"} 1.5",
            "greendot_sent_bytes_total{shard=\"1\"} 9",
            "greendot_watches{by=\"name\",shard=\"1\"} 4",
            "greendot_users 5",
            "greendot_store_write_back_cycle_seconds 0.25",
            "# TYPE process_cpu_seconds_total counter",
            "process_cpu_seconds_total 1.25",
            "# TYPE process_open_fds gauge",
            "process_open_fds 17",
            "process_max_fds 0",
            "process_virtual_memory_bytes 0",
            "process_resident_memory_bytes 4096",
            "process_start_time_seconds 1764009600.25",
            "# TYPE greendot_turn_duration_seconds histogram",
            "greendot_turn_duration_seconds_bucket{shard=\"1\",le=\"1e-05\"} 1",
            "greendot_turn_duration_seconds_bucket{shard=\"1\",le=\"2.5e-05\"} 1",
            "greendot_turn_duration_seconds_bucket{shard=\"1\",le=\"5e-05\"} 2",
            "greendot_turn_duration_seconds_bucket{shard=\"1\",le=\"10\"} 2",
            "greendot_turn_duration_seconds_bucket{shard=\"1\",le=\"+Inf\"} 3",
            "greendot_turn_duration_seconds_count{shard=\"1\"} 3",
            "greendot_turn_duration_seconds_sum{shard=\"1\"} 20.00004",
            "greendot_limit_hits_total{limit=\"watches-per-stream-max\",shard=\"0\"} 0",
        ];
        for line in expected {
            assert!(
                text.lines().any(|given| given == line),
                "{line} is not in\n{text}"
            );
        }
    }

    #[test]
    fn what_nobody_has_looked_at_is_not_shown() {
        assert!(!render(&Board::new(1)).contains("process_"));
    }

    /// The grammar of the text format (version 0.0.4), as far as this page uses it.
    #[test]
    fn every_line_parses() {
        let text = render(&board());
        assert!(text.ends_with('\n'));
        let (mut declared, mut series, mut family) =
            (BTreeSet::new(), BTreeSet::new(), String::new());
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(!help.is_empty(), "{line}");
                family = name.into();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(name, family);
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(declared.insert(name.to_owned()), "{name} declared twice");
            } else {
                let (id, value) = line.rsplit_once(' ').unwrap();
                assert!(value.parse::<f64>().is_ok(), "{line}");
                assert!(series.insert(id.to_owned()), "{id} twice");
                let name = id.split('{').next().unwrap();
                assert!(
                    name.starts_with(&family)
                        && (name.starts_with("greendot_") || name.starts_with("process_")),
                    "{line} in {family}"
                );
                if let Some(labels) = id.strip_prefix(name).filter(|labels| !labels.is_empty()) {
                    let inner = labels
                        .strip_prefix('{')
                        .and_then(|labels| labels.strip_suffix('}'))
                        .unwrap();
                    for label in inner.split(',') {
                        let (key, value) = label.split_once('=').unwrap();
                        assert!(
                            !key.is_empty()
                                && value.len() > 2
                                && value.starts_with('"')
                                && value.ends_with('"'),
                            "{line}"
                        );
                    }
                }
            }
        }
        // One family per name in the table, and the version.
        let tables = families(Counter::ROWS).len() + families(Gauge::ROWS).len() + Histogram::COUNT;
        assert_eq!(declared.len(), tables + 2);
    }

    /// The limit that a row names is a knob's name, or one of those that are fixed, and the manual
    /// knows it.
    #[test]
    fn limits_are_named_as_their_flags() {
        use crate::config::knobs::KNOBS;
        const FIXED: [&str; 9] = [
            "body-depth-max",
            "nofile",
            "accepts-per-turn",
            "reads-per-turn",
            "read-bytes-per-turn",
            "closes-per-turn",
            "node-streams-max",
            "client-names-max",
            "memory-group",
        ];
        for row in Counter::ROWS
            .iter()
            .filter(|row| row.family == "limit_hits")
        {
            let limit = row.labels[0].1;
            let known = KNOBS.iter().any(|knob| knob.name == limit) || FIXED.contains(&limit);
            assert!(known, "{limit}");
        }
        let manual = include_str!("../../docs/OPERATIONS.md");
        for limit in FIXED {
            assert!(manual.contains(&format!("`{limit}`")), "{limit}");
        }
    }
}
