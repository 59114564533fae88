//! How much the holder of a token may ask: each kind of call, over all shards, and who is not
//! limited.

use std::sync::Arc;

use greendot::auth::{Identity, RateLimits, Rates};
use greendot::engine::Role;
use greendot::metrics::Counter;

use super::harness::World;
use super::identity::{ALICE, HOUR_MS, Said, asked, bearer, cell, identity, token};

const ZOE: Said = Said {
    user: "zoe",
    watch: &["*"],
    ..ALICE
};

/// A world with the default limits, whose streams watch at most so many.
fn world(shards: u16, watches_max: usize) -> World {
    let rates = RateLimits::default().buckets(watches_max);
    let limited = Identity {
        rates: Arc::new(Rates::new(rates, 7)),
        ..identity()
    };
    let mut world = World::asking(shards, Role::All, limited);
    world.settings.watches_per_stream_max = watches_max;
    world.restart(0);
    world
}

/// How many of these in a row are let through, on all shards in turn; and the refusal.
fn let_through(world: &mut World, line: &str, lines: &str, body: &str) -> (usize, String) {
    let shards = world.shards();
    for n in 0..100_000 {
        let answer = asked(world, n % shards, line, lines, body);
        if !answer.starts_with("HTTP/1.1 20") || answer.contains("event: overloaded") {
            return (n, answer);
        }
    }
    panic!("{line} has no limit")
}

#[track_caller]
fn expect_429(refusal: &str, seconds: u64, what: &str) {
    assert!(
        refusal.starts_with("HTTP/1.1 429 Too Many Requests\r\n"),
        "{refusal}"
    );
    assert!(
        refusal.contains(&format!("\r\nRetry-After: {seconds}\r\n")),
        "{refusal}"
    );
    assert!(refusal.contains("/problems/rate-limited"), "{refusal}");
    let detail = format!("the holder of the token asks for {what}; try again later");
    assert!(refusal.contains(&detail), "{refusal}");
}

#[test]
fn each_kind_of_call_has_a_limit_of_its_own() {
    let mut world = world(2, 10);
    let zoe = bearer(&token(&ZOE));
    let many: Vec<String> = (0..1_000).map(|n| format!("\"u{n}\"")).collect();
    let many = format!("{{\"users\":[{}]}}", many.join(","));
    let (queries, refusal) = let_through(&mut world, "GET /v1/presence/bob", &zoe, "");
    assert_eq!(queries, 200);
    expect_429(&refusal, 1, "too many queries");
    // The same thousand again and again.
    world.at(60_000);
    let (queries, refusal) = let_through(&mut world, "POST /v1/presence/query", &zoe, &many);
    assert_eq!(queries, 10);
    expect_429(&refusal, 6, "too many users in a minute");
    let (tickets, refusal) = let_through(&mut world, "POST /v1/ticket", &zoe, "");
    assert_eq!(tickets, 10);
    expect_429(&refusal, 1, "too many tickets");

    // A stream is refused in the one way after which its reader comes back.
    let (streams, refusal) = let_through(&mut world, "GET /v1/stream?watch=bob", &zoe, "");
    assert_eq!(streams, 10);
    assert!(refusal.starts_with("HTTP/1.1 200 OK\r\n"), "{refusal}");
    assert!(refusal.contains("event: overloaded\nretry: "), "{refusal}");
    assert!(refusal.contains("data: {\"reason\":\"rate\"}"), "{refusal}");

    let peer = world.connect(0);
    world.pass(1_000);
    let line = "GET /v1/stream?watch=bob";
    world.send(peer, format!("{line} HTTP/1.1\r\nHost: a\r\n{zoe}\r\n"));
    let id = world.expect_hello(peer, 1);
    let edit = format!("POST /v1/stream/{id}/watch");
    let (edits, refusal) = let_through(&mut world, &edit, &zoe, r#"{"remove":["x"]}"#);
    assert_eq!(edits, 50);
    expect_429(&refusal, 1, "too many edits");
    // Three lists of ten in a minute, of which eleven users were watched by streams.
    world.pass(5_000);
    let ten: Vec<String> = (0..9).map(|n| format!("\"u{n}\"")).collect();
    let ten = format!("{{\"add\":[{}]}}", ten.join(","));
    let (edits, refusal) = let_through(&mut world, &edit, &zoe, &ten);
    assert_eq!(edits, 2);
    expect_429(&refusal, 10, "too many users to watch in a minute");
    let counted = [
        Counter::LimitUserQueries,
        Counter::LimitUserIds,
        Counter::LimitUserEdits,
        Counter::LimitUserStreams,
        Counter::LimitUserWatches,
        Counter::LimitUserTickets,
    ];
    let counted = counted.map(|it| world.count(0, it) + world.count(1, it));
    assert_eq!(counted, [1; 6]);
}

/// The limit is the user's, whichever of their tokens is shown, and nobody else's.
#[test]
fn whose_limit_it_is() {
    let mut world = world(2, 10_000);
    let line = "GET /v1/presence/bob";
    let alice = bearer(&token(&ALICE));
    assert_eq!(let_through(&mut world, line, &alice, "").0, 200);
    let renewed = bearer(&token(&Said {
        ttl_ms: HOUR_MS / 2,
        ..ALICE
    }));
    assert_eq!(let_through(&mut world, line, &renewed, "").0, 0);
    let zoe = bearer(&token(&ZOE));
    assert_eq!(let_through(&mut world, line, &zoe, "").0, 200);
    let node = bearer(&world.key().service_token());
    for _ in 0..1_000 {
        assert_eq!(cell(&asked(&mut world, 0, line, &node, "")), "200");
    }
    // Nor is anybody where nobody is asked for a token.
    let mut open = World::new(1);
    for _ in 0..1_000 {
        assert_eq!(cell(&asked(&mut open, 0, line, "", "")), "200");
    }
    world.pass(1_000);
    assert_eq!(let_through(&mut world, line, &renewed, "").0, 50);
}

/// Who comes too often with a ticket comes back with the same one.
#[test]
fn a_limit_burns_no_ticket() {
    let mut world = world(1, 10_000);
    let alice = bearer(&token(&ALICE));
    let answer = asked(&mut world, 0, "POST /v1/ticket", &alice, "");
    let (_, rest) = answer.split_once("{\"ticket\":\"").expect(&answer);
    let line = format!(
        "GET /v1/stream?ticket={}",
        rest.split_once('"').expect(&answer).0
    );
    assert_eq!(let_through(&mut world, "GET /v1/stream", &alice, "").0, 10);
    let refusal = asked(&mut world, 0, &line, "", "");
    assert!(refusal.contains("data: {\"reason\":\"rate\"}"), "{refusal}");
    world.pass(1_000);
    let answer = asked(&mut world, 0, &line, "", "");
    assert!(answer.contains("event: hello"), "{answer}");
}
