//! The link of a fleet to real servers of Redis: what becomes of commands and subscriptions when
//! servers fail, move, lie still or refuse.
//!
//! Each test has servers of its own, in folders of their own. Without redis-server they are
//! skipped, which a notice says.

#![expect(clippy::unwrap_used, reason = "a test's unwrap is an assertion")]

mod cluster;
mod ear;
mod failing;
#[path = "../fleet/members.rs"]
mod members;
#[path = "../fleet/redis.rs"]
#[allow(dead_code, reason = "the tests of the library ask more")]
mod redis;
mod refusals;
mod single;
mod survey;
