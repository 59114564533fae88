//! May a silence be believed? Watches the shards' own turns.
//!
//! Owns when each shard last began a turn and with which clock. While one of them is stalled (its
//! socket may hold the beats) or has another idea of the wall clock (it was just stepped), nobody
//! may be expired. Never decides about a slot.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use crate::time::{ANCHOR_TOLERANCE_MS, Mono, Now, Unix};

/// A shard whose last turn began longer ago than this, in ms, is stalled: a second, and a second's
/// grace.
pub const STALLED_MS: u64 = 2_000;
/// Clocks further apart than this, in ms, are before and after a step.
pub(super) const STEP_MS: u64 = 500;
const NEVER: u64 = u64::MAX;

// The clock is anchored anew only beyond its tolerance, so a step is longer than that.
const _: () = assert!(STEP_MS < ANCHOR_TOLERANCE_MS);

pub(super) struct Vigil {
    turns: Box<[CachePadded<Turn>]>,
    /// Mono microseconds.
    hold_until: AtomicU64,
}

struct Turn {
    /// Mono microseconds at which the last turn began; NEVER before the first.
    began_at: AtomicU64,
    /// That turn's Unix ms less its Mono ms.
    anchor_ms: AtomicI64,
}

impl Vigil {
    pub(super) fn new(shards: u16) -> Vigil {
        let turn = || {
            CachePadded::new(Turn {
                began_at: AtomicU64::new(NEVER),
                anchor_ms: AtomicI64::new(0),
            })
        };
        Vigil {
            turns: (0..shards).map(|_| turn()).collect(),
            hold_until: AtomicU64::new(0),
        }
    }

    pub(super) fn note_turn(&self, shard: u16, now: Now) {
        let turn = &self.turns[usize::from(shard)];
        turn.anchor_ms.store(anchor_ms(now), Ordering::Release);
        turn.began_at.store(now.mono.micros(), Ordering::Release);
    }

    pub(super) fn hold_until(&self, until: Mono) {
        self.hold_until.fetch_max(until.micros(), Ordering::AcqRel);
    }

    /// Whether `shard`, which has read stamps at `now`, must not take a silence for an absence.
    pub(super) fn must_hold(&self, shard: u16, now: Now) -> bool {
        now.mono.micros() < self.hold_until.load(Ordering::Acquire)
            || self.others_unsettled(shard, now)
    }

    /// Whether another shard is stalled, or may still stamp by another clock than that of `now`.
    pub(super) fn others_unsettled(&self, shard: u16, now: Now) -> bool {
        let anchor = anchor_ms(now);
        self.turns.iter().enumerate().any(|(other, turn)| {
            let began_at = turn.began_at.load(Ordering::Acquire);
            other != usize::from(shard)
                && began_at != NEVER
                && (now.mono.ms_since(Mono::from_micros(began_at)) > STALLED_MS
                    || turn.anchor_ms.load(Ordering::Acquire).abs_diff(anchor) > STEP_MS)
        })
    }

    pub(super) fn shards(&self) -> usize {
        self.turns.len()
    }

    /// Whether each shard has begun a turn since: what it had to post then is posted.
    pub(super) fn turned_since(&self, at: Mono) -> bool {
        let mut began = self.turns.iter();
        // One that never began has nothing to post, and its NEVER is later than all.
        began.all(|turn| turn.began_at.load(Ordering::Acquire) > at.micros())
    }

    /// A moment before which no shard publishes any more: the earliest of their last turns.
    pub(super) fn earliest_turn(&self) -> Option<Unix> {
        self.turns
            .iter()
            .filter_map(|turn| {
                let began_at = turn.began_at.load(Ordering::Acquire);
                let unix_ms = Mono::from_micros(began_at).ms() as i64
                    + turn.anchor_ms.load(Ordering::Acquire);
                (began_at != NEVER).then(|| Unix::from_ms(u64::try_from(unix_ms).unwrap_or(0)))
            })
            .min()
    }
}

fn anchor_ms(now: Now) -> i64 {
    now.unix.ms() as i64 - now.mono.ms() as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::tests::at;

    #[test]
    fn a_stalled_peer_holds_the_others_but_not_itself() {
        let vigil = Vigil::new(2);
        assert!(
            !vigil.must_hold(0, at(50_000)),
            "a shard that never began has nobody's beats"
        );
        vigil.note_turn(0, at(10_000));
        vigil.note_turn(1, at(10_000));
        assert!(!vigil.must_hold(0, at(12_000)));
        assert!(vigil.must_hold(0, at(12_001)));
        vigil.note_turn(1, at(12_001));
        assert!(!vigil.must_hold(0, at(12_001)));
    }

    #[test]
    fn a_step_holds_until_all_have_seen_it() {
        let vigil = Vigil::new(2);
        vigil.note_turn(0, at(10_000));
        vigil.note_turn(1, at(10_000));
        let stepped = |ms| Now {
            mono: at(ms).mono,
            unix: at(ms).unix.minus_ms(3_600_000),
        };
        vigil.note_turn(0, stepped(10_100));
        assert!(
            vigil.must_hold(1, at(10_100)),
            "this shard's clock is the old one"
        );
        assert!(
            vigil.must_hold(0, stepped(10_100)),
            "the other's beats bear the old time"
        );
        vigil.note_turn(1, stepped(10_150));
        assert!(!vigil.must_hold(0, stepped(10_200)) && !vigil.must_hold(1, stepped(10_200)));
        assert_eq!(vigil.earliest_turn(), Some(stepped(10_100).unix));
    }

    #[test]
    fn a_hold_ends_when_it_was_told_to() {
        let vigil = Vigil::new(1);
        vigil.hold_until(at(5_000).mono);
        vigil.hold_until(at(4_000).mono);
        assert!(vigil.must_hold(0, at(4_999)));
        assert!(!vigil.must_hold(0, at(5_000)));
    }
}
