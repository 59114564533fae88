//! Every subcommand for a second or two against the real server: nothing is to be found wrong.
//!
//! The server is the `greendot` beside the generator in the target folder (`cargo test --workspace`
//! builds both), or `BENCH_SERVER`. Where there is none, the tests say so and pass.

mod fleet;
#[path = "../../../tests/fleet/redis.rs"]
#[allow(dead_code, reason = "the tests of the library ask more")]
#[expect(clippy::unwrap_used, reason = "helpers of tests")]
mod redis;
mod restart;
mod sealed;
mod split;

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use greendot::wire::beat::FleetKey;
use serde_json::Value;

/// An address that no other test has, for servers whose ports must be known before they run, or
/// be theirs again after a restart. With a port below 32,768 it is nobody else's: the kernel gives
/// sockets that are bound to all addresses higher ones.
fn own_host() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(2);
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    Ipv4Addr::new(
        127,
        high & 63 | 64,
        low,
        NEXT.fetch_add(1, Ordering::Relaxed),
    )
}

struct Server {
    process: Child,
    http: String,
    udp: String,
    folder: tempfile::TempDir,
    _turn: Turn,
}

/// Floods run alone, or they would drown what other tests measure at the same time; and so does
/// churn, which knows of each beat when it was sent, and takes what comes a second later for false.
/// The others run side by side.
static TURNS: RwLock<()> = RwLock::new(());

#[expect(dead_code, reason = "held, not read")]
enum Turn {
    Alone(RwLockWriteGuard<'static, ()>),
    Beside(RwLockReadGuard<'static, ()>),
}

impl Turn {
    /// A test that failed has left nothing behind that others would mind.
    fn alone() -> Turn {
        Turn::Alone(TURNS.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn beside() -> Turn {
        Turn::Beside(TURNS.read().unwrap_or_else(PoisonError::into_inner))
    }
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

/// Beats every half second, expires after 4 s: short enough to see expiries, long enough for a
/// machine that dawdles.
fn server(turn: Turn, shards: &str) -> Option<Server> {
    server_with(
        turn,
        shards,
        &["--beat-interval-ms", "500", "--offline-after-ms", "4000"],
    )
}

fn server_with(turn: Turn, shards: &str, flags: &[&str]) -> Option<Server> {
    let flags = [&["--shards", shards], flags].concat();
    listening_with(turn, &flags).map(|(server, _)| server)
}

/// A server, and the line in which it says where it listens.
#[expect(clippy::unwrap_used, reason = "the helper of a test")]
fn listening_with(turn: Turn, flags: &[&str]) -> Option<(Server, String)> {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Command::new(program()?)
        .args(["serve", "--http", "127.0.0.1:0", "--udp", "127.0.0.1:0"])
        .args(flags)
        .arg("--data-dir")
        .arg(folder.path())
        // Killed in the end, it would leave a memory behind.
        .env("GREENDOT_MEMORY", "off")
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
    let server = Server {
        process,
        http: address("http="),
        udp: address("udp="),
        folder,
        _turn: turn,
    };
    Some((server, line))
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
    let servers = [
        "--http",
        &server.http,
        "--udp",
        &server.udp,
        "--server-pid",
        &pid,
    ];
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
    assert_eq!(
        out.status.code(),
        Some(0),
        "{arguments:?}\n{told}{complaint}"
    );
    serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap()
}

fn value(report: &Value, name: &str) -> f64 {
    report["values"][name]
        .as_f64()
        .unwrap_or_else(|| panic!("no {name} in {report:#}"))
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

#[test]
fn streams() {
    let Some(server) = server(Turn::alone(), "2") else {
        return;
    };
    let report = run(
        &server,
        &words("streams --streams 300 --rate 1000 --watch 5 --hold 500ms"),
    );
    assert_eq!(value(&report, "streams_held"), 300.0);
    // Shared among 300 streams, what a process needs anyway would drown what each takes.
    for (seed, kind) in ["--watch-only", "--watch 10"].iter().enumerate() {
        let line = format!("streams --streams 8000 --rate 8000 --hold 1s --seed {seed} {kind}");
        let report = run(&server, &words(&line));
        let own_bytes = value(&report, "generator_user_bytes_per_stream");
        assert!(
            own_bytes > 64.0 && own_bytes <= 200.0,
            "{own_bytes} bytes a stream, {kind}"
        );
        for series in [
            "connects a second",
            "states told a second",
            "user memory of the server, MiB",
        ] {
            let mut all = report["series"].as_array().into_iter().flatten();
            assert!(
                all.any(|s| s["name"] == series),
                "no {series} in {report:#}"
            );
        }
        assert!(value(&report, "server_user_bytes_per_stream") < 4_096.0);
    }
}

#[test]
fn a_watch_is_weighed_apart_from_its_stream() {
    let Some(server) = server_with(Turn::alone(), "1", &[]) else {
        return;
    };
    let report = run(
        &server,
        &words("streams --streams 4000 --rate 4000 --watch 10 --hold 1s --weigh-watches"),
    );
    let [all, alone, watch] = ["stream", "stream_unwatching", "watch"]
        .map(|of| value(&report, &format!("server_user_bytes_per_{of}")));
    assert!(
        (all - alone - 10.0 * watch).abs() < 1.0,
        "{all} {alone} {watch}"
    );
    // The pages of some tables weigh a lot among so few; a watch takes a few bytes on either side.
    assert!(
        alone > 0.0 && (4.0..100.0).contains(&watch),
        "{all} {alone} {watch}"
    );
}

#[test]
fn storm() {
    // All are back long before anybody has been away for too long, so that a storm may accuse.
    let flags = [
        "--beat-interval-ms",
        "500",
        "--offline-after-ms",
        "10000",
        "--retry-ms",
        "300",
    ];
    let Some(server) = server_with(Turn::beside(), "2", &flags) else {
        return;
    };
    let report = run(
        &server,
        &words("storm --streams 100 --rate 1000 --watch 5 --hold 1s"),
    );
    let found = [
        "streams_back",
        "given_up",
        "reconnects",
        "false_transitions",
    ]
    .map(|name| value(&report, name));
    assert_eq!(found, [100.0, 0.0, 100.0, 0.0]);
    assert!(
        report["notes"].as_array().is_some_and(Vec::is_empty),
        "excused: {report:#}"
    );
}

/// All that was caused was told, or skipped for what came next where this machine dawdled; `run`
/// has seen that nobody is accused.
fn all_told(report: &Value, states: f64) {
    let [deliveries, coalesced, missing] =
        ["deliveries", "coalesced", "missing"].map(|name| value(report, name));
    assert_eq!(
        (deliveries + coalesced, missing),
        (states, 0.0),
        "{report:#}"
    );
    assert!(deliveries > states / 2.0, "{report:#}");
}

#[test]
fn fanout_by_datagram_and_by_request() {
    let Some(server) = server_with(Turn::beside(), "2", &[]) else {
        return;
    };
    let fanout = "fanout --watchers 50 --publishers 4 --transitions 20 --rate 20";
    for (seed, more) in ["", " --cause http", " --streams-per-process 20"]
        .iter()
        .enumerate()
    {
        let report = run(&server, &words(&format!("{fanout} --seed {seed}{more}")));
        all_told(&report, 1_000.0);
    }
}

/// More publishers than one request may name.
#[test]
fn fanout_of_many_publishers_by_request() {
    let Some(server) = server_with(Turn::alone(), "1", &[]) else {
        return;
    };
    let line = "fanout --watchers 2 --publishers 1500 --transitions 3000 --rate max --lockstep \
                --cause http";
    let report = run(&server, &words(line));
    assert_eq!(value(&report, "deliveries"), 6_000.0, "{report:#}");
}

#[test]
fn fanout_back_to_back() {
    let Some(server) = server_with(Turn::alone(), "2", &[]) else {
        return;
    };
    let report = run(
        &server,
        &words("fanout --watchers 20 --publishers 10 --transitions 2000 --rate max"),
    );
    assert_eq!(
        (
            value(&report, "transitions"),
            value(&report, "never_caused")
        ),
        (2_000.0, 0.0)
    );
    // In lockstep nothing is skipped, however long it takes.
    let lockstep =
        "fanout --seed 2 --watchers 20 --publishers 10 --transitions 200 --rate max --lockstep";
    let report = run(&server, &words(lockstep));
    let told = ["deliveries", "coalesced", "missing"].map(|name| value(&report, name));
    assert_eq!(told, [4_000.0, 0.0, 0.0], "{report:#}");
}

#[test]
fn beats_are_all_accounted_for() {
    let Some(server) = server(Turn::alone(), "2") else {
        return;
    };
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
            "--introduce",
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
        assert_eq!(
            value(&report, "datagrams_unaccounted_for"),
            0.0,
            "{report:#}"
        );
        let [sent, received, dropped] = ["sent", "received", "dropped_by_server_socket"]
            .map(|name| value(&report, &format!("datagrams_{name}")));
        assert_eq!(sent, received + dropped);
        assert!(received > 0.0, "{report:#}");
    }
}

/// Datagrams are not answered, so the server is asked first.
#[test]
fn another_key_is_named_before_the_run() {
    let Some(server) = server(Turn::beside(), "1") else {
        return;
    };
    let key = server.folder.path().join("other.key");
    std::fs::write(&key, "7".repeat(64)).unwrap();
    let id = FleetKey::from_hex(&"7".repeat(64)).unwrap().id();
    let refused = format!(
        "greendot-loadgen: http://{} refuses datagrams of this key, {id:08x}; check --key-file\n",
        server.http
    );
    for line in [
        "beats --users 100 --seconds 60s",
        "fanout --watchers 1 --publishers 1",
        "churn --users 10 --watchers 1",
    ] {
        let out = Command::new(env!("CARGO_BIN_EXE_greendot-loadgen"))
            .args(words(line))
            .args(["--http", &server.http, "--udp", &server.udp])
            .arg("--key-file")
            .arg(&key)
            .output()
            .unwrap();
        let error = String::from_utf8(out.stderr).unwrap();
        assert_eq!((out.status.code(), &error), (Some(2), &refused), "{line}");
    }
}

#[test]
fn introduce_fails_where_not_all_can_be_known() {
    let Some(server) = server_with(Turn::beside(), "1", &["--users-max", "100"]) else {
        return;
    };
    let out = Command::new(env!("CARGO_BIN_EXE_greendot-loadgen"))
        .args(words("beats --users 100000 --introduce --seconds 100ms"))
        .args(["--http", &server.http, "--udp", &server.udp])
        .arg("--key-file")
        .arg(server.folder.path().join("fleet.key"))
        .output()
        .unwrap();
    let complaint = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{complaint}");
    assert!(
        complaint.contains("after 100000 were introduced"),
        "{complaint}"
    );
}

#[test]
fn queries_are_all_answered() {
    let Some(server) = server(Turn::alone(), "1") else {
        return;
    };
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
    let Some(server) = server(Turn::alone(), "2") else {
        return;
    };
    let report = run(
        &server,
        &[
            "churn",
            "--users",
            "200",
            "--watchers",
            "20",
            "--minutes",
            "0.15",
            "--session",
            "2s",
            "--link",
            "2s",
            "--loss",
            "0.2",
            "--settle",
            "2s",
        ],
    );
    for name in [
        "states_told",
        "goodbyes",
        "reconnects",
        "beats_lost_on_purpose",
    ] {
        assert!(value(&report, name) > 3.0, "{name}");
    }
}

#[test]
fn plan_reckons_with_what_was_measured() {
    let Some(server) = server(Turn::alone(), "1") else {
        return;
    };
    let streams = run(
        &server,
        &[
            "streams",
            "--streams",
            "500",
            "--rate",
            "2000",
            "--hold",
            "1s",
        ],
    );
    let fanout = run(
        &server,
        &[
            "fanout",
            "--watchers",
            "50",
            "--transitions",
            "20",
            "--rate",
            "20",
        ],
    );
    let beats = run(
        &server,
        &[
            "beats",
            "--users",
            "1000",
            "--rate",
            "20000",
            "--seconds",
            "500ms",
        ],
    );
    let file = |name: &str| {
        server
            .folder
            .path()
            .join(format!("{name}.json"))
            .display()
            .to_string()
    };
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
        &[
            // The runs are too short for a certificate.
            &[
                "plan",
                "--uncertified",
                "--users",
                "1000000",
                "--costs",
                &costs,
            ][..],
            &model,
        ]
        .concat(),
    );
    // A tenth is online, beats every 10 s; 200 sessions a second begin and end at the peak; 5 of a
    // user's 50 watchers are online.
    for (name, exact) in [
        ("online", 100_000.0),
        ("beats_per_s", 10_000.0),
        ("connects_per_s", 200.0),
        ("transitions_per_s", 400.0),
        ("deliveries_per_s", 2_000.0),
    ] {
        assert_eq!(
            value(&report, &format!("users_1000000_{name}")),
            exact,
            "{name}"
        );
    }
    // A keep-alive was not measured: 12 us, every 15 s.
    let busy_us = 100_000.0 / 15.0 * 12.0
        + 10_000.0 * value(&beats, "server_cpu_us_per_beat")
        + 2_000.0 * value(&fanout, "server_cpu_us_per_delivery")
        + 200.0 * value(&streams, "server_cpu_us_per_stream");
    let rounded = |value: f64| (value * 100.0).round() / 100.0;
    assert_eq!(
        value(&report, "users_1000000_cores"),
        rounded(busy_us / 1e6 / 0.5)
    );
    // The kernel's share is learnt where slabinfo may be read and did grow: both ends were weighed,
    // the server's is half.
    let slab = streams["values"]["kernel_slab_bytes_per_stream_both_ends"].as_f64();
    let kernel_bytes = slab
        .filter(|bytes| *bytes > 0.0)
        .map_or(4_300.0, |bytes| bytes / 2.0);
    let stream_bytes = value(&streams, "server_user_bytes_per_stream") + kernel_bytes + 50.0 * 16.0;
    assert_eq!(
        value(&report, "users_1000000_memory_gib"),
        rounded((1e5 * stream_bytes + 1e6 * 64.0) / 1_073_741_824.0)
    );
    let notes = report["notes"].to_string();
    assert!(
        [
            "cores = (beats/s x",
            "memory = online x",
            "nodes = the larger of",
            "network out = (deliveries/s x 230",
            "in = (beats/s x 18"
        ]
        .iter()
        .all(|formula| notes.contains(formula)),
        "{notes}"
    );
}

#[test]
fn cores_starts_its_own_servers() {
    let Some(program) = program() else { return };
    let Some(server) = server(Turn::alone(), "1") else {
        return;
    };
    let program = program.to_string_lossy();
    let cores = |scenario: &str, with: &str| {
        let arguments = [
            "cores",
            "--max",
            "2",
            "--scenario",
            scenario,
            "--server",
            &program,
            "--with",
            with,
        ];
        run(&server, &arguments)
    };
    let names = |report: &Value| -> Vec<String> {
        let all = report["series"].as_array().into_iter().flatten();
        all.filter_map(|s| Some(s["name"].as_str()?.to_owned()))
            .collect()
    };
    let (report, shares) = (
        cores(
            "beats",
            "--users 1000 --seconds 500ms --rate=200000 --entries 10",
        ),
        ["shard 0's busy ratio", "shard 1's busy ratio"],
    );
    assert_eq!(
        names(&report),
        [&["beats_accepted_per_s"][..], &shares].concat()
    );
    let verdict = report["verdict"].as_str().unwrap_or_default();
    assert!(verdict.contains("--shards "), "{report:#}");
    assert!(value(&report, "shards_1_beats_accepted_per_s") > 1_000.0);
    // 10,000 datagrams in half a second are some work for whoever has them.
    let both = ["shards_2_shard_0_busy_ratio", "shards_2_shard_1_busy_ratio"]
        .map(|name| value(&report, name));
    assert!(
        value(&report, "shards_1_shard_0_busy_ratio") > 0.0 && both.iter().sum::<f64>() > 0.0,
        "{report:#}"
    );
    assert!(
        report["servers"]
            .as_array()
            .is_some_and(|versions| versions.len() == 1),
        "{report:#}"
    );
    for (scenario, with, rate) in [
        ("query", "--rate 500 --seconds 500ms", "answers_per_s"),
        (
            "fanout",
            "--watchers 10 --publishers 5 --transitions 500",
            "deliveries_per_s",
        ),
    ] {
        let report = cores(scenario, with);
        assert_eq!(
            names(&report),
            [&[rate, "p99, us"][..], &shares].concat(),
            "{report:#}"
        );
        assert!(value(&report, "shards_2_p99_us") > 0.0);
    }
    let few = std::thread::available_parallelism().is_ok_and(|cores| cores.get() < 3);
    let says = report["notes"]
        .to_string()
        .contains("not what another core would add");
    assert_eq!(says, few, "{report:#}");
}
