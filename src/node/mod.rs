//! `greendot serve`, `realtime` and `presence`: builds one node out of its parts, waits for a
//! signal, takes it apart again.
//!
//! Owns the order of starting and stopping. Each part is told what it needs; none finds another by
//! itself. Nothing here runs while the node serves.

mod background;
mod build;
mod fault;
#[cfg(feature = "cluster")]
mod fleet;
mod heap;
mod keeper;
mod keys;
mod links;
mod reload;
mod signals;
mod supervisor;
mod tell;
mod tls;
mod usage;
mod webhooks;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, unbounded};

use crate::auth::Revoked;
use crate::config::{Config, RoleName};
use crate::engine::{Homes, ShardId};
use crate::fleet_key;
use crate::limits::{self, Found};
use crate::logs;
use crate::metrics::{Board, Gauge};
use crate::presence::OpenReport;
use crate::shard::tls::TlsParts;
use crate::shard::{self, Bound, Drained, Shards};
use crate::time::{Clock, boottime};
use background::Background;
use build::{Common, Databases};
pub use fault::ServeFault;
use keeper::{Keeper, Keeping, Wants};
use links::{Running, Wiring};
use reload::Reloader;
pub use reload::Reread;
use signals::StopSignal;
use supervisor::Supervisor;
use tell::Listening;
use tls::Certificates;
use webhooks::{Hooks, Told};

/// Time beyond `drain_ms` that the last answers have, in ms; then they are cut off.
const DRAIN_MARGIN_MS: u64 = 5_000;
/// The same where somebody waits at a terminal, and all streams are closed at once.
const DRAIN_MARGIN_AT_TERMINAL_MS: u64 = 1_000;
/// Time that a service manager is asked for beyond that, for the last write-back, in ms.
const CLOSE_MARGIN_MS: u64 = 30_000;

/// Serves until SIGTERM or SIGINT, drains, and closes the store. Logs through `tracing`, which the
/// caller has set up.
///
/// Errors: see [`ServeFault`]; a fault after the node has served is about closing the store.
pub fn run(config: Config, reread: Option<Reread>) -> Result<(), ServeFault> {
    heap::set_up();
    if let Err(error) = limits::raise_nofile() {
        tracing::warn!(%error, "the soft limit of file descriptors stays as it is");
    }
    let (opened, known) = Opened::open(config, &Found::read())?;
    let certificates = opened.certificates.as_ref();
    let mut reloader = Reloader::new(&opened.common, known, certificates, reread);
    let supervisor = Supervisor::of_environment();
    let told = supervisor.clone();
    let reload = move || told.while_reloading(|| reloader.reload());
    let stop_signals = signals::listen(reload).map_err(ServeFault::os("listen for signals"))?;
    let node = opened.start()?;
    let watchdog = supervisor.start_watchdog(&node.common.board, node.shards.teller())?;
    supervisor.ready();
    let signal = stop_signals
        .recv()
        .map_err(|_| ServeFault::os("wait for signals")(io::ErrorKind::BrokenPipe.into()))?;
    node.stop(signal, &supervisor)?;
    if let Some(watchdog) = watchdog {
        watchdog.stop();
    }
    Ok(())
}

/// A node whose files and sockets are open, and that runs nothing yet.
struct Opened {
    common: Common,
    bound: Bound,
    /// None: a follower, which has no files.
    report: Option<OpenReport>,
    /// None: a follower; presence nodes tell it.
    keeper: Option<Keeper>,
    /// None: there are no webhooks.
    told: Option<Told>,
    /// None: nothing speaks TLS.
    certificates: Option<Certificates>,
    /// What is said once it listens.
    sayings: Sayings,
}

/// What is said of a node's start, and can be said only once it listens.
struct Sayings {
    limits: String,
    memory: String,
    warnings: Vec<String>,
    /// The fleet key was made.
    key_made: bool,
}

/// A node that serves.
struct Node {
    common: Common,
    shards: Shards,
    links: Running,
    /// None: there are none.
    hooks: Option<Hooks>,
    heap: Background,
    usage: Background,
    /// None: a follower has nothing to write back.
    writer: Option<Background>,
    keeping: Option<Keeping>,
    /// Each shard says here that it has drained.
    drained: Receiver<Drained>,
}

impl Opened {
    fn open(mut config: Config, found: &Found) -> Result<(Opened, keys::Known), ServeFault> {
        let clock = Arc::new(Clock::new());
        let shards = config.shard_count();
        let warnings = limits::start_up_warnings(&config, shards, found);
        config.settings.conns_max = limits::conns_max(&config, shards, found.nofile_soft);
        // What can be refused comes before what changes anything. The lock is first, for a port
        // would be taken from whoever serves this folder, and a key be made beside theirs. The
        // store is last: a start that is refused leaves it as it was.
        let mut folder = build::lock_folder(&config, shards)?;
        let bound =
            shard::bind(&build::bind_options(&config, shards, found)).map_err(ServeFault::Bind)?;
        let tls = tls::read(&config)?;
        let trust = tls::trust(&config)?;
        let secret = build::random()?;
        let known = keys::Known::new(&config, &secret, clock.now())?;
        let read = keys::read(&config, &known, config.makes_key())?;
        let (databases, report) = build::open_presence(&config, folder.as_mut(), shards, &clock)
            .inspect_err(|_| {
                if read.made {
                    fleet_key::unmake(&config.key_path());
                }
            })?;
        let revocations_max = config.identity.revocations_max as usize;
        // Devices' keys outlive an epoch by another.
        let keys_ms = config.settings.device_key_epoch_ms.saturating_mul(2);
        let life_ms = config.identity.token_ttl_max_ms.max(keys_ms);
        let revoked = Arc::new(Revoked::new(revocations_max, life_ms));
        if config.role == RoleName::Fleet {
            revoked.await_reading();
        }
        let keeper = match &report {
            Some(_) => Some(Keeper::open(&config.data_dir, &revoked, clock.now().unix)?),
            None => None,
        };
        let told = Told::read(&config)?;
        let tls_warnings = tls
            .as_ref()
            .map_or_else(Vec::new, |tls| tls.certificate.warnings(clock.now().unix));
        let sayings = Sayings {
            memory: limits::memory_line(&config, found),
            limits: format!("limits: {found} udp_buffer={}", bound.udp_buffer_bytes),
            warnings: [warnings, read.warnings, config.warnings(), tls_warnings].concat(),
            key_made: read.made,
        };
        let board = Arc::new(Board::new(usize::from(shards)).with_warnings(logs::warnings()));
        board
            .process
            .set(Gauge::UsersMax, u64::from(config.users_max));
        let Databases {
            told: presence,
            heard,
        } = databases;
        let in_memory = u64::from(presence.memory().is_some());
        board.process.set(Gauge::StoreInMemory, in_memory);
        let keyrings = read.keyring.shared();
        let certificates = tls.map(|tls| Certificates::new(tls, &keyrings, &clock, &board));
        let settings = build::settings_of(&config).into();
        let common = Common {
            settings,
            nodes: Arc::new(build::nodes_of(&config)),
            secret,
            keyrings,
            trust,
            revoked,
            config,
            shards,
            clock,
            board,
            presence,
            heard,
            homes: Homes::default(),
        };
        let opened = Opened {
            common,
            bound,
            report,
            keeper,
            told,
            certificates,
            sayings,
        };
        Ok((opened, known))
    }

    fn start(self) -> Result<Node, ServeFault> {
        let Opened {
            common,
            bound,
            report,
            keeper,
            told,
            certificates,
            sayings,
        } = self;
        let at = Listening {
            http: bound.http,
            https: bound.https,
            admin: bound.admin,
            udp: bound.udp,
        };
        let (drained_sender, drained) = unbounded();
        let wants = keeper.as_ref().map(Keeper::wants);
        let tls = certificates.map(|certificates| certificates.parts(&common));
        let hooks = told.map(|told| Hooks::start(told, &common)).transpose()?;
        let start = Start {
            bound,
            tls,
            wants,
            hooks: hooks.as_ref(),
            drained: &drained_sender,
        };
        let (shards, links) = start_shards(&common, start)?;
        let keeping = keeper
            .map(|keeper| keeper.start(shards.teller()))
            .transpose()?;
        let writer = match &report {
            Some(_) => Some(background::start_write_back(&common)?),
            None => None,
        };
        let heap = background::start_heap(&common.board)?;
        let usage = background::start_usage(&common, report.is_some())?;
        sayings.say(&common, report.as_ref(), &at);
        Ok(Node {
            common,
            shards,
            links,
            hooks,
            heap,
            usage,
            writer,
            keeping,
            drained,
        })
    }
}

/// What the shards and the links start with, each with its share.
struct Start<'a> {
    bound: Bound,
    tls: Option<TlsParts>,
    wants: Option<Sender<Wants>>,
    hooks: Option<&'a Hooks>,
    drained: &'a Sender<Drained>,
}

/// Starts the shards between the links that they speak to and the links that speak to them.
fn start_shards(common: &Common, start: Start<'_>) -> Result<(Shards, Running), ServeFault> {
    let Start {
        bound,
        tls,
        wants,
        hooks,
        drained,
    } = start;
    let wiring = Wiring {
        config: &common.config,
        keyrings: &common.keyrings,
        trust: common.trust.clone(),
        secret: common.secret,
        seed: u64::from_ne_bytes(build::random()?),
        nodes: Arc::clone(&common.nodes),
        board: &common.board,
        clock: &common.clock,
        presence: &common.presence,
        heard: &common.heard,
        homes: &common.homes,
        listens: common
            .config
            .advertised(bound.http, bound.udp.unwrap_or(common.config.udp)),
        revoked: &common.revoked,
        hooks,
        wants,
    };
    let ready = wiring.prepare()?;
    let parts = common.engine_parts(wiring.listens.0)?;
    let with_outlet = |part| {
        let outlet = wiring.outlet(&ready)?;
        let outlet = match hooks {
            Some(hooks) => hooks.outlet(outlet),
            None => outlet,
        };
        Ok((part, outlet))
    };
    let parts = parts
        .into_iter()
        .map(with_outlet)
        .collect::<Result<Vec<_>, ServeFault>>()?;
    let shards = shard::spawn(bound, parts, tls.as_ref(), &common.clock, drained)
        .map_err(ServeFault::os("start the shards"))?;
    let links = wiring.start(ready, &shards)?;
    Ok((shards, links))
}

impl Sayings {
    fn say(self, common: &Common, report: Option<&OpenReport>, at: &Listening) {
        let config = &common.config;
        tell::listening(at, common.shards);
        tell::program(config, at);
        tracing::info!("{}", self.limits);
        tracing::info!("{}", self.memory);
        for warning in self.warnings {
            tracing::warn!("{warning}");
        }
        if let Some(report) = report {
            tell::store(config, report);
        }
        tell::fleet_key(config, self.key_made);
        tell::next(config, at.http);
    }
}

impl Node {
    /// Drains, ends every thread, and closes the store.
    fn stop(self, signal: StopSignal, supervisor: &Supervisor) -> Result<(), ServeFault> {
        let Common {
            config,
            board,
            presence,
            clock,
            ..
        } = self.common;
        let at_once = signal.is_from_a_terminal();
        let (drain_ms, margin_ms) = if at_once {
            tracing::info!("got {signal} at a terminal: closing streams now, not over drain-ms");
            (0, DRAIN_MARGIN_AT_TERMINAL_MS)
        } else {
            let drain_ms = config.settings.drain_ms;
            tracing::info!(
                "got {signal}: closing streams over {drain_ms} ms; the same again exits at once"
            );
            (drain_ms, DRAIN_MARGIN_MS)
        };
        board.process.set(Gauge::Draining, 1);
        supervisor.stopping(drain_ms.saturating_add(margin_ms + CLOSE_MARGIN_MS));
        self.shards.drain(at_once);
        // Until nobody is left, or for as long as streams are closed, who comes is told so; what a
        // listener that is gone says, a proxy turns into an error that ends an EventSource.
        wait_for_drain(self.common.shards, false, drain_ms, &self.drained);
        self.shards.close();
        let left = wait_for_drain(self.common.shards, true, margin_ms, &self.drained);
        if left > 0 {
            tracing::warn!(
                "{left} shards still have connections that do not end; they are cut off"
            );
        }
        supervisor.closing();
        self.shards.stop();
        self.links.stop();
        if let Some(hooks) = self.hooks {
            hooks.stop();
        }
        if let Some(keeping) = self.keeping {
            keeping.stop();
        }
        self.heap.stop();
        self.usage.stop();
        if let Some(writer) = self.writer {
            background::close(writer, &presence, &clock)?;
            tracing::info!("stopped; the store is written back");
        } else {
            tracing::info!("stopped");
        }
        Ok(())
    }
}

/// Waits until no shard has a connection left, and none will come if `closed`. Returns how many
/// have after so long.
fn wait_for_drain(
    shards: ShardId,
    closed: bool,
    limit_ms: u64,
    drained: &Receiver<Drained>,
) -> ShardId {
    let deadline = boottime().plus_ms(limit_ms);
    let mut left = shards;
    while left > 0 {
        let wait = Duration::from_millis(deadline.ms_since(boottime()));
        match drained.recv_timeout(wait) {
            // What was said before the last order counts no more.
            Ok(told) => left -= ShardId::from(told.closed == closed),
            Err(_) => break,
        }
    }
    left
}
