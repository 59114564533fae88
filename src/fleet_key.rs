//! The fleet's key file: read, by a node and by `doctor`, or made where `serve` owns the folder.
//!
//! Owns the file's mode and the atomicity of making it: a reader sees a whole key or no file. What
//! the text means is the wire's.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::random;
use crate::wire::beat::{FleetKey, KeyFault, Keys};

/// Bits of a mode that let everybody on the machine read or write the file. A group may: that is
/// how secrets are mounted.
const WORLD_MASK: u32 = 0o006;

/// Keys and how they were come by.
pub struct FleetKeys {
    /// What signs and is accepted.
    pub keys: Keys,
    /// The file was missing and has been made.
    pub made: bool,
}

/// Why there are no keys.
#[derive(Debug)]
pub struct FleetKeyFault {
    path: PathBuf,
    kind: FaultKind,
}

#[derive(Debug)]
enum FaultKind {
    Read(io::Error),
    Make(io::Error),
    Content(KeyFault),
    Open,
}

impl fmt::Display for FleetKeyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.kind {
            FaultKind::Read(error) if error.kind() == io::ErrorKind::NotFound => write!(
                f,
                "{path}: no such key file; make one with `(umask 077; greendot key > {path})`, or \
                 name another with --key-file"
            ),
            FaultKind::Read(error) => write!(
                f,
                "{path}: the key file can not be read: {error}; name another with --key-file"
            ),
            FaultKind::Make(error) => write!(
                f,
                "{path}: no key file can be made: {error}; make the folder writable, or name a \
                 file with --key-file"
            ),
            FaultKind::Content(fault) => write!(
                f,
                "{path}: {fault}; mend the file, or name another with --key-file"
            ),
            FaultKind::Open => write!(
                f,
                "{path}: everybody on this machine may use these keys; `chmod o-rw {path}`"
            ),
        }
    }
}

impl std::error::Error for FleetKeyFault {}

/// Reads the keys in `path`; if there is no such file and `make_missing`, makes one with a fresh
/// key that only its owner may read, and the folder if that is missing too.
///
/// Errors: the file cannot be read or made, is no key file, or everybody may use it; the fault
/// names it.
pub fn load(path: &Path, make_missing: bool) -> Result<FleetKeys, FleetKeyFault> {
    let fault = |kind| FleetKeyFault {
        path: path.to_owned(),
        kind,
    };
    let ((text, mode), made) = match read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && make_missing => {
            let made = make(path).map_err(|error| fault(FaultKind::Make(error)))?;
            (
                read(path).map_err(|error| fault(FaultKind::Read(error)))?,
                made,
            )
        }
        read => (read.map_err(|error| fault(FaultKind::Read(error)))?, false),
    };
    let keys = Keys::parse(&text).map_err(|content| fault(FaultKind::Content(content)))?;
    match mode & WORLD_MASK {
        0 => Ok(FleetKeys { keys, made }),
        _ => Err(fault(FaultKind::Open)),
    }
}

/// A file's text and mode: of the one file, whatever its name leads to by then.
fn read(path: &Path) -> io::Result<(String, u32)> {
    let mut file = File::open(path)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok((text, file.metadata()?.permissions().mode()))
}

/// Writes a fresh key beside `path` and links it there. False if somebody else was faster: then
/// theirs counts.
fn make(path: &Path) -> io::Result<bool> {
    let mut key = [0u8; 32];
    random::fill(&mut key)?;
    let text = format!("{}\n", FleetKey::new(key).to_hex());

    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(parent)?;
    let draft = parent.join(format!(".{}.{}", name.display(), std::process::id()));
    let linked = write_new(&draft, &text).and_then(|()| match fs::hard_link(&draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        linked => linked.map(|()| true),
    });
    // Whether or not it was linked, and whether or not it was written.
    let removed = fs::remove_file(&draft);
    let made = linked?;
    removed?;
    // The name must survive a power cut as well: beats are signed with this key from now on.
    File::open(parent)?
        .sync_all()
        .or_else(|error| match is_not_done(&error) {
            true => Ok(()),
            false => Err(error),
        })?;
    Ok(made)
}

/// Whether a file system has said that it does not sync folders, which is no fault.
fn is_not_done(error: &io::Error) -> bool {
    let kind = error.kind();
    matches!(
        kind,
        io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
    )
}

/// Removes a key that was made for a start that was then refused.
pub fn unmake(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        let path = path.display();
        tracing::warn!(%error, "{path} was made for this start and could not be removed");
    }
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    // A draft of this name is left over from a process that had this id and died.
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_made_once_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("data");
        let path = folder.join("fleet.key");
        let first = load(&path, true).unwrap();
        assert!(first.made);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            0o600
        );
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.len(), 65);
        let second = load(&path, true).unwrap();
        assert!(!second.made);
        assert_eq!(second.keys.signing().id(), first.keys.signing().id());
        assert_eq!(fs::read_dir(folder).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn a_file_system_that_does_not_sync_folders_is_as_good_at_the_first_start() {
        for (errno, is_fault) in [
            (libc::EINVAL, false),
            (libc::EOPNOTSUPP, false),
            (libc::EIO, true),
            (libc::ENOSPC, true),
        ] {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(is_not_done(&error), !is_fault, "{error}");
        }
    }

    #[test]
    fn whoever_is_faster_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fleet.key");
        fs::write(&path, "theirs").unwrap();
        assert!(!make(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
    }

    #[test]
    fn a_named_file_must_exist() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("other.key");
        let fault = load(&path, false).err().unwrap().to_string();
        let shown = path.display();
        assert_eq!(
            fault,
            format!(
                "{shown}: no such key file; make one with `(umask 077; greendot key > {shown})`, \
                 or name another with --key-file"
            )
        );
        assert!(!path.exists());
    }

    #[test]
    fn modes_and_contents_are_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fleet.key");
        fs::write(&path, "0123456789abcdef".repeat(4)).unwrap();
        let set_mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        for mode in [0o644, 0o602] {
            set_mode(mode);
            let fault = load(&path, true).err().unwrap().to_string();
            assert!(
                fault.contains("everybody on this machine may use these keys"),
                "{fault}"
            );
        }
        set_mode(0o640);
        assert!(load(&path, true).is_ok());
        fs::write(&path, "not a key\n").unwrap();
        let fault = load(&path, true).err().unwrap().to_string();
        assert!(
            fault.contains("fleet.key") && fault.contains("64 hex digits"),
            "{fault}"
        );
    }
}
