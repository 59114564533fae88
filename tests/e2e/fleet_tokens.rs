//! Tokens and tickets at several nodes over one real Redis: void at one is void at all, and used at
//! one is used at all.

use greendot::wire::beat::FleetKey;
use rustix::process::{Signal, kill_process};

use crate::fleet::{Fleet, expect_ready, redis};
use crate::harness::{Home, Server, until};
use crate::identity::ticket;
use crate::revoked::{asked, query, token};

const KEYS: &str = "--jwt-keys=app.secret";

fn revoke(node: &Server, body: &str) -> u16 {
    let lines = format!(
        "Authorization: Bearer {}\r\n",
        FleetKey::new([0x11; 32]).service_token()
    );
    asked(node.http, "POST /v1/revoke", &lines, body).status
}

fn expect_refused(node: &Server, token: &str) {
    until("the token is void", || {
        (query(node.http, token) == 401).then_some(())
    });
}

#[test]
fn what_is_revoked_at_one_node_is_void_at_all_and_at_those_that_come() {
    let Some(mut fleet) = Fleet::in_home(Home::with_secret()) else {
        return;
    };
    let home = &fleet.home;
    let tokens = ["one", "two", "three"].map(|id| token(home, &[&format!("--jti={id}")]));
    let (first, second) = (fleet.node_with(&[KEYS]), fleet.node_with(&[KEYS]));
    let bearer = tokens[0]
        .trim_end()
        .trim_start_matches("Authorization: Bearer ");
    let mut stream = second.stream(&format!("watch=bob&ticket={}", ticket(&second, bearer)));
    stream.expect("hello");
    assert_eq!(revoke(&first, r#"{"jti":"one"}"#), 204);
    expect_refused(&second, &tokens[0]);
    // Its streams end, wherever they are.
    stream.rest();
    let third = fleet.node_with(&[KEYS]);
    let statuses = |node: &Server| tokens.each_ref().map(|token| query(node.http, token));
    assert_eq!(
        statuses(&third),
        [401, 200, 200],
        "ready is who knows what is void"
    );
    // Redis away: what is known holds, and a new one is not promised to hold at all nodes.
    let pid = fleet.redis.pid();
    kill_process(pid, Signal::STOP).expect("our own process");
    assert_eq!(revoke(&first, r#"{"jti":"two"}"#), 503);
    assert_eq!(statuses(&first), [401, 401, 200]);
    assert_eq!(statuses(&second), [401, 200, 200]);
    kill_process(pid, Signal::CONT).expect("our own process");
    expect_refused(&second, &tokens[1]);
    // What Redis has lost the nodes say again.
    fleet.redis.kill();
    fleet.redis = redis(&fleet.home);
    for node in [&first, &second, &third] {
        expect_ready(node);
    }
    let fourth = fleet.node_with(&[KEYS]);
    for token in &tokens[..2] {
        expect_refused(&fourth, token);
    }
    assert_eq!(query(fourth.http, &tokens[2]), 200);
}

/// Redis stands still before it comes, so that it can not know what is void.
#[test]
fn a_node_takes_no_token_before_it_has_read_which_are_void() {
    let Some(fleet) = Fleet::in_home(Home::with_secret()) else {
        return;
    };
    let home = &fleet.home;
    let [void, good] = ["void", "good"].map(|id| token(home, &[&format!("--jti={id}")]));
    let first = fleet.node_with(&[KEYS]);
    assert_eq!(revoke(&first, r#"{"jti":"void"}"#), 204);
    let pid = fleet.redis.pid();
    kill_process(pid, Signal::STOP).expect("our own process");
    let (node, open) = (fleet.begin(&[KEYS]), fleet.begin(&[]));
    for shown in [&void, &good] {
        for line in [
            "GET /v1/presence/bob",
            "GET /v1/stream?user=me&watch=bob",
            "POST /v1/ticket",
        ] {
            let answer = asked(node.http, line, shown, "");
            let text = answer.text();
            assert_eq!(answer.status, 503, "{line}: {text}");
            assert!(
                text.contains("fleet-away") && text.contains("revoked"),
                "{text}"
            );
            assert!(answer.field("retry-after").is_some(), "{line}: {answer:?}");
        }
    }
    let forged = good.replace("\r\n", "x\r\n");
    assert_eq!(
        query(node.http, &forged),
        401,
        "no token is none at any time"
    );
    // Who knows which are void goes on, and where nobody is asked for a token none is void.
    assert_eq!([&void, &good].map(|it| query(first.http, it)), [401, 200]);
    assert_eq!(query(open.http, ""), 200);
    kill_process(pid, Signal::CONT).expect("our own process");
    until("it has read what is void", || {
        let statuses = [&void, &good].map(|it| query(node.http, it));
        assert_ne!(statuses[0], 200, "a token that is void is taken");
        (statuses == [401, 200]).then_some(())
    });
}

#[test]
fn a_ticket_is_good_once_in_a_fleet() {
    let Some(fleet) = Fleet::in_home(Home::with_secret()) else {
        return;
    };
    let (first, second) = (fleet.node_with(&[KEYS]), fleet.node_with(&[KEYS]));
    let alice = fleet.home.token("alice", &["--watch=*"]);
    // One that was made before a node began is refused by that: no node may be younger.
    let made = ticket(&second, &alice);
    let by = |ticket: &str| format!("user=me&watch=bob&ticket={ticket}");
    let mut stream = second.stream(&by(&made));
    stream.expect("hello");
    for node in [&first, &second] {
        let again = asked(node.http, &format!("GET /v1/stream?{}", by(&made)), "", "");
        assert_eq!(again.status, 204);
    }
    first.expect_metric("greendot_tickets_refused_total{reason=\"used\"}", |count| {
        count == 1.0
    });
    first.expect_metric("greendot_tickets_unasked_total", |count| count == 0.0);
    // With Redis away a ticket is good once at each node, and that is counted.
    let made = ticket(&second, &alice);
    kill_process(fleet.redis.pid(), Signal::STOP).expect("our own process");
    let mut streams = [&first, &second].map(|node| node.stream(&by(&made)));
    streams
        .iter_mut()
        .for_each(|stream| drop(stream.expect("hello")));
    for node in [&first, &second] {
        node.expect_metric("greendot_tickets_unasked_total", |count| count == 1.0);
        let again = asked(node.http, &format!("GET /v1/stream?{}", by(&made)), "", "");
        assert_eq!(again.status, 204);
    }
    kill_process(fleet.redis.pid(), Signal::CONT).expect("our own process");
}

#[test]
fn a_stream_gets_another_token_by_any_node() {
    let Some(fleet) = Fleet::in_home(Home::with_secret()) else {
        return;
    };
    let flags = [KEYS, "--auth-cookie=presence"];
    let nodes = [fleet.node_with(&flags), fleet.node_with(&flags)];
    for node in &nodes {
        node.expect_metric("greendot_fleet_nodes", |seen| seen == 2.0);
    }
    let alice = fleet.home.token("alice", &["--watch=*"]);
    let mut stream = nodes[0].stream(&format!(
        "user=me&watch=bob&ticket={}",
        ticket(&nodes[0], &alice)
    ));
    let hello = stream.expect("hello").data;
    let id = hello["stream"].as_str().expect("an id");
    let next = token(&fleet.home, &["--jti=next"]);
    let by_cookie = next.replace("Authorization: Bearer ", "Cookie: presence=");
    let [token_of, watch_of] =
        ["token", "watch"].map(|what| format!("POST /v1/stream/{id}/{what}"));
    for (line, shown, body, expected) in [
        (&token_of, &*next, "", 200),
        (&watch_of, &next, r#"{"add":["carol"]}"#, 200),
        (&watch_of, &by_cookie, r#"{"add":["erin"]}"#, 200),
        // Who may not is told so by either node alike.
        (&watch_of, "", r#"{"add":["dora"]}"#, 401),
        (
            &watch_of,
            "Authorization: Bearer nonsense\r\n",
            r#"{"add":["dora"]}"#,
            401,
        ),
    ] {
        for node in &nodes {
            let answer = asked(node.http, line, shown, body);
            assert_eq!(answer.status, expected, "{line}: {}", answer.text());
        }
    }
    let forwarded = nodes[1]
        .metrics()
        .sum("greendot_fleet_calls_forwarded_total");
    assert_eq!(forwarded, 3.0, "what is refused here goes nowhere");
    // The new token is the stream's: with it the stream ends.
    assert_eq!(revoke(&nodes[1], r#"{"jti":"next"}"#), 204);
    stream.rest();
}
