//! Which fleet a node belongs to, and how others of it reach this one.
//!
//! Owns the forms of these values. Opens nothing: whether the servers are there is found out by the
//! bridge.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::redis_url::Servers;

/// What a node of a fleet is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FleetConfig {
    /// Servers of the database, from which the others are found; None: the node is in no fleet.
    pub servers: Option<Servers>,
    /// The file with the password, if it is not in the URLs.
    pub password_file: Option<PathBuf>,
    /// The address by which other nodes reach this one's HTTP; None: the one that it listens on.
    pub advertise_http: Option<SocketAddr>,
    /// The same of its datagrams.
    pub advertise_udp: Option<SocketAddr>,
    /// Partitions of a fleet that is created now: a power of two from 64 to 16,384.
    pub partitions: u32,
    /// Hashes of each partition for users who are offline, of such a fleet.
    pub buckets: u32,
    /// How long departures wait after an outage of the database, in ms.
    pub settle_ms: u64,
    /// How many users of dead nodes the whole fleet takes offline a second.
    pub reap_users_per_second: u64,
}

impl Default for FleetConfig {
    fn default() -> FleetConfig {
        FleetConfig {
            servers: None,
            password_file: None,
            advertise_http: None,
            advertise_udp: None,
            partitions: 1_024,
            buckets: 16,
            settle_ms: 6_000,
            reap_users_per_second: 20_000,
        }
    }
}

/// The addresses by which others are to reach this node, or what is to be set.
pub(super) fn check(
    fleet: &FleetConfig,
    listens: [(&'static str, SocketAddr); 2],
    faults: &mut Vec<String>,
) {
    let set = [
        ("advertise-http", fleet.advertise_http),
        ("advertise-udp", fleet.advertise_udp),
    ];
    let Some(servers) = &fleet.servers else {
        let useless = [
            ("cluster-password-file", fleet.password_file.is_some()),
            (set[0].0, set[0].1.is_some()),
            (set[1].0, set[1].1.is_some()),
        ];
        for (name, _) in useless.iter().filter(|(_, is_set)| *is_set) {
            faults.push(format!(
                "{name} is set, but no fleet; name its database with --cluster redis://HOST:PORT"
            ));
        }
        return;
    };
    if fleet.password_file.is_some() && servers.password.is_some() {
        faults.push(
            "cluster has a password, and cluster-password-file is set too; leave one of them out"
                .into(),
        );
    }
    if !cfg!(feature = "cluster") {
        faults.push(
            "cluster is set, and this greendot was built without the cargo feature `cluster`; \
             take a release, or build it with --features cluster"
                .into(),
        );
    }
    for ((flag, advertised), (name, at)) in set.into_iter().zip(listens) {
        let is_given = advertised.is_some_and(|at| !at.ip().is_unspecified());
        if !is_given && at.ip().is_unspecified() {
            faults.push(format!(
                "{name} is {at}, which is no address that other nodes of the fleet can reach; say \
                 which one is with --{flag}"
            ));
        } else if advertised.is_some_and(|at| at.ip().is_unspecified() || at.port() == 0) {
            faults.push(format!(
                "{flag} is no address that other nodes can reach; give the IP and port by which \
                 they reach this one"
            ));
        }
    }
    let partitions = fleet.partitions;
    if !partitions.is_power_of_two() || !(64..=16_384).contains(&partitions) {
        faults.push(format!(
            "cluster-partitions is {partitions}; it takes a power of two from 64 to 16384"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_must_know_where_a_node_is() {
        let check = |fleet: &FleetConfig, http: &str| {
            let at = |text: &str| text.parse::<SocketAddr>().unwrap();
            let mut faults = Vec::new();
            super::check(
                fleet,
                [("http", at(http)), ("udp", at("10.0.0.1:2"))],
                &mut faults,
            );
            faults.retain(|fault| !fault.contains("cargo feature"));
            faults
                .into_iter()
                .map(|fault| fault[..20].to_owned())
                .collect::<Vec<_>>()
        };
        let alone = FleetConfig::default();
        assert!(check(&alone, "0.0.0.0:1").is_empty());
        let fleet = FleetConfig {
            servers: Some(Servers::parse("redis://a:1").unwrap()),
            ..alone.clone()
        };
        assert!(check(&fleet, "10.0.0.1:1").is_empty());
        assert_eq!(check(&fleet, "0.0.0.0:1"), ["http is 0.0.0.0:1, w"]);
        let at = |text: &str| FleetConfig {
            advertise_http: text.parse().ok(),
            ..fleet.clone()
        };
        assert!(check(&at("10.0.0.1:1"), "0.0.0.0:1").is_empty());
        assert_eq!(
            check(&at("10.0.0.1:0"), "0.0.0.0:1"),
            ["advertise-http is no"]
        );
        let useless = FleetConfig {
            servers: None,
            ..at("10.0.0.1:1")
        };
        assert_eq!(check(&useless, "10.0.0.1:1"), ["advertise-http is se"]);
        let odd = FleetConfig {
            partitions: 100,
            ..fleet
        };
        assert_eq!(check(&odd, "10.0.0.1:1"), ["cluster-partitions i"]);
    }
}
