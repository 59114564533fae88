//! The parts of a node, made from its configuration.
//!
//! Owns the translation of the configuration into what each part is told. Starts nothing but the
//! store.

use std::net::SocketAddr;
use std::sync::Arc;

use super::ServeFault;
use crate::auth::{Keyrings, Revoked};
use crate::config::{Config, RoleName, is_loopback};
use crate::engine::settings::{LOOPBACK, Settings, SharedSettings};
use crate::engine::{EngineParts, Homes, NodeName, Operators, Role, ShardId};
use crate::limits::{self, Found};
use crate::metrics::Board;
use crate::presence::{FollowerOptions, OpenReport, Presence, StoreFolder, StoreOptions};
use crate::random;
use crate::shard::BindOptions;
use crate::time::Clock;
use crate::trust::Trust;
use crate::wire::nodes::Nodes;

/// UDP receive buffer asked for where rmem_max can not be read, in bytes.
const UDP_BUFFER_BYTES: u64 = 4 << 20;

/// Locks the folder of the store. None: a real-time node, which has no files.
pub(super) fn lock_folder(
    config: &Config,
    shards: ShardId,
) -> Result<Option<StoreFolder>, ServeFault> {
    if matches!(config.role, RoleName::Realtime | RoleName::Fleet) {
        return Ok(None);
    }
    let options = StoreOptions {
        dir: config.data_dir.clone(),
        users_max: config.users_max,
        offline_after_ms: config.settings.offline_after_ms,
        restart_grace_ms: config.settings.restart_grace_ms,
        shards,
        memory: config.memory.clone(),
        boot_id: boot_id()?,
    };
    let folder = StoreFolder::lock(options).map_err(ServeFault::Store)?;
    Ok(Some(folder))
}

/// What is told and what is heard: the store for both; or what a real-time node, or one of a fleet,
/// keeps in memory.
pub(super) fn open_presence(
    config: &Config,
    folder: Option<&mut StoreFolder>,
    shards: ShardId,
    clock: &Clock,
) -> Result<(Databases, Option<OpenReport>), ServeFault> {
    let Some(folder) = folder else {
        let in_fleet = config.role == RoleName::Fleet;
        let options = FollowerOptions {
            sources: if in_fleet {
                1
            } else {
                config.presence_nodes.len()
            },
            users_max: config.users_max,
            shards,
            offline_after_ms: config.settings.offline_after_ms,
        };
        let fault = ServeFault::os("reserve memory for users");
        if in_fleet {
            let (told, heard) =
                Presence::follower_and_heard(options, clock.now()).map_err(fault)?;
            return Ok((Databases { told, heard }, None));
        }
        let follower = Presence::follower(options, clock.now()).map_err(fault)?;
        return Ok((Databases::one(follower), None));
    };
    let (presence, report) = folder.open(clock.now()).map_err(ServeFault::Store)?;
    Ok((Databases::one(presence), Some(report)))
}

/// What is told, and what is heard: one database, but in a fleet.
pub(super) struct Databases {
    pub(super) told: Arc<Presence>,
    pub(super) heard: Arc<Presence>,
}

impl Databases {
    fn one(presence: Presence) -> Databases {
        let told = Arc::new(presence);
        let heard = Arc::clone(&told);
        Databases { told, heard }
    }
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

pub(super) fn random<const N: usize>() -> Result<[u8; N], ServeFault> {
    let mut bytes = [0; N];
    random::fill(&mut bytes).map_err(ServeFault::os("get random bytes"))?;
    Ok(bytes)
}

pub(super) fn bind_options(config: &Config, shards: ShardId, found: &Found) -> BindOptions {
    BindOptions {
        http: config.http,
        https: config.tls.https,
        admin: config.admin,
        udp: (config.role != RoleName::Realtime).then_some(config.udp),
        shards,
        backlog: u32::try_from(found.somaxconn.unwrap_or(limits::BACKLOG)).unwrap_or(u32::MAX),
        udp_buffer_bytes: found.rmem_max.unwrap_or(UDP_BUFFER_BYTES) as usize,
        write_stall_max_ms: config.settings.write_stall_max_ms,
    }
}

/// Where operators' calls are served.
fn operators(config: &Config) -> Operators {
    Operators {
        are_public: config.serves_operators_publicly(),
        are_open: match config.admin {
            Some(admin) => is_loopback(admin),
            None => config.is_local() || !config.asks(),
        },
        metrics_are_open: config.admin_metrics_open,
        demo: config.has_demo(),
    }
}

/// The presence nodes by the names that decide whose is whose; in a fleet its bridge alone.
pub(super) fn nodes_of(config: &Config) -> Nodes {
    if config.role == RoleName::Fleet {
        return Nodes::new(["the fleet"]).answering_at(["of the fleet"]);
    }
    let nodes = Nodes::new(config.presence_nodes.iter().map(|node| node.udp.as_str()));
    nodes.answering_at(config.presence_nodes.iter().map(|node| node.http.as_str()))
}

/// What the threads of a node share.
pub(super) struct Common {
    pub(super) config: Config,
    pub(super) shards: ShardId,
    pub(super) clock: Arc<Clock>,
    pub(super) board: Arc<Board>,
    pub(super) presence: Arc<Presence>,
    /// Whom this node hears: the same, but in a fleet.
    pub(super) heard: Arc<Presence>,
    /// The presence nodes; none but in a real-time node.
    pub(super) nodes: Arc<Nodes>,
    pub(super) keyrings: Arc<Keyrings>,
    /// What the engines are told now.
    pub(super) settings: SharedSettings,
    /// By whom nodes at `https://` are believed.
    pub(super) trust: Option<Trust>,
    /// Whose tokens are void before their time.
    pub(super) revoked: Arc<Revoked>,
    /// What stream ids are made of; names this life of the node.
    pub(super) secret: [u8; 32],
    /// To which nodes of a fleet users' beats go.
    pub(super) homes: Homes,
}

/// What the engines are told of a configuration.
pub(super) fn settings_of(config: &Config) -> Settings {
    let mut settings = config.settings.clone();
    if settings.cors_origins.is_empty() && config.is_local() {
        settings.cors_origins.push(LOOPBACK.to_owned());
    }
    settings
}

impl Common {
    /// What each shard's engine is made of. Other nodes of a fleet reach this one at `http`.
    pub(super) fn engine_parts(&self, http: SocketAddr) -> Result<Vec<EngineParts>, ServeFault> {
        let now = self.clock.now();
        let role = match self.config.role {
            RoleName::All => Role::All,
            RoleName::Presence => Role::Presence,
            RoleName::Realtime => Role::Realtime(Arc::clone(&self.nodes)),
            RoleName::Fleet => Role::Fleet(Arc::clone(&self.nodes)),
        };
        let seed = u64::from_ne_bytes(random()?);
        let parts = |shard| EngineParts {
            settings: self.settings.clone(),
            shard,
            shards: self.shards,
            role: role.clone(),
            operators: operators(&self.config),
            presence: Arc::clone(&self.presence),
            heard: Arc::clone(&self.heard),
            keyrings: Arc::clone(&self.keyrings),
            revoked: Arc::clone(&self.revoked),
            secret: self.secret,
            seed: seed.wrapping_add(u64::from(shard)),
            mirrors: self.config.realtime_nodes.len(),
            // Its bridge hears of transitions by the fleet's database.
            has_webhooks: self.config.webhooks.are_on() && self.config.role != RoleName::Fleet,
            homes: self.homes.clone(),
            name: (self.config.role == RoleName::Fleet).then(|| NodeName::of(http)),
            board: Arc::clone(&self.board),
            now,
        };
        Ok((0..self.shards).map(parts).collect())
    }
}
