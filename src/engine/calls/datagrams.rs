//! `POST /v1/datagrams`: beat datagrams of a real-time node whose UDP does not arrive.
//!
//! Each is judged as if it had come by UDP, by its key, its MAC and the time at which it was sent:
//! one that is late undoes no goodbye that was said since.

use crate::engine::beats::Way;
use crate::engine::parts::Engine;
use crate::time::Now;
use crate::wire::beat::{BundleFault, read_bundle};
use crate::wire::response::{Answer, problems};

pub(super) fn take(engine: &mut Engine, body: &[u8], now: Now) -> Answer {
    match read_bundle(body) {
        Ok(datagrams) => {
            engine.take_datagrams(&datagrams, Way::Connection, now);
            Answer::no_content()
        }
        Err(fault @ BundleFault::Torn) => Answer::problem(problems::BAD_BUNDLE, &fault.to_string()),
        Err(fault @ BundleFault::TooMany) => {
            Answer::problem(problems::BODY_TOO_LARGE, &fault.to_string())
        }
    }
}
