//! A presence server small enough to be seen through: one thread, all users in a map. It can be
//! told to lie.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use greendot::time::Unix;
use greendot::wire::beat::{Keys, open};
use greendot_loadgen::clock::unix_ms;

/// What the server does wrong, with every seventh event that it sends unless it says otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lie {
    Honest,
    Drop,
    /// Sends it this many ms late, newer ones before it.
    Delay(u64),
    Double,
    /// Sends the opposite a little later.
    Flip,
    /// Sends the opposite in its place, with the right time.
    Opposite,
    /// Tells whoever came online offline this many ms later, so that the real goodbye changes
    /// nothing.
    Premature(u64),
    /// Tells an online user offline too early: after half the time.
    Impatient,
    /// Never tells anybody offline by itself.
    Deaf,
    /// In snapshots, tells every third known user with the opposite status, and the right time.
    WrongSnapshot,
    /// In snapshots, tells every third known user as never seen.
    Forgetful,
    /// Says in `/metrics` nothing of what it received.
    Mute,
    /// Does not count every seventh datagram.
    Miscount,
}

/// How the server behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manners {
    pub(crate) lie: Lie,
    pub(crate) offline_after_ms: u64,
    pub(crate) retry_ms: u64,
    /// Having handled this many requests and datagrams it does nothing for so many ms, once.
    pub(crate) pause: Option<(u64, u64)>,
    /// A connection that asks for nothing for so many ms is closed.
    pub(crate) idle_ms: u64,
    /// The body of every answer to a query, instead of the record.
    pub(crate) answer: Option<&'static str>,
}

impl Default for Manners {
    fn default() -> Manners {
        Manners {
            lie: Lie::Honest,
            offline_after_ms: 30_000,
            retry_ms: 200,
            pause: None,
            idle_ms: u64::MAX,
            answer: None,
        }
    }
}

/// A request for a stream.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) target: String,
    pub(crate) at_ms: u64,
    pub(crate) last_event_id: Option<u64>,
}

/// What the fake saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) asked: Vec<Asked>,
    /// When each stream was found closed by its other end.
    pub(crate) closed_ms: Vec<u64>,
}

pub(crate) struct Fake {
    pub(crate) http: SocketAddr,
    pub(crate) udp: SocketAddr,
    pub(crate) key_file: PathBuf,
    seen: Arc<Mutex<Seen>>,
    _folder: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    pub(crate) fn start(manners: Manners) -> Fake {
        let folder = tempfile::tempdir().unwrap();
        let key_file = folder.path().join("fleet.key");
        std::fs::write(&key_file, "5".repeat(64)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let beats = UdpSocket::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        beats.set_nonblocking(true).unwrap();
        let (http, udp) = (listener.local_addr().unwrap(), beats.local_addr().unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (stopped, log) = (Arc::clone(&stop), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            let keys = Keys::parse(&"5".repeat(64)).unwrap();
            let mut world = World {
                manners,
                keys,
                users: BTreeMap::new(),
                conns: Vec::new(),
                events: 0,
                handled: 0,
                counted: Counted::default(),
                seen: log,
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
            seen,
            _folder: folder,
            stop,
            thread: Some(thread),
        }
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
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
    asked_ms: u64,
    closed: bool,
}

/// What `/metrics` says.
#[derive(Default)]
struct Counted {
    datagrams: u64,
    beats: u64,
    refused: u64,
}

struct World {
    manners: Manners,
    keys: Keys,
    users: BTreeMap<String, User>,
    conns: Vec<Conn>,
    events: u64,
    handled: u64,
    counted: Counted,
    seen: Arc<Mutex<Seen>>,
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
                asked_ms: now,
                closed: false,
            });
        }
        let mut datagram = [0; 1_500];
        while let Ok(length) = beats.recv(&mut datagram) {
            let keys = self.keys.clone();
            self.handle();
            // As it is read: a turn may have taken long.
            let now = unix_ms();
            let is_counted = self.manners.lie != Lie::Miscount || !self.handled.is_multiple_of(7);
            self.counted.datagrams += u64::from(is_counted);
            if let Ok(beats) = open(&datagram[..length], &keys, Unix::from_ms(now), 30_000) {
                let users: Vec<String> =
                    beats.users().map(|user| user.as_str().to_owned()).collect();
                self.counted.beats += if beats.flags.is_leave() {
                    0
                } else {
                    users.len() as u64
                };
                users.iter().for_each(|user| {
                    self.beat(user, beats.flags.is_leave(), beats.sent_at.ms(), now)
                });
            } else {
                self.counted.refused += 1;
            }
        }
        let Manners {
            lie,
            offline_after_ms,
            ..
        } = self.manners;
        let is_expired = |user: &User| match lie {
            Lie::Premature(after_ms) => now >= user.since + after_ms,
            Lie::Impatient => now > user.beat + offline_after_ms / 2,
            Lie::Deaf => false,
            _ => now > user.beat + offline_after_ms,
        };
        let expired: Vec<String> = self
            .users
            .iter()
            .filter(|(_, user)| user.online && is_expired(user))
            .map(|(name, _)| name.clone())
            .collect();
        expired.iter().for_each(|user| self.flip(user, false, now));
        for at in 0..self.conns.len() {
            self.serve(at, now);
        }
        self.conns.retain(|conn| !conn.closed);
    }

    /// Something has come; whoever has had enough rests.
    fn handle(&mut self) {
        self.handled += 1;
        if let Some((after, pause_ms)) = self.manners.pause
            && self.handled == after
        {
            std::thread::sleep(Duration::from_millis(pause_ms));
        }
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
        let Some(user) = self.users.get_mut(name) else {
            return;
        };
        user.online = online;
        user.since = now.max(user.since + 1);
        let user = *user;
        let event = |user: User| {
            format!(
                "event: presence\nid: {now}\ndata: {}\n\n",
                record(name, Some(user))
            )
            .into_bytes()
        };
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
            match self.manners.lie {
                _ if !self.events.is_multiple_of(7) => conn.send(&bytes),
                Lie::Opposite => conn.send(&event(User {
                    online: !online,
                    ..user
                })),
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
                _ => conn.send(&bytes),
            }
        }
    }

    fn serve(&mut self, at: usize, now: u64) {
        let conn = &mut self.conns[at];
        let due: Vec<_> = conn.later.extract_if(.., |(due, _)| *due <= now).collect();
        due.iter().for_each(|(_, bytes)| conn.send(bytes));
        if conn.watching.is_none() && now.saturating_sub(conn.asked_ms) > self.manners.idle_ms {
            conn.closed = true;
            return;
        }
        let mut piece = [0; 16_384];
        match conn.socket.read(&mut piece) {
            Ok(0) => conn.closed = true,
            Ok(read) => conn.received.extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(_) => conn.closed = true,
        }
        if conn.closed && conn.watching.is_some() {
            self.seen.lock().unwrap().closed_ms.push(now);
        }
        conn.asked_ms = now;
        while let Some(end) = self.conns[at]
            .received
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
        {
            let head =
                String::from_utf8(self.conns[at].received.drain(..end + 4).collect()).unwrap();
            self.handle();
            self.answer(at, &head, unix_ms());
        }
    }

    fn answer(&mut self, at: usize, head: &str, now: u64) {
        let target = head.split(' ').nth(1).unwrap();
        if let Some(query) = target.strip_prefix("/v1/stream") {
            let header = |line: &str| line.strip_prefix("Last-Event-ID: ")?.parse().ok();
            self.seen.lock().unwrap().asked.push(Asked {
                target: target.to_owned(),
                at_ms: now,
                last_event_id: head.lines().find_map(header),
            });
            let watching: Vec<String> = query
                .trim_start_matches('?')
                .split('&')
                .filter_map(|pair| pair.strip_prefix("watch="))
                .map(str::to_owned)
                .collect();
            let records: Vec<String> = watching
                .iter()
                .map(|name| record(name, self.in_snapshot(name)))
                .collect();
            let Manners {
                offline_after_ms,
                retry_ms,
                ..
            } = self.manners;
            let text = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n\
                 event: hello\nretry: {retry_ms}\n\
                 data: {{\"stream\":\"1\",\"watching\":{},\"server_time\":{now},\
                 \"beat_interval_ms\":500,\"offline_after_ms\":{offline_after_ms}}}\n\n\
                 event: snapshot\nid: {now}\ndata: {{\"presence\":[{}]}}\n\n",
                watching.len(),
                records.join(",")
            );
            self.conns[at].send(text.as_bytes());
            self.conns[at].watching = Some(watching);
        } else {
            let name = target.trim_start_matches("/v1/presence/");
            let body = match (target, self.manners.answer) {
                ("/metrics", _) => self.metrics(),
                (_, Some(answer)) => answer.to_owned(),
                _ => record(name, self.users.get(name).copied()),
            };
            self.conns[at].send(
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                )
                .as_bytes(),
            );
        }
    }

    /// A user's state as a snapshot tells it.
    fn in_snapshot(&mut self, name: &str) -> Option<User> {
        let user = self.users.get(name).copied()?;
        let lies = matches!(self.manners.lie, Lie::WrongSnapshot | Lie::Forgetful);
        self.events += u64::from(lies);
        match self.manners.lie {
            Lie::WrongSnapshot if self.events.is_multiple_of(3) => Some(User {
                online: !user.online,
                ..user
            }),
            Lie::Forgetful if self.events.is_multiple_of(3) => None,
            _ => Some(user),
        }
    }

    fn metrics(&self) -> String {
        let Counted {
            datagrams,
            beats,
            refused,
        } = self.counted;
        if self.manners.lie == Lie::Mute {
            return "# EOF\n".to_owned();
        }
        format!(
            "greendot_build_info{{version=\"fake\"}} 1\ngreendot_users {}\n\
             greendot_datagrams_received_total {datagrams}\n\
             greendot_beats_total{{source=\"udp\"}} {beats}\n\
             greendot_datagrams_refused_total{{reason=\"mac\"}} {refused}\n# EOF\n",
            self.users.len()
        )
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
            online,
            since,
            beat,
            ..
        }) if since > 0 => {
            let status = if online { "online" } else { "offline" };
            format!(
                "{{\"user\":\"{name}\",\"status\":\"{status}\",\"online\":{online},\
                 \"since\":{since},\"last_active\":{beat}}}"
            )
        }
        _ => format!(
            "{{\"user\":\"{name}\",\"status\":\"offline\",\"online\":false,\
             \"since\":null,\"last_active\":null}}"
        ),
    }
}
