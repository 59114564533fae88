//! The files of a store: one folder, three files, and what their bytes mean.
//!
//! Owns the formats (docs/FORMATS.md), the mappings and what is checked before a byte is believed.
//! Knows nothing of beats, sweeps or watchers, and never names the layers above.

pub mod cells;
mod fault;
pub(crate) mod flusher;
mod found;
pub(crate) mod header;
pub(crate) mod headers;
pub(crate) mod log;
pub(crate) mod map;
pub(crate) mod open;
pub(crate) mod recover;
pub(crate) mod region;
#[cfg(test)]
mod tests;

pub use fault::{StoreFault, StoreFaultKind};
pub use flusher::WriteBackReport;
pub use header::STORE_FILES;
pub use region::copies_on_write;
