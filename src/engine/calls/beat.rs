//! `POST /v1/beat`: proofs of life over a connection.

use super::served::{intern_detail, overloaded};
use crate::engine::parts::Engine;
use crate::metrics::Counter;
use crate::time::{Now, Unix};
use crate::wire::UserBuf;
use crate::wire::response::Answer;

pub(super) fn beat(engine: &mut Engine, users: &[UserBuf], now: Now) -> Answer {
    let mut refused = None;
    for user in users {
        match engine.presence.intern(user.user()) {
            Ok(slot) => {
                // Neither late nor a replay: it comes after every goodbye that has come.
                let outcome = engine.presence.record_beat(slot, Unix::LATEST, now);
                engine.book_beat(slot, outcome, Counter::BeatsHttp, now);
            }
            Err(fault) => {
                engine.book_intern_fault(fault);
                refused = Some(fault);
            }
        }
    }
    match refused {
        None => Answer::no_content(),
        Some(fault) => overloaded(intern_detail(fault)),
    }
}
