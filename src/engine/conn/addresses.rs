//! How many connections each client address has.
//!
//! Owns the count of each address, and what each connection counts for. IPv6 addresses count by
//! their /64, which one customer has as a whole (RFC 6177). Costs 4 bytes a connection and some 40
//! an address, and nothing before the first one that counts. Never says who is exempt, nor how many
//! are too many.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hashbrown::HashMap;
use slab::Slab;

/// Bits of an IPv6 address that stand for one client.
const CLIENT_BITS: u32 = 64;

/// A client's address: an IPv4 address, or the first 64 bits of an IPv6 one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Client(IpAddr);

impl Client {
    /// All those of whom a proxy does not say it.
    pub(in crate::engine) const UNNAMED: Client = Client(IpAddr::V4(Ipv4Addr::UNSPECIFIED));

    /// Whose address this is.
    pub(in crate::engine) fn of(address: IpAddr) -> Client {
        Client(match address.to_canonical() {
            IpAddr::V6(v6) => {
                let mask = !0 << (u128::BITS - CLIENT_BITS);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
            v4 => v4,
        })
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(v4) => v4.fmt(f),
            IpAddr::V6(v6) => write!(f, "{v6}/{CLIENT_BITS}"),
        }
    }
}

/// For whom a connection counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::engine) enum CountsFor {
    /// For nobody.
    #[default]
    Exempt,
    /// A proxy has it, whose word of its clients is taken.
    Proxy,
    /// For a client.
    Client(Client),
}

/// What a place keeps: nothing counts; a proxy's; one too many; else a client's place and 3 more.
const EXEMPT: u32 = 0;
const PROXY: u32 = 1;
const SURPLUS: u32 = 2;
const FIRST: u32 = 3;

#[derive(Debug)]
struct Counted {
    client: Client,
    conns: usize,
}

/// The addresses of a shard's connections.
#[derive(Debug, Default)]
pub(in crate::engine) struct Addresses {
    places: HashMap<Client, usize, foldhash::fast::RandomState>,
    counted: Slab<Counted>,
    /// By the connection's index.
    of: Vec<u32>,
    surplus: usize,
}

impl Addresses {
    /// How many connections count for a client.
    pub(in crate::engine) fn conns(&self, client: Client) -> usize {
        let place = self.places.get(&client);
        place.map_or(0, |place| self.counted[*place].conns)
    }

    /// How many connections are there that are too many for their clients.
    pub(super) fn surplus(&self) -> usize {
        self.surplus
    }

    /// A connection counts for this one from here on, and for nobody else.
    pub(super) fn enter(&mut self, index: u32, counts_for: CountsFor) {
        self.leave(index);
        let kept = match counts_for {
            CountsFor::Exempt => return,
            CountsFor::Proxy => PROXY,
            CountsFor::Client(client) => {
                let counted = &mut self.counted;
                let place = *self
                    .places
                    .entry(client)
                    .or_insert_with(|| counted.insert(Counted { client, conns: 0 }));
                self.counted[place].conns += 1;
                FIRST + place as u32
            }
        };
        self.put(index, kept);
    }

    /// A connection is one too many for its client.
    pub(super) fn enter_surplus(&mut self, index: u32) {
        self.leave(index);
        self.surplus += 1;
        self.put(index, SURPLUS);
    }

    fn put(&mut self, index: u32, kept: u32) {
        let index = index as usize;
        if self.of.len() <= index {
            self.of.resize(index + 1, EXEMPT);
        }
        self.of[index] = kept;
    }

    fn get(&self, index: u32) -> u32 {
        self.of.get(index as usize).copied().unwrap_or(EXEMPT)
    }

    /// For which client a connection counts. None: for none, or for one that nobody names.
    pub(super) fn client(&self, index: u32) -> Option<Client> {
        let place = self.get(index).checked_sub(FIRST)?;
        let client = self.counted[place as usize].client;
        (client != Client::UNNAMED).then_some(client)
    }

    /// Whether a proxy has it, whose word of its clients is taken, and nothing counts it yet.
    pub(super) fn is_proxy(&self, index: u32) -> bool {
        self.get(index) == PROXY
    }

    /// Whether it is one too many for its client.
    pub(super) fn is_surplus(&self, index: u32) -> bool {
        self.get(index) == SURPLUS
    }

    /// A connection has gone.
    pub(super) fn leave(&mut self, index: u32) {
        let Some(kept) = self.of.get_mut(index as usize).map(std::mem::take) else {
            return;
        };
        if kept == SURPLUS {
            self.surplus -= 1;
        }
        let Some(place) = kept.checked_sub(FIRST) else {
            return;
        };
        let counted = &mut self.counted[place as usize];
        counted.conns -= 1;
        if counted.conns == 0 {
            let Counted { client, .. } = self.counted.remove(place as usize);
            self.places.remove(&client);
            self.places.shrink_to(2 * self.places.len());
        }
    }

    /// Places from here on are for nobody.
    pub(super) fn cut_off(&mut self, places: u32) {
        self.of.truncate(places as usize);
        crate::realtime::give_back(&mut self.of);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str) -> Client {
        Client::of(text.parse().unwrap())
    }

    #[test]
    fn an_ipv6_client_is_its_64() {
        assert_eq!(client("2001:db8:1:2::5"), client("2001:db8:1:2:ffff::9"));
        assert_ne!(client("2001:db8:1:2::5"), client("2001:db8:1:3::5"));
        assert_eq!(client("::ffff:192.0.2.1"), client("192.0.2.1"));
        assert_ne!(client("192.0.2.1"), client("192.0.2.2"));
        assert_eq!(client("2001:db8:1:2::5").to_string(), "2001:db8:1:2::/64");
        assert_eq!(client("::ffff:192.0.2.1").to_string(), "192.0.2.1");
    }

    #[test]
    fn each_connection_counts_once_and_until_its_end() {
        let mut addresses = Addresses::default();
        let (a, b) = (client("192.0.2.1"), client("192.0.2.2"));
        addresses.enter(7, CountsFor::Client(a));
        addresses.enter(9, CountsFor::Client(a));
        assert_eq!((addresses.conns(a), addresses.conns(b)), (2, 0));
        addresses.enter(9, CountsFor::Client(b));
        assert_eq!((addresses.conns(a), addresses.conns(b)), (1, 1));
        addresses.enter(8, CountsFor::Proxy);
        addresses.enter_surplus(3);
        assert_eq!(
            (addresses.client(7), addresses.client(9)),
            (Some(a), Some(b))
        );
        assert_eq!([8, 3, 100].map(|index| addresses.client(index)), [None; 3]);
        assert_eq!(
            [7, 8, 3, 100].map(|index| (addresses.is_proxy(index), addresses.is_surplus(index))),
            [(false, false), (true, false), (false, true), (false, false)]
        );
        assert_eq!(addresses.surplus(), 1);
        for index in [3, 7, 7, 8, 9, 100] {
            addresses.leave(index);
        }
        assert_eq!((addresses.conns(a), addresses.conns(b)), (0, 0));
        assert_eq!(addresses.surplus(), 0);
        assert!(addresses.places.is_empty() && addresses.counted.is_empty());
    }
}
