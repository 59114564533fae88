//! HTTP between nodes, by ureq: one kept-alive connection, short timeouts, no redirects.

use std::time::Duration;

use ureq::unversioned::resolver::DefaultResolver;

use super::socket::Connect;
use crate::engine::NODE_HEADER;
use crate::time::Unix;

/// Longest time for a whole request and its answer, in ms: a node that takes longer is out of sight.
const TIMEOUT_MS: u64 = 2_000;
/// Longest answer that is read, in bytes: [`super::STATES_PER_REQUEST_MAX`] records of the longest ids, and some.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Another node's HTTP address.
pub struct Remote {
    agent: ureq::Agent,
    /// `http://HOST:PORT`
    base: String,
    authorization: String,
    /// Which life of this node it is, for [`NODE_HEADER`].
    instance: u64,
}

/// What a node said.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) status: u16,
    /// Of [`NODE_HEADER`]: which life of the node, and its clock.
    pub(super) node: Option<(u64, Unix)>,
    pub(super) body: Vec<u8>,
}

impl Remote {
    /// `base` is `http://HOST:PORT`, `token` the service key's, `instance` tells this life of this node from others.
    pub fn new(base: String, token: &str, instance: u64) -> Remote {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_millis(TIMEOUT_MS)))
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .user_agent(concat!("greendot/", env!("CARGO_PKG_VERSION")))
            .build();
        Remote {
            agent: ureq::Agent::with_parts(config, Connect, DefaultResolver::default()),
            base,
            authorization: format!("Bearer {token}"),
            instance,
        }
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// `complete`: nothing else is to be told.
    pub(super) fn put(&self, path: &str, body: &[u8], complete: bool) -> Result<Said, ureq::Error> {
        let request = self.agent.put(format!("{}{path}", self.base));
        let request = request.header("Authorization", &self.authorization);
        let request = request.header(NODE_HEADER, sender(self.instance, complete));
        read(request.content_type("application/json").send(body)?)
    }

    pub(super) fn post(&self, path: &str, body: &[u8]) -> Result<Said, ureq::Error> {
        let request = self.agent.post(format!("{}{path}", self.base));
        read(request.content_type("application/json").send(body)?)
    }
}

fn read(mut answer: ureq::http::Response<ureq::Body>) -> Result<Said, ureq::Error> {
    let header = answer.headers().get(NODE_HEADER);
    let node = header.and_then(|value| parse_node(value.to_str().ok()?));
    // Read to the end, or the connection can not be used again.
    let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
    Ok(Said {
        status: answer.status().as_u16(),
        node,
        body,
    })
}

/// How a presence node names itself, and whether it holds something back.
pub fn sender(instance: u64, complete: bool) -> String {
    format!("{instance:016x}{}", if complete { "" } else { " more" })
}

fn parse_node(value: &str) -> Option<(u64, Unix)> {
    let (instance, ms) = value.split_once(' ')?;
    Some((u64::from_str_radix(instance, 16).ok()?, Unix::from_ms(ms.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_headers() {
        assert_eq!(parse_node("00ff 17"), Some((255, Unix::from_ms(17))));
        for bad in ["", "x 1", "1", "1 x", "1 -1"] {
            assert_eq!(parse_node(bad), None, "{bad}");
        }
    }
}
