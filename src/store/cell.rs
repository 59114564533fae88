//! A cell that many threads read and write, and that knows what it holds.
//!
//! Owns the way from 64 bits to a value and back. What the bits mean is in cells.rs.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use super::region::ZeroedAtomic;

/// What a cell can hold: a value of 64 bits.
pub trait CellValue: Copy {
    /// From what the cell holds; any bits are legal.
    fn from_bits(bits: u64) -> Self;
    /// What the cell holds.
    fn bits(self) -> u64;
}

/// A cell that many threads read and write: an [`AtomicU64`] that knows what it holds.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Cell<V> {
    bits: AtomicU64,
    of: PhantomData<V>,
}

// SAFETY: an atomic integer beside nothing; any bytes are a value of it.
unsafe impl<V: Sync> ZeroedAtomic for Cell<V> {}

impl<V: CellValue> Cell<V> {
    /// Holding `value`.
    pub fn new(value: V) -> Cell<V> {
        Cell {
            bits: AtomicU64::new(value.bits()),
            of: PhantomData,
        }
    }

    /// See [`AtomicU64::load`].
    #[inline]
    pub fn load(&self, order: Ordering) -> V {
        V::from_bits(self.bits.load(order))
    }

    /// See [`AtomicU64::store`].
    #[inline]
    pub fn store(&self, value: V, order: Ordering) {
        self.bits.store(value.bits(), order);
    }

    /// See [`AtomicU64::compare_exchange_weak`].
    ///
    /// Errors: it held something else, or by chance; what it held is given back.
    #[inline]
    pub fn compare_exchange_weak(
        &self,
        current: V,
        new: V,
        success: Ordering,
        failure: Ordering,
    ) -> Result<V, V> {
        self.bits
            .compare_exchange_weak(current.bits(), new.bits(), success, failure)
            .map(V::from_bits)
            .map_err(V::from_bits)
    }

    /// See [`AtomicU64::fetch_update`].
    ///
    /// Errors: `change` said no to what it held, which is given back.
    #[inline]
    pub fn fetch_update(
        &self,
        set: Ordering,
        fetch: Ordering,
        mut change: impl FnMut(V) -> Option<V>,
    ) -> Result<V, V> {
        self.bits
            .fetch_update(set, fetch, |bits| {
                change(V::from_bits(bits)).map(CellValue::bits)
            })
            .map(V::from_bits)
            .map_err(V::from_bits)
    }
}
