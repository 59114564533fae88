//! One run: users with devices that come, roam and go, faults, and what must hold of it all.

use std::collections::BTreeMap;
use std::ops::Range;

use fastrand::Rng;
use greendot::engine::Place;
use greendot::fleet::flags::{Saying, UserFlags};
use greendot::fleet::held::{Here, RING_MESSAGES, ring_field};
use greendot::fleet::message::Message;
use greendot::fleet::partition::LANES;
use greendot::planted::{self, Planted};
use greendot::status::Status;
use greendot::time::Unix;
use greendot::wire::UserBuf;

use crate::cluster::SHARDS;
use crate::db::OFFLINE_AFTER_MS;
use crate::faults::{Fault, Step};
use crate::world::{EPOCH_MS, SETTLE_MS, World, udp_of};

const USERS: usize = 90;
const NODES: usize = 3;
/// Time between two beats of a device.
const BEAT_MS: (u64, u64) = (1_200, 2_400);
/// Who came back only so long ago may be told as gone still: what was said before is under way.
const UNDER_WAY_MS: u64 = 2_500;
/// So far a server's clock may be off.
const SKEW_MS: u64 = 400;
/// What is said at a node that hears no answers is done by then.
const MUFFLED_MS: u64 = 6_000;
/// After that nobody who has gone is told to be here, if nothing is wrong.
const GHOST_MS: u64 = OFFLINE_AFTER_MS + SETTLE_MS + 4_000;
/// A node that was stopped has taken in what came meanwhile.
const WAKING_MS: u64 = 20;
/// Something breaks then.
const BREAKS_MS: u64 = 22_000;
/// All nodes agree so long after the last fault.
const HEALED_MS: u64 = 15_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Absent,
    Beats,
    /// A stream that vouches, at that node.
    Vouched(usize),
    /// A stream whose holder beats by itself.
    Open(usize),
    /// A stream of somebody who was logged out or erased: that node has yet to end it.
    Ending(usize),
}

impl Way {
    fn streams_at(self, node: usize) -> bool {
        [Way::Vouched(node), Way::Open(node), Way::Ending(node)].contains(&self)
    }
}

struct Device {
    user: usize,
    way: Way,
    /// How long it will go on so.
    until_ms: u64,
    next_ms: u64,
}

/// What is true of a user.
#[derive(Clone, Copy, Default)]
struct Truth {
    /// When it was last heard of by a node that counts; 0: never, or it has gone.
    alive_ms: u64,
    /// When it was heard of last, whether it has said goodbye since or not.
    heard_ms: u64,
    /// Since when without a break.
    since_ms: u64,
    /// When what was true changed last.
    changed_ms: u64,
    /// A node that was cut off for longer than its lease was concerned then.
    excused_ms: u64,
    /// What it says of itself; when it said so last.
    flags: Option<UserFlags>,
    said_ms: u64,
    /// A fault has come since, or was there: Redis may have lost it, or been told of two sayings in
    /// another order.
    is_lost: bool,
    /// It has hidden once.
    has_hidden: bool,
    /// Its `since` may be told anew: it has left its devices once, or somebody of its partition was
    /// told to go.
    may_come_anew: bool,
    /// How often it was logged out or erased, and how often each node was told so.
    sent_away: u32,
    sent_away_ms: u64,
    ended: [u32; NODES],
}

impl Truth {
    /// The latest that may be told as since when it is here, of a stay that does not begin within
    /// these times. None: it may be told anew.
    fn since_max_ms(&self, broken: &Range<u64>) -> Option<u64> {
        let excused_ms = match self.excused_ms {
            0 => 0,
            ms => ms + 3 * OFFLINE_AFTER_MS,
        };
        // It may have gone and come within as well.
        let begins_within = [self.since_ms + UNDER_WAY_MS, excused_ms]
            .iter()
            .any(|ms| broken.contains(ms));
        let stays = !self.may_come_anew && !self.has_hidden && !begins_within;
        stays.then_some(excused_ms.max(self.since_ms + UNDER_WAY_MS) + SKEW_MS)
    }

    /// Whether it hides, or may be told as one who does.
    fn may_hide(&self, now_ms: u64) -> bool {
        let hides = self.flags.is_some_and(|flags| flags.invisible);
        let is_lost = self.is_lost && self.has_hidden;
        hides || is_lost || now_ms.saturating_sub(self.said_ms) < UNDER_WAY_MS
    }
}

pub(crate) struct Fleet {
    world: World,
    random: Rng,
    seed: u64,
    users: Vec<UserBuf>,
    truth: Vec<Truth>,
    devices: Vec<Device>,
    plan: Vec<(u64, Step)>,
    fault: Fault,
    /// Nodes that may be taken for dead, until then.
    excused: [u64; NODES],
    /// A node that was stopped takes in what came meanwhile, until then. Its watchers are told once
    /// it has.
    waking: (usize, u64),
    broken_ms: u64,
    pub failures: Vec<String>,
    pub seen: BTreeMap<&'static str, u64>,
}

const DEVICES: usize = 0;
const CHECK: usize = 1;
const FIRST_STEP: usize = 10;

impl Fleet {
    pub(crate) fn new(seed: u64, fault: Fault) -> Fleet {
        let mut random = Rng::with_seed(seed ^ 0x7573_6572_7300);
        let users: Vec<UserBuf> = (0..USERS)
            .map(|number| UserBuf::from_text(format!("user-{number}")).unwrap())
            .collect();
        let devices = (0..USERS + USERS / 4).map(|number| Device {
            user: number % USERS,
            way: Way::Absent,
            until_ms: random.u64(4_000..14_000),
            next_ms: 0,
        });
        let devices = devices.collect();
        let mut faults = Rng::with_seed(seed ^ 0x6661_756c_7400);
        let (plan, end_ms) = fault.plan(&mut faults, BREAKS_MS);
        Fleet {
            world: World::new(seed, NODES),
            random,
            seed,
            truth: vec![Truth::default(); USERS],
            users,
            devices,
            plan,
            fault,
            excused: [0; NODES],
            waking: (0, 0),
            broken_ms: end_ms,
            failures: Vec::new(),
            seen: BTreeMap::new(),
        }
    }

    /// To the end: all that is broken is whole again, and time enough has passed.
    pub(crate) fn run(&mut self) {
        for node in 0..NODES {
            self.follow_all(node);
        }
        self.world.plan(50, DEVICES);
        self.world.plan(1_000, CHECK);
        for (nth, (at_ms, _)) in self.plan.iter().enumerate() {
            self.world.plan(*at_ms - self.world.ms(), FIRST_STEP + nth);
        }
        let end_ms = self.broken_ms + HEALED_MS + 9_000;
        while self.world.ms() < end_ms && self.failures.is_empty() {
            match self.world.step() {
                Some(DEVICES) => {
                    self.move_devices();
                    self.act();
                    self.world.plan(50, DEVICES);
                }
                Some(CHECK) => {
                    self.check();
                    self.world.plan(500, CHECK);
                }
                Some(step) => self.break_something(step - FIRST_STEP),
                None => {}
            }
            self.listen();
        }
        for node in &self.world.nodes {
            let counts = node.member.counts();
            for (name, count) in [
                ("late", counts.late),
                ("duplicates", counts.duplicates),
                ("reconciles", counts.reconciles),
                ("repairs", counts.repairs),
                ("rings", counts.rings),
                ("lives", counts.lives),
                ("fences", counts.fences),
                ("reaped", counts.reaped),
                ("vouches", counts.vouches),
                ("malformed", counts.malformed),
                ("refused", counts.refused),
            ] {
                *self.seen.entry(name).or_default() += count;
            }
        }
        if *self.seen.entry("malformed").or_default() > 0 {
            self.fail("something was malformed".to_owned());
        }
    }

    fn fail(&mut self, what: String) {
        let (ms, seed, fault) = (self.world.ms(), self.seed, self.fault);
        self.failures
            .push(format!("{what}, at {ms} ms (seed {seed}, {fault:?})"));
    }

    fn follow_all(&mut self, node: usize) {
        let now = self.world.now();
        for user in &self.users {
            self.world.nodes[node].member.ask(user.user(), false, now);
        }
        self.world.drain(node);
    }

    // Users.

    fn move_devices(&mut self) {
        let now_ms = self.world.ms();
        for at in 0..self.devices.len() {
            let Device {
                user,
                way,
                until_ms,
                next_ms,
            } = self.devices[at];
            self.vouch(user, way);
            if let Way::Ending(node) = way {
                // Its holder waits for the node's word.
                if !self.world.nodes[node].is_alive {
                    self.devices[at].way = Way::Absent;
                }
            } else if now_ms >= until_ms {
                self.change(at);
            } else if matches!(way, Way::Beats | Way::Open(_)) && now_ms >= next_ms {
                let node = match way {
                    Way::Open(node) if self.random.bool() => Some(node),
                    _ => None,
                };
                self.beat(user, node);
                self.devices[at].next_ms = now_ms + self.random.u64(BEAT_MS.0..BEAT_MS.1);
            }
        }
    }

    /// A stream that vouches does so all the time.
    fn vouch(&mut self, user: usize, way: Way) {
        if let Way::Vouched(node) | Way::Open(node) = way {
            if !self.world.nodes[node].is_alive {
                // Its holder notices, and comes anew.
                let at = self
                    .devices
                    .iter()
                    .position(|one| one.user == user && one.way == way);
                if let Some(at) = at {
                    self.devices[at].way = Way::Absent;
                    let soon = self.world.ms() + self.random.u64(50..900);
                    self.devices[at].until_ms = self.devices[at].until_ms.min(soon);
                }
                return;
            }
            if matches!(way, Way::Vouched(_)) {
                self.lives(user, node);
                // Its turn in the interval of beats.
                if self.world.ms() % BEAT_MS.0 < 50 && !self.world.nodes[node].cut.is_empty() {
                    self.hand_over(user, node);
                }
            }
        }
    }

    fn change(&mut self, at: usize) {
        let now_ms = self.world.ms();
        let Device { user, way, .. } = self.devices[at];
        let is_leaving = way != Way::Absent;
        self.close(user, way);
        let next = match self.random.u8(..10) {
            _ if is_leaving && self.random.u8(..3) > 0 => Way::Absent,
            0..6 => Way::Beats,
            6..8 => self.sent_to(None).map_or(Way::Beats, Way::Vouched),
            _ => self.sent_to(None).map_or(Way::Beats, Way::Open),
        };
        if is_leaving && next == Way::Absent && self.random.bool() {
            self.goodbye(user);
        }
        self.devices[at].way = next;
        let stay = match next {
            Way::Absent => self.random.u64(200..16_000),
            _ => self.random.u64(3_000..45_000),
        };
        self.devices[at].until_ms = now_ms + stay;
        self.devices[at].next_ms = now_ms;
        self.open(user, next);
    }

    fn open(&mut self, user: usize, way: Way) {
        let (node, vouches) = match way {
            Way::Vouched(node) => (node, true),
            Way::Open(node) => (node, false),
            Way::Absent | Way::Beats | Way::Ending(_) => return,
        };
        self.stream(user, node, vouches, true);
        if vouches {
            self.lives(user, node);
            self.hand_over(user, node);
        }
    }

    fn close(&mut self, user: usize, way: Way) {
        match way {
            Way::Vouched(node) => {
                self.lives(user, node);
                self.hand_over(user, node);
                self.stream(user, node, true, false);
            }
            Way::Open(node) => self.stream(user, node, false, false),
            Way::Absent | Way::Beats | Way::Ending(_) => {}
        }
    }

    fn stream(&mut self, user: usize, node: usize, vouches: bool, opens: bool) {
        if !self.world.nodes[node].is_alive {
            return;
        }
        let (now, name) = (self.world.now(), self.users[user].clone());
        let db = self.world.nodes[node].member.local_mut();
        let slot = db.stream(name.user(), vouches, opens, now);
        self.world.heard(node, slot);
    }

    /// A node that a balancer sends somebody to.
    fn ready(&mut self, wish: Option<usize>) -> Option<usize> {
        let ready: Vec<usize> = (0..NODES)
            .filter(|&node| self.world.is_ready(node))
            .collect();
        if let Some(wish) = wish.filter(|wish| ready.contains(wish)) {
            return Some(wish);
        }
        match ready.is_empty() {
            false => Some(ready[self.random.usize(..ready.len())]),
            true => {
                let can = |node: &usize| {
                    let one = &self.world.nodes[*node];
                    one.is_alive && !one.is_stopped
                };
                let alive: Vec<usize> = (0..NODES).filter(can).collect();
                (!alive.is_empty()).then(|| alive[self.random.usize(..alive.len())])
            }
        }
    }

    /// The same of a balancer that does not ask whether a node is ready, if one is cut off from a
    /// part of Redis.
    fn sent_to(&mut self, wish: Option<usize>) -> Option<usize> {
        let is_blind = self.fault == Fault::NodeCutFromOne;
        match wish.filter(|_| is_blind) {
            Some(wish) => Some(wish),
            None if is_blind => Some(self.random.usize(..NODES)),
            None => self.ready(wish),
        }
    }

    /// A node that holds a stream of a user's tells another one, if it can not tell Redis.
    fn hand_over(&mut self, user: usize, node: usize) {
        let homes = self.world.homes(node);
        let name = self.users[user].clone();
        if let Place::Both(home) = homes.place(name.user()) {
            let home = homes.homes()[home].udp;
            let home = (0..NODES).find(|node| udp_of(*node) == home);
            self.record(user, home.expect("a node"));
            *self.seen.entry("handed over").or_default() += 1;
        }
    }

    fn beat(&mut self, user: usize, wish: Option<usize>) {
        // Some stay where they are, some are sent anywhere.
        let stays = (!user.is_multiple_of(3)).then_some(user % NODES);
        let Some(node) = self.sent_to(wish.or(stays)) else {
            return;
        };
        let homes = self.world.homes(node);
        let node_at = |home: usize| {
            let udp = homes.homes()[home].udp;
            (0..NODES).find(|node| udp_of(*node) == udp)
        };
        let has_stream = self
            .devices
            .iter()
            .any(|device| device.user == user && device.way.streams_at(node));
        let (here, there) = match homes.place(self.users[user].user()) {
            Place::Here => (true, None),
            Place::There(_) if has_stream => (true, None),
            Place::There(home) => (false, node_at(home)),
            Place::Both(home) => (true, node_at(home)),
        };
        *self.seen.entry("passed on").or_default() += u64::from(there.is_some());
        for node in there.into_iter().chain(here.then_some(node)) {
            self.record(user, node);
        }
        self.lives(user, there.unwrap_or(node));
    }

    /// A beat counts at a node.
    fn record(&mut self, user: usize, node: usize) {
        let (now, name) = (self.world.now(), self.users[user].clone());
        let db = self.world.nodes[node].member.local_mut();
        let slot = db.beat(name.user(), now.unix, now);
        if std::env::var("FLEET_SIM_TRACE").is_ok_and(|one| one == name.as_str()) {
            println!("{} beat at {node}", self.world.ms());
        }
        self.world.heard(node, slot);
    }

    /// A node that counts has heard of the user.
    fn lives(&mut self, user: usize, node: usize) {
        let now_ms = self.world.ms();
        // What only a cut-off node hears is handed to another one, if that can tell of it.
        let is_cut = |node: usize| !self.world.nodes[node].cut.is_empty();
        let is_partial = matches!(self.fault, Fault::NodeCutFromOne | Fault::NodeCutShort);
        let mut others = (0..NODES).filter(|other| *other != node && !is_cut(*other));
        let is_deaf = is_partial && is_cut(node) && !others.any(|other| self.world.is_ready(other));
        // It says nothing more before it knows what came of what it has said.
        let is_muffled = self.world.nodes[node].is_muffled;
        let truth = &mut self.truth[user];
        if self.excused[node] > now_ms || is_deaf || is_muffled {
            truth.excused_ms = now_ms;
            return;
        }
        if truth.alive_ms == 0 || now_ms - truth.alive_ms > OFFLINE_AFTER_MS - 1_000 {
            truth.since_ms = now_ms;
            truth.changed_ms = now_ms;
        }
        truth.alive_ms = now_ms;
        truth.heard_ms = now_ms;
    }

    fn goodbye(&mut self, user: usize) {
        let Some(node) = self.ready(None) else {
            return;
        };
        let (now, name) = (self.world.now(), self.users[user].clone());
        let member = &mut self.world.nodes[node].member;
        // Of a beat and a goodbye of one moment either may count; here the beat does.
        let sent = now.unix.minus_ms(1);
        let kinds = member.local_mut().goodbye(name.user(), sent);
        member.said_goodbye(name.user(), kinds, sent, sent, now);
        self.world.drain(node);
        let has_stream = self.devices.iter().any(|device| {
            device.user == user && (0..NODES).any(|node| device.way.streams_at(node))
        });
        let truth = &mut self.truth[user];
        truth.changed_ms = self.world.ms();
        if !has_stream && truth.alive_ms < truth.changed_ms {
            truth.alive_ms = 0;
        } else {
            // Another device's stream may keep it, or end before the goodbye is judged.
            truth.excused_ms = self.world.ms();
        }
    }

    /// Now and then somebody is logged out everywhere or erased, or shows another status.
    fn act(&mut self) {
        let chance = self.random.u16(..2_000);
        let user = self.random.usize(..USERS);
        let (now, name) = (self.world.now(), self.users[user].clone());
        let Some(node) = self.ready(None).filter(|_| chance < 60) else {
            return;
        };
        let member = &mut self.world.nodes[node].member;
        let what = match chance {
            0..10 => {
                member.log_out(name.user(), now.unix, None, now);
                "log-outs"
            }
            10..20 => {
                member.erase(name.user(), None, now);
                "erasures"
            }
            20..30 => {
                let slot = member
                    .local_mut()
                    .attend(name.user(), chance.is_multiple_of(2));
                self.world.heard(node, slot);
                self.truth[user].may_come_anew = true;
                "attended"
            }
            _ => {
                self.say(user, node, chance);
                "flags"
            }
        };
        self.world.drain(node);
        *self.seen.entry(what).or_default() += 1;
        self.truth[user].changed_ms = self.world.ms();
        if matches!(what, "flags" | "attended") {
            return;
        }
        if what == "erasures" {
            let now_ms = self.world.ms();
            let truth = &mut self.truth[user];
            truth.is_lost |= self.fault.mixes(now_ms.saturating_sub(truth.said_ms));
            (truth.flags, truth.said_ms) = (None, now_ms);
        }
        self.send_away(user);
    }

    /// Some are logged out at a node.
    fn log_out_some(&mut self, node: usize) {
        let now = self.world.now();
        for _ in 0..6 {
            let user = self.random.usize(..USERS);
            let name = self.users[user].clone();
            let member = &mut self.world.nodes[node].member;
            member.log_out(name.user(), now.unix, None, now);
            self.truth[user].changed_ms = self.world.ms();
            self.send_away(user);
        }
        self.world.drain(node);
    }

    /// Somebody was logged out, or erased.
    fn send_away(&mut self, user: usize) {
        self.truth[user].sent_away += 1;
        self.truth[user].sent_away_ms = self.world.ms();
        // Of who goes by then Redis may have lost that somebody else was here before.
        let partition = self.world.partitions.of(self.users[user].user());
        for (truth, of) in self.truth.iter_mut().zip(&self.users) {
            truth.may_come_anew |= self.world.partitions.of(of.user()) == partition;
        }
        // Its devices beat no more, and all its streams are to end; until then anything may be
        // told.
        let now_ms = self.world.ms();
        for device in self.devices.iter_mut().filter(|device| device.user == user) {
            device.way = match device.way {
                Way::Vouched(node) | Way::Open(node) | Way::Ending(node) => Way::Ending(node),
                Way::Absent | Way::Beats => Way::Absent,
            };
            device.until_ms = now_ms + self.random.u64(500..9_000);
        }
        let truth = &mut self.truth[user];
        (truth.alive_ms, truth.excused_ms) = (0, now_ms);
    }

    /// Somebody says something of itself, or a part of it.
    fn say(&mut self, user: usize, node: usize, chance: u16) {
        let (now, name) = (self.world.now(), self.users[user].clone());
        let said = Saying {
            status: (chance % 4 != 1).then(|| Status::ALL[usize::from(chance) % 3]),
            invisible: (chance % 4 != 2).then(|| chance.is_multiple_of(3)),
        };
        let member = &mut self.world.nodes[node].member;
        member.local_mut().say(name.user(), said);
        member.set_flags(name.user(), said, None, now);
        if std::env::var("FLEET_SIM_TRACE").is_ok_and(|one| one == name.as_str()) {
            println!("{} at {node} says {said:?}", self.world.ms());
        }
        let now_ms = self.world.ms();
        let truth = &mut self.truth[user];
        truth.flags = Some(truth.flags.unwrap_or(UserFlags::PLAIN).after(said));
        // Told as gone, or as here again, it is as of then.
        truth.since_ms = now_ms;
        truth.has_hidden |= truth.flags.is_some_and(|flags| flags.invisible);
        let begin_ms = self.plan.first().map_or(u64::MAX, |(at, _)| *at);
        let broken = begin_ms..self.broken_ms + HEALED_MS;
        truth.is_lost = self.fault.mixes(now_ms.saturating_sub(truth.said_ms))
            || !self.fault.spares_redis() && broken.contains(&now_ms);
        // It waits there for what was said before.
        let waits = self.world.nodes[node].is_muffled;
        truth.said_ms = now_ms + if waits { MUFFLED_MS } else { 0 };
    }

    // Faults.

    fn break_something(&mut self, nth: usize) {
        let (_, step) = self.plan[nth].clone();
        if std::env::var("FLEET_SIM_TRACE").is_ok() {
            println!("{} {step:?}", self.world.ms());
        }
        let now_ms = self.world.ms();
        // What is said of somebody who is away Redis alone keeps, and two nodes that do not reach
        // it need not say what they were told in the same order.
        if !self.fault.spares_redis() {
            self.truth.iter_mut().for_each(|truth| truth.is_lost = true);
        }
        let world = &mut self.world;
        match step {
            Step::KillNode(node) => {
                world.kill(node);
                // Whoever was there comes back when it is noticed.
                let gone = |truth: &mut Truth| truth.changed_ms = now_ms;
                self.truth.iter_mut().for_each(gone);
            }
            Step::StartNode(node) => {
                world.start(node);
                self.follow_all(node);
            }
            Step::Deafen(node) => world.nodes[node].is_deaf = true,
            Step::Undeafen(node) => world.nodes[node].is_deaf = false,
            Step::Muffle(node) => world.nodes[node].is_muffled = true,
            Step::Unmuffle(node) => world.nodes[node].is_muffled = false,
            Step::SaySome(node) => {
                for _ in 0..12 {
                    let user = self.random.usize(..USERS);
                    let chance = self.random.u16(..2_000);
                    self.say(user, node, chance);
                }
                self.world.drain(node);
            }
            Step::LogOutSome(node) => self.log_out_some(node),
            Step::StopAtFence => world.stops_at_fence = true,
            Step::Leave(node) => world.nodes[node].member.leave(),
            Step::StopNode(node) => world.stop_node(node),
            Step::ResumeNode(node) => {
                world.resume_node(node);
                self.waking = (node, now_ms + WAKING_MS);
            }
            Step::Cut(node, shard) => {
                world.nodes[node].cut.insert(shard);
            }
            Step::Heal(node) => world.heal_cut(node),
            Step::Excuse(node, ms) => {
                self.excused[node] = now_ms + ms;
                for user in 0..USERS {
                    if self.world.has_user(node, &self.users[user]) {
                        self.truth[user].excused_ms = now_ms + ms;
                    }
                }
            }
            Step::StopServer(shard) => world.stop_server(world.cluster.primaries[shard]),
            Step::ResumeServer(shard) => world.resume_server(world.cluster.primaries[shard]),
            Step::KillServer(shard) => world.kill_server(shard),
            Step::FallBehind(shard) => world.cluster.fall_behind(shard),
            Step::FailOver(shard) => world.fail_over(shard),
            Step::Migrate(partition, shard) => world.migrate(partition, shard),
            Step::Delete(partition) => {
                let all: Vec<_> = world.partitions.all().collect();
                let key = world.partitions.hot_key(all[partition]).into_bytes();
                let process = world.cluster.process_of(&key);
                world.cluster.processes[process].data.remove(&key);
            }
            Step::DeleteLanes => {
                for lane in LANES {
                    let process = world.cluster.process_of(lane.as_bytes());
                    world.cluster.processes[process]
                        .data
                        .remove(lane.as_bytes());
                }
            }
            Step::FlushAll => {
                for shard in 0..SHARDS {
                    let process = world.cluster.primaries[shard];
                    world.cluster.processes[process].data.clear();
                }
            }
            Step::Disconnect(node, shard) => {
                let process = world.cluster.primaries[shard];
                if world.nodes[node].is_alive && !world.nodes[node].is_stopped {
                    world.disconnect(node, process);
                }
            }
        }
    }

    // What must hold.

    /// Nobody is told to be offline who is here.
    fn listen(&mut self) {
        let now_ms = self.world.ms();
        for node in 0..NODES {
            if !self.world.nodes[node].is_alive {
                continue;
            }
            self.hang_up(node);
            let told = std::mem::take(&mut self.world.nodes[node].member.local_mut().told);
            for (name, is_here, how) in told {
                let user = self.users.iter().position(|one| *one == name).unwrap();
                *self
                    .seen
                    .entry(if is_here { "arrivals" } else { "ends" })
                    .or_default() += 1;
                if std::env::var("FLEET_SIM_TRACE").is_ok_and(|one| one == name.as_str()) {
                    println!("{now_ms} node {node} tells {is_here} {how:?}");
                }
                let truth = self.truth[user];
                let hides = truth.flags.is_some_and(|flags| flags.invisible);
                let has_hidden = now_ms.saturating_sub(truth.said_ms) > UNDER_WAY_MS;
                let is_known = !truth.is_lost || self.knows(&truth);
                if is_here && hides && has_hidden && is_known {
                    let name = name.as_str();
                    self.fail(format!("node {node} tells that {name} is here, who hides"));
                }
                let is_fresh = now_ms.saturating_sub(truth.alive_ms) < OFFLINE_AFTER_MS - 300;
                let is_old = now_ms.saturating_sub(truth.since_ms) > UNDER_WAY_MS;
                let is_excused = now_ms.saturating_sub(truth.excused_ms) < 3 * OFFLINE_AFTER_MS
                    || self.excused[node] > now_ms;
                let is_waking = self.waking.0 == node && now_ms <= self.waking.1;
                let is_missed = is_fresh && is_old && !truth.may_hide(now_ms);
                if !is_here && is_missed && !is_excused && !is_waking {
                    let heard = now_ms - truth.alive_ms;
                    let name = name.as_str();
                    let what = format!("heard of {heard} ms ago ({how:?})");
                    self.fail(format!("node {node} tells that {name} is offline, {what}"));
                }
            }
        }
    }

    /// Whether nodes know what a user says, whatever Redis has lost: it was here all the time.
    fn knows(&self, truth: &Truth) -> bool {
        let is_lost_alone = matches!(self.fault, Fault::Flushed | Fault::Deleted);
        let stays = truth.since_ms + UNDER_WAY_MS < BREAKS_MS && truth.excused_ms < BREAKS_MS;
        is_lost_alone && stays && truth.said_ms + UNDER_WAY_MS < BREAKS_MS
    }

    /// Streams of whoever was logged out or erased have ended at a node, which may be late.
    fn hang_up(&mut self, node: usize) {
        let now_ms = self.world.ms();
        let ended = std::mem::take(&mut self.world.nodes[node].member.local_mut().ended);
        for name in ended {
            let user = self.users.iter().position(|one| *one == name).unwrap();
            let truth = &mut self.truth[user];
            (truth.alive_ms, truth.excused_ms) = (0, now_ms);
            truth.changed_ms = now_ms;
            truth.ended[node] += 1;
            let is_repeated = truth.ended[node] > truth.sent_away;
            for device in self.devices.iter_mut().filter(|device| device.user == user) {
                if device.way.streams_at(node) {
                    device.way = Way::Absent;
                    device.until_ms = now_ms + 500;
                }
            }
            if is_repeated && self.fault.spares_redis() {
                let name = name.as_str();
                self.fail(format!("node {node} sends {name} away once more"));
            }
        }
    }

    /// When nothing is wrong all nodes say what is true; and nobody was taken for dead without
    /// need.
    fn check(&mut self) {
        let now_ms = self.world.ms();
        for node in 0..NODES {
            let one = &self.world.nodes[node];
            let is_late = self.excused[node] > 0 || !self.fault.spares_leases();
            // Whoever would have fenced it in time could not.
            let has_cause = is_late && self.fault != Fault::FencesStuck;
            if one.is_alive && one.member.counts().lives > 0 && !has_cause {
                self.fail(format!("node {node} was taken for dead"));
            }
        }
        for node in 0..NODES {
            self.check_horizon(node);
        }
        let begin = self.plan.first().map_or(u64::MAX, |(at, _)| *at);
        let is_calm = now_ms > self.broken_ms + HEALED_MS || (14_000..begin).contains(&now_ms);
        if !is_calm {
            return;
        }
        for at in 0..self.devices.len() {
            let Device { user, way, .. } = self.devices[at];
            let away_ms = now_ms - self.truth[user].sent_away_ms;
            if let Way::Ending(node) = way
                && away_ms > UNDER_WAY_MS
            {
                let name = self.users[user].as_str();
                let what = format!("{name}, sent away {away_ms} ms ago");
                self.fail(format!("node {node} keeps a stream of {what}"));
            }
        }
        // Who comes while Redis is away may be told as here since Redis is back.
        let broken = BREAKS_MS..self.broken_ms + HEALED_MS;
        let mut faults = Vec::new();
        for (user, name) in self.users.iter().enumerate() {
            let truth = self.truth[user];
            let silent_ms = now_ms - truth.alive_ms;
            let mut sinces = Vec::new();
            for (at, node) in self.world.nodes.iter().enumerate() {
                if !node.is_alive {
                    continue;
                }
                let view = node.member.local().view(name.user());
                let is_here = view.is_some_and(|state| state.is_here);
                let is_fresh = silent_ms < OFFLINE_AFTER_MS;
                let unheard_ms = now_ms - truth.heard_ms;
                if is_here && unheard_ms > GHOST_MS {
                    let name = name.as_str();
                    faults.push(format!("node {at} has a ghost: {name}, {unheard_ms} ms"));
                }
                let is_new = now_ms.saturating_sub(truth.since_ms) < UNDER_WAY_MS
                    || now_ms.saturating_sub(truth.excused_ms) < 3 * OFFLINE_AFTER_MS;
                // Who hides need not be known to be here where nobody has ever seen it.
                if !is_here && is_fresh && !is_new && !truth.may_hide(now_ms) {
                    faults.push(format!("node {at} misses {}", name.as_str()));
                }
                let since = view.filter(|_| is_here && !is_new).map(|it| it.since);
                let max = truth.since_max_ms(&broken);
                let max = max.map_or(Unix::LATEST, |ms| Unix::from_ms(EPOCH_MS + ms));
                if since > Some(max) {
                    let name = name.as_str();
                    faults.push(format!("node {at}: {name} came anew: {since:?}"));
                }
                if !is_new && now_ms - truth.changed_ms > GHOST_MS {
                    sinces.extend(view.map(|one| (one.is_here, one.since, at, one.flags)));
                }
            }
            let seen = |flags: UserFlags| (!flags.invisible).then(|| flags.shown());
            let shows = |flags: UserFlags| (flags.said(), seen(flags));
            if sinces.iter().any(|one| shows(one.3) != shows(sinces[0].3)) {
                faults.push(format!("flags of {} differ: {sinces:?}", name.as_str()));
            }
            let says = truth.flags.unwrap_or(UserFlags::PLAIN);
            let is_said = now_ms - truth.said_ms > UNDER_WAY_MS && !truth.is_lost;
            if is_said && sinces.iter().any(|one| one.3.said() != says) {
                let name = name.as_str();
                faults.push(format!("{name} says {says:?}, and nodes {sinces:?}"));
            }
            if is_here_everywhere(&sinces) && sinces.iter().any(|one| one.1 != sinces[0].1) {
                faults.push(format!("since of {} differs: {sinces:?}", name.as_str()));
            }
        }
        for node in 0..NODES {
            let one = &self.world.nodes[node];
            if one.is_alive && !self.world.is_ready(node) {
                let standing = one.member.standing(self.world.now());
                let stale = one.member.stale_partitions(self.world.now());
                faults.push(format!(
                    "node {node} is {standing:?}, {stale} partitions stale"
                ));
            }
        }
        for fault in faults.into_iter().take(3) {
            self.fail(fault);
        }
    }
}

impl Fleet {
    /// Whatever a server has since before the time up to which a node claims to know all, the node
    /// has told.
    fn check_horizon(&mut self, node: usize) {
        if matches!(self.fault, Fault::MessagesLost | Fault::AnswersLost) {
            // What a server has pushed before it answers has been heard: here that is not so. And
            // who hears no answers tells since when somebody came when it has found out.
            return;
        }
        let now = self.world.now();
        let one = &self.world.nodes[node];
        let Some(up_to) = one
            .member
            .known_up_to(now)
            .filter(|_| one.is_alive && !one.is_stopped)
        else {
            return;
        };
        *self.seen.entry("horizons").or_default() += 1;
        let mut faults = Vec::new();
        for name in &self.users {
            let partition = self.world.partitions.of(name.user());
            let key = self.world.partitions.hot_key(partition).into_bytes();
            let server = &self.world.cluster.processes[self.world.cluster.process_of(&key)];
            let hash = server.data.get(&key);
            let field = hash.and_then(|hash| hash.get(name.as_str().as_bytes()));
            let here = field.map(|bytes| Here::parse(bytes).unwrap());
            // Of who is not here a field has only what it says of itself; and who hides shows in
            // nothing.
            let here = here.filter(|here| here.is_here() && !here.flags.invisible);
            let view = one.member.local().view(name.user());
            if here.is_some_and(|here| {
                here.since <= up_to && view.is_none_or(|view| view.since < here.since)
            }) && !hash.is_some_and(|hash| is_said_behind(hash, name, up_to))
            {
                faults.push(format!(
                    "node {node} knows all up to {up_to:?}, but {}",
                    name.as_str()
                ));
            }
        }
        faults
            .into_iter()
            .take(1)
            .for_each(|fault| self.fail(fault));
    }
}

/// Whether a message behind that time names a user. What a node knew alone is said as of when it
/// was, which may be before a time up to which others know all that had been said.
fn is_said_behind(hash: &BTreeMap<Vec<u8>, Vec<u8>>, name: &UserBuf, up_to: Unix) -> bool {
    (0..RING_MESSAGES).any(|number| {
        let kept = hash.get(&ring_field(number)[..]);
        let message = kept.and_then(|bytes| Message::parse_kept(bytes).unwrap());
        let message = message.filter(|message| message.since > up_to);
        message.is_some_and(|message| message.records().any(|it| it.user == name.user()))
    })
}

fn is_here_everywhere(seen: &[(bool, Unix, usize, UserFlags)]) -> bool {
    seen.iter().all(|(is_here, ..)| *is_here)
}

/// Runs one seed with a bug, or none.
pub(crate) fn run(seed: u64, fault: Fault, bug: Option<Planted>) -> Fleet {
    planted::plant(bug);
    let mut fleet = Fleet::new(seed, fault);
    fleet.run();
    planted::plant(None);
    fleet
}
