//! The bridge's thread: a core, its link, and what the shards put before it.
//!
//! Owns the order of a turn. Never decides anything for the core, and reads the clock for it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Builder;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use super::dial::LOOKUPS_MAX;
use super::{Link, Observer, Options};
use crate::fleet::partition::Partitions;
use crate::fleet::ticks::Ticks;
use crate::fleet::traffic::{Command, Event};
use crate::time::{Clock, Mono, Now};

/// Most events of one turn: so many before clock, inbox and sockets are looked at again.
const EVENTS_A_TURN: usize = 256;

/// A core that is to end is asked so often whether it may, in microseconds.
const END_LOOK_US: u64 = 20_000;

/// What is driven: a state machine without a kernel.
pub trait Core {
    /// What shards put before it.
    type Mail;

    /// Takes an event of the link.
    fn handle_event(&mut self, event: Event, now: Now);
    /// Takes what has come in, in its order.
    fn handle_mail(&mut self, mail: Self::Mail, now: Now);
    /// Some mail was lost: whatever it told of is to be looked for.
    fn handle_lost(&mut self, now: Now);
    /// Does what is due by now.
    fn handle_timeout(&mut self, now: Now);
    /// All that there was has been handled: whoever waits for it is told the outcome, and nothing
    /// of what was undone meanwhile.
    fn end_turn(&mut self, now: Now);
    /// The next command that is to be sent.
    fn poll_command(&mut self) -> Option<Command>;
    /// When something is due next.
    fn poll_timeout(&self) -> Mono;
    /// When it does what it does each second.
    fn ticks(&self) -> Ticks;
    /// Nothing more comes in: whether it may end, or waits for a moment still.
    fn may_end(&mut self, now: Now) -> bool;
    /// Why it can not go on, in words for an operator.
    fn fault(&self) -> Option<String>;
}

/// What others put before a core, from any thread. A full one gives back what it can not take.
#[derive(Debug)]
pub struct Inbox<M> {
    kept: Mutex<Kept<M>>,
    wake: Notify,
    max: usize,
}

#[derive(Debug)]
struct Kept<M> {
    mail: Vec<M>,
    is_closed: bool,
    has_lost: bool,
}

impl<M> Inbox<M> {
    /// For at most `max` at a time.
    pub fn new(max: usize) -> Inbox<M> {
        Inbox {
            kept: Mutex::new(Kept {
                mail: Vec::new(),
                is_closed: false,
                has_lost: false,
            }),
            wake: Notify::new(),
            max,
        }
    }

    /// Puts something in and wakes the bridge.
    ///
    /// Errors: it is full, or closed; this is what was not taken.
    pub fn push(&self, mail: M) -> Result<(), M> {
        let mut kept = self.kept.lock();
        if kept.is_closed || kept.mail.len() >= self.max {
            return Err(mail);
        }
        kept.mail.push(mail);
        drop(kept);
        self.wake.notify_one();
        Ok(())
    }

    /// The same; what is not taken is lost, which the core is told.
    pub fn leave(&self, mail: M) {
        if self.push(mail).is_err() {
            self.kept.lock().has_lost = true;
        }
    }

    /// Has the bridge turn once: something beside has news for the core.
    pub fn nudge(&self) {
        self.wake.notify_one();
    }

    /// Whether anything has been lost since the last call.
    fn take_lost(&self) -> bool {
        std::mem::take(&mut self.kept.lock().has_lost)
    }

    /// Nothing more is taken, and the bridge ends when what is inside has been handled.
    pub fn close(&self) {
        self.kept.lock().is_closed = true;
        self.wake.notify_one();
    }

    /// All that is inside. None: it is closed and empty.
    fn take(&self) -> Option<Vec<M>> {
        let mut kept = self.kept.lock();
        let mail = std::mem::take(&mut kept.mail);
        (!mail.is_empty() || !kept.is_closed).then_some(mail)
    }
}

/// Drives a core on this thread until its inbox is closed, and gives it back. `observe` gets what
/// others may look at meanwhile.
///
/// Errors: the kernel gives no runtime, or the core can not go on.
pub fn run<C: Core>(
    core: C,
    options: Options,
    partitions: Arc<Partitions>,
    inbox: &Inbox<C::Mail>,
    clock: &Clock,
    observe: impl FnOnce(Observer),
) -> io::Result<C> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(LOOKUPS_MAX)
        .build()?;
    runtime.block_on(async {
        let now = clock.now().mono;
        let tick = core.ticks().own_after(now, 0, 1);
        let beat_at = Instant::now() + Duration::from_micros(tick.micros_since(now));
        let link = Link::start(options, partitions, beat_at);
        observe(link.observer());
        drive(core, &link, inbox, clock).await
    })
}

/// The turns of [`run`], inside a runtime.
///
/// Errors: the core can not go on.
pub async fn drive<C: Core>(
    mut core: C,
    link: &Link,
    inbox: &Inbox<C::Mail>,
    clock: &Clock,
) -> io::Result<C> {
    loop {
        let now = clock.now();
        let (mail, most_us) = match inbox.take() {
            Some(mail) => (mail, u64::MAX),
            None if core.may_end(now) => return Ok(core),
            None => (Vec::new(), END_LOOK_US),
        };
        if inbox.take_lost() {
            core.handle_lost(now);
        }
        let mut is_idle = mail.is_empty();
        for mail in mail {
            core.handle_mail(mail, now);
        }
        for event in (0..EVENTS_A_TURN).map_while(|_| link.try_next()) {
            core.handle_event(event, now);
            is_idle = false;
        }
        if core.poll_timeout() <= now.mono {
            core.handle_timeout(now);
        }
        core.end_turn(now);
        if let Some(fault) = core.fault() {
            return Err(io::Error::other(fault));
        }
        while let Some(command) = core.poll_command() {
            link.send(command);
        }
        if !is_idle {
            // The sockets' turn.
            yield_now().await;
            continue;
        }
        let due_us = core.poll_timeout().micros_since(now.mono).min(most_us);
        tokio::select! {
            event = link.next() => core.handle_event(event, clock.now()),
            () = inbox.wake.notified() => {}
            () = sleep(Duration::from_micros(due_us)) => {}
        }
    }
}
