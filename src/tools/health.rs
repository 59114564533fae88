//! `greendot health`: does a node serve? For the health checks of containers, whose images have no
//! other program to ask with.

use std::time::Duration;

use super::agent::agent;
use super::endpoint::Endpoint;

/// A node that takes longer does not serve.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// What was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Where the node listens.
    pub http: Endpoint,
}

/// What the node says of itself if it serves: `ready`, or `degraded` and why.
///
/// Errors: nobody answers, or the node does not serve; in words.
pub fn run(options: &Options) -> Result<String, String> {
    let http = &options.http;
    let fault = |error: ureq::Error| format!("{http}: {error}");
    let url = format!("{}/readyz", http.base());
    let trust = http.trust()?;
    let mut answer = agent(TIMEOUT, trust.as_ref())
        .get(&url)
        .call()
        .map_err(fault)?;
    let status = answer.status().as_u16();
    let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX);
    let body = body.read_to_string().map_err(fault)?;
    match status {
        200 => Ok(body),
        _ => Err(format!("{http}: status {status}: {}", why(&body))),
    }
}

/// What a problem document says, if it is one.
fn why(body: &str) -> String {
    let problem = serde_json::from_str::<serde_json::Value>(body).ok();
    let detail = problem
        .as_ref()
        .and_then(|problem| problem["detail"].as_str());
    detail.unwrap_or("is that a greendot?").to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::tools::endpoint::{Port, Said};

    fn asked(head: &str, body: &str) -> Result<String, String> {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = format!("localhost:{}", server.local_addr().unwrap().port());
        let answer = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let answers = std::thread::spawn(move || {
            let (mut conn, _) = server.accept().unwrap();
            let mut bytes = [0; 1_024];
            let n = conn.read(&mut bytes).unwrap();
            conn.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&bytes[..n]).into_owned()
        });
        let http = Endpoint::parse(&to, Port::Http, Said::Flag).unwrap();
        let told = run(&Options { http }).map_err(|why| why.replace(&to, "localhost:1"));
        assert!(
            answers
                .join()
                .unwrap()
                .starts_with("GET /readyz HTTP/1.1\r\n")
        );
        told
    }

    #[test]
    fn what_a_node_says_is_told() {
        for (head, body, told) in [
            ("HTTP/1.1 200 OK", "ready\n", Ok("ready\n")),
            (
                "HTTP/1.1 503 Service Unavailable",
                "{\"type\":\"draining\",\"detail\":\"the server is shutting down\"}",
                Err("localhost:1 (--http): status 503: the server is shutting down"),
            ),
            (
                "HTTP/1.1 404 Not Found",
                "<html>",
                Err("localhost:1 (--http): status 404: is that a greendot?"),
            ),
            (
                "HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/",
                "",
                Err("localhost:1 (--http): status 301: is that a greendot?"),
            ),
        ] {
            let told = told.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(asked(head, body), told);
        }
    }
}
