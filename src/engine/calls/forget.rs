//! `DELETE /v1/presence/{user}`: a user is erased.

use super::audit::{Deed, audit};
use super::caller::Caller;
use super::refused::Refused;
use super::served::{Served, Then, Waits, intern_detail, overloaded};
use crate::engine::errand::{Asker, Verdict};
use crate::engine::parts::Engine;
use crate::presence::{ForgetFault, InternFault};
use crate::realtime::ConnId;
use crate::time::Now;
use crate::wire::User;
use crate::wire::response::Answer;

/// An erasure waits so long for the database of a fleet, in ms.
const ERASING_MS_MAX: u64 = 3_000;
const UNERASED: &str = "the fleet's database does not answer; the user is erased when it does, \
                        unless this node ends first: ask again";

impl Engine {
    /// Has the fleet erase a user; it is answered when the database has done it.
    fn erase_in_fleet(&mut self, conn: ConnId, user: User<'_>, now: Now) -> Served {
        let until = now.mono.plus_ms(ERASING_MS_MAX);
        let asker = Asker {
            shard: self.node.shard,
            conn,
            until,
        };
        self.posts.erases.push_back((user.into(), asker));
        Served::Parked {
            until,
            unanswered: UNERASED,
            refused: Refused::default(),
            waits: Some(Box::new(Waits {
                errands: 1,
                verdict: Verdict::Done,
                then: Then::Answer(Answer::no_content()),
            })),
        }
    }
}

/// What is answered does not say whether anybody had the id.
pub(super) fn forget(
    engine: &mut Engine,
    asker: ConnId,
    user: User<'_>,
    caller: &Caller,
    now: Now,
) -> Served {
    if engine.posts.has_bridge() {
        audit(caller, Deed::Erase, [user].into_iter());
        return engine.erase_in_fleet(asker, user, now);
    }
    let answer = match engine.forget(user, now) {
        Ok(_) => {
            audit(caller, Deed::Erase, [user].into_iter());
            Answer::no_content()
        }
        Err(ForgetFault::Busy) => {
            overloaded("too many users are being forgotten; the write-back has to come by first")
        }
        Err(ForgetFault::NoSpace(error)) => {
            tracing::error!(%error, "a user could not be forgotten: users.log cannot grow");
            overloaded(intern_detail(InternFault::NoSpace))
        }
    };
    answer.into()
}
