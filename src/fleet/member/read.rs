//! Reads of users: whom the mirror must know, and what Redis has of this life's claims.

use std::collections::BTreeMap;

use super::claims::{
    ALONE, ASKED, FLYING, GUESSES, KINDS, NOWHERE, OPEN, PROOF, STREAM, TAKEN, UNSURE, UNTOLD,
    WENT, bits_of,
};
use super::lease::bytes_of;
use super::part::{Hearing, Wanted};
use super::{Asked, Ending, How, Local, Member, State};
use crate::fleet::calls::Call;
use crate::fleet::flags::UserFlags;
use crate::fleet::held::{Gone, Here, META_FIELD, life_field};
use crate::fleet::partition::bucket_of;
use crate::fleet::traffic::{Reply, Server, To};
use crate::planted::{self, Planted};
use crate::slot::Slot;
use crate::time::{Mono, Now, Unix};
use crate::wire::{User, UserBuf};

/// Reads under way in one partition.
const READS_MAX: u32 = 2;
/// A beat is claimed within so many ms.
const CLAIM_MS: u64 = 1_000;
/// Whom a server refused to tell of is asked for again after so many ms.
const REFUSED_MS: u64 = 1_000;

/// As of when something was read.
#[derive(Clone, Copy, Debug)]
struct AsOf {
    /// Of which message.
    number: u64,
    /// Messages up to that one are yet to be heard.
    is_ahead: bool,
    /// When somebody went last, by Redis' clock.
    left: Unix,
    /// All that this life has said was done there, and nothing of it was lost since: what it claims
    /// and Redis does not have was taken from it.
    is_whole: bool,
}

impl<L: Local> Member<L> {
    /// Reads what is to be read, as far as may be now.
    pub(super) fn read(&mut self, at: usize, server: Server, now: Now) {
        if self.parts[at].hearing != Hearing::InStep || now.mono < self.parts[at].reads_at {
            return;
        }
        self.ask_ring(at, server, now);
        if self.parts[at].ends.are_due {
            return;
        }
        self.parts[at].is_lossy &= self.parts[at].walk.is_some();
        if self.parts[at]
            .walk_again_at
            .is_some_and(|due| now.mono >= due)
        {
            self.parts[at].walk_again_at = None;
            self.parts[at].walk = Some(0);
        }
        if now.mono >= self.parts[at].unsaid_at {
            self.parts[at].unsaid_at = Mono::NEVER;
            let unsaid = std::mem::take(&mut self.parts[at].unsaid);
            unsaid.into_iter().for_each(|slot| self.want(slot));
        }
        self.want_alone(at);
        while self.parts[at].reads < READS_MAX {
            self.walk(at);
            if self.parts[at].asks.is_empty() {
                break;
            }
            if !self.read_some(at, server, now) {
                break;
            }
        }
    }

    /// Wants the next ones of all, if all are to be read.
    fn walk(&mut self, at: usize) {
        let most = self.settings.call_users_max;
        let part = &mut self.parts[at];
        let Some(from) = part.walk.filter(|_| part.asks.len() < most) else {
            return;
        };
        if from == 0 {
            let names: Vec<_> = part.names.iter().cloned().map(Wanted::Name).collect();
            part.asks.extend(names);
        }
        let slots = self.local.slots();
        if slots > 0 {
            self.reach(slots - 1);
        }
        let (found, next) = self.claims.of(at as u16, from, most);
        for slot in found {
            self.want(slot);
        }
        let part = &mut self.parts[at];
        // Through only when all have been read.
        part.walk = next.or((!part.asks.is_empty() || part.reads > 0).then_some(u32::MAX));
    }

    /// Who arrived while Redis was away is read when it has been told.
    fn want_alone(&mut self, at: usize) {
        let part = &mut self.parts[at];
        if part.alone.is_empty() || part.flying.is_some() || !part.marks.is_empty() {
            return;
        }
        for slot in std::mem::take(&mut part.alone) {
            self.claims.clear(slot, ALONE);
            self.want(slot);
        }
    }

    fn read_some(&mut self, at: usize, server: Server, now: Now) -> bool {
        if !self.has_room(at, server) {
            return false;
        }
        let part = &mut self.parts[at];
        let most = part.asks.len().min(self.settings.call_users_max);
        let mut users: Vec<Wanted> = part.asks.drain(..most).collect();
        users.retain(|wanted| match wanted {
            Wanted::Slot(slot) => {
                self.claims.clear(*slot, ASKED);
                self.local.user(Slot::new(*slot)).is_some()
            }
            Wanted::Name(_) => true,
        });
        if users.is_empty() {
            return true;
        }
        let names: Vec<UserBuf> = users.iter().filter_map(|one| self.name_of(one)).collect();
        let hot = self.hot_key(at);
        let life = life_field(self.life);
        let words = [&b"HMGET"[..], hot.as_bytes(), META_FIELD, &life].into_iter();
        let fields = names.iter().map(|name| name.as_str().as_bytes());
        let mut calls = vec![Call::plain(words.chain(fields))];
        for (bucket, of) in self.buckets(&names) {
            let key = self.partitions.offline_key(self.parts[at].id, bucket);
            let words = [&b"HMGET"[..], key.as_bytes()].into_iter();
            let fields = of.iter().map(|&name| names[name].as_str().as_bytes());
            calls.push(Call::plain(words.chain(fields)));
        }
        let to = To::Partition(self.parts[at].id);
        let asked = Asked::Read {
            at,
            users: users.clone(),
        };
        if !self.send(asked, to, server, calls, now) {
            self.want_again(at, users);
            return false;
        }
        self.counts.users_read += users.len() as u64;
        self.parts[at].reads += 1;
        true
    }

    fn name_of(&self, wanted: &Wanted) -> Option<UserBuf> {
        match wanted {
            Wanted::Slot(slot) => self.user_of(*slot),
            Wanted::Name(name) => Some(name.clone()),
        }
    }

    /// Which of these users' offline entries are in which bucket, in the order of both.
    fn buckets(&self, names: &[UserBuf]) -> BTreeMap<u32, Vec<usize>> {
        let mut buckets = BTreeMap::<u32, Vec<usize>>::new();
        for (at, name) in names.iter().enumerate() {
            let bucket = bucket_of(name.user(), self.settings.layout.buckets);
            buckets.entry(bucket).or_default().push(at);
        }
        buckets
    }

    /// An answer to [`Member::read_some`].
    pub(super) fn was_read(
        &mut self,
        at: usize,
        server: Server,
        users: Vec<Wanted>,
        is_of_this_life: bool,
        replies: &[Reply],
        now: Now,
    ) {
        let part = &self.parts[at];
        let is_ours = part.hearing == Hearing::InStep && part.server == Some(server);
        let Some(known) = part.known.filter(|_| is_ours) else {
            return self.want_again(at, users);
        };
        let names: Vec<Option<UserBuf>> = users.iter().map(|one| self.name_of(one)).collect();
        let Some((Reply::List(values), rest)) = replies.split_first() else {
            self.parts[at].reads_at = now.mono.plus_ms(REFUSED_MS);
            self.answered_oddly(at, replies, now);
            return self.want_again(at, users);
        };
        let meta = self.meta_of(at, values.first().and_then(bytes_of), now);
        let own = self.enrolment_of(at, values.get(1).and_then(bytes_of), now);
        let (birth, number) = meta.map_or((None, 0), |meta| (Some(meta.birth), meta.number));
        let part = &self.parts[at];
        let said_all =
            is_of_this_life && !part.leaps && !part.is_lossy && part.uncertain.is_empty();
        let as_of = AsOf {
            number,
            is_ahead: number > known.number || part.missed.is_some(),
            left: meta.map_or(Unix::default(), |meta| meta.left),
            is_whole: said_all && own.is_some_and(|own| !own.is_fenced && own.k == part.k),
        };
        // A slot that has become another's meanwhile would shift all that follow.
        let are_same = names.iter().all(Option::is_some) && values.len() == names.len() + 2;
        if birth != known.birth && known.birth.is_some() || !are_same {
            self.want_again(at, users);
            if birth != known.birth {
                self.parts[at].look_at = now.mono;
            }
            return;
        }
        let names: Vec<UserBuf> = names.into_iter().flatten().collect();
        let mut gone = vec![None; names.len()];
        for (values, (_, of)) in rest.iter().zip(self.buckets(&names)) {
            let Reply::List(values) = values else {
                continue;
            };
            for (name, value) in of.into_iter().zip(values) {
                gone[name] = bytes_of(value).and_then(|bytes| Gone::parse(bytes).ok());
            }
        }
        for (((wanted, name), value), gone) in users.iter().zip(names).zip(&values[2..]).zip(gone) {
            let here = match bytes_of(value).map(Here::parse).transpose() {
                Ok(here) => here,
                Err(malformed) => {
                    // As the library takes it: for none, which nobody has taken.
                    if let Wanted::Slot(slot) = wanted {
                        self.claims.set(*slot, UNSURE);
                    }
                    self.is_malformed(at, &malformed, now)
                }
            };
            let user = name.user();
            if self.parts[at].is_touched(user, number) {
                // A message has told what is newer, but not whether this node's claim was lost with
                // what was there before: that is read once more.
                match wanted {
                    Wanted::Slot(slot) if self.claims.kinds(*slot) != 0 => self.want(*slot),
                    Wanted::Slot(slot) => self.evaluate(*slot, now),
                    // Nothing was told of it: that is for nodes alone.
                    Wanted::Name(_) if self.parts[at].awaits(user) => {
                        self.parts[at].asks.push_back(wanted.clone());
                    }
                    Wanted::Name(_) => {}
                }
                continue;
            }
            let is_known = self.learn(at, as_of, wanted, user, here, gone, now);
            if is_known && as_of.is_ahead {
                self.parts[at].read_as_of.push((number, name));
            }
        }
        let part = &mut self.parts[at];
        if part.walk == Some(u32::MAX) && part.asks.is_empty() && part.reads == 0 {
            part.walk = None;
        }
    }

    /// What was read of one user. False: nothing is known by it.
    #[expect(clippy::too_many_arguments, reason = "a user, and what was read of it")]
    fn learn(
        &mut self,
        at: usize,
        as_of: AsOf,
        wanted: &Wanted,
        user: User<'_>,
        here: Option<Here>,
        gone: Option<Gone>,
        now: Now,
    ) -> bool {
        if here.as_ref().is_some_and(|here| here.flags.invisible) {
            self.local.judged(user);
        }
        let slot = match wanted {
            Wanted::Slot(slot) => Slot::new(*slot),
            // What it says of itself is no sign that it was ever here. That it hides is kept, and
            // told as if it had never been here: so no guess of this node's ever shows it.
            Wanted::Name(_) if gone.is_none() && !here.as_ref().is_some_and(is_to_keep) => {
                let settled_at = self.settled_at(at);
                match now.mono < settled_at {
                    // Who has heard it may have yet to say so.
                    true => self.walk_again(at, settled_at),
                    false => self.local.unseen(user, now),
                }
                return true;
            }
            Wanted::Name(_) => match self.local.find(user).or_else(|| self.named(at, user)) {
                Some(slot) => slot,
                None => return true,
            },
        };
        let index = slot.index();
        self.reach(index);
        if index >= self.claims.len() || self.claims.partition(index) == NOWHERE {
            return true;
        }
        // A call that was done after this was read knows better.
        let is_claimed = self.claims.has(index, FLYING)
            || self.parts[at].is_claimed(user, as_of.number.saturating_add(1));
        let mut is_taken = false;
        let had = self.claims.kinds(index);
        if !is_claimed {
            let claimed = here.as_ref().and_then(|here| here.claimed_by(self.life));
            let has = claimed.map_or(0, bits_of) & KINDS;
            is_taken =
                as_of.is_whole && had & PROOF != 0 && has == 0 && !self.claims.has(index, UNSURE);
            if is_taken && as_of.is_ahead {
                // The message of it tells what it was.
                return false;
            }
            self.set_kinds(index, has);
            self.claims.clear(index, UNSURE);
            if is_taken {
                let taken_at = self.taken_at(slot, here.as_ref(), gone, as_of);
                self.was_taken(at, slot, had, taken_at, now);
            }
            is_taken |= self.claims.has(index, TAKEN);
            self.claims.clear(index, TAKEN);
        }
        let own = bits_of(self.local.own(slot, now).kinds);
        let flags = here.as_ref().map_or(UserFlags::PLAIN, |here| here.flags);
        let flags = self.parts[at].flags_to_be(user, flags);
        match here.filter(Here::is_here) {
            Some(here) if self.is_lost(at, index, here.since, now) => {}
            Some(here) => {
                let state = State {
                    is_here: true,
                    flags,
                    since: here.since,
                    last_active: None,
                    gone_since: gone.map(|gone| gone.since),
                };
                self.claims.clear(index, GUESSES);
                self.local.told(slot, state, How::Read, now);
            }
            None if own & PROOF != 0 => {}
            None if is_taken => self.is_gone(slot, flags, gone, How::Read, now),
            None => self.absent(at, slot, (flags, had), gone, now),
        }
        self.evaluate(index, now);
        true
    }

    /// Nobody claims a user. Of a server that may have lost what was written last, that is not
    /// believed before those who would know have had the time to say so.
    fn absent(
        &mut self,
        at: usize,
        slot: Slot,
        (flags, had): (UserFlags, u16),
        gone: Option<Gone>,
        now: Now,
    ) {
        let joined = self.started_at.plus_ms(self.settle_ms());
        let settled_at = self.settled_at(at).max(joined);
        let unsaid = self.gone_unsaid(at, slot, (flags, had), gone, now);
        if let Some(gone) = unsaid {
            self.claims.set(slot.index(), WENT);
            self.say_gone(at, slot, gone, settled_at, now);
        }
        let gone = unsaid.or(gone);
        let is_believed = now.mono >= settled_at || planted::is(Planted::AbsencesBelieved);
        let how = match is_believed {
            true => How::Read,
            false => How::Unsettled,
        };
        if !is_believed {
            self.walk_again(at, settled_at);
        }
        self.is_gone(slot, flags, gone, how, now);
    }

    /// Nobody claims a user, who went so.
    fn is_gone(&mut self, slot: Slot, flags: UserFlags, gone: Option<Gone>, how: How, now: Now) {
        let state = State {
            is_here: false,
            flags,
            since: gone.map_or(Unix::default(), |gone| gone.since),
            last_active: gone.map(|gone| gone.last_active),
            gone_since: gone.map(|gone| gone.since),
        };
        if how == How::Read {
            self.claims.clear(slot.index(), GUESSES);
        }
        self.local.told(slot, state, how, now);
    }

    /// By when, by Redis' clock, a claim was taken that Redis does not have any more.
    fn taken_at(&self, slot: Slot, here: Option<&Here>, gone: Option<Gone>, as_of: AsOf) -> Unix {
        let here = here.filter(|here| here.is_here());
        let came = self
            .local
            .mirrored(slot)
            .and_then(|mirrored| mirrored.since);
        let gone = gone.filter(|gone| Some(gone.since) >= came);
        // Of who is erased, or hides, nothing says when; nobody has gone since.
        here.map(|here| here.since)
            .or(gone.map(|gone| gone.since))
            .unwrap_or(as_of.left)
    }

    /// A message was missed that took what this life claimed of a user: a log-out or an erasure if
    /// it had a stream here, and otherwise perhaps a goodbye.
    fn was_taken(&mut self, at: usize, slot: Slot, had: u16, taken_at: Unix, now: Now) {
        let taken_here = now.unix.minus_ms(self.age_ms(at, taken_at, now));
        let ending = match had & (STREAM | OPEN) {
            0 => Ending::SaidGoodbye(taken_here),
            _ => Ending::LoggedOut(taken_here),
        };
        self.local.ended(slot, ending, now);
    }

    /// All are read once more then.
    fn walk_again(&mut self, at: usize, due: Mono) {
        let before = self.parts[at].walk_again_at.unwrap_or(Mono::NEVER);
        self.parts[at].walk_again_at = Some(before.min(due));
        self.schedule(at, due);
    }

    /// When somebody went whom this node has heard last, if `gone`, which was read, does not know:
    /// Redis could not be told, or has lost it.
    fn gone_unsaid(
        &self,
        at: usize,
        slot: Slot,
        (flags, had): (UserFlags, u16),
        gone: Option<Gone>,
        now: Now,
    ) -> Option<Gone> {
        let own = self.local.own(slot, now);
        let mirrored = self.local.mirrored(slot).filter(|it| it.is_here)?;
        let clock = self.servers.clock(self.parts[at].server?, now.mono)?;
        let by_redis = |here: Unix| clock.minus_ms(now.unix.ms_since(here));
        let told = mirrored.since.unwrap_or_default();
        let since = by_redis(own.since).max(told.plus_ms(1));
        let last_active = own.last_active.min(since);
        let is_known = gone.is_some_and(|gone| gone.last_active >= last_active);
        // Whom this node told alone it has heard, whatever the clocks say. And whoever beats is
        // told as of when that was claimed. Whom it did not claim any more somebody else has.
        let claimed = had & PROOF != 0 || self.claims.has(slot.index(), WENT);
        let is_heard_last = self.claims.has(slot.index(), UNTOLD)
            || claimed && by_redis(own.last_active).plus_ms(CLAIM_MS) >= told;
        let hides = flags.invisible || own.flags.invisible;
        let is_unsaid = !hides && !is_known && is_heard_last;
        is_unsaid.then_some(Gone { since, last_active })
    }

    /// That is written for all nodes to read, shortly before they believe that its user has gone:
    /// by then whoever else has heard it has said so.
    fn say_gone(&mut self, at: usize, slot: Slot, gone: Gone, settled_at: Mono, now: Now) {
        let due = settled_at.minus_ms(self.settle_ms() / 3);
        let part = &mut self.parts[at];
        if now.mono < due {
            part.unsaid.insert(slot.index());
            part.unsaid_at = part.unsaid_at.min(due);
        } else if let Some(user) = self.user_of(slot.index()) {
            self.parts[at].corrections.push((user, gone));
            self.schedule(at, now.mono);
        }
    }
}

/// Whether somebody who is asked for by name is more than nobody.
fn is_to_keep(here: &Here) -> bool {
    here.is_here() || here.flags.invisible
}
