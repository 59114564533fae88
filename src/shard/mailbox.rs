//! The queue between threads: one mailbox per shard, filled by the others, emptied by its owner.
//!
//! Owns the bound, what happens beyond it, and the decision to wake. Never blocks for longer than a
//! push or a swap, never drops mail without raising the resync flag, and never wakes a shard that
//! will look anyway.

use std::collections::VecDeque;

use parking_lot::Mutex;

/// What must become of a piece of mail that finds the mailbox full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Care {
    /// Dropped: the owner is told to resync, which replaces it.
    Resync,
    /// Handed back to the sender, who answers for it.
    Bounce,
    /// Taken all the same; its senders bound how many there can be.
    Deliver,
}

/// What the process wants of a shard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Order {
    /// Serve.
    Run,
    /// Shut down gracefully; go on turning, others may need this shard's answers.
    Drain,
    /// Leave the loop.
    Stop,
}

/// What the owner finds besides mail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Notice {
    /// Mail was dropped since the last look.
    pub(crate) resync: bool,
    /// The latest order.
    pub(crate) order: Order,
}

/// What became of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Posted {
    /// Pieces that found it full, bounced or dropped.
    pub(crate) refused: u64,
    /// The owner sleeps and must be woken; told to one sender only.
    pub(crate) wake: bool,
}

/// One shard's mailbox. Knows whether its owner sleeps; waking it is the caller's, who is told when
/// to.
#[derive(Debug)]
pub(crate) struct Mailbox<M> {
    shared: Mutex<Shared<M>>,
    mail_max: usize,
}

#[derive(Debug)]
struct Shared<M> {
    mail: VecDeque<M>,
    resync: bool,
    order: Order,
    /// The owner is, or is about to be, in its sleep. Under the lock with the mail, so that neither
    /// side can miss the other.
    asleep: bool,
}

impl<M> Mailbox<M> {
    /// An empty mailbox that takes `mail_max` pieces.
    pub(crate) fn new(mail_max: usize) -> Mailbox<M> {
        let shared = Shared {
            mail: VecDeque::new(),
            resync: false,
            order: Order::Run,
            asleep: false,
        };
        Mailbox {
            shared: Mutex::new(shared),
            mail_max,
        }
    }

    /// Posts all of `batch` in order, under one lock; what bounces is pushed to `bounced`.
    pub(crate) fn post(
        &self,
        batch: &mut Vec<M>,
        care: impl Fn(&M) -> Care,
        bounced: &mut Vec<M>,
    ) -> Posted {
        let mut posted = Posted::default();
        let (mut taken, mut dropped) = (false, false);
        let mut shared = self.shared.lock();
        for mail in batch.drain(..) {
            let fate = if shared.mail.len() < self.mail_max {
                Care::Deliver
            } else {
                care(&mail)
            };
            match fate {
                Care::Deliver => {
                    shared.mail.push_back(mail);
                    taken = true;
                    continue;
                }
                Care::Bounce => bounced.push(mail),
                Care::Resync => dropped = true,
            }
            posted.refused += 1;
        }
        shared.resync |= dropped;
        posted.wake = (taken || dropped) && std::mem::take(&mut shared.asleep);
        posted
    }

    /// Gives an order; one that was overtaken by a later one is ignored. True: the owner must be
    /// woken.
    #[must_use]
    pub(crate) fn order(&self, order: Order) -> bool {
        let mut shared = self.shared.lock();
        shared.order = shared.order.max(order);
        std::mem::take(&mut shared.asleep)
    }

    /// For the owner: swaps the mail for `inbox`, if that is empty, and tells what else there is.
    /// The owner counts as awake.
    pub(crate) fn take(&self, inbox: &mut VecDeque<M>) -> Notice {
        let mut shared = self.shared.lock();
        if inbox.is_empty() {
            std::mem::swap(&mut shared.mail, inbox);
        }
        shared.asleep = false;
        Notice {
            resync: std::mem::take(&mut shared.resync),
            order: shared.order,
        }
    }

    /// For the owner, right before it sleeps: false if there is something to look at first. From
    /// true until the next [`Mailbox::take`] senders wake it.
    #[must_use]
    pub(crate) fn fall_asleep(&self, seen: Order) -> bool {
        let mut shared = self.shared.lock();
        shared.asleep = shared.mail.is_empty() && !shared.resync && shared.order == seen;
        shared.asleep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hundreds bounce, thousands must arrive.
    fn care(mail: &u32) -> Care {
        match mail {
            0..100 => Care::Resync,
            100..1_000 => Care::Bounce,
            _ => Care::Deliver,
        }
    }

    #[test]
    fn keeps_the_order_and_is_empty_afterwards() {
        let mailbox = Mailbox::new(10);
        let (mut inbox, mut bounced) = (VecDeque::new(), Vec::new());
        mailbox.post(&mut vec![1, 2], care, &mut bounced);
        mailbox.post(&mut vec![3], care, &mut bounced);
        assert_eq!(
            mailbox.take(&mut inbox),
            Notice {
                resync: false,
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
        let posted = mailbox.post(&mut vec![100, 1, 2, 101, 1_000, 3], care, &mut bounced);
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
    fn a_bounce_alone_neither_wakes_nor_resyncs() {
        let mailbox = Mailbox::new(0);
        let mut bounced = Vec::new();
        assert!(mailbox.fall_asleep(Order::Run));
        assert_eq!(
            mailbox.post(&mut vec![100], care, &mut bounced),
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
        mailbox.post(&mut vec![1, 2, 3], care, &mut Vec::new());
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
        let post = |mail| mailbox.post(&mut vec![mail], care, &mut Vec::new()).wake;
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
        assert!(mailbox.post(&mut vec![1], care, &mut Vec::new()).wake);
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
