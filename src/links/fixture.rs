//! A presence node's store for the tests of the links: beats go in, transitions come out.

use crate::presence::{Presence, StoreOptions, Sweep, SweepContext, Transition};
use crate::slot::Slot;
use crate::time::{Mono, Now, Unix};
use crate::wire::User;

pub(super) const OFFLINE_AFTER_MS: u64 = 2_500;

pub(super) struct Store {
    pub(super) presence: Presence,
    sweep: Sweep,
    _dir: tempfile::TempDir,
}

/// So many ms by both clocks.
pub(super) fn at(ms: u64) -> Now {
    Now {
        mono: Mono::from_micros(ms * 1_000),
        unix: Unix::from_ms(ms),
    }
}

impl Store {
    pub(super) fn new() -> Store {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            dir: dir.path().to_owned(),
            users_max: 10_000,
            offline_after_ms: OFFLINE_AFTER_MS,
            restart_grace_ms: u64::MAX,
            shards: 1,
            memory: crate::presence::MemoryChoice::Off,
            boot_id: [1; 16],
        };
        Store {
            presence: Presence::open(&options, at(1_000)).unwrap().0,
            sweep: Sweep::new(0, 1),
            _dir: dir,
        }
    }

    pub(super) fn beat(&mut self, user: &str, ms: u64) -> Vec<Transition> {
        let user = User::parse(user.as_bytes()).unwrap();
        let slot = self.presence.intern(user).unwrap();
        self.presence.record_beat(slot, Unix::LATEST, at(ms));
        self.look(slot, ms)
    }

    pub(super) fn look(&mut self, slot: Slot, ms: u64) -> Vec<Transition> {
        self.presence.note_turn(0, at(ms));
        let context = SweepContext {
            now: at(ms),
            offline_after_ms: OFFLINE_AFTER_MS,
            hold_expiries: false,
        };
        let mut out = Vec::new();
        self.sweep.look(&self.presence, context, slot, &mut out);
        out
    }
}
