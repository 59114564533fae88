//! Where shards leave what is for a thread that talks to others.
//!
//! Owns a lock that is held for a push or a swap, never while the thread talks. What is left while
//! it does is the inbox's to bound.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::time::{Mono, boottime};

/// Longest sleep, in microseconds: long enough to cost nothing.
const SLEEP_MICROS_MAX: u64 = 60_000_000;

#[derive(Default)]
pub(super) struct Station<T> {
    inbox: Mutex<T>,
    changed: Condvar,
}

impl<T: Default> Station<T> {
    /// Leaves something.
    pub(super) fn leave(&self, put: impl FnOnce(&mut T)) {
        put(&mut self.inbox.lock());
        self.changed.notify_one();
    }

    /// Sleeps until `until`, unless there is reason not to, or until something has been left, or
    /// [`Station::wake`] is called.
    pub(super) fn wait(&self, until: Mono, may_sleep: impl FnOnce(&T) -> bool) {
        let mut inbox = self.inbox.lock();
        let micros = until.micros_since(boottime()).min(SLEEP_MICROS_MAX);
        if micros > 0 && may_sleep(&inbox) {
            self.changed
                .wait_for(&mut inbox, Duration::from_micros(micros));
        }
    }

    pub(super) fn take(&self) -> T {
        std::mem::take(&mut *self.inbox.lock())
    }

    /// Has the thread look again for reasons not to sleep.
    pub(super) fn wake(&self) {
        // Under the lock, so that it is not between looking and sleeping.
        let _inbox = self.inbox.lock();
        self.changed.notify_one();
    }
}
