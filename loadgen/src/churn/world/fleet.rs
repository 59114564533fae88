//! The part of a day that only a fleet has: who is at which node, what fails, and whether all nodes
//! say the same in the end.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::{World, truth};
use crate::asks::push_users;
use crate::cause::{Cause, Sent};
use crate::churn::holds::Health;
use crate::churn::roads::Roads;
use crate::clock;
use crate::fleet::Fleet;
use crate::http::Client;
use crate::record;

/// The day goes on for that long after the last excuse, us: so long everything must be true.
const CALM_US: u64 = 10_000_000;
/// A fleet that has not healed after so many times `--heal` is judged as one that has.
const HEALS_MAX: u64 = 4;
/// A node that is not ready, or gone, is noticed within that, ms.
const NOTICED_MS: u64 = 1_500;
/// Users that one question asks about (`query_users_max`).
const USERS_A_QUESTION: usize = 500;
/// So often a node is asked about somebody before its answer must be worth something.
const QUESTIONS_MAX: usize = 5;
/// A node that does not answer for that long has failed.
const ANSWER: Duration = Duration::from_secs(5);

/// What a node says of a user: whether it is online, and since when.
type Said = (Option<bool>, Option<u64>);

impl World<'_> {
    /// Looks at what has failed by now: what is excused, and until when.
    ///
    /// Errors: the fault could not be caused.
    pub(super) fn look_out(&mut self, now_us: u64) -> io::Result<()> {
        let was_troubled = self.is_troubled(now_us);
        self.look_at_faults(now_us)?;
        if self.is_troubled(now_us) && !was_troubled {
            // It was noticed a moment after it began.
            self.troubled_from_ms = self.unix_ms(now_us).saturating_sub(NOTICED_MS);
        }
        Ok(())
    }

    fn look_at_faults(&mut self, now_us: u64) -> io::Result<()> {
        if let Some(fault) = &mut self.fault {
            fault.step(now_us)?;
            if let Some(until_us) = fault.excuses_until_us(now_us) {
                self.excused_until_us = self.excused_until_us.max(until_us);
                // What is excused for other reasons as well, but not for ever.
                let limit_us = until_us + HEALS_MAX * self.args.heal.as_micros() as u64;
                let until_us = self.excused_until_us.clamp(until_us, limit_us);
                self.end_us = self.end_us.max(until_us + CALM_US);
            } else {
                // It is not to be missed, however short the day is.
                self.end_us = self.end_us.max(now_us + CALM_US);
            }
        }
        let (Some(holds), Some(roads)) = (&self.holds, &mut self.roads) else {
            return Ok(());
        };
        for (user, at_ms) in roads.lost(holds) {
            self.histories[user as usize].doubt(at_ms);
        }
        let heal_us = self.args.heal.as_micros() as u64;
        let lease_us = self.tolerance.offline_after_ms * 1_000;
        // Whom a dead node had, the others let go when its lease has run out.
        let deaths = (0..roads.nodes()).filter_map(|node| holds.death(node));
        let deaths = deaths.map(|death| death.found_us + lease_us + heal_us);
        let amiss_us = Some(holds.amiss_us()).filter(|&us| us > 0);
        let amiss = amiss_us.map(|us| us + heal_us);
        let until_us = deaths.chain(amiss).max().unwrap_or(0);
        self.excused_until_us = self.excused_until_us.max(until_us);
        self.found.was_troubled |= self.excused_until_us > 0;
        Ok(())
    }

    /// Whether something fails or has just been mended, so that watchers may not have been told.
    pub(super) fn is_troubled(&self, now_us: u64) -> bool {
        now_us < self.excused_until_us
    }

    /// Sends what `user` does to the node where it is, or to another.
    pub(super) fn send_to_node(
        &mut self,
        user: u64,
        online: bool,
        at_ms: u64,
        cause: &mut Cause,
    ) -> io::Result<()> {
        let chance = self.rng.usize(..);
        let roams = self.rng.f64() < self.args.roam;
        let (Some(holds), Some(roads)) = (&self.holds, &mut self.roads) else {
            return Ok(());
        };
        let count = roads.nodes();
        let mut node = roads.at(user);
        if roams && holds.health(chance % count) == Health::Ready {
            node = chance % count;
        }
        node = holds.choose(node, chance);
        for attempt in 0..2 * count {
            let told = cause.tell(
                node,
                &self.population,
                self.first_user + user,
                online,
                at_ms,
            )?;
            if told == Sent::Away {
                if roads.sent(node, user, (at_ms, online), clock::now_us()) {
                    self.histories[user as usize].doubt(at_ms);
                }
                self.found.moves = roads.moves;
                return Ok(());
            }
            // What is refused may be an earlier datagram: the next word is of this one.
            if attempt % 2 == 1 {
                node = (node + 1) % count;
            }
        }
        self.histories[user as usize].doubt(at_ms);
        Ok(())
    }

    /// Chooses the node that a watcher comes back to.
    pub(super) fn choose_node(&mut self, watcher: usize, fleet: &mut Fleet) {
        let (Some(holds), Some(roads)) = (&self.holds, &self.roads) else {
            return;
        };
        let chance = self.rng.usize(..);
        let roams = self.rng.f64() < self.args.roam;
        let other = chance % roads.nodes();
        let at = match roams && holds.health(other) == Health::Ready {
            true => other,
            false => fleet.at(watcher),
        };
        fleet.move_to(watcher, holds.choose(at, chance));
    }

    /// Asks all nodes that answer about everybody: how many users any of them is wrong about.
    /// `all_gone`: everybody has long been silent.
    ///
    /// Errors: a node that is ready does not answer.
    pub(super) fn compare_nodes(
        &mut self,
        nodes: &[SocketAddr],
        all_gone: bool,
    ) -> io::Result<u64> {
        let (Some(holds), Some(_)) = (&self.holds, &self.roads) else {
            return Ok(0);
        };
        let ready = (0..nodes.len()).filter(|&node| holds.health(node) == Health::Ready);
        let ready: Vec<SocketAddr> = ready.map(|node| nodes[node]).collect();
        let began_us = clock::now_us();
        let said = ready.iter().map(|node| self.ask_about_all(*node));
        let said = said.collect::<io::Result<Vec<_>>>()?;
        // What has been so since before they were asked.
        let ended_ms = self.unix_ms(clock::now_us());
        let took_ms = (clock::now_us() - began_us).div_ceil(1_000);
        let tolerance = truth::Tolerance {
            settle_ms: self.settle_ms(clock::now_us()) + took_ms,
            ..self.tolerance
        };
        let mut differ = 0;
        for user in 0..self.histories.len() as u64 {
            let truth = match all_gone {
                true => Some(false),
                false => self.histories[user as usize].steady(ended_ms, &tolerance),
            };
            let Some(truth) = truth else { continue };
            let views: Vec<Said> = said
                .iter()
                .map(|all| all.get(&user).copied().unwrap_or_default())
                .collect();
            let is_right = views.iter().all(|said| said.0 == Some(truth));
            let agree = views.windows(2).all(|pair| pair[0].1 == pair[1].1);
            self.found.since_differs += u64::from(!agree);
            differ += u64::from(!is_right);
            if !is_right || !agree {
                self.tell_evidence(format!(
                    "of user {user}, who is {}, nodes say {views:?}; its {}",
                    if truth { "online" } else { "offline" },
                    self.histories[user as usize].tail(ended_ms),
                ));
            }
        }
        Ok(differ)
    }

    /// What a node says of everybody. Of whom it says that it may know no better it is asked again.
    fn ask_about_all(&self, node: SocketAddr) -> io::Result<HashMap<u64, Said>> {
        let mut said = HashMap::new();
        let mut left: Vec<u64> = (0..self.histories.len() as u64).collect();
        for _ in 0..QUESTIONS_MAX {
            let (known, stale) = self.ask_about(node, &left)?;
            said.extend(known);
            left = stale;
            if left.is_empty() {
                break;
            }
        }
        Ok(said)
    }

    /// What a node says of these users, and of whom it may know no better.
    fn ask_about(
        &self,
        node: SocketAddr,
        users: &[u64],
    ) -> io::Result<(HashMap<u64, Said>, Vec<u64>)> {
        let mut client = Client::connect_within(node, ANSWER)?;
        let (mut said, mut stale) = (HashMap::new(), Vec::new());
        for some in users.chunks(USERS_A_QUESTION) {
            let users = some.iter().map(|user| self.first_user + user);
            let mut body = b"{\"users\":".to_vec();
            push_users(&self.population, users, &mut body);
            body.push(b'}');
            let answer = client.call("POST", "/v1/presence/query", &body)?;
            let is_read = record::parse_snapshot(&answer.body, |record| {
                let number = self.population.number(record.user.as_bytes());
                let user = number.and_then(|number| number.checked_sub(self.first_user));
                match user {
                    Some(user) if record.stale => stale.push(user),
                    // Who has never been seen has no time.
                    Some(user) => drop(said.insert(user, (record.online, record.since))),
                    None => {}
                }
            });
            if answer.status != 200 || !is_read {
                return Err(io::Error::other(format!(
                    "{node} answered {} to a question about {} users",
                    answer.status,
                    some.len()
                )));
            }
        }
        Ok((said, stale))
    }

    /// Everybody at the nodes of a fleet, in turn.
    pub(in crate::churn) fn spread(&mut self, nodes: usize) {
        self.roads = Some(Roads::new(nodes, self.histories.len()));
    }
}
