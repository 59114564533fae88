//! New users: who may make them, how fast, and who waits to become one.
//!
//! Owns the rate of each connection, or of each client whom a proxy names, and the streams whose
//! holders could not be made yet. They stay open, and are tried again each beat interval, or when a
//! holder beats for itself. The rate of the whole node is the presence database's. A user who is
//! known costs nothing here.

mod run;

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::engine::conn::addresses::{Client, CountsFor};
use crate::presence::pace::Pace;
use crate::realtime::ConnId;
use crate::time::Mono;
use crate::wire::{User, UserBuf};

/// Makers whose rates are kept before those are looked for that have rested since.
const PACES_MIN: usize = 256;

/// Between two looks at rates, however few are kept, in ms.
const REST_MS: u64 = 1_000;

/// Who makes new users, and has a rate for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(in crate::engine) enum Maker {
    Conn(ConnId),
    /// A proxy keeps a few connections for all its clients, so they are told apart by name.
    Client(Client),
}

impl Maker {
    /// Who asks on this connection, which a proxy may say of it.
    pub(in crate::engine) fn of(conn: ConnId, behind: CountsFor) -> Maker {
        match behind {
            CountsFor::Client(client) if client != Client::UNNAMED => Maker::Client(client),
            _ => Maker::Conn(conn),
        }
    }
}

/// What one shard knows of those who arrive.
#[derive(Debug, Default)]
pub(in crate::engine) struct Arrivals {
    /// Whose request is served now, if it is held to a rate of its own.
    maker: Option<Maker>,
    /// Of those that have made users lately.
    paces: HashMap<Maker, Pace, foldhash::fast::RandomState>,
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
    maker: Maker,
    /// Who beats for itself is here when it says so.
    by_holder: bool,
}

impl Arrivals {
    /// From here on users are made for this one; None: for a node or a service.
    pub(in crate::engine) fn called_by(&mut self, maker: Option<Maker>) {
        self.maker = maker;
    }

    /// When somebody is to be tried again.
    pub(in crate::engine) fn due(&self) -> Mono {
        self.due.front().map_or(Mono::NEVER, |(due, _)| *due)
    }

    /// A stream's holder could not be made: it is tried again at `due`, for `maker`.
    pub(in crate::engine) fn wait(
        &mut self,
        stream: ConnId,
        user: UserBuf,
        maker: Maker,
        by_holder: bool,
        due: Mono,
    ) {
        let coming = Coming {
            user,
            maker,
            by_holder,
        };
        self.waiting.insert(stream, coming);
        self.due.push_back((due, stream));
    }

    /// Who is to be a stream's publisher, and could not be made yet.
    pub(in crate::engine) fn coming(&self, stream: ConnId) -> Option<User<'_>> {
        if self.waiting.is_empty() {
            return None;
        }
        self.waiting.get(&stream).map(|coming| coming.user.user())
    }

    /// The stream has ended, or its holder is made.
    fn forget(&mut self, stream: ConnId) {
        self.waiting.remove(&stream);
        if self.waiting.is_empty() {
            // What a burst took is given back.
            self.waiting.shrink_to_fit();
        }
    }

    /// Drops the rates of those that have rested since: now and then, and when they are many.
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
        let Some(maker) = self.maker.filter(|_| per_second > 0) else {
            return true;
        };
        if self.paces.len() >= self.paces_max.max(PACES_MIN) {
            self.rest(now);
        }
        let pace = self.paces.entry(maker).or_default();
        pace.take(per_second, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_of_makers_that_have_rested_leave_nothing_behind() {
        let mut arrivals = Arrivals::default();
        let at = |ms| Mono::from_micros(5_000_000).plus_ms(ms);
        for index in 0..10_000 {
            let conn = ConnId {
                index,
                generation: 1,
            };
            arrivals.called_by(Some(Maker::Conn(conn)));
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
