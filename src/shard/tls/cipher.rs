//! AES-128-GCM for TLS 1.3, whose key is made ready for each record.
//!
//! Owns what a connection keeps of its two keys: their bytes. A key that is kept ready takes some
//! 600 bytes, twice a connection, in cache lines that a stream's next record finds cold. To make
//! it anew takes less time than to fetch those (docs/PERFORMANCE.md). The cipher is the library's.

use std::cell::Cell;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::crypto::cipher::{
    self, AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, MessageDecrypter,
    MessageEncrypter, OutboundOpaqueMessage, OutboundPlainMessage, PrefixedPayload,
    Tls13AeadAlgorithm, UnsupportedOperationError, make_tls13_aad,
};
use rustls::{
    ConnectionTrafficSecrets, ContentType, Error, ProtocolVersion, SupportedCipherSuite,
    Tls13CipherSuite,
};

use crate::cache::prefetch;

/// Bytes of a key (RFC 5116, section 5.1).
const KEY_BYTES: usize = 16;
/// Bytes of a record's tag.
const TAG_BYTES: usize = 16;

/// The library's TLS_AES_128_GCM_SHA256, with these keys.
pub(super) fn aes_128_gcm_sha256(library: &'static Tls13CipherSuite) -> SupportedCipherSuite {
    static SUITE: std::sync::OnceLock<Tls13CipherSuite> = std::sync::OnceLock::new();
    SupportedCipherSuite::Tls13(SUITE.get_or_init(|| Tls13CipherSuite {
        common: rustls::CipherSuiteCommon {
            suite: library.common.suite,
            hash_provider: library.common.hash_provider,
            confidentiality_limit: library.common.confidentiality_limit,
        },
        hkdf_provider: library.hkdf_provider,
        aead_alg: &Aes128Gcm,
        quic: None,
    }))
}

struct Aes128Gcm;

impl Tls13AeadAlgorithm for Aes128Gcm {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        let keys = Box::new(Keys { key, iv });
        SEALER.set(Sealer(&raw const *keys as usize));
        keys
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        Box::new(Keys { key, iv })
    }

    fn key_len(&self) -> usize {
        KEY_BYTES
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: Iv,
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        Ok(ConnectionTrafficSecrets::Aes128Gcm { key, iv })
    }
}

/// Where a connection keeps the keys that it seals with: for the cache alone. When it gets others
/// the hint is of no use, and harms nobody.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sealer(usize);

thread_local! {
    static SEALER: Cell<Sealer> = const { Cell::new(Sealer(0)) };
}

impl Sealer {
    /// That of the keys which this thread has made since the last call. None: it has made none.
    pub(super) fn made() -> Option<Sealer> {
        let made = SEALER.take();
        (made.0 != 0).then_some(made)
    }

    /// Fetches the keys into the cache.
    pub(super) fn prefetch(self) {
        prefetch(self.0 as *const Keys);
    }
}

/// What is kept of one direction. Aligned to a cache line, of which it needs one.
#[repr(align(64))]
struct Keys {
    key: AeadKey,
    iv: Iv,
}

impl Keys {
    fn ready(&self, seq: u64) -> Result<(LessSafeKey, Nonce), Error> {
        let key = UnboundKey::new(&AES_128_GCM, self.key.as_ref());
        let key = key.map_err(|_| Error::General("a key of another length".into()))?;
        let nonce = cipher::Nonce::new(&self.iv, seq);
        Ok((LessSafeKey::new(key), Nonce::assume_unique_for_key(nonce.0)))
    }
}

impl MessageEncrypter for Keys {
    fn encrypt(
        &mut self,
        message: OutboundPlainMessage<'_>,
        seq: u64,
    ) -> Result<OutboundOpaqueMessage, Error> {
        let sealed_bytes = self.encrypted_payload_len(message.payload.len());
        let mut payload = PrefixedPayload::with_capacity(sealed_bytes);
        payload.extend_from_chunks(&message.payload);
        // RFC 8446, section 5.2: the kind stands behind what is sealed.
        payload.extend_from_slice(&[u8::from(message.typ)]);
        let (key, nonce) = self.ready(seq)?;
        let about = Aad::from(make_tls13_aad(sealed_bytes));
        key.seal_in_place_append_tag(nonce, about, &mut payload)
            .map_err(|_| Error::EncryptError)?;
        Ok(OutboundOpaqueMessage::new(
            ContentType::ApplicationData,
            // The version that every record of TLS 1.3 names.
            ProtocolVersion::TLSv1_2,
            payload,
        ))
    }

    fn encrypted_payload_len(&self, payload_bytes: usize) -> usize {
        payload_bytes + 1 + TAG_BYTES
    }
}

impl MessageDecrypter for Keys {
    fn decrypt<'a>(
        &mut self,
        mut message: InboundOpaqueMessage<'a>,
        seq: u64,
    ) -> Result<InboundPlainMessage<'a>, Error> {
        let (key, nonce) = self.ready(seq)?;
        let sealed = &mut message.payload;
        let about = Aad::from(make_tls13_aad(sealed.len()));
        let plain = key.open_in_place(nonce, about, sealed);
        let plain_bytes = plain.map_err(|_| Error::DecryptError)?.len();
        sealed.truncate(plain_bytes);
        message.into_tls13_unpadded_message()
    }
}
