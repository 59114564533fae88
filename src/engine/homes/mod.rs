//! Homes: to which node of a fleet a user's beats go that hold no stream where they come in.
//!
//! Without them a balancer that spreads beats would have every node claim everybody, and Redis be
//! told of it. Owns who is whose home ([`HomeList`]), how shards get to know of other lists
//! ([`Homes`]), what is passed on ([`Passing`]), and what callers are told of their own writes
//! until the fleet's word comes ([`OwnWrites`]). Opens no socket and asks nobody:
//! who lives is the bridge's to find out.

mod list;
mod parted;
mod passing;
mod writes;

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::time::Mono;
use crate::wire::User;

pub use list::{Home, HomeList, PartitionSet, Place};
pub(super) use parted::Goodbye;
pub(super) use passing::{Passing, Said};
pub(super) use writes::OwnWrite;
use writes::OwnWrites;

/// What all shards of a node and its bridge share. The default is that of a node of no fleet: each
/// beat counts where it comes in.
#[derive(Clone, Debug, Default)]
pub struct Homes(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    list: ArcSwap<HomeList>,
    writes: OwnWrites,
}

impl Homes {
    /// These count from the next turn of each shard on.
    pub fn store(&self, list: HomeList) {
        self.0.list.store(Arc::new(list));
    }

    /// Those that count now.
    pub fn load(&self) -> Arc<HomeList> {
        self.0.list.load_full()
    }

    /// The fleet's word of a user has come: it is here, or not.
    pub fn told(&self, user: User<'_>, is_here: bool) {
        self.0.writes.told(user, is_here);
    }

    /// The fleet has judged what was said of a user: its own word counts.
    pub fn settle(&self, user: User<'_>) {
        self.0.writes.settle(user);
    }

    /// The fleet has ended a user's stay, or hidden it, at that time: what was said before is over.
    pub fn overrule(&self, user: User<'_>, at: Mono) {
        self.0.writes.overrule(user, at);
    }

    /// What callers here have said of users, and the fleet has not told yet.
    pub(super) fn writes(&self) -> &OwnWrites {
        &self.0.writes
    }

    /// Others than `known`, if there are.
    pub(super) fn newer(&self, known: &Arc<HomeList>) -> Option<Arc<HomeList>> {
        let latest = self.0.list.load();
        (!Arc::ptr_eq(&latest, known)).then(|| Arc::clone(&latest))
    }
}
