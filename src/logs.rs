//! Log lines on their way to stderr: a bounded queue, and the one thread that writes them.
//!
//! Owns the rule that no thread of the server waits for whoever reads its log, or dies with them: a
//! line that finds the queue full or that stderr refuses is lost and counted, and the log says how
//! many were, once it can. Knows no format: `tracing-subscriber` makes the lines.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use crate::metrics::Warnings;
use crate::time::Clock;

/// Lines that may wait to be written: a megabyte or so.
const LINES_MAX: usize = 4_096;
/// Longest wait for the last lines to be written before the process ends.
const FINISH_WAIT: Duration = Duration::from_secs(1);

static LOG: OnceLock<Log> = OnceLock::new();
static WARNINGS: LazyLock<Arc<Warnings>> = LazyLock::new(Arc::default);

/// Starts the writer's thread, and sends panics' messages the same way: the standard hook writes to
/// stderr by itself, and a thread that can neither go on nor end the process is the worst of all.
pub fn start() -> io::Result<&'static Log> {
    let (log, entries) = Log::new();
    let lost = Arc::clone(&log.lost);
    std::thread::Builder::new()
        .name("log".into())
        .spawn(move || {
            write_all(&entries, &mut io::stderr(), &lost, |lost| {
                tracing::warn!(
                    lost,
                    "log lines were lost: stderr took none, or not as fast as they came"
                );
            });
        })?;
    std::panic::set_hook(Box::new(tell_panic));
    Ok(LOG.get_or_init(|| log))
}

/// Waits until what has been logged is written: a second at the most, for stderr may take nothing
/// any more.
pub fn finish() {
    if let Some(log) = LOG.get() {
        log.finish(FINISH_WAIT);
    }
}

/// The last warnings and errors that [`Keeping`] has kept.
pub fn warnings() -> Arc<Warnings> {
    Arc::clone(&WARNINGS)
}

/// Keeps the last warnings and errors too, as text without where they come from.
pub struct Keeping(pub Clock);

impl<S: Subscriber> Layer<S> for Keeping {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        if level <= Level::WARN {
            let mut line = Line::default();
            event.record(&mut line);
            let text = line.message + &line.fields;
            WARNINGS.push(self.0.now().unix, level == Level::ERROR, text);
        }
    }
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Nothing fails that is written into a string.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

/// Where lines go; one write is one line.
pub struct Log {
    entries: Sender<Entry>,
    /// Lines lost and not yet told of.
    lost: Arc<AtomicU64>,
}

enum Entry {
    Line(Vec<u8>),
    /// Dropped by the writer once all before it is written.
    Mark(#[expect(dead_code, reason = "its end is the message")] Sender<()>),
}

impl Log {
    fn new() -> (Log, Receiver<Entry>) {
        let (sender, receiver) = bounded(LINES_MAX);
        let log = Log {
            entries: sender,
            lost: Arc::default(),
        };
        (log, receiver)
    }

    fn finish(&self, wait: Duration) {
        let (mark, written) = bounded(0);
        if self.entries.send_timeout(Entry::Mark(mark), wait).is_ok() {
            // Nothing is ever sent: it ends, or the time is over.
            let _ = written.recv_timeout(wait);
        }
    }
}

impl Write for &Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.entries.try_send(Entry::Line(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what comes until nobody can send any more; `tell` is told how many lines were lost once
/// nothing waits and the last was taken.
fn write_all(
    entries: &Receiver<Entry>,
    out: &mut impl Write,
    lost: &AtomicU64,
    tell: impl Fn(u64),
) {
    for entry in entries {
        let Entry::Line(line) = entry else { continue };
        if out.write_all(&line).is_err() {
            lost.fetch_add(1, Ordering::Relaxed);
        } else if entries.is_empty() && lost.load(Ordering::Relaxed) > 0 {
            tell(lost.swap(0, Ordering::Relaxed));
        }
    }
}

fn tell_panic(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("?");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let message = info.payload_as_str().unwrap_or("?");
    // RUST_BACKTRACE decides.
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        tracing::error!(thread, place, %backtrace, "panicked: {message}");
    } else {
        tracing::error!(thread, place, "panicked: {message}");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Takes every write but those of `refused`.
    struct Sink {
        taken: Vec<u8>,
        refused: &'static [u8],
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if bytes == self.refused {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.taken.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_last_warnings_are_kept_without_where_they_come_from() {
        use tracing_subscriber::layer::SubscriberExt;
        let subscriber = tracing_subscriber::registry().with(Keeping(Clock::new()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("not kept");
            tracing::warn!(lost = 3, place = "here", "lines were lost");
            tracing::error!("out of {}", "room");
        });
        // Other tests of this process may warn too.
        let all = warnings().all();
        let kept = |error, text: &str| all.iter().any(|it| it.error == error && it.text == text);
        assert!(
            kept(false, "lines were lost lost=3 place=\"here\""),
            "{all:?}"
        );
        assert!(kept(true, "out of room"), "{all:?}");
        assert!(!kept(false, "not kept"));
    }

    /// What is written of the lines that wait, and what is told of those that were lost.
    fn written(log: Log, entries: &Receiver<Entry>, refused: &'static [u8]) -> (Vec<u8>, Vec<u64>) {
        let lost = Arc::clone(&log.lost);
        drop(log);
        let taken = Vec::new();
        let (mut sink, told) = (Sink { taken, refused }, RefCell::new(Vec::new()));
        write_all(entries, &mut sink, &lost, |lost| {
            told.borrow_mut().push(lost)
        });
        (sink.taken, told.into_inner())
    }

    #[test]
    fn a_line_that_is_refused_is_told_of_with_the_next_that_is_taken() {
        let (log, entries) = Log::new();
        for line in ["one\n", "bad\n", "bad\n", "two\n"] {
            (&log).write_all(line.as_bytes()).unwrap();
        }
        let (taken, told) = written(log, &entries, b"bad\n");
        assert_eq!((taken, told), (b"one\ntwo\n".to_vec(), vec![2]));
    }

    #[test]
    fn lines_beyond_the_queue_are_lost_and_nobody_waits() {
        let (log, entries) = Log::new();
        for _ in 0..LINES_MAX + 3 {
            (&log).write_all(b"x").unwrap();
        }
        let (taken, told) = written(log, &entries, b"");
        assert_eq!((taken.len(), told), (LINES_MAX, vec![3]));
    }

    #[test]
    fn finishing_waits_for_the_last_line_and_not_for_ever() {
        let (log, entries) = Log::new();
        // Nobody writes.
        log.finish(Duration::from_millis(1));
        (&log).write_all(b"last").unwrap();
        let lost = Arc::clone(&log.lost);
        let writer = std::thread::spawn(move || {
            let mut taken = Vec::new();
            write_all(&entries, &mut taken, &lost, |_| {});
            taken
        });
        log.finish(Duration::from_secs(30));
        drop(log);
        assert_eq!(writer.join().unwrap(), b"last");
    }
}
