//! What a node says of its users: claims, and what it takes back.
//!
//! One call of a partition is under way at a time. What it says of a user is decided when it is
//! sent, by what may be claimed then. A call of which no answer came may be done later, or may
//! have been: the next one has the same number, so that one of the two is done.

use std::collections::BTreeSet;

use super::claims::{
    FLYING, GUESSED, HELD, LOST, MARKED, PROOF, UNATTENDED, bits_of, excess, kinds_of, missing,
};
use super::part::{Act, Entry, Op, Said};
use super::{AGAIN_MS, Asked, Local, Member, not_after};
use crate::fleet::calls::{Call, Caller, Mode, Vouch};
use crate::fleet::flags::UserFlags;
use crate::fleet::held::{Gone, Kinds};
use crate::fleet::partition::bucket_of;
use crate::fleet::traffic::{Server, To};
use crate::planted::{self, Planted};
use crate::slot::Slot;
use crate::time::{Now, Unix};
use crate::wire::UserBuf;

/// Under load a call waits so long after the last one for more to say.
const LINGER_MS: u64 = 3;
/// A goodbye is judged by what Redis knows within so many ms of when it came, or not at all.
const GOODBYE_MS: u64 = 500;
/// Fewer users than that are worth the wait.
const FEW: usize = 50;

impl<L: Local> Member<L> {
    /// Says what is to be said, if that may be now.
    pub(super) fn say(&mut self, at: usize, server: Server, now: Now) {
        let mono = now.mono;
        self.correct(at, server, now);
        let part = &self.parts[at];
        let waits = part.is_looking || part.ends.are_due;
        if part.flying.is_some() || waits || mono < part.retry_at {
            return;
        }
        let may_take_back = self.may_take_back(at, mono) && !self.is_leaving;
        if may_take_back {
            self.release(at);
        }
        let part = &mut self.parts[at];
        let waiting = part.marks.len() + part.acts.len();
        if waiting == 0 && part.uncertain.is_empty() {
            return;
        }
        let linger_until = part.spoke_at.plus_ms(LINGER_MS);
        if waiting < FEW && mono < linger_until && mono >= part.spoke_at {
            part.retry_at = linger_until;
            return;
        }
        if !self.has_lease(mono) {
            self.parts[at].retry_at = mono.plus_ms(AGAIN_MS);
            return;
        }
        let Some(clock) = self.servers.clock(server, mono) else {
            // A look tells the time.
            self.parts[at].look_at = mono;
            self.parts[at].retry_at = mono.plus_ms(AGAIN_MS);
            return;
        };
        if !self.has_room(at, server) {
            return;
        }
        let entries = self.entries(at, may_take_back, clock, now);
        if entries.is_empty() && self.parts[at].uncertain.is_empty() {
            if !self.parts[at].acts.is_empty() {
                // What waits until departures have settled.
                self.parts[at].retry_at = mono.plus_ms(AGAIN_MS);
            }
            return;
        }
        let calls = self.calls(at, &entries, clock, now);
        let to = To::Partition(self.parts[at].id);
        if !self.send(Asked::Vouch(at), to, server, calls, now) {
            self.unpack(at, entries);
            return;
        }
        for slot in entries.iter().filter_map(|entry| entry.slot) {
            self.claims.set(slot, FLYING);
        }
        self.parts[at].flying = Some(entries);
    }

    /// What waited to be taken back may be.
    fn release(&mut self, at: usize) {
        let part = &mut self.parts[at];
        let most = part.held.len().min(self.settings.call_users_max);
        for slot in part.held.drain(..most) {
            let is_waiting = self.claims.has(slot, HELD);
            self.claims.clear(slot, HELD);
            if is_waiting && !self.claims.has(slot, MARKED | FLYING) {
                self.claims.set(slot, MARKED);
                part.marks.push_back(slot);
            }
        }
    }

    fn entries(&mut self, at: usize, may_take_back: bool, clock: Unix, now: Now) -> Vec<Entry> {
        let (mut entries, mut named) = (Vec::new(), BTreeSet::new());
        let mut later = Vec::new();
        while entries.len() < self.settings.call_users_max {
            let Some(act) = self.parts[at].acts.pop_front() else {
                break;
            };
            // Other nodes may have heard beats since, of which Redis does not know. What an old
            // goodbye ended here is taken back. What others claim they take back themselves, for
            // the user's home is told of each goodbye, or it ends by silence. And nothing is taken
            // back now that may have to wait.
            let is_old = now.mono.ms_since(act.said_at) > GOODBYE_MS || !may_take_back;
            if is_old && matches!(act.what, Said::Goodbye { .. }) {
                // What it ended may have been under way with it, so that nothing marked it.
                if let Some(slot) = self.local.find(act.user.user()) {
                    self.changed(slot, now);
                }
                continue;
            }
            // What is said of one user stays in order. And a log-out that comes before others have
            // said whom they have ends nothing there.
            let is_final = matches!(act.what, Said::Stray | Said::LogOut(_) | Said::Erase);
            let waits = is_final && !may_take_back;
            if waits || !named.insert(act.user.clone()) {
                named.insert(act.user.clone());
                later.push(act);
                continue;
            }
            let slot = self.local.find(act.user.user()).map(Slot::index);
            if let Some(slot) = slot {
                self.reach(slot);
            }
            let gone = self.gone_by(&act, slot, clock, now);
            entries.push(Entry {
                user: act.user.clone(),
                slot: slot.filter(|&slot| slot < self.claims.len()),
                op: Op::Act(act, gone),
            });
        }
        for act in later.into_iter().rev() {
            self.parts[at].acts.push_front(act);
        }
        let mut again = Vec::new();
        while entries.len() < self.settings.call_users_max {
            let Some(slot) = self.parts[at].marks.pop_front() else {
                break;
            };
            let Some(user) = self.user_of(slot) else {
                self.claims.clear(slot, MARKED);
                continue;
            };
            if self.claims.partition(slot) as usize != at {
                continue;
            }
            if named.contains(&user) {
                again.push(slot);
                continue;
            }
            self.claims.clear(slot, MARKED);
            if let Some(op) = self.op_of(at, slot, may_take_back, clock, now) {
                let slot = Some(slot);
                entries.push(Entry { user, slot, op });
            }
        }
        self.parts[at].marks.extend(again);
        entries
    }

    /// What is to be said of a slot, by what may be claimed of it now.
    fn op_of(
        &mut self,
        at: usize,
        slot: u32,
        may_take_back: bool,
        clock: Unix,
        now: Now,
    ) -> Option<Op> {
        let own = self.local.own(Slot::new(slot), now);
        let (may, had) = (bits_of(own.kinds), self.claims.kinds(slot));
        let is_lost = self.claims.has(slot, LOST) && may & PROOF != 0;
        self.claims.clear(slot, LOST);
        if is_lost || missing(may, had) != 0 {
            return Some(Op::Claim(may));
        }
        let excess = excess(may, had);
        if excess == 0 {
            return None;
        }
        if !may_take_back {
            if !self.claims.has(slot, HELD) {
                self.claims.set(slot, HELD);
                self.parts[at].held.push_back(slot);
            }
            return None;
        }
        Some(Op::Withdraw(excess, gone(clock, own.last_active)))
    }

    fn gone_by(&self, act: &Act, slot: Option<u32>, clock: Unix, now: Now) -> Gone {
        let own = slot.map(|slot| self.local.own(Slot::new(slot), now));
        let last_active = match act.what {
            Said::Goodbye { last_active, .. } | Said::LogOut(last_active) => last_active,
            Said::Flags(_) | Said::Erase | Said::Forget | Said::Stray => {
                own.map_or(Unix::default(), |own| own.last_active)
            }
        };
        gone(clock, last_active)
    }

    /// Whether somebody is known to be here whom others see: what is kept of who goes is written
    /// before the call then. Of anybody else it would be a word that nobody has said; if they go by
    /// the call, it is written behind it.
    fn is_seen(&self, slot: Option<u32>, flags: UserFlags) -> bool {
        let mirrored = slot.and_then(|slot| self.local.mirrored(Slot::new(slot)));
        mirrored.is_some_and(|mirrored| mirrored.is_here) && !flags.invisible
    }

    /// The call, and before it what is kept of whoever may go by it: so nobody reads that a user is
    /// not here before it is written when it was last heard of.
    fn calls(&mut self, at: usize, entries: &[Entry], clock: Unix, now: Now) -> Vec<Call> {
        let birth = self.new_birth();
        let part = &self.parts[at];
        let leaps = part.leaps || planted::is(Planted::NumbersIgnored);
        let void_after_ms = self.settings.void_after_ms;
        let mut vouch = Vouch::new(&Caller {
            life: self.life,
            mode: if leaps { Mode::Enrol } else { Mode::InTurn },
            birth,
            k: part.k + 1,
            not_after: not_after(clock, void_after_ms, Planted::VouchesNeverLate),
        });
        let mut kept = Vec::new();
        let mut erased = Vec::new();
        for Entry { user, slot, op } in entries {
            let own = slot.map(|slot| self.local.own(Slot::new(slot), now));
            let (flags, kinds) = own.map_or((UserFlags::PLAIN, Kinds::default()), |own| {
                (own.flags, own.kinds)
            });
            let name = user.user();
            let is_seen = self.is_seen(*slot, flags);
            match op {
                Op::Claim(bits) => {
                    let known = slot.and_then(|slot| self.known_since(slot, clock));
                    let is_guess = slot.is_some_and(|slot| self.claims.has(slot, GUESSED));
                    let flags = Some(flags).filter(|_| !is_guess);
                    vouch.claim(name, flags, kinds_of(*bits, kinds), known);
                }
                Op::Withdraw(bits, gone) => {
                    kept.extend(is_seen.then_some((user, *gone)));
                    let kinds = kinds_of(*bits & !UNATTENDED, kinds);
                    vouch.withdraw(name, kinds, gone.last_active);
                }
                Op::Act(act, gone) => match act.what {
                    Said::Goodbye {
                        kinds,
                        sent,
                        last_active,
                    } => {
                        kept.extend(is_seen.then_some((user, *gone)));
                        vouch.goodbye(name, kinds, sent, last_active);
                    }
                    Said::LogOut(last_active) => {
                        kept.extend(is_seen.then_some((user, *gone)));
                        vouch.log_out(name, last_active);
                    }
                    Said::Flags(said) => vouch.set_flags(name, said),
                    Said::Erase => {
                        erased.push(user);
                        vouch.erase(name);
                    }
                    Said::Forget => vouch.forget(name),
                    Said::Stray => {
                        kept.extend(is_seen.then_some((user, *gone)));
                        vouch.withdraw(name, ALL, gone.last_active);
                    }
                },
            }
        }
        let mut calls = self.keep(at, kept.into_iter());
        calls.extend(erased.into_iter().map(|user| self.unkeep(at, user)));
        calls.push(vouch.call(&self.hot_key(at)));
        calls
    }

    /// Writes of offline entries.
    pub(super) fn keep<'e>(
        &self,
        at: usize,
        kept: impl Iterator<Item = (&'e UserBuf, Gone)>,
    ) -> Vec<Call> {
        let mut buckets = std::collections::BTreeMap::<u32, Vec<Vec<u8>>>::new();
        for (user, gone) in kept {
            let bucket = bucket_of(user.user(), self.settings.layout.buckets);
            let words = buckets.entry(bucket).or_default();
            words.push(user.as_str().as_bytes().to_vec());
            words.push(gone.encode().to_vec());
        }
        let calls = buckets.into_iter().map(|(bucket, pairs)| {
            let key = self.partitions.offline_key(self.parts[at].id, bucket);
            let words = [&b"HSET"[..], key.as_bytes()].into_iter();
            Call::plain(words.chain(pairs.iter().map(Vec::as_slice)))
        });
        calls.collect()
    }

    /// When somebody went is decided by the call; what was written before it was a guess.
    /// And of whoever is erased nothing may be left.
    fn correct(&mut self, at: usize, server: Server, now: Now) {
        let part = &mut self.parts[at];
        if part.corrections.is_empty() && part.erased.is_empty() {
            return;
        }
        let corrections = std::mem::take(&mut part.corrections);
        let erased = std::mem::take(&mut part.erased);
        let mut calls = self.keep(at, corrections.iter().map(|(user, gone)| (user, *gone)));
        calls.extend(erased.iter().map(|user| self.unkeep(at, user)));
        let to = To::Partition(self.parts[at].id);
        if !self.send(Asked::Correct, to, server, calls, now) {
            (self.parts[at].corrections, self.parts[at].erased) = (corrections, erased);
        }
    }

    /// Removes the offline entry of a user.
    fn unkeep(&self, at: usize, user: &UserBuf) -> Call {
        let bucket = bucket_of(user.user(), self.settings.layout.buckets);
        let key = self.partitions.offline_key(self.parts[at].id, bucket);
        Call::plain([&b"HDEL"[..], key.as_bytes(), user.as_str().as_bytes()])
    }

    /// What was not sent is to be said still.
    fn unpack(&mut self, at: usize, entries: Vec<Entry>) {
        for entry in entries.into_iter().rev() {
            if let Op::Act(act, _) = entry.op {
                self.parts[at].acts.push_front(act);
            } else if let Some(slot) = entry.slot.filter(|&slot| !self.claims.has(slot, MARKED)) {
                self.claims.set(slot, MARKED);
                self.parts[at].marks.push_front(slot);
            }
        }
    }

    /// No answer came. `maybe`: it may have been done, or be done later.
    pub(super) fn unsaid(&mut self, at: usize, maybe: bool, now: Now) {
        let Some(mut entries) = self.parts[at].flying.take() else {
            return;
        };
        let backoff = 100 << self.parts[at].failures.min(3);
        let wait = backoff / 2 + self.random.u64(..=backoff / 2);
        let part = &mut self.parts[at];
        part.failures += 1;
        part.retry_at = now.mono.plus_ms(wait);
        for slot in entries.iter().filter_map(|entry| entry.slot) {
            self.claims.clear(slot, FLYING);
        }
        if maybe {
            let is_first = self.parts[at].uncertain.is_empty();
            self.parts[at].uncertain.extend(entries.iter().cloned());
            for entry in &mut entries {
                if let Op::Act(act, _) = &mut entry.op {
                    act.is_in_all |= is_first;
                }
            }
        }
        for slot in entries.iter().filter_map(|entry| entry.slot) {
            let own = bits_of(self.local.own(Slot::new(slot), now).kinds);
            if own & PROOF != 0 && self.claims.kinds(slot) & PROOF == 0 {
                self.tell_alone(slot, now);
            }
        }
        self.unpack(at, entries);
    }
}

const ALL: Kinds = Kinds {
    beat: Some(Unix::from_ms(0)),
    stream: true,
    open: true,
    unattended: false,
};

fn gone(clock: Unix, last_active: Unix) -> Gone {
    Gone {
        since: clock,
        last_active: last_active.min(clock),
    }
}
