//! `POST /v1/status`: what a user says of itself, and what its holder alone is told.
//!
//! Owns the holder's own view: the answers to their own calls, and nothing else, say what is true
//! of somebody invisible. A real-time node decides nothing: it passes on what is said, and answers
//! what the user's presence node has answered.

use std::sync::Arc;

use super::caller::Caller;
use super::errands::Errands;
use super::refused::Refused;
use super::served::{Served, Then, Waits, intern_detail, overloaded};
use crate::engine::errand::{Asker, Verdict};
use crate::engine::mail::Taken;
use crate::engine::parts::Engine;
use crate::engine::records::record_of;
use crate::engine::upstream::Say;
use crate::metrics::Counter;
use crate::presence::{OwnState, Presence, State};
use crate::realtime::ConnId;
use crate::slot::Slot;
use crate::status::Status;
use crate::time::Now;
use crate::wire::UserBuf;
use crate::wire::record::{Entry, Record, Said, StatusAsk, Told};
use crate::wire::response::{Answer, problems};

/// What is said at a real-time node waits so long for the presence node, in ms: it may be behind a
/// request that times out.
const SAYING_MS_MAX: u64 = 3_000;

/// The same of a node of a fleet, of what only the database can do.
const NOT_IN_FLEET: &str = "the fleet's database does not answer; it is done when it does, unless \
                            this node ends first: ask again";

const UNTAKEN: &str = "the user's presence node does not answer; what was said may hold, or not";

/// Sets a user's status. Nobody is online by it.
pub(super) fn set(
    engine: &mut Engine,
    asker: ConnId,
    ask: StatusAsk,
    caller: &Caller,
    now: Now,
) -> Served {
    if let Some(users) = ask.users {
        if ask.user.is_some() || !caller.is_node() || engine.node.role.follows() {
            let detail = "users is what nodes say to presence nodes; name one `user`";
            return Answer::problem(problems::BAD_JSON, detail).into();
        }
        return set_all(engine, asker, &users, (ask.said, ask.idle_ms), now);
    }
    let Some(user) = ask.user.or_else(|| caller.own()) else {
        let detail = "missing field `user`: whose status it is, where no token says so";
        return Answer::problem(problems::BAD_JSON, detail).into();
    };
    if engine.node.role.passes_on() {
        let attended = ask.idle_ms.is_some() && !engine.is_idle(ask.idle_ms);
        if let Some(slot) = engine.presence.lookup(user.user()) {
            match engine.is_idle(ask.idle_ms) {
                true => engine.presence.say_unattended(slot),
                false if attended => drop(engine.presence.say_attended(slot)),
                false => {}
            }
        }
        // What is answered then is what has come by mail.
        let then = Then::Answer(overloaded(UNTAKEN));
        return engine.pass_saying_on(asker, user, (ask.said, attended), then, now);
    }
    let slot = match engine.take_in(user.user(), now) {
        Ok(slot) => slot,
        Err(fault) => {
            engine.book_intern_fault(fault);
            return overloaded(intern_detail(fault)).into();
        }
    };
    let mut errands = Errands::default();
    engine.say(slot, ask.said, &mut errands, now);
    engine.say_idle(slot, ask.idle_ms, &mut errands, now);
    errands.park(engine, asker, Then::Own(slot), now)
}

/// The same of several, of whom a real-time node has heard it. Who could not be made is missing in
/// the answer, and so is who is unknown if nothing is said: then it is a question.
fn set_all(
    engine: &mut Engine,
    asker: ConnId,
    users: &[Entry],
    (said, idle_ms): (Said, Option<u64>),
    now: Now,
) -> Served {
    let mut errands = Errands::default();
    let mut slots = Vec::with_capacity(users.len());
    let says_nothing = said.is_empty() && idle_ms.is_none();
    for user in users.iter().flatten() {
        if says_nothing {
            // Whoever is merely asked about is not made.
            slots.extend(engine.presence.lookup(user.user()));
            continue;
        }
        match engine.take_in(user.user(), now) {
            Ok(slot) => {
                engine.say(slot, said, &mut errands, now);
                engine.say_idle(slot, idle_ms, &mut errands, now);
                slots.push(slot);
            }
            Err(fault) => engine.book_intern_fault(fault),
        }
    }
    errands.park(engine, asker, Then::Owns(slots), now)
}

impl Engine {
    /// Takes over what a user says of itself; the slot's owner looks at it if that is news.
    pub(super) fn say(&mut self, slot: Slot, said: Said, errands: &mut Errands, now: Now) {
        if said.is_empty() {
            return;
        }
        if self.posts.has_bridge() {
            return self.say_in_fleet(slot, said, errands, now);
        }
        if self.heard.say(slot, said) {
            errands.look(self, slot, now);
        }
    }

    /// The same at a node of a fleet: all nodes are told, and the answer waits until it is told
    /// here. What the fleet has said already is no news.
    fn say_in_fleet(&mut self, slot: Slot, said: Said, errands: &mut Errands, now: Now) {
        let status = Said {
            invisible: None,
            ..said
        };
        let mut is_news = !self.presence.is_sure(slot);
        if !status.is_empty() && self.heard.say(slot, status) {
            errands.look(self, slot, now);
            is_news = true;
        }
        if let Some(invisible) = said.invisible {
            is_news |= self.presence.note_hiding(slot, invisible);
        }
        if is_news {
            errands.tell_fleet(self.presence.user(slot).into(), said);
        }
    }

    /// A device says for how long nobody has been at it. Of its user's only stream that holds on;
    /// somebody who is there is there at once.
    fn say_idle(&mut self, slot: Slot, idle_ms: Option<u64>, errands: &mut Errands, now: Now) {
        if self.is_idle(idle_ms) {
            self.heard.say_unattended(slot);
        } else if idle_ms.is_some() && self.heard.say_attended(slot) {
            errands.look(self, slot, now);
        }
    }

    /// At a real-time node: has the user's presence node take over what a user says of itself.
    pub(super) fn pass_saying_on(
        &mut self,
        conn: ConnId,
        user: UserBuf,
        (said, attended): (Said, bool),
        then: Then,
        now: Now,
    ) -> Served {
        let asker = Asker {
            shard: self.node.shard,
            conn,
            until: now.mono.plus_ms(SAYING_MS_MAX),
        };
        if let Some(upstream) = &mut self.upstream {
            let say = Say {
                user,
                said,
                attended,
                asker,
            };
            upstream.say(say);
        }
        Served::Parked {
            until: asker.until,
            unanswered: UNTAKEN,
            refused: Refused::default(),
            waits: Some(Box::new(Waits {
                errands: 1,
                verdict: Verdict::Done,
                then,
            })),
        }
    }

    /// Presence nodes have answered, or have not.
    pub(in crate::engine) fn finish_saying(&mut self, taken: &[Taken], now: Now) {
        // At a node of a fleet it is answered by what is known here by then.
        let passes_on = self.node.role.passes_on();
        let shard = self.node.shard;
        for Taken { asker, own } in taken.iter().filter(|taken| taken.asker.shard == shard) {
            let Some(waits) = self.conns.waits(asker.conn) else {
                continue;
            };
            let Some((told, invisible)) = own else {
                self.counters.add(Counter::StatusesUntaken, 1);
                let why = if passes_on { UNTAKEN } else { NOT_IN_FLEET };
                self.give_up(asker.conn, why, now);
                continue;
            };
            if passes_on && matches!(waits.then, Then::Answer(_)) {
                waits.then = Then::Answer(own_record(told, *invisible));
            }
            self.errand_ran(asker.conn, 0, Verdict::Done, now);
        }
    }

    /// What somebody has said of themselves has been done: their holder is told what is true then.
    /// A node of a fleet that has not heard of the user asks the fleet.
    pub(super) fn own_served(
        &mut self,
        conn: ConnId,
        slot: Slot,
        verdict: Verdict,
        now: Now,
    ) -> Served {
        let presence = Arc::clone(&self.presence);
        let user = presence.user(slot);
        if verdict == Verdict::Done && self.must_ask_elsewhere([user]) {
            return self.ask_for_own(conn, user, now);
        }
        let answer = self.own_answer(slot, now);
        self.judged(verdict, answer).into()
    }

    /// A user as its holder is told, and nobody else.
    pub(super) fn own_answer(&self, slot: Slot, now: Now) -> Answer {
        let mut body = Vec::new();
        self.write_own(slot, &mut body, now);
        Answer::json(body)
    }

    /// The same of several.
    pub(super) fn own_answers(&self, slots: &[Slot], now: Now) -> Answer {
        let mut body = b"{\"presence\":[".to_vec();
        for (at, slot) in slots.iter().enumerate() {
            body.extend_from_slice(if at > 0 { b"," } else { b"" });
            self.write_own(*slot, &mut body, now);
        }
        body.extend_from_slice(b"]}");
        Answer::json(body)
    }

    fn write_own(&self, slot: Slot, body: &mut Vec<u8>, now: Now) {
        let OwnState { state, invisible } = self.own_state(slot, now);
        let record = Record {
            status: state.status,
            since: state.since,
            last_active: state.last_active,
            ..record_of(&self.presence, slot, now)
        };
        let record = match self.posts.has_bridge() && !invisible && !self.heard.is_online(slot) {
            // Its beats go to another node.
            true => self.as_written(record, now),
            false => record,
        };
        record.write_own(invisible, body);
    }
}

impl Engine {
    fn own_state(&self, slot: Slot, now: Now) -> OwnState {
        match self.posts.has_bridge() {
            true => own_in_fleet(&self.presence, &self.heard, slot, now),
            false => {
                let offline_after_ms = self.settings.offline_after_ms;
                self.heard.own_state(slot, offline_after_ms, now)
            }
        }
    }
}

/// A user at a node of a fleet as it is told itself: what the fleet says of it, and what was heard
/// here just now.
pub(crate) fn own_in_fleet(told: &Presence, heard: &Presence, slot: Slot, now: Now) -> OwnState {
    let public = told.state(slot, now);
    let (hidden, said) = (told.hidden(slot), heard.said(slot).status);
    let is_heard = heard.is_online(slot);
    let last_active = heard.state(slot, now).last_active.filter(|_| is_heard);
    let status = match said {
        _ if !hidden.is_here && !is_heard => Status::Offline,
        Status::Online if hidden.unattended => Status::Away,
        said => said,
    };
    OwnState {
        state: State {
            status,
            since: public.since.filter(|_| public.is_known()),
            last_active: last_active.max(public.last_active.filter(|_| public.is_known())),
        },
        invisible: hidden.invisible,
    }
}

/// What a presence node has told of a user, as the user is told it.
fn own_record(told: &Told, invisible: bool) -> Answer {
    let mut body = Vec::new();
    told.record().write_own(invisible, &mut body);
    Answer::json(body)
}
