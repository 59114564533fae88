//! Real servers of Redis in folders of their own, and a plain connection to one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::thread::sleep;
use std::time::Duration;

use greendot::fleet::LIBRARY;
use greendot::fleet::calls::Call;
use tempfile::TempDir;

/// A server that ends with its test.
pub(crate) struct Server {
    pub child: Child,
    command: Command,
    folder: TempDir,
    /// Of a member of a cluster; none of a server that listens on a socket in its folder.
    pub port: Option<u16>,
    /// On which members speak to each other.
    pub bus: Option<u16>,
}

/// An answer of Redis.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    Word(String),
    Refused(String),
    Number(i64),
    Bytes(Vec<u8>),
    Nothing,
    List(Vec<Answer>),
}

/// A connection that speaks RESP2.
pub(crate) struct Link {
    reader: BufReader<Box<dyn Read + Send>>,
    writer: Box<dyn Write + Send>,
}

/// Longest wait for an answer, and for a server to come up.
const PATIENCE: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(5);

impl Server {
    /// Nothing is written to disk, and only its folder leads to it. None: there is no redis-server
    /// here, which a notice says.
    pub(crate) fn start() -> Option<Server> {
        is_there().then(|| Server::spawn(None, &[]).expect("redis-server does not start"))
    }

    /// On a port from the kernel, with further arguments.
    #[allow(dead_code, reason = "the tests of the bridge ask")]
    pub(crate) fn start_on_port(args: &[&str]) -> Option<Server> {
        let mut started = (0..5).map(|_| Server::spawn(Some((free_port(), 0)), args));
        is_there().then(|| started.find_map(|server| server).expect("no port is free"))
    }

    /// The same again, at the same place and without its data.
    #[allow(dead_code, reason = "the tests of the bridge ask")]
    pub(crate) fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = self.command.spawn().unwrap();
        self.is_up();
    }

    /// A member of a cluster, on ports from the kernel. Another program may take one before the
    /// server does: then there are others.
    pub(crate) fn start_member() -> Option<Server> {
        Server::start_member_with(Vec::new)
    }

    /// With further arguments, which are asked for again if a port was taken.
    pub(crate) fn start_member_with(args: impl Fn() -> Vec<String>) -> Option<Server> {
        let mut started = (0..5).map(|_| {
            let args = args();
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            Server::spawn(Some((free_port(), free_port())), &args)
        });
        is_there().then(|| started.find_map(|server| server).expect("no port is free"))
    }

    /// Without a bus it is no member of a cluster.
    fn spawn(ports: Option<(u16, u16)>, args: &[&str]) -> Option<Server> {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("redis-server");
        command.args(["--save", "", "--appendonly", "no"]);
        match ports {
            None => {
                command.args(["--port", "0", "--unixsocket", "redis.sock"]);
            }
            Some((port, 0)) => {
                command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
            }
            Some((port, bus)) => {
                let (port, bus) = (port.to_string(), bus.to_string());
                command.args([
                    "--bind",
                    "127.0.0.1",
                    "--port",
                    &port,
                    "--cluster-port",
                    &bus,
                ]);
                command.args(["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]);
                command.args(["--repl-diskless-sync-delay", "0"]);
            }
        }
        command
            .arg("--dir")
            .arg(folder.path())
            .args(args)
            .current_dir(folder.path())
            .stdout(Stdio::null());
        let mut server = Server {
            child: command.spawn().unwrap(),
            command,
            folder,
            port: ports.map(|(port, _)| port),
            bus: ports.map(|(_, bus)| bus),
        };
        server.is_up().then_some(server)
    }

    /// Waits until it listens. False: it has ended.
    fn is_up(&mut self) -> bool {
        for _ in 0..PATIENCE.as_millis() / STEP.as_millis() {
            // One that finds its second port taken ends after it has listened.
            if self.try_link().is_some_and(|mut link| link.is_answered()) {
                return true;
            }
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            sleep(STEP);
        }
        panic!("redis-server does not listen");
    }

    pub(crate) fn link(&self) -> Link {
        self.try_link().expect("redis-server does not listen")
    }

    /// Its processor's time so far, in seconds.
    #[allow(dead_code, reason = "the benches ask")]
    pub(crate) fn cpu_seconds(&self) -> f64 {
        // The server's own account, to the microsecond; that of /proc ticks a hundred times a
        // second.
        let info = String::from_utf8(self.link().ask(["INFO", "cpu"]).bytes()).unwrap();
        let seconds = |name: &str| -> f64 {
            let line = info.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().parse().unwrap()
        };
        seconds("used_cpu_sys:") + seconds("used_cpu_user:")
    }

    fn try_link(&self) -> Option<Link> {
        if let Some(port) = self.port {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            return Some(Link::new(stream.try_clone().unwrap(), stream));
        }
        let stream = UnixStream::connect(self.folder.path().join("redis.sock")).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Some(Link::new(stream.try_clone().unwrap(), stream))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Link {
    fn new(reader: impl Read + Send + 'static, writer: impl Write + Send + 'static) -> Link {
        Link {
            reader: BufReader::new(Box::new(reader)),
            writer: Box::new(writer),
        }
    }

    /// Puts the library there.
    pub(crate) fn load(&mut self) {
        let loaded = self.ask([b"FUNCTION", &b"LOAD"[..], LIBRARY.as_bytes()]);
        assert_eq!(loaded, Answer::Bytes(b"gd1".into()));
    }

    pub(crate) fn ask<W: AsRef<[u8]>>(&mut self, words: impl IntoIterator<Item = W>) -> Answer {
        self.send(words);
        self.read()
    }

    pub(crate) fn call(&mut self, call: &Call) -> Answer {
        self.ask(call.words())
    }

    fn is_answered(&mut self) -> bool {
        let mut line = String::new();
        let asked = self.writer.write_all(b"PING\r\n");
        let read = asked.and_then(|()| self.reader.read_line(&mut line));
        read.is_ok_and(|bytes| bytes > 0)
    }

    /// Without waiting for the answer.
    pub(crate) fn send<W: AsRef<[u8]>>(&mut self, words: impl IntoIterator<Item = W>) {
        self.send_all([words]);
    }

    /// Several in one write.
    pub(crate) fn send_all<W: AsRef<[u8]>>(
        &mut self,
        all: impl IntoIterator<Item = impl IntoIterator<Item = W>>,
    ) {
        let mut bytes = Vec::new();
        for words in all {
            let words: Vec<W> = words.into_iter().collect();
            bytes.extend(format!("*{}\r\n", words.len()).as_bytes());
            for word in &words {
                let word = word.as_ref();
                bytes.extend(format!("${}\r\n", word.len()).as_bytes());
                bytes.extend(word);
                bytes.extend(b"\r\n");
            }
        }
        self.writer.write_all(&bytes).unwrap();
    }

    pub(crate) fn read(&mut self) -> Answer {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        let line = line.strip_suffix("\r\n").expect("the connection has ended");
        let (kind, rest) = line.split_at(1);
        match kind {
            "+" => Answer::Word(rest.to_owned()),
            "-" => Answer::Refused(rest.to_owned()),
            ":" => Answer::Number(rest.parse().unwrap()),
            "$" | "*" if rest == "-1" => Answer::Nothing,
            "$" => {
                let mut bytes = vec![0; rest.parse::<usize>().unwrap() + 2];
                self.reader.read_exact(&mut bytes).unwrap();
                bytes.truncate(bytes.len() - 2);
                Answer::Bytes(bytes)
            }
            "*" => Answer::List((0..rest.parse().unwrap()).map(|_| self.read()).collect()),
            _ => panic!("{line} is no answer"),
        }
    }
}

impl Answer {
    pub(crate) fn bytes(self) -> Vec<u8> {
        let Answer::Bytes(bytes) = self else {
            panic!("{self:?} is not bytes");
        };
        bytes
    }

    pub(crate) fn refused(self) -> String {
        let Answer::Refused(why) = self else {
            panic!("{self:?} is no refusal");
        };
        why
    }

    pub(crate) fn list(self) -> Vec<Answer> {
        let Answer::List(list) = self else {
            panic!("{self:?} is no list");
        };
        list
    }
}

/// Asks until the answer is as it should be.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..PATIENCE.as_millis() / STEP.as_millis() {
        if is_so() {
            return;
        }
        sleep(STEP);
    }
    panic!("{what}: not within {PATIENCE:?}");
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn is_there() -> bool {
    static NOTICE: Once = Once::new();
    let version = Command::new("redis-server").arg("--version").output();
    let is_there = version.is_ok();
    if !is_there {
        NOTICE.call_once(|| {
            eprintln!("notice: no redis-server (apt-get install redis-server); skipped");
        });
    }
    is_there
}
