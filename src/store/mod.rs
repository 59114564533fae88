//! The files of a store: one folder, three files, and what their bytes mean.
//!
//! Owns the formats (docs/FORMATS.md), the mappings and what is checked before a byte is believed.
//! Knows nothing of beats, sweeps or watchers, and never names the layers above.

pub mod cells;
pub(crate) mod fault;
pub(crate) mod found;
pub(crate) mod header;
pub(crate) mod log;
pub(crate) mod map;
pub(crate) mod region;

pub use fault::{StoreFault, StoreFaultKind};
pub use header::STORE_FILES;
pub use region::copies_on_write;
