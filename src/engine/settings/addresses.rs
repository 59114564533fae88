//! Client addresses: which count, and for whom.

use core::net::IpAddr;

use super::Settings;
use crate::engine::conn::addresses::{Client, CountsFor};

/// One client may have the connections that this many share.
pub const CLIENTS_AT_LEAST: usize = 4;

impl Settings {
    /// Most connections that one client may have on a shard.
    pub(in crate::engine) fn conns_per_address_max(&self) -> usize {
        match self.conns_per_address_max {
            0 => (self.conns_max / CLIENTS_AT_LEAST).max(1),
            max => max,
        }
    }

    /// Whether this is a proxy that is believed when it names a client.
    pub(in crate::engine) fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let mut nets = self.trusted_proxies.iter();
        nets.any(|net| net.contains(&address))
    }

    /// The client whose connection from there counts; None: it does not, or a proxy has it.
    pub fn client_at(&self, address: IpAddr) -> Option<Client> {
        match self.counts_for(address) {
            CountsFor::Client(client) => Some(client),
            CountsFor::Exempt | CountsFor::Proxy => None,
        }
    }

    /// For whom a connection from there counts.
    pub(in crate::engine) fn counts_for(&self, address: IpAddr) -> CountsFor {
        if self.trusts(address) {
            CountsFor::Proxy
        } else if address.to_canonical().is_loopback() {
            CountsFor::Exempt
        } else {
            CountsFor::Client(Client::of(address))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_counts() {
        let nets = ["10.0.0.0/8", "127.0.0.2/32", "2001:db8::/32"];
        let settings = Settings {
            conns_max: 400,
            trusted_proxies: nets.map(|net| net.parse().unwrap()).to_vec(),
            ..Settings::default()
        };
        assert_eq!(settings.conns_per_address_max(), 100);
        for (address, proxy) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("127.0.0.2", true),
            ("2001:db8::9", true),
            ("127.0.0.1", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
        ] {
            let expected = if proxy {
                CountsFor::Proxy
            } else {
                CountsFor::Exempt
            };
            assert_eq!(
                settings.counts_for(address.parse().unwrap()),
                expected,
                "{address}"
            );
        }
        let other: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(
            settings.counts_for(other),
            CountsFor::Client(Client::of(other))
        );
        let one = Settings {
            conns_max: 3,
            ..Settings::default()
        };
        assert_eq!(one.conns_per_address_max(), 1);
    }
}
