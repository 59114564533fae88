//! The split roles' part of a node: which links it has, and how shards and links reach each other.
//!
//! Owns nothing that a node of both halves needs: there every outlet is a dead end that nothing enters.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, OnceLock};

use super::ServeFault;
use crate::config::nodes::PresenceNode;
use crate::config::{Config, Half};
use crate::engine::{Mail, Outbound};
use crate::metrics::Board;
use crate::presence::Presence;
use crate::relay::{BeatSender, Handle, Inquiry, LinkParts, Links, Peer, Publisher};
use crate::shard::{Outlet, Shards};
use crate::time::Clock;

/// Before the shards run.
pub(super) enum Relay {
    None,
    Presence(Links<Publisher>),
    Realtime {
        beats_to: Vec<SocketAddr>,
        peers: Vec<Peer>,
        parts: LinkParts,
        board: Arc<Board>,
        /// Set once the links run. What is asked before is asked again when a link first sees its node.
        handle: Arc<OnceLock<Handle<Inquiry>>>,
    },
}

/// While they run.
pub(super) enum Running {
    None,
    Presence(Links<Publisher>),
    Realtime(Links<Inquiry>),
}

impl Relay {
    pub(super) fn new(
        config: &Config,
        token: String,
        seed: u64,
        board: &Arc<Board>,
        clock: &Arc<Clock>,
        presence: &Arc<Presence>,
    ) -> Result<Relay, ServeFault> {
        let parts = LinkParts {
            seed,
            board: Arc::clone(board),
            clock: Arc::clone(clock),
            presence: Arc::clone(presence),
        };
        Ok(match config.half {
            Half::All => Relay::None,
            Half::Presence => {
                let peers = config.realtime.iter().map(|node| Peer::new(node.http.clone(), &token));
                let links = Links::publish_to(peers.collect(), parts);
                Relay::Presence(links.map_err(ServeFault::os("start the links to real-time nodes"))?)
            }
            Half::Realtime => Relay::Realtime {
                beats_to: config.presence.iter().map(resolve).collect::<Result<_, _>>()?,
                peers: config
                    .presence
                    .iter()
                    .map(|node| Peer::new(node.http.clone(), &token))
                    .collect(),
                parts,
                board: Arc::clone(board),
                handle: Arc::default(),
            },
        })
    }

    /// One shard's way out.
    pub(super) fn outlet(&self) -> Result<Outlet, ServeFault> {
        Ok(match self {
            Relay::None => Box::new(|_| {}),
            Relay::Presence(links) => {
                let handle = links.handle();
                Box::new(move |outbound| {
                    if let Outbound::Publish(decided) = outbound {
                        handle.publish(&decided);
                    }
                })
            }
            Relay::Realtime {
                beats_to,
                board,
                handle,
                ..
            } => {
                let beats = BeatSender::new(beats_to, board);
                let mut beats = beats.map_err(ServeFault::os("open sockets for beats"))?;
                let handle = Arc::clone(handle);
                Box::new(move |outbound| match outbound {
                    Outbound::Beats { node, datagrams } => beats.send(node, &datagrams),
                    Outbound::Asks { node, users, anew } => {
                        if let Some(handle) = handle.get() {
                            handle.ask(node, users, anew);
                        }
                    }
                    Outbound::Publish(_) => {}
                })
            }
        })
    }

    /// Starts the links that talk back to the shards.
    pub(super) fn start(self, shards: &Shards) -> Result<Running, ServeFault> {
        Ok(match self {
            Relay::None => Running::None,
            Relay::Presence(links) => Running::Presence(links),
            Relay::Realtime {
                peers, parts, handle, ..
            } => {
                let teller = shards.teller();
                let tell = Arc::new(move |mail: &Mail| teller.tell(mail));
                let links =
                    Links::ask_at(peers, parts, tell).map_err(ServeFault::os("start the links to presence nodes"))?;
                if handle.set(links.handle()).is_err() {
                    unreachable!("set here alone, once");
                }
                Running::Realtime(links)
            }
        })
    }
}

impl Running {
    pub(super) fn stop(self) {
        match self {
            Running::None => {}
            Running::Presence(links) => links.stop(),
            Running::Realtime(links) => links.stop(),
        }
    }
}

fn resolve(node: &PresenceNode) -> Result<SocketAddr, ServeFault> {
    let fault = |source| ServeFault::Node {
        address: node.udp.clone(),
        source,
    };
    let mut found = node.udp.to_socket_addrs().map_err(fault)?;
    found
        .next()
        .ok_or_else(|| fault(std::io::ErrorKind::AddrNotAvailable.into()))
}
