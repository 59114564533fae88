//! Those who have been offline for so long that nothing is kept of them any more.
//!
//! Owns a slow walk: one slice of one partition at a time, through its buckets and then through its
//! hot key, which alone has those of whom only flags are kept. Whoever is found there is looked up
//! in both, for either may say something later. One node of a fleet that does it is enough.

use super::lease::bytes_of;
use super::part::Said;
use super::{Asked, Local, Member};
use crate::fleet::calls::Call;
use crate::fleet::held::{Gone, Here};
use crate::fleet::partition::bucket_of;
use crate::fleet::traffic::{Reply, To};
use crate::fleet::walk::scan;
use crate::time::{Mono, Now, Unix};
use crate::wire::{User, UserBuf};

/// Of one slice at once.
const FORGOTTEN_MAX: usize = 1_000;
/// Fields of a hot key in a slice.
const SCANNED: usize = 500;
/// Most time between two slices: 16 buckets and a hot key of each of 1,024 partitions are through
/// in five hours.
const SLICE_MS_MAX: u64 = 1_000;
/// A fleet with more of them is walked faster: else a hundred million users who are gone would be
/// looked at every twelve days, and a thousand million every hundred.
const TURN_MS_MAX: u64 = 86_400_000;

/// A slice of the walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slice {
    /// Which bucket or hot key, counted through all partitions.
    place: u32,
    /// Where in a hot key it begins. A table of Redis has fewer than 2^32 places, and so cursors.
    cursor: u32,
}

impl Slice {
    /// As the core keeps it: one number, the place in its upper half.
    fn from_number(number: u64) -> Slice {
        Slice {
            place: (number >> 32) as u32,
            cursor: number as u32,
        }
    }

    fn number(self) -> u64 {
        u64::from(self.place) << 32 | u64::from(self.cursor)
    }
}

impl<L: Local> Member<L> {
    pub(super) fn forget_due(&self) -> Mono {
        match self.settings.forget_after_ms {
            0 => Mono::NEVER,
            _ => self.forget_at,
        }
    }

    /// Places of one partition: its buckets, and last its hot key.
    fn places(&self) -> u32 {
        self.settings.layout.buckets.max(1) + 1
    }

    /// The one behind it, of the next bucket or hot key.
    fn behind(&self, slice: Slice) -> Slice {
        let all = self.places() * self.parts.len() as u32;
        Slice {
            place: (slice.place + 1) % all,
            cursor: 0,
        }
    }

    /// Reads the next slice.
    pub(super) fn forget(&mut self, now: Now) {
        if now.mono < self.forget_due() {
            return;
        }
        let (places, parts) = (u64::from(self.places()), self.parts.len() as u64);
        self.forget_at = now.mono.plus_ms(pause_ms(places * parts));
        let slice = Slice::from_number(self.forget_next);
        let (at, place) = (slice.place / self.places(), slice.place % self.places());
        let at = at as usize;
        let part = &self.parts[at];
        let Some(server) = part.server.filter(|_| self.is_well(part, now.mono)) else {
            return;
        };
        let id = part.id;
        let call = match place + 1 == self.places() {
            true => scan(&self.hot_key(at), u64::from(slice.cursor), "", SCANNED),
            false => {
                let key = self.partitions.offline_key(id, place);
                Call::plain([&b"HGETALL"[..], key.as_bytes()])
            }
        };
        let asked = Asked::Slice(slice);
        if self.send(asked, To::Partition(id), server, vec![call], now) {
            self.forget_next = self.behind(slice).number();
        }
    }

    /// Asks for more of those of a slice who may have been gone for long enough.
    pub(super) fn slice_read(&mut self, slice: Slice, replies: &[Reply], now: Now) {
        let at = (slice.place / self.places()) as usize;
        let is_hot = slice.place % self.places() + 1 == self.places();
        let fields = match (replies.first(), is_hot) {
            (Some(Reply::List(scanned)), true) => match &scanned[..] {
                [cursor, Reply::List(fields)] => {
                    self.scanned_to(slice, cursor);
                    fields
                }
                _ => return,
            },
            (Some(Reply::List(fields)), false) => fields,
            _ => return,
        };
        let Some(old) = self.old_before(at, now) else {
            return;
        };
        let mut found = Vec::new();
        for [user, value] in fields.as_chunks::<2>().0 {
            let is_old = match is_hot {
                true => is_hot_old(value, old),
                false => is_gone_old(value, old),
            };
            let user = bytes_of(user).filter(|_| is_old);
            found.extend(
                user.and_then(|user| User::parse(user).ok())
                    .map(UserBuf::from),
            );
        }
        // The rest is found by the next round.
        found.truncate(FORGOTTEN_MAX);
        if !found.is_empty() {
            self.look_up(at, found, now);
        }
    }

    /// A hot key goes on there, unless the walk has left it meanwhile.
    fn scanned_to(&mut self, slice: Slice, cursor: &Reply) {
        let cursor = bytes_of(cursor).and_then(|cursor| str::from_utf8(cursor).ok());
        let cursor = cursor.and_then(|cursor| cursor.parse().ok()).unwrap_or(0);
        let is_next = self.forget_next == self.behind(slice).number();
        if cursor != 0 && is_next {
            self.forget_next = Slice { cursor, ..slice }.number();
        }
    }

    /// What is said of those users by the hot key and by their buckets.
    fn look_up(&mut self, at: usize, mut users: Vec<UserBuf>, now: Now) {
        let part = &self.parts[at];
        let Some(server) = part.server else {
            return;
        };
        let (id, buckets) = (part.id, self.settings.layout.buckets);
        let bucket = |user: &UserBuf| bucket_of(user.user(), buckets);
        users.sort_by_key(bucket);
        let ask = |key: String, users: &[UserBuf]| {
            let words = [&b"HMGET"[..], key.as_bytes()].into_iter();
            Call::plain(words.chain(users.iter().map(|user| user.as_str().as_bytes())))
        };
        let mut calls = vec![ask(self.hot_key(at), &users)];
        for some in users.chunk_by(|one, next| bucket(one) == bucket(next)) {
            let key = self.partitions.offline_key(id, bucket(&some[0]));
            calls.push(ask(key, some));
        }
        let asked = Asked::Old { at, users };
        self.send(asked, To::Partition(id), server, calls, now);
    }

    /// Forgets those of whom neither says that they are here, or were lately. Who has come since is
    /// not meant, which Redis knows.
    pub(super) fn old_read(&mut self, at: usize, users: Vec<UserBuf>, replies: &[Reply], now: Now) {
        let Some(old) = self.old_before(at, now) else {
            return;
        };
        let lists = replies.iter().map(|reply| match reply {
            Reply::List(values) => Some(&values[..]),
            _ => None,
        });
        let lists: Option<Vec<_>> = lists.collect();
        let Some([hot, gone @ ..]) = lists.as_deref() else {
            return;
        };
        let gone: Vec<&Reply> = gone.iter().copied().flatten().collect();
        if (hot.len(), gone.len()) != (users.len(), users.len()) {
            self.counts.malformed += 1;
            return;
        }
        for (user, (hot, gone)) in users.into_iter().zip(hot.iter().zip(gone)) {
            let says_nothing = |reply: &Reply| matches!(reply, Reply::Nil);
            let is_old = (says_nothing(hot) || is_hot_old(hot, old))
                && (says_nothing(gone) || is_gone_old(gone, old));
            if is_old && !(says_nothing(hot) && says_nothing(gone)) {
                self.act(user.user(), Said::Forget, None, now);
            }
        }
    }

    /// Before when somebody must have been heard of last to be forgotten, by the clock of the
    /// partition's server. None: nothing is known of that.
    fn old_before(&self, at: usize, now: Now) -> Option<Unix> {
        let clock = self.servers.clock(self.parts[at].server?, now.mono)?;
        Some(clock.minus_ms(self.settings.forget_after_ms))
    }
}

/// Whether a hot key's value is of one who is not here, and has said its flags or gone before then.
fn is_hot_old(value: &Reply, old: Unix) -> bool {
    let here = bytes_of(value).map(Here::parse);
    matches!(here, Some(Ok(here)) if !here.is_here() && here.since < old)
}

/// Whether a bucket's is of one who was heard of last before then.
fn is_gone_old(value: &Reply, old: Unix) -> bool {
    let gone = bytes_of(value).map(Gone::parse);
    matches!(gone, Some(Ok(gone)) if gone.since.max(gone.last_active) < old)
}

/// Time between two of so many slices.
fn pause_ms(places: u64) -> u64 {
    (TURN_MS_MAX / places).clamp(1, SLICE_MS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_buckets_are_looked_at_within_a_day() {
        assert_eq!(pause_ms(64 * 3), 1_000);
        assert_eq!(pause_ms(1_024 * 16), 1_000);
        for (partitions, buckets) in [(1_024, 1_024), (4_096, 2_048), (16_384, 4_096)] {
            let count = partitions * buckets;
            assert!(count * pause_ms(count) <= TURN_MS_MAX, "{count}");
        }
        assert_eq!(pause_ms(4_096 * 2_048), 10);
    }
}
