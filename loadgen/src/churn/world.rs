//! One process's part of `churn`'s world: who is online, whose links break, and whether what its
//! watchers are told is true.
//!
//! Owns the plan of sessions, beats and reconnects, and the views. Judges by [`History`] alone.

mod fleet;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::SocketAddr;

use super::holds::Holds;
use super::roads::Roads;
use super::{ChurnArgs, Fault, Found};
use crate::asks::write_stream_request;
use crate::cause::Cause;
use crate::clock;
use crate::common::{Common, Share};
use crate::fleet::{Fleet, Handler};
use crate::gone::Gone;
use crate::graph::{Choice, Graph};
use crate::population::{Population, mix};
use crate::progress::ProgressLine;
use crate::record;
use crate::server_clock::ServerClock;
use crate::sse::{Event, Lasting};
use crate::truth::{self, History, Tolerance, Verdict};

/// Views compared with the truth in one go.
const VIEWS_PER_CHECK: usize = 4_096;
/// Numbers of these users start here, apart from those of the other scenarios.
const FIRST_USER: u64 = 2 << 32;
/// A beat may be on its way, or wait for its turn at the server, for this long, ms; a quarter of
/// `offline_after_ms` if that is less.
const FLIGHT_MS_MAX: u64 = 1_000;
/// Between two passes of the loop at most; a longer gap is a stall of ours, us.
const GAP_US_MAX: u64 = 50_000;
/// Who says goodbye stays away for so long, us: a server keeps times in steps of 16 ms, and of a
/// goodbye and a beat within one it can not say which was sent later (docs/PROTOCOL.md).
const AWAY_US_MIN: u64 = 32_000;
/// Wrong views of which more is told than their number.
const EVIDENCE_MAX: usize = 8;
/// A server's clock that says otherwise than it said by this much has been set, ms (it follows the
/// wall clock from 1 s on).
const CLOCK_SET_MS_MIN: u64 = 900;

/// What happens next, and to whom.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Act {
    Begin(u64),
    Beat(u64),
    Break(usize),
    Return(usize),
}

struct Contact {
    user: u64,
    since: u64,
    online: bool,
    /// A real-time node has said that it does not know; whatever was known before is no longer to
    /// be believed.
    unknown: bool,
    /// Delivery is at least once: this state may come once more. It came about while the stream was
    /// opened, or was told in the place of one that was skipped.
    again: bool,
    /// Found to disagree with the truth, and counted.
    wrong: bool,
}

struct Watcher {
    /// In order of `user`.
    contacts: Vec<Contact>,
    /// Its snapshot has come, so its view is to be believed.
    told: bool,
}

/// This process's share of users, watchers and the day.
pub(super) struct World<'a> {
    args: &'a ChurnArgs,
    population: Population,
    /// Number of the first of its users in the population.
    first_user: u64,
    histories: Vec<History>,
    session_end_us: Vec<u64>,
    watchers: Vec<Watcher>,
    acts: BinaryHeap<Reverse<(u64, Act)>>,
    rng: fastrand::Rng,
    tolerance: Tolerance,
    beat_interval_ms: u64,
    server_clock: ServerClock,
    /// When each watcher asked for its stream.
    asked_us: Vec<u64>,
    /// When this process was last seen at work.
    pulse_us: u64,
    /// When it was not: the end and the length of each stall, us. Of what went on meanwhile it
    /// cannot know when.
    stalls: Vec<(u64, u64)>,
    holds: Option<Holds>,
    /// Of a fleet.
    roads: Option<Roads>,
    fault: Option<Fault>,
    /// Until when watchers may not have been told, us.
    excused_until_us: u64,
    /// Since when that is so, Unix ms.
    troubled_from_ms: u64,
    checked: usize,
    start_us: u64,
    end_us: u64,
    pub(super) found: Found,
}

impl<'a> World<'a> {
    pub(super) fn new(common: &Common, args: &'a ChurnArgs, share: Share) -> World<'a> {
        let [first_user, end_user] = [share.first, share.first + share.count]
            .map(|at| args.users * at as u64 / args.watchers.max(1) as u64);
        let users = end_user - first_user;
        let graph = Graph {
            publishers: users,
            watches: args.contacts,
            choice: Choice::Zipf { exponent: 0.8 },
            seed: common.seed,
        };
        let watchers = (share.first as u64..(share.first + share.count) as u64)
            .map(|watcher| {
                let mut users = graph.watches_of(users + watcher);
                users.sort_unstable();
                let contact = |user| Contact {
                    user,
                    since: 0,
                    online: false,
                    unknown: false,
                    again: false,
                    wrong: false,
                };
                Watcher {
                    contacts: users.into_iter().map(contact).collect(),
                    told: false,
                }
            })
            .collect();
        World {
            args,
            population: Population::new(common.seed),
            first_user: FIRST_USER + first_user,
            histories: vec![History::default(); users as usize],
            session_end_us: vec![0; users as usize],
            watchers,
            acts: BinaryHeap::new(),
            rng: fastrand::Rng::with_seed(mix(common.seed ^ share.first as u64)),
            tolerance: Tolerance {
                offline_after_ms: 0,
                clock_ms: ServerClock::default().slack_ms(),
                flight_ms: FLIGHT_MS_MAX,
                settle_ms: args.settle.as_millis() as u64,
            },
            beat_interval_ms: 0,
            server_clock: ServerClock::default(),
            asked_us: vec![0; share.count],
            pulse_us: clock::now_us(),
            stalls: Vec::new(),
            holds: None,
            roads: None,
            fault: None,
            excused_until_us: 0,
            troubled_from_ms: 0,
            checked: 0,
            start_us: 0,
            end_us: 0,
            found: Found::default(),
        }
    }

    /// Notes that this process is at work at `now_us`.
    fn pulse(&mut self, now_us: u64) {
        let gap_us = now_us.saturating_sub(self.pulse_us);
        if gap_us > GAP_US_MAX {
            self.stalls.push((now_us, gap_us));
            self.found.stalls += 1;
        }
        self.pulse_us = now_us;
    }

    /// How long it was not at work after `from_us`, ms.
    fn stalled_ms(&self, from_us: u64) -> u64 {
        let late = self
            .stalls
            .iter()
            .rev()
            .take_while(|(end_us, _)| *end_us >= from_us);
        late.map(|(_, length_us)| length_us)
            .sum::<u64>()
            .div_ceil(1_000)
    }

    /// How long a state may have stood at `now_us` without having been told, ms: while we were
    /// stalled, and as long after, nobody could have told us.
    fn settle_ms(&self, now_us: u64) -> u64 {
        let settle_us = self.tolerance.settle_ms * 1_000;
        let recent = self.stalls.iter().rev();
        let recent =
            recent.take_while(|(end_us, length_us)| end_us + length_us + settle_us >= now_us);
        self.tolerance.settle_ms
            + recent
                .map(|(_, length_us)| length_us)
                .sum::<u64>()
                .div_ceil(1_000)
    }

    /// What the server's clock says at `now_us`, Unix ms.
    fn unix_ms(&self, now_us: u64) -> u64 {
        self.server_clock.unix_ms(now_us)
    }

    /// Opens all watchers and plans everybody's first session; `holds`: whether the server may be
    /// late on purpose.
    pub(super) fn set_up(&mut self, fleet: &mut Fleet, holds: Holds) -> io::Result<()> {
        self.holds = Some(holds);
        let limit_us = clock::now_us() + 30_000_000;
        for watcher in 0..self.watchers.len() {
            fleet.open(watcher)?;
            fleet.poll(clock::now_us() + 200, self)?;
        }
        let knows_all = |watcher: &Watcher| {
            watcher.told && !watcher.contacts.iter().any(|contact| contact.unknown)
        };
        while !self.watchers.iter().all(knows_all) {
            fleet.poll(clock::now_us() + 20_000, self)?;
            if clock::now_us() > limit_us || self.found.refused > 0 {
                return Err(io::Error::other(
                    "not every watcher was told hello and snapshot",
                ));
            }
        }
        if self
            .watchers
            .iter()
            .any(|watcher| watcher.contacts.iter().any(|contact| contact.online))
        {
            return Err(io::Error::other(
                "a user is online already; choose another --seed",
            ));
        }
        if self.beat_interval_ms == 0 || self.tolerance.offline_after_ms <= self.tolerance.settle_ms
        {
            return Err(io::Error::other(format!(
                "the server's hello names offline_after_ms {}; it must be above --settle",
                self.tolerance.offline_after_ms
            )));
        }
        self.tolerance.clock_ms = self.server_clock.slack_ms();
        self.start_us = clock::now_us();
        (self.pulse_us, self.stalls, self.found.stalls) = (self.start_us, Vec::new(), 0);
        self.end_us = self.start_us + (self.args.minutes * 60e6) as u64;
        self.fault = Fault::new(self.args, self.start_us);
        for user in 0..self.histories.len() as u64 {
            let at_us = self.start_us + self.gap_us(self.start_us);
            self.acts.push(Reverse((at_us, Act::Begin(user))));
        }
        for watcher in 0..self.watchers.len() {
            self.plan_break(watcher, self.start_us);
        }
        Ok(())
    }

    pub(super) fn live(
        &mut self,
        fleet: &mut Fleet,
        cause: &mut Cause,
        line: &ProgressLine,
    ) -> io::Result<()> {
        let mut next_check_us = self.start_us;
        loop {
            let now_us = clock::now_us();
            self.pulse(now_us);
            if now_us >= self.end_us {
                line.show("");
                return Ok(());
            }
            for _ in 0..64 {
                match self.acts.peek() {
                    Some(Reverse((due_us, act))) if *due_us <= now_us => {
                        let (due_us, act) = (*due_us, *act);
                        self.acts.pop();
                        self.found.lag.record(now_us - due_us);
                        self.act(act, due_us, fleet, cause)?;
                    }
                    _ => break,
                }
            }
            let due_us = self
                .acts
                .peek()
                .map_or(self.end_us, |Reverse((due_us, _))| *due_us);
            fleet.poll(due_us.min(next_check_us).min(self.end_us), self)?;
            if now_us >= next_check_us {
                next_check_us = now_us + 10_000;
                self.look_out(clock::now_us())?;
                // By the time after the poll: what it has told may be of later than before it.
                self.check_views(clock::now_us());
                let left_s = (self.end_us - now_us.min(self.end_us)) / 1_000_000;
                line.show(&format!(
                    "{} states told, {} wrong, {left_s} s to go",
                    self.found.states, self.found.stale
                ));
            }
        }
    }

    /// Does what was due at `due_us`. What follows from it is planned from then, so that falling
    /// behind makes nothing rarer.
    fn act(
        &mut self,
        act: Act,
        due_us: u64,
        fleet: &mut Fleet,
        cause: &mut Cause,
    ) -> io::Result<()> {
        let now_us = clock::now_us();
        match act {
            Act::Begin(user) => {
                // Log-normal with sigma 1: most sessions are short, a few very long.
                let mean_us = self.args.session.as_micros() as f64;
                let length_us = mean_us * (self.normal() - 0.5).exp();
                self.session_end_us[user as usize] = due_us + length_us as u64;
                self.beat(user, due_us, cause)
            }
            Act::Beat(user) if due_us >= self.session_end_us[user as usize] => {
                if self.rng.f64() < self.args.goodbyes {
                    self.send(user, false, due_us, cause)?;
                    self.found.goodbyes += 1;
                }
                let at_us = due_us + self.gap_us(due_us);
                self.acts.push(Reverse((at_us, Act::Begin(user))));
                Ok(())
            }
            Act::Beat(user) => self.beat(user, due_us, cause),
            Act::Break(watcher) => {
                if !fleet.is_closed(watcher) {
                    fleet.close(watcher, self.rng.bool());
                    self.watchers[watcher].told = false;
                    // Away for less time than `retry` says: the server must cope with eager ones.
                    let back_us = now_us + self.rng.u64(1_000..1_000_000);
                    self.acts.push(Reverse((back_us, Act::Return(watcher))));
                }
                Ok(())
            }
            Act::Return(watcher) => {
                self.found.reconnects += 1;
                self.plan_break(watcher, now_us);
                self.choose_node(watcher, fleet);
                fleet.open(watcher)
            }
        }
    }

    /// One beat, unless the link loses it; and the plan of the next.
    fn beat(&mut self, user: u64, due_us: u64, cause: &mut Cause) -> io::Result<()> {
        if self.rng.f64() < self.args.loss {
            self.found.lost += 1;
        } else {
            self.send(user, true, due_us, cause)?;
            self.found.beats += 1;
        }
        let next_us = self.next_beat_us(user, due_us);
        self.acts.push(Reverse((next_us, Act::Beat(user))));
        Ok(())
    }

    /// When the beat after the one that was due at `due_us` is, or the end of the session, if that
    /// is earlier.
    fn next_beat_us(&mut self, user: u64, due_us: u64) -> u64 {
        let end_us = self.session_end_us[user as usize];
        let next_us = due_us + self.beat_interval_ms * (900 + self.rng.u64(..200));
        next_us.min(end_us.max(due_us + 1))
    }

    fn send(&mut self, user: u64, online: bool, due_us: u64, cause: &mut Cause) -> io::Result<()> {
        let now_us = clock::now_us();
        let now_ms = self.unix_ms(now_us);
        let history = &mut self.histories[user as usize];
        // Strictly later than the last act, or a beat could not undo a goodbye.
        let at_ms = history.next_ms(now_ms);
        let ms = |us: u64| u32::try_from(us / 1_000).unwrap_or(u32::MAX);
        history.act(truth::Act {
            at_ms,
            goodbye: !online,
            late_ms: ms(now_us.saturating_sub(due_us)),
            took_ms: 0,
            doubtful: false,
        });
        match self.roads.is_some() {
            true => self.send_to_node(user, online, at_ms, cause)?,
            false => cause.change(&self.population, &[self.first_user + user], online, at_ms)?,
        }
        self.histories[user as usize].sent(ms(clock::now_us() - now_us));
        Ok(())
    }

    /// Time offline before the next session: exponential, shorter at noon than at midnight.
    fn gap_us(&mut self, now_us: u64) -> u64 {
        let day = self.end_us.saturating_sub(self.start_us).max(1) as f64;
        let hour = now_us.saturating_sub(self.start_us) as f64 / day;
        let crowd = 1.0 - 0.6 * (hour * std::f64::consts::TAU).cos();
        let share = self.args.online_share.clamp(0.01, 0.99);
        let mean_us = self.args.session.as_micros() as f64 * (1.0 - share) / share / crowd;
        AWAY_US_MIN + (-(1.0 - self.rng.f64()).ln() * mean_us) as u64
    }

    fn plan_break(&mut self, watcher: usize, now_us: u64) {
        let mean_us = self.args.link.as_micros() as f64;
        let at_us = now_us + (-(1.0 - self.rng.f64()).ln() * mean_us) as u64 + 500_000;
        self.acts.push(Reverse((at_us, Act::Break(watcher))));
    }

    /// A standard normal variate (Box and Muller).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.rng.f64()).ln()).sqrt();
        radius * (self.rng.f64() * std::f64::consts::TAU).cos()
    }

    /// Compares some views with the truth; all take their turn.
    fn check_views(&mut self, now_us: u64) {
        if self.is_troubled(now_us) {
            return;
        }
        let now_ms = self.unix_ms(now_us);
        let tolerance = Tolerance {
            settle_ms: self.settle_ms(now_us),
            ..self.tolerance
        };
        let settle_us = tolerance.settle_ms * 1_000;
        let may_hold = self
            .holds
            .as_ref()
            .is_some_and(|holds| holds.may_hold(now_us, settle_us));
        let mut budget = VIEWS_PER_CHECK;
        while budget > 0 && !self.watchers.is_empty() {
            self.checked = (self.checked + 1) % self.watchers.len();
            let watcher = &mut self.watchers[self.checked];
            budget = budget.saturating_sub(watcher.contacts.len().max(1));
            if !watcher.told {
                continue;
            }
            for contact in watcher
                .contacts
                .iter_mut()
                .filter(|contact| !contact.unknown)
            {
                let history = &self.histories[contact.user as usize];
                let is_put_off = may_hold && contact.online && history.ends_in_silence();
                let truth = history.steady(now_ms, &tolerance).filter(|_| !is_put_off);
                let wrong = truth.is_some_and(|online| online != contact.online);
                if wrong && !contact.wrong {
                    self.found.stale += 1;
                    if self.found.evidence.len() < EVIDENCE_MAX {
                        self.found.evidence.push(format!(
                            "{} ms after the start, watcher {} saw user {} {} since {} ms; its {}",
                            now_us.saturating_sub(self.start_us) / 1_000,
                            self.checked,
                            contact.user,
                            if contact.online { "online" } else { "offline" },
                            now_ms.saturating_sub(contact.since),
                            history.tail(now_ms),
                        ));
                    }
                }
                contact.wrong = wrong || (contact.wrong && truth.is_none());
            }
        }
    }

    /// What is known of a state that was told falsely.
    fn words_of(
        &self,
        watcher: usize,
        user: usize,
        online: bool,
        since: u64,
        now_us: u64,
    ) -> String {
        let now_ms = self.unix_ms(now_us);
        format!(
            "{} ms after the start, watcher {watcher} was told user {user} {} since {} ms; its {}",
            now_us.saturating_sub(self.start_us) / 1_000,
            if online { "online" } else { "offline" },
            now_ms.saturating_sub(since),
            self.histories[user].tail(now_ms),
        )
    }

    /// Keeps what is known of something that is wrong, if there is room.
    fn tell_evidence(&mut self, text: String) {
        if self.found.evidence.len() < EVIDENCE_MAX {
            self.found.evidence.push(text);
        }
    }

    /// Everybody falls silent; when the last has expired, every view must say so.
    pub(super) fn last_judgement(
        &mut self,
        fleet: &mut Fleet,
        nodes: &[SocketAddr],
        line: &ProgressLine,
    ) -> io::Result<u64> {
        if !self.is_troubled(clock::now_us()) {
            self.found.nodes_differ += self.compare_nodes(nodes, false)?;
            self.pulse(clock::now_us());
        } else {
            self.found.not_healed += 1;
        }
        for watcher in 0..self.watchers.len() {
            if fleet.is_closed(watcher) {
                self.choose_node(watcher, fleet);
                fleet.open(watcher)?;
            }
        }
        let settle_us = self.tolerance.settle_ms * 1_000;
        let grace_us = self.tolerance.offline_after_ms * 1_000 + 2 * settle_us;
        let mut until_us = clock::now_us() + grace_us;
        // A server that was stalled holds expiries for offline_after_ms at most.
        let limit_us = until_us + grace_us;
        loop {
            let now_us = clock::now_us();
            self.pulse(now_us);
            let may_hold = self
                .holds
                .as_ref()
                .is_some_and(|holds| holds.may_hold(now_us, settle_us));
            // What is told while we are stalled is read a moment later.
            let was_stalled = self.settle_ms(now_us) > self.tolerance.settle_ms;
            if may_hold || was_stalled {
                until_us = until_us.max(now_us + settle_us);
            }
            if now_us >= until_us.min(limit_us) {
                break;
            }
            fleet.poll(now_us + 10_000, self)?;
            line.show("waiting until the last user has expired");
        }
        line.show("");
        self.found.nodes_differ += self.compare_nodes(nodes, true)?;
        let wrong = |contact: &&Contact| contact.online || contact.unknown;
        let wrong = |watcher: &Watcher| watcher.contacts.iter().filter(wrong).count() as u64;
        let untold = self.watchers.iter().filter(|watcher| !watcher.told).count() as u64;
        Ok(untold + self.watchers.iter().map(wrong).sum::<u64>())
    }

    /// A state told to `watcher`: by itself, or in a snapshot, which may repeat what was known.
    fn tell(&mut self, watcher: usize, record: &record::Record<'_>, snapshot: bool) {
        let now_us = self.pulse_us;
        let now_ms = self.unix_ms(now_us);
        let (is_fleet, is_troubled) = (self.roads.is_some(), self.is_troubled(now_us));
        let number = self
            .population
            .number(record.user.as_bytes())
            .and_then(|number| number.checked_sub(self.first_user));
        let contacts = &mut self.watchers[watcher].contacts;
        let contact = number.and_then(|user| {
            contacts
                .binary_search_by_key(&user, |contact| contact.user)
                .ok()
        });
        let Some(contact) = contact.map(|at| &mut contacts[at]) else {
            self.found.unreadable += 1;
            return;
        };
        let Some(online) = record.online else {
            contact.unknown = true;
            return;
        };
        if record.stale {
            // It says that it may know no better: that is neither right nor wrong, and what follows
            // replaces it.
            contact.online = online;
            contact.since = record.since.unwrap_or(0);
            contact.unknown = true;
            return;
        }
        // What follows an unknown belongs to the snapshot that said so.
        let snapshot = std::mem::take(&mut contact.unknown) || snapshot;
        let Some(since) = record.since else {
            // Never seen: all there is to say of it is that it is offline. A snapshot replaces what
            // was known, and must not forget.
            self.found.unreadable += u64::from(online || !snapshot);
            let contradicts = u64::from(snapshot && contact.since > 0);
            match is_troubled {
                true => self.found.corrections += contradicts,
                false => self.found.contradictions += contradicts,
            }
            contact.online &= !snapshot;
            return;
        };
        let skipped = !snapshot && since > contact.since && online == contact.online;
        let again = skipped || (snapshot && since + self.tolerance.flight_ms >= now_ms);
        let again = std::mem::replace(&mut contact.again, again);
        // Another node may have heard a moment less.
        let lags = is_fleet && snapshot && contact.since + self.tolerance.flight_ms >= now_ms;
        let is_corrected = match since.cmp(&contact.since) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Equal => online != contact.online,
            std::cmp::Ordering::Greater => false,
        };
        // After a fault a node may have heard only now since when that is so.
        let learns = is_fleet
            && snapshot
            && self.found.was_troubled
            && online == contact.online
            && is_corrected;
        if is_corrected && (is_troubled || lags || learns) {
            self.found.corrections += u64::from(!lags);
            contact.since = since;
            contact.online = online;
            return;
        }
        match since.cmp(&contact.since) {
            std::cmp::Ordering::Less => return self.found.out_of_order += 1,
            std::cmp::Ordering::Equal if online != contact.online => {
                let user = contact.user as usize;
                contact.online = online;
                self.found.contradictions += 1;
                let words = self.words_of(watcher, user, online, since, now_us);
                return self.tell_evidence(format!("the opposite at the same time: {words}"));
            }
            std::cmp::Ordering::Equal if snapshot => return,
            std::cmp::Ordering::Equal if is_troubled => return,
            std::cmp::Ordering::Equal => return self.found.doubled += u64::from(!again),
            std::cmp::Ordering::Greater => {}
        }
        contact.since = since;
        contact.online = online;
        if self.start_us == 0 {
            // Left by an earlier run of the seed; of that nothing is known.
            return;
        }
        self.found.tell(now_us.saturating_sub(self.start_us));
        let user = contact.user as usize;
        let from_us = now_us
            .saturating_sub((now_ms.saturating_sub(since) + self.tolerance.flight_ms) * 1_000);
        let tolerance = Tolerance {
            flight_ms: self.tolerance.flight_ms + self.stalled_ms(from_us),
            ..self.tolerance
        };
        let after = |then_ms: u64| now_ms.saturating_sub(then_ms) * 1_000;
        let history = &self.histories[user];
        match history.judge(online, since, &tolerance) {
            // It is offline, but was not yet when it is said to have gone: that was lost.
            Verdict::FalseOffline if is_troubled && !history.lives_on(now_ms, &tolerance) => {
                self.found.untimely += 1;
            }
            Verdict::FalseOffline => {
                self.found.false_offline += 1;
                self.tell_evidence(self.words_of(watcher, user, online, since, now_us));
            }
            // It came while nobody could be told, or went.
            Verdict::FalseOnline
                if is_troubled && history.may_live(since, self.troubled_from_ms, &tolerance) =>
            {
                let went = !history.may_live(since, u64::MAX, &tolerance);
                self.found.untimely += u64::from(went);
            }
            Verdict::FalseOnline => {
                self.found.false_online += 1;
                self.tell_evidence(self.words_of(watcher, user, online, since, now_us));
            }
            // A snapshot tells late by nature: its stream was not there.
            _ if snapshot => {}
            Verdict::CameOnline(beat_ms) => self.found.online.record(after(beat_ms)),
            Verdict::Left(goodbye_ms) => self.found.goodbye.record(after(goodbye_ms)),
            Verdict::Expired(beat_ms) => self
                .found
                .late_offline
                .record(after(beat_ms + self.tolerance.offline_after_ms)),
        }
    }
}

impl Handler for World<'_> {
    fn request(&mut self, conn: usize, host: SocketAddr, lasting: Lasting, out: &mut Vec<u8>) {
        let users: Vec<u64> = self.watchers[conn]
            .contacts
            .iter()
            .map(|contact| self.first_user + contact.user)
            .collect();
        write_stream_request(
            &self.population,
            host,
            None,
            &users,
            lasting.last_id,
            false,
            out,
        );
    }

    fn connected(&mut self, conn: usize, now_us: u64) {
        self.asked_us[conn] = now_us;
    }

    fn event(&mut self, conn: usize, now_us: u64, event: &Event<'_>, _lasting: Lasting) {
        self.pulse(now_us.max(self.pulse_us));
        match event.name {
            b"presence" => match record::parse(&event.data) {
                Some(record) => self.tell(conn, &record, false),
                None => self.found.unreadable += 1,
            },
            b"snapshot" => {
                let readable =
                    record::parse_snapshot(&event.data, |record| self.tell(conn, &record, true));
                self.found.unreadable += u64::from(!readable);
                self.watchers[conn].told = true;
            }
            b"hello" => {
                let hello: serde_json::Value =
                    serde_json::from_slice(&event.data).unwrap_or_default();
                let ms = |name: &str| hello[name].as_u64().unwrap_or(0);
                self.beat_interval_ms = ms("beat_interval_ms");
                self.tolerance.offline_after_ms = ms("offline_after_ms");
                self.tolerance.flight_ms = FLIGHT_MS_MAX.min(self.tolerance.offline_after_ms / 4);
                let mut server_clock = self.server_clock;
                server_clock.hello(self.asked_us[conn], now_us, ms("server_time"));
                if self.start_us == 0 {
                    self.server_clock = server_clock;
                } else if server_clock.was_set_by_ms() >= CLOCK_SET_MS_MIN {
                    self.found.clock_set += 1;
                }
            }
            _ => {}
        }
    }

    fn gone(&mut self, conn: usize, _now_us: u64, why: Gone, lasting: Lasting) {
        self.watchers[conn].told = false;
        match why {
            Gone::Eof | Gone::Reset => self.found.ended += 1,
            _ => self.found.refused += 1,
        }
        let back_us = clock::now_us() + u64::from(lasting.retry_ms.max(100)) * 1_000;
        self.acts.push(Reverse((back_us, Act::Return(conn))));
    }
}

#[cfg(test)]
mod tests;
