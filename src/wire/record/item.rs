//! What one item of a list may be refused for, while the others stand.

use crate::wire::{UserBuf, UserFault};

/// An entry of a list of users: one, or why it is none. Its index is its place in the list.
pub type Entry = Result<UserBuf, UserFault>;

/// Why one item of a list is refused for what it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ItemFault {
    /// It is no user, or says no user.
    User(UserFault),
    /// It is no record: a member is missing, or has another type.
    NotRecord,
    /// A time of it is no Unix time in ms.
    BadTime,
    /// It says of somebody who is here that there is no time since when.
    NoSince,
}

impl From<UserFault> for ItemFault {
    fn from(fault: UserFault) -> ItemFault {
        ItemFault::User(fault)
    }
}

impl ItemFault {
    /// What was wrong, for an error's `detail`.
    pub fn explain(self) -> &'static str {
        match self {
            ItemFault::User(fault) => fault.explain(),
            ItemFault::NotRecord => "the record has not the members of one",
            ItemFault::BadTime => "a time is no Unix time in ms",
            ItemFault::NoSince => "who is online came online at some time; `since` has none",
        }
    }
}
