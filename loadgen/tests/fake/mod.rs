//! A presence server small enough to be seen through: one thread, all users in a map. It can be told to lie.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use greendot::time::Unix;
use greendot::wire::beat::{Keys, open};
use greendot_loadgen::clock::unix_ms;

/// What the server does wrong with every seventh event that it sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lie {
    Honest,
    Drop,
    /// Sends it this many ms late, newer ones before it.
    Delay(u64),
    Double,
    /// Sends the opposite a little later.
    Flip,
    /// Tells an online user offline too early: after half the time.
    Impatient,
    /// Never tells anybody offline by itself.
    Deaf,
}

pub(crate) const OFFLINE_AFTER_MS: u64 = 1_500;

pub(crate) struct Fake {
    pub(crate) http: SocketAddr,
    pub(crate) udp: SocketAddr,
    pub(crate) key_file: PathBuf,
    _folder: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    pub(crate) fn start(lie: Lie) -> Fake {
        let folder = tempfile::tempdir().unwrap();
        let key_file = folder.path().join("fleet.key");
        std::fs::write(&key_file, "5".repeat(64)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let beats = UdpSocket::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        beats.set_nonblocking(true).unwrap();
        let (http, udp) = (listener.local_addr().unwrap(), beats.local_addr().unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let keys = Keys::parse(&"5".repeat(64)).unwrap();
            let mut world = World {
                lie,
                keys,
                users: BTreeMap::new(),
                conns: Vec::new(),
                events: 0,
                seen: BTreeSet::new(),
            };
            while !stopped.load(Ordering::Relaxed) {
                world.turn(&listener, &beats);
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        Fake {
            http,
            udp,
            key_file,
            _folder: folder,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[derive(Clone, Copy)]
struct User {
    online: bool,
    since: u64,
    beat: u64,
    left_at: u64,
}

struct Conn {
    socket: TcpStream,
    received: Vec<u8>,
    watching: Option<Vec<String>>,
    later: Vec<(u64, Vec<u8>)>,
    closed: bool,
}

struct World {
    lie: Lie,
    keys: Keys,
    users: BTreeMap<String, User>,
    conns: Vec<Conn>,
    events: u64,
    seen: BTreeSet<String>,
}

impl World {
    fn turn(&mut self, listener: &TcpListener, beats: &UdpSocket) {
        let now = unix_ms();
        while let Ok((socket, _)) = listener.accept() {
            socket.set_nonblocking(true).unwrap();
            socket.set_nodelay(true).unwrap();
            self.conns.push(Conn {
                socket,
                received: Vec::new(),
                watching: None,
                later: Vec::new(),
                closed: false,
            });
        }
        let mut datagram = [0; 1_500];
        while let Ok(length) = beats.recv(&mut datagram) {
            let keys = self.keys.clone();
            if let Ok(beats) = open(&datagram[..length], &keys, Unix::from_ms(now), 30_000) {
                let users: Vec<String> = beats.users().map(|user| user.as_str().to_owned()).collect();
                users
                    .iter()
                    .for_each(|user| self.beat(user, beats.leave, beats.sent_at.ms(), now));
            }
        }
        let patience = if self.lie == Lie::Impatient {
            OFFLINE_AFTER_MS / 2
        } else {
            OFFLINE_AFTER_MS
        };
        let expired: Vec<String> = self
            .users
            .iter()
            .filter(|(_, user)| user.online && now > user.beat + patience && self.lie != Lie::Deaf)
            .map(|(name, _)| name.clone())
            .collect();
        expired.iter().for_each(|user| self.flip(user, false, now));
        for at in 0..self.conns.len() {
            self.serve(at, now);
        }
        self.conns.retain(|conn| !conn.closed);
    }

    fn beat(&mut self, name: &str, leave: bool, sent_at: u64, now: u64) {
        let known = self.users.contains_key(name);
        if leave && !known {
            return;
        }
        let user = self.users.entry(name.to_owned()).or_insert(User {
            online: false,
            since: 0,
            beat: 0,
            left_at: 0,
        });
        if leave {
            user.left_at = user.left_at.max(sent_at);
            if user.online {
                self.flip(name, false, now);
            }
        } else if sent_at > user.left_at {
            user.beat = now;
            if !user.online {
                self.flip(name, true, now);
            }
        }
    }

    fn flip(&mut self, name: &str, online: bool, now: u64) {
        let Some(user) = self.users.get_mut(name) else { return };
        user.online = online;
        user.since = now.max(user.since + 1);
        let user = *user;
        let event =
            |user: User| format!("event: presence\nid: {now}\ndata: {}\n\n", record(name, Some(user))).into_bytes();
        for conn in &mut self.conns {
            if !conn
                .watching
                .as_ref()
                .is_some_and(|watching| watching.iter().any(|watched| watched == name))
            {
                continue;
            }
            self.events += 1;
            let bytes = event(user);
            match self.lie {
                _ if !self.events.is_multiple_of(7) => conn.send(&bytes),
                Lie::Honest | Lie::Impatient | Lie::Deaf => conn.send(&bytes),
                Lie::Drop => {}
                Lie::Delay(ms) => conn.later.push((now + ms, bytes)),
                Lie::Double => conn.send(&[bytes.clone(), bytes].concat()),
                Lie::Flip => {
                    conn.send(&bytes);
                    conn.send(&event(User {
                        online: !online,
                        since: user.since + 1,
                        ..user
                    }));
                }
            }
        }
    }

    fn serve(&mut self, at: usize, now: u64) {
        let conn = &mut self.conns[at];
        let due: Vec<_> = conn.later.extract_if(.., |(due, _)| *due <= now).collect();
        due.iter().for_each(|(_, bytes)| conn.send(bytes));
        let mut piece = [0; 16_384];
        match conn.socket.read(&mut piece) {
            Ok(0) => conn.closed = true,
            Ok(read) => conn.received.extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(_) => conn.closed = true,
        }
        while let Some(end) = conn.received.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(conn.received.drain(..end + 4).collect()).unwrap();
            let target = head.split(' ').nth(1).unwrap();
            if let Some(query) = target.strip_prefix("/v1/stream") {
                let watching: Vec<String> = query
                    .trim_start_matches('?')
                    .split('&')
                    .filter_map(|pair| pair.strip_prefix("watch="))
                    .map(str::to_owned)
                    .collect();
                let records: Vec<String> = watching
                    .iter()
                    .map(|name| record(name, self.users.get(name).copied()))
                    .collect();
                let text = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\nevent: hello\nretry: 200\n\
                     data: {{\"stream\":\"1\",\"watching\":{},\"server_time\":{now},\"beat_interval_ms\":500,\"offline_after_ms\":{OFFLINE_AFTER_MS}}}\n\n\
                     event: snapshot\nid: {now}\ndata: {{\"presence\":[{}]}}\n\n",
                    watching.len(),
                    records.join(",")
                );
                conn.send(text.as_bytes());
                conn.watching = Some(watching);
            } else {
                self.seen.insert(target.to_owned());
                let body = if target == "/metrics" {
                    "# EOF\n".to_owned()
                } else {
                    let name = target.trim_start_matches("/v1/presence/");
                    record(name, self.users.get(name).copied())
                };
                conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
            }
        }
    }
}

impl Conn {
    fn send(&mut self, bytes: &[u8]) {
        // The fake's clients read; a full socket would be their fault, and the test's end.
        if let Err(error) = self.socket.write_all(bytes) {
            assert!(
                error.kind() != ErrorKind::WouldBlock,
                "a client of the fake does not read"
            );
            self.closed = true;
        }
    }
}

fn record(name: &str, user: Option<User>) -> String {
    match user {
        Some(User {
            online, since, beat, ..
        }) if since > 0 => {
            let status = if online { "online" } else { "offline" };
            format!("{{\"user\":\"{name}\",\"status\":\"{status}\",\"since\":{since},\"last_active\":{beat}}}")
        }
        _ => format!("{{\"user\":\"{name}\",\"status\":\"offline\",\"since\":null,\"last_active\":null}}"),
    }
}
