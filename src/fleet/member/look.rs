//! Looks at a partition: where its numbers are, and what it has of this life. The base is read so,
//! and each partition is audited.

use super::lease::{bytes_of, time_of};
use super::part::{Hearing, Known, Missed};
use super::{Asked, Local, Member, Settings};
use crate::fleet::Malformed;
use crate::fleet::calls::Call;
use crate::fleet::held::{Enrolment, META_FIELD, Meta, life_field};
use crate::fleet::traffic::{Reply, Server, To};
use crate::planted::{self, Planted};
use crate::time::{Mono, Now};

/// A look that found something odd is repeated after that: what is under way may explain it.
const ODD_MS: u64 = 250;

impl<L: Local> Member<L> {
    pub(super) fn look(&mut self, at: usize, server: Server, now: Now) {
        let part = &self.parts[at];
        let is_due = now.mono >= part.look_at && !part.is_looking;
        let is_quiet = part.flying.is_none();
        let may = is_due && (is_quiet || part.hearing == Hearing::Base);
        if !may || !self.has_room(at, server) {
            return;
        }
        let (to, hot) = (To::Partition(self.parts[at].id), self.hot_key(at));
        let life = life_field(self.life);
        let mut calls = vec![Call::plain([
            &b"HMGET"[..],
            hot.as_bytes(),
            META_FIELD,
            &life,
        ])];
        let part = &self.parts[at];
        let asks_ends = part.hearing == Hearing::Base || part.ends.are_due;
        if asks_ends {
            calls.push(self.ends_call(at));
        }
        if self.servers.is_clock_old(server, now.mono) {
            calls.push(Call::plain([&b"TIME"[..]]));
        }
        let asked = Asked::Look {
            at,
            is_quiet,
            asks_ends,
        };
        let is_sent = self.send(asked, to, server, calls, now);
        let part = &mut self.parts[at];
        part.is_looking = is_sent;
        part.ends.are_due &= !is_sent;
    }

    /// When a partition is audited next. Each has its own moment, whatever has had all of them
    /// looked at together: as many are audited in one second as in any other.
    fn audit_at(&self, at: usize, now: Now) -> Mono {
        let Settings {
            audit_ms, renew_ms, ..
        } = self.settings;
        self.ticks.own_after(now.mono, at, audit_ms / renew_ms)
    }

    pub(super) fn looked(
        &mut self,
        at: usize,
        server: Server,
        (is_quiet, asks_ends): (bool, bool),
        replies: &[Reply],
        now: Now,
    ) {
        let audit_at = self.audit_at(at, now);
        let part = &mut self.parts[at];
        part.is_looking = false;
        // A life may have begun behind this look.
        part.look_at = if part.ends.are_due {
            now.mono
        } else {
            audit_at
        };
        let Some((Reply::List(values), rest)) = replies.split_first() else {
            part.ends.are_due |= asks_ends;
            part.look_at = now.mono.plus_ms(1_000);
            return self.answered_oddly(at, replies, now);
        };
        let (ends, time) = rest.split_at(usize::from(asks_ends).min(rest.len()));
        if let Some(said) = time.first().and_then(time_of) {
            self.servers.says(server, said, now.mono);
        }
        self.ends_read(at, ends.first(), now);
        let mut values = values.iter().map(bytes_of);
        let meta = self.meta_of(at, values.next().flatten(), now);
        let own = self.enrolment_of(at, values.next().flatten(), now);
        match self.parts[at].hearing {
            Hearing::Behind => {}
            Hearing::Base => self.rest_on(at, server, meta, now),
            Hearing::InStep => self.compare(at, server, meta, now),
        }
        if is_quiet && self.parts[at].flying.is_none() && self.parts[at].uncertain.is_empty() {
            self.audit(at, meta, own, now);
        }
    }

    /// Neither values nor silence: an error, as a rule.
    pub(super) fn answered_oddly(&mut self, at: usize, replies: &[Reply], now: Now) {
        match replies.first() {
            Some(Reply::Error(text)) => self.was_refused(at, text, now.mono),
            _ => {
                self.counts.malformed += 1;
                self.was_refused(at, "malformed: the answer to HMGET", now.mono);
            }
        }
    }

    /// Where a partition's numbers are. What nobody can read counts as nothing, for the library
    /// too: the next call begins the partition anew.
    pub(super) fn meta_of(&mut self, at: usize, bytes: Option<&[u8]>, now: Now) -> Option<Meta> {
        let meta = bytes.map(Meta::parse).transpose();
        meta.unwrap_or_else(|malformed| self.is_malformed(at, &malformed, now))
    }

    /// The same of what Redis has of this life.
    pub(super) fn enrolment_of(
        &mut self,
        at: usize,
        bytes: Option<&[u8]>,
        now: Now,
    ) -> Option<Enrolment> {
        let own = bytes.map(Enrolment::parse).transpose();
        own.unwrap_or_else(|malformed| self.is_malformed(at, &malformed, now))
    }

    pub(super) fn is_malformed<T>(
        &mut self,
        at: usize,
        malformed: &Malformed,
        now: Now,
    ) -> Option<T> {
        self.counts.malformed += 1;
        self.was_refused(at, &format!("malformed: {}", malformed.0), now.mono);
        None
    }

    /// The base is read.
    fn rest_on(&mut self, at: usize, server: Server, meta: Option<Meta>, now: Now) {
        let part = &mut self.parts[at];
        let was = part.known;
        part.known = Some(Known {
            server,
            birth: meta.map(|meta| meta.birth),
            number: meta.map_or(0, |meta| meta.number),
        });
        part.hearing = Hearing::InStep;
        part.suspect = None;
        let tied = was.filter(|was| was.server == server || planted::is(Planted::BaseUntied));
        match (tied, meta) {
            (Some(was), Some(meta)) if Self::ring_has(was, &meta) => {
                let from = part.missed.map_or(was.number + 1, |missed| missed.from);
                if from <= meta.number {
                    part.missed = Some(Missed {
                        from,
                        to: meta.number,
                        is_asked: false,
                    });
                }
            }
            (Some(was), None) if was.birth.is_none() => {}
            _ => {
                let birth = meta.map(|meta| meta.birth);
                let is_other = was.is_some_and(|was| was.birth.is_some() && was.birth != birth);
                if is_other {
                    self.upset(at, now);
                }
                self.parts[at].read_as_of.clear();
                self.read_all(at);
            }
        }
        for message in std::mem::take(&mut self.parts[at].early) {
            if self.parts[at].hearing == Hearing::InStep {
                self.take_in(at, &message, now);
            }
        }
    }

    /// A look while in step.
    fn compare(&mut self, at: usize, server: Server, meta: Option<Meta>, now: Now) {
        if planted::is(Planted::AuditOff) {
            return;
        }
        let Some(known) = self.parts[at].known else {
            return;
        };
        let birth = meta.map(|meta| meta.birth);
        if known.birth.is_some() && known.birth != birth {
            self.upset(at, now);
            self.alarm(at, server, now);
            self.parts[at].distrust();
            return self.repair(at, now);
        }
        let number = meta.map_or(0, |meta| meta.number);
        if number > known.number {
            // It may be on its way. If it is not there at the next look, it was lost.
            let was = self.parts[at].suspect.replace(number);
            if was.is_some_and(|was| known.number < was) {
                return self.repair(at, now);
            }
            self.parts[at].look_at = now.mono.plus_ms(ODD_MS);
        } else if number < known.number {
            // Redis has gone back, and its server did not change.
            if self.parts[at].suspect.is_some() {
                self.upset(at, now);
                self.parts[at].distrust();
                return self.repair(at, now);
            }
            self.parts[at].suspect = Some(number);
            self.parts[at].look_at = now.mono.plus_ms(ODD_MS);
        } else {
            self.parts[at].suspect = None;
        }
    }

    /// Whether Redis has of this life what it was told.
    fn audit(&mut self, at: usize, meta: Option<Meta>, own: Option<Enrolment>, now: Now) {
        if planted::is(Planted::AuditOff) {
            return;
        }
        let audit_at = self.audit_at(at, now);
        let part = &mut self.parts[at];
        let Some(own) = own else {
            if part.is_enrolled {
                self.reconcile(at, 0, now);
            }
            return;
        };
        if own.is_fenced {
            return self.begin_life(now);
        }
        if own.k != part.k && !planted::is(Planted::NumbersIgnored) {
            return self.reconcile(at, own.k, now);
        }
        let number = meta.map_or(0, |meta| meta.number);
        let is_comparable = part.marks.is_empty()
            && part.walk.is_none()
            && part.missed.is_none()
            && part.known.is_some_and(|known| known.number == number);
        if own.count == part.count {
            part.count_off = 0;
        } else if is_comparable {
            part.count_off += 1;
            part.look_at = now.mono.plus_ms(ODD_MS);
            if part.count_off == 2 {
                self.reconcile(at, own.k, now);
            } else if part.count_off > 3 {
                // All who have a slot were compared: somebody has none.
                part.count_off = 0;
                part.look_at = audit_at;
                self.reap_strays(at, own.count, now);
            }
        }
    }

    /// What Redis has of this life is not what it was told: both are compared user by user.
    pub(super) fn reconcile(&mut self, at: usize, k: u64, now: Now) {
        self.counts.reconciles += 1;
        let part = &mut self.parts[at];
        part.k = part.k.max(k);
        part.leaps = true;
        part.is_lossy = true;
        part.is_enrolled = k > 0;
        self.read_all(at);
        self.schedule(at, now.mono);
    }
}
