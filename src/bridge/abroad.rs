//! Which node of a fleet is asked for its streams next.
//!
//! Owns the order: all nodes that live but this one, by their addresses. Who has ended, and said
//! so, is not asked. Asks nobody itself.

use std::sync::Arc;

use super::desk::TellOne;
use crate::engine::{Mail, NodeAsk, NodeStreams, StreamsAsk};
use crate::fleet::Life;
use crate::fleet::hooks::{has_ended, parts_of};
use crate::fleet::member::Peer;

/// A node, and a cursor of its.
type At = (Box<str>, Option<Box<str>>);

/// Asks one node. False: too many are asked already.
pub type AskNode = Box<dyn Fn(NodeAsk) -> bool + Send>;

/// See the module.
pub struct Abroad {
    ask: AskNode,
    tell_one: TellOne,
}

impl Abroad {
    /// `ask` does not block.
    pub fn new(ask: AskNode, tell_one: TellOne) -> Abroad {
        Abroad { ask, tell_one }
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
