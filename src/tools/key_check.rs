//! Does a node take datagrams of this key? They are never answered, so the node is asked over HTTP,
//! with the token of the same key and no datagram.
//!
//! Owns what is said about it, and that nothing is said twice in a row. Sends no beat.

use std::path::PathBuf;
use std::time::Duration;

use crate::time::Mono;
use crate::tools::agent::agent;
use crate::tools::endpoint::{Endpoint, Port};
use crate::wire::beat::FleetKey;

/// Longest wait for the answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Time before a node that has not said that it takes the key is asked again, in ms.
const PERIOD_MS: u64 = 60_000;

/// What there is to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Word {
    /// The node refuses the key.
    Refused(String),
    /// Nobody knows whether it does.
    Unknown(String),
}

impl Word {
    pub(super) fn text(&self) -> &str {
        match self {
            Word::Refused(text) | Word::Unknown(text) => text,
        }
    }
}

#[derive(Debug)]
pub(super) struct KeyCheck {
    /// None: nobody has said where it is.
    http: Option<Endpoint>,
    key_file: PathBuf,
    key: FleetKey,
    due: Mono,
    said: Option<Word>,
}

impl KeyCheck {
    /// Of the key that signs, which is from that file.
    pub(super) fn new(http: Option<Endpoint>, key_file: PathBuf, key: FleetKey) -> KeyCheck {
        KeyCheck {
            http,
            key_file,
            key,
            due: Mono::default(),
            said: None,
        }
    }

    /// Asks if it is time. Some: there is something new to say.
    pub(super) fn look(&mut self, now: Mono) -> Option<Word> {
        if now < self.due {
            return None;
        }
        let word = self.ask();
        self.due = match (&self.http, &word) {
            (None, _) | (_, None) => Mono::NEVER,
            (Some(_), Some(_)) => now.plus_ms(PERIOD_MS),
        };
        let is_new = word != self.said;
        self.said = word.clone();
        word.filter(|_| is_new)
    }

    /// None: it takes the key.
    fn ask(&self) -> Option<Word> {
        let unknown = "whether the node takes this key is not known";
        let Some(http) = &self.http else {
            let (flag, variable) = (Port::Http.flag(), Port::Http.variable());
            return Some(Word::Unknown(format!(
                "{unknown}: datagrams are not answered; it can be asked if --{flag} or {variable} \
                 names its HTTP address"
            )));
        };
        let why = match status(http, &self.key.service_token()) {
            Ok(200 | 204) => return None,
            Ok(401) => {
                let (path, id) = (self.key_file.display(), self.key.id());
                return Some(Word::Refused(format!(
                    "{http}: the node refuses datagrams of this key, {id:08x} of {path}; check \
                     --key-file"
                )));
            }
            Ok(status) => format!("{http} answers with status {status}; is it where --udp is?"),
            Err(why) => why,
        };
        Some(Word::Unknown(format!("{unknown}: {why}")))
    }
}

fn status(http: &Endpoint, token: &str) -> Result<u16, String> {
    let trust = http.trust()?;
    let request = agent(TIMEOUT, trust.as_ref())
        .post(format!("{}/v1/datagrams", http.base()))
        .header("Authorization", format!("Bearer {token}"))
        .content_type("application/octet-stream");
    let answer = request
        .send(&b""[..])
        .map_err(|error| format!("{http}: {error}"))?;
    Ok(answer.status().as_u16())
}
