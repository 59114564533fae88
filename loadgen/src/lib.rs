//! greendot's load generator as a library, so that its parts can be tested.
//!
//! The ground: clock, units, gone, schedule, population, stats, knee and the like. On it: report,
//! html and shards; common (flags of all), servers and target (which servers); fleet (streams),
//! http and exposition (plain requests), cause (what makes a publisher change), workers (several
//! processes); answers, herd and crew (very many streams); ledger and truth (the judges); then one
//! module for each subcommand, which owns its flags; cli above them. `tests/layers` holds the
//! order. The server uses none of it.

pub mod affinity;
pub mod answers;
pub mod asks;
pub mod beats;
pub mod cause;
pub mod chunked;
pub mod churn;
pub mod cli;
pub mod clock;
pub mod common;
pub mod cores;
pub mod count;
pub mod crew;
pub mod effort;
pub mod exposition;
pub mod fanout;
pub mod fleet;
pub mod gone;
pub mod graph;
pub mod herd;
pub mod html;
pub mod http;
pub mod knee;
pub mod ledger;
pub mod plan;
pub mod population;
pub mod procfs;
pub mod progress;
pub mod query;
pub mod record;
pub mod report;
pub mod schedule;
pub mod seal;
pub mod server_clock;
pub mod servers;
pub mod shards;
pub mod sse;
pub mod stats;
pub mod storm;
pub mod streams;
pub mod target;
pub mod truth;
pub mod units;
pub mod workers;
