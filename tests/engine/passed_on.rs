//! Queries and beats at a real-time node: presence nodes answer them, and whoever asks need not
//! know which.

use std::sync::Arc;

use greendot::auth::{LastActive, Revoked};
use greendot::engine::{Outbound, Role};
use greendot::links::{Asking, Fault, Reply, Request};
use greendot::metrics::Counter;
use greendot::status::Status;
use greendot::wire::User;
use greendot::wire::nodes::Nodes;

use super::harness::{
    NO_CONTENT, Peer, START, World, json, posted, problem, record, request, status_and_slug, unseen,
};
use super::identity::{ALICE, Said, bearer, identity, request as shown, token};
use super::platform::{call, carry_out};

const NAMES: [&str; 2] = ["10.0.0.1:8081", "10.0.0.2:8081"];
const HTTP: [&str; 2] = ["http://10.0.0.1:8080", "http://10.0.0.2:8080"];
/// Whose node is the first, and whose the second.
const CAROL: usize = 0;
const BOB: usize = 1;

/// How a presence node takes the requests of its link.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Answers,
    /// They fail at once.
    Down,
    /// They wait.
    Silent,
}

/// A real-time node and the two presence nodes that it asks.
struct Fleet {
    realtime: World,
    presence: [World; 2],
    links: [Asking; 2],
    manners: [Manner; 2],
    nodes: Arc<Nodes>,
    /// Calls that were passed on: to which node, where, and what.
    asked: Vec<(usize, String, String)>,
    /// Requests that wait.
    held: Vec<(usize, Request)>,
}

fn role() -> Role {
    Role::Realtime(Arc::new(Nodes::new(NAMES).answering_at(HTTP)))
}

impl Fleet {
    fn new(realtime: World) -> Fleet {
        Fleet::of(
            realtime,
            [0; 2].map(|_| World::of_role(2, Role::Presence, 100)),
        )
    }

    fn of(realtime: World, presence: [World; 2]) -> Fleet {
        let revoked = Arc::new(Revoked::new(1_000, 86_400_000));
        let shards = realtime.shards();
        let mut fleet = Fleet {
            links: [0, 1].map(|node| Asking::new(1, node, shards, &revoked)),
            realtime,
            presence,
            manners: [Manner::Answers; 2],
            nodes: Arc::new(Nodes::new(NAMES)),
            asked: Vec::new(),
            held: Vec::new(),
        };
        // Until the nodes are in sight.
        fleet.at(1_000).asked.clear();
        fleet
    }

    fn at(&mut self, ms: u64) -> &mut Fleet {
        self.realtime.at(ms);
        for presence in &mut self.presence {
            presence.at(ms);
        }
        self.turn()
    }

    fn turn(&mut self) -> &mut Fleet {
        while self.round() {}
        self
    }

    /// All that is to go between the nodes goes, one request of each link. False: nothing does.
    fn round(&mut self) -> bool {
        let mut goes_on = false;
        let now = self.realtime.now();
        for (_, outbound) in self.realtime.outbound() {
            goes_on = true;
            let Some(node) = outbound.node() else {
                continue;
            };
            match outbound {
                Outbound::Beats { datagrams, .. } => {
                    for datagram in datagrams.iter() {
                        self.presence[node].datagram(0, datagram);
                    }
                }
                outbound => {
                    let effect = self.links[node].take(outbound, now.mono);
                    carry_out(&mut self.realtime, effect);
                }
            }
        }
        for node in 0..2 {
            let Some(request) = self.links[node].poll_request(now.mono) else {
                continue;
            };
            goes_on = true;
            let body = String::from_utf8(request.body.clone()).expect("JSON");
            if body != "{\"users\":[]}" {
                self.asked.push((node, request.path.clone(), body));
            }
            match self.manners[node] {
                Manner::Answers => {
                    let reply = call(&mut self.presence[node], 0, &request);
                    self.answer(node, &reply);
                }
                Manner::Down => self.answer(node, &Err(Fault("out of reach".into()))),
                Manner::Silent => self.held.push((node, request)),
            }
        }
        goes_on
    }

    fn answer(&mut self, node: usize, reply: &Reply) {
        let follower = Arc::clone(self.realtime.presence());
        let now = self.realtime.now();
        let effects = self.links[node].handle_reply(reply, &follower, &self.nodes, now);
        carry_out(&mut self.realtime, effects);
    }

    /// Those that waited are answered.
    fn speak(&mut self) -> &mut Fleet {
        self.manners = [Manner::Answers; 2];
        for (node, request) in std::mem::take(&mut self.held) {
            let reply = call(&mut self.presence[node], 0, &request);
            self.answer(node, &reply);
        }
        self.turn()
    }

    /// A request at the real-time node, by a peer of its own.
    fn send(&mut self, shard: usize, text: impl AsRef<str>) -> Peer {
        let peer = self.realtime.connect(shard);
        self.realtime.send(peer, text.as_ref());
        self.turn();
        peer
    }

    /// What it is answered.
    fn ask(&mut self, text: impl AsRef<str>) -> String {
        let peer = self.send(0, text);
        let answer = self.realtime.received(peer);
        self.realtime.reset(peer);
        answer
    }

    fn asked(&mut self) -> Vec<(usize, String, String)> {
        std::mem::take(&mut self.asked)
    }
}

fn query(users: &str) -> String {
    posted("/v1/presence/query", &format!("{{\"users\":{users}}}"))
}

fn list(records: &[String]) -> String {
    format!("{{\"presence\":[{}]}}", records.join(","))
}

/// What is answered if these do not.
fn unreached(nodes: &str, users: usize, what: &str) -> String {
    let detail = format!(
        "no answer from the presence node {nodes}, to which {users} of the users belong; {what}"
    );
    let title = "A node that knows does not answer";
    let retry = "Retry-After: 5\r\n";
    problem(
        "503 Service Unavailable",
        "node-unreached",
        title,
        &detail,
        retry,
    )
}

const UNKNOWN: &str = "nobody else knows their states";

/// `answer` as it is written to a connection that ends with it.
fn last(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    format!("{head}\r\nConnection: close\r\n\r\n{body}")
}

#[test]
fn whoever_asks_need_not_know_whose_node_is_which() {
    let mut fleet = Fleet::new(World::of_role(2, role(), 100));
    fleet.presence[BOB].beat(0, &["bob"]);
    fleet.at(2_000);
    fleet.presence[CAROL].beat(0, &["carol"]);
    fleet.at(3_000);
    fleet.presence[CAROL].leave(0, &["carol"]).at(3_000 + 1);
    fleet.at(4_000);
    let bob = record("bob", "online", 1_000, 1_000);
    let carol = record("carol", "offline", 3_000, 3_000);
    let nobody = unseen("dave");
    assert_eq!(fleet.ask(request("GET", "/v1/presence/b%6fb")), json(&bob));
    assert_eq!(
        fleet.ask(request("GET", "/v1/presence/carol")),
        json(&carol)
    );
    assert_eq!(
        fleet.ask(request("GET", "/v1/presence/dave")),
        json(&nobody)
    );
    let head = fleet.ask(request("HEAD", "/v1/presence/bob"));
    assert_eq!(head, json(&bob).replace(&bob, ""));
    fleet.asked();
    // In the order asked, repeats and all; what is no user is refused by itself.
    let mixed = list(&[bob.clone(), carol, nobody, bob]);
    let refused = mixed.replace(
        "]}",
        r#"],"refused":[{"index":2,"reason":"empty"}],"refused_total":1}"#,
    );
    let users = r#"["bob","carol","","dave","bob"]"#;
    assert_eq!(fleet.ask(query(users)), json(&refused));
    let asked = [
        (CAROL, r#"{"users":["carol","dave"]}"#),
        (BOB, r#"{"users":["bob","bob"]}"#),
    ];
    let path = "/v1/presence/query";
    let asked = asked.map(|(node, body)| (node, path.to_owned(), body.to_owned()));
    assert_eq!(fleet.asked(), asked);
    let target = "/v1/presence?user=bob&user=carol&user=dave&wacth=1&user=bob";
    let ignored = mixed.replace("]}", r#"],"ignored":["wacth"]}"#);
    assert_eq!(fleet.ask(request("GET", target)), json(&ignored));
    fleet.asked();
    // Nobody to ask about.
    assert_eq!(fleet.ask(query("[]")), json(&list(&[])));
    assert_eq!(fleet.asked(), []);
    let users: u32 = fleet
        .presence
        .iter()
        .map(|node| node.presence().users())
        .sum();
    assert_eq!(
        (users, fleet.realtime.presence().users()),
        (2, 0),
        "none was made"
    );
}

#[test]
fn what_several_ask_at_once_goes_in_one_request() {
    let mut fleet = Fleet::new(World::of_role(2, role(), 100));
    fleet.presence[BOB].beat(0, &["bob"]);
    fleet.manners[BOB] = Manner::Silent;
    let first = fleet.send(0, request("GET", "/v1/presence/bob"));
    fleet.asked();
    let others: Vec<_> = (0..3)
        .map(|at| {
            fleet.send(
                at % 2,
                query(&format!(r#"["erin{}","bob"]"#, "!".repeat(at))),
            )
        })
        .collect();
    fleet.speak();
    let asked = fleet.asked();
    let of_bob: Vec<_> = asked.iter().filter(|(node, ..)| *node == BOB).collect();
    assert_eq!(of_bob.len(), 1, "{asked:?}");
    let bob = record("bob", "online", 1_000, 1_000);
    fleet.realtime.expect(first, json(&bob));
    for (at, peer) in others.into_iter().enumerate() {
        let erin = unseen(&format!("erin{}", "!".repeat(at)));
        fleet
            .realtime
            .expect(peer, json(&list(&[erin, bob.clone()])));
    }
}

#[test]
fn who_can_not_be_asked_about_is_not_called_offline() {
    let mut fleet = Fleet::new(World::of_role(2, role(), 100));
    fleet.presence[CAROL].beat(0, &["carol"]);
    fleet.presence[BOB].beat(0, &["bob"]);
    fleet.manners[CAROL] = Manner::Down;
    fleet.at(2_100);
    let bob = json(&record("bob", "online", 1_000, 1_000));
    assert_eq!(fleet.ask(request("GET", "/v1/presence/bob")), bob);
    let of_carol = |users| last(&unreached(HTTP[CAROL], users, UNKNOWN));
    let one = fleet.ask(request("GET", "/v1/presence/carol"));
    assert_eq!(one, of_carol(1));
    // All of it, for a part of it is nobody's answer.
    assert_eq!(fleet.ask(query(r#"["bob","carol","dave"]"#)), of_carol(2));
    let beat = fleet.ask(posted("/v1/beat", r#"{"users":["carol"]}"#));
    let what = "their beats may count, or not";
    assert_eq!(beat, last(&unreached(HTTP[CAROL], 1, what)));
    assert_eq!(fleet.realtime.count(0, Counter::CallsUnanswered), 3);
    fleet.manners[CAROL] = Manner::Answers;
    fleet.at(12_000);
    let carol = json(&record("carol", "online", 1_000, 1_000));
    assert_eq!(fleet.ask(request("GET", "/v1/presence/carol")), carol);
}

#[test]
fn who_waits_for_a_node_is_told_so_in_time() {
    let mut fleet = Fleet::new(World::of_role(2, role(), 100));
    fleet.manners = [Manner::Silent; 2];
    let asker = fleet.send(1, query(r#"["bob","carol"]"#));
    fleet.at(3_900).realtime.expect_nothing(asker);
    fleet.at(4_100);
    let both = format!("{} and {}", HTTP[0], HTTP[1]);
    let expected = last(&unreached(&both, 2, UNKNOWN));
    fleet.realtime.expect(asker, expected).expect_closed(asker);
    // What comes late is nobody's.
    let other = fleet.realtime.connect(1);
    fleet.speak();
    fleet.realtime.expect_nothing(other);
    // One of two has answered: the other is named.
    fleet.at(6_000).manners[CAROL] = Manner::Silent;
    let asker = fleet.send(1, query(r#"["bob","carol"]"#));
    fleet.at(9_100);
    let expected = last(&unreached(HTTP[CAROL], 1, UNKNOWN));
    fleet.realtime.expect(asker, expected);
}

#[test]
fn beats_are_answered_as_the_presence_nodes_do() {
    // Room for two users each.
    let presence = [0; 2].map(|_| World::of_role(1, Role::Presence, 2));
    let mut fleet = Fleet::of(World::of_role(2, role(), 100), presence);
    let beat = |fleet: &mut Fleet, body: &str| fleet.ask(posted("/v1/beat", body));
    assert_eq!(beat(&mut fleet, r#"{"users":[]}"#), NO_CONTENT);
    assert_eq!(beat(&mut fleet, r#"{"users":["bob","carol"]}"#), NO_CONTENT);
    // From here on every query says so.
    let online = |user, ms| record(user, "online", ms, ms);
    let both = list(&[online("bob", 1_000), online("carol", 1_000)]);
    assert_eq!(fleet.ask(query(r#"["bob","carol"]"#)), json(&both));
    fleet.at(2_000).asked();
    let hide = r#"{"users":["carol","bob","dave"],"status":"busy","invisible":true,"idle_ms":7}"#;
    let hidden = json(r#"{"invisible":["carol","bob","dave"]}"#);
    assert_eq!(beat(&mut fleet, hide), hidden);
    let said = r#""idle_ms":7,"invisible":true,"status":"busy","users""#;
    let asked = [
        (CAROL, format!("{{{said}:[\"carol\",\"dave\"]}}")),
        (BOB, format!("{{{said}:[\"bob\"]}}")),
    ];
    assert_eq!(
        fleet.asked(),
        asked.map(|(node, body)| (node, "/v1/beat".into(), body))
    );
    // Who has no room is refused by its place in the whole list.
    let full = r#"{"users":["","ann","erin","carol","frank","bob"]}"#;
    let refused = fleet.ask(posted("/v1/beat", full));
    let expected = concat!(
        r#"{"invisible":["carol","bob"],"refused":[{"index":0,"reason":"empty"},"#,
        r#"{"index":1,"reason":"users_max"},{"index":4,"reason":"users_max"}],"refused_total":3}"#
    );
    let mut names = ["ann", "erin", "frank"].map(|user| fleet.nodes.of(user.as_bytes()));
    names.sort_unstable();
    assert_eq!((refused, names), (json(expected), [CAROL, BOB, BOB]));
}

/// The beats of a user's stream tell it to a presence node that knows nothing of it.
#[test]
fn what_a_beat_says_of_a_user_its_stream_here_says_too() {
    let mut fleet = Fleet::new(World::of_role(1, role(), 100));
    let stream = fleet.send(0, request("GET", "/v1/stream?user=bob"));
    fleet.realtime.received(stream);
    fleet.ask(posted(
        "/v1/beat",
        r#"{"users":["bob"],"status":"busy","invisible":true}"#,
    ));
    let presence = fleet.realtime.presence();
    let slot = presence.lookup(User::parse(b"bob").expect("a user"));
    let flags = presence.beat_flags(slot.expect("he has a stream"));
    let outset = flags.outset();
    assert_eq!((outset.status, outset.invisible), (Status::Busy, true));
}

#[test]
fn tokens_are_judged_where_the_call_comes() {
    let mut fleet = Fleet::new(World::asking(1, role(), identity()));
    fleet.presence[BOB].beat(0, &["bob", "alice"]);
    fleet.at(61_500);
    let ask = |fleet: &mut Fleet, said: &Said, line: &str, body: &str| {
        fleet.ask(shown(line, &bearer(&token(said)), body))
    };
    let bob = "GET /v1/presence/bob";
    let offline = |user, last_active: Option<u64>| record(user, "offline", 26_250, last_active);
    for (last_active, expected) in [
        (LastActive::Exact, Some(1_000)),
        (LastActive::Minutes, Some(0)),
        (LastActive::None, None),
    ] {
        let said = Said {
            last_active,
            ..ALICE
        };
        assert_eq!(START % 60_000, 0);
        let expected = offline("bob", expected);
        assert_eq!(ask(&mut fleet, &said, bob, ""), json(&expected));
        let query = r#"{"users":["bob"]}"#;
        let listed = ask(&mut fleet, &said, "POST /v1/presence/query", query);
        assert_eq!(listed, json(&list(&[expected])));
    }
    fleet.asked();
    for (line, body, slug) in [
        ("GET /v1/presence/carol", "", "watch-denied"),
        (
            "POST /v1/presence/query",
            r#"{"users":["bob","carol"]}"#,
            "watch-denied",
        ),
        ("POST /v1/beat", r#"{"users":["bob"]}"#, "not-the-user"),
    ] {
        let answer = ask(&mut fleet, &ALICE, line, body);
        assert_eq!(status_and_slug(&answer), ("HTTP/1.1 403 Forbidden", slug));
    }
    let nobody = fleet.ask(request("GET", "/v1/presence/bob"));
    assert_eq!(status_and_slug(&nobody).1, "unauthorized");
    assert_eq!(fleet.asked(), [], "no presence node has heard of these");
}

#[test]
fn who_is_invisible_is_told_the_truth_and_nobody_else_is() {
    let mut fleet = Fleet::new(World::asking(1, role(), identity()));
    let ask = |fleet: &mut Fleet, said: &Said, line: &str, body: &str| {
        fleet.ask(shown(line, &bearer(&token(said)), body))
    };
    let own = |fleet: &mut Fleet| ask(fleet, &ALICE, "GET /v1/presence/alice", "");
    // Nobody has heard of her, and asking makes nobody.
    assert_eq!(own(&mut fleet), json(&unseen("alice")));
    assert_eq!(fleet.presence[BOB].presence().users(), 0);
    let hide = r#"{"users":["alice"],"invisible":true}"#;
    let hidden = ask(&mut fleet, &ALICE, "POST /v1/beat", hide);
    assert_eq!(hidden, json(r#"{"invisible":["alice"]}"#));
    let truth = |fleet: &mut Fleet| {
        let alice = &mut fleet.presence[BOB];
        let peer = alice.connect(0);
        // A presence node is asked for no token in this world: it says what others are told.
        let others = alice.get(peer, "/v1/presence/alice").received(peer);
        (own(fleet), others)
    };
    // Since when others saw her nobody can say.
    let mut seen = record("alice", "online", None, 1_000);
    seen.pop();
    let seen = json(&format!("{seen},\"invisible\":true}}"));
    let (own_now, others) = truth(&mut fleet);
    assert_eq!((own_now, others), (seen, json(&unseen("alice"))));
    let ann = Said {
        user: "ann",
        watch: &["alice"],
        ..ALICE
    };
    for line in ["GET /v1/presence/alice", "GET /v1/presence?user=alice"] {
        let answer = ask(&mut fleet, &ann, line, "");
        assert!(answer.contains(&unseen("alice")), "{answer}");
    }
    // A list is what others are told, also for her.
    let listed = ask(&mut fleet, &ALICE, "GET /v1/presence?user=alice", "");
    assert_eq!(listed, json(&list(&[unseen("alice")])));
}

#[test]
fn what_waits_for_presence_nodes_is_bounded() {
    let realtime = World::with_role(role(), |settings| settings.passed_users_max = 3);
    let mut fleet = Fleet::new(realtime);
    fleet.manners = [Manner::Silent; 2];
    let waits = fleet.send(0, query(r#"["bob","carol"]"#));
    let too_many = fleet.ask(query(r#"["bob","dave"]"#));
    let busy = ("HTTP/1.1 503 Service Unavailable", "overloaded");
    assert_eq!(status_and_slug(&too_many), busy);
    assert_eq!(fleet.realtime.count(0, Counter::LimitPassedUsers), 1);
    // Whoever hangs up leaves what is under way.
    fleet.realtime.reset(waits);
    assert_eq!(
        status_and_slug(&fleet.ask(query(r#"["bob","dave"]"#))),
        busy
    );
    fleet.speak();
    // One that is alone finds room, however long it is.
    let four = ["bob", "carol", "dave", "erin"];
    let all = fleet.ask(query(&format!("{four:?}")));
    assert_eq!(all, json(&list(&four.map(unseen))));
}

#[test]
fn a_connection_makes_new_users_at_its_rate_there_too() {
    let realtime = World::with_role(role(), |settings| {
        settings.new_users_per_conn_second_max = 2;
    });
    let mut fleet = Fleet::new(realtime);
    let answer = fleet.ask(posted("/v1/beat", r#"{"users":["bob","carol","dave"]}"#));
    let refused = r#"{"refused":[{"index":2,"reason":"too_fast"}],"refused_total":1}"#;
    assert_eq!(answer, json(refused));
    let users: u32 = fleet
        .presence
        .iter()
        .map(|node| node.presence().users())
        .sum();
    assert_eq!(users, 2);
    assert_eq!(fleet.realtime.count(0, Counter::LimitNewUsersOfConn), 1);
}

/// Two real-time nodes that were given as each other's presence nodes would ask for ever.
#[test]
fn a_node_that_asks_a_real_time_node_is_told_so() {
    let mut fleet = Fleet::new(World::of_role(1, role(), 100));
    let token = fleet.realtime.key().service_token();
    for (line, body) in [
        ("GET /v1/presence/bob", ""),
        ("GET /v1/presence?user=bob", ""),
        ("POST /v1/presence/query", r#"{"users":["bob"]}"#),
        ("POST /v1/beat", r#"{"users":["bob"]}"#),
        ("POST /v1/datagrams", "x"),
    ] {
        let answer = fleet.ask(shown(line, &bearer(&token), body));
        let detail =
            "this is a real-time node, which decides nothing; send this to a presence node";
        let title = "This node does not serve the path in its role";
        let expected = problem("421 Misdirected Request", "wrong-role", title, detail, "");
        assert_eq!(answer, expected, "{line}");
    }
    assert_eq!(fleet.asked(), []);
}
