//! `greendot online`: who is online at a node.
//!
//! Walks as a backend does that keeps a list: page by page, and then once more over what changed
//! meanwhile. So it prints when it knows all of it, sorted.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;

use serde_json::Value;

use super::admin::{Admin, harmless, query};
use super::endpoint::Endpoint;
use super::read_enough;
use super::watch::span;
use crate::time::Clock;

/// What was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Where the node listens.
    pub http: Endpoint,
    /// The file of a service key.
    pub service_key: Option<PathBuf>,
    /// Only users whose ids begin so.
    pub prefix: Option<String>,
    /// As lines of JSON.
    pub json: bool,
}

/// Walks that are begun anew because the node says that the last one goes on no more.
const WALKS_MAX: usize = 3;

/// Asks the node who is online, and prints them.
///
/// Errors: the node does not answer, or refuses; in words.
pub fn run(options: &Options, clock: &Clock, out: &mut dyn Write) -> Result<(), String> {
    let key = options.service_key.as_deref();
    let admin = Admin::new(&options.http, key, ("users who are online", "admin"))?;
    let mut walks = 1;
    let held = loop {
        match walk(&admin, options.prefix.as_deref())? {
            Walked::Whole(held) => break held,
            Walked::Gone(_) if walks < WALKS_MAX => walks += 1,
            Walked::Gone(why) => return Err(why),
        }
    };
    let now_ms = clock.now().unix.ms();
    let width = held.keys().map(|user| user.chars().count()).max();
    let width = width.unwrap_or_default().clamp(8, 40);
    let mut text = String::new();
    for (user, record) in &held {
        let written = match options.json {
            true => writeln!(text, "{record}"),
            false => {
                let status = harmless(record["status"].as_str().unwrap_or("-"));
                let since_ms = record["since"].as_u64().unwrap_or_default();
                let known_for = span(now_ms.saturating_sub(since_ms));
                writeln!(text, "{:<width$}  {status} for {known_for}", harmless(user))
            }
        };
        written.expect("a String takes everything");
        if text.len() > 65_536 {
            if let Err(error) = out.write_all(text.as_bytes()) {
                return read_enough(&error);
            }
            text.clear();
        }
    }
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) => read_enough(&error),
        Ok(()) => Ok(()),
    }
}

enum Walked {
    Whole(BTreeMap<String, Value>),
    /// The node has been started anew meanwhile, or its clock was set back.
    Gone(String),
}

fn walk(admin: &Admin<'_>, prefix: Option<&str>) -> Result<Walked, String> {
    let (mut held, mut cursor) = (BTreeMap::new(), None::<String>);
    loop {
        let asked = query(&[("prefix", prefix), ("cursor", cursor.as_deref())]);
        let answer = admin.get(&format!("/v1/online{asked}"))?;
        if answer.status == 410 {
            return Ok(Walked::Gone(admin.refused(&answer)));
        }
        let page = serde_json::from_str::<Value>(&answer.body).ok();
        let page = page.filter(|_| answer.status == 200);
        let (Some(mut page), true) = (page, answer.body.contains("\"presence\"")) else {
            return Err(admin.refused(&answer));
        };
        for record in page["presence"].as_array_mut().into_iter().flatten() {
            take(record.take(), &mut held);
        }
        match (page["more"].as_bool(), page["cursor"].as_str()) {
            (Some(true), Some(next)) => cursor = Some(next.to_owned()),
            _ => return Ok(Walked::Whole(held)),
        }
    }
}

/// A record takes the place of what was told before.
fn take(record: Value, held: &mut BTreeMap<String, Value>) {
    let Some(user) = record["user"].as_str().map(str::to_owned) else {
        return;
    };
    match record["online"].as_bool() {
        Some(true) => drop(held.insert(user, record)),
        _ => drop(held.remove(&user)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_last_of_a_user_counts() {
        let mut held = BTreeMap::new();
        for (user, online) in [
            ("a", true),
            ("b", true),
            ("a", false),
            ("c", false),
            ("d", true),
        ] {
            take(
                serde_json::json!({ "user": user, "online": online }),
                &mut held,
            );
        }
        take(serde_json::json!({ "online": true }), &mut held);
        let users: Vec<&String> = held.keys().collect();
        assert_eq!(users, ["b", "d"]);
    }
}
