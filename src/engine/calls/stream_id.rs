//! The id of a stream: shard, place, life, and a tag that only this process can make for them.
//!
//! Owns its text. An id is the permission to edit its stream, on any shard.

use std::fmt::Write;

use constant_time_eq::constant_time_eq_16;

use crate::engine::mail::ShardId;
use crate::realtime::ConnId;

/// Longest text of an id: three numbers, the tag and three dots.
const TEXT_BYTES_MAX: usize = 5 + 10 + 10 + 32 + 3;

/// The id of a stream.
pub(super) fn write(secret: &[u8; 32], shard: ShardId, id: ConnId) -> String {
    let tag = u128::from_be_bytes(tag(secret, shard, id));
    let mut text = String::with_capacity(TEXT_BYTES_MAX);
    let written = write!(text, "{shard}.{}.{}.{tag:032x}", id.index, id.generation);
    debug_assert!(written.is_ok() && text.len() <= TEXT_BYTES_MAX);
    text
}

/// Which stream an id names, if this process made it; the stream may have ended since.
pub(super) fn parse(secret: &[u8; 32], text: &str) -> Option<(ShardId, ConnId)> {
    let (shard, id, shown) = split(text)?;
    constant_time_eq_16(&tag(secret, shard, id), &shown).then_some((shard, id))
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
        let text = write(&[7; 32], 2, ID);
        assert!(text.starts_with("2.51.7."), "{text}");
        assert_eq!(parse(&[7; 32], &text), Some((2, ID)));
        assert_eq!(parse(&[8; 32], &text), None);
        assert_eq!(parse(&[7; 32], &text.replacen("51", "52", 1)), None);
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
