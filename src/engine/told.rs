//! What presence nodes publish to a real-time node: `PUT /v1/presence/{user}` and `PUT
//!/v1/presence`.
//!
//! Owns whom it believes and what is said back. Taken over means told: the transitions go the way
//! of all others.

use super::calls::instance_of;
use super::calls::refused::{Reason, Refused};
use super::calls::served::overloaded;
use super::parts::Engine;
use super::passes::OPENED_MS;
use crate::metrics::Counter;
use crate::planted::{self, Planted};
use crate::presence::{InternFault, Source};
use crate::slot::Slot;
use crate::status::Status;
use crate::time::{Now, Unix};
use crate::wire::feed::{FEED_HEADER, LIFE_HEADER, Place};
use crate::wire::record::{ItemFault, Told};
use crate::wire::response::{Answer, problems};

/// Takes over what is told: in the place of a feed that the header names, or by hand.
pub(super) fn put(
    engine: &mut Engine,
    list: &[Result<Told, ItemFault>],
    feed: Option<&str>,
    now: Now,
) -> Answer {
    // None: by hand, outside of any feed. Who may PUT may say anything.
    let taken = match feed.map(Place::parse) {
        None => None,
        Some(None) => {
            let detail = "Greendot-Feed: BIRTH PREVIOUS NUMBER [UP_TO]";
            return Answer::problem(problems::BAD_HEAD, detail);
        }
        Some(Some(place)) => match engine.presence.take_message(&place, now.mono) {
            Some(taken) => Some(taken),
            None => {
                let detail = "this node has not seen the presence node that publishes; it asks all \
                              of its --presence each second";
                return overloaded(detail);
            }
        },
    };
    let source = match taken {
        Some(taken) if taken.in_step => Source::InStep,
        _ => Source::Told,
    };
    // By the clock of the source, as far as it has told it; by hand, by this node's.
    let clock = taken.map(|taken| engine.presence.clock_of(taken.source, now));
    let skew_ms = engine.settings.beat_skew_max_ms;
    let latest = clock.unwrap_or(now.unix).plus_ms(skew_ms);
    // Not an error: repeating it would not help, and must not hold up the publishers behind.
    let mut refused = Refused::default();
    for (index, told) in list.iter().enumerate() {
        let told = match told {
            Ok(told) => told,
            Err(fault) => {
                refused.add(index, *fault, &mut engine.counters);
                continue;
            }
        };
        let user = told.user.user();
        if taken.is_some_and(|taken| !engine.belongs_to(user, taken.source)) {
            // It had the user before another node was added, and hears no more beats.
            engine.counters.add(Counter::ToldForeign, 1);
            continue;
        }
        if told.since.is_some_and(|since| since > latest) {
            // Taken over it would stand against all that is true until that time has come. What its
            // source says of it when asked is another matter.
            refused.add(index, Reason::SinceAhead, &mut engine.counters);
            if taken.is_some() {
                engine.ask_presence_node(user);
            }
            continue;
        }
        let slot = match engine.presence.intern(user) {
            Ok(slot) => slot,
            Err(fault) => {
                if fault == InternFault::Full {
                    engine.counters.add(Counter::LimitUsers, 1);
                }
                refused.add(index, fault, &mut engine.counters);
                continue;
            }
        };
        match engine.presence.adopt(slot, told, source, now) {
            Some(transition) => {
                engine.counters.add(Counter::ToldAdopted, 1);
                // Not by an answer: a presence node that has lost its files says the same of all.
                if source == Source::InStep
                    && engine.presence.is_erased(slot)
                    && !planted::is(Planted::ErasedStreamsStay)
                {
                    engine.forgotten_elsewhere(slot, None);
                }
                engine.take_news(transition, now);
            }
            None => {
                engine.counters.add(Counter::ToldKnown, 1);
                if let (Source::InStep, Some(since)) = (source, erased_since(told)) {
                    end_older_streams(engine, slot, since, clock.unwrap_or(now.unix));
                }
            }
        }
    }
    if let Some(taken) = taken
        && let Some(up_to) = taken.up_to
    {
        engine.hear_everything(taken.source, up_to, now.mono);
    }
    let answer = refused.answer();
    match taken {
        Some(taken) => {
            let life = instance_of(&engine.node.secret);
            answer.with_lines(format!(
                "{FEED_HEADER}: {}\r\n{LIFE_HEADER}: {life:x}\r\n",
                taken.held
            ))
        }
        None => answer,
    }
}

/// As of when that says that a user was erased.
fn erased_since(told: &Told) -> Option<Unix> {
    let gone = told.status == Status::Offline && told.last_active.is_none();
    told.since.filter(|_| gone)
}

/// Somebody was erased who is back by that id already: by a stream that is open since before, or by
/// another that is not meant. After some time nobody knows which is which.
fn end_older_streams(engine: &mut Engine, slot: Slot, since: Unix, clock: Unix) {
    let known = engine.presence.since(slot);
    let is_back = known.is_some_and(|known| known > since);
    let lately = clock < since.plus_ms(OPENED_MS);
    if is_back && lately && !planted::is(Planted::ErasedStreamsStay) {
        engine.forgotten_elsewhere(slot, Some(since));
    }
}
