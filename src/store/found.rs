//! The files of a store as they are found, before anything is written.
//!
//! Owns opening, locking and reading a header, what counts as no file at all, and the removal of
//! what a refused opening has made. Decides nothing about the store.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::fault::{StoreFault, StoreFaultKind};
use super::header::{FileId, GENERATION_AT, HEADER_BYTES, Header, Kind};
use super::map::file_bytes;

/// Tries to lock a file whose name stays: each lost one means that another process has removed it
/// in between, as a refused opening does.
const LOCK_TRIES: u32 = 16;

/// How long somebody else's lock is waited for: 100 looks, one each 10 ms. A lock outlives its
/// store's close for as long as a child of that process lives between fork and exec, and its
/// process's `kill -9` until the kernel has taken its maps apart.
const LOCK_LOOKS: u32 = 100;
const LOCK_LOOK_EVERY: Duration = Duration::from_millis(10);

/// What an opening has made, which goes again unless the opening comes to its end.
#[derive(Debug, Default)]
pub(crate) struct Made {
    files: Vec<PathBuf>,
    /// The deepest first.
    dirs: Vec<PathBuf>,
}

impl Made {
    /// Makes a folder, and those above it, where there is none.
    pub(crate) fn dir(&mut self, dir: &Path) -> io::Result<()> {
        let missing = dir.ancestors().filter(|dir| !dir.as_os_str().is_empty());
        let missing: Vec<PathBuf> = missing
            .take_while(|dir| !dir.exists())
            .map(Path::to_owned)
            .collect();
        fs::create_dir_all(dir)?;
        self.dirs = missing;
        Ok(())
    }

    /// A folder that has just been made.
    pub(crate) fn made_dir(&mut self, path: PathBuf) {
        self.dirs.push(path);
    }

    pub(crate) fn file(&mut self, path: PathBuf) {
        self.files.push(path);
    }

    /// Whether this file was made.
    pub(crate) fn has(&self, path: &Path) -> bool {
        self.files.iter().any(|file| file == path)
    }

    /// It stays.
    pub(crate) fn keep(&mut self) {
        self.files.clear();
        self.dirs.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // What is not empty any more is somebody else's too, and stays.
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
        for dir in &self.dirs {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// What tells a file from others, by what the system says of it.
pub(crate) fn file_id(found: &fs::Metadata) -> FileId {
    FileId {
        device: found.dev(),
        inode: found.ino(),
    }
}

/// A file of the store, for reading and writing.
fn options() -> fs::OpenOptions {
    let mut options = File::options();
    // Who was seen when is nobody else's business.
    options.read(true).write(true).mode(0o600);
    options
}

/// Opens a file of the store, made if missing; whether it was.
fn open_or_make(path: &Path) -> io::Result<(File, bool)> {
    match options().create_new(true).open(path) {
        Ok(file) => Ok((file, true)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            options().open(path).map(|file| (file, false))
        }
        Err(error) => Err(error),
    }
}

/// Makes a new map, empty, under another name than its own: it gets that once it is whole.
pub(crate) fn make(dir: &Path, kind: Kind) -> Result<(PathBuf, File), StoreFault> {
    let path = dir.join(format!("{}.new", kind.file_name()));
    match options().create(true).truncate(true).open(&path) {
        Ok(file) => Ok((path, file)),
        Err(error) => Err(StoreFault::os(path, "make", error)),
    }
}

/// Locks a file, and waits a second for one who is about to let go of it.
///
/// Errors: somebody has it still, or the system refuses.
pub(crate) fn try_lock(file: &File) -> Result<(), TryLockError> {
    for _ in 1..LOCK_LOOKS {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_LOOK_EVERY),
            locked => return locked,
        }
    }
    file.try_lock()
}

/// Opens users.log and locks it, made if missing: it stands for the whole folder.
///
/// Errors: another process has it, or the system refuses something.
pub(crate) fn lock(dir: &Path, made: &mut Made) -> Result<(PathBuf, File), StoreFault> {
    let path = dir.join(Kind::Users.file_name());
    let os = |doing| {
        let path = path.clone();
        move |error| StoreFault::os(path, doing, error)
    };
    for _ in 0..LOCK_TRIES {
        let (file, new) = match open_or_make(&path) {
            // Removed between the two tries to open it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && dir.exists() => continue,
            opened => opened.map_err(os("open"))?,
        };
        match try_lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(locked(path)),
            Err(TryLockError::Error(error)) => return Err(os("lock")(error)),
        }
        let ours = file.metadata().map_err(os("look at"))?;
        let named = fs::metadata(&path);
        if named.is_ok_and(|named| file_id(&named) == file_id(&ours)) {
            if new {
                made.file(path.clone());
            }
            return Ok((path, file));
        }
    }
    Err(locked(path))
}

fn locked(path: PathBuf) -> StoreFault {
    let expected = "a store that no process has open";
    let kind = StoreFaultKind::Locked;
    StoreFault::new(kind, path, 0, expected, "another process's lock")
}

/// A file of the store as it is before anything is written.
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) bytes: u64,
    /// None: empty or nothing but zeros.
    pub(crate) header: Option<Header>,
}

impl Found {
    /// Reads the header of a file and checks it.
    pub(crate) fn read(kind: Kind, path: PathBuf, mut file: File) -> Result<Found, StoreFault> {
        let mut start = Vec::with_capacity(HEADER_BYTES);
        let mut read = || {
            let bytes = file.metadata()?.len();
            (&mut file)
                .take(HEADER_BYTES as u64)
                .read_to_end(&mut start)?;
            let blank = start.iter().all(|byte| *byte == 0) && is_zero(&mut file)?;
            io::Result::Ok((bytes, blank))
        };
        let (bytes, blank) = read().map_err(|error| StoreFault::os(path.clone(), "read", error))?;
        let header = match blank {
            true => None,
            false => Some(
                Header::decode(kind, &start)
                    .map_err(|fault| StoreFault::header(path.clone(), kind, fault))?,
            ),
        };
        Ok(Found {
            path,
            file,
            bytes,
            header,
        })
    }

    /// The same for a map, which may be missing.
    pub(crate) fn look(dir: &Path, kind: Kind) -> Result<Option<Found>, StoreFault> {
        let path = dir.join(kind.file_name());
        match options().open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreFault::os(path, "open", error)),
            Ok(file) => Found::read(kind, path, file).map(Some),
        }
    }

    /// A map must be of the same store as users.log, of the same time, and as long as its header
    /// says.
    pub(crate) fn check_beside(&self, kind: Kind, users: &Found) -> Result<(), StoreFault> {
        let Some(leader) = users.header else {
            return Ok(());
        };
        let Some(header) = self.header else {
            // No opening leaves a map without a header under its own name.
            return Err(StoreFault::new(
                StoreFaultKind::Truncated,
                self.path.clone(),
                0,
                format!("the header of {}", kind.file_name()),
                match self.bytes {
                    0 => "an empty file",
                    _ => "nothing but zeros",
                },
            ));
        };
        if header.store_id != leader.store_id {
            return Err(StoreFault::new(
                StoreFaultKind::OtherStore,
                self.path.clone(),
                16,
                format!("store id {:016x} as in users.log", leader.store_id),
                format!("{:016x}", header.store_id),
            ));
        }
        let expected = file_bytes(header.capacity);
        if header.capacity > 0 && self.bytes < expected {
            return Err(StoreFault::new(
                StoreFaultKind::Truncated,
                self.path.clone(),
                self.bytes,
                format!("{expected} bytes for {} slots", header.capacity),
                "the end of the file",
            ));
        }
        Ok(())
    }

    /// Its header may follow that of the file before it, which is written first at each opening: of
    /// the same generation, or one behind where an opening was cut short.
    pub(crate) fn check_follows(
        &self,
        before: Header,
        before_name: &str,
    ) -> Result<(), StoreFault> {
        let Some(header) = self.header else {
            return Ok(());
        };
        let (this, leads) = (header.generation, before.generation);
        let same = this == leads && header.life == before.life;
        if same || this.checked_add(1) == Some(leads) {
            return Ok(());
        }
        Err(StoreFault::new(
            StoreFaultKind::OtherTime,
            self.path.clone(),
            GENERATION_AT,
            format!(
                "generation {leads}, life {:016x} as in {before_name}",
                before.life
            ),
            format!("generation {this}, life {:016x}", header.life),
        ))
    }
}

/// Whether what is left to read is nothing but zeros.
fn is_zero(file: &mut File) -> io::Result<bool> {
    let mut buffer = [0; 16 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(true),
            bytes if buffer[..bytes].iter().any(|byte| *byte != 0) => return Ok(false),
            _ => {}
        }
    }
}
