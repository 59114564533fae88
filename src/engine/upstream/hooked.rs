//! What the bridge to a fleet and the threads of webhooks say to each other.
//!
//! Owns its shape. A source is a partition; an epoch of one is a time in which the node has it for
//! itself. What is left of an older epoch counts for nothing.

use crate::time::{Mono, Unix};
use crate::wire::record::Told;

/// For the thread of one webhook.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HookOrder {
    /// These are to be told.
    States(HookStates),
    /// Messages with states of this source may be under way until then.
    Permit {
        source: u16,
        epoch: u32,
        until: Mono,
    },
    /// What waits of this source and epoch is another node's to tell. Answered by
    /// [`HookReport::Dropped`] once nothing of it is under way.
    Drop { source: u16, epoch: u32 },
}

/// States of users of one source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HookStates {
    pub source: u16,
    pub epoch: u32,
    /// By which [`HookReport::ToldUpTo`] names them; goes up.
    pub end: u64,
    /// When the first of them became so, as far as that is known.
    pub from: Unix,
    pub states: Vec<HookState>,
}

/// A user's state, and a number for where it stands in its source: what is equal in both is the
/// same transition, whichever node tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HookState {
    pub told: Told,
    pub stamp: u64,
}

/// For the bridge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HookReport {
    /// All states up to these have been taken by the receiver.
    ToldUpTo { source: u16, epoch: u32, end: u64 },
    /// Nothing of this epoch is under way any more.
    Dropped { source: u16, epoch: u32 },
}
