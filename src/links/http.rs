//! HTTP between nodes, by ureq: one kept-alive connection, short timeouts, no redirects.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Connector, NextTimeout, RustlsConnector};

use super::reply::{Fault, JSON, Reply, Request, Said};
use super::socket::Connect;
use crate::engine::{NODE_HEADER, Onward, REFUSES_NEW, Shows};
use crate::lookup;
use crate::reach::Reach;
use crate::time::Unix;
use crate::trust::Trust;
use crate::wire::feed::{FEED_HEADER, Held, LIFE_HEADER};
use crate::wire::request::{Method, VIA};

/// Longest time for a whole request and its answer, in ms: a node that takes longer is out of
/// sight.
pub(super) const TIMEOUT_MS: u64 = 2_000;
/// The same for a list that is another node's: it is told within three and a half seconds.
const LIST_TIMEOUT: Duration = Duration::from_millis(4_000);
/// Longest answer that is read, in bytes: [`super::STATES_PER_REQUEST_MAX`] records of the longest
/// ids, and some.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// Addresses of a node that are tried; what ureq has room for.
pub(super) const ADDRESSES_MAX: usize = 16;

/// What a node shows, as its files of keys have it now.
pub type Token = Arc<dyn Fn() -> String + Send + Sync>;

/// Another node's HTTP address.
pub struct Remote {
    agent: ureq::Agent,
    /// `http://HOST:PORT`, or with `https`.
    base: String,
    token: Token,
}

/// What a presence node says of itself with an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answerer {
    /// Which life of it this is.
    pub birth: u64,
    /// By its clock: before this it publishes nothing any more, so its answers are as of then.
    pub as_of: Unix,
    /// What its clock shows.
    pub clock: Unix,
    /// It has refused new users lately.
    pub refuses_new: bool,
}

impl Remote {
    /// `base` is `http://HOST:PORT`, or with `https`: then whom `trust` names is believed.
    pub fn new(base: String, token: Token, trust: Option<&Trust>) -> Remote {
        Remote::at(Addresses::default(), base, token, trust)
    }

    /// One that is given up after `timeout_ms`, at `http://`.
    pub(super) fn within(timeout_ms: u64, base: String, token: Token) -> Remote {
        Remote::made(timeout_ms, Addresses::default(), base, token, None)
    }

    fn at(addresses: Addresses, base: String, token: Token, trust: Option<&Trust>) -> Remote {
        Remote::made(TIMEOUT_MS, addresses, base, token, trust)
    }

    fn made(
        timeout_ms: u64,
        addresses: Addresses,
        base: String,
        token: Token,
        trust: Option<&Trust>,
    ) -> Remote {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_millis(timeout_ms)))
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .tls_config(Trust::of_ureq(trust))
            .user_agent(concat!("greendot/", env!("CARGO_PKG_VERSION")))
            .build();
        let reach = Reach::Anywhere;
        let connector = Connect { reach }.chain(RustlsConnector::default());
        Remote {
            agent: ureq::Agent::with_parts(config, connector, addresses),
            base,
            token,
        }
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// Sends a request and waits for its answer, for [`TIMEOUT_MS`] at most.
    pub(super) fn send(&self, request: &Request) -> Reply {
        self.try_send(request)
            .map_err(|error| Fault(error.to_string()))
    }

    /// Gets what is at a path, by these pairs of a query.
    pub(super) fn get<'q>(
        &self,
        path: &str,
        query: impl Iterator<Item = (&'q str, &'q str)>,
    ) -> Reply {
        let request = self.agent.get(format!("{}{path}", self.base));
        let answer = request
            .query_pairs(query)
            .header("Authorization", format!("Bearer {}", (self.token)()))
            .call();
        answer
            .and_then(read)
            .map_err(|error| Fault(error.to_string()))
    }

    /// Sends somebody's request on, marked as one that a node sends: a POST of JSON, or what has no
    /// body.
    pub(super) fn forward(&self, request: &Onward) -> Reply {
        let of_node;
        let shown = match &request.shows {
            Shows::Callers(shown) => shown.as_deref(),
            Shows::Fleets => {
                of_node = format!("Bearer {}", (self.token)());
                Some(&*of_node)
            }
        };
        let host = request.host.as_deref().map(|host| ("Host", host));
        let shown = shown.map(|shown| ("Authorization", shown));
        let fields = [Some(("Via", VIA)), host, shown];
        let mut builder =
            ureq::http::Request::builder().uri(format!("{}{}", self.base, request.path));
        for (name, value) in fields.into_iter().flatten() {
            builder = builder.header(name, value);
        }
        let build = |error: ureq::http::Error| Fault(error.to_string());
        let answer = match request.method {
            Method::Post => {
                let builder = builder.method("POST").header("Content-Type", JSON);
                self.agent
                    .run(builder.body(&request.body[..]).map_err(build)?)
            }
            method => {
                let method = if method == Method::Delete {
                    "DELETE"
                } else {
                    "GET"
                };
                let request = builder.method(method).body(()).map_err(build)?;
                match request.uri().query() {
                    None => self.agent.run(request),
                    // A list, for which that node asks others.
                    Some(_) => {
                        let config = self.agent.configure_request(request);
                        self.agent
                            .run(config.timeout_global(Some(LIST_TIMEOUT)).build())
                    }
                }
            }
        };
        answer
            .and_then(read)
            .map_err(|error| Fault(error.to_string()))
    }

    fn try_send(&self, request: &Request) -> Result<Said, ureq::Error> {
        let uri = format!("{}{}", self.base, request.path);
        let mut builder = match request.method {
            "PUT" => self.agent.put(uri),
            _ => self.agent.post(uri),
        };
        // Anybody may ask; who shows this is heard by a node that is full.
        builder = builder.header("Authorization", format!("Bearer {}", (self.token)()));
        if let Some((name, value)) = &request.field {
            builder = builder.header(*name, value);
        }
        read(
            builder
                .content_type(request.media)
                .send(&request.body[..])?,
        )
    }
}

/// A node's addresses, looked up by the first request that finds any, and never again: ureq asks
/// for them before each request, its own resolver would start a thread for each, and a name service
/// that is slow must not make a node look so. Until then the link's thread waits for the name
/// service; it has nothing else to do.
#[derive(Default, Debug)]
struct Addresses {
    found: OnceLock<Vec<SocketAddr>>,
}

impl Resolver for Addresses {
    fn resolve(
        &self,
        uri: &Uri,
        _: &Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = match self.found.get() {
            Some(found) => found,
            None => {
                let authority = uri.authority().ok_or(ureq::Error::HostNotFound)?;
                let found = lookup::addresses(authority.as_str())?;
                if found.is_empty() {
                    return Err(ureq::Error::HostNotFound);
                }
                self.found.get_or_init(|| found)
            }
        };
        let mut addresses = self.empty();
        for address in found.iter().take(ADDRESSES_MAX) {
            addresses.push(*address);
        }
        Ok(addresses)
    }
}

fn read(mut answer: ureq::http::Response<ureq::Body>) -> Result<Said, ureq::Error> {
    let field = |name| answer.headers().get(name)?.to_str().ok();
    let node = field(NODE_HEADER).and_then(Answerer::parse);
    let held = field(FEED_HEADER).and_then(Held::parse);
    let life = field(LIFE_HEADER).and_then(|life| u64::from_str_radix(life, 16).ok());
    // Read to the end, or the connection can not be used again.
    let body = answer
        .body_mut()
        .with_config()
        .limit(ANSWER_BYTES_MAX)
        .read_to_vec()?;
    Ok(Said {
        status: answer.status().as_u16(),
        node,
        held,
        life,
        body,
    })
}

impl Answerer {
    /// From a [`NODE_HEADER`].
    pub fn parse(value: &str) -> Option<Answerer> {
        let mut words = value.split(' ');
        let birth = u64::from_str_radix(words.next()?, 16).ok()?;
        let mut time = || Some(Unix::from_ms(words.next()?.parse().ok()?));
        let (as_of, clock) = (time()?, time()?);
        Some(Answerer {
            birth,
            as_of,
            clock,
            refuses_new: words.next() == Some(REFUSES_NEW),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_name_that_was_found_is_not_looked_up_again() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addresses = Addresses {
            found: OnceLock::from(vec![listener.local_addr().unwrap()]),
        };
        // No name service knows it.
        let remote = Remote::at(
            addresses,
            "http://node.invalid:8080".into(),
            Arc::new(|| "token".into()),
            None,
        );
        let node = std::thread::spawn(move || {
            let (mut conn, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n{}") {
                let mut bytes = [0; 1_024];
                let length = conn.read(&mut bytes).unwrap();
                request.extend_from_slice(&bytes[..length]);
            }
            conn.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
            String::from_utf8(request).unwrap()
        });
        let request = Request {
            method: "PUT",
            path: "/v1/presence".into(),
            media: "application/json",
            field: None,
            body: b"{}".to_vec(),
            states: 0,
        };
        assert_eq!(remote.send(&request).unwrap().status, 204);
        let request = node.join().unwrap().to_lowercase();
        assert!(
            request.contains("\r\nhost: node.invalid:8080\r\n"),
            "{request}"
        );
    }

    #[test]
    fn a_name_is_looked_up_once_it_is_known() {
        let addresses = Addresses::default();
        let look_up = |uri: &str| {
            let found = addresses.resolve(
                &uri.parse().unwrap(),
                &Config::default(),
                NextTimeout::default(),
            );
            found.map(|found| found.to_vec()).map_err(drop)
        };
        let found = Ok(vec!["127.0.0.1:81".parse().unwrap()]);
        assert_eq!(look_up("http://node.invalid:80"), Err(()));
        assert_eq!(look_up("http://127.0.0.1:81"), found);
        assert_eq!(look_up("http://node.invalid:80"), found);
    }

    #[test]
    fn node_headers() {
        let answerer = Answerer {
            birth: 255,
            as_of: Unix::from_ms(17),
            clock: Unix::from_ms(19),
            refuses_new: false,
        };
        assert_eq!(Answerer::parse("00ff 17 19"), Some(answerer));
        let refuses_new = Answerer::parse("00ff 17 19 full").map(|node| node.refuses_new);
        assert_eq!(refuses_new, Some(true));
        for bad in ["", "x 1 1", "1", "1 1", "1 1 x", "1 -1 1"] {
            assert_eq!(Answerer::parse(bad), None, "{bad}");
        }
    }
}
