//! A presence database that others fill: what a real-time node has been told of publishers whose
//! stamps are elsewhere.
//!
//! Owns the rule by which a told state becomes the known one: `since` decides, so that a late,
//! repeated or reordered telling changes nothing. Lives in memory (three memfds) and dies with the
//! process. Nobody sweeps it: whoever is told writes, one at a time, and a publisher's status
//! changes only because its presence node says so.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::Mutex;
use rustix::fs::MemfdFlags;

use super::leaves::Leaves;
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
use crate::store::log::{self, FIRST_RECORD, Log};
use crate::store::map::{CellFile, FIRST_CELL, file_bytes};
use crate::store::region::{AnonymousArray, MappedFile};
use crate::time::{Mono, Now, Unix};
use crate::wire::User;
use crate::wire::record::Told;

/// What a mirror has beside a store.
pub(super) struct Mirrored {
    /// Held by whoever adopts a state.
    adopting: Mutex<()>,
    /// When news of a slot was last heard, in s since the mirror was made, plus one; 0: never.
    heard: AnonymousArray<AtomicU32>,
    /// A presence node is out of sight: there may be news that has not been told.
    behind: AtomicBool,
    /// The presence nodes, by their index.
    lives: Mutex<Vec<Life>>,
}

/// What is known of a presence node.
#[derive(Clone, Copy, Default)]
struct Life {
    /// Which life of it answered last; None: it never did.
    instance: Option<u64>,
    /// When it last said that everything was told.
    told_at: Option<Mono>,
    /// Its clock is at least so many ms ahead of [`Mono`], and when that was learnt.
    ahead_ms: Option<(i64, Mono)>,
}

/// An answer that says less of a node's clock than is known by no more than this, in ms, was on its
/// way for longer; one that says even less shows that the clock was set back. So long a request may
/// take.
const CLOCK_JITTER_MS: i64 = 2_000;
/// Two clocks drift apart by no more than a millisecond in so many ms.
const DRIFT_MS: u64 = 1_000;

impl Life {
    /// What is left of what was learnt.
    fn ahead_ms(&self, now: Mono) -> Option<i64> {
        let (ahead_ms, at) = self.ahead_ms?;
        Some(ahead_ms - (now.ms_since(at) / DRIFT_MS) as i64)
    }
}

/// How to make a mirror.
#[derive(Clone, Copy, Debug)]
pub struct MirrorOptions {
    /// Most users; the address space reserved, not memory. At most [`SLOTS_MAX`].
    pub users_max: u32,
    /// Shards that will call `note_turn`.
    pub shards: u16,
}

/// How a state was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Published: decided some time ago and on its way since.
    Published,
    /// Answered to a question, as of this moment of the presence node's clock: contradicts what was
    /// decided before it.
    Answered(Unix),
}

impl Presence {
    /// An empty mirror.
    ///
    /// Errors: no memory, no random numbers.
    pub fn mirror(options: MirrorOptions, now: Now) -> io::Result<Presence> {
        let users_max = options.users_max.clamp(1, SLOTS_MAX);
        let identity = Headers::of_new(now.unix, [0; 16])?;
        let log_file = memory(
            Kind::Users,
            identity.header(Kind::Users),
            log::reserved_bytes(users_max),
        )?;
        let (rebuilt, scan) =
            interner::rebuild(&[0; FIRST_RECORD as usize + 1], FIRST_RECORD, users_max)?;
        debug_assert_eq!((scan.users, scan.end), (0, FIRST_RECORD), "an empty log");
        let reserved = file_bytes(users_max.next_multiple_of(CHUNK_SLOTS));
        let map = |kind| memory(kind, identity.header(kind), reserved);
        let presence = Presence {
            interner: rebuilt.finish(Log::new(log_file, FIRST_RECORD), users_max),
            stamps: CellFile::new(map(Kind::Stamps)?),
            published: CellFile::new(map(Kind::Published)?),
            online: Online::new(users_max)?,
            // Nobody beats here, so nobody's goodbye needs remembering.
            leaves: Mutex::new(Leaves::new(0)),
            vigil: Vigil::new(options.shards),
            resume: Resume::new(identity.created_at(), [None; 2], now.unix, now),
            identity,
            beat_skew_ms_max: 0,
            growth_failing: AtomicBool::new(false),
            mirrored: Some(Mirrored {
                adopting: Mutex::default(),
                heard: AnonymousArray::new(users_max as usize)?,
                behind: AtomicBool::new(true),
                lives: Mutex::default(),
            }),
        };
        presence.stamps.reserve(1)?;
        presence.published.reserve(1)?;
        Ok(presence)
    }

    /// Whether the states here were decided elsewhere.
    pub fn is_mirror(&self) -> bool {
        self.mirrored.is_some()
    }

    /// Whether a watcher who was told everything up to `at` may not have been told the publisher's
    /// last change. In a mirror what counts is when it was heard of here, however old the change
    /// was.
    pub fn changed_since(&self, slot: Slot, at: Unix) -> bool {
        let Some(mirrored) = &self.mirrored else {
            let published = self.published.cell(slot).load(Ordering::Acquire);
            return published.since_ms() > at.ms();
        };
        let heard_s = u64::from(mirrored.heard[slot.index() as usize].load(Ordering::Acquire));
        // Its second's end: a second too many is told twice.
        heard_s == 0 || self.identity.created_at().plus_ms(heard_s * 1_000) > at
    }

    /// A presence node has gone out of this mirror's sight, or all are in sight again.
    pub fn set_behind(&self, behind: bool) {
        if let Some(mirrored) = &self.mirrored {
            mirrored.behind.store(behind, Ordering::Release);
        }
    }

    /// Whether there may be changes that this node has not been told: no watcher can be told
    /// everything up to now.
    pub fn is_behind(&self) -> bool {
        self.mirrored
            .as_ref()
            .is_some_and(|mirrored| mirrored.behind.load(Ordering::Acquire))
    }

    /// This life of the presence node at this index answers.
    pub fn note_life(&self, node: usize, instance: u64) {
        let Some(mirrored) = &self.mirrored else {
            return;
        };
        let mut lives = mirrored.lives.lock();
        if lives.len() <= node {
            lives.resize(node + 1, Life::default());
        }
        lives[node].instance = Some(instance);
    }

    /// The presence node at this index has said what its clock shows, some time before `now`.
    pub fn note_clock(&self, node: usize, clock: Unix, now: Mono) {
        let Some(mirrored) = &self.mirrored else {
            return;
        };
        let mut lives = mirrored.lives.lock();
        let Some(life) = lives.get_mut(node) else {
            return;
        };
        // One less: both are cut off to whole milliseconds.
        let ahead_ms = clock.ms() as i64 - now.ms() as i64 - 1;
        let known = life.ahead_ms(now);
        if known.is_none_or(|known| !(ahead_ms..=ahead_ms + CLOCK_JITTER_MS).contains(&known)) {
            life.ahead_ms = Some((ahead_ms, now));
        }
    }

    /// What the clock of the presence node at this index shows at least; before it has said so,
    /// what this one's does.
    pub fn clock_of(&self, node: usize, now: Now) -> Unix {
        let ahead_ms = self.mirrored.as_ref().and_then(|mirrored| {
            let lives = mirrored.lives.lock();
            lives.get(node)?.ahead_ms(now.mono)
        });
        ahead_ms.map_or(now.unix, |ahead_ms| {
            Unix::from_ms(now.mono.ms().saturating_add_signed(ahead_ms))
        })
    }

    /// The index of the presence node whose life this is, which is publishing at `now`; `complete`:
    /// and has told everything then.
    pub fn note_told(&self, instance: u64, complete: bool, now: Mono) -> Option<usize> {
        let mut lives = self.mirrored.as_ref()?.lives.lock();
        let node = lives
            .iter()
            .position(|life| life.instance == Some(instance))?;
        if complete {
            lives[node].told_at = Some(now);
        }
        Some(node)
    }

    /// How long ago the presence node at this index last said that everything was told, in ms.
    /// None: never.
    pub fn told_age_ms(&self, node: usize, now: Mono) -> Option<u64> {
        let lives = self.mirrored.as_ref()?.lives.lock();
        Some(now.ms_since(lives.get(node)?.told_at?))
    }

    /// Whether what is known of a publisher is what its presence node says: always, but in a mirror
    /// that has not been told since it lost sight of that node.
    pub fn is_confirmed(&self, slot: Slot) -> bool {
        let published = self.published.cell(slot).load(Ordering::Acquire);
        !self.is_mirror() || published.has(PublishedFlags::CONFIRMED)
    }

    /// A mirror has lost sight of the presence node of `these` publishers: what is known of them
    /// stands, and must be asked for anew. Takes its time: some ten ns a user.
    pub fn unconfirm(&self, these: impl Fn(User<'_>) -> bool) {
        let Some(mirrored) = &self.mirrored else {
            return;
        };
        for slot in (0..self.users()).map(Slot::new) {
            if self.is_confirmed(slot) && these(self.user(slot)) {
                let _alone = mirrored.adopting.lock();
                let cell = self.published.cell(slot);
                let unconfirmed = cell.load(Ordering::Relaxed);
                cell.store(
                    unconfirmed.without(PublishedFlags::CONFIRMED),
                    Ordering::Release,
                );
            }
        }
    }

    /// Takes over what a mirror was told of a publisher. Some: that is news, and its watchers must
    /// be told.
    ///
    /// A state with a later `since` replaces the known one; so does an answer that contradicts what
    /// was decided before it was given (the presence node has lost its files, or another one has
    /// taken over), with a `since` one later than the known one. Anything else at most confirms,
    /// and only an answer does: what was published may have been on its way for long. Panics if
    /// this is no mirror.
    pub fn adopt(&self, slot: Slot, told: &Told, source: Source, now: Now) -> Option<Transition> {
        let mirrored = self
            .mirrored
            .as_ref()
            .expect("only a mirror is told what others decided");
        let _alone = mirrored.adopting.lock();
        let cell = self.published.cell(slot);
        let before = cell.load(Ordering::Relaxed);
        let (known_ms, was) = (before.since_ms(), before.status());
        let told_ms = told.since.map_or(0, Unix::ms);
        let contradicts = match source {
            Source::Answered(at) => told.status != was && known_ms < at.ms(),
            Source::Published => false,
        };
        let later =
            told_ms > known_ms || planted::is(Planted::ToldUnordered) && told_ms != known_ms;
        let since_ms = match () {
            () if later => told_ms,
            () if contradicts => known_ms + 1,
            () => known_ms,
        };
        let news = later || contradicts || before == Published::NEVER;
        let status = if later || contradicts {
            told.status
        } else {
            was
        };
        // What is published says nothing of what its node says now: it may be late, and the later
        // one may have been lost with the node's last life.
        let confirms = match source {
            Source::Answered(at) => told_ms >= known_ms || contradicts || known_ms < at.ms(),
            Source::Published => false,
        };
        if told_ms >= known_ms || contradicts {
            self.stamp_told(slot, told, status);
        }
        let since = Unix::from_ms(since_ms);
        let mut after = Published::new(since, status).with(PublishedFlags::KNOWN);
        if confirms || before.has(PublishedFlags::CONFIRMED) {
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
        let heard_s = now.unix.ms_since(self.identity.created_at()) / 1_000 + 1;
        mirrored.heard[slot.index() as usize].store(
            u32::try_from(heard_s).unwrap_or(u32::MAX),
            Ordering::Release,
        );
        Some(Transition {
            slot,
            status,
            first: before == Published::NEVER,
        })
    }

    fn stamp_told(&self, slot: Slot, told: &Told, status: Status) {
        let stamp = self.stamps.cell(slot);
        let known = stamp.load(Ordering::Relaxed);
        let told_ms = told.last_active.map_or(0, Unix::ms).max(known.ms());
        let last_active = Unix::from_ms(told_ms).min(Stamp::LATEST);
        // Not fresh: nobody sweeps a mirror, but nobody who reads a stamp shall be misled either.
        let flags = if status.is_online() {
            StampFlags::default()
        } else {
            StampFlags::LEFT
        };
        stamp.store(
            Stamp::new(last_active, last_active, flags),
            Ordering::Release,
        );
    }
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
        }
    }

    fn mirror() -> (Presence, Slot) {
        let options = MirrorOptions {
            users_max: 100_000,
            shards: 1,
        };
        let presence = Presence::mirror(options, at(1_000)).unwrap();
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
    fn since_decides() {
        let (presence, bob) = mirror();
        let put = |status, since, last_active| {
            presence.adopt(
                bob,
                &told(status, since, last_active),
                Source::Published,
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
        let (presence, bob) = mirror();
        let answer = |status, since, at_ms| {
            let source = Source::Answered(Unix::from_ms(at_ms));
            presence.adopt(bob, &told(status, since, since), source, at(9_000))
        };
        presence.adopt(
            bob,
            &told(Status::Online, 5_000, 5_000),
            Source::Published,
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
            "never seen, by a node without its files"
        );
        assert_eq!(
            presence.state(bob, at(9_000)),
            state(Status::Offline, 5_001, 5_000)
        );
        assert_eq!(
            answer(Status::Online, 7_000, 8_000),
            news(bob, Status::Online, false)
        );
    }

    #[test]
    fn never_seen_is_known_too() {
        let (presence, bob) = mirror();
        let source = Source::Answered(Unix::from_ms(2_000));
        assert_eq!(
            presence.adopt(bob, &told(Status::Offline, 0, 0), source, at(2_000)),
            news(bob, Status::Offline, true)
        );
        assert_eq!(presence.state(bob, at(2_000)), state(Status::Offline, 0, 0));
        assert!(presence.is_confirmed(bob));
        assert_eq!(
            presence.adopt(bob, &told(Status::Offline, 0, 0), source, at(2_000)),
            None
        );
        presence.unconfirm(|_| true);
        assert!(!presence.is_confirmed(bob));
        assert_eq!(
            presence.state(bob, at(2_000)),
            state(Status::Offline, 0, 0),
            "doubted and still known"
        );
        let put = presence.adopt(
            bob,
            &told(Status::Online, 3_000, 3_000),
            Source::Published,
            at(3_000),
        );
        assert_eq!(put, news(bob, Status::Online, false));
    }

    #[test]
    fn a_lost_node_leaves_what_is_known_to_be_confirmed() {
        let (presence, bob) = mirror();
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
            Source::Published,
            at(5_000),
        );
        assert!(!presence.is_confirmed(bob), "published some time ago");
        assert_eq!(answer(5_500), None);
        assert!(presence.is_confirmed(bob));
        presence.unconfirm(|user| user.as_str() == "carol");
        assert!(presence.is_confirmed(bob));
        presence.unconfirm(|user| user.as_str() == "bob");
        assert!(!presence.is_confirmed(bob));
        assert_eq!(
            presence.state(bob, at(6_000)),
            state(Status::Online, 5_000, 5_400)
        );
        assert_eq!(
            presence.adopt(
                bob,
                &told(Status::Offline, 4_000, 4_000),
                Source::Published,
                at(6_000)
            ),
            None
        );
        assert_eq!(
            presence.adopt(
                bob,
                &told(Status::Online, 5_000, 5_000),
                Source::Published,
                at(6_000)
            ),
            None
        );
        assert!(
            !presence.is_confirmed(bob),
            "neither an older state nor the same one says anything of now"
        );
        assert_eq!(answer(6_000), None);
        let news = presence.adopt(
            bob,
            &told(Status::Offline, 9_000, 8_000),
            Source::Published,
            at(9_000),
        );
        assert!(news.is_some() && presence.is_confirmed(bob));
    }

    #[test]
    fn a_change_counts_from_when_it_was_heard_of() {
        let (presence, bob) = mirror();
        let changed = |at_ms| presence.changed_since(bob, Unix::from_ms(at_ms));
        assert!(changed(50_000), "unknown");
        presence.adopt(
            bob,
            &told(Status::Online, 20_000, 20_000),
            Source::Published,
            at(60_500),
        );
        assert_eq!(
            [20_001, 60_499, 60_999, 61_000].map(changed),
            [true, true, true, false]
        );
        presence.adopt(
            bob,
            &told(Status::Online, 20_000, 21_000),
            Source::Published,
            at(90_000),
        );
        assert!(!changed(61_000), "nothing new");
    }

    #[test]
    fn being_behind_is_said_and_taken_back() {
        let (presence, _) = mirror();
        assert!(presence.is_behind(), "nothing has been asked yet");
        presence.set_behind(false);
        assert!(!presence.is_behind());
        presence.set_behind(true);
        assert!(presence.is_behind());
    }

    #[test]
    fn a_node_is_known_by_its_life() {
        let (presence, _) = mirror();
        let mono = |ms| at(ms).mono;
        assert_eq!(presence.note_told(7, true, mono(1)), None, "not seen yet");
        presence.note_life(1, 7);
        assert_eq!(presence.told_age_ms(1, mono(5)), None);
        assert_eq!(presence.note_told(7, true, mono(10)), Some(1));
        assert_eq!(
            presence.note_told(7, false, mono(12)),
            Some(1),
            "more is to come"
        );
        assert_eq!(
            (
                presence.told_age_ms(1, mono(15)),
                presence.told_age_ms(0, mono(15))
            ),
            (Some(5), None)
        );
        presence.note_life(1, 8);
        assert_eq!(
            (
                presence.note_told(7, true, mono(20)),
                presence.note_told(8, true, mono(20))
            ),
            (None, Some(1))
        );
    }

    #[test]
    fn a_nodes_clock_is_known_from_below() {
        let (presence, _) = mirror();
        let now = |mono_ms: u64, unix_ms| Now {
            mono: Mono::from_micros(mono_ms * 1_000),
            unix: Unix::from_ms(unix_ms),
        };
        let clock = |mono_ms| presence.clock_of(1, now(mono_ms, 70_000)).ms();
        assert_eq!(clock(10), 70_000, "its own");
        presence.note_life(1, 7);
        let learn = |clock_ms, mono_ms| {
            presence.note_clock(1, Unix::from_ms(clock_ms), now(mono_ms, 0).mono)
        };
        learn(50_000, 100);
        assert_eq!([clock(100), clock(150)], [49_999, 50_049]);
        learn(50_080, 200);
        assert_eq!(clock(200), 50_099, "an answer that took longer");
        learn(50_210, 300);
        assert_eq!(clock(300), 50_209, "one that took less");
        assert_eq!(clock(60_300), 110_149, "clocks drift");
        learn(108_200, 60_300);
        assert_eq!(clock(60_300), 110_149);
        learn(108_100, 60_300);
        assert_eq!(clock(60_300), 108_099, "set back");
        learn(200_000, 60_300);
        assert_eq!(clock(60_300), 199_999, "set forward");
    }

    #[test]
    fn it_grows_like_any_store() {
        let (presence, _) = mirror();
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
                Source::Published,
                at(2_000),
            );
        }
        assert_eq!((presence.users(), presence.online()), (70_001, 35_000));
        presence.check_invariants();
    }
}
