//! A fleet in virtual time: nodes, servers, the network between them, and the links as they are
//! specified.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::sync::Arc;

use fastrand::Rng;
use greendot::engine::{Home, HomeList, PartitionSet};
use greendot::fleet::member::{Layout, Member, Settings, Standing};
use greendot::fleet::partition::{Partition, Partitions};
use greendot::fleet::traffic::{Command, Event, Failed, Reply, Server, Tag, To};
use greendot::fleet::{CALL_USERS_MAX, library};
use greendot::slot::Slot;
use greendot::time::{Mono, Now, Unix};
use greendot::wire::UserBuf;

use crate::cluster::{Cluster, SHARDS};
use crate::db::{Db, OFFLINE_AFTER_MS};

pub(crate) const EPOCH_MS: u64 = 1_764_000_000_000;
pub(crate) const SETTLE_MS: u64 = 2_500;
const RESPONSE_MS: u64 = 1_000;
const SILENT_MS: u64 = 2_000;
const RECONNECT_MS: (u64, u64) = (100, 1_250);
const SWEEP_MS: u64 = 250;

/// What happens next.
enum Next {
    /// A node's command reaches a server.
    Arrive {
        node: usize,
        life: u32,
        process: usize,
        epoch: u32,
        key: Vec<u8>,
        command: Command,
    },
    Answer {
        node: usize,
        life: u32,
        tag: Tag,
        process: usize,
        replies: Option<Vec<Reply>>,
    },
    Timeout {
        node: usize,
        life: u32,
        tag: Tag,
    },
    Unreached {
        node: usize,
        life: u32,
        tag: Tag,
    },
    Push {
        node: usize,
        life: u32,
        process: usize,
        epoch: u32,
        push: Push,
    },
    Reconnect {
        node: usize,
        life: u32,
        process: usize,
    },
    Subscribe {
        node: usize,
        life: u32,
        process: usize,
        epoch: u32,
        at: usize,
    },
    Probe {
        node: usize,
        life: u32,
    },
    Wake {
        node: usize,
        life: u32,
        at: u64,
    },
    Sweep {
        node: usize,
        life: u32,
    },
    /// Whatever the run has planned.
    Plan(usize),
}

enum Push {
    Message(usize, Vec<u8>),
    Subscribed(usize),
    Heard(u64),
}

struct Entry(u64, u64, Next);

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// A node's two connections to a server process, as one.
#[derive(Default)]
struct Connection {
    is_up: bool,
    epoch: u32,
    /// When what was sent last arrives: nothing overtakes.
    to_at: u64,
    from_at: u64,
    push_at: u64,
    answered_at: u64,
    /// Pushed while the network was cut.
    kept: Vec<Push>,
    subscribed: BTreeSet<usize>,
}

pub(crate) struct Node {
    pub member: Member<Db>,
    /// Which start of the node this is.
    pub life: u32,
    pub is_alive: bool,
    pub is_stopped: bool,
    /// Messages to it are lost, and nothing else is.
    pub is_deaf: bool,
    /// It hears no answers to what it says of users.
    pub is_muffled: bool,
    /// What came while it was stopped.
    waiting: Vec<Next>,
    connections: BTreeMap<usize, Connection>,
    in_flight: BTreeMap<Tag, usize>,
    wake_at: u64,
    kinds: Vec<u8>,
    /// Which process it takes to have each partition.
    pub cut: BTreeSet<usize>,
}

pub(crate) struct World {
    pub now_us: u64,
    pub random: Rng,
    network: Rng,
    pub cluster: Cluster,
    pub nodes: Vec<Node>,
    pub partitions: Arc<Partitions>,
    queue: BinaryHeap<Reverse<Entry>>,
    sequence: u64,
    by_channel: BTreeMap<Vec<u8>, usize>,
    all: Vec<Partition>,
    /// Commands that lie in a stopped server's buffers.
    stuck: BTreeMap<usize, Vec<Next>>,
    /// All primaries stand still as soon as somebody fences a node.
    pub stops_at_fence: bool,
}

/// As the bridge has it.
const RENEWED_MS: u64 = 3_000;

/// Whether that function of the library is called.
fn calls(command: &Command, function: &str) -> bool {
    let name = library::function(function);
    let mut called = command.calls.iter().filter_map(|call| call.words().nth(1));
    called.any(|word| word == name.as_bytes())
}

/// By which address a node is a home.
pub(crate) fn udp_of(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node as u8], 8081))
}

impl World {
    pub(crate) fn new(seed: u64, nodes: usize) -> World {
        let mut random = Rng::with_seed(seed);
        let network = Rng::with_seed(seed ^ 0x6e65_7477_6f72_6b00);
        let partitions = Arc::new(Partitions::new(64).unwrap());
        let skews = [0; SHARDS].map(|_: i64| random.i64(-400..400));
        let all: Vec<_> = partitions.all().collect();
        let names = all.iter().map(|&one| partitions.hot_key(one).into_bytes());
        let mut world = World {
            now_us: 1_000_000,
            cluster: Cluster::new(skews),
            nodes: Vec::new(),
            by_channel: names.enumerate().map(|(at, name)| (name, at)).collect(),
            partitions,
            queue: BinaryHeap::new(),
            sequence: 0,
            random,
            network,
            all,
            stuck: BTreeMap::new(),
            stops_at_fence: false,
        };
        for node in 0..nodes {
            world.start(node);
        }
        world
    }

    pub(crate) fn now(&self) -> Now {
        Now {
            mono: Mono::from_micros(self.now_us),
            unix: Unix::from_ms(EPOCH_MS + self.now_us / 1_000),
        }
    }

    pub(crate) fn ms(&self) -> u64 {
        self.now_us / 1_000
    }

    fn member(&mut self) -> Member<Db> {
        let in_flight_max = match self.random.bool() {
            true => 32,
            // Partitions stand in line for room.
            false => 3,
        };
        let call_users_max = match self.random.bool() {
            true => CALL_USERS_MAX,
            // A partition's few users take several reads and calls, as many users do.
            false => 1,
        };
        let settings = Settings {
            call_users_max,
            layout: Layout {
                partitions: 64,
                buckets: 2,
                offline_after_ms: OFFLINE_AFTER_MS as u32,
                format: Layout::FORMAT,
            },
            settle_ms: SETTLE_MS,
            audit_ms: 7_000,
            in_flight_max,
            info: "node".into(),
            ..Settings::default()
        };
        let random = Rng::with_seed(self.random.u64(..));
        let now = self.now();
        Member::new(
            settings,
            self.partitions.clone(),
            Db::default(),
            random,
            now,
        )
    }

    /// Starts a node that is not there, or one that was killed.
    pub(crate) fn start(&mut self, at: usize) {
        let member = self.member();
        let life = self.nodes.get(at).map_or(0, |node| node.life + 1);
        let node = Node {
            member,
            life,
            is_alive: true,
            is_stopped: false,
            is_deaf: false,
            is_muffled: false,
            waiting: Vec::new(),
            connections: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            wake_at: 0,
            kinds: Vec::new(),
            cut: BTreeSet::new(),
        };
        match at < self.nodes.len() {
            true => self.nodes[at] = node,
            false => self.nodes.push(node),
        }
        for process in 0..self.cluster.processes.len() {
            if self.cluster.processes[process].is_alive {
                self.plan_in(
                    10,
                    Next::Reconnect {
                        node: at,
                        life,
                        process,
                    },
                );
            }
        }
        let first = self.random.u64(..1_000);
        self.plan_in(first, Next::Probe { node: at, life });
        self.plan_in(SWEEP_MS, Next::Sweep { node: at, life });
        self.wake(at);
    }

    pub(crate) fn kill(&mut self, node: usize) {
        self.nodes[node].is_alive = false;
    }

    fn plan_in(&mut self, ms: u64, next: Next) {
        self.plan_at(self.now_us + ms * 1_000, next);
    }

    fn plan_at(&mut self, at: u64, next: Next) {
        self.sequence += 1;
        self.queue.push(Reverse(Entry(at, self.sequence, next)));
    }

    /// The run's own plan number `number` is due then.
    pub(crate) fn plan(&mut self, in_ms: u64, number: usize) {
        self.plan_in(in_ms, Next::Plan(number));
    }

    /// Goes on to what happens next. Some: one of the run's own plans is due.
    pub(crate) fn step(&mut self) -> Option<usize> {
        let Reverse(Entry(at, _, next)) = self.queue.pop().expect("there is always a next probe");
        self.now_us = self.now_us.max(at);
        match next {
            Next::Plan(number) => return Some(number),
            Next::Arrive { process, .. } if self.cluster.processes[process].is_stopped => {
                self.stuck.entry(process).or_default().push(next);
            }
            Next::Arrive {
                node,
                life,
                process,
                epoch,
                key,
                command,
            } => {
                self.arrive(node, life, process, epoch, &key, command);
            }
            next => self.at_node(next),
        }
        None
    }

    fn at_node(&mut self, next: Next) {
        let (Next::Answer { node, life, .. }
        | Next::Timeout { node, life, .. }
        | Next::Unreached { node, life, .. }
        | Next::Push { node, life, .. }
        | Next::Reconnect { node, life, .. }
        | Next::Subscribe { node, life, .. }
        | Next::Probe { node, life }
        | Next::Wake { node, life, .. }
        | Next::Sweep { node, life }) = next
        else {
            return;
        };
        let one = &mut self.nodes[node];
        if !one.is_alive || one.life != life {
            return;
        }
        if one.is_stopped {
            one.waiting.push(next);
            return;
        }
        match next {
            Next::Answer {
                tag,
                process,
                replies,
                ..
            } => {
                if self.is_cut(node, process) {
                    return;
                }
                if self.nodes[node].in_flight.remove(&tag).is_none() {
                    return;
                }
                let server = Server(process as u32);
                let event = match replies {
                    Some(replies) => Event::Answered {
                        tag,
                        server,
                        replies,
                    },
                    None => Event::Failed {
                        tag,
                        why: Failed::Moved,
                    },
                };
                self.tell(node, event);
            }
            Next::Timeout { tag, .. } => {
                if self.nodes[node].in_flight.remove(&tag).is_some() {
                    self.tell(
                        node,
                        Event::Failed {
                            tag,
                            why: Failed::Lost,
                        },
                    );
                }
            }
            Next::Unreached { tag, .. } => {
                if self.nodes[node].in_flight.remove(&tag).is_some() {
                    self.tell(
                        node,
                        Event::Failed {
                            tag,
                            why: Failed::Unreached,
                        },
                    );
                }
            }
            Next::Push {
                process,
                epoch,
                push,
                ..
            } => self.pushed(node, process, epoch, push),
            Next::Reconnect { process, .. } => self.reconnect(node, process),
            Next::Subscribe {
                process, epoch, at, ..
            } => self.subscribe(node, process, epoch, at),
            Next::Probe { .. } => self.probe(node),
            Next::Wake { at, .. } => {
                if self.nodes[node].wake_at == at {
                    self.nodes[node].wake_at = u64::MAX;
                    let now = self.now();
                    self.nodes[node].member.handle_timeout(now);
                    self.drain(node);
                }
            }
            Next::Sweep { .. } => self.sweep(node),
            Next::Arrive { .. } | Next::Plan(_) => {}
        }
    }

    /// A node learns something.
    fn tell(&mut self, node: usize, event: Event) {
        let now = self.now();
        self.nodes[node].member.handle_event(event, now);
        self.drain(node);
    }

    /// Sends what a node has to send, and plans its next turn.
    pub(crate) fn drain(&mut self, node: usize) {
        while let Some(command) = self.nodes[node].member.poll_command() {
            self.send(node, command);
        }
        self.wake(node);
    }

    fn wake(&mut self, node: usize) {
        let due = self.nodes[node].member.poll_timeout().micros();
        let due = due.min(self.now_us + 1_000_000).max(self.now_us + 100);
        let one = &mut self.nodes[node];
        if due < one.wake_at || one.wake_at <= self.now_us {
            one.wake_at = due;
            let life = one.life;
            self.plan_at(
                due,
                Next::Wake {
                    node,
                    life,
                    at: due,
                },
            );
        }
    }

    fn send(&mut self, node: usize, command: Command) {
        let key = match command.to {
            To::Partition(partition) => self.partitions.hot_key(partition).into_bytes(),
            To::Key(key) => key.as_bytes().to_vec(),
        };
        let process = self.cluster.process_of(&key);
        if self.stops_at_fence && calls(&command, "fence") {
            self.stops_at_fence = false;
            for process in self.cluster.primaries {
                self.stop_server(process);
            }
        }
        let (life, tag) = (self.nodes[node].life, command.tag);
        let is_cut = self.is_cut(node, process);
        let lag = self.lag();
        let now_us = self.now_us;
        let connection = self.nodes[node].connections.entry(process).or_default();
        if !connection.is_up {
            self.nodes[node].in_flight.insert(tag, process);
            // In a turn of its own, as a link would say it.
            self.plan_at(now_us + 50, Next::Unreached { node, life, tag });
            return;
        }
        connection.to_at = connection.to_at.max(now_us + lag);
        let (epoch, at) = (connection.epoch, connection.to_at);
        self.nodes[node].in_flight.insert(tag, process);
        self.plan_in(RESPONSE_MS, Next::Timeout { node, life, tag });
        if !is_cut {
            self.plan_at(
                at,
                Next::Arrive {
                    node,
                    life,
                    process,
                    epoch,
                    key,
                    command,
                },
            );
        }
    }

    /// Prints what a server is told of one user, for whoever looks into a failure.
    fn trace(&self, node: usize, process: usize, command: &Command) {
        let Ok(user) = std::env::var("FLEET_SIM_TRACE") else {
            return;
        };
        for call in &command.calls {
            let words: Vec<&[u8]> = call.words().collect();
            let at = words.iter().position(|word| *word == user.as_bytes());
            if let Some(at) = at.filter(|_| words[0] != b"HMGET") {
                let head = if words[2] == b"2" { 5 } else { 4 };
                let op = words
                    .get(head + 1)
                    .and_then(|ops| ops.get(15 * at.saturating_sub(head + 2)));
                let (ms, mode) = (
                    self.ms(),
                    words
                        .get(head)
                        .and_then(|head| head.get(4))
                        .map(|mode| char::from(*mode)),
                );
                let op = op.map(|op| char::from(*op));
                let name = String::from_utf8_lossy(words[1]).into_owned();
                println!("{ms} node {node} -> {process}: {name} {mode:?} {op:?}");
            }
        }
    }

    fn lag(&mut self) -> u64 {
        match self.network.u8(..) {
            0 => self.network.u64(5_000..40_000),
            _ => self.network.u64(100..1_500),
        }
    }

    fn is_cut(&self, node: usize, process: usize) -> bool {
        let shard = self.cluster.processes[process].shard;
        self.nodes[node].cut.contains(&shard)
    }

    /// A server does what a node says.
    fn arrive(
        &mut self,
        node: usize,
        life: u32,
        process: usize,
        epoch: u32,
        key: &[u8],
        command: Command,
    ) {
        if !self.cluster.processes[process].is_alive {
            return;
        }
        let tag = command.tag;
        let now_ms = EPOCH_MS + self.ms();
        self.trace(node, process, &command);
        let done = self.cluster.execute(process, key, &command.calls, now_ms);
        let (replies, published) = match done {
            Some((replies, published)) => (Some(replies), published),
            None => (None, Vec::new()),
        };
        for (channel, message) in published {
            self.publish(process, &channel, &message);
        }
        let lag = self.lag();
        let (now_us, one) = (self.now_us, &mut self.nodes[node]);
        if one.is_muffled && calls(&command, "vouch") {
            return;
        }
        let Some(connection) = one
            .connections
            .get_mut(&process)
            .filter(|_| one.life == life)
        else {
            return;
        };
        if connection.epoch != epoch || !connection.is_up {
            return;
        }
        connection.from_at = connection.from_at.max(now_us + lag);
        let at = connection.from_at;
        self.plan_at(
            at,
            Next::Answer {
                node,
                life,
                tag,
                process,
                replies,
            },
        );
    }

    fn publish(&mut self, process: usize, channel: &[u8], message: &[u8]) {
        let at = self.by_channel[channel];
        for node in 0..self.nodes.len() {
            let connections = &self.nodes[node].connections;
            let heard = connections.get(&process);
            if heard.is_some_and(|one| one.is_up && one.subscribed.contains(&at)) {
                self.push(node, process, Push::Message(at, message.to_vec()));
            }
        }
    }

    /// In order with all else that this server pushes to this node.
    fn push(&mut self, node: usize, process: usize, push: Push) {
        let lag = self.lag();
        let (now_us, life) = (self.now_us, self.nodes[node].life);
        let connection = self.nodes[node].connections.entry(process).or_default();
        connection.push_at = connection.push_at.max(now_us + lag);
        let (at, epoch) = (connection.push_at, connection.epoch);
        self.plan_at(
            at,
            Next::Push {
                node,
                life,
                process,
                epoch,
                push,
            },
        );
    }

    fn pushed(&mut self, node: usize, process: usize, epoch: u32, push: Push) {
        let (is_cut, now_us) = (self.is_cut(node, process), self.now_us);
        let Some(connection) = self.nodes[node].connections.get_mut(&process) else {
            return;
        };
        if connection.epoch != epoch || !connection.is_up {
            return;
        }
        if is_cut {
            connection.kept.push(push);
            return;
        }
        if self.nodes[node].is_deaf && matches!(push, Push::Message(..)) {
            return;
        }
        let Some(connection) = self.nodes[node].connections.get_mut(&process) else {
            return;
        };
        let server = Server(process as u32);
        let event = match push {
            Push::Message(at, message) => Event::Published {
                partition: self.all[at],
                server,
                message,
            },
            Push::Subscribed(at) => Event::Subscribed {
                partition: self.all[at],
                server,
            },
            Push::Heard(began) => {
                connection.answered_at = now_us;
                Event::Heard {
                    server,
                    ago_ms: (now_us - began) / 1_000,
                }
            }
        };
        self.tell(node, event);
    }

    /// A node's connections to a server end, if there are any.
    pub(crate) fn disconnect(&mut self, node: usize, process: usize) {
        let life = self.nodes[node].life;
        let Some(connection) = self.nodes[node].connections.get_mut(&process) else {
            return;
        };
        if !connection.is_up {
            return;
        }
        connection.is_up = false;
        connection.epoch += 1;
        connection.kept.clear();
        let heard = std::mem::take(&mut connection.subscribed);
        for at in heard {
            self.tell(
                node,
                Event::Unsubscribed {
                    partition: self.all[at],
                },
            );
        }
        let lost: Vec<Tag> = self.nodes[node]
            .in_flight
            .iter()
            .filter(|(_, of)| **of == process)
            .map(|(tag, _)| *tag)
            .collect();
        for tag in lost {
            self.nodes[node].in_flight.remove(&tag);
            self.tell(
                node,
                Event::Failed {
                    tag,
                    why: Failed::Lost,
                },
            );
        }
        let wait = self.network.u64(RECONNECT_MS.0..RECONNECT_MS.1);
        self.plan_in(
            wait,
            Next::Reconnect {
                node,
                life,
                process,
            },
        );
    }

    fn reconnect(&mut self, node: usize, process: usize) {
        let life = self.nodes[node].life;
        let Some(server) = self.cluster.processes.get(process) else {
            return;
        };
        if !server.is_alive
            || self.nodes[node]
                .connections
                .get(&process)
                .is_some_and(|one| one.is_up)
        {
            return;
        }
        if server.is_stopped || self.is_cut(node, process) {
            let wait = self.network.u64(RECONNECT_MS.0..RECONNECT_MS.1);
            self.plan_in(
                wait,
                Next::Reconnect {
                    node,
                    life,
                    process,
                },
            );
            return;
        }
        let now_us = self.now_us;
        let connection = self.nodes[node].connections.entry(process).or_default();
        connection.is_up = true;
        connection.epoch += 1;
        connection.answered_at = now_us;
        let epoch = connection.epoch;
        for at in 0..self.all.len() {
            if self.has(process, at) {
                let wait = self.network.u64(1..20);
                self.plan_in(
                    wait,
                    Next::Subscribe {
                        node,
                        life,
                        process,
                        epoch,
                        at,
                    },
                );
            }
        }
    }

    fn has(&self, process: usize, at: usize) -> bool {
        let key = self.partitions.hot_key(self.all[at]);
        self.cluster.process_of(key.as_bytes()) == process
    }

    /// The server has subscribed a node.
    fn subscribe(&mut self, node: usize, process: usize, epoch: u32, at: usize) {
        let is_there = self.has(process, at) && !self.is_cut(node, process);
        let server = &self.cluster.processes[process];
        let Some(connection) = self.nodes[node].connections.get_mut(&process) else {
            return;
        };
        if connection.epoch != epoch || !connection.is_up || server.is_stopped || !is_there {
            return;
        }
        if connection.subscribed.insert(at) {
            self.push(node, process, Push::Subscribed(at));
        }
    }

    /// Once a second a node asks each server for a sign of life, and looks after its subscriptions.
    fn probe(&mut self, node: usize) {
        let life = self.nodes[node].life;
        for process in 0..self.cluster.processes.len() {
            let server = &self.cluster.processes[process];
            let (is_stopped, is_alive) = (server.is_stopped, server.is_alive);
            let is_cut = self.is_cut(node, process);
            let Some(connection) = self.nodes[node].connections.get(&process) else {
                if is_alive {
                    self.plan_in(
                        1,
                        Next::Reconnect {
                            node,
                            life,
                            process,
                        },
                    );
                }
                continue;
            };
            if !connection.is_up {
                continue;
            }
            let (epoch, answered_at) = (connection.epoch, connection.answered_at);
            if self.now_us - answered_at > SILENT_MS * 1_000 {
                self.tell(
                    node,
                    Event::Silent {
                        server: Server(process as u32),
                    },
                );
                self.disconnect(node, process);
                continue;
            }
            if is_stopped || is_cut {
                continue;
            }
            self.push(node, process, Push::Heard(self.now_us));
            for at in 0..self.all.len() {
                let connection = &self.nodes[node].connections[&process];
                if self.has(process, at) && !connection.subscribed.contains(&at) {
                    self.plan_in(
                        1,
                        Next::Subscribe {
                            node,
                            life,
                            process,
                            epoch,
                            at,
                        },
                    );
                }
            }
        }
        self.plan_in(1_000, Next::Probe { node, life });
    }

    /// Whose own state has changed says so.
    fn sweep(&mut self, node: usize) {
        let now = self.now();
        let one = &mut self.nodes[node];
        let life = one.life;
        let count = one.kinds.len();
        for slot in 0..count as u32 {
            let kinds = one.member.local().kinds(slot, now);
            let bits = u8::from(kinds.beat.is_some())
                | u8::from(kinds.stream) << 1
                | u8::from(kinds.open) << 2;
            if one.kinds[slot as usize] != bits {
                one.kinds[slot as usize] = bits;
                one.member.changed(Slot::new(slot), now);
            }
        }
        self.plan_in(SWEEP_MS, Next::Sweep { node, life });
        self.drain(node);
    }

    /// A node's own database has heard something of a slot.
    pub(crate) fn heard(&mut self, node: usize, slot: Slot) {
        let now = self.now();
        let one = &mut self.nodes[node];
        let at = slot.index() as usize;
        if one.kinds.len() <= at {
            one.kinds.resize(at + 1, 0);
        }
        one.member.changed(slot, now);
        let kinds = one.member.local().kinds(slot.index(), now);
        one.kinds[at] = u8::from(kinds.beat.is_some())
            | u8::from(kinds.stream) << 1
            | u8::from(kinds.open) << 2;
        self.drain(node);
    }

    // Faults.

    pub(crate) fn stop_server(&mut self, process: usize) {
        self.cluster.processes[process].is_stopped = true;
    }

    /// It does what lies in its buffers, of whichever connection first, in order of each.
    pub(crate) fn resume_server(&mut self, process: usize) {
        if !self.cluster.processes[process].is_alive {
            return;
        }
        self.cluster.processes[process].is_stopped = false;
        let stuck = self.stuck.remove(&process).unwrap_or_default();
        let mut by_node = BTreeMap::<usize, Vec<Next>>::new();
        for next in stuck {
            if let Next::Arrive { node, .. } = next {
                by_node.entry(node).or_default().push(next);
            }
        }
        let mut order: Vec<Vec<Next>> = by_node.into_values().collect();
        self.network.shuffle(&mut order);
        let mut at = self.now_us;
        for next in order.into_iter().flatten() {
            at += 20;
            self.plan_at(at, next);
        }
    }

    /// The primary of a shard dies, or is put down; nodes find the new one in time.
    pub(crate) fn fail_over(&mut self, shard: usize) {
        let old = self.cluster.primaries[shard];
        let skew = self.network.i64(-400..400);
        let new = self.cluster.fail_over(shard, skew);
        self.stuck.remove(&old);
        for node in 0..self.nodes.len() {
            if self.nodes[node].is_alive && !self.nodes[node].is_stopped {
                self.disconnect(node, old);
                let life = self.nodes[node].life;
                let wait = self.network.u64(20..RECONNECT_MS.1);
                self.plan_in(
                    wait,
                    Next::Reconnect {
                        node,
                        life,
                        process: new,
                    },
                );
            }
        }
    }

    /// A server dies; its replica does not know yet.
    pub(crate) fn kill_server(&mut self, shard: usize) {
        let process = self.cluster.primaries[shard];
        self.cluster.processes[process].is_stopped = true;
        for node in 0..self.nodes.len() {
            if self.nodes[node].is_alive && !self.nodes[node].is_stopped {
                self.disconnect(node, process);
            }
        }
    }

    /// Who had subscribed to it at the old place is told by the server that it is so no more.
    pub(crate) fn migrate(&mut self, at: usize, to: usize) {
        let key = self.partitions.hot_key(self.all[at]);
        let old = self.cluster.process_of(key.as_bytes());
        self.cluster.migrate(self.partitions.slot(self.all[at]), to);
        for node in 0..self.nodes.len() {
            let connections = &mut self.nodes[node].connections;
            let had = connections
                .get_mut(&old)
                .is_some_and(|one| one.subscribed.remove(&at));
            if had && self.nodes[node].is_alive && !self.has(old, at) {
                let event = Event::Unsubscribed {
                    partition: self.all[at],
                };
                if !self.nodes[node].is_stopped {
                    self.tell(node, event);
                }
            }
        }
    }

    pub(crate) fn heal_cut(&mut self, node: usize) {
        let cut = std::mem::take(&mut self.nodes[node].cut);
        let life = self.nodes[node].life;
        for process in 0..self.cluster.processes.len() {
            if !cut.contains(&self.cluster.processes[process].shard) {
                continue;
            }
            // What was under way comes now, if nobody has given up.
            let Some(connection) = self.nodes[node].connections.get_mut(&process) else {
                continue;
            };
            let (kept, epoch) = (std::mem::take(&mut connection.kept), connection.epoch);
            let at = connection.push_at.max(self.now_us);
            connection.push_at = at + kept.len() as u64 + 1;
            for (nth, push) in kept.into_iter().enumerate() {
                self.plan_at(
                    at + nth as u64,
                    Next::Push {
                        node,
                        life,
                        process,
                        epoch,
                        push,
                    },
                );
            }
        }
    }

    pub(crate) fn stop_node(&mut self, node: usize) {
        self.nodes[node].is_stopped = true;
    }

    pub(crate) fn resume_node(&mut self, node: usize) {
        self.nodes[node].is_stopped = false;
        let waiting = std::mem::take(&mut self.nodes[node].waiting);
        let now_us = self.now_us;
        for next in waiting {
            self.plan_at(now_us + 10, next);
        }
        // Whatever ended meanwhile is seen to have ended.
        for process in 0..self.cluster.processes.len() {
            if !self.cluster.processes[process].is_alive {
                self.disconnect(node, process);
            }
        }
    }

    /// Whether a balancer sends anybody there.
    pub(crate) fn is_ready(&self, node: usize) -> bool {
        let one = &self.nodes[node];
        one.is_alive && !one.is_stopped && one.member.standing(self.now()) == Standing::Member
    }

    /// The homes of users' beats as a node sees them. What words between nodes would tell within
    /// two seconds is known here at once.
    pub(crate) fn homes(&self, own: usize) -> HomeList {
        let (now, count) = (self.now(), self.partitions.count());
        let nodes = self.nodes.iter().enumerate();
        let alive = nodes.filter(|(_, one)| one.is_alive && !one.is_stopped);
        let homes = alive.filter_map(|(node, one)| {
            let standing = one.member.standing(now);
            let is_member = matches!(standing, Standing::Member | Standing::Doubtful);
            let is_home = is_member && one.member.is_renewed(RENEWED_MS, now);
            let away = one.member.partitions_away(now).map(|away| away.index());
            let away = match is_home {
                true => PartitionSet::new(away, count),
                false => PartitionSet::all(count),
            };
            let udp = udp_of(node);
            (is_home || node == own).then_some(Home { udp, away })
        });
        HomeList::new(homes.collect(), udp_of(own), count)
    }

    pub(crate) fn has_user(&self, node: usize, user: &UserBuf) -> bool {
        let now = self.now();
        let db = self.nodes[node].member.local();
        use greendot::fleet::member::Local;
        db.find(user.user()).is_some_and(|slot| {
            let kinds = db.own(slot, now).kinds;
            kinds.is_proof()
        })
    }
}
