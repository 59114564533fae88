//! What a shard does for a request that is parked on another.
//!
//! Owns the words: errands, who waits for them, what came of them, and the goodbyes that they
//! carry. Sends none and runs none: that is `calls/errands.rs`.

use std::sync::Arc;

use super::conn::permits::Tag;
use crate::realtime::ConnId;
use crate::slot::Slot;
use crate::time::{Mono, Now, Unix};
use crate::wire::UserBuf;

/// An errand.
#[derive(Debug)]
pub struct Errand {
    pub(super) task: Task,
    pub(super) asker: Asker,
}

/// The request that waits for an errand, and until when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asker {
    /// Index of its shard.
    pub shard: u16,
    pub conn: ConnId,
    pub until: Mono,
}

/// When users were logged out, by the clock of their presence node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LoggedOutAt {
    /// Now and here: whoever is here.
    Now,
    /// There, where this node was told of it.
    Then(Unix),
}

impl LoggedOutAt {
    /// Streams that were opened since then are not meant. None: all are.
    pub(super) fn here(self) -> Option<Unix> {
        match self {
            LoggedOutAt::Now => None,
            LoggedOutAt::Then(at) => Some(at),
        }
    }

    /// How it is ordered against beats.
    pub(super) fn time(self) -> Unix {
        self.here().unwrap_or(Unix::LATEST)
    }
}

#[derive(Debug)]
pub(super) enum Task {
    /// Look at these slots, which the shard owns.
    Look(Vec<Slot>),
    /// Put these goodbyes off, of slots which the shard owns, until then.
    PutOff(Vec<PutOff>, Mono),
    /// Take a goodbye that names a stream of the shard's.
    Goodbye(Goodbye),
    /// End all streams of these publishers that are open by now; of a log-out elsewhere, those that
    /// were open then.
    LogOut(Arc<[Slot]>, Option<Unix>),
    /// Look for streams of the shard's.
    Seek(Seek),
    /// Say what is known of a stream of the shard's.
    Describe(ConnId),
    /// End a stream of the shard's, for this operator.
    End(ConnId, Arc<str>),
}

/// Which streams of a shard are looked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Seek {
    /// Those of this user; None: all.
    pub(super) user: Option<UserBuf>,
    /// From this place on.
    pub(super) from: u32,
    /// So many at most.
    pub(super) most: usize,
    /// What has been found by then is told.
    pub(super) until: Mono,
}

/// A goodbye that came over a connection.
#[derive(Clone, Debug)]
pub(super) struct Goodbye {
    pub(super) users: Vec<UserBuf>,
    /// This one ends, and its holder says goodbye.
    pub(super) stream: Option<ConnId>,
    /// Whose token said it, if anybody is asked for one: the stream must be theirs.
    pub(super) holder: Option<Tag>,
    /// It counts so much later, in ms, if nothing is heard meanwhile.
    pub(super) after_ms: u64,
}

/// A goodbye that waits: it counts if no beat of its user has come since.
#[derive(Clone, Copy, Debug)]
pub(super) struct PutOff {
    pub(super) slot: Slot,
    pub(super) given_at: Unix,
    /// When it was said.
    pub(super) said: Now,
}

impl PutOff {
    /// The wall clock has been set back since: what has come since may look older than it.
    pub(super) fn is_of_another_clock(&self, now: Now) -> bool {
        let elapsed_ms = now.mono.ms_since(self.said.mono);
        now.unix < self.said.unix.plus_ms(elapsed_ms.saturating_sub(1))
    }
}

/// What came of an errand, the worst last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Verdict {
    Done,
    /// There is no such stream.
    UnknownStream,
    /// Too much of the kind waits already.
    Full,
    /// It could not be written to disk.
    NotKept,
    /// The ticket was used at another node.
    Spent,
}

impl Errand {
    /// Who waits for it.
    pub fn asker(&self) -> Asker {
        self.asker
    }

    /// How much of a turn's budget of mail it is.
    pub(super) fn weight(&self) -> usize {
        let items = match &self.task {
            Task::Look(slots) => slots.len(),
            Task::PutOff(goodbyes, _) => goodbyes.len(),
            Task::Goodbye(goodbye) => goodbye.users.len(),
            Task::LogOut(slots, _) => slots.len(),
            Task::Seek(_) | Task::Describe(_) | Task::End(..) => 0,
        };
        1 + items / 64
    }
}
