//! `greendot-loadgen`: reads the command line, runs one scenario, publishes its report.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use greendot_loadgen::cli::{Cli, Scenario};
use greendot_loadgen::common::{Common, Peer};
use greendot_loadgen::exposition::Exposition;
use greendot_loadgen::report::Report;
use greendot_loadgen::target::Target;
use greendot_loadgen::{affinity, beats, churn, cores, fanout, html, plan, query, storm, streams};

fn main() -> ExitCode {
    let Cli { scenario, common } = Cli::parse();
    let pinned = common.pin.map_or(Ok(()), affinity::pin);
    if let Err(error) = pinned.and_then(|()| prepare_files(&common)) {
        return fail(&error);
    }
    match run(&scenario, &common) {
        // A worker has told its parent everything already.
        Ok(_) if common.share.is_some() => ExitCode::SUCCESS,
        // The parent is gone, and with it whoever wanted to know.
        Err(error) if common.share.is_some() && error.kind() == ErrorKind::BrokenPipe => {
            ExitCode::FAILURE
        }
        Ok(mut report) => {
            name_servers(&mut report, &scenario, &common);
            publish(&report, &common).unwrap_or_else(|error| fail(&error))
        }
        Err(error) => {
            let code = fail(&error);
            tell_unreachable(&scenario, &common);
            code
        }
    }
}

fn run(scenario: &Scenario, common: &Common) -> io::Result<Report> {
    match scenario {
        Scenario::Streams(args) => streams::run(common, args),
        Scenario::Fanout(args) => fanout::run(common, args),
        Scenario::Beats(args) => beats::run(common, args),
        Scenario::Query(args) => query::run(common, args),
        Scenario::Storm(args) => storm::run(common, args),
        Scenario::Churn(args) => churn::run(common, args),
        Scenario::Cores(args) => cores::run(common, args),
        Scenario::Plan(args) => plan::run(common, args),
    }
}

/// Fails where the results could not be written at the end: before the run, which may take long.
fn prepare_files(common: &Common) -> io::Result<()> {
    if common.share.is_some() {
        return Ok(());
    }
    for (flag, path) in [("--json", &common.json), ("--report", &common.report)] {
        if let Some(path) = path {
            probe(path).map_err(named(flag, path))?;
        }
    }
    match &common.hgrm {
        Some(folder) if !folder.is_dir() => {
            std::fs::create_dir(folder).map_err(named("--hgrm", folder))
        }
        _ => Ok(()),
    }
}

/// Opens a file as it will be opened; one that was not there is not left behind.
fn probe(path: &Path) -> io::Result<()> {
    let is_new = !path.exists();
    let mut options = std::fs::OpenOptions::new();
    options
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    if is_new {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

fn named(flag: &str, path: &Path) -> impl Fn(io::Error) -> io::Error {
    let place = format!("{flag} {}", path.display());
    move |error| io::Error::new(error.kind(), format!("{place}: {error}"))
}

/// Says which server takes no connection, if that may be why a run could not be.
fn tell_unreachable(scenario: &Scenario, common: &Common) {
    let starts_its_own = matches!(scenario, Scenario::Cores(_) | Scenario::Plan(_));
    if common.share.is_some() || starts_its_own {
        return;
    }
    if let Some(told) = Target::new(common)
        .ok()
        .and_then(|target| target.unreachable())
    {
        eprintln!("greendot-loadgen: {told}; is the server running?");
    }
}

/// Has the report say which servers it is of. One that has gone by now can not be asked, and that
/// is no fault of the run.
fn name_servers(report: &mut Report, scenario: &Scenario, common: &Common) {
    let starts_its_own = matches!(scenario, Scenario::Cores(_) | Scenario::Plan(_));
    if let (Ok(target), Peer::Greendot, false) = (Target::new(common), common.peer, starts_its_own)
    {
        let presence = target.presence.iter().map(|node| node.http);
        let nodes = presence.chain(target.figures());
        nodes
            .flat_map(Exposition::scrape)
            .for_each(|metrics| report.server(&metrics));
    }
}

/// The page first, so that what is printed last says how the run ended.
fn publish(report: &Report, common: &Common) -> io::Result<ExitCode> {
    if let Some(path) = &common.report {
        std::fs::write(path, html::page(report)).map_err(named("--report", path))?;
    }
    if let Some(folder) = &common.hgrm {
        for (name, text) in report.hgrms() {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(named("--hgrm", &path))?;
        }
    }
    report.publish(common.quiet, common.json.as_deref())
}

fn fail(error: &io::Error) -> ExitCode {
    eprintln!("greendot-loadgen: {error}");
    ExitCode::from(2)
}
