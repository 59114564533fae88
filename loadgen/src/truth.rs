//! The truth of who is online, from the beats and goodbyes that were sent.
//!
//! Owns the judgement of `churn`: each told state, and each watcher's view at any moment, against the history of its
//! publisher. Never reads a clock and sends nothing. Times are Unix ms.

/// What the truth allows for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tolerance {
    /// Silence after which a publisher is offline (the server's `offline_after_ms`).
    pub offline_after_ms: u64,
    /// The two clocks, both rounded to ms and slewed, may differ by this.
    pub clock_ms: u64,
    /// A datagram may be on its way for this long.
    pub flight_ms: u64,
    /// A state that has been so for this long must have been told.
    pub settle_ms: u64,
}

/// What a publisher did, in order of time.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// (when, whether it was a goodbye)
    acts: Vec<(u64, bool)>,
}

/// What is to be said of a told state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Online, caused by the beat sent at this time.
    CameOnline(u64),
    /// Offline, caused by the goodbye sent at this time.
    Left(u64),
    /// Offline, because nothing came since the beat sent at this time.
    Expired(u64),
    /// Offline although a beat had been sent recently enough.
    FalseOffline,
    /// Online although no beat had been sent.
    FalseOnline,
}

impl History {
    /// A beat or a goodbye was sent; never earlier than the last one.
    pub fn act(&mut self, at_ms: u64, goodbye: bool) {
        self.acts.push((at_ms, goodbye));
    }

    /// The time for an act that is sent now: later than every act before.
    pub fn next_ms(&self, now_ms: u64) -> u64 {
        self.acts.last().map_or(now_ms, |(at, _)| now_ms.max(at + 1))
    }

    /// Judges a told state by the time of its transition.
    pub fn judge(&self, online: bool, since_ms: u64, tolerance: &Tolerance) -> Verdict {
        if online {
            // A beat that was on its way, or has just been sent.
            let recent = self
                .acts
                .iter()
                .rev()
                .skip_while(|(at, _)| *at > since_ms + tolerance.clock_ms);
            let beat = recent
                .take_while(|(at, _)| at + tolerance.flight_ms + tolerance.clock_ms >= since_ms)
                .find(|(_, goodbye)| !goodbye);
            return beat.map_or(Verdict::FalseOnline, |(at, _)| Verdict::CameOnline(*at));
        }
        let recent = self
            .acts
            .iter()
            .rev()
            .skip_while(|(at, _)| *at > since_ms + tolerance.clock_ms);
        for (at, goodbye) in recent {
            if *goodbye {
                return Verdict::Left(*at);
            }
            if since_ms + tolerance.clock_ms >= at + tolerance.offline_after_ms {
                return Verdict::Expired(*at);
            }
            // A beat that was still on its way does not count, whatever came before it does.
            if at + tolerance.flight_ms < since_ms {
                return Verdict::FalseOffline;
            }
        }
        Verdict::FalseOffline
    }

    /// Whether the publisher is online at `now_ms`; None unless that has been so for `settle_ms`.
    pub fn steady(&self, now_ms: u64, tolerance: &Tolerance) -> Option<bool> {
        let from_ms = now_ms.saturating_sub(tolerance.settle_ms);
        let [began, end] = [from_ms, now_ms].map(|ms| self.acts.partition_point(|(at, _)| *at <= ms));
        let state_after = |act: Option<&(u64, bool)>, ms: u64| match act {
            Some((at, false)) => ms < at + tolerance.offline_after_ms,
            _ => false,
        };
        let at_start = state_after(self.acts[..began].last(), from_ms);
        let mut last = self.acts[..began].last();
        for act in &self.acts[began..end] {
            // A beat while offline, a goodbye while online, or an expiry before this act: a flip within the window.
            if state_after(last, act.0) != at_start || act.1 == at_start {
                return None;
            }
            last = Some(act);
        }
        // An expiry at the edge belongs to either side.
        let edge = last.is_some_and(|(at, goodbye)| {
            !goodbye && (at + tolerance.offline_after_ms).abs_diff(now_ms) <= tolerance.clock_ms
        });
        (!edge && state_after(last, now_ms) == at_start).then_some(at_start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Tolerance = Tolerance {
        offline_after_ms: 2_000,
        clock_ms: 10,
        flight_ms: 50,
        settle_ms: 500,
    };

    fn history(acts: &[(u64, bool)]) -> History {
        let mut history = History::default();
        acts.iter().for_each(|(at, goodbye)| history.act(*at, *goodbye));
        history
    }

    #[test]
    fn online_needs_a_beat() {
        let h = history(&[(10_000, false), (15_000, true)]);
        assert_eq!(h.judge(true, 10_003, &T), Verdict::CameOnline(10_000));
        assert_eq!(h.judge(true, 9_995, &T), Verdict::CameOnline(10_000));
        assert_eq!(h.judge(true, 9_980, &T), Verdict::FalseOnline);
        assert_eq!(h.judge(true, 10_100, &T), Verdict::FalseOnline);
        assert_eq!(h.judge(true, 15_001, &T), Verdict::FalseOnline);
        assert_eq!(History::default().judge(true, 1, &T), Verdict::FalseOnline);
    }

    #[test]
    fn offline_needs_silence_or_a_goodbye() {
        let h = history(&[(10_000, false), (11_000, false)]);
        assert_eq!(h.judge(false, 13_000, &T), Verdict::Expired(11_000));
        assert_eq!(h.judge(false, 12_990, &T), Verdict::Expired(11_000));
        assert_eq!(h.judge(false, 12_989, &T), Verdict::FalseOffline);
        assert_eq!(h.judge(false, 12_001, &T), Verdict::FalseOffline);
        let h = history(&[(10_000, false), (11_000, true)]);
        assert_eq!(h.judge(false, 11_002, &T), Verdict::Left(11_000));
        assert_eq!(h.judge(false, 10_500, &T), Verdict::FalseOffline);
        assert_eq!(History::default().judge(false, 1, &T), Verdict::FalseOffline);
    }

    #[test]
    fn a_beat_on_its_way_may_cross_an_expiry() {
        let h = history(&[(10_000, false), (12_001, false)]);
        assert_eq!(h.judge(false, 12_005, &T), Verdict::Expired(10_000));
        assert_eq!(h.judge(false, 12_052, &T), Verdict::FalseOffline);
    }

    #[test]
    fn steady_states() {
        let h = history(&[(10_000, false), (11_000, false), (11_500, true)]);
        assert_eq!(h.steady(9_999, &T), Some(false));
        assert_eq!(h.steady(10_400, &T), None);
        assert_eq!(h.steady(10_501, &T), Some(true));
        assert_eq!(h.steady(11_499, &T), Some(true));
        assert_eq!(h.steady(11_600, &T), None);
        assert_eq!(h.steady(12_001, &T), Some(false));
    }

    #[test]
    fn an_expiry_flips_when_it_is_due() {
        let h = history(&[(10_000, false)]);
        assert_eq!(h.steady(11_989, &T), Some(true));
        assert_eq!(h.steady(12_000, &T), None);
        assert_eq!(h.steady(12_400, &T), None);
        assert_eq!(h.steady(12_501, &T), Some(false));
        // Off and on again within the window.
        let h = history(&[(10_000, false), (12_100, false)]);
        assert_eq!(h.steady(12_200, &T), None);
        assert_eq!(h.steady(12_700, &T), Some(true));
    }

    #[test]
    fn a_goodbye_and_a_beat_within_the_window_are_two_flips() {
        let h = history(&[(10_000, false), (11_000, true), (11_001, false)]);
        assert_eq!(h.steady(11_100, &T), None);
        assert_eq!(h.steady(11_502, &T), Some(true));
    }
}
