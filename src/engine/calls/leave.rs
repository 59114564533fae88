//! `POST /v1/leave`: goodbyes over a connection.

use super::refused::Refused;
use crate::engine::parts::Engine;
use crate::metrics::Counter;
use crate::presence::LeaveOutcome;
use crate::time::{Now, Unix};
use crate::wire::record::Entry;
use crate::wire::response::Answer;

pub(super) fn leave(engine: &mut Engine, users: &[Entry], now: Now) -> Answer {
    let mut refused = Refused::default();
    for (index, user) in users.iter().enumerate() {
        let user = match user {
            Ok(user) => user.user(),
            Err(fault) => {
                refused.add(index, *fault, &mut engine.counters);
                continue;
            }
        };
        let Some(slot) = engine.presence.lookup(user) else {
            engine.counters.add(Counter::LeavesIgnored, 1);
            continue;
        };
        match engine.presence.record_leave(slot, Unix::LATEST, now) {
            LeaveOutcome::Left => {
                engine.counters.add(Counter::LeavesHttp, 1);
                engine.look(slot, now);
            }
            LeaveOutcome::Ignored => engine.counters.add(Counter::LeavesIgnored, 1),
        }
    }
    refused.answer()
}
