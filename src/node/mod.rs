//! `greendot serve`, `realtime` and `presence`: builds one node out of its parts, waits for a
//! signal, takes it apart again.
//!
//! Owns the order of starting and stopping, and what is said about it. Each part is told what it
//! needs; none finds another by itself. Nothing here runs while the node serves.

mod heap;
mod links;
mod signals;

use std::fmt;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use crate::config::{Config, RoleName};
use crate::engine::{EngineParts, Role, ShardId};
use crate::fleet_key::{self, FleetKeyFault};
use crate::limits::{self, Found};
use crate::metrics::{Board, Counter, Gauge};
use crate::presence::{Flusher, MirrorOptions, OpenReport, Presence, StoreFault, StoreOptions};
use crate::shard::{self, BindFault, BindOptions, Shards};
use crate::time::{Clock, boottime};
use crate::wire::nodes::Nodes;
use links::Wiring;

/// Time beyond `drain_ms` that the last answers have, in ms; then they are cut off.
const DRAIN_MARGIN_MS: u64 = 5_000;
/// Rest of the flusher after a failure, in ms.
const FLUSH_RETRY_MS: u64 = 1_000;
/// UDP receive buffer asked for where rmem_max can not be read, in bytes.
const UDP_BUFFER_BYTES: u64 = 4 << 20;

/// Why the node did not start, or did not stop cleanly.
#[derive(Debug)]
pub enum ServeFault {
    /// The presence database.
    Store(StoreFault),
    /// The fleet's key file.
    FleetKey(FleetKeyFault),
    /// A socket.
    Bind(BindFault),
    /// A node of the other role has no address.
    Node {
        /// As given.
        address: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Anything else that the system refused.
    Os {
        /// What was being done.
        doing: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

impl ServeFault {
    fn os(doing: &'static str) -> impl Fn(io::Error) -> ServeFault {
        move |source| ServeFault::Os { doing, source }
    }
}

impl fmt::Display for ServeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServeFault::Store(fault) => fault.fmt(f),
            ServeFault::FleetKey(fault) => fault.fmt(f),
            ServeFault::Bind(fault) => fault.fmt(f),
            ServeFault::Node { address, source } => {
                write!(
                    f,
                    "--presence udp://{address}: no such address: {source}; name a host that \
                     resolves"
                )
            }
            ServeFault::Os { doing, source } => write!(f, "{doing}: {source}"),
        }
    }
}

impl std::error::Error for ServeFault {}

/// Serves until SIGTERM or SIGINT, drains, and closes the store. Logs through `tracing`, which the
/// caller has set up.
pub fn run(mut config: Config) -> Result<(), ServeFault> {
    heap::set_up();
    if let Err(error) = limits::raise_nofile() {
        tracing::warn!(%error, "the soft limit of file descriptors stays as it is");
    }
    let found = Found::read();
    let clock = Arc::new(Clock::new());
    let shard_count = config.shard_count();
    let warnings = limits::start_up_warnings(&config, shard_count, &found);
    config.settings.conns_max = limits::conns_max(&config, shard_count, found.nofile_soft);

    // First: a store of many users takes a while to open, and one made for nothing would be left
    // over.
    let fleet =
        fleet_key::load(&config.key_path(), config.makes_key()).map_err(ServeFault::FleetKey)?;
    let (presence, report) = open_presence(&config, shard_count, &clock)?;
    let token = fleet.keys.signing().service_token();
    let bound =
        shard::bind(&bind_options(&config, shard_count, &found)).map_err(ServeFault::Bind)?;
    let stop_signals = signals::listen().map_err(ServeFault::os("listen for signals"))?;

    let board = Arc::new(Board::new(usize::from(shard_count)));
    board
        .process
        .set(Gauge::UsersMax, u64::from(config.users_max));
    let (http, udp, udp_buffer_bytes) = (bound.http, bound.udp, bound.udp_buffer_bytes);
    let (drained_sender, drained) = unbounded();
    let (secret, nodes) = (random()?, Arc::new(nodes_of(&config)));
    let parts = engine_parts(
        &config,
        shard_count,
        secret,
        &nodes,
        &presence,
        fleet.keys,
        &board,
        &clock,
    )?;
    let wiring = Wiring {
        config: &config,
        token,
        secret,
        seed: u64::from_ne_bytes(random()?),
        nodes,
        board: &board,
        clock: &clock,
        presence: &presence,
    };
    let ready = wiring.prepare()?;
    let outlets = parts
        .iter()
        .map(|_| wiring.outlet(&ready))
        .collect::<Result<Vec<_>, _>>()?;
    let parts = parts.into_iter().zip(outlets).collect();
    let shards = shard::spawn(bound, parts, &board, &clock, &drained_sender)
        .map_err(ServeFault::os("start the shards"))?;
    let links = wiring.start(ready, &shards)?;
    // A mirror has nothing to write back.
    let flusher = match report {
        Some(_) => Some(start_flusher(&config, &presence, &board, &clock)?),
        None => None,
    };
    let heap = {
        let board = Arc::clone(&board);
        Background::start(
            "heap",
            "start the thread that gives memory back",
            move |stop| {
                heap::give_back_until(stop, &board);
            },
        )?
    };

    let udp_part = udp.map_or(String::new(), |udp| format!(" udp={udp}"));
    say_listening(&format!(
        "listening http={http}{udp_part} shards={shard_count}"
    ));
    tracing::info!("limits: {found} udp_buffer={udp_buffer_bytes}");
    for warning in warnings.into_iter().chain(config.warning()) {
        tracing::warn!("{warning}");
    }
    if let Some(report) = &report {
        tell_store(&config, report);
    }
    if fleet.made {
        tracing::info!("made a fleet key in {}", config.key_path().display());
    }
    if let Some(mode) = fleet.open_mode {
        tracing::warn!(
            "{} has mode {mode:03o}: others may read the fleet key; run `chmod 600`",
            config.key_path().display()
        );
    }
    tell_next(&config, http);

    let signal = stop_signals
        .recv()
        .map_err(|_| ServeFault::os("wait for signals")(io::ErrorKind::BrokenPipe.into()))?;
    tracing::info!(
        "got {signal}: closing streams over {} ms; the same again exits at once",
        config.settings.drain_ms
    );
    board.process.set(Gauge::Draining, 1);
    drain(&shards, shard_count, config.settings.drain_ms, &drained);
    shards.stop();
    links.stop();
    heap.stop();
    if let Some(flusher) = flusher {
        flusher.stop();
        presence.close(clock.now()).map_err(ServeFault::os(
            "write the store back; it will open as after a crash",
        ))?;
        tracing::info!("stopped; the store is written back");
    } else {
        tracing::info!("stopped");
    }
    Ok(())
}

/// What to type next.
fn tell_next(config: &Config, http: SocketAddr) {
    match config.role {
        RoleName::All => {
            tracing::info!("try: curl -N 'http://{http}/v1/stream?user=alice&watch=bob'");
            tracing::info!("and in another terminal: curl -N 'http://{http}/v1/stream?user=bob'");
        }
        RoleName::Realtime => {
            let nodes: Vec<String> = config.presence.iter().map(ToString::to_string).collect();
            tracing::info!("real-time node; vouching to {}", nodes.join(" and "));
            tracing::info!("try: curl -N 'http://{http}/v1/stream?user=alice&watch=bob'");
        }
        RoleName::Presence => {
            let nodes: Vec<&str> = config
                .realtime
                .iter()
                .map(|node| node.http.as_str())
                .collect();
            tracing::info!("presence node; publishing to {}", nodes.join(" and "));
            tracing::info!("try: curl 'http://{http}/v1/presence/alice'");
        }
    }
}

/// The database: the store, or what a real-time node keeps in memory of it.
fn open_presence(
    config: &Config,
    shards: ShardId,
    clock: &Clock,
) -> Result<(Arc<Presence>, Option<OpenReport>), ServeFault> {
    if config.role == RoleName::Realtime {
        let options = MirrorOptions {
            users_max: config.users_max,
            shards,
        };
        let mirror = Presence::mirror(options, clock.now())
            .map_err(ServeFault::os("reserve memory for users"))?;
        return Ok((Arc::new(mirror), None));
    }
    let (presence, report) = open_store(config, shards, clock)?;
    Ok((presence, Some(report)))
}

fn start_flusher(
    config: &Config,
    presence: &Arc<Presence>,
    board: &Arc<Board>,
    clock: &Arc<Clock>,
) -> Result<Background, ServeFault> {
    let flusher = presence.flusher(config.flush_bytes_per_second_max);
    let (board, clock) = (Arc::clone(board), Arc::clone(clock));
    Background::start("flusher", "start the flusher", move |stop| {
        flush_until(stop, flusher, &board, &clock);
    })
}

/// A thread that works until it is stopped.
struct Background {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Background {
    /// `work` ends when the sender of what it is given is gone.
    fn start(
        name: &str,
        doing: &'static str,
        work: impl FnOnce(&Receiver<()>) + Send + 'static,
    ) -> Result<Background, ServeFault> {
        let (stop, stopped) = bounded(0);
        let thread = shard::vital_thread(name.into(), move || {
            work(&stopped);
            Ok(())
        });
        let thread = thread.map_err(ServeFault::os(doing))?;
        Ok(Background { stop, thread })
    }

    fn stop(self) {
        drop(self.stop);
        self.thread
            .join()
            .expect("a vital thread returns or ends the process");
    }
}

fn open_store(
    config: &Config,
    shards: ShardId,
    clock: &Clock,
) -> Result<(Arc<Presence>, OpenReport), ServeFault> {
    let options = StoreOptions {
        dir: config.data_dir.clone(),
        users_max: config.users_max,
        offline_after_ms: config.settings.offline_after_ms,
        beat_skew_max_ms: config.settings.beat_skew_max_ms,
        shards,
        boot_id: boot_id()?,
    };
    let (presence, report) = Presence::open(&options, clock.now()).map_err(ServeFault::Store)?;
    Ok((Arc::new(presence), report))
}

/// What tells one boot of the machine from another. Where it can not be read each start counts as
/// one: a crash is then taken for a power cut, which is the careful reading.
fn boot_id() -> Result<[u8; 16], ServeFault> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    match u128::from_str_radix(&text.trim().replace('-', ""), 16) {
        Ok(id) => Ok(id.to_be_bytes()),
        Err(_) => random(),
    }
}

fn random<const N: usize>() -> Result<[u8; N], ServeFault> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| ServeFault::os("get random bytes")(io::Error::other(error)))?;
    Ok(bytes)
}

fn bind_options(config: &Config, shards: ShardId, found: &Found) -> BindOptions {
    BindOptions {
        http: config.http,
        udp: (config.role != RoleName::Realtime).then_some(config.udp),
        shards,
        backlog: u32::try_from(found.somaxconn.unwrap_or(limits::BACKLOG)).unwrap_or(u32::MAX),
        udp_buffer_bytes: found.rmem_max.unwrap_or(UDP_BUFFER_BYTES) as usize,
        write_stall_max_ms: config.settings.write_stall_max_ms,
    }
}

/// The presence nodes by the names that decide whose is whose.
fn nodes_of(config: &Config) -> Nodes {
    let nodes = Nodes::new(config.presence.iter().map(|node| node.udp.as_str()));
    nodes.answering_at(config.presence.iter().map(|node| node.http.as_str()))
}

#[expect(
    clippy::too_many_arguments,
    reason = "an engine has these parts; they are named where they go"
)]
fn engine_parts(
    config: &Config,
    shards: ShardId,
    secret: [u8; 32],
    nodes: &Arc<Nodes>,
    presence: &Arc<Presence>,
    keys: crate::wire::beat::Keys,
    board: &Arc<Board>,
    clock: &Clock,
) -> Result<Vec<EngineParts>, ServeFault> {
    let settings = Arc::new(config.settings.clone());
    let (keys, now) = (Arc::new(keys), clock.now());
    let role = match config.role {
        RoleName::All => Role::All,
        RoleName::Presence => Role::Presence,
        RoleName::Realtime => Role::Realtime(Arc::clone(nodes)),
    };
    let seed = u64::from_ne_bytes(random()?);
    let parts = |shard| EngineParts {
        settings: Arc::clone(&settings),
        shard,
        shards,
        role: role.clone(),
        presence: Arc::clone(presence),
        keys: Arc::clone(&keys),
        secret,
        seed: seed.wrapping_add(u64::from(shard)),
        board: Arc::clone(board),
        now,
    };
    Ok((0..shards).map(parts).collect())
}

/// The one line on stdout; scripts wait for it.
fn say_listening(line: &str) {
    let mut stdout = io::stdout().lock();
    if let Err(error) = writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        tracing::warn!(%error, "stdout did not take the line: {line}");
    }
}

fn tell_store(config: &Config, report: &OpenReport) {
    let OpenReport { users, online, .. } = report;
    let before = match report {
        OpenReport {
            power_cut: true, ..
        } => "the power was cut since",
        OpenReport { clean: false, .. } => "it was not closed last time",
        _ => "it was closed cleanly",
    };
    tracing::info!(
        "store {}: {users} users known, {online} held online until they have had time to return; \
         {before}",
        config.data_dir.display()
    );
    let bytes_per_second = config.flush_bytes_per_second_max;
    let seconds = |users| Flusher::cycle_ms(users, bytes_per_second) as f64 / 1_000.0;
    tracing::info!(
        "write-back: a cycle takes up to {:.1} s now and {:.1} s with users_max {}; a power cut \
         loses at most one, a crash nothing",
        seconds(*users),
        seconds(config.users_max),
        config.users_max
    );
    if report.torn_bytes > 0 {
        tracing::warn!(
            "cut {} bytes of an unfinished record from the end of users.log",
            report.torn_bytes
        );
    }
    if report.stamps_rebuilt {
        tracing::warn!(
            "stamps.map was missing and was made anew: the last_active of all {users} users is \
             lost; to have it back, stop the \
             server at once and restore the whole folder from a backup"
        );
    }
    if report.published_rebuilt {
        tracing::warn!(
            "published.map was missing and was made anew from the stamps: the since of all \
             {users} users is lost; to have it \
             back, stop the server at once and restore the whole folder from a backup"
        );
    }
}

fn drain(shards: &Shards, shard_count: ShardId, drain_ms: u64, drained: &Receiver<ShardId>) {
    shards.drain();
    let deadline = boottime().plus_ms(drain_ms.saturating_add(DRAIN_MARGIN_MS));
    for left in (1..=shard_count).rev() {
        let wait = Duration::from_millis(deadline.ms_since(boottime()));
        if drained.recv_timeout(wait).is_err() {
            tracing::warn!(
                "{left} shards still have connections that do not end; they are cut off"
            );
            return;
        }
    }
}

/// Writes the store back, slice by slice, until the sender of `stop` is dropped.
fn flush_until(stop: &Receiver<()>, mut flusher: Flusher, board: &Board, clock: &Clock) {
    let mut failing = false;
    loop {
        let pause_ms = match flusher.slice(clock.now()) {
            Ok(report) => {
                failing = false;
                board.process.add(Counter::StoreFlushedBytes, report.bytes);
                if let Some(cycle_ms) = report.cycle_ms {
                    board.process.add(Counter::StoreFlushCycles, 1);
                    board
                        .process
                        .set(Gauge::StoreFlushCycle, cycle_ms.saturating_mul(1_000));
                }
                report.pause_ms
            }
            Err(error) => {
                board.process.add(Counter::StoreFlushErrors, 1);
                // Once per row of failures: a disk that is full stays so for a while.
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(%error, "the store could not be written back; trying again \
                     every {FLUSH_RETRY_MS} ms");
                }
                FLUSH_RETRY_MS
            }
        };
        if stop.recv_timeout(Duration::from_millis(pause_ms)) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}
