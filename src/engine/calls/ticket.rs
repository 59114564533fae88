//! `POST /v1/ticket`: what a page shows that can set neither a header nor a cookie.
//!
//! Owns who gets one for whom, how it is answered, and why none is made. What is in one is
//! `auth`'s.

use super::caller::Caller;
use crate::auth::{Grant, Identity, TICKET_CHARS_MAX};
use crate::engine::parts::Engine;
use crate::metrics::Counter;
use crate::time::Now;
use crate::wire::response::{Answer, problems};

/// A ticket that grants for one stream what the caller's token does; or, for a service, what the
/// claims do that are its body.
pub(super) fn make(engine: &mut Engine, body: &[u8], caller: &Caller, now: Now) -> Answer {
    let nonce = engine.random.u64(..);
    let keyring = &engine.node.keyring;
    let (identity, made) = match (caller, &keyring.identity) {
        (_, None) | (Caller::Anybody, _) => {
            let detail = "nobody is asked for a token here, so none takes a ticket";
            return Answer::problem(problems::NOT_FOUND, detail);
        }
        (Caller::Node, _) if !keyring.services.is_empty() => {
            let detail = "the token of a node lacks the scope ticket; show the key of a service \
                          that has it";
            return Answer::problem(problems::NOT_PERMITTED, detail);
        }
        (Caller::User(grant), Some(identity)) => (identity, Ok(Grant::clone(grant))),
        (Caller::Node | Caller::Service { .. }, Some(identity)) => {
            (identity, claimed(identity, body, now))
        }
    };
    let grant = match made {
        Ok(grant) => grant,
        Err(refused) => return refused,
    };
    let signing = keyring.fleet.signing();
    match identity.tickets.make(&grant, signing, nonce, now) {
        Ok((ticket, good_ms)) => {
            let seconds = good_ms / 1_000;
            let json = format!("{{\"ticket\":\"{ticket}\",\"expires_in\":{seconds}}}");
            Answer::json(json.into_bytes())
        }
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

/// What a service says of the user for whom it asks: the claims that it would sign. They are made
/// now unless they say otherwise, so that no earlier revocation of the user covers them.
fn claimed(identity: &Identity, body: &[u8], now: Now) -> Result<Grant, Answer> {
    let mut grant = identity.rules.judge(body, now.unix).map_err(|refusal| {
        let (reason, what) = (refusal.reason(), refusal.explain());
        let detail = format!("the body is to be a token's claims; {reason}: {what}");
        Answer::problem(problems::BAD_JSON, &detail)
    })?;
    grant.issued.get_or_insert(now.unix);
    Ok(grant)
}
