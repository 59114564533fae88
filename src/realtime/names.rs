//! Users who are watched and have no slot yet, by name.
//!
//! Owns nothing that outlives its watchers: a name goes with the last of them, and the room it took
//! once most of the names have gone (see [`Names::is_sparse`]).

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::watchers::Watchers;
use super::{IDLE_CAPACITY, give_back};
use crate::wire::{User, UserBuf};

/// The names of a shard.
/// The name at a place; of a free place none.
fn name_at(table: &[(Option<UserBuf>, Watchers, bool)], place: u32) -> &str {
    let name = table[place as usize].0.as_ref();
    name.map_or("", UserBuf::as_str)
}

#[derive(Debug, Default)]
pub(super) struct Names {
    hasher: RandomState,
    /// Indexes into `table`, by name.
    index: HashTable<u32>,
    /// The name, its watchers, and whether it has been answered for; without a name it is a free
    /// place.
    table: Vec<(Option<UserBuf>, Watchers, bool)>,
    free: Vec<u32>,
}

impl Names {
    pub(super) fn find(&self, user: &str) -> Option<u32> {
        let same = |index: &u32| self.name(*index) == user;
        self.index.find(self.hasher.hash_one(user), same).copied()
    }

    /// A place for a name that has none.
    pub(super) fn insert(&mut self, user: User<'_>) -> u32 {
        let entry = (Some(UserBuf::from(user)), Watchers::default(), false);
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
        let rehash = |index: &u32| self.hasher.hash_one(name_at(&self.table, *index));
        self.index
            .insert_unique(self.hasher.hash_one(user.as_str()), index, rehash);
        index
    }

    /// Nobody watches by this name any more.
    pub(super) fn remove(&mut self, name: u32) {
        let hash = self.hasher.hash_one(self.name(name));
        self.table[name as usize].0 = None;
        if let Ok(entry) = self.index.find_entry(hash, |index| *index == name) {
            entry.remove();
        }
        self.free.push(name);
    }

    /// Most places are free: so many names have gone since the last time that it is worth
    /// [`Names::close_gap`] of all that stay, and of their `watches`.
    pub(super) fn is_sparse(&self, watches: usize) -> bool {
        self.free.len() > IDLE_CAPACITY.max(7 * self.index.len()).max(watches)
    }

    /// The name at the first place from `from` on that has one.
    pub(super) fn next_name(&self, from: u32) -> Option<u32> {
        let rest = self.table.get(from as usize..)?;
        let ahead = rest.iter().position(|(name, ..)| name.is_some())?;
        Some(from + ahead as u32)
    }

    /// Moves the name at `from` to `to`, a lower place.
    pub(super) fn close_gap(&mut self, from: u32, to: u32) {
        let hash = self.hasher.hash_one(self.name(from));
        if let Some(index) = self.index.find_mut(hash, |index| *index == from) {
            *index = to;
        }
        self.table.swap(from as usize, to as usize);
    }

    /// All names have been moved to the first places: gives back what is behind them.
    pub(super) fn cut_off(&mut self) {
        self.table.truncate(self.index.len());
        give_back(&mut self.table);
        self.free = Vec::new();
        let rehash = |index: &u32| self.hasher.hash_one(name_at(&self.table, *index));
        self.index.shrink_to(0, rehash);
    }

    pub(super) fn user(&self, name: u32) -> User<'_> {
        let name = self.table[name as usize].0.as_ref();
        name.expect("a place that has a name").user()
    }

    fn name(&self, name: u32) -> &str {
        name_at(&self.table, name)
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

    pub(super) fn all_watchers_mut(&mut self) -> impl Iterator<Item = &mut Watchers> {
        self.table.iter_mut().map(|(_, watchers, _)| watchers)
    }

    /// The names at the last `max` places below `end`, and where to go on, or None at the
    /// beginning. Downwards, because names are moved downwards: one that moves between two pages
    /// may be met twice, but is never missed.
    pub(super) fn page(
        &self,
        end: usize,
        max: usize,
    ) -> (impl Iterator<Item = (User<'_>, bool)>, Option<usize>) {
        let end = self.table.len().min(end);
        let from = end.saturating_sub(max);
        let names = self.table[from..end]
            .iter()
            .filter_map(|(name, _, answered)| Some((name.as_ref()?.user(), *answered)));
        (names, (from > 0).then_some(from))
    }

    /// All watchers of all names. Panics if the index and the table disagree. For tests and the
    /// simulator.
    pub(super) fn check_invariants(&self) -> impl Iterator<Item = Watchers> {
        assert_eq!(
            self.index.len(),
            self.table.len() - self.free.len(),
            "names"
        );
        let (names, _) = self.page(usize::MAX, usize::MAX);
        names.for_each(|(name, _)| {
            assert!(
                self.find(name.as_str()).is_some(),
                "a name is not in its index"
            )
        });
        self.table.iter().map(|(_, watchers, _)| *watchers)
    }

    /// Names, and for how many there is room in the table and in the index.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> [usize; 3] {
        [
            self.index.len(),
            self.table.capacity(),
            self.index.capacity(),
        ]
    }
}
