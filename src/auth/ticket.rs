//! Tickets: what a page shows that can set neither a header nor a cookie.
//!
//! Owns their bytes, and every reason for which one is refused. Nothing is kept of one that is
//! made: it carries what it grants, under a key that every node of the fleet derives. Which have
//! been used is `spent`'s. No refusal quotes a ticket.
//!
//! ```text
//! at  bytes
//! 0       1  version = 1
//! 1       4  id of the fleet key
//! 5       8  which life of which node made it
//! 13      8  nonce
//! 21      8  made, Unix ms
//! 29      .. what it grants (`Grant::write`)
//! end    16  MAC: keyed BLAKE3, truncated, of all before it
//! ```

use constant_time_eq::constant_time_eq_16;

use super::{Grant, MAC_BYTES, from_base64url, mac, to_base64url};
use crate::time::Unix;
use crate::wire::beat::{FleetKey, Keys};

/// Longest ticket in characters: it stands in a URL.
pub const TICKET_CHARS_MAX: usize = 2_048;
/// How long a ticket is good for, in ms.
pub const TICKET_MS: u64 = 30_000;

/// BLAKE3 `derive_key` context of the key that makes tickets.
const CONTEXT: &str = "greendot ticket key v1";
const VERSION: u8 = 1;

/// Tells a ticket from all others, of this node and of the others. In the order of their making.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TicketId {
    pub(super) made: Unix,
    /// Which life of which node made it.
    pub(super) life: u64,
    pub(super) nonce: u64,
}

/// Why a ticket is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TicketRefusal {
    /// It is no base64url of a ticket's form.
    Form,
    /// No fleet key here has its key's id.
    Key,
    /// It was not made with its key.
    Mac,
    /// Its time is over, or its token's.
    Old,
    /// It was made later than it is.
    Future,
    /// It was made before this node started, or before its clock stepped back: whether it has been
    /// used is not known.
    BeforeStart,
    /// It has been used, or is being used.
    Used,
}

impl TicketRefusal {
    /// All, with a name that stays as it is.
    pub const ALL: [(TicketRefusal, &'static str); 7] = [
        (TicketRefusal::Form, "form"),
        (TicketRefusal::Key, "key"),
        (TicketRefusal::Mac, "mac"),
        (TicketRefusal::Old, "old"),
        (TicketRefusal::Future, "future"),
        (TicketRefusal::BeforeStart, "before_start"),
        (TicketRefusal::Used, "used"),
    ];

    /// Whether nobody who holds a fleet key has made it.
    pub fn is_forged(self) -> bool {
        matches!(
            self,
            TicketRefusal::Form | TicketRefusal::Key | TicketRefusal::Mac
        )
    }

    /// What was wrong, for an error's `detail`.
    pub fn explain(self) -> &'static str {
        match self {
            TicketRefusal::Form => "the ticket is none: take it as POST /v1/ticket has given it",
            TicketRefusal::Key => "no fleet key of this node has made the ticket",
            TicketRefusal::Mac => "the ticket has been changed",
            TicketRefusal::Old => "the ticket is too old",
            TicketRefusal::Future => "the ticket was made later than it is here",
            TicketRefusal::BeforeStart => "the ticket was made before this node started",
            TicketRefusal::Used => "the ticket has been used",
        }
    }
}

/// Bytes of a [`TicketId`].
pub const TICKET_ID_BYTES: usize = 24;

impl TicketId {
    /// As nodes of a fleet name it to each other.
    pub fn bytes(self) -> [u8; TICKET_ID_BYTES] {
        let mut bytes = [0; TICKET_ID_BYTES];
        let numbers = [self.made.ms(), self.life, self.nonce];
        for (bytes, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            bytes.copy_from_slice(&number.to_be_bytes());
        }
        bytes
    }

    /// One that no node made.
    pub(super) fn of_test(made: Unix, life: u64, nonce: u64) -> TicketId {
        TicketId { made, life, nonce }
    }

    /// The ticket's text.
    ///
    /// Errors: it would have more than [`TICKET_CHARS_MAX`] characters; it has so many.
    pub fn seal(self, grant: &Grant, key: &FleetKey) -> Result<String, usize> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&key.id().to_be_bytes());
        for number in [self.life, self.nonce, self.made.ms()] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        grant.write(&mut bytes);
        let mac = mac(key, CONTEXT, &bytes);
        bytes.extend_from_slice(&mac);
        let text = to_base64url(&bytes);
        match text.len() {
            0..=TICKET_CHARS_MAX => Ok(text),
            chars => Err(chars),
        }
    }
}

/// What a genuine ticket grants; its `ticket` says which it is. Whether its time has come, or is
/// over, and whether it has been used is still to be asked.
///
/// Errors: the first reason against it.
pub(super) fn open(text: &[u8], keys: &Keys) -> Result<Grant, TicketRefusal> {
    if text.len() > TICKET_CHARS_MAX {
        return Err(TicketRefusal::Form);
    }
    let text = std::str::from_utf8(text).map_err(|_| TicketRefusal::Form)?;
    let bytes = from_base64url(text).ok_or(TicketRefusal::Form)?;
    let split = bytes.split_last_chunk::<MAC_BYTES>();
    let (signed, mac_given) = split.ok_or(TicketRefusal::Form)?;
    let Some((&[VERSION, k0, k1, k2, k3], rest)) = signed.split_first_chunk() else {
        return Err(TicketRefusal::Form);
    };
    let key = keys.find(u32::from_be_bytes([k0, k1, k2, k3]));
    let key = key.ok_or(TicketRefusal::Key)?;
    if !constant_time_eq_16(&mac(key, CONTEXT, signed), mac_given) {
        return Err(TicketRefusal::Mac);
    }
    read(rest).ok_or(TicketRefusal::Form)
}

fn read(bytes: &[u8]) -> Option<Grant> {
    let (life, rest) = bytes.split_first_chunk()?;
    let (nonce, rest) = rest.split_first_chunk()?;
    let (made, rest) = rest.split_first_chunk()?;
    let [life, nonce, made] = [life, nonce, made].map(|bytes| u64::from_be_bytes(*bytes));
    let made = Unix::from_ms(made);
    Grant::carried(rest, TicketId { made, life, nonce })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::grant::Said;
    use crate::auth::{Digest, WatchDefault};
    use crate::wire::UserBuf;

    const ID: TicketId = TicketId {
        made: Unix::from_ms(1_764_009_600_123),
        life: 0x0102_0304_0506_0708,
        nonce: 9,
    };

    fn grant(claim: &str) -> Grant {
        let claim = serde_json::from_str(claim).unwrap();
        let said = Said {
            user: UserBuf::from_text("ali\u{e9}").unwrap(),
            expires: Unix::from_ms(1_764_013_200_000),
            issued: None,
            token: None,
        };
        Grant::read(said, Some(claim), WatchDefault::Nobody).unwrap()
    }

    fn keys() -> Keys {
        let lines = ["11".repeat(32), "22".repeat(32)].join("\n");
        Keys::parse(&lines).unwrap()
    }

    #[test]
    fn a_ticket_carries_all_that_its_token_grants() {
        for claim in [
            "{}",
            r#"{"watch":["*"]}"#,
            r#"{"watch":["bob","team-*","carol"],"last_active":"minutes","publish":false}"#,
            r#"{"watch":["\u00e9*"],"last_active":"none"}"#,
        ] {
            let mut grant = grant(claim);
            for (key, issued, jti) in [
                ("11", None, None),
                ("22", Some(17), None),
                ("22", None, Some("x")),
                ("11", Some(17), Some("x")),
            ] {
                grant.issued = issued.map(Unix::from_ms);
                grant.token = jti.map(Digest::of_token);
                let key = FleetKey::from_hex(&key.repeat(32)).unwrap();
                let text = ID.seal(&grant, &key).unwrap();
                let mut expected = grant.clone();
                expected.ticket = Some(ID);
                assert_eq!(open(text.as_bytes(), &keys()), Ok(expected), "{claim}");
            }
        }
    }

    #[test]
    fn whoever_holds_no_fleet_key_makes_none() {
        let keys = keys();
        let text = ID.seal(&grant("{}"), keys.signing()).unwrap();
        assert_eq!(text.len(), 80, "a ticket is short");
        for at in 0..text.len() {
            for other in ["A", "b", "_"] {
                let mut forged = text.clone();
                forged.replace_range(at..=at, other);
                if forged != text {
                    let refusal = open(forged.as_bytes(), &keys).unwrap_err();
                    assert!(refusal.is_forged(), "{at} {other}");
                }
            }
        }
        for at in 0..text.len() {
            assert!(open(&text.as_bytes()[..at], &keys).is_err(), "{at}");
        }
        let strange = FleetKey::new([3; 32]);
        let foreign = ID.seal(&grant("{}"), &strange).unwrap();
        assert_eq!(open(foreign.as_bytes(), &keys), Err(TicketRefusal::Key));
        for text in ["", "=", "AQ", "a.b.c", "AQ==", "\u{e9}"] {
            assert_eq!(open(text.as_bytes(), &keys), Err(TicketRefusal::Form));
        }
        // The key of beats and that of nodes' tokens make none.
        let mut bytes = from_base64url(&text).unwrap();
        bytes.truncate(bytes.len() - MAC_BYTES);
        let by = blake3::keyed_hash(&keys.signing().derived("greendot service token v1"), &bytes);
        bytes.extend_from_slice(&by.as_bytes()[..MAC_BYTES]);
        let text = to_base64url(&bytes);
        assert_eq!(open(text.as_bytes(), &keys), Err(TicketRefusal::Mac));
    }

    #[test]
    fn what_would_be_too_long_for_a_url_is_not_made() {
        let keys = keys();
        let watch = |count: usize| {
            let ids: Vec<String> = (0..count).map(|n| format!("\"user-{n:04}\"")).collect();
            grant(&format!("{{\"watch\":[{}]}}", ids.join(",")))
        };
        let most = (1..=256).rfind(|count| ID.seal(&watch(*count), keys.signing()).is_ok());
        assert_eq!(most, Some(147));
        assert_eq!(ID.seal(&watch(148), keys.signing()), Err(2_054));
        let text = ID.seal(&watch(147), keys.signing()).unwrap();
        assert!(open(text.as_bytes(), &keys).is_ok());
        let longer = format!("{text}{}", "A".repeat(TICKET_CHARS_MAX));
        assert_eq!(open(longer.as_bytes(), &keys), Err(TicketRefusal::Form));
    }
}
