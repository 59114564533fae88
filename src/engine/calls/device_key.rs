//! `POST /v1/device-key`: what a device signs its beats with, so that it is trusted with one user
//! alone.
//!
//! Owns how a key is answered, and why none is. How one is made is the wire's. Nothing is kept.

use super::caller::Caller;
use crate::engine::parts::Engine;
use crate::time::Now;
use crate::wire::User;
use crate::wire::response::{Answer, problems};

/// The present key of a device of the caller's.
pub(super) fn make(engine: &mut Engine, device: User<'_>, caller: &Caller, now: Now) -> Answer {
    let Caller::User(grant) = caller else {
        let detail = "nobody is asked for a token here, so there is nobody to make a key for; \
                      devices beat with the fleet key";
        return Answer::problem(problems::NOT_FOUND, detail);
    };
    engine.epochs.go_on(&engine.node.keyring.fleet, now.unix);
    let (key, valid_until) = engine.epochs.key_of(grant.user.user(), device);
    let began = engine.epochs.began(key.epoch());
    let user = grant.user.user();
    if engine
        .node
        .revoked
        .covers_device(user, device.as_bytes(), began)
    {
        let detail = "the keys of this epoch were revoked; until the next the device beats over \
                      HTTP (POST /v1/beat)";
        return Answer::problem(problems::NOT_PERMITTED, detail);
    }
    let mut body = engine.conns.scratch();
    key.write(valid_until, &mut body);
    Answer::json(body)
}
