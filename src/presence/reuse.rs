//! Slots whose users are gone, and where those users' records are that walking does not find.
//!
//! Owns what tombstones change: which slots are free, which of these may be given again, which
//! records are of nobody any more, and the offsets of records that do not follow their group's
//! first one. Built by the scan at boot, in the log's order, and kept in step with what is
//! appended. Never decides who is forgotten, nor when a slot has been free for long enough
//! (`forget.rs`).

use std::collections::{BTreeMap, BTreeSet};

use crate::store::record::RecordFault;

/// What a scan has met that is not simply the next slot's user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Odd {
    /// A new slot's record that others stand before, within its group.
    Stray { slot: u32, offset: u64 },
    /// A slot has a user again.
    Again { slot: u32, offset: u64 },
    /// A slot is free.
    Gone { slot: u32, offset: u64 },
}

#[derive(Default, Debug)]
pub(super) struct Reuse {
    free: BTreeSet<u32>,
    /// Of these, those that may be given to the next.
    ready: BTreeSet<u32>,
    /// By slot, where its user's record is.
    strays: BTreeMap<u32, u64>,
    /// Offsets of records whose users are gone.
    dead: BTreeSet<u64>,
}

impl Reuse {
    /// Takes over what a part of the log says; `walk` finds the record of a slot that is no stray.
    ///
    /// Errors: a slot is freed twice, or given while it has a user.
    pub(super) fn apply(
        &mut self,
        odd: &[Odd],
        walk: impl Fn(u32) -> u64,
    ) -> Result<(), RecordFault> {
        for odd in odd {
            match *odd {
                Odd::Stray { slot, offset } => {
                    self.strays.insert(slot, offset);
                }
                Odd::Again { slot, offset } if self.free.remove(&slot) => {
                    self.strays.insert(slot, offset);
                }
                Odd::Again { slot, offset } => {
                    return Err(fault(offset, slot, "a slot that is free", "has a user"));
                }
                Odd::Gone { slot, .. } if self.free.insert(slot) => {
                    let of_user = self.strays.remove(&slot).unwrap_or_else(|| walk(slot));
                    self.dead.insert(of_user);
                }
                Odd::Gone { slot, offset } => {
                    return Err(fault(offset, slot, "a slot that has a user", "is free"));
                }
            }
        }
        Ok(())
    }

    /// Where the record of a slot's user is, if walking its group does not find it.
    #[inline]
    pub(super) fn stray(&self, slot: u32) -> Option<u64> {
        if self.strays.is_empty() {
            return None;
        }
        self.strays.get(&slot).copied()
    }

    /// The record of a new slot's user is where walking does not find it.
    pub(super) fn stray_at(&mut self, slot: u32, offset: u64) {
        self.strays.insert(slot, offset);
    }

    /// The slots that are free now are given to nobody before [`Reuse::release`].
    pub(super) fn hold_free(&mut self) {
        self.free.clear();
        self.dead = BTreeSet::new();
    }

    /// Nobody has anything of the slot's last user any more, nor has the disk: the next may have
    /// it.
    pub(super) fn release(&mut self, slot: u32) {
        self.free.insert(slot);
        self.ready.insert(slot);
    }

    /// A slot for the next user: the lowest, so that the files stay dense at their beginning.
    pub(super) fn next_ready(&self) -> Option<u32> {
        self.ready.first().copied()
    }

    /// A slot has a user again, whose record is at `offset`.
    pub(super) fn give(&mut self, slot: u32, offset: u64) {
        self.free.remove(&slot);
        self.ready.remove(&slot);
        self.strays.insert(slot, offset);
    }

    /// Slots that have no user.
    pub(super) fn free(&self) -> &BTreeSet<u32> {
        &self.free
    }

    /// Offsets of records whose users are gone.
    pub(super) fn dead(&self) -> &BTreeSet<u64> {
        &self.dead
    }
}

fn fault(offset: u64, slot: u32, expected: &str, is: &str) -> RecordFault {
    RecordFault {
        offset: offset + 1,
        expected: expected.to_owned(),
        found: format!("slot {slot}, which {is}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::tests::at;
    use crate::presence::{InternFault, OpenReport, Presence, StoreOptions};
    use crate::slot::Slot;
    use crate::status::Status;
    use crate::wire::User;

    #[test]
    fn a_slot_goes_from_one_user_to_another() {
        let mut reuse = Reuse::default();
        let again = Odd::Again {
            slot: 3,
            offset: 500,
        };
        let gone = Odd::Gone {
            slot: 3,
            offset: 400,
        };
        reuse.apply(&[gone], |slot| u64::from(slot) * 10).unwrap();
        assert_eq!((reuse.free().len(), reuse.stray(3)), (1, None));
        reuse.apply(&[again], |_| 0).unwrap();
        assert_eq!((reuse.free().len(), reuse.stray(3)), (0, Some(500)));
        reuse.apply(&[gone], |_| 0).unwrap();
        assert_eq!(reuse.stray(3), None);
        assert_eq!(reuse.dead().iter().copied().collect::<Vec<_>>(), [30, 500]);
    }

    #[test]
    fn what_can_not_follow_is_a_fault() {
        let gone = Odd::Gone {
            slot: 3,
            offset: 400,
        };
        let mut reuse = Reuse::default();
        let fault = reuse.apply(&[gone, gone], |_| 200).unwrap_err();
        assert_eq!(
            (fault.offset, fault.found.as_str()),
            (401, "slot 3, which is free")
        );
        let again = Odd::Again {
            slot: 4,
            offset: 500,
        };
        let fault = reuse.apply(&[again], |_| 200).unwrap_err();
        assert_eq!(
            (fault.offset, fault.found.as_str()),
            (501, "slot 4, which has a user")
        );
    }

    fn options(dir: &std::path::Path) -> StoreOptions {
        StoreOptions {
            dir: dir.to_owned(),
            users_max: 1_000,
            offline_after_ms: 25_000,
            restart_grace_ms: u64::MAX,
            shards: 1,
            memory: crate::presence::MemoryChoice::Off,
            boot_id: [1; 16],
        }
    }

    fn open(dir: &std::path::Path, ms: u64) -> (Presence, OpenReport) {
        Presence::open(&options(dir), at(ms)).unwrap()
    }

    #[test]
    fn a_store_with_tombstones_beyond_users_max_is_refused_as_too_large() {
        let dir = tempfile::tempdir().unwrap();
        let (presence, _) = open(dir.path(), 0);
        for n in 0..40 {
            let user = format!("user {n}");
            let user = User::parse(user.as_bytes()).unwrap();
            presence.intern(user).unwrap();
        }
        presence.interner.log().append_tombstone(39).unwrap();
        presence.interner.log().append(39, b"eve").unwrap();
        presence.close(at(1)).unwrap();
        drop(presence);
        let options = StoreOptions {
            users_max: 20,
            ..options(dir.path())
        };
        let refused = Presence::open(&options, at(2)).err().unwrap();
        assert!(refused.to_string().contains("40 users"), "{refused}");
    }

    /// Users who come and are erased fill users.log, though there are slots. It is said before, and
    /// erasures go on behind it.
    #[test]
    fn the_room_in_users_log_is_told_and_a_start_has_as_much_again() {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            users_max: 100,
            ..options(dir.path())
        };
        let room_bytes = 100 * 137 + 1;
        let come_and_go = |presence: &Presence, n: u32| -> Result<(), InternFault> {
            let user = format!("{n:0128}");
            let user = User::parse(user.as_bytes()).unwrap();
            presence.intern(user)?;
            let slot = presence.forget(user, 1_000, at(1)).unwrap().unwrap();
            presence.let_go(slot, 0);
            (0..3).for_each(|_| presence.cycle_ended());
            Ok(())
        };
        for start in 0..3 {
            let (presence, _) = Presence::open(&options, at(0)).unwrap();
            let stays = format!("who stays until {start}");
            let stays = User::parse(stays.as_bytes()).unwrap();
            presence.intern(stays).unwrap();
            let opened = presence.log_room();
            assert!(!opened.is_scarce && opened.max_bytes >= opened.used_bytes + room_bytes - 100);
            let (mut gone, mut told_at) = (0, None);
            let refused = loop {
                match come_and_go(&presence, gone) {
                    Ok(()) => gone += 1,
                    Err(fault) => break fault,
                }
                if presence.log_room().is_scarce {
                    told_at.get_or_insert(presence.log_room().used_bytes);
                }
            };
            assert_eq!((refused, gone >= 90), (InternFault::NoSpace, true));
            let given = opened.max_bytes - opened.used_bytes;
            let told = told_at.unwrap() - opened.used_bytes;
            let due = given - given / 5;
            assert!((due - 100..due + 200).contains(&told), "{told} of {given}");
            let refused = presence.interner.log().append(0, &[b'x'; 128]);
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains("`greendot store compact`"), "{refused}");
            // Nobody is refused who is to be erased.
            assert!(presence.forget(stays, 1_000, at(1)).unwrap().is_some());
            presence.close(at(1)).unwrap();
        }
    }

    #[test]
    fn as_many_are_known_while_slots_become_free() {
        let dir = tempfile::tempdir().unwrap();
        let (presence, _) = open(dir.path(), 0);
        let ids: Vec<String> = (0..1_000).map(|n| format!("user {n}")).collect();
        let users = ids.iter().map(|id| User::parse(id.as_bytes()).unwrap());
        for user in users.clone() {
            presence.intern(user).unwrap();
        }
        for user in users.skip(10) {
            let slot = presence.forget(user, 1_000, at(1)).unwrap().unwrap();
            presence.let_go(slot, 0);
        }
        assert_eq!(presence.known(), 10);
        std::thread::scope(|scope| {
            let ends = scope.spawn(|| (0..3).for_each(|_| presence.cycle_ended()));
            while !ends.is_finished() {
                assert_eq!(presence.known(), 10);
            }
        });
        assert_eq!(presence.interner.reuse_len(), 990);
    }

    /// Of an id that was erased twice while its first slot was still leaving, too.
    #[test]
    fn nothing_is_kept_of_who_was_erased() {
        let dir = tempfile::tempdir().unwrap();
        let (presence, _) = open(dir.path(), 0);
        let [ann, bob] = [&b"ann"[..], b"bob"].map(|id| User::parse(id).unwrap());
        let slots = [ann, bob, ann].map(|user| {
            presence.intern(user).unwrap();
            presence.forget(user, 9, at(1)).unwrap().unwrap()
        });
        assert_eq!(presence.leaving_of(ann), [slots[0], slots[2]]);
        presence.let_go(slots[0], 0);
        assert_eq!(presence.leaving_of(ann), [slots[2]]);
        presence.let_go(slots[2], 0);
        presence.let_go(slots[1], 0);
        assert_eq!(presence.leaving_of(ann), []);
        (0..3).for_each(|_| presence.cycle_ended());
        assert!(presence.forgetting.keeps_nothing());
    }

    /// After tombstones, whatever the order in which slots are freed and given.
    #[test]
    fn a_store_with_tombstones_opens_without_the_users_who_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (presence, _) = open(dir.path(), 0);
        let name = |n: u32| format!("user {n}");
        let intern = |presence: &Presence, n: u32| {
            let made = presence.intern(User::parse(name(n).as_bytes()).unwrap());
            assert_eq!(made, Ok(Slot::new(n)));
            presence.record_beat(Slot::new(n), at(0).unix, at(0));
            presence.publish(Slot::new(n), Status::Online, at(0));
        };
        (0..20).for_each(|n| intern(&presence, n));
        let log = presence.interner.log();
        for slot in [3, 5, 17] {
            log.append_tombstone(slot).unwrap();
        }
        log.append(3, b"eve").unwrap();
        log.append_tombstone(3).unwrap();
        log.append(3, b"zoe").unwrap();
        // In the group of slots 16 to 23, behind all that.
        (20..30).for_each(|n| intern(&presence, n));
        presence.close(at(1)).unwrap();
        drop(presence);

        let (presence, report) = open(dir.path(), 2);
        assert_eq!((report.users, report.free, report.online), (28, 2, 28));
        presence.check_invariants();
        let lookup = |id: &str| presence.lookup(User::parse(id.as_bytes()).unwrap());
        for gone in ["user 3", "user 5", "user 17", "eve"] {
            assert_eq!(lookup(gone), None, "{gone}");
        }
        assert_eq!(lookup("zoe"), Some(Slot::new(3)));
        assert_eq!(presence.user(Slot::new(3)).as_str(), "zoe");
        for n in (0..30).filter(|n| ![3, 5, 17].contains(n)) {
            assert_eq!(lookup(&name(n)), Some(Slot::new(n)));
            assert_eq!(presence.user(Slot::new(n)).as_str(), name(n));
        }
        for free in [5, 17].map(Slot::new) {
            let state = presence.state(free, at(2));
            assert_eq!((state.status, state.since), (Status::Offline, None));
            assert_eq!(state.last_active, None, "nothing is left of whose it was");
        }
        // However many there are, they count for nothing among those who are on their way out; and
        // they are given when the zeroes are on disk.
        assert!(!presence.is_leaving(Slot::new(5)));
        intern(&presence, 30);
        presence.cycle_ended();
        intern(&presence, 31);
        presence.cycle_ended();
        let made = ["new", "newer", "newest"].map(|id| {
            let made = presence.intern(User::parse(id.as_bytes()).unwrap());
            made.unwrap().index()
        });
        assert_eq!(made, [5, 17, 32]);
    }

    #[test]
    fn who_has_beaten_since_they_were_found_silent_is_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (presence, _) = open(dir.path(), 0);
        let bob = User::parse(b"bob").unwrap();
        let slot = presence.intern(bob).unwrap();
        presence.record_beat(slot, at(1).unix, at(1));
        assert!(presence.is_silent_since(slot, at(5).unix));
        presence.record_beat(slot, at(9).unix, at(9));
        let forget = || presence.forget_silent(slot, at(5).unix, 9, at(9)).unwrap();
        assert_eq!((forget(), presence.lookup(bob)), (None, Some(slot)));
        // Nor is who has the id in another slot by now.
        presence.forget(bob, 9, at(10)).unwrap();
        presence.intern(bob).unwrap();
        assert_eq!(forget(), None);
    }

    #[test]
    fn transitions_do_not_wait_while_a_tombstone_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (presence, _) = open(dir.path(), 0);
        let [ann, bob] = [&b"ann"[..], b"bob"].map(|id| User::parse(id).unwrap());
        let slots = [ann, bob].map(|user| presence.intern(user).unwrap());
        presence.forget(ann, 9, at(1)).unwrap();
        std::thread::scope(|scope| {
            // As long as a disk may take.
            let writing = presence.interner.hold_appending();
            let forgets = scope.spawn(|| presence.forget(bob, 9, at(1)).unwrap());
            for _ in 0..50 {
                std::thread::sleep(std::time::Duration::from_millis(1));
                assert!(presence.forgetting.is_free_to_ask());
            }
            assert!(presence.is_leaving(slots[0]) && !presence.is_leaving(slots[1]));
            drop(writing);
            assert_eq!(forgets.join().unwrap(), Some(slots[1]));
        });
        assert!(presence.is_leaving(slots[1]));
    }
}
