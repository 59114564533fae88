//! Streams over TLS.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use greendot_loadgen::exposition::Exposition;

use super::{Server, Turn, all_told, listening_with, run, value, words};

/// A server that speaks TLS, and where. None: there is no server, which has been said.
#[expect(clippy::unwrap_used, reason = "the helper of a test")]
fn server() -> Option<(Server, String)> {
    let files = tempfile::tempdir().unwrap();
    let names = vec!["127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let [cert, key] = ["tls.crt", "tls.key"].map(|name| files.path().join(name));
    fs::write(&cert, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let flags = [
        "--https=127.0.0.1:0".to_owned(),
        format!("--tls-cert={}", cert.display()),
        format!("--tls-key={}", key.display()),
    ];
    let (server, line) = listening_with(Turn::beside(), &flags.each_ref().map(String::as_str))?;
    let word = line.split(' ').find_map(|word| word.strip_prefix("https="));
    let https = word.unwrap().to_owned();
    // For those who are to believe it.
    fs::copy(&cert, server.folder.path().join("tls.crt")).unwrap();
    Some((server, https))
}

#[test]
fn streams_are_held_cut_and_told_over_tls() {
    let Some((server, https)) = server() else {
        return;
    };
    let authority = server.folder.path().join("tls.crt").display().to_string();
    for believes in [&[][..], &["--tls-ca", &authority]] {
        let run = |line: &str| {
            let to = ["--https", &https];
            run(&server, &[&words(line)[..], &to, believes].concat())
        };
        let report = run("streams --streams 200 --rate max --in-flight 20 --watch 3 --hold 300ms");
        assert_eq!(value(&report, "streams_held"), 200.0);
        let report = run("storm --streams 50 --rate 500 --watch 5 --hold 1s");
        assert_eq!(value(&report, "reconnects"), 50.0);
        let report = run("fanout --watchers 50 --transitions 10 --rate 10");
        all_told(&report, 500.0);
    }
    let metrics = Exposition::scrape(server.http.parse().unwrap()).unwrap();
    let full = metrics.sum("greendot_tls_handshakes_total", &["kind=\"full\""]);
    assert_eq!(full, 2.0 * (200.0 + 50.0 + 50.0 + 50.0));
}

#[test]
fn who_is_not_believed_and_what_is_not_asked_for() {
    let Some((server, https)) = server() else {
        return;
    };
    let fails = |flags: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_greendot-loadgen"))
            .args([
                "streams",
                "--streams",
                "2",
                "--rate",
                "100",
                "--hold",
                "100ms",
            ])
            .args(["--http", &server.http, "--udp", &server.udp])
            .args(flags)
            .output()
            .unwrap();
        let said = [out.stdout, out.stderr].concat();
        (
            out.status.code(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    };
    let other = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let path = server.folder.path().join("other.crt");
    fs::write(&path, other.cert.pem()).unwrap();
    let path = path.display().to_string();
    let (code, said) = fails(&["--https", &https, "--tls-ca", &path]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("streams were not held"), "{said}");
    for (flags, why) in [
        (&["--tls-ca", &path][..], "name that as well"),
        (
            &["--https", &https, "--tls-ca", "/dev/null"],
            "no certificate in it",
        ),
        (&["--https", &https, "--answer-pings"], "not with --https"),
    ] {
        let (code, said) = fails(flags);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(why), "{said}");
    }
}
