//! Reads the command line and runs what it asks for.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use greendot::cli::{self, Ask};
use greendot::config::{self, Config, Loaded, LogFormat, LogLevel, Sources, Told};
use greendot::limits::{self, Found};
use greendot::logs;
use greendot::node::Reread;
use greendot::time::Clock;
use greendot::tools::{self, beat, doctor, health, key, online, store, streams, token, top, watch};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

/// What was typed or configured can not be meant; as clap exits.
const EXIT_USAGE: u8 = 2;

/// The program, from its arguments to its exit code.
pub(crate) fn run() -> ExitCode {
    let asked = cli::ask(&cli::command().get_matches(), std::env::vars_os().collect());
    let ask = match asked {
        Ok(ask) => ask,
        Err(why) => {
            complain(&why);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match ask {
        Ask::Serve(sources) => with_config(&sources, |mut loaded| {
            let set_log_level = match start_logging(&loaded.config) {
                Ok(set_log_level) => Box::new(set_log_level),
                Err(error) => return outcome(Err(format!("start the log's thread: {error}"))),
            };
            let told = Told::new(sources.clone(), loaded.config.clone());
            let fitted = loaded.clone();
            let is_default = |flag: &str| fitted.is_default(flag);
            match limits::fit_memory(&mut loaded.config, &Found::read(), is_default) {
                Ok(told) => told.iter().for_each(|told| tracing::warn!("{told}")),
                Err(why) => {
                    complain(&why);
                    return ExitCode::from(EXIT_USAGE);
                }
            }
            let reread = Reread {
                told,
                set_log_level,
            };
            let served = greendot::node::run(loaded.config, Some(reread));
            let served = served.map_err(|fault| fault.to_string());
            logs::finish();
            outcome(served)
        }),
        Ask::Config(sources) => with_config(&sources, |loaded| {
            let remark =
                limits::remark(&loaded.config, loaded.config.shard_count(), &Found::read());
            printed((loaded.to_toml() + &remark).as_bytes())
        }),
        Ask::ConfigMarkdown => printed(config::knobs::markdown().as_bytes()),
        Ask::Doctor(sources, question) => with_config(&sources, |loaded| {
            let (report, fit) = doctor::run(&loaded.config, &question);
            let code = printed(report.as_bytes());
            if fit { code } else { ExitCode::FAILURE }
        }),
        Ask::Beat(options) => outcome(beat::run(&options, &Clock::new(), &mut std::io::stdout())),
        Ask::Watch(options) => outcome(watch::run(&options, &Clock::new())),
        Ask::Key(options) => match key::run(&options) {
            Ok(text) => printed(text.as_bytes()),
            Err(why) => outcome(Err(why)),
        },
        Ask::Reload(options) => match tools::reload::run(&options) {
            Ok(text) => printed(text.as_bytes()),
            Err(why) => outcome(Err(why)),
        },
        Ask::Token(options) => {
            match token::run(&options, Clock::new().now().unix, &mut std::io::stdin()) {
                Ok(text) => printed(text.as_bytes()),
                Err(why) => outcome(Err(why)),
            }
        }
        Ask::Store(options) => outcome(store::run(&options, &mut std::io::stdout())),
        Ask::Top(options) => outcome(top::run(&options, &Clock::new(), &mut std::io::stdout())),
        Ask::Streams(options) => outcome(streams::run(
            &options,
            &Clock::new(),
            &mut std::io::stdout(),
        )),
        Ask::Online(options) => {
            outcome(online::run(&options, &Clock::new(), &mut std::io::stdout()))
        }
        #[cfg(feature = "cluster")]
        Ask::Fleet(options) => {
            match tools::fleet::run(&options, &Clock::new(), &mut std::io::stdout()) {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::FAILURE,
                Err(why) => outcome(Err(why)),
            }
        }
        Ask::Health(options) => match health::run(&options) {
            Ok(text) => printed(text.as_bytes()),
            Err(why) => outcome(Err(why)),
        },
        Ask::Completions(shell) => printed(&cli::completions(shell)),
        Ask::Man(command) => match cli::manual(command.as_deref()) {
            Ok(page) => printed(&page),
            Err(why) => {
                complain(&why);
                ExitCode::from(EXIT_USAGE)
            }
        },
    }
}

fn with_config(sources: &Sources, run: impl FnOnce(Loaded) -> ExitCode) -> ExitCode {
    match config::load(sources) {
        Ok(loaded) => run(loaded),
        Err(faults) => {
            for fault in faults {
                complain(&fault);
            }
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn outcome(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            complain(&why);
            ExitCode::FAILURE
        }
    }
}

/// Nothing is left to be done if stderr is gone; the exit code says it.
fn complain(why: &str) {
    let _ = writeln!(std::io::stderr(), "greendot: {why}");
}

fn printed(text: &[u8]) -> ExitCode {
    // Whoever closed the pipe has read enough.
    match std::io::stdout().write_all(text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            outcome(Err(format!("output: {error}")))
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Logs go to stderr: stdout has the one line that says what is listened on. Returns what has them
/// begin at another level.
fn start_logging(config: &Config) -> std::io::Result<impl Fn(LogLevel) + Send + use<>> {
    let log = logs::start()?;
    let level = |level: LogLevel| -> LevelFilter {
        let name = level.name().parse();
        name.expect("the names are those of LevelFilter")
    };
    let (filter, filtering) = reload::Layer::new(level(config.log_level));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(move || log)
        // It would say on stderr that stderr takes nothing, and panic.
        .log_internal_errors(false);
    let registry = tracing_subscriber::registry().with(filter);
    match config.log_format {
        LogFormat::Human => registry
            .with(lines.with_ansi(std::io::stderr().is_terminal()))
            .with(logs::Keeping(Clock::new()))
            .init(),
        LogFormat::Json => registry
            .with(lines.json())
            .with(logs::Keeping(Clock::new()))
            .init(),
    }
    Ok(move |to| {
        if let Err(error) = filtering.reload(level(to)) {
            tracing::error!(%error, "the log's level stays as it is");
        }
    })
}
