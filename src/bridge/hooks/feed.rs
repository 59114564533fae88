//! One partition, as one webhook's sender has it.
//!
//! Owns up to where its states have been handed over and told, and the claim on it.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use super::super::desk::before;
use super::missed::One;
use crate::engine::{HookState, HookStates};
use crate::fleet::Birth;
use crate::fleet::held::Gone;
use crate::fleet::hooks::Mark;
use crate::fleet::traffic::Server;
use crate::time::{Mono, Unix};
use crate::wire::UserBuf;

/// What is being done for a partition. One command of these is under way at a time.
#[derive(Debug, Default)]
pub(super) enum Stage {
    /// Nothing, until a message comes.
    #[default]
    Asleep,
    /// It is to be taken, or looked at, when that is due.
    Waiting,
    /// It is being taken, or looked at.
    Taking,
    /// Messages up to this one are being read.
    Ring,
    /// These wait for what a bucket says of some of them.
    Hidden(Batch),
    /// All users are being read.
    Walk(Scan),
    /// Of what was missed these are looked for; then all is handed over up to there.
    Missed { end: Option<Mark>, asked: Vec<One> },
    /// What comes next is the next message.
    Awake,
    /// Another node tells it, or will.
    Leaving,
}

/// States that are yet to be handed over.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) states: Vec<HookState>,
    /// Who hides since when; whether others saw them before is to be read.
    pub(super) hidden: Vec<(UserBuf, Unix, u64)>,
    /// With these all is told up to there.
    pub(super) end: Option<Mark>,
    /// When the first of them became so.
    pub(super) from: Unix,
    /// What a bucket does not say by then it will not say.
    pub(super) until: Mono,
    /// What need not be kept any more once these are handed over.
    pub(super) covers: Option<Covers>,
}

/// Of what was missed, what is handed over.
#[derive(Debug)]
pub(super) enum Covers {
    /// All that these messages say.
    Messages {
        birth: Birth,
        numbers: RangeInclusive<u64>,
    },
    /// What was heard up to there.
    Missed { order: u64 },
}

/// How far a walk over a partition has come.
#[derive(Debug)]
pub(super) struct Scan {
    /// Who is here since then.
    pub(super) here_since: Unix,
    /// Who has been away since then.
    pub(super) gone_since: Unix,
    /// 0: at those who are here; else in one of the buckets, counted from 1.
    pub(super) stage: u32,
    pub(super) cursor: u64,
    /// Another server has another order.
    pub(super) server: Option<Server>,
    /// Of a bucket, while it is read whether they are here.
    pub(super) away: Vec<(UserBuf, Gone)>,
    pub(super) end: Mark,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Feed {
    pub(super) is_ours: bool,
    pub(super) stage: Stage,
    /// When the stage is looked at again.
    pub(super) stage_due: Mono,
    /// As it stands in the list of those that are due.
    pub(super) due: Mono,
    /// Answers to what was asked before do not count.
    pub(super) turn: u32,
    pub(super) epoch: u32,
    /// Of the last states that were handed over.
    pub(super) end: u64,
    /// Up to where all has been handed over.
    pub(super) base: Option<Mark>,
    /// Up to where all has been told.
    pub(super) told: Option<Mark>,
    /// What is handed over and not told: with which states it is told up to where.
    pub(super) open: VecDeque<(u64, Option<Mark>)>,
    /// What Redis has of it.
    pub(super) kept: Option<Mark>,
    pub(super) keep_at: Mono,
    pub(super) is_keeping: bool,
    /// Nobody else may tell it before.
    pub(super) claimed_until: Mono,
    /// The latest message that came since the partition was looked at.
    pub(super) newest: Option<(Birth, u64)>,
    /// Messages may have been missed since.
    pub(super) must_look: bool,
    /// Who knows better has had the time to say so by then.
    pub(super) settled_at: Option<Mono>,
    /// There was no room, which is counted.
    pub(super) is_full: bool,
}

impl Feed {
    /// Whether there are messages that are not among what is handed over.
    pub(super) fn is_behind(&self) -> bool {
        self.must_look
            || match (self.newest, self.base) {
                (Some((birth, number)), Some(base)) => birth != base.birth || number > base.number,
                (newest, _) => newest.is_some(),
            }
    }

    /// All up to there is handed over, by these states or by none.
    pub(super) fn advance(&mut self, end: Mark) {
        self.base = Some(end);
        match self.open.back_mut() {
            Some((_, mark)) => *mark = Some(end),
            None => self.told = Some(end),
        }
    }

    /// States for the webhook's thread, of which more may follow before anything counts as told.
    pub(super) fn open(&mut self, source: u16, from: Unix, states: Vec<HookState>) -> HookStates {
        self.end += 1;
        let before = self.open.back().map_or(self.told, |(_, mark)| *mark);
        self.open.push_back((self.end, before));
        HookStates {
            source,
            epoch: self.epoch,
            end: self.end,
            from,
            states,
        }
    }

    /// The receiver has taken all up to these states.
    pub(super) fn close(&mut self, end: u64) {
        while let Some((_, mark)) = self.open.pop_front_if(|(of, _)| *of <= end) {
            self.told = mark;
        }
    }

    /// Nothing that was handed over counts any more. False: nothing was.
    pub(super) fn forget(&mut self) -> bool {
        self.epoch = self.epoch.wrapping_add(1);
        self.base = self.told;
        let had = !self.open.is_empty();
        self.open.clear();
        had
    }

    /// When its position is to be kept, or its claim to be renewed.
    pub(super) fn keep_due(&self, claim_ms: u64) -> Mono {
        if self.is_keeping || !self.is_ours || self.claimed_until == Mono::default() {
            return Mono::NEVER;
        }
        let has_news = self.told.is_some() && self.told != self.kept;
        match has_news || !self.open.is_empty() {
            true if has_news => self.keep_at,
            true => self.keep_at.max(before(self.claimed_until, claim_ms / 2)),
            false => Mono::NEVER,
        }
    }

    pub(super) fn is_claimed(&self, now: Mono) -> bool {
        self.claimed_until > now
    }
}
