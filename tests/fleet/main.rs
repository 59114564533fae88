//! The functions of a fleet against a real Redis: each rule as inputs and exact outputs.
//!
//! Each test has a server of its own, in a folder of its own. Without redis-server they are
//! skipped, which a notice says.

#![expect(clippy::unwrap_used, reason = "a test's unwrap is an assertion")]

mod churn;
mod claims;
mod cluster;
mod ends;
mod faults;
mod fences;
mod goodbyes;
mod lanes;
#[path = "../fleet_sim/lua.rs"]
mod lua;
mod members;
mod redis;
mod told;
mod twin;
mod world;
