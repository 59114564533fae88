//! What has happened to a node of a fleet, as numbers for metrics and tests.

/// Each counts up from the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Commands that were sent.
    pub commands: u64,
    /// Messages that were heard.
    pub messages: u64,
    /// Calls that said something of users, and were done.
    pub vouches: u64,
    /// Users of whom something was said, each time that it was done.
    pub said: u64,
    /// Calls that came too late, by the server's clock.
    pub late: u64,
    /// Calls that had been done before.
    pub duplicates: u64,
    /// Calls or audits that found calls missing, or claims that are not ours.
    pub reconciles: u64,
    /// Partitions that were read anew.
    pub repairs: u64,
    /// Partitions that caught up by their latest messages.
    pub rings: u64,
    /// Users who were read.
    pub users_read: u64,
    /// New lives, since the first.
    pub lives: u64,
    /// Lives of others that were fenced, a partition each.
    pub fences: u64,
    /// Users who were taken offline for dead lives.
    pub reaped: u64,
    /// Users who were offline for so long that nothing is kept of them.
    pub forgotten: u64,
    /// Answers and messages that are none of the library's.
    pub malformed: u64,
    /// Calls that were refused for another reason.
    pub refused: u64,
    /// What was to be said once and was given up, because Redis was away for too long.
    pub acts_dropped: u64,
}
