//! Sessions: what the dashboard's cookie holds in the place of a service key.
//!
//! Owns their bytes, and until when one is good. Nothing is kept of one that is made: it is sealed
//! under a key that every node of the fleet derives, and names the service's key by its hash. So it
//! ends when that key is listed no more, and its scopes are those that the file gives the key.
//!
//! ```text
//! at  bytes
//! 0       1  version = 1
//! 1       4  id of the fleet key
//! 5       8  ends, Unix ms
//! 13     32  hash of the service's key, as the file has it
//! 45     16  MAC: keyed BLAKE3, truncated, of all before it
//! ```

use constant_time_eq::constant_time_eq_16;

use super::{MAC_BYTES, Service, ServiceKeys, from_base64url, mac, to_base64url};
use crate::time::Unix;
use crate::wire::beat::{FleetKey, Keys};

/// The cookie that holds one.
pub const SESSION_COOKIE: &str = "greendot-session";
/// How long one is good for, in ms: a working day.
pub const SESSION_MS: u64 = 12 * 3_600_000;

/// BLAKE3 `derive_key` context of the key that seals sessions.
const CONTEXT: &str = "greendot session key v1";
const VERSION: u8 = 1;
/// Characters of one: 61 bytes in base64url.
const CHARS: usize = 82;

/// A session of this service, from now on.
pub(super) fn seal(service: &Service, key: &FleetKey, now: Unix) -> String {
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&key.id().to_be_bytes());
    bytes.extend_from_slice(&now.plus_ms(SESSION_MS).ms().to_be_bytes());
    bytes.extend_from_slice(service.hash.as_bytes());
    let mac = mac(key, CONTEXT, &bytes);
    bytes.extend_from_slice(&mac);
    to_base64url(&bytes)
}

/// Whose session this is, and when it ends. None: it is none, or not any more.
pub(super) fn open(
    text: &str,
    keys: &Keys,
    services: &ServiceKeys,
    now: Unix,
) -> Option<(Service, Unix)> {
    if text.len() != CHARS {
        return None;
    }
    let bytes = from_base64url(text)?;
    let (signed, mac_given) = bytes.split_last_chunk::<MAC_BYTES>()?;
    let (&[version, k0, k1, k2, k3], rest) = signed.split_first_chunk()?;
    let key = keys.find(u32::from_be_bytes([k0, k1, k2, k3]))?;
    if version != VERSION || !constant_time_eq_16(&mac(key, CONTEXT, signed), mac_given) {
        return None;
    }
    let (ends, hash) = rest.split_first_chunk()?;
    let ends = Unix::from_ms(u64::from_be_bytes(*ends));
    let hash = blake3::Hash::from_slice(hash).ok()?;
    let service = services.of_hash(hash)?;
    (now < ends).then(|| (service.clone(), ends))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::new_service_key;

    const NOW: Unix = Unix::from_ms(1_764_009_600_123);

    fn fleet() -> Keys {
        let lines = ["11".repeat(32), "22".repeat(32)].join("\n");
        Keys::parse(&lines).unwrap()
    }

    /// A service's key and its line.
    fn made(scopes: &str, byte: u8) -> (String, String) {
        new_service_key("ops", scopes.parse().unwrap(), &[byte; 32]).unwrap()
    }

    #[test]
    fn a_session_is_good_while_its_key_is_listed_and_its_time_lasts() {
        let ((shown, line), (_, other)) = (made("metrics", 1), made("metrics", 2));
        let keys = fleet();
        let services = ServiceKeys::parse(&format!("{other}\n{line}")).unwrap();
        let service = services.find(&shown).unwrap();
        let text = seal(service, keys.signing(), NOW);
        assert_eq!(text.len(), CHARS);
        let ends = NOW.plus_ms(SESSION_MS);
        let at = |services: &ServiceKeys, now| open(&text, &keys, services, now);
        assert_eq!(at(&services, NOW), Some((service.clone(), ends)));
        assert!(at(&services, ends.minus_ms(1)).is_some());
        assert_eq!(at(&services, ends), None);
        let without = ServiceKeys::parse(&other).unwrap();
        assert_eq!(at(&without, NOW), None);
        // It may what the file says now.
        let more = line.replace("metrics", "metrics,admin");
        let more = ServiceKeys::parse(&more).unwrap();
        let (service, _) = at(&more, NOW).unwrap();
        assert_eq!(service.scopes.to_string(), "metrics,admin");
        // The other fleet key of the file opens too, and no third.
        let second = FleetKey::from_hex(&"22".repeat(32)).unwrap();
        let by_second = seal(&service, &second, NOW);
        assert!(open(&by_second, &keys, &services, NOW).is_some());
        let by_stranger = seal(&service, &FleetKey::new([3; 32]), NOW);
        assert_eq!(open(&by_stranger, &keys, &services, NOW), None);
    }

    #[test]
    fn whoever_holds_no_fleet_key_makes_none() {
        let (shown, line) = made("admin", 1);
        let (keys, services) = (fleet(), ServiceKeys::parse(&line).unwrap());
        let text = seal(services.find(&shown).unwrap(), keys.signing(), NOW);
        for at in 0..text.len() {
            for other in ["A", "b", "_"] {
                let mut forged = text.clone();
                forged.replace_range(at..=at, other);
                let opened = open(&forged, &keys, &services, NOW);
                assert!(forged == text || opened.is_none(), "{at} {other}");
            }
            assert_eq!(open(&text[..at], &keys, &services, NOW), None, "{at}");
        }
        for text in ["", "=", &format!("{text}A"), &"\u{e9}".repeat(41), &shown] {
            assert_eq!(open(text, &keys, &services, NOW), None, "{text}");
        }
    }
}
