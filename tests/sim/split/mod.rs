//! The split world: presence nodes, real-time nodes, and the network between them.
//!
//! Owns time, what is on its way, and what the run is made of. One virtual clock drives all; each
//! node has a wall clock of its own. How a node's shards turn is in `node.rs`, the links between
//! nodes in `links.rs`, what clients do and what goes wrong in `act.rs`, what must hold in
//! `checks.rs`. Each engine is driven as the shard thread drives it, each link as its
//! thread does.

mod act;
mod checks;
mod erasures;
mod farewells;
mod kernel;
mod links;
mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fastrand::Rng;
use greendot::engine::Mail;
use greendot::engine::settings::Settings;
use greendot::time::{Mono, Now, Unix};
use greendot::wire::beat::{FleetKey, Keys};
use greendot::wire::nodes::Nodes;

use crate::model::Rules;
use crate::sse::Response;
use crate::store::{self, EPOCH_MS};
use crate::world::Plan;
use act::{Client, Device, LONG_SILENCE_MS};
use checks::{Path, Truth};
use erasures::Ending;
use farewells::{Farewell, Later};
use links::{Call, Captured};
use node::{Conn, Node};

/// Seeds of a test run.
const SEEDS: u64 = 200;
const STEPS: u32 = 500;
/// Turns at one moment after which an engine is found to spin.
const SPIN_TURNS: u32 = 20_000;
/// Most nodes of a role.
const NODES_MAX: usize = 3;
/// Most shards of a node.
const SHARDS_MAX: u16 = 3;
/// Clients, each with a stream most of the time.
const CLIENTS: usize = 7;
/// A wall clock is off by at most so much, in ms: both ways, two nodes' clocks stay well within the
/// slack of a resumed stream.
const WALL_OFF_MS_MAX: i64 = 1_500;

/// Something on its way.
enum Parcel {
    /// From a node, or from a device, to a presence node.
    Datagram {
        from: Option<usize>,
        to: usize,
        bytes: Vec<u8>,
    },
    /// Between shards of one life of a node.
    Mail {
        node: usize,
        life: u64,
        shard: usize,
        mail: Mail,
    },
    /// A request of a link; nobody waits for an answer to one that is sent again.
    Request {
        call: Option<u64>,
        from: usize,
        to: usize,
        /// The life of the node that it is for: a connection does not outlive it.
        life: u64,
        bytes: Arc<[u8]>,
    },
    /// The answer to a call; None: it was refused, or there was none in time.
    Answer { call: u64, answer: Option<Response> },
}

/// What the runs are asked about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Seen {
    DatagramLost,
    DatagramLate,
    DatagramTwice,
    RequestLost,
    AnswerLost,
    RequestLate,
    PutAgain,
    TooLong,
    Refused,
    Warned,
    Partition,
    PresenceCrash,
    RealtimeCrash,
    ClockStep,
    Stall,
    Found,
    Lost,
    UnknownTold,
    ResumedElsewhere,
    Edited,
    Resync,
    ViewsCompared,
    VouchingChecked,
    IdTooNew,
    OlderTold,
    PassedOver,
    Unasked,
    Bundled,
    Goodbye,
    GoodbyeBelieved,
    LoggedOut,
    LoggedOutEverywhere,
    StreamLeft,
    PutOff,
    Erased,
    ErasedEnds,
    SlotUsedAgain,
    Gap,
    ByHand,
    IdsAwaited,
    OutageHidden,
}

const SEEN: [Seen; 41] = [
    Seen::DatagramLost,
    Seen::DatagramLate,
    Seen::DatagramTwice,
    Seen::RequestLost,
    Seen::AnswerLost,
    Seen::RequestLate,
    Seen::PutAgain,
    Seen::TooLong,
    Seen::Refused,
    Seen::Warned,
    Seen::Partition,
    Seen::PresenceCrash,
    Seen::RealtimeCrash,
    Seen::ClockStep,
    Seen::Stall,
    Seen::Found,
    Seen::Lost,
    Seen::UnknownTold,
    Seen::ResumedElsewhere,
    Seen::Edited,
    Seen::Resync,
    Seen::ViewsCompared,
    Seen::VouchingChecked,
    Seen::IdTooNew,
    Seen::OlderTold,
    Seen::PassedOver,
    Seen::Unasked,
    Seen::Bundled,
    Seen::Goodbye,
    Seen::GoodbyeBelieved,
    Seen::LoggedOut,
    Seen::LoggedOutEverywhere,
    Seen::StreamLeft,
    Seen::PutOff,
    Seen::Erased,
    Seen::ErasedEnds,
    Seen::SlotUsedAgain,
    Seen::Gap,
    Seen::ByHand,
    Seen::IdsAwaited,
    Seen::OutageHidden,
];

/// What a run came to.
#[derive(Clone, Debug)]
pub(crate) struct SplitOutcome {
    trace: u64,
    seen: BTreeMap<Seen, u64>,
    lasted_ms: u64,
}

pub(crate) struct Split {
    plan: Plan,
    step: u32,
    settings: Arc<Settings>,
    rules: Rules,
    network: Rng,
    workload: Rng,
    faults: Rng,
    mono: u64,
    healed: bool,
    /// Users are erased in this run, and goodbyes said in all forms.
    forgetful: bool,
    /// Of 256 datagrams so many are lost.
    loss: u8,

    keys: Arc<Keys>,
    key: FleetKey,
    /// Presence nodes first.
    nodes: Vec<Node>,
    presences: usize,
    hashing: Arc<Nodes>,
    /// Until then (mono) nobody ends a stream and nothing else goes wrong: an outage is to be seen
    /// by itself.
    undisturbed_until: u64,
    /// Pairs of a presence and a real-time node that do not reach each other, and until when.
    cuts: BTreeMap<(usize, usize), u64>,
    parcels: BTreeMap<(u64, u64), Parcel>,
    parcels_sent: u64,
    calls: BTreeMap<u64, Call>,
    /// What was published lately.
    captured: Vec<Captured>,
    conns: BTreeMap<u32, Conn>,
    conns_made: u32,
    clients: Vec<Client>,
    devices: Vec<Device>,

    names: Vec<String>,
    /// The presence node of each user.
    owners: Vec<usize>,
    truths: Vec<Truth>,
    /// Goodbyes that presence nodes have heard lately.
    farewells: Vec<Farewell>,
    /// Goodbyes that presence nodes have put off.
    later: Vec<Later>,
    /// Streams that must end.
    endings: Vec<Ending>,
    /// Slots at presence nodes whose users were erased, until somebody else has one.
    left_slots: BTreeSet<(usize, u32)>,
    /// From a real-time node (counted from the first) to a presence node.
    paths: Vec<Vec<Path>>,

    trace: u64,
    seen: BTreeMap<Seen, u64>,
}

impl Split {
    fn new(plan: Plan) -> Split {
        let stream =
            |salt: u64| Rng::with_seed(plan.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ salt);
        let mut faults = stream(13);
        let (presences, realtimes) = (faults.usize(1..=NODES_MAX), faults.usize(1..=NODES_MAX));
        let tiny = Settings::tiny();
        // In a third of the runs requests between nodes are found too long.
        let narrow = faults.u8(0..3) == 0;
        // In half of them beats are so rare that after an outage nobody can wait for them.
        let rare = faults.bool();
        let settings = Settings {
            beat_interval_ms: if rare { 15_000 } else { tiny.beat_interval_ms },
            offline_after_ms: if rare { LONG_SILENCE_MS } else { 5_000 },
            beat_skew_max_ms: 12_000,
            sweep_interval_ms: 250,
            keep_alive_ms: 15_000,
            // Here streams last as long as their clients want.
            stream_life_ms: 3_600_000,
            conns_max: 64,
            head_bytes_max: 8_192,
            body_bytes_max: if narrow { 4_096 } else { 1 << 20 },
            buffer_bytes_max: 4 << 20,
            query_users_max: if narrow { 4 } else { 1_000 },
            request_deadline_ms: 10_000,
            watches_per_stream_max: 16,
            watches_per_shard_max: 200,
            sweep_slots_per_turn_max: 4_096,
            leaves_put_off_max: 1_000,
            ..tiny
        };
        assert_eq!(settings.check(), Ok(()));
        let rules = Rules {
            beat_interval_ms: settings.beat_interval_ms,
            offline_after_ms: settings.offline_after_ms,
            sweep_interval_ms: settings.sweep_interval_ms,
            beat_skew_max_ms: settings.beat_skew_max_ms,
            hold_ms: settings.offline_after_ms,
        };
        let key = FleetKey::new([7; 32]);
        let keys = Keys::parse(&key.to_hex()).expect("one key");
        let mut names = store::users();
        // For all of these every store has room.
        names.truncate(names.len() - 1);
        let addresses: Vec<String> = (0..presences)
            .map(|node| format!("10.0.0.{node}:8081"))
            .collect();
        let hashing = Nodes::new(addresses.iter().map(String::as_str));
        let owners = names
            .iter()
            .map(|name| hashing.of(name.as_bytes()))
            .collect();
        let known = store::known_users();
        let mut split = Split {
            plan,
            step: 0,
            settings: Arc::new(settings),
            rules,
            network: stream(11),
            workload: stream(12),
            loss: [0, 0, 26, 77][faults.usize(0..4)],
            faults,
            mono: 10_000,
            healed: false,
            forgetful: plan.seed % 3 == 1,
            keys: Arc::new(keys),
            key,
            nodes: Vec::new(),
            presences,
            hashing: Arc::new(hashing),
            undisturbed_until: 0,
            cuts: BTreeMap::new(),
            parcels: BTreeMap::new(),
            parcels_sent: 0,
            calls: BTreeMap::new(),
            captured: Vec::new(),
            conns: BTreeMap::new(),
            conns_made: 0,
            clients: Vec::new(),
            devices: Vec::new(),
            truths: (0..names.len())
                .map(|user| Truth::new(user < known))
                .collect(),
            farewells: Vec::new(),
            later: Vec::new(),
            endings: Vec::new(),
            left_slots: BTreeSet::new(),
            names,
            owners,
            paths: vec![vec![Path::default(); presences]; realtimes],
            trace: 0xcbf2_9ce4_8422_2325,
            seen: BTreeMap::new(),
        };
        for node in 0..presences + realtimes {
            let off_ms = split.faults.i64(-300..=300);
            let anchor = EPOCH_MS as i64 - 1_000 + off_ms;
            split.nodes.push(Node::new(anchor, node < presences));
            split.boot(node);
        }
        split.populate();
        split
    }

    fn is_presence(&self, node: usize) -> bool {
        node < self.presences
    }

    fn wall(&self, node: usize) -> u64 {
        (self.mono as i64 + self.nodes[node].anchor).max(0) as u64
    }

    fn now(&self, node: usize) -> Now {
        Now {
            mono: Mono::from_micros(self.mono * 1_000),
            unix: Unix::from_ms(self.wall(node)),
        }
    }

    /// Ends the run: names what is needed to see it again.
    fn fail(&self, why: String) -> ! {
        panic!(
            "{why}\n  at step {} ({} ms, {} presence and {} real-time nodes); replay with\n  \
             SIM_SEED=0x{:x} SIM_STEPS={} cargo test --test sim split_",
            self.step,
            self.mono,
            self.presences,
            self.nodes.len() - self.presences,
            self.plan.seed,
            self.plan.steps
        )
    }

    /// Tells what happens, if it was asked for with SIM_LOG=1.
    fn say(&self, what: impl FnOnce() -> String) {
        if self.plan.log {
            println!("{:>7} ms, step {}: {}", self.mono, self.step, what());
        }
    }

    fn saw(&mut self, what: Seen) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// Adds to the trace.
    fn note(&mut self, bytes: &[u8]) {
        self.trace = crate::trace(crate::trace(self.trace, &self.mono.to_le_bytes()), bytes);
    }

    fn send(&mut self, parcel: Parcel, delay_ms: u64) {
        self.parcels_sent += 1;
        self.parcels
            .insert((self.mono + delay_ms, self.parcels_sent), parcel);
    }

    fn is_cut(&self, one: usize, other: usize) -> bool {
        let until = self.cuts.get(&(one.min(other), one.max(other)));
        until.is_some_and(|until| *until > self.mono)
    }

    /// When something is due at the latest.
    fn next_due(&self) -> u64 {
        let parcel = self.parcels.first_key_value().map(|((at, _), _)| *at);
        let nodes = self.nodes.iter().map(Node::due);
        let devices = self.devices.iter().map(|device| device.due);
        let clients = self.clients.iter().filter_map(Client::due);
        let dues = parcel
            .into_iter()
            .chain(nodes)
            .chain(devices)
            .chain(clients);
        dues.min().unwrap_or(u64::MAX)
    }

    /// Lets everything happen that is due up to `until`, and makes it that time.
    fn run_until(&mut self, until: u64) {
        let mut spins = 0;
        loop {
            let next = self.next_due().min(until).max(self.mono);
            if next > self.mono {
                spins = 0;
                self.mono = next;
            }
            self.fire_clients();
            while let Some(entry) = self
                .parcels
                .first_entry()
                .filter(|entry| entry.key().0 <= self.mono)
            {
                let parcel = entry.remove();
                self.deliver(parcel);
            }
            let mut turned = false;
            for node in 0..self.nodes.len() {
                turned |= self.drive(node);
            }
            spins += 1;
            if spins > SPIN_TURNS {
                self.fail("turns without end at one moment".into());
            }
            if !turned && self.mono >= until {
                break;
            }
        }
        self.check_moment();
    }

    fn deliver(&mut self, parcel: Parcel) {
        match parcel {
            Parcel::Datagram { from, to, bytes } => {
                let cut = from.is_some_and(|from| self.is_cut(from, to));
                let shard = self.network.usize(..);
                if let Some(up) = self.nodes[to].up.as_mut().filter(|_| !cut) {
                    let shard = shard % up.shards.len();
                    up.shards[shard].datagrams.push_back(bytes);
                    up.shards[shard].wake = 0;
                }
            }
            Parcel::Mail {
                node,
                life,
                shard,
                mail,
            } => {
                if self.nodes[node].life == life && self.nodes[node].up.is_some() {
                    self.post(node, shard, mail);
                }
            }
            Parcel::Request {
                call,
                from,
                to,
                life,
                bytes,
            } => self.deliver_request(call, from, to, life, &bytes),
            Parcel::Answer { call, answer } => self.deliver_answer(call, answer),
        }
    }

    fn outcome(self) -> SplitOutcome {
        SplitOutcome {
            trace: self.trace,
            seen: self.seen,
            lasted_ms: self.mono,
        }
    }
}

/// Runs one plan to its end; Err: what went wrong.
pub(crate) fn run(plan: Plan) -> Result<SplitOutcome, String> {
    crate::caught(plan, || {
        let mut split = Split::new(plan);
        for step in 0..plan.steps {
            split.step = step;
            crate::STEP.set(step);
            split.next_step();
        }
        split.converge();
        split.outcome()
    })
}

/// The plan of a seed.
pub(crate) fn plan(seed: u64) -> Plan {
    Plan {
        steps: crate::from_env("SIM_STEPS").map_or(STEPS, |steps| steps as u32),
        ..crate::plan(seed)
    }
}

#[test]
fn split_many_seeds() {
    let seeds = crate::seeds(SEEDS);
    let plans: Vec<Plan> = seeds.iter().map(|seed| plan(*seed)).collect();
    let outcomes = crate::all_pass(&plans, run, |outcome| outcome.lasted_ms);
    let sum = |what: &Seen| {
        outcomes
            .iter()
            .filter_map(|outcome| outcome.seen.get(what))
            .sum()
    };
    let counts: Vec<(Seen, u64)> = SEEN.iter().map(|what| (*what, sum(what))).collect();
    for (what, count) in &counts {
        println!("  {what:?} {count}");
    }
    if seeds.len() >= 100 {
        let missed: Vec<_> = counts.iter().filter(|(_, count)| *count == 0).collect();
        assert!(missed.is_empty(), "never happened in any run: {missed:?}");
    }
}

#[test]
fn split_the_same_seed_is_the_same_run() {
    for seed in [2, 5, 11] {
        let plan = Plan {
            steps: 200,
            ..plan(seed)
        };
        let once = || run(plan).map(|outcome| (outcome.trace, outcome.lasted_ms));
        assert_eq!(once(), once(), "seed {seed}");
    }
}
