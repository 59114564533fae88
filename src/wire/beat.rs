//! The beat datagram (DESIGN.md section 6), both ways.

use crate::time::Unix;
use crate::wire::User;

/// Longest datagram in bytes.
pub const DATAGRAM_BYTES_MAX: usize = 1_400;
/// Bytes before the entries.
pub const HEAD_BYTES: usize = 16;
/// Bytes of the truncated MAC at the end.
pub const MAC_BYTES: usize = 16;

/// One fleet key: 32 bytes, named on the wire by `id` (top bit clear).
#[derive(Clone)]
pub struct FleetKey {
    /* private */ _p: (),
}

/// The fleet keys a node accepts; the first one signs.
#[derive(Clone)]
pub struct Keys {
    _p: (),
}

/// Why a key file's text is no set of keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KeyFault {
    /** No key at all. */
    Empty,
    /** Line `line` (from 1) is not 64 hex digits. */
    NotHex {
        /** from 1 */
        line: usize,
    },
    /** Twice the same key. */
    Twice {
        /** from 1 */
        line: usize,
    },
}

impl FleetKey {
    /// From 32 bytes; the id is the first 31 bits of a BLAKE3 `derive_key` of the key, so a key names itself.
    pub fn new(_bytes: [u8; 32]) -> FleetKey {
        todo!()
    }
    /// The id on the wire.
    pub fn id(&self) -> u32 {
        todo!()
    }
}
impl Keys {
    /// Reads a key file: one key a line, 64 hex digits; blank lines and `#` comments allowed.
    pub fn parse(_text: &str) -> Result<Keys, KeyFault> {
        todo!()
    }
    /// The key that signs.
    pub fn signing(&self) -> &FleetKey {
        todo!()
    }
}

/// Why a datagram was refused; each is a value of the metric label `reason`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BeatDrop {
    /** shorter than head, one entry and MAC; or longer than the maximum */
    Short,
    /** magic */
    Magic,
    /** version */
    Version,
    /** unknown key id */
    Key,
    /** MAC */
    Mac,
    /** |now - sent_at| > beat_skew_max_ms */
    Stale,
    /** an entry is not a user id or overruns the datagram */
    Entry,
}

/// A datagram whose MAC, age and entries have been checked.
#[derive(Clone, Copy, Debug)]
pub struct Beats<'a> {
    /// A goodbye rather than a beat.
    pub leave: bool,
    /// The sender's clock.
    pub sent_at: Unix,
    entries: &'a [u8],
}
impl<'a> Beats<'a> {
    /// The users vouched for, in datagram order.
    pub fn users(&self) -> impl Iterator<Item = User<'a>> + use<'a> {
        let _ = self.entries;
        std::iter::empty()
    }
}

/// Checks one datagram in the order short, magic, version, key, mac (constant time), stale, entry.
pub fn open<'a>(_datagram: &'a [u8], _keys: &Keys, _now: Unix, _skew_max_ms: u64) -> Result<Beats<'a>, BeatDrop> {
    todo!()
}

/// Writes datagrams: `push` until it says full, then `seal`.
pub struct Writer {
    _p: (),
}
impl Writer {
    /// Starts a datagram.
    pub fn new(_leave: bool, _sent_at: Unix, _key: &FleetKey) -> Writer {
        todo!()
    }
    /// Adds an entry; false (and nothing added) if it does not fit.
    #[must_use]
    pub fn push(&mut self, _user: User<'_>) -> bool {
        todo!()
    }
    /// Appends the MAC and gives the bytes.
    pub fn seal(self, _key: &FleetKey) -> Vec<u8> {
        todo!()
    }
}
