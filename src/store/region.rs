//! Memory that is reserved once and grows in place: mapped files and anonymous arrays of atomics.
//!
//! Owns the mappings and the rule that nobody touches a byte of a file which the file does not have
//! yet (a SIGBUS), nor one for which the file system has not promised room (also a SIGBUS, when the
//! disk fills). Knows nothing of what is stored.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::sigbus::Survivor;

/// Bytes of a page; offsets of cells and reservations are multiples of it.
pub(crate) const PAGE_BYTES: u64 = 4_096;

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
    /// Of the syncs to come, a bit each, the next one's first: writes nothing back that counts, and
    /// says so.
    #[cfg(test)]
    pub(crate) failing_syncs: AtomicU32,
}

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

    /// Whether the file still has its name and its length.
    ///
    /// Errors: the system's, when it is asked.
    pub(crate) fn loss(&self) -> io::Result<Option<FileLoss>> {
        let bytes = self.len_bytes();
        let ours = self.file.metadata()?;
        let named = match std::fs::metadata(&self.path) {
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
    /// included), and writes no other page of the file.
    pub(crate) fn sync_range(&self, offset: u64, length: u64) -> io::Result<()> {
        self.checked(self.map.flush_range(offset as usize, length as usize))
    }

    /// Writes back everything and waits for the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.checked(self.file.sync_data())
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
        // SAFETY: the caller's promise.
        let bytes = unsafe { self.bytes_at(from, (to - from) as usize) };
        self.file.write_all_at(bytes, from)
    }

    /// Makes the pages of a range of cells dirty.
    pub(crate) fn dirty(&self, offset: u64, length: u64) {
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
        self.file.write_all_at(bytes, 0)
    }
}

/// Whether a path is on a file system that writes every change to new blocks (btrfs, ZFS,
/// bcachefs): on a full disk it keeps none of its promises, and a store into a mapped page kills
/// the process. Magic numbers of statfs(2).
pub fn copies_on_write(path: &Path) -> bool {
    let magic = rustix::fs::statfs(path).map_or(0, |stat| stat.f_type as u64);
    [0x9123_683e, 0x2fc1_2fc1, 0xca45_1a4e].contains(&(magic & 0xffff_ffff))
}

fn write_zeros(file: &File, from: u64, to: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut at = from;
    while at < to {
        let step = (to - at).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..step as usize], at)?;
        at += step;
    }
    Ok(())
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

/// What an anonymous array may hold: atomics, for which any bytes are a value and sharing is safe.
///
/// # Safety
/// Any bytes are a legal value, and `&Self` from many threads is sound.
pub(crate) unsafe trait ZeroedAtomic: Sync {}
// SAFETY: an atomic integer; any bytes are a value.
unsafe impl ZeroedAtomic for AtomicU8 {}
// SAFETY: an atomic integer; any bytes are a value.
unsafe impl ZeroedAtomic for AtomicU32 {}
// SAFETY: an atomic integer; any bytes are a value.
unsafe impl ZeroedAtomic for AtomicU64 {}

/// An array of zeroed atomics whose untouched pages cost nothing.
pub(crate) struct AnonymousArray<T> {
    map: MmapRaw,
    count: usize,
    of: PhantomData<T>,
}

impl<T: ZeroedAtomic> AnonymousArray<T> {
    pub(crate) fn new(count: usize) -> io::Result<AnonymousArray<T>> {
        let bytes = (count * size_of::<T>()).max(1);
        let map = MmapOptions::new().len(bytes).no_reserve_swap().map_anon()?;
        Ok(AnonymousArray {
            map: map.into(),
            count,
            of: PhantomData,
        })
    }
}

impl<T: ZeroedAtomic> std::ops::Deref for AnonymousArray<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: page aligned, `count` values long, zeroed by the kernel, legal for T and
        // shareable (ZeroedAtomic).
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.count) }
    }
}

/// Asks the processor to fetch the cache line of an address that will be needed soon.
#[inline(always)]
pub(crate) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint: it never faults, whatever the address.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
