//! What a fleet costs its Redis: the server's processor time for each transition, alone and with a
//! replica, and for each node that hears one; its memory for each user, what buckets of several
//! sizes take, and what real nodes have it do (`nodes`).
//!
//! ```console
//! $ cargo bench --bench fleet
//! $ cargo bench --bench fleet -- memory
//! ```
//!
//! Without words it is all of `transitions`, `deliveries`, `memory`, `buckets` and `nodes`.
//! `GREENDOT_BENCH_USERS` sets how many users, 1,000,000 if it is not given. Calls go out on one
//! connection: one after the other, each after the answer to the one before, so that the server is
//! woken for each; and sixteen in one write, as they come to a server that is busy. Only the server
//! is measured, by its own account, so how this program is built does not matter but to real nodes.

#![expect(clippy::unwrap_used, reason = "what fails here is the bench")]

mod nodes;
#[expect(dead_code, reason = "the tests ask for more")]
#[path = "../../tests/fleet/redis.rs"]
mod redis;

use greendot::fleet::calls::{Call, Caller, Mode, Vouch};
use greendot::fleet::flags::{Saying, UserFlags};
use greendot::fleet::held::{Gone, Kinds, RING_MESSAGES};
use greendot::fleet::member::Layout;
use greendot::fleet::partition::{PARTITIONS_MIN, Partition, Partitions, bucket_of};
use greendot::fleet::replies::{Outcome, Vouched};
use greendot::fleet::{Birth, CALL_USERS_MAX, Life};
use greendot::status::Status;
use greendot::time::Unix;
use greendot::wire::{User, UserBuf};

use nodes::Pace;
use redis::{Answer, Link, Server, wait_until};

const ROUNDS: usize = 3;
const OUTPUT: &str = "total_net_output_bytes:";
/// Calls in one write.
const AT_ONCE: [usize; 2] = [1, 16];
/// Users of a call.
const EACH: [usize; 3] = [1, 10, 100];
const BEAT: Kinds = Kinds::beat(Unix::from_ms(7));
const AWAY: UserFlags = UserFlags::new(Status::Away, false);
const LIFE: Life = Life(*b"life");
const GONE: Gone = Gone {
    since: Unix::from_ms(1_764_009_600_123),
    last_active: Unix::from_ms(1_764_009_575_123),
};
/// Users whose memory is measured, beside all that are asked for: there may be few to a partition.
const FEW: [usize; 2] = [20_000, 200_000];
/// As nodes have them by default.
const PARTITIONS: u32 = 1_024;
/// Nodes that hear a message.
const NODES: usize = 25;
/// A head and a record that somebody has gone.
const MESSAGE_BYTES: usize = 20 + 9 + 16;
/// Users of a bucket, on average.
const BUCKET_USERS: [usize; 7] = [64, 128, 256, 400, 500, 1_000, 5_000];

fn main() {
    let users = std::env::var("GREENDOT_BENCH_USERS").map_or(1_000_000, |users| {
        users.parse().expect("GREENDOT_BENCH_USERS is a number")
    });
    let words: Vec<String> = std::env::args().skip(1).collect();
    let is_test = words.iter().any(|word| word == "--test");
    let named: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let wants = |part: &str| named.is_empty() || named.iter().any(|word| *word == part);
    if wants("transitions") {
        let Some(server) = Server::start() else {
            return;
        };
        println!("alone");
        transitions(&server, users);
        if let Some((primary, _replica)) = pair() {
            println!("a primary of a cluster, with a replica");
            transitions(&primary, users);
        }
    }
    if wants("deliveries") {
        deliveries(users / 100);
    }
    if wants("memory") {
        let partitions = if is_test {
            PARTITIONS_MIN.into()
        } else {
            PARTITIONS
        };
        let counts = FEW.into_iter().filter(|few| *few < users).chain([users]);
        counts.for_each(|count| memory(count, partitions));
    }
    if wants("buckets") {
        let sizes = BUCKET_USERS
            .iter()
            .take(if is_test { 2 } else { usize::MAX });
        sizes.for_each(|&each| buckets(users, each));
    }
    if wants("nodes") {
        let pace = match is_test {
            true => Pace {
                offline_after_ms: 6_000,
                beat_interval_ms: 1_000,
                idle_s: 1,
            },
            false => Pace {
                offline_after_ms: 25_000,
                beat_interval_ms: 10_000,
                idle_s: 60,
            },
        };
        let most = if is_test { 3_000 } else { users };
        nodes::run(&names(users.min(most)), &pace);
    }
}

/// Processor time for each transition, half of them arrivals and half ends, and beside it for each
/// `SET` of a key a user that expires, which is what people use today. Both take turns, so that a
/// slow minute of the machine slows both: the median of rounds, the lowest and the highest.
fn transitions(server: &Server, users: usize) {
    let mut link = server.link();
    link.load();
    let partitions = Partitions::new(PARTITIONS_MIN.into()).unwrap();
    let hot = partitions.hot_key(partitions.all().next().unwrap());
    let mut calls = Calls::new(hot);
    for (at_once, each) in AT_ONCE
        .into_iter()
        .flat_map(|at_once| EACH.map(|each| (at_once, each)))
    {
        let users = names((users / 10).min(20_000 * (1 + each / 10)) / each * each);
        let mut rounds = [[0.0; ROUNDS]; 2];
        let [ours, plain] = &mut rounds;
        for (ours, plain) in ours.iter_mut().zip(plain) {
            let before = server.cpu_seconds();
            for groups in users.chunks(each * at_once) {
                calls.say_all(&mut link, groups.chunks(each), claim);
            }
            for groups in users.chunks(each * at_once) {
                calls.say_all(&mut link, groups.chunks(each), |vouch, user| {
                    vouch.withdraw(user, BEAT, Unix::from_ms(7));
                });
            }
            let between = server.cpu_seconds();
            users
                .chunks(each * at_once)
                .for_each(|group| beat(&mut link, group));
            *ours = (between - before) * 1e6 / (2 * users.len()) as f64;
            *plain = (server.cpu_seconds() - between) * 1e6 / users.len() as f64;
            users.chunks(100).for_each(|group| forget(&mut link, group));
        }
        let [ours, plain] = rounds.map(|mut rounds| {
            rounds.sort_by(f64::total_cmp);
            let [lowest, .., highest] = rounds;
            (rounds[ROUNDS / 2], lowest, highest)
        });
        println!(
            "  {at_once:>2} calls at once of {each:>3} users  {:6.2} us a transition ({:.2} to \
             {:.2}); a SET EX of each, {:4} at once, {:6.2} us ({:.2} to {:.2})",
            ours.0,
            ours.1,
            ours.2,
            each * at_once,
            plain.0,
            plain.1,
            plain.2
        );
    }
}

/// Processor time and bytes of handing a message to one more node.
fn deliveries(count: usize) {
    let Some(server) = Server::start() else {
        return;
    };
    let mut link = server.link();
    let channel = "gd:{1234}";
    let message = "m".repeat(MESSAGE_BYTES);
    let mut nodes: Vec<Link> = Vec::new();
    for at_once in AT_ONCE {
        let writes = count / at_once;
        let round = |link: &mut Link, nodes: &mut [Link]| {
            let before = (server.cpu_seconds(), figure(link, "stats", OUTPUT));
            for _ in 0..writes {
                link.send_all((0..at_once).map(|_| ["SPUBLISH", channel, &message]));
                (0..at_once).for_each(|_| drop(link.read()));
                for node in nodes.iter_mut() {
                    (0..at_once).for_each(|_| assert_eq!(node.read().list().len(), 3));
                }
            }
            let after = (server.cpu_seconds(), figure(link, "stats", OUTPUT));
            let each = (writes * at_once * NODES) as f64;
            (
                (after.0 - before.0) * 1e6 / each,
                (after.1 - before.1) as f64 / each,
            )
        };
        nodes.clear();
        let alone = round(&mut link, &mut nodes);
        nodes.extend((0..NODES).map(|_| {
            let mut node = server.link();
            node.ask(["SSUBSCRIBE", channel]);
            node
        }));
        let heard = round(&mut link, &mut nodes);
        println!(
            "{at_once:>2} messages at once to {NODES} nodes: {:.2} us and {:.0} bytes for each",
            heard.0 - alone.0,
            heard.1 - alone.1
        );
    }
}

/// A beat as people have it today: a write to a key of the user's own, every time.
fn beat(link: &mut Link, group: &[UserBuf]) {
    let words = group.iter();
    link.send_all(words.map(|user| ["SET", user.as_str(), "1", "EX", "25"]));
    for _ in group {
        assert_eq!(link.read(), Answer::Word("OK".to_owned()));
    }
}

/// So that none of them expires while something else is measured.
fn forget(link: &mut Link, users: &[UserBuf]) {
    link.send_all(users.iter().map(|user| ["DEL", user.as_str()]));
    for _ in users {
        assert_eq!(link.read(), Answer::Number(1));
    }
}

/// Memory for each user, of names of 16 bytes.
fn memory(count: usize, partitions: u32) {
    let Some(server) = Server::start() else {
        return;
    };
    let mut link = server.link();
    link.load();
    let partitions = Partitions::new(partitions).unwrap();
    let mut users = vec![Vec::new(); usize::from(partitions.count())];
    for name in names(count) {
        users[partitions.of(name.user()).index()].push(name);
    }
    let empty = used_memory(&mut link);
    let mut calls: Vec<Calls> = partitions
        .all()
        .map(|partition| Calls::new(partitions.hot_key(partition)))
        .collect();
    // Messages that are so long that the ring has their heads alone.
    for (calls, users) in calls.iter_mut().zip(&users) {
        for group in users.chunks(CALL_USERS_MAX) {
            calls.claim(&mut link, group);
        }
    }
    let online = used_memory(&mut link);
    let used = calls.iter_mut().zip(&users);
    for (calls, users) in used.filter(|(_, users)| !users.is_empty()) {
        for flags in [AWAY, UserFlags::PLAIN]
            .into_iter()
            .cycle()
            .take(RING_MESSAGES as usize)
        {
            calls.say(&mut link, &users[..1], |vouch, user| {
                let (status, invisible) = (Some(flags.status()), None);
                vouch.set_flags(user, Saying { status, invisible });
            });
        }
    }
    let ringed = used_memory(&mut link);
    let keys = key_bytes(&mut link, &partitions);
    for (partition, users) in partitions.all().zip(&users) {
        offline(&mut link, &partitions, partition, users);
    }
    let offline = used_memory(&mut link);
    let each = |bytes: u64| bytes as f64 / count as f64;
    println!(
        "memory of {count} users in {} partitions",
        partitions.count()
    );
    println!("  online  {:6.1} bytes a user", each(online - empty));
    println!(
        "  with all rings full of single changes {:6.1}",
        each(ringed - empty)
    );
    println!("  the same, as MEMORY USAGE has it {:6.1}", each(keys));
    println!("  offline {:6.1} bytes a user", each(offline - ringed));
}

/// What the keys of all partitions take, by Redis' own account.
fn key_bytes(link: &mut Link, partitions: &Partitions) -> u64 {
    for partition in partitions.all() {
        let hot = partitions.hot_key(partition);
        link.send(["MEMORY", "USAGE", &hot, "SAMPLES", "0"]);
    }
    let bytes = partitions.all().map(|_| match link.read() {
        Answer::Number(bytes) => bytes as u64,
        other => panic!("{other:?} is no number"),
    });
    bytes.sum()
}

fn offline(link: &mut Link, partitions: &Partitions, partition: Partition, users: &[UserBuf]) {
    let buckets = Layout::default().buckets;
    let value = GONE.encode();
    for user in users {
        let key = partitions.offline_key(partition, bucket_of(user.user(), buckets));
        link.send([b"HSET", key.as_bytes(), user.as_str().as_bytes(), &value]);
    }
    for _ in users {
        assert_eq!(link.read(), Answer::Number(1));
    }
}

/// Memory of each user in a bucket of about so many, and processor time of writing one that is
/// there, and of reading it.
fn buckets(count: usize, each: usize) {
    let Some(server) = Server::start() else {
        return;
    };
    let mut link = server.link();
    let partitions = Partitions::new(PARTITIONS_MIN.into()).unwrap();
    let parts = usize::from(partitions.count());
    let buckets = (count / parts / each).max(1);
    let users = names(parts * buckets * each);
    let empty = used_memory(&mut link);
    let mut pass = |command: &str, value: Option<&[u8]>| {
        let before = server.cpu_seconds();
        for group in users.chunks(1_000) {
            let keys = group.iter().map(UserBuf::user).map(|user| {
                partitions.offline_key(partitions.of(user), bucket_of(user, buckets as u32))
            });
            link.send_all(group.iter().zip(keys).map(|(user, key)| {
                let words = [command, &key, user.as_str()].map(|word| word.as_bytes().to_vec());
                words.into_iter().chain(value.map(<[u8]>::to_vec))
            }));
            group.iter().for_each(|_| drop(link.read()));
        }
        (server.cpu_seconds() - before) * 1e6 / users.len() as f64
    };
    let value = GONE.encode();
    pass("HSET", Some(&value));
    let (written, read) = (pass("HSET", Some(&value)), pass("HMGET", None));
    let bytes = (used_memory(&mut link) - empty) as f64 / users.len() as f64;
    println!(
        "{each:>5} users a bucket, of {buckets:>3} a partition: {bytes:6.1} bytes a user, written \
         in {written:.2} us, read in {read:.2} us"
    );
}

/// One life's calls to one partition.
struct Calls {
    hot: String,
    k: u64,
}

impl Calls {
    fn new(hot: String) -> Calls {
        Calls { hot, k: 0 }
    }

    fn claim(&mut self, link: &mut Link, group: &[UserBuf]) {
        self.say(link, group, claim);
    }

    fn say(&mut self, link: &mut Link, group: &[UserBuf], say: impl Fn(&mut Vouch, User<'_>)) {
        self.say_all(link, [group].into_iter(), say);
    }

    /// A call for each group, all of them in one write.
    fn say_all<'u>(
        &mut self,
        link: &mut Link,
        groups: impl Iterator<Item = &'u [UserBuf]>,
        say: impl Fn(&mut Vouch, User<'_>),
    ) {
        let calls: Vec<Call> = groups.map(|group| self.call(group, &say)).collect();
        link.send_all(calls.iter().map(Call::words));
        for _ in &calls {
            let answer = link.read().bytes();
            let Ok(Vouched::Done { outcomes, .. }) = Vouched::parse(&answer) else {
                panic!("{answer:?}");
            };
            let is_told = |outcome| matches!(outcome, Outcome::Told | Outcome::Updated);
            assert!(outcomes.iter().copied().all(is_told), "{outcomes:?}");
        }
    }

    fn call(&mut self, group: &[UserBuf], say: &impl Fn(&mut Vouch, User<'_>)) -> Call {
        self.k += 1;
        let mut vouch = Vouch::new(&Caller {
            life: LIFE,
            mode: if self.k == 1 {
                Mode::Enrol
            } else {
                Mode::InTurn
            },
            birth: Birth(*b"birthday"),
            k: self.k,
            not_after: Unix::LATEST,
        });
        for user in group {
            say(&mut vouch, user.user());
        }
        vouch.call(&self.hot)
    }
}

fn claim(vouch: &mut Vouch, user: User<'_>) {
    vouch.claim(user, Some(UserFlags::PLAIN), BEAT, None);
}

/// A primary with all slots, and its replica.
fn pair() -> Option<(Server, Server)> {
    let (primary, replica) = (Server::start_member()?, Server::start_member()?);
    let (mut first, mut second) = (primary.link(), replica.link());
    first.ask(["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    let (port, bus) = (primary.port?.to_string(), primary.bus?.to_string());
    second.ask(["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
    let id = String::from_utf8(first.ask(["CLUSTER", "MYID"]).bytes()).unwrap();
    wait_until("the replica takes its place", || {
        second.ask(["CLUSTER", "REPLICATE", &id]) == Answer::Word("OK".to_owned())
    });
    wait_until("the replica has everything", || {
        first.ask(["WAIT", "1", "100"]) == Answer::Number(1)
    });
    wait_until("the cluster serves", || {
        let info = String::from_utf8(first.ask(["CLUSTER", "INFO"]).bytes()).unwrap();
        info.contains("cluster_state:ok")
    });
    Some((primary, replica))
}

fn used_memory(link: &mut Link) -> u64 {
    figure(link, "memory", "used_memory:")
}

/// What Redis says of itself.
fn figure(link: &mut Link, section: &str, name: &str) -> u64 {
    let info = String::from_utf8(link.ask(["INFO", section]).bytes()).unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().parse().unwrap()
}

/// Of 16 bytes each.
fn names(count: usize) -> Vec<UserBuf> {
    let name = |at| UserBuf::from_text(format!("user-{at:011}")).unwrap();
    (0..count).map(name).collect()
}
