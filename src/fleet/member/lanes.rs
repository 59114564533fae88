//! A node's lease in three lanes, and what they say of all others.
//!
//! Owns who is alive and who is dead. Never fences anybody.

use crate::fleet::Life;
use crate::fleet::partition::LANES;
use crate::fleet::replies::Renewed;
use crate::fleet::traffic::Server;
use crate::time::{Mono, Unix};

/// What a lane said longer ago says nothing of others.
const VIEW_MS: u64 = 3_000;

#[derive(Debug)]
pub(super) struct Lanes {
    pub(super) all: [Lane; LANES.len()],
}

#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) is_asked: bool,
    pub(super) next_at: Mono,
    /// Who answered last.
    pub(super) server: Option<Server>,
    /// When the last renewal that was taken was sent.
    pub(super) renewed_at: Option<Mono>,
    view: Option<(Mono, Renewed)>,
}

/// What the lanes say of one life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Alive,
    Unsure,
    /// It was renewed last then.
    Dead(Unix),
}

impl Lanes {
    pub(super) fn new() -> Lanes {
        Lanes {
            all: Default::default(),
        }
    }

    /// Of a new life nothing is renewed yet.
    pub(super) fn begin_life(&mut self, now: Mono) {
        for lane in &mut self.all {
            lane.renewed_at = None;
            lane.next_at = now;
        }
    }

    pub(super) fn renewed(&mut self, lane: usize, sent: Mono, server: Server, view: Renewed) {
        let lane = &mut self.all[lane];
        lane.server = Some(server);
        lane.renewed_at = lane.renewed_at.max(Some(sent));
        lane.view = Some((sent, view));
    }

    /// Whether two lanes have taken a renewal within `ms`.
    pub(super) fn holds(&self, ms: u64, now: Mono) -> bool {
        let held = self
            .all
            .iter()
            .filter(|lane| lane.renewed_at.is_some_and(|sent| now.ms_since(sent) <= ms));
        held.count() >= 2
    }

    fn views(&self, now: Mono) -> impl Iterator<Item = &Renewed> {
        self.all
            .iter()
            .filter_map(|lane| lane.view.as_ref())
            .filter(move |(sent, _)| now.ms_since(*sent) <= VIEW_MS)
            .map(|(_, view)| view)
    }

    /// Whether what all lanes say is known.
    pub(super) fn are_all_seen(&self, now: Mono) -> bool {
        self.views(now).count() == LANES.len()
    }

    /// All lives that a lane has, in order.
    pub(super) fn lives(&self, now: Mono) -> Vec<Life> {
        let lives = self.views(now).flat_map(|view| &view.lives);
        let mut lives: Vec<Life> = lives.map(|lease| lease.life).collect();
        lives.sort_unstable();
        lives.dedup();
        lives
    }

    /// What a life says of itself, as it said it last.
    pub(super) fn info(&self, life: Life, now: Mono) -> Option<&str> {
        let leases = self.views(now).flat_map(|view| &view.lives);
        let latest = leases
            .filter(|lease| lease.life == life)
            .max_by_key(|lease| lease.renewed_at);
        latest.map(|lease| &*lease.info)
    }

    /// Lives that have not been heard since Redis was away, while they have the time to be.
    pub(super) fn awaited(&self, lease_ms: u64, now: Mono) -> impl Iterator<Item = Life> {
        let views = self.views(now).filter(|view| view.now < view.amnesty_until);
        views.flat_map(move |view| {
            let began = view.amnesty_until.minus_ms(lease_ms);
            let lives = view.lives.iter();
            lives.filter_map(move |lease| (lease.renewed_at < began).then_some(lease.life))
        })
    }

    /// Dead is who is not renewed in two lanes and not fresh in any, while none has an amnesty. A
    /// lane that has lost a life counts: whoever lives is back in it before its amnesty is over. A
    /// renewal that is yet to come, by the lane's clock, is of a clock that was set back since.
    pub(super) fn verdict(&self, life: Life, lease_ms: u64, amnesty: bool, now: Mono) -> Verdict {
        let (mut old, mut last, mut is_amnesty) = (0, None, false);
        for view in self.views(now) {
            is_amnesty |= amnesty && view.now < view.amnesty_until;
            old += 1;
            let Some(lease) = view.lives.iter().find(|lease| lease.life == life) else {
                continue;
            };
            if view.now.ms_apart(lease.renewed_at) <= lease_ms {
                return Verdict::Alive;
            }
            last = last.max(Some(lease.renewed_at.min(view.now)));
        }
        match last {
            Some(last) if old >= 2 && !is_amnesty => Verdict::Dead(last),
            _ => Verdict::Unsure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::replies::Lease;

    const LIFE: Life = Life(*b"life");

    fn view(now: u64, amnesty_until: u64, renewed_at: Option<u64>) -> Renewed {
        let lease = |at| Lease {
            life: LIFE,
            renewed_at: Unix::from_ms(at),
            instance: *b"instance",
            info: "here".into(),
        };
        Renewed {
            now: Unix::from_ms(now),
            amnesty_until: Unix::from_ms(amnesty_until),
            lives: renewed_at.map(lease).into_iter().collect(),
        }
    }

    #[test]
    fn two_lanes_must_agree_that_a_life_is_dead_and_none_may_know_better() {
        let now = Mono::from_micros(9_000_000);
        let dead = Verdict::Dead(Unix::from_ms(2_000));
        for (views, expected) in [
            ([Some((0, 1_000)), Some((0, 2_000)), None], dead),
            ([Some((0, 1_000)), None, None], Verdict::Unsure),
            (
                [Some((0, 1_000)), Some((0, 2_000)), Some((0, 4_000))],
                Verdict::Alive,
            ),
            (
                [Some((0, 1_000)), Some((9_001, 2_000)), None],
                Verdict::Unsure,
            ),
            ([Some((9_000, 1_000)), Some((0, 2_000)), None], dead),
            ([None, None, None], Verdict::Unsure),
        ] {
            let mut lanes = Lanes::new();
            for (at, seen) in views.into_iter().enumerate() {
                if let Some((amnesty, renewed)) = seen {
                    let view = view(9_000, amnesty, Some(renewed));
                    lanes.renewed(at, now, Server(1), view);
                }
            }
            assert_eq!(lanes.verdict(LIFE, 5_000, true, now), expected);
            // What was said long ago says nothing.
            let later = now.plus_ms(VIEW_MS + 1);
            assert_eq!(lanes.verdict(LIFE, 5_000, true, later), Verdict::Unsure);
        }
    }

    #[test]
    fn a_lane_that_has_lost_a_life_and_one_that_is_ahead_of_its_clock_count_as_old() {
        let now = Mono::from_micros(9_000_000);
        // What each lane says: until when its amnesty lasts, and when the life was renewed.
        let lost = |amnesty| Some((amnesty, None));
        let old = |renewed| Some((0, Some(renewed)));
        for (views, expected) in [
            (
                [old(1_000), lost(0), lost(0)],
                Verdict::Dead(Unix::from_ms(1_000)),
            ),
            // Its amnesty is not over: whoever lives may have yet to come back.
            ([old(1_000), lost(9_001), lost(0)], Verdict::Unsure),
            ([old(8_000), lost(0), lost(0)], Verdict::Alive),
            ([lost(0), lost(0), lost(0)], Verdict::Unsure),
            ([lost(0), lost(0), None], Verdict::Unsure),
            (
                [old(1_000), old(99_000), None],
                Verdict::Dead(Unix::from_ms(9_000)),
            ),
            // Two clocks may differ by less than a lease.
            ([old(1_000), old(14_000), None], Verdict::Alive),
        ] {
            let mut lanes = Lanes::new();
            for (at, seen) in views.into_iter().enumerate() {
                if let Some((amnesty, renewed)) = seen {
                    lanes.renewed(at, now, Server(1), view(9_000, amnesty, renewed));
                }
            }
            assert_eq!(lanes.verdict(LIFE, 5_000, true, now), expected, "{views:?}");
        }
    }

    #[test]
    fn a_lease_is_held_in_two_lanes() {
        let (mut lanes, now) = (Lanes::new(), Mono::from_micros(9_000_000));
        lanes.renewed(0, now, Server(1), view(1, 0, None));
        assert!(!lanes.holds(100, now));
        lanes.renewed(2, now, Server(1), view(1, 0, Some(1)));
        assert!(lanes.holds(100, now.plus_ms(100)) && !lanes.holds(100, now.plus_ms(101)));
        assert_eq!(
            (lanes.lives(now), lanes.info(LIFE, now)),
            (vec![LIFE], Some("here"))
        );
        lanes.begin_life(now);
        assert!(!lanes.holds(100, now));
    }
}
