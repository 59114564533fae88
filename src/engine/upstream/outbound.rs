//! What leaves a shard for other nodes: beats, questions, transitions.
//!
//! Owns its shape. Seals nothing and sends nothing: the lanes fill it, the links take it.

use std::net::SocketAddr;
use std::sync::Arc;

use super::abroad::StreamsAsk;
use super::delivery::Sample;
use super::forward::Forward;
use super::passing::Part;
use crate::auth::TICKET_ID_BYTES;
use crate::engine::errand::Asker;
use crate::engine::mail::{Decided, ShardId};
use crate::slot::Slot;
use crate::time::Unix;
use crate::wire::UserBuf;
use crate::wire::record::Said;

/// Beat datagrams, sealed, back to back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Datagrams {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl<'d> FromIterator<&'d [u8]> for Datagrams {
    fn from_iter<I: IntoIterator<Item = &'d [u8]>>(datagrams: I) -> Datagrams {
        let mut all = Datagrams::default();
        datagrams
            .into_iter()
            .for_each(|datagram| all.push(datagram));
        all
    }
}

impl Datagrams {
    pub(in crate::engine) fn push(&mut self, datagram: &[u8]) {
        self.bytes.extend_from_slice(datagram);
        self.ends.push(self.bytes.len());
    }

    /// Each of them, in the order in which they were sealed.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, end)| &self.bytes[start..*end])
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

/// A presence node asks at which real-time nodes these have a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holders {
    /// Who asks.
    pub shard: ShardId,
    /// By which an answer names the question, and who it is about.
    pub asks: Vec<(u64, Box<str>)>,
}

/// Users who have been logged out everywhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoggedOut {
    pub users: Vec<Box<str>>,
    /// When, by their presence node's clock: who has logged in since is not meant.
    pub at: Unix,
}

/// A user who has been erased, as webhooks are told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Erasure {
    pub user: UserBuf,
    /// Later than all that was published of that user, earlier than what is of the next by the id.
    pub since: Unix,
}

/// What a user says of itself at a real-time node, for its presence node to take.
#[derive(Clone, Debug)]
pub struct Say {
    pub user: UserBuf,
    pub said: Said,
    /// Somebody is at the device that says it.
    pub attended: bool,
    /// The request that waits for it.
    pub asker: Asker,
}

/// What leaves a shard for other nodes.
#[derive(Clone, Debug)]
pub enum Outbound {
    /// To a presence node, by its index: beats.
    Beats { node: usize, datagrams: Datagrams },
    /// To a presence node, over the link's connection: datagrams, because by UDP they do not
    /// arrive.
    Bundled { node: usize, datagrams: Datagrams },
    /// For the link to a presence node: this beat is to be looked for there.
    Sample { node: usize, sample: Sample },
    /// To a presence node: questions. An answer comes as
    /// [`Mail::Answered`](crate::engine::Mail::Answered).
    Asks {
        node: usize,
        /// Whose state is wanted; each is a legal id, and may have been asked for before.
        users: Vec<Box<str>>,
        /// A pass over all who are watched has come to these. Else somebody has begun to watch
        /// them.
        anew: bool,
        /// With these this shard's part of this pass is through (see
        /// [`Mail::Reask`](crate::engine::Mail::Reask)).
        through: Option<u64>,
    },
    /// To a presence node: these have been logged out here.
    LogOut { node: usize, logged_out: LoggedOut },
    /// To the bridge to a fleet: these have been logged out here at that time. The request waits
    /// for a [`Mail::Taken`](crate::engine::Mail::Taken) of each.
    FleetLogOut {
        users: Vec<UserBuf>,
        at: Unix,
        asker: Asker,
    },
    /// To a presence node, or a fleet: what a user says of itself. What came of it comes as
    /// [`Mail::Taken`](crate::engine::Mail::Taken).
    Say { node: usize, say: Say },
    /// To a presence node: a part of somebody's query or beats. What came of it comes as
    /// [`Mail::Passed`](crate::engine::Mail::Passed).
    Pass { node: usize, part: Part },
    /// To another node of the fleet, where it takes datagrams: beats and goodbyes of users whose
    /// home it is.
    Homeward {
        to: SocketAddr,
        datagrams: Datagrams,
    },
    /// To the bridge to a fleet: what other nodes had to say.
    Words(Vec<UserBuf>),
    /// To the bridge to a fleet: what is heard here of these may have changed.
    Heard(Vec<Slot>),
    /// To the bridge to a fleet: these have said goodbye, at these times.
    Goodbyes(Vec<(UserBuf, Unix)>),
    /// To the bridge to a fleet: whether the ticket of this id was used at another node. The stream
    /// that comes by it waits for [`Mail::Ran`](crate::engine::Mail::Ran).
    Ticket {
        asker: Asker,
        id: [u8; TICKET_ID_BYTES],
    },
    /// To the bridge to a fleet: a page of those who are online, which comes as
    /// [`Mail::Listed`](crate::engine::Mail::Listed).
    Online {
        asker: Asker,
        /// Only what was published since then. None: who is online.
        since: Option<Unix>,
        /// What their ids begin with.
        prefix: Box<str>,
        limit: usize,
        /// Where the last page has ended; nothing is the beginning.
        place: Box<[u8]>,
    },
    /// To the bridge to a fleet: a page of streams goes on at another node. What came of it comes
    /// as [`Mail::Abroad`](crate::engine::Mail::Abroad).
    Streams(StreamsAsk),
    /// To the bridge to a fleet: a call is another node's. What came of it comes as
    /// [`Mail::Forwarded`](crate::engine::Mail::Forwarded).
    Forward(Box<Forward>),
    /// To the bridge to a fleet: this user is to be erased. What came of it comes as
    /// [`Mail::Taken`](crate::engine::Mail::Taken).
    Erase(UserBuf, Asker),
    /// To every real-time node, and to webhooks: transitions.
    Publish(Arc<Decided>),
    /// To every real-time node: a question. An answer comes as
    /// [`Mail::Holders`](crate::engine::Mail::Holders).
    Holders(Arc<Holders>),
    /// To every real-time node: these have been logged out, and their streams end.
    EndStreams(Arc<LoggedOut>),
    /// To webhooks: somebody was erased.
    Erased(Arc<Erasure>),
    /// To whoever keeps revocations, and to every node: the journal has news. The request waits for
    /// [`Mail::Ran`](crate::engine::Mail::Ran): they are on disk, or a fleet's database has them.
    Revoked(Option<Asker>),
}

impl Outbound {
    /// The node that it is for, by its index; None: for all.
    pub fn node(&self) -> Option<usize> {
        match self {
            Outbound::Beats { node, .. }
            | Outbound::Bundled { node, .. }
            | Outbound::Sample { node, .. }
            | Outbound::Asks { node, .. }
            | Outbound::LogOut { node, .. }
            | Outbound::Say { node, .. }
            | Outbound::Pass { node, .. } => Some(*node),
            Outbound::Homeward { .. }
            | Outbound::Words(_)
            | Outbound::Heard(_)
            | Outbound::Goodbyes(_)
            | Outbound::Ticket { .. }
            | Outbound::Online { .. }
            | Outbound::Streams(_)
            | Outbound::Forward(_)
            | Outbound::Erase(..)
            | Outbound::FleetLogOut { .. }
            | Outbound::Publish(_)
            | Outbound::Holders(_)
            | Outbound::EndStreams(_)
            | Outbound::Erased(_)
            | Outbound::Revoked(_) => None,
        }
    }
}
