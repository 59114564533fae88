//! Webhooks of several nodes over one real Redis: each transition is told, by whichever node.

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use crate::fleet::{Fleet, expect_ready, told};
use crate::fleet_says::erase;
use crate::harness::{Home, Record, Server, pause, until};
use crate::receiver::{Manner, Receiver};

/// Users stay online for so long after a beat.
const LONG: [&str; 2] = ["--offline-after-ms=60s", "--beat-interval-ms=10s"];

struct Hooked {
    fleet: Fleet,
    receiver: Receiver,
    flags: Vec<String>,
}

impl Hooked {
    /// None: there is no Redis here, which is said.
    fn new(more: &[&str]) -> Option<Hooked> {
        let fleet = Fleet::in_home(Home::new())?;
        let receiver = Receiver::new(&fleet.home);
        let own = receiver.flags(&fleet.home).into_iter();
        let more = more.iter().map(|flag| (*flag).to_owned());
        let flags = own.chain(["--webhook-timeout-ms=2s".into()]).chain(more);
        Some(Hooked {
            flags: flags.collect(),
            receiver,
            fleet,
        })
    }

    fn node(&self) -> Server {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        self.fleet.node_with(&flags)
    }

    /// Waits until the receiver was told of everybody last what a node says of them.
    fn expect_last_states(&self, node: &Server, users: &[String]) {
        for user in users {
            until(&format!("the receiver knows the last of {user}"), || {
                let record = node.record(user);
                let last = self.receiver.told(user).pop();
                let (status, since) = last?;
                (((status == "online"), Some(since)) == (record.online, record.since)).then_some(())
            });
        }
    }

    /// How many records there were.
    fn records(&self) -> usize {
        let deliveries = self.receiver.deliveries().into_iter();
        deliveries.map(|it| it.presence.len()).sum()
    }
}

fn posts(node: &Server, path: &str, users: &[String]) {
    let answer = node.post(path, &json!({ "users": users }));
    assert_eq!(answer.status, 204, "{}", answer.text());
}

fn says(node: &Server, body: &Value) {
    let answer = node.post("/v1/status", body);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn users(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{name}-{n:02}")).collect()
}

#[test]
fn each_transition_is_told_as_everybody_sees_it_whichever_node_it_was_at() {
    let Some(hooked) = Hooked::new(&LONG) else {
        return;
    };
    let nodes = [hooked.node(), hooked.node(), hooked.node()];
    let receiver = &hooked.receiver;
    for (node, user) in nodes.iter().zip(["bob", "carol", "dave"]) {
        posts(node, "/v1/beat", &[user.to_owned()]);
        let since = receiver.expect(user, "online");
        assert_eq!(told(node, user, true).since(), since);
    }
    let [one, two, three] = &nodes;
    says(two, &json!({"user": "bob", "status": "away"}));
    receiver.expect("bob", "away");
    says(three, &json!({"user": "bob", "invisible": true}));
    let hid = receiver.expect("bob", "offline");
    assert_eq!(told(two, "bob", false).since(), hid);
    // What he does while he hides shows in nothing.
    says(one, &json!({"user": "bob", "status": "busy"}));
    posts(two, "/v1/leave", &["bob".to_owned()]);
    let _hidden = three.stream("user=bob");
    says(one, &json!({"user": "eve", "invisible": true}));
    let _eve = two.stream("user=eve");
    let before = receiver.told("bob").len();
    posts(two, "/v1/leave", &["carol".to_owned()]);
    receiver.expect("carol", "offline");
    pause(2_000);
    assert_eq!(receiver.told("bob").len(), before);
    assert_eq!(receiver.times_told("eve"), 0);
    says(two, &json!({"user": "bob", "invisible": false}));
    receiver.expect("bob", "busy");
    // Erased: told as gone, and last active never.
    posts(one, "/v1/leave", &["dave".to_owned()]);
    receiver.expect("dave", "offline");
    until("dave is erased", || {
        (erase(two, "dave").status == 204).then_some(())
    });
    until("the receiver is told of the erasure", || {
        let records = receiver.records();
        let last = records.iter().rfind(|record| record["user"] == "dave");
        last.is_some_and(|last| last["last_active"].is_null())
            .then_some(())
    });
    for node in &nodes {
        node.expect_metric("greendot_webhook_queue", |queue| queue == 0.0);
        node.expect_metric("greendot_webhook_behind_seconds", |behind| behind == 0.0);
    }
}

/// A node is killed while its receiver does not answer: others tell what it has not.
#[test]
fn a_sender_that_is_killed_is_followed_by_another() {
    let Some(hooked) = Hooked::new(&[]) else {
        return;
    };
    let [one, two, three] = [(); 3].map(|()| hooked.node());
    let (before, after) = (users("before", 60), users("after", 60));
    posts(&one, "/v1/beat", &before);
    for user in &before {
        hooked.receiver.expect(user, "online");
    }
    hooked.receiver.set(Manner::Hangs);
    posts(&two, "/v1/beat", &after);
    posts(&two, "/v1/leave", &before[..30]);
    hooked.receiver.expect_answered(&Manner::Hangs);
    three.kill();
    hooked.receiver.set(Manner::Takes);
    // Some are gone by their goodbye, and all by their silence in the end.
    let all = [before, after].concat();
    for user in &all {
        told(&one, user, false);
    }
    hooked.expect_last_states(&two, &all);
    for user in &all {
        let statuses = hooked.receiver.told(user);
        assert_eq!(statuses.last().map(|it| it.0.as_str()), Some("offline"));
    }
}

#[test]
fn a_rolling_restart_tells_nothing_that_did_not_change() {
    let Some(hooked) = Hooked::new(&LONG) else {
        return;
    };
    let mut nodes = [(); 3].map(|()| hooked.node());
    let (here, gone) = (users("here", 30), users("gone", 30));
    posts(&nodes[0], "/v1/beat", &here);
    posts(&nodes[1], "/v1/beat", &gone);
    for user in &gone {
        hooked.receiver.expect(user, "online");
    }
    posts(&nodes[2], "/v1/leave", &gone);
    for user in &gone {
        hooked.receiver.expect(user, "offline");
    }
    for user in &here {
        hooked.receiver.expect(user, "online");
    }
    let before = hooked.records();
    for node in &mut nodes {
        let old = std::mem::replace(node, hooked.node());
        assert!(old.terminate().success());
    }
    // Whatever changes now is told by those who came, of all partitions. As devices do, they beat
    // again: what is passed on to a home that has just ended is lost.
    let new = users("new", 30);
    until("all who come are told of", || {
        posts(&nodes[0], "/v1/beat", &new);
        pause(200);
        let is_told = |user: &String| hooked.receiver.times_told(user) > 0;
        new.iter().all(is_told).then_some(())
    });
    let records = hooked.receiver.deliveries();
    let records = records.iter().flat_map(|it| &it.presence).skip(before);
    for record in records {
        let user = record["user"].as_str().expect("a user");
        assert!(user.starts_with("new-"), "{record}");
    }
}

#[test]
fn what_happens_while_redis_is_away_is_told_once_it_is_back() {
    let Some(hooked) = Hooked::new(&[]) else {
        return;
    };
    let nodes = [hooked.node(), hooked.node()];
    let _alice = nodes[0].stream("user=alice");
    hooked.receiver.expect("alice", "online");
    let pid = hooked.fleet.redis.pid();
    kill_process(pid, Signal::STOP).expect("our own process");
    let _bob = nodes[1].stream("user=bob");
    told(&nodes[1], "bob", true);
    until("the node says that it is cut off", || {
        (nodes[0].get("/readyz").status == 503).then_some(())
    });
    kill_process(pid, Signal::CONT).expect("our own process");
    nodes.iter().for_each(expect_ready);
    hooked.receiver.expect("bob", "online");
    let users = ["alice", "bob"].map(String::from);
    hooked.expect_last_states(&nodes[0], &users);
    assert!(Record::of(&nodes[1].get("/v1/presence/alice").json()).online);
}
