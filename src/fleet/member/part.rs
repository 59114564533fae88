//! What a node knows of one partition, and what it has to say there.
//!
//! Owns the state. Decides nothing.

use std::collections::{BTreeSet, VecDeque};

use super::ends::Ends;
use super::local::Ticket;
use crate::fleet::flags::{Saying, UserFlags};
use crate::fleet::held::{Gone, Kinds};
use crate::fleet::partition::Partition;
use crate::fleet::traffic::Server;
use crate::fleet::{Birth, Life};
use crate::time::{Mono, Unix};
use crate::wire::{User, UserBuf};

/// A log-out or an erasure is said to be done so long after it was, in ms: longer than one step of
/// the clock by which beats and endings are put in order (16 ms), and than what two nodes' views of
/// Redis' clock differ by. So a beat that comes anywhere behind the answer counts.
const ENDED_MS: u64 = 20;

/// Whether a partition's messages are heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hearing {
    /// Not subscribed.
    Behind,
    /// Subscribed; where its numbers are is to be read.
    Base,
    /// What it says next is the next message.
    InStep,
}

/// Up to where a partition is known, on one server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Known {
    pub(super) server: Server,
    /// None: nobody has ever written to it.
    pub(super) birth: Option<Birth>,
    pub(super) number: u64,
}

/// Somebody of whom is to be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Wanted {
    Slot(u32),
    Name(UserBuf),
}

/// What is said of a user once, whatever may be claimed of it.
#[derive(Clone, Debug)]
pub(super) struct Act {
    pub(super) user: UserBuf,
    pub(super) what: Said,
    /// When this node was told.
    pub(super) said_at: Mono,
    /// Who waits until it is done.
    pub(super) ticket: Option<Ticket>,
    /// Each call that may have been done with the number that is next has it.
    pub(super) is_in_all: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Said {
    Goodbye {
        kinds: Kinds,
        sent: Unix,
        last_active: Unix,
    },
    LogOut(Unix),
    Flags(Saying),
    Erase,
    /// It has been away for so long that nothing is kept of it.
    Forget,
    /// Nobody here has a slot for whom this life claims.
    Stray,
}

/// One user of a call under way.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) user: UserBuf,
    pub(super) slot: Option<u32>,
    pub(super) op: Op,
}

impl Entry {
    /// What is said once with it.
    pub(super) fn act(&self) -> Option<&Act> {
        match &self.op {
            Op::Act(act, _) => Some(act),
            Op::Claim(_) | Op::Withdraw(..) => None,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Op {
    /// Bits of kinds.
    Claim(u16),
    /// Bits of kinds, and what is kept of whoever goes by it.
    Withdraw(u16, Gone),
    Act(Act, Gone),
}

/// A read of the ring: numbers that were missed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Missed {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) is_asked: bool,
}

/// What is taken back for a life that is dead, or of this one for who has no slot.
#[derive(Debug)]
pub(super) struct Reap {
    pub(super) life: Life,
    pub(super) last_active: Unix,
    pub(super) is_fenced: bool,
    pub(super) cursor: Vec<u8>,
    pub(super) found: VecDeque<(UserBuf, UserFlags)>,
    /// All was looked through.
    pub(super) is_through: bool,
    pub(super) count: u32,
    pub(super) is_asked: bool,
    pub(super) next_at: Mono,
}

#[derive(Debug)]
pub(super) struct Part {
    pub(super) id: Partition,
    pub(super) due: Mono,

    /// Who was subscribed to, or who answered last.
    pub(super) server: Option<Server>,
    pub(super) settle_until: Mono,
    pub(super) hearing: Hearing,
    pub(super) behind_since: Mono,
    pub(super) known: Option<Known>,
    /// Messages that came before the base was read.
    pub(super) early: Vec<Box<[u8]>>,
    pub(super) missed: Option<Missed>,
    /// A look says that there are messages up to that one, which did not come.
    pub(super) suspect: Option<u64>,
    pub(super) look_at: Mono,
    /// There is room for one command of its to that server, for which it waited.
    pub(super) turn: Option<Server>,
    pub(super) is_looking: bool,

    /// All nodes are to be told to look at it.
    pub(super) alarms: bool,
    /// Its server has refused what concerns it.
    pub(super) refused_at: Option<Mono>,

    pub(super) asks: VecDeque<Wanted>,
    pub(super) reads: u32,
    /// Nothing is read before.
    pub(super) reads_at: Mono,
    /// From which slot on all are to be read.
    pub(super) walk: Option<u32>,
    pub(super) walk_again_at: Option<Mono>,
    /// What this life said may be lost, and not all have been read since.
    pub(super) is_lossy: bool,
    /// Those of whom this node may have to say when they went, and when to look.
    pub(super) unsaid: BTreeSet<u32>,
    pub(super) unsaid_at: Mono,
    pub(super) names: BTreeSet<UserBuf>,
    /// Whom messages named while something is under way that may be older.
    pub(super) touched: Vec<(u64, UserBuf)>,
    /// What is known of whom as of a message that has not come yet.
    pub(super) read_as_of: Vec<(u64, UserBuf)>,
    pub(super) claimed_as_of: Vec<(u64, UserBuf)>,
    pub(super) alone: Vec<u32>,
    pub(super) ends: Ends,

    pub(super) k: u64,
    pub(super) is_enrolled: bool,
    /// The next call's number leaps.
    pub(super) leaps: bool,
    pub(super) count: u32,
    pub(super) count_off: u32,
    pub(super) acts: VecDeque<Act>,
    /// What was done as of that message, which is yet to be heard; and when that may be said.
    pub(super) done: Vec<(u64, Mono, Ticket)>,
    pub(super) marks: VecDeque<u32>,
    pub(super) held: VecDeque<u32>,
    pub(super) flying: Option<Vec<Entry>>,
    /// Of calls with the number that is next, which may have been done or not.
    pub(super) uncertain: Vec<Entry>,
    pub(super) retry_at: Mono,
    pub(super) failures: u32,
    pub(super) spoke_at: Mono,
    pub(super) corrections: Vec<(UserBuf, Gone)>,
    /// Of whom nothing may stand in a bucket.
    pub(super) erased: Vec<UserBuf>,

    pub(super) reap: Option<Reap>,
    pub(super) reap_at: Mono,
}

impl Part {
    pub(super) fn new(id: Partition) -> Part {
        Part {
            id,
            due: Mono::NEVER,
            server: None,
            settle_until: Mono::default(),
            hearing: Hearing::Behind,
            behind_since: Mono::default(),
            known: None,
            early: Vec::new(),
            missed: None,
            suspect: None,
            look_at: Mono::default(),
            turn: None,
            is_looking: false,
            alarms: false,
            refused_at: None,
            asks: VecDeque::new(),
            reads: 0,
            reads_at: Mono::default(),
            walk: None,
            walk_again_at: None,
            is_lossy: false,
            unsaid: BTreeSet::new(),
            unsaid_at: Mono::NEVER,
            names: BTreeSet::new(),
            touched: Vec::new(),
            read_as_of: Vec::new(),
            claimed_as_of: Vec::new(),
            alone: Vec::new(),
            ends: Ends::default(),
            k: 0,
            is_enrolled: false,
            leaps: true,
            count: 0,
            count_off: 0,
            acts: VecDeque::new(),
            done: Vec::new(),
            marks: VecDeque::new(),
            held: VecDeque::new(),
            flying: None,
            uncertain: Vec::new(),
            retry_at: Mono::default(),
            failures: 0,
            spoke_at: Mono::default(),
            corrections: Vec::new(),
            erased: Vec::new(),
            reap: None,
            reap_at: Mono::default(),
        }
    }

    /// Whether a user is waited for by name.
    pub(super) fn awaits(&self, user: User<'_>) -> bool {
        !self.names.is_empty() && self.names.contains(&UserBuf::from(user))
    }

    /// Whether a message with a number above that has named the user while something was under way.
    pub(super) fn is_touched(&self, user: User<'_>, after: u64) -> bool {
        let mut touched = self.touched.iter();
        touched.any(|(number, named)| *number > after && named.user() == user)
    }

    /// Whether what is known of the user is newer than message `number`.
    pub(super) fn is_read(&self, user: User<'_>, number: u64) -> bool {
        let mut read = self.read_as_of.iter();
        read.any(|(as_of, read)| *as_of >= number && read.user() == user)
    }

    /// Whether what is claimed of the user was said after message `number`.
    pub(super) fn is_claimed(&self, user: User<'_>, number: u64) -> bool {
        let mut claimed = self.claimed_as_of.iter();
        claimed.any(|(as_of, claimed)| *as_of >= number && claimed.user() == user)
    }

    /// A user's flags, once what this node has yet to say of them is said.
    pub(super) fn flags_to_be(&self, user: User<'_>, flags: UserFlags) -> UserFlags {
        let mut flags = flags;
        for act in self.acts.iter().filter(|act| act.user.user() == user) {
            if let Said::Flags(said) = act.what {
                flags = flags.after(said);
            }
        }
        flags
    }

    /// What has been done, and whose message has been heard; all of it if none is heard now.
    pub(super) fn take_done(&mut self, now: Mono) -> Vec<Ticket> {
        let number = match (self.hearing, self.known) {
            (Hearing::InStep, Some(known)) => known.number,
            _ => u64::MAX,
        };
        let is_over = |(of, due, _): &mut (u64, Mono, Ticket)| *of <= number && now >= *due;
        let heard = self.done.extract_if(.., is_over);
        heard.map(|(.., ticket)| ticket).collect()
    }

    /// When something of it is to be said that has been heard.
    pub(super) fn done_due(&self, now: Mono) -> Mono {
        let due = self.done.iter().map(|(_, due, _)| *due);
        due.filter(|due| *due > now).min().unwrap_or(Mono::NEVER)
    }

    /// An act has been done, as of message `number`.
    pub(super) fn note_done(&mut self, act: &Act, number: u64, now: Mono) {
        let waits_ms = match act.what {
            Said::LogOut(_) | Said::Erase => ENDED_MS,
            _ => 0,
        };
        let ticket = act.ticket.into_iter();
        self.done
            .extend(ticket.map(|ticket| (number, now.plus_ms(waits_ms), ticket)));
    }

    /// Forgets what nothing under way can contradict any more.
    pub(super) fn tidy(&mut self) {
        let is_idle = self.reads == 0 && self.flying.is_none() && self.missed.is_none();
        if is_idle {
            self.touched.clear();
            let number = self.known.map_or(0, |known| known.number);
            self.read_as_of.retain(|(as_of, _)| *as_of > number);
            self.claimed_as_of.retain(|(as_of, _)| *as_of > number);
        }
    }

    /// All that is known counts for nothing any more: all is read again.
    pub(super) fn distrust(&mut self) {
        self.known = None;
        self.missed = None;
        self.suspect = None;
        self.read_as_of.clear();
        self.claimed_as_of.clear();
    }
}
