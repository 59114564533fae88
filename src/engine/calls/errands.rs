//! What a request that is parked on one shard waits for at others.
//!
//! Owns the errands, from the shard that sends them to the answer that waits for them. An answer
//! says what every query on this node will say from then on: so a beat of somebody who was offline,
//! or a goodbye, is answered once the owners of their slots have looked. Who is online already
//! makes nobody wait. Costs two pieces of mail for each shard concerned.

use std::sync::Arc;

use super::refused::Refused;
use super::served::{LogOut, NewStream, Served, Then, Waits, overloaded};
use super::streams::ended;
use crate::engine::conn::pending::Pending;
use crate::engine::errand::{Asker, Errand, Goodbye, PutOff, Task, Verdict};
use crate::engine::farewells::HOLDERS_MS_MAX;
use crate::engine::mail::{Mail, ShardId};
use crate::engine::parts::Engine;
use crate::engine::upstream::{Outbound, Say};
use crate::metrics::Counter;
use crate::realtime::ConnId;
use crate::slot::Slot;
use crate::time::{Mono, Now, Unix};
use crate::wire::UserBuf;
use crate::wire::record::Said;
use crate::wire::response::{Answer, problems};

/// An answer waits so long for other shards, in ms.
pub(in crate::engine) const WAIT_MS_MAX: u64 = 1_000;
/// Stands for how many errands there will be while that is not known.
const UNSAID: i32 = 1 << 16;

const UNANSWERED: &str = "another shard of the server has not answered in time; what was asked for \
                          may have happened";
const BUSY: &str = "another shard of the server is busy; what was asked for may have happened in \
                    part";

/// Errands of one request, gathered by shard.
#[derive(Debug, Default)]
pub(in crate::engine) struct Errands {
    looks: Vec<(ShardId, Vec<Slot>)>,
    put_off: Vec<(ShardId, Vec<PutOff>)>,
    /// Goodbyes for which real-time nodes are asked.
    asked: i32,
    /// What users have said of themselves, for a fleet.
    said: Vec<(UserBuf, Said)>,
    /// Who has been logged out then, for a fleet.
    logged_out: (Vec<UserBuf>, Unix),
}

impl Errands {
    /// The slot's owner must look; this shard does at once.
    pub(in crate::engine) fn look(&mut self, engine: &mut Engine, slot: Slot, now: Now) {
        let owner = slot.owner(engine.node.shards);
        if owner == engine.node.shard {
            engine.look_own(slot, now);
        } else {
            push(&mut self.looks, owner, slot);
        }
    }

    /// Real-time nodes are asked; see [`Engine::errand_decided`].
    pub(in crate::engine) fn wait_for_answer(&mut self) {
        self.asked += 1;
    }

    /// A fleet is told what a user says of itself.
    pub(super) fn tell_fleet(&mut self, user: UserBuf, said: Said) {
        self.said.push((user, said));
    }

    /// A fleet is told who has been logged out at that time.
    fn log_out_of_fleet(&mut self, users: Vec<UserBuf>, at: Unix) {
        self.logged_out = (users, at);
    }

    /// The slot's owner must put a goodbye off.
    pub(in crate::engine) fn put_off(&mut self, engine: &Engine, goodbye: PutOff) {
        let owner = goodbye.slot.owner(engine.node.shards);
        push(&mut self.put_off, owner, goodbye);
    }

    /// Sends them out, but for those that this shard can see to. Returns how many will be answered.
    fn send(self, engine: &mut Engine, asker: Asker, due: Mono) -> (i32, Verdict) {
        let (mut sent, mut verdict) = (self.asked, Verdict::Done);
        for (user, said) in self.said {
            let say = Say {
                user,
                said,
                attended: false,
                asker,
            };
            engine.posts.says.push_back(say);
            sent += 1;
        }
        let (users, at) = self.logged_out;
        if let Some(upstream) = engine.upstream.as_mut().filter(|_| !users.is_empty()) {
            sent += users.len() as i32;
            let logged_out = Outbound::FleetLogOut { users, at, asker };
            upstream.outbound.push_back(logged_out);
        }
        for (owner, slots) in self.looks {
            engine.send_errand(owner, Task::Look(slots), asker);
            sent += 1;
        }
        for (owner, goodbyes) in self.put_off {
            if owner == engine.node.shard {
                verdict = verdict.max(engine.put_off(&goodbyes, due));
            } else {
                engine.send_errand(owner, Task::PutOff(goodbyes, due), asker);
                sent += 1;
            }
        }
        (sent, verdict)
    }

    /// The answer waits for them, if there are any.
    pub(super) fn park(self, engine: &mut Engine, conn: ConnId, then: Then, now: Now) -> Served {
        let asker = engine.asker(conn, now);
        let (errands, verdict) = self.send(engine, asker, now.mono);
        engine.parked_for(errands, verdict, then, asker, now)
    }
}

fn push<T>(lists: &mut Vec<(ShardId, Vec<T>)>, shard: ShardId, item: T) {
    match lists.iter_mut().find(|(other, _)| *other == shard) {
        Some((_, list)) => list.push(item),
        None => lists.push((shard, vec![item])),
    }
}

impl Engine {
    fn asker(&self, conn: ConnId, now: Now) -> Asker {
        let asks_ms = if self.farewells.ask() {
            HOLDERS_MS_MAX
        } else {
            0
        };
        Asker {
            shard: self.node.shard,
            conn,
            until: now.mono.plus_ms(asks_ms + WAIT_MS_MAX),
        }
    }

    /// Real-time nodes have been asked whether a goodbye counts; if it does, the slot's owner must
    /// look.
    pub(in crate::engine) fn errand_decided(&mut self, asker: Asker, slot: Option<Slot>, now: Now) {
        let mut errands = Errands::default();
        if let Some(slot) = slot {
            errands.look(self, slot, now);
        }
        let (more, verdict) = errands.send(self, asker, now.mono);
        self.errand_ran(asker.conn, more, verdict, now);
    }

    pub(super) fn send_errand(&mut self, to: ShardId, task: Task, asker: Asker) {
        let errand = Errand { task, asker };
        self.posts.letter(to, Mail::Errand(Arc::new(errand)));
    }

    /// What a request with so many errands under way comes to.
    pub(super) fn parked_for(
        &mut self,
        errands: i32,
        verdict: Verdict,
        then: Then,
        asker: Asker,
        now: Now,
    ) -> Served {
        if errands == 0 {
            return match then {
                Then::Answer(answer) => self.judged(verdict, answer).into(),
                Then::Stream(new) => Served::Stream(new),
                Then::Own(slot) => self.own_served(asker.conn, slot, verdict, now),
                Then::Owns(slots) => {
                    let answer = self.own_answers(&slots, now);
                    self.judged(verdict, answer).into()
                }
                Then::PassedOn(call) => self.passed_on_answer(*call, now).into(),
                Then::LogOut(..)
                | Then::Opens(_)
                | Then::Streams(_)
                | Then::Online(_)
                | Then::Described
                | Then::Left(_)
                | Then::Ended => {
                    unreachable!("its errands are sent out by itself")
                }
            };
        }
        Served::Parked {
            until: asker.until,
            unanswered: UNANSWERED,
            refused: Refused::default(),
            waits: Some(Box::new(Waits {
                errands,
                verdict,
                then,
            })),
        }
    }

    pub(super) fn judged(&mut self, verdict: Verdict, answer: Answer) -> Answer {
        match verdict {
            Verdict::Done => answer,
            Verdict::UnknownStream | Verdict::Spent => self.unknown_stream(),
            Verdict::NotKept => overloaded(
                "the revocation is in force, and will be told again after a restart only if it is \
                 said again: its file can not be written",
            ),
            Verdict::Full => {
                overloaded("as many goodbyes are put off as may be; say it without after_ms")
            }
        }
    }

    /// A goodbye names a stream alone, which is not open.
    pub(super) fn unknown_stream(&self) -> Answer {
        let detail = "no stream with this id is open; name the users too, so that their goodbye \
                      counts without it";
        Answer::problem(problems::UNKNOWN_STREAM, detail)
    }

    /// Takes a goodbye: here, or on the shard that holds the stream that it names.
    pub(super) fn farewell(
        &mut self,
        conn: ConnId,
        shard: ShardId,
        goodbye: Goodbye,
        answer: Answer,
        now: Now,
    ) -> Served {
        let asker = self.asker(conn, now);
        let then = Then::Answer(answer);
        if shard == self.node.shard {
            let (errands, verdict) = self.take_goodbye(&goodbye, asker, now);
            return self.parked_for(errands, verdict, then, asker, now);
        }
        self.send_errand(shard, Task::Goodbye(goodbye), asker);
        self.parked_for(1 + UNSAID, Verdict::Done, then, asker, now)
    }

    fn take_goodbye(&mut self, goodbye: &Goodbye, asker: Asker, now: Now) -> (i32, Verdict) {
        let mut errands = Errands::default();
        let verdict = self.say_goodbyes(goodbye, &mut errands, asker, now);
        let due = now.mono.plus_ms(goodbye.after_ms);
        let (sent, also) = errands.send(self, asker, due);
        (sent, verdict.max(also))
    }

    /// Logs users out: first every shard takes note of it, then their beats count no more.
    pub(super) fn log_out(
        &mut self,
        conn: ConnId,
        logging_out: LogOut,
        answer: Answer,
        now: Now,
    ) -> Served {
        let asker = self.asker(conn, now);
        let LogOut { slots, at, .. } = &logging_out;
        if slots.is_empty() {
            return self.logged_out(conn, logging_out, answer, now);
        }
        let places = self.conns.places();
        if !self.passes.logging_out.begin(slots, at.here(), places) {
            return self.judged(Verdict::Full, answer).into();
        }
        let others = (0..self.node.shards).filter(|shard| *shard != self.node.shard);
        for shard in others.collect::<Vec<_>>() {
            self.send_errand(shard, Task::LogOut(Arc::clone(slots), at.here()), asker);
        }
        match i32::from(self.node.shards) - 1 {
            0 => self.logged_out(conn, logging_out, answer, now),
            errands => self.parked_for(
                errands,
                Verdict::Done,
                Then::LogOut(Box::new(logging_out), answer),
                asker,
                now,
            ),
        }
    }

    /// Every shard knows of it.
    fn logged_out(&mut self, conn: ConnId, logged_out: LogOut, answer: Answer, now: Now) -> Served {
        let LogOut { slots, users, at } = logged_out;
        let mut errands = Errands::default();
        errands.log_out_of_fleet(users, at.here().unwrap_or(now.unix));
        for slot in slots.iter() {
            if self.part_for_good(*slot, at.time(), now) {
                errands.look(self, *slot, now);
            }
        }
        errands.park(self, conn, Then::Answer(answer), now)
    }

    /// Does what another shard's request waits for.
    pub(in crate::engine) fn run_errand(&mut self, errand: &Errand, now: Now) {
        let asker = errand.asker;
        let (more, verdict) = match &errand.task {
            Task::Look(slots) => {
                slots.iter().for_each(|slot| self.look_own(*slot, now));
                (0, Verdict::Done)
            }
            // Its asker has been told that it may have happened, and may have asked for something
            // else since.
            _ if now.mono > asker.until => return,
            Task::PutOff(goodbyes, due) => (0, self.put_off(goodbyes, *due)),
            Task::Goodbye(goodbye) => {
                let (sent, verdict) = self.take_goodbye(goodbye, asker, now);
                (sent - UNSAID, verdict)
            }
            Task::LogOut(slots, at) => {
                let places = self.conns.places();
                let begun = self.passes.logging_out.begin(slots, *at, places);
                (0, if begun { Verdict::Done } else { Verdict::Full })
            }
            Task::Seek(seek) => return self.passes.seeking.begin(asker, seek.clone()),
            Task::Describe(stream) => {
                let sought = self.describe(*stream, now);
                return self.tell_sought(asker, sought, now);
            }
            Task::End(stream, by) => (0, self.end_for(*stream, by, now)),
        };
        let ran = Mail::Ran {
            conn: asker.conn,
            more,
            verdict,
        };
        if asker.shard == self.node.shard {
            self.handle_mail(ran, now);
        } else {
            self.posts.letter(asker.shard, ran);
        }
    }

    /// An errand has been run, which has led to so many `more`.
    pub(in crate::engine) fn errand_ran(
        &mut self,
        id: ConnId,
        more: i32,
        verdict: Verdict,
        now: Now,
    ) {
        let Some(waits) = self.conns.waits(id) else {
            return;
        };
        waits.errands += more - 1;
        waits.verdict = waits.verdict.max(verdict);
        if waits.errands > 0 {
            return;
        }
        let Some(mut pending) = self.conns.unpark(id) else {
            return;
        };
        let Some(waits) = pending.waits.take() else {
            return;
        };
        let Waits { verdict, then, .. } = *waits;
        let served = match then {
            Then::Answer(answer) => self.judged(verdict, answer).into(),
            Then::Own(slot) => self.own_served(id, slot, verdict, now),
            Then::Owns(slots) => {
                let answer = self.own_answers(&slots, now);
                self.judged(verdict, answer).into()
            }
            Then::PassedOn(call) => self.passed_on_answer(*call, now).into(),
            Then::Stream(new) => return self.begin_parked_stream(id, &pending, *new, now),
            Then::Opens(opening) => {
                if self.conns.at(id.index).has_hung_up() {
                    self.counters.add(Counter::ClosedPeer, 1);
                    return self.conns.cut(id);
                }
                match self.open_by_ticket(id, *opening, verdict, now) {
                    Served::Stream(new) => {
                        return self.begin_parked_stream(id, &pending, *new, now);
                    }
                    served => served,
                }
            }
            Then::LogOut(_, answer) if verdict != Verdict::Done => {
                self.judged(verdict, answer).into()
            }
            Then::LogOut(logging_out, answer) => self.logged_out(id, *logging_out, answer, now),
            Then::Ended => ended(verdict).into(),
            Then::Streams(_) | Then::Online(_) | Then::Described | Then::Left(_) => {
                unreachable!("no errand of it is run so")
            }
        };
        self.carry_out(id, pending, served, now);
    }

    fn begin_parked_stream(&mut self, id: ConnId, pending: &Pending, mut new: NewStream, now: Now) {
        let conn = self.conns.at(id.index);
        let (gone, paused) = (conn.has_hung_up(), conn.is_paused());
        if gone {
            self.counters.add(Counter::ClosedPeer, 1);
            return self.conns.cut(id);
        }
        // Others may have taken the room meanwhile.
        if self.conns.watches.len() + new.watch.len() > self.settings.watches_per_shard_max {
            self.counters.add(Counter::LimitWatchesPerShard, 1);
            return self.refuse_stream(id, pending, "watches", now);
        }
        // And its user may have said goodbye.
        new.vouched = false;
        self.begin_stream(id, pending, new, now);
        if paused {
            // What a stream's reader says is thrown away, and its end is seen.
            self.conns.resume(id);
        }
    }

    /// An errand found a full mailbox.
    pub(in crate::engine) fn errand_bounced(&mut self, errand: &Errand, now: Now) {
        let Asker { shard, conn, .. } = errand.asker;
        if shard != self.node.shard {
            // Of a goodbye that another shard has handed on: its asker waits in vain, and is told
            // so in time.
            return;
        }
        if let Some(waits) = self.conns.waits(conn) {
            waits.errands = 0;
            self.give_up(conn, BUSY, now);
        }
    }
}
