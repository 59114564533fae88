//! What is to be told to the core, and what is to be sent to each server.
//!
//! Owns the bounds of both. What is over the bound of commands is not reached; over that of events
//! no socket is read.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Board, Site, State};
use crate::bridge::resp::bytes_of;
use crate::fleet::calls::Call;
use crate::fleet::partition::{Partition, key_slot};
use crate::fleet::traffic::{Command, Event, Failed, Reply, Server, Tag, To};
use crate::redis_url::Address;

/// Most commands that wait for one server, and their bytes. What is more is not reached.
pub(super) const QUEUE_MAX: usize = 4_096;
const QUEUE_BYTES_MAX: usize = 8 << 20;

/// Events and their bytes from which on no socket is read. One read of each may still add to them.
const EVENTS_MAX: usize = 8_192;
const EVENT_BYTES_MAX: usize = 8 << 20;

/// Calls that are to be said to one server, and what has been answered to some of them.
pub(in crate::bridge) struct Work {
    pub(in crate::bridge) calls: Vec<Call>,
    pub(in crate::bridge) replies: Vec<Option<Reply>>,
    /// Which calls are to be said.
    pub(in crate::bridge) due: Vec<usize>,
    pub(in crate::bridge) whom: Whom,
    /// Each is said behind an `ASKING`.
    pub(in crate::bridge) is_asking: bool,
    /// It was sent before.
    pub(in crate::bridge) is_second: bool,
}

/// Who waits for the answer.
pub(in crate::bridge) enum Whom {
    Core(Tag),
    Link(oneshot::Sender<Vec<Reply>>),
}

impl Work {
    pub(in crate::bridge) fn new(calls: Vec<Call>, whom: Whom) -> Work {
        Work {
            replies: calls.iter().map(|_| None).collect(),
            due: (0..calls.len()).collect(),
            calls,
            whom,
            is_asking: false,
            is_second: false,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.due.iter().map(|&at| bytes_of(&self.calls[at])).sum()
    }
}

impl Board {
    /// Takes the next event. Given up, it has taken none.
    pub(in crate::bridge) async fn next(&self) -> Event {
        loop {
            if let Some(event) = self.pop() {
                return event;
            }
            self.events.notified().await;
        }
    }

    pub(in crate::bridge) fn pop(&self) -> Option<Event> {
        let mut state = self.state.lock();
        let had_room = state.has_room();
        let event = state.events.pop_front()?;
        state.event_bytes -= bytes_of_event(&event);
        if !had_room && state.has_room() {
            self.room.notify_waiters();
        }
        Some(event)
    }

    /// Waits until events have room.
    pub(in crate::bridge) async fn has_room(&self) {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            if self.state.lock().has_room() {
                return;
            }
            room.await;
        }
    }

    pub(super) fn tell(&self, state: &mut State, event: Event) {
        state.event_bytes += bytes_of_event(&event);
        state.events.push_back(event);
        self.events.notify_one();
    }

    pub(in crate::bridge) fn send(&self, command: Command) {
        let mut state = self.state.lock();
        let slot = match command.to {
            To::Partition(partition) => self.partitions.slot(partition),
            To::Key(key) => key_slot(key.as_bytes()),
        };
        let work = Work::new(command.calls, Whom::Core(command.tag));
        let unsent = match state.site_of(slot) {
            Some(site) => self.queue(&mut state, site, work),
            None => Err(work),
        };
        if let Err(work) = unsent {
            self.fail(&mut state, work, Failed::Unreached);
        }
    }

    /// Calls of the link's own, for one site.
    pub(in crate::bridge) fn ask(
        &self,
        site: Site,
        calls: Vec<Call>,
    ) -> oneshot::Receiver<Vec<Reply>> {
        let (sender, receiver) = oneshot::channel();
        // What is not taken is dropped, and so the receiver hears.
        let _ = self.queue(
            &mut self.state.lock(),
            site,
            Work::new(calls, Whom::Link(sender)),
        );
        receiver
    }

    pub(super) fn queue(&self, state: &mut State, site: Site, work: Work) -> Result<(), Work> {
        let bytes = work.bytes();
        let Some(seat) = state
            .sites
            .get_mut(&site)
            .filter(|seat| seat.takes_commands)
        else {
            return Err(work);
        };
        if seat.queue.len() >= QUEUE_MAX || seat.queue_bytes + bytes > QUEUE_BYTES_MAX {
            self.counted.refused.fetch_add(1, Relaxed);
            return Err(work);
        }
        seat.queue_bytes += bytes;
        seat.queue.push_back(work);
        seat.wakes.commands.notify_one();
        Ok(())
    }

    pub(in crate::bridge) fn take(&self, site: Site) -> Option<Work> {
        let mut state = self.state.lock();
        let seat = state.sites.get_mut(&site)?;
        let work = seat.queue.pop_front()?;
        seat.queue_bytes -= work.bytes();
        Some(work)
    }

    /// Hands work on to whoever has the slot for now. It was sent before.
    pub(in crate::bridge) fn pass_on(self: &Arc<Self>, to: &Address, work: Work) {
        let mut state = self.state.lock();
        let site = self.site(&mut state, to);
        if let Some(seat) = state.sites.get_mut(&site)
            && seat.idle_since.is_some()
        {
            seat.idle_since = Some(Instant::now());
        }
        for partition in work
            .due
            .iter()
            .filter_map(|&at| self.hot_of(&work.calls[at]))
        {
            self.imports(&mut state, site, partition);
        }
        if let Err(work) = self.queue(&mut state, site, work) {
            let is_begun = work.replies.iter().any(Option::is_some);
            let why = if is_begun {
                Failed::Lost
            } else {
                Failed::Moved
            };
            self.fail(&mut state, work, why);
        }
    }

    pub(in crate::bridge) fn answer(&self, site: Site, server: Server, work: Work) {
        self.has_not_moved(site, work.calls.iter().filter_map(|call| self.hot_of(call)));
        let replies = work.replies.into_iter().flatten().collect();
        match work.whom {
            Whom::Core(tag) => {
                let event = Event::Answered {
                    tag,
                    server,
                    replies,
                };
                self.tell(&mut self.state.lock(), event);
            }
            // Whoever asked may have given up.
            Whom::Link(sender) => drop(sender.send(replies)),
        }
    }

    /// The partition whose hot key a call is about.
    fn hot_of(&self, call: &Call) -> Option<Partition> {
        let mut words = call.words();
        let key = match words.next()? {
            b"FCALL" => words.nth(2)?,
            _ => words.next()?,
        };
        self.partition_of(key)
    }

    pub(in crate::bridge) fn failed(&self, work: Work, why: Failed) {
        self.fail(&mut self.state.lock(), work, why);
    }

    pub(super) fn fail(&self, state: &mut State, work: Work, why: Failed) {
        if let Whom::Core(tag) = work.whom {
            self.tell(state, Event::Failed { tag, why });
        }
    }

    pub(in crate::bridge) fn commands_up(&self, site: Site) {
        let mut state = self.state.lock();
        if let Some(seat) = state.sites.get_mut(&site) {
            seat.takes_commands = true;
            seat.well(&self.options);
        }
    }

    /// No commands can be sent; what waits was never sent.
    pub(in crate::bridge) fn commands_down(&self, site: Site) {
        let mut state = self.state.lock();
        let Some(seat) = state.sites.get_mut(&site) else {
            return;
        };
        seat.takes_commands = false;
        seat.queue_bytes = 0;
        for work in std::mem::take(&mut seat.queue) {
            self.fail(&mut state, work, Failed::Unreached);
        }
    }
}

impl State {
    fn has_room(&self) -> bool {
        self.events.len() < EVENTS_MAX && self.event_bytes < EVENT_BYTES_MAX
    }
}

fn bytes_of_event(event: &Event) -> usize {
    fn of_reply(reply: &Reply) -> usize {
        16 + match reply {
            Reply::Bytes(bytes) => bytes.len(),
            Reply::Error(text) => text.len(),
            Reply::List(list) => list.iter().map(of_reply).sum(),
            Reply::Nil | Reply::Number(_) => 0,
        }
    }
    64 + match event {
        Event::Answered { replies, .. } => replies.iter().map(of_reply).sum(),
        Event::Published { message, .. } => message.len(),
        _ => 0,
    }
}
