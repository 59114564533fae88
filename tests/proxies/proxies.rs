//! What a stream behind a proxy is told, and what the server learns of its reader.

use std::io::{Read, Write};
use std::net::TcpListener;

use rustix::process::Signal;

use crate::harness::{FAST, Home, skipped, until};
use crate::process::{Lines, Process};
use crate::proxy::{Kind, Proxy};

/// Streams beside the proxy's, so that a drain lasts.
const OTHERS: usize = 40;

/// Events pass as they are written, and a resume passes its id on.
fn tells_at_once(kind: Kind) {
    let home = Home::new();
    let server = home.serve(&["--keep-alive-ms=10m", "--shards=1"]);
    let Some(proxy) = Proxy::start(kind, &home, &server) else {
        return;
    };
    let sender = server.sender();
    let mut alice = proxy.stream("watch=bob");
    // A second one of the same address does not wait for the first.
    let mut carol = proxy.stream("watch=bob");
    for stream in [&mut alice, &mut carol] {
        stream.expect("hello");
        let snapshot = stream.expect("snapshot");
        assert_eq!(snapshot.data["presence"][0]["user"], "bob");
    }
    for status in ["online", "offline", "online"] {
        match status {
            "online" => sender.beat(&["bob"]),
            _ => sender.leave(&["bob"]),
        }
        alice.expect_presence("bob", status);
        carol.expect_presence("bob", status);
    }
    let id = server.get("/v1/presence/bob").json()["since"].to_string();
    let mut alice = proxy.stream_again("watch=bob", &id);
    alice.expect("hello");
    alice.expect("snapshot");
    let partial = "greendot_resumes_total{kind=\"partial\"}";
    server.expect_metric(partial, |resumes| resumes == 1.0);
}

/// A reader that leaves is noticed, at the next ping at the latest.
fn lets_the_server_know_that_a_client_has_left(kind: Kind) {
    let home = Home::new();
    let server = home.serve(&[FAST, &["--keep-alive-ms=500", "--shards=1"]].concat());
    let Some(proxy) = Proxy::start(kind, &home, &server) else {
        return;
    };
    let mut bob = proxy.stream("user=bob");
    bob.expect("hello");
    server.expect_online("bob");
    drop(bob);
    server.expect_metric("greendot_streams", |streams| streams == 0.0);
    until("bob is found silent", || {
        Some(server.record("bob")).filter(|record| !record.online)
    });
}

/// A client that is gone without a word leaves its socket at the proxy open. It answers no ping,
/// and is offline when its silence has lasted; who answers through the proxy stays.
fn keeps_nobody_online_who_answers_no_ping(kind: Kind) {
    let home = Home::new();
    let flags = [
        "--beat-interval-ms=1s",
        "--offline-after-ms=5s",
        "--shards=1",
    ];
    let server = home.serve(&flags);
    let Some(proxy) = Proxy::start(kind, &home, &server) else {
        return;
    };
    let mut bob = proxy.stream("user=bob&vouch=self");
    bob.expect("hello");
    bob.expect("snapshot");
    let bob_here = server.record("bob");
    let mut carol = proxy.stream("user=carol&vouch=self");
    let hello = carol.expect("hello");
    carol.expect("snapshot");
    let carol_here = server.record("carol");
    let stream = hello.data["stream"].as_str().expect("its id");
    let beat = format!("/v1/stream/{stream}/beat");
    let gone = until("bob is found silent", || {
        carol.expect_ping();
        assert_eq!(proxy.connect().post_bytes(&beat, b"").status, 204);
        Some(server.record("bob")).filter(|bob| !bob.online)
    });
    assert_eq!(gone.last_active, bob_here.last_active, "{gone:?}");
    let carol = server.record("carol");
    assert!(carol.online && carol.since == carol_here.since, "{carol:?}");
    assert!(carol.last_active > carol_here.last_active, "{carol:?}");
    assert_eq!(
        server.metrics().sum("greendot_streams"),
        2.0,
        "his socket is open"
    );
}

/// What a draining node says passes, and who comes back after the start is told what they missed.
fn passes_a_drain_and_a_restart_on(kind: Kind) {
    let home = Home::new();
    let flags = ["--drain-ms=5m", "--retry-ms=300", "--shards=1"];
    let mut server = home.serve(&flags);
    let Some(proxy) = Proxy::start(kind, &home, &server) else {
        return;
    };
    let mut alice = proxy.stream("user=alice&watch=bob");
    alice.expect("hello");
    let id = alice.expect("snapshot").id.expect("it has an id");
    let others: Vec<_> = (0..OTHERS).map(|_| server.stream("watch=bob")).collect();
    assert_eq!(proxy.get("/readyz").status, 200);

    server.process.signal(Signal::TERM);
    server.expect_log("got SIGTERM");
    until("a new probe is told", || {
        (proxy.get("/readyz").status == 503).then_some(())
    });
    let goodbye = alice.expect("goodbye");
    assert!(goodbye.retry_ms.is_some_and(|ms| ms > 300), "{goodbye:?}");
    assert!(alice.next().is_none(), "the stream ends");
    let mut refused = proxy.stream("user=alice&watch=bob");
    let told = refused.expect("overloaded");
    assert_eq!(told.data["reason"], "draining");
    assert!(told.retry_ms.is_some_and(|ms| ms > 300), "{told:?}");
    assert!(refused.next().is_none(), "and ends");
    // A second signal does not wait for the others.
    server.process.signal(Signal::TERM);
    assert_eq!(server.process.wait().code(), Some(143));
    drop(others);

    let server = home.serve(&flags);
    assert!(server.record("alice").online, "she has time to come back");
    server.sender().beat(&["bob"]);
    server.expect_online("bob");
    let mut alice = proxy.stream_again("user=alice&watch=bob", &id);
    alice.expect("hello");
    let snapshot = alice.expect("snapshot");
    assert_eq!(
        snapshot.data["presence"][0]["status"], "online",
        "{snapshot:?}"
    );
}

/// Who comes while nobody listens behind the proxy is told to come again, and calls are refused. To
/// an EventSource an error would be the end.
fn sends_nobody_away_for_good_while_nobody_listens(kind: Kind) {
    let home = Home::new();
    let flags = ["--drain-ms=0", "--shards=1"];
    let server = home.serve(&flags);
    let Some(proxy) = Proxy::start(kind, &home, &server) else {
        return;
    };
    let mut alice = proxy.stream("watch=bob");
    alice.expect("hello");
    alice.expect("snapshot");
    assert!(server.terminate().success());
    alice.expect("goodbye");
    assert!(alice.next().is_none(), "the stream ends");

    let mut asked = proxy.connect();
    let origin = "Origin: https://app.example.com";
    asked.send(
        format!("GET /v1/stream?watch=bob HTTP/1.1\r\nHost: e2e\r\n{origin}\r\n\r\n").as_bytes(),
    );
    let told = asked.answer();
    assert_eq!(told.status, 200, "{told:?}");
    assert_eq!(told.field("content-type"), Some("text/event-stream"));
    assert_eq!(
        told.field("access-control-allow-origin"),
        Some("https://app.example.com")
    );
    assert_eq!(told.field("access-control-allow-credentials"), Some("true"));
    let text = told.text();
    let lines: Vec<&str> = text.split('\n').collect();
    let [event, retry, data, "", ""] = lines[..] else {
        panic!("{text:?}");
    };
    assert_eq!(
        (event, data),
        ("event: overloaded", "data: {\"reason\":\"away\"}")
    );
    let retry_ms: u64 = retry
        .strip_prefix("retry: ")
        .expect(&text)
        .parse()
        .expect(&text);
    assert!((4_000..=10_000).contains(&retry_ms), "{text:?}");
    assert!(
        proxy.get("/v1/presence/bob").status >= 500,
        "a call is refused"
    );

    let server = home.serve(&flags);
    until("a stream begins again", || {
        let begins = proxy.stream("watch=bob").next()?;
        // A proxy may believe for a moment that nobody listens.
        (begins.kind == "hello").then_some(())
    });
    assert!(server.terminate().success());
}

/// The last address that greendot is told is the one that the proxy saw.
fn tells_who_asks(kind: Kind) {
    let home = Home::new();
    let listener = TcpListener::bind((home.ip(), 0)).expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let Some(proxy) = Proxy::before(kind, &home, address) else {
        return;
    };
    let told = std::thread::spawn(move || {
        let (mut conn, _) = listener.accept().expect("it connects");
        let (mut head, mut bytes) = (Vec::new(), [0; 4_096]);
        while !head.ends_with(b"\r\n\r\n") {
            let n = conn.read(&mut bytes).expect("it asks");
            assert!(n > 0, "it has left");
            head.extend_from_slice(&bytes[..n]);
        }
        let answer = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
        conn.write_all(answer).expect("it reads");
        String::from_utf8(head).expect("a head is text")
    });
    let mut conn = proxy.connect();
    let lie = "X-Forwarded-For: 203.0.113.9";
    conn.send(format!("GET /v1/presence/bob HTTP/1.1\r\nHost: e2e\r\n{lie}\r\n\r\n").as_bytes());
    assert_eq!(conn.answer().status, 204);
    let head = told.join().expect("it asserts");
    let fields: Vec<&str> = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .filter(|(name, _)| name.eq_ignore_ascii_case("x-forwarded-for"))
        .map(|(_, value)| value)
        .collect();
    let told = fields.join(", ");
    let last = told.rsplit(", ").next();
    assert_eq!(last, Some("127.0.0.1"), "{head}");
    let believes = matches!(kind, Kind::Apache | Kind::Varnish);
    assert_eq!(told.contains("203.0.113.9"), believes, "{head}");
}

/// A browser's many streams share one connection, and what is told on them passes at once.
fn speaks_http2(kind: Kind) {
    let home = Home::new();
    let server = home.serve(&["--keep-alive-ms=10m", "--shards=1"]);
    let Some(proxy) = Proxy::start(kind, &home, &server) else {
        return;
    };
    let stream = |user: &str| format!("https://{}/v1/stream?watch={user}", proxy.tls());
    let (bob, carol) = (stream("bob"), stream("carol"));
    let crt = home.path().join("proxy/crt").display().to_string();
    // The second waits for what the first one's connection can do.
    let args = [
        "-sSNi",
        "--parallel",
        "--http2",
        "--cacert",
        &crt,
        &bob,
        &carol,
    ];
    let Some(mut curl) = Process::try_start(&mut home.program("curl", &args)) else {
        return skipped("curl is not installed");
    };
    let lines = Lines::of(curl.take_stdout());
    let (mut heads, mut snapshots) = (0, 0);
    while snapshots < 2 {
        let line = lines.next().expect("both streams begin");
        heads += u32::from(line.starts_with("HTTP/2 200"));
        snapshots += u32::from(line == "event: snapshot");
    }
    assert_eq!(heads, 2, "both are of HTTP/2");
    let sender = server.sender();
    for user in ["bob", "carol"] {
        sender.beat(&[user]);
        let told = format!("\"user\":\"{user}\",\"status\":\"online\"");
        lines.find(&format!("tells {user}"), |line| line.contains(&told));
    }
    assert_eq!(server.metrics().sum("greendot_streams"), 2.0);
    let mut redirected = match kind {
        // Its redirect is not in the file.
        Kind::Caddy => return,
        _ => proxy.redirected(),
    };
    redirected.send(b"GET /v1/presence/bob?x=1 HTTP/1.1\r\nHost: e2e\r\n\r\n");
    let answer = redirected.answer();
    let to = answer.field("location");
    assert_eq!(
        (answer.status, to),
        (308, Some("https://e2e/v1/presence/bob?x=1"))
    );
}

macro_rules! behind {
    ($($name:ident $kind:ident),*) => {$(
        mod $name {
            use super::Kind;

            #[test]
            fn tells_at_once() {
                super::tells_at_once(Kind::$kind);
            }

            #[test]
            fn lets_the_server_know_that_a_client_has_left() {
                super::lets_the_server_know_that_a_client_has_left(Kind::$kind);
            }

            #[test]
            fn keeps_nobody_online_who_answers_no_ping() {
                super::keeps_nobody_online_who_answers_no_ping(Kind::$kind);
            }

            #[test]
            fn passes_a_drain_and_a_restart_on() {
                super::passes_a_drain_and_a_restart_on(Kind::$kind);
            }

            #[test]
            fn tells_who_asks() {
                super::tells_who_asks(Kind::$kind);
            }
        }
    )*};
}

behind!(nginx Nginx, haproxy Haproxy, caddy Caddy, apache Apache, varnish Varnish);

#[test]
fn nginx_sends_nobody_away_for_good() {
    sends_nobody_away_for_good_while_nobody_listens(Kind::Nginx);
}

#[test]
fn haproxy_sends_nobody_away_for_good() {
    sends_nobody_away_for_good_while_nobody_listens(Kind::Haproxy);
}

#[test]
fn caddy_sends_nobody_away_for_good() {
    sends_nobody_away_for_good_while_nobody_listens(Kind::Caddy);
}

#[test]
fn varnish_sends_nobody_away_for_good() {
    sends_nobody_away_for_good_while_nobody_listens(Kind::Varnish);
}

#[test]
fn nginx_speaks_http2() {
    speaks_http2(Kind::Nginx);
}

#[test]
fn haproxy_speaks_http2() {
    speaks_http2(Kind::Haproxy);
}

#[test]
fn caddy_speaks_http2() {
    speaks_http2(Kind::Caddy);
}
