//! Keys of every kind, and tokens that say whatever a test wants.

use std::sync::LazyLock;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
};

use super::{Algorithm, Keys, Rules, WatchDefault, to_base64url};
use crate::time::Unix;

/// When all tests take place: 2025-11-24T18:40:00Z.
pub(super) const NOW: Unix = Unix::from_ms(1_764_009_600_000);

pub(super) const KINDS: [Algorithm; 4] = [
    Algorithm::Hs256,
    Algorithm::Es256,
    Algorithm::EdDsa,
    Algorithm::Rs256,
];

pub(super) const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

pub(super) struct Forge {
    p256: EcdsaKeyPair,
    ed25519: Ed25519KeyPair,
    rsa: rsa::KeyPair,
}

/// One for all tests: an RSA key takes long to make.
pub(super) static FORGE: LazyLock<Forge> = LazyLock::new(Forge::new);

impl Forge {
    pub(super) fn new() -> Forge {
        Forge {
            p256: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            ed25519: Ed25519KeyPair::generate().unwrap(),
            rsa: rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap(),
        }
    }

    /// The content of the key file that verifies what is signed here.
    pub(super) fn file(&self, kind: Algorithm) -> Vec<u8> {
        let der = match kind {
            Algorithm::Hs256 => return SECRET.to_vec(),
            Algorithm::Es256 => self.p256.public_key().as_der().unwrap(),
            Algorithm::EdDsa => self.ed25519.public_key().as_der().unwrap(),
            Algorithm::Rs256 => self.rsa.public_key().as_der().unwrap(),
        };
        pem("PUBLIC KEY", der.as_ref()).into_bytes()
    }

    /// The file of the private key, of the kinds that `Signer` takes.
    pub(super) fn private_file(&self, kind: Algorithm) -> Vec<u8> {
        match kind {
            Algorithm::Hs256 => SECRET.to_vec(),
            Algorithm::Es256 => {
                let der = self.p256.to_pkcs8v1().unwrap();
                pem("PRIVATE KEY", der.as_ref()).into_bytes()
            }
            _ => {
                let der = self.ed25519.to_pkcs8v1().unwrap();
                pem("PRIVATE KEY", der.as_ref()).into_bytes()
            }
        }
    }

    pub(super) fn sign(&self, kind: Algorithm, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match kind {
            Algorithm::Hs256 => sign_with(SECRET, message),
            Algorithm::Es256 => {
                let signature = self.p256.sign(&random, message).unwrap();
                signature.as_ref().to_vec()
            }
            Algorithm::EdDsa => self.ed25519.sign(message).as_ref().to_vec(),
            Algorithm::Rs256 => {
                let mut signature = vec![0; self.rsa.public_modulus_len()];
                let signed = self
                    .rsa
                    .sign(&RSA_PKCS1_SHA256, &random, message, &mut signature);
                signed.unwrap();
                signature
            }
        }
    }

    /// A token of this header and these claims, well signed. `ALG` in the header is the kind's.
    pub(super) fn token(&self, kind: Algorithm, header: &str, claims: &str) -> String {
        let message = message(kind, header, claims);
        let signature = self.sign(kind, message.as_bytes());
        format!("{message}.{}", to_base64url(&signature))
    }

    /// Verifies by this one key.
    pub(super) fn rules(&self, kind: Algorithm) -> Rules {
        let mut keys = Keys::default();
        keys.add("app", &self.file(kind)).unwrap();
        rules(keys)
    }
}

pub(super) fn rules(keys: Keys) -> Rules {
    Rules {
        keys,
        audience: None,
        issuer: None,
        ttl_max_ms: 86_400_000,
        watch_default: WatchDefault::Nobody,
    }
}

pub(super) fn message(kind: Algorithm, header: &str, claims: &str) -> String {
    let header = header.replace("ALG", kind.name());
    let (header, claims) = (
        to_base64url(header.as_bytes()),
        to_base64url(claims.as_bytes()),
    );
    format!("{header}.{claims}")
}

pub(super) fn sign_with(secret: &[u8], message: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    hmac::sign(&key, message).as_ref().to_vec()
}

pub(super) fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let base64 = super::BASE64.encode(der);
    format!("-----BEGIN {label}-----\n{base64}\n-----END {label}-----\n")
}
