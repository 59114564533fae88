//! The queue between threads: one mailbox per shard, filled by the others, emptied by its owner.
//!
//! Owns the bounds, what happens beyond them, and the decision to wake. Edits of watch lists, which
//! may be as long as a request's body, wait apart and are bounded in bytes, so that no transition
//! ever queues behind it. Never blocks for longer than a push or a swap, never drops mail without
//! raising the resync flag, and never wakes a shard that will look anyway.

use parking_lot::Mutex;

use crate::engine::turn::{Inbox, Notice, Order};
use crate::engine::{IfFull, Weighed};

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
    held_bytes_max: usize,
}

#[derive(Debug)]
struct Shared<M> {
    mail: Inbox<M>,
    /// What the edits among it hold in memory.
    held_bytes: usize,
    resync: bool,
    /// Told pieces that found it full; the owner counts them.
    refused: u64,
    order: Order,
    /// The owner is, or is about to be, in its sleep. Under the lock with the mail, so that neither
    /// side can miss the other.
    asleep: bool,
}

impl<M: Weighed> Mailbox<M> {
    /// An empty mailbox that takes `mail_max` hints, and as many edits that hold `held_bytes_max`
    /// bytes together; one edit may be longer than that.
    pub fn new(mail_max: usize, held_bytes_max: usize) -> Mailbox<M> {
        let shared = Shared {
            mail: Inbox::default(),
            held_bytes: 0,
            resync: false,
            refused: 0,
            order: Order::Run,
            asleep: false,
        };
        Mailbox {
            shared: Mutex::new(shared),
            mail_max,
            held_bytes_max,
        }
    }

    /// Posts all of `batch` in order, under one lock; what bounces is pushed to `bounced`.
    pub fn post(&self, batch: &mut Vec<M>, bounced: &mut Vec<M>) -> Posted {
        let mut posted = Posted::default();
        let (mut taken, mut dropped) = (false, false);
        let mut shared = self.shared.lock();
        for mail in batch.drain(..) {
            if let Some(bytes) = mail.long_bytes() {
                let held_bytes = shared.held_bytes + bytes;
                let edits = shared.mail.edits.len();
                let fits = edits == 0 || held_bytes <= self.held_bytes_max;
                if edits < self.mail_max && fits {
                    shared.held_bytes = held_bytes;
                    shared.mail.edits.push_back(mail);
                    taken = true;
                } else {
                    bounced.push(mail);
                    posted.refused += 1;
                }
                continue;
            }
            let fate = if shared.mail.hints.len() < self.mail_max {
                IfFull::Deliver
            } else {
                mail.if_full()
            };
            match fate {
                IfFull::Deliver => {
                    shared.mail.hints.push_back(mail);
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
    pub fn tell(&self, mail: M) -> bool {
        let posted = self.post(&mut vec![mail], &mut Vec::new());
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

    /// For the owner: swaps the mail of each kind for what `inbox` has of it, if that is none, and
    /// tells what else there is. The owner counts as awake.
    pub fn take(&self, inbox: &mut Inbox<M>) -> Notice {
        let mut shared = self.shared.lock();
        if inbox.hints.is_empty() {
            std::mem::swap(&mut shared.mail.hints, &mut inbox.hints);
        }
        if inbox.edits.is_empty() {
            std::mem::swap(&mut shared.mail.edits, &mut inbox.edits);
            shared.held_bytes = 0;
        }
        shared.asleep = false;
        Notice {
            resync: std::mem::take(&mut shared.resync),
            refused: std::mem::take(&mut shared.refused),
            order: shared.order,
        }
    }

    /// For the owner: whether [`Mailbox::take`] has something to give.
    pub fn has_mail(&self) -> bool {
        let shared = self.shared.lock();
        !shared.mail.is_empty() || shared.resync
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

    /// Hundreds bounce and hold as many bytes, thousands must arrive.
    impl Weighed for u32 {
        fn if_full(&self) -> IfFull {
            match self {
                0..100 => IfFull::Resync,
                100..1_000 => IfFull::Bounce,
                _ => IfFull::Deliver,
            }
        }

        fn long_bytes(&self) -> Option<usize> {
            (100..1_000).contains(self).then_some(*self as usize)
        }
    }

    #[test]
    fn keeps_the_order_and_is_empty_afterwards() {
        let mailbox = Mailbox::new(10, 1_000);
        let (mut inbox, mut bounced) = (Inbox::default(), Vec::new());
        mailbox.post(&mut vec![1, 2], &mut bounced);
        mailbox.post(&mut vec![3], &mut bounced);
        assert_eq!(
            mailbox.take(&mut inbox),
            Notice {
                resync: false,
                refused: 0,
                order: Order::Run
            }
        );
        assert_eq!(inbox.hints, [1, 2, 3]);
        inbox.hints.clear();
        mailbox.take(&mut inbox);
        assert_eq!(inbox.hints, [0u32; 0]);
    }

    #[test]
    fn full_means_resync_bounce_or_beyond() {
        let mailbox = Mailbox::new(2, 0);
        let (mut inbox, mut bounced) = (Inbox::default(), Vec::new());
        let posted = mailbox.post(&mut vec![100, 1, 2, 101, 1_000, 3], &mut bounced);
        assert_eq!(
            posted,
            Posted {
                refused: 2,
                wake: false
            }
        );
        assert_eq!(bounced, [101]);
        assert!(mailbox.take(&mut inbox).resync);
        assert_eq!(
            (inbox.hints, inbox.edits),
            ([1, 2, 1_000].into(), [100].into())
        );
        let mut inbox = Inbox::default();
        // The flag is told once.
        assert!(!mailbox.take(&mut inbox).resync);
    }

    /// Edits are bounded by what they hold, apart from hints, and wait behind nothing but edits.
    #[test]
    fn what_bounces_is_bounded_in_bytes_and_holds_up_nobody() {
        let mailbox = Mailbox::new(10, 500);
        let (mut inbox, mut bounced) = (Inbox::default(), Vec::new());
        mailbox.post(&mut vec![200, 300, 1, 100, 2], &mut bounced);
        assert_eq!(bounced, [100]);
        mailbox.take(&mut inbox);
        assert_eq!(
            (&inbox.hints, &inbox.edits),
            (&[1, 2].into(), &[200, 300].into())
        );
        // Hints are taken anew while edits are yet to be read.
        inbox.hints.clear();
        mailbox.post(&mut vec![150, 3], &mut bounced);
        mailbox.take(&mut inbox);
        assert_eq!(
            (&inbox.hints, &inbox.edits),
            (&[3].into(), &[200, 300].into())
        );
        inbox.edits.clear();
        mailbox.take(&mut inbox);
        assert_eq!(inbox.edits, [150]);
        // One that is longer than all may be is taken by itself.
        mailbox.post(&mut vec![900, 101], &mut bounced);
        assert_eq!(bounced, [100, 101]);
    }

    #[test]
    fn the_owner_counts_what_was_told_and_found_no_room() {
        let mailbox = Mailbox::new(1, 1_000);
        assert!(mailbox.fall_asleep(Order::Run));
        assert!(mailbox.tell(1), "it sleeps");
        assert!(!mailbox.tell(2));
        assert!(!mailbox.tell(1_000), "taken beyond the bound");
        assert!(!mailbox.tell(3));
        let mut inbox = Inbox::default();
        let notice = mailbox.take(&mut inbox);
        assert_eq!((notice.resync, notice.refused), (true, 2));
        assert_eq!(inbox.hints, [1, 1_000]);
        assert_eq!(mailbox.take(&mut inbox).refused, 0);
    }

    #[test]
    fn a_bounce_alone_neither_wakes_nor_resyncs() {
        let mailbox = Mailbox::new(0, 1_000);
        let mut bounced = Vec::new();
        assert!(mailbox.fall_asleep(Order::Run));
        assert_eq!(
            mailbox.post(&mut vec![100], &mut bounced),
            Posted {
                refused: 1,
                wake: false
            }
        );
        assert!(!mailbox.take(&mut Inbox::default()).resync);
    }

    #[test]
    fn an_inbox_in_use_is_left_alone() {
        let mailbox = Mailbox::new(2, 1_000);
        let mut inbox = Inbox::default();
        inbox.hints.push_back(7);
        mailbox.post(&mut vec![1, 2, 3], &mut Vec::new());
        assert!(
            mailbox.take(&mut inbox).resync,
            "told even while the inbox is in use"
        );
        assert_eq!(inbox.hints, [7]);
        inbox.hints.clear();
        mailbox.take(&mut inbox);
        assert_eq!(inbox.hints, [1, 2]);
    }

    #[test]
    fn wakes_only_who_sleeps_and_only_once() {
        let mailbox = Mailbox::new(10, 1_000);
        let post = |mail| mailbox.post(&mut vec![mail], &mut Vec::new()).wake;
        assert!(!post(1), "awake: it will look");
        assert!(!mailbox.fall_asleep(Order::Run), "there is mail");
        assert!(!post(2));
        mailbox.take(&mut Inbox::default());
        assert!(mailbox.fall_asleep(Order::Run));
        assert!(post(3));
        assert!(!post(4), "woken already");
        assert!(!mailbox.fall_asleep(Order::Run));
    }

    #[test]
    fn a_dropped_piece_wakes_too() {
        let mailbox = Mailbox::new(0, 1_000);
        assert!(mailbox.fall_asleep(Order::Run));
        assert!(mailbox.post(&mut vec![1], &mut Vec::new()).wake);
        assert!(
            !mailbox.fall_asleep(Order::Run),
            "the flag must be looked at first"
        );
    }

    #[test]
    fn orders_only_advance_and_wake() {
        let mailbox = Mailbox::<u32>::new(1, 1_000);
        assert!(mailbox.fall_asleep(Order::Run));
        assert!(mailbox.order(Order::Stop));
        assert!(!mailbox.order(Order::Drain));
        assert!(!mailbox.fall_asleep(Order::Run));
        assert_eq!(mailbox.take(&mut Inbox::default()).order, Order::Stop);
        assert!(mailbox.fall_asleep(Order::Stop));
    }
}
