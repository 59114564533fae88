//! What the kernel says of the server, of the machine and of the sockets between.
//!
//! Owns the parsing of /proc. Every reader takes text, so that tests need no kernel; what is
//! missing is None, never 0.

use std::fs;

/// Memory of a process, bytes (smaps_rollup).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Memory {
    /// Resident, of whatever kind.
    pub rss_bytes: u64,
    /// Private to the process and backed by no file: heap, stacks, tables.
    pub anonymous_bytes: u64,
}

/// Memory of process `pid`.
pub fn memory(pid: u32) -> Option<Memory> {
    parse_memory(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?)
}

/// Private memory of process `pid`, if one is named, MiB.
pub fn user_mib(pid: Option<u32>) -> Option<f64> {
    Some(memory(pid?)?.anonymous_bytes as f64 / 1_048_576.0)
}

fn parse_memory(text: &str) -> Option<Memory> {
    let kib = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(first_number)
    };
    Some(Memory {
        rss_bytes: kib("Rss:")? * 1_024,
        anonymous_bytes: kib("Anonymous:")? * 1_024,
    })
}

/// CPU time that all threads of process `pid` have used, us. Nanosecond accounting where the kernel
/// keeps it.
pub fn cpu_us(pid: u32) -> Option<u64> {
    let mut total_ns = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        // A thread that ended between the two reads took its share along; servers keep theirs.
        if let Ok(text) = fs::read_to_string(task.ok()?.path().join("schedstat")) {
            total_ns += first_number(&text)?;
        }
    }
    if total_ns > 0 {
        return Some(total_ns / 1_000);
    }
    parse_stat_ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
        .map(|ticks| ticks * 1_000_000 / rustix::param::clock_ticks_per_second())
}

fn parse_stat_ticks(text: &str) -> Option<u64> {
    // The command, in parentheses, may hold anything; fields are counted from its last ')': state
    // is field 3.
    let mut fields = text[text.rfind(')')? + 1..]
        .split_ascii_whitespace()
        .skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// Bytes in all slab caches of the kernel (needs root); sockets, epoll entries, dentries and inodes
/// live there.
pub fn slab_bytes() -> Option<u64> {
    parse_slab(
        &fs::read_to_string("/proc/slabinfo").ok()?,
        rustix::param::page_size() as u64,
    )
}

fn parse_slab(text: &str, page_bytes: u64) -> Option<u64> {
    let mut total = 0;
    for line in text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.starts_with("slabinfo"))
    {
        let pages_per_slab: u64 = line.split_ascii_whitespace().nth(5)?.parse().ok()?;
        let slabs: u64 = line
            .split(": slabdata")
            .nth(1)?
            .split_ascii_whitespace()
            .nth(1)?
            .parse()
            .ok()?;
        total += slabs * pages_per_slab * page_bytes;
    }
    Some(total)
}

/// Bytes of socket buffers of all TCP sockets (sockstat's `mem`, counted in pages).
pub fn tcp_buffer_bytes() -> Option<u64> {
    parse_sockstat(&fs::read_to_string("/proc/net/sockstat").ok()?)
        .map(|pages| pages * rustix::param::page_size() as u64)
}

fn parse_sockstat(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    first_number(line.split("mem").nth(1)?)
}

/// Datagrams that the sockets bound to UDP `port` dropped because their buffer was full, since each
/// was opened.
pub fn udp_drops(port: u16) -> Option<u64> {
    let v4 = fs::read_to_string("/proc/net/udp").ok()?;
    let v6 = fs::read_to_string("/proc/net/udp6").unwrap_or_default();
    Some(parse_udp_drops(&v4, port) + parse_udp_drops(&v6, port))
}

fn parse_udp_drops(text: &str, port: u16) -> u64 {
    let ending = format!(":{port:04X}");
    text.lines()
        .skip(1)
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.get(1).is_some_and(|local| local.ends_with(&ending)))
        .filter_map(|fields| fields.last()?.parse::<u64>().ok())
        .sum()
}

/// Bytes that the kernel could give to programs without swapping.
pub fn available_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(first_number)
        .map(|kib| kib * 1_024)
}

/// The machine in one line: processor, cores, memory, kernel.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| {
            line.strip_prefix("model name")?
                .split(": ")
                .nth(1)
                .map(str::to_owned)
        })
        .unwrap_or_else(|| "unknown processor".to_owned());
    let kib = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(first_number)
        .unwrap_or(0);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{cpu}, {cores} cores, {:.1} GiB, Linux {}",
        kib as f64 / 1_048_576.0,
        read("/proc/sys/kernel/osrelease").trim()
    )
}

fn first_number(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smaps_rollup() {
        let text = "5581-7ffd ---p 00000000 00:00 0 [rollup]\nRss:                1452 kB\n\
                    Pss:                 300 kB\nAnonymous:           100 kB\n";
        assert_eq!(
            parse_memory(text),
            Some(Memory {
                rss_bytes: 1_486_848,
                anonymous_bytes: 102_400
            })
        );
        assert_eq!(parse_memory("Rss: 1 kB\n"), None);
    }

    #[test]
    fn stat_with_a_hostile_name() {
        let text = "7 (a ) 1 2 (x) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 5 6 7";
        assert_eq!(parse_stat_ticks(text), Some(300));
        assert_eq!(parse_stat_ticks("7 x"), None);
    }

    #[test]
    fn slabinfo() {
        let text = "slabinfo - version: 2.1\n# name <active_objs> <num_objs> <objsize> \
                    <objperslab> <pagesperslab> : tunables\n\
            TCP 10 12 2432 13 8 : tunables 0 0 0 : slabdata 3 4 0\nkmalloc-8 512 512 8 512 1 : \
            tunables 0 0 0 : slabdata 1 1 0\n";
        assert_eq!(parse_slab(text, 4_096), Some((4 * 8 + 1) * 4_096));
    }

    #[test]
    fn sockstat() {
        assert_eq!(
            parse_sockstat(
                "sockets: used 18\nTCP: inuse 1 orphan 0 tw 2 alloc 1 mem 102\nUDP: inuse 0 mem 3\n"
            ),
            Some(102)
        );
    }

    #[test]
    fn drops_of_one_port_on_all_its_sockets() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when \
                    retrnsmt   uid  timeout inode ref pointer drops\n\
            \x20 1: 0100007F:1F91 00000000:0000 07 00000000:00000000 00:00000000 00000000     \
            0        0 1 2 0000000000000000 5\n\
            \x20 2: 0100007F:1F91 00000000:0000 07 00000000:00000000 00:00000000 00000000     \
            0        0 1 2 0000000000000000 7\n\
            \x20 3: 0100007F:1F92 00000000:0000 07 00000000:00000000 00:00000000 00000000     \
            0        0 1 2 0000000000000000 9\n";
        assert_eq!(parse_udp_drops(text, 0x1f91), 12);
        assert_eq!(parse_udp_drops(text, 1), 0);
    }
}
