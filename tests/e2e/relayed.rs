//! Streams behind a relay that holds its side open, whatever becomes of the client: what a reverse
//! proxy does. The server's kernel sees a peer that acknowledges all.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::{
    BEAT_INTERVAL_MS, Deadline, FAST, Home, OFFLINE_AFTER_MS, PATIENCE_MS, Server, pause, unix_ms,
    until,
};
use crate::http::Conn;
use crate::stream::Stream;

/// Hands bytes on. What it has accepted stays open to the server when its client is gone, and is
/// read to the end.
struct Relay {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Relay {
    fn to(server: SocketAddr) -> Relay {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if stopping.load(Ordering::Relaxed) {
                    return;
                }
                let server = TcpStream::connect(server).expect("the server listens");
                let twice = |socket: &TcpStream| socket.try_clone().expect("descriptors are free");
                hand_on(twice(&client), twice(&server));
                hand_on(server, client);
            }
        });
        Relay { address, stop }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It waits for the next client.
        drop(TcpStream::connect(self.address));
    }
}

/// From one socket to the other, until the first ends; what the other does not take is dropped.
fn hand_on(mut from: TcpStream, mut to: TcpStream) {
    std::thread::spawn(move || {
        let mut bytes = [0; 4_096];
        while let Ok(n @ 1..) = from.read(&mut bytes) {
            // Its client may be gone: the server is read all the same.
            let _ = to.write_all(&bytes[..n]);
        }
    });
}

/// The stream of a client behind the relay.
fn stream(relay: &Relay, query: &str) -> (Stream, String) {
    let mut stream = Stream::open(Conn::to(relay.address), &format!("/v1/stream?{query}"));
    let (hello, _) = stream.begin();
    let id = hello["stream"].as_str().expect("an id").to_owned();
    (stream, id)
}

/// The holder answers a ping, if one has come.
fn answer(server: &Server, stream: &mut Stream, id: &str) -> bool {
    let pings = stream.pings;
    stream.expect_quiet(BEAT_INTERVAL_MS / 4);
    let asked = stream.pings > pings;
    if asked {
        let answer = server
            .connect()
            .post_bytes(&format!("/v1/stream/{id}/beat"), b"");
        assert_eq!(answer.status, 204, "{answer:?}");
    }
    asked
}

#[test]
fn a_client_that_vanishes_behind_a_relay_is_offline_in_time() {
    let home = Home::new();
    let server = home.serve(&[FAST, &["--shards=2", "--keep-alive-ms=400"]].concat());
    let relay = Relay::to(server.http);
    let mut watcher = server.stream("watch=gone");
    watcher.begin();
    let (mut client, id) = stream(&relay, "user=gone&vouch=self");
    watcher.expect_presence("gone", true);
    let answering = Deadline::in_ms(3 * OFFLINE_AFTER_MS);
    let mut answered = 0;
    while answering.left().is_some() {
        answered += u64::from(answer(&server, &mut client, &id));
    }
    assert!(answered >= 4, "{answered} pings answered");
    watcher.expect_quiet(1);
    let vanished_at = unix_ms();
    client
        .conn
        .socket
        .shutdown(Shutdown::Both)
        .expect("it is open");
    let gone = watcher.expect_presence("gone", false);
    server.check_silence(&gone);
    assert!(
        gone.last_active() <= vanished_at,
        "{gone:?} after {vanished_at}"
    );
    // The relay's side is open, and is pinged.
    server.expect_metric("greendot_streams", |streams| streams == 2.0);
    let metrics = server.metrics();
    let beats = metrics.sum("greendot_beats_total{source=\"holder\"}");
    assert_eq!(beats, answered as f64);
    // When it opened: once, and once more if its answer had to wait for another shard.
    let beats = metrics.sum("greendot_beats_total{source=\"stream\"}");
    assert!([1.0, 2.0].contains(&beats), "{beats}");
}

/// What an open socket proves: nothing about who is behind it. The holder did not ask for more.
#[test]
fn a_stream_that_vouches_is_held_open_by_a_relay() {
    let home = Home::new();
    let server = home.serve(FAST);
    let relay = Relay::to(server.http);
    let (client, _) = stream(&relay, "user=held");
    client
        .conn
        .socket
        .shutdown(Shutdown::Both)
        .expect("it is open");
    pause(3 * OFFLINE_AFTER_MS);
    assert!(server.record("held").online);
}

/// A stream's life is over: it says so, and its reader comes back to where it was.
#[test]
pub(crate) fn a_stream_ends_after_its_longest_life_and_nothing_is_missed() {
    let home = Home::new();
    // Who comes back within seconds has not gone.
    let server = home.serve(&[
        "--beat-interval-ms=500",
        "--offline-after-ms=3000",
        "--sweep-interval-ms=50",
        "--stream-life-ms=5000",
        "--shards=1",
    ]);
    let mut watcher = server.stream("watch=renewed");
    watcher.begin();
    let mut holder = server.stream("user=renewed&watch=bob");
    let (_, _) = holder.begin();
    let online = watcher.expect_presence("renewed", true);
    server.sender().beat(&["bob"]);
    // He is online, and offline again.
    let mut last_id = None;
    let goodbye = loop {
        let event = holder.next();
        if event.kind == "goodbye" {
            break event;
        }
        last_id = event.id.or(last_id);
    };
    let last_id = last_id.expect("all is told");
    assert_eq!(goodbye.data["reason"], "stream-life");
    let retry_ms = goodbye.retry_ms.expect("it says when to come back");
    assert!((100..=500).contains(&retry_ms), "{retry_ms}");
    assert!(holder.rest().is_empty());
    server.sender().beat(&["bob"]);
    server.expect_online("bob");
    pause(retry_ms);
    let query = format!("user=renewed&watch=bob&last_event_id={last_id}");
    let mut again = server.stream(&query);
    let (_, changed) = again.begin();
    assert!(changed[0].online, "{changed:?}");
    assert_eq!(server.record("renewed").since(), online.since());
    assert!(crate::limits::limit_hits(&server, "stream-life-ms") >= 1.0);
    let deadline = Deadline::in_ms(PATIENCE_MS);
    let goodbye = until("the watcher's is over, too", || watcher.next_by(deadline));
    assert_eq!(goodbye.kind, "goodbye");
}
