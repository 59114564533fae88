//! Keys that change while nodes serve: add everywhere, move first, remove, and nobody is refused.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use greendot::wire::beat::FleetKey;
use greendot::wire::nodes::Nodes;

use crate::harness::{Home, Sender, Server, pause, until};
use crate::http::Conn;
use crate::stream::Stream;

const HTTP_PORT: u16 = 8_480;
const UDP_PORT: u16 = 8_481;
const FLEET: [&str; 2] = ["11", "22"];
const SECRETS: [&str; 2] = [
    "0123456789abcdef0123456789abcdef",
    "fedcba9876543210fedcba9876543210",
];
/// The same in base64url.
const JWKS: [&str; 2] = [
    r#"{"kid":"old","kty":"oct","k":"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"}"#,
    r#"{"kid":"new","kty":"oct","k":"ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA"}"#,
];
const KIDS: [&str; 2] = ["old", "new"];

fn written(path: &Path, content: &str) {
    fs::write(path, content).expect("a folder of our own");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("a file of our own");
}

/// What is shown, of each time.
struct Shown {
    token: String,
    service: String,
    fleet: FleetKey,
}

/// The keys that files hold: indexes, the first of which signs.
fn write_keys(home: &Home, which: &[usize], lines: &[String; 2]) {
    let of = |all: &dyn Fn(usize) -> String, between: &str| {
        let each: Vec<String> = which.iter().map(|at| all(*at)).collect();
        each.join(between)
    };
    let at = |name: &str| home.path().join(name);
    written(&at("fleet.key"), &of(&|key| FLEET[key].repeat(32), "\n"));
    let keys = of(&|key| JWKS[key].to_owned(), ",");
    written(&at("app.jwks"), &format!("{{\"keys\":[{keys}]}}"));
    written(&at("services"), &of(&|key| lines[key].clone(), "\n"));
}

fn reload(home: &Home, server: &Server, outcome: &str) {
    let series = format!("greendot_key_reloads_total{{outcome=\"{outcome}\"}}");
    let before = server.metrics().sum(&series);
    let pid = server.process.pid().as_raw_nonzero().to_string();
    let by_folder = home.run(&["reload", "--data-dir=data"]);
    if !by_folder.status.success() {
        // A real-time node has no folder.
        let by_pid = home.run(&["reload", "--pid", &pid]);
        assert!(by_pid.status.success(), "{by_pid:?}");
    }
    server.expect_metric(&series, |count| count > before);
}

/// All that clients and devices do, again and again, until told to stop.
struct Load<'n> {
    realtime: SocketAddr,
    /// HTTP and UDP of each.
    presence: [(SocketAddr, SocketAddr); 2],
    nodes: &'n Nodes,
    shown: &'n Mutex<Arc<Shown>>,
    stop: &'n AtomicBool,
    rounds: &'n AtomicU64,
}

impl Load<'_> {
    fn run(&self) {
        let mut senders: BTreeMap<(usize, u32), Sender> = BTreeMap::new();
        while !self.stop.load(Ordering::Relaxed) {
            let shown = Arc::clone(&self.shown.lock().expect("no holder panics"));
            let asked = |at: SocketAddr, method: &str, target: &str, key: &str, body: &str| {
                let length = body.len();
                let request = format!(
                    "{method} {target} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n\
                     Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
                );
                let mut conn = Conn::to(at);
                conn.send(request.as_bytes());
                conn.answer().status
            };
            for (node, (http, udp)) in self.presence.into_iter().enumerate() {
                let status = asked(http, "GET", "/v1/presence/alice", &shown.token, "");
                assert_eq!(status, 200, "a query with a user's token");
                let status = asked(http, "GET", "/v1/presence/bob", &shown.service, "");
                assert_eq!(status, 200, "a query of a service");
                // A device of this node's share.
                let device = (0..).map(|n| format!("device-{n}"));
                let device = device
                    .into_iter()
                    .find(|user| self.nodes.of(user.as_bytes()) == node);
                let device = device.expect("some are");
                let body = format!("{{\"users\":[\"{device}\"]}}");
                let status = asked(http, "POST", "/v1/beat", &shown.service, &body);
                assert_eq!(status, 204, "a beat of a service");
                let sender = senders.entry((node, shown.fleet.id()));
                sender
                    .or_insert_with(|| Sender::new(udp, shown.fleet.clone()))
                    .beat(&[&device]);
            }
            let mut conn = Conn::to(self.realtime);
            conn.send(
                format!(
                    "GET /v1/stream?user=me&watch=bob HTTP/1.1\r\nHost: a\r\n\
                     Authorization: Bearer {}\r\n\r\n",
                    shown.token
                )
                .as_bytes(),
            );
            Stream::answered(conn).expect("hello");
            self.rounds.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all of it has been done once more.
    fn round(&self) {
        let before = self.rounds.load(Ordering::Relaxed);
        until("another round of the load", || {
            (self.rounds.load(Ordering::Relaxed) > before + 1).then_some(())
        });
    }
}

#[test]
fn three_nodes_change_all_keys_and_refuse_nobody() {
    let pause_ms = std::env::var("GREENDOT_RELOAD_PAUSE_MS");
    let pause_ms = pause_ms.map_or(200, |ms| ms.parse().expect("milliseconds"));
    let homes = [Home::new(), Home::new(), Home::new()];
    let [realtime_home, presence_homes @ ..] = &homes;
    let made: Vec<(String, String)> = (0..2)
        .map(|_| {
            let args = ["key", "new", "--service", "app", "--scopes", "query,beat"];
            let printed = realtime_home.run(&args).stdout;
            let printed = String::from_utf8(printed).expect("text");
            let (key, line) = printed.trim_end().split_once('\n').expect("two lines");
            (key.to_owned(), line.to_owned())
        })
        .collect();
    let lines = [made[0].1.clone(), made[1].1.clone()];
    let shown = |at: usize| {
        written(&realtime_home.path().join("signing"), SECRETS[at]);
        let args = [
            "token",
            "--user=alice",
            "--watch=bob",
            "--key=signing",
            "--kid",
            KIDS[at],
        ];
        let token = String::from_utf8(realtime_home.run(&args).stdout).expect("text");
        Arc::new(Shown {
            token: token.trim_end().to_owned(),
            service: made[at].0.clone(),
            fleet: FleetKey::from_hex(&FLEET[at].repeat(32)).expect("a key"),
        })
    };
    let (old, new) = (shown(0), shown(1));

    let common = [
        "--key-file=fleet.key",
        "--jwt-keys=app.jwks",
        "--service-keys=services",
        "--queries-per-user-second-max=0",
        "--ids-per-user-minute-max=0",
        "--streams-per-user-second-max=0",
        "--watch-lists-per-user-minute-max=0",
    ];
    let http = |home: &Home| format!("{}:{HTTP_PORT}", home.ip());
    let udp = |home: &Home| format!("{}:{UDP_PORT}", home.ip());
    let launched = |home: &Home, role: &str, more: &[String]| {
        write_keys(home, &[0], &lines);
        let mut args = vec![role.to_owned(), format!("--http={}", http(home))];
        args.extend(common.map(str::to_owned));
        args.extend_from_slice(more);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        home.launch(&mut home.command(&args))
    };
    let presence = presence_homes.each_ref().map(|home| {
        let realtime = format!("--realtime=http://{}", http(realtime_home));
        let udp = format!("--udp={}", udp(home));
        launched(home, "presence", &[realtime, udp, "--data-dir=data".into()])
    });
    let of_presence = presence_homes
        .each_ref()
        .map(|home| format!("--presence=udp://{},http://{}", udp(home), http(home)));
    let realtime = launched(realtime_home, "realtime", &of_presence);
    for server in &presence {
        server.expect_metric("greendot_nodes_down", |down| down == 0.0);
    }
    realtime.expect_metric("greendot_nodes_down", |down| down == 0.0);
    let servers = [&realtime, &presence[0], &presence[1]];
    let refused = |server: &Server| {
        let metrics = server.metrics();
        [
            "greendot_tokens_refused_total",
            "greendot_datagrams_refused_total",
            "greendot_beats_refused_total",
            "greendot_relay_requests_total{outcome=\"failed\"}",
            "greendot_key_reloads_total{outcome=\"failed\"}",
        ]
        .map(|series| metrics.sum(series))
    };
    let before = servers.map(refused);

    let names = presence_homes.each_ref().map(udp);
    let nodes = Nodes::new(names.iter().map(String::as_str));
    let (now_shown, stop, rounds) = (
        Mutex::new(Arc::clone(&old)),
        AtomicBool::new(false),
        AtomicU64::new(0),
    );
    let load = Load {
        realtime: realtime.http,
        presence: presence
            .each_ref()
            .map(|server| (server.http, server.udp())),
        nodes: &nodes,
        shown: &now_shown,
        stop: &stop,
        rounds: &rounds,
    };
    std::thread::scope(|scope| {
        let loader = scope.spawn(|| load.run());
        // Add everywhere, move first, remove.
        for keys in [&[0, 1][..], &[1, 0], &[1]] {
            for (home, server) in homes.iter().zip(servers) {
                write_keys(home, keys, &lines);
                reload(home, server, "done");
                load.round();
                pause(pause_ms);
            }
            if keys[0] == 1 {
                // Everybody knows the new ones: clients and devices move over.
                *now_shown.lock().expect("no holder panics") = Arc::clone(&new);
                load.round();
            }
            assert!(!loader.is_finished(), "the load has ended");
        }
        assert_eq!(servers.map(refused), before);
        stop.store(true, Ordering::Relaxed);
    });
    // What was removed is refused everywhere.
    for server in &presence {
        for shown in [&old.token, &old.service] {
            let mut conn = server.connect();
            let request = format!(
                "GET /v1/presence/bob HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {shown}\r\n\r\n"
            );
            conn.send(request.as_bytes());
            assert_eq!(conn.answer().status, 401);
        }
    }
    for server in [realtime].into_iter().chain(presence) {
        server.terminate();
    }
}

/// Keys that can not be read change nothing, and the log names the file, not what is in it.
#[test]
fn a_reload_that_fails_keeps_the_keys() {
    let home = Home::new();
    let keys = home.path().join("app.secret");
    written(&keys, SECRETS[0]);
    let args = ["token", "--user=alice", "--key=app.secret"];
    let token = String::from_utf8(home.run(&args).stdout).expect("text");
    let server = home.serve(&["--jwt-keys=app.secret"]);
    let status = || {
        let mut conn = server.connect();
        let bearer = token.trim_end();
        let request = format!(
            "GET /v1/presence/alice HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {bearer}\r\n\r\n"
        );
        conn.send(request.as_bytes());
        conn.answer().status
    };
    assert_eq!(status(), 200);
    written(&keys, "hunter2");
    reload(&home, &server, "failed");
    server.expect_log("no key has changed");
    let log = server.log();
    assert!(
        log.contains("app.secret: a secret has at least 32 bytes"),
        "{log}"
    );
    assert!(!log.contains("hunter2"), "{log}");
    assert_eq!(status(), 200);
    written(&keys, SECRETS[1]);
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o644)).expect("ours");
    reload(&home, &server, "failed");
    assert_eq!(status(), 200);
    written(&keys, SECRETS[1]);
    reload(&home, &server, "done");
    assert_eq!(status(), 401);
    server.terminate();
}

/// What a file sets can change while streams are open; what can not is named.
#[test]
fn a_configuration_is_read_anew() {
    let home = Home::new();
    let at = home.path().join("greendot.toml");
    written(
        &at,
        "query_users_max = 2\ncors_origins = [\"https://old.example\"]\n",
    );
    let server = home.serve(&[
        "--config=greendot.toml",
        "--shards=2",
        "--body-bytes-max=5000",
    ]);
    let mut stream = server.stream("watch=bob");
    stream.begin();
    let asked = |origin: &str, users: usize| {
        let users: Vec<String> = (0..users).map(|n| format!("user=u{n}")).collect();
        let target = format!("/v1/presence?{}", users.join("&"));
        let mut conn = server.connect();
        let lines = format!("GET {target} HTTP/1.1\r\nHost: a\r\nOrigin: {origin}\r\n\r\n");
        conn.send(lines.as_bytes());
        let answer = conn.answer();
        let allowed = answer.field("access-control-allow-origin");
        let allowed = allowed.map(str::to_owned);
        (answer.status, allowed)
    };
    let (old, new) = ("https://old.example", "https://new.example");
    assert_eq!(asked(old, 2), (200, Some(old.into())));
    assert_eq!(asked(old, 3).0, 413);
    assert_eq!(asked(new, 2).1, None);
    let text = format!(
        "query_users_max = 3\ncors_origins = [\"{new}\"]\nlog_level = \"debug\"\nusers_max = 5000\n\
         body_bytes_max = 9000\n"
    );
    written(&at, &text);
    reload(&home, &server, "done");
    server.expect_log("--query-users-max is 3 from now on");
    server.expect_log("--users-max is 5000 now: a running node does not take it; restart it");
    until("each shard has had a turn", || {
        let asked: Vec<_> = (0..8).map(|_| asked(new, 3)).collect();
        asked
            .iter()
            .all(|answer| *answer == (200, Some(new.into())))
            .then_some(())
    });
    assert_eq!(asked(new, 4).0, 413);
    assert_eq!(asked(old, 2).1, None);
    // A flag wins over the file, as at the start.
    let long = vec![b' '; 5_001];
    let answer = server.connect().post_bytes("/v1/beat", &long);
    answer.expect_problem(413, "body-too-large");
    // What is no configuration changes nothing, and keys are read all the same.
    written(&at, "query_users_max = 0\n");
    reload(&home, &server, "done");
    server.expect_metric("greendot_config_reloads_total{outcome=\"failed\"}", |n| {
        n == 1.0
    });
    server.expect_log("the configuration stays as it is: ");
    assert_eq!(asked(new, 3).0, 200);
    server.sender().beat(&["bob"]);
    stream.expect_presence("bob", true);
}
