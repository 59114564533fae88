//! Beats and goodbyes on their way to their users' homes, as one shard has them.
//!
//! Owns them until their datagrams are sealed. A datagram has one time for all its users, and of
//! what two devices of a user say the order of sending counts: so what was sent in different steps
//! of the clock goes apart. Bounded: so many datagrams are open for a home, and none for longer
//! than [`LINGER_MS`].

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use super::parted::{Goodbye, Parted};
use super::{HomeList, Homes};
use crate::engine::upstream::{Datagrams, Outbound};
use crate::time::{Mono, Unix};
use crate::wire::User;
use crate::wire::beat::{Flags, FleetKey, Writer};

/// Longest time that a beat of somebody who is told as online waits, in ms.
const LINGER_MS: u64 = 200;
/// The same of somebody who may have just come: others wait to be told.
const SOON_MS: u64 = 3;
/// Open datagrams for one home; beyond, the oldest goes as it is.
const OPEN_MAX: usize = 32;
/// Time that counts as one when beats and goodbyes are put in order, in ms, as a power of two.
const STEP_BITS: u32 = crate::presence::SENT_STEP_BITS;

/// What one shard has for other nodes.
#[derive(Debug)]
pub(in crate::engine) struct Passing {
    homes: Homes,
    list: Arc<HomeList>,
    lanes: Vec<Lane>,
    sealed: VecDeque<(SocketAddr, Datagrams)>,
    parted: Parted,
    /// When the next open datagram is due.
    due: Mono,
}

#[derive(Debug, Default)]
struct Lane {
    open: Vec<Open>,
    full: Datagrams,
}

#[derive(Debug)]
struct Open {
    flags: Flags,
    step: u64,
    writer: Writer,
    due: Mono,
}

/// What is passed on of one user.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct Said<'u> {
    pub(in crate::engine) user: User<'u>,
    pub(in crate::engine) flags: Flags,
    /// By its sender's clock.
    pub(in crate::engine) sent_at: Unix,
    /// Others wait to be told.
    pub(in crate::engine) is_news: bool,
}

impl Passing {
    pub(in crate::engine) fn new(homes: Homes) -> Passing {
        let list = homes.load();
        Passing {
            lanes: lanes_of(&list),
            homes,
            list,
            sealed: VecDeque::new(),
            parted: Parted::default(),
            due: Mono::NEVER,
        }
    }

    /// Who is whose home in this turn.
    pub(in crate::engine) fn list(&self) -> &Arc<HomeList> {
        &self.list
    }

    /// How long a beat may wait at another node before it is passed on to this one, in ms.
    pub(in crate::engine) fn lingers_ms(&self) -> u64 {
        match self.list.passes_on() {
            true => LINGER_MS,
            false => 0,
        }
    }

    /// What the node's shards share.
    pub(in crate::engine) fn shared(&self) -> &Homes {
        &self.homes
    }

    /// Between two turns: true if the homes are others now. What is open goes to those of before.
    pub(in crate::engine) fn take_list(&mut self, key: &FleetKey) -> bool {
        let Some(newer) = self.homes.newer(&self.list) else {
            return false;
        };
        self.seal_all(key);
        self.lanes = lanes_of(&newer);
        self.list = newer;
        true
    }

    /// Something for the home with this index.
    pub(in crate::engine) fn push(
        &mut self,
        home: usize,
        said: Said<'_>,
        key: &FleetKey,
        now: Mono,
    ) {
        let Some(lane) = self.lanes.get_mut(home) else {
            return;
        };
        let linger_ms = if said.is_news { SOON_MS } else { LINGER_MS };
        let due = now.plus_ms(linger_ms);
        let (flags, step) = (said.flags.passed_on(), said.sent_at.ms() >> STEP_BITS);
        // Twice at most: an empty datagram has room for any user.
        loop {
            let is_same = |open: &Open| open.step == step && open.flags == flags;
            let at = lane.open.iter().position(is_same);
            let at = at.unwrap_or_else(|| lane.begin(flags, step, said.sent_at, key));
            let open = &mut lane.open[at];
            if open.writer.push(said.user) {
                open.due = open.due.min(due);
                self.due = self.due.min(due);
                return;
            }
            lane.seal(at, key);
            // It is there to be taken.
            self.due = Mono::default();
        }
    }

    /// All that is open for a home goes in this turn, so that nothing said later overtakes it.
    pub(in crate::engine) fn hurry(&mut self, home: usize, now: Mono) {
        let lane = self.lanes.get_mut(home);
        for open in lane.into_iter().flat_map(|lane| &mut lane.open) {
            open.due = now;
            self.due = now;
        }
    }

    /// All that is open is sealed by this key, with which it was begun.
    pub(in crate::engine) fn seal_all(&mut self, key: &FleetKey) {
        self.seal_due(key, Mono::NEVER);
    }

    /// A goodbye that another node has passed on is to be looked at once more in a while.
    pub(in crate::engine) fn look_again(&mut self, goodbye: Goodbye, now: Mono) {
        self.parted.push(goodbye, now);
    }

    /// One that is to be looked at once more now.
    pub(in crate::engine) fn poll_parted(&mut self, now: Mono) -> Option<Goodbye> {
        self.parted.poll(now)
    }

    /// When [`Passing::poll`] or [`Passing::poll_parted`] has something.
    pub(in crate::engine) fn next(&self) -> Mono {
        match self.sealed.is_empty() {
            true => self.due.min(self.parted.due()),
            false => Mono::default(),
        }
    }

    /// What is to be sent now.
    pub(in crate::engine) fn poll(&mut self, key: &FleetKey, now: Mono) -> Option<Outbound> {
        if self.sealed.is_empty() && now >= self.due {
            self.seal_due(key, now);
        }
        let (to, datagrams) = self.sealed.pop_front()?;
        Some(Outbound::Homeward { to, datagrams })
    }

    fn seal_due(&mut self, key: &FleetKey, now: Mono) {
        self.due = Mono::NEVER;
        for (lane, home) in self.lanes.iter_mut().zip(self.list.homes()) {
            while let Some(at) = lane.open.iter().position(|open| open.due <= now) {
                lane.seal(at, key);
            }
            if !lane.full.is_empty() {
                let full = std::mem::take(&mut lane.full);
                self.sealed.push_back((home.udp, full));
            }
            let due = lane.open.iter().map(|open| open.due).min();
            self.due = self.due.min(due.unwrap_or(Mono::NEVER));
        }
    }
}

impl Lane {
    /// Begins a datagram; returns its place.
    fn begin(&mut self, flags: Flags, step: u64, sent_at: Unix, key: &FleetKey) -> usize {
        if self.open.len() >= OPEN_MAX {
            self.seal(0, key);
        }
        self.open.push(Open {
            flags,
            step,
            writer: Writer::of(flags, sent_at, key),
            due: Mono::NEVER,
        });
        self.open.len() - 1
    }

    fn seal(&mut self, at: usize, key: &FleetKey) {
        // In order: the first is the oldest.
        let mut open = self.open.remove(at);
        self.full.push(open.writer.seal_in_place(key));
    }
}

fn lanes_of(list: &HomeList) -> Vec<Lane> {
    list.homes().iter().map(|_| Lane::default()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Home, PartitionSet};
    use super::*;
    use crate::wire::beat::{Keys, open};

    const NOON: u64 = 1_800_000_000_000;

    fn udp(node: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, node], 8081))
    }

    fn key() -> FleetKey {
        FleetKey::new([7; 32])
    }

    fn homes(nodes: &[u8]) -> HomeList {
        let home = |node: &u8| Home {
            udp: udp(*node),
            away: PartitionSet::default(),
        };
        HomeList::new(nodes.iter().map(home).collect(), udp(9), 64)
    }

    fn passing(nodes: &[u8]) -> Passing {
        let shared = Homes::default();
        shared.store(homes(nodes));
        Passing::new(shared)
    }

    fn at(ms: u64) -> Mono {
        Mono::default().plus_ms(ms)
    }

    fn said(user: &str, flags: Flags, sent: u64, is_news: bool) -> Said<'_> {
        Said {
            user: User::from_text(user).unwrap(),
            flags,
            sent_at: Unix::from_ms(NOON + sent),
            is_news,
        }
    }

    /// Who was sent where, sent when, in what way.
    fn sent(passing: &mut Passing, ms: u64) -> Vec<(SocketAddr, u64, Flags, Vec<String>)> {
        let keys = Keys::single(key());
        let mut all = Vec::new();
        while let Some(Outbound::Homeward { to, datagrams }) = passing.poll(&key(), at(ms)) {
            for datagram in datagrams.iter() {
                let beats = open(datagram, &keys, Unix::from_ms(NOON), 60_000).unwrap();
                let users = beats.users().map(|user| user.as_str().to_owned()).collect();
                all.push((to, beats.sent_at.ms() - NOON, beats.flags, users));
            }
        }
        all
    }

    fn names(users: &[&str]) -> Vec<String> {
        users.iter().map(|user| (*user).to_owned()).collect()
    }

    #[test]
    fn beats_wait_to_be_many_and_whoever_may_have_come_does_not() {
        let mut passing = passing(&[1, 2]);
        let beat = Flags::BEAT.passed_on();
        passing.push(0, said("a", Flags::BEAT, 0, false), &key(), at(0));
        passing.push(0, said("b", Flags::BEAT, 15, false), &key(), at(20));
        passing.push(1, said("c", Flags::BEAT, 0, false), &key(), at(30));
        assert_eq!(passing.next(), at(200));
        assert_eq!(sent(&mut passing, 199), []);
        assert_eq!(
            sent(&mut passing, 200),
            [(udp(1), 0, beat, names(&["a", "b"]))]
        );
        passing.push(1, said("d", Flags::BEAT, 3, true), &key(), at(201));
        assert_eq!(passing.next(), at(204));
        assert_eq!(
            sent(&mut passing, 204),
            [(udp(2), 0, beat, names(&["c", "d"]))]
        );
        assert_eq!(passing.next(), Mono::NEVER);
    }

    #[test]
    fn what_was_said_otherwise_or_in_another_step_goes_apart() {
        let mut passing = passing(&[1]);
        let idle = Flags::BEAT.with_idle(true);
        for (user, flags, sent) in [
            ("a", Flags::BEAT, 0),
            ("a", Flags::LEAVE, 15),
            ("b", idle, 7),
            ("c", Flags::BEAT, 16),
            ("d", Flags::BEAT, 1),
        ] {
            passing.push(0, said(user, flags, sent, false), &key(), at(0));
        }
        passing.hurry(0, at(1));
        let expected = [
            (0, Flags::BEAT, names(&["a", "d"])),
            (15, Flags::LEAVE, names(&["a"])),
            (7, idle, names(&["b"])),
            (16, Flags::BEAT, names(&["c"])),
        ];
        let expected =
            expected.map(|(sent, flags, users)| (udp(1), sent, flags.passed_on(), users));
        assert_eq!(sent(&mut passing, 1), expected);
    }

    #[test]
    fn what_is_open_is_bounded() {
        let mut passing = passing(&[1]);
        for step in 0..100 {
            passing.push(0, said("a", Flags::BEAT, 16 * step, false), &key(), at(0));
        }
        assert_eq!(passing.lanes[0].open.len(), OPEN_MAX);
        let long = "u".repeat(100);
        for _ in 0..14 {
            passing.push(0, said(&long, Flags::BEAT, 16 * 99, false), &key(), at(0));
        }
        // One is full, and need not wait.
        assert_eq!(passing.next(), Mono::default());
        assert_eq!(sent(&mut passing, 0).len(), 100 - OPEN_MAX + 1);
        assert_eq!(sent(&mut passing, 200).len(), OPEN_MAX);
    }

    #[test]
    fn with_other_homes_what_waits_goes_where_it_was_meant_to_go() {
        let mut passing = passing(&[1, 2]);
        passing.push(1, said("a", Flags::BEAT, 0, false), &key(), at(0));
        assert!(!passing.take_list(&key()));
        passing.shared().store(homes(&[1]));
        assert!(passing.take_list(&key()));
        assert_eq!(passing.next(), Mono::default());
        let beat = Flags::BEAT.passed_on();
        assert_eq!(sent(&mut passing, 0), [(udp(2), 0, beat, names(&["a"]))]);
        // Nobody is there any more.
        passing.push(1, said("a", Flags::BEAT, 0, true), &key(), at(0));
        assert_eq!(sent(&mut passing, 500), []);
    }
}
