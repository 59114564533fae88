//! The field on which scenarios are played: six servers of Redis, three nodes, and `churn` over all
//! of them, which judges.
//!
//! Owns their start and end, and the verdict. Knows no scenario.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::sleep;
use std::time::Duration;

use greendot_loadgen::http::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::members;
use crate::network::Network;
use crate::redis::{Server, wait_until};

/// How long a sign of life counts, and a node's lease, in ms.
pub(crate) const LEASE_MS: u64 = 6_000;
const NODES: u16 = 3;
/// While something is looked for.
const STEP: Duration = Duration::from_millis(50);
/// A day that takes longer will not end.
const DAY_STEPS_MAX: u32 = 12_000;

/// What else there is to know of a scenario.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// All is to be well.
    Plain,
    /// A node is cut off, which takes a network of its own.
    Cut,
    /// A node is cut off for longer than its lease: it can not be told from a dead one, so its
    /// users may be told offline.
    LongCut,
}

/// One node, which may be started again at its addresses.
pub(crate) struct Node {
    at: usize,
    pub(crate) http: SocketAddr,
    udp: SocketAddr,
    /// Its library's name, if it is of another version.
    pub(crate) library: Option<&'static str>,
    child: Option<Child>,
}

pub(crate) struct Field {
    /// Three primaries, and the replica of each three places further.
    pub(crate) redis: Vec<Server>,
    pub(crate) nodes: Vec<Node>,
    program: PathBuf,
    folder: TempDir,
    /// Where what is cut off is cut off.
    pub(crate) network: Network,
}

/// Plays a scenario: `fault` is what is done to the field in the middle of the day.
pub(crate) fn play(name: &str, kind: Kind, fault: fn(&mut Field)) {
    // On a thread of its own: it may move into another network for good.
    let played = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned());
        let spawned = thread.spawn_scoped(scope, || play_here(name, kind, fault));
        spawned.unwrap().join()
    });
    if let Err(panic) = played {
        std::panic::resume_unwind(panic);
    }
}

fn play_here(name: &str, kind: Kind, fault: fn(&mut Field)) {
    let network = match kind {
        Kind::Plain => Some(Network::shared()),
        Kind::Cut | Kind::LongCut => Network::enter(),
    };
    let Some(mut field) = network.and_then(Field::new) else {
        return;
    };
    let mut churn = field.churn(name);
    field.await_file(&mut churn, "begun");
    fault(&mut field);
    fs::write(field.folder.path().join("done"), "").unwrap();
    let report = field.report(churn);
    judge(name, kind, &report);
}

fn judge(name: &str, kind: Kind, report: &Value) {
    let values = &report["values"];
    let figures = [
        "false_offline",
        "false_online",
        "stale_views",
        "final_disagreements",
        "nodes_differ",
        "nodes_not_healed",
    ];
    let found = figures.map(|figure| (figure, values[figure].as_f64()));
    let expected = figures.map(|figure| match (figure, kind) {
        ("false_offline", Kind::LongCut) => (figure, values[figure].as_f64()),
        _ => (figure, Some(0.0)),
    });
    let [states, untimely, since] =
        ["states_told", "untimely", "since_differs"].map(|name| &values[name]);
    eprintln!("{name}: {found:?}, {states} states, {untimely} untimely, {since} since other times");
    assert_eq!(found, expected, "{name}: {report:#}");
    // It was a day, and the oracle saw it.
    for figure in ["states_told", "goodbyes", "reconnects", "moves"] {
        assert!(values[figure].as_f64() > Some(20.0), "{figure}: {report:#}");
    }
}

impl Field {
    /// None: there is no redis-server or no greendot here, which has been said.
    fn new(network: Network) -> Option<Field> {
        let program = program()?;
        let redis = members::cluster()?;
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("fleet.key");
        fs::write(&key, "11".repeat(32)).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let host = own_host();
        let nodes = (0..NODES).map(|at| Node {
            at: usize::from(at),
            http: (host, 8_470 + 2 * at).into(),
            udp: (host, 8_471 + 2 * at).into(),
            library: None,
            child: None,
        });
        let mut field = Field {
            redis,
            nodes: nodes.collect(),
            program,
            folder,
            network,
        };
        (0..field.nodes.len()).for_each(|at| field.start(at));
        (0..field.nodes.len()).for_each(|at| field.await_ready(at));
        Some(field)
    }

    /// Starts a node, at the addresses that it had before if it had any.
    pub(crate) fn start(&mut self, at: usize) {
        // Any of the servers knows the others; a replica does as well.
        let port = self.redis[(at + 4) % 6].port.unwrap();
        let node = &mut self.nodes[at];
        let log = self.folder.path().join(format!("node{at}.log"));
        let log = fs::File::options().create(true).append(true).open(log);
        let mut command = self.network.command(at, &self.program);
        command
            .args(["serve", "--shards=1", "--key-file=fleet.key"])
            .args([
                "--beat-interval-ms=1000",
                "--drain-ms=1000",
                "--retry-ms=500",
            ])
            .arg(format!("--offline-after-ms={LEASE_MS}"))
            .arg(format!("--cluster=redis://127.0.0.1:{port}"))
            .arg(format!("--http={}", node.http))
            .arg(format!("--udp={}", node.udp))
            .arg(format!("--data-dir=data{at}"))
            .current_dir(self.folder.path())
            .env("GREENDOT_MEMORY", "off")
            .envs(node.library.map(|name| ("PLANTED_LIBRARY", name)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.unwrap());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        node.child = Some(child);
        let line = lines.find_map(|line| line.ok().filter(|line| line.starts_with("listening ")));
        assert!(line.is_some(), "node {at} does not listen: {}", self.logs());
        // It is not to fail for want of a reader.
        std::thread::spawn(move || lines.for_each(drop));
    }

    pub(crate) fn await_ready(&self, at: usize) {
        wait_until("a node has joined", || self.is_ready(at));
    }

    fn is_ready(&self, at: usize) -> bool {
        let asked = Client::connect_within(self.nodes[at].http, Duration::from_secs(1));
        let answer = asked.and_then(|mut client| client.call("GET", "/readyz", b""));
        answer.is_ok_and(|answer| answer.status == 200)
    }

    /// The day, over all nodes. It begins the fault by making a file, and waits for another.
    fn churn(&self, name: &str) -> Day {
        let knob = |name: &str, default: &str| std::env::var(name).unwrap_or(default.into());
        let (users, seed) = (knob("SCENARIO_USERS", "300"), knob("SCENARIO_SEED", "1"));
        let watchers = users.parse::<u32>().unwrap().div_ceil(10).to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_greendot-loadgen"));
        command
            .args([
                "churn",
                "--users",
                &users,
                "--watchers",
                &watchers,
                "--seed",
                &seed,
            ])
            .args([
                "--minutes",
                "0.3",
                "--fault-at",
                "8s",
                "--heal",
                "15s",
                "--settle",
                "3s",
            ])
            .args(["--session", "15s", "--link", "10s", "--contacts", "50"])
            .args([
                "--key-file",
                "fleet.key",
                "--quiet",
                "--json",
                "report.json",
            ])
            .arg("--fault")
            .arg("touch begun; while [ -e begun ] && [ ! -e done ]; do sleep 0.05; done")
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        for node in &self.nodes {
            command.args([
                "--node",
                &format!("udp://{},http://{}", node.udp, node.http),
            ]);
        }
        let child = command.spawn().unwrap();
        eprintln!("{name}: {users} users");
        Day(child)
    }

    fn await_file(&self, day: &mut Day, file: &str) {
        for _ in 0..DAY_STEPS_MAX {
            if self.folder.path().join(file).exists() {
                return;
            }
            if day.0.try_wait().unwrap().is_some() {
                panic!(
                    "the day has ended early: {}{}",
                    day.complaint(),
                    self.logs()
                );
            }
            sleep(STEP);
        }
        panic!("the day does not get to its fault");
    }

    fn report(&self, mut day: Day) -> Value {
        for _ in 0..DAY_STEPS_MAX {
            if day.0.try_wait().unwrap().is_some() {
                let report = fs::read(self.folder.path().join("report.json"));
                let report = report.unwrap_or_else(|error| {
                    panic!("no report: {error}: {}{}", day.complaint(), self.logs())
                });
                self.keep_logs(&report);
                return serde_json::from_slice(&report).unwrap();
            }
            sleep(STEP);
        }
        panic!("the day does not end: {}", self.logs());
    }

    /// What the nodes have said last.
    fn logs(&self) -> String {
        let logs = (0..self.nodes.len()).map(|at| {
            let path = self.folder.path().join(format!("node{at}.log"));
            let text = fs::read_to_string(path).unwrap_or_default();
            let last: Vec<&str> = text.lines().rev().take(20).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            format!("\nnode {at}:\n{}", last.join("\n"))
        });
        logs.collect()
    }

    /// Whoever wants to know why a day went wrong says where its logs are to be kept.
    fn keep_logs(&self, report: &[u8]) {
        let Some(folder) = std::env::var_os("SCENARIO_LOGS").map(PathBuf::from) else {
            return;
        };
        let test = std::thread::current().name().unwrap_or("test").to_owned();
        let folder = folder.join(test);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("report.json"), report).unwrap();
        for at in 0..self.nodes.len() {
            let name = format!("node{at}.log");
            fs::copy(self.folder.path().join(&name), folder.join(&name)).unwrap();
        }
    }
}

impl Node {
    fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("it was started"))
    }

    /// Kills it at once.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Ends it in good order.
    pub(crate) fn end(&mut self) {
        kill_process(self.pid(), Signal::TERM).unwrap();
        let child = self.child.as_mut().expect("it was started");
        let mut code = None;
        wait_until("a node ends", || {
            code = child.try_wait().unwrap();
            code.is_some()
        });
        assert_eq!(
            code.and_then(|code| code.code()),
            Some(0),
            "node {}",
            self.at
        );
        self.child = None;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The generator at work.
struct Day(Child);

impl Day {
    fn complaint(&mut self) -> String {
        let mut text = String::new();
        let stderr = self.0.stderr.as_mut().expect("it is piped");
        let _ = stderr.read_to_string(&mut text);
        text
    }
}

impl Drop for Day {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An address that no other test has, with ports below those that the kernel gives away.
fn own_host() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(2);
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    Ipv4Addr::new(127, high & 31 | 32, low, next)
}

/// None: there is no greendot beside the generator that takes part in a fleet, which is said.
fn program() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_BIN_EXE_greendot-loadgen")).with_file_name("greendot");
    let help = Command::new(&beside).args(["serve", "--help"]).output();
    let is_there = help.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains("--cluster"));
    if !is_there {
        eprintln!("notice: {} serves no fleet; skipped", beside.display());
    }
    is_there.then_some(beside)
}
