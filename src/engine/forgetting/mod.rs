//! A user is forgotten: what becomes of its streams and of those who watch it, on every shard.
//!
//! Owns what a shard must do before it lets go of the slot: its streams of that publisher are ended
//! by the pass that ends those of whoever is logged out, and those who watch the slot watch the
//! name again, in slices, since each costs a rewritten list. They are told that nobody has ever
//! seen the user, which is what is true from here on. Whatever else keeps the slot's number keeps
//! it for a short time only (parked requests, errands in the mail), and that is waited for. When
//! the slot may be another's is the presence database's (`presence/forget.rs`).

mod run;

use std::collections::VecDeque;

use super::upstream::Erasure;
use crate::slot::Slot;
use crate::time::Mono;
use crate::wire::UserBuf;

/// Slots that this shard has yet to let go of.
#[derive(Debug, Default)]
pub(in crate::engine) struct Leaving {
    /// Their watchers are yet to be moved.
    watched: VecDeque<Leaver>,
    /// Nobody here watches them any more.
    unwatched: VecDeque<Leaver>,
    /// Users of whose erasure webhooks are yet to be told.
    pub(in crate::engine) untold: VecDeque<Erasure>,
}

#[derive(Debug)]
struct Leaver {
    slot: Slot,
    user: UserBuf,
    /// Since when its streams are looked for. None: too many others' are.
    sought: Option<Mono>,
}

impl Leaving {
    /// Watchers wait to be moved.
    pub(in crate::engine) fn has_work(&self) -> bool {
        !self.watched.is_empty()
    }
}
