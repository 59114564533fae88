//! `greendot top`: a server's vital rates, shard by shard, from two readings of /metrics a second
//! apart.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::time::{Clock, Now, Unix};
use crate::tools::admin::Admin;
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
    /// A line of JSON each time instead of the table.
    pub json: bool,
}

const PERIOD_MS: u64 = 1_000;

/// Polls and prints on `out` until interrupted, or `count` times. A server that does not answer,
/// for it restarts, is asked again.
pub fn run(options: &Options, clock: &Clock, out: &mut dyn Write) -> Result<(), String> {
    let key = options.service_key.as_deref();
    let admin = Admin::new(&options.http, key, ("metrics", "metrics"))?;
    let read = || -> Result<(Reading, Now), String> {
        let answer = admin.get("/metrics")?;
        match answer.status {
            200 => Ok((Reading::parse(&answer.body), clock.now())),
            _ => Err(admin.refused(&answer)),
        }
    };
    // Home and clear, so that the table stands still.
    let clear = if std::io::stdout().is_terminal() && !options.json {
        "\x1b[H\x1b[2J"
    } else {
        ""
    };
    let mut before: Option<(Reading, Now)> = None;
    let mut shown = 0;
    loop {
        let (text, answered) = match read() {
            Ok((after, at)) => {
                let rates = before.map(|(before, before_at)| {
                    let seconds = at.mono.micros_since(before_at.mono).max(1) as f64 / 1e6;
                    Rates::between(&before, &after, seconds)
                });
                before = Some((after, at));
                let text = rates.map(|rates| match options.json {
                    true => rates.json(at.unix),
                    false => rates.table(),
                });
                (text, Ok(()))
            }
            Err(why) => {
                before = None;
                let text = match options.json {
                    true => format!("{}\n", json!({ "at": clock.now().unix.ms(), "error": why })),
                    false => format!("no answer: {why}\n"),
                };
                (Some(text), Err(why))
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

/// What has happened between two readings.
#[derive(Debug)]
struct Rates {
    seconds: f64,
    users: f64,
    online: f64,
    shards: Vec<ShardRates>,
}

/// The same of a shard; rates are a second's.
#[derive(Debug)]
struct ShardRates {
    shard: String,
    conns: f64,
    streams: f64,
    watches: f64,
    requests: f64,
    beats: f64,
    states: f64,
    /// The part of the time in which it did not sleep.
    busy: f64,
}

impl Rates {
    fn between(before: &Reading, after: &Reading, seconds: f64) -> Rates {
        let of_shard = |shard: &str| {
            // A restarted server counts from zero again.
            let grown = |family| (after.get(family, shard) - before.get(family, shard)).max(0.0);
            let rate = |family| grown(family) / seconds;
            let elapsed = grown("greendot_turn_elapsed_seconds_total");
            let busy = grown("greendot_turn_busy_seconds_total");
            ShardRates {
                shard: shard.to_owned(),
                conns: after.get("greendot_conns", shard),
                streams: after.get("greendot_streams", shard),
                watches: after.get("greendot_watches", shard),
                requests: rate("greendot_requests_total"),
                beats: rate("greendot_beats_total"),
                states: rate("greendot_states_delivered_total"),
                busy: if elapsed > 0.0 { busy / elapsed } else { 0.0 },
            }
        };
        Rates {
            seconds,
            users: after.get("greendot_users", ""),
            online: after.get("greendot_users_online", ""),
            shards: after.shards().into_iter().map(of_shard).collect(),
        }
    }

    fn table(&self) -> String {
        let mut out = format!(
            "users {}, online {}\n{:>6}{:>10}{:>10}{:>12}{:>12}{:>12}{:>12}{:>8}\n",
            self.users,
            self.online,
            "shard",
            "conns",
            "streams",
            "watches",
            "requests/s",
            "beats/s",
            "states/s",
            "busy"
        );
        for it in &self.shards {
            let line = format!(
                "{:>6}{:>10}{:>10}{:>12}{:>12.0}{:>12.0}{:>12.0}{:>7.1}%",
                it.shard,
                it.conns,
                it.streams,
                it.watches,
                it.requests,
                it.beats,
                it.states,
                100.0 * it.busy,
            );
            writeln!(out, "{line}").expect("a String takes everything");
        }
        out
    }

    /// The same as a line of JSON. Rates have three digits behind the point.
    fn json(&self, at: Unix) -> String {
        let whole = |number: f64| number as u64;
        let short = |number: f64| (number * 1e3).round() / 1e3;
        let shards: Vec<_> = self
            .shards
            .iter()
            .map(|it| {
                json!({
                    "shard": it.shard,
                    "conns": whole(it.conns),
                    "streams": whole(it.streams),
                    "watches": whole(it.watches),
                    "requests_per_second": short(it.requests),
                    "beats_per_second": short(it.beats),
                    "states_per_second": short(it.states),
                    "busy": short(it.busy),
                })
            })
            .collect();
        let line = json!({
            "at": at.ms(),
            "seconds": short(self.seconds),
            "users": whole(self.users),
            "online": whole(self.online),
            "shards": shards,
        });
        format!("{line}\n")
    }
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
        let rates = Rates::between(&before, &after, 2.0);
        let table = rates.table();
        let rows: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(rows[0], ["users", "7,", "online", "0"]);
        assert_eq!(rows[2], ["0", "0", "0", "0", "0", "11", "0", "0.0%"]);
        assert_eq!(rows[3], ["10", "0", "0", "7", "0", "0", "0", "25.0%"]);
        let told: serde_json::Value = serde_json::from_str(&rates.json(Unix::from_ms(9))).unwrap();
        let shard = |shard: &str, watches: u64, beats: f64, busy: f64| {
            json!({
                "shard": shard, "conns": 0, "streams": 0, "watches": watches,
                "requests_per_second": 0.0, "beats_per_second": beats,
                "states_per_second": 0.0, "busy": busy,
            })
        };
        let shards = [shard("0", 0, 11.0, 0.0), shard("10", 7, 0.0, 0.25)];
        let expected = json!({
            "at": 9, "seconds": 2.0, "users": 7, "online": 0, "shards": shards,
        });
        assert_eq!(told, expected);
        assert_eq!(rates.json(Unix::from_ms(9)).matches('\n').count(), 1);
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
            json: false,
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
            json: false,
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
