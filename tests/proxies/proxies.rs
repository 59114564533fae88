//! What a stream behind a proxy is told, and what the server learns of its reader.

use rustix::process::Signal;

use crate::harness::{FAST, Home, until};
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
        }
    )*};
}

behind!(nginx Nginx, haproxy Haproxy, apache Apache, varnish Varnish);
