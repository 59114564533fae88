//! Names of hosts to addresses.
//!
//! Owns that `localhost` is this machine wherever greendot runs (RFC 6761 section 6.3): in an empty
//! root there is no /etc/hosts that says so. Everything else is the system's to know.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};

/// The addresses of `HOST:PORT`; maybe none.
pub fn addresses(authority: &str) -> io::Result<Vec<SocketAddr>> {
    if let Some((host, port)) = authority.rsplit_once(':')
        && let Some(local) = local(host)
        && let Ok(port) = port.parse::<u16>()
    {
        return Ok(local.map(|ip| SocketAddr::new(ip, port)).into());
    }
    Ok(authority.to_socket_addrs()?.collect())
}

/// The addresses of this machine, if the name is one of its own; IPv4 first, for there a server
/// listens unless told otherwise.
pub fn local(host: &str) -> Option<[IpAddr; 2]> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let last = host.rsplit('.').next().unwrap_or(host);
    last.eq_ignore_ascii_case("localhost")
        .then_some([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_is_this_machine_whatever_the_system_says() {
        let local: Vec<SocketAddr> = ["127.0.0.1:80", "[::1]:80"]
            .map(|address| address.parse().unwrap())
            .into();
        for name in [
            "localhost:80",
            "LocalHost:80",
            "localhost.:80",
            "app.localhost:80",
        ] {
            assert_eq!(addresses(name).unwrap(), local, "{name}");
        }
        for name in ["localhost.invalid", "notlocalhost", "127.0.0.1", ""] {
            assert_eq!(super::local(name), None, "{name}");
        }
    }

    #[test]
    fn the_rest_is_the_systems() {
        let found = addresses("127.0.0.9:80").unwrap();
        assert_eq!(found, ["127.0.0.9:80".parse().unwrap()]);
        assert!(addresses("nowhere.invalid:80").is_err());
        assert!(addresses("localhost:99999").is_err());
    }
}
