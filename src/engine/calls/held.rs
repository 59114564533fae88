//! `POST /v1/streams/held`: a presence node asks of whom a stream that vouches for them is open
//! here.
//!
//! Answers with their places in the list. A stream that vouches for itself counts while it does.

use std::fmt::Write;

use super::caller::Caller;
use super::served::Served;
use crate::engine::parts::Engine;
use crate::realtime::ConnId;
use crate::time::Now;
use crate::wire::record::Entry;
use crate::wire::response::Answer;

pub(super) fn held(
    engine: &mut Engine,
    _: ConnId,
    users: Vec<Entry>,
    _: &Caller,
    _now: Now,
) -> Served {
    let mut body = String::from("{\"held\":[");
    for (index, user) in users.iter().enumerate() {
        let slot = user.as_ref().ok();
        let slot = slot.and_then(|user| engine.presence.lookup(user.user()));
        if slot.is_some_and(|slot| engine.presence.is_held(slot)) {
            let comma = if body.ends_with('[') { "" } else { "," };
            let _ = write!(body, "{comma}{index}");
        }
    }
    body.push_str("]}");
    Answer::json(body.into_bytes()).into()
}
