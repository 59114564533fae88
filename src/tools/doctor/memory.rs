//! The folder of `--memory`, as `greendot doctor` looks at it. A node refuses to start with one
//! that will not do.

use std::path::Path;

use super::{locked, nearest_existing};
use crate::config::Config;
use crate::limits::{Finding, Verdict};
use crate::store::{MemoryChoice, is_tmpfs, memory_fault};

const SUBJECT: &str = "memory folder";

/// What there is to be said of a folder that was named; nothing if none was.
pub(super) fn finding(config: &Config) -> Option<Finding> {
    let MemoryChoice::In(root) = &config.memory else {
        return None;
    };
    let (verdict, detail) = match root.exists() {
        true => of_folder(root, &config.data_dir),
        false => of_none_yet(root),
    };
    Some(Finding::new(verdict, SUBJECT, detail))
}

fn of_folder(root: &Path, data_dir: &Path) -> (Verdict, String) {
    let shown = root.display();
    // Of a server that runs on the data folder it holds the memory that there would be room for.
    let runs = locked(data_dir).is_some_and(|finding| finding.verdict > Verdict::Ok);
    match memory_fault(root, data_dir) {
        Some(_) if runs && is_tmpfs(root) => (
            Verdict::Ok,
            format!("{shown} is on a tmpfs, and a server is running with it"),
        ),
        Some(why) => (
            Verdict::Fail,
            format!(
                "{why}; name a folder on a tmpfs with room, as below /run or /dev/shm, or set \
                 --memory off"
            ),
        ),
        None => (
            Verdict::Ok,
            format!("{shown} is on a tmpfs, and has room for the store"),
        ),
    }
}

fn of_none_yet(root: &Path) -> (Verdict, String) {
    let shown = root.display();
    let above = nearest_existing(root).unwrap_or_else(|| "/".into());
    match is_tmpfs(&above) {
        true => (
            Verdict::Warn,
            format!(
                "{shown} is not there yet; the unit's RuntimeDirectory= makes it, or make it \
                 before the start"
            ),
        ),
        false => (
            Verdict::Fail,
            format!(
                "{shown} is not there, and {} is on no tmpfs; name a folder that is, as below /run \
                 or /dev/shm, or set --memory off",
                above.display()
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(memory: &str, data_dir: &Path) -> Finding {
        let config = Config {
            memory: MemoryChoice::In(memory.into()),
            data_dir: data_dir.into(),
            ..Config::default()
        };
        finding(&config).expect("a folder was named")
    }

    #[test]
    fn a_folder_that_is_no_tmpfs_fails_as_a_start_would() {
        let data = tempfile::tempdir().unwrap();
        assert_eq!(finding(&Config::default()), None);
        let good = found("/dev/shm", data.path());
        assert_eq!((good.verdict, good.subject), (Verdict::Ok, SUBJECT));
        // /proc is there everywhere, and nobody's disk either.
        let bad = found("/proc", data.path());
        assert_eq!(bad.verdict, Verdict::Fail);
        assert!(
            bad.detail
                .starts_with("/proc is not on a tmpfs; name a folder"),
            "{bad:?}"
        );
    }

    #[test]
    fn a_folder_that_is_not_there_is_judged_by_where_it_would_be() {
        let data = tempfile::tempdir().unwrap();
        let later = found("/dev/shm/greendot-never/a", data.path());
        assert_eq!(later.verdict, Verdict::Warn, "{later:?}");
        let never = found("/proc/greendot-never", data.path());
        assert_eq!(never.verdict, Verdict::Fail);
        assert!(never.detail.contains("/proc is on no tmpfs"), "{never:?}");
    }

    #[test]
    fn a_server_that_runs_has_taken_the_room() {
        let data = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(data.path().join(crate::store::STORE_FILES[0])).unwrap();
        // More than any machine has: a hole.
        log.set_len(1 << 42).unwrap();
        assert_eq!(found("/dev/shm", data.path()).verdict, Verdict::Fail);
        log.lock().unwrap();
        assert_eq!(found("/dev/shm", data.path()).verdict, Verdict::Ok);
    }
}
