//! Peers that vanish without a word: power, cable or mobile network gone. Each test has a network
//! of its own.

use std::net::Ipv4Addr;

use crate::harness::{Deadline, FAST, Home, LOOK_INTERVAL, OFFLINE_AFTER_MS, Server, pause, until};
use crate::http::Conn;
use crate::limits::limit_hits;
use crate::netns::Namespace;
use crate::readers::{ask, narrow, wide_users};
use crate::stream::Stream;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const STALL_MS: u64 = 2_000;

/// A server's network and a client's, with a cable between them.
struct Networks {
    server: Namespace,
    client: Namespace,
}

impl Networks {
    /// None: there can not be any here, which has been said.
    fn new() -> Option<Networks> {
        let (server, client) = (Namespace::new()?, Namespace::new()?);
        server.connect(SERVER, &client, CLIENT)?;
        Some(Networks { server, client })
    }
}

fn serve(home: &Home, stall_ms: u64, flags: &[&str]) -> Server {
    let data_dir = format!("--data-dir={}", home.data_dir().display());
    let (http, udp) = (format!("--http={SERVER}:0"), format!("--udp={SERVER}:0"));
    let stall = format!("--write-stall-max-ms={stall_ms}");
    let mut command = home.command(&[
        "serve",
        &http,
        &udp,
        &data_dir,
        &stall,
        "--insecure",
        "--shards=1",
    ]);
    home.launch(command.args(FAST).args(flags))
}

/// Runs a test in networks of its own, with a server that pings after so much silence and a
/// watcher of who will be gone. Not at all where there can not be any.
fn with_watcher(keep_alive: &str, test: impl FnOnce(&Networks, &Server, &mut Stream) + Send) {
    let Some(networks) = Networks::new() else {
        return;
    };
    networks.server.enter(|| {
        let home = Home::new();
        let server = serve(&home, STALL_MS, &[keep_alive]);
        let mut watcher = server.stream("watch=gone");
        watcher.begin();
        test(&networks, &server, &mut watcher);
    });
}

fn evicted(server: &Server) -> [f64; 2] {
    let metrics = server.metrics();
    ["user_timeout", "write_stall"].map(|reason| {
        metrics.sum(&format!(
            "greendot_conns_evicted_total{{reason=\"{reason}\"}}"
        ))
    })
}

/// The server has let one go, for the first of [`evicted`]'s reasons or the second, and its user
/// expires by the normal rule.
fn expect_let_go(server: &Server, watcher: &mut Stream, reasons: [f64; 2]) {
    until("the vanished one is let go", || {
        (evicted(server) != [0.0; 2]).then_some(())
    });
    assert_eq!(evicted(server), reasons);
    let metrics = server.metrics();
    for series in [
        "greendot_conns_closed_total{reason=\"evicted\"}",
        "greendot_limit_hits_total{limit=\"write-stall-max-ms\"}",
    ] {
        assert_eq!(metrics.sum(series), 1.0, "{series}");
    }
    assert_eq!(
        metrics.sum("greendot_conns_closed_total{reason=\"reset\"}"),
        0.0
    );
    server.expect_metric("greendot_streams", |streams| streams == 1.0);
    let gone = watcher.expect_presence("gone", false);
    assert!(
        gone.since() - gone.last_active() >= OFFLINE_AFTER_MS,
        "{gone:?}"
    );
    // It was vouched for until it was let go, and no longer.
    assert_eq!(server.record("gone"), gone);
}

/// Bytes are on their way to it: the kernel gives up, by TCP_USER_TIMEOUT.
#[test]
fn a_stream_to_a_vanished_peer_ends_and_its_user_expires() {
    // What is said to it first is the change: no ping.
    with_watcher("--keep-alive-ms=60s", |networks, server, watcher| {
        let http = server.http;
        let mut peer = networks
            .client
            .enter(|| Stream::open(Conn::to(http), "/v1/stream?user=gone&watch=bob"));
        peer.begin();
        watcher.expect_presence("gone", true);
        networks.client.vanish();
        // Nothing is said to it, so nobody can know: it is vouched for.
        pause(STALL_MS + OFFLINE_AFTER_MS);
        assert!(server.record("gone").online);
        assert_eq!(evicted(server), [0.0; 2]);
        server.sender().beat(&["bob"]);
        expect_let_go(server, watcher, [1.0, 0.0]);
        peer.expect_quiet(100);
    });
}

/// Its stream is held for longer than it is vouched for.
#[test]
pub(crate) fn a_peer_that_acknowledges_nothing_is_vouched_for_no_longer() {
    let Some(networks) = Networks::new() else {
        return;
    };
    networks.server.enter(|| {
        let home = Home::new();
        let flags = ["--keep-alive-ms=400", "--ack-max-ms=400"];
        let server = serve(&home, 60_000, &flags);
        let mut watcher = server.stream("watch=gone");
        watcher.begin();
        let http = server.http;
        let mut peer = networks
            .client
            .enter(|| Stream::open(Conn::to(http), "/v1/stream?user=gone"));
        peer.begin();
        watcher.expect_presence("gone", true);
        // Past what is forgiven after a start, and as long as it acknowledges.
        watcher.expect_quiet(2 * OFFLINE_AFTER_MS);
        networks.client.vanish();
        let gone = watcher.expect_presence("gone", false);
        server.check_silence(&gone);
        assert!(limit_hits(&server, "ack-max-ms") >= 1.0);
        assert_eq!(evicted(&server), [0.0; 2]);
        server.expect_metric("greendot_streams", |streams| streams == 2.0);
    });
}

/// Nothing ever changes for it and it was never slow: the ping that nobody acknowledges is all
/// there is to find it by.
#[test]
fn an_idle_peer_that_vanishes_is_found_by_a_ping() {
    with_watcher("--keep-alive-ms=500", |networks, server, watcher| {
        let http = server.http;
        let mut peer = networks
            .client
            .enter(|| Stream::open(Conn::to(http), "/v1/stream?user=gone"));
        peer.begin();
        watcher.expect_presence("gone", true);
        // Pings are acknowledged for longer than one may stay without.
        pause(STALL_MS + 500);
        assert_eq!(evicted(server), [0.0; 2]);
        networks.client.vanish();
        expect_let_go(server, watcher, [1.0, 0.0]);
        let metrics = server.metrics();
        assert_eq!(metrics.sum("greendot_flushes_partial_total"), 0.0);
        let told = |kind: &str| metrics.sum(&format!("greendot_events_total{{kind=\"{kind}\"}}"));
        // The watcher's, of whom is gone.
        assert_eq!(told("presence"), 2.0);
        assert!(told("ping") > 0.0);
    });
}

/// Its window is full when it vanishes, and bytes wait in the server: the stall rule.
#[test]
fn a_peer_with_a_full_window_that_vanishes_is_let_go() {
    with_watcher("--keep-alive-ms=200", |networks, server, watcher| {
        let (mut slow, _) = slow_peer(networks, server);
        watcher.expect_presence("gone", true);
        // It gets on, if slowly, for longer than a stall may take.
        for _ in 0..STALL_MS / 100 {
            read(&mut slow, 2_000);
            pause(150);
        }
        assert_eq!(evicted(server), [0.0; 2]);
        networks.client.vanish();
        expect_let_go(server, watcher, [0.0, 1.0]);
    });
}

/// It was slow, so the kernel's timeout is lifted, and all that waited is in the kernel's hands
/// when it vanishes: nothing stalls, and only the question when it was last heard of finds out.
#[test]
fn a_peer_that_was_slow_and_vanishes_is_let_go() {
    with_watcher("--keep-alive-ms=200", |networks, server, watcher| {
        let (mut slow, length) = slow_peer(networks, server);
        watcher.expect_presence("gone", true);
        while slow.buffer.len() < length - LEFT_BYTES {
            let left = length - LEFT_BYTES - slow.buffer.len();
            read(&mut slow, left.min(8_000));
        }
        // The kernel has the rest; pings join it.
        pause(500);
        assert_eq!(evicted(server), [0.0; 2]);
        networks.client.vanish();
        expect_let_go(server, watcher, [1.0, 0.0]);
    });
}

/// What the peer leaves unread of its snapshot: more than its own kernel holds, less than the
/// server's does.
const LEFT_BYTES: usize = 8_000;

/// A peer in the other network that holds gone online and reads nothing of a long snapshot yet, and
/// the snapshot's length.
fn slow_peer(networks: &Networks, server: &Server) -> (Conn, usize) {
    let (http, users) = (server.http, wide_users(4_000));
    let length = {
        let mut fast = Conn::to(http);
        ask(&mut fast, None, &users);
        until("the snapshot is whole", || {
            fast.read(Deadline::in_ms(LOOK_INTERVAL.as_millis() as u64));
            let records = fast
                .buffer
                .windows(7)
                .filter(|window| window == b"\"user\":")
                .count();
            (records == users.len() && fast.buffer.ends_with(b"\n\n\r\n"))
                .then_some(fast.buffer.len())
        })
    };
    server.expect_metric("greendot_streams", |streams| streams == 1.0);
    let slow = networks.client.enter(|| {
        let mut slow = narrow(http);
        ask(&mut slow, Some("gone"), &users);
        slow
    });
    server.expect_metric("greendot_flushes_partial_total", |partial| partial >= 1.0);
    (slow, length)
}

fn read(conn: &mut Conn, bytes: usize) {
    let mut some = vec![0; bytes];
    let n = std::io::Read::read(&mut conn.socket, &mut some).expect("it is not let go");
    assert!(n > 0, "it was let go");
    conn.buffer.extend_from_slice(&some[..n]);
}
