//! Calls about a stream that another node of a fleet has: what is sent there, and what came of it.
//!
//! Owns their shape, and by what a stream's id names its node.

use std::fmt;
use std::net::SocketAddr;

use crate::engine::errand::Asker;

/// Names a node in the ids of its streams: by where it says that it is reached, so that each node
/// knows whom another's id means, and nobody learns addresses. Two of a thousand nodes are named
/// alike once in 8,000 fleets; then a call that one would forward is answered as if the stream had
/// ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeTag(u32);

impl NodeTag {
    /// Length of its text, in bytes.
    pub(in crate::engine) const TEXT_BYTES: usize = 8;

    /// Of the node that others reach at `http`.
    pub fn of(http: SocketAddr) -> NodeTag {
        let hash = blake3::hash(format!("node {http}").as_bytes());
        let (first, _) = hash
            .as_bytes()
            .split_first_chunk()
            .expect("it has 32 bytes");
        NodeTag(u32::from_be_bytes(*first))
    }

    /// Its eight hex digits.
    pub(in crate::engine) fn parse(text: &str) -> Option<NodeTag> {
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let is_one = text.len() == NodeTag::TEXT_BYTES && text.bytes().all(is_hex);
        let number = is_one.then(|| u32::from_str_radix(text, 16).ok());
        number.flatten().map(NodeTag)
    }
}

impl fmt::Display for NodeTag {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:08x}", self.0)
    }
}

/// A call that is for another node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forward {
    /// The request that waits for it.
    pub asker: Asker,
    pub node: NodeTag,
    pub post: Post,
}

/// A POST, as it came: all that the node which has the stream looks at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Post {
    /// Path, as sent.
    pub path: Box<str>,
    /// Host and Authorization, as sent; a token that came by cookie is there as one that is shown.
    pub host: Option<Box<str>>,
    pub authorization: Option<Box<str>>,
    /// JSON, or nothing.
    pub body: Box<[u8]>,
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
    fn a_tag_is_an_addresss_own() {
        let tag = |text: &str| NodeTag::of(text.parse().unwrap());
        let (one, other) = (tag("10.0.0.1:8080"), tag("10.0.0.2:8080"));
        assert_ne!(one, other);
        assert_eq!(NodeTag::parse(&one.to_string()), Some(one));
        for bad in [
            "",
            "0",
            "0123456",
            "012345678",
            "0123456g",
            "0123456A",
            "+1234567",
        ] {
            assert_eq!(NodeTag::parse(bad), None, "{bad}");
        }
    }
}
