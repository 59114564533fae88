//! The data folder among other processes, other files and full disks.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use crate::disk::Disk;
use crate::harness::{Home, Server, pause, skipped};

const SLOW: &[&str] = &[
    "--beat-interval-ms=30s",
    "--offline-after-ms=60s",
    "--shards=2",
];

/// Every file of a folder, byte by byte.
pub(crate) fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).expect("the folder is there");
    let paths = entries.map(|entry| entry.expect("it can be read").path());
    paths
        .map(|path| {
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            (name, std::fs::read(&path).expect("it can be read"))
        })
        .collect()
}

/// That a server does not start on this folder, says so, and changes nothing.
fn expect_refusal(home: &Home, says: &[&str]) {
    let before = contents(&home.data_dir());
    let data_dir = format!("--data-dir={}", home.data_dir().display());
    let output = home.run(&[
        "serve",
        "--http=127.0.0.1:0",
        "--udp=127.0.0.1:0",
        &data_dir,
    ]);
    let error = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(output.stdout.is_empty(), "it never listened");
    let fault = error
        .lines()
        .find(|line| line.starts_with("greendot: "))
        .expect("a line for people");
    for part in says {
        assert!(fault.contains(part), "{part:?} in {fault}");
    }
    let after = contents(&home.data_dir());
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        after.keys().collect::<Vec<_>>()
    );
    for (name, bytes) in &before {
        assert!(after[name] == *bytes, "{name} has changed");
    }
}

/// A folder in which bob is known, closed cleanly.
fn closed_home() -> Home {
    let home = Home::new();
    let server = home.serve(SLOW);
    assert_eq!(
        server.post("/v1/beat", &json!({"users": ["bob"]})).status,
        204
    );
    assert_eq!(server.terminate().code(), Some(0));
    home
}

#[test]
fn one_process_at_a_time() {
    let home = Home::new();
    let server = home.serve(SLOW);
    assert_eq!(
        server.post("/v1/beat", &json!({"users": ["bob"]})).status,
        204
    );
    let data_dir = format!("--data-dir={}", home.data_dir().display());
    let output = home.run(&[
        "serve",
        "--http=127.0.0.1:0",
        "--udp=127.0.0.1:0",
        &data_dir,
    ]);
    let error = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("users.log") && error.contains("stop the other process"),
        "{error}"
    );
    // The first goes on as if nothing had been.
    server.expect_online("bob");
    assert_eq!(
        server.post("/v1/beat", &json!({"users": ["carol"]})).status,
        204
    );
    assert_eq!(server.metrics().sum("greendot_users"), 2.0);
    server.kill();
    home.serve(SLOW).expect_online("carol");
}

#[test]
fn truncated_files_are_refused() {
    for (name, bytes) in [
        ("stamps.map", 4_096),
        ("stamps.map", 50),
        ("published.map", 4_096),
        ("users.log", 130),
    ] {
        let home = closed_home();
        let path = home.data_dir().join(name);
        let file = std::fs::File::options()
            .write(true)
            .open(&path)
            .expect("it is there");
        file.set_len(bytes).expect("it can be cut");
        drop(file);
        expect_refusal(&home, &[name, "restore the data folder from a backup"]);
    }
}

#[test]
fn foreign_files_are_refused() {
    for name in ["stamps.map", "published.map", "users.log"] {
        let home = closed_home();
        let path = home.data_dir().join(name);
        std::fs::write(&path, "PK\x03\x04 not ours ".repeat(1_000)).expect("it can be written");
        expect_refusal(
            &home,
            &[
                name,
                "at offset 0",
                "PK\\x03\\x04",
                "this is not greendot's file",
            ],
        );
    }
}

#[test]
fn files_of_two_stores_are_refused() {
    let (home, other) = (closed_home(), closed_home());
    std::fs::copy(
        other.data_dir().join("stamps.map"),
        home.data_dir().join("stamps.map"),
    )
    .expect("a copy");
    expect_refusal(&home, &["stamps.map", "files of two stores were mixed"]);
}

#[test]
fn a_bad_key_file_is_refused() {
    let home = closed_home();
    std::fs::write(home.data_dir().join("fleet.key"), "abc\n").expect("it can be written");
    let data_dir = format!("--data-dir={}", home.data_dir().display());
    let output = home.run(&[
        "serve",
        "--http=127.0.0.1:0",
        "--udp=127.0.0.1:0",
        &data_dir,
    ]);
    let error = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("fleet.key") && error.contains("line 1 is not a key of 64 hex digits"),
        "{error}"
    );
}

#[test]
fn a_lost_map_is_made_anew_and_its_loss_told() {
    for (name, lost) in [("stamps.map", "last_active"), ("published.map", "since")] {
        let home = closed_home();
        std::fs::remove_file(home.data_dir().join(name)).expect("it is there");
        let server = home.serve(SLOW);
        server.expect_log(&format!("{name} was missing and was made anew"));
        let log = server.log();
        assert!(
            log.contains(&format!("the {lost} of all 1 users is lost")),
            "{log}"
        );
        server.expect_online("bob");
        // Once: it is there now.
        server.kill();
        let server = home.serve(SLOW);
        server.expect_log(
            "write-back: a cycle takes up to 1.0 s now and 4.0 s with users_max 16777216",
        );
        assert!(!server.log().contains("made anew"), "{}", server.log());
    }
}

fn wide_user(n: u32) -> String {
    format!("{n:0>128}")
}

const REFUSED: &str = "greendot_beats_refused_total{reason=\"no_space\"}";

/// Beats of new users until the store takes no more; how many it took.
fn fill(server: &Server) -> u32 {
    for batch in 0..60 {
        let users: Vec<String> = (batch * 500..(batch + 1) * 500).map(wide_user).collect();
        // On connections of their own: each may make so many in a second.
        let answer = server.post("/v1/beat", &json!({"users": users}));
        if answer.status != 204 {
            assert_eq!(answer.status, 200, "{}", answer.text());
            let refused = answer.json();
            let known = server.metrics().sum("greendot_users") as u32 - 1;
            let first = json!({"index": known - batch * 500, "reason": "no_space"});
            assert_eq!(refused["refused"][0], first);
            assert_eq!(refused["refused_total"], (batch + 1) * 500 - known);
            server.expect_metric(REFUSED, |refused| {
                refused == f64::from((batch + 1) * 500 - known)
            });
            return known;
        }
    }
    panic!("the store never filled");
}

/// What must hold while no new user can be taken in; `known` wide users are.
fn expect_full(server: &Server, known: u32) {
    let sender = server.sender();
    let before = server.metrics().sum(REFUSED);
    let new = [wide_user(known + 1_000), wide_user(known + 1_001)];
    sender.beat(&[&new[0], "bob", &new[1]]);
    server.expect_metric(REFUSED, |now| now == before + 2.0);
    let overloaded = server.stream(&format!("user={}", new[0])).rest();
    assert_eq!(
        (overloaded.len(), overloaded[0].kind.as_str()),
        (1, "overloaded")
    );
    // Whoever is known is served as ever.
    let mut watcher = server.stream(&format!("watch=bob&watch={}", wide_user(0)));
    watcher.begin();
    assert_eq!(
        server.post("/v1/leave", &json!({"users": ["bob"]})).status,
        204
    );
    watcher.expect_presence("bob", false);
    // A beat in the same millisecond as the goodbye would not be newer.
    pause(5);
    assert_eq!(
        server.post("/v1/beat", &json!({"users": ["bob"]})).status,
        204
    );
    watcher.expect_presence("bob", true);
    assert_eq!(
        server.metrics().sum("greendot_users"),
        f64::from(known) + 1.0
    );
    let told = "no room for new users: the store's files cannot grow";
    server.expect_log(told);
    assert_eq!(
        server.log().matches(told).count(),
        1,
        "once, however many are refused"
    );
}

#[test]
fn a_file_size_limit_refuses_new_users_only() {
    let home = Home::new();
    // In a memory there is room that was promised before.
    let server = home.serve(&[SLOW, &["--memory=off"]].concat());
    assert_eq!(
        server.post("/v1/beat", &json!({"users": ["bob"]})).status,
        204
    );
    let log = home.data_dir().join("users.log");
    server.limit_file_bytes(Some(std::fs::metadata(&log).expect("it is there").len()));
    let known = fill(&server);
    expect_full(&server, known);

    // As soon as there is room, there is room.
    server.limit_file_bytes(None);
    assert_eq!(
        server.post("/v1/beat", &json!({"users": ["late"]})).status,
        204
    );
    assert_eq!(
        server.metrics().sum("greendot_users"),
        f64::from(known) + 2.0
    );
    server.kill();

    let server = home.serve(SLOW);
    assert_eq!(
        server.metrics().sum("greendot_users"),
        f64::from(known) + 2.0
    );
    for user in [&wide_user(known - 1), "late", "bob"] {
        server.expect_online(user);
    }
    assert!(
        !server.log().contains("unfinished record"),
        "{}",
        server.log()
    );
}

#[test]
fn a_full_disk_refuses_new_users_only() {
    let home = Home::new();
    // The three files as they begin have 2 MiB; users.log grows by one more, for which there is no
    // room.
    let Some(disk) = Disk::tmpfs(&home, 5 << 19) else {
        return skipped("no file system can be mounted");
    };
    let server = disk.serve(&home, SLOW);
    assert_eq!(
        server.post("/v1/beat", &json!({"users": ["bob"]})).status,
        204
    );
    assert_eq!(server.get("/readyz").text(), "ready\n");
    let known = fill(&server);
    expect_full(&server, known);
    let ready = server.get("/readyz");
    assert_eq!(
        (ready.status, ready.text().as_str()),
        (
            200,
            "degraded: the disk had no room for the last new user\n"
        )
    );
    server.kill();

    let server = disk.serve(&home, SLOW);
    assert_eq!(
        server.metrics().sum("greendot_users"),
        f64::from(known) + 1.0
    );
    server.expect_online(&wide_user(known - 1));
    server.expect_online("bob");
    assert_eq!(server.terminate().code(), Some(0));
    let server = disk.serve(&home, SLOW);
    server.expect_log("it was closed cleanly");
}

#[test]
fn no_room_for_the_first_file_is_told() {
    let home = Home::new();
    std::fs::create_dir(home.data_dir()).expect("it can be made");
    let data_dir = format!("--data-dir={}", home.data_dir().display());
    let script = format!(
        "ulimit -f 8; exec '{}' serve --http=127.0.0.1:0 --udp=127.0.0.1:0 '{data_dir}'",
        env!("CARGO_BIN_EXE_greendot")
    );
    let output = home.run_program("sh", &["-c", &script]);
    let error = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("the free space and the file size limit"),
        "{error}"
    );
    // With room it starts in the same folder.
    assert_eq!(home.serve(SLOW).get("/readyz").status, 200);
}
