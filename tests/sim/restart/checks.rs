//! What must hold of restarts.

use greendot::engine::turn::Order;
use greendot::metrics::Counter;
use greendot::presence::State;
use greendot::slot::Slot;
use greendot::time::Unix;
use greendot::wire::User;

use super::{Restarts, WATCHED};
use crate::store::EPOCH_MS;

impl Restarts {
    fn slot(&self, user: &str) -> Option<Slot> {
        self.presence()
            .lookup(User::parse(user.as_bytes()).expect("a legal name"))
    }

    fn state(&self, user: &str) -> Option<State> {
        self.slot(user)
            .map(|slot| self.presence().state(slot, self.now()))
    }

    /// Nobody who obeys is published offline.
    pub(super) fn check_offline(&mut self) {
        let mut offline = 0;
        for shard in &mut self.shards {
            let driver = shard.driver.as_mut().expect("not in its turn");
            offline += driver
                .engine()
                .counters()
                .counter(Counter::TransitionsOffline);
        }
        if std::mem::replace(&mut self.offline_seen, offline) == offline {
            return;
        }
        // A start after an outage has taken everybody for gone, at once.
        let booted_at = Some(Unix::from_ms(EPOCH_MS + self.booted_at));
        for (at, client) in self
            .clients
            .iter()
            .enumerate()
            .filter(|(_, client)| client.obeys)
        {
            let user = format!("u{at}");
            let state = self.state(&user);
            if state.is_some_and(|state| state.since > booted_at && !state.status.is_online()) {
                let due = client.due;
                self.fail(&format!(
                    "{user} obeys, is back at {due}, and is told {state:?}"
                ));
            }
        }
    }

    /// After an outage nobody is online, those who were are so since now, and their last beat is
    /// what it was.
    pub(super) fn check_outage(&mut self) {
        self.outcome.outages += 1;
        let now = self.now().unix;
        if self.presence().online() > 0 {
            self.fail("somebody is online after an outage, without a sign of life");
        }
        for (at, client) in self
            .clients
            .iter()
            .enumerate()
            .filter(|(_, client)| client.obeys)
        {
            let Some(state) = self.state(&format!("u{at}")) else {
                continue;
            };
            let heard_before = state.last_active.is_some_and(|at| at < now);
            if state.since != Some(now) || !heard_before {
                self.fail(&format!("{} after an outage: {state:?}", client.query));
            }
        }
    }

    /// All who obey are online, nobody else is, and the watcher knows.
    pub(super) fn check_all(&mut self) {
        for at in 0..self.clients.len() - 1 {
            let (user, obeys) = (format!("u{at}"), self.clients[at].obeys);
            let state = self.state(&user);
            let online = state.is_some_and(|state| state.status.is_online());
            if online != obeys {
                self.fail(&format!("{user} obeys: {obeys}, and is {state:?}"));
            }
            let view = self.views.get(&user).map(|view| view.online);
            if at < WATCHED && view != Some(online) {
                self.fail(&format!(
                    "{user} is {state:?}, and the watcher believes {view:?}"
                ));
            }
        }
    }

    /// While it drains whoever connects is accepted.
    pub(super) fn probe(&self, order: Order) {
        if order == Order::Drain && !self.shards.iter().all(|shard| shard.listens) {
            self.fail("a listener is gone while the node drains");
        }
    }
}
