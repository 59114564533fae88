//! Users who have been logged out: whose streams end.
//!
//! Owns the pass over all streams that finds theirs, for an index of publishers would cost each
//! stream memory. Whoever logs in anew meanwhile is spared. Never ends one itself.

use std::collections::VecDeque;
use std::ops::Range;

use hashbrown::HashMap;

use super::pass::Round;
use crate::realtime::ConnId;
use crate::slot::Slot;
use crate::time::{Mono, Unix};

/// Users whose streams are looked for at once.
const USERS_MAX: usize = 65_536;
/// A presence node tells of a log-out within this, in ms, unless it is out of reach: streams that
/// were opened since are known for so long.
pub(in crate::engine) const OPENED_MS: u64 = 10_000;
/// Most of them: some 32 bytes each.
const OPENED_MAX: usize = 65_536;

#[derive(Debug, Default)]
pub(in crate::engine) struct LoggingOut {
    users: HashMap<u32, LoggedOut, foldhash::fast::RandomState>,
    round: Round,
    /// Streams that were opened lately at a real-time node, by the clock of the publisher's
    /// presence node.
    opened: VecDeque<Opened>,
}

/// A publisher's stream has been opened.
#[derive(Clone, Copy, Debug)]
struct Opened {
    slot: u32,
    stream: ConnId,
    /// By the presence node's clock.
    at: Unix,
    here_at: Mono,
}

#[derive(Debug, Default)]
struct LoggedOut {
    /// When so many places have been seen, all that were open have been.
    until: u64,
    /// Streams that were opened since.
    spared: Vec<ConnId>,
}

impl LoggingOut {
    /// A publisher's stream opens at a real-time node: `at`, by the clock of the presence node that
    /// may yet tell of a log-out before.
    pub(in crate::engine) fn opens(&mut self, slot: Slot, stream: ConnId, at: Unix, now: Mono) {
        let old = |opened: &mut Opened| now.ms_since(opened.here_at) > OPENED_MS;
        while self.opened.len() >= OPENED_MAX || self.opened.front_mut().is_some_and(old) {
            self.opened.pop_front();
        }
        let (slot, here_at) = (slot.index(), now);
        self.opened.push_back(Opened {
            slot,
            stream,
            at,
            here_at,
        });
    }

    /// The streams of these users that are open by now, among so many places, end; but for those
    /// that were opened after `at`, if that is given. False: too many are looked for already.
    pub(in crate::engine) fn begin(
        &mut self,
        slots: &[Slot],
        at: Option<Unix>,
        places: u32,
    ) -> bool {
        if self.users.len() + slots.len() > USERS_MAX {
            return false;
        }
        let until = self.round.until(places);
        let mut since: HashMap<u32, Vec<ConnId>, foldhash::fast::RandomState> = HashMap::default();
        if let Some(at) = at {
            for opened in self.opened.iter().filter(|opened| opened.at > at) {
                since.entry(opened.slot).or_default().push(opened.stream);
            }
        }
        for slot in slots {
            let mut spared = since.remove(&slot.index()).unwrap_or_default();
            if let Some(known) = self.users.get(&slot.index()) {
                // Whoever was meant before is meant still.
                spared.retain(|stream| known.spared.contains(stream));
            }
            self.users.insert(slot.index(), LoggedOut { until, spared });
        }
        true
    }

    /// Whether a stream of this user may still end for it.
    pub(in crate::engine) fn concerns(&self, slot: Slot) -> bool {
        !self.users.is_empty() && self.users.contains_key(&slot.index())
    }

    /// A stream opens that is not to end for it.
    pub(in crate::engine) fn spare(&mut self, slot: Slot, stream: ConnId) {
        if let Some(user) = self.users.get_mut(&slot.index()) {
            user.spared.push(stream);
        }
    }

    /// Whether this stream of the user at `slot` ends.
    pub(in crate::engine) fn ends(&self, slot: u32, stream: ConnId) -> bool {
        let user = self.users.get(&slot);
        user.is_some_and(|user| !user.spared.contains(&stream))
    }

    /// Something is left to look at.
    pub(super) fn is_under_way(&self) -> bool {
        !self.users.is_empty()
    }

    /// The places to look at now.
    pub(in crate::engine) fn step(&mut self, places: u32) -> Range<u32> {
        // Those whose streams have all been seen, by the call before.
        let seen = self.round.seen();
        self.users.retain(|_, user| user.until > seen);
        if self.users.is_empty() {
            self.users.shrink_to_fit();
            return 0..0;
        }
        self.round.step(places)
    }
}

#[cfg(test)]
mod tests {
    use super::super::pass::PLACES_PER_CALL;
    use super::*;

    fn conn(index: u32) -> ConnId {
        let generation = 0;
        ConnId { index, generation }
    }

    #[test]
    fn all_places_are_seen_once_from_wherever_it_begins() {
        let mut logging_out = LoggingOut::default();
        let places = PLACES_PER_CALL + 10;
        assert_eq!(logging_out.step(places), 0..0);
        assert!(logging_out.begin(&[Slot::new(7)], None, places));
        assert_eq!(logging_out.step(places), 0..PLACES_PER_CALL);
        assert!(logging_out.begin(&[Slot::new(8)], None, places));
        assert_eq!(logging_out.step(places), PLACES_PER_CALL..places);
        assert!(logging_out.ends(7, conn(3)) && logging_out.ends(8, conn(3)));
        assert_eq!(logging_out.step(places), 0..PLACES_PER_CALL);
        assert!(!logging_out.ends(7, conn(3)) && logging_out.ends(8, conn(3)));
        assert_eq!(logging_out.step(places), 0..0);
        assert!(!logging_out.is_under_way());
    }

    #[test]
    fn a_log_out_spares_who_came_after_it_and_nobody_for_anothers_sake() {
        let (bob, carol) = (Slot::new(7), Slot::new(8));
        let mut logging_out = LoggingOut::default();
        let mut opens = |slot, stream, at_ms| {
            logging_out.opens(slot, conn(stream), Unix::from_ms(at_ms), Mono::default());
        };
        opens(bob, 1, 1_000);
        opens(bob, 2, 2_000);
        opens(carol, 3, 1_000);
        opens(carol, 4, 2_000);
        let ends = |logging_out: &LoggingOut| {
            [(7, 1), (7, 2), (8, 3), (8, 4)].map(|(slot, at)| logging_out.ends(slot, conn(at)))
        };
        let at = |ms| Some(Unix::from_ms(ms));
        assert!(logging_out.begin(&[bob], None, 100));
        assert_eq!(ends(&logging_out), [true, true, false, false]);
        assert!(logging_out.begin(&[carol], at(1_500), 100));
        assert_eq!(ends(&logging_out), [true, true, true, false]);
        // Told behind it, which ends nobody less.
        assert!(logging_out.begin(&[bob, carol], at(500), 100));
        assert_eq!(ends(&logging_out), [true, true, true, false]);
        // Who was spared is meant by a later one.
        assert!(logging_out.begin(&[carol], at(3_000), 100));
        assert_eq!(ends(&logging_out), [true; 4]);
    }

    #[test]
    fn who_logs_in_anew_is_spared() {
        let mut logging_out = LoggingOut::default();
        assert!(logging_out.begin(&[Slot::new(7)], None, 100));
        logging_out.spare(Slot::new(7), conn(3));
        logging_out.spare(Slot::new(8), conn(4));
        assert!(!logging_out.ends(7, conn(3)));
        assert!(logging_out.ends(7, conn(4)) && !logging_out.ends(8, conn(4)));
        let many: Vec<Slot> = (0..USERS_MAX as u32).map(Slot::new).collect();
        assert!(!logging_out.begin(&many, None, 100), "too many at once");
    }
}
