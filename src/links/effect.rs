//! What a link wants done: counted, told to the shards, logged.
//!
//! Owns the words of the log. A link without a kernel returns effects; its thread, or the
//! simulator, carries them out.

use std::fmt;

use crate::engine::Mail;
use crate::metrics::Counter;

/// Something to carry out.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Add so many to a counter of the process.
    Count(Counter, u64),
    /// Tell all shards.
    Tell(Mail),
    /// Log it, with the node's address.
    Say(Notice),
}

/// Something that an operator should know of a node of the other role.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// It takes what is published again.
    TakesAgain,
    /// It does not take what is published; why.
    NotTaken(String),
    /// It refuses some states each by itself; why.
    StatesRefused(String),
    /// It has no room for so many users.
    NoRoom(u64),
    /// It does not answer questions; why.
    NotAnswering(String),
    /// It answers again, and nothing that it told was missed.
    InSight,
    /// Something that it told was missed, or may have been: it is asked about everybody who is
    /// watched.
    Missed,
    /// It answers questions and does not tell everything.
    Untold,
}

impl Notice {
    /// Something is wrong.
    pub fn is_warning(&self) -> bool {
        !matches!(self, Notice::TakesAgain | Notice::InSight | Notice::Missed)
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::TakesAgain => out.write_str("the real-time node answers again"),
            Notice::NotTaken(why) => write!(
                out,
                "the real-time node does not take what is published ({why}); trying again"
            ),
            Notice::StatesRefused(why) => write!(
                out,
                "the real-time node refuses some states each by itself ({why}); they are passed \
                 over. Give all nodes the same version and no smaller --body-bytes-max and \
                 --head-bytes-max than the default"
            ),
            Notice::NoRoom(users) => write!(
                out,
                "the real-time node has no room for {users} users; raise its --users-max"
            ),
            Notice::NotAnswering(why) => write!(
                out,
                "the presence node does not answer ({why}); what is known of its publishers stands"
            ),
            Notice::InSight => out.write_str("the presence node answers again"),
            Notice::Missed => out.write_str(
                "the presence node is in sight and may have told what this node missed; asking it \
                 about everybody who is watched",
            ),
            Notice::Untold => out.write_str(
                "the presence node answers and does not tell this node everything; is this one in \
                 its --realtime, and reachable from it?",
            ),
        }
    }
}
