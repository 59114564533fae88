//! A real-time node's questions to one presence node, and whether that node is in sight.
//!
//! Owns who is still to be asked about, one request at a time, and the conclusion that what the node published may have been
//! lost: it did not answer for a while, or another life of it answers. Then everything that is watched is asked for anew, so
//! while it is out of sight nothing is kept. Without a kernel: requests and answers are values, time is an argument.

use std::collections::VecDeque;

use hashbrown::HashSet;

use super::STATES_PER_REQUEST_MAX;
use super::backoff::Backoff;
use crate::engine::SETTLE_MS;
use crate::planted::{self, Planted};
use crate::time::Mono;

/// Time between two requests when there is nothing to ask, in ms: so soon a silent node is noticed.
const PROBE_MS: u64 = 1_000;
/// Most users waiting to be asked about; beyond, they are forgotten and everything is asked for anew once there is room.
const PENDING_MAX: usize = 1 << 20;

/// What a request's outcome says of the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sighting {
    /// Nothing new.
    Same,
    /// It is in sight for the first time, or another life of it is: what it published before may be lost. Ask for everything that
    /// is watched and its.
    Found,
    /// It is in sight again. The same, but it may have heard no beats meanwhile: vouch first.
    Back,
    /// It is out of sight.
    Lost,
}

/// The questions to one node.
#[derive(Debug)]
pub struct Inquiry {
    pending: VecDeque<Box<str>>,
    /// Those in `pending` or asked about now.
    asked: HashSet<Box<str>, foldhash::fast::RandomState>,
    in_flight: Option<Vec<Box<str>>>,
    /// The life of the node that answered last; None while it is out of sight.
    instance: Option<u64>,
    was_lost: bool,
    /// Nothing was left to ask about for a while since it was found.
    caught_up: bool,
    found_at: Mono,
    overflowed: bool,
    users_per_request: usize,
    next_at: Mono,
    backoff: Backoff,
}

impl Inquiry {
    /// To a node that has not been seen yet. `seed` is of the jitter.
    pub fn new(seed: u64) -> Inquiry {
        Inquiry {
            pending: VecDeque::new(),
            asked: HashSet::default(),
            in_flight: None,
            instance: None,
            was_lost: false,
            caught_up: false,
            found_at: Mono::default(),
            overflowed: false,
            users_per_request: STATES_PER_REQUEST_MAX,
            next_at: Mono::default(),
            backoff: Backoff::new(seed),
        }
    }

    /// Whether the node answered last time.
    pub fn is_in_sight(&self) -> bool {
        self.instance.is_some()
    }

    /// Whether everything watched has been asked about since the node was found: before, changes may be unknown.
    pub fn is_caught_up(&self) -> bool {
        self.caught_up
    }

    /// Users whose answers are outstanding.
    pub fn len(&self) -> usize {
        self.asked.len()
    }

    /// Nobody to ask about.
    pub fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    /// These are to be asked about. While the node is out of sight they need not be: all will be when it is back.
    pub fn ask(&mut self, users: Vec<Box<str>>, now: Mono) {
        if !self.is_in_sight() {
            return;
        }
        for user in users {
            if self.pending.len() >= PENDING_MAX {
                self.overflowed = true;
                return;
            }
            if self.asked.insert(user.clone()) {
                self.pending.push_back(user);
            }
        }
        if !self.pending.is_empty() {
            self.next_at = self.next_at.min(now);
        }
    }

    /// When [`Inquiry::poll_request`] has something.
    pub fn next(&self) -> Mono {
        if self.in_flight.is_some() {
            Mono::NEVER
        } else {
            self.next_at
        }
    }

    /// The users of the next request, if it is time; none of them makes it a probe. One request at a time: its outcome comes
    /// first.
    pub fn poll_request(&mut self, now: Mono) -> Option<&[Box<str>]> {
        if now < self.next() {
            return None;
        }
        let users = self.pending.len().min(self.users_per_request);
        let users = self.pending.drain(..users).collect();
        Some(self.in_flight.insert(users))
    }

    /// The request was answered by this life of the node.
    pub fn handle_answer(&mut self, instance: u64, now: Mono) -> Sighting {
        let answered = self.in_flight.take().unwrap_or_default();
        // A probe: an interval has passed in which nobody had anything to ask, and the asking has begun.
        self.caught_up |= answered.is_empty() && now >= self.found_at.plus_ms(SETTLE_MS + PROBE_MS);
        for user in &answered {
            self.asked.remove(user);
        }
        self.backoff.reset();
        let known = |life| life == instance || planted::is(Planted::LifeUnnoticed);
        let found = !self.instance.is_some_and(known) || (self.overflowed && self.pending.is_empty());
        if found {
            (self.overflowed, self.caught_up) = (false, false);
            self.found_at = now;
            self.instance = Some(instance);
            // They will be asked about with all others.
            self.forget();
        }
        self.next_at = if self.pending.is_empty() {
            now.plus_ms(PROBE_MS)
        } else {
            now
        };
        match found {
            true if std::mem::take(&mut self.was_lost) => Sighting::Back,
            true => Sighting::Found,
            false => Sighting::Same,
        }
    }

    /// The request was refused as too long (413): shorter ones are made of it.
    pub fn handle_too_many(&mut self, now: Mono) {
        let users = self.in_flight.take().unwrap_or_default();
        self.users_per_request = (users.len() / 2).max(1);
        users.into_iter().rev().for_each(|user| self.pending.push_front(user));
        self.next_at = now.plus_ms(self.backoff.after_failure_ms());
    }

    /// The request failed, or was answered with something else.
    pub fn handle_failure(&mut self, now: Mono) -> Sighting {
        self.in_flight = None;
        self.caught_up = false;
        self.forget();
        self.next_at = now.plus_ms(self.backoff.after_failure_ms());
        match self.instance.take() {
            Some(_) => {
                self.was_lost = true;
                Sighting::Lost
            }
            None => Sighting::Same,
        }
    }

    fn forget(&mut self) {
        self.pending = VecDeque::new();
        self.asked = HashSet::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono::from_micros(ms * 1_000)
    }

    fn users(names: &[&str]) -> Vec<Box<str>> {
        names.iter().map(|name| Box::from(*name)).collect()
    }

    fn seen() -> Inquiry {
        let mut inquiry = Inquiry::new(1);
        assert_eq!(inquiry.poll_request(at(0)), Some(&[][..]), "a probe at once");
        assert_eq!(inquiry.handle_answer(7, at(0)), Sighting::Found);
        assert!(!inquiry.is_caught_up());
        inquiry
    }

    #[test]
    fn each_is_asked_about_once_while_it_waits() {
        let mut inquiry = seen();
        inquiry.ask(users(&["a", "b", "a"]), at(10));
        assert_eq!(inquiry.poll_request(at(10)), Some(&users(&["a", "b"])[..]));
        inquiry.ask(users(&["b", "c"]), at(11));
        assert_eq!(inquiry.poll_request(at(11)), None, "one at a time");
        assert_eq!(inquiry.next(), Mono::NEVER);
        assert_eq!(inquiry.handle_answer(7, at(12)), Sighting::Same);
        assert_eq!(inquiry.poll_request(at(12)), Some(&users(&["c"])[..]));
        inquiry.handle_answer(7, at(13));
        assert!(inquiry.is_empty());
        inquiry.ask(users(&["a"]), at(14));
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
        inquiry.ask(users(&["a"]), at(1));
        inquiry.poll_request(at(1));
        assert_eq!(inquiry.handle_failure(at(2_001)), Sighting::Lost);
        inquiry.ask(users(&["b"]), at(2_002));
        assert!(inquiry.is_empty(), "nothing is kept while it is out of sight");
        let retry = inquiry.next();
        assert!(retry > at(2_001) && retry <= at(2_201));
        assert_eq!(inquiry.poll_request(retry), Some(&[][..]));
        assert_eq!(inquiry.handle_failure(retry), Sighting::Same);
        let retry = inquiry.next();
        inquiry.poll_request(retry);
        assert_eq!(inquiry.handle_answer(7, retry), Sighting::Back);
        let mut now = retry;
        for ms in (0..=SETTLE_MS).step_by(PROBE_MS as usize) {
            assert!(!inquiry.is_caught_up(), "{ms} ms after");
            now = inquiry.next();
            inquiry.poll_request(now);
            assert_eq!(inquiry.handle_answer(7, now), Sighting::Same);
        }
        assert!(inquiry.is_caught_up() && now == retry.plus_ms(SETTLE_MS + PROBE_MS));
    }

    #[test]
    fn another_life_of_the_node_is_found_anew() {
        let mut inquiry = seen();
        inquiry.poll_request(at(PROBE_MS));
        assert_eq!(inquiry.handle_answer(7, at(PROBE_MS)), Sighting::Same);
        inquiry.poll_request(at(2 * PROBE_MS));
        assert_eq!(inquiry.handle_answer(8, at(2 * PROBE_MS)), Sighting::Found);
    }

    #[test]
    fn requests_are_bounded_and_can_be_made_shorter() {
        let mut inquiry = seen();
        let many: Vec<Box<str>> = (0..1_500).map(|n| format!("user-{n}").into()).collect();
        inquiry.ask(many, at(1));
        assert_eq!(inquiry.poll_request(at(1)).map(<[_]>::len), Some(1_000));
        inquiry.handle_too_many(at(2));
        let retry = inquiry.next();
        let next = inquiry.poll_request(retry).map(|users| (users.len(), users[0].clone()));
        assert_eq!(next, Some((500, "user-0".into())));
        inquiry.handle_answer(7, retry);
        assert_eq!(
            inquiry.poll_request(retry).map(|users| users[0].clone()),
            Some("user-500".into())
        );
    }

    #[test]
    fn more_than_fit_are_all_asked_for_anew() {
        let mut inquiry = seen();
        let user = |n: usize| Box::from(format!("{n}"));
        inquiry.ask((0..PENDING_MAX + 1).map(user).collect(), at(1));
        assert_eq!(inquiry.len(), PENDING_MAX);
        let mut sightings = 0;
        while !inquiry.is_empty() {
            inquiry.poll_request(at(2));
            sightings += usize::from(inquiry.handle_answer(7, at(2)) == Sighting::Found);
        }
        assert_eq!(sightings, 1);
    }
}
