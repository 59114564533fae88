//! What the headers of the running store say, and when they are written.
//!
//! Owns who the store is (id, generation, life) and how far the disk is known to be. Writes headers
//! into their files; never syncs, never decides how far the disk is.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::cells::{Published, Stamp};
use super::fault::StoreFault;
use super::header::{FileId, Header, Home, Kind, Windows};
use super::log::Log;
use super::map::CellFile;
use super::memory;
use super::record::FIRST_RECORD;
use crate::random;
use crate::time::Unix;

/// What tells one generation of a store's cells from all others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Generation {
    pub(crate) number: u64,
    /// Random: copies of one store count alike.
    pub(crate) life: u64,
}

impl Generation {
    /// The one with this number, and a life of its own.
    ///
    /// Errors: no random numbers.
    pub(crate) fn begin(number: u64) -> io::Result<Generation> {
        // Never 0, which is what a header says that knows of none.
        let life = random()? | 1;
        Ok(Generation { number, life })
    }
}

/// What the headers of this run say beside what changes with every write-back.
pub(crate) struct Headers {
    store_id: u64,
    generation: Generation,
    created_at: Unix,
    boot_id: [u8; 16],
    home: Home,
    /// Of the folder's users.log; in files of a memory it says what they continue.
    continues: FileId,
    /// Up to where users.log is known to be on disk.
    synced_bytes: AtomicU64,
    /// Longest delay after which readers of this run were told to come back, in ms.
    away_ms: AtomicU32,
    /// The same of the run before, until all of these are back.
    away_ms_before: AtomicU32,
    /// Set by `close`: no header may say otherwise afterwards.
    closed: AtomicBool,
    /// What published.map's header says of the disk.
    published: Mutex<OnDisk>,
}

/// What published.map's header says of the disk.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct OnDisk {
    /// Cells that the file is long enough for, on disk too.
    pub(crate) capacity: u32,
    /// Every transition up to it is on disk.
    pub(crate) watermark: Unix,
    /// Everything is, and nothing was written since.
    pub(crate) clean: bool,
}

impl Headers {
    /// Of a new store, of its first generation.
    ///
    /// Errors: no random numbers.
    pub(crate) fn of_new(created_at: Unix, boot_id: [u8; 16]) -> io::Result<Headers> {
        let mut first = Header::new(Kind::Users, random()?, created_at);
        first.synced_bytes = FIRST_RECORD;
        Ok(Headers::following(first, Generation::begin(1)?, boot_id, 0))
    }

    /// Of the store whose users.log had this header. `away_ms`: what readers of the run before were
    /// told.
    pub(crate) fn following(
        leader: Header,
        generation: Generation,
        boot_id: [u8; 16],
        away_ms: u32,
    ) -> Headers {
        Headers {
            store_id: leader.store_id,
            generation,
            created_at: leader.created_at,
            boot_id,
            home: Home::Files,
            continues: FileId::default(),
            synced_bytes: AtomicU64::new(leader.synced_bytes.max(FIRST_RECORD)),
            away_ms: AtomicU32::new(0),
            away_ms_before: AtomicU32::new(away_ms),
            closed: AtomicBool::new(false),
            published: Mutex::default(),
        }
    }

    /// The cells of this generation are in a memory in `root`, which continues the folder of this
    /// users.log.
    ///
    /// Errors: the memory's path does not fit into a header.
    pub(crate) fn live_in(&mut self, root: &Path, continues: FileId) -> Result<(), StoreFault> {
        self.home = Home::Memory(memory::path_in(root, self.store_id, self.generation.life)?);
        self.continues = continues;
        Ok(())
    }

    /// As the headers of a memory that is continued say.
    pub(crate) fn live_on(&mut self, header: &Header) {
        (self.home, self.continues) = (header.home, header.continues);
    }

    /// There is no memory.
    pub(crate) fn live_in_files(&mut self) {
        (self.home, self.continues) = (Home::Files, FileId::default());
    }

    /// Where the memory is that the cells are in.
    pub(crate) fn memory(&self) -> Option<&Path> {
        match &self.home {
            Home::Files => None,
            Home::Memory(path) => Some(path.as_path()),
        }
    }

    /// The folder has everything, and says so on disk: nobody needs the memory any more.
    pub(crate) fn leave_memory(&self) {
        if let Some(path) = self.memory()
            && let Err(error) = memory::remove(path)
        {
            let path = path.display();
            tracing::warn!(%error, %path, "the memory could not be removed; the next start does");
        }
    }

    pub(crate) fn created_at(&self) -> Unix {
        self.created_at
    }

    /// The header of a file, as far as all have the same.
    pub(crate) fn header(&self, kind: Kind, now: Unix) -> Header {
        Header {
            generation: self.generation.number,
            life: self.generation.life,
            home: self.home,
            continues: self.continues,
            boot_id: self.boot_id,
            written_at: now,
            ..Header::new(kind, self.store_id, self.created_at)
        }
    }

    /// Up to where users.log is known to be on disk.
    pub(crate) fn log_synced_bytes(&self) -> u64 {
        self.synced_bytes.load(Ordering::Acquire)
    }

    /// Longest delay after which readers who may be away were told to come back, in ms.
    pub(crate) fn away_ms(&self) -> u32 {
        let told = [&self.away_ms, &self.away_ms_before].map(|ms| ms.load(Ordering::Relaxed));
        told[0].max(told[1])
    }

    /// The same of the run before.
    pub(crate) fn away_ms_before(&self) -> u32 {
        self.away_ms_before.load(Ordering::Relaxed)
    }

    /// Readers of the run before have had their time: the next header says no more of them.
    pub(crate) fn forget_away_before(&self) {
        self.away_ms_before.store(0, Ordering::Relaxed);
    }

    /// Readers are told to come back within `away_ms`: the next header says so.
    pub(crate) fn raise_away_ms(&self, away_ms: u32) {
        self.away_ms.fetch_max(away_ms, Ordering::Relaxed);
    }

    /// No header is to be written any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Everything before `synced_bytes` of users.log is on disk: says so in its header.
    ///
    /// Errors: the system's, when the header is written.
    pub(crate) fn mark_log(&self, log: &Log, synced_bytes: u64, now: Unix) -> io::Result<()> {
        self.synced_bytes.fetch_max(synced_bytes, Ordering::AcqRel);
        let mut header = self.header(Kind::Users, now);
        header.synced_bytes = self.log_synced_bytes();
        log.file().write_start(&header.encode())
    }

    /// The stamps up to `capacity` are on disk, the file's length included: says so in its header.
    ///
    /// Errors: the system's, when the header is written.
    pub(crate) fn mark_stamps(
        &self,
        stamps: &CellFile<Stamp>,
        capacity: u32,
        now: Unix,
    ) -> io::Result<()> {
        let mut header = self.header(Kind::Stamps, now);
        header.capacity = capacity;
        stamps.file().write_start(&header.encode())
    }

    /// So much of what was published is on disk: says so in its header, with the windows of event
    /// ids that are not believed. These are asked for once nobody else writes the header.
    ///
    /// Errors: the system's, when the header is written.
    pub(crate) fn mark_published(
        &self,
        published: &CellFile<Published>,
        windows: impl FnOnce() -> Windows,
        on_disk: OnDisk,
        now: Unix,
    ) -> io::Result<()> {
        let mut said = self.published.lock();
        *said = on_disk;
        self.write_published(published, windows(), on_disk, now)
    }

    /// A window has been widened, the clock was stepped, or a drain begins: says so in the header
    /// at once, or a crash would forget it.
    ///
    /// Errors: the system's, when the header is written.
    pub(crate) fn mark_at_once(
        &self,
        published: &CellFile<Published>,
        windows: impl FnOnce() -> Windows,
        now: Unix,
    ) -> io::Result<()> {
        let said = self.published.lock();
        self.write_published(published, windows(), *said, now)
    }

    fn write_published(
        &self,
        published: &CellFile<Published>,
        windows: Windows,
        on_disk: OnDisk,
        now: Unix,
    ) -> io::Result<()> {
        let mut header = self.header(Kind::Published, now);
        header.capacity = on_disk.capacity;
        header.watermark = on_disk.watermark;
        header.clean = on_disk.clean;
        header.ambiguous = windows;
        header.away_ms = self.away_ms();
        header.written_at = now;
        published.file().write_start(&header.encode())
    }
}

fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    random::fill(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}
