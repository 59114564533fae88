//! The connection for commands of one server.
//!
//! Owns what has been sent there and not been answered, and what an answer means for a command that
//! has several. Never decides whether a command is said again, with two exceptions: the library was
//! missing, or the server named the one that has the key while its slot moves (`ASK`).

use std::collections::VecDeque;
use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::about;
use super::board::{Board, Site, Work};
use super::dial::{Useless, dial, load_words};
use super::resp::Frame;
use super::wire::{Incoming, Outgoing};
use super::{RETRY_CAP_MS, backoff, sleep_after_failure};
use crate::backoff::Backoff;
use crate::fleet::replies::Refusal;
use crate::fleet::traffic::{Failed, Reply, Server};
use crate::redis_url::Address;

/// The oldest command is answered within that, or the connection is given up.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Most commands that are sent and not answered, and most bytes that wait for the socket.
const IN_FLIGHT_MAX: usize = 1_024;
const OUTGOING_BYTES_MAX: usize = 1 << 20;

/// Without anything in flight there is nothing to wait for.
const FAR: Duration = Duration::from_secs(3_600);

/// Keeps a connection as long as the site is wanted.
pub(super) async fn run(board: Arc<Board>, site: Site, address: Address, wake: Arc<Notify>) {
    let mut backoff = backoff(RETRY_CAP_MS);
    loop {
        match dial(&board.options, &address, true).await {
            Ok(dialled) => {
                board.learn(dialled.others);
                if let Some(server) = board.identify(site, dialled.identity) {
                    let connection = Connection {
                        board: &board,
                        site,
                        address: &address,
                        server,
                        outgoing: dialled.outgoing,
                        sent: Sent(&board, VecDeque::new()),
                        has_answered: false,
                    };
                    board.commands_up(site);
                    board.look.notify_one();
                    if connection
                        .serve(dialled.incoming, &wake, &mut backoff)
                        .await
                    {
                        board.fault(site, "it does not answer in time".into());
                    }
                    board.commands_down(site);
                    board.counted.reconnects.fetch_add(1, Relaxed);
                }
            }
            Err(Useless::Replica(_, others)) => {
                board.learn(others);
                board.disown(site);
                board.fault(site, "it is a replica".into());
            }
            Err(Useless::Fault(text)) => board.fault(site, text),
        }
        board.look.notify_one();
        sleep_after_failure(&mut backoff).await;
    }
}

struct Connection<'b> {
    board: &'b Arc<Board>,
    site: Site,
    address: &'b Address,
    server: Server,
    outgoing: Outgoing,
    sent: Sent<'b>,
    has_answered: bool,
}

/// In the order in which they were sent. Whatever ends the connection, they are lost.
struct Sent<'b>(&'b Board, VecDeque<Pending>);

/// A command that was sent.
struct Pending {
    work: Work,
    /// Which of its calls each reply that is still to come is to; none: to one of ours.
    awaits: VecDeque<Option<usize>>,
    at: Instant,
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        for pending in self.1.drain(..) {
            self.0.failed(pending.work, Failed::Lost);
        }
    }
}

impl Connection<'_> {
    /// Until the connection is lost or given up. Returns whether it was too slow.
    async fn serve(mut self, mut incoming: Incoming, wake: &Notify, backoff: &mut Backoff) -> bool {
        let outcome = self.run(&mut incoming, wake).await;
        if self.has_answered {
            backoff.reset();
        }
        outcome.is_err_and(|error| error.kind() == ErrorKind::TimedOut)
    }

    async fn run(&mut self, incoming: &mut Incoming, wake: &Notify) -> Result<()> {
        let board = self.board;
        while board.is_current(self.site, self.server) {
            while self.sent.1.len() < IN_FLIGHT_MAX && self.outgoing.waiting() < OUTGOING_BYTES_MAX
            {
                match board.take(self.site) {
                    Some(work) => self.say(work),
                    None => break,
                }
            }
            let oldest = self.sent.1.front().map(|pending| pending.at + ANSWER_MAX);
            let read = async {
                board.has_room().await;
                incoming.fill().await
            };
            let (before, was) = (self.outgoing.total, &mut self.outgoing);
            let has_more = !was.is_done();
            tokio::select! {
                biased;
                read = read => {
                    read?;
                    self.read(incoming)?;
                }
                written = was.advance(), if has_more => {
                    written?;
                    board.counted.bytes_out.fetch_add(self.outgoing.total - before, Relaxed);
                }
                () = wake.notified() => {}
                () = sleep_until(oldest.unwrap_or_else(|| Instant::now() + FAR)) => {
                    return Err(ErrorKind::TimedOut.into());
                }
            }
        }
        Ok(())
    }

    fn say(&mut self, work: Work) {
        let mut awaits = VecDeque::new();
        if work.is_second {
            self.outgoing.say(load_words());
            awaits.push_back(None);
        }
        for &at in &work.due {
            if work.is_asking {
                self.outgoing.say([&b"ASKING"[..]].into_iter());
                awaits.push_back(None);
            }
            self.outgoing.say(work.calls[at].words());
            awaits.push_back(Some(at));
        }
        let calls = work.due.len() as u64;
        self.board.counted.commands.fetch_add(calls, Relaxed);
        let at = Instant::now();
        self.sent.1.push_back(Pending { work, awaits, at });
    }

    fn read(&mut self, incoming: &mut Incoming) -> Result<()> {
        let before = std::mem::take(&mut incoming.total);
        self.board.counted.bytes_in.fetch_add(before, Relaxed);
        while let Some(frame) = incoming.frame()? {
            let Frame::Reply(reply) = frame else {
                continue;
            };
            let no_command = || Error::new(ErrorKind::InvalidData, "it answers unasked");
            let pending = self.sent.1.front_mut().ok_or_else(no_command)?;
            if let Some(at) = pending.awaits.pop_front().flatten() {
                pending.work.replies[at] = Some(reply);
            }
            if pending.awaits.is_empty()
                && let Some(pending) = self.sent.1.pop_front()
            {
                self.has_answered = true;
                self.answered(pending.work);
            }
        }
        Ok(())
    }

    /// All of a command's calls have replies.
    fn answered(&mut self, mut work: Work) {
        let error = |at: usize| match &work.replies[at] {
            Some(Reply::Error(error)) => Some(&**error),
            _ => None,
        };
        let all = 0..work.calls.len();
        let elsewhere: Vec<&str> = all
            .clone()
            .filter_map(error)
            .filter(|error| about::is_elsewhere(error))
            .collect();
        if let Some(first) = elsewhere.first() {
            let to = about::redirected(first, self.address);
            let asked = |error: &&str| error.starts_with("ASK ");
            if let Some(to) = &to
                && !work.is_asking
                && elsewhere.iter().all(asked)
            {
                let due = all.filter(|&at| error(at).is_some_and(about::is_elsewhere));
                let due: Vec<usize> = due.collect();
                due.iter().for_each(|&at| work.replies[at] = None);
                work.due = due;
                work.is_asking = true;
                self.board.pass_on(to, work);
                return;
            }
            let is_all = elsewhere.len() == work.calls.len();
            self.board.moved(to);
            let why = if is_all { Failed::Moved } else { Failed::Lost };
            self.board.failed(work, why);
            return;
        }
        let is_missing = |error: &str| Refusal::parse(error) == Some(Refusal::NoLibrary);
        let due: Vec<usize> = all
            .filter(|&at| error(at).is_some_and(is_missing))
            .collect();
        if !due.is_empty() && !work.is_second {
            // Before whatever was not sent yet, as its turn was.
            due.iter().for_each(|&at| work.replies[at] = None);
            work.due = due;
            work.is_second = true;
            self.say(work);
            return;
        }
        self.board.answer(self.site, self.server, work);
    }
}
