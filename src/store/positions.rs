//! webhooks.pos: up to when the receiver of each webhook has been told everything.
//!
//! Owns its bytes and their way to the disk. It is made anew each time, beside the one that is
//! there, and takes its place once it is on disk. Never says which webhook one is: it keeps 16
//! bytes that stand for it.
//!
//! ```text
//! at  bytes
//! 0      16  "greendot webhook"
//! 16      4  version = 1
//! 20      4  how many follow
//! 24     24  digest 16, told up to u64 (Unix ms); repeated
//! end     4  CRC32C of all before it
//! ```
//! Numbers are little-endian.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::fault::{StoreFault, StoreFaultKind};
use super::open::sync_dir;
use crate::time::Unix;

/// Its name in the store's folder.
pub const POSITIONS_FILE: &str = "webhooks.pos";

const MAGIC: &[u8; 16] = b"greendot webhook";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 24;
const RECORD_BYTES: usize = 24;
/// Longest file that is read: far more than a node has webhooks.
const FILE_BYTES_MAX: u64 = 1 << 16;

/// What the receiver of one webhook has been told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// What stands for the webhook.
    pub digest: [u8; 16],
    /// Everything that was published before has been told.
    pub told_up_to: Unix,
}

/// The file of a folder that is locked.
#[derive(Debug)]
pub struct PositionFile {
    path: PathBuf,
}

impl PositionFile {
    /// What the file holds; nothing, where there is none.
    ///
    /// Errors: the system's; or it is none of these, or damaged.
    pub fn open(dir: &Path) -> Result<(PositionFile, Vec<Position>), StoreFault> {
        let path = dir.join(POSITIONS_FILE);
        let os = |doing| {
            let path = path.clone();
            move |error| StoreFault::os(path, doing, error)
        };
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(file) => {
                let read = file.take(FILE_BYTES_MAX).read_to_end(&mut bytes);
                read.map_err(os("read"))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok((PositionFile { path }, Vec::new()));
            }
            Err(error) => return Err(os("open")(error)),
        }
        let positions = decode(&bytes).map_err(|(offset, expected)| {
            let kind = StoreFaultKind::PositionsDamaged;
            StoreFault::new(kind, path.clone(), offset as u64, expected, "other bytes")
        })?;
        Ok((PositionFile { path }, positions))
    }

    /// Puts a file with these in its place, for its owner alone; it is on disk when this returns.
    ///
    /// Errors: the system's. Then it is as it was.
    pub fn write(&self, positions: &[Position]) -> io::Result<()> {
        let draft = self.path.with_extension("pos.new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(&encode(positions))?;
        file.sync_all()?;
        fs::rename(&draft, &self.path)?;
        sync_dir(self.path.parent().unwrap_or(Path::new(".")))
    }
}

fn encode(positions: &[Position]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(positions.len() as u32).to_le_bytes());
    for position in positions {
        bytes.extend_from_slice(&position.digest);
        bytes.extend_from_slice(&position.told_up_to.ms().to_le_bytes());
    }
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// Err: where something else was expected, and what.
fn decode(bytes: &[u8]) -> Result<Vec<Position>, (usize, String)> {
    let Some((head, _)) = bytes.split_at_checked(HEAD_BYTES) else {
        return Err((bytes.len(), format!("the head of {POSITIONS_FILE}")));
    };
    if !head.starts_with(MAGIC) {
        return Err((0, format!("the magic of {POSITIONS_FILE}")));
    }
    let number = |at: usize| {
        let bytes = head[at..].first_chunk();
        u32::from_le_bytes(*bytes.expect("the head is as long"))
    };
    if number(16) != VERSION {
        return Err((16, format!("version {VERSION}")));
    }
    let end = HEAD_BYTES + number(20) as usize * RECORD_BYTES;
    let Some((checked, crc)) = bytes.split_at_checked(end) else {
        return Err((bytes.len(), format!("{end} bytes and a checksum")));
    };
    if crc != crc32c::crc32c(checked).to_le_bytes() {
        return Err((end, "a checksum of all before it".into()));
    }
    let (records, _) = checked[HEAD_BYTES..].as_chunks::<RECORD_BYTES>();
    let position = |record: &[u8; RECORD_BYTES]| {
        let (digest, told) = record.split_first_chunk()?;
        Some(Position {
            digest: *digest,
            told_up_to: Unix::from_ms(u64::from_le_bytes(*told.first_chunk()?)),
        })
    };
    Ok(records.iter().filter_map(position).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(n: u8) -> Position {
        Position {
            digest: [n; 16],
            told_up_to: Unix::from_ms(u64::from(n)),
        }
    }

    #[test]
    fn what_was_written_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (file, none) = PositionFile::open(dir.path()).unwrap();
        assert_eq!(none, []);
        for positions in [vec![of(1), of(2)], vec![], vec![of(3)]] {
            file.write(&positions).unwrap();
            assert_eq!(PositionFile::open(dir.path()).unwrap().1, positions);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn damage_is_refused_wherever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (file, _) = PositionFile::open(dir.path()).unwrap();
        file.write(&[of(1), of(2)]).unwrap();
        let path = dir.path().join(POSITIONS_FILE);
        let whole = fs::read(&path).unwrap();
        assert_eq!(whole.len(), HEAD_BYTES + 2 * RECORD_BYTES + 4);
        let cuts = (0..whole.len()).map(|cut| whole[..cut].to_vec());
        let flips = (0..whole.len()).map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        });
        let longer = [whole.clone(), vec![0]].concat();
        for bytes in cuts.chain(flips).chain([longer]) {
            fs::write(&path, &bytes).unwrap();
            let fault = PositionFile::open(dir.path()).unwrap_err();
            assert_eq!(fault.kind(), StoreFaultKind::PositionsDamaged, "{fault}");
            assert!(fault.to_string().contains("remove the file"), "{fault}");
        }
    }
}
