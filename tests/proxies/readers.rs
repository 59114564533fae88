//! Libraries that read event streams, as their users do: hello, snapshot, a change, and a restart
//! of the server, after which each comes back.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;

use crate::harness::{Home, skipped};
use crate::process::{Lines, Process};

/// Where `tests/proxies/install` puts them.
fn installed() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target"),
        PathBuf::from,
    );
    target.join("readers")
}

/// A reader's process, and the events that it has dispatched.
struct Reader {
    _process: Process,
    events: Lines,
}

impl Reader {
    /// Starts a script; None: its library is not installed.
    fn start(home: &Home, script: &str, url: &str) -> Option<Reader> {
        let (program, language) = match script.ends_with(".py") {
            true => ("python3", "python"),
            false => ("node", "node"),
        };
        let root = installed();
        if !root.join(format!("{language}.installed")).exists() {
            skipped(&format!(
                "tests/proxies/install has not installed the {language} readers"
            ));
            return None;
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/proxies/readers");
        let script = folder.join(script);
        let mut command = home.program(program, &[script.to_str().expect("a plain path"), url]);
        command
            .env("PYTHONPATH", root.join("python"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("READERS", root.join("node"))
            .envs(std::env::var_os("HOME").map(|home| ("HOME", home)))
            .stderr(Stdio::inherit());
        let mut process = Process::start(&mut command);
        let events = Lines::of(process.take_stdout());
        Some(Reader {
            _process: process,
            events,
        })
    }

    /// The next event that is no ping; what it is called, and its data.
    fn next(&self) -> (String, Value) {
        loop {
            let line = self.events.next().expect("the reader goes on");
            let event: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
            let kind = event["event"].as_str().expect("its name").to_owned();
            if kind != "ping" {
                return (kind, event["data"].clone());
            }
        }
    }

    fn expect(&self, kind: &str) -> Value {
        let (found, data) = self.next();
        assert_eq!(found, kind, "{data}");
        data
    }
}

/// Events come as they are told, not with the next ping; and after a restart the reader is back,
/// with the id up to which it was told everything.
fn reads(script: &str) {
    let home = Home::new();
    let flags = ["--keep-alive-ms=10m", "--retry-ms=500", "--shards=1"];
    let server = home.serve(&flags);
    let url = format!("http://{}/v1/stream?user=alice&watch=bob", server.http);
    let Some(reader) = Reader::start(&home, script, &url) else {
        return;
    };
    assert_eq!(reader.expect("hello")["watching"], 1);
    assert_eq!(
        reader.expect("snapshot")["presence"][0]["status"],
        "offline"
    );
    server.sender().beat(&["bob"]);
    assert_eq!(reader.expect("presence")["status"], "online");
    server.sender().leave(&["bob"]);
    assert_eq!(reader.expect("presence")["status"], "offline");
    server.kill();

    let server = home.serve(&flags);
    assert_eq!(reader.expect("hello")["watching"], 1);
    let snapshot = reader.expect("snapshot");
    assert!(snapshot["presence"].is_array(), "{snapshot}");
    let partial = "greendot_resumes_total{kind=\"partial\"}";
    server.expect_metric(partial, |resumes| resumes == 1.0);
    server.sender().beat(&["bob"]);
    assert_eq!(reader.expect("presence")["status"], "online");
}

#[test]
fn python_requests_with_sseclient_py() {
    reads("with_requests.py");
}

#[test]
fn python_httpx_sse() {
    reads("with_httpx_sse.py");
}

#[test]
fn npm_eventsource() {
    reads("with_eventsource.mjs");
}

#[test]
fn npm_event_source_polyfill() {
    reads("with_polyfill.mjs");
}

#[test]
fn npm_eventsource_parser() {
    reads("with_parser.mjs");
}
