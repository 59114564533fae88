//! The testable parts of greendot's load generator.

pub mod clock;
pub mod graph;
pub mod population;
pub mod record;
pub mod schedule;
pub mod sse;
