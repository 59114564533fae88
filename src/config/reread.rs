//! A configuration that has changed while a node runs.
//!
//! Owns which knobs a running node takes, and what is said of those that have changed. What the
//! sockets, the store and the shards were made of can not change; nor can limits that were held
//! against the machine's memory and descriptors at the start.

use super::knobs::KNOBS;
use super::{Config, Sources, load};

/// The knobs that a running node takes.
pub const LIVE: &[&str] = &[
    "conns-per-address-max",
    "trusted-proxies",
    "request-deadline-ms",
    "keep-alive-idle-ms",
    "body-bytes-max",
    "linger-ms",
    "query-users-max",
    "passed-users-max",
    "leaves-put-off-max",
    "watches-per-stream-max",
    "outbox-bytes-max",
    "users-leaving-max",
    "cors-origins",
    "host",
    "log-level",
    "token-ttl-max",
    "watch-default",
    "auth-query",
];

/// What a node was told, by whom it may be told again.
#[derive(Clone, Debug)]
pub struct Told {
    /// The flags, the variables and the file's name. The file is read again.
    sources: Sources,
    /// What they said last.
    said: Config,
}

/// What came of asking again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// The knobs that are taken, each with its value.
    pub taken: Vec<String>,
    /// Those that need a restart.
    pub refused: Vec<String>,
}

impl Told {
    /// What was loaded of these.
    pub fn new(sources: Sources, said: Config) -> Told {
        Told { sources, said }
    }

    /// Asks again, and changes `running` as far as a running node can.
    ///
    /// Errors: what is said now is no configuration; every fault is a sentence. Nothing has
    /// changed.
    pub fn again(&mut self, running: &mut Config) -> Result<Change, Vec<String>> {
        let new = load(&self.sources)?.config;
        let mut changed = running.clone();
        let (mut change, mut said) = (Change::default(), self.said.clone());
        for knob in KNOBS {
            let (before, now) = ((knob.get)(&self.said), (knob.get)(&new));
            if before == now {
                continue;
            }
            let is = match &now {
                // A URL may hold what nobody but its receiver is to know.
                Some(_) if knob.name == "webhook" => {
                    let places = new.webhooks.hooks.iter().map(|hook| hook.place.as_str());
                    let places = places.collect::<Vec<_>>().join(",");
                    format!("--webhook is at {places}")
                }
                Some(value) => format!("--{} is {value}", knob.name),
                None => format!("--{} is not set", knob.name),
            };
            match now.filter(|_| LIVE.contains(&knob.name)) {
                Some(value) => {
                    for config in [&mut changed, &mut said] {
                        (knob.set)(config, &value)
                            .map_err(|why| vec![format!("--{}: {why}", knob.name)])?;
                    }
                    change.taken.push(is);
                }
                None => change.refused.push(is),
            }
        }
        // What was made to fit at the start may forbid what the file alone allows.
        changed.check()?;
        *running = changed;
        self.said = said;
        Ok(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(path: &std::path::Path, text: &str) -> (Told, Config) {
        std::fs::write(path, text).unwrap();
        let sources = Sources {
            config_file: Some(path.to_owned()),
            ..Sources::default()
        };
        let loaded = load(&sources).unwrap();
        (Told::new(sources, loaded.config.clone()), loaded.config)
    }

    #[test]
    fn what_a_running_node_takes_and_what_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("greendot.toml");
        let (mut told, mut running) = told(&path, "query_users_max = 10\nshards = 2\n");
        assert_eq!(told.again(&mut running), Ok(Change::default()));
        let text = "query_users_max = 20\nshards = 3\ncors_origins = [\"https://a.example\"]\n";
        std::fs::write(&path, text).unwrap();
        let change = told.again(&mut running).unwrap();
        assert_eq!(
            change.taken,
            [
                "--cors-origins is https://a.example",
                "--query-users-max is 20"
            ]
        );
        assert_eq!(change.refused, ["--shards is 3"]);
        assert_eq!(running.settings.query_users_max, 20);
        assert_eq!(running.settings.cors_origins, ["https://a.example"]);
        assert_eq!(running.shards, Some(2));
        // What needs a restart is told each time, what was taken once.
        let change = told.again(&mut running).unwrap();
        assert_eq!((change.taken.len(), change.refused.len()), (0, 1));
        // Back to nothing said.
        std::fs::write(&path, "shards = 2\n").unwrap();
        let change = told.again(&mut running).unwrap();
        assert_eq!(change.refused, [""; 0]);
        assert_eq!(
            change.taken,
            ["--cors-origins is ", "--query-users-max is 1000"]
        );
        assert!(running.settings.cors_origins.is_empty());
    }

    #[test]
    fn webhooks_need_a_restart_and_no_url_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("greendot.toml");
        let hook =
            |url| format!("webhook = [\"{url}\"]\nwebhook_secret_file = [\"a\"]\ntls_ca = \"a\"\n");
        let (mut told, mut running) = told(&path, &hook("https://a.example/"));
        let others = "webhook_private = true\nwebhook_queue_max = 9\n\
                      webhook_timeout_ms = 1000\nwebhook_retry_max_ms = 2000\n";
        let text = hook("https://b.example:8443/hidden?k=hidden") + others;
        std::fs::write(&path, text).unwrap();
        let change = told.again(&mut running).unwrap();
        assert_eq!(change.taken, [""; 0]);
        assert_eq!(
            change.refused,
            [
                "--webhook is at https://b.example:8443",
                "--webhook-private is true",
                "--webhook-queue-max is 9",
                "--webhook-timeout-ms is 1000",
                "--webhook-retry-max-ms is 2000",
            ]
        );
    }

    #[test]
    fn what_is_no_configuration_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("greendot.toml");
        let (mut told, mut running) = told(&path, "");
        let before = running.clone();
        for (text, part) in [
            ("query_users_max = 0\n", "query_users_max"),
            ("nonsense = 1\n", "nonsense"),
            ("body_bytes_max = \"1GiB\"\n", "buffer-bytes-max"),
        ] {
            std::fs::write(&path, text).unwrap();
            let faults = told.again(&mut running).unwrap_err();
            assert!(faults[0].contains(part), "{faults:?}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(told.again(&mut running).is_err());
        assert_eq!(running, before);
    }

    #[test]
    fn those_that_are_taken_are_knobs_with_a_value() {
        for name in LIVE {
            let knob = KNOBS.iter().find(|knob| knob.name == *name);
            let knob = knob.unwrap_or_else(|| panic!("{name} is no knob"));
            let default = (knob.get)(&Config::default());
            let default = default.unwrap_or_else(|| panic!("{name} may be unset"));
            let mut config = Config::default();
            assert_eq!((knob.set)(&mut config, &default), Ok(()), "{name}");
            assert_eq!(config, Config::default(), "{name}");
        }
    }
}
