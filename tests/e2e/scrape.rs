//! The text of `/metrics` (Prometheus' text format 0.0.4), read strictly.

use std::collections::BTreeMap;

/// One line that is a number.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

/// A page that has been parsed.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) samples: Vec<Sample>,
    /// Name and type of each family.
    pub(crate) families: BTreeMap<String, String>,
}

impl Metrics {
    pub(crate) fn parse(text: &str) -> Metrics {
        let (mut samples, mut families) = (Vec::new(), BTreeMap::new());
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let (keyword, name, rest) = (words.next(), words.next(), words.next());
                let name = name.expect("a comment names a family").to_owned();
                match keyword {
                    Some("TYPE") => {
                        let before = families.insert(name, rest.expect("a type").to_owned());
                        assert!(before.is_none(), "a family stands twice: {line}");
                    }
                    Some("HELP") => assert!(rest.is_some_and(|rest| !rest.is_empty()), "{line}"),
                    _ => panic!("{line}"),
                }
                continue;
            }
            let sample = sample(line);
            let of_family = families.keys().any(|family| {
                let suffix = sample.name.strip_prefix(family.as_str());
                suffix.is_some_and(|suffix| ["", "_bucket", "_sum", "_count"].contains(&suffix))
            });
            assert!(of_family, "no TYPE before {line}");
            samples.push(sample);
        }
        Metrics { samples, families }
    }

    /// The sum of all series with this name and these labels: `greendot_beats_total{source="udp"}`.
    pub(crate) fn sum(&self, series: &str) -> f64 {
        let wanted = sample(&format!("{series} 0"));
        let matching: Vec<f64> = self
            .samples
            .iter()
            .filter(|sample| sample.name == wanted.name)
            .filter(|sample| {
                wanted
                    .labels
                    .iter()
                    .all(|(name, value)| sample.labels.get(name) == Some(value))
            })
            .map(|sample| sample.value)
            .collect();
        assert!(!matching.is_empty(), "no series {series}");
        matching.iter().sum()
    }
}

fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').expect("a number ends the line");
    let (name, labels) = match series.split_once('{') {
        None => (series, ""),
        Some((name, rest)) => (
            name,
            rest.strip_suffix('}').expect("a brace closes the labels"),
        ),
    };
    let label = |pair: &str| {
        let (name, value) = pair.split_once('=').expect("a label");
        let value = value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'));
        (
            name.to_owned(),
            value.expect("a value is quoted").to_owned(),
        )
    };
    Sample {
        name: name.to_owned(),
        labels: labels
            .split(',')
            .filter(|pair| !pair.is_empty())
            .map(label)
            .collect(),
        value: value.parse().unwrap_or_else(|_| panic!("{line}")),
    }
}
