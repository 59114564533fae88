//! greendot: a real-time presence server.

pub mod presence;
pub mod realtime;
pub mod time;
pub mod wire;
