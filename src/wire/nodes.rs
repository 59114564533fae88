//! Which of several presence nodes a publisher belongs to: rendezvous hashing (Thaler and
//! Ravishankar, 1998).
//!
//! Owns the choice, which must come out the same on every node: it depends on the user's bytes and
//! the nodes' names alone, not on their order. Adding a node moves only the share that becomes its
//! own. Never knows whether a node is alive: a publisher whose node is down belongs to it all the
//! same, for its stamp is there.

/// Presence nodes by name. A node's index is its place in the list given.
#[derive(Clone, Debug, Default)]
pub struct Nodes {
    seeds: Vec<u64>,
    /// Where each answers over HTTP; none if that is not known here.
    http: Vec<Box<str>>,
}

impl Nodes {
    /// From names that are the same on every node, such as `10.0.0.1:8081`.
    pub fn new<'n>(names: impl IntoIterator<Item = &'n str>) -> Nodes {
        Nodes {
            seeds: names
                .into_iter()
                .map(|name| digest(name.as_bytes()))
                .collect(),
            http: Vec::new(),
        }
    }

    /// The same, with where each answers over HTTP, in the order of the names. This decides
    /// nothing.
    pub fn answering_at<'a>(self, http: impl IntoIterator<Item = &'a str>) -> Nodes {
        Nodes {
            http: http.into_iter().map(Box::from).collect(),
            ..self
        }
    }

    /// Where the node with this index answers over HTTP. None: it is not known.
    pub fn http(&self, node: usize) -> Option<&str> {
        self.http.get(node).map(|http| &**http)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.seeds.len()
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.seeds.is_empty()
    }

    /// The index of the node that `user` belongs to; 0 if there are none. Costs one hash of the
    /// user and a multiplication or two for each node.
    pub fn of(&self, user: &[u8]) -> usize {
        if self.seeds.len() < 2 {
            return 0;
        }
        self.best_of(digest(user), |_| true).unwrap_or(0)
    }

    /// The index of the node that a user with this [`digest`] belongs to, if no others than these
    /// were there. None: there is none of them.
    pub fn best_of(&self, user: u64, is_there: impl Fn(usize) -> bool) -> Option<usize> {
        let seeds = self.seeds.iter().enumerate();
        let scores = seeds
            .filter(|(node, _)| is_there(*node))
            .map(|(node, seed)| (node, mix(seed ^ user)));
        // On a tie the lower seed, so that the order in the list does not matter.
        let best = scores.max_by_key(|(node, score)| (*score, self.seeds[*node]));
        best.map(|(node, _)| node)
    }
}

/// What the choice among nodes depends on of a user, or of a node's name.
pub fn digest(bytes: &[u8]) -> u64 {
    let hash = blake3::hash(bytes);
    let first = hash
        .as_bytes()
        .first_chunk()
        .expect("a BLAKE3 hash has 32 bytes");
    u64::from_le_bytes(*first)
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood, 2014): every bit of the sum depends on every
/// bit given.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: u32 = 30_000;

    fn counts(names: &[&str]) -> Vec<u32> {
        let nodes = Nodes::new(names.iter().copied());
        let mut counts = vec![0; names.len()];
        for user in 0..USERS {
            counts[nodes.of(format!("user-{user}").as_bytes())] += 1;
        }
        counts
    }

    #[test]
    fn shares_are_even_and_the_order_does_not_matter() {
        let names = ["10.0.0.1:8081", "10.0.0.2:8081", "10.0.0.3:8081"];
        let shares = counts(&names);
        assert!(
            shares.iter().all(|share| share.abs_diff(USERS / 3) < 300),
            "{shares:?}"
        );
        let turned = counts(&[names[2], names[0], names[1]]);
        assert_eq!(turned, [shares[2], shares[0], shares[1]]);
    }

    #[test]
    fn a_new_node_takes_its_share_and_moves_nobody_else() {
        let names = ["a:1", "b:1", "c:1", "d:1"];
        let (few, many) = (Nodes::new(names[..3].iter().copied()), Nodes::new(names));
        let mut moved: u32 = 0;
        for user in (0..USERS).map(|user| user.to_le_bytes()) {
            if few.of(&user) != many.of(&user) {
                assert_eq!(
                    many.of(&user),
                    3,
                    "moved between nodes that were there before"
                );
                moved += 1;
            }
        }
        assert!(moved.abs_diff(USERS / 4) < 300, "{moved}");
    }

    #[test]
    fn of_a_node_that_is_not_there_the_others_have_the_users_and_keep_their_own() {
        let nodes = Nodes::new(["a:1", "b:1", "c:1"]);
        let fewer = Nodes::new(["a:1", "c:1"]);
        for user in (0..1_000_u32).map(u32::to_le_bytes) {
            let (of_all, of_two) = (nodes.of(&user), [0, 2][fewer.of(&user)]);
            let best = nodes.best_of(digest(&user), |node| node != 1);
            assert_eq!(best, Some(of_two));
            assert!(of_all == 1 || of_all == of_two);
        }
        assert_eq!(nodes.best_of(7, |_| false), None);
    }

    #[test]
    fn the_choice_is_part_of_the_protocol() {
        let nodes = Nodes::new(["10.0.0.1:8081", "10.0.0.2:8081"]);
        let of: Vec<usize> = ["alice", "bob", "carol", "dave", "erin", "frank"]
            .map(|user| nodes.of(user.as_bytes()))
            .into();
        assert_eq!(of, [1, 1, 0, 0, 1, 1]);
        assert_eq!(nodes.http(1), None);
        let nodes = nodes.answering_at(["http://a:1", "http://b:1"]);
        assert_eq!((nodes.http(1), nodes.http(2)), (Some("http://b:1"), None));
        assert_eq!(Nodes::default().of(b"x"), 0);
        assert_eq!(Nodes::new(["only"]).of(b"x"), 0);
    }
}
