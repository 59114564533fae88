//! Questions: who is online, and since when.
//!
//! A real-time node does not know, and asks those that do (`passed_on`).

use super::caller::Caller;
use super::ignored::Ignored;
use super::passed_on::Shape;
use super::refused::Refused;
use super::served::Served;
use crate::engine::parts::Engine;
use crate::engine::records::record_of;
use crate::engine::role::Role;
use crate::realtime::ConnId;
use crate::slot::Slot;
use crate::status::Status;
use crate::time::{Now, Unix};
use crate::wire::record::{Entry, Record};
use crate::wire::response::Answer;
use crate::wire::{User, UserBuf};

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
pub(super) fn one(
    engine: &mut Engine,
    asker: ConnId,
    user: User<'_>,
    caller: &Caller,
    now: Now,
) -> Served {
    if engine.must_ask_elsewhere([user]) {
        let shape = match caller.is(user) {
            true => Shape::Own(user.into()),
            false => Shape::One,
        };
        return engine.pass_query_on(asker, vec![Ok(user.into())], shape, caller, now);
    }
    if caller.is(user)
        && let Some(slot) = engine.presence.lookup(user)
    {
        return engine.own_answer(slot, now).into();
    }
    let mut body = engine.conns.scratch();
    caller.told(record(engine, user, now)).write(&mut body);
    Answer::json(body).into()
}

/// `GET /v1/presence`: the states of those that are users, in the order asked.
pub(super) fn many(
    engine: &mut Engine,
    asker: ConnId,
    users: Vec<Entry>,
    ignored: Ignored,
    caller: &Caller,
    now: Now,
) -> Served {
    if engine.must_ask_elsewhere(users.iter().flatten().map(UserBuf::user)) {
        return engine.pass_query_on(asker, users, Shape::Listed(ignored), caller, now);
    }
    list(engine, &users, &ignored, caller, now).into()
}

fn list(
    engine: &mut Engine,
    users: &[Entry],
    ignored: &Ignored,
    caller: &Caller,
    now: Now,
) -> Answer {
    let mut body = engine.conns.scratch();
    let mut refused = Refused::default();
    let mut list = Listed::begin(&mut body);
    for (index, user) in users.iter().enumerate() {
        match user {
            Ok(user) => {
                let user = user.user();
                let record = caller.told(record(engine, user, now));
                list.add(record, heard(engine, user, caller, now));
            }
            Err(fault) => refused.add(index, *fault, &mut engine.counters),
        }
    }
    list.end(&refused, ignored);
    Answer::json(body)
}

impl Engine {
    /// Whether somebody is heard here of whom the fleet has yet to say so. Of who hides it does
    /// not.
    fn is_heard(&self, slot: Slot) -> bool {
        let published = self.presence.hidden(slot);
        let is_known = self.presence.has_been_told(slot);
        self.heard.is_online(slot) && is_known && !published.invisible
    }

    /// Whether the states of some of these are known elsewhere alone. A node of a fleet knows of
    /// some what the fleet says, and of those whom it hears that they are here; unless it was never
    /// told of them, for they may hide.
    pub(super) fn must_ask_elsewhere<'u>(&self, users: impl IntoIterator<Item = User<'u>>) -> bool {
        let is_known = |user| {
            let slot = self.presence.lookup(user);
            slot.is_some_and(|slot| self.presence.is_sure(slot) || self.is_heard(slot))
        };
        match self.node.role {
            Role::All | Role::Presence => false,
            Role::Realtime(_) => true,
            Role::Fleet(_) => !users.into_iter().all(is_known),
        }
    }
}

/// A list of records being written.
pub(super) struct Listed<'b> {
    body: &'b mut Vec<u8>,
    told: usize,
}

impl<'b> Listed<'b> {
    pub(super) fn begin(body: &'b mut Vec<u8>) -> Listed<'b> {
        body.extend_from_slice(b"{\"presence\":[");
        Listed { body, told: 0 }
    }

    pub(super) fn add(&mut self, record: Record<'_>, heard: Option<Unix>) {
        self.body
            .extend_from_slice(if self.told > 0 { b"," } else { b"" });
        record.write_with(heard, self.body);
        self.told += 1;
    }

    pub(super) fn end(self, refused: &Refused, ignored: &Ignored) {
        self.body.push(b']');
        refused.write(usize::MAX, self.body);
        ignored.write(usize::MAX, self.body);
        self.body.push(b'}');
    }
}

/// `POST /v1/presence/query`.
pub(super) fn query(
    engine: &mut Engine,
    asker: ConnId,
    users: Vec<Entry>,
    caller: &Caller,
    now: Now,
) -> Served {
    if engine.must_ask_elsewhere(users.iter().flatten().map(UserBuf::user)) {
        let shape = Shape::Listed(Ignored::default());
        return engine.pass_query_on(asker, users, shape, caller, now);
    }
    let answer = list(engine, &users, &Ignored::default(), caller, now);
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
        Role::All | Role::Realtime(_) | Role::Fleet(_) => answer,
    }
    .into()
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
        // In a fleet whoever has just been heard here has yet to be told by the fleet.
        Some(slot) if engine.is_heard(slot) && !engine.presence.is_online(slot) => {
            record_of(&engine.heard, slot, now)
        }
        Some(slot) => {
            let record = engine.as_written(record_of(&engine.presence, slot, now), now);
            // While the fleet's database is away nobody knows what other nodes hear.
            let is_old = engine.posts.has_bridge()
                && engine.presence.is_behind(now.mono)
                && !engine.heard.is_online(slot);
            Record {
                stale: record.stale || is_old,
                ..record
            }
        }
    }
}
