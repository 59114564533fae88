//! The open loop: when each thing is due, whether or not the server has kept up.
//!
//! Owns the arithmetic of a constant rate. Never reads a clock: the caller says what time it is. A
//! latency counts from [`Schedule::intended_us`], so a stall of the server (or of the generator) is
//! charged to everything that should have happened meanwhile (coordinated omission, as wrk2
//! corrects it).

/// `count` things at a constant rate from `start_us` on.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Schedule {
    start_us: u64,
    count: u64,
    /// Things a second; infinite means as fast as possible: all are due at once.
    rate: f64,
    done: u64,
}

impl Schedule {
    /// A schedule of `count` things, `rate` a second (`f64::INFINITY`: all at once), the first at
    /// `start_us`.
    pub fn new(start_us: u64, rate: f64, count: u64) -> Schedule {
        Schedule {
            start_us,
            count,
            rate,
            done: 0,
        }
    }

    /// The next thing that is due at `now_us`: its number and when it should have happened.
    pub fn next_due(&mut self, now_us: u64) -> Option<(u64, u64)> {
        let number = self.done;
        let intended_us = self.intended_us(number);
        if number == self.count || intended_us > now_us {
            return None;
        }
        self.done += 1;
        Some((number, intended_us))
    }

    /// When thing `number` should happen.
    pub fn intended_us(&self, number: u64) -> u64 {
        if self.rate.is_infinite() {
            return self.start_us;
        }
        self.start_us + (number as f64 * 1e6 / self.rate) as u64
    }

    /// When the next thing is due; None when all have been handed out.
    pub fn next_at_us(&self) -> Option<u64> {
        (self.done < self.count).then(|| self.intended_us(self.done))
    }

    /// Things handed out so far.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Whether all have been handed out.
    pub fn is_over(&self) -> bool {
        self.done == self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(schedule: &mut Schedule, now_us: u64) -> Vec<(u64, u64)> {
        std::iter::from_fn(|| schedule.next_due(now_us)).collect()
    }

    #[test]
    fn things_fall_due_at_the_rate_from_the_start() {
        let mut s = Schedule::new(1_000, 250.0, 4);
        assert_eq!(drain(&mut s, 999), vec![]);
        assert_eq!(s.next_at_us(), Some(1_000));
        assert_eq!(drain(&mut s, 1_000), vec![(0, 1_000)]);
        assert_eq!(drain(&mut s, 4_999), vec![]);
        assert_eq!(s.next_at_us(), Some(5_000));
        assert_eq!(drain(&mut s, 5_000), vec![(1, 5_000)]);
    }

    #[test]
    fn a_late_caller_is_told_the_intended_times() {
        let mut s = Schedule::new(0, 1_000.0, 3);
        assert_eq!(
            drain(&mut s, 1_000_000),
            vec![(0, 0), (1, 1_000), (2, 2_000)]
        );
        assert!(s.is_over());
        assert_eq!(s.next_at_us(), None);
        assert_eq!(s.done(), 3);
    }

    #[test]
    fn an_infinite_rate_is_all_at_once() {
        let mut s = Schedule::new(7, f64::INFINITY, 2);
        assert_eq!(drain(&mut s, 6), vec![]);
        assert_eq!(drain(&mut s, 7), vec![(0, 7), (1, 7)]);
    }

    #[test]
    fn a_rate_that_divides_no_microsecond_does_not_drift() {
        let s = Schedule::new(0, 3.0, 4);
        assert_eq!(
            [0, 1, 2, 3].map(|i| s.intended_us(i)),
            [0, 333_333, 666_666, 1_000_000]
        );
    }
}
