//! What a node says of itself when it starts.
//!
//! Owns the sentences, and which of them hold. Says nothing while the node serves.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::{Config, RoleName};
use crate::engine::ShardId;
use crate::presence::{OpenReport, WriteBack};
use crate::version;

/// Where a node listens.
pub(super) struct Listening {
    pub(super) http: SocketAddr,
    pub(super) https: Option<SocketAddr>,
    pub(super) admin: Option<SocketAddr>,
    pub(super) udp: Option<SocketAddr>,
}

/// The one line on stdout; scripts wait for it.
pub(super) fn listening(at: &Listening, shards: ShardId) {
    let word = |name, address: Option<SocketAddr>| {
        address.map_or(String::new(), |address| format!(" {name}={address}"))
    };
    let (https, udp, admin) = (
        word("https", at.https),
        word("udp", at.udp),
        word("admin", at.admin),
    );
    let line = format!(
        "listening http={}{udp}{https}{admin} shards={shards}",
        at.http
    );
    let mut stdout = io::stdout().lock();
    if let Err(error) = writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        tracing::warn!(%error, "stdout did not take the line: {line}");
    }
}

/// What runs here, and where a person may look at it.
pub(super) fn program(config: &Config, at: &Listening) {
    let version = version::LINE;
    let public = config.serves_operators_publicly().then_some(at.http);
    match at.admin.or(public) {
        Some(dashboard) => {
            let dashboard = reached_at(dashboard);
            let scheme = match at.admin.is_some() && config.tls.admin {
                true => "https",
                false => "http",
            };
            tracing::info!("greendot {version}; dashboard: {scheme}://{dashboard}/");
        }
        None => tracing::info!("greendot {version}"),
    }
}

/// Where this machine's own browser finds what listens on `http`: no address may stand for all.
fn reached_at(http: SocketAddr) -> SocketAddr {
    let ip = match http.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, http.port())
}

/// In which state the store was found, what was lost with it, and what a power cut may cost.
pub(super) fn store(config: &Config, report: &OpenReport) {
    let OpenReport { users, online, .. } = report;
    let before = match report {
        OpenReport {
            power_cut: true, ..
        } => "the power was cut since, or its memory was removed",
        OpenReport { clean: false, .. } => "it was not closed last time",
        _ => "it was closed cleanly",
    };
    tracing::info!(
        "store {}: {users} users known, {online} held online until they have had time to return; \
         {before}",
        config.data_dir.display()
    );
    if let Some((outage_ms, taken)) = report.outage {
        tracing::warn!(
            "nobody was heard for {} s, longer than restart-grace-ms: {taken} users who were \
             online are offline until there is a sign of life",
            outage_ms / 1_000
        );
    }
    let bytes_per_second = config.write_back_bytes_per_second_max;
    let seconds = |users| WriteBack::cycle_ms(users, bytes_per_second) as f64 / 1_000.0;
    tracing::info!(
        "write-back: a cycle takes up to {:.1} s now and {:.1} s with users_max {}; a power cut \
         loses at most one, a crash nothing",
        seconds(*users),
        seconds(config.users_max),
        config.users_max
    );
    match &report.memory {
        Some(path) => tracing::info!(
            "the store's cells are in memory in {}, which the data folder follows; a disk that \
             stands still delays nobody who is known",
            path.display()
        ),
        None if report.no_memory.is_empty() => {}
        None => tracing::info!(
            "the store's cells are in the data folder's own files, so everybody waits for a disk \
             that stands still; no memory: {}",
            report.no_memory
        ),
    }
    if report.clock_behind_ms > 0 {
        tracing::warn!(
            "the clock is {:.1} s behind what this store has seen; nobody's last_active is \
             changed by that, and who is not heard of within offline-after-ms goes offline; set \
             the clock",
            report.clock_behind_ms as f64 / 1_000.0
        );
    }
    if report.torn_bytes > 0 {
        tracing::warn!(
            "cut {} bytes of an unfinished record from the end of users.log",
            report.torn_bytes
        );
    }
    if report.stamps_rebuilt {
        tracing::warn!(
            "stamps.map was missing and was made anew: the last_active of all {users} users is \
             lost; to have it back, stop the server at once and restore the whole folder from a \
             backup"
        );
    }
    if report.published_rebuilt {
        tracing::warn!(
            "published.map was missing and was made anew from the stamps: the since of all {users} \
             users is lost; to have it back, stop the server at once and restore the whole folder \
             from a backup"
        );
    }
}

/// Whether the fleet key was made.
pub(super) fn fleet_key(config: &Config, made: bool) {
    if made {
        tracing::info!("made a fleet key in {}", config.key_path().display());
    }
}

/// What to type next.
pub(super) fn next(config: &Config, http: SocketAddr) {
    match config.role {
        RoleName::All => {}
        RoleName::Fleet => {
            if let Some(servers) = &config.fleet.servers {
                tracing::info!("node of the fleet at {servers}");
            }
        }
        RoleName::Realtime => {
            let nodes: Vec<String> = config
                .presence_nodes
                .iter()
                .map(ToString::to_string)
                .collect();
            tracing::info!("real-time node; vouching to {}", nodes.join(" and "));
        }
        RoleName::Presence => {
            let nodes: Vec<&str> = config
                .realtime_nodes
                .iter()
                .map(|node| node.http.as_str())
                .collect();
            tracing::info!("presence node; publishing to {}", nodes.join(" and "));
        }
    }
    if let Some(keys) = config.identity.jwt_keys.first() {
        let keys = word(&keys.to_string_lossy());
        let claim = |flag: &str, value: &Option<String>| {
            value
                .as_ref()
                .map_or_else(String::new, |value| format!(" --{flag} {}", word(value)))
        };
        let aud = claim("aud", &config.identity.jwt_aud);
        let iss = claim("iss", &config.identity.jwt_iss);
        tracing::info!(
            "users show tokens; one to try: greendot token --user alice --key {keys}{aud}{iss}"
        );
        tracing::info!("it goes with curl -NH 'Authorization: Bearer ..'; see docs/SECURITY.md");
        return;
    }
    match config.role {
        RoleName::All | RoleName::Fleet => {
            tracing::info!("try: curl -N 'http://{http}/v1/stream?user=alice&watch=bob'");
            tracing::info!("and in another terminal: curl -N 'http://{http}/v1/stream?user=bob'");
        }
        RoleName::Realtime => {
            tracing::info!("try: curl -N 'http://{http}/v1/stream?user=alice&watch=bob'");
        }
        RoleName::Presence => tracing::info!("try: curl 'http://{http}/v1/presence/alice'"),
    }
}

/// A word as a shell takes it, whatever is in it.
fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+,=".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_takes_a_word_as_one() {
        for (text, shown) in [
            ("greendot", "greendot"),
            ("https://id.example/a?b", "'https://id.example/a?b'"),
            ("https://id.example/", "https://id.example/"),
            ("our app", "'our app'"),
            ("bob's", r"'bob'\''s'"),
            ("$HOME", "'$HOME'"),
            ("", "''"),
        ] {
            assert_eq!(word(text), shown);
        }
    }

    #[test]
    fn a_browser_is_sent_to_one_address() {
        for (listening, reached) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::]:80", "[::1]:80"),
        ] {
            assert_eq!(reached_at(listening.parse().unwrap()).to_string(), reached);
        }
    }
}
