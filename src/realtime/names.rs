//! Users who are watched and have no slot yet, by name.
//!
//! Owns nothing that outlives its watchers: a name goes with the last of them, and the table with the last name.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::watchers::Watchers;

/// The names of a shard.
#[derive(Debug, Default)]
pub(super) struct Names {
    hasher: RandomState,
    /// Indexes into `table`, by name.
    index: HashTable<u32>,
    /// The name, its watchers, and whether it has been answered for; an empty name is a free place.
    table: Vec<(Box<str>, Watchers, bool)>,
    free: Vec<u32>,
}

impl Names {
    pub(super) fn find(&self, user: &str) -> Option<u32> {
        let same = |index: &u32| &*self.table[*index as usize].0 == user;
        self.index.find(self.hasher.hash_one(user), same).copied()
    }

    /// A place for a name that has none.
    pub(super) fn insert(&mut self, user: &str) -> u32 {
        let entry = (Box::from(user), Watchers::default(), false);
        let index = match self.free.pop() {
            Some(index) => {
                self.table[index as usize] = entry;
                index
            }
            None => {
                self.table.push(entry);
                self.table.len() as u32 - 1
            }
        };
        let rehash = |index: &u32| self.hasher.hash_one(&*self.table[*index as usize].0);
        self.index.insert_unique(self.hasher.hash_one(user), index, rehash);
        index
    }

    /// Nobody watches by this name any more.
    pub(super) fn remove(&mut self, name: u32) {
        let user = std::mem::take(&mut self.table[name as usize].0);
        let hash = self.hasher.hash_one(&*user);
        if let Ok(entry) = self.index.find_entry(hash, |index| *index == name) {
            entry.remove();
        }
        self.free.push(name);
        if self.index.is_empty() {
            *self = Names::default();
        }
    }

    pub(super) fn user(&self, name: u32) -> &str {
        &self.table[name as usize].0
    }

    /// Whether somebody who knows has said that there is no such publisher yet.
    pub(super) fn is_answered(&self, name: u32) -> bool {
        self.table[name as usize].2
    }

    pub(super) fn set_answered(&mut self, name: u32) {
        self.table[name as usize].2 = true;
    }

    pub(super) fn watchers(&self, name: u32) -> Watchers {
        self.table[name as usize].1
    }

    pub(super) fn watchers_mut(&mut self, name: u32) -> &mut Watchers {
        &mut self.table[name as usize].1
    }

    /// The names at the next `max` places from `from` on, and where to go on, or None at the end.
    pub(super) fn page(&self, from: usize, max: usize) -> (impl Iterator<Item = &str>, Option<usize>) {
        let end = self.table.len().min(from + max);
        let page = &self.table[from.min(end)..end];
        let names = page.iter().map(|(name, ..)| &**name).filter(|name| !name.is_empty());
        (names, (end < self.table.len()).then_some(end))
    }

    /// All watchers of all names. Panics if the index and the table disagree. For tests and the simulator.
    pub(super) fn check_invariants(&self) -> impl Iterator<Item = Watchers> {
        assert_eq!(self.index.len(), self.table.len() - self.free.len(), "names");
        let (names, _) = self.page(0, usize::MAX);
        names.for_each(|name| assert!(self.find(name).is_some(), "a name is not in its index"));
        self.table.iter().map(|(_, watchers, _)| *watchers)
    }

    /// Places, and names in them.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.table.len(), self.index.len())
    }
}
