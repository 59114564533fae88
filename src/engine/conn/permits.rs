//! What streams keep of the tokens by which they were opened.
//!
//! Owns until when each may live and whose it is: 12 bytes a place, none where nobody is asked for
//! a token.

use crate::realtime::timers::Tick;

/// What a stream keeps of its opener's token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::engine) struct Permit {
    /// When the token is void.
    pub(super) until: Tick,
    /// Whose it is, in two halves: a u64 would take 4 bytes more.
    holder: [u32; 2],
}

const _: () = assert!(size_of::<Permit>() == 12);

impl Permit {
    pub(super) fn new(until: Tick, holder: u64) -> Permit {
        Permit {
            until,
            holder: [holder as u32, (holder >> 32) as u32],
        }
    }

    /// Whether it is this user's.
    pub(super) fn is_of(self, holder: u64) -> bool {
        self == Permit::new(self.until, holder)
    }
}

/// The permits of a shard's streams, by their places.
#[derive(Debug, Default)]
pub(super) struct Permits(Vec<Permit>);

/// The place has no stream, or one that needs no permit.
const NONE: Permit = Permit {
    until: Tick::ZERO,
    holder: [0, 0],
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

    #[test]
    fn permits_go_with_their_streams() {
        let mut permits = Permits::default();
        assert_eq!(permits.of(3), None);
        permits.set(3, None);
        assert_eq!(permits.0.capacity(), 0, "nobody is asked for a token");
        let permit = Permit::new(Tick::ZERO, u64::MAX - 7);
        permits.set(3, Some(permit));
        assert_eq!((permits.of(2), permits.of(3)), (None, Some(permit)));
        assert!(permit.is_of(u64::MAX - 7) && !permit.is_of(7));
        permits.set(3, None);
        assert_eq!(permits.of(3), None);
        permits.set(100_000, Some(permit));
        permits.cut_off(4);
        assert!(permits.0.capacity() <= 4_096);
    }
}
