//! One process's share of many streams: opens them on a schedule, holds them, cuts them, brings
//! them back.
//!
//! Owns what `streams` and `storm` do to sockets. Talks to the process that started it in lines of
//! JSON (out) and words (in); judges nothing. About 90 bytes of user memory a stream.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc;

use serde::{Deserialize, Serialize};

use crate::answers::{Answered, Answers};
use crate::asks::write_stream_request;
use crate::clock;
use crate::effort::Effort;
use crate::fleet::{Fleet, Handler};
use crate::gone::Gone;
use crate::graph::Graph;
use crate::population::Population;
use crate::procfs;
use crate::record;
use crate::schedule::Schedule;
use crate::seal::Seal;
use crate::sse::{Event, Lasting};
use crate::stats::Latencies;
use crate::workers::{orders, say};

/// What a herd is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The servers, in turn.
    pub targets: Vec<SocketAddr>,
    /// None: streams are plain.
    pub seal: Option<Seal>,
    /// Number of the first stream among those of all processes.
    pub first: usize,
    /// Streams of this process.
    pub count: usize,
    /// Connects a second, of this process.
    pub rate: f64,
    /// Most streams of this process that are on their way to being ready.
    pub in_flight: usize,
    /// Who exists.
    pub population: Population,
    /// Who watches whom.
    pub graph: Graph,
    /// States that make a first snapshot whole: a long list comes in several events. 0: one event
    /// is a whole one.
    pub states: u32,
    /// Whether each stream makes its holder a publisher.
    pub publish: bool,
    /// Whether streams vouch for themselves.
    pub answer_pings: bool,
    /// What makes a stream ready.
    pub ready: Ready,
}

/// When a stream counts as ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ready {
    /// The response head has come.
    Head,
    /// The hello has come.
    Hello,
    /// The snapshot has come.
    Snapshot,
}

/// Words from a herd to the process that started it.
#[derive(Serialize, Deserialize, Debug)]
pub enum Word {
    /// How far it is; several times a second.
    Progress(Progress),
    /// What it found; the last word.
    Found(Box<Found>),
}

/// How far a herd is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Connects begun, reconnects not counted.
    pub begun: u64,
    /// Connections that came about, reconnects too.
    pub connected: u64,
    /// Streams ready now.
    pub ready: u64,
    /// Streams that ended without being told to, or never came about.
    pub gone: u64,
    /// Ready streams that were cut or ended in the storm: how often, not how many are away.
    pub lost: u64,
    /// Presence events received.
    pub presence: u64,
    /// Pings answered, and the answers taken.
    pub pings_answered: u64,
    /// Anonymous memory of this process less what it had before its first stream, bytes.
    pub own_bytes: u64,
}

/// What a herd found.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Found {
    /// Its final progress.
    pub progress: Progress,
    /// From the intended connect to the head, hello and snapshot; and the generator's lag.
    /// HdrHistogram V2, base64.
    pub connect: String,
    /// See `connect`.
    pub hello: String,
    /// See `connect`.
    pub snapshot: String,
    /// From the start to the moment at which the last stream of the ramp was ready, us.
    pub ramped_us: u64,
    /// From the time a stream was due to come back to its being ready again.
    pub back: String,
    /// From a ping to what its answer was answered.
    pub answer: String,
    /// Answers that were refused or failed.
    pub answers_failed: u64,
    /// How late connects were begun.
    pub lag: String,
    /// Share of the ramp, or of the way back after a cut, in which it was not waiting: the larger
    /// one.
    pub busy: f64,
    /// States told after the cut that say somebody went offline, or came online: nobody did.
    pub false_transitions: u64,
    /// Reconnects that an EventSource would have given up on (a status other than 200).
    pub given_up: u64,
    /// Longest reconnect delay that a stream was told, ms.
    pub retry_ms_max: u32,
    /// Longest time, ms, for which a stream may be away without its user going offline, by the
    /// server's hello; 0: not told.
    pub away_ms_max: u64,
    /// Refused, ended and broken streams, by name.
    pub gone: Vec<(String, u64)>,
}

struct Herd {
    plan: Plan,
    start_us: u64,
    /// When each stream should have been opened, us after the start.
    intended_us: Vec<u32>,
    ready: Vec<bool>,
    /// States that each stream was told by its first snapshot so far.
    told: Vec<u32>,
    progress: Progress,
    connect: Latencies,
    hello: Latencies,
    snapshot: Latencies,
    back: Latencies,
    ramped_us: u64,
    answers: Option<Answers>,
    /// Streams that come back, by when (us); only in a storm.
    returning: BinaryHeap<Reverse<(u64, u32)>>,
    storm: bool,
    false_transitions: u64,
    given_up: u64,
    retry_ms_max: u32,
    away_ms_max: u64,
    gone: [u64; 5],
    rng: fastrand::Rng,
}

/// Runs a herd until it is told to close (or its input ends).
pub fn run(plan: Plan) -> io::Result<()> {
    // What it holds for its streams counts from here on, the table of them too.
    let own_before = own_bytes();
    let mut fleet =
        Fleet::new(plan.targets.clone(), plan.first, plan.count)?.sealed_by(plan.seal.clone());
    let orders = orders();
    let start_us = clock::now_us();
    let mut schedule = Schedule::new(start_us, plan.rate, plan.count as u64);
    let mut lag = Latencies::default();
    let mut herd = Herd::new(plan, start_us)?;
    let mut next_word_us = start_us;
    let mut strain = Strain::begin(0);
    loop {
        let now_us = clock::now_us();
        match orders.try_recv().as_deref() {
            // Reset every connection and come back as clients do.
            Ok("cut") => {
                strain.begin_again(fleet.asleep_us());
                herd.cut(&mut fleet, now_us);
            }
            // Streams that end from now on come back as clients do (the server is being restarted).
            Ok("return") => {
                strain.begin_again(fleet.asleep_us());
                herd.storm = true;
            }
            Ok(_) | Err(mpsc::TryRecvError::Disconnected) => break,
            Err(mpsc::TryRecvError::Empty) => {}
        }
        // A few at a time, so that what comes meanwhile is read.
        for _ in 0..32 {
            let crowded = herd.in_flight() >= herd.plan.in_flight;
            let Some((number, due_us)) = (!crowded).then(|| schedule.next_due(now_us)).flatten()
            else {
                break;
            };
            // Whoever has waited for others to be ready was meant to begin now: no open loop.
            let intended_us = match herd.plan.in_flight {
                usize::MAX => due_us,
                _ => now_us,
            };
            lag.record(now_us - intended_us);
            herd.begin(&mut fleet, number as usize, intended_us)?;
        }
        if schedule.is_over() && herd.is_settled() {
            strain.end(fleet.asleep_us());
        }
        herd.bring_back(&mut fleet, now_us, &mut lag)?;
        if now_us >= next_word_us {
            next_word_us = now_us + 200_000;
            herd.progress.own_bytes = own_bytes().saturating_sub(own_before);
            say(&Word::Progress(herd.progress))?;
        }
        // Where there is no room, who is ready next makes some.
        let has_room = herd.in_flight() < herd.plan.in_flight;
        let next_begin_us = schedule.next_at_us().filter(|_| has_room);
        let wake_us = next_begin_us
            .unwrap_or(u64::MAX)
            .min(herd.next_return_us())
            .min(next_word_us)
            .min(now_us + 20_000);
        fleet.poll(wake_us, &mut herd)?;
        if let Some(answers) = &mut herd.answers {
            answers.poll()?;
            herd.progress.pings_answered = answers.answered.good;
        }
    }
    say(&Word::Found(Box::new(Found {
        busy: strain.finish(fleet.asleep_us()),
        lag: lag.to_base64(),
        ..herd.found()
    })))
}

/// How hard the ramp was, and coming back after a cut; holding streams strains nobody.
struct Strain {
    effort: Option<Effort>,
    busy: f64,
}

impl Strain {
    fn begin(asleep_us: u64) -> Strain {
        Strain {
            effort: Some(Effort::begin(asleep_us)),
            busy: 0.0,
        }
    }

    fn begin_again(&mut self, asleep_us: u64) {
        self.end(asleep_us);
        self.effort = Some(Effort::begin(asleep_us));
    }

    fn end(&mut self, asleep_us: u64) {
        if let Some(effort) = self.effort.take() {
            self.busy = self.busy.max(effort.busy(asleep_us));
        }
    }

    fn finish(mut self, asleep_us: u64) -> f64 {
        self.end(asleep_us);
        self.busy
    }
}

impl Herd {
    fn new(plan: Plan, start_us: u64) -> io::Result<Herd> {
        let lines = || Answers::new(plan.targets.clone(), plan.first, plan.count);
        let answers = plan.answer_pings.then(lines).transpose()?;
        Ok(Herd {
            answers,
            start_us,
            intended_us: vec![0; plan.count],
            ready: vec![false; plan.count],
            told: vec![0; plan.count],
            progress: Progress::default(),
            connect: Latencies::default(),
            hello: Latencies::default(),
            snapshot: Latencies::default(),
            back: Latencies::default(),
            ramped_us: 0,
            returning: BinaryHeap::new(),
            storm: false,
            false_transitions: 0,
            given_up: 0,
            retry_ms_max: 0,
            away_ms_max: 0,
            gone: [0; 5],
            rng: fastrand::Rng::with_seed(plan.graph.seed ^ plan.first as u64),
            plan,
        })
    }

    fn begin(&mut self, fleet: &mut Fleet, conn: usize, intended_us: u64) -> io::Result<()> {
        self.intended_us[conn] = u32::try_from(intended_us - self.start_us).unwrap_or(u32::MAX);
        self.told[conn] = 0;
        self.progress.begun += u64::from(!self.storm);
        fleet.open(conn)
    }

    fn cut(&mut self, fleet: &mut Fleet, now_us: u64) {
        self.storm = true;
        for conn in 0..self.plan.count {
            if !fleet.is_closed(conn) {
                fleet.close(conn, true);
                self.unready(conn);
                self.plan_return(conn, now_us, fleet.lasting(conn).retry_ms);
            }
        }
    }

    /// A client waits for `retry`; one that was told nothing takes 3 s, as browsers do.
    fn plan_return(&mut self, conn: usize, now_us: u64, retry_ms: u32) {
        let wait_us = match retry_ms {
            0 => 3_000_000 + self.rng.u64(..100_000),
            ms => u64::from(ms) * 1_000,
        };
        self.returning
            .push(Reverse((now_us + wait_us, conn as u32)));
    }

    fn next_return_us(&self) -> u64 {
        self.returning
            .peek()
            .map_or(u64::MAX, |Reverse((due_us, _))| *due_us)
    }

    fn bring_back(
        &mut self,
        fleet: &mut Fleet,
        now_us: u64,
        lag: &mut Latencies,
    ) -> io::Result<()> {
        for _ in 0..32 {
            if self.next_return_us() > now_us {
                break;
            }
            if let Some(Reverse((due_us, conn))) = self.returning.pop() {
                lag.record(now_us - due_us);
                self.begin(fleet, conn as usize, due_us)?;
            }
        }
        Ok(())
    }

    /// Whether nothing is left to wait for: all are ready or gone for good; in a storm, all have
    /// been cut and are ready again.
    fn is_settled(&self) -> bool {
        let Progress {
            ready, gone, lost, ..
        } = self.progress;
        let count = self.plan.count as u64;
        match self.storm {
            true => lost >= count && ready == count,
            false => ready + gone >= count,
        }
    }

    /// Streams that have been begun and are neither ready nor gone; a storm begins none.
    fn in_flight(&self) -> usize {
        let Progress {
            begun, ready, gone, ..
        } = self.progress;
        begun.saturating_sub(ready + gone) as usize
    }

    fn since_intended_us(&self, conn: usize, now_us: u64) -> u64 {
        now_us.saturating_sub(self.start_us + u64::from(self.intended_us[conn]))
    }

    fn made_ready(&mut self, conn: usize, now_us: u64) {
        if !std::mem::replace(&mut self.ready[conn], true) {
            self.progress.ready += 1;
            if self.storm {
                let us = self.since_intended_us(conn, now_us);
                self.back.record(us);
            } else {
                self.ramped_us = now_us - self.start_us;
            }
        }
    }

    /// Whether the snapshot in `data` tells the last of what the stream was to be told. Whoever
    /// comes back is told what has changed, of which only the server knows how much it is.
    fn is_whole(&mut self, conn: usize, data: &[u8]) -> bool {
        let whole = self.plan.states;
        if self.storm || whole == 0 {
            return true;
        }
        let before = self.told[conn];
        let records = memchr::memmem::find_iter(data, b"\"user\":").count();
        self.told[conn] = before + records as u32;
        before < whole && self.told[conn] >= whole
    }

    fn unready(&mut self, conn: usize) {
        let was_ready = u64::from(std::mem::replace(&mut self.ready[conn], false));
        self.progress.ready -= was_ready;
        self.progress.lost += if self.storm { was_ready } else { 0 };
    }

    fn found(&self) -> Found {
        let none = Answered::default();
        let answered = self.answers.as_ref().map_or(&none, |all| &all.answered);
        let names = ["refused", "status", "malformed", "eof", "reset"];
        Found {
            progress: self.progress,
            connect: self.connect.to_base64(),
            hello: self.hello.to_base64(),
            snapshot: self.snapshot.to_base64(),
            back: self.back.to_base64(),
            ramped_us: self.ramped_us,
            answer: answered.latency.to_base64(),
            answers_failed: answered.bad,
            false_transitions: self.false_transitions,
            given_up: self.given_up,
            retry_ms_max: self.retry_ms_max,
            away_ms_max: self.away_ms_max,
            gone: names
                .map(str::to_owned)
                .into_iter()
                .zip(self.gone)
                .collect(),
            ..Found::default()
        }
    }
}

impl Handler for Herd {
    fn request(&mut self, conn: usize, host: SocketAddr, lasting: Lasting, out: &mut Vec<u8>) {
        let plan = &self.plan;
        let number = (plan.first + conn) as u64;
        let last_id = lasting.last_id;
        let watches = plan.graph.watches_of(number);
        write_stream_request(
            &plan.population,
            host,
            plan.publish.then_some(number),
            &watches,
            last_id,
            plan.answer_pings,
            out,
        );
    }

    fn connected(&mut self, _conn: usize, _now_us: u64) {
        self.progress.connected += 1;
    }

    fn opened(&mut self, conn: usize, now_us: u64) {
        self.connect.record(self.since_intended_us(conn, now_us));
        if self.plan.ready == Ready::Head {
            self.made_ready(conn, now_us);
        }
    }

    fn event(&mut self, conn: usize, now_us: u64, event: &Event<'_>, lasting: Lasting) {
        match event.name {
            b"hello" => {
                self.retry_ms_max = self.retry_ms_max.max(lasting.retry_ms);
                // The same for all streams: one is read.
                if self.away_ms_max == 0 {
                    let hello: serde_json::Value =
                        serde_json::from_slice(&event.data).unwrap_or_default();
                    let ms = |name: &str| hello[name].as_u64().unwrap_or(0);
                    self.away_ms_max =
                        ms("offline_after_ms").saturating_sub(ms("beat_interval_ms"));
                }
                if let Some(answers) = &mut self.answers {
                    let hello: serde_json::Value =
                        serde_json::from_slice(&event.data).unwrap_or_default();
                    answers.hello(conn, hello["stream"].as_str().unwrap_or(""));
                }
                self.hello.record(self.since_intended_us(conn, now_us));
                if self.plan.ready == Ready::Hello {
                    self.made_ready(conn, now_us);
                }
            }
            b"ping" => {
                if let Some(answers) = &mut self.answers {
                    answers.ping(conn, now_us);
                }
            }
            b"snapshot" => {
                if self.is_whole(conn, &event.data) {
                    self.snapshot.record(self.since_intended_us(conn, now_us));
                    if self.plan.ready == Ready::Snapshot {
                        self.made_ready(conn, now_us);
                    }
                }
                if self.storm {
                    let mut offline = 0;
                    record::parse_snapshot(&event.data, |record| {
                        offline += u64::from(record.online == Some(false))
                    });
                    self.false_transitions += offline;
                }
            }
            b"presence" | b"message" => {
                self.progress.presence += 1;
                self.false_transitions += u64::from(self.storm);
            }
            _ => {}
        }
    }

    fn gone(&mut self, conn: usize, now_us: u64, why: Gone, lasting: Lasting) {
        self.gone[match why {
            Gone::Refused => 0,
            Gone::Status(_) => 1,
            Gone::Malformed => 2,
            Gone::Eof => 3,
            Gone::Reset => 4,
        }] += 1;
        self.unready(conn);
        if !self.storm {
            self.progress.gone += 1;
        } else if let Gone::Status(_) | Gone::Malformed = why {
            self.given_up += 1;
        } else {
            self.plan_return(conn, now_us, lasting.retry_ms);
        }
    }
}

fn own_bytes() -> u64 {
    procfs::memory(std::process::id()).map_or(0, |memory| memory.anonymous_bytes)
}

#[cfg(test)]
mod tests;
