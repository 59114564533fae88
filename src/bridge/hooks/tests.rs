mod claims;
mod missed;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use super::follow::Follow;
use super::*;
use crate::fleet::Birth;
use crate::fleet::calls::Call;
use crate::fleet::flags::UserFlags;
use crate::fleet::held::{Claim, Gone, Here, Kinds, Meta, RING_MESSAGES, ring_field};
use crate::fleet::hooks::Keys;
use crate::fleet::message::{Base, HEAD_BYTES, Record, What, encode};
use crate::fleet::traffic::{Reply, Server};
use crate::status::Status;
use crate::time::Unix;
use crate::wire::User;

const BUCKETS: u32 = 2;
const SETTLE_MS: u64 = 6_000;
const REQUEST_MS: u64 = 2_000;
const QUEUE_MAX: usize = 1_000;
const NAME: &str = "0123456789abcdef";
/// When the database begins, Unix ms.
const BEGAN: u64 = 1_000_000;
const PLAIN: UserFlags = UserFlags::PLAIN;
const HIDDEN: UserFlags = UserFlags::new(Status::Online, true);

fn now(ms: u64) -> Now {
    Now {
        mono: Mono::default().plus_ms(ms),
        unix: Unix::from_ms(BEGAN + ms),
    }
}

fn at(ms: u64) -> Unix {
    Unix::from_ms(BEGAN + ms)
}

/// One partition in Redis.
#[derive(Default)]
struct Database {
    hashes: BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>,
    strings: BTreeMap<String, (Vec<u8>, u64)>,
    /// Keys that hold what no node writes there, and until when.
    foreign: BTreeMap<String, u64>,
    birth: u8,
    number: u64,
}

impl Database {
    fn do_call(&mut self, call: &Call, ms: u64) -> Reply {
        let words: Vec<&[u8]> = call.words().collect();
        let text = |at: usize| String::from_utf8_lossy(words[at]).into_owned();
        let bytes =
            |value: Option<&Vec<u8>>| value.map_or(Reply::Nil, |it| Reply::Bytes(it.clone()));
        self.strings.retain(|_, (_, until)| *until > ms);
        self.foreign.retain(|_, until| *until > ms);
        let is_foreign = self.foreign.contains_key(&text(1));
        let reads = ["GET", "HGET", "HMGET", "HSCAN"];
        if is_foreign && reads.contains(&&*text(0)) {
            return Reply::Error("WRONGTYPE Operation against a key".into());
        }
        match &*text(0) {
            "SET" => {
                let is_claim = words.len() > 3;
                if is_claim && (is_foreign || self.strings.contains_key(&text(1))) {
                    return Reply::Nil;
                }
                let until = match is_claim {
                    true => ms + text(5).parse::<u64>().unwrap(),
                    false => u64::MAX,
                };
                self.foreign.remove(&text(1));
                self.strings.insert(text(1), (words[2].to_vec(), until));
                Reply::Bytes(b"OK".to_vec())
            }
            "GET" => bytes(self.strings.get(&text(1)).map(|(value, _)| value)),
            "PEXPIRE" => {
                let until = self.strings.get_mut(&text(1)).map(|(_, until)| until);
                let until = until.or_else(|| self.foreign.get_mut(&text(1)));
                let is_new_only = words.len() > 3;
                let until = until.filter(|until| !is_new_only || **until == u64::MAX);
                let is_set = until.is_some();
                if let Some(until) = until {
                    *until = ms + text(2).parse::<u64>().unwrap();
                }
                Reply::Number(i64::from(is_set))
            }
            "DEL" => Reply::Number(i64::from(self.strings.remove(&text(1)).is_some())),
            "HGET" => bytes(self.hash(&text(1)).get(words[2])),
            "HMGET" => {
                let hash = self.hash(&text(1));
                let values = words[2..].iter().map(|field| bytes(hash.get(*field)));
                Reply::List(values.collect())
            }
            "HSCAN" => {
                let fields = self.hash(&text(1)).iter();
                let fields = fields.filter(|(name, _)| name[0] != 0);
                let fields = fields.flat_map(|(name, value)| [name, value].map(Clone::clone));
                let fields = Reply::List(fields.map(Reply::Bytes).collect());
                Reply::List(vec![Reply::Bytes(b"0".to_vec()), fields])
            }
            other => panic!("{other}"),
        }
    }

    fn hash(&mut self, key: &str) -> &mut BTreeMap<Vec<u8>, Vec<u8>> {
        self.hashes.entry(key.to_owned()).or_default()
    }
}

/// A node's part of a webhook, and what its thread was handed.
struct Node {
    follow: Follow,
    handed: Arc<Mutex<VecDeque<HookOrder>>>,
    told: Vec<(String, Status, u64)>,
    /// Its receiver takes what it is told.
    takes: bool,
    room: Arc<Mutex<usize>>,
    permits: usize,
}

struct World {
    partitions: Arc<Partitions>,
    db: Database,
    nodes: Vec<Node>,
    ms: u64,
    is_away: bool,
    /// Of this many more questions there are answers.
    steps: Option<usize>,
}

impl World {
    fn new(nodes: usize) -> World {
        let partitions = Arc::new(Partitions::new(64).unwrap());
        let node = |number: usize| {
            let handed: Arc<Mutex<VecDeque<HookOrder>>> = Arc::default();
            let room = Arc::new(Mutex::new(QUEUE_MAX));
            let (to, of) = (Arc::clone(&handed), Arc::clone(&room));
            let outlet = HookOutlet {
                name: NAME.into(),
                prefix: String::new(),
                request_ms: REQUEST_MS,
                queue_max: QUEUE_MAX,
                hand: Box::new(move |order| to.lock().push_back(order)),
                room: Box::new(move || *of.lock()),
                reports: Box::new(Vec::new),
            };
            let mut random = fastrand::Rng::with_seed(number as u64);
            let partitions = Arc::clone(&partitions);
            Node {
                follow: Follow::new(outlet, partitions, BUCKETS, SETTLE_MS, &mut random),
                handed,
                told: Vec::new(),
                takes: true,
                room,
                permits: 0,
            }
        };
        World {
            nodes: (0..nodes).map(node).collect(),
            partitions,
            db: Database::default(),
            ms: 0,
            is_away: false,
            steps: None,
        }
    }

    fn hot(&self) -> String {
        self.partitions.hot_key(self.partitions.at(0))
    }

    fn keep_gone(&mut self, user: &str, since: u64) {
        let bucket = crate::fleet::partition::bucket_of(User::from_text(user).unwrap(), BUCKETS);
        let key = self.partitions.offline_key(self.partitions.at(0), bucket);
        let gone = Gone {
            since: at(since),
            last_active: at(since),
        };
        let value = gone.encode().to_vec();
        self.db.hash(&key).insert(user.into(), value);
    }

    /// Something is published, and kept as the library does.
    fn publish(&mut self, user: &str, what: What) {
        self.ms += 1;
        let (ms, hot) = (self.ms, self.hot());
        let birth = Birth([self.db.birth; 8]);
        let number = self.db.number;
        let record = Record {
            user: User::from_text(user).unwrap(),
            what,
        };
        let message = encode(Base { birth, number }, at(ms), &[record]);
        self.db.number += 1;
        let meta = Meta {
            birth,
            number: number + 1,
            since: at(ms),
            left: at(0),
        };
        let hash = self.db.hash(&hot);
        hash.insert(ring_field(number + 1).to_vec(), message.clone());
        hash.insert(b"\0m".to_vec(), meta.encode().to_vec());
        let here = |flags, since| Here {
            since,
            flags,
            claims: vec![Claim {
                life: Life(*b"life"),
                kinds: Kinds::STREAM_ONLY,
            }],
        };
        match what {
            What::Arrived(flags) => {
                hash.insert(user.into(), here(flags, at(ms)).encode());
            }
            What::Is { flags, since } => {
                hash.insert(user.into(), here(flags, since).encode());
            }
            _ => drop(hash.remove(user.as_bytes())),
        }
        if what == What::Erased {
            self.empty_ring(user, &message);
        }
        if let What::Gone { .. } = what {
            self.keep_gone(user, ms);
        }
        for node in &mut self.nodes {
            node.follow.published(0, &message, now(ms));
        }
        self.turn();
    }

    /// Nothing may name who is erased.
    fn empty_ring(&mut self, user: &str, message: &[u8]) {
        let number = self.db.number;
        for hash in self.db.hashes.values_mut() {
            hash.retain(|field, _| !field.starts_with(b"\0r") && field != user.as_bytes());
        }
        let head = message[..HEAD_BYTES].to_vec();
        let hot = self.hot();
        self.db.hash(&hot).insert(ring_field(number).to_vec(), head);
    }

    fn come(&mut self, user: &str) {
        self.publish(user, What::Arrived(PLAIN));
    }

    fn go(&mut self, user: &str) {
        let gone = What::Gone {
            flags: PLAIN,
            last_active: at(self.ms),
            said_at: None,
        };
        self.publish(user, gone);
    }

    /// Says whose the partition is.
    fn choose(&mut self, own: &[usize]) {
        let peer = |name: &str| Peer {
            life: Life([1; 4]),
            info: info_with("a b c", &[name]).into(),
        };
        for (number, node) in self.nodes.iter_mut().enumerate() {
            let name = if own.contains(&number) { NAME } else { "other" };
            let senders = Senders::new(&[peer(name)], NAME);
            node.follow
                .choose(&senders, Some(Life([1; 4])), now(self.ms));
        }
        self.turn();
    }

    /// Whatever can be done now is.
    fn turn(&mut self) {
        let is_first = |at: usize| at == 0;
        loop {
            let mut is_idle = true;
            for node in &mut self.nodes {
                node.follow.handle_timeout(now(self.ms));
                while self.steps != Some(0)
                    && let Some((question, calls)) = node.follow.asks.pop_front()
                {
                    is_idle = false;
                    self.steps = self.steps.map(|steps| steps - 1);
                    if self.is_away || !is_first(question.0) {
                        node.follow.failed(question, now(self.ms));
                        continue;
                    }
                    let replies = calls.iter().map(|call| self.db.do_call(call, self.ms));
                    let replies: Vec<Reply> = replies.collect();
                    let server = Server(1);
                    node.follow
                        .answered(question, server, &replies, now(self.ms));
                }
                let takes = node.takes;
                let orders: Vec<_> = match takes {
                    true => node.handed.lock().drain(..).collect(),
                    false => Vec::new(),
                };
                for order in orders {
                    is_idle = false;
                    node.take(order, now(self.ms));
                }
            }
            if is_idle {
                return;
            }
        }
    }

    fn run(&mut self, ms: u64) {
        for _ in 0..ms / 50 {
            self.ms += 50;
            self.turn();
        }
    }

    fn told(&mut self, node: usize) -> Vec<(String, Status, u64)> {
        let mut told = std::mem::take(&mut self.nodes[node].told);
        told.sort_by_key(|(_, _, since)| *since);
        told
    }

    fn position_key(&self) -> String {
        let tag = self.partitions.tag(self.partitions.at(0));
        format!("gd:{{{tag}}}:hook:{NAME}")
    }

    fn position(&self) -> Option<Mark> {
        let kept = self.db.strings.get(&self.position_key());
        kept.map(|(bytes, _)| Mark::parse(bytes).unwrap())
    }
}

impl Node {
    fn take(&mut self, order: HookOrder, now: Now) {
        match order {
            HookOrder::States(states) => {
                for state in &states.states {
                    let told = &state.told;
                    let since = told.since.unwrap().ms() - BEGAN;
                    self.told
                        .push((told.user.as_str().to_owned(), told.status, since));
                }
                let (source, epoch, end) = (states.source, states.epoch, states.end);
                let report = HookReport::ToldUpTo { source, epoch, end };
                self.follow.reported(report, now);
            }
            HookOrder::Drop { source, epoch } => {
                let report = HookReport::Dropped { source, epoch };
                self.follow.reported(report, now);
            }
            HookOrder::Permit { source: 0, .. } => self.permits += 1,
            HookOrder::Permit { .. } => {}
        }
    }
}

fn online(user: &str, since: u64) -> (String, Status, u64) {
    (user.into(), Status::Online, since)
}

fn offline(user: &str, since: u64) -> (String, Status, u64) {
    (user.into(), Status::Offline, since)
}

#[test]
fn a_webhook_that_is_new_is_told_everybody_and_then_what_changes() {
    let mut world = World::new(1);
    world.come("a");
    world.come("b");
    world.go("b");
    world.publish(
        "c",
        What::Is {
            flags: HIDDEN,
            since: at(4),
        },
    );
    assert_eq!(world.ms, 4);
    world.choose(&[0]);
    assert_eq!(world.told(0), [online("a", 1), offline("b", 3)]);
    world.come("d");
    assert_eq!(world.told(0), [online("d", 5)]);
    world.run(1_100);
    assert_eq!(world.position().map(|mark| mark.number), Some(5));
    assert_eq!(world.told(0), []);
}

#[test]
fn another_goes_on_from_where_the_last_one_was() {
    let mut world = World::new(2);
    world.choose(&[0]);
    world.come("a");
    world.run(1_100);
    assert_eq!(world.told(0), [online("a", 1)]);
    // It dies, as far as anybody can tell, with this on the way.
    world.nodes[0].takes = false;
    for user in ["a", "b", "c"] {
        world.go(user);
    }
    world.come("c");
    let died = world.ms;
    world.nodes.remove(0);
    world.choose(&[0]);
    world.run(REQUEST_MS + 8_000);
    assert_eq!(world.told(0), [], "its claim lasts");
    world.run(4_000);
    let net = [
        offline("a", died - 3),
        offline("b", died - 2),
        online("c", died),
    ];
    assert_eq!(world.told(0), net);
    world.run(1_100);
    assert_eq!(world.position().map(|mark| mark.number), Some(5));
}

#[test]
fn who_gives_a_partition_up_leaves_where_it_was_and_the_next_tells_nothing_twice() {
    let mut world = World::new(2);
    world.choose(&[0]);
    world.come("a");
    assert_eq!(world.told(0), [online("a", 1)]);
    world.choose(&[1]);
    world.run(TAKEN_AGAIN_MS);
    assert!(!world.nodes[0].follow.has_left() || world.position().is_some());
    assert_eq!((world.told(0), world.told(1)), (vec![], vec![]));
    world.come("b");
    assert_eq!(
        (world.told(0).len(), world.told(1)),
        (0, vec![online("b", world.ms)])
    );
    // Not yet told when it is given up.
    world.nodes[1].takes = false;
    world.come("c");
    world.choose(&[0]);
    world.nodes[1].takes = true;
    world.nodes[1]
        .handed
        .lock()
        .retain(|order| !matches!(order, HookOrder::States(_)));
    let came = world.ms;
    world.run(TAKEN_AGAIN_MS);
    assert_eq!(
        (world.told(1), world.told(0)),
        (vec![], vec![online("c", came)])
    );
}

/// Longer than a node waits for a partition that another has just given up.
const TAKEN_AGAIN_MS: u64 = 2_000;

#[test]
fn two_who_both_think_that_it_is_theirs_do_not_both_tell() {
    let mut world = World::new(2);
    world.choose(&[0, 1]);
    for user in ["a", "b", "c"] {
        world.come(user);
        world.run(3_000);
    }
    let told = [world.told(0).len(), world.told(1).len()];
    assert_eq!(told, [3, 0]);
    assert_eq!(world.nodes[1].permits, 0);
}

#[test]
fn where_the_ring_does_not_reach_back_states_are_read() {
    let mut world = World::new(1);
    world.choose(&[0]);
    world.come("old");
    world.run(30_000);
    world.come("told");
    let last = world.ms;
    world.run(1_100);
    world.told(0);
    world.choose(&[]);
    world.run(1_000);
    world.come("new");
    let came = world.ms;
    for _ in 0..RING_MESSAGES / 2 {
        world.come("b");
        world.go("b");
    }
    let went = world.ms;
    world.choose(&[0]);
    world.run(1_000);
    // And those who changed shortly before what was told last.
    let told = [
        online("told", last),
        online("new", came),
        offline("b", went),
    ];
    assert_eq!(world.told(0), told);
}

#[test]
fn where_what_was_told_is_lost_all_who_are_here_are_told_once_nodes_have_spoken() {
    for is_new_birth in [true, false] {
        let mut world = World::new(1);
        world.choose(&[0]);
        world.come("a");
        world.come("b");
        world.go("b");
        world.run(30_000);
        world.come("d");
        let last = world.ms;
        world.run(30_000);
        world.told(0);
        world.choose(&[]);
        world.run(1_000);
        // Another message with the same number, or another partition.
        match is_new_birth {
            true => (world.db.birth, world.db.number) = (1, 0),
            false => world.db.number -= 1,
        }
        world.come("c");
        let came = world.ms;
        world.choose(&[0]);
        world.run(SETTLE_MS - 500);
        assert_eq!(world.told(0), []);
        world.run(1_000);
        // Not of b, who went long before.
        let told = [online("a", 1), online("d", last), online("c", came)];
        assert_eq!(world.told(0), told);
    }
}

#[test]
fn who_hides_has_gone_and_who_comes_hidden_is_not_told_of() {
    let mut world = World::new(1);
    world.choose(&[0]);
    world.come("a");
    world.run(2_000);
    world.told(0);
    let hides = |world: &World| What::Is {
        flags: HIDDEN,
        since: at(world.ms + 1),
    };
    let hide = hides(&world);
    world.publish("a", hide);
    let hid = world.ms;
    world.run(200);
    assert_eq!(world.told(0), []);
    // Its node writes that a moment later.
    world.keep_gone("a", hid);
    world.run(100);
    assert_eq!(world.told(0), [offline("a", hid)]);
    let arrival = hides(&world);
    world.keep_gone("b", 1);
    world.publish("b", arrival);
    world.run(200);
    world.come("c");
    let came = world.ms;
    world.run(1_000);
    assert_eq!(world.told(0), [online("c", came)]);
}

#[test]
fn what_finds_no_room_is_told_when_there_is_some() {
    let mut world = World::new(1);
    world.choose(&[0]);
    world.come("a");
    world.run(1_100);
    world.told(0);
    *world.nodes[0].room.lock() = 0;
    world.come("b");
    world.come("c");
    world.go("c");
    let went = world.ms;
    world.run(2_000);
    assert_eq!(world.told(0), []);
    assert_eq!(world.nodes[0].follow.overflows, 1);
    *world.nodes[0].room.lock() = QUEUE_MAX;
    world.run(1_000);
    assert_eq!(world.told(0), [online("b", went - 2), offline("c", went)]);
}

#[test]
fn while_redis_is_away_nothing_is_lost() {
    let mut world = World::new(1);
    world.choose(&[0]);
    world.come("a");
    world.run(1_100);
    world.told(0);
    world.nodes[0].takes = false;
    world.come("b");
    let came = world.ms;
    world.is_away = true;
    world.run(60_000);
    world.is_away = false;
    world.run(2_000);
    world.nodes[0].takes = true;
    world.run(2_000);
    let told = world.told(0);
    assert!(
        told.iter().all(|told| *told == online("b", came)),
        "{told:?}"
    );
    assert!(!told.is_empty());
    assert_eq!(world.position().map(|mark| mark.number), Some(2));
}

/// Claims cost nothing where nothing happens.
#[test]
fn a_partition_in_which_nothing_happens_is_not_claimed() {
    let mut world = World::new(1);
    world.choose(&[0]);
    world.come("a");
    world.run(60_000);
    world.told(0);
    world.db.strings.retain(|_, (_, until)| *until > world.ms);
    let by = Keys::new(&world.partitions, world.partitions.at(0), NAME).holder();
    assert_eq!(world.db.do_call(&by, world.ms), Reply::Nil);
    world.come("b");
    assert_eq!(world.told(0), [online("b", world.ms)]);
    assert_ne!(world.db.do_call(&by, world.ms), Reply::Nil);
}
