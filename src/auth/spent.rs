//! Which tickets have been used, on all shards of a node.
//!
//! Owns what makes a ticket good for one stream: it is reserved, and then spent or given back. A
//! node keeps the ids of used ones for as long as they could be shown again. So whatever it can not
//! know counts as used: what was made before it started, or before its clock stepped back.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Grant;
use super::ticket::{self, TICKET_MS, TicketId, TicketRefusal};
use crate::time::{Mono, Now, Unix};
use crate::wire::beat::{FleetKey, Keys};

/// How far, in ms, the clock of another node may be ahead of this one's.
const AHEAD_MS_MAX: u64 = 1_000;
/// What one used ticket takes at most, in bytes: an entry, in nodes of a tree that are half full.
const ENTRY_BYTES: usize = 80;
/// Used tickets that are forgotten when another is reserved.
const FORGOTTEN_FOR_ONE: usize = 8;

/// The tickets of a node.
#[derive(Debug)]
pub struct Tickets {
    used_max: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Of the tickets that this node makes.
    life: u64,
    /// What others made before this is not taken.
    since: Unix,
    /// Unix ms less Mono ms: changes when the wall clock steps.
    offset_ms: i64,
    /// Reserved or spent, and when.
    used: BTreeMap<TicketId, Mono>,
}

/// A ticket that nobody else can use: spent, or given back when this is dropped.
#[derive(Debug)]
pub struct Reserved {
    tickets: Arc<Tickets>,
    id: TicketId,
    is_spent: bool,
}

/// As many used tickets are kept as may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

impl Tickets {
    /// None made and none used, by the process of this `life`; the used ones take at most so many
    /// bytes.
    pub fn new(life: u64, bytes_max: usize, now: Now) -> Tickets {
        Tickets {
            used_max: (bytes_max / ENTRY_BYTES).max(1),
            state: Mutex::new(State {
                life,
                since: now.unix.plus_ms(AHEAD_MS_MAX),
                offset_ms: offset_ms(now),
                used: BTreeMap::new(),
            }),
        }
    }

    /// A ticket for who has `grant`, and for how many ms it is good. `nonce` is another one each
    /// time.
    ///
    /// Errors: it would be too long; it would have so many characters.
    pub fn make(
        &self,
        grant: &Grant,
        key: &FleetKey,
        nonce: u64,
        now: Now,
    ) -> Result<(String, u64), usize> {
        let mut state = self.state.lock();
        state.look_at_clock(now);
        let (life, made) = (state.life, now.unix);
        drop(state);
        let text = TicketId { made, life, nonce }.seal(grant, key)?;
        Ok((text, grant.expires.ms_since(made).min(TICKET_MS)))
    }

    /// What a ticket grants that has not been used.
    ///
    /// Errors: the first reason against it.
    pub fn verify(&self, text: &[u8], keys: &Keys, now: Now) -> Result<Grant, TicketRefusal> {
        let grant = ticket::open(text, keys)?;
        let id = grant.ticket.ok_or(TicketRefusal::Form)?;
        let mut state = self.state.lock();
        state.look_at_clock(now);
        if now.unix >= id.made.plus_ms(TICKET_MS).min(grant.expires) {
            return Err(TicketRefusal::Old);
        }
        if id.made > now.unix.plus_ms(AHEAD_MS_MAX) {
            return Err(TicketRefusal::Future);
        }
        if id.life != state.life && id.made < state.since {
            return Err(TicketRefusal::BeforeStart);
        }
        match state.used.contains_key(&id) {
            true => Err(TicketRefusal::Used),
            false => Ok(grant),
        }
    }

    /// Reserves a ticket that has been verified at this moment. None: somebody else has.
    ///
    /// Errors: no more used ones can be kept.
    pub fn reserve(self: &Arc<Tickets>, id: TicketId, now: Now) -> Result<Option<Reserved>, Full> {
        let mut state = self.state.lock();
        state.forget_old(FORGOTTEN_FOR_ONE, now);
        if state.used.contains_key(&id) {
            return Ok(None);
        }
        if state.used.len() >= self.used_max {
            return Err(Full);
        }
        state.used.insert(id, now.mono);
        Ok(Some(Reserved {
            tickets: Arc::clone(self),
            id,
            is_spent: false,
        }))
    }

    /// How many used ones are kept.
    pub fn used(&self) -> usize {
        self.state.lock().used.len()
    }

    /// Forgets at most so many that nobody can show again.
    pub fn forget_old(&self, max: usize, now: Now) {
        self.state.lock().forget_old(max, now);
    }
}

impl State {
    /// A step back brings a time again in which tickets were used that have been forgotten: what
    /// was made before it is not taken any more, as after a start.
    fn look_at_clock(&mut self, now: Now) {
        let offset_ms = offset_ms(now);
        if offset_ms < self.offset_ms {
            let before = now.unix.plus_ms(self.offset_ms.abs_diff(offset_ms));
            self.since = self.since.max(before.plus_ms(AHEAD_MS_MAX));
            self.life = self.life.wrapping_add(1);
        }
        self.offset_ms = offset_ms;
    }

    fn forget_old(&mut self, max: usize, now: Now) {
        for _ in 0..max {
            let Some(oldest) = self.used.first_entry() else {
                return;
            };
            // By both clocks: the wall clock may be ahead for a while.
            let is_old = oldest.key().made.plus_ms(TICKET_MS) <= now.unix
                && oldest.get().plus_ms(TICKET_MS + AHEAD_MS_MAX) <= now.mono;
            if !is_old {
                return;
            }
            oldest.remove();
        }
    }
}

impl Reserved {
    /// Which ticket it is.
    pub fn id(&self) -> TicketId {
        self.id
    }

    /// The ticket has been used.
    pub fn spend(mut self) {
        self.is_spent = true;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.is_spent {
            self.tickets.state.lock().used.remove(&self.id);
        }
    }
}

fn offset_ms(now: Now) -> i64 {
    now.unix.ms().wrapping_sub(now.mono.ms()).cast_signed()
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;
    use crate::auth::WatchDefault;
    use crate::auth::grant::Said;
    use crate::wire::UserBuf;

    const LIFE: u64 = 7;

    fn at(unix_ms: u64, mono_ms: u64) -> Now {
        Now {
            mono: Mono::default().plus_ms(mono_ms),
            unix: Unix::from_ms(1_764_009_600_000 + unix_ms),
        }
    }

    fn grant(ttl_ms: u64) -> Grant {
        let said = Said {
            user: UserBuf::from_text("alice").unwrap(),
            expires: at(ttl_ms, 0).unix,
            issued: None,
            token: None,
        };
        Grant::read(said, None, WatchDefault::Nobody).unwrap()
    }

    fn key() -> FleetKey {
        FleetKey::new([7; 32])
    }

    fn node(life: u64, now: Now) -> Arc<Tickets> {
        Arc::new(Tickets::new(life, 1 << 20, now))
    }

    fn made(tickets: &Tickets, nonce: u64, now: Now) -> String {
        tickets
            .make(&grant(36_000_000), &key(), nonce, now)
            .unwrap()
            .0
    }

    fn asked(tickets: &Tickets, text: &str, now: Now) -> Result<Grant, TicketRefusal> {
        tickets.verify(text.as_bytes(), &Keys::single(key()), now)
    }

    fn refused(tickets: &Tickets, text: &str, now: Now) -> Option<TicketRefusal> {
        asked(tickets, text, now).err()
    }

    fn reserved(tickets: &Arc<Tickets>, text: &str, now: Now) -> Reserved {
        let id = asked(tickets, text, now).unwrap().ticket.unwrap();
        tickets.reserve(id, now).unwrap().unwrap()
    }

    #[test]
    fn a_ticket_is_good_for_half_a_minute_and_no_longer_than_its_token() {
        let tickets = node(LIFE, at(0, 0));
        for (ttl_ms, good_ms) in [(3_600_000, 30_000), (10_000, 10_000)] {
            let made = tickets.make(&grant(ttl_ms), &key(), ttl_ms, at(0, 0));
            let (text, told_ms) = made.unwrap();
            assert_eq!(told_ms, good_ms);
            let last = at(good_ms - 1, good_ms - 1);
            assert_eq!(refused(&tickets, &text, last), None);
            let over = at(good_ms, good_ms);
            assert_eq!(refused(&tickets, &text, over), Some(TicketRefusal::Old));
        }
    }

    #[test]
    fn a_ticket_is_spent_once_and_comes_back_if_it_was_not() {
        let tickets = node(LIFE, at(0, 0));
        let now = at(1, 1);
        let text = made(&tickets, 1, now);
        let held = reserved(&tickets, &text, now);
        assert_eq!(refused(&tickets, &text, now), Some(TicketRefusal::Used));
        drop(held);
        assert_eq!(refused(&tickets, &text, now), None);
        reserved(&tickets, &text, now).spend();
        assert_eq!(refused(&tickets, &text, now), Some(TicketRefusal::Used));
        assert_eq!(refused(&tickets, &made(&tickets, 2, now), now), None);
    }

    #[test]
    fn used_ones_are_forgotten_when_they_are_old_and_are_bounded() {
        let tickets = Arc::new(Tickets::new(LIFE, 20 * ENTRY_BYTES, at(0, 0)));
        let now = at(0, 0);
        for nonce in 0..20 {
            reserved(&tickets, &made(&tickets, nonce, now), now).spend();
        }
        let text = made(&tickets, 20, now);
        let id = asked(&tickets, &text, now).unwrap().ticket.unwrap();
        assert_eq!(tickets.reserve(id, now).err(), Some(Full));
        assert_eq!(refused(&tickets, &text, now), None, "it is not burnt");
        let later = at(31_000, 31_000);
        reserved(&tickets, &made(&tickets, 21, later), later).spend();
        assert_eq!(tickets.used(), 20 - FORGOTTEN_FOR_ONE + 1);
        tickets.forget_old(2, later);
        assert_eq!(tickets.used(), 20 - FORGOTTEN_FOR_ONE - 1);
        tickets.forget_old(100, later);
        assert_eq!(tickets.used(), 1);
    }

    /// What another life of a node has made, or another node, is taken if it can not have been used
    /// here before.
    #[test]
    fn what_was_made_before_the_start_is_not_taken() {
        let (before, other) = (node(1, at(0, 0)), node(2, at(0, 0)));
        let own = made(&before, 1, at(59_000, 59_000));
        let started = node(LIFE, at(60_000, 60_000));
        let now = at(60_000, 60_000);
        assert_eq!(
            refused(&started, &own, now),
            Some(TicketRefusal::BeforeStart)
        );
        assert_eq!(refused(&started, &made(&started, 1, now), now), None);
        for (made_ms, refusal) in [
            (60_999, Some(TicketRefusal::BeforeStart)),
            (61_000, None),
            (62_100, None),
            (62_101, Some(TicketRefusal::Future)),
        ] {
            let text = made(&other, made_ms, at(made_ms, made_ms));
            assert_eq!(
                refused(&started, &text, at(61_100, 61_100)),
                refusal,
                "{made_ms}"
            );
        }
    }

    /// Whatever the wall clock does, no ticket is used twice.
    #[test]
    fn a_step_of_the_clock_makes_no_used_ticket_good_again() {
        for (first_ms, then_ms) in [(-60_000, 0), (-60_000, 60_000), (3_600_000, -3_600_000)] {
            for other in [false, true] {
                let tickets = node(LIFE, at(0, 0));
                let maker = if other {
                    node(2, at(0, 0))
                } else {
                    Arc::clone(&tickets)
                };
                let start = 100_000;
                let text = made(&maker, 1, at(start, start));
                reserved(&tickets, &text, at(start, start)).spend();
                let mut uses = 0;
                for ms in (0..200_000).step_by(500) {
                    let step: i64 = match ms {
                        0..40_000 => 0,
                        40_000..120_000 => first_ms,
                        _ => first_ms + then_ms,
                    };
                    let mono = start + ms;
                    let now = at(mono.saturating_add_signed(step), mono);
                    uses += usize::from(asked(&tickets, &text, now).is_ok());
                    // Others, so that old ones are forgotten.
                    let fresh = made(&tickets, 1_000 + ms, now);
                    reserved(&tickets, &fresh, now).spend();
                }
                assert_eq!(uses, 0, "{first_ms} {then_ms} {other}");
            }
        }
    }

    /// Two shards are shown one ticket at the same moment, again and again.
    #[test]
    fn of_two_who_race_exactly_one_wins() {
        const RACES: u64 = 10_000;
        let tickets = node(LIFE, at(0, 0));
        let now = at(1, 1);
        let texts: Vec<String> = (0..RACES).map(|nonce| made(&tickets, nonce, now)).collect();
        let start = Barrier::new(2);
        let race = || {
            let run = |text: &String| {
                // Both have been told that it has not been used.
                let id = asked(&tickets, text, now).unwrap().ticket.unwrap();
                start.wait();
                let reserved = tickets.reserve(id, now).unwrap();
                let won = reserved.map(Reserved::spend).is_some();
                start.wait();
                won
            };
            texts.iter().map(run).collect::<Vec<bool>>()
        };
        let (one, other) = std::thread::scope(|scope| {
            let (one, other) = (scope.spawn(race), scope.spawn(race));
            (one.join().unwrap(), other.join().unwrap())
        });
        assert!(one.iter().zip(&other).all(|(one, other)| one ^ other));
        assert_eq!(tickets.used(), RACES as usize);
    }
}
