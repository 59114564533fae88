//! The store's files: a template with the chunk borders where they hurt, and copies of it.
//!
//! The template is made once a process and copied for each run: fillers take the slots between, so
//! that the users whom the runs are about sit on both sides of each border of a chunk, its last
//! slot included.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use greendot::presence::{MemoryChoice, Presence, StoreOptions};
use greendot::slot::{CHUNK_SLOTS, Slot};
use greendot::time::{Mono, Now, Unix};
use greendot::wire::User;

/// Borders of chunks that have users on both sides.
const BORDERS: u32 = 3;
/// Users before and after a border.
const BEFORE: u32 = 3;
const AFTER: u32 = 3;
/// Users who have no slot at the start.
const LATE: usize = 5;
/// How many of those the store has room for.
const ROOM: u32 = 4;

/// The wall clock when a run begins.
pub(crate) const EPOCH_MS: u64 = 1_764_009_600_000;

/// The users whom the runs are about, by name; the last [`LATE`] have no slot at the start.
pub(crate) fn users() -> Vec<String> {
    let known = (BORDERS * (BEFORE + AFTER)) as usize;
    (0..known + LATE).map(name).collect()
}

/// How many of [`users`] have a slot at the start.
pub(crate) fn known_users() -> usize {
    (BORDERS * (BEFORE + AFTER)) as usize
}

/// Slots in the template.
pub(crate) fn template_slots() -> u32 {
    BORDERS * CHUNK_SLOTS + AFTER
}

/// Most users of a run's store.
pub(crate) fn users_max() -> u32 {
    template_slots() + ROOM
}

/// Names of all kinds: short, long and escaped throughout, multi-byte, and with what means
/// something in a URL.
fn name(index: usize) -> String {
    match index % 6 {
        0 => format!("u{index}"),
        1 => format!("{index:\"<128}"),
        2 => format!("zoë {index}"),
        3 => format!("a/{index}%2F+?&=#"),
        4 => format!("\u{1F7E2}{index}"),
        _ => format!("{index:\\<128}"),
    }
}

pub(crate) fn options(
    dir: &Path,
    shards: u16,
    boot: u64,
    memory: MemoryChoice,
    settings: &greendot::engine::settings::Settings,
) -> StoreOptions {
    StoreOptions {
        dir: dir.to_owned(),
        users_max: users_max(),
        offline_after_ms: settings.offline_after_ms,
        restart_grace_ms: settings.restart_grace_ms,
        shards,
        memory,
        boot_id: u128::from(boot).to_le_bytes(),
    }
}

/// Memory where there is some, else the usual place for temporary files.
fn root() -> &'static Path {
    static ROOT: OnceLock<tempfile::TempDir> = OnceLock::new();
    ROOT.get_or_init(|| {
        let shm = Path::new("/dev/shm");
        let made = tempfile::Builder::new()
            .prefix("greendot-sim-")
            .tempdir_in(shm);
        made.or_else(|_| tempfile::tempdir())
            .expect("a folder for the runs' stores")
    })
    .path()
}

fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let dir = root().join("template");
        let now = Now {
            mono: Mono::default(),
            unix: Unix::from_ms(EPOCH_MS - 1_000),
        };
        let settings = greendot::engine::settings::Settings::tiny();
        let (presence, _) = Presence::open(&options(&dir, 1, 1, MemoryChoice::Off, &settings), now)
            .expect("a new store opens");
        let mut names = users().into_iter();
        for slot in 0..template_slots() {
            let into = slot % CHUNK_SLOTS;
            let border = (slot >= CHUNK_SLOTS && into < AFTER) || into >= CHUNK_SLOTS - BEFORE;
            let name = if border {
                names.next().expect("as many names as border slots")
            } else {
                format!("f{slot}")
            };
            let user = User::parse(name.as_bytes()).expect("a legal name");
            assert_eq!(
                presence
                    .intern(user)
                    .expect("room for the template")
                    .index(),
                slot
            );
        }
        presence.close(now).expect("the template is written");
        dir
    })
}

/// A folder for the memory of a run's store. None: there is no tmpfs here.
pub(crate) fn memory_root() -> Option<tempfile::TempDir> {
    let magic = rustix::fs::statfs(root()).ok()?.f_type as u64;
    let made = tempfile::tempdir_in(root()).expect("a folder for a memory");
    (magic & 0xffff_ffff == 0x0102_1994).then_some(made)
}

/// The memories in a folder.
pub(crate) fn memories(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).expect("the folder for memories");
    entries.flatten().map(|entry| entry.path()).collect()
}

pub(crate) fn remove_memories(root: &Path) {
    for memory in memories(root) {
        fs::remove_dir_all(memory).expect("a memory can be removed");
    }
}

/// The memories in a folder, which openings that were cut short have left: published.map is written
/// last.
pub(crate) fn cut_memories(root: &Path) {
    for memory in memories(root) {
        let path = memory.join("published.map");
        let mut bytes = fs::read(&path).expect("a memory's file");
        bytes[..PAGE_BYTES].fill(0);
        fs::write(path, bytes).expect("a memory's file");
    }
}

/// More than any file of a run's store has but for room at its end.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The files of a store.
pub(crate) const FILES: [&str; 3] = ["users.log", "stamps.map", "published.map"];

/// Pages in which the kernel writes files back; the cells begin on the second.
const PAGE_BYTES: usize = 4_096;
/// Where the records of users.log begin: on its second page, too.
const FIRST_RECORD: usize = PAGE_BYTES;
const PAGE_CELLS: u32 = PAGE_BYTES as u32 / 8;
pub(crate) const CHUNK_BYTES: usize = CHUNK_SLOTS as usize * 8;

/// The share of the pages that the kernel has written back by itself: most, few, all or none.
fn share(random: &mut Rng) -> f64 {
    [0.0, 0.1, 0.5, 0.9, 1.0][random.usize(0..5)]
}

/// A record of users.log: a length, a slot of four bytes, so many bytes of id, a checksum of four.
/// A length of 255 is the end of a user, and has no id.
struct Record<'l> {
    slot: u32,
    id: Option<&'l [u8]>,
    /// Where it ends.
    end: usize,
}

/// The records up to the first that is not whole.
fn records(log: &[u8]) -> impl Iterator<Item = Record<'_>> {
    let mut at = FIRST_RECORD;
    std::iter::from_fn(move || {
        let length = usize::from(*log.get(at)?);
        let (is_user, is_end) = (length != 0 && length != 255, length == 255);
        let id_bytes = if is_user { length } else { 0 };
        let record = log.get(at..at + 1 + 4 + id_bytes + 4)?;
        let (said, sum) = record.split_last_chunk()?;
        let whole = crc32c::crc32c(said) == u32::from_le_bytes(*sum);
        at += record.len();
        (whole && (is_user || is_end)).then(|| Record {
            slot: u32::from_le_bytes(said[1..5].try_into().expect("four bytes")),
            id: is_user.then(|| &said[5..]),
            end: at,
        })
    })
}

/// Where the records end that are whole in `written`; `as_is` has all.
fn end_of_whole(as_is: &[u8], written: &[u8]) -> usize {
    let bytes = as_is.iter().zip(written).skip(FIRST_RECORD);
    let same = FIRST_RECORD + bytes.take_while(|(one, other)| one == other).count();
    let ends = records(as_is).map(|record| record.end);
    let whole = ends.take_while(|end| *end <= same);
    whole.last().unwrap_or(FIRST_RECORD)
}

/// Of what was not written back, what a power cut left.
pub(crate) struct Kept {
    /// Pages of stamps.map.
    stamps: Vec<bool>,
    /// Pages of published.map.
    published: Vec<bool>,
}

impl Kept {
    /// Whether the slot's stamp is as it was when the power failed.
    pub(crate) fn stamp(&self, slot: Slot) -> bool {
        self.stamps[1 + (slot.index() / PAGE_CELLS) as usize]
    }

    /// Whether what is published of the slot is.
    pub(crate) fn published(&self, slot: Slot) -> bool {
        self.published[1 + (slot.index() / PAGE_CELLS) as usize]
    }
}

/// A folder with a store in it; removed when dropped.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Folder {
        Folder::copy_of(template())
    }

    pub(crate) fn copy_of(from: &Path) -> Folder {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let to = root().join(format!("{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&to).expect("a new folder");
        let folder = Folder(to);
        FILES.iter().for_each(|file| folder.take(from, file));
        folder
    }

    fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.0.join(file)).expect("a store's file")
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        fs::write(self.0.join(file), bytes).expect("a store's file");
    }

    /// Who of `names` has which slot, by users.log.
    pub(crate) fn slots_of(&self, names: &[String]) -> Vec<Option<Slot>> {
        let log = self.read("users.log");
        let mut owners = BTreeMap::new();
        for Record { slot, id, .. } in records(&log) {
            match id {
                Some(id) => owners.insert(slot, id),
                None => owners.remove(&slot),
            };
        }
        let slots: BTreeMap<&[u8], u32> = owners.iter().map(|(slot, id)| (*id, *slot)).collect();
        let slot_of = |name: &String| slots.get(name.as_bytes()).copied().map(Slot::new);
        names.iter().map(slot_of).collect()
    }

    /// Takes all pages of a file but that of the header from another folder; returns in how many
    /// chunks of a map they differ.
    pub(crate) fn take_cells(&self, from: &Path, file: &str) -> u64 {
        let as_is = fs::read(from.join(file)).expect("a store's file");
        let mut written = self.read(file);
        written.resize(as_is.len(), 0);
        let [is, was] = [&as_is, &written].map(|bytes| bytes[PAGE_BYTES..].chunks(CHUNK_BYTES));
        let differ = is.zip(was).filter(|(is, was)| is != was).count();
        written[PAGE_BYTES..].copy_from_slice(&as_is[PAGE_BYTES..]);
        self.write(file, &written);
        differ as u64
    }

    /// Takes the page of a file's header from another folder.
    pub(crate) fn take_header(&self, from: &Path, file: &str) {
        let as_is = fs::read(from.join(file)).expect("a store's file");
        let mut written = self.read(file);
        written[..PAGE_BYTES].copy_from_slice(&as_is[..PAGE_BYTES]);
        self.write(file, &written);
    }

    /// Takes all of a file from another folder, but for room at its end.
    pub(crate) fn take(&self, from: &Path, file: &str) {
        let from = File::open(from.join(file)).expect("a store's file");
        let mut bytes = Vec::new();
        let read = from.take(FILE_BYTES_MAX).read_to_end(&mut bytes);
        read.expect("a store's file");
        assert!(bytes.len() < FILE_BYTES_MAX as usize || bytes.last() == Some(&0));
        self.write(file, &bytes);
    }

    /// Takes what opening the store in another folder has written back: published.map, the headers
    /// of the other files, that users.log ends where its last whole record does, and that slots
    /// behind the last one have no stamps.
    pub(crate) fn take_opening(&self, from: &Path) {
        self.take_header(from, "users.log");
        self.take_header(from, "stamps.map");
        self.take(from, "published.map");
        let as_is = fs::read(from.join("users.log")).expect("a store's file");
        let mut log = self.read("users.log");
        let end = end_of_whole(&as_is, &log);
        log[end..].fill(0);
        self.write("users.log", &log);
        let slots = records(&as_is).map(|record| record.slot as usize + 1).max();
        let mut stamps = self.read("stamps.map");
        let unused = PAGE_BYTES + slots.unwrap_or(0) * 8;
        if let Some(unused) = stamps.get_mut(unused..) {
            unused.fill(0);
        }
        self.write("stamps.map", &stamps);
    }

    /// What a power cut leaves of this folder, of which `synced` is known to be on disk: the
    /// kernel may have written back any page of the maps by itself, and of what was appended to
    /// users.log, which leads, all, nothing, or so many bytes.
    pub(crate) fn cut(&self, synced: &Folder, random: &mut Rng) -> (Folder, Kept) {
        let left = Folder::copy_of(&synced.0);
        self.write_back_appended(&left, random);
        let share = share(random);
        let stamps = self.write_back_some("stamps.map", 0, &left, share, random);
        let published = self.write_back_some("published.map", 0, &left, share, random);
        (left, Kept { stamps, published })
    }

    /// This folder has been opened, and was as in `before`: makes it what an opening leaves that
    /// ends before published.map says that it was one. users.log leads; any page of the maps is as
    /// it was or is not.
    pub(crate) fn cut_opening(&self, before: &Folder, random: &mut Rng) {
        let share = share(random);
        for (file, first) in [("stamps.map", 0), ("published.map", 1)] {
            self.write_back_some(file, first, before, share, random);
            self.take(&before.0, file);
        }
    }

    /// Copies what was appended to users.log to `to`, up to some byte.
    fn write_back_appended(&self, to: &Folder, random: &mut Rng) {
        let (as_is, mut written) = (self.read("users.log"), to.read("users.log"));
        written.resize(as_is.len().max(written.len()), 0);
        // Behind what was synced there may be half a record of an earlier cut.
        let synced = end_of_whole(&as_is, &written);
        let end = end_of_whole(&as_is, &as_is);
        let torn = match random.u8(0..4) {
            0 => synced,
            1 => end,
            _ => random.usize(synced..=end),
        };
        written[synced..torn].copy_from_slice(&as_is[synced..torn]);
        to.write("users.log", &written);
    }

    /// Copies some pages of a file to `to`, from the first one that may be; returns which.
    fn write_back_some(
        &self,
        file: &str,
        first: usize,
        to: &Folder,
        share: f64,
        random: &mut Rng,
    ) -> Vec<bool> {
        let (as_is, mut written) = (self.read(file), to.read(file));
        // Room that the file was given since is on disk or not, which nobody can tell: it is zero.
        written.resize(as_is.len(), 0);
        let pages = as_is.chunks(PAGE_BYTES).zip(written.chunks_mut(PAGE_BYTES));
        let kept = pages.enumerate().map(|(page, (as_is, written))| {
            let kept = page >= first && random.f64() < share;
            if kept {
                written.copy_from_slice(as_is);
            }
            kept
        });
        let kept = kept.collect();
        to.write(file, &written);
        kept
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The same of a store that was in a memory in `root`, which is lost with it: any page of that
    /// may have been copied to this folder.
    pub(crate) fn cut_with_memory(
        &self,
        root: &Path,
        synced: &Folder,
        random: &mut Rng,
    ) -> (Folder, Kept) {
        let memory = memories(root).pop();
        let latest = memory.map(|memory| Folder::copy_of(&memory));
        let left = latest.as_ref().unwrap_or(self).cut(synced, random);
        remove_memories(root);
        left
    }

    /// Writes something into a cell of a slot that nobody has: the first `slots` are somebody's.
    pub(crate) fn harm_unused_cells(&self, slots: u32, random: &mut Rng) {
        let file = ["stamps.map", "published.map"][random.usize(0..2)];
        let path = self.0.join(file);
        let mut bytes = fs::read(&path).expect("a store's file");
        let capacity = (bytes.len() - PAGE_BYTES) as u32 / 8;
        let slot = random.u32(slots..capacity.min(slots + 8));
        let cell = match file {
            // Fresh for all times to come; online since the beginning of the run.
            "stamps.map" => (EPOCH_MS + 7 * 86_400_000) << 20,
            _ => EPOCH_MS << 8 | 1,
        };
        let at = PAGE_BYTES + slot as usize * 8;
        bytes[at..at + 8].copy_from_slice(&u64::to_le_bytes(cell));
        fs::write(&path, bytes).expect("a store's file");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
