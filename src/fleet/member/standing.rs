//! How a node stands, and how far what it knows can be believed.

use super::part::{Hearing, Part};
use super::settings::{Disagreement, Settings};
use super::{Counts, Local, Member, servers};
use crate::fleet::Life;
use crate::fleet::partition::Partition;
use crate::fleet::ticks::Ticks;
use crate::planted::{self, Planted};
use crate::time::{Mono, Now, Unix};

/// How a node stands in its fleet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Its lease, its subscriptions and what it reads first are not there yet.
    Joining,
    /// In order.
    Member,
    /// Its lease runs out, or a server is out of reach: it serves what it knows.
    Doubtful,
    /// It was taken for dead: it chooses a new life and claims all its users anew.
    Fenced,
    /// It goes: nothing more is taken back, and whoever does not arrive elsewhere goes offline
    /// when its lease has run out.
    Leaving,
}

/// Another node, or this one, as the lanes know it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Which life of it.
    pub life: Life,
    /// What it says of itself.
    pub info: Box<str>,
}

impl<L: Local> Member<L> {
    /// How the node stands.
    pub fn standing(&self, now: Now) -> Standing {
        let lease_ms = u64::from(self.settings.layout.offline_after_ms);
        if self.is_leaving {
            Standing::Leaving
        } else if self.is_fenced {
            Standing::Fenced
        } else if !self.has_joined {
            Standing::Joining
        } else if !self.lanes.holds(lease_ms / 2, now.mono)
            || self.parts.iter().any(|part| self.is_away(part, now.mono))
        {
            Standing::Doubtful
        } else {
            Standing::Member
        }
    }

    /// Why the node takes no part, if it does not.
    pub fn disagreement(&self) -> Option<&Disagreement> {
        self.disagreement.as_ref()
    }

    /// Whether what is known of a partition's users may be out of date.
    pub fn is_stale(&self, partition: Partition, now: Now) -> bool {
        let part = &self.parts[partition.index()];
        !self.is_well(part, now.mono) || part.walk.is_some() || part.missed.is_some()
    }

    /// Of how many partitions that is so.
    pub fn stale_partitions(&self, now: Now) -> u32 {
        let all = self.partitions.all();
        all.filter(|&partition| self.is_stale(partition, now))
            .count() as u32
    }

    /// All that became so before that, by Redis' clocks, has been told. None: a partition is stale.
    pub fn known_up_to(&self, now: Now) -> Option<Unix> {
        let mut up_to = Unix::LATEST;
        for part in &self.parts {
            if self.is_stale(part.id, now) {
                return None;
            }
            up_to = up_to.min(self.servers.heard_up_to(part.server?, now.mono)?);
        }
        Some(up_to)
    }

    /// Whether two lanes have taken a renewal within `ms`: the database is there.
    pub fn is_renewed(&self, ms: u64, now: Now) -> bool {
        self.lanes.holds(ms, now.mono)
    }

    /// Partitions of which nothing can be said now: their server is out of reach, or unknown.
    pub fn partitions_away(&self, now: Now) -> impl Iterator<Item = Partition> {
        let away = move |part: &&Part| self.is_away(part, now.mono);
        self.parts.iter().filter(away).map(|part| part.id)
    }

    /// All nodes that are alive, in the order of their lives.
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// This node's life.
    pub fn life(&self) -> Life {
        self.life
    }

    /// How it is set.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// When it renews its leases and audits partitions.
    pub fn ticks(&self) -> Ticks {
        self.ticks
    }

    /// What has happened so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    pub(super) fn settle_ms(&self) -> u64 {
        match planted::is(Planted::SettleIgnored) {
            true => 0,
            false => self.settings.settle_ms,
        }
    }

    /// Whether others who know better have had the time to speak.
    pub(super) fn has_settled(&self, at: usize, now: Mono) -> bool {
        now >= self.settled_at(at)
    }

    pub(super) fn settled_at(&self, at: usize) -> Mono {
        let part = &self.parts[at];
        let well = part
            .server
            .map_or(Mono::default(), |server| self.servers.well_since(server));
        let well = match well == Mono::default() {
            true => well,
            false => well.plus_ms(self.settle_ms()),
        };
        part.settle_until.max(self.settle_until).max(well)
    }

    /// Whether something may be taken back in a partition.
    pub(super) fn may_take_back(&self, at: usize, now: Mono) -> bool {
        let part = &self.parts[at];
        part.server
            .is_some_and(|server| self.servers.is_prompt(server, now))
            && part.hearing == Hearing::InStep
            && part.walk.is_none()
            && self.has_settled(at, now)
    }

    pub(super) fn is_well(&self, part: &Part, now: Mono) -> bool {
        part.hearing == Hearing::InStep && self.is_served(part, now)
    }

    pub(super) fn is_away(&self, part: &Part, now: Mono) -> bool {
        let is_deaf =
            part.hearing != Hearing::InStep && now.ms_since(part.behind_since) > servers::AWAY_MS;
        is_deaf || !self.is_served(part, now)
    }

    fn is_served(&self, part: &Part, now: Mono) -> bool {
        part.server
            .is_some_and(|server| self.servers.is_well(server, now))
            && !servers::is_refusing(part.refused_at, now)
    }

    /// A server has refused something of a partition, in these words, or answered what it can not
    /// have: until it takes it what is known may be out of date.
    pub(super) fn was_refused(&mut self, at: usize, text: &str, now: Mono) {
        self.counts.refused += 1;
        let part = &mut self.parts[at];
        part.refused_at = Some(now);
        // The last one is an error within the library, by what a key holds.
        let is_its_own = ["WRONGTYPE", "GD", "malformed", "ERR user_function"]
            .iter()
            .any(|code| text.starts_with(code));
        if let Some(server) = part.server.filter(|_| !is_its_own) {
            self.servers.refuses(server, now);
        }
        let key = self.hot_key(at);
        self.tell_refusal(&key, text);
    }

    /// The log is to say what a server refused, of which key.
    pub(super) fn tell_refusal(&mut self, key: &str, text: &str) {
        self.refusal
            .get_or_insert_with(|| format!("{key}: {text}").into());
    }

    /// What a server refused lately, and of which key: the first of it since the last look.
    pub fn take_refusal(&mut self) -> Option<Box<str>> {
        self.refusal.take()
    }
}
