//! How a connection begins: dialled, sealed, greeted, and asked who is there.
//!
//! Owns what is asked first, and why a server is of no use. Never decides whether it is dialled
//! again.

use std::io::{Error, ErrorKind, Result as IoResult};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::Options;
use super::about::{self, Identity, Kind};
use super::resp::Frame;
use super::wire::{Incoming, Outgoing, Stream, halves};
use crate::fleet::library;
use crate::fleet::traffic::Reply;
use crate::redis_url::Address;

/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Most names that are looked up at a time, each by a thread.
pub(super) const LOOKUPS_MAX: usize = 8;

/// A connection to a primary.
pub(super) struct Dialled {
    pub(super) incoming: Incoming,
    pub(super) outgoing: Outgoing,
    pub(super) kind: Kind,
    pub(super) identity: Identity,
    /// The replicas that it knows.
    pub(super) others: Vec<Address>,
}

/// What comes of it else.
pub(super) enum Useless {
    /// The server is a replica, of that one.
    Replica(Kind, Vec<Address>),
    /// Why.
    Fault(String),
}

/// Dials a server and finds out who it is. It gets the library, if commands are to be sent there.
///
/// Errors: it is not there, or of no use.
pub(super) async fn dial(
    options: &Options,
    address: &Address,
    loads: bool,
) -> Result<Dialled, Useless> {
    let dialled = timeout(PATIENCE, async {
        let stream = connect(options, address).await;
        let (incoming, outgoing) = halves(stream.map_err(fault)?);
        greet(options, incoming, outgoing, loads).await
    });
    dialled.await.unwrap_or_else(|_| {
        Err(Useless::Fault(format!(
            "no answer within {} ms",
            PATIENCE.as_millis()
        )))
    })
}

async fn connect(options: &Options, address: &Address) -> IoResult<Box<dyn Stream>> {
    let found = look_up(address).await?;
    let stream = TcpStream::connect(&found[..]).await?;
    stream.set_nodelay(true)?;
    // What was given up must not be delivered by the kernel when an outage ends.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    if !options.servers.is_sealed {
        return Ok(Box::new(stream));
    }
    let Some(trust) = &options.trust else {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "nobody is believed there; name the authorities of rediss:// with --tls-ca",
        ));
    };
    let name = address.host.clone().try_into();
    let name = name.map_err(|error| Error::new(ErrorKind::InvalidInput, error))?;
    let connector = TlsConnector::from(trust.client());
    Ok(Box::new(connector.connect(name, stream).await?))
}

/// Where a name leads. The resolver's threads are bounded, however long they take.
async fn look_up(address: &Address) -> IoResult<Vec<SocketAddr>> {
    static LOOKUPS: Semaphore = Semaphore::const_new(LOOKUPS_MAX);
    let (host, port) = (address.host.clone(), address.port);
    if let Ok(number) = host.parse::<IpAddr>() {
        return Ok(vec![(number, port).into()]);
    }
    let permit = LOOKUPS.acquire().await.map_err(Error::other)?;
    let found = spawn_blocking(move || {
        // Held until it ends, even if nobody waits for it any more.
        let _permit = permit;
        (&*host, port).to_socket_addrs().map(Vec::from_iter)
    });
    found.await.map_err(Error::other)?
}

async fn greet(
    options: &Options,
    mut incoming: Incoming,
    mut outgoing: Outgoing,
    loads: bool,
) -> Result<Dialled, Useless> {
    let mut hello: Vec<&[u8]> = vec![b"HELLO", b"3"];
    if options.servers.user.is_some() || options.password().is_some() {
        let user = options.servers.user.as_deref().unwrap_or("default");
        let password = options.password().map_or(&b""[..], |word| word.as_bytes());
        hello.extend([&b"AUTH"[..], user.as_bytes(), password]);
    }
    hello.extend([&b"SETNAME"[..], b"greendot"]);
    outgoing.say(hello.into_iter());
    let hello = answer(&mut incoming, &mut outgoing).await?;
    let kind = match &hello {
        Reply::Error(error) => return Err(Useless::Fault(refused(error))),
        hello => about::kind_of(hello).map_err(Useless::Fault)?,
    };

    let mut texts = [String::new(), String::new()];
    for (text, section) in texts.iter_mut().zip([&b"server"[..], b"replication"]) {
        outgoing.say([&b"INFO"[..], section].into_iter());
        *text = match answer(&mut incoming, &mut outgoing).await? {
            Reply::Error(error) => return Err(Useless::Fault(refused(&error))),
            reply => String::from_utf8_lossy(about::bytes(&reply).unwrap_or_default()).into(),
        };
    }
    let [server, replication] = texts;
    let run = about::info(&server, "run_id");
    let (Some(run), Some(replication)) = (run, about::replication_of(&replication)) else {
        let text = "INFO says neither who it is nor whom it replicates";
        return Err(Useless::Fault(text.into()));
    };
    if !replication.is_primary {
        return Err(Useless::Replica(kind, replication.others));
    }
    if loads {
        outgoing.say(load_words());
        match answer(&mut incoming, &mut outgoing).await? {
            Reply::Error(error) if !is_loaded(&error) => {
                return Err(Useless::Fault(refused(&error)));
            }
            _ => {}
        }
    }
    Ok(Dialled {
        incoming,
        outgoing,
        kind,
        identity: Identity::new(run, &replication.id),
        others: replication.others,
    })
}

/// Puts the library there.
pub(super) fn load_words() -> impl ExactSizeIterator<Item = &'static [u8]> {
    [&b"FUNCTION"[..], b"LOAD", library::text().as_bytes()].into_iter()
}

/// The library is there already. What it does never changes under its name.
fn is_loaded(error: &str) -> bool {
    error.contains("already exists")
}

async fn answer(incoming: &mut Incoming, outgoing: &mut Outgoing) -> Result<Reply, Useless> {
    while !outgoing.is_done() {
        outgoing.advance().await.map_err(fault)?;
    }
    loop {
        match incoming.next().await.map_err(fault)? {
            Frame::Reply(reply) => return Ok(reply),
            Frame::Push(_) => {}
        }
    }
}

fn fault(error: Error) -> Useless {
    Useless::Fault(match error.kind() {
        ErrorKind::UnexpectedEof => "it closed the connection".into(),
        _ => error.to_string(),
    })
}

/// What a refusal means, and what may be done about it.
pub(super) fn refused(error: &str) -> String {
    let code = error.split(' ').next().unwrap_or_default();
    let advice = match code {
        "NOAUTH" => "it asks for a password, and none is given",
        "WRONGPASS" => "it knows no such user with this password",
        "NOPERM" => "the user's access list does not allow what a fleet needs",
        "DENIED" => "its protected mode refuses other machines; set a password there",
        "LOADING" => "it is loading its data",
        _ if error.contains("HELLO") => "it speaks no RESP3; a fleet needs Redis 7.0 or newer",
        _ => return format!("it says: {error}"),
    };
    format!("{advice} ({error})")
}
