//! What makes a publisher change: a beat or a goodbye, over UDP or HTTP; for the peers, the event itself.
//!
//! Owns the sockets that transitions go out on. Never waits for an answer on the way.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;

use greendot::time::Unix;
use greendot::wire::User;
use greendot::wire::beat::{Keys, Writer};

use crate::args::{Common, Peer};
use crate::asks::push_users;
use crate::http::Client;
use crate::population::{ID_BYTES, Population};

/// Users that one datagram takes.
pub const USERS_PER_DATAGRAM: usize =
    (greendot::wire::beat::DATAGRAM_BYTES_MAX - greendot::wire::beat::HEAD_BYTES - greendot::wire::beat::MAC_BYTES)
        / (ID_BYTES + 1);

/// A way to cause transitions.
pub enum Cause {
    /// Beat datagrams.
    Udp {
        /// Where from.
        socket: UdpSocket,
        /// The first one signs.
        keys: Keys,
    },
    /// `POST /v1/beat` and `/v1/leave`.
    Http(Box<Client>),
    /// bare.c: the event's bytes as a datagram.
    Raw(UdpSocket),
    /// nchan and axum: the event's data posted to `/pub`.
    Post(Box<Client>),
}

impl Cause {
    /// The way that suits `common.peer`; `over_http`: requests rather than datagrams, where there is a choice.
    pub fn new(common: &Common, over_http: bool) -> io::Result<Cause> {
        Ok(match common.peer {
            Peer::Greendot if over_http => Cause::Http(Box::new(Client::connect(common.http)?)),
            Peer::Greendot => Cause::Udp {
                socket: udp_to(common.udp)?,
                keys: read_keys(&common.key_file)?,
            },
            Peer::Bare => Cause::Raw(udp_to(common.udp)?),
            Peer::Nchan | Peer::Axum => Cause::Post(Box::new(Client::connect(common.http)?)),
        })
    }

    /// Has `users` go online or offline. `sent_at_ms` must be above that of every earlier change of theirs.
    pub fn change(&mut self, population: &Population, users: &[u64], online: bool, sent_at_ms: u64) -> io::Result<()> {
        match self {
            Cause::Udp { socket, keys } => {
                for part in users.chunks(USERS_PER_DATAGRAM) {
                    let bytes = datagram(population, part, !online, sent_at_ms, keys);
                    send(socket, &bytes)?;
                }
                Ok(())
            }
            Cause::Http(client) => {
                let mut body = b"{\"users\":".to_vec();
                push_users(population, users.iter().copied(), &mut body);
                body.push(b'}');
                client.ask("POST", if online { "/v1/beat" } else { "/v1/leave" }, &body)?;
                check(client)
            }
            Cause::Raw(socket) => users.iter().try_for_each(|user| {
                let data = record(population, *user, online, sent_at_ms);
                send(
                    socket,
                    format!("event: presence\nid: {sent_at_ms}\ndata: {data}\n\n").as_bytes(),
                )
            }),
            Cause::Post(client) => {
                for user in users {
                    client.ask("POST", "/pub", record(population, *user, online, sent_at_ms).as_bytes())?;
                }
                check(client)
            }
        }
    }
}

/// A datagram for `users`, at most [`USERS_PER_DATAGRAM`].
pub fn datagram(population: &Population, users: &[u64], leave: bool, sent_at_ms: u64, keys: &Keys) -> Vec<u8> {
    let key = keys.signing();
    let mut writer = Writer::new(leave, Unix::from_ms(sent_at_ms), key);
    for user in users {
        let id = population.id(*user);
        let user = User::parse(&id).expect("ids of the population are ASCII letters and digits");
        assert!(writer.push(user), "the caller keeps to USERS_PER_DATAGRAM");
    }
    writer.seal(key)
}

/// Reads the fleet keys.
pub fn read_keys(path: &Path) -> io::Result<Keys> {
    let text = fs::read_to_string(path)
        .map_err(|e| io::Error::new(e.kind(), format!("--key-file {}: {e}", path.display())))?;
    Keys::parse(&text).map_err(|fault| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("--key-file {}: {fault:?}", path.display()),
        )
    })
}

/// A UDP socket that sends to `target`.
pub fn udp_to(target: SocketAddr) -> io::Result<UdpSocket> {
    let socket = match target {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
        SocketAddr::V6(_) => UdpSocket::bind((std::net::Ipv6Addr::UNSPECIFIED, 0))?,
    };
    socket.connect(target)?;
    Ok(socket)
}

fn send(socket: &UdpSocket, bytes: &[u8]) -> io::Result<()> {
    socket
        .send(bytes)
        .map(drop)
        .map_err(|e| io::Error::new(e.kind(), format!("UDP: {e}")))
}

/// The event that a peer is to hand on: what greendot would tell.
fn record(population: &Population, user: u64, online: bool, ms: u64) -> String {
    let id = population.id(user);
    let (id, status) = (String::from_utf8_lossy(&id), if online { "online" } else { "offline" });
    format!("{{\"user\":\"{id}\",\"status\":\"{status}\",\"since\":{ms},\"last_active\":{ms}}}")
}

fn check(client: &mut Client) -> io::Result<()> {
    match client.answers_so_far()?.iter().find(|answer| answer.status >= 300) {
        Some(bad) => Err(io::Error::other(format!(
            "{}: {}",
            bad.status,
            String::from_utf8_lossy(&bad.body)
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_datagram_opens_again() {
        let population = Population::new(1);
        let keys = Keys::parse(&"5".repeat(64)).unwrap();
        let users: Vec<u64> = (0..USERS_PER_DATAGRAM as u64).collect();
        assert_eq!(users.len(), 80);
        let bytes = datagram(&population, &users, true, 1_000, &keys);
        let beats = greendot::wire::beat::open(&bytes, &keys, Unix::from_ms(1_005), 10).unwrap();
        assert!(beats.leave);
        let numbers: Vec<u64> = beats
            .users()
            .map(|user| population.number(user.as_bytes()).unwrap())
            .collect();
        assert_eq!(numbers, users);
    }

    #[test]
    fn a_peer_is_given_what_greendot_would_tell() {
        let text = record(&Population::new(1), 1, false, 17);
        let told = crate::record::parse(text.as_bytes()).unwrap();
        assert_eq!(
            (told.user.as_ref(), told.online, told.since),
            ("gbgxeq0000000001", false, Some(17))
        );
    }
}
