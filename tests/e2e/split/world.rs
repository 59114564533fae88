//! Two real-time and two presence nodes around a hub: how they are started, reached, killed and cut
//! off.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;

use greendot::wire::beat::{FleetKey, Keys};
use greendot::wire::nodes::Nodes;

use crate::harness::{Home, Sender, Server, until};
use crate::http::Conn;
use crate::netns::Namespace;
use crate::stream::Stream;

use super::tap::{Manner, TcpTap, UdpTap};

/// Nodes of each role.
const EACH: usize = 2;
const HTTP_PORT: u16 = 8_480;
const UDP_PORT: u16 = 8_481;

/// Flags of nodes that notice a silence soon: see [`OFFLINE_AFTER_MS`].
pub(super) const FAST: &[&str] = &[
    "--beat-interval-ms=200",
    "--offline-after-ms=4000",
    "--sweep-interval-ms=50",
    "--shards=1",
];
/// Of [`FAST`] nodes.
pub(super) const OFFLINE_AFTER_MS: u64 = 4_000;

/// What to start.
#[derive(Clone, Copy)]
pub(super) struct Setup {
    /// Flags of every node.
    pub(super) flags: &'static [&'static str],
    /// Flags of the presence nodes.
    pub(super) presence_flags: &'static [&'static str],
    /// How taps pass on what goes between nodes; None: there are none, nodes talk to each other.
    pub(super) taps: Option<Manner>,
}

/// Where the nodes are.
enum Ground {
    /// Each in its own network. The hub's routes between them.
    Networks {
        hub: Namespace,
        nodes: Vec<Namespace>,
    },
    /// All on this machine's loopback device.
    Loopback,
}

impl Ground {
    fn new() -> Ground {
        Ground::networks().unwrap_or_else(|| {
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            let notice =
                "runs all the same, on loopback addresses and without what needs a firewall";
            // Not captured by the test harness, as what print! says would be.
            let _ = writeln!(std::io::stderr(), "notice: {test} {notice}");
            Ground::Loopback
        })
    }

    fn networks() -> Option<Ground> {
        let hub = Namespace::new()?;
        hub.enter(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("who may make it"));
        let node = |node: u8| {
            let namespace = Namespace::new()?;
            let router = Ipv4Addr::new(10, 78, node, 1);
            hub.connect(router, &namespace, Ipv4Addr::new(10, 78, node, 2))?;
            namespace.ip(&["route", "add", "default", "via", &router.to_string()]);
            Some(namespace)
        };
        let nodes = (0..2 * EACH as u8).map(node).collect::<Option<_>>()?;
        Some(Ground::Networks { hub, nodes })
    }

    fn in_hub<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match self {
            Ground::Networks { hub, .. } => hub.enter(work),
            Ground::Loopback => work(),
        }
    }

    fn in_node<T: Send>(&self, node: usize, work: impl FnOnce() -> T + Send) -> T {
        match self {
            Ground::Networks { nodes, .. } => nodes[node].enter(work),
            Ground::Loopback => work(),
        }
    }

    /// A node's address.
    fn ip(&self, node: usize, home: &Home) -> Ipv4Addr {
        match self {
            Ground::Networks { .. } => Ipv4Addr::new(10, 78, node as u8, 2),
            Ground::Loopback => home.ip(),
        }
    }

    /// The hub's.
    fn hub_ip(&self, home: &Home) -> Ipv4Addr {
        match self {
            Ground::Networks { .. } => Ipv4Addr::new(10, 78, 0, 1),
            Ground::Loopback => home.ip(),
        }
    }
}

/// One node, running or not.
pub(super) struct Node<'g> {
    ground: &'g Ground,
    /// Its place on the ground.
    place: usize,
    home: Home,
    ip: Ipv4Addr,
    args: Vec<String>,
    http_tap: Option<TcpTap>,
    udp_tap: Option<UdpTap>,
    server: Option<Server>,
    vanished: bool,
    /// Of servers that were killed.
    logs: String,
}

impl<'g> Node<'g> {
    fn new(ground: &'g Ground, place: usize, hub: &Home, setup: &Setup) -> Node<'g> {
        let home = Home::new();
        let ip = ground.ip(place, &home);
        let here = ground.hub_ip(hub);
        let is_presence = place >= EACH;
        let http_tap = setup
            .taps
            .map(|manner| TcpTap::new(here, (ip, HTTP_PORT).into(), manner));
        let udp_tap = setup.taps.filter(|_| is_presence);
        Node {
            ground,
            place,
            ip,
            args: Vec::new(),
            http_tap,
            udp_tap: udp_tap.map(|manner| UdpTap::new(here, (ip, UDP_PORT).into(), manner)),
            home,
            server: None,
            vanished: false,
            logs: String::new(),
        }
    }

    /// Where other nodes, and clients who want to be on record, find it.
    pub(super) fn front(&self) -> SocketAddr {
        self.http_tap
            .as_ref()
            .map_or((self.ip, HTTP_PORT).into(), |tap| tap.at)
    }

    /// Where other nodes send beats.
    pub(super) fn beat_front(&self) -> SocketAddr {
        self.udp_tap
            .as_ref()
            .map_or((self.ip, UDP_PORT).into(), |tap| tap.at)
    }

    pub(super) fn http_tap(&self) -> &TcpTap {
        self.http_tap.as_ref().expect("the setup has taps")
    }

    pub(super) fn udp_tap(&self) -> &UdpTap {
        self.udp_tap.as_ref().expect("the setup has taps")
    }

    /// No packet of it gets in or out until it starts again, if there are firewalls here.
    pub(super) fn vanish(&mut self) {
        if let Ground::Networks { nodes, .. } = self.ground {
            nodes[self.place].vanish();
            self.vanished = true;
        }
    }

    pub(super) fn start(&mut self) {
        if let Ground::Networks { nodes, .. } = self.ground
            && std::mem::take(&mut self.vanished)
        {
            nodes[self.place].nft("delete table inet vanished");
        }
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        let home = &self.home;
        let server = self
            .ground
            .in_node(self.place, || home.launch(&mut home.command(&args)));
        self.server = Some(server);
    }

    /// `kill -9`.
    pub(super) fn kill(&mut self) {
        let server = self.server.take().expect("it runs");
        self.logs.push_str(&server.log());
        server.kill();
    }

    /// What it knew is lost.
    pub(super) fn lose_files(&self) {
        fs::remove_dir_all(self.home.data_dir()).expect("a folder of our own");
    }

    pub(super) fn server(&self) -> &Server {
        self.server.as_ref().expect("it runs")
    }

    /// Opens a publisher's stream.
    pub(super) fn publish(&self, user: &str) -> Stream {
        Stream::open(Conn::to(self.front()), &format!("/v1/stream?user={user}"))
    }

    /// Waits until it is sure that it has been told everything: its events have ids. The questions
    /// of those who look do not hold that up.
    pub(super) fn expect_caught_up(&self) {
        until("it has caught up", || {
            let mut stream = self.server().stream("watch=nobody");
            stream.expect("hello");
            // Whoever is unknown in it is told of once more when the answer has come.
            stream
                .expect("snapshot")
                .id
                .or_else(|| stream.expect("presence").id)
        });
    }

    /// Waits until it says that so many nodes of the other role are out of sight.
    pub(super) fn expect_nodes_down(&self, down: usize) {
        until(&format!("{down} nodes are down, and named"), || {
            let found = self.server().metrics().sum("greendot_nodes_down");
            let ready = self.server().get("/readyz");
            assert_eq!(ready.status, 200, "{ready:?}");
            let text = ready.text();
            let silent = text.matches(" does not answer").count();
            let said = silent == down && (text == "ready\n") == (down == 0);
            (found == down as f64 && said).then_some(())
        });
    }
}

/// The nodes of a split deployment.
pub(super) struct Split<'g> {
    ground: &'g Ground,
    pub(super) realtime: Vec<Node<'g>>,
    pub(super) presence: Vec<Node<'g>>,
    /// Which presence node a publisher belongs to.
    pub(super) nodes: Nodes,
    pub(super) key: FleetKey,
}

impl Split<'_> {
    /// Starts all nodes and runs a test in the hub.
    pub(super) fn run(setup: Setup, test: impl FnOnce(&mut Split<'_>) + Send) {
        let ground = Ground::new();
        ground.in_hub(|| test(&mut Split::start(&ground, &setup)));
    }

    fn start<'g>(ground: &'g Ground, setup: &Setup) -> Split<'g> {
        let hub = Home::new();
        let text = String::from_utf8(hub.run(&["key"]).stdout).expect("text");
        let mut realtime: Vec<_> = (0..EACH)
            .map(|place| Node::new(ground, place, &hub, setup))
            .collect();
        let mut presence: Vec<_> = (EACH..2 * EACH)
            .map(|place| Node::new(ground, place, &hub, setup))
            .collect();
        let names: Vec<String> = presence
            .iter()
            .map(|node| node.beat_front().to_string())
            .collect();
        let presence_nodes = presence.iter().map(|node| {
            format!(
                "--presence=udp://{},http://{}",
                node.beat_front(),
                node.front()
            )
        });
        let presence_nodes: Vec<String> = presence_nodes.collect();
        let realtime_nodes = realtime
            .iter()
            .map(|node| format!("--realtime=http://{}", node.front()));
        let realtime_nodes: Vec<String> = realtime_nodes.collect();
        let common = |node: &Node<'_>| {
            // Each has a copy, as machines of their own would.
            let key_file = node.home.path().join("fleet.key");
            let mut file = fs::File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&key_file);
            let written = file.as_mut().map(|file| file.write_all(text.as_bytes()));
            assert!(matches!(written, Ok(Ok(()))), "a folder of our own");
            let mut args = vec![
                format!("--http={}:{HTTP_PORT}", node.ip),
                format!("--key-file={}", key_file.display()),
                "--insecure".into(),
                "--drain-ms=0".into(),
            ];
            args.extend(setup.flags.iter().map(|flag| (*flag).to_owned()));
            args
        };
        for node in &mut presence {
            node.args = [
                vec!["presence".into()],
                common(node),
                realtime_nodes.clone(),
            ]
            .concat();
            node.args.push(format!("--udp={}:{UDP_PORT}", node.ip));
            node.args
                .push(format!("--data-dir={}", node.home.data_dir().display()));
            node.args
                .extend(setup.presence_flags.iter().map(|flag| (*flag).to_owned()));
        }
        for node in &mut realtime {
            node.args = [
                vec!["realtime".into()],
                common(node),
                presence_nodes.clone(),
            ]
            .concat();
        }
        let mut split = Split {
            ground,
            realtime,
            presence,
            nodes: Nodes::new(names.iter().map(String::as_str)),
            key: Keys::parse(&text)
                .expect("greendot key has printed it")
                .signing()
                .clone(),
        };
        split.presence.iter_mut().for_each(Node::start);
        split.realtime.iter_mut().for_each(Node::start);
        for node in split.realtime.iter() {
            node.expect_nodes_down(0);
        }
        split
    }

    /// Users who belong to a presence node.
    pub(super) fn users_of(&self, node: usize, count: usize) -> Vec<String> {
        let all = (0..).map(|n| format!("user-{n}"));
        all.filter(|user| self.nodes.of(user.as_bytes()) == node)
            .take(count)
            .collect()
    }

    /// The node that a publisher belongs to.
    pub(super) fn owner(&self, user: &str) -> &Node<'_> {
        &self.presence[self.nodes.of(user.as_bytes())]
    }

    /// Somebody with the key who beats past the real-time nodes, to one presence node.
    pub(super) fn sender(&self, node: usize) -> Sender {
        Sender::new(self.presence[node].server().udp(), self.key.clone())
    }

    /// Cuts what the hub passes on between nodes; clients in the hub are not concerned. False:
    /// there is no firewall here.
    pub(super) fn cut(&self) -> bool {
        let Ground::Networks { hub, .. } = self.ground else {
            return false;
        };
        hub.nft(
            "table inet cut {
                chain between { type filter hook forward priority 0; policy drop; }
            }",
        );
        true
    }

    /// Undoes [`Split::cut`].
    pub(super) fn heal(&self) {
        if let Ground::Networks { hub, .. } = self.ground {
            hub.nft("delete table inet cut");
        }
    }

    /// From now on presence nodes lose so many of a hundred datagrams. False: there is no firewall
    /// here.
    pub(super) fn lose_percent(&self, percent: u32) -> bool {
        let Ground::Networks { nodes, .. } = self.ground else {
            return false;
        };
        for node in &nodes[EACH..] {
            node.nft(&format!(
                "table inet lossy {{
                    chain in {{
                        type filter hook input priority 0;
                        udp dport {UDP_PORT} numgen random mod 100 < {percent} drop
                    }}
                }}"
            ));
        }
        true
    }

    /// Waits until nothing waits to be told to any real-time node.
    pub(super) fn expect_all_told(&self) {
        for node in &self.presence {
            let told =
                || (node.server().metrics().sum("greendot_relay_queue") == 0.0).then_some(());
            until("everything is told", told);
        }
    }
}

impl Drop for Split<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in self.realtime.iter().chain(&self.presence) {
                let log = node.server.as_ref().map(Server::log).unwrap_or_default();
                eprintln!(
                    "node {} ({}):\n{}{log}",
                    node.place,
                    node.args.join(" "),
                    node.logs
                );
            }
        }
    }
}
