//! What is missing since a position, and what is handed to the webhook's thread of it.

use super::Asked;
use super::claim::bytes_of;
use super::feed::{Batch, Covers, Stage};
use super::follow::{AGAIN_MS, Follow};
use crate::engine::{HookOrder, HookState};
use crate::fleet::calls::Call;
use crate::fleet::held::{Gone, META_FIELD, Meta, RING_MESSAGES, ring_field};
use crate::fleet::hooks::{Mark, Shown, net_effect};
use crate::fleet::message::Message;
use crate::fleet::partition::bucket_of;
use crate::fleet::traffic::Reply;
use crate::fleet::{Birth, CALL_USERS_MAX};
use crate::status::Status;
use crate::time::{Mono, Now, Unix};
use crate::wire::UserBuf;
use crate::wire::record::Told;

/// Times that nodes write into buckets may be so early, in ms.
const SLACK_MS: u64 = 10_000;
/// So long after somebody hides a bucket says so, in ms; and so often it is looked at.
pub(super) const HIDDEN_MS: u64 = 1_000;
const LOOK_MS: u64 = 50;

impl Follow {
    /// Reads what is missing between what was handed over and what there is.
    pub(super) fn catch_up(&mut self, at: usize, meta: Option<Meta>, now: Now) {
        let base = self.feeds[at].base;
        let Some(end) = meta.map(Mark::from) else {
            // Nobody has ever written to it, or all is lost.
            return self.follow(at, now);
        };
        let Some(base) = base else {
            return self.begin_walk(at, (Unix::default(), Unix::default()), end, now);
        };
        if base == end {
            return self.follow(at, now);
        }
        if base.birth != end.birth || base.number >= end.number {
            return self.distrust(at, base, end, now);
        }
        if end.number - base.number >= RING_MESSAGES {
            let since = base.since.minus_ms(SLACK_MS);
            return self.begin_walk(at, (since, since), end, now);
        }
        let hot = self.partitions.hot_key(self.partitions.at(at as u16));
        let fields: Vec<_> = (base.number..=end.number).map(ring_field).collect();
        let words = [&b"HMGET"[..], hot.as_bytes(), META_FIELD].into_iter();
        let call = Call::plain(words.chain(fields.iter().map(|field| &field[..])));
        self.feeds[at].stage = Stage::Ring;
        self.ask(at, Asked::Ring, vec![call]);
    }

    /// What was told is not in Redis any more: nodes say again whom they know first. Then all who
    /// are here are told, and who went since about then.
    pub(super) fn distrust(&mut self, at: usize, base: Mark, end: Mark, now: Now) {
        let until = now.mono.plus_ms(self.settle_ms);
        let settled_at = *self.feeds[at].settled_at.get_or_insert(until);
        if now.mono < settled_at {
            return self.wait(at, settled_at);
        }
        let since = base.since.minus_ms(SLACK_MS);
        self.begin_walk(at, (Unix::default(), since), end, now);
    }

    pub(super) fn ring_read(&mut self, at: usize, replies: &[Reply], now: Now) -> Option<()> {
        let [Reply::List(values)] = replies else {
            return None;
        };
        let base = self.feeds[at].base?;
        let mut values = values.iter().map(|value| bytes_of(value).flatten());
        let end: Mark = Meta::parse(values.next()??).ok()?.into();
        let since = base.since.minus_ms(SLACK_MS);
        let first = values.next()?;
        let is_same = base.number == 0 || first.is_some_and(|kept| base.is_of(kept));
        if end.birth != base.birth || !is_same && first.is_some_and(|kept| has(kept, base)) {
            self.distrust(at, base, end, now);
            return Some(());
        }
        let mut messages = Vec::new();
        for (number, value) in (base.number + 1..).zip(values) {
            let message = value.and_then(|bytes| Message::parse_kept(bytes).ok()?);
            let is_next =
                |it: &Message<'_>| it.birth == base.birth && it.number() == number && is_same;
            let Some(message) = message.filter(is_next) else {
                // An erasure has emptied the ring, or it has gone round meanwhile.
                self.begin_walk(at, (since, since), end, now);
                return Some(());
            };
            messages.push(message);
        }
        self.collect(at, &messages, now);
        Some(())
    }

    // Handing states over.

    /// What these messages come to, as far as there is room for it.
    pub(super) fn collect(&mut self, at: usize, messages: &[Message<'_>], now: Now) {
        let mut room = (self.outlet.room)();
        if room >= self.outlet.queue_max {
            // One message is handed over, however many it names.
            room = room.max(CALL_USERS_MAX);
        }
        let mut records = 0;
        let fits = |message: &&Message<'_>| {
            records += message.records().count();
            records <= room
        };
        let fitting = messages.iter().take_while(fits).count();
        let messages = &messages[..fitting];
        let Some(last) = messages.last() else {
            return self.overflow(at, now.mono);
        };
        let mut batch = Batch {
            end: Some(Mark {
                birth: last.birth,
                number: last.number(),
                since: last.since,
            }),
            from: messages[0].since,
            until: now.mono.plus_ms(HIDDEN_MS),
            covers: Some(Covers::Messages {
                birth: last.birth,
                numbers: messages[0].number()..=last.number(),
            }),
            ..Batch::default()
        };
        let prefix = &*self.outlet.prefix;
        let records = messages.iter().flat_map(|message| {
            let (since, number) = (message.since, message.number());
            message.records().map(move |record| (since, number, record))
        });
        let records = records.filter(|(.., record)| record.user.as_str().starts_with(prefix));
        for (record, number, shown) in net_effect(records) {
            let (user, stamp) = (UserBuf::from(record.user), stamp(last.birth, number));
            match shown {
                Shown::Hidden(since) => batch.hidden.push((user, since, stamp)),
                Shown::State {
                    status,
                    since,
                    last_active,
                } => batch
                    .states
                    .push(state(user, status, since, last_active, stamp)),
            }
        }
        self.feeds[at].is_full = false;
        self.hand(at, batch, now);
    }

    /// There is no room: what is missing is read when there is.
    pub(super) fn overflow(&mut self, at: usize, now: Mono) {
        let was_full = std::mem::replace(&mut self.feeds[at].is_full, true);
        self.overflows += u64::from(!was_full);
        self.wait(at, now.plus_ms(AGAIN_MS));
    }

    pub(super) fn hand(&mut self, at: usize, batch: Batch, now: Now) {
        if !batch.hidden.is_empty() {
            self.feeds[at].stage = Stage::Hidden(batch);
            return self.look(at);
        }
        self.hand_states(at, batch.from, batch.states);
        if let Some(covers) = &batch.covers {
            self.missed.settle(at, covers);
        }
        if let Some(end) = batch.end {
            if self.missed.has_up_to(at, end) {
                // No position says that they are told before they are.
                return self.tell_missed(at, Some(end), now);
            }
            self.feeds[at].advance(end);
        }
        self.follow(at, now);
    }

    pub(super) fn hand_states(&mut self, at: usize, from: Unix, states: Vec<HookState>) {
        if !states.is_empty() {
            let states = self.feeds[at].open(at as u16, from, states);
            (self.outlet.hand)(HookOrder::States(states));
        }
    }

    // Who hides.

    /// Reads what everybody is told of those who hide.
    pub(super) fn look(&mut self, at: usize) {
        let Stage::Hidden(batch) = &self.feeds[at].stage else {
            return;
        };
        let partition = self.partitions.at(at as u16);
        let calls = batch.hidden.iter().map(|(user, ..)| {
            let bucket = bucket_of(user.user(), self.buckets);
            let key = self.partitions.offline_key(partition, bucket);
            Call::plain([b"HGET", key.as_bytes(), user.as_str().as_bytes()])
        });
        let calls = calls.collect();
        self.ask(at, Asked::Buckets, calls);
    }

    pub(super) fn looked(&mut self, at: usize, replies: &[Reply], now: Now) -> Option<()> {
        let Stage::Hidden(batch) = &mut self.feeds[at].stage else {
            return None;
        };
        let mut replies = replies.iter();
        let states = &mut batch.states;
        batch.hidden.retain(|(user, hid, stamp)| {
            let gone = replies.next().and_then(|reply| bytes_of(reply)?);
            let gone = gone.and_then(|bytes| Gone::parse(bytes).ok());
            let gone = gone.filter(|gone| gone.since >= *hid);
            states.extend(gone.map(|gone| away(user.clone(), gone, *stamp)));
            gone.is_none()
        });
        if batch.hidden.is_empty() || now.mono >= batch.until {
            let mut batch = std::mem::take(batch);
            // They came hidden: nobody is told.
            batch.hidden.clear();
            self.hand(at, batch, now);
        } else {
            self.stage_due(at, now.mono.plus_ms(LOOK_MS));
        }
        Some(())
    }
}

/// Whether bytes of the ring are of the message with that number, whenever it was.
fn has(kept: &[u8], mark: Mark) -> bool {
    let message = Message::parse_kept(kept).ok().flatten();
    message.is_some_and(|it| it.birth == mark.birth && it.number() == mark.number)
}

/// What a message's number adds to what tells its states from others.
pub(super) fn stamp(birth: Birth, number: u64) -> u64 {
    u64::from_be_bytes(birth.0) ^ number
}

pub(super) fn away(user: UserBuf, gone: Gone, stamp: u64) -> HookState {
    let Gone { since, last_active } = gone;
    state(user, Status::Offline, since, Some(last_active), stamp)
}

pub(super) fn state(
    user: UserBuf,
    status: Status,
    since: Unix,
    last_active: Option<Unix>,
    stamp: u64,
) -> HookState {
    let told = Told {
        user,
        status,
        since: Some(since),
        last_active,
        stale: false,
        heard: None,
    };
    HookState { told, stamp }
}
