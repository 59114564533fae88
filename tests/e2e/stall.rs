//! A server that does not run for a while, while everybody keeps beating.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::harness::{FAST, Home, OFFLINE_AFTER_MS, Server, pause};
use crate::stream::Stream;
use rustix::process::Signal;

/// Users that beat from a thread of their own.
struct Beating {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Beating {
    fn start(server: &Server, users: &[String], every_ms: u64) -> Beating {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, users, stopped) = (server.sender(), users.to_vec(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let users: Vec<&str> = users.iter().map(String::as_str).collect();
            while !stopped.load(Ordering::Relaxed) {
                sender.beat(&users);
                std::thread::park_timeout(Duration::from_millis(every_ms));
            }
        });
        Beating { stop, thread }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        self.thread.join().expect("it only sends");
    }
}

/// Fills the sockets of a server that stands still, so that every beat of that time is lost: of
/// nobody does a beat that waited tell that he has not been silent.
fn drown(server: &Server) -> f64 {
    const DATAGRAMS: usize = 40_000;
    let sender = server.sender();
    for _ in 0..DATAGRAMS {
        sender.send(&[0; 1_400]);
    }
    DATAGRAMS as f64
}

/// That not all of so many came in: the sockets were full.
fn expect_drowned(server: &Server, sent: f64) {
    let refused = server
        .metrics()
        .sum("greendot_datagrams_refused_total{reason=\"magic\"}");
    assert!(
        refused > 0.0 && refused < sent,
        "{refused} of {sent} datagrams found room"
    );
}

fn devices(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("device {n}")).collect()
}

/// A stream of a server with two shards.
fn watch_all(server: &Server, users: &[String]) -> Stream {
    // What one shard decided may be on its way to the other, and would be told once more after the
    // snapshot that has it.
    server.expect_mail_read();
    let (stream, told) = server.watch(users);
    assert!(
        told.iter().all(|record| record.online),
        "all are online to begin with"
    );
    stream
}

/// With the intervals that a server has if nothing is said: offline after 25 s, sweeps every 250
/// ms.
#[test]
fn sixty_seconds_of_sigstop_flip_none_of_ten_thousand() {
    const USERS: usize = 10_000;
    let home = Home::new();
    let server = home.serve(&["--shards=2"]);
    let users = devices(USERS);
    let beating = Beating::start(&server, &users, 4_000);
    server.expect_metric("greendot_users_online", |online| online == USERS as f64);
    let mut watcher = watch_all(&server, &users[..500]);

    server.process.stop();
    let sent = drown(&server);
    watcher.expect_quiet(60_000);
    server.process.signal(Signal::CONT);
    // Expiries are held again for offline_after_ms; not until that is over does it show that nobody
    // was missed.
    watcher.expect_quiet(25_000);
    server.expect_metric("greendot_expiries_held", |held| held == 0.0);
    let swept = server.metrics().sum("greendot_sweep_cycles_total");
    server.expect_metric("greendot_sweep_cycles_total", |cycles| {
        cycles >= swept + 4.0
    });
    watcher.expect_quiet(100);

    expect_drowned(&server, sent);
    let metrics = server.metrics();
    assert!(
        metrics.sum("greendot_stalls_total") >= 1.0,
        "the stop was seen"
    );
    assert_eq!(
        metrics.sum("greendot_transitions_total{to=\"offline\"}"),
        0.0
    );
    assert_eq!(
        metrics.sum("greendot_transitions_total{to=\"online\"}"),
        USERS as f64
    );
    assert_eq!(metrics.sum("greendot_users_online"), USERS as f64);
    beating.stop();
}

#[test]
fn a_stopped_server_takes_nobody_for_silent() {
    const USERS: usize = 300;
    let home = Home::new();
    let server = home.serve(&[FAST, &["--shards=2"]].concat());
    let users = devices(USERS);
    let beating = Beating::start(&server, &users, 300);
    server.expect_metric("greendot_users_online", |online| online == USERS as f64);
    let mut watcher = watch_all(&server, &users);
    let before = server.metrics();

    let mut sent = 0.0;
    for _ in 0..2 {
        server.process.stop();
        sent += drown(&server);
        pause(2 * OFFLINE_AFTER_MS + 500);
        server.process.signal(Signal::CONT);
        watcher.expect_quiet(OFFLINE_AFTER_MS + 500);
    }
    expect_drowned(&server, sent);
    let after = server.metrics();
    let transitions = |metrics: &crate::scrape::Metrics| metrics.sum("greendot_transitions_total");
    assert_eq!(transitions(&after), transitions(&before));
    assert!(
        after.sum("greendot_stalls_total") >= 2.0,
        "each stop was seen"
    );

    // Their own silence is told, for all of them and once.
    beating.stop();
    for _ in 0..USERS {
        let told = watcher.presence();
        assert!(!told.online, "{told:?}");
        assert!(
            told.since() - told.last_active() >= OFFLINE_AFTER_MS,
            "{told:?}"
        );
    }
    watcher.expect_quiet(300);
}
