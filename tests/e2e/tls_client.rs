//! The certificates of the tests, and clients that speak TLS.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::harness::{Home, Server};
use crate::http::Conn;
use crate::stream::Stream;

/// Flags of a server that speaks TLS with the certificate of [`issue`].
pub(crate) fn flags(home: &Home) -> [String; 3] {
    [
        format!("--https={}:0", home.ip()),
        "--tls-cert=tls.crt".into(),
        "--tls-key=tls.key".into(),
    ]
}

/// Starts one, with more flags.
pub(crate) fn serve(home: &Home, more: &[&str]) -> Server {
    let own = flags(home);
    let flags: Vec<&str> = own
        .iter()
        .map(String::as_str)
        .chain(more.iter().copied())
        .collect();
    home.serve(&flags)
}

/// Makes `tls.crt`, which is its own authority, and `tls.key`, for this home's address. Returns the
/// certificate.
pub(crate) fn issue(home: &Home) -> CertificateDer<'static> {
    let key = KeyPair::generate().expect("a key can be made");
    let names = vec![home.ip().to_string(), "localhost".to_owned()];
    let params = CertificateParams::new(names).expect("they are names");
    let cert = params.self_signed(&key).expect("a key signs");
    write(home, "tls.crt", &cert.pem(), 0o644);
    write(home, "tls.key", &key.serialize_pem(), 0o600);
    cert.der().clone()
}

pub(crate) fn write(home: &Home, name: &str, text: &str, mode: u32) {
    let path = home.path().join(name);
    fs::write(&path, text).expect("a folder of our own");
    fs::set_permissions(&path, Permissions::from_mode(mode)).expect("a file of our own");
}

/// What a client believes: the certificate that is in the file now.
pub(crate) fn config(home: &Home) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let cert = CertificateDer::from_pem_file(home.path().join("tls.crt"));
    roots
        .add(cert.expect("it was issued"))
        .expect("it is an authority");
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// A connection whose handshake is over.
pub(crate) fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> Conn {
    sealed(Conn::to(address), config)
}

/// A connection that speaks TLS from here on.
pub(crate) fn sealed(mut conn: Conn, config: &Arc<ClientConfig>) -> Conn {
    let address = conn.socket.peer_addr().expect("it is connected");
    let name = ServerName::from(address.ip());
    let mut tls = ClientConnection::new(Arc::clone(config), name).expect("it has all it needs");
    while tls.is_handshaking() {
        tls.complete_io(&mut conn.socket)
            .expect("the server is content, and so are we");
    }
    conn.tls = Some(Box::new(tls));
    conn
}

pub(crate) fn https(server: &Server) -> SocketAddr {
    server.https.expect("it speaks TLS")
}

pub(crate) fn stream(server: &Server, config: &Arc<ClientConfig>, query: &str) -> Stream {
    let conn = connect(https(server), config);
    Stream::open(conn, &format!("/v1/stream?{query}"))
}
