//! Asks other nodes of a fleet for their streams, and sends them calls about these.
//!
//! Owns the few threads that do, and what bounds it: so many questions and calls wait, each for so
//! long, and so many bytes come. A node that does not answer so is told as silent.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::http::{Remote, Token};
use super::reply::Reply;
use super::threads::Spawn;
use crate::engine::{Forward, Forwarded, Mail, NodeAsk, NodeStreams, Onward};
use crate::time::{Mono, boottime};
use crate::wire::json::write_str;

/// Nodes that are asked at once; and as many calls are sent at once.
const THREADS: usize = 4;
/// Questions that wait for one of them.
const WAITING_MAX: usize = 64;
/// Calls that do: what four threads send in a tenth of a second.
const CALLS_MAX: usize = 256;
/// Bytes of their bodies; a longest one fits.
const CALLS_BYTES_MAX: usize = 16 << 20;
/// Nodes to which one thread keeps a connection.
const KEPT_MAX: usize = 128;
/// Longest time for a question and its answer, in ms.
const TIMEOUT_MS: u64 = 1_000;
/// A node that did not answer is sent one call in so many ms, and no more: it must not hold up what
/// is for others, nor fill the log. If it has died, so have the streams that those calls are about.
const PROBE_MS: u64 = 2_000;
/// The status of a cursor of an earlier life of the node.
const GONE: u16 = 410;

/// Hands a piece of mail to one shard.
type TellOne = Arc<dyn Fn(u16, Mail) + Send + Sync>;

/// See the module.
pub struct Abroad {
    handle: AbroadHandle,
    threads: Vec<JoinHandle<()>>,
}

/// What a bridge asks by.
#[derive(Clone)]
pub struct AbroadHandle {
    asks: Sender<NodeAsk>,
    calls: Sender<(SocketAddr, Forward)>,
    /// Bytes of the bodies of those that wait.
    bytes: Arc<AtomicUsize>,
}

/// A node's answer.
#[derive(Deserialize)]
struct Page<'b> {
    #[serde(borrow)]
    streams: Vec<&'b RawValue>,
    cursor: Option<Box<str>>,
}

impl AbroadHandle {
    /// Asks a node; what came of it is told. False: too many are asked already.
    pub fn ask(&self, ask: NodeAsk) -> bool {
        self.asks.try_send(ask).is_ok()
    }

    /// Sends a call to the node there; what came of it is told. False: too many are sent already.
    pub fn forward(&self, node: SocketAddr, call: Forward) -> bool {
        let bytes = call.request.body.len();
        let before = self.bytes.fetch_add(bytes, Relaxed);
        let is_taken =
            before + bytes <= CALLS_BYTES_MAX && self.calls.try_send((node, call)).is_ok();
        if !is_taken {
            self.bytes.fetch_sub(bytes, Relaxed);
        }
        is_taken
    }
}

impl Abroad {
    /// Nodes are shown `token`.
    ///
    /// Errors: a thread could not be started.
    pub fn start(token: &Token, tell_one: &TellOne, spawn: Spawn<'_>) -> io::Result<Abroad> {
        let (asks, waiting) = bounded(WAITING_MAX);
        let (calls, sent) = bounded(CALLS_MAX);
        let asker = |at| {
            let (token, tell_one) = (Arc::clone(token), Arc::clone(tell_one));
            let waiting: Receiver<NodeAsk> = waiting.clone();
            let work = move || {
                for ask in waiting {
                    let (shard, conn) = (ask.asker.shard, ask.asker.conn);
                    // Nobody waits for it any more.
                    if boottime() < ask.asker.until {
                        let told = Arc::new(told(ask, &token));
                        tell_one(shard, Mail::Abroad { conn, told });
                    }
                }
            };
            spawn(format!("abroad-{at}"), Box::new(work))
        };
        let slow = Arc::<Slow>::default();
        let bytes = Arc::<AtomicUsize>::default();
        let sender = |at| {
            let (token, tell_one) = (Arc::clone(token), Arc::clone(tell_one));
            let sent: Receiver<(SocketAddr, Forward)> = sent.clone();
            let (slow, bytes) = (Arc::clone(&slow), Arc::clone(&bytes));
            let work = move || {
                let mut kept = Kept::default();
                for (node, call) in sent {
                    let (shard, conn) = (call.asker.shard, call.asker.conn);
                    bytes.fetch_sub(call.request.body.len(), Relaxed);
                    let began = boottime();
                    if began < call.asker.until {
                        let mut told = Forwarded::Silent;
                        if slow.may_have(node, began) {
                            told = kept.forward(node, &call.request, &token);
                            slow.note(node, &told, boottime());
                        }
                        let told = Arc::new(told);
                        tell_one(shard, Mail::Forwarded { conn, told });
                    }
                }
            };
            spawn(format!("forward-{at}"), Box::new(work))
        };
        let threads = (0..THREADS).map(asker).chain((0..THREADS).map(sender));
        let threads = threads.collect::<io::Result<_>>()?;
        let handle = AbroadHandle { asks, calls, bytes };
        Ok(Abroad { handle, threads })
    }

    /// For the bridge.
    pub fn handle(&self) -> AbroadHandle {
        self.handle.clone()
    }

    /// Ends the threads, once all handles are dropped.
    pub fn stop(self) {
        drop(self.handle);
        for thread in self.threads {
            thread
                .join()
                .expect("the thread returns or ends the process");
        }
    }
}

/// Nodes that have not answered, and until when none of their calls is sent.
#[derive(Default)]
struct Slow(Mutex<HashMap<SocketAddr, Mono>>);

impl Slow {
    /// Whether a node is sent a call now. If it was slow, this is the one that finds out.
    fn may_have(&self, node: SocketAddr, now: Mono) -> bool {
        let mut slow = self.0.lock();
        let Some(until) = slow.get_mut(&node) else {
            return true;
        };
        let may = *until <= now;
        if may {
            *until = now.plus_ms(PROBE_MS);
        }
        may
    }

    /// What came of a call that was sent.
    fn note(&self, node: SocketAddr, told: &Forwarded, now: Mono) {
        let mut slow = self.0.lock();
        if *told == Forwarded::Silent {
            slow.retain(|_, until| *until > now);
            slow.insert(node, now.plus_ms(PROBE_MS));
        } else {
            slow.remove(&node);
        }
    }
}

/// Connections that one thread keeps.
#[derive(Default)]
struct Kept(HashMap<SocketAddr, Remote>);

impl Kept {
    fn forward(&mut self, node: SocketAddr, request: &Onward, token: &Token) -> Forwarded {
        if self.0.len() >= KEPT_MAX && !self.0.contains_key(&node) {
            self.0.clear();
        }
        let (is_kept, began) = (self.0.contains_key(&node), boottime());
        let mut reply = self.send(node, request, token);
        if reply.is_err() && is_kept && boottime().ms_since(began) < TIMEOUT_MS / 2 {
            // The node has closed the connection in between; what is forwarded may come twice.
            reply = self.send(node, request, token);
        }
        match reply {
            Ok(said) => Forwarded::Answered {
                status: said.status,
                body: said.body,
            },
            Err(fault) => {
                let why = fault.0;
                tracing::warn!(%node, "the node does not answer a call about its stream: {why}");
                Forwarded::Silent
            }
        }
    }

    fn send(&mut self, node: SocketAddr, request: &Onward, token: &Token) -> Reply {
        let remote = self.0.entry(node).or_insert_with(|| {
            Remote::within(TIMEOUT_MS, format!("http://{node}"), Arc::clone(token))
        });
        let reply = remote.forward(request);
        if reply.is_err() {
            self.0.remove(&node);
        }
        reply
    }
}

fn told(ask: NodeAsk, token: &Token) -> NodeStreams {
    let base = format!("http://{}", ask.node);
    let remote = Remote::within(TIMEOUT_MS, base, Arc::clone(token));
    let limit = ask.limit.to_string();
    let get = |cursor: Option<&str>| {
        let user = ask.user.as_ref().map(|user| ("user", user.as_str()));
        let cursor = cursor.map(|cursor| ("cursor", cursor));
        let query = [Some(("limit", &*limit)), user, cursor];
        remote.get("/v1/node/streams", query.into_iter().flatten())
    };
    let mut said = get(ask.cursor.as_deref());
    if said.as_ref().is_ok_and(|said| said.status == GONE) {
        // It has been started anew, with other streams.
        said = get(None);
    }
    let page = match &said {
        Ok(said) if said.status == 200 => read(&ask, &said.body),
        Ok(said) => Err(format!("status {}", said.status)),
        Err(fault) => Err(fault.0.clone()),
    };
    page.unwrap_or_else(|why| {
        tracing::warn!(
            node = &*ask.node,
            "the node does not tell of its streams: {why}"
        );
        NodeStreams::Silent { node: ask.node }
    })
}

/// Errors: it is no page, in words.
fn read(ask: &NodeAsk, body: &[u8]) -> Result<NodeStreams, String> {
    let page: Page<'_> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let mut rows = Vec::with_capacity(body.len());
    for (at, row) in page.streams.iter().take(ask.limit).enumerate() {
        let row = row.get().strip_suffix('}').ok_or("a stream is no object")?;
        rows.extend_from_slice(if at > 0 { b"," } else { b"" });
        rows.extend_from_slice(row.as_bytes());
        rows.extend_from_slice(b",\"node\":");
        write_str(&ask.node, &mut rows);
        rows.push(b'}');
    }
    Ok(NodeStreams::Told {
        node: ask.node.clone(),
        rows,
        found: page.streams.len().min(ask.limit),
        next: page.cursor,
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use super::*;
    use crate::engine::{Asker, NodeName, Shows};
    use crate::wire::request::Method;

    fn call(body: &str) -> Onward {
        Onward {
            method: Method::Post,
            path: "/v1/stream/id/watch".into(),
            host: Some("presence.example".into()),
            shows: Shows::Callers((!body.is_empty()).then(|| "Bearer a.b.c".into())),
            body: body.as_bytes().into(),
        }
    }

    /// An operator's, which this node has judged.
    fn cut() -> Onward {
        Onward {
            method: Method::Delete,
            path: "/v1/node/streams/id".into(),
            host: None,
            shows: Shows::Fleets,
            body: Box::default(),
        }
    }

    /// One that waits for a minute, and is the `conn`th.
    fn forward(request: Onward, conn: u32) -> Forward {
        let mut asker = Asker {
            shard: 0,
            conn: Default::default(),
            until: boottime().plus_ms(60_000),
        };
        asker.conn.index = conn;
        Forward {
            asker,
            node: NodeName::of(([10, 0, 0, 1], 80).into()),
            request,
        }
    }

    fn nobodys() -> Token {
        Arc::new(|| unreachable!("a user's call is not a node's"))
    }

    const NO_CONTENT: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

    /// The lines of one request, in order, and its body.
    fn asked(socket: &TcpStream) -> (Vec<String>, String) {
        let mut reader = BufReader::new(socket);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_lowercase()),
            }
        }
        let length = lines
            .iter()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        lines.retain(|line| !line.starts_with("user-agent") && !line.starts_with("accept"));
        lines.sort();
        (lines, String::from_utf8(body).unwrap())
    }

    #[test]
    fn a_node_that_is_slow_is_sent_one_call_in_two_seconds() {
        let [one, other] = [1, 2].map(|node| SocketAddr::from(([10, 0, 0, node], 80)));
        let at = |ms| Mono::default().plus_ms(ms);
        let slow = Slow::default();
        let silent = Forwarded::Silent;
        assert!(slow.may_have(one, at(1_000)));
        slow.note(one, &silent, at(2_000));
        assert!(!slow.may_have(one, at(3_999)) && slow.may_have(other, at(3_999)));
        assert!(slow.may_have(one, at(4_000)) && !slow.may_have(one, at(4_001)));
        slow.note(one, &silent, at(5_000));
        assert!(!slow.may_have(one, at(6_999)));
        let body = Vec::new();
        slow.note(one, &Forwarded::Answered { status: 204, body }, at(7_900));
        assert!(slow.may_have(one, at(7_901)) && slow.may_have(one, at(7_902)));
    }

    #[test]
    fn so_many_calls_wait_and_so_many_bytes_of_them() {
        let handle = || {
            let (asks, calls) = (bounded(1).0, bounded(CALLS_MAX));
            let bytes = Arc::default();
            let handle = AbroadHandle {
                asks,
                calls: calls.0,
                bytes,
            };
            (handle, calls.1)
        };
        let node = SocketAddr::from(([10, 0, 0, 1], 80));
        let (few, _waiting) = handle();
        for conn in 0..256 {
            assert!(few.forward(node, forward(call("{}"), conn)));
        }
        assert!(!few.forward(node, forward(call("{}"), 256)));
        assert_eq!(
            few.bytes.load(Relaxed),
            256 * 2,
            "what is not taken counts nothing"
        );
        let (large, _waiting) = handle();
        let mebibyte = "x".repeat(1 << 20);
        for conn in 0..16 {
            assert!(large.forward(node, forward(call(&mebibyte), conn)));
        }
        assert!(!large.forward(node, forward(call("x"), 16)));
        assert!(large.forward(node, forward(call(""), 17)), "it has no body");
        assert_eq!(large.bytes.load(Relaxed), 16 << 20);
    }

    #[test]
    fn a_node_that_stands_still_holds_up_no_other_and_its_calls_are_told() {
        // Nobody accepts: the kernel takes connections and what is written.
        let still = TcpListener::bind("127.0.0.1:0").unwrap();
        let lively = TcpListener::bind("127.0.0.1:0").unwrap();
        let [still_at, lively_at] = [&still, &lively].map(|node| node.local_addr().unwrap());
        thread::spawn(move || {
            for socket in lively.incoming() {
                let mut socket = socket.unwrap();
                thread::spawn(move || {
                    while !asked(&socket).0.is_empty() && socket.write_all(NO_CONTENT).is_ok() {}
                });
            }
        });
        let (told, mail) = bounded(64);
        let tell_one: TellOne = Arc::new(move |_, mail| {
            if let Mail::Forwarded { conn, told: what } = mail {
                told.send((conn.index, what)).unwrap();
            }
        });
        let spawn = |_: String, work: Box<dyn FnOnce() + Send>| Ok(thread::spawn(work));
        let abroad = Abroad::start(&nobodys(), &tell_one, &spawn).unwrap();
        let handle = abroad.handle();
        // More than there are threads; and then one for the other node.
        for conn in 0..8 {
            assert!(handle.forward(still_at, forward(call("{}"), conn)));
        }
        assert!(handle.forward(lively_at, forward(call("{}"), 8)));
        let mut told: Vec<_> = mail.iter().take(9).collect();
        told.sort_by_key(|(conn, _)| *conn);
        let (status, body) = (204, Vec::new());
        for (conn, what) in told {
            let expected = match conn {
                8 => Forwarded::Answered {
                    status,
                    body: body.clone(),
                },
                _ => Forwarded::Silent,
            };
            assert_eq!(*what, expected, "{conn}");
        }
        assert_eq!(handle.bytes.load(Relaxed), 0);
        drop(handle);
        abroad.stop();
    }

    #[test]
    fn a_thread_keeps_so_many_connections() {
        let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = everywhere.local_addr().unwrap().port();
        let serving = thread::spawn(move || {
            // Those that were kept are closed when all are.
            let mut open = Vec::new();
            for _ in 0..=KEPT_MAX {
                let (mut socket, _) = everywhere.accept().unwrap();
                asked(&socket);
                socket.write_all(NO_CONTENT).unwrap();
                open.push(socket);
            }
        });
        let mut kept = Kept::default();
        let node = |at: usize| SocketAddr::from(([127, 0, 1, at as u8], port));
        for at in 0..KEPT_MAX {
            kept.forward(node(at), &call("{}"), &nobodys());
            assert_eq!(kept.0.len(), at + 1);
        }
        kept.forward(node(KEPT_MAX), &call("{}"), &nobodys());
        assert_eq!(kept.0.len(), 1);
        serving.join().unwrap();
    }

    #[test]
    fn an_operators_call_shows_the_fleets_token() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let node = listener.local_addr().unwrap();
        let serving = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let seen = asked(&socket);
            socket.write_all(NO_CONTENT).unwrap();
            seen
        });
        let token: Token = Arc::new(|| "gdn_x".into());
        let told = Kept::default().forward(node, &cut(), &token);
        let (status, body) = (204, Vec::new());
        assert_eq!(told, Forwarded::Answered { status, body });
        let host = format!("host: {node}");
        let lines = [
            "authorization: bearer gdn_x",
            "delete /v1/node/streams/id http/1.1",
            &host,
            "via: 1.1 greendot",
        ];
        assert_eq!(
            serving.join().unwrap(),
            (lines.map(String::from).to_vec(), String::new())
        );
    }

    #[test]
    fn a_call_goes_as_it_came_and_again_where_the_kept_connection_was_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let node = listener.local_addr().unwrap();
        let serving = thread::spawn(move || {
            let answers = [
                "204 No Content",
                "503 Service Unavailable\r\nContent-Length: 2",
            ];
            let bodies = ["", "{}"];
            let mut seen = Vec::new();
            for (answer, body) in answers.iter().zip(bodies) {
                let (mut socket, _) = listener.accept().unwrap();
                seen.push(asked(&socket));
                let answer = format!("HTTP/1.1 {answer}\r\n\r\n{body}");
                socket.write_all(answer.as_bytes()).unwrap();
                // It is kept, and closed before it is used again.
            }
            seen
        });
        let token = nobodys();
        let mut kept = Kept::default();
        let answered = |status, body: &str| Forwarded::Answered {
            status,
            body: body.into(),
        };
        assert_eq!(kept.forward(node, &call(""), &token), answered(204, ""));
        let told = kept.forward(node, &call("{\"add\":[]}"), &token);
        assert_eq!(told, answered(503, "{}"));
        let seen = serving.join().unwrap();
        let first = [
            "content-length: 0",
            "content-type: application/json",
            "host: presence.example",
            "post /v1/stream/id/watch http/1.1",
            "via: 1.1 greendot",
        ];
        let second = [
            "authorization: bearer a.b.c",
            "content-length: 10",
            "content-type: application/json",
            "host: presence.example",
            "post /v1/stream/id/watch http/1.1",
            "via: 1.1 greendot",
        ];
        let expected = [
            (first.map(String::from).to_vec(), String::new()),
            (second.map(String::from).to_vec(), "{\"add\":[]}".into()),
        ];
        assert_eq!(seen, expected);
        // Nobody listens there any more.
        assert_eq!(kept.forward(node, &call(""), &token), Forwarded::Silent);
    }
}
