//! The truth of who is online, from the beats and goodbyes that were sent.
//!
//! Owns the judgement of `churn`: each told state, and each watcher's view at any moment, against
//! the history of its publisher. Never reads a clock and sends nothing. Times are Unix ms.

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

/// A beat or a goodbye.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Act {
    /// When it was sent, Unix ms.
    pub at_ms: u64,
    /// A goodbye.
    pub goodbye: bool,
    /// How much later than it should have been, ms: what is told of it is late by that too.
    pub late_ms: u32,
    /// How long the sending took, ms: it may have left at any time within.
    pub took_ms: u32,
    /// It went to a node that was gone a moment later: perhaps nobody was told of it.
    pub doubtful: bool,
}

impl Act {
    fn intended_ms(&self) -> u64 {
        self.at_ms.saturating_sub(u64::from(self.late_ms))
    }

    /// When it has surely arrived.
    fn arrived_ms(&self, tolerance: &Tolerance) -> u64 {
        self.at_ms + u64::from(self.took_ms) + tolerance.flight_ms
    }
}

/// What a publisher did, in order of time.
#[derive(Clone, Debug, Default)]
pub struct History {
    acts: Vec<Act>,
}

/// What is to be said of a told state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Online, caused by the beat that should have been sent at this time.
    CameOnline(u64),
    /// Offline, caused by the goodbye that should have been sent at this time.
    Left(u64),
    /// Offline, because nothing came since the beat sent at this time.
    Expired(u64),
    /// Offline although a beat had been sent recently enough.
    FalseOffline,
    /// Online although no beat had been sent.
    FalseOnline,
}

impl History {
    /// A beat or a goodbye is sent; never earlier than the last one.
    pub fn act(&mut self, act: Act) {
        self.acts.push(act);
    }

    /// The last act has left.
    pub fn sent(&mut self, took_ms: u32) {
        if let Some(last) = self.acts.last_mut() {
            last.took_ms = took_ms;
        }
    }

    /// The act that was sent at `at_ms`, if there is one, went to a node that is gone.
    pub fn doubt(&mut self, at_ms: u64) {
        if let Ok(at) = self.acts.binary_search_by_key(&at_ms, |act| act.at_ms) {
            self.acts[at].doubtful = true;
        }
    }

    /// The time for an act that is sent now: later than every act before.
    pub fn next_ms(&self, now_ms: u64) -> u64 {
        self.acts
            .last()
            .map_or(now_ms, |act| now_ms.max(act.at_ms + 1))
    }

    /// Whether silence, and no goodbye, is what makes the publisher offline if it is.
    pub fn ends_in_silence(&self) -> bool {
        self.acts.last().is_some_and(|act| !act.goodbye)
    }

    /// The last acts, in words.
    pub fn tail(&self, now_ms: u64) -> String {
        let last = self.acts[self.acts.len().saturating_sub(3)..].iter();
        let words = last.map(|act| {
            let what = if act.goodbye { "goodbye" } else { "beat" };
            let ago_ms = i128::from(now_ms) - i128::from(act.at_ms);
            format!("{what} {ago_ms} ms ago")
        });
        words.collect::<Vec<_>>().join(", ")
    }

    /// Judges a told state by the time of its transition.
    pub fn judge(&self, online: bool, since_ms: u64, tolerance: &Tolerance) -> Verdict {
        let before = |act: &&Act| act.at_ms > since_ms + tolerance.clock_ms;
        let recent = self.acts.iter().rev().skip_while(before);
        if online {
            // A beat that was on its way, or has just been sent.
            let beat = recent
                .take_while(|act| act.arrived_ms(tolerance) + tolerance.clock_ms >= since_ms)
                .find(|act| !act.goodbye);
            return beat.map_or(Verdict::FalseOnline, |act| {
                Verdict::CameOnline(act.intended_ms())
            });
        }
        let mut first_doubtful = None;
        for act in recent {
            if act.goodbye {
                return Verdict::Left(act.intended_ms());
            }
            if act.doubtful {
                first_doubtful = Some(act.at_ms);
                continue;
            }
            if since_ms + tolerance.clock_ms >= act.at_ms + tolerance.offline_after_ms {
                return Verdict::Expired(act.at_ms);
            }
            // A beat that was still on its way does not count, whatever came before it does.
            if act.arrived_ms(tolerance) < since_ms {
                return Verdict::FalseOffline;
            }
        }
        // It came a moment ago: one of those was heard, and maybe no other.
        match first_doubtful {
            Some(at_ms) if since_ms + tolerance.clock_ms >= at_ms + tolerance.offline_after_ms => {
                Verdict::Expired(at_ms)
            }
            _ => Verdict::FalseOffline,
        }
    }

    /// Whether the publisher may have been online at `since_ms`, whenever it came: what a fleet
    /// tells after an outage of somebody who came during it has the time at which it was heard of.
    /// A goodbye from `from_ms` on may not have been heard by then.
    pub fn may_live(&self, since_ms: u64, from_ms: u64, tolerance: &Tolerance) -> bool {
        let before = |act: &&Act| act.at_ms > since_ms + tolerance.clock_ms;
        for act in self.acts.iter().rev().skip_while(before) {
            if !act.goodbye {
                let limit_ms = act.arrived_ms(tolerance) + tolerance.offline_after_ms;
                return since_ms <= limit_ms + tolerance.clock_ms;
            }
            let is_heard = !act.doubtful && act.at_ms < from_ms;
            if is_heard && act.arrived_ms(tolerance) < since_ms {
                return false;
            }
        }
        false
    }

    /// Whether the publisher is online at `now_ms`, and has been for as long as a beat may be on
    /// its way.
    pub fn lives_on(&self, now_ms: u64, tolerance: &Tolerance) -> bool {
        let settle_ms = tolerance.flight_ms;
        let tolerance = Tolerance {
            settle_ms,
            ..*tolerance
        };
        self.steady(now_ms, &tolerance) == Some(true)
    }

    /// Whether the publisher is online at `now_ms`; None unless that has been so for `settle_ms`.
    pub fn steady(&self, now_ms: u64, tolerance: &Tolerance) -> Option<bool> {
        let from_ms = now_ms.saturating_sub(tolerance.settle_ms);
        let [began, end] =
            [from_ms, now_ms].map(|ms| self.acts.partition_point(|act| act.at_ms <= ms));
        let state_after = |act: Option<&Act>, ms: u64| {
            act.is_some_and(|act| !act.goodbye && ms < act.at_ms + tolerance.offline_after_ms)
        };
        let at_start = state_after(self.acts[..began].last(), from_ms);
        let mut last = self.acts[..began].last();
        for act in &self.acts[began..end] {
            // A beat while offline, a goodbye while online, or an expiry before this act: a flip
            // within the window.
            if state_after(last, act.at_ms) != at_start || act.goodbye == at_start {
                return None;
            }
            last = Some(act);
        }
        // An expiry at the edge belongs to either side.
        let edge = last.is_some_and(|act| {
            !act.goodbye
                && (act.at_ms + tolerance.offline_after_ms).abs_diff(now_ms) <= tolerance.clock_ms
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
        acts.iter().for_each(|(at, goodbye)| {
            history.act(Act {
                at_ms: *at,
                goodbye: *goodbye,
                late_ms: 0,
                took_ms: 0,
                doubtful: false,
            })
        });
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
        assert_eq!(
            History::default().judge(false, 1, &T),
            Verdict::FalseOffline
        );
    }

    #[test]
    fn a_beat_on_its_way_may_cross_an_expiry() {
        let h = history(&[(10_000, false), (12_001, false)]);
        assert_eq!(h.judge(false, 12_005, &T), Verdict::Expired(10_000));
        assert_eq!(h.judge(false, 12_052, &T), Verdict::FalseOffline);
    }

    #[test]
    fn what_left_late_counts_from_when_it_should_have() {
        let mut h = history(&[]);
        h.act(Act {
            at_ms: 10_000,
            goodbye: false,
            late_ms: 300,
            took_ms: 0,
            doubtful: false,
        });
        assert_eq!(h.judge(true, 10_003, &T), Verdict::CameOnline(9_700));
        // Silence counts from when it was really sent.
        assert_eq!(h.judge(false, 12_000, &T), Verdict::Expired(10_000));
        assert_eq!(h.judge(true, 10_061, &T), Verdict::FalseOnline);
        h.sent(500);
        assert_eq!(h.judge(true, 10_560, &T), Verdict::CameOnline(9_700));
        assert_eq!(h.judge(true, 10_561, &T), Verdict::FalseOnline);
    }

    #[test]
    fn what_a_dead_node_heard_last_may_have_been_told_or_not() {
        let mut h = history(&[(10_000, false), (11_500, false)]);
        assert_eq!(h.judge(false, 12_010, &T), Verdict::FalseOffline);
        h.doubt(11_400);
        assert_eq!(
            h.judge(false, 12_010, &T),
            Verdict::FalseOffline,
            "it is of another"
        );
        h.doubt(11_500);
        assert_eq!(h.judge(false, 12_010, &T), Verdict::Expired(10_000));
        assert_eq!(h.judge(false, 13_500, &T), Verdict::Expired(10_000));
        assert_eq!(h.judge(false, 11_900, &T), Verdict::FalseOffline);
        assert_eq!(h.judge(true, 11_510, &T), Verdict::CameOnline(11_500));
        // Of whoever has just come the first may be all that was heard.
        h.doubt(10_000);
        assert_eq!(h.judge(false, 11_989, &T), Verdict::FalseOffline);
        assert_eq!(h.judge(false, 11_990, &T), Verdict::Expired(10_000));
    }

    #[test]
    fn who_came_during_an_outage_may_be_told_of_as_long_as_it_lives() {
        let mut h = history(&[(10_000, false), (14_000, false), (15_000, true)]);
        // Heard within 50 ms, alive for 2 s, clocks 10 ms apart.
        for (since, lives) in [
            (9_989, false),
            (9_990, true),
            (12_060, true),
            (12_061, false),
            (13_989, false),
            (13_990, true),
            (15_050, true),
            (15_051, false),
        ] {
            assert_eq!(h.may_live(since, u64::MAX, &T), lives, "{since}");
        }
        // Of a goodbye that went into an outage nobody may have been told.
        assert!(h.may_live(16_060, 15_000, &T) && !h.may_live(16_061, 15_000, &T));
        assert!(!h.may_live(15_051, 15_001, &T));
        h.doubt(15_000);
        assert!(h.may_live(16_060, u64::MAX, &T) && !h.may_live(16_061, u64::MAX, &T));
        assert!(!History::default().may_live(1, 0, &T));
    }

    #[test]
    fn who_lives_on_was_online_for_a_while() {
        let h = history(&[(10_000, false), (11_000, false), (12_500, true)]);
        for (now, lives) in [
            (10_049, false),
            (10_051, true),
            (12_499, true),
            (12_501, false),
            (15_000, false),
        ] {
            assert_eq!(h.lives_on(now, &T), lives, "{now}");
        }
    }

    #[test]
    fn the_last_acts_in_words() {
        let h = history(&[
            (1_000, true),
            (10_000, false),
            (11_000, false),
            (11_500, true),
        ]);
        let words = "beat 2000 ms ago, beat 1000 ms ago, goodbye 500 ms ago";
        assert_eq!(h.tail(12_000), words);
        assert_eq!(History::default().tail(1), "");
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
