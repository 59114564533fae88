//! What came of what was said.

use super::claims::{FLYING, KINDS, UNATTENDED, UNSURE, bits_of};
use super::lease::bytes_of;
use super::part::{Entry, Op, Said};
use super::{Local, Member};
use crate::fleet::held::Gone;
use crate::fleet::replies::{Outcome, Refusal, Vouched};
use crate::fleet::traffic::Reply;
use crate::planted::{self, Planted};
use crate::time::{Now, Unix};

impl<L: Local> Member<L> {
    /// An answer to a call came.
    pub(super) fn vouched(&mut self, at: usize, replies: &[Reply], now: Now) {
        match replies.last() {
            Some(Reply::Error(text)) => self.refused(at, text, now),
            Some(reply) => match bytes_of(reply).map(Vouched::parse) {
                Some(Ok(vouched)) => self.was_said(at, vouched, now),
                Some(Err(_)) | None => {
                    self.counts.malformed += 1;
                    self.unsaid(at, true, now);
                }
            },
            None => self.unsaid(at, true, now),
        }
    }

    fn refused(&mut self, at: usize, text: &str, now: Now) {
        self.unsaid(at, false, now);
        match Refusal::parse(text) {
            Some(Refusal::Late(said)) => {
                self.counts.late += 1;
                if let Some(server) = self.parts[at].server {
                    self.servers.says(server, said, now.mono);
                }
            }
            Some(Refusal::Fenced) => self.begin_life(now),
            Some(Refusal::NotEnrolled) => {
                self.upset(at, now);
                if let Some(server) = self.parts[at].server {
                    self.alarm(at, server, now);
                }
                self.begin_part(at);
                self.reconcile(at, 0, now);
                self.parts[at].look_at = now.mono;
            }
            Some(Refusal::Gap(had)) => {
                self.parts[at].settle_until = now.mono.plus_ms(self.settle_ms());
                self.reap_anew(at);
                self.reconcile(at, had, now);
                self.parts[at].look_at = now.mono;
            }
            // It is loaded at once.
            Some(Refusal::NoLibrary) => self.counts.refused += 1,
            Some(Refusal::Taken | Refusal::Full | Refusal::Arguments) | None => {
                self.was_refused(at, text, now.mono);
            }
        }
    }

    /// Redis has nothing of this life in a partition.
    fn begin_part(&mut self, at: usize) {
        let slots: Vec<u32> = self.claims.of(at as u16, 0, usize::MAX).0;
        for slot in slots {
            self.claims.set_kinds(slot, 0);
        }
        self.parts[at].count = 0;
    }

    fn was_said(&mut self, at: usize, vouched: Vouched, now: Now) {
        let part = &mut self.parts[at];
        let entries = part.flying.take().unwrap_or_default();
        let uncertain = std::mem::take(&mut part.uncertain);
        part.failures = 0;
        part.retry_at = now.mono;
        part.spoke_at = now.mono;
        part.leaps = false;
        part.is_enrolled = true;
        part.refused_at = None;
        if let Some(server) = part.server {
            self.servers.took(server);
        }
        for slot in entries
            .iter()
            .chain(&uncertain)
            .filter_map(|entry| entry.slot)
        {
            self.claims.clear(slot, FLYING);
        }
        match vouched {
            Vouched::Done {
                number,
                since,
                outcomes,
                ..
            } => {
                self.counts.vouches += 1;
                self.parts[at].k += 1;
                self.counts.said += entries.len() as u64;
                for (entry, outcome) in entries.into_iter().zip(outcomes) {
                    self.came_of(at, number, since, entry, outcome, now);
                }
                // Those of earlier calls with this number have not been done, and never will be.
                for slot in uncertain.into_iter().filter_map(|entry| entry.slot) {
                    self.evaluate(slot, now);
                }
            }
            Vouched::Duplicate { k, .. } => {
                self.counts.duplicates += 1;
                self.parts[at].k = k;
                // One of the earlier calls was done, and this one not. Which of the users it named
                // is read. What is said once is done if all calls had it; else it may not be.
                let trusts = planted::is(Planted::SaidWithAnother);
                for act in entries.iter().rev().filter_map(Entry::act) {
                    match act.is_in_all || trusts {
                        true => self.parts[at].note_done(act, 0, now.mono),
                        false => self.parts[at].acts.push_front(act.clone()),
                    }
                }
                for slot in uncertain.into_iter().filter_map(|entry| entry.slot) {
                    self.claims.set(slot, UNSURE);
                    self.want(slot);
                }
                for slot in entries.into_iter().filter_map(|entry| entry.slot) {
                    self.claims.set(slot, UNSURE);
                    self.want(slot);
                    self.evaluate(slot, now);
                }
            }
        }
        self.schedule(at, now.mono);
    }

    /// What came of what was said of one user, as of message `number`.
    fn came_of(
        &mut self,
        at: usize,
        number: u64,
        since: Unix,
        entry: Entry,
        outcome: Outcome,
        now: Now,
    ) {
        if let Some(act) = entry.act() {
            self.parts[at].note_done(act, number, now.mono);
        }
        let Entry { user, slot, op } = entry;
        let last_active = match &op {
            Op::Claim(_) => None,
            Op::Withdraw(_, gone) => Some(gone.last_active),
            Op::Act(act, gone) => match act.what {
                Said::Goodbye { .. } | Said::LogOut(_) | Said::Stray => Some(gone.last_active),
                // It has hidden, as if by a goodbye.
                Said::Flags(_) => Some(since),
                Said::Erase | Said::Forget => None,
            },
        };
        if let Some(last_active) = last_active.filter(|_| outcome == Outcome::Told) {
            let last_active = last_active.min(since);
            let gone = Gone { since, last_active };
            self.parts[at].corrections.push((user.clone(), gone));
        }
        let is_goodbye = matches!(&op, Op::Act(act, _) if matches!(act.what, Said::Goodbye { .. }));
        if is_goodbye && !matches!(outcome, Outcome::Told | Outcome::Private) {
            self.local.judged(user.user());
        }
        let what = match &op {
            Op::Act(act, _) => Some(&act.what),
            Op::Claim(_) | Op::Withdraw(..) => None,
        };
        let is_forgotten = matches!(what, Some(Said::Forget)) && outcome == Outcome::Told;
        self.counts.forgotten += u64::from(is_forgotten);
        if is_forgotten || matches!(what, Some(Said::Erase)) {
            // Somebody may have written it since, for who went by then.
            self.parts[at].erased.push(user.clone());
        }
        let Some(slot) = slot else {
            return;
        };
        let had = self.claims.kinds(slot);
        let kinds = match (&op, outcome) {
            (Op::Claim(_), Outcome::NotHere) => 0,
            (Op::Claim(bits), Outcome::Told) => *bits,
            (Op::Claim(bits), _) => had & !UNATTENDED | bits,
            (Op::Withdraw(..), Outcome::Told | Outcome::Private | Outcome::NotHere) => 0,
            (Op::Withdraw(bits, _), _) => had & !bits,
            (Op::Act(act, _), outcome) => match (&act.what, outcome) {
                (Said::Flags(_), Outcome::NotHere) => 0,
                (Said::Flags(_), _) => had,
                (Said::Goodbye { kinds, .. }, Outcome::Streams | Outcome::Later) => {
                    had & !bits_of(*kinds)
                }
                (Said::Forget, Outcome::Quiet) => had,
                (
                    Said::Goodbye { .. }
                    | Said::LogOut(_)
                    | Said::Erase
                    | Said::Forget
                    | Said::Stray,
                    _,
                ) => 0,
            },
        };
        let is_touched = self.parts[at].is_touched(user.user(), number);
        if !is_touched
            && self.parts[at]
                .known
                .is_some_and(|known| known.number < number)
        {
            self.parts[at].claimed_as_of.push((number, user));
        }
        self.set_kinds(slot, if is_touched { 0 } else { kinds & KINDS });
        if matches!(op, Op::Claim(_)) && matches!(outcome, Outcome::Quiet | Outcome::Updated) {
            // Somebody else claims it too; since when it is here may not be known here.
            self.want(slot);
        }
        if outcome != Outcome::NotHere {
            self.evaluate(slot, now);
        }
    }
}
