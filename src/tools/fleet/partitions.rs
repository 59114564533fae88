//! `greendot fleet partitions`: where each partition is, and how much it holds.

use std::fmt::Write as _;

use serde_json::json;

use super::database::{Database, Held};
use super::{counted, name_of};
use crate::fleet::Life;

/// A row for each partition, and whether all of them could be read.
pub(super) fn show(database: &mut Database, as_json: bool) -> Result<(String, bool), String> {
    let (nodes, _) = database.nodes();
    let lives: Vec<Life> = nodes.iter().map(|node| node.life).collect();
    let all = database.held(&lives, true);
    let mut text = match as_json {
        true => String::new(),
        false => head(),
    };
    for held in &all {
        let server = held
            .server
            .map(|at| database.survey.servers()[at].address.to_string());
        let server = server.as_deref().unwrap_or("nobody");
        let key = database.partitions.hot_key(held.partition);
        let row = match as_json {
            true => of_programs(held, &key, server),
            false => row(held, &key, server),
        };
        text.push_str(&row);
        text.push('\n');
    }
    if !as_json {
        text.push_str(&sums(&all));
    }
    Ok((text, all.iter().all(|held| held.fault.is_none())))
}

fn head() -> String {
    let [number, key, server] = ["partition", "key", "server"];
    let [users, bytes, messages] = ["users", "bytes", "messages"];
    format!(
        "{number:>9} {key:<14}{server:<24}{users:>9}{bytes:>12}{messages:>12}  claims of nodes\n"
    )
}

fn row(held: &Held, key: &str, server: &str) -> String {
    if let Some(fault) = &held.fault {
        return format!(
            "{:>9} {key:<14}{server:<24}FAULT {fault}",
            held.partition.index()
        );
    }
    let lives: Vec<String> = held
        .lives
        .iter()
        .map(|(life, enrolment)| {
            let fenced = if enrolment.is_fenced { " fenced" } else { "" };
            format!("{} {}{fenced}", name_of(*life), enrolment.count)
        })
        .collect();
    format!(
        "{:>9} {key:<14}{server:<24}{:>9}{:>12}{:>12}  {}",
        held.partition.index(),
        held.users,
        held.bytes,
        held.meta.map_or(0, |meta| meta.number),
        lives.join(", "),
    )
}

fn of_programs(held: &Held, key: &str, server: &str) -> String {
    let lives: Vec<_> = held
        .lives
        .iter()
        .map(|(life, it)| {
            json!({
                "node": name_of(*life), "claims": it.count, "calls": it.k,
                "fenced": it.is_fenced,
            })
        })
        .collect();
    json!({
        "partition": held.partition.index(),
        "key": key,
        "server": server,
        "users": held.users,
        "bytes": held.bytes,
        "messages": held.meta.map(|meta| meta.number),
        "lives": lives,
        "fault": held.fault,
    })
    .to_string()
}

fn sums(all: &[Held]) -> String {
    let users: u64 = all.iter().map(|held| held.users).sum();
    let bytes: u64 = all.iter().map(|held| held.bytes).sum();
    let used = all.iter().filter(|held| held.meta.is_some()).count();
    let mut text = String::new();
    writeln!(
        text,
        "{} of {} used, {} online, {bytes} bytes",
        used,
        counted(all.len() as u64, "partition"),
        counted(users, "user"),
    )
    .expect("a String takes everything");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Birth;
    use crate::fleet::held::{Enrolment, Meta};
    use crate::fleet::partition::Partitions;
    use crate::time::Unix;

    #[test]
    fn a_row_says_where_it_is_and_who_claims_how_many() {
        let partition = Partitions::new(64).unwrap().all().nth(7).unwrap();
        let enrolled = |is_fenced, count| Enrolment {
            is_fenced,
            k: 9,
            count,
        };
        let mut held = Held {
            partition,
            server: Some(0),
            meta: Some(Meta {
                left: Unix::from_ms(0),
                birth: Birth([1; 8]),
                number: 300,
                since: Unix::from_ms(1),
            }),
            lives: vec![
                (Life([0, 0, 0, 1]), enrolled(false, 12)),
                (Life([0, 0, 0, 2]), enrolled(true, 3)),
            ],
            bytes: 4_096,
            users: 14,
            fault: None,
        };
        let told = row(&held, "gd:{17}", "10.0.0.1:6379");
        let words: Vec<&str> = told.split_whitespace().collect();
        let expected = "7 gd:{17} 10.0.0.1:6379 14 4096 300 00000001 12, 00000002 3 fenced";
        assert_eq!(words, expected.split(' ').collect::<Vec<_>>());
        assert_eq!(
            sums(&[held.clone(), held.clone()]),
            "2 of 2 partitions used, 28 users online, 8192 bytes\n"
        );
        held.fault = Some("10.0.0.1:6379: it closed the connection".into());
        assert!(
            row(&held, "gd:{17}", "x").ends_with("FAULT 10.0.0.1:6379: it closed the connection")
        );
    }
}
