//! The files of a store that nobody has open, read whole.
//!
//! Owns the reading under the folder's lock. Changes no byte, makes no file.

use std::io;
use std::path::Path;

use super::fault::StoreFault;
use super::header::STORE_FILES;
use super::memory::MemoryChoice;
use super::open::{Checked, Last, check};

/// The bytes of the three files, and what their headers say.
pub(crate) struct Closed {
    pub(crate) users: Vec<u8>,
    pub(crate) stamps: Vec<u8>,
    pub(crate) published: Vec<u8>,
    /// Bytes of users.log that were on disk for sure.
    pub(crate) synced_bytes: u64,
    pub(crate) last: Last,
    /// Holds the folder's lock.
    pub(crate) locked: Checked,
}

/// Reads a folder, which stays locked. A map that is missing is empty.
///
/// Errors: there is no store, another process has it open, its latest state is in a memory, a
/// header is not good, or the system's.
pub(crate) fn read(dir: &Path) -> Result<Closed, StoreFault> {
    let paths = STORE_FILES.map(|name| dir.join(name));
    let os = |path: &Path, error| StoreFault::os(path.to_owned(), "read", error);
    if let Err(error) = std::fs::metadata(&paths[0]) {
        return Err(os(&paths[0], error));
    }
    let checked = check(dir, [0; 16], &MemoryChoice::Off)?;
    checked.check_alone()?;
    let bytes = |path: &Path| match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(|error| os(path, error)),
    };
    Ok(Closed {
        users: bytes(&paths[0])?,
        stamps: bytes(&paths[1])?,
        published: bytes(&paths[2])?,
        synced_bytes: checked.synced_bytes(),
        last: checked.last,
        locked: checked,
    })
}
