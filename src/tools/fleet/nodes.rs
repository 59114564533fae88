//! `greendot fleet nodes`: who is in the fleet, and how fresh each lease is.

use std::fmt::Write as _;

use serde_json::json;

use super::database::{Database, Node};
use super::name_of;

/// A row for each node, and whether all of them live and all lanes can be read.
pub(super) fn show(database: &mut Database, as_json: bool) -> Result<(String, bool), String> {
    let lease_ms = u64::from(database.layout.offline_after_ms);
    let (nodes, faults) = database.nodes();
    let mut text = match as_json {
        true => String::new(),
        false => head(),
    };
    for node in &nodes {
        let row = match as_json {
            true => of_programs(node, lease_ms),
            false => row(node, lease_ms),
        };
        text.push_str(&row);
        text.push('\n');
    }
    for fault in &faults {
        let line = match as_json {
            true => json!({ "fault": fault }).to_string(),
            false => format!("FAULT {fault}"),
        };
        writeln!(text, "{line}").expect("a String takes everything");
    }
    Ok((
        text,
        faults.is_empty() && nodes.iter().any(|node| node.is_alive(lease_ms)),
    ))
}

fn head() -> String {
    let [node, lease, http, udp] = ["node", "lease ages", "http", "udp"];
    format!(
        "{node:<10}{:<7}{lease:<24}{http:<24}{udp:<24}{:<9}version\n",
        "", "library"
    )
}

fn standing(node: &Node, lease_ms: u64) -> &'static str {
    match (node.is_alive(lease_ms), node.has_ended) {
        (true, _) => "alive",
        (false, true) => "ended",
        (false, false) => "gone",
    }
}

fn row(node: &Node, lease_ms: u64) -> String {
    let ages = node.ages_ms.map(|age_ms| match age_ms {
        Some(age_ms) => format!("{:.1} s", age_ms as f64 / 1e3),
        None => "-".to_owned(),
    });
    format!(
        "{:<10}{:<7}{:<24}{:<24}{:<24}{:<9}{}",
        name_of(node.life),
        standing(node, lease_ms),
        // Of a node that is long dead they may be longer than their column.
        ages.join(", ") + " ",
        node.http,
        node.udp,
        node.library,
        node.version,
    )
}

fn of_programs(node: &Node, lease_ms: u64) -> String {
    json!({
        "node": name_of(node.life),
        "alive": node.is_alive(lease_ms),
        "lease_ages_ms": node.ages_ms,
        "http": node.http,
        "udp": node.udp,
        "library": node.library,
        "version": node.version,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Life;

    fn node(ages_ms: [Option<u64>; 3]) -> Node {
        Node {
            life: Life([0, 0x1a, 0xff, 2]),
            ages_ms,
            has_ended: false,
            http: "10.0.0.1:8080".into(),
            udp: "10.0.0.1:8081".into(),
            library: "gd1".into(),
            version: "0.1.0 (abc)".into(),
        }
    }

    #[test]
    fn a_row_says_whether_the_lease_holds() {
        let fresh = row(&node([Some(420), None, Some(30_000)]), 25_000);
        let columns: Vec<&str> = fresh
            .split("  ")
            .map(str::trim)
            .filter(|it| !it.is_empty())
            .collect();
        let expected = [
            "001aff02",
            "alive",
            "0.4 s, -, 30.0 s",
            "10.0.0.1:8080",
            "10.0.0.1:8081",
            "gd1",
            "0.1.0 (abc)",
        ];
        assert_eq!(columns, expected);
        assert_eq!(head().find("version"), fresh.find("0.1.0 "));
        let gone = node([Some(25_001), None, Some(30_000)]);
        assert!(row(&gone, 25_000).contains(" gone "));
        let ended = Node {
            has_ended: true,
            ..node([Some(420), Some(420), Some(420)])
        };
        assert!(row(&ended, 25_000).contains(" ended "));
        let long = row(&node([Some(3_599_900); 3]), 25_000);
        assert!(long.contains("3599.9 s 10.0.0.1:8080"), "{long}");
        let json = of_programs(&gone, 25_000);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["alive"], false);
        assert_eq!(json["lease_ages_ms"], json!([25_001, null, 30_000]));
    }
}
