//! The keys of a node, read from their files: at the start, and anew when it is asked to.
//!
//! Owns which files there are, and the order in which they are read: what may be refused comes
//! before a key is made. All of them count from one moment on, or none does.

use std::sync::Arc;

use super::ServeFault;
use super::build::random;
use crate::auth::{Identity, Keyring, Rates, Rules, ServiceKeys, Tickets};
use crate::config::Config;
use crate::engine::instance_of;
use crate::fleet_key::{self, FleetKeys};
use crate::key_files::{self, FileFault};
use crate::time::Now;

/// What the files hold.
pub(super) struct ReadKeys {
    pub(super) keyring: Keyring,
    /// The fleet key was made.
    pub(super) made: bool,
    /// What is to be said of the other files.
    pub(super) warnings: Vec<String>,
}

/// What a node knows of its users in this life, whatever becomes of its keys.
pub(super) struct Known {
    tickets: Arc<Tickets>,
    rates: Arc<Rates>,
}

impl Known {
    /// Nothing yet.
    ///
    /// Errors: the kernel gives no random bytes.
    pub(super) fn new(config: &Config, secret: &[u8; 32], now: Now) -> Result<Known, ServeFault> {
        let told = &config.identity;
        let life = instance_of(secret);
        let rates = match config.asks() {
            true => {
                let buckets = told.rates.buckets(config.settings.watches_per_stream_max);
                Rates::new(buckets, u64::from_ne_bytes(random()?))
            }
            false => Rates::unlimited(),
        };
        Ok(Known {
            tickets: Arc::new(Tickets::new(life, told.tickets_bytes_max, now)),
            rates: Arc::new(rates),
        })
    }
}

/// Reads all files of keys; makes the fleet's if it is missing and `make_missing`.
///
/// Errors: a file gives no key; it is named.
pub(super) fn read(
    config: &Config,
    known: &Known,
    make_missing: bool,
) -> Result<ReadKeys, ServeFault> {
    let identity = identity(config, known).map_err(ServeFault::KeyFile)?;
    let (services, warning) = match &config.identity.service_keys {
        Some(path) => key_files::services(path).map_err(ServeFault::KeyFile)?,
        None => (ServiceKeys::default(), None),
    };
    let webhooks = config.webhooks.secret_files.iter();
    let webhooks = webhooks.map(|path| key_files::webhook(path));
    let webhooks = webhooks.collect::<Result<_, _>>();
    let webhooks = webhooks.map_err(ServeFault::KeyFile)?;
    let path = config.key_path();
    let fleet = fleet_key::load(&path, make_missing).map_err(ServeFault::FleetKey)?;
    let FleetKeys { keys, made } = fleet;
    Ok(ReadKeys {
        keyring: Keyring {
            fleet: keys,
            identity,
            services,
            webhooks,
        },
        made,
        warnings: warning.into_iter().collect(),
    })
}

/// How users are known, if they are asked who they are.
fn identity(config: &Config, known: &Known) -> Result<Option<Identity>, FileFault> {
    let told = &config.identity;
    if !config.asks() {
        return Ok(None);
    }
    Ok(Some(Identity {
        rules: Rules {
            keys: key_files::verifying(&told.jwt_keys)?,
            audience: told.jwt_aud.clone(),
            issuer: told.jwt_iss.clone(),
            ttl_max_ms: told.token_ttl_max_ms,
            watch_default: told.watch_default,
        },
        cookie: told.auth_cookie.clone(),
        query: told.auth_query,
        tickets: Arc::clone(&known.tickets),
        rates: Arc::clone(&known.rates),
    }))
}
