//! What a presence node answers to beats, as a real-time node reads it.
//!
//! Owns its form: who is invisible, and which items were refused, all of them by name. Never
//! decides what becomes of it.

use serde::Deserialize;

use super::body::BodyFault;

/// What became of beats that were not simply taken.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BeatsTaken {
    /// Who is invisible, in the order asked.
    pub invisible: Vec<String>,
    /// The places of those that were refused, and the words that say why.
    pub refused: Vec<(usize, String)>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    invisible: Vec<String>,
    #[serde(default)]
    refused: Vec<RawItem>,
    #[serde(default)]
    refused_total: usize,
}

#[derive(Deserialize)]
struct RawItem {
    index: usize,
    reason: String,
}

/// Reads `{"invisible":[..],"refused":[{"index":3,"reason":"users_max"},..],"refused_total":1}`,
/// all optional, about so many users.
///
/// Errors: it is no such object, or does not name all who were refused.
pub fn parse_beats_taken(body: &[u8], users: usize) -> Result<BeatsTaken, BodyFault> {
    let raw: Raw = serde_json::from_slice(body).map_err(|error| BodyFault::malformed(&error))?;
    let is_whole = raw.refused.len() == raw.refused_total;
    if !is_whole || raw.refused.iter().any(|item| item.index >= users) {
        let detail = "it does not name all whom it refuses, or somebody else";
        return Err(BodyFault::Malformed(detail.into()));
    }
    let refused = raw.refused.into_iter();
    Ok(BeatsTaken {
        invisible: raw.invisible,
        refused: refused.map(|item| (item.index, item.reason)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_who_were_refused_are_named() {
        let read = |body: &str| parse_beats_taken(body.as_bytes(), 3).ok();
        let taken = |invisible: &[&str], refused: &[(usize, &str)]| {
            let refused = refused.iter().map(|(at, word)| (*at, (*word).to_owned()));
            Some(BeatsTaken {
                invisible: invisible.iter().map(|user| (*user).to_owned()).collect(),
                refused: refused.collect(),
            })
        };
        let one = r#"{"refused":[{"index":2,"reason":"users_max"}],"refused_total":1}"#;
        assert_eq!(read(one), taken(&[], &[(2, "users_max")]));
        let bob = r#"{"invisible":["bob"],"mood":1}"#;
        assert_eq!(read(bob), taken(&["bob"], &[]));
        assert_eq!(read("{}"), taken(&[], &[]));
        for bad in [
            r#"{"refused":[{"index":2,"reason":"users_max"}],"refused_total":2}"#,
            r#"{"refused":[{"index":3,"reason":"users_max"}],"refused_total":1}"#,
            r#"{"refused":[{"index":2}],"refused_total":1}"#,
            r#"{"invisible":"bob"}"#,
            "",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
