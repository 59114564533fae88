//! May an event id be told, and which? The one rule behind "an `id` is the time up to which the
//! stream has been told everything", and behind what a reconnect with it is told.
//!
//! Owns what this shard knows of its own lateness: other shards that do not turn, mail that was on
//! its way for long, lost mail, a forward step of the wall clock. Answers "told up to T" or "not,
//! because X", and for a reconnect "everything since T" or "everything, because X"; each X is a
//! metric label. Never asks a presence node, never tells anybody, never reads a clock.

use super::settings::{SLEEP_MS_MAX, STALL_MS};
use crate::metrics::Counter;
use crate::planted::{self, Planted};
use crate::presence::{ID_AHEAD_MS_MAX, STALLED_MS, Unresumable};
use crate::time::{ANCHOR_TOLERANCE_MS, Mono, Now, Unix};

/// How far back a resumed stream is told again, in ms.
pub const RESUME_SLACK_MS: u64 = 10_000;
/// A shard that may not have heard of what was published so long ago tells no event ids, in ms: a
/// stream that resumed from one would not be told of it.
pub const LAG_MS_MAX: u64 = 5_000;
/// What the slack leaves for clocks of two nodes, in ms: a stream may resume at another one.
const CLOCKS_APART_MS: u64 = 2_000;
/// How much older than the last mail seen a lost piece of mail's transitions may be, in ms.
const RESYNC_SLACK_MS: u64 = 60_000;

// An id may be too late by the lag of the shard that told it, by that shard's wall clock (which is
// re-anchored only beyond its tolerance), and by the turn in which it was told.
const _: () = assert!(
    LAG_MS_MAX + ANCHOR_TOLERANCE_MS + STALL_MS + CLOCKS_APART_MS <= RESUME_SLACK_MS,
    "a resumed stream would miss what the shard that told its id had not heard"
);
// A store believes an id somewhat ahead of its clock; the slack makes up for that too.
const _: () = assert!(ID_AHEAD_MS_MAX <= CLOCKS_APART_MS);
// A healthy shard that sleeps is not late, for the ids nor for the expiries.
const _: () = assert!(SLEEP_MS_MAX + STALL_MS <= STALLED_MS && STALLED_MS < LAG_MS_MAX);
// What is lost may be as late as what still comes, and that may be late without a resync.
const _: () = assert!(RESYNC_SLACK_MS >= RESUME_SLACK_MS + LAG_MS_MAX);

/// Why a stream is not told up to when it has been told everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Withheld {
    /// A question about somebody whom it watches has yet to be answered.
    Unanswered,
    /// A presence node is out of sight: there may be news that this node has not been told.
    Source,
    /// Another shard has not turned for long, and may have news that it has not posted.
    Shard,
    /// Mail read in this turn had been on its way for long: more of that age may come. Or what it
    /// told has waited for long to be marked.
    Mail,
    /// Mail was lost, and the published states that stand in for it are being read.
    Resync,
    /// What was published before a forward step of the wall clock may be on its way, and looks as
    /// old as the step is long.
    ClockStep,
}

impl Withheld {
    pub(super) fn counter(self) -> Counter {
        match self {
            Withheld::Unanswered => Counter::IdWithheldUnanswered,
            Withheld::Source => Counter::IdWithheldSource,
            Withheld::Shard => Counter::IdWithheldShard,
            Withheld::Mail => Counter::IdWithheldMail,
            Withheld::Resync => Counter::IdWithheldResync,
            Withheld::ClockStep => Counter::IdWithheldClockStep,
        }
    }
}

/// Why a stream that came back with an event id is told everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Everything {
    /// It is no time.
    Unreadable,
    /// It is one, and is not believed.
    Unresumable(Unresumable),
}

impl Everything {
    pub(super) fn counter(self) -> Counter {
        match self {
            Everything::Unreadable => Counter::ResumeRefusedUnreadable,
            Everything::Unresumable(Unresumable::BeforeStore) => Counter::ResumeRefusedBeforeStore,
            Everything::Unresumable(Unresumable::Future) => Counter::ResumeRefusedFuture,
            Everything::Unresumable(Unresumable::Ambiguous) => Counter::ResumeRefusedAmbiguous,
        }
    }
}

/// What one shard knows of how late it is.
#[derive(Debug)]
pub(super) struct Horizon {
    /// This turn it is late, because of another shard or of mail.
    late: Option<Withheld>,
    /// Mail was lost and what it told has not been told again yet.
    resyncing: bool,
    /// Before it a forward step of the wall clock hides how old news is.
    step_hidden_until: Mono,
    /// Up to when this shard's mail has been complete.
    mail_complete: Unix,
}

impl Horizon {
    pub(super) fn new(now: Mono) -> Horizon {
        Horizon {
            late: None,
            resyncing: false,
            step_hidden_until: now,
            mail_complete: Unix::from_ms(0),
        }
    }

    /// A turn begins, before which every shard has posted what it published before
    /// `published_up_to`.
    pub(super) fn turn_began(&mut self, published_up_to: Unix, now: Now) {
        let late = published_up_to.plus_ms(LAG_MS_MAX) < now.unix;
        self.late = late.then_some(Withheld::Shard);
    }

    /// The wall clock was stepped. Back: mail lost from here on may carry times after the step.
    /// Forward: until mail of before has surely come, an id would say more than the slack of a
    /// resume makes up for.
    pub(super) fn clock_stepped(&mut self, from: Unix, now: Now) {
        self.mail_complete = self.mail_complete.min(now.unix);
        if now.unix > from {
            self.step_hidden_until = now.mono.plus_ms(RESUME_SLACK_MS);
        }
    }

    /// Mail was read; `decided_at`: when the transitions in it were decided, if it has any.
    pub(super) fn mail_read(&mut self, decided_at: Option<Mono>, now: Now) {
        self.mail_complete = now.unix;
        if decided_at.is_some_and(|at| now.mono.ms_since(at) > LAG_MS_MAX) {
            self.late.get_or_insert(Withheld::Mail);
        }
    }

    /// Mail was lost: what was published since the moment returned is to be told again, and
    /// [`Horizon::resync_ended`] called then.
    pub(super) fn mail_lost(&mut self) -> Unix {
        self.resyncing = true;
        self.mail_complete.minus_ms(RESYNC_SLACK_MS)
    }

    /// All that lost mail may have told has been told.
    pub(super) fn resync_ended(&mut self) {
        self.resyncing = false;
    }

    /// Up to when a stream has been told everything that is told all its marks now. `source`: up to
    /// when those who decide about its publishers have told this shard everything. `waiting`: when
    /// the oldest transition was decided that has yet to be marked here.
    pub(super) fn told_up_to(
        &self,
        source: Result<Unix, Withheld>,
        waiting: Option<Mono>,
        now: Now,
    ) -> Result<Unix, Withheld> {
        let source = source?;
        if let Some(late) = self.late {
            return Err(late);
        }
        if self.resyncing {
            return Err(Withheld::Resync);
        }
        if waiting.is_some_and(|at| now.mono.ms_since(at) > LAG_MS_MAX) {
            return Err(Withheld::Mail);
        }
        if now.mono < self.step_hidden_until {
            return Err(Withheld::ClockStep);
        }
        Ok(source.min(now.unix))
    }
}

/// Up to when those who decide about a stream's publishers have told this shard everything, or not:
/// `known`, so far all of them have, none if one is out of sight; `unanswered`, one has yet to say
/// what it knows of one whom the stream watches.
pub(super) fn source(known: Option<Unix>, unanswered: bool, now: Now) -> Result<Unix, Withheld> {
    if unanswered && !planted::is(Planted::IdWhileUnsure) {
        return Err(Withheld::Unanswered);
    }
    match known {
        Some(known) => Ok(known),
        None if planted::is(Planted::IdWhileBehind) => Ok(now.unix),
        None => Err(Withheld::Source),
    }
}

/// What a stream that comes back with this event id is told: everything that changed since the time
/// returned, or everything. `judge`: whether the store believes a time.
pub(super) fn resumes_from(
    last_event_id: &[u8],
    judge: impl FnOnce(Unix) -> Result<(), Unresumable>,
) -> Result<Unix, Everything> {
    let id = parse_event_id(last_event_id).ok_or(Everything::Unreadable)?;
    judge(id).map_err(Everything::Unresumable)?;
    let slack_ms = match planted::is(Planted::ResumeWithoutSlack) {
        true => 0,
        false => RESUME_SLACK_MS,
    };
    Ok(id.minus_ms(slack_ms))
}

fn parse_event_id(id: &[u8]) -> Option<Unix> {
    if !id.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = std::str::from_utf8(id).ok()?;
    digits.parse().ok().map(Unix::from_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START_MS: u64 = 1_000_000;

    /// A moment of a process that began at [`START_MS`] by the wall clock.
    fn at(ms: u64) -> Now {
        Now {
            mono: Mono::default().plus_ms(ms),
            unix: Unix::from_ms(START_MS + ms),
        }
    }

    /// What a stream is told at `ms` whose sources have told everything.
    fn told(horizon: &Horizon, ms: u64) -> Result<u64, Withheld> {
        let now = at(ms);
        let told = horizon.told_up_to(source(Some(now.unix), false, now), None, now);
        told.map(|id| id.ms() - START_MS)
    }

    fn horizon() -> Horizon {
        Horizon::new(at(0).mono)
    }

    #[test]
    fn a_shard_that_has_heard_everything_tells_the_present() {
        let mut horizon = horizon();
        assert_eq!(told(&horizon, 0), Ok(0));
        horizon.turn_began(at(20_000).unix, at(20_000));
        horizon.mail_read(Some(at(19_990).mono), at(20_000));
        horizon.mail_read(None, at(20_000));
        assert_eq!(told(&horizon, 20_000), Ok(20_000));
    }

    #[test]
    fn what_has_waited_for_long_to_be_marked_withholds_it() {
        let horizon = horizon();
        let told = |decided_ms, ms| {
            let now = at(ms);
            horizon.told_up_to(Ok(now.unix), Some(at(decided_ms).mono), now)
        };
        assert_eq!(told(0, LAG_MS_MAX), Ok(at(LAG_MS_MAX).unix));
        assert_eq!(told(0, LAG_MS_MAX + 1), Err(Withheld::Mail));
        assert_eq!(told(1, LAG_MS_MAX + 1), Ok(at(LAG_MS_MAX + 1).unix));
    }

    #[test]
    fn no_more_than_the_sources_have_told() {
        let horizon = horizon();
        let up_to = |ms| horizon.told_up_to(Ok(at(ms).unix), None, at(5_000));
        assert_eq!(up_to(4_000), Ok(at(4_000).unix));
        assert_eq!(up_to(6_000), Ok(at(5_000).unix));
    }

    #[test]
    fn a_source_that_may_have_more_to_say_withholds_it() {
        let known = Some(at(5).unix);
        let of = |known, unanswered| source(known, unanswered, at(7));
        assert_eq!(
            of(known, false),
            Ok(at(5).unix),
            "no later than it has told"
        );
        assert_eq!(of(None, false), Err(Withheld::Source));
        assert_eq!(of(known, true), Err(Withheld::Unanswered));
        assert_eq!(of(None, true), Err(Withheld::Unanswered));
        for why in [Withheld::Source, Withheld::Unanswered] {
            assert_eq!(horizon().told_up_to(Err(why), None, at(7)), Err(why));
        }
    }

    #[test]
    fn a_shard_that_has_not_turned_for_the_lag_withholds_it_until_it_does() {
        let mut horizon = horizon();
        horizon.turn_began(at(10_000).unix, at(15_000));
        assert_eq!(told(&horizon, 15_000), Ok(15_000));
        horizon.turn_began(at(10_000).unix, at(15_001));
        assert_eq!(told(&horizon, 15_001), Err(Withheld::Shard));
        // Late mail of that shard is no other reason.
        horizon.mail_read(Some(at(10_000).mono), at(15_001));
        assert_eq!(told(&horizon, 15_001), Err(Withheld::Shard));
        horizon.turn_began(at(15_100).unix, at(15_100));
        assert_eq!(told(&horizon, 15_100), Ok(15_100));
    }

    #[test]
    fn late_mail_withholds_it_for_a_turn() {
        let mut horizon = horizon();
        horizon.turn_began(at(9_000).unix, at(9_000));
        horizon.mail_read(Some(at(4_000).mono), at(9_000));
        assert_eq!(told(&horizon, 9_000), Ok(9_000));
        horizon.mail_read(Some(at(3_999).mono), at(9_000));
        horizon.mail_read(Some(at(9_000).mono), at(9_000));
        assert_eq!(told(&horizon, 9_000), Err(Withheld::Mail));
        horizon.turn_began(at(9_010).unix, at(9_010));
        assert_eq!(told(&horizon, 9_010), Ok(9_010));
    }

    #[test]
    fn lost_mail_withholds_it_until_all_has_been_told_again() {
        let mut horizon = horizon();
        horizon.mail_read(None, at(100_000));
        assert_eq!(horizon.mail_lost(), at(40_000).unix);
        horizon.turn_began(at(100_010).unix, at(100_010));
        assert_eq!(told(&horizon, 100_010), Err(Withheld::Resync));
        horizon.resync_ended();
        assert_eq!(told(&horizon, 100_010), Ok(100_010));
    }

    #[test]
    fn a_forward_step_hides_for_the_slack_how_old_news_is() {
        let mut horizon = horizon();
        let stepped = |ms| Now {
            mono: at(ms).mono,
            unix: Unix::from_ms(9_000_000 + ms),
        };
        horizon.clock_stepped(at(50_000).unix, stepped(50_000));
        let told = |ms| horizon.told_up_to(Ok(stepped(ms).unix), None, stepped(ms));
        assert_eq!(told(50_000), Err(Withheld::ClockStep));
        assert_eq!(told(59_999), Err(Withheld::ClockStep));
        assert_eq!(told(60_000), Ok(Unix::from_ms(9_060_000)));
    }

    #[test]
    fn after_a_step_back_lost_mail_is_made_up_for_from_before_it() {
        let mut horizon = horizon();
        horizon.mail_read(None, at(500_000));
        let stepped = Now {
            mono: at(500_010).mono,
            unix: at(200_000).unix,
        };
        horizon.clock_stepped(at(500_010).unix, stepped);
        assert_eq!(
            horizon.told_up_to(Ok(stepped.unix), None, stepped),
            Ok(stepped.unix)
        );
        assert_eq!(horizon.mail_lost(), at(140_000).unix);
    }

    #[test]
    fn a_resume_is_told_what_changed_since_less_the_slack() {
        let since = |id: &str| resumes_from(id.as_bytes(), |_| Ok(()));
        assert_eq!(since("1764009600123"), Ok(Unix::from_ms(1_764_009_590_123)));
        assert_eq!(since("9999"), Ok(Unix::from_ms(0)));
    }

    #[test]
    fn a_resume_from_what_is_no_time_is_told_everything() {
        for bad in ["", "-1", "+1", " 1", "1.5", "99999999999999999999999", "x"] {
            let since = resumes_from(bad.as_bytes(), |_| Ok(()));
            assert_eq!(since, Err(Everything::Unreadable), "{bad}");
        }
        let since = resumes_from(b"17\xff", |_| Ok(()));
        assert_eq!(since, Err(Everything::Unreadable));
    }

    #[test]
    fn a_resume_that_the_store_does_not_believe_is_told_everything() {
        for why in [
            Unresumable::BeforeStore,
            Unresumable::Future,
            Unresumable::Ambiguous,
        ] {
            let judge = |id: Unix| {
                assert_eq!(id.ms(), 77, "as it is, without the slack");
                Err(why)
            };
            let since = resumes_from(b"77", judge);
            assert_eq!(since, Err(Everything::Unresumable(why)));
        }
    }

    /// Each reason is its own time series, and its label says which.
    #[test]
    fn each_reason_is_a_label() {
        let label = |counter: Counter| counter.row().labels[0].1;
        let withheld = [
            (Withheld::Unanswered, "unanswered"),
            (Withheld::Source, "source"),
            (Withheld::Shard, "shard"),
            (Withheld::Mail, "mail"),
            (Withheld::Resync, "resync"),
            (Withheld::ClockStep, "clock_step"),
        ];
        for (why, expected) in withheld {
            assert_eq!(why.counter().row().family, "event_ids_withheld");
            assert_eq!(label(why.counter()), expected);
        }
        let everything = [
            (Everything::Unreadable, "unreadable"),
            (
                Everything::Unresumable(Unresumable::BeforeStore),
                "before_store",
            ),
            (Everything::Unresumable(Unresumable::Future), "future"),
            (Everything::Unresumable(Unresumable::Ambiguous), "ambiguous"),
        ];
        for (why, expected) in everything {
            assert_eq!(why.counter().row().family, "resumes_refused");
            assert_eq!(label(why.counter()), expected);
        }
    }
}
