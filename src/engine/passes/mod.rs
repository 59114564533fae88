//! What happens because time passes: timers, sweep, vouching, resync, drain.
//!
//! Owns the passes over a shard's connections and slots, and how long a shard may sleep. `run`
//! carries out what they say is due.

mod aging;
mod drain;
mod log_out;
mod pass;
mod put_off;
mod resync;
mod retain;
mod revoke;
mod run;
mod seek;
mod sweep;
mod vouch;

use crate::engine::errand::PutOff;
use crate::presence::{Sweep, Transition};
use crate::time::Mono;
use aging::Aging;
use drain::Draining;
use log_out::LoggingOut;
pub(super) use log_out::OPENED_MS;
use put_off::PuttingOff;
use resync::Resyncing;
use retain::Retaining;
use revoke::Revoking;
use seek::Seeking;
use sweep::Sweeping;
use vouch::Vouching;

/// Time after a stall in which a shard reads what came meanwhile: many turns of the most reads that
/// one may make.
const HEARING_MS: u64 = 1_000;
/// The passes of a shard.
pub(super) struct Passes {
    sweeping: Sweeping,
    vouching: Vouching,
    aging: Aging,
    resyncing: Resyncing,
    retaining: Retaining,
    draining: Draining,
    pub(in crate::engine) putting_off: PuttingOff,
    pub(in crate::engine) logging_out: LoggingOut,
    pub(in crate::engine) revoking: Revoking,
    pub(in crate::engine) seeking: Seeking,
    /// Room for what a resync finds.
    news: Vec<Transition>,
    sleep_until: Mono,
    /// No connection's timer fires before: its peer may have said in time what has yet to be read.
    timers_held_until: Mono,
    /// The last call left something over.
    backlog: bool,
}

impl Passes {
    /// None for `sweep`: nobody's stamps are kept here.
    /// `revoked`: where the journal of revocations ends, which concern no stream that is to come.
    pub(super) fn new(sweep: Option<Sweep>, revoked: u64, now: Mono) -> Passes {
        Passes {
            sweeping: Sweeping::new(sweep, now),
            vouching: Vouching::new(now),
            aging: Aging::new(now),
            resyncing: Resyncing::default(),
            retaining: Retaining::default(),
            draining: Draining::default(),
            putting_off: PuttingOff::default(),
            logging_out: LoggingOut::default(),
            revoking: Revoking::new(revoked),
            seeking: Seeking::default(),
            news: Vec::new(),
            sleep_until: now,
            timers_held_until: now,
            backlog: false,
        }
    }

    pub(super) fn has_backlog(&self) -> bool {
        self.backlog
            || self.sweeping.is_under_way()
            || self.resyncing.is_under_way()
            || self.logging_out.is_under_way()
            || self.revoking.is_under_way()
            || self.seeking.is_under_way()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.has_begun()
    }

    /// When the next piece is due.
    pub(super) fn next(&self) -> Mono {
        let due = self.sweeping.due().min(self.sleep_until);
        let put_off = self.fires_at(self.putting_off.due());
        due.min(self.draining.due()).min(put_off)
    }

    /// A goodbye that was put off until now.
    pub(super) fn next_put_off(&mut self, now: Mono) -> Option<PutOff> {
        self.putting_off.next(now)
    }

    /// The next turn begins `sleep_ms_max` from now at the latest.
    pub(super) fn turn_began(&mut self, now: Mono, sleep_ms_max: u64) {
        self.sleep_until = now.plus_ms(sleep_ms_max);
    }

    /// This shard was stalled: what came meanwhile is to be read before anybody is held to a
    /// deadline.
    pub(super) fn hold_timers(&mut self, now: Mono) {
        self.timers_held_until = now.plus_ms(HEARING_MS);
    }

    /// Whether this shard was stalled so lately: what it wrote then may be on its way still.
    pub(super) fn was_stalled(&self, within_ms: u64, now: Mono) -> bool {
        now < self.timers_held_until.plus_ms(within_ms)
    }

    /// When a connection's timer that is due at `due` fires.
    pub(super) fn fires_at(&self, due: Mono) -> Mono {
        due.max(self.timers_held_until)
    }

    /// Vouches for all publishers of a presence node in a short time.
    pub(super) fn vouch_in_a_hurry(&mut self, node: usize, now: Mono) {
        self.vouching.hurry(node, now);
    }
}
