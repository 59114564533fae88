//! A server that is killed or stopped and started again on its folder.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{
    BEAT_INTERVAL_MS, FAST, Home, OFFLINE_AFTER_MS, PATIENCE_MS, Record, pause, unix_ms, until,
};
use crate::http::Conn;

#[test]
fn who_returns_after_a_crash_was_never_gone() {
    let home = Home::new();
    let server = home.serve(FAST);
    let sender = server.sender();
    let mut alice = server.stream("watch=bob");
    alice.begin();
    sender.beat(&["bob"]);
    let before = alice.expect_presence("bob", true);
    let id = unix_ms();
    server.kill();

    let server = home.serve(FAST);
    server.expect_log(
        "1 users known, 1 held online until they have had time to return; it was not closed last \
         time",
    );
    let read = server.record("bob");
    assert_eq!((read.online, read.since), (true, before.since));
    assert!(read.last_active() >= before.last_active());
    let mut alice = server.stream(&format!("watch=bob&last_event_id={id}"));
    assert!(
        alice
            .begin()
            .1
            .iter()
            .all(|record| record.online && record.since == before.since)
    );
    for _ in 0..2 * OFFLINE_AFTER_MS / BEAT_INTERVAL_MS {
        sender.beat(&["bob"]);
        alice.expect_quiet(BEAT_INTERVAL_MS);
    }
    let read = server.record("bob");
    assert_eq!((read.online, read.since), (true, before.since));
}

#[test]
fn who_does_not_return_goes_with_his_true_last_beat() {
    let home = Home::new();
    let server = home.serve(FAST);
    let bob = server.stream("user=bob");
    server.expect_metric("greendot_users_online", |online| online == 1.0);
    let before = server.record("bob");
    server.kill();
    drop(bob);

    let restarted_at = unix_ms();
    let server = home.serve(FAST);
    let mut alice = server.stream("watch=bob");
    let (_, snapshot) = alice.begin();
    assert_eq!(
        (snapshot[0].online, snapshot[0].since),
        (true, before.since)
    );
    let gone = alice.expect_presence("bob", false);
    // He beat once more at most between the reading and the kill.
    assert!(
        (before.last_active()..=restarted_at).contains(&gone.last_active()),
        "{gone:?}"
    );
    assert!(
        gone.since() >= restarted_at + OFFLINE_AFTER_MS,
        "he had time to return: {gone:?}"
    );
}

#[test]
fn published_states_survive_a_stop() {
    let home = Home::new();
    // Nobody turns offline by silence while the two are compared.
    let flags = [
        "--beat-interval-ms=30s",
        "--offline-after-ms=60s",
        "--drain-ms=0",
    ];
    let server = home.serve(&flags);
    let sender = server.sender();
    sender.beat(&["bob", "carol", "d\u{e9}j\u{e0} vu/%2F"]);
    server.expect_metric("greendot_users_online", |online| online == 3.0);
    sender.leave(&["carol"]);
    server.expect_metric("greendot_users_online", |online| online == 2.0);
    let users = ["bob", "carol", "d%C3%A9j%C3%A0%20vu%2F%252F", "never"];
    let before = users.map(|user| server.record(user));
    assert!(before[0].online && !before[1].online && before[2].online);
    assert_eq!(before[3], Record::never_seen("never"));
    assert_eq!(server.terminate().code(), Some(0));

    let server = home.serve(&flags);
    server.expect_log(
        "3 users known, 2 held online until they have had time to return; it was closed cleanly",
    );
    assert_eq!(users.map(|user| server.record(user)), before);
    // The key is the same, so the same sender is believed.
    sender.beat(&["erin"]);
    server.expect_metric("greendot_users_online", |online| online == 3.0);
}

#[test]
fn many_crashes_lose_nothing() {
    let home = Home::new();
    let flags = ["--beat-interval-ms=30s", "--offline-after-ms=60s"];
    let mut known: Vec<String> = Vec::new();
    for round in 0..5 {
        let server = home.serve(&flags);
        let sender = server.sender();
        assert_eq!(server.metrics().sum("greendot_users"), known.len() as f64);
        let new: Vec<String> = (0..200).map(|n| format!("user {round}.{n}")).collect();
        let borrowed: Vec<&str> = new.iter().map(String::as_str).collect();
        sender.beat(&borrowed);
        known.extend(new);
        server.expect_metric("greendot_users_online", |online| {
            online == known.len() as f64
        });
        server.kill();
    }
    let server = home.serve(&flags);
    let answer = server
        .post("/v1/presence/query", &serde_json::json!({"users": known}))
        .json();
    let records: Vec<_> = answer["presence"]
        .as_array()
        .expect("a list")
        .iter()
        .map(Record::of)
        .collect();
    assert!(
        records.len() == 1_000
            && records
                .iter()
                .all(|record| record.online && record.last_active.is_some())
    );
}

/// Readers who do what an EventSource does: they come back when the last `retry:` says so, and when
/// nobody listens again after as long.
struct Obedient {
    open: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
}

impl Obedient {
    fn new(http: SocketAddr, publishers: usize) -> Obedient {
        let readers = Obedient {
            open: Arc::default(),
            over: Arc::default(),
        };
        for n in 0..publishers {
            let (open, over) = (Arc::clone(&readers.open), Arc::clone(&readers.over));
            std::thread::Builder::new()
                .stack_size(128 << 10)
                .spawn(move || {
                    let mut retry_ms = 1_000;
                    while !over.load(Ordering::Relaxed) {
                        read_once(http, n, &mut retry_ms, &open);
                        pause(retry_ms);
                    }
                })
                .expect("a thread");
        }
        readers
    }

    fn expect_open(&self, count: usize) {
        until("all have a stream", || {
            (self.open.load(Ordering::Relaxed) == count).then_some(())
        });
    }
}

impl Drop for Obedient {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Reads a stream to its end, and what it says of coming back.
fn read_once(http: SocketAddr, n: usize, retry_ms: &mut u64, open: &AtomicUsize) {
    let patience = Duration::from_millis(PATIENCE_MS);
    let Ok(socket) = TcpStream::connect_timeout(&http, patience) else {
        return;
    };
    let mut conn = Conn::over(socket);
    let request = format!("GET /v1/stream?user=u{n} HTTP/1.1\r\nHost: e2e\r\n\r\n");
    // A server that has just ended may have let it connect.
    if conn.socket.write_all(request.as_bytes()).is_err() {
        return;
    }
    let (mut text, mut bytes, mut is_open) = (String::new(), [0; 4_096], false);
    while let Ok(n @ 1..) = conn.socket.read(&mut bytes) {
        text.push_str(&String::from_utf8_lossy(&bytes[..n]));
        if !is_open && text.contains("event: hello") {
            is_open = true;
            open.fetch_add(1, Ordering::Relaxed);
        }
    }
    if is_open {
        open.fetch_sub(1, Ordering::Relaxed);
    }
    let mut told = text.lines().filter_map(|line| line.strip_prefix("retry: "));
    *retry_ms = told
        .next_back()
        .and_then(|ms| ms.parse().ok())
        .unwrap_or(*retry_ms);
}

/// The settings are odd: silence is short, and the drain is longer than it.
#[test]
fn a_graceful_restart_flips_none_of_hundreds_who_obey() {
    const PUBLISHERS: usize = 300;
    let home = Home::new();
    let flags = [FAST, &["--drain-ms=4s", "--retry-ms=700", "--shards=2"]].concat();
    let mut server = home.serve(&flags);
    let readers = Obedient::new(server.http, PUBLISHERS);
    readers.expect_open(PUBLISHERS);
    server.expect_metric("greendot_users_online", |online| {
        online == PUBLISHERS as f64
    });
    let before = unix_ms();

    server.process.signal(Signal::TERM);
    server.expect_log("got SIGTERM");
    // Listeners stay open: a probe that connects anew is told, and so is a new stream.
    until("a new probe is told", || {
        (server.get("/readyz").status == 503).then_some(())
    });
    let told = server.stream("user=late").rest();
    assert_eq!((told.len(), told[0].kind.as_str()), (1, "overloaded"));
    assert_eq!(told[0].data["reason"], "draining");
    assert!(told[0].retry_ms.is_some());
    assert_eq!(server.process.wait().code(), Some(0));

    let server = home.serve(&flags);
    let booted_at = unix_ms();
    readers.expect_open(PUBLISHERS);
    // The hold is over when who did not come back is told.
    drop(server.stream("user=gone"));
    server.expect_metric("greendot_expiries_held", |held| held == 0.0);
    let hold_ms = ((4_000 + 500 + 700 * 3 / 2) * 5 / 4) + 5_000;
    assert!(
        unix_ms() >= booted_at + hold_ms - 3_000,
        "the hold covers every delay"
    );
    until("who left is found", || {
        (!server.record("gone").online).then_some(())
    });
    for n in 0..PUBLISHERS {
        let record = server.record(&format!("u{n}"));
        assert!(record.online && record.since() < before, "{record:?}");
    }
    assert_eq!(readers.open.load(Ordering::Relaxed), PUBLISHERS);
}

#[test]
fn after_an_outage_longer_than_the_grace_a_resumed_stream_is_told_who_is_gone() {
    let home = Home::new();
    let flags = [FAST, &["--restart-grace-ms=3s"]].concat();
    let server = home.serve(&flags);
    let mut alice = server.stream("watch=bob");
    alice.begin();
    server.sender().beat(&["bob"]);
    let before = alice.expect_presence("bob", true);
    let id = unix_ms();
    server.kill();
    pause(3_500);

    let server = home.serve(&flags);
    server.expect_log("nobody was heard for");
    let read = server.record("bob");
    assert!(
        !read.online && read.since() > id,
        "{read:?} after {before:?}"
    );
    let told = server
        .stream(&format!("watch=bob&last_event_id={id}"))
        .begin()
        .1;
    assert_eq!(told, [read]);
    server.sender().beat(&["bob"]);
    server.expect_online("bob");
}
