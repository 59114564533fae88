//! One node: its shards, their turns, and the connections that they serve.
//!
//! Owns a node's lives: a presence node comes back with its files, a real-time node with nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use greendot::engine::{CloseHow, Engine, EngineParts, Letter, Mail, Outbound, Role, To};
use greendot::metrics::Board;
use greendot::presence::{MirrorOptions, Presence};
use greendot::realtime::ConnId;

use super::links::{Core, Link};
use super::{Parcel, SHARDS_MAX, Seen, Split};
use crate::sse::{Read, Reader};
use crate::store::{self, Folder};

pub(super) struct Node {
    /// Wall clock less `mono`.
    pub(super) anchor: i64,
    /// Counts its starts.
    pub(super) life: u64,
    /// When it starts again, while it is down (mono).
    pub(super) down_until: u64,
    pub(super) up: Option<Up>,
    /// A presence node's files.
    folder: Option<Folder>,
    /// A presence node expires nobody before (mono).
    pub(super) hold_until: u64,
    /// Nothing has disturbed it since (mono); may lie ahead.
    pub(super) calm_since: u64,
    pub(super) clock_went_back_at: u64,
    /// Until then (mono) goodbyes are of doubtful age.
    pub(super) clock_doubtful_until: u64,
    /// The latest that the wall clock had shown when it was set back.
    pub(super) wall_max: u64,
}

/// One life of a node.
pub(super) struct Up {
    pub(super) presence: Arc<Presence>,
    pub(super) shards: Vec<Shard>,
    pub(super) links: Vec<Link>,
    /// By user, what a real-time node's streams have been told: the latest `since`, and when (mono)
    /// one was first told any.
    pub(super) floors: Vec<Option<u64>>,
    pub(super) known_at: Vec<Option<u64>>,
    /// By user, how often a presence node has changed what it publishes.
    pub(super) changes: BTreeMap<usize, u64>,
}

pub(super) struct Shard {
    engine: Engine,
    mailbox: VecDeque<Mail>,
    resync: bool,
    pub(super) datagrams: VecDeque<Vec<u8>>,
    inputs: VecDeque<Input>,
    conns: BTreeMap<(u32, u32), u32>,
    pub(super) wake: u64,
    /// Not driven until then (mono).
    pub(super) stalled_until: u64,
}

/// What a shard's sockets have to say.
enum Input {
    Open(u32, Arc<[u8]>),
    Hangup(u32),
}

/// Whose connection it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Who {
    Stream(usize),
    Edit(usize),
    Call(u64),
    /// Of a request that was sent again.
    Nobody,
}

/// A connection to a node.
pub(super) struct Conn {
    pub(super) node: usize,
    shard: usize,
    id: Option<ConnId>,
    pub(super) who: Who,
    pub(super) opened_at: u64,
    reader: Reader,
}

impl Node {
    pub(super) fn new(anchor: i64, keeps_files: bool) -> Node {
        Node {
            anchor,
            life: 0,
            down_until: 0,
            up: None,
            folder: keeps_files.then(Folder::new),
            hold_until: 0,
            calm_since: 0,
            clock_went_back_at: 0,
            clock_doubtful_until: 0,
            wall_max: 0,
        }
    }

    /// When it has something to do (mono).
    pub(super) fn due(&self) -> u64 {
        let Some(up) = &self.up else {
            return self.down_until;
        };
        let shards = up.shards.iter().map(Shard::due);
        let links = up.links.iter().map(Link::due);
        shards.chain(links).min().unwrap_or(u64::MAX)
    }
}

impl Shard {
    fn due(&self) -> u64 {
        self.wake.max(self.stalled_until)
    }
}

impl Split {
    pub(super) fn up(&self, node: usize) -> &Up {
        self.nodes[node].up.as_ref().expect("the node is up")
    }

    pub(super) fn up_mut(&mut self, node: usize) -> &mut Up {
        self.nodes[node].up.as_mut().expect("the node is up")
    }

    fn shard(&mut self, node: usize, at: usize) -> &mut Shard {
        &mut self.up_mut(node).shards[at]
    }

    /// Starts a node: a presence node on its files, a real-time node with an empty mirror.
    pub(super) fn boot(&mut self, at: usize) {
        let now = self.now(at);
        let shards = self.faults.u16(1..=SHARDS_MAX);
        self.nodes[at].life += 1;
        let life = self.nodes[at].life;
        self.say(|| format!("node {at} starts its life {life} with {shards} shards"));
        let (role, presence) = match &self.nodes[at].folder {
            Some(folder) => {
                let options = store::options(folder.path(), shards, 1, &self.settings);
                let opened = Presence::open(&options, now);
                let (presence, _) =
                    opened.unwrap_or_else(|fault| self.fail(format!("open: {fault}")));
                (Role::Presence, presence)
            }
            None => {
                let options = MirrorOptions {
                    users_max: 1_000,
                    shards,
                };
                let mirror = Presence::mirror(options, now).expect("memory for a mirror");
                mirror.set_behind(true);
                (Role::Realtime(Arc::clone(&self.hashing)), mirror)
            }
        };
        let presence = Arc::new(presence);
        let board = Arc::new(Board::new(usize::from(shards)));
        let seed = self.plan.seed ^ life << 16 ^ (at as u64) << 8;
        let secret = secret_of(at, life);
        let shard = |shard| Shard {
            engine: Engine::new(EngineParts {
                settings: Arc::clone(&self.settings),
                shard,
                shards,
                role: role.clone(),
                presence: Arc::clone(&presence),
                keys: Arc::clone(&self.keys),
                secret,
                seed: seed ^ u64::from(shard),
                board: Arc::clone(&board),
                now,
            }),
            mailbox: VecDeque::new(),
            resync: false,
            datagrams: VecDeque::new(),
            inputs: VecDeque::new(),
            conns: BTreeMap::new(),
            wake: self.mono,
            stalled_until: 0,
        };
        let shards = (0..shards).map(shard).collect();
        self.nodes[at].up = Some(Up {
            presence,
            shards,
            links: self.links_of(at, seed),
            floors: vec![None; self.names.len()],
            known_at: vec![None; self.names.len()],
            changes: BTreeMap::new(),
        });
        self.node_started(at);
    }

    /// Ends a node's life without a word: what it held and what was said to it is lost.
    pub(super) fn kill(&mut self, at: usize, down_ms: u64) {
        self.say(|| format!("node {at} dies for {down_ms} ms"));
        self.nodes[at].up = None;
        self.nodes[at].down_until = self.mono + down_ms;
        self.calls.retain(|_, call| call.from != at);
        let (ended, kept) = std::mem::take(&mut self.conns)
            .into_iter()
            .partition(|(_, conn)| conn.node == at);
        self.conns = kept;
        let ended: BTreeMap<u32, Conn> = ended;
        for (key, conn) in ended {
            self.conn_lost(key, conn.who);
        }
    }

    /// The caller or client learns that its connection has ended.
    fn conn_lost(&mut self, key: u32, who: Who) {
        match who {
            Who::Stream(client) | Who::Edit(client) => self.client_lost(client, key),
            Who::Call(call) => self.send(Parcel::Answer { call, answer: None }, 1),
            Who::Nobody => {}
        }
    }

    /// A connection to a node that is up, with its first bytes.
    pub(super) fn open(&mut self, node: usize, shard: usize, who: Who, bytes: Arc<[u8]>) -> u32 {
        self.conns_made += 1;
        let key = self.conns_made;
        let conn = Conn {
            node,
            shard,
            id: None,
            who,
            opened_at: self.mono,
            reader: Reader::default(),
        };
        self.conns.insert(key, conn);
        let shard = self.shard(node, shard);
        shard.inputs.push_back(Input::Open(key, bytes));
        shard.wake = 0;
        key
    }

    /// The peer goes; the node finds out when it looks.
    pub(super) fn hang_up(&mut self, key: u32) {
        if let Some(conn) = self.conns.get(&key) {
            let (node, at) = (conn.node, conn.shard);
            let shard = self.shard(node, at);
            shard.inputs.push_back(Input::Hangup(key));
            shard.wake = 0;
        }
    }

    /// Lets a node do what is due; false if nothing was.
    pub(super) fn drive(&mut self, at: usize) -> bool {
        if self.nodes[at].up.is_none() {
            let due = self.nodes[at].down_until <= self.mono;
            if due {
                self.boot(at);
            }
            return due;
        }
        let mut turned = false;
        for shard in 0..self.up(at).shards.len() {
            if self.up(at).shards[shard].due() <= self.mono {
                self.turn(at, shard);
                turned = true;
            }
        }
        self.drive_links(at) || turned
    }

    /// Puts mail into a mailbox, or deals with a full one as the shard thread does.
    pub(super) fn post(&mut self, node: usize, from: Option<usize>, to: usize, mail: Mail) {
        let (now, mailbox_max) = (self.now(node), self.settings.mailbox_max);
        let shard = self.shard(node, to);
        shard.wake = 0;
        if shard.mailbox.len() < mailbox_max || mail.must_arrive() {
            shard.mailbox.push_back(mail);
        } else if let Mail::Edit(edit) = &mail {
            let sender = from.unwrap_or(usize::from(edit.asker.0));
            let sender = self.shard(node, sender);
            sender.wake = 0;
            sender.engine.handle_bounced(mail, now);
        } else {
            shard.resync = true;
            self.saw(Seen::Resync);
        }
    }

    /// All shards of a node are told.
    pub(super) fn tell(&mut self, node: usize, mail: &Mail) {
        self.note(format!("{mail:?}").as_bytes());
        for shard in 0..self.up(node).shards.len() {
            self.mail(node, None, shard, mail.clone());
        }
    }

    /// Mail takes a while, now and then.
    fn mail(&mut self, node: usize, from: Option<usize>, to: usize, mail: Mail) {
        if !self.healed && self.network.u8(0..8) == 0 {
            let (life, delay_ms) = (self.nodes[node].life, self.network.u64(1..300));
            let parcel = Parcel::Mail {
                node,
                life,
                shard: to,
                mail,
            };
            self.send(parcel, delay_ms);
        } else {
            self.post(node, from, to, mail);
        }
    }

    /// One turn of one shard, in the order of production.
    fn turn(&mut self, node: usize, at: usize) {
        let now = self.now(node);
        let mail_max = self.settings.mail_per_turn_max;
        let shard = self.shard(node, at);
        shard.engine.begin_turn(now);
        if std::mem::take(&mut shard.resync) {
            shard.engine.handle_resync(now);
        }
        for mail in shard.mailbox.drain(..mail_max.min(shard.mailbox.len())) {
            shard.engine.handle_mail(mail, now);
        }
        self.observe(node);
        self.read_datagrams(node, at);
        self.serve(node, at);
        self.shard(node, at).engine.handle_timeout(now);
        self.observe(node);
        self.flush(node, at);
        self.close(node, at);
        self.post_mail(node, at);
        self.take_outbound(node, at);
        if self.step.is_multiple_of(8) {
            self.shard(node, at).engine.check_invariants();
        }
        let shard = self.shard(node, at);
        let wake = shard.engine.poll_timeout().micros().div_ceil(1_000);
        let input = shard.resync || !shard.mailbox.is_empty() || !shard.datagrams.is_empty();
        shard.wake = if input || !shard.inputs.is_empty() {
            0
        } else {
            wake
        };
    }

    fn read_datagrams(&mut self, node: usize, at: usize) {
        let (now, max) = (self.now(node), self.settings.beats_per_turn_max);
        let queue = &mut self.shard(node, at).datagrams;
        let batch: Vec<Vec<u8>> = queue.drain(..max.min(queue.len())).collect();
        if batch.is_empty() {
            return;
        }
        for datagram in &batch {
            self.heard(node, datagram);
        }
        let bytes: Vec<&[u8]> = batch.iter().map(Vec::as_slice).collect();
        self.shard(node, at).engine.handle_beats(&bytes, now);
        self.observe(node);
    }

    /// New connections, their requests, and ends of old ones.
    fn serve(&mut self, node: usize, at: usize) {
        let now = self.now(node);
        while let Some(input) = self.shard(node, at).inputs.pop_front() {
            match input {
                Input::Open(key, bytes) => {
                    let shard = self.shard(node, at);
                    let Some(id) = shard.engine.handle_accept(now) else {
                        self.fail(format!("conn {key} was not even refused"));
                    };
                    shard.conns.insert((id.index, id.generation), key);
                    self.conns
                        .get_mut(&key)
                        .expect("kept until it has ended")
                        .id = Some(id);
                    let half = self.network.usize(0..=bytes.len());
                    for part in [&bytes[..half], &bytes[half..]] {
                        self.shard(node, at).engine.handle_bytes(id, part, now);
                    }
                }
                Input::Hangup(key) => {
                    if let Some(id) = self.conns.remove(&key).and_then(|conn| conn.id) {
                        let shard = self.shard(node, at);
                        shard.conns.remove(&(id.index, id.generation));
                        shard.engine.handle_closed(id, now);
                    }
                }
            }
        }
    }

    fn flush(&mut self, node: usize, at: usize) {
        let now = self.now(node);
        for _ in 0..self.settings.flushes_per_turn_max {
            let shard = self.shard(node, at);
            let Some(flush) = shard.engine.poll_flush(now) else {
                return;
            };
            let (id, bytes) = (flush.conn, flush.bytes.to_vec());
            shard.engine.handle_flushed(id, bytes.len(), now);
            let key = shard.conns[&(id.index, id.generation)];
            self.note(&bytes);
            let conn = self.conns.get_mut(&key).expect("kept until it has ended");
            let (who, mut reads) = (conn.who, Vec::new());
            if let Err(why) = conn.reader.feed(&bytes, &mut reads) {
                self.fail(format!("conn {key}: {why}"));
            }
            for read in reads {
                match (read, who) {
                    (Read::Comment, Who::Stream(_)) => {}
                    (Read::StreamHead, Who::Stream(client)) => self.stream_began(client, key),
                    (Read::Event(event), Who::Stream(client)) => self.event(client, key, &event),
                    (Read::Response(response), Who::Edit(client)) => {
                        self.edited(client, key, &response)
                    }
                    (Read::Response(response), Who::Call(call)) => {
                        self.answer_call(key, call, response)
                    }
                    (Read::Response(response), Who::Nobody)
                        if matches!(response.status, 204 | 413 | 503) =>
                    {
                        self.hang_up(key);
                    }
                    (read, who) => self.fail(format!("conn {key} of {who:?} reads {read:?}")),
                }
            }
        }
    }

    fn close(&mut self, node: usize, at: usize) {
        while let Some(close) = self.shard(node, at).engine.poll_close() {
            let id = close.conn;
            let place = (id.index, id.generation);
            let Some(key) = self.shard(node, at).conns.get(&place).copied() else {
                self.fail(format!("{close:?} of a conn that is not open"));
            };
            if close.how == CloseHow::ShutdownWrite {
                self.hang_up(key);
                continue;
            }
            self.shard(node, at).conns.remove(&place);
            let conn = self.conns.remove(&key).expect("kept until it has ended");
            self.conn_lost(key, conn.who);
        }
    }

    fn post_mail(&mut self, node: usize, at: usize) {
        while let Some(Letter { to, mail }) = self.shard(node, at).engine.poll_mail() {
            self.note(format!("{to:?}{mail:?}").as_bytes());
            match to {
                To::Shard(shard) => self.mail(node, Some(at), usize::from(shard), mail),
                To::Others => {
                    for other in (0..self.up(node).shards.len()).filter(|other| *other != at) {
                        self.mail(node, Some(at), other, mail.clone());
                    }
                }
            }
        }
    }

    /// What leaves a shard for other nodes goes to the network or to a link.
    fn take_outbound(&mut self, node: usize, at: usize) {
        let now = self.now(node);
        while let Some(outbound) = self.shard(node, at).engine.poll_outbound(now) {
            match outbound {
                Outbound::Beats {
                    node: to,
                    datagrams,
                } => {
                    for datagram in datagrams.iter() {
                        self.send_datagram(Some(node), to, datagram.to_vec());
                    }
                }
                Outbound::Asks {
                    node: of,
                    users,
                    anew,
                } => match &mut self.up_mut(node).links[of].core {
                    Core::Asking(link) => link.ask(users, anew, now.mono),
                    Core::Publishing(_) => self.fail("a presence node asks".into()),
                },
                Outbound::Publish(decided) => {
                    for link in &mut self.up_mut(node).links {
                        match &mut link.core {
                            Core::Publishing(link) => link.mark(&decided.transitions),
                            Core::Asking(_) => unreachable!("a real-time node decides nothing"),
                        }
                    }
                }
            }
        }
    }

    /// Nothing waits within a node, and no shard has work left.
    pub(super) fn is_idle(&self, node: usize) -> bool {
        let rests = |shard: &Shard| shard.wake > self.mono && shard.stalled_until <= self.mono;
        let idle = |shard: &Shard| rests(shard) && shard.mailbox.is_empty() && !shard.resync;
        let mail_to =
            |parcel: &Parcel| matches!(parcel, Parcel::Mail { node: to, .. } if *to == node);
        self.up(node).shards.iter().all(idle) && !self.parcels.values().any(mail_to)
    }
}

/// Of which a life of a node is made.
pub(super) fn secret_of(node: usize, life: u64) -> [u8; 32] {
    let mut secret = [node as u8; 32];
    secret[0] = life as u8;
    secret
}
