//! Who has which slots, and which data is at which address.
//!
//! Owns which view is believed. Never asks for one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Board, Seat, Site, State, Wakes};
use crate::bridge::about::{Identity, Kind, View};
use crate::fleet::partition::CLUSTER_SLOTS;
use crate::fleet::traffic::{Event, Server};
use crate::redis_url::Address;

/// The same fault that comes again within that time is no news.
const TOLD: Duration = Duration::from_secs(60);
/// Faults that are told in that time.
const TOLD_MAX: usize = 16;
/// Most servers that are remembered beside those that have slots.
const OTHERS_MAX: usize = 64;

impl Board {
    /// A connection to that data stands; returns whose it is from here on.
    pub(in crate::bridge) fn identify(&self, site: Site, identity: Identity) -> Option<Server> {
        let mut state = self.state.lock();
        if state.sites.get(&site)?.identity.as_ref() != Some(&identity) {
            self.forget(&mut state, site);
            let server = Server(state.next_server);
            state.next_server += 1;
            let seat = state.sites.get_mut(&site)?;
            seat.identity = Some(identity);
            seat.server = Some(server);
            seat.answered_at = Instant::now();
            seat.is_silent = false;
        }
        state.sites.get(&site)?.server
    }

    /// It is not that server any more: a replica, or not reached.
    pub(in crate::bridge) fn disown(&self, site: Site) {
        self.forget(&mut self.state.lock(), site);
    }

    fn forget(&self, state: &mut State, site: Site) {
        self.deafen(state, site);
        let Some(seat) = state.sites.get_mut(&site) else {
            return;
        };
        seat.identity = None;
        let server = seat.server.take();
        let was_silent = std::mem::replace(&mut seat.is_silent, true);
        // Connections that were to the other one are given up.
        seat.wakes.commands.notify_one();
        seat.wakes.subscriptions.notify_one();
        if let Some(server) = server.filter(|_| !was_silent) {
            self.tell(state, Event::Silent { server });
        }
    }

    pub(in crate::bridge) fn is_current(&self, site: Site, server: Server) -> bool {
        self.state.lock().is_current(site, server)
    }

    /// It still has that data.
    pub(in crate::bridge) fn is_same(&self, site: Site, replication: &str) -> bool {
        let state = self.state.lock();
        let identity = state
            .sites
            .get(&site)
            .and_then(|seat| seat.identity.as_ref());
        identity.is_some_and(|identity| identity.replication == replication)
    }

    /// Why a site is of no use for now.
    pub(in crate::bridge) fn fault(&self, site: Site, text: String) {
        let mut state = self.state.lock();
        if let Some(seat) = state.sites.get_mut(&site) {
            if seat.fault.as_ref() != Some(&text) {
                tracing::warn!(server = %seat.address, "Redis: {text}");
            }
            seat.fault = Some(text);
        }
    }

    /// Why nobody is known at all.
    pub(in crate::bridge) fn fault_of_all(&self, text: Option<String>) {
        let mut state = self.state.lock();
        if let Some(text) = &text
            && state.fault.as_ref() != Some(text)
        {
            // Where one server says otherwise than the next it comes and goes.
            state.told.retain(|(_, at)| at.elapsed() <= TOLD);
            if state.told.len() < TOLD_MAX && state.told.iter().all(|(told, _)| told != text) {
                tracing::warn!("Redis: {text}");
                state.told.push((text.clone(), Instant::now()));
            }
        }
        state.fault = text;
    }

    /// The map may be another one; ask there first.
    pub(in crate::bridge) fn moved(&self, hint: Option<Address>) {
        self.counted.moved.fetch_add(1, Relaxed);
        if hint.is_some() {
            self.state.lock().hint = hint;
        }
        self.look.notify_one();
    }

    pub(in crate::bridge) fn learn(&self, others: Vec<Address>) {
        let mut state = self.state.lock();
        for other in others {
            if !state.others.contains(&other) && !self.options.servers.addresses.contains(&other) {
                state.others.truncate(OTHERS_MAX - 1);
                state.others.insert(0, other);
                self.look.notify_one();
            }
        }
    }

    /// Everybody who may know more, the most promising first.
    pub(in crate::bridge) fn candidates(&self) -> Vec<Address> {
        let state = self.state.lock();
        let home = state.home().map(|seat| &seat.address);
        let seats = state.sites.values().map(|seat| &seat.address);
        let named = &self.options.servers.addresses;
        let mut all: Vec<Address> = Vec::new();
        for address in home
            .into_iter()
            .chain(named)
            .chain(seats)
            .chain(&state.others)
        {
            if !all.contains(address) {
                all.push(address.clone());
            }
        }
        all
    }

    pub(in crate::bridge) fn kind(&self) -> Option<Kind> {
        self.state.lock().kind
    }

    /// The single primary takes commands.
    pub(in crate::bridge) fn is_served(&self) -> bool {
        let state = self.state.lock();
        state.home().is_some_and(|seat| seat.takes_commands)
    }

    /// Who can be asked for the map: the hinted one, else the one after `last`.
    pub(in crate::bridge) fn whom_to_ask(&self, last: Option<Site>) -> Option<(Site, Address)> {
        let mut state = self.state.lock();
        let hint = state.hint.take();
        let up = state.sites.iter().filter(|(_, seat)| seat.takes_commands);
        let is_hinted = |seat: &Seat| Some(&seat.address) == hint.as_ref();
        let hinted = up.clone().find(|(_, seat)| is_hinted(seat));
        let next = || up.clone().find(|(site, _)| Some(**site) > last);
        let (site, seat) = hinted.or_else(next).or_else(|| up.clone().next())?;
        Some((*site, seat.address.clone()))
    }

    /// There is one primary, which has everything.
    pub(in crate::bridge) fn follow(self: &Arc<Self>, address: &Address) {
        let mut state = self.state.lock();
        state.kind = Some(Kind::Single);
        let ranges = vec![(0, CLUSTER_SLOTS - 1, address.clone())];
        self.lay_out(&mut state, ranges);
    }

    /// Takes a view of the cluster for true, unless it is an older one than the last.
    pub(in crate::bridge) fn take_view(self: &Arc<Self>, view: View) {
        /// An epoch that is lower than one known is that of a cluster made anew, if nobody knows
        /// the higher one for so long.
        const KEEPS_EPOCH: Duration = Duration::from_secs(10);
        let mut state = self.state.lock();
        state.kind = Some(Kind::Cluster);
        let now = Instant::now();
        let is_stale = state.viewed_at.is_some_and(|at| now - at < KEEPS_EPOCH)
            && (view.epoch < state.epoch || !view.is_ok);
        if is_stale {
            return;
        }
        state.epoch = view.epoch;
        // Who does not serve may be alone on its side of a cut: its view is better than none, and
        // worse than any other.
        state.viewed_at = view.is_ok.then_some(now);
        self.lay_out(&mut state, view.ranges);
    }

    pub(super) fn lay_out(self: &Arc<Self>, state: &mut State, ranges: Vec<(u16, u16, Address)>) {
        let ranges: Vec<_> = ranges
            .into_iter()
            .map(|(first, last, address)| (first, last, self.site(state, &address)))
            .collect();
        if ranges == state.ranges {
            return;
        }
        state.ranges = ranges;
        for partition in self.partitions.all() {
            let home = state.site_of(self.partitions.slot(partition));
            if state.homes[partition.index()] != home {
                state.homes[partition.index()] = home;
                state.importers.remove(&partition);
            }
        }
        let now = Instant::now();
        for (site, seat) in &mut state.sites {
            let has_slots = state.ranges.iter().any(|range| range.2 == *site);
            if has_slots && seat.idle_since.is_some() {
                // Nothing was asked of it so far.
                seat.answered_at = now;
            }
            seat.idle_since = (!has_slots).then(|| seat.idle_since.unwrap_or(now));
            seat.wakes.subscriptions.notify_one();
        }
    }

    /// The site of an address, made and dialled if there is none.
    pub(super) fn site(self: &Arc<Self>, state: &mut State, address: &Address) -> Site {
        let found = state
            .sites
            .iter()
            .find(|(_, seat)| seat.address == *address);
        if let Some((site, _)) = found {
            return *site;
        }
        let site = Site(state.next_site);
        state.next_site += 1;
        let wakes = Wakes {
            commands: Arc::new(Notify::new()),
            subscriptions: Arc::new(Notify::new()),
        };
        let tasks = crate::bridge::open(self, site, address, &wakes);
        let now = Instant::now();
        let seat = Seat {
            address: address.clone(),
            identity: None,
            server: None,
            queue: VecDeque::new(),
            queue_bytes: 0,
            takes_commands: false,
            is_subscribed: false,
            wakes,
            tasks,
            answered_at: now,
            is_silent: false,
            idle_since: Some(now),
            fault: None,
        };
        state.sites.insert(site, seat);
        site
    }
}
