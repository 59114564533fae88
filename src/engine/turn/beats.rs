//! What a turn does with beat datagrams: step 3.
//!
//! Owns how long it may go on. Whoever sends datagrams decides how many there are, so a flood of
//! them must not keep others waiting; nor may others, however many they are, starve beats.

use std::io;

use super::Driver;
use super::budgets::{BEATS_UNASKED_PERCENT, Step};
use super::kernel::{Kernel, Piece, Sign};
use crate::metrics::Counter;
use crate::time::Mono;

/// Beats that one system call is to bring: some tenths of a millisecond of work.
const BEATS_PER_SLICE: usize = 2_048;

/// Time between two questions to the kernel what it dropped, in ms. No deadline of its own: every
/// shard turns at least once a second.
const LOSSES_MS: u64 = 500;

impl<S> Driver<S> {
    /// Step 3: beat datagrams.
    pub fn receive_beats(&mut self, kernel: &mut impl Kernel<Socket = S>) {
        self.beats_micros = 0;
        if self.datagrams_wait {
            self.receive(kernel);
        }
        if self.now.mono >= self.losses_at {
            self.losses_at = self.now.mono.plus_ms(LOSSES_MS);
            let lost = kernel.lost_datagrams();
            self.engine.counters().add(Counter::DatagramsLost, lost);
        }
    }

    fn receive(&mut self, kernel: &mut impl Kernel<Socket = S>) {
        let began = kernel.mono();
        let (mut beats, mut calls) = (0, 0);
        while self.datagrams_wait
            && beats < self.budgets.beats
            && !self.is_over(Step::Beats, calls, kernel)
        {
            if calls > 0 && self.give_way(began, kernel) {
                self.more = true;
                return;
            }
            beats += self.receive_some(self.budgets.beats - beats, kernel);
            calls += 1;
        }
        self.beats_micros = kernel.mono().micros_since(began);
        if self.datagrams_wait {
            self.left_over(Counter::LimitBeatsPerTurn);
        }
    }

    /// One system call's worth. Returns how many beats it was.
    fn receive_some(&mut self, beats_max: usize, kernel: &mut impl Kernel<Socket = S>) -> usize {
        let (engine, now) = (&mut self.engine, self.now);
        // A buffer may hold one beat or thousands: no call brings many more than a slice.
        let buffers = (BEATS_PER_SLICE / self.beats_per_buffer).max(1);
        let received = kernel.receive(buffers.min(beats_max), |batch| {
            engine.handle_beats(batch, now)
        });
        match received {
            Ok(received) => {
                let fewer = self.beats_per_buffer - self.beats_per_buffer.div_ceil(4);
                self.beats_per_buffer = received.max(fewer).max(1);
                while let Some(refused) = self.engine.poll_refused() {
                    kernel.refused(refused);
                }
                kernel.worked(Piece::Beats, &mut self.engine);
                received
            }
            Err(error) => {
                // Anything but "empty" is an error of the socket (ENOMEM, ENETDOWN) that the next
                // edge finds cured or not.
                self.datagrams_wait = error.kind() == io::ErrorKind::Interrupted;
                0
            }
        }
    }

    /// Whether beats that have been received since `began` are enough for this turn: others wait,
    /// and beats have had their share of the time.
    fn give_way(&mut self, began: Mono, kernel: &mut impl Kernel<Socket = S>) -> bool {
        self.beats_micros = kernel.mono().micros_since(began);
        let unasked = self.budgets.turn_micros * BEATS_UNASKED_PERCENT / 100;
        let share = Step::Beats.share_beside(self.others_micros);
        self.beats_micros >= unasked.max(share) && self.do_others_wait(kernel)
    }

    /// Whether anybody but senders of datagrams has something for this turn to do.
    fn do_others_wait(&mut self, kernel: &mut impl Kernel<Socket = S>) -> bool {
        let known = self.sockets.has_ready()
            || self.engine.awaiting_flush() > 0
            || self.engine.has_work()
            || self.engine.has_deferred()
            || !self.inbox.is_empty()
            || self.shakes_wait
            || self.accepting.is_ready(self.now);
        let mut seen = false;
        if !known {
            kernel.look(|sign| {
                seen |= sign != Sign::Datagrams;
                self.note(sign);
            });
        }
        known || seen
    }
}
