//! Cursors: where a walk goes on that takes several requests.
//!
//! Owns their text, which only the process that made one takes, for the same walk: 8 bytes of keyed
//! BLAKE3 behind the place, in hex; in a fleet the name of its node before it. So nobody has to
//! keep a walk, and whoever gives one up leaves nothing behind. What a place is, is the walk's.

use std::fmt::Write;

use crate::engine::upstream::NodeName;
use crate::wire::response::{Answer, problems};

const TAG_BYTES: usize = 8;

/// A walk: its name, and what it looks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk<'w> {
    pub(super) secret: &'w [u8; 32],
    /// The node of a fleet.
    pub(super) node: Option<NodeName>,
    pub(super) name: &'static str,
    pub(super) filter: &'w str,
}

/// Why a cursor is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CursorFault {
    /// It is the text of no cursor.
    Form,
    /// Another process made it, or it is of another walk; or what it counts on is so no more.
    Gone,
}

impl Walk<'_> {
    /// The cursor of a place.
    pub(super) fn cursor(&self, place: &[u8]) -> String {
        let name = self.node.map(|node| node.to_string());
        let mut text = name.unwrap_or_default();
        text.reserve(2 * (place.len() + TAG_BYTES));
        for byte in place.iter().chain(&self.tag(place)) {
            let written = write!(text, "{byte:02x}");
            debug_assert!(written.is_ok(), "a String takes everything");
        }
        text
    }

    /// The place of a cursor.
    pub(super) fn place<const BYTES: usize>(
        &self,
        cursor: &str,
    ) -> Result<[u8; BYTES], CursorFault> {
        let (place, tag) = split(self.own(cursor)?)?;
        let place: [u8; BYTES] = place.try_into().map_err(|_| CursorFault::Form)?;
        self.check(&place, tag)?;
        Ok(place)
    }

    /// The same of a place that has `BYTES` and as many more as it likes.
    pub(super) fn long_place<const BYTES: usize>(
        &self,
        cursor: &str,
    ) -> Result<([u8; BYTES], Vec<u8>), CursorFault> {
        let (place, tag) = split(self.own(cursor)?)?;
        let (first, rest) = place.split_first_chunk().ok_or(CursorFault::Form)?;
        self.check(&place, tag)?;
        Ok((*first, rest.to_vec()))
    }

    /// A cursor without the name of its node.
    fn own<'c>(&self, cursor: &'c str) -> Result<&'c str, CursorFault> {
        let Some(own) = self.node else {
            return Ok(cursor);
        };
        // Of another node it is sent there, if that one lives.
        let named = node_and_rest(cursor).ok_or(CursorFault::Form)?;
        from_hex(named.1).ok_or(CursorFault::Form)?;
        Some(named.1)
            .filter(|_| named.0 == own)
            .ok_or(CursorFault::Gone)
    }

    fn check(&self, place: &[u8], tag: [u8; TAG_BYTES]) -> Result<(), CursorFault> {
        // Whoever may walk may begin anywhere: nothing is given away by the time that this takes.
        match tag == self.tag(place) {
            true => Ok(()),
            false => Err(CursorFault::Gone),
        }
    }

    fn tag(&self, place: &[u8]) -> [u8; TAG_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(self.secret);
        // No filter has a control character.
        for part in [
            b"cursor\0",
            self.name.as_bytes(),
            b"\0",
            self.filter.as_bytes(),
        ] {
            hasher.update(part);
        }
        hasher.update(b"\0").update(place);
        let hash = hasher.finalize();
        let tag = hash.as_bytes().first_chunk();
        *tag.expect("a BLAKE3 hash has 32 bytes")
    }
}

/// The node of a fleet that made a cursor.
pub(super) fn node(cursor: &str) -> Option<NodeName> {
    node_and_rest(cursor).map(|(node, _)| node)
}

fn node_and_rest(cursor: &str) -> Option<(NodeName, &str)> {
    let (node, rest) = cursor.split_at_checked(NodeName::TEXT_BYTES)?;
    Some((NodeName::parse(node)?, rest))
}

/// The place of a cursor, and what vouches for it.
fn split(cursor: &str) -> Result<(Vec<u8>, [u8; TAG_BYTES]), CursorFault> {
    let mut place = from_hex(cursor).ok_or(CursorFault::Form)?;
    let tag = *place.last_chunk().ok_or(CursorFault::Form)?;
    place.truncate(place.len() - TAG_BYTES);
    Ok((place, tag))
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let pairs = text.as_bytes().chunks_exact(2);
    let pairs = pairs.map(|pair| std::str::from_utf8(pair).ok());
    pairs
        .map(|pair| u8::from_str_radix(pair?, 16).ok())
        .collect()
}

impl From<CursorFault> for Answer {
    fn from(fault: CursorFault) -> Answer {
        match fault {
            CursorFault::Form => {
                let detail = "the cursor is none; repeat the one of the last answer as it is, or \
                              leave it out to begin";
                Answer::problem(problems::BAD_QUERY, detail)
            }
            CursorFault::Gone => {
                let detail = "the cursor is of another walk, of before a start of this node, or of \
                              before its clock was set back; begin anew without one";
                Answer::problem(problems::CURSOR_GONE, detail)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALK: Walk<'_> = Walk {
        secret: &[7; 32],
        node: None,
        name: "walk",
        filter: "a",
    };

    #[test]
    fn a_cursor_is_good_for_its_walk_alone() {
        let cursor = WALK.cursor(&[1, 2, 0xff]);
        assert_eq!(cursor.len(), 22);
        assert_eq!(WALK.place(&cursor), Ok([1, 2, 0xff]));
        assert_eq!(WALK.place(&cursor.to_uppercase()), Ok([1, 2, 0xff]));
        let others = [
            Walk {
                secret: &[8; 32],
                ..WALK
            },
            Walk {
                name: "wal",
                filter: "ka",
                ..WALK
            },
            Walk { filter: "", ..WALK },
        ];
        for other in others {
            assert_eq!(other.place::<3>(&cursor), Err(CursorFault::Gone));
        }
        let moved = cursor.replacen("01", "02", 1);
        assert_eq!(WALK.place::<3>(&moved), Err(CursorFault::Gone));
    }

    #[test]
    fn in_a_fleet_a_cursor_names_its_node() {
        let [one, other] = [1, 2].map(|host| NodeName::of(([10, 0, 0, host], 8080).into()));
        let [walk, others] = [one, other].map(|name| Walk {
            node: Some(name),
            ..WALK
        });
        let cursor = walk.cursor(&[1, 2]);
        assert_eq!(cursor, format!("{one}{}", WALK.cursor(&[1, 2])));
        assert_eq!(
            (walk.place(&cursor), node(&cursor)),
            (Ok([1, 2]), Some(one))
        );
        assert_eq!(others.place::<2>(&cursor), Err(CursorFault::Gone));
        for bad in ["", "0", "zz", &format!("{cursor}0")] {
            assert_eq!(walk.place::<2>(bad), Err(CursorFault::Form), "{bad}");
        }
        assert_eq!(node("0123456"), None);
    }

    #[test]
    fn a_place_may_be_long() {
        let cursor = WALK.cursor(&[1, 2, 3]);
        assert_eq!(WALK.long_place(&cursor), Ok(([1, 2], vec![3])));
        assert_eq!(WALK.long_place(&cursor), Ok(([1, 2, 3], vec![])));
        assert_eq!(WALK.long_place::<4>(&cursor), Err(CursorFault::Form));
        let moved = cursor.replacen("03", "04", 1);
        assert_eq!(WALK.long_place::<2>(&moved), Err(CursorFault::Gone));
    }

    #[test]
    fn what_is_no_cursor_is_told_from_one_that_is_old() {
        let cursor = WALK.cursor(&[1, 2, 3]);
        for text in [
            "",
            "0",
            "zz",
            "+1",
            "\u{e9}\u{e9}",
            &cursor[2..],
            &format!("{cursor}00"),
        ] {
            assert_eq!(WALK.place::<3>(text), Err(CursorFault::Form), "{text}");
        }
    }
}
