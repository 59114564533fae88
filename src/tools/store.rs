//! `greendot store`: looks into a data folder that no server has open, and compacts it.
//!
//! Owns what is printed. Nothing but `compact` changes anything, and it puts the new folder in the
//! old one's place in one step.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::read_enough;
use crate::presence::{Archive, ArchiveFault};
use crate::store::STORE_FILES;
use crate::wire::User;
use crate::wire::record::Record;

/// What `greendot store` was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    pub what: What,
    /// The data folder.
    pub dir: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// How much it holds.
    Inspect,
    /// Whether all of it is whole.
    Verify,
    /// Every user as a line of JSON.
    Export,
    /// Without those who are gone.
    Compact,
}

/// Does what was asked; what is printed goes to `out`.
///
/// Errors: a sentence for the terminal.
pub fn run(options: &Options, out: &mut impl Write) -> Result<(), String> {
    let dir = options.dir.as_path();
    let archive = Archive::read(dir).map_err(|fault| explain(dir, &fault))?;
    let text = match options.what {
        What::Inspect => inspect(&archive),
        What::Verify => format!("{}: all of it is whole\n", dir.display()),
        What::Export => return export(&archive, out).or_else(|error| read_enough(&error)),
        What::Compact => compact(dir, &archive)?,
    };
    out.write_all(text.as_bytes())
        .or_else(|error| read_enough(&error))
}

fn inspect(archive: &Archive) -> String {
    let users = archive.users().count();
    let online = archive
        .users()
        .filter(|kept| kept.status.is_online())
        .count();
    let mut text = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        writeln!(text, "{name:<20} {value}").expect("a String takes everything");
    };
    line("users", &users);
    line("published online", &online);
    line("free slots", &archive.free());
    line("bytes of nobody", &archive.dead_bytes());
    line(
        "closed cleanly",
        &if archive.is_clean() { "yes" } else { "no" },
    );
    if archive.is_torn() {
        line(
            "users.log",
            &"ends in a torn record, which the next start cuts off",
        );
    }
    for (missing, file) in archive.missing().iter().zip(&STORE_FILES[1..]) {
        if *missing {
            line(file, &"missing, the next start makes it anew");
        }
    }
    text
}

fn export(archive: &Archive, out: &mut impl Write) -> io::Result<()> {
    let mut line = Vec::new();
    for kept in archive.users() {
        line.clear();
        let user = User::from_text(kept.user).expect("the scan takes legal ids alone");
        let record = Record {
            user,
            status: kept.status,
            since: kept.since,
            last_active: kept.last_active,
            stale: false,
        };
        record.write(&mut line);
        line.push(b'\n');
        out.write_all(&line)?;
    }
    out.flush()
}

/// The new folder stands beside the old one until it is whole and on disk; then the two change
/// places at once, and the old one goes. Stopped at any moment, there is a whole store in place.
fn compact(dir: &Path, archive: &Archive) -> Result<String, String> {
    let failed = |doing: &str, error: io::Error| format!("{}: {doing}: {error}", dir.display());
    if !archive.is_clean() {
        return Err(format!(
            "{}: it was not closed cleanly: start the server on it once and stop it, so that it is \
             repaired first",
            dir.display()
        ));
    }
    let dir = dir.canonicalize().map_err(|error| failed("find", error))?;
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let beside = dir.with_file_name(format!("{name}.compacting"));
    if beside.exists() {
        return Err(format!(
            "{} is there already, of a compaction that was stopped: remove it",
            beside.display()
        ));
    }
    let made = archive
        .write(&beside)
        .map_err(|fault| explain(&beside, &fault))
        .and_then(|_| {
            finish_beside(&dir, &beside)
                .map_err(|error| failed("copy what stands beside the store", error))
        });
    let before = users_log_bytes(&dir);
    let swapped = made.and_then(|()| {
        renameat_with(CWD, &beside, CWD, &dir, RenameFlags::EXCHANGE)
            .map_err(|error| failed("put the new folder in place", error.into()))
    });
    if let Err(why) = swapped {
        // Nothing has changed.
        let _ = fs::remove_dir_all(&beside);
        return Err(why);
    }
    sync(dir.parent().unwrap_or(Path::new("/")))
        .and_then(|()| fs::remove_dir_all(&beside))
        .map_err(|error| failed("remove the old folder", error))?;
    let (users, after) = (archive.users().count(), users_log_bytes(&dir));
    Ok(format!(
        "{}: {users} users, users.log had {before} bytes and has {after}\n",
        dir.display()
    ))
}

/// Puts what else is in the old folder into the new one, which belongs to the same user.
fn finish_beside(dir: &Path, beside: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let (of, file) = (dir.join(&name), beside.join(&name));
        if !STORE_FILES.iter().any(|file| name == **file) {
            // The fleet's keys, and what else an operator keeps here.
            copy(&of, &file)?;
        } else if file.exists() {
            own(&file, &of.metadata()?)?;
            sync(&file)?;
        }
    }
    let of = dir.metadata()?;
    own(beside, &of)?;
    fs::set_permissions(beside, of.permissions())?;
    sync(beside)
}

/// Copies a file, a link, or a folder with all that is in it; each stays whose it is.
///
/// Errors: the system's; or it is something else, such as a socket.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let of = from.symlink_metadata()?;
    if of.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
        return own(to, &of);
    }
    if of.is_dir() {
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let name = entry?.file_name();
            copy(&from.join(&name), &to.join(&name))?;
        }
    } else if of.is_file() {
        fs::copy(from, to)?;
    } else {
        let what = format!("{} is no file, folder or link", from.display());
        return Err(io::Error::other(what));
    }
    own(to, &of)?;
    fs::set_permissions(to, of.permissions())?;
    sync(to)
}

/// The same user and group as of this.
fn own(path: &Path, of: &fs::Metadata) -> io::Result<()> {
    lchown(path, Some(of.uid()), Some(of.gid()))
}

fn sync(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

fn users_log_bytes(dir: &Path) -> u64 {
    fs::metadata(dir.join(STORE_FILES[0])).map_or(0, |found| found.len())
}

fn explain(dir: &Path, fault: &ArchiveFault) -> String {
    match fault {
        ArchiveFault::Store(fault) => fault.to_string(),
        ArchiveFault::Record(offset, why) => format!(
            "{}: users.log is damaged at byte {offset}: {why}; restore a backup",
            dir.display()
        ),
        ArchiveFault::Os(error) => format!("{}: {error}", dir.display()),
    }
}
