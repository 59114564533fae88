//! Which half of the platform a node is.

use std::sync::Arc;

use crate::wire::nodes::Nodes;

/// One of them, or both. Decides at start which parts its engines have, and which
/// paths they serve.
#[derive(Clone, Debug)]
pub enum Role {
    /// Both halves: streams and stamps in one process.
    All,
    /// Stamps and sweep; publishes transitions to real-time nodes.
    Presence,
    /// Streams and watches; vouches for its publishers to these presence nodes, whose states it
    /// follows.
    Realtime(Arc<Nodes>),
    /// Both halves, and one of many that share their state: it hears its own publishers, and tells
    /// of all what the fleet says. Its bridge to the fleet is asked as a presence node is, and is
    /// the only one of these nodes.
    Fleet(Arc<Nodes>),
}

impl Role {
    /// Whether it has streams.
    pub fn holds_streams(&self) -> bool {
        !matches!(self, Role::Presence)
    }

    /// The subcommand that runs it.
    pub fn name(&self) -> &'static str {
        match self {
            Role::All => "serve",
            Role::Presence => "presence",
            Role::Realtime(_) => "realtime",
            Role::Fleet(_) => "serve",
        }
    }

    /// Whether what its users say is for others to decide: it is passed on, and nobody's stamps are
    /// kept.
    pub fn passes_on(&self) -> bool {
        matches!(self, Role::Realtime(_))
    }

    /// Whether the states that it tells were decided elsewhere.
    pub fn follows(&self) -> bool {
        matches!(self, Role::Realtime(_) | Role::Fleet(_))
    }
}
