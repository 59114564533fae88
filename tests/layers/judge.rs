//! Holds what the sources name against the tables, and says which line broke which rule.

use std::collections::BTreeSet;

use crate::tree::{File, Name, is_below};
use crate::{
    EDGES, EDGES_OF_TESTS, KEEPERS, KERNEL, KNOWN, LOADGEN, PURE, STRANGERS, Table, VALUES,
};

/// From, to, and whether only tests have it.
type Edge = (&'static str, &'static str, bool);

/// Every edge is listed, every listed edge is there.
pub(crate) fn edges(files: &[File]) -> Vec<String> {
    let (mut faults, mut seen) = (Vec::new(), BTreeSet::new());
    for file in files {
        let Some(from) = row(&file.module) else {
            faults.push(format!(
                "{}: EDGES has no row for {}",
                file.path, file.module
            ));
            continue;
        };
        for name in &file.names {
            match edge(from, name) {
                Ok(Some(edge)) => _ = seen.insert(edge),
                Ok(None) => {}
                Err(why) => faults.push(fault(file, name, &why)),
            }
        }
    }
    for (table, test) in [(EDGES, false), (EDGES_OF_TESTS, true)] {
        for (from, to) in pairs(table).filter(|&(from, to)| !seen.contains(&(from, to, test))) {
            faults.push(format!(
                "no source has the edge {from} -> {to} any more: delete it"
            ));
        }
    }
    faults
}

/// The edge that a name is, and whether only tests may have it.
fn edge(from: &'static str, name: &Name) -> Result<Option<Edge>, String> {
    if name.is_root {
        return Err("all of a crate under another name hides edges".to_owned());
    }
    let Some(inside) = name.path.strip_prefix("greendot::") else {
        return Ok(None);
    };
    let to = row(inside).ok_or("no row of EDGES: name a module, not the crate's root")?;
    if from == to {
        Ok(None)
    } else if has(EDGES, from, to) {
        Ok(Some((from, to, false)))
    } else if name.test && has(EDGES_OF_TESTS, from, to) {
        Ok(Some((from, to, true)))
    } else {
        Err(format!("EDGES has no edge {from} -> {to}"))
    }
}

/// Rows of LOADGEN: what a module names stands in an earlier row.
pub(crate) fn loadgen(files: &[File]) -> Vec<String> {
    let top = |module: &'_ str| module.split("::").next().unwrap_or_default().to_owned();
    let height = |module: &str| {
        LOADGEN
            .iter()
            .position(|row| row.split_whitespace().any(|name| name == top(module)))
    };
    let mut faults = Vec::new();
    for file in files {
        let Some(from) = file.module.strip_prefix("loadgen::") else {
            continue;
        };
        if height(from).is_none() {
            faults.push(format!("{}: LOADGEN has no {from}", file.path));
        }
        for name in &file.names {
            let Some(to) = name.path.strip_prefix("loadgen::") else {
                continue;
            };
            let is_own = top(to) == top(from);
            if !is_own && height(to).is_none_or(|to| Some(to) >= height(from)) {
                faults.push(fault(file, name, "LOADGEN has it no lower"));
            }
        }
    }
    faults
}

/// PURE, KERNEL and KEEPERS, less what is KNOWN.
pub(crate) fn kernel(files: &[File]) -> Vec<String> {
    let (mut faults, mut known, mut kept) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for file in files
        .iter()
        .filter(|file| !is_below(&file.module, "loadgen"))
    {
        let is_pure = PURE.iter().any(|pure| is_below(&file.module, pure));
        for name in file.names.iter().filter(|name| !name.test) {
            for (krate, keepers) in KEEPERS.iter().filter(|row| is_below(&name.path, row.0)) {
                match keepers
                    .split_whitespace()
                    .find(|keeper| is_below(&file.module, keeper))
                {
                    Some(keeper) => _ = kept.insert((*krate, keeper)),
                    None => faults.push(fault(file, name, &format!("only {keepers} may"))),
                }
            }
            let is_value = VALUES.iter().any(|value| is_below(&name.path, value));
            for what in KERNEL
                .iter()
                .filter(|what| is_pure && !is_value && is_below(&name.path, what))
            {
                match KNOWN
                    .iter()
                    .find(|row| row.0 == file.path && row.1 == *what)
                {
                    Some(exception) => _ = known.insert(exception),
                    None => faults.push(fault(file, name, "a pure module asks no kernel")),
                }
            }
        }
    }
    for unused in KNOWN.iter().filter(|exception| !known.contains(exception)) {
        faults.push(format!(
            "the known exception {unused:?} is needed no more: delete it"
        ));
    }
    for (krate, keeper) in pairs(KEEPERS).filter(|pair| !kept.contains(pair)) {
        faults.push(format!(
            "{keeper} names {krate} no more: delete it from KEEPERS"
        ));
    }
    faults
}

/// EDGES goes down, and no row is there twice.
pub(crate) fn tables() -> Vec<String> {
    let mut faults = Vec::new();
    let mut above = BTreeSet::new();
    for (from, names) in EDGES {
        for to in names.split_whitespace().filter(|to| !above.contains(to)) {
            faults.push(format!("EDGES: {from} -> {to} does not go down"));
        }
        if !above.insert(*from) {
            faults.push(format!("EDGES: {from} has two rows"));
        }
    }
    for (one, other) in STRANGERS {
        if has(EDGES, one, other) || has(EDGES, other, one) {
            faults.push(format!("EDGES: {one} and {other} are strangers"));
        }
    }
    let dated = |why: &str| why.len() > 12 && why.as_bytes()[4] == b'-' && why.contains(": ");
    for exception in KNOWN.iter().filter(|(_, _, why)| !dated(why)) {
        faults.push(format!("KNOWN: {exception:?} has no date, or no reason"));
    }
    faults
}

/// The longest row that a module belongs to.
fn row(module: &str) -> Option<&'static str> {
    let rows = EDGES.iter().map(|(row, _)| *row);
    rows.filter(|row| is_below(module, row))
        .max_by_key(|row| row.len())
}

fn has(table: Table, from: &str, to: &str) -> bool {
    pairs(table).any(|pair| pair == (from, to))
}

fn pairs(table: Table) -> impl Iterator<Item = (&'static str, &'static str)> {
    table
        .iter()
        .flat_map(|(from, names)| names.split_whitespace().map(move |to| (*from, to)))
}

fn fault(file: &File, name: &Name, why: &str) -> String {
    format!("{}:{}: {}: {why}", file.path, name.line, name.path)
}
