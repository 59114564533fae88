//! greendot: a real-time presence server.

pub mod presence;
pub mod time;
pub mod wire;
