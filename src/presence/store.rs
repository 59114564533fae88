//! Opening and closing the folder: three files, one lock, the restart rule.
//!
//! Owns the order in which files are checked, made and marked. users.log leads: it is locked for
//! the whole store, and cells of slots that it does not know are zeroed. Nothing is written before
//! everything was found good. Never touches a slot while the store runs.
//!
//! A missing stamps.map is made anew (nobody has a last activity; who was published online has
//! until the grace after boot); a missing published.map is made anew from the stamps, as after a
//! power cut. A missing users.log beside the others is refused.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::Presence;
use super::interner;
use super::leaves::Leaves;
use super::online::{LOOK, Online, PUBLISHED_DIRTY, STAMPS_DIRTY};
use super::resume::{self, Resume};
use super::vigil::Vigil;
use crate::slot::{CHUNK_SLOTS, SLOTS_MAX, Slot};
use crate::status::Status;
use crate::store::cells::{CellValue, Published, Stamp, StampFlags};
use crate::store::fault::{StoreFault, StoreFaultKind};
use crate::store::found::{Found, lock, open_file};
use crate::store::header::{Header, Kind};
use crate::store::log::{self, FIRST_RECORD, Log};
use crate::store::map::{CellFile, file_bytes};
use crate::store::region::{MappedFile, copies_on_write, survive_file_size_limit};
use crate::time::{Now, Unix};

/// A cell further ahead of the clock and of the last flush than this, in ms, is damaged: a day.
const IMPOSSIBLE_AHEAD_MS: u64 = 86_400_000;

/// How to open a store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Folder, made if missing.
    pub dir: PathBuf,
    /// Most users; the address space reserved (some 160 bytes a user), not memory. At most
    /// [`SLOTS_MAX`].
    pub users_max: u32,
    /// Silence after which a publisher is offline, in ms: after a power cut, who was silent for
    /// less when it came is online.
    pub offline_after_ms: u64,
    /// How far a datagram's `sent_at` may be off, in ms; a leave is remembered for twice that.
    pub beat_skew_max_ms: u64,
    /// Shards that will call `note_turn`.
    pub shards: u16,
    ////proc/sys/kernel/random/boot_id: another one than last time, without a clean close, is a
    /// power cut.
    pub boot_id: [u8; 16],
}

/// What opening found; for the start-up message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Users known.
    pub users: u32,
    /// Slots whose users are gone.
    pub free: u32,
    /// Kept online by the restart rule.
    pub online: u32,
    /// Bytes of torn tail cut from users.log.
    pub torn_bytes: u64,
    /// Power was cut since the last run.
    pub power_cut: bool,
    /// Was closed cleanly, or is new.
    pub clean: bool,
    /// stamps.map was missing beside a users.log with users, and was made anew.
    pub stamps_rebuilt: bool,
    /// published.map was missing beside a users.log with users, and was made anew from the stamps.
    pub published_rebuilt: bool,
}

/// What the headers of this run say beside what changes with every flush.
pub(super) struct Identity {
    store_id: u64,
    generation: u64,
    created_at: Unix,
    boot_id: [u8; 16],
    synced_bytes: AtomicU64,
    /// Set by `close`: no header may say otherwise afterwards.
    closed: AtomicBool,
    /// What published.map's header says of the disk: capacity, watermark, closed cleanly.
    published: Mutex<(u32, Unix, bool)>,
}

impl Presence {
    /// Has the bytes of users.log from `from`, up to which it is on disk, to `to`, up to which
    /// there are records, on disk as well.
    pub(super) fn sync_log_range(&self, from: u64, to: u64) -> io::Result<()> {
        let file = self.interner.log().file();
        if file.is_doubted() {
            // The header's page too, in which records follow it.
            self.mark_log_synced(self.log_synced_bytes())?;
            // SAFETY: the log's bytes before its end are never written again.
            unsafe { file.rewrite(from, to) }?;
            file.sync_range(0, FIRST_RECORD)?;
        }
        file.sync_range(from, to - from)
    }

    /// Everything before `synced_bytes` of users.log is on disk: says so in its header.
    pub(super) fn mark_log_synced(&self, synced_bytes: u64) -> io::Result<()> {
        self.identity
            .synced_bytes
            .fetch_max(synced_bytes, Ordering::AcqRel);
        let mut header = self.identity.header(Kind::Users);
        header.synced_bytes = self.identity.synced_bytes.load(Ordering::Acquire);
        self.interner.log().file().write_start(&header.encode())
    }

    /// The stamps up to `capacity` are on disk, the file's length included: says so in its header.
    pub(super) fn mark_stamps_synced(&self, capacity: u32) -> io::Result<()> {
        let mut header = self.identity.header(Kind::Stamps);
        header.capacity = capacity;
        self.stamps.file().write_start(&header.encode())
    }

    /// Every transition up to `watermark` is on disk, and `capacity` as above: says so in the
    /// header.
    pub(super) fn mark_published_synced(
        &self,
        capacity: u32,
        watermark: Unix,
        clean: bool,
    ) -> io::Result<()> {
        let mut said = self.identity.published.lock();
        *said = (capacity, watermark, clean);
        self.write_published_header(*said)
    }

    /// The ambiguous window has been widened: says so in the header at once, or a crash would
    /// forget it.
    pub(super) fn mark_doubt(&self) -> io::Result<()> {
        let said = self.identity.published.lock();
        self.write_published_header(*said)
    }

    fn write_published_header(
        &self,
        (capacity, watermark, clean): (u32, Unix, bool),
    ) -> io::Result<()> {
        let mut header = self.identity.header(Kind::Published);
        header.capacity = capacity;
        header.watermark = watermark;
        header.boot_id = self.identity.boot_id;
        header.clean = clean;
        header.ambiguous = self.resume.ambiguous();
        self.published.file().write_start(&header.encode())
    }

    /// Up to where users.log is known to be on disk.
    pub(super) fn log_synced_bytes(&self) -> u64 {
        self.identity.synced_bytes.load(Ordering::Acquire)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.identity.closed.load(Ordering::Acquire)
    }

    /// Writes everything back and marks the store as closed cleanly. The shards and the flusher
    /// have stopped before; the folder's lock goes with the last reference.
    ///
    /// Errors: the disk's; the store is then not marked, and opens as after a crash.
    pub fn close(&self, now: Now) -> io::Result<()> {
        self.identity.closed.store(true, Ordering::Release);
        let (stamps, published) = (self.stamps.capacity(), self.published.capacity());
        let (log, end) = (self.interner.log().file(), self.interner.log().end());
        self.sync_log_range(self.log_synced_bytes().min(end), end)?;
        log.sync()?;
        self.mark_log_synced(end)?;
        log.sync()?;
        self.stamps.sync()?;
        self.mark_stamps_synced(stamps)?;
        self.stamps.file().sync()?;
        self.published.sync()?;
        self.mark_published_synced(published, now.unix, true)?;
        self.published.file().sync()
    }
}

impl Identity {
    /// Of a store that lives in memory and dies with the process.
    pub(super) fn passing(now: Now) -> io::Result<Identity> {
        Ok(Identity {
            store_id: random_id()?,
            generation: 0,
            created_at: now.unix,
            boot_id: [0; 16],
            synced_bytes: AtomicU64::new(FIRST_RECORD),
            closed: AtomicBool::new(false),
            published: Mutex::default(),
        })
    }

    pub(super) fn created_at(&self) -> Unix {
        self.created_at
    }

    pub(super) fn header(&self, kind: Kind) -> Header {
        Header::new(kind, self.store_id, self.generation, self.created_at)
    }
}

pub(super) fn open(options: &StoreOptions, now: Now) -> Result<(Presence, OpenReport), StoreFault> {
    survive_file_size_limit();
    let users_max = options.users_max.clamp(1, SLOTS_MAX);
    let os = |doing: &'static str, path: &Path| {
        let path = path.to_owned();
        move |error| StoreFault::os(path, doing, error)
    };
    let made_dirs: Vec<&Path> = options
        .dir
        .ancestors()
        .take_while(|dir| !dir.exists())
        .collect();
    fs::create_dir_all(&options.dir).map_err(os("make the folder", &options.dir))?;
    if copies_on_write(&options.dir) {
        let dir = options.dir.display();
        tracing::warn!(%dir, "the data folder is on a copy-on-write file system: when it is \
                              full, a beat can kill this process");
    }

    // Read and check; nothing before the lock, or another process could still be writing it.
    let (users_path, users_file) = open_file(&options.dir, Kind::Users)?;
    lock(&users_path, &users_file)?;
    let users = Found::read(Kind::Users, users_path, users_file)?;
    // A map of which nothing was ever marked as synced, without its users, is what a power cut has
    // left of a store's first moments.
    let stale = |map: &Found| {
        users.header.is_none() && map.header.is_some_and(|header| header.capacity == 0)
    };
    let stamps = Found::look(&options.dir, Kind::Stamps)?.filter(|map| !stale(map));
    let published = Found::look(&options.dir, Kind::Published)?.filter(|map| !stale(map));
    if users.header.is_none() && (stamps.is_some() || published.is_some()) {
        return Err(StoreFault::new(
            StoreFaultKind::Missing,
            users.path,
            0,
            "users.log of the maps beside it",
            "no such file, or one without a record of them",
        ));
    }
    for map in [&stamps, &published].into_iter().flatten() {
        map.check_beside(&users)?;
    }
    let synced_bytes = users
        .header
        .map_or(FIRST_RECORD, |header| header.synced_bytes.max(FIRST_RECORD));
    if users.header.is_some() && users.bytes < synced_bytes {
        return Err(StoreFault::new(
            StoreFaultKind::Truncated,
            users.path,
            users.bytes,
            format!("the {synced_bytes} bytes that were synced"),
            "the end of the file",
        ));
    }
    let last = published.as_ref().and_then(|found| found.header);
    let clean = last.is_some_and(|header| header.clean);
    let power_cut = last.is_some_and(|header| !header.clean && header.boot_id != options.boot_id);
    let store_is_new = users.header.is_none();
    let generation = 1 + [
        users.header,
        stamps.as_ref().and_then(|found| found.header),
        last,
    ]
    .into_iter()
    .flatten()
    .map(|header| header.generation)
    .max()
    .unwrap_or(0);
    let identity = match users.header {
        Some(header) => Identity {
            store_id: header.store_id,
            generation,
            created_at: header.created_at,
            boot_id: options.boot_id,
            synced_bytes: AtomicU64::new(synced_bytes),
            closed: AtomicBool::new(false),
            published: Mutex::default(),
        },
        None => Identity {
            store_id: random_id().map_err(os("get random bytes for", &users.path))?,
            generation,
            created_at: now.unix,
            boot_id: options.boot_id,
            synced_bytes: AtomicU64::new(FIRST_RECORD),
            closed: AtomicBool::new(false),
            published: Mutex::default(),
        },
    };
    let created_at = identity.created_at;
    let users_path = users.path.clone();
    let mut log_file = users.map(identity.header(Kind::Users), log::reserved_bytes(users_max))?;
    // What was synced is a good guess at the log's length: the rest of the file is room to grow.
    let log_bytes = synced_bytes.max(log_file.len_bytes() / 2);
    let (rebuilt, scan) = interner::rebuild(all_bytes(&log_file), log_bytes, users_max)
        .map_err(os("reserve memory for", &users_path))?;
    check_scan(&users_path, &scan, synced_bytes, users_max)?;
    if let Some(fault) = &rebuilt.contradiction {
        return Err(StoreFault::record(users_path, fault));
    }

    // From here on the files are ours to write.
    let torn_bytes = if clean && scan.fault.is_none() {
        0
    } else {
        torn_bytes(&log_file, scan.end)
    };
    if torn_bytes > 0 {
        // On disk at once: records behind the torn one could come back after what is put in its
        // place.
        log_file
            .cut(scan.end)
            .and_then(|()| log_file.sync())
            .map_err(os("cut the torn tail of", &users_path))?;
    }
    let reserved = file_bytes(users_max.next_multiple_of(CHUNK_SLOTS));
    let stamps_capacity = stamps
        .as_ref()
        .and_then(|found| found.header)
        .map_or(0, |header| header.capacity);
    let (stamps_missing, published_missing) = (stamps.is_none(), published.is_none());
    let stamps = Found::or_new(stamps, &options.dir, Kind::Stamps)?
        .map(identity.header(Kind::Stamps), reserved)?;
    let published = Found::or_new(published, &options.dir, Kind::Published)?
        .map(identity.header(Kind::Published), reserved)?;
    let watermark = last.map_or(Unix::from_ms(0), |header| header.watermark);
    let presence = Presence {
        interner: rebuilt.finish(Log::new(log_file, scan.end), users_max),
        stamps: CellFile::new(stamps),
        published: CellFile::new(published),
        online: Online::new(users_max).map_err(os("reserve memory for", &options.dir))?,
        leaves: Mutex::new(Leaves::new(options.beat_skew_max_ms)),
        vigil: Vigil::new(options.shards),
        resume: Resume::new(
            identity.created_at,
            last.map_or([None; 2], |header| header.ambiguous),
            // How long a run went on that did not end cleanly is not known.
            if clean { watermark } else { now.unix },
            now,
        ),
        identity,
        beat_skew_ms_max: options.beat_skew_max_ms,
        growth_failing: AtomicBool::new(false),
        mirrored: None,
    };
    prepare(&presence.stamps, scan.users, clean)?;
    prepare(&presence.published, scan.users, clean)?;
    // Of nobody, so that who is given the slot begins without a past.
    for slot in presence.interner.free().iter().copied().map(Slot::new) {
        presence
            .stamps
            .cell(slot)
            .store(Stamp::default(), Ordering::Relaxed);
        presence
            .published
            .cell(slot)
            .store(Published::NEVER, Ordering::Relaxed);
    }
    if !clean && !store_is_new {
        // What the last run could not write back may be in the page cache, marked as written.
        let log = presence.interner.log().file();
        [log, presence.stamps.file(), presence.published.file()]
            .into_iter()
            .for_each(MappedFile::doubt);
    }
    let published_rebuilt = published_missing && !store_is_new && scan.users > 0;
    let impossible = |ms: u64| {
        let last_ms = now.unix.max(watermark).plus_ms(IMPOSSIBLE_AHEAD_MS).ms();
        ms > last_ms && !presence.resume.explains(Unix::from_ms(ms))
    };
    let stamps = replace(&presence.stamps, scan.users, |stamp| {
        let never = Unix::from_ms(0);
        impossible(stamp.ms()).then(|| Stamp::new(never, never, stamp.flags()))
    });
    let published = replace(&presence.published, scan.users, |published| {
        impossible(published.since_ms()).then(|| Published::new(now.unix, published.status()))
    });
    if stamps + published > 0 {
        tracing::warn!(
            stamps,
            published,
            "cells with impossible times, which only damage can have made, were given others"
        );
    }
    if power_cut || published_rebuilt {
        republish(&presence, scan.users, options.offline_after_ms, now);
        // Not from the watermark on: what a watcher was told after its last id may be lost, however
        // old that id; and a step back of the clock may be lost too.
        presence
            .resume
            .doubt(created_at, now.unix.plus_ms(resume::AHEAD_MS_MAX));
    }
    let latest = restore_online(&presence, scan.users, now.unix);
    let latest_transition = latest.transition.max(watermark);
    if now.unix < latest_transition {
        // The wall clock was set back while the store was closed.
        presence.resume.doubt(now.unix, latest_transition);
    }
    if now.unix.plus_ms(resume::AHEAD_MS_MAX) < latest.stamp {
        // Or before that, and the process ended before it had noticed. Ids told since the latest
        // beat may be later than that.
        let latest_id = latest.stamp.plus_ms(options.offline_after_ms);
        presence.resume.doubt(now.unix, latest_id);
    }
    presence.warn_of_doubt(now.unix);
    let free = presence.interner.free().len() as u32;
    let report = OpenReport {
        users: scan.users - free,
        free,
        online: presence.online() as u32,
        torn_bytes,
        power_cut,
        clean: clean || store_is_new,
        stamps_rebuilt: stamps_missing && !store_is_new && scan.users > 0,
        published_rebuilt,
    };
    // Of this generation; on disk when they may, for published.map's will say it too.
    presence
        .mark_log_synced(synced_bytes)
        .and_then(|()| presence.mark_stamps_synced(stamps_capacity))
        .map_err(os("mark as open", &options.dir))?;
    if store_is_new || stamps_missing || published_missing {
        // The leader first. No cell is written before there is a header that says whose it is.
        for file in [presence.interner.log().file(), presence.stamps.file()] {
            file.sync().map_err(os("write", file.path()))?;
        }
    }
    // Not clean from here on, and of this boot; the watermark stays until the first flush.
    presence
        .mark_published_synced(last.map_or(0, |header| header.capacity), watermark, false)
        .and_then(|()| presence.published.file().sync())
        .map_err(os("mark as open", presence.published.file().path()))?;
    if store_is_new || stamps_missing || published_missing {
        let parents = made_dirs.iter().filter_map(|dir| dir.parent());
        for dir in std::iter::once(options.dir.as_path()).chain(parents) {
            sync_dir(dir).map_err(os("write", dir))?;
        }
    }
    Ok((presence, report))
}

/// Has the names in a folder on disk.
fn sync_dir(dir: &Path) -> io::Result<()> {
    let here = dir.as_os_str().is_empty();
    match File::open(if here { Path::new(".") } else { dir })?.sync_all() {
        // A file system that does not do this for folders.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other,
    }
}

fn random_id() -> io::Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(u64::from_le_bytes(bytes))
}

fn all_bytes(file: &MappedFile) -> &[u8] {
    // SAFETY: nobody writes the file: this process is still opening the store, and the lock keeps
    // others away.
    unsafe { file.bytes_at(0, file.len_bytes() as usize) }
}

/// Damage before the synced mark is not a torn write.
fn check_scan(
    path: &Path,
    scan: &log::Scan,
    synced_bytes: u64,
    users_max: u32,
) -> Result<(), StoreFault> {
    if scan.end < synced_bytes {
        let fault = scan.fault.clone().unwrap_or_else(|| log::RecordFault {
            offset: scan.end,
            expected: format!("records up to {synced_bytes}, which was synced"),
            found: "a zero length byte, the end of the log".to_owned(),
        });
        return Err(StoreFault::record(path.to_owned(), &fault));
    }
    if scan.users > users_max {
        let expected = format!("at most {users_max} users (users_max)");
        let found = format!("{} users", scan.users);
        return Err(StoreFault::new(
            StoreFaultKind::TooManyUsers,
            path.to_owned(),
            scan.end,
            expected,
            found,
        ));
    }
    Ok(())
}

/// Bytes from `end` to the last one that is not zero.
fn torn_bytes(file: &MappedFile, end: u64) -> u64 {
    let tail = &all_bytes(file)[(end as usize).min(file.len_bytes() as usize)..];
    tail.iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last as u64 + 1)
}

/// Makes room for the cells of all slots, and none of more.
fn prepare<V: CellValue + Sync>(
    cells: &CellFile<V>,
    users: u32,
    clean: bool,
) -> Result<(), StoreFault> {
    let file = cells.file();
    let fault = |doing| move |error| StoreFault::os(file.path().to_owned(), doing, error);
    cells.reserve(users.max(1)).map_err(fault("make room in"))?;
    // On disk before these slots are given anew: another power cut could keep the new record and
    // the old cells.
    if !clean && zero_beyond(cells, users) {
        file.sync().map_err(fault("write"))?;
    }
    Ok(())
}

/// Slots that users.log does not know have no cells: a power cut may have kept these and lost their
/// records. Whether there were any.
fn zero_beyond<V: CellValue + Sync>(cells: &CellFile<V>, users: u32) -> bool {
    let mut found = false;
    for cell in &cells.cells()[users as usize..] {
        if cell.load(Ordering::Relaxed).bits() != 0 {
            cell.store(V::from_bits(0), Ordering::Relaxed);
            found = true;
        }
    }
    found
}

/// Gives another value to cells with an impossible time: one of them would have everybody else
/// silent since long, and event ids doubtful for as long. Returns how many.
fn replace<V: CellValue + Sync>(
    cells: &CellFile<V>,
    users: u32,
    better: impl Fn(V) -> Option<V>,
) -> u32 {
    let mut replaced = 0;
    for cell in &cells.cells()[..users as usize] {
        if let Some(value) = better(cell.load(Ordering::Relaxed)) {
            cell.store(value, Ordering::Relaxed);
            replaced += 1;
        }
    }
    replaced
}

/// After a power cut, or without a published.map: who was published online, or was fresh when the
/// last stamp was written, is online, with a transition now, for nobody knows what watchers were
/// told last.
fn republish(presence: &Presence, users: u32, offline_after_ms: u64, now: Now) {
    let stamps = &presence.stamps.cells()[..users as usize];
    let published = &presence.published.cells()[..users as usize];
    let newest_ms = stamps
        .iter()
        .map(|stamp| stamp.load(Ordering::Relaxed).ms())
        .max()
        .unwrap_or(0);
    for (stamp, published) in stamps.iter().zip(published) {
        let (stamp, before) = (
            stamp.load(Ordering::Relaxed),
            published.load(Ordering::Relaxed),
        );
        let was_fresh = !stamp.has(StampFlags::LEFT.and(StampFlags::EXPIRED))
            && stamp.ms() != 0
            && newest_ms - stamp.ms() <= offline_after_ms;
        if was_fresh || before.is_online() {
            let since = Unix::from_ms(now.unix.ms().max(before.since_ms() + 1));
            let status = match before.status() {
                Status::Offline | Status::Unknown => Status::Online,
                here => here,
            };
            published.store(Published::new(since, status), Ordering::Relaxed);
        }
    }
}

/// The latest times in the maps.
struct Latest {
    transition: Unix,
    stamp: Unix,
}

/// Sets the online bits as published, and has every chunk looked at once. Returns the latest times,
/// less those to come that a step back of the clock has explained.
fn restore_online(presence: &Presence, users: u32, now: Unix) -> Latest {
    let later = |latest: u64, ms: u64| {
        let explained = ms > latest && ms > now.ms() && presence.resume.explains(Unix::from_ms(ms));
        if explained { latest } else { latest.max(ms) }
    };
    let stamps = &presence.stamps.cells()[..users as usize];
    let published = &presence.published.cells()[..users as usize];
    let (mut transition_ms, mut stamp_ms) = (0, 0);
    for (word, (cells, stamps)) in published.chunks(64).zip(stamps.chunks(64)).enumerate() {
        let mut bits = 0;
        for (bit, (cell, stamp)) in cells.iter().zip(stamps).enumerate() {
            let cell = cell.load(Ordering::Relaxed);
            let beat = stamp.load(Ordering::Relaxed);
            bits |= u64::from(cell.is_online()) << bit;
            transition_ms = later(transition_ms, cell.since_ms());
            stamp_ms = later(stamp_ms, beat.ms());
            // Online by a beat that the power took, or not offline yet: either way its grace is to
            // come.
            if cell.is_online() && beat.has(StampFlags::EXPIRED) {
                stamp.store(beat.without(StampFlags::EXPIRED), Ordering::Relaxed);
            }
        }
        if bits != 0 {
            presence.online.fill(word as u32, bits);
        }
    }
    for chunk in 0..users.div_ceil(CHUNK_SLOTS) as usize {
        presence
            .online
            .raise(chunk, LOOK | STAMPS_DIRTY | PUBLISHED_DIRTY);
    }
    Latest {
        transition: Unix::from_ms(transition_ms),
        stamp: Unix::from_ms(stamp_ms),
    }
}
