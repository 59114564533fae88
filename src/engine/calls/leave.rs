//! `POST /v1/leave`: goodbyes over a connection, in all their forms.

use std::sync::Arc;

use super::audit::{Deed, audit};
use super::caller::Caller;
use super::refused::Refused;
use super::served::{LogOut, Served};
use super::stream_id;
use crate::engine::errand::{Goodbye, LoggedOutAt};
use crate::engine::parts::Engine;
use crate::metrics::Counter;
use crate::realtime::ConnId;
use crate::slot::Slot;
use crate::time::{Now, Unix};
use crate::wire::UserBuf;
use crate::wire::record::LeaveAsk;
use crate::wire::response::{Answer, problems};

pub(super) fn leave(
    engine: &mut Engine,
    asker: ConnId,
    ask: LeaveAsk,
    caller: &Caller,
    now: Now,
) -> Served {
    if let Err(detail) = engine.check_leave(&ask) {
        return Answer::problem(problems::BAD_JSON, &detail).into();
    }
    if ask.everywhere {
        let mut refused = Refused::default();
        let users = refused.sift(None, ask.users, &mut engine.counters);
        let answer = refused.answer();
        let said_at = match ask.sent_at.map(Unix::from_ms) {
            // What is said to have been long ago is said now.
            Some(at) if now.unix.ms_apart(at) <= engine.settings.beat_skew_max_ms => {
                LoggedOutAt::Then(at.min(now.unix))
            }
            // Who logs in while shards take note of it is not meant.
            _ if engine.farewells.ask() => LoggedOutAt::Then(now.unix),
            _ => LoggedOutAt::Now,
        };
        if let Some(upstream) = &mut engine.upstream
            && !engine.posts.has_bridge()
        {
            upstream.log_out(&engine.presence, &users, now);
        }
        audit(caller, Deed::EndStreams, users.iter().map(UserBuf::user));
        let at = said_at.here().unwrap_or(now.unix);
        engine.farewells.end_streams(&users, at);
        return end_everywhere(engine, asker, users, said_at, answer, now);
    }
    let mut shard = engine.node.shard;
    let stream = ask.stream.clone();
    let (mut goodbye, answer) = engine.goodbye_of(ask, caller);
    if let Some(stream) = &stream {
        let parsed = stream_id::parse(&engine.node.secret, stream);
        match parsed {
            Some((holder, stream)) => {
                shard = holder;
                goodbye.stream = Some(stream);
            }
            // Another life of this process made it, or nobody did.
            None if goodbye.users.is_empty() => return engine.unknown_stream().into(),
            None => {}
        }
    }
    engine.farewell(asker, shard, goodbye, answer, now)
}

impl Engine {
    /// What of the members contradicts what.
    pub(super) fn check_leave(&self, ask: &LeaveAsk) -> Result<(), String> {
        let mut after_ms_max = self.settings.offline_after_ms;
        if self.node.role.passes_on() {
            // It is passed on when it is due, with the time at which it was said.
            after_ms_max = after_ms_max.min(self.settings.beat_skew_max_ms / 2);
        }
        check(ask, after_ms_max)
    }

    /// The goodbye of users who are named, and what it is answered.
    pub(super) fn goodbye_of(&mut self, ask: LeaveAsk, caller: &Caller) -> (Goodbye, Answer) {
        let mut refused = Refused::default();
        let users = refused.sift(None, ask.users, &mut self.counters);
        let goodbye = Goodbye {
            users,
            stream: None,
            holder: self.holder_of(caller),
            after_ms: ask.after_ms,
        };
        (goodbye, refused.answer())
    }
}

/// What of the members contradicts what.
fn check(ask: &LeaveAsk, after_ms_max: u64) -> Result<(), String> {
    if ask.everywhere && (ask.stream.is_some() || ask.after_ms > 0) {
        return Err("everywhere takes users, and neither stream nor after_ms".into());
    }
    if ask.sent_at.is_some() && !ask.everywhere {
        return Err("sent_at takes everywhere".into());
    }
    if ask.after_ms > after_ms_max {
        return Err(format!("after_ms is more than {after_ms_max}"));
    }
    Ok(())
}

/// `POST /v1/streams/end`: a presence node tells a real-time node whose streams end, which were
/// open then.
pub(super) fn end_streams(
    engine: &mut Engine,
    asker: ConnId,
    ask: LeaveAsk,
    caller: &Caller,
    now: Now,
) -> Served {
    let Some(sent_at) = ask.sent_at.filter(|_| ask.everywhere) else {
        let detail = "it takes users, everywhere and sent_at";
        return Answer::problem(problems::BAD_JSON, detail).into();
    };
    let mut refused = Refused::default();
    let users = refused.sift(None, ask.users, &mut engine.counters);
    audit(caller, Deed::EndStreams, users.iter().map(UserBuf::user));
    let at = LoggedOutAt::Then(Unix::from_ms(sent_at));
    end_everywhere(engine, asker, users, at, refused.answer(), now)
}

fn end_everywhere(
    engine: &mut Engine,
    asker: ConnId,
    users: Vec<UserBuf>,
    at: LoggedOutAt,
    answer: Answer,
    now: Now,
) -> Served {
    let mut users = users;
    let mut slots: Vec<Slot> = Vec::with_capacity(users.len());
    for user in &users {
        match engine.presence.lookup(user.user()) {
            Some(slot) => slots.push(slot),
            // No stream of theirs was ever open here.
            None => engine.counters.add(Counter::LeavesIgnored, 1),
        }
    }
    slots.sort_unstable_by_key(|slot| slot.index());
    slots.dedup();
    if !engine.posts.has_bridge() {
        users.clear();
    }
    let logging_out = LogOut {
        slots: Arc::from(slots),
        users,
        at,
    };
    engine.log_out(asker, logging_out, answer, now)
}
