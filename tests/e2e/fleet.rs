//! Several nodes over one real Redis: what one hears, all tell.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::process::{Command, Stdio};

use greendot::wire::beat::FleetKey;
use rustix::process::{Signal, kill_process};
use serde_json::json;

use crate::harness::{Home, Record, Sender, Server, pause, skipped, until};
use crate::process::Process;
use crate::stream::Stream;

/// Below the kernel's own range, and each home has its address for itself.
const REDIS_PORT: u16 = 6_379;

/// A Redis, and nodes that share it.
pub(crate) struct Fleet {
    pub(crate) home: Home,
    pub(crate) redis: Process,
}

pub(crate) fn fleet() -> Option<Fleet> {
    Fleet::in_home(Home::new())
}

/// None: there is no Redis here, which is said.
fn redis_of(home: &Home) -> Option<Process> {
    home.keep("fleet.key", &"11".repeat(32));
    let there = Command::new("redis-server")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    if there.is_err() {
        skipped("no redis-server");
        return None;
    }
    Some(redis(home))
}

pub(crate) fn redis(home: &Home) -> Process {
    let (ip, port) = (home.ip().to_string(), REDIS_PORT.to_string());
    let args = [
        "--bind",
        &ip,
        "--port",
        &port,
        "--save",
        "",
        "--appendonly",
        "no",
    ];
    let mut command = home.program("redis-server", &args);
    let process = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    until("Redis listens", || {
        TcpStream::connect((home.ip(), REDIS_PORT)).ok()
    });
    process
}

impl Fleet {
    /// None: there is no Redis here, which is said.
    pub(crate) fn in_home(home: Home) -> Option<Fleet> {
        let redis = redis_of(&home)?;
        Some(Fleet { home, redis })
    }

    /// Where its database is.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}:{REDIS_PORT}", self.home.ip())
    }

    /// A node that has joined.
    pub(crate) fn node(&self) -> Server {
        self.node_with(&[])
    }

    /// The same, with more flags.
    pub(crate) fn node_with(&self, flags: &[&str]) -> Server {
        let node = self.begin(flags);
        expect_ready(&node);
        node
    }

    /// So many nodes, each of which is a home of users' beats to all.
    pub(crate) fn homes<const N: usize>(&self) -> [Server; N] {
        let nodes = std::array::from_fn(|_| self.node());
        nodes.iter().for_each(|node| expect_homes(node, N));
        nodes
    }

    /// How often Redis has executed a command, whoever called it.
    pub(crate) fn calls(&self, command: &str) -> u64 {
        let (ip, port) = (self.home.ip().to_string(), REDIS_PORT.to_string());
        let args = ["-h", &ip, "-p", &port, "info", "commandstats"];
        let output = self.home.run_program("redis-cli", &args);
        let stats = String::from_utf8(output.stdout).expect("INFO is text");
        let prefix = format!("cmdstat_{command}:calls=");
        let calls = stats.lines().find_map(|line| line.strip_prefix(&prefix));
        let calls = calls.and_then(|rest| rest.split(',').next());
        calls.map_or(0, |calls| calls.parse().expect("a number"))
    }

    /// One that has not joined yet.
    pub(crate) fn begin(&self, flags: &[&str]) -> Server {
        self.home.launch(&mut self.command(flags))
    }

    /// What starts a node.
    pub(crate) fn command(&self, flags: &[&str]) -> Command {
        let ip = self.home.ip();
        let mut command = self.home.command(&["serve", "--key-file=fleet.key"]);
        command
            .args([format!("--http={ip}:0"), format!("--udp={ip}:0")])
            .arg("--shards=1")
            .args(flags);
        let is_told = |name: &str| flags.iter().any(|flag| flag.starts_with(name));
        if !is_told("--cluster=") {
            command.arg(format!("--cluster={}", self.url()));
        }
        if !is_told("--cluster-partitions") {
            command.arg("--cluster-partitions=64");
        }
        if !is_told("--offline-after-ms") {
            command.args(["--beat-interval-ms=1000", "--offline-after-ms=6000"]);
        }
        command
    }

    /// What `redis-cli` says to that.
    pub(crate) fn cli(&self, args: &[&str]) -> String {
        let (ip, port) = (self.home.ip().to_string(), REDIS_PORT.to_string());
        let args = [&["-h", &ip, "-p", &port], args].concat();
        let output = self.home.run_program("redis-cli", &args);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

pub(crate) fn expect_ready(node: &Server) {
    until("the node has joined", || {
        (node.get("/readyz").status == 200).then_some(())
    });
}

pub(crate) fn expect_homes(node: &Server, homes: usize) {
    node.expect_metric("greendot_fleet_homes", |seen| seen == homes as f64);
}

pub(crate) fn key() -> FleetKey {
    FleetKey::new([0x11; 32])
}

/// Beats of all these users, each by UDP at one node by chance.
pub(crate) fn spread(random: &mut fastrand::Rng, senders: &[Sender], users: &[String]) {
    let mut shares = vec![Vec::new(); senders.len()];
    for user in users {
        shares[random.usize(..senders.len())].push(user.as_str());
    }
    for (sender, share) in senders.iter().zip(&shares) {
        share.chunks(50).for_each(|users| sender.beat(users));
    }
}

fn watching(node: &Server, users: &[String]) -> Stream {
    node.stream(&format!("watch={}", users.join("&watch=")))
}

/// What a stream tells of each user, up to the first word of `last`.
fn news_until(stream: &mut Stream, last: &str) -> BTreeMap<String, Vec<bool>> {
    let mut news: BTreeMap<String, Vec<bool>> = BTreeMap::new();
    loop {
        let event = stream.next();
        if event.kind != "presence" {
            // How the stream begins.
            continue;
        }
        let record = Record::of(&event.data);
        if record.user == last && record.online {
            return news;
        }
        // Whoever was not known yet is told as never seen first.
        if record.online || news.contains_key(&record.user) {
            news.entry(record.user).or_default().push(record.online);
        }
    }
}

pub(crate) fn told(node: &Server, user: &str, online: bool) -> Record {
    until(&format!("{user} is told as online: {online}"), || {
        let state = node.get(&format!("/v1/presence/{user}")).json();
        // What is marked as old is no word yet.
        let is_sure = state.get("stale").is_none();
        let record = is_sure.then(|| Record::of(&state));
        record.filter(|record| record.online == online)
    })
}

/// Waits until a node tells the same as another has told. What it has heard itself it tells before
/// the others know, and it may be a millisecond off what all agree on then.
fn expect_since(node: &Server, told: &Record) {
    until(&format!("it is told as {told:?}"), || {
        let record = node.record(&told.user);
        ((record.online, record.since) == (told.online, told.since)).then_some(())
    });
}

#[test]
fn what_one_node_hears_all_tell() {
    let Some(fleet) = fleet() else { return };
    let nodes = [fleet.node(), fleet.node(), fleet.node()];
    let [one, two, three] = &nodes;
    let mut alice = one.stream("watch=bob");
    alice.expect("hello");
    alice.expect("snapshot");
    // That the node did not know yet comes first.
    assert_eq!(alice.presence(), Record::never_seen("bob"));
    // A stream at another node, which a watcher is told of and each node answers for.
    let bob = two.stream("user=bob");
    let came = alice.expect_presence("bob", true);
    nodes.iter().for_each(|node| expect_since(node, &came));
    // Another device's goodbye, at a third node, takes nobody offline who holds a stream.
    let leave = json!({"users": ["bob"]});
    assert_eq!(three.post("/v1/leave", &leave).status, 204);
    pause(300);
    assert!(one.record("bob").online);
    // It does once the stream is gone.
    drop(bob);
    two.expect_metric("greendot_streams", |streams| streams == 0.0);
    // Again and again: when his node's word that it is gone has come to the others is not told.
    until("his goodbye counts", || {
        assert_eq!(three.post("/v1/leave", &leave).status, 204);
        (!one.record("bob").online).then_some(())
    });
    let gone = alice.expect_presence("bob", false);
    assert!(gone.since() > came.since());
    nodes.iter().for_each(|node| expect_since(node, &gone));
    // A beat by HTTP is answered for by its node at once, and told by all.
    assert_eq!(three.post("/v1/beat", &leave).status, 204);
    assert!(three.record("bob").online);
    alice.expect_presence("bob", true);
    // And one by UDP at yet another node. His silence ends it, 6 s after the last.
    let key = FleetKey::new([0x11; 32]);
    Sender::new(two.udp(), key).beat(&["bob"]);
    let event = alice.expect("presence");
    let gone = Record::of(&event.data);
    assert!(!gone.online);
    nodes.iter().for_each(|node| expect_since(node, &gone));
    // With the event's id a stream goes on at another node, and is told what has changed since.
    let id = event
        .id
        .expect("the node knows up to when it has told everything");
    let _resumed = three.stream(&format!("watch=bob&last_event_id={id}"));
    three.expect_metric("greendot_resumes_total", |resumes| resumes == 1.0);
}

#[test]
fn who_moves_from_a_dead_node_is_not_missed_and_the_others_are() {
    let Some(fleet) = fleet() else { return };
    let (one, two) = (fleet.node(), fleet.node());
    let mut alice = one.stream("watch=bob&watch=carol");
    alice.expect("hello");
    alice.expect("snapshot");
    let _streams = [two.stream("user=bob"), two.stream("user=carol")];
    for user in ["bob", "carol"] {
        told(&one, user, true);
    }
    two.kill();
    let _bob = one.stream("user=bob");
    let gone = told(&one, "carol", false);
    assert!(gone.since() - gone.last_active() >= 5_000);
    let bob = one.record("bob");
    assert!(bob.online && bob.since() < gone.since() - 5_000, "{bob:?}");
}

#[test]
fn an_outage_of_redis_takes_nobody_offline() {
    let Some(fleet) = fleet() else { return };
    let (one, two) = (fleet.node(), fleet.node());
    let mut alice = one.stream("watch=bob&watch=dave");
    alice.expect("hello");
    alice.expect("snapshot");
    let bob = two.stream("user=bob");
    let came = told(&one, "bob", true);
    let pid = fleet.redis.pid();
    kill_process(pid, Signal::STOP).expect("our own process");
    // Who comes to a node is told there; what it can not know is said.
    let _dave = one.stream("user=dave");
    told(&one, "dave", true);
    until("the node says that it is cut off", || {
        (one.get("/readyz").status == 503).then_some(())
    });
    // Beats count where they come in, whoever is at home elsewhere.
    for node in [&one, &two] {
        expect_homes(node, 1);
        let users = ["eve", "frank", "grace", "heidi"];
        Sender::new(node.udp(), key()).beat(&users);
        for user in users {
            told(node, user, true);
        }
    }
    // Longer than anybody's silence may last.
    pause(8_000);
    let known = one.get("/v1/presence/bob").json();
    assert_eq!(
        (&known["online"], &known["stale"]),
        (&json!(true), &json!(true))
    );
    kill_process(pid, Signal::CONT).expect("our own process");
    for node in [&one, &two] {
        expect_ready(node);
    }
    told(&two, "dave", true);
    assert_eq!(told(&two, "bob", true).since(), came.since());
    assert_eq!(told(&one, "bob", true).since(), came.since());
    drop(bob);
}

#[test]
fn a_redis_that_has_forgotten_everything_is_told_again() {
    let Some(mut fleet) = fleet() else { return };
    let (one, two) = (fleet.node(), fleet.node());
    let _bob = two.stream("user=bob");
    told(&one, "bob", true);
    fleet.redis.kill();
    until("the node says that it is cut off", || {
        (one.get("/readyz").status == 503).then_some(())
    });
    fleet.redis = redis(&fleet.home);
    for node in [&one, &two] {
        expect_ready(node);
    }
    assert!(one.record("bob").online);
    let three = fleet.node();
    told(&three, "bob", true);
}

#[test]
fn a_node_that_is_configured_otherwise_takes_no_part() {
    let Some(fleet) = fleet() else { return };
    let _one = fleet.node();
    for (flag, said) in [
        (
            "--cluster-partitions=128",
            "--cluster-partitions is 128 here and 64 in the fleet",
        ),
        (
            "--cluster-buckets=17",
            "--cluster-buckets is 17 here and 16 in the fleet",
        ),
    ] {
        let mut other = fleet.begin(&[flag]);
        other.expect_log(said);
        assert_eq!(other.process.wait().code(), Some(1));
    }
}

#[test]
fn beats_that_a_balancer_spreads_cost_redis_one_write_a_user() {
    let Some(fleet) = fleet() else { return };
    let nodes: [Server; 3] = fleet.homes();
    let users: Vec<String> = (0..300).map(|number| format!("user-{number:03}")).collect();
    let watched: Vec<String> = users.iter().cloned().chain(["last".into()]).collect();
    let mut streams = nodes.each_ref().map(|node| watching(node, &watched));
    let writes = |nodes: &[Server; 3]| -> f64 {
        let of = |node: &Server| node.metrics().sum("greendot_fleet_writes_total");
        nodes.iter().map(of).sum()
    };
    let (written, published) = (writes(&nodes), fleet.calls("spublish"));
    let senders = nodes.each_ref().map(|node| Sender::new(node.udp(), key()));
    let mut random = fastrand::Rng::with_seed(14);
    // Three leases, and as long as three silences.
    for _ in 0..20 {
        spread(&mut random, &senders, &users);
        pause(1_000);
    }
    for node in &nodes {
        for user in users.iter().step_by(30) {
            assert!(node.record(user).online, "{user}");
        }
    }
    let written = writes(&nodes) - written;
    let published = fleet.calls("spublish") - published;
    assert!((300.0..=330.0).contains(&written), "{written} writes");
    assert!((1..=330).contains(&published), "{published} messages");
    for node in &nodes {
        let metrics = node.metrics();
        for counted in [
            "greendot_fleet_beats_passed_on_total",
            "greendot_fleet_beats_from_nodes_total",
        ] {
            // A third comes in here, and two thirds of that go on.
            let beats = metrics.sum(counted);
            assert!((1_000.0..1_700.0).contains(&beats), "{counted} {beats}");
        }
        assert_eq!(metrics.sum("greendot_fleet_datagrams_refused_total"), 0.0);
    }
    // Whoever watches has been told of each once, and of nobody that he has gone.
    let body = json!({"users": ["last"]});
    assert_eq!(nodes[0].post("/v1/beat", &body).status, 204);
    for stream in &mut streams {
        let news = news_until(stream, "last");
        assert_eq!(news.len(), users.len());
        for (user, told) in news {
            assert_eq!(told, [true], "{user}");
        }
    }
}

#[test]
fn nobody_goes_offline_when_a_home_is_killed() {
    let Some(fleet) = fleet() else { return };
    let [one, two, three] = fleet.homes();
    let users: Vec<String> = (0..90).map(|number| format!("user-{number:02}")).collect();
    let watched: Vec<String> = users.iter().cloned().chain(["last".into()]).collect();
    let mut streams = [&one, &two].map(|node| watching(node, &watched));
    let senders = [&one, &two].map(|node| Sender::new(node.udp(), key()));
    let mut random = fastrand::Rng::with_seed(14);
    for _ in 0..3 {
        spread(&mut random, &senders, &users);
        pause(1_000);
    }
    for user in &users {
        told(&one, user, true);
    }
    three.kill();
    // Its lease runs out meanwhile, and whom nobody else claims goes offline.
    for _ in 0..14 {
        spread(&mut random, &senders, &users);
        pause(1_000);
    }
    expect_homes(&one, 2);
    one.expect_metric("greendot_fleet_nodes", |nodes| nodes == 2.0);
    // An operator sees that a node died, and how many users it had; neither of these began anew.
    let counted = |name: &str| -> f64 {
        let nodes = [&one, &two].into_iter();
        nodes.map(|node| node.metrics().sum(name)).sum()
    };
    until("the dead node's users are taken from it", || {
        (counted("greendot_fleet_reaped_total") > 0.0).then_some(())
    });
    assert!(counted("greendot_fleet_fences_total") > 0.0);
    assert_eq!(counted("greendot_fleet_lives_total"), 0.0);
    assert_eq!(
        one.post("/v1/beat", &json!({"users": ["last"]})).status,
        204
    );
    for stream in &mut streams {
        for (user, told) in news_until(stream, "last") {
            assert_eq!(told, [true], "{user}");
        }
    }
    for node in [&one, &two] {
        assert!(users.iter().all(|user| node.record(user).online));
    }
}

#[test]
fn who_says_goodbye_is_gone_wherever_that_was_said() {
    let Some(fleet) = fleet() else { return };
    let nodes: [Server; 3] = fleet.homes();
    for (at, node) in nodes.iter().enumerate() {
        for number in 0..6 {
            let user = format!("user-{at}-{number}");
            let body = json!({"users": [user]});
            // The node that took it answers from it at once.
            assert_eq!(node.post("/v1/beat", &body).status, 204);
            assert!(node.record(&user).online, "{user}");
            for other in &nodes {
                told(other, &user, true);
            }
            // At the same node, or at another one, by either way.
            let other = &nodes[(at + number) % 3];
            match number < 3 {
                true => {
                    assert_eq!(other.post("/v1/leave", &body).status, 204);
                    assert!(!other.record(&user).online, "{user}");
                }
                false => Sender::new(other.udp(), key()).leave(&[&user]),
            }
            for node in &nodes {
                told(node, &user, false);
            }
        }
    }
}

#[test]
fn a_node_that_stood_still_begins_anew_and_counts_it() {
    let Some(fleet) = fleet() else { return };
    let (one, two) = (fleet.node(), fleet.node());
    let _bob = two.stream("user=bob");
    told(&one, "bob", true);
    two.process.stop();
    told(&one, "bob", false);
    one.expect_metric("greendot_fleet_fences_total", |partitions| partitions > 0.0);
    one.expect_metric("greendot_fleet_reaped_total", |users| users == 1.0);
    two.process.signal(Signal::CONT);
    two.expect_metric("greendot_fleet_lives_total", |lives| lives > 0.0);
    expect_ready(&two);
    assert_eq!(one.metrics().sum("greendot_fleet_lives_total"), 0.0);
}

#[test]
fn what_others_write_to_redis_is_looked_at_anew_and_counted() {
    let Some(fleet) = fleet() else { return };
    let node = fleet.node();
    let _bob = node.stream("user=bob");
    told(&node, "bob", true);
    let repairs = node.metrics().sum("greendot_fleet_repairs_total");
    assert_eq!(node.metrics().sum("greendot_fleet_refused_total"), 0.0);
    for key in fleet.cli(&["KEYS", "gd:{*}"]).lines() {
        fleet.cli(&["SPUBLISH", key, "none of the library's"]);
    }
    node.expect_metric("greendot_fleet_repairs_total", |count| count > repairs);
    node.expect_metric("greendot_fleet_refused_total", |count| count > 0.0);
    assert!(told(&node, "bob", true).online);
}
