//! What a crowd costs once it has gone: nothing.

use std::collections::BTreeMap;
use std::io::Read;

use serde_json::json;

use crate::harness::{Deadline, Home, PATIENCE_MS, Server, until};
use crate::http::Conn;
use crate::store::contents;
use crate::stream::{Stream, records};

const STREAMS: usize = 100;
const WATCHES: usize = 10_000;
const ASKED: usize = 1_000_000;
const ASKED_AT_ONCE: usize = 1_000;
/// Requests for one id each that go out in one write.
const PIPELINED: usize = 64;
/// Where the cells of a map begin.
const FIRST_CELL: usize = 4_096;
/// What may be left of it, in KiB: buffers of the last few connections, and what the allocator
/// rounds.
const LEFT_KIB_MAX: u64 = 4_096;

/// Memory of the process that no file backs, in KiB.
fn anonymous_kib(server: &Server) -> u64 {
    let path = format!("/proc/{}/smaps_rollup", server.process.pid());
    let text = std::fs::read_to_string(path).expect("it runs");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Anonymous:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    number
        .and_then(|number| number.parse().ok())
        .expect("a number of kB")
}

/// A million ids by thousands.
fn ask(server: &Server, round: usize) {
    let mut conn = server.connect();
    for batch in 0..ASKED / ASKED_AT_ONCE {
        let ids: Vec<String> = (0..ASKED_AT_ONCE)
            .map(|n| format!("asked-{round}-{batch}-{n}"))
            .collect();
        let answer = conn.post("/v1/presence/query", &json!({ "users": ids }));
        assert_eq!(answer.status, 200);
        let offline = answer.text().matches("\"status\":\"offline\"").count();
        assert_eq!(offline, ASKED_AT_ONCE);
    }
}

/// A million others one by one, each with a GET of its own.
fn ask_alone(server: &Server, round: usize) {
    let id = |n: usize| format!("alone-{round}-{n:07}");
    let body = |id: &str| {
        format!(
            "{{\"user\":\"{id}\",\"status\":\"offline\",\"online\":false,\
             \"since\":null,\"last_active\":null}}"
        )
    };
    let request = |n| format!("GET /v1/presence/{} HTTP/1.1\r\nHost: e2e\r\n\r\n", id(n));
    let mut conn = server.connect();
    // All ids are of one length, and so are the answers.
    conn.send(request(0).as_bytes());
    let length = until("the first answer", || {
        conn.read(Deadline::in_ms(PATIENCE_MS));
        let whole = conn.buffer.ends_with(body(&id(0)).as_bytes());
        whole.then_some(conn.buffer.len())
    });
    let mut answers = vec![0; PIPELINED * length];
    for batch in 0..ASKED / PIPELINED {
        let numbers = batch * PIPELINED..(batch + 1) * PIPELINED;
        conn.send(numbers.clone().map(request).collect::<String>().as_bytes());
        conn.socket
            .read_exact(&mut answers)
            .expect("as many answers");
        for (n, answer) in numbers.zip(answers.chunks(length)) {
            assert!(
                answer.starts_with(b"HTTP/1.1 200 OK\r\n")
                    && answer.ends_with(body(&id(n)).as_bytes())
            );
        }
    }
}

/// The data folder but for the maps' headers, which say how far the disk is: sizes, ids, cells.
fn on_disk(home: &Home) -> BTreeMap<String, (usize, Vec<u8>)> {
    let cells = |name: &str, bytes: Vec<u8>| match name.ends_with(".map") {
        true => bytes[FIRST_CELL..].to_vec(),
        false => bytes,
    };
    let files = contents(&home.data_dir()).into_iter();
    files
        .map(|(name, bytes)| {
            let size = bytes.len();
            let rest = cells(&name, bytes);
            (name, (size, rest))
        })
        .collect()
}

fn watch(server: &Server, round: usize, stream: usize) -> Stream {
    let ids: Vec<String> = (0..WATCHES)
        .map(|n| format!("watched-{round}-{stream}-{n}"))
        .collect();
    let body = json!({ "watch": ids }).to_string();
    let mut conn: Conn = server.connect();
    let head = format!(
        "POST /v1/stream HTTP/1.1\r\nHost: e2e\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    conn.send((head + &body).as_bytes());
    let mut stream = Stream::answered(conn);
    stream.expect("hello");
    let mut told = 0;
    while told < WATCHES {
        told += records(&stream.expect("snapshot")).len();
    }
    stream
}

/// Returns the memory in KiB at its height.
fn crowd(server: &Server, round: usize) -> u64 {
    ask(server, round);
    ask_alone(server, round);
    let streams: Vec<Stream> = (0..STREAMS)
        .map(|stream| watch(server, round, stream))
        .collect();
    server.expect_metric("greendot_watches{by=\"name\"}", |watches| {
        watches == (STREAMS * WATCHES + 1) as f64
    });
    let height_kib = anonymous_kib(server);
    drop(streams);
    server.expect_metric("greendot_watches{by=\"name\"}", |watches| watches == 1.0);
    height_kib
}

/// Two million ids that never beat are asked about, half of them by a GET each, and a million
/// watched, of whom one stays watched.
#[test]
fn a_million_unknown_ids_leave_nothing() {
    let home = Home::new();
    let server = home.serve(&["--shards=2"]);
    let mut stays = server.stream("watch=nobody");
    stays.begin();
    let fresh_kib = anonymous_kib(&server);
    let before = on_disk(&home);
    assert_eq!(before.len(), 5);
    for round in 0..2 {
        let height_kib = crowd(&server, round);
        assert!(
            height_kib > fresh_kib + 8 * LEFT_KIB_MAX,
            "{fresh_kib} to {height_kib} KiB"
        );
        let what = format!("back to {fresh_kib} KiB from {height_kib}");
        until(&what, || {
            (anonymous_kib(&server) <= fresh_kib + LEFT_KIB_MAX).then_some(())
        });
    }
    assert_eq!(server.metrics().sum("greendot_users"), 0.0);
    assert!(on_disk(&home) == before, "something was written");
    server.sender().beat(&["nobody"]);
    stays.expect_presence("nobody", true);
}
