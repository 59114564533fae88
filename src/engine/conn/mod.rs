//! Connections.
//!
//! `life` owns all of a shard's connections, `flush` what a write comes to, `timers` what their
//! deadlines mean, `http` what a connection says until it becomes a stream, `pending` what the
//! answer to a request needs, however late it comes, `permits` what streams keep of tokens,
//! `addresses` how many connections each client has, `readers` what else operators are told of a
//! stream.

pub(in crate::engine) mod addresses;
pub(super) mod flush;
pub(super) mod http;
pub(super) mod life;
pub(super) mod pending;
pub(in crate::engine) mod permits;
pub(in crate::engine) mod readers;
pub(super) mod timers;
