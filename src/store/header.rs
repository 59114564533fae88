//! The 128 bytes at the start of each of the store's files.
//!
//! Owns their layout and the checks. All numbers little-endian:
//!
//! ```text
//!   0  8  magic "GDUSERS\0", "GDSTAMP\0" or "GDPUBLI\0"
//!   8  4  version = 2
//!  12  4  capacity in slots known to be on disk (maps)
//!  16  8  store id: random, the same in the three files
//!  24  8  generation: one more at each opening for writing
//!  32  8  created at, Unix ms
//!  40  8  synced bytes: everything before is on disk (users.log)
//!  48  8  watermark, Unix ms: every transition up to it is on disk (published.map)
//!  56 16  kernel boot id of the last run (published.map)
//!  72  4  flags: bit 0 closed cleanly, bits 1 and 2 ambiguous windows present (published.map)
//!  76  4  longest delay after which readers were told to come back, ms (published.map)
//!  80  8  ambiguous window: first Unix ms      88  8  last Unix ms
//!  96  8  the second one: first Unix ms       104  8  last Unix ms
//! 112  8  when this header was written, Unix ms (published.map)
//! 124  4  CRC32C of the 124 bytes before
//! ```
//!
//! What no row names is zero. A header says the generation of the opening that wrote it, so the
//! store's is the greatest of the three.

use crate::time::Unix;

/// Times of which event ids are not believed, from the first to the last, both included.
pub(crate) type Window = (Unix, Unix);
/// Two, so that the time of a clock that was far ahead does not take with it all between that and
/// another window.
pub(crate) type Windows = [Option<Window>; 2];

/// Bytes of a header; within one disk sector.
pub(crate) const HEADER_BYTES: usize = 128;
pub(crate) const VERSION: u32 = 2;
const CRC_AT: usize = HEADER_BYTES - 4;
const FLAG_CLEAN: u32 = 1;
/// Of each ambiguous window, its flag and where it is.
const AMBIGUOUS: [(u32, usize); 2] = [(2, 80), (4, 96)];

/// The names of a store's files in its folder; the first holds the lock.
pub const STORE_FILES: [&str; 3] = [
    Kind::Users.file_name(),
    Kind::Stamps.file_name(),
    Kind::Published.file_name(),
];

/// Which of the three files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Users,
    Stamps,
    Published,
}

impl Kind {
    pub(crate) const fn file_name(self) -> &'static str {
        match self {
            Kind::Users => "users.log",
            Kind::Stamps => "stamps.map",
            Kind::Published => "published.map",
        }
    }

    const fn magic(self) -> &'static [u8; 8] {
        match self {
            Kind::Users => b"GDUSERS\0",
            Kind::Stamps => b"GDSTAMP\0",
            Kind::Published => b"GDPUBLI\0",
        }
    }
}

/// What a header says; fields that its file has no use for are zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) capacity: u32,
    pub(crate) store_id: u64,
    pub(crate) generation: u64,
    pub(crate) created_at: Unix,
    pub(crate) synced_bytes: u64,
    pub(crate) watermark: Unix,
    pub(crate) boot_id: [u8; 16],
    pub(crate) clean: bool,
    /// Longest delay after which readers were told to come back, in ms.
    pub(crate) away_ms: u32,
    pub(crate) ambiguous: Windows,
    pub(crate) written_at: Unix,
}

/// What is wrong with a header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum HeaderFault {
    Short { bytes: u64 },
    Magic { found: [u8; 8] },
    Version { found: u32 },
    Crc { expected: u32, found: u32 },
}

impl Header {
    pub(crate) fn new(kind: Kind, store_id: u64, generation: u64, created_at: Unix) -> Header {
        Header {
            kind,
            capacity: 0,
            store_id,
            generation,
            created_at,
            synced_bytes: 0,
            watermark: Unix::from_ms(0),
            boot_id: [0; 16],
            clean: false,
            away_ms: 0,
            ambiguous: [None; 2],
            written_at: Unix::from_ms(0),
        }
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let mut flags = u32::from(self.clean) * FLAG_CLEAN;
        for (window, (flag, at)) in self.ambiguous.iter().zip(AMBIGUOUS) {
            if let Some((from, to)) = window {
                flags |= flag;
                out[at..at + 8].copy_from_slice(&from.ms().to_le_bytes());
                out[at + 8..at + 16].copy_from_slice(&to.ms().to_le_bytes());
            }
        }
        out[0..8].copy_from_slice(self.kind.magic());
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.capacity.to_le_bytes());
        out[16..24].copy_from_slice(&self.store_id.to_le_bytes());
        out[24..32].copy_from_slice(&self.generation.to_le_bytes());
        out[32..40].copy_from_slice(&self.created_at.ms().to_le_bytes());
        out[40..48].copy_from_slice(&self.synced_bytes.to_le_bytes());
        out[48..56].copy_from_slice(&self.watermark.ms().to_le_bytes());
        out[56..72].copy_from_slice(&self.boot_id);
        out[72..76].copy_from_slice(&flags.to_le_bytes());
        out[76..80].copy_from_slice(&self.away_ms.to_le_bytes());
        out[112..120].copy_from_slice(&self.written_at.ms().to_le_bytes());
        let crc = crc32c::crc32c(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads what `encode` wrote. `bytes` is the start of the file, shorter only if the file is.
    ///
    /// Errors: it is no header, one of another file or version, or damaged.
    pub(crate) fn decode(kind: Kind, bytes: &[u8]) -> Result<Header, HeaderFault> {
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(HeaderFault::Short {
                bytes: bytes.len() as u64,
            });
        };
        let magic = array(bytes, 0);
        if &magic != kind.magic() {
            return Err(HeaderFault::Magic { found: magic });
        }
        let version = u32::from_le_bytes(array(bytes, 8));
        if version != VERSION {
            return Err(HeaderFault::Version { found: version });
        }
        let (expected, found) = (
            crc32c::crc32c(&bytes[..CRC_AT]),
            u32::from_le_bytes(array(bytes, CRC_AT)),
        );
        if expected != found {
            return Err(HeaderFault::Crc { expected, found });
        }
        let u64_at = |at| u64::from_le_bytes(array(bytes, at));
        let flags = u32::from_le_bytes(array(bytes, 72));
        Ok(Header {
            kind,
            capacity: u32::from_le_bytes(array(bytes, 12)),
            store_id: u64_at(16),
            generation: u64_at(24),
            created_at: Unix::from_ms(u64_at(32)),
            synced_bytes: u64_at(40),
            watermark: Unix::from_ms(u64_at(48)),
            boot_id: array(bytes, 56),
            clean: flags & FLAG_CLEAN != 0,
            away_ms: u32::from_le_bytes(array(bytes, 76)),
            written_at: Unix::from_ms(u64_at(112)),
            ambiguous: AMBIGUOUS.map(|(flag, at)| {
                (flags & flag != 0)
                    .then(|| (Unix::from_ms(u64_at(at)), Unix::from_ms(u64_at(at + 8))))
            }),
        })
    }
}

fn array<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut header = Header::new(Kind::Published, 7, 3, Unix::from_ms(1_000));
        header.capacity = 4_096;
        header.watermark = Unix::from_ms(5_000);
        header.boot_id = [9; 16];
        header.clean = true;
        header.away_ms = 15_000;
        header.written_at = Unix::from_ms(6_000);
        header.ambiguous =
            [(3, 4), (5, 6)].map(|(from, to)| Some((Unix::from_ms(from), Unix::from_ms(to))));
        assert_eq!(
            Header::decode(Kind::Published, &header.encode()),
            Ok(header)
        );
    }

    #[test]
    fn each_fault_is_told() {
        let good = Header::new(Kind::Stamps, 7, 3, Unix::from_ms(1_000)).encode();
        assert_eq!(
            Header::decode(Kind::Stamps, &good[..127]),
            Err(HeaderFault::Short { bytes: 127 })
        );
        assert_eq!(
            Header::decode(Kind::Users, &good),
            Err(HeaderFault::Magic {
                found: *b"GDSTAMP\0"
            })
        );
        let mut other = good;
        other[8] = 1;
        assert_eq!(
            Header::decode(Kind::Stamps, &other),
            Err(HeaderFault::Version { found: 1 })
        );
        let mut damaged = good;
        damaged[20] ^= 1;
        assert!(matches!(
            Header::decode(Kind::Stamps, &damaged),
            Err(HeaderFault::Crc { .. })
        ));
    }
}
