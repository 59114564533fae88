//! The split roles' part of a node: which links it has, and how shards and links reach each other.
//!
//! Owns nothing that a node of both halves needs: there every outlet is a dead end that nothing enters.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use super::ServeFault;
use crate::config::nodes::PresenceNode;
use crate::config::{Config, RoleName};
use crate::engine::{Mail, Outbound, instance_of};
use crate::metrics::{Board, Gauge};
use crate::presence::Presence;
use crate::relay::{Ask, BeatSender, Handle, LinkParts, Links, Publish, Remote};
use crate::shard::{self, Outlet, Shards};
use crate::time::Clock;
use crate::wire::nodes::Nodes;

/// What a node's links are made of.
pub(super) struct Relay<'n> {
    pub(super) config: &'n Config,
    /// Of the service key.
    pub(super) token: String,
    /// What stream ids are made of; names this life of the node.
    pub(super) secret: [u8; 32],
    /// Of jitter.
    pub(super) seed: u64,
    pub(super) nodes: Arc<Nodes>,
    pub(super) board: &'n Arc<Board>,
    pub(super) clock: &'n Arc<Clock>,
    pub(super) presence: &'n Arc<Presence>,
}

/// Before the shards run.
pub(super) enum Ready {
    None,
    Presence(Links<Publish>),
    Realtime {
        beats_to: Vec<SocketAddr>,
        /// Set once the links run. What is asked before is asked again when a link first sees its node.
        handle: Arc<OnceLock<Handle<Ask>>>,
    },
}

/// While they run.
pub(super) enum Running {
    None,
    Presence(Links<Publish>),
    Realtime(Links<Ask>),
}

impl Relay<'_> {
    /// What is needed before the shards run.
    pub(super) fn prepare(&self) -> Result<Ready, ServeFault> {
        Ok(match self.config.role {
            RoleName::All => Ready::None,
            RoleName::Presence => {
                let remotes = self.config.realtime.iter().map(|node| self.remote(&node.http));
                let links = Links::publish_to(remotes.collect(), self.parts());
                Ready::Presence(links.map_err(ServeFault::os("start the links to real-time nodes"))?)
            }
            RoleName::Realtime => {
                // None has been seen yet.
                self.board
                    .process
                    .set(Gauge::NodesDown, self.config.presence.len() as u64);
                Ready::Realtime {
                    beats_to: self.config.presence.iter().map(resolve).collect::<Result<_, _>>()?,
                    handle: Arc::default(),
                }
            }
        })
    }

    /// One shard's way out.
    pub(super) fn outlet(&self, ready: &Ready) -> Result<Outlet, ServeFault> {
        Ok(match ready {
            Ready::None => Box::new(|_| {}),
            Ready::Presence(links) => {
                let handle = links.handle();
                Box::new(move |outbound| {
                    if let Outbound::Publish(decided) = outbound {
                        handle.publish(&decided);
                    }
                })
            }
            Ready::Realtime { beats_to, handle } => {
                let beats = BeatSender::new(beats_to, self.board);
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
    pub(super) fn start(&self, ready: Ready, shards: &Shards) -> Result<Running, ServeFault> {
        Ok(match ready {
            Ready::None => Running::None,
            Ready::Presence(links) => Running::Presence(links),
            Ready::Realtime { handle, .. } => {
                let teller = shards.teller();
                let tell = Arc::new(move |mail: &Mail| teller.tell(mail));
                let remotes = self.config.presence.iter().map(|node| self.remote(&node.http));
                let links = Links::ask_at(remotes.collect(), Arc::clone(&self.nodes), self.parts(), tell)
                    .map_err(ServeFault::os("start the links to presence nodes"))?;
                if handle.set(links.handle()).is_err() {
                    unreachable!("set here alone, once");
                }
                Running::Realtime(links)
            }
        })
    }

    fn remote(&self, http: &str) -> Remote {
        Remote::new(http.to_owned(), &self.token, instance_of(&self.secret))
    }

    fn parts(&self) -> LinkParts<'static> {
        LinkParts::new(self.seed, self.board, self.clock, self.presence, &spawn)
    }
}

/// A server without one of its links would tell some of its users the truth and the others what was once true.
fn spawn(name: String, work: Box<dyn FnOnce() + Send>) -> std::io::Result<JoinHandle<()>> {
    shard::vital_thread(name, move || {
        work();
        Ok(())
    })
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
