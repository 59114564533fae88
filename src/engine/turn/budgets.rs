//! What a turn may cost.

use crate::engine::settings::Settings;

/// What a turn may cost, by kind of work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budgets {
    /// Mail of other threads, by `Mail::weight`.
    pub mail: usize,
    pub beats: usize,
    pub accepts: usize,
    /// Reads: each connection that has more than one buffer's worth waits for the others in
    /// between.
    pub reads: usize,
    pub read_bytes: usize,
    /// Bytes of one read: a read that fills the buffer less has emptied the socket (epoll(7)).
    pub read_buffer_bytes: usize,
    pub flushes: usize,
    pub closes: usize,
}

impl Budgets {
    /// Those that are settings, and the fixed ones.
    pub fn of(settings: &Settings) -> Budgets {
        Budgets {
            mail: settings.mail_per_turn_max,
            beats: settings.beats_per_turn_max,
            accepts: 256,
            reads: 1_024,
            read_bytes: 4 << 20,
            read_buffer_bytes: 65_536,
            flushes: settings.flushes_per_turn_max,
            closes: 1_024,
        }
    }
}
