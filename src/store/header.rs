//! The 512 bytes at the start of each of the store's files, alone on their first page.
//!
//! Owns their layout and the checks. All numbers little-endian:
//!
//! ```text
//!   0  8  magic "GDUSERS\0", "GDSTAMP\0" or "GDPUBLI\0"
//!   8  4  version = 2
//!  12  4  capacity in slots known to be on disk (maps)
//!  16  8  store id: random, the same in the three files
//!  24  8  created at, Unix ms
//!  32  8  generation: one more at each opening that takes its cells from the folder's files
//!  40  8  life: random, drawn with the generation, never 0
//!  48  4  home of the cells: 0 these files, mapped; 1 a memory, at the path below
//!  52  4  flags: bit 0 closed cleanly, bits 1 and 2 ambiguous windows present (published.map)
//!  56  8  synced bytes: everything before is on disk (users.log)
//!  64  8  watermark, Unix ms: every transition up to it is on disk (published.map)
//!  72 16  kernel boot id of the run that wrote it
//!  88  8  ambiguous window: first Unix ms       96  8  last Unix ms (published.map)
//! 104  8  the second one: first Unix ms        112  8  last Unix ms (published.map)
//! 120  8  home 1: device of the folder's users.log, which the memory continues
//! 128  8  home 1: inode of the same
//! 136  8  written at, Unix ms: what the clock said then
//! 144  4  longest delay after which readers were told to come back, ms (published.map)
//! 256  1  bytes of the path that follows; 0 where the cells are in these files
//! 257     path of the memory, 247 bytes at most
//! 508  4  CRC32C of the 508 bytes before
//! ```
//!
//! What no row names is zero. A generation is the time between two readings of the folder. Headers
//! are written in the order users.log, stamps.map, published.map, so the last one's generation is
//! that of the store, and the others' are one more where an opening was cut short.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::time::Unix;

/// Times of which event ids are not believed, from the first to the last, both included.
pub(crate) type Window = (Unix, Unix);
/// Two, so that the time of a clock that was far ahead does not take with it all between that and
/// another window.
pub(crate) type Windows = [Option<Window>; 2];

/// Bytes of a header: one disk sector, which a power cut leaves whole.
pub(crate) const HEADER_BYTES: usize = 512;
pub(crate) const VERSION: u32 = 2;
/// Where the checksum stands.
pub(crate) const CRC_AT: usize = HEADER_BYTES - 4;
/// Where the generation stands.
pub(crate) const GENERATION_AT: u64 = 32;
const FLAG_CLEAN: u32 = 1;
/// Of each ambiguous window, its flag and where it is.
const AMBIGUOUS: [(u32, usize); 2] = [(2, 88), (4, 104)];
const PATH_AT: usize = 257;
/// The longest path of a memory.
pub(crate) const PATH_BYTES_MAX: usize = 247;

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

/// The path of a memory, as long as a header has room for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryPath {
    bytes: [u8; PATH_BYTES_MAX],
    length: u8,
}

impl MemoryPath {
    /// None: it is empty or too long.
    pub(crate) fn new(path: &Path) -> Option<MemoryPath> {
        let path = path.as_os_str().as_bytes();
        let length = u8::try_from(path.len()).ok().filter(|length| *length > 0)?;
        let mut bytes = [0; PATH_BYTES_MAX];
        bytes.get_mut(..path.len())?.copy_from_slice(path);
        Some(MemoryPath { bytes, length })
    }

    pub(crate) fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.bytes[..usize::from(self.length)]))
    }
}

impl fmt::Debug for MemoryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_path().fmt(f)
    }
}

/// Where the cells of a generation are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a handful of headers is all there ever is, and they are copied"
)]
pub(crate) enum Home {
    /// In the folder's own files, mapped.
    Files,
    /// In files of the same format in a memory; the folder's follow.
    Memory(MemoryPath),
}

/// What tells one file from another, whatever its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// What a header says; fields that its file has no use for are zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) capacity: u32,
    pub(crate) store_id: u64,
    pub(crate) created_at: Unix,
    pub(crate) generation: u64,
    pub(crate) life: u64,
    pub(crate) home: Home,
    pub(crate) clean: bool,
    pub(crate) synced_bytes: u64,
    pub(crate) watermark: Unix,
    pub(crate) boot_id: [u8; 16],
    /// Longest delay after which readers were told to come back, in ms.
    pub(crate) away_ms: u32,
    pub(crate) ambiguous: Windows,
    /// With a memory: the folder's users.log, which it continues.
    pub(crate) continues: FileId,
    pub(crate) written_at: Unix,
}

/// What is wrong with a header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum HeaderFault {
    Short { bytes: u64 },
    Magic { found: [u8; 8] },
    Version { found: u32 },
    Crc { expected: u32, found: u32 },
    Home { found: u32 },
}

impl Header {
    /// Of a store of which nothing else is known yet.
    pub(crate) fn new(kind: Kind, store_id: u64, created_at: Unix) -> Header {
        Header {
            kind,
            capacity: 0,
            store_id,
            created_at,
            generation: 0,
            life: 0,
            home: Home::Files,
            clean: false,
            synced_bytes: 0,
            watermark: Unix::from_ms(0),
            boot_id: [0; 16],
            away_ms: 0,
            ambiguous: [None; 2],
            continues: FileId::default(),
            written_at: Unix::from_ms(0),
        }
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        let mut flags = u32::from(self.clean) * FLAG_CLEAN;
        for (window, (flag, at)) in self.ambiguous.iter().zip(AMBIGUOUS) {
            if let Some((from, to)) = window {
                flags |= flag;
                put(at, &from.ms().to_le_bytes());
                put(at + 8, &to.ms().to_le_bytes());
            }
        }
        put(0, self.kind.magic());
        put(8, &VERSION.to_le_bytes());
        put(12, &self.capacity.to_le_bytes());
        put(16, &self.store_id.to_le_bytes());
        put(24, &self.created_at.ms().to_le_bytes());
        put(32, &self.generation.to_le_bytes());
        put(40, &self.life.to_le_bytes());
        put(52, &flags.to_le_bytes());
        put(56, &self.synced_bytes.to_le_bytes());
        put(64, &self.watermark.ms().to_le_bytes());
        put(72, &self.boot_id);
        put(120, &self.continues.device.to_le_bytes());
        put(128, &self.continues.inode.to_le_bytes());
        put(136, &self.written_at.ms().to_le_bytes());
        put(144, &self.away_ms.to_le_bytes());
        if let Home::Memory(path) = &self.home {
            put(48, &1_u32.to_le_bytes());
            put(PATH_AT - 1, &[path.length]);
            put(PATH_AT, &path.bytes);
        }
        let crc = crc32c::crc32c(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads what `encode` wrote. `bytes` is the start of the file, shorter only if the file is.
    ///
    /// Errors: it is no header, one of another file or version, or damaged.
    pub(crate) fn decode(kind: Kind, bytes: &[u8]) -> Result<Header, HeaderFault> {
        let magic = bytes.first_chunk::<8>();
        if let Some(magic) = magic.filter(|magic| *magic != kind.magic()) {
            return Err(HeaderFault::Magic { found: *magic });
        }
        let version = bytes.get(8..12).and_then(|bytes| bytes.first_chunk());
        let version = version.map(|bytes| u32::from_le_bytes(*bytes));
        // Before its length: another version's header may be shorter.
        if let Some(found) = version.filter(|version| *version != VERSION) {
            return Err(HeaderFault::Version { found });
        }
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(HeaderFault::Short {
                bytes: bytes.len() as u64,
            });
        };
        let u32_at = |at| u32::from_le_bytes(array(bytes, at));
        let u64_at = |at| u64::from_le_bytes(array(bytes, at));
        let unix_at = |at| Unix::from_ms(u64_at(at));
        let (expected, found) = (crc32c::crc32c(&bytes[..CRC_AT]), u32_at(CRC_AT));
        if expected != found {
            return Err(HeaderFault::Crc { expected, found });
        }
        let path = MemoryPath {
            bytes: array(bytes, PATH_AT),
            length: bytes[PATH_AT - 1].min(PATH_BYTES_MAX as u8),
        };
        let home = match u32_at(48) {
            0 => Home::Files,
            1 => Home::Memory(path),
            found => return Err(HeaderFault::Home { found }),
        };
        let flags = u32_at(52);
        Ok(Header {
            kind,
            capacity: u32_at(12),
            store_id: u64_at(16),
            created_at: unix_at(24),
            generation: u64_at(32),
            life: u64_at(40),
            home,
            clean: flags & FLAG_CLEAN != 0,
            away_ms: u32_at(144),
            synced_bytes: u64_at(56),
            watermark: unix_at(64),
            boot_id: array(bytes, 72),
            ambiguous: AMBIGUOUS
                .map(|(flag, at)| (flags & flag != 0).then(|| (unix_at(at), unix_at(at + 8)))),
            continues: FileId {
                device: u64_at(120),
                inode: u64_at(128),
            },
            written_at: unix_at(136),
        })
    }
}

fn array<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Header {
        let mut header = Header::new(Kind::Published, 7, Unix::from_ms(1_000));
        (header.generation, header.life) = (3, 0xfeed);
        header.capacity = 4_096;
        header.synced_bytes = 8_192;
        header.watermark = Unix::from_ms(5_000);
        header.boot_id = [9; 16];
        header.clean = true;
        header.away_ms = 15_000;
        header.ambiguous =
            [(3, 4), (5, 6)].map(|(from, to)| Some((Unix::from_ms(from), Unix::from_ms(to))));
        header.continues = FileId {
            device: 11,
            inode: 12,
        };
        header.written_at = Unix::from_ms(6_000);
        header.home = Home::Memory(MemoryPath::new(Path::new("/dev/shm/here")).unwrap());
        header
    }

    #[test]
    fn what_is_written_is_read() {
        let header = full();
        assert_eq!(
            Header::decode(Kind::Published, &header.encode()),
            Ok(header)
        );
    }

    /// The bytes of docs/FORMATS.md.
    #[test]
    fn the_layout_is_as_documented() {
        let bytes = full().encode();
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(&bytes[..8], b"GDPUBLI\0");
        let words = [16, 24, 32, 40, 56, 64, 88, 96, 104, 112, 120, 128, 136].map(u64_at);
        assert_eq!(
            words,
            [7, 1_000, 3, 0xfeed, 8_192, 5_000, 3, 4, 5, 6, 11, 12, 6_000]
        );
        assert_eq!(bytes[8..16], [2, 0, 0, 0, 0, 16, 0, 0]);
        assert_eq!(bytes[48..56], [1, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(bytes[72..88], [9; 16]);
        assert_eq!(bytes[144..148], 15_000_u32.to_le_bytes());
        assert_eq!(&bytes[256..270], b"\x0d/dev/shm/here");
        assert!(
            bytes[148..256]
                .iter()
                .chain(&bytes[270..508])
                .all(|byte| *byte == 0)
        );
    }

    #[test]
    fn a_path_that_does_not_fit_is_none() {
        let path = |bytes| MemoryPath::new(Path::new(&"x".repeat(bytes)));
        assert_eq!(path(0), None);
        assert_eq!(path(247).unwrap().as_path().as_os_str().len(), 247);
        assert_eq!([248, 256, 10_000].map(path), [None; 3]);
    }

    #[test]
    fn each_fault_is_told() {
        let good = Header::new(Kind::Stamps, 7, Unix::from_ms(1_000)).encode();
        assert_eq!(
            Header::decode(Kind::Stamps, &good[..511]),
            Err(HeaderFault::Short { bytes: 511 })
        );
        assert_eq!(
            Header::decode(Kind::Users, &good),
            Err(HeaderFault::Magic {
                found: *b"GDSTAMP\0"
            })
        );
        let mut other = good;
        other[8] = 1;
        // Also where it ends before this version's header does.
        for bytes in [128, 512] {
            assert_eq!(
                Header::decode(Kind::Stamps, &other[..bytes]),
                Err(HeaderFault::Version { found: 1 })
            );
        }
        let mut damaged = good;
        damaged[20] ^= 1;
        assert!(matches!(
            Header::decode(Kind::Stamps, &damaged),
            Err(HeaderFault::Crc { .. })
        ));
        let mut unknown = good;
        unknown[48] = 2;
        let crc = crc32c::crc32c(&unknown[..CRC_AT]);
        unknown[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(
            Header::decode(Kind::Stamps, &unknown),
            Err(HeaderFault::Home { found: 2 })
        );
    }
}
