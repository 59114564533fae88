//! New users: who may make them, how fast, and who waits to become one.
//!
//! Owns the rate of each connection, and the streams whose holders could not be made yet: they stay
//! open, and are tried again each beat interval, or whenever a holder beats for itself. The rate of
//! the whole node is the presence database's. A user who is known costs nothing here.

mod run;

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::presence::pace::Pace;
use crate::realtime::ConnId;
use crate::time::Mono;
use crate::wire::UserBuf;

/// Connections whose rates are kept before those are looked for that have rested since.
const PACES_MIN: usize = 256;

/// Between two looks at rates, however few are kept, in ms.
const REST_MS: u64 = 1_000;

/// What one shard knows of those who arrive.
#[derive(Debug, Default)]
pub(in crate::engine) struct Arrivals {
    /// Whose request is served now, if it is held to a rate of its own.
    caller: Option<ConnId>,
    /// Of connections that have made users lately.
    paces: HashMap<ConnId, Pace, foldhash::fast::RandomState>,
    /// Entries at which those that have rested are dropped.
    paces_max: usize,
    /// When they are dropped however few they are.
    rest_due: Mono,
    /// Streams whose holders are to be made.
    waiting: HashMap<ConnId, Coming, foldhash::fast::RandomState>,
    /// When they are tried again; the soonest first.
    due: VecDeque<(Mono, ConnId)>,
}

/// Who is to be a stream's publisher. Some 100 bytes with its stream.
#[derive(Debug)]
struct Coming {
    user: UserBuf,
    /// Who beats for itself is here when it says so.
    by_holder: bool,
}

impl Arrivals {
    /// From here on users are made for this connection; None: for one of the fleet.
    pub(in crate::engine) fn called_by(&mut self, caller: Option<ConnId>) {
        self.caller = caller;
    }

    /// When somebody is to be tried again.
    pub(in crate::engine) fn due(&self) -> Mono {
        self.due.front().map_or(Mono::NEVER, |(due, _)| *due)
    }

    /// A stream's holder could not be made: it is tried again at `due`.
    pub(in crate::engine) fn wait(
        &mut self,
        stream: ConnId,
        user: UserBuf,
        by_holder: bool,
        due: Mono,
    ) {
        self.waiting.insert(stream, Coming { user, by_holder });
        self.due.push_back((due, stream));
    }

    /// The stream has ended, or its holder is made.
    fn forget(&mut self, stream: ConnId) {
        self.waiting.remove(&stream);
        if self.waiting.is_empty() {
            // What a burst took is given back.
            self.waiting.shrink_to_fit();
        }
    }

    /// Drops the rates of connections that have rested since: now and then, and when they are many.
    fn rest(&mut self, now: Mono) {
        self.rest_due = now.plus_ms(REST_MS);
        self.paces.retain(|_, pace| !pace.is_rested(now));
        self.paces.shrink_to_fit();
        // Looked at again when as many more have come as are left.
        self.paces_max = 2 * self.paces.len();
    }

    fn rest_if_due(&mut self, now: Mono) {
        if !self.paces.is_empty() && now >= self.rest_due {
            self.rest(now);
        }
    }

    fn takes(&mut self, per_second: u32, now: Mono) -> bool {
        let Some(caller) = self.caller.filter(|_| per_second > 0) else {
            return true;
        };
        if self.paces.len() >= self.paces_max.max(PACES_MIN) {
            self.rest(now);
        }
        let pace = self.paces.entry(caller).or_default();
        pace.take(per_second, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_of_connections_that_have_rested_leave_nothing_behind() {
        let mut arrivals = Arrivals::default();
        let at = |ms| Mono::from_micros(5_000_000).plus_ms(ms);
        for index in 0..10_000 {
            arrivals.called_by(Some(ConnId {
                index,
                generation: 1,
            }));
            assert!(arrivals.takes(2_000, at(0)));
        }
        // One that goes on is held to its rate.
        let mut goes_on = |ms| (0..3_000).filter(|_| arrivals.takes(2_000, at(ms))).count();
        assert_eq!(goes_on(500), 2_000);
        arrivals.rest_if_due(at(999));
        assert_eq!(arrivals.paces.len(), 10_000);
        arrivals.rest_if_due(at(1_000));
        assert_eq!((arrivals.paces.len(), arrivals.paces.capacity()), (1, 3));
        arrivals.rest_if_due(at(2_000));
        assert_eq!((arrivals.paces.len(), arrivals.paces.capacity()), (0, 0));
    }
}
