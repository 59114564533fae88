//! Goodbyes: whose they are, and what becomes of them.
//!
//! Owns the rule that a goodbye is one device's: nobody goes offline by it who holds a stream. What
//! it does to a stamp, and how it is ordered against beats, is `presence/beats.rs`'. Costs one load
//! beside that.

use std::sync::Arc;

use super::calls::Errands;
use super::errand::{Asker, Goodbye, PutOff, Verdict};
use super::farewells::Said;
use super::parts::Engine;
use crate::metrics::Counter;
use crate::planted::{self, Planted};
use crate::presence::LeaveOutcome;
use crate::realtime::ConnId;
use crate::slot::Slot;
use crate::time::{Mono, Now, Unix};
use crate::wire::{User, sse};

/// Goodbyes that were put off and are looked at in one call; the next turn begins at once if more
/// are due.
const GOODBYES_PER_CALL: usize = 8_192;

/// What a goodbye comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Heard {
    /// Nothing, here and now.
    Nothing,
    /// It counts, and the slot's owner must look.
    Left,
    /// Real-time nodes are asked first.
    Asks,
    /// Too many wait for their answers already.
    Full,
}

impl Heard {
    fn left(left: bool) -> Heard {
        if left { Heard::Left } else { Heard::Nothing }
    }
}

impl Engine {
    /// A user has said goodbye, by what is counted as `source`; one that came over a connection was
    /// sent at [`Unix::LATEST`]. `asker`: the request that waits for what it comes to.
    pub(super) fn say_goodbye(
        &mut self,
        slot: Slot,
        sent_at: Unix,
        source: Counter,
        asker: Option<Asker>,
        now: Now,
    ) -> Heard {
        if self.is_held(slot) {
            self.counters.add(Counter::LeavesHeld, 1);
            return Heard::Nothing;
        }
        if self.node.role.passes_on() {
            self.pass_on(slot, 0, now);
            return Heard::Nothing;
        }
        // One who has left can only be refused more beats by it.
        if self.farewells.ask() && !self.heard.has_left(slot) {
            let came_at = self.heard.put_leave_off(slot, now);
            let said = Said::Sent { sent_at, came_at };
            return match self.ask_holders(slot, said, source, asker, now) {
                true => Heard::Asks,
                false => Heard::Full,
            };
        }
        let outcome = self.heard.record_leave(slot, sent_at, now);
        self.judge_elsewhere(slot, sent_at, now);
        Heard::left(self.count_leave(outcome, source))
    }

    /// In a fleet a goodbye is judged where all claims are: its user may be heard at other nodes
    /// alone, or hold a stream there.
    fn judge_elsewhere(&mut self, slot: Slot, sent_at: Unix, now: Now) {
        if self.posts.has_bridge() {
            let presence = Arc::clone(&self.presence);
            let user = presence.user(slot);
            self.posts
                .goodbyes
                .push((user.into(), sent_at.min(now.unix)));
            self.tell_home_of_goodbye(user, sent_at, now);
        }
    }

    /// At a real-time node: the presence node of a user hears of a goodbye that was said `ago_ms`
    /// ago.
    fn pass_on(&mut self, slot: Slot, ago_ms: u64, now: Now) {
        let key = self.node.keyring.fleet.signing();
        if let Some(upstream) = &mut self.upstream {
            let user = self.presence.user(slot);
            upstream.leave(&self.presence, user, ago_ms, key, now);
            self.counters.add(Counter::LeavesHttp, 1);
        }
    }

    /// A goodbye of a user of whom nothing is known here, though elsewhere at a node that follows.
    pub(super) fn part_unknown(
        &mut self,
        user: User<'_>,
        sent_at: Unix,
        source: Counter,
        now: Now,
    ) {
        let key = self.node.keyring.fleet.signing();
        let counter = match &mut self.upstream {
            Some(_) if self.posts.has_bridge() => {
                let sent_at = sent_at.min(now.unix);
                self.posts.goodbyes.push((user.into(), sent_at));
                self.tell_home_of_goodbye(user, sent_at, now);
                source
            }
            Some(upstream) => {
                upstream.leave(&self.presence, user, 0, key, now);
                source
            }
            None => Counter::LeavesIgnored,
        };
        self.counters.add(counter, 1);
    }

    /// Whether a stream of the user's is open: the goodbye is another device's.
    fn is_held(&self, slot: Slot) -> bool {
        self.presence.is_held(slot) && !planted::is(Planted::GoodbyeOfAll)
    }

    /// True: it counts, and the slot's owner must look.
    pub(super) fn count_leave(&mut self, outcome: LeaveOutcome, source: Counter) -> bool {
        let left = outcome == LeaveOutcome::Left;
        let counter = if left { source } else { Counter::LeavesIgnored };
        self.counters.add(counter, 1);
        left
    }

    /// A goodbye that came over a connection, on the shard that holds the stream that it names.
    pub(super) fn say_goodbyes(
        &mut self,
        goodbye: &Goodbye,
        errands: &mut Errands,
        asker: Asker,
        now: Now,
    ) -> Verdict {
        let mut slots = Vec::with_capacity(goodbye.users.len() + 1);
        for user in &goodbye.users {
            let user = user.user();
            let known = match self.presence.lookup(user) {
                // Beats of its home's are not known here, and a goodbye is put off by its slot.
                None if goodbye.after_ms > 0 && self.homes_elsewhere().is_some() => {
                    self.take_in(user, now).ok()
                }
                known => known,
            };
            match known {
                Some(slot) => slots.push(slot),
                None if goodbye.after_ms == 0 => {
                    self.note_goodbye(user, now);
                    self.part_unknown(user, Unix::LATEST, Counter::LeavesHttp, now);
                }
                None => self.counters.add(Counter::LeavesIgnored, 1),
            }
        }
        let stream = goodbye
            .stream
            .filter(|id| self.conns.is_stream_of(*id, goodbye.holder));
        if let Some(id) = stream {
            let holder = self.conns.at(id.index).publisher().map(Slot::new);
            self.end_stream(id, now);
            slots.extend(holder.filter(|slot| !slots.contains(slot)));
        } else if goodbye.stream.is_some() && goodbye.users.is_empty() {
            return Verdict::UnknownStream;
        }
        for slot in slots {
            if goodbye.after_ms > 0 {
                let given_at = match self.node.role.passes_on() {
                    false => self.heard.put_leave_off(slot, now),
                    true => now.unix,
                };
                let said = now;
                errands.put_off(
                    self,
                    PutOff {
                        slot,
                        given_at,
                        said,
                    },
                );
                continue;
            }
            let (sent_at, source) = (Unix::LATEST, Counter::LeavesHttp);
            if !self.presence.is_held(slot) {
                self.note_goodbye(self.presence.user(slot), now);
            }
            match self.say_goodbye(slot, sent_at, source, Some(asker), now) {
                Heard::Left => errands.look(self, slot, now),
                Heard::Asks => errands.wait_for_answer(),
                Heard::Nothing => {}
                Heard::Full => return Verdict::Full,
            }
        }
        Verdict::Done
    }

    /// Ends a stream for a goodbye that names it.
    fn end_stream(&mut self, id: ConnId, now: Now) {
        self.conns.at(id.index).say(sse::write_left);
        self.counters.add(Counter::EventsGoodbye, 1);
        self.conns
            .end(id, Counter::ClosedLeft, now.mono, &mut self.counters);
    }

    /// Puts goodbyes of slots that this shard owns off until then.
    pub(super) fn put_off(&mut self, goodbyes: &[PutOff], due: Mono) -> Verdict {
        let max = self.settings.leaves_put_off_max;
        for goodbye in goodbyes {
            if !self.passes.putting_off.put_off(*goodbye, due, max) {
                self.counters.add(Counter::LimitLeavesPutOff, 1);
                return Verdict::Full;
            }
        }
        Verdict::Done
    }

    /// Goodbyes that were put off until now: no beat of their users has come since, or they do
    /// not count.
    pub(super) fn say_put_off(&mut self, now: Now) {
        if self.passes.fires_at(now.mono) > now.mono {
            return;
        }
        for _ in 0..GOODBYES_PER_CALL {
            let Some(goodbye) = self.passes.next_put_off(now.mono) else {
                return;
            };
            let PutOff { slot, given_at, .. } = goodbye;
            if self.is_held(slot) {
                self.counters.add(Counter::LeavesHeld, 1);
                continue;
            }
            // Whether a beat has come since can not be told then. Silence decides.
            if goodbye.is_of_another_clock(now) {
                self.counters.add(Counter::LeavesIgnored, 1);
                continue;
            }
            if self.node.role.passes_on() {
                self.pass_on(slot, now.unix.ms_since(given_at), now);
                continue;
            }
            if self.farewells.ask() {
                let said = Said::PutOff { given_at };
                self.ask_holders(slot, said, Counter::LeavesHttp, None, now);
                continue;
            }
            let outcome = self.heard.record_leave_of(slot, given_at, now.unix);
            self.judge_elsewhere(slot, given_at, now);
            if self.count_leave(outcome, Counter::LeavesHttp) {
                self.look_own(slot, now);
            }
        }
    }

    /// A user was logged out at `at`: whatever was heard before counts no more. True: the slot's
    /// owner must look. A real-time node has told the presence node, which decides.
    pub(super) fn part_for_good(&mut self, slot: Slot, at: Unix, now: Now) -> bool {
        if self.node.role.passes_on() {
            return false;
        }
        let outcome = self.heard.record_leave(slot, at, now);
        self.count_leave(outcome, Counter::LeavesHttp)
    }

    /// These were logged out at another node of the fleet.
    pub(super) fn logged_out_elsewhere(&mut self, slots: &[Slot], now: Now) {
        let places = self.conns.places();
        if !self.passes.logging_out.begin(slots, None, places) {
            // Their beats count no more, and their streams end when their tokens do.
            self.counters
                .add(Counter::RelayLogOutsLost, slots.len() as u64);
        }
        for slot in slots {
            if slot.owner(self.node.shards) == self.node.shard {
                self.look_own(*slot, now);
            }
        }
    }

    /// Ends streams of users who have been logged out: a bounded piece of the pass over all.
    pub(super) fn end_logged_out(&mut self, now: Now) {
        let places = self.conns.places();
        for index in self.passes.logging_out.step(places) {
            let Some(id) = self.conns.id_at(index) else {
                continue;
            };
            let slot = self.conns.at(index).publisher();
            let ends = slot.is_some_and(|slot| self.passes.logging_out.ends(slot, id));
            if ends && self.conns.is_stream(id) {
                self.say_bye(id, now);
                self.gone_with_the_rest(slot, now);
            }
        }
    }

    /// Ends a stream for good: its holder has been logged out, or forgotten.
    pub(super) fn say_bye(&mut self, id: ConnId, now: Now) {
        self.conns.at(id.index).say(sse::write_bye);
        self.counters.add(Counter::EventsBye, 1);
        self.conns
            .end(id, Counter::ClosedBye, now.mono, &mut self.counters);
    }

    /// Ends a stream whose token is void. Its holder may come back with another.
    pub(super) fn say_expired(&mut self, id: ConnId, now: Now) {
        self.end_with_token(id, Counter::ClosedExpired, now);
    }

    /// The same, before the token's time.
    pub(super) fn say_revoked(&mut self, id: ConnId, now: Now) {
        self.end_with_token(id, Counter::ClosedRevoked, now);
    }

    fn end_with_token(&mut self, id: ConnId, why: Counter, now: Now) {
        let conn = self.conns.at(id.index);
        if conn.unsent_bytes() + sse::GOODBYE_BYTES_MAX <= self.settings.outbox_bytes_max {
            conn.say(sse::write_expired);
            self.counters.add(Counter::EventsExpired, 1);
        }
        self.conns.end(id, why, now.mono, &mut self.counters);
    }

    /// Where a log-out is told to its shards when it has been done: a stream has ended for it. What
    /// it has beaten since that was said counts no more, unless another stream is open.
    fn gone_with_the_rest(&mut self, slot: Option<u32>, now: Now) {
        let Some(slot) = slot.map(Slot::new).filter(|slot| !self.is_held(*slot)) else {
            return;
        };
        if self.node.role.passes_on() {
            self.pass_on(slot, 0, now);
        } else if self.posts.has_bridge() {
            self.heard.record_leave(slot, Unix::LATEST, now);
        }
    }
}
