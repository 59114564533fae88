//! store
use std::path::PathBuf;
/// How to open a store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /** folder, made if missing */
    pub dir: PathBuf,
    /** most users; the address space reserved */
    pub users_max: u32,
    /** see `Presence::open` */
    pub offline_after_ms: u64,
    /** ms, how long a leave is remembered (twice) */
    pub beat_skew_max_ms: u64,
    /** shards that will call note_turn */
    pub shards: u16,
    /** /proc/sys/kernel/random/boot_id */
    pub boot_id: [u8; 16],
}
/// What opening found; for the start-up message.
#[derive(Clone, Debug, Default)]
pub struct OpenReport {
    /** users known */
    pub users: u32,
    /** kept online by the restart rule */
    pub online: u32,
    /** bytes of torn tail cut from users.log */
    pub torn_bytes: u64,
    /** power was cut since the last run */
    pub power_cut: bool,
    /** was closed cleanly */
    pub clean: bool,
}
/// Why a store could not be opened. Display names file, offset, expected, found and what to do.
#[derive(Debug)]
pub struct StoreFault {
    _p: (),
}
/// Writes back in rolling slices; runs on a thread of its own.
pub struct Flusher {
    _p: (),
}
/// What one slice did.
#[derive(Clone, Copy, Debug, Default)]
pub struct FlushReport {
    /** bytes written back */
    pub bytes: u64,
    /** a whole cycle ended with this slice; its length in ms */
    pub cycle_ms: Option<u64>,
}
