//! `greendot top`: a server's vital rates, shard by shard, from two readings of /metrics a second
//! apart.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use crate::time::{Clock, Mono};
use crate::tools::agent::agent;
use crate::tools::endpoint::Endpoint;
use crate::tools::read_enough;

/// What `greendot top` was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Where the server listens.
    pub http: Endpoint,
    /// The file of a service key.
    pub service_key: Option<PathBuf>,
    /// Most refreshes; None: until interrupted.
    pub count: Option<u64>,
}

const PERIOD_MS: u64 = 1_000;
const TIMEOUT: Duration = Duration::from_secs(5);

/// Polls and prints on `out` until interrupted, or `count` times. A server that does not answer,
/// for it restarts, is asked again.
pub fn run(options: &Options, clock: &Clock, out: &mut dyn Write) -> Result<(), String> {
    let trust = options.http.trust()?;
    let agent = agent(TIMEOUT, trust.as_ref());
    let url = format!("{}/metrics", options.http.base());
    let key = options.service_key.as_ref().map(|path| {
        let key = std::fs::read_to_string(path);
        key.map_err(|error| format!("{}: {error}", path.display()))
    });
    let key = key.transpose()?;
    let read = || -> Result<(Reading, Mono), String> {
        let mut request = agent.get(&url);
        if let Some(key) = &key {
            request = request.header("Authorization", format!("Bearer {}", key.trim()));
        }
        let fault = |error: ureq::Error| format!("{}: {error}", options.http);
        let mut answer = request.call().map_err(fault)?;
        let status = answer.status().as_u16();
        if status != 200 {
            return Err(refused(&options.http, status, key.is_some()));
        }
        let body = answer.body_mut().read_to_string().map_err(fault)?;
        Ok((Reading::parse(&body), clock.now().mono))
    };
    // Home and clear, so that the table stands still.
    let clear = if std::io::stdout().is_terminal() {
        "\x1b[H\x1b[2J"
    } else {
        ""
    };
    let mut before: Option<(Reading, Mono)> = None;
    let mut shown = 0;
    loop {
        let (text, answered) = match read() {
            Ok((after, after_at)) => {
                let seconds = |before_at| after_at.micros_since(before_at).max(1) as f64 / 1e6;
                let text =
                    before.map(|(before, before_at)| table(&before, &after, seconds(before_at)));
                before = Some((after, after_at));
                (text, Ok(()))
            }
            Err(why) => {
                before = None;
                (Some(format!("no answer: {why}\n")), Err(why))
            }
        };
        if let Some(text) = text {
            shown += 1;
            if let Err(error) = write!(out, "{clear}{text}").and_then(|()| out.flush()) {
                return read_enough(&error);
            }
        }
        if options.count.is_some_and(|count| shown >= count) {
            return answered;
        }
        std::thread::sleep(Duration::from_millis(PERIOD_MS));
    }
}

/// Why a node does not give its metrics, and what to do.
fn refused(http: &Endpoint, status: u16, with_key: bool) -> String {
    let why = match (status, with_key) {
        (404, _) => {
            "no metrics are here: if the node has a listener for operators (--admin), name the \
             address behind admin= in the line that it prints, with --http"
        }
        (401 | 403, false) => {
            "the metrics take a service key with the scope metrics; name the file of one with \
             --service-key"
        }
        (401, true) => "the node does not know the key of --service-key; is it in --service-keys?",
        (403, true) => "the key of --service-key lacks the scope metrics",
        (421, _) => "the node is not known by this name; list it with --host, or name an address",
        _ => "is that a greendot?",
    };
    format!("{http}: status {status}: {why}")
}

/// One reading: family and shard to the sum of its series. Series without a shard are under the
/// empty one.
#[derive(Debug, Default)]
struct Reading {
    sums: BTreeMap<(String, String), f64>,
}

impl Reading {
    fn parse(text: &str) -> Reading {
        let mut reading = Reading::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let (family, labels) = series.split_once('{').unwrap_or((series, ""));
            let shard = labels
                .split_once("shard=\"")
                .and_then(|(_, rest)| rest.split_once('"'))
                .map_or("", |(shard, _)| shard);
            if let Ok(value) = value.parse::<f64>() {
                *reading
                    .sums
                    .entry((family.into(), shard.into()))
                    .or_default() += value;
            }
        }
        reading
    }

    fn get(&self, family: &str, shard: &str) -> f64 {
        self.sums
            .get(&(family.into(), shard.into()))
            .copied()
            .unwrap_or_default()
    }

    fn shards(&self) -> Vec<&str> {
        let mut shards: Vec<&str> = self
            .sums
            .keys()
            .map(|(_, shard)| shard.as_str())
            .filter(|shard| !shard.is_empty())
            .collect();
        shards.sort_by_key(|shard| shard.parse::<u32>().unwrap_or(u32::MAX));
        shards.dedup();
        shards
    }
}

fn table(before: &Reading, after: &Reading, seconds: f64) -> String {
    let mut out = format!(
        "users {}, online {}\n{:>6}{:>10}{:>10}{:>12}{:>12}{:>12}{:>12}{:>8}\n",
        after.get("greendot_users", ""),
        after.get("greendot_users_online", ""),
        "shard",
        "conns",
        "streams",
        "watches",
        "requests/s",
        "beats/s",
        "states/s",
        "busy"
    );
    for shard in after.shards() {
        // A restarted server counts from zero again.
        let grown = |family| (after.get(family, shard) - before.get(family, shard)).max(0.0);
        let rate = |family| grown(family) / seconds;
        let elapsed = grown("greendot_turn_elapsed_seconds_total");
        let busy = if elapsed > 0.0 {
            100.0 * grown("greendot_turn_busy_seconds_total") / elapsed
        } else {
            0.0
        };
        let line = format!(
            "{shard:>6}{:>10}{:>10}{:>12}{:>12.0}{:>12.0}{:>12.0}{busy:>7.1}%",
            after.get("greendot_conns", shard),
            after.get("greendot_streams", shard),
            after.get("greendot_watches", shard),
            rate("greendot_requests_total"),
            rate("greendot_beats_total"),
            rate("greendot_states_delivered_total"),
        );
        writeln!(out, "{line}").expect("a String takes everything");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::endpoint::{Port, Said};

    #[test]
    fn rates_are_differences_by_shard() {
        let before = Reading::parse("greendot_beats_total{source=\"udp\",shard=\"0\"} 10\n");
        let after = Reading::parse(
            "# TYPE greendot_beats_total counter\n\
             greendot_users 7\n\
             greendot_beats_total{source=\"udp\",shard=\"0\"} 30\n\
             greendot_beats_total{source=\"http\",shard=\"0\"} 2\n\
             greendot_watches{by=\"slot\",shard=\"10\"} 3\n\
             greendot_watches{by=\"name\",shard=\"10\"} 4\n\
             greendot_turn_busy_seconds_total{shard=\"10\"} 0.5\n\
             greendot_turn_elapsed_seconds_total{shard=\"10\"} 2\n",
        );
        let table = table(&before, &after, 2.0);
        let rows: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(rows[0], ["users", "7,", "online", "0"]);
        assert_eq!(rows[2], ["0", "0", "0", "0", "0", "11", "0", "0.0%"]);
        assert_eq!(rows[3], ["10", "0", "0", "7", "0", "0", "0", "25.0%"]);
    }

    #[test]
    fn a_server_that_does_not_answer_is_asked_again() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = server.local_addr().unwrap().to_string();
        let http = Endpoint::parse(&to, Port::Http, Said::Flag).unwrap();
        let answers = std::thread::spawn(move || {
            let body = "greendot_users 7\n";
            let answer = format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            // The first is cut off.
            for answer in ["", &answer, &answer] {
                let (mut conn, _) = server.accept().unwrap();
                let n = std::io::Read::read(&mut conn, &mut [0; 1_024]).unwrap();
                assert!(n > 0);
                conn.write_all(answer.as_bytes()).unwrap();
            }
        });
        let mut out = Vec::new();
        let options = Options {
            http: http.clone(),
            service_key: None,
            count: Some(2),
        };
        run(&options, &Clock::new(), &mut out).unwrap();
        answers.join().unwrap();
        let out = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = out.lines().collect();
        assert!(
            lines[0].starts_with(&format!("no answer: {to} (--http): ")),
            "{out}"
        );
        assert_eq!(lines[1], "users 7, online 0");
        // Nobody listens there any more.
        let once = Options {
            http,
            service_key: None,
            count: Some(1),
        };
        assert!(run(&once, &Clock::new(), &mut Vec::new()).is_err());
    }

    /// Every family that the table names is one that the server exposes.
    #[test]
    fn its_families_exist() {
        let text = crate::pages::exposition::render(&crate::metrics::Board::new(1));
        let reading = Reading::parse(&text);
        for family in ["greendot_users", "greendot_users_online"] {
            assert!(
                reading.sums.contains_key(&(family.into(), String::new())),
                "{family}"
            );
        }
        let by_shard = [
            "conns",
            "streams",
            "watches",
            "requests_total",
            "beats_total",
            "states_delivered_total",
            "turn_busy_seconds_total",
            "turn_elapsed_seconds_total",
        ];
        for family in by_shard {
            assert!(
                reading
                    .sums
                    .contains_key(&(format!("greendot_{family}"), "0".into())),
                "{family}"
            );
        }
    }
}
