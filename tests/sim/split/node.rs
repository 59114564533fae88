//! One node: its shards, their turns, and the connections that they serve.
//!
//! Owns a node's lives: a presence node comes back with its files, a real-time node with nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use greendot::auth::{Keyring, Revoked};
use greendot::engine::turn::Driver;
use greendot::engine::{EngineParts, Mail, Outbound, Role};
use greendot::metrics::Board;
use greendot::presence::{FollowerOptions, Presence, WriteBack};
use greendot::realtime::ConnId;
use greendot::shard::mailbox::Mailbox;
use greendot::wire::beat::Keys;

use super::kernel::Simulated;
use super::links::{Core, Link};
use super::{Parcel, SHARDS_MAX, Split};
use crate::kernel::budgets;
use crate::sse::{Read, Reader};
use crate::store::{self, Folder};

/// Mail is read no later than this, in ms: well within the lag at which ids are withheld.
pub(super) const MAIL_LATE_MS: u64 = 3_000;

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
    /// The latest that the wall clock had shown when it was set back.
    pub(super) wall_max: u64,
}

/// One life of a node.
pub(super) struct Up {
    pub(super) presence: Arc<Presence>,
    /// Of a presence node.
    pub(super) writer: Option<WriteBack>,
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
    /// None during its turn.
    pub(super) driver: Option<Driver<u32>>,
    pub(super) mailbox: Mailbox<Mail>,
    pub(super) datagrams: VecDeque<Vec<u8>>,
    /// Connections to accept.
    pub(super) backlog: VecDeque<u32>,
    /// Connections of which an edge will tell something.
    pub(super) edges: VecDeque<u32>,
    pub(super) wake: u64,
    /// Not driven until then (mono).
    pub(super) stalled_until: u64,
}

/// Whose connection it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Who {
    Stream(usize),
    Edit(usize),
    Call(u64),
    /// Of a request that was sent again, or about which nothing is claimed.
    Nobody,
    /// Logs a user out.
    LogOut(usize),
    /// Says goodbye to a client's stream.
    Leave(usize),
}

/// A connection to a node.
pub(super) struct Conn {
    pub(super) node: usize,
    shard: usize,
    pub(super) id: Option<ConnId>,
    pub(super) who: Who,
    pub(super) opened_at: u64,
    reader: Reader,
    /// Sent by the peer and not read yet; so much of it has come.
    pub(super) inbound: VecDeque<u8>,
    pub(super) arrived: usize,
    /// The peer is gone.
    pub(super) hung_up: bool,
    /// Whose goodbye it brings, until it has been read.
    pub(super) leaves: Vec<usize>,
    /// It is put off for so many ms.
    pub(super) after_ms: u64,
    /// The datagrams that it brings, until they have been read.
    pub(super) bundle: Vec<Vec<u8>>,
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

    pub(super) fn shard(&mut self, node: usize, at: usize) -> &mut Shard {
        &mut self.up_mut(node).shards[at]
    }

    /// Starts a node: a presence node on its files, a real-time node with an empty follower.
    pub(super) fn boot(&mut self, at: usize) {
        let now = self.now(at);
        let shards = self.faults.u16(1..=SHARDS_MAX);
        self.nodes[at].life += 1;
        let life = self.nodes[at].life;
        self.say(|| format!("node {at} starts its life {life} with {shards} shards"));
        let is_presence = self.nodes[at].folder.is_some();
        let mirrors = if is_presence { self.paths.len() } else { 0 };
        let (role, presence) = match &self.nodes[at].folder {
            Some(folder) => {
                let mut options = store::options(
                    folder.path(),
                    shards,
                    1,
                    greendot::presence::MemoryChoice::Off,
                    &self.settings,
                );
                // A slot that is free again is not always ready for the next.
                options.users_max += if self.forgetful { 1_000 } else { 0 };
                let opened = Presence::open(&options, now);
                let (presence, _) =
                    opened.unwrap_or_else(|fault| self.fail(format!("open: {fault}")));
                presence.expect_links(self.paths.len() as u16);
                (Role::Presence, presence)
            }
            None => {
                let options = FollowerOptions {
                    sources: self.presences,
                    users_max: 1_000,
                    shards,
                    offline_after_ms: self.rules.offline_after_ms,
                };
                let follower = Presence::follower(options, now).expect("memory");
                (Role::Realtime(Arc::clone(&self.hashing)), follower)
            }
        };
        let presence = Arc::new(presence);
        let board = Arc::new(Board::new(usize::from(shards)));
        let seed = self.plan.seed ^ life << 16 ^ (at as u64) << 8;
        let secret = secret_of(at, life);
        let shard = |shard| Shard {
            driver: Some(Driver::new(
                EngineParts {
                    settings: Arc::clone(&self.settings).into(),
                    shard,
                    shards,
                    role: role.clone(),
                    operators: greendot::engine::Operators::default(),
                    presence: Arc::clone(&presence),
                    heard: Arc::clone(&presence),
                    keyrings: Keyring::of_fleet(Keys::clone(&self.keys)).shared(),
                    revoked: Arc::new(Revoked::new(1_000, 86_400_000)),
                    secret,
                    seed: seed ^ u64::from(shard),
                    mirrors,
                    has_webhooks: false,
                    homes: greendot::engine::Homes::default(),
                    name: None,
                    board: Arc::clone(&board),
                    now,
                },
                budgets(&self.settings),
            )),
            mailbox: Mailbox::new(self.settings.mailbox_max, self.settings.mailbox_bytes_max),
            datagrams: VecDeque::new(),
            backlog: VecDeque::new(),
            edges: VecDeque::new(),
            wake: self.mono,
            stalled_until: 0,
        };
        let shards: Vec<Shard> = (0..shards).map(shard).collect();
        let writer = is_presence.then(|| presence.write_back(u64::MAX));
        self.nodes[at].up = Some(Up {
            presence,
            writer,
            links: self.links_of(at, shards.len(), seed),
            shards,
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
    pub(super) fn conn_lost(&mut self, key: u32, who: Who) {
        match who {
            Who::Stream(client) | Who::Edit(client) => self.client_lost(client, key),
            Who::Call(call) => self.send(Parcel::Answer { call, answer: None }, 1),
            Who::Nobody | Who::LogOut(_) | Who::Leave(_) => {}
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
            inbound: bytes.iter().copied().collect(),
            arrived: 0,
            hung_up: false,
            leaves: Vec::new(),
            after_ms: 0,
            bundle: Vec::new(),
        };
        self.conns.insert(key, conn);
        let shard = self.shard(node, shard);
        shard.backlog.push_back(key);
        shard.wake = 0;
        key
    }

    /// The peer goes; the node finds out when it looks.
    pub(super) fn hang_up(&mut self, key: u32) {
        if let Some(conn) = self.conns.get_mut(&key) {
            conn.hung_up = true;
            let (node, at) = (conn.node, conn.shard);
            let shard = self.shard(node, at);
            shard.edges.push_back(key);
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

    /// Mail that the network has held up, or of another thread, reaches a mailbox. What bounces
    /// goes back to who asked.
    pub(super) fn post(&mut self, node: usize, to: usize, mail: Mail) {
        let mut bounced = Vec::new();
        self.put(node, to, &mut vec![mail], &mut bounced);
        for mail in bounced {
            let asker = match &mail {
                Mail::Edit(edit) => edit.asker.0,
                Mail::Errand(errand) => errand.asker().shard,
                _ => unreachable!("only edits and errands bounce"),
            };
            let (now, asker) = (self.now(node), usize::from(asker));
            let asker = self.shard(node, asker);
            asker.wake = 0;
            let driver = asker.driver.as_mut().expect("not in its turn");
            driver.engine().handle_bounced(mail, now);
        }
    }

    pub(super) fn put(
        &mut self,
        node: usize,
        to: usize,
        batch: &mut Vec<Mail>,
        bounced: &mut Vec<Mail>,
    ) -> u64 {
        let shard = self.shard(node, to);
        let posted = shard.mailbox.post(batch, bounced);
        if posted.wake {
            shard.wake = 0;
        }
        posted.refused
    }

    /// All shards of a node are told.
    pub(super) fn tell(&mut self, node: usize, mail: &Mail) {
        self.note(format!("{mail:?}").as_bytes());
        for shard in 0..self.up(node).shards.len() {
            if let Some(mail) = self.hold_up(node, shard, mail.clone()) {
                self.post(node, shard, mail);
            }
        }
    }

    /// Mail takes a while, now and then: a shard reads so much and no more in a turn. Returns what
    /// does not. What is behind in the mailbox is read behind it.
    pub(super) fn hold_up(&mut self, node: usize, to: usize, mail: Mail) -> Option<Mail> {
        let before = self.parcels.iter().rev().find_map(|((at, _), parcel)| {
            let held = matches!(parcel, Parcel::Mail { node: of, shard, .. }
                if (*of, *shard) == (node, to));
            held.then_some(*at)
        });
        let waits = !self.healed && self.network.u8(0..8) == 0;
        let delay_ms = match waits.then(|| self.network.u8(0..8)) {
            None => 0,
            Some(0) => self.network.u64(300..MAIL_LATE_MS),
            Some(_) => self.network.u64(1..300),
        };
        let delay_ms = delay_ms.max(before.map_or(0, |at| at.saturating_sub(self.mono)));
        if !waits && before.is_none() {
            return Some(mail);
        }
        let life = self.nodes[node].life;
        let parcel = Parcel::Mail {
            node,
            life,
            shard: to,
            mail,
        };
        self.send(parcel, delay_ms);
        None
    }

    /// One turn of one shard, in the order of production.
    fn turn(&mut self, node: usize, at: usize) {
        let driver = self.shard(node, at).driver.take();
        let mut driver = driver.expect("one turn at a time");
        self.tell_edges(node, at, &mut driver);
        let split = &mut *self;
        let sleep_micros = driver.turn(&mut Simulated { split, node, at });
        if self.step.is_multiple_of(8) {
            driver.engine().check_invariants();
        }
        let mono = self.mono;
        let shard = self.shard(node, at);
        shard.driver = Some(driver);
        let input = !(shard.datagrams.is_empty() && shard.backlog.is_empty());
        shard.wake = if sleep_micros == 0 || input || !shard.edges.is_empty() {
            0
        } else {
            mono + sleep_micros.div_ceil(1_000)
        };
    }

    /// A node says something on a connection.
    pub(super) fn say_on(&mut self, key: u32, bytes: &[u8]) {
        self.note(bytes);
        let conn = self.conns.get_mut(&key).expect("kept until it has ended");
        let (who, mut reads) = (conn.who, Vec::new());
        if let Err(why) = conn.reader.feed(bytes, &mut reads) {
            self.fail(format!("conn {key}: {why}"));
        }
        for read in reads {
            match (read, who) {
                (Read::StreamHead, Who::Stream(client)) => self.stream_began(client, key),
                (Read::Event(event), Who::Stream(client)) => self.event(client, key, &event),
                (Read::Response(response), Who::Edit(client)) => {
                    self.edited(client, key, &response)
                }
                (Read::Response(response), Who::Call(call)) => {
                    self.answer_call(key, call, response)
                }
                (Read::Response(response), Who::LogOut(user))
                    if matches!(response.status, 204 | 503) =>
                {
                    let (node, said_at) = (self.conns[&key].node, self.conns[&key].opened_at);
                    if response.status == 204 {
                        self.logged_out(user, node, said_at);
                    }
                    self.hang_up(key);
                }
                (Read::Response(response), Who::Leave(client))
                    if matches!(response.status, 204 | 404 | 503) =>
                {
                    // It has ended, or may end at any time.
                    if response.status == 503 {
                        self.disconnect(client, 100);
                    }
                    self.hang_up(key);
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

    /// What leaves a shard for other nodes goes to the network or to a link.
    pub(super) fn take_outbound(&mut self, node: usize, outbound: Outbound) {
        let now = self.now(node);
        match outbound {
            Outbound::Beats {
                node: to,
                datagrams,
            } => {
                for datagram in datagrams.iter() {
                    self.send_datagram(Some(node), to, datagram.to_vec());
                }
            }
            for_links => {
                let of = for_links.node();
                let Up {
                    presence, links, ..
                } = self.up_mut(node);
                let links = links.iter_mut().enumerate();
                for (_, link) in links.filter(|(at, _)| of.is_none_or(|of| of == *at)) {
                    let lost = match &mut link.core {
                        Core::Publishing(link) => link.take(for_links.clone(), presence, now.mono),
                        Core::Asking(link) => link.take(for_links.clone(), now.mono),
                    };
                    assert!(lost.is_none(), "there is room for so few: {lost:?}");
                }
            }
        }
    }

    /// Nothing waits within a node, and no shard has work left.
    pub(super) fn is_idle(&self, node: usize) -> bool {
        let rests = |shard: &Shard| shard.wake > self.mono && shard.stalled_until <= self.mono;
        let mail_to =
            |parcel: &Parcel| matches!(parcel, Parcel::Mail { node: to, .. } if *to == node);
        self.up(node).shards.iter().all(rests) && !self.parcels.values().any(mail_to)
    }
}

/// Of which a life of a node is made.
pub(super) fn secret_of(node: usize, life: u64) -> [u8; 32] {
    let mut secret = [node as u8; 32];
    secret[0] = life as u8;
    secret
}
