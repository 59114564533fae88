//! Every subcommand for a second or two against the real server: nothing is to be found wrong.
//!
//! The server is the `greendot` beside the generator in the target folder (`cargo test --workspace` builds both), or
//! `BENCH_SERVER`. Where there is none, the tests say so and pass.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

struct Server {
    process: Child,
    http: String,
    udp: String,
    folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn program() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_BIN_EXE_greendot-loadgen")).with_file_name("greendot");
    let program = std::env::var_os("BENCH_SERVER").map_or(beside, PathBuf::from);
    let serves = Command::new(&program)
        .args(["serve", "--help"])
        .output()
        .is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains("--shards"));
    if !serves {
        eprintln!("skipped: {} is no greendot that serves", program.display());
    }
    serves.then_some(program)
}

#[expect(clippy::unwrap_used, reason = "the helper of a test")]
fn server(shards: &str) -> Option<Server> {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Command::new(program()?)
        .args([
            "serve",
            "--http",
            "127.0.0.1:0",
            "--udp",
            "127.0.0.1:0",
            "--shards",
            shards,
        ])
        .args(["--beat-interval-ms", "500", "--offline-after-ms", "2000", "--data-dir"])
        .arg(folder.path())
        .env_remove("BENCH_SERVER")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let line = lines
        .by_ref()
        .map_while(Result::ok)
        .find(|line| line.starts_with("listening "))
        .unwrap();
    let address = |name: &str| {
        line.split(' ')
            .find_map(|word| word.strip_prefix(name))
            .unwrap()
            .to_owned()
    };
    Some(Server {
        process,
        http: address("http="),
        udp: address("udp="),
        folder,
    })
}

#[expect(clippy::unwrap_used, reason = "the helper of a test")]
fn run(server: &Server, arguments: &[&str]) -> Value {
    let json = server.folder.path().join("report.json");
    let out = Command::new(env!("CARGO_BIN_EXE_greendot-loadgen"))
        .args(arguments)
        .args([
            "--http",
            &server.http,
            "--udp",
            &server.udp,
            "--server-pid",
            &server.process.id().to_string(),
        ])
        .arg("--key-file")
        .arg(server.folder.path().join("fleet.key"))
        .arg("--json")
        .arg(&json)
        .output()
        .unwrap();
    let (told, complaint) = (
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr),
    );
    assert_eq!(out.status.code(), Some(0), "{arguments:?}\n{told}{complaint}");
    serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap()
}

fn value(report: &Value, name: &str) -> f64 {
    report["values"][name]
        .as_f64()
        .unwrap_or_else(|| panic!("no {name} in {report:#}"))
}

#[test]
fn streams_and_storm() {
    let Some(server) = server("2") else { return };
    let report = run(
        &server,
        &[
            "streams",
            "--streams",
            "300",
            "--rate",
            "1000",
            "--watch",
            "5",
            "--hold",
            "500ms",
        ],
    );
    assert_eq!(value(&report, "streams_held"), 300.0);
    assert!(value(&report, "server_user_bytes_per_stream") < 4_096.0);
    let report = run(
        &server,
        &[
            "storm",
            "--seed",
            "2",
            "--streams",
            "100",
            "--rate",
            "1000",
            "--watch",
            "5",
            "--hold",
            "1s",
        ],
    );
    assert_eq!(
        (value(&report, "streams_back"), value(&report, "given_up")),
        (100.0, 0.0)
    );
}

#[test]
fn fanout_by_datagram_and_by_request() {
    let Some(server) = server("2") else { return };
    for way in [&["--rate", "20"][..], &["--rate", "20", "--over-http"]] {
        let arguments = [
            &["fanout", "--watchers", "50", "--publishers", "2", "--transitions", "20"],
            way,
        ]
        .concat();
        let report = run(&server, &arguments);
        assert_eq!(
            (value(&report, "deliveries"), value(&report, "coalesced")),
            (1_000.0, 0.0)
        );
    }
    let report = run(
        &server,
        &[
            "fanout",
            "--watchers",
            "20",
            "--publishers",
            "10",
            "--transitions",
            "2000",
            "--rate",
            "max",
        ],
    );
    assert_eq!(
        (value(&report, "transitions"), value(&report, "never_caused")),
        (2_000.0, 0.0)
    );
}

#[test]
fn beats_are_all_accounted_for() {
    let Some(server) = server("2") else { return };
    let report = run(
        &server,
        &[
            "beats",
            "--users",
            "1000",
            "--rate",
            "20000",
            "--entries",
            "20",
            "--seconds",
            "500ms",
        ],
    );
    assert_eq!(value(&report, "datagrams_sent"), 500.0);
    assert_eq!(value(&report, "beats_accepted"), 10_000.0);
    assert_eq!(value(&report, "datagrams_unaccounted_for"), 0.0);
}

#[test]
fn queries_are_all_answered() {
    let Some(server) = server("1") else { return };
    assert_eq!(
        value(
            &run(&server, &["query", "--rate", "500", "--seconds", "500ms"]),
            "answers"
        ),
        250.0
    );
    let report = run(
        &server,
        &[
            "query",
            "--rate",
            "max",
            "--pipeline",
            "16",
            "--seconds",
            "300ms",
            "--batch",
            "3",
        ],
    );
    assert_eq!(value(&report, "answers_not_200"), 0.0);
}

#[test]
fn churn_finds_nothing_wrong() {
    let Some(server) = server("2") else { return };
    let report = run(
        &server,
        &[
            "churn",
            "--users",
            "200",
            "--watchers",
            "20",
            "--minutes",
            "0.08",
            "--session",
            "2s",
            "--link",
            "2s",
            "--loss",
            "0.2",
        ],
    );
    for name in ["states_told", "goodbyes", "reconnects", "beats_lost_on_purpose"] {
        assert!(value(&report, name) > 3.0, "{name}");
    }
}

#[test]
fn cores_starts_its_own_servers() {
    let Some(program) = program() else { return };
    let Some(server) = server("1") else { return };
    let program = program.to_string_lossy();
    let with = "--users 1000 --seconds 300ms --rate 10000";
    let report = run(&server, &["cores", "--max", "2", "--server", &program, "--with", with]);
    assert!(value(&report, "shards_1_beats_accepted_per_s") > 1_000.0);
    assert!(value(&report, "shards_2_shard_1_busy_ratio") >= 0.0);
}
