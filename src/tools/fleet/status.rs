//! `greendot fleet status`: the whole in a few lines.

use std::collections::BTreeSet;

use serde_json::json;

use super::counted;
use super::database::{Database, Held, Node};
use crate::fleet::Life;

/// What is told of a fleet.
struct Status {
    lines: Vec<(&'static str, String)>,
    faults: Vec<String>,
    figures: serde_json::Value,
}

/// The lines, and whether nothing is wrong.
pub(super) fn show(database: &mut Database, as_json: bool) -> Result<(String, bool), String> {
    let (nodes, mut faults) = database.nodes();
    let lives: Vec<Life> = nodes.iter().map(|node| node.life).collect();
    let all = database.held(&lives, false);
    faults.extend(faults_of(database));
    let loaded = database.libraries();
    let status = status(database, &nodes, &all, &loaded, faults);
    let is_well = status.faults.is_empty();
    let text = match as_json {
        true => {
            let mut figures = status.figures;
            figures["well"] = is_well.into();
            figures["faults"] = status.faults.into();
            format!("{figures}\n")
        }
        false => {
            let lines = status.lines.iter();
            let lines = lines.map(|(name, text)| format!("{name:<12}{text}\n"));
            let faults = status.faults.iter();
            lines
                .chain(faults.map(|fault| format!("FAULT       {fault}\n")))
                .collect()
        }
    };
    Ok((text, is_well))
}

/// What is wrong with the database itself.
fn faults_of(database: &Database) -> Vec<String> {
    let mut faults: Vec<String> = database
        .survey
        .servers()
        .iter()
        .filter_map(|server| {
            let fault = server.fault.as_ref()?;
            Some(format!("{}: {fault}", server.address))
        })
        .collect();
    if let Some(cluster) = database.survey.cluster() {
        if !cluster.is_ok {
            faults
                .push("the cluster says that it does not serve: see redis-cli cluster info".into());
        }
        let missing = u32::from(crate::fleet::partition::CLUSTER_SLOTS) - cluster.slots;
        if missing > 0 {
            faults.push(format!(
                "{missing} slots are nobody's: see redis-cli --cluster check"
            ));
        }
    }
    faults
}

/// Each once, in order.
fn distinct<'n>(names: impl Iterator<Item = &'n str>) -> Vec<&'n str> {
    names.collect::<BTreeSet<&str>>().into_iter().collect()
}

/// These names, or that there are none.
fn listed(names: &[impl AsRef<str>]) -> String {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    }
}

/// `loaded`: libraries that any primary has.
fn status(
    database: &Database,
    nodes: &[Node],
    all: &[Held],
    loaded: &[String],
    mut faults: Vec<String>,
) -> Status {
    let layout = &database.layout;
    let lease_ms = u64::from(layout.offline_after_ms);
    let (alive, gone): (Vec<&Node>, Vec<&Node>) =
        nodes.iter().partition(|node| node.is_alive(lease_ms));
    if alive.is_empty() {
        faults.push("no node is alive".to_owned());
    }
    let used = all.iter().filter(|held| held.meta.is_some()).count() as u64;
    let unread = all.iter().filter(|held| held.fault.is_some()).count() as u64;
    if unread > 0 {
        faults.push(format!("{} can not be read", counted(unread, "partition")));
    }
    let users: u64 = all.iter().map(|held| held.users).sum();
    let versions = distinct(alive.iter().map(|node| &*node.version));
    let called = distinct(alive.iter().map(|node| &*node.library));
    let servers = database.survey.servers().len() as u64;
    let kind = match database.survey.cluster() {
        Some(_) => format!(
            "a cluster of {}",
            counted(servers, "primary").replace("primarys", "primaries")
        ),
        None => "a single primary".to_owned(),
    };
    let lines = vec![
        (
            "fleet",
            format!(
                "{} partitions, {} buckets each, silence of {} s",
                layout.partitions,
                layout.buckets,
                layout.offline_after_ms as f64 / 1e3
            ),
        ),
        ("database", kind.clone()),
        (
            "nodes",
            format!(
                "{} alive, {} gone within the hour; {}",
                alive.len(),
                gone.len(),
                match versions.len() {
                    0 => "no version".to_owned(),
                    _ => versions.join(", "),
                }
            ),
        ),
        (
            "library",
            format!("{} called, {} loaded", listed(&called), listed(loaded)),
        ),
        (
            "partitions",
            format!(
                "{used} of {} used, {} online",
                all.len(),
                counted(users, "user")
            ),
        ),
    ];
    let figures = json!({
        "partitions": layout.partitions,
        "partitions_used": used,
        "buckets": layout.buckets,
        "partitions_unread": unread,
        "offline_after_ms": layout.offline_after_ms,
        "database": kind,
        "primaries": servers,
        "nodes_alive": alive.len(),
        "nodes_gone": gone.len(),
        "versions": versions,
        "libraries_called": called,
        "libraries_loaded": loaded,
        "users_online": users,
    });
    Status {
        lines,
        faults,
        figures,
    }
}
