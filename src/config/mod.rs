//! What the process was told: flags over `GREENDOT_*` variables over a TOML file over defaults.
//!
//! Owns the merging, the origin of every value, and the checks that need more than one of them. The
//! rows are in [`knobs`]. Reads the named file and nothing else: arguments and environment are
//! handed in.

pub mod knobs;
pub mod nodes;
pub mod value;

use std::ffi::OsString;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::engine::settings::Settings;
use knobs::{KNOBS, Kind, Knob};
use nodes::{PresenceNode, RealtimeNode};

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
}

/// Everything that a server is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// What it is; no knob sets it.
    pub role: RoleName,
    /// The presence nodes of a real-time node.
    pub presence: Vec<PresenceNode>,
    /// The real-time nodes of a presence node.
    pub realtime: Vec<RealtimeNode>,
    /// Where to listen for HTTP, as given: port 0 is still 0.
    pub http: SocketAddr,
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
    pub flush_bytes_per_second_max: u64,
    /// Whether addresses that other machines can reach are allowed.
    pub insecure: bool,
    /// Form of the logs.
    pub log_format: LogFormat,
    /// Least severe level that is logged.
    pub log_level: LogLevel,
    /// What the engines are told.
    pub settings: Settings,
}

/// In a split deployment a shorter silence may be that of a cut which nobody has noticed yet, in
/// ms: the second between two requests, the two seconds of one that is not answered, and some.
const SPLIT_OFFLINE_AFTER_MS_MIN: u64 = 5_000;

impl Default for Config {
    fn default() -> Self {
        Config {
            role: RoleName::All,
            presence: Vec::new(),
            realtime: Vec::new(),
            http: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            udp: SocketAddr::from((Ipv4Addr::LOCALHOST, 8081)),
            data_dir: PathBuf::from("./greendot-data"),
            key_file: None,
            shards: None,
            users_max: 1 << 24,
            flush_bytes_per_second_max: 64 << 20,
            insecure: false,
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

    /// Whether a missing key file is made.
    pub fn makes_key(&self) -> bool {
        self.key_file.is_none() && self.role == RoleName::All
    }

    /// Holds the values against each other; all faults, each with what to set.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let mut faults = self.settings.check().err().unwrap_or_default();
        self.check_role(&mut faults);
        for (name, address) in [("http", self.http), ("udp", self.udp)] {
            let bound = name == "http" || self.role != RoleName::Realtime;
            if bound && !self.insecure && !address.ip().to_canonical().is_loopback() {
                faults.push(format!(
                    "{name} is {address}, which other machines may reach, and nobody has to \
                     prove who they are; bind a loopback \
                     address such as 127.0.0.1, or allow it with --insecure"
                ));
            }
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(faults)
        }
    }

    /// What is allowed and seldom meant.
    pub fn warning(&self) -> Option<String> {
        let offline_after_ms = self.settings.offline_after_ms;
        (self.role != RoleName::All && offline_after_ms < SPLIT_OFFLINE_AFTER_MS_MIN).then(|| {
            format!(
                "offline-after-ms is {offline_after_ms}: it takes the nodes of a split \
                 deployment some 3 s to notice that they are cut off, and \
                 who turns offline before is told so; better set it to at least \
                 {SPLIT_OFFLINE_AFTER_MS_MIN} on all nodes"
            )
        })
    }

    fn check_role(&self, faults: &mut Vec<String>) {
        let mut fault = |fault: &str| faults.push(fault.into());
        if self.role != RoleName::All && self.key_file.is_none() {
            fault(
                "key-file is not set, and the nodes of a split deployment prove themselves with \
                 one key; make it with `(umask 077; \
                 greendot key > fleet.key)` and give every node the same --key-file",
            );
        }
        match self.role {
            RoleName::Realtime if self.presence.is_empty() => fault(
                "presence is not set, and a real-time node must know whom to vouch to; set \
                 --presence udp://HOST:PORT,http://HOST:PORT, \
                 once for each presence node",
            ),
            RoleName::Presence if self.realtime.is_empty() => fault(
                "realtime is not set, and a presence node must know whom to tell; set --realtime \
                 http://HOST:PORT, once for each \
                 real-time node",
            ),
            _ => {}
        }
        if self.role != RoleName::Realtime && !self.presence.is_empty() {
            fault(
                "presence is set, which only `greendot realtime` uses; leave it out, or start that",
            );
        }
        if self.role != RoleName::Presence && !self.realtime.is_empty() {
            fault(
                "realtime is set, which only `greendot presence` uses; leave it out, or start that",
            );
        }
    }
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

/// Where a value came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A line of the file.
    File {
        /// As given.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// This environment variable.
    Variable(String),
    /// This flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Variable(name) => f.write_str(name),
            Origin::Flag(name) => f.write_str(name),
        }
    }
}

/// A configuration and where each of its values came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// By row of [`KNOBS`].
    pub origins: Vec<Origin>,
}

/// What was typed, before it means anything.
#[derive(Clone, Default, Debug)]
pub struct Sources {
    /// The subcommand; None if it is for any of them, and what is set says which: `config`,
    /// `doctor`.
    pub role: Option<RoleName>,
    /// `--config`, or None.
    pub config_file: Option<PathBuf>,
    /// Flags given: name without dashes, value.
    pub flags: Vec<(String, String)>,
    /// The whole environment; only names that start with `GREENDOT_` are looked at.
    pub variables: Vec<(OsString, OsString)>,
}

/// What all variables start with.
pub const VARIABLE_PREFIX: &str = "GREENDOT_";
/// The variable that names the file, as `--config` does.
pub const CONFIG_VARIABLE: &str = "GREENDOT_CONFIG";

/// Merges `sources` and checks the result. The error is every fault found, each a sentence for the
/// user.
pub fn load(sources: &Sources) -> Result<Loaded, Vec<String>> {
    let mut loaded = Loaded {
        config: Config {
            role: sources.role.unwrap_or_default(),
            ..Config::default()
        },
        origins: vec![Origin::Default; KNOBS.len()],
    };
    let mut faults = Vec::new();
    let from_variable = || {
        let named = sources
            .variables
            .iter()
            .find(|(name, _)| name == CONFIG_VARIABLE);
        // Set to nothing: as shells and unit files unset a variable.
        named
            .filter(|(_, path)| !path.is_empty())
            .map(|(_, path)| PathBuf::from(path))
    };
    if let Some(path) = sources.config_file.clone().or_else(from_variable) {
        loaded.take_file(&path, &mut faults);
    }
    for (name, text) in &sources.variables {
        let name = name.to_string_lossy();
        if !name.starts_with(VARIABLE_PREFIX) || name == CONFIG_VARIABLE {
            continue;
        }
        match text.to_str() {
            Some(text) => loaded.take_variable(&name, text, &mut faults),
            // Mended, it would name another folder.
            None => faults.push(format!("{name}: {text:?} is not UTF-8; write it in UTF-8")),
        }
    }
    for (name, text) in &sources.flags {
        let origin = Origin::Flag(format!("--{name}"));
        match KNOBS.iter().position(|knob| knob.name == name) {
            Some(row) => loaded.take(row, text, origin, &format!("--{name}"), &mut faults),
            None => faults.push(format!("--{name}: no such flag")),
        }
    }
    if sources.role.is_none() {
        loaded.config.role = match &loaded.config {
            config if !config.presence.is_empty() => RoleName::Realtime,
            config if !config.realtime.is_empty() => RoleName::Presence,
            _ => RoleName::All,
        };
    }
    // Values that were refused would only be reported a second time.
    if faults.is_empty() {
        faults = loaded.config.check().err().unwrap_or_default();
    }
    if faults.is_empty() {
        Ok(loaded)
    } else {
        Err(faults)
    }
}

impl Loaded {
    fn take(
        &mut self,
        row: usize,
        text: &str,
        origin: Origin,
        place: &str,
        faults: &mut Vec<String>,
    ) {
        match (KNOBS[row].set)(&mut self.config, text) {
            Ok(()) => self.origins[row] = origin,
            Err(why) => faults.push(format!("{place}: {text:?} {why}")),
        }
    }

    fn take_variable(&mut self, name: &str, text: &str, faults: &mut Vec<String>) {
        match KNOBS.iter().position(|knob| knob.variable() == name) {
            Some(row) => self.take(row, text, Origin::Variable(name.into()), name, faults),
            None if is_service_link(name, text) => {}
            None => {
                let known = KNOBS
                    .iter()
                    .map(Knob::variable)
                    .chain([CONFIG_VARIABLE.into()]);
                faults.push(format!(
                    "{name}: no such variable{}",
                    did_you_mean(name, known)
                ));
            }
        }
    }

    fn take_file(&mut self, path: &Path, faults: &mut Vec<String>) {
        let shown = path.display();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => return faults.push(format!("{shown}: can not be read: {error}")),
        };
        let table = match toml::de::DeTable::parse(&text) {
            Ok(table) => table,
            Err(error) => {
                let line = error.span().map_or(1, |span| line_of(&text, span.start));
                return faults.push(format!("{shown}:{line}: not TOML: {}", error.message()));
            }
        };
        // In file order, so that faults are told from the top.
        let mut entries: Vec<_> = table.get_ref().iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let name: &str = key.get_ref();
            let line = line_of(&text, key.span().start);
            let place = format!("{shown}:{line}: {name}");
            let Some(row) = KNOBS.iter().position(|knob| knob.key() == name) else {
                faults.push(format!(
                    "{place}: no such key{}",
                    did_you_mean(name, KNOBS.iter().map(Knob::key))
                ));
                continue;
            };
            match typed(KNOBS[row].kind, value.get_ref()) {
                Some(text) => {
                    let origin = Origin::File {
                        path: path.into(),
                        line,
                    };
                    self.take(row, &text, origin, &place, faults);
                }
                None => faults.push(format!("{place}: takes {}", wanted(KNOBS[row].kind))),
            }
        }
    }

    /// The effective values as a file that would set them, each with its origin as a comment.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        for (knob, origin) in KNOBS.iter().zip(&self.origins) {
            let line = match knob.toml(&self.config) {
                Some(value) => format!("{} = {value}", knob.key()),
                None => format!("# {} is unset", knob.key()),
            };
            out.push_str(&format!("{line:<44} # {origin}\n"));
        }
        out
    }
}

/// A file's value as it would be typed on the command line; None if it is of a type that the knob
/// does not take.
fn typed(kind: Kind, value: &toml::de::DeValue<'_>) -> Option<String> {
    use toml::de::DeValue;
    match (kind, value) {
        (Kind::List, DeValue::Array(words)) => {
            let words: Option<Vec<&str>> =
                words.iter().map(|word| word.get_ref().as_str()).collect();
            words.map(|words| words.join(","))
        }
        (Kind::Switch, DeValue::Boolean(on)) => Some(on.to_string()),
        (
            Kind::Millis | Kind::Bytes | Kind::Count | Kind::CountOrAuto,
            DeValue::Integer(number),
        ) => i64::from_str_radix(number.as_str(), number.radix())
            .ok()
            .map(|number| number.to_string()),
        (Kind::Switch, DeValue::String(_)) => None,
        (_, DeValue::String(text)) => Some(text.to_string()),
        _ => None,
    }
}

fn wanted(kind: Kind) -> &'static str {
    match kind {
        Kind::Address | Kind::Path | Kind::Word => "a string",
        Kind::Millis | Kind::Bytes => "a whole number, or a string with a unit",
        Kind::Count => "a whole number",
        Kind::CountOrAuto => "a whole number or \"auto\"",
        Kind::List => "an array of strings",
        Kind::Switch => "true or false",
    }
}

/// Whether Kubernetes (or Docker's links, which it follows) set a variable to tell of a service
/// that is named greendot or greendot-something: `GREENDOT_SERVICE_HOST`,
/// `GREENDOT_PORT=tcp://10.0.0.1:8080`, `GREENDOT_PORT_8080_TCP_ADDR`.
fn is_service_link(name: &str, text: &str) -> bool {
    let about_a_port = |(_, rest): (&str, &str)| rest.starts_with(|c: char| c.is_ascii_digit());
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && text.contains("://"))
        || name.split_once("_PORT_").is_some_and(about_a_port)
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes()
        .take(offset)
        .filter(|&byte| byte == b'\n')
        .count()
        + 1
}

/// `; did you mean X?`, where one of `known` is near.
fn did_you_mean(name: &str, known: impl Iterator<Item = String>) -> String {
    // What all have in common would make everything look alike.
    let own = |name: &str| name.trim_start_matches(VARIABLE_PREFIX).to_lowercase();
    let likeness = |known: &str| strsim::jaro_winkler(&own(name), &own(known));
    let nearest = known.max_by(|one, other| likeness(one).total_cmp(&likeness(other)));
    match nearest {
        Some(known) if likeness(&known) > 0.7 => format!("; did you mean {known}?"),
        _ => "; `greendot config` lists all".into(),
    }
}

#[cfg(test)]
mod tests;
