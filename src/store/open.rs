//! Opening the folder: check, map, recover (in recover.rs), mark. What comes out are parts.
//!
//! Owns the order in which files are checked, made and marked. users.log leads: it is locked for
//! the whole store, and cells of slots that it does not know are zeroed. Nothing is written before
//! everything was found good, no cell changes before users.log says on disk that a generation has
//! begun, and published.map says last that it has. Knows nothing of what the parts are for.
//!
//! A missing stamps.map is made anew; so is a missing published.map, from the stamps, as after a
//! power cut. A missing users.log beside the others is refused.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::cells::{Published, Stamp};
use super::fault::{StoreFault, StoreFaultKind};
use super::found::{self, Found, Made};
use super::header::{Header, Home, Kind, Windows};
use super::headers::{Generation, Headers, OnDisk};
use super::log::{self, Log};
use super::map::{CellFile, FIRST_CELL, file_bytes, whole_bytes};
use super::record::{FIRST_RECORD, RecordFault, Scan, torn_bytes};
use super::region::{MappedFile, copies_on_write, survive_file_size_limit};
use crate::slot::CHUNK_SLOTS;
use crate::time::Unix;

/// What the files say of the last run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Last {
    /// There was none.
    pub(crate) is_new: bool,
    /// It was closed cleanly, and no opening has been cut short since.
    pub(crate) clean: bool,
    /// It was not closed, and the kernel is another one.
    pub(crate) power_cut: bool,
    pub(crate) stamps_missing: bool,
    pub(crate) published_missing: bool,
    /// Every transition up to it is on disk.
    pub(crate) watermark: Unix,
    pub(crate) windows: Windows,
    /// The latest time at which a header was written, by the clock of then.
    pub(crate) written_at: Unix,
    /// Longest delay after which readers were told to come back, in ms.
    pub(crate) away_ms: u32,
    stamps_capacity: u32,
    published_capacity: u32,
}

/// The files as they were found, all of them good. Nothing has been written, but that the folder
/// and an empty users.log were made where they were missing: they go if the opening ends here.
pub(crate) struct Checked {
    dir: PathBuf,
    boot_id: [u8; 16],
    users: Found,
    stamps: Option<Found>,
    published: Option<Found>,
    pub(crate) last: Last,
    made: Made,
    /// The folders that had to be made: they go with this, unless somebody takes them over.
    pub(crate) made_dirs: Made,
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
    /// Maps that were made, and the names that they get once they are whole.
    new_maps: Vec<(PathBuf, PathBuf)>,
    made: Made,
    made_dirs: Made,
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
/// Errors: another process has it, a file is foreign, of another version, store or time, damaged or
/// truncated, or the system refuses something.
pub(crate) fn check(dir: &Path, boot_id: [u8; 16]) -> Result<Checked, StoreFault> {
    survive_file_size_limit();
    let (mut made, mut made_dirs) = (Made::default(), Made::default());
    made_dirs.dir(dir).map_err(os("make the folder", dir))?;
    if copies_on_write(dir) {
        let dir = dir.display();
        tracing::warn!(%dir, "the data folder is on a copy-on-write file system: when it is full, \
                              a beat can kill this process");
    }
    // Nothing is read before the lock, or another process could still be writing it.
    let (users_path, users_file) = found::lock(dir, &mut made)?;
    let users = Found::read(Kind::Users, users_path, users_file)?;
    // A map of which nothing was ever marked as synced, without its users, is what a power cut has
    // left of a store's first moments.
    let stale = |map: &Found| {
        users.header.is_none() && map.header.is_none_or(|header| header.capacity == 0)
    };
    let stamps = Found::look(dir, Kind::Stamps)?.filter(|map| !stale(map));
    let published = Found::look(dir, Kind::Published)?.filter(|map| !stale(map));
    let existed = !made.has(&users.path);
    check_together(&users, existed, &stamps, &published)?;
    let last = last(&users, &stamps, &published, boot_id);
    check_home(&users, &published, &last)?;
    Ok(Checked {
        dir: dir.to_owned(),
        boot_id,
        users,
        stamps,
        published,
        last,
        made,
        made_dirs,
    })
}

/// What the headers say together.
fn last(
    users: &Found,
    stamps: &Option<Found>,
    published: &Option<Found>,
    boot_id: [u8; 16],
) -> Last {
    let of = |found: &Option<Found>| found.as_ref().and_then(|found| found.header);
    let (of_stamps, of_published) = (of(stamps), of(published));
    let capacity = |header: Option<Header>| header.map_or(0, |header| header.capacity);
    let generation = |header: Option<Header>| header.map(|header| header.generation);
    let closed = of_published.is_some_and(|header| header.clean);
    // An opening that was cut short has perhaps synced a file in vain, and changed cells.
    let cut_short = generation(users.header) != generation(of_published);
    let headers = [users.header, of_stamps, of_published];
    let written = headers.iter().flatten().map(|header| header.written_at);
    Last {
        is_new: users.header.is_none(),
        clean: closed && !cut_short,
        power_cut: !closed && of_published.is_some_and(|header| header.boot_id != boot_id),
        stamps_missing: stamps.is_none(),
        published_missing: published.is_none(),
        watermark: of_published.map_or(Unix::from_ms(0), |header| header.watermark),
        windows: of_published.map_or([None; 2], |header| header.ambiguous),
        written_at: written.max().unwrap_or_default(),
        away_ms: of_published.map_or(0, |header| header.away_ms),
        stamps_capacity: capacity(of_stamps),
        published_capacity: capacity(of_published),
    }
}

/// The maps are of the store of users.log and of its time, and each file is as long as it was.
fn check_together(
    users: &Found,
    existed: bool,
    stamps: &Option<Found>,
    published: &Option<Found>,
) -> Result<(), StoreFault> {
    if users.header.is_none() && (stamps.is_some() || published.is_some()) {
        // A file that is there has lost what it had.
        let (kind, found) = match (existed, users.bytes) {
            (false, _) => (StoreFaultKind::Missing, "no such file"),
            (true, 0) => (StoreFaultKind::Truncated, "an empty file"),
            (true, _) => (StoreFaultKind::Truncated, "nothing but zeros"),
        };
        let expected = "users.log of the maps beside it";
        return Err(StoreFault::new(
            kind,
            users.path.clone(),
            0,
            expected,
            found,
        ));
    }
    for (map, kind) in [(stamps, Kind::Stamps), (published, Kind::Published)] {
        if let Some(map) = map {
            map.check_beside(kind, users)?;
        }
    }
    for map in [stamps, published].into_iter().flatten() {
        for (before, kind) in [(Some(users), Kind::Users), (stamps.as_ref(), Kind::Stamps)] {
            if let Some(leads) = before.and_then(|before| before.header) {
                map.check_follows(leads, kind.file_name())?;
            }
        }
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

/// The folder has the latest state.
fn check_home(users: &Found, published: &Option<Found>, last: &Last) -> Result<(), StoreFault> {
    let counts = published.as_ref().unwrap_or(users);
    match counts.header.map(|header| header.home) {
        Some(Home::Memory(path)) if !last.clean => Err(StoreFault::new(
            StoreFaultKind::InMemory,
            counts.path.clone(),
            48,
            "a store whose latest state is in this folder",
            format!("one whose latest state is in memory at {path:?}"),
        )),
        _ => Ok(()),
    }
}

impl Checked {
    /// Bytes of users.log that were on disk for sure.
    pub(crate) fn synced_bytes(&self) -> u64 {
        self.users.header.map_or(0, |header| header.synced_bytes)
    }

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
        let mut file = self.map_log(log::reserved_bytes(users_max))?;
        // What was synced is a good guess at the log's length: the rest of the file is room to
        // grow.
        let log_bytes = synced_bytes.max(file.len_bytes() / 2);
        let LogRead {
            made,
            scan,
            contradiction,
        } = read(all_bytes(&file), log_bytes).map_err(os("reserve memory for", &path))?;
        let torn_bytes = check_scan(
            &path,
            all_bytes(&file),
            &scan,
            contradiction,
            synced_bytes,
            users_max,
            self.last.power_cut,
        )?;
        // From here on the files are ours to write.
        begin(&file, &headers, now).map_err(os("mark as open", &path))?;
        if torn_bytes > 0 {
            // On disk at once: records behind the torn one could come back after what is put in
            // its place.
            file.cut(scan.end)
                .and_then(|()| file.sync())
                .map_err(os("cut the torn tail of", &path))?;
        }
        let (slots, last) = (scan.users, self.last);
        let mut parts = self.parts(Log::new(file, scan.end), headers, users_max)?;
        (parts.slots, parts.torn_bytes) = (slots, torn_bytes);
        parts
            .headers
            .mark_stamps(&parts.stamps, last.stamps_capacity, now)
            .and_then(|()| parts.stamps.file().sync())
            .map_err(os("mark as open", parts.stamps.file().path()))?;
        Ok((parts, made))
    }

    fn map_log(&self, reserved_bytes: u64) -> Result<MappedFile, StoreFault> {
        let path = self.users.path.clone();
        let map = || {
            let file = self.users.file.try_clone()?;
            if self.last.is_new {
                // Zeros: a file without a header is as good as none.
                file.set_len(FIRST_RECORD)?;
            }
            MappedFile::map(file, path.clone(), reserved_bytes)
        };
        map().map_err(os("map", &path))
    }

    /// The maps beside the log, made where they are missing, under the names that they shall have.
    fn parts(mut self, log: Log, headers: Headers, users_max: u32) -> Result<Parts, StoreFault> {
        let reserved = file_bytes(users_max.next_multiple_of(CHUNK_SLOTS));
        let mut new_maps = Vec::new();
        let mut map = |found: Option<Found>, kind: Kind| {
            let path = self.dir.join(kind.file_name());
            let file = match found {
                Some(Found { file, bytes, .. }) => {
                    // What is behind the last whole chunk is nobody's, and would be cells once the
                    // file grows.
                    let whole = whole_bytes(bytes);
                    if bytes > whole {
                        file.set_len(whole).map_err(os("cut", &path))?;
                    }
                    file
                }
                None => {
                    let (made_as, file) = found::make(&self.dir, kind)?;
                    self.made.file(made_as.clone());
                    // Its first page is the header's alone.
                    file.set_len(FIRST_CELL).map_err(os("make", &made_as))?;
                    new_maps.push((made_as, path.clone()));
                    file
                }
            };
            let mut file =
                MappedFile::map(file, path.clone(), reserved).map_err(os("map", &path))?;
            // Not the log: a user whose record reads as zeros would be taken for a new one.
            file.survive_cuts();
            Ok::<_, StoreFault>(file)
        };
        let stamps = CellFile::new(map(self.stamps.take(), Kind::Stamps)?);
        let published = CellFile::new(map(self.published.take(), Kind::Published)?);
        Ok(Parts {
            log,
            stamps,
            published,
            headers,
            slots: 0,
            torn_bytes: 0,
            last: self.last,
            dir: self.dir,
            new_maps,
            made: self.made,
            made_dirs: self.made_dirs,
        })
    }

    /// Of the next generation, or of the one that an opening has begun which was cut short: two of
    /// these must not count alike.
    fn headers(&self, now: Unix) -> Result<Headers, StoreFault> {
        let random = os("get random bytes for", &self.users.path);
        let Some(leader) = self.users.header else {
            return Headers::of_new(now, self.boot_id).map_err(random);
        };
        // A map that is missing says nothing.
        let maps = [&self.published, &self.stamps].into_iter().flatten();
        let mut ended = maps.filter_map(|map| map.header.map(|header| header.generation));
        let generation = match ended.all(|ended| ended == leader.generation) {
            true => Generation::begin(leader.generation + 1).map_err(random)?,
            false => Generation {
                number: leader.generation,
                life: leader.life,
            },
        };
        Ok(Headers::following(
            leader,
            generation,
            self.boot_id,
            self.last.away_ms,
        ))
    }
}

/// Says on disk that a generation has begun, before anything else changes.
fn begin(file: &MappedFile, headers: &Headers, now: Unix) -> io::Result<()> {
    let mut header = headers.header(Kind::Users, now);
    header.synced_bytes = headers.log_synced_bytes();
    file.write_start(&header.encode())?;
    file.sync()
}

impl Parts {
    /// Marks the store as open, and of this generation; has the names of new files on disk. What
    /// was made stays from here on.
    ///
    /// Errors: the system's.
    pub(crate) fn mark(&mut self, windows: Windows, now: Unix) -> Result<(), StoreFault> {
        let last = self.last;
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
        for (made_as, path) in self.new_maps.drain(..) {
            fs::rename(&made_as, &path).map_err(os("name", &path))?;
            self.made.file(path);
        }
        sync_dir(&self.dir).map_err(os("write", &self.dir))?;
        // No write-back has ended a cycle: the opening that has made the folder may have been cut
        // short before their names were on disk, or somebody else has made them.
        if last.stamps_capacity == 0 || last.published_capacity == 0 {
            let whole = fs::canonicalize(&self.dir).map_err(os("find", &self.dir))?;
            for dir in whole.ancestors().skip(1) {
                match sync_dir(dir) {
                    // A folder that we may not read is not ours to write.
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                    synced => synced.map_err(os("write", dir))?,
                }
            }
        }
        self.made.keep();
        self.made_dirs.keep();
        Ok(())
    }
}

pub(super) fn os(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreFault + use<> {
    let path = path.to_owned();
    move |error| StoreFault::os(path, doing, error)
}

/// Has the names in a folder on disk.
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?
        .sync_all()
        .or_else(|error| match error.kind() {
            // A file system that does not do this for folders.
            io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => Ok(()),
            _ => Err(error),
        })
}

fn all_bytes(file: &MappedFile) -> &[u8] {
    // SAFETY: nobody writes the file: this process is still opening the store, and the lock keeps
    // others away.
    unsafe { file.bytes_at(0, file.len_bytes() as usize) }
}

/// Damage before the synced mark is not a torn write, nor is what no append leaves. Returns the
/// bytes of torn tail.
fn check_scan(
    path: &Path,
    bytes: &[u8],
    scan: &Scan,
    contradiction: Option<RecordFault>,
    synced_bytes: u64,
    users_max: u32,
    power_cut: bool,
) -> Result<u64, StoreFault> {
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
    let torn = torn_bytes(bytes, scan.end, power_cut);
    let torn = torn.map_err(|fault| {
        let fault = scan.fault.clone().unwrap_or(fault);
        StoreFault::record(path.to_owned(), &fault)
    })?;
    if scan.users > users_max {
        let expected = format!("at most {users_max} users (users_max)");
        let found = format!("{} users", scan.users);
        let (kind, path) = (StoreFaultKind::TooManyUsers, path.to_owned());
        return Err(StoreFault::new(kind, path, scan.end, expected, found));
    }
    Ok(torn)
}
