//! Beat datagrams that go over a connection together, where UDP does not get through.
//!
//! Owns the framing alone: each stands behind its length. What a datagram is worth is decided as if
//! it had come by itself.
//!
//! ```text
//! at  bytes
//! 0       2  length
//! 2  length  datagram; repeated
//! ```

use std::fmt;

use super::DATAGRAM_BYTES_MAX;

/// Most datagrams in a bundle: what one request may keep a turn busy with.
pub const BUNDLE_DATAGRAMS_MAX: usize = 64;

/// Why a bundle was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BundleFault {
    /// A length is missing, or reaches beyond the end.
    Torn,
    /// It has more than [`BUNDLE_DATAGRAMS_MAX`] datagrams.
    TooMany,
}

impl fmt::Display for BundleFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BundleFault::Torn => {
                f.write_str("the body is not whole datagrams behind their lengths")
            }
            BundleFault::TooMany => {
                write!(f, "the body has more than {BUNDLE_DATAGRAMS_MAX} datagrams")
            }
        }
    }
}

/// Adds a datagram to a bundle.
pub fn write_bundled(datagram: &[u8], out: &mut Vec<u8>) {
    debug_assert!(
        datagram.len() <= DATAGRAM_BYTES_MAX,
        "no datagram is longer"
    );
    let length = u16::try_from(datagram.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(datagram);
}

/// The datagrams of a bundle, in the order in which they were sent.
///
/// Errors: it is none. Nothing of it counts then.
pub fn read_bundle(mut bytes: &[u8]) -> Result<Vec<&[u8]>, BundleFault> {
    let mut datagrams = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk().ok_or(BundleFault::Torn)?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (datagram, rest) = rest.split_at_checked(length).ok_or(BundleFault::Torn)?;
        if datagrams.len() == BUNDLE_DATAGRAMS_MAX {
            return Err(BundleFault::TooMany);
        }
        datagrams.push(datagram);
        bytes = rest;
    }
    Ok(datagrams)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(datagrams: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        datagrams
            .iter()
            .for_each(|datagram| write_bundled(datagram, &mut out));
        out
    }

    #[test]
    fn what_goes_in_comes_out_in_order() {
        let long = [7; DATAGRAM_BYTES_MAX];
        for datagrams in [&[][..], &[&b"a"[..]], &[&long, &b""[..], &b"bc"[..]]] {
            assert_eq!(read_bundle(&bundle(datagrams)), Ok(datagrams.to_vec()));
        }
    }

    #[test]
    fn a_torn_one_is_none_and_so_is_one_of_too_many() {
        let whole = bundle(&[b"abc", b"de"]);
        for end in (1..whole.len()).filter(|end| *end != 5) {
            assert_eq!(read_bundle(&whole[..end]), Err(BundleFault::Torn), "{end}");
        }
        let most = vec![&b"x"[..]; BUNDLE_DATAGRAMS_MAX];
        assert_eq!(
            read_bundle(&bundle(&most)).map(|all| all.len()),
            Ok(most.len())
        );
        let more = [&most[..], &[b"x"]].concat();
        assert_eq!(read_bundle(&bundle(&more)), Err(BundleFault::TooMany));
    }
}
