//! A disk that stands still: what happens today, and what must not be lost whatever happens.
//!
//! The shards store into mapped pages of the folder, so they wait with the disk. The decision of
//! 2026-11-28 in docs/DECISIONS.md ends that; `waits` below then becomes an answer in time.

use rustix::process::Signal;
use serde_json::json;

use crate::disk::Disk;
use crate::harness::{Deadline, Home, skipped};
use crate::http::Got;

const FLAGS: &[&str] = &[
    "--beat-interval-ms=30s",
    "--offline-after-ms=60s",
    "--shards=1",
];
/// Far longer than an answer takes, in ms.
const FROZEN_MS: u64 = 1_500;

#[test]
fn a_beat_waits_for_a_frozen_disk_and_is_answered_at_the_thaw() {
    let home = Home::new();
    let Some(disk) = Disk::ext4(&home) else {
        return skipped("no ext4 can be made and mounted");
    };
    let server = disk.serve(&home, FLAGS);
    assert_eq!(
        server.post("/v1/beat", &json!({"users": ["bob"]})).status,
        204
    );
    server.expect_online("bob");
    let mut beats = server.connect();
    let Some(frozen) = disk.freeze(&home) else {
        return skipped("file systems cannot be frozen");
    };
    let body = json!({"users": ["bob"]}).to_string();
    let head = "POST /v1/beat HTTP/1.1\r\nHost: e2e\r\nContent-Type: application/json\r\n";
    beats.send(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
    let waits = beats.read(Deadline::in_ms(FROZEN_MS));
    drop(frozen);
    assert_eq!(waits, Got::Nothing);
    assert_eq!(beats.answer().status, 204);
    assert_eq!(
        server.post("/v1/beat", &json!({"users": ["ann"]})).status,
        204
    );
    server.expect_online("ann");
}

#[test]
fn kill_9_on_a_frozen_disk_loses_nothing_accepted() {
    let home = Home::new();
    let Some(disk) = Disk::ext4(&home) else {
        return skipped("no ext4 can be made and mounted");
    };
    let mut server = disk.serve(&home, FLAGS);
    assert_eq!(
        server.post("/v1/beat", &json!({"users": ["bob"]})).status,
        204
    );
    server.expect_online("bob");
    let told = server.record("bob");
    let Some(frozen) = disk.freeze(&home) else {
        return skipped("file systems cannot be frozen");
    };
    server.process.signal(Signal::KILL);
    // Where a thread waits for the disk the process ends with the thaw only.
    drop(frozen);
    server.process.kill();

    let server = disk.serve(&home, FLAGS);
    let after = server.record("bob");
    assert_eq!(
        (after.online, after.since, after.last_active),
        (true, told.since, told.last_active)
    );
}
