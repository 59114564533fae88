//! 64 stamps at a time: which are fresh. The inner loop of the sweep.
//!
//! Owns the comparison, by AVX2 where the processor has it and by plain atomic loads elsewhere.
//! Reads stamps that others are writing: each is read once, whole; their order among each other
//! does not matter. Never writes, never decides.

use std::sync::atomic::Ordering;

use crate::planted::{self, Planted};
use crate::store::cells::{Stamp, StampCell, StampFlags};
use crate::time::Unix;

/// A stamp further ahead of the clock than this, in ms, says that the clock is behind: it was made
/// before a step back, or before a start with a clock that nobody had kept.
pub(super) const AHEAD_MS_MAX: u64 = 1_000;
/// Of a stamp that is not fresh whatever its time.
pub(super) const GONE: StampFlags = StampFlags::LEFT.and(StampFlags::EXPIRED);

/// Stamps compared at once: a bit each in the answer.
pub(super) const WORD_SLOTS: usize = 64;

/// Bounds on a stamp as stored, compared as signed numbers: beyond 2^43 ms a stamp is damage, and
/// neither fresh nor ahead.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Fresh stamps are above this.
    stale: i64,
    /// Stamps above this are ahead of the clock.
    ahead: i64,
}

/// What was found in a word of stamps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Word {
    /// A bit for each stamp that is within the bounds and neither LEFT nor EXPIRED.
    pub(super) fresh: u64,
    /// Whether any stamp is ahead of the clock, LEFT and EXPIRED ones too: [`Bounds::is_ahead`]
    /// says which of them count. To tell them apart here costs a tenth of the sweep.
    pub(super) any_ahead: bool,
}

impl Bounds {
    /// Fresh is `now - stamp <= offline_after_ms`; a slot without a beat (0) never is.
    pub(super) fn new(now: Unix, offline_after_ms: u64) -> Bounds {
        let too_short_ms = u64::from(planted::is(Planted::FreshTooShort));
        let oldest_ms = now.minus_ms(offline_after_ms).ms().max(1) + too_short_ms;
        Bounds {
            stale: Stamp::least_order(Unix::from_ms(oldest_ms)) - 1,
            ahead: Stamp::most_order(now.plus_ms(AHEAD_MS_MAX)),
        }
    }

    /// All that has not LEFT passes.
    pub(super) fn not_left() -> Bounds {
        Bounds {
            stale: i64::MIN,
            ahead: i64::MAX,
        }
    }

    /// The same question for one stamp.
    #[inline]
    pub(super) fn is_fresh(self, stamp: Stamp) -> bool {
        !stamp.has(GONE) && stamp.order() > self.stale
    }

    /// Whether it is ahead of the clock, and of one who may be fresh.
    #[inline]
    pub(super) fn is_ahead(self, stamp: Stamp) -> bool {
        !stamp.has(GONE) && stamp.order() > self.ahead
    }
}

/// The comparison, as this processor does it best.
#[derive(Clone, Copy, Debug)]
pub(super) enum Comparison {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
}

/// Proof that the processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(());

impl Comparison {
    pub(super) fn detect() -> Comparison {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            return Comparison::Avx2(Avx2(()));
        }
        Comparison::Scalar
    }

    #[inline]
    pub(super) fn word(self, stamps: &[StampCell; WORD_SLOTS], bounds: Bounds) -> Word {
        match self {
            Comparison::Scalar => scalar(stamps, bounds),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an Avx2 is made by `detect` alone, after asking the processor.
            Comparison::Avx2(_) => unsafe { avx2(stamps, bounds) },
        }
    }
}

fn scalar(stamps: &[StampCell; WORD_SLOTS], bounds: Bounds) -> Word {
    let mut word = Word {
        fresh: 0,
        any_ahead: false,
    };
    for (bit, stamp) in stamps.iter().enumerate() {
        let stamp = stamp.load(Ordering::Relaxed);
        word.fresh |= u64::from(bounds.is_fresh(stamp)) << bit;
        word.any_ahead |= stamp.order() > bounds.ahead;
    }
    word
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(stamps: &[StampCell; WORD_SLOTS], bounds: Bounds) -> Word {
    use core::arch::x86_64::*;
    let stale = _mm256_set1_epi64x(bounds.stale);
    let ahead = _mm256_set1_epi64x(bounds.ahead);
    let mut fresh = 0;
    let mut any_ahead = _mm256_setzero_si256();
    for (step, four) in stamps.chunks_exact(4).enumerate() {
        let loaded: __m256i;
        // The compiler may not see a vector load of memory that other threads write: to it that
        // would be a data race. In assembly it is four relaxed loads at once: x86 does not tear an
        // aligned eight-byte lane in practice. SAFETY: reads the 32 bytes of `four`, and nothing
        // else; unaligned is allowed.
        unsafe {
            core::arch::asm!(
                "vmovdqu {loaded}, ymmword ptr [{from}]",
                from = in(reg) four.as_ptr(),
                loaded = lateout(ymm_reg) loaded,
                options(nostack, preserves_flags, readonly),
            );
        }
        // The sign bit of each lane says: above `stale`, and neither LEFT nor EXPIRED, moved to the
        // sign, is set.
        let left = _mm256_slli_epi64::<{ StampFlags::LEFT.to_sign() }>(loaded);
        let expired = _mm256_slli_epi64::<{ StampFlags::EXPIRED.to_sign() }>(loaded);
        let gone = _mm256_or_si256(left, expired);
        let is_fresh = _mm256_andnot_si256(gone, _mm256_cmpgt_epi64(loaded, stale));
        any_ahead = _mm256_or_si256(any_ahead, _mm256_cmpgt_epi64(loaded, ahead));
        fresh |= (_mm256_movemask_pd(_mm256_castsi256_pd(is_fresh)) as u64) << (step * 4);
    }
    Word {
        fresh,
        any_ahead: _mm256_movemask_pd(_mm256_castsi256_pd(any_ahead)) != 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::cells::CellValue;

    fn word_of(stamps: &[Stamp; WORD_SLOTS]) -> [StampCell; WORD_SLOTS] {
        std::array::from_fn(|i| StampCell::new(stamps[i]))
    }

    fn plain(ms: u64) -> Stamp {
        Stamp::new(Unix::from_ms(ms), Unix::from_ms(ms), StampFlags::default())
    }

    /// With all that says nothing of freshness: flags, and when it was sent.
    fn flagged(ms: u64) -> Stamp {
        Stamp::from_bits(plain(ms).bits() | 0xf_ffff).without(GONE)
    }

    #[test]
    fn the_boundary_is_exact() {
        let bounds = Bounds::new(Unix::from_ms(100_000), 25_000);
        let mut stamps = [Stamp::default(); WORD_SLOTS];
        stamps[0] = plain(75_000);
        stamps[1] = flagged(74_999);
        stamps[2] = plain(75_000).with(StampFlags::LEFT);
        stamps[3] = plain(75_000).with(StampFlags::EXPIRED);
        stamps[4] = flagged(75_000);
        stamps[63] = plain(100_000);
        let expected = Word {
            fresh: 1 | 1 << 4 | 1 << 63,
            any_ahead: false,
        };
        assert_eq!(scalar(&word_of(&stamps), bounds), expected);
        assert_eq!(
            Comparison::detect().word(&word_of(&stamps), bounds),
            expected
        );
        stamps[5] = flagged(101_000).with(StampFlags::EXPIRED);
        assert!(!scalar(&word_of(&stamps), bounds).any_ahead);
        for gone in [StampFlags::LEFT, StampFlags::EXPIRED] {
            stamps[5] = plain(101_001).with(gone);
            assert!(scalar(&word_of(&stamps), bounds).any_ahead);
            assert!(!bounds.is_ahead(stamps[5]));
        }
        stamps[5] = plain(101_001);
        assert!(scalar(&word_of(&stamps), bounds).any_ahead);
        assert!(
            Comparison::detect()
                .word(&word_of(&stamps), bounds)
                .any_ahead
        );
    }

    #[test]
    fn no_beat_is_never_fresh() {
        let bounds = Bounds::new(Unix::from_ms(10), 25_000);
        assert!(!bounds.is_fresh(Stamp::default()) && bounds.is_fresh(plain(1)));
        let any = Bounds::not_left();
        assert!(any.is_fresh(Stamp::default()) && !any.is_fresh(plain(0).with(StampFlags::LEFT)));
    }

    proptest! {
        #[test]
        fn both_ways_agree(
            bits in prop::collection::vec(
                prop_oneof![
                    any::<u64>(),
                    (0_u64..200_000, 0_u64..1 << 20)
                        .prop_map(|(ms, flags)| plain(ms).bits() | flags)
                ],
                WORD_SLOTS
            ),
            now_ms in 0_u64..200_000,
        ) {
            let stamps: [Stamp; WORD_SLOTS] = std::array::from_fn(|i| Stamp::from_bits(bits[i]));
            for bounds in [Bounds::new(Unix::from_ms(now_ms), 25_000), Bounds::not_left()] {
                prop_assert_eq!(
                    Comparison::detect().word(&word_of(&stamps), bounds),
                    scalar(&word_of(&stamps), bounds)
                );
            }
        }
    }
}
