//! Who is online: streams that open and close, what their watchers are told, and what anybody reads
//! meanwhile.

use serde_json::json;

use crate::harness::{BEAT_INTERVAL_MS, FAST, Home, OFFLINE_AFTER_MS, Record, pause};

#[test]
fn a_stream_holds_its_publisher_online() {
    let home = Home::new();
    let server = home.serve(FAST);
    let mut alice = server.stream("user=alice&watch=bob");
    let (hello, snapshot) = alice.begin();
    assert_eq!(hello["watching"], 1);
    assert_eq!(hello["beat_interval_ms"], BEAT_INTERVAL_MS);
    assert_eq!(hello["offline_after_ms"], OFFLINE_AFTER_MS);
    assert_eq!(hello["keep_alive_ms"], 15_000);
    assert_eq!(snapshot, [Record::never_seen("bob")]);
    assert_eq!(server.record("bob"), Record::never_seen("bob"));
    server.expect_online("alice");

    let mut bob = server.stream("user=bob");
    assert_eq!(bob.begin().1, []);
    let told = alice.expect_presence("bob", true);
    let read = server.record("bob");
    assert_eq!((read.online, read.since), (true, told.since));
    // The beat that brought him online, or a later one.
    assert!(
        read.last_active() >= told.last_active(),
        "{read:?} after {told:?}"
    );

    // The open stream beats for him, and nobody hears of it.
    alice.expect_quiet(OFFLINE_AFTER_MS + 2 * BEAT_INTERVAL_MS);
    let later = server.record("bob");
    assert_eq!((later.online, later.since), (true, told.since));
    assert!(
        later.last_active() >= read.last_active() + OFFLINE_AFTER_MS,
        "{later:?}"
    );

    drop(bob);
    let gone = alice.expect_presence("bob", false);
    server.check_silence(&gone);
    assert!(gone.last_active() >= later.last_active());
    assert_eq!(server.record("bob"), gone);
    assert!(server.record("alice").online, "she still has hers");
    alice.expect_quiet(300);
}

#[test]
fn who_comes_back_in_time_was_never_gone() {
    let home = Home::new();
    let server = home.serve(FAST);
    let mut alice = server.stream("watch=bob");
    alice.begin();
    let bob = server.stream("user=bob");
    let online = alice.expect_presence("bob", true);
    drop(bob);
    pause(100);
    let mut again = server.stream("user=bob");
    again.begin();
    alice.expect_quiet(OFFLINE_AFTER_MS + 1_000);
    assert_eq!(server.record("bob").since, online.since);
}

#[test]
fn the_last_of_two_streams_counts() {
    let home = Home::new();
    let server = home.serve(FAST);
    let mut alice = server.stream("watch=bob");
    alice.begin();
    let (phone, laptop) = (server.stream("user=bob"), server.stream("user=bob"));
    alice.expect_presence("bob", true);
    drop(phone);
    alice.expect_quiet(OFFLINE_AFTER_MS + 1_000);
    drop(laptop);
    server.check_silence(&alice.expect_presence("bob", false));
}

#[test]
fn beats_and_goodbyes_over_http() {
    let home = Home::new();
    let server = home.serve(FAST);
    let mut alice = server.stream("watch=bob&watch=carol");
    alice.begin();
    let mut conn = server.connect();
    assert_eq!(
        conn.post("/v1/beat", &json!({"users": ["bob", "carol"]}))
            .status,
        204
    );
    let mut told = [alice.presence(), alice.presence()];
    told.sort_by(|one, other| one.user.cmp(&other.user));
    assert!(told[0].user == "bob" && told[1].user == "carol" && told[0].online && told[1].online);

    assert_eq!(
        conn.post("/v1/leave", &json!({"users": ["carol", "nobody"]}))
            .status,
        204
    );
    let left = alice.expect_presence("carol", false);
    assert!(left.last_active() >= told[1].last_active());
    // Bob said nothing, so silence must tell.
    let silent = alice.expect_presence("bob", false);
    server.check_silence(&silent);
    assert_eq!(
        conn.get("/v1/presence/nobody").json(),
        json!({
            "user": "nobody", "status": "offline", "online": false, "since": null,
            "last_active": null
        })
    );

    let both = conn
        .get("/v1/presence?user=carol&user=bob&user=dave")
        .json();
    let posted = conn
        .post(
            "/v1/presence/query",
            &json!({"users": ["carol", "bob", "dave"]}),
        )
        .json();
    assert_eq!(both, posted);
    let records: Vec<_> = both["presence"]
        .as_array()
        .expect("a list")
        .iter()
        .map(Record::of)
        .collect();
    assert_eq!(records, [left, silent, Record::never_seen("dave")]);
}

#[test]
fn a_resumed_stream_is_told_what_changed_and_no_more() {
    let home = Home::new();
    let server = home.serve(FAST);
    server.sender().beat(&["bob"]);
    let id = server.stream("watch=bob").begin().0["server_time"]
        .as_u64()
        .expect("a time");
    server.expect_metric("greendot_transitions_total{to=\"offline\"}", |gone| {
        gone == 1.0
    });
    let all = || server.stream("watch=bob&watch=carol").begin().1;
    assert_eq!(all(), [server.record("bob"), Record::never_seen("carol")]);
    let resumed = |query: &str| {
        server
            .stream(&format!("watch=bob&watch=carol&last_event_id={query}"))
            .begin()
            .1
    };
    assert_eq!(
        resumed(&id.to_string()),
        [server.record("bob")],
        "carol has not changed"
    );
    assert_eq!(resumed("1").len(), 2, "before the folder existed");
    assert_eq!(
        resumed(&(id + 3_600_000).to_string()).len(),
        2,
        "from the future"
    );
    assert_eq!(resumed("bob").len(), 2, "no time at all");
    server.expect_metric("greendot_resumes_total{kind=\"partial\"}", |resumes| {
        resumes == 1.0
    });
    server.expect_metric("greendot_resumes_total{kind=\"full\"}", |resumes| {
        resumes == 3.0
    });

    // The header is newer than the query, which an EventSource repeats.
    let mut conn = server.connect();
    let request = format!(
        "GET /v1/stream?watch=carol&last_event_id=1 HTTP/1.1\r\nHost: e2e\r\nLast-Event-ID: \
         {id}\r\n\r\n"
    );
    conn.send(request.as_bytes());
    assert_eq!(crate::stream::Stream::answered(conn).begin().1, []);
}
