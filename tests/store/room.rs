//! Room: full disks and small stores.

use std::fs;
use std::path::Path;

use greendot::presence::{BeatOutcome, InternFault, Presence, StoreOptions, Transition};
use greendot::slot::Slot;
use greendot::status::Status;

use crate::{FILES, FIRST_CELL, at, open, options, sweep, user};

#[test]
fn a_small_store_is_small_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (_presence, _) = Presence::open(
        &StoreOptions {
            users_max: 100,
            ..options(dir.path(), 1)
        },
        at(0),
    )
    .unwrap();
    let sizes: Vec<u64> = FILES
        .iter()
        .map(|name| fs::metadata(dir.path().join(name)).unwrap().len())
        .collect();
    assert_eq!(
        sizes,
        [4_096, FIRST_CELL + 4_096 * 8, FIRST_CELL + 4_096 * 8]
    );
}

#[test]
fn a_full_disk_refuses_new_users_and_keeps_the_rest() {
    const CHILD: &str = "GREENDOT_TEST_FSIZE_DIR";
    if let Some(dir) = std::env::var_os(CHILD) {
        return fill_under_a_file_size_limit(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "room::a_full_disk_refuses_new_users_and_keeps_the_rest",
            "--nocapture",
        ])
        .env(CHILD, dir.path())
        .output()
        .unwrap();
    assert!(
        child.status.success(),
        "{}{}",
        String::from_utf8_lossy(&child.stdout),
        String::from_utf8_lossy(&child.stderr)
    );
    // Without the limit the store opens and goes on where it was.
    let (presence, report) = open(dir.path(), 1, 100);
    assert_eq!((report.users, report.torn_bytes), (presence.users(), 0));
    assert!(presence.users() > 90_000);
    assert_eq!(
        presence.intern(user("one more")),
        Ok(Slot::new(report.users))
    );
}

/// In a process of its own: the limit is the process's.
fn fill_under_a_file_size_limit(dir: &Path) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(
        Resource::Fsize,
        Rlimit {
            current: Some(2 << 20),
            maximum,
        },
    )
    .expect("as set up");
    let (presence, _) = open(dir, 1, 0);
    let mut made = 0;
    let refused = loop {
        match presence.intern(user(&format!("user-{made}"))) {
            Ok(slot) => assert_eq!(slot, Slot::new(made)),
            Err(fault) => break fault,
        }
        made += 1;
    };
    assert_eq!(refused, InternFault::NoSpace);
    assert_eq!(presence.users(), made);
    // Those who are known are served as before.
    assert_eq!(presence.intern(user("user-0")), Ok(Slot::new(0)));
    let last = Slot::new(made - 1);
    assert_eq!(
        presence.record_beat(last, at(1).unix, at(1)),
        BeatOutcome::StoredOffline
    );
    assert_eq!(
        sweep(&presence, 1, false),
        [Transition {
            slot: last,
            status: Status::Online,
            first: true
        }]
    );
    assert_eq!(presence.intern(user("one more")), Err(InternFault::NoSpace));
    for name in FILES {
        assert!(fs::metadata(dir.join(name)).expect("as set up").len() <= 2 << 20);
    }
    setrlimit(
        Resource::Fsize,
        Rlimit {
            current: maximum,
            maximum,
        },
    )
    .expect("as set up");
    assert_eq!(presence.intern(user("room again")), Ok(Slot::new(made)));
    assert_eq!(presence.lookup(user("room again")), Some(Slot::new(made)));
}
