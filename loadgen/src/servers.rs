//! How the command line names servers. Opens no connection; names are looked up.

use std::net::{SocketAddr, ToSocketAddrs as _};

/// What takes beats and answers queries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PresenceNode {
    /// `HOST:PORT` of its UDP address as it was typed: by it users are spread, so the servers must
    /// have been given the same.
    pub name: String,
    /// Where beats go.
    pub udp: SocketAddr,
    /// Where queries go, and the question of what was counted.
    pub http: SocketAddr,
}

/// The variable that says where a server's HTTP address is, as greendot's client commands read it.
pub const URL_VARIABLE: &str = "GREENDOT_URL";
/// The variable that says where it receives datagrams.
pub const BEAT_TO_VARIABLE: &str = "GREENDOT_BEAT_TO";

/// Reads `HOST:PORT`, or `udp://HOST:PORT`.
pub fn datagrams(text: &str) -> Result<SocketAddr, String> {
    resolve(authority(text.strip_prefix("udp://").unwrap_or(text)))
}

/// Reads `HOST:PORT`, or `http://HOST:PORT` as presence nodes are told it.
pub fn realtime(text: &str) -> Result<SocketAddr, String> {
    resolve(authority(text.strip_prefix("http://").unwrap_or(text)))
}

/// Reads `HOST:PORT`, or `https://HOST:PORT`.
pub fn sealed(text: &str) -> Result<SocketAddr, String> {
    resolve(authority(text.strip_prefix("https://").unwrap_or(text)))
}

/// Reads `udp://HOST:PORT,http://HOST:PORT`, as real-time nodes are told it.
pub fn presence(text: &str) -> Result<PresenceNode, String> {
    let both = text.split_once(',');
    let (udp, http) = both
        .and_then(|(udp, http)| {
            Some((
                udp.trim().strip_prefix("udp://")?,
                http.trim().strip_prefix("http://")?,
            ))
        })
        .ok_or("udp://HOST:PORT,http://HOST:PORT expected")?;
    Ok(PresenceNode {
        name: authority(udp).to_owned(),
        udp: resolve(authority(udp))?,
        http: resolve(authority(http))?,
    })
}

fn authority(text: &str) -> &str {
    text.strip_suffix('/').unwrap_or(text)
}

/// Reads `HOST:PORT`. Of several addresses the first of IPv4: servers listen there unless told
/// otherwise, whatever comes first of `localhost`.
pub fn resolve(authority: &str) -> Result<SocketAddr, String> {
    let found: Vec<SocketAddr> = authority
        .to_socket_addrs()
        .map_err(|e| format!("{authority}: {e}"))?
        .collect();
    let v4 = found.iter().find(|address| address.is_ipv4());
    v4.or(found.first())
        .copied()
        .ok_or_else(|| format!("{authority} has no address"))
}
