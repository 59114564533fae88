//! Fleet keys: what signs and opens a beat datagram.
//!
//! Owns the key file's text and the id by which a datagram names its key. Never makes a key:
//! randomness is the caller's.

use std::fmt;

use constant_time_eq::constant_time_eq_32;

use super::{MAC_BYTES, truncated};

/// BLAKE3 `derive_key` context of a key's id. Changing it renames every key.
const ID_CONTEXT: &str = "greendot fleet key id v1";
/// The same of the token that nodes show each other. Its name is of a time when it was services'.
const SERVICE_CONTEXT: &str = "greendot service token v1";

/// One fleet key: 32 bytes, named on the wire by `id` (top bit clear).
#[derive(Clone)]
pub struct FleetKey {
    bytes: [u8; 32],
    id: u32,
}

impl FleetKey {
    /// From 32 bytes; the id is the first 31 bits of a BLAKE3 `derive_key` of the key, so a key
    /// names itself.
    pub fn new(bytes: [u8; 32]) -> FleetKey {
        let [a, b, c, d, ..] = blake3::derive_key(ID_CONTEXT, &bytes);
        FleetKey {
            bytes,
            id: u32::from_be_bytes([a, b, c, d]) >> 1,
        }
    }

    /// From 64 hex digits.
    pub fn from_hex(digits: &str) -> Option<FleetKey> {
        blake3::Hash::from_hex(digits)
            .ok()
            .map(|bytes| FleetKey::new(*bytes.as_bytes()))
    }

    /// The 64 hex digits of a key file's line, without its end.
    pub fn to_hex(&self) -> String {
        blake3::Hash::from_bytes(self.bytes).to_hex().to_string()
    }

    /// The id on the wire.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The node token: 64 hex digits, derived from the fleet key, which it does not give
    /// away. A node shows it to another as `Authorization: Bearer ..` (RFC 6750).
    pub fn service_token(&self) -> String {
        blake3::Hash::from_bytes(self.derived(SERVICE_CONTEXT))
            .to_hex()
            .to_string()
    }

    /// A key of its own for another use, named by a BLAKE3 `derive_key` context. It does not give
    /// the fleet key away.
    pub fn derived(&self, context: &'static str) -> [u8; 32] {
        blake3::derive_key(context, &self.bytes)
    }

    /// The same for one of many uses of a kind, told apart by `which`.
    pub fn derived_of(&self, context: &'static str, which: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(&self.bytes).update(which);
        *hasher.finalize().as_bytes()
    }

    /// Keyed BLAKE3 of `bytes`, truncated.
    pub(super) fn mac(&self, bytes: &[u8]) -> [u8; MAC_BYTES] {
        truncated(blake3::keyed_hash(&self.bytes, bytes))
    }
}

impl PartialEq for FleetKey {
    fn eq(&self, other: &FleetKey) -> bool {
        constant_time_eq_32(&self.bytes, &other.bytes)
    }
}

impl Eq for FleetKey {}

impl fmt::Debug for FleetKey {
    /// The id alone: a key must not reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The fleet keys a node accepts, at least one; the first one signs.
#[derive(Clone, Debug)]
pub struct Keys {
    signing: FleetKey,
    others: Vec<FleetKey>,
}

/// Why a key file's text is no set of keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyFault {
    /// No key at all.
    Empty,
    /// A line is not 64 hex digits.
    NotHex {
        /// From 1.
        line: usize,
    },
    /// The same key, or one whose id an earlier line has (one chance in two billion).
    Twice {
        /// From 1.
        line: usize,
    },
}

impl fmt::Display for KeyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyFault::Empty => f.write_str("no key found; a key is a line of 64 hex digits"),
            KeyFault::NotHex { line } => write!(f, "line {line} is not a key of 64 hex digits"),
            KeyFault::Twice { line } => write!(f, "line {line} repeats a key; remove it"),
        }
    }
}

impl std::error::Error for KeyFault {}

impl Keys {
    /// Only this key.
    pub fn single(key: FleetKey) -> Keys {
        Keys {
            signing: key,
            others: Vec::new(),
        }
    }

    /// Reads a key file: one key a line, 64 hex digits; blank lines and `#` comments allowed.
    ///
    /// Errors: a line that is no key, with its number, or no key at all.
    pub fn parse(text: &str) -> Result<Keys, KeyFault> {
        let mut keys: Option<Keys> = None;
        for (index, line) in text.lines().enumerate() {
            let digits = line.trim();
            if digits.is_empty() || digits.starts_with('#') {
                continue;
            }
            let line = index + 1;
            let key = FleetKey::from_hex(digits).ok_or(KeyFault::NotHex { line })?;
            match &mut keys {
                None => keys = Some(Keys::single(key)),
                Some(keys) if keys.find(key.id).is_some() => return Err(KeyFault::Twice { line }),
                Some(keys) => keys.others.push(key),
            }
        }
        keys.ok_or(KeyFault::Empty)
    }

    /// The key that signs.
    pub fn signing(&self) -> &FleetKey {
        &self.signing
    }

    /// Whether an `Authorization` header's value is the node token of one of the keys. Takes as
    /// long for a wrong one.
    pub fn authorises(&self, header: &str) -> bool {
        let scheme = header
            .get(..7)
            .filter(|scheme| scheme.eq_ignore_ascii_case("Bearer "));
        let Some(given) = scheme.and_then(|_| blake3::Hash::from_hex(header[7..].trim()).ok())
        else {
            return false;
        };
        // blake3::Hash compares in constant time.
        self.iter().fold(false, |found, key| {
            found | (given == blake3::Hash::from_bytes(key.derived(SERVICE_CONTEXT)))
        })
    }

    /// All of them, the one that signs first.
    pub fn iter(&self) -> impl Iterator<Item = &FleetKey> {
        std::iter::once(&self.signing).chain(&self.others)
    }

    /// The key of this id.
    pub fn find(&self, id: u32) -> Option<&FleetKey> {
        if self.signing.id == id {
            return Some(&self.signing);
        }
        self.others.iter().find(|key| key.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_itself() {
        let key = FleetKey::new([7; 32]);
        assert_eq!(key.to_hex(), "07".repeat(32));
        assert_eq!(FleetKey::from_hex(&key.to_hex()), Some(key.clone()));
        assert_eq!(key.id(), 964_074_028, "the id is part of the wire format");
        assert!(FleetKey::new([8; 32]).id() != key.id());
        assert_eq!(
            format!("{key:?}"),
            format!("FleetKey {{ id: {}, .. }}", key.id())
        );
    }

    #[test]
    fn key_files() {
        let (first, second) = ("0a".repeat(32), "0B".repeat(32));
        let keys = Keys::parse(&format!("# fleet\r\n\n  {first}  \r\n{second}")).unwrap();
        assert_eq!(keys.signing(), &FleetKey::new([0x0a; 32]));
        assert_eq!(
            keys.find(FleetKey::new([0x0b; 32]).id()),
            Some(&FleetKey::new([0x0b; 32]))
        );
        assert_eq!(keys.find(FleetKey::new([0x0c; 32]).id()), None);

        let fault = |text: &str| Keys::parse(text).unwrap_err();
        assert_eq!(fault(""), KeyFault::Empty);
        assert_eq!(fault("\n# none\n"), KeyFault::Empty);
        assert_eq!(
            fault(&format!("{first}\n\n{first}")),
            KeyFault::Twice { line: 3 }
        );
        for bad in [
            "x",
            &first[1..],
            &format!("{first}0"),
            &format!("{first} #"),
            &format!("{}g", &first[1..]),
            &"é".repeat(32),
        ] {
            assert_eq!(
                fault(&format!("# a\n{bad}")),
                KeyFault::NotHex { line: 2 },
                "{bad}"
            );
        }
        assert_eq!(
            KeyFault::NotHex { line: 2 }.to_string(),
            "line 2 is not a key of 64 hex digits"
        );
    }

    #[test]
    fn service_tokens() {
        let (first, second, other) = (
            FleetKey::new([1; 32]),
            FleetKey::new([2; 32]),
            FleetKey::new([3; 32]),
        );
        let keys = Keys::parse(&format!("{}\n{}\n", first.to_hex(), second.to_hex())).unwrap();
        for key in [&first, &second] {
            assert!(keys.authorises(&format!("Bearer {}", key.service_token())));
            assert!(keys.authorises(&format!("bearer  {}", key.service_token())));
            assert!(!keys.authorises(&key.service_token()));
            assert!(
                !keys.authorises(&format!("Bearer {}", key.to_hex())),
                "the key itself is not the token"
            );
        }
        assert!(!keys.authorises(&format!("Bearer {}", other.service_token())));
        for bad in ["", "Bearer", "Bearer ", "Basic x", "Bearér x"] {
            assert!(!keys.authorises(bad), "{bad:?}");
        }
    }
}
