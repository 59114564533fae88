//! One webhook of a node in a fleet, without a kernel: states that the bridge hands over, in which
//! order they are told, and how far each partition has been told.
//!
//! Owns one entry a user, as [`Hook`] does, with the state as it was handed over. A partition's
//! states are sent only while its claim lasts, which the bridge says. The id of a message is made
//! of what is in it, so that another node that tells the same tells it under the same id.
//!
//! [`Hook`]: super::hook::Hook

use std::collections::VecDeque;

use hashbrown::{HashMap, HashSet};

use super::hook::{HookStanding, Message};
use super::outcome::Outcome;
use super::pace::{HEAD, Pace, TAIL};
use crate::engine::{HookOrder, HookReport, HookState, HookStates};
use crate::links::effect::Effect;
use crate::metrics::Counter;
use crate::time::{Mono, Unix};
use crate::wire::UserBuf;
use crate::wire::record::Record;

/// Where nothing may be sent yet it is looked again after that, in ms.
const LOOK_MS: u64 = 200;
/// Room for entries that is kept when the queue is empty.
const IDLE_ENTRIES: usize = 1_024;

/// Somebody to tell of.
#[derive(Debug)]
struct Entry {
    state: HookState,
    source: u16,
    epoch: u32,
    /// By the first states that named it since it was told.
    end: u64,
    from: Unix,
}

/// What is open of one partition.
#[derive(Debug, Default)]
struct Source {
    epoch: u32,
    /// Its states may be under way until then.
    until: Mono,
    /// States that were handed over, and how many of them are to be told.
    open: VecDeque<(u64, usize)>,
}

/// A message that has been made and not been taken.
#[derive(Debug)]
struct Flight {
    message: Message,
    entries: Vec<Entry>,
    users: HashSet<UserBuf, foldhash::fast::RandomState>,
    /// Somebody in it has changed since.
    is_old: bool,
    is_under_way: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Queue {
    /// A request takes no longer, in ms.
    request_ms: u64,
    entries: HashMap<UserBuf, Entry, foldhash::fast::RandomState>,
    order: VecDeque<UserBuf>,
    flight: Option<Flight>,
    sources: HashMap<u16, Source, foldhash::fast::RandomState>,
    reports: Vec<HookReport>,
    pace: Pace,
}

impl Queue {
    /// Requests take `request_ms` at most, and come again after `retry_ms_max` at the latest.
    pub fn new(request_ms: u64, retry_ms_max: u64, seed: u64, now: Mono) -> Queue {
        Queue {
            request_ms,
            entries: HashMap::default(),
            order: VecDeque::new(),
            flight: None,
            sources: HashMap::default(),
            reports: Vec::new(),
            pace: Pace::new(retry_ms_max, seed, now),
        }
    }

    /// Takes what the bridge has handed over. No message is under way then.
    pub fn take(&mut self, orders: Vec<HookOrder>) -> Vec<Effect> {
        let (mut skipped, mut untold) = (0, 0);
        for order in orders {
            match order {
                HookOrder::States(states) => skipped += self.take_states(states),
                HookOrder::Permit {
                    source,
                    epoch,
                    until,
                } => self.source(source, epoch).until = until,
                HookOrder::Drop { source, epoch } => untold += self.drop_source(source, epoch),
            }
        }
        let counts = [
            (Counter::WebhookSkipped, skipped),
            (Counter::WebhookErasuresUntold, untold),
        ];
        let counts = counts.into_iter().filter(|(_, count)| *count > 0);
        counts.map(|(what, by)| Effect::Count(what, by)).collect()
    }

    fn source(&mut self, source: u16, epoch: u32) -> &mut Source {
        let source = self.sources.entry(source).or_default();
        if source.epoch != epoch {
            *source = Source {
                epoch,
                ..Source::default()
            };
        }
        source
    }

    /// Returns how many of them are told by another state of the same user alone.
    fn take_states(&mut self, states: HookStates) -> u64 {
        let HookStates {
            source,
            epoch,
            end,
            from,
            states,
        } = states;
        let (mut opened, mut skipped) = (0, 0);
        for state in states {
            let user = state.told.user.clone();
            if let Some(flight) = &mut self.flight {
                flight.is_old |= flight.users.contains(&user);
            }
            if let Some(entry) = self.entries.get_mut(&user) {
                entry.state = state;
                skipped += 1;
                continue;
            }
            let entry = Entry {
                state,
                source,
                epoch,
                end,
                from,
            };
            self.entries.insert(user.clone(), entry);
            self.order.push_back(user);
            opened += 1;
        }
        self.source(source, epoch).open.push_back((end, opened));
        self.report(source);
        skipped
    }

    /// Says how far a partition has been told, if that is news.
    fn report(&mut self, source: u16) {
        let Some(known) = self.sources.get_mut(&source) else {
            return;
        };
        let mut told = None;
        while let Some((end, _)) = known.open.pop_front_if(|(_, open)| *open == 0) {
            told = Some(end);
        }
        let epoch = known.epoch;
        self.reports
            .extend(told.map(|end| HookReport::ToldUpTo { source, epoch, end }));
    }

    /// Returns how many erasures nobody is told.
    fn drop_source(&mut self, source: u16, epoch: u32) -> u64 {
        let mut untold = 0;
        self.entries.retain(|_, entry| {
            let is_dropped = entry.source == source && entry.epoch == epoch;
            untold += u64::from(is_dropped && is_erasure(entry));
            !is_dropped
        });
        let entries = &self.entries;
        self.order.retain(|user| entries.contains_key(user));
        if self
            .sources
            .get(&source)
            .is_some_and(|it| it.epoch == epoch)
        {
            self.sources.remove(&source);
        }
        if let Some(flight) = &mut self.flight {
            let is_in_it = |entry: &Entry| entry.source == source && entry.epoch == epoch;
            flight.is_old |= flight.entries.iter().any(is_in_it);
        }
        self.reports.push(HookReport::Dropped { source, epoch });
        untold
    }

    /// When [`Queue::poll_message`] has something.
    pub fn next(&self) -> Mono {
        match &self.flight {
            Some(flight) if flight.is_under_way => Mono::NEVER,
            None if self.entries.is_empty() => Mono::NEVER,
            _ => self.pace.next_at,
        }
    }

    /// The next message, if it is time. One at a time: its outcome comes first.
    pub fn poll_message(&mut self, now: Mono) -> (Option<Message>, Vec<Effect>) {
        let mut effects = Vec::new();
        if now < self.next() {
            return (None, effects);
        }
        let is_old = |flight: &Flight| flight.is_old || !self.may_send(&flight.entries, now);
        if self.flight.as_ref().is_some_and(is_old) {
            let merged = self.put_back();
            if merged > 0 {
                effects.push(Effect::Count(Counter::WebhookSkipped, merged));
            }
        }
        if self.flight.is_none() {
            self.flight = self.make(now);
            if self.flight.is_none() {
                self.pace.next_at = now.plus_ms(LOOK_MS);
            }
        }
        let message = self.flight.as_mut().map(|flight| {
            flight.is_under_way = true;
            flight.message.clone()
        });
        (message, effects)
    }

    fn may_send(&self, entries: &[Entry], now: Mono) -> bool {
        let until = now.plus_ms(self.request_ms);
        entries.iter().all(|entry| {
            let source = self.sources.get(&entry.source);
            source.is_some_and(|it| it.epoch == entry.epoch && it.until >= until)
        })
    }

    fn make(&mut self, now: Mono) -> Option<Flight> {
        let (mut body, mut stamps) = (HEAD.to_vec(), blake3::Hasher::new());
        let mut entries: Vec<Entry> = Vec::new();
        let mut waiting = Vec::new();
        while entries.len() < self.pace.states_max
            && let Some(user) = self.order.pop_front()
        {
            // One that is there twice has been written.
            let Some(entry) = self.entries.remove(&user) else {
                continue;
            };
            if !self.may_send(std::slice::from_ref(&entry), now) {
                self.entries.insert(user.clone(), entry);
                waiting.push(user);
                continue;
            }
            if !entries.is_empty() {
                body.push(b',');
            }
            let told = &entry.state.told;
            let record = Record {
                user: told.user.user(),
                status: told.status,
                since: told.since,
                last_active: told.last_active,
                stale: false,
            };
            record.write(&mut body);
            stamps.update(&entry.state.stamp.to_be_bytes());
            entries.push(entry);
        }
        for user in waiting.into_iter().rev() {
            self.order.push_front(user);
        }
        if self.order.is_empty() {
            // What an outage took is given back.
            self.order.shrink_to(IDLE_ENTRIES);
            self.entries.shrink_to(IDLE_ENTRIES);
        }
        if entries.is_empty() {
            return None;
        }
        body.extend_from_slice(TAIL);
        let id = stamps.update(&body).finalize().to_hex();
        let message = Message {
            id: id[..32].into(),
            body: body.into(),
            states: entries.len(),
        };
        let users = entries.iter().map(|entry| entry.state.told.user.clone());
        Some(Flight {
            message,
            users: users.collect(),
            entries,
            is_old: false,
            is_under_way: false,
        })
    }

    /// The message's entries are told again, before all others. Returns how many of them have
    /// changed since: those tell the later state, in the earlier one's place.
    fn put_back(&mut self) -> u64 {
        let Some(flight) = self.flight.take() else {
            return 0;
        };
        let mut merged = 0;
        for entry in flight.entries.into_iter().rev() {
            let source = self.sources.get_mut(&entry.source);
            let Some(source) = source.filter(|source| source.epoch == entry.epoch) else {
                continue;
            };
            let user = entry.state.told.user.clone();
            if let Some(later) = self.entries.get_mut(&user) {
                source.release(later.end);
                (later.end, later.from) = (entry.end, entry.from);
                merged += 1;
            } else {
                self.entries.insert(user.clone(), entry);
            }
            self.order.push_front(user);
        }
        merged
    }

    /// What came of the message.
    pub fn handle(&mut self, outcome: Outcome, now: Mono) -> Vec<Effect> {
        match outcome {
            Outcome::Taken => {
                let Some(flight) = self.flight.take() else {
                    return Vec::new();
                };
                let mut told = HashSet::<u16, foldhash::fast::RandomState>::default();
                for entry in &flight.entries {
                    let source = self.sources.get_mut(&entry.source);
                    if let Some(source) = source.filter(|source| source.epoch == entry.epoch) {
                        source.release(entry.end);
                        told.insert(entry.source);
                    }
                }
                told.into_iter().for_each(|source| self.report(source));
                self.pace.taken(flight.message.states, now)
            }
            Outcome::Failed(failure) => {
                let states = self.flight.as_ref().map_or(0, |it| it.entries.len());
                let (effects, is_halved) = self.pace.failed(failure, states, now);
                if let Some(flight) = &mut self.flight {
                    flight.is_under_way = false;
                    flight.is_old |= is_halved;
                }
                effects
            }
        }
    }

    /// What the bridge is to know.
    pub fn take_reports(&mut self) -> Vec<HookReport> {
        std::mem::take(&mut self.reports)
    }

    /// Users whose state is to be told.
    pub fn len(&self) -> usize {
        self.entries.len() + self.flight.as_ref().map_or(0, |it| it.entries.len())
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.flight.is_none()
    }

    /// Whether the last message was not taken.
    pub fn is_failing(&self) -> bool {
        self.pace.is_failing
    }

    /// How it stands.
    pub fn standing(&self, now: Unix) -> HookStanding {
        let flying = self.flight.iter().flat_map(|flight| &flight.entries);
        let first = self.order.front().and_then(|user| self.entries.get(user));
        let since = flying.chain(first).map(|entry| entry.from).min();
        HookStanding {
            queued: self.len(),
            is_failing: self.is_failing(),
            behind_ms: since.map_or(0, |since| now.ms_since(since)),
        }
    }
}

impl Source {
    fn release(&mut self, end: u64) {
        if let Ok(at) = self.open.binary_search_by_key(&end, |(end, _)| *end) {
            self.open[at].1 -= 1;
        }
    }
}

fn is_erasure(entry: &Entry) -> bool {
    entry.state.told.last_active.is_none()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::links::webhooks::Why;
    use crate::status::Status;
    use crate::wire::record::Told;

    const REQUEST_MS: u64 = 2_000;

    fn mono(ms: u64) -> Mono {
        Mono::default().plus_ms(ms)
    }

    fn queue() -> Queue {
        let mut queue = Queue::new(REQUEST_MS, 60_000, 1, mono(0));
        queue.take(vec![permit(1, 1, 100_000), permit(2, 1, 100_000)]);
        queue
    }

    fn permit(source: u16, epoch: u32, until: u64) -> HookOrder {
        let until = mono(until);
        HookOrder::Permit {
            source,
            epoch,
            until,
        }
    }

    fn states(source: u16, end: u64, states: &[(&str, u64)]) -> HookOrder {
        let state = |(user, since): &(&str, u64)| HookState {
            told: Told {
                status: Status::Online,
                since: Some(Unix::from_ms(*since)),
                last_active: Some(Unix::from_ms(*since)),
                ..Told::unseen(UserBuf::from_text(*user).unwrap())
            },
            stamp: *since,
        };
        HookOrder::States(HookStates {
            source,
            epoch: 1,
            end,
            from: Unix::from_ms(states[0].1),
            states: states.iter().map(state).collect(),
        })
    }

    fn told(source: u16, end: u64) -> HookReport {
        let epoch = 1;
        HookReport::ToldUpTo { source, epoch, end }
    }

    fn said(message: &Message) -> Vec<(String, u64)> {
        let body: Value = serde_json::from_slice(&message.body).unwrap();
        let records = body["presence"].as_array().unwrap().iter();
        let of = |record: &Value| {
            let user = record["user"].as_str().unwrap().to_owned();
            (user, record["since"].as_u64().unwrap())
        };
        records.map(of).collect()
    }

    fn send(queue: &mut Queue, ms: u64, outcome: Outcome) -> Message {
        let (message, _) = queue.poll_message(mono(ms));
        queue.handle(outcome, mono(ms));
        message.expect("it is time")
    }

    fn lost() -> Outcome {
        Outcome::lost(Why::Timeout)
    }

    #[test]
    fn a_partition_is_told_as_far_as_all_its_states_have_been_taken() {
        let mut queue = queue();
        queue.take(vec![
            states(1, 1, &[("a", 1), ("b", 2)]),
            states(2, 1, &[("c", 3)]),
        ]);
        queue.pace.states_max = 2;
        assert_eq!(said(&send(&mut queue, 1, Outcome::Taken)).len(), 2);
        assert_eq!(queue.take_reports(), [told(1, 1)]);
        queue.take(vec![states(1, 2, &[("a", 4)]), states(1, 3, &[("b", 5)])]);
        queue.pace.states_max = 1;
        send(&mut queue, 1, Outcome::Taken);
        assert_eq!(queue.take_reports(), [told(2, 1)]);
        send(&mut queue, 1, Outcome::Taken);
        assert_eq!(queue.take_reports(), [told(1, 2)]);
        send(&mut queue, 1, Outcome::Taken);
        assert_eq!(queue.take_reports(), [told(1, 3)]);
        assert!(queue.is_empty() && queue.next() == Mono::NEVER);
    }

    #[test]
    fn who_changes_while_the_receiver_is_away_is_told_once_in_the_first_place() {
        let mut queue = queue();
        queue.take(vec![states(1, 1, &[("a", 1)])]);
        let first = send(&mut queue, 1, lost());
        let again = send(&mut queue, 1_000, lost());
        assert_eq!((&first.id, &first.body), (&again.id, &again.body));
        queue.take(vec![states(1, 2, &[("b", 2)]), states(1, 3, &[("a", 3)])]);
        let effects = queue.take(vec![states(1, 4, &[("a", 4)])]);
        assert!(matches!(
            effects[..],
            [Effect::Count(Counter::WebhookSkipped, 1)]
        ));
        assert_eq!(queue.take_reports(), []);
        let anew = send(&mut queue, 10_000, Outcome::Taken);
        assert_ne!(anew.id, first.id);
        assert_eq!(said(&anew), [("a".into(), 4), ("b".into(), 2)]);
        assert_eq!(queue.take_reports(), [told(1, 4)]);
    }

    #[test]
    fn the_same_transition_has_the_same_id_at_any_node() {
        let [mut one, mut two, mut three] = [(); 3].map(|()| queue());
        one.take(vec![states(1, 1, &[("a", 1)])]);
        two.take(vec![states(1, 7, &[("a", 1)])]);
        three.take(vec![states(1, 1, &[("a", 2)])]);
        let ids = [&mut one, &mut two, &mut three];
        let [one, two, three] = ids.map(|queue| send(queue, 1, Outcome::Taken).id);
        assert_eq!(one, two);
        assert_ne!(one, three);
    }

    #[test]
    fn nothing_is_sent_that_could_arrive_when_the_claim_is_over() {
        let mut queue = queue();
        queue.take(vec![
            permit(1, 1, 5_000),
            states(1, 1, &[("a", 1)]),
            states(2, 1, &[("b", 2)]),
        ]);
        let late = 5_001 - REQUEST_MS;
        assert_eq!(said(&send(&mut queue, late, lost())), [("b".into(), 2)]);
        queue.take(vec![permit(2, 1, 5_000)]);
        let later = queue.next().ms();
        assert!(queue.poll_message(mono(later)).0.is_none());
        assert!(queue.next().ms() > later && queue.len() == 2);
        queue.take(vec![permit(1, 1, 100_000)]);
        let message = send(&mut queue, 4_000, Outcome::Taken);
        assert_eq!(said(&message), [("a".into(), 1)]);
    }

    #[test]
    fn what_is_given_up_is_another_nodes_to_tell() {
        let mut queue = queue();
        queue.take(vec![states(1, 1, &[("a", 1), ("b", 2)])]);
        queue.pace.states_max = 1;
        send(&mut queue, 1, lost());
        queue.take(vec![states(2, 1, &[("c", 3)])]);
        let (source, epoch) = (1, 1);
        queue.take(vec![HookOrder::Drop { source, epoch }]);
        let dropped = HookReport::Dropped { source, epoch };
        assert_eq!(queue.take_reports(), [dropped]);
        let message = send(&mut queue, 1_000, Outcome::Taken);
        assert_eq!(said(&message), [("c".into(), 3)]);
        assert_eq!(queue.take_reports(), [told(2, 1)]);
        assert!(queue.is_empty());
    }
}
