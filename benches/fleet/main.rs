//! What a fleet costs its Redis: the server's processor time for each transition, alone and with a
//! replica, and its memory for each user.
//!
//! ```console
//! $ cargo bench --bench fleet
//! ```
//!
//! `GREENDOT_BENCH_USERS` sets how many users, 1,000,000 if it is not given. Calls go out one after
//! the other on one connection, each after the answer to the one before. Only the server is
//! measured, by its own account, so how this program is built does not matter.

#![expect(clippy::unwrap_used, reason = "what fails here is the bench")]

#[expect(dead_code, reason = "the tests ask for more")]
#[path = "../../tests/fleet/redis.rs"]
mod redis;

use greendot::fleet::calls::{Caller, Mode, Vouch};
use greendot::fleet::flags::{Saying, UserFlags};
use greendot::fleet::held::{Gone, Kinds, RING_MESSAGES};
use greendot::fleet::partition::{
    PARTITIONS_MAX, PARTITIONS_MIN, Partition, Partitions, bucket_of,
};
use greendot::fleet::replies::{Outcome, Vouched};
use greendot::fleet::{Birth, CALL_USERS_MAX, Life};
use greendot::status::Status;
use greendot::time::Unix;
use greendot::wire::{User, UserBuf};

use redis::{Answer, Link, Server, wait_until};

const ROUNDS: usize = 3;
const BEAT: Kinds = Kinds::beat(Unix::from_ms(7));
const AWAY: UserFlags = UserFlags::new(Status::Away, false);
const LIFE: Life = Life(*b"life");
/// Users of a bucket of those who are offline, at most and on average: a hash of up to 128 is kept
/// as one piece.
const BUCKET_USERS: usize = 90;

fn main() {
    let users = std::env::var("GREENDOT_BENCH_USERS").map_or(1_000_000, |users| {
        users.parse().expect("GREENDOT_BENCH_USERS is a number")
    });
    let Some(server) = Server::start() else {
        return;
    };
    println!("alone");
    transitions(&server, users);
    if let Some((primary, _replica)) = pair() {
        println!("a primary of a cluster, with a replica");
        transitions(&primary, users);
    }
    memory(users);
}

/// Processor time for each transition, half of them arrivals and half ends: the median of rounds,
/// the lowest and the highest.
fn transitions(server: &Server, users: usize) {
    let mut link = server.link();
    link.load();
    let partitions = Partitions::new(PARTITIONS_MIN.into()).unwrap();
    let hot = partitions.hot_key(partitions.all().next().unwrap());
    let mut calls = Calls::new(hot);
    for each in [1, 10, 100] {
        let users = names((users / 10).min(20_000 * (1 + each / 10)) / each * each);
        let mut rounds = [0; ROUNDS].map(|_| {
            let before = server.cpu_seconds();
            for group in users.chunks(each) {
                calls.claim(&mut link, group);
            }
            for group in users.chunks(each) {
                calls.say(&mut link, group, |vouch, user| {
                    vouch.withdraw(user, BEAT, Unix::from_ms(7));
                });
            }
            (server.cpu_seconds() - before) * 1e6 / (2 * users.len()) as f64
        });
        rounds.sort_by(f64::total_cmp);
        let [lowest, .., highest] = rounds;
        let median = rounds[ROUNDS / 2];
        println!(
            "  {each:>3} users a call  {median:6.2} us a transition ({lowest:.2} to {highest:.2})"
        );
    }
}

/// Memory for each user, of names of 16 bytes, about 1,000 to a partition.
fn memory(count: usize) {
    let Some(server) = Server::start() else {
        return;
    };
    let mut link = server.link();
    link.load();
    let partitions = (count as u32 / 1_000).next_power_of_two();
    let partitions = partitions.clamp(PARTITIONS_MIN.into(), PARTITIONS_MAX.into());
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
    for (calls, users) in calls.iter_mut().zip(&users) {
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
    println!("  offline {:6.1} bytes a user", each(offline - ringed));
}

fn offline(link: &mut Link, partitions: &Partitions, partition: Partition, users: &[UserBuf]) {
    let buckets = users.len().div_ceil(BUCKET_USERS) as u32;
    let gone = Gone {
        since: Unix::from_ms(1_764_009_600_123),
        last_active: Unix::from_ms(1_764_009_575_123),
    };
    let value = gone.encode();
    for user in users {
        let key = partitions.offline_key(partition, bucket_of(user.user(), buckets));
        link.send([b"HSET", key.as_bytes(), user.as_str().as_bytes(), &value]);
    }
    for _ in users {
        assert_eq!(link.read(), Answer::Number(1));
    }
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
        self.say(link, group, |vouch, user| {
            vouch.claim(user, UserFlags::PLAIN, BEAT, None);
        });
    }

    fn say(&mut self, link: &mut Link, group: &[UserBuf], say: impl Fn(&mut Vouch, User<'_>)) {
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
        let answer = link.call(&vouch.call(&self.hot)).bytes();
        let Ok(Vouched::Done { outcomes, .. }) = Vouched::parse(&answer) else {
            panic!("{answer:?}");
        };
        let is_told = |outcome| matches!(outcome, Outcome::Told | Outcome::Updated);
        assert!(outcomes.iter().copied().all(is_told), "{outcomes:?}");
    }
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
    let info = String::from_utf8(link.ask(["INFO", "memory"]).bytes()).unwrap();
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"));
    line.unwrap().parse().unwrap()
}

/// Of 16 bytes each.
fn names(count: usize) -> Vec<UserBuf> {
    let name = |at| UserBuf::from_text(format!("user-{at:011}")).unwrap();
    (0..count).map(name).collect()
}
