//! The sweep over a shard's own slots.
//!
//! Owns when one begins and the room for what it decides. What it compares is
//! `presence/sweep.rs`'. Never tells anybody.

use crate::presence::{Presence, Sweep, SweepContext, Transition};
use crate::slot::Slot;
use crate::time::Mono;

/// Transitions that one slice decides at most; the rest is found by the next slice.
const TRANSITIONS_PER_SLICE: usize = 4_096;

pub(super) struct Sweeping {
    /// None where nobody's stamps are kept.
    sweep: Option<Sweep>,
    due: Mono,
    under_way: bool,
    decided: Vec<Transition>,
}

/// What a slice came to.
pub(super) struct Swept {
    /// The sweep is through.
    pub(super) done: bool,
    pub(super) slots_read: u64,
    /// Users who began to come and go too often.
    pub(super) flaps: u64,
}

impl Sweeping {
    pub(super) fn new(sweep: Option<Sweep>, now: Mono) -> Sweeping {
        Sweeping {
            sweep,
            due: now,
            under_way: false,
            decided: Vec::new(),
        }
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// When the next one begins.
    pub(super) fn due(&self) -> Mono {
        self.due
    }

    /// Begins one if it is due; true if it has. One that takes longer than the interval is followed
    /// by the next at once.
    pub(super) fn begin_if_due(&mut self, interval_ms: u64, now: Mono) -> bool {
        if now < self.due || self.under_way {
            return false;
        }
        self.due = now.plus_ms(interval_ms);
        if let Some(sweep) = &mut self.sweep {
            sweep.begin();
            self.under_way = true;
        }
        self.under_way
    }

    /// Goes on by so many slots. None: nothing is under way.
    pub(super) fn slice(
        &mut self,
        presence: &Presence,
        context: SweepContext,
        slots_max: u32,
    ) -> Option<Swept> {
        let sweep = self.sweep.as_mut().filter(|_| self.under_way)?;
        let decided = &mut self.decided;
        let done = sweep.slice(presence, context, slots_max, TRANSITIONS_PER_SLICE, decided);
        self.under_way = !done;
        Some(Swept {
            done,
            slots_read: sweep.take_slots_read(),
            flaps: sweep.take_flaps(),
        })
    }

    /// Looks at one slot now.
    pub(super) fn look(&mut self, presence: &Presence, context: SweepContext, slot: Slot) {
        if let Some(sweep) = &mut self.sweep {
            sweep.look(presence, context, slot, &mut self.decided);
        }
    }

    /// What has been decided. The room comes back by [`Sweeping::give_back`].
    pub(super) fn take_decided(&mut self) -> Vec<Transition> {
        std::mem::take(&mut self.decided)
    }

    /// Takes back the room that [`Sweeping::take_decided`] gave, so that it is allocated once.
    pub(super) fn give_back(&mut self, mut room: Vec<Transition>) {
        room.clear();
        self.decided = room;
    }
}
