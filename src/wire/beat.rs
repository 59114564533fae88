//! The beat datagram (DESIGN.md section 6), both ways.
//!
//! Owns the byte layout, the fleet keys and the order of checks. Never answers, never looks a user up, never reads a
//! clock. Opening a datagram allocates nothing.
//!
//! ```text
//! 0   2  magic "GD"          3  1  flags: bit 0 LEAVE           8  8  sent_at, Unix ms
//! 2   1  version = 1         4  4  key id                      16  .. entries: len u8, user bytes; repeated
//!                                                             end 16 MAC: keyed BLAKE3, truncated, of all before it
//! ```

mod key;
#[cfg(test)]
mod tests;

use constant_time_eq::constant_time_eq_16;

use crate::time::Unix;
use crate::wire::User;

pub use key::{FleetKey, KeyFault, Keys};

/// Longest datagram in bytes.
pub const DATAGRAM_BYTES_MAX: usize = 1_400;
/// Bytes before the entries.
pub const HEAD_BYTES: usize = 16;
/// Bytes of the truncated MAC at the end.
pub const MAC_BYTES: usize = 16;
/// Bytes of a datagram with one entry of one byte.
pub const DATAGRAM_BYTES_MIN: usize = HEAD_BYTES + 2 + MAC_BYTES;

const MAGIC: [u8; 2] = *b"GD";
const VERSION: u8 = 1;
const FLAG_LEAVE: u8 = 1;

/// Why a datagram was refused; each is a value of the metric label `reason`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BeatDrop {
    /// Shorter than head, one entry and MAC; or longer than the maximum.
    Short,
    /// Does not begin with the magic.
    Magic,
    /// Another version, or a flag that this version does not know.
    Version,
    /// A key id that no fleet key here has.
    Key,
    /// The MAC is not that of the bytes under the key.
    Mac,
    /// |now - sent_at| > beat_skew_max_ms.
    Stale,
    /// An entry is not a user id or overruns the datagram.
    Entry,
}

impl BeatDrop {
    /// Every reason, in the order of the checks.
    pub const ALL: [BeatDrop; 7] = [
        BeatDrop::Short,
        BeatDrop::Magic,
        BeatDrop::Version,
        BeatDrop::Key,
        BeatDrop::Mac,
        BeatDrop::Stale,
        BeatDrop::Entry,
    ];

    /// The value of the metric label `reason`.
    pub const fn label(self) -> &'static str {
        match self {
            BeatDrop::Short => "short",
            BeatDrop::Magic => "magic",
            BeatDrop::Version => "version",
            BeatDrop::Key => "key",
            BeatDrop::Mac => "mac",
            BeatDrop::Stale => "stale",
            BeatDrop::Entry => "entry",
        }
    }
}

/// A datagram whose MAC, age and entries have been checked.
#[derive(Clone, Copy, Debug)]
pub struct Beats<'a> {
    /// A goodbye rather than a beat.
    pub leave: bool,
    /// The sender's clock.
    pub sent_at: Unix,
    entries: Entries<'a>,
}

impl<'a> Beats<'a> {
    /// The users vouched for, in datagram order; at least one.
    pub fn users(&self) -> impl Iterator<Item = User<'a>> + use<'a> {
        // `open` has walked the same bytes to their end; each is checked again rather than believed, which costs a few ns.
        self.entries.map_while(Result::ok)
    }
}

/// Checks one datagram in the order short, magic, version, key, mac (constant time), stale, entry. Nothing of it is
/// believed before its MAC.
pub fn open<'a>(datagram: &'a [u8], keys: &Keys, now: Unix, skew_max_ms: u64) -> Result<Beats<'a>, BeatDrop> {
    if !(DATAGRAM_BYTES_MIN..=DATAGRAM_BYTES_MAX).contains(&datagram.len()) {
        return Err(BeatDrop::Short);
    }
    let (signed, mac) = datagram.split_last_chunk::<MAC_BYTES>().ok_or(BeatDrop::Short)?;
    let (head, entries) = signed.split_first_chunk::<HEAD_BYTES>().ok_or(BeatDrop::Short)?;
    let [m0, m1, version, flags, k0, k1, k2, k3, sent_at @ ..] = *head;
    if [m0, m1] != MAGIC {
        return Err(BeatDrop::Magic);
    }
    if version != VERSION || flags & !FLAG_LEAVE != 0 {
        return Err(BeatDrop::Version);
    }
    let key = keys.find(u32::from_be_bytes([k0, k1, k2, k3])).ok_or(BeatDrop::Key)?;
    if !constant_time_eq_16(&key.mac(signed), mac) {
        return Err(BeatDrop::Mac);
    }
    let sent_at = Unix::from_ms(u64::from_be_bytes(sent_at));
    if now.ms_apart(sent_at) > skew_max_ms {
        return Err(BeatDrop::Stale);
    }
    let entries = Entries::new(entries);
    if entries.into_iter().any(|entry| entry.is_err()) {
        return Err(BeatDrop::Entry);
    }
    Ok(Beats {
        leave: flags & FLAG_LEAVE != 0,
        sent_at,
        entries,
    })
}

/// The entries from `at` on; ends after the first that is none.
#[derive(Clone, Copy, Debug)]
struct Entries<'a> {
    bytes: &'a [u8],
    /// `bytes` as text, if all of them are UTF-8. Lengths below 128 are, and an entry is UTF-8 if the whole is and it
    /// begins and ends between characters. So one validation serves all entries, unless one has length 128 or is bad.
    text: Option<&'a str>,
    at: usize,
}

impl<'a> Entries<'a> {
    fn new(bytes: &'a [u8]) -> Entries<'a> {
        Entries {
            bytes,
            text: std::str::from_utf8(bytes).ok(),
            at: 0,
        }
    }

    fn user(&self, start: usize, end: usize) -> Option<User<'a>> {
        match self.text {
            Some(text) => User::from_text(text.get(start..end)?).ok(),
            None => User::parse(self.bytes.get(start..end)?).ok(),
        }
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<User<'a>, BeatDrop>;

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.at + 1;
        let end = start + usize::from(*self.bytes.get(self.at)?);
        let user = self.user(start, end);
        self.at = if user.is_some() { end } else { self.bytes.len() };
        Some(user.ok_or(BeatDrop::Entry))
    }
}

/// Writes datagrams: `push` until it says full, then `seal`; or `seal_in_place` and `restart`, which keep the buffer.
#[derive(Clone, Debug)]
pub struct Writer {
    /// Head and entries; after a seal the MAC too.
    bytes: Vec<u8>,
}

impl Writer {
    /// Starts a datagram.
    pub fn new(leave: bool, sent_at: Unix, key: &FleetKey) -> Writer {
        let mut writer = Writer {
            bytes: Vec::with_capacity(DATAGRAM_BYTES_MAX),
        };
        writer.restart(leave, sent_at, key);
        writer
    }

    /// Starts another datagram in the same buffer.
    pub fn restart(&mut self, leave: bool, sent_at: Unix, key: &FleetKey) {
        self.bytes.clear();
        self.bytes.extend_from_slice(&MAGIC);
        self.bytes
            .extend_from_slice(&[VERSION, if leave { FLAG_LEAVE } else { 0 }]);
        self.bytes.extend_from_slice(&key.id().to_be_bytes());
        self.bytes.extend_from_slice(&sent_at.ms().to_be_bytes());
    }

    /// Adds an entry; false (and nothing added) if it does not fit.
    #[must_use]
    pub fn push(&mut self, user: User<'_>) -> bool {
        let user = user.as_bytes();
        if self.bytes.len() + 1 + user.len() + MAC_BYTES > DATAGRAM_BYTES_MAX {
            return false;
        }
        let len = u8::try_from(user.len()).expect("a user id has at most 128 bytes");
        self.bytes.push(len);
        self.bytes.extend_from_slice(user);
        true
    }

    /// Whether nothing has been pushed: such a datagram says nothing and is refused as short.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == HEAD_BYTES
    }

    /// Appends the MAC and gives the bytes. `key` is the one that the datagram was started with.
    pub fn seal(mut self, key: &FleetKey) -> Vec<u8> {
        self.seal_in_place(key);
        self.bytes
    }

    /// Appends the MAC and lends the bytes; [`Writer::restart`] comes next.
    pub fn seal_in_place(&mut self, key: &FleetKey) -> &[u8] {
        debug_assert_eq!(self.bytes[4..8], key.id().to_be_bytes(), "started under another key");
        let mac = key.mac(&self.bytes);
        self.bytes.extend_from_slice(&mac);
        &self.bytes
    }
}
