//! What the system does to files behind a store's back: names that go, limits, file systems that
//! keep no promise.
//!
//! Owns how each is found out. Changes nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Once;

/// What has become of an open file's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileLoss {
    /// Nothing has it any more.
    Removed,
    /// Another file has it.
    Replaced,
    /// The file is shorter than it was.
    Truncated,
}

/// What has become of the name of an open file that had so many bytes.
pub(super) fn lost(file: &File, path: &Path, bytes: u64) -> io::Result<Option<FileLoss>> {
    let ours = file.metadata()?;
    let named = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Some(FileLoss::Removed));
        }
        named => named?,
    };
    if (ours.dev(), ours.ino()) != (named.dev(), named.ino()) {
        return Ok(Some(FileLoss::Replaced));
    }
    Ok((ours.len() < bytes).then_some(FileLoss::Truncated))
}

/// Whether a path is on a file system that writes every change to new blocks (btrfs, ZFS,
/// bcachefs): on a full disk it keeps none of its promises, and a store into a mapped page kills
/// the process. Magic numbers of statfs(2).
pub fn copies_on_write(path: &Path) -> bool {
    let magic = rustix::fs::statfs(path).map_or(0, |stat| stat.f_type as u64);
    [0x9123_683e, 0x2fc1_2fc1, 0xca45_1a4e].contains(&(magic & 0xffff_ffff))
}

/// Makes a write beyond RLIMIT_FSIZE fail with EFBIG instead of killing the process with SIGXFSZ.
/// Called by every opening of a store: no server wants to die of it.
pub(crate) fn survive_file_size_limit() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // A handler that does nothing rather than SIG_IGN: signal-hook keeps other handlers in the
        // chain. Where it can't be installed the default stays, which is no worse than not asking.
        let seen = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, seen);
    });
}
