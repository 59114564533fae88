//! Making tokens, for `greendot token` and for tests.
//!
//! Owns what a signing key's file may hold. The server never signs: an application's backend does.

use std::fmt;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use serde::Serialize;

use super::keys::{Algorithm, Content, sound_secret};
use super::{Keys, LastActive, Refusal, Rules, WatchDefault, pem, to_base64url};
use crate::time::Unix;

/// A key that makes tokens.
pub struct Signer {
    kid: Option<String>,
    material: Material,
}

enum Material {
    Secret(Box<hmac::Key>),
    P256(Box<EcdsaKeyPair>),
    Ed25519(Box<Ed25519KeyPair>),
}

/// Why a file has no key to sign with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SignerFault {
    /// It is a public key.
    Public,
    /// It is none of the kinds that are taken.
    Kind,
    /// What the keys of a node are refused for.
    Key(super::KeyFault),
}

impl fmt::Display for SignerFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SignerFault::Public => {
                f.write_str("a public key signs nothing; name the private key of the pair")
            }
            SignerFault::Kind => f.write_str(
                "tokens are signed with a secret, or with a P-256 or Ed25519 key in PEM \
                 (PRIVATE KEY, PKCS #8): `openssl genpkey -algorithm ed25519`",
            ),
            SignerFault::Key(fault) => fault.fmt(f),
        }
    }
}

impl std::error::Error for SignerFault {}

/// What a new token says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claims<'c> {
    /// `sub`: its holder.
    pub user: &'c str,
    /// `iat`: when it is made.
    pub issued: Unix,
    /// `exp`: from when on it is void.
    pub expires: Unix,
    /// `aud`.
    pub audience: Option<&'c str>,
    /// `iss`.
    pub issuer: Option<&'c str>,
    /// `jti`: by which it can be revoked alone.
    pub id: Option<&'c str>,
    /// Whom its holder may watch; none leaves it to the node.
    pub watch: Option<&'c [String]>,
    /// How exactly they learn when others were last active.
    pub last_active: LastActive,
    /// Whether they may be online.
    pub publish: bool,
}

/// As RFC 7519 has them; what is none is left out.
#[derive(Serialize)]
struct Payload<'c> {
    sub: &'c str,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'c str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'c str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jti: Option<&'c str>,
    greendot: Greendot<'c>,
}

#[derive(Serialize)]
struct Greendot<'c> {
    #[serde(skip_serializing_if = "Option::is_none")]
    watch: Option<&'c [String]>,
    last_active: &'static str,
    publish: bool,
}

#[derive(Serialize)]
struct Header<'s> {
    alg: &'static str,
    typ: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<&'s str>,
}

impl Claims<'_> {
    /// Whether any node would take them.
    ///
    /// Errors: for what each would refuse them.
    pub fn check(&self) -> Result<(), Refusal> {
        let rules = Rules {
            keys: Keys::default(),
            audience: self.audience.map(str::to_owned),
            issuer: self.issuer.map(str::to_owned),
            ttl_max_ms: u64::MAX,
            watch_default: WatchDefault::Nobody,
        };
        rules.judge(&self.to_json(), self.issued).map(drop)
    }

    fn to_json(&self) -> Vec<u8> {
        let payload = Payload {
            sub: self.user,
            iat: self.issued.ms() / 1_000,
            exp: self.expires.ms() / 1_000,
            aud: self.audience,
            iss: self.issuer,
            jti: self.id,
            greendot: Greendot {
                watch: self.watch,
                last_active: self.last_active.name(),
                publish: self.publish,
            },
        };
        serde_json::to_vec(&payload).expect("names and strings are JSON")
    }
}

impl Signer {
    /// The key of a file: a secret, or a private key in PEM. Its tokens name it `kid`.
    ///
    /// Errors: it holds no key that signs.
    pub fn new(kid: Option<String>, content: &[u8]) -> Result<Signer, SignerFault> {
        let material = match Content::of(content) {
            Content::Secret(secret) => {
                let secret = sound_secret(secret).map_err(SignerFault::Key)?;
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
                Material::Secret(Box::new(key))
            }
            Content::Json(_) => return Err(SignerFault::Kind),
            Content::Pem(text) => private_pem(text)?,
        };
        Ok(Signer { kid, material })
    }

    /// What its tokens are signed by.
    pub fn algorithm(&self) -> Algorithm {
        match &self.material {
            Material::Secret(_) => Algorithm::Hs256,
            Material::P256(_) => Algorithm::Es256,
            Material::Ed25519(_) => Algorithm::EdDsa,
        }
    }

    /// A token. None if the kernel gives no random bytes, which ES256 takes.
    pub fn token(&self, claims: &Claims<'_>) -> Option<String> {
        let header = Header {
            alg: self.algorithm().name(),
            typ: "JWT",
            kid: self.kid.as_deref(),
        };
        let header = serde_json::to_vec(&header).expect("names and strings are JSON");
        let message = format!(
            "{}.{}",
            to_base64url(&header),
            to_base64url(&claims.to_json())
        );
        let signature = self.sign(message.as_bytes())?;
        Some(format!("{message}.{}", to_base64url(&signature)))
    }

    fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        Some(match &self.material {
            Material::Secret(secret) => hmac::sign(secret, message).as_ref().to_vec(),
            Material::P256(pair) => {
                let signature = pair.sign(&SystemRandom::new(), message).ok()?;
                signature.as_ref().to_vec()
            }
            Material::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
        })
    }
}

fn private_pem(text: &str) -> Result<Material, SignerFault> {
    let blocks = pem::blocks(text).ok_or(SignerFault::Key(super::KeyFault::Pem))?;
    let [block] = &blocks[..] else {
        return Err(SignerFault::Kind);
    };
    match &*block.label {
        "PRIVATE KEY" => {}
        label if label.ends_with("PUBLIC KEY") => return Err(SignerFault::Public),
        _ => return Err(SignerFault::Kind),
    }
    let der = &block.content;
    if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der) {
        return Ok(Material::P256(Box::new(pair)));
    }
    // OpenSSL leaves the public half out of the file.
    match Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
        Ok(pair) => Ok(Material::Ed25519(Box::new(pair))),
        Err(_) => Err(SignerFault::Kind),
    }
}
