//! At which node of a fleet each user is, and what went to a node shortly before it was gone.
//!
//! Owns who moves where by what is known of the nodes. Sends nothing.

use std::collections::VecDeque;

use super::holds::{Death, Holds};

/// What was sent longer ago than this, us, its node has long heard and told.
const RECENT_US: u64 = 5_000_000;
/// A node may die with what it had heard for this long, us: it had it in hand, but nobody was told.
const IN_HAND_US: u64 = 500_000;
/// Other nodes pass beats on to a dead one for 2.5 s, until they miss it, and what they have
/// gathered for it 200 ms longer, us (docs/CLUSTER.md, "What fails").
const IN_VAIN_US: u64 = 2_700_000;

/// A beat or a goodbye that went to a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Recent {
    sent_us: u64,
    user: u64,
    at_ms: u64,
    is_beat: bool,
}

/// Where everybody is.
pub(super) struct Roads {
    at: Vec<u16>,
    recent: Vec<VecDeque<Recent>>,
    /// When the last death that was seen of each node was found, us.
    deaths_us: Vec<u64>,
    /// Until then a beat may be passed on to a node that has died.
    in_vain_until_us: u64,
    /// How often somebody went to another node than before.
    pub(super) moves: u64,
}

impl Roads {
    /// Users are spread over `nodes` in turn.
    pub(super) fn new(nodes: usize, users: usize) -> Roads {
        Roads {
            at: (0..users).map(|user| (user % nodes) as u16).collect(),
            recent: vec![VecDeque::new(); nodes],
            deaths_us: vec![0; nodes],
            in_vain_until_us: 0,
            moves: 0,
        }
    }

    pub(super) fn nodes(&self) -> usize {
        self.recent.len()
    }

    pub(super) fn at(&self, user: u64) -> usize {
        usize::from(self.at[user as usize])
    }

    /// Notes that `node` was sent what `user` did at `at_ms`. True: it may be lost with another.
    pub(super) fn sent(
        &mut self,
        node: usize,
        user: u64,
        (at_ms, is_beat): (u64, bool),
        sent_us: u64,
    ) -> bool {
        self.moves += u64::from(self.at(user) != node);
        self.at[user as usize] = node as u16;
        let recent = &mut self.recent[node];
        while recent
            .front()
            .is_some_and(|old| old.sent_us + RECENT_US < sent_us)
        {
            recent.pop_front();
        }
        recent.push_back(Recent {
            sent_us,
            user,
            at_ms,
            is_beat,
        });
        is_beat && sent_us < self.in_vain_until_us
    }

    /// What went to nodes that have been found gone since the last call, and may be lost with them:
    /// whose, and when it was sent.
    pub(super) fn lost(&mut self, holds: &Holds) -> Vec<(u64, u64)> {
        let mut lost = Vec::new();
        for node in 0..self.nodes() {
            let death = holds.death(node);
            if let Some(death) = death.filter(|death| death.found_us != self.deaths_us[node]) {
                self.deaths_us[node] = death.found_us;
                lost.extend(self.lost_with(node, death));
                lost.extend(self.passed_on_to(node, death));
                let until_us = death.found_us + IN_VAIN_US;
                self.in_vain_until_us = self.in_vain_until_us.max(until_us);
            }
        }
        lost
    }

    /// Beats that others may have passed on to it when it had died, or shortly before.
    fn passed_on_to(&self, node: usize, death: Death) -> Vec<(u64, u64)> {
        let others = self.recent.iter().enumerate();
        let others = others.filter(|(at, _)| *at != node);
        let sent = others.flat_map(|(_, recent)| recent);
        let from_us = death.answered_us.saturating_sub(IN_HAND_US);
        let when_us = from_us..death.found_us + IN_VAIN_US;
        let lost = sent.filter(|sent| sent.is_beat && when_us.contains(&sent.sent_us));
        lost.map(|sent| (sent.user, sent.at_ms)).collect()
    }

    fn lost_with(&mut self, node: usize, death: Death) -> Vec<(u64, u64)> {
        let from_us = death.answered_us.saturating_sub(IN_HAND_US);
        let recent = self.recent[node].drain(..);
        let lost = recent.filter(|sent| sent.sent_us >= from_us);
        lost.map(|sent| (sent.user, sent.at_ms)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_takes_along_what_it_heard_last() {
        let mut roads = Roads::new(2, 3);
        assert_eq!([0, 1, 2].map(|user| roads.at(user)), [0, 1, 0]);
        for (node, user, at_ms) in [(1, 1, 8_000), (0, 0, 9_400), (1, 2, 9_500), (1, 1, 10_100)] {
            assert!(!roads.sent(node, user, (at_ms, user != 0), at_ms * 1_000));
        }
        assert_eq!(
            ([0, 1, 2].map(|user| roads.at(user)), roads.moves),
            ([0, 1, 1], 1)
        );
        let death = Death {
            answered_us: 10_000_000,
            found_us: 10_250_000,
        };
        for (user, at_ms) in [(1, 9_499), (1, 9_500), (0, 10_050)] {
            roads.sent(0, user, (at_ms, true), at_ms * 1_000);
        }
        roads.sent(0, 2, (10_060, false), 10_060_000);
        assert_eq!(roads.passed_on_to(1, death), [(1, 9_500), (0, 10_050)]);
        assert_eq!(roads.lost_with(1, death), [(2, 9_500), (1, 10_100)]);
        assert_eq!(roads.lost_with(1, death), [], "it is told once");
        // What is old is not kept.
        for at_ms in [20_000, 24_000, 25_001] {
            roads.sent(0, 0, (at_ms, true), at_ms * 1_000);
        }
        assert_eq!(roads.recent[0].len(), 2);
        // And what others are sent before they miss it.
        roads.in_vain_until_us = death.answered_us + IN_VAIN_US;
        for (ms, is_beat, expected) in [
            (12_699, true, true),
            (12_699, false, false),
            (12_700, true, false),
        ] {
            assert_eq!(
                roads.sent(0, 0, (ms, is_beat), ms * 1_000),
                expected,
                "{ms}"
            );
        }
    }
}
