//! Nodes of two versions of the library in one fleet, and nodes that are upgraded, added and taken
//! away: watchers are told nothing of it.
//!
//! The other version is the same library under another name (`PLANTED_LIBRARY`, `src/planted.rs`),
//! over the same keys.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::mpsc::{RecvTimeoutError, Sender as Stop, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::fleet::{Fleet, expect_homes, expect_ready, fleet, key, spread};
use crate::harness::{Record, Sender, Server, pause, until};
use crate::stream::{Event, Stream};

const NEXT: &str = "gd2";

/// A node ends quickly, and whom it sends away is back long before a lease has run out.
const QUICK: &[&str] = &["--drain-ms=300", "--retry-ms=300"];

impl Fleet {
    /// A node of the next version.
    fn next_node(&self) -> Server {
        let mut command = self.command(QUICK);
        let node = self.home.launch(command.env("PLANTED_LIBRARY", NEXT));
        expect_ready(&node);
        node
    }

    /// Which libraries nodes call, and which Redis has loaded.
    fn expect_libraries(&self, called: &[&str], loaded: &[&str]) {
        let (code, status) = self.json("status");
        let names = |of: &str| status[0][format!("libraries_{of}")].clone();
        assert_eq!(code, Some(0), "{status:?}");
        assert_eq!(
            (names("called"), names("loaded")),
            (json!(called), json!(loaded))
        );
    }
}

/// What a node says of a user, if it knows.
fn state(node: &Server, user: &str) -> Option<(bool, u64)> {
    let state: Value = node.get(&format!("/v1/presence/{user}")).json();
    let is_sure = state.get("stale").is_none();
    let state = is_sure.then(|| Record::of(&state))?;
    Some((state.online, state.since?))
}

/// Waits until all nodes say of a user that it is online, or not, since the same time. Since when.
fn agreed<'s>(nodes: impl IntoIterator<Item = &'s Server>, user: &str, online: bool) -> u64 {
    let nodes: Vec<&Server> = nodes.into_iter().collect();
    until(&format!("all say of {user}: online {online}"), || {
        let states: Option<BTreeSet<_>> = nodes.iter().map(|node| state(node, user)).collect();
        let mut states = states?.into_iter();
        let (first, more) = (states.next()?, states.next());
        (first.0 == online && more.is_none()).then_some(first.1)
    })
}

fn named(prefix: &str, count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("{prefix}-{number}"))
        .collect()
}

/// Says beats of some users, each at a node by chance, until it is dropped.
struct Beating {
    to: Arc<Mutex<Vec<Sender>>>,
    stop: Option<Stop<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Beating {
    fn start(users: Vec<String>, nodes: &[Server]) -> Beating {
        let to = Arc::new(Mutex::new(senders(nodes)));
        let senders = Arc::clone(&to);
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || {
            let mut random = fastrand::Rng::with_seed(14);
            let pause = Duration::from_millis(400);
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                spread(&mut random, &senders.lock().expect("no panic"), &users);
            }
        });
        Beating {
            to,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// To these from here on.
    fn send_to(&self, nodes: &[Server]) {
        *self.to.lock().expect("no panic") = senders(nodes);
    }
}

fn senders(nodes: &[Server]) -> Vec<Sender> {
    let senders = nodes.iter().map(|node| Sender::new(node.udp(), key()));
    senders.collect()
}

impl Drop for Beating {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A stream of somebody who comes back elsewhere when its node ends.
struct Place {
    query: String,
    at: SocketAddr,
    stream: Stream,
}

impl Place {
    fn take(query: String, node: &Server) -> Place {
        let stream = node.stream(&query);
        let at = node.http;
        Place { query, at, stream }
    }
}

/// Users who stay, some by streams and some by beats, and who watches all of them.
struct Crowd {
    since: BTreeMap<String, u64>,
    holders: Vec<Place>,
    watchers: Vec<Place>,
    beating: Beating,
}

impl Crowd {
    fn gather(nodes: &[Server]) -> Crowd {
        nodes
            .iter()
            .for_each(|node| expect_homes(node, nodes.len()));
        let (streaming, beating) = (named("stream", 9), named("beat", 9));
        let holders = streaming.iter().enumerate().map(|(nth, user)| {
            let node = &nodes[nth % nodes.len()];
            Place::take(format!("user={user}"), node)
        });
        let holders = holders.collect();
        let beats = Beating::start(beating.clone(), nodes);
        let all = streaming.into_iter().chain(beating);
        let since = all.map(|user| {
            let since = agreed(nodes, &user, true);
            (user, since)
        });
        let mut crowd = Crowd {
            since: since.collect(),
            holders,
            watchers: Vec::new(),
            beating: beats,
        };
        let query = crowd.query();
        let watchers = nodes.iter().map(|node| Place::take(query.clone(), node));
        crowd.watchers = watchers.collect();
        crowd
    }

    /// Everybody, and who comes last of all.
    fn query(&self) -> String {
        let all: Vec<&str> = self.since.keys().map(String::as_str).collect();
        format!("watch={}&watch=last", all.join("&watch="))
    }

    /// A node ends in good order. Whoever was there comes to one of the others when it was told to.
    fn leave(&mut self, mut node: Server, others: &[Server]) {
        self.beating.send_to(others);
        node.process.signal(Signal::TERM);
        let mut wait_ms = 0;
        let mut gone = Vec::new();
        for places in [&mut self.holders, &mut self.watchers] {
            for place in places.iter_mut().filter(|place| place.at == node.http) {
                for event in place.stream.rest() {
                    wait_ms = wait_ms.max(event.retry_ms.unwrap_or_default());
                    gone.push(event);
                }
            }
        }
        gone.iter().for_each(|event| self.check(event));
        assert_eq!(node.process.wait().code(), Some(0), "{}", node.log());
        pause(wait_ms);
        for places in [&mut self.holders, &mut self.watchers] {
            let moved = places.iter_mut().filter(|place| place.at == node.http);
            for (nth, place) in moved.enumerate() {
                let next = &others[nth % others.len()];
                *place = Place::take(std::mem::take(&mut place.query), next);
            }
        }
    }

    /// A node has joined: some of the streams come there.
    fn welcome(&mut self, nodes: &[Server], new: &Server) {
        self.beating.send_to(nodes);
        for place in self.holders.iter_mut().step_by(3) {
            *place = Place::take(std::mem::take(&mut place.query), new);
        }
        self.watchers.push(Place::take(self.query(), new));
    }

    /// That an event says nothing new of anybody.
    fn check(&self, event: &Event) {
        let told = match event.kind.as_str() {
            "snapshot" => event.data["presence"]
                .as_array()
                .expect("a list")
                .as_slice(),
            "presence" => std::slice::from_ref(&event.data),
            _ => return,
        };
        // What a node does not know yet takes back nothing.
        for told in told.iter().filter(|told| told["status"] != "unknown") {
            let record = Record::of(told);
            let Some(since) = self.since.get(&record.user) else {
                continue;
            };
            assert_eq!(
                (record.online, record.since),
                (true, Some(*since)),
                "{record:?}"
            );
        }
    }

    /// Nobody was told anything, up to the arrival of somebody else.
    fn expect_nothing_told(mut self, nodes: &[Server]) {
        // Old lives end meanwhile, and are taken back.
        let alive = nodes.len() as f64;
        for node in nodes {
            node.expect_metric("greendot_fleet_nodes", |seen| seen == alive);
        }
        pause(1_500);
        let last = json!({"users": ["last"]});
        assert_eq!(nodes[0].post("/v1/beat", &last).status, 204);
        for mut place in std::mem::take(&mut self.watchers) {
            loop {
                let event = place.stream.next();
                self.check(&event);
                let is_last = event.kind == "presence" && event.data["user"] == "last";
                if is_last && event.data["online"] == true {
                    break;
                }
            }
        }
        for (user, since) in &self.since {
            assert_eq!(agreed(nodes, user, true), *since, "{user}");
        }
    }
}

#[test]
fn nodes_of_two_versions_agree() {
    let Some(fleet) = fleet() else { return };
    let [one, two, next] = [fleet.node(), fleet.node(), fleet.next_node()];
    let nodes = [&one, &two, &next];
    nodes.iter().for_each(|node| expect_homes(node, 3));
    fleet.expect_libraries(&["gd1", NEXT], &["gd1", NEXT]);
    for (at, node) in nodes.into_iter().enumerate() {
        let other = nodes[(at + 1) % 3];
        // Comes by a stream at one, and says goodbye at another.
        let user = format!("user-{at}");
        let stream = node.stream(&format!("user={user}"));
        let came = agreed(nodes, &user, true);
        let streams = node.metrics().sum("greendot_streams");
        drop(stream);
        node.expect_metric("greendot_streams", |now| now < streams);
        let body = json!({"users": [user]});
        until("its goodbye counts", || {
            assert_eq!(other.post("/v1/leave", &body).status, 204);
            let (online, _) = state(other, &user)?;
            (!online).then_some(())
        });
        assert!(agreed(nodes, &user, false) > came);
        // By a beat, which its home claims. Whose beat and goodbye that is does not matter.
        Sender::new(node.udp(), key()).beat(&[&user]);
        agreed(nodes, &user, true);
        Sender::new(other.udp(), key()).leave(&[&user]);
        agreed(nodes, &user, false);
    }
    // Either version takes back what a dead node of the other has claimed.
    let users = [named("of-one", 6), named("of-next", 6)];
    let streams = [&one, &next].into_iter().zip(&users).map(|(node, users)| {
        let streams = users
            .iter()
            .map(|user| node.stream(&format!("user={user}")));
        streams.collect::<Vec<Stream>>()
    });
    let _streams: Vec<_> = streams.collect();
    for user in users.iter().flatten() {
        agreed(nodes, user, true);
    }
    let [of_one, of_next] = &users;
    one.kill();
    for user in of_one {
        agreed([&two, &next], user, false);
    }
    next.kill();
    for user in of_next {
        agreed([&two], user, false);
    }
    fleet.expect_libraries(&["gd1"], &["gd1", NEXT]);
}

#[test]
fn nobody_is_told_of_a_rolling_upgrade() {
    let Some(fleet) = fleet() else { return };
    let mut nodes: Vec<Server> = (0..3).map(|_| fleet.node_with(QUICK)).collect();
    let mut crowd = Crowd::gather(&nodes);
    fleet.expect_libraries(&["gd1"], &["gd1"]);
    for _ in 0..3 {
        let old = nodes.remove(0);
        crowd.leave(old, &nodes);
        nodes.push(fleet.next_node());
        crowd.beating.send_to(&nodes);
    }
    crowd.expect_nothing_told(&nodes);
    fleet.expect_libraries(&[NEXT], &["gd1", NEXT]);
}

#[test]
fn nobody_is_told_of_a_node_that_is_added_and_taken_away() {
    let Some(fleet) = fleet() else { return };
    let mut nodes: Vec<Server> = (0..2).map(|_| fleet.node_with(QUICK)).collect();
    let mut crowd = Crowd::gather(&nodes);
    let new = fleet.node_with(QUICK);
    nodes.push(new);
    nodes.iter().for_each(|node| expect_homes(node, 3));
    crowd.welcome(&nodes, &nodes[2]);
    // Long enough that whatever counted at another node only has run out there.
    pause(7_000);
    let third = nodes.pop().expect("there are three");
    crowd.leave(third, &nodes);
    crowd.expect_nothing_told(&nodes);
}
