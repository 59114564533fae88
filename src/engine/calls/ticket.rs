//! `POST /v1/ticket`: what a page shows that can set neither a header nor a cookie.
//!
//! Owns how a ticket is answered, and why none is made. What is in one is `auth`'s.

use super::caller::Caller;
use crate::auth::TICKET_CHARS_MAX;
use crate::engine::parts::Engine;
use crate::metrics::Counter;
use crate::time::Now;
use crate::wire::response::{Answer, problems};

/// A ticket that grants for one stream what the caller's token does.
pub(super) fn make(engine: &mut Engine, caller: &Caller, now: Now) -> Answer {
    let (Caller::User(grant), Some(identity)) = (caller, &engine.node.keyring.identity) else {
        let detail = "nobody is asked for a token here, so none takes a ticket";
        return Answer::problem(problems::NOT_FOUND, detail);
    };
    let nonce = engine.random.u64(..);
    let made = identity
        .tickets
        .make(grant, engine.node.keyring.fleet.signing(), nonce, now);
    match made {
        Ok((ticket, good_ms)) => Answer::json(
            format!(
                "{{\"ticket\":\"{ticket}\",\"expires_in\":{}}}",
                good_ms / 1_000
            )
            .into_bytes(),
        ),
        Err(chars) => {
            engine.counters.add(Counter::TicketTooLong, 1);
            let detail = format!(
                "the ticket would have {chars} characters, and a URL takes {TICKET_CHARS_MAX}; \
                 send the token as a header or in the cookie, or name fewer in its watch"
            );
            Answer::problem(problems::TICKET_TOO_LONG, &detail)
        }
    }
}
