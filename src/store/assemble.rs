//! The parts of an open store, out of files that were found good: mapped, made where they are
//! missing, in a memory where one is wanted.
//!
//! Owns the order in which headers are written and cells get to where they will be: users.log says
//! on disk that a generation has begun before anything else changes, and published.map says so last
//! (open.rs).

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::fault::{StoreFault, StoreFaultKind};
use super::found::{self, Found, Made};
use super::header::{Header, Kind};
use super::headers::{Generation, Headers};
use super::home::{self, NewMemory, Place};
use super::log::{self, Log};
use super::map::{CellFile, FIRST_CELL, file_bytes, whole_bytes};
use super::memory;
use super::open::{Checked, LogRead, Parts, os};
use super::record::{FIRST_RECORD, RecordFault, Scan, torn_bytes};
use super::region::MappedFile;
use crate::slot::CHUNK_SLOTS;
use crate::time::Unix;

/// Maps that were made, and the names that they get once they are whole.
type NewMaps = Vec<(PathBuf, PathBuf)>;

impl Checked {
    /// Maps the files, made where they are missing, with address space for `users_max` slots; has
    /// users.log read and its torn tail cut off.
    ///
    /// Errors: users.log is damaged or has more slots, or the system refuses something.
    pub(crate) fn map<T>(
        mut self,
        users_max: u32,
        now: Unix,
        read: impl FnOnce(&[u8], u64) -> io::Result<LogRead<T>>,
    ) -> Result<(Parts, T), StoreFault> {
        let mut headers = self.headers(now)?;
        let synced_bytes = headers.log_synced_bytes();
        let path = self.users.path.clone();
        let mut file = self.map_log(users_max)?;
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
        let memory = self.begin(&file, &mut headers, now)?;
        if torn_bytes > 0 {
            file.cut(scan.end)
                .and_then(|()| match file.behind() {
                    // On disk at once: records behind the torn one could come back after what is
                    // put in its place.
                    None => file.sync(),
                    // What was never whole was never copied there.
                    Some(_) => Ok(()),
                })
                .map_err(os("cut the torn tail of", &path))?;
        }
        let (slots, last) = (scan.users, self.last);
        let mut parts = self.parts(file, scan.end, headers, memory, users_max)?;
        (parts.slots, parts.torn_bytes) = (slots, torn_bytes);
        parts
            .headers
            .mark_stamps(&parts.stamps, last.stamps_capacity, now)
            .and_then(|()| parts.stamps.file().sync_start())
            .map_err(os("mark as open", parts.stamps.file().path()))?;
        Ok((parts, made))
    }

    fn map_log(&mut self, users_max: u32) -> Result<MappedFile, StoreFault> {
        let path = self.users.path.clone();
        let reserved_bytes = log::reserved_bytes(users_max, self.users.bytes);
        let mut map = || {
            let file = self.users.file.try_clone()?;
            if let Place::Continued([users, ..]) = &mut self.place {
                let users = users.take().expect("a folder has its users.log");
                let (path, bytes) = (path.clone(), self.users.bytes);
                return home::continue_with(
                    (file, path, bytes),
                    (users.file, &users.path),
                    reserved_bytes,
                );
            }
            if self.last.is_new {
                // Zeros: a file without a header is as good as none.
                file.set_len(FIRST_RECORD)?;
            }
            MappedFile::map(file, path.clone(), reserved_bytes)
        };
        map().map_err(os("map", &path))
    }

    /// Says on disk that a generation has begun, before anything else changes; then makes the
    /// memory where one is wanted, still empty. A generation that is continued has begun.
    ///
    /// Errors: the system's; that no memory can be made is one where it was named.
    fn begin(
        &mut self,
        log: &MappedFile,
        headers: &mut Headers,
        now: Unix,
    ) -> Result<Option<NewMemory>, StoreFault> {
        if matches!(self.place, Place::Continued(_)) {
            return Ok(None);
        }
        begin(log, headers, now).map_err(os("mark as open", log.path()))?;
        home::remove(&self.left_over);
        let Some(path) = headers.memory().map(Path::to_owned) else {
            return Ok(None);
        };
        let bytes = |found: &Option<Found>| found.as_ref().map_or(FIRST_CELL, |found| found.bytes);
        let bytes = [log.len_bytes(), bytes(&self.stamps), bytes(&self.published)];
        match home::make(&path, bytes) {
            Ok(memory) => Ok(Some(memory)),
            Err(error) if self.must => Err(os("make", &path)(error)),
            Err(error) => {
                self.place = Place::Files(format!("{} cannot be made: {error}", path.display()));
                headers.live_in_files();
                begin(log, headers, now).map_err(os("mark as open", log.path()))?;
                Ok(None)
            }
        }
    }

    /// The maps beside the log, made where they are missing, under the names that they shall have;
    /// all three in a memory where one was made.
    fn parts(
        mut self,
        log: MappedFile,
        log_end: u64,
        headers: Headers,
        memory: Option<NewMemory>,
        users_max: u32,
    ) -> Result<Parts, StoreFault> {
        let reserved = file_bytes(users_max.next_multiple_of(CHUNK_SLOTS));
        let home = headers.memory().map(Path::to_owned).unwrap_or_default();
        let (files, made_memory) = match memory {
            Some(NewMemory { files, made }) => (files.map(Some), made),
            None => ([None, None, None], Made::default()),
        };
        let into = |file: Option<File>| file.map(|file| (file, home.as_path()));
        let [users, stamps, published] = files.map(into);
        let log = move_into(log, users, Kind::Users)?;
        let mut maps = NewMaps::default();
        let stamps = self.map_cells(Kind::Stamps, stamps, reserved, &mut maps)?;
        let published = self.map_cells(Kind::Published, published, reserved, &mut maps)?;
        Ok(Parts {
            log: Log::new(log, log_end),
            stamps: CellFile::new(stamps),
            published: CellFile::new(published),
            headers,
            slots: 0,
            torn_bytes: 0,
            last: self.last,
            continued: matches!(self.place, Place::Continued(_)),
            no_memory: match self.place {
                Place::Files(why) => why,
                Place::New(_) | Place::Continued(_) => String::new(),
            },
            dir: self.dir,
            new_maps: maps,
            made: self.made,
            made_memory,
            made_dirs: self.made_dirs,
        })
    }

    /// A map where its cells will be: `into` is the file of a new memory for it.
    fn map_cells(
        &mut self,
        kind: Kind,
        into: Option<(File, &Path)>,
        reserved: u64,
        maps: &mut NewMaps,
    ) -> Result<MappedFile, StoreFault> {
        let of_map = |stamps, published| match kind {
            Kind::Stamps => stamps,
            Kind::Users | Kind::Published => published,
        };
        let found = of_map(&mut self.stamps, &mut self.published).take();
        let continued = match (&mut self.place, found) {
            (Place::Continued([_, stamps, published]), Some(found)) => {
                Ok((found, of_map(stamps, published).take()))
            }
            (_, found) => Err(found),
        };
        let mut file = match continued {
            Ok((
                Found {
                    file, path, bytes, ..
                },
                follower,
            )) => {
                let (follower, follower_path) = self.in_folder(follower, kind, maps)?;
                let whole = (file, path, whole_bytes(bytes));
                home::continue_with(whole, (follower, &follower_path), reserved)
                    .map_err(os("map", &follower_path))?
            }
            Err(found) => {
                let (file, path) = self.in_folder(found, kind, maps)?;
                let file = MappedFile::map(file, path.clone(), reserved);
                move_into(file.map_err(os("map", &path))?, into, kind)?
            }
        };
        // Not the log: a user whose record reads as zeros would be taken for a new one.
        file.survive_cuts();
        Ok(file)
    }

    /// The folder's file of a map, whole chunks long, made where it is missing; and its path.
    fn in_folder(
        &mut self,
        found: Option<Found>,
        kind: Kind,
        maps: &mut NewMaps,
    ) -> Result<(File, PathBuf), StoreFault> {
        let path = self.dir.join(kind.file_name());
        let file = match found {
            Some(Found { file, bytes, .. }) => {
                // What is behind the last whole chunk is nobody's, and would be cells once the file
                // grows.
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
                maps.push((made_as, path.clone()));
                file
            }
        };
        Ok((file, path))
    }

    /// Of the next generation, or of the one that an opening has begun which was cut short: two of
    /// these must not count alike.
    fn headers(&self, now: Unix) -> Result<Headers, StoreFault> {
        let random = os("get random bytes for", &self.users.path);
        let mut headers = match self.users.header {
            None => Headers::of_new(now, self.boot_id).map_err(random)?,
            Some(leader) => self.following(leader)?,
        };
        match &self.place {
            Place::Files(_) => {}
            Place::New(root) => {
                let folder = memory::id_of(&self.users.file);
                let folder = folder.map_err(os("look at", &self.users.path))?;
                headers.live_in(root, folder)?;
            }
            Place::Continued(_) => {
                if let Some(leader) = &self.users.header {
                    headers.live_on(leader);
                }
            }
        }
        Ok(headers)
    }

    fn following(&self, mut leader: Header) -> Result<Headers, StoreFault> {
        let random = os("get random bytes for", &self.users.path);
        if let Place::Continued(
            [
                Some(Found {
                    header: Some(follower),
                    ..
                }),
                ..,
            ],
        ) = &self.place
        {
            // An older copy of the folder may have been put back: what it lacks is copied again.
            leader.synced_bytes = leader.synced_bytes.min(follower.synced_bytes);
            let (number, life) = (leader.generation, leader.life);
            let generation = Generation { number, life };
            return Ok(Headers::following(
                leader,
                generation,
                self.boot_id,
                self.last.away_ms,
            ));
        }
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

/// Copies a file of the folder into one of a new memory, if there is one.
fn move_into(
    file: MappedFile,
    into: Option<(File, &Path)>,
    kind: Kind,
) -> Result<MappedFile, StoreFault> {
    let Some((into, memory)) = into else {
        return Ok(file);
    };
    let (path, reserved) = (file.path().to_owned(), file.reserved_bytes());
    home::copy_into(file, into, memory, kind, reserved).map_err(os("copy", &path))
}

/// Says on disk that a generation has begun, before anything else changes.
fn begin(file: &MappedFile, headers: &Headers, now: Unix) -> io::Result<()> {
    let mut header = headers.header(Kind::Users, now);
    header.synced_bytes = headers.log_synced_bytes();
    file.write_start(&header.encode())?;
    file.sync()
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
