//! Which nodes of the fleet may be homes for users' beats: those that answer by datagrams, on the
//! way that beats take, and reach the database.
//!
//! Owns the words that nodes ask and answer each other with, and the list that comes of them.
//! Without a kernel: words are values, time is an argument. A lease says that a node lives; that
//! takes as long as a beat counts, and says nothing of the way between two nodes. So each asks all
//! others twice a second. Whoever is silent for [`SILENT_MS`] is no home until it has answered for
//! [`STEADY_MS`] again.
//!
//! ```text
//! ask NONCE UDP                the node at UDP asks; NONCE is 16 hex digits
//! own NONCE UDP STATE AWAY     an answer to that, of the node at UDP
//! STATE                        home, or not: it leaves, or does not reach the database
//! AWAY                         partitions that it does not reach: -, or 3-5,9, or * for all
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::net::SocketAddr;

use crate::engine::{Home, HomeList, PartitionSet};
use crate::time::Mono;

/// Time between two questions to a node, in ms.
const ASK_MS: u64 = 500;
/// Longest silence of a home, in ms; less where a beat counts for less than six seconds.
const SILENT_MS: u64 = 2_000;
/// How long a node must have answered before it is a home, in ms.
const STEADY_MS: u64 = 1_500;
/// Questions to one node that may be answered still.
const OPEN_MAX: usize = 4;
/// Longest list of partitions in a word, in bytes; a longer one is said as all.
const AWAY_BYTES_MAX: usize = 40;

fn silent_ms(offline_after_ms: u64) -> u64 {
    SILENT_MS.min(offline_after_ms / 3)
}

/// Longest time, in ms, for which beats go to a home that has died, where a beat counts for
/// `offline_after_ms`.
pub fn missed_ms(offline_after_ms: u64) -> u64 {
    silent_ms(offline_after_ms) + ASK_MS
}

/// What a node says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct OwnState {
    /// Beats may go to it: it is a member that reaches the database, and does not leave.
    pub(super) is_home: bool,
    /// It drains: its own users' beats go elsewhere.
    pub(super) is_leaving: bool,
    /// Partitions that it does not reach.
    pub(super) away: PartitionSet,
}

/// What one node knows of the others.
#[derive(Debug)]
pub(super) struct Homing {
    own: SocketAddr,
    partitions: u16,
    silent_ms: u64,
    peers: BTreeMap<SocketAddr, Peer>,
    random: fastrand::Rng,
    due: Mono,
    /// The list as it was last given.
    given: Vec<Home>,
}

#[derive(Debug, Default)]
struct Peer {
    asked: VecDeque<(u64, Mono)>,
    /// When the latest question was asked that it has answered.
    answered: Option<Mono>,
    /// It has answered without a break since.
    since: Mono,
    is_home: bool,
    away: PartitionSet,
}

impl Homing {
    /// `own` is where this node takes datagrams.
    pub(super) fn new(
        own: SocketAddr,
        partitions: u16,
        offline_after_ms: u64,
        random: fastrand::Rng,
        now: Mono,
    ) -> Homing {
        Homing {
            own,
            partitions,
            silent_ms: silent_ms(offline_after_ms),
            peers: BTreeMap::new(),
            random,
            due: now,
            given: Vec::new(),
        }
    }

    /// When [`Homing::ask`] is to be called.
    pub(super) fn due(&self) -> Mono {
        self.due
    }

    /// The questions that are due, to all of these who live but the node itself.
    pub(super) fn ask(
        &mut self,
        alive: impl Iterator<Item = SocketAddr>,
        now: Mono,
    ) -> Vec<(SocketAddr, String)> {
        self.due = now.plus_ms(ASK_MS);
        let mut before = std::mem::take(&mut self.peers);
        for udp in alive.filter(|udp| *udp != self.own) {
            let peer = before.remove(&udp).unwrap_or_default();
            self.peers.entry(udp).or_insert(peer);
        }
        let mut questions = Vec::with_capacity(self.peers.len());
        for (udp, peer) in &mut self.peers {
            let nonce = self.random.u64(..);
            if peer.asked.len() >= OPEN_MAX {
                peer.asked.pop_front();
            }
            peer.asked.push_back((nonce, now));
            questions.push((*udp, format!("ask {nonce:016x} {}", self.own)));
        }
        questions
    }

    /// A word came. What is to be answered, and to whom. None: nothing. What is no word, or of no
    /// node that is known, is passed over.
    pub(super) fn hear(
        &mut self,
        word: &str,
        own: &OwnState,
        now: Mono,
    ) -> Option<(SocketAddr, String)> {
        let mut parts = word.split(' ');
        let what = parts.next()?;
        let nonce = u64::from_str_radix(parts.next()?, 16).ok()?;
        let udp: SocketAddr = parts.next()?.parse().ok()?;
        let peer = self.peers.get_mut(&udp)?;
        match what {
            "ask" => {
                let state = if own.is_home { "home" } else { "not" };
                let away = ranges(&own.away);
                Some((udp, format!("own {nonce:016x} {} {state} {away}", self.own)))
            }
            "own" => {
                let is_home = parts.next()? == "home";
                let away = read_ranges(parts.next()?, self.partitions)?;
                let asked = peer.asked.iter().position(|(other, _)| *other == nonce)?;
                let (_, sent) = peer.asked.remove(asked)?;
                if !peer.answers(self.silent_ms, now) {
                    peer.since = now;
                }
                peer.answered = peer.answered.max(Some(sent));
                (peer.is_home, peer.away) = (is_home, away);
                None
            }
            _ => None,
        }
    }

    /// The list, if it is another than the one that was given last.
    pub(super) fn list(&mut self, own: &OwnState, now: Mono) -> Option<HomeList> {
        let mut homes: Vec<Home> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.may_be_home(self.silent_ms, now))
            .map(|(udp, peer)| Home {
                udp: *udp,
                away: peer.away.clone(),
            })
            .collect();
        if !own.is_leaving {
            let away = match own.is_home {
                true => own.away.clone(),
                false => PartitionSet::all(self.partitions),
            };
            let udp = self.own;
            homes.push(Home { udp, away });
        }
        if homes == self.given {
            return None;
        }
        self.given.clone_from(&homes);
        Some(HomeList::new(homes, self.own, self.partitions))
    }
}

impl Peer {
    fn answers(&self, silent_ms: u64, now: Mono) -> bool {
        self.answered
            .is_some_and(|sent| now.ms_since(sent) <= silent_ms)
    }

    fn may_be_home(&self, silent_ms: u64, now: Mono) -> bool {
        self.is_home && self.answers(silent_ms, now) && now.ms_since(self.since) >= STEADY_MS
    }
}

/// A set as text.
fn ranges(set: &PartitionSet) -> String {
    if set.is_empty() {
        return "-".into();
    }
    let mut text = String::new();
    let mut numbers = set.iter().peekable();
    while let Some(first) = numbers.next() {
        let mut last = first;
        while let Some(next) = numbers.next_if_eq(&(last + 1)) {
            last = next;
        }
        let comma = if text.is_empty() { "" } else { "," };
        let written = match first == last {
            true => write!(text, "{comma}{first}"),
            false => write!(text, "{comma}{first}-{last}"),
        };
        if written.is_err() || text.len() > AWAY_BYTES_MAX {
            return "*".into();
        }
    }
    text
}

/// The set of so many that a text says. None: it says none.
fn read_ranges(text: &str, count: u16) -> Option<PartitionSet> {
    match text {
        "-" => return Some(PartitionSet::default()),
        "*" => return Some(PartitionSet::all(count)),
        _ => {}
    }
    let mut numbers = Vec::new();
    for range in text.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        if last < first || last >= count {
            return None;
        }
        numbers.extend(usize::from(first)..=usize::from(last));
    }
    Some(PartitionSet::new(numbers, count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Place;
    use crate::wire::User;

    const PARTITIONS: u16 = 64;

    fn udp(node: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, node], 8081))
    }

    fn at(ms: u64) -> Mono {
        Mono::default().plus_ms(ms)
    }

    fn home() -> OwnState {
        OwnState {
            is_home: true,
            ..OwnState::default()
        }
    }

    /// Nodes, and which of them hear each other.
    struct World {
        nodes: Vec<Homing>,
        states: Vec<OwnState>,
        deaf: Vec<(usize, usize)>,
        lists: Vec<HomeList>,
        ms: u64,
    }

    impl World {
        fn new(nodes: u8) -> World {
            let node = |number: u8| {
                let random = fastrand::Rng::with_seed(u64::from(number));
                Homing::new(udp(number), PARTITIONS, 25_000, random, at(0))
            };
            World {
                nodes: (0..nodes).map(node).collect(),
                states: vec![home(); usize::from(nodes)],
                deaf: Vec::new(),
                lists: vec![HomeList::default(); usize::from(nodes)],
                ms: 0,
            }
        }

        /// Time goes on.
        fn run(&mut self, ms: u64) {
            for _ in 0..ms / 100 {
                self.ms += 100;
                self.turn();
            }
        }

        fn turn(&mut self) {
            let now = at(self.ms);
            let count = self.nodes.len();
            for asker in 0..count {
                if self.nodes[asker].due() <= now {
                    let alive = (0..count).map(|node| udp(node as u8));
                    for (to, question) in self.nodes[asker].ask(alive, now) {
                        self.deliver(asker, to, &question, now);
                    }
                }
                let state = self.states[asker].clone();
                if let Some(list) = self.nodes[asker].list(&state, now) {
                    self.lists[asker] = list;
                }
            }
        }

        fn deliver(&mut self, from: usize, to: SocketAddr, word: &str, now: Mono) {
            assert!(word.len() <= 128, "{word}");
            let to = (0..self.nodes.len()).find(|node| udp(*node as u8) == to);
            let to = to.expect("a node");
            if self.deaf.contains(&(from, to)) {
                return;
            }
            let state = self.states[to].clone();
            if let Some((back, answer)) = self.nodes[to].hear(word, &state, now) {
                self.deliver(to, back, &answer, now);
            }
        }

        /// The homes that a node knows, by their numbers.
        fn homes(&self, node: usize) -> Vec<usize> {
            let number = |home: &Home| (0..9).find(|node| udp(*node as u8) == home.udp);
            self.lists[node].homes().iter().filter_map(number).collect()
        }
    }

    #[test]
    fn all_are_homes_once_they_have_answered_for_a_while() {
        let mut world = World::new(3);
        world.run(1_000);
        assert_eq!(world.homes(0), [0]);
        world.run(1_500);
        for node in 0..3 {
            assert_eq!(world.homes(node), [0, 1, 2]);
        }
    }

    #[test]
    fn who_is_silent_is_no_home_to_those_who_do_not_hear_it() {
        let mut world = World::new(3);
        world.run(3_000);
        world.deaf = vec![(0, 1)];
        world.run(1_500);
        assert_eq!(world.homes(0), [0, 1, 2]);
        world.run(600);
        assert_eq!(world.homes(0), [0, 2]);
        // What node 1 asks is answered in vain too.
        assert_eq!(world.homes(1), [1, 2]);
        assert_eq!(world.homes(2), [0, 1, 2]);
        world.deaf.clear();
        world.run(1_400);
        assert_eq!(world.homes(0), [0, 2], "not at once");
        world.run(1_000);
        assert_eq!(world.homes(0), [0, 1, 2]);
    }

    #[test]
    fn who_leaves_is_none_to_itself_either() {
        let mut world = World::new(3);
        world.run(3_000);
        world.states[1] = OwnState {
            is_leaving: true,
            ..OwnState::default()
        };
        world.run(600);
        for node in 0..3 {
            assert_eq!(world.homes(node), [0, 2]);
        }
    }

    #[test]
    fn with_the_database_away_from_all_each_is_alone() {
        let mut world = World::new(3);
        world.run(3_000);
        world.states = vec![OwnState::default(); 3];
        world.run(600);
        for node in 0..3 {
            assert_eq!(world.homes(node), [node]);
            assert!(!world.lists[node].passes_on());
        }
        world.states = vec![home(); 3];
        world.run(600);
        assert_eq!(world.homes(0), [0, 1, 2]);
    }

    #[test]
    fn who_is_cut_off_hands_over_and_others_pass_it_by() {
        let mut world = World::new(3);
        world.run(3_000);
        world.states[0] = OwnState {
            is_home: true,
            away: PartitionSet::new(0..21, PARTITIONS),
            ..OwnState::default()
        };
        world.run(600);
        let mut places = std::collections::BTreeMap::new();
        for user in 0..600 {
            let user = format!("user-{user}");
            let user = User::from_text(&user).unwrap();
            let place = |node: usize| world.lists[node].place(user);
            match place(0) {
                Place::Both(home) => {
                    assert!(home > 0);
                    assert_ne!(place(1), Place::There(0));
                    *places.entry("both").or_insert(0) += 1;
                }
                Place::Here => *places.entry("here").or_insert(0) += 1,
                Place::There(_) => *places.entry("there").or_insert(0) += 1,
            }
        }
        // 21 of 64 partitions; of the others a third is its own.
        assert!((150..250).contains(&places["both"]), "{places:?}");
        assert!((80..190).contains(&places["here"]), "{places:?}");
        // All of the database: all that it hears counts with others too.
        world.states[0] = OwnState::default();
        world.run(600);
        assert!(world.lists[0].is_cut());
        assert_eq!(world.homes(0), [0, 1, 2]);
        assert_eq!(world.homes(1), [1, 2]);
    }

    #[test]
    fn what_is_no_answer_to_what_was_asked_is_passed_over() {
        let mut world = World::new(2);
        let asked = world.nodes[0].ask([udp(1)].into_iter(), at(0));
        let [(to, question)] = &asked[..] else {
            panic!("{asked:?}");
        };
        assert_eq!(*to, udp(1));
        let nonce = question.split(' ').nth(1).unwrap().to_owned();
        for word in [
            "".to_owned(),
            "own".to_owned(),
            format!("own {nonce} 10.0.0.1:8081 home"),
            format!("own {nonce} 10.0.0.1:8081 home 5-3"),
            format!("own {nonce} 10.0.0.1:8081 home 64"),
            format!("own {nonce} 10.0.0.7:8081 home -"),
            "own 0000000000000000 10.0.0.1:8081 home -".to_owned(),
            format!("other {nonce} 10.0.0.1:8081 home -"),
        ] {
            assert_eq!(world.nodes[0].hear(&word, &home(), at(1)), None);
            assert_eq!(world.nodes[0].peers[&udp(1)].answered, None, "{word}");
        }
        let word = format!("own {nonce} 10.0.0.1:8081 home -");
        world.nodes[0].hear(&word, &home(), at(1));
        assert_eq!(world.nodes[0].peers[&udp(1)].answered, Some(at(0)));
        // A question of nobody who is known is not answered.
        let stranger = "ask 0000000000000001 10.0.0.7:8081";
        assert_eq!(world.nodes[0].hear(stranger, &home(), at(1)), None);
    }

    #[test]
    fn sets_are_said_and_read() {
        for (numbers, text) in [(vec![], "-"), (vec![3, 4, 5, 9], "3-5,9"), (vec![63], "63")] {
            let set = PartitionSet::new(numbers, PARTITIONS);
            assert_eq!(ranges(&set), text);
            assert_eq!(read_ranges(text, PARTITIONS), Some(set));
        }
        let every_other = PartitionSet::new((0..64).step_by(2), PARTITIONS);
        assert_eq!(ranges(&every_other), "*");
        let all = PartitionSet::all(PARTITIONS);
        assert_eq!(read_ranges("*", PARTITIONS), Some(all));
    }
}
