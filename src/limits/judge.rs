//! What the configuration needs of the machine, held against what it allows.
//!
//! Owns the judgement, a pure function of the two, and its sentences. Reads and changes nothing.

use super::{BACKLOG, Found, NOFILE_PROCESS, conns_max, nofile_reserve};
use crate::config::Config;

/// Receive buffer that holds the beats of a turn that came late, in bytes.
const RMEM_NEEDED_BYTES: u64 = 4 << 20;
/// Kernel memory of one idle connection's own end, in bytes.
pub(super) const KERNEL_BYTES_PER_CONN: u64 = 4_200;
/// Memory in the unit of tcp_mem, in bytes.
const PAGE_BYTES: u64 = 4_096;

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Verdict {
    Ok,
    /// Works, but not at the configured capacity.
    Warn,
    /// Does not work.
    Fail,
}

/// One limit judged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    pub verdict: Verdict,
    pub subject: &'static str,
    /// What it is, what is needed, and what to set.
    pub detail: String,
    /// What mends it, to be pasted: a command, or a line of the service's unit.
    pub line: Option<String>,
}

impl Finding {
    /// A finding about `subject`.
    pub fn new(verdict: Verdict, subject: &'static str, detail: impl Into<String>) -> Finding {
        Finding {
            verdict,
            subject,
            detail: detail.into(),
            line: None,
        }
    }
}

impl Finding {
    fn with_line(self, line: String) -> Finding {
        Finding {
            line: Some(line),
            ..self
        }
    }
}

/// A number of the machine's that should not be smaller than what is needed.
struct Need {
    subject: &'static str,
    /// None where it could not be read: then nothing is said of it.
    found: Option<u64>,
    least: u64,
    /// What happens below it.
    why: &'static str,
    /// The command that mends it.
    setting: String,
}

impl Need {
    fn finding(&self) -> Option<Finding> {
        let (found, least) = (self.found?, self.least);
        Some(if found >= least {
            Finding::new(Verdict::Ok, self.subject, found.to_string())
        } else {
            let Need { why, setting, .. } = self;
            let detail = format!("{found} is less than {least}: {why}; run `{setting}`");
            Finding::new(Verdict::Warn, self.subject, detail).with_line(setting.clone())
        })
    }
}

/// Holds what was found against what `config` needs with `shards` shards.
pub fn judge(config: &Config, shards: u16, found: &Found) -> Vec<Finding> {
    let conns = (config.settings.conns_max as u64).saturating_mul(u64::from(shards));
    let fds = conns.saturating_add(nofile_reserve(config, shards));
    let taken = conns_max(config, shards, found.nofile_hard);
    let mut findings = vec![nofile(fds, conns, taken, found)];
    findings.extend(needs(fds, conns, found).iter().filter_map(Need::finding));
    findings.extend(found.port_range.map(port_range));
    findings.extend(found.kernel.map(kernel));
    findings
}

fn needs(fds: u64, conns: u64, found: &Found) -> [Need; 5] {
    let pages = conns.saturating_mul(KERNEL_BYTES_PER_CONN) / PAGE_BYTES;
    let (low, pressure) = (pages / 2, pages / 4 * 3);
    [
        Need {
            subject: "file-max",
            found: found.file_max,
            least: fds,
            why: "all open files of the machine, fewer than the configured connections",
            setting: format!("sysctl -w fs.file-max={}", fds.saturating_mul(2)),
        },
        Need {
            subject: "somaxconn",
            found: found.somaxconn,
            least: BACKLOG,
            why: "bursts of connections will wait a second for a second SYN",
            setting: format!("sysctl -w net.core.somaxconn={BACKLOG}"),
        },
        Need {
            subject: "rmem_max",
            found: found.rmem_max,
            least: RMEM_NEEDED_BYTES,
            why: "beats are dropped by the kernel when a turn comes late",
            setting: format!("sysctl -w net.core.rmem_max={RMEM_NEEDED_BYTES}"),
        },
        Need {
            subject: "tcp_mem",
            found: found.tcp_mem_pages,
            least: pages,
            why: "pages for all TCP sockets; beyond it the kernel drops data",
            setting: format!("sysctl -w net.ipv4.tcp_mem=\"{low} {pressure} {pages}\""),
        },
        Need {
            subject: "nf_conntrack_max",
            found: found.conntrack_max,
            least: conns,
            why: "tracked connections; beyond it new ones are dropped",
            setting: format!(
                "sysctl -w net.netfilter.nf_conntrack_max={}",
                conns.saturating_mul(2)
            ),
        },
    ]
}

fn port_range((from, to): (u64, u64)) -> Finding {
    let ports = to.saturating_sub(from) + 1;
    // Only for clients: one address has so many ports towards one listener.
    let detail = format!(
        "{from} to {to}: {ports} connections from one client or proxy address; more need more \
         addresses"
    );
    Finding::new(Verdict::Ok, "ip_local_port_range", detail)
}

fn kernel((major, minor): (u64, u64)) -> Finding {
    let (verdict, lacks) = match (major, minor) {
        (0..=2, _) | (3, 0..=8) => (
            Verdict::Fail,
            "has no SO_REUSEPORT, which each shard's own listener needs; 3.9 has",
        ),
        (3, _) | (4, 0..=4) => (
            Verdict::Fail,
            "can not spread datagrams over shards (SO_ATTACH_REUSEPORT_CBPF); 4.5 can",
        ),
        (4, _) => (
            Verdict::Warn,
            "has no UDP receive offload, so beats cost more; 5.0 has",
        ),
        _ => {
            let detail = format!("{major}.{minor}, with UDP receive offload");
            return Finding::new(Verdict::Ok, "kernel", detail);
        }
    };
    Finding::new(verdict, "kernel", format!("{major}.{minor} {lacks}"))
}

/// `fds` descriptors are needed for `conns` connections; `taken` of these are taken a shard.
fn nofile(fds: u64, conns: u64, taken: usize, found: &Found) -> Finding {
    // `serve` lifts the soft limit to the hard one by itself, so the hard one decides.
    let hard = found.nofile_hard.unwrap_or(u64::MAX);
    let shown = if hard == u64::MAX {
        "unlimited".into()
    } else {
        hard.to_string()
    };
    if hard >= fds {
        return Finding::new(Verdict::Ok, "nofile", shown);
    }
    let nr_open = match found.nr_open {
        Some(nr_open) if nr_open < fds => format!(" after `sysctl -w fs.nr_open={fds}`"),
        _ => String::new(),
    };
    let verdict = if hard < NOFILE_PROCESS * 2 {
        Verdict::Fail
    } else {
        Verdict::Warn
    };
    let detail = format!(
        "{shown} file descriptors are fewer than the {fds} that {conns} connections need, so a \
         shard takes {taken} of them; set LimitNOFILE={fds} (systemd) or `ulimit -Hn \
         {fds}`{nr_open}, or lower --conns-max"
    );
    let nr_open = found.nr_open.filter(|nr_open| *nr_open < fds);
    let nr_open = nr_open.map_or_else(String::new, |_| format!("sysctl -w fs.nr_open={fds}\n"));
    Finding::new(verdict, "nofile", detail).with_line(format!("{nr_open}LimitNOFILE={fds}"))
}
