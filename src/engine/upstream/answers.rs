//! What a presence node answered becomes what this node knows.
//!
//! Owns who gets a slot for an answer, and who is only known by name. Believing it is the
//! follower's; telling it is each shard's, by mail.

use crate::engine::mail::{Answered, Decided};
use crate::presence::{Presence, Source};
use crate::time::{Now, Unix};
use crate::wire::record::Told;

/// Takes over answers that a presence node computed at `as_of` by its clock. The shards are told by
/// [`Mail::Answered`](crate::engine::Mail::Answered). Returns also how many found no room.
pub fn adopt_answers(
    presence: &Presence,
    answers: &[Told],
    as_of: Unix,
    now: Now,
) -> (Answered, u64) {
    let mut answered = Answered {
        decided: Decided {
            at: now.mono,
            transitions: Vec::new(),
        },
        unseen: Vec::new(),
        sure: Vec::new(),
    };
    let mut refused = 0;
    for told in answers {
        let user = told.user.user();
        // Whoever was never seen gets no slot for having been asked about.
        let slot = match (presence.lookup(user), told.since) {
            (Some(slot), _) => slot,
            (None, None) => {
                answered.unseen.push(user.as_str().into());
                continue;
            }
            (None, Some(_)) => match presence.intern(user) {
                Ok(slot) => slot,
                Err(_) => {
                    refused += 1;
                    continue;
                }
            },
        };
        let news = presence.adopt(slot, told, Source::Answered(as_of), now);
        answered.decided.transitions.extend(news);
        answered.sure.push(slot);
    }
    (answered, refused)
}
