//! `query`: presence queries over keep-alive connections, at a rate or as fast as answers come.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::asks::push_users;
use crate::clock;
use crate::common::{Common, Peer};
use crate::effort::Effort;
use crate::exposition::Exposition;
use crate::http::{parse_answer, write_request};
use crate::population::Population;
use crate::procfs;
use crate::record;
use crate::report::{MEMORY_SERIES, Report};
use crate::schedule::Schedule;
use crate::shards::Work;
use crate::stats::{Latencies, Strain};
use crate::target::Target;
use crate::units::duration;

/// Flags of `query`.
#[derive(Args, Clone, Debug)]
pub struct QueryArgs {
    /// Users asked about, chosen uniformly
    #[arg(long, default_value_t = 10_000)]
    pub users: u64,
    /// Requests a second, or max: each connection asks again as soon as it is answered
    #[arg(long, default_value = "5000", value_parser = crate::units::rate)]
    pub rate: f64,
    /// How long
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub seconds: Duration,
    /// Connections
    #[arg(long, default_value_t = 64)]
    pub connections: usize,
    /// With --rate max: requests written at once on each connection
    #[arg(long, default_value_t = 1)]
    pub pipeline: usize,
    /// Users asked about in each request; above 1 it is POST /v1/presence/query
    #[arg(long, default_value_t = 1)]
    pub batch: usize,
}

/// A connection; opened when it is first asked over, and again when the server has closed it while
/// it was idle.
#[derive(Default)]
struct Connection {
    socket: Option<TcpStream>,
    unsent: Vec<u8>,
    received: Vec<u8>,
    /// When each request that waits for its answer should have been sent, us.
    asked_us: VecDeque<u64>,
    /// Whom these requests ask about, `batch` users each.
    users: VecDeque<u64>,
}

struct Load<'a> {
    args: &'a QueryArgs,
    http: SocketAddr,
    population: Population,
    rng: fastrand::Rng,
    latencies: Latencies,
    answers: u64,
    not_200: u64,
    /// Answers of 200 about others than those who were asked about, or without a question.
    wrong: u64,
    /// Whether answers tell records of those asked about; a peer's are canned.
    is_greendot: bool,
    opened: u64,
}

/// The subcommand.
pub fn run(common: &Common, args: &QueryArgs) -> io::Result<Report> {
    let http = Target::single(common, "query")?.presence[0].http;
    let mut load = Load {
        args,
        http,
        population: Population::new(common.seed),
        rng: fastrand::Rng::with_seed(common.seed),
        latencies: Latencies::default(),
        answers: 0,
        not_200: 0,
        wrong: 0,
        is_greendot: common.peer == Peer::Greendot,
        opened: 0,
    };
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(256);
    let mut connections: Vec<Connection> = (0..args.connections.max(1))
        .map(|_| Connection::default())
        .collect();

    let work = || {
        (common.peer == Peer::Greendot)
            .then(|| Exposition::scrape(http))
            .transpose()
    };
    let before = work()?;
    let cpu_before_us = common.server_pid.and_then(procfs::cpu_us);
    let effort = Effort::begin(0);
    let start_us = clock::now_us();
    let end_us = start_us + args.seconds.as_micros() as u64;
    let max = args.rate.is_infinite();
    let count = if max {
        0
    } else {
        (args.rate * args.seconds.as_secs_f64()) as u64
    };
    let mut schedule = Schedule::new(start_us, args.rate, count);
    let mut lag = Latencies::default();
    if max {
        for index in 0..connections.len() {
            load.open(&mut connections, index, &poll)?;
            load.ask(&mut connections[index], start_us, args.pipeline);
            connections[index].send()?;
        }
    }
    let (mut answered, mut memory) = (Vec::new(), Vec::new());
    let mut last = (start_us, 0);
    let mut asleep_us = 0;
    let mut next = 0;
    // After the last request answers are awaited for a while; those that never come are counted.
    while clock::now_us() < end_us + 2_000_000 {
        let now_us = clock::now_us();
        while let Some((_, intended_us)) = schedule.next_due(now_us) {
            lag.record(now_us - intended_us);
            next = (next + 1) % connections.len();
            load.open(&mut connections, next, &poll)?;
            load.ask(&mut connections[next], intended_us, 1);
            connections[next].send()?;
        }
        if now_us - last.0 >= 250_000 {
            let at_s = (now_us - start_us) as f64 / 1e6;
            answered.push((
                at_s,
                (load.answers - last.1) as f64 * 1e6 / (now_us - last.0) as f64,
            ));
            memory.extend(procfs::user_mib(common.server_pid).map(|mib| (at_s, mib)));
            last = (now_us, load.answers);
        }
        let waiting = connections
            .iter()
            .any(|connection| !connection.asked_us.is_empty());
        if now_us >= end_us && (max || schedule.is_over()) && !waiting {
            break;
        }
        let wake_us = schedule
            .next_at_us()
            .unwrap_or(end_us.max(now_us + 10_000))
            .min(now_us + 100_000);
        match poll.poll(
            &mut events,
            Some(Duration::from_millis(
                wake_us.saturating_sub(now_us) / 1_000,
            )),
        ) {
            // Stopped and continued, perhaps.
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        }
        asleep_us += clock::now_us() - now_us;
        for event in &events {
            let connection = &mut connections[event.token().0];
            connection.send()?;
            let answered = load.read(connection)?;
            let now_us = clock::now_us();
            // A whole write of requests is answered before the next is sent.
            if max && answered && connection.asked_us.is_empty() && now_us < end_us {
                load.ask(connection, now_us, args.pipeline);
                connection.send()?;
            }
        }
    }
    let unanswered: usize = connections
        .iter()
        .map(|connection| connection.asked_us.len())
        .sum();
    let elapsed_us = (clock::now_us() - start_us).max(1);
    let busy = effort.busy(asleep_us);
    let cpu_us = common
        .server_pid
        .and_then(procfs::cpu_us)
        .zip(cpu_before_us)
        .map(|(after, before)| after.saturating_sub(before) as f64);

    let mut report = Report::new("query");
    report.value("users", args.users as f64);
    report.value("connections", args.connections as f64);
    report.value("users_per_request", args.batch as f64);
    report.value("answers", load.answers as f64);
    report.value(
        "answers_per_s",
        load.answers as f64 * 1e6 / elapsed_us as f64,
    );
    report.value("unanswered", unanswered as f64);
    report.value("answers_not_200", load.not_200 as f64);
    report.value("answers_of_others", load.wrong as f64);
    report.value("connections_opened", load.opened as f64);
    report.value_if(
        "server_cpu_us_per_answer",
        cpu_us.map(|us| us / load.answers.max(1) as f64),
    );
    let server_busy = cpu_us.map(|us| us / elapsed_us as f64);
    report.value_if("server_cores_busy", server_busy);
    if let (Some(before), Some(after)) = (before, work()?) {
        Work::of(&after).report(&Work::of(&before), elapsed_us as f64 / 1e6, &mut report);
    }
    report.fail_if(unanswered as u64, "requests were not answered");
    report.fail_if(load.not_200, "answers had another status than 200");
    report.fail_if(load.wrong, "answers were not of those asked about");
    report.latencies(
        if max {
            "answer (closed loop)"
        } else {
            "answer"
        },
        load.latencies,
    );
    report.strain(&Strain {
        busy,
        lag_p99_us: lag.percentile_us(99.0),
        server_gave_way: max && server_busy.is_some_and(|busy| busy > 0.95),
    });
    report.series("answers a second", "s", answered);
    report.series(MEMORY_SERIES, "s", memory);
    Ok(report)
}

impl Load<'_> {
    /// Begins to connect, unless that was done.
    fn open(
        &mut self,
        connections: &mut [Connection],
        index: usize,
        poll: &Poll,
    ) -> io::Result<()> {
        if connections[index].socket.is_none() {
            let mut socket = TcpStream::connect(self.http)?;
            socket.set_nodelay(true)?;
            poll.registry().register(
                &mut socket,
                Token(index),
                Interest::READABLE | Interest::WRITABLE,
            )?;
            connections[index].socket = Some(socket);
            self.opened += 1;
        }
        Ok(())
    }

    fn ask(&mut self, connection: &mut Connection, intended_us: u64, count: usize) {
        for _ in 0..count {
            connection.asked_us.push_back(intended_us);
            if self.args.batch > 1 {
                let mut body = b"{\"users\":".to_vec();
                let users: Vec<u64> = (0..self.args.batch)
                    .map(|_| self.rng.u64(..self.args.users))
                    .collect();
                push_users(&self.population, users.iter().copied(), &mut body);
                connection.users.extend(users);
                body.push(b'}');
                write_request(
                    "POST",
                    "/v1/presence/query",
                    self.http,
                    &body,
                    &mut connection.unsent,
                );
            } else {
                let out = &mut connection.unsent;
                let user = self.rng.u64(..self.args.users);
                connection.users.push_back(user);
                out.extend_from_slice(b"GET /v1/presence/");
                self.population.push_id(user, out);
                out.extend_from_slice(b" HTTP/1.1\r\nHost: greendot\r\n\r\n");
            }
        }
    }

    /// Reads what has come; true if an answer was among it.
    fn read(&mut self, connection: &mut Connection) -> io::Result<bool> {
        let mut piece = [0; 64 << 10];
        let mut any = false;
        while let Some(socket) = &mut connection.socket {
            match socket.read(&mut piece) {
                Ok(0) if connection.asked_us.is_empty() => connection.socket = None,
                Ok(0) => {
                    return Err(io::Error::new(
                        ErrorKind::UnexpectedEof,
                        "the server closed a connection that waited for an answer",
                    ));
                }
                Ok(read) => connection.received.extend_from_slice(&piece[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(any),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let now_us = clock::now_us();
            let mut at = 0;
            while let Some((answer, length)) = parse_answer(&connection.received[at..])? {
                at += length;
                any = true;
                self.answers += 1;
                let Some(asked_us) = connection.asked_us.pop_front() else {
                    self.wrong += 1;
                    continue;
                };
                self.latencies.record(now_us.saturating_sub(asked_us));
                let users = connection.users.drain(..self.args.batch.max(1));
                if answer.status != 200 {
                    self.not_200 += 1;
                } else if self.is_greendot {
                    self.wrong += u64::from(!is_of(&self.population, users, &answer.body));
                }
            }
            connection.received.drain(..at);
        }
        Ok(any)
    }
}

/// Whether an answer tells the records of `users`, in this order.
fn is_of(
    population: &Population,
    mut users: impl ExactSizeIterator<Item = u64>,
    body: &[u8],
) -> bool {
    if users.len() > 1 {
        let mut same = true;
        let is_list = record::parse_snapshot(body, |record| {
            same &= users
                .next()
                .is_some_and(|user| record.user.as_bytes() == population.id(user));
        });
        return is_list && same && users.next().is_none();
    }
    users.all(|user| {
        let id = population.id(user);
        // As greendot writes it, without a look at the rest; any other JSON is read.
        let rest = body
            .strip_prefix(b"{\"user\":\"")
            .and_then(|rest| rest.strip_prefix(&id));
        rest.is_some_and(|rest| rest.starts_with(b"\""))
            || record::parse(body).is_some_and(|record| record.user.as_bytes() == id)
    })
}

impl Connection {
    fn send(&mut self) -> io::Result<()> {
        while let (Some(socket), false) = (&mut self.socket, self.unsent.is_empty()) {
            match socket.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_of_those_asked_about() {
        let population = Population::new(1);
        let record = |user: u64| {
            let id = population.id(user);
            let id = String::from_utf8_lossy(&id);
            format!(
                "{{\"user\":\"{id}\",\"status\":\"offline\",\"online\":false,\
                 \"since\":null,\"last_active\":null}}"
            )
        };
        let is_of =
            |users: &[u64], body: &str| is_of(&population, users.iter().copied(), body.as_bytes());
        assert!(is_of(&[1], &record(1)) && !is_of(&[1], &record(2)) && !is_of(&[1], "ok"));
        assert!(is_of(&[1], &record(1).replace(':', ": ")));
        let list = |users: &[u64]| {
            format!(
                "{{\"presence\":[{}]}}",
                users
                    .iter()
                    .map(|u| record(*u))
                    .collect::<Vec<_>>()
                    .join(",")
            )
        };
        assert!(is_of(&[1, 2], &list(&[1, 2])));
        for other in [&[2, 1][..], &[1], &[1, 2, 3]] {
            assert!(!is_of(&[1, 2], &list(other)), "{other:?}");
        }
    }
}
