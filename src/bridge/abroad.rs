//! Which node of a fleet is asked for its streams next, and which a call is for.
//!
//! Owns the order: all nodes that live but this one, by their addresses. Who has ended, and said
//! so, is not asked. Asks nobody itself.

use std::net::SocketAddr;
use std::sync::Arc;

use super::desk::TellOne;
use crate::engine::{Forward, Forwarded, Mail, NodeAsk, NodeName, NodeStreams, StreamsAsk};
use crate::fleet::Life;
use crate::fleet::hooks::{has_ended, parts_of};
use crate::fleet::member::Peer;

/// A node, and a cursor of its.
type At = (Box<str>, Option<Box<str>>);

/// Asks one node. False: too many are asked already.
pub type AskNode = Box<dyn Fn(NodeAsk) -> bool + Send>;

/// Sends a call to the node there. False: too many are sent already.
pub type ForwardTo = Box<dyn Fn(SocketAddr, Forward) -> bool + Send>;

/// See the module.
pub struct Abroad {
    ask: AskNode,
    forward: ForwardTo,
    tell_one: TellOne,
}

impl Abroad {
    /// Neither `ask` nor `forward` blocks.
    pub fn new(ask: AskNode, forward: ForwardTo, tell_one: TellOne) -> Abroad {
        Abroad {
            ask,
            forward,
            tell_one,
        }
    }

    /// A call is for a node that may be one of these.
    pub(super) fn forward(&self, forward: Forward, peers: &[Peer]) {
        let asker = forward.asker;
        let sent = named(forward.node, peers).map(|node| (self.forward)(node, forward));
        let told = match sent {
            Some(true) => return,
            Some(false) => Forwarded::Busy,
            None => Forwarded::Nobody,
        };
        let (conn, told) = (asker.conn, Arc::new(told));
        (self.tell_one)(asker.shard, Mail::Forwarded { conn, told });
    }

    /// A page goes on at another node.
    pub(super) fn ask(&self, ask: StreamsAsk, peers: &[Peer], own: Life) {
        let StreamsAsk {
            asker,
            at,
            user,
            limit,
        } = ask;
        let is_asked = next(at, peers, own).map(|(node, cursor)| {
            (self.ask)(NodeAsk {
                asker,
                node,
                cursor,
                user,
                limit,
            })
        });
        let told = match is_asked {
            Some(true) => return,
            Some(false) => NodeStreams::Busy,
            None => NodeStreams::Over,
        };
        let (conn, told) = (asker.conn, Arc::new(told));
        (self.tell_one)(asker.shard, Mail::Abroad { conn, told });
    }
}

/// Where a node of that name is reached.
fn named(name: NodeName, peers: &[Peer]) -> Option<SocketAddr> {
    let lives = peers.iter().filter(|peer| !has_ended(&peer.info));
    let mut nodes = lives.filter_map(|peer| {
        let http = parts_of(&peer.info).0.split(' ').next()?;
        http.parse().ok()
    });
    nodes.find(|http| NodeName::of(*http) == name)
}

/// The node at which a list goes on, and where in its streams.
fn next(at: Option<At>, peers: &[Peer], own: Life) -> Option<At> {
    let is_other = |peer: &&Peer| peer.life != own && !has_ended(&peer.info);
    let others = peers.iter().filter(is_other);
    let mut nodes: Vec<&str> = others
        .filter_map(|peer| parts_of(&peer.info).0.split(' ').next())
        .collect();
    nodes.sort_unstable();
    let (at, cursor) = at.unwrap_or_default();
    let goes_on = |node: &str| cursor.is_some() && *node == *at;
    let mut nodes = nodes.into_iter();
    let node = nodes.find(|node| *node > &*at || goes_on(node))?;
    // If the node that it was at has gone, the list goes on behind it.
    let cursor = cursor.filter(|_| *node == *at);
    Some((node.into(), cursor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::hooks::info_of_ended;

    #[test]
    fn a_call_goes_to_the_node_that_its_stream_names() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let ended = info_of_ended("10.0.0.3:80 u v");
        let infos = [
            "10.0.0.1:80 u v",
            "10.0.0.2:80 u v hooks=a",
            &ended,
            "nonsense",
        ];
        let peer = |info: &str| Peer {
            life: Life(*b"life"),
            info: info.into(),
        };
        let peers = infos.map(peer);
        for (http, expected) in [
            ("10.0.0.2:80", Some(at("10.0.0.2:80"))),
            ("10.0.0.3:80", None),
            ("10.0.0.4:80", None),
        ] {
            assert_eq!(named(NodeName::of(at(http)), &peers), expected, "{http}");
        }
    }

    #[test]
    fn nodes_are_asked_by_their_addresses_and_none_twice() {
        let peer = |life: u8, info: &str| Peer {
            life: Life([life; 4]),
            info: info.into(),
        };
        let ended = info_of_ended("d u v");
        let peers = [
            peer(1, "c u v hooks=a"),
            peer(2, "a u v"),
            peer(3, "b u v"),
            peer(4, &ended),
        ];
        let asked = |at: Option<(&str, Option<&str>)>| {
            let at = at.map(|(node, cursor)| (node.into(), cursor.map(Box::from)));
            let next = next(at, &peers, Life([2; 4]));
            next.map(|(node, cursor)| (node.to_string(), cursor.map(String::from)))
        };
        let at = |node: &str, cursor: Option<&str>| Some((node.into(), cursor.map(String::from)));
        assert_eq!(asked(None), at("b", None));
        assert_eq!(asked(Some(("b", Some("x")))), at("b", Some("x")));
        assert_eq!(asked(Some(("b", None))), at("c", None));
        assert_eq!(asked(Some(("bb", Some("x")))), at("c", None));
        assert_eq!(asked(Some(("c", None))), None);
    }
}
