//! From a folder to a presence database: the store's parts, the restart rule, the online bits.
//!
//! Owns what a restart means for publishers and for event ids. What the files are and whether they
//! are good is the store's.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Presence;
use super::holders::Holders;
use super::interner;
use super::online::{LOOK, Online};
use super::resume::{self, Resume};
use super::vigil::Vigil;
use crate::slot::{CHUNK_SLOTS, SLOTS_MAX, Slot};
use crate::store::StoreFault;
use crate::store::cells::StampFlags;
use crate::store::flusher::{PUBLISHED_DIRTY, STAMPS_DIRTY};
use crate::store::open::{LogRead, Parts, check};
use crate::store::recover::Recovered;
use crate::time::{Now, Unix};

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
    /// Shards that will call `note_turn`.
    pub shards: u16,
    ////proc/sys/kernel/random/boot_id: another one than last time, without a clean close, is a
    /// power cut.
    pub boot_id: [u8; 16],
}

/// What opening found; for the start-up message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
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

pub(super) fn open(options: &StoreOptions, now: Now) -> Result<(Presence, OpenReport), StoreFault> {
    let users_max = options.users_max.clamp(1, SLOTS_MAX);
    let checked = check(&options.dir, options.boot_id)?;
    let (parts, rebuilt) = checked.map(users_max, now.unix, |bytes, log_bytes| {
        let (mut made, scan) = interner::rebuild(bytes, log_bytes, users_max)?;
        Ok(LogRead {
            contradiction: made.contradiction.take(),
            made,
            scan,
        })
    })?;
    let last = parts.last;
    let created_at = parts.headers.created_at();
    // How long a run went on that did not end cleanly is not known.
    let idle_since = if last.clean { last.watermark } else { now.unix };
    let resume = Resume::new(created_at, last.windows, idle_since, now);
    let free = rebuilt.free().iter().copied().map(Slot::new);
    let free_slots = rebuilt.free().len() as u32;
    let recovered = parts.recover(
        free,
        |time| resume.explains(time),
        options.offline_after_ms,
        now.unix,
    )?;
    let memory = |error| StoreFault::os(options.dir.clone(), "reserve memory for", error);
    let online = Online::new(users_max).map_err(memory)?;
    let holders = Holders::new(users_max).map_err(memory)?;
    let latest = restore_online(&parts, &online, &resume, now.unix);
    doubt(&resume, &parts, recovered, latest, options, now.unix);
    parts.mark(resume.ambiguous())?;
    let report = OpenReport {
        users: parts.slots - free_slots,
        free: free_slots,
        online: 0,
        torn_bytes: parts.torn_bytes,
        power_cut: last.power_cut,
        clean: last.clean || last.is_new,
        stamps_rebuilt: last.stamps_missing && !last.is_new && parts.slots > 0,
        published_rebuilt: recovered.published_rebuilt,
    };
    let presence = Presence {
        interner: rebuilt.finish(parts.log, users_max),
        stamps: parts.stamps,
        published: parts.published,
        online,
        holders,
        vigil: Vigil::new(options.shards),
        resume,
        identity: parts.headers,
        growth_failing: AtomicBool::new(false),
        follower: None,
    };
    presence.warn_of_doubt(now.unix);
    let online = presence.online() as u32;
    Ok((presence, OpenReport { online, ..report }))
}

/// Event ids that can not be believed after what has happened since they were told.
fn doubt(
    resume: &Resume,
    parts: &Parts,
    recovered: Recovered,
    latest: Latest,
    options: &StoreOptions,
    now: Unix,
) {
    if recovered.republished {
        // Not from the watermark on: what a watcher was told after its last id may be lost, however
        // old that id; and a step back of the clock may be lost too.
        let from = parts.headers.created_at();
        resume.doubt(from, now.plus_ms(resume::AHEAD_MS_MAX));
    }
    let latest_transition = latest.transition.max(parts.last.watermark);
    if now < latest_transition {
        // The wall clock was set back while the store was closed.
        resume.doubt(now, latest_transition);
    }
    if now.plus_ms(resume::AHEAD_MS_MAX) < latest.stamp {
        // Or before that, and the process ended before it had noticed. Ids told since the latest
        // beat may be later than that.
        resume.doubt(now, latest.stamp.plus_ms(options.offline_after_ms));
    }
}

/// The latest times in the maps.
#[derive(Clone, Copy)]
struct Latest {
    transition: Unix,
    stamp: Unix,
}

/// Sets the online bits as published, and has every chunk looked at once. Returns the latest times,
/// less those to come that a step back of the clock has explained.
fn restore_online(parts: &Parts, online: &Online, resume: &Resume, now: Unix) -> Latest {
    let users = parts.slots;
    let later = |latest: u64, ms: u64| {
        let explained = ms > latest && ms > now.ms() && resume.explains(Unix::from_ms(ms));
        if explained { latest } else { latest.max(ms) }
    };
    let stamps = &parts.stamps.cells()[..users as usize];
    let published = &parts.published.cells()[..users as usize];
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
            online.fill(word as u32, bits);
        }
    }
    for chunk in 0..users.div_ceil(CHUNK_SLOTS) as usize {
        online.raise(chunk, LOOK | STAMPS_DIRTY | PUBLISHED_DIRTY);
    }
    Latest {
        transition: Unix::from_ms(transition_ms),
        stamp: Unix::from_ms(stamp_ms),
    }
}
