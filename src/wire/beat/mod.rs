//! The beat datagram (docs/PROTOCOL.md), both ways.
//!
//! Owns the byte layout, the fleet keys and the order of checks. Never answers, never looks a user
//! up, never reads a clock. Opening a datagram allocates nothing.
//!
//! ```text
//! at  bytes
//! 0       2  magic "GD"
//! 2       1  version = 1
//! 3       1  flags (`flags`)
//! 4       4  key id
//! 8       8  sent_at, Unix ms
//! 16      .. entries: len u8, user bytes; repeated
//! end    16  MAC: keyed BLAKE3, truncated, of all before it
//! ```
//!
//! The top bit of a key id says that a device's key signs; then there is more behind the head
//! (`device`).

mod bundle;
mod device;
mod flags;
mod key;
#[cfg(test)]
mod tests;

use constant_time_eq::constant_time_eq_16;

use crate::time::Unix;
use crate::wire::User;
use crate::wire::user::{USER_BYTES_MAX, is_suspect};

pub use bundle::{BUNDLE_DATAGRAMS_MAX, BundleFault, read_bundle, write_bundled};
pub use device::{DEVICE_BYTES_MAX, DeviceKey, Epochs, Sender, device_name};
pub use flags::{Flags, Outset};
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

/// Why a datagram was refused; each is a value of the metric label `reason`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BeatDrop {
    /// Shorter than head, one entry and MAC; or longer than the maximum.
    Short,
    /// Does not begin with the magic.
    Magic,
    /// Another version, a flag that this version does not know, or one of nodes under a device's
    /// key.
    Version,
    /// A key id that no fleet key here has, or of a device whose key's epoch does not count.
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
    /// Whether it is a goodbye, and what its beats say beside their users.
    pub flags: Flags,
    /// The sender's clock.
    pub sent_at: Unix,
    /// The device whose key has signed it, if it was no fleet key.
    pub sender: Option<Sender<'a>>,
    entries: Entries<'a>,
}

impl<'a> Beats<'a> {
    /// The users vouched for, in datagram order; at least one.
    pub fn users(&self) -> impl Iterator<Item = User<'a>> + use<'a> {
        self.entries
    }
}

/// Checks one datagram of a fleet key in the order short, magic, version, key, mac (constant time),
/// stale, entry. Nothing of it is believed before its MAC.
///
/// Errors: the first of these that does not hold.
pub fn open<'a>(
    datagram: &'a [u8],
    keys: &Keys,
    now: Unix,
    skew_max_ms: u64,
) -> Result<Beats<'a>, BeatDrop> {
    open_with(datagram, keys, None, now, skew_max_ms)
}

/// The same of a datagram that a device's key may have signed. Its key is made of what the datagram
/// says, so that its form is checked before the key.
///
/// Errors: the first check that does not hold.
pub fn open_any<'a>(
    datagram: &'a [u8],
    keys: &Keys,
    epochs: &Epochs,
    now: Unix,
    skew_max_ms: u64,
) -> Result<Beats<'a>, BeatDrop> {
    open_with(datagram, keys, Some(epochs), now, skew_max_ms)
}

fn open_with<'a>(
    datagram: &'a [u8],
    keys: &Keys,
    epochs: Option<&Epochs>,
    now: Unix,
    skew_max_ms: u64,
) -> Result<Beats<'a>, BeatDrop> {
    if !(DATAGRAM_BYTES_MIN..=DATAGRAM_BYTES_MAX).contains(&datagram.len()) {
        return Err(BeatDrop::Short);
    }
    let (signed, mac) = datagram
        .split_last_chunk::<MAC_BYTES>()
        .ok_or(BeatDrop::Short)?;
    let (head, entries) = signed
        .split_first_chunk::<HEAD_BYTES>()
        .ok_or(BeatDrop::Short)?;
    let [m0, m1, version, flags, k0, k1, k2, k3, sent_at @ ..] = *head;
    if [m0, m1] != MAGIC {
        return Err(BeatDrop::Magic);
    }
    if version != VERSION {
        return Err(BeatDrop::Version);
    }
    let flags = Flags::read(flags).ok_or(BeatDrop::Version)?;
    let id = u32::from_be_bytes([k0, k1, k2, k3]);
    if is_device_key(id) && flags.is_of_node() {
        return Err(BeatDrop::Version);
    }
    let (expected, sender, entries) = match id & device::DEVICE_BIT {
        0 => (keys.find(id).map(|key| key.mac(signed)), None, entries),
        _ => {
            let epochs = epochs.ok_or(BeatDrop::Key)?;
            let (sender, entries) = device::split(entries).ok_or(BeatDrop::Entry)?;
            // Its own user alone.
            let user = Entries::only(entries).ok_or(BeatDrop::Entry)?;
            (epochs.mac(id, sender, user, signed), Some(sender), entries)
        }
    };
    if !constant_time_eq_16(&expected.ok_or(BeatDrop::Key)?, mac) {
        return Err(BeatDrop::Mac);
    }
    let sent_at = Unix::from_ms(u64::from_be_bytes(sent_at));
    if now.ms_apart(sent_at) > skew_max_ms {
        return Err(BeatDrop::Stale);
    }
    let entries = match sender {
        None => Entries::check(entries).ok_or(BeatDrop::Entry)?,
        Some(_) => Entries::unread(entries),
    };
    Ok(Beats {
        flags,
        sent_at,
        sender,
        entries,
    })
}

/// The id of the key that a datagram names, whoever signed it; 0 of one that is too short for one.
pub fn key_id_of(datagram: &[u8]) -> u32 {
    let id = datagram.get(4..).and_then(|rest| rest.first_chunk());
    id.copied().map_or(0, u32::from_be_bytes)
}

/// Whether a datagram says that a device's key has signed it.
pub fn is_of_device(datagram: &[u8]) -> bool {
    is_device_key(key_id_of(datagram))
}

/// Whether a datagram says that a node of a fleet passes it on, or has a word of its own.
pub fn is_of_node(datagram: &[u8]) -> bool {
    let flags = datagram.get(3).and_then(|byte| Flags::read(*byte));
    flags.is_some_and(Flags::is_of_node)
}

/// Whether an id is that of a device's key.
pub fn is_device_key(id: u32) -> bool {
    id & device::DEVICE_BIT != 0
}

/// The first bytes of a hash.
fn truncated(hash: blake3::Hash) -> [u8; MAC_BYTES] {
    let bytes = hash.as_bytes().first_chunk();
    *bytes.expect("a BLAKE3 hash has 32 bytes")
}

/// The entries from `at` on, each of them a user id.
#[derive(Clone, Copy, Debug)]
struct Entries<'a> {
    bytes: &'a [u8],
    /// `bytes` as text, if one look at all of it has shown that every entry is a user id.
    text: Option<&'a str>,
    at: usize,
}

impl<'a> Entries<'a> {
    /// None if an entry is not a user id or overruns `bytes`.
    fn check(bytes: &'a [u8]) -> Option<Entries<'a>> {
        let (mut at, mut longest, mut suspects) = (0, 0, 0);
        while let Some(length) = bytes.get(at) {
            if *length == 0 {
                return None;
            }
            longest = longest.max(*length);
            suspects += usize::from(is_suspect(*length));
            at += 1 + usize::from(*length);
        }
        if at != bytes.len() || usize::from(longest) > USER_BYTES_MAX {
            return None;
        }
        // Where all is UTF-8 and the lengths are below 128, each length is a character of its own,
        // so that the ids begin and end between characters. If the lengths are all that looks like
        // a control character, no id holds one.
        let plain = longest < 128 && suspects == suspects_in(bytes);
        let text = if plain {
            std::str::from_utf8(bytes).ok()
        } else {
            None
        };
        let entries = Entries { bytes, text, at: 0 };
        (text.is_some() || entries.all_parse()).then_some(entries)
    }

    /// Those that have been checked otherwise.
    fn unread(bytes: &'a [u8]) -> Entries<'a> {
        Entries {
            bytes,
            text: None,
            at: 0,
        }
    }

    /// The user, if there is one entry and no more.
    fn only(bytes: &'a [u8]) -> Option<User<'a>> {
        let (length, user) = bytes.split_first()?;
        let is_whole = usize::from(*length) == user.len();
        User::parse(user).ok().filter(|_| is_whole)
    }

    fn all_parse(mut self) -> bool {
        while self.at < self.bytes.len() {
            if self.next().is_none() {
                return false;
            }
        }
        true
    }
}

/// How many bytes look like a part of a control character.
fn suspects_in(bytes: &[u8]) -> usize {
    // So few at a time that a byte can count them: the compiler then counts sixteen at once.
    let chunks = bytes.chunks(usize::from(u8::MAX));
    chunks
        .map(|chunk| {
            usize::from(
                chunk
                    .iter()
                    .map(|byte| u8::from(is_suspect(*byte)))
                    .sum::<u8>(),
            )
        })
        .sum()
}

impl<'a> Iterator for Entries<'a> {
    type Item = User<'a>;

    fn next(&mut self) -> Option<User<'a>> {
        let start = self.at + 1;
        let end = start + usize::from(*self.bytes.get(self.at)?);
        self.at = end;
        match self.text {
            Some(text) => text.get(start..end).map(User::vetted),
            None => User::parse(self.bytes.get(start..end)?).ok(),
        }
    }
}

/// Writes datagrams: `push` until it says full, then `seal`; or `seal_in_place` and `restart`,
/// which keep the buffer.
#[derive(Clone, Debug)]
pub struct Writer {
    /// Head and entries; after a seal the MAC too.
    bytes: Vec<u8>,
}

impl Writer {
    /// Starts a datagram of beats, or of goodbyes.
    pub fn new(leave: bool, sent_at: Unix, key: &FleetKey) -> Writer {
        let flags = if leave { Flags::LEAVE } else { Flags::BEAT };
        Writer::of(flags, sent_at, key)
    }

    /// Starts a datagram that says so of all its users.
    pub fn of(flags: Flags, sent_at: Unix, key: &FleetKey) -> Writer {
        let mut writer = Writer {
            bytes: Vec::with_capacity(DATAGRAM_BYTES_MAX),
        };
        writer.restart(flags, sent_at, key);
        writer
    }

    /// Starts another datagram in the same buffer.
    pub fn restart(&mut self, flags: Flags, sent_at: Unix, key: &FleetKey) {
        self.bytes.clear();
        self.bytes.extend_from_slice(&MAGIC);
        self.bytes.extend_from_slice(&[VERSION, flags.byte()]);
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
        debug_assert_eq!(
            self.bytes[4..8],
            key.id().to_be_bytes(),
            "started under another key"
        );
        let mac = key.mac(&self.bytes);
        self.bytes.extend_from_slice(&mac);
        &self.bytes
    }
}
