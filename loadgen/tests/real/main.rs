//! Every subcommand for a second or two against the real server: nothing is to be found wrong.
//!
//! The server is the `greendot` beside the generator in the target folder (`cargo test --workspace` builds both), or
//! `BENCH_SERVER`. Where there is none, the tests say so and pass.

mod split;

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
    let line = listening(&mut process);
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

/// The line in which a server says where it listens.
#[expect(clippy::unwrap_used, reason = "the helper of a test")]
fn listening(process: &mut Child) -> String {
    let lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let mut lines = lines.map_while(Result::ok);
    lines.find(|line| line.starts_with("listening ")).unwrap()
}

fn run(server: &Server, arguments: &[&str]) -> Value {
    let pid = server.process.id().to_string();
    let servers = ["--http", &server.http, "--udp", &server.udp, "--server-pid", &pid];
    generate(server.folder.path(), &[arguments, &servers].concat())
}

/// Runs the generator with the key in `folder`; its report, which must accuse nobody.
#[expect(clippy::unwrap_used, reason = "the helper of a test")]
fn generate(folder: &Path, arguments: &[&str]) -> Value {
    let json = folder.join(format!("{}.json", arguments[0]));
    let out = Command::new(env!("CARGO_BIN_EXE_greendot-loadgen"))
        .args(arguments)
        .arg("--key-file")
        .arg(folder.join("fleet.key"))
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
    // Shared among 300 streams, what a process needs anyway would drown what each takes.
    let arguments = [
        "streams",
        "--streams",
        "8000",
        "--rate",
        "8000",
        "--watch-only",
        "--hold",
        "1s",
    ];
    let report = run(&server, &arguments);
    let own_bytes = value(&report, "generator_user_bytes_per_stream");
    assert!(own_bytes > 32.0 && own_bytes <= 200.0, "{own_bytes} bytes a stream");
    for series in [
        "connects a second",
        "states told a second",
        "user memory of the server, MiB",
    ] {
        let mut all = report["series"].as_array().into_iter().flatten();
        assert!(all.any(|s| s["name"] == series), "no {series} in {report:#}");
    }
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
    for way in [&["--rate", "20"][..], &["--rate", "20", "--cause", "http"]] {
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
    let arguments = ["fanout", "--watchers", "50", "--transitions", "20", "--rate", "20"];
    let report = run(&server, &[&arguments[..], &["--streams-per-process", "20"]].concat());
    assert_eq!(
        (value(&report, "deliveries"), value(&report, "missing")),
        (1_000.0, 0.0)
    );
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
    // More than any server takes: what is lost was lost in its sockets.
    for batching in ["gso", "mmsg"] {
        let flat_out = [
            "beats",
            "--users",
            "1000",
            "--rate",
            "max",
            "--entries",
            "20",
            "--seconds",
            "500ms",
            "--batching",
            batching,
        ];
        let report = run(&server, &flat_out);
        assert_eq!(value(&report, "datagrams_unaccounted_for"), 0.0, "{report:#}");
        let [sent, received, dropped] =
            ["sent", "received", "dropped_by_server_socket"].map(|name| value(&report, &format!("datagrams_{name}")));
        assert_eq!(sent, received + dropped);
        assert!(received > 0.0, "{report:#}");
    }
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
fn plan_reckons_with_what_was_measured() {
    let Some(server) = server("1") else { return };
    let streams = run(
        &server,
        &["streams", "--streams", "500", "--rate", "2000", "--hold", "1s"],
    );
    let fanout = run(
        &server,
        &["fanout", "--watchers", "50", "--transitions", "20", "--rate", "20"],
    );
    let beats = run(
        &server,
        &["beats", "--users", "1000", "--rate", "20000", "--seconds", "500ms"],
    );
    let file = |name: &str| server.folder.path().join(format!("{name}.json")).display().to_string();
    let costs = [file("streams"), file("fanout"), file("beats")].join(",");
    let model = [
        "--sessions-per-day",
        "8.64",
        "--contacts",
        "50",
        "--peak",
        "2",
        "--load",
        "0.5",
    ];
    let report = run(
        &server,
        &[&["plan", "--users", "1000000", "--costs", &costs][..], &model].concat(),
    );
    // A tenth is online, beats every 10 s; 200 sessions a second begin and end at the peak; 5 of a user's 50 watchers are online.
    for (name, exact) in [
        ("online", 100_000.0),
        ("beats_per_s", 10_000.0),
        ("connects_per_s", 200.0),
        ("transitions_per_s", 400.0),
        ("deliveries_per_s", 2_000.0),
    ] {
        assert_eq!(value(&report, &format!("users_1000000_{name}")), exact, "{name}");
    }
    let busy_us = 10_000.0 * value(&beats, "server_cpu_us_per_beat")
        + 2_000.0 * value(&fanout, "server_cpu_us_per_delivery")
        + 200.0 * value(&streams, "server_cpu_us_per_stream");
    let rounded = |value: f64| (value * 100.0).round() / 100.0;
    assert_eq!(value(&report, "users_1000000_cores"), rounded(busy_us / 1e6 / 0.5));
    // The kernel's share is learnt where slabinfo may be read and did grow: both ends were weighed, the server's is half.
    let slab = streams["values"]["kernel_slab_bytes_per_stream_both_ends"].as_f64();
    let kernel_bytes = slab.filter(|bytes| *bytes > 0.0).map_or(4_300.0, |bytes| bytes / 2.0);
    let stream_bytes = value(&streams, "server_user_bytes_per_stream") + kernel_bytes + 50.0 * 16.0;
    assert_eq!(
        value(&report, "users_1000000_memory_gib"),
        rounded((1e5 * stream_bytes + 1e6 * 64.0) / 1_073_741_824.0)
    );
    let notes = report["notes"].to_string();
    assert!(
        notes.contains("cores = (beats/s x") && notes.contains("memory = online x"),
        "{notes}"
    );
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
    let few = std::thread::available_parallelism().is_ok_and(|cores| cores.get() < 3);
    let says = report["notes"].to_string().contains("not what another core would add");
    assert_eq!(says, few, "{report:#}");
}
