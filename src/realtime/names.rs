//! Users who were watched before they had a slot, by name.
//!
//! Owns nothing that outlives its watchers: a name goes with the last of them, and the room it took
//! once most of the names have gone (see [`Names::is_sparse`]). A name whose user has got a slot
//! stays for a while as a place that stands for it, so that no list of any stream need be touched
//! at that moment; the text goes at once. Cost: [`NAME_BYTES`] a name beside its text, of which a
//! place that stands for a slot keeps half.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::watchers::Watchers;
use super::{IDLE_CAPACITY, give_back};
use crate::wire::{User, UserBuf};

/// Bytes that a name costs beside its text: its place, its share of the index with the room that
/// each keeps to grow, and the allocator's for the text.
pub const NAME_BYTES: usize = 96;

/// What stands at a place.
#[derive(Debug)]
enum Name {
    Free,
    /// A user without a slot; whether somebody who knows has said that there is no such publisher.
    Unseen {
        user: UserBuf,
        answered: bool,
    },
    /// One who has got this slot since.
    Slot(u32),
}

const _: () = assert!(
    size_of::<(Name, Watchers)>() <= NAME_BYTES / 2,
    "what a place that stands for a slot is said to cost"
);

impl Name {
    /// The text of one without a slot; of any other none.
    fn text(&self) -> &str {
        match self {
            Name::Unseen { user, .. } => user.as_str(),
            Name::Free | Name::Slot(_) => "",
        }
    }

    fn is_free(&self) -> bool {
        matches!(self, Name::Free)
    }
}

/// The names of a shard.
#[derive(Debug, Default)]
pub(super) struct Names {
    hasher: RandomState,
    /// Places of those without a slot, by name.
    index: HashTable<u32>,
    table: Vec<(Name, Watchers)>,
    free: Vec<u32>,
    /// Bytes of the texts.
    text_bytes: usize,
}

impl Names {
    /// The place of one without a slot.
    pub(super) fn find(&self, user: &str) -> Option<u32> {
        if self.index.is_empty() {
            return None;
        }
        let same = |place: &u32| self.table[*place as usize].0.text() == user;
        self.index.find(self.hasher.hash_one(user), same).copied()
    }

    /// A place for a name that has none.
    pub(super) fn insert(&mut self, user: User<'_>) -> u32 {
        let name = Name::Unseen {
            user: UserBuf::from(user),
            answered: false,
        };
        let entry = (name, Watchers::default());
        let place = match self.free.pop() {
            Some(place) => {
                self.table[place as usize] = entry;
                place
            }
            None => {
                self.table.push(entry);
                self.table.len() as u32 - 1
            }
        };
        self.index_at(place);
        place
    }

    fn index_at(&mut self, place: u32) {
        let (hasher, table) = (&self.hasher, &self.table);
        let hash = |place: &u32| hasher.hash_one(table[*place as usize].0.text());
        self.text_bytes += table[place as usize].0.text().len();
        self.index.insert_unique(hash(&place), place, hash);
    }

    fn unindex(&mut self, place: u32) {
        let text = self.table[place as usize].0.text();
        self.text_bytes -= text.len();
        let hash = self.hasher.hash_one(text);
        if let Ok(entry) = self.index.find_entry(hash, |other| *other == place) {
            entry.remove();
        }
    }

    /// Nobody watches by this name any more.
    pub(super) fn remove(&mut self, place: u32) {
        if self.slot(place).is_none() {
            self.unindex(place);
        }
        self.table[place as usize] = (Name::Free, Watchers::default());
        self.free.push(place);
    }

    /// The user has got this slot: from here on the place stands for it, and the name is not found.
    pub(super) fn stand_for(&mut self, place: u32, slot: u32) {
        self.unindex(place);
        self.table[place as usize].0 = Name::Slot(slot);
    }

    /// The slot that a place stands for.
    pub(super) fn slot(&self, place: u32) -> Option<u32> {
        match self.table[place as usize].0 {
            Name::Slot(slot) => Some(slot),
            Name::Free | Name::Unseen { .. } => None,
        }
    }

    /// Bytes that all names take, with what they may grow by.
    pub(super) fn bytes(&self) -> usize {
        let standing = self.table.len() - self.free.len() - self.index.len();
        self.text_bytes + self.index.len() * NAME_BYTES + standing * NAME_BYTES / 2
    }

    /// Most places are free: so many names have gone since the last time that it is worth
    /// [`Names::close_gap`] of all that stay, and of their `watches`.
    pub(super) fn is_sparse(&self, watches: usize) -> bool {
        let stay = self.table.len() - self.free.len();
        self.free.len() > IDLE_CAPACITY.max(7 * stay).max(watches)
    }

    /// The first place from `from` on that is not free.
    pub(super) fn next_name(&self, from: u32) -> Option<u32> {
        let rest = self.table.get(from as usize..)?;
        let ahead = rest.iter().position(|(name, _)| !name.is_free())?;
        Some(from + ahead as u32)
    }

    /// Moves the name at `from` to `to`, a lower place.
    pub(super) fn close_gap(&mut self, from: u32, to: u32) {
        if self.slot(from).is_none() {
            let hash = self.hasher.hash_one(self.table[from as usize].0.text());
            if let Some(place) = self.index.find_mut(hash, |place| *place == from) {
                *place = to;
            }
        }
        self.table.swap(from as usize, to as usize);
    }

    /// All names have been moved to the first places: gives back what is behind them.
    pub(super) fn cut_off(&mut self) {
        self.table.truncate(self.table.len() - self.free.len());
        give_back(&mut self.table);
        self.free = Vec::new();
        let (hasher, table) = (&self.hasher, &self.table);
        let rehash = |place: &u32| hasher.hash_one(table[*place as usize].0.text());
        self.index.shrink_to(0, rehash);
    }

    /// The user of a place that stands for no slot.
    pub(super) fn user(&self, place: u32) -> User<'_> {
        match &self.table[place as usize].0 {
            Name::Unseen { user, .. } => user.user(),
            other => unreachable!("the name of {other:?}"),
        }
    }

    /// Whether somebody who knows has said that there is no such publisher yet.
    pub(super) fn is_answered(&self, place: u32) -> bool {
        matches!(
            self.table[place as usize].0,
            Name::Unseen { answered: true, .. }
        )
    }

    pub(super) fn set_answered(&mut self, place: u32) {
        if let Name::Unseen { answered, .. } = &mut self.table[place as usize].0 {
            *answered = true;
        }
    }

    pub(super) fn watchers(&self, place: u32) -> Watchers {
        self.table[place as usize].1
    }

    pub(super) fn watchers_mut(&mut self, place: u32) -> &mut Watchers {
        &mut self.table[place as usize].1
    }

    pub(super) fn all_watchers_mut(&mut self) -> impl Iterator<Item = &mut Watchers> {
        self.table.iter_mut().map(|(_, watchers)| watchers)
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
            .filter_map(|(name, _)| match name {
                Name::Unseen { user, answered } => Some((user.user(), *answered)),
                Name::Free | Name::Slot(_) => None,
            });
        (names, (from > 0).then_some(from))
    }

    /// All places that have a name: its watchers, and the slot it stands for. Panics if the index
    /// and the table disagree. For tests and the simulator.
    pub(super) fn check_invariants(&self) -> impl Iterator<Item = (u32, Watchers, Option<u32>)> {
        let (mut unseen, mut text_bytes) = (0, 0);
        for (place, (name, _)) in (0..).zip(&self.table) {
            if let Name::Unseen { user, .. } = name {
                unseen += 1;
                text_bytes += user.as_str().len();
                assert_eq!(
                    self.find(user.as_str()),
                    Some(place),
                    "a name is not in its index"
                );
            }
        }
        assert_eq!(self.index.len(), unseen, "names");
        assert_eq!(self.text_bytes, text_bytes, "bytes of names");
        let taken = (0..).zip(&self.table);
        let taken = taken.filter(|(_, (name, _))| !name.is_free());
        taken.map(|(place, (_, watchers))| (place, *watchers, self.slot(place)))
    }

    /// Names without a slot, and for how many there is room in the table and in the index.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> [usize; 3] {
        [
            self.index.len(),
            self.table.capacity(),
            self.index.capacity(),
        ]
    }
}
