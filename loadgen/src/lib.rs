//! greendot's load generator as a library, so that its parts can be tested.
//!
//! From below: clock, affinity, effort, procfs, schedule, population, graph, sse, chunked, record,
//! server_clock, stats; report, html and shards; target (which servers); fleet (streams), http and
//! exposition (plain requests), cause (what makes a publisher change), workers (several processes);
//! herd and crew (very many streams); ledger and truth (the judges); then one module for each
//! subcommand. The server uses none of it.

pub mod affinity;
pub mod args;
pub mod asks;
pub mod beats;
pub mod cause;
pub mod chunked;
pub mod churn;
pub mod clock;
pub mod cores;
pub mod crew;
pub mod effort;
pub mod exposition;
pub mod fanout;
pub mod fleet;
pub mod graph;
pub mod herd;
pub mod html;
pub mod http;
pub mod ledger;
pub mod plan;
pub mod population;
pub mod procfs;
pub mod query;
pub mod record;
pub mod report;
pub mod schedule;
pub mod server_clock;
pub mod shards;
pub mod sse;
pub mod stats;
pub mod storm;
pub mod streams;
pub mod target;
pub mod truth;
pub mod workers;
