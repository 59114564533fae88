//! The text of `/metrics` (Prometheus' text format 0.0.4): what it lists, and that it counts
//! exactly.

use std::collections::BTreeSet;

use crate::harness::{FAST, Home, unix_ms};

#[test]
fn every_name_in_the_manual_is_on_the_page() {
    let home = Home::new();
    let server = home.serve(&[]);
    let metrics = server.metrics();
    let manual = include_str!("../../docs/OPERATIONS.md");
    let is_of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let named: BTreeSet<&str> = manual
        .match_indices("greendot_")
        .map(|(at, _)| {
            manual[at..]
                .split(|c: char| !is_of_name(c))
                .next()
                .expect("a name begins here")
        })
        .collect();
    assert!(named.len() >= 12, "{named:?}");
    let families: BTreeSet<&str> = metrics.families.keys().map(String::as_str).collect();
    let missing: Vec<_> = named
        .iter()
        .filter(|name| !families.contains(name.strip_suffix("_bucket").unwrap_or(name)))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    for kind in ["counter", "gauge", "histogram"] {
        assert!(
            metrics.families.values().any(|given| given == kind),
            "{kind}"
        );
    }
}

#[test]
fn counters_move_by_what_happened() {
    let home = Home::new();
    let server = home.serve(&["--shards=2"]);
    let sender = server.sender();
    let sent_at = unix_ms() - 100;
    sender.vouch(false, sent_at, &["a", "b", "c"]);
    // A goodbye, and then the first beat once more: it was sent before the goodbye.
    server.expect_metric("greendot_beats_total{source=\"udp\"}", |beats| beats == 3.0);
    // Each is published by the shard that owns it, in a turn of its own.
    server.expect_metric("greendot_transitions_total{to=\"online\"}", |told| {
        told == 3.0
    });
    sender.vouch(true, sent_at + 50, &["a"]);
    server.expect_metric("greendot_leaves_total{source=\"udp\"}", |leaves| {
        leaves == 1.0
    });
    server.expect_metric("greendot_transitions_total{to=\"offline\"}", |told| {
        told == 1.0
    });
    sender.vouch(false, sent_at, &["a"]);
    server.expect_metric(
        "greendot_beats_refused_total{reason=\"before_leave\"}",
        |refused| refused == 1.0,
    );

    // One datagram for each reason to refuse one.
    let sealed = |sent_at_ms: u64| {
        let sent_at = greendot::time::Unix::from_ms(sent_at_ms);
        let mut writer = greendot::wire::beat::Writer::new(false, sent_at, &sender.key);
        assert!(writer.push(greendot::wire::User::parse(b"eve").expect("legal")));
        writer.seal(&sender.key)
    };
    let good = sealed(unix_ms());
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let last = good.len() - 1;
    for (reason, datagram) in [
        ("short", good[..33].to_vec()),
        ("magic", with(0, b'X')),
        ("version", with(2, 2)),
        ("key", with(4, good[4] ^ 1)),
        ("mac", with(last, good[last] ^ 1)),
        ("stale", sealed(unix_ms() - 60_000)),
    ] {
        sender.send(&datagram);
        let series = format!("greendot_datagrams_refused_total{{reason=\"{reason}\"}}");
        server.expect_metric(&series, |refused| refused == 1.0);
    }
    let metrics = server.metrics();
    for (series, value) in [
        ("greendot_datagrams_received_total", 9.0),
        ("greendot_datagrams_refused_total", 6.0),
        ("greendot_beats_total", 3.0),
        ("greendot_transitions_total{to=\"online\"}", 3.0),
        ("greendot_transitions_total{to=\"offline\"}", 1.0),
        ("greendot_users", 3.0),
        ("greendot_users_online", 2.0),
        ("greendot_streams", 0.0),
    ] {
        assert_eq!(metrics.sum(series), value, "{series}");
    }
}

#[test]
fn streams_and_watches_are_counted_while_they_last() {
    let home = Home::new();
    let server = home.serve(FAST);
    server.sender().beat(&["a"]);
    server.expect_metric("greendot_users", |users| users == 1.0);
    let mut stream = server.stream("watch=a&watch=b&watch=c");
    stream.begin();
    server.expect_metric("greendot_streams", |streams| streams == 1.0);
    server.expect_metric("greendot_watches{by=\"slot\"}", |watches| watches == 1.0);
    server.expect_metric("greendot_watches{by=\"name\"}", |watches| watches == 2.0);
    drop(stream);
    server.expect_metric("greendot_streams", |streams| streams == 0.0);
    server.expect_metric("greendot_watches", |watches| watches == 0.0);
}

#[test]
fn the_shards_work_is_measured() {
    let home = Home::new();
    let server = home.serve(&["--shards=2", "--sweep-interval-ms=20"]);
    server.sender().beat(&["a"]);
    for series in [
        "greendot_sweep_cycles_total",
        "greendot_sweep_slots_total",
        "greendot_sweep_duration_seconds_count",
        "greendot_sweep_duration_seconds_sum",
        "greendot_turn_duration_seconds_count",
        "greendot_turn_busy_seconds_total",
        "greendot_turn_elapsed_seconds_total",
    ] {
        server.expect_metric(series, |value| value > 0.0);
    }
    let metrics = server.metrics();
    let busy_s = metrics.sum("greendot_turn_busy_seconds_total");
    assert!(busy_s <= metrics.sum("greendot_turn_elapsed_seconds_total"));
    assert!(metrics.sum("greendot_sweep_duration_seconds_sum") <= busy_s);
    let mut stream = server.stream("watch=b");
    stream.begin();
    server.sender().beat(&["b"]);
    stream.expect_presence("b", true);
    server.expect_metric("greendot_delivery_latency_seconds_count", |told| {
        told >= 1.0
    });
}

/// As every client of Prometheus tells them, whatever the program is.
#[test]
fn the_process_is_measured() {
    let home = Home::new();
    let began_ms = unix_ms();
    let server = home.serve(&[]);
    server.expect_metric("process_start_time_seconds", |started_s| {
        // The kernel knows its boot to the second, and a process's start to a hundredth.
        (started_s - began_ms as f64 / 1_000.0).abs() < 5.0
    });
    let metrics = server.metrics();
    assert!(metrics.sum("process_cpu_seconds_total") > 0.0);
    let resident = metrics.sum("process_resident_memory_bytes");
    assert!(resident > 1e6 && resident < metrics.sum("process_virtual_memory_bytes"));
    let before = metrics.sum("process_open_fds");
    assert!(before > 5.0 && before < metrics.sum("process_max_fds"));
    let held: Vec<_> = (0..20).map(|_| server.connect()).collect();
    server.expect_metric("process_open_fds", |open| open >= before + 19.0);
    drop(held);
}

#[test]
fn pages_that_come_with_the_server() {
    let home = Home::new();
    let server = home.serve(&[]);
    let mut conn = server.connect();
    for (target, content_type) in [
        ("/livez", "text/plain"),
        ("/readyz", "text/plain"),
        ("/", "text/html"),
        ("/client.js", "text/javascript"),
        ("/client.d.ts", "text/plain"),
        ("/green-dot.js", "text/javascript"),
        ("/openapi.json", "application/json"),
    ] {
        let answer = conn.get(target);
        assert_eq!(answer.status, 200, "{target}");
        let given = answer.field("content-type").unwrap_or_default();
        assert!(given.starts_with(content_type), "{target}: {given}");
        assert!(!answer.body.is_empty(), "{target}");
        conn.send(format!("HEAD {target} HTTP/1.1\r\nHost: e2e\r\n\r\n").as_bytes());
        let head = conn.head();
        assert_eq!(
            head.field("content-length"),
            answer.field("content-length"),
            "{target}"
        );
    }
    let described = conn.get("/openapi.json").json();
    for path in [
        "/v1/presence/{user}",
        "/v1/presence",
        "/v1/presence/query",
        "/v1/stream",
        "/v1/stream/{stream}/watch",
        "/v1/beat",
        "/v1/leave",
    ] {
        assert!(described["paths"][path].is_object(), "{path}");
    }
    conn.get("/nowhere").expect_problem(404, "not-found");
}
