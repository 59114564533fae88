//! What a shard of a fleet's node does with beats and goodbyes of users whose home is another node,
//! and with those that other nodes pass on.
//!
//! Owns the rules: what a node has passed on is passed on by nobody else, so that nodes that
//! disagree on who lives send nothing in circles; beats of a user with a stream here count here.
//! Who is whose home is `homes/`' to know.

use std::sync::Arc;

use super::beats::Way;
use super::homes::{Goodbye, HomeList, OwnWrite, Place, Said};
use super::parts::Engine;
use crate::metrics::Counter;
use crate::presence::LeaveOutcome;
use crate::slot::Slot;
use crate::status::Status;
use crate::time::{Now, Unix};
use crate::wire::beat::{Beats, Flags};
use crate::wire::record::Record;
use crate::wire::{User, UserBuf};

/// Words of other nodes that a shard takes in a turn: each node has one or two a second for each
/// other.
const WORDS_MAX: usize = 1_024;
/// Goodbyes that are looked at once more in a turn.
const GOODBYES_MAX: usize = 256;
/// Clocks of nodes and of Redis that differ by more are told of, in ms.
const CLOCKS_APART_MS: u64 = 1_000;
/// Who moves to another home is silent here for so many times `offline_after_ms`, which is no mass
/// silence.
const MOVING_SILENCES: u64 = 2;

impl Engine {
    /// Whether other nodes are homes now is seen between two turns.
    pub(super) fn take_homes(&mut self, now: Now) {
        let key = self.node.keyring.fleet.signing();
        if self.passing.take_list(key) {
            let silent_ms = self
                .settings
                .offline_after_ms
                .saturating_mul(MOVING_SILENCES);
            self.heard.excuse_silence(now.mono.plus_ms(silent_ms));
        }
        for _ in 0..GOODBYES_MAX {
            let Some(goodbye) = self.passing.poll_parted(now.mono) else {
                break;
            };
            let Goodbye {
                user,
                sent_at,
                here_since,
            } = goodbye;
            if here_since.is_some() && here_since == self.here_since(user.user()) {
                continue;
            }
            let slot = self.presence.lookup(user.user());
            if let Some(slot) = slot.filter(|slot| self.heard.is_online(*slot)) {
                self.part_again(slot, sent_at, now);
            }
        }
    }

    /// The homes of this turn, if anything is passed on to them.
    pub(super) fn homes_elsewhere(&self) -> Option<Arc<HomeList>> {
        let list = self.passing.list();
        list.passes_on().then(|| Arc::clone(list))
    }

    /// Beats that came by datagrams, of users who belong to other homes. `counts` is called with
    /// each that counts here all the same.
    pub(super) fn pass_on_beats(
        &mut self,
        beats: &Beyond<'_>,
        flags: Flags,
        now: Now,
        mut counts: impl FnMut(&mut Engine, usize),
    ) {
        let mut slots = [None; BATCH];
        let presence = Arc::clone(&self.presence);
        presence.lookup_all(beats.users(), &mut slots);
        for (at, ((user, sent_at, place), slot)) in beats.all().iter().zip(slots).enumerate() {
            let is_held = slot.is_some_and(|slot| presence.is_held(slot));
            let home = match *place {
                Place::Here => None,
                Place::There(home) => (!is_held).then_some(home),
                Place::Both(home) => (!self.hides(slot)).then_some(home),
            };
            if let Some(home) = home {
                let is_told = slot.is_some_and(|slot| presence.is_online(slot));
                self.pass_beat(home, *user, flags, *sent_at, !is_told, now);
            }
            if is_held || !matches!(place, Place::There(_)) {
                counts(self, at);
            }
        }
    }

    /// Whether a user is known to hide. A node that cannot tell the fleet of such a one hands them
    /// to nobody: others take them for gone, and who does not know that they hide would show them.
    pub(super) fn hides(&self, slot: Option<Slot>) -> bool {
        slot.is_some_and(|slot| self.presence.is_invisible(slot))
    }

    fn pass_beat(
        &mut self,
        home: usize,
        user: User<'_>,
        flags: Flags,
        sent_at: Unix,
        is_news: bool,
        now: Now,
    ) {
        self.counters.add(Counter::FleetBeatsPassedOn, 1);
        let said = Said {
            user,
            flags,
            sent_at: sent_at.min(now.unix),
            is_news,
        };
        let key = self.node.keyring.fleet.signing();
        self.passing.push(home, said, key, now.mono);
    }

    /// A beat over a connection. True: its user's home has it, and it does not count here.
    pub(super) fn passes_beat_on(&mut self, user: User<'_>, flags: Flags, now: Now) -> bool {
        let list = self.passing.list();
        if !list.passes_on() {
            return false;
        }
        let (home, counts_here) = match list.place(user) {
            Place::Here => return false,
            Place::There(home) => (home, false),
            Place::Both(home) => (home, true),
        };
        let slot = self.presence.lookup(user);
        let is_held = slot.is_some_and(|slot| self.presence.is_held(slot));
        if is_held && !counts_here || counts_here && self.hides(slot) {
            return false;
        }
        let is_told = slot.is_some_and(|slot| self.presence.is_online(slot));
        self.pass_beat(home, user, flags, now.unix, !is_told, now);
        if !is_told {
            // The caller may say goodbye at another node as soon as it is answered.
            self.passing.hurry(home, now.mono);
        }
        if !counts_here {
            let writes = self.passing.shared().writes();
            writes.note(user, false, is_told, now);
        }
        !counts_here
    }

    /// Somebody is vouched for who holds a stream here. If the fleet can not be told by this node,
    /// another one is told that can.
    pub(super) fn hand_over(&mut self, slot: Slot, now: Now) {
        if !self.passing.list().is_cut() {
            return;
        }
        let presence = Arc::clone(&self.presence);
        let user = presence.user(slot);
        if self.hides(Some(slot)) {
            return;
        }
        if let Place::Both(home) = self.passing.list().place(user) {
            let flags = self.heard.beat_flags(slot);
            self.pass_beat(home, user, flags, now.unix, false, now);
        }
    }

    /// A goodbye that the fleet is told of by this node. The user's home hears of it too: the first
    /// beat may be on its way there, of which the fleet knows nothing yet. If this is its home, it
    /// may be on its way here.
    pub(super) fn tell_home_of_goodbye(&mut self, user: User<'_>, sent_at: Unix, now: Now) {
        let list = self.passing.list();
        if !list.passes_on() {
            return;
        }
        let (Place::There(home) | Place::Both(home)) = list.place(user) else {
            return self.look_again(user, sent_at.min(now.unix), now);
        };
        self.counters.add(Counter::FleetGoodbyesPassedOn, 1);
        let said = Said {
            user,
            flags: Flags::LEAVE,
            sent_at: sent_at.min(now.unix),
            is_news: true,
        };
        let key = self.node.keyring.fleet.signing();
        // Behind the beats that came before it, and in this turn.
        self.passing.push(home, said, key, now.mono);
        self.passing.hurry(home, now.mono);
    }

    /// Goodbyes that another node passes on, which has told the fleet itself. One counts here if
    /// this node knows more than the fleet did: a beat that it has not been told of yet. Such a
    /// beat may still be on its way: then the goodbye counts when that has come.
    pub(super) fn take_passed_goodbyes(&mut self, goodbyes: &Beats<'_>, way: Way, now: Now) {
        let (_, source) = way.counters();
        for user in goodbyes.users() {
            self.counters.add(Counter::FleetGoodbyesFromNodes, 1);
            let slot = self.presence.lookup(user);
            // Of who is told as online the fleet knew, and may have told already.
            let slot = slot.filter(|slot| !self.presence.is_online(*slot));
            let outcome = slot.map(|slot| self.part_again(slot, goodbyes.sent_at, now));
            match outcome {
                Some(LeaveOutcome::Left) => {
                    self.count_leave(LeaveOutcome::Left, source);
                }
                Some(LeaveOutcome::Ignored) | None => {
                    self.look_again(user, goodbyes.sent_at, now);
                }
            }
        }
    }

    fn look_again(&mut self, user: User<'_>, sent_at: Unix, now: Now) {
        let goodbye = Goodbye {
            user: user.into(),
            sent_at,
            here_since: self.here_since(user).filter(|since| {
                // Else the claim may have come behind the goodbye.
                sent_at.ms_since(*since) > CLOCKS_APART_MS
            }),
        };
        self.passing.look_again(goodbye, now.mono);
    }

    /// Since when a user is told as here. None: it is not.
    fn here_since(&self, user: User<'_>) -> Option<Unix> {
        let slot = self.presence.lookup(user);
        let slot = slot.filter(|slot| self.presence.is_online(*slot))?;
        self.presence.since(slot)
    }

    /// A goodbye of which the fleet was told counts here, if no later beat and no stream says
    /// otherwise.
    fn part_again(&mut self, slot: Slot, sent_at: Unix, now: Now) -> LeaveOutcome {
        if self.presence.is_held(slot) {
            return LeaveOutcome::Ignored;
        }
        let outcome = self.heard.record_leave(slot, sent_at, now);
        if outcome == LeaveOutcome::Left {
            let presence = Arc::clone(&self.presence);
            self.posts
                .goodbyes
                .push((presence.user(slot).into(), sent_at));
            self.look(slot, now);
        }
        outcome
    }

    /// Words of other nodes, for the bridge.
    pub(super) fn take_words(&mut self, words: &Beats<'_>) {
        for word in words.users() {
            if self.posts.has_bridge() && self.posts.words.len() < WORDS_MAX {
                self.posts.words.push(UserBuf::from(word));
            } else {
                self.counters.add(Counter::FleetWordsRefused, 1);
            }
        }
    }

    /// A caller has said goodbye here for a user: that is what callers are told until the fleet has
    /// judged it.
    pub(super) fn note_goodbye(&self, user: User<'_>, now: Now) {
        if self.posts.has_bridge() {
            self.passing.shared().writes().note(user, true, false, now);
        }
    }

    /// What the fleet says of a user, unless a caller here has said otherwise since. Who hides is
    /// offline, whatever was said.
    pub(super) fn as_written<'u>(&self, record: Record<'u>, now: Now) -> Record<'u> {
        let is_here = !matches!(record.status, Status::Offline | Status::Unknown);
        let hides = |user| self.hides(self.presence.lookup(user));
        match self.own_write(record.user, is_here, now) {
            Some(OwnWrite { is_gone, at, .. }) if is_gone || !hides(record.user) => Record {
                status: match is_gone {
                    true => Status::Offline,
                    false => Status::Online,
                },
                since: Some(at.max(record.since.unwrap_or_default())),
                last_active: Some(at),
                ..record
            },
            _ => record,
        }
    }

    fn own_write(&self, user: User<'_>, is_here: bool, now: Now) -> Option<OwnWrite> {
        match self.posts.has_bridge() {
            true => {
                let writes = self.passing.shared().writes();
                writes.unlike(user, is_here, now.mono)
            }
            false => None,
        }
    }
}

/// Beats that are looked up together.
pub(super) const BATCH: usize = 64;

/// Users whose home is elsewhere, with the time their sender vouched for them, up to [`BATCH`].
pub(super) struct Beyond<'d> {
    beats: [(User<'d>, Unix, Place); BATCH],
    len: usize,
}

impl<'d> Beyond<'d> {
    pub(super) fn new() -> Beyond<'d> {
        Beyond {
            beats: [(User::NOBODY, Unix::from_ms(0), Place::Here); BATCH],
            len: 0,
        }
    }

    /// Adds one; true if it is full.
    pub(super) fn push(&mut self, user: User<'d>, sent_at: Unix, place: Place) -> bool {
        self.beats[self.len] = (user, sent_at, place);
        self.len += 1;
        self.len == BATCH
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    pub(super) fn all(&self) -> &[(User<'d>, Unix, Place)] {
        &self.beats[..self.len]
    }

    fn users(&self) -> impl ExactSizeIterator<Item = User<'d>> + Clone {
        self.all().iter().map(|(user, ..)| *user)
    }
}
