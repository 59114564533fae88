//! Walks over the slots: who is published online, and what changed since a moment.
//!
//! Owns a bounded step of either. Reads bits and published states that others are writing, and
//! never a stamp, so it sees what everybody is told. Keeps nothing between two steps.

use std::sync::atomic::Ordering;

use super::Presence;
use crate::slot::{CHUNK_SLOTS, Slot};
use crate::time::Unix;

/// Published states that one step reads: 2 MiB, a tenth of a millisecond or two.
const CELLS_PER_STEP: u32 = 1 << 18;
/// Slots that share a word of bits.
const WORD_SLOTS: u32 = 64;

impl Presence {
    /// Appends slots from `first` on that are published online, `most` at most. Returns where the
    /// next step begins; None: there are no more slots.
    ///
    /// Chunks in which nobody is online cost a load each. What is published meanwhile may be seen
    /// or not.
    pub fn online_from(&self, first: u32, most: usize, out: &mut Vec<Slot>) -> Option<u32> {
        let users = self.users();
        let mut at = first;
        let mut left = most;
        while at < users {
            if self.online.count((at / CHUNK_SLOTS) as usize) == 0 {
                at = (at / CHUNK_SLOTS + 1) * CHUNK_SLOTS;
                continue;
            }
            let word = at / WORD_SLOTS;
            let mut bits = self.online.word(word) & (u64::MAX << (at % WORD_SLOTS));
            while bits != 0 {
                let index = word * WORD_SLOTS + bits.trailing_zeros();
                bits &= bits - 1;
                if left == 0 {
                    return Some(index);
                }
                // The bits of slots that are being made may be there first.
                if index < users {
                    out.push(Slot::new(index));
                    left -= 1;
                }
            }
            at = (word + 1) * WORD_SLOTS;
        }
        None
    }

    /// Appends slots from `first` on whose published state is of `since` or later, `most` at most.
    /// Returns where the next step begins; None: there are no more slots.
    pub fn published_from(
        &self,
        first: u32,
        since: Unix,
        most: usize,
        out: &mut Vec<Slot>,
    ) -> Option<u32> {
        let users = self.users();
        let end = first.saturating_add(CELLS_PER_STEP).min(users);
        let mut left = most;
        for slot in (first..end).map(Slot::new) {
            let published = self.published.cell(slot).load(Ordering::Acquire);
            if published.since_ms() < since.ms().max(1) {
                continue;
            }
            if left == 0 {
                return Some(slot.index());
            }
            out.push(slot);
            left -= 1;
        }
        (end < users).then_some(end)
    }

    /// How often the wall clock was stepped back in this process' life: between two equal answers
    /// nothing that is published is dated before what was.
    pub fn clock_steps_back(&self) -> u64 {
        self.resume.steps_back()
    }
}

#[cfg(test)]
mod tests {
    use super::super::StoreOptions;
    use super::super::tests::at;
    use super::*;
    use crate::status::Status;
    use crate::wire::User;

    fn indexes(slots: &[Slot]) -> Vec<u32> {
        slots.iter().map(|slot| slot.index()).collect()
    }

    /// A presence database with so many users, of whom these are published online.
    fn world(dir: &std::path::Path, users: u32, online: &[u32]) -> Presence {
        let options = StoreOptions {
            dir: dir.to_owned(),
            users_max: 1 << 20,
            offline_after_ms: 25_000,
            restart_grace_ms: u64::MAX,
            shards: 1,
            memory: crate::presence::MemoryChoice::Off,
            boot_id: [1; 16],
        };
        let (presence, _) = Presence::open(&options, at(1_000)).unwrap();
        for n in 0..users {
            let user = format!("u{n}");
            presence
                .intern(User::parse(user.as_bytes()).unwrap())
                .unwrap();
        }
        for index in online {
            presence.publish(Slot::new(*index), Status::Online, at(2_000));
        }
        presence
    }

    #[test]
    fn steps_over_who_is_online_lose_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let online = [0, 63, 64, 4_095, 4_096, 12_300, 12_301, 19_999];
        let presence = world(dir.path(), 20_000, &online);
        for most in 1..=9 {
            let (mut found, mut next) = (Vec::new(), Some(0));
            while let Some(first) = next {
                let before = found.len();
                next = presence.online_from(first, most, &mut found);
                assert!(found.len() - before <= most);
            }
            assert_eq!(indexes(&found), online, "{most}");
        }
        let mut found = Vec::new();
        assert_eq!(presence.online_from(12_301, 1, &mut found), Some(19_999));
        assert_eq!(indexes(&found), [12_301]);
        assert_eq!(presence.online_from(20_000, 1, &mut found), None);
        assert_eq!(presence.online_from(u32::MAX, 1, &mut found), None);
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn what_changed_is_found_by_its_time_online_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let presence = world(dir.path(), 300_000, &[5, 7, 299_999]);
        presence.publish(Slot::new(7), Status::Offline, at(3_000));
        presence.publish(Slot::new(9), Status::Away, at(3_001));
        let changed = |since| {
            let (mut found, mut next, mut steps) = (Vec::new(), Some(0), 0);
            while let Some(first) = next {
                next = presence.published_from(first, since, 1, &mut found);
                steps += 1;
            }
            (indexes(&found), steps)
        };
        assert_eq!(changed(at(3_002).unix), (vec![], 2));
        assert_eq!(changed(at(3_001).unix), (vec![9], 2));
        assert_eq!(changed(at(3_000).unix), (vec![7, 9], 3));
        assert_eq!(changed(at(2_000).unix).0, [5, 7, 9, 299_999]);
        // Who never had a state has not changed.
        assert_eq!(changed(Unix::from_ms(0)).0, [5, 7, 9, 299_999]);
    }
}
