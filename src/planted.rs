//! Bugs planted on purpose, for the simulator's proof that it would notice them (`tests/sim`,
//! docs/SIMULATION.md).
//!
//! They are compiled in where debug assertions are, so that no test needs a build of its own, and
//! asleep until a test plants one in its thread. In a build that serves [`is`] is a constant false
//! and every hook is compiled away. The feature `planted` has them in an optimised build too, for
//! long runs by hand. Each thread has at most one bug at a time.

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Planted {
    /// A stamp exactly `offline_after_ms` old is not fresh.
    FreshTooShort,
    /// The sweep never looks at the last slot of a chunk.
    SweepSkipsLastSlot,
    /// A full outbox clears the marks of what it has no room for.
    MarkClearedEarly,
    /// The states of a snapshot are read a turn before its watches are indexed.
    SnapshotBeforeWatch,
    /// A beat sent before a goodbye undoes it.
    GoodbyeUndone,
    /// A goodbye sent before an accepted beat undoes it.
    GoodbyeUndoes,
    /// A goodbye takes a user offline who has a stream open.
    GoodbyeOfAll,
    /// After a restart expiries are not held.
    NoGraceAtBoot,
    /// Who is invisible is told by the last beat.
    BeatsShow,
    /// Who is invisible is counted as online.
    HiddenCounted,
    /// A beat of who is invisible brings them online.
    BeatsUncover,
    /// A real-time node doubts that one who is invisible has gone.
    InvisibleDoubted,
    /// A stamp ahead of the clock is brought back to it, whoever it is of.
    PastRewritten,
    /// Cells of slots that no user has are believed.
    CellsBeyondTrusted,
    /// A state is encoded when it is marked, not when it is flushed.
    EncodedWhenMarked,
    /// A watch by name is not turned into a watch by slot.
    NameNeverResolved,
    /// A resync reads the published states and tells nobody.
    DeafResync,
    /// A forward step of the wall clock does not hold expiries.
    StepExpires,
    /// A resumed stream is told only what changed after its last id, without slack.
    ResumeWithoutSlack,
    /// A stream's publisher is vouched for when it opens and never again.
    VouchedOnce,
    /// The platform beats for holders that beat for themselves.
    HolderVouchedFor,
    /// A read that filled its buffer is taken for the last.
    FullReadForgotten,
    /// Who watches a user that is forgotten goes on watching the slot.
    WatchersKeepSlot,
    /// The slot of whoever is erased is another's before its zeros are on disk.
    FreedUnwritten,
    /// A connection is to be read again, and its edge is not made up for.
    ResumedUnread,
    /// An edge told of room, and nobody writes on.
    RoomForgotten,
    /// A real-time node takes over what is published without comparing `since`.
    ToldUnordered,
    /// A presence node is found again and nobody is asked about.
    ReaskIgnored,
    /// Another life of a presence node passes for the one before.
    LifeUnnoticed,
    /// Watchers are not told what was answered.
    AnswerUntold,
    /// States under way are forgotten when their request fails.
    InFlightForgotten,
    /// Event ids are told while a presence node is out of sight.
    IdWhileBehind,
    /// Event ids are told while a question about somebody watched is under way.
    IdWhileUnsure,
    /// Who comes for the first time is neither sure nor asked about.
    NewcomerUnsure,
    /// A number that was passed over passes for none.
    GapUnnoticed,
    /// A message that comes again under its number passes for one after a gap.
    RepetitionIsGap,
    /// A message that is refused for what is in it consumes its number.
    RefusedConsumed,
    /// A real-time node leaves the streams of whoever is erased open.
    ErasedStreamsStay,
    /// A slot is another's before the links have told that its user is erased.
    LinksNotAwaited,
    /// Real-time nodes are not told who was logged out.
    LogOutUntold,
    /// After an outage nobody is vouched for before their turn.
    HurryIgnored,
    /// After an outage whoever is offline is published so at once.
    HoldIgnored,
    /// After an outage a presence node is asked at once.
    AskedUnsettled,
    /// Who is sent away by a drain is told a delay that the hold after the start does not cover.
    AwayBeyondHold,
    /// Silence expires while a drain sends everybody away.
    ExpiredWhileDraining,
    /// A start after a long outage holds everybody online.
    OutageForgotten,
    /// What a node of a fleet says of its users is never late.
    VouchesNeverLate,
    /// That a life is dead is never said too late.
    FencesNeverLate,
    /// A lease is never renewed too late.
    RenewalsNeverLate,
    /// After an outage of Redis things are taken back at once.
    SettleIgnored,
    /// Who could not renew its lease because Redis was away is dead.
    AmnestyIgnored,
    /// Whom a server that may have lost writes does not have is offline.
    AbsencesBelieved,
    /// Nobody compares what Redis has with what it was told.
    AuditOff,
    /// Numbers of messages count for whatever server.
    BaseUntied,
    /// Who was logged out while a node was cut off stays there.
    EndsUnread,
    /// Users of the dead are taken back without a fence.
    FenceSkipped,
    /// What was missed is told from first to last.
    HistoryReplayed,
    /// No call of a node is missed, and none is found to be a repetition.
    NumbersIgnored,
    /// The dead are reaped before the living could speak.
    ReapUnsettled,
    /// A beat counts where it comes in, whether that node can tell of it or not.
    BeatsNotHomed,
    /// What is said with a call passes for done if an earlier one with its number was.
    SaidWithAnother,
    /// Who is invisible arrives when a node claims it. This and the next two are in the library,
    /// as the simulator runs it.
    InvisibleArrives,
    /// What a user says of itself is forgotten with its last claim.
    FlagsDropped,
    /// Whoever is claimed after an empty start has come just then.
    SinceAnew,
}

impl Planted {
    /// Those that a node of both halves can have.
    pub const ALL: [Planted; 22] = [
        Planted::FreshTooShort,
        Planted::SweepSkipsLastSlot,
        Planted::MarkClearedEarly,
        Planted::SnapshotBeforeWatch,
        Planted::GoodbyeUndone,
        Planted::GoodbyeUndoes,
        Planted::GoodbyeOfAll,
        Planted::NoGraceAtBoot,
        Planted::PastRewritten,
        Planted::CellsBeyondTrusted,
        Planted::EncodedWhenMarked,
        Planted::NameNeverResolved,
        Planted::DeafResync,
        Planted::StepExpires,
        Planted::ResumeWithoutSlack,
        Planted::VouchedOnce,
        Planted::HolderVouchedFor,
        Planted::FullReadForgotten,
        Planted::ResumedUnread,
        Planted::RoomForgotten,
        Planted::WatchersKeepSlot,
        Planted::FreedUnwritten,
    ];

    /// Those that only a split deployment can have.
    pub const SPLIT: [Planted; 18] = [
        Planted::GoodbyeOfAll,
        Planted::LogOutUntold,
        Planted::ErasedStreamsStay,
        Planted::LinksNotAwaited,
        Planted::HurryIgnored,
        Planted::ToldUnordered,
        Planted::ReaskIgnored,
        Planted::LifeUnnoticed,
        Planted::AnswerUntold,
        Planted::InFlightForgotten,
        Planted::IdWhileBehind,
        Planted::IdWhileUnsure,
        Planted::NewcomerUnsure,
        Planted::GapUnnoticed,
        Planted::RepetitionIsGap,
        Planted::RefusedConsumed,
        Planted::HoldIgnored,
        Planted::AskedUnsettled,
    ];
}

impl Planted {
    /// Those that a node of a fleet can have.
    pub const FLEET: [Planted; 17] = [
        Planted::VouchesNeverLate,
        Planted::FencesNeverLate,
        Planted::NumbersIgnored,
        Planted::SaidWithAnother,
        Planted::InvisibleArrives,
        Planted::FlagsDropped,
        Planted::SinceAnew,
        Planted::SettleIgnored,
        Planted::AmnestyIgnored,
        Planted::AbsencesBelieved,
        Planted::AuditOff,
        Planted::BaseUntied,
        Planted::EndsUnread,
        Planted::FenceSkipped,
        Planted::HistoryReplayed,
        Planted::ReapUnsettled,
        Planted::BeatsNotHomed,
    ];

    /// Those that only a restart shows.
    pub const RESTART: [Planted; 3] = [
        Planted::AwayBeyondHold,
        Planted::ExpiredWhileDraining,
        Planted::OutageForgotten,
    ];
}

#[cfg(any(debug_assertions, feature = "planted"))]
thread_local! {
    static HERE: std::cell::Cell<Option<Planted>> = const { std::cell::Cell::new(None) };
}

/// Plants `bug` in this thread, in place of the one before.
#[cfg(any(debug_assertions, feature = "planted"))]
pub fn plant(bug: Option<Planted>) {
    HERE.set(bug);
}

/// Whether this thread has `bug`.
#[cfg(any(debug_assertions, feature = "planted"))]
pub fn is(bug: Planted) -> bool {
    HERE.get() == Some(bug)
}

/// The name of another version of a fleet's library, which this process goes by: a test of two
/// versions side by side says it in `PLANTED_LIBRARY`. None: the one that there is.
#[cfg(any(debug_assertions, feature = "planted"))]
pub fn library() -> Option<&'static str> {
    static NAME: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let name = NAME.get_or_init(|| std::env::var("PLANTED_LIBRARY").ok());
    name.as_deref()
}

/// The same: there is one version.
#[cfg(not(any(debug_assertions, feature = "planted")))]
#[inline(always)]
pub const fn library() -> Option<&'static str> {
    None
}

/// Whether this thread has a bug: never.
#[cfg(not(any(debug_assertions, feature = "planted")))]
#[inline(always)]
pub const fn is(_bug: Planted) -> bool {
    false
}
