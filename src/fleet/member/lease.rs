//! What a node agrees on with its fleet, and its lease.

use std::collections::BTreeSet;

use super::lanes::Verdict;
use super::settings::{Disagreement, Layout};
use super::{Asked, Flight, Local, Member, Peer, not_after};
use crate::fleet::Life;
use crate::fleet::calls::{Call, Renewal, renew};
use crate::fleet::partition::{LANES, LAYOUT};
use crate::fleet::replies::{Refusal, Renewed};
use crate::fleet::traffic::{Reply, Server, To};
use crate::planted::{self, Planted};
use crate::time::{Mono, Now, Unix};
use crate::wire::nodes::Nodes;

/// Time between two looks at the layout, which may have been lost.
const LAYOUT_MS: u64 = 30_000;
/// If nobody renewed in a lane for so many times the time between two renewals, it was Redis that
/// was away.
const SILENT_RENEWALS: u64 = 3;

impl<L: Local> Member<L> {
    pub(super) fn lease_due(&self) -> Mono {
        let mut due = match self.is_layout_asked || self.disagreement.is_some() {
            true => Mono::NEVER,
            false => self.layout_at,
        };
        if self.is_agreed {
            for lane in self.lanes.all.iter().filter(|lane| !lane.is_asked) {
                due = due.min(lane.next_at);
            }
        }
        due
    }

    pub(super) fn lease(&mut self, now: Now) {
        if !self.is_layout_asked && self.disagreement.is_none() && now.mono >= self.layout_at {
            self.is_layout_asked = true;
            let values = self.settings.layout.values().map(|value| value.to_string());
            let key = LAYOUT.as_bytes();
            let pairs = Layout::FIELDS.into_iter().zip(&values);
            let mut calls: Vec<Call> = pairs
                .map(|(field, value)| {
                    Call::plain([&b"HSETNX"[..], key, field.as_bytes(), value.as_bytes()])
                })
                .collect();
            let fields = Layout::FIELDS.iter().map(|field| field.as_bytes());
            calls.push(Call::plain([&b"HMGET"[..], key].into_iter().chain(fields)));
            self.fly(Asked::Layout, To::Key(LAYOUT), None, calls, now);
        }
        if !self.is_agreed || self.disagreement.is_some() {
            return;
        }
        for lane in 0..LANES.len() {
            if !self.lanes.all[lane].is_asked && now.mono >= self.lanes.all[lane].next_at {
                self.renew(lane, now);
            }
        }
        self.stand(now);
    }

    fn renew(&mut self, lane: usize, now: Now) {
        let to = To::Key(LANES[lane]);
        let state = &mut self.lanes.all[lane];
        state.is_asked = true;
        let next_at = now.mono.plus_ms(self.settings.renew_ms);
        state.next_at = self.ticks.not_after(next_at);
        let clock = state
            .server
            .and_then(|server| self.servers.clock(server, now.mono));
        let Some(clock) = clock else {
            self.fly(
                Asked::LaneTime(lane),
                to,
                None,
                vec![Call::plain([&b"TIME"[..]])],
                now,
            );
            return;
        };
        let renewal = Renewal {
            life: self.life,
            instance: self.instance,
            not_after: not_after(
                clock,
                self.settings.void_after_ms,
                Planted::RenewalsNeverLate,
            ),
            silence_ms: (SILENT_RENEWALS * self.settings.renew_ms) as u32,
            amnesty_ms: self.settings.layout.offline_after_ms,
            info: &self.settings.info,
        };
        let calls = vec![renew(LANES[lane], &renewal)];
        self.fly(Asked::Lane(lane), to, None, calls, now);
    }

    /// What the node says of itself from here on; at most [`INFO_BYTES_MAX`].
    ///
    /// [`INFO_BYTES_MAX`]: crate::fleet::calls::INFO_BYTES_MAX
    pub fn set_info(&mut self, info: &str, now: Now) {
        self.settings.info = info.into();
        for lane in &mut self.lanes.all {
            lane.next_at = now.mono;
        }
    }

    pub(super) fn layout_read(&mut self, replies: &[Reply], now: Now) {
        self.is_layout_asked = false;
        self.layout_at = now.mono.plus_ms(LAYOUT_MS);
        let Some(Reply::List(values)) = replies.last() else {
            self.counts.malformed += 1;
            self.layout_at = now.mono.plus_ms(1_000);
            return;
        };
        let ours = self.settings.layout.values();
        // The last of them says what the others mean.
        let fields = Layout::FIELDS.into_iter().zip(ours).zip(values).rev();
        for ((setting, ours), value) in fields {
            let Reply::Bytes(value) = value else {
                self.layout_at = now.mono.plus_ms(1_000);
                return;
            };
            let (here, fleet) = (
                ours.to_string(),
                String::from_utf8_lossy(value).into_owned(),
            );
            if here != fleet {
                self.disagreement = Some(Disagreement {
                    setting,
                    here,
                    fleet,
                });
                self.is_agreed = false;
                return;
            }
        }
        if !std::mem::replace(&mut self.is_agreed, true) {
            for at in 0..self.parts.len() {
                self.schedule(at, now.mono);
            }
        }
    }

    pub(super) fn lane_told(&mut self, lane: usize, server: Server, replies: &[Reply], now: Now) {
        self.lanes.all[lane].is_asked = false;
        self.lanes.all[lane].server = Some(server);
        match replies.first().and_then(time_of) {
            Some(said) => {
                self.servers.says(server, said, now.mono);
                self.lanes.all[lane].next_at = now.mono;
            }
            None => self.counts.malformed += 1,
        }
    }

    pub(super) fn renewed(
        &mut self,
        lane: usize,
        server: Server,
        flight: &Flight,
        replies: &[Reply],
        now: Now,
    ) {
        self.lanes.all[lane].is_asked = false;
        self.lanes.all[lane].server = Some(server);
        let view = match replies.first() {
            Some(Reply::List(elements)) => {
                let elements: Option<Vec<&[u8]>> = elements.iter().map(bytes_of).collect();
                elements.and_then(|elements| Renewed::parse(&elements).ok())
            }
            Some(Reply::Error(text)) => {
                match Refusal::parse(text) {
                    Some(Refusal::Late(said)) => {
                        self.counts.late += 1;
                        self.servers.says(server, said, now.mono);
                        self.lanes.all[lane].next_at = now.mono.plus_ms(50);
                    }
                    Some(Refusal::Taken) if flight.life == self.life => self.begin_life(now),
                    Some(Refusal::NoLibrary) => {
                        self.lanes.all[lane].next_at = now.mono.plus_ms(100);
                    }
                    _ => self.counts.refused += 1,
                }
                return;
            }
            _ => None,
        };
        let Some(view) = view else {
            self.counts.malformed += 1;
            return;
        };
        self.servers.says(server, view.now, now.mono);
        if flight.life != self.life {
            self.lanes.all[lane].next_at = now.mono;
            return;
        }
        self.lanes.renewed(lane, flight.sent, server, view);
        self.stand(now);
        self.judge(now);
    }

    /// Whether the lease still counts.
    pub(super) fn has_lease(&self, now: Mono) -> bool {
        let lease_ms = u64::from(self.settings.layout.offline_after_ms);
        self.lanes.holds(lease_ms, now)
    }

    fn stand(&mut self, now: Now) {
        let has_lease = self.has_lease(now.mono);
        if !has_lease {
            self.has_expired = self.has_joined;
            return;
        }
        if std::mem::take(&mut self.has_expired) {
            // It may have been fenced meanwhile, in some partitions or in all.
            for at in 0..self.parts.len() {
                self.parts[at].look_at = now.mono;
                self.schedule(at, now.mono);
            }
        }
        let is_ready =
            |part: &super::Part| part.hearing == super::Hearing::InStep && part.walk.is_none();
        if !self.has_joined || self.is_fenced {
            let is_ready = self.parts.iter().all(is_ready);
            self.has_joined |= is_ready;
            self.is_fenced &= !is_ready;
        }
    }

    /// A life that all lanes have lost can not be judged by them. If it lived it would be back in
    /// a second: it is dead after two leases. Whether one died of whom that was not known.
    fn miss(&mut self, lives: &[Life], dead_ms: u64, now: Now) -> bool {
        for peer in &self.peers {
            if peer.life != self.life && lives.binary_search(&peer.life).is_err() {
                self.vanished.entry(peer.life).or_insert(now.mono);
            }
        }
        self.vanished
            .retain(|life, _| lives.binary_search(life).is_err());
        if !self.lanes.are_all_seen(now.mono) || !self.lanes.holds(dead_ms / 2, now.mono) {
            return false;
        }
        let is_over = |since: &Mono| now.mono.ms_since(*since) > 2 * dead_ms;
        let over = self.vanished.iter().find(|(_, since)| is_over(since));
        let Some(life) = over.map(|(life, _)| *life) else {
            return false;
        };
        self.vanished.remove(&life);
        self.mourn(life, now.unix.minus_ms(2 * dead_ms), now.mono)
    }

    /// Who is alive, and who is dead.
    fn judge(&mut self, now: Now) {
        let lease_ms = u64::from(self.settings.layout.offline_after_ms);
        // What was heard just before a renewal that never came counts for as long as any beat. So
        // does what was lost because nobody knew that the node had died.
        let dead_ms = lease_ms + self.settings.renew_ms + self.settings.missed_ms;
        let amnesty = !planted::is(Planted::AmnestyIgnored);
        let is_awaited = |life| life != self.life && !self.dead.contains_key(&life);
        if amnesty && self.lanes.awaited(lease_ms, now.mono).any(is_awaited) {
            // Somebody may have come to a node that is not back yet.
            self.settle_until = now.mono.plus_ms(self.settle_ms());
        }
        let lives = self.lanes.lives(now.mono);
        let (mut peers, mut died) = (Vec::new(), self.miss(&lives, dead_ms, now));
        let missed = self.vanished.keys().copied();
        for life in lives
            .iter()
            .copied()
            .chain(missed)
            .collect::<BTreeSet<Life>>()
        {
            if life == self.life {
                let info = self.settings.info.clone();
                peers.push(Peer { life, info });
                continue;
            }
            match self.lanes.verdict(life, dead_ms, amnesty, now.mono) {
                Verdict::Alive => {
                    self.dead.remove(&life);
                    let info = self.lanes.info(life, now.mono).unwrap_or_default();
                    let info = info.into();
                    peers.push(Peer { life, info });
                }
                Verdict::Dead(last) if self.lanes.holds(lease_ms / 2, now.mono) => {
                    died |= self.mourn(life, last, now.mono);
                }
                // As before.
                Verdict::Dead(_) | Verdict::Unsure => {
                    peers.extend(self.peers.iter().find(|peer| peer.life == life).cloned());
                }
            }
        }
        self.bury(&lives, now.mono);
        if peers != self.peers {
            let names: Vec<String> = peers
                .iter()
                .map(|peer| format!("{:?}", peer.life))
                .collect();
            self.reapers = Nodes::new(names.iter().map(String::as_str));
            self.peers = peers;
            died |= !self.dead.is_empty();
        }
        if died {
            for at in 0..self.parts.len() {
                self.schedule(at, now.mono);
            }
        }
    }
}

/// What `TIME` answers.
pub(super) fn time_of(reply: &Reply) -> Option<Unix> {
    let Reply::List(parts) = reply else {
        return None;
    };
    let number = |at: usize| -> Option<u64> {
        std::str::from_utf8(bytes_of(parts.get(at)?)?)
            .ok()?
            .parse()
            .ok()
    };
    Some(Unix::from_ms(number(0)? * 1_000 + number(1)? / 1_000))
}

pub(super) fn bytes_of(reply: &Reply) -> Option<&[u8]> {
    match reply {
        Reply::Bytes(bytes) => Some(bytes),
        Reply::Nil | Reply::Number(_) | Reply::List(_) | Reply::Error(_) => None,
    }
}
