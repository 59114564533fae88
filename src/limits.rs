//! The machine's limits: what they are, and what the configuration needs of them.
//!
//! Owns the reading of /proc and of resource limits, and the judgement, which is a pure function of
//! the two. Changes one thing only: [`raise_nofile`] lifts the soft file descriptor limit to the
//! hard one.

use std::fmt;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;
use crate::engine::settings::SURPLUS_CONNS;

/// File descriptors of the process as a whole: files, signals, logs.
const NOFILE_PROCESS: u64 = 64;
/// File descriptors of a shard beside connections: listener, UDP socket, epoll, eventfd, the
/// reserve for refusals.
const NOFILE_SHARD: u64 = 8;
/// HTTP connections to each node of the other role: one, and the one that follows it.
const NOFILE_NODE: u64 = 2;
/// Connections that may wait for accept on each listener; a burst of reconnects beyond it meets SYN
/// drops and 1 s retries.
pub const BACKLOG: u64 = 4_096;
/// Receive buffer that holds the beats of a turn that came late, in bytes.
const RMEM_NEEDED_BYTES: u64 = 4 << 20;
/// Kernel memory of one idle connection's own end, in bytes.
const KERNEL_BYTES_PER_CONN: u64 = 4_200;
/// Memory in the unit of tcp_mem, in bytes.
const PAGE_BYTES: u64 = 4_096;

/// What the machine allows. None where it could not be read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// Soft limit of file descriptors; None: unlimited.
    pub nofile_soft: Option<u64>,
    /// Hard limit of file descriptors; None: unlimited.
    pub nofile_hard: Option<u64>,
    /// fs.nr_open: the most that a hard limit may be.
    pub nr_open: Option<u64>,
    /// fs.file-max: the most for the whole machine.
    pub file_max: Option<u64>,
    /// net.core.somaxconn.
    pub somaxconn: Option<u64>,
    /// net.core.rmem_max.
    pub rmem_max: Option<u64>,
    /// net.ipv4.tcp_mem's third number, in pages.
    pub tcp_mem_pages: Option<u64>,
    /// net.ipv4.ip_local_port_range.
    pub port_range: Option<(u64, u64)>,
    /// net.netfilter.nf_conntrack_max; None: no connection tracking.
    pub conntrack_max: Option<u64>,
    /// Kernel release as (major, minor).
    pub kernel: Option<(u64, u64)>,
}

impl Found {
    /// Reads them.
    pub fn read() -> Found {
        let number = |name: &str| proc_numbers(name).first().copied();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let ports = proc_numbers("/proc/sys/net/ipv4/ip_local_port_range");
        Found {
            nofile_soft: current,
            nofile_hard: maximum,
            nr_open: number("/proc/sys/fs/nr_open"),
            file_max: number("/proc/sys/fs/file-max"),
            somaxconn: number("/proc/sys/net/core/somaxconn"),
            rmem_max: number("/proc/sys/net/core/rmem_max"),
            tcp_mem_pages: proc_numbers("/proc/sys/net/ipv4/tcp_mem").get(2).copied(),
            port_range: if let [from, to] = ports[..] {
                Some((from, to))
            } else {
                None
            },
            conntrack_max: number("/proc/sys/net/netfilter/nf_conntrack_max"),
            kernel: kernel_release(
                rustix::system::uname()
                    .release()
                    .to_str()
                    .unwrap_or_default(),
            ),
        }
    }
}

impl fmt::Display for Found {
    /// The line of the start-up message.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: Option<u64>, none: &str| {
            value.map_or_else(|| none.to_owned(), |value| value.to_string())
        };
        write!(
            f,
            "nofile={} somaxconn={} rmem_max={}",
            shown(self.nofile_soft, "unlimited"),
            shown(self.somaxconn, "?"),
            shown(self.rmem_max, "?")
        )
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Verdict {
    /// Enough.
    Ok,
    /// Works, but not at the configured capacity.
    Warn,
    /// Does not work.
    Fail,
}

/// One limit judged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// How bad.
    pub verdict: Verdict,
    /// Which limit.
    pub subject: &'static str,
    /// What it is, what is needed, and what to set.
    pub detail: String,
}

impl Finding {
    /// A finding about `subject`.
    pub fn new(verdict: Verdict, subject: &'static str, detail: impl Into<String>) -> Finding {
        Finding {
            verdict,
            subject,
            detail: detail.into(),
        }
    }
}

/// Sockets of one shard to each presence node (`links::BeatSender`).
const BEAT_PORTS: u64 = crate::links::BeatSender::PORTS as u64;

/// File descriptors that are not for connections within `conns_max`: the process's, the links' to
/// other nodes, and those on which a shard hears who comes when it is full.
fn nofile_reserve(config: &Config, shards: u16) -> u64 {
    let shard = NOFILE_SHARD + SURPLUS_CONNS as u64 + BEAT_PORTS * config.presence.len() as u64;
    let nodes = (config.presence.len() + config.realtime.len()) as u64;
    NOFILE_PROCESS + u64::from(shards) * shard + NOFILE_NODE * nodes
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

/// Holds what was found against what `config` needs with `shards` shards.
pub fn judge(config: &Config, shards: u16, found: &Found) -> Vec<Finding> {
    let conns = (config.settings.conns_max as u64).saturating_mul(u64::from(shards));
    let fds = conns.saturating_add(nofile_reserve(config, shards));
    let taken = conns_max(config, shards, found.nofile_hard);
    let mut findings = vec![nofile(fds, conns, taken, found)];
    let mut least = |subject, value: Option<u64>, needed: u64, why: &str, setting: &str| {
        let Some(value) = value else { return };
        findings.push(if value >= needed {
            Finding::new(Verdict::Ok, subject, format!("{value}"))
        } else {
            Finding::new(
                Verdict::Warn,
                subject,
                format!("{value} is less than {needed}: {why}; run `{setting}`"),
            )
        });
    };
    let file_max_why = "all open files of the machine, fewer than the configured connections";
    least(
        "file-max",
        found.file_max,
        fds,
        file_max_why,
        &format!("sysctl -w fs.file-max={}", fds.saturating_mul(2)),
    );
    let backlog_why = "bursts of connections will wait a second for a second SYN";
    least(
        "somaxconn",
        found.somaxconn,
        BACKLOG,
        backlog_why,
        &format!("sysctl -w net.core.somaxconn={BACKLOG}"),
    );
    let rmem_why = "beats are dropped by the kernel when a turn comes late";
    least(
        "rmem_max",
        found.rmem_max,
        RMEM_NEEDED_BYTES,
        rmem_why,
        &format!("sysctl -w net.core.rmem_max={RMEM_NEEDED_BYTES}"),
    );
    let pages = conns.saturating_mul(KERNEL_BYTES_PER_CONN) / PAGE_BYTES;
    let tcp_mem = format!(
        "sysctl -w net.ipv4.tcp_mem=\"{} {} {}\"",
        pages / 2,
        pages / 4 * 3,
        pages
    );
    least(
        "tcp_mem",
        found.tcp_mem_pages,
        pages,
        "pages for all TCP sockets; beyond it the kernel drops data",
        &tcp_mem,
    );
    let conntrack = format!(
        "sysctl -w net.netfilter.nf_conntrack_max={}",
        conns.saturating_mul(2)
    );
    least(
        "nf_conntrack_max",
        found.conntrack_max,
        conns,
        "tracked connections; beyond it new ones are dropped",
        &conntrack,
    );
    if let Some((from, to)) = found.port_range {
        let ports = to.saturating_sub(from) + 1;
        // Only for whoever connects: one address has so many ports towards one listener.
        let detail = format!(
            "{from} to {to}: {ports} connections from one client or proxy address; more need \
             more addresses"
        );
        findings.push(Finding::new(Verdict::Ok, "ip_local_port_range", detail));
    }
    if let Some((major, minor)) = found.kernel {
        findings.push(match (major, minor) {
            (0..=2, _) | (3, 0..=8) => {
                let detail = format!(
                    "{major}.{minor} has no SO_REUSEPORT, which each shard's own \
                             listener needs; 3.9 has"
                );
                Finding::new(Verdict::Fail, "kernel", detail)
            }
            (3, _) | (4, 0..=4) => Finding::new(
                Verdict::Fail,
                "kernel",
                format!(
                    "{major}.{minor} can not spread datagrams over shards \
                         (SO_ATTACH_REUSEPORT_CBPF); 4.5 can"
                ),
            ),
            (4, _) => Finding::new(
                Verdict::Warn,
                "kernel",
                format!("{major}.{minor} has no UDP receive offload, so beats cost more; 5.0 has"),
            ),
            _ => Finding::new(
                Verdict::Ok,
                "kernel",
                format!("{major}.{minor}, with UDP receive offload"),
            ),
        });
    }
    findings
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
         shard takes {taken} of them; set \
         LimitNOFILE={fds} (systemd) or `ulimit -Hn {fds}`{nr_open}, or lower --conns-max"
    );
    Finding::new(verdict, "nofile", detail)
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

fn proc_numbers(path: impl AsRef<Path>) -> Vec<u64> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace()
        .map_while(|word| word.parse().ok())
        .collect()
}

fn kernel_release(text: &str) -> Option<(u64, u64)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::nodes::{PresenceNode, RealtimeNode};

    fn plenty() -> Found {
        Found {
            nofile_soft: Some(1_024),
            nofile_hard: Some(1 << 20),
            nr_open: Some(1 << 20),
            file_max: Some(u64::MAX),
            somaxconn: Some(4_096),
            rmem_max: Some(8 << 20),
            tcp_mem_pages: Some(1 << 20),
            port_range: Some((32_768, 60_999)),
            conntrack_max: None,
            kernel: Some((6, 1)),
        }
    }

    fn bad(found: &Found) -> Vec<(Verdict, &'static str)> {
        let findings = judge(&Config::default(), 2, found);
        findings
            .iter()
            .filter(|finding| finding.verdict > Verdict::Ok)
            .map(|finding| (finding.verdict, finding.subject))
            .collect()
    }

    #[test]
    fn plenty_is_enough() {
        assert_eq!(bad(&plenty()), []);
        assert_eq!(
            bad(&Found::default()),
            [],
            "what can not be read is not blamed"
        );
    }

    #[test]
    fn each_limit_is_missed_alone() {
        let conntrack = Found {
            conntrack_max: Some(65_536),
            ..plenty()
        };
        assert_eq!(bad(&conntrack), [(Verdict::Warn, "nf_conntrack_max")]);
        assert_eq!(
            bad(&Found {
                somaxconn: Some(128),
                ..plenty()
            }),
            [(Verdict::Warn, "somaxconn")]
        );
        assert_eq!(
            bad(&Found {
                rmem_max: Some(212_992),
                ..plenty()
            }),
            [(Verdict::Warn, "rmem_max")]
        );
        assert_eq!(
            bad(&Found {
                tcp_mem_pages: Some(100_000),
                ..plenty()
            }),
            [(Verdict::Warn, "tcp_mem")]
        );
        assert_eq!(
            bad(&Found {
                file_max: Some(100_000),
                ..plenty()
            }),
            [(Verdict::Warn, "file-max")]
        );
        assert_eq!(
            bad(&Found {
                kernel: Some((4, 19)),
                ..plenty()
            }),
            [(Verdict::Warn, "kernel")]
        );
        assert_eq!(
            bad(&Found {
                kernel: Some((3, 8)),
                ..plenty()
            }),
            [(Verdict::Fail, "kernel")]
        );
        assert_eq!(
            bad(&Found {
                nofile_hard: Some(100),
                ..plenty()
            }),
            [(Verdict::Fail, "nofile")]
        );
    }

    #[test]
    fn nofile_says_what_to_set() {
        let found = Found {
            nofile_hard: Some(4_096),
            nr_open: Some(100_000),
            ..plenty()
        };
        let findings = judge(&Config::default(), 2, &found);
        assert_eq!(
            findings[0].detail,
            "4096 file descriptors are fewer than the 200208 that 200000 connections need, so a \
             shard takes 1944 of them; set \
             LimitNOFILE=200208 (systemd) or `ulimit -Hn 200208` after `sysctl -w \
             fs.nr_open=200208`, or lower --conns-max"
        );
    }

    /// 64 for the process; 8, 64 to refuse on and 16 a presence node for each shard; 2 a node.
    #[test]
    fn connections_leave_descriptors_for_the_rest() {
        let with = |presence: &[(&str, &str)], realtime: &[&str]| {
            let node = |(udp, http): &(&str, &str)| PresenceNode {
                udp: (*udp).into(),
                http: (*http).into(),
            };
            let http = |http: &&str| RealtimeNode {
                http: (*http).into(),
            };
            Config {
                presence: presence.iter().map(node).collect(),
                realtime: realtime.iter().map(http).collect(),
                ..Config::default()
            }
        };
        let alone = with(&[], &[]);
        assert_eq!(nofile_reserve(&alone, 1), 64 + 72);
        assert_eq!(nofile_reserve(&alone, 4), 64 + 4 * 72);
        let nodes = [("a:1", "http://a:2"), ("b:1", "http://b:2")];
        assert_eq!(
            nofile_reserve(&with(&nodes, &[]), 3),
            64 + 3 * (72 + 32) + 4
        );
        assert_eq!(
            nofile_reserve(&with(&[], &["http://a:2"]), 3),
            64 + 3 * 72 + 2
        );

        let enough = 100_000 * 2 + nofile_reserve(&alone, 2);
        for (nofile, conns) in [
            (None, 100_000),
            (Some(u64::MAX), 100_000),
            (Some(enough), 100_000),
            (Some(enough - 1), 99_999),
            (Some(1_024), (1_024 - 208) / 2),
            // Half of them at the most is held back, and one connection is always taken.
            (Some(256), 64),
            (Some(2), 1),
            (Some(0), 1),
        ] {
            assert_eq!(conns_max(&alone, 2, nofile), conns, "{nofile:?}");
        }
    }

    #[test]
    fn what_is_not_taken_is_remarked() {
        let config = Config::default();
        assert_eq!(remark(&config, 2, &plenty()), "");
        assert_eq!(remark(&config, 2, &Found::default()), "");
        let few = Found {
            nofile_hard: Some(4_096),
            ..plenty()
        };
        assert_eq!(
            remark(&config, 2, &few),
            "# conns_max: 4096 file descriptors leave 1944 for each of 2 shards\n"
        );
    }

    #[test]
    fn releases() {
        assert_eq!(kernel_release("6.18.5-cloud"), Some((6, 18)));
        assert_eq!(kernel_release("x"), None);
    }

    #[test]
    fn this_machine_can_be_read() {
        let found = Found::read();
        assert!(found.somaxconn.is_some() && found.kernel.is_some());
        raise_nofile().unwrap();
        let raised = getrlimit(Resource::Nofile);
        assert_eq!(raised.current, raised.maximum);
    }
}
