//! From flags, variables and a file to one configuration.
//!
//! Owns the merging and the origin of every value. Reads the named file and nothing else: arguments
//! and environment are handed in.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use super::knobs::{KNOBS, Kind, Knob};
use super::{Config, RoleName};

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

impl Loaded {
    /// Whether nobody has set this flag, nor its variable nor its key.
    pub fn is_default(&self, flag: &str) -> bool {
        let mut rows = KNOBS.iter().zip(&self.origins);
        let row = rows.find(|(knob, _)| knob.name == flag);
        row.is_some_and(|(_, origin)| *origin == Origin::Default)
    }
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
/// The variable by which client commands and the load generator find a server's HTTP address.
pub const URL_VARIABLE: &str = "GREENDOT_URL";
/// The variable by which they find where it receives datagrams.
pub const BEAT_TO_VARIABLE: &str = "GREENDOT_BEAT_TO";

/// Variables that are no knob's.
const OTHER_VARIABLES: [&str; 3] = [CONFIG_VARIABLE, URL_VARIABLE, BEAT_TO_VARIABLE];

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
        if !name.starts_with(VARIABLE_PREFIX) || OTHER_VARIABLES.contains(&&*name) {
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
            config if !config.presence_nodes.is_empty() => RoleName::Realtime,
            config if !config.realtime_nodes.is_empty() => RoleName::Presence,
            _ => RoleName::All,
        };
    }
    let in_fleet = loaded.config.fleet.servers.is_some();
    if loaded.config.role == RoleName::All && in_fleet {
        loaded.config.role = RoleName::Fleet;
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
                    .chain(OTHER_VARIABLES.map(String::from));
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
                if error.message().starts_with("duplicate key") {
                    return faults.push(format!("{shown}:{line}: {}", repeated(&text, line)));
                }
                let hint = text.lines().nth(line - 1).and_then(quotes_missing);
                let hint = hint.map_or(String::new(), |right| format!("; write {right}"));
                return faults.push(format!(
                    "{shown}:{line}: not TOML: {}{hint}",
                    error.message()
                ));
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

/// What is wrong with a line (from 1) whose key has stood in one before.
fn repeated(text: &str, line: usize) -> String {
    // Of a key, quoted or not, and of a table's head.
    let is_around = |c: char| c.is_whitespace() || "[\"'".contains(c);
    let key_of = |line: &str| {
        let key = line.split(['=', ']']).next();
        key.map(|key| key.trim_matches(is_around).to_owned())
    };
    let key = text.lines().nth(line - 1).and_then(key_of);
    let first = text.lines().position(|line| key_of(line) == key);
    let (key, first) = (key.unwrap_or_default(), first.map_or(1, |at| at + 1));
    format!("{key}: set in line {first} already; leave one of them")
}

/// A line `key = value` as it would be with quotes, where they are all that it lacks.
fn quotes_missing(line: &str) -> Option<String> {
    let (key, value) = line.split_once('=')?;
    let value = value.split(" #").next().map_or("", str::trim);
    let knob = KNOBS.iter().find(|knob| knob.key() == key.trim())?;
    let taken = (knob.set)(&mut Config::default(), value).is_ok();
    (taken && !value.contains(['"', '\'', '['])).then(|| {
        let quoted = toml::Value::String(value.into());
        match knob.kind {
            Kind::List => format!("{} = [{quoted}]", knob.key()),
            _ => format!("{} = {quoted}", knob.key()),
        }
    })
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
