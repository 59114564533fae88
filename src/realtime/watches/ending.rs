//! The ends of streams: their watches are taken out of both directions in slices.
//!
//! Owns the queue of streams whose watches are being ended. Such a stream has no marks, gets none,
//! and watches nobody as far as anybody can ask; its entries go from the end of its list, each in
//! both directions. Its index is not free until then: whoever had it next would be found in the
//! places of the one before.

use super::{ENDING, Target, Watches};
use crate::realtime::give_back;
use crate::realtime::watches::MARK;

/// A list as short as this is ended at once.
const FEW: usize = 64;

impl Watches {
    /// Ends all watches of the stream at `conn`, at once if they are few: true if none is left.
    /// Else its index belongs to it until [`Watches::end_some`] has named it.
    pub fn end(&mut self, conn: u32) -> bool {
        let Some(follow) = self.follows.get_mut(conn as usize) else {
            return true;
        };
        if follow.is_ending() {
            return false;
        }
        follow.marks = ENDING;
        if follow.list.len() <= FEW {
            self.end_last(conn, FEW);
            self.give_back();
            return true;
        }
        self.ending.push_back(conn);
        false
    }

    /// Whether the watches of the stream at `conn` are being ended.
    pub fn is_ending(&self, conn: u32) -> bool {
        let follow = self.follows.get(conn as usize);
        follow.is_some_and(|follow| follow.is_ending())
    }

    /// Whether any stream's are.
    pub fn has_ending(&self) -> bool {
        !self.ending.is_empty()
    }

    /// Ends at most `max` watches of one of those streams. Returns how many have been, and which
    /// stream has none left.
    pub fn end_some(&mut self, max: usize) -> (usize, Option<u32>) {
        let Some(conn) = self.ending.front().copied() else {
            return (0, None);
        };
        let ended = self.end_last(conn, max);
        self.give_back();
        if self.is_ending(conn) {
            return (ended, None);
        }
        self.ending.pop_front();
        give_back_queue(&mut self.ending);
        (ended, Some(conn))
    }

    /// Ends all watches of the stream at `conn` at once, however many.
    pub fn clear(&mut self, conn: u32) {
        if !self.end(conn) {
            self.end_last(conn, usize::MAX);
            self.ending.retain(|other| *other != conn);
            self.give_back();
        }
    }

    /// Ends the last `max` watches of a stream that is ending. Returns how many there were.
    fn end_last(&mut self, conn: u32, max: usize) -> usize {
        let follow = &mut self.follows[conn as usize];
        let entries = self.lists.get(follow.list);
        let kept = entries.len().saturating_sub(max);
        let mut last = std::mem::take(&mut self.scratch);
        last.clear();
        last.extend_from_slice(&entries[kept..]);
        self.lists.truncate(&mut follow.list, kept);
        if kept == 0 {
            follow.marks = 0;
        }
        for entry in &last {
            self.unlink(Target(entry & !MARK), conn);
        }
        let ended = last.len();
        last.clear();
        give_back(&mut last);
        self.scratch = last;
        ended
    }
}

/// A crowd that has ended leaves no room behind.
fn give_back_queue(queue: &mut std::collections::VecDeque<u32>) {
    if queue.is_empty() {
        queue.shrink_to(FEW);
    }
}
