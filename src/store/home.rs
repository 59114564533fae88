//! Where a store's cells are at home: in the folder's own files, or in a memory that these follow.
//!
//! Owns how an opening finds the latest state, where it puts the cells, and the copying of the
//! folder's files into a new memory. What a memory is, is in memory.rs.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, fallocate};

use super::behind::Behind;
use super::fault::{StoreFault, StoreFaultKind};
use super::found::{Found, Made};
use super::header::{FileId, Home, Kind};
use super::memory::{self, Look, MemoryChoice};
use super::open::os;
use super::region::{MappedFile, PAGE_BYTES};

/// Bytes copied into a memory at once.
const COPY_BYTES: u64 = 1 << 20;

/// What has the latest state.
#[expect(clippy::large_enum_variant, reason = "there is one, at a start")]
pub(crate) enum Latest {
    /// A memory with these files: users.log, stamps.map, published.map.
    InMemory([Found; 3]),
    InFolder {
        /// It was in a memory that is gone, as after a power cut.
        memory_lost: bool,
    },
}

/// Where the cells of this run will be.
#[expect(clippy::large_enum_variant, reason = "there is one, at a start")]
pub(crate) enum Place {
    /// In the folder's own files, and why, where a memory was wanted.
    Files(String),
    /// In a memory that is to be made in this folder.
    New(PathBuf),
    /// In the memory whose files were found: these are those of the folder that follows it.
    Continued([Option<Found>; 3]),
}

/// A memory that has just been made.
pub(crate) struct NewMemory {
    pub(crate) files: [File; 3],
    pub(crate) made: Made,
}

/// What has the latest state: the header that is written last says so.
///
/// Errors: the memory that it names does not continue this folder.
pub(crate) fn find(users: &Found, published: &Option<Found>) -> Result<Latest, StoreFault> {
    let in_folder = |memory_lost| Ok(Latest::InFolder { memory_lost });
    let counts = published.as_ref().unwrap_or(users);
    let (Some(says), Some(leader)) = (counts.header, users.header) else {
        return in_folder(false);
    };
    let Home::Memory(path) = &says.home else {
        return in_folder(false);
    };
    if says.clean {
        return in_folder(false);
    }
    let folder = folder_id(users)?;
    match memory::look(path.as_path(), &says, folder)? {
        Look::Gone | Look::InUse => in_folder(true),
        Look::Continues(files) if says.generation == leader.generation => {
            Ok(Latest::InMemory(files))
        }
        Look::Continues(_) => Err(StoreFault::new(
            StoreFaultKind::OtherMemory,
            path.as_path().to_owned(),
            0,
            format!("no memory older than generation {}", leader.generation),
            format!("generation {}", says.generation),
        )),
    }
}

fn folder_id(users: &Found) -> Result<FileId, StoreFault> {
    memory::id_of(&users.file).map_err(os("look at", &users.path))
}

/// Where the cells of a folder that has the latest state shall be, and which memories it does not
/// need any more.
///
/// Errors: a folder for the memory was named and will not do, or there is a memory that is newer
/// than this folder.
pub(crate) fn choose(
    choice: &MemoryChoice,
    dir: &Path,
    files: [Option<&Found>; 3],
) -> Result<(Place, Vec<PathBuf>), StoreFault> {
    let bytes = files.into_iter().flatten().map(|found| found.bytes).sum();
    let place = match memory::choose(choice, dir, bytes)? {
        Ok(root) => Place::New(root),
        Err(why) => Place::Files(why),
    };
    let mut left_over = Vec::new();
    if let Some(users) = files[0]
        && let Some(leader) = &users.header
    {
        let folder = folder_id(users)?;
        let before = match &leader.home {
            Home::Memory(path) => path.as_path().parent(),
            Home::Files => None,
        };
        let new = match &place {
            Place::New(root) => Some(root.as_path()),
            _ => None,
        };
        let roots = [before, new.filter(|new| before != Some(*new))];
        for root in roots.into_iter().flatten() {
            left_over.extend(memory::left_over(root, leader, folder)?);
        }
    }
    Ok((place, left_over))
}

/// Removes memories that nobody needs any more.
pub(crate) fn remove(left_over: &[PathBuf]) {
    for path in left_over {
        let shown = path.display();
        match memory::remove(path) {
            Ok(()) => tracing::info!("removed {shown}, which the store does not need any more"),
            Err(error) => tracing::warn!(%error, "{shown} could not be removed"),
        }
    }
}

/// Makes a memory whose files, still empty, have room for so many bytes each.
///
/// Errors: the system's; nothing is left of it then.
pub(crate) fn make(path: &Path, bytes: [u64; 3]) -> io::Result<NewMemory> {
    let mut made = Made::default();
    let files = memory::make(path, &mut made)?;
    for (file, bytes) in files.iter().zip(bytes) {
        fallocate(file, FallocateFlags::empty(), 0, bytes.max(1))?;
    }
    Ok(NewMemory { files, made })
}

/// Copies a file of the folder, mapped, into one of a memory, with address space for so many bytes;
/// the former follows from here on.
///
/// Errors: the system's, also that the tmpfs has no room: every page has its memory from here on.
pub(crate) fn copy_into(
    folder: MappedFile,
    into: File,
    dir: &Path,
    kind: Kind,
    reserved_bytes: u64,
) -> io::Result<MappedFile> {
    let bytes = folder.len_bytes();
    into.set_len(bytes)?;
    let mut memory = MappedFile::map(into, dir.join(kind.file_name()), reserved_bytes)?;
    let path = folder.path().to_owned();
    let follower = folder.try_clone_file()?;
    let behind = Behind::new(follower, path, first_page(&folder))?;
    let next = AtomicU64::new(0);
    let copy = || loop {
        let at = next.fetch_add(COPY_BYTES, Ordering::Relaxed);
        if at >= bytes {
            return;
        }
        let length = COPY_BYTES.min(bytes - at);
        // SAFETY: this process is still opening the store, and nobody else has it.
        let from = unsafe { folder.bytes_at(at, length as usize) };
        // SAFETY: as above, the memory is nobody else's, and no two threads have the same `at`.
        unsafe { memory.write_at(at, from) };
        behind.know(at, from);
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    std::thread::scope(|scope| {
        for _ in 1..cores.min(bytes.div_ceil(COPY_BYTES)) {
            scope.spawn(copy);
        }
        copy();
    });
    behind.promise(bytes)?;
    drop(folder);
    behind.leave_page_cache();
    memory.lead(behind);
    Ok(memory)
}

/// Maps a file of a memory that is continued: it, its path, and how much of it counts. The folder's
/// file follows it from here on.
///
/// Errors: the system's.
pub(crate) fn continue_with(
    (file, path, bytes): (File, PathBuf, u64),
    (follower, follower_path): (File, &Path),
    reserved_bytes: u64,
) -> io::Result<MappedFile> {
    file.set_len(bytes)?;
    let mut memory = MappedFile::map(file, path, reserved_bytes)?;
    let behind = Behind::new(follower, follower_path.to_owned(), first_page(&memory))?;
    behind.promise(memory.len_bytes())?;
    memory.lead(behind);
    Ok(memory)
}

/// As it is; zeros where the file has none.
fn first_page(file: &MappedFile) -> [u8; PAGE_BYTES as usize] {
    let mut page = [0; PAGE_BYTES as usize];
    let bytes = file.len_bytes().min(PAGE_BYTES) as usize;
    // SAFETY: this process is still opening the store, and nobody else has it.
    page[..bytes].copy_from_slice(unsafe { file.bytes_at(0, bytes) });
    page
}
