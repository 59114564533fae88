//! One webhook at one node: which partitions it tells, and what is to be told of each.
//!
//! A partition is told by whoever holds its claim, a key that expires. It is taken with the
//! position that its last holder has left, and what is missing since is read: messages from the
//! ring, or, where that does not reach back, users whose state is as new. Then each message is
//! handed over as it comes. Where nothing happens nothing is claimed and nothing is said.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::feed::{Feed, Stage};
use super::missed::Missed;
use super::{Asked, HookOutlet, Question};
use crate::engine::{HookOrder, HookReport};
use crate::fleet::Life;
use crate::fleet::calls::Call;
use crate::fleet::hooks::{Keys, Senders};
use crate::fleet::message::{Base, Follows, Message};
use crate::fleet::partition::Partitions;
use crate::fleet::traffic::{Reply, Server};
use crate::time::{Mono, Now};

/// A claim is kept for so long beyond the time that a request may take, in ms.
const CLAIM_MS: u64 = 10_000;
/// Time between two tries to take what somebody else has, in ms.
pub(super) const TAKEN_MS: u64 = 1_000;
/// The same where something fails, or there is no room, in ms.
pub(super) const AGAIN_MS: u64 = 300;
/// Commands under way at once.
const COMMANDS_MAX: usize = 64;
/// See the module.
pub(super) struct Follow {
    pub(super) outlet: HookOutlet,
    pub(super) token: String,
    pub(super) partitions: Arc<Partitions>,
    pub(super) buckets: u32,
    pub(super) settle_ms: u64,
    pub(super) feeds: Vec<Feed>,
    due: BTreeSet<(Mono, usize)>,
    /// What is to be asked of which partition.
    pub(super) asks: VecDeque<(Question, Vec<Call>)>,
    /// How much of that has not been answered.
    under_way: usize,
    /// Walks that there are because there was no room.
    pub(super) overflows: u64,
    pub(super) missed: Missed,
    /// Erasures that are given up.
    pub(super) untold: u64,
    /// Answers by which nothing can be told, and the first of them that the log does not have.
    pub(super) refused: u64,
    pub(super) refusal: Option<Box<str>>,
}

impl Follow {
    pub(super) fn new(
        outlet: HookOutlet,
        partitions: Arc<Partitions>,
        buckets: u32,
        settle_ms: u64,
        random: &mut fastrand::Rng,
    ) -> Follow {
        let feed = |_| Feed {
            due: Mono::NEVER,
            stage_due: Mono::NEVER,
            ..Feed::default()
        };
        Follow {
            token: format!("{:016x}", random.u64(..)),
            feeds: partitions.all().map(feed).collect(),
            outlet,
            partitions,
            buckets,
            settle_ms,
            due: BTreeSet::new(),
            asks: VecDeque::new(),
            under_way: 0,
            overflows: 0,
            missed: Missed::default(),
            untold: 0,
            refused: 0,
            refusal: None,
        }
    }

    pub(super) fn claim_ms(&self) -> u64 {
        self.outlet.request_ms + CLAIM_MS
    }

    pub(super) fn keys(&self, at: usize) -> Keys {
        let partition = self.partitions.at(at as u16);
        Keys::new(&self.partitions, partition, &self.outlet.name)
    }

    // Whose it is.

    /// Other nodes may tell the partitions now. `own`: this node's life; None: it tells nothing.
    pub(super) fn choose(&mut self, senders: &Senders, own: Option<Life>, now: Now) {
        for at in 0..self.feeds.len() {
            let is_ours = own.is_some() && senders.of(at) == own;
            if std::mem::replace(&mut self.feeds[at].is_ours, is_ours) == is_ours {
                continue;
            }
            match self.feeds[at].stage {
                // Taken again when it has been given up.
                Stage::Leaving => {}
                _ if is_ours => self.wait(at, now.mono),
                _ => self.leave(at, now.mono),
            }
        }
    }

    /// Whether nothing of it is this node's.
    pub(super) fn has_left(&self) -> bool {
        let is_left = |feed: &Feed| !feed.is_ours && matches!(feed.stage, Stage::Asleep);
        self.feeds.iter().all(is_left)
    }

    pub(super) fn leave(&mut self, at: usize, now: Mono) {
        let feed = &mut self.feeds[at];
        feed.turn = feed.turn.wrapping_add(1);
        feed.newest = None;
        self.untold += self.missed.drop(at);
        let feed = &mut self.feeds[at];
        if !feed.is_claimed(now) {
            self.drop_all(at);
            return self.rest(at);
        }
        feed.stage = Stage::Leaving;
        if feed.open.is_empty() {
            return self.release(at);
        }
        // What is under way is told, or not, before the claim is over.
        let (source, epoch, until) = (at as u16, feed.epoch, feed.claimed_until);
        (self.outlet.hand)(HookOrder::Drop { source, epoch });
        self.stage_due(at, until);
    }

    pub(super) fn release(&mut self, at: usize) {
        let keys = self.keys(at);
        let feed = &self.feeds[at];
        let news = feed.told.filter(|_| feed.told != feed.kept);
        let mut calls: Vec<Call> = news.iter().map(|mark| keys.keep(mark)).collect();
        calls.push(keys.release());
        self.ask(at, Asked::Released, calls);
    }

    pub(super) fn released(&mut self, at: usize, now: Mono) {
        let feed = &mut self.feeds[at];
        feed.claimed_until = Mono::default();
        feed.forget();
        match feed.is_ours {
            true => self.wait(at, now),
            false => self.rest(at),
        }
    }

    pub(super) fn rest(&mut self, at: usize) {
        self.feeds[at].stage = Stage::Asleep;
        self.stage_due(at, Mono::NEVER);
    }

    pub(super) fn wait(&mut self, at: usize, until: Mono) {
        self.feeds[at].stage = Stage::Waiting;
        self.stage_due(at, until);
    }

    /// What was handed over of a partition is not to be told.
    pub(super) fn drop_all(&mut self, at: usize) {
        let (source, epoch) = (at as u16, self.feeds[at].epoch);
        if self.feeds[at].forget() {
            (self.outlet.hand)(HookOrder::Drop { source, epoch });
        }
    }

    // When something is due.

    pub(super) fn stage_due(&mut self, at: usize, due: Mono) {
        self.feeds[at].stage_due = due;
        self.schedule(at);
    }

    pub(super) fn schedule(&mut self, at: usize) {
        let claim_ms = self.claim_ms();
        let feed = &mut self.feeds[at];
        let due = feed.stage_due.min(feed.keep_due(claim_ms));
        if due != feed.due {
            self.due.remove(&(feed.due, at));
            feed.due = due;
            if due != Mono::NEVER {
                self.due.insert((due, at));
            }
        }
    }

    pub(super) fn next(&self) -> Mono {
        if self.under_way >= COMMANDS_MAX {
            // An answer comes first, or word that there is none.
            return Mono::NEVER;
        }
        self.due.first().map_or(Mono::NEVER, |(due, _)| *due)
    }

    pub(super) fn handle_timeout(&mut self, now: Now) {
        while self.next() <= now.mono {
            let Some((_, at)) = self.due.pop_first() else {
                return;
            };
            let claim_ms = self.claim_ms();
            let feed = &mut self.feeds[at];
            feed.due = Mono::NEVER;
            if feed.stage_due <= now.mono {
                feed.stage_due = Mono::NEVER;
                match &feed.stage {
                    Stage::Waiting if feed.is_ours => self.take(at, now.mono),
                    Stage::Hidden(_) => self.look(at),
                    Stage::Walk(_) => self.walk(at, now),
                    Stage::Missed { .. } => self.ask_missed(at, now),
                    // The claim is over.
                    Stage::Leaving => self.released(at, now.mono),
                    _ => {}
                }
            }
            if self.feeds[at].keep_due(claim_ms) <= now.mono {
                self.keep(at, now.mono);
            }
            self.schedule(at);
        }
    }

    pub(super) fn ask(&mut self, at: usize, asked: Asked, calls: Vec<Call>) {
        self.under_way += 1;
        let turn = self.feeds[at].turn;
        self.asks.push_back(((at, asked, turn), calls));
    }

    // What came of it.

    pub(super) fn answered(
        &mut self,
        (at, asked, turn): Question,
        server: Server,
        replies: &[Reply],
        now: Now,
    ) {
        self.under_way -= 1;
        if let Asked::Kept { .. } = asked {
            self.feeds[at].is_keeping = false;
        }
        if turn != self.feeds[at].turn {
            if let (Asked::Taken { sent }, [_, holder, ..]) = (&asked, replies) {
                self.taken_in_vain(at, *sent, holder, now.mono);
            }
            return self.schedule(at);
        }
        let refusal = replies.iter().find_map(|reply| match reply {
            Reply::Error(text) => Some(text),
            _ => None,
        });
        let refused = self.refused;
        let done = match asked {
            Asked::Taken { sent } => self.taken(at, sent, replies, now),
            Asked::Ring => self.ring_read(at, replies, now),
            Asked::Buckets => self.looked(at, replies, now),
            Asked::Scan => self.scanned(at, server, replies, now),
            Asked::Here => self.here(at, replies, now),
            Asked::Missed => self.missed_read(at, replies, now),
            Asked::Kept { mark, sent } => self.kept(at, (mark, sent), replies, now),
            Asked::Released => {
                self.released(at, now.mono);
                Some(())
            }
        };
        match refusal {
            // What has been said of it says more.
            _ if self.refused > refused => {}
            Some(text) => self.is_odd(at, text),
            None if done.is_none() => self.is_odd(at, "malformed: its partition"),
            None => {}
        }
        if done.is_none() {
            // An error, or what the library does not write.
            self.wait(at, now.mono.plus_ms(TAKEN_MS));
        }
        self.schedule(at);
    }

    pub(super) fn failed(&mut self, (at, asked, turn): Question, now: Now) {
        self.under_way -= 1;
        let feed = &mut self.feeds[at];
        if let Asked::Kept { .. } = asked {
            feed.is_keeping = false;
            feed.keep_at = now.mono.plus_ms(AGAIN_MS);
        } else if turn == feed.turn {
            match asked {
                Asked::Released => self.released(at, now.mono),
                _ => self.wait(at, now.mono.plus_ms(AGAIN_MS)),
            }
        }
        self.schedule(at);
    }

    /// The webhook's thread has something to say.
    pub(super) fn reported(&mut self, report: HookReport, now: Now) {
        let (HookReport::ToldUpTo { source, epoch, .. } | HookReport::Dropped { source, epoch }) =
            report;
        let at = usize::from(source);
        let Some(feed) = self.feeds.get_mut(at).filter(|feed| feed.epoch == epoch) else {
            return;
        };
        match report {
            HookReport::ToldUpTo { end, .. } => feed.close(end),
            HookReport::Dropped { .. } if matches!(feed.stage, Stage::Leaving) => {
                feed.stage_due = Mono::NEVER;
                match feed.is_claimed(now.mono) {
                    true => self.release(at),
                    false => self.released(at, now.mono),
                }
            }
            HookReport::Dropped { .. } => {}
        }
        self.schedule(at);
    }

    // What is to be told.

    /// All that was asked for is handed over.
    pub(super) fn follow(&mut self, at: usize, now: Now) {
        let feed = &mut self.feeds[at];
        feed.settled_at = None;
        let base = feed.base;
        match feed.is_behind() {
            true => self.wait(at, now.mono),
            false if self.missed.has(at) => self.tell_missed(at, base, now),
            false => {
                feed.stage = Stage::Awake;
                self.stage_due(at, Mono::NEVER);
            }
        }
    }

    /// A message came.
    pub(super) fn published(&mut self, at: usize, bytes: &[u8], now: Now) {
        if !self.feeds[at].is_ours {
            return;
        }
        let message = Message::parse_kept(bytes).ok().flatten();
        let feed = &mut self.feeds[at];
        if let Some(message) = &message {
            feed.newest = Some((message.birth, message.number()));
        }
        let is_claimed = feed.is_claimed(now.mono.plus_ms(self.outlet.request_ms));
        let is_awake = matches!(feed.stage, Stage::Awake);
        if let Some(message) = message.filter(|_| !is_awake) {
            self.hear(at, &message, false);
        }
        let feed = &mut self.feeds[at];
        match feed.stage {
            Stage::Asleep => self.wait(at, now.mono),
            Stage::Awake => {
                let base = |message: &Message<'_>| Base {
                    birth: feed.base.map_or(message.birth, |base| base.birth),
                    number: feed.base.map_or(0, |base| base.number),
                };
                let follows = message.map(|message| (base(&message).follows(&message), message));
                if let Some((follows, message)) = &follows {
                    self.hear(at, message, *follows == Follows::InBase);
                }
                match follows {
                    Some((Follows::InStep, message)) if is_claimed => {
                        self.collect(at, &[message], now);
                    }
                    // A walk came up to it before it came here.
                    Some((Follows::InBase, _)) if self.missed.has(at) && is_claimed => {
                        self.follow(at, now);
                    }
                    Some((Follows::InBase, _)) if !self.missed.has(at) => {}
                    _ => self.wait(at, now.mono),
                }
            }
            _ => {}
        }
    }

    /// What is published may have been missed.
    pub(super) fn subscribed(&mut self, at: usize, now: Mono) {
        let feed = &mut self.feeds[at];
        if feed.is_ours {
            feed.must_look = true;
            if matches!(feed.stage, Stage::Asleep | Stage::Awake) {
                self.wait(at, now);
            }
        }
    }
}
