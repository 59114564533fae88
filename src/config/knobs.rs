//! The table of knobs: one row for each thing that can be set, from which flags, variables, file
//! keys, `greendot config` and the table in docs/OPERATIONS.md all come.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use crate::auth::WatchDefault;
use crate::config::nodes::{self, PresenceNode};
use crate::config::webhooks::{self, Webhook};
use crate::config::{Config, LIVE, LogFormat, LogLevel, TlsVersion, VARIABLE_PREFIX, value};
use crate::engine::settings::{FLAP_TRANSITIONS_MAX, HEAD_BYTES_FLOOR, OUTBOX_BYTES_FLOOR};
use crate::redis_url::Servers;
use crate::slot::SLOTS_MAX;
use crate::store::MemoryChoice;

/// What kind of value a knob takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// IP address and port.
    Address,
    /// A path.
    Path,
    /// Milliseconds.
    Millis,
    /// Bytes.
    Bytes,
    /// A whole number.
    Count,
    /// A whole number or `auto`.
    CountOrAuto,
    /// One of some words.
    Word,
    /// Words between commas; an array in a file.
    List,
    /// true or false; as a flag alone, true.
    Switch,
}

impl Kind {
    /// How help texts call the value.
    pub const fn placeholder(self) -> &'static str {
        match self {
            Kind::Address => "IP:PORT",
            Kind::Path => "PATH",
            Kind::Millis => "MS",
            Kind::Bytes => "BYTES",
            Kind::Count | Kind::CountOrAuto => "N",
            Kind::Word => "WORD",
            Kind::List => "A,B,..",
            Kind::Switch => "BOOL",
        }
    }
}

/// One thing that can be set.
pub struct Knob {
    /// The flag without its dashes. The variable is `GREENDOT_` and this in capitals, the file key
    /// this; with `_` for `-`.
    pub name: &'static str,
    /// Heading in help and docs.
    pub group: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What it does.
    pub doc: &'static str,
    /// Its value as it would be typed; None if it is unset.
    pub get: fn(&Config) -> Option<String>,
    /// Sets it from what was typed; the error says what is allowed.
    pub set: fn(&mut Config, &str) -> Result<(), String>,
}

impl Knob {
    /// `GREENDOT_BEAT_INTERVAL_MS`
    pub fn variable(&self) -> String {
        format!(
            "{VARIABLE_PREFIX}{}",
            self.name.replace('-', "_").to_uppercase()
        )
    }

    /// `beat_interval_ms`
    pub fn key(&self) -> String {
        self.name.replace('-', "_")
    }

    /// Its value as a file would have it.
    pub fn toml(&self, config: &Config) -> Option<String> {
        let value = (self.get)(config)?;
        let quoted = |text: &str| toml::Value::String(text.into()).to_string();
        Some(match self.kind {
            Kind::Millis | Kind::Bytes | Kind::Count | Kind::Switch => value,
            Kind::CountOrAuto if value != "auto" => value,
            Kind::Address | Kind::Path | Kind::Word | Kind::CountOrAuto => quoted(&value),
            Kind::List => {
                let words: Vec<_> = value::list(&value)
                    .iter()
                    .map(|word| quoted(word))
                    .collect();
                format!("[{}]", words.join(", "))
            }
        })
    }
}

const DAY_MS: u64 = 86_400_000;
/// A week: longer than any interval makes sense.
const WEEK_MS: u64 = 604_800_000;
const FROM_ONE_MS: RangeInclusive<u64> = 1..=WEEK_MS;
const FROM_ZERO_MS: RangeInclusive<u64> = 0..=WEEK_MS;
const FROM_ONE: RangeInclusive<u64> = 1..=1 << 30;

/// Rows whose value is a number in `Settings` or `Config`.
macro_rules! number {
    (
        $group:expr, $name:literal, $kind:ident $parse:ident $allowed:expr, $($field:ident).+,
        $doc:literal
    ) => {
        Knob {
            name: $name,
            group: $group,
            kind: Kind::$kind,
            doc: $doc,
            get: |config| Some(config.$($field).+.to_string()),
            set: |config, text| {
                let number = value::$parse(text, &$allowed)?;
                config.$($field).+ = number.try_into().map_err(|_| String::from("is too large \
                 for this machine"))?;
                Ok(())
            },
        }
    };
}

const PLACE: &str = "Addresses and files";
const FLEET: &str = "Fleet";
const HOOKS: &str = "Webhooks";
const IDENTITY: &str = "Identity";
const RATES: &str = "Limits of one user, where tokens are asked for";
const TIME: &str = "Presence and time";
const CONNS: &str = "Connections and streams";
const STORE: &str = "Users and store";
const TURN: &str = "Work of one turn";
const LOG: &str = "Logging";

/// All knobs, in the order of help and docs.
pub const KNOBS: &[Knob] = &[
    Knob {
        name: "http",
        group: PLACE,
        kind: Kind::Address,
        doc: "Where to listen for HTTP; port 0 lets the kernel pick one",
        get: |config| Some(config.http.to_string()),
        set: |config, text| value::address(text).map(|value| config.http = value),
    },
    Knob {
        name: "https",
        group: PLACE,
        kind: Kind::Address,
        doc: "Where to listen for HTTP over TLS, beside http; port 0 lets the kernel pick one; \
              takes tls-cert and tls-key",
        get: |config| config.tls.https.map(|https| https.to_string()),
        set: |config, text| value::address(text).map(|value| config.tls.https = Some(value)),
    },
    Knob {
        name: "tls-cert",
        group: PLACE,
        kind: Kind::Path,
        doc: "PEM file of the certificate, with those that lead to an authority behind it; read \
              anew at SIGHUP",
        get: |config| shown(&config.tls.certificate),
        set: |config, text| path(text).map(|path| config.tls.certificate = Some(path)),
    },
    Knob {
        name: "tls-key",
        group: PLACE,
        kind: Kind::Path,
        doc: "PEM file of the certificate's key, on P-256 if you can choose; the owner and a group \
              may read it, nobody else; read anew at SIGHUP",
        get: |config| shown(&config.tls.key),
        set: |config, text| path(text).map(|path| config.tls.key = Some(path)),
    },
    Knob {
        name: "tls-ca",
        group: PLACE,
        kind: Kind::Path,
        doc: "PEM file of the authorities by whom nodes and webhooks named with https:// are \
              believed, and nobody else; for webhooks of the world the system's list, such as \
              /etc/ssl/certs/ca-certificates.crt",
        get: |config| shown(&config.tls.authorities),
        set: |config, text| path(text).map(|path| config.tls.authorities = Some(path)),
    },
    Knob {
        name: "tls-min",
        group: PLACE,
        kind: Kind::Word,
        doc: "Oldest version of TLS that is spoken: 1.3, or 1.2 for clients of before 2018",
        get: |config| {
            let word = match config.tls.min {
                TlsVersion::V1_2 => "1.2",
                TlsVersion::V1_3 => "1.3",
            };
            Some(word.into())
        },
        set: |config, text| {
            config.tls.min = match text {
                "1.2" => TlsVersion::V1_2,
                "1.3" => TlsVersion::V1_3,
                _ => return Err("is neither 1.2 nor 1.3".into()),
            };
            Ok(())
        },
    },
    Knob {
        name: "admin",
        group: PLACE,
        kind: Kind::Address,
        doc: "Where to listen for operators: metrics, dashboard, revocations, erasures, and what \
              presence nodes tell; on http these are not found then. Unset: they are on http, if \
              that is a loopback address or insecure is set",
        get: |config| config.admin.map(|admin| admin.to_string()),
        set: |config, text| value::address(text).map(|value| config.admin = Some(value)),
    },
    Knob {
        name: "admin-tls",
        group: PLACE,
        kind: Kind::Switch,
        doc: "The listener for operators speaks TLS, with the certificate of tls-cert",
        get: |config| Some(config.tls.admin.to_string()),
        set: |config, text| value::switch(text).map(|value| config.tls.admin = value),
    },
    Knob {
        name: "admin-metrics-open",
        group: PLACE,
        kind: Kind::Switch,
        doc: "The metrics take no key at the address of admin, also where other machines reach it",
        get: |config| Some(config.admin_metrics_open.to_string()),
        set: |config, text| value::switch(text).map(|value| config.admin_metrics_open = value),
    },
    Knob {
        name: "udp",
        group: PLACE,
        kind: Kind::Address,
        doc: "Where to receive beat datagrams; port 0 lets the kernel pick one",
        get: |config| Some(config.udp.to_string()),
        set: |config, text| value::address(text).map(|value| config.udp = value),
    },
    Knob {
        name: "data-dir",
        group: PLACE,
        kind: Kind::Path,
        doc: "Folder of the presence database, made if missing; one process at a time",
        get: |config| Some(config.data_dir.display().to_string()),
        set: |config, text| path(text).map(|value| config.data_dir = value),
    },
    Knob {
        name: "key-file",
        group: PLACE,
        kind: Kind::Path,
        doc: "Fleet keys, one a line of 64 hex digits, the first signs; unset: fleet.key in the \
              data folder, made if missing (`serve` alone)",
        get: |config| {
            config
                .key_file
                .as_ref()
                .map(|path| path.display().to_string())
        },
        set: |config, text| path(text).map(|path| config.key_file = Some(path)),
    },
    Knob {
        name: "presence",
        group: PLACE,
        kind: Kind::List,
        doc: "Of `greendot realtime`: udp://HOST:PORT,http://HOST:PORT (or https) of a presence \
              node; repeat it for each, the same on every node",
        get: |config| {
            Some(
                config
                    .presence_nodes
                    .iter()
                    .map(PresenceNode::to_string)
                    .collect::<Vec<_>>()
                    .join(","),
            )
        },
        set: |config, text| nodes::presence(text).map(|nodes| config.presence_nodes = nodes),
    },
    Knob {
        name: "realtime",
        group: PLACE,
        kind: Kind::List,
        doc: "Of `greendot presence`: http://HOST:PORT (or https) of a real-time node, its admin \
              address if it has one; repeat it for each",
        get: |config| {
            Some(
                config
                    .realtime_nodes
                    .iter()
                    .map(|node| node.http.clone())
                    .collect::<Vec<_>>()
                    .join(","),
            )
        },
        set: |config, text| nodes::realtime(text).map(|nodes| config.realtime_nodes = nodes),
    },
    Knob {
        name: "insecure",
        group: PLACE,
        kind: Kind::Switch,
        doc: "Allow addresses that other machines can reach, although nobody has to prove who \
              they are; without admin, operators' calls stay on http",
        get: |config| Some(config.insecure.to_string()),
        set: |config, text| value::switch(text).map(|value| config.insecure = value),
    },
    Knob {
        name: "demo",
        group: PLACE,
        kind: Kind::Switch,
        doc: "Serve /demo, a page for trying things out, to other machines too; on a loopback \
              address, and by insecure without admin, it is served anyway",
        get: |config| Some(config.demo.to_string()),
        set: |config, text| value::switch(text).map(|value| config.demo = value),
    },
    Knob {
        name: "cors-origins",
        group: PLACE,
        kind: Kind::List,
        doc: "Web origins (scheme://host[:port]) whose pages may call the API, loopback for those \
              of this machine, or *; none: loopback while http is a loopback address, else only \
              greendot's own page",
        get: |config| Some(config.settings.cors_origins.join(",")),
        set: |config, text| {
            config.settings.cors_origins = value::list(text);
            Ok(())
        },
    },
    Knob {
        name: "host",
        group: PLACE,
        kind: Kind::List,
        doc: "Names under which clients reach the server, as their Host header has them without \
              the port, *.name for all below one, or *; addresses, names without a dot and those \
              in .localhost, .local or .internal need no listing",
        get: |config| Some(config.settings.host.join(",")),
        set: |config, text| {
            config.settings.host = value::list(text);
            Ok(())
        },
    },
    Knob {
        name: "trusted-proxies",
        group: PLACE,
        kind: Kind::List,
        doc: "Addresses or nets (10.0.0.0/8) of proxies whose word of a client's address is taken \
              (Forwarded, X-Forwarded-For); list them, or all their clients count as one",
        get: |config| Some(value::written_nets(&config.settings.trusted_proxies)),
        set: |config, text| value::nets(text).map(|nets| config.settings.trusted_proxies = nets),
    },
    Knob {
        name: "shards",
        group: PLACE,
        kind: Kind::CountOrAuto,
        doc: "Threads, each with its own sockets and streams; auto: one for each core that this \
              process may use, pinned to it (as is any number equal to that)",
        get: |config| {
            Some(
                config
                    .shards
                    .map_or("auto".into(), |shards| shards.to_string()),
            )
        },
        set: |config, text| {
            config.shards = if text == "auto" {
                None
            } else {
                let number =
                    value::count(text, &(1..=256)).map_err(|why| format!("{why}, nor auto"))?;
                u16::try_from(number).ok()
            };
            Ok(())
        },
    },
    Knob {
        name: "cluster",
        group: FLEET,
        kind: Kind::Word,
        doc: "Redis or Valkey of the fleet that `serve` is a node of: \
              redis://USER:PASSWORD@HOST:PORT,HOST:PORT, or rediss:// for TLS; one server is \
              enough, and it names the others",
        get: |config| config.fleet.servers.as_ref().map(Servers::to_string),
        set: |config, text| {
            Servers::parse(text).map(|servers| config.fleet.servers = Some(servers))
        },
    },
    Knob {
        name: "cluster-password-file",
        group: FLEET,
        kind: Kind::Path,
        doc: "File with the password of the fleet's database, if it is not in the URL",
        get: |config| {
            let file = config.fleet.password_file.as_ref();
            file.map(|path| path.display().to_string())
        },
        set: |config, text| path(text).map(|path| config.fleet.password_file = Some(path)),
    },
    Knob {
        name: "advertise-http",
        group: FLEET,
        kind: Kind::Address,
        doc: "Address by which other nodes of the fleet reach this one's http; needed where that \
              is a wildcard",
        get: |config| config.fleet.advertise_http.map(|at| at.to_string()),
        set: |config, text| value::address(text).map(|at| config.fleet.advertise_http = Some(at)),
    },
    Knob {
        name: "advertise-udp",
        group: FLEET,
        kind: Kind::Address,
        doc: "Address by which other nodes of the fleet reach this one's udp; needed where that is \
              a wildcard",
        get: |config| config.fleet.advertise_udp.map(|at| at.to_string()),
        set: |config, text| value::address(text).map(|at| config.fleet.advertise_udp = Some(at)),
    },
    number!(
        FLEET, "cluster-partitions", Count count 64..=16_384, fleet.partitions,
        "Partitions of the fleet, a power of two; fixed by the first node that starts"
    ),
    number!(
        FLEET, "cluster-buckets", Count count 1..=4_096, fleet.buckets,
        "Hashes of each partition for users who are offline; `greendot-loadgen plan` says how many \
         a fleet needs; fixed by the first node that starts"
    ),
    number!(
        FLEET, "settle-ms", Millis millis FROM_ONE_MS, fleet.settle_ms,
        "After an outage of the fleet's database arrivals are told first, and departures so much \
         later"
    ),
    number!(
        FLEET, "reap-users-per-second", Count count FROM_ONE, fleet.reap_users_per_second,
        "Users of nodes that have died whom the whole fleet takes offline in a second"
    ),
    Knob {
        name: "webhook",
        group: HOOKS,
        kind: Kind::List,
        doc: "URL that is told of transitions by POST, of users whose ids begin with its ?prefix=, \
              which the receiver does not see; repeat it for each. Of `serve` and `presence`",
        get: |config| {
            let hooks = config.webhooks.hooks.iter();
            Some(hooks.map(Webhook::typed).collect::<Vec<_>>().join(","))
        },
        set: |config, text| webhooks::parse(text).map(|hooks| config.webhooks.hooks = hooks),
    },
    Knob {
        name: "webhook-secret-file",
        group: HOOKS,
        kind: Kind::List,
        doc: "File of the secrets that sign what a webhook is told, one a line, whsec_ and base64; \
              each signs. Repeat it for each webhook, in the same order, or name one for all. The \
              owner and a group may read it, nobody else; read anew at SIGHUP",
        get: |config| Some(written_paths(&config.webhooks.secret_files)),
        set: |config, text| paths(text).map(|paths| config.webhooks.secret_files = paths),
    },
    Knob {
        name: "webhook-private",
        group: HOOKS,
        kind: Kind::Switch,
        doc: "Webhooks may lead to this machine and to private networks, there by plain http:// \
              too; otherwise such addresses are not dialled, whatever name has led to them",
        get: |config| Some(config.webhooks.private.to_string()),
        set: |config, text| value::switch(text).map(|value| config.webhooks.private = value),
    },
    number!(HOOKS, "webhook-queue-max", Count count 1..=1 << 24, webhooks.queue_max,
        "Most users whose state waits for one webhook, some 60 bytes each; beyond, the published \
         states are read anew, and each user's last one is told"),
    number!(HOOKS, "webhook-timeout-ms", Millis millis 100..=300_000, webhooks.timeout_ms,
        "Time that a webhook's receiver has for a message and its answer; then it is sent again"),
    number!(HOOKS, "webhook-retry-max-ms", Millis millis 200..=DAY_MS, webhooks.retry_ms_max,
        "Longest delay before a message that was not taken is sent again; the first ones are \
         shorter"),
    Knob {
        name: "jwt-keys",
        group: IDENTITY,
        kind: Kind::List,
        doc: "File with keys of users' tokens: a secret, a public key in PEM or a JWK set; repeat \
              it for each; none: nobody is asked who they are",
        get: |config| Some(written_paths(&config.identity.jwt_keys)),
        set: |config, text| paths(text).map(|paths| config.identity.jwt_keys = paths),
    },
    Knob {
        name: "jwt-aud",
        group: IDENTITY,
        kind: Kind::Word,
        doc: "The audience (aud) that tokens must be for; unset: those that name none",
        get: |config| config.identity.jwt_aud.clone(),
        set: |config, text| word(text).map(|word| config.identity.jwt_aud = Some(word)),
    },
    Knob {
        name: "jwt-iss",
        group: IDENTITY,
        kind: Kind::Word,
        doc: "The issuer (iss) that tokens must be from; unset: any",
        get: |config| config.identity.jwt_iss.clone(),
        set: |config, text| word(text).map(|word| config.identity.jwt_iss = Some(word)),
    },
    number!(IDENTITY, "token-ttl-max", Millis millis 1_000..=366 * DAY_MS,
        identity.token_ttl_max_ms,
        "Longest rest of life (exp) of a token that is taken"),
    Knob {
        name: "watch-default",
        group: IDENTITY,
        kind: Kind::Word,
        doc: "Whom a token that does not say it lets its holder watch: nobody or everybody",
        get: |config| {
            let word = match config.identity.watch_default {
                WatchDefault::Nobody => "nobody",
                WatchDefault::Everybody => "everybody",
            };
            Some(word.into())
        },
        set: |config, text| {
            config.identity.watch_default = match text {
                "nobody" => WatchDefault::Nobody,
                "everybody" => WatchDefault::Everybody,
                _ => return Err("is neither nobody nor everybody".into()),
            };
            Ok(())
        },
    },
    Knob {
        name: "auth-cookie",
        group: IDENTITY,
        kind: Kind::Word,
        doc: "Name of a cookie that may hold a user's token, as an EventSource needs it; unset: \
              tokens come in the Authorization header alone",
        get: |config| config.identity.auth_cookie.clone(),
        set: |config, text| {
            let is_name = |text: &str| {
                let mut bytes = text.bytes();
                bytes.all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
            };
            if text.is_empty() || !is_name(text) {
                return Err("is not the name of a cookie".into());
            }
            config.identity.auth_cookie = Some(text.to_owned());
            Ok(())
        },
    },
    Knob {
        name: "auth-query",
        group: IDENTITY,
        kind: Kind::Switch,
        doc: "Take a user's token in a stream's URL too (?token=), where logs and histories keep \
              it; a ticket is the better way",
        get: |config| Some(config.identity.auth_query.to_string()),
        set: |config, text| value::switch(text).map(|value| config.identity.auth_query = value),
    },
    number!(IDENTITY, "tickets-bytes-max", Bytes bytes 4_096..=1 << 40,
        identity.tickets_bytes_max,
        "Bytes that the ids of used tickets may take, 80 each for half a minute; beyond, streams \
         that come with a ticket are told to come again"),
    Knob {
        name: "service-keys",
        group: IDENTITY,
        kind: Kind::Path,
        doc: "File of services' keys, of which it has the hashes: `name scopes blake3:HASH` a \
              line, as `greendot key new --service` prints it; unset: the token that nodes derive \
              from the fleet key stands for every service",
        get: |config| {
            let path = config.identity.service_keys.as_ref();
            path.map(|path| path.display().to_string())
        },
        set: |config, text| path(text).map(|path| config.identity.service_keys = Some(path)),
    },
    number!(IDENTITY, "device-key-epoch-ms", Millis millis 1_000..=366 * DAY_MS,
        settings.device_key_epoch_ms,
        "Time after which devices' keys are others; one counts for at least so long and at most \
         twice as long; the same on every node"),
    number!(IDENTITY, "revocations-max", Count count 1..=1 << 26,
        identity.revocations_max,
        "Most revocations of tokens in force at a time; each is kept for token-ttl-max, in some \
         120 bytes"),
    number!(RATES, "queries-per-user-second-max", Count count 0..=1_000_000,
        identity.rates.queries_per_second_max,
        "Most queries of one user's tokens in a second, on all shards; beyond: 429; 0: any"),
    number!(RATES, "queries-per-user-burst", Count count 1..=1_000_000,
        identity.rates.queries_burst,
        "Most of them at once, after a while without"),
    number!(RATES, "ids-per-user-minute-max", Count count 0..=1_000_000,
        identity.rates.ids_per_minute_max,
        "Most users whom one user's queries may name in a minute, again and again the same \
         counted each time; beyond: 429; 0: any"),
    number!(RATES, "edits-per-user-second-max", Count count 0..=1_000_000,
        identity.rates.edits_per_second_max,
        "Most edits of watch lists by one user's tokens in a second; beyond: 429; 0: any"),
    number!(RATES, "edits-per-user-burst", Count count 1..=1_000_000,
        identity.rates.edits_burst,
        "Most of them at once, after a while without"),
    number!(RATES, "streams-per-user-second-max", Count count 0..=1_000_000,
        identity.rates.streams_per_second_max,
        "Most streams that one user's tokens open in a second; beyond, they are told to come \
         again; 0: any"),
    number!(RATES, "streams-per-user-burst", Count count 1..=1_000_000,
        identity.rates.streams_burst,
        "Most of them at once, after a while without"),
    number!(RATES, "watch-lists-per-user-minute-max", Count count 0..=1_000_000,
        identity.rates.watch_lists_per_minute_max,
        "As many times watches-per-stream-max users may one user's streams and edits begin to \
         watch in a minute; beyond, streams are told to come again, and edits 429; 0: any"),
    number!(RATES, "tickets-per-user-second-max", Count count 0..=1_000_000,
        identity.rates.tickets_per_second_max,
        "Most tickets made of one user's tokens in a second; beyond: 429; 0: any"),
    number!(RATES, "tickets-per-user-burst", Count count 1..=1_000_000,
        identity.rates.tickets_burst,
        "Most of them at once, after a while without"),
    number!(TIME, "beat-interval-ms", Millis millis FROM_ONE_MS, settings.beat_interval_ms,
        "How often a publisher is vouched for; told to clients, and the period of the beats for \
         open streams"),
    number!(TIME, "offline-after-ms", Millis millis FROM_ONE_MS, settings.offline_after_ms,
        "Silence after which a publisher is offline; at least twice beat-interval-ms"),
    number!(TIME, "away-after", Millis millis 0..=DAY_MS, settings.away_after,
        "How long nobody must have been at a device, as it says (idle_ms), for it to be idle; a \
         user whose devices all are is away; 0: nobody is"),
    number!(TIME, "sweep-interval-ms", Millis millis FROM_ONE_MS, settings.sweep_interval_ms,
        "Time between two sweeps over the publishers: the most by which offline is told late; at \
         most half of offline-after-ms"),
    number!(TIME, "flap-transitions-max", Count count 0..=u64::from(FLAP_TRANSITIONS_MAX),
        settings.flap_transitions_max,
        "Most transitions of one user that are told in ten seconds, at most 14; of those beyond, \
         the last is told once they are over; 0: all are told at once"),
    number!(TIME, "mass-offline-hold-ms", Millis millis FROM_ZERO_MS, settings.mass_offline_hold_ms,
        "Time for which nobody is expired if many fall silent at once without a goodbye: at least \
         1000 users, and more than a fifth of those online; 0 holds nobody, and warns"),
    number!(TIME, "beat-skew-max-ms", Millis millis FROM_ONE_MS, settings.beat_skew_max_ms,
        "Most that a datagram's own time may differ from the server's; at least 1000, at most \
         65520"),
    number!(CONNS, "conns-max", Count count FROM_ONE, settings.conns_max,
        "Most connections of one shard, streams included; each needs a file descriptor"),
    number!(CONNS, "tls-handshakes-max", Count count 1..=1 << 20, tls.handshakes_max,
        "Most TLS handshakes of one shard at a time, some 4 KiB each, 10 s at most; beyond, those \
         who come wait to be accepted"),
    number!(CONNS, "conns-per-address-max", Count count 0..=1 << 30,
        settings.conns_per_address_max,
        "Most connections of one shard from one address, of IPv6 from one /64, and of those that \
         trusted-proxies name most streams; this machine's own are not counted; 0: a quarter of \
         conns-max"),
    number!(CONNS, "head-bytes-max", Bytes bytes HEAD_BYTES_FLOOR as u64..=1 << 20,
        settings.head_bytes_max,
        "Longest request line and headers; beyond: 414 or 431"),
    number!(CONNS, "header-count-max", Count count 1..=1_000, settings.header_count_max,
        "Most headers of one request; beyond: 431"),
    number!(CONNS, "body-bytes-max", Bytes bytes 1..=1 << 30, settings.body_bytes_max,
        "Longest request body; beyond: 413"),
    number!(CONNS, "request-deadline-ms", Millis millis FROM_ONE_MS, settings.request_deadline_ms,
        "Time for a whole request to arrive, from accept or the first byte of a later one; no \
         byte extends it; beyond: 408"),
    number!(CONNS, "keep-alive-idle-ms", Millis millis FROM_ZERO_MS, settings.keep_alive_idle_ms,
        "Time that a connection may wait between two requests; 0 closes after each answer"),
    number!(CONNS, "linger-ms", Millis millis FROM_ZERO_MS, settings.linger_ms,
        "Time for which a refused request's remaining bytes are read and dropped, so that the \
         client reads the refusal"),
    number!(CONNS, "query-users-max", Count count FROM_ONE, settings.query_users_max,
        "Most users in one query, beat or leave over HTTP; beyond: 413"),
    number!(CONNS, "passed-users-max", Count count FROM_ONE, settings.passed_users_max,
        "Most users in queries and beats of one shard of a real-time node that wait for presence \
         nodes, some 300 bytes each; beyond, unless no other call waits: 503"),
    number!(CONNS, "leaves-put-off-max", Count count FROM_ONE, settings.leaves_put_off_max,
        "Most goodbyes of one shard's users that wait for their after_ms, and at a presence node \
         as many that wait for real-time nodes, some 150 bytes each; beyond: 503"),
    number!(CONNS, "watches-per-stream-max", Count count FROM_ONE, settings.watches_per_stream_max,
        "Most publishers that one stream may watch; beyond: 413"),
    number!(CONNS, "watches-per-shard-max", Count count 1..=1 << 28, settings.watches_per_shard_max,
        "Most watches of one shard, at most 16 bytes each; beyond, new watches are refused and \
         streams kept"),
    number!(CONNS, "names-bytes-max", Bytes bytes 0..=1 << 40, settings.names_bytes_max,
        "Bytes that the names of watched users without a slot may take on one shard, some 96 each \
         beside the text; beyond, watches of further such users are refused"),
    number!(CONNS, "outbox-bytes-max", Bytes bytes OUTBOX_BYTES_FLOOR as u64..=1 << 30,
        settings.outbox_bytes_max,
        "Bytes encoded for one stream and not yet written; beyond, only marks are kept until the \
         reader catches up"),
    number!(CONNS, "buffer-bytes-max", Bytes bytes OUTBOX_BYTES_FLOOR as u64..=1 << 40,
        settings.buffer_bytes_max,
        "Bytes of unanswered requests, unwritten answers and events on one shard; beyond, long \
         requests are refused (503) and streams are told in small pieces"),
    number!(CONNS, "write-stall-max-ms", Millis millis FROM_ONE_MS, settings.write_stall_max_ms,
        "Time that a peer may acknowledge nothing while bytes are waiting; then it is evicted by a \
         reset (also TCP_USER_TIMEOUT, for one that keeps up)"),
    number!(CONNS, "keep-alive-ms", Millis millis FROM_ONE_MS, settings.keep_alive_ms,
        "Silence on a stream after which a ping is sent; keep it below what proxies cut at"),
    number!(CONNS, "ack-max-ms", Millis millis FROM_ONE_MS, settings.ack_max_ms,
        "Time for which what was written to a stream may be unacknowledged; then the stream \
         vouches for nobody"),
    number!(CONNS, "stream-life-ms", Millis millis FROM_ONE_MS, settings.stream_life_ms,
        "Longest life of a stream; it is ended up to a fifth earlier, and its reader comes back at \
         once"),
    number!(CONNS, "retry-ms", Millis millis FROM_ONE_MS, settings.retry_ms,
        "Base of the jittered delay before a reader reconnects; longer while draining or \
         overloaded"),
    number!(CONNS, "drain-ms", Millis millis FROM_ZERO_MS, settings.drain_ms,
        "Time over which streams are closed after SIGTERM; 0 closes all at once"),
    number!(CONNS, "restart-grace-ms", Millis millis FROM_ZERO_MS, settings.restart_grace_ms,
        "Longest outage after which a start shows publishers online until they have had time to \
         return; after a longer one nobody is online before a sign of life"),
    number!(STORE, "users-max", Count count 1..=SLOTS_MAX as u64, users_max,
        "Most users ever known; some 160 bytes of address space each; beyond, new users' beats \
         are refused"),
    number!(STORE, "forget-after", Millis millis 0..=100 * 365 * DAY_MS, settings.forget_after,
        "Silence after which an offline user is forgotten, as 180d; 0 forgets nobody"),
    number!(STORE, "users-leaving-max", Count count FROM_ONE, settings.users_leaving_max,
        "Most users who are being forgotten, some 200 bytes each, until their slots may be \
         another's; beyond: 503"),
    number!(STORE, "new-users-per-second-max", Count count 0..=u32::MAX as u64,
        settings.new_users_per_second_max,
        "Most new users made in a second, after a second's worth at once; beyond, they are refused \
         one by one, and streams try again each beat interval; 0: any"),
    number!(STORE, "new-users-per-conn-second-max", Count count 0..=u32::MAX as u64,
        settings.new_users_per_conn_second_max,
        "The same on a shard for one connection, or for one client of those whom a proxy of \
         --trusted-proxies names; nodes and services are not held to it"),
    Knob {
        name: "memory",
        group: STORE,
        kind: Kind::Path,
        doc: "Where the store's cells are while it runs: a folder on a tmpfs, so that nobody waits \
              for a disk that stands still; auto: /dev/shm where it outlives the process; off: the \
              data folder's own files",
        get: |config| {
            Some(match &config.memory {
                MemoryChoice::Auto => "auto".into(),
                MemoryChoice::Off => "off".into(),
                MemoryChoice::In(path) => path.display().to_string(),
            })
        },
        set: |config, text| {
            config.memory = match text {
                "auto" => MemoryChoice::Auto,
                "off" => MemoryChoice::Off,
                text => MemoryChoice::In(path(text)?),
            };
            Ok(())
        },
    },
    number!(STORE, "write-back-bytes-per-second-max", Bytes bytes 4_096..=1 << 40,
        write_back_bytes_per_second_max,
        "Budget of the background write-back; stamp bytes divided by this is what a power cut \
         may lose (a crash loses nothing)"),
    number!(TURN, "turn-ms-max", Millis millis FROM_ONE_MS, settings.turn_ms_max,
        "Time after which a turn begins no more work but a first slice of each kind; the rest \
         waits \
         for the next turn, which begins at once"),
    number!(TURN, "work-per-slice-max", Count count FROM_ONE, settings.work_per_slice_max,
        "Most watches that are marked or ended between two looks at the clock; a request of more \
         bytes than a quarter of it waits for a slice of its own"),
    number!(TURN, "sweep-slots-per-turn-max", Count count FROM_ONE,
        settings.sweep_slots_per_turn_max,
        "Most publishers swept in one turn"),
    number!(TURN, "flushes-per-turn-max", Count count FROM_ONE, settings.flushes_per_turn_max,
        "Most streams written to in one turn"),
    number!(TURN, "mail-per-turn-max", Count count FROM_ONE, settings.mail_per_turn_max,
        "Most pieces of mail from other shards handled in one turn"),
    number!(TURN, "beats-per-turn-max", Count count FROM_ONE, settings.beats_per_turn_max,
        "Most beats and goodbyes received in one turn, a refused datagram counting as one; the \
         last system call may bring more"),
    number!(TURN, "mailbox-max", Count count FROM_ONE, settings.mailbox_max,
        "Most pieces of mail waiting for one shard; when full, it reads the published states anew"),
    number!(TURN, "mailbox-bytes-max", Bytes bytes 0..=1 << 40, settings.mailbox_bytes_max,
        "Bytes that edits of watch lists waiting for one shard may hold; beyond, edits are \
         refused"),
    Knob {
        name: "log-format",
        group: LOG,
        kind: Kind::Word,
        doc: "human or json; logs go to stderr",
        get: |config| Some(config.log_format.name().into()),
        set: |config, text| LogFormat::parse(text).map(|value| config.log_format = value),
    },
    Knob {
        name: "log-level",
        group: LOG,
        kind: Kind::Word,
        doc: "off, error, warn, info, debug or trace; user ids appear at debug and trace only",
        get: |config| Some(config.log_level.name().into()),
        set: |config, text| LogLevel::parse(text).map(|value| config.log_level = value),
    },
];

fn word(text: &str) -> Result<String, String> {
    match text {
        "" => Err("is empty".into()),
        text => Ok(text.to_owned()),
    }
}

fn shown(path: &Option<PathBuf>) -> Option<String> {
    path.as_ref().map(|path| path.display().to_string())
}

fn written_paths(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    paths.join(",")
}

fn paths(text: &str) -> Result<Vec<PathBuf>, String> {
    value::list(text).iter().map(|text| path(text)).collect()
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        Err("is empty; write a path".into())
    } else {
        Ok(PathBuf::from(text))
    }
}

/// The flags as Markdown, a section for each group and an item for each flag: what
/// docs/OPERATIONS.md holds of them.
pub fn markdown() -> String {
    let defaults = Config::default();
    let mut out = String::new();
    let mut group = "";
    for knob in KNOBS {
        if knob.group != group {
            group = knob.group;
            out.push_str(&format!("\n**{group}**\n\n"));
        }
        let default = match (knob.get)(&defaults) {
            Some(value) if value.is_empty() => "none".into(),
            Some(value) => format!("`{value}`"),
            None => "unset".into(),
        };
        let (name, kind, doc) = (knob.name, knob.kind.placeholder(), knob.doc);
        let live = match LIVE.contains(&name) {
            true => " A reload takes it.",
            false => "",
        };
        push_item(
            &mut out,
            &format!("`--{name}` {kind}, default {default}. {doc}.{live}"),
        );
    }
    out
}

/// Appends an item of a list, at most 100 columns wide.
fn push_item(out: &mut String, text: &str) {
    out.push('-');
    let mut columns = 1;
    for word in text.split(' ') {
        let width = 1 + word.chars().count();
        if columns + width > 100 {
            out.push_str("\n ");
            columns = 1;
        }
        out.push(' ');
        out.push_str(word);
        columns += width;
    }
    out.push('\n');
}
