//! `POST /v1/beat`: proofs of life over a connection.

use super::errands::Errands;
use super::refused::Refused;
use super::served::{Served, Then};
use crate::engine::parts::Engine;
use crate::metrics::Counter;
use crate::realtime::ConnId;
use crate::time::{Now, Unix};
use crate::wire::record::Entry;

pub(super) fn beat(engine: &mut Engine, asker: ConnId, users: &[Entry], now: Now) -> Served {
    let mut refused = Refused::default();
    let mut errands = Errands::default();
    for (index, user) in users.iter().enumerate() {
        let user = match user {
            Ok(user) => user.user(),
            Err(fault) => {
                refused.add(index, *fault, &mut engine.counters);
                continue;
            }
        };
        match engine.take_in(user, now) {
            Ok(slot) => {
                // Neither late nor a replay: it comes after every goodbye that has come.
                let outcome = engine.presence.record_beat(slot, Unix::LATEST, now);
                if engine.count_beat(outcome, Counter::BeatsHttp) {
                    errands.look(engine, slot, now);
                }
            }
            Err(fault) => {
                engine.book_intern_fault(fault);
                refused.add(index, fault, &mut engine.counters);
            }
        }
    }
    errands.park(engine, asker, Then::Answer(refused.answer()), now)
}
