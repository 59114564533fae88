//! What a hook's thread drives: a hook of this node's own transitions, or one of a fleet's.
//!
//! Owns where each says how far its receiver has been told.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::hook::{Hook, HookStanding, Message};
use super::outcome::Outcome;
use super::queue::Queue;
use super::receiver::Receiver;
use super::{Fleet, FleetHandle, Left, Positions, Webhooks};
use crate::links::effect::Effect;
use crate::presence::Presence;
use crate::time::{Mono, Now, Unix};

/// Has whoever waits for a hook's word look for it.
pub type Wake = Box<dyn Fn() + Send + Sync>;

/// One hook, before it runs.
pub struct Prepared {
    pub told: Told,
    pub receiver: Receiver,
}

/// See the module.
pub enum Told {
    /// Of what this node decides.
    Own {
        hook: Box<Hook>,
        presence: Arc<Presence>,
        /// Where it says how far, as which.
        positions: Positions,
        at: usize,
    },
    /// Of those partitions of a fleet that its bridge hands over.
    Fleet {
        queue: Box<Queue>,
        said: Said,
        wake: Wake,
    },
}

/// Where a hook of a fleet leaves word.
#[derive(Clone, Default)]
pub struct Said(Arc<Fleet>);

impl Said {
    /// For the bridge: the hook with this number.
    pub fn handle(&self, hooks: &Webhooks, at: usize) -> FleetHandle {
        FleetHandle {
            stations: Arc::clone(&hooks.stations),
            at,
            told: Arc::clone(&self.0),
            queue_max: hooks.shared.queue_max,
        }
    }
}

impl Told {
    pub(super) fn published_up_to(&self) -> Unix {
        match self {
            Told::Own { presence, .. } => presence.published_up_to(),
            Told::Fleet { .. } => Unix::from_ms(0),
        }
    }

    pub(super) fn take(&mut self, left: Left, up_to: Unix, now: Now) -> Vec<Effect> {
        match self {
            Told::Own { hook, presence, .. } => hook.take(left.handed, up_to, presence, now),
            Told::Fleet { queue, said, .. } => {
                let effects = queue.take(left.orders);
                said.0.queued.store(queue.len(), Ordering::Release);
                said.0.left.fetch_sub(left.states, Ordering::AcqRel);
                effects
            }
        }
    }

    pub(super) fn next(&self) -> Mono {
        match self {
            Told::Own { hook, .. } => hook.next(),
            Told::Fleet { queue, .. } => queue.next(),
        }
    }

    pub(super) fn poll_message(&mut self, now: Now) -> (Option<Message>, Vec<Effect>) {
        match self {
            Told::Own { hook, presence, .. } => hook.poll_message(presence, now),
            Told::Fleet { queue, .. } => queue.poll_message(now.mono),
        }
    }

    pub(super) fn handle(&mut self, outcome: Outcome, now: Mono) -> Vec<Effect> {
        match self {
            Told::Own { hook, .. } => hook.handle(outcome, now),
            Told::Fleet { queue, .. } => queue.handle(outcome, now),
        }
    }

    /// Says how far the receiver has been told, to whoever keeps that.
    pub(super) fn leave_word(&mut self) {
        match self {
            Told::Own {
                hook,
                positions,
                at,
                ..
            } => {
                if let Some(told) = hook.poll_position() {
                    positions.0[*at].store(told.ms(), Ordering::Release);
                }
            }
            Told::Fleet { queue, said, wake } => {
                said.0.queued.store(queue.len(), Ordering::Release);
                let reports = queue.take_reports();
                if !reports.is_empty() {
                    said.0.reports.lock().extend(reports);
                    wake();
                }
            }
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        match self {
            Told::Own { hook, .. } => hook.is_idle(),
            Told::Fleet { queue, .. } => queue.is_empty(),
        }
    }

    pub(super) fn has_news(&self) -> bool {
        match self {
            Told::Own { hook, .. } => hook.has_news(),
            Told::Fleet { .. } => false,
        }
    }

    pub(super) fn is_failing(&self) -> bool {
        match self {
            Told::Own { hook, .. } => hook.is_failing(),
            Told::Fleet { queue, .. } => queue.is_failing(),
        }
    }

    pub(super) fn standing(&self, now: Unix) -> HookStanding {
        match self {
            Told::Own { hook, .. } => hook.standing(now),
            Told::Fleet { queue, .. } => queue.standing(now),
        }
    }
}
