//! Why a stream has ended.

/// Why a stream is no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gone {
    /// No connection came about.
    Refused,
    /// Answered with this status instead of 200.
    Status(u16),
    /// What came was not HTTP, or not an event stream.
    Malformed,
    /// The server ended it in order.
    Eof,
    /// The connection broke.
    Reset,
}
