//! The binary's command line, as a person meets it: what is printed where, and the exit codes.

use std::path::Path;
use std::process::{Command, Output};

fn greendot(dir: &Path, args: &[&str], variables: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_greendot"));
    command.current_dir(dir).args(args).env_clear();
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .envs(variables.iter().copied())
        .output()
        .expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("it prints UTF-8");
    (
        status.code().expect("it exits by itself"),
        text(stdout),
        text(stderr),
    )
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder can be made")
}

#[test]
fn version_and_help() {
    let dir = folder();
    let version = format!("greendot {}\n", greendot::version::LINE);
    let begins = format!("greendot {} (", env!("CARGO_PKG_VERSION"));
    assert!(
        version.starts_with(&begins) && version.ends_with("-linux-gnu)\n"),
        "{version}"
    );
    assert_eq!(
        greendot(dir.path(), &["--version"], &[]),
        (0, version, String::new())
    );
    let (code, help, _) = greendot(dir.path(), &["--help"], &[]);
    assert_eq!(code, 0);
    for command in [
        "serve",
        "realtime",
        "presence",
        "watch",
        "beat",
        "config",
        "doctor",
        "key",
        "token",
        "top",
        "streams",
        "online",
        "fleet",
        "health",
        "completions",
        "man",
    ] {
        assert!(help.contains(&format!("\n  {command} ")), "{command}");
    }
}

#[test]
fn help_is_a_command_too() {
    let dir = folder();
    for (args, flag) in [
        (&["help"][..], &["--help"][..]),
        (&["help", "serve"], &["serve", "--help"]),
        (&["help", "watch"], &["watch", "--help"]),
    ] {
        let (code, help, error) = greendot(dir.path(), args, &[]);
        assert_eq!((code, error.as_str()), (0, ""), "{args:?}");
        assert_eq!(help, greendot(dir.path(), flag, &[]).1, "{args:?}");
    }
    let (code, _, error) = greendot(dir.path(), &["help", "wacth"], &[]);
    assert_eq!(code, 2);
    assert!(error.contains("wacth"), "{error}");
}

#[test]
fn errors_name_the_server_and_who_said_where_it_is() {
    let dir = folder();
    std::fs::write(dir.path().join("k"), "ab".repeat(32)).expect("the file can be written");
    // Nobody listens on the port of another protocol.
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").expect("ports are free");
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("ports are free");
    let (udp, http) = (
        free.local_addr().expect("it is bound").port(),
        taken.local_addr().expect("it is bound").port(),
    );
    let (beat_to, url) = (format!("localhost:{udp}"), format!("localhost:{http}"));
    let cases: [(&[&str], &str, &str); 9] = [
        (&["health", "--http", &url], "", " (--http): "),
        (&["health"], &url, " (GREENDOT_URL): "),
        (&["top", "--count=1", "--http", &url], "", " (--http): "),
        (&["top", "--count=1"], &url, " (GREENDOT_URL): "),
        (&["streams", "--http", &url], "", " (--http): "),
        (&["streams", "end", "x"], &url, " (GREENDOT_URL): "),
        (&["online"], &url, " (GREENDOT_URL): "),
        (
            &["beat", "bob", "--key-file=k", "--udp", &beat_to],
            "",
            " (--udp): ",
        ),
        (
            &["beat", "bob", "--key-file=k"],
            &beat_to,
            " (GREENDOT_BEAT_TO): ",
        ),
    ];
    for (args, variable, said) in cases {
        let (place, name) = match args[0] {
            "top" | "health" | "streams" | "online" => (&url, "GREENDOT_URL"),
            _ => (&beat_to, "GREENDOT_BEAT_TO"),
        };
        let (code, _, error) = greendot(dir.path(), args, &[(name, variable)]);
        assert_eq!(code, 1, "{args:?}: {error}");
        assert!(
            error.starts_with(&format!("greendot: {place}{said}")),
            "{args:?}: {error}"
        );
    }
    let (code, _, error) = greendot(dir.path(), &["watch", "bob", "--http", "localhost"], &[]);
    assert_eq!(code, 2);
    assert!(error.contains("--http <HOST:PORT>"), "{error}");
}

#[test]
fn config_tells_values_and_origins() {
    let dir = folder();
    std::fs::write(dir.path().join("g.toml"), "\nretry_ms = \"5s\"\n")
        .expect("the file can be written");
    let args = ["config", "--config", "g.toml", "--shards", "3"];
    let (code, out, err) = greendot(dir.path(), &args, &[("GREENDOT_DRAIN_MS", "1m")]);
    assert_eq!((code, err.as_str()), (0, ""));
    for (value, origin) in [
        ("retry_ms = 5000", "g.toml:2"),
        ("drain_ms = 60000", "GREENDOT_DRAIN_MS"),
        ("shards = 3", "--shards"),
    ] {
        let line = out.lines().find(|line| line.starts_with(value));
        assert!(
            line.is_some_and(|line| line.ends_with(&format!("# {origin}"))),
            "{value}: {line:?}"
        );
    }
}

#[test]
fn what_can_not_be_meant_ends_with_2_and_starts_nothing() {
    let dir = folder();
    let cases: [(&[&str], &str); 8] = [
        (
            &["realtime", "--key-file", "k"],
            "greendot: presence is not set, and a real-time node must know whom to vouch to; set \
             --presence udp://HOST:PORT,http://HOST:PORT",
        ),
        (
            &["presence", "--realtime", "http://127.0.0.1:9"],
            "greendot: key-file is not set, and the nodes of a split deployment prove themselves \
             with one key",
        ),
        (
            &[
                "realtime",
                "--presence",
                "udp://127.0.0.1:9,http://127.0.0.1:9",
            ],
            "greendot: key-file is not set, and the nodes of a split deployment prove themselves \
             with one key",
        ),
        (
            &["serve", "--realtime", "http://127.0.0.1:9"],
            "greendot: realtime is set, which only `greendot presence` uses",
        ),
        (
            &["serve", "--http", "0.0.0.0:0"],
            "greendot: http is 0.0.0.0:0, which other machines may reach",
        ),
        (
            &["--offline-after-ms", "1s"],
            "greendot: offline-after-ms (1000) is less than twice beat-interval-ms (10000)",
        ),
        (
            &["--ofline-after-ms", "1s"],
            "error: unexpected argument '--ofline-after-ms' found",
        ),
        (
            &["doctor", "--shards", "0"],
            "greendot: --shards: \"0\" is not a whole number from 1 to 256, nor auto",
        ),
    ];
    for (args, begins) in cases {
        let (code, out, err) = greendot(dir.path(), args, &[]);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
        assert!(err.starts_with(begins), "{args:?}: {err}");
    }
    let (code, _, err) = greendot(dir.path(), &["config"], &[("GREENDOT_SHARD", "2")]);
    assert_eq!(
        (code, err.as_str()),
        (
            2,
            "greendot: GREENDOT_SHARD: no such variable; did you mean GREENDOT_SHARDS?\n"
        )
    );
    assert_eq!(
        std::fs::read_dir(dir.path())
            .expect("the folder is there")
            .count(),
        0
    );
}

#[test]
fn keys_are_made_and_named() {
    let dir = folder();
    let (code, key, _) = greendot(dir.path(), &["key"], &[]);
    assert_eq!((code, key.len()), (0, 65));
    std::fs::write(dir.path().join("k"), &key).expect("the file can be written");
    let (code, ids, _) = greendot(dir.path(), &["key", "--id", "k"], &[]);
    assert!(
        code == 0 && ids.len() == "00000000 signs\n".len() && ids.ends_with(" signs\n"),
        "{ids}"
    );
    let new = ["key", "new", "--service", "app", "--scopes", "query,beat"];
    let (code, made, _) = greendot(dir.path(), &new, &[]);
    let lines: Vec<&str> = made.lines().collect();
    assert!(
        code == 0
            && lines[0].starts_with("gds_app_")
            && lines[1].starts_with("app beat,query blake3:"),
        "{made}"
    );
    let (code, _, err) = greendot(
        dir.path(),
        &["key", "new", "--service", "app", "--scopes", "all"],
        &[],
    );
    assert!(
        code == 2 && err.contains("scopes stand between commas"),
        "{err}"
    );
}

#[test]
fn a_client_without_its_server_says_so() {
    let dir = folder();
    let (code, _, err) = greendot(dir.path(), &["beat", "bob"], &[]);
    assert_eq!(code, 1);
    assert!(
        err.starts_with(
            "greendot: ./greendot-data/fleet.key: no such key file; `greendot serve` makes \
             fleet.key"
        ),
        "{err}"
    );
    // A port that was free a moment ago.
    let port = std::net::UdpSocket::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .expect("a port is free");
    std::fs::write(dir.path().join("k"), "ab".repeat(32)).expect("the file can be written");
    let (code, _, err) = greendot(
        dir.path(),
        &["beat", "bob", "--key-file", "k", "--udp", &port.to_string()],
        &[],
    );
    assert_eq!(
        (code, err),
        (
            1,
            format!(
                "greendot: {port} (--udp): nobody receives datagrams there; is `greendot serve` \
                 running?\n"
            )
        )
    );
}

#[test]
fn shells_and_man_read_what_is_printed() {
    let dir = folder();
    for (args, program, flags) in [
        (&["completions", "bash"][..], "bash", &["-n"][..]),
        (&["man", "serve"], "groff", &["-man", "-z", "-ww"]),
        (&["man"], "groff", &["-man", "-z", "-ww"]),
    ] {
        let (code, text, err) = greendot(dir.path(), args, &[]);
        assert_eq!((code, err.as_str()), (0, ""), "{args:?}");
        std::fs::write(dir.path().join("text"), &text).expect("the file can be written");
        let mut judge = Command::new(program);
        match judge
            .args(flags)
            .arg("text")
            .current_dir(dir.path())
            .output()
        {
            Ok(judged) => assert!(
                judged.status.success() && judged.stderr.is_empty(),
                "{args:?}: {judged:?}"
            ),
            Err(_) => println!("{program} is missing; {args:?} is not read"),
        }
    }
    let (code, out, err) = greendot(dir.path(), &["man", "serv"], &[]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(
        err.starts_with("greendot: serv is no command; there are serve, "),
        "{err}"
    );
    let (code, _, err) = greendot(dir.path(), &["completions", "sh"], &[]);
    assert!(
        code == 2 && err.contains("[possible values: bash, "),
        "{err}"
    );
}

#[test]
fn doctor_fails_where_nothing_can_work() {
    let dir = folder();
    std::fs::write(dir.path().join("f"), "").expect("the file can be written");
    let free = ["--http", "127.0.0.1:0", "--udp", "127.0.0.1:0"];
    let (code, out, _) = greendot(
        dir.path(),
        &[&["doctor", "--data-dir", "f/d"], &free[..]].concat(),
        &[],
    );
    assert_eq!(code, 1, "{out}");
    assert!(
        out.lines().any(|line| line.starts_with("FAIL data folder")),
        "{out}"
    );
}

#[test]
fn config_says_what_the_machine_does_not_allow() {
    let dir = folder();
    let script = "ulimit -n 400; exec \"$0\" config --shards 2";
    let output = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_greendot")])
        .current_dir(dir.path())
        .env_clear()
        .output()
        .expect("the shell runs");
    let out = String::from_utf8(output.stdout).expect("it prints UTF-8");
    assert!(
        out.ends_with("\n# conns_max: 400 file descriptors leave 100 for each of 2 shards\n"),
        "{out}"
    );
}

/// What docs/SECURITY.md shows makes tokens that are taken.
#[test]
fn a_backend_makes_tokens() {
    let dir = folder();
    let secret = dir.path().join("app.secret");
    std::fs::write(&secret, "0123456789abcdef0123456789abcdef\n").expect("it is written");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&secret, private).expect("it has a mode");
    let document = include_str!("../docs/SECURITY.md");
    for (program, flag, language) in [("node", "-e", "```js\n"), ("python3", "-c", "```python\n")] {
        let (_, code) = document.split_once(language).expect("an example");
        let (code, _) = code.split_once("```").expect("its end");
        let mut command = Command::new(program);
        let made = match command.current_dir(dir.path()).args([flag, code]).output() {
            Ok(made) => made,
            Err(_) => {
                println!("{program} is missing; its example is skipped");
                continue;
            }
        };
        let why = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{program}: {why}");
        std::fs::write(dir.path().join("token"), &made.stdout).expect("it is written");
        let judged = Command::new(env!("CARGO_BIN_EXE_greendot"))
            .current_dir(dir.path())
            .args([
                "token",
                "--check",
                "--key",
                "app.secret",
                "--aud",
                "greendot",
            ])
            .stdin(std::fs::File::open(dir.path().join("token")).expect("it is there"))
            .output()
            .expect("the binary runs");
        let told = String::from_utf8_lossy(&judged.stdout);
        let granted = r#""publish":true,"user":"alice","watch":["team-*"]}"#;
        assert!(
            told.trim_end().ends_with(granted),
            "{program}: {told} {judged:?}"
        );
    }
}
