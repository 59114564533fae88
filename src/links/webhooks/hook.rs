//! One webhook without a kernel: whose state its receiver is still to be told, in which order, and
//! up to when it has been told everything.
//!
//! Owns one entry a user however often it changes, in the order of the first change. States are
//! encoded when a message is made, from what they are then; so an outage costs each user one. What
//! was sent and not answered comes again as it was, under its id, unless somebody in it has changed
//! meanwhile: then it is made anew, for a receiver may pass over an id that it knows. Where the
//! queue is full, or nobody knows what was told, a walk over the published states takes its place
//! ([`Walk`]); what changes while it goes on is told first. Nothing is given up: what a receiver
//! refuses is tried again until it takes it. Time is an argument; messages and outcomes are values.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use super::outcome::{Failure, Outcome};
use super::pace::{HEAD, Pace, TAIL};
use super::walk::{Found, SLACK_MS, Walk};
use crate::engine::{Decided, Erasure, record_of};
use crate::links::effect::{Effect, Notice};
use crate::metrics::Counter;
use crate::presence::Presence;
use crate::slot::Slot;
use crate::status::Status;
use crate::time::{Mono, Now, Unix};
use crate::wire::record::Record;
use crate::wire::{User, UserBuf};

/// Room for entries that is kept when the queue is empty.
const IDLE_ENTRIES: usize = 1_024;

/// What a hook is made of.
#[derive(Clone, Debug)]
pub struct HookOptions {
    /// Users of other ids are not told of.
    pub prefix: String,
    /// Most users in the queue.
    pub queue_max: usize,
    /// Longest delay before a message is sent again, in ms.
    pub retry_ms_max: u64,
    /// Of the jitter.
    pub seed: u64,
    /// Tells this life of this node from others: the ids of messages begin with it.
    pub life: u64,
}

/// What shards have handed over since they were last asked.
#[derive(Default, Debug)]
pub struct Handed {
    pub(super) decided: Vec<Arc<Decided>>,
    pub(super) erased: Vec<Arc<Erasure>>,
    /// How much of both there is.
    pub(super) len: usize,
    /// Transitions, of which there were too many to keep.
    pub(super) lost: u64,
    /// The same of erasures.
    pub(super) erasures_lost: u64,
}

/// A message to send.
#[derive(Clone, Debug)]
pub struct Message {
    /// The same for what is sent again as it was.
    pub id: Arc<str>,
    pub body: Arc<[u8]>,
    pub states: usize,
}

/// Somebody to tell of.
#[derive(Clone, Debug)]
struct Entry {
    whom: Whom,
    /// Nothing that is to be told of them is published before.
    from: Unix,
}

#[derive(Clone, Debug)]
enum Whom {
    Slot(Slot),
    /// Nobody has the id any more, or somebody new.
    Erased(Arc<Erasure>),
}

/// A message that has been made and not been taken.
#[derive(Debug)]
struct Flight {
    message: Message,
    entries: Vec<Entry>,
    slots: HashSet<Slot, foldhash::fast::RandomState>,
    /// Somebody in it has changed since.
    is_old: bool,
    /// It is being sent.
    is_under_way: bool,
}

/// How a hook stands.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct HookStanding {
    /// Users whose state is to be told, as far as they are known.
    pub queued: usize,
    /// The last message was not taken.
    pub is_failing: bool,
    /// For so long something has waited to be told, in ms.
    pub behind_ms: u64,
}

/// One webhook.
#[derive(Debug)]
pub struct Hook {
    options: HookOptions,
    order: VecDeque<Entry>,
    /// The slots in `order`.
    queued: HashSet<Slot, foldhash::fast::RandomState>,
    /// The latest erasures of those in `order`, and since when each user is nobody.
    erasures: HashMap<UserBuf, Unix, foldhash::fast::RandomState>,
    flight: Option<Flight>,
    walk: Option<Walk>,
    /// Walks that there are because there was no room.
    overflows: u64,
    /// Everything that was published before has been handed over.
    handed_up_to: Option<Unix>,
    began: Unix,
    /// Something has been told, and what was handed over when: so long a position is not known that
    /// says so.
    told: Option<Unix>,
    pace: Pace,
    /// Of the last message.
    number: u64,
}

impl Handed {
    /// Keeps this, unless there are `max` already: the published states say it again.
    pub fn decided(&mut self, decided: &Arc<Decided>, max: usize) {
        let more = decided.transitions.len();
        if self.len + more > max {
            self.lost += more as u64;
            return;
        }
        self.len += more;
        self.decided.push(Arc::clone(decided));
    }

    /// The same of an erasure, which nothing says again.
    pub fn erased(&mut self, erasure: &Arc<Erasure>, max: usize) {
        if self.erased.len() >= max {
            self.erasures_lost += 1;
            return;
        }
        self.erased.push(Arc::clone(erasure));
    }

    pub fn is_empty(&self) -> bool {
        self.decided.is_empty() && self.erased.is_empty() && self.lost == 0
    }
}

impl Hook {
    /// A hook whose receiver has been told everything up to `told_up_to`; nothing, if that is 0.
    pub fn new(options: HookOptions, told_up_to: Unix, now: Now) -> Hook {
        Hook {
            order: VecDeque::new(),
            queued: HashSet::default(),
            erasures: HashMap::default(),
            flight: None,
            walk: Some(Walk::new(told_up_to)),
            overflows: 0,
            handed_up_to: None,
            began: now.unix,
            told: None,
            pace: Pace::new(options.retry_ms_max, options.seed, now.mono),
            number: 0,
            options,
        }
    }

    /// Takes over what shards have handed over. Everything that was published before `up_to` is
    /// among it, or was before; 0: nobody knows that yet.
    pub fn take(
        &mut self,
        handed: Handed,
        up_to: Unix,
        presence: &Presence,
        now: Now,
    ) -> Vec<Effect> {
        // Whatever is new now was published later than what was handed over before.
        let from = self.handed_up_to.unwrap_or(self.began);
        let mut skipped = handed.lost;
        let overflows = self.overflows;
        for decided in &handed.decided {
            for transition in &decided.transitions {
                skipped += u64::from(!self.mark(transition.slot, from, presence));
            }
        }
        let mut untold = handed.erasures_lost;
        for erasure in handed.erased {
            untold += u64::from(!self.mark_erased(erasure, from, presence, now));
        }
        if handed.lost > 0 {
            self.overflow(from);
        }
        if up_to > Unix::from_ms(0) {
            self.handed_up_to = Some(up_to);
        }
        let counts = [
            (Counter::WebhookSkipped, skipped),
            (Counter::WebhookErasuresUntold, untold),
            (Counter::WebhookOverflows, self.overflows - overflows),
        ];
        let counts = counts.into_iter().filter(|(_, count)| *count > 0);
        counts.map(|(what, by)| Effect::Count(what, by)).collect()
    }

    /// A user has changed. False: that is not told by itself, for a later state is.
    fn mark(&mut self, slot: Slot, from: Unix, presence: &Presence) -> bool {
        if self.queued.contains(&slot) {
            return false;
        }
        if !self.is_about(presence.user(slot).as_str()) {
            return true;
        }
        if let Some(flight) = &mut self.flight {
            flight.is_old |= flight.slots.contains(&slot);
        }
        if self.order.len() >= self.options.queue_max {
            self.overflow(from);
            return false;
        }
        self.push(slot, from);
        true
    }

    /// A user has been erased. False: there is no room to tell it.
    fn mark_erased(
        &mut self,
        erasure: Arc<Erasure>,
        from: Unix,
        presence: &Presence,
        now: Now,
    ) -> bool {
        if !self.is_about(erasure.user.as_str()) {
            return true;
        }
        if let Some(flight) = &mut self.flight {
            // It may have the id in it, which is kept no longer than need be.
            flight.is_old = true;
        }
        if is_anew(presence, erasure.user.user(), now) {
            // The later state is told, or has been.
            return true;
        }
        if let Some(since) = self.erasures.get_mut(&erasure.user) {
            // Erased once more before it was told: there is an entry already, which tells the last.
            *since = erasure.since;
            return true;
        }
        if self.erasures.len() >= self.options.queue_max {
            return false;
        }
        self.erasures.insert(erasure.user.clone(), erasure.since);
        let whom = Whom::Erased(erasure);
        self.order.push_back(Entry { whom, from });
        true
    }

    fn push(&mut self, slot: Slot, from: Unix) {
        self.queued.insert(slot);
        let whom = Whom::Slot(slot);
        self.order.push_back(Entry { whom, from });
    }

    fn is_about(&self, user: &str) -> bool {
        user.starts_with(&self.options.prefix)
    }

    /// There is no room: what has changed since is to be found by a walk.
    fn overflow(&mut self, from: Unix) {
        if let Some(flight) = &mut self.flight {
            // Somebody in it may be among those.
            flight.is_old = true;
        }
        let is_new = match &mut self.walk {
            Some(walk) => walk.again(from),
            None => {
                self.walk = Some(Walk::new(from));
                true
            }
        };
        self.overflows += u64::from(is_new);
    }

    /// When [`Hook::poll_message`] has something.
    pub fn next(&self) -> Mono {
        match &self.flight {
            Some(flight) if flight.is_under_way => Mono::NEVER,
            None if self.order.is_empty() && self.walk.is_none() => Mono::NEVER,
            _ => self.pace.next_at,
        }
    }

    /// The next message, if it is time and a bounded piece of the walk has found somebody. One at a
    /// time: its outcome comes first.
    pub fn poll_message(
        &mut self,
        presence: &Presence,
        now: Now,
    ) -> (Option<Message>, Vec<Effect>) {
        let mut effects = Vec::new();
        if now.mono < self.next() {
            return (None, effects);
        }
        if self.flight.as_ref().is_some_and(|flight| flight.is_old) {
            let merged = self.put_back();
            if merged > 0 {
                effects.push(Effect::Count(Counter::WebhookSkipped, merged));
            }
        }
        if self.flight.is_none() {
            if self.order.len() < self.pace.states_max {
                effects.extend(self.walk_on(presence, now));
            }
            self.flight = self.make(presence, now);
        }
        let message = self.flight.as_mut().map(|flight| {
            flight.is_under_way = true;
            flight.message.clone()
        });
        (message, effects)
    }

    /// Looks at a bounded piece of the published states.
    fn walk_on(&mut self, presence: &Presence, now: Now) -> Option<Effect> {
        let mut walk = self.walk.take()?;
        let said = walk.begin(presence, now);
        let most = self.pace.states_max - self.order.len();
        let Found { slots, is_over } = walk.slice(presence, now, most, |slot| {
            !self.queued.contains(&slot) && self.is_about(presence.user(slot).as_str())
        });
        for slot in slots {
            self.push(slot, walk.from());
        }
        if is_over {
            // Where nothing had changed nothing will be told either.
            self.note_told();
            self.walk = walk.next();
        } else {
            self.walk = Some(walk);
        }
        said.then_some(Effect::Say(Notice::HookToldAll))
    }

    /// Encodes those whose turn it is.
    fn make(&mut self, presence: &Presence, now: Now) -> Option<Flight> {
        let mut body = HEAD.to_vec();
        let mut entries = Vec::new();
        let mut slots = HashSet::default();
        while entries.len() < self.pace.states_max
            && let Some(mut entry) = self.order.pop_front()
        {
            let start = body.len();
            if !entries.is_empty() {
                body.push(b',');
            }
            let is_told = match &mut entry.whom {
                // One that is there twice has been written.
                Whom::Slot(slot) => {
                    self.queued.remove(slot) && self.write(presence, *slot, now, &mut body)
                }
                Whom::Erased(erasure) => {
                    let since = self.erasures.remove(&erasure.user);
                    since.is_some_and(|since| {
                        if since != erasure.since {
                            // What is told from here on, should the message come again.
                            let user = erasure.user.clone();
                            *erasure = Arc::new(Erasure { user, since });
                        }
                        write_erased(presence, erasure, now, &mut body)
                    })
                }
            };
            if !is_told {
                body.truncate(start);
                continue;
            }
            if let Whom::Slot(slot) = entry.whom {
                slots.insert(slot);
            }
            entries.push(entry);
        }
        if self.order.is_empty() {
            // What an outage took is given back.
            self.order.shrink_to(IDLE_ENTRIES);
            self.queued.shrink_to(IDLE_ENTRIES);
        }
        if entries.is_empty() {
            // Nothing is left of whoever was to be told of.
            self.note_told();
            return None;
        }
        body.extend_from_slice(TAIL);
        self.number += 1;
        let message = Message {
            id: format!("{:016x}-{}", self.options.life, self.number).into(),
            body: body.into(),
            states: entries.len(),
        };
        Some(Flight {
            message,
            entries,
            slots,
            is_old: false,
            is_under_way: false,
        })
    }

    /// Writes a user's state. False: there is none, because the user is gone.
    fn write(&self, presence: &Presence, slot: Slot, now: Now, body: &mut Vec<u8>) -> bool {
        // The slot may become another's while it is read, whose own transition is told then.
        let user = presence.user(slot);
        let record = record_of(presence, slot, now);
        let is_theirs = record.user == user;
        let is_told = is_theirs && record.since.is_some() && self.is_about(record.user.as_str());
        if is_told {
            record.write(body);
        }
        is_told
    }

    /// The message's entries are told again, before all others. Returns how many of them have
    /// another entry behind that: the first of the two counts.
    fn put_back(&mut self) -> u64 {
        let Some(flight) = self.flight.take() else {
            return 0;
        };
        let mut merged = 0;
        for entry in flight.entries.into_iter().rev() {
            match &entry.whom {
                Whom::Slot(slot) => merged += u64::from(!self.queued.insert(*slot)),
                // An entry behind this one tells of a later erasure.
                Whom::Erased(erasure) if self.erasures.contains_key(&erasure.user) => continue,
                Whom::Erased(erasure) => {
                    self.erasures.insert(erasure.user.clone(), erasure.since);
                }
            }
            self.order.push_front(entry);
        }
        merged
    }

    /// What came of the message.
    pub fn handle(&mut self, outcome: Outcome, now: Mono) -> Vec<Effect> {
        match outcome {
            Outcome::Taken => self.taken(now),
            Outcome::Failed(failure) => self.failed(failure, now),
        }
    }

    fn taken(&mut self, now: Mono) -> Vec<Effect> {
        let Some(flight) = self.flight.take() else {
            return Vec::new();
        };
        if let (Some(walk), false) = (&mut self.walk, flight.is_old) {
            walk.told(
                flight
                    .slots
                    .iter()
                    .filter(|slot| !self.queued.contains(*slot)),
            );
        }
        self.note_told();
        self.pace.taken(flight.message.states, now)
    }

    fn failed(&mut self, failure: Failure, now: Mono) -> Vec<Effect> {
        let states = self.flight.as_ref().map_or(0, |it| it.entries.len());
        let (effects, is_halved) = self.pace.failed(failure, states, now);
        if let Some(flight) = &mut self.flight {
            flight.is_under_way = false;
            flight.is_old |= is_halved;
        }
        effects
    }

    /// Everything that was published before has been told; None: nobody knows yet.
    fn position(&self) -> Option<Unix> {
        let flying = self.flight.iter().flat_map(|flight| &flight.entries);
        let entries = self.order.iter().chain(flying).map(|entry| entry.from);
        let walked = self.walk.iter().map(Walk::earliest);
        entries.chain(walked).chain(self.handed_up_to).min()
    }

    fn note_told(&mut self) {
        self.told = Some(self.handed_up_to.unwrap_or(self.began));
    }

    /// Up to when everything has been told, if that may have changed.
    pub fn poll_position(&mut self) -> Option<Unix> {
        let told = self.told?;
        let position = self.position()?;
        // A walk from there on must not find it again.
        if position > told.plus_ms(SLACK_MS) {
            self.told = None;
        }
        Some(position)
    }

    /// A moment later there is another position to ask for.
    pub fn has_news(&self) -> bool {
        self.told.is_some()
    }

    /// There is nothing to tell.
    pub fn is_idle(&self) -> bool {
        self.order.is_empty() && self.flight.is_none() && self.walk.is_none()
    }

    /// Whether the last message was not taken.
    pub fn is_failing(&self) -> bool {
        self.pace.is_failing
    }

    /// How it stands.
    pub fn standing(&self, now: Unix) -> HookStanding {
        // A receiver that was never told anything waits since this start.
        let told = self.position().filter(|told| *told > Unix::from_ms(0));
        let since = told.unwrap_or(self.began);
        HookStanding {
            queued: self.order.len() + self.flight.as_ref().map_or(0, |it| it.entries.len()),
            is_failing: self.pace.is_failing,
            behind_ms: if self.is_idle() {
                0
            } else {
                now.ms_since(since)
            },
        }
    }
}

/// Whether somebody has an id again, of whom there is something to tell.
fn is_anew(presence: &Presence, user: User<'_>, now: Now) -> bool {
    let state = presence.lookup(user).map(|slot| presence.state(slot, now));
    state.is_some_and(|state| state.since.is_some())
}

/// Writes that a user was erased. False: somebody has the id anew, and that is told after it or has
/// been.
fn write_erased(presence: &Presence, erasure: &Erasure, now: Now, body: &mut Vec<u8>) -> bool {
    let user = erasure.user.user();
    if is_anew(presence, user, now) {
        return false;
    }
    let record = Record {
        since: Some(erasure.since),
        ..Record::timeless(user, Status::Offline)
    };
    record.write(body);
    true
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
