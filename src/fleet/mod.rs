//! The pure core of a fleet: what nodes and Redis say to each other, as values and bytes.
//!
//! A fleet's database and bus is Redis or Valkey. Users are dealt out among partitions
//! ([`partition`]); each is one hash key with its state, its latest messages and a counter for each
//! life of a node ([`held`]). Nodes write by the functions of [`LIBRARY`] only ([`calls`],
//! [`replies`]), and each change is published as a numbered message ([`message`]).
//!
//! Owns these formats and the library. Never opens a socket and never reads a clock: the bridge
//! that does is above. docs/FORMATS.md has the bytes.
//!
//! Why the functions are as they are:
//!
//! - **One key a partition.** State, event and numbers change together or not at all, also through
//!   a failover, and a slot that moves takes all of them along.
//! - **Every write is numbered and dated.** `k` counts the writes of one life to one partition: one
//!   that comes twice does nothing, one that is missing is noticed. `not_after`, by Redis' own
//!   clock, makes void what lay in a stopped server's socket buffer. Fences have it too.
//! - **A claim says what it proves.** A beat proves a life and a stream that vouches does. A stream
//!   whose holder vouches for itself proves none, but another device's goodbye does not end it.
//! - **A goodbye is judged where all claims are.** It takes a user offline only if no life holds a
//!   stream of it and no claimed beat was sent later.
//! - **Whoever is invisible never arrives.** Nodes are told by `=`, with the flag that keeps it
//!   from everybody else.

pub mod calls;
pub mod flags;
#[doc(hidden)]
pub mod fuzz;
pub mod held;
pub mod hooks;
pub mod library;
pub mod member;
pub mod message;
pub mod partition;
pub mod replies;
pub mod revocations;
pub mod tickets;
pub mod ticks;
pub mod traffic;
pub mod walk;

mod bytes;

pub use library::{LIBRARY, LIBRARY_NAME};

/// Most users of one call, and so most records of one message: a call stays below a millisecond.
pub const CALL_USERS_MAX: usize = 200;

/// One life of a node: random, anew after each start and each fence. Never handed out by Redis,
/// which could hand out the same one twice after a failover.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Life(pub [u8; 4]);

/// Which creation of a partition's key numbers its messages: random.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Birth(pub [u8; 8]);

/// Bytes are not what the library writes. Holds what they should have been.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed(pub &'static str);

impl std::fmt::Display for Malformed {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "{} is malformed; does another program write to this database?",
            self.0
        )
    }
}

impl std::error::Error for Malformed {}
