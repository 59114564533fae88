//! Clients as bytes: requests in, what each answer must look like, and who reads at what pace.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use greendot::realtime::ConnId;

use crate::sse::{Reader, Told};

/// What a request asked for, hence what its answer may be.
#[derive(Clone, Debug)]
pub(crate) enum Want {
    Query {
        users: Vec<usize>,
        asked_at: u64,
    },
    Beat(Vec<usize>),
    Leave(Vec<usize>),
    /// A goodbye of this user's stream.
    Farewell {
        user: usize,
        after_ms: u64,
    },
    /// A log-out of the user whose streams these are.
    LogOut {
        streams: Vec<u32>,
    },
    /// 204, to who comes back after a log-out.
    SentAway,
    /// A user is erased, and these streams are theirs.
    Forget {
        user: usize,
        streams: Vec<u32>,
    },
    Edit {
        sub: usize,
    },
    /// The holder of a stream answers a ping.
    Answer,
    Stream,
    /// Refused, one way or another, and the connection then closed.
    Refusal,
    /// Answered, in a way that is not looked into.
    Anything,
}

/// How a client hands its bytes to the network, and the network to the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tear {
    Whole,
    Pieces,
    Bytes,
}

/// One connection, both ends.
pub(crate) struct Conn {
    pub(crate) shard: usize,
    /// The server's name for it, once accepted and until it is gone.
    pub(crate) id: Option<ConnId>,
    pub(crate) accepted: bool,
    /// Sent by the client and not yet read by the server.
    pub(crate) inbound: VecDeque<u8>,
    /// How much of that has come to the server's socket, with an edge for each piece.
    pub(crate) arrived: usize,
    pub(crate) tear: Tear,
    /// The client has shut its sending half; an edge has told the server.
    pub(crate) half_closed: bool,
    pub(crate) end_told: bool,
    /// The client has said all that it will and waits for an answer, which must come.
    pub(crate) listens: bool,
    /// The client is gone for good; an edge has told the server.
    pub(crate) reset: bool,
    pub(crate) reset_told: bool,
    /// The server's kernel ends it if nothing is acknowledged.
    pub(crate) watched_over: bool,

    /// Bytes that the socket takes before the reader reads again; usize::MAX for a reader that
    /// keeps up.
    pub(crate) room: usize,
    /// Taken by the socket, not read by the client.
    pub(crate) unread: Vec<u8>,
    /// A write was taken in part: an edge will tell the server that there is room.
    pub(crate) blocked: bool,
    /// The server has shut or closed its sending half.
    pub(crate) ended: bool,

    pub(crate) reader: Reader,
    /// Requests without an answer, oldest first.
    pub(crate) wants: VecDeque<Want>,
    /// Those of them that the server has not got to.
    pub(crate) unserved: VecDeque<Want>,
    /// What has been offered to the socket, read as it is encoded.
    pub(crate) offers: Reader,
    /// Bytes taken by the socket, and bytes offered to it, since the beginning.
    pub(crate) taken_bytes: u64,
    pub(crate) offered_bytes: u64,
    /// The last id offered, and when (mono).
    pub(crate) last_id: Option<(u64, u64)>,
    /// It carries queries, beats and goodbyes, any number of them.
    pub(crate) plain: bool,
    /// Whose stream this is to be or is.
    pub(crate) sub: Option<usize>,
    /// The server holds it as a stream since then (mono).
    pub(crate) live_since: Option<u64>,
    /// Its request for a stream has been taken, and waits for other shards.
    pub(crate) opening: bool,
    /// A goodbye under way may have ended it.
    pub(crate) leaving: bool,
    /// The stream's publisher.
    pub(crate) user: Option<usize>,
    /// It beats for itself, and was last asked to then (mono).
    pub(crate) by_holder: bool,
    pub(crate) pinged_at: u64,
    /// Its last beat came then or later.
    pub(crate) heard_at: u64,
    /// Its kernel acknowledges nothing since then (mono).
    pub(crate) vanished_at: Option<u64>,
    /// Something that was written is not acknowledged; all was at the time beside it.
    pub(crate) owes: bool,
    pub(crate) acknowledged_at: u64,
}

impl Conn {
    pub(crate) fn new(shard: usize, tear: Tear) -> Conn {
        Conn {
            shard,
            id: None,
            accepted: false,
            inbound: VecDeque::new(),
            arrived: 0,
            tear,
            half_closed: false,
            end_told: false,
            listens: false,
            reset: false,
            reset_told: false,
            watched_over: true,
            room: usize::MAX,
            unread: Vec::new(),
            blocked: false,
            ended: false,
            reader: Reader::default(),
            wants: VecDeque::new(),
            unserved: VecDeque::new(),
            offers: Reader::default(),
            taken_bytes: 0,
            offered_bytes: 0,
            last_id: None,
            plain: false,
            sub: None,
            live_since: None,
            opening: false,
            leaving: false,
            user: None,
            by_holder: false,
            pinged_at: 0,
            heard_at: 0,
            vanished_at: None,
            owes: false,
            acknowledged_at: 0,
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8], want: Want) {
        if !self.half_closed && !self.reset {
            self.inbound.extend(bytes);
            self.unserved.push_back(want.clone());
            self.wants.push_back(want);
        }
    }

    /// Nothing is on its way in either direction.
    pub(crate) fn is_calm(&self) -> bool {
        self.accepted
            && !self.blocked
            && self.unread.is_empty()
            && self.room == usize::MAX
            && !self.ended
    }
}

/// A subscriber across its connections: what it watches and what it believes.
#[derive(Default)]
pub(crate) struct Sub {
    pub(crate) conn: Option<u32>,
    /// Not before then (mono) does it connect again.
    pub(crate) retry_at: u64,
    pub(crate) user: Option<usize>,
    /// It beats for its user itself, at each ping; not before then (mono): it is frozen, or gone
    /// behind a proxy that holds its socket and reads on.
    pub(crate) by_holder: bool,
    pub(crate) frozen_until: u64,
    /// Watched for sure, and perhaps: the latter while an edit is under way or its outcome unknown.
    pub(crate) watched: BTreeSet<usize>,
    pub(crate) perhaps: BTreeSet<usize>,
    /// The stream's id, once its hello has come.
    pub(crate) stream: Option<String>,
    pub(crate) snapshot_seen: bool,
    pub(crate) last_id: Option<u64>,
    pub(crate) views: BTreeMap<usize, Told>,
    /// The newest `since` of each publisher that it was ever told.
    pub(crate) floors: BTreeMap<usize, (u64, bool)>,
    /// An edit under way: added, removed, and the connection that asks.
    pub(crate) edit: Option<(Vec<usize>, Vec<usize>, u32)>,
}

impl Sub {
    /// It lost its connection.
    pub(crate) fn disconnected(&mut self, retry_at: u64) {
        self.conn = None;
        self.stream = None;
        self.snapshot_seen = false;
        self.retry_at = retry_at;
    }
}

/// Percent-encodes everything but letters and digits.
pub(crate) fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

pub(crate) fn get(target: &str, headers: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: sim\r\n{headers}\r\n").into_bytes()
}

/// A POST of JSON, with its length or in chunks of a few bytes.
pub(crate) fn post(target: &str, headers: &str, body: &str, chunk: Option<usize>) -> Vec<u8> {
    let head = format!(
        "POST {target} HTTP/1.1\r\nHost: sim\r\nContent-Type: application/json\r\n{headers}"
    );
    let Some(chunk) = chunk else {
        return format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes();
    };
    let mut out = format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
    for piece in body.as_bytes().chunks(chunk) {
        out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

pub(crate) fn json_list(users: &[&str]) -> String {
    serde_json::to_string(users).expect("strings are JSON")
}
