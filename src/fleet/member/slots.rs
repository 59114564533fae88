//! Slots: whose they are, what Redis has been told of each, and what is to be said or read.

use super::claims::{
    ALONE, ASKED, FLYING, GUESSED, HELD, LOST, MARKED, NOWHERE, PROOF, UNTOLD, WENT, bits_of,
    excess, missing,
};
use super::part::Wanted;
use super::{How, Local, Member, State};
use crate::slot::Slot;
use crate::time::{Now, Unix};
use crate::wire::UserBuf;

/// Who came while Redis was away is told as of then if that is no longer ago, in ms: a stream that
/// resumes at another node is told again what changed in the ten seconds before its last id.
const UNTOLD_MS: u64 = 8_000;

impl<L: Local> Member<L> {
    /// Makes room for what is known of each slot up to that one.
    pub(super) fn reach(&mut self, slot: u32) {
        let slots = self
            .local
            .slots()
            .max(slot.saturating_add(1))
            .min(self.local.slots());
        while self.claims.len() < slots {
            let partition = self.partition_of(self.claims.len());
            self.claims.push(partition);
        }
    }

    pub(super) fn partition_of(&self, slot: u32) -> u16 {
        let user = self.local.user(Slot::new(slot));
        user.map_or(NOWHERE, |user| self.partitions.of(user).index() as u16)
    }

    pub(super) fn set_kinds(&mut self, slot: u32, kinds: u16) {
        let by = self.claims.set_kinds(slot, kinds);
        let at = self.claims.partition(slot);
        if at != NOWHERE {
            let part = &mut self.parts[usize::from(at)];
            part.count = part.count.saturating_add_signed(by);
        }
    }

    /// Marks a slot if Redis has been told otherwise of it than may be claimed.
    pub(super) fn evaluate(&mut self, slot: u32, now: Now) {
        let at = self.claims.partition(slot);
        if at == NOWHERE {
            return;
        }
        let at = usize::from(at);
        let own = bits_of(self.local.own(Slot::new(slot), now).kinds);
        let had = self.claims.kinds(slot);
        if own & PROOF != 0 && had & PROOF == 0 && !self.is_well(&self.parts[at], now.mono) {
            self.tell_alone(slot, now);
        }
        if self.claims.has(slot, FLYING | MARKED) {
            return;
        }
        let is_missing = missing(own, had) != 0 || self.claims.has(slot, LOST);
        if is_missing || excess(own, had) != 0 && !self.claims.has(slot, HELD) {
            self.claims.set(slot, MARKED);
            self.parts[at].marks.push_back(slot);
        }
    }

    /// Watchers here are told of who came while Redis cannot be told.
    pub(super) fn tell_alone(&mut self, slot: u32, now: Now) {
        if self.claims.has(slot, ALONE) {
            return;
        }
        self.claims.set(slot, ALONE);
        let at = usize::from(self.claims.partition(slot));
        self.parts[at].alone.push(slot);
        let mirrored = self.local.mirrored(Slot::new(slot));
        if mirrored.is_none() {
            self.claims.set(slot, GUESSED);
        }
        if mirrored.is_none_or(|mirrored| !mirrored.is_here) {
            self.claims.set(slot, UNTOLD);
            self.tell_as_alone(slot, now);
        }
    }

    /// Since when a user is known to be here, for a claim. None: it comes with the claim.
    pub(super) fn known_since(&self, slot: u32, clock: Unix) -> Option<Unix> {
        let mirrored = self.local.mirrored(Slot::new(slot));
        let since = mirrored.filter(|it| it.is_here)?.since?;
        let is_late = self.claims.has(slot, UNTOLD) && clock.ms_since(since) > UNTOLD_MS;
        (!is_late && !self.claims.has(slot, WENT)).then_some(since)
    }

    /// A user is here by what this node knows itself.
    pub(super) fn tell_as_alone(&mut self, slot: u32, now: Now) {
        let at = usize::from(self.claims.partition(slot));
        let own = self.local.own(Slot::new(slot), now);
        // Redis takes no time over that is yet to come by its own clock.
        let server = self.parts[at].server;
        let clock = server.and_then(|server| self.servers.clock(server, now.mono));
        let state = State {
            is_here: true,
            flags: own.flags,
            since: clock.unwrap_or(now.unix),
            last_active: None,
            gone_since: None,
        };
        self.local.told(Slot::new(slot), state, How::Alone, now);
    }

    /// What Redis has of somebody whom this node claims is older than what this node was told: it
    /// has lost something. True: it is said again.
    pub(super) fn is_lost(&mut self, at: usize, slot: u32, since: Unix, now: Now) -> bool {
        let server = self.parts[at].server;
        let clock = server.and_then(|server| self.servers.clock(server, now.mono));
        let known = clock.and_then(|clock| self.known_since(slot, clock));
        let own = bits_of(self.local.own(Slot::new(slot), now).kinds);
        // What is yet to come by its clock it does not take.
        let may = own & PROOF != 0 && known > Some(since) && known <= clock;
        if may {
            self.claims.set(slot, LOST);
        }
        may
    }

    /// A slot is to be read.
    pub(super) fn want(&mut self, slot: u32) {
        let at = self.claims.partition(slot);
        if at != NOWHERE && !self.claims.has(slot, ASKED) {
            self.claims.set(slot, ASKED);
            self.parts[usize::from(at)]
                .asks
                .push_back(Wanted::Slot(slot));
        }
    }

    pub(super) fn want_again(&mut self, at: usize, users: Vec<Wanted>) {
        for wanted in users {
            match wanted {
                Wanted::Slot(slot) => self.want(slot),
                name @ Wanted::Name(_) => self.parts[at].asks.push_back(name),
            }
        }
    }

    pub(super) fn user_of(&self, slot: u32) -> Option<UserBuf> {
        self.local.user(Slot::new(slot)).map(UserBuf::from)
    }
}
