//! Which server a client command speaks to: as a flag, a variable or nobody said.
//!
//! Owns the grammar of `HOST:PORT` and where it came from, so that every error names both. Names
//! are looked up when they are needed, so that one that has moved is found again.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

pub use crate::config::{BEAT_TO_VARIABLE, URL_VARIABLE};
use crate::lookup;
use crate::trust::Trust;

/// The server's variable of those by whom nodes are believed: what it says is for tools too.
pub const AUTHORITIES: &str = "GREENDOT_TLS_CA";

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
    /// It speaks TLS.
    sealed: bool,
    /// The file of those by whom it is believed then.
    authorities: Option<PathBuf>,
}

impl Endpoint {
    /// Reads `HOST:PORT`, with or without `http://` (or `udp://`) before it, or with `https://`; an
    /// error says what is allowed.
    pub fn parse(text: &str, port: Port, said: Said) -> Result<Endpoint, String> {
        let scheme = format!("{}://", port.flag());
        let behind_tls = text.strip_prefix("https://").filter(|_| port == Port::Http);
        let sealed = behind_tls.is_some();
        let authority = behind_tls.or_else(|| text.strip_prefix(&scheme));
        let authority = authority.unwrap_or(text);
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
            sealed,
            authorities: None,
        })
    }

    /// Where a server is that nobody moved.
    pub fn default_of(port: Port) -> Endpoint {
        Endpoint {
            authority: port.default().to_owned(),
            port,
            said: Said::Nobody,
            sealed: false,
            authorities: None,
        }
    }

    /// The same, believed by the authorities of a file, if it speaks TLS.
    pub fn believed_by(self, authorities: Option<PathBuf>) -> Endpoint {
        Endpoint {
            authorities,
            ..self
        }
    }

    /// What a path is put behind: `http://HOST:PORT`, or with `https`.
    pub fn base(&self) -> String {
        let scheme = if self.sealed { "https" } else { "http" };
        format!("{scheme}://{}", self.authority)
    }

    /// By whom it is believed. None: it does not speak TLS.
    ///
    /// Errors: it does, and no file says it, or the file names nobody.
    pub fn trust(&self) -> Result<Option<Trust>, String> {
        if !self.sealed {
            return Ok(None);
        }
        let Some(path) = &self.authorities else {
            return Err(format!(
                "{self}: https:// needs to know whom to believe; name the PEM file of the \
                 authority that issued the server's certificate with --tls-ca or {AUTHORITIES}"
            ));
        };
        let trust = Trust::read(path).map_err(|fault| fault.to_string())?;
        Ok(Some(trust))
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
            "https://a",
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
        let sealed = Endpoint::parse("https://a.example:8443/", Port::Http, Said::Flag).unwrap();
        assert_eq!(sealed.base(), "https://a.example:8443");
        let why = sealed.trust().err().unwrap();
        assert!(why.contains("--tls-ca or GREENDOT_TLS_CA"), "{why}");
        let missing = sealed.believed_by(Some("missing.crt".into()));
        assert!(
            missing
                .trust()
                .err()
                .unwrap()
                .starts_with("missing.crt: can not be read")
        );
        let plain = Endpoint::parse("a.example:80", Port::Http, Said::Flag).unwrap();
        assert!(plain.base() == "http://a.example:80" && plain.trust().unwrap().is_none());
        assert!(Endpoint::parse("https://a:1", Port::Udp, Said::Flag).is_err());
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
