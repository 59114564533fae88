//! The split roles' wires: beats out and questions (real-time nodes), published states out (presence nodes).
//!
//! Owns what is between an engine's [`Outbound`] and another node: queues that keep one entry a publisher, retries, and what is
//! concluded from a node's silence. [`Inquiry`] and [`Publisher`] are such a link without a kernel; [`Links`] drives them, each
//! on a thread of its own, so that a slow node holds up nobody else. Never decides who is online.
//!
//! [`Outbound`]: crate::engine::Outbound

mod backoff;
mod beats;
mod http;
mod inquiry;
mod link;
mod publisher;
mod socket;

pub use beats::BeatSender;
pub use http::Peer;
pub use inquiry::{Inquiry, Sighting};
pub use link::{Handle, LinkParts, Links, Tell};
pub use publisher::{Publisher, Put};

/// Most states in one request: the other side's `query_users_max`.
const STATES_PER_REQUEST_MAX: usize = 1_000;
