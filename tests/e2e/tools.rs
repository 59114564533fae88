//! `greendot beat`, `watch` and `top` against a real server.

use std::fs;

use rustix::process::Signal;

use crate::harness::{FAST, Home, Record, Server, until};
use crate::process::{Lines, Process};
use crate::terminal::{Screen, Terminal};

fn beat(home: &Home, server: &Server, args: &[&str]) -> String {
    let [http, udp] = [server.http, server.udp()].map(|address| address.to_string());
    let dir = home.data_dir().display().to_string();
    let server = ["beat", "--udp", &udp, "--http", &http, "--data-dir", &dir];
    let output = home.run(&[&server, args].concat());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && error.is_empty(), "{error}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn beat_says_that_somebody_is_alive() {
    let home = Home::new();
    let server = home.serve(FAST);
    let mut alice = server.stream("watch=bob");
    alice.begin();

    let said = beat(&home, &server, &["bob"]);
    let words: Vec<&str> = said.trim_end().split(' ').collect();
    assert_eq!((words[0], words[1]), ("beat", "bob"));
    assert!(words[2].starts_with("sent_at="), "{said}");
    assert_eq!(words[3..], [&format!("to={}", server.udp()), "datagrams=1"]);
    alice.expect_presence("bob", true);
    let gone = alice.expect_presence("bob", false);
    server.check_silence(&gone);

    // Longer than the silence after which he would be offline.
    let said = beat(&home, &server, &["bob", "--every", "300ms", "--count", "8"]);
    assert_eq!(said.lines().count(), 8, "{said}");
    alice.expect_presence("bob", true);
    let gone = alice.expect_presence("bob", false);
    let sent_at = |line: &str| {
        line.split("sent_at=")
            .nth(1)
            .and_then(|rest| rest.split(' ').next()?.parse().ok())
    };
    let last_ms: u64 = said.lines().last().and_then(sent_at).expect("a time");
    // Not before the last of them; two processes' clocks may differ by a millisecond.
    assert!(gone.last_active() + 5 >= last_ms, "{gone:?} after {said}");
}

#[test]
fn health_says_whether_a_node_serves() {
    let home = Home::new();
    let mut server = home.serve(&["--drain-ms=5m", "--shards=1"]);
    let streams: Vec<_> = (0..20).map(|_| server.stream("watch=bob")).collect();
    let http = server.http.to_string();
    let health = || home.run(&["health", "--http", &http]);
    let well = health();
    assert!(well.status.success() && well.stderr.is_empty(), "{well:?}");
    assert_eq!(well.stdout, b"ready\n");
    server.process.signal(Signal::TERM);
    let drains = until("it drains", || {
        Some(health()).filter(|told| !told.status.success())
    });
    assert_eq!(drains.status.code(), Some(1));
    let why = format!("greendot: {http} (--http): status 503: the server is shutting down\n");
    assert_eq!(String::from_utf8_lossy(&drains.stderr), why);
    drop(streams);
    server.process.kill();
}

/// Datagrams are not answered: the node logs it, and says so over HTTP.
#[test]
fn a_wrong_key_is_told_by_the_node_and_by_beat() {
    let home = Home::new();
    let server = home.serve(FAST);
    let key_file = home.data_dir().join("other.key");
    std::fs::write(&key_file, "7".repeat(64)).expect("it is written");
    let [http, udp] = [server.http, server.udp()].map(|address| address.to_string());
    let path = key_file.display().to_string();
    let beat = |args: &[&str]| {
        let output =
            home.run(&[&["beat", "bob", "--udp", &udp, "--key-file", &path], args].concat());
        let error = String::from_utf8(output.stderr).expect("text");
        let stdout = String::from_utf8(output.stdout).expect("text");
        assert!(stdout.starts_with("beat bob sent_at="), "{stdout}");
        (output.status.code(), error)
    };
    let id = home.run(&["key", "--id", &path]).stdout;
    let id = String::from_utf8(id).expect("text");
    let id = id.strip_suffix(" signs\n").expect("one key");
    let refused = format!(
        "greendot: {http} (--http): the node refuses datagrams of this key, {id} of {path}; check \
         --key-file\n"
    );
    assert_eq!(beat(&["--http", &http]), (Some(1), refused.clone()));
    // Who goes on says it once.
    let three = ["--http", &http, "--every", "1ms", "--count", "3"];
    assert_eq!(beat(&three), (Some(0), refused));
    let unknown = "greendot: whether the node takes this key is not known: datagrams are not \
                   answered; it can be asked if --http or GREENDOT_URL names its HTTP address\n";
    assert_eq!(beat(&[]), (Some(0), unknown.to_owned()));

    server.expect_log("a beat datagram from 127.");
    let log = server.log();
    let said: Vec<&str> = log.lines().filter(|line| line.contains(id)).collect();
    let what = format!(
        " was refused (key): it is signed with a fleet key that this node does not have, {id}; \
         give its sender and this node the same --key-file (`greendot key --id FILE` prints ids). \
         0 others were refused for that since the last such line, of which there is one a second"
    );
    assert!(said[0].contains(&what), "{log}");
    let warnings = said.iter().filter(|line| line.contains("WARN"));
    assert_eq!(warnings.count(), 1, "one a minute: {log}");
    let count = || {
        server
            .metrics()
            .sum("greendot_datagrams_refused_total{reason=\"key\"}")
    };
    until("all are counted", || (count() == 5.0).then_some(()));
    assert!(!server.record("bob").online);
}

#[test]
fn beat_says_goodbye() {
    let home = Home::new();
    // Only a goodbye can tell within the test.
    let server = home.serve(&["--beat-interval-ms=30s", "--offline-after-ms=60s"]);
    let mut alice = server.stream("watch=bob&watch=carol");
    alice.begin();
    beat(&home, &server, &["bob", "carol"]);
    let mut told = [alice.presence(), alice.presence()];
    told.sort_by(|one, other| one.user.cmp(&other.user));
    assert!(told[0].online && told[1].online, "{told:?}");
    let said = beat(&home, &server, &["carol", "--leave"]);
    assert!(said.starts_with("leave carol "), "{said}");
    let left = alice.expect_presence("carol", false);
    assert!(left.last_active() >= told[1].last_active(), "{left:?}");
    assert!(server.record("bob").online);
}

#[test]
fn the_environment_says_where_the_server_is() {
    let home = Home::new();
    // Where `localhost` is, and not at an address of this test's own.
    let flags = ["serve", "--http=127.0.0.1:0", "--udp=127.0.0.1:0"];
    let server = home.launch(&mut home.command(&flags));
    let beat_to = format!("localhost:{}", server.udp().port());
    let mut beat = home.command(&["beat", "bob"]);
    let output = beat.env("GREENDOT_BEAT_TO", beat_to).output();
    let output = output.expect("it runs");
    assert!(output.status.success(), "{output:?}");
    server.expect_online("bob");
    let mut watch = home.command(&["watch", "bob"]);
    watch.env(
        "GREENDOT_URL",
        format!("http://localhost:{}/", server.http.port()),
    );
    let mut process = Process::start(&mut watch);
    let line = Lines::of(process.take_stdout()).next().expect("a record");
    assert!(
        line.contains("\"user\":\"bob\",\"status\":\"online\""),
        "{line}"
    );
}

#[test]
fn watching_shows_the_token_that_its_file_has_now() {
    let home = Home::with_secret();
    let server = home.serve(&["--jwt-keys=app.secret", "--retry-ms=100"]);
    let token = |ttl: &str| home.token("alice", &["--watch=bob", ttl]);
    home.keep("token", &token("--ttl=2s"));
    let watch = watch(&home, &server, &["--token-file=token", "bob"]);
    watch.expect("bob", false);
    // The stream ends with its token, and the next one has another.
    home.keep("token", &token("--ttl=1h"));
    watch
        .stderr
        .find("an end", |line| line.contains("the token has expired"));
    server.sender().beat(&["bob"]);
    watch.expect("bob", true);
    drop(watch);
    for (name, why) in [
        ("nowhere", "nowhere: No such file or directory"),
        ("two", "two: a token is one word, and nothing else"),
    ] {
        fs::write(home.path().join("two"), "one two").expect("a folder of our own");
        let http = server.http.to_string();
        let said = home.run(&["watch", "--http", &http, "--token-file", name, "bob"]);
        let told = String::from_utf8_lossy(&said.stderr);
        assert!(!said.status.success() && told.contains(why), "{told}");
    }
    server.terminate();
}

struct Watch {
    process: Process,
    stdout: Lines,
    stderr: Lines,
}

fn watch(home: &Home, server: &Server, args: &[&str]) -> Watch {
    let http = server.http.to_string();
    let mut command = home.command(&["watch", "--http", &http]);
    let mut process = Process::start(command.args(args));
    Watch {
        stdout: Lines::of(process.take_stdout()),
        stderr: Lines::of(process.take_stderr()),
        process,
    }
}

impl Watch {
    fn next(&self) -> Record {
        let line = self.stdout.next().expect("it goes on");
        Record::of(&serde_json::from_str(&line).expect("a line is a record"))
    }

    fn expect(&self, user: &str, online: bool) {
        let record = self.next();
        assert_eq!(
            (record.user.as_str(), record.online),
            (user, online),
            "{record:?}"
        );
    }
}

#[test]
fn watch_follows_through_a_restart() {
    let home = Home::new();
    let flags = [
        "--beat-interval-ms=1s",
        "--offline-after-ms=3s",
        "--retry-ms=200",
    ];
    let server = home.serve(&flags);
    let mut watch = watch(&home, &server, &["bob", "carol", "--user", "alice"]);
    assert_eq!(
        [watch.next(), watch.next()],
        ["bob", "carol"].map(Record::never_seen)
    );
    server.expect_online("alice");

    let sender = server.sender();
    sender.beat(&["bob"]);
    watch.expect("bob", true);
    let before = server.record("bob");

    server.kill();
    let notice = watch.stderr.find("says when it tries again", |line| {
        line.contains("; again in ")
    });
    let wait = notice
        .rsplit_once("again in ")
        .and_then(|(_, rest)| rest.strip_suffix(" s"));
    let wait_s: f64 = wait
        .and_then(|wait| wait.parse().ok())
        .expect("a number of seconds");
    // The server's retry of 200 to 300 ms, jittered by a quarter; without one it would be 0.8 s or
    // more.
    assert!((0.1..=0.4).contains(&wait_s), "{notice}");

    let server = home.serve(&flags);
    // Bob was online and is: nothing to say. He does not return, so silence tells.
    let gone = watch.next();
    assert_eq!(
        (gone.user.as_str(), gone.online),
        ("bob", false),
        "{gone:?}"
    );
    assert_eq!(gone.last_active, before.last_active);
    server.expect_metric("greendot_resumes_total{kind=\"partial\"}", |resumes| {
        resumes == 1.0
    });
    sender.beat(&["carol"]);
    watch.expect("carol", true);

    watch.process.signal(Signal::INT);
    assert_eq!(watch.process.wait().code(), Some(0));
}

/// Its stream says so: the times that it told before were later.
#[test]
fn watch_believes_a_server_that_has_lost_its_data() {
    let home = Home::new();
    let flags = ["--retry-ms=200"];
    let server = home.serve(&flags);
    let watch = watch(&home, &server, &["bob"]);
    assert_eq!(watch.next(), Record::never_seen("bob"));
    server.sender().beat(&["bob"]);
    watch.expect("bob", true);
    server.kill();
    std::fs::remove_dir_all(home.data_dir()).expect("it is there");
    let _server = home.serve(&flags);
    assert_eq!(watch.next(), Record::never_seen("bob"));
}

#[test]
fn watch_is_refused_for_good_by_what_will_not_change() {
    let home = Home::new();
    let server = home.serve(&["--watches-per-stream-max=1"]);
    let http = server.http.to_string();
    let output = home.run(&["watch", "bob", "carol", "--http", &http]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).expect("text");
    assert!(
        error.starts_with("greendot: ") && error.contains("413"),
        "{error}"
    );
}

#[test]
fn top_shows_a_servers_rates() {
    let home = Home::new();
    let server = home.serve(&["--shards=2"]);
    let http = server.http.to_string();
    let output = home.run(&["top", "--count", "1", "--http", &http]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{text}");
    assert!(text.lines().count() >= 3, "{text}");
}

/// `greendot top | head -1`, with nobody at stderr either.
#[test]
fn a_closed_pipe_has_read_enough() {
    let home = Home::new();
    let server = home.serve(&["--shards=1"]);
    let (http, udp) = (server.http.to_string(), server.udp().to_string());
    let key = home.data_dir().join("fleet.key").display().to_string();
    for args in [
        &[
            "beat",
            "bob",
            "--every",
            "20ms",
            "--udp",
            &udp,
            "--key-file",
            &key,
        ][..],
        &["top", "--http", &http],
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe can be made");
        drop(reader);
        let stderr = writer.try_clone().expect("a descriptor is free");
        let mut process = Process::start(home.command(args).stdout(writer).stderr(stderr));
        assert_eq!(process.wait().code(), Some(0), "{args:?}");
    }
    drop(server);
    // It goes on, and what it can not say is no reason to stop.
    let (reader, writer) = std::io::pipe().expect("a pipe can be made");
    drop(reader);
    let args = [
        "beat",
        "bob",
        "--every",
        "20ms",
        "--count",
        "5",
        "--udp",
        &udp,
        "--key-file",
        &key,
    ];
    let mut process = Process::start(home.command(&args).stderr(writer));
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn top_asks_the_server_and_no_proxy() {
    let home = Home::new();
    let server = home.serve(&["--shards=1"]);
    let http = server.http.to_string();
    let mut command = home.command(&["top", "--count", "1", "--http", &http]);
    let output = command
        .env("HTTP_PROXY", "http://127.0.0.1:1")
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{output:?}");
}

/// A person's own terminal: a table that is drawn anew in place, and Ctrl-C.
#[test]
fn watch_draws_a_live_table_in_a_terminal() {
    const GREEN: u32 = 32;
    const GREY: u32 = 90;
    // For how many seconds bob has been online, and within how many he was last active.
    let seconds = |screen: &Screen| -> Option<(u64, u64)> {
        let lines = screen.text();
        let [bob, _] = lines.as_slice() else {
            return None;
        };
        let words = bob
            .strip_prefix("\u{25cf} bob    online for ")?
            .strip_suffix(" s ago")?;
        let (online, active) = words.split_once(" s, last active at most ")?;
        Some((online.parse().ok()?, active.parse().ok()?))
    };
    let home = Home::new();
    let server = home.serve(&["--shards=2"]);
    let mut terminal = Terminal::new();
    let modes = terminal.modes();
    let http = server.http.to_string();
    let watch = [
        env!("CARGO_BIN_EXE_greendot"),
        "watch",
        "bob",
        "carol",
        "--http",
        &http,
    ];
    // In a session of its own whose terminal this is, or Ctrl-C would reach nobody.
    let mut command = home.program("setsid", &[&["--ctty"], &watch[..]].concat());
    let mut process = Process::start(terminal.attach(&mut command));

    let screen = terminal.expect("both were never seen", |screen| {
        screen.text() == ["\u{25cf} bob    never seen", "\u{25cf} carol  never seen"]
    });
    assert_eq!(
        (screen.colour_of_dot(0), screen.colour_of_dot(1)),
        (GREY, GREY)
    );

    server.sender().beat(&["bob"]);
    let screen = terminal.expect("bob is online", |screen| {
        let lines = screen.text();
        lines.len() == 2 && seconds(screen).is_some()
    });
    assert_eq!(
        (screen.colour_of_dot(0), screen.colour_of_dot(1)),
        (GREEN, GREY)
    );
    assert_eq!(screen.text()[1], "\u{25cf} carol  never seen");
    // Time goes by in the same two lines, and nothing was said.
    terminal.expect("bob is online for seconds", |screen| {
        seconds(screen) >= Some((2, 2))
    });

    terminal.press("\u{3}");
    assert_eq!(process.wait().code(), Some(0));
    let screen = terminal.rest();
    let lines = screen.text();
    assert_eq!(
        lines.len(),
        2,
        "the table stays and nothing stands below it: {lines:?}"
    );
    assert_eq!(screen.cursor(), (2, 0), "where the shell's prompt comes");
    assert!(screen.is_plain(), "{screen:?}");
    let after = terminal.modes();
    assert_eq!(
        (
            after.local_modes,
            after.input_modes,
            after.output_modes,
            after.control_modes
        ),
        (
            modes.local_modes,
            modes.input_modes,
            modes.output_modes,
            modes.control_modes
        )
    );
}
