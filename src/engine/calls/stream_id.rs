//! The id of a stream: shard, place, life, and a tag that only this process can make for them. In
//! a fleet the name of its node stands before them.
//!
//! Owns its text. An id is the permission to edit its stream, on any shard and at any node.

use std::fmt::Write;

use constant_time_eq::constant_time_eq_16;

use crate::engine::mail::ShardId;
use crate::engine::upstream::NodeName;
use crate::realtime::ConnId;

/// Longest text of an id: its node, three numbers, the tag and four dots.
const TEXT_BYTES_MAX: usize = NodeName::TEXT_BYTES + 5 + 10 + 10 + 32 + 4;

/// The id of a stream.
pub(super) fn write(
    secret: &[u8; 32],
    node: Option<NodeName>,
    shard: ShardId,
    id: ConnId,
) -> String {
    let tag = u128::from_be_bytes(tag(secret, shard, id));
    let mut text = String::with_capacity(TEXT_BYTES_MAX);
    let named = node.map_or(Ok(()), |node| write!(text, "{node}."));
    let written = write!(text, "{shard}.{}.{}.{tag:032x}", id.index, id.generation);
    debug_assert!(named.and(written).is_ok() && text.len() <= TEXT_BYTES_MAX);
    text
}

/// Which stream an id names, if this process made it; the stream may have ended since.
pub(super) fn parse(secret: &[u8; 32], text: &str) -> Option<(ShardId, ConnId)> {
    let (shard, id, shown) = split(node_and_rest(text).1)?;
    constant_time_eq_16(&tag(secret, shard, id), &shown).then_some((shard, id))
}

/// The node of a fleet that an id names. None: none, or it is no id.
pub(super) fn node(text: &str) -> Option<NodeName> {
    let (node, rest) = node_and_rest(text);
    node.filter(|_| split(rest).is_some())
}

fn node_and_rest(text: &str) -> (Option<NodeName>, &str) {
    let parts = text.split_once('.');
    let named = parts.and_then(|(node, rest)| Some((NodeName::parse(node)?, rest)));
    // Without one the first number is a shard's, which is shorter.
    named.map_or((None, text), |(node, rest)| (Some(node), rest))
}

fn tag(secret: &[u8; 32], shard: ShardId, id: ConnId) -> [u8; 16] {
    let mut name = [0; 10];
    name[..2].copy_from_slice(&shard.to_be_bytes());
    name[2..6].copy_from_slice(&id.index.to_be_bytes());
    name[6..].copy_from_slice(&id.generation.to_be_bytes());
    let mut tag = [0; 16];
    tag.copy_from_slice(&blake3::keyed_hash(secret, &name).as_bytes()[..16]);
    tag
}

fn split(text: &str) -> Option<(ShardId, ConnId, [u8; 16])> {
    let mut parts = text.split('.');
    let (shard, index, generation, tag) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = tag.len() == 32 && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
    let tag = hex.then(|| u128::from_str_radix(tag, 16).ok()).flatten()?;
    let whole = parts.next().is_none();
    let id = ConnId {
        index: index.parse().ok()?,
        generation: generation.parse().ok()?,
    };
    Some((shard.parse().ok()?, id, tag.to_be_bytes())).filter(|_| whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ConnId = ConnId {
        index: 51,
        generation: 7,
    };

    #[test]
    fn only_the_process_that_made_an_id_takes_it() {
        let text = write(&[7; 32], None, 2, ID);
        assert!(text.starts_with("2.51.7."), "{text}");
        assert_eq!(parse(&[7; 32], &text), Some((2, ID)));
        assert_eq!(parse(&[8; 32], &text), None);
        assert_eq!(parse(&[7; 32], &text.replacen("51", "52", 1)), None);
        assert_eq!(node(&text), None);
    }

    #[test]
    fn in_a_fleet_an_id_names_its_node() {
        let name = NodeName::of("10.0.0.1:8080".parse().unwrap());
        let text = write(&[7; 32], Some(name), 2, ID);
        assert!(text.starts_with(&format!("{name}.2.51.7.")), "{text}");
        assert_eq!(
            (parse(&[7; 32], &text), node(&text)),
            (Some((2, ID)), Some(name))
        );
        assert_eq!(node(&format!("{name}.2.51.7")), None, "it is no id");
        let longest = ConnId {
            index: u32::MAX,
            generation: u32::MAX,
        };
        let text = write(&[7; 32], Some(name), ShardId::MAX, longest);
        assert_eq!(text.len(), TEXT_BYTES_MAX);
    }

    #[test]
    fn parts() {
        let tag = "00112233445566778899aabbccddeeff";
        let expected = u128::from_str_radix(tag, 16).unwrap().to_be_bytes();
        assert_eq!(split(&format!("2.51.7.{tag}")), Some((2, ID, expected)));
        for bad in [
            "",
            "2",
            "2.51",
            "2.51.7",
            "2.51.7.",
            "2.51.7.00",
            "x.51.7.00112233445566778899aabbccddeeff",
            "2.51.7.+0112233445566778899aabbccddeeff",
            "2.51.00112233445566778899aabbccddeeff",
        ] {
            assert_eq!(split(bad), None, "{bad}");
        }
        assert_eq!(split(&format!("2.51.7.{tag}.1")), None);
    }
}
