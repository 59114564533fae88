//! What a service manager is told of this node, in the protocol of sd_notify(3): that it serves,
//! reads its keys anew, stops, and that its shards turn.
//!
//! Owns the messages and their order. Never waits for who reads them, which is why this is no
//! crate's: a manager that stands still would hold back a reload, or a stop. Nobody is told where
//! NOTIFY_SOCKET names no socket.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::RecvTimeoutError;
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};

use super::ServeFault;
use super::background::Background;
use crate::metrics::{Board, Counter, SharedCounters};
use crate::shard::Teller;

/// The manager is told so often in its watchdog's time: a look that comes late or finds a shard in
/// a long turn is no reason to end the process yet.
const LOOKS_PER_LIMIT: u32 = 4;
/// Shortest time between two looks, whatever the manager asks for.
const LOOK_MIN: Duration = Duration::from_millis(10);

/// The manager of this process, if it has one that wants to know.
#[derive(Clone)]
pub(super) struct Supervisor {
    tells: Option<Arc<Tells>>,
}

struct Tells {
    socket: UnixDatagram,
    stage: Mutex<Stage>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Starts,
    Serves,
    Drains,
    /// The shards have ended.
    Closes,
}

impl Supervisor {
    /// The one that the environment names. One that can not be reached is logged, and not told.
    pub(super) fn of_environment() -> Supervisor {
        let named = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        let tells = named.and_then(|name| match connect(&name) {
            Ok(socket) => Some(Arc::new(Tells {
                socket,
                stage: Mutex::new(Stage::Starts),
            })),
            Err(error) => {
                tracing::warn!(
                    "NOTIFY_SOCKET names {}: {error}; the service manager is told nothing",
                    name.display()
                );
                None
            }
        });
        Supervisor { tells }
    }

    /// The node listens.
    pub(super) fn ready(&self) {
        self.enter(Stage::Serves, "READY=1");
    }

    /// The node drains, for so long at most: a manager whose own limit is shorter waits.
    pub(super) fn stopping(&self, at_most_ms: u64) {
        let micros = at_most_ms.saturating_mul(1_000);
        self.enter(
            Stage::Drains,
            &format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={micros}"),
        );
    }

    /// The shards end. The store is still to be written back, which no turn of theirs shows.
    pub(super) fn closing(&self) {
        if let Some(tells) = &self.tells {
            *tells.stage.lock() = Stage::Closes;
        }
    }

    /// Has something reloaded, and says so before and after if the node serves.
    pub(super) fn while_reloading(&self, reload: impl FnOnce()) {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000;
        self.tell_serving(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
        reload();
        self.tell_serving("READY=1");
    }

    /// Starts the thread that tells the manager's watchdog that all shards turn, until it is
    /// stopped. None: the manager has no watchdog.
    pub(super) fn start_watchdog(
        &self,
        board: &Arc<Board>,
        teller: Teller,
    ) -> Result<Option<Background>, ServeFault> {
        let Some((tells, limit)) = self.tells.clone().zip(watchdog_limit()) else {
            return Ok(None);
        };
        let look = (limit / LOOKS_PER_LIMIT).max(LOOK_MIN);
        let board = Arc::clone(board);
        let doing = "start the thread that speaks to the service manager's watchdog";
        let started = Background::start("watchdog", doing, move |stop| {
            let mut turns = Turns::default();
            loop {
                let closes = *tells.stage.lock() == Stage::Closes;
                if turns.all_go_on(&board, look) || closes {
                    tells.tell("WATCHDOG=1");
                }
                // One with nothing to do may sleep for longer than that.
                teller.wake();
                if stop.recv_timeout(look) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        started.map(Some)
    }

    fn enter(&self, stage: Stage, message: &str) {
        if let Some(tells) = &self.tells {
            // Held while it is told, so that no message of a reload comes behind.
            let mut now = tells.stage.lock();
            *now = stage;
            tells.tell(message);
        }
    }

    fn tell_serving(&self, message: &str) {
        if let Some(tells) = &self.tells {
            let now = tells.stage.lock();
            if *now == Stage::Serves {
                tells.tell(message);
            }
        }
    }
}

impl Tells {
    fn tell(&self, message: &str) {
        if let Err(error) = self.socket.send(message.as_bytes()) {
            tracing::warn!(%error, "the service manager was not told {message:?}");
        }
    }
}

/// A socket whose writes never wait. A name that begins with `@` is of the abstract kind.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The silence after which the manager ends this process. None: it never does.
fn watchdog_limit() -> Option<Duration> {
    let variable = |name| std::env::var_os(name);
    limit_of(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"))
}

fn limit_of(micros: Option<OsString>, pid: Option<OsString>) -> Option<Duration> {
    // What is said to another process is inherited by chance.
    if pid.is_some_and(|pid| pid.to_str() != Some(&std::process::id().to_string())) {
        return None;
    }
    let micros: u64 = micros?.to_str()?.parse().ok()?;
    (micros > 0).then(|| Duration::from_micros(micros))
}

/// How far each shard had come at the last look.
#[derive(Default)]
struct Turns {
    elapsed: Vec<u64>,
    /// One of them stood at the last look, which has been said.
    stood: bool,
}

impl Turns {
    /// Whether every shard has ended a turn since the last look; the first finds them so.
    fn all_go_on(&mut self, board: &Board, look: Duration) -> bool {
        let elapsed = |cells: &SharedCounters| cells.counter(Counter::TurnElapsed);
        let now: Vec<u64> = board.shards.iter().map(elapsed).collect();
        let stands = now
            .iter()
            .zip(&self.elapsed)
            .position(|(now, was)| now == was);
        self.elapsed = now;
        let stood = std::mem::replace(&mut self.stood, stands.is_some());
        if let (Some(shard), false) = (stands, stood) {
            let ms = look.as_millis();
            tracing::warn!(
                shard,
                "has not ended a turn for {ms} ms; the watchdog is not told"
            );
        }
        stands.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Counters;

    #[test]
    fn one_shard_that_stands_is_one_too_many() {
        let board = Board::new(2);
        let mut turns = Turns::default();
        assert!(
            turns.all_go_on(&board, Duration::ZERO),
            "nothing is held against them yet"
        );
        assert!(!turns.all_go_on(&board, Duration::ZERO), "none has turned");
        let mut counters = Counters::new();
        let mut turn = |shards: &[usize]| {
            counters.add(Counter::TurnElapsed, 1);
            shards
                .iter()
                .for_each(|&shard| board.shards[shard].publish(&counters));
        };
        turn(&[0, 1]);
        assert!(turns.all_go_on(&board, Duration::ZERO));
        turn(&[1]);
        assert!(!turns.all_go_on(&board, Duration::ZERO));
        turn(&[0]);
        assert!(!turns.all_go_on(&board, Duration::ZERO));
        turn(&[0, 1]);
        assert!(turns.all_go_on(&board, Duration::ZERO));
    }

    #[test]
    fn a_watchdog_is_for_one_process() {
        let own = std::process::id().to_string();
        for (micros, pid, limit_ms) in [
            (None, None, None),
            (Some("30000000"), None, Some(30_000)),
            (Some("30000000"), Some(own.as_str()), Some(30_000)),
            (Some("30000000"), Some("1"), None),
            (Some("30000000"), Some(""), None),
            (Some("0"), None, None),
            (Some("-1"), None, None),
            (Some("30s"), None, None),
        ] {
            let limit = limit_of(micros.map(OsString::from), pid.map(OsString::from));
            assert_eq!(limit, limit_ms.map(Duration::from_millis), "{micros:?}");
        }
    }

    #[test]
    fn sockets_have_paths_or_abstract_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("greendot-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        let abstract_name = OsString::from(format!("@{name}"));
        for (read, name) in [(by_path, path.as_os_str()), (by_name, &abstract_name)] {
            let socket = connect(name).unwrap();
            socket.send(b"READY=1").unwrap();
            let mut bytes = [0; 16];
            assert_eq!(read.recv(&mut bytes).unwrap(), 7, "{name:?}");
            // Whoever reads nothing holds nobody up.
            let full = (0..10_000).find_map(|_| socket.send(b"READY=1").err());
            assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
        }
        let nobody = connect(dir.path().join("nobody").as_os_str());
        assert_eq!(nobody.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
