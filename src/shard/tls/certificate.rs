//! The certificate and its key: read from their files, and looked at.
//!
//! Owns what is refused of them and what is warned of. Answers nobody: how they are used is
//! `server.rs`'.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use x509_cert::der::Decode;
use x509_cert::der::oid::ObjectIdentifier;

use crate::time::Unix;

/// Bits of a mode that let everybody on the machine read or write a file. A group may: that is how
/// secrets are mounted.
const WORLD_MASK: u32 = 0o006;
/// The bit that lets everybody write: put a certificate of their own there.
const WORLD_WRITES: u32 = 0o002;
/// Longest file in bytes; a chain of four with RSA keys has a hundredth of it.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Rest of a certificate's time that is warned of, in ms: a fortnight.
const EXPIRES_SOON_MS: u64 = 14 * 86_400_000;
/// RFC 8017: rsaEncryption.
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// Where they are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// PEM: the certificate, and behind it those that lead to an authority.
    pub certificate: PathBuf,
    /// PEM: its key.
    pub key: PathBuf,
}

/// What is known of a certificate that is taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certificate {
    /// Up to when it counts.
    pub expires: Unix,
    path: PathBuf,
    is_rsa: bool,
    begins: Unix,
}

/// Why there is no certificate.
#[derive(Debug)]
pub struct TlsFault {
    path: PathBuf,
    kind: FaultKind,
}

#[derive(Debug)]
enum FaultKind {
    Read(io::Error),
    TooLong,
    Open,
    Writable,
    NoCertificate,
    Certificate(String),
    NoKey,
    Pem(pem::Error),
    Key(Error),
    Mismatch { certificate: PathBuf },
}

impl fmt::Display for TlsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.kind {
            FaultKind::Read(error) => write!(f, "{path}: can not be read: {error}"),
            FaultKind::TooLong => write!(f, "{path}: too long for a certificate or a key"),
            FaultKind::Open => write!(
                f,
                "{path}: everybody on this machine may use this key; `chmod o-rw {path}`"
            ),
            FaultKind::Writable => write!(
                f,
                "{path}: everybody on this machine may put another certificate there; \
                 `chmod o-w {path}`"
            ),
            FaultKind::NoCertificate => write!(
                f,
                "{path}: there is no certificate in it; name a PEM file with BEGIN CERTIFICATE \
                 with --tls-cert"
            ),
            FaultKind::Certificate(why) => write!(
                f,
                "{path}: its first certificate can not be read: {why}; have it issued again"
            ),
            FaultKind::NoKey => write!(
                f,
                "{path}: there is no private key in it; name a PEM file with BEGIN PRIVATE KEY \
                 with --tls-key"
            ),
            FaultKind::Pem(error) => write!(f, "{path}: it is no PEM file: {error:?}"),
            FaultKind::Key(error) => write!(
                f,
                "{path}: the key is of no use: {error}; take one on P-256: openssl genpkey \
                 -algorithm EC -pkeyopt ec_paramgen_curve:P-256"
            ),
            FaultKind::Mismatch { certificate } => write!(
                f,
                "{path}: this key is not that of the certificate in {}; name the two that were \
                 issued together with --tls-cert and --tls-key",
                certificate.display()
            ),
        }
    }
}

impl std::error::Error for TlsFault {}

impl Certificate {
    /// What is to be said of it.
    pub fn warnings(&self, now: Unix) -> Vec<String> {
        let path = self.path.display();
        let mut said = Vec::new();
        if self.is_rsa {
            said.push(format!(
                "{path}: the key is RSA, with which a handshake costs five times as much; have a \
                 certificate issued for a key on P-256: openssl genpkey -algorithm EC -pkeyopt \
                 ec_paramgen_curve:P-256"
            ));
        }
        if now < self.begins {
            said.push(format!(
                "{path}: the certificate does not count yet, and clients refuse it; is the clock \
                 right?"
            ));
        }
        let left_ms = self.expires.ms().saturating_sub(now.ms());
        if left_ms == 0 {
            said.push(format!(
                "{path}: the certificate has expired, and clients refuse it; put a new one there, \
                 and `greendot reload`"
            ));
        } else if left_ms < EXPIRES_SOON_MS {
            said.push(format!(
                "{path}: the certificate expires in {} hours; put a new one there, and `greendot \
                 reload`",
                left_ms / 3_600_000
            ));
        }
        said
    }
}

/// Reads both, and holds them against each other.
///
/// Errors: one of them is none, everybody may use the key, or the two do not belong together.
pub(super) fn read(
    files: &TlsFiles,
    provider: &CryptoProvider,
) -> Result<(Arc<CertifiedKey>, Certificate), TlsFault> {
    let fault = |path: &Path, kind| TlsFault {
        path: path.to_owned(),
        kind,
    };
    let of_certificate = |kind| fault(&files.certificate, kind);
    let of_key = |kind| fault(&files.key, kind);

    let (text, mode) = read_file(&files.certificate).map_err(of_certificate)?;
    if mode & WORLD_WRITES != 0 {
        return Err(of_certificate(FaultKind::Writable));
    }
    let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| of_certificate(FaultKind::Pem(error)))?;
    let first = chain.first();
    let first = first.ok_or_else(|| of_certificate(FaultKind::NoCertificate))?;
    let certificate = look_at(&files.certificate, first).map_err(of_certificate)?;

    let (text, mode) = read_file(&files.key).map_err(of_key)?;
    if mode & WORLD_MASK != 0 {
        return Err(of_key(FaultKind::Open));
    }
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound => of_key(FaultKind::NoKey),
        error => of_key(FaultKind::Pem(error)),
    })?;
    let certified = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => of_key(FaultKind::Mismatch {
            certificate: files.certificate.clone(),
        }),
        Error::InvalidCertificate(error) => {
            of_certificate(FaultKind::Certificate(format!("{error:?}")))
        }
        error => of_key(FaultKind::Key(error)),
    })?;
    Ok((Arc::new(certified), certificate))
}

fn look_at(path: &Path, der: &CertificateDer<'_>) -> Result<Certificate, FaultKind> {
    let read = x509_cert::Certificate::from_der(der);
    let read = read.map_err(|error| FaultKind::Certificate(error.to_string()))?;
    let about = read.tbs_certificate;
    let unix = |time: x509_cert::time::Time| {
        let ms = time.to_unix_duration().as_millis();
        Unix::from_ms(u64::try_from(ms).unwrap_or(u64::MAX))
    };
    Ok(Certificate {
        path: path.to_owned(),
        expires: unix(about.validity.not_after),
        begins: unix(about.validity.not_before),
        is_rsa: about.subject_public_key_info.algorithm.oid == RSA,
    })
}

/// A file's content and mode: of the one file, whatever its name leads to by then.
fn read_file(path: &Path) -> Result<(Vec<u8>, u32), FaultKind> {
    let mut content = Vec::new();
    let file = File::open(path).map_err(FaultKind::Read)?;
    let mode = file
        .metadata()
        .map_err(FaultKind::Read)?
        .permissions()
        .mode();
    let mut limited = file.take(FILE_BYTES_MAX + 1);
    limited.read_to_end(&mut content).map_err(FaultKind::Read)?;
    match content.len() as u64 > FILE_BYTES_MAX {
        true => Err(FaultKind::TooLong),
        false => Ok((content, mode)),
    }
}
