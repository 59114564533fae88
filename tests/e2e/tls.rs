//! TLS on the real binary, with clients of all kinds: OpenSSL's, curl, Python, Node and rustls.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::harness::{Home, Server, until};
use crate::http::Conn;
use crate::limits::limit_hits;
use crate::netns::Namespace;
use crate::process::{Lines, Process};
use crate::tls_client::{config, connect, flags, https, issue, serve, stream, write};

const FULL: &str = "greendot_tls_handshakes_total{kind=\"full\"}";
const RESUMED: &str = "greendot_tls_handshakes_total{kind=\"resumed\"}";

fn failed(reason: &str) -> String {
    format!("greendot_tls_handshakes_failed_total{{reason=\"{reason}\"}}")
}

/// Runs a shell line in the home's folder, in which `$AT` is where TLS is spoken; what it printed.
fn sh(home: &Home, server: &Server, line: &str) -> String {
    let at = https(server).to_string();
    let ran = home.run_program("sh", &["-c", &format!("AT={at}; {line}")]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&ran.stdout) + &text(&ran.stderr)
}

#[test]
fn curl_is_answered_and_believes_nobody_else() {
    let home = Home::new();
    issue(&home);
    let server = serve(&home, &["--shards=2"]);
    let (http, udp, https) = (server.http, server.udp(), https(&server));
    let expected = format!("listening http={http} udp={udp} https={https} shards=2");
    assert_eq!(server.line, expected);
    let said = sh(
        &home,
        &server,
        "curl -sS --cacert tls.crt https://$AT/v1/presence/bob",
    );
    assert_eq!(
        said,
        "{\"user\":\"bob\",\"status\":\"offline\",\"online\":false,\"since\":null,\
         \"last_active\":null}"
    );
    // A larger answer, in several records.
    let said = sh(
        &home,
        &server,
        "curl -sS --cacert tls.crt https://$AT/openapi.json",
    );
    let plain = server.get("/openapi.json").text();
    assert!(plain.len() > 40_000 && said == plain);
    // Without the certificate curl refuses, and says so to the server.
    let said = sh(&home, &server, "curl -sS https://$AT/v1/presence/bob");
    assert!(said.contains("SSL certificate problem"), "{said}");
    server.expect_metric(&failed("alert"), |n| n == 1.0);
    server.expect_metric(FULL, |n| n >= 2.0);
    let expires = server
        .metrics()
        .sum("greendot_tls_certificate_expires_seconds");
    assert!(expires > 1_700_000_000.0, "{expires}");
}

#[test]
fn versions_and_protocols() {
    let home = Home::new();
    issue(&home);
    let server = serve(&home, &[]);
    let ask = |server: &Server, flags: &str| {
        let tail = "</dev/null 2>&1";
        let line = format!("openssl s_client -connect $AT -CAfile tls.crt {flags} {tail}");
        sh(&home, server, &line)
    };
    let said = ask(&server, "-alpn h2,http/1.1 -verify_return_error");
    for wanted in [
        "New, TLSv1.3, Cipher is TLS_AES_128_GCM_SHA256",
        "ALPN protocol: http/1.1",
        "Server Temp Key: X25519",
        "Verify return code: 0 (ok)",
    ] {
        assert!(said.contains(wanted), "{wanted} in {said}");
    }
    let said = ask(&server, "-groups P-256");
    assert!(said.contains("Server Temp Key: ECDH, prime256v1"), "{said}");
    assert!(ask(&server, "-tls1_2").contains("alert protocol version"));
    assert!(ask(&server, "-alpn h2").contains("no application protocol"));
    assert!(ask(&server, "-groups P-384").contains("alert handshake failure"));
    server.expect_metric(&failed("version"), |n| n == 1.0);
    server.expect_metric(&failed("incompatible"), |n| n == 2.0);
    drop(server);
    let server = serve(&home, &["--tls-min=1.2"]);
    let said = ask(&server, "-tls1_2");
    assert!(
        said.contains("New, TLSv1.2, Cipher is ECDHE-ECDSA-AES128-GCM-SHA256"),
        "{said}"
    );
    assert!(ask(&server, "").contains("New, TLSv1.3"));
    assert!(ask(&server, "-tls1_1").contains("alert"), "nothing older");
}

#[test]
fn clients_resume_after_a_crash() {
    let home = Home::new();
    issue(&home);
    let request = "printf 'GET /livez HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n'";
    let client = "openssl s_client -connect $AT -CAfile tls.crt -ign_eof";
    let server = serve(&home, &[]);
    let said = sh(
        &home,
        &server,
        &format!("{request} | {client} -sess_out session 2>&1"),
    );
    assert!(
        said.contains("HTTP/1.1 200 OK") && said.contains("New, TLSv1.3"),
        "{said}"
    );
    server.kill();
    let server = serve(&home, &[]);
    for _ in 0..3 {
        let said = sh(
            &home,
            &server,
            &format!("{request} | {client} -sess_in session 2>&1"),
        );
        assert!(said.contains("HTTP/1.1 200 OK"), "{said}");
        assert!(said.contains("Reused, TLSv1.3"), "{said}");
    }
    server.expect_metric(RESUMED, |n| n == 3.0);
}

/// OpenSSL's client with commands on its stdin: K and k at the beginning of a line change keys.
struct Client {
    process: Child,
    lines: Lines,
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Client {
    fn start(home: &Home, server: &Server) -> Client {
        let at = https(server).to_string();
        let line = format!("exec openssl s_client -connect {at} -CAfile tls.crt 2>&1");
        let mut process = Command::new("sh")
            .args(["-c", &line])
            .current_dir(home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is installed");
        let lines = Lines::of(process.stdout.take().expect("it is piped"));
        Client { process, lines }
    }

    fn say(&mut self, text: &str) {
        let stdin = self.process.stdin.as_mut().expect("it is piped");
        stdin.write_all(text.as_bytes()).expect("it runs");
        stdin.flush().expect("it runs");
    }

    fn expect(&self, text: &str) {
        self.lines.find(text, |line| line.contains(text));
    }
}

#[test]
fn openssl_changes_its_keys_and_ours_under_a_stream() {
    let home = Home::new();
    issue(&home);
    // No ping: each wait for a line is for what the test does.
    let server = serve(&home, &["--keep-alive-ms=1h"]);
    let mut client = Client::start(&home, &server);
    client.expect("Verify return code: 0 (ok)");
    client.say("GET /v1/stream?watch=bob HTTP/1.1\r\nHost: a\r\n\r\n");
    client.expect("event: snapshot");
    // `k`: its keys alone; `K`: it asks for ours as well. A command is what one read brings, so the
    // next one waits until this one has come to an effect.
    for (round, command) in ["k\n", "K\n", "K\n", "k\n"].into_iter().enumerate() {
        client.say(command);
        client.expect("KEYUPDATE");
        let bob = server.stream("user=bob");
        client.expect("\"online\":true");
        drop(bob);
        // A goodbye counts once his stream has gone.
        server.expect_metric("greendot_streams", |streams| streams == 1.0);
        let left = server.post("/v1/leave", &serde_json::json!({"users": ["bob"]}));
        assert_eq!(left.status, 204, "{round}: {left:?}");
        client.expect("\"online\":false");
    }
    let broken = server.metrics().sum("greendot_tls_broken_total");
    assert_eq!(broken, 0.0);
}

#[test]
fn python_and_node_read_a_stream_to_its_end() {
    let home = Home::new();
    issue(&home);
    let server = serve(&home, &["--drain-ms=0"]);
    let python = r#"
import socket, ssl, sys
host, port = sys.argv[1].rsplit(":", 1)
context = ssl.create_default_context(cafile="tls.crt")
plain = socket.create_connection((host, int(port)), timeout=30)
tls = context.wrap_socket(plain, server_hostname=host)
tls.sendall(b"GET /v1/stream?watch=bob HTTP/1.1\r\nHost: a\r\n\r\n")
read = b""
while b"event: snapshot" not in read:
    read += tls.recv(65536)
print("begun", tls.version(), flush=True)
# An end without close_notify would be an SSLEOFError here.
while more := tls.recv(65536):
    read += more
print("ended", b"event: goodbye" in read, flush=True)
"#;
    let node = r#"
const https = require("https");
const ca = require("fs").readFileSync("tls.crt");
const url = `https://${process.argv[2]}/v1/stream?watch=bob`;
https.get(url, { ca }, (answer) => {
  let read = "";
  answer.on("data", (data) => {
    const had = read.includes("event: snapshot");
    read += data;
    if (!had && read.includes("event: snapshot"))
      console.log("begun", answer.socket.getProtocol());
  });
  answer.on("end", () => console.log("ended", read.includes("event: goodbye")));
});
"#;
    write(&home, "client.py", python, 0o644);
    write(&home, "client.js", node, 0o644);
    let at = https(&server).to_string();
    let begun = [("python3", "client.py"), ("node", "client.js")].map(|(program, script)| {
        let mut command = home.program(program, &[script, &at]);
        let mut process = Process::start(command.stderr(Stdio::inherit()));
        let lines = Lines::of(process.take_stdout());
        assert_eq!(lines.next().as_deref(), Some("begun TLSv1.3"), "{program}");
        (process, lines)
    });
    assert!(server.terminate().success());
    for ((mut process, lines), word) in begun.into_iter().zip(["True", "true"]) {
        assert_eq!(lines.next(), Some(format!("ended {word}")));
        assert!(process.wait().success());
    }
}

fn reload(server: &Server, outcome: &str) {
    let series = format!("greendot_tls_certificate_reloads_total{{outcome=\"{outcome}\"}}");
    let before = server.metrics().sum(&series);
    server.process.signal(Signal::HUP);
    server.expect_metric(&series, |n| n == before + 1.0);
}

#[test]
fn a_new_certificate_is_taken_and_a_bad_one_is_not() {
    let home = Home::new();
    let first = issue(&home);
    let server = serve(&home, &["--shards=2"]);
    let old = config(&home);
    let mut streams: Vec<_> = (0..20)
        .map(|_| stream(&server, &old, "watch=bob"))
        .collect();
    for stream in &mut streams {
        stream.begin();
    }
    let shown = |config| {
        let conn = connect(https(&server), config);
        let tls = conn.tls.expect("it speaks TLS");
        tls.peer_certificates().expect("one is shown")[0].clone()
    };
    let second = issue(&home);
    assert_eq!(shown(&old), first, "nobody has said so yet");
    reload(&server, "done");
    let new = config(&home);
    assert!(first != second && shown(&new) == second);
    // The next are no pair, and then no file at all.
    let (crt, key) = (home.path().join("tls.crt"), home.path().join("tls.key"));
    let kept = std::fs::read(&key).expect("it is there");
    issue(&home);
    std::fs::write(&key, kept).expect("a file of our own");
    reload(&server, "failed");
    std::fs::remove_file(&crt).expect("a file of our own");
    reload(&server, "failed");
    assert_eq!(shown(&new), second);
    until("both are in the log", || {
        let errors = "the TLS certificate stays as it is";
        (server.log().matches(errors).count() == 2).then_some(())
    });
    server.expect_log("this key is not that of the certificate in tls.crt");
    // Nobody who was there has noticed anything.
    let _bob = server.stream("user=bob");
    for stream in &mut streams {
        stream.expect_presence("bob", true);
    }
}

/// `E2E_TLS_STREAMS` says how many, a thousand by default: tests/long has ten times as many.
#[test]
fn new_certificates_end_no_stream_of_a_thousand() {
    let count = std::env::var("E2E_TLS_STREAMS");
    let count: usize = count.map_or(1_000, |count| count.parse().expect("a number"));
    let home = Home::new();
    issue(&home);
    let conns = format!("--conns-max={}", count + 100);
    // No ping: what comes is what the test does.
    let server = serve(&home, &["--shards=2", "--keep-alive-ms=1h", &conns]);
    let mut streams = Vec::with_capacity(count);
    let mut believed = config(&home);
    for nth in 0..count {
        // Four times on the way, and handshakes go on behind each.
        if nth % count.div_ceil(5) == count.div_ceil(5) - 1 {
            issue(&home);
            reload(&server, "done");
            believed = config(&home);
        }
        let mut stream = stream(&server, &believed, "watch=bob");
        stream.begin();
        streams.push(stream);
    }
    issue(&home);
    reload(&server, "done");
    let bob = server.stream("user=bob");
    for stream in &mut streams {
        stream.expect_presence("bob", true);
    }
    // Of bob's own the others may have been told before his shard shows it.
    server.expect_metric("greendot_streams", |streams| streams == count as f64 + 1.0);
    let metrics = server.metrics();
    // Whoever believes the next certificate has no ticket of the one before.
    let [full, resumed] = [FULL, RESUMED].map(|kind| metrics.sum(kind));
    assert!(
        full >= 5.0 && full + resumed == count as f64,
        "{full} {resumed}"
    );
    for failed in [
        "greendot_tls_broken_total",
        "greendot_tls_handshakes_failed_total",
        "greendot_conns_evicted_total",
    ] {
        assert_eq!(metrics.sum(failed), 0.0, "{failed}");
    }
    drop(bob);
}

#[test]
fn who_says_nothing_is_left_and_so_is_half_a_first_message() {
    let home = Home::new();
    issue(&home);
    let server = serve(&home, &["--shards=1"]);
    let mut silent = Conn::to(https(&server));
    let mut half = Conn::to(https(&server));
    // A first message that says it has 512 bytes.
    half.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
    server.expect_metric("greendot_tls_handshakes_pending", |n| n == 2.0);
    // The one that asks; who asked before may be there still.
    server.expect_metric("greendot_conns", |n| n == 1.0);
    for conn in [&mut silent, &mut half] {
        assert_eq!(conn.read_to_end(), b"");
    }
    server.expect_metric(&failed("timed_out"), |n| n == 2.0);
    server.expect_metric("greendot_tls_handshakes_pending", |n| n == 0.0);
    // Who goes by itself is counted as gone.
    let mut gone = TcpStream::connect(https(&server)).expect("it listens");
    gone.shutdown(Shutdown::Write).expect("it is open");
    assert_eq!(gone.read(&mut [0; 8]).expect("it ends"), 0);
    server.expect_metric(&failed("gone"), |n| n == 1.0);
}

#[test]
fn plain_http_is_told_that_this_is_tls() {
    let home = Home::new();
    issue(&home);
    let server = serve(&home, &[]);
    let mut conn = Conn::to(https(&server));
    conn.send(b"GET /v1/stream?watch=bob HTTP/1.1\r\nHost: a\r\n\r\n");
    let said = String::from_utf8(conn.read_to_end()).expect("text");
    assert!(said.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{said}");
    assert!(
        said.contains("This port speaks TLS: use https://"),
        "{said}"
    );
    let said = sh(&home, &server, "curl -sS -i http://$AT/v1/presence/bob");
    assert!(said.contains("This port speaks TLS"), "{said}");
    server.expect_metric(&failed("not_tls"), |n| n == 2.0);
}

#[test]
fn a_refusal_for_load_is_said_inside_tls() {
    let home = Home::new();
    issue(&home);
    let server = serve(&home, &["--shards=1", "--conns-max=2"]);
    let config = config(&home);
    let mut streams = [0, 1].map(|_| stream(&server, &config, "watch=bob"));
    for stream in &mut streams {
        stream.begin();
    }
    let mut third = stream(&server, &config, "watch=bob");
    third.expect("overloaded");
    third.rest();
    assert!(third.is_whole());
    // A health check is answered all the same.
    let mut conn = connect(https(&server), &config);
    assert_eq!(conn.get("/livez").status, 200);
}

pub(crate) fn who_finds_no_room_for_a_handshake_waits() {
    let home = Home::new();
    issue(&home);
    let server = serve(&home, &["--shards=1", "--tls-handshakes-max=1"]);
    let config = config(&home);
    let silent = Conn::to(https(&server));
    server.expect_metric("greendot_tls_handshakes_pending", |n| n == 1.0);
    let asks = std::thread::spawn({
        let (at, config) = (https(&server), config.clone());
        move || connect(at, &config).get("/livez").status
    });
    until("it is turned away", || {
        (limit_hits(&server, "tls-handshakes-max") > 0.0).then_some(())
    });
    // Plain connections have nothing to do with it.
    assert_eq!(server.get("/livez").status, 200);
    assert!(!asks.is_finished());
    drop(silent);
    assert_eq!(asks.join().expect("it is answered"), 200);
}

#[test]
fn there_is_room_for_so_many_handshakes() {
    who_finds_no_room_for_a_handshake_waits();
}

/// What comes of a record that is not whole is kept, be it on a stream that needs nothing.
#[test]
fn records_that_are_never_whole_take_no_more_than_they_may() {
    let home = Home::new();
    issue(&home);
    let small = [
        "--shards=1",
        "--body-bytes-max=8K",
        "--outbox-bytes-max=16K",
    ];
    let server = serve(&home, &[&small[..], &["--buffer-bytes-max=64K"]].concat());
    let config = config(&home);
    let mut streams: Vec<_> = (0..6)
        .map(|_| {
            let mut conn = connect(https(&server), &config);
            conn.send(b"GET /v1/stream HTTP/1.1\r\nHost: a\r\n\r\n");
            conn
        })
        .collect();
    server.expect_metric("greendot_streams", |streams| streams == 6.0);
    // Of a record that says it has 16,384 bytes, all but one.
    let mut part = vec![0; 5 + 16_383];
    part[..5].copy_from_slice(b"\x17\x03\x03\x40\x00");
    for conn in &mut streams {
        conn.socket.write_all(&part).expect("the server reads");
    }
    server.expect_metric("greendot_tls_broken_total{reason=\"buffers\"}", |left| {
        left >= 1.0
    });
    assert!(limit_hits(&server, "buffer-bytes-max") >= 1.0);
    let metrics = server.metrics();
    let (kept, streams_left) = (
        metrics.sum("greendot_tls_buffered_bytes"),
        metrics.sum("greendot_streams"),
    );
    assert!((16_384.0..=65_536.0 + 16_384.0).contains(&kept), "{kept}");
    assert!((3.0..6.0).contains(&streams_left), "{streams_left}");
    drop(streams);
    server.expect_metric("greendot_tls_buffered_bytes", |bytes| bytes == 0.0);
}

#[test]
fn one_client_has_a_quarter_of_the_room_for_handshakes() {
    let server_at = Ipv4Addr::new(10, 79, 0, 1);
    let Some(server_net) = Namespace::new() else {
        return;
    };
    let Some(client_net) = Namespace::new() else {
        return;
    };
    let cable = server_net.connect(server_at, &client_net, Ipv4Addr::new(10, 79, 0, 2));
    if cable.is_none() {
        return;
    }
    server_net.enter(|| {
        let home = Home::new();
        issue(&home);
        let https = format!("--https={server_at}:0");
        let [_, cert, key] = flags(&home);
        let few = ["--shards=1", "--tls-handshakes-max=8", "--insecure"];
        let server = home.serve(&[&few[..], &[&https, &cert, &key]].concat());
        let at = crate::tls_client::https(&server);
        let mut silent: Vec<Conn> = client_net.enter(|| (0..3).map(|_| Conn::to(at)).collect());
        until("the third is one too many", || {
            (limit_hits(&server, "tls-handshakes-max") == 1.0).then_some(())
        });
        assert_eq!(silent[2].read_to_end(), b"");
        server.expect_metric("greendot_tls_handshakes_pending", |n| n == 2.0);
        // Room is left for others, and for it again when it has let go.
        let _here = Conn::to(at);
        server.expect_metric("greendot_tls_handshakes_pending", |n| n == 3.0);
        silent.remove(0);
        server.expect_metric("greendot_tls_handshakes_pending", |n| n == 2.0);
        let _again = client_net.enter(|| Conn::to(at));
        server.expect_metric("greendot_tls_handshakes_pending", |n| n == 3.0);
        assert_eq!(limit_hits(&server, "tls-handshakes-max"), 1.0);
    });
}

#[test]
fn operators_speak_tls_too_if_they_like() {
    let home = Home::new();
    issue(&home);
    let admin = format!("--admin={}:0", home.ip());
    let server = serve(&home, &[&admin, "--admin-tls"]);
    let config = config(&home);
    let at = server.admin.expect("it has one");
    let metrics = connect(at, &config).get("/metrics");
    assert!(
        metrics
            .text()
            .contains("greendot_tls_handshakes_total{kind=\"full\",shard=\"0\"}")
    );
    let mut plain = Conn::to(at);
    plain.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(plain.read_to_end().starts_with(b"HTTP/1.1 400 "));
    // The public one has no operators' calls, over TLS neither.
    let mut conn = connect(https(&server), &config);
    assert_eq!(conn.get("/metrics").status, 404);
    server.expect_log(&format!("dashboard: https://{at}/"));
}

#[test]
fn a_presence_node_takes_questions_over_tls() {
    let home = Home::new();
    issue(&home);
    home.keep("fleet.key", &"11".repeat(32));
    let [https_flag, cert, key] = flags(&home);
    let [http, udp] = home.addresses();
    let args = [
        "presence",
        &http,
        &udp,
        &https_flag,
        &cert,
        &key,
        "--realtime=http://127.0.0.1:1",
        "--key-file=fleet.key",
        "--data-dir=data",
    ];
    let server = home.launch(&mut home.command(&args));
    let mut conn = connect(https(&server), &config(&home));
    let answer = conn.post("/v1/presence/query", &serde_json::json!({"users": ["bob"]}));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["presence"][0]["user"], "bob");
}

#[test]
fn what_a_certificate_may_not_be_is_refused_at_the_start() {
    let home = Home::new();
    let refused = |wanted: &str| {
        let own = flags(&home);
        let [http, udp] = home.addresses();
        let mut args = vec!["serve", &http, &udp];
        args.extend(own.iter().map(String::as_str));
        let ran = home.run(&args);
        let said = String::from_utf8(ran.stderr).expect("text");
        assert!(!ran.status.success() && said.contains(wanted), "{said}");
    };
    refused("tls.crt: can not be read: No such file or directory");
    issue(&home);
    let key = std::fs::read_to_string(home.path().join("tls.key")).expect("it is there");
    write(&home, "tls.key", &key, 0o644);
    refused("tls.key: everybody on this machine may use this key; `chmod o-rw tls.key`");
    issue(&home);
    write(&home, "tls.key", &key, 0o640);
    refused("tls.key: this key is not that of the certificate in tls.crt; name the two that");
    assert!(!home.path().join("greendot-data/users.log").exists());
    issue(&home);
    let server = serve(&home, &[]);
    // Nobody of this user may look into its memory, and it leaves no core.
    let pid = server.process.pid().as_raw_nonzero();
    let read = std::fs::read(format!("/proc/{pid}/environ"));
    let is_root = rustix::process::geteuid().is_root();
    assert!(is_root || read.is_err());
}

#[test]
fn nodes_speak_tls_to_each_other() {
    let home = Home::new();
    issue(&home);
    home.keep("fleet.key", &"11".repeat(32));
    // Each is named to the other before it runs. The address is this home's own.
    let ip = home.ip();
    let at = |name: &str, port: u16| format!("--{name}={ip}:{port}");
    let own = [
        "--tls-cert=tls.crt",
        "--tls-key=tls.key",
        "--key-file=fleet.key",
        "--insecure",
    ];
    let presence = |ca: &str| {
        let mut command = home.command(&["presence", "--data-dir=data"]);
        command
            .args(own)
            .args([
                at("http", 8_680),
                at("udp", 8_681),
                at("https", 8_643),
                at("admin", 8_690),
            ])
            .arg(format!("--realtime=https://{ip}:8790"))
            .arg(format!("--tls-ca={ca}"));
        home.launch(&mut command)
    };
    let mut realtime = home.command(&["realtime"]);
    realtime
        .args(own)
        .args([at("http", 8_780), at("admin", 8_790)])
        .args(["--admin-tls", "--tls-ca=tls.crt"])
        .arg(format!("--presence=udp://{ip}:8681,https://{ip}:8643"));
    let realtime = home.launch(&mut realtime);
    let streams = |realtime: &Server| {
        let mut watcher = realtime.stream("watch=bob");
        watcher.expect("hello");
        watcher
    };

    // Somebody else's authority: the presence node does not believe the other, and says so.
    let key = rcgen::KeyPair::generate().expect("a key can be made");
    let params = rcgen::CertificateParams::new(vec!["other.example".to_owned()]);
    let other = params
        .and_then(|params| params.self_signed(&key))
        .expect("a key signs");
    write(&home, "other.crt", &other.pem(), 0o644);
    let doubting = presence("other.crt");
    doubting.expect_log("invalid peer certificate");
    drop(doubting);

    let presence = presence("tls.crt");
    let mut watcher = streams(&realtime);
    let _bob = realtime.stream("user=bob");
    until("bob is told online", || {
        let event = watcher.next();
        (event.data.to_string().contains("\"status\":\"online\"")).then_some(())
    });
    // What went between them was sealed both ways, over a connection or two each.
    presence.expect_metric("greendot_tls_handshakes_total", |count| count >= 1.0);
    let pem = config(&home);
    let mut operator = connect(realtime.admin.expect("it has one"), &pem);
    // The operator's own, and the presence node's. A shard's counts are shown a turn later.
    until("both are counted", || {
        let metrics = operator.get("/metrics").text();
        let count = crate::scrape::Metrics::parse(&metrics).sum("greendot_tls_handshakes_total");
        (count >= 2.0).then_some(())
    });
}

#[test]
fn tools_speak_tls_to_whom_they_are_told_to_believe() {
    let home = Home::new();
    issue(&home);
    let server = serve(&home, &["--shards=1"]);
    let url = format!("https://{}", https(&server));
    let udp = format!("--udp={}", server.udp());
    let _bob = server.stream("user=bob");
    server.expect_online("bob");

    let mut watch = home.command(&["watch", "bob", "--http", &url]);
    let mut process = Process::start(watch.env("GREENDOT_TLS_CA", "tls.crt"));
    let line = Lines::of(process.take_stdout()).next().expect("a record");
    assert!(
        line.contains("\"user\":\"bob\",\"status\":\"online\""),
        "{line}"
    );
    process.kill();

    let top = home.run(&["top", "--count=1", "--http", &url, "--tls-ca=tls.crt"]);
    let text = String::from_utf8(top.stdout).expect("text");
    assert!(top.status.success() && text.lines().count() >= 3, "{text}");
    // A key that the node does not take: it is asked over TLS whether it does.
    home.keep("other.key", &"22".repeat(32));
    let beat = [
        "beat",
        "carol",
        &udp,
        "--http",
        &url,
        "--tls-ca=tls.crt",
        "--key-file=other.key",
    ];
    let beat = home.run(&beat);
    let said = String::from_utf8_lossy(&beat.stderr).into_owned();
    assert!(
        said.contains("the node refuses datagrams of this key"),
        "{said}"
    );

    // Whom nobody vouches for is not believed, and neither is somebody else.
    let unknown = |flags: &[&str], wanted: &str| {
        let ran = home.run(&[&["watch", "bob", "--http", &url][..], flags].concat());
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(!ran.status.success() && said.contains(wanted), "{said}");
    };
    unknown(&[], "with --tls-ca or GREENDOT_TLS_CA");
    issue(&home);
    unknown(&["--tls-ca=tls.crt"], "invalid peer certificate");
}
