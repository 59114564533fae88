//! The command line.
//!
//! Owns flags and their units. Durations are `10s`, `2m`, `500ms` or plain seconds; rates are a
//! number a second or `max`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::beats::BeatsArgs;
use crate::churn::ChurnArgs;
use crate::cores::CoresArgs;
use crate::fanout::FanoutArgs;
use crate::plan::PlanArgs;
use crate::query::QueryArgs;
use crate::storm::StormArgs;
use crate::streams::HoldArgs;
use crate::target::{self, PresenceNode};

/// Open-loop load generator for greendot. Exit code 0: done; 1: the server did something wrong; 2:
/// could not run.
#[derive(Parser)]
#[command(version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub scenario: Scenario,
    /// Flags of all subcommands.
    #[command(flatten)]
    pub common: Common,
}

/// The subcommands.
#[derive(Subcommand)]
pub enum Scenario {
    /// Ramp to N event streams, hold them, and weigh the server
    Streams(HoldArgs),
    /// Transitions on a schedule, and when each watcher was told
    Fanout(FanoutArgs),
    /// Beat datagrams at a rate or flat out, and where they were lost
    Beats(BeatsArgs),
    /// Presence queries at a rate or flat out
    Query(QueryArgs),
    /// Cut all streams at once and wait until all are back
    Storm(StormArgs),
    /// A day in a minute, with every watcher's view checked against the truth
    Churn(ChurnArgs),
    /// A scenario against servers of 1 to N shards
    Cores(CoresArgs),
    /// Cores, memory, network and nodes for a number of users
    Plan(PlanArgs),
}

/// Flags of all subcommands.
#[derive(Args, Clone)]
pub struct Common {
    /// The server's HTTP address [default: 127.0.0.1:8080]
    #[arg(long, global = true, value_name = "HOST:PORT", value_parser = target::resolve)]
    pub http: Option<SocketAddr>,
    /// The server's UDP address [default: 127.0.0.1:8081]
    #[arg(long, global = true, value_name = "HOST:PORT", value_parser = target::resolve)]
    pub udp: Option<SocketAddr>,
    /// Of a split deployment, instead of --http and --udp: a real-time node; repeat it for each
    #[arg(long, global = true, value_name = "HOST:PORT", value_parser = target::realtime)]
    pub realtime: Vec<SocketAddr>,
    /// Of a split deployment: a presence node, in the same words as its servers were told; repeat
    /// it for each
    #[arg(long, global = true, value_name = "udp://HOST:PORT,http://HOST:PORT", value_parser = target::presence)]
    pub presence: Vec<PresenceNode>,
    /// The file with the fleet key that the server accepts
    #[arg(long, global = true, default_value = "greendot-data/fleet.key")]
    pub key_file: PathBuf,
    /// The server's process, on this machine: its memory and CPU are measured
    #[arg(long, global = true)]
    pub server_pid: Option<u32>,
    /// The same seed gives the same users, graph and schedule
    #[arg(long, global = true, default_value_t = 1)]
    pub seed: u64,
    /// Write all results, histograms too, as JSON
    #[arg(long, global = true, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write all results with plots as one HTML file
    #[arg(long, global = true, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Print nothing but errors
    #[arg(long, global = true)]
    pub quiet: bool,
    /// Run on this core alone
    #[arg(long, global = true, value_name = "CORE")]
    pub pin: Option<usize>,
    /// What is measured: greendot, or one of the peers of benches/peers
    #[arg(long, global = true, value_enum, default_value_t = Peer::Greendot)]
    pub peer: Peer,
    /// Most streams that one process holds; above it several processes share them [default: what
    /// the descriptor limit allows]
    #[arg(long, global = true, value_name = "MAX")]
    pub streams_per_process: Option<usize>,
    /// The part of all streams that this process holds: FIRST:COUNT
    #[arg(long, global = true, hide = true, value_parser = share)]
    pub share: Option<Share>,
}

/// Whom the generator talks to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Peer {
    /// greendot: beats and goodbyes cause transitions
    Greendot,
    /// bare.c: datagrams are handed to all watchers
    Bare,
    /// nginx with nchan: events are posted to `/pub`; it sends no hello
    Nchan,
    /// The axum server of benches/peers: events are posted to `/pub`
    Axum,
}

/// A worker's part of all streams.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share {
    /// Number of its first stream.
    pub first: usize,
    /// How many it holds.
    pub count: usize,
}

fn share(text: &str) -> Result<Share, String> {
    let (first, count) = text.split_once(':').ok_or("FIRST:COUNT expected")?;
    let number = |text: &str| text.parse().map_err(|e| format!("{text}: {e}"));
    Ok(Share {
        first: number(first)?,
        count: number(count)?,
    })
}

/// Reads a duration: `10s`, `2m`, `1h`, `500ms`, or plain seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let seconds = match &text[digits..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        unit => return Err(format!("unknown unit {unit:?}: ms, s, m or h")),
    };
    let number: f64 = text[..digits]
        .parse()
        .map_err(|_| "a number is missing, as in 10s".to_owned())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|e| e.to_string())
}

/// Reads a rate: a number a second above 0, or `max`.
pub fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        _ if text == "max" => Ok(f64::INFINITY),
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => Err("a number above 0, or max".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_and_rates() {
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1_500)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert!(duration("s").is_err() && duration("3 days").is_err());
        assert_eq!(rate("max"), Ok(f64::INFINITY));
        assert_eq!(rate("2.5"), Ok(2.5));
        assert!(rate("0").is_err() && rate("inf").is_err() && rate("-1").is_err());
        assert_eq!(
            share("19000:500"),
            Ok(Share {
                first: 19_000,
                count: 500
            })
        );
    }
}
