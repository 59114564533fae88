//! What a user says of itself: a status, and whether others are told that it is here.
//!
//! Owns the words. What becomes of them is the presence database's.

use crate::status::Status;

/// What is said of a status that is none.
pub const BAD_STATUS: &str = "status is \"online\", \"away\" or \"busy\": what a user says of \
                              itself while it is here";

/// What is said of an `invisible` that is neither.
pub const BAD_INVISIBLE: &str = "invisible is true or false";

/// What a user says of itself. None: that stays as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Said {
    /// Online, away or busy.
    pub status: Option<Status>,
    /// Others are told that the user has gone.
    pub invisible: Option<bool>,
}

impl Said {
    /// Whether it says anything.
    pub fn is_empty(&self) -> bool {
        *self == Said::default()
    }

    /// Reads a status that a user may say.
    pub fn status_of(word: &[u8]) -> Option<Status> {
        match word {
            b"online" => Some(Status::Online),
            b"away" => Some(Status::Away),
            b"busy" => Some(Status::Busy),
            _ => None,
        }
    }

    /// Reads an `invisible` of a query.
    pub fn invisible_of(word: &[u8]) -> Option<bool> {
        match word {
            b"true" => Some(true),
            b"false" => Some(false),
            _ => None,
        }
    }
}
