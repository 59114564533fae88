//! The limits that need a socket and a clock to be reached.

use std::collections::BTreeMap;

use rustix::process::Signal;
use serde_json::json;

use crate::harness::{Deadline, Home, PATIENCE_MS, Record, Server, pause, unix_ms, until};
use crate::http::{Conn, Got};
use crate::stream::{Event, Stream};

pub(crate) fn limit_hits(server: &Server, limit: &str) -> f64 {
    server
        .metrics()
        .sum(&format!("greendot_limit_hits_total{{limit=\"{limit}\"}}"))
}

/// Asks for a stream and reads what it begins with: `hello`, or a refusal to its end.
pub(crate) fn try_stream(server: &Server, query: &str) -> (Event, Stream) {
    let mut stream = server.stream(query);
    let first = stream.next();
    (first, stream)
}

#[test]
pub(crate) fn a_request_has_a_deadline_that_no_byte_extends() {
    let home = Home::new();
    let server = home.serve(&["--request-deadline-ms=800", "--linger-ms=200", "--shards=1"]);
    let began_at = unix_ms();
    let mut slow = server.connect();
    let mut silent = server.connect();
    slow.send(b"GET /livez HTTP/1.1\r\nHost: e2e\r\n");
    // A field every 50 ms, until it is answered.
    for n in 0.. {
        if slow.read(Deadline::in_ms(50)) != Got::Nothing {
            break;
        }
        assert!(
            unix_ms() < began_at + PATIENCE_MS,
            "the request goes on for ever"
        );
        slow.send(format!("X-{n}: y\r\n").as_bytes());
    }
    let answer = slow.answer();
    answer.expect_problem(408, "request-timeout");
    assert_eq!(answer.field("connection"), Some("close"));
    assert!(unix_ms() >= began_at + 800, "not before its time");
    // Whoever has not begun to ask is not answered.
    assert!(silent.read_to_end().is_empty());
    assert_eq!(limit_hits(&server, "request-deadline-ms"), 2.0);

    // The time of a body counts as well.
    let mut posting = server.connect();
    posting.send(
        b"POST /v1/beat HTTP/1.1\r\nHost: e2e\r\nContent-Type: application/json\r\n\
          Content-Length: 99\r\n\r\n{",
    );
    posting.answer().expect_problem(408, "request-timeout");
    assert_eq!(limit_hits(&server, "request-deadline-ms"), 3.0);
}

#[test]
pub(crate) fn a_connection_may_idle_so_long() {
    let home = Home::new();
    let server = home.serve(&["--keep-alive-idle-ms=2000", "--shards=1"]);
    let mut conn = server.connect();
    for _ in 0..4 {
        assert_eq!(conn.get("/livez").status, 200);
        pause(700);
    }
    assert_eq!(
        conn.get("/livez").status,
        200,
        "each request begins the wait anew"
    );
    let answered_at = unix_ms();
    assert!(conn.read_to_end().is_empty(), "closed without a word");
    let idle_ms = unix_ms() - answered_at;
    assert!((1_990..PATIENCE_MS).contains(&idle_ms), "{idle_ms}");
    assert_eq!(limit_hits(&server, "keep-alive-idle-ms"), 1.0);
    assert_eq!(
        server
            .metrics()
            .sum("greendot_conns_closed_total{reason=\"idle\"}"),
        1.0
    );
}

#[test]
pub(crate) fn one_client_of_a_proxy_has_so_many_streams() {
    let home = Home::new();
    let server = home.serve(&[
        "--conns-per-address-max=2",
        "--shards=1",
        "--trusted-proxies=127.0.0.0/8",
    ]);
    let opened = |client: &str| {
        let mut conn = server.connect();
        let lines = format!("Host: a\r\nX-Forwarded-For: {client}\r\n");
        conn.send(format!("GET /v1/stream?watch=bob HTTP/1.1\r\n{lines}\r\n").as_bytes());
        Stream::answered(conn)
    };
    let mut held = [
        opened("192.0.2.1"),
        opened("192.0.2.1"),
        opened("192.0.2.2"),
    ];
    held.iter_mut().for_each(|stream| drop(stream.begin()));
    let refusal = opened("192.0.2.1").expect("overloaded");
    assert_eq!(refusal.data["reason"], "address");
    assert_eq!(limit_hits(&server, "conns-per-address-max"), 1.0);
    // Requests that open no stream are the proxy's, which has as many connections as it likes.
    assert_eq!(server.get("/v1/presence/bob").status, 200);
}

#[test]
pub(crate) fn beyond_conns_max_everybody_is_told_so() {
    let home = Home::new();
    let server = home.serve(&["--conns-max=4", "--shards=1", "--retry-ms=500"]);
    let mut held: Vec<Stream> = (0..4)
        .map(|n| server.stream(&format!("user=u{n}")))
        .collect();
    held.iter_mut().for_each(|stream| drop(stream.begin()));

    let answer = server.get("/v1/presence/u0");
    answer.expect_problem(503, "overloaded");
    assert!(answer.field("retry-after").is_some() && answer.field("connection") == Some("close"));
    let (refusal, mut stream) = try_stream(&server, "user=late");
    assert_eq!(
        (refusal.kind.as_str(), &refusal.data["reason"]),
        ("overloaded", &"connections".into())
    );
    assert!(refusal.retry_ms.is_some_and(|retry_ms| retry_ms >= 500));
    assert!(stream.rest().is_empty());
    // Who watches over the server is let in.
    assert_eq!(server.get("/readyz").status, 200);
    assert!(limit_hits(&server, "conns-max") >= 3.0);
    assert_eq!(
        server
            .metrics()
            .sum("greendot_events_total{kind=\"overloaded\"}"),
        1.0
    );
    held.iter_mut().for_each(|stream| stream.expect_quiet(10));

    held.pop();
    until("there is room again", || {
        let (first, stream) = try_stream(&server, "user=late");
        (first.kind == "hello").then_some(stream)
    });
}

/// What the descriptors do not allow is not tried: they never run out, so who looks after the
/// server is let in.
#[test]
fn connections_leave_descriptors_to_hear_the_others_on() {
    let home = Home::new();
    let server = home.serve_after("ulimit -n 300", &["--shards=1"]);
    // 300 less 64 of the process, 8 of the shard, 64 for the surplus.
    let mut held: Vec<Stream> = (0..164).map(|_| server.stream("watch=bob")).collect();
    for stream in &mut held {
        stream.expect("hello");
    }
    // As many as are heard beyond it, and more.
    for _ in 0..2 {
        let silent: Vec<Conn> = (0..200).map(|_| server.connect()).collect();
        drop(silent);
        until("the silent have gone", || {
            let mut conn = server.connect();
            conn.send(b"GET /livez HTTP/1.1\r\nHost: e2e\r\nConnection: close\r\n\r\n");
            conn.read_to_end()
                .starts_with(b"HTTP/1.1 200 OK\r\n")
                .then_some(())
        });
        let (refusal, _) = try_stream(&server, "watch=bob");
        assert_eq!(
            (refusal.kind.as_str(), &refusal.data["reason"]),
            ("overloaded", &"connections".into())
        );
    }
    assert_eq!(limit_hits(&server, "nofile"), 0.0, "{}", server.log());
    for stream in &mut held {
        stream.expect("snapshot");
    }
}

#[test]
pub(crate) fn without_descriptors_it_refuses_waits_and_recovers() {
    let home = Home::new();
    let origin = "https://app.example";
    let server = home.serve(&[
        "--shards=1",
        "--conns-max=1000",
        &format!("--cors-origins={origin}"),
    ]);
    // Fewer than it knows of: connections within conns-max would leave some.
    server.limit_descriptors(64);
    let mut held = Vec::new();
    let refusal = loop {
        let (first, stream) = try_stream(&server, "watch=bob");
        if first.kind != "hello" {
            break first;
        }
        held.push(stream);
        assert!(held.len() < 64, "more streams than descriptors");
    };
    assert_eq!(
        (refusal.kind.as_str(), &refusal.data["reason"]),
        ("overloaded", &"nofile".into())
    );
    assert!(refusal.retry_ms.is_some_and(|retry_ms| retry_ms >= 10_000));
    server
        .get("/v1/presence/bob")
        .expect_problem(503, "overloaded");
    // A page of another origin is told too, or its EventSource would not come back.
    until("a page is told", || {
        let mut page = server.connect();
        page.send(
            format!("GET /v1/stream?watch=bob HTTP/1.1\r\nHost: e2e\r\nOrigin: {origin}\r\n\r\n")
                .as_bytes(),
        );
        let told = String::from_utf8(page.read_to_end()).expect("text");
        told.contains("event: overloaded").then(|| {
            assert!(
                told.contains(&format!("\r\nAccess-Control-Allow-Origin: {origin}\r\n")),
                "{told}"
            )
        })
    });
    // Whose request comes a little behind its connection is told in the right words too.
    until("a late request is heard", || {
        let mut late = server.connect();
        pause(20);
        late.send(b"GET /v1/stream?watch=bob HTTP/1.1\r\nHost: e2e\r\n\r\n");
        let told = late.read_to_end();
        told.starts_with(b"HTTP/1.1 200 OK\r\n").then_some(())
    });
    server.expect_log("no connection can be accepted; raise the limit");
    assert_eq!(
        server
            .log()
            .matches("no connection can be accepted")
            .count(),
        1,
        "{}",
        server.log()
    );

    // Some wait while nothing can be done: that costs next to nothing.
    let mut waiting: Vec<Conn> = (0..40).map(|_| server.connect()).collect();
    let before_ms = server.cpu_ms();
    pause(1_000);
    let used_ms = server.cpu_ms() - before_ms;
    assert!(
        used_ms < 500,
        "{used_ms} ms of CPU in a second of nothing to do"
    );
    waiting.clear();
    // Nobody who was in has been dropped.
    held.iter_mut()
        .for_each(|stream| drop(stream.expect("snapshot")));

    held.truncate(10);
    let (first, mut stream) = until("there are descriptors again", || {
        let (first, stream) = try_stream(&server, "watch=bob");
        (first.kind == "hello").then_some((first, stream))
    });
    assert_eq!(first.data["watching"], 1);
    stream.expect("snapshot");
    assert_eq!(
        server.post("/v1/beat", &json!({"users": ["bob"]})).status,
        204
    );
    for stream in held.iter_mut().chain([&mut stream]) {
        stream.expect_presence("bob", true);
    }
    assert!(limit_hits(&server, "nofile") > 0.0);
}

#[test]
fn silence_on_a_stream_is_broken_by_pings() {
    let home = Home::new();
    let server = home.serve(&["--keep-alive-ms=400"]);
    let mut stream = server.stream("watch=bob");
    stream.begin();
    let quiet_from = unix_ms();
    until("three pings", || {
        stream.expect_quiet(100);
        (stream.pings >= 3).then_some(())
    });
    // Jittered by at most a quarter.
    assert!(
        unix_ms() - quiet_from >= 3 * 300 - 100,
        "pings come too often"
    );
}

#[test]
pub(crate) fn a_users_limit_refuses_new_users_only() {
    let home = Home::new();
    let server = home.serve(&["--users-max=3", "--shards=2"]);
    assert_eq!(
        server
            .post("/v1/beat", &json!({"users": ["a", "b", "c"]}))
            .status,
        204
    );
    let partly = server.post("/v1/beat", &json!({"users": ["a", "d", "e"]}));
    let refused = |index: u32| json!({"index": index, "reason": "users_max"});
    assert_eq!(
        (partly.status, partly.json()),
        (
            200,
            json!({"refused": [refused(1), refused(2)], "refused_total": 2})
        )
    );
    assert_eq!(
        server.post("/v1/beat", &json!({"users": ["c"]})).status,
        204
    );
    server.sender().beat(&["f", "a"]);
    server.expect_metric(
        "greendot_beats_refused_total{reason=\"users_max\"}",
        |refused| refused == 3.0,
    );
    let (refusal, _) = try_stream(&server, "user=g");
    assert_eq!(refusal.kind, "overloaded");
    server.expect_metric("greendot_limit_hits_total{limit=\"users-max\"}", |hits| {
        hits == 4.0
    });
    server.expect_metric("greendot_beats_total{source=\"http\"}", |beats| {
        beats == 5.0
    });
    let metrics = server.metrics();
    assert_eq!(metrics.sum("greendot_users"), 3.0);
    assert_eq!(metrics.sum("greendot_users_max"), 3.0);
    // Four fifths of them are known.
    assert_eq!(metrics.sum("greendot_users_alarm"), 1.0);
}

#[test]
pub(crate) fn new_users_are_made_at_a_bounded_rate_and_streams_wait_for_theirs() {
    let home = Home::new();
    let server = home.serve(&[
        "--shards=2",
        "--new-users-per-second-max=20",
        "--new-users-per-conn-second-max=10",
        "--beat-interval-ms=500",
        "--offline-after-ms=5s",
    ]);
    let users: Vec<String> = (0..1_000).map(|n| format!("u{n}")).collect();
    let flood = || {
        let mut conn = server.connect();
        let answer = conn.post("/v1/beat", &json!({ "users": users }));
        assert_eq!(answer.status, 200);
        assert_eq!(answer.json()["refused"][0]["reason"], "too_fast");
    };
    // By one connection, and then by as many as it takes.
    flood();
    until("one connection is held to its own", || {
        (limit_hits(&server, "new-users-per-conn-second-max") > 0.0).then_some(())
    });
    until("all of them are held to the node's", || {
        flood();
        (limit_hits(&server, "new-users-per-second-max") > 0.0).then_some(())
    });
    let mut streams: Vec<_> = (0..30)
        .map(|n| server.stream(&format!("user=s{n}&watch=u0")))
        .collect();
    for stream in &mut streams {
        stream.begin();
    }
    for n in 0..30 {
        server.expect_online(&format!("s{n}"));
    }
    assert_eq!(server.metrics().sum("greendot_users_alarm"), 0.0);
}

/// The smallest budgets there are, in two shards' real loops: work is put off again and again, and
/// none is lost.
/// Those for whom a turn has no time left are served in the next.
#[test]
pub(crate) fn a_turn_ends_in_time_and_the_rest_is_served_in_the_next() {
    let home = Home::new();
    let server = home.serve(&["--shards=1", "--turn-ms-max=1"]);
    let users: Vec<String> = (0..1_000).map(|n| format!("u{n}")).collect();
    let body = json!({ "users": users }).to_string();
    let mut conns: Vec<_> = (0..40).map(|_| server.connect()).collect();
    until("a turn's time is over before its work", || {
        for conn in &mut conns {
            conn.send_post("/v1/presence/query", body.as_bytes());
        }
        for conn in &mut conns {
            assert_eq!(conn.answer().status, 200);
        }
        (limit_hits(&server, "turn-ms-max") > 0.0).then_some(())
    });
}

#[test]
pub(crate) fn a_turn_does_no_more_than_its_budgets() {
    const USERS: usize = 400;
    const WATCHERS: usize = 8;
    let home = Home::new();
    let server = home.serve(&[
        "--shards=2",
        "--mail-per-turn-max=1",
        "--beats-per-turn-max=1",
        "--flushes-per-turn-max=1",
        // Nobody goes offline meanwhile.
        "--beat-interval-ms=30s",
        "--offline-after-ms=60s",
    ]);
    let users: Vec<String> = (0..USERS).map(|n| format!("u{n}")).collect();
    let mut watchers: Vec<Stream> = (0..WATCHERS).map(|_| server.watch(&users).0).collect();

    // From several ports, so that the kernel gives some to either shard: each user's first beat
    // makes a transition, which one shard decides and the other hears of by mail. The datagrams are
    // few enough for one socket's buffer to hold all.
    let senders: Vec<_> = (0..8).map(|_| server.sender()).collect();
    for (n, user) in users.iter().enumerate() {
        senders[n % senders.len()].beat(&[user]);
    }
    for watcher in &mut watchers {
        let mut told = BTreeMap::new();
        while told.len() < USERS {
            let record = watcher.presence();
            assert!(record.online, "{record:?}");
            told.insert(record.user.clone(), record);
        }
        watcher.expect_quiet(20);
        let truth = server
            .post("/v1/presence/query", &json!({"users": users}))
            .json();
        for record in truth["presence"]
            .as_array()
            .expect("a list")
            .iter()
            .map(Record::of)
        {
            assert_eq!(told.get(&record.user), Some(&record));
        }
    }
    for limit in [
        "mail-per-turn-max",
        "beats-per-turn-max",
        "flushes-per-turn-max",
    ] {
        server.expect_limit_hits(limit, |hits| hits > 0.0);
    }
    assert_eq!(
        server.metrics().sum("greendot_resyncs_total"),
        0.0,
        "no mailbox was full"
    );
}

/// The budgets that are no settings.
#[test]
pub(crate) fn more_than_one_turns_worth_is_served_in_several() {
    const CONNS: usize = 300;
    let home = Home::new();
    // A turn that ends in time reads less than its bytes.
    let server = home.serve(&["--shards=1", "--turn-ms-max=60s"]);
    let body = vec![b'x'; 20_000];
    let head = format!(
        "POST /v1/beat HTTP/1.1\r\nHost: e2e\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    // All wait in the kernel before the server sees the first: 300 connections with 6 MB.
    server.process.stop();
    let mut conns: Vec<Conn> = (0..CONNS)
        .map(|_| {
            let mut conn = server.connect();
            conn.send(&[head.as_bytes(), &body].concat());
            conn
        })
        .collect();
    server.process.signal(Signal::CONT);
    for conn in &mut conns {
        conn.answer().expect_problem(400, "bad-json");
    }
    assert!(limit_hits(&server, "accepts-per-turn") > 0.0);
    assert!(limit_hits(&server, "read-bytes-per-turn") > 0.0);
}

#[test]
pub(crate) fn more_reads_and_closes_than_one_turn_takes_are_done_in_several() {
    // Far longer than it takes to ask on all of them once.
    const IDLE_MS: u64 = 10_000;
    const CONNS: usize = 1_500;
    const LARGE: usize = 200;
    let home = Home::new();
    let server = home.serve(&[
        "--shards=1",
        // A turn that ends in time reads and closes fewer.
        "--turn-ms-max=60s",
        "--keep-alive-idle-ms=10s",
        "--request-deadline-ms=60s",
    ]);
    let mut conns: Vec<Conn> = (0..CONNS).map(|_| server.connect()).collect();
    for conn in &mut conns {
        assert_eq!(conn.get("/livez").status, 200);
    }
    // While it stands still, some say more than one turn reads, and all others something; those are
    // left behind them.
    server.process.stop();
    let (large, small) = conns.split_at_mut(LARGE);
    for conn in &mut *large {
        conn.send(
            b"POST /v1/beat HTTP/1.1\r\nHost: e2e\r\nContent-Type: application/json\r\n\
              Content-Length: 60000\r\n\r\n",
        );
        conn.send(&[b' '; 60_000]);
    }
    for conn in &mut *small {
        conn.send(b"GET /livez HTTP/1.1\r\nHost: e2e\r\n\r\n");
    }
    server.process.signal(Signal::CONT);
    for conn in large {
        conn.answer().expect_problem(400, "bad-json");
    }
    for conn in small {
        assert_eq!(conn.answer().status, 200);
    }
    assert!(limit_hits(&server, "reads-per-turn") > 0.0);
    // While it stands still again, all become idle for too long.
    server.process.stop();
    pause(IDLE_MS + 1_000);
    server.process.signal(Signal::CONT);
    server.expect_metric("greendot_conns", |conns| conns == 1.0);
    assert!(limit_hits(&server, "closes-per-turn") > 0.0);
}

pub(crate) fn buffers_take_so_many_bytes() {
    let home = Home::new();
    let small = [
        "--shards=1",
        "--body-bytes-max=40K",
        "--outbox-bytes-max=16K",
    ];
    let server = home.serve(&[&small[..], &["--buffer-bytes-max=128K"]].concat());
    let body = format!("{{\"users\":[\"a\"]{}}}", " ".repeat(40_000 - 15));
    let head = format!(
        "POST /v1/beat HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    let (begun, rest) = body.split_at(39_000);
    let begun = format!("{head}{begun}");
    let mut first = server.connect();
    first.send(begun.as_bytes());
    let held = |least: f64| {
        server.expect_metric("greendot_buffered_bytes", |bytes| bytes >= least);
    };
    held(39_000.0);
    let mut more: Vec<_> = (0..4).map(|_| server.connect()).collect();
    for conn in &mut more {
        conn.send(begun.as_bytes());
    }
    until("somebody is refused", || {
        (limit_hits(&server, "buffer-bytes-max") > 0.0).then_some(())
    });
    // Short requests are served meanwhile, and who was there first is, too.
    assert_eq!(server.get("/v1/presence/a").status, 200);
    first.send(rest.as_bytes());
    assert_eq!(first.answer().status, 204);
    let refused = limit_hits(&server, "buffer-bytes-max") as usize;
    assert!((1..=4).contains(&refused), "{refused}");
    drop(more);
    server.expect_metric("greendot_buffered_bytes", |bytes| bytes == 0.0);
}

#[test]
fn a_shard_keeps_no_more_than_it_may_of_requests_that_are_not_whole() {
    buffers_take_so_many_bytes();
}
