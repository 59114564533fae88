//! What happens when a mapped file is cut short under a running server: a load or a store into a
//! page that the file does not have any more is a SIGBUS.
//!
//! Owns the signal's handler and the list of mappings that survive it: the page is replaced by one
//! of zeros, and from then on [`files_were_cut`] says so. What else raises SIGBUS (a disk that
//! cannot be read, a full one that copies on write) ends the process as ever, for the files then
//! have what its memory would lack. systemd's journald does the same.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

use super::region::PAGE_BYTES;

/// A server maps two such files; tests open many stores at once.
const MAPPINGS_MAX: usize = 64;

/// A mapping that survives. Zero length: nobody's.
struct Mapping {
    start: AtomicUsize,
    bytes: AtomicUsize,
    file: AtomicI32,
}

static MAPPINGS: [Mapping; MAPPINGS_MAX] = [const {
    Mapping {
        start: AtomicUsize::new(0),
        bytes: AtomicUsize::new(0),
        file: AtomicI32::new(-1),
    }
}; MAPPINGS_MAX];
static CUT: AtomicBool = AtomicBool::new(false);

/// Whether a page of a mapped file has been replaced by zeros, because the file had been cut short:
/// what is read there says nothing of anybody.
#[inline]
pub(crate) fn files_were_cut() -> bool {
    CUT.load(Ordering::Relaxed)
}

/// A mapping that survives its file's being cut short, until this is dropped.
#[derive(Debug)]
pub(crate) struct Survivor(Option<usize>);

impl Survivor {
    /// `bytes` from `start` are mapped from `file`, which stays open for as long as this lives.
    pub(crate) fn new(start: *const u8, bytes: usize, file: &impl AsRawFd) -> Survivor {
        static ONCE: Once = Once::new();
        ONCE.call_once(install);
        let free = MAPPINGS.iter().position(|mapping| {
            let start = start as usize;
            let taken =
                mapping
                    .start
                    .compare_exchange(0, start, Ordering::AcqRel, Ordering::Relaxed);
            taken.is_ok()
        });
        if let Some(at) = free {
            MAPPINGS[at].file.store(file.as_raw_fd(), Ordering::Release);
            MAPPINGS[at].bytes.store(bytes, Ordering::Release);
        }
        Survivor(free)
    }
}

impl Drop for Survivor {
    fn drop(&mut self) {
        if let Some(at) = self.0 {
            MAPPINGS[at].bytes.store(0, Ordering::Release);
            MAPPINGS[at].start.store(0, Ordering::Release);
        }
    }
}

fn install() {
    // SAFETY: all zeros are a legal value: no flags, no restorer, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: `action` is whole, and the handler does nothing that a handler may not.
    unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) };
}

/// Runs in whatever thread has touched the page; allocates nothing, takes no lock, and leaves errno
/// alone (rustix makes its calls without it).
extern "C" fn handle(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel hands over one.
    let info = unsafe { &*info };
    // SAFETY: it has an address, for the signal is SIGBUS.
    let address = unsafe { info.si_addr() } as usize;
    if !replaced(address) {
        // The instruction is tried again, and ends the process.
        // SAFETY: as in `install`.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = libc::SIG_DFL;
        // SAFETY: `action` is whole.
        unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) };
    }
}

/// Puts a page of zeros where the file of a mapping has none any more; false if that is not what
/// has happened.
fn replaced(address: usize) -> bool {
    let found = MAPPINGS.iter().find_map(|mapping| {
        let start = mapping.start.load(Ordering::Acquire);
        let bytes = mapping.bytes.load(Ordering::Acquire);
        let offset = address.checked_sub(start).filter(|at| *at < bytes)?;
        Some((offset, mapping.file.load(Ordering::Acquire)))
    });
    let Some((offset, file)) = found else {
        return false;
    };
    // SAFETY: it is open for as long as the mapping is in the list.
    let file = unsafe { BorrowedFd::borrow_raw(file) };
    let page = address & !(PAGE_BYTES as usize - 1);
    let in_file = rustix::fs::fstat(file)
        .is_ok_and(|found| (offset as u64) < (found.st_size as u64).next_multiple_of(PAGE_BYTES));
    if in_file {
        return false;
    }
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::FIXED;
    // SAFETY: the page is of a mapping of ours, and nothing can be read of it now.
    let mapped = unsafe {
        mmap_anonymous(
            page as *mut std::ffi::c_void,
            PAGE_BYTES as usize,
            protection,
            flags,
        )
    };
    CUT.store(true, Ordering::Release);
    mapped.is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::super::region::MappedFile;
    use super::*;

    #[test]
    fn a_page_that_a_file_has_lost_is_zeros_and_takes_stores() {
        let path = tempfile::NamedTempFile::new().unwrap();
        path.as_file().set_len(4 * PAGE_BYTES).unwrap();
        let file = path.reopen().unwrap();
        let mut map = MappedFile::map(file, path.path().to_owned(), 4 * PAGE_BYTES).unwrap();
        map.survive_cuts();
        let cells = map.cells::<AtomicU64>(0, 2_048);
        cells[600].store(7, Ordering::Relaxed);
        path.as_file().set_len(10).unwrap();
        assert_eq!(cells[600].load(Ordering::Relaxed), 0);
        cells[601].store(8, Ordering::Relaxed);
        assert_eq!(cells[601].load(Ordering::Relaxed), 8);
        cells[2_047].store(9, Ordering::Relaxed);
        assert_eq!(cells[2_047].load(Ordering::Relaxed), 9);
        assert!(files_were_cut());
    }
}
