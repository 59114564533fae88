//! A memory: a folder on a tmpfs that has a store's three files while a server runs, so that no
//! store into a cell ever waits for a disk. It outlives the process, and the next one continues it.
//!
//! Owns where one may be, its names and permissions, how it is made, looked for and removed. What
//! is in its files is as everywhere (header.rs). Never writes into the data folder.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::fault::{StoreFault, StoreFaultKind};
use super::found::{Found, Made, file_id, try_lock};
use super::header::{FileId, Header, Kind, MemoryPath, STORE_FILES};

/// Where such memory is usually found.
const USUAL: &str = "/dev/shm";
/// What statfs(2) says of a tmpfs.
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// Room that a memory needs however small the store is: it shall grow.
const ROOM_BYTES_MIN: u64 = 64 << 20;
/// The last of the users whom nobody logs in as, by systemd's rules (SYSTEM_UID_MAX).
const SYSTEM_UID_MAX: u32 = 999;
const NAME: &str = "greendot";
const KINDS: [Kind; 3] = [Kind::Users, Kind::Stamps, Kind::Published];

/// Where the cells of a running server shall be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum MemoryChoice {
    /// In a memory if there is one that outlives the process, else in the data folder's files.
    Auto,
    /// In the data folder's files, mapped.
    #[default]
    Off,
    /// In a memory in this folder, which must be on a tmpfs.
    In(PathBuf),
}

/// Where a memory is to be made; or why in none, where one was wanted.
pub(crate) type Root = Result<PathBuf, String>;

/// Chooses for a store in `dir` whose files have so many bytes.
///
/// Errors: a folder that was named will not do.
pub(crate) fn choose(
    choice: &MemoryChoice,
    dir: &Path,
    store_bytes: u64,
) -> Result<Root, StoreFault> {
    let needed = room_for(store_bytes);
    match choice {
        MemoryChoice::Off => Ok(Err(String::new())),
        MemoryChoice::Auto if is_tmpfs(dir) => {
            Ok(Err("the data folder is in memory itself".to_owned()))
        }
        MemoryChoice::Auto => Ok(match goes_with_the_process() {
            Some(why) => Err(why),
            None => suits(Path::new(USUAL), needed),
        }),
        MemoryChoice::In(root) => match suits(root, needed) {
            Ok(root) => Ok(Ok(root)),
            Err(why) => Err(StoreFault::new(
                StoreFaultKind::NoMemory,
                root.clone(),
                0,
                "a folder on a tmpfs with room for the store",
                why,
            )),
        },
    }
}

/// Why the memory of the store in `dir` can not be in a folder; None: it can.
pub fn memory_fault(root: &Path, dir: &Path) -> Option<String> {
    let bytes = |name: &&str| fs::metadata(dir.join(name)).map_or(0, |file| file.len());
    let store_bytes = STORE_FILES.iter().map(bytes).sum();
    suits(root, room_for(store_bytes)).err()
}

/// Bytes that a store of so many needs in a memory: it shall grow.
fn room_for(store_bytes: u64) -> u64 {
    store_bytes.saturating_mul(2).max(ROOM_BYTES_MIN)
}

/// Why what is in /dev/shm may not outlive this process.
fn goes_with_the_process() -> Option<String> {
    let marks = ["/.dockerenv", "/run/.containerenv"];
    let mark = marks.into_iter().find(|mark| Path::new(mark).exists());
    let container = |is: &str| {
        Some(format!(
            "{is}, so this may be a container, whose {USUAL} goes with it"
        ))
    };
    let uid = rustix::process::geteuid().as_raw();
    match mark {
        Some(mark) => container(&format!("{mark} is there")),
        None if std::env::var_os("container").is_some() => {
            container("the variable container is set")
        }
        None if std::process::id() == 1 => container("this is process 1"),
        // A log-out, or the end of a unit with DynamicUser, removes all that such a user has there.
        None if uid > SYSTEM_UID_MAX => Some(format!(
            "user {uid} is no system user, so systemd may empty {USUAL} of what is theirs"
        )),
        None => None,
    }
}

/// Whether a memory of so many bytes may be made in a folder: the folder, all of whose links are
/// followed; or why not.
fn suits(root: &Path, needed: u64) -> Root {
    let shown = root.display();
    let root = fs::canonicalize(root).map_err(|error| format!("{shown}: {error}"))?;
    if !is_tmpfs(&root) {
        return Err(format!("{shown} is not on a tmpfs"));
    }
    let stat = rustix::fs::statvfs(&root).map_err(|error| format!("{shown}: {error}"))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    // A mount without a limit of its own says that it has no blocks.
    if stat.f_blocks > 0 && free < needed {
        return Err(format!(
            "{shown} has {} MiB free, and {} are needed",
            free >> 20,
            needed >> 20
        ));
    }
    match crate::cgroup::memory_max() {
        Some(limit) if needed > limit / 2 => Err(format!(
            "the memory limit of the control group is {} MiB, and {} are needed",
            limit >> 20,
            needed >> 20
        )),
        _ => Ok(root),
    }
}

/// Whether a folder is in memory.
pub fn is_tmpfs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type as u64 & 0xffff_ffff == TMPFS_MAGIC)
}

/// The folder of a memory.
///
/// Errors: its path does not fit into a header.
pub(crate) fn path_in(root: &Path, store_id: u64, life: u64) -> Result<MemoryPath, StoreFault> {
    let path = root.join(format!("{NAME}-{store_id:016x}-{life:016x}"));
    MemoryPath::new(&path).ok_or_else(|| {
        let (kind, found) = (StoreFaultKind::NoMemory, "a longer one");
        StoreFault::new(kind, path, 0, "a path of at most 247 bytes", found)
    })
}

/// Makes a memory's folder and its three files, empty, nobody else's, the first of them locked;
/// `made` has them removed again unless it is told to keep them.
///
/// Errors: the system's.
pub(crate) fn make(path: &Path, made: &mut Made) -> io::Result<[File; 3]> {
    DirBuilder::new().mode(0o700).create(path)?;
    made.made_dir(path.to_owned());
    let mut make = |kind: Kind| {
        let path = path.join(kind.file_name());
        let file = open_options().create_new(true).mode(0o600).open(&path)?;
        made.file(path);
        io::Result::Ok(file)
    };
    let files = [
        make(Kind::Users)?,
        make(Kind::Stamps)?,
        make(Kind::Published)?,
    ];
    files[0].try_lock().map_err(io::Error::from)?;
    Ok(files)
}

/// Removes a memory. What else is in its folder stays, and the folder with it.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let gone = |removed: io::Result<()>| match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    };
    for kind in KINDS {
        gone(fs::remove_file(path.join(kind.file_name())))?;
    }
    gone(fs::remove_dir(path))
}

fn open_options() -> fs::OpenOptions {
    let mut options = File::options();
    options.read(true).write(true);
    options.custom_flags(libc::O_NOFOLLOW);
    options
}

/// What was found where a memory should be.
#[expect(clippy::large_enum_variant, reason = "there is one, at a start")]
pub(crate) enum Look {
    /// Nothing, or a folder that has lost its files.
    Gone,
    /// A memory that continues this folder: users.log, stamps.map and published.map, the first of
    /// them locked.
    Continues([Found; 3]),
    /// One that a living process has, for another folder: this one is a copy.
    InUse,
}

/// Looks for the memory of a folder. `says`: the header that names it; `folder`: what the folder's
/// users.log is.
///
/// Errors: there is one that does not continue this folder, or is damaged, or not ours.
pub(crate) fn look(path: &Path, says: &Header, folder: FileId) -> Result<Look, StoreFault> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Look::Gone),
        found => found.map_err(|error| StoreFault::os(path.to_owned(), "look at", error))?,
    };
    let refused = |expected: &str, found: String| {
        let kind = StoreFaultKind::OtherMemory;
        StoreFault::new(kind, path.to_owned(), 0, expected, found)
    };
    let ours = rustix::process::geteuid().as_raw();
    let on_tmpfs = is_tmpfs(path);
    if !found.is_dir() || found.uid() != ours || found.mode() & 0o077 != 0 || !on_tmpfs {
        let place = if on_tmpfs { "" } else { ", on no tmpfs" };
        let (mode, uid) = (found.mode(), found.uid());
        return Err(refused(
            "the store's memory: a folder on a tmpfs that only its owner may use, who runs this",
            format!("mode {mode:o} of user {uid}{place}"),
        ));
    }
    let mut files = Vec::with_capacity(KINDS.len());
    for kind in KINDS {
        let path = path.join(kind.file_name());
        match open_options().open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Look::Gone),
            Err(error) => return Err(StoreFault::os(path, "open", error)),
            Ok(file) => files.push((kind, path, file)),
        }
    }
    let locked = matches!(try_lock(&files[0].2), Err(TryLockError::WouldBlock));
    let read = |(kind, path, file)| Found::read(kind, path, file);
    let files = files.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let Ok(files) = <[Found; 3]>::try_from(files) else {
        return Ok(Look::Gone);
    };
    let leader = files[0].header;
    if locked && leader.is_none_or(|leader| leader.continues != folder) {
        return Ok(Look::InUse);
    }
    let expected = identity(says, folder);
    let other = files.iter().find_map(|file| match &file.header {
        Some(header) if identity(header, header.continues) == expected => None,
        Some(header) => Some(identity(header, header.continues)),
        None => Some("nothing but zeros".to_owned()),
    });
    match other {
        None if !locked => Ok(Look::Continues(files)),
        None => Err(refused(
            "a memory that no process has open",
            "another process's lock".to_owned(),
        )),
        Some(found) => Err(refused(&format!("the memory of {expected}"), found)),
    }
}

/// What a memory and its folder must agree on, in words.
fn identity(header: &Header, folder: FileId) -> String {
    format!(
        "store {:016x}, generation {}, life {:016x}, of the folder whose users.log is inode {} on \
         device {}",
        header.store_id, header.generation, header.life, folder.inode, folder.device
    )
}

/// Memories in `root` of this store that its folder, which has the latest state, does not need:
/// what an opening left that was cut short, and what a close could not remove.
///
/// Errors: one is newer than the folder, which an older copy was put in the place of.
pub(crate) fn left_over(
    root: &Path,
    leader: &Header,
    folder: FileId,
) -> Result<Vec<PathBuf>, StoreFault> {
    let prefix = format!("{NAME}-{:016x}-", leader.store_id);
    let Ok(entries) = fs::read_dir(root) else {
        return Ok(Vec::new());
    };
    let ours = |name: &OsStr| name.to_string_lossy().starts_with(&prefix);
    let mut left_over = Vec::new();
    for entry in entries.flatten().filter(|entry| ours(&entry.file_name())) {
        let path = entry.path();
        match leader_of(&path, folder) {
            Some(found) if found.generation > leader.generation => {
                return Err(StoreFault::new(
                    StoreFaultKind::OtherMemory,
                    path,
                    0,
                    format!("no memory newer than generation {}", leader.generation),
                    identity(&found, found.continues),
                ));
            }
            Some(_) => left_over.push(path),
            None => tracing::warn!(
                "{} is a memory of another copy of this store; left alone",
                path.display()
            ),
        }
    }
    Ok(left_over)
}

/// The header of the users.log of a memory that continues this folder, which is locked by us.
fn leader_of(path: &Path, folder: FileId) -> Option<Header> {
    let found = fs::symlink_metadata(path).ok()?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return None;
    }
    let users = path.join(Kind::Users.file_name());
    let file = open_options().open(&users).ok()?;
    let found = Found::read(Kind::Users, users, file).ok()?;
    found.header.filter(|header| header.continues == folder)
}

/// What a file is by its open handle.
pub(crate) fn id_of(file: &File) -> io::Result<FileId> {
    file.metadata().map(|found| file_id(&found))
}
