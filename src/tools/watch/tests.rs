use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::*;
use crate::tools::endpoint::{Port, Said};

fn at(text: &str) -> Endpoint {
    Endpoint::parse(text, Port::Http, Said::Flag).unwrap()
}

#[test]
fn waits_double_and_are_jittered() {
    assert_eq!(wait_ms(1_000, 0, 0.5), 1_000);
    assert_eq!(wait_ms(1_000, 1, 0.0), 750);
    assert_eq!(wait_ms(1_000, 3, 0.5), 4_000);
    assert_eq!(wait_ms(1_000, u32::MAX, 0.5), BACKOFF_MAX_MS);
    // What the server asks for is never cut short.
    assert_eq!(wait_ms(120_000, 5, 0.5), 120_000);
    assert!(wait_ms(u64::MAX, 2, 0.0) > BACKOFF_MAX_MS);
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";

fn accept(listener: &TcpListener) -> (TcpStream, String) {
    let (mut conn, _) = listener.accept().unwrap();
    let mut request = Vec::new();
    let mut chunk = [0; 1_024];
    while !request.ends_with(b"}") {
        let n = conn.read(&mut chunk).unwrap();
        assert_ne!(n, 0);
        request.extend_from_slice(&chunk[..n]);
    }
    (conn, String::from_utf8(request).unwrap())
}

fn event(kind: &str, id: &str, data: &str) -> String {
    format!("event: {kind}\nid: {id}\ndata: {data}\n\n")
}

fn watcher<'a>(
    options: &'a Options,
    clock: &'a Clock,
    stop: &'a AtomicBool,
) -> Watcher<'a, Vec<u8>> {
    Watcher {
        options,
        clock,
        stop,
        screen: Screen {
            table: false,
            out: Vec::new(),
            drawn: 0,
        },
        view: View::new(&options.users),
        server_ahead_ms: 0,
        silence_max_ms: SILENCE_MAX_MS,
        heard: clock.now().mono,
        last_id: String::new(),
    }
}

#[test]
fn hello_says_how_long_a_stream_may_be_silent() {
    let options = Options {
        users: Vec::new(),
        user: None,
        token_file: None,
        http: at("127.0.0.1:1"),
    };
    let (clock, stop) = (Clock::new(), AtomicBool::new(false));
    let mut watcher = watcher(&options, &clock, &stop);
    for (keep_alive_ms, silence_max_ms) in [(60_000, 75_000), (u64::MAX, u64::MAX)] {
        let hello = Event {
            event: "hello".into(),
            data: format!(
                r#"{{"server_time":9,"offline_after_ms":2,"keep_alive_ms":{keep_alive_ms}}}"#
            ),
            id: String::new(),
        };
        watcher.take(&hello, &mut Vec::new(), &mut None);
        assert_eq!(watcher.silence_max_ms, silence_max_ms);
    }
}

/// A server that says goodbye, then refuses, then resumes; and what the client printed meanwhile.
#[test]
fn follows_over_disconnects() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let options = Options {
        users: vec!["bob".into()],
        user: Some("me".into()),
        token_file: None,
        http: at(&listener.local_addr().unwrap().to_string()),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let stop_too = Arc::clone(&stop);
    let server = std::thread::spawn(move || {
        let bob = |status, since| {
            let online = status == "online";
            format!(
                "{{\"user\":\"bob\",\"status\":\"{status}\",\"online\":{online},\
                 \"since\":{since},\"last_active\":5}}"
            )
        };
        let (mut conn, first) = accept(&listener);
        assert!(
            first.starts_with("POST /v1/stream HTTP/1.0\r\n") && !first.contains("Last-Event-ID"),
            "{first}"
        );
        assert!(
            first.ends_with("\r\n\r\n{\"user\":\"me\",\"watch\":[\"bob\"]}"),
            "{first}"
        );
        let snapshot = |record: String| format!(r#"{{"presence":[{record}]}}"#);
        let hello = "event: hello\nretry: 1\ndata: \
                     {\"server_time\":9,\"offline_after_ms\":2,\"keep_alive_ms\":15000}\n\n";
        // Torn inside an event.
        let told = format!(
            "{OK}{hello}{}",
            event("snapshot", "7", &snapshot(bob("offline", 3)))
        );
        let (one, two) = told.split_at(told.len() - 9);
        conn.write_all(one.as_bytes()).unwrap();
        conn.write_all(two.as_bytes()).unwrap();
        conn.write_all(event("goodbye", "8", r#"{"reason":"draining"}"#).as_bytes())
            .unwrap();
        drop(conn);

        let (mut conn, second) = accept(&listener);
        assert!(second.contains("\r\nLast-Event-ID: 8\r\n"), "{second}");
        conn.write_all(b"HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        drop(conn);

        let (mut conn, third) = accept(&listener);
        assert!(third.contains("\r\nLast-Event-ID: 8\r\n"), "{third}");
        // The same state again is no change; an unknown kind is ignored.
        let again =
            event("snapshot", "9", &snapshot(bob("offline", 3))) + &event("weather", "9", "{}");
        conn.write_all(
            format!("{OK}{again}{}", event("presence", "10", &bob("online", 10))).as_bytes(),
        )
        .unwrap();
        // Read to the client's end, which comes when it has been told to stop.
        std::thread::sleep(Duration::from_millis(300));
        stop_too.store(true, Ordering::Relaxed);
        let _ = conn.read(&mut [0; 1]);
    });
    let clock = Clock::new();
    let mut watcher = watcher(&options, &clock, &stop);
    assert!(watcher.follow().is_ok());
    server.join().unwrap();
    let printed = String::from_utf8(watcher.screen.out).unwrap();
    let expected = [
        r#"{"user":"bob","status":"offline","online":false,"since":3,"last_active":5}"#,
        r#"{"user":"bob","status":"online","online":true,"since":10,"last_active":5}"#,
    ];
    assert_eq!(printed.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn the_table_is_redrawn_in_place() {
    let mut view = View::new(&["bob".into(), "carol".into()]);
    let mut screen = Screen {
        table: true,
        out: Vec::new(),
        drawn: 0,
    };
    screen.show(&view, &[], 0).unwrap();
    let first = String::from_utf8(std::mem::take(&mut screen.out)).unwrap();
    assert!(!first.contains("\x1b[J"));
    view.apply(&Record {
        user: "bob".into(),
        status: "online".into(),
        online: true,
        since: Some(0),
        last_active: Some(0),
        stale: false,
    });
    screen.show(&view, &[], 0).unwrap();
    let second = String::from_utf8(std::mem::take(&mut screen.out)).unwrap();
    assert!(second.starts_with("\x1b[2A\x1b[J"), "{second:?}");
    screen.notice("gone").unwrap();
    assert_eq!(screen.drawn, 0);
}

/// A server that falls silent, and answers nobody for a while: its relay holds the sockets open.
#[test]
fn silence_makes_every_state_stale_and_the_next_stream_makes_it_right() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let options = Options {
        users: vec!["bob".into()],
        user: None,
        token_file: None,
        http: at(&listener.local_addr().unwrap().to_string()),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let stop_too = Arc::clone(&stop);
    let server = std::thread::spawn(move || {
        let hello = "event: hello\nretry: 1\ndata: \
                     {\"server_time\":9,\"offline_after_ms\":2,\"keep_alive_ms\":400}\n\n";
        let bob = r#"{"user":"bob","status":"online","online":true,"since":3,"last_active":5}"#;
        let snapshot = format!(r#"{{"presence":[{bob}]}}"#);
        let (mut silent, _) = accept(&listener);
        let told = format!("{OK}{hello}{}", event("snapshot", "7", &snapshot));
        silent.write_all(told.as_bytes()).unwrap();
        // Nobody is answered.
        let unanswered = accept(&listener);
        let (mut conn, request) = accept(&listener);
        assert!(request.contains("\r\nLast-Event-ID: 7\r\n"), "{request}");
        let rest = event("snapshot", "9", r#"{"presence":[]}"#);
        conn.write_all(format!("{OK}{hello}{rest}").as_bytes())
            .unwrap();
        std::thread::sleep(Duration::from_millis(300));
        stop_too.store(true, Ordering::Relaxed);
        let _ = conn.read(&mut [0; 1]);
        drop((silent, unanswered));
    });
    let clock = Clock::new();
    let mut watcher = watcher(&options, &clock, &stop);
    assert!(watcher.follow().is_ok());
    server.join().unwrap();
    let printed = String::from_utf8(watcher.screen.out).unwrap();
    let expected = [
        r#"{"user":"bob","status":"online","online":true,"since":3,"last_active":5}"#,
        r#"{"user":"bob","status":"online","online":true,"since":3,"last_active":5,"stale":true}"#,
        r#"{"user":"bob","status":"online","online":true,"since":3,"last_active":5}"#,
    ];
    assert_eq!(printed.lines().collect::<Vec<_>>(), expected);
}
