//! Taps: relays between nodes that write down what they pass on, and may be slow, out of order and
//! repetitive about it.
//!
//! Owns the recordings. A tap whose target is gone passes that on: it closes what was connected to
//! it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use greendot::time::{Mono, boottime};

use crate::harness::unix_ms;

/// How things are passed on.
#[derive(Clone, Copy)]
pub(super) struct Manner {
    /// Each datagram is held for up to so long.
    pub(super) datagram_delay_ms_max: u64,
    /// Each piece of a connection is held for up to so long.
    pub(super) piece_delay_ms_max: u64,
    /// So many of a hundred datagrams are passed on twice.
    pub(super) twice_percent: u32,
}

impl Manner {
    /// At once, and once.
    pub(super) const PLAIN: Manner = Manner {
        datagram_delay_ms_max: 0,
        piece_delay_ms_max: 0,
        twice_percent: 0,
    };
}

/// Nobody who holds one of these locks panics half-way through a change.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A datagram as it came by.
#[derive(Clone, Debug)]
pub(super) struct Datagram {
    pub(super) at_ms: u64,
    pub(super) from: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

/// A tap for datagrams, one way.
pub(super) struct UdpTap {
    pub(super) at: SocketAddr,
    stop: Arc<AtomicBool>,
    drops: Arc<AtomicBool>,
    came: Arc<Mutex<Vec<Datagram>>>,
    /// What was passed on, in that order, by its place in `came`.
    went: Arc<Mutex<Vec<usize>>>,
}

impl UdpTap {
    pub(super) fn new(here: Ipv4Addr, target: SocketAddr, manner: Manner) -> UdpTap {
        let socket = UdpSocket::bind((here, 0)).expect("a port is free");
        let tap = UdpTap {
            at: socket.local_addr().expect("it is bound"),
            stop: Arc::default(),
            drops: Arc::default(),
            came: Arc::default(),
            went: Arc::default(),
        };
        let (stop, came, went) = (
            Arc::clone(&tap.stop),
            Arc::clone(&tap.came),
            Arc::clone(&tap.went),
        );
        let drops = Arc::clone(&tap.drops);
        std::thread::spawn(move || {
            pass_datagrams(&socket, target, manner, &stop, &drops, &came, &went)
        });
        tap
    }

    /// From now on nothing is passed on, as by a firewall that says nothing; or all is again.
    pub(super) fn drop_all(&self, drops: bool) {
        self.drops.store(drops, Ordering::Release);
    }

    /// What has come by so far.
    pub(super) fn datagrams(&self) -> Vec<Datagram> {
        locked(&self.came).clone()
    }

    /// How many were passed on, repetitions included, and how many of these before one that had
    /// come earlier.
    pub(super) fn passed_on(&self) -> (usize, usize) {
        let went = locked(&self.went);
        (
            went.len(),
            went.windows(2).filter(|pair| pair[0] > pair[1]).count(),
        )
    }
}

impl Drop for UdpTap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes it. Not being able to only leaves a thread asleep.
        let any = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
        let _ = any.and_then(|socket| socket.send_to(&[], self.at));
    }
}

fn pass_datagrams(
    socket: &UdpSocket,
    target: SocketAddr,
    manner: Manner,
    stop: &AtomicBool,
    drops: &AtomicBool,
    came: &Mutex<Vec<Datagram>>,
    went: &Mutex<Vec<usize>>,
) {
    let mut random = fastrand::Rng::with_seed(u64::from(target.port()));
    let mut held: BinaryHeap<Reverse<(Mono, usize)>> = BinaryHeap::new();
    let mut voices: HashMap<SocketAddr, UdpSocket> = HashMap::new();
    let mut buffer = [0; 2_000];
    while !stop.load(Ordering::Acquire) {
        let now = boottime();
        while let Some(Reverse((due, index))) = held.peek().copied()
            && due <= now
        {
            held.pop();
            let Datagram { from, bytes, .. } = locked(came)[index].clone();
            let here = socket.local_addr().expect("it is bound").ip();
            let voice = voices
                .entry(from)
                .or_insert_with(|| voice(here, from.port()));
            // A target that is gone gets nothing, as on any network.
            let _ = voice.send_to(&bytes, target);
            locked(went).push(index);
        }
        let wait_ms = held
            .peek()
            .map_or(1_000, |Reverse((due, _))| due.ms_since(boottime()).max(1));
        let wait = Some(Duration::from_millis(wait_ms));
        socket.set_read_timeout(wait).expect("the wait is not zero");
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        if drops.load(Ordering::Acquire) {
            continue;
        }
        let mut came = locked(came);
        let copies = if random.u32(0..100) < manner.twice_percent {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let due = boottime().plus_ms(random.u64(0..=manner.datagram_delay_ms_max));
            held.push(Reverse((due, came.len())));
        }
        came.push(Datagram {
            at_ms: unix_ms(),
            from,
            bytes: buffer[..length].to_vec(),
        });
    }
}

/// A socket of one's own for each sender, for its port says which shard hears it: like the sender's
/// in all that a few shards can tell apart.
fn voice(here: IpAddr, port: u16) -> UdpSocket {
    loop {
        let socket = UdpSocket::bind((here, 0)).expect("a port is free");
        if socket.local_addr().expect("it is bound").port() % 16 == port % 16 {
            return socket;
        }
    }
}

/// What two have said to each other.
#[derive(Default)]
struct Recording {
    asked: Mutex<Vec<u8>>,
    answered: Mutex<Vec<u8>>,
}

/// A tap for connections.
pub(super) struct TcpTap {
    pub(super) at: SocketAddr,
    stop: Arc<AtomicBool>,
    recordings: Arc<Mutex<Vec<Arc<Recording>>>>,
}

/// A request, and as much of its answer as has come.
#[derive(Clone, Debug)]
pub(super) struct Exchange {
    pub(super) request: Message,
    pub(super) answer: Option<Message>,
}

/// A request or an answer.
#[derive(Clone, Debug)]
pub(super) struct Message {
    /// The request line or the status line.
    pub(super) line: String,
    fields: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Message {
    /// A field by its name in lower case.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(given, _)| given == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn body_text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    /// The first of `bytes`, and those after it. None: it is not whole.
    fn parse(bytes: &[u8]) -> Option<(Message, &[u8])> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).expect("a head is text");
        let mut lines = head.split("\r\n");
        let line = lines.next().expect("split gives one at least").to_owned();
        let field = |line: &str| {
            let (name, value) = line.split_once(':').expect("a field");
            (name.to_lowercase(), value.trim().to_owned())
        };
        let mut message = Message {
            line,
            fields: lines.map(field).collect(),
            body: Vec::new(),
        };
        let length = message
            .field("content-length")
            .map_or(0, |n| n.parse().expect("digits"));
        let rest = &bytes[end + 4..];
        message.body = rest.get(..length)?.to_vec();
        Some((message, &rest[length..]))
    }

    fn parse_all(mut bytes: &[u8]) -> Vec<Message> {
        std::iter::from_fn(|| {
            let (message, rest) = Message::parse(bytes)?;
            bytes = rest;
            Some(message)
        })
        .collect()
    }
}

impl TcpTap {
    pub(super) fn new(here: Ipv4Addr, target: SocketAddr, manner: Manner) -> TcpTap {
        let listener = TcpListener::bind((here, 0)).expect("a port is free");
        let tap = TcpTap {
            at: listener.local_addr().expect("it is bound"),
            stop: Arc::default(),
            recordings: Arc::default(),
        };
        let (stop, recordings) = (Arc::clone(&tap.stop), Arc::clone(&tap.recordings));
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                let Ok(socket) = socket else { continue };
                let Ok(onward) = TcpStream::connect_timeout(&target, Duration::from_secs(5)) else {
                    continue;
                };
                let recording = Arc::new(Recording::default());
                locked(&recordings).push(Arc::clone(&recording));
                pass_both_ways(socket, onward, manner, recording);
            }
        });
        tap
    }

    /// The bytes of each connection so far: what was asked and what was answered.
    pub(super) fn bytes(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let recordings = locked(&self.recordings);
        let both = |recording: &Arc<Recording>| {
            (
                locked(&recording.asked).clone(),
                locked(&recording.answered).clone(),
            )
        };
        recordings.iter().map(both).collect()
    }

    /// Whole requests whose line begins with `start`, with their answers; those of one connection
    /// in their order.
    pub(super) fn exchanges(&self, start: &str) -> Vec<Exchange> {
        let mut found = Vec::new();
        for (asked, answered) in self.bytes() {
            let mut answers = Message::parse_all(&answered).into_iter();
            let exchanges = Message::parse_all(&asked)
                .into_iter()
                .map(|request| Exchange {
                    request,
                    answer: answers.next(),
                });
            found.extend(exchanges.filter(|exchange| exchange.request.line.starts_with(start)));
        }
        found
    }
}

impl Drop for TcpTap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes it.
        let _ = TcpStream::connect_timeout(&self.at, Duration::from_secs(1));
    }
}

fn pass_both_ways(near: TcpStream, far: TcpStream, manner: Manner, recording: Arc<Recording>) {
    for socket in [&near, &far] {
        // Fails only on one that has ended already.
        let _ = socket.set_nodelay(true);
    }
    let (Ok(near_again), Ok(far_again)) = (near.try_clone(), far.try_clone()) else {
        return;
    };
    let also = Arc::clone(&recording);
    std::thread::spawn(move || pass(near, far, manner, &recording.asked));
    std::thread::spawn(move || pass(far_again, near_again, manner, &also.answered));
}

fn pass(mut from: TcpStream, mut to: TcpStream, manner: Manner, record: &Mutex<Vec<u8>>) {
    let mut random = fastrand::Rng::with_seed(7);
    let mut chunk = [0; 65_536];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => {
                std::thread::sleep(Duration::from_millis(
                    random.u64(0..=manner.piece_delay_ms_max),
                ));
                locked(record).extend_from_slice(&chunk[..length]);
                if to.write_all(&chunk[..length]).is_err() {
                    break;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    // The end of one way is the end of both: nobody here half-closes.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
