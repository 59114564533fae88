//! Calls about a stream that another node of a fleet has: what is sent there, and what came of it.
//!
//! Owns their shape, and by what a stream's id names its node.

use std::fmt;
use std::net::SocketAddr;

use crate::engine::errand::Asker;
use crate::wire::request::Method;

/// Names a node in the ids of its streams: by where it says that it is reached, so that each node
/// knows whom another's id means, and nobody learns addresses. Two of a thousand nodes are named
/// alike once in 8,000 fleets; then a call that one would forward is answered as if the stream had
/// ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeName(u32);

impl NodeName {
    /// Length of its text, in bytes.
    pub(in crate::engine) const TEXT_BYTES: usize = 8;

    /// Of the node that others reach at `http`.
    pub fn of(http: SocketAddr) -> NodeName {
        let hash = blake3::hash(format!("node {http}").as_bytes());
        let (first, _) = hash
            .as_bytes()
            .split_first_chunk()
            .expect("it has 32 bytes");
        NodeName(u32::from_be_bytes(*first))
    }

    /// Its eight hex digits.
    pub(in crate::engine) fn parse(text: &str) -> Option<NodeName> {
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let is_one = text.len() == NodeName::TEXT_BYTES && text.bytes().all(is_hex);
        let number = is_one.then(|| u32::from_str_radix(text, 16).ok());
        number.flatten().map(NodeName)
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:08x}", self.0)
    }
}

/// A call that is for another node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forward {
    /// The request that waits for it.
    pub asker: Asker,
    pub node: NodeName,
    pub request: Onward,
}

/// A request that goes on: all that the node which has the stream looks at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Onward {
    /// GET, POST or DELETE.
    pub method: Method,
    /// Its path, and a query where it is a list's.
    pub path: Box<str>,
    /// Host, as sent.
    pub host: Option<Box<str>>,
    /// By what the other node knows the caller.
    pub shows: Shows,
    /// JSON, or nothing: of a POST.
    pub body: Box<[u8]>,
}

/// Whose token a request shows that goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Shows {
    /// The caller's Authorization, as sent; a token that came by cookie is there as one that is
    /// shown. The other node judges who calls.
    Callers(Option<Box<str>>),
    /// The fleet's: this node has judged it.
    Fleets,
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Forwarded {
    /// No node of that name lives.
    Nobody,
    /// As many wait already as may.
    Busy,
    /// It has not answered.
    Silent,
    /// It has.
    Answered {
        /// The HTTP status.
        status: u16,
        /// JSON, or a problem; or nothing.
        body: Vec<u8>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_an_addresss_own() {
        let name = |text: &str| NodeName::of(text.parse().unwrap());
        let (one, other) = (name("10.0.0.1:8080"), name("10.0.0.2:8080"));
        assert_ne!(one, other);
        assert_eq!(NodeName::parse(&one.to_string()), Some(one));
        for bad in [
            "",
            "0",
            "0123456",
            "012345678",
            "0123456g",
            "0123456A",
            "+1234567",
        ] {
            assert_eq!(NodeName::parse(bad), None, "{bad}");
        }
    }
}
