//! What presence nodes publish to a real-time node: `PUT /v1/presence/{user}` and `PUT
//!/v1/presence`.
//!
//! Owns whom it believes and what is said back. Taken over means told: the transitions go the way
//! of all others.

use super::calls::served::overloaded;
use super::parts::Engine;
use crate::metrics::Counter;
use crate::presence::{InternFault, Source};
use crate::time::Now;
use crate::wire::record::Told;
use crate::wire::response::Answer;

/// Takes over what is told by `sender`, a life of a presence node; by hand, if there is none.
pub(super) fn put(engine: &mut Engine, list: &[Told], sender: Option<&str>, now: Now) -> Answer {
    // Who has the service token may say anything.
    let node = sender.map(|sender| engine.node_of(sender, now));
    if node == Some(None) {
        let detail = "this node has not seen the presence node that publishes; it asks all of its \
                      --presence each second";
        return overloaded(detail);
    }
    let mut refused = 0;
    for told in list {
        let user = told.user.user();
        if node
            .flatten()
            .is_some_and(|node| !engine.belongs_to(user, node))
        {
            // It had the user before another node was added, and hears no more beats.
            engine.counters.add(Counter::ToldForeign, 1);
            continue;
        }
        let slot = match engine.presence.intern(user) {
            Ok(slot) => slot,
            Err(fault) => {
                if fault == InternFault::Full {
                    engine.counters.add(Counter::LimitUsers, 1);
                }
                refused += 1;
                continue;
            }
        };
        match engine.presence.adopt(slot, told, Source::Published, now) {
            Some(transition) => {
                engine.counters.add(Counter::ToldAdopted, 1);
                engine.decided(transition, now);
            }
            None => engine.counters.add(Counter::ToldKnown, 1),
        }
    }
    if refused == 0 {
        return Answer::no_content();
    }
    // Not an error: repeating it would not help, and must not hold up the publishers behind.
    Answer::json(format!("{{\"refused\":{refused}}}").into_bytes())
}

impl Engine {
    /// The index of the presence node that a `Greendot-Node` header names, if this node has seen
    /// that life of it.
    fn node_of(&self, sender: &str, now: Now) -> Option<usize> {
        let (instance, more) = sender.split_once(' ').unwrap_or((sender, ""));
        let instance = u64::from_str_radix(instance, 16).ok()?;
        self.presence.note_told(instance, more != "more", now.mono)
    }
}
