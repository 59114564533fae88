//! What is known of each server: what its clock says at least, and when it was last heard.
//!
//! Owns the estimates. Never decides what is sent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::fleet::traffic::Server;
use crate::time::{Mono, Unix};

/// A server that was not heard for so long was away.
pub(super) const AWAY_MS: u64 = 2_000;
/// What takes something back is said to servers that were heard so recently only.
const RECENT_MS: u64 = 1_500;
/// A sample of a clock counts for one to two of these.
const EPOCH_MS: u64 = 15_000;
/// After that a clock is asked for again, with whatever else is asked.
const CLOCK_MS: u64 = 5_000;
const _: () = assert!(CLOCK_MS * 2 < EPOCH_MS);
/// Time between two looks at all partitions of a server because one was lost, in ms.
const LOOK_AROUND_MS: u64 = 2_000;
/// A server that refused something so lately takes nothing: it is told again within that time.
pub(super) const REFUSED_MS: u64 = 3_000;
/// Servers that are remembered.
const SERVERS_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct Servers {
    known: BTreeMap<Server, Known>,
    /// Most commands under way to one; another one out of reach holds up none of them.
    in_flight_max: u32,
}

#[derive(Debug)]
struct Known {
    clock: Clock,
    /// It has done something that was begun here then.
    heard_at: Mono,
    /// It has been heard without a break since.
    well_since: Mono,
    is_silent: bool,
    /// It has refused what is no single partition's fault: it is full, or has lost its replicas.
    refused_at: Option<Mono>,
    in_flight: u32,
    waiting: Waiting,
    /// When all its partitions were looked at last, and when they are to be.
    looked_around: Option<Mono>,
    look_around_at: Option<Mono>,
}

/// Partitions for which there was no room among the commands under way, in their order.
#[derive(Debug, Default)]
struct Waiting {
    order: VecDeque<usize>,
    all: BTreeSet<usize>,
}

/// A server's clock, from below: what is dated by it is never valid for longer than was meant.
#[derive(Debug, Default)]
struct Clock {
    /// Its time less ours, in ms: the largest of this epoch and of the one before.
    best: [Option<i64>; 2],
    epoch: u64,
    sampled_at: Mono,
}

impl Clock {
    fn turn(&mut self, now: Mono) {
        let epoch = now.ms() / EPOCH_MS;
        if epoch != self.epoch {
            let is_next = epoch == self.epoch + 1;
            self.best = [None, self.best[0].filter(|_| is_next)];
            self.epoch = epoch;
        }
    }

    fn sample(&mut self, said: Unix, now: Mono) {
        self.turn(now);
        let ahead = said.ms() as i64 - now.ms() as i64 - 1;
        self.best[0] = self.best[0].max(Some(ahead));
        self.sampled_at = now;
    }

    fn ahead(&self, now: Mono) -> Option<i64> {
        let epoch = now.ms() / EPOCH_MS;
        match epoch.saturating_sub(self.epoch) {
            0 => self.best[0].max(self.best[1]),
            1 => self.best[0],
            _ => None,
        }
    }
}

impl Servers {
    pub(super) fn new(in_flight_max: u32) -> Servers {
        Servers {
            known: BTreeMap::new(),
            in_flight_max,
        }
    }

    fn known(&mut self, server: Server) -> &mut Known {
        if self.known.len() >= SERVERS_MAX && !self.known.contains_key(&server) {
            // Servers are numbered as they come: the first is gone for longest.
            self.known.pop_first();
        }
        self.known.entry(server).or_insert(Known {
            clock: Clock::default(),
            heard_at: Mono::default(),
            well_since: Mono::default(),
            is_silent: false,
            refused_at: None,
            in_flight: 0,
            waiting: Waiting::default(),
            looked_around: None,
            look_around_at: None,
        })
    }

    /// It answers what was begun at `began`.
    pub(super) fn heard(&mut self, server: Server, began: Mono, now: Mono) {
        let known = self.known(server);
        let is_first = known.heard_at == Mono::default();
        let was_away = began.ms_since(known.heard_at) > AWAY_MS || known.is_silent;
        if was_away && !is_first {
            known.well_since = now;
        }
        known.is_silent = false;
        known.heard_at = known.heard_at.max(began);
    }

    pub(super) fn silent(&mut self, server: Server) {
        self.known(server).is_silent = true;
    }

    /// It refuses what it is told. When it takes that again, others have yet to say theirs.
    pub(super) fn refuses(&mut self, server: Server, now: Mono) {
        let known = self.known(server);
        known.refused_at = Some(now);
        known.well_since = now;
    }

    /// It has done what it was told.
    pub(super) fn took(&mut self, server: Server) {
        self.known(server).refused_at = None;
    }

    /// It has lost something: all of it is to be looked at, and again if this was found after that.
    pub(super) fn lost(&mut self, server: Server, now: Mono) {
        let known = self.known(server);
        let last = known.looked_around;
        let next = last.map_or(now, |last| last.plus_ms(LOOK_AROUND_MS).max(now));
        known.look_around_at.get_or_insert(next);
    }

    /// When [`Servers::take_look`] has one.
    pub(super) fn look_due(&self) -> Mono {
        let due = self.known.values().filter_map(|known| known.look_around_at);
        due.min().unwrap_or(Mono::NEVER)
    }

    /// A server all of which is to be looked at now.
    pub(super) fn take_look(&mut self, now: Mono) -> Option<Server> {
        let is_due = |known: &Known| known.look_around_at.is_some_and(|at| at <= now);
        let (server, known) = self.known.iter_mut().find(|(_, known)| is_due(known))?;
        known.look_around_at = None;
        known.looked_around = Some(now);
        Some(*server)
    }

    /// Its clock said that, in an answer that came now.
    pub(super) fn says(&mut self, server: Server, said: Unix, now: Mono) {
        self.known(server).clock.sample(said, now);
    }

    /// Its clock says at least that. None: nothing recent is known of it.
    pub(super) fn clock(&self, server: Server, now: Mono) -> Option<Unix> {
        let ahead = self.known.get(&server)?.clock.ahead(now)?;
        u64::try_from(now.ms() as i64 + ahead)
            .ok()
            .map(Unix::from_ms)
    }

    /// Whether its clock should be asked for.
    pub(super) fn is_clock_old(&self, server: Server, now: Mono) -> bool {
        self.known
            .get(&server)
            .is_none_or(|known| now.ms_since(known.clock.sampled_at) > CLOCK_MS)
    }

    /// Up to when, by its clock, everything that it published has been heard.
    pub(super) fn heard_up_to(&self, server: Server, now: Mono) -> Option<Unix> {
        let known = self.known.get(&server)?;
        let ahead = known.clock.ahead(now)?;
        u64::try_from(known.heard_at.ms() as i64 + ahead)
            .ok()
            .map(Unix::from_ms)
    }

    /// It can be told, and be heard.
    pub(super) fn is_well(&self, server: Server, now: Mono) -> bool {
        self.known.get(&server).is_some_and(|known| {
            !known.is_silent
                && now.ms_since(known.heard_at) <= AWAY_MS
                && !is_refusing(known.refused_at, now)
        })
    }

    /// It was heard so recently that it will do at once what it is told now.
    pub(super) fn is_prompt(&self, server: Server, now: Mono) -> bool {
        self.known
            .get(&server)
            .is_some_and(|known| !known.is_silent && now.ms_since(known.heard_at) <= RECENT_MS)
    }

    /// Since when it has been heard without a break.
    pub(super) fn well_since(&self, server: Server) -> Mono {
        self.known
            .get(&server)
            .map_or(Mono::default(), |known| known.well_since)
    }

    /// Whether there is room for one command more of somebody whose turn it is not: not before
    /// those who wait.
    pub(super) fn has_room(&self, server: Server) -> bool {
        let known = self.known.get(&server);
        let most = self.in_flight_max;
        known.is_none_or(|known| known.in_flight < most && known.waiting.all.is_empty())
    }

    /// One command more is under way.
    pub(super) fn begin(&mut self, server: Server) {
        self.known(server).in_flight += 1;
    }

    /// One command is done, or will not be sent: whose turn it is now, who has its room.
    pub(super) fn done(&mut self, server: Server) -> Option<usize> {
        let known = self.known.get_mut(&server)?;
        let next = known.waiting.next();
        if next.is_none() {
            known.in_flight = known.in_flight.saturating_sub(1);
        }
        next
    }

    /// There is no room for a command of this partition's: it has its turn.
    pub(super) fn wait(&mut self, server: Server, partition: usize) {
        let waiting = &mut self.known(server).waiting;
        if waiting.all.insert(partition) {
            waiting.order.push_back(partition);
        }
    }

    pub(super) fn is_waiting(&self, server: Server, partition: usize) -> bool {
        let known = self.known.get(&server);
        known.is_some_and(|known| known.waiting.all.contains(&partition))
    }
}

/// Whether what was refused then is refused still, for all that is known.
pub(super) fn is_refusing(refused_at: Option<Mono>, now: Mono) -> bool {
    refused_at.is_some_and(|at| now.ms_since(at) <= REFUSED_MS)
}

impl Waiting {
    fn next(&mut self) -> Option<usize> {
        let next = self.order.pop_front()?;
        self.all.remove(&next);
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono::default().plus_ms(ms)
    }

    #[test]
    fn a_clock_is_never_thought_to_be_ahead_of_itself() {
        let mut servers = Servers::new(2);
        let one = Server(1);
        assert_eq!(servers.clock(one, at(10)), None);
        servers.says(one, Unix::from_ms(5_000), at(100));
        assert_eq!(servers.clock(one, at(100)), Some(Unix::from_ms(4_999)));
        // An answer that was long under way says less than is known.
        servers.says(one, Unix::from_ms(5_010), at(400));
        assert_eq!(servers.clock(one, at(400)), Some(Unix::from_ms(5_299)));
        // The clock is stepped back: what was known before is forgotten in time.
        servers.says(one, Unix::from_ms(1_000), at(16_000));
        servers.says(one, Unix::from_ms(16_000), at(31_000));
        assert_eq!(servers.clock(one, at(31_000)), Some(Unix::from_ms(15_999)));
        assert_eq!(servers.clock(one, at(61_000)), None);
    }

    #[test]
    fn a_break_is_noticed_and_a_short_one_is_none() {
        let mut servers = Servers::new(2);
        let one = Server(1);
        servers.heard(one, at(1_000), at(1_001));
        servers.heard(one, at(2_900), at(2_901));
        assert_eq!(servers.well_since(one), at(0));
        assert!(servers.is_prompt(one, at(4_400)) && !servers.is_prompt(one, at(4_401)));
        assert!(servers.is_well(one, at(4_900)) && !servers.is_well(one, at(4_901)));
        servers.heard(one, at(5_000), at(5_003));
        assert_eq!(servers.well_since(one), at(5_003));
        servers.silent(one);
        assert!(!servers.is_well(one, at(5_004)));
        servers.heard(one, at(5_100), at(5_101));
        assert_eq!(servers.well_since(one), at(5_101));
    }

    #[test]
    fn whatever_is_lost_after_a_look_at_all_is_looked_for_once_more() {
        let (mut servers, one) = (Servers::new(2), Server(1));
        let mut look = |lost: &[u64], ms| {
            for lost in lost {
                servers.lost(one, at(*lost));
            }
            assert_eq!(servers.take_look(at(ms - 1)), None);
            assert_eq!(servers.look_due(), at(ms));
            assert_eq!(servers.take_look(at(ms)), Some(one));
            assert_eq!(servers.look_due(), Mono::NEVER);
        };
        look(&[1_000, 1_000], 1_000);
        look(&[1_000, 1_300], 3_000);
        look(&[9_000], 9_000);
    }

    #[test]
    fn so_many_commands_are_under_way_to_one_server() {
        let mut servers = Servers::new(2);
        for _ in 0..2 {
            assert!(servers.has_room(Server(1)));
            servers.begin(Server(1));
        }
        assert!(!servers.has_room(Server(1)) && servers.has_room(Server(2)));
        assert_eq!(servers.done(Server(1)), None);
        assert!(servers.has_room(Server(1)));
    }

    #[test]
    fn whoever_found_no_room_has_its_turn_in_order_and_before_others() {
        let (mut servers, one) = (Servers::new(2), Server(1));
        (0..2).for_each(|_| servers.begin(one));
        for partition in [7, 3, 7] {
            servers.wait(one, partition);
        }
        assert_eq!(servers.done(Server(2)), None);
        // Room that is given on is nobody else's.
        assert_eq!(servers.done(one), Some(7));
        assert!(!servers.is_waiting(one, 7) && servers.is_waiting(one, 3));
        assert!(!servers.has_room(one));
        assert_eq!([(); 2].map(|()| servers.done(one)), [Some(3), None]);
        assert!(servers.has_room(one));
    }
}
