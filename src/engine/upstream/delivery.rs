//! Which beats are looked for at their presence node, and whether datagrams go over the link's
//! connection too because by UDP they do not arrive.
//!
//! Owns the choice alone. The link asks, and decides what an answer means (`links/delivery.rs`).
//! Costs a comparison for each beat.

use crate::slot::Slot;
use crate::time::{Mono, Unix};
use crate::wire::User;

/// Time between two beats of a shard that are looked for, in ms. So long nothing else speaks for
/// the user of one: what is known there of them within it has come by UDP.
pub const SAMPLE_MS: u64 = 1_000;

/// A beat that is looked for: it went as a datagram, and in no other way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sample {
    pub user: Box<str>,
    /// By the presence node's clock, and not later than it left.
    pub sent_at: Unix,
    pub given_at: Mono,
}

/// The beats of one lane.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    /// Datagrams go over the connection too.
    pub(super) by_connection: bool,
    sample: Option<Sample>,
    sample_at: Mono,
    /// Whose beat was looked for last.
    sampled: Option<Slot>,
}

impl Delivery {
    /// A beat for `user` is about to go into a datagram. True: it is looked for, or was lately, and
    /// shall go in no other way.
    pub(super) fn samples(
        &mut self,
        slot: Slot,
        user: User<'_>,
        clock: impl Fn() -> Unix,
        now: Mono,
    ) -> bool {
        // The last one has its turn first.
        let probed = self.by_connection && self.sampled.is_some();
        if self.sample.is_some() || probed || now < self.sample_at {
            return self.sampled == Some(slot) && now < self.sample_at;
        }
        (self.sampled, self.sample_at) = (Some(slot), now.plus_ms(SAMPLE_MS));
        self.sample = Some(Sample {
            user: user.as_str().into(),
            sent_at: clock(),
            given_at: now,
        });
        true
    }

    /// The next beat is looked for.
    pub(super) fn sample_next(&mut self) {
        (self.sample, self.sampled, self.sample_at) = (None, None, Mono::default());
    }

    /// One whose beat was looked for, while all others went over the connection too: it is time
    /// that theirs does.
    pub(super) fn take_probed(&mut self, now: Mono) -> Option<Slot> {
        if now < self.probed_due() {
            return None;
        }
        self.sampled.take()
    }

    /// When [`Delivery::take_probed`] has one.
    pub(super) fn probed_due(&self) -> Mono {
        let waits = self.by_connection && self.sampled.is_some();
        if waits { self.sample_at } else { Mono::NEVER }
    }

    /// What is for the link.
    pub(super) fn take(&mut self) -> Option<Sample> {
        self.sample.take()
    }
}
