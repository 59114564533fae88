//! From a name to a slot: what becomes of those who watched a user before it had one.
//!
//! Owns the stand-in: the slot leads to the name's place, where all who watch the user are. One
//! entry of one map changes, whoever and however many they are. It lasts until `settling.rs` moves
//! them. Marks nobody.

use super::{NAMED, Target, Watches};
use crate::realtime::watchers::Watchers;

impl Watches {
    /// The user has a slot: those who watch it by name watch the slot from here on. True if anybody
    /// watched by that name.
    pub fn resolve(&mut self, user: &str, slot: u32) -> bool {
        let Some(name) = self.names.find(user) else {
            return false;
        };
        if self.by_slot.contains_key(&slot) {
            // Who looks for the name before the slot never gets here. Right all the same.
            self.move_watchers(Target(NAMED | name), Target::slot(slot), usize::MAX, |_| ());
            self.give_back();
            return true;
        }
        let watches = self.watchers.len(self.names.watchers(name));
        self.named_edges -= watches;
        self.standing_edges += watches;
        self.names.stand_for(name, slot);
        self.by_slot.insert(slot, Watchers::stand_in(name));
        self.settling.push_back(slot);
        true
    }

    /// Has at most `max` of those who watch a slot watch `to` instead, marked; `first` is called
    /// for each stream that had no mark before. Returns how many were moved. Each costs a rewritten
    /// list.
    pub fn move_from_slot(
        &mut self,
        slot: u32,
        to: Target,
        max: usize,
        first: impl FnMut(u32),
    ) -> usize {
        let moved = self.move_watchers(self.kept(Target::slot(slot)), to, max, first);
        if let Some(name) = to.as_name()
            && self.watchers.len(self.names.watchers(name)) == 0
        {
            // All of them are ending, and nobody came to the name.
            self.names.remove(name);
        }
        self.give_back();
        moved
    }

    fn move_watchers(
        &mut self,
        from: Target,
        to: Target,
        max: usize,
        mut first: impl FnMut(u32),
    ) -> usize {
        let watchers = match from.as_name() {
            Some(name) => self.names.watchers(name),
            None => self.by_slot.get(&from.0).copied().unwrap_or_default(),
        };
        let mut some = Vec::new();
        self.watchers
            .each_some(watchers, 0, max, |conn| some.push(conn));
        some.truncate(max);
        for conn in &some {
            let ending = self.is_ending(*conn);
            self.take_out(*conn, from);
            if !ending {
                let had = self.marks(*conn);
                self.add(*conn, &mut vec![to], true);
                if had == 0 {
                    first(*conn);
                }
            }
        }
        some.len()
    }
}
