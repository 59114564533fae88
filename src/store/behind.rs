//! The file in the data folder behind one that lives in a memory: what changed there is copied
//! here, a little at a time, by one thread.
//!
//! Owns how bytes get to that disk: past the page cache where the file system allows it, from a
//! buffer of its own, whole pages at a time, those that changed. Never decides what is to be
//! copied. A shard meets nothing here but two atomics and the mutex of the first page, which nobody
//! holds while waiting for a disk.

use std::fs::File;
use std::hash::BuildHasher;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::fast::RandomState;
use memmap2::MmapMut;
use parking_lot::Mutex;
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};
use rustix::io::Errno;

use super::region::{PAGE_BYTES, write_zeros};

const PAGE: usize = PAGE_BYTES as usize;
/// Bytes copied by one system call at most.
const BUFFER_BYTES: usize = 1 << 20;

/// A file of the data folder that follows one in a memory.
pub(crate) struct Behind {
    file: File,
    path: PathBuf,
    /// Bytes that the file has, for which the disk has room.
    promised: AtomicU64,
    /// System calls on the disk that have come back: who closes sees by it that the disk moves.
    moved: AtomicU64,
    copying: Mutex<Copying>,
    /// The page of the header, which is not read from the memory: a shard may be writing it.
    first_page: Mutex<[u8; PAGE]>,
}

/// What the one who copies needs.
struct Copying {
    /// Page aligned.
    buffer: MmapMut,
    /// The same file, past the page cache; None where the file system does not do that.
    direct: Option<File>,
    hasher: RandomState,
    /// Of each page as it was last written; 0: not known. Two pages of 4,096 bytes have the same
    /// hash once in 2^64 times.
    hashes: Vec<u64>,
}

impl Behind {
    /// `file` is open for reading and writing, and found again at `path`. `first_page`: as it is in
    /// the memory.
    ///
    /// Errors: the system's.
    pub(crate) fn new(file: File, path: PathBuf, first_page: [u8; PAGE]) -> io::Result<Behind> {
        // By its descriptor: its name may be another file's by now.
        let this = format!("/proc/self/fd/{}", file.as_raw_fd());
        let direct = File::options()
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(this);
        let copying = Copying {
            buffer: MmapMut::map_anon(BUFFER_BYTES)?,
            direct: direct.ok(),
            hasher: RandomState::default(),
            hashes: Vec::new(),
        };
        Ok(Behind {
            promised: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            copying: Mutex::new(copying),
            first_page: Mutex::new(first_page),
            file,
            path,
        })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Grows whenever the disk has answered.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Bytes up to which the file before this one may grow.
    pub(crate) fn promised(&self) -> u64 {
        self.promised.load(Ordering::Acquire)
    }

    /// Makes the file at least so long, with room on the disk behind every byte. May wait for it.
    ///
    /// Errors: the disk's; what was promised before stays so.
    pub(crate) fn promise(&self, bytes: u64) -> io::Result<()> {
        let (have, wanted) = (self.promised(), bytes.next_multiple_of(PAGE_BYTES));
        if wanted <= have {
            return Ok(());
        }
        let long = self.file.metadata()?.len();
        match fallocate(&self.file, FallocateFlags::empty(), have, wanted - have) {
            Err(Errno::OPNOTSUPP) => {
                if wanted > long {
                    write_zeros(&self.file, long, wanted)?;
                }
            }
            Err(error) => {
                // Some file systems leave part of what did not fit.
                self.file.set_len(long)?;
                return Err(error.into());
            }
            Ok(()) => {}
        }
        self.moved.fetch_add(1, Ordering::Relaxed);
        self.promised.store(wanted, Ordering::Release);
        Ok(())
    }

    /// Replaces the start of the first page, for the next time that it is copied.
    pub(crate) fn set_start(&self, bytes: &[u8]) {
        self.first_page.lock()[..bytes.len()].copy_from_slice(bytes);
    }

    /// Copies the pages of a range that changed: `fill` copies bytes from a place on into what it
    /// is given. Behind the range the last page is zeros. Nothing is synced.
    ///
    /// Errors: the disk's.
    pub(crate) fn write(
        &self,
        offset: u64,
        length: u64,
        fill: impl Fn(u64, &mut [u8]),
    ) -> io::Result<()> {
        self.check_length()?;
        let mut copying = self.copying.lock();
        let (mut at, end) = (offset - offset % PAGE_BYTES, offset + length);
        while at < end {
            let bytes = (end - at).min(BUFFER_BYTES as u64) as usize;
            let pages = bytes.div_ceil(PAGE);
            let buffer = &mut copying.buffer[..pages * PAGE];
            fill(at, &mut buffer[..bytes]);
            buffer[bytes..].fill(0);
            if at == 0 {
                buffer[..PAGE].copy_from_slice(&*self.first_page.lock());
            }
            self.write_changed(&mut copying, at, pages)?;
            at += bytes as u64;
        }
        Ok(())
    }

    /// A file that somebody has cut short would be made longer again by the next write, with zeros
    /// between: all of it has to be written anew.
    ///
    /// Errors: it was; nobody knows any more what it has.
    pub(crate) fn check_length(&self) -> io::Result<()> {
        let promised = self.promised();
        if self.file.metadata()?.len() >= promised {
            return Ok(());
        }
        self.forget();
        self.promised.store(0, Ordering::Release);
        self.promise(promised)?;
        Err(io::Error::other(
            "the file has been cut short; it is written anew from the memory",
        ))
    }

    /// Writes those of the first `pages` in the buffer that changed.
    fn write_changed(&self, copying: &mut Copying, at: u64, pages: usize) -> io::Result<()> {
        let first = (at / PAGE_BYTES) as usize;
        if copying.hashes.len() < first + pages {
            copying.hashes.resize(first + pages, 0);
        }
        let mut page = 0;
        while page < pages {
            let from = page;
            while page < pages {
                let hash = copying.hash(page);
                if std::mem::replace(&mut copying.hashes[first + page], hash) == hash {
                    break;
                }
                page += 1;
            }
            if page > from {
                let offset = at + (from * PAGE) as u64;
                self.write_pages(copying, from..page, offset)?;
            } else {
                page += 1;
            }
        }
        Ok(())
    }

    fn write_pages(
        &self,
        copying: &mut Copying,
        pages: std::ops::Range<usize>,
        offset: u64,
    ) -> io::Result<()> {
        let bytes = &copying.buffer[pages.start * PAGE..pages.end * PAGE];
        if let Some(direct) = &copying.direct {
            match direct.write_all_at(bytes, offset) {
                // Some want larger blocks than a page.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => copying.direct = None,
                Err(error) => return Err(error),
                Ok(()) => {
                    self.moved.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
            }
        }
        self.file.write_all_at(bytes, offset)?;
        self.moved.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Waits for the disk; what went through the page cache leaves it.
    ///
    /// Errors: the disk's.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()?;
        self.moved.fetch_add(1, Ordering::Relaxed);
        if self.copying.lock().direct.is_none() {
            self.leave_page_cache();
        }
        Ok(())
    }

    /// A second copy of what is in memory already; advice that is not taken does no harm.
    pub(crate) fn leave_page_cache(&self) {
        let _ = fadvise(&self.file, 0, None, Advice::DontNeed);
    }

    /// The file has these pages from a multiple of a page on, and they are on the disk.
    pub(crate) fn know(&self, offset: u64, bytes: &[u8]) {
        // Several threads copy at once: none waits for another's hashes.
        let hasher = self.copying.lock().hasher.clone();
        let pages = bytes.chunks_exact(PAGE);
        let hashes: Vec<u64> = pages.map(|page| hash_of(&hasher, page)).collect();
        let first = (offset / PAGE_BYTES) as usize;
        let end = first + hashes.len();
        let mut copying = self.copying.lock();
        if copying.hashes.len() < end {
            copying.hashes.resize(end, 0);
        }
        copying.hashes[first..end].copy_from_slice(&hashes);
    }

    /// Nobody knows any more what the disk has: all that is copied from here on is written.
    pub(crate) fn forget(&self) {
        self.copying.lock().hashes.fill(0);
    }
}

impl Copying {
    fn hash(&self, page: usize) -> u64 {
        hash_of(&self.hasher, &self.buffer[page * PAGE..][..PAGE])
    }
}

fn hash_of(hasher: &RandomState, page: &[u8]) -> u64 {
    hasher.hash_one(page).max(1)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn behind(path: &Path, pages: u8) -> Behind {
        fs::write(path, vec![7; usize::from(pages) * PAGE]).unwrap();
        let file = File::options().read(true).write(true).open(path).unwrap();
        let behind = Behind::new(file, path.to_owned(), [9; PAGE]).unwrap();
        behind.promise(u64::from(pages) * PAGE_BYTES).unwrap();
        behind
    }

    #[test]
    fn whole_pages_are_written_and_the_rest_of_the_last_is_zeros() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("map");
        let behind = behind(&path, 4);
        let fill = |at: u64, into: &mut [u8]| into.fill((at / PAGE_BYTES) as u8);
        behind.write(PAGE_BYTES + 10, 5_000, fill).unwrap();
        behind.sync().unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes[..PAGE], [7; PAGE]);
        assert_eq!(bytes[PAGE..PAGE + 5_010], [1; 5_010]);
        assert_eq!(bytes[PAGE + 5_010..3 * PAGE], [0; 2 * PAGE - 5_010]);
        assert_eq!(bytes[3 * PAGE..], [7; PAGE]);
        behind.promise(5 * PAGE_BYTES).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 5 * PAGE_BYTES);
        assert_eq!(behind.promised(), 5 * PAGE_BYTES);
    }

    #[test]
    fn only_pages_that_changed_are_written_until_nothing_is_known() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("map");
        let behind = behind(&path, 3);
        let pages = |value: u8| move |_: u64, into: &mut [u8]| into.fill(value);
        behind.write(0, 3 * PAGE_BYTES, pages(1)).unwrap();
        assert_eq!(fs::read(&path).unwrap()[..PAGE], [9; PAGE], "the header's");
        // Somebody else's write shows which pages are written again.
        fs::write(&path, vec![5; 3 * PAGE]).unwrap();
        behind.set_start(&[8; 512]);
        behind.write(0, 3 * PAGE_BYTES, pages(1)).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!((bytes[0], bytes[512]), (8, 9));
        assert_eq!(bytes[PAGE..], [5; 2 * PAGE]);
        behind.forget();
        behind.write(0, 3 * PAGE_BYTES, pages(1)).unwrap();
        assert_eq!(fs::read(&path).unwrap()[PAGE..], [1; 2 * PAGE]);
        behind.know(PAGE_BYTES, &[2; PAGE]);
        behind.write(PAGE_BYTES, PAGE_BYTES, pages(2)).unwrap();
        assert_eq!(fs::read(&path).unwrap()[PAGE..2 * PAGE], [1; PAGE]);
    }
}
