//! What the core of a fleet reaches Redis by: the link, and the thread that drives both.
//!
//! Owns every socket to Redis, and the only runtime. The core hands commands to the link and gets
//! events ([`crate::fleet::traffic`] has both). The link repeats nothing of what the core says,
//! decides nothing about users, and reads from no replica.
//!
//! - **Two connections a primary** (`commands`, `subscriptions`): a reply never waits behind
//!   messages, and what is published never behind replies. Each server has its own, so one that is
//!   out of reach holds up no other.
//! - **One place knows who is where** (`board`). All connections ask it and tell it, so events of
//!   one partition stand in one order, whatever connections they come from.
//! - **A server is the data that it has**, not its address (`about`): the process, and what it
//!   replicates. Whoever was a replica in between is another one.
//! - **Nothing is unbounded.** Commands wait up to a bound and fail beyond it. Events wait up to a
//!   bound, beyond which no socket is read: the server then cuts us off as any slow subscriber.

pub mod abroad;
pub mod databases;
pub mod desk;
pub mod hooks;
pub mod neighbours;
pub mod shards;

mod about;
mod board;
mod commands;
mod dial;
pub mod driver;
mod homing;
mod resp;
mod scout;
mod story;
mod subscriptions;
mod survey;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;

use self::board::{Board, Site, Wakes};
pub use self::homing::missed_ms;
pub use self::survey::{Cluster, Survey, Surveyed};
use crate::backoff::Backoff;
use crate::fleet::partition::Partitions;
use crate::fleet::traffic::{Command, Event, Server};
use crate::redis_url::{Address, Password, Servers};
use crate::trust::Trust;

/// Delay before a server is dialled again after the first failure, in ms, and the longest one.
const RETRY_FIRST_MS: u64 = 100;
const RETRY_CAP_MS: u64 = 5_000;

/// Of delays up to `cap_ms`, in step with nobody's.
fn backoff(cap_ms: u64) -> Backoff {
    Backoff::new(RETRY_FIRST_MS, cap_ms, fastrand::u64(..))
}

/// Waits as long as is due after one more failure.
async fn sleep_after_failure(backoff: &mut Backoff) {
    tokio::time::sleep(Duration::from_millis(backoff.after_failure_ms())).await;
}

/// How Redis is reached.
#[derive(Clone)]
pub struct Options {
    /// Who is asked first, and as whom.
    pub servers: Servers,
    /// Stands in for the one of the URL: it was read from a file.
    pub password: Option<Password>,
    /// Whom `rediss://` believes.
    pub trust: Option<Trust>,
}

/// The connections to all servers of a fleet's Redis.
///
/// Made and used inside a runtime of tokio. Dropped, it closes them all.
pub struct Link {
    board: Arc<Board>,
    tasks: [AbortHandle; 2],
}

/// A view of a link, for metrics and operators.
#[derive(Clone)]
pub struct Observer {
    board: Arc<Board>,
}

/// What a link has done so far, and what it is up to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Figures {
    /// Connections that stand: two for each primary.
    pub connections: u32,
    /// Partitions that are heard.
    pub subscriptions: u32,
    /// Commands that wait to be sent.
    pub waiting: u32,
    /// Commands of Redis that were sent, repeated ones and the link's own among them.
    pub commands: u64,
    /// Messages that came.
    pub messages: u64,
    /// Connections that were lost or given up.
    pub reconnects: u64,
    /// Answers by which somebody else has a key, or nobody.
    pub moved: u64,
    /// Commands that were not taken because too many waited.
    pub refused: u64,
    /// Bytes that came, greetings aside.
    pub bytes_in: u64,
    /// Bytes that were sent, greetings aside.
    pub bytes_out: u64,
}

/// One server, for an operator's eyes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerStatus {
    /// Where it is.
    pub address: Address,
    /// As which it is told of, if it was reached.
    pub server: Option<Server>,
    /// Commands can be sent.
    pub takes_commands: bool,
    /// Partitions that it has.
    pub partitions: u16,
    /// Those of them that are heard.
    pub heard: u16,
    /// Why it is of no use, or was last.
    pub fault: Option<String>,
}

impl Options {
    pub(crate) fn password(&self) -> Option<&Password> {
        self.password.as_ref().or(self.servers.password.as_ref())
    }
}

impl Link {
    /// Begins to connect, and to subscribe all partitions. Signs of life are read at `beat_at`, and
    /// each second from then on.
    pub fn start(options: Options, partitions: Arc<Partitions>, beat_at: Instant) -> Link {
        let board = Arc::new(Board::new(options, partitions, beat_at));
        let scout = tokio::spawn(scout::run(Arc::clone(&board)));
        let pulse = tokio::spawn(scout::pulse(Arc::clone(&board)));
        Link {
            tasks: [scout.abort_handle(), pulse.abort_handle()],
            board,
        }
    }

    /// Sends a command, or says by an event that it was not. Waits for nothing.
    pub fn send(&self, command: Command) {
        self.board.send(command);
    }

    /// The next event. Given up, it has taken none.
    pub async fn next(&self) -> Event {
        self.board.next().await
    }

    /// The next event, if there is one by now.
    pub fn try_next(&self) -> Option<Event> {
        self.board.pop()
    }

    /// What others may look at, from any thread.
    pub fn observer(&self) -> Observer {
        Observer {
            board: Arc::clone(&self.board),
        }
    }
}

impl Observer {
    /// For metrics.
    pub fn figures(&self) -> Figures {
        self.board.figures()
    }

    /// All servers that are known, and why none is, if none is.
    pub fn status(&self) -> (Vec<ServerStatus>, Option<String>) {
        self.board.status()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        self.board.close();
    }
}

/// The two connections of a site.
fn open(board: &Arc<Board>, site: Site, address: &Address, wakes: &Wakes) -> Vec<AbortHandle> {
    let commands = commands::run(
        Arc::clone(board),
        site,
        address.clone(),
        Arc::clone(&wakes.commands),
    );
    let subscriptions = subscriptions::run(
        Arc::clone(board),
        site,
        address.clone(),
        Arc::clone(&wakes.subscriptions),
    );
    [tokio::spawn(commands), tokio::spawn(subscriptions)]
        .map(|task| task.abort_handle())
        .into()
}
