//! The generator against the two halves of greendot as processes of their own: two real-time and
//! two presence nodes.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use greendot::wire::nodes::Nodes;
use greendot_loadgen::http::Client;
use greendot_loadgen::population::Population;

use super::{Turn, all_told, generate, listening, own_host, program, value};

struct Split {
    nodes: Vec<Child>,
    /// HTTP address and name of each presence node.
    presence: Vec<(SocketAddr, String)>,
    /// The flags that name all nodes to the generator.
    flags: Vec<String>,
    folder: tempfile::TempDir,
    _turn: Turn,
}

impl Drop for Split {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

/// Addresses that nobody listens at, of both kinds. The nodes of both halves must name each other
/// before any of them runs, so the kernel cannot choose when they listen.
fn free_addresses() -> [(SocketAddr, SocketAddr); 6] {
    let host = own_host();
    let at = |port: u16| SocketAddr::from((host, port));
    [8_470, 8_472, 8_474, 8_476, 8_478, 8_480].map(|port| (at(port), at(port + 1)))
}

#[expect(clippy::unwrap_used, reason = "the helper of a test")]
fn start(program: &Path, folder: &Path, name: &str, arguments: &[String]) -> Child {
    let mut node = Command::new(program)
        .env("GREENDOT_MEMORY", "off")
        .arg(name)
        .args(arguments)
        .args(["--beat-interval-ms", "500", "--offline-after-ms", "4000"])
        // A storm's streams are back before anybody has been away for too long, so that it may
        // accuse.
        .args(["--retry-ms", "300", "--key-file"])
        .arg(folder.join("fleet.key"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    listening(&mut node);
    node
}

#[expect(clippy::unwrap_used, reason = "the helper of a test")]
fn split(turn: Turn) -> Option<Split> {
    let program = program()?;
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("fleet.key");
    std::fs::write(&key_file, format!("{}\n", "6d".repeat(32))).unwrap();
    let own = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&key_file, own).unwrap();
    let [first, second, third, fourth, fifth, sixth] = free_addresses();
    let presence = [first, second].map(|(http, udp)| format!("udp://{udp},http://{http}"));
    let public = [third, fourth].map(|(http, _)| http);
    // Operators' listeners, which presence nodes tell and which serve the generator all it asks.
    let realtime = [fifth, sixth].map(|(http, _)| http);
    let words = |line: String| line.split(' ').map(str::to_owned).collect::<Vec<_>>();

    let mut split = Split {
        nodes: Vec::new(),
        presence: [first, second]
            .map(|(http, udp)| (http, udp.to_string()))
            .into(),
        flags: words(format!(
            "--realtime {} --realtime {} --presence {} --presence {}",
            realtime[0], realtime[1], presence[0], presence[1]
        )),
        folder,
        _turn: turn,
    };
    let folder = split.folder.path();
    for (http, admin) in public.into_iter().zip(realtime) {
        let line = format!(
            "--http {http} --admin {admin} --shards 2 --presence {} --presence {}",
            presence[0], presence[1]
        );
        split
            .nodes
            .push(start(&program, folder, "realtime", &words(line)));
    }
    for (http, udp) in [first, second] {
        let data = folder.join(udp.port().to_string());
        let line = format!(
            "--http {http} --udp {udp} --shards 1 --realtime http://{} --realtime http://{} \
             --data-dir {}",
            realtime[0],
            realtime[1],
            data.display()
        );
        split
            .nodes
            .push(start(&program, folder, "presence", &words(line)));
    }
    for http in [first.0, second.0, third.0, fourth.0] {
        await_ready(http);
    }
    Some(split)
}

/// Returns when the node has seen all nodes of the other half; panics if that takes longer than 20
/// s.
#[expect(clippy::unwrap_used, reason = "the helper of a test")]
fn await_ready(http: SocketAddr) {
    let mut client = Client::connect(http).unwrap();
    for _ in 0..400 {
        let answer = client.call("GET", "/readyz", b"").unwrap();
        if (answer.status, &answer.body[..]) == (200, b"ready\n") {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{http} is not ready");
}

/// Runs the generator over the split deployment; nothing may be wrong.
fn run(split: &Split, line: &str) -> serde_json::Value {
    let flags = split.flags.iter().map(String::as_str);
    let arguments: Vec<&str> = line.split(' ').chain(flags).collect();
    let report = generate(split.folder.path(), &arguments);
    // Twice is not wrong by itself, delivery is at least once: the judge knows when it is.
    for wrong in [
        "missing",
        "contradictions",
        "out_of_order",
        "never_caused",
        "late",
        "streams_dropped",
        "false_offline",
        "false_online",
        "stale_views",
        "final_disagreements",
    ] {
        if let Some(count) = report["values"][wrong].as_f64() {
            assert_eq!(count, 0.0, "{wrong} after {line}: {report:#}");
        }
    }
    report
}

#[test]
fn fanout_by_datagram_request_and_put() {
    let Some(split) = split(Turn::beside()) else {
        return;
    };
    let fanout = "fanout --watchers 50 --publishers 5 --transitions 20 --rate 20";
    for (seed, way) in ["udp", "http", "put"].iter().enumerate() {
        let report = run(&split, &format!("{fanout} --cause {way} --seed {seed}"));
        all_told(&report, 1_000.0);
        check_homes(&split, seed as u64, *way == "put");
    }
}

/// Each publisher of a fanout is known to the presence node that it belongs to, and to no other; to
/// none if it was only put.
#[expect(clippy::unwrap_used, reason = "the helper of a test")]
fn check_homes(split: &Split, seed: u64, only_put: bool) {
    let nodes = Nodes::new(split.presence.iter().map(|(_, name)| name.as_str()));
    let population = Population::new(seed);
    for publisher in (1 << 32)..(1 << 32) + 5 {
        let id = population.id(publisher);
        for (node, (http, _)) in split.presence.iter().enumerate() {
            let path = format!("/v1/presence/{}", String::from_utf8_lossy(&id));
            let answer = Client::connect(*http)
                .unwrap()
                .call("GET", &path, b"")
                .unwrap();
            let record: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            let known = record["since"].is_u64();
            assert_eq!(
                known,
                !only_put && nodes.of(&id) == node,
                "{record} at node {node}"
            );
        }
    }
}

#[test]
fn fanout_of_several_processes() {
    let Some(split) = split(Turn::beside()) else {
        return;
    };
    let line =
        "fanout --watchers 50 --publishers 4 --transitions 20 --rate 20 --streams-per-process 15";
    let report = run(&split, line);
    all_told(&report, 1_000.0);
}

#[test]
fn churn_with_loss_finds_nothing_wrong() {
    let Some(split) = split(Turn::alone()) else {
        return;
    };
    // On a busy machine a node may wait for seconds for a PUT that it has to send anew.
    let line = "churn --users 200 --watchers 20 --minutes 0.2 --session 2s --link 2s --loss 0.2 \
                --settle 3s";
    let report = run(&split, line);
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
fn streams_and_storm_at_real_time_nodes() {
    let Some(split) = split(Turn::beside()) else {
        return;
    };
    let report = run(
        &split,
        "streams --streams 200 --rate 1000 --watch 5 --hold 500ms",
    );
    assert_eq!(value(&report, "streams_held"), 200.0);
    let report = run(
        &split,
        "storm --seed 2 --streams 100 --rate 1000 --watch 5 --hold 2s",
    );
    let back = ["streams_back", "given_up"].map(|name| value(&report, name));
    assert_eq!(back, [100.0, 0.0]);
}
