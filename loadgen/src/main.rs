//! `greendot-loadgen`: reads the command line, runs one scenario, publishes its report.

use std::io::ErrorKind;
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
    match pinned.and_then(|()| run(&scenario, &common)) {
        // A worker has told its parent everything already.
        Ok(_) if common.share.is_some() => ExitCode::SUCCESS,
        // The parent is gone, and with it whoever wanted to know.
        Err(error) if common.share.is_some() && error.kind() == ErrorKind::BrokenPipe => {
            ExitCode::FAILURE
        }
        Ok(mut report) => {
            name_servers(&mut report, &scenario, &common);
            publish(&report, &common).unwrap_or_else(fail)
        }
        Err(error) => fail(error),
    }
}

fn run(scenario: &Scenario, common: &Common) -> std::io::Result<Report> {
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

/// Has the report say which servers it is of. One that has gone by now can not be asked, and that
/// is no fault of the run.
fn name_servers(report: &mut Report, scenario: &Scenario, common: &Common) {
    let starts_its_own = matches!(scenario, Scenario::Cores(_) | Scenario::Plan(_));
    if let (Ok(target), Peer::Greendot, false) = (Target::new(common), common.peer, starts_its_own)
    {
        let presence = target.presence.iter().map(|node| node.http);
        let nodes = presence.chain(target.streams.iter().copied());
        nodes
            .flat_map(Exposition::scrape)
            .for_each(|metrics| report.server(&metrics));
    }
}

/// The page first, so that what is printed last says how the run ended.
fn publish(report: &Report, common: &Common) -> std::io::Result<ExitCode> {
    if let Some(path) = &common.report {
        std::fs::write(path, html::page(report))?;
    }
    report.publish(common.quiet, common.json.as_deref())
}

fn fail(error: std::io::Error) -> ExitCode {
    eprintln!("greendot-loadgen: {error}");
    ExitCode::from(2)
}
