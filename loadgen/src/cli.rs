//! The command line: one variant for each subcommand, whose flags are its own.

use clap::{Parser, Subcommand};

use crate::beats::BeatsArgs;
use crate::churn::ChurnArgs;
use crate::common::Common;
use crate::cores::CoresArgs;
use crate::fanout::FanoutArgs;
use crate::plan::PlanArgs;
use crate::query::QueryArgs;
use crate::storm::StormArgs;
use crate::streams::HoldArgs;

/// Open-loop load generator for greendot. Exit code 0: done; 1: the server did something wrong; 2:
/// could not run.
#[derive(Parser)]
#[command(version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub scenario: Scenario,
    /// Flags of all subcommands.
    #[command(flatten)]
    pub common: Common,
}

/// The subcommands.
#[derive(Subcommand)]
pub enum Scenario {
    /// Ramp to N event streams, hold them, and weigh the server
    Streams(HoldArgs),
    /// Transitions on a schedule, and when each watcher was told
    Fanout(FanoutArgs),
    /// Beat datagrams at a rate or flat out, and where they were lost
    Beats(BeatsArgs),
    /// Presence queries at a rate or flat out
    Query(QueryArgs),
    /// Cut all streams at once and wait until all are back
    Storm(StormArgs),
    /// A day in a minute, with every watcher's view checked against the truth
    Churn(ChurnArgs),
    /// A scenario against servers of 1 to N shards
    Cores(CoresArgs),
    /// Cores, memory, network and nodes for a number of users
    Plan(PlanArgs),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
