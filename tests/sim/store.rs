//! The store's files: a template with the chunk borders where they hurt, and copies of it.
//!
//! The template is made once a process and copied for each run: fillers take the slots between, so
//! that the users whom the runs are about sit on both sides of each border of a chunk, its last
//! slot included.

use std::fs;
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

/// Pages in which the kernel writes files back; the cells begin on the second.
const PAGE_BYTES: usize = 4_096;
/// Where the records of users.log begin: on its second page, too.
const FIRST_RECORD: usize = PAGE_BYTES;
const PAGE_CELLS: u32 = PAGE_BYTES as u32 / 8;

/// Where the template's records end, which are in each users.log.
fn template_end() -> usize {
    static END: OnceLock<usize> = OnceLock::new();
    *END.get_or_init(|| {
        let log = fs::read(template().join("users.log")).expect("the template");
        let records = records(&log, (0, FIRST_RECORD));
        records.last().expect("the template has users").1
    })
}

/// Of each record of a users.log behind one, how many slots there are with it and where it ends: a
/// length, a slot of four bytes, so many bytes of id, a checksum of four. A length of 255 is the
/// end of a user, and has no id.
fn records(log: &[u8], (mut slots, mut at): (u32, usize)) -> Vec<(u32, usize)> {
    let mut ends = Vec::new();
    while log[at] != 0 {
        let length = usize::from(log[at]);
        let slot: [u8; 4] = log[at + 1..at + 5].try_into().expect("four bytes");
        let is_end = length == 255;
        slots += u32::from(!is_end && u32::from_le_bytes(slot) == slots);
        at += 1 + 4 + if is_end { 0 } else { length } + 4;
        ends.push((slots, at));
    }
    ends
}

/// How many slots there are with the records that are whole in `written`, and where these end;
/// `as_is` has all.
fn whole_records(as_is: &[u8], written: &[u8]) -> (u32, usize) {
    let template = (template_slots(), template_end());
    let bytes = as_is.iter().zip(written).skip(template.1);
    let same = bytes.take_while(|(one, other)| one == other).count();
    let whole = records(as_is, template)
        .into_iter()
        .take_while(|(_, end)| *end <= template.1 + same);
    whole.last().unwrap_or(template)
}

/// Of what was not written back, what a power cut left.
pub(crate) struct Kept {
    /// Slots whose records in users.log are whole.
    slots: u32,
    /// Pages of stamps.map.
    stamps: Vec<bool>,
}

impl Kept {
    /// Whether users.log knows the slot.
    pub(crate) fn knows(&self, slot: Slot) -> bool {
        slot.index() < self.slots
    }

    /// Whether the slot's stamp is as it was when the power failed.
    pub(crate) fn stamp(&self, slot: Slot) -> bool {
        self.stamps[1 + (slot.index() / PAGE_CELLS) as usize]
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
        for file in ["users.log", "stamps.map", "published.map"] {
            fs::copy(from.join(file), to.join(file)).expect("a copy of a store's file");
        }
        Folder(to)
    }

    /// Takes what opening the store in another folder has written back: published.map, the headers
    /// of the other files, and that users.log ends where its last whole record does.
    pub(crate) fn take_opening(&self, from: &Path) {
        for file in ["users.log", "stamps.map"] {
            let [as_is, mut written] =
                [from, &self.0].map(|dir| fs::read(dir.join(file)).expect("a store's file"));
            written[..PAGE_BYTES].copy_from_slice(&as_is[..PAGE_BYTES]);
            if file == "users.log" {
                let end = whole_records(&as_is, &written).1;
                written[end..].fill(0);
            }
            fs::write(self.0.join(file), written).expect("a store's file");
        }
        let file = "published.map";
        fs::copy(from.join(file), self.0.join(file)).expect("a copy of a store's file");
    }

    /// What a power cut leaves of this folder, of which `synced` is known to be on disk: the
    /// kernel may have written back any page of the maps by itself, and of what was appended to
    /// users.log, which leads, all, nothing, or so many bytes.
    pub(crate) fn cut(&self, synced: &Folder, random: &mut Rng) -> (Folder, Kept) {
        let left = Folder::copy_of(&synced.0);
        let slots = self.write_back_appended(&left, random);
        // Most of the pages, few, all or none.
        let share = [0.0, 0.1, 0.5, 0.9, 1.0][random.usize(0..5)];
        let stamps = self.write_back_some("stamps.map", &left, share, random);
        self.write_back_some("published.map", &left, share, random);
        (left, Kept { slots, stamps })
    }

    /// Copies what was appended to users.log to `to`, up to some byte; returns how many slots that
    /// makes.
    fn write_back_appended(&self, to: &Folder, random: &mut Rng) -> u32 {
        let path = |folder: &Folder| folder.0.join("users.log");
        let read = |folder: &Folder| fs::read(path(folder)).expect("a store's file");
        let (as_is, mut written) = (read(self), read(to));
        written.resize(as_is.len().max(written.len()), 0);
        // Behind what was synced there may be half a record of an earlier cut.
        let whole = |written: &[u8]| whole_records(&as_is, written);
        let ((_, synced), (_, end)) = (whole(&written), whole(&as_is));
        let torn = match random.u8(0..4) {
            0 => synced,
            1 => end,
            _ => random.usize(synced..=end),
        };
        written[synced..torn].copy_from_slice(&as_is[synced..torn]);
        let (slots, _) = whole(&written);
        fs::write(path(to), written).expect("a store's file");
        slots
    }

    /// Copies some pages of a file to `to`; returns which.
    fn write_back_some(&self, file: &str, to: &Folder, share: f64, random: &mut Rng) -> Vec<bool> {
        let read = |folder: &Folder| fs::read(folder.0.join(file)).expect("a store's file");
        let (as_is, mut written) = (read(self), read(to));
        // Room that the file was given since is on disk or not, which nobody can tell: it is zero.
        written.resize(as_is.len(), 0);
        let pages = as_is.chunks(PAGE_BYTES).zip(written.chunks_mut(PAGE_BYTES));
        let kept = pages.map(|(as_is, written)| {
            let kept = random.f64() < share;
            if kept {
                written.copy_from_slice(as_is);
            }
            kept
        });
        let kept = kept.collect();
        fs::write(to.0.join(file), written).expect("a store's file");
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
        for memory in memories(root) {
            fs::remove_dir_all(memory).expect("a memory can be removed");
        }
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
