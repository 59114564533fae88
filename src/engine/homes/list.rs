//! Who is whose home.
//!
//! Owns the choice: rendezvous over the nodes that are there, by their addresses, among those whose
//! connection to the database reaches the user's partition. Knows nothing of how that was found.

use std::net::SocketAddr;

use crate::planted::{self, Planted};
use crate::wire::User;
use crate::wire::nodes::{Nodes, digest};

/// A set of a fleet's partitions, by their numbers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PartitionSet(Box<[u64]>);

impl PartitionSet {
    /// The set of these. What is not below `count` is left out.
    pub fn new(numbers: impl IntoIterator<Item = usize>, count: u16) -> PartitionSet {
        let mut words = vec![0; usize::from(count).div_ceil(64)];
        for number in numbers.into_iter().filter(|it| *it < usize::from(count)) {
            words[number / 64] |= 1 << (number % 64);
        }
        match words.iter().all(|word| *word == 0) {
            true => PartitionSet::default(),
            false => PartitionSet(words.into()),
        }
    }

    /// All of so many.
    pub fn all(count: u16) -> PartitionSet {
        PartitionSet::new(0..usize::from(count), count)
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether that one is in it.
    pub fn has(&self, number: usize) -> bool {
        let word = self.0.get(number / 64);
        word.is_some_and(|word| word >> (number % 64) & 1 != 0)
    }

    /// The numbers in it, in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        (0..self.0.len() * 64).filter(|number| self.has(*number))
    }
}

/// One node that may be a home.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Home {
    /// Where it takes datagrams: also the name by which all nodes choose.
    pub udp: SocketAddr,
    /// Partitions whose server it does not reach.
    pub away: PartitionSet,
}

/// The nodes that may be homes, as one of them sees it. The default has none.
#[derive(Clone, Debug, Default)]
pub struct HomeList {
    homes: Vec<Home>,
    nodes: Nodes,
    /// Which of them this node is; None: it goes, or is no home.
    own: Option<usize>,
    partitions: u64,
    /// Somebody does not reach everything.
    is_torn: bool,
}

/// Where a beat belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// It counts where it came in.
    Here,
    /// It goes to the home with this index, and counts there.
    There(usize),
    /// It counts here, and as this node can not tell the fleet it goes there too.
    Both(usize),
}

impl HomeList {
    /// `own` is the address of the node itself. Of two with one address one counts.
    pub fn new(mut homes: Vec<Home>, own: SocketAddr, partitions: u16) -> HomeList {
        homes.sort_by_key(|home| home.udp);
        homes.dedup_by_key(|home| home.udp);
        let names: Vec<String> = homes.iter().map(|home| home.udp.to_string()).collect();
        HomeList {
            nodes: Nodes::new(names.iter().map(String::as_str)),
            own: homes.iter().position(|home| home.udp == own),
            partitions: u64::from(partitions.max(1)),
            is_torn: homes.iter().any(|home| !home.away.is_empty()),
            homes,
        }
    }

    /// Those that may be homes, in the order of their addresses.
    pub fn homes(&self) -> &[Home] {
        &self.homes
    }

    /// Whether anything may be passed on.
    #[inline]
    pub fn passes_on(&self) -> bool {
        self.homes.len() > usize::from(self.own.is_some())
    }

    /// Whether this node does not reach everything.
    pub fn is_cut(&self) -> bool {
        let own = self.own.map(|own| &self.homes[own].away);
        own.is_some_and(|away| !away.is_empty())
    }

    /// Where a beat of this user belongs. Costs a hash of the user and a multiplication or two for
    /// each node.
    pub fn place(&self, user: User<'_>) -> Place {
        if !self.passes_on() || planted::is(Planted::BeatsNotHomed) {
            return Place::Here;
        }
        let user = digest(user.as_bytes());
        if !self.is_torn {
            return self.at(self.nodes.best_of(user, |_| true), false);
        }
        // As `fleet::partition` deals users out: the same bytes in the network's order.
        let partition = (user.swap_bytes() % self.partitions) as usize;
        let reaches = |node: usize| !self.homes[node].away.has(partition);
        match self.nodes.best_of(user, reaches) {
            Some(best) => {
                let is_cut = self.own.is_some_and(|own| !reaches(own));
                self.at(Some(best), is_cut)
            }
            // Its server is away, whoever asks: who is claimed stays where it is.
            None => self.at(self.nodes.best_of(user, |_| true), false),
        }
    }

    fn at(&self, best: Option<usize>, is_cut: bool) -> Place {
        match best {
            Some(best) if is_cut => Place::Both(best),
            Some(best) if Some(best) != self.own => Place::There(best),
            _ => Place::Here,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTITIONS: u16 = 64;

    fn udp(node: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, node], 8081))
    }

    fn home(node: u8, away: PartitionSet) -> Home {
        Home {
            udp: udp(node),
            away,
        }
    }

    fn whole(nodes: &[u8], own: u8) -> HomeList {
        let homes = nodes
            .iter()
            .map(|node| home(*node, PartitionSet::default()));
        HomeList::new(homes.collect(), udp(own), PARTITIONS)
    }

    fn users() -> Vec<String> {
        (0..3_000).map(|user| format!("user-{user}")).collect()
    }

    fn place(list: &HomeList, user: &str) -> Place {
        list.place(User::from_text(user).unwrap())
    }

    /// The address where it counts, by a node's view.
    fn at(list: &HomeList, own: u8, user: &str) -> SocketAddr {
        match place(list, user) {
            Place::Here => udp(own),
            Place::There(home) | Place::Both(home) => list.homes()[home].udp,
        }
    }

    #[test]
    fn nobody_passes_on_to_nobody() {
        for list in [HomeList::default(), whole(&[1], 1), whole(&[], 1)] {
            assert!(!list.passes_on());
            assert_eq!(place(&list, "alice"), Place::Here);
        }
        // One that goes is no home, and others are.
        let leaving = whole(&[2], 1);
        assert_eq!(place(&leaving, "alice"), Place::There(0));
    }

    #[test]
    fn all_nodes_agree_and_each_has_its_share() {
        let lists = [1, 2, 3].map(|own| whole(&[3, 1, 2], own));
        let mut shares = [0_u32; 4];
        for user in users() {
            let chosen = at(&lists[0], 1, &user);
            assert_eq!(at(&lists[1], 2, &user), chosen);
            assert_eq!(at(&lists[2], 3, &user), chosen);
            let node = (1..=3).find(|node| udp(*node) == chosen).unwrap();
            shares[usize::from(node)] += 1;
        }
        assert!(shares[1..].iter().all(|share| share.abs_diff(1_000) < 100));
    }

    #[test]
    fn a_node_that_goes_moves_its_own_users_alone() {
        let (three, two) = (whole(&[1, 2, 3], 1), whole(&[1, 3], 1));
        for user in users() {
            let before = at(&three, 1, &user);
            assert!(before == udp(2) || at(&two, 1, &user) == before);
        }
    }

    #[test]
    fn who_can_not_tell_the_fleet_of_some_hands_them_to_one_who_can() {
        let half = PartitionSet::new(0..32, PARTITIONS);
        let list = |own: u8| {
            let homes = vec![
                home(1, half.clone()),
                home(2, PartitionSet::default()),
                home(3, PartitionSet::default()),
            ];
            HomeList::new(homes, udp(own), PARTITIONS)
        };
        let (cut, other, before) = (list(1), list(2), whole(&[1, 2, 3], 1));
        assert!(cut.is_cut() && !other.is_cut());
        let mut handed_over = 0;
        for user in users() {
            let is_away = half.has(partition_of(&user));
            let was = at(&before, 1, &user);
            assert_eq!(at(&cut, 1, &user), at(&other, 2, &user), "they agree");
            match place(&cut, &user) {
                Place::Both(home) => {
                    assert!(is_away && home != 0);
                    handed_over += 1;
                }
                _ => assert!(!is_away && at(&cut, 1, &user) == was),
            }
            assert!(was == udp(1) || at(&cut, 1, &user) == was, "others stay");
        }
        assert!((1_300..1_700).contains(&handed_over), "{handed_over}");
    }

    #[test]
    fn with_a_server_away_from_all_nobody_moves() {
        let some = PartitionSet::new(0..32, PARTITIONS);
        let homes = [1, 2, 3].map(|node| home(node, some.clone()));
        let list = HomeList::new(homes.to_vec(), udp(1), PARTITIONS);
        let before = whole(&[1, 2, 3], 1);
        for user in users() {
            assert_eq!(place(&list, &user), place(&before, &user));
        }
    }

    /// As `fleet::partition` says it, which the engine does not know.
    fn partition_of(user: &str) -> usize {
        let hash = blake3::hash(user.as_bytes());
        let first: [u8; 8] = *hash.as_bytes().first_chunk().unwrap();
        (u64::from_be_bytes(first) % u64::from(PARTITIONS)) as usize
    }

    #[test]
    fn a_set_has_what_it_was_given() {
        let set = PartitionSet::new([0, 5, 63, 64, 70], 70);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 5, 63, 64]);
        assert!(set.has(64) && !set.has(65) && !set.has(70) && !set.has(1_000));
        assert!(PartitionSet::new([], 70).is_empty());
        assert_eq!(PartitionSet::all(70).iter().count(), 70);
    }
}
