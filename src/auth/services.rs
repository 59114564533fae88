//! Service keys: how the programs of an operator prove who they are, and what each may do.
//!
//! Owns the form of a key, and of the file that holds their hashes: whoever reads it can show none
//! of them. Randomness is the caller's. Never quotes a key.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::to_base64url;

/// What every key begins with: scanners for leaked secrets find it by this.
const PREFIX: &str = "gds_";
/// Characters of the secret part: 32 bytes in base64url.
const SECRET_CHARS: usize = 43;
/// Longest name in bytes.
const NAME_BYTES_MAX: usize = 64;
/// Most keys of one name: the old one and the new one, while they change.
const PER_NAME_MAX: usize = 2;
/// Most keys of a file.
const KEYS_MAX: usize = 1_024;
/// What stands before a hash in the file.
const HASH_PREFIX: &str = "blake3:";

/// One thing that a service may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Tell a real-time node who is online.
    Publish,
    /// Beat and say goodbye for any user.
    Beat,
    /// Ask for any user.
    Query,
    /// Revoke users' tokens.
    Revoke,
    /// Make tickets.
    Ticket,
    /// Read the metrics.
    Metrics,
    /// All else: erase users, end streams, read the dashboard.
    Admin,
}

impl Scope {
    /// All, in the order in which they are listed.
    pub const ALL: [Scope; 7] = [
        Scope::Publish,
        Scope::Beat,
        Scope::Query,
        Scope::Revoke,
        Scope::Ticket,
        Scope::Metrics,
        Scope::Admin,
    ];

    /// As a file has it.
    pub const fn name(self) -> &'static str {
        match self {
            Scope::Publish => "publish",
            Scope::Beat => "beat",
            Scope::Query => "query",
            Scope::Revoke => "revoke",
            Scope::Ticket => "ticket",
            Scope::Metrics => "metrics",
            Scope::Admin => "admin",
        }
    }
}

/// What a service may do: a bit for each scope.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scopes(u8);

impl Scopes {
    /// Whether this one is among them.
    pub fn has(self, scope: Scope) -> bool {
        self.0 & bit(scope) != 0
    }
}

fn bit(scope: Scope) -> u8 {
    1 << scope as u8
}

impl FromStr for Scopes {
    type Err = ServiceFault;

    /// From `beat,query`.
    fn from_str(text: &str) -> Result<Scopes, ServiceFault> {
        let mut scopes = Scopes(0);
        for name in text.split(',') {
            let found = Scope::ALL.into_iter().find(|scope| scope.name() == name);
            scopes.0 |= bit(found.ok_or(ServiceFault::Scope)?);
        }
        Ok(scopes)
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for scope in Scope::ALL.into_iter().filter(|scope| self.has(*scope)) {
            write!(f, "{comma}{}", scope.name())?;
            comma = ",";
        }
        Ok(())
    }
}

/// Who shows a service key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Its name, which a log may hold.
    pub name: Arc<str>,
    pub scopes: Scopes,
    /// Of its key: all that the file has of it.
    pub hash: blake3::Hash,
}

/// Why a line is no service key's, or a name or a scope is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServiceFault {
    /// Not three words.
    Line,
    Name,
    Scope,
    Hash,
    /// The same key on an earlier line.
    Twice,
    /// More keys of one name than two.
    PerName,
    TooMany,
}

impl fmt::Display for ServiceFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServiceFault::Line => f.write_str(
                "a line is a name, scopes and blake3:HASH; `greendot key new --service` prints one",
            ),
            ServiceFault::Name => write!(
                f,
                "the name of a service has at most {NAME_BYTES_MAX} letters, digits, - and ."
            ),
            ServiceFault::Scope => {
                let names = Scope::ALL.map(Scope::name).join(", ");
                write!(f, "scopes stand between commas, and are of {names}")
            }
            ServiceFault::Hash => f.write_str("the hash is blake3: and 64 hex digits"),
            ServiceFault::Twice => f.write_str("the same key stands here a second time"),
            ServiceFault::PerName => write!(
                f,
                "a name has at most {PER_NAME_MAX} keys, the old one and the new one"
            ),
            ServiceFault::TooMany => write!(f, "there are more than {KEYS_MAX} keys"),
        }
    }
}

impl std::error::Error for ServiceFault {}

/// All service keys that a node takes; none where none are configured.
#[derive(Clone, Default)]
pub struct ServiceKeys(Vec<Service>);

impl ServiceKeys {
    /// Reads a file: `name scopes blake3:HASH` a line, with blank lines and `#` comments.
    ///
    /// Errors: the first line that is none, from 1.
    pub fn parse(text: &str) -> Result<ServiceKeys, (usize, ServiceFault)> {
        let mut keys = ServiceKeys::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                keys.add(line).map_err(|fault| (index + 1, fault))?;
            }
        }
        Ok(keys)
    }

    fn add(&mut self, line: &str) -> Result<(), ServiceFault> {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [name, scopes, hash] = words[..] else {
            return Err(ServiceFault::Line);
        };
        check_name(name)?;
        let scopes = scopes.parse()?;
        let digits = hash.strip_prefix(HASH_PREFIX).ok_or(ServiceFault::Hash)?;
        let hash = blake3::Hash::from_hex(digits).map_err(|_| ServiceFault::Hash)?;
        if self.0.iter().any(|key| key.hash == hash) {
            return Err(ServiceFault::Twice);
        }
        let named = self.0.iter().filter(|key| &*key.name == name);
        if named.count() == PER_NAME_MAX {
            return Err(ServiceFault::PerName);
        }
        if self.0.len() == KEYS_MAX {
            return Err(ServiceFault::TooMany);
        }
        let name = name.into();
        self.0.push(Service { name, scopes, hash });
        Ok(())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose key this is. Of the keys of a name none takes longer to tell apart than another.
    pub fn find(&self, shown: &str) -> Option<&Service> {
        let name = name_of(shown)?;
        let hash = blake3::hash(shown.as_bytes());
        let named = self.0.iter().filter(|key| &*key.name == name);
        // blake3::Hash compares in constant time.
        named.fold(None, |found, key| match key.hash == hash {
            true => Some(key),
            false => found,
        })
    }

    /// Whose key has this hash.
    pub(super) fn of_hash(&self, hash: blake3::Hash) -> Option<&Service> {
        self.0.iter().find(|key| key.hash == hash)
    }

    /// Whether a key of this hash is among them.
    pub fn lists(&self, hash: blake3::Hash) -> bool {
        self.of_hash(hash).is_some()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Service> {
        self.0.iter()
    }
}

impl fmt::Debug for ServiceKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let services = self.0.iter().map(|key| (&key.name, key.scopes));
        f.debug_list().entries(services).finish()
    }
}

/// Whether what a request shows means to be a service key.
pub(super) fn is_service_key(shown: &str) -> bool {
    shown.starts_with(PREFIX)
}

/// The name in `gds_NAME_SECRET`.
fn name_of(shown: &str) -> Option<&str> {
    let rest = shown.strip_prefix(PREFIX)?;
    let at = rest.len().checked_sub(SECRET_CHARS)?;
    rest.get(..at)?.strip_suffix('_')
}

fn check_name(name: &str) -> Result<(), ServiceFault> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
    let is_name = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_plain);
    if is_name {
        Ok(())
    } else {
        Err(ServiceFault::Name)
    }
}

/// A new key of these random bytes, and its line for the file.
///
/// Errors: no service can have that name.
pub fn new_service_key(
    name: &str,
    scopes: Scopes,
    random: &[u8; 32],
) -> Result<(String, String), ServiceFault> {
    check_name(name)?;
    let key = format!("{PREFIX}{name}_{}", to_base64url(random));
    let hash = blake3::hash(key.as_bytes());
    let line = format!("{name} {scopes} {HASH_PREFIX}{}", hash.to_hex());
    Ok((key, line))
}
