//! Who watches whom on this shard, both ways, and what each stream must still be told.
//!
//! Owns the two indexes (stream -> publishers, publisher -> streams), the marks, and the watches by
//! name of users that have no slot yet. Only this type mutates any of them, so they cannot
//! disagree. A mark is one bit of a watch: marking twice costs nothing more. Cost: 4 bytes a watch
//! on the stream's side and about 6 on the publisher's, 12 bytes a stream, about 20 a watched
//! publisher; a name [`NAME_BYTES`] and its text instead of those 20.
//!
//! A user is kept in the lists of all who watch it under one entry, its slot or its name. A name
//! that gets its slot stays the entry for a while: the slot leads to the name's place, and no list
//! is touched. So a first beat costs a bit for each stream that watched for it, as any other does.
//! Behind all that somebody waits for, the place is given up.

mod ending;
mod marks;
mod resolve;
mod room;
mod settling;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::lists::{List, Lists};
pub use super::names::NAME_BYTES;
use super::names::Names;
use super::watchers::{Watchers, WatchersArena};
use crate::wire::User;

/// A stream's entry for one watched publisher, as kept: bit 31 the mark, bit 30 "by name", below it
/// a slot or a name's index.
const MARK: u32 = 1 << 31;
const NAMED: u32 = 1 << 30;

/// What is watched: a publisher by its slot's index, or a user without a slot by name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Target(u32);

impl Target {
    /// A publisher, by slot index.
    pub fn slot(index: u32) -> Target {
        debug_assert!(index < NAMED);
        Target(index)
    }

    /// The slot index, unless it is a name.
    pub fn as_slot(self) -> Option<u32> {
        (self.0 & NAMED == 0).then_some(self.0)
    }

    fn as_name(self) -> Option<u32> {
        (self.0 & NAMED != 0).then_some(self.0 & !NAMED)
    }
}

/// What a stream watches.
#[derive(Clone, Copy, Debug, Default)]
struct Follow {
    list: List,
    /// Marks in the list; [`ENDING`] if its watches are being ended.
    marks: u32,
}

const _: () = assert!(
    size_of::<Follow>() == 12 && size_of::<Watchers>() == 8,
    "what a stream costs here, and a watched publisher beside its hash"
);

/// The marks of a stream that is to be told nothing more: its watches end in slices.
const ENDING: u32 = u32::MAX;

impl Follow {
    fn is_ending(&self) -> bool {
        self.marks == ENDING
    }

    /// Its list, unless that is of nobody any more.
    fn live(&self) -> List {
        if self.is_ending() {
            List::default()
        } else {
            self.list
        }
    }
}

/// Both indexes of one shard.
#[derive(Debug, Default)]
pub struct Watches {
    lists: Lists,
    follows: Vec<Follow>,
    by_slot: HashMap<u32, Watchers, foldhash::fast::RandomState>,
    watchers: WatchersArena,
    names: Names,
    edges: usize,
    /// Of these, by the name of a user without a slot.
    named_edges: usize,
    /// Of these, by a name that stands for a slot.
    standing_edges: usize,
    /// Streams whose watches are being ended.
    ending: VecDeque<u32>,
    /// Slots for which names stand, until their watches are by the slot.
    settling: VecDeque<u32>,
    /// Most watches since memory was last given back.
    edges_peak: usize,
    scratch: Vec<u32>,
}

/// A mark as [`Watches::take_marks`] shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark<'a> {
    /// Whose state is to be told.
    pub of: Marked<'a>,
    /// No other mark of the stream is left after this one.
    pub last: bool,
}

/// Whose state is to be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Marked<'a> {
    /// A publisher, by slot index.
    Slot(u32),
    /// A user without a slot.
    Name {
        user: User<'a>,
        /// [`Watches::answer`] has been told that nobody has ever seen the user.
        answered: bool,
    },
}

/// What marking a publisher's watchers did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MarkCount {
    pub marks: u64,
    /// Watchers that had the mark already: two changes will be told as one.
    pub coalesced: u64,
}

impl Watches {
    /// The target for a user without a slot, made if need be. Give it to [`Watches::add`] before
    /// anything else happens.
    pub fn name(&mut self, user: User<'_>) -> Target {
        let name = self
            .names
            .find(user.as_str())
            .unwrap_or_else(|| self.names.insert(user));
        Target(NAMED | name)
    }

    /// The target by that name, if anybody watches by it. Good until a watch ends.
    pub fn find_name(&self, user: &str) -> Option<Target> {
        self.names.find(user).map(|name| Target(NAMED | name))
    }

    /// Makes the stream at `conn` watch `targets` (in any order, repeats allowed) and marks all of
    /// them if `mark`, those watched already too: whoever adds somebody may have lost what was told
    /// before. Returns how many were not watched before.
    pub fn add(&mut self, conn: u32, targets: &mut Vec<Target>, mark: bool) -> usize {
        targets
            .iter_mut()
            .for_each(|target| *target = self.kept(*target));
        targets.sort_unstable();
        targets.dedup();
        if self.follows.len() <= conn as usize {
            self.follows.resize(conn as usize + 1, Follow::default());
        }
        let bit = if mark { MARK } else { 0 };
        let follow = &mut self.follows[conn as usize];
        debug_assert!(!follow.is_ending(), "its watches have yet to end");
        let old = self.lists.get_mut(follow.list);
        targets.retain(|target| {
            let Ok(at) = find(old, target.0) else {
                return true;
            };
            follow.marks += u32::from(mark && old[at] & MARK == 0);
            old[at] |= bit;
            false
        });
        let mut merged = std::mem::take(&mut self.scratch);
        merged.clear();
        merged.extend_from_slice(old);
        merged.extend(targets.iter().map(|target| target.0 | bit));
        merged.sort_unstable_by_key(|entry| entry & !MARK);
        self.lists.set(&mut follow.list, &merged);
        if mark {
            follow.marks += targets.len() as u32;
        }
        self.scratch = merged;
        for target in targets.iter() {
            self.link(*target, conn);
        }
        targets.len()
    }

    /// Makes the stream at `conn` watch `target` no longer. False if it did not.
    pub fn remove(&mut self, conn: u32, target: Target) -> bool {
        let target = self.kept(target);
        let removed = self.take_out(conn, target);
        self.give_back();
        removed
    }

    fn take_out(&mut self, conn: u32, target: Target) -> bool {
        let Some(follow) = self.follows.get_mut(conn as usize) else {
            return false;
        };
        let Ok(at) = find(self.lists.get(follow.list), target.0) else {
            return false;
        };
        let entry = self.lists.remove(&mut follow.list, at);
        if !follow.is_ending() {
            follow.marks -= entry >> 31;
        }
        self.unlink(target, conn);
        true
    }

    /// Makes the stream at `conn` watch none of `targets` any more, in one pass over its list.
    pub fn remove_all(&mut self, conn: u32, targets: &[Target]) {
        let mut targets: Vec<Target> = targets.iter().map(|target| self.kept(*target)).collect();
        targets.sort_unstable();
        self.remove_such(conn, |_, target| targets.binary_search(&target).is_ok());
    }

    /// Makes the stream at `conn` watch nobody such any more, in one pass over its list. Returns of
    /// how many that was said.
    pub fn remove_where(&mut self, conn: u32, mut such: impl FnMut(Marked<'_>) -> bool) -> usize {
        self.remove_such(conn, |names, target| such(shown(names, target)))
    }

    fn remove_such(&mut self, conn: u32, mut such: impl FnMut(&Names, Target) -> bool) -> usize {
        let Some(follow) = self.follows.get_mut(conn as usize) else {
            return 0;
        };
        let mut kept = std::mem::take(&mut self.scratch);
        let mut gone = Vec::new();
        kept.clear();
        for entry in self.lists.get(follow.list) {
            let target = Target(entry & !MARK);
            if such(&self.names, target) {
                follow.marks -= entry >> 31;
                gone.push(target);
            } else {
                kept.push(*entry);
            }
        }
        self.lists.set(&mut follow.list, &kept);
        self.scratch = kept;
        let removed = gone.len();
        for target in gone {
            self.unlink(target, conn);
        }
        self.give_back();
        removed
    }

    /// Whether [`Watches::answer`] was told of this name. False for a slot.
    pub fn is_answered(&self, target: Target) -> bool {
        target
            .as_name()
            .is_some_and(|name| self.names.is_answered(name))
    }

    /// Calls `each` with the names, and whether each has been answered for, at the last `max`
    /// places below `end`; returns where to go on, or None at the beginning. Begin with
    /// `usize::MAX`. Whatever happens between two calls, none that stays is missed.
    pub fn names_below(
        &self,
        end: usize,
        max: usize,
        mut each: impl FnMut(User<'_>, bool),
    ) -> Option<usize> {
        let (names, next) = self.names.page(end, max);
        names.for_each(|(user, answered)| each(user, answered));
        next
    }

    /// Marks of the stream at `conn`.
    pub fn marks(&self, conn: u32) -> usize {
        self.follows
            .get(conn as usize)
            .filter(|follow| !follow.is_ending())
            .map_or(0, |follow| follow.marks as usize)
    }

    /// Watches of the stream at `conn`.
    pub fn of(&self, conn: u32) -> usize {
        self.follows
            .get(conn as usize)
            .map_or(0, |follow| follow.live().len())
    }

    /// Whether the stream at `conn` watches `target`.
    pub fn has(&self, conn: u32, target: Target) -> bool {
        let target = self.kept(target);
        self.follows
            .get(conn as usize)
            .is_some_and(|follow| find(self.lists.get(follow.live()), target.0).is_ok())
    }

    /// Whether the stream at `conn` watches anybody such, marked or not.
    pub fn any(&self, conn: u32, mut such: impl FnMut(Marked<'_>) -> bool) -> bool {
        let list = self.follows.get(conn as usize).map(Follow::live);
        let entries = list.map_or(&[][..], |list| self.lists.get(list));
        entries
            .iter()
            .any(|entry| such(shown(&self.names, Target(entry & !MARK))))
    }

    /// Whether anybody watches this slot.
    pub fn is_watched(&self, slot: u32) -> bool {
        self.by_slot.contains_key(&slot)
    }

    /// Watches in all.
    pub fn len(&self) -> usize {
        self.edges
    }

    /// No watch at all.
    pub fn is_empty(&self) -> bool {
        self.edges == 0
    }

    /// Watches by the name of a user without a slot, in all.
    pub fn named_len(&self) -> usize {
        self.named_edges
    }

    /// Bytes that names take, beside their watches' 16 each.
    pub fn names_bytes(&self) -> usize {
        self.names.bytes()
    }

    /// The entry under which lists have a target: of a slot for which a name stands, that name.
    fn kept(&self, target: Target) -> Target {
        if self.standing_edges == 0 {
            return target;
        }
        let watchers = target.as_slot().and_then(|slot| self.by_slot.get(&slot));
        match watchers.and_then(|watchers| watchers.as_stand_in()) {
            Some(name) => Target(NAMED | name),
            None => target,
        }
    }

    fn link(&mut self, target: Target, conn: u32) {
        self.edges += 1;
        self.edges_peak = self.edges_peak.max(self.edges);
        let watchers = match target.as_name() {
            Some(name) => {
                *self.edges_by(name) += 1;
                self.names.watchers_mut(name)
            }
            None => self.by_slot.entry(target.0).or_default(),
        };
        self.watchers.insert(watchers, conn);
    }

    fn unlink(&mut self, target: Target, conn: u32) {
        self.edges -= 1;
        let name = target.as_name();
        if let Some(name) = name {
            *self.edges_by(name) -= 1;
        }
        let watchers = match name {
            Some(name) => Some(self.names.watchers_mut(name)),
            None => self.by_slot.get_mut(&target.0),
        };
        let Some(watchers) = watchers else {
            unreachable!("both directions of a watch are mutated together")
        };
        let removed = self.watchers.remove(watchers, conn);
        debug_assert!(removed, "both directions of a watch are mutated together");
        if self.watchers.len(*watchers) > 0 {
            return;
        }
        let slot = match name {
            Some(name) => {
                let slot = self.names.slot(name);
                self.names.remove(name);
                slot
            }
            None => Some(target.0),
        };
        if let Some(slot) = slot {
            self.by_slot.remove(&slot);
        }
    }

    /// As what the watches of a name count.
    fn edges_by(&mut self, name: u32) -> &mut usize {
        match self.names.slot(name) {
            Some(_) => &mut self.standing_edges,
            None => &mut self.named_edges,
        }
    }
}

fn shown(names: &Names, target: Target) -> Marked<'_> {
    let Some(name) = target.as_name() else {
        return Marked::Slot(target.0);
    };
    match names.slot(name) {
        Some(slot) => Marked::Slot(slot),
        None => Marked::Name {
            user: names.user(name),
            answered: names.is_answered(name),
        },
    }
}

fn find(entries: &[u32], target: u32) -> Result<usize, usize> {
    entries.binary_search_by_key(&target, |entry| entry & !MARK)
}
