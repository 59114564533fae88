//! A control group that leaves less memory than the limits may take, and one that is nearly full.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::harness::{Home, skipped, until};
use crate::limits::{limit_hits, try_stream};

const MIB: u64 = 1 << 20;

/// A memory control group of this test's own; removed with it.
struct Group(PathBuf);

impl Group {
    /// None: groups can not be made here.
    fn of(bytes: u64) -> Option<Group> {
        static GROUPS: AtomicU32 = AtomicU32::new(0);
        let lines = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = |line: &str| {
            let (_, rest) = line.split_once(':')?;
            let (kinds, path) = rest.split_once(':')?;
            let path = path.trim_start_matches('/');
            match kinds {
                "memory" => Some((Path::new("/sys/fs/cgroup/memory").join(path), true)),
                "" => Some((Path::new("/sys/fs/cgroup").join(path), false)),
                _ => None,
            }
        };
        let mut found: Vec<_> = lines.lines().filter_map(path).collect();
        // Where version 1 has the memory, version 2 has none.
        found.sort_by_key(|(_, one)| !one);
        let (parent, one) = found.into_iter().next()?;
        let number = GROUPS.fetch_add(1, Ordering::Relaxed);
        let dir = parent.join(format!("greendot-{}-{number}", std::process::id()));
        fs::create_dir(&dir).ok()?;
        let group = Group(dir);
        let limit = if one {
            "memory.limit_in_bytes"
        } else {
            "memory.max"
        };
        fs::write(group.0.join(limit), bytes.to_string()).ok()?;
        Some(group)
    }

    /// What a shell does to be in it.
    fn entry(&self) -> String {
        format!("echo $$ >{}/cgroup.procs", self.0.display())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It goes when its last process has been reaped.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            crate::harness::pause(20);
        }
    }
}

#[test]
fn limits_that_nobody_set_fit_into_the_group_and_those_that_were_set_are_refused() {
    let Some(group) = Group::of(128 * MIB) else {
        return skipped("memory control groups can not be made here");
    };
    let home = Home::new();
    let server = home.serve_after(&group.entry(), &["--shards=2", "--conns-max=300"]);
    // The lines stand in this order.
    server.expect_log("memory of the control group's 128 MiB: at most ");
    let log = server.log();
    let line = "watches-per-shard-max is ";
    let told = log
        .lines()
        .find(|told| told.contains(line))
        .unwrap_or_else(|| panic!("{log}"));
    assert!(
        told.contains("less than its default, so that all fits into the control group's 128 MiB"),
        "{told}"
    );
    assert!(!log.contains("conns-max is "), "{log}");
    let metrics = server.metrics();
    assert_eq!(
        metrics.sum("greendot_memory_limit_bytes"),
        (128 * MIB) as f64
    );
    assert!(metrics.sum("greendot_memory_used_bytes") > 0.0);
    drop(server);

    let script = format!("{}; exec \"$0\" \"$@\"", group.entry());
    let binary = env!("CARGO_BIN_EXE_greendot");
    let [http, udp] = home.addresses();
    let args = [
        "-c",
        &script,
        binary,
        "serve",
        &http,
        &udp,
        "--watches-per-shard-max=50000000",
    ];
    let refused = home.run_program("sh", &args);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(
        said.contains("the control group has 128 MiB of memory"),
        "{said}"
    );
    assert!(said.contains("watches-per-shard-max 1525 MiB"), "{said}");
    assert!(said.contains("set smaller ones, or give it more"), "{said}");
}

/// Takes so many bytes of a group's memory until it is dropped.
struct Hog(Child);

impl Hog {
    fn take(group: &Group, bytes: u64) -> Hog {
        let python = format!("b = bytearray(b'x') * {bytes}; input()");
        let shell = format!("{}; exec python3 -c \"{python}\"", group.entry());
        let child = Command::new("sh")
            .args(["-c", &shell])
            .stdin(Stdio::piped())
            .spawn();
        Hog(child.expect("a shell"))
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
pub(crate) fn near_the_groups_end_new_streams_are_refused_and_others_go_on() {
    let limit = 256 * MIB;
    let Some(group) = Group::of(limit) else {
        return skipped("memory control groups can not be made here");
    };
    let home = Home::new();
    let server = home.serve_after(&group.entry(), &["--shards=1", "--memory=off"]);
    let mut stream = server.stream("watch=bob");
    stream.begin();
    let used = server.metrics().sum("greendot_memory_used_bytes") as u64;
    // The interpreter itself takes some, and a little is left for the server.
    let hog = Hog::take(&group, limit / 100 * 97 - used - 8 * MIB);
    server.expect_metric("greendot_memory_used_bytes", |used| {
        used >= limit as f64 * 0.95
    });
    let (refusal, _) = try_stream(&server, "watch=bob");
    assert_eq!(refusal.data["reason"], "memory");
    assert!(limit_hits(&server, "memory-group") >= 1.0);
    // Who has a stream keeps it, and queries and beats are served.
    server.sender().beat(&["bob"]);
    stream.expect_presence("bob", true);
    assert_eq!(server.get("/v1/presence/bob").status, 200);
    drop(hog);
    until("there is room again", || {
        let (first, _) = try_stream(&server, "watch=bob");
        (first.kind == "hello").then_some(())
    });
}
