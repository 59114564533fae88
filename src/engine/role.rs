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
        }
    }
}
