//! revocations.log: the revocations of tokens that are in force, in the order in which they came.
//!
//! Owns its bytes and their way to the disk. Fixed records, each with a checksum: what an append
//! that was cut short has left is cut off, and damage before it is refused. Never says whom one
//! means: it keeps 16 bytes that stand for them.
//!
//! ```text
//! at  bytes
//! 0      16  "greendot revoked"
//! 16     36  records: digest 16, before u64, until u64 (Unix ms), CRC32C u32 of those; repeated
//! ```
//! Numbers are little-endian.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::fault::{StoreFault, StoreFaultKind};
use super::open::sync_dir;
use crate::time::Unix;

/// Its name in the store's folder.
pub const REVOCATIONS_FILE: &str = "revocations.log";

const MAGIC: &[u8; 16] = b"greendot revoked";
const RECORD_BYTES: usize = 36;
const CRC_AT: usize = RECORD_BYTES - 4;

/// A revocation, as the file keeps it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeptRevocation {
    /// What stands for a user or a token.
    pub digest: [u8; 16],
    /// Tokens that were made before are meant.
    pub before: Unix,
    /// So long it is in force.
    pub until: Unix,
}

/// The file, open for appending.
#[derive(Debug)]
pub struct RevocationLog {
    file: File,
    path: PathBuf,
    /// Bytes that are whole and on disk.
    bytes: u64,
}

impl RevocationLog {
    /// Opens the file of a folder that is locked, or makes it, for its owner alone; and what it
    /// holds.
    ///
    /// Errors: the system's; or the file is none of these, or damaged.
    pub fn open(dir: &Path) -> Result<(RevocationLog, Vec<KeptRevocation>), StoreFault> {
        let path = dir.join(REVOCATIONS_FILE);
        let os = |doing| {
            let path = path.clone();
            move |error| StoreFault::os(path, doing, error)
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(os("open"))?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(os("read"))?;
        if content.len() < MAGIC.len() && MAGIC.starts_with(&content) {
            // New, or its making was cut short.
            let log = RevocationLog::begin(file, dir, &path).map_err(os("make"))?;
            return Ok((log, Vec::new()));
        }
        let Some(records) = content.strip_prefix(MAGIC) else {
            let fault = StoreFault::new(
                StoreFaultKind::Foreign,
                path,
                0,
                format!("the magic of {REVOCATIONS_FILE}"),
                "other bytes",
            );
            return Err(fault);
        };
        let (kept, whole) = read(records).map_err(|at| {
            StoreFault::new(
                StoreFaultKind::RecordDamaged,
                path.clone(),
                (MAGIC.len() + at) as u64,
                "a record with its checksum",
                "others, and good records behind them",
            )
        })?;
        let bytes = (MAGIC.len() + whole) as u64;
        let mut log = RevocationLog {
            file,
            path: path.clone(),
            bytes,
        };
        if bytes < content.len() as u64 {
            let torn_bytes = content.len() as u64 - bytes;
            tracing::warn!(
                "{}: {torn_bytes} bytes of an unfinished record are dropped",
                path.display()
            );
            log.cut_off().map_err(os("shorten"))?;
        }
        Ok((log, kept))
    }

    fn begin(mut file: File, dir: &Path, path: &Path) -> io::Result<RevocationLog> {
        file.seek(SeekFrom::Start(0))?;
        file.write_all(MAGIC)?;
        file.sync_data()?;
        sync_dir(dir)?;
        Ok(RevocationLog {
            file,
            path: path.to_owned(),
            bytes: MAGIC.len() as u64,
        })
    }

    /// How many records it has.
    pub fn records(&self) -> usize {
        (self.bytes as usize - MAGIC.len()) / RECORD_BYTES
    }

    /// Adds these; they are on disk when it returns.
    ///
    /// Errors: the system's. Then it holds what it held before.
    pub fn append(&mut self, revocations: &[KeptRevocation]) -> io::Result<()> {
        let bytes = encode(revocations);
        self.file.seek(SeekFrom::Start(self.bytes))?;
        let written = self.file.write_all(&bytes);
        let synced = written.and_then(|()| self.file.sync_data());
        match synced {
            Ok(()) => {
                self.bytes += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                // The next append begins at the same place in any case.
                let _ = self.cut_off();
                Err(error)
            }
        }
    }

    fn cut_off(&mut self) -> io::Result<()> {
        self.file.set_len(self.bytes)?;
        self.file.sync_data()
    }

    /// Puts a file with these alone in its place.
    ///
    /// Errors: the system's. Then it is as it was.
    pub fn rewrite(&mut self, revocations: &[KeptRevocation]) -> io::Result<()> {
        let draft = self.path.with_extension("log.new");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(MAGIC)?;
        let records = encode(revocations);
        file.write_all(&records)?;
        file.sync_all()?;
        fs::rename(&draft, &self.path)?;
        self.file = file;
        self.bytes = (MAGIC.len() + records.len()) as u64;
        sync_dir(self.path.parent().unwrap_or(Path::new(".")))
    }
}

fn encode(revocations: &[KeptRevocation]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(revocations.len() * RECORD_BYTES);
    for revocation in revocations {
        let from = bytes.len();
        bytes.extend_from_slice(&revocation.digest);
        bytes.extend_from_slice(&revocation.before.ms().to_le_bytes());
        bytes.extend_from_slice(&revocation.until.ms().to_le_bytes());
        let crc = crc32c::crc32c(&bytes[from..]);
        bytes.extend_from_slice(&crc.to_le_bytes());
    }
    bytes
}

/// The records, and the bytes that they take. Err: where one is damaged that has good ones behind.
fn read(bytes: &[u8]) -> Result<(Vec<KeptRevocation>, usize), usize> {
    let (records, _torn) = bytes.as_chunks::<RECORD_BYTES>();
    let kept: Vec<KeptRevocation> = records.iter().map_while(decode).collect();
    let good_behind = records[kept.len()..]
        .iter()
        .any(|record| decode(record).is_some());
    let whole = kept.len() * RECORD_BYTES;
    if good_behind {
        return Err(whole);
    }
    Ok((kept, whole))
}

fn decode(record: &[u8; RECORD_BYTES]) -> Option<KeptRevocation> {
    let (checked, crc) = record.split_at(CRC_AT);
    let crc = u32::from_le_bytes(*crc.first_chunk()?);
    let (digest, times) = checked.split_first_chunk()?;
    let (before, until) = times.split_first_chunk()?;
    (crc == crc32c::crc32c(checked)).then_some(KeptRevocation {
        digest: *digest,
        before: Unix::from_ms(u64::from_le_bytes(*before)),
        until: Unix::from_ms(u64::from_le_bytes(*until.first_chunk()?)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(n: u8) -> KeptRevocation {
        KeptRevocation {
            digest: [n; 16],
            before: Unix::from_ms(u64::from(n)),
            until: Unix::LATEST,
        }
    }

    fn held(dir: &Path) -> Vec<u8> {
        let (_, kept) = RevocationLog::open(dir).unwrap();
        kept.iter().map(|kept| kept.digest[0]).collect()
    }

    #[test]
    fn what_was_added_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let (mut log, kept) = RevocationLog::open(dir).unwrap();
        assert_eq!((log.records(), kept), (0, vec![]));
        log.append(&[of(1), of(2)]).unwrap();
        log.append(&[of(3)]).unwrap();
        assert_eq!(log.records(), 3);
        assert_eq!(held(dir), [1, 2, 3]);
        log.rewrite(&[of(3)]).unwrap();
        log.append(&[of(4)]).unwrap();
        assert_eq!((log.records(), held(dir)), (2, vec![3, 4]));
        let file = fs::read(dir.join(REVOCATIONS_FILE)).unwrap();
        assert_eq!(file.len(), 16 + 2 * 36);
        assert_eq!(fs::read_dir(dir).unwrap().count(), 1);
    }

    /// Whatever of the last append is missing or garbage.
    #[test]
    fn an_append_that_was_cut_short_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(REVOCATIONS_FILE);
        let (mut log, _) = RevocationLog::open(dir.path()).unwrap();
        log.append(&[of(1), of(2), of(3)]).unwrap();
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let records = cut.saturating_sub(16) / 36;
            assert_eq!(held(dir.path()).len(), records, "cut at {cut}");
            let (mut log, _) = RevocationLog::open(dir.path()).unwrap();
            log.append(&[of(9)]).unwrap();
            assert_eq!(held(dir.path())[records..], [9], "cut at {cut}");
        }
        let mut zeroed = whole.clone();
        zeroed[16 + 36..].fill(0);
        fs::write(&path, zeroed).unwrap();
        assert_eq!(held(dir.path()), [1]);
    }

    #[test]
    fn damage_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(REVOCATIONS_FILE);
        let (mut log, _) = RevocationLog::open(dir.path()).unwrap();
        log.append(&[of(1), of(2), of(3)]).unwrap();
        let whole = fs::read(&path).unwrap();
        for (at, kind) in [
            (0, StoreFaultKind::Foreign),
            (15, StoreFaultKind::Foreign),
            (16, StoreFaultKind::RecordDamaged),
            (16 + 36 + 35, StoreFaultKind::RecordDamaged),
        ] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, damaged).unwrap();
            let fault = RevocationLog::open(dir.path()).unwrap_err();
            assert_eq!(fault.kind(), kind, "{fault}");
        }
    }
}
