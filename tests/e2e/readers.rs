//! Readers that are slow, stuck or dead, on real sockets.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use greendot::time::boottime;
use rustix::process::Signal;
use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::harness::{
    Deadline, FAST, Home, OFFLINE_AFTER_MS, PATIENCE_MS, Record, Server, pause, until,
};
use crate::http::{Conn, Got};
use crate::process::{Lines, Process};
use crate::stream::{Stream, records};
use crate::tls_client;

/// Ids of the greatest length, so that a few hundred of them fill every buffer on the way.
pub(crate) fn wide_users(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{n:0>128}")).collect()
}

/// A connection that holds little of what it has not read, in small pieces: a kernel frees what has
/// been read by whole socket buffers, which on loopback are up to 64 KB, and until then shows the
/// sender no progress (see docs/DECISIONS.md).
pub(crate) fn narrow(http: SocketAddr) -> Conn {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    // Before connecting, so that the window is never wide.
    socket
        .set_recv_buffer_size(4_096)
        .expect("it may be made small");
    socket.set_tcp_mss(536).expect("it may be made small");
    socket.connect(&http.into()).expect("the server listens");
    Conn::over(socket.into())
}

/// Asks for a stream with POST, and reads nothing.
pub(crate) fn ask(conn: &mut Conn, user: Option<&str>, watch: &[String]) {
    let body = json!({"user": user, "watch": watch});
    let body = match user {
        Some(_) => body.to_string(),
        None => json!({"watch": watch}).to_string(),
    };
    let head = "POST /v1/stream HTTP/1.1\r\nHost: e2e\r\nContent-Type: application/json\r\n\
                Content-Length:";
    conn.send(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes());
}

fn evictions(server: &Server) -> f64 {
    server.metrics().sum("greendot_conns_evicted_total")
}

fn why_evicted(server: &Server) -> String {
    let metrics = server.metrics();
    let of = |reason: &str| {
        metrics.sum(&format!(
            "greendot_conns_evicted_total{{reason=\"{reason}\"}}"
        ))
    };
    format!(
        "write_stall {}, user_timeout {}",
        of("write_stall"),
        of("user_timeout")
    )
}

#[test]
fn who_never_reads_is_let_go_and_expires() {
    let home = Home::new();
    let server = home.serve(&[FAST, &["--write-stall-max-ms=2000", "--shards=1"]].concat());
    let mut other = server.stream("watch=stuck&watch=bob");
    other.begin();
    let mut stuck = narrow(server.http);
    ask(&mut stuck, Some("stuck"), &wide_users(1_000));
    other.expect_presence("stuck", true);
    server.expect_metric("greendot_streams", |streams| streams == 2.0);
    // Nobody else waits for it.
    server.sender().beat(&["bob"]);
    other.expect_presence("bob", true);
    server.expect_metric("greendot_conns_evicted_total", |evicted| evicted == 1.0);
    server.expect_metric("greendot_streams", |streams| streams == 1.0);

    let mut told = [other.presence(), other.presence()];
    told.sort_by(|one, other| one.user.cmp(&other.user));
    let [bob, gone] = told;
    assert_eq!((bob.user.as_str(), bob.online), ("bob", false));
    assert_eq!((gone.user.as_str(), gone.online), ("stuck", false));
    assert!(
        gone.since() - gone.last_active() >= OFFLINE_AFTER_MS,
        "{gone:?}"
    );
    // What has come can still be read; then comes the end, within a record.
    let read = stuck.read_to_end();
    assert!(
        read.starts_with(b"HTTP/1.1 200 OK\r\n") && !read.ends_with(b"\n\n\r\n"),
        "{}",
        read.len()
    );
    other.expect_quiet(100);
}

/// In peace its end would wait behind what it does not read, and with it the kernel's memory.
#[test]
fn who_never_reads_is_reset_no_sooner_than_the_time_is_over() {
    const STALL_MS: u64 = 2_000;
    let home = Home::new();
    tls_client::issue(&home);
    let flags = ["--write-stall-max-ms=2s", "--keep-alive-ms=500ms"];
    let server = tls_client::serve(&home, &[&flags[..], &["--shards=1"]].concat());
    let config = tls_client::config(&home);
    let sealed = tls_client::sealed(narrow(tls_client::https(&server)), &config);
    for (nth, mut stuck) in [narrow(server.http), sealed].into_iter().enumerate() {
        let asked = boottime();
        ask(&mut stuck, None, &wide_users(1_000));
        // Without a read: of those the first would find what came before.
        let error = until("the reset", || {
            stuck.socket.take_error().expect("it is a socket")
        });
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let took = boottime().ms_since(asked);
        assert!(took >= STALL_MS, "{took}");
        server.expect_metric("greendot_conns_evicted_total", |evicted| {
            evicted == (nth + 1) as f64
        });
        assert_eq!(
            why_evicted(&server),
            format!("write_stall {}, user_timeout 0", nth + 1)
        );
    }
}

/// Changes of fifty users, ten every `pause_ms`, until told to stop; how many datagrams that took.
fn flip(server: &Server, stop: &Arc<AtomicBool>, pause_ms: u64) -> std::thread::JoinHandle<u64> {
    let (sender, stop) = (server.sender(), Arc::clone(stop));
    std::thread::spawn(move || {
        let users = wide_users(50);
        let users: Vec<&str> = users.iter().map(String::as_str).collect();
        let mut sent = 0;
        for round in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            for ten in users.chunks(10) {
                if round % 2 == 0 {
                    sender.beat(ten);
                } else {
                    sender.leave(ten);
                }
                sent += 1;
                pause(pause_ms);
            }
        }
        sent
    })
}

/// A tenth of the time that a stall may take, and ten times the 1 KB a second and the hundred
/// changes: as good as 90 s.
#[test]
fn who_reads_slowly_stays_and_ends_with_the_right_states() {
    as_good_as_90_s(false);
}

/// The same over TLS: most of the time a record is half read, of which nothing counts as written.
#[test]
fn who_reads_slowly_in_the_middle_of_records_stays() {
    as_good_as_90_s(true);
}

fn as_good_as_90_s(sealed: bool) {
    let flags = ["--write-stall-max-ms=3s", "--outbox-bytes-max=16K"];
    read_slowly(
        &flags,
        9_000,
        Slowly {
            bytes: 2_560,
            every_ms: 250,
            change_ms: 10,
            sealed,
        },
    );
}

/// With the stall rule as it is by default: 30 s.
#[test]
fn who_reads_a_kilobyte_a_second_stays_and_ends_with_the_right_states() {
    read_slowly(
        &[],
        45_000,
        Slowly {
            bytes: 1_024,
            every_ms: 1_000,
            change_ms: 100,
            sealed: false,
        },
    );
}

/// How slowly: `bytes` each `every_ms`, while ten users change each `change_ms`.
struct Slowly {
    bytes: usize,
    every_ms: u64,
    change_ms: u64,
    sealed: bool,
}

/// One read of at most so many bytes from a socket. Returns how many came, 0 at the end.
fn read_few(conn: &mut Conn, bytes: usize) -> usize {
    let mut few = (&mut conn.socket).take(bytes as u64);
    let mut plain = vec![0; 65_536];
    let Some(tls) = &mut conn.tls else {
        let n = few.read(&mut plain).unwrap_or(0);
        conn.buffer.extend_from_slice(&plain[..n]);
        return n;
    };
    let n = tls.read_tls(&mut few).unwrap_or(0);
    tls.process_new_packets().expect("whole records are sound");
    while let Ok(m @ 1..) = tls.reader().read(&mut plain) {
        conn.buffer.extend_from_slice(&plain[..m]);
    }
    n
}

fn read_slowly(flags: &[&str], slow_ms: u64, slowly: Slowly) {
    let home = Home::new();
    tls_client::issue(&home);
    let server = tls_client::serve(&home, &[&["--offline-after-ms=90s"], flags].concat());
    let users = wide_users(50);
    let mut slow = match slowly.sealed {
        false => narrow(server.http),
        true => {
            let config = tls_client::config(&home);
            tls_client::sealed(narrow(tls_client::https(&server)), &config)
        }
    };
    ask(&mut slow, None, &users);
    let mut slow = Stream::answered(slow);
    let stop = Arc::new(AtomicBool::new(false));
    let flipping = flip(&server, &stop, slowly.change_ms);

    let until_slow_ends = Deadline::in_ms(slow_ms);
    while until_slow_ends.left().is_some() {
        let n = read_few(&mut slow.conn, slowly.bytes);
        assert!(n > 0, "it was let go: {}", why_evicted(&server));
        pause(slowly.every_ms);
    }
    stop.store(true, Ordering::Relaxed);
    let sent = flipping.join().expect("it only sends") as f64;
    // All of them have come, and what they change has been decided.
    server.expect_metric("greendot_datagrams_received_total", |came| came >= sent);
    server.expect_mail_read();
    // It was really held up, and states were skipped.
    assert!(server.metrics().sum("greendot_flushes_partial_total") > 0.0);

    // From now on as fast as it can: soon it knows what is.
    let answer = server
        .post("/v1/presence/query", &json!({"users": users}))
        .json();
    let states = answer["presence"]
        .as_array()
        .expect("a list")
        .iter()
        .map(Record::of);
    let is: BTreeMap<String, (bool, Option<u64>)> = states
        .map(|record| (record.user, (record.online, record.since)))
        .collect();
    let mut told: BTreeMap<String, (bool, Option<u64>)> = BTreeMap::new();
    let mut events = 0;
    let deadline = Deadline::in_ms(PATIENCE_MS);
    while told != is {
        let event = slow
            .next_by(deadline)
            .unwrap_or_else(|| panic!("told {told:?}\n but is {is:?}"));
        let new = match event.kind.as_str() {
            "hello" => Vec::new(),
            "snapshot" => records(&event),
            _ => vec![Record::of(&event.data)],
        };
        events += new.len();
        for record in new {
            let before = told.insert(record.user, (record.online, record.since));
            assert!(
                before.is_none_or(|(_, since)| since <= record.since),
                "time went back"
            );
        }
    }
    let metrics = server.metrics();
    assert_eq!(metrics.sum("greendot_conns_evicted_total"), 0.0);
    let marks = metrics.sum("greendot_transitions_total");
    assert!(
        metrics.sum("greendot_marks_coalesced_total") > 0.0,
        "states were skipped"
    );
    assert!((events as f64) < marks, "{events} of {marks}");
    slow.expect_quiet(300);
}

/// A process that does not run any more, whose kernel still answers: the nearest thing to a dead
/// peer that needs no network.
#[test]
fn a_stopped_reader_is_let_go_and_its_user_expires() {
    let home = Home::new();
    let flags = [
        "--write-stall-max-ms=1s",
        "--shards=2",
        "--keep-alive-ms=100",
    ];
    let server = home.serve(&[FAST, &flags].concat());
    let mut alice = server.stream("watch=dead");
    alice.begin();
    let http = server.http.to_string();
    let mut command = home.command(&["watch", "--http", &http, "--user", "dead"]);
    let users = wide_users(400);
    let mut dead = Process::start(command.args(&users));
    let lines = Lines::of(dead.take_stdout());
    lines.next().expect("it reads");
    alice.expect_presence("dead", true);
    dead.signal(Signal::STOP);
    let stop = Arc::new(AtomicBool::new(false));
    let sender = server.sender();
    let flipping = {
        let (stop, users) = (Arc::clone(&stop), users.clone());
        std::thread::spawn(move || {
            let users: Vec<&str> = users.iter().map(String::as_str).collect();
            while !stop.load(Ordering::Relaxed) {
                sender.beat(&users);
                pause(5);
                sender.leave(&users);
                pause(5);
            }
        })
    };
    until("the dead one is let go", || {
        (evictions(&server) == 1.0).then_some(())
    });
    stop.store(true, Ordering::Relaxed);
    flipping.join().expect("it only sends");
    let gone = alice.expect_presence("dead", false);
    assert!(
        gone.since() - gone.last_active() >= OFFLINE_AFTER_MS,
        "{gone:?}"
    );
    assert!(server.metrics().sum("greendot_streams") >= 1.0);
    dead.signal(Signal::CONT);
}

#[test]
fn who_does_not_read_answers_is_not_read_either() {
    let home = Home::new();
    let server = home.serve(&["--write-stall-max-ms=1s", "--shards=1"]);
    let mut greedy = narrow(server.http);
    greedy
        .socket
        .set_write_timeout(Some(std::time::Duration::from_millis(300)))
        .expect("not zero");
    let requests = "GET /client.js HTTP/1.1\r\nHost: e2e\r\n\r\n".repeat(200);
    let mut asked = 0;
    // Until the server takes no more: its answers wait, so its reading does.
    while std::io::Write::write(&mut greedy.socket, requests.as_bytes()).is_ok() {
        asked += 200;
        assert!(asked < 400_000, "it takes requests without end");
    }
    assert_eq!(server.get("/livez").status, 200);
    until("it is let go", || (evictions(&server) == 1.0).then_some(()));
    let deadline = Deadline::in_ms(PATIENCE_MS);
    until("the end", || {
        (greedy.read(deadline) == Got::End).then_some(())
    });
    assert!(
        greedy.buffer.len() < 4 << 20,
        "{} bytes were kept for it",
        greedy.buffer.len()
    );
}
