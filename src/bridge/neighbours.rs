//! A node's neighbours in its fleet, as its bridge deals with them: which of them may be homes.
//!
//! Owns how the core's view and the words of other nodes become the list that shards see. Who may
//! be a home is `homing`'s to decide; sockets are the node's.

use std::net::SocketAddr;

use super::databases::Databases;
use super::homing::{Homing, OwnState};
use crate::engine::{Homes, PartitionSet};
use crate::fleet::member::{Member, Standing};
use crate::time::{Mono, Now};
use crate::wire::User;

/// A node whose lease was not renewed for so long does not reach the database, in ms.
const RENEWED_MS: u64 = 3_000;

/// Sends a word to where a node takes datagrams.
pub type Say = Box<dyn FnMut(SocketAddr, User<'_>, Now) + Send>;

/// What one node has to do with the others beside what Redis tells.
pub struct Neighbours {
    homing: Homing,
    homes: Homes,
    own: OwnState,
    say: Say,
    partitions: u16,
}

impl Neighbours {
    /// `udp` is where other nodes reach this one by datagrams. A beat counts for
    /// `offline_after_ms`.
    pub fn new(
        homes: Homes,
        udp: SocketAddr,
        (partitions, offline_after_ms): (u16, u64),
        random: fastrand::Rng,
        say: Say,
        now: Now,
    ) -> Neighbours {
        Neighbours {
            homing: Homing::new(udp, partitions, offline_after_ms, random, now.mono),
            homes,
            own: OwnState::default(),
            say,
            partitions,
        }
    }

    /// How many nodes may be homes, this one among them.
    pub fn homes(&self) -> usize {
        self.homes.load().homes().len()
    }

    pub(super) fn due(&self) -> Mono {
        self.homing.due()
    }

    /// Another node had something to say.
    pub(super) fn hear(&mut self, word: &str, now: Now) {
        if let Some((to, answer)) = self.homing.hear(word, &self.own, now.mono) {
            self.say(to, &answer, now);
        }
    }

    /// Time has passed: questions are asked, and shards see other homes.
    pub(super) fn turn(&mut self, member: &Member<Databases>, is_draining: bool, now: Now) {
        if now.mono < self.homing.due() {
            return;
        }
        self.own = self.state(member, is_draining, now);
        let alive = member.peers().iter();
        let alive = alive.filter_map(|peer| udp_of(&peer.info));
        for (to, question) in self.homing.ask(alive, now.mono) {
            self.say(to, &question, now);
        }
        if let Some(list) = self.homing.list(&self.own, now.mono) {
            self.homes.store(list);
        }
    }

    fn state(&self, member: &Member<Databases>, is_draining: bool, now: Now) -> OwnState {
        let standing = member.standing(now);
        let is_leaving = is_draining || standing == Standing::Leaving;
        let is_member = matches!(standing, Standing::Member | Standing::Doubtful);
        let away = member.partitions_away(now).map(|away| away.index());
        OwnState {
            is_home: is_member && !is_leaving && member.is_renewed(RENEWED_MS, now),
            is_leaving,
            away: PartitionSet::new(away, self.partitions),
        }
    }

    fn say(&mut self, to: SocketAddr, word: &str, now: Now) {
        match User::from_text(word) {
            Ok(word) => (self.say)(to, word, now),
            Err(_) => debug_assert!(false, "{word} is too long for a datagram's entry"),
        }
    }
}

/// Where a node takes datagrams, by what it says of itself in the lanes. None: that is no address.
fn udp_of(info: &str) -> Option<SocketAddr> {
    info.split(' ').nth(1)?.parse().ok()
}
