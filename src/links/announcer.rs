//! A presence node's published states on their way to one real-time node: the source's end of a
//! feed.
//!
//! Owns whose state is still to be told, one entry a publisher however often it changes, in the
//! order of the first change; and the numbers of the messages. States are encoded when they are
//! sent, from what they are then, so an outage costs each publisher one record. A message that is
//! refused for its content consumes no number, and one whose answer is lost comes again under its
//! number, with what is to be told then. A state that is passed over leaves a gap in the numbers,
//! so that the node asks. After an outage that may have cut the beats off too, an
//! empty request feels the way, and whoever is offline by then is held back until the beats have
//! come ([`SETTLE_MS`]): nobody is published offline for the outage. Without a kernel: requests and
//! outcomes are values, time is an argument.

use std::collections::VecDeque;

use hashbrown::HashMap;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{OUTAGE_MS, PROBE_MS, RETRY_CAP_MS, RETRY_FIRST_MS, STATES_PER_REQUEST_MAX};
use crate::backoff::Backoff;
use crate::engine::{SETTLE_MS, told_of};
use crate::planted::{self, Planted};
use crate::presence::{Presence, Transition};
use crate::slot::Slot;
use crate::time::{Mono, Now, Unix};
use crate::wire::feed::{Held, Place, is_later};

/// A node is made to miss a number no more often than this, in ms, however many states are passed
/// over: each time it asks about everybody who is watched.
const GAP_MS: u64 = 10_000;

/// A request to send: `PUT` with a JSON body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Put {
    /// `/v1/presence/{user}` for one, `/v1/presence` for several.
    pub(super) path: String,
    /// One record, or a list of them; an empty one feels whether the node is there.
    pub(super) body: Vec<u8>,
    pub(super) states: usize,
    /// Its place in the feed.
    pub(super) place: Place,
}

/// The states for one node.
#[derive(Debug)]
pub(super) struct Announcer {
    order: VecDeque<Slot>,
    /// Whoever was found offline while the beats were awaited.
    held: VecDeque<Slot>,
    /// Whoever is in `order`, in `held`, or in both.
    waiting: HashMap<Slot, Waiting, foldhash::fast::RandomState>,
    /// Until then beats are awaited.
    settle_until: Mono,
    in_flight: Option<Vec<Slot>>,
    /// When the last request began.
    begun: Mono,
    states_per_request: usize,
    /// Of a request that was refused for what is in it: so many are sent each alone, to find the
    /// one.
    alone: usize,
    /// Whoever was refused alone, until the node takes an empty request: it is the state then, not
    /// the node.
    suspect: Option<Slot>,
    /// Which life of this node tells.
    birth: u64,
    /// Of the last message that was taken.
    number: u64,
    /// Of the one under way.
    number_sent: u64,
    /// A state was passed over and the node has not been made to miss a number for it.
    passed_over: bool,
    /// When it may be made to.
    gap_at: Mono,
    next_at: Mono,
    /// When an empty request is due.
    probe_at: Mono,
    /// Since when requests have failed.
    failing_since: Option<Mono>,
    backoff: Backoff,
}

/// Where a publisher has its one entry each.
#[derive(Clone, Copy, Default, Debug)]
struct Waiting {
    in_order: bool,
    in_held: bool,
}

impl Announcer {
    /// Nothing to tell. `seed` is of the jitter, `birth` tells this life of this node from others.
    pub(super) fn new(seed: u64, birth: u64) -> Announcer {
        Announcer {
            order: VecDeque::new(),
            held: VecDeque::new(),
            waiting: HashMap::default(),
            settle_until: Mono::default(),
            in_flight: None,
            begun: Mono::default(),
            states_per_request: STATES_PER_REQUEST_MAX,
            alone: 0,
            suspect: None,
            birth,
            number: 0,
            number_sent: 0,
            passed_over: false,
            gap_at: Mono::default(),
            next_at: Mono::default(),
            probe_at: Mono::default(),
            failing_since: None,
            backoff: Backoff::new(RETRY_FIRST_MS, RETRY_CAP_MS, seed),
        }
    }

    /// These have changed.
    pub(super) fn mark(&mut self, transitions: &[Transition]) {
        for transition in transitions {
            let waiting = self.waiting.entry(transition.slot).or_default();
            let is_held = waiting.in_held && !transition.status.is_online();
            if !is_held && !waiting.in_order {
                waiting.in_order = true;
                self.order.push_back(transition.slot);
            }
        }
    }

    /// Publishers whose state is to be told, or is being told.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
            + self.in_flight.as_ref().map_or(0, Vec::len)
            + usize::from(self.suspect.is_some())
            + usize::from(self.passed_over)
    }

    /// Whether the state of this one is to be told, or is being told.
    pub(super) fn holds(&self, slot: Slot) -> bool {
        self.waiting.contains_key(&slot)
            || self.suspect == Some(slot)
            || self.in_flight.iter().flatten().any(|other| *other == slot)
    }

    /// Everything has been told.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A request is under way.
    pub(super) fn is_under_way(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Whether the last request failed.
    pub(super) fn is_failing(&self) -> bool {
        self.failing_since.is_some()
    }

    /// When [`Announcer::poll_request`] has something.
    pub(super) fn next(&self) -> Mono {
        match self.in_flight {
            Some(_) => Mono::NEVER,
            None if self.suspect.is_some() => self.next_at,
            None if !self.order.is_empty() => self.next_at,
            None if !self.held.is_empty() => self.next_at.max(self.settle_until.min(self.probe_at)),
            None if self.passed_over => self.next_at.max(self.probe_at.min(self.gap_at)),
            // Nothing to tell: so the node knows that it is told everything.
            None => self.next_at.max(self.probe_at),
        }
    }

    /// The next request, if it is time. One at a time: its outcome comes first. `up_to`: everything
    /// that was decided before it, by this node's clock, has been marked.
    pub(super) fn poll_request(
        &mut self,
        presence: &Presence,
        up_to: Unix,
        now: Now,
    ) -> Option<Put> {
        if now.mono < self.next() {
            return None;
        }
        let mut slots = Vec::new();
        if !self.was_away(now.mono) && self.suspect.is_none() {
            self.take(&mut slots, presence, now);
            if slots.is_empty() && now.mono < self.next() {
                return None;
            }
        }
        let mut body = Vec::new();
        let path = if let [slot] = slots[..] {
            told_of(presence, slot, now).write(&mut body);
            let user = presence.user(slot);
            format!(
                "/v1/presence/{}",
                utf8_percent_encode(user.as_str(), NON_ALPHANUMERIC)
            )
        } else {
            body.extend_from_slice(b"{\"presence\":[");
            for (at, slot) in slots.iter().enumerate() {
                if at > 0 {
                    body.push(b',');
                }
                told_of(presence, *slot, now).write(&mut body);
            }
            body.extend_from_slice(b"]}");
            "/v1/presence".to_owned()
        };
        let states = slots.len();
        self.in_flight = Some(slots);
        self.begun = now.mono;
        Some(Put {
            path,
            body,
            states,
            place: self.place(up_to, now.mono),
        })
    }

    /// The place of the request that is made now.
    fn place(&mut self, up_to: Unix, now: Mono) -> Place {
        // A number that was sent and not answered may have been taken: left out now, it would be no
        // gap to that node.
        let unanswered = self.number_sent == self.number.wrapping_add(1);
        let gap = self.passed_over && now >= self.gap_at && !unanswered;
        let waits = self.passed_over && !gap;
        let holds_back = !self.waiting.is_empty() || self.suspect.is_some() || waits;
        let previous = self.number.wrapping_add(u64::from(gap));
        self.number_sent = previous.wrapping_add(1);
        Place {
            birth: self.birth,
            previous,
            number: self.number_sent,
            up_to: (!holds_back).then_some(up_to),
        }
    }

    /// Takes whom to tell of in one request.
    fn take(&mut self, slots: &mut Vec<Slot>, presence: &Presence, now: Now) {
        let settled = now.mono >= self.settle_until;
        if settled {
            for slot in std::mem::take(&mut self.held).into_iter().rev() {
                let waiting = self.waiting.entry(slot).or_default();
                waiting.in_held = false;
                if !std::mem::replace(&mut waiting.in_order, true) {
                    self.order.push_front(slot);
                }
            }
        }
        let most = if self.alone > 0 {
            1
        } else {
            self.states_per_request
        };
        while slots.len() < most
            && let Some(slot) = self.order.pop_front()
        {
            let waiting = self.waiting.entry(slot).or_default();
            waiting.in_order = false;
            // That somebody is online is no conclusion from silence: it need not wait.
            if !settled && !presence.state(slot, now).status.is_online() {
                if !std::mem::replace(&mut waiting.in_held, true) {
                    self.held.push_back(slot);
                }
                continue;
            }
            if !waiting.in_held {
                self.waiting.remove(&slot);
            }
            slots.push(slot);
        }
    }

    /// The request was taken, by a node that holds this of the feed. Returns whose state the node
    /// does not take, if that is certain now: it is not told.
    pub(super) fn handle_done(&mut self, held: Option<Held>, now: Mono) -> Option<Slot> {
        let told = self.in_flight.take().map_or(0, |slots| slots.len());
        if self.number_sent != self.number.wrapping_add(1) {
            self.passed_over = false;
            self.gap_at = now.plus_ms(GAP_MS);
        }
        self.number = self.number_sent;
        // Somebody else has told it a later number in this feed: what follows mine is late to it.
        let other = held.filter(|held| held.birth == self.birth);
        if let Some(other) = other.filter(|held| is_later(held.number, self.number)) {
            (self.number, self.number_sent) = (other.number, other.number);
        }
        self.alone = self.alone.saturating_sub(told);
        self.next_at = now;
        if self.was_away(now) && !planted::is(Planted::HoldIgnored) {
            self.settle_until = now.plus_ms(SETTLE_MS);
        }
        self.probe_at = now.plus_ms(PROBE_MS);
        self.failing_since = None;
        self.backoff.reset();
        let given_up = self.suspect.take();
        self.passed_over |= given_up.is_some();
        self.alone = self.alone.saturating_sub(usize::from(given_up.is_some()));
        if self.waiting.is_empty() {
            // What an outage took is given back.
            self.order = VecDeque::new();
            self.waiting = HashMap::default();
        }
        given_up
    }

    /// The request failed: those in it who have not changed since come first again.
    pub(super) fn handle_failure(&mut self, now: Mono) {
        let mut slots = self.in_flight.take().unwrap_or_default();
        if planted::is(Planted::InFlightForgotten) {
            slots.clear();
        }
        slots.extend(self.suspect.take());
        self.put_back(slots);
        // It may have been out of reach for as long as the request took to fail.
        self.failing_since.get_or_insert(self.begun);
        self.next_at = now.plus_ms(self.backoff.after_failure_ms());
        self.probe_at = self.next_at;
    }

    /// The request was refused for what is in it: shorter ones are made of it, or the one state
    /// that it is of is passed over. `too_long`: it was refused as such (413), and others of its
    /// length would be.
    pub(super) fn handle_refusal(&mut self, too_long: bool, now: Mono) {
        if planted::is(Planted::RefusedConsumed) {
            self.number = self.number.wrapping_add(1);
        }
        match self.in_flight.as_deref() {
            None | Some([]) => return self.handle_failure(now),
            Some([slot]) => {
                self.suspect = Some(*slot);
                self.in_flight = None;
                self.next_at = now;
                return;
            }
            Some(slots) if too_long => self.states_per_request = slots.len() / 2,
            Some(slots) => self.alone = slots.len(),
        }
        let slots = self.in_flight.take().unwrap_or_default();
        self.put_back(slots);
        self.next_at = now;
    }

    fn put_back(&mut self, slots: Vec<Slot>) {
        for slot in slots.into_iter().rev() {
            let waiting = self.waiting.entry(slot).or_default();
            if !std::mem::replace(&mut waiting.in_order, true) {
                self.order.push_front(slot);
            }
        }
    }

    /// The node has been out of reach for so long that beats may have been lost too.
    pub(super) fn was_away(&self, now: Mono) -> bool {
        self.failing_since
            .is_some_and(|since| now.ms_since(since) >= OUTAGE_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{OFFLINE_AFTER_MS, Store, at};
    use super::*;

    const UP_TO: Unix = Unix::from_ms(1_999);

    struct Node {
        store: Store,
        announcer: Announcer,
    }

    impl Node {
        fn new() -> Node {
            Node {
                store: Store::new(),
                announcer: Announcer::new(1, 0xa7),
            }
        }

        fn beat(&mut self, user: &str, ms: u64) {
            self.announcer.mark(&self.store.beat(user, ms));
        }

        fn look(&mut self, slot: Slot, ms: u64) {
            self.announcer.mark(&self.store.look(slot, ms));
        }

        /// The next request and what it says.
        fn put(&mut self, ms: u64) -> Option<(String, String)> {
            let put = self
                .announcer
                .poll_request(&self.store.presence, UP_TO, at(ms))?;
            Some((put.path, String::from_utf8(put.body).unwrap()))
        }
    }

    fn record(user: &str, status: &str, since: u64, last_active: u64) -> String {
        format!(
            "{{\"user\":\"{user}\",\"status\":\"{status}\",\"online\":{},\
             \"since\":{since},\"last_active\":{last_active}}}",
            status == "online",
        )
    }

    #[test]
    fn one_goes_by_its_path_and_several_as_a_list() {
        let mut node = Node::new();
        node.beat("a/b é", 2_000);
        let one = record("a/b é", "online", 2_000, 2_000);
        assert_eq!(
            node.put(2_000),
            Some(("/v1/presence/a%2Fb%20%C3%A9".into(), one))
        );
        assert_eq!(node.put(2_000), None, "one at a time");
        node.announcer.handle_done(None, at(2_000).mono);
        assert_eq!(node.put(2_000), None, "told");
        node.beat("x", 2_001);
        node.beat("y", 2_002);
        let (x, y) = (
            record("x", "online", 2_001, 2_001),
            record("y", "online", 2_002, 2_002),
        );
        let list = format!("{{\"presence\":[{x},{y}]}}");
        assert_eq!(node.put(2_003), Some(("/v1/presence".into(), list)));
    }

    #[test]
    fn an_outage_costs_each_publisher_one_record_of_its_final_state() {
        let mut node = Node::new();
        let mut ms = 2_000;
        for _ in 0..50 {
            for user in ["x", "y"] {
                node.beat(user, ms);
            }
            if node.put(ms).is_some() {
                node.announcer.handle_failure(at(ms).mono);
            }
            ms += OFFLINE_AFTER_MS + 1;
            for slot in [0, 1] {
                node.look(Slot::new(slot), ms);
            }
            assert_eq!(node.announcer.len(), 2);
            assert!(node.announcer.is_failing());
        }
        // The way is felt first, and then the beats are waited for.
        ms += 5_000;
        let empty = Some(("/v1/presence".into(), "{\"presence\":[]}".into()));
        assert_eq!(node.put(ms), empty);
        node.announcer.handle_done(None, at(ms).mono);
        assert!(!node.announcer.is_failing());
        assert_eq!(node.put(ms + 1), None);
        // Of whom a beat has come, that is told at once.
        node.beat("y", ms + 100);
        let online = record("y", "online", ms + 100, ms + 100);
        assert_eq!(node.put(ms + 100), Some(("/v1/presence/y".into(), online)));
        assert_eq!(node.announcer.len(), 3);
        node.announcer.handle_done(None, at(ms + 100).mono);
        // The node hears that more is to come.
        let put = node
            .announcer
            .poll_request(&node.store.presence, UP_TO, at(ms + 100 + PROBE_MS))
            .unwrap();
        assert_eq!((put.states, put.place.up_to.is_some()), (0, false));
        node.announcer
            .handle_done(None, at(ms + 100 + PROBE_MS).mono);
        node.announcer.probe_at = Mono::NEVER;
        assert_eq!(node.announcer.next(), at(ms + SETTLE_MS).mono);
        assert_eq!(node.put(ms + SETTLE_MS - 1), None);
        let offline = record(
            "x",
            "offline",
            ms - 5_000,
            ms - 5_000 - OFFLINE_AFTER_MS - 1,
        );
        let online = record("y", "online", ms + 100, ms + 100);
        let both = format!("{{\"presence\":[{offline},{online}]}}");
        assert_eq!(
            node.put(ms + SETTLE_MS),
            Some(("/v1/presence".into(), both))
        );
        node.announcer.handle_done(None, at(ms + SETTLE_MS).mono);
        assert!(node.announcer.is_empty() && !node.announcer.is_failing());
    }

    /// A node that meets a real-time node for the first time, long after its own start, tells of a
    /// newcomer at once.
    #[test]
    fn whoever_comes_while_others_are_held_back_does_not_wait() {
        let mut node = Node::new();
        node.beat("x", 1_000);
        node.put(1_000).unwrap();
        node.announcer.handle_failure(at(1_000 + OUTAGE_MS).mono);
        node.put(5_000).unwrap();
        node.announcer.handle_done(None, at(5_000).mono);
        // Held back, and back, and gone again.
        node.look(Slot::new(0), 5_001);
        assert_eq!(node.put(5_001), None);
        node.beat("x", 5_002);
        assert_eq!(
            node.put(5_002).unwrap().1,
            record("x", "online", 5_002, 5_002)
        );
        node.announcer.handle_done(None, at(5_002).mono);
        let gone_at = 5_003 + OFFLINE_AFTER_MS;
        node.look(Slot::new(0), gone_at);
        let empty = Some(("/v1/presence".into(), "{\"presence\":[]}".into()));
        assert_eq!(node.put(gone_at), empty);
        node.announcer.handle_done(None, at(gone_at).mono);
        assert_eq!(node.announcer.len(), 1);
        // Held twice, told once.
        let offline = record("x", "offline", gone_at, 5_002);
        assert_eq!(
            node.put(5_000 + SETTLE_MS),
            Some(("/v1/presence/x".into(), offline))
        );
        node.announcer.handle_done(None, at(5_000 + SETTLE_MS).mono);
        assert!(node.announcer.is_empty());
    }

    #[test]
    fn a_request_that_was_not_answered_in_time_is_an_outage() {
        let empty = Some(("/v1/presence".into(), "{\"presence\":[]}".into()));
        for (failed_after_ms, next) in [(OUTAGE_MS, empty), (100, None)] {
            let mut node = Node::new();
            node.beat("x", 2_000);
            let first = node.put(2_000);
            node.announcer
                .handle_failure(at(2_000 + failed_after_ms).mono);
            // Refused at once: it is told again as it was.
            assert_eq!(node.put(2_200 + failed_after_ms), next.or(first));
        }
    }

    #[test]
    fn a_change_under_way_is_told_again() {
        let mut node = Node::new();
        node.beat("x", 2_000);
        node.put(2_000).unwrap();
        node.look(Slot::new(0), 5_000);
        node.announcer.handle_done(None, at(5_000).mono);
        let (_, body) = node.put(5_000).unwrap();
        assert_eq!(body, record("x", "offline", 5_000, 2_000));
    }

    #[test]
    fn what_is_too_long_is_halved() {
        let mut node = Node::new();
        for user in 0..8 {
            node.beat(&format!("u{user}"), 2_000);
        }
        node.put(2_000).unwrap();
        node.announcer.handle_refusal(true, at(2_000).mono);
        let put = node
            .announcer
            .poll_request(&node.store.presence, UP_TO, at(2_000))
            .unwrap();
        assert_eq!((put.states, node.announcer.len()), (4, 8));
    }

    /// Sends all there is to a node that does not take what names one of `bad`; whom it was told
    /// of, and who was given up.
    fn tell_all(node: &mut Node, bad: &[&str], too_long: bool) -> (Vec<usize>, Vec<u32>) {
        let (mut told, mut given_up) = (Vec::new(), Vec::new());
        let mut now = at(2_000);
        while !node.announcer.is_empty() {
            now.mono = now.mono.max(node.announcer.next());
            let put = node
                .announcer
                .poll_request(&node.store.presence, UP_TO, now)
                .unwrap();
            let body = String::from_utf8(put.body).unwrap();
            if bad.iter().any(|user| body.contains(&format!("\"{user}\""))) {
                node.announcer.handle_refusal(too_long, now.mono);
            } else {
                // One that is empty makes the node miss a number, or feels the way.
                told.extend((put.states > 0).then_some(put.states));
                given_up.extend(node.announcer.handle_done(None, now.mono).map(Slot::index));
            }
        }
        (told, given_up)
    }

    #[test]
    fn a_state_that_is_refused_holds_up_nobody() {
        for too_long in [false, true] {
            let mut node = Node::new();
            for user in 0..6 {
                node.beat(&format!("u{user}"), 2_000);
            }
            let (told, given_up) = tell_all(&mut node, &["u2", "u3"], too_long);
            assert_eq!(given_up, [2, 3]);
            assert_eq!(told.iter().sum::<usize>(), 4, "{told:?}");
            assert!(!node.announcer.is_failing());
            // Of the others later ones go together again, unless they were too many.
            for user in 10..13 {
                node.beat(&format!("u{user}"), 2_000);
            }
            let more = if too_long { vec![1; 3] } else { vec![3] };
            assert_eq!(tell_all(&mut node, &[], too_long), (more, vec![]));
        }
    }

    #[test]
    fn a_node_that_refuses_everything_is_told_everything_later() {
        let mut node = Node::new();
        node.beat("x", 2_000);
        node.beat("y", 2_000);
        let mut ms = 2_000;
        for _ in 0..20 {
            if node.put(ms).is_some() {
                node.announcer.handle_refusal(false, at(ms).mono);
            }
            assert_eq!(node.announcer.len(), 2);
            ms += 100;
        }
        assert!(node.announcer.is_failing());
        let waits = |node: &mut Node| tell_all(node, &[], false).1;
        ms = 9_000;
        while !node.announcer.is_empty() {
            node.beat("x", ms);
            node.beat("y", ms);
            if node.put(ms).is_some() {
                assert_eq!(node.announcer.handle_done(None, at(ms).mono), None);
            }
            ms += 100;
        }
        assert!(waits(&mut node).is_empty());
    }

    /// The numbers of the next request, and up to when it says that everything is told.
    fn next(node: &mut Node, ms: u64) -> (u64, u64, Option<Unix>) {
        let request = node
            .announcer
            .poll_request(&node.store.presence, UP_TO, at(ms));
        let place = request.expect("it is time").place;
        assert_eq!(place.birth, 0xa7);
        (place.previous, place.number, place.up_to)
    }

    #[test]
    fn a_message_has_the_next_number_and_a_lost_answer_the_same() {
        let mut node = Node::new();
        node.beat("x", 2_000);
        assert_eq!(next(&mut node, 2_000), (0, 1, Some(UP_TO)));
        node.announcer.handle_failure(at(2_000).mono);
        node.beat("y", 2_100);
        assert_eq!(next(&mut node, 2_200), (0, 1, Some(UP_TO)));
        node.announcer.handle_done(None, at(2_300).mono);
        let heartbeat = 2_300 + PROBE_MS;
        assert_eq!(next(&mut node, heartbeat), (1, 2, Some(UP_TO)));
    }

    #[test]
    fn what_is_refused_consumes_no_number_and_what_is_passed_over_leaves_a_gap() {
        let mut node = Node::new();
        for user in ["x", "y"] {
            node.beat(user, 2_000);
        }
        assert_eq!(next(&mut node, 2_000), (0, 1, Some(UP_TO)));
        node.announcer.handle_refusal(false, at(2_000).mono);
        assert_eq!(next(&mut node, 2_000), (0, 1, None), "y is held back");
        node.announcer.handle_refusal(false, at(2_000).mono);
        assert_eq!(next(&mut node, 2_000), (0, 1, None), "the way is felt");
        assert!(node.announcer.handle_done(None, at(2_000).mono).is_some());
        assert_eq!(next(&mut node, 2_000), (2, 3, Some(UP_TO)), "y, and a gap");
        node.announcer.handle_done(None, at(2_000).mono);
        // The next gap has to wait, and nobody is told that this is all.
        node.beat("z", 2_001);
        next(&mut node, 2_001);
        node.announcer.handle_refusal(false, at(2_001).mono);
        next(&mut node, 2_001);
        node.announcer.handle_done(None, at(2_001).mono);
        assert_eq!(next(&mut node, 2_001 + PROBE_MS), (4, 5, None));
        assert_eq!(node.announcer.len(), 1);
        node.announcer.handle_done(None, at(2_001 + PROBE_MS).mono);
        assert_eq!(next(&mut node, 2_000 + GAP_MS), (6, 7, Some(UP_TO)));
        node.announcer.handle_done(None, at(2_000 + GAP_MS).mono);
        assert!(node.announcer.is_empty());
    }

    /// The node may have taken it: under the number after it a gap would be none.
    #[test]
    fn what_was_sent_and_not_answered_is_repeated_before_a_gap() {
        let mut node = Node::new();
        let pass_over = |node: &mut Node, ms| {
            node.beat(&format!("u{ms}"), ms);
            next(node, ms);
            node.announcer.handle_refusal(false, at(ms).mono);
            next(node, ms);
            assert!(node.announcer.handle_done(None, at(ms).mono).is_some());
        };
        pass_over(&mut node, 2_000);
        assert_eq!(next(&mut node, 2_000), (2, 3, Some(UP_TO)));
        node.announcer.handle_done(None, at(2_000).mono);
        pass_over(&mut node, 2_001);
        assert_eq!(next(&mut node, 1_999 + GAP_MS), (4, 5, None));
        node.announcer.handle_failure(at(1_999 + GAP_MS).mono);
        let later = 5_000 + GAP_MS;
        assert_eq!(next(&mut node, later), (4, 5, None), "no gap yet");
        node.announcer.handle_done(None, at(later).mono);
        assert_eq!(next(&mut node, later), (6, 7, Some(UP_TO)), "the gap");
    }

    /// Who has the node token may say any number, and the node believes it.
    #[test]
    fn it_goes_on_from_the_number_that_the_node_holds() {
        for number in [77, u64::MAX >> 1, u64::MAX] {
            let mut node = Node::new();
            node.beat("x", 2_000);
            assert_eq!(next(&mut node, 2_000), (0, 1, Some(UP_TO)));
            let of = |birth, number| Some(Held { birth, number });
            node.announcer.handle_done(of(0xa8, 5), at(2_000).mono);
            assert_eq!(next(&mut node, 3_000), (1, 2, Some(UP_TO)), "another's");
            node.announcer.handle_done(of(0xa7, 2), at(3_000).mono);
            assert_eq!(next(&mut node, 4_000), (2, 3, Some(UP_TO)), "its own");
            // Within half of all numbers.
            let number = 3_u64.wrapping_add(number >> 1);
            node.announcer.handle_done(of(0xa7, number), at(4_000).mono);
            let follows = (number, number.wrapping_add(1), Some(UP_TO));
            assert_eq!(next(&mut node, 5_000), follows);
        }
    }
}
