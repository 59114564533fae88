//! Which event ids (Unix ms up to which a watcher was told everything) may still be believed.
//!
//! Owns the ambiguous windows: times that were lived through twice, or whose transitions a power
//! cut may have taken. Two windows for all of them, widened, never narrowed: an id in one costs a
//! full snapshot and nothing else.

use parking_lot::Mutex;

use super::vigil::STEP_MS;
use crate::store::header::{Window, Windows};
use crate::time::{Now, Unix};

/// An id may be this far ahead of the clock, in ms: the shards' turns do not begin together.
pub const AHEAD_MS_MAX: u64 = 1_000;

/// A transition a millisecond is later than the clock by at most this after a step back, in ms: ten
/// minutes' worth.
const SINCE_AHEAD_MS: u64 = 600_000;

/// Why an event id is not believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unresumable {
    /// It is older than this store.
    BeforeStore,
    /// It is yet to come.
    Future,
    /// Its time was lived through twice, or a power cut may have taken what was told then.
    Ambiguous,
}

#[derive(Debug)]
pub(super) struct Resume {
    created_at: Unix,
    life: Mutex<Life>,
}

#[derive(Debug)]
struct Life {
    ambiguous: Windows,
    /// What the clocks last said together.
    clock: Now,
    /// Times before the present one that nobody has lived through: the wall clock was stepped over
    /// them, the last time that it was.
    gap: Option<Window>,
    /// How often it was stepped back.
    steps_back: u64,
}

impl Resume {
    /// Nobody has lived through the time from `idle_since` to `now`.
    pub(super) fn new(created_at: Unix, ambiguous: Windows, idle_since: Unix, now: Now) -> Resume {
        Resume {
            created_at,
            life: Mutex::new(Life {
                ambiguous,
                clock: now,
                gap: gap(idle_since, now.unix),
                steps_back: 0,
            }),
        }
    }

    pub(super) fn resumable(&self, id: Unix, now: Unix) -> Result<(), Unresumable> {
        if id < self.created_at {
            return Err(Unresumable::BeforeStore);
        }
        if id > now.plus_ms(AHEAD_MS_MAX) {
            return Err(Unresumable::Future);
        }
        match self.is_doubted(id) {
            true => Err(Unresumable::Ambiguous),
            false => Ok(()),
        }
    }

    /// Whether ids of this time are not believed.
    pub(super) fn is_doubted(&self, id: Unix) -> bool {
        let mut windows = self.ambiguous().into_iter().flatten();
        windows.any(|(from, to)| (from..=to).contains(&id))
    }

    /// Whether a time that is yet to come is known from when the clock was ahead. Transitions since
    /// then may bear somewhat later ones: a publisher's strictly increase.
    pub(super) fn explains(&self, time: Unix) -> bool {
        let mut windows = self.ambiguous().into_iter().flatten();
        windows.any(|(from, to)| (from..=to.plus_ms(SINCE_AHEAD_MS)).contains(&time))
    }

    /// The same of a stamp, which is never later than the clock was.
    pub(super) fn explains_stamp(&self, time: Unix) -> bool {
        self.is_doubted(time) || self.is_doubted(time.minus_ms(AHEAD_MS_MAX))
    }

    /// No id from `from` to `to`, both included, is believed any more.
    pub(super) fn doubt(&self, from: Unix, to: Unix) {
        self.life.lock().doubt(from, to);
    }

    /// The wall clock, which would say `from`, says `now`. True if that makes ids doubtful: it was
    /// stepped back over times that have been lived through, and no other shard has told so before.
    pub(super) fn stepped(&self, from: Unix, now: Now) -> bool {
        let life = &mut *self.life.lock();
        let expected = life.clock.unix.plus_ms(now.mono.ms_since(life.clock.mono));
        if expected.ms_apart(now.unix) <= STEP_MS {
            return false;
        }
        life.clock = now;
        let (from, to) = (from.max(expected), now.unix);
        if to >= from {
            life.gap = gap(from, to).or(life.gap);
            return false;
        }
        life.steps_back += 1;
        match life.gap {
            // Back over it: what is doubtful lies behind it, and before it if the clock is set back
            // that far.
            Some((first, last)) if to < last => {
                life.doubt(last, from);
                if to < first {
                    life.doubt(to, first);
                }
                life.gap = gap(first, to);
            }
            _ => life.doubt(to, from),
        }
        true
    }

    /// How often the wall clock was stepped back in this process' life: between two equal answers
    /// all that happens is dated in order.
    pub(super) fn steps_back(&self) -> u64 {
        self.life.lock().steps_back
    }

    pub(super) fn ambiguous(&self) -> Windows {
        self.life.lock().ambiguous
    }
}

impl Life {
    fn doubt(&mut self, from: Unix, to: Unix) {
        let mut windows: Vec<Window> = self
            .ambiguous
            .into_iter()
            .flatten()
            .chain([(from, to)])
            .collect();
        windows.sort_unstable();
        let apart_ms = |windows: &[Window], i: usize| windows[i].0.ms_since(windows[i - 1].1);
        // Those that overlap are one; and of three the two that are closest.
        while let Some(i) = (1..windows.len()).min_by_key(|i| apart_ms(&windows, *i))
            && (windows.len() > self.ambiguous.len() || apart_ms(&windows, i) == 0)
        {
            let (_, last) = windows.remove(i);
            windows[i - 1].1 = windows[i - 1].1.max(last);
        }
        self.ambiguous = std::array::from_fn(|i| windows.get(i).copied());
    }
}

/// What lies between two times, less what the shards' turns may be apart.
fn gap(from: Unix, to: Unix) -> Option<Window> {
    let gap = (from.plus_ms(AHEAD_MS_MAX), to.minus_ms(AHEAD_MS_MAX));
    (gap.0 < gap.1).then_some(gap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Mono;

    const YEAR_MS: u64 = 365 * 86_400_000;

    fn unix(ms: u64) -> Unix {
        Unix::from_ms(ms)
    }

    fn now(mono_ms: u64, unix_ms: u64) -> Now {
        Now {
            mono: Mono::from_micros(mono_ms * 1_000),
            unix: unix(unix_ms),
        }
    }

    fn new() -> Resume {
        Resume::new(unix(1_000), [None; 2], unix(1_000), now(0, 1_000))
    }

    fn believed<const N: usize>(resume: &Resume, ids: [u64; N], now_ms: u64) -> [bool; N] {
        ids.map(|id| resume.resumable(unix(id), unix(now_ms)).is_ok())
    }

    #[test]
    fn ids_are_believed_within_the_stores_life_and_outside_the_windows() {
        let resume = new();
        assert_eq!(
            believed(&resume, [999, 1_000, 5_000, 6_000, 6_001], 5_000),
            [false, true, true, true, false]
        );
        let windows =
            |windows: [(u64, u64); 2]| windows.map(|(from, to)| Some((unix(from), unix(to))));
        resume.doubt(unix(3_000), unix(4_000));
        assert_eq!(
            believed(&resume, [2_999, 3_000, 4_000, 4_001], 5_000),
            [true, false, false, true]
        );
        resume.doubt(unix(2_000), unix(2_100));
        assert_eq!(
            resume.ambiguous(),
            windows([(2_000, 2_100), (3_000, 4_000)])
        );
        assert_eq!(
            believed(&resume, [1_999, 2_000, 2_500, 4_000, 4_001], 5_000),
            [true, false, true, false, true]
        );
        resume.doubt(unix(4_900), unix(5_000));
        assert_eq!(
            resume.ambiguous(),
            windows([(2_000, 4_000), (4_900, 5_000)])
        );
        resume.doubt(unix(3_500), unix(4_950));
        assert_eq!(resume.ambiguous(), [Some((unix(2_000), unix(5_000))), None]);
    }

    #[test]
    fn a_clock_that_was_a_year_ahead_for_a_while_costs_that_while() {
        let resume = new();
        // By two shards, the second of which is late.
        assert!(!resume.stepped(unix(11_000), now(10_000, YEAR_MS)));
        assert!(!resume.stepped(unix(11_003), now(10_003, YEAR_MS + 3)));
        // An hour later it is corrected.
        assert!(resume.stepped(unix(YEAR_MS + 3_600_000), now(3_610_000, 3_611_000)));
        assert!(!resume.stepped(unix(YEAR_MS + 3_600_005), now(3_610_005, 3_611_005)));
        let ids = [11_000, 11_001, 3_611_000, 9_000_000];
        assert_eq!(believed(&resume, ids, 9_000_000), [true; 4]);
        let ids = [
            YEAR_MS - 1_001,
            YEAR_MS - 1_000,
            YEAR_MS + 3_600_000,
            YEAR_MS + 3_600_001,
        ];
        assert_eq!(
            believed(&resume, ids, 2 * YEAR_MS),
            [true, false, false, true]
        );
    }

    #[test]
    fn a_clock_set_back_further_than_it_had_gone_ahead_costs_what_is_lived_twice() {
        let resume = new();
        resume.stepped(unix(50_000), now(49_000, 1_000_000));
        assert!(resume.stepped(unix(1_010_000), now(59_000, 20_000)));
        let ids = [
            19_999, 20_000, 51_000, 51_001, 998_999, 999_000, 1_010_000, 1_010_001,
        ];
        assert_eq!(
            believed(&resume, ids, 2_000_000),
            [true, false, false, true, true, false, false, true]
        );
        // From here on the time in between is lived through too.
        assert!(resume.stepped(unix(620_000), now(659_000, 600_000)));
        assert_eq!(believed(&resume, [600_000, 620_000], 2_000_000), [false; 2]);
    }

    #[test]
    fn a_store_that_was_opened_with_a_clock_ahead_has_not_lived_since_it_was_closed() {
        let resume = Resume::new(unix(1_000), [None; 2], unix(50_000), now(0, YEAR_MS));
        assert!(resume.stepped(unix(YEAR_MS + 9_000), now(9_000, 60_000)));
        assert_eq!(
            believed(&resume, [50_000, 60_000, 70_000], 70_000),
            [true; 3]
        );
        assert_eq!(
            believed(&resume, [YEAR_MS, YEAR_MS + 9_000], 2 * YEAR_MS),
            [false; 2]
        );
    }
}
