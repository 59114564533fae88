//! What a call comes to.
//!
//! Owns the vocabulary between the functions that serve calls and what carries their word out.

use std::sync::Arc;

use super::caller::NewPermit;
use super::ignored::Ignored;
use super::online_in_fleet::Round;
use super::passed_on::PassedOn;
use super::refused::Refused;
use super::streams::Listing;
use crate::auth::Reserved;
use crate::engine::errand::{Goodbye, LoggedOutAt, Verdict};
use crate::presence::InternFault;
use crate::slot::Slot;
use crate::time::Mono;
use crate::wire::UserBuf;
use crate::wire::record::{StreamAsk, Vouch};
use crate::wire::response::{Answer, problems};

/// What a call comes to.
pub(in crate::engine) enum Served {
    /// This is answered.
    Answer(Answer),
    /// The connection becomes a stream.
    Stream(Box<NewStream>),
    /// A stream is refused for load, and this is why.
    Overloaded(&'static str),
    /// Another shard says what is answered.
    Parked {
        /// So long it is waited for.
        until: Mono,
        /// What is said if it has not come by then.
        unanswered: &'static str,
        /// What of the request was refused already.
        refused: Refused,
        /// It waits for errands.
        waits: Option<Box<Waits>>,
    },
}

/// A request that waits for errands (`calls/errands.rs`).
#[derive(Debug)]
pub(in crate::engine) struct Waits {
    /// So many are under way.
    pub(in crate::engine) errands: i32,
    /// What came of those that are not.
    pub(in crate::engine) verdict: Verdict,
    pub(in crate::engine) then: Then,
}

/// What a request comes to once its errands have been run.
#[derive(Debug)]
pub(in crate::engine) enum Then {
    Answer(Answer),
    Stream(Box<NewStream>),
    /// The fleet has said whether the ticket is good by which a stream is opened.
    Opens(Box<Opening>),
    /// The holder of this slot is told what it truly is.
    Own(Slot),
    /// A node is told so of all of these.
    Owns(Vec<Slot>),
    /// Presence nodes have answered.
    PassedOn(Box<PassedOn>),
    /// All shards know that these users are logged out: their beats count no more.
    LogOut(Box<LogOut>, Answer),
    /// Shards say which streams they have, one after the other.
    Streams(Box<Listing>),
    /// The fleet's database says who is online.
    Online(Box<Round>),
    /// The shard that holds a stream says what is known of it.
    Described,
    /// The shard that holds a stream ends it.
    Ended,
    /// The node that has the stream that is left ends it. If it has gone, these say goodbye here.
    Left(Box<(Goodbye, Answer)>),
}

/// Users who are being logged out everywhere.
#[derive(Debug)]
pub(in crate::engine) struct LogOut {
    /// Those who have one here.
    pub(super) slots: Arc<[Slot]>,
    /// Of whom the fleet is told: all, at a node of a fleet.
    pub(super) users: Vec<UserBuf>,
    pub(super) at: LoggedOutAt,
}

/// A stream that is asked for, and for which there is room.
#[derive(Debug)]
pub(in crate::engine) struct Opening {
    pub(super) ask: StreamAsk,
    pub(super) watch: Vec<UserBuf>,
    pub(super) refused: Refused,
    pub(super) ignored: Ignored,
    pub(super) permit: Option<NewPermit>,
    pub(super) ticket: Option<Reserved>,
}

impl From<Answer> for Served {
    fn from(answer: Answer) -> Served {
        Served::Answer(answer)
    }
}

/// For a refusal that load explains.
pub(super) const RETRY_AFTER: &str = "Retry-After: 5\r\n";

/// A stream that may begin.
#[derive(Debug)]
pub(in crate::engine) struct NewStream {
    pub(super) publisher: Option<Slot>,
    /// Who is to be its publisher and could not be made yet.
    pub(super) waits: Option<UserBuf>,
    /// Who beats for the publisher.
    pub(super) vouch: Vouch,
    pub(super) watch: Vec<UserBuf>,
    /// Whom it shall not watch, for they are no users.
    pub(super) refused: Refused,
    /// What of its query is passed over.
    pub(super) ignored: Ignored,
    /// Where it was before, as its reader says it.
    pub(super) last_event_id: Option<String>,
    /// Its publisher has been vouched for.
    pub(super) vouched: bool,
    /// What it keeps of its opener's token.
    pub(super) permit: Option<NewPermit>,
    /// By what it comes, if that is good for one stream: spent with its hello, and else given back.
    pub(super) ticket: Option<Reserved>,
    /// It is told the node's figures, and of the node in words if so; None: it is told of users.
    pub(super) follows: Option<bool>,
}

impl NewStream {
    /// One that is told the node's figures, and of nobody.
    pub(super) fn of_figures(sees_node: bool, permit: Option<NewPermit>) -> NewStream {
        NewStream {
            publisher: None,
            waits: None,
            vouch: Vouch::default(),
            watch: Vec::new(),
            refused: Refused::default(),
            ignored: Ignored::default(),
            last_event_id: None,
            vouched: false,
            permit,
            ticket: None,
            follows: Some(sees_node),
        }
    }

    /// Its holder beats for itself.
    pub(super) fn is_by_holder(&self) -> bool {
        self.vouch == Vouch::Holder && (self.publisher.is_some() || self.waits.is_some())
    }
}

/// A refusal that load explains.
pub(in crate::engine) fn overloaded(detail: &str) -> Answer {
    Answer::problem(problems::OVERLOADED, detail).with_lines(RETRY_AFTER)
}

/// Why a user could not be taken in.
pub(super) fn intern_detail(fault: InternFault) -> &'static str {
    match fault {
        InternFault::Full => "the server knows as many users as it may (users_max)",
        InternFault::TooFast => {
            "new users are made at the highest rate already (new-users-per-second-max)"
        }
        InternFault::NoSpace => {
            "the server's data folder cannot grow: its disk is full, its files have reached a \
             limit, or users.log needs a restart or `greendot store compact`; its log says which"
        }
    }
}
