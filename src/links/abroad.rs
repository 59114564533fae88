//! Asks other nodes of a fleet for their streams.
//!
//! Owns the few threads that do, and what bounds it: so many questions wait, each for so long, and
//! so many bytes come. A node that does not answer so is told as silent.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::http::{Remote, Token};
use super::threads::Spawn;
use crate::engine::{Mail, NodeAsk, NodeStreams};
use crate::time::boottime;
use crate::wire::json::write_str;

/// Nodes that are asked at once.
const THREADS: usize = 4;
/// Questions that wait for one of them.
const WAITING_MAX: usize = 64;
/// Longest time for a question and its answer, in ms.
const TIMEOUT_MS: u64 = 1_000;
/// The status of a cursor of an earlier life of the node.
const GONE: u16 = 410;

/// Hands a piece of mail to one shard.
type TellOne = Arc<dyn Fn(u16, Mail) + Send + Sync>;

/// See the module.
pub struct Abroad {
    asks: Sender<NodeAsk>,
    threads: Vec<JoinHandle<()>>,
}

/// What a bridge asks by.
#[derive(Clone)]
pub struct AbroadHandle(Sender<NodeAsk>);

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
        self.0.try_send(ask).is_ok()
    }
}

impl Abroad {
    /// Nodes are shown `token`.
    ///
    /// Errors: a thread could not be started.
    pub fn start(token: &Token, tell_one: &TellOne, spawn: Spawn<'_>) -> io::Result<Abroad> {
        let (asks, waiting) = bounded(WAITING_MAX);
        let thread = |at| {
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
        let threads = (0..THREADS).map(thread).collect::<io::Result<_>>()?;
        Ok(Abroad { asks, threads })
    }

    /// For the bridge.
    pub fn handle(&self) -> AbroadHandle {
        AbroadHandle(self.asks.clone())
    }

    /// Ends the threads, once all handles are dropped.
    pub fn stop(self) {
        drop(self.asks);
        for thread in self.threads {
            thread
                .join()
                .expect("the thread returns or ends the process");
        }
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
