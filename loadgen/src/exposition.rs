//! What the server counts of itself (`/metrics`, Prometheus text format).
//!
//! Owns the reading of samples. A family that is missing is 0, as a counter that never counted.

use std::io;
use std::net::SocketAddr;

use crate::http::Client;

/// The samples of one scrape.
#[derive(Clone, Debug, Default)]
pub struct Exposition {
    samples: Vec<(String, f64)>,
}

impl Exposition {
    /// Asks the server.
    pub fn scrape(target: SocketAddr) -> io::Result<Exposition> {
        Exposition::of(Client::connect(target)?, target)
    }

    /// Asks the server at `target` over a connection.
    pub fn of(mut client: Client, target: SocketAddr) -> io::Result<Exposition> {
        let answer = client.call("GET", "/metrics", b"")?;
        if answer.status != 200 {
            let hint = match answer.status {
                404 => "; of a server with --admin name that address: it serves everything",
                401 | 403 => "; it asks for a key: start it with --admin-metrics-open",
                _ => "",
            };
            let status = answer.status;
            return Err(io::Error::other(format!(
                "/metrics of {target} answered {status}{hint}"
            )));
        }
        Ok(Exposition::parse(&String::from_utf8_lossy(&answer.body)))
    }

    /// Reads the text format.
    pub fn parse(text: &str) -> Exposition {
        let samples = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                // A label's value may hold spaces; the name ends at '}' where there is one.
                let end = line
                    .rfind('}')
                    .map_or_else(|| line.find(' '), |brace| Some(brace + 1))?;
                Some((
                    line[..end].to_owned(),
                    line[end..].split_ascii_whitespace().next()?.parse().ok()?,
                ))
            })
            .collect();
        Exposition { samples }
    }

    /// The sum of all samples of `family` that have all of `labels`, each written `name="value"`.
    pub fn sum(&self, family: &str, labels: &[&str]) -> f64 {
        self.matching(family)
            .filter(|(name, _)| labels.iter().all(|label| name.contains(label)))
            .map(|(_, value)| value)
            .sum()
    }

    /// The samples of `family` by the value of `label`, in the order of the text; the same value
    /// twice is added up.
    pub fn by_label(&self, family: &str, label: &str) -> Vec<(String, f64)> {
        let mut sums: Vec<(String, f64)> = Vec::new();
        for (name, value) in self.matching(family) {
            let Some(text) = name
                .split(&format!("{label}=\""))
                .nth(1)
                .and_then(|rest| rest.split('"').next())
            else {
                continue;
            };
            match sums.iter_mut().find(|(known, _)| known == text) {
                Some((_, sum)) => *sum += value,
                None => sums.push((text.to_owned(), *value)),
            }
        }
        sums
    }

    fn matching<'a>(&'a self, family: &'a str) -> impl Iterator<Item = &'a (String, f64)> {
        self.samples.iter().filter(move |(name, _)| {
            name.strip_prefix(family)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
        })
    }
}

/// The samples of several nodes, one after the other: sums are of all.
impl std::iter::Sum for Exposition {
    fn sum<I: Iterator<Item = Exposition>>(parts: I) -> Exposition {
        Exposition {
            samples: parts.flat_map(|part| part.samples).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_labels() {
        let text = "# HELP greendot_beats Beats\n# TYPE greendot_beats counter\n\
            greendot_beats_total{source=\"udp\",shard=\"0\"} 5\n\
            greendot_beats_total{source=\"udp\",shard=\"1\"} 7 1764009600\n\
            greendot_beats_total{source=\"http\",shard=\"0\"} 1\ngreendot_beats_total_more 9\n\
            greendot_users 3.5\n# EOF\n";
        let all = Exposition::parse(text);
        assert_eq!(all.sum("greendot_beats_total", &[]), 13.0);
        assert_eq!(all.sum("greendot_beats_total", &["source=\"udp\""]), 12.0);
        assert_eq!(all.sum("greendot_users", &[]), 3.5);
        assert_eq!(all.sum("greendot_nothing", &[]), 0.0);
        assert_eq!(
            all.by_label("greendot_beats_total", "source"),
            [("udp".to_owned(), 12.0), ("http".to_owned(), 1.0)]
        );
        let both: Exposition = [all.clone(), all].into_iter().sum();
        assert_eq!(both.sum("greendot_users", &[]), 7.0);
        assert_eq!(
            both.by_label("greendot_beats_total", "source")[0],
            ("udp".to_owned(), 24.0)
        );
    }
}
