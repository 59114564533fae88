//! Commands under way, and what comes of them.
//!
//! Owns who is told of an answer, and of one that never comes.

use super::forget::Slice;
use super::part::Wanted;
use super::{Local, Member};
use crate::fleet::Life;
use crate::fleet::calls::Call;
use crate::fleet::traffic::{Command, Failed, Reply, Server, Tag, To};
use crate::time::{Mono, Now};
use crate::wire::UserBuf;

/// A command under way.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) what: Asked,
    /// Whose budget it is part of.
    pub(super) server: Option<Server>,
    pub(super) life: Life,
    pub(super) sent: Mono,
}

/// What a reply is to.
#[derive(Debug)]
pub(super) enum Asked {
    Layout,
    /// A lane's clock.
    LaneTime(usize),
    Lane(usize),
    Look {
        at: usize,
        /// No call of this life was under way.
        is_quiet: bool,
        /// Messages may have been missed.
        asks_ends: bool,
    },
    Ring(usize),
    Read {
        at: usize,
        users: Vec<Wanted>,
    },
    Vouch(usize),
    Correct,
    /// Who may be forgotten, if nothing else is known of them.
    Slice(Slice),
    /// What else is known of them.
    Old {
        at: usize,
        users: Vec<UserBuf>,
    },
    Fence(usize),
    Scan(usize),
    Reap(usize, usize),
}

impl<L: Local> Member<L> {
    /// Puts a command on its way. False: as much is under way to that server as may be.
    pub(super) fn send(
        &mut self,
        asked: Asked,
        to: To,
        server: Server,
        calls: Vec<Call>,
        now: Now,
    ) -> bool {
        match to {
            To::Partition(partition) if !self.takes(partition.index(), server) => return false,
            To::Partition(_) => {}
            To::Key(_) => self.servers.begin(server),
        }
        self.fly(asked, to, Some(server), calls, now);
        true
    }

    /// Whether a partition may send one command more. False: it waits for its turn.
    pub(super) fn has_room(&mut self, at: usize, server: Server) -> bool {
        let has_room = self.parts[at].turn == Some(server) || self.servers.has_room(server);
        if !has_room {
            self.servers.wait(server, at);
        }
        has_room
    }

    fn takes(&mut self, at: usize, server: Server) -> bool {
        let takes = self.has_room(at, server);
        if takes
            && self.parts[at]
                .turn
                .take_if(|turn| *turn == server)
                .is_none()
        {
            self.servers.begin(server);
        }
        takes
    }

    /// A command is done, or the turn of one was not taken: whoever waits has its room.
    pub(super) fn give_on(&mut self, server: Server, now: Now) {
        let Some(next) = self.servers.done(server) else {
            return;
        };
        let had = self.parts[next].turn.replace(server);
        self.schedule(next, now.mono);
        if let Some(had) = had {
            // It has moved from one server to another.
            self.give_on(had, now);
        }
    }

    pub(super) fn fly(
        &mut self,
        what: Asked,
        to: To,
        server: Option<Server>,
        calls: Vec<Call>,
        now: Now,
    ) {
        self.next_tag += 1;
        let tag = Tag(self.next_tag);
        let flight = Flight {
            what,
            server,
            life: self.life,
            sent: now.mono,
        };
        self.counts.commands += 1;
        self.flights.insert(tag, flight);
        self.outbox.push_back(Command { tag, to, calls });
    }

    pub(super) fn land(&mut self, tag: Tag, now: Now) -> Option<Flight> {
        let flight = self.flights.remove(&tag)?;
        if let Some(server) = flight.server {
            self.give_on(server, now);
        }
        Some(flight)
    }

    pub(super) fn answered(&mut self, flight: Flight, server: Server, replies: &[Reply], now: Now) {
        match flight.what {
            Asked::Layout => self.layout_read(replies, now),
            Asked::LaneTime(lane) => self.lane_told(lane, server, replies, now),
            Asked::Lane(lane) => self.renewed(lane, server, &flight, replies, now),
            Asked::Look {
                at,
                is_quiet,
                asks_ends,
            } => {
                self.arrive(at, server, now);
                let is_quiet = is_quiet && flight.life == self.life;
                self.looked(at, server, (is_quiet, asks_ends), replies, now);
                self.step(at, now);
            }
            Asked::Ring(at) => {
                self.ring_read(at, server, replies, now);
                self.step(at, now);
            }
            Asked::Read { at, users } => {
                self.parts[at].reads -= 1;
                let is_of_this_life = flight.life == self.life;
                self.was_read(at, server, users, is_of_this_life, replies, now);
                self.step(at, now);
            }
            Asked::Vouch(at) => {
                self.arrive(at, server, now);
                if flight.life == self.life {
                    self.vouched(at, replies, now);
                }
                self.step(at, now);
            }
            Asked::Correct => {}
            Asked::Slice(slice) => self.slice_read(slice, replies, now),
            Asked::Old { at, users } => self.old_read(at, users, replies, now),
            Asked::Fence(at) => {
                self.fenced(at, server, replies, now);
                self.step(at, now);
            }
            Asked::Scan(at) => {
                self.scanned(at, replies, now);
                self.step(at, now);
            }
            Asked::Reap(at, users) => {
                self.reaped(at, users, replies, now);
                self.step(at, now);
            }
        }
    }

    pub(super) fn failed(&mut self, flight: Flight, why: Failed, now: Now) {
        let soon = now.mono.plus_ms(100 + self.random.u64(..200));
        match flight.what {
            Asked::Layout => {
                self.is_layout_asked = false;
                self.layout_at = soon;
            }
            Asked::LaneTime(lane) | Asked::Lane(lane) => {
                self.lanes.all[lane].is_asked = false;
                self.lanes.all[lane].next_at = soon;
            }
            Asked::Look { at, asks_ends, .. } => {
                self.parts[at].ends.are_due |= asks_ends;
                self.parts[at].is_looking = false;
                self.parts[at].look_at = soon;
                self.schedule(at, soon);
            }
            Asked::Ring(at) => {
                if let Some(missed) = &mut self.parts[at].missed {
                    missed.is_asked = false;
                }
                self.schedule(at, soon);
            }
            Asked::Read { at, users } => {
                self.parts[at].reads -= 1;
                self.want_again(at, users);
                self.schedule(at, soon);
            }
            Asked::Vouch(at) => {
                if flight.life == self.life {
                    self.unsaid(at, why == Failed::Lost, now);
                }
                let retry_at = self.parts[at].retry_at;
                self.schedule(at, retry_at);
            }
            Asked::Correct | Asked::Slice(_) | Asked::Old { .. } => {}
            Asked::Fence(at) | Asked::Scan(at) | Asked::Reap(at, _) => {
                self.parts[at].reap = None;
                self.parts[at].reap_at = now.mono.plus_ms(1_000);
                self.schedule(at, now.mono.plus_ms(1_000));
            }
        }
    }
}
