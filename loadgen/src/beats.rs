//! `beats`: beat datagrams at a rate or flat out, and where they were lost.

mod sender;

use std::io;
use std::time::Duration;

use clap::{Args, ValueEnum};
use greendot::wire::beat::Keys;
use sender::Sender;

use crate::cause::{USERS_PER_DATAGRAM, check_key, datagram, read_keys};
use crate::clock;
use crate::common::{Common, Peer};
use crate::count::Count;
use crate::effort::Effort;
use crate::population::Population;
use crate::procfs;
use crate::progress::ProgressLine;
use crate::report::{MEMORY_SERIES, Report};
use crate::stats::{Latencies, Strain};
use crate::target::Target;
use crate::units::duration;

/// Most bytes of datagrams that are signed ahead.
const SIGNED_BYTES_MAX: usize = 256 << 20;
/// A longer run signs as it sends: a datagram signed ahead would come too late for
/// `beat_skew_max_ms`.
const SIGNED_AGE_MAX: Duration = Duration::from_secs(10);
/// Users who are introduced before the server is asked whether it has counted them.
const INTRODUCED_AT_ONCE: usize = USERS_PER_DATAGRAM * 64;
/// How often they are introduced at most.
const INTRODUCTIONS_MAX: u32 = 5;

/// Flags of `beats`.
#[derive(Args, Clone, Debug)]
pub struct BeatsArgs {
    /// Users who beat
    #[arg(long, default_value_t = 100_000)]
    pub users: u64,
    /// Beats (not datagrams) a second, or max
    #[arg(long, default_value = "100000", value_parser = crate::units::rate)]
    pub rate: f64,
    /// Users in each datagram
    #[arg(long, default_value_t = 70)]
    pub entries: usize,
    /// How long
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub seconds: Duration,
    /// Beat once for every user first, so that all are known before the clock starts
    #[arg(long)]
    pub introduce: bool,
    /// Take users in a random order instead of one after the other
    #[arg(long)]
    pub shuffle: bool,
    /// Source ports; the server's shards are chosen by them
    #[arg(long, default_value_t = 16)]
    pub flows: usize,
    /// How datagrams are handed to the kernel
    #[arg(long, value_enum, default_value_t = Batching::Auto)]
    pub batching: Batching,
}

/// How many datagrams a system call takes, and in what form.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Batching {
    /// gso where the kernel has it, else mmsg
    Auto,
    /// Many as one buffer that the kernel cuts apart (UDP_SEGMENT)
    Gso,
    /// Many in one call (sendmmsg)
    Mmsg,
    /// One a call
    None,
}

/// Datagrams signed before the clock starts, so that a flat-out run measures the server and not the
/// signing; taken in turn, again from the start at the end.
struct Signed {
    bytes: Vec<u8>,
    datagram_bytes: usize,
    next: usize,
}

impl Signed {
    /// Up to `count` datagrams next to each other.
    fn take(&mut self, count: usize) -> &[u8] {
        let start = self.next;
        let end = (start + count * self.datagram_bytes).min(self.bytes.len());
        self.next = if end == self.bytes.len() { 0 } else { end };
        &self.bytes[start..end]
    }
}

/// Whose turn it is.
struct Turns {
    users: u64,
    next: u64,
    shuffled: Option<fastrand::Rng>,
}

impl Turns {
    fn take(&mut self, count: usize, into: &mut Vec<u64>) {
        into.clear();
        for _ in 0..count {
            let user = match &mut self.shuffled {
                Some(rng) => rng.u64(..self.users),
                None => {
                    let user = self.next;
                    self.next = (user + 1) % self.users;
                    user
                }
            };
            into.push(user);
        }
    }
}

/// The subcommand.
pub fn run(common: &Common, args: &BeatsArgs) -> io::Result<Report> {
    if args.entries == 0 || args.entries > USERS_PER_DATAGRAM || args.users == 0 {
        return Err(io::Error::other(format!(
            "--entries takes 1 to {USERS_PER_DATAGRAM}, --users at least 1"
        )));
    }
    let target = Target::single(common, "beats")?;
    let udp = target.presence[0].udp;
    let population = Population::new(common.seed);
    // The bare receiver knows no key; it is sent datagrams of the same size.
    let keys = match common.peer {
        Peer::Greendot => {
            let keys = read_keys(&common.key_file)?;
            check_key(&target, &keys)?;
            keys
        }
        _ => {
            Keys::parse(&"0f".repeat(32)).map_err(|fault| io::Error::other(format!("{fault:?}")))?
        }
    };
    let line = ProgressLine::new(common.quiet);
    let mut users = Vec::new();
    if args.introduce {
        introduce(common, &target, args, &population, &keys, &line)?;
    }
    let shuffled = args.shuffle.then(|| fastrand::Rng::with_seed(common.seed));
    let mut turns = Turns {
        users: args.users,
        next: 0,
        shuffled,
    };
    turns.take(args.entries, &mut users);
    let datagram_bytes = datagram(&population, &users, false, 0, &keys).len();
    let mut sender = Sender::new(udp, args, datagram_bytes)?;
    let mut sign = |count: usize, into: &mut Vec<u8>| {
        into.clear();
        let sent_at_ms = clock::unix_ms();
        for _ in 0..count {
            turns.take(args.entries, &mut users);
            into.extend_from_slice(&datagram(&population, &users, false, sent_at_ms, &keys));
        }
    };
    let mut fresh = Vec::new();
    let mut signed = None;
    if args.rate.is_infinite() && args.seconds <= SIGNED_AGE_MAX {
        line.show("signing datagrams");
        let round = args.users.div_ceil(args.entries as u64) as usize;
        let mut bytes = Vec::new();
        sign(
            round
                .min(SIGNED_BYTES_MAX / datagram_bytes)
                .max(sender.datagrams_per_send()),
            &mut bytes,
        );
        signed = Some(Signed {
            bytes,
            datagram_bytes,
            next: 0,
        });
    }

    let before = Count::take(common, &target)?;
    let effort = Effort::begin(0);
    let start_us = clock::now_us();
    let end_us = start_us + args.seconds.as_micros() as u64;
    let max = args.rate.is_infinite();
    let datagram_rate = args.rate / args.entries as f64;
    let total = if max {
        u64::MAX
    } else {
        (datagram_rate * args.seconds.as_secs_f64()).round() as u64
    };
    let (mut sent, mut never_sent, mut waited_us) = (0u64, 0u64, 0u64);
    let mut lag = Latencies::default();
    let (mut series, mut memory) = (Vec::new(), Vec::new());
    let mut last = (start_us, 0);
    loop {
        let now_us = clock::now_us();
        let done = sent + never_sent;
        if if max { now_us >= end_us } else { done >= total } {
            break;
        }
        if now_us - last.0 >= 250_000 {
            let rate =
                (sent - last.1) as f64 * args.entries as f64 * 1e6 / (now_us - last.0) as f64;
            let at_s = (now_us - start_us) as f64 / 1e6;
            series.push((at_s, rate));
            memory.extend(procfs::user_mib(common.server_pid).map(|mib| (at_s, mib)));
            line.show(&format!("{} beats/s", crate::report::number(rate.round())));
            last = (now_us, sent);
        }
        // The first is due at once, as everywhere.
        let due = if max {
            u64::MAX
        } else {
            (((now_us - start_us) as f64 * datagram_rate / 1e6) as u64 + 1).min(total)
        };
        if due <= done {
            let next_us = start_us + (done as f64 * 1e6 / datagram_rate) as u64;
            // Short of the deadline by what a sleep may overrun; the rest is spun.
            if next_us > now_us + 200 {
                std::thread::sleep(Duration::from_micros(next_us - now_us - 150));
            }
            waited_us += clock::now_us() - now_us;
            continue;
        }
        if !max {
            let intended_us = start_us + (done as f64 * 1e6 / datagram_rate) as u64;
            lag.record(now_us.saturating_sub(intended_us));
        }
        let count = (due - done).min(sender.datagrams_per_send() as u64) as usize;
        let datagrams = match &mut signed {
            Some(signed) => signed.take(count),
            None => {
                sign(count, &mut fresh);
                &fresh
            }
        };
        let count = (datagrams.len() / datagram_bytes) as u64;
        let taken = sender.send(datagrams, datagram_bytes)?;
        sent += taken;
        never_sent += if max { 0 } else { count - taken };
    }
    let elapsed_us = clock::now_us() - start_us;
    let busy = effort.busy(waited_us);
    let per_drop = sender.datagrams_per_drop() as f64;
    let after = Count::settled(common, &target, &before, sent, per_drop)?;
    line.show("");

    let mut report = Report::new("beats");
    let seconds = elapsed_us as f64 / 1e6;
    let entries = args.entries as f64;
    report.value("users", args.users as f64);
    report.value("entries_per_datagram", entries);
    report.value("datagram_bytes", datagram_bytes as f64);
    report.value("datagrams_per_send", sender.datagrams_per_send() as f64);
    report.value("datagrams_sent", sent as f64);
    report.value("datagrams_sent_per_s", sent as f64 / seconds);
    report.value("beats_sent_per_s", sent as f64 * entries / seconds);
    report.value("datagrams_never_sent", never_sent as f64);
    report.value("sends_refused_by_own_socket", sender.blocked() as f64);
    if never_sent as f64 > sent as f64 * 0.001 {
        report.doubt(
            &format!(
                "{never_sent} datagrams were never sent: this machine's own socket refused them"
            ),
            "ask for fewer a second (--rate), or raise net.core.wmem_max",
        );
    }
    let lost = after.report(&before, sent, per_drop, entries, seconds, &mut report);
    report.notes.push(format!(
        "datagrams were handed to the kernel by {}",
        sender.way()
    ));
    report.strain(&Strain {
        busy,
        lag_p99_us: lag.percentile_us(99.0),
        server_gave_way: server_gave_way(args.rate, lost, sent),
    });
    report.latencies("generator lag", lag);
    report.series("beats sent a second", "s", series);
    report.series(MEMORY_SERIES, "s", memory);
    Ok(report)
}

/// Beats for every user once, and slowly enough that nothing is lost: the next part is sent when
/// the server has counted the last, which is sent again if it was not whole. An error unless the
/// server then knows them all.
fn introduce(
    common: &Common,
    target: &Target,
    args: &BeatsArgs,
    population: &Population,
    keys: &Keys,
    line: &ProgressLine,
) -> io::Result<()> {
    let all: Vec<u64> = (0..args.users).collect();
    let mut sender = Sender::new(
        target.presence[0].udp,
        args,
        greendot::wire::beat::DATAGRAM_BYTES_MAX,
    )?;
    for (at, users) in all.chunks(INTRODUCED_AT_ONCE).enumerate() {
        let mut tries = 0;
        loop {
            let before = Count::take(common, target)?;
            let mut sent = 0;
            for users in users.chunks(USERS_PER_DATAGRAM) {
                let datagram = datagram(population, users, false, clock::unix_ms(), keys);
                while sender.send(&datagram, datagram.len())? == 0 {}
                sent += 1;
            }
            if Count::await_received(common, target, &before, sent)? {
                break;
            }
            tries += 1;
            if tries == INTRODUCTIONS_MAX {
                return Err(io::Error::other(format!(
                    "--introduce: the server did not count {sent} datagrams sent at once, {tries} \
                     times over"
                )));
            }
        }
        if at % 64 == 0 {
            line.show(&format!(
                "introduced {} of {} users",
                at * INTRODUCED_AT_ONCE,
                args.users
            ));
        }
    }
    match Count::take(common, target)?.sum("greendot_users") {
        Some(known) if known < args.users as f64 => Err(io::Error::other(format!(
            "--introduce: the server knows {known} users after {} were introduced (see its \
             --users-max, and --new-users-per-second-max, which may be 0)",
            args.users
        ))),
        _ => Ok(()),
    }
}

/// Whether the server took less than it was offered flat out. At a rate it need not take more than
/// that: a busy generator has no excuse.
fn server_gave_way(rate: f64, lost: f64, sent: u64) -> bool {
    rate.is_infinite() && lost > sent as f64 * 0.001
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_flat_out_may_a_server_give_way() {
        assert!(server_gave_way(f64::INFINITY, 2.0, 1_000));
        assert!(!server_gave_way(f64::INFINITY, 1.0, 1_000));
        assert!(!server_gave_way(1e6, 500.0, 1_000));
    }

    #[test]
    fn turns_go_round() {
        let mut turns = Turns {
            users: 3,
            next: 0,
            shuffled: None,
        };
        let mut users = Vec::new();
        turns.take(2, &mut users);
        assert_eq!(users, [0, 1]);
        turns.take(4, &mut users);
        assert_eq!(users, [2, 0, 1, 2]);
        turns.shuffled = Some(fastrand::Rng::with_seed(1));
        turns.take(100, &mut users);
        assert!(users.iter().all(|user| *user < 3) && users[..3] != [0, 1, 2]);
    }

    #[test]
    fn signed_datagrams_are_taken_in_turn() {
        let mut signed = Signed {
            bytes: vec![1, 1, 2, 2, 3, 3],
            datagram_bytes: 2,
            next: 0,
        };
        assert_eq!(signed.take(2), [1, 1, 2, 2]);
        assert_eq!(signed.take(2), [3, 3]);
        assert_eq!(signed.take(1), [1, 1]);
    }
}
