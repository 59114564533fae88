//! The memory of [`Watches`]: what a crowd took is given back when it has gone.
//!
//! Owns when tables are packed, and the check that the two directions agree. Changes no watch and
//! no mark. Moves at most an eighth of what was there, so the cost is shared among those who leave.

use super::super::lists::List;
use super::super::watchers::Watchers;
use super::super::{IDLE_CAPACITY, give_back};
use super::{MARK, NAMED, Target, Watches, find};

impl Watches {
    /// There are only so many connections now, and those that were beyond watch nobody: gives back
    /// what they took.
    pub fn cut_off(&mut self, places: u32) {
        self.follows.truncate(places as usize);
        give_back(&mut self.follows);
    }

    /// Last of whatever ends watches: gives memory back once most of them have gone. Moves at most
    /// an eighth of what was there.
    pub(super) fn give_back(&mut self) {
        if self.names.is_sparse(self.named_edges + self.standing_edges) {
            self.close_name_gaps();
        }
        let gone = self.edges_peak - self.edges;
        if gone > IDLE_CAPACITY.max(7 * self.edges).max(self.follows.len()) {
            self.pack();
        }
    }

    /// Moves the names that are left to the first places. They stay in order, so the lists do.
    fn close_name_gaps(&mut self) {
        let (mut from, mut to) = (0, 0);
        while let Some(name) = self.names.next_name(from) {
            if name != to {
                let (lists, follows) = (&mut self.lists, &self.follows);
                self.watchers.each(self.names.watchers(name), |conn| {
                    let entries = lists.get_mut(follows[conn as usize].list);
                    let Ok(at) = find(entries, NAMED | name) else {
                        unreachable!("both directions of a watch are mutated together")
                    };
                    entries[at] = NAMED | to | (entries[at] & MARK);
                });
                self.names.close_gap(name, to);
                if let Some(slot) = self.names.slot(to) {
                    self.by_slot.insert(slot, Watchers::stand_in(to));
                }
            }
            (from, to) = (name + 1, to + 1);
        }
        self.names.cut_off();
    }

    /// Moves what is left of a crowd's watches into arenas of their size.
    fn pack(&mut self) {
        let (lists, watchers) = (
            std::mem::take(&mut self.lists),
            std::mem::take(&mut self.watchers),
        );
        for follow in &mut self.follows {
            let mut moved = List::default();
            self.lists.set(&mut moved, lists.get(follow.list));
            follow.list = moved;
        }
        let mut move_all = |from: &mut Watchers| {
            let mut moved = Watchers::default();
            watchers.each(*from, |conn| self.watchers.insert(&mut moved, conn));
            *from = moved;
        };
        let by_slot = self.by_slot.values_mut();
        by_slot
            .filter(|watchers| watchers.as_stand_in().is_none())
            .for_each(&mut move_all);
        self.names.all_watchers_mut().for_each(&mut move_all);
        self.by_slot.shrink_to_fit();
        self.edges_peak = self.edges;
    }

    /// Panics if the two directions disagree. For tests and the simulator.
    pub fn check_invariants(&self) {
        let mut edges = 0;
        for (conn, follow) in self.follows.iter().enumerate() {
            let entries = self.lists.get(follow.list);
            edges += entries.len();
            assert!(
                entries
                    .windows(2)
                    .all(|pair| pair[0] & !MARK < pair[1] & !MARK),
                "stream {conn}'s list is out of order"
            );
            let marks = entries.iter().filter(|entry| **entry & MARK != 0).count();
            assert!(
                follow.is_ending() || marks == follow.marks as usize,
                "stream {conn}'s marks"
            );
            let queued = self.ending.contains(&(conn as u32));
            assert_eq!(follow.is_ending(), queued, "stream {conn}'s end");
            for entry in entries {
                let target = Target(entry & !MARK);
                let conn = conn as u32;
                let watchers = match target.as_name() {
                    Some(name) => Some(self.names.watchers(name)),
                    None => self.by_slot.get(&target.0).copied(),
                };
                let linked =
                    watchers.is_some_and(|watchers| self.watchers.contains(watchers, conn));
                assert!(
                    linked,
                    "stream {conn} watches {target:?} and the publisher's side does not know"
                );
            }
        }
        assert_eq!(edges, self.edges, "watches in all");
        let length = |watchers: Watchers| self.watchers.len(watchers);
        let (mut named, mut standing) = (0, 0);
        for (place, watchers, slot) in self.names.check_invariants() {
            let Some(slot) = slot else {
                named += length(watchers);
                continue;
            };
            standing += length(watchers);
            let stand_in = self
                .by_slot
                .get(&slot)
                .and_then(|other| other.as_stand_in());
            assert_eq!(stand_in, Some(place), "a name stands for slot {slot}");
        }
        assert_eq!(named, self.named_edges, "watches by name in all");
        assert_eq!(
            standing, self.standing_edges,
            "watches by names that stand for slots"
        );
        let by_slot = self.by_slot.values().copied();
        let back: usize = by_slot
            .filter(|watchers| watchers.as_stand_in().is_none())
            .map(length)
            .sum();
        assert_eq!(
            back + named + standing,
            edges,
            "the publishers' side knows watches that no stream has"
        );
    }
}
