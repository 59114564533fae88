//! Every limit that is counted is reached on the real binary: here, or by the test that is named.

use std::collections::BTreeSet;

use serde_json::json;

use crate::forget::erase;
use crate::harness::{Home, Server, until};
use crate::limits::{limit_hits, try_stream};
use crate::readers::{ask, narrow, wide_users};
use crate::split::asked;
use crate::stream::{Event, Stream};
use crate::{identity, limits, memory_group, overflow, rates, relayed, revoked, tls, vanished};

/// Who reaches a limit and asserts that it was counted.
enum Reached {
    /// This, on a server with [`SMALL`] limits; it asserts the refusal, the table's test the count.
    Here(fn(&Server)),
    /// Another test of its own, named so that it must exist.
    By(fn()),
}

const SMALL: &[&str] = &[
    "--shards=1",
    "--head-bytes-max=1K",
    "--header-count-max=8",
    "--body-bytes-max=100K",
    "--query-users-max=10",
    "--leaves-put-off-max=2",
    "--users-leaving-max=1",
    "--watches-per-stream-max=400",
    "--watches-per-shard-max=500",
    "--sweep-slots-per-turn-max=1",
    "--work-per-slice-max=1",
    "--names-bytes-max=90K",
    "--outbox-bytes-max=16K",
    "--write-stall-max-ms=1s",
];

const LIMITS: [(&str, Reached); 48] = [
    ("head-bytes-max", Reached::Here(head_bytes)),
    ("header-count-max", Reached::Here(header_count)),
    ("body-bytes-max", Reached::Here(body_bytes)),
    ("body-depth-max", Reached::Here(body_depth)),
    ("query-users-max", Reached::Here(query_users)),
    ("watches-per-stream-max", Reached::Here(watches_per_stream)),
    ("watches-per-shard-max", Reached::Here(watches_per_shard)),
    (
        "sweep-slots-per-turn-max",
        Reached::Here(sweep_slots_per_turn),
    ),
    ("work-per-slice-max", Reached::Here(work_per_slice)),
    ("names-bytes-max", Reached::Here(names_bytes)),
    ("outbox-bytes-max", Reached::Here(outbox_bytes)),
    ("write-stall-max-ms", Reached::Here(write_stall)),
    ("leaves-put-off-max", Reached::Here(leaves_put_off)),
    ("users-leaving-max", Reached::Here(users_leaving)),
    ("node-streams-max", Reached::Here(node_streams)),
    ("client-names-max", Reached::Here(client_names)),
    (
        "passed-users-max",
        Reached::By(asked::what_waits_for_presence_nodes_is_bounded),
    ),
    (
        "revocations-max",
        Reached::By(revoked::no_more_are_in_force_than_may_be),
    ),
    (
        "ack-max-ms",
        Reached::By(vanished::a_peer_that_acknowledges_nothing_is_vouched_for_no_longer),
    ),
    (
        "stream-life-ms",
        Reached::By(relayed::a_stream_ends_after_its_longest_life_and_nothing_is_missed),
    ),
    (
        "mailbox-max",
        Reached::By(overflow::a_full_mailbox_makes_its_shard_look_for_itself),
    ),
    (
        "mailbox-bytes-max",
        Reached::By(overflow::edits_beyond_their_bytes_are_refused),
    ),
    (
        "turn-ms-max",
        Reached::By(limits::a_turn_ends_in_time_and_the_rest_is_served_in_the_next),
    ),
    (
        "buffer-bytes-max",
        Reached::By(limits::buffers_take_so_many_bytes),
    ),
    (
        "conns-max",
        Reached::By(limits::beyond_conns_max_everybody_is_told_so),
    ),
    (
        "tls-handshakes-max",
        Reached::By(tls::who_finds_no_room_for_a_handshake_waits),
    ),
    (
        "memory-group",
        Reached::By(memory_group::near_the_groups_end_new_streams_are_refused_and_others_go_on),
    ),
    (
        "conns-per-address-max",
        Reached::By(limits::one_client_of_a_proxy_has_so_many_streams),
    ),
    (
        "request-deadline-ms",
        Reached::By(limits::a_request_has_a_deadline_that_no_byte_extends),
    ),
    (
        "keep-alive-idle-ms",
        Reached::By(limits::a_connection_may_idle_so_long),
    ),
    (
        "tickets-bytes-max",
        Reached::By(identity::used_tickets_are_kept_in_so_many_bytes),
    ),
    (
        "queries-per-user-second-max",
        Reached::By(rates::who_asks_too_much_is_told_when_to_come_again),
    ),
    (
        "ids-per-user-minute-max",
        Reached::By(rates::who_asks_too_much_is_told_when_to_come_again),
    ),
    (
        "edits-per-user-second-max",
        Reached::By(rates::who_asks_too_much_is_told_when_to_come_again),
    ),
    (
        "streams-per-user-second-max",
        Reached::By(rates::who_asks_too_much_is_told_when_to_come_again),
    ),
    (
        "watch-lists-per-user-minute-max",
        Reached::By(rates::who_asks_too_much_is_told_when_to_come_again),
    ),
    (
        "tickets-per-user-second-max",
        Reached::By(rates::who_asks_too_much_is_told_when_to_come_again),
    ),
    (
        "users-max",
        Reached::By(limits::a_users_limit_refuses_new_users_only),
    ),
    (
        "new-users-per-second-max",
        Reached::By(limits::new_users_are_made_at_a_bounded_rate_and_streams_wait_for_theirs),
    ),
    (
        "new-users-per-conn-second-max",
        Reached::By(limits::new_users_are_made_at_a_bounded_rate_and_streams_wait_for_theirs),
    ),
    (
        "nofile",
        Reached::By(limits::without_descriptors_it_refuses_waits_and_recovers),
    ),
    (
        "mail-per-turn-max",
        Reached::By(limits::a_turn_does_no_more_than_its_budgets),
    ),
    (
        "beats-per-turn-max",
        Reached::By(limits::a_turn_does_no_more_than_its_budgets),
    ),
    (
        "flushes-per-turn-max",
        Reached::By(limits::a_turn_does_no_more_than_its_budgets),
    ),
    (
        "accepts-per-turn",
        Reached::By(limits::more_than_one_turns_worth_is_served_in_several),
    ),
    (
        "read-bytes-per-turn",
        Reached::By(limits::more_than_one_turns_worth_is_served_in_several),
    ),
    (
        "reads-per-turn",
        Reached::By(limits::more_reads_and_closes_than_one_turn_takes_are_done_in_several),
    ),
    (
        "closes-per-turn",
        Reached::By(limits::more_reads_and_closes_than_one_turn_takes_are_done_in_several),
    ),
];

#[test]
fn every_limit_is_reached_refused_and_counted() {
    let home = Home::new();
    let server = home.serve(SMALL);
    let exposed = server.get("/metrics").text();
    let names: BTreeSet<&str> = exposed
        .lines()
        .filter_map(|line| line.strip_prefix("greendot_limit_hits_total{"))
        .map(|labels| {
            let (_, value) = labels.split_once("limit=\"").expect("it is labelled");
            value.split('"').next().expect("a value")
        })
        .collect();
    assert_eq!(names, LIMITS.iter().map(|(name, _)| *name).collect());
    for (name, reached) in &LIMITS {
        match reached {
            Reached::Here(reach) => {
                let before = limit_hits(&server, name);
                reach(&server);
                assert!(limit_hits(&server, name) > before, "{name} is not counted");
            }
            Reached::By(test) => {
                let _: &fn() = test;
            }
        }
    }
}

/// Sixteen see the node's figures, and the next is told to come again.
fn node_streams(server: &Server) {
    let follow = || Stream::open(server.connect(), "/v1/node/stream");
    let mut held: Vec<Stream> = (0..16).map(|_| follow()).collect();
    for stream in &mut held {
        stream.expect("hello");
        stream.expect("past");
        stream.expect("node");
        stream.expect("figures");
    }
    let refused = follow().expect("overloaded");
    assert_eq!(refused.data["reason"], "node-streams");
}

/// So many clients have names of their own, and the next is told without.
fn client_names(server: &Server) {
    let open = |name: usize| {
        let mut conn = server.connect();
        let head = format!("GET /v1/stream HTTP/1.1\r\nHost: e2e\r\nUser-Agent: c{name}\r\n\r\n");
        conn.send(head.as_bytes());
        Stream::answered(conn)
    };
    // One after the other: many at once may be served in another order.
    let mut held: Vec<(Stream, Event)> = Vec::new();
    for name in 0..1_024 {
        let mut stream = open(name);
        let hello = stream.expect("hello");
        held.push((stream, hello));
    }
    let (_, last) = held.last().expect("there are many");
    let id = last.data["stream"].as_str().expect("an id").to_owned();
    let told = server.get(&format!("/v1/streams/{id}")).json();
    assert_eq!(told["client"], serde_json::Value::Null, "{told}");
    let first = held[0].1.data["stream"].clone();
    let first = first.as_str().expect("an id").to_owned();
    let told = server.get(&format!("/v1/streams/{first}")).json();
    assert_eq!(told["client"], "c0");
}

fn head_bytes(server: &Server) {
    let mut conn = server.connect();
    conn.send(
        format!(
            "GET /livez HTTP/1.1\r\nHost: e2e\r\nX: {}\r\n\r\n",
            "x".repeat(1_000)
        )
        .as_bytes(),
    );
    conn.answer().expect_problem(431, "head-too-large");
    let answer = server.get(&format!("/v1/presence/{}", "x".repeat(1_000)));
    answer.expect_problem(414, "target-too-long");
}

fn header_count(server: &Server) {
    let mut conn = server.connect();
    conn.send(
        format!(
            "GET /livez HTTP/1.1\r\nHost: e2e\r\n{}\r\n",
            "X: y\r\n".repeat(7)
        )
        .as_bytes(),
    );
    assert_eq!(conn.answer().status, 200);
    conn.send(
        format!(
            "GET /livez HTTP/1.1\r\nHost: e2e\r\n{}\r\n",
            "X: y\r\n".repeat(8)
        )
        .as_bytes(),
    );
    conn.answer().expect_problem(431, "too-many-headers");
}

fn body_bytes(server: &Server) {
    let body = vec![b' '; 100 * 1_024 + 1];
    let answer = server.connect().post_bytes("/v1/beat", &body);
    answer.expect_problem(413, "body-too-large");
}

fn body_depth(server: &Server) {
    let body = format!(
        "{{\"users\":[],\"more\":{}{}}}",
        "[".repeat(8),
        "]".repeat(8)
    );
    let answer = server.connect().post_bytes("/v1/beat", body.as_bytes());
    answer.expect_problem(400, "bad-json");
}

fn query_users(server: &Server) {
    let eleven = json!({"users": (0..11).map(|n| n.to_string()).collect::<Vec<_>>()});
    for path in ["/v1/presence/query", "/v1/beat", "/v1/leave"] {
        server
            .post(path, &eleven)
            .expect_problem(413, "too-many-users");
    }
    assert_eq!(
        server.metrics().sum("greendot_users"),
        0.0,
        "nobody of them has beaten"
    );
}

/// Two goodbyes wait for each shard's users, and one said again takes no room.
fn leaves_put_off(server: &Server) {
    let three = json!({"users": ["put-off-1", "put-off-2", "put-off-3"]});
    assert_eq!(server.post("/v1/beat", &three).status, 204);
    let leave = |users: &[&str]| {
        let body = json!({"users": users, "after_ms": 20_000});
        server.post("/v1/leave", &body)
    };
    for users in [&["put-off-1", "put-off-2"][..], &["put-off-2"]] {
        assert_eq!(leave(users).status, 204);
    }
    leave(&["put-off-3"]).expect_problem(503, "overloaded");
}

/// Whoever is erased beyond it is known as before, until the one before has left.
fn users_leaving(server: &Server) {
    let two = json!({"users": ["erased", "kept"]});
    assert_eq!(server.post("/v1/beat", &two).status, 204);
    assert_eq!(erase(server, "erased").status, 204);
    erase(server, "kept").expect_problem(503, "overloaded");
    server.expect_online("kept");
}

fn watches_per_stream(server: &Server) {
    let users: Vec<String> = (0..401).map(|n| n.to_string()).collect();
    let answer = server.post("/v1/stream", &json!({"watch": users}));
    answer.expect_problem(413, "too-many-users");
}

/// Whoever is in stays, and who comes is told when to come back.
fn watches_per_shard(server: &Server) {
    let users: Vec<String> = (0..400).map(|n| n.to_string()).collect();
    let (mut held, _) = server.watch(&users);
    let query: Vec<String> = (0..101).map(|n| format!("watch={n}")).collect();
    let query = query.join("&");
    assert!(query.len() < 1_000, "it is to fit in a head");
    let (refusal, mut refused) = try_stream(server, &query);
    assert_eq!(
        (refusal.kind.as_str(), &refusal.data["reason"]),
        ("overloaded", &"watches".into())
    );
    assert!(refusal.retry_ms.is_some() && refused.rest().is_empty());
    held.expect_quiet(10);
}

/// Nothing is refused: the sweep gets through in more turns.
fn sweep_slots_per_turn(server: &Server) {
    // More than the 64 that are the least a slice looks at.
    let users: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    server.sender().beat(&users);
    server.expect_metric("greendot_users", |known| known == 200.0);
    let swept = server.metrics().sum("greendot_sweep_cycles_total");
    server.expect_metric("greendot_sweep_cycles_total", |cycles| {
        cycles >= swept + 3.0
    });
}

/// Nothing is refused: who is not told at once is told in a slice behind.
fn work_per_slice(server: &Server) {
    let users: Vec<String> = (0..20).map(|n| format!("sliced {n}")).collect();
    let (mut stream, _) = server.watch(&users);
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    server.sender().beat(&users);
    for _ in &users {
        assert!(stream.presence().online);
    }
}

/// Whoever is in stays, and those who have a slot can be watched.
fn names_bytes(server: &Server) {
    let (mut held, told) = server.watch(&wide_users(400));
    assert_eq!(told.len(), 400);
    let others: Vec<String> = (0..60).map(|n| format!("{n:y>128}")).collect();
    let body = json!({"watch": others}).to_string();
    let mut refused = server.connect();
    refused.send_post("/v1/stream", body.as_bytes());
    let refusal = String::from_utf8_lossy(&refused.read_to_end()).into_owned();
    assert!(refusal.contains("\"reason\":\"names\""), "{refusal}");
    held.expect_quiet(10);
}

/// Nothing is refused: a snapshot that does not fit comes in parts.
fn outbox_bytes(server: &Server) {
    let (mut stream, told) = server.watch(&wide_users(300));
    assert_eq!(told.len(), 300);
    stream.expect_quiet(10);
}

fn write_stall(server: &Server) {
    until("all streams have ended", || {
        (server.metrics().sum("greendot_watches") == 0.0).then_some(())
    });
    let mut stuck = narrow(server.http);
    ask(&mut stuck, None, &wide_users(400));
    server.expect_metric(
        "greendot_conns_evicted_total{reason=\"write_stall\"}",
        |evicted| evicted == 1.0,
    );
    assert!(!stuck.read_to_end().is_empty());
}
