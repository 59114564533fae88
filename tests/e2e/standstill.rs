//! A disk that stands still: what it costs without a memory, that it costs nothing with one, and
//! what must not be lost whatever happens.
//!
//! `GREENDOT_STANDSTILL_S` says for how many seconds it stands where that is what counts: 3 here,
//! 60 in tests/long.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::disk::{Disk, Frozen};
use crate::harness::{Deadline, Home, Server, pause, skipped, until};
use crate::http::{Conn, Got};

const FLAGS: &[&str] = &[
    "--beat-interval-ms=30s",
    "--offline-after-ms=60s",
    "--shards=2",
];
/// Far longer than an answer takes, in ms.
const FROZEN_MS: u64 = 1_500;

/// A folder on a tmpfs, for the memory.
fn tmpfs() -> TempDir {
    let mut builder = tempfile::Builder::new();
    let made = builder.prefix("greendot-e2e-").tempdir_in("/dev/shm");
    made.expect("/dev/shm can be written")
}

fn memories(root: &Path) -> usize {
    std::fs::read_dir(root).expect("it is there").count()
}

fn serve(disk: &Disk, home: &Home, memory: &Path) -> Server {
    let memory = format!("--memory={}", memory.display());
    let flags = [FLAGS, &[&memory]].concat();
    let server = disk.serve(home, &flags);
    server.expect_log("the store's cells are in memory in ");
    server
}

fn beat(conn: &mut Conn, users: &[&str]) -> u16 {
    conn.post("/v1/beat", &json!({ "users": users })).status
}

/// Freezes the disk, once a beat shows that the server's first write-back is through.
fn freeze(disk: &Disk, home: &Home, server: &Server) -> Option<Frozen> {
    server.expect_metric("greendot_store_write_back_cycles_total", |cycles| {
        cycles > 0.0
    });
    let frozen = disk.freeze(home);
    if frozen.is_none() {
        skipped("file systems cannot be frozen");
    }
    frozen
}

#[test]
fn without_a_memory_a_beat_waits_for_a_frozen_disk() {
    let home = Home::new();
    let Some(disk) = Disk::ext4(&home) else {
        return skipped("no ext4 can be made and mounted");
    };
    let server = disk.serve(&home, &["--memory=off", "--shards=1"]);
    let mut beats = server.connect();
    assert_eq!(beat(&mut beats, &["bob"]), 204);
    server.expect_online("bob");
    let Some(frozen) = disk.freeze(&home) else {
        return skipped("file systems cannot be frozen");
    };
    beats.send_post("/v1/beat", json!({"users": ["bob"]}).to_string().as_bytes());
    let waits = beats.read(Deadline::in_ms(FROZEN_MS));
    drop(frozen);
    assert_eq!(waits, Got::Nothing);
    assert_eq!(beats.answer().status, 204);
    assert_eq!(beat(&mut server.connect(), &["ann"]), 204);
    server.expect_online("ann");
}

#[test]
fn a_start_says_where_the_cells_are_and_why() {
    let (home, memory) = (Home::new(), tmpfs());
    let memory = format!("--memory={}", memory.path().display());
    for (flag, in_memory) in [
        ("--memory=auto", None),
        (memory.as_str(), Some(true)),
        ("--memory=off", Some(false)),
    ] {
        let server = home.serve(&[flag]);
        // The last of what is said at the start.
        server.expect_log("and in another terminal");
        let log = server.log();
        let says = log.contains("the store's cells are in memory in ");
        let why_not =
            log.contains("own files, so everybody waits for a disk that stands still; no");
        match in_memory {
            // It depends on the machine: in a container there is none.
            None => assert!(says != why_not, "{log}"),
            Some(in_memory) => assert_eq!((says, why_not), (in_memory, false), "{log}"),
        }
        let shown = f64::from(u8::from(says));
        server.expect_metric("greendot_store_in_memory", |now| now == shown);
        assert!(server.terminate().success());
    }
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "waits are told, and no more is held against them"
)]
fn a_frozen_disk_costs_known_users_nothing() {
    let (home, memory) = (Home::new(), tmpfs());
    let Some(disk) = Disk::ext4(&home) else {
        return skipped("no ext4 can be made and mounted");
    };
    let seconds = std::env::var("GREENDOT_STANDSTILL_S").ok();
    let seconds = seconds.and_then(|s| s.parse().ok()).unwrap_or(3);
    let server = serve(&disk, &home, memory.path());
    let mut conn = server.connect();
    assert_eq!(beat(&mut conn, &["bob"]), 204);
    let (mut stream, _) = server.watch(&["bob".to_owned()]);
    let Some(frozen) = freeze(&disk, &home, &server) else {
        return;
    };
    let began = Instant::now();
    let (mut waits, mut news) = (Vec::new(), 0);
    let timed = |waits: &mut Vec<Duration>, ask: &mut dyn FnMut()| {
        let asked = Instant::now();
        ask();
        waits.push(asked.elapsed());
    };
    while began.elapsed() < Duration::from_secs(seconds) {
        // A transition, told to a watcher, and back.
        for (path, online) in [("/v1/leave", false), ("/v1/beat", true)] {
            timed(&mut waits, &mut || {
                let answer = conn.post(path, &json!({"users": ["bob"]}));
                assert_eq!(answer.status, 204);
                stream.expect_presence("bob", online);
            });
        }
        timed(&mut waits, &mut || {
            assert!(conn.get("/v1/presence/bob").json()["since"].is_u64())
        });
        // New users have room for some.
        if waits.len() > 100 * news {
            timed(&mut waits, &mut || {
                news += 1;
                assert_eq!(beat(&mut conn, &[&format!("new-{news}")]), 204);
            });
        }
        pause(1);
    }
    waits.sort();
    let longest = waits[waits.len() - 1];
    eprintln!(
        "{} s frozen: {} answers, p50 {:?}, p99 {:?}, longest {longest:?}",
        seconds,
        waits.len(),
        waits[waits.len() / 2],
        waits[waits.len() * 99 / 100],
    );
    assert!(
        longest < began.elapsed() / 2,
        "{longest:?} of {:?}: somebody waits for the disk",
        began.elapsed()
    );
    drop(frozen);

    // The disk catches up, and then the folder alone is the store.
    let cycles = server
        .metrics()
        .sum("greendot_store_write_back_cycles_total");
    server.expect_metric("greendot_store_write_back_cycles_total", |now| {
        now > cycles + 1.0
    });
    assert!(server.terminate().success());
    assert_eq!(memories(memory.path()), 0);
    let server = disk.serve(&home, &[FLAGS, &["--memory=off"]].concat());
    server.expect_log("it was closed cleanly");
    server.expect_online("bob");
    server.expect_online(&format!("new-{news}"));
}

#[test]
fn kill_9_on_a_frozen_disk_loses_nothing_accepted() {
    let (home, memory) = (Home::new(), tmpfs());
    let Some(disk) = Disk::ext4(&home) else {
        return skipped("no ext4 can be made and mounted");
    };
    let mut server = serve(&disk, &home, memory.path());
    let mut conn = server.connect();
    assert_eq!(beat(&mut conn, &["bob", "eve"]), 204);
    let Some(frozen) = freeze(&disk, &home, &server) else {
        return;
    };
    assert_eq!(beat(&mut conn, &["ann", "bob"]), 204);
    assert_eq!(
        conn.post("/v1/leave", &json!({"users": ["eve"]})).status,
        204
    );
    let told = ["ann", "bob", "eve"].map(|user| server.record(user));
    assert_eq!(told.each_ref().map(|told| told.online), [true, true, false]);
    server.process.signal(Signal::KILL);
    // Its writer waits in the kernel: the process ends with the thaw.
    drop(frozen);
    server.process.kill();

    let server = serve(&disk, &home, memory.path());
    server.expect_log("3 users known");
    for before in told {
        let after = server.record(&before.user);
        assert_eq!(
            (after.online, after.since, after.last_active),
            (before.online, before.since, before.last_active)
        );
    }
    assert_eq!(memories(memory.path()), 1);
}

#[test]
fn a_server_that_is_stopped_while_the_disk_stands_leaves_the_memory_to_the_next() {
    let (home, memory) = (Home::new(), tmpfs());
    let Some(disk) = Disk::ext4(&home) else {
        return skipped("no ext4 can be made and mounted");
    };
    let mut server = serve(&disk, &home, memory.path());
    let mut conn = server.connect();
    let Some(frozen) = freeze(&disk, &home, &server) else {
        return;
    };
    assert_eq!(beat(&mut conn, &["ann"]), 204);
    drop(conn);
    server.process.signal(Signal::TERM);
    server.expect_log("the next start continues from the memory in ");
    drop(frozen);
    assert!(!server.process.wait().success());
    drop(server);
    let server = serve(&disk, &home, memory.path());
    server.expect_online("ann");
    assert!(server.terminate().success());
    assert_eq!(memories(memory.path()), 0);
}

#[test]
fn a_full_memory_or_folder_refuses_new_users_alone() {
    let (home, memory) = (Home::new(), tmpfs());
    // The memory is on this disk: with the folder, or without it.
    for folder_beside in [false, true] {
        let bytes = if folder_beside { 96 << 20 } else { 3 << 20 };
        let home = if folder_beside { &home } else { &Home::new() };
        let Some(disk) = Disk::tmpfs(home, bytes) else {
            return skipped("nothing can be mounted");
        };
        let root = if folder_beside {
            home.data_dir()
        } else {
            memory.path().to_owned()
        };
        let server = serve(&disk, home, &root);
        let mut conn = server.connect();
        assert_eq!(beat(&mut conn, &["bob"]), 204);
        if folder_beside {
            disk.fill();
        }
        let ids = |round: u32| (0..1_000).map(move |n| format!("{round:060}{n:060}"));
        let refused = until("a new user is refused", || {
            static ROUND: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
            let round = ROUND.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let users: Vec<String> = ids(round).collect();
            // On a connection of its own: each may make so many in a second.
            let answer = server.post("/v1/beat", &json!({ "users": users }));
            let text = answer.text();
            assert!(
                [200, 204, 503].contains(&answer.status),
                "{}: {text}",
                answer.status
            );
            (answer.status != 204 && !text.contains("too_fast")).then_some(text)
        });
        assert!(refused.contains("no_space"), "{refused}");
        assert_eq!(beat(&mut conn, &["bob"]), 204);
        server.expect_online("bob");
    }
}
