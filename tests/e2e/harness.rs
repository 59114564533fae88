//! The world around one real server: its process, its data folder, its address, and clients that
//! speak to it.
//!
//! Each wait has a deadline. Ports are the kernel's choice; each [`Home`] has a loopback address of
//! its own, so that a server that is started again finds its ports free. What time it is comes from
//! the server's answers wherever two times are compared.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use greendot::engine::settings::STALL_MS;
use greendot::time::{Clock, Mono, Unix, boottime};
use greendot::wire::User;
use greendot::wire::beat::{FleetKey, Keys, Writer};
use rustix::process::{Resource, Rlimit, Signal, prlimit};
use serde_json::{Value, json};

use crate::http::{Answer, Conn};
use crate::process::{Lines, Process};
use crate::scrape::Metrics;
use crate::stream::{Stream, records};

/// Longest wait for anything, in ms: far beyond what any machine needs.
pub(crate) const PATIENCE_MS: u64 = 30_000;
/// Between two looks at what no event tells of.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Presence in a hurry.
pub(crate) const BEAT_INTERVAL_MS: u64 = 500;
pub(crate) const OFFLINE_AFTER_MS: u64 = 1_500;
const SWEEP_INTERVAL_MS: u64 = 50;
/// Of the moment of expiry, the sweep's deadline and the wake-up to whole milliseconds, each.
const ROUNDING_MS: u64 = 3;
pub(crate) const FAST: &[&str] = &[
    "--beat-interval-ms=500",
    "--offline-after-ms=1500",
    "--sweep-interval-ms=50",
];

/// A moment by which something must have happened.
#[derive(Clone, Copy)]
pub(crate) struct Deadline(Mono);

impl Deadline {
    pub(crate) fn in_ms(ms: u64) -> Deadline {
        Deadline(boottime().plus_ms(ms))
    }

    /// What is left; None: it is past.
    pub(crate) fn left(self) -> Option<Duration> {
        Some(Duration::from_millis(self.0.ms_since(boottime()))).filter(|left| !left.is_zero())
    }
}

/// Looks until `look` finds something; `what` says what was waited for.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Deadline::in_ms(PATIENCE_MS);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(deadline.left().is_some(), "waited in vain: {what}");
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// Says that the running test is skipped where all can see it: what `print!` says would be
/// captured.
pub(crate) fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "notice: {test} is skipped: {why}");
}

pub(crate) fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// The wall clock, Unix ms.
pub(crate) fn unix_ms() -> u64 {
    Clock::new().now().unix.ms()
}

/// Where the servers of a home listen. The kernel gives sockets that are bound to all addresses
/// higher ports, so none of them can take one of these while a server is down.
const PORTS: (u16, u16) = (8_470, 8_471);

/// What a server needs that outlives its process: a data folder and an address.
pub(crate) struct Home {
    folder: tempfile::TempDir,
    ip: Ipv4Addr,
    /// Of the last server that ran here, if it was told others: the next one takes the same.
    ports: Mutex<Option<(SocketAddr, SocketAddr)>>,
}

impl Home {
    pub(crate) fn new() -> Home {
        // More of a process than it ever makes: none has the address of one that is still there.
        static NEXT: AtomicU16 = AtomicU16::new(2);
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(
            nth < 1_000,
            "a process makes more homes than there are addresses"
        );
        let process = std::process::id() as u16 & 0x1fff;
        let [high, low, ..] = (process << 2 | nth >> 8).to_be_bytes();
        Home {
            folder: tempfile::tempdir().expect("a folder can be made"),
            ip: Ipv4Addr::new(127, high | 128, low, nth as u8),
            ports: Mutex::default(),
        }
    }

    /// With `app.secret`, the secret of users' tokens.
    pub(crate) fn with_secret() -> Home {
        let home = Home::new();
        home.keep("app.secret", "0123456789abcdef0123456789abcdef");
        home
    }

    /// Writes a file that nobody else may read.
    pub(crate) fn keep(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        fs::write(&path, text).expect("a folder of our own");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("a file of our own");
    }

    /// A user's token, signed by `app.secret`.
    pub(crate) fn token(&self, user: &str, flags: &[&str]) -> String {
        let args = ["token", "--user", user, "--key=app.secret"];
        let made = self.run(&[&args, flags].concat());
        assert!(made.status.success(), "{made:?}");
        let text = String::from_utf8(made.stdout).expect("it prints text");
        text.trim_end().to_owned()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A loopback address that no other home has.
    pub(crate) fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn addresses(&self) -> [String; 2] {
        let [http, udp] = [PORTS.0, PORTS.1].map(|port| SocketAddr::from((self.ip, port)));
        let (http, udp) = self
            .ports
            .lock()
            .expect("no holder panics")
            .unwrap_or((http, udp));
        [format!("--http={http}"), format!("--udp={udp}")]
    }

    /// The binary with `args`, in this folder, without any variable but where the store is.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.program(env!("CARGO_BIN_EXE_greendot"), args)
    }

    /// The same with any program.
    pub(crate) fn program(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .current_dir(self.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // The same on every machine, and E2E_MEMORY has the whole suite in a memory.
        let memory = std::env::var_os("E2E_MEMORY").unwrap_or_else(|| "off".into());
        command.env("GREENDOT_MEMORY", memory);
        command
    }

    /// Runs the binary to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.run_program(env!("CARGO_BIN_EXE_greendot"), args)
    }

    /// Runs any program to its end.
    pub(crate) fn run_program(&self, program: &str, args: &[&str]) -> Output {
        let mut process = Process::start(&mut self.program(program, args));
        let (stdout, stderr) = (process.take_stdout(), process.take_stderr());
        let gather = |source: Box<dyn Read + Send>| {
            std::thread::spawn(move || {
                let (mut source, mut bytes) = (source, Vec::new());
                source.read_to_end(&mut bytes).map(|_| bytes)
            })
        };
        let (stdout, stderr) = (gather(Box::new(stdout)), gather(Box::new(stderr)));
        let status = process.wait();
        let bytes = |thread: std::thread::JoinHandle<std::io::Result<Vec<u8>>>| {
            thread
                .join()
                .expect("it only reads")
                .expect("a pipe can be read")
        };
        Output {
            status,
            stdout: bytes(stdout),
            stderr: bytes(stderr),
        }
    }

    /// Starts `greendot serve` and waits until it listens.
    pub(crate) fn serve(&self, flags: &[&str]) -> Server {
        self.serve_into(Stdio::piped(), flags)
    }

    /// The same with its stderr elsewhere; unless that is a pipe of its own, there is no log to
    /// look at.
    pub(crate) fn serve_into(&self, stderr: Stdio, flags: &[&str]) -> Server {
        let data_dir = format!("--data-dir={}", self.data_dir().display());
        let [http, udp] = self.addresses();
        let mut command = self.command(&["serve", &http, &udp, &data_dir]);
        self.launch(command.args(flags).stderr(stderr))
    }

    /// The same after shell commands such as `ulimit -n 64`.
    pub(crate) fn serve_after(&self, shell: &str, flags: &[&str]) -> Server {
        let data_dir = format!("--data-dir={}", self.data_dir().display());
        let [http, udp] = self.addresses();
        let script = format!("{shell}; exec \"$0\" \"$@\"");
        let binary = env!("CARGO_BIN_EXE_greendot");
        let mut command = self.program(
            "sh",
            &["-c", &script, binary, "serve", &http, &udp, &data_dir],
        );
        self.launch(command.args(flags))
    }

    /// Starts a command that is a server, and waits until it listens.
    pub(crate) fn launch(&self, command: &mut Command) -> Server {
        let mut process = Process::start(command);
        let log = Arc::new(Mutex::new(String::new()));
        let kept = Arc::clone(&log);
        if let Some(stderr) = process.try_take_stderr() {
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    let mut kept = kept.lock().expect("no holder panics");
                    kept.push_str(&line);
                    kept.push('\n');
                }
            });
        }
        let stdout = Lines::of(process.take_stdout());
        let Some(line) = stdout.next() else {
            let status = process.wait();
            // What the process said last may still be on its way.
            pause(100);
            panic!(
                "the server ended with {status}: {}",
                log.lock().expect("no holder panics")
            );
        };
        let address = |name: &str| -> Option<SocketAddr> {
            let word = line.split(' ').find_map(|word| word.strip_prefix(name));
            word.map(|word| word.parse().unwrap_or_else(|_| panic!("{name} in {line}")))
        };
        let http = address("http=").unwrap_or_else(|| panic!("no http= in {line}"));
        let (udp, admin) = (address("udp="), address("admin="));
        let https = address("https=");
        if let Some(udp) = udp {
            *self.ports.lock().expect("no holder panics") = Some((http, udp));
        }
        Server {
            process,
            line,
            stdout,
            log,
            http,
            https,
            admin,
            udp,
            key_file: self.data_dir().join("fleet.key"),
        }
    }
}

/// A running server.
pub(crate) struct Server {
    pub(crate) process: Process,
    /// The line on stdout.
    pub(crate) line: String,
    /// What else comes there.
    pub(crate) stdout: Lines,
    log: Arc<Mutex<String>>,
    pub(crate) http: SocketAddr,
    /// None: nothing speaks TLS there.
    pub(crate) https: Option<SocketAddr>,
    /// None: it has no listener for operators.
    pub(crate) admin: Option<SocketAddr>,
    /// None: it receives no beats.
    pub(crate) udp: Option<SocketAddr>,
    pub(crate) key_file: PathBuf,
}

impl Server {
    /// What it has written to stderr.
    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("no holder panics").clone()
    }

    /// Waits until its log has `text`.
    pub(crate) fn expect_log(&self, text: &str) {
        until(&format!("the log says {text:?}"), || {
            self.log().contains(text).then_some(())
        });
    }

    /// Where it receives beats.
    pub(crate) fn udp(&self) -> SocketAddr {
        self.udp.expect("it receives beats")
    }

    pub(crate) fn connect(&self) -> Conn {
        Conn::to(self.http)
    }

    pub(crate) fn get(&self, target: &str) -> Answer {
        self.connect().get(target)
    }

    pub(crate) fn post(&self, target: &str, body: &Value) -> Answer {
        self.connect().post(target, body)
    }

    /// A user's record.
    pub(crate) fn record(&self, user: &str) -> Record {
        let answer = self.get(&format!("/v1/presence/{user}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        Record::of(&answer.json())
    }

    /// Waits until a user is online, which the shard that owns the user decides in a turn of its
    /// own.
    pub(crate) fn expect_online(&self, user: &str) {
        until(&format!("{user} is online"), || {
            self.record(user).online.then_some(())
        });
    }

    /// Opens a stream: `user=alice&watch=bob`.
    pub(crate) fn stream(&self, query: &str) -> Stream {
        Stream::open(self.connect(), &format!("/v1/stream?{query}"))
    }

    /// Opens a stream whose list is too long for a URL, and reads how it begins: hello, and the
    /// snapshot's records.
    pub(crate) fn watch(&self, users: &[String]) -> (Stream, Vec<Record>) {
        let mut conn = self.connect();
        let body = json!({"watch": users}).to_string();
        let head = "POST /v1/stream HTTP/1.1\r\nHost: e2e\r\nContent-Type: application/json\r\n\
                    Content-Length:";
        conn.send(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes());
        let mut stream = Stream::answered(conn);
        stream.expect("hello");
        let mut told = Vec::new();
        while told.len() < users.len() {
            told.extend(records(&stream.expect("snapshot")));
        }
        (stream, told)
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let mut conn = Conn::to(self.admin.unwrap_or(self.http));
        Metrics::parse(&conn.get("/metrics").text())
    }

    pub(crate) fn key(&self) -> FleetKey {
        let text = std::fs::read_to_string(&self.key_file).expect("the server made it");
        Keys::parse(&text)
            .expect("it is a key file")
            .signing()
            .clone()
    }

    pub(crate) fn sender(&self) -> Sender {
        Sender::new(self.udp(), self.key())
    }

    /// Waits until a number of the metrics is as said.
    pub(crate) fn expect_metric(&self, series: &str, wanted: impl Fn(f64) -> bool) {
        until(&format!("{series} is as wanted"), || {
            wanted(self.metrics().sum(series)).then_some(())
        });
    }

    /// Waits until a limit has been reached as often as said. What a shard has counted is shown
    /// from the end of its turn on: one that has answered may not have shown it to another yet.
    pub(crate) fn expect_limit_hits(&self, limit: &str, wanted: impl Fn(f64) -> bool) {
        let series = format!("greendot_limit_hits_total{{limit=\"{limit}\"}}");
        self.expect_metric(&series, wanted);
    }

    /// Waits until what the shards have told each other has been read.
    pub(crate) fn expect_mail_read(&self) {
        until("all mail has come", || {
            let metrics = self.metrics();
            let of = |what: &str| metrics.sum(&format!("greendot_mail_{what}_total"));
            (of("posted") == of("received")).then_some(())
        });
    }

    /// That a publisher of a [`FAST`] server was expired in time, both of its times being the
    /// server's own.
    ///
    /// Never before `offline_after_ms`. At the latest by the next sweep, whose turn begins late by
    /// no more than a second: a server whose turn comes later than that has been stalled, counts
    /// it, and gives its publishers that much longer.
    pub(crate) fn check_silence(&self, gone: &Record) {
        let silence_ms = gone.since() - gone.last_active();
        assert!(
            !gone.online && silence_ms >= OFFLINE_AFTER_MS,
            "too early: {gone:?}"
        );
        let silence_ms_max = OFFLINE_AFTER_MS + SWEEP_INTERVAL_MS + STALL_MS + ROUNDING_MS;
        if silence_ms > silence_ms_max {
            let stalls = self.metrics().sum("greendot_stalls_total");
            assert!(
                stalls > 0.0,
                "more than {silence_ms_max} ms and no stall: {gone:?}"
            );
        }
    }

    /// CPU time used so far, in ms.
    pub(crate) fn cpu_ms(&self) -> u64 {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", self.process.pid())).expect("it runs");
        // After the name, which may hold anything: state is field 3, utime 14, stime 15 (proc(5)),
        // in ticks of 10 ms.
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .expect("it has a name")
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11..13]
            .iter()
            .map(|field| field.parse::<u64>().expect("a number"))
            .sum();
        ticks * 1_000 / rustix::param::clock_ticks_per_second()
    }

    /// The process may have so many file descriptors from now on; those that it has stay.
    pub(crate) fn limit_descriptors(&self, count: u64) {
        let limit = Rlimit {
            current: Some(count),
            maximum: Some(count),
        };
        prlimit(Some(self.process.pid()), Resource::Nofile, limit).expect("limits may be lowered");
    }

    /// Files of the process may not grow beyond so many bytes; None lifts that.
    pub(crate) fn limit_file_bytes(&self, bytes: Option<u64>) {
        let limit = Rlimit {
            current: bytes,
            maximum: None,
        };
        prlimit(Some(self.process.pid()), Resource::Fsize, limit)
            .expect("soft limits may be moved");
    }

    /// Asks for a graceful end and waits for it.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        self.process.signal(Signal::TERM);
        self.process.wait()
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.process.kill();
    }
}

/// A user's state as the server tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    pub(crate) user: String,
    pub(crate) online: bool,
    pub(crate) since: Option<u64>,
    pub(crate) last_active: Option<u64>,
}

impl Record {
    pub(crate) fn of(json: &Value) -> Record {
        let members = json
            .as_object()
            .unwrap_or_else(|| panic!("a record: {json}"));
        assert_eq!(members.len(), 5, "{json}");
        let online = match json["status"].as_str() {
            Some("online") => true,
            Some("offline") => false,
            other => panic!("status {other:?}"),
        };
        assert_eq!(json["online"], online, "{json}");
        Record {
            user: json["user"].as_str().expect("a user").into(),
            online,
            since: json["since"].as_u64(),
            last_active: json["last_active"].as_u64(),
        }
    }

    pub(crate) fn never_seen(user: &str) -> Record {
        Record {
            user: user.into(),
            online: false,
            since: None,
            last_active: None,
        }
    }

    pub(crate) fn since(&self) -> u64 {
        self.since.expect("it has had a transition")
    }

    pub(crate) fn last_active(&self) -> u64 {
        self.last_active.expect("it has beaten")
    }
}

/// Sends datagrams to a server.
pub(crate) struct Sender {
    socket: UdpSocket,
    to: SocketAddr,
    pub(crate) key: FleetKey,
    last_ms: AtomicU64,
}

impl Sender {
    pub(crate) fn new(to: SocketAddr, key: FleetKey) -> Sender {
        // Not all addresses, where one will do: a home's port would be taken by it as well.
        let from = match to.ip().is_loopback() {
            true => Ipv4Addr::LOCALHOST,
            false => Ipv4Addr::UNSPECIFIED,
        };
        Sender {
            socket: UdpSocket::bind((from, 0)).expect("a port is free"),
            to,
            key,
            last_ms: AtomicU64::new(0),
        }
    }

    /// This sender's time: each later than the one before, or a beat in the same millisecond as a
    /// goodbye would not undo it.
    fn next_ms(&self) -> u64 {
        let next_ms = unix_ms().max(self.last_ms.load(Ordering::Relaxed) + 1);
        self.last_ms.store(next_ms, Ordering::Relaxed);
        next_ms
    }

    pub(crate) fn send(&self, datagram: &[u8]) {
        self.socket
            .send_to(datagram, self.to)
            .expect("loopback takes it");
    }

    pub(crate) fn beat(&self, users: &[&str]) {
        self.vouch(false, self.next_ms(), users);
    }

    pub(crate) fn leave(&self, users: &[&str]) {
        self.vouch(true, self.next_ms(), users);
    }

    /// As many datagrams as the users need.
    pub(crate) fn vouch(&self, leave: bool, sent_at_ms: u64, users: &[&str]) {
        let writer = || Writer::new(leave, Unix::from_ms(sent_at_ms), &self.key);
        let mut open = writer();
        for user in users {
            let user = User::parse(user.as_bytes()).expect("a legal id");
            if !open.push(user) {
                self.send(&std::mem::replace(&mut open, writer()).seal(&self.key));
                assert!(open.push(user), "an empty datagram has room");
            }
        }
        self.send(&open.seal(&self.key));
    }
}
