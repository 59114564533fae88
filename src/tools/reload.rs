//! `greendot reload`: asks a running node to read its configuration, keys and certificate anew.
//!
//! Owns how the process is found: by its id, or by who has the data folder's `users.log` locked;
//! which folder that is, its file of settings may say. What comes of it only the node knows, and
//! its log says.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use crate::config::{self, RoleName, Sources};
use crate::store::STORE_FILES;

/// Which process is asked.
#[derive(Clone, Debug)]
pub enum Options {
    /// The one of this id.
    Pid(i32),
    /// The one that runs with these settings.
    Config(Sources),
    /// The one that has this data folder open.
    Folder(PathBuf),
}

/// Sends SIGHUP; what to print.
///
/// Errors: there is no such process, or it is no greendot.
pub fn run(options: &Options) -> Result<String, String> {
    let pid = match options {
        Options::Pid(pid) => *pid,
        Options::Config(sources) => holder(&folder(sources)?)?,
        Options::Folder(dir) => holder(dir)?,
    };
    // A program that knows no SIGHUP would end.
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    let name = name.map_err(|error| format!("process {pid}: {error}; is the node running?"))?;
    if !name.starts_with("greendot") {
        return Err(format!("process {pid} is {}, no greendot", name.trim_end()));
    }
    let sent = Pid::from_raw(pid).map_or(Err(rustix::io::Errno::SRCH), |pid| {
        kill_process(pid, Signal::HUP)
    });
    sent.map_err(|error| format!("process {pid}: {}", io::Error::from(error)))?;
    Ok(format!(
        "asked process {pid} to read its configuration and its keys anew; its log says what came \
         of it\n"
    ))
}

/// The data folder that settings name. One that is no path from the root is looked for from here.
fn folder(sources: &Sources) -> Result<PathBuf, String> {
    let loaded = config::load(sources).map_err(|faults| faults.join("\ngreendot: "))?;
    match loaded.config.role {
        RoleName::Realtime => {
            Err("a real-time node has no data folder; name its process with --pid".into())
        }
        _ => Ok(loaded.config.data_dir),
    }
}

/// Who has the folder's store locked.
fn holder(dir: &Path) -> Result<i32, String> {
    let path = dir.join(STORE_FILES[0]);
    let fault = |error: io::Error| {
        format!(
            "{}: {error}; name the node's folder with --data-dir, or its process with --pid",
            path.display()
        )
    };
    let store = fs::metadata(&path).map_err(fault)?;
    let locks = fs::read_to_string("/proc/locks").map_err(fault)?;
    let mut holders = locks.lines().filter_map(|line| lock_on(line, store.ino()));
    holders.find(|pid| has_open(*pid, &store)).ok_or_else(|| {
        format!(
            "no process has {} locked that can be seen from here; name it with --pid",
            path.display()
        )
    })
}

/// The process that holds the lock of a line of /proc/locks, if that is on this inode (proc(5)):
/// `1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF`.
fn lock_on(line: &str, inode: u64) -> Option<i32> {
    let mut words = line.split_ascii_whitespace().skip(1);
    words.next().filter(|kind| *kind == "FLOCK")?;
    let pid = words.nth(2)?.parse().ok().filter(|pid| *pid > 0)?;
    let on: u64 = words.next()?.rsplit(':').next()?.parse().ok()?;
    (on == inode).then_some(pid)
}

/// Whether a process has this very file open: inodes repeat over file systems. One that speaks TLS
/// lets nobody look, and is believed: it is asked nothing but to read its files anew.
fn has_open(pid: i32, file: &fs::Metadata) -> bool {
    let entries = match fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(entries) => entries,
        Err(error) => return error.kind() == io::ErrorKind::PermissionDenied,
    };
    let mut opened = entries
        .flatten()
        .filter_map(|entry| fs::metadata(entry.path()).ok());
    opened.any(|opened| (opened.dev(), opened.ino()) == (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_locks() {
        for (line, pid) in [
            ("1: FLOCK  ADVISORY  WRITE 708 08:01:5321 0 EOF", Some(708)),
            ("1: FLOCK  ADVISORY  WRITE 708 08:01:532 0 EOF", None),
            ("1: POSIX  ADVISORY  WRITE 708 08:01:5321 0 EOF", None),
            ("1: FLOCK  ADVISORY  WRITE 0 08:01:5321 0 EOF", None),
            ("1: -> FLOCK  ADVISORY  WRITE 708 08:01:5321 0 EOF", None),
            ("", None),
        ] {
            assert_eq!(lock_on(line, 5_321), pid, "{line}");
        }
    }

    #[test]
    fn another_program_is_left_alone() {
        let why = run(&Options::Pid(std::process::id() as i32 * 2 + 4_194_304)).unwrap_err();
        assert!(why.contains("is the node running?"), "{why}");
        let dir = tempfile::tempdir().unwrap();
        let why = run(&Options::Folder(dir.path().into())).unwrap_err();
        assert!(
            why.contains("name the node's folder with --data-dir"),
            "{why}"
        );
        fs::write(dir.path().join(STORE_FILES[0]), "").unwrap();
        let why = run(&Options::Folder(dir.path().into())).unwrap_err();
        assert!(why.contains("no process has"), "{why}");
    }

    #[test]
    fn a_file_of_settings_names_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("g.toml");
        let named = |text: &str| {
            fs::write(&file, text).unwrap();
            folder(&Sources {
                config_file: Some(file.clone()),
                ..Sources::default()
            })
        };
        assert_eq!(named("data_dir = \"/srv/d\""), Ok(PathBuf::from("/srv/d")));
        assert_eq!(named(""), Ok(PathBuf::from("./greendot-data")));
        let realtime = "presence = [\"udp://127.0.0.1:1,http://127.0.0.1:2\"]\nkey_file = \"k\"";
        assert_eq!(
            named(realtime),
            Err("a real-time node has no data folder; name its process with --pid".into())
        );
        let why = named("data_dri = \"d\"").unwrap_err();
        assert!(
            why.ends_with("g.toml:1: data_dri: no such key; did you mean data_dir?"),
            "{why}"
        );
    }
}
