//! `POST /v1/beat`: proofs of life over a connection.

use super::refused::Refused;
use crate::engine::parts::Engine;
use crate::metrics::Counter;
use crate::time::{Now, Unix};
use crate::wire::record::Entry;
use crate::wire::response::Answer;

pub(super) fn beat(engine: &mut Engine, users: &[Entry], now: Now) -> Answer {
    let mut refused = Refused::default();
    for (index, user) in users.iter().enumerate() {
        let user = match user {
            Ok(user) => user.user(),
            Err(fault) => {
                refused.add(index, *fault, &mut engine.counters);
                continue;
            }
        };
        match engine.presence.intern(user) {
            Ok(slot) => {
                // Neither late nor a replay: it comes after every goodbye that has come.
                let outcome = engine.presence.record_beat(slot, Unix::LATEST, now);
                engine.book_beat(slot, outcome, Counter::BeatsHttp, now);
            }
            Err(fault) => {
                engine.book_intern_fault(fault);
                refused.add(index, fault, &mut engine.counters);
            }
        }
    }
    refused.answer()
}
