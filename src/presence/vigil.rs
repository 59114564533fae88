//! May a silence be believed? Watches the shards' own turns.
//!
//! Owns when each shard last began a turn and with which clock. While one of them is stalled (its
//! socket may hold the beats) or has another idea of the wall clock (it was just stepped), nobody
//! may be expired. Owns as well for how long stamps ahead of the clock are believed: they say that
//! the clock is behind. Never decides about a slot.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use crate::store::sigbus::files_were_cut;
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
    /// Whose stamp is ahead of the clock is fresh until then (Mono microseconds).
    ahead_until: AtomicU64,
    /// What the clock said when it was last found behind (Unix ms); NEVER if it was not.
    behind_since: AtomicU64,
    offline_after_ms: u64,
}

struct Turn {
    /// Mono microseconds at which the last turn began; NEVER before the first.
    began_at: AtomicU64,
    /// That turn's Unix ms less its Mono ms.
    anchor_ms: AtomicI64,
}

impl Vigil {
    /// `offline_after_ms`: how long a silence must be.
    pub(super) fn new(shards: u16, offline_after_ms: u64) -> Vigil {
        let turn = || {
            CachePadded::new(Turn {
                began_at: AtomicU64::new(NEVER),
                anchor_ms: AtomicI64::new(0),
            })
        };
        Vigil {
            turns: (0..shards).map(|_| turn()).collect(),
            hold_until: AtomicU64::new(0),
            ahead_until: AtomicU64::new(0),
            behind_since: AtomicU64::new(NEVER),
            offline_after_ms,
        }
    }

    /// The clock says `now` and is behind stamps that were made before: those whose stamps these
    /// are have as long as anybody else to be heard of again.
    pub(super) fn clock_is_behind(&self, now: Now) {
        let until = now.mono.plus_ms(self.offline_after_ms);
        self.ahead_until.fetch_max(until.micros(), Ordering::AcqRel);
        self.behind_since.store(now.unix.ms(), Ordering::Release);
    }

    /// A stamp ahead of the clock of `now` was found, whether or not anybody has told of a step.
    pub(super) fn found_ahead(&self, now: Now) {
        if self.ahead_until.load(Ordering::Acquire) == 0 {
            self.clock_is_behind(now);
        }
    }

    /// Whether a stamp ahead of the clock of `now`, which is `shard`'s, still counts: also while
    /// another shard may be stamping by a later clock, to which this one is still to be stepped.
    pub(super) fn believes_ahead(&self, shard: u16, now: Now) -> bool {
        now.mono.micros() <= self.ahead_until.load(Ordering::Acquire)
            || self.others_unsettled(shard, now)
    }

    /// A time that lies ahead of the clock of `now`, as it is told: no time that is yet to come,
    /// and one that does not move on with the clock.
    pub(super) fn told(&self, ahead: Unix, now: Unix) -> Unix {
        let behind_since = Unix::from_ms(self.behind_since.load(Ordering::Acquire));
        ahead.min(now).min(behind_since)
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
            // A stamp that somebody has cut from its file says nothing of its publisher.
            || files_were_cut()
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
        let vigil = Vigil::new(2, 25_000);
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
        let vigil = Vigil::new(2, 25_000);
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
        let vigil = Vigil::new(1, 25_000);
        vigil.hold_until(at(5_000).mono);
        vigil.hold_until(at(4_000).mono);
        assert!(vigil.must_hold(0, at(4_999)));
        assert!(!vigil.must_hold(0, at(5_000)));
    }

    #[test]
    fn stamps_ahead_of_a_clock_that_is_behind_are_believed_for_as_long_as_a_silence() {
        let vigil = Vigil::new(1, 25_000);
        let ahead = at(90_000).unix;
        assert_eq!(vigil.told(ahead, at(1_000).unix), at(1_000).unix);
        vigil.clock_is_behind(at(2_000));
        assert!(vigil.believes_ahead(0, at(27_000)));
        assert!(!vigil.believes_ahead(0, at(27_001)));
        let told = [3_000, 50_000].map(|ms| vigil.told(ahead, at(ms).unix));
        assert_eq!(told, [at(2_000).unix; 2], "it stands still");
    }
}
