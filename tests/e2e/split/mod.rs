//! The split roles: two real-time and two presence nodes, each in a network of its own, and what
//! happens between them.
//!
//! The nodes are the real binary. Clients, and the taps that record or disturb what goes between
//! the nodes, are in a hub that all nodes are connected to. Where no network namespaces can be
//! made, all are on loopback addresses, which is said, and what needs a firewall is left out.

pub(crate) mod asked;
mod cuts;
mod eight_steps;
mod erasure;
mod farewells;
mod hang;
mod losses;
mod puts;
mod readme;
mod silence;
mod spread;
mod statuses;
mod strangers;
mod tap;
mod watcher;
mod world;
