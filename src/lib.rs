//! greendot: a real-time presence server.

pub mod cli;
pub mod config;
pub mod engine;
pub mod fleet_key;
pub mod limits;
pub mod links;
pub mod logs;
pub mod metrics;
pub mod node;
pub mod pages;
pub mod planted;
pub mod presence;
pub mod realtime;
pub mod shard;
pub mod slot;
pub mod status;
pub mod store;
pub mod time;
pub mod tools;
pub mod wire;
