//! One timer a connection, in a wheel of intrusive lists.
//!
//! Owns when each connection is looked at next; never what for: the engine decides that from the
//! connection's phase. A deadline that moves later is not moved here: the connection is looked at
//! early, found not due and set again, so that writing to a stream costs its timer nothing. Cost:
//! 12 bytes a connection, O(1) to set, one pass over the due.

use crate::time::Mono;

/// Length of a tick in ms: timers fire up to one tick late, never early.
pub const TICK_MS: u64 = 64;
/// Ticks of one turn of the wheel: 131 s. A later deadline is looked at once a turn of the wheel.
const WHEEL_TICKS: usize = 2_048;
const NONE: u32 = u32::MAX;

/// A moment in ticks since the wheel was made. A u32 of them lasts for 8.7 years without a restart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Tick(u32);

impl Tick {
    /// When the wheel was made.
    pub const ZERO: Tick = Tick(0);
}

#[derive(Clone, Copy, Debug)]
struct Link {
    next: u32,
    previous: u32,
    due: u32,
}

const _: () = assert!(size_of::<Link>() == 12, "what a connection costs here");

#[derive(Debug)]
pub struct Timers {
    epoch: Mono,
    /// Ticks up to and including this one have been fired.
    fired: u32,
    /// The tick at which timers were last taken: what is set meanwhile fires later than that.
    firing: u32,
    heads: Box<[u32]>,
    /// One bit a head, so that the next due tick is found without walking empty heads.
    filled: [u64; WHEEL_TICKS / 64],
    links: Vec<Link>,
    set: usize,
}

impl Timers {
    /// An empty wheel that starts at `now`.
    pub fn new(now: Mono) -> Timers {
        Timers {
            epoch: now,
            fired: 0,
            firing: 0,
            heads: vec![NONE; WHEEL_TICKS].into_boxed_slice(),
            filled: [0; WHEEL_TICKS / 64],
            links: Vec::new(),
            set: 0,
        }
    }

    /// The first tick that is not before `at`.
    pub fn tick_at(&self, at: Mono) -> Tick {
        let ms = at.micros_since(self.epoch).div_ceil(1_000);
        Tick(u32::try_from(ms.div_ceil(TICK_MS)).unwrap_or(NONE - 1))
    }

    /// The last tick that is not after `now`: what is due at it is due.
    pub fn reached(&self, now: Mono) -> Tick {
        Tick(u32::try_from(now.ms_since(self.epoch) / TICK_MS).unwrap_or(NONE - 1))
    }

    /// Time from `tick` to `now`, in ms, less up to a tick.
    pub fn ms_since(&self, tick: Tick, now: Mono) -> u64 {
        u64::from(self.reached(now).0.saturating_sub(tick.0)) * TICK_MS
    }

    /// The tick `ms` after `now`, not before.
    pub fn tick_in(&self, now: Mono, ms: u64) -> Tick {
        self.tick_at(now.plus_ms(ms))
    }

    /// The tick `ms` after `tick`.
    pub fn later(&self, tick: Tick, ms: u64) -> Tick {
        Tick(
            tick.0
                .saturating_add(u32::try_from(ms.div_ceil(TICK_MS)).unwrap_or(NONE - 1)),
        )
    }

    /// Sets (or moves) the timer of the connection at `index` to `tick`, or a turn of the wheel
    /// from now if that is sooner. One that is set in the past fires at the next tick: whoever sets
    /// it again each time it fires does not spin.
    pub fn set(&mut self, index: u32, tick: Tick) {
        self.clear(index);
        if self.links.len() <= index as usize {
            self.links.resize(
                index as usize + 1,
                Link {
                    next: NONE,
                    previous: NONE,
                    due: NONE,
                },
            );
        }
        let last = self.fired + WHEEL_TICKS as u32 - 1;
        let first = (self.firing.max(self.fired) + 1).min(last);
        let due = tick.0.clamp(first, last);
        let head = due as usize % WHEEL_TICKS;
        let next = self.heads[head];
        self.links[index as usize] = Link {
            next,
            previous: NONE,
            due,
        };
        if next != NONE {
            self.links[next as usize].previous = index;
        }
        self.heads[head] = index;
        self.filled[head / 64] |= 1 << (head % 64);
        self.set += 1;
    }

    /// Sets the timer of the connection at `index` to `tick` unless it fires before that already.
    pub fn set_sooner(&mut self, index: u32, tick: Tick) {
        if self
            .links
            .get(index as usize)
            .is_none_or(|link| link.due > tick.0)
        {
            self.set(index, tick);
        }
    }

    /// Forgets the timer of the connection at `index`.
    pub fn clear(&mut self, index: u32) {
        let Some(link) = self
            .links
            .get(index as usize)
            .copied()
            .filter(|link| link.due != NONE)
        else {
            return;
        };
        let head = link.due as usize % WHEEL_TICKS;
        match link.previous {
            NONE => self.heads[head] = link.next,
            previous => self.links[previous as usize].next = link.next,
        }
        if link.next != NONE {
            self.links[link.next as usize].previous = link.previous;
        }
        if self.heads[head] == NONE {
            self.filled[head / 64] &= !(1 << (head % 64));
        }
        self.links[index as usize].due = NONE;
        self.set -= 1;
    }

    /// There are only so many connections now, and those that were beyond have no timer set: gives
    /// back what they took.
    pub fn cut_off(&mut self, places: u32) {
        debug_assert!(
            self.links
                .iter()
                .skip(places as usize)
                .all(|link| link.due == NONE)
        );
        self.links.truncate(places as usize);
        super::give_back(&mut self.links);
    }

    /// Takes one connection whose timer is due at `now`; its timer is no longer set.
    pub fn pop(&mut self, now: Mono) -> Option<u32> {
        let Tick(now_tick) = self.reached(now);
        self.firing = now_tick;
        match self.next_due().filter(|due| *due <= now_tick) {
            Some(due) => {
                let index = self.heads[due as usize % WHEEL_TICKS];
                self.clear(index);
                self.fired = self.fired.max(due - 1);
                Some(index)
            }
            None => {
                self.fired = self.fired.max(now_tick);
                None
            }
        }
    }

    /// When the first timer fires; [`Mono::NEVER`] if none is set.
    pub fn next(&self) -> Mono {
        self.next_due().map_or(Mono::NEVER, |due| {
            self.epoch.plus_ms(u64::from(due) * TICK_MS)
        })
    }

    /// The tick of the first filled head after `fired`; all set timers lie within one turn of the
    /// wheel.
    fn next_due(&self) -> Option<u32> {
        if self.set == 0 {
            return None;
        }
        let start = (self.fired as usize + 1) % WHEEL_TICKS;
        let words = self.filled.len();
        for step in 0..=words {
            let word_at = (start / 64 + step) % words;
            let mut word = self.filled[word_at];
            if step == 0 {
                word &= u64::MAX << (start % 64);
            } else if step == words {
                word &= !(u64::MAX << (start % 64));
            }
            if word != 0 {
                let head = word_at * 64 + word.trailing_zeros() as usize;
                let ahead = (head + WHEEL_TICKS - start) % WHEEL_TICKS;
                return Some(self.fired + 1 + ahead as u32);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono::from_micros(7_000_000).plus_ms(ms)
    }

    fn wheel() -> Timers {
        Timers::new(at(0))
    }

    #[test]
    fn fires_in_order_and_never_early() {
        let mut timers = wheel();
        for (index, ms) in [(0, 500), (1, 100), (2, 100_000), (3, 101)] {
            let tick = timers.tick_in(at(0), ms);
            timers.set(index, tick);
        }
        assert_eq!(timers.next(), at(128));
        assert_eq!(timers.pop(at(127)), None);
        let mut first = [timers.pop(at(128)), timers.pop(at(128))];
        first.sort();
        assert_eq!(first, [Some(1), Some(3)]);
        assert_eq!(timers.pop(at(128)), None);
        assert_eq!(timers.pop(at(511)), None);
        assert_eq!(timers.pop(at(512)), Some(0));
        assert_eq!(timers.next(), at(100_032));
        assert_eq!(timers.pop(at(100_031)), None);
        assert_eq!(timers.pop(at(400_000)), Some(2));
        assert_eq!(timers.next(), Mono::NEVER);
    }

    #[test]
    fn moved_cleared_and_beyond_the_horizon() {
        let mut timers = wheel();
        let (soon, later, far) = (
            timers.tick_in(at(0), 64),
            timers.tick_in(at(0), 640),
            timers.tick_in(at(0), 10_000_000),
        );
        timers.set(5, soon);
        timers.set(5, later);
        timers.set(6, soon);
        timers.set(7, far);
        timers.clear(6);
        timers.clear(6);
        timers.clear(99);
        assert_eq!(timers.pop(at(639)), None);
        assert_eq!(timers.pop(at(640)), Some(5));
        // The far one is looked at once a turn of the wheel.
        assert_eq!(timers.next(), at(2_047 * 64));
        assert_eq!(timers.pop(at(2_047 * 64)), Some(7));
    }

    #[test]
    fn a_timer_set_in_the_past_fires_on_the_next_tick_so_that_no_loop_spins() {
        let mut timers = wheel();
        assert_eq!(timers.pop(at(10_000)), None);
        timers.set(1, Tick(0));
        assert_eq!(timers.next(), at(10_048));
        assert_eq!(timers.pop(at(10_048)), Some(1));
    }

    /// However late the wheel is looked at: one that is set in the past while it fires, each time
    /// anew, fires once a look, or once a turn of the wheel that has passed.
    #[test]
    fn a_timer_that_is_set_in_the_past_while_others_fire_waits_for_the_next_look() {
        for late_ms in [640, 10_000, 500_000] {
            let mut timers = wheel();
            timers.set(1, Tick(3));
            timers.set(2, Tick(4));
            let mut fired = 0;
            while let Some(index) = timers.pop(at(late_ms)) {
                timers.set(index, Tick(3));
                fired += 1;
                assert!(fired < 100, "{late_ms}: it spins");
            }
            let turns = late_ms / TICK_MS / WHEEL_TICKS as u64;
            assert!(fired <= 2 * (turns + 1), "{late_ms}: {fired}");
            assert!(timers.next() > at(late_ms));
        }
    }

    #[test]
    fn what_a_crowd_took_is_given_back() {
        let mut timers = wheel();
        let tick = timers.tick_in(at(0), 640);
        (0..100_000).for_each(|index| timers.set(index, tick));
        (10..100_000).for_each(|index| timers.clear(index));
        timers.cut_off(10);
        assert!((10..=1_024).contains(&timers.links.capacity()));
        let fired = std::iter::from_fn(|| timers.pop(at(640))).count();
        assert_eq!((fired, timers.next()), (10, Mono::NEVER));
    }

    #[test]
    fn agrees_with_a_sorted_list() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut timers = wheel();
        let mut model: Vec<(u64, u32)> = Vec::new();
        let mut now = 0;
        for round in 0..20_000_u32 {
            let index = random.u32(0..64);
            let ms = now + random.u64(0..90_000);
            let tick = timers.tick_at(at(ms));
            model.retain(|(_, other)| *other != index);
            timers.set(index, tick);
            model.push((u64::from(tick.0) * TICK_MS, index));
            if round % 8 == 0 {
                now += random.u64(0..3_000);
                let mut fired = Vec::new();
                while let Some(index) = timers.pop(at(now)) {
                    fired.push(index);
                }
                fired.sort();
                let mut due: Vec<u32> = model
                    .iter()
                    .filter(|(ms, _)| *ms <= now)
                    .map(|(_, index)| *index)
                    .collect();
                due.sort();
                model.retain(|(ms, _)| *ms > now);
                assert_eq!(fired, due);
            }
        }
    }
}
