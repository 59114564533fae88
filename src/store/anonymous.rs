//! Arrays of zeroed atomics whose untouched pages cost nothing, in memory without a name.
//!
//! Owns the mapping. Knows nothing of what is stored.

use std::io;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use memmap2::{MmapOptions, MmapRaw};

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
