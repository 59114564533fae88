//! sweep
use super::{Presence, Slot};
use crate::time::Now;

/// One transition, decided and already written to `published` by the slot's owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transition {
    /** whose */
    pub slot: Slot,
    /** to online rather than to offline */
    pub online: bool,
    /** the slot's first ever: watches by name must be turned into watches by slot */
    pub first: bool,
}

/// What a sweep must know beside the stamps.
#[derive(Clone, Copy, Debug)]
pub struct SweepContext {
    /** moment */
    pub now: Now,
    /** silence after which a publisher is offline */
    pub offline_after_ms: u64,
    /** after a stall, a step or a restart: nobody may be expired (LEFT still counts) */
    pub hold_expiries: bool,
}

/// One shard's sweep over the chunks that it owns.
#[derive(Debug)]
pub struct Sweep {
    _p: (),
}
impl Sweep {
    /// For shard `shard` of `shards`.
    pub fn new(_shard: u16, _shards: u16) -> Sweep {
        todo!()
    }
    /// Starts a cycle over all owned chunks (a cycle under way goes on).
    pub fn begin(&mut self) {
        todo!()
    }
    /// Sweeps at most `slots_max` slots; appends transitions (at most `transitions_max`, the rest is found by the next slice). True when the cycle is complete.
    pub fn slice(
        &mut self,
        _presence: &Presence,
        _context: SweepContext,
        _slots_max: u32,
        _transitions_max: usize,
        _out: &mut Vec<Transition>,
    ) -> bool {
        todo!()
    }
    /// Looks at one owned slot now (a beat came while it was offline, or a leave).
    pub fn look(&mut self, _presence: &Presence, _context: SweepContext, _slot: Slot, _out: &mut Vec<Transition>) {
        todo!()
    }
}
