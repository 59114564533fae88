//! Identity: who a caller is, and what a token lets them see.
//!
//! Owns key files, tokens (JWT, RFC 7519), what they grant, tickets, service keys and sessions.
//! Bytes come in and values go out: no connection, no file, and time is an argument. Signatures are
//! aws-lc-rs's; all else of a token is read here, since what a library accepts by default is more
//! than should be accepted.

#[doc(hidden)]
pub mod fuzz;
mod grant;
mod identity;
mod json;
mod keyring;
mod keys;
mod pem;
mod rates;
mod resumption;
mod revoked;
mod services;
mod session;
mod signer;
mod spent;
mod ticket;
mod token;
mod webhooks;

#[cfg(test)]
mod forge;
#[cfg(test)]
mod tests;

pub use crate::wire::record::LastActive;
pub use grant::{Grant, WATCH_ENTRIES_MAX, WatchDefault};
pub use identity::{Identity, Shown, cookie};
pub use keyring::{Keyring, Keyrings, Proof};
pub use keys::{Algorithm, KeyFault, Keys};
pub use rates::{Asked, Exceeded, HOLDERS_MAX, Rate, RateLimits, Rates};
pub use resumption::{RESUMPTION_SECONDS, open_resumption, seal_resumption};
pub use revoked::{Added, Digest, Judged, REVOCATIONS_PER_MESSAGE, Revocation, Revoked};
pub use services::{Scope, Scopes, Service, ServiceFault, ServiceKeys, new_service_key};
pub use session::{SESSION_COOKIE, SESSION_MS};
pub use signer::{Claims, Signer, SignerFault};
pub use spent::{Full, Reserved, Tickets};
pub use ticket::{TICKET_CHARS_MAX, TICKET_ID_BYTES, TICKET_MS, TicketId, TicketRefusal};
pub use token::{ISSUED_AHEAD_MS_MAX, Refusal, Rules, TOKEN_BYTES_MAX};
pub use webhooks::{WebhookSecretFault, WebhookSecrets};

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::engine::{DecodePaddingMode, Engine, GeneralPurpose, GeneralPurposeConfig};

use crate::wire::beat::FleetKey;

/// Base64 as JOSE writes it (RFC 7515, section 2). Padding and loose last bits are refused, so that
/// there is one way to write a token.
const BASE64URL: GeneralPurpose = URL_SAFE_NO_PAD;

/// Base64 of PEM files and of keys that are pasted, with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

fn from_base64url(text: &str) -> Option<Vec<u8>> {
    BASE64URL.decode(text).ok()
}

/// Bytes of what seals a ticket or a session.
const MAC_BYTES: usize = 16;

/// Keyed BLAKE3, truncated, under a key that `context` derives of the fleet's.
fn mac(key: &FleetKey, context: &'static str, bytes: &[u8]) -> [u8; MAC_BYTES] {
    let hash = blake3::keyed_hash(&key.derived(context), bytes);
    let mac = hash.as_bytes().first_chunk();
    *mac.expect("a BLAKE3 hash has 32 bytes")
}

fn to_base64url(bytes: &[u8]) -> String {
    BASE64URL.encode(bytes)
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text).ok()
}
