//! Pages of other origins, and names of other machines, against the real server's flags.

use crate::harness::{Home, Server};
use crate::http::Answer;

/// A beat for alice, as a page's script has it sent.
fn beat(server: &Server, host: &str, fields: &str) -> Answer {
    let body = "{\"users\":[\"alice\"]}";
    let mut conn = server.connect();
    conn.send(
        format!(
            "POST /v1/beat HTTP/1.1\r\nHost: {host}\r\n{fields}Content-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .as_bytes(),
    );
    conn.answer()
}

const EVIL: &str = "Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\n";
const LOCAL: &str = "Origin: http://localhost:3000\r\nSec-Fetch-Site: cross-site\r\n";
const APP: &str = "Origin: https://app.example\r\nSec-Fetch-Site: cross-site\r\n";

#[test]
fn on_loopback_the_pages_of_this_machine_are_listed_by_default_and_no_others() {
    let home = Home::new();
    let server = home.serve(&[]);
    beat(&server, "127.0.0.1", EVIL).expect_problem(403, "foreign-origin");
    beat(&server, "evil.example", "").expect_problem(421, "wrong-host");
    let page = beat(&server, "localhost", LOCAL);
    assert_eq!(page.status, 204);
    assert_eq!(
        page.field("access-control-allow-origin"),
        Some("http://localhost:3000")
    );
    assert_eq!(page.field("vary"), Some("Origin"));
    assert!(
        page.field("date")
            .is_some_and(|date| date.ends_with(" GMT"))
    );
}

#[test]
fn what_the_flags_list_is_all_that_is_listed() {
    let home = Home::new();
    let server = home.serve(&["--cors-origins=https://app.example", "--host=app.example"]);
    assert_eq!(beat(&server, "app.example", APP).status, 204);
    assert_eq!(beat(&server, "127.0.0.1", "").status, 204);
    beat(&server, "app.example", LOCAL).expect_problem(403, "foreign-origin");
    beat(&server, "www.app.example", APP).expect_problem(421, "wrong-host");
}
