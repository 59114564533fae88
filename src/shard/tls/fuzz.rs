//! What must hold of a TLS connection whatever comes, and two ends of one without a socket; see
//! `wire::fuzz`.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{default_provider, sign::any_ecdsa_type};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivateSec1KeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, ServerConfig, SignatureScheme,
    version,
};

use super::server;
use super::session::{Desk, Session, Shaken};
use super::tickets::Tickets;
use super::{Fault, TlsMin};
use crate::auth::{Keyring, Keyrings};
use crate::time::Clock;
use crate::wire::beat::{FleetKey, Keys};

/// A key on P-256 (RFC 5915) whose secret number is all sevens.
const KEY: &[u8] = b"\x30\x31\x02\x01\x01\x04\x20\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\
    \x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\xa0\x0a\x06\
    \x08\x2a\x86\x48\xce\x3d\x03\x01\x07";

/// A server's choices, with a certificate that no authority has seen; clients resume by the key.
pub(super) fn server_config(min: TlsMin, fleet_key: u8) -> Arc<ServerConfig> {
    let keys = Keys::single(FleetKey::new([fleet_key; 32]));
    let keyrings: Arc<Keyrings> = Keyring::of_fleet(keys).shared();
    let clock = Arc::new(Clock::new());
    let key = PrivateKeyDer::from(PrivateSec1KeyDer::from(KEY));
    let key = any_ecdsa_type(&key).expect("it is one");
    let chain = vec![CertificateDer::from(&b"whatever"[..])];
    let certified = Arc::new(CertifiedKey::new(chain, key));
    server::config_of(certified, min, Tickets { keyrings, clock })
}

/// A client's choices: it believes everybody, and resumes.
pub(super) fn client_config(min: TlsMin) -> Arc<ClientConfig> {
    let versions = match min {
        TlsMin::V1_2 => &[&version::TLS12],
        TlsMin::V1_3 => &[&version::TLS13],
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_protocol_versions(versions);
    let mut config = builder
        .expect("the provider has suites of it")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// Believes everybody.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// The server's socket: what has come, and what it still takes.
#[derive(Default)]
pub(super) struct Socket {
    pub(super) incoming: VecDeque<u8>,
    pub(super) ended: bool,
    pub(super) outgoing: Vec<u8>,
    /// Bytes that it takes before it is full.
    pub(super) window: usize,
    /// Writes that it has taken something of.
    pub(super) writes: usize,
}

impl Read for Socket {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self.incoming.read(room)? {
            0 if !self.ended => Err(io::ErrorKind::WouldBlock.into()),
            n => Ok(n),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(self.window);
        if n == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.window -= n;
        self.writes += 1;
        self.outgoing.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Two ends, and the bytes between.
pub(super) struct Pair {
    pub(super) client: ClientConnection,
    pub(super) session: Session,
    pub(super) socket: Socket,
    config: Arc<ServerConfig>,
    desk: Desk,
    /// What the client has sent that has not arrived.
    pub(super) on_its_way: VecDeque<u8>,
    /// What it has read.
    pub(super) client_read: Vec<u8>,
}

impl Pair {
    pub(super) fn new(config: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Pair {
        let name = ServerName::try_from("a.example").expect("it is a name");
        let client = ClientConnection::new(Arc::clone(client), name).expect("it has all it needs");
        Pair {
            client,
            session: Session::new(),
            socket: Socket {
                window: usize::MAX,
                ..Socket::default()
            },
            config: Arc::clone(config),
            desk: Desk::new(),
            on_its_way: VecDeque::new(),
            client_read: Vec::new(),
        }
    }

    /// The client sends what it has to say.
    pub(super) fn send(&mut self) {
        let mut sent = Vec::new();
        while self.client.wants_write() {
            let written = self.client.write_tls(&mut sent);
            written.expect("a vector takes everything");
        }
        self.on_its_way.extend(sent);
    }

    /// So many bytes of it arrive.
    pub(super) fn arrive(&mut self, n: usize) {
        let n = n.min(self.on_its_way.len());
        self.socket.incoming.extend(self.on_its_way.drain(..n));
    }

    pub(super) fn shake(&mut self) -> Result<Option<Shaken>, Fault> {
        let Pair {
            session, socket, ..
        } = self;
        session.shake(socket, &self.config, &mut self.desk)
    }

    pub(super) fn read(&mut self, room: &mut [u8]) -> Result<usize, Fault> {
        let Pair {
            session, socket, ..
        } = self;
        session.read(socket, &self.config, &mut self.desk, room)
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        self.session.write(&mut self.socket, &mut self.desk, bytes)
    }

    pub(super) fn close(&mut self) {
        self.session.close(&mut self.socket, &mut self.desk);
    }

    /// What the server has written arrives. Err: the client is not content with it.
    pub(super) fn receive(&mut self) -> Result<(), Error> {
        let bytes = std::mem::take(&mut self.socket.outgoing);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let read = self.client.read_tls(&mut rest);
            read.expect("a slice can be read");
            let state = self.client.process_new_packets()?;
            let at = self.client_read.len();
            let n = state.plaintext_bytes_to_read();
            self.client_read.resize(at + n, 0);
            let reader = &mut self.client.reader();
            reader
                .read_exact(&mut self.client_read[at..])
                .expect("it is there");
        }
        Ok(())
    }

    /// Both go on until the handshake is over.
    pub(super) fn open(&mut self) -> Result<Shaken, Fault> {
        loop {
            self.send();
            self.arrive(usize::MAX);
            let shaken = self.shake()?;
            self.receive().map_err(|error| Fault::of(&error))?;
            if let Some(shaken) = shaken {
                return Ok(shaken);
            }
        }
    }
}

/// A script of what client, network and server do. No byte panics; what is opened is what the
/// client said; what is told to be written is what it reads; and nothing that waits is unbounded.
pub fn tls(data: &[u8]) {
    thread_local! {
        static CONFIGS: [(Arc<ServerConfig>, Arc<ClientConfig>); 2] =
            [TlsMin::V1_3, TlsMin::V1_2].map(|min| (server_config(min, 7), client_config(min)));
    }
    let (&first, script) = data.split_first().unwrap_or((&0, &[]));
    let mut pair = CONFIGS.with(|configs| {
        let (server, client) = &configs[usize::from(first & 1)];
        Pair::new(server, client)
    });
    if first & 2 != 0 {
        pair.open().expect("nothing has been bent yet");
    }
    run(&mut pair, script);
}

fn run(pair: &mut Pair, script: &[u8]) {
    // Of what the client says, and of what the server does: so that each byte can be told.
    let said = |at: usize| (at % 251) as u8;
    let (mut client_said, mut server_read) = (0, 0);
    let (mut server_said, mut server_told) = (0, 0);
    let mut is_bent = false;
    let mut room = [0; 4_096];
    for step in script.chunks_exact(2) {
        let n = usize::from(step[1]);
        match step[0] % 13 {
            0 => {
                let bytes: Vec<u8> = (client_said..client_said + n * 64).map(said).collect();
                let taken = pair.client.writer().write(&bytes);
                client_said += taken.expect("a buffer takes some");
                pair.send();
            }
            1 => {
                pair.send();
                pair.arrive(n);
            }
            2 => {
                pair.send();
                pair.arrive(usize::MAX);
            }
            3 if !pair.on_its_way.is_empty() => {
                let at = n % pair.on_its_way.len();
                pair.on_its_way[at] ^= 1 << (n % 8);
                is_bent = true;
            }
            4 => {
                pair.on_its_way.extend(std::iter::repeat_n(step[1], n));
                is_bent = true;
            }
            5 => {
                // A record of any kind in the middle of all.
                let head = [20 + step[1] % 5, 3, 3, 0, step[1] % 8];
                pair.on_its_way.extend(head);
                pair.on_its_way.extend(std::iter::repeat_n(1, n % 8));
                is_bent = true;
            }
            6 => pair.socket.window = n,
            7 => pair.socket.window = usize::MAX,
            8 => {
                let taken = (n + 1).min(room.len());
                if let Ok(read) = pair.read(&mut room[..taken]) {
                    for byte in &room[..read] {
                        assert!(*byte == said(server_read), "byte {server_read}");
                        server_read += 1;
                    }
                    assert!(server_read <= client_said);
                }
            }
            9 => {
                server_said = server_said.max(server_told + n * 200);
                let bytes: Vec<u8> = (server_told..server_said).map(said).collect();
                if let Ok(told) = pair.write(&bytes) {
                    server_told += told;
                    assert!(server_told <= server_said);
                }
            }
            10 => {
                if pair.receive().is_err() {
                    assert!(is_bent, "the client was sent what it does not take");
                    return;
                }
            }
            11 if n < 64 => {
                // Before that the library's own client stumbles over what comes behind it.
                if !pair.client.is_handshaking() {
                    pair.client.send_close_notify();
                }
            }
            11 if n < 128 => pair.close(),
            11 if n < 160 => pair.socket.ended = true,
            // Only TLS 1.3 has it, and only after the handshake.
            11 => _ = pair.client.refresh_traffic_keys(),
            _ => _ = pair.shake(),
        }
        pair.session.check_bounds();
        assert!(pair.client_read.len() <= server_said);
    }
    pair.socket.window = usize::MAX;
    if !is_bent && pair.session.is_open() && pair.receive().is_ok() {
        // What was told is on the client's side, whatever the socket took at a time.
        assert!(pair.client_read.len() >= server_told);
    }
    for (at, byte) in pair.client_read.iter().enumerate() {
        assert!(*byte == said(at), "byte {at} of {}", pair.client_read.len());
    }
}
