//! What a node's users say, and about whom it asks.
//!
//! Owns the way in: what is said once waits here until it may be said to Redis.

use super::part::{Act, Said, Wanted};
use super::{ACTS_MAX, Local, Member, Ticket};
use crate::fleet::flags::Saying;
use crate::fleet::held::Kinds;
use crate::time::{Now, Unix};
use crate::wire::User;

impl<L: Local> Member<L> {
    /// A device said goodbye here at `sent`, by its own clock, and the node's own database knows.
    /// `kinds` are those that ended with it.
    pub fn said_goodbye(
        &mut self,
        user: User<'_>,
        kinds: Kinds,
        sent: Unix,
        last_active: Unix,
        now: Now,
    ) {
        let what = Said::Goodbye {
            kinds,
            sent,
            last_active,
        };
        self.act(user, what, None, now);
    }

    /// A user is logged out everywhere. `ticket`: who waits until that is done. While Redis is
    /// away, and until all nodes have told it whom they have, nobody waits: it is done then.
    pub fn log_out(&mut self, user: User<'_>, last_active: Unix, ticket: Option<Ticket>, now: Now) {
        let at = self.partitions.of(user).index();
        let waits = self.is_well(&self.parts[at], now.mono) && self.may_take_back(at, now.mono);
        let kept = ticket.filter(|_| waits);
        let is_taken = self.act(user, Said::LogOut(last_active), kept, now);
        if let Some(ticket) = ticket.filter(|_| !waits && is_taken) {
            self.local.done(ticket);
        }
    }

    /// A user says this of itself, and the node's own database knows. While Redis is away it counts
    /// here at once. `ticket`: who waits until it is told.
    pub fn set_flags(&mut self, user: User<'_>, said: Saying, ticket: Option<Ticket>, now: Now) {
        let at = self.partitions.of(user).index();
        let is_taken = self.act(user, Said::Flags(said), ticket, now);
        if !is_taken || self.is_well(&self.parts[at], now.mono) {
            return;
        }
        if let Some(slot) = self.local.find(user) {
            self.reach(slot.index());
            let mirrored = self.local.mirrored(slot);
            if mirrored.is_some_and(|mirrored| mirrored.is_here) {
                self.tell_as_alone(slot.index(), now);
            }
        }
        if let Some(ticket) = ticket {
            self.local.done(ticket);
        }
    }

    /// A user is erased. `ticket`: who waits until it is done.
    pub fn erase(&mut self, user: User<'_>, ticket: Option<Ticket>, now: Now) {
        self.act(user, Said::Erase, ticket, now);
    }

    /// Somebody here wants to know of a user. The answer is [`Local::told`], or [`Local::unseen`]
    /// of one without a slot, whose name is kept until [`Member::forget_name`]. `anew`: also if its
    /// slot is followed already.
    pub fn ask(&mut self, user: User<'_>, anew: bool, now: Now) {
        let at = self.partitions.of(user).index();
        if let Some(found) = self.local.find(user) {
            let slot = found.index();
            let is_new = slot >= self.claims.len();
            self.reach(slot);
            // Of who was heard here, or has said something here, the fleet may have told nothing.
            if anew || is_new || !self.local.is_sure(found) {
                self.want(slot);
            }
        } else {
            let part = &mut self.parts[at];
            if self.names < self.settings.names_max && part.names.insert(user.into()) {
                self.names += 1;
            }
            part.asks.push_back(Wanted::Name(user.into()));
        }
        self.schedule(at, now.mono);
    }

    /// Nobody here wants to know of a user without a slot any more.
    pub fn forget_name(&mut self, user: User<'_>) {
        let at = self.partitions.of(user).index();
        if self.parts[at].names.remove(&user.into()) {
            self.names -= 1;
        }
    }

    /// False: as many wait already as may, because Redis is away for long. Nobody is told that
    /// it is done then. Goodbyes make room, for silence says the same.
    pub(super) fn act(
        &mut self,
        user: User<'_>,
        what: Said,
        ticket: Option<Ticket>,
        now: Now,
    ) -> bool {
        let at = self.partitions.of(user).index();
        let acts = &mut self.parts[at].acts;
        if acts.len() >= ACTS_MAX {
            self.counts.acts_dropped += 1;
            let is_goodbye = |act: &Act| matches!(act.what, Said::Goodbye { .. });
            match acts.iter().position(is_goodbye) {
                Some(goodbye) => drop(acts.remove(goodbye)),
                None => return false,
            }
        }
        let (user, said_at) = (user.into(), now.mono);
        self.parts[at].acts.push_back(Act {
            user,
            what,
            said_at,
            ticket,
            is_in_all: false,
        });
        self.schedule(at, now.mono);
        true
    }
}
