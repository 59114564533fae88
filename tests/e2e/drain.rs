//! Stopping: SIGTERM closes streams one after the other, and a second signal does not wait.

use rustix::process::Signal;

use crate::harness::{Deadline, Home, PATIENCE_MS, unix_ms, until};
use crate::terminal::Terminal;

const DRAIN_MS: u64 = 3_000;
const STREAMS: usize = 50;

#[test]
fn streams_are_closed_spread_over_the_drain() {
    let home = Home::new();
    let mut server = home.serve(&["--shards=2", "--drain-ms=3000", "--retry-ms=400"]);
    let mut streams: Vec<_> = (0..STREAMS)
        .map(|n| server.stream(&format!("user=u{n}&watch=u0")))
        .collect();
    for stream in &mut streams {
        stream.begin();
    }
    // Two that the drain comes to last: there are none behind them on their shards.
    let mut asking = server.connect();
    assert_eq!(asking.get("/readyz").status, 200);
    let mut late = server.connect();
    assert_eq!(late.get("/livez").status, 200);

    server.process.signal(Signal::TERM);
    let signalled_at = unix_ms();
    server.expect_log("got SIGTERM: closing streams over 3000 ms");
    let refused = until("the server is not ready any more", || {
        Some(asking.get("/readyz")).filter(|answer| answer.status != 200)
    });
    refused.expect_problem(503, "draining");
    assert!(refused.field("retry-after").is_some());
    let mut late = crate::stream::Stream::open(late, "/v1/stream?user=x");
    let overloaded = late.rest();
    assert!(late.is_whole());
    assert_eq!(overloaded.len(), 1);
    assert_eq!(
        (overloaded[0].kind.as_str(), &overloaded[0].data["reason"]),
        ("overloaded", &"draining".into())
    );

    let ends: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            std::thread::spawn(move || {
                let events = stream.rest();
                assert!(stream.is_whole());
                (events.last().cloned().expect("a goodbye"), unix_ms())
            })
        })
        .collect();
    let ends: Vec<_> = ends
        .into_iter()
        .map(|end| end.join().expect("it reads to the end"))
        .collect();
    for (goodbye, _) in &ends {
        assert_eq!(
            (goodbye.kind.as_str(), &goodbye.data["reason"]),
            ("goodbye", &"draining".into())
        );
    }
    let retries: Vec<u64> = ends
        .iter()
        .map(|(goodbye, _)| goodbye.retry_ms.expect("when to come back"))
        .collect();
    let (least, most) = (
        retries.iter().min().expect("some"),
        retries.iter().max().expect("some"),
    );
    // From retry-ms to eleven times it: 50 of them within a third of that are one chance in 10^20.
    assert!(
        *least >= 400 && *most <= 4_400 && most - least > 1_300,
        "{retries:?}"
    );
    let last_ms = ends
        .iter()
        .map(|(_, at)| at - signalled_at)
        .max()
        .expect("some");
    assert!(
        last_ms >= DRAIN_MS / 2,
        "all were closed within {last_ms} ms"
    );
    let early = ends
        .iter()
        .filter(|(_, at)| at - signalled_at < DRAIN_MS / 4)
        .count();
    assert!(
        early < STREAMS / 2,
        "{early} of {STREAMS} were closed at once"
    );

    assert_eq!(server.process.wait().code(), Some(0));
    server.expect_log("stopped; the store is written back");
    assert!(
        std::net::TcpStream::connect(server.http).is_err(),
        "nobody listens"
    );
}

#[test]
fn a_request_under_way_is_answered() {
    let home = Home::new();
    let mut server = home.serve(&["--shards=1", "--drain-ms=300"]);
    let mut conn = server.connect();
    conn.send(b"GET /v1/presence/bob HTTP/1.1\r\nHost: e2e\r\n");
    // It is being read when the drain begins.
    assert_eq!(server.get("/livez").status, 200);
    server.process.signal(Signal::TERM);
    server.expect_log("got SIGTERM");
    until("nobody is accepted any more", || {
        std::net::TcpStream::connect(server.http).err()
    });
    conn.send(b"\r\n");
    let answer = conn.answer();
    assert_eq!(
        (answer.status, answer.field("connection")),
        (200, Some("close"))
    );
    assert_eq!(server.process.wait().code(), Some(0));
}

#[test]
fn a_second_signal_does_not_wait() {
    for (second, status) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let home = Home::new();
        let mut server = home.serve(&["--drain-ms=10m"]);
        let mut stream = server.stream("user=bob");
        stream.begin();
        server.process.signal(Signal::TERM);
        server.expect_log("got SIGTERM: closing streams over 600000 ms");
        assert!(!server.process.has_ended());
        server.process.signal(second);
        assert_eq!(server.process.wait().code(), Some(status));
        assert!(stream.rest().is_empty(), "there was no time for a goodbye");
        // What was accepted is there.
        let server = home.serve(&[]);
        server.expect_online("bob");
    }
}

/// A person who pressed Ctrl-C waits for the prompt; a supervisor has no terminal.
#[test]
fn ctrl_c_at_a_terminal_closes_all_streams_at_once() {
    let home = Home::new();
    let terminal = Terminal::new();
    let [http, udp] = home.addresses();
    let mut command = home.command(&["serve", &http, &udp, "--drain-ms=10m", "--shards=2"]);
    let mut server = home.launch(terminal.attach_stdin(&mut command));
    let mut streams: Vec<_> = (0..10)
        .map(|n| server.stream(&format!("user=u{n}&watch=u0")))
        .collect();
    for stream in &mut streams {
        stream.begin();
    }
    server.process.signal(Signal::INT);
    server.expect_log("got SIGINT at a terminal: closing streams now");
    for mut stream in streams {
        let told = stream.rest();
        let goodbye = told.last().expect("a goodbye");
        assert_eq!(goodbye.kind, "goodbye");
        assert!(goodbye.retry_ms.is_some());
    }
    // The harness waits for a twentieth of the drain.
    assert_eq!(server.process.wait().code(), Some(0));
    server.expect_log("stopped; the store is written back");
}

#[test]
fn a_drain_of_no_time_is_a_drain() {
    let home = Home::new();
    let mut server = home.serve(&["--drain-ms=0"]);
    let mut stream = server.stream("watch=bob");
    stream.begin();
    server.process.signal(Signal::TERM);
    let goodbye = stream
        .next_by(Deadline::in_ms(PATIENCE_MS))
        .expect("a goodbye");
    assert_eq!(goodbye.kind, "goodbye");
    assert_eq!(server.process.wait().code(), Some(0));
}
