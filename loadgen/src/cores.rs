//! `cores`: one scenario against servers of 1 to N shards, the picture an operator chooses a number
//! of cores by.

use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use clap::{Args, ValueEnum};
use serde_json::Value as Json;

use crate::affinity::spawn_unpinned;
use crate::common::Common;
use crate::knee::{self, Step};
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

/// How a scenario is run, and what of its report goes into the picture.
struct Details {
    name: &'static str,
    /// Flags and their values, where `--with` does not give them.
    defaults: &'static [(&'static str, &'static str)],
    /// The number that says how much the server did.
    rate: &'static str,
    /// The histograms that may say how fast; the first that there is.
    latencies: &'static [&'static str],
    /// What else to run for a latency, where the scenario as fast as possible has none.
    paced: &'static [(&'static str, &'static str)],
}

impl What {
    fn details(self) -> Details {
        match self {
            What::Beats => Details {
                name: "beats",
                defaults: &[("--rate", "max")],
                rate: "beats_accepted_per_s",
                latencies: &[],
                paced: &[],
            },
            What::Query => Details {
                name: "query",
                defaults: &[("--rate", "max")],
                rate: "answers_per_s",
                latencies: &["answer", "answer (closed loop)"],
                paced: &[],
            },
            What::Fanout => Details {
                name: "fanout",
                defaults: &[
                    ("--rate", "max"),
                    ("--publishers", "50"),
                    ("--transitions", "5000"),
                ],
                rate: "deliveries_per_s",
                latencies: &["last watcher"],
                paced: &[
                    ("--rate", "20"),
                    ("--publishers", "10"),
                    // A p99 needs a hundred.
                    ("--transitions", "120"),
                ],
            },
            What::Streams => Details {
                name: "streams",
                defaults: &[("--rate", "10000"), ("--streams", "5000")],
                rate: "connects_per_s",
                latencies: &["hello"],
                paced: &[],
            },
        }
    }
}

/// The words of `--with`, and those defaults that they do not give: `--rate 5` and `--rate=5` both
/// do.
fn flags<'a>(with: &'a str, defaults: &[(&'a str, &'a str)]) -> Vec<&'a str> {
    let mut words: Vec<&str> = with.split_ascii_whitespace().collect();
    let given = |words: &[&str], flag: &str| {
        let mut names = words
            .iter()
            .map(|word| word.split_once('=').map_or(*word, |(name, _)| name));
        names.any(|name| name == flag)
    };
    for (flag, value) in defaults {
        if !given(&words, flag) {
            words.extend([flag, value]);
        }
    }
    words
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
        let folder =
            std::env::temp_dir().join(format!("greendot-loadgen-{}-{shards}", std::process::id()));
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
            // Killed in the end, it would leave a memory behind.
            .env("GREENDOT_MEMORY", "off")
            .env("GREENDOT_NEW_USERS_PER_SECOND_MAX", "0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut process = spawn_unpinned(&mut command).map_err(|e| {
            io::Error::new(e.kind(), format!("--server {}: {e}", program.display()))
        })?;
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
    if !Target::new(common)?.is_one() {
        return Err(io::Error::other(
            "cores starts its own servers, each of both halves",
        ));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let details = args.scenario.details();
    let mut report = Report::new("cores");
    let (mut steps, mut latencies) = (Vec::new(), Vec::new());
    let mut busy: Vec<Vec<(f64, f64)>> = vec![Vec::new(); args.max];
    for shards in 1..=args.max {
        let server = Server::start(&args.server, shards)?;
        let found = run_scenario(
            common,
            common.seed,
            &server,
            &details,
            &flags(&args.with, details.defaults),
        )?;
        let mut fast = p99_us(&found, &details);
        let mut all = vec![found];
        if fast.is_none() && !details.paced.is_empty() {
            let paced: Vec<&str> = details
                .paced
                .iter()
                .flat_map(|(flag, value)| [*flag, *value])
                .collect();
            let found = run_scenario(common, common.seed + 1, &server, &details, &paced)?;
            fast = p99_us(&found, &details);
            all.push(found);
        }
        let at = shards as f64;
        let rate = all[0]["values"][details.rate].as_f64().unwrap_or(0.0);
        report.value(&format!("shards_{shards}_{}", details.rate), rate);
        if let Some(us) = fast {
            report.value(&format!("shards_{shards}_p99_us"), us);
            latencies.push((at, us));
        }
        let mut busiest: Option<f64> = None;
        for (shard, points) in busy.iter_mut().enumerate().take(shards) {
            if let Some(ratio) = all[0]["values"][format!("shard_{shard}_busy_ratio")].as_f64() {
                report.value(&format!("shards_{shards}_shard_{shard}_busy_ratio"), ratio);
                points.push((at, ratio));
                busiest = Some(busiest.map_or(ratio, |most| most.max(ratio)));
            }
        }
        steps.push(Step {
            shards,
            rate,
            busiest,
        });
        for found in &all {
            let texts = |kind: &str| {
                found[kind]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Json::as_str)
            };
            let told = |text: &str| format!("--shards {shards}: {text}");
            report.failures.extend(texts("failures").map(told));
            report.doubts.extend(texts("doubts").map(told));
            for version in texts("servers") {
                if !report.servers.iter().any(|known| known == version) {
                    report.servers.push(version.to_owned());
                }
            }
        }
    }
    if details.latencies.is_empty() {
        report
            .notes
            .push("beats are never answered, so there is no latency to plot".to_owned());
    }
    if args.max + 1 > cores {
        report.notes.push(format!(
            "{cores} cores: with {} shards and the generator more threads work than there are \
             cores, so from {cores} shards on the picture shows how they share them, not what \
             another core would add",
            args.max
        ));
    }
    let certified = report.doubts.is_empty() && report.failures.is_empty();
    report.verdict = Some(knee::verdict(details.rate, &steps, cores, certified));
    let rates = steps.iter().map(|step| (step.shards as f64, step.rate));
    report.series(details.rate, "shards", rates.collect());
    report.series("p99, us", "shards", latencies);
    for (shard, points) in busy.into_iter().enumerate() {
        report.series(&format!("shard {shard}'s busy ratio"), "shards", points);
    }
    Ok(report)
}

/// How fast the server was, if that was measured.
fn p99_us(found: &Json, details: &Details) -> Option<f64> {
    let mut all = details.latencies.iter();
    all.find_map(|name| found["latencies"][*name]["percentiles"]["p99"].as_f64())
}

fn run_scenario(
    common: &Common,
    seed: u64,
    server: &Server,
    details: &Details,
    flags: &[&str],
) -> io::Result<Json> {
    let json = server.folder.join("loadgen.json");
    let (http, udp, seed) = (
        server.http.to_string(),
        server.udp.to_string(),
        seed.to_string(),
    );
    let status = Command::new(std::env::current_exe()?)
        .arg(details.name)
        .args(flags)
        .args(["--http", &http, "--udp", &udp, "--seed", &seed, "--quiet"])
        .args(["--server-pid", &server.process.id().to_string()])
        .arg("--key-file")
        .arg(server.folder.join("fleet.key"))
        .arg("--json")
        .arg(&json)
        .args(common.pin.map(|core| format!("--pin={core}")))
        .status()?;
    if status.code() != Some(0) && status.code() != Some(1) {
        return Err(io::Error::other(format!(
            "{} ended with {status}",
            details.name
        )));
    }
    Ok(serde_json::from_slice(&std::fs::read(&json)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_not_given_twice() {
        let defaults = [("--rate", "max"), ("--users", "5")];
        for (with, all) in [
            ("", "--rate max --users 5"),
            ("--rate 5000", "--rate 5000 --users 5"),
            ("--rate=5000  --rates 1", "--rate=5000 --rates 1 --users 5"),
        ] {
            assert_eq!(flags(with, &defaults).join(" "), all);
        }
    }

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
