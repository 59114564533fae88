//! Parts of calls at a real-time node that presence nodes answer.
//!
//! Owns their shape, and the room that they take: users of calls are counted until nobody needs
//! them any more, neither the request that waits nor the link that has yet to send them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::engine::errand::Asker;
#[cfg(test)]
use crate::realtime::ConnId;
#[cfg(test)]
use crate::time::Mono;
use crate::wire::UserBuf;
use crate::wire::record::Said;

/// Most users of one part: what a presence node takes at once.
pub const USERS_PER_PART_MAX: usize = 1_000;

/// What a presence node is asked for somebody's call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// The states of the users, as anybody is told them.
    States,
    /// The state of the one user, as it alone is told it.
    Own,
    /// A beat of each.
    Beats {
        /// What all of them say with it.
        said: Said,
        /// For how long nobody has been at the device that beats for them.
        idle_ms: Option<u64>,
    },
}

/// What of a call is one presence node's.
#[derive(Clone, Debug)]
pub struct Part {
    pub wanted: Wanted,
    /// At most [`USERS_PER_PART_MAX`].
    pub users: Vec<UserBuf>,
    /// The request that waits for it.
    pub asker: Asker,
    /// Which of the request's parts it is.
    pub index: usize,
    pub(in crate::engine) _room: Room,
}

impl Part {
    /// One that takes no room, of a request that nobody has made.
    #[cfg(test)]
    pub(crate) fn fixture(wanted: Wanted, users: &[&str], until: Mono) -> Part {
        let user = |user: &&str| UserBuf::from_text(*user).expect("a user");
        let conn = ConnId {
            index: 7,
            generation: 1,
        };
        let asker = Asker {
            shard: 0,
            conn,
            until,
        };
        Part {
            wanted,
            users: users.iter().map(user).collect(),
            asker,
            index: 0,
            _room: Rooms::default().take(0, 0).expect("no room is needed"),
        }
    }
}

/// How many users of calls wait.
#[derive(Default, Debug)]
pub(in crate::engine) struct Rooms(Arc<AtomicUsize>);

/// Room for the users of one call, given back with its last copy.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Room(
    #[expect(dead_code, reason = "what matters is its end")] Arc<Held>,
);

#[derive(Debug)]
struct Held {
    of: Arc<AtomicUsize>,
    users: usize,
}

impl Rooms {
    /// Room for so many users more. None: more than `max` would wait then, and others do already.
    pub(in crate::engine) fn take(&self, users: usize, max: usize) -> Option<Room> {
        // The one shard takes; its links give back at the same time.
        let waiting = self.0.load(Ordering::Relaxed);
        if waiting > 0 && waiting + users > max {
            return None;
        }
        self.0.fetch_add(users, Ordering::Relaxed);
        let of = Arc::clone(&self.0);
        Some(Room(Arc::new(Held { of, users })))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of.fetch_sub(self.users, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_given_back_with_the_last_copy() {
        let rooms = Rooms::default();
        let first = rooms.take(3, 5).expect("there is room");
        assert!(rooms.take(3, 5).is_none());
        let copy = first.clone();
        drop(first);
        assert!(rooms.take(3, 5).is_none());
        let second = rooms.take(2, 5).expect("there is room");
        drop(copy);
        assert!(rooms.take(3, 5).is_some() && rooms.take(4, 5).is_none());
        drop(second);
        assert!(rooms.take(6, 5).is_some(), "one finds room in any case");
    }
}
