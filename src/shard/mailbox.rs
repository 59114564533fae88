//! The queue between threads: one mailbox per shard, filled by the others, emptied by its owner.
//!
//! Owns the bound, what happens beyond it, and the decision to wake. Never blocks for longer than a
//! push or a swap, never drops mail without raising the resync flag, and never wakes a shard that
//! will look anyway.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::engine::IfFull;
use crate::engine::turn::{Notice, Order};

/// What became of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Posted {
    /// Pieces that found it full, bounced or dropped.
    pub refused: u64,
    /// The owner sleeps and must be woken; told to one sender only.
    pub wake: bool,
}

/// One shard's mailbox. Knows whether its owner sleeps; waking it is the caller's, who is told when
/// to.
#[derive(Debug)]
pub struct Mailbox<M> {
    shared: Mutex<Shared<M>>,
    mail_max: usize,
}

#[derive(Debug)]
struct Shared<M> {
    mail: VecDeque<M>,
    resync: bool,
    /// Told pieces that found it full; the owner counts them.
    refused: u64,
    order: Order,
    /// The owner is, or is about to be, in its sleep. Under the lock with the mail, so that neither
    /// side can miss the other.
    asleep: bool,
}

impl<M> Mailbox<M> {
    /// An empty mailbox that takes `mail_max` pieces.
    pub fn new(mail_max: usize) -> Mailbox<M> {
        let shared = Shared {
            mail: VecDeque::new(),
            resync: false,
            refused: 0,
            order: Order::Run,
            asleep: false,
        };
        Mailbox {
            shared: Mutex::new(shared),
            mail_max,
        }
    }

    /// Posts all of `batch` in order, under one lock; what bounces is pushed to `bounced`.
    pub fn post(
        &self,
        batch: &mut Vec<M>,
        if_full: impl Fn(&M) -> IfFull,
        bounced: &mut Vec<M>,
    ) -> Posted {
        let mut posted = Posted::default();
        let (mut taken, mut dropped) = (false, false);
        let mut shared = self.shared.lock();
        for mail in batch.drain(..) {
            let fate = if shared.mail.len() < self.mail_max {
                IfFull::Deliver
            } else {
                if_full(&mail)
            };
            match fate {
                IfFull::Deliver => {
                    shared.mail.push_back(mail);
                    taken = true;
                    continue;
                }
                IfFull::Bounce => bounced.push(mail),
                IfFull::Resync => dropped = true,
            }
            posted.refused += 1;
        }
        shared.resync |= dropped;
        posted.wake = (taken || dropped) && std::mem::take(&mut shared.asleep);
        posted
    }

    /// Posts one piece for a sender that has no counters: the owner counts it if it finds no room.
    /// True: the owner must be woken.
    #[must_use]
    pub fn tell(&self, mail: M, if_full: impl Fn(&M) -> IfFull) -> bool {
        let posted = self.post(&mut vec![mail], if_full, &mut Vec::new());
        if posted.refused > 0 {
            self.shared.lock().refused += posted.refused;
        }
        posted.wake
    }

    /// Gives an order; one that was overtaken by a later one is ignored. True: the owner must be
    /// woken.
    #[must_use]
    pub fn order(&self, order: Order) -> bool {
        let mut shared = self.shared.lock();
        shared.order = shared.order.max(order);
        std::mem::take(&mut shared.asleep)
    }

    /// For the owner: swaps the mail for `inbox`, if that is empty, and tells what else there is.
    /// The owner counts as awake.
    pub fn take(&self, inbox: &mut VecDeque<M>) -> Notice {
        let mut shared = self.shared.lock();
        if inbox.is_empty() {
            std::mem::swap(&mut shared.mail, inbox);
        }
        shared.asleep = false;
        Notice {
            resync: std::mem::take(&mut shared.resync),
            refused: std::mem::take(&mut shared.refused),
            order: shared.order,
        }
    }

    /// For the owner, right before it sleeps: false if there is something to look at first. From
    /// true until the next [`Mailbox::take`] senders wake it.
    #[must_use]
    pub fn fall_asleep(&self, seen: Order) -> bool {
        let mut shared = self.shared.lock();
        shared.asleep = shared.mail.is_empty() && !shared.resync && shared.order == seen;
        shared.asleep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hundreds bounce, thousands must arrive.
    fn if_full(mail: &u32) -> IfFull {
        match mail {
            0..100 => IfFull::Resync,
            100..1_000 => IfFull::Bounce,
            _ => IfFull::Deliver,
        }
    }

    #[test]
    fn keeps_the_order_and_is_empty_afterwards() {
        let mailbox = Mailbox::new(10);
        let (mut inbox, mut bounced) = (VecDeque::new(), Vec::new());
        mailbox.post(&mut vec![1, 2], if_full, &mut bounced);
        mailbox.post(&mut vec![3], if_full, &mut bounced);
        assert_eq!(
            mailbox.take(&mut inbox),
            Notice {
                resync: false,
                refused: 0,
                order: Order::Run
            }
        );
        assert_eq!(inbox, [1, 2, 3]);
        inbox.clear();
        mailbox.take(&mut inbox);
        assert_eq!(inbox, [0u32; 0]);
    }

    #[test]
    fn full_means_resync_bounce_or_beyond() {
        let mailbox = Mailbox::new(2);
        let (mut inbox, mut bounced) = (VecDeque::new(), Vec::new());
        let posted = mailbox.post(&mut vec![100, 1, 2, 101, 1_000, 3], if_full, &mut bounced);
        assert_eq!(
            posted,
            Posted {
                refused: 3,
                wake: false
            }
        );
        assert_eq!(bounced, [101]);
        assert!(mailbox.take(&mut inbox).resync);
        assert_eq!(inbox, [100, 1, 1_000]);
        // The flag is told once.
        assert!(!mailbox.take(&mut inbox).resync);
    }

    #[test]
    fn the_owner_counts_what_was_told_and_found_no_room() {
        let mailbox = Mailbox::new(1);
        assert!(mailbox.fall_asleep(Order::Run));
        assert!(mailbox.tell(1, if_full), "it sleeps");
        assert!(!mailbox.tell(2, if_full));
        assert!(!mailbox.tell(1_000, if_full), "taken beyond the bound");
        assert!(!mailbox.tell(3, if_full));
        let mut inbox = VecDeque::new();
        let notice = mailbox.take(&mut inbox);
        assert_eq!((notice.resync, notice.refused), (true, 2));
        assert_eq!(inbox, [1, 1_000]);
        assert_eq!(mailbox.take(&mut inbox).refused, 0);
    }

    #[test]
    fn a_bounce_alone_neither_wakes_nor_resyncs() {
        let mailbox = Mailbox::new(0);
        let mut bounced = Vec::new();
        assert!(mailbox.fall_asleep(Order::Run));
        assert_eq!(
            mailbox.post(&mut vec![100], if_full, &mut bounced),
            Posted {
                refused: 1,
                wake: false
            }
        );
        assert!(!mailbox.take(&mut VecDeque::new()).resync);
    }

    #[test]
    fn an_inbox_in_use_is_left_alone() {
        let mailbox = Mailbox::new(2);
        let mut inbox = VecDeque::from([7]);
        mailbox.post(&mut vec![1, 2, 3], if_full, &mut Vec::new());
        assert!(
            mailbox.take(&mut inbox).resync,
            "told even while the inbox is in use"
        );
        assert_eq!(inbox, [7]);
        inbox.clear();
        mailbox.take(&mut inbox);
        assert_eq!(inbox, [1, 2]);
    }

    #[test]
    fn wakes_only_who_sleeps_and_only_once() {
        let mailbox = Mailbox::new(10);
        let post = |mail| mailbox.post(&mut vec![mail], if_full, &mut Vec::new()).wake;
        assert!(!post(1), "awake: it will look");
        assert!(!mailbox.fall_asleep(Order::Run), "there is mail");
        assert!(!post(2));
        mailbox.take(&mut VecDeque::new());
        assert!(mailbox.fall_asleep(Order::Run));
        assert!(post(3));
        assert!(!post(4), "woken already");
        assert!(!mailbox.fall_asleep(Order::Run));
    }

    #[test]
    fn a_dropped_piece_wakes_too() {
        let mailbox = Mailbox::new(0);
        assert!(mailbox.fall_asleep(Order::Run));
        assert!(mailbox.post(&mut vec![1], if_full, &mut Vec::new()).wake);
        assert!(
            !mailbox.fall_asleep(Order::Run),
            "the flag must be looked at first"
        );
    }

    #[test]
    fn orders_only_advance_and_wake() {
        let mailbox = Mailbox::<u32>::new(1);
        assert!(mailbox.fall_asleep(Order::Run));
        assert!(mailbox.order(Order::Stop));
        assert!(!mailbox.order(Order::Drain));
        assert!(!mailbox.fall_asleep(Order::Run));
        assert_eq!(mailbox.take(&mut VecDeque::new()).order, Order::Stop);
        assert!(mailbox.fall_asleep(Order::Stop));
    }
}
