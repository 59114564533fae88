//! Claims and positions of a webhook's partitions, as Redis keeps them.
//!
//! What stands there otherwise than it is written here is mended, and the log says so: a position
//! is made anew, and a claim without an end gets one, for it would be held by nobody for ever.

use super::Asked;
use super::feed::Stage;
use super::follow::{Follow, TAKEN_MS};
use crate::engine::HookOrder;
use crate::fleet::calls::Call;
use crate::fleet::held::{META_FIELD, Meta};
use crate::fleet::hooks::Mark;
use crate::fleet::traffic::Reply;
use crate::time::{Mono, Now};

/// A position is kept so often, in ms.
const KEEP_MS: u64 = 1_000;
/// No position is of a time that lies so far ahead of a node's clock, in ms.
const AHEAD_MS: u64 = 3_600_000;

impl Follow {
    // Taking a partition.

    pub(super) fn take(&mut self, at: usize, now: Mono) {
        let keys = self.keys(at);
        let hot = self.partitions.hot_key(self.partitions.at(at as u16));
        let calls = vec![
            keys.claim(&self.token, self.claim_ms()),
            keys.holder(),
            keys.end(self.claim_ms()),
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
        let [claim, holder, end, position, meta] = replies else {
            return None;
        };
        let is_new = matches!(claim, Reply::Bytes(_));
        if *end == Reply::Number(1) {
            let text = "malformed: the claim on it had no end, and has one now";
            self.is_odd(at, text);
        }
        if bytes_of(holder).flatten() != Some(self.token.as_bytes()) {
            if let Reply::Bytes(bytes) = position
                && let Ok(mark) = Mark::parse(bytes)
            {
                self.missed.told(at, mark);
            }
            self.lose(at, now.mono);
            return Some(());
        }
        let position = self.position_of(at, position, now)?;
        let meta = bytes_of(meta)?.map(Meta::parse).transpose().ok()?;
        if is_new || !self.feeds[at].is_claimed(now.mono) {
            // Whoever had it meanwhile has left the position.
            self.drop_all(at);
            let told = match position {
                Position::At(told) => told,
                Position::Damaged => None,
            };
            if let Some(mark) = told {
                self.missed.told(at, mark);
            }
            let feed = &mut self.feeds[at];
            (feed.told, feed.kept, feed.base) = (told, told, told);
            match is_new {
                true => self.claim(at, sent),
                // Of a claim whose answer was lost nobody knows when it ends: it is renewed first.
                false => (feed.claimed_until, feed.keep_at) = (sent, now.mono),
            }
        } else if let Position::Damaged = position {
            // This node knows better.
            self.feeds[at].kept = None;
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
        let [kept @ .., claim, holder, _] = replies else {
            return None;
        };
        let is_new = matches!(claim, Reply::Bytes(_));
        if bytes_of(holder).flatten() != Some(self.token.as_bytes()) {
            self.lose(at, now.mono);
            return Some(());
        }
        if !matches!(kept, [Reply::Error(_)]) {
            self.feeds[at].kept = mark;
        }
        if is_new && !self.feeds[at].open.is_empty() {
            // Another may have had it meanwhile: once more from the position that Redis has.
            self.feeds[at].turn = self.feeds[at].turn.wrapping_add(1);
            self.drop_all(at);
            self.wait(at, now.mono);
        }
        self.claim(at, sent);
        Some(())
    }

    /// What a position says. None: that can not be read at the moment.
    fn position_of(&mut self, at: usize, reply: &Reply, now: Now) -> Option<Position> {
        let position = match reply {
            Reply::Nil => return Some(Position::At(None)),
            Reply::Bytes(bytes) => Mark::parse(bytes).ok(),
            reply if is_of_another_type(reply) => None,
            _ => return None,
        };
        let latest = now.unix.plus_ms(AHEAD_MS);
        let position = position.filter(|mark| mark.since <= latest);
        if position.is_none() {
            let text = "malformed: the position of a webhook, which is made anew: its receiver is \
                        told everybody's last state";
            self.is_odd(at, text);
        }
        Some(position.map_or(Position::Damaged, |mark| Position::At(Some(mark))))
    }

    /// Redis has said something that a partition can not be told by.
    pub(super) fn is_odd(&mut self, at: usize, text: &str) {
        self.refused += 1;
        self.refusal.get_or_insert_with(|| {
            let key = self.partitions.hot_key(self.partitions.at(at as u16));
            format!("{key}:hook:{}: {text}", self.outlet.name).into()
        });
    }
}

/// Up to where a webhook was told, as Redis has it.
enum Position {
    At(Option<Mark>),
    Damaged,
}

/// Whether a key holds what no node writes there.
pub(super) fn is_of_another_type(reply: &Reply) -> bool {
    matches!(reply, Reply::Error(words) if words.starts_with("WRONGTYPE"))
}

/// None: it is an error, or no string.
pub(super) fn bytes_of(reply: &Reply) -> Option<Option<&[u8]>> {
    match reply {
        Reply::Bytes(bytes) => Some(Some(bytes)),
        Reply::Nil => Some(None),
        Reply::Number(_) | Reply::List(_) | Reply::Error(_) => None,
    }
}
