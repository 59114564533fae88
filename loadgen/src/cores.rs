//! `cores`: one scenario against servers of 1 to N shards, the picture an operator chooses a number of cores by.

use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::Value as Json;

use crate::affinity::spawn_unpinned;
use crate::args::Common;
use crate::exposition::Exposition;
use crate::report::Report;
use crate::target::Target;

/// Flags of `cores`.
#[derive(Args, Clone, Debug)]
pub struct CoresArgs {
    /// Most shards to try
    #[arg(long, default_value_t = 2)]
    pub max: usize,
    /// What to run against each
    #[arg(long, value_enum, default_value_t = What::Beats)]
    pub scenario: What,
    /// Flags for the scenario, in one string, as "--users 100000 --rate max"
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub with: String,
    /// The server's program
    #[arg(long, default_value = "greendot")]
    pub server: PathBuf,
}

/// What can be run against each number of shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum What {
    /// Beats flat out
    Beats,
    /// Queries as fast as they are answered
    Query,
    /// Transitions back to back
    Fanout,
    /// A ramp of streams
    Streams,
}

impl What {
    /// The subcommand's name, what it is run with, the number that says how much the server did, and the histogram of how fast.
    fn details(self) -> (&'static str, &'static [&'static str], &'static str, &'static str) {
        match self {
            What::Beats => ("beats", &["--rate", "max"], "beats_accepted_per_s", ""),
            What::Query => ("query", &["--rate", "max"], "answers_per_s", "answer (closed loop)"),
            What::Fanout => (
                "fanout",
                &["--rate", "max", "--publishers", "50", "--transitions", "5000"],
                "deliveries_per_s",
                "",
            ),
            What::Streams => (
                "streams",
                &["--rate", "10000", "--streams", "5000"],
                "connects_per_s",
                "hello",
            ),
        }
    }
}

/// A server that this process has started, in a folder of its own; ends with its owner.
struct Server {
    process: Child,
    http: SocketAddr,
    udp: SocketAddr,
    folder: PathBuf,
}

impl Server {
    fn start(program: &Path, shards: usize) -> io::Result<Server> {
        let folder = std::env::temp_dir().join(format!("greendot-loadgen-{}-{shards}", std::process::id()));
        let mut command = Command::new(program);
        command
            .args([
                "serve",
                "--http",
                "127.0.0.1:0",
                "--udp",
                "127.0.0.1:0",
                "--shards",
                &shards.to_string(),
            ])
            .arg("--data-dir")
            .arg(&folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut process = spawn_unpinned(&mut command)
            .map_err(|e| io::Error::new(e.kind(), format!("--server {}: {e}", program.display())))?;
        let out = process.stdout.take();
        let unknown: SocketAddr = ([0, 0, 0, 0], 0).into();
        let mut server = Server {
            process,
            http: unknown,
            udp: unknown,
            folder,
        };
        for line in out
            .into_iter()
            .flat_map(|out| BufReader::new(out).lines())
            .map_while(Result::ok)
        {
            if let Some((http, udp)) = parse_listening(&line) {
                (server.http, server.udp) = (http, udp);
                return Ok(server);
            }
        }
        Err(io::Error::other(format!(
            "{} serve ended before it listened",
            program.display()
        )))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // What has ended already, or has no folder, is as wanted.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Reads `listening http=127.0.0.1:8080 udp=127.0.0.1:8081 shards=2`.
fn parse_listening(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let mut words = line.strip_prefix("listening ")?.split(' ');
    let mut address = |name: &str| words.next()?.strip_prefix(name)?.parse().ok();
    Some((address("http=")?, address("udp=")?))
}

/// The subcommand.
pub fn run(common: &Common, args: &CoresArgs) -> io::Result<Report> {
    if Target::new(common)?.is_split {
        return Err(io::Error::other("cores starts its own servers, each of both halves"));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (name, defaults, rate_name, latency_name) = args.scenario.details();
    let mut report = Report::new("cores");
    let (mut rates, mut latencies, mut busiest) = (Vec::new(), Vec::new(), Vec::new());
    for shards in 1..=args.max {
        let server = Server::start(&args.server, shards)?;
        let busy_before = busy_ratios(server.http, None)?;
        let found = run_scenario(common, args, &server, name, defaults)?;
        let busy = busy_ratios(server.http, Some(&busy_before))?;
        let rate = found["values"][rate_name].as_f64().unwrap_or(0.0);
        report.value(&format!("shards_{shards}_{rate_name}"), rate);
        rates.push((shards as f64, rate));
        if let Some(us) = found["latencies"][latency_name]["percentiles"]["p99"].as_f64() {
            report.value(&format!("shards_{shards}_p99_us"), us);
            latencies.push((shards as f64, us));
        }
        for (shard, (_, ratio)) in busy.iter().enumerate() {
            report.value(&format!("shards_{shards}_shard_{shard}_busy_ratio"), *ratio);
        }
        busiest.push((shards as f64, busy.iter().map(|(_, ratio)| *ratio).fold(0.0, f64::max)));
        for kind in ["failures", "doubts"] {
            for text in found[kind].as_array().into_iter().flatten().filter_map(Json::as_str) {
                let text = format!("{shards} shards: {text}");
                if kind == "failures" {
                    report.failures.push(text)
                } else {
                    report.doubts.push(text)
                }
            }
        }
    }
    if args.max + 1 > cores {
        report.notes.push(format!(
            "{cores} cores: with {} shards and the generator more threads work than there are cores, so from {cores} shards on the picture shows how they \
             share them, not what another core would add",
            args.max
        ));
    }
    report.series(rate_name, "shards", rates);
    report.series("p99, us", "shards", latencies);
    report.series("busiest shard's busy ratio", "shards", busiest);
    Ok(report)
}

/// Each shard's share of working time since `before` (None: the raw sums, as (busy, elapsed)).
fn busy_ratios(http: SocketAddr, before: Option<&[(f64, f64)]>) -> io::Result<Vec<(f64, f64)>> {
    let metrics = Exposition::scrape(http)?;
    let busy = metrics.by_label("greendot_turn_busy_seconds_total", "shard");
    let elapsed = metrics.by_label("greendot_turn_elapsed_seconds_total", "shard");
    let sums = busy
        .iter()
        .zip(&elapsed)
        .map(|((_, busy), (_, elapsed))| (*busy, *elapsed));
    Ok(match before {
        None => sums.collect(),
        Some(before) => sums
            .zip(before)
            .map(|(now, then)| (0.0, (now.0 - then.0) / (now.1 - then.1).max(1e-9)))
            .collect(),
    })
}

fn run_scenario(common: &Common, args: &CoresArgs, server: &Server, name: &str, defaults: &[&str]) -> io::Result<Json> {
    let json = server.folder.join("loadgen.json");
    let with: Vec<&str> = args.with.split_ascii_whitespace().collect();
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(name).args(&with);
    for pair in defaults.chunks(2).filter(|pair| !with.contains(&pair[0])) {
        command.args(pair);
    }
    command
        .args([
            "--http",
            &server.http.to_string(),
            "--udp",
            &server.udp.to_string(),
            "--seed",
            &common.seed.to_string(),
            "--quiet",
        ])
        .args(["--server-pid", &server.process.id().to_string()])
        .arg("--key-file")
        .arg(server.folder.join("fleet.key"))
        .arg("--json")
        .arg(&json);
    let status = command.status()?;
    if status.code() != Some(0) && status.code() != Some(1) {
        return Err(io::Error::other(format!("{name} ended with {status}")));
    }
    // The server publishes its counters at the end of a turn.
    std::thread::sleep(Duration::from_millis(300));
    Ok(serde_json::from_slice(&std::fs::read(&json)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_a_server_prints() {
        assert_eq!(
            parse_listening("listening http=127.0.0.1:8080 udp=127.0.0.1:8081 shards=2"),
            Some((([127, 0, 0, 1], 8080).into(), ([127, 0, 0, 1], 8081).into()))
        );
        assert_eq!(parse_listening("listening somewhere"), None);
        assert_eq!(parse_listening("type this next:"), None);
    }
}
