//! Verifies a token: a JWT (RFC 7519) in its compact form, read as RFC 8725 recommends.
//!
//! Owns every reason for which one is refused. Nothing of a claim is looked at before the signature
//! holds. No refusal quotes the token.

use serde_json::value::RawValue;

use super::grant::Said;
use super::json::{Others, members, value};
use super::keys::Keys;
use super::{Digest, Grant, WatchDefault, from_base64url};
use crate::time::Unix;
use crate::wire::UserBuf;

/// Longest token in bytes; a longer one is not even decoded.
pub const TOKEN_BYTES_MAX: usize = 4_096;

/// How far, in ms, the clock of whoever issues tokens may be ahead of this one.
pub const ISSUED_AHEAD_MS_MAX: u64 = 10_000;

/// By what tokens are verified.
#[derive(Debug)]
pub struct Rules {
    /// Who may have signed one.
    pub keys: Keys,
    /// The `aud` that one must be for. Without it, one that names any is refused (RFC 7519, section
    /// 4.1.3).
    pub audience: Option<String>,
    /// The `iss` that one must be from. Without it any.
    pub issuer: Option<String>,
    /// Longest rest of a token's life, in ms: for as long must a revocation be remembered.
    pub ttl_max_ms: u64,
    /// Whom one without `watch` lets its holder watch.
    pub watch_default: WatchDefault,
}

/// Why a token is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// More than [`TOKEN_BYTES_MAX`] bytes.
    TooLong,
    /// Not three parts of base64url.
    Form,
    /// The header is no JSON object, or has a parameter that is not taken.
    Header,
    /// It is for something else, or is no JWT.
    Type,
    /// No key has its name, or it names none of several.
    Key,
    /// It names another algorithm than its key's.
    Algorithm,
    /// It was not signed by its key.
    Signature,
    /// The claims are no JSON object, or one of them has the wrong form.
    Claims,
    /// `sub` is missing, or is no user id.
    Subject,
    /// `exp` is missing.
    NoExpiry,
    /// `exp` has come.
    Expired,
    /// `exp` lies too far ahead.
    LongLived,
    /// `nbf` or `iat` has not come yet.
    Early,
    /// It is for another audience.
    Audience,
    /// It is from another issuer.
    Issuer,
    /// It, or all of its user's that were made when it was, has been revoked.
    Revoked,
    /// The claim `greendot` has a member that is not known, or one of the wrong form.
    Grant,
}

impl Refusal {
    /// All, with a name that stays as it is.
    pub const ALL: [(Refusal, &'static str); 17] = [
        (Refusal::TooLong, "too_long"),
        (Refusal::Form, "form"),
        (Refusal::Header, "header"),
        (Refusal::Type, "type"),
        (Refusal::Key, "key"),
        (Refusal::Algorithm, "algorithm"),
        (Refusal::Signature, "signature"),
        (Refusal::Claims, "claims"),
        (Refusal::Subject, "sub"),
        (Refusal::NoExpiry, "no_exp"),
        (Refusal::Expired, "expired"),
        (Refusal::LongLived, "long_lived"),
        (Refusal::Early, "early"),
        (Refusal::Audience, "aud"),
        (Refusal::Issuer, "iss"),
        (Refusal::Revoked, "revoked"),
        (Refusal::Grant, "greendot"),
    ];

    /// Its name.
    pub fn reason(self) -> &'static str {
        let found = Refusal::ALL
            .into_iter()
            .find(|(refusal, _)| *refusal == self);
        found.map_or("form", |(_, name)| name)
    }

    /// What was wrong and what is allowed, for an error's `detail`.
    pub fn explain(self) -> &'static str {
        match self {
            Refusal::TooLong => "the token is longer than 4096 bytes",
            Refusal::Form => "the token is not a JWT: three parts of base64url without padding",
            Refusal::Header => {
                "the token's header is no JSON object, names a member twice, or has one of jku, \
                 x5u, jwk, x5c, crit, zip, cty"
            }
            Refusal::Type => "the token's typ is neither JWT nor at+jwt",
            Refusal::Key => {
                "no key has the token's kid; a token without one is taken where there is one key"
            }
            Refusal::Algorithm => "the token's alg is not its key's",
            Refusal::Signature => "the token's signature does not hold",
            Refusal::Claims => {
                "the token's claims are no JSON object, name one twice, have a jti that is no \
                 string, or an exp, nbf or iat that is not a whole number of seconds"
            }
            Refusal::Subject => "the token's sub is missing or not a user id",
            Refusal::NoExpiry => "the token has no exp",
            Refusal::Expired => "the token has expired",
            Refusal::LongLived => {
                "the token's exp lies further behind its iat, or further ahead, than \
                 --token-ttl-max"
            }
            Refusal::Early => "the token's nbf or iat lies ahead",
            Refusal::Audience => "the token's aud is not the one expected, --jwt-aud",
            Refusal::Issuer => "the token's iss is not the one expected, --jwt-iss",
            Refusal::Revoked => "the token has been revoked",
            Refusal::Grant => {
                "the token's greendot claim has other members than watch (at most 256 ids, \
                 prefixes ending in one *, or *), last_active (exact, minutes, none) and publish"
            }
        }
    }
}

impl Rules {
    /// What `token` grants at `now`.
    ///
    /// Errors: the first reason against it.
    pub fn verify(&self, token: &[u8], now: Unix) -> Result<Grant, Refusal> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Refusal::TooLong);
        }
        let token = std::str::from_utf8(token).map_err(|_| Refusal::Form)?;
        let (message, signature) = token.rsplit_once('.').ok_or(Refusal::Form)?;
        let (header, claims) = message.split_once('.').ok_or(Refusal::Form)?;
        // A dot more is no base64.
        let [header, claims, signature] =
            [header, claims, signature].map(|part| from_base64url(part).ok_or(Refusal::Form));
        let (header, claims, signature) = (header?, claims?, signature?);

        let header = Header::read(&header)?;
        let key = self.keys.find(header.kid.as_deref()).ok_or(Refusal::Key)?;
        if header.alg != key.algorithm.name() {
            return Err(Refusal::Algorithm);
        }
        if !key.verifies(message.as_bytes(), &signature) {
            return Err(Refusal::Signature);
        }
        self.judge(&claims, now)
    }

    /// What claims grant, if they are whose who may say so.
    ///
    /// Errors: the first reason against them.
    pub fn judge(&self, claims: &[u8], now: Unix) -> Result<Grant, Refusal> {
        let claims = std::str::from_utf8(claims).map_err(|_| Refusal::Claims)?;
        let names = ["sub", "exp", "nbf", "iat", "jti", "aud", "iss", "greendot"];
        let [sub, exp, nbf, iat, jti, aud, iss, greendot] =
            members(claims, names, Others::Ignored).ok_or(Refusal::Claims)?;

        let [exp, nbf, iat] = [exp, nbf, iat].map(|raw| raw.map(seconds).transpose());
        let expires = exp?.ok_or(Refusal::NoExpiry)?;
        if now >= expires {
            return Err(Refusal::Expired);
        }
        let issued = iat?;
        // By its own word too: one that is of use later would outlive its revocation.
        let born = issued.unwrap_or(now).min(now);
        if expires.ms_since(born) > self.ttl_max_ms {
            return Err(Refusal::LongLived);
        }
        let latest = now.plus_ms(ISSUED_AHEAD_MS_MAX);
        if [nbf?, issued]
            .into_iter()
            .flatten()
            .any(|from| from > latest)
        {
            return Err(Refusal::Early);
        }
        self.check_audience(aud)?;
        if let Some(expected) = &self.issuer
            && iss.and_then(value::<String>).as_ref() != Some(expected)
        {
            return Err(Refusal::Issuer);
        }
        let sub: String = sub.and_then(value).ok_or(Refusal::Subject)?;
        let jti = jti.map(|raw| value::<String>(raw).ok_or(Refusal::Claims));
        let said = Said {
            user: UserBuf::from_text(sub).map_err(|_| Refusal::Subject)?,
            expires,
            issued,
            token: jti.transpose()?.map(|jti| Digest::of_token(&jti)),
        };
        Grant::read(said, greendot, self.watch_default).ok_or(Refusal::Grant)
    }

    /// `aud` is a string or a list of them (RFC 7519, section 4.1.3).
    fn check_audience(&self, aud: Option<&RawValue>) -> Result<(), Refusal> {
        let named = match aud {
            None => Vec::new(),
            Some(aud) => value::<String>(aud)
                .map(|one| vec![one])
                .or_else(|| value(aud))
                .ok_or(Refusal::Claims)?,
        };
        let is_for_us = match &self.audience {
            None => aud.is_none(),
            Some(expected) => named.contains(expected),
        };
        if is_for_us {
            Ok(())
        } else {
            Err(Refusal::Audience)
        }
    }
}

/// What a header says that matters; the rest is passed over (RFC 7515, section 4).
pub(super) struct Header {
    alg: String,
    kid: Option<String>,
}

impl Header {
    pub(super) fn read(header: &[u8]) -> Result<Header, Refusal> {
        let text = std::str::from_utf8(header).map_err(|_| Refusal::Header)?;
        // Behind the first three: what would bring a key along, or change what the rest means.
        let names = [
            "alg", "kid", "typ", "jku", "x5u", "jwk", "x5c", "crit", "zip", "cty",
        ];
        let [alg, kid, typ, foreign @ ..] =
            members(text, names, Others::Ignored).ok_or(Refusal::Header)?;
        if foreign.iter().any(Option::is_some) {
            return Err(Refusal::Header);
        }
        let word = |raw: &RawValue| value::<String>(raw).ok_or(Refusal::Header);
        let (kid, typ) = (kid.map(word).transpose()?, typ.map(word).transpose()?);
        if typ.is_some_and(|typ| !is_type(&typ)) {
            return Err(Refusal::Type);
        }
        let alg = alg.map(word).transpose()?.ok_or(Refusal::Algorithm)?;
        Ok(Header { alg, kid })
    }
}

/// Whether a token of this type may say who its holder is (RFC 7519, section 5.1; RFC 9068).
fn is_type(typ: &str) -> bool {
    let typ = typ.to_ascii_lowercase();
    matches!(
        typ.strip_prefix("application/").unwrap_or(&typ),
        "jwt" | "at+jwt"
    )
}

/// Seconds since the epoch, whole ones.
fn seconds(raw: &RawValue) -> Result<Unix, Refusal> {
    let seconds: u64 = value(raw).ok_or(Refusal::Claims)?;
    Ok(Unix::from_ms(seconds.saturating_mul(1_000)))
}
