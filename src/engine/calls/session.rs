//! `POST` and `DELETE /v1/session`: a browser keeps a cookie in the place of a service key.
//!
//! Owns the cookie's line and how a sign-in is answered. What the cookie holds is `auth`'s.

use super::audit::{Deed, audit};
use super::caller::{Caller, refused};
use crate::auth::{SESSION_COOKIE, SESSION_MS};
use crate::engine::parts::Engine;
use crate::metrics::Counter;
use crate::time::Now;
use crate::wire::response::{Answer, problems};

/// Scripts do not see it, and no other site's page sends it.
const ATTRIBUTES: &str = "Path=/; HttpOnly; SameSite=Strict";

/// Where a page came over TLS its cookie goes nowhere else.
pub(super) fn sign_in(engine: &mut Engine, key: &str, over_tls: bool, now: Now) -> Answer {
    let keyring = &engine.node.keyring;
    if keyring.services.is_empty() {
        let detail = "this node knows no service keys; make one with `greendot key new --service`, \
                      and name the file of their hashes with --service-keys";
        return Answer::problem(problems::NOT_FOUND, detail);
    }
    let Some((service, session)) = keyring.sign_in(key, now.unix) else {
        engine.counters.add(Counter::TokenService, 1);
        return refused("no service key of this name and value is known");
    };
    let secure = if over_tls { "; Secure" } else { "" };
    let seconds = SESSION_MS / 1_000;
    let line = format!(
        "Set-Cookie: {SESSION_COOKIE}={session}; {ATTRIBUTES}; Max-Age={seconds}{secure}\r\n"
    );
    // Neither has a character that JSON escapes.
    let json = format!(
        "{{\"service\":\"{}\",\"scopes\":\"{}\",\"expires_in\":{seconds}}}",
        service.name, service.scopes
    );
    audit(&Caller::service(service), Deed::SignIn, std::iter::empty());
    Answer::json(json.into_bytes()).with_lines(line)
}

/// Whoever has copied the cookie has it until it ends; its key's end is its end too.
pub(super) fn sign_out(_engine: &mut Engine, _now: Now) -> Answer {
    let line = format!("Set-Cookie: {SESSION_COOKIE}=; {ATTRIBUTES}; Max-Age=0\r\n");
    Answer::no_content().with_lines(line)
}
