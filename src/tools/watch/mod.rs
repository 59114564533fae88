//! `greendot watch`: a terminal client of the stream.
//!
//! Owns the reconnecting: Last-Event-ID, the server's `retry`, jitter, backoff while refused. The
//! socket is `link.rs`'s, the words are `view.rs`'s. A table where the output is a terminal, else
//! one JSON record per change.

mod link;
pub mod view;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::time::{Clock, Mono};
use crate::tools::beat::parse_users;
use crate::tools::endpoint::Endpoint;
use crate::wire::User;
use crate::wire::sse::{Event, Reader};
use link::{Got, Link, Refusal, Wanted};
pub(super) use view::span;
use view::{Record, View};

/// What `greendot watch` was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Whom to watch.
    pub users: Vec<String>,
    /// Be online as this user meanwhile.
    pub user: Option<String>,
    /// The file of a user's token, read anew for each stream: tokens do not last.
    pub token_file: Option<PathBuf>,
    /// Where the server listens.
    pub http: Endpoint,
}

impl Options {
    /// The token, if one is to be shown; the error names the file.
    fn token(&self) -> Result<Option<String>, String> {
        let read = |path: &PathBuf| {
            let text = std::fs::read_to_string(path);
            let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
            let token = text.trim();
            let legal = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
            legal
                .then(|| token.to_owned())
                .ok_or_else(|| format!("{}: a token is one word, and nothing else", path.display()))
        };
        self.token_file.as_ref().map(read).transpose()
    }
}

/// Silence after which a stream counts as dead until its hello has named `keep_alive_ms`, in ms.
const SILENCE_MAX_MS: u64 = 18_750;
/// Times for connecting and for the answer's head, in ms, in turn while nobody answers. Short ones,
/// so that a network that is back is used at once: a packet that was lost is sent again ever more
/// seldom. Longer ones, for a network that is slow.
const ANSWER_TIMEOUTS_MS: [u64; 8] = [5_000, 1_000, 1_000, 1_000, 2_500, 1_000, 1_000, 1_000];
/// Wait between two attempts that nobody answers, in ms.
const UNANSWERED_WAIT_MS: u64 = 200;
/// Reconnect delay until the server has named one, in ms.
const RETRY_MS: u64 = 1_000;
/// Longest wait between two attempts, in ms.
const BACKOFF_MAX_MS: u64 = 30_000;

/// Watches until interrupted (SIGINT, SIGTERM), which is a good end.
pub fn run(options: &Options, clock: &Clock) -> Result<(), String> {
    parse_users(&options.users)?;
    if let Some(user) = &options.user {
        User::parse(user.as_bytes()).map_err(|fault| format!("{user:?}: {}", fault.explain()))?;
    }
    options.token()?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| format!("signals: {error}"))?;
    }
    let stdout = std::io::stdout();
    let mut watcher = Watcher {
        options,
        clock,
        stop: &stop,
        screen: Screen {
            table: stdout.is_terminal(),
            out: stdout.lock(),
            drawn: 0,
        },
        view: View::new(&options.users),
        server_ahead_ms: 0,
        silence_max_ms: SILENCE_MAX_MS,
        heard: clock.now().mono,
        last_id: String::new(),
    };
    let outcome = watcher.follow();
    let left = watcher.screen.leave();
    // Nobody reads any more (`| head`): no failure of ours.
    outcome.and(left).or_else(|end| match end {
        End::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        End::Output(error) => Err(format!("output: {error}")),
        End::Refused(why) => Err(why),
    })
}

/// How a stream ended.
struct Ended {
    why: String,
    /// So many of its events told a state.
    events: u64,
    /// Nothing came any more.
    silent: bool,
}

/// Why watching ended early.
enum End {
    Output(std::io::Error),
    Refused(String),
}

impl From<std::io::Error> for End {
    fn from(error: std::io::Error) -> End {
        End::Output(error)
    }
}

struct Watcher<'a, W: Write> {
    options: &'a Options,
    clock: &'a Clock,
    stop: &'a AtomicBool,
    screen: Screen<W>,
    view: View,
    /// The server's clock less ours, in ms, as its last `hello` said.
    server_ahead_ms: i64,
    /// Silence after which the stream counts as dead, in ms: a quarter more than the longest of a
    /// live one.
    silence_max_ms: u64,
    /// When something was last heard.
    heard: Mono,
    /// The last id of the stream.
    last_id: String,
}

impl<W: Write> Watcher<'_, W> {
    fn follow(&mut self) -> Result<(), End> {
        let mut last_event_id = String::new();
        let mut retry_ms = RETRY_MS;
        let (mut failures, mut unanswered): (u32, usize) = (0, 0);
        while !self.stopped() {
            let timeout_ms = ANSWER_TIMEOUTS_MS[unanswered % ANSWER_TIMEOUTS_MS.len()];
            // Whoever writes the file may be about to.
            let opened = self.options.token().map_err(Refusal::ForNow);
            let opened = opened.and_then(|token| {
                let wanted = Wanted {
                    user: self.options.user.as_deref(),
                    watch: &self.options.users,
                    token: token.as_deref(),
                    last_event_id: &last_event_id,
                };
                let timeout = Duration::from_millis(timeout_ms);
                Link::open(&self.options.http, wanted, timeout)
            });
            let mut longest_ms = u64::MAX;
            let why = match opened {
                Ok(link) => {
                    // The next attempt is a short one: the network may be gone.
                    unanswered = 1;
                    let mut reader = Reader::default();
                    let Ended {
                        why,
                        events,
                        silent,
                    } = self.read_stream(link, &mut reader)?;
                    if silent {
                        longest_ms = UNANSWERED_WAIT_MS;
                    }
                    if !reader.last_event_id().is_empty() {
                        last_event_id = reader.last_event_id().into();
                    }
                    retry_ms = reader.retry_ms().unwrap_or(retry_ms);
                    // A stream that told nothing is no success: the server may be refusing for
                    // load.
                    failures = if events > 0 {
                        0
                    } else {
                        failures.saturating_add(1)
                    };
                    why
                }
                Err(Refusal::Unanswered(why)) => {
                    unanswered += 1;
                    longest_ms = UNANSWERED_WAIT_MS;
                    why
                }
                Err(Refusal::ForNow(why)) => {
                    failures = failures.saturating_add(1);
                    why
                }
                Err(Refusal::ForGood(why)) => return Err(End::Refused(why)),
            };
            if !self.stopped() {
                let wait_ms = wait_ms(retry_ms, failures, fastrand::f64()).min(longest_ms);
                // While nobody answers it is said once, not at each attempt.
                if unanswered <= 2 {
                    let wait_s = wait_ms as f64 / 1_000.0;
                    self.screen
                        .notice(&format!("{why}; again in {wait_s:.1} s"))?;
                }
                self.sleep(wait_ms)?;
            }
        }
        Ok(())
    }

    fn server_ms(&self) -> u64 {
        let unix_ms = self.clock.now().unix.ms();
        unix_ms.saturating_add_signed(self.server_ahead_ms)
    }

    /// After a silence that no live stream has, all that is shown is the last known.
    fn look_for_silence(&mut self) -> Result<bool, End> {
        let silent = self.clock.now().mono.ms_since(self.heard) > self.silence_max_ms;
        if silent {
            let lost = self.view.lose();
            if !lost.is_empty() {
                let server_ms = self.server_ms();
                self.screen.show(&self.view, &lost, server_ms)?;
            }
        }
        Ok(silent)
    }

    /// Reads one stream to its end.
    fn read_stream(&mut self, mut link: Link, reader: &mut Reader) -> Result<Ended, End> {
        let ended = |why: String, events| Ended {
            why,
            events,
            silent: false,
        };
        self.view.begin_stream();
        self.last_id.clear();
        let mut events = 0;
        // A stream that says nothing at all is dead, too.
        let opened = self.clock.now().mono;
        let mut drawn = Mono::default();
        let mut reason = None;
        loop {
            let mut changes = Vec::new();
            match link.read() {
                Got::Bytes(bytes) => {
                    self.heard = self.clock.now().mono;
                    reader.feed(bytes, &mut |event| {
                        events += u64::from(event.event == "snapshot" || event.event == "presence");
                        self.take(event, &mut changes, &mut reason);
                    });
                }
                Got::Nothing => {}
                Got::End(why) => return Ok(ended(reason.unwrap_or(why), events)),
            }
            if self.stopped() {
                return Ok(ended("interrupted".into(), events));
            }
            let now = self.clock.now();
            let silent = self.look_for_silence()?;
            if silent && now.mono.ms_since(opened) > self.silence_max_ms {
                let silence_s = self.silence_max_ms as f64 / 1_000.0;
                let why = format!("the stream has been silent for {silence_s} s");
                return Ok(Ended {
                    silent: true,
                    ..ended(why, events)
                });
            }
            if !changes.is_empty() || now.mono.ms_since(drawn) >= 1_000 {
                drawn = now.mono;
                let server_ms = self.server_ms();
                self.screen.show(&self.view, &changes, server_ms)?;
            }
        }
    }

    fn take(&mut self, event: &Event, changes: &mut Vec<Record>, reason: &mut Option<String>) {
        #[derive(serde::Deserialize)]
        struct Hello {
            server_time: u64,
            offline_after_ms: u64,
            keep_alive_ms: u64,
        }
        #[derive(serde::Deserialize)]
        struct Snapshot {
            presence: Vec<Record>,
        }
        #[derive(serde::Deserialize)]
        struct Parting {
            reason: String,
        }
        let records = match event.event.as_str() {
            "hello" => {
                if let Ok(hello) = serde_json::from_str::<Hello>(&event.data) {
                    self.server_ahead_ms =
                        (hello.server_time as i64).wrapping_sub(self.clock.now().unix.ms() as i64);
                    self.view.offline_after_ms = hello.offline_after_ms;
                    self.silence_max_ms =
                        hello.keep_alive_ms.saturating_add(hello.keep_alive_ms / 4);
                }
                return;
            }
            "expired" => {
                *reason = Some("the token has expired, or was revoked".into());
                return;
            }
            "overloaded" | "goodbye" => {
                let parting = serde_json::from_str::<Parting>(&event.data);
                *reason = Some(format!(
                    "the server said {}: {}",
                    event.event,
                    parting.map_or("no reason".into(), |said| said.reason)
                ));
                return;
            }
            "snapshot" => {
                serde_json::from_str::<Snapshot>(&event.data).map(|snapshot| snapshot.presence)
            }
            "presence" => serde_json::from_str::<Record>(&event.data).map(|record| vec![record]),
            // It comes when the snapshot is whole.
            "ping" => {
                changes.extend(self.view.settle());
                return;
            }
            // Kinds that a later server may have are none of this client's business.
            _ => return,
        };
        let records = records.unwrap_or_default();
        changes.extend(records.into_iter().filter(|record| self.view.apply(record)));
        if let Ok(id) = event.id.parse() {
            changes.extend(self.view.told_up_to(id));
        }
        // A snapshot without an id of its own may be a part of one.
        if event.event == "presence" || event.id != self.last_id {
            self.last_id.clone_from(&event.id);
            changes.extend(self.view.settle());
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn sleep(&mut self, ms: u64) -> Result<(), End> {
        let until = self.clock.now().mono.plus_ms(ms);
        while !self.stopped() && self.clock.now().mono < until {
            std::thread::sleep(Duration::from_millis(ms.min(50)));
            self.look_for_silence()?;
        }
        Ok(())
    }
}

/// The server's `retry`, doubled for each failure in a row, with a quarter of jitter either way
/// (`unit` is in 0..1).
fn wait_ms(retry_ms: u64, failures: u32, unit: f64) -> u64 {
    let doubled = retry_ms.saturating_mul(1 << failures.saturating_sub(1).min(10));
    let base = doubled.min(BACKOFF_MAX_MS.max(retry_ms));
    (base as f64 * (0.75 + unit / 2.0)) as u64
}

struct Screen<W: Write> {
    /// A table redrawn in place, rather than lines.
    table: bool,
    out: W,
    /// Lines of the table that stand above the cursor.
    drawn: usize,
}

impl<W: Write> Screen<W> {
    fn show(&mut self, view: &View, changes: &[Record], server_ms: u64) -> std::io::Result<()> {
        if !self.table {
            for record in changes {
                writeln!(self.out, "{}", view::line(record))?;
            }
            return self.out.flush();
        }
        self.erase()?;
        // Without wrapping, a long id cannot make a row two lines tall.
        write!(self.out, "\x1b[?7l{}\x1b[?7h", view.table(server_ms))?;
        self.drawn = view.lines();
        self.out.flush()
    }

    /// A line for the person, above the table; on stderr where stdout is for machines.
    fn notice(&mut self, text: &str) -> std::io::Result<()> {
        if !self.table {
            eprintln!("greendot: {text}");
            return Ok(());
        }
        self.erase()?;
        self.drawn = 0;
        writeln!(self.out, "\x1b[33m{text}\x1b[0m")?;
        self.out.flush()
    }

    fn erase(&mut self) -> std::io::Result<()> {
        if self.drawn > 0 {
            write!(self.out, "\x1b[{}A\x1b[J", self.drawn)
        } else {
            Ok(())
        }
    }

    fn leave(&mut self) -> Result<(), End> {
        if self.table {
            // Ctrl-C is echoed below the table; whoever comes next begins on an empty line.
            write!(self.out, "\r\x1b[J")?;
        }
        Ok(self.out.flush()?)
    }
}

#[cfg(test)]
mod tests;
