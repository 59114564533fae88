//! The eight steps of docs/ARCHITECTURE.md on the wire, byte for byte.

use greendot::time::Unix;
use greendot::wire::beat::{Keys, open};

use crate::harness::{Record, unix_ms, until};
use crate::http::Conn;
use crate::stream::{Stream, without_chunks};

use super::tap::{Datagram, Exchange, Manner};
use super::world::{Setup, Split};

const OFFLINE_AFTER_MS: u64 = 3_000;
/// Clocks of processes on one machine differ by rounding alone, but each is an anchor that may be
/// so much off, in ms.
const CLOCK_SLACK_MS: u64 = 1_000;

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

fn record_text(record: &Record) -> String {
    let status = if record.online { "online" } else { "offline" };
    let (user, since, last_active) = (&record.user, record.since(), record.last_active());
    let online = status == "online";
    format!(
        "{{\"user\":\"{user}\",\"status\":\"{status}\",\"online\":{online},\
         \"since\":{since},\"last_active\":{last_active}}}"
    )
}

/// The body of an answer that has a length, after its head was checked.
fn expect_record(exchange: &Exchange, body: &str) {
    let answer = exchange.answer.as_ref().expect("it was answered");
    assert_eq!(answer.line, "HTTP/1.1 200 OK");
    assert_eq!(answer.field("content-type"), Some("application/json"));
    assert_eq!(answer.body_text(), body);
}

/// What a client said and was told through a node's tap: the connection whose request begins so.
fn conversation(split: &Split<'_>, realtime: usize, start: &str) -> (String, String) {
    let all = split.realtime[realtime].http_tap().bytes();
    let mut found = all
        .iter()
        .filter(|(asked, _)| asked.starts_with(start.as_bytes()));
    let (asked, answered) = found.next().expect("it has asked");
    assert!(found.next().is_none(), "two ask {start}");
    (text(asked).to_owned(), without_chunks(text(answered)))
}

/// Step 5: a whole datagram that vouches for bob alone.
fn expect_beat_of_bob(split: &Split<'_>, datagram: &Datagram, not_before_ms: u64) -> u64 {
    let bytes = &datagram.bytes;
    assert_eq!(bytes.len(), 36, "{bytes:?}");
    // Magic, version, flags.
    assert_eq!(bytes[..4], [b'G', b'D', 1, 0]);
    assert_eq!(bytes[4..8], split.key.id().to_be_bytes());
    let sent_at = u64::from_be_bytes(bytes[8..16].try_into().expect("eight"));
    assert!((not_before_ms - CLOCK_SLACK_MS..=datagram.at_ms + CLOCK_SLACK_MS).contains(&sent_at));
    assert_eq!(bytes[16..20], *b"\x03bob");
    let key = blake3::Hash::from_hex(split.key.to_hex()).expect("it is hex");
    assert_eq!(
        bytes[20..],
        blake3::keyed_hash(key.as_bytes(), &bytes[..20]).as_bytes()[..16]
    );
    let keys = Keys::single(split.key.clone());
    let opened = open(bytes, &keys, Unix::from_ms(sent_at), 0).expect("any node takes it");
    assert!(!opened.flags.is_leave() && opened.sent_at == Unix::from_ms(sent_at));
    assert_eq!(
        opened.users().map(|user| user.as_str()).collect::<Vec<_>>(),
        ["bob"]
    );
    sent_at
}

/// Step 7: a PUT of what `told` says to each real-time node, taken by it. (One that was not
/// answered in time comes again as it was.)
fn expect_put(split: &Split<'_>, told: &Record) {
    for node in &split.realtime {
        let puts = until("the PUT", || {
            let mut puts = node.http_tap().exchanges("PUT ");
            puts.retain(|put| {
                put.request
                    .body_text()
                    .contains(&format!("\"since\":{}", told.since()))
            });
            (puts.first()?.answer.is_some()).then_some(puts)
        });
        let body = puts[0].request.body_text();
        assert!(
            puts.iter().all(|put| put.request.body_text() == body),
            "{puts:?}"
        );
        let record = Record::of(&serde_json::from_str(body).expect("JSON"));
        assert_eq!(body, record_text(&record));
        assert_eq!((record.online, record.since), (told.online, told.since));
        // A node tells no time that is later than its clock, which may be a little behind.
        let late_ms = record.last_active() - told.last_active();
        assert!(late_ms <= CLOCK_SLACK_MS, "{record:?} {told:?}");
        let request = &puts[0].request;
        assert_eq!(request.line, "PUT /v1/presence/bob HTTP/1.1");
        let bearer = format!("Bearer {}", split.key.service_token());
        assert_eq!(request.field("authorization"), Some(bearer.as_str()));
        assert_eq!(request.field("content-type"), Some("application/json"));
        assert_eq!(
            request.field("content-length"),
            Some(body.len().to_string().as_str())
        );
        let answer = puts[0].answer.as_ref().expect("waited for");
        assert_eq!(
            (answer.line.as_str(), answer.body.len()),
            ("HTTP/1.1 204 No Content", 0)
        );
    }
}

#[test]
fn the_eight_steps_on_the_wire() {
    let setup = Setup {
        flags: &[
            "--beat-interval-ms=500",
            "--offline-after-ms=3000",
            "--sweep-interval-ms=50",
            "--shards=1",
        ],
        presence_flags: &[],
        taps: Some(Manner::PLAIN),
    };
    Split::run(setup, |split| {
        let home = split.nodes.of(b"bob");
        let presence = &split.presence[home];
        let asks = |status: u16| {
            let answer = Conn::to(presence.front()).get("/v1/presence/bob");
            assert_eq!(answer.status, status);
            Record::of(&answer.json())
        };

        // To a link that has just come up a state may go in another form.
        for node in &split.realtime {
            node.expect_caught_up();
        }

        // 1 and 2: alice asks for bob's status, and nobody has ever seen him.
        assert_eq!(asks(200), Record::never_seen("bob"));
        let gets = presence
            .http_tap()
            .exchanges("GET /v1/presence/bob HTTP/1.1");
        expect_record(
            &gets[0],
            r#"{"user":"bob","status":"offline","online":false,"since":null,"last_active":null}"#,
        );

        // 3: she watches him. Her node knows nobody, asks the presence node, and tells her.
        let mut alice = Stream::open(Conn::to(split.realtime[0].front()), "/v1/stream?watch=bob");
        let hello = alice.expect("hello").data;
        let snapshot = alice.expect("snapshot").data;
        assert_eq!(snapshot["presence"][0]["status"], "unknown");
        assert_eq!(alice.presence(), Record::never_seen("bob"));
        let questions = presence
            .http_tap()
            .exchanges("POST /v1/presence/query HTTP/1.1");
        let question = questions
            .iter()
            .find(|asked| asked.request.body == br#"{"users":["bob"]}"#);
        let answer = question
            .expect("it was asked")
            .answer
            .as_ref()
            .expect("and answered");
        let unseen =
            r#"{"user":"bob","status":"offline","online":false,"since":null,"last_active":null}"#;
        assert_eq!(answer.body_text(), format!(r#"{{"presence":[{unseen}]}}"#));
        assert!(answer.field("greendot-node").is_some());
        let (asked, told) = conversation(split, 0, "GET /v1/stream");
        assert_eq!(
            asked,
            "GET /v1/stream?watch=bob HTTP/1.1\r\nHost: e2e\r\n\r\n"
        );
        let (head, events) = told.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        for field in [
            "Content-Type: text/event-stream; charset=utf-8",
            "Cache-Control: no-store, no-transform",
            "X-Accel-Buffering: no",
        ] {
            assert!(
                head.split("\r\n").any(|line| line == field),
                "{field} in {head}"
            );
        }
        let blocks: Vec<&str> = events.split_terminator("\n\n").collect();
        let lines: Vec<Vec<&str>> = blocks
            .iter()
            .map(|block| block.split('\n').collect())
            .collect();
        let number = |line: &str, name: &str| {
            let value = line
                .strip_prefix(name)
                .unwrap_or_else(|| panic!("{name} in {line}"));
            value.parse::<u64>().expect("a number")
        };
        let [greeting, first, second] = &lines[..] else {
            panic!("{events}")
        };
        assert_eq!((greeting.len(), greeting[0]), (3, "event: hello"));
        assert!(number(greeting[1], "retry: ") > 0);
        let greeted = greeting[2].strip_prefix("data: ").expect("data");
        let greeted: serde_json::Value = serde_json::from_str(greeted).expect("JSON");
        assert_eq!(greeted, hello);
        assert_eq!(
            (&greeted["watching"], &greeted["offline_after_ms"]),
            (&1.into(), &OFFLINE_AFTER_MS.into())
        );
        // Without an id: alice has not been told of bob.
        assert_eq!((first.len(), first[0]), (2, "event: snapshot"));
        let unknown = unseen.replace("offline", "unknown");
        assert_eq!(first[1], format!(r#"data: {{"presence":[{unknown}]}}"#));
        assert_eq!((second.len(), second[0]), (3, "event: presence"));
        number(second[1], "id: ");
        assert_eq!(second[2], format!("data: {unseen}"));
        assert!(events.ends_with("\n\n"), "{events}");

        // 4: bob comes online, at the other node.
        let opened_at = unix_ms();
        let bob = split.realtime[1].publish("bob");
        let (asked, told) = conversation(split, 1, "GET /v1/stream");
        assert_eq!(
            asked,
            "GET /v1/stream?user=bob HTTP/1.1\r\nHost: e2e\r\n\r\n"
        );
        assert!(told.starts_with("HTTP/1.1 200 OK\r\n"), "{told}");

        // 8, when 5 to 7 have happened: alice is told.
        let online = alice.expect_presence("bob", true);
        assert!(online.since() >= opened_at - CLOCK_SLACK_MS);
        let (_, told) = conversation(split, 0, "GET /v1/stream");
        let last = told.rsplit("\n\n").nth(1).expect("an event");
        let (id, data) = last
            .strip_prefix("event: presence\nid: ")
            .expect("its kind")
            .split_once('\n')
            .expect("lines");
        assert!(id.parse::<u64>().expect("a time") > 0);
        assert_eq!(data, format!("data: {}", record_text(&online)));

        // 5: at once, and again and again.
        let datagrams = until("beats go on", || {
            Some(presence.udp_tap().datagrams()).filter(|datagrams| datagrams.len() >= 4)
        });
        let mut sent_at = opened_at;
        for datagram in &datagrams {
            sent_at = expect_beat_of_bob(split, datagram, sent_at);
        }
        assert!(
            split.presence[1 - home].udp_tap().datagrams().is_empty(),
            "he belongs to one node"
        );

        // 6: he was not online recently, and then he is.
        let now = asks(200);
        assert!(
            now.online && now.since == online.since && now.last_active >= online.last_active,
            "{now:?}"
        );

        // 7: the platform is told, every node of it.
        expect_put(split, &online);

        // He leaves without a word: the beats end, and so does his presence, with the true time of
        // the last of them.
        drop(bob);
        let offline = alice.expect_presence("bob", false);
        assert!(
            offline.since() - offline.last_active() >= OFFLINE_AFTER_MS,
            "{offline:?}"
        );
        let beats = presence.udp_tap().datagrams();
        let last_beat = beats.last().expect("there were some");
        let true_time = last_beat.at_ms - CLOCK_SLACK_MS..=last_beat.at_ms + CLOCK_SLACK_MS;
        assert!(
            true_time.contains(&offline.last_active()),
            "{offline:?} after {last_beat:?}"
        );
        expect_put(split, &offline);
        assert_eq!(asks(200), offline);
        let gets = presence
            .http_tap()
            .exchanges("GET /v1/presence/bob HTTP/1.1");
        expect_record(gets.last().expect("just asked"), &record_text(&offline));
        // The others say that there is nothing to tell.
        for node in &split.realtime {
            let puts = node.http_tap().exchanges("PUT ");
            let mut told: Vec<&str> = puts.iter().map(|put| put.request.body_text()).collect();
            told.retain(|body| *body != "{\"presence\":[]}");
            told.dedup();
            assert_eq!(told.len(), 2, "{told:?}");
        }
    });
}
