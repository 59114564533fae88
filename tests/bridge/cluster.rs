//! A cluster: slots that move, primaries that die, stop or hand over.

use std::time::Duration;

use greendot::fleet::partition::Partition;
use greendot::fleet::traffic::{Failed, Reply, To};
use rustix::process::Signal;

use crate::ear::{Ear, Noted, Outcome, words};
use crate::failing::signal;
use crate::members::{cluster, id, info, ok};
use crate::redis::{Answer, Link, Server, wait_until};

fn ear(members: &[Server], partitions: u32) -> Ear {
    // A replica is enough to begin with.
    let port = members[4].port.unwrap();
    let mut ear = Ear::new(&format!("redis://127.0.0.1:{port}"), partitions);
    ear.until_all_heard();
    ear.expect_all_to_be_heard("at first");
    ear
}

fn is_primary(link: &mut Link) -> bool {
    info(link, &["INFO", "replication"]).contains("role:master")
}

/// From whom the partitions of a third are heard.
fn servers_of(ear: &Ear) -> [Option<greendot::fleet::traffic::Server>; 3] {
    let count = usize::from(ear.partitions.count());
    [0, count / 2, count - 1].map(|at| ear.heard_at[at])
}

#[test]
fn all_are_heard_again_after_failovers() {
    let Some(mut members) = cluster() else {
        return;
    };
    let mut ear = ear(&members, 1_024);
    let begun = servers_of(&ear);
    assert!(begun[0] != begun[1] && begun[1] != begun[2]);
    let figures = ear.figures();
    assert_eq!((figures.connections, figures.subscriptions), (6, 1_024));

    for (third, how) in [
        (0, &["CLUSTER", "FAILOVER"][..]),
        (1, &["CLUSTER", "FAILOVER", "FORCE"]),
    ] {
        let before = servers_of(&ear);
        let mut replica = members[third + 3].link();
        ok(replica.ask(how));
        wait_until("the replica is promoted", || is_primary(&mut replica));
        ear.until("another is heard", |ear| {
            let now = servers_of(ear)[third];
            now.is_some() && now != before[third]
        });
        ear.until_all_heard();
        ear.expect_all_to_be_heard(how.last().unwrap());
        let after = servers_of(&ear);
        let same = (0..3).filter(|&at| before[at] == after[at]).count();
        assert_eq!(same, 2, "the others are as they were");
    }

    let before = servers_of(&ear);
    members[2].child.kill().unwrap();
    members[2].child.wait().unwrap();
    ear.until("its partitions are not heard", |ear| {
        servers_of(ear)[2].is_none()
    });
    // The others do not wait for it.
    let partition = ear.partition(0);
    let hot = ear.partitions.hot_key(partition);
    let outcome = ear.ask_partition(partition, words(&["HINCRBY", &hot, "count", "1"]));
    assert_eq!(
        outcome,
        Outcome::Answered(before[0].unwrap(), vec![Reply::Number(1)])
    );
    ear.until_all_heard();
    ear.expect_all_to_be_heard("killed");
    assert_eq!(servers_of(&ear)[..2], before[..2]);
    ear.until("who is not needed is let go", |ear| {
        ear.status().0.len() == 3 && ear.figures().connections == 6
    });
}

/// What it takes to move the slot of a partition to another primary.
struct Move<'e> {
    slot: String,
    hot: String,
    from: &'e Server,
    to: &'e Server,
}

impl<'e> Move<'e> {
    fn new(ear: &Ear, partition: Partition, from: &'e Server, to: &'e Server) -> Move<'e> {
        Move {
            slot: ear.partitions.slot(partition).to_string(),
            hot: ear.partitions.hot_key(partition),
            from,
            to,
        }
    }

    fn open(&self) {
        let (mut from, mut to) = (self.from.link(), self.to.link());
        let (old, new) = (id(&mut from), id(&mut to));
        ok(to.ask(["CLUSTER", "SETSLOT", &self.slot, "IMPORTING", &old]));
        ok(from.ask(["CLUSTER", "SETSLOT", &self.slot, "MIGRATING", &new]));
    }

    fn carry(&self) {
        self.carry_key(&self.hot);
    }

    fn carry_key(&self, key: &str) {
        let port = self.to.port.unwrap().to_string();
        let words = ["MIGRATE", "127.0.0.1", &port, key, "0", "5000"];
        let moved = self.from.link().ask(words);
        assert!(matches!(moved, Answer::Word(_)), "{moved:?}");
    }

    fn close(&self) {
        let new = id(&mut self.to.link());
        for server in [self.to, self.from] {
            ok(server
                .link()
                .ask(["CLUSTER", "SETSLOT", &self.slot, "NODE", &new]));
        }
    }
}

#[test]
fn slots_move_with_and_without_traffic() {
    let Some(members) = cluster() else {
        return;
    };
    let mut ear = ear(&members, 64);
    // Without traffic.
    let [there, _, elsewhere] = servers_of(&ear);
    let first = ear.partition(0);
    let moving = Move::new(&ear, first, &members[0], &members[2]);
    moving.open();
    moving.carry();
    moving.close();
    ear.until("it is heard elsewhere", |ear| ear.heard_at[0] == elsewhere);
    ear.until_all_heard();
    ear.expect_all_to_be_heard("moved");
    assert_eq!(ear.heard_at[1], there, "its neighbour stays");

    // With traffic: each call is done once, or was said not to be.
    let second = ear.partition(1);
    let hot = ear.partitions.hot_key(second);
    let moving = Move::new(&ear, second, &members[0], &members[2]);
    let incr = || words(&["HINCRBY", &hot, "count", "1"]);
    let mut count = 0;
    let mut say = |ear: &mut Ear, times: usize| {
        let tags: Vec<_> = (0..times)
            .map(|_| ear.send(To::Partition(second), vec![incr()]))
            .collect();
        for tag in tags {
            match ear.outcome(tag) {
                Outcome::Answered(_, replies) => {
                    count += 1;
                    assert_eq!(replies, [Reply::Number(count)]);
                }
                Outcome::Failed(why) => assert_ne!(why, Failed::Lost),
            }
        }
    };
    say(&mut ear, 20);
    moving.open();
    // Its key is still there.
    say(&mut ear, 20);
    moving.carry();
    // Whoever imports it is asked.
    say(&mut ear, 20);
    moving.close();
    say(&mut ear, 20);
    ear.until("it is heard elsewhere", |ear| ear.heard_at[1] == elsewhere);
    say(&mut ear, 20);
    assert!(count >= 60, "{count}");
    ear.until_all_heard();
    ear.expect_all_to_be_heard("moved under load");
    assert!(ear.figures().moved > 0);
}

#[test]
fn while_a_slot_moves_whoever_has_the_key_answers() {
    let Some(members) = cluster() else {
        return;
    };
    let mut ear = ear(&members, 64);
    let [there, _, elsewhere] = servers_of(&ear);
    let (there, elsewhere) = (there.unwrap(), elsewhere.unwrap());
    let partition = ear.partition(0);
    let hot = ear.partitions.hot_key(partition);
    let other = ear.partitions.offline_key(partition, 0);
    let read = |ear: &mut Ear, key: &str| {
        ear.ask_partition(partition, words(&["HINCRBY", key, "count", "1"]))
    };
    for key in [&hot, &other] {
        let outcome = read(&mut ear, key);
        assert_eq!(outcome, Outcome::Answered(there, vec![Reply::Number(1)]));
    }
    let moving = Move::new(&ear, partition, &members[0], &members[2]);
    moving.open();
    moving.carry();
    let outcome = read(&mut ear, &hot);
    assert_eq!(
        outcome,
        Outcome::Answered(elsewhere, vec![Reply::Number(2)])
    );
    let outcome = read(&mut ear, &other);
    assert_eq!(outcome, Outcome::Answered(there, vec![Reply::Number(2)]));
    // One command whose keys are at two places.
    let calls = [&hot, &other, &hot].map(|key| words(&["HINCRBY", key, "count", "1"]));
    let outcome = ear.ask(To::Partition(partition), calls.into());
    let counts = vec![Reply::Number(3), Reply::Number(3), Reply::Number(4)];
    assert_eq!(outcome, Outcome::Answered(elsewhere, counts));
    // The library is where the key is.
    let outcome = ear.ask_partition(partition, words(&["FCALL", "gd1_fence", "1", &hot, ""]));
    let Outcome::Answered(server, replies) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(server, elsewhere);
    assert!(matches!(&replies[0], Reply::Error(text) if text.starts_with("GDARGS")));
    // And what is published is heard there, however long the slot stays open.
    ear.until("it is heard elsewhere", |ear| {
        ear.heard_at[0] == Some(elsewhere)
    });
    let mut importer = members[2].link();
    let publish = |importer: &mut Link, text: &str| {
        importer.ask(["ASKING"]);
        assert_eq!(importer.ask(["SPUBLISH", &hot, text]), Answer::Number(1));
    };
    publish(&mut importer, "open");
    ear.until("it is heard", |ear| !ear.messages.is_empty());
    assert_eq!(ear.messages.pop(), Some((partition, b"open".to_vec())));

    // The move is taken back: it is heard at home again.
    let port = members[0].port.unwrap().to_string();
    ok(members[0]
        .link()
        .ask(["CLUSTER", "SETSLOT", &moving.slot, "STABLE"]));
    importer.ask(["ASKING"]);
    let back = importer.ask(["MIGRATE", "127.0.0.1", &port, &hot, "0", "5000"]);
    assert_eq!(back, Answer::Word("OK".into()));
    ok(importer.ask(["CLUSTER", "SETSLOT", &moving.slot, "STABLE"]));
    let outcome = read(&mut ear, &hot);
    assert_eq!(outcome, Outcome::Answered(there, vec![Reply::Number(5)]));
    ear.until("it is heard at home", |ear| ear.heard_at[0] == Some(there));
    ear.expect_all_to_be_heard("at home");

    // It moves after all: who is heard already stays so.
    moving.open();
    moving.carry();
    let outcome = read(&mut ear, &hot);
    assert_eq!(
        outcome,
        Outcome::Answered(elsewhere, vec![Reply::Number(6)])
    );
    ear.until("it is heard elsewhere", |ear| {
        ear.heard_at[0] == Some(elsewhere)
    });
    ear.log.clear();
    // Whoever holds a key of a slot does not let it go.
    moving.carry_key(&other);
    moving.close();
    ear.until("its slot is there", |ear| {
        let (servers, _) = ear.status();
        let home = servers.iter().find(|server| server.server == Some(there));
        home.is_some_and(|home| home.partitions == 20)
    });
    ear.expect_all_to_be_heard("elsewhere");
    let changed = |noted: &Noted| matches!(noted, Noted::Unsubscribed | Noted::Subscribed(_));
    assert!(!ear.log.iter().any(changed), "{:?}", ear.log);
}

#[test]
fn a_primary_that_lies_still_holds_up_nobody_else() {
    let Some(members) = cluster() else {
        return;
    };
    for member in &members[3..] {
        ok(member
            .link()
            .ask(["CONFIG", "SET", "cluster-replica-no-failover", "yes"]));
    }
    for member in &members {
        ok(member
            .link()
            .ask(["CONFIG", "SET", "cluster-require-full-coverage", "no"]));
    }
    let mut ear = ear(&members, 64);
    let [first, second, third] = servers_of(&ear).map(Option::unwrap);
    signal(&members[0], Signal::STOP);
    let stopped = ear.partition(0);
    let hot = ear.partitions.hot_key(stopped);
    let lost = ear.send(To::Partition(stopped), vec![words(&["HGET", &hot, "a"])]);
    for (at, server) in [(32, second), (63, third)] {
        let partition = ear.partition(at);
        let hot = ear.partitions.hot_key(partition);
        for count in 1..=50 {
            let call = words(&["HINCRBY", &hot, "count", "1"]);
            let outcome = ear.ask_partition(partition, call);
            assert_eq!(
                outcome,
                Outcome::Answered(server, vec![Reply::Number(count)])
            );
        }
    }
    assert_eq!(ear.outcome(lost), Outcome::Failed(Failed::Lost));
    ear.until("it is silent", |ear| !ear.silent.is_empty());
    assert_eq!(ear.silent, [first]);
    ear.log.clear();
    std::thread::sleep(Duration::from_millis(2_500));
    ear.until("the others are read", |ear| {
        [second, third].iter().all(|server| {
            let heard = Noted::Heard(*server);
            ear.log.iter().filter(|noted| **noted == heard).count() >= 2
        })
    });
    assert_eq!(ear.silent, [first], "it is said once, and of nobody else");
    signal(&members[0], Signal::CONT);
    ear.until_all_heard();
    assert_eq!(servers_of(&ear).map(Option::unwrap), [first, second, third]);
    ear.expect_all_to_be_heard("again");
}
