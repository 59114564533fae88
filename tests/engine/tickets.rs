//! Tickets: one stream each, whichever shard is asked, and what does not burn one.

use std::sync::Arc;

use greendot::auth::{Identity, LastActive, TICKET_MS, Tickets};
use greendot::engine::Role;
use greendot::metrics::{Counter, Gauge};
use greendot::wire::User;

use super::harness::{Peer, World, record, snapshot};
use super::identity::{
    ALICE, HOUR_MS, Said, asked, bearer, begin, cell, identity, request, service, token, world,
};

/// A ticket of this token's holder, made by a shard.
fn ticket(world: &mut World, shard: usize, token: &str) -> String {
    let answer = asked(world, shard, "POST /v1/ticket", &bearer(token), "");
    let (_, rest) = answer.split_once("{\"ticket\":\"").expect(&answer);
    let (ticket, rest) = rest.split_once('"').expect(&answer);
    assert_eq!(rest, ",\"expires_in\":30}", "{answer}");
    ticket.to_owned()
}

/// Asks for a stream with a ticket and gives the cell that answers.
fn opened(world: &mut World, shard: usize, query: &str, ticket: &str) -> String {
    let line = format!("GET /v1/stream?{query}&ticket={ticket}");
    cell(&asked(world, shard, &line, "", ""))
}

/// An identity of this life of the node, with room for so many used tickets.
fn life(life: u64, used_max: usize) -> Identity {
    Identity {
        tickets: Arc::new(Tickets::new(life, used_max * 80, begin())),
        ..identity()
    }
}

#[test]
fn a_ticket_opens_the_stream_that_its_token_would() {
    let mut world = world(2);
    let said = Said {
        last_active: LastActive::Minutes,
        ttl_ms: HOUR_MS / 2,
        ..ALICE
    };
    let token = token(&said);
    world.at(61_234).beat(0, &["bob"]);
    let ticket = ticket(&mut world, 0, &token);
    for (query, expected) in [
        // What it does not cover is refused, and does not burn it.
        ("watch=carol", "watch"),
        ("user=mallory", "user"),
        ("watch=%ff", "200"),
    ] {
        let peer = world.connect(1);
        let line = format!("HEAD /v1/stream?{query}&ticket={ticket}");
        world.send(peer, request(&line, "", ""));
        let head = world.received(peer);
        assert_eq!(
            &head[9..12],
            if expected == "200" { "200" } else { "403" },
            "{query}"
        );
        if expected != "200" {
            let peer = world.connect(1);
            world.send(peer, request(&line.replace("HEAD", "GET"), "", ""));
            assert_eq!(cell(&world.received(peer)), expected, "{query}");
        }
    }
    let peer = world.connect(1);
    let line = format!("GET /v1/stream?user=me&vouch=self&watch=bob&ticket={ticket}");
    world.send(peer, request(&line, "", ""));
    let id = world.expect_hello(peer, 1);
    let bob = record("bob", "online", 61_234, 60_000);
    world.expect(peer, snapshot(61_234, &[bob]));
    for shard in [0, 1] {
        assert_eq!(opened(&mut world, shard, "watch=bob", &ticket), "204");
    }
    assert_eq!(world.count(0, Counter::TicketUsed), 1);

    // It is the user's stream as one opened by the token is, and lives as long as the token.
    let edit = format!("POST /v1/stream/{id}/watch");
    let answer = asked(
        &mut world,
        0,
        &edit,
        &bearer(&token),
        r#"{"add":["team-a"]}"#,
    );
    assert_eq!(cell(&answer), "200");
    let answer = asked(
        &mut world,
        0,
        &format!("{edit}?ticket={ticket}"),
        "",
        r#"{"add":[]}"#,
    );
    assert_eq!(cell(&answer), "401", "good for streams alone");
    world.at(HOUR_MS / 2 - 1_000).expect_open(peer);
    world.at(HOUR_MS / 2 + 1_000).expect_closed(peer);
    assert!(
        world
            .received(peer)
            .ends_with("event: expired\ndata: {}\n\n")
    );
}

#[test]
fn what_is_no_ticket_is_401_and_what_was_one_is_204() {
    let mut world = world(1);
    let good = ticket(&mut world, 0, &token(&ALICE));
    let strange = world.key().service_token();
    let mut changed = good.clone();
    changed.replace_range(60..61, if &good[60..61] == "A" { "B" } else { "A" });
    for (ticket, expected) in [
        ("", "401"),
        ("abc", "401"),
        (&*strange, "401"),
        (&*changed, "401"),
        (&*token(&ALICE), "401"),
    ] {
        assert_eq!(
            opened(&mut world, 0, "watch=bob", ticket),
            expected,
            "{ticket}"
        );
    }
    let refused = [Counter::TicketForm, Counter::TicketMac].map(|it| world.count(0, it) > 0);
    assert_eq!(refused, [true, true]);

    world.at(TICKET_MS - 1);
    let peer = world.connect(0);
    world.send(
        peer,
        request(&format!("GET /v1/stream?ticket={good}"), "", ""),
    );
    world.expect_hello(peer, 0);
    let late = ticket(&mut world, 0, &token(&ALICE));
    world.pass(TICKET_MS);
    assert_eq!(opened(&mut world, 0, "watch=bob", &late), "204");
    assert_eq!(world.count(0, Counter::TicketOld), 1);
    assert_eq!(world.gauge(0, Gauge::Streams), 1);
}

/// The process has forgotten which it took.
#[test]
fn a_ticket_of_before_the_start_is_not_taken() {
    let mut world = World::asking(1, Role::All, life(1, 100));
    let unused = ticket(&mut world, 0, &token(&ALICE));
    let used = ticket(&mut world, 0, &token(&ALICE));
    assert_eq!(opened(&mut world, 0, "watch=bob", &used), "200");
    world.pass(1_000);
    let now = world.now();
    let tickets = Arc::new(Tickets::new(2, 1 << 20, now));
    world
        .ask_by(Identity {
            tickets,
            ..identity()
        })
        .restart(0);
    for ticket in [unused, used] {
        assert_eq!(opened(&mut world, 0, "watch=bob", &ticket), "204");
    }
    assert_eq!(world.count(0, Counter::TicketBeforeStart), 2);
    let fresh = ticket(&mut world, 0, &token(&ALICE));
    assert_eq!(opened(&mut world, 0, "watch=bob", &fresh), "200");
}

/// A reader who is told to come again comes with the same URL.
#[test]
fn overload_burns_no_ticket() {
    let mut world = World::asking(1, Role::All, life(1, 3));
    (
        world.settings.watches_per_shard_max,
        world.settings.watches_per_stream_max,
    ) = (2, 2);
    world.restart(0);
    let alice = token(&ALICE);
    let overloaded = |world: &mut World, ticket: &str, why: &str| {
        let line = format!("GET /v1/stream?watch=bob&ticket={ticket}");
        let answer = asked(world, 0, &line, "", "");
        let said = format!("data: {{\"reason\":\"{why}\"}}");
        assert!(
            answer.contains("event: overloaded") && answer.contains(&said),
            "{answer}"
        );
    };
    let holding = world.connect(0);
    let line = "GET /v1/stream?watch=bob&watch=team-a";
    world.send(holding, request(line, &bearer(&alice), ""));
    world.expect_hello(holding, 2);
    let waiting = ticket(&mut world, 0, &alice);
    overloaded(&mut world, &waiting, "watches");
    overloaded(&mut world, &waiting, "watches");
    world.reset(holding).turn();
    assert_eq!(opened(&mut world, 0, "watch=bob", &waiting), "200");

    // Nor does the want of room for used ones.
    for _ in 0..2 {
        let other = ticket(&mut world, 0, &alice);
        assert_eq!(opened(&mut world, 0, "user=me", &other), "200");
    }
    let fourth = ticket(&mut world, 0, &alice);
    overloaded(&mut world, &fourth, "tickets");
    assert_eq!(world.count(0, Counter::LimitTicketsBytes), 1);
    world.pass(TICKET_MS + 2_000);
    let fifth = ticket(&mut world, 0, &alice);
    assert_eq!(opened(&mut world, 0, "user=me", &fifth), "200");
}

/// Who hangs up before there is a hello has not used it; nor has who was logged out.
#[test]
fn a_ticket_is_spent_with_the_hello() {
    let mut world = world(2);
    let mut ticket = || ticket(&mut world, 0, &token(&ALICE));
    let (first, second) = (ticket(), ticket());
    let left = "user=me&last_event_id=bye";
    assert_eq!(
        opened(&mut world, 1, left, &first),
        "204",
        "it was logged out"
    );
    assert_eq!(world.count(1, Counter::TicketUsed), 0);
    let gone = world.connect(1);
    world.hold_mail(0, true);
    let line = format!("GET /v1/stream?user=me&ticket={first}");
    world.send(gone, request(&line, "", ""));
    world.turn_of(1);
    assert_eq!(opened(&mut world, 1, "watch=bob", &first), "204");
    assert_eq!(
        world.count(1, Counter::TicketUsed),
        1,
        "it waits for its hello"
    );
    assert_eq!(opened(&mut world, 1, "watch=bob", &second), "200");
    world.reset(gone);
    world.hold_mail(0, false).turn();
    assert_eq!(opened(&mut world, 0, "user=me", &first), "200");
}

/// The same ticket comes to two shards in one turn, again and again.
#[test]
fn of_two_shards_exactly_one_takes_a_ticket() {
    let mut world = world(2);
    world.checks = false;
    let alice = token(&ALICE);
    let asks = request("POST /v1/ticket", &bearer(&alice), "");
    let maker = world.connect(0);
    let mut won = [0, 0];
    for round in 0..10_000_usize {
        world.send(maker, &asks);
        let answer = world.received(maker);
        let (_, rest) = answer.split_once("{\"ticket\":\"").expect(&answer);
        let (ticket, _) = rest.split_once('"').expect(&answer);
        // Every other stream waits for another shard before its hello.
        let query = if round % 2 == 0 {
            "watch=bob"
        } else {
            "user=me"
        };
        let line = format!("GET /v1/stream?{query}&ticket={ticket}");
        let peers: [Peer; 2] = [0, 1].map(|shard| {
            let peer = world.connect(shard);
            world.whisper(peer, &request(&line, "", ""));
            peer
        });
        let order = if round % 3 == 0 { [1, 0] } else { [0, 1] };
        for shard in order {
            world.turn_of(shard);
        }
        world.turn();
        let answers = peers.map(|peer| cell(&world.received(peer)));
        let winner = answers.iter().position(|answer| answer == "200");
        let winner = winner.unwrap_or_else(|| panic!("{round}: {answers:?}"));
        assert_eq!(answers[1 - winner], "204", "{round}");
        won[winner] += 1;
        for peer in peers {
            if !world.is_closed(peer) {
                world.reset(peer);
            }
        }
        if round % 500 == 0 {
            world.pass(TICKET_MS);
        }
    }
    assert!(won.iter().all(|won| *won > 1_000), "{won:?}");
}

#[test]
fn a_ticket_that_no_url_would_hold_is_not_made() {
    let mut world = world(1);
    let many = token(&Said {
        watch: &MANY,
        ..ALICE
    });
    let answer = asked(&mut world, 0, "POST /v1/ticket", &bearer(&many), "");
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("problems/ticket-too-long"), "{answer}");
    assert!(
        answer.contains("send the token as a header or in the cookie"),
        "{answer}"
    );
    assert_eq!(world.count(0, Counter::TicketTooLong), 1);
    // Where nobody is asked there is none either.
    let mut open = World::new(1);
    let answer = asked(&mut open, 0, "POST /v1/ticket", "", "");
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    let answer = asked(&mut open, 0, "GET /v1/stream?watch=bob&ticket=abc", "", "");
    assert!(!answer.contains("ignored"), "it is known: {answer}");
}

/// What a token has room for and a ticket has not.
#[rustfmt::skip] // Four a line.
const MANY: [&str; 16] = [
    LONG.split_at(121).0, LONG.split_at(120).0, LONG.split_at(119).0, LONG.split_at(118).0,
    LONG.split_at(117).0, LONG.split_at(116).0, LONG.split_at(115).0, LONG.split_at(114).0,
    LONG.split_at(113).0, LONG.split_at(112).0, LONG.split_at(111).0, LONG.split_at(110).0,
    LONG.split_at(109).0, LONG.split_at(108).0, LONG.split_at(107).0, LONG.split_at(106).0,
];
const LONG: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
                    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A token in the URL is taken where that was asked for.
#[test]
fn a_token_in_the_query() {
    let alice = token(&ALICE);
    for (query, expected) in [(false, "401"), (true, "200")] {
        let mut world = World::asking(
            1,
            Role::All,
            Identity {
                query,
                ..identity()
            },
        );
        let line = format!("GET /v1/stream?watch=bob&token={alice}");
        assert_eq!(cell(&asked(&mut world, 0, &line, "", "")), expected);
        let line = format!("GET /v1/presence/bob?token={alice}");
        assert_eq!(cell(&asked(&mut world, 0, &line, "", "")), "401");
    }
}

/// A backend that signs no tokens has tickets made for its users.
#[test]
fn a_service_makes_tickets_for_users() {
    let (key, line) = service("app", "ticket");
    let mut world = World::with_services(1, Role::All, Some(identity()), &line);
    let lines = bearer(&key);
    let line = "POST /v1/ticket";
    let claims = r#"{"sub":"carol","exp":1764009660,"greendot":{"watch":["bob"]}}"#;
    let answer = asked(&mut world, 0, line, &lines, claims);
    let (_, rest) = answer.split_once("{\"ticket\":\"").expect(&answer);
    let ticket = rest.split_once('"').expect(&answer).0;
    assert_eq!(opened(&mut world, 0, "watch=alice", ticket), "watch");
    let peer = world.connect(0);
    let open = format!("GET /v1/stream?user=me&watch=bob&ticket={ticket}");
    world.send(peer, request(&open, "", ""));
    world.expect_hello(peer, 1);
    assert!(world.presence().lookup(User::NOBODY).is_none());
    let carol = User::from_text("carol").expect("a user");
    assert!(world.presence().lookup(carol).is_some());
    // It lives as long as the service says, and no longer.
    world.at(62_000).expect_closed(peer);
    for (claims, reason) in [
        ("", "claims"),
        ("{}", "no_exp"),
        (r#"{"sub":"carol"}"#, "no_exp"),
        (r#"{"sub":"carol","exp":1764009661}"#, "expired"),
        (r#"{"sub":"carol","exp":1774009660}"#, "long_lived"),
        (r#"{"sub":"","exp":1764009700}"#, "sub"),
        (
            r#"{"sub":"carol","exp":1764009700,"greendot":{"wacth":[]}}"#,
            "greendot",
        ),
    ] {
        let answer = asked(&mut world, 0, line, &lines, claims);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{claims} {answer}");
        assert!(
            answer.contains(&format!("a token's claims; {reason}: ")),
            "{claims} {answer}"
        );
    }
}
