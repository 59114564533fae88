//! Streams of other nodes of a fleet: what is asked, and what came of it.
//!
//! Owns their shape.

use crate::engine::errand::Asker;
use crate::wire::UserBuf;

/// A page of streams goes on at another node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamsAsk {
    pub asker: Asker,
    /// The node that was asked last, and its cursor; without that the next one is meant. None: the
    /// first.
    pub at: Option<(Box<str>, Option<Box<str>>)>,
    /// Whose; None: all.
    pub user: Option<UserBuf>,
    pub limit: usize,
}

/// What one node is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeAsk {
    pub asker: Asker,
    /// Its `HOST:PORT`.
    pub node: Box<str>,
    pub cursor: Option<Box<str>>,
    pub user: Option<UserBuf>,
    pub limit: usize,
}

impl NodeStreams {
    /// How many streams it tells.
    pub fn found(&self) -> usize {
        match self {
            NodeStreams::Told { found, .. } => *found,
            NodeStreams::Over | NodeStreams::Busy | NodeStreams::Silent { .. } => 0,
        }
    }
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodeStreams {
    /// There is no further node.
    Over,
    /// Too many are asked already.
    Busy,
    /// It has not answered.
    Silent { node: Box<str> },
    Told {
        node: Box<str>,
        /// A JSON object each, with commas between them.
        rows: Vec<u8>,
        /// How many they are.
        found: usize,
        /// Its cursor. None: these were all.
        next: Option<Box<str>>,
    },
}
