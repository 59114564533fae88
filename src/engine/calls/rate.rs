//! Who asks too much.
//!
//! Owns how they are told. How much is too much is `auth`'s. Nobody has to wait where nobody is
//! asked for a token, nor has a node or a service.

use super::caller::Caller;
use crate::auth::Asked;
use crate::engine::parts::Engine;
use crate::metrics::Counter;
use crate::time::Now;
use crate::wire::response::{Answer, problems};

impl Engine {
    /// Takes so much of what a caller may ask.
    ///
    /// Err: it is too much.
    pub(super) fn take_rate(
        &mut self,
        caller: &Caller,
        asks: &[(Asked, usize)],
        now: Now,
    ) -> Result<(), Answer> {
        let (Caller::User(grant), Some(identity)) = (caller, &self.node.keyring.identity) else {
            return Ok(());
        };
        let taken = identity.rates.take(grant.user.user(), asks, now.mono);
        taken.map_err(|exceeded| {
            let (limit, what) = told(exceeded.asked);
            self.counters.add(limit, 1);
            let seconds = exceeded.wait_ms.div_ceil(1_000).max(1);
            let detail = format!("the holder of the token asks for {what}; try again later");
            Answer::problem(problems::RATE_LIMITED, &detail)
                .with_lines(format!("Retry-After: {seconds}\r\n"))
        })
    }
}

/// What is counted, and what is said.
fn told(asked: Asked) -> (Counter, &'static str) {
    match asked {
        Asked::Queries => (Counter::LimitUserQueries, "too many queries"),
        Asked::Ids => (Counter::LimitUserIds, "too many users in a minute"),
        Asked::Edits => (Counter::LimitUserEdits, "too many edits"),
        Asked::Streams => (Counter::LimitUserStreams, "too many streams"),
        Asked::Watches => (
            Counter::LimitUserWatches,
            "too many users to watch in a minute",
        ),
        Asked::Tickets => (Counter::LimitUserTickets, "too many tickets"),
    }
}
