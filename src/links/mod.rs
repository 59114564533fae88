//! The split roles' wires: beats out and questions (real-time nodes), published states out
//! (presence nodes).
//!
//! Owns what is between an engine's [`Outbound`] and another node: queues that keep one entry a
//! publisher, retries, and what is concluded from a node's answers and its silence. [`Publishing`]
//! and [`Asking`] are the two links without a kernel: time is an argument, requests, replies and
//! effects are values. [`Links`] drives them, each on a thread of its own, so that a slow node
//! holds up nobody else; the simulator drives the same. [`webhooks`] are links of
//! another kind: to servers that are not greendot's. Never decides who is online.
//!
//! [`Outbound`]: crate::engine::Outbound

mod abroad;
mod announcer;
mod asking;
mod beats;
mod delivery;
mod effect;
mod farewells;
#[cfg(test)]
mod fixture;
mod homeward;
mod http;
mod inquiry;
mod log_outs;
mod passing;
mod publishing;
mod reply;
mod revocations;
mod socket;
mod station;
mod statuses;
mod threads;
pub mod webhooks;

pub use abroad::{Abroad, AbroadHandle};
pub use asking::Asking;
pub use beats::BeatSender;
pub use effect::{Effect, Notice};
pub use homeward::HomeSender;
pub use http::{Answerer, Remote, Token};
pub use publishing::Publishing;
pub use reply::{Fault, Reply, Request, Said};
pub use threads::{Handle, LinkParts, Links, Spawn, Tell};

use crate::engine::settings::SLEEP_MS_MAX;
use crate::engine::{ID_LAG_MS_MAX, REVOUCH_MS, SETTLE_MS};
use crate::presence::UNTOLD_MS_MAX;

/// Time between two requests when there is nothing to say, in ms: so soon a silent node is noticed.
const PROBE_MS: u64 = 1_000;
/// Delay of a link after the first failure, in ms.
const RETRY_FIRST_MS: u64 = 200;
/// Longest delay of a link, in ms. One that works carries a request a second anyway.
const RETRY_CAP_MS: u64 = 2_000;
/// An outage of this length, in ms, may have cost beats: longer than a node takes to restart its
/// listener.
const OUTAGE_MS: u64 = 2_000;

// Before a pair of nodes that was cut off says anything, every real-time node has noticed that the
// link is back (the longest pause between two tries, and a request that times out) and has vouched.
const _: () = assert!(RETRY_CAP_MS + http::TIMEOUT_MS + REVOUCH_MS <= SETTLE_MS);
// A node that is well says each PROBE_MS that all is told that was decided before the last turns of
// its shards: one request lost is no silence.
const _: () = assert!(PROBE_MS + http::TIMEOUT_MS + SLEEP_MS_MAX <= UNTOLD_MS_MAX);
// Event ids are told while a silence is not noticed yet.
const _: () = assert!(UNTOLD_MS_MAX <= ID_LAG_MS_MAX);

/// Most states in one request: the other side's `query_users_max`.
const STATES_PER_REQUEST_MAX: usize = 1_000;

/// How a link stands.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Standing {
    /// Publishers whose state is to be told or asked for.
    pub queued: usize,
    /// The last request failed, or none has succeeded yet.
    pub down: bool,
    /// Beats do not arrive as datagrams, and go over the link's connection.
    pub beats_gone: bool,
}

/// What is wrong with a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trouble {
    Down,
    BeatsGone,
}

impl Standing {
    fn trouble(&self) -> Option<Trouble> {
        match self {
            Standing { down: true, .. } => Some(Trouble::Down),
            Standing {
                beats_gone: true, ..
            } => Some(Trouble::BeatsGone),
            _ => None,
        }
    }
}
