//! Questions: who is online, and since when.

use super::caller::Caller;
use super::ignored::Ignored;
use super::refused::Refused;
use crate::engine::parts::Engine;
use crate::engine::records::record_of;
use crate::engine::role::Role;
use crate::status::Status;
use crate::time::{Now, Unix};
use crate::wire::User;
use crate::wire::record::{Entry, Record};
use crate::wire::response::Answer;

/// Header by which a presence node says which life of it speaks (16 hex digits); in an answer to a
/// query also a moment of its clock (Unix ms) before which it publishes nothing any more.
pub const NODE_HEADER: &str = "Greendot-Node";
/// Its last word, if the node has refused new users lately.
pub const REFUSES_NEW: &str = "full";

/// Tells one life of a process from another, by what its engines' secret is.
pub fn instance_of(secret: &[u8; 32]) -> u64 {
    let name = blake3::keyed_hash(secret, b"instance");
    u64::from_be_bytes(
        *name
            .as_bytes()
            .first_chunk()
            .expect("a BLAKE3 hash has 32 bytes"),
    )
}

/// `GET /v1/presence/{user}`.
pub(super) fn one(engine: &mut Engine, user: User<'_>, caller: &Caller, now: Now) -> Answer {
    if caller.is(user)
        && let Some(slot) = engine.presence.lookup(user)
    {
        return engine.own_answer(slot, now);
    }
    let mut body = engine.conns.scratch();
    caller.told(record(engine, user, now)).write(&mut body);
    Answer::json(body)
}

/// `GET /v1/presence`: the states of those that are users, in the order asked.
pub(super) fn many(
    engine: &mut Engine,
    users: &[Entry],
    ignored: &Ignored,
    caller: &Caller,
    now: Now,
) -> Answer {
    let mut body = engine.conns.scratch();
    let mut refused = Refused::default();
    body.extend_from_slice(b"{\"presence\":[");
    let mut told = 0;
    for (index, user) in users.iter().enumerate() {
        match user {
            Ok(user) => {
                body.extend_from_slice(if told > 0 { b"," } else { b"" });
                let user = user.user();
                caller
                    .told(record(engine, user, now))
                    .write_with(heard(engine, user, caller, now), &mut body);
                told += 1;
            }
            Err(fault) => refused.add(index, *fault, &mut engine.counters),
        }
    }
    body.push(b']');
    refused.write(usize::MAX, &mut body);
    ignored.write(usize::MAX, &mut body);
    body.push(b'}');
    Answer::json(body)
}

/// `POST /v1/presence/query`.
pub(super) fn query(engine: &mut Engine, users: &[Entry], caller: &Caller, now: Now) -> Answer {
    let answer = many(engine, users, &Ignored::default(), caller, now);
    match engine.node.role {
        // Tells a node that follows this one which life of it answers, as of when, and what its
        // clock shows. Whom it has never heard of it may have refused.
        Role::Presence => answer.with_lines(format!(
            "{NODE_HEADER}: {:016x} {} {}{}\r\n",
            instance_of(&engine.node.secret),
            engine.presence.published_up_to().ms(),
            now.unix.ms(),
            match engine.presence.has_refused_new(now.mono) {
                true => format!(" {REFUSES_NEW}"),
                false => String::new(),
            }
        )),
        Role::All | Role::Realtime(_) => answer,
    }
}

/// When somebody invisible was last heard of, which is told to nodes alone: they look for beats
/// that get lost.
fn heard(engine: &Engine, user: User<'_>, caller: &Caller, now: Now) -> Option<Unix> {
    let slot = engine.presence.lookup(user).filter(|_| caller.is_node())?;
    engine.presence.heard_invisibly(slot, now)
}

/// A user's state as told to those who ask.
fn record<'u>(engine: &'u Engine, user: User<'u>, now: Now) -> Record<'u> {
    match engine.presence.lookup(user) {
        None => Record::timeless(user, Status::Offline),
        Some(slot) => record_of(&engine.presence, slot, now),
    }
}
