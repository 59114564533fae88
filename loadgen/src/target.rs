//! Which servers are under load: one that does everything, the two halves of a split deployment, or
//! the nodes of a fleet.
//!
//! Owns how the flags name them and which of them a stream, a beat or a question goes to. Opens no
//! connection.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use greendot::wire::nodes::Nodes;

use crate::common::{Common, Peer};
use crate::population::Population;
use crate::procfs;
use crate::seal::Seal;
use crate::servers::{self, PresenceNode};

const HTTP_DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);
const UDP_DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8081);

/// For a look at whether somebody listens.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The servers of one run.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where streams are opened, in turn; never empty.
    pub streams: Vec<SocketAddr>,
    /// Never empty.
    pub presence: Vec<PresenceNode>,
    /// The two are different processes.
    pub is_split: bool,
    /// Each node is both, and takes whatever comes: the two are the same nodes in the same order.
    pub is_fleet: bool,
    /// None: streams are plain.
    pub seal: Option<Seal>,
    /// Who named the one server: a flag or a variable.
    http_named_by: &'static str,
    nodes: Nodes,
}

impl Target {
    /// As the flags say, or else the environment; an error if the flags name half of a split
    /// deployment, or both kinds.
    pub fn new(common: &Common) -> io::Result<Target> {
        Target::named(common, |name| std::env::var(name).ok())
    }

    fn named(common: &Common, variable: impl Fn(&str) -> Option<String>) -> io::Result<Target> {
        let wrong = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        let is_split = !(common.realtime.is_empty() && common.presence.is_empty());
        if !common.node.is_empty() {
            return Target::fleet(common, is_split);
        }
        if !is_split {
            let set = |name: &str, read: fn(&str) -> Result<SocketAddr, String>| {
                let text = variable(name).filter(|text| !text.is_empty());
                let read = text.map(|text| read(&text)).transpose();
                read.map_err(|why| {
                    io::Error::new(io::ErrorKind::InvalidInput, format!("{name}: {why}"))
                })
            };
            let (http, http_named_by) = match common.http {
                Some(http) => (http, "--http"),
                None => match set(servers::URL_VARIABLE, servers::realtime)? {
                    Some(http) => (http, servers::URL_VARIABLE),
                    None => (HTTP_DEFAULT, "the default of --http"),
                },
            };
            let udp = match common.udp {
                Some(udp) => udp,
                None => set(servers::BEAT_TO_VARIABLE, servers::datagrams)?.unwrap_or(UDP_DEFAULT),
            };
            let name = udp.to_string();
            let seal = common.https.map(|_| Seal::new(common.tls_ca.as_deref()));
            if seal.is_none() && common.tls_ca.is_some() {
                return wrong("--tls-ca says whom to believe of --https: name that as well");
            }
            let streams = vec![common.https.unwrap_or(http)];
            return Ok(Target {
                http_named_by,
                seal: seal.transpose()?,
                ..Target::of(streams, vec![PresenceNode { name, udp, http }], false)
            });
        }
        if common.https.is_some() || common.tls_ca.is_some() {
            return wrong("--https takes one server, named by --http and --udp");
        }
        if common.http.is_some() || common.udp.is_some() {
            return wrong(
                "--http and --udp name one server, --realtime and --presence a split deployment: \
                 give one kind only",
            );
        }
        if common.realtime.is_empty() {
            return wrong(
                "--presence without --realtime: streams are opened at real-time nodes, so name \
                 them as well",
            );
        }
        if common.presence.is_empty() {
            return wrong(
                "--realtime without --presence: beats and queries go to presence nodes, so name \
                 them as well",
            );
        }
        if common.peer != Peer::Greendot {
            return wrong("--peer takes --http and --udp: only greendot comes in halves");
        }
        if has_twins(&common.presence) {
            return wrong("--presence names a node twice: users are spread by these names");
        }
        Ok(Target::of(
            common.realtime.clone(),
            common.presence.clone(),
            true,
        ))
    }

    /// Of the nodes that `--node` names.
    fn fleet(common: &Common, is_split: bool) -> io::Result<Target> {
        let wrong = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        if is_split || common.http.is_some() || common.udp.is_some() {
            return wrong(
                "--node names a fleet; --http and --udp one server, --realtime and --presence a \
                 split deployment: give one kind only",
            );
        }
        if common.https.is_some() || common.tls_ca.is_some() {
            return wrong("--https takes one server, named by --http and --udp");
        }
        if common.peer != Peer::Greendot {
            return wrong("--peer takes --http and --udp: only greendot comes as a fleet");
        }
        if has_twins(&common.node) {
            return wrong("--node names a node twice");
        }
        let streams = common.node.iter().map(|node| node.http).collect();
        Ok(Target {
            is_fleet: true,
            ..Target::of(streams, common.node.clone(), false)
        })
    }

    /// One server does everything.
    pub fn is_one(&self) -> bool {
        !self.is_split && !self.is_fleet
    }

    /// The one server of a scenario that is of one server alone; an error if several were named.
    pub fn single(common: &Common, scenario: &str) -> io::Result<Target> {
        let target = Target::new(common)?;
        if !target.is_one() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{scenario} loads one server: give one node's addresses as --http and --udp, \
                     of a split deployment a presence node's"
                ),
            ));
        }
        Ok(target)
    }

    fn of(streams: Vec<SocketAddr>, presence: Vec<PresenceNode>, is_split: bool) -> Target {
        let nodes = Nodes::new(presence.iter().map(|node| node.name.as_str()));
        Target {
            streams,
            presence,
            is_split,
            is_fleet: false,
            seal: None,
            http_named_by: "",
            nodes,
        }
    }

    /// Where the nodes that streams are opened at are asked for their figures.
    pub fn figures(&self) -> Vec<SocketAddr> {
        match self.is_split {
            true => self.streams.clone(),
            false => self.presence.iter().map(|node| node.http).collect(),
        }
    }

    /// The first server that takes no connection now, with who named it and why: what an error
    /// that names no address is likely to come from.
    pub fn unreachable(&self) -> Option<String> {
        let streams = self.streams.iter().map(|address| (address, "--realtime"));
        let presence = self.presence.iter().map(|node| (&node.http, "--presence"));
        streams.chain(presence).find_map(|(address, flag)| {
            let fault = TcpStream::connect_timeout(address, CONNECT_TIMEOUT).err()?;
            let is_sealed = self.seal.is_some() && flag == "--realtime";
            let named_by = match self.is_split {
                true => flag,
                false if self.is_fleet => "--node",
                false if is_sealed => "--https",
                false => self.http_named_by,
            };
            Some(format!("{address} ({named_by}): {fault}"))
        })
    }

    /// Whether all streams end on this machine: what the kernel needs for both ends is then counted
    /// here.
    pub fn streams_are_local(&self) -> bool {
        // An address that can be bound is one of ours.
        let is_ours = |address: &SocketAddr| std::net::UdpSocket::bind((address.ip(), 0)).is_ok();
        self.streams.iter().all(is_ours)
    }

    /// `users` by the presence node that each belongs to, in the order of [`Target::presence`];
    /// order is kept within a node.
    pub fn spread(&self, population: &Population, users: &[u64]) -> Vec<Vec<u64>> {
        let mut parts = vec![Vec::new(); self.presence.len()];
        for user in users {
            parts[self.nodes.of(&population.id(*user))].push(*user);
        }
        parts
    }

    /// Datagrams that the presence nodes' sockets have dropped so far; None unless they are all on
    /// loopback addresses.
    pub fn socket_drops(&self) -> Option<u64> {
        let ports = self.loopback_udp_ports();
        let all = self.presence.iter().all(|node| node.udp.ip().is_loopback());
        all.then(|| ports.into_iter().map(procfs::udp_drops).sum())
            .flatten()
    }

    /// UDP ports of the presence nodes on this machine's loopback addresses, each once: the
    /// kernel's counts are by port.
    fn loopback_udp_ports(&self) -> Vec<u16> {
        let local = self
            .presence
            .iter()
            .filter(|node| node.udp.ip().is_loopback());
        let mut ports: Vec<u16> = local.map(|node| node.udp.port()).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}

fn has_twins(nodes: &[PresenceNode]) -> bool {
    let mut names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    names.sort_unstable();
    names.windows(2).any(|pair| pair[0] == pair[1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common;

    #[derive(clap::Args)]
    struct NoneOfItsOwn {}

    fn target(flags: &str) -> Result<Target, String> {
        let (common, NoneOfItsOwn {}) = common::parsed(flags)?;
        Target::new(&common).map_err(|e| e.to_string())
    }

    const A: &str = "--presence udp://127.0.0.1:1,http://127.0.0.1:2";
    const B: &str = "--presence udp://127.0.0.2:1/,http://127.0.0.2:2/";

    #[test]
    fn one_server() {
        let named = target("--http 127.0.0.1:5 --udp 127.0.0.1:6").unwrap();
        assert_eq!(
            (named.is_split, named.streams.clone()),
            (false, vec!["127.0.0.1:5".parse().unwrap()])
        );
        assert_eq!(named.presence[0].udp, "127.0.0.1:6".parse().unwrap());
        assert_eq!(named.presence[0].http, "127.0.0.1:5".parse().unwrap());
        let by_name = target("--http localhost:5 --udp localhost:6").unwrap();
        assert_eq!(by_name.streams, named.streams);
        assert!(by_name.streams_are_local());
        // A network of documentation (RFC 5737): nobody's.
        assert!(!target("--http 192.0.2.1:5").unwrap().streams_are_local());
        assert_eq!(
            target("").unwrap().streams,
            ["127.0.0.1:8080".parse().unwrap()]
        );
    }

    #[test]
    fn the_environment_names_the_server_that_no_flag_names() {
        let set = |name: &str| {
            let text = match name {
                "GREENDOT_URL" => "http://localhost:5/",
                "GREENDOT_BEAT_TO" => "localhost:6",
                _ => return None,
            };
            Some(text.to_owned())
        };
        let named = |flags: &str| {
            let (common, NoneOfItsOwn {}) = common::parsed(flags).unwrap();
            let target = Target::named(&common, set).unwrap();
            let node = &target.presence[0];
            (node.http.port(), node.udp.port(), target.http_named_by)
        };
        assert_eq!(named(""), (5, 6, "GREENDOT_URL"));
        assert_eq!(named("--http localhost:1"), (1, 6, "--http"));
        // What is named by flags is no mixture with what is not.
        assert_eq!(named(&format!("--realtime 127.0.0.1:3 {A}")), (2, 1, ""));
        let (common, NoneOfItsOwn {}) = common::parsed("").unwrap();
        let wrong = Target::named(&common, |_| Some("nowhere".to_owned()));
        let fault = wrong.unwrap_err().to_string();
        assert!(fault.starts_with("GREENDOT_URL: nowhere: "), "{fault}");
    }

    #[test]
    fn who_does_not_answer_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let flags = format!("--http {address}");
        assert_eq!(target(&flags).unwrap().unreachable(), None);
        drop(listener);
        let told = target(&flags).unwrap().unreachable().unwrap();
        assert!(told.starts_with(&format!("{address} (--http): ")), "{told}");
    }

    #[test]
    fn a_split_deployment() {
        let split = target(&format!(
            "--realtime 127.0.0.1:3 --realtime http://127.0.0.1:4/ {A} {B}"
        ))
        .unwrap();
        assert!(split.is_split);
        assert_eq!(
            split.streams,
            ["127.0.0.1:3", "127.0.0.1:4"].map(|a| a.parse().unwrap())
        );
        assert_eq!(
            split.presence[1],
            PresenceNode {
                name: "127.0.0.2:1".into(),
                udp: "127.0.0.2:1".parse().unwrap(),
                http: "127.0.0.2:2".parse().unwrap(),
            }
        );
        assert_eq!(split.loopback_udp_ports(), [1], "two nodes, one port");
        let population = Population::new(1);
        let users: Vec<u64> = (0..100).collect();
        let parts = split.spread(&population, &users);
        let nodes = Nodes::new(["127.0.0.1:1", "127.0.0.2:1"]);
        for (node, part) in parts.iter().enumerate() {
            assert!(part.len() > 20 && part.is_sorted());
            assert!(
                part.iter()
                    .all(|user| nodes.of(&population.id(*user)) == node)
            );
        }
        assert_eq!(parts.concat().len(), 100);
    }

    #[test]
    fn a_fleet() {
        let nodes = format!("{A} {B}").replace("--presence", "--node");
        let fleet = target(&nodes).unwrap();
        assert_eq!(
            (fleet.is_fleet, fleet.is_split, fleet.is_one()),
            (true, false, false)
        );
        // Any node takes streams, beats and questions.
        let http = ["127.0.0.1:2", "127.0.0.2:2"].map(|a| a.parse().unwrap());
        assert_eq!(fleet.streams, http);
        assert_eq!(fleet.figures(), http);
        let told = fleet.unreachable().unwrap();
        assert!(told.starts_with("127.0.0.1:2 (--node): "), "{told}");
        let (common, NoneOfItsOwn {}) = common::parsed(&nodes).unwrap();
        let fault = Target::single(&common, "query").unwrap_err().to_string();
        assert!(
            fault.starts_with("query loads one server: give one node's"),
            "{fault}"
        );
    }

    #[test]
    fn what_is_refused() {
        let node = A.replace("--presence", "--node");
        for (flags, why) in [
            (format!("{node} --udp 127.0.0.1:6"), "give one kind only"),
            (format!("{node} {A}"), "give one kind only"),
            (
                format!("{node} --https 127.0.0.1:6"),
                "--https takes one server",
            ),
            (
                format!("{node} --peer bare"),
                "only greendot comes as a fleet",
            ),
            (format!("{node} {node}"), "--node names a node twice"),
            (
                format!("--realtime 127.0.0.1:3 --http 127.0.0.1:5 {A}"),
                "give one kind only",
            ),
            (format!("--udp 127.0.0.1:5 {A}"), "give one kind only"),
            (
                "--realtime 127.0.0.1:3".into(),
                "--realtime without --presence",
            ),
            (A.into(), "--presence without --realtime"),
            (
                format!("--realtime 127.0.0.1:3 {A} {A}"),
                "names a node twice",
            ),
            (
                format!("--realtime 127.0.0.1:3 --peer axum {A}"),
                "only greendot comes in halves",
            ),
            ("--realtime nowhere".into(), "nowhere"),
            (
                "--realtime 127.0.0.1:3 --presence http://127.0.0.1:1,udp://127.0.0.1:2".into(),
                "udp://HOST:PORT,http://HOST:PORT expected",
            ),
        ] {
            let fault = target(&flags).unwrap_err();
            assert!(fault.contains(why), "{flags}: {fault}");
        }
    }
}
