//! What stands in for lost mail: a pass over the published states.
//!
//! Owns how far it has come and since when states are news. Never tells anybody.

use super::pass::PLACES_PER_CALL;
use crate::planted::{self, Planted};
use crate::presence::{Presence, Transition};
use crate::realtime::watches::Watches;
use crate::slot::Slot;
use crate::time::{Now, Unix};

#[derive(Debug, Default)]
pub(super) struct Resyncing {
    under_way: Option<Resync>,
}

#[derive(Clone, Copy, Debug)]
struct Resync {
    slot: u32,
    name: Option<usize>,
    floor: Unix,
    /// More was lost meanwhile: the floor of another pass behind this one.
    again: Option<Unix>,
}

/// What a slice came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Resynced {
    /// Nothing was under way, or more is to be read.
    Nothing,
    /// A pass is through, and the next has begun.
    Again,
    /// All is read.
    Done,
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

impl Resyncing {
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Mail was lost, and what changed since `floor` is to be told; true if a pass begins.
    pub(super) fn begin(&mut self, floor: Unix) -> bool {
        match &mut self.under_way {
            // Begun anew it would not end before mail stops overflowing.
            Some(under_way) => {
                under_way.again = Some(under_way.again.map_or(floor, |other| other.min(floor)));
                false
            }
            None => {
                self.under_way = Some(Resync::new(floor));
                true
            }
        }
    }

    /// Reads a bounded piece, and adds what is to be told to `news`.
    pub(super) fn slice(
        &mut self,
        presence: &Presence,
        watches: &Watches,
        news: &mut Vec<Transition>,
        now: Now,
    ) -> Resynced {
        let Some(resync) = &mut self.under_way else {
            return Resynced::Nothing;
        };
        let piece = PLACES_PER_CALL;
        if let Some(end) = resync.name {
            // Names that have got a slot since: the first transition that would have said so may be
            // lost.
            resync.name = watches.names_below(end, piece as usize, |name, _| {
                let slot = presence.lookup(name);
                // A slot of which a follower knows nothing says less than the name, which may have
                // been answered for.
                let known = slot.filter(|slot| presence.state(*slot, now).is_known());
                news.extend(known.map(|slot| news_of(presence, slot, true, now)));
            });
        } else {
            let end = presence.users().min(resync.slot.saturating_add(piece));
            let slots = (resync.slot..end).map(Slot::new);
            let changed = slots.filter(|slot| presence.changed_since(*slot, resync.floor, now));
            let told = changed.filter(|_| !planted::is(Planted::DeafResync));
            let known = told.filter(|slot| presence.state(*slot, now).is_known());
            news.extend(known.map(|slot| news_of(presence, slot, false, now)));
            resync.slot = end;
        }
        if resync.name.is_some() || resync.slot < presence.users() {
            return Resynced::Nothing;
        }
        self.under_way = resync.again.map(Resync::new);
        match self.under_way {
            Some(_) => Resynced::Again,
            None => Resynced::Done,
        }
    }
}

fn news_of(presence: &Presence, slot: Slot, first: bool, now: Now) -> Transition {
    Transition {
        slot,
        status: presence.state(slot, now).status,
        first,
    }
}
