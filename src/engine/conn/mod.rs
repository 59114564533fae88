//! Connections.
//!
//! `http` owns what a connection does until it becomes a stream.

pub(super) mod http;
