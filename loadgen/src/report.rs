//! What a run found: for people (a table), for machines (JSON), for eyes (one HTML page).
//!
//! Owns the names and units of results and the exit code. Never measures.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::{fs, io};

use serde_json::{Map, Value as Json, json};

use crate::exposition::Exposition;
use crate::stats::Latencies;
use crate::{procfs, stats};

/// The name of the series of [`procfs::user_mib`].
pub const MEMORY_SERIES: &str = "user memory of the server, MiB";

/// One number found.
#[derive(Clone, PartialEq, Debug)]
pub struct Value {
    /// What it is, in snake case with its unit last, as in the JSON.
    pub name: String,
    /// How much.
    pub value: f64,
}

/// One line of a time series plot.
#[derive(Clone, PartialEq, Debug)]
pub struct Series {
    /// What it shows, with its unit.
    pub name: String,
    /// What the horizontal axis shows, with its unit.
    pub axis: &'static str,
    /// Points, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// All that a run found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The subcommand.
    pub scenario: String,
    /// The servers' versions, each once; empty where they were not told.
    pub servers: Vec<String>,
    /// Numbers, in the order in which they are printed.
    pub values: Vec<Value>,
    /// Histograms with their names.
    pub latencies: Vec<(String, Latencies)>,
    /// Time series and other curves.
    pub series: Vec<Series>,
    /// What a reader should know to read the numbers rightly.
    pub notes: Vec<String>,
    /// Why the run must not be published; empty: it may.
    pub doubts: Vec<String>,
    /// What the server did wrong; not empty: exit code 1.
    pub failures: Vec<String>,
    /// What follows from the numbers, in one sentence, where that is the point of the run.
    pub verdict: Option<String>,
    /// Why there is nothing to doubt, where it is not that the generator kept up.
    pub certified_because: Option<String>,
}

impl Report {
    /// An empty report of `scenario`.
    pub fn new(scenario: &str) -> Report {
        Report {
            scenario: scenario.to_owned(),
            ..Report::default()
        }
    }

    /// Adds what a server says of its version.
    pub fn server(&mut self, metrics: &Exposition) {
        for (version, _) in metrics.by_label("greendot_build_info", "version") {
            if !self.servers.contains(&version) {
                self.servers.push(version);
            }
        }
    }

    /// Adds a number.
    pub fn value(&mut self, name: &str, value: f64) {
        self.values.push(Value {
            name: name.to_owned(),
            value,
        });
    }

    /// Adds a number that may be unknown.
    pub fn value_if(&mut self, name: &str, value: Option<f64>) {
        if let Some(value) = value {
            self.value(name, value);
        }
    }

    /// Adds a histogram, unless it is empty.
    pub fn latencies(&mut self, name: &str, latencies: Latencies) {
        if latencies.count() > 0 {
            self.latencies.push((name.to_owned(), latencies));
        }
    }

    /// Adds a curve, unless it is empty.
    pub fn series(&mut self, name: &str, axis: &'static str, points: Vec<(f64, f64)>) {
        if !points.is_empty() {
            self.series.push(Series {
                name: name.to_owned(),
                axis,
                points,
            });
        }
    }

    /// Adds a failure where `count` is not 0; `what` follows the number.
    pub fn fail_if(&mut self, count: u64, what: &str) {
        if count > 0 {
            self.failures.push(format!("{count} {what}"));
        }
    }

    /// Adds why the run must not be published, and what to do about it.
    pub fn doubt(&mut self, why: &str, remedy: &str) {
        self.doubts.push(format!("{why}; {remedy}"));
    }

    /// Adds what the generator knows of itself and judges by it what has been added before: every
    /// latency there is.
    pub fn strain(&mut self, strain: &stats::Strain) {
        self.value("generator_busy_ratio", strain.busy);
        self.value("generator_lag_p99_us", strain.lag_p99_us as f64);
        self.doubts.extend(stats::doubts(strain, &self.latencies));
    }

    /// A number by its name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|v| v.name == name).map(|v| v.value)
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let mut out = format!("{}\n", self.scenario);
        let width = self
            .values
            .iter()
            .map(|v| v.name.len())
            .chain(self.latencies.iter().map(|l| l.0.len() + 3))
            .max()
            .unwrap_or(0);
        for Value { name, value } in &self.values {
            let _ = writeln!(out, "  {name:width$} {:>16}", number(*value));
        }
        if !self.latencies.is_empty() {
            let _ = writeln!(
                out,
                "  {:width$} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
                "latency, us", "count", "p50", "p90", "p99", "p99.9", "max"
            );
        }
        for (name, l) in &self.latencies {
            // More than their number of samples carries is not told.
            let told = |p| l.carried_us(p).map_or("-".to_owned(), |us| us.to_string());
            let [p50, p90, p99, p999] = [50.0, 90.0, 99.0, 99.9].map(told);
            let (count, max) = (l.count(), l.max_us());
            let _ = writeln!(
                out,
                "  {name:width$} {count:>10} {p50:>10} {p90:>10} {p99:>10} {p999:>10} {max:>10}"
            );
        }
        for note in &self.notes {
            let _ = writeln!(out, "  note: {note}");
        }
        for failure in &self.failures {
            let _ = writeln!(out, "  FAILED: {failure}");
        }
        for doubt in &self.doubts {
            let _ = writeln!(out, "  NOT CERTIFIED: {doubt}");
        }
        if let Some(verdict) = &self.verdict {
            let _ = writeln!(out, "  verdict: {verdict}");
        }
        if self.doubts.is_empty() && self.failures.is_empty() {
            let because = self.certified_because.as_deref();
            let because = because.unwrap_or("the generator was not the bottleneck");
            let _ = writeln!(out, "  certified: {because}");
        }
        out
    }

    /// The JSON for machines, histograms and all.
    pub fn json(&self) -> Json {
        let values: Map<String, Json> = self
            .values
            .iter()
            .map(|v| (v.name.clone(), json!(v.value)))
            .collect();
        let latencies: Map<String, Json> = self
            .latencies
            .iter()
            .map(|(name, l)| {
                let percentiles: Map<String, Json> = [50.0, 90.0, 99.0, 99.9, 99.99]
                    .iter()
                    .filter_map(|p| Some((format!("p{p}"), json!(l.carried_us(*p)?))))
                    .collect();
                let all = json!({
                    "unit": "us", "count": l.count(), "mean": l.mean_us(), "max": l.max_us(),
                    "percentiles": percentiles, "hdr_histogram": l.to_base64(),
                });
                (name.clone(), all)
            })
            .collect();
        let series: Vec<Json> = self
            .series
            .iter()
            .map(|s| json!({"name": s.name, "axis": s.axis, "points": s.points}))
            .collect();
        json!({
            "scenario": self.scenario,
            "command": command(),
            "version": env!("CARGO_PKG_VERSION"),
            "servers": self.servers,
            "machine": procfs::machine(),
            "certified": self.doubts.is_empty() && self.failures.is_empty(),
            "doubts": self.doubts,
            "failures": self.failures,
            "notes": self.notes,
            "verdict": self.verdict,
            "values": values,
            "latencies": latencies,
            "series": series,
        })
    }

    /// A percentile file for each histogram, with its name.
    pub fn hgrms(&self) -> impl Iterator<Item = (String, String)> + '_ {
        self.latencies.iter().map(|(name, latencies)| {
            let words = name.split(|c: char| !c.is_ascii_alphanumeric());
            let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
            let name = format!("{}-{}.hgrm", self.scenario, words.join("-"));
            (name, latencies.to_hgrm())
        })
    }

    /// What is said even by a quiet run: what the server did wrong, and why the run must not be
    /// published.
    fn complaints(&self) -> String {
        let failures = self.failures.iter().map(|failure| ("FAILED", failure));
        let doubts = self.doubts.iter().map(|doubt| ("NOT CERTIFIED", doubt));
        failures
            .chain(doubts)
            .fold(String::new(), |mut out, (kind, text)| {
                let _ = writeln!(out, "greendot-loadgen {}: {kind}: {text}", self.scenario);
                out
            })
    }

    /// Prints the table, or only complaints if `quiet`, writes the file asked for, and says how
    /// the process should end.
    pub fn publish(&self, quiet: bool, json_path: Option<&Path>) -> io::Result<ExitCode> {
        if quiet {
            eprint!("{}", self.complaints());
        } else {
            print!("{}", self.table());
        }
        if let Some(path) = json_path {
            fs::write(path, format!("{:#}\n", self.json()))
                .map_err(|e| io::Error::new(e.kind(), format!("--json {}: {e}", path.display())))?;
        }
        Ok(if self.failures.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

/// The command line as typed, for whoever wants to repeat the run.
pub fn command() -> String {
    std::env::args()
        .map(|arg| quoted(&arg))
        .collect::<Vec<_>>()
        .join(" ")
}

/// A word as a shell must be given it: what might mean something to one is quoted.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A number with as many digits as tell something, thousands apart.
pub fn number(value: f64) -> String {
    let digits = if value.fract() == 0.0 || value.abs() >= 1_000.0 {
        0
    } else {
        3
    };
    let text = format!("{value:.digits$}");
    let (whole, fraction) = text
        .split_once('.')
        .map_or((text.as_str(), None), |(w, f)| (w, Some(f)));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |w| ("-", w));
    let mut out = String::from(sign);
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if let Some(fraction) = fraction {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Report {
        let mut report = Report::new("streams");
        report.value("streams_held", 18_000.0);
        report.value("user_bytes_per_stream", 152.25);
        report.value_if("unknown", None);
        let mut latencies = Latencies::default();
        (1..=100).for_each(|us| latencies.record(us));
        report.latencies("hello", latencies);
        report.latencies("empty", Latencies::default());
        report
    }

    #[test]
    fn a_shell_reads_back_what_was_typed() {
        let words = [
            "--rate",
            "a b",
            "it's",
            "",
            "*",
            "$HOME",
            "a;b",
            "(x)",
            "~",
            "#",
            "`x`",
            "\\",
            "a|b>c",
            "!",
            "\n",
            "1,2=3:/%@+",
        ];
        let line = words.map(quoted).join(" ");
        assert!(
            line.starts_with("--rate 'a b' 'it'\\''s' '' '*' "),
            "{line}"
        );
        let out = std::process::Command::new("sh")
            .args(["-c", &format!("printf '%s\\0' {line}")])
            .output()
            .unwrap();
        let read = String::from_utf8(out.stdout).unwrap();
        assert_eq!(
            read.trim_end_matches('\0').split('\0').collect::<Vec<_>>(),
            words
        );
    }

    #[test]
    fn the_versions_of_the_servers() {
        let mut report = Report::new("beats");
        report.server(&Exposition::parse(
            "greendot_build_info{version=\"1.2.3\"} 1\n",
        ));
        report.server(&Exposition::parse(
            "greendot_build_info{version=\"1.2.3\"} 1\ngreendot_users 5\n",
        ));
        assert_eq!(report.json()["servers"], json!(["1.2.3"]));
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(
            [0.0, 999.0, 1_000.0, 1_234_567.8, -1_234.0, 0.5].map(number),
            ["0", "999", "1,000", "1,234,568", "-1,234", "0.500"]
        );
    }

    #[test]
    fn the_table() {
        let mut report = example();
        assert_eq!(
            report.table(),
            "streams\n\
            \x20 streams_held                    18,000\n\
            \x20 user_bytes_per_stream          152.250\n\
            \x20 latency, us                count        p50        p90        p99      \
            p99.9        max\n\
            \x20 hello                        100         50         90         99          \
            -        100\n\
            \x20 certified: the generator was not the bottleneck\n"
        );
        report.fail_if(0, "nothing");
        report.fail_if(2, "streams dropped");
        report.strain(&stats::Strain {
            busy: 0.95,
            ..stats::Strain::default()
        });
        assert_eq!(
            report.complaints(),
            "greendot-loadgen streams: FAILED: 2 streams dropped\n\
            greendot-loadgen streams: NOT CERTIFIED: the generator was busy 95 % of the time \
            (limit 90 %): the server may take more; give the generator a core of its own (--pin, \
            and taskset for the server), ask for less a second, or split it \
            (--streams-per-process)\n"
        );
        assert!(report.table().ends_with(
            "  FAILED: 2 streams dropped\n  NOT CERTIFIED: the generator was busy 95 % of the \
             time (limit 90 %): the server may take more; give the generator a core of its own \
             (--pin, and taskset for the server), ask for less a second, or split it \
             (--streams-per-process)\n"
        ));
    }

    #[test]
    fn a_percentile_file_is_named_after_its_latency() {
        let mut report = example();
        let mut latencies = Latencies::default();
        latencies.record(7);
        report.latencies("answer (closed loop)", latencies);
        let all: Vec<_> = report.hgrms().collect();
        assert_eq!(all[0].0, "streams-hello.hgrm");
        assert_eq!(all[1].0, "streams-answer-closed-loop.hgrm");
        assert!(all[1].1.ends_with("SubBuckets     =         2048]\n"));
    }

    #[test]
    fn a_verdict_is_told() {
        let mut report = example();
        report.verdict = Some("set --shards 2".to_owned());
        assert!(report.table().contains("\n  verdict: set --shards 2\n"));
        assert_eq!(report.json()["verdict"], "set --shards 2");
    }

    #[test]
    fn the_json() {
        let json = example().json();
        assert_eq!(
            json["values"],
            json!({"streams_held": 18_000.0, "user_bytes_per_stream": 152.25})
        );
        assert_eq!(json["latencies"]["hello"]["percentiles"]["p99"], 99);
        assert_eq!(
            json["latencies"]["hello"]["percentiles"]["p99.9"],
            Json::Null
        );
        assert_eq!(json["certified"], true);
        let text = json["latencies"]["hello"]["hdr_histogram"]
            .as_str()
            .unwrap();
        assert_eq!(Latencies::from_base64(text).unwrap().count(), 100);
    }
}
