//! A store that nobody has open: read without changing a byte, and copied without what is nobody's.
//!
//! Owns what `greendot store` knows of a folder. Reads all of it into memory: some 16 bytes a user
//! and the ids. Never writes into a folder that it reads.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::online::chunk_of;
use super::{OpenReport, Presence, StoreOptions};
use crate::status::Status;
use crate::store::MemoryChoice;
use crate::store::cells::{CellValue, Published, Stamp};
use crate::store::map::FIRST_CELL;
use crate::store::open::{Checked, Last};
use crate::store::record::{self, Record};
use crate::store::write_back::{PUBLISHED_DIRTY, STAMPS_DIRTY};
use crate::store::{StoreFault, closed};
use crate::time::{Mono, Now, Unix};
use crate::wire::User;

/// What a folder holds.
pub struct Archive {
    /// By slot, its user; None: it is free.
    users: Vec<Option<String>>,
    stamps: Vec<Stamp>,
    published: Vec<Published>,
    last: Last,
    /// Bytes behind the last record that are none.
    torn: bool,
    /// Bytes of records of users who are gone, with their tombstones.
    dead_bytes: u64,
    /// No process opens the folder meanwhile.
    _locked: Checked,
}

/// One user of a folder.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    pub user: &'a str,
    pub status: Status,
    pub since: Option<Unix>,
    pub last_active: Option<Unix>,
}

/// Why a folder can not be read or copied.
#[derive(Debug)]
pub enum ArchiveFault {
    /// It is no store, or damaged.
    Store(StoreFault),
    /// A record that can not follow those before it; where, and why.
    Record(u64, String),
    Os(io::Error),
}

impl From<io::Error> for ArchiveFault {
    fn from(error: io::Error) -> ArchiveFault {
        ArchiveFault::Os(error)
    }
}

impl Archive {
    /// Reads a folder that no process has open, and checks all of it: headers, every checksum, the
    /// order of records.
    ///
    /// Errors: another process has it open, or it is damaged, foreign or of another version.
    pub fn read(dir: &Path) -> Result<Archive, ArchiveFault> {
        let closed = closed::read(dir).map_err(ArchiveFault::Store)?;
        let mut archive = Archive {
            users: Vec::new(),
            stamps: Vec::new(),
            published: Vec::new(),
            last: closed.last,
            torn: false,
            dead_bytes: 0,
            _locked: closed.locked,
        };
        archive.take_log(&closed.users, closed.synced_bytes)?;
        archive.stamps = cells(&closed.stamps, archive.users.len());
        archive.published = cells(&closed.published, archive.users.len());
        Ok(archive)
    }

    fn take_log(&mut self, bytes: &[u8], synced_bytes: u64) -> Result<(), ArchiveFault> {
        let mut fault = None;
        let mut lengths: Vec<u64> = Vec::new();
        let scan = record::scan(bytes, record::START, None, |record, offset| match record {
            Record::New { id, .. } => {
                self.users.push(Some(text(id)));
                lengths.push(id.len() as u64 + record::RECORD_OVERHEAD_BYTES as u64);
            }
            Record::Again { slot, id } if self.users[slot as usize].is_none() => {
                self.users[slot as usize] = Some(text(id));
                lengths[slot as usize] = id.len() as u64 + record::RECORD_OVERHEAD_BYTES as u64;
            }
            Record::Gone { slot } if self.users[slot as usize].take().is_some() => {
                self.dead_bytes += lengths[slot as usize] + record::RECORD_OVERHEAD_BYTES as u64;
            }
            Record::Again { slot, .. } => {
                fault.get_or_insert((offset, format!("slot {slot} is given and has a user")));
            }
            Record::Gone { slot } => {
                fault.get_or_insert((offset, format!("slot {slot} is freed and is free")));
            }
        });
        if let Some((offset, why)) = fault {
            return Err(ArchiveFault::Record(offset, why));
        }
        if scan.end < synced_bytes {
            let why = scan.fault.map_or_else(
                || "the end of the log, before what was synced".to_owned(),
                |fault| format!("expected {}, found {}", fault.expected, fault.found),
            );
            return Err(ArchiveFault::Record(scan.end, why));
        }
        let tail = &bytes[scan.end as usize..];
        self.torn = tail.iter().any(|byte| *byte != 0);
        Ok(())
    }

    /// All users, by slot.
    pub fn users(&self) -> impl Iterator<Item = Kept<'_>> {
        let slots = self.users.iter().zip(&self.stamps).zip(&self.published);
        slots.filter_map(|((user, stamp), published)| {
            Some(Kept {
                user: user.as_deref()?,
                status: published.status(),
                since: published.since(),
                last_active: stamp.at(),
            })
        })
    }

    /// Slots that have no user.
    pub fn free(&self) -> usize {
        self.users.iter().filter(|user| user.is_none()).count()
    }

    /// Bytes of users.log that are of nobody: those of users who are gone, and their tombstones.
    pub fn dead_bytes(&self) -> u64 {
        self.dead_bytes
    }

    /// It was closed cleanly.
    pub fn is_clean(&self) -> bool {
        self.last.clean
    }

    /// An append was cut short by a crash or a power cut: the next start cuts it off.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    /// Maps that are missing beside users.log: the next start makes them anew.
    pub fn missing(&self) -> [bool; 2] {
        [self.last.stamps_missing, self.last.published_missing]
    }

    /// Writes all users into a folder that is not there yet, densely, and closes it, as of when the
    /// one that was read was: how long an outage was is seen as before. Of those who are gone it
    /// has nothing.
    ///
    /// Errors: the system's.
    pub fn write(&self, dir: &Path) -> Result<OpenReport, ArchiveFault> {
        let now = Now {
            mono: Mono::default(),
            unix: self.last.written_at,
        };
        let users_max = self.users.len().max(1) as u32;
        let options = StoreOptions {
            dir: dir.to_owned(),
            users_max,
            offline_after_ms: 0,
            restart_grace_ms: u64::MAX,
            shards: 1,
            memory: MemoryChoice::Off,
            boot_id: [0; 16],
        };
        let (presence, report) = Presence::open(&options, now).map_err(ArchiveFault::Store)?;
        let slots = self.users.iter().zip(&self.stamps).zip(&self.published);
        for ((user, stamp), published) in slots {
            let Some(user) = user.as_deref() else {
                continue;
            };
            let user = User::from_text(user).expect("the scan takes legal ids alone");
            let slot = presence
                .intern(user)
                .map_err(|_| io::Error::other("no room for the copy"))?;
            presence.stamps.cell(slot).store(*stamp, Ordering::Relaxed);
            presence
                .published
                .cell(slot)
                .store(*published, Ordering::Relaxed);
            let dirty = STAMPS_DIRTY | PUBLISHED_DIRTY;
            presence.online.raise(chunk_of(slot), dirty);
        }
        presence.note_told_back(u64::from(self.last.away_ms), now);
        presence.close(now)?;
        Ok(report)
    }
}

fn text(id: &[u8]) -> String {
    String::from_utf8_lossy(id).into_owned()
}

/// So many cells of a map; those that the file does not have are zero.
fn cells<V: CellValue>(bytes: &[u8], slots: usize) -> Vec<V> {
    let words = bytes.get(FIRST_CELL as usize..).unwrap_or_default();
    let words = words.as_chunks::<8>().0.iter().take(slots);
    let cells = words.map(|word| V::from_bits(u64::from_le_bytes(*word)));
    let mut cells: Vec<V> = cells.collect();
    cells.resize(slots, V::from_bits(0));
    cells
}
