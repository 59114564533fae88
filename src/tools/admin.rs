//! Asking a node what is for operators: with a service key, and with words for what it refuses.
//!
//! Owns how `top`, `streams` and `online` speak to a node.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use ureq::RequestBuilder;
use ureq::typestate::WithoutBody;

use super::agent::agent;
use super::endpoint::Endpoint;

const TIMEOUT: Duration = Duration::from_secs(5);
/// What is escaped in a URL: all but what RFC 3986 never reserves.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A node, and by what it is asked.
pub(super) struct Admin<'e> {
    http: &'e Endpoint,
    agent: ureq::Agent,
    key: Option<String>,
    /// What is asked for, and the scope that it takes.
    what: &'static str,
    scope: &'static str,
}

/// What a node has answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

impl<'e> Admin<'e> {
    /// `service_key`: the file of a service key.
    ///
    /// Errors: it can not be read, or nobody says whom to believe.
    pub(super) fn new(
        http: &'e Endpoint,
        service_key: Option<&Path>,
        (what, scope): (&'static str, &'static str),
    ) -> Result<Admin<'e>, String> {
        let key = service_key.map(|path| {
            let key = std::fs::read_to_string(path);
            let key = key.map_err(|error| format!("{}: {error}", path.display()))?;
            Ok::<_, String>(key.trim().to_owned())
        });
        Ok(Admin {
            agent: agent(TIMEOUT, http.trust()?.as_ref()),
            http,
            key: key.transpose()?,
            what,
            scope,
        })
    }

    /// What the node says at a path.
    ///
    /// Errors: it does not answer.
    pub(super) fn get(&self, path: &str) -> Result<Answer, String> {
        self.ask(self.agent.get(self.url(path)))
    }

    /// The same of a DELETE.
    pub(super) fn delete(&self, path: &str) -> Result<Answer, String> {
        self.ask(self.agent.delete(self.url(path)))
    }

    fn url(&self, path: &str) -> String {
        self.http.base() + path
    }

    fn ask(&self, mut request: RequestBuilder<WithoutBody>) -> Result<Answer, String> {
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let fault = |error: ureq::Error| format!("{}: {error}", self.http);
        let mut answer = request.call().map_err(fault)?;
        let body = answer.body_mut().read_to_string().map_err(fault)?;
        Ok(Answer {
            status: answer.status().as_u16(),
            body,
        })
    }

    /// Why the node has refused to say it, and what to do.
    pub(super) fn refused(&self, answer: &Answer) -> String {
        let (what, scope) = (self.what, self.scope);
        let problem = serde_json::from_str::<Value>(&answer.body).ok();
        let said = |name: &str| problem.as_ref().and_then(|problem| problem[name].as_str());
        let kind = said("type").and_then(|kind| kind.rsplit('/').next());
        let with_key = self.key.is_some();
        let why = match (answer.status, kind) {
            (404, None | Some("not-found")) => format!(
                "no {what} are here: if the node has a listener for operators (--admin), name the \
                 address behind admin= in the line that it prints, with --http"
            ),
            (401 | 403, _) if !with_key => format!(
                "the {what} take a service key with the scope {scope}; name the file of one with \
                 --service-key"
            ),
            (401, _) => "the node does not know the key of --service-key; is it in \
                         --service-keys?"
                .to_owned(),
            (403, _) => format!("the key of --service-key lacks the scope {scope}"),
            (421, Some("wrong-host")) => {
                "the node is not known by this name; list it with --host, \
                                          or name an address"
                    .to_owned()
            }
            _ => said("detail").unwrap_or("is that a greendot?").to_owned(),
        };
        format!("{}: status {}: {why}", self.http, answer.status)
    }
}

/// Text as it stands in a URL.
pub(super) fn escaped(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, ESCAPED)
}

/// A query of these pairs; those without a value are left out.
pub(super) fn query(pairs: &[(&str, Option<&str>)]) -> String {
    let mut query = String::new();
    for (name, value) in pairs {
        if let Some(value) = value {
            let value = escaped(value);
            let mark = if query.is_empty() { '?' } else { '&' };
            write!(query, "{mark}{name}={value}").expect("a String takes everything");
        }
    }
    query
}

/// Text as a terminal may have it: what could be a command to it is shown as what it is.
pub(super) fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        match char.is_control() || matches!(char, '\u{2028}' | '\u{2029}') {
            true => shown.extend(char.escape_default()),
            false => shown.push(char),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::endpoint::{Port, Said};

    #[test]
    fn queries_are_encoded() {
        assert_eq!(query(&[("user", None), ("cursor", None)]), "");
        assert_eq!(
            query(&[
                ("user", Some("a&b\u{e9} c.d")),
                ("limit", None),
                ("cursor", Some("0f"))
            ]),
            "?user=a%26b%C3%A9%20c.d&cursor=0f"
        );
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        assert_eq!(harmless("Jos\u{e9} \u{1f600}"), "Jos\u{e9} \u{1f600}");
        assert_eq!(harmless("a\u{1b}[2J\u{9b}b\n"), "a\\u{1b}[2J\\u{9b}b\\n");
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let http = Endpoint::parse("127.0.0.1:1", Port::Http, Said::Flag).unwrap();
        let without = Admin::new(&http, None, ("streams", "admin")).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let with = Admin::new(&http, Some(file.path()), ("streams", "admin")).unwrap();
        let problem = |slug: &str| {
            format!("{{\"type\":\"https://greendot.dev/problems/{slug}\",\"detail\":\"so\"}}")
        };
        for (admin, status, body, expected) in [
            (&without, 404, String::new(), "no streams are here: if"),
            (
                &without,
                404,
                problem("not-found"),
                "no streams are here: if",
            ),
            (&with, 404, problem("unknown-stream"), "so"),
            (
                &without,
                401,
                problem("unauthorized"),
                "the streams take a service key with the scope admin",
            ),
            (
                &with,
                401,
                problem("unauthorized"),
                "the node does not know the key",
            ),
            (
                &with,
                403,
                problem("not-permitted"),
                "the key of --service-key lacks the scope admin",
            ),
            (
                &with,
                421,
                problem("wrong-host"),
                "the node is not known by this name",
            ),
            (&with, 421, problem("wrong-role"), "so"),
            (&with, 500, "oops".into(), "is that a greendot?"),
        ] {
            let told = admin.refused(&Answer { status, body });
            let begins = format!("127.0.0.1:1 (--http): status {status}: {expected}");
            assert!(told.starts_with(&begins), "{told}");
        }
        let missing = Admin::new(&http, Some(Path::new("missing.key")), ("streams", "admin"));
        assert!(missing.err().unwrap().starts_with("missing.key: "));
    }
}
