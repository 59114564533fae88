//! greendot: a real-time presence server.

pub mod admin;
pub mod cli;
pub mod config;
pub mod engine;
pub mod fleet_key;
pub mod limits;
pub mod links;
pub mod logs;
pub mod metrics;
pub mod node;
pub mod planted;
pub mod presence;
pub mod realtime;
pub mod shard;
pub mod time;
pub mod tools;
pub mod wire;
