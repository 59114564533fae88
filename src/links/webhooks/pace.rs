//! When a receiver is told next, and how much at once.

use super::outcome::Failure;
use crate::backoff::Backoff;
use crate::links::RETRY_FIRST_MS;
use crate::links::effect::{Effect, Notice, Warned};
use crate::metrics::Counter;
use crate::time::Mono;

/// Most states in one message: at the longest ids less than the 100 KB that common frameworks take.
const STATES_MAX: usize = 256;

/// What every message begins with.
pub(super) const HEAD: &[u8] = b"{\"version\":1,\"type\":\"presence\",\"presence\":[";
pub(super) const TAIL: &[u8] = b"]}";

/// See the module.
#[derive(Debug)]
pub(super) struct Pace {
    /// Most states in the next message.
    pub(super) states_max: usize,
    /// Not before.
    pub(super) next_at: Mono,
    /// The last message was not taken.
    pub(super) is_failing: bool,
    warned: Warned,
    backoff: Backoff,
    retry_ms_max: u64,
}

impl Pace {
    pub(super) fn new(retry_ms_max: u64, seed: u64, now: Mono) -> Pace {
        Pace {
            states_max: STATES_MAX,
            next_at: now,
            is_failing: false,
            warned: Warned::default(),
            backoff: Backoff::new(RETRY_FIRST_MS, retry_ms_max, seed),
            retry_ms_max,
        }
    }

    /// A message with so many states was taken.
    pub(super) fn taken(&mut self, states: usize, now: Mono) -> Vec<Effect> {
        self.is_failing = false;
        self.next_at = now;
        self.backoff.reset();
        let mut effects = vec![
            Effect::Count(Counter::WebhookMessages, 1),
            Effect::Count(Counter::WebhookStates, states as u64),
        ];
        if self.warned.clear() {
            effects.push(Effect::Say(Notice::HookTakes));
        }
        effects
    }

    /// It was not. True: it was too long, and is made anew with fewer states at once.
    pub(super) fn failed(
        &mut self,
        failure: Failure,
        states: usize,
        now: Mono,
    ) -> (Vec<Effect>, bool) {
        let Failure { why, after_ms } = failure;
        let mut effects = vec![Effect::Count(why.counter(), 1)];
        let mut delay_ms = self.backoff.after_failure_ms();
        let is_halved = why.is_length() && states > 1;
        if is_halved {
            self.states_max = states / 2;
            self.backoff.reset();
            delay_ms = 0;
        }
        if delay_ms > 0 {
            self.is_failing = true;
            effects.extend(self.warned.of(why.to_string(), Notice::HookFails));
        }
        let after_ms = after_ms.unwrap_or(0).min(self.retry_ms_max);
        self.next_at = now.plus_ms(delay_ms.max(after_ms));
        (effects, is_halved)
    }
}
