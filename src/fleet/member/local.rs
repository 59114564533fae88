//! What the core of a node asks its own presence databases, and tells them.
//!
//! Owns the boundary. A node has two databases that share their slots: one hears the node's own
//! users, the other mirrors what the fleet says of everybody who has a slot here.

use crate::fleet::flags::UserFlags;
use crate::fleet::held::Kinds;
use crate::slot::Slot;
use crate::time::{Mono, Now, Unix};
use crate::wire::User;

/// What this node may claim of a user now, by what it has heard itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Own {
    /// Empty: nothing. A beat that is not fresh any more is none.
    pub kinds: Kinds,
    /// What it says of itself, as far as this node knows.
    pub flags: UserFlags,
    /// When it was last heard of here; the epoch if never.
    pub last_active: Unix,
    /// Since when it is heard here, or is not any more; the epoch if it never was.
    pub since: Unix,
}

/// What the fleet says of a user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    /// It is here. If its flags say invisible, only nodes may know.
    pub is_here: bool,
    /// The status and whether others are told; offline, those that it comes back with.
    pub flags: UserFlags,
    /// When that became so, by Redis' clock.
    pub since: Unix,
    /// When it was last heard of. None: of somebody who is here nobody but its node knows.
    pub last_active: Option<Unix>,
    /// Of one who is invisible: since when it has gone for everybody else. None: it was never here
    /// for them; or that is not known, and stays as it is.
    pub gone_since: Option<Unix>,
}

/// What the mirror has of a user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mirrored {
    /// It is here, whether others are told or not.
    pub is_here: bool,
    /// Since when, as everybody is told; 0: never, by what was read. None: it was neither told nor
    /// read, and is known by what it said here.
    pub since: Option<Unix>,
}

/// Names something that was said once, for whoever waits until it is done.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

/// How a state is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// A message in its turn: it is what the fleet says now.
    InStep,
    /// It was read. It replaces what is known, also what has a later `since`: that was lost.
    Read,
    /// It was read as absent from a server that may have lost what was written last. Whoever is
    /// known to be here stays; anybody else may be told.
    Unsettled,
    /// This node heard it while Redis could not be told: an arrival, never a departure. `since` is
    /// this node's guess.
    Alone,
}

/// What ends a user's stay on each node, whoever vouches for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// A device said goodbye at this time, by its sender's clock, and the fleet has judged that it
    /// takes the user offline. Beats that were sent later count on.
    SaidGoodbye(Unix),
    /// Its streams end, and nothing counts on that was heard by them or sent up to then, by this
    /// node's clock.
    LoggedOut(Unix),
    /// As logged out; and nothing may be kept of it.
    Erased(Unix),
}

/// A node's presence databases.
pub trait Local {
    /// Slots are `0..slots()`. Never less than before.
    fn slots(&self) -> u32;

    /// Whose slot that is. None: nobody's, for its user was erased.
    fn user(&self, slot: Slot) -> Option<User<'_>>;

    /// The slot of a user who has one.
    fn find(&self, user: User<'_>) -> Option<Slot>;

    /// The slot of a user, made if there was none. None: there is no room.
    fn make(&mut self, user: User<'_>) -> Option<Slot>;

    /// What this node may claim of it.
    fn own(&self, slot: Slot, now: Now) -> Own;

    /// Whether what is told of it here is what the fleet says.
    fn is_sure(&self, slot: Slot) -> bool;

    /// What the mirror has of it. None: it was never told.
    fn mirrored(&self, slot: Slot) -> Option<Mirrored>;

    /// It is not here, and comes with these flags.
    fn comes_with(&mut self, slot: Slot, flags: UserFlags);

    /// News for the mirror. It may be no change.
    fn told(&mut self, slot: Slot, state: State, how: How, now: Now);

    /// Nobody in the fleet has heard of that user, who was asked for.
    fn unseen(&mut self, user: User<'_>, now: Now);

    /// What was said here of this user has been judged: its goodbye has ended nothing, or it hides.
    fn judged(&mut self, _user: User<'_>) {}

    /// A message says that a user is here or not. It may have no slot.
    fn heard_of(&mut self, _user: User<'_>, _is_here: bool) {}

    /// A message ends a user's stay, or hides it: so it is since then, by this node's clock. It may
    /// have no slot.
    fn overruled(&mut self, _user: User<'_>, _since: Mono) {}

    /// The fleet says that its stay ends: what this node has heard of it changes accordingly,
    /// before the mirror is told. The core asks for [`Local::own`] afterwards.
    fn ended(&mut self, slot: Slot, ending: Ending, now: Now);

    /// Nothing is kept of it from here on, as of `since`. Comes behind [`Local::ended`].
    fn erased(&mut self, slot: Slot, since: Unix, now: Now);

    /// What was said with this ticket has been done, and what came of it has been told.
    fn done(&mut self, ticket: Ticket);
}
