//! Which server a client command speaks to: as a flag, a variable or nobody said.
//!
//! Owns the grammar of `HOST:PORT` and where it came from, so that every error names both. Names
//! are looked up when they are needed, so that one that has moved is found again.

use std::fmt;
use std::net::SocketAddr;

pub use crate::config::{BEAT_TO_VARIABLE, URL_VARIABLE};
use crate::lookup;

/// Which of a server's two addresses, and how each is named.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Port {
    /// Where requests go.
    Http,
    /// Where datagrams go.
    Udp,
}

impl Port {
    /// The flag, without its dashes.
    pub const fn flag(self) -> &'static str {
        match self {
            Port::Http => "http",
            Port::Udp => "udp",
        }
    }

    pub const fn variable(self) -> &'static str {
        match self {
            Port::Http => URL_VARIABLE,
            Port::Udp => BEAT_TO_VARIABLE,
        }
    }

    /// Where a server is if nobody says otherwise.
    pub const fn default(self) -> &'static str {
        match self {
            Port::Http => "127.0.0.1:8080",
            Port::Udp => "127.0.0.1:8081",
        }
    }
}

/// Who said where the server is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Said {
    Flag,
    Variable,
    Nobody,
}

/// Where a server is, and who said so. Shown as `localhost:8080 (--http)`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// `HOST:PORT`.
    authority: String,
    port: Port,
    said: Said,
}

impl Endpoint {
    /// Reads `HOST:PORT`, with or without `http://` (or `udp://`) before it; an error says what is
    /// allowed.
    pub fn parse(text: &str, port: Port, said: Said) -> Result<Endpoint, String> {
        let scheme = format!("{}://", port.flag());
        let authority = text.strip_prefix(&scheme).unwrap_or(text);
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let legal = authority.rsplit_once(':').is_some_and(|(host, port)| {
            let bare = host.strip_prefix('[').and_then(|v6| v6.strip_suffix(']'));
            let named = bare.is_none() && !host.contains([':', '/', '@', '?', '#', ' ', ',']);
            let numbered = bare.is_some_and(|v6| v6.parse::<std::net::Ipv6Addr>().is_ok());
            !host.is_empty() && (named || numbered) && port.parse::<u16>().is_ok_and(|n| n > 0)
        });
        if !legal {
            return Err(format!(
                "{text:?} is no HOST:PORT; write it as {} or {scheme}localhost:{}",
                port.default(),
                &port.default()["127.0.0.1:".len()..]
            ));
        }
        Ok(Endpoint {
            authority: authority.to_owned(),
            port,
            said,
        })
    }

    /// Where a server is that nobody moved.
    pub fn default_of(port: Port) -> Endpoint {
        Endpoint {
            authority: port.default().to_owned(),
            port,
            said: Said::Nobody,
        }
    }

    /// Which of the two it is.
    pub fn port(&self) -> Port {
        self.port
    }

    /// Nobody has said it.
    pub fn is_default(&self) -> bool {
        self.said == Said::Nobody
    }

    /// `HOST:PORT`.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Its addresses, never none; those of IPv4 first, for there a server listens unless told
    /// otherwise, whatever comes first of `localhost`.
    pub fn resolve(&self) -> Result<Vec<SocketAddr>, String> {
        let looked_up = lookup::addresses(&self.authority);
        let mut found = looked_up.map_err(|error| format!("{self}: {error}"))?;
        found.sort_by_key(SocketAddr::is_ipv6);
        if found.is_empty() {
            return Err(format!("{self}: the name has no address"));
        }
        Ok(found)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (authority, flag, variable) = (&self.authority, self.port.flag(), self.port.variable());
        match self.said {
            Said::Flag => write!(f, "{authority} (--{flag})"),
            Said::Variable => write!(f, "{authority} ({variable})"),
            Said::Nobody => write!(f, "{authority} (the default of --{flag})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(text: &str) -> Result<String, String> {
        Endpoint::parse(text, Port::Http, Said::Flag).map(|found| found.authority)
    }

    #[test]
    fn what_names_a_server() {
        for text in [
            "localhost:8080",
            "http://localhost:8080",
            "http://localhost:8080/",
        ] {
            assert_eq!(http(text).as_deref(), Ok("localhost:8080"));
        }
        assert_eq!(http("[::1]:80").as_deref(), Ok("[::1]:80"));
        for text in [
            "",
            "localhost",
            ":80",
            "a:0",
            "a:99999",
            "::1:80",
            "[x]:80",
            "https://a:80",
            "http://a:80/x",
            "u@a:80",
            "a:80,b:80",
        ] {
            assert_eq!(
                http(text),
                Err(format!(
                    "{text:?} is no HOST:PORT; write it as 127.0.0.1:8080 or http://localhost:8080"
                ))
            );
        }
        let udp = Endpoint::parse("udp://localhost:9", Port::Udp, Said::Variable).unwrap();
        assert_eq!(udp.to_string(), "localhost:9 (GREENDOT_BEAT_TO)");
    }

    #[test]
    fn the_address_that_a_server_has_by_default_comes_first() {
        let local = Endpoint::parse("localhost:80", Port::Http, Said::Flag).unwrap();
        assert_eq!(local.resolve().unwrap()[0], ([127, 0, 0, 1], 80).into());
        let nowhere = Endpoint::parse("nowhere.invalid:80", Port::Http, Said::Variable).unwrap();
        let fault = nowhere.resolve().unwrap_err();
        assert!(
            fault.starts_with("nowhere.invalid:80 (GREENDOT_URL): "),
            "{fault}"
        );
        assert_eq!(
            Endpoint::default_of(Port::Udp).to_string(),
            "127.0.0.1:8081 (the default of --udp)"
        );
    }
}
