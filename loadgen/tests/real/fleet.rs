//! The generator against a fleet: three nodes as processes of their own, over one real Redis.
//!
//! What fails there, and on a cluster, is in tests/scenarios.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use greendot_loadgen::http::Client;

use super::redis::Server as Redis;
use super::{Turn, all_told, generate, listening, own_host, program, value, words};

struct Fleet {
    nodes: Vec<Child>,
    /// The flags that name all nodes to the generator.
    flags: Vec<String>,
    folder: tempfile::TempDir,
    _redis: Redis,
    _turn: Turn,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

/// None: there is no greendot or no redis-server here, which has been said.
#[expect(clippy::unwrap_used, reason = "the helper of a test")]
fn fleet() -> Option<Fleet> {
    let program = program()?;
    let redis = Redis::start_on_port(&[])?;
    let url = format!("redis://127.0.0.1:{}", redis.port.unwrap());
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("fleet.key");
    std::fs::write(&key_file, "6d".repeat(32)).unwrap();
    let own = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&key_file, own).unwrap();
    let mut fleet = Fleet {
        nodes: Vec::new(),
        flags: Vec::new(),
        folder,
        _redis: redis,
        _turn: Turn::beside(),
    };
    let host = own_host();
    for port in [8_470, 8_472, 8_474] {
        let [http, udp] = [port, port + 1].map(|port| SocketAddr::from((host, port)));
        let mut node = Command::new(&program)
            .env("GREENDOT_MEMORY", "off")
            .current_dir(fleet.folder.path())
            .args([
                "serve",
                "--cluster",
                &url,
                "--key-file",
                "fleet.key",
                "--shards",
                "1",
            ])
            .args(["--http", &http.to_string(), "--udp", &udp.to_string()])
            .args(["--beat-interval-ms", "1000", "--offline-after-ms", "6000"])
            .args([
                "--data-dir",
                &port.to_string(),
                "--cluster-partitions",
                "64",
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        listening(&mut node);
        fleet.nodes.push(node);
        await_ready(http);
        let node = format!("udp://{udp},http://{http}");
        fleet.flags.extend(["--node".to_owned(), node]);
    }
    Some(fleet)
}

#[expect(clippy::unwrap_used, reason = "the helper of a test")]
fn await_ready(http: SocketAddr) {
    let mut client = Client::connect(http).unwrap();
    for _ in 0..400 {
        if client.call("GET", "/readyz", b"").unwrap().status == 200 {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{http} has not joined");
}

fn run(fleet: &Fleet, arguments: &[&str]) -> serde_json::Value {
    let flags = fleet.flags.iter().map(String::as_str);
    let all: Vec<&str> = arguments.iter().copied().chain(flags).collect();
    generate(fleet.folder.path(), &all)
}

const CHURN: &str = "churn --users 200 --watchers 20 --session 10s --link 5s --settle 3s";

#[test]
fn one_oracle_judges_all_nodes() {
    let Some(fleet) = fleet() else { return };
    let report = run(&fleet, &words(&format!("{CHURN} --minutes 0.3 --loss 0.2")));
    for name in ["states_told", "goodbyes", "reconnects", "moves"] {
        assert!(value(&report, name) > 3.0, "{name}: {report:#}");
    }
    assert_eq!(value(&report, "nodes"), 3.0);
}

#[test]
fn a_node_that_dies_takes_nobody_along() {
    let Some(fleet) = fleet() else { return };
    let kill = format!("kill -KILL {}", fleet.nodes[1].id());
    // A beat that was passed on to the node just before it was missed is lost (docs/CLUSTER.md). In
    // six seconds of silence the loss of another one on purpose would be one too many.
    let churn = format!("{CHURN} --minutes 0.3 --loss 0 --fault-at 6s --heal 5s --seed 2");
    let report = run(&fleet, &[&words(&churn)[..], &["--fault", &kill]].concat());
    assert!(value(&report, "streams_ended") > 0.0, "{report:#}");
    assert_eq!(value(&report, "nodes_not_healed"), 0.0);
}

#[test]
fn fanout_and_streams_over_all_nodes() {
    let Some(fleet) = fleet() else { return };
    let line = "fanout --watchers 60 --publishers 4 --transitions 20 --rate 10 --seed 3";
    all_told(&run(&fleet, &words(line)), 1_200.0);
    let line = "streams --streams 300 --rate 1000 --watch 5 --hold 500ms --seed 4";
    assert_eq!(value(&run(&fleet, &words(line)), "streams_held"), 300.0);
}
