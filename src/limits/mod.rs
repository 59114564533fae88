//! The machine's limits: what they are, and what the configuration needs of them.
//!
//! Owns how many connections fit, and what is said of it. Changes one thing only: [`raise_nofile`]
//! lifts the soft file descriptor limit to the hard one.

mod found;
mod holding;
mod judge;
mod memory;
#[cfg(test)]
mod tests;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;
use crate::engine::settings::SURPLUS_CONNS;
pub use found::Found;
pub use holding::Holding;
pub use judge::{Finding, Verdict, judge};
pub use memory::{fit_memory, memory_line};

/// File descriptors of the process as a whole: files, signals, logs.
const NOFILE_PROCESS: u64 = 64;
/// File descriptors of a shard beside connections: listener, UDP socket, epoll, eventfd, the
/// reserve for refusals.
const NOFILE_SHARD: u64 = 8;
/// HTTP connections to each node of the other role, and to each webhook: one, and the one that
/// follows it.
const NOFILE_NODE: u64 = 2;
/// Connections that may wait for accept on each listener; a burst of reconnects beyond it meets SYN
/// drops and 1 s retries.
pub const BACKLOG: u64 = 4_096;

/// Sockets of one shard to each presence node (`links::BeatSender`).
const BEAT_PORTS: u64 = crate::links::BeatSender::PORTS as u64;

/// File descriptors that are not for connections within `conns_max`: the process's, the links' to
/// other nodes, those on which a shard hears who comes when it is full, and those whose handshake
/// is not over.
fn nofile_reserve(config: &Config, shards: u16) -> u64 {
    let handshakes = match config.tls.is_on() {
        true => config.tls.handshakes_max as u64,
        false => 0,
    };
    let shard = NOFILE_SHARD
        + SURPLUS_CONNS as u64
        + handshakes
        + BEAT_PORTS * config.presence_nodes.len() as u64;
    let nodes = config.presence_nodes.len() + config.realtime_nodes.len();
    let others = (nodes + config.webhooks.hooks.len()) as u64;
    NOFILE_PROCESS + u64::from(shards) * shard + NOFILE_NODE * others
}

/// Most connections of one shard of `shards` that `nofile` descriptors allow (None: unlimited):
/// `conns_max`, or less, so that the descriptors never run out. Then a health check and what other
/// nodes publish are still let in, which without a descriptor nothing is. At most half of the
/// descriptors are held back, however few there are.
pub fn conns_max(config: &Config, shards: u16, nofile: Option<u64>) -> usize {
    let configured = config.settings.conns_max;
    let Some(nofile) = nofile else {
        return configured;
    };
    let held_back = nofile_reserve(config, shards).min(nofile / 2);
    let left = (nofile - held_back) / u64::from(shards);
    configured
        .min(usize::try_from(left).unwrap_or(usize::MAX))
        .max(1)
}

/// What `greendot config` adds where the machine allows less than is set: a comment line, or
/// nothing.
pub fn remark(config: &Config, shards: u16, found: &Found) -> String {
    match (
        conns_max(config, shards, found.nofile_hard),
        found.nofile_hard,
    ) {
        (taken, Some(hard)) if taken < config.settings.conns_max => {
            format!(
                "# conns_max: {hard} file descriptors leave {taken} for each of {shards} shards\n"
            )
        }
        _ => String::new(),
    }
}

/// Lifts the soft limit of file descriptors to the hard one, which needs no privilege.
///
/// Errors: the kernel refuses it.
pub fn raise_nofile() -> std::io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )?)
}

/// What `serve` warns of when it starts: the limits that capacity depends on and that are too low.
pub fn start_up_warnings(config: &Config, shards: u16, found: &Found) -> Vec<String> {
    let findings = judge(config, shards, found);
    let told = findings
        .into_iter()
        .filter(|finding| finding.verdict > Verdict::Ok);
    told.map(|finding| format!("{}: {}", finding.subject, finding.detail))
        .collect()
}
