//! The marks of [`Watches`]: what each stream must still be told.
//!
//! Owns how marks are set and taken. Ends and begins no watch.

use super::{MARK, Mark, MarkCount, NAMED, Target, Watches, find, shown};

impl Watches {
    /// Marks a publisher for all who watch it; `first` is called for each stream that had no mark
    /// before.
    pub fn mark(&mut self, slot: u32, first: impl FnMut(u32)) -> MarkCount {
        self.mark_some(slot, 0, usize::MAX, first).0
    }

    /// The same, for those who watch it from the stream at `from` on, some `max` of them; returns
    /// also where to go on.
    pub fn mark_some(
        &mut self,
        slot: u32,
        from: u32,
        max: usize,
        mut first: impl FnMut(u32),
    ) -> (MarkCount, Option<u32>) {
        let mut done = MarkCount::default();
        let Some(watchers) = self.by_slot.get(&slot).copied() else {
            return (done, None);
        };
        let (watchers, entry) = match watchers.as_stand_in() {
            Some(name) => (self.names.watchers(name), NAMED | name),
            None => (watchers, slot),
        };
        let (lists, follows) = (&mut self.lists, &mut self.follows);
        let next = self.watchers.each_some(watchers, from, max, |conn| {
            let follow = &mut follows[conn as usize];
            if follow.is_ending() {
                return;
            }
            let entries = lists.get_mut(follow.list);
            let Ok(at) = find(entries, entry) else {
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
        (done, next)
    }

    /// Marks those watches of one stream that `choose` picks; returns how many marks it has.
    pub fn mark_where(&mut self, conn: u32, mut choose: impl FnMut(Target) -> bool) -> usize {
        let Some(follow) = self.follows.get_mut(conn as usize) else {
            return 0;
        };
        if follow.is_ending() {
            return 0;
        }
        for entry in self.lists.get_mut(follow.list) {
            let target = Target(*entry & !MARK);
            let slot = target.as_name().and_then(|name| self.names.slot(name));
            if *entry & MARK == 0 && choose(slot.map_or(target, Target::slot)) {
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
        if follow.is_ending() {
            return 0;
        }
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
            if follow.is_ending() {
                return;
            }
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
