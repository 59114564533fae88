//! What every handshake of the node begins with: the certificate that counts, versions, ciphers.
//!
//! Owns these choices, and the one place where a new certificate takes the place of the old.
//! Connections that are open keep what they began with.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ServerConfig, SupportedProtocolVersion, version};

use super::certificate::{self, Certificate, TlsFault, TlsFiles};
use super::cipher;
use super::tickets::Tickets;
use crate::auth::Keyrings;
use crate::time::Clock;

/// The oldest version that is spoken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TlsMin {
    /// TLS 1.2: for clients of before 2018.
    V1_2,
    /// TLS 1.3, and nothing else.
    #[default]
    V1_3,
}

/// A certificate that has been read, and serves nobody yet.
pub struct TlsRead {
    files: TlsFiles,
    min: TlsMin,
    provider: Arc<CryptoProvider>,
    certified: Arc<CertifiedKey>,
    /// What is known of it.
    pub certificate: Certificate,
}

/// What all shards make their connections of.
pub struct TlsServer {
    files: TlsFiles,
    min: TlsMin,
    provider: Arc<CryptoProvider>,
    tickets: Arc<dyn ProducesTickets>,
    current: ArcSwap<ServerConfig>,
}

impl TlsRead {
    /// Reads the files.
    ///
    /// Errors: they give no certificate; the file is named.
    pub fn read(files: TlsFiles, min: TlsMin) -> Result<TlsRead, TlsFault> {
        let provider = Arc::new(provider(min));
        let (certified, certificate) = certificate::read(&files, &provider)?;
        Ok(TlsRead {
            files,
            min,
            provider,
            certified,
            certificate,
        })
    }

    /// To serve with; clients resume by the fleet keys.
    pub fn serving(self, keyrings: &Arc<Keyrings>, clock: &Arc<Clock>) -> Arc<TlsServer> {
        let tickets = Arc::new(Tickets {
            keyrings: Arc::clone(keyrings),
            clock: Arc::clone(clock),
        });
        let tickets: Arc<dyn ProducesTickets> = tickets;
        let config = config(self.certified, self.min, &self.provider, &tickets);
        Arc::new(TlsServer {
            files: self.files,
            min: self.min,
            provider: self.provider,
            tickets,
            current: ArcSwap::from_pointee(config),
        })
    }
}

impl TlsServer {
    /// Reads the files anew: handshakes from now on have what they hold.
    ///
    /// Errors: they give no certificate. The one before stays.
    pub fn reload(&self) -> Result<Certificate, TlsFault> {
        let (certified, certificate) = certificate::read(&self.files, &self.provider)?;
        let config = config(certified, self.min, &self.provider, &self.tickets);
        self.current.store(Arc::new(config));
        Ok(certificate)
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }
}

/// The same of a certificate that is in no file.
pub(super) fn config_of(
    certified: Arc<CertifiedKey>,
    min: TlsMin,
    tickets: Tickets,
) -> Arc<ServerConfig> {
    let tickets: Arc<dyn ProducesTickets> = Arc::new(tickets);
    Arc::new(config(certified, min, &Arc::new(provider(min)), &tickets))
}

/// AES-128 first: it is the cheapest, and nobody has come near it. All suites are of SHA-256: a
/// record layer of our own has secrets of one length. Who offers a post-quantum share gets it.
fn provider(min: TlsMin) -> CryptoProvider {
    let library = cipher_suite::TLS13_AES_128_GCM_SHA256.tls13();
    let mut cipher_suites = vec![
        cipher::aes_128_gcm_sha256(library.expect("it is a suite of TLS 1.3")),
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    if min == TlsMin::V1_2 {
        cipher_suites.extend([
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ]);
    }
    CryptoProvider {
        cipher_suites,
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
        ],
        ..default_provider()
    }
}

fn config(
    certified: Arc<CertifiedKey>,
    min: TlsMin,
    provider: &Arc<CryptoProvider>,
    tickets: &Arc<dyn ProducesTickets>,
) -> ServerConfig {
    let versions: &[&SupportedProtocolVersion] = match min {
        TlsMin::V1_2 => &[&version::TLS13, &version::TLS12],
        TlsMin::V1_3 => &[&version::TLS13],
    };
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(versions)
        .expect("the provider has suites of each version")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ignore_client_order = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = Arc::clone(tickets);
    config.send_tls13_tickets = 1;
    config
}
