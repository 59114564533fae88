//! The marks of [`Watches`]: what each stream must still be told.
//!
//! Owns how marks are set and taken. Ends and begins no watch but those of a name that gets a slot.

use super::{MARK, Mark, MarkCount, NAMED, Target, Watches, find, shown};

impl Watches {
    /// Marks a publisher for all who watch it; `first` is called for each stream that had no mark
    /// before.
    pub fn mark(&mut self, slot: u32, mut first: impl FnMut(u32)) -> MarkCount {
        let mut done = MarkCount::default();
        let Some(watchers) = self.by_slot.get(&slot).copied() else {
            return done;
        };
        let (lists, follows) = (&mut self.lists, &mut self.follows);
        self.watchers.each(watchers, |conn| {
            let follow = &mut follows[conn as usize];
            let entries = lists.get_mut(follow.list);
            let Ok(at) = find(entries, slot) else {
                unreachable!("both directions of a watch are mutated together")
            };
            if entries[at] & MARK != 0 {
                done.coalesced += 1;
                return;
            }
            entries[at] |= MARK;
            done.marks += 1;
            follow.marks += 1;
            if follow.marks == 1 {
                first(conn);
            }
        });
        done
    }

    /// Marks those watches of one stream that `choose` picks; returns how many marks it has.
    pub fn mark_where(&mut self, conn: u32, mut choose: impl FnMut(Target) -> bool) -> usize {
        let Some(follow) = self.follows.get_mut(conn as usize) else {
            return 0;
        };
        for entry in self.lists.get_mut(follow.list) {
            if *entry & MARK == 0 && choose(Target(*entry)) {
                *entry |= MARK;
                follow.marks += 1;
            }
        }
        follow.marks as usize
    }

    /// Visits the marked watches of the stream at `conn`: those from position `start` on, then
    /// those before it. A mark is cleared when `tell` returns true, and the visit ends when it
    /// returns false. Returns how many marks are left.
    ///
    /// A caller that can not tell all at once gives another `start` each time: else publishers at
    /// the end of the list would wait for as long as those at its beginning keep changing.
    pub fn take_marks(
        &mut self,
        conn: u32,
        start: usize,
        mut tell: impl FnMut(Mark<'_>) -> bool,
    ) -> usize {
        let Some(follow) = self.follows.get_mut(conn as usize) else {
            return 0;
        };
        let entries = self.lists.get_mut(follow.list);
        let (before, from) = entries.split_at_mut(start.min(entries.len()));
        for entry in from.iter_mut().chain(before) {
            if follow.marks == 0 {
                break;
            }
            if *entry & MARK != 0 {
                let target = Target(*entry & !MARK);
                let of = shown(&self.names, target);
                let last = follow.marks == 1;
                if !tell(Mark { of, last }) {
                    break;
                }
                *entry = target.0;
                follow.marks -= 1;
            }
        }
        follow.marks as usize
    }

    /// The user has a slot: watches by name become watches by slot, marked; `first` as in
    /// [`Watches::mark`]. True if anybody watched by that name.
    pub fn resolve(&mut self, user: &str, slot: u32, mut first: impl FnMut(u32)) -> bool {
        let Some(name) = self.names.find(user) else {
            return false;
        };
        let mut watchers = Vec::new();
        self.watchers
            .each(self.names.watchers(name), |conn| watchers.push(conn));
        for conn in watchers {
            self.take_out(conn, Target(NAMED | name));
            let had = self.marks(conn);
            self.add(conn, &mut vec![Target::slot(slot)], true);
            if had == 0 && self.marks(conn) > 0 {
                first(conn);
            }
        }
        self.give_back();
        true
    }

    /// Nobody has ever seen the user, says who knows: those who watch by that name are marked;
    /// `first` as in [`Watches::mark`].
    pub fn answer(&mut self, user: &str, mut first: impl FnMut(u32)) {
        let Some(name) = self
            .names
            .find(user)
            .filter(|name| !self.names.is_answered(*name))
        else {
            return;
        };
        self.names.set_answered(name);
        let (lists, follows) = (&mut self.lists, &mut self.follows);
        self.watchers.each(self.names.watchers(name), |conn| {
            let follow = &mut follows[conn as usize];
            let entries = lists.get_mut(follow.list);
            let Ok(at) = find(entries, NAMED | name) else {
                unreachable!("both directions of a watch are mutated together")
            };
            if entries[at] & MARK == 0 {
                entries[at] |= MARK;
                follow.marks += 1;
                if follow.marks == 1 {
                    first(conn);
                }
            }
        });
    }
}
