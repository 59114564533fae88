//! `greendot fleet`: what a fleet's database says of its nodes, partitions and claims.
//!
//! Reads Redis, and changes nothing. Owns what is read and how it is shown; what bytes mean is
//! `fleet`'s.

mod audit;
mod database;
mod nodes;
mod partitions;
mod status;

use std::io::Write;
use std::path::PathBuf;

use super::read_enough;
use crate::time::Clock;
use database::Database;
pub(super) use database::{layout, ms_of};

/// What was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Servers of the database, as `--cluster` of a node has them.
    pub cluster: String,
    /// The file with its password, if the URL has none.
    pub password_file: Option<PathBuf>,
    /// Whom `rediss://` believes.
    pub authorities: Option<PathBuf>,
    /// For programs.
    pub json: bool,
    pub what: What,
}

/// What is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// The whole in a few lines, and whether anything is wrong.
    Status,
    /// Each node.
    Nodes,
    /// Each partition.
    Partitions,
    /// What nodes have enrolled against what users' fields say.
    Audit,
}

/// Reads the database and prints what was asked for. False: something is wrong with the fleet,
/// which has been printed.
///
/// Errors: the database can not be read; in words.
pub fn run(options: &Options, clock: &Clock, out: &mut dyn Write) -> Result<bool, String> {
    let mut database = Database::open(options)?;
    let (text, is_well) = match options.what {
        What::Status => status::show(&mut database, options.json)?,
        What::Nodes => nodes::show(&mut database, options.json)?,
        What::Partitions => partitions::show(&mut database, options.json)?,
        What::Audit => audit::show(&mut database, options.json, clock, out)?,
    };
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) => read_enough(&error).map(|()| is_well),
        Ok(()) => Ok(is_well),
    }
}

/// `1 node`, `2 nodes`.
fn counted(count: u64, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

/// A life as logs and tables name it.
fn name_of(life: crate::fleet::Life) -> String {
    format!("{:08x}", u32::from_be_bytes(life.0))
}
