//! A server that does not run for a while, while everybody keeps beating.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use serde_json::json;

use crate::harness::{FAST, Home, OFFLINE_AFTER_MS, Server, pause};
use crate::stream::{Stream, records};

const USERS: usize = 300;

fn watch_all(server: &Server, users: &[String]) -> Stream {
    let mut conn = server.connect();
    let body = json!({"watch": users}).to_string();
    let head = "POST /v1/stream HTTP/1.1\r\nHost: e2e\r\nContent-Type: application/json\r\nContent-Length:";
    conn.send(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes());
    let mut stream = Stream::answered(conn);
    stream.expect("hello");
    let mut told = Vec::new();
    while told.len() < users.len() {
        told.extend(records(&stream.expect("snapshot")));
    }
    assert!(told.iter().all(|record| record.online), "all are online to begin with");
    stream
}

#[test]
fn a_stopped_server_takes_nobody_for_silent() {
    let home = Home::new();
    let server = home.serve(&[FAST, &["--shards=2"]].concat());
    let users: Vec<String> = (0..USERS).map(|n| format!("device {n}")).collect();
    let sender = server.sender();
    let stop = Arc::new(AtomicBool::new(false));
    let beating = {
        let (users, stop) = (users.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            let users: Vec<&str> = users.iter().map(String::as_str).collect();
            while !stop.load(Ordering::Relaxed) {
                sender.beat(&users);
                pause(300);
            }
        })
    };
    server.expect_metric("greendot_users_online", |online| online == USERS as f64);
    let mut watcher = watch_all(&server, &users);
    let before = server.metrics();

    for _ in 0..2 {
        server.process.signal(Signal::STOP);
        pause(2 * OFFLINE_AFTER_MS + 500);
        server.process.signal(Signal::CONT);
        watcher.expect_quiet(OFFLINE_AFTER_MS + 500);
    }
    let after = server.metrics();
    let transitions = |metrics: &crate::metrics::Metrics| metrics.sum("greendot_transitions_total");
    assert_eq!(transitions(&after), transitions(&before));
    assert!(after.sum("greendot_stalls_total") >= 2.0, "each stop was seen");

    assert!(
        after.sum("greendot_expiries_held_total") >= USERS as f64,
        "nobody was believed to be silent"
    );

    // Their own silence is told, for all of them and once.
    stop.store(true, Ordering::Relaxed);
    beating.join().expect("it only sends");
    for _ in 0..USERS {
        let told = watcher.presence();
        assert!(!told.online, "{told:?}");
        assert!(told.since() - told.last_active() >= OFFLINE_AFTER_MS, "{told:?}");
    }
    watcher.expect_quiet(300);
}
