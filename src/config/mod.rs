//! What the process was told: flags over `GREENDOT_*` variables over a TOML file over defaults.
//!
//! Owns the values and the checks that need more than one of them. The rows are in [`knobs`]; where
//! each value comes from is in `load.rs`.

pub mod fleet;
pub mod knobs;
mod load;
pub mod nodes;
mod reread;
pub mod value;
pub mod webhooks;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::auth::{RateLimits, SESSION_COOKIE, WatchDefault};
use crate::engine::settings::Settings;
use crate::store::MemoryChoice;
use fleet::FleetConfig;
pub use load::{
    BEAT_TO_VARIABLE, CONFIG_VARIABLE, Loaded, Origin, Sources, URL_VARIABLE, VARIABLE_PREFIX, load,
};
use nodes::{PresenceNode, RealtimeNode};
pub use reread::{Change, LIVE, Told};
use webhooks::WebhookConfig;

/// Which half of the platform the process is: the subcommand.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RoleName {
    /// `serve`: both.
    #[default]
    All,
    /// `presence`: stamps, sweep, queries.
    Presence,
    /// `realtime`: streams and watches.
    Realtime,
    /// `serve --cluster`: both, as one of many.
    Fleet,
}

impl RoleName {
    /// Whether it has both halves.
    pub const fn is_whole(self) -> bool {
        matches!(self, RoleName::All | RoleName::Fleet)
    }
}

/// Everything that a server is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// What it is; no knob sets it.
    pub role: RoleName,
    /// The presence nodes of a real-time node.
    pub presence_nodes: Vec<PresenceNode>,
    /// The real-time nodes of a presence node.
    pub realtime_nodes: Vec<RealtimeNode>,
    /// The fleet that it belongs to.
    pub fleet: FleetConfig,
    /// Where to listen for HTTP, as given: port 0 is still 0.
    pub http: SocketAddr,
    /// What speaks TLS, and how.
    pub tls: TlsConfig,
    /// Where to listen for operators, as given. None: see [`Config::serves_operators_publicly`].
    pub admin: Option<SocketAddr>,
    /// Whether the metrics take no key there.
    pub admin_metrics_open: bool,
    /// Where to receive datagrams, as given.
    pub udp: SocketAddr,
    /// Folder of the presence database.
    pub data_dir: PathBuf,
    /// Fleet keys; None: see [`Config::key_path`].
    pub key_file: Option<PathBuf>,
    /// Threads; None: as many as there are cores to use. See [`Config::shard_count`].
    pub shards: Option<u16>,
    /// Most users ever known.
    pub users_max: u32,
    /// Budget of the background write-back, bytes a second.
    pub write_back_bytes_per_second_max: u64,
    /// Where the store's cells are while it runs.
    pub memory: MemoryChoice,
    /// Whether addresses that other machines can reach are allowed.
    pub insecure: bool,
    /// Whether the page for trying things out is served where other machines may reach it too.
    pub demo: bool,
    /// How users prove who they are.
    pub identity: IdentityConfig,
    /// Where transitions are told too.
    pub webhooks: WebhookConfig,
    /// Form of the logs.
    pub log_format: LogFormat,
    /// Least severe level that is logged.
    pub log_level: LogLevel,
    /// What the engines are told.
    pub settings: Settings,
}

/// What speaks TLS, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsConfig {
    /// Where to listen for HTTP over TLS, as given.
    pub https: Option<SocketAddr>,
    /// Whether the operators' listener speaks it.
    pub admin: bool,
    /// The file with the certificate.
    pub certificate: Option<PathBuf>,
    /// The file with its key.
    pub key: Option<PathBuf>,
    /// The file with those by whom nodes at `https://` are believed.
    pub authorities: Option<PathBuf>,
    /// The oldest version that is spoken.
    pub min: TlsVersion,
    /// Most handshakes of one shard at a time.
    pub handshakes_max: usize,
}

/// A version of TLS that may be the oldest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the versions' names")]
pub enum TlsVersion {
    V1_2,
    V1_3,
}

impl Default for TlsConfig {
    fn default() -> TlsConfig {
        TlsConfig {
            https: None,
            admin: false,
            certificate: None,
            key: None,
            authorities: None,
            min: TlsVersion::V1_3,
            handshakes_max: 1_024,
        }
    }
}

impl TlsConfig {
    /// Whether anything speaks it.
    pub fn is_on(&self) -> bool {
        self.https.is_some() || self.admin
    }
}

/// How users prove who they are. Without keys nobody is asked to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdentityConfig {
    /// Files with the keys of users' tokens.
    pub jwt_keys: Vec<PathBuf>,
    /// The audience that tokens must be for.
    pub jwt_aud: Option<String>,
    /// Whom they must be from.
    pub jwt_iss: Option<String>,
    /// Longest rest of a token's life, in ms.
    pub token_ttl_max_ms: u64,
    /// Whom a token without `watch` lets its holder watch.
    pub watch_default: WatchDefault,
    /// The cookie that may hold a token.
    pub auth_cookie: Option<String>,
    /// Whether a token may stand in a URL.
    pub auth_query: bool,
    /// Bytes that the ids of used tickets may take.
    pub tickets_bytes_max: usize,
    /// The file with the hashes of services' keys.
    pub service_keys: Option<PathBuf>,
    /// What the holder of a token may ask in a time.
    pub rates: RateLimits,
    /// Most revocations in force.
    pub revocations_max: u32,
}

impl Default for IdentityConfig {
    fn default() -> Self {
        IdentityConfig {
            jwt_keys: Vec::new(),
            jwt_aud: None,
            jwt_iss: None,
            token_ttl_max_ms: 86_400_000,
            watch_default: WatchDefault::Nobody,
            auth_cookie: None,
            auth_query: false,
            tickets_bytes_max: 32 << 20,
            service_keys: None,
            rates: RateLimits::default(),
            revocations_max: 1 << 20,
        }
    }
}

impl IdentityConfig {
    /// Whether users are asked who they are.
    pub fn asks(&self) -> bool {
        !self.jwt_keys.is_empty()
    }
}

/// In a split deployment a shorter silence may be that of a cut which nobody has noticed yet, in
/// ms: the second between two requests, the two seconds of one that is not answered, and some.
const SPLIT_OFFLINE_AFTER_MS_MIN: u64 = 5_000;

impl Default for Config {
    fn default() -> Self {
        Config {
            role: RoleName::All,
            presence_nodes: Vec::new(),
            realtime_nodes: Vec::new(),
            fleet: FleetConfig::default(),
            http: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            tls: TlsConfig::default(),
            admin: None,
            admin_metrics_open: false,
            udp: SocketAddr::from((Ipv4Addr::LOCALHOST, 8081)),
            data_dir: PathBuf::from("./greendot-data"),
            key_file: None,
            shards: None,
            users_max: 1 << 24,
            write_back_bytes_per_second_max: 64 << 20,
            memory: MemoryChoice::Auto,
            insecure: false,
            demo: false,
            identity: IdentityConfig::default(),
            webhooks: WebhookConfig::default(),
            log_format: LogFormat::Human,
            log_level: LogLevel::Info,
            settings: Settings::default(),
        }
    }
}

impl Config {
    /// Number of shards: as told, or the cores that this process may run on (its affinity mask,
    /// read now).
    pub fn shard_count(&self) -> u16 {
        let cores =
            || core_affinity::get_core_ids().map_or(1, |cores| cores.len().clamp(1, 256) as u16);
        self.shards.unwrap_or_else(cores)
    }

    /// Where the fleet keys are: `key_file`, or `fleet.key` in the data folder, which `serve` makes
    /// if it is missing.
    pub fn key_path(&self) -> PathBuf {
        self.key_file
            .clone()
            .unwrap_or_else(|| self.data_dir.join("fleet.key"))
    }

    /// Whether HTTP is served to this machine alone.
    pub fn is_local(&self) -> bool {
        is_loopback(self.http) && self.tls.https.is_none_or(is_loopback)
    }

    /// Where everybody's calls are served: the first address that other machines may reach, or
    /// else that of `http`.
    fn reached_at(&self) -> (&'static str, SocketAddr) {
        match self.tls.https {
            Some(https) if is_loopback(self.http) && !is_loopback(https) => ("https", https),
            _ => ("http", self.http),
        }
    }

    /// Whether operators' calls are served where everybody's are: on a loopback address, or by
    /// `insecure`, if there is no other listener for them.
    pub fn serves_operators_publicly(&self) -> bool {
        self.admin.is_none() && (self.is_local() || self.insecure)
    }

    /// Whether the page for trying things out is served.
    pub fn has_demo(&self) -> bool {
        self.demo || self.is_local() || self.serves_operators_publicly()
    }

    /// Whether callers are asked who they are. A presence node holds no streams: there services
    /// alone may be.
    pub fn asks(&self) -> bool {
        let services = self.identity.service_keys.is_some();
        self.identity.asks() || (services && self.role == RoleName::Presence)
    }

    /// Whether a missing key file is made.
    pub fn makes_key(&self) -> bool {
        self.key_file.is_none() && self.role.is_whole()
    }

    /// By which addresses other nodes of the fleet reach this one's HTTP and datagrams, listening
    /// at these.
    pub fn advertised(&self, http: SocketAddr, udp: SocketAddr) -> (SocketAddr, SocketAddr) {
        let fleet = &self.fleet;
        (
            fleet.advertise_http.unwrap_or(http),
            fleet.advertise_udp.unwrap_or(udp),
        )
    }

    /// Holds the values against each other; all faults, each with what to set.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let mut faults = self.settings.check().err().unwrap_or_default();
        self.check_role(&mut faults);
        let listens = [("http", self.http), ("udp", self.udp)];
        fleet::check(&self.fleet, listens, &mut faults);
        let https = self.tls.https.map(|https| ("https", https));
        let addresses = [Some(("http", self.http)), https, Some(("udp", self.udp))];
        for (name, address) in addresses.into_iter().flatten() {
            let bound = name != "udp" || self.role != RoleName::Realtime;
            let asks = self.insecure || self.asks();
            if bound && !asks && !is_loopback(address) {
                faults.push(format!(
                    "{name} is {address}, which other machines may reach, and nobody has to prove \
                     who they are; ask users for tokens with --jwt-keys, bind a loopback address \
                     such as 127.0.0.1, or allow it with --insecure"
                ));
            }
        }
        self.check_admin(&mut faults);
        self.check_tls(&mut faults);
        self.check_identity(&mut faults);
        self.webhooks.check(self.role, &mut faults);
        if faults.is_empty() {
            Ok(())
        } else {
            Err(faults)
        }
    }

    /// What is allowed and seldom meant.
    pub fn warnings(&self) -> Vec<String> {
        let offline_after_ms = self.settings.offline_after_ms;
        let is_short = offline_after_ms < SPLIT_OFFLINE_AFTER_MS_MIN;
        let split = (!self.role.is_whole() && is_short).then(|| {
            format!(
                "offline-after-ms is {offline_after_ms}: it takes the nodes of a split deployment \
                 some 3 s to notice that they are cut off, and who turns offline before is told \
                 so; better set it to at least {SPLIT_OFFLINE_AFTER_MS_MIN} on all nodes"
            )
        });
        let query = self.identity.auth_query.then(|| {
            "auth-query is set: tokens in URLs stand in the logs of every proxy on the way, and in \
             histories; better have pages ask for tickets"
                .to_owned()
        });
        let insecure = self.insecure.then(|| {
            let operators = match self.admin {
                None => {
                    ", and the dashboard, the demo and all operators' calls stay on the one \
                         listener"
                }
                Some(_) => "",
            };
            format!(
                "insecure is set: nobody has to prove who they are where no keys are named, and \
                 whoever reaches this node may be anybody and see everybody{operators}"
            )
        });
        let all = [
            split,
            query,
            insecure,
            self.admin_warning(),
            self.admin_tls_warning(),
        ];
        all.into_iter().flatten().collect()
    }

    fn admin_warning(&self) -> Option<String> {
        if self.admin.is_none() && !self.serves_operators_publicly() {
            return Some(
                "admin is not set, and other machines may reach this node: metrics, revocations \
                 and erasures are served nowhere; give them a listener of their own with --admin"
                    .into(),
            );
        }
        let admin = self.admin.filter(|admin| !is_loopback(*admin))?;
        let keyless = self.identity.service_keys.is_none();
        keyless.then(|| {
            format!(
                "admin is {admin}, which other machines may reach, and no service keys are named: \
                 nobody but nodes may call there; make one with `greendot key new --service`, and \
                 name the file of their hashes with --service-keys"
            )
        })
    }

    fn admin_tls_warning(&self) -> Option<String> {
        let admin = self.admin.filter(|admin| !is_loopback(*admin))?;
        (!self.tls.admin).then(|| {
            format!(
                "admin is {admin}, which other machines may reach, and does not speak TLS: \
                 whoever is on the way reads services' keys and sessions; set --admin-tls, with \
                 --tls-cert and --tls-key"
            )
        })
    }

    fn check_admin(&self, faults: &mut Vec<String>) {
        if self.role != RoleName::Presence
            && self.admin.is_none()
            && !self.serves_operators_publicly()
        {
            let (name, address) = self.reached_at();
            faults.push(format!(
                "{name} is {address}, which other machines may reach, and operators' calls \
                 (metrics, dashboard, revocations, erasures, what presence nodes tell) have no \
                 listener of their own; give them one with --admin, such as --admin \
                 127.0.0.1:9090, or leave all on the one with --insecure"
            ));
        }
        if self.admin_metrics_open && self.admin.is_none() {
            faults.push(
                "admin-metrics-open is set, but no listener for operators; set --admin too".into(),
            );
        }
        if self.admin == Some(self.http) && self.http.port() != 0 {
            faults.push(format!(
                "admin and http are both {}; give operators a port of their own",
                self.http
            ));
        }
    }

    fn check_tls(&self, faults: &mut Vec<String>) {
        let tls = &self.tls;
        let files = [("tls-cert", &tls.certificate), ("tls-key", &tls.key)];
        for (name, file) in files {
            if tls.is_on() && file.is_none() {
                faults.push(format!(
                    "{name} is not set, and https needs a certificate and its key; name their \
                     PEM files with --tls-cert and --tls-key"
                ));
            }
            if !tls.is_on() && file.is_some() {
                faults.push(format!(
                    "{name} is set, but nothing speaks TLS; set --https too, such as --https \
                     127.0.0.1:8443"
                ));
            }
        }
        let http = self.presence_nodes.iter().map(|node| &node.http);
        let all = http.chain(self.realtime_nodes.iter().map(|node| &node.http));
        let mut all = all.map(|http| http.starts_with("https://"));
        let fleet = self.fleet.servers.as_ref();
        let what = match all.any(|is_sealed| is_sealed) {
            true => Some("a node is named with https"),
            false if fleet.is_some_and(|servers| servers.is_sealed) => {
                Some("the fleet's database is named with rediss")
            }
            false => self
                .webhooks
                .seal()
                .then_some("a webhook is named with https"),
        };
        match (what, &tls.authorities) {
            (Some(what), None) => faults.push(format!(
                "tls-ca is not set, and {what}://; name the PEM file of the authority that issued \
                 its certificate with --tls-ca"
            )),
            (None, Some(_)) => faults.push(
                "tls-ca is set, but no node and no webhook is named with https://, and no fleet's \
                 database with rediss://; leave it out"
                    .into(),
            ),
            _ => {}
        }
        if tls.admin && self.admin.is_none() {
            faults.push("admin-tls is set, but no listener for operators; set --admin too".into());
        }
        let taken = [("http", Some(self.http)), ("admin", self.admin)];
        for (name, address) in taken {
            if let Some(https) = tls
                .https
                .filter(|it| address == Some(*it) && it.port() != 0)
            {
                faults.push(format!(
                    "https and {name} are both {https}; give each a port of its own"
                ));
            }
        }
    }

    fn check_identity(&self, faults: &mut Vec<String>) {
        let identity = &self.identity;
        let set = [
            ("jwt-aud", identity.jwt_aud.is_some()),
            ("jwt-iss", identity.jwt_iss.is_some()),
            ("auth-cookie", identity.auth_cookie.is_some()),
            ("auth-query", identity.auth_query),
        ];
        let useless = set
            .into_iter()
            .filter(|(_, is_set)| *is_set && !identity.asks());
        faults.extend(useless.map(|(name, _)| {
            format!("{name} is set, but no key of tokens; name their keys with --jwt-keys")
        }));
        if identity.auth_cookie.as_deref() == Some(SESSION_COOKIE) {
            faults.push(format!(
                "auth-cookie is {SESSION_COOKIE}, which is the dashboard's; take another name"
            ));
        }
    }

    fn check_role(&self, faults: &mut Vec<String>) {
        let mut fault = |fault: &str| faults.push(fault.into());
        if !self.role.is_whole() && self.key_file.is_none() {
            fault(
                "key-file is not set, and the nodes of a split deployment prove themselves with \
                 one key; make it with `(umask 077; greendot key > fleet.key)` and give every node \
                 the same --key-file",
            );
        }
        let is_split = matches!(self.role, RoleName::Realtime | RoleName::Presence);
        if is_split && self.fleet.servers.is_some() {
            fault(
                "cluster is set, which `greendot serve` alone uses: nodes of a split deployment \
                 share no database; leave it out, or start that",
            );
        }
        match self.role {
            RoleName::Realtime if self.presence_nodes.is_empty() => fault(
                "presence is not set, and a real-time node must know whom to vouch to; set \
                 --presence udp://HOST:PORT,http://HOST:PORT, once for each presence node",
            ),
            RoleName::Presence if self.realtime_nodes.is_empty() => fault(
                "realtime is not set, and a presence node must know whom to tell; set --realtime \
                 http://HOST:PORT, once for each real-time node",
            ),
            _ => {}
        }
        if self.role != RoleName::Realtime && !self.presence_nodes.is_empty() {
            fault(
                "presence is set, which only `greendot realtime` uses; leave it out, or start that",
            );
        }
        if self.role != RoleName::Presence && !self.realtime_nodes.is_empty() {
            fault(
                "realtime is set, which only `greendot presence` uses; leave it out, or start that",
            );
        }
    }
}

/// Whether an address is for this machine alone.
pub fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Form of the logs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    fn parse(text: &str) -> Result<LogFormat, String> {
        let all = [LogFormat::Human, LogFormat::Json];
        all.into_iter()
            .find(|format| format.name() == text)
            .ok_or_else(|| "is neither human nor json".into())
    }

    /// As typed.
    pub const fn name(self) -> &'static str {
        match self {
            LogFormat::Human => "human",
            LogFormat::Json => "json",
        }
    }
}

/// Least severe level that is logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the field's names")]
pub enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    fn parse(text: &str) -> Result<LogLevel, String> {
        use LogLevel::{Debug, Error, Info, Off, Trace, Warn};
        let all = [Off, Error, Warn, Info, Debug, Trace];
        all.into_iter()
            .find(|level| level.name() == text)
            .ok_or_else(|| "is none of off, error, warn, info, debug, trace".into())
    }

    /// As typed; also what `tracing`'s `LevelFilter` parses.
    pub const fn name(self) -> &'static str {
        match self {
            LogLevel::Off => "off",
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

#[cfg(test)]
mod tests;
