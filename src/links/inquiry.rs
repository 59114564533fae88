//! A real-time node's questions to one presence node, and whether that node is in sight.
//!
//! Owns who is still to be asked about, one request at a time, and when: not while the node is out
//! of sight, and not before it has heard of everybody after an outage. Then all who are watched and
//! unsure are asked for anew, so while it is out of sight nothing is kept. Without a kernel:
//! requests and answers are values, time is an argument.

use std::collections::VecDeque;

use hashbrown::HashSet;

use super::{OUTAGE_MS, PROBE_MS, RETRY_CAP_MS, RETRY_FIRST_MS, STATES_PER_REQUEST_MAX};
use crate::backoff::Backoff;
use crate::engine::{SETTLE_MS, Whom};
use crate::planted::{self, Planted};
use crate::time::Mono;

/// Whoever is passed over, because a question about them alone is refused, is asked about again no
/// sooner than this, in ms, with all others for whom nobody has answered.
const AGAIN_MS: u64 = 10_000;
/// Most users waiting to be asked about; beyond, they are forgotten and everything is asked for
/// anew once there is room.
const PENDING_MAX: usize = 1 << 20;

/// What an answer calls for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Due {
    /// Who of those that are watched is to be asked about, in which pass.
    pub(super) whom: Option<Whom>,
    pub(super) pass: u64,
    /// When, at the earliest.
    pub(super) not_before: Mono,
    /// The node was out of sight for so long that beats may have been lost.
    pub(super) was_away: bool,
    /// With it all that was asked in this pass has been answered.
    pub(super) settled: Option<u64>,
    /// Somebody is passed over: the node refuses to be asked about them.
    pub(super) passes_over: bool,
}

/// The questions to one node.
#[derive(Debug)]
pub(super) struct Inquiry {
    pending: VecDeque<Box<str>>,
    /// Those in `pending`, or asked about now.
    asked: HashSet<Box<str>, foldhash::fast::RandomState>,
    in_flight: Option<Vec<Box<str>>>,
    /// The node answered last time.
    in_sight: bool,
    /// Something was missed, and not everybody has been answered for since.
    missed: bool,
    /// When it last answered, and since when it has not, or was first asked in vain, while it is
    /// out of sight.
    answered_at: Mono,
    lost_since: Option<Mono>,
    /// Until then it is only looked at: it must hear of everybody first.
    settle_until: Mono,
    /// Everything that was to be asked anew since it was found has been answered.
    caught_up: bool,
    /// Users that became pending, and users answered for, since the node was found.
    queued: u64,
    answered: u64,
    /// `queued` after the last that was asked anew: so many must be answered for.
    anew: u64,
    /// The pass over all who are watched that was called for last, and how many shards have not
    /// said that theirs is through: those will ask for more.
    pass: u64,
    shards: usize,
    shards_left: usize,
    overflowed: bool,
    users_per_request: usize,
    /// Users in the next request: halved by one that is refused for what is in it, to find the one,
    /// doubled by one that is answered.
    users_next: usize,
    /// Who was refused alone, until the node answers an empty question: it is the user then, not
    /// the node.
    suspect: Option<Box<str>>,
    /// Whoever was passed over, and when to ask again.
    passed_over: HashSet<Box<str>, foldhash::fast::RandomState>,
    again_at: Mono,
    next_at: Mono,
    /// When the next one is due after one that is asked beside.
    due_at: Mono,
    backoff: Backoff,
}

impl Inquiry {
    /// To a node that has not been seen yet, by a node of so many shards. `seed` is of the jitter.
    pub(super) fn new(seed: u64, shards: usize) -> Inquiry {
        Inquiry {
            pending: VecDeque::new(),
            asked: HashSet::default(),
            in_flight: None,
            in_sight: false,
            missed: false,
            answered_at: Mono::default(),
            lost_since: None,
            caught_up: false,
            settle_until: Mono::default(),
            queued: 0,
            answered: 0,
            anew: 0,
            pass: 0,
            shards,
            shards_left: shards,
            overflowed: false,
            users_per_request: STATES_PER_REQUEST_MAX,
            users_next: STATES_PER_REQUEST_MAX,
            suspect: None,
            passed_over: HashSet::default(),
            again_at: Mono::NEVER,
            next_at: Mono::default(),
            due_at: Mono::NEVER,
            backoff: Backoff::new(RETRY_FIRST_MS, RETRY_CAP_MS, seed),
        }
    }

    /// Whether the node answered last time.
    pub(super) fn is_in_sight(&self) -> bool {
        self.in_sight
    }

    /// Whether everything watched has been asked about since the node was found: before, changes
    /// may be unknown.
    pub(super) fn is_caught_up(&self) -> bool {
        self.caught_up
    }

    /// Users whose answers are outstanding.
    pub(super) fn len(&self) -> usize {
        self.asked.len() + self.passed_over.len()
    }

    /// Nobody to ask about.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    /// These are to be asked about. While the node is out of sight they need not be: all will be
    /// when it is back. `anew`: that is why; the node is caught up with once these are answered,
    /// whoever else is asked about meanwhile, and all shards have said that this pass is `through`.
    pub(super) fn ask(
        &mut self,
        users: Vec<Box<str>>,
        anew: bool,
        through: Option<u64>,
        now: Mono,
    ) {
        if !self.is_in_sight() {
            // A pass that was late comes again, or what it asks about would not be asked any more.
            self.missed |= anew;
            return;
        }
        // One that comes late has not been answered for either.
        self.caught_up &= !anew || users.is_empty();
        for user in users {
            if self.pending.len() >= PENDING_MAX {
                self.overflowed = true;
                break;
            }
            if self.asked.insert(user.clone()) {
                self.passed_over.remove(&user);
                self.pending.push_back(user);
                self.queued += 1;
            }
        }
        if anew {
            // Some may have been pending already: they are before those who are now the last.
            self.anew = self.queued;
        }
        if through == Some(self.pass) {
            self.shards_left = self.shards_left.saturating_sub(1);
        }
        // If all are through and all is answered, the next answer says so.
        let waits = !self.pending.is_empty() || through.is_some();
        if waits && now >= self.settle_until {
            self.next_at = self.next_at.min(now);
            if self.due_at != Mono::NEVER {
                self.due_at = self.due_at.min(now);
            }
        }
    }

    /// When [`Inquiry::poll_request`] has something.
    pub(super) fn next(&self) -> Mono {
        if self.in_flight.is_some() {
            Mono::NEVER
        } else {
            self.next_at
        }
    }

    /// The users of the next request, if it is time; none of them makes it a probe. One request at
    /// a time: its outcome comes first.
    pub(super) fn poll_request(&mut self, now: Mono) -> Option<&[Box<str>]> {
        if now < self.next() {
            return None;
        }
        if !self.is_in_sight() {
            // A node that starts while the other is cut off has publishers too by the time it sees
            // it.
            self.lost_since.get_or_insert(now);
        }
        // What it says before it has heard of everybody would have to be taken back.
        let users = match now < self.settle_until || self.suspect.is_some() {
            true => 0,
            false => self.pending.len().min(self.users_next),
        };
        if users > 0 {
            // It is one of the others then.
            self.due_at = Mono::NEVER;
        }
        let users = self.pending.drain(..users).collect();
        Some(self.in_flight.insert(users))
    }

    /// The request was answered. `missed`: something that the node told was, or may have been.
    pub(super) fn handle_answer(&mut self, missed: bool, now: Mono) -> Due {
        let answered = self.in_flight.take().unwrap_or_default();
        if !answered.is_empty() {
            self.users_next = (2 * self.users_next).min(self.users_per_request);
        }
        let suspect = self.suspect.take();
        let passes_over = suspect.is_some();
        self.answered += answered.len() as u64 + u64::from(passes_over);
        let all = self.answered >= self.anew && self.shards_left == 0 && !self.overflowed;
        // What was pending when it was lost is forgotten, and not answered.
        let settles = all && self.in_sight && !self.caught_up;
        self.caught_up |= settles;
        self.missed = missed || self.missed && !self.caught_up;
        for user in &answered {
            self.asked.remove(user);
        }
        if let Some(suspect) = suspect {
            self.pass_over(suspect, now);
        }
        self.backoff.reset();
        let lost_since = self.lost_since.take();
        let was_away = lost_since.is_some_and(|since| now.ms_since(since) >= OUTAGE_MS);
        let has_room = self.overflowed && self.pending.is_empty();
        let whom = match self.in_sight {
            _ if missed => Some(Whom::Everybody),
            // What was asked and not answered is forgotten.
            false if self.missed => Some(Whom::Everybody),
            false => Some(Whom::Unsure),
            true => (has_room || now >= self.again_at).then_some(Whom::Unsure),
        };
        self.answered_at = now;
        self.in_sight = true;
        if was_away && !planted::is(Planted::AskedUnsettled) {
            self.settle_until = now.plus_ms(SETTLE_MS);
        }
        if missed {
            // They will be asked about with all others.
            self.forget();
        }
        let settled = (settles && whom.is_none()).then_some(self.pass);
        if whom.is_some() {
            (self.overflowed, self.caught_up) = (false, false);
            self.pass += 1;
            self.shards_left = self.shards;
            // Whoever is still watched is asked about again.
            self.passed_over = HashSet::default();
            self.again_at = Mono::NEVER;
        }
        let waits = self.pending.is_empty() || now < self.settle_until;
        self.next_at = if waits { now.plus_ms(PROBE_MS) } else { now };
        Due {
            whom,
            pass: self.pass,
            not_before: self.settle_until.max(now),
            was_away,
            settled,
            passes_over,
        }
    }

    /// A question about nobody who is pending is due, beside the others: when those are due does
    /// not depend on it.
    pub(super) fn ask_beside(&mut self, now: Mono) {
        if now < self.next_at && self.in_flight.is_none() {
            self.due_at = std::mem::replace(&mut self.next_at, now);
        }
    }

    /// The question under way is over, if it was asked beside the others. False: it was not. What
    /// came of it says nothing of the node: the others find that out.
    pub(super) fn handle_beside(&mut self) -> bool {
        let due_at = std::mem::replace(&mut self.due_at, Mono::NEVER);
        if due_at == Mono::NEVER {
            return false;
        }
        (self.in_flight, self.next_at) = (None, due_at);
        true
    }

    /// The question under way is beside the others.
    pub(super) fn is_asking_beside(&self) -> bool {
        self.in_flight.is_some() && self.due_at != Mono::NEVER
    }

    /// A question is under way.
    pub(super) fn is_asking(&self) -> bool {
        self.in_flight.is_some()
    }

    /// The request was refused, perhaps for somebody else whom it asked about.
    pub(super) fn handle_unasked(&mut self, now: Mono) {
        let users = self.in_flight.take().unwrap_or_default();
        self.ask_first(users, now);
    }

    fn ask_first(&mut self, users: Vec<Box<str>>, now: Mono) {
        let back = users.into_iter().rev();
        back.for_each(|user| self.pending.push_front(user));
        self.next_at = now;
    }

    /// The request was refused for what is in it: shorter ones are made of it, or the one user that
    /// it is about is passed over. `too_long`: it was refused as such (413), and others of its
    /// length would be. False: nothing is in it, so it is the node.
    pub(super) fn handle_refusal(&mut self, too_long: bool, now: Mono) -> bool {
        let Some(mut users) = self.in_flight.take_if(|users| !users.is_empty()) else {
            return false;
        };
        if users.len() == 1 {
            self.suspect = users.pop();
        } else {
            self.users_next = users.len() / 2;
            if too_long {
                self.users_per_request = self.users_next;
            }
        }
        self.ask_first(users, now);
        true
    }

    /// Nobody answers for this one. It is asked about again with others: an answer may come from
    /// another version of the node.
    fn pass_over(&mut self, user: Box<str>, now: Mono) {
        self.asked.remove(&user);
        if self.passed_over.len() < PENDING_MAX {
            self.passed_over.insert(user);
        }
        self.again_at = self.again_at.min(now.plus_ms(AGAIN_MS));
    }

    /// The request failed, or was answered with something else.
    pub(super) fn handle_failure(&mut self, now: Mono) {
        (self.in_flight, self.due_at) = (None, Mono::NEVER);
        self.caught_up = false;
        self.forget();
        self.next_at = now.plus_ms(self.backoff.after_failure_ms());
        if std::mem::take(&mut self.in_sight) {
            self.lost_since = Some(self.answered_at);
        }
    }

    fn forget(&mut self) {
        self.pending = VecDeque::new();
        self.asked = HashSet::default();
        self.suspect = None;
        (self.queued, self.answered, self.anew) = (0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the node that asks.
    const SHARDS: usize = 2;

    fn at(ms: u64) -> Mono {
        Mono::from_micros(ms * 1_000)
    }

    fn users(names: &[&str]) -> Vec<Box<str>> {
        names.iter().map(|name| Box::from(*name)).collect()
    }

    /// Whom to ask about, and whether beats may have been lost.
    type CalledFor = (Option<Whom>, bool);

    const NOTHING: CalledFor = (None, false);
    const FOUND: CalledFor = (Some(Whom::Everybody), false);
    const UNSURE: CalledFor = (Some(Whom::Unsure), false);
    const BACK: CalledFor = (Some(Whom::Unsure), true);
    /// Lost again before everybody was answered for.
    const FOUND_BACK: CalledFor = (Some(Whom::Everybody), true);

    fn called_for(due: Due) -> CalledFor {
        (due.whom, due.was_away)
    }

    fn seen() -> Inquiry {
        let mut inquiry = Inquiry::new(1, SHARDS);
        assert_eq!(
            inquiry.poll_request(at(0)),
            Some(&[][..]),
            "a probe at once"
        );
        assert_eq!(called_for(inquiry.handle_answer(true, at(0))), FOUND);
        assert!(!inquiry.is_caught_up());
        inquiry
    }

    /// All shards say that they have no more to ask of the last pass.
    fn through(inquiry: &mut Inquiry, now: Mono) {
        for _ in 0..SHARDS {
            assert!(!inquiry.is_caught_up());
            inquiry.ask(Vec::new(), true, Some(inquiry.pass), now);
        }
    }

    #[test]
    fn each_is_asked_about_once_while_it_waits() {
        let mut inquiry = seen();
        inquiry.ask(users(&["a", "b", "a"]), false, None, at(10));
        assert_eq!(inquiry.poll_request(at(10)), Some(&users(&["a", "b"])[..]));
        inquiry.ask(users(&["b", "c"]), false, None, at(11));
        assert_eq!(inquiry.poll_request(at(11)), None, "one at a time");
        assert_eq!(inquiry.next(), Mono::NEVER);
        assert_eq!(called_for(inquiry.handle_answer(false, at(12))), NOTHING);
        assert_eq!(inquiry.poll_request(at(12)), Some(&users(&["c"])[..]));
        inquiry.handle_answer(false, at(13));
        assert!(inquiry.is_empty());
        inquiry.ask(users(&["a"]), false, None, at(14));
        assert_eq!(
            inquiry.poll_request(at(14)),
            Some(&users(&["a"])[..]),
            "answered: may be asked again"
        );
    }

    #[test]
    fn a_silent_node_is_lost_once_and_found_again() {
        let mut inquiry = seen();
        assert_eq!(inquiry.next(), at(PROBE_MS));
        inquiry.ask(users(&["a"]), false, None, at(1));
        inquiry.poll_request(at(1));
        inquiry.handle_failure(at(2_001));
        inquiry.ask(users(&["b"]), false, None, at(2_002));
        assert!(
            inquiry.is_empty(),
            "nothing is kept while it is out of sight"
        );
        let retry = inquiry.next();
        assert!(retry > at(2_001) && retry <= at(2_201));
        assert_eq!(inquiry.poll_request(retry), Some(&[][..]));
        inquiry.handle_failure(retry);
        let retry = inquiry.next();
        inquiry.poll_request(retry);
        assert_eq!(called_for(inquiry.handle_answer(false, retry)), FOUND_BACK);
        // It hears of everybody before it is asked.
        inquiry.ask(users(&["c"]), false, None, retry);
        let mut now = retry;
        while now < retry.plus_ms(SETTLE_MS) {
            assert!(!inquiry.is_caught_up());
            now = inquiry.next();
            let asked = inquiry.poll_request(now).map(<[_]>::len);
            assert_eq!(asked, Some(usize::from(now >= retry.plus_ms(SETTLE_MS))));
            assert_eq!(called_for(inquiry.handle_answer(false, now)), NOTHING);
        }
        through(&mut inquiry, now);
        assert_eq!(inquiry.next(), now, "there is nothing left to wait for");
        inquiry.poll_request(now);
        inquiry.handle_answer(false, now);
        assert!(inquiry.is_caught_up());
    }

    #[test]
    fn a_node_that_could_not_be_seen_from_the_start_is_back() {
        for (seen_ms, sighting) in [(OUTAGE_MS - 1, UNSURE), (OUTAGE_MS, BACK)] {
            let mut inquiry = Inquiry::new(1, SHARDS);
            inquiry.poll_request(at(5));
            inquiry.handle_failure(at(6));
            inquiry.poll_request(at(5 + seen_ms));
            assert_eq!(
                called_for(inquiry.handle_answer(false, at(5 + seen_ms))),
                sighting
            );
        }
    }

    /// One refusal costs no more than questions: the beats have arrived.
    #[test]
    fn a_node_that_was_lost_for_a_moment_is_found() {
        for (failed_ms, back_ms, sighting) in [
            (PROBE_MS, OUTAGE_MS - 1, FOUND),
            (PROBE_MS, OUTAGE_MS, FOUND_BACK),
            (OUTAGE_MS, OUTAGE_MS + 200, FOUND_BACK),
        ] {
            let mut inquiry = seen();
            inquiry.poll_request(at(PROBE_MS));
            inquiry.handle_failure(at(failed_ms));
            inquiry.poll_request(at(back_ms));
            assert_eq!(
                called_for(inquiry.handle_answer(false, at(back_ms))),
                sighting,
                "{back_ms}"
            );
        }
    }

    #[test]
    fn where_nothing_was_missed_only_the_unsure_are_asked_about() {
        for (back_ms, called) in [
            (PROBE_MS + OUTAGE_MS - 1, UNSURE),
            (PROBE_MS + OUTAGE_MS, BACK),
        ] {
            let mut inquiry = seen();
            through(&mut inquiry, at(1));
            inquiry.poll_request(at(PROBE_MS));
            assert_eq!(
                called_for(inquiry.handle_answer(false, at(PROBE_MS))),
                NOTHING
            );
            assert!(inquiry.is_caught_up());
            inquiry.poll_request(at(2 * PROBE_MS));
            inquiry.handle_failure(at(2 * PROBE_MS + 1));
            inquiry.poll_request(at(back_ms));
            let due = inquiry.handle_answer(false, at(back_ms));
            assert_eq!(called_for(due), called, "{back_ms}");
        }
    }

    #[test]
    fn a_pass_whose_questions_come_while_it_is_lost_is_made_again() {
        let mut inquiry = seen();
        through(&mut inquiry, at(1));
        inquiry.poll_request(at(PROBE_MS));
        inquiry.handle_answer(false, at(PROBE_MS));
        inquiry.poll_request(at(2 * PROBE_MS));
        inquiry.handle_failure(at(2 * PROBE_MS));
        inquiry.ask(users(&["late"]), true, None, at(2 * PROBE_MS));
        let retry = inquiry.next();
        inquiry.poll_request(retry);
        assert_eq!(called_for(inquiry.handle_answer(false, retry)), FOUND);
    }

    #[test]
    fn another_life_of_the_node_is_found_anew() {
        let mut inquiry = seen();
        inquiry.poll_request(at(PROBE_MS));
        assert_eq!(
            called_for(inquiry.handle_answer(false, at(PROBE_MS))),
            NOTHING
        );
        inquiry.poll_request(at(2 * PROBE_MS));
        assert_eq!(
            called_for(inquiry.handle_answer(true, at(2 * PROBE_MS))),
            FOUND
        );
    }

    /// One more question and its answer, and whether everything is known then.
    fn ask_and_answer(inquiry: &mut Inquiry, user: &str, now: Mono) -> bool {
        inquiry.ask(users(&[user]), false, None, now);
        assert!(
            inquiry
                .poll_request(now)
                .is_some_and(|users| !users.is_empty())
        );
        assert_eq!(called_for(inquiry.handle_answer(false, now)), NOTHING);
        inquiry.is_caught_up()
    }

    #[test]
    fn new_watchers_without_end_do_not_keep_it_behind() {
        let mut inquiry = seen();
        inquiry.ask(users(&["a"]), true, None, at(5));
        assert!(!ask_and_answer(&mut inquiry, "new at 10", at(10)));
        through(&mut inquiry, at(20));
        for ms in [20, 21] {
            assert!(ask_and_answer(
                &mut inquiry,
                &format!("new at {ms}"),
                at(ms)
            ));
        }
    }

    #[test]
    fn it_is_behind_until_all_that_is_asked_anew_is_answered() {
        let mut inquiry = seen();
        let many: Vec<Box<str>> = (0..1_500).map(|n| format!("user-{n}").into()).collect();
        inquiry.ask(many, true, None, at(10));
        through(&mut inquiry, at(10));
        for caught_up in [false, true] {
            assert!(inquiry.poll_request(at(20)).is_some());
            inquiry.ask(users(&["new"]), false, None, at(20));
            let due = inquiry.handle_answer(false, at(20));
            assert_eq!(inquiry.is_caught_up(), caught_up);
            assert_eq!(due.settled, caught_up.then_some(1));
        }
    }

    /// A shard that is stalled has not said yet whom its streams watch.
    #[test]
    fn a_shard_whose_pass_is_late_is_waited_for_however_long() {
        let mut inquiry = seen();
        let pass = inquiry.pass;
        inquiry.ask(users(&["a"]), true, Some(pass), at(10));
        assert!(!ask_and_answer(&mut inquiry, "new", at(10)));
        assert!(!ask_and_answer(&mut inquiry, "newer", at(60_000)));
        // Of a pass that another one has replaced.
        inquiry.ask(Vec::new(), true, Some(pass - 1), at(60_001));
        assert!(!ask_and_answer(&mut inquiry, "newest", at(60_001)));
        inquiry.ask(users(&["late"]), true, Some(pass), at(60_002));
        assert!(ask_and_answer(&mut inquiry, "last", at(60_002)));
    }

    #[test]
    fn what_is_asked_anew_late_is_answered_before_it_is_caught_up_again() {
        let mut inquiry = seen();
        through(&mut inquiry, at(1));
        assert!(ask_and_answer(&mut inquiry, "a", at(1)));
        inquiry.ask(users(&["late"]), true, None, at(2));
        assert!(!inquiry.is_caught_up());
        inquiry.poll_request(at(2));
        let due = inquiry.handle_answer(false, at(2));
        assert!(inquiry.is_caught_up() && due.settled == Some(1));
    }

    #[test]
    fn requests_are_bounded_and_can_be_made_shorter() {
        let mut inquiry = seen();
        let many: Vec<Box<str>> = (0..1_500).map(|n| format!("user-{n}").into()).collect();
        inquiry.ask(many, false, None, at(1));
        assert_eq!(inquiry.poll_request(at(1)).map(<[_]>::len), Some(1_000));
        assert!(inquiry.handle_refusal(true, at(2)));
        let retry = inquiry.next();
        let next = inquiry
            .poll_request(retry)
            .map(|users| (users.len(), users[0].clone()));
        assert_eq!(next, Some((500, "user-0".into())));
        inquiry.handle_answer(false, retry);
        assert_eq!(
            inquiry.poll_request(retry).map(|users| users[0].clone()),
            Some("user-500".into())
        );
    }

    #[test]
    fn more_than_fit_are_all_asked_for_anew() {
        let mut inquiry = seen();
        let user = |n: usize| Box::from(format!("{n}"));
        inquiry.ask((0..PENDING_MAX + 1).map(user).collect(), true, None, at(1));
        assert_eq!(inquiry.len(), PENDING_MAX);
        let mut sightings = 0;
        while !inquiry.is_empty() {
            inquiry.poll_request(at(2));
            sightings += usize::from(called_for(inquiry.handle_answer(false, at(2))) == UNSURE);
        }
        assert_eq!(sightings, 1);
    }

    /// What the next question names, and its answer: nothing if it is refused for what it names.
    fn question(inquiry: &mut Inquiry, refused: &str, now: Mono) -> (Vec<String>, bool) {
        let asked = inquiry.poll_request(now).expect("it is time");
        let asked: Vec<String> = asked.iter().map(|user| user.to_string()).collect();
        if asked.iter().any(|user| user == refused) {
            assert!(inquiry.handle_refusal(false, now));
            return (asked, false);
        }
        (asked, inquiry.handle_answer(false, now).passes_over)
    }

    #[test]
    fn whoever_is_refused_alone_is_passed_over_and_holds_up_nobody() {
        let mut inquiry = seen();
        through(&mut inquiry, at(1));
        inquiry.ask(users(&["a", "b", "bad", "c", "d"]), true, None, at(1));
        let mut asked = Vec::new();
        while !inquiry.is_caught_up() {
            let question = question(&mut inquiry, "bad", at(1));
            asked.push((question.0.join(" "), question.1));
        }
        let expected = [
            ("a b bad c d", false),
            ("a b", false),
            ("bad c d", false),
            ("bad", false),
            // The node answers: it was not the node.
            ("", true),
            ("c", false),
            ("d", false),
        ];
        let expected = expected.map(|(users, passes_over)| (users.to_owned(), passes_over));
        assert_eq!(asked, expected);
        assert_eq!(inquiry.len(), 1, "one is not answered for");
        // With whomever is unsure, after a while.
        let now = loop {
            let now = inquiry.next();
            inquiry.poll_request(now);
            let due = inquiry.handle_answer(false, now);
            if due.whom.is_some() {
                assert_eq!(called_for(due), UNSURE);
                break now;
            }
        };
        assert!((AGAIN_MS..=AGAIN_MS + PROBE_MS).contains(&now.ms_since(at(1))));
        assert_eq!(inquiry.len(), 0);
    }

    #[test]
    fn a_node_that_refuses_an_empty_question_too_is_lost() {
        let mut inquiry = seen();
        inquiry.ask(users(&["a"]), true, None, at(1));
        inquiry.poll_request(at(1));
        assert!(inquiry.handle_refusal(false, at(1)));
        assert_eq!(inquiry.poll_request(at(1)), Some(&[][..]));
        assert!(!inquiry.handle_refusal(false, at(1)));
    }
}
