//! Opening the folder: check, map, recover (in recover.rs), mark. What comes out are parts.
//!
//! Owns the order in which files are checked, made and marked. users.log leads: it is locked for
//! the whole store, and cells of slots that it does not know are zeroed. Nothing is written before
//! everything was found good, no cell changes before users.log says on disk that a generation has
//! begun, and published.map says last that it has. Where the cells are to be in a memory (home.rs),
//! they are copied there between the two. Knows nothing of what the parts are for.
//!
//! A missing stamps.map is made anew; so is a missing published.map, from the stamps, as after a
//! power cut. A missing users.log beside the others is refused.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::cells::{Published, Stamp};
use super::fault::{StoreFault, StoreFaultKind};
use super::found::{self, Found, Made};
use super::header::{Header, Kind, Windows};
use super::headers::{Headers, OnDisk};
use super::home::{self, Place};
use super::log::Log;
use super::map::CellFile;
use super::memory::MemoryChoice;
use super::record::{RecordFault, Scan};
use super::region::{copies_on_write, survive_file_size_limit};
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
    /// The same of a run that went on, and not of an opening that was cut short.
    pub(crate) ran_at: Unix,
    /// Longest delay after which readers were told to come back, in ms.
    pub(crate) away_ms: u32,
    pub(super) stamps_capacity: u32,
    published_capacity: u32,
}

/// The files as they were found, all of them good. Nothing has been written, but that the folder
/// and an empty users.log were made where they were missing: they go if the opening ends here.
pub(crate) struct Checked {
    pub(super) dir: PathBuf,
    pub(super) boot_id: [u8; 16],
    /// Those that have the latest state: the folder's, or those of a memory that is continued.
    pub(super) users: Found,
    pub(super) stamps: Option<Found>,
    pub(super) published: Option<Found>,
    pub(super) place: Place,
    /// The memory was named: there is no doing without.
    pub(super) must: bool,
    /// Memories that nobody needs any more.
    pub(super) left_over: Vec<PathBuf>,
    pub(crate) last: Last,
    pub(super) made: Made,
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
    /// Why there is no memory, where one was wanted.
    pub(crate) no_memory: String,
    /// A memory is continued: the folder has less, and no cell of it has been looked at.
    pub(super) continued: bool,
    pub(super) dir: PathBuf,
    /// Maps that were made, and the names that they get once they are whole.
    pub(super) new_maps: Vec<(PathBuf, PathBuf)>,
    pub(super) made: Made,
    pub(super) made_memory: Made,
    pub(super) made_dirs: Made,
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
pub(crate) fn check(
    dir: &Path,
    boot_id: [u8; 16],
    choice: &MemoryChoice,
) -> Result<Checked, StoreFault> {
    survive_file_size_limit();
    let (mut made, mut made_dirs) = (Made::default(), Made::default());
    made_dirs.dir(dir).map_err(os("make the folder", dir))?;
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
    let mut last = last(&users, &stamps, &published, boot_id);
    let checked = |users, stamps, published, place, last| Checked {
        dir: dir.to_owned(),
        boot_id,
        users,
        stamps,
        published,
        place,
        must: matches!(choice, MemoryChoice::In(_)),
        left_over: Vec::new(),
        last,
        made,
        made_dirs,
    };
    match home::find(&users, &published)? {
        home::Latest::InMemory([leader, in_stamps, in_published]) => {
            let (stamps_there, published_there) = (Some(in_stamps), Some(in_published));
            check_together(&leader, true, &stamps_there, &published_there)?;
            let last = self::last(&leader, &stamps_there, &published_there, boot_id);
            // Nobody says what has become of the folder since.
            let last = Last {
                clean: false,
                power_cut: false,
                ..last
            };
            let place = Place::Continued([Some(users), stamps, published]);
            Ok(checked(leader, stamps_there, published_there, place, last))
        }
        home::Latest::InFolder { memory_lost } => {
            last.power_cut |= memory_lost;
            let files = [Some(&users), stamps.as_ref(), published.as_ref()];
            let (place, left_over) = home::choose(choice, dir, files)?;
            warn_of_copies(dir, &place);
            Ok(Checked {
                left_over,
                ..checked(users, stamps, published, place, last)
            })
        }
    }
}

fn warn_of_copies(dir: &Path, place: &Place) {
    if matches!(place, Place::Files(_)) && copies_on_write(dir) {
        let dir = dir.display();
        tracing::warn!(%dir, "the data folder is on a copy-on-write file system: when it is full, \
                              a beat can kill this process");
    }
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
    let written_at = written.max().unwrap_or_default();
    // published.map is the last that an opening writes.
    let ran_at = of_published.filter(|_| cut_short);
    Last {
        is_new: users.header.is_none(),
        clean: closed && !cut_short,
        power_cut: !closed && of_published.is_some_and(|header| header.boot_id != boot_id),
        stamps_missing: stamps.is_none(),
        published_missing: published.is_none(),
        watermark: of_published.map_or(Unix::from_ms(0), |header| header.watermark),
        windows: of_published.map_or([None; 2], |header| header.ambiguous),
        written_at,
        ran_at: ran_at.map_or(written_at, |header| header.written_at),
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

impl Checked {
    /// Bytes of users.log that were on disk for sure.
    pub(crate) fn synced_bytes(&self) -> u64 {
        self.users.header.map_or(0, |header| header.synced_bytes)
    }

    /// Fails where the folder alone is not the store, for who reads it and nothing else.
    ///
    /// Errors: its latest state is in a memory.
    pub(crate) fn check_alone(&self) -> Result<(), StoreFault> {
        let Place::Continued([Some(users), ..]) = &self.place else {
            return Ok(());
        };
        let memory = self.users.path.parent().unwrap_or(&self.users.path);
        Err(StoreFault::new(
            StoreFaultKind::InMemory,
            users.path.clone(),
            48,
            "a store whose latest state is in this folder",
            format!(
                "one whose latest state is in memory at {}",
                memory.display()
            ),
        ))
    }
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
        // What was mended while opening is on disk from the start; of the folder's own files that
        // is done with the header.
        let mended = match self.published.file().behind() {
            Some(_) if !self.continued => self.published.sync(),
            _ => Ok(()),
        };
        mended
            .and_then(|()| {
                let headers = &self.headers;
                headers.mark_published(&self.published, || windows, on_disk, now)
            })
            .and_then(|()| self.published.file().sync_start())
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
        self.made_memory.keep();
        self.made_dirs.keep();
        Ok(())
    }
}

pub(super) fn os(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreFault + use<> {
    let path = path.to_owned();
    move |error| StoreFault::os(path, doing, error)
}

/// Has the names in a folder on disk.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?
        .sync_all()
        .or_else(|error| match error.kind() {
            // A file system that does not do this for folders.
            io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => Ok(()),
            _ => Err(error),
        })
}
