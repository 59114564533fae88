//! `greendot streams`: who is connected to a node, and from where; `streams end ID` ends one.

use std::io::Write;
use std::path::PathBuf;

use serde_json::Value;

use super::admin::{Admin, escaped, harmless, query};
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
    pub what: What,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// List the streams: those of a user, or all; as lines of JSON if so.
    List { user: Option<String>, json: bool },
    /// End the stream with this id.
    End(String),
}

/// Asks the node page by page and prints each as it comes.
///
/// Errors: the node does not answer, or refuses; in words.
pub fn run(options: &Options, clock: &Clock, out: &mut dyn Write) -> Result<(), String> {
    let key = options.service_key.as_deref();
    let admin = Admin::new(&options.http, key, ("streams", "admin"))?;
    match &options.what {
        What::End(id) => {
            let answer = admin.delete(&format!("/v1/streams/{}", escaped(id)))?;
            match answer.status {
                204 => Ok(()),
                _ => Err(admin.refused(&answer)),
            }
        }
        What::List { user, json } => list(&admin, user.as_deref(), *json, clock, out),
    }
}

fn list(
    admin: &Admin<'_>,
    user: Option<&str>,
    json: bool,
    clock: &Clock,
    out: &mut dyn Write,
) -> Result<(), String> {
    let mut cursor: Option<String> = None;
    let mut text = match json {
        true => String::new(),
        false => head(),
    };
    loop {
        let asked = query(&[("user", user), ("cursor", cursor.as_deref())]);
        let answer = admin.get(&format!("/v1/streams{asked}"))?;
        let page = serde_json::from_str::<Value>(&answer.body).ok();
        let page = page.filter(|page| answer.status == 200 && page["streams"].is_array());
        let Some(page) = page else {
            return Err(admin.refused(&answer));
        };
        let now_ms = clock.now().unix.ms();
        for stream in page["streams"].as_array().into_iter().flatten() {
            match json {
                true => text.push_str(&stream.to_string()),
                false => text.push_str(&line(stream, now_ms)),
            }
            text.push('\n');
        }
        for node in page["silent"].as_array().into_iter().flatten() {
            let node = harmless(node.as_str().unwrap_or("-"));
            text.push_str(&match json {
                true => serde_json::json!({ "silent": node }).to_string(),
                false => format!("{node} does not answer; its streams are not listed"),
            });
            text.push('\n');
        }
        if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            return read_enough(&error);
        }
        text.clear();
        match page["cursor"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => return Ok(()),
        }
    }
}

fn head() -> String {
    let [user, address] = ["user", "address"];
    let [open_for, watching, behind] = ["open for", "watching", "behind"];
    format!("{user:<25}{address:<20}{open_for:>11}{watching:>10}{behind:>10}  stream, client\n")
}

/// A stream as a row.
fn line(stream: &Value, now_ms: u64) -> String {
    let text = |name: &str| harmless(stream[name].as_str().unwrap_or("-"));
    let number = |name: &str| stream[name].as_u64().unwrap_or_default();
    let open_for = span(now_ms.saturating_sub(number("since")));
    let behind = match (number("behind_bytes"), number("behind_states")) {
        (0, 0) => "-".to_owned(),
        (bytes, 0) => format!("{bytes} B"),
        (0, states) => format!("{states}"),
        (bytes, states) => format!("{states}+{bytes} B"),
    };
    format!(
        "{:<25}{:<20}{open_for:>11}{:>10}{behind:>10}  {} {}",
        text("user"),
        text("address"),
        number("watching"),
        text("stream"),
        text("client"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_who_from_where_and_for_how_long() {
        let stream = serde_json::json!({
            "stream": "0.51.7.9f", "user": "bob", "address": "203.0.113.9",
            "client": "Fire\u{9b}fox", "since": 1_000, "watching": 12,
            "behind_bytes": 0, "behind_states": 0,
        });
        let row = line(&stream, 181_000);
        let words: Vec<&str> = row.split_whitespace().collect();
        let expected = [
            "bob",
            "203.0.113.9",
            "3",
            "min",
            "12",
            "-",
            "0.51.7.9f",
            "Fire\\u{9b}fox",
        ];
        assert_eq!(words, expected);
        let columns = |text: &str| text.find("stream").or(text.find("0.51"));
        assert_eq!(columns(&head()), columns(&row), "{}{row}", head());
        let nobody = serde_json::json!({
            "stream": "s", "user": null, "address": null, "client": null, "since": 5_000,
            "watching": 0, "behind_bytes": 70, "behind_states": 3,
        });
        // The node's clock may be ahead of this one.
        let row = line(&nobody, 4_000);
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(words, ["-", "-", "0", "s", "0", "3+70", "B", "s", "-"]);
    }
}
