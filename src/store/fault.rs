//! Why a store could not be opened, in words that say what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::header::{CRC_AT, HeaderFault, Kind, VERSION};
use super::record::RecordFault;

/// Why a store could not be opened. Display names file, offset, expected, found and what to do.
#[derive(Debug)]
pub struct StoreFault {
    kind: StoreFaultKind,
    path: PathBuf,
    offset: u64,
    expected: String,
    found: String,
    source: Option<io::Error>,
}

/// The kinds of [`StoreFault`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreFaultKind {
    /// Another process has the store open.
    Locked,
    /// The system refused something; see the error's source.
    Os,
    /// The file is not what its name says.
    Foreign,
    /// The file is of a version that this program does not know.
    Version,
    /// The file is shorter than it was.
    Truncated,
    /// A header's checksum is wrong.
    HeaderDamaged,
    /// Two files are of different stores.
    OtherStore,
    /// Two files are of one store at different times.
    OtherTime,
    /// The latest state is not in the folder but in a memory.
    InMemory,
    /// A memory does not continue the folder that names it.
    OtherMemory,
    /// A memory cannot be where it is wanted.
    NoMemory,
    /// A record of users.log is damaged that had been synced, or has others behind it.
    RecordDamaged,
    /// webhooks.pos is damaged, or none.
    PositionsDamaged,
    /// The maps are there, users.log is not.
    Missing,
    /// `users_max` is less than the users known.
    TooManyUsers,
}

impl StoreFault {
    pub(crate) fn new(
        kind: StoreFaultKind,
        path: PathBuf,
        offset: u64,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> StoreFault {
        StoreFault {
            kind,
            path,
            offset,
            expected: expected.into(),
            found: found.into(),
            source: None,
        }
    }

    pub(crate) fn os(path: PathBuf, doing: &'static str, error: io::Error) -> StoreFault {
        let found = error.to_string();
        StoreFault {
            kind: StoreFaultKind::Os,
            path,
            offset: 0,
            expected: format!("to {doing} it"),
            found,
            source: Some(error),
        }
    }

    pub(crate) fn record(path: PathBuf, fault: &RecordFault) -> StoreFault {
        StoreFault::new(
            StoreFaultKind::RecordDamaged,
            path,
            fault.offset,
            fault.expected.clone(),
            fault.found.clone(),
        )
    }

    pub(crate) fn header(path: PathBuf, kind: Kind, fault: HeaderFault) -> StoreFault {
        let name = kind.file_name();
        match fault {
            HeaderFault::Short { bytes } => StoreFault::new(
                StoreFaultKind::Truncated,
                path,
                bytes,
                format!("the header of {name}"),
                "the end of the file",
            ),
            HeaderFault::Magic { found } => StoreFault::new(
                StoreFaultKind::Foreign,
                path,
                0,
                format!("the magic of {name}"),
                format!("\"{}\"", found.escape_ascii()),
            ),
            HeaderFault::Version { found } => StoreFault::new(
                StoreFaultKind::Version,
                path,
                8,
                format!("version {VERSION} of {name}"),
                format!("version {found}"),
            ),
            HeaderFault::Crc { expected, found } => StoreFault::new(
                StoreFaultKind::HeaderDamaged,
                path,
                CRC_AT as u64,
                format!("header CRC32C {expected:08x}"),
                format!("{found:08x}"),
            ),
            HeaderFault::Home { found } => StoreFault::new(
                StoreFaultKind::Version,
                path,
                48,
                "a home of the cells that this program knows (0 or 1)",
                format!("home {found}"),
            ),
        }
    }

    /// Which kind of fault.
    pub fn kind(&self) -> StoreFaultKind {
        self.kind
    }

    fn advice(&self) -> &'static str {
        match self.kind {
            StoreFaultKind::Locked => {
                "stop the other process, or give this one a data folder of its own"
            }
            StoreFaultKind::Os => {
                "check the path, its permissions, the free space and the file size limit"
            }
            StoreFaultKind::Foreign => "this is not greendot's file: check the data folder's path",
            StoreFaultKind::Version => {
                "use the greendot that wrote it, or move the data folder away and start with an \
                 empty one"
            }
            StoreFaultKind::Truncated
            | StoreFaultKind::HeaderDamaged
            | StoreFaultKind::RecordDamaged => {
                "restore the data folder from a backup, or move it away and start with an empty one"
            }
            StoreFaultKind::PositionsDamaged => {
                "remove the file: the receivers of webhooks are told everybody's last state then"
            }
            StoreFaultKind::OtherStore => {
                "files of two stores were mixed: put back the ones that belong together"
            }
            StoreFaultKind::OtherTime => {
                "files of one store but of different times were mixed: put back the ones that \
                 belong together, or restore the whole folder from a backup"
            }
            StoreFaultKind::InMemory => {
                "start the greendot that put it there, and stop it: a clean stop writes all of it \
                 into the folder"
            }
            StoreFaultKind::OtherMemory => {
                "put back the folder that this memory belongs to; or, to go on with what this \
                 folder has, remove the memory, which may be newer"
            }
            StoreFaultKind::NoMemory => "name another folder, give it room, or say `--memory off`",
            StoreFaultKind::Missing => {
                "put users.log back, or move the other files away and start with an empty folder"
            }
            StoreFaultKind::TooManyUsers => "raise users_max",
        }
    }
}

impl fmt::Display for StoreFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StoreFault {
            path,
            offset,
            expected,
            found,
            ..
        } = self;
        write!(
            f,
            "{}: at offset {offset}: expected {expected}, found {found}; {}",
            path.display(),
            self.advice()
        )
    }
}

impl std::error::Error for StoreFault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|error| error as _)
    }
}
