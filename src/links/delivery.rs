//! Do a node's beats arrive there? UDP does not say, so the answers to questions are looked at: a
//! beat that arrived is the user's last sign of life, or an earlier one than that.
//!
//! Owns which beat is looked for, how many in a row did not arrive and of how many users, and the
//! datagrams that go over the link's connection meanwhile. A user whom the node does not store says
//! nothing of the link. Without a kernel: answers are values, time is an argument.

use std::collections::VecDeque;

use super::Answerer;
use crate::engine::{Datagrams, SAMPLE_MS, Sample};
use crate::time::{Mono, Unix};
use crate::wire::beat::{BUNDLE_DATAGRAMS_MAX, DATAGRAM_BYTES_MAX, write_bundled};
use crate::wire::record::Told;

/// Time that a beat has to arrive, in ms: it waits to be sent, and the node's shard may be busy.
const ARRIVAL_MS: u64 = 700;
const _: () = assert!(ARRIVAL_MS + 200 < SAMPLE_MS, "an answer comes within it");
/// So many beats in a row that did not arrive are no loss that a network has now and then; so many
/// that did are no luck.
const IN_A_ROW: u32 = 3;
/// So many of one user alone, where there is nobody else to look at.
const IN_A_ROW_OF_ONE: u32 = 2 * IN_A_ROW;
/// Most datagrams that wait for the connection: 16 MiB. Beyond, the newest are lost.
const WAITING_MAX: usize = (16 << 20) / DATAGRAM_BYTES_MAX;

/// What a node says of one whose beat was looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Heard {
    /// None: it has never heard of them.
    pub(super) last_active: Option<Unix>,
    /// It has refused new users lately: one whom it has never heard of may be among them.
    pub(super) refuses_new: bool,
}

impl Heard {
    /// As one is told who is a node.
    pub(super) fn of(told: Option<Told>, answerer: Answerer) -> Heard {
        Heard {
            last_active: told.and_then(|told| told.heard.or(told.last_active)),
            refuses_new: answerer.refuses_new,
        }
    }
}

/// What an answer says of the beat that was looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    Arrived,
    /// And beats arrive again: they need not go over the connection.
    Again,
    Lost,
    /// It may have arrived, of one whom the node does not store.
    Unstored,
    /// It was lost, and so are all: they must go over the connection.
    Gone,
}

/// The beats to one node.
#[derive(Debug)]
pub(super) struct Delivery {
    waiting: Option<Sample>,
    /// Asked about now.
    asked: Option<Sample>,
    /// Beats looked for in a row: those that were lost, or that arrived since.
    lost: u32,
    arrived: u32,
    /// Whose was lost first of them, and whether others' were too.
    unheard: Option<Box<str>>,
    of_several: bool,
    by_connection: bool,
    /// Those that wait for the connection, in the order in which they were sealed.
    bridged: VecDeque<Box<[u8]>>,
    /// Those of the request under way.
    sent: Vec<Box<[u8]>>,
    per_request: usize,
}

impl Delivery {
    /// Datagrams arrive until an answer says that they do not.
    pub(super) fn new() -> Delivery {
        Delivery {
            waiting: None,
            asked: None,
            lost: 0,
            arrived: 0,
            unheard: None,
            of_several: false,
            by_connection: false,
            bridged: VecDeque::new(),
            sent: Vec::new(),
            per_request: BUNDLE_DATAGRAMS_MAX,
        }
    }

    /// A beat to look for. One at a time is enough.
    pub(super) fn look_for(&mut self, sample: Sample) {
        self.waiting.get_or_insert(sample);
    }

    /// When there is somebody to ask about.
    pub(super) fn due(&self) -> Mono {
        let waiting = self.waiting.as_ref();
        waiting.map_or(Mono::NEVER, |sample| sample.given_at.plus_ms(ARRIVAL_MS))
    }

    /// Whom to ask about, if a beat of theirs had the time to arrive.
    pub(super) fn poll_sample(&mut self, now: Mono) -> Option<&str> {
        let due = self.due() <= now;
        self.asked = self.waiting.take_if(|_| due);
        self.asked.as_ref().map(|sample| &*sample.user)
    }

    /// The question under way asks about one.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// The node has not said.
    pub(super) fn unanswered(&mut self) {
        self.asked = None;
    }

    /// What the node says. None: nobody was asked about, or the answer is so late that it may speak
    /// of a beat that has come in another way.
    pub(super) fn answered(&mut self, heard: Heard, now: Mono) -> Option<(Found, Box<str>)> {
        let sample = self.asked.take()?;
        let user = sample.user;
        if heard.last_active >= Some(sample.sent_at) {
            if self.by_connection && now >= sample.given_at.plus_ms(SAMPLE_MS) {
                return None;
            }
            (self.lost, self.arrived) = (0, self.arrived.saturating_add(1));
            (self.unheard, self.of_several) = (None, false);
            let again = self.by_connection && self.arrived >= IN_A_ROW;
            self.by_connection &= !again;
            let found = if again { Found::Again } else { Found::Arrived };
            return Some((found, user));
        }
        if heard.last_active.is_none() && heard.refuses_new {
            return Some((Found::Unstored, user));
        }
        (self.lost, self.arrived) = (self.lost.saturating_add(1), 0);
        self.of_several |= self.unheard.get_or_insert_with(|| user.clone()) != &user;
        let enough = match self.of_several {
            true => IN_A_ROW,
            false => IN_A_ROW_OF_ONE,
        };
        let gone = !self.by_connection && self.lost >= enough;
        self.by_connection |= gone;
        let found = if gone { Found::Gone } else { Found::Lost };
        Some((found, user))
    }

    /// Datagrams for the connection. Returns how many of them are lost for want of room.
    pub(super) fn bridge(&mut self, datagrams: &Datagrams) -> usize {
        let room = WAITING_MAX.saturating_sub(self.bridged.len());
        self.bridged
            .extend(datagrams.iter().take(room).map(Box::from));
        datagrams.len().saturating_sub(room)
    }

    /// The body of the next request that brings datagrams, and how many. None: there are none.
    pub(super) fn poll_bundle(&mut self) -> Option<(Vec<u8>, usize)> {
        let datagrams = self.bridged.len().min(self.per_request);
        self.sent = self.bridged.drain(..datagrams).collect();
        let mut body = Vec::new();
        for datagram in &self.sent {
            write_bundled(datagram, &mut body);
        }
        (datagrams > 0).then_some((body, datagrams))
    }

    /// The request was refused for what is in it: it is made shorter, or the one is passed over.
    pub(super) fn bundle_refused(&mut self) {
        let sent = std::mem::take(&mut self.sent);
        if sent.len() > 1 {
            self.per_request = sent.len() / 2;
            let back = sent.into_iter().rev();
            back.for_each(|datagram| self.bridged.push_front(datagram));
        }
    }

    pub(super) fn has_bundle(&self) -> bool {
        !self.bridged.is_empty()
    }

    /// Datagrams do not arrive.
    pub(super) fn is_by_connection(&self) -> bool {
        self.by_connection
    }

    /// The node does not answer: what was to be told it is late.
    pub(super) fn forget(&mut self) {
        (self.waiting, self.asked) = (None, None);
        (self.bridged, self.sent) = (VecDeque::new(), Vec::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::beat::read_bundle;

    fn at(ms: u64) -> Mono {
        Mono::default().plus_ms(ms)
    }

    /// A beat of this user that left at `ms`, looked for when it had the time to arrive, and what
    /// its node then knows.
    fn look_at(delivery: &mut Delivery, user: &str, ms: u64, heard: Heard) -> Found {
        delivery.look_for(Sample {
            user: user.into(),
            sent_at: Unix::from_ms(ms),
            given_at: at(ms),
        });
        assert_eq!(delivery.poll_sample(at(ms + ARRIVAL_MS - 1)), None);
        assert_eq!(delivery.poll_sample(at(ms + ARRIVAL_MS)), Some(user));
        let answered = delivery.answered(heard, at(ms + 800));
        let (found, told) = answered.expect("it was asked");
        assert_eq!(&*told, user);
        found
    }

    fn active(ms: u64) -> Heard {
        Heard {
            last_active: Some(Unix::from_ms(ms)),
            refuses_new: false,
        }
    }

    /// The same of one of several in turn.
    fn look(delivery: &mut Delivery, ms: u64, last_active_ms: u64) -> Found {
        let user = ["ann", "bob", "carol"][(ms / 1_000 % 3) as usize];
        look_at(delivery, user, ms, active(last_active_ms))
    }

    #[test]
    fn what_a_network_loses_now_and_then_goes_again_and_says_nothing() {
        let mut delivery = Delivery::new();
        for ms in [10_000, 20_000, 30_000] {
            assert_eq!(look(&mut delivery, ms, ms - 1), Found::Lost);
            assert_eq!(look(&mut delivery, ms + 2_000, ms + 2_000), Found::Arrived);
            assert!(!delivery.is_by_connection());
        }
    }

    #[test]
    fn three_in_a_row_are_gone_and_three_in_a_row_are_back() {
        let mut delivery = Delivery::new();
        let found = [(0, 1_000), (0, 2_000), (0, 3_000), (0, 4_000)];
        let found = found.map(|(active, ms)| look(&mut delivery, ms, active));
        assert_eq!(found, [Found::Lost, Found::Lost, Found::Gone, Found::Lost]);
        assert!(delivery.is_by_connection());
        let found = [5_000, 6_000, 7_000, 8_000].map(|ms| look(&mut delivery, ms, ms + 3));
        let again = [Found::Arrived, Found::Arrived, Found::Again, Found::Arrived];
        assert_eq!(found, again);
        assert!(!delivery.is_by_connection());
    }

    #[test]
    fn one_user_alone_is_looked_at_twice_as_often_before_a_link_is_doubted() {
        let mut delivery = Delivery::new();
        let mut look = |user, ms| look_at(&mut delivery, user, ms, active(0));
        for ms in [1_000, 2_000, 3_000, 4_000, 5_000] {
            assert_eq!(look("bob", ms), Found::Lost);
        }
        assert_eq!(look("bob", 6_000), Found::Gone);
        // Whose beats arrived once stands for nobody who is not heard afterwards.
        let mut delivery = Delivery::new();
        let mut look = |user, ms, active_ms| look_at(&mut delivery, user, ms, active(active_ms));
        assert_eq!(look("ann", 1_000, 0), Found::Lost);
        assert_eq!(look("bob", 2_000, 0), Found::Lost);
        assert_eq!(look("bob", 3_000, 3_000), Found::Arrived);
        for ms in [4_000, 5_000, 6_000] {
            assert_eq!(look("bob", ms, 0), Found::Lost);
        }
        assert_eq!(look("ann", 7_000, 0), Found::Gone);
    }

    #[test]
    fn whom_a_node_does_not_store_says_nothing_of_the_link() {
        let mut delivery = Delivery::new();
        let unstored = Heard {
            last_active: None,
            refuses_new: true,
        };
        for ms in 1..=20 {
            let user = ["dan", "erin"][ms as usize % 2];
            let found = look_at(&mut delivery, user, ms * 1_000, unstored);
            assert_eq!(found, Found::Unstored);
        }
        assert!(!delivery.is_by_connection());
        // A node that has room would have stored them, and knows who was stored before.
        let never = Heard {
            refuses_new: false,
            ..unstored
        };
        assert_eq!(look_at(&mut delivery, "dan", 21_000, never), Found::Lost);
        let known = Heard {
            last_active: Some(Unix::from_ms(0)),
            ..unstored
        };
        assert_eq!(look_at(&mut delivery, "ann", 22_000, known), Found::Lost);
        assert_eq!(look_at(&mut delivery, "dan", 23_000, never), Found::Gone);
        // Nor does it keep the link from being trusted again.
        let mut found = [24_000, 25_000].map(|ms| look(&mut delivery, ms, ms));
        assert_eq!(found, [Found::Arrived; 2]);
        look_at(&mut delivery, "dan", 26_000, unstored);
        found[0] = look(&mut delivery, 27_000, 27_000);
        assert_eq!(found[0], Found::Again);
    }

    #[test]
    fn what_is_known_later_may_have_come_over_the_connection() {
        let mut delivery = Delivery::new();
        for ms in [1_000, 2_000, 3_000] {
            look(&mut delivery, ms, 0);
        }
        let (sent_at, given_at) = (Unix::from_ms(4_000), at(4_000));
        let user = "bob".into();
        delivery.look_for(Sample {
            user,
            sent_at,
            given_at,
        });
        delivery.poll_sample(at(4_900));
        assert_eq!(delivery.answered(active(4_000), at(5_000)), None);
        assert!(delivery.is_by_connection());
    }

    #[test]
    fn one_is_looked_for_at_a_time_and_none_of_a_node_that_does_not_answer() {
        let mut delivery = Delivery::new();
        let sample = |user: &str, ms| Sample {
            user: user.into(),
            sent_at: Unix::from_ms(ms),
            given_at: at(ms),
        };
        delivery.look_for(sample("a", 0));
        delivery.look_for(sample("b", 1));
        assert_eq!(delivery.poll_sample(at(ARRIVAL_MS)), Some("a"));
        delivery.unanswered();
        assert_eq!(delivery.answered(active(0), at(ARRIVAL_MS)), None);
        delivery.look_for(sample("c", 2_000));
        delivery.bridge(&Datagrams::from_iter([&b"d"[..]]));
        delivery.forget();
        assert_eq!(delivery.poll_sample(at(9_000)), None);
        assert!(!delivery.has_bundle());
    }

    #[test]
    fn bundles_that_are_refused_are_made_shorter_and_one_is_passed_over() {
        let mut delivery = Delivery::new();
        let datagrams = [&b"a"[..], b"b", b"c", b"d"];
        assert_eq!(delivery.bridge(&Datagrams::from_iter(datagrams)), 0);
        let mut sent = Vec::new();
        while let Some((body, datagrams)) = delivery.poll_bundle() {
            assert_eq!(read_bundle(&body).map(|all| all.len()), Ok(datagrams));
            sent.push(datagrams);
            delivery.bundle_refused();
        }
        assert_eq!(sent, [4, 2, 1, 1, 1, 1]);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut delivery = Delivery::new();
        let many = vec![&b"x"[..]; WAITING_MAX];
        assert_eq!(delivery.bridge(&Datagrams::from_iter(many)), 0);
        assert_eq!(delivery.bridge(&Datagrams::from_iter([&b"y"[..], b"z"])), 2);
    }
}
