//! `POST /v1/beat`: proofs of life over a connection.
//!
//! A real-time node passes them on (`passed_on`).

use super::caller::Caller;
use super::errands::Errands;
use super::passed_on;
use super::refused::Refused;
use super::served::{Served, Then};
use crate::engine::parts::Engine;
use crate::metrics::Counter;
use crate::presence::InternFault;
use crate::realtime::ConnId;
use crate::time::{Now, Unix};
use crate::wire::User;
use crate::wire::beat::Flags;
use crate::wire::json::write_str;
use crate::wire::record::BeatAsk;
use crate::wire::response::Answer;

pub(super) fn beat(
    engine: &mut Engine,
    asker: ConnId,
    ask: BeatAsk,
    caller: &Caller,
    now: Now,
) -> Served {
    if engine.node.role.passes_on() {
        return passed_on::beat(engine, asker, ask, now);
    }
    // A node has put together the beats of several who wait for it.
    let mut refused = match caller.is_node() {
        true => Refused::naming_all(),
        false => Refused::default(),
    };
    let mut errands = Errands::default();
    // Those of whom others are told that they have gone.
    let mut invisible = Vec::new();
    for (index, user) in ask.users.iter().enumerate() {
        let user = match user {
            Ok(user) => user.user(),
            Err(fault) => {
                refused.add(index, *fault, &mut engine.counters);
                continue;
            }
        };
        match engine.beat_elsewhere(user, &ask, now) {
            Ok(false) => {}
            Ok(true) => {
                if engine.hides(engine.presence.lookup(user)) {
                    invisible.push(user.as_str());
                }
                continue;
            }
            Err(fault) => {
                engine.book_intern_fault(fault);
                refused.add(index, fault, &mut engine.counters);
                continue;
            }
        }
        match engine.take_in(user, now) {
            Ok(slot) => {
                // Before the beat: who is invisible never flashes online.
                engine.say(slot, ask.said, &mut errands, now);
                // Neither late nor a replay: it comes after every goodbye that has come.
                let outcome = match engine.is_idle(ask.idle_ms) {
                    true => engine.record_idle_beat(slot, now),
                    false => engine.heard.record_beat(slot, Unix::LATEST, now),
                };
                if engine.count_beat(outcome, Counter::BeatsHttp) {
                    errands.look(engine, slot, now);
                }
                if engine.presence.is_invisible(slot) {
                    invisible.push(user.as_str());
                }
            }
            Err(fault) => {
                engine.book_intern_fault(fault);
                refused.add(index, fault, &mut engine.counters);
            }
        }
    }
    let answer = beaten(&invisible, &refused);
    errands.park(engine, asker, Then::Answer(answer), now)
}

impl Engine {
    /// True: the user's home in the fleet has the beat. What a user says of itself is taken where
    /// it is said, with the beat.
    ///
    /// Errors: it may be a new user, of whom too many were named lately.
    fn beat_elsewhere(
        &mut self,
        user: User<'_>,
        ask: &BeatAsk,
        now: Now,
    ) -> Result<bool, InternFault> {
        if self.homes_elsewhere().is_none() || !ask.said.is_empty() {
            return Ok(false);
        }
        // It may make one there, and what a connection may is known here alone.
        if self.presence.lookup(user).is_none() && !self.takes_new(now) {
            self.counters.add(Counter::LimitNewUsersOfConn, 1);
            return Err(InternFault::TooFast);
        }
        let flags = Flags::BEAT.with_idle(self.is_idle(ask.idle_ms));
        Ok(self.passes_beat_on(user, flags, now))
    }
}

/// Says to whoever beats for them who is invisible, and which items were refused.
pub(super) fn beaten(invisible: &[&str], refused: &Refused) -> Answer {
    if invisible.is_empty() {
        return refused.answer();
    }
    let mut body = Vec::new();
    for user in invisible {
        body.extend_from_slice(match body.is_empty() {
            true => &b"{\"invisible\":["[..],
            false => b",",
        });
        write_str(user, &mut body);
    }
    body.push(b']');
    refused.write(usize::MAX, &mut body);
    body.push(b'}');
    Answer::json(body)
}
