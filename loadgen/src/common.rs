//! Flags that all subcommands have. Knows no subcommand.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::servers::{self, PresenceNode};

/// Flags of all subcommands.
#[derive(Args, Clone)]
pub struct Common {
    /// The server's HTTP address [default: GREENDOT_URL, or 127.0.0.1:8080]
    #[arg(long, global = true, value_name = "HOST:PORT", value_parser = servers::realtime)]
    pub http: Option<SocketAddr>,
    /// Open streams over TLS, at the address of the server's --https; all else goes to --http
    #[arg(long, global = true, value_name = "HOST:PORT", value_parser = servers::sealed)]
    pub https: Option<SocketAddr>,
    /// With --https: believe the authorities of this PEM file [default: whoever answers, and no
    /// signature is checked]
    #[arg(long, global = true, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// The server's UDP address [default: GREENDOT_BEAT_TO, or 127.0.0.1:8081]
    #[arg(long, global = true, value_name = "HOST:PORT", value_parser = servers::datagrams)]
    pub udp: Option<SocketAddr>,
    /// Of a split deployment, instead of --http and --udp: a real-time node; repeat it for each
    #[arg(long, global = true, value_name = "HOST:PORT", value_parser = servers::realtime)]
    pub realtime: Vec<SocketAddr>,
    /// Of a split deployment: a presence node, in the same words as its servers were told; repeat
    /// it for each
    #[arg(
        long,
        global = true,
        value_name = "udp://HOST:PORT,http://HOST:PORT",
        value_parser = servers::presence
    )]
    pub presence: Vec<PresenceNode>,
    /// Instead of all of these: a node of a fleet, by the addresses that clients use; repeat it for
    /// each
    #[arg(
        long,
        global = true,
        value_name = "udp://HOST:PORT,http://HOST:PORT",
        value_parser = servers::presence
    )]
    pub node: Vec<PresenceNode>,
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
    /// Write the percentiles of each latency as FOLDER/SCENARIO-LATENCY.hgrm, which HdrHistogram's
    /// plotFiles draws
    #[arg(long, global = true, value_name = "FOLDER")]
    pub hgrm: Option<PathBuf>,
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

/// The common flags and a subcommand's own, of `line` after the subcommand's name.
#[cfg(test)]
pub(crate) fn parsed<Own: Args>(line: &str) -> Result<(Common, Own), String> {
    #[derive(clap::Parser)]
    struct Line<Own: Args> {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        own: Own,
    }
    let words = std::iter::once("greendot-loadgen").chain(line.split_ascii_whitespace());
    let parsed = <Line<Own> as clap::Parser>::try_parse_from(words);
    parsed
        .map(|line| (line.common, line.own))
        .map_err(|fault| fault.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share() {
        assert_eq!(
            share("19000:500"),
            Ok(Share {
                first: 19_000,
                count: 500
            })
        );
        assert!(share("19000").is_err() && share("1:x").is_err());
    }
}
