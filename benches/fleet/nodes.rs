//! What real nodes cost their Redis while nobody comes or goes, how fast one says anew whom it has,
//! and how fast another takes back whom a dead one had.
//!
//! Nodes are the program that this bench was built with, one shard each; users beat by UDP. Redis
//! is one server, and its own account is what counts: processor time, commands, and the slowest
//! call.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use greendot::fleet::Life;
use greendot::fleet::held::{Enrolment, life_field};
use greendot::fleet::partition::{LANES, Partitions};
use greendot::time::{Clock, Unix};
use greendot::wire::UserBuf;
use greendot::wire::beat::{FleetKey, Writer};
use tempfile::TempDir;

use crate::redis::{Answer, Link, Server};

/// As nodes have them by default.
const PARTITIONS: u32 = 1_024;
const KEY: [u8; 32] = [0x11; 32];
const STEP: Duration = Duration::from_millis(50);
/// Between two counts of all claims, which are reads of every partition.
const COUNT_STEP: Duration = Duration::from_millis(300);
/// Calls of Redis that take longer are kept for a look, us.
const SLOW_US: &str = "500";
/// No call may take longer, us.
const CALL_US_MAX: i64 = 5_000;

/// How long all of it takes.
pub(crate) struct Pace {
    /// Silence after which somebody is offline, and a lease has run out.
    pub(crate) offline_after_ms: u64,
    pub(crate) beat_interval_ms: u64,
    /// For so long nobody comes or goes.
    pub(crate) idle_s: u64,
}

pub(crate) fn run(names: &[UserBuf], pace: &Pace) {
    if let Some(fleet) = Fleet::start(pace) {
        idle(fleet, names, pace);
    }
    let Some(mut fleet) = Fleet::start(pace) else {
        return;
    };
    fleet.add();
    let beating = Beating::start(names, &fleet, pace);
    fleet.await_claims("all are claimed", |claims| claims >= names.len());
    rejoin(&mut fleet, names.len());
    // Nobody is heard any more when the new node is a home: whom the first one has is its own.
    drop(beating);
    fleet.add();
    reap(&mut fleet, pace, names.len());
}

fn idle(mut fleet: Fleet, names: &[UserBuf], pace: &Pace) {
    const NODES: usize = 3;
    // What it takes by itself: its own timer wakes it ten times a second.
    let nobody = fleet.cpu_share(pace.idle_s);
    (0..NODES).for_each(|_| fleet.add());
    let _beating = Beating::start(names, &fleet, pace);
    fleet.await_claims("all are claimed", |claims| claims >= names.len());
    // Until the last of them has been told, and what was slow has been done.
    sleep(Duration::from_secs(pace.idle_s.min(10)));
    let calls = fleet.commands();
    let share = fleet.cpu_share(pace.idle_s);
    let calls = (fleet.commands() - calls) as f64;
    let claims = fleet.claims();
    println!(
        "{} users idle at {NODES} nodes, {claims} claims",
        names.len()
    );
    println!(
        "  {share:.2} % of a core, {nobody:.2} before there were nodes; {:.0} commands/s a node",
        calls / (pace.idle_s as f64 * NODES as f64)
    );
}

/// Redis comes back empty: the node that has all users says so anew.
fn rejoin(fleet: &mut Fleet, users: usize) {
    fleet.redis.restart();
    let clock = Clock::new();
    let began = clock.now().mono;
    fleet.link = fleet.redis.link();
    fleet.watch_slow();
    fleet.await_claims("all are claimed again", |claims| claims >= users);
    let ms = clock.now().mono.ms_since(began);
    println!("{users} users claimed anew after Redis came back empty");
    println!("  {:.1} s; {}", ms as f64 / 1e3, fleet.slowest());
}

/// The first node dies; the second one has nobody.
fn reap(fleet: &mut Fleet, pace: &Pace, users: usize) {
    fleet.watch_slow();
    let clock = Clock::new();
    fleet.nodes.remove(0);
    let died = clock.now().mono;
    fleet.await_claims("the first is taken back", |claims| claims < users);
    let began = clock.now().mono;
    fleet.await_claims("all are taken back", |claims| claims == 0);
    let (ms, waited_ms) = (clock.now().mono.ms_since(began), began.ms_since(died));
    println!("{users} users of a dead node taken back");
    println!(
        "  {:.1} s, from {:.1} s after its death on, with a lease of {:.0} s; {}",
        ms as f64 / 1e3,
        waited_ms as f64 / 1e3,
        pace.offline_after_ms as f64 / 1e3,
        fleet.slowest()
    );
}

struct Node {
    child: Child,
    http: SocketAddr,
    udp: SocketAddr,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Fleet {
    redis: Server,
    link: Link,
    partitions: Partitions,
    folder: TempDir,
    flags: Vec<String>,
    nodes: Vec<Node>,
}

impl Fleet {
    /// Without a node yet. None: there is no Redis here, which is said.
    fn start(pace: &Pace) -> Option<Fleet> {
        let redis = Server::start_on_port(&[])?;
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("fleet.key");
        fs::write(&key, FleetKey::new(KEY).to_hex()).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let port = redis.port.unwrap();
        let flags = vec![
            "--http=127.0.0.1:0".to_owned(),
            "--udp=127.0.0.1:0".to_owned(),
            "--shards=1".to_owned(),
            "--key-file=fleet.key".to_owned(),
            format!("--cluster=redis://127.0.0.1:{port}"),
            format!("--cluster-partitions={PARTITIONS}"),
            format!("--offline-after-ms={}", pace.offline_after_ms),
            format!("--beat-interval-ms={}", pace.beat_interval_ms),
        ];
        Some(Fleet {
            link: redis.link(),
            redis,
            partitions: Partitions::new(PARTITIONS).unwrap(),
            folder,
            flags,
            nodes: Vec::new(),
        })
    }

    /// The part of a core that Redis takes from now on, in percent.
    fn cpu_share(&self, seconds: u64) -> f64 {
        let before = self.redis.cpu_seconds();
        sleep(Duration::from_secs(seconds));
        100.0 * (self.redis.cpu_seconds() - before) / seconds as f64
    }

    /// One node more, which has joined.
    fn add(&mut self) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_greendot"))
            .arg("serve")
            .args(&self.flags)
            .arg(format!("--data-dir=data{}", self.nodes.len()))
            .current_dir(self.folder.path())
            // A variable of this bench is none of a node's.
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(self.folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.find_map(|line| line.ok().filter(|line| line.starts_with("listening ")));
        let log = || fs::read_to_string(self.folder.path().join("log")).unwrap();
        let line = line.unwrap_or_else(|| panic!("a node does not listen: {}", log()));
        std::thread::spawn(move || lines.for_each(drop));
        let address = |name: &str| -> SocketAddr {
            let word = line.split(' ').find_map(|word| word.strip_prefix(name));
            word.unwrap().parse().unwrap()
        };
        let (http, udp) = (address("http="), address("udp="));
        self.nodes.push(Node { child, http, udp });
        let nodes = self.nodes.len();
        let is_home = |node: &Node| {
            let figures = get(node.http, "/metrics");
            let homes = figures
                .lines()
                .find_map(|line| line.strip_prefix("greendot_fleet_homes "));
            homes.is_some_and(|homes| homes.parse() == Ok(nodes as f64))
        };
        while !get(http, "/readyz").starts_with("HTTP/1.1 200") || !self.nodes.iter().all(is_home) {
            sleep(STEP);
        }
    }

    /// Claims of all nodes, dead ones too, as Redis counts them.
    fn claims(&mut self) -> usize {
        let lives: Vec<Life> = match self.link.ask(["HKEYS", LANES[0]]) {
            Answer::List(fields) => {
                let fields = fields.into_iter().map(Answer::bytes);
                fields
                    .filter_map(|field| field.try_into().ok().map(Life))
                    .collect()
            }
            _ => Vec::new(),
        };
        if lives.is_empty() {
            return 0;
        }
        for partition in self.partitions.all() {
            let hot = self.partitions.hot_key(partition);
            let fields: Vec<[u8; 6]> = lives.iter().map(|life| life_field(*life)).collect();
            let words = [&b"HMGET"[..], hot.as_bytes()].into_iter();
            self.link
                .send(words.chain(fields.iter().map(|field| &field[..])));
        }
        let mut claims = 0;
        for _ in self.partitions.all() {
            for value in self.link.read().list() {
                if let Answer::Bytes(value) = value {
                    claims += Enrolment::parse(&value).unwrap().count as usize;
                }
            }
        }
        claims
    }

    fn await_claims(&mut self, what: &str, is_so: impl Fn(usize) -> bool) {
        let clock = Clock::new();
        let began = clock.now().mono;
        loop {
            let claims = self.claims();
            if is_so(claims) {
                return;
            }
            let waited_ms = clock.now().mono.ms_since(began);
            assert!(
                waited_ms < 600_000,
                "waited in vain: {what}: {claims} claims"
            );
            sleep(COUNT_STEP);
        }
    }

    /// Commands that nodes have sent. What functions call is counted by Redis as well: a renewal,
    /// which is all that is called while nobody comes or goes, calls three.
    fn commands(&mut self) -> u64 {
        let info = String::from_utf8(self.link.ask(["INFO", "commandstats"]).bytes()).unwrap();
        let calls = info.lines().filter_map(|line| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            let calls: u64 = rest.split(',').next()?.parse().ok()?;
            Some((name.to_owned(), calls))
        });
        let (mut all, mut renewals) = (0, 0);
        for (name, calls) in calls {
            all += calls;
            renewals += if name == "fcall" { calls } else { 0 };
        }
        all - 3 * renewals
    }

    fn watch_slow(&mut self) {
        for words in [
            ["CONFIG", "SET", "slowlog-log-slower-than", SLOW_US],
            ["CONFIG", "SET", "slowlog-max-len", "100000"],
        ] {
            assert_eq!(self.link.ask(words), Answer::Word("OK".to_owned()));
        }
        self.link.ask(["SLOWLOG", "RESET"]);
    }

    /// The slowest call since [`Fleet::watch_slow`], and how many were slow.
    fn slowest(&mut self) -> String {
        let calls = self.link.ask(["SLOWLOG", "GET", "-1"]).list();
        let calls = calls.into_iter().filter_map(|call| {
            let call = call.list();
            let (Answer::Number(us), Answer::List(words)) = (&call[2], &call[3]) else {
                return None;
            };
            let words = words.iter().take(2).map(|word| match word {
                Answer::Bytes(word) => String::from_utf8_lossy(word).into_owned(),
                other => format!("{other:?}"),
            });
            Some((*us, words.collect::<Vec<_>>().join(" ")))
        });
        // Those of this bench are none of a node's.
        let own = |(_, words): &(i64, String)| words.starts_with("SLOWLOG");
        let calls: Vec<_> = calls.filter(|call| !own(call)).collect();
        let count = calls.len();
        let missed = calls.iter().filter(|(us, _)| *us > CALL_US_MAX).count();
        match calls.into_iter().max() {
            Some((us, words)) => format!(
                "slowest call {:.1} ms ({words}), {count} above {SLOW_US} us, {missed} above 5 ms",
                us as f64 / 1e3
            ),
            None => format!("no call above {SLOW_US} us"),
        }
    }
}

/// The whole answer.
fn get(http: SocketAddr, target: &str) -> String {
    let mut answer = String::new();
    let Ok(mut stream) = TcpStream::connect(http) else {
        return answer;
    };
    let request = format!("GET {target} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n");
    let asked = stream.write_all(request.as_bytes());
    let _ = asked.and_then(|()| stream.read_to_string(&mut answer));
    answer
}

/// All users beat once an interval, each datagram at the next node, until this is dropped.
struct Beating {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Beating {
    fn start(names: &[UserBuf], fleet: &Fleet, pace: &Pace) -> Beating {
        let (stop, stopped) = channel();
        let names = names.to_vec();
        let nodes: Vec<SocketAddr> = fleet.nodes.iter().map(|node| node.udp).collect();
        // Ten times a second.
        let turns = (pace.beat_interval_ms / 100).max(1);
        let thread = std::thread::spawn(move || {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let clock = Clock::new();
            let turns = names.chunks(names.len().div_ceil(turns as usize));
            let mut to = nodes.iter().cycle();
            for some in turns.cycle() {
                let began = clock.now();
                say(&socket, some, began.unix, &mut to);
                let took_ms = clock.now().mono.ms_since(began.mono);
                let left = Duration::from_millis(100_u64.saturating_sub(took_ms));
                if stopped.recv_timeout(left) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        Beating {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

fn say<'n>(
    socket: &UdpSocket,
    names: &[UserBuf],
    sent: Unix,
    to: &mut impl Iterator<Item = &'n SocketAddr>,
) {
    let key = FleetKey::new(KEY);
    let mut send = |open: Writer| {
        let node = to.next().expect("there are nodes");
        // One that is not taken is said again in the next turn.
        let _ = socket.send_to(&open.seal(&key), node);
    };
    let mut open = Writer::new(false, sent, &key);
    for name in names {
        if !open.push(name.user()) {
            let full = std::mem::replace(&mut open, Writer::new(false, sent, &key));
            send(full);
            assert!(open.push(name.user()), "an empty datagram has room");
        }
    }
    send(open);
}

impl Drop for Beating {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
