//! What a node of a fleet knows of users and tells nobody: their flags, and whether who hides is
//! here.
//!
//! Owns where that is kept. A node of a fleet has two databases. The one that hears knows nothing
//! of hiding: it says who is truly here. The one of which is told has INVISIBLE of who hides, and
//! LEFT beside it if the fleet has nobody who vouches for them; what it publishes is what everybody
//! is told. Publishes nothing.

use std::sync::atomic::Ordering;

use super::Presence;
use crate::slot::Slot;
use crate::status::Status;
use crate::store::cells::{Published, Stamp, StampFlags};
use crate::time::Unix;

/// What the fleet says of a user, for nodes alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hidden {
    /// What it says that it is.
    pub status: Status,
    /// Nobody is at any of its devices.
    pub unattended: bool,
    /// Others are told that it has gone.
    pub invisible: bool,
    /// Somebody vouches for it.
    pub is_here: bool,
}

impl Presence {
    /// Whether this is one of the two databases of a node of a fleet.
    pub fn is_of_fleet(&self) -> bool {
        self.twin.get().is_some()
    }

    /// Whether anything was ever told of a slot's user.
    pub fn has_been_told(&self, slot: Slot) -> bool {
        let published = self.published.cell(slot).load(Ordering::Acquire);
        !self.is_follower() || published != Published::NEVER
    }

    /// Since when a slot's user is what is published. None: nothing was ever told of them.
    pub fn since(&self, slot: Slot) -> Option<Unix> {
        let published = self.published.cell(slot).load(Ordering::Acquire);
        (published != Published::NEVER).then(|| Unix::from_ms(published.since_ms()))
    }

    /// Takes over what the fleet says.
    pub fn note_hidden(&self, slot: Slot, hidden: Hidden) {
        let noted = |stamp: Stamp| Some(noted(stamp, hidden)).filter(|noted| *noted != stamp);
        let cell = self.stamps.cell(slot);
        // Mostly it is known.
        let _ = cell.fetch_update(Ordering::AcqRel, Ordering::Acquire, noted);
    }

    /// A user says here that it hides, or shows itself again. True: that is news.
    pub fn note_hiding(&self, slot: Slot, invisible: bool) -> bool {
        let known = self.hidden(slot);
        let hidden = Hidden { invisible, ..known };
        self.note_hidden(slot, hidden);
        known.invisible != invisible
    }

    /// What the fleet has said last.
    pub fn hidden(&self, slot: Slot) -> Hidden {
        let stamp = self.stamps.cell(slot).load(Ordering::Acquire);
        let invisible = stamp.has(StampFlags::INVISIBLE);
        let is_told_here = self
            .published
            .cell(slot)
            .load(Ordering::Acquire)
            .is_online();
        Hidden {
            status: stamp.status(),
            unattended: stamp.has(StampFlags::UNATTENDED),
            invisible,
            is_here: match invisible {
                true => !stamp.has(StampFlags::LEFT),
                false => is_told_here,
            },
        }
    }
}

fn noted(stamp: Stamp, hidden: Hidden) -> Stamp {
    let flags = StampFlags::INVISIBLE
        .and(StampFlags::LEFT)
        .and(StampFlags::UNATTENDED);
    let mut noted = stamp.with_status(hidden.status).without(flags);
    if hidden.unattended {
        noted = noted.with(StampFlags::UNATTENDED);
    }
    if hidden.invisible {
        noted = noted.with(StampFlags::INVISIBLE);
    }
    match hidden.invisible && !hidden.is_here {
        true => noted.with(StampFlags::LEFT),
        false => noted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::FollowerOptions;
    use crate::presence::tests::at;
    use crate::wire::User;

    #[test]
    fn what_is_noted_is_known_and_nobody_is_told() {
        let options = FollowerOptions {
            sources: 1,
            users_max: 100,
            shards: 1,
            offline_after_ms: 25_000,
        };
        let (told, heard) = Presence::follower_and_heard(options, at(1_000)).unwrap();
        assert!(told.is_of_fleet() && heard.is_of_fleet());
        let bob = told.intern(User::from_text("bob").unwrap()).unwrap();
        let before = told.state(bob, at(1_000));
        for status in [Status::Online, Status::Away, Status::Busy] {
            for bits in 0..8 {
                let hidden = Hidden {
                    status,
                    unattended: bits & 1 != 0,
                    invisible: bits & 2 != 0,
                    is_here: bits & 6 == 6,
                };
                told.note_hidden(bob, hidden);
                assert_eq!(told.hidden(bob), hidden);
                assert_eq!(told.is_invisible(bob), hidden.invisible);
                assert_eq!(told.state(bob, at(1_000)), before);
            }
        }
        assert!(told.note_hiding(bob, false) && !told.note_hiding(bob, false));
        // Who is not here and hides is not here still.
        assert!(told.note_hiding(bob, true));
        assert!(!told.hidden(bob).is_here);
    }
}
