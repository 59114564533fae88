//! What a partition's sender heard while it could not hand it over, and finds nowhere later.
//!
//! An erasure leaves no name behind, neither in the ring nor among users: who was erased is known
//! from the message alone. Who hides has gone for others once a bucket says so, which may be after
//! a walk has passed there. Both are kept until they are handed over.

use std::collections::BTreeMap;

use super::Asked;
use super::claim::bytes_of;
use super::feed::{Batch, Covers, Stage};
use super::follow::{AGAIN_MS, Follow};
use super::hand::{HIDDEN_MS, stamp, state};
use crate::fleet::calls::Call;
use crate::fleet::held::{Gone, Here};
use crate::fleet::hooks::{Mark, Shown, shown};
use crate::fleet::message::{Message, What};
use crate::fleet::partition::bucket_of;
use crate::fleet::traffic::Reply;
use crate::fleet::{Birth, CALL_USERS_MAX};
use crate::status::Status;
use crate::time::{Now, Unix};
use crate::wire::UserBuf;

/// One user of whom something was heard.
#[derive(Clone, Debug)]
pub(super) struct One {
    user: UserBuf,
    is_erased: bool,
    /// When, by whose message.
    since: Unix,
    birth: Birth,
    number: u64,
    /// In which order it was heard.
    order: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Missed {
    of: BTreeMap<usize, Vec<One>>,
    count: usize,
    order: u64,
}

impl Missed {
    /// Keeps what a message says, of users whose ids begin so, as long as there are at most `max`.
    /// Returns how many erasures found no room.
    pub(super) fn hear(
        &mut self,
        at: usize,
        message: &Message<'_>,
        is_read: bool,
        (prefix, max): (&str, usize),
    ) -> u64 {
        let mut untold = 0;
        let records = message.records();
        for record in records.filter(|record| record.user.as_str().starts_with(prefix)) {
            let is_erased = record.what == What::Erased;
            let (user, since) = match shown(message.since, record.what) {
                Some(Shown::Hidden(since)) if !is_read => (UserBuf::from(record.user), since),
                Some(Shown::State { since, .. }) if is_erased => (record.user.into(), since),
                _ => continue,
            };
            if is_erased {
                // Nothing says any more that it has hidden.
                self.retain(at, |one| one.is_erased || one.user != user);
            }
            if self.count >= max {
                untold += u64::from(is_erased);
                continue;
            }
            self.count += 1;
            self.order += 1;
            self.of.entry(at).or_default().push(One {
                user,
                is_erased,
                since,
                birth: message.birth,
                number: message.number(),
                order: self.order,
            });
        }
        untold
    }

    pub(super) fn has(&self, at: usize) -> bool {
        self.of.contains_key(&at)
    }

    fn first(&self, at: usize) -> &[One] {
        let all = self.of.get(&at).map_or(&[][..], Vec::as_slice);
        &all[..all.len().min(CALL_USERS_MAX)]
    }

    /// Whether there is something of what all up to there was read without.
    pub(super) fn has_up_to(&self, at: usize, mark: Mark) -> bool {
        let mut all = self.of.get(&at).into_iter().flatten();
        all.any(|one| one.birth != mark.birth || one.number <= mark.number)
    }

    /// These are handed over.
    pub(super) fn settle(&mut self, at: usize, covers: &Covers) {
        match covers {
            Covers::Messages { birth, numbers } => {
                let is_in = |one: &One| one.birth == *birth && numbers.contains(&one.number);
                self.retain(at, |one| !is_in(one));
            }
            Covers::Missed { order } => self.retain(at, |one| one.order > *order),
        }
    }

    /// Another has told all up to there.
    pub(super) fn told(&mut self, at: usize, mark: Mark) {
        let is_told = |one: &One| one.birth == mark.birth && one.number <= mark.number;
        self.retain(at, |one| !is_told(one));
    }

    /// Nothing of the partition is told here any more. Returns of how many erasures that is so.
    pub(super) fn drop(&mut self, at: usize) -> u64 {
        let mut untold = 0;
        self.retain(at, |one| {
            untold += u64::from(one.is_erased);
            false
        });
        untold
    }

    fn retain(&mut self, at: usize, keeps: impl FnMut(&One) -> bool) {
        if let Some(all) = self.of.get_mut(&at) {
            let before = all.len();
            all.retain(keeps);
            self.count -= before - all.len();
            if all.is_empty() {
                self.of.remove(&at);
            }
        }
    }
}

impl Follow {
    /// Keeps of a message what is found nowhere else. What was `is_read` is handed over but for its
    /// erasures, which are never read.
    pub(super) fn hear(&mut self, at: usize, message: &Message<'_>, is_read: bool) {
        let limits = (&*self.outlet.prefix, self.outlet.queue_max);
        self.untold += self.missed.hear(at, message, is_read, limits);
    }

    /// Hands over what was missed, after everything else up to `end`.
    pub(super) fn tell_missed(&mut self, at: usize, end: Option<Mark>, now: Now) {
        let asked = self.missed.first(at).to_vec();
        self.feeds[at].stage = Stage::Missed { end, asked };
        self.ask_missed(at, now);
    }

    /// Who has come back since is told by a later message, or by what was read.
    pub(super) fn ask_missed(&mut self, at: usize, now: Now) {
        let Stage::Missed { asked, .. } = &self.feeds[at].stage else {
            return;
        };
        if (self.outlet.room)() < asked.len().min(self.outlet.queue_max) {
            let was_full = std::mem::replace(&mut self.feeds[at].is_full, true);
            self.overflows += u64::from(!was_full);
            return self.stage_due(at, now.mono.plus_ms(AGAIN_MS));
        }
        let partition = self.partitions.at(at as u16);
        let hot = self.partitions.hot_key(partition);
        let names = asked.iter().map(|one| one.user.as_str().as_bytes());
        let mut calls = vec![Call::plain(
            [&b"HMGET"[..], hot.as_bytes()].into_iter().chain(names),
        )];
        calls.extend(asked.iter().map(|one| {
            let bucket = bucket_of(one.user.user(), self.buckets);
            let key = self.partitions.offline_key(partition, bucket);
            Call::plain([b"HGET", key.as_bytes(), one.user.as_str().as_bytes()])
        }));
        self.ask(at, Asked::Missed, calls);
    }

    pub(super) fn missed_read(&mut self, at: usize, replies: &[Reply], now: Now) -> Option<()> {
        let Stage::Missed { end, asked } = &mut self.feeds[at].stage else {
            return None;
        };
        let [Reply::List(here), gone @ ..] = replies else {
            return None;
        };
        let (end, asked) = (*end, std::mem::take(asked));
        let order = asked.last()?.order;
        let mut batch = Batch {
            from: asked.first()?.since,
            until: now.mono.plus_ms(HIDDEN_MS),
            covers: Some(Covers::Missed { order }),
            end,
            ..Batch::default()
        };
        for (one, (here, gone)) in asked.into_iter().zip(here.iter().zip(gone)) {
            let here = bytes_of(here).flatten();
            let here = here.and_then(|bytes| Here::parse(bytes).ok());
            let gone = bytes_of(gone).flatten();
            let gone = gone.and_then(|bytes| Gone::parse(bytes).ok());
            let is_seen = here.is_some_and(|here| here.is_here() && !here.flags.invisible);
            let has_gone_since = gone.is_some_and(|gone| gone.since >= one.since);
            let stamp = stamp(one.birth, one.number);
            match one.is_erased {
                _ if is_seen => {}
                true if has_gone_since => {}
                true => {
                    let erased = state(one.user, Status::Offline, one.since, None, stamp);
                    batch.states.push(erased);
                }
                false => batch.hidden.push((one.user, one.since, stamp)),
            }
        }
        self.feeds[at].is_full = false;
        self.hand(at, batch, now);
        Some(())
    }
}
