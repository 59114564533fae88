//! What makes a publisher change: a beat or a goodbye, over UDP or HTTP; for a real-time node, its
//! record; for the peers, the event itself.
//!
//! Owns the sockets that transitions go out on. Never waits for an answer on the way.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;

use clap::ValueEnum;
use greendot::time::Unix;
use greendot::wire::User;
use greendot::wire::beat::{Keys, Writer};

use crate::asks::push_users;
use crate::common::{Common, Peer};
use crate::http::Client;
use crate::population::{ID_BYTES, Population};
use crate::target::Target;

/// Users that one datagram takes.
pub const USERS_PER_DATAGRAM: usize = (greendot::wire::beat::DATAGRAM_BYTES_MAX
    - greendot::wire::beat::HEAD_BYTES
    - greendot::wire::beat::MAC_BYTES)
    / (ID_BYTES + 1);

/// Users, or their records, that one request takes by default (`query_users_max`).
const USERS_PER_REQUEST: usize = 1_000;

/// How a publisher of greendot is made to change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum How {
    /// Beat and leave datagrams
    Udp,
    /// `POST /v1/beat` and `/v1/leave`
    Http,
    /// `PUT /v1/presence` straight to the real-time nodes, as presence nodes publish: the real-time
    /// half alone
    Put,
}

/// A way to cause transitions.
pub enum Cause {
    /// Beat datagrams, to the presence node that each user belongs to.
    Udp {
        /// Which users belong where.
        target: Target,
        /// One for each presence node.
        sockets: Vec<UdpSocket>,
        /// The first one signs.
        keys: Keys,
    },
    /// `POST /v1/beat` and `/v1/leave`, one connection for each presence node.
    Http(Target, Vec<Client>),
    /// `PUT /v1/presence`, one connection for each real-time node.
    Put(Vec<Client>),
    /// bare.c: the event's bytes as a datagram.
    Raw(UdpSocket),
    /// nchan and axum: the event's data posted to `/pub`.
    Post(Box<Client>),
}

impl Cause {
    /// The way that suits `common.peer`; `how`: where there is a choice.
    pub fn new(common: &Common, target: &Target, how: How) -> io::Result<Cause> {
        let connect = |to: &SocketAddr| Client::connect(*to);
        let presence = &target.presence;
        Ok(match (common.peer, how) {
            (Peer::Greendot, How::Udp) => {
                let keys = read_keys(&common.key_file)?;
                check_key(target, &keys)?;
                let sockets = presence.iter().map(|node| udp_to(node.udp));
                Cause::Udp {
                    target: target.clone(),
                    sockets: sockets.collect::<io::Result<_>>()?,
                    keys,
                }
            }
            (Peer::Greendot, How::Http) => {
                let clients = presence.iter().map(|node| connect(&node.http));
                Cause::Http(target.clone(), clients.collect::<io::Result<_>>()?)
            }
            (Peer::Greendot, How::Put) if !target.is_split => {
                return Err(io::Error::other(
                    "--cause put is for real-time nodes: name a split deployment by --realtime and \
                     --presence",
                ));
            }
            (Peer::Greendot, How::Put) => {
                let token = read_keys(&common.key_file)?.signing().service_token();
                let mut clients = target
                    .streams
                    .iter()
                    .map(connect)
                    .collect::<io::Result<Vec<_>>>()?;
                clients
                    .iter_mut()
                    .for_each(|client| client.authorise(&token));
                Cause::Put(clients)
            }
            (Peer::Bare, _) => Cause::Raw(udp_to(presence[0].udp)?),
            (Peer::Nchan | Peer::Axum, _) => Cause::Post(Box::new(connect(&presence[0].http)?)),
        })
    }

    /// Has `users` go online or offline. `sent_at_ms` must be above that of every earlier change of
    /// theirs.
    pub fn change(
        &mut self,
        population: &Population,
        users: &[u64],
        online: bool,
        sent_at_ms: u64,
    ) -> io::Result<()> {
        match self {
            Cause::Udp {
                target,
                sockets,
                keys,
            } => {
                for (users, socket) in target.spread(population, users).iter().zip(sockets) {
                    for part in users.chunks(USERS_PER_DATAGRAM) {
                        send(
                            socket,
                            &datagram(population, part, !online, sent_at_ms, keys),
                        )?;
                    }
                }
                Ok(())
            }
            Cause::Http(target, clients) => {
                let path = if online { "/v1/beat" } else { "/v1/leave" };
                for (users, client) in target.spread(population, users).iter().zip(clients) {
                    for part in users.chunks(USERS_PER_REQUEST) {
                        let mut body = b"{\"users\":".to_vec();
                        push_users(population, part.iter().copied(), &mut body);
                        body.push(b'}');
                        client.ask("POST", path, &body)?;
                    }
                    check(client)?;
                }
                Ok(())
            }
            Cause::Put(clients) => {
                for part in users.chunks(USERS_PER_REQUEST) {
                    let records = part
                        .iter()
                        .map(|user| record(population, *user, online, sent_at_ms));
                    let body = format!(
                        "{{\"presence\":[{}]}}",
                        records.collect::<Vec<_>>().join(",")
                    );
                    for client in &mut *clients {
                        client.ask("PUT", "/v1/presence", body.as_bytes())?;
                    }
                }
                clients.iter_mut().try_for_each(check)
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
                    client.ask(
                        "POST",
                        "/pub",
                        record(population, *user, online, sent_at_ms).as_bytes(),
                    )?;
                }
                check(client)
            }
        }
    }
}

/// What became of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// It is on its way.
    Away,
    /// Nobody takes datagrams there, or did when the last one came.
    Refused,
}

impl Cause {
    /// Tells `node` alone, by its place among the nodes, that `user` beats or says goodbye: of a
    /// fleet any node takes it.
    ///
    /// Errors: the socket's; it is no cause by datagrams.
    pub fn tell(
        &mut self,
        node: usize,
        population: &Population,
        user: u64,
        online: bool,
        sent_at_ms: u64,
    ) -> io::Result<Sent> {
        let Cause::Udp { sockets, keys, .. } = self else {
            return Err(io::Error::other("a fleet is told by datagrams"));
        };
        match sockets[node].send(&datagram(population, &[user], !online, sent_at_ms, keys)) {
            Ok(_) => Ok(Sent::Away),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Sent::Refused),
            Err(error) => Err(io::Error::new(error.kind(), format!("UDP: {error}"))),
        }
    }
}

/// A datagram for `users`, at most [`USERS_PER_DATAGRAM`].
pub fn datagram(
    population: &Population,
    users: &[u64],
    leave: bool,
    sent_at_ms: u64,
    keys: &Keys,
) -> Vec<u8> {
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

/// Asks each presence node whether it takes datagrams of the first key, which are never answered.
///
/// Errors: one refuses it. What a node says that knows no such call is no refusal.
pub fn check_key(target: &Target, keys: &Keys) -> io::Result<()> {
    let key = keys.signing();
    for node in &target.presence {
        let mut client = Client::connect(node.http)?;
        client.authorise(&key.service_token());
        if client.post_bytes("/v1/datagrams", b"")?.status == 401 {
            return Err(io::Error::other(format!(
                "http://{} refuses datagrams of this key, {:08x}; check --key-file",
                node.http,
                key.id()
            )));
        }
    }
    Ok(())
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

/// The state as a presence node would tell it; for a peer, the event that it is to hand on.
fn record(population: &Population, user: u64, online: bool, ms: u64) -> String {
    let id = population.id(user);
    let (id, status) = (
        String::from_utf8_lossy(&id),
        if online { "online" } else { "offline" },
    );
    format!(
        "{{\"user\":\"{id}\",\"status\":\"{status}\",\"online\":{online},\
             \"since\":{ms},\"last_active\":{ms}}}"
    )
}

fn check(client: &mut Client) -> io::Result<()> {
    match client
        .answers_so_far()?
        .iter()
        .find(|answer| answer.status >= 300)
    {
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
        assert!(beats.flags.is_leave());
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
            ("gbgxeq0000000001", Some(false), Some(17))
        );
    }
}
