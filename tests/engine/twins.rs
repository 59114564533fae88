//! Two worlds from one seed. In one bob goes invisible, in the other he ends all streams and says
//! goodbye at the same moment. Everything that anybody else receives must be the same bytes at the
//! same time: on streams, in answers, in resumes, after restarts, in what is put to real-time
//! nodes, and in the gauges. The worlds are one node of both halves, a presence node, or a presence
//! node and a real-time node.
//!
//! Bob's connections are on shard 1 and all others' on shard 0: so a stream's id and jitter, which
//! tell how many connections its shard has had, are those of the others alone. `TWIN_SEEDS` says
//! how many seeds are tried, `TWIN_SEED` names one.

use std::fmt::Write;

use fastrand::Rng;
use greendot::engine::{Outbound, Role, told_of};

use super::harness::{Peer, World, posted, request};
use super::platform::{Half, Platform};

const SEEDS: u64 = 40;
/// Between two steps, in ms.
const STEP_MS: u64 = 40;
const STEPS: u64 = 2_400;
const USERS: [&str; 4] = ["bob", "carol", "dave", "eve"];
const BOB: usize = 1;
const OTHERS: usize = 0;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Invisible,
    Goodbye,
}

/// A connection of somebody else's, to which half, and which of all of them it is.
#[derive(Clone, Copy)]
struct Other {
    peer: Peer,
    half: Half,
    number: u32,
}

/// One of the two worlds, and what its script needs.
struct Twin {
    way: Way,
    platform: Platform,
    /// Of the others: streams that are open, each with what it watches.
    streams: Vec<(Other, String)>,
    /// Their requests that are not answered yet.
    asks: Vec<Other>,
    /// Connections that they have made.
    others: u32,
    bobs: Vec<Peer>,
    hidden: bool,
    status: &'static str,
    is_presence: bool,
    log: String,
}

impl Twin {
    fn new(seed: u64, way: Way) -> Twin {
        let is_presence = seed.is_multiple_of(5);
        let mut platform = match seed % 5 {
            0 => Platform::of(World::of_role(2, Role::Presence, 20_000)),
            1 | 2 => Platform::of(World::of_role(2, Role::All, 20_000)),
            _ => Platform::split(2),
        };
        platform.check_nothing();
        // Of every other seed shard 0 decides about bob.
        if seed % 2 == 1 {
            platform.at(Half::Presence).make_slots(4_096);
        }
        Twin {
            way,
            platform,
            streams: Vec::new(),
            asks: Vec::new(),
            others: 0,
            bobs: Vec::new(),
            hidden: false,
            status: "online",
            is_presence,
            log: String::new(),
        }
    }

    fn connect(&mut self, half: Half) -> Other {
        self.others += 1;
        Other {
            peer: self.platform.at(half).connect(OTHERS),
            half,
            number: self.others,
        }
    }

    /// A request of somebody else.
    fn ask(&mut self, half: Half, request: &str) {
        let other = self.connect(half);
        self.platform.at(half).send(other.peer, request);
        self.asks.push(other);
    }

    fn reset(&mut self, other: Other) {
        self.platform.at(other.half).reset(other.peer);
    }

    fn beat(&mut self, shard: usize, user: &str) {
        self.platform.at(Half::Presence).beat(shard, &[user]);
    }

    fn open(&mut self, query: String, last_event_id: &str) {
        if self.is_presence {
            return;
        }
        let other = self.connect(Half::Streams);
        let target = format!("/v1/stream?{query}{last_event_id}");
        let realtime = self.platform.at(Half::Streams);
        realtime.send(other.peer, request("GET", &target));
        self.streams.push((other, query));
    }

    /// A request of bob's, whose answer is his own.
    fn of_bob(&mut self, half: Half, target: &str, body: &str) {
        let world = self.platform.at(half);
        let peer = world.connect(BOB);
        world.send(peer, posted(target, body));
        self.platform.turn();
        self.platform.at(half).reset(peer);
    }

    fn bob_beats(&mut self, body: &str) {
        self.of_bob(Half::Presence, "/v1/beat", body);
    }

    fn bob_opens(&mut self) {
        if !self.is_presence && self.bobs.len() < 3 {
            let world = self.platform.at(Half::Streams);
            let peer = world.connect(BOB);
            let request = request("GET", "/v1/stream?user=bob&watch=carol");
            world.send(peer, request);
            self.bobs.push(peer);
        }
    }

    fn bob_goes(&mut self) {
        self.hidden = true;
        match self.way {
            Way::Invisible => {
                let hide = r#"{"user":"bob","invisible":true}"#;
                self.of_bob(Half::Streams, "/v1/status", hide);
            }
            Way::Goodbye => {
                for peer in std::mem::take(&mut self.bobs) {
                    self.platform.at(Half::Streams).shut(peer);
                }
                self.of_bob(Half::Streams, "/v1/leave", r#"{"users":["bob"]}"#);
            }
        }
    }

    fn bob_comes(&mut self) {
        self.hidden = false;
        self.bob_beats(r#"{"users":["bob"],"invisible":false}"#);
    }

    /// What bob does in one step, if anything. Nothing while he has gone.
    fn bob_acts(&mut self, dice: &mut Rng) {
        let (act, status) = (dice.u8(0..120), dice.usize(0..3));
        let gone = self.hidden && self.way == Way::Goodbye;
        match act {
            // What he says of himself is kept, whether or not he is here.
            0 => {
                self.status = ["online", "away", "busy"][status];
                let body = format!("{{\"user\":\"bob\",\"status\":\"{}\"}}", self.status);
                self.of_bob(Half::Streams, "/v1/status", &body);
            }
            _ if gone => {}
            1 | 2 => self.bob_beats(r#"{"users":["bob"]}"#),
            3 => self.bob_beats(r#"{"users":["bob"],"idle_ms":300000}"#),
            4..=7 => self.beat(BOB, "bob"),
            8 => self.bob_opens(),
            9 => {
                if let Some(peer) = self.bobs.pop() {
                    self.platform.at(Half::Streams).reset(peer);
                }
            }
            // He says goodbye behind the curtain.
            10 if self.hidden => {
                self.of_bob(Half::Streams, "/v1/leave", r#"{"users":["bob"]}"#);
            }
            _ => {}
        }
    }

    fn others_act(&mut self, dice: &mut Rng) {
        let (act, one, other) = (dice.u8(0..60), dice.usize(1..4), dice.usize(0..4));
        let (user, watched) = (USERS[one], USERS[other]);
        match act {
            0 => self.open(format!("user={user}&watch=bob&watch={watched}"), ""),
            1 => self.open("watch=bob&watch=carol&watch=dave".into(), ""),
            2 => self.open("watch=bob&vouch=self".into(), ""),
            3 | 4 if !self.streams.is_empty() => {
                let (other, query) = self.streams.swap_remove(one % self.streams.len());
                self.take(other);
                self.reset(other);
                // Back where it was.
                let id = self.log.rsplit_once("id: ").map(|(_, rest)| rest);
                let id = id.and_then(|rest| rest.lines().next()).unwrap_or("1");
                let id = format!("&last_event_id={id}");
                self.open(query, &id);
            }
            5..=7 => self.ask(Half::Presence, &request("GET", "/v1/presence/bob")),
            8 => self.ask(
                Half::Presence,
                &request("GET", &format!("/v1/presence?user={watched}&user=bob")),
            ),
            9 => self.ask(
                Half::Presence,
                &posted("/v1/presence/query", r#"{"users":["bob","eve","zoe"]}"#),
            ),
            10..=13 => self.beat(OTHERS, user),
            14 => {
                let body = format!("{{\"users\":[\"{user}\"]}}");
                self.ask(Half::Streams, &posted("/v1/leave", &body));
            }
            15 => {
                let hide = one == 3;
                let body =
                    format!("{{\"user\":\"{user}\",\"status\":\"away\",\"invisible\":{hide}}}");
                self.ask(Half::Streams, &posted("/v1/status", &body));
            }
            16 if self.streams.len() > 3 => {
                let (other, _) = self.streams.remove(0);
                self.take(other);
                self.reset(other);
            }
            _ => {}
        }
    }

    /// Notes what a peer of the others has received.
    fn take(&mut self, other: Other) {
        let world = self.platform.at(other.half);
        let received = world.received(other.peer);
        if !received.is_empty() {
            let (ms, number) = (world.ms(), other.number);
            writeln!(self.log, "at {ms} to {number}: {received}").expect("a String takes all");
        }
    }

    fn step(&mut self) {
        self.platform.jump(STEP_MS).turn();
        for at in 0..self.streams.len() {
            self.take(self.streams[at].0);
        }
        for other in std::mem::take(&mut self.asks) {
            self.take(other);
            self.reset(other);
        }
        let ms = self.platform.at(Half::Presence).ms();
        for put in self.platform.take_puts() {
            writeln!(self.log, "at {ms} puts {put}").expect("it takes all");
        }
        if !self.platform.is_split() {
            self.note_published();
        }
        for half in [Half::Streams, Half::Presence] {
            let presence = self.platform.at(half).presence();
            let (online, users) = (presence.online(), presence.users());
            writeln!(self.log, "at {ms} {half:?} {online} of {users} online").expect("it does");
        }
    }

    /// What would be put to real-time nodes.
    fn note_published(&mut self) {
        let world = self.platform.at(Half::Presence);
        let (ms, now) = (world.ms(), world.now());
        for (shard, outbound) in world.outbound() {
            let Outbound::Publish(decided) = outbound else {
                continue;
            };
            for transition in &decided.transitions {
                let mut put = Vec::new();
                told_of(world.presence(), transition.slot, now).write(&mut put);
                let put = String::from_utf8_lossy(&put);
                writeln!(self.log, "at {ms} shard {shard} puts {put}").expect("it takes all");
            }
        }
    }

    fn restart(&mut self, half: Half, down_ms: u64) {
        self.platform.restart(half, down_ms);
        if self.platform.is_split() && half == Half::Presence {
            return;
        }
        let streams = std::mem::take(&mut self.streams);
        self.bobs.clear();
        for (_, query) in streams {
            self.open(query, "");
        }
        if !(self.hidden && self.way == Way::Goodbye) {
            self.bob_opens();
            if self.is_presence {
                self.bob_beats(r#"{"users":["bob"]}"#);
            }
        }
    }
}

/// What everybody else receives, with its time.
fn run(seed: u64, way: Way) -> String {
    let mut twin = Twin::new(seed, way);
    let stream = |salt: u64| Rng::with_seed(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ salt);
    // Bob's acts take nothing of the others' dice, whatever he is kept from.
    let (mut plot, mut others, mut bob) = (stream(1), stream(2), stream(3));
    let mut goes_at = plot.u64(100..900);
    let away = plot.bool().then(|| plot.u64(20..1_000));
    let restarts: Vec<(u64, Half, u64)> = (0..plot.usize(0..3))
        .map(|_| {
            let half = [Half::Streams, Half::Presence][plot.usize(0..2)];
            let down_ms = [50, 3_000, 40_000, 400_000][plot.usize(0..4)];
            (plot.u64(50..STEPS), half, down_ms)
        })
        .collect();
    twin.bob_opens();
    twin.bob_beats(r#"{"users":["bob"]}"#);
    for step in 0..STEPS {
        // A goodbye waits for a node that does not answer, and its moment is when it is believed.
        if step == goes_at && !twin.platform.is_well() {
            goes_at += 1;
        }
        let comes_at = away.map(|steps| goes_at + steps);
        if step == goes_at {
            twin.bob_goes();
        } else if Some(step) == comes_at {
            twin.bob_comes();
        } else if step < goes_at || twin.hidden {
            twin.bob_acts(&mut bob);
        }
        twin.others_act(&mut others);
        for (at, half, down_ms) in &restarts {
            if *at == step {
                twin.restart(*half, *down_ms);
            }
        }
        twin.step();
        // From his return on he is seen, with streams of his own in the one world alone.
        if Some(step) == comes_at {
            break;
        }
    }
    twin.log
}

/// Where two logs differ first.
fn difference(seed: u64) -> Option<String> {
    let (invisible, gone) = (run(seed, Way::Invisible), run(seed, Way::Goodbye));
    let mut lines = invisible.lines().zip(gone.lines());
    let differ = lines.position(|(one, other)| one != other);
    let at = match differ {
        None if invisible == gone => return None,
        None => invisible.lines().count().min(gone.lines().count()),
        Some(at) => at,
    };
    let line = |log: &str| log.lines().nth(at).unwrap_or("nothing").to_owned();
    let (one, other) = (line(&invisible), line(&gone));
    Some(format!(
        "seed {seed}, line {at}:\n  invisible: {one}\n  gone:      {other}"
    ))
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn who_is_invisible_and_who_has_gone_are_the_same_to_everybody_else() {
    let seeds = match from_env("TWIN_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..from_env("TWIN_SEEDS").unwrap_or(SEEDS) + 1,
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let differences: Vec<String> = std::thread::scope(|scope| {
        let spawn = |thread: u64| {
            let seeds = seeds.clone().filter(move |seed| seed % threads == thread);
            scope.spawn(move || seeds.filter_map(difference).collect::<Vec<_>>())
        };
        let running: Vec<_> = (0..threads).map(spawn).collect();
        let ended = running.into_iter().map(|thread| thread.join());
        ended.flat_map(|found| found.expect("it ends")).collect()
    });
    println!("{} pairs of worlds", seeds.end - seeds.start);
    let (count, first) = (differences.len(), differences.first());
    assert!(
        first.is_none(),
        "{count} differ; one of them: {}",
        first.map_or("", |why| why)
    );
}

/// What would give an invisible user away is seen.
#[cfg(debug_assertions)]
#[test]
fn what_would_give_an_invisible_user_away_is_caught() {
    use greendot::planted::{Planted, plant};
    for bug in [
        Planted::BeatsShow,
        Planted::BeatsUncover,
        Planted::HiddenCounted,
        Planted::InvisibleDoubted,
    ] {
        plant(Some(bug));
        let caught = (1..=SEEDS).find_map(difference);
        plant(None);
        println!("{bug:?}: {}", caught.expect("it is caught"));
    }
}
