//! Users who are forgotten, on the real binary and its files.

use std::fs;

use serde_json::json;

use crate::harness::{FAST, Home, Record, Server, until};
use crate::http::Answer;

const GONE: &str = "who-was-never-here";

/// Whether any file of the folder holds these bytes.
fn holds(home: &Home, text: &str) -> bool {
    let files = fs::read_dir(home.data_dir()).expect("a folder");
    files
        .map(|file| file.expect("a file").path())
        .filter(|path| path.is_file())
        .map(|path| fs::read(path).expect("it can be read"))
        .any(|bytes| {
            bytes
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        })
}

/// Has a user erased.
pub(crate) fn erase(server: &Server, user: &str) -> Answer {
    let token = server.key().service_token();
    let mut conn = server.connect();
    let header = format!("Host: e2e\r\nAuthorization: Bearer {token}\r\n");
    conn.send(format!("DELETE /v1/presence/{user} HTTP/1.1\r\n{header}\r\n").as_bytes());
    conn.answer()
}

/// The id is gone from the index and the log at once: what a killed process leaves of the rest is
/// finished by the next start.
#[test]
fn a_server_that_is_killed_in_mid_forgetting_finishes_it_at_the_next_start() {
    let home = Home::new();
    let server = home.serve(FAST);
    server.post("/v1/beat", &json!({"users": [GONE, "ann"]}));
    assert_eq!(erase(&server, GONE).status, 204);
    server.kill();
    let server = home.serve(FAST);
    assert_eq!(server.record(GONE), Record::never_seen(GONE));
    assert_eq!(server.metrics().sum("greendot_users"), 1.0);
    // Its slot is somebody's again once the disk has no trace of its state: users.log has as many
    // slots as there ever were at once, and the next user none of that state.
    until("the slot is used again", || {
        let user = format!("user-{}", server.metrics().sum("greendot_users"));
        assert_eq!(
            server.post("/v1/beat", &json!({"users": [user]})).status,
            204
        );
        let record = server.record(&user);
        assert!(record.online);
        let log = fs::read(home.data_dir().join("users.log")).expect("it is there");
        // Another record of slot 0: length, slot, id.
        let again = [&[user.len() as u8, 0, 0, 0, 0][..], user.as_bytes()].concat();
        log.windows(again.len())
            .any(|part| part == again)
            .then_some(())
    });
    assert!(server.terminate().success());
}

#[test]
fn a_full_store_has_room_again_for_as_many_as_were_erased() {
    let home = Home::new();
    // Nobody falls silent meanwhile.
    let server = home.serve(&["--users-max=2", "--shards=2"]);
    let beat = |user: &str| server.post("/v1/beat", &json!({"users": [user]})).status;
    assert_eq!([beat(GONE), beat("ann"), beat("bob")], [204, 204, 200]);
    let mut watcher = server.stream(&format!("watch={GONE}&watch=bob"));
    watcher.begin();
    assert_eq!(erase(&server, GONE).status, 204);
    let told = watcher.presence();
    assert_eq!(told, Record::never_seen(GONE));
    until("bob has the slot", || (beat("bob") == 204).then_some(()));
    assert!(watcher.expect_presence("bob", true).since.is_some());
    assert_eq!(server.record(GONE), Record::never_seen(GONE));
    assert_eq!(beat("eve"), 200, "it is full again");
}

#[test]
fn an_erased_user_is_gone_from_the_files_after_a_compaction_and_all_others_are_there() {
    let home = Home::new();
    // Nobody falls silent before all have been seen.
    let unhurried = ["--beat-interval-ms=500", "--offline-after-ms=5000"];
    let server = home.serve(&unhurried);
    let mut users: Vec<String> = (0..100).map(|n| format!("user-number-{n}")).collect();
    users[7] = GONE.to_owned();
    assert_eq!(
        server.post("/v1/beat", &json!({ "users": users })).status,
        204
    );
    server.expect_metric("greendot_users_online", |online| online == 100.0);
    let (mut watcher, _) = server.watch(&[GONE.to_owned()]);
    let path = format!("/v1/presence/{GONE}");
    let mut conn = server.connect();
    conn.send(format!("DELETE {path} HTTP/1.1\r\nHost: e2e\r\n\r\n").as_bytes());
    assert_eq!(conn.answer().status, 401);
    assert_eq!(erase(&server, GONE).status, 204);
    let told = watcher.presence();
    assert!(
        !told.online && told.since.is_none() && told.last_active.is_none(),
        "{told:?}"
    );
    until("the others have gone", || {
        (server.metrics().sum("greendot_users_online") == 0.0).then_some(())
    });
    let before: Vec<_> = users.iter().map(|user| server.record(user)).collect();
    assert_eq!(server.metrics().sum("greendot_users"), 99.0);
    assert!(server.terminate().success());

    let data = home.data_dir();
    let tool = |what: &str| {
        let dir = format!("--data-dir={}", data.display());
        let output = home.run(&["store", what, &dir]);
        assert!(output.status.success(), "{what}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    assert!(holds(&home, GONE), "its record is in users.log until then");
    assert!(tool("inspect").contains("bytes of nobody"));
    tool("verify");
    // What else an operator keeps there.
    let kept = data.join("kept/deeper");
    std::fs::create_dir_all(&kept).expect("a folder");
    std::fs::write(kept.join("note"), "by hand").expect("a file");
    std::os::unix::fs::symlink("deeper/note", data.join("kept/link")).expect("a link");
    let exported = tool("export");
    assert_eq!(exported.lines().count(), 99);
    assert!(!exported.contains(GONE));
    tool("compact");
    assert!(!holds(&home, GONE), "grep finds the id");
    let linked = data.join("kept/link");
    assert_eq!(std::fs::read(&linked).expect("it is there"), b"by hand");
    assert!(linked.is_symlink());
    assert_eq!(tool("export").lines().count(), 99);
    assert!(tool("inspect").contains("closed cleanly       yes"));

    let server = home.serve(FAST);
    for (user, before) in users.iter().zip(&before) {
        assert_eq!(server.record(user), *before, "{user}");
    }
}
