//! Who is online: interner, stamps, published states, sweep, files. Knows no connection.

mod interner;
mod leaves;
mod stamps;
mod store;
mod sweep;

pub use store::{FlushReport, Flusher, OpenReport, StoreFault, StoreOptions};
pub use sweep::{Sweep, SweepContext, Transition};

use crate::time::{Now, Unix};
use crate::wire::User;

/// Dense index of a publisher; below 2^30.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(u32);
/// Most slots a store can have: the two top bits of a u32 are kept for the watch lists.
pub const SLOTS_MAX: u32 = 1 << 30;
/// Slots of one chunk: the unit of ownership, of skipping in the sweep and of growth. A multiple of 64.
pub const CHUNK_SLOTS: u32 = 4_096;

impl Slot {
    /// From an index below [`SLOTS_MAX`].
    pub const fn new(index: u32) -> Slot {
        debug_assert!(index < SLOTS_MAX);
        Slot(index)
    }
    /// The index.
    pub const fn index(self) -> u32 {
        self.0
    }
    /// Which of `shards` shards decides this slot's transitions.
    pub const fn owner(self, shards: u16) -> u16 {
        ((self.0 / CHUNK_SLOTS) % shards as u32) as u16
    }
}

/// The shared presence database of one node: used by every shard through `&self`.
pub struct Presence {/* interner, stamps, published, online bits, touched flags, leaves, vigil, resume window */}

/// A publisher's published state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    /** online or offline */
    pub online: bool,
    /** last transition; None: never had one */
    pub since: Option<Unix>,
    /** last beat, clamped to now; None: never */
    pub last_active: Option<Unix>,
}

/// Why a slot was not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InternFault {
    /** users_max reached */
    Full,
    /** the files could not grow (disk full, file size limit); logged with the OS error once per second at most */
    NoSpace,
}

/// What became of a beat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BeatOutcome {
    /** stored; the slot is published online already */
    Stored,
    /** stored; the slot is not published online: its owner must look now */
    StoredOffline,
    /** sent before an accepted leave: refused */
    BeforeLeave,
}
/// What became of a leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaveOutcome {
    /** LEFT set; the owner must look now */
    Left,
    /** already LEFT, or older than what it would undo (a beat with a later sent_at is not tracked; see leaves.rs) */
    Ignored,
}

impl Presence {
    /// Opens (or makes) the store in a folder; applies the restart rule. `boot_id` is the kernel's, an argument so that tests can cut the power.
    pub fn open(_options: &StoreOptions, _now: Now) -> Result<(Presence, OpenReport), StoreFault> {
        todo!()
    }
    /// The slot of a user that has one. Lock-free.
    pub fn lookup(&self, _user: User<'_>) -> Option<Slot> {
        todo!()
    }
    /// The slot of a user, made if need be. Lock-free when it exists.
    pub fn intern(&self, _user: User<'_>) -> Result<Slot, InternFault> {
        todo!()
    }
    /// The user of a slot.
    pub fn user(&self, _slot: Slot) -> User<'_> {
        todo!()
    }
    /// Number of slots made.
    pub fn users(&self) -> u32 {
        todo!()
    }
    /// Records a beat: one compare-and-swap of the stamp (a plain store could overwrite a LEFT set in between); the slow path for a LEFT slot.
    pub fn record_beat(&self, _slot: Slot, _sent_at: Unix, _now: Now) -> BeatOutcome {
        todo!()
    }
    /// Looks up and prefetches for a batch, then records: `each(index, slot, outcome)`; users without a slot get `intern`.
    pub fn record_beats(
        &self,
        _users: &[User<'_>],
        _sent_at: Unix,
        _now: Now,
        _each: &mut dyn FnMut(usize, Result<(Slot, BeatOutcome), InternFault>),
    ) {
        todo!()
    }
    /// Records a goodbye.
    pub fn record_leave(&self, _slot: Slot, _sent_at: Unix, _now: Now) -> LeaveOutcome {
        todo!()
    }
    /// The published state with last_active clamped to `now`.
    pub fn state(&self, _slot: Slot, _now: Now) -> State {
        todo!()
    }
    /// Publishers online (sum over chunks), for metrics.
    pub fn online(&self) -> u64 {
        todo!()
    }
    /// Whether a reconnect that has been told everything up to `id` may be told only what changed since (less slack): false for an id from the future, from before this store existed, or from a window made ambiguous by a backward step or a power cut.
    pub fn resumable(&self, _id: Unix, _now: Now) -> bool {
        todo!()
    }
    /// An engine saw the wall clock step from `from` to `to`: widens the ambiguous window for a backward step, and makes the sweeps of other shards hold expiries until their own turn has seen it.
    pub fn note_clock_step(&self, _from: Unix, _to: Unix) {
        todo!()
    }
    /// A shard says that its turn began at `now` (stall detection between shards).
    pub fn note_turn(&self, _shard: u16, _now: Now) {
        todo!()
    }
}
