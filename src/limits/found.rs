//! What the machine allows.
//!
//! Owns the reading of /proc and of resource limits. Judges nothing.

use std::fmt;
use std::path::Path;

use crate::cgroup;
use rustix::process::{Resource, Rlimit, getrlimit};

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
    /// What the memory control group allows, in bytes; None: anything.
    pub memory_max: Option<u64>,
    /// Memory that is free, or can be made so without swapping (MemAvailable), in bytes.
    pub memory_available: Option<u64>,
    /// Kernel release as (major, minor).
    pub kernel: Option<(u64, u64)>,
}

impl Found {
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
            memory_max: cgroup::memory_max(),
            memory_available: memory_available(),
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

fn memory_available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = line?.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
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

    #[test]
    fn releases() {
        assert_eq!(kernel_release("6.18.5-cloud"), Some((6, 18)));
        assert_eq!(kernel_release("x"), None);
    }
}
