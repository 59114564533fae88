//! What users say of themselves: their status, and whether others are told that they are here.
//!
//! Owns how that is kept in a stamp, and the holder's own view. A status is the user's and not a
//! device's: who sets it last wins, and it stays until it is set again. Publishes nothing: that is
//! the owner's, by its look.
//!
//! The rule of the two views: the stamp says the truth, the published state what others are told.
//! Who is invisible has LEFT, as whoever said goodbye has, and no beat clears it. So every reader
//! of stamps takes them for gone, and what is told is what a goodbye would have left behind.

use std::sync::atomic::Ordering;

use super::online::{LOOK, STATUSES, chunk_of};
use super::{Presence, State};
use crate::slot::Slot;
use crate::status::Status;
use crate::store::cells::{Stamp, StampFlags};
use crate::store::write_back::STAMPS_DIRTY;
use crate::time::{Now, Unix};
use crate::wire::beat::{Flags, Outset};
use crate::wire::record::Said;

/// A publisher as its holder is told, and nobody else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnState {
    /// What it truly is.
    pub state: State,
    /// Others are told that it has gone.
    pub invisible: bool,
}

/// What a user has said last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SaidLast {
    /// When it was sent, as far as is known.
    pub sent: Unix,
    /// What it says that it is while it is here.
    pub status: Status,
    /// Nobody is at any of the devices that are heard here.
    pub unattended: bool,
}

impl Presence {
    /// Takes over what a user says of itself. True: that is news, and the slot's owner must look.
    pub fn say(&self, slot: Slot, said: Said) -> bool {
        let after = |stamp: Stamp| {
            let status = said.status.unwrap_or(stamp.status());
            let stamp = stamp.with_status(status);
            match said.invisible {
                Some(true) => stamp.hidden(),
                Some(false) => stamp.shown(),
                None => stamp,
            }
        };
        let news = |stamp: Stamp| Some(after(stamp)).filter(|after| *after != stamp);
        let cell = self.stamps.cell(slot);
        let said = cell.fetch_update(Ordering::SeqCst, Ordering::Relaxed, news);
        if said.is_ok() {
            let flags = LOOK | STATUSES | STAMPS_DIRTY;
            self.online.raise(chunk_of(slot), flags);
        }
        said.is_ok()
    }

    /// What a user is from the outset, before its first beat is recorded. Of whom anything is known
    /// it was said by somebody who may have said something else since.
    pub(super) fn begin_as(&self, slot: Slot, outset: Outset) {
        let Outset { status, invisible } = outset;
        // In a fleet who is heard is here, whether they hide or not.
        let invisible = invisible && !self.is_of_fleet();
        let stamp = Stamp::default().with_status(status);
        let stamp = if invisible { stamp.hidden() } else { stamp };
        let begun = |known: Stamp| (known == Stamp::default()).then_some(stamp);
        let cell = self.stamps.cell(slot);
        let begun = cell.fetch_update(Ordering::SeqCst, Ordering::Relaxed, begun);
        if begun.is_ok() {
            self.online.raise(chunk_of(slot), STAMPS_DIRTY);
        }
    }

    /// At a real-time node: what was last said here of a user, and was taken. The beats of its
    /// streams tell it to a presence node that knows nothing of it.
    pub fn note_said(&self, slot: Slot, said: Said) {
        let noted = |stamp: Stamp| {
            let status = said.status.unwrap_or(stamp.status());
            let stamp = stamp.with_status(status);
            Some(match said.invisible {
                Some(true) => stamp.with(StampFlags::INVISIBLE),
                Some(false) => stamp.without(StampFlags::INVISIBLE),
                None => stamp,
            })
        };
        let cell = self.stamps.cell(slot);
        // It always says something.
        let _ = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, noted);
    }

    /// At a real-time node: whether nobody is at the device for which it vouches now. A beat that
    /// goes once more says the same; of several devices one at which somebody is says so itself.
    pub fn note_idle(&self, slot: Slot, idle: bool) {
        let noted = |stamp: Stamp| match (idle, stamp.has(StampFlags::IDLE)) {
            (true, false) => Some(stamp.with(StampFlags::IDLE)),
            (false, true) => Some(stamp.without(StampFlags::IDLE)),
            _ => None,
        };
        let cell = self.stamps.cell(slot);
        // Most say what they said before.
        let _ = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, noted);
    }

    /// What a real-time node's beats say of a user: what was noted.
    pub fn beat_flags(&self, slot: Slot) -> Flags {
        let stamp = self.stamps.cell(slot).load(Ordering::Relaxed);
        let outset = Outset {
            status: stamp.status(),
            invisible: stamp.has(StampFlags::INVISIBLE),
        };
        Flags::of(outset).with_idle(stamp.has(StampFlags::IDLE))
    }

    /// Whether others are told of a slot's user that they have gone, whatever they do.
    pub fn is_invisible(&self, slot: Slot) -> bool {
        let stamp = self.stamps.cell(slot).load(Ordering::Acquire);
        stamp.has(StampFlags::INVISIBLE)
    }

    /// Of one who is invisible: when they were truly last heard of. For nodes alone, which look for
    /// what has become of their beats.
    pub fn heard_invisibly(&self, slot: Slot, now: Now) -> Option<Unix> {
        let stamp = self.stamps.cell(slot).load(Ordering::Acquire);
        let heard = stamp.at().filter(|_| stamp.has(StampFlags::INVISIBLE));
        heard.map(|at| self.told(at, now.unix, false))
    }

    /// What a user has said last, and when that was sent: what a node of a fleet tells the others.
    pub fn said(&self, slot: Slot) -> SaidLast {
        let stamp = self.stamps.cell(slot).load(Ordering::Acquire);
        SaidLast {
            sent: stamp.sent(),
            status: stamp.status(),
            unattended: stamp.has(StampFlags::UNATTENDED),
        }
    }

    /// A publisher as its holder is told: what is published, unless others are told less.
    pub fn own_state(&self, slot: Slot, offline_after_ms: u64, now: Now) -> OwnState {
        let state = self.state(slot, now);
        let stamp = self.stamps.cell(slot).load(Ordering::Acquire);
        if !stamp.has(StampFlags::INVISIBLE) {
            let invisible = false;
            return OwnState { state, invisible };
        }
        let heard = stamp.at().map(|at| self.told(at, now.unix, false));
        let is_fresh = heard.is_some_and(|at| now.unix.ms_since(at) <= offline_after_ms);
        let status = match is_fresh && !stamp.has(StampFlags::EXPIRED) {
            true => stamp.shown_status(),
            false => Status::Offline,
        };
        OwnState {
            state: State {
                status,
                last_active: heard,
                ..state
            },
            invisible: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::at;
    use super::super::{LeaveOutcome, StoreOptions, Sweep, SweepContext, Transition};
    use super::*;
    use crate::time::Unix;
    use crate::wire::User;

    /// A store with bob, and whoever looks.
    struct World {
        presence: Presence,
        sweep: Sweep,
        bob: Slot,
        dir: tempfile::TempDir,
    }

    fn options(dir: &tempfile::TempDir) -> StoreOptions {
        StoreOptions {
            dir: dir.path().to_owned(),
            users_max: 10_000,
            offline_after_ms: 25_000,
            restart_grace_ms: 300_000,
            shards: 1,
            memory: crate::presence::MemoryChoice::Off,
            boot_id: [1; 16],
        }
    }

    impl World {
        fn new() -> World {
            let dir = tempfile::tempdir().unwrap();
            let (presence, _) = Presence::open(&options(&dir), at(0)).unwrap();
            let bob = presence.intern(User::parse(b"bob").unwrap()).unwrap();
            World {
                presence,
                sweep: Sweep::new(0, 1),
                bob,
                dir,
            }
        }

        fn restart(&mut self, ms: u64) {
            let other = tempfile::tempdir().unwrap();
            let (nothing, _) = Presence::open(&options(&other), at(0)).unwrap();
            drop(std::mem::replace(&mut self.presence, nothing));
            let (presence, _) = Presence::open(&options(&self.dir), at(ms)).unwrap();
            self.presence = presence;
        }

        fn beat(&self, ms: u64) {
            self.presence.record_beat(self.bob, at(ms).unix, at(ms));
        }

        fn say(
            &self,
            status: impl Into<Option<Status>>,
            invisible: impl Into<Option<bool>>,
        ) -> bool {
            let (status, invisible) = (status.into(), invisible.into());
            self.presence.say(self.bob, Said { status, invisible })
        }

        /// What a look and a sweep publish.
        fn told(&mut self, ms: u64) -> Vec<Status> {
            let mut out: Vec<Transition> = Vec::new();
            let context = SweepContext {
                now: at(ms),
                offline_after_ms: 25_000,
                hold_expiries: false,
            };
            self.sweep.begin();
            assert!(
                self.sweep
                    .slice(&self.presence, context, 8_192, 16, &mut out)
            );
            self.presence.check_invariants();
            out.iter().map(|transition| transition.status).collect()
        }

        /// Status, `since` and `last_active` as others are told.
        fn public(&self, ms: u64) -> (Status, Option<u64>, Option<u64>) {
            parts(self.presence.state(self.bob, at(ms)))
        }

        fn own(&self, ms: u64) -> (Status, Option<u64>, Option<u64>, bool) {
            let own = self.presence.own_state(self.bob, 25_000, at(ms));
            let (status, since, last_active) = parts(own.state);
            (status, since, last_active, own.invisible)
        }
    }

    fn parts(state: State) -> (Status, Option<u64>, Option<u64>) {
        let ms = |time: Option<Unix>| time.map(|time| time.ms() - at(0).unix.ms());
        (state.status, ms(state.since), ms(state.last_active))
    }

    use Status::{Away, Busy, Offline, Online};

    #[test]
    fn a_change_of_status_is_a_transition_that_a_sweep_finds() {
        let mut world = World::new();
        assert!(world.say(Busy, None), "before the first beat");
        assert_eq!(world.told(500), [], "nobody is here by it");
        world.beat(1_000);
        assert_eq!(world.told(1_000), [Busy]);
        assert!(world.say(Away, None));
        assert!(!world.say(Away, None), "no news");
        assert_eq!(world.told(2_000), [Away]);
        assert_eq!(world.told(2_100), []);
        assert_eq!(world.public(2_100), (Away, Some(2_000), Some(1_000)));
        assert_eq!(world.told(26_001), [Offline]);
        world.beat(30_000);
        assert_eq!(world.told(30_000), [Away], "it is kept");
        assert!(world.say(Online, None));
        world.restart(31_000);
        assert_eq!(
            world.told(31_000),
            [Online],
            "said before the end, and told behind it"
        );
    }

    #[test]
    fn who_is_invisible_is_told_as_whoever_said_goodbye_and_beats_show_in_nothing() {
        let mut world = World::new();
        world.beat(1_000);
        world.say(Busy, None);
        assert_eq!(world.told(1_000), [Busy]);
        assert!(world.say(None, true));
        assert_eq!(world.told(3_000), [Offline]);
        let gone = (Offline, Some(3_000), Some(3_000));
        assert_eq!(world.public(3_000), gone);
        for ms in [4_000, 14_000, 24_000, 34_000] {
            world.beat(ms);
            assert_eq!(world.told(ms), []);
            assert_eq!(world.public(ms), gone);
            assert_eq!(world.own(ms), (Busy, Some(3_000), Some(ms), true));
        }
        world.restart(35_000);
        assert_eq!(world.told(35_000), []);
        assert_eq!(world.public(35_000), gone);
        assert_eq!(world.own(35_000).0, Busy);
        // Silence shows in the holder's own view alone.
        assert_eq!(world.told(60_000), []);
        assert_eq!(
            world.own(60_000),
            (Offline, Some(3_000), Some(34_000), true)
        );
        world.beat(61_000);
        assert!(world.say(None, false));
        assert_eq!(
            world.told(61_500),
            [Busy],
            "becoming visible is coming online"
        );
        assert_eq!(world.own(61_500), (Busy, Some(61_500), Some(61_000), false));
    }

    #[test]
    fn a_first_beat_of_who_is_invisible_leaves_nothing_to_see() {
        let mut world = World::new();
        world.say(None, true);
        world.beat(1_000);
        assert_eq!(world.told(1_000), []);
        assert_eq!(world.public(1_000), (Offline, None, None));
        assert_eq!(world.own(1_000), (Online, None, Some(1_000), true));
    }

    #[test]
    fn a_goodbye_of_who_is_invisible_is_true_and_becoming_visible_undoes_none() {
        let mut world = World::new();
        world.beat(1_000);
        assert_eq!(world.told(1_000), [Online]);
        world.say(None, true);
        assert_eq!(world.told(2_000), [Offline]);
        world.beat(3_000);
        let left = |world: &World, ms| world.presence.record_leave(world.bob, at(ms).unix, at(ms));
        assert_eq!(left(&world, 3_500), LeaveOutcome::Left);
        assert_eq!(left(&world, 3_500), LeaveOutcome::Ignored);
        assert_eq!(world.own(3_600).0, Offline);
        assert!(world.say(None, false));
        assert_eq!(world.told(4_000), []);
        // Of before the goodbye.
        world
            .presence
            .record_beat(world.bob, at(3_000).unix, at(4_500));
        assert_eq!(world.told(4_500), []);
        world.beat(5_000);
        assert_eq!(world.told(5_000), [Online]);
        // And the other way round: whoever had left is not back by hiding and showing.
        assert_eq!(left(&world, 6_000), LeaveOutcome::Left);
        assert_eq!(world.told(6_000), [Offline]);
        world.say(None, true);
        world.say(None, false);
        assert_eq!(world.told(6_500), []);
    }

    #[test]
    fn what_others_are_told_of_a_goodbye_and_of_a_silence() {
        let mut world = World::new();
        world.beat(1_000);
        assert_eq!(world.told(1_000), [Online]);
        world
            .presence
            .record_leave(world.bob, at(2_000).unix, at(2_000));
        // The look comes later than the goodbye, on another shard.
        assert_eq!(world.told(2_005), [Offline]);
        assert_eq!(world.public(2_005), (Offline, Some(2_005), Some(2_005)));
        world.beat(3_000);
        assert_eq!(world.told(3_000), [Online]);
        assert_eq!(world.told(28_001), [Offline]);
        assert_eq!(world.public(28_001), (Offline, Some(28_001), Some(3_000)));
        // Going invisible then is a goodbye then: nothing is told, but the time of the silence.
        world.say(None, true);
        assert_eq!(world.told(29_000), []);
        assert_eq!(world.public(29_000), (Offline, Some(28_001), Some(28_001)));
        world.say(None, false);
        assert_eq!(world.told(29_500), [], "nobody has been heard since");
    }
}
