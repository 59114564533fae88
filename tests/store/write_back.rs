//! The write-back: what it writes, how fast, and what it leaves alone.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use greendot::presence::WriteBack;
use greendot::store::{FileLoss, Loss, LossOf, StoreFaultKind};

use crate::{assert_refused, at, beat, dirtied_bytes, open, sweep};

#[test]
fn only_what_may_have_changed_is_written_back() {
    const CHUNK_BYTES: u64 = 32 << 10;
    let dir = tempfile::tempdir().unwrap();
    let presence = Arc::new(open(dir.path(), 1, 0).0);
    let ann = beat(&presence, "ann", 0);
    sweep(&presence, 0, false);
    let mut writer = presence.write_back(1 << 20);
    // Bytes of the log, of the stamps, of the published cells; then the rest of the second.
    let mut cycle = |ms: u64| {
        let [log, stamps, published, headers] =
            [0, 1, 2, 3].map(|n| writer.slice(at(ms + n)).unwrap());
        assert_eq!(
            (headers.bytes, headers.cycle_ms, headers.pause_ms),
            (0, Some(3), 997)
        );
        [log.bytes, stamps.bytes, published.bytes]
    };
    assert_eq!(cycle(0), [12, CHUNK_BYTES, CHUNK_BYTES]);
    // Ann is online: she may have beaten.
    assert_eq!(cycle(1_000), [0, CHUNK_BYTES, 0]);
    presence.record_leave(ann, at(2_000).unix, at(2_000));
    sweep(&presence, 2_000, false);
    assert_eq!(cycle(3_000), [0, CHUNK_BYTES, CHUNK_BYTES]);
    assert_eq!(
        cycle(4_000),
        [0, 0, 0],
        "a store that sleeps writes nothing"
    );
    beat(&presence, "ann", 5_000);
    let reports = [0, 1].map(|n| writer.slice(at(5_000 + n)).unwrap());
    assert_eq!(
        (reports[1].bytes, reports[1].pause_ms),
        (CHUNK_BYTES, 31),
        "32 KiB at 1 MiB a second"
    );
    presence.close(at(6_000)).unwrap();
    assert_eq!(writer.slice(at(6_000)).unwrap().bytes, 0);
    drop((writer, presence));
    assert!(
        open(dir.path(), 1, 7_000).1.clean,
        "the closed store's write-back kept its hands off"
    );
}

/// Also one of less than a slice's usual size.
#[test]
fn a_small_budget_is_kept() {
    const CHUNK_BYTES: u64 = 32 << 10;
    let dir = tempfile::tempdir().unwrap();
    let presence = Arc::new(open(dir.path(), 1, 0).0);
    for n in 0..3 * 4_096 {
        beat(&presence, &n.to_string(), 0);
    }
    let told = |report: greendot::store::WriteBackReport| (report.bytes, report.pause_ms);
    // 9 bytes and an id of 1 to 5, for each user.
    let log_bytes = 9 * 12_288 + 10 + 90 * 2 + 900 * 3 + 9_000 * 4 + 2_288 * 5;
    let mut writer = presence.write_back(100_000);
    assert_eq!(told(writer.slice(at(0)).unwrap()), (100_000, 1_000));
    assert_eq!(
        told(writer.slice(at(0)).unwrap()),
        (log_bytes - 100_000, (log_bytes - 100_000) / 100)
    );
    drop(writer);
    let stamps = |bytes_per_second| {
        let mut writer = presence.write_back(bytes_per_second);
        writer.slice(at(0)).unwrap();
        told(writer.slice(at(0)).unwrap())
    };
    // The smallest that can be set; two chunks a second; all of what is left.
    assert_eq!(stamps(4_096), (CHUNK_BYTES, 8_000));
    assert_eq!(stamps(2 * CHUNK_BYTES), (2 * CHUNK_BYTES, 1_000));
    beat(&presence, "0", 1);
    assert_eq!(stamps(1 << 20), (CHUNK_BYTES, 31));
}

#[test]
fn a_cycle_is_as_long_as_its_bytes() {
    let mib = 1 << 20;
    assert_eq!(WriteBack::cycle_ms(0, 64 * mib), 1_000);
    assert_eq!(WriteBack::cycle_ms(1_000_000, 64 * mib), 1_000);
    assert_eq!(WriteBack::cycle_ms(1 << 24, 64 * mib), 4_000);
    assert_eq!(WriteBack::cycle_ms(1 << 24, mib), 256_000);
}

/// The end of a cycle leaves alone what has changed since its slice: that is the next cycle's.
#[test]
fn the_end_of_a_cycle_writes_no_cells() {
    let dir = tempfile::tempdir().unwrap();
    let presence = Arc::new(open(dir.path(), 1, 0).0);
    let mut writer = presence.write_back(u64::MAX);
    // Nobody else writes this disk's pages back in the same moment, three times in a row.
    let quiet = (0..3).any(|round| {
        let ms = round * 1_000;
        beat(&presence, "ann", ms);
        sweep(&presence, ms, false);
        writer.slice(at(ms)).unwrap();
        let stamps = writer.slice(at(ms)).unwrap();
        assert_eq!(stamps.bytes, 32 << 10);
        // The page is dirty again, and stays so.
        beat(&presence, "ann", ms + 1);
        writer.slice(at(ms)).unwrap();
        let end = writer.slice(at(ms)).unwrap();
        assert!(end.cycle_ms.is_some());
        let before = dirtied_bytes();
        beat(&presence, "ann", ms + 2);
        // The first cycle of a run writes all: the files' lengths.
        round > 0 && dirtied_bytes() == before
    });
    assert!(
        quiet,
        "each cycle ended with a write of what its slice had written"
    );
}

/// Within a second, however long a cycle takes.
#[test]
fn a_file_that_is_not_the_one_that_was_opened_is_noticed() {
    type Harm = fn(&Path);
    let cases: [(Harm, &str, FileLoss); 4] = [
        (
            |dir| fs::remove_file(dir.join("published.map")).unwrap(),
            "published.map",
            FileLoss::Removed,
        ),
        (
            |dir| fs::rename(dir, dir.with_extension("away")).unwrap(),
            "users.log",
            FileLoss::Removed,
        ),
        (
            |dir| {
                fs::rename(dir.join("stamps.map"), dir.join("kept")).unwrap();
                fs::copy(dir.join("kept"), dir.join("stamps.map")).unwrap();
            },
            "stamps.map",
            FileLoss::Replaced,
        ),
        (
            |dir| {
                let file = fs::File::options().write(true).open(dir.join("stamps.map"));
                file.unwrap().set_len(100).unwrap();
            },
            "stamps.map",
            FileLoss::Truncated,
        ),
    ];
    for (harm, file, how) in cases {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("data");
        let presence = Arc::new(open(&dir, 1, 0).0);
        beat(&presence, "ann", 0);
        let mut writer = presence.write_back(u64::MAX);
        while writer.slice(at(0)).unwrap().cycle_ms.is_none() {}
        harm(&dir);
        assert_eq!(writer.slice(at(999)).unwrap().loss, None);
        let loss = writer.slice(at(1_000)).unwrap().loss;
        assert_eq!(
            loss,
            Some(Loss {
                file,
                how,
                whose: LossOf::Store
            })
        );
    }
}

/// And tells nobody gone: what is read of a page that is not there says nothing of anybody.
#[test]
fn a_map_that_is_cut_short_under_a_running_server_flips_nobody() {
    const CHILD: &str = "GREENDOT_TEST_CUT_DIR";
    if let Some(dir) = std::env::var_os(CHILD) {
        return cut_short(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let name = "write_back::a_map_that_is_cut_short_under_a_running_server_flips_nobody";
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{said}");
    assert_refused(dir.path(), StoreFaultKind::Truncated, &["stamps.map"]);
}

/// In a process of its own: such a process has no faith in stamps any more.
fn cut_short(dir: &Path) {
    let presence = open(dir, 1, 0).0;
    let ann = beat(&presence, "ann", 0);
    beat(&presence, "bob", 0);
    assert_eq!(sweep(&presence, 0, false).len(), 2);
    let file = fs::File::options().write(true).open(dir.join("stamps.map"));
    let cut = file.and_then(|file| file.set_len(0));
    cut.expect("it can be cut");
    assert_eq!(sweep(&presence, 60_000, false), []);
    assert_eq!(beat(&presence, "ann", 60_000), ann);
    assert_eq!(sweep(&presence, 60_000, false), []);
    let state = presence.state(ann, at(60_000));
    assert_eq!(state.last_active, Some(at(60_000).unix));
    assert!(state.status.is_online());
}
