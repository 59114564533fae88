//! Which timers of connections fire in a turn, and who is answered for it.
//!
//! Owns the bound on a turn's timers. What a timer means is `conn/timers.rs`'.

use super::CONNS_PER_CALL;
use crate::engine::Engine;
use crate::engine::conn::timers::{Fired, Overdue};
use crate::time::Now;
use crate::wire::response::problems;

impl Engine {
    pub(super) fn fire_timers(&mut self, now: Now) {
        if self.upkeep.fires_at(now.mono) > now.mono {
            return;
        }
        for _ in 0..CONNS_PER_CALL {
            match self.conns.fire(now.mono, &mut self.counters) {
                Fired::Nothing => return,
                Fired::SeenTo => {}
                Fired::Overdue(Overdue::Parked(id)) => self.abandon_parked(id, now),
                Fired::Overdue(Overdue::Request(id)) => {
                    let detail = "the request was not complete in time; its time is counted from \
                                  its beginning";
                    self.fail(id, problems::REQUEST_TIMEOUT, detail, now);
                }
            }
        }
        self.upkeep.backlog = true;
    }
}
