//! How far a follower follows each of its sources: nodes that decide about publishers and tell it
//! in numbered messages.
//!
//! Owns per source its birth, the number of the last message, whether the follower is in step, up
//! to when everything has been told, and how the source's clock stands. What a message tells is
//! taken over whatever its number; the numbers decide only whether anything was missed. Knows no
//! HTTP, reads no clock.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::planted::{self, Planted};
use crate::time::{Mono, Now, Unix};
use crate::wire::feed::{Held, Place, is_later};

/// A source that has not told for so long, in ms, that everything is told, as it does each second,
/// does not reach this node or holds something back.
pub const UNTOLD_MS_MAX: u64 = 5_000;
/// Two clocks drift apart by no more than a millisecond in so many ms.
const DRIFT_MS: u64 = 1_000;

/// Whether a follower has missed anything of a source.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Step {
    /// It has, or may have: another life of the source tells now, or a number was passed over. All
    /// that is known is unsure and must be asked for.
    #[default]
    Out,
    /// All is being asked for.
    Asking,
    /// All has been answered since, and no number was passed over.
    In,
}

/// What the number of a message says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    /// It follows the last one, or is that one again: what it tells is what the source says now,
    /// and what it says later will be told or found missing.
    InStep,
    /// A later one has been taken.
    Late,
}

/// A source, as one follower knows it.
#[derive(Clone, Copy, Default, Debug)]
struct Feed {
    /// Which life of it answered last; None: it never did.
    birth: Option<u64>,
    /// Of the last message of that life; 0: there was none.
    number: u64,
    step: Step,
    /// It answered the last question.
    in_sight: bool,
    /// Up to when it has told everything, by this node's clock.
    told_up_to: Option<Mono>,
    /// Its clock is at least so many ms ahead of [`Mono`], and when that was learnt.
    ahead_ms: Option<(i64, Mono)>,
}

impl Feed {
    fn answered(&mut self, birth: u64, clock: Unix, asked_at: Mono, now: Mono) {
        self.in_sight = true;
        let same = |known| known == birth || planted::is(Planted::LifeUnnoticed);
        if !self.birth.is_some_and(same) {
            *self = Feed {
                birth: Some(birth),
                in_sight: true,
                ..Feed::default()
            };
        }
        // It showed that at some time since it was asked. One less, or more: both are cut off to
        // whole milliseconds. Its clock is what a peer says.
        let ahead_of = |at: Mono| (clock.ms() as i64).saturating_sub(at.ms() as i64);
        let least_ms = ahead_of(now).saturating_sub(1);
        let possible = least_ms..=ahead_of(asked_at).saturating_add(1);
        // What is known and possible is better: that answer was quicker. Else the clock was set.
        if !self
            .ahead_ms(now)
            .is_some_and(|known| possible.contains(&known))
        {
            self.ahead_ms = Some((least_ms, now));
        }
    }

    /// What is left of what was learnt.
    fn ahead_ms(&self, now: Mono) -> Option<i64> {
        let (ahead_ms, at) = self.ahead_ms?;
        Some(ahead_ms.saturating_sub((now.ms_since(at) / DRIFT_MS) as i64))
    }

    fn message(&mut self, place: &Place, now: Mono) -> Order {
        if is_later(self.number, place.number) {
            return Order::Late;
        }
        let again = place.number == self.number && !planted::is(Planted::RepetitionIsGap);
        let next = place.previous == self.number || planted::is(Planted::GapUnnoticed);
        if !again && !next {
            self.step = Step::Out;
        }
        self.number = place.number;
        if let Some(up_to) = place.up_to {
            let told_up_to = self.here(up_to, now);
            self.told_up_to = self.told_up_to.max(Some(told_up_to));
        }
        Order::InStep
    }

    /// A time of the source's clock by this node's, and never one to come.
    fn here(&self, time: Unix, now: Mono) -> Mono {
        let Some(ahead_ms) = self.ahead_ms(now) else {
            return now;
        };
        let ms = (time.ms() as i64).saturating_sub(ahead_ms).max(0) as u64;
        Mono::default().plus_ms(ms).min(now)
    }

    /// Up to when everything that it has told is known here.
    fn known_up_to(&self) -> Option<Mono> {
        let told_up_to = self.told_up_to;
        told_up_to.filter(|_| self.in_sight && self.step == Step::In)
    }
}

/// How a message of a feed is to be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    /// The index of the source that tells it.
    pub source: usize,
    /// What it tells is what the source says now; else a later message has been taken.
    pub in_step: bool,
    /// With what it tells everything has been told up to then.
    pub up_to: Option<Mono>,
    /// To be answered: the source goes on from there.
    pub held: Held,
}

/// All sources of a follower, by their index.
#[derive(Debug)]
pub(super) struct Feeds {
    feeds: Mutex<Vec<Feed>>,
    /// The least of what is known of each, in ms; 0: of one of them nothing is.
    known_up_to_ms: AtomicU64,
}

impl Feeds {
    pub(super) fn new(sources: usize) -> Feeds {
        Feeds {
            feeds: Mutex::new(vec![Feed::default(); sources]),
            known_up_to_ms: AtomicU64::new(0),
        }
    }

    fn change<R>(&self, change: impl FnOnce(&mut [Feed]) -> R) -> R {
        let mut feeds = self.feeds.lock();
        let result = change(&mut feeds);
        let known = feeds.iter().map(Feed::known_up_to);
        // None is less than any.
        let least = known.min().flatten();
        self.known_up_to_ms
            .store(least.map_or(0, Mono::ms), Ordering::Release);
        result
    }

    fn of(&self, source: usize) -> Feed {
        self.feeds.lock()[source]
    }

    /// A source has answered a question that left at `asked_at`.
    pub(super) fn answered(
        &self,
        source: usize,
        birth: u64,
        clock: Unix,
        asked_at: Mono,
        now: Mono,
    ) {
        self.change(|feeds| feeds[source].answered(birth, clock, asked_at, now));
    }

    /// A source has not answered a question.
    pub(super) fn failed(&self, source: usize) {
        self.change(|feeds| feeds[source].in_sight = false);
    }

    /// A message has come. None: from a life of a source that has not been seen.
    pub(super) fn message(&self, place: &Place, now: Mono) -> Option<Taken> {
        self.change(|feeds| {
            let tells = |feed: &Feed| feed.birth == Some(place.birth);
            let source = feeds.iter().position(tells)?;
            let feed = &mut feeds[source];
            let in_step = feed.message(place, now) == Order::InStep;
            let up_to = place.up_to.filter(|_| in_step);
            Some(Taken {
                source,
                in_step,
                up_to: up_to.map(|up_to| feed.here(up_to, now)),
                held: Held {
                    birth: place.birth,
                    number: feed.number,
                },
            })
        })
    }

    /// Whether something of a source was missed and nobody has begun to ask.
    pub(super) fn is_out_of_step(&self, source: usize) -> bool {
        self.of(source).step == Step::Out
    }

    /// All that is known of a source's publishers is going to be asked for.
    pub(super) fn asking(&self, source: usize) {
        self.change(|feeds| feeds[source].step = Step::Asking);
    }

    /// All of it has been answered, unless something was missed since.
    pub(super) fn all_answered(&self, source: usize) {
        self.change(|feeds| {
            if feeds[source].step == Step::Asking {
                feeds[source].step = Step::In;
            }
        });
    }

    pub(super) fn is_in_step(&self, source: usize) -> bool {
        self.of(source).step == Step::In
    }

    /// Up to when a source has told everything. None: it never has.
    pub(super) fn told_up_to(&self, source: usize) -> Option<Mono> {
        self.of(source).told_up_to
    }

    /// Up to when everything is known here that any source decides.
    pub(super) fn known_up_to(&self) -> Option<Mono> {
        let ms = self.known_up_to_ms.load(Ordering::Acquire);
        (ms > 0).then(|| Mono::default().plus_ms(ms))
    }

    /// What a source's clock shows at least; before it has said so, what this node's does.
    pub(super) fn clock_of(&self, source: usize, now: Now) -> Unix {
        let ahead_ms = self.of(source).ahead_ms(now.mono);
        ahead_ms.map_or(now.unix, |ahead_ms| {
            Unix::from_ms(now.mono.ms().saturating_add_signed(ahead_ms))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mono(ms: u64) -> Mono {
        Mono::default().plus_ms(ms)
    }

    fn place(birth: u64, previous: u64, number: u64, up_to_ms: Option<u64>) -> Place {
        let up_to = up_to_ms.map(Unix::from_ms);
        Place {
            birth,
            previous,
            number,
            up_to,
        }
    }

    /// Two sources, births 7 and 8, whose clocks show 50 s more at 2 s; all has been answered.
    fn feeds() -> Feeds {
        let feeds = Feeds::new(2);
        for source in [0, 1] {
            let birth = 7 + source as u64;
            let (clock, at) = (Unix::from_ms(51_002), mono(1_000));
            feeds.answered(source, birth, clock, at, at);
            assert!(feeds.is_out_of_step(source));
            feeds.asking(source);
            feeds.all_answered(source);
        }
        feeds
    }

    /// In step, and up to when everything of all sources is known.
    fn state(feeds: &Feeds, source: usize) -> (bool, Option<u64>) {
        (
            feeds.is_in_step(source),
            feeds.known_up_to().map(|up_to| up_to.ms()),
        )
    }

    #[test]
    fn numbers_in_a_row_keep_it_in_step() {
        let feeds = feeds();
        let message = |place| {
            let taken = feeds.message(&place, mono(2_000))?;
            Some((taken.source, taken.in_step))
        };
        let taken = |source, in_step| Some((source, in_step));
        assert_eq!(state(&feeds, 0), (true, None), "nothing has been told");
        assert_eq!(message(place(7, 0, 1, Some(51_500))), taken(0, true));
        assert_eq!(state(&feeds, 0), (true, None), "the other has told nothing");
        assert_eq!(message(place(8, 0, 1, Some(51_200))), taken(1, true));
        assert_eq!(state(&feeds, 0), (true, Some(1_200)));
        assert_eq!(message(place(8, 1, 2, Some(51_900))), taken(1, true));
        assert_eq!(state(&feeds, 1), (true, Some(1_500)));
        assert_eq!(message(place(7, 1, 2, None)), taken(0, true));
        assert_eq!(state(&feeds, 0), (true, Some(1_500)), "something is held");
        assert_eq!(message(place(9, 0, 1, None)), None, "a stranger");
    }

    #[test]
    fn a_lost_answers_repetition_is_no_gap_and_a_late_message_is_none() {
        let feeds = feeds();
        let message = |previous, number, up_to_ms| {
            let place = place(7, previous, number, Some(up_to_ms));
            feeds.message(&place, mono(2_000)).unwrap().in_step
        };
        for (previous, number) in [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)] {
            assert!(message(previous, number, 51_000));
        }
        assert!(!message(0, 1, 51_900), "late");
        assert_eq!(state(&feeds, 0), (true, None));
        assert_eq!(feeds.told_up_to(0), Some(mono(1_000)), "it says nothing");
    }

    /// Whoever may publish may say any number: the source learns it, and goes on from there.
    #[test]
    fn a_number_that_its_source_never_sent_costs_one_question() {
        for forged in [9, 1 << 62, u64::MAX >> 1] {
            let feeds = feeds();
            let message = |place| feeds.message(&place, mono(2_000)).unwrap();
            message(place(8, 0, 1, Some(51_500)));
            message(place(7, 0, 1, Some(51_500)));
            assert_eq!(
                message(place(7, forged - 1, forged, None)).held.number,
                forged
            );
            assert!(feeds.is_out_of_step(0));
            feeds.asking(0);
            let late = message(place(7, 1, 2, Some(51_600)));
            assert_eq!((late.in_step, late.held.number), (false, forged));
            feeds.all_answered(0);
            let next = message(place(7, forged, forged + 1, Some(51_700)));
            assert!(next.in_step);
            assert_eq!(state(&feeds, 0), (true, Some(1_500)));
        }
    }

    #[test]
    fn a_gap_puts_it_out_of_step_until_all_is_answered() {
        let feeds = feeds();
        let message = |place| feeds.message(&place, mono(2_000)).unwrap().in_step;
        message(place(8, 0, 1, Some(51_500)));
        message(place(7, 0, 1, Some(51_500)));
        assert!(message(place(7, 3, 4, Some(51_600))), "what follows counts");
        assert_eq!(state(&feeds, 0), (false, None));
        assert!(feeds.is_out_of_step(0) && !feeds.is_out_of_step(1));
        feeds.asking(0);
        assert!(message(place(7, 4, 5, Some(51_700))));
        assert_eq!(state(&feeds, 0), (false, None));
        feeds.all_answered(0);
        assert_eq!(state(&feeds, 0), (true, Some(1_500)));
        // One that comes while it asks has it ask again.
        message(place(7, 7, 8, None));
        feeds.asking(0);
        message(place(7, 9, 10, None));
        feeds.all_answered(0);
        assert_eq!(state(&feeds, 0), (false, None));
        assert!(feeds.is_out_of_step(0));
    }

    #[test]
    fn a_follower_that_starts_later_has_missed_what_was_told_before() {
        let feeds = feeds();
        feeds.message(&place(7, 56, 57, None), mono(2_000));
        assert!(feeds.is_out_of_step(0));
    }

    #[test]
    fn another_life_begins_anew() {
        let feeds = feeds();
        feeds.message(&place(8, 0, 1, Some(51_900)), mono(2_000));
        feeds.message(&place(7, 0, 1, Some(51_900)), mono(2_000));
        assert_eq!(state(&feeds, 0), (true, Some(1_900)));
        feeds.answered(0, 9, Unix::from_ms(52_001), mono(2_000), mono(2_000));
        assert_eq!(state(&feeds, 0), (false, None));
        assert_eq!(feeds.message(&place(7, 1, 2, None), mono(2_000)), None);
        feeds.asking(0);
        feeds.all_answered(0);
        assert_eq!(state(&feeds, 0), (true, None));
        feeds.message(&place(9, 0, 1, Some(51_950)), mono(2_000));
        assert_eq!(state(&feeds, 0), (true, Some(1_900)));
    }

    #[test]
    fn out_of_sight_nothing_is_known_up_to_now_and_nothing_is_missed() {
        let feeds = feeds();
        feeds.message(&place(8, 0, 1, Some(51_900)), mono(2_000));
        feeds.message(&place(7, 0, 1, Some(51_900)), mono(2_000));
        feeds.failed(0);
        assert_eq!(state(&feeds, 0), (true, None));
        feeds.answered(0, 7, Unix::from_ms(59_001), mono(9_000), mono(9_000));
        assert_eq!(state(&feeds, 0), (true, Some(1_900)));
    }

    #[test]
    fn what_is_told_is_never_known_from_a_time_to_come() {
        let feeds = feeds();
        // The source's clock was set forward, and no answer has said so yet.
        feeds.message(&place(7, 0, 1, Some(99_000)), mono(2_000));
        assert_eq!(feeds.told_up_to(0), Some(mono(2_000)));
        // Set back: what has been told stays so.
        feeds.message(&place(7, 1, 2, Some(40_000)), mono(2_500));
        assert_eq!(feeds.told_up_to(0), Some(mono(2_000)));
    }

    #[test]
    fn a_sources_clock_is_known_from_below() {
        let feeds = Feeds::new(1);
        let now = |mono_ms: u64, unix_ms| Now {
            mono: mono(mono_ms),
            unix: Unix::from_ms(unix_ms),
        };
        let clock = |mono_ms| feeds.clock_of(0, now(mono_ms, 70_000)).ms();
        assert_eq!(clock(10), 70_000, "its own");
        let learn = |clock_ms, asked_ms, mono_ms| {
            let (asked_at, now) = (mono(asked_ms), mono(mono_ms));
            feeds.answered(0, 7, Unix::from_ms(clock_ms), asked_at, now);
        };
        learn(50_000, 100, 100);
        assert_eq!([clock(100), clock(150)], [49_999, 50_049]);
        learn(50_080, 180, 200);
        assert_eq!(clock(200), 50_099, "an answer that took longer");
        learn(50_210, 290, 300);
        assert_eq!(clock(300), 50_209, "one that took less");
        assert_eq!(clock(60_300), 110_149, "clocks drift");
        learn(108_200, 58_300, 60_300);
        assert_eq!(
            clock(60_300),
            110_149,
            "it may have been said two seconds ago"
        );
        learn(108_100, 58_300, 60_300);
        assert_eq!(clock(60_300), 108_099, "set back");
        learn(200_000, 60_300, 60_300);
        assert_eq!(clock(60_300), 199_999, "set forward");
    }

    /// Beats that are dated by it would be later than goodbyes that came after them.
    #[test]
    fn a_sources_clock_that_was_set_back_a_little_is_known_from_the_next_answer() {
        for back_ms in [5, 400, 1_999] {
            let feeds = Feeds::new(1);
            let unix = Unix::from_ms(7);
            let clock = |ms| {
                let now = Now {
                    mono: mono(ms),
                    unix,
                };
                feeds.clock_of(0, now).ms()
            };
            feeds.answered(0, 7, Unix::from_ms(50_000), mono(100), mono(101));
            assert_eq!(clock(101), 49_999);
            feeds.answered(
                0,
                7,
                Unix::from_ms(51_000 - back_ms),
                mono(1_100),
                mono(1_101),
            );
            assert_eq!(clock(1_101), 50_999 - back_ms);
        }
    }
}
