//! The data folder before a server has it, when a start is refused, and while somebody takes it
//! away.

use std::net::TcpListener;
use std::path::Path;

use serde_json::json;

use crate::harness::{Home, Server, until};
use crate::process::{Lines, Process};

const SLOW: &[&str] = &[
    "--beat-interval-ms=30s",
    "--offline-after-ms=60s",
    "--shards=2",
];

const ANY_PORT: &str = "--http=127.0.0.1:0";

/// A server that knows bob, who is online.
fn serve_bob(home: &Home, flags: &[&str]) -> Server {
    let server = home.serve(flags);
    let beat = server.post("/v1/beat", &json!({"users": ["bob"]}));
    assert_eq!(beat.status, 204);
    server.expect_online("bob");
    server
}

/// What a start says that is refused.
fn refused(home: &Home, http: &str) -> String {
    let data_dir = format!("--data-dir={}", home.data_dir().display());
    let output = home.run(&["serve", http, "--udp=127.0.0.1:0", &data_dir]);
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).expect("text")
}

#[test]
fn a_start_that_is_refused_leaves_nothing_behind() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let http = format!("--http={}", taken.local_addr().expect("it is bound"));
    let home = Home::new();
    let error = refused(&home, &http);
    assert!(error.contains("Address already in use"), "{error}");
    assert!(!home.data_dir().exists(), "neither folder nor key");

    // A key of its own, and then no store.
    std::fs::create_dir(home.data_dir()).expect("it can be made");
    std::fs::write(home.data_dir().join("stamps.map"), "not ours").expect("it can be written");
    let error = refused(&home, ANY_PORT);
    assert!(error.contains("not greendot's file"), "{error}");
    assert_eq!(names(&home.data_dir()), ["stamps.map"]);
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("it is there");
    let names = entries.map(|entry| entry.expect("it can be read").file_name());
    let mut names: Vec<_> = names
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_start_that_fails_after_a_clean_stop_changes_nobodys_since() {
    let home = Home::new();
    let server = serve_bob(&home, SLOW);
    let told = server.record("bob");
    assert!(server.terminate().success());
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let http = format!("--http={}", taken.local_addr().expect("it is bound"));
    refused(&home, &http);
    let server = home.serve(SLOW);
    server.expect_log("it was closed cleanly");
    let after = server.record("bob");
    assert_eq!((after.online, after.since), (true, told.since));
}

#[test]
fn of_servers_that_race_for_a_new_folder_one_serves_and_the_others_name_the_lock() {
    for _ in 0..3 {
        let home = Home::new();
        let data_dir = format!("--data-dir={}", home.data_dir().display());
        let args = [
            "serve",
            "--http=127.0.0.1:0",
            "--udp=127.0.0.1:0",
            "--shards=1",
            &data_dir,
        ];
        let mut racers: Vec<_> = (0..4)
            .map(|_| {
                let mut process = Process::start(&mut home.command(&args));
                let (stdout, stderr) = (process.take_stdout(), process.take_stderr());
                (process, Lines::of(stdout), Lines::of(stderr))
            })
            .collect();
        let serving = until("one serves and the others have ended", || {
            let ended: Vec<bool> = racers
                .iter_mut()
                .map(|(process, ..)| process.has_ended())
                .collect();
            let left = ended.iter().filter(|ended| !**ended).count();
            assert!(left > 0, "none serves");
            (left == 1).then(|| ended.iter().position(|ended| !ended))
        });
        for (at, (_, stdout, stderr)) in racers.iter().enumerate() {
            if Some(at) == serving {
                assert!(
                    stdout
                        .next()
                        .is_some_and(|line| line.starts_with("listening"))
                );
                continue;
            }
            let fault = stderr.find("a line for people", |line| line.starts_with("greendot: "));
            let named = fault.contains("users.log") && fault.contains("stop the other process");
            assert!(named, "{fault}");
        }
    }
}

#[test]
fn a_folder_that_is_taken_away_is_told_and_never_silently_ready() {
    let home = Home::new();
    let server = serve_bob(&home, SLOW);
    let ready = |text: &str| {
        until(&format!("/readyz says {text:?}"), || {
            let answer = server.get("/readyz");
            assert_eq!(answer.status, 200, "what is known is served");
            answer.text().starts_with(text).then_some(())
        });
    };
    ready("ready");
    let away = home.path().join("away");
    std::fs::rename(home.data_dir(), &away).expect("it can be moved");
    ready("degraded: the data folder");
    server.expect_log("users.log was removed under this server");
    server.expect_metric("greendot_store_files_lost", |lost| lost == 1.0);
    std::fs::rename(&away, home.data_dir()).expect("it can be moved back");
    ready("ready");
    server.expect_metric("greendot_store_files_lost", |lost| lost == 0.0);
    // Another one in its place.
    std::fs::rename(home.data_dir(), &away).expect("it can be moved");
    let other = Home::new();
    assert!(serve_bob(&other, SLOW).terminate().success());
    std::fs::rename(other.data_dir(), home.data_dir()).expect("it can be moved");
    ready("degraded: the data folder");
    server.expect_log("users.log is another file now under this server");
    server.expect_online("bob");
}

#[test]
fn a_map_that_is_cut_short_is_told_and_flips_nobody() {
    let home = Home::new();
    let flags = [
        // Longer than it takes to see the loss.
        "--beat-interval-ms=500",
        "--offline-after-ms=4000",
        "--shards=2",
        // In a memory nothing would be lost.
        "--memory=off",
    ];
    let server = serve_bob(&home, &flags);
    let since = server.record("bob").since;
    let path = home.data_dir().join("stamps.map");
    let file = std::fs::File::options().write(true).open(path);
    let cut = file.and_then(|file| file.set_len(100));
    cut.expect("it can be cut");
    server.expect_log("stamps.map was cut short under this server");
    until("/readyz says so", || {
        server
            .get("/readyz")
            .text()
            .starts_with("degraded")
            .then_some(())
    });
    // Far longer than a silence may be.
    crate::harness::pause(6_000);
    let record = server.record("bob");
    assert_eq!((record.online, record.since), (true, since));
    server.kill();
    let error = refused(&home, ANY_PORT);
    assert!(
        error.contains("stamps.map") && error.contains("backup"),
        "{error}"
    );
}
