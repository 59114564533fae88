//! Where the servers of a fleet are, as an operator writes it.
//!
//! Owns the form of the URL. Never resolves a name, and never shows a password: a fault names the
//! part that is wrong, and not what stands in it if that may be secret.

use std::fmt;
use std::net::Ipv6Addr;

use percent_encoding::percent_decode_str;

/// The port of a server that names none.
const PORT: u16 = 6_379;

/// Most servers that are named to begin with.
const SERVERS_MAX: usize = 64;

/// A server's name, or its number, and its port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Address {
    /// A name, or a number without brackets.
    pub host: String,
    /// Of TCP.
    pub port: u16,
}

/// What nobody is shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

/// Which servers are asked first, and as whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Servers {
    /// One at least. Whoever else there is, they know.
    pub addresses: Vec<Address>,
    /// Connections speak TLS.
    pub is_sealed: bool,
    /// A user of the server's access lists. None: `default`.
    pub user: Option<String>,
    /// None: it asks for none.
    pub password: Option<Password>,
}

impl Password {
    /// As it is sent.
    pub fn new(text: String) -> Password {
        Password(text)
    }

    /// The same, as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl Address {
    fn parse(text: &str) -> Option<Address> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                host.parse::<Ipv6Addr>().ok()?;
                (
                    host,
                    rest.strip_prefix(':').or(rest.is_empty().then_some("")),
                )
            }
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, Some("")),
            },
        };
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
        let port = match port? {
            "" if !text.ends_with(':') => PORT,
            digits => digits.parse().ok().filter(|&port| port != 0)?,
        };
        (!host.is_empty() && host.bytes().all(is_host)).then(|| Address {
            host: host.to_owned(),
            port,
        })
    }
}

/// Without the password.
impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_sealed {
            "rediss://"
        } else {
            "redis://"
        })?;
        let user = self.user.as_deref().unwrap_or_default();
        match &self.password {
            Some(_) => write!(f, "{user}:***@")?,
            None if user.is_empty() => {}
            None => write!(f, "{user}@")?,
        }
        for (at, address) in self.addresses.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(f, "{comma}{address}")?;
        }
        Ok(())
    }
}

impl Servers {
    /// Reads `redis://USER:PASSWORD@HOST:PORT,HOST:PORT`, or `rediss://` for TLS. User, password
    /// and ports may be left out; what is special in user or password is percent-encoded.
    ///
    /// Errors: it is something else; the text says which part.
    pub fn parse(text: &str) -> Result<Servers, String> {
        let (is_sealed, rest) = match text.split_once("://") {
            Some(("redis", rest)) => (false, rest),
            Some(("rediss", rest)) => (true, rest),
            Some((scheme, _)) if scheme.len() <= 16 && !scheme.contains('@') => {
                return Err(format!(
                    "begins with {scheme}://; it is redis://HOST:PORT, or rediss:// for TLS"
                ));
            }
            _ => return Err("is no redis://HOST:PORT (or rediss:// for TLS)".to_owned()),
        };
        if rest.contains(['?', '#']) {
            return Err(
                "has a ? or #; options do not stand in it (a password's are %3F, %23)".into(),
            );
        }
        let (rest, database) = match rest.rfind('/') {
            Some(at) if !rest[at..].contains('@') => (&rest[..at], &rest[at + 1..]),
            _ => (rest, ""),
        };
        if !["", "0"].contains(&database) {
            return Err(
                "names a database; a fleet uses database 0, as a cluster has no other".into(),
            );
        }
        // The last one: a password may have others.
        let (login, hosts) = match rest.rsplit_once('@') {
            Some((login, hosts)) => (Some(login), hosts),
            None => (None, rest),
        };
        let (user, password) = login.map_or(Ok((None, None)), login_of)?;
        let mut addresses = Vec::new();
        for word in hosts.split(',') {
            let address = Address::parse(word.trim()).ok_or_else(|| match login {
                // Whatever stands here, it may be a piece of a password that is not encoded.
                Some(_) => "has a server behind the @ that is no HOST:PORT".to_owned(),
                None => format!("has {word:?}, which is no HOST:PORT"),
            })?;
            if addresses.contains(&address) {
                return Err(format!("names {address} twice"));
            }
            addresses.push(address);
        }
        if addresses.len() > SERVERS_MAX {
            return Err(format!(
                "names {} servers; at most {SERVERS_MAX} are taken, and any of a cluster is enough",
                addresses.len()
            ));
        }
        Ok(Servers {
            addresses,
            is_sealed,
            user,
            password,
        })
    }
}

type Login = (Option<String>, Option<Password>);

fn login_of(text: &str) -> Result<Login, String> {
    let decode = |part: &str, what: &str| {
        let decoded = percent_decode_str(part).decode_utf8();
        let decoded = decoded.map_err(|_| format!("has a {what} that is no UTF-8"))?;
        Ok::<_, String>(decoded.into_owned()).map(|text| Some(text).filter(|text| !text.is_empty()))
    };
    let (user, password) = match text.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (text, None),
    };
    let user = decode(user, "user")?;
    let password = decode(password.unwrap_or_default(), "password")?;
    Ok((user, password.map(Password)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: &str, port: u16) -> Address {
        Address {
            host: host.to_owned(),
            port,
        }
    }

    #[test]
    fn servers() {
        let plain = |addresses| Servers {
            addresses,
            is_sealed: false,
            user: None,
            password: None,
        };
        for (text, addresses) in [
            ("redis://a", vec![address("a", 6_379)]),
            ("redis://10.0.0.1:7000/", vec![address("10.0.0.1", 7_000)]),
            ("redis://a:1/0", vec![address("a", 1)]),
            (
                "redis://a:1,[::1]:2,[2001:db8::1]",
                vec![
                    address("a", 1),
                    address("::1", 2),
                    address("2001:db8::1", 6_379),
                ],
            ),
        ] {
            assert_eq!(Servers::parse(text), Ok(plain(addresses)), "{text}");
        }
        let sealed = Servers::parse("rediss://green:d%40t/1@r-1.example:7,r-2.example").unwrap();
        assert!(sealed.is_sealed);
        assert_eq!(sealed.user.as_deref(), Some("green"));
        assert_eq!(sealed.password, Some(Password("d@t/1".into())));
        assert_eq!(sealed.addresses[1], address("r-2.example", 6_379));
        let only = Servers::parse("redis://:secret@a").unwrap();
        assert_eq!(
            (only.user, only.password),
            (None, Some(Password("secret".into())))
        );
        let user = Servers::parse("redis://green@a").unwrap();
        assert_eq!((user.user.as_deref(), user.password), (Some("green"), None));
        assert_eq!(address("::1", 2).to_string(), "[::1]:2");
        assert_eq!(address("a", 2).to_string(), "a:2");
    }

    #[test]
    fn what_is_none_is_named_and_no_password_is() {
        let many: Vec<String> = (1..=65).map(|port| format!("a:{port}")).collect();
        for (text, fault) in [
            ("", "is no redis://HOST:PORT (or rediss:// for TLS)"),
            ("secret@a", "is no redis://HOST:PORT (or rediss:// for TLS)"),
            (
                "http://a",
                "begins with http://; it is redis://HOST:PORT, or rediss:// for TLS",
            ),
            (
                "redis+unix://a",
                "begins with redis+unix://; it is redis://HOST:PORT, or rediss:// for TLS",
            ),
            ("redis://", "has \"\", which is no HOST:PORT"),
            ("redis://a:0", "has \"a:0\", which is no HOST:PORT"),
            ("redis://a:", "has \"a:\", which is no HOST:PORT"),
            ("redis://a:65536", "has \"a:65536\", which is no HOST:PORT"),
            ("redis://::1", "has \"::1\", which is no HOST:PORT"),
            ("redis://[a]:1", "has \"[a]:1\", which is no HOST:PORT"),
            ("redis://a,,b", "has \"\", which is no HOST:PORT"),
            ("redis://a b", "has \"a b\", which is no HOST:PORT"),
            ("redis://a,a:6379", "names a:6379 twice"),
            (
                "redis://a/1",
                "names a database; a fleet uses database 0, as a cluster has no other",
            ),
            (
                "redis://a?secret",
                "has a ? or #; options do not stand in it (a password's are %3F, %23)",
            ),
            (
                "redis://:secret@",
                "has a server behind the @ that is no HOST:PORT",
            ),
            (
                "redis://:se@cr,et@a:x",
                "has a server behind the @ that is no HOST:PORT",
            ),
            ("redis://:%ff@a", "has a password that is no UTF-8"),
        ] {
            assert_eq!(Servers::parse(text), Err(fault.to_owned()), "{text}");
        }
        let fault = Servers::parse(&format!("redis://{}", many.join(","))).unwrap_err();
        assert!(fault.starts_with("names 65 servers; at most 64"), "{fault}");
        let shown = format!("{:?}", Servers::parse("redis://:secret@a").unwrap());
        assert!(!shown.contains("secret"), "{shown}");
        for (text, shown) in [
            ("redis://:secret@a", "redis://:***@a:6379"),
            (
                "rediss://green:secret@a:1,[::1]:2",
                "rediss://green:***@a:1,[::1]:2",
            ),
            ("redis://green@a:1", "redis://green@a:1"),
        ] {
            assert_eq!(Servers::parse(text).unwrap().to_string(), shown);
        }
    }
}
