//! A presence database whose states are decided elsewhere: what its sources have told of their
//! publishers.
//!
//! Owns the rule by which a told state becomes the known one: `since` decides, so that a late,
//! repeated or reordered telling changes nothing. Owns which of the known ones are sure, and
//! answers what the rest of a node asks: is this slot sure, up to when is everything known, what
//! must be asked for. Lives in memory (three memfds) and dies with the process. Nobody sweeps it: a
//! status changes only because its source says so. Knows no HTTP; the numbers are `feeds.rs`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

use parking_lot::Mutex;
use rustix::fs::MemfdFlags;

use super::doubts::{Doubt, Doubts};
use super::feeds::{Feeds, Taken, UNTOLD_MS_MAX};
use super::holders::Holders;
use super::idle::Idle;
use super::interner::Interner;
use super::mass_silence::MassSilence;
use super::online::Online;
use super::resume::Resume;
use super::vigil::Vigil;
use super::{Presence, Transition, interner};
use crate::planted::{self, Planted};
use crate::slot::{CHUNK_SLOTS, SLOTS_MAX, Slot};
use crate::status::Status;
use crate::store::cells::{Published, PublishedFlags, Stamp, StampFlags};
use crate::store::header::{Header, Kind};
use crate::store::headers::Headers;
use crate::store::log::{self, Log};
use crate::store::map::{CellFile, FIRST_CELL, file_bytes};
use crate::store::record::FIRST_RECORD;
use crate::store::region::{AnonymousArray, MappedFile};
use crate::time::{Mono, Now, Unix};
use crate::wire::User;
use crate::wire::feed::Place;
use crate::wire::record::Told;

/// What a follower has beside a store.
pub(super) struct Follower {
    /// Held by whoever adopts a state.
    adopting: Mutex<()>,
    /// When it was made. Steps of the wall clock, such as of a node that starts before it knows the
    /// time, must not change what is older than what.
    made_at: Mono,
    /// When news of a slot was last heard, in s since `made_at`, plus one; 0: never.
    heard: AnonymousArray<AtomicU32>,
    /// How far each source is followed.
    feeds: Feeds,
    /// Who is told offline and has a stream here.
    doubts: Doubts,
    offline_after_ms: u64,
}

impl Follower {
    /// News of a slot is heard now.
    fn hear(&self, slot: Slot, now: Mono) {
        let heard_s = now.ms_since(self.made_at) / 1_000 + 1;
        self.heard[slot.index() as usize].store(
            u32::try_from(heard_s).unwrap_or(u32::MAX),
            Ordering::Release,
        );
    }
}

/// How to make a follower.
#[derive(Clone, Copy, Debug)]
pub struct FollowerOptions {
    /// How many nodes decide about its publishers.
    pub sources: usize,
    /// Most users; the address space reserved, not memory. At most [`SLOTS_MAX`].
    pub users_max: u32,
    /// Shards that will call `note_turn`.
    pub shards: u16,
    /// Silence after which a publisher is offline, in ms.
    pub offline_after_ms: u64,
}

/// How a state was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// By a message outside of any feed, or one that came after a later one: it may have been on
    /// its way for long.
    Told,
    /// By a message of its source's feed, in step: the source says so now, and what it says later
    /// will be told or found missing.
    InStep,
    /// In answer to a question, as of this moment of the source's clock: contradicts what was
    /// decided before it.
    Answered(Unix),
}

/// How far a source is believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Belief {
    Whole,
    /// A stream of this node vouches for the publisher, who can not have gone.
    UnlessGone,
    /// It was not when it was told. Something may have been missed since: it has to be asked for.
    Late,
}

impl Presence {
    /// An empty follower.
    ///
    /// Errors: no memory, no random numbers.
    pub fn follower(options: FollowerOptions, now: Now) -> io::Result<Presence> {
        let users_max = options.users_max.clamp(1, SLOTS_MAX);
        let identity = Headers::of_new(now.unix, [0; 16])?;
        let log_file = memory(
            Kind::Users,
            identity.header(Kind::Users, now.unix),
            log::reserved_bytes(users_max, 0),
        )?;
        let (rebuilt, scan) =
            interner::rebuild(&[0; FIRST_RECORD as usize + 1], FIRST_RECORD, users_max)?;
        debug_assert_eq!((scan.users, scan.end), (0, FIRST_RECORD), "an empty log");
        let interner = Arc::new(rebuilt.finish(Log::new(log_file, FIRST_RECORD), users_max));
        let follower = Follower {
            adopting: Mutex::default(),
            made_at: now.mono,
            heard: AnonymousArray::new(users_max as usize)?,
            feeds: Feeds::new(options.sources),
            doubts: Doubts::default(),
            offline_after_ms: options.offline_after_ms,
        };
        Presence::in_memory(interner, identity, Some(follower), options, now)
    }

    /// A follower, and beside it the database of those who are heard here, with the same slots: a
    /// node of a fleet hears its own users, and tells of them what the fleet says. The first is
    /// what is told, the second what is heard. Each has its cells and its sweeps for itself.
    ///
    /// Errors: no memory, no random numbers.
    pub fn follower_and_heard(
        options: FollowerOptions,
        now: Now,
    ) -> io::Result<(Arc<Presence>, Arc<Presence>)> {
        let told = Presence::follower(options, now)?;
        let identity = Headers::of_new(now.unix, [0; 16])?;
        let interner = Arc::clone(&told.interner);
        let heard = Arc::new(Presence::in_memory(interner, identity, None, options, now)?);
        let told = Arc::new(told);
        for (one, other) in [(&told, &heard), (&heard, &told)] {
            let set = one.twin.set(Arc::downgrade(other));
            debug_assert!(set.is_ok(), "a twin is given once");
        }
        Ok((told, heard))
    }

    fn in_memory(
        interner: Arc<Interner>,
        identity: Headers,
        follower: Option<Follower>,
        options: FollowerOptions,
        now: Now,
    ) -> io::Result<Presence> {
        let users_max = options.users_max.clamp(1, SLOTS_MAX);
        let reserved = file_bytes(users_max.next_multiple_of(CHUNK_SLOTS));
        let map = |kind| memory(kind, identity.header(kind, now.unix), reserved);
        let presence = Presence {
            interner,
            stamps: CellFile::new(map(Kind::Stamps)?),
            published: CellFile::new(map(Kind::Published)?),
            online: Online::new(users_max)?,
            holders: Holders::new(users_max)?,
            idle: Idle::new(users_max)?,
            forgetting: Default::default(),
            vigil: Vigil::new(options.shards, 0),
            mass_silence: MassSilence::new(options.shards),
            resume: Resume::new(identity.created_at(), [None; 2], now.unix, now),
            identity,
            written_up_to_ms: AtomicU64::new(now.mono.ms()),
            growth_failing: AtomicBool::new(false),
            pace: Default::default(),
            new_per_second_max: Default::default(),
            refused_new_ms: Default::default(),
            follower,
            twin: Default::default(),
        };
        presence.stamps.reserve(1)?;
        presence.published.reserve(1)?;
        Ok(presence)
    }

    /// Whether the states here were decided elsewhere.
    pub fn is_follower(&self) -> bool {
        self.follower.is_some()
    }

    /// Whether a watcher who was told everything up to `at` may not have been told the publisher's
    /// last change. In a follower what counts is how long ago it was heard of here, however old the
    /// change was.
    pub fn changed_since(&self, slot: Slot, at: Unix, now: Now) -> bool {
        let Some(follower) = &self.follower else {
            let published = self.published.cell(slot).load(Ordering::Acquire);
            return published.since_ms() > at.ms();
        };
        let heard_s = u64::from(follower.heard[slot.index() as usize].load(Ordering::Acquire));
        // Its second's end: a second too many is told twice.
        let heard_ago_ms = now.mono.ms_since(follower.made_at.plus_ms(heard_s * 1_000));
        let heard_since = heard_ago_ms == 0 || now.unix.minus_ms(heard_ago_ms) > at;
        // Who is in doubt is told so.
        heard_s == 0 || heard_since || follower.doubts.has(slot)
    }

    /// Whether there may be changes that this node has not been told: no watcher can be told
    /// everything up to now.
    pub fn is_behind(&self, now: Mono) -> bool {
        let Some(follower) = &self.follower else {
            return false;
        };
        let known_up_to = follower.feeds.known_up_to();
        known_up_to.is_none_or(|at| now.ms_since(at) > UNTOLD_MS_MAX)
    }

    fn feeds(&self) -> &Feeds {
        let follower = self.follower.as_ref();
        &follower.expect("only a follower has sources").feeds
    }

    /// A source has answered a question, in this life, between `asked_at` and `now`; its clock
    /// showed `clock`. This and what is about sources below panics if this is no follower.
    pub fn source_answered(
        &self,
        source: usize,
        birth: u64,
        clock: Unix,
        asked_at: Mono,
        now: Mono,
    ) {
        self.feeds().answered(source, birth, clock, asked_at, now);
    }

    /// A source has not answered a question.
    pub fn source_failed(&self, source: usize) {
        self.feeds().failed(source);
    }

    /// A message has come, whose states are to be adopted as [`Taken`] says. None: it is from a
    /// life of a source that has not answered yet.
    pub fn take_message(&self, place: &Place, now: Mono) -> Option<Taken> {
        self.feeds().message(place, now)
    }

    /// Whether something that a source told was missed, or may have been, and nobody has begun to
    /// ask.
    pub fn is_out_of_step(&self, source: usize) -> bool {
        self.feeds().is_out_of_step(source)
    }

    /// All that is known of a source's publishers (`these`) stands and is unsure from now on; it is
    /// going to be asked for. Takes its time: some ten ns a user.
    pub fn begin_asking(&self, source: usize, these: impl Fn(User<'_>) -> bool) {
        // First: what is missed while it goes on has it done again.
        self.feeds().asking(source);
        self.unconfirm(these);
    }

    /// All that was to be asked of a source has been answered.
    pub fn asked_everything(&self, source: usize) {
        self.feeds().all_answered(source);
    }

    /// Whether nothing that a source told was missed, and all that is watched has been asked for.
    pub fn is_in_step(&self, source: usize) -> bool {
        self.feeds().is_in_step(source)
    }

    /// How long ago a source last said that everything was told, in ms. None: never.
    pub fn untold_ms(&self, source: usize, now: Mono) -> Option<u64> {
        Some(now.ms_since(self.feeds().told_up_to(source)?))
    }

    /// What a source's clock shows at least; before it has said so, what this node's does.
    pub fn clock_of(&self, source: usize, now: Now) -> Unix {
        self.feeds().clock_of(source, now)
    }

    /// Whether what is known of a publisher is what its source says: always, but in a follower that
    /// has missed something since it was told or answered, or does not believe it yet.
    pub fn is_sure(&self, slot: Slot) -> bool {
        let Some(follower) = &self.follower else {
            return true;
        };
        let published = self.published.cell(slot).load(Ordering::Acquire);
        published.has(PublishedFlags::CONFIRMED) && !follower.doubts.has(slot)
    }

    fn unconfirm(&self, these: impl Fn(User<'_>) -> bool) {
        let Some(follower) = &self.follower else {
            return;
        };
        for slot in (0..self.users()).map(Slot::new) {
            if self.is_sure(slot) && these(self.user(slot)) {
                let _alone = follower.adopting.lock();
                let cell = self.published.cell(slot);
                let unconfirmed = cell.load(Ordering::Relaxed);
                cell.store(
                    unconfirmed.without(PublishedFlags::CONFIRMED),
                    Ordering::Release,
                );
            }
        }
    }

    /// Takes over what a follower was told of a publisher. Some: that is news, and its watchers
    /// must be told.
    ///
    /// A state with a later `since` replaces the known one; so does an answer that contradicts what
    /// was decided before it was given (the source has lost its files, or another one has taken
    /// over), with a `since` one later than the known one. An answer makes the slot sure, and so
    /// does a message in step that tells what is known now. Panics if this is no follower.
    ///
    /// A fleet knows since when a state is so: an earlier `since` than was guessed here replaces
    /// it, and that is no news.
    ///
    /// Whom silence takes offline while a stream of this node vouches for them does not go, for
    /// twice `offline_after_ms` at most: the known state stands and is stale
    /// ([`Presence::is_stale`]). A goodbye was asked about, or they have become invisible. A fleet
    /// is believed at once.
    pub fn adopt(&self, slot: Slot, told: &Told, source: Source, now: Now) -> Option<Transition> {
        let doubts_goodbyes = planted::is(Planted::InvisibleDoubted);
        // What a fleet says it says knowing of that stream: its claim is where all are judged.
        let vouches = self.is_held(slot) && !self.is_of_fleet();
        let belief = match vouches && (!told.is_goodbye() || doubts_goodbyes) {
            true => Belief::UnlessGone,
            false => Belief::Whole,
        };
        let news = self.adopt_as(slot, told, source, now, belief);
        // It may have been let go before it was in doubt. Whoever lets go looks for doubts.
        fence(Ordering::SeqCst);
        if belief == Belief::UnlessGone && !self.is_held(slot) {
            self.released(slot);
        }
        news
    }

    /// What a source said of those who had a stream here is believed now: the stream has ended, or
    /// the time is over. `max` are looked at. Their watchers must be told. Returns also whether
    /// there may be others.
    pub fn adopt_doubted(&self, max: usize, now: Now) -> (Vec<Transition>, bool) {
        let Some(follower) = &self.follower else {
            return (Vec::new(), false);
        };
        let taken = follower
            .doubts
            .take(now.mono, max, |slot| self.is_held(slot));
        let adopt = |(slot, doubt): &(Slot, Doubt)| {
            self.adopt_as(*slot, &doubt.told, doubt.source, now, Belief::Late)
        };
        (taken.doubts.iter().filter_map(adopt).collect(), taken.more)
    }

    /// No stream of this node vouches for a publisher any more: what its source says is believed.
    pub(super) fn released(&self, slot: Slot) {
        if let Some(follower) = &self.follower {
            follower.doubts.let_go(slot);
        }
    }

    /// Whether a publisher's source says that they are offline, and that is not believed yet.
    pub fn is_stale(&self, slot: Slot) -> bool {
        let follower = self.follower.as_ref();
        follower.is_some_and(|follower| follower.doubts.has(slot))
    }

    fn adopt_as(
        &self,
        slot: Slot,
        told: &Told,
        source: Source,
        now: Now,
        belief: Belief,
    ) -> Option<Transition> {
        let follower = self
            .follower
            .as_ref()
            .expect("only a follower is told what others decided");
        let _alone = follower.adopting.lock();
        let cell = self.published.cell(slot);
        let before = cell.load(Ordering::Relaxed);
        let (known_ms, was) = (before.since_ms(), before.status());
        let told_ms = told.since.map_or(0, Unix::ms);
        let contradicts = match source {
            Source::Answered(at) => told.status != was && known_ms < at.ms(),
            Source::InStep | Source::Told => false,
        };
        let later =
            told_ms > known_ms || planted::is(Planted::ToldUnordered) && told_ms != known_ms;
        // Who has a state and no last activity has been forgotten: their streams are to end.
        let is_erased = told.since.is_some() && says_erased(told);
        let is_gone = !told.status.is_online() && !is_erased;
        let is_erased_here = !was.is_online()
            && self
                .stamps
                .cell(slot)
                .load(Ordering::Relaxed)
                .at()
                .is_none();
        let corrects = self.is_of_fleet()
            && !is_erased_here
            && source != Source::Told
            && told.status == was
            && (1..known_ms).contains(&told_ms);
        let goes = (later || contradicts) && was.is_online() && is_gone;
        if goes && belief == Belief::UnlessGone {
            let first = !follower.doubts.has(slot);
            let until = now.mono.plus_ms(2 * follower.offline_after_ms);
            follower.doubts.insert(slot, told.clone(), source, until);
            cell.store(before.without(PublishedFlags::CONFIRMED), Ordering::Release);
            let (status, is_first) = (was, false);
            return first.then_some(Transition {
                slot,
                status,
                first: is_first,
            });
        }
        if later || contradicts {
            follower.doubts.remove(slot);
        }
        let since_ms = match () {
            () if later || corrects => told_ms,
            () if contradicts => known_ms + 1,
            () => known_ms,
        };
        // Without a time it can not be told from what has been said since, but by an answer's.
        let answers = matches!(source, Source::Answered(at) if known_ms < at.ms());
        if answers && told.since.is_none() && known_ms > 0 {
            follower.doubts.remove(slot);
            return self.adopt_erasure(follower, slot, before, now);
        }
        let news = later || contradicts || before == Published::NEVER;
        let status = if later || contradicts {
            told.status
        } else {
            was
        };
        let confirms = match source {
            // What is newer here was told in step, or by hand.
            Source::Answered(_) => true,
            // An erasure may be told behind who is back by that id, and this node may have missed
            // them.
            Source::InStep if is_erased && !before.has(PublishedFlags::CONFIRMED) => false,
            Source::InStep => {
                (told_ms >= known_ms || corrects) && !planted::is(Planted::NewcomerUnsure)
            }
            Source::Told => false,
        };
        if told_ms >= known_ms || contradicts || corrects {
            self.stamp_told(slot, told, later || corrects, status);
        }
        let since = Unix::from_ms(since_ms);
        let mut after = Published::new(since, status).with(PublishedFlags::KNOWN);
        if belief != Belief::Late && (confirms || before.has(PublishedFlags::CONFIRMED)) {
            after = after.with(PublishedFlags::CONFIRMED);
        }
        if after == before {
            return None;
        }
        cell.store(after, Ordering::Release);
        if !news {
            return None;
        }
        self.online.set(slot, status.is_online());
        follower.hear(slot, now.mono);
        Some(Transition {
            slot,
            status,
            first: before == Published::NEVER,
        })
    }

    /// What was never seen by who decides about it, and has been seen here, was erased there (or
    /// its files are lost). Its `since` goes on here, so that nothing older that is still under way
    /// brings it back.
    fn adopt_erasure(
        &self,
        follower: &Follower,
        slot: Slot,
        before: Published,
        now: Now,
    ) -> Option<Transition> {
        let cell = self.published.cell(slot);
        let stamp = self.stamps.cell(slot);
        let was = stamp.load(Ordering::Relaxed);
        let was_active = was.at().is_some();
        // Who hides, and what it says, a fleet tells beside.
        let flags = match self.is_of_fleet() {
            true => was.flags().and(StampFlags::EXPIRED),
            false => StampFlags::EXPIRED,
        };
        let never = Unix::from_ms(0);
        stamp.store(Stamp::new(never, never, flags), Ordering::Release);
        if before.status() == Status::Offline && !was_active {
            // It is known, and its source says so once more.
            cell.store(before.with(PublishedFlags::CONFIRMED), Ordering::Release);
            return None;
        }
        let since = Unix::from_ms(before.since_ms() + 1);
        let flags = PublishedFlags::KNOWN.and(PublishedFlags::CONFIRMED);
        let erased = Published::new(since, Status::Offline).with(flags);
        cell.store(erased, Ordering::Release);
        self.online.set(slot, false);
        follower.hear(slot, now.mono);
        Some(Transition {
            slot,
            status: Status::Offline,
            first: false,
        })
    }

    /// Whether a publisher was erased where it is decided about, the last that is known.
    pub fn is_erased(&self, slot: Slot) -> bool {
        let published = self.published.cell(slot).load(Ordering::Acquire);
        is_erased(published, self.stamps.cell(slot).load(Ordering::Acquire))
    }

    /// A later `since` decides about `last_active` too: the clock of a source that was ahead may
    /// have been set right in between. Else the later one counts.
    fn stamp_told(&self, slot: Slot, told: &Told, later: bool, status: Status) {
        let cell = self.stamps.cell(slot);
        let stamped = |known: Stamp| {
            let told_ms = match told.last_active.map(Unix::ms) {
                Some(told_ms) if later => told_ms,
                None if later && says_erased(told) => 0,
                told_ms => told_ms.max(Some(known.ms())).unwrap_or(0),
            };
            let last_active = Unix::from_ms(told_ms).min(Stamp::LATEST);
            // Not fresh: nobody sweeps a follower, but nobody who reads a stamp shall be misled
            // either. What was said here stays.
            let flags = match status.is_online() {
                true => known.without(StampFlags::EXPIRED).flags(),
                false => known.flags().and(StampFlags::EXPIRED),
            };
            Some(Stamp::new(last_active, last_active, flags))
        };
        // It always says something.
        let _ = cell.fetch_update(Ordering::Release, Ordering::Relaxed, stamped);
    }
}

/// Whether a follower's cells say that their publisher was erased. The time of it is kept, against
/// what is late; in a fleet it is told to nobody.
pub(super) fn is_erased(published: Published, stamp: Stamp) -> bool {
    !published.is_online() && published.since_ms() > 0 && stamp.at().is_none()
}

/// Whether a user was erased, or never seen: nobody else is offline without a last activity.
fn says_erased(told: &Told) -> bool {
    !told.status.is_online() && told.last_active.is_none()
}

/// A file of the store that has no place on a disk.
fn memory(kind: Kind, header: Header, reserved_bytes: u64) -> io::Result<MappedFile> {
    let name = kind.file_name();
    let file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?);
    let bytes = header.encode();
    file.write_all_at(&bytes, 0)?;
    if kind != Kind::Users {
        file.set_len(FIRST_CELL)?;
    }
    MappedFile::map(
        file,
        PathBuf::from(format!("memory/{name}")),
        reserved_bytes,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::State;
    use crate::time::Mono;
    use crate::wire::beat::{Flags, Outset};
    use crate::wire::record::Said;

    #[test]
    fn what_is_heard_and_what_is_told_have_the_same_slots() {
        let options = FollowerOptions {
            sources: 1,
            users_max: 3 * CHUNK_SLOTS,
            shards: 1,
            offline_after_ms: 25_000,
        };
        let (told, heard) = Presence::follower_and_heard(options, at(1_000)).unwrap();
        let user = |n: u32| crate::wire::UserBuf::from_text(format!("user-{n}")).unwrap();
        // Slots are made by either, over more than one chunk, and are each one's at once.
        for n in 0..2 * CHUNK_SLOTS {
            let (one, other) = if n % 2 == 0 {
                (&told, &heard)
            } else {
                (&heard, &told)
            };
            let slot = one.intern(user(n).user()).unwrap();
            assert_eq!((slot, other.users()), (Slot::new(n), n + 1));
            assert_eq!(other.lookup(user(n).user()), Some(slot));
            heard.record_beat(slot, Unix::from_ms(1_000), at(1_000));
        }
        // A beat is heard and told to nobody; what is told is no beat.
        let (last, offline) = (Slot::new(2 * CHUNK_SLOTS - 1), Status::Offline);
        assert_eq!(told.state(last, at(1_001)).status, Status::Unknown);
        assert_eq!(heard.state(last, at(1_001)).status, offline);
        let online = Told {
            user: user(last.index()),
            status: Status::Online,
            since: Some(Unix::from_ms(900)),
            last_active: Some(Unix::from_ms(900)),
            stale: false,
            heard: None,
        };
        told.adopt(last, &online, Source::InStep, at(1_001))
            .unwrap();
        assert_eq!(told.state(last, at(1_001)).status, Status::Online);
        assert_eq!(heard.state(last, at(1_001)).status, offline);
    }

    fn at(unix_ms: u64) -> Now {
        Now {
            mono: Mono::from_micros(unix_ms * 1_000),
            unix: Unix::from_ms(unix_ms),
        }
    }

    fn told(status: Status, since: u64, last_active: u64) -> Told {
        let time = |ms| (ms > 0).then(|| Unix::from_ms(ms));
        Told {
            user: User::parse(b"bob").unwrap().into(),
            status,
            since: time(since),
            last_active: time(last_active),
            stale: false,
            heard: None,
        }
    }

    fn follower() -> (Presence, Slot) {
        let options = FollowerOptions {
            sources: 2,
            users_max: 100_000,
            shards: 1,
            offline_after_ms: 25_000,
        };
        let presence = Presence::follower(options, at(1_000)).unwrap();
        let bob = presence.intern(User::parse(b"bob").unwrap()).unwrap();
        (presence, bob)
    }

    fn state(status: Status, since: u64, last_active: u64) -> State {
        let time = |ms| (ms > 0).then(|| Unix::from_ms(ms));
        State {
            status,
            since: time(since),
            last_active: time(last_active),
        }
    }

    fn news(slot: Slot, status: Status, first: bool) -> Option<Transition> {
        Some(Transition {
            slot,
            status,
            first,
        })
    }

    #[test]
    fn who_was_erased_is_offline_without_a_last_activity_and_nothing_late_brings_them_back() {
        for erased_by in [Source::InStep, Source::Answered(at(9_000).unix)] {
            let (presence, bob) = follower();
            let adopt = |told: &Told, source| presence.adopt(bob, told, source, at(9_000));
            let online = told(Status::Online, 5_000, 6_000);
            assert!(adopt(&online, Source::InStep).is_some());
            let nobody = told(Status::Offline, 0, 0);
            // What is late says nothing, nor what has no time at all and is no answer.
            assert_eq!(adopt(&nobody, Source::Told), None);
            assert_eq!(adopt(&nobody, Source::InStep), None);
            assert_eq!(adopt(&nobody, Source::Answered(at(4_000).unix)), None);
            let erased = match erased_by {
                Source::Answered(_) => nobody.clone(),
                _ => told(Status::Offline, 5_001, 0),
            };
            assert_eq!(adopt(&erased, erased_by), news(bob, Status::Offline, false));
            let gone = state(Status::Offline, 5_001, 0);
            assert_eq!(presence.state(bob, at(9_000)), gone);
            assert!(presence.changed_since(bob, at(8_999).unix, at(9_000)));
            assert_eq!(adopt(&erased, Source::InStep), None, "once more");
            assert_eq!(adopt(&nobody, Source::Answered(at(9_000).unix)), None);
            assert_eq!(adopt(&online, Source::Told), None, "a repetition");
            assert_eq!(presence.state(bob, at(9_000)), gone);
            assert_eq!(presence.online(), 0);
            let back = told(Status::Online, 10_000, 10_000);
            assert_eq!(
                adopt(&back, Source::InStep),
                news(bob, Status::Online, false)
            );
            for late in [Source::InStep, Source::Told] {
                assert_eq!(adopt(&erased, late), None, "told behind who is back");
                assert_eq!(adopt(&nobody, late), None);
            }
            assert_eq!(
                presence.state(bob, at(10_000)),
                state(Status::Online, 10_000, 10_000)
            );
            presence.check_invariants();
        }
    }

    #[test]
    fn since_decides() {
        let (presence, bob) = follower();
        let put = |status, since, last_active| {
            presence.adopt(
                bob,
                &told(status, since, last_active),
                Source::Told,
                at(9_000),
            )
        };
        let known = || presence.state(bob, at(9_000));
        assert_eq!(known(), state(Status::Unknown, 0, 0));
        assert_eq!(
            put(Status::Online, 5_000, 5_000),
            news(bob, Status::Online, true)
        );
        assert_eq!(put(Status::Online, 5_000, 5_000), None, "repeated");
        assert_eq!(
            put(Status::Offline, 8_000, 7_500),
            news(bob, Status::Offline, false)
        );
        assert_eq!(put(Status::Online, 5_000, 5_100), None, "late");
        assert_eq!(
            put(Status::Online, 8_000, 7_600),
            None,
            "another of the same time"
        );
        assert_eq!(known(), state(Status::Offline, 8_000, 7_600));
        assert_eq!(
            put(Status::Online, 8_001, 8_001),
            news(bob, Status::Online, false)
        );
        assert_eq!(presence.online(), 1);
        assert_eq!(
            put(Status::Busy, 8_002, 8_001),
            news(bob, Status::Busy, false)
        );
        assert_eq!(known(), state(Status::Busy, 8_002, 8_001));
        assert_eq!(presence.online(), 1, "busy is here");
        presence.check_invariants();
    }

    #[test]
    fn an_answer_contradicts_what_was_decided_before_it() {
        let (presence, bob) = follower();
        let answer = |status, since, at_ms| {
            let source = Source::Answered(Unix::from_ms(at_ms));
            presence.adopt(bob, &told(status, since, since), source, at(9_000))
        };
        presence.adopt(
            bob,
            &told(Status::Online, 5_000, 5_000),
            Source::Told,
            at(9_000),
        );
        assert_eq!(
            answer(Status::Offline, 4_000, 5_000),
            None,
            "computed before it came online"
        );
        assert_eq!(
            answer(Status::Online, 4_000, 6_000),
            None,
            "online since earlier: no change to tell"
        );
        assert_eq!(
            answer(Status::Offline, 0, 6_000),
            news(bob, Status::Offline, false),
            "never seen, by a node without its files; or erased there, so that no time of theirs \
             may be told any more"
        );
        assert_eq!(
            presence.state(bob, at(9_000)),
            state(Status::Offline, 5_001, 0)
        );
        assert_eq!(
            answer(Status::Online, 7_000, 8_000),
            news(bob, Status::Online, false)
        );
    }

    #[test]
    fn never_seen_is_known_too() {
        let (presence, bob) = follower();
        let source = Source::Answered(Unix::from_ms(2_000));
        assert_eq!(
            presence.adopt(bob, &told(Status::Offline, 0, 0), source, at(2_000)),
            news(bob, Status::Offline, true)
        );
        assert_eq!(presence.state(bob, at(2_000)), state(Status::Offline, 0, 0));
        assert!(presence.is_sure(bob));
        assert_eq!(
            presence.adopt(bob, &told(Status::Offline, 0, 0), source, at(2_000)),
            None
        );
        presence.unconfirm(|_| true);
        assert!(!presence.is_sure(bob));
        assert_eq!(
            presence.state(bob, at(2_000)),
            state(Status::Offline, 0, 0),
            "doubted and still known"
        );
        let put = presence.adopt(
            bob,
            &told(Status::Online, 3_000, 3_000),
            Source::Told,
            at(3_000),
        );
        assert_eq!(put, news(bob, Status::Online, false));
    }

    #[test]
    fn a_lost_node_leaves_what_is_known_to_be_confirmed() {
        let (presence, bob) = follower();
        let answer = |at_ms| {
            let source = Source::Answered(Unix::from_ms(at_ms));
            presence.adopt(
                bob,
                &told(Status::Online, 5_000, at_ms - 100),
                source,
                at(at_ms),
            )
        };
        presence.adopt(
            bob,
            &told(Status::Online, 5_000, 5_000),
            Source::Told,
            at(5_000),
        );
        assert!(!presence.is_sure(bob), "published some time ago");
        assert_eq!(answer(5_500), None);
        assert!(presence.is_sure(bob));
        presence.unconfirm(|user| user.as_str() == "carol");
        assert!(presence.is_sure(bob));
        presence.unconfirm(|user| user.as_str() == "bob");
        assert!(!presence.is_sure(bob));
        assert_eq!(
            presence.state(bob, at(6_000)),
            state(Status::Online, 5_000, 5_400)
        );
        assert_eq!(
            presence.adopt(
                bob,
                &told(Status::Offline, 4_000, 4_000),
                Source::Told,
                at(6_000)
            ),
            None
        );
        assert_eq!(
            presence.adopt(
                bob,
                &told(Status::Online, 5_000, 5_000),
                Source::Told,
                at(6_000)
            ),
            None
        );
        assert!(
            !presence.is_sure(bob),
            "neither an older state nor the same one says anything of now"
        );
        assert_eq!(answer(6_000), None);
        let news = presence.adopt(
            bob,
            &told(Status::Offline, 9_000, 8_000),
            Source::Told,
            at(9_000),
        );
        assert!(news.is_some() && presence.is_sure(bob));
    }

    #[test]
    fn a_later_since_takes_a_last_active_back_that_was_ahead() {
        let (presence, bob) = follower();
        let put = |status, since, last_active| {
            let told = told(status, since, last_active);
            presence.adopt(bob, &told, Source::InStep, at(9_000_000));
            let state = presence.state(bob, at(9_000_000));
            state.last_active.map(Unix::ms)
        };
        // An hour ahead.
        assert_eq!(put(Status::Online, 5_000_000, 5_000_000), Some(5_000_000));
        assert_eq!(put(Status::Online, 5_000_000, 4_000_000), Some(5_000_000));
        assert_eq!(put(Status::Offline, 5_000_001, 1_400_000), Some(1_400_000));
        assert_eq!(put(Status::Online, 4_000_000, 4_000_000), Some(1_400_000));
    }

    #[test]
    fn a_change_counts_from_when_it_was_heard_of() {
        let (presence, bob) = follower();
        // The clock is stepped by so much after what was heard.
        let stepped = |at_ms: u64, by_ms: i64| {
            let now = Now {
                mono: at(100_000).mono,
                unix: Unix::from_ms(100_000_u64.saturating_add_signed(by_ms)),
            };
            presence.changed_since(bob, Unix::from_ms(at_ms), now)
        };
        let changed = |at_ms| stepped(at_ms, 0);
        assert!(changed(50_000), "unknown");
        presence.adopt(
            bob,
            &told(Status::Online, 20_000, 20_000),
            Source::Told,
            at(60_500),
        );
        assert_eq!(
            [20_001, 60_499, 60_999, 61_000].map(changed),
            [true, true, true, false]
        );
        for by_ms in [1_800_000, -40_000] {
            let at_ms = |ms: u64| ms.saturating_add_signed(by_ms);
            assert!(stepped(at_ms(60_999), by_ms) && !stepped(at_ms(61_000), by_ms));
        }
        presence.adopt(
            bob,
            &told(Status::Online, 20_000, 21_000),
            Source::Told,
            at(90_000),
        );
        assert!(!changed(61_000), "nothing new");
    }

    #[test]
    fn whoever_has_a_stream_here_is_not_told_offline_for_a_while() {
        let (presence, bob) = follower();
        let put = |status, since, now_ms| {
            // Silence, and no goodbye.
            let told = told(status, since, since - 1);
            presence.adopt(bob, &told, Source::InStep, at(now_ms))
        };
        let known = |now_ms| {
            let state = presence.state(bob, at(now_ms));
            (
                state.status,
                state.since.map(Unix::ms),
                presence.is_stale(bob),
            )
        };
        put(Status::Online, 2_000, 2_000);
        presence.hold(bob);
        assert_eq!(
            put(Status::Offline, 30_000, 30_000),
            news(bob, Status::Online, false)
        );
        assert_eq!(known(30_000), (Status::Online, Some(2_000), true));
        assert!(!presence.is_sure(bob));
        assert_eq!(put(Status::Offline, 30_000, 31_000), None, "told once");
        // The next beat arrived.
        assert_eq!(
            put(Status::Online, 32_000, 32_000),
            news(bob, Status::Online, false)
        );
        assert_eq!(known(32_000), (Status::Online, Some(32_000), false));
        // None does.
        put(Status::Offline, 60_000, 60_000);
        let believed = |now_ms| presence.adopt_doubted(9, at(now_ms)).0;
        assert_eq!(believed(109_999), []);
        let gone = [news(bob, Status::Offline, false).unwrap()];
        assert_eq!(believed(110_000), gone);
        assert_eq!(known(110_000), (Status::Offline, Some(60_000), false));
        // The stream ends.
        put(Status::Online, 111_000, 111_000);
        put(Status::Offline, 140_000, 140_000);
        assert_eq!(known(140_000), (Status::Online, Some(111_000), true));
        presence.release(bob);
        assert_eq!(believed(140_001), gone);
        assert_eq!(known(140_001), (Status::Offline, Some(140_000), false));
        presence.check_invariants();
    }

    /// A goodbye was asked about; who has become invisible goes as if it was one.
    #[test]
    fn a_goodbye_is_believed_whoever_has_a_stream_here() {
        let (presence, bob) = follower();
        let put = |status, since, last_active| {
            let told = told(status, since, last_active);
            presence.adopt(bob, &told, Source::InStep, at(since))
        };
        put(Status::Online, 2_000, 2_000);
        presence.hold(bob);
        assert_eq!(
            put(Status::Offline, 3_000, 3_000),
            news(bob, Status::Offline, false)
        );
        assert!(!presence.is_stale(bob) && presence.is_sure(bob));
        // Whoever was in doubt has gone.
        put(Status::Online, 4_000, 4_000);
        put(Status::Offline, 30_000, 4_000);
        assert!(presence.is_stale(bob));
        assert_eq!(
            put(Status::Offline, 31_000, 31_000),
            news(bob, Status::Offline, false)
        );
        assert!(!presence.is_stale(bob));
    }

    #[test]
    fn what_was_said_here_is_kept_and_never_told() {
        let (presence, bob) = follower();
        presence.note_said(
            bob,
            Said {
                status: Some(Status::Busy),
                invisible: Some(true),
            },
        );
        let outset = Outset {
            status: Status::Busy,
            invisible: true,
        };
        for (status, since, last_active) in [
            (Status::Online, 2_000, 2_000),
            (Status::Offline, 30_000, 5_000),
            (Status::Away, 40_000, 40_000),
        ] {
            let told = told(status, since, last_active);
            presence.adopt(bob, &told, Source::InStep, at(since));
            assert_eq!(presence.beat_flags(bob), Flags::of(outset));
            let state = presence.state(bob, at(since));
            assert_eq!(state.status, status);
            assert_eq!(state.last_active.map(Unix::ms), Some(last_active));
        }
    }

    #[test]
    fn only_of_whom_is_in_doubt_nothing_is_sure() {
        let (presence, bob) = follower();
        let carol = presence.intern(User::parse(b"carol").unwrap()).unwrap();
        let adopt = |slot, status, since, source, now_ms| {
            presence.adopt(slot, &told(status, since, since - 1), source, at(now_ms))
        };
        for slot in [bob, carol] {
            adopt(slot, Status::Online, 2_000, Source::InStep, 2_000);
        }
        presence.hold(bob);
        adopt(bob, Status::Offline, 30_000, Source::InStep, 30_000);
        assert!(presence.is_stale(bob) && !presence.is_sure(bob) && presence.is_sure(carol));
        assert!(presence.changed_since(bob, Unix::from_ms(29_000), at(30_000)));
        // An answer that was given before is no word of now.
        let before = Source::Answered(Unix::from_ms(29_000));
        adopt(bob, Status::Online, 2_000, before, 30_100);
        assert!(presence.is_stale(bob) && !presence.is_sure(bob));
        // Believed in the end: it is asked for.
        presence.release(bob);
        assert_eq!(presence.adopt_doubted(9, at(30_200)).0.len(), 1);
        assert!(!presence.is_stale(bob) && !presence.is_sure(bob));
    }

    #[test]
    fn it_grows_like_any_store() {
        let (presence, _) = follower();
        for user in 0..70_000 {
            let id = format!("user-{user}");
            let slot = presence
                .intern(User::parse(id.as_bytes()).unwrap())
                .unwrap();
            presence.adopt(
                slot,
                &told(
                    if user % 2 == 0 {
                        Status::Online
                    } else {
                        Status::Offline
                    },
                    2_000,
                    2_000,
                ),
                Source::Told,
                at(2_000),
            );
        }
        assert_eq!((presence.users(), presence.online()), (70_001, 35_000));
        presence.check_invariants();
    }
}
