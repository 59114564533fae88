//! Urgent data (RFC 9293 section 3.8.5): a byte that stops a read short of what has come.

use rustix::process::Signal;
use socket2::SockRef;

use crate::harness::Home;

/// A read ends where an urgent byte stood, though more has come, and no edge tells of that.
#[test]
fn an_urgent_byte_hangs_nobody() {
    let home = Home::new();
    let server = home.serve(&["--shards=1"]);
    let mut conn = server.connect();
    assert_eq!(conn.get("/livez").status, 200);
    // All of it has come before the server reads any.
    server.process.stop();
    conn.send(b"GET /livez HTTP/1.1\r\nHo");
    SockRef::from(&conn.socket)
        .send_out_of_band(b"!")
        .expect("the socket takes it");
    conn.send(b"st: e2e\r\n\r\nGET /livez HTTP/1.1\r\nHost: e2e\r\n\r\n");
    server.process.signal(Signal::CONT);
    for _ in 0..2 {
        assert_eq!(conn.answer().status, 200);
    }
    // And from then on it is a connection like any other.
    assert_eq!(conn.get("/livez").status, 200);
}
