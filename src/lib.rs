//! greendot: a real-time presence server, as a library that its binary, its load generator and its
//! tests are made of.
//!
//! From outside, use this much; it is documented item by item, and a change of it is a change for
//! others:
//!
//! - [`wire`]: every format, for clients and senders of one's own. [`wire::beat`] seals and opens
//!   beat datagrams, [`wire::sse`] reads a stream, [`wire::record`] reads what it says,
//!   [`wire::nodes`] says which presence node a user belongs to.
//! - [`time`], [`status`]: the types that these formats speak in.
//! - [`config`] and [`node`]: load a configuration and run a node in this process, as
//!   `greendot serve` does.
//!
//! The other modules are public so that tests, benches and the simulator reach them. They promise
//! nothing. docs/ARCHITECTURE.md says what each owns, `tests/layers` what each may name.

// Elsewhere the program's build says what to do, and nothing else may fail before.
#![cfg(target_os = "linux")]

pub mod auth;
mod backoff;
#[cfg(feature = "cluster")]
#[warn(missing_docs)]
pub mod bridge;
pub mod cache;
mod cgroup;
pub mod cli;
#[warn(missing_docs)]
pub mod config;
pub mod engine;
#[cfg(feature = "cluster")]
#[warn(missing_docs)]
pub mod fleet;
pub mod fleet_key;
pub mod key_files;
pub mod limits;
pub mod links;
pub mod logs;
pub mod lookup;
pub mod metrics;
#[warn(missing_docs)]
pub mod node;
pub mod pages;
pub mod planted;
pub mod presence;
pub mod random;
pub mod reach;
pub mod realtime;
pub mod redis_url;
pub mod shard;
pub mod slot;
#[warn(missing_docs)]
pub mod status;
pub mod store;
#[warn(missing_docs)]
pub mod time;
pub mod tools;
pub mod trust;
pub mod version;
#[warn(missing_docs)]
pub mod wire;
