//! What engines tell each other.
//!
//! Owns the vocabulary between shards and the letters waiting to be posted. Mail is a hint, never
//! the truth: the truth is in the published states, so mail that a full mailbox does not take costs
//! a resync and nothing else. Edits, errands and what comes back of them are the exception:
//! somebody waits for them.

use std::collections::VecDeque;
use std::sync::Arc;

use super::calls::caller::NewPermit;
use super::conn::permits::Tag;
use super::errand::{Asker, Errand, Verdict};
use super::upstream::{Forwarded, NodeStreams, Say};
use crate::auth::{Grant, TOKEN_BYTES_MAX};
use crate::presence::Transition;
use crate::realtime::ConnId;
use crate::slot::Slot;
use crate::time::{Mono, Unix};
use crate::wire::UserBuf;
use crate::wire::record::Told;

/// Index of a shard.
pub type ShardId = u16;

/// A piece of mail.
#[derive(Clone, Debug)]
pub enum Mail {
    /// From a slot's owner to all others: what it decided in one turn.
    Transitions(Arc<Decided>),
    /// To a slot's owner: these need a look before the next sweep (a beat while offline, or a
    /// goodbye).
    Look(Arc<[Slot]>),
    /// To the shard that holds a stream: edit its watch list.
    Edit(Arc<Edit>),
    /// To all shards of a real-time node: what its presence nodes answered.
    Answered(Arc<Answered>),
    /// To all shards of a real-time node: ask a presence node about those who are watched and
    /// belong to it.
    Reask {
        node: usize,
        /// Which pass this is of those to this node; a shard says when its own is through.
        pass: u64,
        whom: Whom,
        /// When: it may have to hear of everybody first.
        not_before: Mono,
    },
    /// To all shards of a real-time node: all that every shard's pass asked for has been answered,
    /// and the answers are in the mail before this.
    Settled { node: usize, pass: u64 },
    /// To all shards of a real-time node: up to when a presence node has told everything, and what
    /// it told is in the mail before this.
    Told { node: usize, up_to: Mono },
    /// To all shards of a real-time node: whether a presence node's beats go over the link's
    /// connection too, because datagrams do not arrive there.
    ByConnection { node: usize, on: bool },
    /// To all shards of a real-time node: a beat did not arrive; send and look for another one, if
    /// its user still has a stream.
    Resample { node: usize, user: Arc<str> },
    /// To all shards of a real-time node: a presence node may have lost beats; vouch for all who
    /// belong to it within a short time.
    Revouch {
        node: usize,
        /// When it was found to be back: a shard that reads this late is no later for it.
        found_at: Mono,
    },
    /// To all shards of a presence node, for one: at which users' streams a real-time node looked.
    Holders(Arc<Held>),
    /// To all shards of a real-time node, for those that wait: what came of what users said of
    /// themselves.
    Taken(Arc<[Taken]>),
    /// To all shards of a real-time node, for those that wait: what presence nodes have answered to
    /// parts of their calls.
    Passed(Arc<[Passed]>),
    /// To a shard: what a request that is parked elsewhere waits for.
    Errand(Arc<Errand>),
    /// Back: it has been run.
    Ran {
        conn: ConnId,
        /// So many more errands have come of it.
        more: i32,
        verdict: Verdict,
    },
    /// Back: what was seen of the streams there, for a request that lists them.
    Sought { conn: ConnId, sought: Arc<Sought> },
    /// To a shard of a node of a fleet: a page of those who are online, for a request that waits.
    Listed { conn: ConnId, listed: Arc<Listed> },
    /// To a shard of a node of a fleet: what another node says of its streams, for a request that
    /// waits.
    Abroad {
        conn: ConnId,
        told: Arc<NodeStreams>,
    },
    /// To a shard of a node of a fleet: what another node answers a call, for the request that
    /// waits.
    Forwarded { conn: ConnId, told: Arc<Forwarded> },
    /// To all shards of a node of a fleet: these were logged out at another node, and their streams
    /// end.
    LoggedOut(Arc<[Slot]>),
    /// To all other shards: the user of this slot has been forgotten, here or, at a real-time node,
    /// by its presence node; there streams that were opened after that time are spared.
    Forget(Slot, Option<Unix>),
    /// Back: what the edit came to.
    Edited {
        conn: ConnId,
        /// The new length of the list, or why not.
        outcome: EditOutcome,
    },
    /// To the shard that holds streams: their holders have beaten.
    StreamBeats {
        /// The shard that asks.
        from: ShardId,
        beats: Arc<[StreamBeat]>,
    },
    /// Back: who has asked, and what the beat came to.
    StreamBeaten(Arc<[(ConnId, BeatFound)]>),
}

/// A page of those who are online in a fleet.
#[derive(Debug)]
pub struct Listed {
    /// None: the database has not said.
    pub states: Option<Vec<Told>>,
    /// Where the walk goes on. None: it is over.
    pub next: Option<Box<[u8]>>,
}

/// Streams of one shard, as an operator is told them.
#[derive(PartialEq, Eq, Debug)]
pub struct Sought {
    /// A JSON object each, with commas between them.
    pub(super) rows: Vec<u8>,
    /// How many they are.
    pub(super) found: usize,
    /// The place to go on from. None: all have been looked at.
    pub(super) next: Option<u32>,
}

/// What a real-time node has answered to [`Holders`](super::Holders).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    /// Who asked.
    pub shard: ShardId,
    /// To which question, and whether a stream of its user is open there.
    pub answers: Vec<(u64, bool)>,
}

/// What came of what a user has said of itself, at its presence node.
#[derive(Clone, Debug)]
pub struct Taken {
    /// The request that waits for it.
    pub asker: Asker,
    /// The user, and whether it is invisible, as it alone is told. None: the node does not answer.
    pub own: Option<(Told, bool)>,
}

/// What a presence node has answered to a part of a call.
#[derive(Clone, Debug)]
pub struct Passed {
    /// The request that waits for it.
    pub asker: Asker,
    /// Which of its parts it is.
    pub index: usize,
    /// None: the node does not answer.
    pub came: Option<Came>,
}

/// What came of a part of a call, in the order of the users in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Came {
    States(Vec<Told>),
    /// The user's own state, and whether it is invisible. None: nobody has heard of it.
    Own(Option<(Told, bool)>),
    Beaten {
        /// Who is invisible, and its place.
        invisible: Vec<(usize, UserBuf)>,
        /// Whose beat was refused, and the word that says why.
        refused: Vec<(usize, Box<str>)>,
    },
}

impl Passed {
    fn weight(&self) -> usize {
        1 + match &self.came {
            Some(Came::States(states)) => states.len(),
            Some(Came::Beaten { invisible, refused }) => invisible.len() + refused.len(),
            Some(Came::Own(_)) | None => 0,
        }
    }
}

/// A beat of a stream's holder, over another connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamBeat {
    /// The stream, of the shard addressed; the asker has shown that it knows it.
    pub stream: ConnId,
    /// Whose token said it, if anybody is asked for one: the stream must be theirs.
    pub(super) holder: Option<Tag>,
    /// Nobody is at its device.
    pub(super) unattended: bool,
    /// Who waits for the answer.
    pub asker: ConnId,
}

/// What a beat of a stream's holder found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BeatFound {
    /// The stream, and it has a user.
    Holder,
    /// The stream, whose user is new and could not be made yet.
    TooFast,
    /// There is no such stream.
    Nobody,
    /// It makes nobody a publisher.
    NoUser,
}

/// Who is to be asked about, of those who are watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whom {
    /// Everybody: something may have been missed.
    Everybody,
    /// Those whom nobody has answered for: a question or its answer may be lost.
    Unsure,
}

/// What presence nodes answered, taken over: see
/// [`adopt_answers`](super::adopt_answers).
#[derive(Debug)]
pub struct Answered {
    /// What is news.
    pub decided: Decided,
    /// Who has never been seen and has no slot.
    pub unseen: Vec<Box<str>>,
    /// All others who were answered for, news or not.
    pub sure: Vec<Slot>,
}

/// The transitions of one turn of one shard.
#[derive(Debug)]
pub struct Decided {
    /// When they were decided, for the latency histogram.
    pub at: Mono,
    /// What was decided.
    pub transitions: Vec<Transition>,
}

/// An edit of a stream's watch list.
#[derive(Debug)]
pub struct Edit {
    /// The stream, of the shard addressed; the asker has shown that it knows it.
    pub stream: ConnId,
    /// Whose token asks, if anybody is asked for one: the stream must be theirs.
    pub(super) holder: Option<Tag>,
    pub(super) change: Change,
    /// Who waits for the outcome.
    pub asker: (ShardId, ConnId),
    pub until: Mono,
}

/// What an edit changes.
#[derive(Debug)]
pub(super) enum Change {
    /// Users to watch, and users to watch no longer.
    List {
        add: Vec<UserBuf>,
        remove: Vec<UserBuf>,
    },
    /// The token by which the stream is open, and whoever it does not let watch.
    Token(Box<Grant>, NewPermit),
}

/// What an edit came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EditOutcome {
    /// The list has so many watches.
    Watching(usize),
    /// The stream has another token.
    Renewed(Box<Renewed>),
    /// The token has been revoked meanwhile.
    Revoked,
    /// Its user is online by it, and the token is a viewer's.
    Viewer,
    /// There is no such stream.
    Unknown,
    /// The list would be longer than watches_per_stream_max.
    StreamFull,
    /// The shard's watches_per_shard_max is reached.
    ShardFull,
    /// The shard's names_bytes_max is.
    NamesFull,
    /// The holder's mailbox is full.
    Busy,
}

/// What a stream's new token came to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Renewed {
    /// The list has so many watches now.
    pub watching: usize,
    /// Some of whom the token does not let watch.
    pub dropped: Vec<UserBuf>,
    /// How many they were.
    pub dropped_total: usize,
}

/// What a mailbox must know of a piece.
pub trait Weighed {
    /// What becomes of it in a full mailbox.
    fn if_full(&self) -> IfFull;
    /// What it holds in memory beside its place, if it may be as long as a request's body: it then
    /// waits apart, so that nothing queues behind it, and bounces if there is no room.
    fn long_bytes(&self) -> Option<usize>;
}

impl Weighed for Mail {
    fn if_full(&self) -> IfFull {
        Mail::if_full(self)
    }

    fn long_bytes(&self) -> Option<usize> {
        Mail::long_bytes(self)
    }
}

/// What must become of a piece of mail that finds a full mailbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IfFull {
    /// Dropped: the addressee is told to resync, which replaces it.
    Resync,
    /// Handed back to the sender, who answers for it.
    Bounce,
    /// Taken all the same; its senders bound how many there can be.
    Deliver,
}

impl Mail {
    /// What becomes of it in a full mailbox.
    pub fn if_full(&self) -> IfFull {
        if self.must_arrive() {
            IfFull::Deliver
        } else if self.bounces() {
            IfFull::Bounce
        } else {
            IfFull::Resync
        }
    }

    /// What an edit holds in memory beside its place in a mailbox: its users, each with what the
    /// allocator adds. What other mail holds is shared, or a thousand users at most.
    pub fn long_bytes(&self) -> Option<usize> {
        const USER_OVERHEAD_BYTES: usize = 16 + 24;
        let Mail::Edit(edit) = self else {
            return None;
        };
        let Change::List { add, remove } = &edit.change else {
            return Some(TOKEN_BYTES_MAX);
        };
        let users = add.iter().chain(remove);
        let bytes = users.map(|user| user.as_str().len() + USER_OVERHEAD_BYTES);
        Some(bytes.sum())
    }

    /// A full mailbox hands it back to its sender, who answers for it.
    pub fn bounces(&self) -> bool {
        matches!(
            self,
            Mail::Edit(_) | Mail::Errand(_) | Mail::StreamBeats { .. }
        )
    }

    /// How much of a turn's budget of mail it is: an edit of ten thousand watches is more than a
    /// hint.
    pub fn weight(&self) -> usize {
        match self {
            Mail::Edit(edit) => match &edit.change {
                Change::List { add, remove } => 1 + (add.len() + remove.len()) / 64,
                // All that the stream watches is looked at.
                Change::Token(..) => 64,
            },
            Mail::Transitions(decided) => 1 + decided.transitions.len() / 64,
            Mail::Look(slots) | Mail::LoggedOut(slots) => 1 + slots.len() / 64,
            Mail::Answered(answered) => 1 + (answered.sure.len() + answered.unseen.len()) / 64,
            Mail::StreamBeats { beats, .. } => 1 + beats.len() / 64,
            Mail::StreamBeaten(beaten) => 1 + beaten.len() / 64,
            Mail::Errand(errand) => errand.weight(),
            Mail::Holders(held) => 1 + held.answers.len() / 64,
            Mail::Taken(taken) => 1 + taken.len() / 64,
            Mail::Passed(passed) => 1 + passed.iter().map(Passed::weight).sum::<usize>() / 64,
            Mail::Sought { sought, .. } => 1 + sought.found / 64,
            Mail::Listed { listed, .. } => 1 + listed.states.as_ref().map_or(0, Vec::len) / 64,
            Mail::Abroad { told, .. } => 1 + told.found() / 64,
            Mail::Edited { .. }
            | Mail::Forwarded { .. }
            | Mail::Ran { .. }
            | Mail::Reask { .. }
            | Mail::Settled { .. }
            | Mail::Told { .. }
            | Mail::ByConnection { .. }
            | Mail::Resample { .. }
            | Mail::Revouch { .. }
            | Mail::Forget(..) => 1,
        }
    }

    /// It is taken even by a full mailbox: somebody waits, and those who wait are bounded
    /// elsewhere; or nothing else brings it.
    pub fn must_arrive(&self) -> bool {
        matches!(
            self,
            Mail::Edited { .. }
                | Mail::StreamBeaten(_)
                | Mail::Ran { .. }
                | Mail::Sought { .. }
                | Mail::Listed { .. }
                | Mail::Abroad { .. }
                | Mail::Forwarded { .. }
                | Mail::Holders(_)
                | Mail::Taken(_)
                | Mail::Passed(_)
                | Mail::Reask { .. }
                | Mail::Settled { .. }
                | Mail::ByConnection { .. }
                | Mail::Revouch { .. }
                | Mail::LoggedOut(_)
                | Mail::Forget(..)
        )
    }
}

/// Mail with its address.
#[derive(Clone, Debug)]
pub struct Letter {
    pub to: To,
    pub mail: Mail,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    /// One shard, never the sender's own.
    Shard(ShardId),
    /// All shards but the sender's.
    Others,
}

/// What waits to be posted: transitions and looks are gathered until the shard asks.
#[derive(Debug)]
pub(super) struct Posts {
    shard: ShardId,
    pub(super) decided: Vec<Transition>,
    decided_at: Mono,
    looks: Vec<Vec<Slot>>,
    beats: Vec<Vec<StreamBeat>>,
    beaten: Vec<Vec<(ConnId, BeatFound)>>,
    letters: VecDeque<Letter>,
    audience: Audience,
    /// For the bridge: what is heard of these may have changed.
    pub(super) heard: Vec<Slot>,
    /// For the bridge: who has said goodbye, and when.
    pub(super) goodbyes: Vec<(UserBuf, Unix)>,
    /// For the bridge: what other nodes had to say.
    pub(super) words: Vec<UserBuf>,
    /// For the bridge: what users say of themselves, and who is to be erased.
    pub(super) says: VecDeque<Say>,
    pub(super) erases: VecDeque<(UserBuf, Asker)>,
    /// Batches of transitions, for each whom they are yet to be told.
    for_shards: VecDeque<Arc<Decided>>,
    for_outside: VecDeque<Arc<Decided>>,
}

/// Who is told of transitions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Audience {
    /// The node's other shards, unless no stream of it watches anybody.
    pub(super) shards: bool,
    /// Real-time nodes, and webhooks.
    pub(super) outside: bool,
    /// The bridge to a fleet, of what is heard here.
    pub(super) bridge: bool,
}

impl Posts {
    pub(super) fn new(shard: ShardId, shards: ShardId, audience: Audience) -> Posts {
        let audience = Audience {
            shards: audience.shards && shards > 1,
            ..audience
        };
        Posts {
            shard,
            decided: Vec::new(),
            decided_at: Mono::default(),
            looks: vec![Vec::new(); usize::from(shards)],
            beats: vec![Vec::new(); usize::from(shards)],
            beaten: vec![Vec::new(); usize::from(shards)],
            letters: VecDeque::new(),
            audience,
            heard: Vec::new(),
            goodbyes: Vec::new(),
            words: Vec::new(),
            says: VecDeque::new(),
            erases: VecDeque::new(),
            for_shards: VecDeque::new(),
            for_outside: VecDeque::new(),
        }
    }

    pub(super) fn decide(&mut self, transition: Transition, at: Mono) {
        if self.decided.is_empty() {
            self.decided_at = at;
        }
        self.decided.push(transition);
    }

    pub(super) fn look(&mut self, owner: ShardId, slot: Slot) {
        self.looks[usize::from(owner)].push(slot);
    }

    /// A holder's beat, for the shard that holds its stream.
    pub(super) fn beat(&mut self, holder: ShardId, beat: StreamBeat) {
        self.beats[usize::from(holder)].push(beat);
    }

    /// What became of it, for the shard that asked.
    pub(super) fn beaten(&mut self, asker: ShardId, conn: ConnId, found: BeatFound) {
        self.beaten[usize::from(asker)].push((conn, found));
    }

    pub(super) fn letter(&mut self, to: ShardId, mail: Mail) {
        self.letters.push_back(Letter {
            to: To::Shard(to),
            mail,
        });
    }

    /// For all shards but this one.
    pub(super) fn letter_to_others(&mut self, mail: Mail) {
        if self.looks.len() > 1 {
            let to = To::Others;
            self.letters.push_back(Letter { to, mail });
        }
    }

    /// Whether there is a bridge, which is to be told what is heard here.
    pub(super) fn has_bridge(&self) -> bool {
        self.audience.bridge
    }

    /// What other nodes and webhooks must be told.
    pub(super) fn poll_publish(&mut self) -> Option<Arc<Decided>> {
        self.gather();
        self.for_outside.pop_front()
    }

    /// Makes a batch of what was decided.
    fn gather(&mut self) {
        if self.decided.is_empty() {
            return;
        }
        let Audience {
            shards, outside, ..
        } = self.audience;
        if !shards && !outside {
            self.decided.clear();
            return;
        }
        let decided = Arc::new(Decided {
            at: self.decided_at,
            transitions: std::mem::take(&mut self.decided),
        });
        if outside {
            self.for_outside.push_back(Arc::clone(&decided));
        }
        if shards {
            self.for_shards.push_back(decided);
        }
    }

    pub(super) fn poll(&mut self) -> Option<Letter> {
        self.gather();
        if let Some(decided) = self.for_shards.pop_front() {
            return Some(Letter {
                to: To::Others,
                mail: Mail::Transitions(decided),
            });
        }
        if let Some(owner) = self.looks.iter().position(|slots| !slots.is_empty()) {
            let slots = std::mem::take(&mut self.looks[owner]);
            return Some(Letter {
                to: To::Shard(owner as ShardId),
                mail: Mail::Look(slots.into()),
            });
        }
        if let Some((to, beats)) = take_first(&mut self.beats) {
            let from = self.shard;
            let mail = Mail::StreamBeats { from, beats };
            return Some(Letter { to, mail });
        }
        if let Some((to, beaten)) = take_first(&mut self.beaten) {
            let mail = Mail::StreamBeaten(beaten);
            return Some(Letter { to, mail });
        }
        self.letters.pop_front()
    }
}

/// The first list that is not empty, and whose it is.
fn take_first<T: Clone>(lists: &mut [Vec<T>]) -> Option<(To, Arc<[T]>)> {
    let shard = lists.iter().position(|list| !list.is_empty())?;
    let list = Arc::from(&lists[shard][..]);
    lists[shard].clear();
    Some((To::Shard(shard as ShardId), list))
}
