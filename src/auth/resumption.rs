//! TLS session tickets: what a client gives back, so that its next handshake is a short one.
//!
//! Owns their bytes, and which are taken. Nothing is kept of one that is made: it is sealed under a
//! key that every node of the fleet derives from the fleet key and the half-day. So a client
//! resumes at another node, and at one that has been started anew, which is when all come at once.
//! What stands in one is the TLS library's.
//!
//! ```text
//! at  bytes
//! 0       1  version = 1
//! 1       4  id of the fleet key
//! 5       4  half-day: Unix time by 12 hours
//! 9      16  salt: no two tickets are sealed under one key
//! 25      n  the state, AES-256-GCM
//! ..     16  its tag; all before the state is authenticated with it
//! ```

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::time::Unix;
use crate::wire::beat::{FleetKey, Keys};

/// Time in which tickets are sealed under one half-day's key, in ms. One is taken in its own and in
/// the next.
const HALF_DAY_MS: u64 = 12 * 3_600_000;
/// Time for which a ticket is taken at least, in seconds.
pub const RESUMPTION_SECONDS: u32 = (HALF_DAY_MS / 1_000) as u32;

/// BLAKE3 `derive_key` context of the keys that seal them.
const CONTEXT: &str = "greendot tls session ticket v1";
const VERSION: u8 = 1;
const SALT_BYTES: usize = 16;
const HEAD_BYTES: usize = 1 + 4 + 4 + SALT_BYTES;
/// Longest state that is sealed: a client's chain of certificates would be longer, and none is
/// asked for.
const STATE_BYTES_MAX: usize = 4_096;

/// A ticket of this state. None: the state is too long, or the library does not seal it.
pub fn seal_resumption(
    state: &[u8],
    key: &FleetKey,
    now: Unix,
    salt: [u8; SALT_BYTES],
) -> Option<Vec<u8>> {
    if state.len() > STATE_BYTES_MAX {
        return None;
    }
    let mut head = [0; HEAD_BYTES];
    head[0] = VERSION;
    head[1..5].copy_from_slice(&key.id().to_be_bytes());
    head[5..9].copy_from_slice(&half_day(now).to_be_bytes());
    head[9..].copy_from_slice(&salt);
    let mut sealed = state.to_vec();
    aead(key, &head)?
        .seal_in_place_append_tag(nonce(), Aad::from(&head), &mut sealed)
        .ok()?;
    Some([&head[..], &sealed].concat())
}

/// The state that a ticket of one of these keys has. None: it is none, or too old.
pub fn open_resumption(ticket: &[u8], keys: &Keys, now: Unix) -> Option<Vec<u8>> {
    let (head, sealed) = ticket.split_first_chunk::<HEAD_BYTES>()?;
    if sealed.len() > STATE_BYTES_MAX + AES_256_GCM.tag_len() {
        return None;
    }
    let &[version, k0, k1, k2, k3, h0, h1, h2, h3, ..] = head;
    let made = u32::from_be_bytes([h0, h1, h2, h3]);
    let today = half_day(now);
    // A node whose clock is a little ahead has made it in the next.
    let counts = made.abs_diff(today) <= 1;
    if version != VERSION || !counts {
        return None;
    }
    let key = keys.find(u32::from_be_bytes([k0, k1, k2, k3]))?;
    let mut state = sealed.to_vec();
    let opened = aead(key, head)?.open_in_place(nonce(), Aad::from(head), &mut state);
    let state_bytes = opened.ok()?.len();
    state.truncate(state_bytes);
    Some(state)
}

/// The key of one ticket alone, by half-day and salt.
fn aead(key: &FleetKey, head: &[u8; HEAD_BYTES]) -> Option<LessSafeKey> {
    let (_, which) = head.split_at(5);
    let bytes = key.derived_of(CONTEXT, which);
    UnboundKey::new(&AES_256_GCM, &bytes)
        .ok()
        .map(LessSafeKey::new)
}

/// A key seals one ticket, so that any nonce does.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

fn half_day(now: Unix) -> u32 {
    u32::try_from(now.ms() / HALF_DAY_MS).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Unix = Unix::from_ms(1_764_009_600_123);
    const STATE: &[u8] = b"what the library wants back";

    fn fleet() -> Keys {
        let lines = ["11".repeat(32), "22".repeat(32)].join("\n");
        Keys::parse(&lines).unwrap()
    }

    #[test]
    fn a_ticket_counts_in_its_half_day_and_in_the_next() {
        let keys = fleet();
        let begins = Unix::from_ms(NOW.ms() / HALF_DAY_MS * HALF_DAY_MS);
        let ticket = seal_resumption(STATE, keys.signing(), begins, [7; 16]).unwrap();
        let at = |now| open_resumption(&ticket, &keys, now);
        assert_eq!(ticket.len(), HEAD_BYTES + STATE.len() + 16);
        for now in [
            begins,
            begins.plus_ms(2 * HALF_DAY_MS - 1),
            begins.minus_ms(1),
        ] {
            assert_eq!(at(now).as_deref(), Some(STATE), "{now:?}");
        }
        assert_eq!(at(begins.plus_ms(2 * HALF_DAY_MS)), None);
        assert_eq!(at(begins.minus_ms(HALF_DAY_MS + 1)), None);
        assert_eq!(RESUMPTION_SECONDS, 43_200);
    }

    #[test]
    fn every_key_of_the_file_opens_and_no_other() {
        let keys = fleet();
        let second = FleetKey::from_hex(&"22".repeat(32)).unwrap();
        let of = |key: &FleetKey| seal_resumption(STATE, key, NOW, [7; 16]).unwrap();
        assert_eq!(
            open_resumption(&of(&second), &keys, NOW).as_deref(),
            Some(STATE)
        );
        let stranger = of(&FleetKey::new([3; 32]));
        assert_eq!(open_resumption(&stranger, &keys, NOW), None);
    }

    #[test]
    fn a_ticket_with_a_bit_flipped_is_none_and_a_cut_one_neither() {
        let keys = fleet();
        let ticket = seal_resumption(STATE, keys.signing(), NOW, [7; 16]).unwrap();
        for bit in 0..ticket.len() * 8 {
            let mut forged = ticket.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open_resumption(&forged, &keys, NOW), None, "{bit}");
        }
        for len in 0..ticket.len() {
            assert_eq!(open_resumption(&ticket[..len], &keys, NOW), None, "{len}");
        }
        let longer = [&ticket[..], b"0"].concat();
        assert_eq!(open_resumption(&longer, &keys, NOW), None);
    }

    #[test]
    fn a_state_that_is_too_long_is_not_sealed() {
        let keys = fleet();
        let seal = |len| seal_resumption(&vec![1; len], keys.signing(), NOW, [7; 16]);
        let longest = seal(STATE_BYTES_MAX).unwrap();
        assert!(open_resumption(&longest, &keys, NOW).is_some());
        assert_eq!(seal(STATE_BYTES_MAX + 1), None);
    }

    #[test]
    fn no_two_tickets_are_alike() {
        let keys = fleet();
        let of = |salt| seal_resumption(STATE, keys.signing(), NOW, salt).unwrap();
        let (one, other) = (of([1; 16]), of([2; 16]));
        assert_ne!(one[HEAD_BYTES..], other[HEAD_BYTES..]);
    }
}
