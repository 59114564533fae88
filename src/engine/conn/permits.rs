//! What streams keep of the tokens by which they were opened.
//!
//! Owns until when each may live, whose it is and which: 12 bytes a place, none where nobody is
//! asked for a token.

use crate::auth::ISSUED_AHEAD_MS_MAX;
use crate::realtime::timers::Tick;
use crate::time::Unix;

const HOLDER_BITS: u32 = 23;
const TOKEN_BITS: u32 = 23;
const ISSUED_BITS: u32 = 18;
const _: () = assert!(HOLDER_BITS + TOKEN_BITS + ISSUED_BITS == u64::BITS);

/// As many moments as are told from each other, beside "it does not say".
const MOMENTS: u64 = (1 << ISSUED_BITS) - 1;

/// Stands for a user or for one token: a few bits of a hash that only this process can make.
/// Another may have the same by chance, so it ends streams that can come back, and opens nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(in crate::engine) struct Tag(u32);

impl Tag {
    /// Of a hash's first bytes; never that of nobody.
    pub(in crate::engine) fn of(hash: u32) -> Tag {
        Tag((hash >> (u32::BITS - TOKEN_BITS)).max(1))
    }
}

const _: () = assert!(HOLDER_BITS == TOKEN_BITS, "one kind of tag");

/// Of which token a stream is.
///
/// ```text
/// 63            41 40           18 17                    0
/// | its user: 23  | its jti: 23   | its iat, in steps: 18 |
/// ```
///
/// A jti of zero: it has none. The iat is kept modulo a time that is longer than two lives of a
/// token (see [`Steps`]), plus 1; 0: it does not say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) struct Origin(u64);

/// In which steps times of issue are kept, in ms: a second, unless tokens may live for long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) struct Steps(u64);

impl Steps {
    /// For tokens that live so long.
    pub(in crate::engine) fn of(ttl_max_ms: u64) -> Steps {
        let seconds = (ttl_max_ms / 1_000).saturating_add(ISSUED_AHEAD_MS_MAX / 1_000);
        Steps(seconds.saturating_mul(2).div_ceil(MOMENTS).max(1) * 1_000)
    }

    fn mark(self, issued: Option<Unix>) -> u64 {
        issued.map_or(0, |issued| 1 + issued.ms() / self.0 % MOMENTS)
    }

    /// The latest time, cut off to a step, that has this mark and does not lie ahead.
    fn time(self, mark: u64, now: Unix) -> Option<Unix> {
        let moment = mark.checked_sub(1)?;
        let newest = now.plus_ms(ISSUED_AHEAD_MS_MAX).ms() / self.0;
        let ago = (newest % MOMENTS + MOMENTS - moment) % MOMENTS;
        Some(Unix::from_ms(newest.saturating_sub(ago) * self.0))
    }
}

impl Origin {
    pub(in crate::engine) fn new(
        holder: Tag,
        token: Option<Tag>,
        issued: Option<Unix>,
        steps: Steps,
    ) -> Origin {
        let token = token.map_or(0, |Tag(token)| u64::from(token));
        let above = u64::from(holder.0) << TOKEN_BITS | token;
        Origin(above << ISSUED_BITS | steps.mark(issued))
    }

    /// Whose it is.
    pub(in crate::engine) fn holder(self) -> Tag {
        Tag((self.0 >> (TOKEN_BITS + ISSUED_BITS)) as u32)
    }

    /// Which it is, if it has a `jti`.
    pub(in crate::engine) fn token(self) -> Option<Tag> {
        let token = (self.0 >> ISSUED_BITS) as u32 & ((1 << TOKEN_BITS) - 1);
        (token != 0).then_some(Tag(token))
    }

    /// Whether it may have been made before, as far as that is known.
    pub(in crate::engine) fn is_from_before(self, before: Unix, steps: Steps, now: Unix) -> bool {
        let issued = steps.time(self.0 & MOMENTS, now);
        issued.is_none_or(|issued| issued < before)
    }
}

/// What a stream keeps of its opener's token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::engine) struct Permit {
    /// When the token is void.
    pub(super) until: Tick,
    /// The origin in two halves: a u64 would take 4 bytes more.
    origin: [u32; 2],
}

const _: () = assert!(size_of::<Permit>() == 12);

impl Permit {
    pub(super) fn new(until: Tick, Origin(origin): Origin) -> Permit {
        Permit {
            until,
            origin: [origin as u32, (origin >> 32) as u32],
        }
    }

    pub(super) fn origin(self) -> Origin {
        let [low, high] = self.origin.map(u64::from);
        Origin(high << 32 | low)
    }
}

/// The permits of a shard's streams, by their places.
#[derive(Debug, Default)]
pub(super) struct Permits(Vec<Permit>);

/// The place has no stream, or one that needs no permit.
const NONE: Permit = Permit {
    until: Tick::ZERO,
    origin: [0, 0],
};

impl Permits {
    pub(super) fn set(&mut self, index: u32, permit: Option<Permit>) {
        let index = index as usize;
        match permit {
            Some(permit) => {
                if self.0.len() <= index {
                    self.0.resize(index + 1, NONE);
                }
                self.0[index] = permit;
            }
            None => {
                if let Some(place) = self.0.get_mut(index) {
                    *place = NONE;
                }
            }
        }
    }

    pub(super) fn of(&self, index: u32) -> Option<Permit> {
        let permit = self.0.get(index as usize).copied();
        permit.filter(|permit| *permit != NONE)
    }

    /// There are only so many places now: gives back what others took.
    pub(super) fn cut_off(&mut self, places: u32) {
        self.0.truncate(places as usize);
        crate::realtime::give_back(&mut self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 86_400_000;
    const NOW: Unix = Unix::from_ms(1_764_000_000_500);

    fn origin(issued: Option<Unix>, ttl_max_ms: u64) -> Origin {
        Origin::new(Tag::of(u32::MAX), None, issued, Steps::of(ttl_max_ms))
    }

    #[test]
    fn permits_go_with_their_streams() {
        let mut permits = Permits::default();
        assert_eq!(permits.of(3), None);
        permits.set(3, None);
        assert_eq!(permits.0.capacity(), 0, "nobody is asked for a token");
        let permit = Permit::new(Tick::ZERO, origin(None, DAY_MS));
        permits.set(3, Some(permit));
        assert_eq!((permits.of(2), permits.of(3)), (None, Some(permit)));
        permits.set(3, None);
        assert_eq!(permits.of(3), None);
        permits.set(100_000, Some(permit));
        permits.cut_off(4);
        assert!(permits.0.capacity() <= 4_096);
    }

    #[test]
    fn an_origin_says_whose_which_and_when() {
        let (holder, token) = (Tag::of(0x8000_0000), Tag::of(17));
        assert_eq!(token, Tag(1), "none is that of nobody");
        let steps = Steps::of(DAY_MS);
        let whole = Origin::new(holder, Some(token), Some(NOW), steps);
        let kept = Permit::new(Tick::ZERO, whole).origin();
        assert_eq!((kept.holder(), kept.token()), (holder, Some(token)));
        assert_eq!(kept, whole);
        assert_eq!(origin(Some(NOW), DAY_MS).token(), None);
    }

    #[test]
    fn a_second_tells_tokens_of_a_day_from_each_other() {
        let steps = Steps::of(DAY_MS);
        assert_eq!(steps, Steps(1_000));
        for ago_ms in [0, 1_000, 3_600_000, DAY_MS, 2 * DAY_MS] {
            let issued = NOW.minus_ms(ago_ms + 500);
            let origin = origin(Some(issued), DAY_MS);
            let is_from_before = |before| origin.is_from_before(before, steps, NOW);
            assert!(!is_from_before(issued), "{ago_ms}");
            assert!(is_from_before(issued.plus_ms(1)), "{ago_ms}");
        }
        // A clock that is ahead of this one.
        let ahead = origin(Some(NOW.plus_ms(9_500)), DAY_MS);
        assert!(!ahead.is_from_before(NOW.plus_ms(9_500), steps, NOW));
        assert!(ahead.is_from_before(NOW.plus_ms(9_501), steps, NOW));
        let unknown = origin(None, DAY_MS);
        assert!(unknown.is_from_before(Unix::from_ms(1), steps, NOW));
    }

    #[test]
    fn where_tokens_live_long_one_rather_counts_as_older() {
        let month_ms = 30 * DAY_MS;
        let steps = Steps::of(month_ms);
        assert_eq!(steps, Steps(20_000));
        let issued = NOW.minus_ms(month_ms);
        let origin = origin(Some(issued), month_ms);
        assert!(origin.is_from_before(issued.plus_ms(1), steps, NOW));
        assert!(!origin.is_from_before(issued.minus_ms(20_000), steps, NOW));
        assert_eq!(Steps::of(u64::MAX).time(1, NOW), Some(Unix::from_ms(0)));
    }
}
