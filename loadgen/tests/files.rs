//! Where results go: what can not be written is said before the run, and what is written is read by
//! others.

#![expect(clippy::unwrap_used, reason = "a test's unwrap is an assertion")]

use std::path::Path;
use std::process::{Command, Output};

fn loadgen(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_greendot-loadgen"));
    command
        .env_remove("GREENDOT_URL")
        .env_remove("GREENDOT_BEAT_TO");
    command.args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_missing_folder_is_told_before_the_run() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let http = server.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing/x").display().to_string();
    for flag in ["--json", "--report", "--hgrm"] {
        let run = ["query", "--rate", "10", "--http", &http, flag, &missing];
        let output = loadgen(&run);
        assert_eq!(output.status.code(), Some(2), "{flag}");
        let begins = format!("greendot-loadgen: {flag} {missing}: ");
        assert!(said(&output).starts_with(&begins), "{}", said(&output));
        let asked = server.accept().map(|_| ()).map_err(|fault| fault.kind());
        assert_eq!(
            asked,
            Err(std::io::ErrorKind::WouldBlock),
            "{flag}: nobody was loaded"
        );
    }
    // What was tried is not left behind.
    let json = folder.path().join("x.json").display().to_string();
    let refused = loadgen(&["plan", "--costs", "nowhere", "--json", &json]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(!Path::new(&json).exists());
}

#[test]
fn a_server_that_is_not_there_is_named() {
    // Nobody listens there. One that was free a moment ago may be another test's by now.
    let http = "127.0.0.1:1";
    let output = loadgen(&["query", "--http", http]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said(&output).contains(&format!("greendot-loadgen: {http} (--http): ")),
        "{}",
        said(&output)
    );
}
