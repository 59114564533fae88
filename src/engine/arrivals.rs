//! New users: who may make them, how fast, and who waits to become one.
//!
//! Owns the rate of each connection, and the streams whose holders could not be made yet: they stay
//! open, and are tried again each beat interval, or whenever a holder beats for itself. The rate of
//! the whole node is the presence database's. A user who is known costs nothing here.

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::parts::Engine;
use crate::metrics::Counter;
use crate::presence::InternFault;
use crate::presence::pace::Pace;
use crate::realtime::ConnId;
use crate::slot::Slot;
use crate::time::{Mono, Now};
use crate::wire::{User, UserBuf};

/// Connections whose rates are kept before those are looked for that have rested since.
const PACES_MIN: usize = 256;
/// Streams whose holders are tried again in one call.
const TRIED_PER_CALL: usize = 256;

/// What one shard knows of those who arrive.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// Whose request is served now, if it is held to a rate of its own.
    caller: Option<ConnId>,
    /// Of connections that have made users lately.
    paces: HashMap<ConnId, Pace, foldhash::fast::RandomState>,
    /// Entries at which those that have rested are dropped.
    paces_max: usize,
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
    pub(super) fn called_by(&mut self, caller: Option<ConnId>) {
        self.caller = caller;
    }

    /// When somebody is to be tried again.
    pub(super) fn due(&self) -> Mono {
        self.due.front().map_or(Mono::NEVER, |(due, _)| *due)
    }

    /// A stream's holder could not be made: it is tried again at `due`.
    pub(super) fn wait(&mut self, stream: ConnId, user: UserBuf, by_holder: bool, due: Mono) {
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

    fn takes(&mut self, per_second: u32, now: Mono) -> bool {
        let Some(caller) = self.caller.filter(|_| per_second > 0) else {
            return true;
        };
        if self.paces.len() >= self.paces_max.max(PACES_MIN) {
            self.paces.retain(|_, pace| !pace.is_rested(now));
            self.paces.shrink_to(PACES_MIN);
            // Looked at again when as many more have come as are left.
            self.paces_max = 2 * self.paces.len();
        }
        let pace = self.paces.entry(caller).or_default();
        pace.take(per_second, now)
    }
}

impl Engine {
    /// The slot of a user whom a request names, made if need be and the rates allow.
    ///
    /// Errors: it has to be made and there is no room, or too many were made lately.
    pub(super) fn take_in(&mut self, user: User<'_>, now: Now) -> Result<Slot, InternFault> {
        if let Some(slot) = self.presence.lookup(user) {
            return Ok(slot);
        }
        let per_second = self.settings.new_users_per_conn_second_max as u32;
        if !self.arrivals.takes(per_second, now.mono) {
            self.counters.add(Counter::LimitNewUsersOfConn, 1);
            return Err(InternFault::TooFast);
        }
        let made = self.presence.intern_in_time(user, now.mono);
        if made == Err(InternFault::TooFast) {
            self.counters.add(Counter::LimitNewUsers, 1);
        }
        made
    }

    /// Tries some of the streams' holders again who could not be made before.
    pub(super) fn try_holders(&mut self, now: Now) {
        for _ in 0..TRIED_PER_CALL {
            if self.arrivals.due() > now.mono {
                return;
            }
            let Some((_, stream)) = self.arrivals.due.pop_front() else {
                return;
            };
            let Some(coming) = self.arrivals.waiting.get(&stream) else {
                continue;
            };
            let by_holder = coming.by_holder;
            if !self.conns.is_stream(stream) {
                self.arrivals.forget(stream);
                continue;
            }
            if by_holder {
                self.conns.ping(stream.index, now.mono);
            } else if let Some(slot) = self.try_holder(stream, now) {
                self.asked.push_back((stream, slot));
                continue;
            }
            let due = now.mono.plus_ms(self.settings.beat_interval_ms);
            self.arrivals.due.push_back((due, stream));
        }
    }

    /// Whether a stream's holder is yet to be made.
    pub(super) fn awaits_holder(&self, stream: ConnId) -> bool {
        self.arrivals.waiting.contains_key(&stream)
    }

    /// Makes the holder of a stream that has waited for it a publisher; None: not yet.
    pub(super) fn try_holder(&mut self, stream: ConnId, now: Now) -> Option<Slot> {
        let Coming { user, by_holder } = self.arrivals.waiting.get(&stream)?;
        let (user, by_holder) = (user.clone(), *by_holder);
        self.arrivals.called_by(Some(stream));
        match self.take_in(user.user(), now) {
            Ok(slot) => {
                self.arrivals.forget(stream);
                self.begin_to_publish(stream, slot, by_holder);
                Some(slot)
            }
            Err(fault) => {
                self.book_intern_fault(fault);
                None
            }
        }
    }

    /// A stream makes its holder a publisher.
    pub(super) fn begin_to_publish(&mut self, stream: ConnId, slot: Slot, by_holder: bool) {
        let conn = self.conns.at(stream.index);
        conn.set_publisher(slot.index());
        if by_holder {
            conn.leave_beats_to_holder();
        }
        self.conns.hold(stream.index);
        self.passes.logging_out.spare(slot, stream);
    }
}
