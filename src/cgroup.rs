//! What the memory control group of this process allows and takes, of version 2 or 1.
//!
//! Owns the reading of /sys/fs/cgroup (cgroups(7)). Judges nothing.

use std::fs;
use std::path::{Path, PathBuf};

/// A version 1 group without a limit says a number next to this.
const NO_LIMIT: u64 = 1 << 62;

/// Memory of a control group, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Memory {
    /// The most that it may take.
    pub(crate) max: u64,
    /// What it takes, but for what the kernel can take back: copies of files, and some caches.
    pub(crate) used: u64,
}

/// How a version of control groups calls things.
struct Version {
    /// Begins its line in /proc/self/cgroup, behind the hierarchy's number.
    line: &'static str,
    mounted: &'static str,
    max: &'static str,
    current: &'static str,
    /// Rows of memory.stat: copies of files, tmpfs among them; caches that can be taken back;
    /// tmpfs.
    file: &'static str,
    reclaimable: &'static str,
    shmem: &'static str,
}

const VERSIONS: [Version; 2] = [
    Version {
        line: "::",
        mounted: "/sys/fs/cgroup",
        max: "memory.max",
        current: "memory.current",
        file: "file",
        reclaimable: "slab_reclaimable",
        shmem: "shmem",
    },
    Version {
        line: ":memory:",
        mounted: "/sys/fs/cgroup/memory",
        max: "memory.limit_in_bytes",
        current: "memory.usage_in_bytes",
        file: "total_cache",
        reclaimable: "",
        shmem: "total_shmem",
    },
];

impl Version {
    /// The process's group of this version and those above it. In a container the groups are
    /// mounted from its own on, so a path that is none there is passed over.
    fn groups(&self, lines: &str) -> Vec<PathBuf> {
        let mut groups = lines.lines().filter_map(|line| {
            let (_, rest) = line.split_at(line.find(':')?);
            rest.strip_prefix(self.line)
        });
        let Some(group) = groups.next() else {
            return Vec::new();
        };
        let whole = Path::new(self.mounted).join(group.trim_start_matches('/'));
        let dirs = whole
            .ancestors()
            .take_while(|dir| dir.starts_with(self.mounted));
        dirs.map(Path::to_owned).collect()
    }

    fn max_of(&self, dir: &Path) -> Option<u64> {
        number(dir, self.max).filter(|max| *max < NO_LIMIT)
    }

    fn memory_of(&self, dir: &Path) -> Option<Memory> {
        let max = self.max_of(dir)?;
        let current = number(dir, self.current)?;
        let stat = fs::read_to_string(dir.join("memory.stat")).ok()?;
        let used = self.used(current, &stat);
        Some(Memory { max, used })
    }

    /// Of `current` bytes what can not be taken back, by memory.stat.
    fn used(&self, current: u64, stat: &str) -> u64 {
        let row = |name: &str| {
            let rows = stat.lines().filter_map(|line| line.split_once(' '));
            let mut values = rows.filter(|(row, _)| *row == name);
            let value = values.next().and_then(|(_, value)| value.parse().ok());
            value.unwrap_or(0)
        };
        current
            .saturating_sub(row(self.file))
            .saturating_sub(row(self.reclaimable))
            .saturating_add(row(self.shmem))
    }
}

fn number(dir: &Path, file: &str) -> Option<u64> {
    let text = fs::read_to_string(dir.join(file)).ok()?;
    text.trim().parse().ok()
}

fn lines() -> String {
    fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

/// The least that the process's group and those above it allow. None: none sets a limit.
pub(crate) fn memory_max() -> Option<u64> {
    let lines = lines();
    let of = |version: &Version| {
        let groups = version.groups(&lines);
        groups.iter().filter_map(|dir| version.max_of(dir)).min()
    };
    VERSIONS.iter().filter_map(of).min()
}

/// Of the group that is nearest to its limit. None: none has one.
pub(crate) fn memory() -> Option<Memory> {
    let lines = lines();
    let of = |version: &Version| {
        let groups = version.groups(&lines);
        let found = groups.iter().filter_map(|dir| version.memory_of(dir));
        found.min_by_key(|memory| memory.max.saturating_sub(memory.used))
    };
    VERSIONS.iter().find_map(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_taken_back_is_not_used() {
        let [two, one] = &VERSIONS;
        let stat = "anon 100\nfile 5000\nkernel 40\nslab_reclaimable 10\nshmem 300\n";
        assert_eq!(two.used(6_000, stat), 6_000 - 5_000 - 10 + 300);
        assert_eq!(two.used(6_000, ""), 6_000);
        assert_eq!(two.used(10, "file 50\n"), 0);
        let stat = "cache 1\ntotal_cache 5000\ntotal_shmem 300\n";
        assert_eq!(one.used(6_000, stat), 6_000 - 5_000 + 300);
    }

    #[test]
    fn groups_are_found_up_to_the_mount() {
        let lines = "4:memory:/a/b\n1:cpu:/\n0::/c\n";
        let found = VERSIONS.map(|version| version.groups(lines));
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(
            found,
            [
                paths(&["/sys/fs/cgroup/c", "/sys/fs/cgroup"]),
                paths(&[
                    "/sys/fs/cgroup/memory/a/b",
                    "/sys/fs/cgroup/memory/a",
                    "/sys/fs/cgroup/memory"
                ]),
            ]
        );
        assert!(VERSIONS[1].groups("0::/c\n").is_empty());
    }
}
