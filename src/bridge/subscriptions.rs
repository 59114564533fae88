//! The connection for subscriptions of one server, and the reads that show that it is well.
//!
//! Owns one subscription a partition: a cluster takes several channels in one command only if they
//! share a slot, and what has moved comes back one by one. Never decides whose a partition is.

use std::collections::VecDeque;
use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::about::{self, bytes};
use super::board::{Board, Site, Wanted};
use super::dial::{Useless, dial, refused};
use super::resp::Frame;
use super::wire::{Incoming, Outgoing};
use super::{RETRY_CAP_MS, backoff, sleep_after_failure};
use crate::fleet::held::META_FIELD;
use crate::fleet::partition::Partition;
use crate::fleet::traffic::{Reply, Server};
use crate::redis_url::Address;

/// How often what is heard is compared with what should be, and the server is read.
const BEAT: Duration = Duration::from_secs(1);

/// A read that takes longer gives the connection up.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Keeps a connection as long as the site is wanted.
pub(super) async fn run(board: Arc<Board>, site: Site, address: Address, wake: Arc<Notify>) {
    let mut backoff = backoff(RETRY_CAP_MS);
    loop {
        match dial(&board.options, &address, false).await {
            Ok(dialled) => {
                if let Some(server) = board.identify(site, dialled.identity) {
                    let mut connection = Connection {
                        board: &board,
                        site,
                        address: &address,
                        server,
                        outgoing: dialled.outgoing,
                        cells: vec![Cell::default(); board.partitions.count().into()],
                        expects: VecDeque::new(),
                        read_began: None,
                        last_read: 0,
                        is_well: false,
                        has_answered: false,
                    };
                    board.subscriptions_up(site);
                    let outcome = connection.serve(dialled.incoming, &wake).await;
                    board.subscriptions_down(site);
                    board.counted.reconnects.fetch_add(1, Relaxed);
                    if connection.has_answered {
                        backoff.reset();
                    }
                    if outcome.is_err_and(|error| error.kind() == ErrorKind::TimedOut) {
                        board.fault(site, "it answers no reads in time".into());
                    }
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
    board: &'b Board,
    site: Site,
    address: &'b Address,
    server: Server,
    outgoing: Outgoing,
    cells: Vec<Cell>,
    /// What was asked, in order.
    expects: VecDeque<Expect>,
    read_began: Option<Instant>,
    /// Where the last read was.
    last_read: usize,
    /// The read that is under way was answered by the primary.
    is_well: bool,
    has_answered: bool,
}

/// A partition here.
#[derive(Clone, Copy, Default)]
struct Cell {
    is_wanted: bool,
    is_held: bool,
    /// Its slot is another's, who has given away its key.
    is_asking: bool,
    /// Subscriptions that are asked for and not confirmed: what confirms an older one is no sign.
    asked: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    Subscribed(Partition),
    /// That what follows is done though its slot is another's.
    Leave,
    Read,
    Role,
}

/// The next of the moments that are a [`BEAT`] apart, one of which is `first`.
fn beat_after(first: Instant, now: Instant) -> Instant {
    match now.checked_duration_since(first) {
        Some(since) => first + BEAT * (since.as_millis() / BEAT.as_millis() + 1) as u32,
        None => first.min(now + BEAT),
    }
}

impl Connection<'_> {
    /// Until the connection is lost or given up.
    async fn serve(&mut self, mut incoming: Incoming, wake: &Notify) -> Result<()> {
        let board = self.board;
        let mut next_beat = Instant::now();
        self.compare();
        while board.is_current(self.site, self.server) {
            let now = Instant::now();
            if now >= next_beat {
                next_beat = beat_after(board.beat_at, now);
                self.compare();
                if self.read_began.is_none() {
                    self.begin_read(now);
                }
            }
            if self.given_up_at().is_some_and(|at| now >= at) {
                return Err(ErrorKind::TimedOut.into());
            }
            let read = async {
                board.has_room().await;
                incoming.fill().await
            };
            let due = self.given_up_at().map_or(next_beat, |at| at.min(next_beat));
            let (before, outgoing) = (self.outgoing.total, &mut self.outgoing);
            let has_more = !outgoing.is_done();
            tokio::select! {
                biased;
                read = read => {
                    read?;
                    self.read(&mut incoming)?;
                }
                written = outgoing.advance(), if has_more => {
                    written?;
                    board.counted.bytes_out.fetch_add(self.outgoing.total - before, Relaxed);
                }
                () = wake.notified() => self.compare(),
                () = sleep_until(due) => {}
            }
        }
        Ok(())
    }

    /// When the read that is under way has taken too long.
    fn given_up_at(&self) -> Option<Instant> {
        self.read_began.map(|began| began + ANSWER_MAX)
    }

    /// Subscribes what is missing, and hears no more of what is too much.
    fn compare(&mut self) {
        let board = self.board;
        let wanted = board.wanted_at(self.site);
        for (partition, wanted) in board.partitions.all().zip(wanted) {
            let cell = &mut self.cells[partition.index()];
            let is_wanted = wanted != Wanted::Not;
            cell.is_asking = wanted == Wanted::Asking;
            if is_wanted == cell.is_wanted {
                continue;
            }
            cell.is_wanted = is_wanted;
            cell.is_held = false;
            if !is_wanted {
                // Who has lost the slot ends the subscription itself, and would refuse to be asked
                // for it. What others still publish is not listened to.
                board.unsubscribed(self.site, partition);
                continue;
            }
            cell.asked = cell.asked.saturating_add(1);
            if cell.is_asking {
                self.say(&[b"ASKING"]);
                self.expects.push_back(Expect::Leave);
            }
            let channel = board.partitions.hot_key(partition);
            self.say(&[b"SSUBSCRIBE", channel.as_bytes()]);
            self.expects.push_back(Expect::Subscribed(partition));
        }
    }

    fn say(&mut self, words: &[&[u8]]) {
        self.outgoing.say(words.iter().copied());
    }

    /// Asks what only a primary that serves answers, and whether it is one and whose data it has.
    fn begin_read(&mut self, now: Instant) {
        if let Some(at) = self.where_to_read() {
            self.last_read = at;
            let partition = self.board.partitions.all().nth(at);
            let hot = partition.map(|partition| self.board.partitions.hot_key(partition));
            if self.cells[at].is_asking {
                self.say(&[b"ASKING"]);
                self.expects.push_back(Expect::Leave);
            }
            self.say(&[b"HGET", hot.unwrap_or_default().as_bytes(), META_FIELD]);
            self.expects.push_back(Expect::Read);
        }
        self.say(&[b"INFO", b"replication"]);
        self.expects.push_back(Expect::Role);
        self.read_began = Some(now);
        self.is_well = false;
    }

    /// The partition after the last one, whose slot is here if there is one.
    fn where_to_read(&self) -> Option<usize> {
        let count = self.cells.len();
        let places = (1..=count).map(|step| (self.last_read + step) % count);
        let wanted = places.filter(|&at| self.cells[at].is_wanted);
        let is_here = |at: &usize| !self.cells[*at].is_asking;
        wanted
            .clone()
            .find(is_here)
            .or_else(|| wanted.clone().next())
    }

    fn read(&mut self, incoming: &mut Incoming) -> Result<()> {
        let before = std::mem::take(&mut incoming.total);
        self.board.counted.bytes_in.fetch_add(before, Relaxed);
        while let Some(frame) = incoming.frame()? {
            match frame {
                Frame::Push(push) => self.pushed(push),
                Frame::Reply(reply) => self.answered(reply)?,
            }
        }
        Ok(())
    }

    fn pushed(&mut self, mut push: Vec<Reply>) {
        let kind = push.first().and_then(bytes).unwrap_or_default();
        let channel = push.get(1).and_then(bytes).unwrap_or_default();
        let Some(partition) = self.board.partition_of(channel) else {
            return;
        };
        match kind {
            b"smessage" => {
                let message = push.pop();
                if let Some(Reply::Bytes(message)) = message
                    && self.cells[partition.index()].is_held
                {
                    let (site, server) = (self.site, self.server);
                    self.board.published(site, server, partition, message);
                }
            }
            b"ssubscribe" => {
                if self.expects.front() == Some(&Expect::Subscribed(partition)) {
                    self.expects.pop_front();
                }
                let cell = &mut self.cells[partition.index()];
                cell.asked = cell.asked.saturating_sub(1);
                if cell.is_wanted && cell.asked == 0 {
                    cell.is_held = true;
                    self.board.subscribed(self.site, self.server, partition);
                }
            }
            b"sunsubscribe" => {
                // Nobody asked for it: its slot has moved.
                let cell = &mut self.cells[partition.index()];
                if std::mem::take(&mut cell.is_held) {
                    cell.is_wanted = false;
                    self.board.unsubscribed(self.site, partition);
                    self.board.moved(None);
                }
            }
            _ => {}
        }
    }

    fn answered(&mut self, reply: Reply) -> Result<()> {
        let expected = self.expects.pop_front();
        let unasked = || Error::new(ErrorKind::InvalidData, "it answers unasked");
        match (expected.ok_or_else(unasked)?, reply) {
            (Expect::Subscribed(partition), Reply::Error(error)) => {
                let cell = &mut self.cells[partition.index()];
                cell.asked = cell.asked.saturating_sub(1);
                // The next comparison tries again, if it is wanted here then.
                cell.is_wanted = false;
                self.trouble(&error);
            }
            (Expect::Leave, _) => {}
            (Expect::Read, Reply::Error(error)) => self.trouble(&error),
            (Expect::Read, _) => self.is_well = true,
            (Expect::Role, reply) => return self.role(&reply),
            (Expect::Subscribed(_), _) => return Err(unasked()),
        }
        Ok(())
    }

    fn trouble(&mut self, error: &str) {
        match about::is_elsewhere(error) {
            true => self.board.moved(about::redirected(error, self.address)),
            false => self.board.fault(self.site, refused(error)),
        }
    }

    fn role(&mut self, reply: &Reply) -> Result<()> {
        let began = self.read_began.take();
        let text = String::from_utf8_lossy(bytes(reply).unwrap_or_default());
        let Some(replication) = about::replication_of(&text) else {
            let text = match reply {
                Reply::Error(error) => refused(error),
                _ => "INFO does not say whom it replicates".into(),
            };
            self.board.fault(self.site, text);
            return Err(ErrorKind::InvalidData.into());
        };
        if !replication.is_primary {
            self.board.disown(self.site);
            self.board
                .fault(self.site, "it has become a replica".into());
        } else if !self.board.is_same(self.site, &replication.id) {
            // Between two reads it was a replica.
            self.board.disown(self.site);
        } else if let Some(began) = began.filter(|_| self.is_well) {
            self.has_answered = true;
            self.board.heard(self.site, self.server, began);
        }
        self.board.learn(replication.others);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_are_a_second_apart_whenever_one_is_asked_for() {
        let ms = Duration::from_millis;
        let first = Instant::now() + ms(10_000);
        // Of a process that has just begun, the first is within a second.
        assert_eq!(beat_after(first, first - ms(300)), first);
        assert_eq!(beat_after(first, first - ms(5_000)), first - ms(4_000));
        for (at_ms, next_ms) in [
            (0, 1_000),
            (1, 1_000),
            (999, 1_000),
            (1_000, 2_000),
            (3_600_000_500, 3_600_001_000),
        ] {
            assert_eq!(beat_after(first, first + ms(at_ms)), first + ms(next_ms));
        }
    }
}
