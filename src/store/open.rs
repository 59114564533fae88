//! Opening the folder: check, map, recover (in recover.rs), mark. What comes out are parts.
//!
//! Owns the order in which files are checked, made and marked. users.log leads: it is locked for
//! the whole store, and cells of slots that it does not know are zeroed. Nothing is written before
//! everything was found good. Knows nothing of what the parts are for.
//!
//! A missing stamps.map is made anew; so is a missing published.map, from the stamps, as after a
//! power cut. A missing users.log beside the others is refused.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::cells::{Published, Stamp};
use super::fault::{StoreFault, StoreFaultKind};
use super::found::{Found, lock, open_file};
use super::header::{Header, Kind, Windows};
use super::headers::{Headers, OnDisk};
use super::log::{self, Log, RecordFault, Scan};
use super::map::{CellFile, file_bytes};
use super::region::{MappedFile, copies_on_write, survive_file_size_limit};
use crate::slot::CHUNK_SLOTS;
use crate::time::Unix;

/// What the files say of the last run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Last {
    /// There was none.
    pub(crate) is_new: bool,
    /// It was closed cleanly.
    pub(crate) clean: bool,
    /// It was not, and the kernel is another one.
    pub(crate) power_cut: bool,
    pub(crate) stamps_missing: bool,
    pub(crate) published_missing: bool,
    /// Every transition up to it is on disk.
    pub(crate) watermark: Unix,
    pub(crate) windows: Windows,
    /// When published.map's header was written last; 0: not known.
    pub(crate) written_at: Unix,
    /// Longest delay after which readers were told to come back, in ms.
    away_ms: u32,
    stamps_capacity: u32,
    published_capacity: u32,
}

/// The files as they were found, all of them good. Nothing has been written.
pub(crate) struct Checked {
    dir: PathBuf,
    boot_id: [u8; 16],
    /// Folders that had to be made, whose names are not on disk yet.
    made_dirs: Vec<PathBuf>,
    users: Found,
    stamps: Option<Found>,
    published: Option<Found>,
    pub(crate) last: Last,
}

/// The parts of an open store.
pub(crate) struct Parts {
    pub(crate) log: Log,
    pub(crate) stamps: CellFile<Stamp>,
    pub(crate) published: CellFile<Published>,
    pub(crate) headers: Headers,
    /// Slots that have been given.
    pub(crate) slots: u32,
    /// Bytes of torn tail that were cut from users.log.
    pub(crate) torn_bytes: u64,
    pub(crate) last: Last,
    dir: PathBuf,
    made_dirs: Vec<PathBuf>,
}

/// What who reads users.log makes of it.
pub(crate) struct LogRead<T> {
    pub(crate) made: T,
    pub(crate) scan: Scan,
    /// A record that can not follow those before it: damage, and no torn write.
    pub(crate) contradiction: Option<RecordFault>,
}

/// Locks the folder, made if missing, and holds its files against each other.
///
/// Errors: another process has it, a file is foreign, of another version or store, damaged or
/// truncated, or the system refuses something.
pub(crate) fn check(dir: &Path, boot_id: [u8; 16]) -> Result<Checked, StoreFault> {
    survive_file_size_limit();
    let missing = dir.ancestors().take_while(|dir| !dir.exists());
    let made_dirs: Vec<PathBuf> = missing.map(Path::to_owned).collect();
    fs::create_dir_all(dir).map_err(os("make the folder", dir))?;
    if copies_on_write(dir) {
        let dir = dir.display();
        tracing::warn!(%dir, "the data folder is on a copy-on-write file system: when it is full, \
                              a beat can kill this process");
    }
    // Nothing is read before the lock, or another process could still be writing it.
    let (users_path, users_file) = open_file(dir, Kind::Users)?;
    lock(&users_path, &users_file)?;
    let users = Found::read(Kind::Users, users_path, users_file)?;
    // A map of which nothing was ever marked as synced, without its users, is what a power cut has
    // left of a store's first moments.
    let stale = |map: &Found| {
        users.header.is_none() && map.header.is_some_and(|header| header.capacity == 0)
    };
    let stamps = Found::look(dir, Kind::Stamps)?.filter(|map| !stale(map));
    let published = Found::look(dir, Kind::Published)?.filter(|map| !stale(map));
    check_together(&users, &stamps, &published)?;
    let of = |found: &Option<Found>| found.as_ref().and_then(|found| found.header);
    let (of_stamps, of_published) = (of(&stamps), of(&published));
    let capacity = |header: Option<Header>| header.map_or(0, |header| header.capacity);
    let clean = of_published.is_some_and(|header| header.clean);
    let last = Last {
        is_new: users.header.is_none(),
        clean,
        power_cut: !clean && of_published.is_some_and(|header| header.boot_id != boot_id),
        stamps_missing: stamps.is_none(),
        published_missing: published.is_none(),
        watermark: of_published.map_or(Unix::from_ms(0), |header| header.watermark),
        windows: of_published.map_or([None; 2], |header| header.ambiguous),
        written_at: of_published.map_or(Unix::from_ms(0), |header| header.written_at),
        away_ms: of_published.map_or(0, |header| header.away_ms),
        stamps_capacity: capacity(of_stamps),
        published_capacity: capacity(of_published),
    };
    Ok(Checked {
        dir: dir.to_owned(),
        boot_id,
        made_dirs,
        users,
        stamps,
        published,
        last,
    })
}

/// The maps are of the store of users.log, and each file is as long as it was.
fn check_together(
    users: &Found,
    stamps: &Option<Found>,
    published: &Option<Found>,
) -> Result<(), StoreFault> {
    if users.header.is_none() && (stamps.is_some() || published.is_some()) {
        return Err(StoreFault::new(
            StoreFaultKind::Missing,
            users.path.clone(),
            0,
            "users.log of the maps beside it",
            "no such file, or one without a record of them",
        ));
    }
    for map in [stamps, published].into_iter().flatten() {
        map.check_beside(users)?;
    }
    let synced_bytes = users.header.map_or(0, |header| header.synced_bytes);
    if users.bytes < synced_bytes {
        return Err(StoreFault::new(
            StoreFaultKind::Truncated,
            users.path.clone(),
            users.bytes,
            format!("the {synced_bytes} bytes that were synced"),
            "the end of the file",
        ));
    }
    Ok(())
}

impl Checked {
    /// Maps the files, made where they are missing, with address space for `users_max` slots; has
    /// users.log read and its torn tail cut off.
    ///
    /// Errors: users.log is damaged or has more slots, or the system refuses something.
    pub(crate) fn map<T>(
        self,
        users_max: u32,
        now: Unix,
        read: impl FnOnce(&[u8], u64) -> io::Result<LogRead<T>>,
    ) -> Result<(Parts, T), StoreFault> {
        let headers = self.headers(now)?;
        let synced_bytes = headers.log_synced_bytes();
        let path = self.users.path.clone();
        let reserved = log::reserved_bytes(users_max);
        let mut file = self.users.map(headers.header(Kind::Users), reserved)?;
        // What was synced is a good guess at the log's length: the rest of the file is room to
        // grow.
        let log_bytes = synced_bytes.max(file.len_bytes() / 2);
        let LogRead {
            made,
            scan,
            contradiction,
        } = read(all_bytes(&file), log_bytes).map_err(os("reserve memory for", &path))?;
        check_scan(&path, &scan, contradiction, synced_bytes, users_max)?;
        // From here on the files are ours to write.
        let torn_bytes = if self.last.clean && scan.fault.is_none() {
            0
        } else {
            torn_bytes(&file, scan.end)
        };
        if torn_bytes > 0 {
            // On disk at once: records behind the torn one could come back after what is put in
            // its place.
            file.cut(scan.end)
                .and_then(|()| file.sync())
                .map_err(os("cut the torn tail of", &path))?;
        }
        let reserved = file_bytes(users_max.next_multiple_of(CHUNK_SLOTS));
        let map = |found, kind| {
            Found::or_new(found, &self.dir, kind)?.map(headers.header(kind), reserved)
        };
        let parts = Parts {
            log: Log::new(file, scan.end),
            stamps: CellFile::new(map(self.stamps, Kind::Stamps)?),
            published: CellFile::new(map(self.published, Kind::Published)?),
            slots: scan.users,
            torn_bytes,
            last: self.last,
            dir: self.dir,
            made_dirs: self.made_dirs,
            headers,
        };
        Ok((parts, made))
    }

    /// Of the next generation.
    fn headers(&self, now: Unix) -> Result<Headers, StoreFault> {
        let Some(leader) = self.users.header else {
            return Headers::of_new(now, self.boot_id)
                .map_err(os("get random bytes for", &self.users.path));
        };
        let maps = [&self.stamps, &self.published].into_iter().flatten();
        let generations = maps.filter_map(|map| map.header.map(|header| header.generation));
        let latest = generations.fold(leader.generation, u64::max);
        let away_ms = self.last.away_ms;
        Ok(Headers::following(
            leader,
            latest + 1,
            self.boot_id,
            away_ms,
        ))
    }
}

impl Parts {
    /// Marks the store as open, and of this generation; has the names of new files on disk.
    ///
    /// Errors: the system's.
    pub(crate) fn mark(&self, windows: Windows, now: Unix) -> Result<(), StoreFault> {
        let last = self.last;
        let made_files = last.is_new || last.stamps_missing || last.published_missing;
        // These are on disk when they may, for published.map's will say the generation too.
        self.headers
            .mark_log(&self.log, self.headers.log_synced_bytes())
            .map_err(os("mark as open", self.log.file().path()))?;
        self.headers
            .mark_stamps(&self.stamps, last.stamps_capacity)
            .map_err(os("mark as open", self.stamps.file().path()))?;
        if made_files {
            // The leader first. No cell is written before there is a header that says whose it is.
            for file in [self.log.file(), self.stamps.file()] {
                file.sync().map_err(os("write", file.path()))?;
            }
        }
        // Not clean from here on, and of this boot; the watermark stays until the first cycle of
        // the write-back has ended.
        let on_disk = OnDisk {
            capacity: last.published_capacity,
            watermark: last.watermark,
            clean: false,
        };
        self.headers
            .mark_published(&self.published, || windows, on_disk, now)
            .and_then(|()| self.published.file().sync())
            .map_err(os("mark as open", self.published.file().path()))?;
        if made_files {
            let parents = self.made_dirs.iter().filter_map(|dir| dir.parent());
            for dir in std::iter::once(self.dir.as_path()).chain(parents) {
                sync_dir(dir).map_err(os("write", dir))?;
            }
        }
        Ok(())
    }
}

pub(super) fn os(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreFault {
    let path = path.to_owned();
    move |error| StoreFault::os(path, doing, error)
}

/// Has the names in a folder on disk.
fn sync_dir(dir: &Path) -> io::Result<()> {
    let here = dir.as_os_str().is_empty();
    match File::open(if here { Path::new(".") } else { dir })?.sync_all() {
        // A file system that does not do this for folders.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other,
    }
}

fn all_bytes(file: &MappedFile) -> &[u8] {
    // SAFETY: nobody writes the file: this process is still opening the store, and the lock keeps
    // others away.
    unsafe { file.bytes_at(0, file.len_bytes() as usize) }
}

/// Damage before the synced mark is not a torn write.
fn check_scan(
    path: &Path,
    scan: &Scan,
    contradiction: Option<RecordFault>,
    synced_bytes: u64,
    users_max: u32,
) -> Result<(), StoreFault> {
    let missing = || RecordFault {
        offset: scan.end,
        expected: format!("records up to {synced_bytes}, which was synced"),
        found: "a zero length byte, the end of the log".to_owned(),
    };
    let lost = scan.end < synced_bytes;
    let fault = contradiction.or_else(|| lost.then(|| scan.fault.clone().unwrap_or_else(missing)));
    if let Some(fault) = fault {
        return Err(StoreFault::record(path.to_owned(), &fault));
    }
    if scan.users > users_max {
        let expected = format!("at most {users_max} users (users_max)");
        let found = format!("{} users", scan.users);
        let (kind, path) = (StoreFaultKind::TooManyUsers, path.to_owned());
        return Err(StoreFault::new(kind, path, scan.end, expected, found));
    }
    Ok(())
}

/// Bytes from `end` to the last one that is not zero.
fn torn_bytes(file: &MappedFile, end: u64) -> u64 {
    let tail = &all_bytes(file)[(end as usize).min(file.len_bytes() as usize)..];
    tail.iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last as u64 + 1)
}
