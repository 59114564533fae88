//! From whom each partition is heard.
//!
//! Owns that it is one at a time, and so the order of what is told of a partition.

use std::sync::atomic::Ordering::Relaxed;

use tokio::time::Instant;

use super::{Board, Site, State};
use crate::fleet::partition::Partition;
use crate::fleet::traffic::{Event, Server};

/// Whether and how a partition is to be heard from a site.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::bridge) enum Wanted {
    Not,
    Plainly,
    /// Behind an `ASKING`: its slot is still another's.
    Asking,
}

impl Board {
    /// How each partition is to be heard from a site.
    pub(in crate::bridge) fn wanted_at(&self, site: Site) -> Vec<Wanted> {
        let state = self.state.lock();
        let mut all: Vec<Wanted> = state
            .homes
            .iter()
            .map(|home| match *home == Some(site) {
                true => Wanted::Plainly,
                false => Wanted::Not,
            })
            .collect();
        for (partition, importer) in &state.importers {
            let wanted = &mut all[partition.index()];
            if *importer == site {
                *wanted = Wanted::Asking;
            } else if state.heard_at[partition.index()] == Some(*importer) {
                // Until then its home may still be the one that publishes.
                *wanted = Wanted::Not;
            }
        }
        all
    }

    /// A partition's key has moved there ahead of its slot: what is published is heard there.
    pub(super) fn imports(&self, state: &mut State, site: Site, partition: Partition) {
        if state.importers.insert(partition, site) != Some(site)
            && let Some(seat) = state.sites.get(&site)
        {
            seat.wakes.subscriptions.notify_one();
        }
    }

    /// A site has answered for these keys: if it is their home, they are there.
    pub(super) fn has_not_moved(&self, site: Site, keys: impl Iterator<Item = Partition>) {
        let mut state = self.state.lock();
        if state.importers.is_empty() {
            return;
        }
        for partition in keys {
            if state.homes[partition.index()] == Some(site)
                && state.importers.remove(&partition).is_some()
            {
                state.wake_subscriptions();
            }
        }
    }

    pub(in crate::bridge) fn partition_of(&self, channel: &[u8]) -> Option<Partition> {
        self.by_channel.get(channel).copied()
    }

    pub(in crate::bridge) fn subscriptions_up(&self, site: Site) {
        let mut state = self.state.lock();
        if let Some(seat) = state.sites.get_mut(&site) {
            seat.is_subscribed = true;
            seat.well(&self.options);
        }
    }

    /// Nothing is heard from a site any more.
    pub(in crate::bridge) fn subscriptions_down(&self, site: Site) {
        let mut state = self.state.lock();
        if let Some(seat) = state.sites.get_mut(&site) {
            seat.is_subscribed = false;
        }
        self.deafen(&mut state, site);
    }

    pub(super) fn deafen(&self, state: &mut State, site: Site) {
        for partition in self.partitions.all() {
            if state.heard_at[partition.index()] == Some(site) {
                self.stop(state, partition);
            }
        }
    }

    pub(super) fn stop(&self, state: &mut State, partition: Partition) {
        state.heard_at[partition.index()] = None;
        self.tell(state, Event::Unsubscribed { partition });
    }

    /// A partition is heard from here on, and from nobody else. Says nothing if its home is
    /// another by now, or the one who imports it is heard.
    pub(in crate::bridge) fn subscribed(&self, site: Site, server: Server, partition: Partition) {
        let mut state = self.state.lock();
        let before = state.heard_at[partition.index()];
        let importer = state.importers.get(&partition).copied();
        let is_due = match importer {
            Some(importer) if importer == site => true,
            Some(importer) if before == Some(importer) => false,
            _ => state.homes[partition.index()] == Some(site),
        };
        if before == Some(site) || !is_due || !state.is_current(site, server) {
            return;
        }
        if before.is_some() {
            self.stop(&mut state, partition);
        }
        state.heard_at[partition.index()] = Some(site);
        self.tell(&mut state, Event::Subscribed { partition, server });
        if importer == Some(site) {
            state.wake_subscriptions();
        }
    }

    pub(in crate::bridge) fn unsubscribed(&self, site: Site, partition: Partition) {
        let mut state = self.state.lock();
        if state.heard_at[partition.index()] == Some(site) {
            self.stop(&mut state, partition);
        }
    }

    pub(in crate::bridge) fn published(
        &self,
        site: Site,
        server: Server,
        partition: Partition,
        message: Vec<u8>,
    ) {
        self.counted.messages.fetch_add(1, Relaxed);
        let mut state = self.state.lock();
        if state.heard_at[partition.index()] == Some(site) {
            let event = Event::Published {
                partition,
                server,
                message,
            };
            self.tell(&mut state, event);
        }
    }

    pub(in crate::bridge) fn heard(&self, site: Site, server: Server, began: Instant) {
        let mut state = self.state.lock();
        if !state.is_current(site, server) {
            return;
        }
        if let Some(seat) = state.sites.get_mut(&site) {
            let now = Instant::now();
            seat.answered_at = now;
            seat.is_silent = false;
            let ago_ms = (now - began).as_millis() as u64;
            self.tell(&mut state, Event::Heard { server, ago_ms });
        }
    }
}
