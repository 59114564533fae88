//! A server that lies still, cuts connections, or is overrun.

use std::sync::Arc;
use std::time::Duration;

use greendot::bridge::Link;
use greendot::fleet::partition::Partitions;
use greendot::fleet::traffic::{Event, Failed, Reply};
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Builder;
use tokio::time::Instant;

use crate::ear::{Ear, Noted, Outcome, options, url, words};
use crate::redis::{Answer, Server};

pub(crate) fn signal(server: &Server, signal: Signal) {
    kill_process(Pid::from_child(&server.child), signal).unwrap();
}

#[test]
fn a_server_that_lies_still_is_silent_and_the_same_when_it_goes_on() {
    let Some(server) = Server::start_on_port(&[]) else {
        return;
    };
    let mut ear = Ear::new(&url(server.port), 64);
    ear.until_all_heard();
    let partition = ear.partition(3);
    let at = ear.server_of(partition).unwrap();
    let hot = ear.partitions.hot_key(partition);
    signal(&server, Signal::STOP);
    let outcome = ear.ask_partition(partition, words(&["HINCRBY", &hot, "count", "1"]));
    assert_eq!(outcome, Outcome::Failed(Failed::Lost));
    ear.until("it is silent", |ear| !ear.silent.is_empty());
    assert_eq!(ear.silent, [at]);
    ear.until("none is heard", |ear| {
        ear.heard_at.iter().all(Option::is_none)
    });
    let outcome = ear.ask_partition(partition, words(&["HGET", &hot, "count"]));
    assert_eq!(outcome, Outcome::Failed(Failed::Unreached));
    signal(&server, Signal::CONT);
    ear.log.clear();
    ear.until_all_heard();
    ear.until("it is heard", |ear| ear.log.contains(&Noted::Heard(at)));
    assert_eq!(ear.server_of(partition), Some(at), "it has what it had");
    ear.expect_all_to_be_heard("again");
    // What was given up lay in its buffer, and may have been done.
    let outcome = ear.ask_partition(partition, words(&["HEXISTS", &hot, "count"]));
    assert!(matches!(outcome, Outcome::Answered(server, _) if server == at));
}

#[test]
fn subscriptions_that_are_cut_each_second_come_back() {
    let Some(server) = Server::start_on_port(&[]) else {
        return;
    };
    let mut ear = Ear::new(&url(server.port), 1_024);
    ear.until_all_heard();
    let at = ear.server_of(ear.partition(0));
    for round in 0..4 {
        let killed = server.link().ask(["CLIENT", "KILL", "TYPE", "pubsub"]);
        assert_eq!(killed, Answer::Number(1));
        ear.until("none is heard", |ear| {
            ear.heard_at.iter().all(Option::is_none)
        });
        ear.until_all_heard();
        ear.expect_all_to_be_heard(&format!("round {round}"));
        std::thread::sleep(Duration::from_millis(700));
    }
    assert_eq!(ear.server_of(ear.partition(0)), at);
    assert_eq!(ear.figures().reconnects, 4);
    assert_eq!(ear.silent, []);
}

#[test]
fn commands_go_on_when_their_connection_is_cut() {
    let Some(server) = Server::start_on_port(&[]) else {
        return;
    };
    let mut ear = Ear::new(&url(server.port), 64);
    ear.until_all_heard();
    let partition = ear.partition(0);
    let hot = ear.partitions.hot_key(partition);
    server.link().ask(["CLIENT", "KILL", "TYPE", "normal"]);
    let mut answered = false;
    while !answered {
        let outcome = ear.ask_partition(partition, words(&["HGET", &hot, "a"]));
        answered = match outcome {
            Outcome::Answered(_, replies) => replies == [Reply::Nil],
            Outcome::Failed(why) => {
                assert_ne!(why, Failed::Moved);
                std::thread::sleep(Duration::from_millis(10));
                false
            }
        };
    }
    assert!(
        ear.heard_at.iter().all(Option::is_some),
        "nothing else has happened"
    );
}

#[test]
fn a_subscriber_that_is_overrun_begins_again() {
    let limit = ["--client-output-buffer-limit", "pubsub 1mb 0 0"];
    let Some(server) = Server::start_on_port(&limit) else {
        return;
    };
    let partitions = Arc::new(Partitions::new(64).unwrap());
    let first = partitions.all().next().unwrap();
    let (hot, message) = (partitions.hot_key(first), "x".repeat(100_000));
    let mut publisher = server.link();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let link = Link::start(options(&url(server.port)), partitions, Instant::now());
        let subscribed = async |link: &Link| {
            let mut count = 0;
            while count < 64 {
                count += usize::from(matches!(link.next().await, Event::Subscribed { .. }));
            }
        };
        subscribed(&link).await;
        // The core takes nothing, so at last nothing is read.
        let mut sent = 0_usize;
        while publisher.ask(["SPUBLISH", &hot, &message]) == Answer::Number(1) {
            sent += 1;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(sent * message.len() > 9 << 20, "{sent}");
        let bytes_of = |event: &Event| match event {
            Event::Published { message: heard, .. } => {
                assert_eq!(heard, message.as_bytes());
                heard.len()
            }
            Event::Subscribed { .. } => panic!("before all have ended"),
            _ => 0,
        };
        let waited = std::iter::from_fn(|| link.try_next());
        let mut bytes: usize = waited.map(|event| bytes_of(&event)).sum();
        assert!(bytes <= (8 << 20) + 300_000, "{bytes} have waited");
        let mut ended = 0;
        while ended < 64 {
            let event = link.next().await;
            ended += usize::from(matches!(event, Event::Unsubscribed { .. }));
            bytes += bytes_of(&event);
        }
        assert!(bytes < sent * message.len(), "some are lost");
        subscribed(&link).await;
        assert_eq!(
            publisher.ask(["SPUBLISH", &hot, &message]),
            Answer::Number(1)
        );
    });
}
