//! Who is here and who is not, where messages do not reach back to a position.

use super::Asked;
use super::claim::{bytes_of, is_of_another_type};
use super::feed::{Scan, Stage};
use super::follow::{AGAIN_MS, Follow};
use super::hand::{away, stamp, state};
use crate::fleet::calls::Call;
use crate::fleet::held::{Gone, Here};
use crate::fleet::hooks::Mark;
use crate::fleet::traffic::{Reply, Server};
use crate::fleet::walk::{scan, scanned};
use crate::time::{Now, Unix};
use crate::wire::{User, UserBuf};

/// About so many users are read at a time.
const SCANNED: usize = 500;

impl Follow {
    // A walk.

    pub(super) fn begin_walk(&mut self, at: usize, since: (Unix, Unix), end: Mark, now: Now) {
        let (here_since, gone_since) = since;
        self.feeds[at].stage = Stage::Walk(Scan {
            here_since,
            gone_since,
            stage: 0,
            cursor: 0,
            server: None,
            away: Vec::new(),
            end,
        });
        self.walk(at, now);
    }

    pub(super) fn walk(&mut self, at: usize, now: Now) {
        let Stage::Walk(walk) = &self.feeds[at].stage else {
            return;
        };
        if (self.outlet.room)() < SCANNED.min(self.outlet.queue_max) {
            let was_full = std::mem::replace(&mut self.feeds[at].is_full, true);
            self.overflows += u64::from(!was_full);
            return self.stage_due(at, now.mono.plus_ms(AGAIN_MS));
        }
        let partition = self.partitions.at(at as u16);
        let key = match walk.stage {
            0 => self.partitions.hot_key(partition),
            stage => self.partitions.offline_key(partition, stage - 1),
        };
        let call = scan(&key, walk.cursor, &self.outlet.prefix, SCANNED);
        self.ask(at, Asked::Scan, vec![call]);
    }

    pub(super) fn scanned(
        &mut self,
        at: usize,
        server: Server,
        replies: &[Reply],
        now: Now,
    ) -> Option<()> {
        let Stage::Walk(walk) = &mut self.feeds[at].stage else {
            return None;
        };
        if *walk.server.get_or_insert(server) != server {
            (walk.stage, walk.cursor, walk.server) = (0, 0, None);
            self.walk(at, now);
            return Some(());
        }
        let is_foreign = walk.stage > 0 && replies.first().is_some_and(is_of_another_type);
        let (cursor, fields) = match is_foreign {
            // Nobody is in that bucket, and those in the others are told.
            true => (0, Vec::new()),
            false => scanned(replies).ok()?,
        };
        // What somebody else has put there is nobody's.
        let users = fields.into_iter().filter_map(|(name, value)| {
            let user = UserBuf::from(User::parse(name).ok()?);
            Some((user, value))
        });
        walk.cursor = cursor;
        let stamp = stamp(walk.end.birth, walk.end.number);
        if walk.stage > 0 {
            for (user, value) in users {
                let gone = Gone::parse(value).ok();
                let gone = gone.filter(|gone| gone.since >= walk.gone_since);
                walk.away.extend(gone.map(|gone| (user, gone)));
            }
            if walk.away.is_empty() {
                self.walk_on(at, now);
                return Some(());
            }
            let hot = self.partitions.hot_key(self.partitions.at(at as u16));
            let names = walk.away.iter().map(|(user, _)| user.as_str().as_bytes());
            let call = Call::plain([&b"HMGET"[..], hot.as_bytes()].into_iter().chain(names));
            self.ask(at, Asked::Here, vec![call]);
            return Some(());
        }
        let mut states = Vec::new();
        for (user, value) in users {
            let Ok(here) = Here::parse(value) else {
                continue;
            };
            if here.is_here() && !here.flags.invisible && here.since >= walk.here_since {
                let (status, since) = (here.flags.shown(), here.since);
                states.push(state(user, status, since, Some(since), stamp));
            }
        }
        self.hand_states(at, now.unix, states);
        self.walk_on(at, now);
        Some(())
    }

    /// Of those who were read from a bucket: who is here has been found, or a message comes.
    pub(super) fn here(&mut self, at: usize, replies: &[Reply], now: Now) -> Option<()> {
        let (Stage::Walk(walk), [Reply::List(values)]) = (&mut self.feeds[at].stage, replies)
        else {
            return None;
        };
        let stamp = stamp(walk.end.birth, walk.end.number);
        let mut states = Vec::new();
        for ((user, gone), value) in std::mem::take(&mut walk.away).into_iter().zip(values) {
            let here = bytes_of(value)?.and_then(|value| Here::parse(value).ok());
            if !here.is_some_and(|here| here.is_here() && !here.flags.invisible) {
                states.push(away(user, gone, stamp));
            }
        }
        self.hand_states(at, now.unix, states);
        self.walk_on(at, now);
        Some(())
    }

    pub(super) fn walk_on(&mut self, at: usize, now: Now) {
        let Stage::Walk(walk) = &mut self.feeds[at].stage else {
            return;
        };
        if walk.cursor == 0 {
            walk.stage += 1;
        }
        if walk.stage <= self.buckets {
            return self.walk(at, now);
        }
        let end = walk.end;
        let feed = &mut self.feeds[at];
        feed.is_full = false;
        if self.missed.has_up_to(at, end) {
            // No position says that they are told before they are.
            return self.tell_missed(at, Some(end), now);
        }
        feed.advance(end);
        self.follow(at, now);
    }
}
