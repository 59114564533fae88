//! What a turn may cost: its time, and work by its kind.

use crate::engine::settings::Settings;

/// What a turn may cost, by kind of work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budgets {
    /// Time after which no step begins more than its first slice, in microseconds.
    pub turn_micros: u64,
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
            turn_micros: settings.turn_ms_max * 1_000,
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

/// The steps of a turn that stop when the turn's time is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Mail,
    Beats,
    Accept,
    Read,
    Work,
    Flush,
    Close,
}

/// The part of the turn's time for which beats are received before anybody looks whether others
/// wait, in percent.
pub(super) const BEATS_UNASKED_PERCENT: u64 = 1;

impl Step {
    /// The part of the turn's time after which the step begins nothing more, in percent. What a
    /// step leaves is for those behind it; what it would like to do beyond is for the next turn.
    /// Flushes have the most: they are what everybody waits for.
    pub(super) fn ends_at_percent(self) -> u64 {
        match self {
            Step::Mail => 15,
            Step::Beats => 30,
            Step::Accept => 40,
            Step::Read => 55,
            Step::Work => 70,
            Step::Flush => 95,
            Step::Close => 100,
        }
    }

    /// Time that this step may take beside others that took so long, so that it has of all time
    /// what it has of a turn that is full.
    pub(super) fn share_beside(self, others_micros: u64) -> u64 {
        let percent = self.ends_at_percent();
        others_micros * percent / (100 - percent)
    }

    /// What it does in each turn, however late it is: pieces of some microseconds each, or one
    /// slice.
    pub(super) fn pieces_min(self) -> usize {
        match self {
            Step::Mail | Step::Beats | Step::Work => 1,
            Step::Accept => 8,
            // A request that takes long is not served where it is read.
            Step::Read | Step::Flush | Step::Close => 32,
        }
    }
}
