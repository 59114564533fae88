//! What partitions publish, and catching up with it.

use std::collections::BTreeMap;

use super::claims::{FLYING, GUESSED, GUESSES, NOWHERE, PROOF, bits_of};
use super::part::{Hearing, Known, Missed};
use super::{Asked, Ending, How, Local, Member, State};
use crate::fleet::calls::Call;
use crate::fleet::flags::UserFlags;
use crate::fleet::held::{META_FIELD, Meta, RING_MESSAGES, ring_field};
use crate::fleet::message::{Base, Follows, Message, What};
use crate::fleet::partition::Partition;
use crate::fleet::traffic::{Reply, Server, To};
use crate::planted::{self, Planted};
use crate::slot::Slot;
use crate::time::{Mono, Now, Unix};
use crate::wire::{User, UserBuf};

/// Messages that are kept until the base is read. More: the base is read again.
const EARLY_MAX: usize = 256;
/// Users of messages that are remembered while something is under way. More: it is read again.
const TOUCHED_MAX: usize = 4_096;

impl<L: Local> Member<L> {
    pub(super) fn subscribed(&mut self, partition: Partition, server: Server, now: Now) {
        let at = partition.index();
        self.arrive(at, server, now);
        let part = &mut self.parts[at];
        part.hearing = Hearing::Base;
        part.early.clear();
        part.look_at = now.mono;
        self.schedule(at, now.mono);
    }

    pub(super) fn published(&mut self, at: usize, server: Server, bytes: Vec<u8>, now: Now) {
        let part = &mut self.parts[at];
        if part.server != Some(server) {
            return;
        }
        self.counts.messages += 1;
        match part.hearing {
            Hearing::Behind => {}
            Hearing::Base if part.early.len() < EARLY_MAX => part.early.push(bytes.into()),
            Hearing::Base => part.early.clear(),
            Hearing::InStep => self.take_in(at, &bytes, now),
        }
    }

    /// Takes in a message while in step.
    pub(super) fn take_in(&mut self, at: usize, bytes: &[u8], now: Now) {
        let message = match Message::parse_kept(bytes) {
            Ok(Some(message)) => message,
            // A head alone: all are to look.
            Ok(None) => return self.repair(at, now),
            Err(_) => {
                self.counts.malformed += 1;
                return self.repair(at, now);
            }
        };
        let Some(known) = self.parts[at].known else {
            return self.repair(at, now);
        };
        let base = Base {
            // Whoever writes first to a partition chooses its birth.
            birth: known.birth.unwrap_or(message.birth),
            number: known.number,
        };
        match base.follows(&message) {
            Follows::InBase => {}
            Follows::Repair => {
                if base.birth != message.birth {
                    self.upset(at, now);
                    self.parts[at].distrust();
                }
                self.repair(at, now);
            }
            Follows::InStep => {
                self.parts[at].known = Some(Known {
                    birth: Some(message.birth),
                    number: message.number(),
                    ..known
                });
                for record in message.records() {
                    let (number, since) = (message.number(), message.since);
                    self.apply(at, number, since, record.user, record.what, true, now);
                }
                self.parts[at].tidy();
                self.schedule(at, now.mono);
            }
        }
    }

    /// Where the partition's numbers are is read anew.
    pub(super) fn repair(&mut self, at: usize, now: Now) {
        self.counts.repairs += 1;
        let part = &mut self.parts[at];
        if part.hearing == Hearing::InStep {
            part.hearing = Hearing::Base;
            part.behind_since = now.mono;
            part.early.clear();
        }
        part.look_at = now.mono;
        self.schedule(at, now.mono);
    }

    /// What one record does. `tells`: the mirror hears of it.
    #[expect(clippy::too_many_arguments, reason = "a record, and where it stands")]
    fn apply(
        &mut self,
        at: usize,
        number: u64,
        since: Unix,
        user: User<'_>,
        what: What,
        tells: bool,
        now: Now,
    ) {
        let age_ms = self.age_ms(at, since, now);
        let said_here = now.unix.minus_ms(age_ms);
        self.pass_word(now.mono.minus_ms(age_ms), user, what);
        self.touch(at, number, user);
        // Who has no slot yet may have one when it is read who was sent away.
        let is_news = self.note_end(at, since, user, what);
        let Some(slot) = self.slot_of(at, user, what, now) else {
            return;
        };
        let index = slot.index();
        self.reach(index);
        if index >= self.claims.len() || self.claims.partition(index) == NOWHERE {
            return;
        }
        let part = &self.parts[at];
        let is_read = part.is_read(user, number);
        let is_claimed = part.is_claimed(user, number);
        let ending = match what {
            What::Gone { said_at, .. } => said_at.map(Ending::SaidGoodbye),
            What::LoggedOut { .. } | What::StreamsEnd(_) => Some(Ending::LoggedOut(said_here)),
            What::Erased => Some(Ending::Erased(said_here)),
            _ => None,
        };
        let is_here = matches!(
            what,
            What::Arrived(_) | What::StillHere { .. } | What::Is { .. }
        );
        let had = self.claims.kinds(index);
        if !is_here && !is_claimed {
            // Whatever was claimed of it has gone with it.
            self.set_kinds(index, 0);
        }
        if let Some(ending) = ending.filter(|_| is_news) {
            self.local.ended(slot, ending, now);
            if is_read {
                // What was read is newer, and may have gone with it.
                self.want(index);
            }
        }
        if what == What::Erased {
            if had != 0 || self.claims.has(index, FLYING) {
                // When it went may have been written behind the erasure.
                self.parts[at].erased.push(user.into());
            }
            if !is_read && tells {
                self.local.erased(slot, since, now);
            }
        } else if tells && !is_read {
            self.tell(at, slot, user, (since, what), now);
        }
        self.evaluate(index, now);
    }

    /// What is under way may be answered from before this message. That is remembered of whoever
    /// is known here, if by name alone.
    fn touch(&mut self, at: usize, number: u64, user: User<'_>) {
        let part = &mut self.parts[at];
        if part.reads == 0 && part.flying.is_none() && part.missed.is_none() {
            return;
        }
        if self.local.find(user).is_none() && !part.awaits(user) {
            return;
        }
        if part.touched.len() < TOUCHED_MAX {
            part.touched.push((number, user.into()));
        } else {
            part.walk = Some(0);
        }
    }

    /// What a record says, to whoever waits for the fleet's word of a user.
    fn pass_word(&mut self, said: Mono, user: User<'_>, what: What) {
        match what {
            What::Arrived(_) | What::StillHere { .. } => self.local.heard_of(user, true),
            What::Is { flags, .. } if !flags.invisible => self.local.heard_of(user, true),
            What::Gone { flags, .. } if !flags.invisible => self.local.heard_of(user, false),
            What::Keeps(flags) if !flags.invisible => {}
            What::Is { .. }
            | What::Gone { .. }
            | What::Keeps(_)
            | What::LoggedOut { .. }
            | What::StreamsEnd(_)
            | What::Erased => self.local.overruled(user, said),
        }
    }

    /// How long ago a partition's server said something, in ms. No longer than it was.
    pub(super) fn age_ms(&self, at: usize, said: Unix, now: Now) -> u64 {
        let server = self.parts[at].server;
        let clock = server.and_then(|server| self.servers.clock(server, now.mono));
        clock.map_or(0, |clock| clock.ms_since(said))
    }

    /// What a record says, for the mirror.
    fn tell(
        &mut self,
        at: usize,
        slot: Slot,
        user: User<'_>,
        (since, what): (Unix, What),
        now: Now,
    ) {
        let to_be = |flags| self.parts[at].flags_to_be(user, flags);
        let (is_here, flags, since, last_active) = match what {
            What::Arrived(flags) => (true, flags, since, None),
            What::StillHere { flags, since } | What::Is { flags, since } => {
                (true, flags, since, None)
            }
            What::Gone {
                flags, last_active, ..
            }
            | What::LoggedOut { flags, last_active } => (false, flags, since, Some(last_active)),
            What::Keeps(flags) | What::StreamsEnd(flags) => {
                let flags = to_be(flags);
                return self.comes_with(slot, flags);
            }
            What::Erased => return,
        };
        let flags = to_be(flags);
        let index = slot.index();
        if !is_here && bits_of(self.local.own(slot, now).kinds) & PROOF != 0 {
            // Who is here by what this node hears itself is claimed again, and nobody is told.
            return self.comes_with(slot, flags);
        }
        let mirrored = self.local.mirrored(slot);
        if flags.invisible && mirrored.is_none_or(|mirrored| mirrored.since.is_none()) {
            // When it went, for everybody else, the record does not say.
            return self.want(index);
        }
        if is_here && self.is_lost(at, index, since, now) {
            return;
        }
        let state = State {
            is_here,
            flags,
            since,
            last_active,
            gone_since: None,
        };
        self.claims.clear(index, GUESSES);
        self.local.told(slot, state, How::InStep, now);
    }

    fn comes_with(&mut self, slot: Slot, flags: UserFlags) {
        self.claims.clear(slot.index(), GUESSED);
        self.local.comes_with(slot, flags);
    }

    /// The slot of whom a record is about. Whoever is waited for by name gets one.
    fn slot_of(&mut self, at: usize, user: User<'_>, what: What, now: Now) -> Option<Slot> {
        if let Some(slot) = self.local.find(user) {
            return Some(slot);
        }
        if !self.parts[at].awaits(user) {
            return None;
        }
        match what {
            What::Arrived(_) | What::StillHere { .. } => self.named(at, user),
            // Who hides is known, so that no guess of this node's ever shows it.
            What::Is { .. } => self.named(at, user),
            What::Gone { flags, .. } if !flags.invisible => self.named(at, user),
            What::LoggedOut { flags, .. } if !flags.invisible => self.named(at, user),
            What::Erased => {
                self.local.unseen(user, now);
                None
            }
            // Nothing that anybody else may know.
            _ => None,
        }
    }

    /// A slot for whom is waited for by name.
    pub(super) fn named(&mut self, at: usize, user: User<'_>) -> Option<Slot> {
        let slot = self.local.make(user)?;
        if self.parts[at].names.remove(&user.into()) {
            self.names -= 1;
        }
        self.reach(slot.index());
        Some(slot)
    }

    /// Asks for messages that were missed. False: not now.
    pub(super) fn ask_ring(&mut self, at: usize, server: Server, now: Now) {
        let Some(missed) = self.parts[at].missed.filter(|missed| !missed.is_asked) else {
            return;
        };
        let (hot, to) = (self.hot_key(at), To::Partition(self.parts[at].id));
        let fields: Vec<_> = (missed.from..=missed.to).map(ring_field).collect();
        let words = [&b"HMGET"[..], hot.as_bytes(), META_FIELD].into_iter();
        let call = Call::plain(words.chain(fields.iter().map(|field| &field[..])));
        if self.send(Asked::Ring(at), to, server, vec![call], now) {
            let is_asked = true;
            self.parts[at].missed = Some(Missed { is_asked, ..missed });
        }
    }

    /// Applies the net effect of what was missed.
    pub(super) fn ring_read(&mut self, at: usize, server: Server, replies: &[Reply], now: Now) {
        let Some(missed) = self.parts[at].missed.take() else {
            return;
        };
        let values = match replies.first() {
            Some(Reply::List(values)) if self.parts[at].server == Some(server) => values,
            _ => return self.read_all(at),
        };
        let birth = self.parts[at].known.and_then(|known| known.birth);
        let mut values = values.iter().map(super::lease::bytes_of);
        let meta = values
            .next()
            .flatten()
            .and_then(|bytes| Meta::parse(bytes).ok());
        let mut messages = Vec::new();
        for (number, value) in (missed.from..=missed.to).zip(values) {
            let message = value
                .and_then(|bytes| Message::parse_kept(bytes).ok())
                .flatten();
            let kept = message
                .filter(|message| Some(message.birth) == birth && message.number() == number);
            messages.extend(kept);
        }
        let is_whole = messages.len() as u64 == missed.to + 1 - missed.from;
        if !is_whole || meta.map(|meta| meta.birth) != birth {
            return self.read_all(at);
        }
        self.counts.rings += 1;
        let mut last = BTreeMap::new();
        for message in &messages {
            for record in message.records() {
                last.insert(UserBuf::from(record.user), message.number());
            }
        }
        let replays = planted::is(Planted::HistoryReplayed);
        for message in &messages {
            for record in message.records() {
                let (number, since) = (message.number(), message.since);
                let is_last = last.get(&record.user.into()) == Some(&number);
                let is_newest = !self.parts[at].is_touched(record.user, missed.to);
                let tells = replays || is_last && is_newest;
                self.apply(at, number, since, record.user, record.what, tells, now);
            }
        }
    }

    /// Everybody of the partition who has a slot or a name here is read.
    pub(super) fn read_all(&mut self, at: usize) {
        self.parts[at].missed = None;
        self.parts[at].walk = Some(0);
    }

    /// Whether what was known and what a look says are so close that the ring has all between.
    pub(super) fn ring_has(known: Known, meta: &Meta) -> bool {
        known.birth == Some(meta.birth)
            && known.number <= meta.number
            && meta.number - known.number <= RING_MESSAGES
    }
}
