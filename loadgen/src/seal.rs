//! TLS on the generator's side: streams that are opened at a server's `--https`.
//!
//! Owns whom the generator believes, and what one connection needs. Never blocks. The key exchange
//! is X25519, as for the figures of docs/PERFORMANCE.md, and nothing is resumed: each connect costs
//! the server a full handshake.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

/// What connections are made with.
#[derive(Clone, Debug)]
pub struct Seal(Arc<ClientConfig>);

impl Seal {
    /// Believes the authorities of a PEM file; None: whoever answers.
    pub fn new(authorities: Option<&Path>) -> io::Result<Seal> {
        let provider = Arc::new(CryptoProvider {
            kx_groups: vec![kx_group::X25519],
            ..default_provider()
        });
        let verifier: Arc<dyn ServerCertVerifier> = match authorities {
            Some(path) => {
                let roots = read(path).map_err(|why| {
                    io::Error::other(format!("--tls-ca {}: {why}", path.display()))
                })?;
                let verifier = WebPkiServerVerifier::builder_with_provider(
                    roots.into(),
                    Arc::clone(&provider),
                );
                verifier.build().map_err(io::Error::other)?
            }
            None => Arc::new(Anybody(Arc::clone(&provider))),
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Seal(Arc::new(config)))
    }

    /// A connection to `host`, of which nothing has been said yet.
    pub fn open(&self, host: SocketAddr) -> io::Result<Box<ClientConnection>> {
        let made = ClientConnection::new(Arc::clone(&self.0), ServerName::from(host.ip()));
        made.map(Box::new).map_err(io::Error::other)
    }
}

fn read(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|why| why.to_string())? {
        let certificate = certificate.map_err(|why| why.to_string())?;
        roots.add(certificate).map_err(|why| why.to_string())?;
    }
    match roots.is_empty() {
        true => Err("no certificate in it".to_owned()),
        false => Ok(roots),
    }
}

/// Goes on with a handshake as far as it goes now; true: it is over. What the peer has broken it
/// with is an `InvalidData`.
pub fn shake(tls: &mut ClientConnection, socket: &mut (impl Read + Write)) -> io::Result<bool> {
    while tls.is_handshaking() {
        match tls.complete_io(socket) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Believes whoever answers, and checks no signature: what is measured is the server.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
