//! Beat datagrams: from bytes to stamps.
//!
//! Owns the order of checks and their counters. Allocates nothing per beat: users borrow their
//! datagram and go on in batches, so that the cache misses of one overlap those of the others.

use super::goodbyes::Heard;
use super::homes::Place;
use super::homeward::{BATCH, Beyond};
use super::parts::Engine;
use super::refused::Refused;
use crate::auth::Judged;
use crate::metrics::Counter;
use crate::presence::{BeatFault, BeatOutcome, InternFault, Presence};
use crate::realtime::ConnId;
use crate::slot::Slot;
use crate::time::{Now, Unix};
use crate::wire::User;
use crate::wire::beat::{BeatDrop, Beats, Flags, is_of_device, is_of_node, key_id_of, open_any};

type Outcome = Result<(Slot, BeatOutcome), BeatFault>;

/// How datagrams have come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    Udp,
    /// In a request of a real-time node.
    Connection,
}

impl Way {
    /// What beats are counted as, and goodbyes.
    pub(super) fn counters(self) -> (Counter, Counter) {
        match self {
            Way::Udp => (Counter::BeatsUdp, Counter::LeavesUdp),
            Way::Connection => (Counter::BeatsHttp, Counter::LeavesHttp),
        }
    }
}

impl Engine {
    /// Datagrams arrived. Returns how many beats and goodbyes were worked through, a refused
    /// datagram counting as one: what the caller's budget (`beats_per_turn_max`) is spent on.
    pub fn handle_beats(&mut self, datagrams: &[&[u8]], now: Now) -> usize {
        self.counters
            .add(Counter::DatagramsReceived, datagrams.len() as u64);
        let worked = self.take_datagrams(datagrams, Way::Udp, now);
        self.handed_over.go_on(datagrams.len());
        worked
    }

    /// Which of the datagrams handed over were refused, reason by reason: to be asked until there
    /// is none, before others are handed over. Whoever received them knows from where they came.
    pub fn poll_refused(&mut self) -> Option<Refused> {
        self.handed_over.take()
    }

    /// Datagrams have come this way; see [`Engine::handle_beats`].
    pub(super) fn take_datagrams(&mut self, datagrams: &[&[u8]], way: Way, now: Now) -> usize {
        let (keyring, presence) = (self.node.keyring.clone(), self.heard.clone());
        let keys = &keyring.fleet;
        self.epochs.go_on(keys, now.unix);
        let skew_max_ms = self.settings.beat_skew_max_ms;
        let homes = self.homes_elsewhere();
        let (mut batch, mut beyond) = (Batch::new(), Beyond::new());
        let mut worked = 0;
        for (at, datagram) in datagrams.iter().enumerate() {
            let opened = open_any(datagram, keys, &self.epochs, now.unix, skew_max_ms);
            let of_device = matches!(&opened, Ok(beats) if beats.sender.is_some());
            self.counters
                .add(Counter::DatagramsDevice, u64::from(of_device));
            match opened {
                Ok(beats) if self.is_barred(&beats) => {
                    worked += 1;
                    self.refuse_datagram(at, datagram, Counter::DatagramRevoked, way);
                }
                Ok(beats) if beats.flags.is_leave() => {
                    // In order: a goodbye behind a beat is looked at behind it.
                    self.pass_batch(&presence, &mut beyond, &mut batch, way, now);
                    self.record_batch(&presence, &mut batch, way, now);
                    worked += self.leave_all(&beats, way, now);
                }
                Ok(beats) if beats.flags.is_word() => {
                    worked += 1;
                    self.take_words(&beats);
                }
                Ok(beats) => {
                    let idle = beats.flags.is_idle() && self.settings.away_after > 0;
                    let flags = beats.flags.as_said().with_idle(idle);
                    if flags != batch.flags {
                        self.pass_batch(&presence, &mut beyond, &mut batch, way, now);
                        self.record_batch(&presence, &mut batch, way, now);
                        batch.flags = flags;
                    }
                    let is_passed_on = beats.flags.is_passed_on();
                    let homes = homes.as_ref().filter(|_| !is_passed_on);
                    let first = worked;
                    for user in beats.users() {
                        worked += 1;
                        let place = homes.map_or(Place::Here, |homes| homes.place(user));
                        if place != Place::Here {
                            if beyond.push(user, beats.sent_at, place) {
                                self.pass_batch(&presence, &mut beyond, &mut batch, way, now);
                            }
                        } else if batch.push(user, beats.sent_at) {
                            self.record_batch(&presence, &mut batch, way, now);
                        }
                    }
                    if is_passed_on {
                        let count = (worked - first) as u64;
                        self.counters.add(Counter::FleetBeatsFromNodes, count);
                    }
                }
                Err(why) => {
                    worked += 1;
                    self.refuse_datagram(at, datagram, refusal(why), way);
                }
            }
        }
        self.pass_batch(&presence, &mut beyond, &mut batch, way, now);
        self.record_batch(&presence, &mut batch, way, now);
        worked
    }

    /// Passes beats on to other homes; those that count here all the same go into the batch.
    fn pass_batch<'d>(
        &mut self,
        presence: &Presence,
        beyond: &mut Beyond<'d>,
        batch: &mut Batch<'d>,
        way: Way,
        now: Now,
    ) {
        if beyond.all().is_empty() {
            return;
        }
        let flags = batch.flags;
        self.pass_on_beats(beyond, flags, now, |engine, at| {
            let (user, sent_at, _) = beyond.all()[at];
            if batch.push(user, sent_at) {
                engine.record_batch(presence, batch, way, now);
            }
        });
        beyond.clear();
    }

    /// The datagram at this place of the batch is refused, which is counted as `why`.
    fn refuse_datagram(&mut self, at: usize, datagram: &[u8], why: Counter, way: Way) {
        self.counters.add(why, 1);
        if is_of_node(datagram) {
            self.counters.add(Counter::FleetDatagramsRefused, 1);
        }
        // A device asks for another key when its own has lapsed: no operator needs to know.
        let lapsed = why == Counter::DatagramKey && is_of_device(datagram);
        if way == Way::Udp && !lapsed {
            self.handed_over.note(at, why, || key_id_of(datagram));
        }
    }

    /// Whether a device's key has been revoked, or its user has, in the key's epoch or later. Then
    /// no key of that epoch counts: nobody knows when in it this one was made. While it is not
    /// known which are revoked none counts.
    fn is_barred(&self, beats: &Beats<'_>) -> bool {
        let (Some(sender), Some(user)) = (beats.sender, beats.users().next()) else {
            return false;
        };
        let began = self.epochs.began(sender.epoch);
        let judged = self.node.revoked.judge_device(user, sender.device, began);
        judged != Judged::Good
    }

    fn record_batch(&mut self, presence: &Presence, batch: &mut Batch<'_>, way: Way, now: Now) {
        let (flags, after_ms) = (batch.flags, self.settings.offline_after_ms);
        let beats = batch.take();
        let (source, _) = way.counters();
        let mut accepted = 0;
        let mut book = |_, outcome: Outcome| match outcome {
            Ok((_, BeatOutcome::Stored)) => accepted += 1,
            Ok((slot, outcome)) => self.book_beat(slot, outcome, source, now),
            Err(BeatFault::BeforeErasure) => self.counters.add(Counter::BeatBeforeErasure, 1),
            Err(BeatFault::Intern(fault)) => {
                let too_fast = u64::from(fault == InternFault::TooFast);
                self.counters.add(Counter::LimitNewUsers, too_fast);
                self.book_intern_fault(fault);
            }
        };
        presence.record_beats_of(beats, flags, after_ms, now, &mut book);
        self.counters.add(source, accepted);
    }

    /// Returns how many goodbyes there were.
    fn leave_all(&mut self, beats: &Beats<'_>, way: Way, now: Now) -> usize {
        let (_, source) = way.counters();
        let mut worked = 0;
        if beats.flags.is_passed_on() {
            self.take_passed_goodbyes(beats, way, now);
            return beats.users().count();
        }
        for user in beats.users() {
            worked += 1;
            match self.presence.lookup(user) {
                Some(slot) => {
                    let heard = self.say_goodbye(slot, beats.sent_at, source, None, now);
                    if heard == Heard::Left {
                        self.look(slot, now);
                    }
                }
                None => self.part_unknown(user, beats.sent_at, source, now),
            }
        }
        worked
    }

    /// Has the slot's owner look at it before the next sweep.
    pub(super) fn look(&mut self, slot: Slot, now: Now) {
        let owner = slot.owner(self.node.shards);
        if owner == self.node.shard {
            self.look_own(slot, now);
        } else {
            self.posts.look(owner, slot);
        }
    }

    /// Vouches for the publisher of a stream, at whose device somebody is: a beat here, counted as
    /// `source`, or one to its presence node (`at_once` if it has just connected).
    pub(super) fn vouch_for(&mut self, slot: Slot, at_once: bool, source: Counter, now: Now) {
        if self.node.role.passes_on()
            && let Some(upstream) = &mut self.upstream
        {
            let key = self.node.keyring.fleet.signing();
            self.presence.note_idle(slot, false);
            return upstream.vouch(&self.presence, slot, at_once, key, now);
        }
        self.hand_over(slot, now);
        // Neither late nor a replay: it comes after every goodbye that has come.
        let outcome = self.heard.record_beat(slot, Unix::LATEST, now);
        self.book_beat(slot, outcome, source, now);
    }

    /// The same of a stream at whose device somebody is or not, as that has said last.
    pub(super) fn vouch_for_stream(&mut self, id: ConnId, slot: Slot, source: Counter, now: Now) {
        let said = self.conns.at(id.index).is_unattended();
        if !said && !self.heard.is_unattended_word(slot) {
            return self.vouch_for(slot, false, source, now);
        }
        if self.node.role.passes_on()
            && let Some(upstream) = &mut self.upstream
        {
            let key = self.node.keyring.fleet.signing();
            self.presence.note_idle(slot, true);
            return upstream.vouch(&self.presence, slot, false, key, now);
        }
        let outcome = self.record_idle_beat(slot, now);
        self.hand_over(slot, now);
        self.book_beat(slot, outcome, source, now);
    }

    /// Records a beat over a connection of a device that says that nobody is at it.
    pub(super) fn record_idle_beat(&self, slot: Slot, now: Now) -> BeatOutcome {
        let after_ms = self.settings.offline_after_ms;
        self.heard
            .record_idle_beat(slot, Unix::LATEST, after_ms, now)
    }

    /// Whether a device says by this that nobody is at it.
    pub(super) fn is_idle(&self, idle_ms: Option<u64>) -> bool {
        let after_ms = self.settings.away_after;
        after_ms > 0 && idle_ms.is_some_and(|idle_ms| idle_ms >= after_ms)
    }

    /// Counts a beat and has the owner look at a publisher that may have come online.
    pub(super) fn book_beat(
        &mut self,
        slot: Slot,
        outcome: BeatOutcome,
        source: Counter,
        now: Now,
    ) {
        if self.count_beat(outcome, source) {
            self.look(slot, now);
        }
    }

    /// Counts a beat. True: its publisher may have come online or back, and the slot's owner must
    /// look.
    pub(super) fn count_beat(&mut self, outcome: BeatOutcome, source: Counter) -> bool {
        let counter = match outcome {
            BeatOutcome::Stored
            | BeatOutcome::StoredOffline
            | BeatOutcome::StoredNews
            | BeatOutcome::StoredAgain => source,
            BeatOutcome::BeforeLeave => Counter::BeatBeforeLeave,
        };
        self.counters.add(counter, 1);
        match outcome {
            BeatOutcome::StoredOffline | BeatOutcome::StoredNews => true,
            BeatOutcome::StoredAgain => self.posts.has_bridge(),
            BeatOutcome::Stored | BeatOutcome::BeforeLeave => false,
        }
    }

    pub(super) fn book_intern_fault(&mut self, fault: InternFault) {
        match fault {
            InternFault::Full => {
                self.counters.add(Counter::BeatUsersFull, 1);
                self.counters.add(Counter::LimitUsers, 1);
            }
            // Which rate it was has been counted.
            InternFault::TooFast => self.counters.add(Counter::BeatTooFast, 1),
            InternFault::NoSpace => self.counters.add(Counter::BeatNoSpace, 1),
        }
    }
}

/// Users with the time their sender vouched for them, up to [`BATCH`].
struct Batch<'d> {
    /// What is said of all of them.
    flags: Flags,
    beats: [(User<'d>, Unix); BATCH],
    len: usize,
}

impl<'d> Batch<'d> {
    fn new() -> Batch<'d> {
        Batch {
            flags: Flags::BEAT,
            beats: [(User::NOBODY, Unix::from_ms(0)); BATCH],
            len: 0,
        }
    }

    /// Adds one; true if the batch is full.
    fn push(&mut self, user: User<'d>, sent_at: Unix) -> bool {
        self.beats[self.len] = (user, sent_at);
        self.len += 1;
        self.len == BATCH
    }

    /// Those added since the last call.
    fn take(&mut self) -> &[(User<'d>, Unix)] {
        let len = std::mem::take(&mut self.len);
        &self.beats[..len]
    }
}

fn refusal(why: BeatDrop) -> Counter {
    match why {
        BeatDrop::Short => Counter::DatagramShort,
        BeatDrop::Magic => Counter::DatagramMagic,
        BeatDrop::Version => Counter::DatagramVersion,
        BeatDrop::Key => Counter::DatagramKey,
        BeatDrop::Mac => Counter::DatagramMac,
        BeatDrop::Stale => Counter::DatagramStale,
        BeatDrop::Entry => Counter::DatagramEntry,
    }
}
