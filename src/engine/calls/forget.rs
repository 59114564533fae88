//! `DELETE /v1/presence/{user}`: a user is erased.

use super::audit::{Deed, audit};
use super::caller::Caller;
use super::served::{Served, intern_detail, overloaded};
use crate::engine::parts::Engine;
use crate::presence::{ForgetFault, InternFault};
use crate::realtime::ConnId;
use crate::time::Now;
use crate::wire::User;
use crate::wire::response::Answer;

/// What is answered does not say whether anybody had the id.
pub(super) fn forget(
    engine: &mut Engine,
    _: ConnId,
    user: User<'_>,
    caller: &Caller,
    now: Now,
) -> Served {
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
