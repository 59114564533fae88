//! The files of a store as they are found, before anything is written.
//!
//! Owns opening, locking and reading a header, and what counts as no file at all. Decides nothing
//! about the store.

use std::fs::{File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::fault::{StoreFault, StoreFaultKind};
use super::header::{HEADER_BYTES, Header, Kind};
use super::map::file_bytes;
use super::region::MappedFile;

/// Opens a file of the store, made if missing.
pub(crate) fn open_file(dir: &Path, kind: Kind) -> Result<(PathBuf, File), StoreFault> {
    let path = dir.join(kind.file_name());
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        // Who was seen when is nobody else's business.
        .mode(0o600)
        .open(&path);
    match file {
        Ok(file) => Ok((path, file)),
        Err(error) => Err(StoreFault::os(path, "open", error)),
    }
}

pub(crate) fn lock(path: &Path, file: &File) -> Result<(), StoreFault> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(StoreFault::new(
            StoreFaultKind::Locked,
            path.to_owned(),
            0,
            "a store that no process has open",
            "another process's lock",
        )),
        Err(TryLockError::Error(error)) => Err(StoreFault::os(path.to_owned(), "lock", error)),
    }
}

/// A file of the store as it is before anything is written.
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    file: File,
    pub(crate) bytes: u64,
    /// None: empty or nothing but zeros, so it was just made, now or by a process that was killed
    /// at once or lost its power.
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

    /// The same for a file that may be missing, or as good as missing.
    pub(crate) fn look(dir: &Path, kind: Kind) -> Result<Option<Found>, StoreFault> {
        let path = dir.join(kind.file_name());
        match path.try_exists() {
            Err(error) => Err(StoreFault::os(path, "look for", error)),
            Ok(false) => Ok(None),
            Ok(true) => {
                let (path, file) = open_file(dir, kind)?;
                Found::read(kind, path, file).map(|found| found.header.is_some().then_some(found))
            }
        }
    }

    /// The file that was found, or else one without a header.
    pub(crate) fn or_new(
        found: Option<Found>,
        dir: &Path,
        kind: Kind,
    ) -> Result<Found, StoreFault> {
        let new = |(path, file)| Found {
            path,
            file,
            bytes: 0,
            header: None,
        };
        found.map_or_else(|| open_file(dir, kind).map(new), Ok)
    }

    /// A map must be of the same store as users.log and as long as its header says.
    pub(crate) fn check_beside(&self, users: &Found) -> Result<(), StoreFault> {
        let (Some(header), Some(leader)) = (self.header, users.header) else {
            return Ok(());
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

    /// Maps the file, with `first` as its header if it has none.
    pub(crate) fn map(self, first: Header, reserved_bytes: u64) -> Result<MappedFile, StoreFault> {
        let path = self.path.clone();
        let map = || {
            if self.header.is_none() {
                std::os::unix::fs::FileExt::write_all_at(&self.file, &first.encode(), 0)?;
            }
            MappedFile::map(self.file, self.path, reserved_bytes)
        };
        map().map_err(|error| StoreFault::os(path, "map", error))
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
