//! Whom this process believes where it is the client: authorities of a file, and nobody else.
//!
//! Owns the file, and what clients of either library are made with. There is no list of the world's
//! authorities: nodes and tools speak to servers of one's own.

use std::fmt;
use std::io;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// A connection whose handshake is over.
pub type Sealed = StreamOwned<ClientConnection, TcpStream>;

/// Authorities that are believed.
#[derive(Clone)]
pub struct Trust {
    authorities: Vec<CertificateDer<'static>>,
    client: Arc<ClientConfig>,
}

/// Why a file names no authority.
#[derive(Debug)]
pub struct TrustFault {
    path: PathBuf,
    kind: FaultKind,
}

#[derive(Debug)]
enum FaultKind {
    Read(io::Error),
    Pem(pem::Error),
    None,
    Authority(rustls::Error),
}

impl fmt::Display for TrustFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.kind {
            FaultKind::Read(error) => write!(f, "{path}: can not be read: {error}"),
            FaultKind::Pem(error) => write!(f, "{path}: it is no PEM file: {error:?}"),
            FaultKind::None => write!(
                f,
                "{path}: there is no certificate in it; name a PEM file with BEGIN CERTIFICATE \
                 with --tls-ca"
            ),
            FaultKind::Authority(error) => write!(
                f,
                "{path}: a certificate in it can not be an authority: {error}; name those that \
                 issued the servers' with --tls-ca"
            ),
        }
    }
}

impl std::error::Error for TrustFault {}

impl Trust {
    /// Reads a PEM file of authorities, or of servers' own certificates that nobody else issued.
    ///
    /// Errors: it names none; the fault names it.
    pub fn read(path: &Path) -> Result<Trust, TrustFault> {
        let fault = |kind| TrustFault {
            path: path.to_owned(),
            kind,
        };
        let text = std::fs::read(path).map_err(|error| fault(FaultKind::Read(error)))?;
        let authorities = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
        let authorities = authorities.map_err(|error| fault(FaultKind::Pem(error)))?;
        if authorities.is_empty() {
            return Err(fault(FaultKind::None));
        }
        let mut roots = RootCertStore::empty();
        for authority in &authorities {
            let added = roots.add(authority.clone());
            added.map_err(|error| fault(FaultKind::Authority(error)))?;
        }
        let mut client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has suites of each version")
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Trust {
            authorities,
            client: Arc::new(client),
        })
    }

    /// Shakes hands with a server of that name, or address, within the socket's own time.
    ///
    /// Errors: `InvalidInput`, it is neither; `InvalidData`, the server is not believed, or speaks
    /// no TLS; else the socket's.
    pub fn seal(&self, host: &str, mut socket: TcpStream) -> io::Result<Sealed> {
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let name = ServerName::try_from(bare.unwrap_or(host).to_owned());
        let name = name.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let client = ClientConnection::new(Arc::clone(&self.client), name);
        let mut client = client.map_err(io::Error::other)?;
        while client.is_handshaking() {
            client.complete_io(&mut socket)?;
        }
        Ok(StreamOwned::new(client, socket))
    }

    /// For connections that speak something else than HTTP.
    pub fn client(&self) -> Arc<ClientConfig> {
        let mut client = ClientConfig::clone(&self.client);
        client.alpn_protocols.clear();
        Arc::new(client)
    }

    /// For ureq. None: there is nobody who is believed, and `https://` comes to nothing.
    pub fn of_ureq(trust: Option<&Trust>) -> TlsConfig {
        let authorities = trust.map_or(&[][..], |trust| &trust.authorities);
        let certificates: Vec<_> = authorities
            .iter()
            .map(|authority| Certificate::from_der(authority).to_owned())
            .collect();
        TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&certificates))
            .unversioned_rustls_crypto_provider(Arc::new(default_provider()))
            .build()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn files_of_authorities() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let refused = || Trust::read(&path).err().unwrap().to_string();
        assert!(refused().contains("ca.pem: can not be read"));
        let key = KeyPair::generate().unwrap();
        std::fs::write(&path, key.serialize_pem()).unwrap();
        assert!(refused().contains("there is no certificate in it"));
        let issue = || {
            let params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
            params.self_signed(&key).unwrap().pem()
        };
        std::fs::write(&path, issue() + &issue()).unwrap();
        assert_eq!(Trust::read(&path).unwrap().authorities.len(), 2);
        std::fs::write(&path, issue().replacen("MII", "AAA", 1)).unwrap();
        assert!(refused().contains("can not be an authority"));
        std::fs::write(&path, "-----BEGIN CERTIFICATE-----\n").unwrap();
        assert!(refused().contains("it is no PEM file"));
    }
}
