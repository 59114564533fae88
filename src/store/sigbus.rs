//! What happens when a mapped file is cut short under a running server: a load or a store into a
//! page that the file does not have any more is a SIGBUS.
//!
//! Owns the signal's handler and the list of mappings that survive it: the pages behind the file's
//! end are replaced by zeros, each once, and from then on [`files_were_cut`] says so. What else
//! raises SIGBUS (a disk that cannot be read, a full one that copies on write) ends the process as
//! ever, for the files then have what its memory would lack. systemd's journald does the same.
//!
//! Several threads may touch such pages at once. Each is held by its own signal until the handler
//! returns, and may come when another has replaced the page and stored into it. So one handler
//! works at a time, and what has been replaced is not replaced again.

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
    /// From this offset on there are zeros instead of the file.
    replaced_from: AtomicUsize,
}

static MAPPINGS: [Mapping; MAPPINGS_MAX] = [const {
    Mapping {
        start: AtomicUsize::new(0),
        bytes: AtomicUsize::new(0),
        file: AtomicI32::new(-1),
        replaced_from: AtomicUsize::new(usize::MAX),
    }
}; MAPPINGS_MAX];
static CUT: AtomicBool = AtomicBool::new(false);
/// A handler is at work.
static BUSY: AtomicBool = AtomicBool::new(false);

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
            let replaced_from = &MAPPINGS[at].replaced_from;
            replaced_from.store(usize::MAX, Ordering::Release);
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

/// Runs in whatever thread has touched the page; allocates nothing, waits for nobody but another
/// handler, and leaves errno alone (rustix makes its calls without it).
extern "C" fn handle(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel hands over one.
    let info = unsafe { &*info };
    // SAFETY: it has an address, for the signal is SIGBUS.
    let address = unsafe { info.si_addr() } as usize;
    // A handler touches no mapping, so none that waits here is the one that is waited for.
    while BUSY.swap(true, Ordering::Acquire) {
        std::hint::spin_loop();
    }
    let survives = replaced(address);
    BUSY.store(false, Ordering::Release);
    if !survives {
        // The instruction is tried again, and ends the process.
        // SAFETY: as in `install`.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = libc::SIG_DFL;
        // SAFETY: `action` is whole.
        unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) };
    }
}

/// Puts zeros where the file of a mapping has nothing any more; false if that is not what has
/// happened. One at a time.
fn replaced(address: usize) -> bool {
    let found = MAPPINGS.iter().find_map(|mapping| {
        let start = mapping.start.load(Ordering::Acquire);
        let bytes = mapping.bytes.load(Ordering::Acquire);
        let offset = address.checked_sub(start).filter(|at| *at < bytes)?;
        Some((mapping, start, bytes, offset))
    });
    let Some((mapping, start, bytes, offset)) = found else {
        return false;
    };
    let replaced_from = mapping.replaced_from.load(Ordering::Acquire).min(bytes);
    if offset >= replaced_from {
        // Another thread's signal came first, and it may have stored something there.
        return true;
    }
    // SAFETY: it is open for as long as the mapping is in the list.
    let file = unsafe { BorrowedFd::borrow_raw(mapping.file.load(Ordering::Acquire)) };
    let Ok(found) = rustix::fs::fstat(file) else {
        return false;
    };
    let file_end = (found.st_size as u64).next_multiple_of(PAGE_BYTES) as usize;
    if offset < file_end {
        return false;
    }
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
    // All at once: the kernel keeps a list of mappings, and a page each would make it too long.
    // SAFETY: the pages are of a mapping of ours, and nothing can be read of them now.
    let mapped = unsafe {
        mmap_anonymous(
            (start + file_end) as *mut std::ffi::c_void,
            replaced_from - file_end,
            protection,
            flags,
        )
    };
    CUT.store(true, Ordering::Release);
    if mapped.is_ok() {
        mapping.replaced_from.store(file_end, Ordering::Release);
    }
    mapped.is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::super::region::MappedFile;
    use super::*;

    /// A file of four pages, and its mapping.
    fn mapped() -> (tempfile::NamedTempFile, MappedFile) {
        let path = tempfile::NamedTempFile::new().unwrap();
        path.as_file().set_len(4 * PAGE_BYTES).unwrap();
        let file = path.reopen().unwrap();
        let mut map = MappedFile::map(file, path.path().to_owned(), 4 * PAGE_BYTES).unwrap();
        map.survive_cuts();
        (path, map)
    }

    #[test]
    fn a_page_that_a_file_has_lost_is_zeros_and_takes_stores() {
        let (path, map) = mapped();
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

    /// Two threads touch a page at once, and the signal of one is handled when the other has gone
    /// on: what that has stored stays.
    #[test]
    fn a_page_is_replaced_once_however_many_have_touched_it() {
        let (path, map) = mapped();
        let cells = map.cells::<AtomicU64>(0, 2_048);
        path.as_file().set_len(2 * PAGE_BYTES).unwrap();
        let handled_late = |cell: usize| replaced(&raw const cells[cell] as usize);
        for cell in [1_500, 2_000] {
            cells[cell].store(7, Ordering::Relaxed);
            assert!(handled_late(cell));
            assert_eq!(cells[cell].load(Ordering::Relaxed), 7);
        }
        assert!(!handled_late(600), "the file has it");
        // It is cut once more.
        path.as_file().set_len(10).unwrap();
        cells[600].store(8, Ordering::Relaxed);
        assert!(handled_late(600) && handled_late(1_500));
        let kept = [600, 1_500, 2_000].map(|cell| cells[cell].load(Ordering::Relaxed));
        assert_eq!(kept, [8, 7, 7]);
    }

    #[test]
    fn threads_that_touch_lost_pages_at_once_lose_nothing_that_they_store() {
        let (path, map) = mapped();
        let cells = map.cells::<AtomicU64>(0, 2_048);
        path.as_file().set_len(0).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    for cell in (thread..2_048).step_by(4) {
                        cells[cell].fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        let lost = cells
            .iter()
            .filter(|cell| cell.load(Ordering::Relaxed) != 1);
        assert_eq!(lost.count(), 0);
    }
}
