//! Who is online: interner, stamps, published states, sweep, files. Knows no connection.
//!
//! Owns the presence database of one node and its folder. Shared by all shards through `&Presence`;
//! what each slot's owner alone may do goes through its [`Sweep`]. Never reads a clock, never knows
//! who watches.

mod archive;
mod beats;
mod doubts;
mod erased;
mod feeds;
mod flapping;
mod follower;
mod forget;
mod fresh;
mod hidden;
mod holders;
mod idle;
mod index;
mod interner;
mod mass_silence;
mod online;
mod open;
pub mod pace;
mod resume;
mod reuse;
mod statuses;
mod sweep;
#[cfg(test)]
mod tests;
mod vigil;
mod walk;
mod write_back;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use crossbeam::epoch::{self, Guard};

pub use archive::{Archive, ArchiveFault, Kept};
pub use feeds::{Taken, UNTOLD_MS_MAX};
pub use flapping::FLAP_TRANSITIONS_MAX;
pub use follower::{FollowerOptions, Source};
pub use forget::ForgetFault;
pub use hidden::Hidden;
pub use mass_silence::MassSilenceRule;
pub use open::{OpenReport, StoreFolder, StoreOptions};
pub use resume::{AHEAD_MS_MAX as ID_AHEAD_MS_MAX, Unresumable};
pub use statuses::{OwnState, SaidLast};
pub use sweep::{Sweep, SweepContext, SweepRules, Transition};

use crate::planted::{self, Planted};
use crate::slot::{CHUNK_SLOTS, Slot};
use crate::status::Status;
pub use crate::store::MemoryChoice;
pub use crate::store::cells::{BEHIND_MS_MAX, STEP_BITS as SENT_STEP_BITS};
use crate::store::cells::{Published, Stamp, StampFlags};
use crate::store::headers::Headers;
use crate::store::map::CellFile;
use crate::store::{LogRoom, StoreFault};
use crate::time::{Mono, Now, Unix};
use crate::wire::User;
use follower::Follower;
use forget::Forgetting;
use holders::Holders;
use idle::Idle;
use interner::{AppendFault, Interner};
use mass_silence::MassSilence;
use online::{LOOK, Online};
use pace::Pace;
use resume::Resume;
pub use vigil::STALLED_MS;
use vigil::Vigil;
pub use write_back::WriteBack;

/// Doubtful event ids further ahead of the clock than this, in ms, are worth a line in the log.
const DOUBT_AHEAD_MS_MAX: u64 = 60_000;

/// So long a new user who was refused is spoken of, in ms: whoever asks about one does so some
/// seconds after the beat.
const REFUSED_NEW_MS: u64 = 5_000;

/// The shared presence database of one node: used by every shard through `&self`.
///
/// A method that takes a [`Slot`] panics if this store never made it.
pub struct Presence {
    /// Shared with its twin, if it has one.
    interner: Arc<Interner>,
    stamps: CellFile<Stamp>,
    published: CellFile<Published>,
    online: Online,
    holders: Holders,
    idle: Idle,
    forgetting: Forgetting,
    vigil: Vigil,
    mass_silence: MassSilence,
    resume: Resume,
    identity: Headers,
    /// When the last write-back began that came to its end, in ms of the monotonic clock.
    written_up_to_ms: AtomicU64,
    /// How fast new users are made, and at most a second.
    pace: Pace,
    new_per_second_max: AtomicU32,
    /// When a beat was last refused because it would have made a user, in ms of the monotonic
    /// clock; 0: never.
    refused_new_ms: AtomicU64,
    /// The last new user found no room in the files, which has been logged.
    growth_failing: AtomicBool,
    /// Of a follower alone.
    follower: Option<Follower>,
    /// The database that has the same slots, of other cells.
    twin: OnceLock<Weak<Presence>>,
}

/// A publisher's published state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    /// What it is; unknown in a follower alone, which has not been told of the publisher: the other
    /// fields then mean nothing.
    pub status: Status,
    /// Last transition; None: never had one, or is erased in a fleet.
    pub since: Option<Unix>,
    /// Last beat, or if that lies ahead of the clock a time that does not; None: never. Of somebody
    /// who is told as gone nothing later than `since`.
    pub last_active: Option<Unix>,
}

impl State {
    /// Whether anything was ever told of the publisher.
    pub fn is_known(&self) -> bool {
        self.status != Status::Unknown
    }
}

/// Why a slot was not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InternFault {
    /// `users_max` reached.
    Full,
    /// New users are made at the highest rate already: try again in a second.
    TooFast,
    /// The files could not grow (disk full, file size limit); logged with the OS error, once until
    /// there is room again.
    NoSpace,
}

/// Why a beat made no user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BeatFault {
    /// Sent before the user was erased.
    BeforeErasure,
    /// There is no room for a new one.
    Intern(InternFault),
}

/// What became of a beat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BeatOutcome {
    /// Stored; the slot is published online already.
    Stored,
    /// Stored; the slot is not published online: its owner must look now.
    StoredOffline,
    /// Stored, and whether somebody is at the user's devices has changed: its owner must look now.
    StoredNews,
    /// Stored, and a goodbye that nobody had looked at is over: for the slot's owner nothing has
    /// changed, and a fleet that told of the goodbye is to hear of it.
    StoredAgain,
    /// Sent in an earlier step than an accepted leave: refused.
    BeforeLeave,
}

/// What became of a leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaveOutcome {
    /// LEFT set; the owner must look now.
    Left,
    /// Already LEFT, or sent in an earlier step than what it would undo.
    Ignored,
}

impl Presence {
    /// Opens (or makes) the store in a folder; applies the restart rule. Locks the folder: one
    /// process at a time.
    ///
    /// From then on a write beyond RLIMIT_FSIZE is an error instead of a SIGXFSZ in the whole
    /// process.
    pub fn open(options: &StoreOptions, now: Now) -> Result<(Presence, OpenReport), StoreFault> {
        StoreFolder::lock(options.clone())?.open(now)
    }

    /// The slot of a user that has one. Lock-free.
    pub fn lookup(&self, user: User<'_>) -> Option<Slot> {
        self.interner
            .find(user, self.interner.hash(user), &epoch::pin())
    }

    /// The slot of a user, made if need be. Lock-free when it exists.
    ///
    /// Errors: it has to be made, and `users_max` is reached or the files cannot grow.
    pub fn intern(&self, user: User<'_>) -> Result<Slot, InternFault> {
        let guard = epoch::pin();
        let hash = self.interner.hash(user);
        self.interner
            .find(user, hash, &guard)
            .map_or_else(|| self.intern_new(user, hash, &guard), Ok)
    }

    /// The same, for a user whom a peer names: new ones are made at a bounded rate.
    ///
    /// Errors: as of [`Presence::intern`], or too many were made lately.
    pub fn intern_in_time(&self, user: User<'_>, now: Mono) -> Result<Slot, InternFault> {
        let guard = epoch::pin();
        let hash = self.interner.hash(user);
        self.interner
            .find(user, hash, &guard)
            .map_or_else(|| self.intern_newcomer(user, hash, &guard, now), Ok)
    }

    /// New users are made at this rate at most; 0: at any. A burst of one second's worth passes.
    pub fn set_new_per_second_max(&self, new_per_second_max: u32) {
        self.new_per_second_max
            .store(new_per_second_max, Ordering::Relaxed);
    }

    #[cold]
    fn note_refused_new(&self, now: Mono) {
        self.refused_new_ms
            .store(now.ms().max(1), Ordering::Relaxed);
    }

    /// Whether a beat has lately been refused because it would have made a user: one who is asked
    /// about now, and has never been heard of, may be that user.
    pub fn has_refused_new(&self, now: Mono) -> bool {
        let refused_ms = self.refused_new_ms.load(Ordering::Relaxed);
        refused_ms > 0 && now.ms() <= refused_ms + REFUSED_NEW_MS
    }

    #[cold]
    fn intern_newcomer(
        &self,
        user: User<'_>,
        hash: u64,
        guard: &Guard,
        now: Mono,
    ) -> Result<Slot, InternFault> {
        if !self
            .pace
            .take(self.new_per_second_max.load(Ordering::Relaxed), now)
        {
            return Err(InternFault::TooFast);
        }
        self.intern_new(user, hash, guard)
    }

    #[cold]
    fn intern_new(&self, user: User<'_>, hash: u64, guard: &Guard) -> Result<Slot, InternFault> {
        let twin = self.twin.get().and_then(Weak::upgrade);
        let reserve = |index: u32| {
            for database in std::iter::once(self).chain(twin.as_deref()) {
                database.stamps.reserve(index + 1)?;
                database.published.reserve(index + 1)?;
            }
            Ok(())
        };
        let made = self.interner.intern(user, hash, guard, reserve);
        // A line for each row of failures: a disk that is full stays so for a while.
        match &made {
            Ok(_) if self.growth_failing.load(Ordering::Relaxed) => {
                self.growth_failing.store(false, Ordering::Relaxed)
            }
            Err(AppendFault::NoSpace(error))
                if !self.growth_failing.swap(true, Ordering::Relaxed) =>
            {
                tracing::error!(%error, users = self.users(), "no room for new users: the store's \
                 files cannot grow");
            }
            _ => {}
        }
        made.map_err(|fault| InternFault::from(&fault))
    }

    /// Whether there was no room on the disk for the last user who was new.
    pub fn lacks_space(&self) -> bool {
        self.growth_failing.load(Ordering::Relaxed)
    }

    /// The user of a slot.
    pub fn user(&self, slot: Slot) -> User<'_> {
        self.interner.user(slot)
    }

    /// What is used of users.log.
    pub fn log_room(&self) -> LogRoom {
        self.interner.log().room()
    }

    /// Number of slots made.
    pub fn users(&self) -> u32 {
        self.interner.users()
    }

    /// The published state; its `last_active` is never ahead of `now`, unless `since` is as much.
    /// In a fleet whoever was erased has no times, as somebody who was never seen.
    pub fn state(&self, slot: Slot, now: Now) -> State {
        let published = self.published.cell(slot).load(Ordering::Acquire);
        let mut stamp = self.stamps.cell(slot).load(Ordering::Acquire);
        if self.is_follower() {
            // What is told was decided elsewhere.
            stamp = stamp.without(StampFlags::INVISIBLE);
        }
        let is_told_by_fleet = self.is_follower() && self.is_of_fleet();
        State {
            // A follower's cell that was told of anything has a time or a flag.
            status: if published == Published::NEVER && self.is_follower() {
                Status::Unknown
            } else {
                published.status()
            },
            since: published
                .since()
                .filter(|_| !is_told_by_fleet || !follower::is_erased(published, stamp)),
            // Whatever still stamps the slot of somebody who was forgotten says nothing of them.
            last_active: stamp
                .last_active(published)
                .filter(|_| !self.is_withdrawn(slot))
                // Two transitions of one millisecond have the second's `since` ahead of the turn.
                .map(|at| self.told(at, now.unix, published.since() == Some(at))),
        }
    }

    /// A time of a stamp as it is told; or of a transition, which is told as it is.
    fn told(&self, at: Unix, now: Unix, is_since: bool) -> Unix {
        // The turns of shards do not begin together.
        match at > now.plus_ms(fresh::AHEAD_MS_MAX) {
            true => self.vigil.told(at, now),
            false if is_since => at,
            false => at.min(now),
        }
    }

    /// A moment by this node's clock before which no shard publishes any more: what is read after
    /// asking is as of it at least.
    pub fn published_up_to(&self) -> Unix {
        self.vigil.earliest_turn().unwrap_or(Unix::from_ms(0))
    }

    /// Whether each shard has begun a turn since this moment: all that it had to tell the others
    /// then is in their mailboxes.
    pub fn has_turned_since(&self, at: Mono) -> bool {
        self.vigil.turned_since(at)
    }

    /// Shards that call [`Presence::note_turn`].
    pub fn shards(&self) -> usize {
        self.vigil.shards()
    }

    /// Whether a publisher is published as online.
    pub fn is_online(&self, slot: Slot) -> bool {
        self.online.has(slot)
    }

    /// Publishers online (sum over chunks), for metrics.
    pub fn online(&self) -> u64 {
        if planted::is(Planted::HiddenCounted) {
            let slots = (0..self.users()).map(Slot::new);
            let counted = |slot: &Slot| self.online.has(*slot) || self.is_invisible(*slot);
            return slots.filter(counted).count() as u64;
        }
        let chunks = self.users().div_ceil(CHUNK_SLOTS) as usize;
        (0..chunks)
            .map(|chunk| u64::from(self.online.count(chunk)))
            .sum()
    }

    /// Whether a reconnect that has been told everything up to `id` may be told only what changed
    /// since (less slack). Fails for an id from the future, from before this store existed, or from
    /// a window made ambiguous by a backward step or a power cut.
    pub fn resumable(&self, id: Unix, now: Now) -> Result<(), Unresumable> {
        self.resume.resumable(id, now.unix)
    }

    /// An engine saw the wall clock step from `from` to `now`: a step back makes what was lived
    /// through in between ambiguous for [`Presence::resumable`]. (That other shards hold expiries
    /// until they have seen it too comes from [`Presence::note_turn`].)
    pub fn note_clock_step(&self, from: Unix, now: Now) {
        if now.unix < from {
            // By each shard that sees it: one that has not yet would look by its old clock, and
            // nobody would look again at who was stamped and is not online.
            let chunks = self.users().div_ceil(CHUNK_SLOTS) as usize;
            (0..chunks).for_each(|chunk| self.online.raise(chunk, LOOK));
        }
        if self.resume.stepped(from, now) {
            self.vigil.clock_is_behind(now);
            self.warn_of_doubt(now.unix);
        }
        // Also a step forward, or a crash soon after would pass for an outage of its length.
        self.mark_at_once("a step of the clock", now);
    }

    /// Readers are told to come back within `away_ms`, should their streams end: the next start
    /// waits for them, whatever its settings say.
    pub fn note_told_back(&self, away_ms: u64, now: Now) {
        self.identity
            .raise_away_ms(u32::try_from(away_ms).unwrap_or(u32::MAX));
        self.mark_at_once("when readers come back", now);
    }

    /// Readers of the run before have had time to come back.
    pub fn note_returned(&self) {
        if self.identity.away_ms_before() > 0 {
            self.identity.forget_away_before();
        }
    }

    /// The longest delay after which readers of the run before were told to come back, in ms; 0:
    /// they have had the time.
    pub fn away_ms_before(&self) -> u64 {
        u64::from(self.identity.away_ms_before())
    }

    fn mark_at_once(&self, what: &str, now: Now) {
        let windows = || self.resume.ambiguous();
        let marked = self
            .identity
            .mark_at_once(&self.published, windows, now.unix);
        if let Err(error) = marked {
            tracing::warn!(%error, "published.map's header could not be written: a crash would \
                                    forget {what}");
        }
    }

    /// Says up to when event ids of a time to come will not be believed.
    fn warn_of_doubt(&self, now: Unix) {
        let windows = self.resume.ambiguous();
        let ahead = windows
            .into_iter()
            .flatten()
            .find(|(_, to)| *to > now.plus_ms(DOUBT_AHEAD_MS_MAX));
        if let Some((from, to)) = ahead {
            let (from_ms, to_ms) = (from.ms().max(now.ms()), to.ms());
            tracing::warn!(
                from_ms,
                to_ms,
                "the wall clock has been ahead: when it says these Unix ms again, streams that \
                 resume get full snapshots"
            );
        }
    }

    /// A shard says that its turn began at `now`: the first thing in a turn, before any beat is
    /// recorded with this `now`, and at least once a second even when idle.
    ///
    /// No sweep expires anyone while another shard's last turn is older than 2 s (its socket may
    /// hold the beats) or was by another wall clock (it was stepped).
    pub fn note_turn(&self, shard: u16, now: Now) {
        self.vigil.note_turn(shard, now);
    }

    /// Nobody is expired by any shard before `until`: for a shard that found itself stalled and has
    /// not yet heard everyone.
    pub fn hold_expiries_until(&self, until: Mono) {
        self.vigil.hold_until(until);
    }

    /// How many are overdue, if that is a mass that fell silent at once; else 0.
    pub fn mass_silence(&self) -> u64 {
        match self.mass_silence.is_on() {
            true => self.mass_silence.overdue(),
            false => 0,
        }
    }

    /// Many fall silent here until then because other nodes hear them: that is no mass silence.
    pub fn excuse_silence(&self, until: Mono) {
        self.mass_silence.excuse(until);
    }

    /// A writer-back for this store; one at a time. `bytes_per_second` bounds what it asks of the
    /// disk.
    pub fn write_back(self: &Arc<Presence>, bytes_per_second: u64) -> WriteBack {
        WriteBack::new(Arc::clone(self), bytes_per_second)
    }

    /// Checks that bits, counts and published cells agree. For tests and the simulator: reads
    /// everything, and needs the owners to be quiet.
    pub fn check_invariants(&self) {
        let users = self.users();
        assert!(
            users <= self.stamps.capacity() && users <= self.published.capacity(),
            "a slot without cells"
        );
        let mut counted = vec![0; users.div_ceil(CHUNK_SLOTS) as usize];
        for slot in (0..users).map(Slot::new) {
            let published = self
                .published
                .cell(slot)
                .load(Ordering::Acquire)
                .is_online();
            assert_eq!(
                published,
                self.online.has(slot),
                "published cell and bit of {slot:?}"
            );
            counted[online::chunk_of(slot)] += u32::from(published);
        }
        for (chunk, count) in counted.iter().enumerate() {
            assert_eq!(*count, self.online.count(chunk), "count of chunk {chunk}");
        }
    }
}
