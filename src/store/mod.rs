//! The files of a store: one folder, three files, and what their bytes mean.
//!
//! Owns the formats (docs/FORMATS.md), the mappings and what is checked before a byte is believed.
//! Knows nothing of beats, sweeps or watchers, and never names the layers above.

mod anonymous;
mod assemble;
pub(crate) mod behind;
mod cell;
pub mod cells;
pub(crate) mod closed;
mod fault;
pub(crate) mod found;
pub(crate) mod header;
pub(crate) mod headers;
pub(crate) mod home;
pub(crate) mod log;
pub(crate) mod map;
pub(crate) mod memory;
pub(crate) mod open;
mod positions;
pub(crate) mod record;
pub(crate) mod recover;
pub(crate) mod region;
mod revocations;
pub(crate) mod sigbus;
mod surroundings;
#[cfg(test)]
mod tests;
pub(crate) mod write_back;

pub use fault::{StoreFault, StoreFaultKind};
pub use header::STORE_FILES;
pub use log::LogRoom;
pub use memory::{MemoryChoice, is_tmpfs, memory_fault};
pub use positions::{POSITIONS_FILE, Position, PositionFile};
pub use region::{FileLoss, copies_on_write};
pub use revocations::{KeptRevocation, REVOCATIONS_FILE, RevocationLog};
pub use write_back::{Loss, LossOf, WriteBackReport};
