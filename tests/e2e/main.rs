//! The real binary over loopback: what only a kernel, a file system and a process can show.
//!
//! Every server is a process of its own with its own folder and address, so all tests run side by
//! side. None asserts how fast something is: only what comes, in which order, and not before its
//! time.

mod canary;
mod disk;
mod harness;
mod http;
mod metrics;
mod netns;
mod process;
mod receiver;
mod scrape;
mod stream;
mod terminal;
mod tls_client;

mod connected;
mod devices;
mod drain;
mod every_limit;
mod fleet;
mod fleet_access;
mod fleet_online;
mod fleet_says;
mod fleet_streams;
mod fleet_tokens;
mod fleet_tools;
mod fleet_versions;
mod fleet_webhooks;
mod folder;
mod forget;
mod goodbyes;
mod identity;
mod ids;
mod limits;
mod logs;
mod memory;
mod memory_group;
mod operators;
mod overflow;
mod pages;
mod pinning;
mod presence;
mod rates;
mod readers;
mod relayed;
mod reload;
mod restart;
mod revoked;
mod shards;
mod split;
mod stall;
mod standstill;
mod start;
mod statuses;
mod store;
mod supervised;
mod tls;
mod tools;
mod urgent;
mod vanished;
mod webhooks;
mod without_a_fleet;
