//! Mapped files that are reserved once and grow in place.
//!
//! Owns the mappings and the rule that nobody touches a byte of a file which the file does not have
//! yet (a SIGBUS), nor one for which the file system has not promised room (also a SIGBUS, when the
//! disk fills). Knows nothing of what is stored.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
#[cfg(test)]
use std::sync::atomic::AtomicU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

pub(crate) use super::anonymous::{AnonymousArray, ZeroedAtomic};
use super::behind::Behind;
use super::sigbus::Survivor;
use super::surroundings::lost;
pub(crate) use super::surroundings::survive_file_size_limit;
pub use super::surroundings::{FileLoss, copies_on_write};

/// Bytes of a page; offsets of cells and reservations are multiples of it.
pub(crate) const PAGE_BYTES: u64 = 4_096;
/// Bytes copied from a memory between two waits for the disk at most.
const COPY_BYTES_MAX: u64 = 16 << 20;

/// A file mapped shared and writable, with address space reserved beyond its end.
pub(crate) struct MappedFile {
    file: File,
    path: PathBuf,
    map: MmapRaw,
    /// Bytes that the file has and that the file system has promised; below the reservation. Only
    /// grows.
    bytes: AtomicU64,
    /// The disk may lack pages that the kernel takes for written back.
    doubted: AtomicBool,
    survivor: Option<Survivor>,
    /// The file that follows this one, which is in a memory. None: this one is written back itself.
    behind: Option<Behind>,
    /// Of the syncs to come, a bit each, the next one's first: writes nothing back that counts, and
    /// says so.
    #[cfg(test)]
    pub(crate) failing_syncs: AtomicU32,
}

impl MappedFile {
    /// Maps `file` with room for `reserved_bytes`, or for what it has if that is more.
    pub(crate) fn map(file: File, path: PathBuf, reserved_bytes: u64) -> io::Result<MappedFile> {
        let bytes = file.metadata()?.len();
        let reserved = reserved_bytes.max(bytes).next_multiple_of(PAGE_BYTES);
        let length = usize::try_from(reserved).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // A copy may have holes where the original had blocks, or blocks that it shares with it; a
        // page behind either could not be written on a full disk. Most file systems know no shared
        // blocks.
        for flags in [FallocateFlags::empty(), FallocateFlags::UNSHARE_RANGE] {
            match rustix::fs::fallocate(&file, flags, 0, bytes.max(1)) {
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(Errno::INVAL) if flags.contains(FallocateFlags::UNSHARE_RANGE) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let map = MmapOptions::new().len(length).map_raw(&file)?;
        Ok(MappedFile {
            file,
            path,
            map,
            bytes: AtomicU64::new(bytes),
            doubted: AtomicBool::new(false),
            survivor: None,
            behind: None,
            #[cfg(test)]
            failing_syncs: AtomicU32::new(0),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// From here on a page that the file loses, because somebody cuts it short, is a page of zeros
    /// (see sigbus.rs).
    pub(crate) fn survive_cuts(&mut self) {
        let map = &self.map;
        self.survivor = Some(Survivor::new(map.as_ptr(), map.len(), &self.file));
    }

    /// From here on the file that is mapped is in a memory, and `behind` follows it: whatever is
    /// written back goes there, and nothing grows beyond what is promised there.
    pub(crate) fn lead(&mut self, behind: Behind) {
        // Where the tmpfs allows it the kernel makes pages of 2 MB in time; else this changes
        // nothing.
        let _ = self.map.advise(memmap2::Advice::HugePage);
        self.behind = Some(behind);
    }

    /// The file that follows this one, if this is in a memory.
    pub(crate) fn behind(&self) -> Option<&Behind> {
        self.behind.as_ref()
    }

    /// The same open file, with its lock, beside its mapping.
    pub(crate) fn try_clone_file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Grows whenever the disk has answered the write-back of a memory.
    pub(crate) fn disk_answers(&self) -> u64 {
        self.behind.as_ref().map_or(0, Behind::moved)
    }

    /// Has the disk promise room for so many bytes more than there are, or an eighth. May wait for
    /// it; nothing to do where the file's own blocks are on that disk.
    ///
    /// Errors: the disk's.
    pub(crate) fn promise_ahead(&self, bytes: u64) -> io::Result<()> {
        let Some(behind) = &self.behind else {
            return Ok(());
        };
        let have = self.len_bytes();
        let mut ahead = bytes.max(have / 8);
        loop {
            let wanted = have.saturating_add(ahead).min(self.reserved_bytes());
            match behind.promise(wanted) {
                // Where there is no room to be generous there may be enough for a few.
                Err(_) if ahead > PAGE_BYTES => ahead /= 2,
                promised => return promised,
            }
        }
    }

    /// Whether the file still has its name and its length, and the one that follows it, which is
    /// made whole again where it was cut short.
    ///
    /// Errors: the system's, when it is asked.
    pub(crate) fn loss(&self) -> io::Result<Option<(FileLoss, &Path)>> {
        if let Some(how) = lost(&self.file, &self.path, self.len_bytes())? {
            return Ok(Some((how, &self.path)));
        }
        let Some(behind) = &self.behind else {
            return Ok(None);
        };
        let how = lost(behind.file(), behind.path(), behind.promised())?;
        if how == Some(FileLoss::Truncated) {
            // The memory has what was lost: it is doubted, and written anew.
            let _ = self.checked(behind.check_length());
        }
        Ok(how.map(|how| (how, behind.path())))
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    pub(crate) fn reserved_bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// Makes the file at least `to_bytes` long, with blocks behind every byte. One caller at a
    /// time.
    ///
    /// Errors: whatever `fallocate` says (ENOSPC, EFBIG, EDQUOT); the file is then as it was.
    pub(crate) fn grow(&self, to_bytes: u64) -> io::Result<()> {
        let have = self.len_bytes();
        if to_bytes <= have {
            return Ok(());
        }
        if to_bytes > self.reserved_bytes() {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "the reserved address space is used up",
            ));
        }
        if self
            .behind
            .as_ref()
            .is_some_and(|behind| behind.promised() < to_bytes)
        {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "the disk has promised no more room yet",
            ));
        }
        if self.file.metadata()?.len() < have {
            // To make it longer again would hide what it has lost from the next start.
            return Err(io::Error::other("the file has been cut short"));
        }
        let result =
            match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), have, to_bytes - have)
            {
                // A file system without preallocation: zeros written are as good, only slower.
                Err(Errno::OPNOTSUPP) => write_zeros(&self.file, have, to_bytes),
                other => other.map_err(io::Error::from),
            };
        if let Err(error) = result {
            // Some file systems leave part of what did not fit; nobody has seen those bytes.
            self.file.set_len(have)?;
            return Err(error);
        }
        self.bytes.store(to_bytes, Ordering::Release);
        Ok(())
    }

    /// Cuts the file to `to_bytes` and grows it back with zeros. For opening only: `&mut` proves
    /// that no byte is being read.
    pub(crate) fn cut(&mut self, to_bytes: u64) -> io::Result<()> {
        let had = self.len_bytes();
        self.file.set_len(to_bytes)?;
        self.bytes.store(to_bytes, Ordering::Release);
        self.grow(had)
    }

    /// Bytes from `offset`, which must be in the file.
    ///
    /// # Safety
    /// Nobody writes these bytes while the slice lives.
    pub(crate) unsafe fn bytes_at(&self, offset: u64, length: usize) -> &[u8] {
        assert!(
            offset
                .checked_add(length as u64)
                .is_some_and(|end| end <= self.len_bytes()),
            "beyond the end of a mapped file"
        );
        // SAFETY: the file has these bytes (asserted), so they are inside the mapping.
        let start = unsafe { self.map.as_ptr().add(offset as usize) };
        // SAFETY: mapped for as long as `self`; the caller promises that nobody writes them.
        unsafe { std::slice::from_raw_parts(start, length) }
    }

    /// Copies `bytes` to `offset`, which must be in the file.
    ///
    /// # Safety
    /// Nobody else reads or writes the bytes written while this runs.
    pub(crate) unsafe fn write_at(&self, offset: u64, bytes: &[u8]) {
        assert!(
            offset
                .checked_add(bytes.len() as u64)
                .is_some_and(|end| end <= self.len_bytes()),
            "beyond the end of a mapped file"
        );
        // SAFETY: the file has these bytes (asserted), so they are inside the mapping.
        let start = unsafe { self.map.as_mut_ptr().add(offset as usize) };
        // SAFETY: `bytes` is ordinary memory, the target is mapped, and the caller promises that it
        // is ours alone.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len()) };
    }

    /// Cells of eight bytes from `offset` (a multiple of eight). Only ever read and written as
    /// atomics.
    pub(crate) fn cells<T: ZeroedAtomic>(&self, offset: u64, count: usize) -> &[T] {
        const {
            assert!(
                size_of::<T>() == 8 && align_of::<T>() == 8,
                "a cell is eight bytes"
            )
        };
        debug_assert!(offset.is_multiple_of(8) && offset + count as u64 * 8 <= self.len_bytes());
        // SAFETY: within the mapping, whose start is page aligned.
        let start = unsafe { self.map.as_ptr().add(offset as usize) };
        // SAFETY: mapped for as long as `self`, aligned, any bits are legal (ZeroedAtomic), and
        // this module's users touch the cells of a file only through here; the exclusive lock on
        // the store keeps other processes away.
        unsafe { std::slice::from_raw_parts(start.cast(), count) }
    }

    /// The address of a byte of the mapping, for prefetching: never read through.
    pub(crate) fn address(&self, offset: u64) -> *const u8 {
        self.map.as_ptr().wrapping_add(offset as usize)
    }

    /// Writes back the pages of a range and waits for the disk: `msync(MS_SYNC)`, which in Linux is
    /// an fdatasync of the range (the metadata that its bytes need and the disk's own cache
    /// included), and writes no other page of the file. From a memory: those pages of the range
    /// that changed are copied to the disk.
    pub(crate) fn sync_range(&self, offset: u64, length: u64) -> io::Result<()> {
        self.checked(match &self.behind {
            None => self.map.flush_range(offset as usize, length as usize),
            Some(behind) => self.copy_to(behind, offset, length),
        })
    }

    /// Writes back everything and waits for the disk; from a memory, what was copied there.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.checked(match &self.behind {
            None => self.file.sync_data(),
            Some(behind) => behind.sync(),
        })
    }

    /// As [`MappedFile::sync`], and from a memory the first page too.
    pub(crate) fn sync_start(&self) -> io::Result<()> {
        match &self.behind {
            None => self.sync(),
            Some(_) => self.sync_range(0, PAGE_BYTES),
        }
    }

    fn copy_to(&self, behind: &Behind, offset: u64, length: u64) -> io::Result<()> {
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let step = (end - at).min(COPY_BYTES_MAX);
            behind.write(at, step, |at, into| self.copy_out(at, into))?;
            behind.sync()?;
            at += step;
        }
        Ok(())
    }

    /// Copies bytes of cells, or of records that are final.
    fn copy_out(&self, offset: u64, into: &mut [u8]) {
        let words = self.cells::<AtomicU64>(offset, into.len() / 8);
        let (whole, rest) = into.split_at_mut(words.len() * 8);
        for (word, into) in words.iter().zip(whole.chunks_exact_mut(8)) {
            into.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        // SAFETY: cells are whole words, so these are bytes of records before the log's end, which
        // are never written again.
        let last = unsafe { self.bytes_at(offset + whole.len() as u64, rest.len()) };
        rest.copy_from_slice(last);
    }

    fn checked(&self, synced: io::Result<()>) -> io::Result<()> {
        #[cfg(test)]
        let synced = synced.and_then(|()| {
            let next = |failing: u32| Some(failing >> 1);
            let failing =
                self.failing_syncs
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
            match failing.is_ok_and(|failing| failing & 1 != 0) {
                true => Err(Errno::IO.into()),
                false => Ok(()),
            }
        });
        if synced.is_err() {
            self.doubt();
        }
        synced
    }

    /// Whether a sync has failed, of whatever page: the kernel says so once and leaves the pages
    /// that it could not write marked as clean, so that the next sync succeeds without them. Until
    /// all that may have changed was made dirty again (`rewrite`, `dirty`) and then synced, no sync
    /// of this file is to be believed.
    pub(crate) fn is_doubted(&self) -> bool {
        self.doubted.load(Ordering::Acquire)
    }

    pub(crate) fn doubt(&self) {
        if let Some(behind) = &self.behind {
            behind.forget();
        }
        self.doubted.store(true, Ordering::Release);
    }

    /// Everything was made dirty again since the last failure, and synced.
    pub(crate) fn believe(&self) {
        self.doubted.store(false, Ordering::Release);
    }

    /// Makes the pages of a range of bytes dirty by writing these to themselves.
    ///
    /// # Safety
    /// Nobody else writes the bytes while this runs.
    pub(crate) unsafe fn rewrite(&self, from: u64, to: u64) -> io::Result<()> {
        if self.behind.is_some() {
            // Whoever doubted has forgotten what the disk has: all is copied again.
            return Ok(());
        }
        // SAFETY: the caller's promise.
        let bytes = unsafe { self.bytes_at(from, (to - from) as usize) };
        self.file.write_all_at(bytes, from)
    }

    /// Makes the pages of a range of cells dirty.
    pub(crate) fn dirty(&self, offset: u64, length: u64) {
        if self.behind.is_some() {
            return;
        }
        for page in self
            .cells::<AtomicU64>(offset, (length / 8) as usize)
            .chunks((PAGE_BYTES / 8) as usize)
        {
            let cell = page[0].load(Ordering::Relaxed);
            // Not an `or` with nothing, of which a compiler makes a load. Where it fails, another's
            // store has made the page dirty.
            let _ = page[0].compare_exchange(cell, cell, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Replaces the bytes at the file's start in one system call, so that neither kill -9 nor
    /// (within a disk sector) a power cut leaves half a header.
    pub(crate) fn write_start(&self, bytes: &[u8]) -> io::Result<()> {
        match &self.behind {
            None => self.file.write_all_at(bytes, 0),
            Some(behind) => {
                // In a memory: no disk is waited for.
                self.file.write_all_at(bytes, 0)?;
                behind.set_start(bytes);
                Ok(())
            }
        }
    }
}

pub(super) fn write_zeros(file: &File, from: u64, to: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut at = from;
    while at < to {
        let step = (to - at).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..step as usize], at)?;
        at += step;
    }
    Ok(())
}
