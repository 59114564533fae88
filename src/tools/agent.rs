//! The HTTP client of the client commands: no proxy, no redirects, one limit for a whole answer.

use std::net::SocketAddr;
use std::time::Duration;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use crate::lookup;
use crate::trust::Trust;

/// A status is an answer, whichever it is. Whom `trust` names is believed, and nobody else.
pub(super) fn agent(limit: Duration, trust: Option<&Trust>) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(limit))
        .http_status_as_error(false)
        .max_redirects(0)
        .tls_config(Trust::of_ureq(trust))
        .proxy(None)
        .build();
    ureq::Agent::with_parts(config, DefaultConnector::default(), Names::default())
}

/// What the system knows, and `localhost` where it knows nothing.
#[derive(Default, Debug)]
struct Names {
    system: DefaultResolver,
}

impl Resolver for Names {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let Some(local) = uri.host().and_then(lookup::local) else {
            return self.system.resolve(uri, config, timeout);
        };
        let mut addresses = self.empty();
        let port = uri.port_u16().unwrap_or(80);
        for ip in local {
            addresses.push(SocketAddr::new(ip, port));
        }
        Ok(addresses)
    }
}
