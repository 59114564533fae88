//! Who is connected, and who is online, as operators ask the real binary: by HTTP and by the tools.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::harness::{Home, Server, until};
use crate::operators::{made, write};
use crate::stream::Stream;

/// Opens a stream through a proxy, for a client there; gives its id too.
fn open(server: &Server, query: &str, client: &str, address: &str) -> (Stream, String) {
    let mut conn = server.connect();
    let head = format!(
        "GET /v1/stream?{query} HTTP/1.1\r\nHost: e2e\r\nUser-Agent: {client}\r\n\
         X-Forwarded-For: {address}\r\n\r\n"
    );
    conn.send(head.as_bytes());
    let mut stream = Stream::answered(conn);
    let hello = stream.expect("hello");
    let id = hello.data["stream"].as_str().expect("an id").to_owned();
    stream.expect("snapshot");
    (stream, id)
}

fn lines(text: &str) -> Vec<Value> {
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect()
}

/// What a tool prints; it must have done what it was asked.
fn printed(home: &Home, args: &[&str]) -> String {
    let output = home.run(args);
    let text = String::from_utf8(output.stdout).expect("text");
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {text}{why}");
    text
}

/// Why a tool has failed.
fn refused(home: &Home, args: &[&str]) -> String {
    let output = home.run(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8(output.stderr).expect("text")
}

#[test]
fn operators_see_who_is_connected_and_end_a_stream() {
    let home = Home::new();
    let (key, line) = made(&home, "ops", "admin");
    let (weak, weak_line) = made(&home, "weak", "metrics");
    write(&home, "services", &format!("{line}{weak_line}"));
    write(&home, "key", &key);
    write(&home, "weak", &weak);
    let server = home.serve(&[
        "--shards=2",
        "--service-keys=services",
        "--trusted-proxies=127.0.0.0/8",
    ]);
    let http = server.http.to_string();
    let (carol, carols) = open(&server, "user=carol&watch=x", "Firefox", "198.51.100.4");
    // The kernel spreads connections over the shards.
    let mut bobs: Vec<(Stream, String)> = Vec::new();
    let shard = |id: &str| id.split('.').next().map(str::to_owned);
    until("both shards hold one of bob's streams", || {
        bobs.push(open(&server, "user=bob", "e2e/1", "2001:db8:5::7"));
        let shards: BTreeSet<_> = bobs.iter().map(|(_, id)| shard(id)).collect();
        (shards.len() == 2).then_some(())
    });

    let listed = server.get("/v1/streams").json();
    let streams = listed["streams"].as_array().expect("streams");
    assert_eq!(
        (streams.len(), &listed["cursor"]),
        (bobs.len() + 1, &Value::Null)
    );
    let ids = |streams: &[Value]| -> BTreeSet<String> {
        let ids = streams.iter().map(|stream| stream["stream"].as_str());
        ids.flatten().map(str::to_owned).collect()
    };
    let of_bob: BTreeSet<String> = bobs.iter().map(|(_, id)| id.clone()).collect();
    let base = ["streams", "--http", &http];
    let list = printed(&home, &[&base[..], &["--user", "bob", "--json"]].concat());
    let his = lines(&list);
    assert_eq!(ids(&his), of_bob);
    for stream in &his {
        assert_eq!(stream["user"], "bob");
        assert_eq!(stream["address"], "2001:db8:5::/64");
        assert_eq!(stream["client"], "e2e/1");
    }
    let table = printed(&home, &base);
    let row = table.lines().find(|line| line.starts_with("carol "));
    let row = row.expect(&table);
    assert!(
        row.contains("198.51.100.4") && row.contains(&carols),
        "{row}"
    );
    assert!(row.ends_with(" Firefox"), "{row}");
    assert_eq!(table.lines().count(), bobs.len() + 2, "{table}");

    // To end one takes a key that may, and the log says whose it was.
    let end = |id: &str, more: &[&str]| {
        let args = [&base[..], &["end", id], more].concat();
        args.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let run =
        |args: &[String]| refused(&home, &args.iter().map(String::as_str).collect::<Vec<_>>());
    let why = run(&end(&carols, &[]));
    assert!(
        why.contains("name the file of one with --service-key"),
        "{why}"
    );
    let why = run(&end(&carols, &["--service-key=weak"]));
    assert!(why.contains("lacks the scope admin"), "{why}");
    let why = run(&end("0.0.0.00", &["--service-key=key"]));
    assert!(why.contains("status 404: no stream with this id"), "{why}");
    for (stream, id) in [&mut (carol, carols)]
        .into_iter()
        .chain(bobs.iter_mut().take(2))
    {
        let args = end(id, &["--service-key=key"]);
        printed(&home, &args.iter().map(String::as_str).collect::<Vec<_>>());
        let parting = stream.expect("goodbye");
        assert_eq!(parting.data["reason"], "ended");
        assert!(stream.rest().is_empty() && stream.is_whole());
        let (named, _) = id.rsplit_once('.').expect("a tag");
        server.expect_log(&format!(
            "audit: ended a stream service=\"ops\" stream={named}"
        ));
        assert!(
            !server.log().contains(id.as_str()),
            "the log has the whole id"
        );
        server
            .get(&format!("/v1/streams/{id}"))
            .expect_problem(404, "unknown-stream");
    }
    let log = server.log();
    assert!(
        !log.contains("198.51.100.4") && !log.contains("Firefox"),
        "{log}"
    );
    server.terminate();
}

#[test]
fn operators_see_who_is_online() {
    let home = Home::new();
    let server = home.serve(&[
        "--shards=2",
        "--new-users-per-second-max=0",
        "--new-users-per-conn-second-max=0",
    ]);
    let http = server.http.to_string();
    let crowd: Vec<String> = (0..2_500).map(|n| format!("crowd-{n:04}")).collect();
    let beat = |users: &[&str]| {
        let answer = server.post("/v1/beat", &serde_json::json!({ "users": users }));
        assert_eq!(answer.status, 204);
    };
    for batch in crowd.chunks(500) {
        beat(&batch.iter().map(String::as_str).collect::<Vec<_>>());
    }
    beat(&["bob", "bella"]);
    let hidden = serde_json::json!({ "user": "boris", "invisible": true });
    assert_eq!(server.post("/v1/status", &hidden).status, 200);
    let beaten = server.post("/v1/beat", &serde_json::json!({ "users": ["boris"] }));
    assert_eq!(beaten.status, 200, "who beats is told that it is invisible");
    let left = serde_json::json!({ "users": ["bella"] });
    assert_eq!(server.post("/v1/leave", &left).status, 204);

    let base = ["online", "--http", &http];
    let names = |args: &[&str]| -> Vec<String> {
        let text = printed(&home, &[&base[..], args].concat());
        let names = text
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        names.map(str::to_owned).collect()
    };
    assert_eq!(names(&["--prefix", "b"]), ["bob"]);
    assert_eq!(names(&["--prefix", "nobody"]), [""; 0]);
    let mut all = crowd.clone();
    all.insert(0, "bob".into());
    assert_eq!(names(&[]), all);
    let records = lines(&printed(
        &home,
        &[&base[..], &["--json", "--prefix", "bo"]].concat(),
    ));
    let [bob] = &records[..] else {
        panic!("{records:?}");
    };
    assert_eq!(
        (&bob["user"], &bob["status"]),
        (&"bob".into(), &"online".into())
    );

    let rates = printed(&home, &["top", "--json", "--count", "1", "--http", &http]);
    let [rates] = &lines(&rates)[..] else {
        panic!("{rates}");
    };
    assert_eq!(
        (&rates["users"], &rates["online"]),
        (&2_503.into(), &2_501.into())
    );
    assert_eq!(rates["shards"].as_array().map(Vec::len), Some(2));
    server.terminate();
}

#[test]
fn tools_say_where_operators_calls_are() {
    let home = Home::new();
    let server = home.serve(&["--admin=127.0.0.1:0", "--shards=1"]);
    let admin = server.admin.expect("it has one").to_string();
    let http = server.http.to_string();
    for (tool, what) in [("streams", "streams"), ("online", "users who are online")] {
        let why = refused(&home, &[tool, "--http", &http]);
        let expected = format!("status 404: no {what} are here: if the node has a listener");
        assert!(why.contains(&expected), "{why}");
        printed(&home, &[tool, "--http", &admin]);
    }
}
