//! What a shard does about a user who is forgotten, step by step.
//!
//! Owns no state: the file beside does.

use super::Leaver;
use crate::engine::calls::WAIT_MS_MAX;
use crate::engine::farewells::HOLDERS_MS_MAX;
use crate::engine::mail::Mail;
use crate::engine::parts::Engine;
use crate::engine::role::Role;
use crate::engine::upstream::Erasure;
use crate::metrics::Counter;
use crate::planted::{self, Planted};
use crate::presence::{ForgetFault, Transition};
use crate::slot::Slot;
use crate::status::Status;
use crate::time::{Now, Unix};
use crate::wire::{User, UserBuf};

/// Watchers whose lists are rewritten for the price of so many marks.
const MARKS_PER_LIST: usize = 64;
/// Slots looked at in one call, whether this shard may let go of them.
const LOOKED_AT_PER_CALL: usize = 1_024;
/// Requests that are parked, and errands, may keep a slot for so long after this shard has heard
/// that its user is gone: until they are answered, and some time to notice. So do goodbyes for
/// which real-time nodes are asked.
const KEPT_MS_MAX: u64 = 2 * WAIT_MS_MAX;
const _: () = assert!(KEPT_MS_MAX >= HOLDERS_MS_MAX);

impl Engine {
    /// Forgets a user; true if anybody had that id.
    ///
    /// Errors: see [`crate::presence::Presence::forget`].
    pub(in crate::engine) fn forget(
        &mut self,
        user: User<'_>,
        now: Now,
    ) -> Result<bool, ForgetFault> {
        let max = self.settings.users_leaving_max;
        let forgotten = self.presence.forget(user, max, now);
        self.spread_forgotten(forgotten, now)
    }

    /// Forgets the user of a slot who is still silent since `before`.
    ///
    /// Errors: as above.
    pub(in crate::engine) fn forget_silent(
        &mut self,
        slot: Slot,
        before: Unix,
        now: Now,
    ) -> Result<bool, ForgetFault> {
        let max = self.settings.users_leaving_max;
        let forgotten = self.presence.forget_silent(slot, before, max, now);
        self.spread_forgotten(forgotten, now)
    }

    fn spread_forgotten(
        &mut self,
        forgotten: Result<Option<Slot>, ForgetFault>,
        now: Now,
    ) -> Result<bool, ForgetFault> {
        if matches!(forgotten, Err(ForgetFault::Busy)) {
            self.counters.add(Counter::LimitUsersLeaving, 1);
        }
        let Some(slot) = forgotten? else {
            return Ok(false);
        };
        self.counters.add(Counter::UsersForgotten, 1);
        self.posts.letter_to_others(Mail::Forget(slot, None));
        self.begin_to_forget(slot, None, now);
        Ok(true)
    }

    /// At a real-time node: the presence node has forgotten a user, whose streams here end; but for
    /// those that were opened after `at`, if that is given.
    pub(in crate::engine) fn forgotten_elsewhere(&mut self, slot: Slot, at: Option<Unix>) {
        self.posts.letter_to_others(Mail::Forget(slot, at));
        self.end_streams_of(slot, at);
    }

    /// False: too many others' are looked for already.
    fn end_streams_of(&mut self, slot: Slot, at: Option<Unix>) -> bool {
        let places = self.conns.places();
        self.passes.logging_out.begin(&[slot], at, places)
    }

    /// The user of a slot has been forgotten, here or by another shard: its streams end, and it is
    /// published no more.
    pub(in crate::engine) fn begin_to_forget(&mut self, slot: Slot, at: Option<Unix>, now: Now) {
        if self.presence.is_follower() {
            self.end_streams_of(slot, at);
            return;
        }
        let user = UserBuf::from(self.presence.user(slot));
        self.fanout.records.at.remove(&slot.index());
        self.passes.putting_off.drop(slot);
        if slot.owner(self.node.shards) == self.node.shard {
            self.presence.withdraw(slot);
            if self.node.has_webhooks
                && let Some(since) = self.presence.erased_since(slot)
            {
                let user = user.clone();
                self.leaving.untold.push_back(Erasure { user, since });
            }
            if matches!(self.node.role, Role::Presence) {
                // Real-time nodes are told the state as it is then: of one who was never seen.
                let gone = Transition {
                    slot,
                    status: Status::Offline,
                    first: false,
                };
                self.posts.decide(gone, now.mono);
            }
        }
        let mut leaver = Leaver {
            slot,
            user,
            sought: None,
        };
        self.seek(&mut leaver, now);
        self.leaving.watched.push_back(leaver);
    }

    /// Has the streams of whoever is forgotten end.
    fn seek(&mut self, leaver: &mut Leaver, now: Now) {
        if self.end_streams_of(leaver.slot, None) {
            leaver.sought = Some(now.mono);
        }
    }

    /// Moves some of those who watch a slot that is leaving to the name; at least one. Returns what
    /// that cost in marks.
    pub(in crate::engine) fn forget_some(&mut self, max: usize, now: Now) -> usize {
        let Some(leaver) = self.leaving.watched.pop_front() else {
            return 0;
        };
        let index = leaver.slot.index();
        let lists_max = (max / MARKS_PER_LIST).max(1);
        let mut moved = 0;
        if self.conns.watches.is_watched(index) && !planted::is(Planted::WatchersKeepSlot) {
            // Its name; or if it has come back meanwhile, the slot that it has now.
            let to = self.target(leaver.user.user());
            moved = self.conns.move_watchers(index, to, lists_max, now.mono);
        }
        let rest = self.conns.watches.is_watched(index);
        match rest && !planted::is(Planted::WatchersKeepSlot) {
            true => self.leaving.watched.push_front(leaver),
            false => self.leaving.unwatched.push_back(leaver),
        }
        1 + moved * MARKS_PER_LIST
    }

    /// Lets go of slots of which nothing is left here.
    pub(in crate::engine) fn let_go(&mut self, now: Now) {
        for _ in 0..self.leaving.unwatched.len().min(LOOKED_AT_PER_CALL) {
            let Some(mut leaver) = self.leaving.unwatched.pop_front() else {
                return;
            };
            let slot = leaver.slot;
            if leaver.sought.is_none() {
                self.seek(&mut leaver, now);
            }
            let waited = leaver
                .sought
                .is_some_and(|since| now.mono.ms_since(since) >= KEPT_MS_MAX);
            let streams = self.passes.logging_out.concerns(slot) || self.presence.is_held(slot);
            if waited && !streams {
                self.presence.let_go(slot, self.node.shard);
            } else {
                self.leaving.unwatched.push_back(leaver);
            }
        }
    }
}
