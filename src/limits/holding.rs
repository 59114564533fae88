//! Whether a machine holds so many streams.
//!
//! Owns what they need beside what any configuration does: memory, and a limit of connections that
//! is high enough. Pure; reads nothing.

use super::judge::{Finding, KERNEL_BYTES_PER_CONN, Verdict, judge};
use super::memory::{WATCH_BYTES, user_bytes_per_conn};
use super::{Found, conns_max};
use crate::config::Config;

/// A shard may have so many more than its share, as one in so many: the kernel deals connections
/// out by a hash.
const SPREAD: u64 = 20;

/// The judgement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holding {
    /// The streams that were asked about.
    pub streams: u64,
    /// The configuration with a limit of connections that has room for them.
    pub config: Config,
    /// Memory that they take, the kernel's share included, in bytes; with one watch each.
    pub memory_bytes: u64,
    /// All that was looked at.
    pub findings: Vec<Finding>,
}

impl Holding {
    /// Of a configuration on a machine.
    pub fn judge(config: &Config, shards: u16, found: &Found, streams: u64) -> Holding {
        let mut config = config.clone();
        let share = streams.div_ceil(u64::from(shards));
        let least = share + share.div_ceil(SPREAD);
        let conns = usize::try_from(least).unwrap_or(usize::MAX);
        config.settings.conns_max = conns;
        let each = KERNEL_BYTES_PER_CONN + user_bytes_per_conn(&config) + WATCH_BYTES;
        let memory_bytes = streams.saturating_mul(each);
        let mut findings = judge(&config, shards, found);
        let taken = conns_max(&config, shards, found.nofile_hard);
        for finding in &mut findings {
            // It would serve with fewer. That is not what was asked.
            if finding.subject == "nofile" && taken < conns {
                finding.verdict = Verdict::Fail;
            }
        }
        findings.extend(memory(memory_bytes, each, found));
        findings.push(proxies(streams, found));
        Holding {
            streams,
            config,
            memory_bytes,
            findings,
        }
    }

    /// Whether the machine holds them as it is.
    pub fn fits(&self) -> bool {
        let mut findings = self.findings.iter();
        findings.all(|finding| finding.verdict < Verdict::Fail)
    }
}

fn memory(needed: u64, each: u64, found: &Found) -> Option<Finding> {
    let (free, whose) = match (found.memory_available, found.memory_max) {
        (Some(free), Some(max)) if max < free => (max, "the control group allows"),
        (Some(free), _) => (free, "are free"),
        (None, Some(max)) => (max, "the control group allows"),
        (None, None) => return None,
    };
    let mib = |bytes: u64| bytes >> 20;
    let detail = format!(
        "{} MiB, {each} bytes a stream with one watch, {WATCH_BYTES} more for each further; {} MiB \
         {whose}",
        mib(needed),
        mib(free)
    );
    // The rest is for everything else: users, buffers, the page cache of the store.
    let (verdict, detail) = match needed {
        _ if needed > free => (Verdict::Fail, format!("{detail}; give it more memory")),
        _ if needed > free / 10 * 9 => (
            Verdict::Warn,
            format!("{detail}, which leaves little for users and buffers"),
        ),
        _ => (Verdict::Ok, detail),
    };
    Some(Finding::new(verdict, "memory", detail))
}

/// One address of a proxy in front has so many ports.
fn proxies(streams: u64, found: &Found) -> Finding {
    let (from, to) = found.port_range.unwrap_or((32_768, 60_999));
    let ports = (to.saturating_sub(from) + 1).max(1);
    let detail = format!(
        "a proxy in front needs {} addresses with {ports} ports each, or as many listeners",
        streams.div_ceil(ports)
    );
    Finding::new(Verdict::Ok, "proxies", detail)
}
