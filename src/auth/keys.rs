//! The keys by which tokens are verified.
//!
//! Owns what a key file may hold, and that a key has exactly one algorithm, fixed when it is
//! loaded: what a token says of its algorithm chooses nothing (RFC 8725, section 3.1). Never quotes
//! a key.

use std::fmt;

use aws_lc_rs::hmac;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RsaPublicKeyComponents, VerificationAlgorithm,
};
use serde_json::value::RawValue;

use super::json::{Others, members, value};
use super::{from_base64, from_base64url, pem};

/// Fewest bytes of a secret: as many as the hash has (RFC 7518, section 3.2).
pub(super) const SECRET_BYTES_MIN: usize = 32;
/// Fewest and most bits of an RSA modulus (RFC 7518, section 3.3); aws-lc takes no longer ones.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=8_192;
/// Most keys over all files.
const KEYS_MAX: usize = 64;

/// How a token is signed (RFC 7518, RFC 8037).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    Hs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
    /// RSA, PKCS #1 v1.5, with SHA-256.
    Rs256,
}

impl Algorithm {
    /// Whether whoever verifies could sign as well.
    pub fn is_secret(self) -> bool {
        self == Algorithm::Hs256
    }

    /// About how long verifying a signature takes, in microseconds (measured: docs/SECURITY.md).
    const fn micros(self) -> u32 {
        match self {
            Algorithm::Hs256 => 2,
            Algorithm::Rs256 => 23,
            Algorithm::EdDsa => 42,
            Algorithm::Es256 => 68,
        }
    }

    /// As a token's header has it.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Hs256 => "HS256",
            Algorithm::Es256 => "ES256",
            Algorithm::EdDsa => "EdDSA",
            Algorithm::Rs256 => "RS256",
        }
    }
}

/// A key and the one algorithm that it is for.
pub(super) struct Key {
    kid: Box<str>,
    pub(super) algorithm: Algorithm,
    material: Material,
}

enum Material {
    Secret(Box<hmac::Key>),
    Public(Box<ParsedPublicKey>),
}

/// All keys by which a node verifies tokens.
#[derive(Default)]
pub struct Keys(Vec<Key>);

/// Why bytes are no key file, or none that can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyFault {
    /// A secret has fewer than 32 bytes.
    ShortSecret,
    /// What would be taken for a secret is a public key in another form, or of several lines.
    NoSecret,
    /// A private key where the public half is wanted.
    Private,
    /// A PEM block that is no public key, or is broken.
    Pem,
    /// More or less than one key in a PEM file.
    OneInPem,
    /// A public key of another kind than P-256, Ed25519 or RSA.
    Kind,
    /// An RSA key of too few or too many bits, or of a weak exponent.
    RsaBits,
    /// JSON, but neither a JWK nor a JWK set.
    Json,
    /// A key of a JWK set is broken.
    Jwk {
        /// From 1.
        at: usize,
    },
    /// A JWK set has no key that could verify a token here.
    NoKey,
    /// One of several keys of a set has no `kid`.
    NoKid {
        /// From 1.
        at: usize,
    },
    /// Two keys have one `kid`.
    KidTwice,
    /// More keys than are taken.
    TooMany,
}

impl fmt::Display for KeyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyFault::ShortSecret => {
                f.write_str("a secret has at least 32 bytes; `openssl rand -hex 32` makes one")
            }
            KeyFault::NoSecret => f.write_str(
                "neither PEM, JSON nor a secret; a secret is one line of text or random bytes, and \
                 no public key",
            ),
            KeyFault::Private => f.write_str(
                "this is a private key, with which tokens are made; whoever verifies takes its \
                 public half: `openssl pkey -in FILE -pubout`",
            ),
            KeyFault::Pem => f.write_str("the PEM is broken, or is no PUBLIC KEY"),
            KeyFault::OneInPem => f.write_str(
                "a PEM file has exactly one key here; give each a file, or make a JWK set",
            ),
            KeyFault::Kind => f.write_str("the public key is none of P-256, Ed25519 and RSA"),
            KeyFault::RsaBits => {
                f.write_str("an RSA key has 2048 to 8192 bits, and an odd exponent of 3 or more")
            }
            KeyFault::Json => f.write_str("this is JSON, but neither a JWK nor a JWK set"),
            KeyFault::Jwk { at } => write!(
                f,
                "key {at} is broken: a member stands there twice, is missing, or is none"
            ),
            KeyFault::NoKey => {
                f.write_str("no key of the set is for verifying by HS256, ES256, EdDSA or RS256")
            }
            KeyFault::NoKid { at } => write!(
                f,
                "key {at} of the set has no kid, by which tokens name one of several keys"
            ),
            KeyFault::KidTwice => f.write_str(
                "another key has the same kid; a key without one is named as its file is, without \
                 the extension",
            ),
            KeyFault::TooMany => write!(f, "there are more than {KEYS_MAX} keys in all"),
        }
    }
}

impl std::error::Error for KeyFault {}

impl Keys {
    /// Adds the keys of a file: one in PEM, a JWK, a JWK set, or else a secret. `stem` is the
    /// file's name without its extension: the `kid` of a key that has none of its own. Of a secret
    /// that is text, the end of its line is no part.
    ///
    /// Errors: it holds no key that can be used here, or one too many; nothing has been added then.
    pub fn add(&mut self, stem: &str, content: &[u8]) -> Result<(), KeyFault> {
        let found = match Content::of(content) {
            Content::Pem(text) => {
                let (material, algorithm) = public_pem(text)?;
                vec![(stem.to_owned(), material, algorithm)]
            }
            Content::Json(text) => jwks(stem, text)?,
            Content::Secret(secret) => {
                vec![(stem.to_owned(), self::secret(secret)?, Algorithm::Hs256)]
            }
        };
        if self.0.len() + found.len() > KEYS_MAX {
            return Err(KeyFault::TooMany);
        }
        let before = self.0.len();
        for (kid, material, algorithm) in found {
            if self.0.iter().any(|key| *key.kid == *kid) {
                self.0.truncate(before);
                return Err(KeyFault::KidTwice);
            }
            self.0.push(Key {
                kid: kid.into(),
                algorithm,
                material,
            });
        }
        Ok(())
    }

    /// Each key's `kid` and algorithm, in the order in which they were added.
    pub fn names(&self) -> impl Iterator<Item = (&str, Algorithm)> {
        self.0.iter().map(|key| (&*key.kid, key.algorithm))
    }

    /// About how long verifying a signature takes with the slowest of them, in microseconds.
    pub fn micros_max(&self) -> u32 {
        let micros = self.0.iter().map(|key| key.algorithm.micros());
        micros.max().unwrap_or(0)
    }

    /// The key of this name; without one, the only key. Never is more than one key tried.
    pub(super) fn find(&self, kid: Option<&str>) -> Option<&Key> {
        match (kid, &self.0[..]) {
            (Some(kid), keys) => keys.iter().find(|key| *key.kid == *kid),
            (None, [only]) => Some(only),
            (None, _) => None,
        }
    }
}

impl fmt::Debug for Keys {
    /// Names alone: a key must not reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl Key {
    /// Whether this key's owner signed `message`.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Secret(secret) => hmac::verify(secret, message, signature).is_ok(),
            Material::Public(key) => key.verify_sig(message, signature).is_ok(),
        }
    }
}

/// What a key file is, by its first look.
pub(super) enum Content<'c> {
    Pem(&'c str),
    Json(&'c str),
    /// Without the end of its line.
    Secret(&'c [u8]),
}

impl Content<'_> {
    pub(super) fn of(content: &[u8]) -> Content<'_> {
        match std::str::from_utf8(content) {
            Ok(text) if pem::is_pem(text) => Content::Pem(text),
            Ok(text) if text.trim_start().starts_with(['{', '[']) => Content::Json(text),
            Ok(text) => {
                let line = text.strip_suffix('\n').unwrap_or(text);
                Content::Secret(line.strip_suffix('\r').unwrap_or(line).as_bytes())
            }
            Err(_) => Content::Secret(content),
        }
    }
}

/// Takes a secret, but no public key that strayed here: everybody knows it, and could sign.
pub(super) fn sound_secret(secret: &[u8]) -> Result<&[u8], KeyFault> {
    if secret.len() < SECRET_BYTES_MIN {
        return Err(KeyFault::ShortSecret);
    }
    let strays = match std::str::from_utf8(secret) {
        Err(_) => is_der(secret),
        Ok(text) => {
            text.contains(char::is_control)
                || text.contains("-----")
                || text.starts_with("ssh-")
                || text.starts_with("ecdsa-")
                || from_base64(text.trim()).is_some_and(|bytes| is_der(&bytes))
        }
    };
    if strays {
        Err(KeyFault::NoSecret)
    } else {
        Ok(secret)
    }
}

/// Whether bytes are one DER sequence, as every public key and certificate is.
fn is_der(bytes: &[u8]) -> bool {
    let length = match bytes {
        [0x30, short @ ..=0x7f, ..] => 2 + usize::from(*short),
        [0x30, 0x81, a, ..] => 3 + usize::from(*a),
        [0x30, 0x82, a, b, ..] => 4 + usize::from(u16::from_be_bytes([*a, *b])),
        _ => return false,
    };
    bytes.len() == length
}

fn secret(secret: &[u8]) -> Result<Material, KeyFault> {
    let secret = sound_secret(secret)?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    Ok(Material::Secret(Box::new(key)))
}

fn public_pem(text: &str) -> Result<(Material, Algorithm), KeyFault> {
    let blocks = pem::blocks(text).ok_or(KeyFault::Pem)?;
    if blocks
        .iter()
        .any(|block| block.label.ends_with("PRIVATE KEY"))
    {
        return Err(KeyFault::Private);
    }
    let [block] = &blocks[..] else {
        return Err(KeyFault::OneInPem);
    };
    match &*block.label {
        "PUBLIC KEY" => public_der(&block.content),
        "RSA PUBLIC KEY" => rsa_der(&block.content),
        _ => Err(KeyFault::Pem),
    }
}

/// A SubjectPublicKeyInfo (RFC 5280): its own algorithm identifier says for what it is.
fn public_der(der: &[u8]) -> Result<(Material, Algorithm), KeyFault> {
    if !is_der(der) {
        return Err(KeyFault::Pem);
    }
    if let Some(key) = public(&ECDSA_P256_SHA256_FIXED, der) {
        return Ok((key, Algorithm::Es256));
    }
    if let Some(key) = public(&ED25519, der) {
        return Ok((key, Algorithm::EdDsa));
    }
    rsa_der(der)
}

fn rsa_der(der: &[u8]) -> Result<(Material, Algorithm), KeyFault> {
    let key = rsa::PublicKey::from_der(der).map_err(|_| KeyFault::Kind)?;
    let modulus = key.modulus().big_endian_without_leading_zero();
    let exponent = key.exponent().big_endian_without_leading_zero();
    Ok((rsa(modulus, exponent)?, Algorithm::Rs256))
}

fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Material, KeyFault> {
    let bits = modulus.first().map_or(0, |first| {
        (modulus.len() * 8).saturating_sub(first.leading_zeros() as usize)
    });
    // By an exponent of 1 every message would be its own signature.
    let is_exponent = exponent.first() != Some(&0)
        && exponent != [1]
        && exponent.last().is_some_and(|end| end % 2 == 1);
    if !RSA_BITS.contains(&bits) || !is_exponent {
        return Err(KeyFault::RsaBits);
    }
    let components = RsaPublicKeyComponents {
        n: modulus,
        e: exponent,
    };
    let key = components.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256);
    let key = key.map_err(|_| KeyFault::Kind)?;
    Ok(Material::Public(Box::new(key)))
}

/// The keys of a JWK set, or of one JWK.
fn jwks(stem: &str, text: &str) -> Result<Vec<(String, Material, Algorithm)>, KeyFault> {
    let [set] = members(text, ["keys"], Others::Ignored).ok_or(KeyFault::Json)?;
    let set: Vec<&str> = match set {
        None => vec![text],
        Some(set) => {
            let set: Vec<&RawValue> = value(set).ok_or(KeyFault::Json)?;
            set.into_iter().map(RawValue::get).collect()
        }
    };
    let mut found = Vec::new();
    for (before, key) in set.iter().enumerate() {
        let at = before + 1;
        match jwk(key, KeyFault::Jwk { at })? {
            Some((None, ..)) if set.len() > 1 => return Err(KeyFault::NoKid { at }),
            Some((kid, material, algorithm)) => {
                found.push((kid.unwrap_or(stem.to_owned()), material, algorithm));
            }
            None => {}
        }
    }
    if found.is_empty() {
        return Err(KeyFault::NoKey);
    }
    Ok(found)
}

/// Reads a JWK (RFC 7517, 7518, 8037). A set holds what an identity provider uses for all kinds of
/// things, so what is not for verifying here is none (RFC 7517, section 5).
fn jwk(
    text: &str,
    broken: KeyFault,
) -> Result<Option<(Option<String>, Material, Algorithm)>, KeyFault> {
    let names = [
        "kty", "kid", "alg", "use", "key_ops", "crv", "k", "x", "y", "n", "e", "d",
    ];
    let [kty, kid, alg, usage, key_ops, crv, k, x, y, n, e, private] =
        members(text, names, Others::Ignored).ok_or(broken)?;
    let word = |raw: Option<&RawValue>| -> Result<Option<String>, KeyFault> {
        raw.map(|raw| value(raw).ok_or(broken)).transpose()
    };
    let bytes = |raw: Option<&RawValue>| {
        let text = word(raw)?.ok_or(broken)?;
        from_base64url(&text).ok_or(broken)
    };
    let algorithm = match (word(kty)?.ok_or(broken)?.as_str(), word(crv)?.as_deref()) {
        ("oct", _) => Algorithm::Hs256,
        ("EC", Some("P-256")) => Algorithm::Es256,
        ("OKP", Some("Ed25519")) => Algorithm::EdDsa,
        ("RSA", _) => Algorithm::Rs256,
        _ => return Ok(None),
    };
    let operations: Option<Vec<String>> =
        key_ops.map(|list| value(list).ok_or(broken)).transpose()?;
    if word(alg)?.is_some_and(|alg| alg != algorithm.name())
        || word(usage)?.is_some_and(|usage| usage != "sig")
        || operations.is_some_and(|list| !list.iter().any(|what| what == "verify"))
    {
        return Ok(None);
    }
    if private.is_some() {
        return Err(KeyFault::Private);
    }
    let material = match algorithm {
        Algorithm::Hs256 => secret(&bytes(k)?)?,
        Algorithm::Es256 => {
            // An uncompressed point (SEC 1, section 2.3.3).
            let point = [
                &[4][..],
                &coordinate(bytes(x)?, broken)?,
                &coordinate(bytes(y)?, broken)?,
            ]
            .concat();
            public(&ECDSA_P256_SHA256_FIXED, &point).ok_or(broken)?
        }
        Algorithm::EdDsa => public(&ED25519, &coordinate(bytes(x)?, broken)?).ok_or(broken)?,
        Algorithm::Rs256 => rsa(&bytes(n)?, &bytes(e)?)?,
    };
    Ok(Some((word(kid)?, material, algorithm)))
}

/// 32 bytes, as RFC 7518, section 6.2.1.2, has them: leading zeros included.
fn coordinate(bytes: Vec<u8>, broken: KeyFault) -> Result<[u8; 32], KeyFault> {
    bytes.try_into().map_err(|_| broken)
}

fn public(algorithm: &'static dyn VerificationAlgorithm, bytes: &[u8]) -> Option<Material> {
    let key = ParsedPublicKey::new(algorithm, bytes).ok()?;
    Some(Material::Public(Box::new(key)))
}
