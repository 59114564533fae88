//! The refusal of a connection that no engine takes: there is no descriptor on which it could stay.
//!
//! Owns what it is answered, by what it has asked for so far. Holds no connection: who accepted it
//! reads, writes and closes.

use super::table::begins_stream;
use crate::engine::settings::SharedSettings;
use crate::time::Unix;
use crate::wire::request::{Method, Parsed, RequestLimits, overhear, parse_head};
use crate::wire::response::{Answer, Asker, HttpDate, problems, write_answer};
use crate::wire::sse;

/// Reconnect delay that a refused stream is told, in ms: the mean; half as much either way.
const RETRY_MS: u64 = 20_000;
/// A step through the delays that is not a divisor of them: the refused come back one by one.
const RETRY_STEP_MS: u64 = 977;

pub struct Refusals {
    settings: SharedSettings,
    limits: RequestLimits,
    /// So many so far: whom the fixed jitter spreads.
    refused: u64,
}

impl Refusals {
    /// Refuses in the words of these settings.
    pub fn new(settings: SharedSettings) -> Refusals {
        Refusals {
            limits: settings.load().request_limits(),
            settings,
            refused: 0,
        }
    }

    /// The bytes that answer a connection of which `heard` has come. None: `more_may_come`, and
    /// what it asks for has not come yet.
    pub fn answer(&mut self, heard: &[u8], more_may_come: bool, unix: Unix) -> Option<Vec<u8>> {
        let head = match parse_head(heard, &self.limits) {
            Parsed::Partial if more_may_come => return None,
            Parsed::Head { head, .. } => Some(head),
            Parsed::Partial | Parsed::Fault(_) => None,
        };
        self.refused += 1;
        let asked = match &head {
            Some(head) => Some((head.method, head.path)),
            None => torn(heard),
        };
        let answer = match asked {
            Some((method, path)) if begins_stream(method, path) => self.later(),
            _ => {
                let detail = "no file descriptor is free; try again later";
                Answer::problem(problems::OVERLOADED, detail).with_lines("Retry-After: 20\r\n")
            }
        };
        let mut bytes = Vec::new();
        let overheard = overhear(heard);
        let cors = self.settings.load().cors_lines(overheard.origin);
        let asker = Asker::overheard(overheard, cors);
        write_answer(&mut bytes, &answer, &asker, &HttpDate::at(unix));
        Some(bytes)
    }

    /// An EventSource never comes back after a status other than 200 (WHATWG HTML 9.2.3).
    fn later(&self) -> Answer {
        let retry_ms = RETRY_MS / 2 + self.refused * RETRY_STEP_MS % RETRY_MS;
        let mut body = Vec::new();
        sse::write_overloaded(retry_ms, "nofile", &mut body);
        Answer::events(body)
    }
}

/// Whether a head that is torn or refused is that of a call that begins a stream.
pub(in crate::engine) fn asks_for_stream(heard: &[u8]) -> bool {
    torn(heard).is_some_and(|(method, path)| begins_stream(method, path))
}

/// Method and path of a request line whose head is torn or refused, if the path is whole.
fn torn(heard: &[u8]) -> Option<(Method, &str)> {
    let line = std::str::from_utf8(heard.split(|byte| *byte == b'\r').next()?).ok()?;
    let (method, rest) = line.split_once(' ')?;
    let method = match method {
        "GET" => Method::Get,
        "POST" => Method::Post,
        _ => return None,
    };
    let (path, _) = rest.split_once([' ', '?'])?;
    Some((method, path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::settings::Settings;

    fn refusals() -> Refusals {
        Refusals::new(
            Settings {
                cors_origins: vec!["https://app.example".into()],
                ..Settings::default()
            }
            .into(),
        )
    }

    fn refused(heard: &str, more_may_come: bool) -> Option<String> {
        let bytes = refusals().answer(heard.as_bytes(), more_may_come, Unix::default())?;
        Some(String::from_utf8(bytes).unwrap())
    }

    const PROBLEM: &str = "{\"type\":\"https://greendot.dev/problems/overloaded\",\"title\":\"The \
                           server is at a limit\",\"status\":503,\"detail\":\"no file descriptor \
                           is free; try again later\"}";

    const ALL_SAY: &str = "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nVary: Origin\r\n\
                           X-Content-Type-Options: nosniff\r\n\
                           Content-Security-Policy: frame-ancestors 'none'\r\n";

    fn problem(cors: &str) -> String {
        format!(
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\n\
             Content-Length: {}\r\n{ALL_SAY}Cache-Control: no-store\r\nRetry-After: 20\r\n\
             {cors}Connection: close\r\n\r\n{PROBLEM}",
            PROBLEM.len()
        )
    }

    const LATER: &str = "event: overloaded\nretry: 10977\ndata: {\"reason\":\"nofile\"}\n\n";

    fn later(cors: &str) -> String {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\
             Transfer-Encoding: chunked\r\n{ALL_SAY}\
             Cache-Control: no-store, no-transform\r\nX-Accel-Buffering: no\r\n\
             {cors}Connection: close\r\n\r\n{:06X}\r\n{LATER}\r\n0\r\n\r\n",
            LATER.len()
        )
    }

    #[test]
    fn a_whole_request_is_refused_in_its_own_words() {
        let whole = |line: &str| format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n");
        for (line, answer) in [
            ("GET /v1/stream?user=a", later("")),
            ("POST /v1/stream", later("")),
            ("GET /livez", problem("")),
            ("POST /v1/stream/1.2.3/watch", problem("")),
            ("PUT /v1/stream", problem("")),
        ] {
            assert_eq!(refused(&whole(line), true), Some(answer), "{line}");
        }
        let (head, _) = later("")
            .split_once("\r\n\r\n")
            .map(|(head, body)| (format!("{head}\r\n\r\n"), body.len()))
            .unwrap();
        assert_eq!(refused(&whole("HEAD /v1/stream"), true), Some(head));
    }

    #[test]
    fn a_listed_origin_may_read_it() {
        let cors = "Access-Control-Allow-Origin: https://app.example\r\n\
                    Access-Control-Allow-Credentials: true\r\n";
        let from = |path: &str| {
            format!("GET {path} HTTP/1.1\r\nHost: a\r\nOrigin: https://app.example\r\n\r\n")
        };
        assert_eq!(refused(&from("/v1/stream"), true), Some(later(cors)));
        assert_eq!(refused(&from("/livez"), true), Some(problem(cors)));
    }

    /// Who has not said all is waited for, and judged by what there is when the time is over.
    #[test]
    fn a_torn_request() {
        for (heard, answer) in [
            ("", problem("")),
            ("P", problem("")),
            ("GET /v1/stream", problem("")),
            ("GET /v1/stream?", later("")),
            ("POST /v1/stream HTTP/1.1\r\nHost:", later("")),
            ("POST /v1/stream/1.2.3/watch HTTP/1.1\r\n", problem("")),
            ("GET /v1/presence/a HTTP/1.1\r\n", problem("")),
        ] {
            assert_eq!(refused(heard, true), None, "{heard:?}");
            assert_eq!(refused(heard, false), Some(answer), "{heard:?}");
        }
        // No head, and never will be.
        assert_eq!(refused("\n", true), Some(problem("")));
        assert_eq!(
            refused("GET /v1/stream HTTP/1.1\r\n\r\n", true),
            Some(later(""))
        );
    }

    #[test]
    fn refused_streams_come_back_one_by_one() {
        let mut refusals = refusals();
        let mut delays: Vec<u64> = (0..20_000)
            .map(|_| {
                let bytes = refusals
                    .answer(b"GET /v1/stream?", false, Unix::default())
                    .unwrap();
                let text = String::from_utf8(bytes).unwrap();
                let (_, rest) = text.split_once("retry: ").unwrap();
                rest.split('\n').next().unwrap().parse().unwrap()
            })
            .collect();
        delays.sort_unstable();
        delays.dedup();
        assert_eq!(delays.len(), 20_000);
        assert_eq!((delays[0], delays[19_999]), (10_000, 29_999));
    }
}
