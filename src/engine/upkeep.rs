//! What happens because time passes: timers, sweep, vouching, resync, drain.
//!
//! Owns the cursors of the passes over a shard's connections and slots. Each call does a bounded
//! piece of each; what is left over makes the next turn begin at once. Never scans all of anything
//! in one call.

mod drain;
mod inbox;
mod timers;

use super::Engine;
use super::upstream::REVOUCH_MS;
use crate::metrics::Counter;
use crate::planted::{self, Planted};
use crate::presence::{SweepContext, Transition};
use crate::realtime::Phase;
use crate::slot::Slot;
use crate::time::{Mono, Now, Unix};

/// Connections that one call fires, vouches for or drains.
const CONNS_PER_CALL: u32 = 8_192;
/// Time after a stall in which a shard reads what came meanwhile: many turns of the most reads that
/// one may make.
const HEARING_MS: u64 = 1_000;

/// The cursors.
#[derive(Debug)]
pub(super) struct Upkeep {
    sweep_due: Mono,
    sweeping: bool,
    vouch: Pass,
    /// Places of the table that the pass reckons with. It shrinks by a tenth a pass at most:
    /// whoever has a place in what is left of a large table would else be much later in the next
    /// pass than in this one.
    vouch_places: u32,
    /// Short passes beside that one, each over the publishers of one presence node.
    hurried: Vec<(usize, Pass)>,
    drain: Option<Pass>,
    drain_due: Mono,
    sleep_until: Mono,
    resync: Option<Resync>,
    /// No connection's timer fires before: its peer may have said in time what has yet to be read.
    timers_held_until: Mono,
    /// Room for what the sweep decides.
    transitions: Vec<Transition>,
    /// The last call left something over.
    backlog: bool,
}

/// A pass over the connection table that takes a given time.
#[derive(Clone, Copy, Debug)]
struct Pass {
    started: Mono,
    cursor: u32,
}

/// A pass over the published states because mail was lost.
#[derive(Clone, Copy, Debug)]
struct Resync {
    slot: u32,
    name: Option<usize>,
    floor: Unix,
    /// More was lost meanwhile: the floor of another pass behind this one.
    again: Option<Unix>,
}

impl Resync {
    fn new(floor: Unix) -> Resync {
        Resync {
            slot: 0,
            name: Some(usize::MAX),
            floor,
            again: None,
        }
    }
}

impl Pass {
    /// How far the pass should have come at `now` if it takes `length_ms` over `places`, at most
    /// [`CONNS_PER_CALL`] further; and whether that is as far as it should be.
    fn target(&self, now: Mono, length_ms: u64, places: u32) -> (u32, bool) {
        let elapsed_ms = now.ms_since(self.started).min(length_ms);
        let due = if length_ms == 0 {
            places
        } else {
            (u128::from(places) * u128::from(elapsed_ms) / u128::from(length_ms)) as u32
        };
        let target = due.min(self.cursor.saturating_add(CONNS_PER_CALL));
        (target.max(self.cursor), target >= due)
    }
}

impl Upkeep {
    pub(super) fn new(now: Mono) -> Upkeep {
        Upkeep {
            sweep_due: now,
            sweeping: false,
            vouch: Pass {
                started: now,
                cursor: 0,
            },
            vouch_places: 0,
            hurried: Vec::new(),
            drain: None,
            drain_due: now,
            sleep_until: now,
            resync: None,
            timers_held_until: now,
            transitions: Vec::new(),
            backlog: false,
        }
    }

    pub(super) fn has_backlog(&self) -> bool {
        self.backlog || self.sweeping || self.resync.is_some()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// When the next piece is due.
    pub(super) fn next(&self) -> Mono {
        let due = self.sweep_due.min(self.sleep_until);
        match self.drain {
            Some(_) => due.min(self.drain_due),
            None => due,
        }
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

    /// When a connection's timer that is due at `due` fires.
    pub(super) fn fires_at(&self, due: Mono) -> Mono {
        due.max(self.timers_held_until)
    }

    /// Vouches for all publishers of a presence node in a short time, whenever their turn is.
    /// Others have heard their beats.
    pub(super) fn vouch_in_a_hurry(&mut self, node: usize, now: Mono) {
        if planted::is(Planted::HurryIgnored) {
            return;
        }
        let pass = Pass {
            started: now,
            cursor: 0,
        };
        self.hurried.retain(|(other, _)| *other != node);
        self.hurried.push((node, pass));
    }
}

impl Engine {
    /// Timers, sweep, vouching, resync, drain: a bounded piece of each. Call every turn.
    pub fn handle_timeout(&mut self, now: Now) {
        self.upkeep.backlog = false;
        self.fire_timers(now);
        // A sweep that takes longer than its interval is followed by the next one at once.
        if now.mono >= self.upkeep.sweep_due && !self.upkeep.sweeping {
            self.upkeep.sweep_due = now.mono.plus_ms(self.settings.sweep_interval_ms);
            if let Some(sweep) = &mut self.sweep {
                sweep.begin();
                self.upkeep.sweeping = true;
                self.counters
                    .add(Counter::LeavesForgotten, self.presence.tend_leaves(now));
            }
        }
        self.vouch(now);
        if self.upkeep.sweeping {
            self.sweep_slice(now);
        }
        self.resync_slice(now);
        self.reask_slice(now);
        self.drain_step(now);
    }

    /// Vouches for the publishers of this shard's streams: all of them once in `beat_interval_ms`,
    /// evenly.
    fn vouch(&mut self, now: Now) {
        let interval_ms = self.settings.beat_interval_ms;
        let vouch = self.upkeep.vouch;
        self.upkeep.vouch_places = self.upkeep.vouch_places.max(self.conns.places());
        let (vouch, enough) =
            self.vouch_pass(vouch, None, self.upkeep.vouch_places, interval_ms, now);
        let over_ms = now.mono.ms_since(vouch.started);
        let over = enough && over_ms >= interval_ms;
        if over {
            let places = self.upkeep.vouch_places;
            self.upkeep.vouch_places = places - places / 10;
        }
        self.upkeep.vouch = match over {
            false => vouch,
            // After a long silence the next pass starts now, not in the past.
            true => Pass {
                started: if over_ms < 2 * interval_ms {
                    vouch.started.plus_ms(interval_ms)
                } else {
                    now.mono
                },
                cursor: 0,
            },
        };
        let mut hurried = std::mem::take(&mut self.upkeep.hurried);
        hurried.retain_mut(|(node, pass)| {
            let (on, enough) =
                self.vouch_pass(*pass, Some(*node), self.conns.places(), REVOUCH_MS, now);
            *pass = on;
            !(enough && now.mono.ms_since(pass.started) >= REVOUCH_MS)
        });
        self.upkeep.hurried = hurried;
    }

    /// A bounded piece of a pass that takes `length_ms`, over all publishers or those of one
    /// presence node; and whether that is as far as it should have come.
    fn vouch_pass(
        &mut self,
        pass: Pass,
        of: Option<usize>,
        places: u32,
        length_ms: u64,
        now: Now,
    ) -> (Pass, bool) {
        let (target, enough) = pass.target(now.mono, length_ms, places);
        for index in pass.cursor..target {
            let Some(id) = self.conns.id_at(index) else {
                continue;
            };
            let conn = self.conns.at(id.index);
            if let Some(slot) = conn
                .publisher()
                .filter(|_| conn.phase() == Phase::Streaming)
                .filter(|_| !planted::is(Planted::VouchedOnce))
                .map(Slot::new)
                .filter(|slot| {
                    of.is_none_or(|node| self.belongs_to(self.presence.user(*slot), node))
                })
            {
                self.vouch_for(slot, false, now);
            }
        }
        self.upkeep.backlog |= !enough;
        let cursor = target;
        (Pass { cursor, ..pass }, enough)
    }

    /// Vouches for the publisher of a stream: a beat here, or one to its presence node (`at_once`
    /// if it has just connected).
    pub(super) fn vouch_for(&mut self, slot: Slot, at_once: bool, now: Now) {
        if let Some(upstream) = &mut self.upstream {
            return upstream.vouch(&self.presence, slot, at_once, self.keys.signing(), now);
        }
        // Neither late nor a replay: it comes after every goodbye that has come.
        let outcome = self.presence.record_beat(slot, Unix::LATEST, now);
        self.book_beat(slot, outcome, Counter::BeatsStream, now);
    }

    fn context(&self, now: Now) -> SweepContext {
        SweepContext {
            now,
            offline_after_ms: self.settings.offline_after_ms,
            hold_expiries: self.silence.holds(now.mono),
        }
    }

    fn sweep_slice(&mut self, now: Now) {
        let slots_max = self.settings.sweep_slots_per_turn_max as u32;
        let context = self.context(now);
        let Some(sweep) = &mut self.sweep else { return };
        let mut transitions = std::mem::take(&mut self.upkeep.transitions);
        let done = sweep.slice(
            &self.presence,
            context,
            slots_max,
            TRANSITIONS_PER_SLICE,
            &mut transitions,
        );
        let slots_read = sweep.take_slots_read();
        self.upkeep.sweeping = !done;
        self.counters.add(Counter::SweepSlots, slots_read);
        if done {
            self.counters.add(Counter::SweepCycles, 1);
        } else {
            self.counters.add(Counter::LimitSweepSlotsPerTurn, 1);
        }
        self.decide(transitions, now);
    }

    /// Looks at one of this shard's own slots now.
    pub(super) fn look_own(&mut self, slot: Slot, now: Now) {
        let context = self.context(now);
        let Some(sweep) = &mut self.sweep else { return };
        let mut transitions = std::mem::take(&mut self.upkeep.transitions);
        sweep.look(&self.presence, context, slot, &mut transitions);
        self.decide(transitions, now);
    }

    /// These have been decided: see [`Engine::decided`]. Takes the buffer of the sweep and gives it
    /// back.
    fn decide(&mut self, mut transitions: Vec<Transition>, now: Now) {
        for transition in transitions.drain(..) {
            self.decided(transition, now);
        }
        self.upkeep.transitions = transitions;
    }

    /// A transition has been decided here, or taken over from the node that decided it: this
    /// shard's watchers are told, and it is gathered for the others. What makes transitions ends
    /// here, so that none is forgotten.
    pub(super) fn decided(&mut self, transition: Transition, now: Now) {
        let kind = if transition.status.is_online() {
            Counter::TransitionsOnline
        } else {
            Counter::TransitionsOffline
        };
        self.counters.add(kind, 1);
        self.tell(transition, now.mono);
        self.posts.decide(transition, now.mono);
    }
}

/// Transitions that one sweep slice decides at most; the rest is found by the next slice.
const TRANSITIONS_PER_SLICE: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_even_and_bounded() {
        let start = Mono::default().plus_ms(1_000);
        let mut pass = Pass {
            started: start,
            cursor: 0,
        };
        assert_eq!(pass.target(start, 10_000, 100), (0, true));
        assert_eq!(pass.target(start.plus_ms(2_500), 10_000, 100), (25, true));
        assert_eq!(pass.target(start.plus_ms(99_000), 10_000, 100), (100, true));
        assert_eq!(
            pass.target(start.plus_ms(99_000), 10_000, 1_000_000),
            (CONNS_PER_CALL, false)
        );
        // The table has grown: the places passed over are made up for.
        pass.cursor = 25;
        assert_eq!(pass.target(start.plus_ms(2_500), 10_000, 400), (100, true));
        assert_eq!(pass.target(start, 0, 7), (25, true));
    }
}
