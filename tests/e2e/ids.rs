//! User ids at their bounds: every door takes and refuses the same ones, and means the same user.

use serde_json::json;

use greendot::time::Unix;
use greendot::wire::beat::FleetKey;

use crate::harness::{Home, Record, Server, unix_ms};

/// Every byte escaped, so that nothing but the id itself is tried.
fn escaped(id: &[u8]) -> String {
    id.iter().map(|byte| format!("%{byte:02X}")).collect()
}

/// A datagram with one entry that nobody has checked.
fn datagram(key: &FleetKey, id: &[u8]) -> Vec<u8> {
    let mut writer = greendot::wire::beat::Writer::new(false, Unix::from_ms(unix_ms()), key);
    // A legal entry of the same length, whose bytes are replaced before the MAC is made anew.
    let stand_in = "x".repeat(id.len().clamp(1, 128));
    assert!(writer.push(greendot::wire::User::parse(stand_in.as_bytes()).expect("legal")));
    let sealed = writer.seal(key);
    let mut bytes = sealed[..16].to_vec();
    bytes.push(u8::try_from(id.len()).expect("the length is a byte"));
    bytes.extend_from_slice(id);
    let hex = key.to_hex();
    let secret: Vec<u8> = (0..64)
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex"))
        .collect();
    let secret: [u8; 32] = secret.try_into().expect("64 digits");
    let mac = blake3::keyed_hash(&secret, &bytes);
    bytes.extend_from_slice(&mac.as_bytes()[..16]);
    bytes
}

#[test]
fn legal_ids_are_the_same_user_everywhere() {
    let home = Home::new();
    let server = home.serve(&[
        "--shards=2",
        "--beat-interval-ms=30s",
        "--offline-after-ms=60s",
    ]);
    let longest = "x".repeat(128);
    let longest_wide = "\u{1f7e2}".repeat(32);
    let ids = [
        "a",
        "0",
        &longest,
        &longest_wide,
        "b\u{f6}b",
        "a/b",
        "%2F",
        "%252F",
        "a+b",
        "a b",
        " ",
        "\"\\",
        "..",
        "query",
        "\u{a0}",
        "\u{7e}",
        "&=?#",
        "e\u{301}",
        "\u{e9}",
        "\u{feff}",
    ];
    let sender = server.sender();
    for (n, id) in ids.iter().enumerate() {
        match n % 3 {
            0 => sender.send(&datagram(&sender.key, id.as_bytes())),
            1 => assert_eq!(
                server.post("/v1/beat", &json!({"users": [id]})).status,
                204,
                "{id}"
            ),
            _ => drop(server.stream(&format!("user={}", escaped(id.as_bytes())))),
        }
        server.expect_metric("greendot_users", |users| users == n as f64 + 1.0);
    }
    server.expect_metric("greendot_users_online", |online| online == ids.len() as f64);
    let query: String = ids
        .iter()
        .map(|id| format!("watch={}&", escaped(id.as_bytes())))
        .collect();
    let (_, mut told) = server.stream(query.trim_end_matches('&')).begin();
    told.sort_by(|one, other| one.user.cmp(&other.user));
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    let named: Vec<&str> = told.iter().map(|record| record.user.as_str()).collect();
    assert_eq!(named, sorted);
    let listed = server
        .post("/v1/presence/query", &json!({"users": ids}))
        .json();
    for (n, id) in ids.iter().enumerate() {
        let by_path = server.record(&escaped(id.as_bytes()));
        assert_eq!((by_path.user.as_str(), by_path.online), (*id, true));
        let by_query = server
            .get(&format!("/v1/presence?user={}", escaped(id.as_bytes())))
            .json();
        assert_eq!(Record::of(&by_query["presence"][0]), by_path);
        assert_eq!(Record::of(&listed["presence"][n]), by_path);
        assert!(
            told.contains(&by_path)
                || told
                    .iter()
                    .any(|record| record.user == *id && record.online)
        );
    }
    // In a query a plus is a space, in a path it is a plus; and nothing is decoded twice.
    let first = |target: &str| Record::of(&server.get(target).json()["presence"][0]).user;
    assert_eq!(first("/v1/presence?user=a+b"), "a b");
    assert_eq!(server.record("a+b").user, "a+b");
    assert_eq!(server.record("%252F").user, "%2F");
}

/// What is no JSON text is refused whole, an item of a list by itself.
fn refused_by_json(server: &Server, body: &[u8], is_json: bool) {
    for target in ["/v1/beat", "/v1/leave", "/v1/presence/query"] {
        let answer = server.connect().post_bytes(target, body);
        if is_json {
            assert!(answer.status == 200, "{target}: {answer:?}");
            assert_eq!(answer.json()["refused_total"], 1, "{target}");
        } else {
            answer.expect_problem(400, "bad-json");
        }
    }
}

#[test]
fn illegal_ids_are_refused_everywhere_and_leave_nothing() {
    let home = Home::new();
    let server = home.serve(&["--shards=2"]);
    let too_long = "x".repeat(129);
    let too_wide = format!("{}\u{e9}", "x".repeat(127));
    let ids: [&[u8]; 14] = [
        b"",
        too_long.as_bytes(),
        too_wide.as_bytes(),
        b"\0",
        b"a\0b",
        b"\n",
        b"\x1f",
        b"\x7f",
        "\u{80}".as_bytes(),
        "a\u{9f}".as_bytes(),
        b"\xff",
        b"a\xc3",
        // Overlong, and half of a surrogate pair.
        b"\xc0\xaf",
        b"\xed\xa0\x80",
    ];
    let sender = server.sender();
    for (n, id) in ids.iter().enumerate() {
        let url = escaped(id);
        let listed = server.get(&format!("/v1/presence?user={url}")).json();
        assert_eq!(listed["refused_total"], 1, "{listed}");
        let mut stream = server.stream(&format!("watch={url}"));
        let hello = stream.expect("hello").data;
        assert_eq!(
            (&hello["watching"], &hello["refused_total"]),
            (&json!(0), &json!(1))
        );
        for target in [
            format!("/v1/presence/{url}"),
            format!("/v1/stream?user={url}"),
        ] {
            // Nothing behind the last slash is no path at all.
            let expected = if target == "/v1/presence/" {
                (404, "not-found")
            } else {
                (400, "bad-user")
            };
            server.get(&target).expect_problem(expected.0, expected.1);
        }
        // As JSON can say it: text escaped, bytes that are no text as they are.
        match std::str::from_utf8(id) {
            Ok(text) => {
                let body = json!({"users": [text]}).to_string();
                refused_by_json(&server, body.as_bytes(), true);
            }
            Err(_) => {
                let body = [b"{\"users\":[\"", *id, b"\"]}"].concat();
                refused_by_json(&server, &body, false);
            }
        }
        sender.send(&datagram(&sender.key, id));
        // An entry of no bytes is shorter than a datagram with one may be.
        let reason = if id.is_empty() { "short" } else { "entry" };
        let so_far = if id.is_empty() { 1.0 } else { n as f64 };
        let series = format!("greendot_datagrams_refused_total{{reason=\"{reason}\"}}");
        server.expect_metric(&series, |refused| refused == so_far);
    }
    refused_by_json(&server, br#"{"users":["\ud800"]}"#, true);
    assert_eq!(server.metrics().sum("greendot_users"), 0.0);
}

/// Whoever asks for ids that are nobody's costs nothing that lasts.
#[test]
fn asking_for_unknown_ids_leaves_nothing() {
    const ASKED: usize = 20_000;
    const PIPELINED: usize = 200;
    let home = Home::new();
    let server = home.serve(&["--shards=2"]);
    let log = home.data_dir().join("users.log");
    let before = std::fs::read(&log).expect("it is there");
    let mut conn = server.connect();
    for batch in 0..ASKED / PIPELINED {
        let requests: String = (0..PIPELINED)
            .map(|n| format!("GET /v1/presence/nobody-{batch}-{n} HTTP/1.1\r\nHost: e2e\r\n\r\n"))
            .collect();
        conn.send(requests.as_bytes());
        for n in 0..PIPELINED {
            let answer = conn.answer();
            assert_eq!(answer.status, 200);
            assert_eq!(
                Record::of(&answer.json()),
                Record::never_seen(&format!("nobody-{batch}-{n}"))
            );
        }
    }
    let names: Vec<String> = (0..5_000).map(|n| format!("nobody-{n}")).collect();
    let mut watcher = server.connect();
    let body = json!({"watch": names}).to_string();
    let head = format!(
        "POST /v1/stream HTTP/1.1\r\nHost: e2e\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    watcher.send((head + &body).as_bytes());
    let mut stream = crate::stream::Stream::answered(watcher);
    stream.expect("hello");
    let mut told = 0;
    while told < names.len() {
        told += crate::stream::records(&stream.expect("snapshot")).len();
    }
    server.expect_metric("greendot_watches{by=\"name\"}", |watches| {
        watches == 5_000.0
    });
    assert_eq!(
        server
            .post("/v1/leave", &json!({"users": ["nobody-1"]}))
            .status,
        204
    );
    assert_eq!(server.metrics().sum("greendot_users"), 0.0);
    assert!(
        std::fs::read(&log).expect("it is there") == before,
        "users.log has changed"
    );

    // And still, once one of them beats, whoever watches it is told.
    server.sender().beat(&["nobody-4321"]);
    stream.expect_presence("nobody-4321", true);
    drop(stream);
    server.expect_metric("greendot_watches", |watches| watches == 0.0);
    assert_eq!(server.metrics().sum("greendot_users"), 1.0);
}
