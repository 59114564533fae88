//! Session tickets, as the library asks for them.
//!
//! Owns the clock and the randomness that they need. What a ticket is sealed with is identity's
//! (`auth/resumption.rs`): every node of the fleet makes the same keys, in every life.

use std::fmt;
use std::sync::Arc;

use rustls::server::ProducesTickets;

use crate::auth::{Keyrings, RESUMPTION_SECONDS, open_resumption, seal_resumption};
use crate::random;
use crate::time::Clock;

/// Makes tickets and takes them, by the fleet keys that count at that moment.
pub(super) struct Tickets {
    pub(super) keyrings: Arc<Keyrings>,
    pub(super) clock: Arc<Clock>,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets")
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        RESUMPTION_SECONDS
    }

    fn encrypt(&self, state: &[u8]) -> Option<Vec<u8>> {
        let mut salt = [0; 16];
        random::fill(&mut salt).ok()?;
        let keyring = self.keyrings.load();
        seal_resumption(state, keyring.fleet.signing(), self.clock.now().unix, salt)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        open_resumption(ticket, &self.keyrings.load().fleet, self.clock.now().unix)
    }
}
