//! greendot: a real-time presence server.

pub mod admin;
pub mod engine;
pub mod metrics;
pub mod presence;
pub mod realtime;
pub mod time;
pub mod wire;
