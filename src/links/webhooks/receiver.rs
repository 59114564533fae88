//! HTTP to a webhook's receiver, by ureq: somebody else's server, which may be slow, lie or lead
//! elsewhere.
//!
//! Owns what bounds it: a time for the whole request, little of the answer's body, no redirect, no
//! address out of reach. That a message was taken is what the answer's status says; what becomes of
//! its body changes nothing. Never logs more of a URL than its host: the rest may be a secret.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Connector, NextTimeout, RustlsConnector};

use super::hook::Message;
use super::outcome::{Outcome, Why};
use crate::auth::WebhookSecrets;
use crate::links::http::ADDRESSES_MAX;
use crate::links::socket::{Connect, OutOfReach};
use crate::lookup;
use crate::reach::Reach;
use crate::time::{Mono, Unix, boottime};
use crate::trust::Trust;

/// Most of an answer's body that is read, in bytes: to its end, or the connection can not be used
/// again.
const ANSWER_BYTES_MAX: u64 = 16 << 10;
/// Longest time for that, in ms.
const ANSWER_BODY_MS_MAX: u64 = 1_000;
/// Longest head of an answer, in bytes.
const ANSWER_HEAD_BYTES_MAX: usize = 32 << 10;
/// What a name has led to counts for so long, in ms: it is asked for before each request.
const LOOKUP_MS: u64 = 30_000;

/// Where a webhook's messages go.
pub struct Receiver {
    agent: ureq::Agent,
    addresses: Addresses,
    url: String,
    place: String,
}

/// What a receiver is made of.
#[derive(Clone, Debug)]
pub struct ReceiverOptions {
    /// Where messages go.
    pub url: String,
    /// As much of it as may be logged.
    pub place: String,
    /// Where it may lead.
    pub reach: Reach,
    /// Longest time for a request and its answer, in ms.
    pub timeout_ms: u64,
}

impl Receiver {
    /// At `https://` whom `trust` names is believed, and nobody else.
    pub fn new(options: ReceiverOptions, trust: Option<&Trust>) -> Receiver {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_millis(options.timeout_ms)))
            .timeout_recv_body(Some(Duration::from_millis(ANSWER_BODY_MS_MAX)))
            .max_response_header_size(ANSWER_HEAD_BYTES_MAX)
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .tls_config(Trust::of_ureq(trust))
            .user_agent(concat!("greendot/", env!("CARGO_PKG_VERSION")))
            .build();
        let reach = options.reach;
        let connector = Connect { reach }.chain(RustlsConnector::default());
        let addresses = Addresses::default();
        Receiver {
            agent: ureq::Agent::with_parts(config, connector, addresses.clone()),
            addresses,
            url: options.url,
            place: options.place,
        }
    }

    /// As much of its URL as may be logged.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Sends a message and waits for its answer.
    pub fn send(&self, message: &Message, secrets: &WebhookSecrets, now: Unix) -> Outcome {
        let seconds = now.ms() / 1_000;
        let signature = secrets.sign(&message.id, seconds, &message.body);
        let request = self
            .agent
            .post(&self.url)
            .header("webhook-id", &*message.id)
            .header("webhook-timestamp", seconds.to_string())
            .header("webhook-signature", signature)
            .content_type("application/json");
        match request.send(&message.body[..]) {
            Ok(answer) => read(answer),
            Err(error) => {
                self.addresses.forget();
                Outcome::lost(why(error))
            }
        }
    }
}

fn read(mut answer: ureq::http::Response<ureq::Body>) -> Outcome {
    let after = answer.headers().get("retry-after");
    let seconds = after.and_then(|after| after.to_str().ok()?.parse::<u64>().ok());
    let after_ms = seconds.map(|seconds| seconds.saturating_mul(1_000));
    let outcome = Outcome::of(answer.status().as_u16(), after_ms);
    let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX);
    // One that is cut off, or has no end, costs the connection.
    drop(body.read_to_vec());
    outcome
}

fn why(error: Error) -> Why {
    match error {
        Error::Timeout(_) => Why::Timeout,
        Error::HostNotFound => Why::Lookup,
        Error::Io(error) if is_out_of_reach(&error) => Why::OutOfReach,
        Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            Why::Tls(error.to_string())
        }
        Error::Io(error) => Why::Connection(error.to_string()),
        Error::Rustls(error) => Why::Tls(error.to_string()),
        Error::Tls(why) => Why::Tls(why.to_owned()),
        Error::ConnectionFailed => Why::Connection("refused".into()),
        error => Why::Protocol(error.to_string()),
    }
}

fn is_out_of_reach(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<OutOfReach>())
}

/// What the receiver's name leads to, and when it was looked up: a receiver may move.
#[derive(Clone, Default, Debug)]
struct Addresses {
    found: Arc<Mutex<Option<Found>>>,
}

#[derive(Debug)]
struct Found {
    at: Mono,
    addresses: Vec<SocketAddr>,
}

impl Addresses {
    /// The next request looks them up anew.
    fn forget(&self) {
        *self.found.lock() = None;
    }

    fn look_up(&self, uri: &Uri) -> Result<Vec<SocketAddr>, Error> {
        let now = boottime();
        let mut found = self.found.lock();
        if let Some(found) = &*found
            && now.ms_since(found.at) < LOOKUP_MS
        {
            return Ok(found.addresses.clone());
        }
        let authority = uri.authority().ok_or(Error::HostNotFound)?;
        let port = match uri.scheme_str() {
            Some("https") => authority.port_u16().unwrap_or(443),
            _ => authority.port_u16().unwrap_or(80),
        };
        let addresses = lookup::addresses(&format!("{}:{port}", authority.host()));
        let addresses = addresses.map_err(|_| Error::HostNotFound)?;
        if addresses.is_empty() {
            return Err(Error::HostNotFound);
        }
        *found = Some(Found {
            at: now,
            addresses: addresses.clone(),
        });
        Ok(addresses)
    }
}

impl Resolver for Addresses {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let mut addresses = self.empty();
        for address in self.look_up(uri)?.iter().take(ADDRESSES_MAX) {
            addresses.push(*address);
        }
        Ok(addresses)
    }
}
