//! What the core of a fleet and the link to Redis hand each other, as values.
//!
//! Owns their shape. The link (`bridge/`) sends commands and says what came of each, and what was
//! published; it retries nothing, so that the core alone decides what is said twice.

use super::calls::Call;
use super::partition::Partition;

/// One life of one server as the link knows it: another address, another process at the same
/// address, and a replica that has become a primary are other servers. Numbers of messages and
/// what was read count for one of them only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Server(pub u32);

/// By which the core finds again what a reply is to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tag(pub u64);

/// Whose server a command goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    /// The primary that has a partition's keys.
    Partition(Partition),
    /// The primary that has this key, which is no partition's.
    Key(&'static str),
}

/// Commands of Redis for one server, sent back to back in this order. Not a transaction: others'
/// may come between.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Command {
    /// Whose replies these are.
    pub tag: Tag,
    /// Where they go.
    pub to: To,
    /// One at least.
    pub calls: Vec<Call>,
}

/// What a server says to one command, as far as the library and the core need it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Nothing is there.
    Nil,
    /// A number.
    Number(i64),
    /// A string of bytes, or a status such as `OK`.
    Bytes(Vec<u8>),
    /// Several; a map is its pairs in a row.
    List(Vec<Reply>),
    /// An error, without its `-`: nothing was done.
    Error(String),
}

/// Why there are no replies. What was sent may have been done or not, or be done later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failed {
    /// The server was not reached, or too much waits for it: nothing was sent. Comes at once, and
    /// as often as something is sent, so whoever says it again waits first.
    Unreached,
    /// The connection was lost, or nothing came in time.
    Lost,
    /// The server does not have the key any more, or serves none (`MOVED`, `CLUSTERDOWN`,
    /// `LOADING`, `READONLY`..): nothing was done. The link finds out who has it.
    Moved,
}

/// What the link tells the core, in the order in which it came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// To a command: a reply to each of its calls, by this server.
    Answered {
        /// Of the command.
        tag: Tag,
        /// Who answered.
        server: Server,
        /// In the order of the calls.
        replies: Vec<Reply>,
    },
    /// A command has no replies.
    Failed {
        /// Of the command.
        tag: Tag,
        /// Why.
        why: Failed,
    },
    /// What is published of a partition is heard from this server from here on.
    Subscribed {
        /// Of which partition.
        partition: Partition,
        /// By whom.
        server: Server,
    },
    /// What is published of a partition may not be heard any more; the link subscribes again. Comes
    /// before it is subscribed from another server.
    Unsubscribed {
        /// Of which partition.
        partition: Partition,
    },
    /// A message.
    Published {
        /// Of which partition.
        partition: Partition,
        /// By whom.
        server: Server,
        /// As it was published.
        message: Vec<u8>,
    },
    /// A read on the connection of this server's subscriptions, which began `ago_ms` ago, was
    /// answered: what the server published before that has been told before this.
    Heard {
        /// Whose.
        server: Server,
        /// When the read began, before now.
        ago_ms: u64,
    },
    /// A server is not reached, or answers no reads: no event id counts, and its partitions are
    /// stale. Said once, until it is heard again. A server counts as long as a partition is
    /// subscribed from it; of one that has lost all of them nothing more is said.
    Silent {
        /// Who.
        server: Server,
    },
}
