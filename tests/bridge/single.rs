//! One server, and one with a replica.

use std::time::Duration;

use greendot::fleet::partition::{LANES, LAYOUT};
use greendot::fleet::replies::Refusal;
use greendot::fleet::traffic::{Failed, Reply, To};
use rustix::process::Signal;

use crate::ear::{Ear, Noted, Outcome, url, words};
use crate::failing::signal;
use crate::members::ok;
use crate::redis::{Answer, Server, wait_until};

#[test]
fn all_partitions_are_heard() {
    let Some(server) = Server::start_on_port(&[]) else {
        return;
    };
    for count in [64, 1_024] {
        let mut ear = Ear::new(&url(server.port), count);
        ear.until_all_heard();
        ear.expect_all_to_be_heard("one");
        ear.until("it is read", |ear| {
            ear.log.iter().any(|noted| matches!(noted, Noted::Heard(_)))
        });
        let figures = ear.figures();
        assert_eq!((figures.connections, figures.subscriptions), (2, count));
        assert_eq!(
            (figures.reconnects, figures.moved, figures.refused),
            (0, 0, 0)
        );
        assert_eq!(figures.messages, u64::from(count));
        let (servers, fault) = ear.status();
        assert_eq!((servers.len(), fault), (1, None));
        assert_eq!(
            servers[0].address.to_string(),
            format!("127.0.0.1:{}", server.port.unwrap())
        );
        assert_eq!(
            (servers[0].partitions, servers[0].heard),
            (count as u16, count as u16)
        );
        assert_eq!(servers[0].fault, None);
    }
}

#[test]
fn commands_are_answered_in_order() {
    let Some(server) = Server::start_on_port(&[]) else {
        return;
    };
    let mut ear = Ear::new(&url(server.port), 64);
    ear.until_all_heard();
    let partition = ear.partition(7);
    let at = ear.server_of(partition).unwrap();
    let hot = ear.partitions.hot_key(partition);
    let incr = || words(&["HINCRBY", &hot, "count", "1"]);
    let tags: Vec<_> = (0..500)
        .map(|_| ear.send(To::Partition(partition), vec![incr(), incr()]))
        .collect();
    for (pair, tag) in (0_i64..).zip(tags) {
        let replies = vec![Reply::Number(2 * pair + 1), Reply::Number(2 * pair + 2)];
        assert_eq!(ear.outcome(tag), Outcome::Answered(at, replies));
    }
    // An error of one call leaves the others as they are.
    let calls = vec![words(&["GET", &hot]), words(&["HGET", &hot, "none"])];
    let wrong = "WRONGTYPE Operation against a key holding the wrong kind of value";
    let replies = vec![Reply::Error(wrong.into()), Reply::Nil];
    let outcome = ear.ask(To::Partition(partition), calls);
    assert_eq!(outcome, Outcome::Answered(at, replies));
    for key in LANES.into_iter().chain([LAYOUT]) {
        let outcome = ear.ask(To::Key(key), vec![words(&["HSETNX", key, "a", "b"])]);
        assert_eq!(outcome, Outcome::Answered(at, vec![Reply::Number(1)]));
    }
}

#[test]
fn the_library_is_loaded_and_again_when_it_is_gone() {
    let Some(server) = Server::start_on_port(&[]) else {
        return;
    };
    let mut ear = Ear::new(&url(server.port), 64);
    ear.until_all_heard();
    let partition = ear.partition(0);
    let hot = ear.partitions.hot_key(partition);
    let fcall = || words(&["FCALL", "gd1_fence", "1", &hot, "short"]);
    let calls = || vec![fcall(), words(&["HINCRBY", &hot, "count", "1"]), fcall()];
    for count in 1..=3 {
        let Outcome::Answered(_, replies) = ear.ask(To::Partition(partition), calls()) else {
            panic!("no answer");
        };
        let refusals = [&replies[0], &replies[2]].map(|reply| match reply {
            Reply::Error(error) => Refusal::parse(error),
            _ => None,
        });
        assert_eq!(refusals, [Some(Refusal::Arguments); 2], "{replies:?}");
        // What was done is not done twice.
        assert_eq!(replies[1], Reply::Number(count));
        ok(server.link().ask(["FUNCTION", "FLUSH"]));
    }
}

#[test]
fn more_than_may_wait_is_not_reached() {
    let Some(server) = Server::start_on_port(&[]) else {
        return;
    };
    let mut ear = Ear::new(&url(server.port), 64);
    ear.until_all_heard();
    let partition = ear.partition(0);
    let hot = ear.partitions.hot_key(partition);
    let value = "x".repeat(1 << 20);
    signal(&server, Signal::STOP);
    let set = || words(&["HSET", &hot, "value", &value]);
    let tags: Vec<_> = (0..40)
        .map(|_| ear.send(To::Partition(partition), vec![set()]))
        .collect();
    // Sockets and queue take less than half of them.
    ear.until("some are refused", |ear| ear.figures().refused >= 10);
    signal(&server, Signal::CONT);
    let outcomes: Vec<_> = tags.into_iter().map(|tag| ear.outcome(tag)).collect();
    let unreached = Outcome::Failed(Failed::Unreached);
    let refused = outcomes.iter().filter(|outcome| **outcome == unreached);
    assert!(refused.count() >= 10, "{outcomes:?}");
}

#[test]
fn a_server_that_begins_anew_is_another_one() {
    let Some(mut server) = Server::start_on_port(&[]) else {
        return;
    };
    let mut ear = Ear::new(&url(server.port), 64);
    ear.until_all_heard();
    let partition = ear.partition(0);
    let before = ear.server_of(partition).unwrap();
    ear.log.clear();
    server.restart();
    ear.until("none is heard", |ear| {
        ear.heard_at.iter().all(Option::is_none)
    });
    ear.until_all_heard();
    let after = ear.server_of(partition).unwrap();
    assert_ne!(before, after);
    // All that was heard is ended before anything comes from the new one.
    let first = ear.log.iter().position(|noted| {
        matches!(noted, Noted::Subscribed(server) | Noted::Heard(server)
            | Noted::Answered(server) if *server == after)
    });
    let last = ear
        .log
        .iter()
        .rposition(|noted| *noted == Noted::Unsubscribed);
    assert!(last < first, "{:?}", ear.log);
    assert_eq!(ear.silent, [before]);
    ear.expect_all_to_be_heard("again");
}

#[test]
fn a_primary_that_becomes_a_replica_is_not_believed() {
    let Some(first) = Server::start_on_port(&[]) else {
        return;
    };
    let second = Server::start_on_port(&[]).unwrap();
    let [one, other] = [&first, &second].map(|server| server.port.unwrap().to_string());
    ok(second.link().ask(["REPLICAOF", "127.0.0.1", &one]));
    wait_until("the replica has everything", || {
        let info = second.link().ask(["INFO", "replication"]).bytes();
        String::from_utf8(info)
            .unwrap()
            .contains("master_link_status:up")
    });
    // Only the replica is named: the primary is who it says.
    let mut ear = Ear::new(&url(second.port), 64);
    ear.until_all_heard();
    let partition = ear.partition(0);
    let mut servers = vec![ear.server_of(partition).unwrap()];
    for (old, new, port) in [(&first, &second, &other), (&second, &first, &one)] {
        let before = *servers.last().unwrap();
        ok(new.link().ask(["REPLICAOF", "NO", "ONE"]));
        ok(old.link().ask(["REPLICAOF", "127.0.0.1", port]));
        ear.until("the other is heard", |ear| {
            let now = ear.server_of(partition);
            now.is_some() && now != Some(before)
        });
        ear.until_all_heard();
        ear.expect_all_to_be_heard("promoted");
        servers.push(ear.server_of(partition).unwrap());
    }
    // The one that is back is not the one that it was.
    assert!(servers[0] != servers[2], "{servers:?}");
    let hot = ear.partitions.hot_key(partition);
    let outcome = ear.ask_partition(partition, words(&["HSET", &hot, "a", "b"]));
    assert_eq!(
        outcome,
        Outcome::Answered(servers[2], vec![Reply::Number(1)])
    );
}

#[test]
fn a_replica_that_is_promoted_takes_over_from_a_dead_primary() {
    let Some(mut first) = Server::start_on_port(&[]) else {
        return;
    };
    let second = Server::start_on_port(&[]).unwrap();
    let port = first.port.unwrap().to_string();
    ok(second.link().ask(["REPLICAOF", "127.0.0.1", &port]));
    wait_until("the primary knows its replica", || {
        let info = first.link().ask(["INFO", "replication"]).bytes();
        String::from_utf8(info).unwrap().contains("state=online")
    });
    let mut ear = Ear::new(&url(first.port), 64);
    ear.until_all_heard();
    let partition = ear.partition(0);
    let before = ear.server_of(partition);
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    ear.until("none is heard", |ear| {
        ear.heard_at.iter().all(Option::is_none)
    });
    let hot = ear.partitions.hot_key(partition);
    let outcome = ear.ask_partition(partition, words(&["HGET", &hot, "a"]));
    assert_eq!(outcome, Outcome::Failed(Failed::Unreached));
    std::thread::sleep(Duration::from_millis(300));
    assert!(
        ear.heard_at.iter().all(Option::is_none),
        "a replica is not listened to"
    );
    assert_eq!(
        second.link().ask(["REPLICAOF", "NO", "ONE"]),
        Answer::Word("OK".into())
    );
    ear.until_all_heard();
    assert_ne!(ear.server_of(partition), before);
    ear.expect_all_to_be_heard("promoted");
}
