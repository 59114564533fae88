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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Unix = Unix::from_ms(1_764_009_600_123);
    const SKEW_MS: u64 = 30_000;

    fn key() -> FleetKey {
        FleetKey::new([7; 32])
    }

    fn keys() -> Keys {
        Keys::parse(&format!("{}\n{}\n", key().to_hex(), FleetKey::new([8; 32]).to_hex())).unwrap()
    }

    fn user(id: &str) -> User<'_> {
        User::parse(id.as_bytes()).unwrap()
    }

    fn sealed(leave: bool, sent_at: Unix, users: &[&str]) -> Vec<u8> {
        let mut writer = Writer::new(leave, sent_at, &key());
        for id in users {
            assert!(writer.push(user(id)));
        }
        writer.seal(&key())
    }

    /// A datagram of these bytes before the MAC, which is right.
    fn signed(bytes: &[u8]) -> Vec<u8> {
        [bytes, &key().mac(bytes)].concat()
    }

    /// The head of a good datagram and these bytes as entries.
    fn with_entries(entries: &[u8]) -> Vec<u8> {
        let head = &sealed(false, NOW, &["x"])[..HEAD_BYTES];
        signed(&[head, entries].concat())
    }

    fn opened(datagram: &[u8]) -> Result<(bool, u64, Vec<String>), BeatDrop> {
        open(datagram, &keys(), NOW, SKEW_MS).map(|beats| {
            (
                beats.leave,
                beats.sent_at.ms(),
                beats.users().map(|user| user.as_str().to_owned()).collect(),
            )
        })
    }

    #[test]
    fn layout() {
        let datagram = sealed(true, NOW, &["bob", "é"]);
        let mut expected = b"GD\x01\x01".to_vec();
        expected.extend_from_slice(&key().id().to_be_bytes());
        expected.extend_from_slice(b"\x00\x00\x01\x9a\xb7\x2a\x64\x7b\x03bob\x02\xc3\xa9");
        assert_eq!(datagram[..datagram.len() - MAC_BYTES], expected);
        assert_eq!(
            datagram[datagram.len() - MAC_BYTES..],
            blake3::keyed_hash(&[7; 32], &expected).as_bytes()[..MAC_BYTES]
        );
        assert_eq!(opened(&datagram), Ok((true, NOW.ms(), vec!["bob".into(), "é".into()])));
        assert_eq!(
            opened(&sealed(false, NOW, &["x"])),
            Ok((false, NOW.ms(), vec!["x".into()]))
        );
    }

    #[test]
    fn short() {
        let datagram = sealed(false, NOW, &["x"]);
        assert_eq!(datagram.len(), DATAGRAM_BYTES_MIN);
        for len in 0..datagram.len() {
            assert_eq!(opened(&datagram[..len]), Err(BeatDrop::Short));
        }
        assert_eq!(opened(&sealed(false, NOW, &[])), Err(BeatDrop::Short));
        assert_eq!(opened(&[0; DATAGRAM_BYTES_MAX + 1]), Err(BeatDrop::Short));
        assert_eq!(opened(&[0; DATAGRAM_BYTES_MAX]), Err(BeatDrop::Magic));
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let datagram = sealed(false, NOW, &["bob", "carol"]);
        for bit in 0..datagram.len() * 8 {
            let mut bent = datagram.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            let why = match bit / 8 {
                0..2 => BeatDrop::Magic,
                2 => BeatDrop::Version,
                3 if bit % 8 > 0 => BeatDrop::Version,
                4..8 => BeatDrop::Key,
                _ => BeatDrop::Mac,
            };
            assert_eq!(opened(&bent), Err(why), "bit {bit}");
        }
    }

    #[test]
    fn cut_or_lengthened() {
        let datagram = sealed(false, NOW, &["bob", "carol"]);
        for len in DATAGRAM_BYTES_MIN..datagram.len() {
            assert_eq!(opened(&datagram[..len]), Err(BeatDrop::Mac));
        }
        assert_eq!(opened(&[&datagram[..], b"\0"].concat()), Err(BeatDrop::Mac));
    }

    #[test]
    fn keys_by_id() {
        let mut writer = Writer::new(false, NOW, &FleetKey::new([8; 32]));
        assert!(writer.push(user("x")));
        assert!(
            opened(&writer.seal(&FleetKey::new([8; 32]))).is_ok(),
            "any key of the file opens"
        );

        let mut writer = Writer::new(false, NOW, &FleetKey::new([9; 32]));
        assert!(writer.push(user("x")));
        assert_eq!(opened(&writer.seal(&FleetKey::new([9; 32]))), Err(BeatDrop::Key));

        let mut device = sealed(false, NOW, &["x"])[..HEAD_BYTES + 2].to_vec();
        device[4] |= 0x80;
        assert_eq!(opened(&signed(&device)), Err(BeatDrop::Key), "no device keys");
    }

    #[test]
    fn stale() {
        let at = |ms| opened(&sealed(false, Unix::from_ms(ms), &["x"])).map(|(_, sent_at, _)| sent_at);
        for ms in [NOW.ms() - SKEW_MS, NOW.ms() + SKEW_MS] {
            assert_eq!(at(ms), Ok(ms));
        }
        for ms in [NOW.ms() - SKEW_MS - 1, NOW.ms() + SKEW_MS + 1, 0, u64::MAX] {
            assert_eq!(at(ms), Err(BeatDrop::Stale));
        }
    }

    #[test]
    fn entries() {
        assert_eq!(
            opened(&with_entries(b"\x01a\x01b")),
            Ok((false, NOW.ms(), vec!["a".into(), "b".into()]))
        );
        let longest = [&[128][..], &[b'x'; 128]].concat();
        assert!(opened(&with_entries(&longest)).is_ok());
        let mixed = [&b"\x02\xc3\xa9"[..], &longest, b"\x04\xf0\x9f\x9f\xa2"].concat();
        let ids = vec!["é".into(), "x".repeat(128), "\u{1F7E2}".into()];
        assert_eq!(opened(&with_entries(&mixed)), Ok((false, NOW.ms(), ids)));
        let torn = [&longest[..], b"\x01\xc3\x01\xa9"].concat();
        let too_long = [&[129][..], &[b'x'; 129]].concat();
        for bad in [
            &b"\x00\x01a"[..],
            b"\x01a\x00",
            b"\x03ab",
            b"\x01a\x01",
            b"\x01a\xff",
            b"\x01\x00",
            b"\x01\x7f",
            b"\x02\xc2\x85",
            b"\x01\xff",
            b"\x01\xc3\x01\xa9",
            b"\x01\xc3\xa9",
            b"\x02a\xc3\xa9",
            &too_long,
            &torn,
        ] {
            assert_eq!(
                opened(&with_entries(bad)),
                Err(BeatDrop::Entry),
                "{}",
                bad.escape_ascii()
            );
        }
    }

    #[test]
    fn a_full_datagram() {
        let mut writer = Writer::new(false, NOW, &key());
        assert!(writer.is_empty());
        let mut count = 0;
        while writer.push(user("sixteen-byte-id!")) {
            count += 1;
        }
        assert!(!writer.is_empty());
        assert_eq!(count, (DATAGRAM_BYTES_MAX - HEAD_BYTES - MAC_BYTES) / 17);
        assert!(writer.push(user("six")), "what does not fit leaves room for what does");
        let datagram = writer.seal_in_place(&key()).to_vec();
        assert_eq!(opened(&datagram).map(|(_, _, users)| users.len()), Ok(count + 1));

        writer.restart(true, NOW, &key());
        assert!(writer.push(user("x")));
        assert_eq!(writer.seal_in_place(&key()), sealed(true, NOW, &["x"]));
    }

    #[test]
    fn labels() {
        let labels = BeatDrop::ALL.map(BeatDrop::label);
        assert_eq!(labels, ["short", "magic", "version", "key", "mac", "stale", "entry"]);
    }

    proptest! {
        #[test]
        fn write_open(
            leave in any::<bool>(),
            apart_ms in 0..=SKEW_MS,
            users in prop::collection::vec("[^\\p{Cc}]{1,32}", 1..9),
        ) {
            let sent_at = Unix::from_ms(NOW.ms() - apart_ms);
            let ids: Vec<&str> = users.iter().map(String::as_str).collect();
            prop_assert_eq!(opened(&sealed(leave, sent_at, &ids)), Ok((leave, sent_at.ms(), users)));
        }
    }
}
