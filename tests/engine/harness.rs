//! The world around the engines: a clock, peers with sockets that take what they are told to,
//! mailboxes with a bound, a store.
//!
//! Verbs put something in ([`World::send`], [`World::beat`], [`World::at`]) or say exactly what
//! must have come out ([`World::expect`] and its like); the latter first let every engine take
//! turns until all are quiet. Nothing happens that was not told: time stands still between two
//! verbs.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use greendot::auth::{Identity, Keyring, Keyrings, Revoked, ServiceKeys};
use greendot::engine::settings::Settings;
use greendot::engine::turn::{Budgets, Driver, Edge, Order};
use greendot::engine::{
    Engine, EngineParts, Entrance, Homes, Mail, NodeName, Operators, Outbound, Refused, Role,
    Verdict,
};
use greendot::metrics::{Board, Counter, Gauge};
use greendot::presence::{FollowerOptions, Presence, StoreOptions};
use greendot::time::{Mono, Now, Unix};
use greendot::wire::User;
use greendot::wire::beat::{FleetKey, Keys, Writer};
use greendot::wire::feed::Place;

use super::kernel::{Client, Door, Flood, Made, Outside, Socket, count};

/// Unix ms at which every world begins.
pub(crate) const START: u64 = 1_764_009_600_000;
/// Mono ms at which every world begins.
pub(crate) const BOOT_MS: u64 = 5_000_000;
/// Where other nodes of a fleet reach this one.
pub(crate) const OWN_HTTP: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8080);
/// Users that a world's store may hold.
const USERS_MAX: u32 = 160_000;
/// Turns at one moment after which an engine is said to spin.
const TURNS_MAX: usize = 2_000;

/// A client's end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Peer(usize);

/// Some engines of one node, and all that is around them.
pub(crate) struct World {
    pub(crate) settings: Settings,
    /// Milliseconds since the world began.
    ms: u64,
    /// Steps of the wall clock, in ms.
    wall_ms: i64,
    users_max: u32,
    role: Role,
    /// Where operators' calls are served.
    operators: Operators,
    /// Real-time nodes of a presence node.
    mirrors: usize,
    dir: tempfile::TempDir,
    presence: Option<Arc<Presence>>,
    heard: Option<Arc<Presence>>,
    board: Option<Arc<Board>>,
    drivers: Vec<Driver<usize>>,
    outside: Outside,
    key: FleetKey,
    keyrings: Arc<Keyrings>,
    /// Of a node of a fleet: to whom users' beats go.
    pub(crate) homes: Homes,
    /// Shared by all lives of the node.
    revoked: Arc<Revoked>,
    /// Whether the engines' tables are held against each other after each turn.
    pub(crate) checks: bool,
    /// Of a real-time node: its presence nodes say all the time that everything is told.
    pub(crate) followed: bool,
    /// Messages that each of them has sent.
    messages: u64,
    /// How often the process has been started.
    lives: u8,
}

impl World {
    /// So many shards with the default settings, changed.
    pub(crate) fn with(shards: u16, change: impl FnOnce(&mut Settings)) -> World {
        let mut settings = Settings::default();
        change(&mut settings);
        World::made(shards, settings, USERS_MAX, Role::All)
    }

    /// So many shards with the default settings.
    pub(crate) fn new(shards: u16) -> World {
        World::with(shards, |_| ())
    }

    /// One shard that may know so many users.
    pub(crate) fn of_users(users_max: u32) -> World {
        World::made(1, Settings::default(), users_max, Role::All)
    }

    /// So many shards of a node of this role, which may know so many users.
    pub(crate) fn of_role(shards: u16, role: Role, users_max: u32) -> World {
        World::made(shards, Settings::default(), users_max, role)
    }

    /// So many shards of a presence node that has so many real-time nodes.
    pub(crate) fn of_presence(shards: u16, mirrors: usize) -> World {
        let settings = Settings {
            leaves_put_off_max: 100,
            ..Settings::default()
        };
        World::mirrored(shards, settings, USERS_MAX, Role::Presence, mirrors)
    }

    /// One shard of a node of this role, with the default settings, changed.
    pub(crate) fn with_role(role: Role, change: impl FnOnce(&mut Settings)) -> World {
        let mut settings = Settings::default();
        change(&mut settings);
        World::made(1, settings, USERS_MAX, role)
    }

    /// So many shards of a node of this role that asks users for tokens.
    pub(crate) fn asking(shards: u16, role: Role, identity: Identity) -> World {
        World::with_services(shards, role, Some(identity), "")
    }

    /// The same of a node that knows services by this file, and asks users if `identity` says how.
    pub(crate) fn with_services(
        shards: u16,
        role: Role,
        identity: Option<Identity>,
        services: &str,
    ) -> World {
        // As of a node that other machines reach, if it asks.
        let operators = Operators {
            are_open: identity.is_none(),
            ..Operators::default()
        };
        World::with_operators(shards, role, identity, services, operators)
    }

    /// The same of one whose operators' calls are served so.
    pub(crate) fn with_operators(
        shards: u16,
        role: Role,
        identity: Option<Identity>,
        services: &str,
        operators: Operators,
    ) -> World {
        let mut world = World::of_role(shards, role, USERS_MAX);
        world.operators = operators;
        world.read_keys(identity, services);
        world.restart(0);
        world
    }

    /// One shard of a node that asks users for nothing and knows services by this file, with the
    /// default settings, changed.
    pub(crate) fn with_settings(
        role: Role,
        operators: Operators,
        services: &str,
        change: impl FnOnce(&mut Settings),
    ) -> World {
        let mut world = World::with_role(role, change);
        world.operators = operators;
        world.read_keys(None, services);
        world.restart(0);
        world
    }

    pub(crate) fn shards(&self) -> usize {
        self.drivers.len()
    }

    /// From the next turn on it asks users for tokens so.
    pub(crate) fn ask_by(&mut self, identity: Identity) -> &mut World {
        self.read_keys(Some(identity), "")
    }

    /// The files of keys have been read anew.
    pub(crate) fn read_keys(&mut self, identity: Option<Identity>, services: &str) -> &mut World {
        self.keyrings.store(Arc::new(Keyring {
            identity,
            services: ServiceKeys::parse(services).expect("a file of service keys"),
            ..Keyring::of_fleet(Keys::single(self.key.clone()))
        }));
        self
    }

    fn made(shards: u16, settings: Settings, users_max: u32, role: Role) -> World {
        World::mirrored(shards, settings, users_max, role, 0)
    }

    fn mirrored(
        shards: u16,
        settings: Settings,
        users_max: u32,
        role: Role,
        mirrors: usize,
    ) -> World {
        let key = FleetKey::new([7; 32]);
        let mut world = World {
            settings,
            ms: 0,
            wall_ms: 0,
            users_max,
            role,
            operators: Operators::default(),
            mirrors,
            dir: tempfile::tempdir().expect("a folder for the store"),
            presence: None,
            heard: None,
            board: None,
            drivers: Vec::new(),
            outside: Outside {
                now: Now::default(),
                slice_micros: 0,
                spent_micros: 0,
                pieces: Vec::new(),
                order: Order::Run,
                doors: Vec::new(),
                outbound: Vec::new(),
                keeps: Some(Verdict::Done),
                clients: Vec::new(),
                backlog: VecDeque::new(),
                entrance: Entrance::Public,
                address: None,
                came_at: None,
                accepted: Vec::new(),
                is_full: false,
                on_reserve: None,
                flood: None,
                read_micros: 0,
                meanwhile: VecDeque::new(),
                datagrams: Vec::new(),
                refused: Vec::new(),
                beats: 0,
            },
            keyrings: Keyring::of_fleet(Keys::single(key.clone())).shared(),
            key,
            revoked: Arc::new(Revoked::new(1_000, 86_400_000)),
            homes: Homes::default(),
            checks: true,
            followed: false,
            messages: 0,
            lives: 0,
        };
        world.boot(shards);
        world
    }

    /// What tells this life of the process from others.
    pub(crate) fn secret(&self) -> [u8; 32] {
        [2 + self.lives; 32]
    }

    pub(crate) fn lives(&self) -> u8 {
        self.lives
    }

    /// It has been started so often before.
    pub(crate) fn count_lives(&mut self, lives: u8) -> &mut World {
        self.lives = lives;
        self
    }

    fn boot(&mut self, shards: u16) {
        self.lives = self.lives.wrapping_add(1);
        let options = StoreOptions {
            dir: self.dir.path().to_owned(),
            users_max: self.users_max,
            offline_after_ms: self.settings.offline_after_ms,
            restart_grace_ms: self.settings.restart_grace_ms,
            shards,
            memory: greendot::presence::MemoryChoice::Off,
            boot_id: [1; 16],
        };
        let presence = match &self.role {
            Role::Realtime(nodes) => {
                let options = FollowerOptions {
                    sources: nodes.len(),
                    users_max: self.users_max,
                    shards,
                    offline_after_ms: self.settings.offline_after_ms,
                };
                Presence::follower(options, self.now()).expect("memory")
            }
            Role::Fleet(_) => {
                let options = FollowerOptions {
                    sources: 1,
                    users_max: self.users_max,
                    shards,
                    offline_after_ms: self.settings.offline_after_ms,
                };
                return self.boot_on(
                    shards,
                    Presence::follower_and_heard(options, self.now()).expect("memory"),
                );
            }
            _ => {
                Presence::open(&options, self.now())
                    .expect("the store opens")
                    .0
            }
        };
        let presence = Arc::new(presence);
        self.boot_on(shards, (Arc::clone(&presence), presence));
    }

    /// On the database of which it tells, and the one that hears.
    fn boot_on(&mut self, shards: u16, (presence, heard): (Arc<Presence>, Arc<Presence>)) {
        let board = Arc::new(Board::new(usize::from(shards)));
        for shard in 0..shards {
            let parts = EngineParts {
                settings: self.settings.clone().into(),
                shard,
                shards,
                role: self.role.clone(),
                operators: self.operators,
                presence: presence.clone(),
                heard: heard.clone(),
                keyrings: Arc::clone(&self.keyrings),
                revoked: Arc::clone(&self.revoked),
                secret: self.secret(),
                seed: 40 + u64::from(shard),
                mirrors: self.mirrors,
                has_webhooks: false,
                homes: self.homes.clone(),
                name: matches!(self.role, Role::Fleet(_)).then(|| NodeName::of(OWN_HTTP)),
                board: board.clone(),
                now: self.now(),
            };
            let budgets = Budgets::of(&self.settings);
            self.drivers.push(Driver::new(parts, budgets));
            let door = Door::new(self.settings.mailbox_max, self.settings.mailbox_bytes_max);
            self.outside.doors.push(door);
        }
        (self.presence, self.heard) = (Some(presence), Some(heard));
        self.board = Some(board);
    }

    /// The process is killed and started again on its files, after so long.
    pub(crate) fn restart(&mut self, down_ms: u64) {
        let shards = self.drivers.len() as u16;
        self.drivers.clear();
        self.outside.doors.clear();
        self.outside.order = Order::Run;
        (self.presence, self.heard) = (None, None);
        for client in &mut self.outside.clients {
            client.socket = Socket::Closed;
        }
        self.ms += down_ms;
        self.boot(shards);
    }

    // Time.

    pub(crate) fn now(&self) -> Now {
        Now {
            mono: Mono::default().plus_ms(BOOT_MS + self.ms),
            unix: Unix::from_ms((START + self.ms).saturating_add_signed(self.wall_ms)),
        }
    }

    /// All presence nodes of a real-time node say that everything is told, and what their clocks
    /// show: the same as this one's.
    pub(crate) fn hear(&mut self) {
        let (Role::Realtime(nodes), true) = (&self.role, self.followed) else {
            return;
        };
        let (now, previous) = (self.now(), self.messages);
        self.messages += 1;
        let presence = self.presence.as_ref().expect("it runs");
        for source in 0..nodes.len() {
            let birth = 0x70 + source as u64;
            // Known from below: a millisecond less.
            let clock = now.unix.plus_ms(1);
            presence.source_answered(source, birth, clock, now.mono, now.mono);
            let place = Place {
                birth,
                previous,
                number: self.messages,
                up_to: Some(now.unix),
            };
            presence.take_message(&place, now.mono);
            if presence.is_out_of_step(source) {
                presence.begin_asking(source, |_| false);
                presence.asked_everything(source);
            }
        }
        for node in 0..nodes.len() {
            let up_to = now.mono;
            self.post_all(&Mail::Told { node, up_to });
        }
    }

    /// The header of the next message of a presence node, which holds something back.
    pub(crate) fn next_feed_header(&self, source: usize) -> String {
        let (birth, previous) = (0x70 + source as u64, self.messages);
        format!(
            "Greendot-Feed: {birth:016x} {previous} {}\r\n",
            previous + 1
        )
    }

    /// Milliseconds since the world began.
    pub(crate) fn ms(&self) -> u64 {
        self.ms
    }

    /// It is so many ms after the world's beginning; on the way every engine wakes when it wants
    /// to.
    pub(crate) fn at(&mut self, ms: u64) -> &mut World {
        assert!(ms >= self.ms, "time does not go back");
        self.turn();
        loop {
            let drivers = self.drivers.iter_mut();
            let next = drivers.map(|driver| driver.deadline()).min();
            let next_ms = next.map_or(u64::MAX, |next| next.micros().div_ceil(1_000)) - BOOT_MS;
            if next_ms >= ms {
                break;
            }
            self.ms = next_ms;
            self.turn();
        }
        self.jump(ms - self.ms);
        self.turn();
        self
    }

    /// So many ms pass, as [`World::at`].
    pub(crate) fn pass(&mut self, ms: u64) -> &mut World {
        self.at(self.ms + ms)
    }

    /// So many ms pass without a turn of anybody: a stall, or a suspend.
    pub(crate) fn jump(&mut self, ms: u64) -> &mut World {
        self.ms += ms;
        self
    }

    /// So many ms pass in which all but one shard take their turns.
    pub(crate) fn pass_without(&mut self, stalled: usize, ms: u64) -> &mut World {
        let until = self.ms + ms;
        while self.ms < until {
            self.ms = (self.ms + 100).min(until);
            for shard in (0..self.drivers.len()).filter(|shard| *shard != stalled) {
                self.turn_of(shard);
            }
        }
        self
    }

    /// The wall clock is stepped.
    pub(crate) fn step_wall(&mut self, ms: i64) -> &mut World {
        self.wall_ms += ms;
        self
    }

    // What peers do.

    /// A peer connects to a shard.
    pub(crate) fn connect(&mut self, shard: usize) -> Peer {
        self.try_connect(shard).expect("the engine takes it")
    }

    /// Who connects from now on does so from there.
    pub(crate) fn come_from(&mut self, address: &str) -> &mut World {
        self.outside.address = Some(address.parse().expect("an address"));
        self
    }

    /// Who connects from now on came so long ago, and has had a handshake since.
    pub(crate) fn come_late(&mut self, ms: u64) -> &mut World {
        let now = self.outside.now.mono;
        let came_at = Mono::default().plus_ms(now.ms() - ms);
        self.outside.came_at = Some(came_at);
        self
    }

    /// An operator connects to a shard, by the listener for operators.
    pub(crate) fn connect_to_admin(&mut self, shard: usize) -> Peer {
        self.outside.entrance = Entrance::Admin;
        let peer = self.connect(shard);
        self.outside.entrance = Entrance::Public;
        peer
    }

    /// A peer connects to a shard, which may have no place even for a refusal.
    pub(crate) fn try_connect(&mut self, shard: usize) -> Option<Peer> {
        let peer = self.knock(shard, "");
        self.outside.backlog.clear();
        self.outside.clients[peer.0].id.map(|_| peer)
    }

    /// A peer connects to a shard, which may be slow to accept it, and has sent this.
    pub(crate) fn knock(&mut self, shard: usize, sent: &str) -> Peer {
        let peer = self.outside.clients.len();
        let mut client = Client::new(shard);
        client.address = self.outside.address;
        client.sent.extend(sent.as_bytes());
        self.outside.clients.push(client);
        self.outside.backlog.push_back(peer);
        self.drivers[shard].note_listener();
        self.serve(shard);
        Peer(peer)
    }

    /// No descriptor is free but the reserve, or others are free again.
    pub(crate) fn fill_up(&mut self, is_full: bool) -> &mut World {
        self.outside.is_full = is_full;
        self
    }

    /// A shard looks at its listener and its sockets, and does nothing else yet.
    fn serve(&mut self, shard: usize) {
        let (driver, mut kernel) = self.shard(shard);
        driver.begin(&mut kernel);
        driver.serve_sockets(&mut kernel);
    }

    fn shard(&mut self, shard: usize) -> (&mut Driver<usize>, Made<'_>) {
        self.outside.now = self.now();
        let outside = &mut self.outside;
        (&mut self.drivers[shard], Made { outside, shard })
    }

    /// An edge of a peer's connection is told and acted on.
    fn edge(&mut self, peer: Peer, edge: Edge) {
        let client = &self.outside.clients[peer.0];
        let shard = client.shard;
        match client.id {
            Some(id) => self.drivers[shard].note_edge(id, edge),
            None => self.drivers[shard].note_listener(),
        }
        self.serve(shard);
    }

    /// Bytes arrive from a peer.
    pub(crate) fn send(&mut self, peer: Peer, bytes: impl AsRef<[u8]>) -> &mut World {
        let client = &mut self.outside.clients[peer.0];
        if client.socket != Socket::Closed {
            client.sent.extend(bytes.as_ref());
            let readable = Edge {
                readable: true,
                ..Edge::default()
            };
            self.edge(peer, readable);
        }
        self
    }

    /// Bytes arrive from a peer, and the shard will look in its next turn.
    pub(crate) fn whisper(&mut self, peer: Peer, bytes: &str) -> &mut World {
        let client = &mut self.outside.clients[peer.0];
        client.sent.extend(bytes.as_bytes());
        let readable = Edge {
            readable: true,
            ..Edge::default()
        };
        let id = client.id.expect("accepted");
        self.drivers[client.shard].note_edge(id, readable);
        self
    }

    /// Bytes arrive from a peer when a turn has received datagrams so many times.
    pub(crate) fn send_meanwhile(&mut self, after: usize, peer: Peer, bytes: &str) -> &mut World {
        let client = &mut self.outside.clients[peer.0];
        client.sent.extend(bytes.as_bytes());
        let readable = Edge {
            readable: true,
            ..Edge::default()
        };
        let id = client.id.expect("accepted");
        self.outside.meanwhile.push_back((after, id, readable));
        self
    }

    /// From now on a read takes so long.
    pub(crate) fn reads_take(&mut self, micros: u64) -> &mut World {
        self.outside.read_micros = micros;
        self
    }

    /// From now on each call receives so many of this datagram, which takes so long.
    pub(crate) fn flood(&mut self, datagram: &[u8], datagrams: usize, micros: u64) -> &mut World {
        let datagram = datagram.to_vec();
        self.outside.flood = Some(Flood {
            datagram,
            datagrams,
            micros,
        });
        self.drivers.iter_mut().for_each(Driver::note_datagrams);
        self
    }

    /// A request without a body.
    pub(crate) fn get(&mut self, peer: Peer, target: &str) -> &mut World {
        self.send(peer, request("GET", target))
    }

    /// A request with a JSON body.
    pub(crate) fn post(&mut self, peer: Peer, target: &str, json: &str) -> &mut World {
        self.send(peer, posted(target, json))
    }

    /// The peer closes its sending half.
    pub(crate) fn shut(&mut self, peer: Peer) -> &mut World {
        self.outside.clients[peer.0].ended = true;
        let ended = Edge {
            readable: true,
            read_closed: true,
            ..Edge::default()
        };
        self.edge(peer, ended);
        self
    }

    /// The peer's connection is reset.
    pub(crate) fn reset(&mut self, peer: Peer) -> &mut World {
        self.break_off(peer, ErrorKind::ConnectionReset)
    }

    /// The kernel gives the peer up: it acknowledges nothing.
    pub(crate) fn time_out(&mut self, peer: Peer) -> &mut World {
        self.break_off(peer, ErrorKind::TimedOut)
    }

    fn break_off(&mut self, peer: Peer, error: ErrorKind) -> &mut World {
        self.outside.clients[peer.0].error = Some(error);
        let failed = Edge {
            error: true,
            ..Edge::default()
        };
        self.edge(peer, failed);
        self
    }

    /// The peer is gone without a word: its kernel acknowledges nothing any more.
    pub(crate) fn vanish(&mut self, peer: Peer) -> &mut World {
        self.outside.clients[peer.0].vanished = true;
        self
    }

    /// It is there again, and its kernel acknowledges all.
    pub(crate) fn reappear(&mut self, peer: Peer) -> &mut World {
        let now = self.now().mono;
        let client = &mut self.outside.clients[peer.0];
        (client.vanished, client.owes, client.acknowledged_at) = (false, false, now);
        self
    }

    /// The peer reads no more.
    pub(crate) fn stall(&mut self, peer: Peer) -> &mut World {
        self.outside.clients[peer.0].window = 0;
        self
    }

    /// The peer reads so many bytes more, or all from now on.
    pub(crate) fn read(&mut self, peer: Peer, bytes: impl Into<Option<usize>>) -> &mut World {
        let client = &mut self.outside.clients[peer.0];
        client.window = bytes
            .into()
            .map_or(usize::MAX, |n| client.window.saturating_add(n));
        if std::mem::take(&mut client.blocked) {
            let room = Edge {
                writable: true,
                ..Edge::default()
            };
            self.edge(peer, room);
        }
        self.turn();
        self
    }

    /// A beat datagram with these users arrives at a shard.
    pub(crate) fn beat(&mut self, shard: usize, users: &[&str]) -> &mut World {
        self.datagram_of(shard, users, self.now().unix, false)
    }

    /// A goodbye datagram.
    pub(crate) fn leave(&mut self, shard: usize, users: &[&str]) -> &mut World {
        self.datagram_of(shard, users, self.now().unix, true)
    }

    /// A datagram that was sent at another time than now.
    pub(crate) fn datagram_of(
        &mut self,
        shard: usize,
        users: &[&str],
        sent_at: Unix,
        leave: bool,
    ) -> &mut World {
        let datagram = self.sealed(users, sent_at, leave);
        self.datagram(shard, &datagram)
    }

    /// A datagram of these users.
    pub(crate) fn sealed(&self, users: &[&str], sent_at: Unix, leave: bool) -> Vec<u8> {
        let mut writer = Writer::new(leave, sent_at, &self.key);
        for user in users {
            let user = User::parse(user.as_bytes()).expect("a legal user");
            assert!(writer.push(user), "the datagram is full");
        }
        writer.seal(&self.key)
    }

    /// These bytes arrive as a datagram.
    pub(crate) fn datagram(&mut self, shard: usize, bytes: &[u8]) -> &mut World {
        self.arrive(shard, &[bytes]);
        self
    }

    /// These arrive together. Returns what they cost of a turn's budget of beats.
    pub(crate) fn arrive(&mut self, shard: usize, datagrams: &[&[u8]]) -> usize {
        self.outside.datagrams = datagrams.iter().map(|bytes| bytes.to_vec()).collect();
        self.outside.beats = 0;
        let (driver, mut kernel) = self.shard(shard);
        driver.note_datagrams();
        driver.begin(&mut kernel);
        driver.receive_beats(&mut kernel);
        self.outside.beats
    }

    /// What was told of refused datagrams since the last look.
    pub(crate) fn refused(&mut self) -> Vec<Refused> {
        std::mem::take(&mut self.outside.refused)
    }

    /// The key that signs datagrams.
    pub(crate) fn key(&self) -> &FleetKey {
        &self.key
    }

    /// Makes slots, so that later users belong to other shards.
    pub(crate) fn make_slots(&self, up_to: u32) {
        let presence = self.presence();
        for n in presence.users()..up_to {
            let user = format!("filler-{n}");
            let user = User::parse(user.as_bytes()).expect("a legal user");
            presence.intern(user).expect("the store has room");
        }
    }

    // What the process does.

    /// Every shard begins to drain.
    pub(crate) fn drain(&mut self) -> &mut World {
        self.order(Order::Drain)
    }

    /// Every shard accepts nobody any more.
    pub(crate) fn close(&mut self) -> &mut World {
        self.order(Order::Close)
    }

    fn order(&mut self, order: Order) -> &mut World {
        self.outside.order = order;
        for shard in 0..self.drivers.len() {
            let (driver, mut kernel) = self.shard(shard);
            driver.begin(&mut kernel);
            driver.take_mail(&mut kernel);
        }
        self
    }

    pub(crate) fn engine(&mut self, shard: usize) -> &mut Engine {
        self.drivers[shard].engine()
    }

    pub(crate) fn presence(&self) -> &Arc<Presence> {
        self.presence.as_ref().expect("the process runs")
    }

    /// The database that hears, of a node of a fleet.
    pub(crate) fn heard(&self) -> &Arc<Presence> {
        self.heard.as_ref().expect("the process runs")
    }

    pub(crate) fn board(&self) -> &Board {
        self.board.as_ref().expect("the process runs")
    }

    /// A piece of mail finds a shard's mailbox full.
    pub(crate) fn lose_mail(&mut self, shard: usize) -> &mut World {
        self.outside.doors[shard].overflowed = true;
        self
    }

    /// A shard's mail is held back, or taken again.
    pub(crate) fn hold_mail(&mut self, shard: usize, held: bool) -> &mut World {
        let door = &mut self.outside.doors[shard];
        (door.held, door.woken) = (held, true);
        self
    }

    /// A shard's counter.
    pub(crate) fn count(&mut self, shard: usize, counter: Counter) -> u64 {
        self.engine(shard).counters().counter(counter)
    }

    /// A shard's gauge.
    pub(crate) fn gauge(&mut self, shard: usize, gauge: Gauge) -> u64 {
        self.engine(shard).counters().gauge(gauge)
    }

    /// All engines take turns until they are quiet.
    pub(crate) fn turn(&mut self) -> &mut World {
        self.hear();
        for _ in 0..TURNS_MAX {
            let mut busy = false;
            for shard in 0..self.drivers.len() {
                busy |= self.turn_of(shard);
            }
            busy |= self.outside.doors.iter().any(Door::wants_a_turn);
            if !busy {
                return self;
            }
        }
        panic!("an engine spins at {} ms", self.ms);
    }

    /// One turn of one shard; whether it wants another at once.
    pub(crate) fn turn_of(&mut self, shard: usize) -> bool {
        for client in std::mem::take(&mut self.outside.accepted) {
            let client = &self.outside.clients[client];
            let readable = Edge {
                readable: true,
                ..Edge::default()
            };
            if let Some(id) = client.id.filter(|_| !client.sent.is_empty()) {
                self.drivers[client.shard].note_edge(id, readable);
            }
        }
        let (driver, mut kernel) = self.shard(shard);
        let sleep_micros = driver.turn(&mut kernel);
        if self.checks {
            self.engine(shard).check_invariants();
        }
        sleep_micros == 0 || !self.outside.accepted.is_empty()
    }

    /// From now on the work between two looks at the clock takes so long.
    pub(crate) fn slow_down(&mut self, slice_micros: u64) -> &mut World {
        self.outside.slice_micros = slice_micros;
        self
    }

    /// How many pieces of a kind the last turn did.
    pub(crate) fn pieces(&self, kind: &str) -> usize {
        count(&self.outside.pieces, kind)
    }

    /// Whose tokens are void before their time.
    pub(crate) fn revocations(&self) -> Arc<Revoked> {
        Arc::clone(&self.revoked)
    }

    /// What becomes of revocations that are to be kept on disk; None: it stands still.
    pub(crate) fn disk(&mut self, keeps: Option<Verdict>) -> &mut World {
        self.outside.keeps = keeps;
        self
    }

    /// Another thread of the process tells all shards something.
    pub(crate) fn tell_all(&mut self, mail: &Mail) -> &mut World {
        self.post_all(mail);
        self.turn()
    }

    /// The same, to be read with what is told next.
    pub(crate) fn post_all(&mut self, mail: &Mail) {
        for door in &mut self.outside.doors {
            door.woken |= door.mailbox.tell(mail.clone());
        }
    }

    // What must have come out.

    /// What was for other nodes since the last look, and which shard had it.
    pub(crate) fn outbound(&mut self) -> Vec<(usize, Outbound)> {
        self.turn();
        std::mem::take(&mut self.outside.outbound)
    }

    /// All that a peer has received since the last look.
    pub(crate) fn received(&mut self, peer: Peer) -> String {
        self.turn();
        let received = std::mem::take(&mut self.outside.clients[peer.0].received);
        String::from_utf8(received).expect("the engine writes UTF-8")
    }

    /// A peer has received this since the last look, before anybody takes another turn.
    #[track_caller]
    pub(crate) fn has_received(&self, peer: Peer, part: &str) {
        let received = String::from_utf8_lossy(&self.outside.clients[peer.0].received);
        assert!(received.contains(part), "{part} is not in {received:?}");
    }

    /// Whether a peer has received anything since the last look, before anybody takes a turn.
    pub(crate) fn has_any(&self, peer: Peer) -> bool {
        !self.outside.clients[peer.0].received.is_empty()
    }

    /// What a peer has received since the last look, before anybody takes a turn.
    pub(crate) fn taken(&mut self, peer: Peer) -> String {
        let received = std::mem::take(&mut self.outside.clients[peer.0].received);
        String::from_utf8(received).expect("the engine writes UTF-8")
    }

    /// A peer has received exactly this since the last look.
    #[track_caller]
    pub(crate) fn expect(&mut self, peer: Peer, expected: impl AsRef<str>) -> &mut World {
        let received = self.received(peer);
        assert_eq!(received, expected.as_ref(), "at {} ms", self.ms);
        self
    }

    /// A peer has received nothing since the last look.
    #[track_caller]
    pub(crate) fn expect_nothing(&mut self, peer: Peer) -> &mut World {
        self.expect(peer, "")
    }

    /// A peer's connection is closed.
    #[track_caller]
    pub(crate) fn expect_closed(&mut self, peer: Peer) -> &mut World {
        self.turn();
        assert_eq!(self.outside.clients[peer.0].socket, Socket::Closed);
        self
    }

    /// A peer's connection is open both ways.
    #[track_caller]
    pub(crate) fn expect_reset(&mut self, peer: Peer) -> &mut World {
        self.expect_closed(peer);
        assert!(self.was_reset(peer), "it was closed in peace");
        self
    }

    pub(crate) fn was_reset(&self, peer: Peer) -> bool {
        self.outside.clients[peer.0].was_reset
    }

    #[track_caller]
    pub(crate) fn expect_open(&mut self, peer: Peer) -> &mut World {
        self.turn();
        assert_eq!(self.outside.clients[peer.0].socket, Socket::Open);
        self
    }

    /// The engine sends no more to a peer, and still reads.
    #[track_caller]
    pub(crate) fn expect_write_shut(&mut self, peer: Peer) -> &mut World {
        self.turn();
        assert_eq!(self.outside.clients[peer.0].socket, Socket::WriteShut);
        self
    }

    /// A peer's stream has ended as a whole one does: nothing of it is missing.
    #[track_caller]
    pub(crate) fn expect_whole(&mut self, peer: Peer) -> &mut World {
        self.turn();
        assert!(self.outside.clients[peer.0].chunks.is_whole());
        self
    }

    /// So many bytes have come to a peer, those of frames included.
    pub(crate) fn received_bytes(&self, peer: Peer) -> usize {
        self.outside.clients[peer.0].received_bytes
    }

    /// So many chunks have come to a peer.
    pub(crate) fn chunks(&self, peer: Peer) -> usize {
        self.outside.clients[peer.0].chunks.begun
    }

    pub(crate) fn is_closed(&self, peer: Peer) -> bool {
        self.outside.clients[peer.0].socket == Socket::Closed
    }

    /// A peer's input waits for the engine.
    pub(crate) fn is_paused(&self, peer: Peer) -> bool {
        !self.outside.clients[peer.0].sent.is_empty()
    }

    /// Opens a stream on a new connection, checks its head and its hello, and gives the stream's
    /// id; what follows is left.
    #[track_caller]
    pub(crate) fn stream(&mut self, shard: usize, query: &str, watching: usize) -> (Peer, String) {
        let peer = self.connect(shard);
        let target = match query {
            "" => "/v1/stream".to_owned(),
            query => format!("/v1/stream?{query}"),
        };
        self.get(peer, &target);
        let id = self.expect_hello(peer, watching);
        (peer, id)
    }

    /// A peer has received a stream's head and hello; gives the stream's id and leaves what
    /// follows.
    #[track_caller]
    pub(crate) fn expect_hello(&mut self, peer: Peer, watching: usize) -> String {
        self.expect_hello_behind(STREAM_HEAD, peer, watching)
    }

    /// The same behind another head.
    #[track_caller]
    pub(crate) fn expect_hello_behind(
        &mut self,
        head: &str,
        peer: Peer,
        watching: usize,
    ) -> String {
        let received = self.received(peer);
        let rest = received
            .strip_prefix(head)
            .unwrap_or_else(|| panic!("no stream: {received}"));
        let rest = rest.strip_prefix("event: hello\nretry: ").expect("hello");
        let (retry, rest) = rest.split_once('\n').expect("a line");
        let retry: u64 = retry.parse().expect("a number");
        let base = self.settings.retry_ms;
        assert!((base..=base + base / 2).contains(&retry), "retry {retry}");
        let rest = rest.strip_prefix("data: {\"stream\":\"").expect("data");
        let (id, rest) = rest.split_once('"').expect("an id");
        let by_holder = rest.contains("\"vouch\":\"self\"}");
        let vouch = if by_holder { ",\"vouch\":\"self\"" } else { "" };
        let expected = format!(
            ",\"watching\":{watching},\"server_time\":{},\"beat_interval_ms\":{},\
             \"offline_after_ms\":{},\"keep_alive_ms\":{}{vouch}}}\n\n",
            self.now().unix.ms(),
            self.settings.beat_interval_ms,
            self.settings.offline_after_ms,
            self.settings.keep_alive_ms
        );
        let rest = rest
            .strip_prefix(&expected)
            .unwrap_or_else(|| panic!("expected {expected} in {rest}"));
        self.outside.clients[peer.0].received = rest.as_bytes().to_vec();
        id.to_owned()
    }

    /// What `GET /v1/presence/{user}` says, from a connection of its own.
    pub(crate) fn ask(&mut self, shard: usize, user: &str) -> String {
        let peer = self.connect(shard);
        let target = format!("/v1/presence/{user}");
        self.send(
            peer,
            format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
        );
        let answer = self.received(peer);
        let (_, body) = answer.split_once("\r\n\r\n").expect("an answer");
        body.to_owned()
    }
}

/// A stream's response head, without the lines that all heads have (`chunks.rs`).
pub(crate) const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\n\
                                      Content-Type: text/event-stream; charset=utf-8\r\n\
                                      Transfer-Encoding: chunked\r\n\
                                      Cache-Control: no-store, no-transform\r\n\
                                      X-Accel-Buffering: no\r\nConnection: close\r\n\r\n";

/// A request without a body.
pub(crate) fn request(method: &str, target: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// A POST of JSON.
pub(crate) fn posted(target: &str, json: &str) -> String {
    format!(
        "POST {target} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: \
         {}\r\n\r\n{json}",
        json.len()
    )
}

/// An answer of JSON on a connection that stays open.
pub(crate) fn json(body: &str) -> String {
    format!("{}{body}", json_head(body.len(), ""))
}

/// Its head, with further header lines.
pub(crate) fn json_head(bytes: usize, extra: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {bytes}\r\n\
         Cache-Control: no-store\r\n{extra}\r\n"
    )
}

pub(crate) const NO_CONTENT: &str = "HTTP/1.1 204 No Content\r\n\r\n";
pub(crate) const CLOSE: &str = "Connection: close\r\n";
pub(crate) const RETRY_AFTER: &str = "Retry-After: 5\r\n";

/// A problem's answer; `extra` are its further header lines.
pub(crate) fn problem(status: &str, slug: &str, title: &str, detail: &str, extra: &str) -> String {
    let code = &status[..3];
    let detail = detail.replace('"', "\\\"");
    let body = format!(
        "{{\"type\":\"https://greendot.dev/problems/{slug}\",\"title\":\"{title}\",\
         \"status\":{code},\"detail\":\"{detail}\"}}"
    );
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\n{extra}\r\n{body}",
        body.len()
    )
}

/// The status line and the slug of a problem's answer.
#[track_caller]
pub(crate) fn status_and_slug(answer: &str) -> (&str, &str) {
    let status = answer.split("\r\n").next().unwrap_or("");
    let slug = answer
        .split_once("https://greendot.dev/problems/")
        .and_then(|(_, rest)| rest.split_once('"'))
        .map_or("", |(slug, _)| slug);
    (status, slug)
}

/// A record; times are ms since the world began.
pub(crate) fn record(
    user: &str,
    status: &str,
    since: impl Into<Option<u64>>,
    last_active: impl Into<Option<u64>>,
) -> String {
    let time = |ms: Option<u64>| ms.map_or("null".to_owned(), |ms| (START + ms).to_string());
    format!(
        "{{\"user\":\"{user}\",\"status\":\"{status}\",\"online\":{},\"since\":{},\
         \"last_active\":{}}}",
        matches!(status, "online" | "away" | "busy"),
        time(since.into()),
        time(last_active.into())
    )
}

/// The record of a user whom nobody has seen.
pub(crate) fn unseen(user: &str) -> String {
    record(user, "offline", None, None)
}

/// A whole snapshot, told at `ms`.
pub(crate) fn snapshot(ms: u64, records: &[String]) -> String {
    format!(
        "event: snapshot\nid: {}\ndata: {{\"presence\":[{}]}}\n\n",
        START + ms,
        records.join(",")
    )
}

/// A ping, said at `ms`.
pub(crate) fn ping(ms: u64) -> String {
    format!("event: ping\ndata: {}\n\n", START + ms)
}

/// What was received, without pings.
pub(crate) fn without_pings(received: &str) -> String {
    let blocks = received.split_inclusive("\n\n");
    blocks
        .filter(|block| !block.starts_with("event: ping\n"))
        .collect()
}

/// A presence event with an id, told at `ms`: the last of its batch.
pub(crate) fn told(ms: u64, record: &str) -> String {
    format!("event: presence\nid: {}\ndata: {record}\n\n", START + ms)
}

/// A presence event without one: others follow.
pub(crate) fn told_of_many(record: &str) -> String {
    format!("event: presence\ndata: {record}\n\n")
}
