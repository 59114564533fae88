//! What a service manager is told, by the real binary on a real socket, in the manager's words.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};

use crate::disk::Disk;
use crate::harness::{Deadline, Home, PATIENCE_MS, Server, pause, skipped, until};
use crate::http::Got;

/// The watchdog's limit, in ms. It is told four times as often.
const LIMIT_MS: u64 = 400;

/// What systemd is to a service.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(home: &Home) -> Manager {
        let path = home.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket can be made");
        Manager { socket, path }
    }

    /// A command that is told where it is.
    fn tells(&self, command: &mut Command) {
        command.env("NOTIFY_SOCKET", &self.path);
    }

    fn serve(&self, home: &Home, watchdog: bool, flags: &[&str]) -> Server {
        let data_dir = format!("--data-dir={}", home.data_dir().display());
        let [http, udp] = home.addresses();
        let mut command = home.command(&["serve", &http, &udp, &data_dir]);
        self.tells(command.args(flags));
        if watchdog {
            command.env("WATCHDOG_USEC", (LIMIT_MS * 1_000).to_string());
        }
        home.launch(&mut command)
    }

    /// The next message; None: none came in time.
    fn next(&self, wait_ms: u64) -> Option<String> {
        let wait = Some(Duration::from_millis(wait_ms));
        self.socket.set_read_timeout(wait).expect("it is not zero");
        let mut bytes = [0; 1_024];
        match self.socket.recv(&mut bytes) {
            Ok(n) => Some(String::from_utf8(bytes[..n].to_vec()).expect("it is text")),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn expect(&self, message: &str) {
        assert_eq!(self.next(PATIENCE_MS).as_deref(), Some(message));
    }

    /// Passes over what waits.
    fn forget(&self) {
        while self.next(1).is_some() {}
    }
}

fn monotonic_micros() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000
}

#[test]
fn a_manager_is_told_of_start_reload_and_stop() {
    let home = Home::new();
    let manager = Manager::new(&home);
    // 2 s of the drain, 5 s for the last answers, 30 s for the store.
    let server = manager.serve(&home, false, &["--drain-ms=2s"]);
    manager.expect("READY=1");

    let before = monotonic_micros();
    server.process.signal(Signal::HUP);
    let reloading = manager.next(PATIENCE_MS).expect("it says so");
    let at = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
    let at: u64 = at.expect(&reloading).parse().expect(&reloading);
    assert!((before..=monotonic_micros()).contains(&at), "{reloading}");
    manager.expect("READY=1");
    server.expect_log("the files of keys were read anew");

    assert!(server.terminate().success());
    manager.expect("STOPPING=1\nEXTEND_TIMEOUT_USEC=37000000");
    assert_eq!(manager.next(1), None, "no watchdog was asked for");
}

/// An idle shard that sleeps for longer than the limit is no shard that stands.
#[test]
fn the_watchdog_hears_of_turns_until_the_end() {
    let home = Home::new();
    let manager = Manager::new(&home);
    let sleepy = ["--sweep-interval-ms=10s", "--shards=2", "--drain-ms=0"];
    let server = manager.serve(&home, true, &sleepy);
    let (mut ready, mut told) = (0, 0);
    while told < 8 || ready < 1 {
        match manager.next(PATIENCE_MS).as_deref() {
            Some("WATCHDOG=1") => told += 1,
            Some("READY=1") => ready += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(ready, 1);
    server.process.signal(Signal::TERM);
    loop {
        match manager.next(PATIENCE_MS).as_deref() {
            Some("WATCHDOG=1") => {}
            Some("STOPPING=1\nEXTEND_TIMEOUT_USEC=35000000") => break,
            other => panic!("{other:?}"),
        }
    }
}

/// A shard that waits for a disk turns no more, while every other thread goes on.
#[test]
fn the_watchdog_hears_nothing_while_a_shard_stands() {
    let home = Home::new();
    let Some(disk) = Disk::ext4(&home) else {
        return skipped("no ext4 can be made and mounted");
    };
    let manager = Manager::new(&home);
    let mut command = disk.command(&home, &["--memory=off", "--shards=1"]);
    manager.tells(command.env("WATCHDOG_USEC", (LIMIT_MS * 1_000).to_string()));
    let server = home.launch(&mut command);
    let mut beats = server.connect();
    let beat = serde_json::json!({"users": ["bob"]});
    assert_eq!(beats.post("/v1/beat", &beat).status, 204);
    server.expect_online("bob");
    let Some(frozen) = disk.freeze(&home) else {
        return skipped("file systems cannot be frozen");
    };
    // Waits for the disk, in the middle of a turn.
    beats.send_post("/v1/beat", beat.to_string().as_bytes());
    until("a whole limit passes without a word", || {
        manager.forget();
        pause(LIMIT_MS);
        manager.next(1).is_none().then_some(())
    });
    assert!(beats.read(Deadline::in_ms(1)) == Got::Nothing);
    server.expect_log("has not ended a turn for 100 ms; the watchdog is not told");
    drop(frozen);
    let deadline = Deadline::in_ms(PATIENCE_MS);
    while manager.next(100).as_deref() != Some("WATCHDOG=1") {
        assert!(deadline.left().is_some(), "it is told again");
    }
    assert_eq!(beats.answer().status, 204);
}

#[test]
fn a_manager_that_is_not_there_costs_a_warning() {
    let home = Home::new();
    let data_dir = format!("--data-dir={}", home.data_dir().display());
    let [http, udp] = home.addresses();
    let mut command = home.command(&["serve", &http, &udp, &data_dir]);
    let server = home.launch(command.env("NOTIFY_SOCKET", home.path().join("nobody")));
    server.expect_log("/nobody: No such file or directory");
    server.expect_log("the service manager is told nothing");
    assert!(server.terminate().success());
}
