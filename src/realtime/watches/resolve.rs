//! From a name to a slot: what becomes of those who watched a user before it had one.
//!
//! Owns the stand-in: the slot leads to the name's place, where all who watch the user are. One
//! entry of one map changes, whoever and however many they are. Marks nobody.

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
            self.move_watchers(Target(NAMED | name), Target::slot(slot), usize::MAX);
            self.give_back();
            return true;
        }
        let watches = self.watchers.len(self.names.watchers(name));
        self.named_edges -= watches;
        self.standing_edges += watches;
        self.names.stand_for(name, slot);
        self.by_slot.insert(slot, Watchers::stand_in(name));
        true
    }

    /// Has at most `max` of those who watch `from` watch `to` instead, marked. Returns how many
    /// were moved. Each costs a rewritten list.
    pub(super) fn move_watchers(&mut self, from: Target, to: Target, max: usize) -> usize {
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
                self.add(*conn, &mut vec![to], true);
            }
        }
        some.len()
    }
}
