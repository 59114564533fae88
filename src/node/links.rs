//! The split roles' part of a node: which links it has, and how shards and links reach each other.
//!
//! Owns nothing that a node of both halves needs: there every outlet is a dead end that nothing
//! enters.

use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::Sender;

use super::ServeFault;
use super::keeper::Wants;
use super::webhooks::Hooks;
use crate::auth::{Keyrings, Revoked};
use crate::config::nodes::PresenceNode;
use crate::config::{Config, RoleName};
use crate::engine::{Homes, Mail, Outbound, instance_of};
use crate::links::{BeatSender, Handle, LinkParts, Links, Remote, Tell};
use crate::lookup;
use crate::metrics::{Board, Gauge};
use crate::presence::Presence;
use crate::shard::{self, Outlet, Shards};
use crate::time::Clock;
use crate::trust::Trust;
use crate::wire::nodes::Nodes;

/// What a node's links are made of.
#[cfg_attr(
    not(feature = "cluster"),
    expect(dead_code, reason = "for the bridge to a fleet")
)]
pub(super) struct Wiring<'n> {
    pub(super) config: &'n Config,
    /// The first fleet key's token is shown to other nodes.
    pub(super) keyrings: &'n Arc<Keyrings>,
    /// By whom nodes at `https://` are believed.
    pub(super) trust: Option<Trust>,
    /// What stream ids are made of; names this life of the node.
    pub(super) secret: [u8; 32],
    pub(super) seed: u64,
    pub(super) nodes: Arc<Nodes>,
    pub(super) board: &'n Arc<Board>,
    pub(super) clock: &'n Arc<Clock>,
    pub(super) presence: &'n Arc<Presence>,
    /// Whom the node hears; another one than what it tells in a fleet.
    pub(super) heard: &'n Arc<Presence>,
    /// To which nodes of a fleet users' beats go.
    pub(super) homes: &'n Homes,
    /// Where it listens, for other nodes of a fleet.
    pub(super) listens: (SocketAddr, SocketAddr),
    pub(super) revoked: &'n Arc<Revoked>,
    /// None: there are none.
    pub(super) hooks: Option<&'n Hooks>,
    /// Of the thread that keeps revocations; None: a follower has none.
    pub(super) wants: Option<Sender<Wants>>,
}

/// Before the shards run.
pub(super) enum Ready {
    None,
    Presence {
        links: Links<Outbound>,
        /// Set once the shards run. What is answered before is silence.
        teller: Arc<OnceLock<Tell>>,
    },
    Realtime {
        beats_to: Vec<SocketAddr>,
        /// Set once the links run. What is asked before is asked again when a link first sees its
        /// node.
        handle: Arc<OnceLock<Handle<Outbound>>>,
    },
    #[cfg(feature = "cluster")]
    Fleet(super::fleet::Ready),
}

/// While they run.
pub(super) enum Running {
    None,
    Presence(Links<Outbound>),
    Realtime(Links<Outbound>),
    #[cfg(feature = "cluster")]
    Fleet(super::fleet::Running),
}

impl Wiring<'_> {
    /// What is needed before the shards run.
    pub(super) fn prepare(&self) -> Result<Ready, ServeFault> {
        Ok(match self.config.role {
            RoleName::All => Ready::None,
            #[cfg(feature = "cluster")]
            RoleName::Fleet => Ready::Fleet(super::fleet::Ready::new(self)?),
            #[cfg(not(feature = "cluster"))]
            RoleName::Fleet => unreachable!("the configuration was refused"),
            RoleName::Presence => {
                let remotes = self
                    .config
                    .realtime_nodes
                    .iter()
                    .map(|node| self.remote(&node.http));
                let birth = instance_of(&self.secret);
                let teller: Arc<OnceLock<Tell>> = Arc::default();
                let later = Arc::clone(&teller);
                let tell: Tell = Arc::new(move |mail| {
                    if let Some(tell) = later.get() {
                        tell(mail);
                    }
                });
                let links = Links::publish_to(remotes.collect(), birth, self.parts(), tell)
                    .map_err(ServeFault::os("start the links to real-time nodes"))?;
                Ready::Presence { links, teller }
            }
            RoleName::Realtime => {
                // None has been seen yet.
                self.board
                    .process
                    .set(Gauge::NodesDown, self.config.presence_nodes.len() as u64);
                Ready::Realtime {
                    beats_to: self
                        .config
                        .presence_nodes
                        .iter()
                        .map(resolve)
                        .collect::<Result<_, _>>()?,
                    handle: Arc::default(),
                }
            }
        })
    }

    /// One shard's way out.
    pub(super) fn outlet(&self, ready: &Ready) -> Result<Outlet, ServeFault> {
        let mut outlet = self.outlet_of_links(ready)?;
        let Some(wants) = self.wants.clone() else {
            return Ok(outlet);
        };
        Ok(Box::new(move |outbound| {
            if let Outbound::Revoked(asker) = &outbound
                && wants.send(*asker).is_err()
            {
                tracing::debug!("a revocation came after the node had stopped keeping them");
            }
            outlet(outbound);
        }))
    }

    fn outlet_of_links(&self, ready: &Ready) -> Result<Outlet, ServeFault> {
        Ok(match ready {
            Ready::None => Box::new(|_| {}),
            #[cfg(feature = "cluster")]
            Ready::Fleet(ready) => ready.outlet(self.board),
            Ready::Presence { links, .. } => {
                let handle = links.handle();
                Box::new(move |outbound| handle.hand(outbound))
            }
            Ready::Realtime { beats_to, handle } => {
                let beats = BeatSender::new(beats_to, self.board);
                let mut beats = beats.map_err(ServeFault::os("open sockets for beats"))?;
                let handle = Arc::clone(handle);
                Box::new(move |outbound| match outbound {
                    Outbound::Beats { node, datagrams } => beats.send(node, &datagrams),
                    for_link => {
                        if let Some(handle) = handle.get() {
                            handle.hand(for_link);
                        }
                    }
                })
            }
        })
    }

    /// Starts the links that talk back to the shards.
    pub(super) fn start(&self, ready: Ready, shards: &Shards) -> Result<Running, ServeFault> {
        Ok(match ready {
            Ready::None => Running::None,
            #[cfg(feature = "cluster")]
            Ready::Fleet(ready) => Running::Fleet(ready.start(self, shards)?),
            Ready::Presence { links, teller } => {
                let shards = shards.teller();
                let tell: Tell = Arc::new(move |mail: &Mail| shards.tell(mail));
                if teller.set(tell).is_err() {
                    unreachable!("set here alone, once");
                }
                Running::Presence(links)
            }
            Ready::Realtime { handle, .. } => {
                let teller = shards.teller();
                let tell = Arc::new(move |mail: &Mail| teller.tell(mail));
                let remotes = self
                    .config
                    .presence_nodes
                    .iter()
                    .map(|node| self.remote(&node.http));
                let links = Links::ask_at(
                    remotes.collect(),
                    Arc::clone(&self.nodes),
                    self.parts(),
                    tell,
                )
                .map_err(ServeFault::os("start the links to presence nodes"))?;
                if handle.set(links.handle()).is_err() {
                    unreachable!("set here alone, once");
                }
                Running::Realtime(links)
            }
        })
    }

    fn remote(&self, http: &str) -> Remote {
        let keyrings = Arc::clone(self.keyrings);
        let token = move || keyrings.load().fleet.signing().service_token();
        Remote::new(http.to_owned(), Arc::new(token), self.trust.as_ref())
    }

    fn parts(&self) -> LinkParts<'static> {
        LinkParts {
            seed: self.seed,
            board: Arc::clone(self.board),
            clock: Arc::clone(self.clock),
            presence: Arc::clone(self.presence),
            revoked: Arc::clone(self.revoked),
            spawn: &spawn,
        }
    }
}

/// A server without one of its links would tell some of its users the truth and the others what was
/// once true.
pub(super) fn spawn(
    name: String,
    work: Box<dyn FnOnce() + Send>,
) -> std::io::Result<JoinHandle<()>> {
    shard::vital_thread(name, move || {
        work();
        Ok(())
    })
}

impl Running {
    pub(super) fn stop(self) {
        match self {
            Running::None => {}
            #[cfg(feature = "cluster")]
            Running::Fleet(fleet) => fleet.stop(),
            Running::Presence(links) => links.stop(),
            Running::Realtime(links) => links.stop(),
        }
    }
}

/// Longest wait for a connection while one of a name's addresses is chosen: there are only a few,
/// and none is needed.
const CHOICE_WAIT: Duration = Duration::from_millis(300);

/// Where a node receives beats. UDP does not say whether anybody is there, so of several addresses
/// one is taken where its HTTP answers.
fn resolve(node: &PresenceNode) -> Result<SocketAddr, ServeFault> {
    let fault = |source| ServeFault::Node {
        address: node.udp.clone(),
        source,
    };
    let found = lookup::addresses(&node.udp).map_err(fault)?;
    let http_port = node
        .http
        .rsplit_once(':')
        .and_then(|(_, port)| port.parse().ok());
    let answers = |udp: SocketAddr| {
        let http = http_port.map(|port| SocketAddr::new(udp.ip(), port));
        http.is_some_and(|http| TcpStream::connect_timeout(&http, CHOICE_WAIT).is_ok())
    };
    let chosen = choose(&found, answers)
        .ok_or_else(|| fault(std::io::ErrorKind::AddrNotAvailable.into()))?;
    if found.len() > 1 {
        tracing::warn!(
            "udp://{} has {} addresses; beats go to {chosen}. Name the one that the node listens \
             on",
            node.udp,
            found.len()
        );
    }
    Ok(chosen)
}

/// The first that answers, or else the first of IPv4, which a node is likelier to listen on. None:
/// there is none.
fn choose(found: &[SocketAddr], answers: impl Fn(SocketAddr) -> bool) -> Option<SocketAddr> {
    if let [only] = found {
        return Some(*only);
    }
    let of = |wanted: &dyn Fn(SocketAddr) -> bool| found.iter().copied().find(|addr| wanted(*addr));
    of(&answers)
        .or_else(|| of(&|addr| addr.is_ipv4()))
        .or_else(|| of(&|_| true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_go_where_the_node_answers() {
        let addrs = ["[::1]:1", "127.0.0.1:1", "127.0.0.2:1"]
            .map(|addr| addr.parse::<SocketAddr>().unwrap());
        let [six, four, other] = addrs;
        assert_eq!(choose(&addrs, |addr| addr == other), Some(other));
        assert_eq!(choose(&addrs, |addr| addr.is_ipv6()), Some(six));
        assert_eq!(choose(&addrs, |_| false), Some(four));
        assert_eq!(choose(&[six, six], |_| false), Some(six));
        // One is not asked.
        assert_eq!(
            choose(&[six], |_| unreachable!("there is no choice")),
            Some(six)
        );
        assert_eq!(choose(&[], |_| true), None);
    }
}
