//! What the cells of the two maps say, bit by bit.
//!
//! Owns the two layouts and every flag, each named here alone with who may set it. A [`Stamp`] and
//! a [`Published`] are types, so that a flag of one can not be asked of the other. Never decides
//! what a cell should say.
//!
//! ```
//! use greendot::store::cells::{Published, PublishedFlags, Stamp, StampFlags};
//! assert!(!Stamp::default().has(StampFlags::LEFT));
//! assert!(!Published::default().has(PublishedFlags::ONLINE));
//! ```
//!
//! ```compile_fail
//! use greendot::store::cells::{Published, StampFlags};
//! assert!(!Published::default().has(StampFlags::LEFT));
//! ```

use std::{cmp, fmt};

pub use super::cell::{Cell, CellValue};
use crate::planted::{self, Planted};
use crate::status::Status;
use crate::time::Unix;

const FLAG_BITS: u32 = 8;
const BEHIND_BITS: u32 = 12;
const BEHIND_STEPS_MAX: u64 = (1 << BEHIND_BITS) - 1;
/// A goodbye is published within this of its stamp, in ms, unless the process ended between: by
/// another shard's next turn, or once real-time nodes have been asked.
const GOODBYE_MS_MAX: u64 = 5_000;
/// Sending times are kept to a step of 2^4 = 16 ms of the Unix clock.
pub const STEP_BITS: u32 = 4;

/// How far the latest sending time can lie behind the latest time received, in ms.
pub const BEHIND_MS_MAX: u64 = BEHIND_STEPS_MAX << STEP_BITS;

/// A slot's stamp: when its publisher was last heard of, and up to when what was heard had been
/// sent. Zero: never.
///
/// ```text
/// 63                                  20 19         8 7      0
/// | received: Unix ms, 44 bits          | behind, 12 | flags 8 |
/// ```
///
/// `behind`: so many steps of 16 ms the latest sending time lies behind the latest time received,
/// counted from step to step of the Unix clock. So it is exact to one step, and stays as it was
/// however often the time received moves on.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Stamp(u64);

/// Flags of a [`Stamp`].
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct StampFlags(u8);

/// A slot's published state. Zero: nothing was ever published of it.
///
/// ```text
/// 63                                                8 7      0
/// | since: Unix ms of the last transition, 56 bits   | flags 8 |
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Published(u64);

/// Flags of a [`Published`].
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct PublishedFlags(u8);

impl StampFlags {
    /// An explicit goodbye: not fresh whatever the time. Set by who records a goodbye, cleared by
    /// who records a beat that counts.
    pub const LEFT: StampFlags = StampFlags(1);
    /// The silence has been published, or will be once it has lasted since the clock went back: not
    /// fresh until the next beat, whatever the wall clock says. Set by the slot's owner in its
    /// sweep, cleared by who records a beat.
    pub const EXPIRED: StampFlags = StampFlags(1 << 1);
    /// What the publisher says of itself: online, away, busy, as numbers from 0; 3 is not used. Set
    /// by who takes a status, and by nobody else.
    pub const STATUS: StampFlags = StampFlags(3 << 2);
    const AWAY: StampFlags = StampFlags(1 << 2);
    const BUSY: StampFlags = StampFlags(2 << 2);
    /// Told to nobody as here: it stands beside LEFT, which beats do not clear then. EXPIRED beside
    /// it says that the publisher has truly gone, until the next beat. Set and cleared by who takes
    /// a status, and by nobody else.
    pub const INVISIBLE: StampFlags = StampFlags(1 << 4);
    /// A goodbye was put off, and no beat has come since; beside LEFT, that one is it. Set by who
    /// takes such a goodbye, cleared by who records a beat or another goodbye. What a crash leaves
    /// of it without LEFT means nothing.
    pub const LEAVING: StampFlags = StampFlags(1 << 5);
    /// The last beat came from a device that says that nobody is at it. Set by who records such a
    /// beat, cleared by who records any other.
    pub const IDLE: StampFlags = StampFlags(1 << 6);
    /// For long enough only such beats have come: away, if the publisher says nothing else. Set and
    /// cleared as IDLE.
    pub const UNATTENDED: StampFlags = StampFlags(1 << 7);

    /// How far to the left of its place a flag is the sign of the cell.
    pub(crate) const fn to_sign(self) -> i32 {
        assert!(self.0.is_power_of_two(), "one flag");
        63 - self.0.trailing_zeros() as i32
    }
}

impl PublishedFlags {
    /// The publisher is here in some way. Set and cleared by who publishes: the slot's owner, in a
    /// follower who adopts.
    pub const ONLINE: PublishedFlags = PublishedFlags(1);
    /// The told status of one who is here: online, away, busy, as numbers from 0; 3 is not used.
    /// Set with ONLINE.
    pub const STATUS: PublishedFlags = PublishedFlags(3 << 1);
    const AWAY: PublishedFlags = PublishedFlags(1 << 1);
    const BUSY: PublishedFlags = PublishedFlags(2 << 1);
    /// Of a follower, never in a file: the state is what its source says, as far as this node can
    /// know. Set and cleared by who adopts.
    pub const CONFIRMED: PublishedFlags = PublishedFlags(1 << 3);
    /// Of a follower, never in a file: something has been told, if only that the publisher was
    /// never seen. Set by who adopts.
    pub const KNOWN: PublishedFlags = PublishedFlags(1 << 4);
    /// Reserved: nobody sets it.
    pub const SPARE_5: PublishedFlags = PublishedFlags(1 << 5);
    /// Reserved, as SPARE_5.
    pub const SPARE_6: PublishedFlags = PublishedFlags(1 << 6);
    /// Reserved, as SPARE_5.
    pub const SPARE_7: PublishedFlags = PublishedFlags(1 << 7);
}

impl Stamp {
    /// The latest time that fits.
    pub const LATEST: Unix = Unix::from_ms(u64::MAX >> (BEHIND_BITS + FLAG_BITS));

    /// Last heard of at `received`, at most [`Stamp::LATEST`]; the latest of what was heard was
    /// sent at `sent`, not later.
    #[inline]
    pub fn new(received: Unix, sent: Unix, flags: StampFlags) -> Stamp {
        debug_assert!(received <= Stamp::LATEST && sent <= received);
        let behind = (received.ms() >> STEP_BITS) - (sent.ms() >> STEP_BITS);
        let times = received.ms() << BEHIND_BITS | behind.min(BEHIND_STEPS_MAX);
        Stamp(times << FLAG_BITS | u64::from(flags.0))
    }

    /// The same after something sent at `sent` has come at `received`, which is later than all that
    /// had come before; nothing that was sent is dated later than it was received.
    #[inline]
    pub fn advanced(self, received: Unix, sent: Unix) -> Stamp {
        debug_assert!(received <= Stamp::LATEST && self.ms() <= received.ms() && sent <= received);
        let step = received.ms() >> STEP_BITS;
        // Of the latest that had been sent, and of this: the beat path has no time for `sent()`.
        let known = step - (self.ms() >> STEP_BITS) + (self.0 >> FLAG_BITS & BEHIND_STEPS_MAX);
        let behind = known.min(step - (sent.ms() >> STEP_BITS));
        let times = received.ms() << BEHIND_BITS | behind.min(BEHIND_STEPS_MAX);
        Stamp(times << FLAG_BITS | self.0 & u64::from(u8::MAX))
    }

    /// The latest time received, in ms; 0: never.
    #[inline]
    pub const fn ms(self) -> u64 {
        self.0 >> (BEHIND_BITS + FLAG_BITS)
    }

    /// The latest time received unless there is none.
    #[inline]
    pub fn at(self) -> Option<Unix> {
        (self.ms() != 0).then(|| Unix::from_ms(self.ms()))
    }

    /// When the latest of what was heard had been sent, cut off to a step.
    #[inline]
    pub const fn sent(self) -> Unix {
        let behind = self.0 >> FLAG_BITS & BEHIND_STEPS_MAX;
        Unix::from_ms((self.ms() >> STEP_BITS).saturating_sub(behind) << STEP_BITS)
    }

    /// How the step of `sent` compares with that in which the latest of what was heard was sent.
    #[inline]
    pub fn order_of(self, sent: Unix) -> cmp::Ordering {
        (sent.ms() >> STEP_BITS).cmp(&(self.sent().ms() >> STEP_BITS))
    }

    #[inline]
    pub const fn flags(self) -> StampFlags {
        StampFlags(self.0 as u8)
    }

    /// Whether any of these flags is set.
    #[inline]
    pub const fn has(self, flags: StampFlags) -> bool {
        self.0 & flags.0 as u64 != 0
    }

    /// The same with these flags set.
    #[inline]
    pub const fn with(self, flags: StampFlags) -> Stamp {
        Stamp(self.0 | flags.0 as u64)
    }

    /// The same with these flags cleared.
    #[inline]
    pub const fn without(self, flags: StampFlags) -> Stamp {
        Stamp(self.0 & !(flags.0 as u64))
    }

    /// What the publisher is while it is here: what it says, and away if it says nothing else and
    /// nobody is at any of its devices.
    #[inline]
    pub const fn shown_status(self) -> Status {
        match self.status() {
            Status::Online if self.has(StampFlags::UNATTENDED) => Status::Away,
            said => said,
        }
    }

    /// What the publisher says that it is while it is here.
    #[inline]
    pub const fn status(self) -> Status {
        match StampFlags(self.0 as u8 & StampFlags::STATUS.0) {
            StampFlags::AWAY => Status::Away,
            StampFlags::BUSY => Status::Busy,
            _ => Status::Online,
        }
    }

    /// The same of a publisher who says that it is this, which is a way of being here.
    pub const fn with_status(self, status: Status) -> Stamp {
        let stamp = self.without(StampFlags::STATUS);
        match status {
            Status::Away => stamp.with(StampFlags::AWAY),
            Status::Busy => stamp.with(StampFlags::BUSY),
            Status::Online | Status::Offline | Status::Unknown => stamp,
        }
    }

    /// Whether the publisher has truly said goodbye, whatever others are told.
    #[inline]
    pub const fn has_parted(self) -> bool {
        self.has(StampFlags::LEFT)
            && (!self.has(StampFlags::INVISIBLE) || self.has(StampFlags::EXPIRED))
    }

    /// The same of a publisher who has said goodbye.
    pub const fn parted(self) -> Stamp {
        match self.has(StampFlags::INVISIBLE) {
            true => self.with(StampFlags::LEFT.and(StampFlags::EXPIRED)),
            false => self.with(StampFlags::LEFT),
        }
    }

    /// The same of a publisher whom others are told as gone from now on.
    pub const fn hidden(self) -> Stamp {
        let hidden = match self.has_parted() {
            true => self.with(StampFlags::EXPIRED),
            false => self.with(StampFlags::LEFT),
        };
        hidden.with(StampFlags::INVISIBLE)
    }

    /// The same of a publisher whom others are told as it is.
    pub const fn shown(self) -> Stamp {
        match (self.has(StampFlags::INVISIBLE), self.has_parted()) {
            (false, _) => self,
            (true, true) => self.without(StampFlags::INVISIBLE),
            (true, false) => self.without(StampFlags::LEFT.and(StampFlags::INVISIBLE)),
        }
    }

    /// When the publisher was last active, as others are told. Of one who is invisible that is when
    /// they went, so that their beats show in nothing; and so it is of a goodbye, unless it was put
    /// off, or was published long after: by a start, say.
    #[inline]
    pub fn last_active(self, published: Published) -> Option<Unix> {
        let heard = self.at()?;
        if published.is_online() || planted::is(Planted::BeatsShow) {
            return Some(heard);
        }
        if self.has(StampFlags::INVISIBLE) {
            return published.since();
        }
        let at_once = self.has(StampFlags::LEFT) && !self.has(StampFlags::LEAVING);
        let since = published
            .since()
            .filter(|since| at_once && *since >= heard && since.ms_since(heard) <= GOODBYE_MS_MAX);
        Some(since.unwrap_or(heard))
    }

    /// The time received that counts for others, in ms: of one who is invisible, when they went.
    #[inline]
    pub fn heard_ms(self, published: Published) -> u64 {
        match self.has(StampFlags::INVISIBLE) && !published.is_online() {
            true => published.since_ms(),
            false => self.ms(),
        }
    }

    /// As the sweep compares stamps: a later one is greater, whatever the flags; a time beyond half
    /// of what fits is damage, and negative.
    #[inline]
    pub const fn order(self) -> i64 {
        self.0 as i64
    }

    /// The least that a stamp of this time can be in that order.
    pub(crate) const fn least_order(at: Unix) -> i64 {
        if at.ms() > Stamp::LATEST.ms() / 2 {
            // A time that no good stamp has is beyond all of them.
            return i64::MAX;
        }
        (at.ms() << (BEHIND_BITS + FLAG_BITS)) as i64
    }

    /// The most that a stamp of this time can be in that order.
    pub(crate) const fn most_order(at: Unix) -> i64 {
        Stamp::least_order(at) | ((1 << (BEHIND_BITS + FLAG_BITS)) - 1)
    }
}

impl Published {
    /// Nothing was ever published.
    pub const NEVER: Published = Published(0);

    /// `status` since `since`.
    #[inline]
    pub const fn new(since: Unix, status: Status) -> Published {
        let flags = match status {
            Status::Online => PublishedFlags::ONLINE,
            Status::Away => PublishedFlags::ONLINE.and(PublishedFlags::AWAY),
            Status::Busy => PublishedFlags::ONLINE.and(PublishedFlags::BUSY),
            Status::Offline | Status::Unknown => PublishedFlags(0),
        };
        Published(since.ms() << FLAG_BITS | flags.0 as u64)
    }

    /// The time of the last transition in ms; 0: never.
    #[inline]
    pub const fn since_ms(self) -> u64 {
        self.0 >> FLAG_BITS
    }

    /// The time of the last transition unless there was none.
    #[inline]
    pub fn since(self) -> Option<Unix> {
        (self.since_ms() != 0).then(|| Unix::from_ms(self.since_ms()))
    }

    /// The status; offline if nothing was ever published.
    #[inline]
    pub const fn status(self) -> Status {
        if !self.is_online() {
            return Status::Offline;
        }
        match PublishedFlags(self.0 as u8 & PublishedFlags::STATUS.0) {
            PublishedFlags::AWAY => Status::Away,
            PublishedFlags::BUSY => Status::Busy,
            _ => Status::Online,
        }
    }

    /// Whether the publisher is here in some way.
    #[inline]
    pub const fn is_online(self) -> bool {
        self.has(PublishedFlags::ONLINE)
    }

    /// Whether any of these flags is set.
    #[inline]
    pub const fn has(self, flags: PublishedFlags) -> bool {
        self.0 & flags.0 as u64 != 0
    }

    /// The same with these flags set.
    #[inline]
    pub const fn with(self, flags: PublishedFlags) -> Published {
        Published(self.0 | flags.0 as u64)
    }

    /// The same with these flags cleared.
    #[inline]
    pub const fn without(self, flags: PublishedFlags) -> Published {
        Published(self.0 & !(flags.0 as u64))
    }
}

impl StampFlags {
    /// These and those.
    #[inline]
    pub const fn and(self, other: StampFlags) -> StampFlags {
        StampFlags(self.0 | other.0)
    }
}

impl PublishedFlags {
    /// These and those.
    #[inline]
    pub const fn and(self, other: PublishedFlags) -> PublishedFlags {
        PublishedFlags(self.0 | other.0)
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sent_ms, flags) = (self.sent().ms(), self.flags().0);
        write!(f, "Stamp({} ms, sent {sent_ms}, {flags:08b})", self.ms())
    }
}

impl fmt::Debug for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Published({} ms, {:08b})", self.since_ms(), self.0 as u8)
    }
}

/// A cell of stamps.map.
pub type StampCell = Cell<Stamp>;
/// A cell of published.map.
pub type PublishedCell = Cell<Published>;

impl CellValue for Stamp {
    #[inline]
    fn from_bits(bits: u64) -> Stamp {
        Stamp(bits)
    }

    #[inline]
    fn bits(self) -> u64 {
        self.0
    }
}

impl CellValue for Published {
    #[inline]
    fn from_bits(bits: u64) -> Published {
        Published(bits)
    }

    #[inline]
    fn bits(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_as_it_was_published() {
        for status in [Status::Online, Status::Away, Status::Busy, Status::Offline] {
            let cell = Published::new(Unix::from_ms(7), status);
            assert_eq!((cell.status(), cell.since_ms()), (status, 7));
            assert_eq!(cell.is_online(), status.is_online());
        }
        assert_eq!(Published::NEVER.since(), None);
    }

    fn stamp(received_ms: u64, sent_ms: u64) -> Stamp {
        let flags = StampFlags::default();
        Stamp::new(Unix::from_ms(received_ms), Unix::from_ms(sent_ms), flags)
    }

    #[test]
    fn flags_do_not_touch_times() {
        let at = Unix::from_ms(5);
        let gone = stamp(5, 5).with(StampFlags::LEFT).with(StampFlags::EXPIRED);
        assert!(gone.has(StampFlags::LEFT) && gone.has(StampFlags::EXPIRED));
        let came_back = gone.without(StampFlags::LEFT.and(StampFlags::EXPIRED));
        assert_eq!(came_back, stamp(5, 5));
        assert!(came_back.order() < Stamp::least_order(Unix::from_ms(6)));
        assert!(came_back.order() >= Stamp::least_order(at));
        assert!(gone.order() <= Stamp::most_order(at));
        assert_eq!(Stamp::least_order(Unix::from_ms(1 << 43)), i64::MAX);
    }

    /// The bytes of docs/FORMATS.md.
    #[test]
    fn the_layout_is_as_documented() {
        let received = 1_764_009_600_123;
        let cell = stamp(received, received - 1_000).with(StampFlags::LEFT);
        assert_eq!(cell.bits(), received << 20 | 62 << 8 | 1);
        let busy = Published::new(Unix::from_ms(received), Status::Busy);
        assert_eq!(busy.bits(), received << 8 | 0b101);
        let flags = [
            StampFlags::LEFT,
            StampFlags::EXPIRED,
            StampFlags::STATUS,
            StampFlags::INVISIBLE,
            StampFlags::LEAVING,
            StampFlags::IDLE,
            StampFlags::UNATTENDED,
        ];
        assert_eq!(flags.map(|flags| flags.0), [1, 2, 12, 16, 32, 64, 128]);
        let flags = [
            PublishedFlags::ONLINE,
            PublishedFlags::STATUS,
            PublishedFlags::CONFIRMED,
            PublishedFlags::KNOWN,
            PublishedFlags::SPARE_5,
            PublishedFlags::SPARE_6,
            PublishedFlags::SPARE_7,
        ];
        assert_eq!(flags.map(|flags| flags.0), [1, 6, 8, 16, 32, 64, 128]);
    }

    #[test]
    fn a_sending_time_is_exact_to_a_step() {
        assert_eq!(BEHIND_MS_MAX, 65_520);
        for sent_ms in [0, 15, 16, 17, 99_999, 100_000] {
            let sent = stamp(100_000, sent_ms).sent().ms();
            let oldest = 100_000 - BEHIND_MS_MAX;
            assert_eq!(sent, (sent_ms / 16 * 16).max(oldest), "sent at {sent_ms}");
        }
        // Damage, which says that it was sent before the Unix clock began.
        assert_eq!(Stamp(5 << 20 | 0xfff00).sent().ms(), 0);
        let sent = stamp(100_000, 99_967);
        let order = [99_951, 99_952, 99_967, 99_968].map(|ms| sent.order_of(Unix::from_ms(ms)));
        use cmp::Ordering::{Equal, Greater, Less};
        assert_eq!(order, [Less, Equal, Equal, Greater]);
    }

    #[test]
    fn advancing_keeps_the_latest_of_each_time() {
        let at = Unix::from_ms;
        for known_ms in [0, 40_000, 99_999, 100_000] {
            for sent_ms in [0, 39_999, 99_936, 100_017, 100_020] {
                let before = stamp(100_000, known_ms).with(StampFlags::INVISIBLE);
                let sent = before.sent().max(at(sent_ms));
                let after = Stamp::new(at(100_020), sent, StampFlags::INVISIBLE);
                let advanced = before.advanced(at(100_020), at(sent_ms));
                assert_eq!(advanced, after, "{known_ms} and {sent_ms}");
            }
        }
        assert_eq!(stamp(0, 0).advanced(at(7), at(7)), stamp(7, 7));
    }

    #[test]
    fn a_sending_time_does_not_move_with_the_time_received() {
        let mut cell = stamp(100_000, 99_937);
        for received in 100_001..100_100 {
            cell = stamp(received, cell.sent().ms());
            assert_eq!(cell.sent().ms(), 99_936);
        }
    }
}
