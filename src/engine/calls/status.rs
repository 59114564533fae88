//! `POST /v1/status`: what a user says of itself, and what its holder alone is told.
//!
//! Owns the holder's own view: the answers to their own calls, and nothing else, say what is true
//! of somebody invisible.

use super::caller::Caller;
use super::errands::Errands;
use super::served::{Served, Then, intern_detail, overloaded};
use crate::engine::parts::Engine;
use crate::engine::records::record_of;
use crate::presence::OwnState;
use crate::realtime::ConnId;
use crate::slot::Slot;
use crate::time::Now;
use crate::wire::record::{Record, Said, StatusAsk};
use crate::wire::response::{Answer, problems};

/// Sets a user's status. Nobody is online by it.
pub(super) fn set(
    engine: &mut Engine,
    asker: ConnId,
    ask: StatusAsk,
    caller: &Caller,
    now: Now,
) -> Served {
    let Some(user) = ask.user.or_else(|| caller.own()) else {
        let detail = "missing field `user`: whose status it is, where no token says so";
        return Answer::problem(problems::BAD_JSON, detail).into();
    };
    let slot = match engine.take_in(user.user(), now) {
        Ok(slot) => slot,
        Err(fault) => {
            engine.book_intern_fault(fault);
            return overloaded(intern_detail(fault)).into();
        }
    };
    let mut errands = Errands::default();
    engine.say(slot, ask.said, &mut errands, now);
    errands.park(engine, asker, Then::Own(slot), now)
}

impl Engine {
    /// Takes over what a user says of itself; the slot's owner looks at it if that is news.
    pub(super) fn say(&mut self, slot: Slot, said: Said, errands: &mut Errands, now: Now) {
        if !said.is_empty() && self.presence.say(slot, said) {
            errands.look(self, slot, now);
        }
    }

    /// A user as its holder is told, and nobody else.
    pub(super) fn own_answer(&self, slot: Slot, now: Now) -> Answer {
        let offline_after_ms = self.settings.offline_after_ms;
        let OwnState { state, invisible } = self.presence.own_state(slot, offline_after_ms, now);
        let record = Record {
            status: state.status,
            since: state.since,
            last_active: state.last_active,
            ..record_of(&self.presence, slot, now)
        };
        let mut body = Vec::new();
        record.write(&mut body);
        body.pop();
        body.extend_from_slice(match invisible {
            true => b",\"invisible\":true}",
            false => b",\"invisible\":false}",
        });
        Answer::json(body)
    }
}
