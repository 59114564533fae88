//! What is taken back for lives that are dead, and of this one for whom nobody here has a slot.

use std::collections::{BTreeMap, VecDeque};

use super::lease::bytes_of;
use super::part::{Act, Reap, Said};
use super::{Asked, Local, Member, Standing, not_after};
use crate::fleet::calls::{Call, Caller, Mode, Vouch, fence};
use crate::fleet::flags::UserFlags;
use crate::fleet::held::{Gone, Here, Kinds};
use crate::fleet::replies::{Fenced, Outcome, Vouched};
use crate::fleet::traffic::{Reply, Server, To};
use crate::fleet::{CALL_USERS_MAX, Life};
use crate::planted::{self, Planted};
use crate::time::{Mono, Now, Unix};
use crate::wire::{User, UserBuf};

/// A reaper that was stopped by something begins again after that.
const AGAIN_MS: u64 = 1_000;
/// A lane forgets a life after that.
const HOUR_MS: u64 = 3_600_000;
/// Dead lives that are remembered.
const DEAD_MAX: usize = 1_024;
const ALL: Kinds = Kinds {
    beat: Some(Unix::from_ms(0)),
    stream: true,
    open: true,
    unattended: false,
};

/// A life that is dead.
#[derive(Debug)]
pub(super) struct Dead {
    last_renewed: Unix,
    /// Since when that is known here.
    since: Mono,
    /// A bit for each partition that has nothing of it any more.
    done: Vec<u64>,
}

impl Dead {
    fn is_done(&self, at: usize) -> bool {
        self.done[at / 64] >> (at % 64) & 1 != 0
    }
}

impl<L: Local> Member<L> {
    /// A life is dead. False: that was known.
    pub(super) fn mourn(&mut self, life: Life, last_renewed: Unix, now: Mono) -> bool {
        if self.dead.contains_key(&life) || self.dead.len() >= DEAD_MAX {
            return false;
        }
        let done = vec![0; self.parts.len().div_ceil(64)];
        let dead = Dead {
            last_renewed,
            since: now,
            done,
        };
        self.dead.insert(life, dead).is_none()
    }

    /// Forgets the dead whom no lane has any more. By then all partitions have seen to them.
    pub(super) fn bury(&mut self, lives: &[Life], now: Mono) {
        self.dead.retain(|life, dead| {
            lives.binary_search(life).is_ok() || now.ms_since(dead.since) <= HOUR_MS
        });
    }

    /// What was done in a partition may be undone: its server has changed.
    pub(super) fn reap_anew(&mut self, at: usize) {
        for dead in self.dead.values_mut() {
            dead.done[at / 64] &= !(1 << (at % 64));
        }
        self.parts[at].reap = None;
    }

    fn is_reaper(&self, at: usize) -> bool {
        let key = (at as u32).to_be_bytes();
        let reaper = self.peers.get(self.reapers.of(&key));
        reaper.is_some_and(|peer| peer.life == self.life)
    }

    pub(super) fn reap(&mut self, at: usize, server: Server, now: Now) {
        if self.parts[at].reap.is_none() {
            if self.dead.is_empty() || now.mono < self.parts[at].reap_at {
                return;
            }
            let next = self.dead.iter().find(|(_, dead)| !dead.is_done(at));
            let Some((&life, dead)) = next.filter(|_| self.is_reaper(at)) else {
                return;
            };
            self.parts[at].reap = Some(Reap {
                life,
                last_active: dead.last_renewed,
                is_fenced: false,
                cursor: b"0".to_vec(),
                found: VecDeque::new(),
                is_through: false,
                count: 0,
                is_asked: false,
                next_at: now.mono,
            });
        }
        let is_due = |reap: &Reap| !reap.is_asked && now.mono >= reap.next_at;
        if !self.parts[at].reap.as_ref().is_some_and(is_due) {
            return;
        }
        let unsettled = planted::is(Planted::ReapUnsettled);
        let may = self.may_take_back(at, now.mono) || unsettled;
        let is_member = self.standing(now) == Standing::Member || unsettled;
        let Some(reap) = self.parts[at].reap.as_mut() else {
            return;
        };
        if !may || !is_member || reap.life != self.life && !self.dead.contains_key(&reap.life) {
            self.parts[at].reap = None;
            self.parts[at].reap_at = now.mono.plus_ms(AGAIN_MS);
            self.schedule(at, now.mono.plus_ms(AGAIN_MS));
            return;
        }
        if !reap.is_fenced && !planted::is(Planted::FenceSkipped) {
            return self.fence(at, server, now);
        }
        if !reap.found.is_empty() {
            return self.reap_some(at, server, now);
        }
        let call = [
            &b"HSCAN"[..],
            self.partitions.hot_key(self.parts[at].id).as_bytes(),
            &self.parts[at]
                .reap
                .as_ref()
                .map_or(vec![], |reap| reap.cursor.clone()),
            b"COUNT",
            b"200",
        ]
        .map(<[u8]>::to_vec);
        let call = Call::plain(call.iter().map(Vec::as_slice));
        let to = To::Partition(self.parts[at].id);
        let is_asked = self.send(Asked::Scan(at), to, server, vec![call], now);
        self.reap_asked(at, is_asked, now);
    }

    fn reap_asked(&mut self, at: usize, is_asked: bool, now: Now) {
        let part = &mut self.parts[at];
        let server = part.server;
        if let Some(reap) = &mut part.reap {
            let waits = server.is_some_and(|server| self.servers.is_waiting(server, at));
            reap.is_asked = is_asked;
            reap.next_at = now.mono.plus_ms(if is_asked || waits { 0 } else { 10 });
        }
    }

    fn fence(&mut self, at: usize, server: Server, now: Now) {
        let Some(life) = self.parts[at].reap.as_ref().map(|reap| reap.life) else {
            return;
        };
        let Some(clock) = self.servers.clock(server, now.mono) else {
            self.parts[at].look_at = now.mono;
            self.reap_asked(at, false, now);
            return;
        };
        let void_after_ms = self.settings.void_after_ms;
        let not_after = not_after(clock, void_after_ms, Planted::FencesNeverLate);
        let birth = self.new_birth();
        let call = fence(&self.hot_key(at), life, birth, not_after);
        let to = To::Partition(self.parts[at].id);
        let is_asked = self.send(Asked::Fence(at), to, server, vec![call], now);
        self.reap_asked(at, is_asked, now);
    }

    pub(super) fn fenced(&mut self, at: usize, server: Server, replies: &[Reply], now: Now) {
        let part = &mut self.parts[at];
        let fenced = replies.last().and_then(bytes_of).map(Fenced::parse);
        let Some(reap) = part.reap.as_mut().filter(|_| part.server == Some(server)) else {
            return;
        };
        reap.is_asked = false;
        let Some(Ok(fenced)) = fenced else {
            return self.stop_reaping(at, now);
        };
        self.counts.fences += 1;
        reap.is_fenced = true;
        reap.count = fenced.count;
        if fenced.count == 0 {
            self.reap_done(at, now);
        }
    }

    fn stop_reaping(&mut self, at: usize, now: Now) {
        self.parts[at].reap = None;
        self.parts[at].reap_at = now.mono.plus_ms(AGAIN_MS);
        self.schedule(at, now.mono.plus_ms(AGAIN_MS));
    }

    fn reap_done(&mut self, at: usize, now: Now) {
        let life = self.parts[at].reap.take().map(|reap| reap.life);
        if let Some(dead) = life.and_then(|life| self.dead.get_mut(&life)) {
            dead.done[at / 64] |= 1 << (at % 64);
        }
        self.schedule(at, now.mono);
    }

    pub(super) fn scanned(&mut self, at: usize, replies: &[Reply], now: Now) {
        let Some(reap) = self.parts[at].reap.as_mut() else {
            return;
        };
        reap.is_asked = false;
        let Some(Reply::List(scanned)) = replies.first() else {
            return self.stop_reaping(at, now);
        };
        let [Reply::Bytes(cursor), Reply::List(fields)] = &scanned[..] else {
            self.counts.malformed += 1;
            return self.stop_reaping(at, now);
        };
        reap.cursor.clone_from(cursor);
        reap.is_through = cursor == b"0";
        for pair in fields.as_chunks::<2>().0 {
            let [Some(field), Some(value)] = [&pair[0], &pair[1]].map(bytes_of) else {
                continue;
            };
            // What is nobody's field begins with NUL, which no user does.
            let (Ok(user), Ok(here)) = (User::parse(field), Here::parse(value)) else {
                continue;
            };
            let is_stray = reap.life != self.life || self.local.find(user).is_none();
            if is_stray && here.claimed_by(reap.life).is_some() {
                reap.found.push_back((user.into(), here.flags));
            }
        }
        let is_through = reap.is_through && reap.found.is_empty();
        if reap.life == self.life {
            let strays: Vec<_> = reap.found.drain(..).collect();
            let is_through = reap.is_through;
            for (user, _) in strays {
                self.parts[at].acts.push_back(Act {
                    user,
                    what: Said::Stray,
                    said_at: now.mono,
                    ticket: None,
                    is_in_all: false,
                });
            }
            if is_through {
                self.parts[at].reap = None;
            }
        } else if is_through {
            self.look_through_again(at, now);
        }
    }

    /// All was looked through. If the life has users still, it is begun again.
    fn look_through_again(&mut self, at: usize, now: Now) {
        let Some(reap) = self.parts[at].reap.as_mut() else {
            return;
        };
        if reap.count == 0 {
            return self.reap_done(at, now);
        }
        // Once more from the fence on, which says how many there are.
        self.stop_reaping(at, now);
    }

    fn reap_some(&mut self, at: usize, server: Server, now: Now) {
        self.fill_tokens(now.mono);
        let Some(clock) = self.servers.clock(server, now.mono) else {
            self.parts[at].look_at = now.mono;
            self.reap_asked(at, false, now);
            return;
        };
        let tokens = self.reap_tokens;
        let birth = self.new_birth();
        let Some(reap) = self.parts[at].reap.as_mut() else {
            return;
        };
        let most = reap.found.len().min(self.settings.call_users_max);
        if tokens < most as u64 {
            reap.next_at = now.mono.plus_ms(20);
            return;
        }
        let (life, last_active) = (reap.life, reap.last_active);
        let found: Vec<_> = reap.found.drain(..most).collect();
        let mut vouch = Vouch::new(&Caller {
            life,
            mode: Mode::Reap,
            birth,
            k: 0,
            not_after: not_after(
                clock,
                self.settings.void_after_ms,
                Planted::VouchesNeverLate,
            ),
        });
        let gone = Gone {
            since: clock,
            last_active: last_active.min(clock),
        };
        let mut kept: Vec<(&UserBuf, Gone)> = Vec::new();
        for (user, flags) in &found {
            vouch.withdraw(user.user(), ALL, gone.last_active);
            // For others whoever is invisible went when it hid.
            kept.extend((!flags.invisible).then_some((user, gone)));
        }
        let mut calls = self.keep(at, kept.into_iter());
        calls.push(vouch.call(&self.hot_key(at)));
        let to = To::Partition(self.parts[at].id);
        let is_asked = self.send(Asked::Reap(at, found.len()), to, server, calls, now);
        self.reap_asked(at, is_asked, now);
        if is_asked {
            self.reap_tokens -= found.len() as u64;
            self.reaping.insert(at, found);
        } else if let Some(reap) = &mut self.parts[at].reap {
            reap.found.extend(found);
        }
    }

    pub(super) fn reaped(&mut self, at: usize, users: usize, replies: &[Reply], now: Now) {
        let found = self.reaping.remove(&at).unwrap_or_default();
        let vouched = replies.last().and_then(bytes_of).map(Vouched::parse);
        let Some(reap) = self.parts[at].reap.as_mut() else {
            return;
        };
        reap.is_asked = false;
        let Some(Ok(Vouched::Done {
            count,
            since,
            outcomes,
            ..
        })) = vouched
        else {
            return self.stop_reaping(at, now);
        };
        self.counts.reaped += users as u64;
        let last_active = reap.last_active.min(since);
        reap.count = count;
        let is_over = reap.found.is_empty() && reap.is_through;
        for ((user, _), outcome) in found.into_iter().zip(outcomes) {
            if outcome == Outcome::Told {
                let gone = Gone { since, last_active };
                self.parts[at].corrections.push((user, gone));
            }
        }
        if count == 0 {
            self.reap_done(at, now);
        } else if is_over {
            self.look_through_again(at, now);
        }
    }

    /// Users that this node may take offline now: its share of what the fleet may.
    fn fill_tokens(&mut self, now: Mono) {
        let nodes = self.peers.len().max(1) as u64;
        let each_s = (u64::from(self.settings.reap_users_per_s) / nodes).max(1);
        let passed_ms = now.ms_since(self.reap_filled_at);
        let filled = each_s * passed_ms / 1_000;
        if filled > 0 {
            self.reap_filled_at = now;
            let most = each_s.max(2 * CALL_USERS_MAX as u64);
            self.reap_tokens = (self.reap_tokens + filled).min(most);
        }
    }

    /// This life claims somebody here who has no slot: such are found by looking through all.
    pub(super) fn reap_strays(&mut self, at: usize, count: u32, now: Now) {
        if self.parts[at].reap.is_some() {
            return;
        }
        self.parts[at].reap = Some(Reap {
            life: self.life,
            last_active: now.unix,
            is_fenced: true,
            cursor: b"0".to_vec(),
            found: VecDeque::new(),
            is_through: false,
            count,
            is_asked: false,
            next_at: now.mono,
        });
    }
}

/// Users who are being taken offline, a call for each partition.
pub(super) type Reaping = BTreeMap<usize, Vec<(UserBuf, UserFlags)>>;
