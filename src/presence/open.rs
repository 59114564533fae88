//! From a folder to a presence database: the store's parts, the restart rule, the online bits.
//!
//! Owns what a restart means for publishers and for event ids. What the files are and whether they
//! are good is the store's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Presence;
use super::forget::Forgetting;
use super::holders::Holders;
use super::idle::Idle;
use super::interner;
use super::mass_silence::MassSilence;
use super::online::{LOOK, Online, STATUSES};
use super::resume::{self, Resume};
use super::vigil::Vigil;
use crate::planted::{self, Planted};
use crate::slot::{CHUNK_SLOTS, SLOTS_MAX, Slot};
use crate::store::cells::StampFlags;
use crate::store::found::Made;
use crate::store::open::{Checked, LogRead, Parts, check};
use crate::store::recover::Recovered;
use crate::store::write_back::{PUBLISHED_DIRTY, STAMPS_DIRTY};
use crate::store::{MemoryChoice, StoreFault};
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
    /// Longest outage after which who was online is held online, in ms.
    pub restart_grace_ms: u64,
    /// Where the cells shall be.
    pub memory: MemoryChoice,
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
    /// Nobody was heard for so long, in ms, that so many who were online are taken for offline.
    pub outage: Option<(u64, u32)>,
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
    /// The memory that has the cells. None: they are in the folder's files.
    pub memory: Option<PathBuf>,
    /// Why there is no memory, where one was wanted.
    pub no_memory: String,
    /// How far the clock is behind what the store has seen, in ms.
    pub clock_behind_ms: u64,
}

/// A store's folder, locked and found good, in which nothing has been written yet.
///
/// Dropped without a store having been opened in it, it leaves nothing behind that it has made.
pub struct StoreFolder {
    checked: Option<Checked>,
    options: StoreOptions,
    /// Folders that had to be made.
    made_dirs: Made,
}

impl StoreFolder {
    /// Locks the folder, made if missing, and checks its files: one process at a time.
    ///
    /// Errors: another process has it, or its files are not those of one good store.
    pub fn lock(options: StoreOptions) -> Result<StoreFolder, StoreFault> {
        let mut checked = check(&options.dir, options.boot_id, &options.memory)?;
        let made_dirs = std::mem::take(&mut checked.made_dirs);
        Ok(StoreFolder {
            checked: Some(checked),
            options,
            made_dirs,
        })
    }

    /// Opens (or makes) the store and applies the restart rule, once.
    ///
    /// Errors: users.log is damaged, or the system refuses something.
    pub fn open(&mut self, now: Now) -> Result<(Presence, OpenReport), StoreFault> {
        let checked = self.checked.take().expect("a folder is opened once");
        let opened = open(&self.options, checked, now)?;
        self.made_dirs.keep();
        Ok(opened)
    }
}

fn open(
    options: &StoreOptions,
    checked: Checked,
    now: Now,
) -> Result<(Presence, OpenReport), StoreFault> {
    let users_max = options.users_max.clamp(1, SLOTS_MAX);
    let (mut parts, rebuilt) = checked.map(users_max, now.unix, |bytes, log_bytes| {
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
    let free: Vec<Slot> = rebuilt.free().iter().copied().map(Slot::new).collect();
    let free_slots = free.len() as u32;
    let forgotten_at = if rebuilt.is_plain() {
        Unix::from_ms(0)
    } else {
        now.unix
    };
    let recovered = parts.recover(
        free.iter().copied(),
        |time| resume.explains(time),
        options.offline_after_ms,
        now.unix,
    )?;
    let memory = |error| StoreFault::os(options.dir.clone(), "reserve memory for", error);
    let online = Online::new(users_max).map_err(memory)?;
    let holders = Holders::new(users_max).map_err(memory)?;
    let idle = Idle::new(users_max).map_err(memory)?;
    let outage = take_offline(&parts, options, now.unix);
    let latest = restore_online(
        &parts,
        &online,
        &resume,
        recovered.latest_possible,
        now.unix,
    );
    // Nobody's word counts for the clock alone: what the store has seen is evidence against it.
    let written_at = Some(last.written_at).filter(|at| !resume.is_doubted(*at));
    let seen = latest.stamp.max(written_at.unwrap_or_default());
    doubt(&resume, &parts, recovered, latest, seen, options, now.unix);
    parts.mark(resume.ambiguous(), now.unix)?;
    let vigil = Vigil::new(options.shards, options.offline_after_ms);
    let is_behind = seen > now.unix.plus_ms(resume::AHEAD_MS_MAX);
    if is_behind {
        vigil.clock_is_behind(now);
    }
    let report = OpenReport {
        users: parts.slots - free_slots,
        free: free_slots,
        online: 0,
        outage,
        torn_bytes: parts.torn_bytes,
        power_cut: last.power_cut,
        clean: last.clean || last.is_new,
        stamps_rebuilt: last.stamps_missing && !last.is_new && parts.slots > 0,
        published_rebuilt: recovered.published_rebuilt,
        memory: parts.headers.memory().map(Path::to_owned),
        no_memory: std::mem::take(&mut parts.no_memory),
        clock_behind_ms: if is_behind {
            seen.ms_since(now.unix)
        } else {
            0
        },
    };
    let presence = Presence {
        interner: Arc::new(rebuilt.finish(parts.log, users_max)),
        stamps: parts.stamps,
        published: parts.published,
        online,
        holders,
        idle,
        forgetting: Forgetting::of_free(free, forgotten_at),
        vigil,
        mass_silence: MassSilence::new(options.shards),
        resume,
        identity: parts.headers,
        written_up_to_ms: AtomicU64::new(now.mono.ms()),
        pace: Default::default(),
        new_per_second_max: Default::default(),
        refused_new_ms: Default::default(),
        growth_failing: AtomicBool::new(false),
        follower: None,
        twin: Default::default(),
    };
    presence.warn_of_doubt(now.unix);
    let online = presence.online() as u32;
    Ok((presence, OpenReport { online, ..report }))
}

/// After a long outage nobody is online before a sign of life: who was may have gone unheard. A
/// stream that is resumed is told, because that is since now. Returns how long it was, and how many
/// were.
fn take_offline(parts: &Parts, options: &StoreOptions, now: Unix) -> Option<(u64, u32)> {
    let outage_ms = parts.outage_ms(options.restart_grace_ms, now)?;
    if planted::is(Planted::OutageForgotten) {
        return None;
    }
    Some((outage_ms, parts.take_all_offline(now)))
}

/// Event ids that can not be believed after what has happened since they were told.
fn doubt(
    resume: &Resume,
    parts: &Parts,
    recovered: Recovered,
    latest: Latest,
    seen: Unix,
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
    if now.plus_ms(resume::AHEAD_MS_MAX) < seen {
        // Or before that, and the process ended before it had noticed. Ids told since the latest
        // beat and the latest write-back may be later than these; after a close none was told.
        let told_ms = if parts.last.clean {
            0
        } else {
            options.offline_after_ms
        };
        resume.doubt(now, seen.plus_ms(told_ms));
    }
}

/// The latest times in the maps.
#[derive(Clone, Copy)]
struct Latest {
    transition: Unix,
    stamp: Unix,
}

/// Sets the online bits as published, and has every chunk looked at once. Returns the latest times,
/// less those to come that a step back of the clock has explained, and those that are not possible.
fn restore_online(
    parts: &Parts,
    online: &Online,
    resume: &Resume,
    latest_possible: Unix,
    now: Unix,
) -> Latest {
    let users = parts.slots;
    let later = |latest: u64, ms: u64, is_explained: fn(&Resume, Unix) -> bool| {
        let to_come = ms > latest && ms > now.ms();
        let passed_over =
            to_come && (ms > latest_possible.ms() || is_explained(resume, Unix::from_ms(ms)));
        if passed_over { latest } else { latest.max(ms) }
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
            transition_ms = later(transition_ms, cell.since_ms(), Resume::explains);
            stamp_ms = later(stamp_ms, beat.heard_ms(cell), Resume::explains_stamp);
            // Online by a beat that the power took, or not offline yet: either way its grace is to
            // come.
            let gone = beat.has(StampFlags::LEFT);
            if cell.is_online() && beat.has(StampFlags::EXPIRED) && !gone {
                stamp.store(beat.without(StampFlags::EXPIRED), Ordering::Relaxed);
            }
        }
        if bits != 0 {
            online.fill(word as u32, bits);
        }
    }
    for chunk in 0..users.div_ceil(CHUNK_SLOTS) as usize {
        online.raise(chunk, LOOK | STATUSES | STAMPS_DIRTY | PUBLISHED_DIRTY);
    }
    Latest {
        transition: Unix::from_ms(transition_ms),
        stamp: Unix::from_ms(stamp_ms),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::presence::tests::at;
    use crate::presence::{Presence, Sweep, SweepContext};
    use crate::wire::User;

    const GRACE_MS: u64 = 300_000;

    fn open_at(dir: &Path, ms: u64) -> (Presence, OpenReport) {
        let options = StoreOptions {
            dir: dir.to_owned(),
            users_max: 1_000,
            offline_after_ms: 25_000,
            restart_grace_ms: GRACE_MS,
            shards: 1,
            memory: crate::presence::MemoryChoice::Off,
            boot_id: [1; 16],
        };
        Presence::open(&options, at(ms)).unwrap()
    }

    fn beat(presence: &Presence, id: &str, ms: u64) -> Slot {
        let slot = presence
            .intern(User::parse(id.as_bytes()).unwrap())
            .unwrap();
        presence.record_beat(slot, at(ms).unix, at(ms));
        slot
    }

    /// Publishes what a sweep finds at a time, and says how many are online then.
    fn online_after_sweep(presence: &Presence, ms: u64) -> u64 {
        let (mut sweep, mut out) = (Sweep::new(0, 1), Vec::new());
        let context = SweepContext {
            now: at(ms),
            offline_after_ms: 25_000,
            hold_expiries: true,
        };
        sweep.begin();
        assert!(sweep.slice(presence, context, u32::MAX, usize::MAX, &mut out));
        presence.check_invariants();
        presence.online()
    }

    /// A store with ann and bob online, bob since a moment ago; zoe has said goodbye.
    fn crashed(dir: &Path) {
        let (presence, _) = open_at(dir, 0);
        let [ann, _, zoe] = ["ann", "bob", "zoe"].map(|id| beat(&presence, id, 0));
        assert_eq!((ann, online_after_sweep(&presence, 0)), (Slot::new(0), 3));
        presence.record_leave(zoe, at(10).unix, at(10));
        beat(&presence, "bob", 20_000);
        assert_eq!(online_after_sweep(&presence, 20_000), 2);
    }

    #[test]
    fn a_step_back_that_no_turn_has_seen_makes_ids_doubtful_after_a_clean_stop_too() {
        let dir = tempfile::tempdir().unwrap();
        let (presence, _) = open_at(dir.path(), 0);
        beat(&presence, "ann", 10_000);
        let stopped = Now {
            mono: at(60_000).mono,
            unix: at(20_000).unix,
        };
        presence.close(stopped).unwrap();
        drop(presence);
        let (presence, report) = open_at(dir.path(), 70_000);
        assert!(report.clean);
        let believed = |ms| presence.resumable(at(ms).unix, at(70_000)).is_ok();
        let ids = [19_999, 20_000, 40_000, 60_000, 60_001].map(believed);
        assert_eq!(ids, [true, false, false, false, true]);
    }

    #[test]
    fn a_step_back_that_no_turn_has_seen_makes_ids_doubtful_behind_an_older_one_too() {
        let dir = tempfile::tempdir().unwrap();
        let (presence, _) = open_at(dir.path(), 0);
        let stepped = |mono_ms, unix_ms| Now {
            mono: at(mono_ms).mono,
            unix: at(unix_ms).unix,
        };
        presence.note_clock_step(at(30_000).unix, stepped(30_000, 10_000));
        // The clock says 100,000, and is stepped back behind the last turn of all.
        beat(&presence, "ann", 100_000);
        drop(presence);
        let (presence, report) = open_at(dir.path(), 60_000);
        assert_eq!(report.clock_behind_ms, 40_000);
        let believed = |ms| presence.resumable(at(ms).unix, at(200_000)).is_ok();
        let ids = [9_999, 20_000, 59_999, 60_000, 125_000, 125_001].map(believed);
        assert_eq!(ids, [true, false, true, false, false, true]);
    }

    #[test]
    fn after_a_long_outage_nobody_is_online_before_a_sign_of_life() {
        let dir = tempfile::tempdir().unwrap();
        crashed(dir.path());
        let boot_ms = 20_000 + GRACE_MS + 1;
        let (presence, report) = open_at(dir.path(), boot_ms);
        assert_eq!((report.online, report.outage), (0, Some((GRACE_MS + 1, 2))));
        assert_eq!(online_after_sweep(&presence, boot_ms + 1), 0);
        let state = |slot| presence.state(Slot::new(slot), at(boot_ms));
        for (slot, heard_ms) in [(0, 0), (1, 20_000)] {
            assert_eq!(
                state(slot).since,
                Some(at(boot_ms).unix),
                "so that a resume tells it"
            );
            assert_eq!(state(slot).last_active, Some(at(heard_ms).unix));
            assert!(presence.changed_since(Slot::new(slot), at(20_000).unix, at(boot_ms)));
        }
        assert_eq!(
            state(2).since,
            Some(at(20_000).unix),
            "zoe was offline before"
        );
        beat(&presence, "ann", boot_ms + 5);
        assert_eq!(online_after_sweep(&presence, boot_ms + 5), 1);
    }

    /// Killed when users.log says that a generation has begun, and no more.
    #[test]
    fn an_opening_that_was_cut_short_does_not_pass_for_a_run_after_an_outage() {
        let dir = tempfile::tempdir().unwrap();
        crashed(dir.path());
        let maps = ["stamps.map", "published.map"].map(|map| dir.path().join(map));
        let before = maps.each_ref().map(|map| std::fs::read(map).unwrap());
        let first_ms = 20_000 + GRACE_MS + 1;
        open_at(dir.path(), first_ms);
        for (map, bytes) in maps.iter().zip(before) {
            std::fs::write(map, bytes).unwrap();
        }
        let (presence, report) = open_at(dir.path(), first_ms + 10);
        assert_eq!(
            (report.online, report.outage),
            (0, Some((GRACE_MS + 11, 2)))
        );
        assert_eq!(online_after_sweep(&presence, first_ms + 11), 0);
    }

    #[test]
    fn who_was_heard_before_an_outage_and_never_told_is_not_online_by_a_clock_behind_later() {
        let dir = tempfile::tempdir().unwrap();
        crashed(dir.path());
        let (presence, _) = open_at(dir.path(), 20_000);
        beat(&presence, "eve", 20_000);
        drop(presence);
        let (presence, report) = open_at(dir.path(), 20_000 + GRACE_MS + 1);
        assert!(report.outage.is_some());
        drop(presence);
        let (presence, report) = open_at(dir.path(), 10_000);
        assert!(report.clock_behind_ms > 0);
        assert_eq!(online_after_sweep(&presence, 10_000), 0);
    }

    #[test]
    fn an_outage_is_measured_from_the_newest_sign_that_is_not_ahead() {
        // The newest stamp.
        let dir = tempfile::tempdir().unwrap();
        crashed(dir.path());
        assert_eq!(open_at(dir.path(), 20_000 + GRACE_MS).1.online, 2);
        // That start has written a header.
        let second_ms = 20_000 + 2 * GRACE_MS;
        let (presence, report) = open_at(dir.path(), second_ms);
        assert_eq!((report.online, report.outage), (2, None));
        // A stamp ahead of the clock says nothing, and makes nobody fresh.
        beat(&presence, "bob", second_ms + 10 * GRACE_MS);
        drop(presence);
        let third_ms = second_ms + GRACE_MS + 1;
        let (presence, report) = open_at(dir.path(), third_ms);
        assert_eq!(report.outage, Some((GRACE_MS + 1, 2)));
        assert_eq!(online_after_sweep(&presence, third_ms), 0);
    }

    #[test]
    fn a_header_from_the_future_is_a_clock_behind_and_no_outage() {
        let dir = tempfile::tempdir().unwrap();
        crashed(dir.path());
        open_at(dir.path(), 20_000).0.close(at(500_000)).unwrap();
        let (_, report) = open_at(dir.path(), 499_999);
        assert_eq!((report.online, report.outage), (2, None));
    }

    #[test]
    fn what_readers_were_told_is_known_to_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let (presence, _) = open_at(dir.path(), 0);
        assert_eq!(presence.away_ms_before(), 0);
        presence.note_told_back(61_500, at(5));
        presence.note_told_back(4_500, at(5));
        assert_eq!(presence.away_ms_before(), 0);
        drop(presence);
        // Until they are back, also to the start after that one.
        assert_eq!(open_at(dir.path(), 10).0.away_ms_before(), 61_500);
        let (presence, _) = open_at(dir.path(), 20);
        assert_eq!(presence.away_ms_before(), 61_500);
        presence.note_returned();
        presence.close(at(30)).unwrap();
        drop(presence);
        assert_eq!(open_at(dir.path(), 40).0.away_ms_before(), 0);
    }
}
