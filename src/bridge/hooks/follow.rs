//! One webhook at one node: which partitions it tells, and what is to be told of each.
//!
//! A partition is told by whoever holds its claim, a key that expires. It is taken with the
//! position that its last holder has left, and what is missing since is read: messages from the
//! ring, or, where that does not reach back, users whose state is as new. Then each message is
//! handed over as it comes. Where nothing happens nothing is claimed and nothing is said.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::feed::{Feed, Stage};
use super::{Asked, HookOutlet, Question};
use crate::engine::{HookOrder, HookReport};
use crate::fleet::Life;
use crate::fleet::calls::Call;
use crate::fleet::held::{META_FIELD, Meta};
use crate::fleet::hooks::{Keys, Mark, Senders};
use crate::fleet::message::{Base, Follows, Message};
use crate::fleet::partition::Partitions;
use crate::fleet::traffic::{Reply, Server};
use crate::time::{Mono, Now};

/// A claim is kept for so long beyond the time that a request may take, in ms.
const CLAIM_MS: u64 = 10_000;
/// Time between two tries to take what somebody else has, in ms.
const TAKEN_MS: u64 = 1_000;
/// The same where something fails, or there is no room, in ms.
pub(super) const AGAIN_MS: u64 = 300;
/// A position is kept so often, in ms.
const KEEP_MS: u64 = 1_000;
/// Commands under way at once.
const COMMANDS_MAX: usize = 64;
/// See the module.
pub(super) struct Follow {
    pub(super) outlet: HookOutlet,
    token: String,
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
        }
    }

    fn claim_ms(&self) -> u64 {
        self.outlet.request_ms + CLAIM_MS
    }

    fn keys(&self, at: usize) -> Keys {
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
        let done = match asked {
            Asked::Taken { sent } => self.taken(at, sent, replies, now),
            Asked::Ring => self.ring_read(at, replies, now),
            Asked::Buckets => self.looked(at, replies, now),
            Asked::Scan => self.scanned(at, server, replies, now),
            Asked::Here => self.here(at, replies, now),
            Asked::Kept { mark, sent } => self.kept(at, (mark, sent), replies, now),
            Asked::Released => {
                self.released(at, now.mono);
                Some(())
            }
        };
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

    // Taking a partition.

    pub(super) fn take(&mut self, at: usize, now: Mono) {
        let keys = self.keys(at);
        let hot = self.partitions.hot_key(self.partitions.at(at as u16));
        let calls = vec![
            keys.claim(&self.token, self.claim_ms()),
            keys.holder(),
            keys.position(),
            Call::plain([b"HGET", hot.as_bytes(), META_FIELD]),
        ];
        let feed = &mut self.feeds[at];
        feed.stage = Stage::Taking;
        (feed.newest, feed.must_look) = (None, false);
        self.ask(at, Asked::Taken { sent: now }, calls);
    }

    /// By now another node is to have it.
    pub(super) fn taken_in_vain(&mut self, at: usize, sent: Mono, holder: &Reply, now: Mono) {
        let is_own = bytes_of(holder).flatten() == Some(self.token.as_bytes());
        if is_own && !self.feeds[at].is_ours && matches!(self.feeds[at].stage, Stage::Asleep) {
            self.claim(at, sent);
            self.leave(at, now);
        }
    }

    pub(super) fn taken(
        &mut self,
        at: usize,
        sent: Mono,
        replies: &[Reply],
        now: Now,
    ) -> Option<()> {
        let [claim, holder, position, meta] = replies else {
            return None;
        };
        let is_new = matches!(claim, Reply::Bytes(_));
        if bytes_of(holder)? != Some(self.token.as_bytes()) {
            self.lose(at, now.mono);
            return Some(());
        }
        let position = bytes_of(position)?.map(Mark::parse).transpose().ok()?;
        let meta = bytes_of(meta)?.map(Meta::parse).transpose().ok()?;
        if is_new || !self.feeds[at].is_claimed(now.mono) {
            // Whoever had it meanwhile has left the position.
            self.drop_all(at);
            let feed = &mut self.feeds[at];
            (feed.told, feed.kept, feed.base) = (position, position, position);
            match is_new {
                true => self.claim(at, sent),
                // Of a claim whose answer was lost nobody knows when it ends: it is renewed first.
                false => (feed.claimed_until, feed.keep_at) = (sent, now.mono),
            }
        }
        self.catch_up(at, meta, now);
        Some(())
    }

    pub(super) fn claim(&mut self, at: usize, sent: Mono) {
        let until = sent.plus_ms(self.claim_ms());
        let feed = &mut self.feeds[at];
        feed.claimed_until = until;
        let (source, epoch) = (at as u16, feed.epoch);
        (self.outlet.hand)(HookOrder::Permit {
            source,
            epoch,
            until,
        });
    }

    /// Another node has it.
    pub(super) fn lose(&mut self, at: usize, now: Mono) {
        self.drop_all(at);
        let feed = &mut self.feeds[at];
        feed.claimed_until = Mono::default();
        feed.turn = feed.turn.wrapping_add(1);
        match feed.is_ours {
            true => self.wait(at, now.plus_ms(TAKEN_MS)),
            false => self.rest(at),
        }
    }

    /// All that was asked for is handed over.
    pub(super) fn follow(&mut self, at: usize, now: Now) {
        let feed = &mut self.feeds[at];
        feed.settled_at = None;
        match feed.is_behind() {
            true => self.wait(at, now.mono),
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
        let feed = &mut self.feeds[at];
        match feed.stage {
            Stage::Asleep => self.wait(at, now.mono),
            Stage::Awake => {
                let base = |message: &Message<'_>| Base {
                    birth: feed.base.map_or(message.birth, |base| base.birth),
                    number: feed.base.map_or(0, |base| base.number),
                };
                let follows = message.map(|message| (base(&message).follows(&message), message));
                match follows {
                    Some((Follows::InStep, message)) if is_claimed => {
                        self.collect(at, &[message], now);
                    }
                    Some((Follows::InBase, _)) => {}
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

    // Positions.

    pub(super) fn keep(&mut self, at: usize, now: Mono) {
        let keys = self.keys(at);
        let claim_ms = self.claim_ms();
        let feed = &mut self.feeds[at];
        feed.is_keeping = true;
        feed.keep_at = now.plus_ms(KEEP_MS);
        let mark = feed.told;
        let mut calls: Vec<Call> = mark.iter().map(|mark| keys.keep(mark)).collect();
        calls.extend([
            keys.claim(&self.token, claim_ms),
            keys.holder(),
            keys.extend(claim_ms),
        ]);
        self.ask(at, Asked::Kept { mark, sent: now }, calls);
    }

    pub(super) fn kept(
        &mut self,
        at: usize,
        (mark, sent): (Option<Mark>, Mono),
        replies: &[Reply],
        now: Now,
    ) -> Option<()> {
        let [.., claim, holder, _] = replies else {
            return None;
        };
        let is_new = matches!(claim, Reply::Bytes(_));
        if bytes_of(holder)? != Some(self.token.as_bytes()) {
            self.lose(at, now.mono);
            return Some(());
        }
        self.feeds[at].kept = mark;
        if is_new && !self.feeds[at].open.is_empty() {
            // Another may have had it meanwhile: once more from the position that Redis has.
            self.feeds[at].turn = self.feeds[at].turn.wrapping_add(1);
            self.drop_all(at);
            self.wait(at, now.mono);
        }
        self.claim(at, sent);
        Some(())
    }
}

/// None: it is an error, or no string.
pub(super) fn bytes_of(reply: &Reply) -> Option<Option<&[u8]>> {
    match reply {
        Reply::Bytes(bytes) => Some(Some(bytes)),
        Reply::Nil => Some(None),
        Reply::Number(_) | Reply::List(_) | Reply::Error(_) => None,
    }
}
