//! `POST /v1/leave`: goodbyes over a connection.

use crate::engine::parts::Engine;
use crate::metrics::Counter;
use crate::presence::LeaveOutcome;
use crate::time::Now;
use crate::wire::UserBuf;
use crate::wire::response::Answer;

pub(super) fn leave(engine: &mut Engine, users: &[UserBuf], now: Now) -> Answer {
    for user in users {
        let Some(slot) = engine.presence.lookup(user.user()) else {
            engine.counters.add(Counter::LeavesIgnored, 1);
            continue;
        };
        match engine.presence.record_leave(slot, now.unix, now) {
            LeaveOutcome::Left => {
                engine.counters.add(Counter::LeavesHttp, 1);
                engine.look(slot, now);
            }
            LeaveOutcome::Ignored => engine.counters.add(Counter::LeavesIgnored, 1),
        }
    }
    Answer::no_content()
}
