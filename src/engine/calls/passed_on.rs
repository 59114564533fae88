//! Queries and beats at a real-time node: presence nodes answer them.
//!
//! Owns how a call is taken apart by whose users it names, and how the answers become one: what a
//! presence node would say to which all of them belong, byte for byte. It is all or nothing: where
//! a node does not answer, the call is refused and names it, for nobody else knows who of its users
//! is here. Decides nothing, and keeps nothing of what it is told.

use super::beat::beaten;
use super::caller::Caller;
use super::ignored::Ignored;
use super::query::Listed;
use super::refused::Refused;
use super::served::{RETRY_AFTER, Served, Then, Waits, overloaded};
use crate::engine::errand::{Asker, Verdict};
use crate::engine::mail::{Came, Passed};
use crate::engine::parts::Engine;
use crate::engine::role::Role;
use crate::engine::upstream::{Part, Room, USERS_PER_PART_MAX, Wanted};
use crate::metrics::Counter;
use crate::presence::InternFault;
use crate::realtime::ConnId;
use crate::status::Status;
use crate::time::Now;
use crate::wire::record::{BeatAsk, Entry, LastActive, Record, Told};
use crate::wire::response::{Answer, problems};
use crate::wire::{User, UserBuf};

/// A call waits so long for presence nodes, in ms: it may be behind a request that times out.
const PASSING_MS_MAX: u64 = 3_000;

/// A call that waits for presence nodes.
#[derive(Debug)]
pub(in crate::engine) struct PassedOn {
    shape: Shape,
    /// How exactly the caller is told when others were last active.
    last_active: LastActive,
    refused: Refused,
    parts: Vec<Share>,
    /// What has come, by its place in the request's list.
    states: Vec<Option<Told>>,
    invisible: Vec<(usize, UserBuf)>,
    /// As its user alone is told it.
    own: Option<(Told, bool)>,
    _room: Room,
}

/// What is answered.
#[derive(Debug)]
pub(super) enum Shape {
    /// The one record.
    One,
    /// The same, to the user itself.
    Own(UserBuf),
    /// A list of records.
    Listed(Ignored),
    /// That beats were taken.
    Beaten,
}

/// What of a call is one presence node's.
#[derive(Debug)]
struct Share {
    node: usize,
    /// The places of its users in the request's list.
    places: Vec<usize>,
    state: Answered,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answered {
    NotYet,
    Yes,
    /// The node does not answer.
    Never,
}

/// `POST /v1/beat`.
pub(super) fn beat(engine: &mut Engine, asker: ConnId, ask: BeatAsk, now: Now) -> Served {
    let mut refused = Refused::naming_all();
    let mut users = Vec::with_capacity(ask.users.len());
    for (place, user) in ask.users.into_iter().enumerate() {
        match user {
            Ok(user) if engine.may_pass_on(&user, now) => users.push((place, user)),
            Ok(_) => {
                engine.book_intern_fault(InternFault::TooFast);
                refused.add(place, InternFault::TooFast, &mut engine.counters);
            }
            Err(fault) => refused.add(place, fault, &mut engine.counters),
        }
    }
    let (said, idle_ms) = (ask.said, ask.idle_ms);
    let wanted = Wanted::Beats { said, idle_ms };
    let call = Call {
        shape: Shape::Beaten,
        last_active: LastActive::Exact,
        refused,
    };
    engine.pass_call_on(asker, (wanted, call), users, now)
}

/// What a call is beside its users.
struct Call {
    shape: Shape,
    last_active: LastActive,
    refused: Refused,
}

impl Engine {
    /// Asks presence nodes for the states of those that are users.
    pub(super) fn pass_query_on(
        &mut self,
        asker: ConnId,
        users: Vec<Entry>,
        shape: Shape,
        caller: &Caller,
        now: Now,
    ) -> Served {
        let mut refused = Refused::default();
        let mut named = Vec::with_capacity(users.len());
        for (place, user) in users.into_iter().enumerate() {
            match user {
                Ok(user) => named.push((place, user)),
                Err(fault) => refused.add(place, fault, &mut self.counters),
            }
        }
        let wanted = match &shape {
            Shape::Own(_) => Wanted::Own,
            _ => Wanted::States,
        };
        let call = Call {
            shape,
            last_active: caller.last_active(),
            refused,
        };
        self.pass_call_on(asker, (wanted, call), named, now)
    }

    /// Asks what a user truly is, for its holder.
    pub(super) fn ask_for_own(&mut self, asker: ConnId, user: User<'_>, now: Now) -> Served {
        let call = Call {
            shape: Shape::Own(user.into()),
            last_active: LastActive::Exact,
            refused: Refused::default(),
        };
        self.pass_call_on(asker, (Wanted::Own, call), vec![(0, user.into())], now)
    }

    /// Whether a beat of this user may go to a presence node: it may make one there, and what a
    /// connection may is known here alone. Who is known here exists.
    fn may_pass_on(&mut self, user: &UserBuf, now: Now) -> bool {
        let may = self.presence.lookup(user.user()).is_some() || self.takes_new(now);
        if !may {
            self.counters.add(Counter::LimitNewUsersOfConn, 1);
        }
        may
    }

    fn pass_call_on(
        &mut self,
        conn: ConnId,
        (wanted, call): (Wanted, Call),
        users: Vec<(usize, UserBuf)>,
        now: Now,
    ) -> Served {
        let asker = Asker {
            shard: self.node.shard,
            conn,
            until: now.mono.plus_ms(PASSING_MS_MAX),
        };
        let max = self.settings.passed_users_max;
        let Some(upstream) = &mut self.upstream else {
            unreachable!("who follows alone passes calls on");
        };
        let Some(room) = upstream.rooms.take(users.len(), max) else {
            self.counters.add(Counter::LimitPassedUsers, 1);
            return overloaded(
                "as many users as may be wait for presence nodes already (passed-users-max)",
            )
            .into();
        };
        let places = users.last().map_or(0, |(place, _)| place + 1);
        let mut shares: Vec<(Share, Vec<UserBuf>)> = Vec::new();
        for (place, user) in users {
            let node = upstream.nodes.of(user.as_str().as_bytes());
            let has_room = |(share, users): &&mut (Share, Vec<UserBuf>)| {
                share.node == node && users.len() < USERS_PER_PART_MAX
            };
            match shares.iter_mut().find(has_room) {
                Some((share, users)) => {
                    share.places.push(place);
                    users.push(user);
                }
                None => {
                    let share = Share {
                        node,
                        places: vec![place],
                        state: Answered::NotYet,
                    };
                    shares.push((share, vec![user]));
                }
            }
        }
        let mut parts = Vec::with_capacity(shares.len());
        for (index, (share, users)) in shares.into_iter().enumerate() {
            let part = Part {
                wanted,
                users,
                asker,
                index,
                _room: room.clone(),
            };
            upstream.pass(share.node, part);
            parts.push(share);
        }
        let errands = parts.len() as i32;
        let passed_on = PassedOn {
            shape: call.shape,
            last_active: call.last_active,
            refused: call.refused,
            parts,
            states: vec![None; places],
            invisible: Vec::new(),
            own: None,
            _room: room,
        };
        let then = Then::PassedOn(Box::new(passed_on));
        self.parked_for(errands, Verdict::Done, then, asker, now)
    }

    /// Presence nodes have answered, or have not.
    pub(in crate::engine) fn finish_passing(&mut self, passed: &[Passed], now: Now) {
        let shard = self.node.shard;
        for Passed { asker, index, came } in passed.iter().filter(|it| it.asker.shard == shard) {
            let Some(waits) = self.conns.waits(asker.conn) else {
                continue;
            };
            let Waits {
                then: Then::PassedOn(call),
                ..
            } = waits
            else {
                continue;
            };
            match call.take(*index, came.as_ref()) {
                true => self.errand_ran(asker.conn, 0, Verdict::Done, now),
                false => self.give_up(asker.conn, "", now),
            }
        }
    }

    /// What a call comes to that all presence nodes have answered.
    pub(super) fn passed_on_answer(&mut self, call: PassedOn, now: Now) -> Answer {
        let PassedOn {
            shape,
            last_active,
            mut refused,
            states,
            mut invisible,
            own,
            ..
        } = call;
        let mut states = states.iter().flatten();
        if let Shape::Beaten = shape {
            invisible.sort_by_key(|(place, _)| *place);
            let invisible: Vec<&str> = invisible.iter().map(|(_, it)| it.as_str()).collect();
            refused.settle();
            return beaten(&invisible, &refused);
        }
        let mut body = self.conns.scratch();
        match shape {
            Shape::One => {
                if let Some(told) = states.next() {
                    let record = self.as_written(told.record(), now);
                    record.told_at(last_active).write(&mut body);
                }
            }
            Shape::Own(user) => match own {
                Some((told, invisible)) => self
                    .as_written(told.record(), now)
                    .write_own(invisible, &mut body),
                None => Record::timeless(user.user(), Status::Offline).write(&mut body),
            },
            Shape::Listed(ignored) => {
                let mut list = Listed::begin(&mut body);
                for told in states {
                    let record = self.as_written(told.record(), now);
                    list.add(record.told_at(last_active), None);
                }
                list.end(&refused, &ignored);
            }
            Shape::Beaten => unreachable!("it has no body of records"),
        }
        Answer::json(body)
    }

    /// What a call comes to that some presence node has not answered.
    pub(super) fn unreached(&mut self, call: &PassedOn) -> Answer {
        self.counters.add(Counter::CallsUnanswered, 1);
        let detail = call.unreached(&self.node.role);
        Answer::problem(problems::NODE_UNREACHED, &detail).with_lines(RETRY_AFTER)
    }
}

impl PassedOn {
    /// Takes what has come of a part. False: nothing has, or nothing that can be understood.
    fn take(&mut self, index: usize, came: Option<&Came>) -> bool {
        let Some(share) = self.parts.get_mut(index) else {
            return true;
        };
        share.state = Answered::Never;
        let place = |at: usize| share.places.get(at).copied();
        match came {
            None => return false,
            Some(Came::Own(own)) => self.own.clone_from(own),
            Some(Came::States(states)) => {
                for (told, place) in states.iter().zip(&share.places) {
                    self.states[*place] = Some(told.clone());
                }
            }
            Some(Came::Beaten { invisible, refused }) => {
                for (at, user) in invisible {
                    self.invisible
                        .extend(place(*at).map(|place| (place, user.clone())));
                }
                for (at, word) in refused {
                    let added = place(*at).is_some_and(|place| self.refused.take_over(place, word));
                    if !added {
                        return false;
                    }
                }
            }
        }
        share.state = Answered::Yes;
        true
    }

    /// Which nodes have not answered: those that will not, or all that might have.
    fn unreached(&self, role: &Role) -> String {
        let of = |state: Answered| self.parts.iter().filter(move |part| part.state == state);
        let missing: Vec<&Share> = match of(Answered::Never).count() {
            0 => of(Answered::NotYet).collect(),
            _ => of(Answered::Never).collect(),
        };
        let mut nodes: Vec<usize> = missing.iter().map(|part| part.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let name = |node: usize| match role {
            Role::Realtime(nodes) | Role::Fleet(nodes) => {
                nodes.http(node).unwrap_or_default().to_owned()
            }
            Role::All | Role::Presence => String::new(),
        };
        let names: Vec<String> = nodes.into_iter().map(name).collect();
        let users: usize = missing.iter().map(|part| part.places.len()).sum();
        let names = names.join(" and ");
        let what = match self.shape {
            Shape::Beaten => "their beats may count, or not",
            _ => "nobody else knows their states",
        };
        format!(
            "no answer from the presence node {names}, to which {users} of the users belong; {what}"
        )
    }
}
