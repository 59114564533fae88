//! Which addresses are the world's, and which are nobody's but ours.
//!
//! Owns the rule by which a request that goes to somebody else's server is kept from this network:
//! a name may lead anywhere, and to another place each time that it is looked up. So it is held
//! against the address that is dialled. Dials nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// Whose an address is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose {
    /// Anybody may be there.
    Worlds,
    /// It is this machine, or in a network of one's own.
    Own,
    /// No server of anybody's is there: link-local (where clouds keep a machine's credentials),
    /// multicast, reserved.
    Nobodys,
}

/// How far requests may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Wherever they are told: to nodes of one's own.
    Anywhere,
    /// To the world, and over TLS alone.
    World,
    /// There too, and to addresses of one's own, with TLS or without.
    WorldAndOwn,
}

impl Reach {
    /// Whether this address may be dialled; `seals`: the connection will speak TLS.
    pub fn allows(self, address: IpAddr, seals: bool) -> bool {
        match (self, whose(address)) {
            (Reach::Anywhere, _) | (Reach::WorldAndOwn, Whose::Own) => true,
            (Reach::World | Reach::WorldAndOwn, Whose::Worlds) => seals,
            (Reach::World, Whose::Own) | (_, Whose::Nobodys) => false,
        }
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, bits: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), bits)
}

const fn v6(first: u16, second: u16, bits: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(first, second, 0, 0, 0, 0, 0, 0), bits)
}

/// RFC 1918, RFC 6598, and this machine.
const OWN_V4: [Ipv4Net; 5] = [
    v4(10, 0, 0, 0, 8),
    v4(172, 16, 0, 0, 12),
    v4(192, 168, 0, 0, 16),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
];

/// What the registry of special addresses (RFC 6890) has beside those.
const NOBODYS_V4: [Ipv4Net; 9] = [
    v4(0, 0, 0, 0, 8),
    v4(169, 254, 0, 0, 16),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    v4(192, 88, 99, 0, 24),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    // Multicast, reserved, broadcast.
    v4(224, 0, 0, 0, 3),
];

/// All that is given out to the world.
const WORLDS_V6: Ipv6Net = v6(0x2000, 0, 3);

/// What is among that and is special: protocols' (Teredo is one), examples, and addresses that lead
/// to one of IPv4, which may be any.
const NOBODYS_V6: [Ipv6Net; 4] = [
    v6(0x2001, 0, 23),
    v6(0x2001, 0xdb8, 32),
    v6(0x2002, 0, 16),
    v6(0x3fff, 0, 20),
];

/// Unique local addresses (RFC 4193).
const OWN_V6: Ipv6Net = v6(0xfc00, 0, 7);

/// Whose an address is.
pub fn whose(address: IpAddr) -> Whose {
    match address.to_canonical() {
        IpAddr::V4(address) => whose_v4(address),
        IpAddr::V6(address) => whose_v6(address),
    }
}

fn whose_v4(address: Ipv4Addr) -> Whose {
    match () {
        () if OWN_V4.iter().any(|net| net.contains(&address)) => Whose::Own,
        () if NOBODYS_V4.iter().any(|net| net.contains(&address)) => Whose::Nobodys,
        () => Whose::Worlds,
    }
}

fn whose_v6(address: Ipv6Addr) -> Whose {
    // A gateway translates it (RFC 6052): it is as what it stands for.
    if let [0x64, 0xff9b, 0, 0, 0, 0, high, low] = address.segments() {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        return whose_v4(Ipv4Addr::new(a, b, c, d));
    }
    match () {
        () if address.is_loopback() || OWN_V6.contains(&address) => Whose::Own,
        () if NOBODYS_V6.iter().any(|net| net.contains(&address)) => Whose::Nobodys,
        () if WORLDS_V6.contains(&address) => Whose::Worlds,
        () => Whose::Nobodys,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_addresses_are() {
        for (address, expected) in [
            ("1.1.1.1", Whose::Worlds),
            ("172.15.255.255", Whose::Worlds),
            ("172.32.0.0", Whose::Worlds),
            ("100.128.0.0", Whose::Worlds),
            ("2606:4700::1111", Whose::Worlds),
            ("64:ff9b::101:101", Whose::Worlds),
            ("127.0.0.1", Whose::Own),
            ("127.255.255.254", Whose::Own),
            ("10.1.2.3", Whose::Own),
            ("172.16.0.1", Whose::Own),
            ("172.31.255.255", Whose::Own),
            ("192.168.1.1", Whose::Own),
            ("100.64.0.1", Whose::Own),
            ("::1", Whose::Own),
            ("fd00::1", Whose::Own),
            ("::ffff:127.0.0.1", Whose::Own),
            ("::ffff:10.0.0.1", Whose::Own),
            ("64:ff9b::7f00:1", Whose::Own),
            ("0.0.0.0", Whose::Nobodys),
            ("0.1.2.3", Whose::Nobodys),
            ("169.254.169.254", Whose::Nobodys),
            ("192.0.0.192", Whose::Nobodys),
            ("198.19.0.1", Whose::Nobodys),
            ("224.0.0.1", Whose::Nobodys),
            ("240.0.0.1", Whose::Nobodys),
            ("255.255.255.255", Whose::Nobodys),
            ("::", Whose::Nobodys),
            ("::127.0.0.1", Whose::Nobodys),
            ("fe80::1", Whose::Nobodys),
            ("fec0::1", Whose::Nobodys),
            ("ff02::1", Whose::Nobodys),
            ("::ffff:169.254.169.254", Whose::Nobodys),
            ("64:ff9b::a9fe:a9fe", Whose::Nobodys),
            ("64:ff9b:1::1", Whose::Nobodys),
            ("2001::1", Whose::Nobodys),
            ("2001:db8::1", Whose::Nobodys),
            ("2002:7f00:1::", Whose::Nobodys),
        ] {
            assert_eq!(whose(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn how_far_requests_go() {
        let [world, own, nobodys] =
            ["1.1.1.1", "127.0.0.1", "169.254.169.254"].map(|ip| ip.parse().unwrap());
        for (reach, address, sealed, plain) in [
            (Reach::Anywhere, nobodys, true, true),
            (Reach::World, world, true, false),
            (Reach::World, own, false, false),
            (Reach::World, nobodys, false, false),
            (Reach::WorldAndOwn, world, true, false),
            (Reach::WorldAndOwn, own, true, true),
            (Reach::WorldAndOwn, nobodys, false, false),
        ] {
            let allows = (reach.allows(address, true), reach.allows(address, false));
            assert_eq!(allows, (sealed, plain), "{reach:?} {address}");
        }
    }
}
