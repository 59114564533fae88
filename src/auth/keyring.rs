//! All keys of a node, as of one reading of its files.
//!
//! Owns what is read anew together, and what is told by a hash alone. Reads no file: `node` does.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::identity::bearer;
use super::services::is_service_key;
use super::session;
use super::{Identity, Service, ServiceKeys, WebhookSecrets};
use crate::time::Unix;
use crate::wire::beat;

/// By what a node knows who speaks to it.
#[derive(Debug)]
pub struct Keyring {
    /// They sign beats, and nodes prove themselves by them.
    pub fleet: beat::Keys,
    /// How users are known; none: nobody is asked who they are.
    pub identity: Option<Identity>,
    pub services: ServiceKeys,
    /// By what each webhook's messages are signed; one for all, where there is one.
    pub webhooks: Vec<WebhookSecrets>,
}

/// What a request's `Authorization`, or the dashboard's cookie, proves by a hash alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Proof {
    /// Nothing of the kind: a user's token, perhaps.
    Other,
    /// It is a node of the fleet.
    Node,
    Service(Service),
    /// It is a service's, by a session that ends then: a browser shows it by itself, whoever's page
    /// asks.
    Session(Service, Unix),
    /// It means to be a service, and its key is none that is taken.
    UnknownKey,
}

impl Proof {
    /// Whether it is shown by an operator's program, be it a node or a service.
    pub fn is_trusted(&self) -> bool {
        matches!(self, Proof::Node | Proof::Service(_))
    }
}

/// Where all threads of a node find the keyring that counts. Whoever holds one goes on with it
/// until the end of what it is at.
pub type Keyrings = ArcSwap<Keyring>;

impl Keyring {
    /// That of a node that asks nobody.
    pub fn of_fleet(fleet: beat::Keys) -> Keyring {
        Keyring {
            fleet,
            identity: None,
            services: ServiceKeys::default(),
            webhooks: Vec::new(),
        }
    }

    /// By what the messages of the webhook at this index are signed; None: it has no secret.
    pub fn signs_webhook(&self, index: usize) -> Option<&WebhookSecrets> {
        self.webhooks.get(index).or(self.webhooks.last())
    }

    /// What a request of this header proves. A service key means nothing where none is configured.
    pub fn proof(&self, authorization: Option<&str>) -> Proof {
        let Some(header) = authorization else {
            return Proof::Other;
        };
        if self.fleet.authorises(header) {
            return Proof::Node;
        }
        match bearer(header).filter(|token| is_service_key(token)) {
            Some(_) if self.services.is_empty() => Proof::Other,
            Some(key) => match self.services.find(key) {
                Some(service) => Proof::Service(service.clone()),
                None => Proof::UnknownKey,
            },
            None => Proof::Other,
        }
    }

    /// Who signs in with this service key, and the session's text. None: no such key is known.
    pub fn sign_in(&self, key: &str, now: Unix) -> Option<(&Service, String)> {
        let service = self.services.find(key)?;
        let session = session::seal(service, self.fleet.signing(), now);
        Some((service, session))
    }

    /// What a session proves.
    pub fn session(&self, text: &str, now: Unix) -> Proof {
        match session::open(text, &self.fleet, &self.services, now) {
            Some((service, ends)) => Proof::Session(service, ends),
            None => Proof::Other,
        }
    }

    /// To share.
    pub fn shared(self) -> Arc<Keyrings> {
        Arc::new(ArcSwap::from_pointee(self))
    }
}
