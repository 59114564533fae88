//! A node's part in a fleet: the bridge's thread, and how shards and bridge reach each other.
//!
//! Owns their order of starting and stopping. Knows nothing of what they say.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use super::ServeFault;
use super::links::{Wiring, spawn};
use super::webhooks::request_ms;
use crate::auth::Keyrings;
use crate::bridge::abroad::Abroad;
use crate::bridge::databases::Databases;
use crate::bridge::desk::{Desk, TellOne};
use crate::bridge::driver::{self, Inbox};
use crate::bridge::hooks::{HookOutlet, Hooks};
use crate::bridge::neighbours::{Neighbours, Say};
use crate::bridge::shards::Shards as Core;
use crate::bridge::{Options, missed_ms};
use crate::config::webhooks::Webhook;
use crate::engine::{Mail, Outbound, instance_of};
use crate::fleet::hooks::name_of;
use crate::fleet::library;
use crate::fleet::member::{Layout, Member, Settings};
use crate::fleet::partition::Partitions;
use crate::key_files;
use crate::links::webhooks::FleetHandle;
use crate::links::{Abroad as Askers, HomeSender, Token};
use crate::metrics::{Board, Counter};
use crate::redis_url::Password;
use crate::shard::{self, Outlet, Shards};
use crate::version;
use crate::wire::beat::{Flags, Writer};

/// Most pieces of mail that wait for the bridge: beyond, all of this node's users are looked at
/// anew.
const INBOX_MAX: usize = 65_536;

/// Before the shards run.
pub(super) struct Ready {
    options: Options,
    inbox: Arc<Inbox<Outbound>>,
}

/// While they run.
pub(super) struct Running {
    inbox: Arc<Inbox<Outbound>>,
    thread: JoinHandle<()>,
    askers: Askers,
}

impl Ready {
    /// Errors: the file with the password can not be read.
    pub(super) fn new(wiring: &Wiring<'_>) -> Result<Ready, ServeFault> {
        let fleet = &wiring.config.fleet;
        let servers = fleet.servers.clone();
        let password = fleet.password_file.as_deref().map(key_files::password);
        let password = password.transpose().map_err(ServeFault::KeyFile)?;
        let options = Options {
            servers: servers.expect("a node of a fleet was told its database"),
            password: password.map(Password::new),
            trust: wiring.trust.clone(),
        };
        Ok(Ready {
            options,
            inbox: Arc::new(Inbox::new(INBOX_MAX)),
        })
    }

    /// One shard's way out.
    pub(super) fn outlet(&self, board: &Arc<Board>) -> Outlet {
        let inbox = Arc::clone(&self.inbox);
        let mut homes = HomeSender::new(board);
        Box::new(move |outbound| match outbound {
            Outbound::Homeward { to, datagrams } => homes.send(to, &datagrams),
            for_bridge => inbox.leave(for_bridge),
        })
    }

    /// The threads of webhooks, as the bridge reaches them.
    fn hooks(&self, wiring: &Wiring<'_>) -> Vec<HookOutlet> {
        let inbox = Arc::clone(&self.inbox);
        let wake = Box::new(move || inbox.nudge());
        let handles = wiring.hooks.map(|hooks| hooks.handles(wake));
        let config = &wiring.config.webhooks;
        let outlet = |(handle, hook): (FleetHandle, &Webhook)| {
            let handle = Arc::new(handle);
            let [one, two] = [(); 2].map(|()| Arc::clone(&handle));
            HookOutlet {
                name: name_of(hook.typed()),
                prefix: hook.prefix.clone(),
                request_ms: request_ms(config),
                queue_max: config.queue_max,
                hand: Box::new(move |order| handle.hand(order)),
                room: Box::new(move || one.room()),
                reports: Box::new(move || two.reports()),
            }
        };
        let handles = handles.unwrap_or_default().into_iter();
        handles.zip(&config.hooks).map(outlet).collect()
    }

    /// Starts the bridge.
    pub(super) fn start(self, wiring: &Wiring<'_>, shards: &Shards) -> Result<Running, ServeFault> {
        let now = wiring.clock.now();
        let config = wiring.config;
        let (http, udp) = wiring.listens;
        let info: Box<str> = format!("{http} {udp} {} {}", library::name(), version::LINE).into();
        let partitions = Arc::new(
            Partitions::new(config.fleet.partitions).expect("the configuration was checked"),
        );
        let mut random = fastrand::Rng::with_seed(wiring.seed);
        let hooks = Hooks::new(
            self.hooks(wiring),
            info,
            Arc::clone(&partitions),
            (config.fleet.buckets, config.fleet.settle_ms),
            random.fork(),
            Arc::clone(wiring.board),
        );
        let settings = Settings {
            layout: Layout {
                partitions: config.fleet.partitions,
                buckets: config.fleet.buckets,
                offline_after_ms: config.settings.offline_after_ms as u32,
                ..Layout::default()
            },
            info: hooks.info().into(),
            missed_ms: missed_ms(config.settings.offline_after_ms),
            settle_ms: config.fleet.settle_ms,
            forget_after_ms: config.settings.forget_after,
            reap_users_per_s: config.fleet.reap_users_per_second as u32,
            ..Settings::default()
        };
        let databases = Databases::new(
            Arc::clone(wiring.presence),
            Arc::clone(wiring.heard),
            wiring.homes.clone(),
        );
        let say = speaker(Arc::clone(wiring.keyrings), Arc::clone(wiring.board));
        let sizes = (partitions.count(), config.settings.offline_after_ms);
        let neighbours = Neighbours::new(wiring.homes.clone(), udp, sizes, random.fork(), say, now);
        let member = Member::new(settings, Arc::clone(&partitions), databases, random, now);
        let teller = shards.teller();
        let tell = Arc::new(move |mail: &Mail| teller.tell(mail));
        let one = shards.teller();
        let tell_one: TellOne = Arc::new(move |shard, mail| one.tell_one(shard, mail));
        let keyrings = Arc::clone(wiring.keyrings);
        let token: Token = Arc::new(move || keyrings.load().fleet.signing().service_token());
        let askers = Askers::start(&token, &tell_one, &spawn)
            .map_err(ServeFault::os("start the threads that ask other nodes"))?;
        let handle = askers.handle();
        let forwards = handle.clone();
        let ask = Box::new(move |ask| handle.ask(ask));
        let forward = Box::new(move |node, call| forwards.forward(node, call));
        let abroad = Abroad::new(ask, forward, Arc::clone(&tell_one));
        let desk = Desk::new(
            Arc::clone(wiring.revoked),
            Arc::clone(&partitions),
            config.fleet.buckets,
            member.ticks(),
            tell_one,
            Arc::clone(wiring.board),
        );
        let birth = instance_of(&wiring.secret);
        let observer = Arc::new(OnceLock::new());
        let board = Arc::clone(wiring.board);
        let link = Arc::clone(&observer);
        let beside = (desk, neighbours, hooks, abroad);
        let core = Core::new(member, beside, birth, tell, board, link, now);
        let (inbox, clock) = (Arc::clone(&self.inbox), Arc::clone(wiring.clock));
        let options = self.options;
        let thread = shard::vital_thread("fleet".into(), move || {
            let observe = |seen| drop(observer.set(seen));
            driver::run(core, options, partitions, &inbox, &clock, observe).map(drop)
        })
        .map_err(ServeFault::os("start the bridge to the fleet"))?;
        Ok(Running {
            inbox: self.inbox,
            thread,
            askers,
        })
    }
}

impl Running {
    pub(super) fn stop(self) {
        self.inbox.close();
        if self.thread.join().is_err() {
            tracing::error!("the bridge to the fleet had panicked");
        }
        // The bridge has dropped what it asked by.
        self.askers.stop();
    }
}

/// Says words to other nodes, one a datagram. What the kernel does not take is lost: the next one
/// is half a second away.
fn speaker(keyrings: Arc<Keyrings>, board: Arc<Board>) -> Say {
    let (mut v4, mut v6) = (None, None);
    Box::new(move |to, word, now| {
        let keyring = keyrings.load();
        let key = keyring.fleet.signing();
        let mut writer = Writer::of(Flags::WORD, now.unix, key);
        let is_written = writer.push(word);
        debug_assert!(is_written, "an empty datagram has room for any entry");
        let sent = match to {
            SocketAddr::V4(_) => send(&mut v4, "0.0.0.0:0", to, writer.seal_in_place(key)),
            SocketAddr::V6(_) => send(&mut v6, "[::]:0", to, writer.seal_in_place(key)),
        };
        if let Err(error) = sent {
            tracing::debug!(%error, %to, "a word to another node was not sent");
            board.process.add(Counter::FleetDatagramsLost, 1);
        }
    })
}

/// Opens the socket if there is none yet.
///
/// Errors: the kernel's.
fn send(
    socket: &mut Option<UdpSocket>,
    from: &str,
    to: SocketAddr,
    datagram: &[u8],
) -> std::io::Result<()> {
    if socket.is_none() {
        let opened = UdpSocket::bind(from)?;
        opened.set_nonblocking(true)?;
        *socket = Some(opened);
    }
    let socket = socket.as_ref().expect("opened above");
    socket.send_to(datagram, to).map(drop)
}
