//! Shards that can not keep up with each other's mail.

use std::collections::BTreeMap;

use serde_json::json;

use crate::harness::{Home, Record, Sender, Server, until};
use crate::stream::Stream;

const USERS: usize = 300;
/// Of each shard.
const WATCHERS: usize = 4;

/// What a server must be told to have no room for mail, and no time for much in a turn: each
/// datagram is a turn of its own, hence a piece of mail.
const CRAMPED: &[&str] = &["--shards=2", "--mailbox-max=1", "--beats-per-turn-max=1"];

/// Watchers on either shard, each with what it was told last of everybody.
struct Watchers(Vec<(Stream, BTreeMap<String, Record>)>);

impl Watchers {
    fn open(server: &Server, users: &[String]) -> Watchers {
        let mut watchers = Vec::new();
        let mut missing = [WATCHERS; 2];
        while missing != [0; 2] {
            let query: Vec<String> = users.iter().map(|user| format!("watch={user}")).collect();
            let mut stream = server.stream(&query.join("&"));
            let (hello, told) = stream.begin();
            let id = hello["stream"].as_str().expect("an id");
            // An id begins with its shard; what one shard has more than it needs is let go.
            let missing = &mut missing[usize::from(id.starts_with("1."))];
            if *missing > 0 {
                *missing -= 1;
                let told = told.into_iter().map(|record| (record.user.clone(), record));
                watchers.push((stream, told.collect()));
            }
        }
        Watchers(watchers)
    }

    /// Reads until each of them believes what is so.
    fn expect_truth(&mut self, server: &Server, users: &[String]) {
        let answer = server
            .post("/v1/presence/query", &json!({"users": users}))
            .json();
        let records = answer["presence"]
            .as_array()
            .expect("a list")
            .iter()
            .map(Record::of);
        let truth: BTreeMap<String, Option<u64>> = records
            .map(|record| (record.user.clone(), record.since))
            .collect();
        for (stream, told) in &mut self.0 {
            while truth.iter().any(|(user, since)| told[user].since != *since) {
                let record = stream.presence();
                let before = told
                    .insert(record.user.clone(), record.clone())
                    .expect("it is watched");
                assert!(before.since <= record.since, "{record:?} after {before:?}");
            }
        }
    }
}

/// One edit at a time waits for another shard here; the others are told so, and nothing of them
/// has happened.
#[test]
pub(crate) fn edits_beyond_their_bytes_are_refused() {
    let home = Home::new();
    let server = home.serve(&["--shards=2", "--mailbox-bytes-max=0"]);
    let mut stream = server.stream("");
    let hello = stream.expect("hello").data;
    let id = hello["stream"].as_str().expect("an id");
    let path = format!("/v1/stream/{id}/watch");
    let users: Vec<String> = (0..500).map(|n| format!("u{n}")).collect();
    let edit = json!({ "add": users }).to_string();
    until("an edit is refused", || {
        let mut conns: Vec<_> = (0..40).map(|_| server.connect()).collect();
        conns
            .iter_mut()
            .for_each(|conn| conn.send_post(&path, edit.as_bytes()));
        for conn in &mut conns {
            let answer = conn.answer();
            assert!([200, 503].contains(&answer.status), "{}", answer.text());
        }
        let metrics = server.metrics();
        let refused = metrics.sum("greendot_limit_hits_total{limit=\"mailbox-bytes-max\"}");
        (refused > 0.0).then_some(())
    });
}

/// Everybody comes or goes, each in a datagram of his own.
fn burst(sender: &Sender, users: &[String], leave: bool) {
    for user in users {
        if leave {
            sender.leave(&[user]);
        } else {
            sender.beat(&[user]);
        }
    }
}

/// All of the users are of one shard's chunk, so the other shard's watchers hear of each change by
/// mail, or by the resync.
#[test]
pub(crate) fn a_full_mailbox_makes_its_shard_look_for_itself() {
    let home = Home::new();
    let slow = ["--beat-interval-ms=30s", "--offline-after-ms=60s"];
    let server = home.serve(&[CRAMPED, &slow].concat());
    let users: Vec<String> = (0..USERS).map(|n| format!("u{n}")).collect();
    let sender = server.sender();
    let mut watchers = Watchers::open(&server, &users);
    for round in 0..6 {
        let online = if round % 2 == 0 { USERS } else { 0 };
        burst(&sender, &users, online == 0);
        server.expect_metric("greendot_users_online", |count| count == online as f64);
        watchers.expect_truth(&server, &users);
    }
    let metrics = server.metrics();
    assert!(metrics.sum("greendot_mail_overflows_total") > 0.0);
    let resyncs = metrics.sum("greendot_resyncs_total");
    assert!(resyncs > 0.0);
    assert_eq!(
        metrics.sum("greendot_limit_hits_total{limit=\"mailbox-max\"}"),
        resyncs
    );
}
