//! The stream of a node's figures: what it tells to whom, how often, and what bounds it.

use greendot::auth::Scope;
use greendot::engine::settings::{NODE_STREAMS_MAX, OUTBOX_BYTES_FLOOR};
use greendot::engine::{Operators, Role};
use greendot::metrics::{Counter, Gauge};
use serde_json::{Value, json};

use super::harness::{Peer, START, World};
use super::identity::{bearer, request, service};

/// The events that a peer has received since the last look: names and data.
fn told(world: &mut World, peer: Peer) -> Vec<(String, Value)> {
    let received = world.received(peer);
    let blocks = received.split_terminator("\n\n");
    let event = |block: &str| {
        let block = block.strip_prefix("event: ").expect(&received);
        let (name, rest) = block.split_once('\n').expect(&received);
        let (_, data) = rest.split_once("data: ").expect(&received);
        let data = serde_json::from_str(data).expect(&received);
        (name.to_owned(), data)
    };
    blocks.map(event).collect()
}

fn names(events: &[(String, Value)]) -> Vec<&str> {
    events.iter().map(|(name, _)| &**name).collect()
}

/// A stream of the figures that has said its hello.
fn follow(world: &mut World) -> Peer {
    let peer = world.connect(0);
    world.get(peer, "/v1/node/stream");
    world.expect_hello(peer, 0);
    peer
}

/// Somebody takes a look at the node, as a thread does once a second.
fn look(world: &mut World) {
    world.turn();
    world.board().look(world.now());
    world.turn();
}

#[test]
fn who_comes_late_is_told_the_past_and_all_are_told_once_a_look() {
    let mut world = World::new(2);
    for second in 0..11 {
        world.at(second * 1_000);
        world.board().process.set(Gauge::UsersOnline, second);
        look(&mut world);
    }
    let peer = follow(&mut world);
    let events = told(&mut world, peer);
    assert_eq!(names(&events), ["past", "node", "figures"]);
    assert_eq!(events[0].1["online"], json!([5, 10]));
    assert_eq!(events[1].1["role"], "serve");
    assert_eq!(events[2].1["at"], START + 10_000);
    assert_eq!(events[2].1["shards"].as_array().expect("a list").len(), 2);
    // Until somebody looks again there is nothing to tell.
    world.at(10_900);
    assert_eq!(names(&told(&mut world, peer)), [""; 0]);
    let at = world.at(11_000).now().unix;
    let warnings = &world.board().warnings;
    warnings.push(at, true, "the disk is full".into());
    look(&mut world);
    let events = told(&mut world, peer);
    assert_eq!(names(&events), ["node", "figures"]);
    assert_eq!(events[0].1["warnings"][0]["text"], "the disk is full");
    assert_eq!(events[1].1["streams"], 1);
    assert_eq!(world.count(0, Counter::EventsFigures), 5);
}

/// What it has not read is not kept for it, and then it is told what is.
#[test]
fn who_reads_slowly_is_told_less() {
    let mut world = World::new(1);
    look(&mut world);
    let peer = follow(&mut world);
    told(&mut world, peer);
    world.stall(peer);
    for second in 1..20 {
        world.at(second * 1_000);
        look(&mut world);
    }
    let waiting = world.count(0, Counter::EventsFigures);
    assert_eq!(waiting, 3 + 2);
    world.read(peer, None);
    let events = told(&mut world, peer);
    assert_eq!(events[1].1["at"], START + 1_000);
    world.at(20_000);
    look(&mut world);
    let events = told(&mut world, peer);
    assert_eq!(names(&events), ["node", "figures"]);
    assert_eq!(events[1].1["at"], START + 20_000);
}

/// An outbox that is too small for an event is passed over, and nothing breaks.
#[test]
fn what_does_not_fit_is_not_told() {
    let mut world = World::with(1, |settings| settings.outbox_bytes_max = OUTBOX_BYTES_FLOOR);
    for second in 0..100 {
        world.at(second * 1_000);
        look(&mut world);
    }
    for n in 0..20_u64 {
        let text = format!("{n}{}", "\u{1}".repeat(490));
        let at = world.now().unix;
        world.board().warnings.push(at, false, text);
    }
    let peer = follow(&mut world);
    assert_eq!(names(&told(&mut world, peer)), ["past", "figures"]);
    assert!(world.count(0, Counter::LimitOutboxBytes) > 0);
    world.expect_open(peer);
}

#[test]
fn so_many_may_follow_and_the_next_comes_again_later() {
    let mut world = World::new(1);
    let peers: Vec<Peer> = (0..NODE_STREAMS_MAX).map(|_| follow(&mut world)).collect();
    let late = world.connect(0);
    world.get(late, "/v1/node/stream");
    let answer = world.received(late);
    assert!(
        answer.contains("\r\n\r\nevent: overloaded\nretry: "),
        "{answer}"
    );
    assert!(
        answer.ends_with("data: {\"reason\":\"node-streams\"}\n\n"),
        "{answer}"
    );
    world.expect_closed(late);
    assert_eq!(world.count(0, Counter::LimitNodeStreams), 1);
    // One that has gone makes room.
    world.shut(peers[3]);
    follow(&mut world);
    // Asking for the head alone begins none.
    let head = world.connect(0);
    world.send(head, "HEAD /v1/node/stream HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(world.received(head).starts_with("HTTP/1.1 200 "));
    assert_eq!(world.gauge(0, Gauge::Streams), NODE_STREAMS_MAX as u64);
}

#[test]
fn a_drain_ends_it_and_every_role_has_it() {
    for role in [Role::All, Role::Presence] {
        let mut world = World::of_role(1, role, 100);
        look(&mut world);
        let peer = follow(&mut world);
        world.drain().pass(20_000);
        let received = world.received(peer);
        assert!(
            received.ends_with("data: {\"reason\":\"draining\"}\n\n"),
            "{received}"
        );
        world.expect_closed(peer);
        assert!(world.engine(0).is_drained());
    }
}

/// The numbers are shown to the scope metrics; the node in words takes admin beside it, and that
/// alone is not enough.
#[test]
fn a_key_is_told_what_its_scopes_let_it_see() {
    let made = ["metrics", "metrics,admin", "admin"]
        .map(|scopes| service(&scopes.replace(',', "-"), scopes));
    let lines: Vec<&str> = made.iter().map(|(_, line)| &**line).collect();
    let apart = Operators {
        are_public: false,
        are_open: false,
        ..Operators::default()
    };
    for ((key, line), expected) in
        made.iter()
            .zip([&["past", "figures"][..], &["past", "node", "figures"], &[]])
    {
        let mut world = World::with_operators(1, Role::All, None, line, apart);
        look(&mut world);
        let peer = world.connect_to_admin(0);
        world.send(peer, request("GET /v1/node/stream", &bearer(key), ""));
        let answer = world.received(peer);
        let (head, body) = answer.split_once("\r\n\r\n").expect(&answer);
        if expected.is_empty() {
            assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
            assert!(body.contains(&format!("lacks the scope {}", Scope::Metrics.name())));
            continue;
        }
        let events = body.split_terminator("\n\n").skip(1);
        let names: Vec<&str> = events.filter_map(|block| block.lines().next()).collect();
        let expected: Vec<String> = expected
            .iter()
            .map(|name| format!("event: {name}"))
            .collect();
        assert_eq!(names, expected);
        // A key that is listed no more is the end of its stream.
        world.read_keys(None, lines[2]);
        world.pass(1_000);
        if *line != lines[2] {
            world.expect_closed(peer);
        }
    }
}
