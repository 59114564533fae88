//! A report as one self-contained HTML page: no script, no file beside it.
//!
//! Owns the plots: percentiles with the axis linear in nines, and series. The raw histograms and
//! all values are embedded as JSON, so that a page is also a data file.

use std::fmt::Write as _;

use crate::report::{Report, command, number};
use crate::{procfs, stats::Latencies};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 90.0;
/// Half of the last label stands here.
const RIGHT: f64 = 40.0;
const BOTTOM: f64 = 34.0;
/// Nines shown: 5 is 99.999 %.
const NINES_MAX: f64 = 5.0;

/// The page of `report`.
pub fn page(report: &Report) -> String {
    let mut out = String::new();
    let title = escape(&report.scenario);
    let _ = write!(
        out,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>greendot-loadgen \
         {title}</title><style>\
        body{{font:15px/1.5 system-ui,sans-serif;max-width:860px;margin:2em auto;padding:0 \
        1em;color:#222}}\
        table{{border-collapse:collapse}}td{{padding:.1em 1em .1em \
        0}}td+td{{text-align:right;font-variant-numeric:tabular-nums}}\
        code{{background:#f2f2f2;padding:.1em .3em}}.bad{{color:#b00020}}svg{{font:11px \
        system-ui,sans-serif}}</style>\
        <h1>{title}</h1><p><code>{}</code><br>greendot-loadgen {} on {}{}</p>",
        escape(&command()),
        env!("CARGO_PKG_VERSION"),
        escape(&procfs::machine()),
        match &report.servers[..] {
            [] => String::new(),
            versions => format!("<br>greendot {}", escape(&versions.join(", "))),
        },
    );
    for failure in &report.failures {
        let _ = write!(out, "<p class=\"bad\">Failed: {}</p>", escape(failure));
    }
    for doubt in &report.doubts {
        let _ = write!(out, "<p class=\"bad\">Not certified: {}</p>", escape(doubt));
    }
    if let Some(verdict) = &report.verdict {
        let _ = write!(out, "<p><strong>{}</strong></p>", escape(verdict));
    }
    for note in &report.notes {
        let _ = write!(out, "<p>{}</p>", escape(note));
    }
    out.push_str("<table>");
    for value in &report.values {
        let _ = write!(
            out,
            "<tr><td>{}<td>{}",
            escape(&value.name),
            number(value.value)
        );
    }
    out.push_str("</table>");
    for (name, latencies) in &report.latencies {
        let _ = write!(
            out,
            "<h2>{} latency</h2>{}",
            escape(name),
            percentile_plot(latencies)
        );
    }
    for series in &report.series {
        let _ = write!(
            out,
            "<h2>{}</h2>{}",
            escape(&series.name),
            series_plot(&series.points, series.axis)
        );
    }
    // "</" would end the element early.
    let _ = writeln!(
        out,
        "<script type=\"application/json\" id=\"report\">{}</script></html>",
        report.json().to_string().replace("</", "<\\/")
    );
    out
}

/// How many nines a share has: 0.9 has one, 0.999 three.
fn nines(share: f64) -> f64 {
    if share >= 1.0 {
        NINES_MAX
    } else {
        (-(1.0 - share).log10()).min(NINES_MAX)
    }
}

/// Percentiles, the horizontal axis linear in nines (0, 90, 99, 99.9 ..), the vertical one in
/// microseconds.
fn percentile_plot(latencies: &Latencies) -> String {
    let points: Vec<(f64, f64)> = latencies
        .curve()
        .iter()
        .map(|(share, us)| (nines(*share), *us as f64))
        .collect();
    let ticks: Vec<(f64, String)> = (0..=NINES_MAX as usize)
        .map(|n| {
            (
                n as f64,
                if n == 0 {
                    "0 %".to_owned()
                } else {
                    format!("{} %", 100.0 - 100.0 / 10f64.powi(n as i32))
                },
            )
        })
        .collect();
    plot(&points, 0.0, NINES_MAX, &ticks, "us")
}

fn series_plot(points: &[(f64, f64)], axis: &str) -> String {
    let (from, to) = points
        .iter()
        .fold((f64::MAX, f64::MIN), |(from, to), (x, _)| {
            (from.min(*x), to.max(*x))
        });
    let ticks: Vec<(f64, String)> = tick_places(points, from, to)
        .into_iter()
        .map(|x| {
            (
                x,
                format!("{} {axis}", number((x * 1_000.0).round() / 1_000.0)),
            )
        })
        .collect();
    plot(points, from, to, &ticks, "")
}

/// Where the horizontal axis is marked: at whole numbers only if there is nothing between them, as
/// with shards.
fn tick_places(points: &[(f64, f64)], from: f64, to: f64) -> Vec<f64> {
    let is_whole = points.iter().all(|(x, _)| x.fract() == 0.0);
    if !is_whole || points.is_empty() {
        return (0..=4)
            .map(|n| from + (to - from) * f64::from(n) / 4.0)
            .collect();
    }
    let step = ((to - from) / 8.0).ceil().max(1.0);
    let places = (0..).map(|n| from + f64::from(n) * step);
    places.take_while(|x| *x <= to).collect()
}

fn plot(points: &[(f64, f64)], from: f64, to: f64, ticks: &[(f64, String)], unit: &str) -> String {
    let top = points
        .iter()
        .fold(0.0f64, |top, (_, y)| top.max(*y))
        .max(f64::MIN_POSITIVE);
    let span = (to - from).max(f64::MIN_POSITIVE);
    let x = |value: f64| LEFT + (value - from) / span * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - value / top * (HEIGHT - BOTTOM - 14.0);
    let mut out = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"100%\" role=\"img\">");
    for step in 0..=4 {
        let value = top * f64::from(step) / 4.0;
        let _ = write!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{1:.1}\" y2=\"{1:.1}\" \
             stroke=\"#ddd\"/><text x=\"{0}\" y=\"{2:.1}\" text-anchor=\"end\">{3} {unit}</text>",
            LEFT - 6.0,
            y(value),
            y(value) + 4.0,
            number(value),
        );
    }
    for (at, text) in ticks {
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{text}</text>",
            x(*at),
            HEIGHT - 12.0
        );
    }
    let line: Vec<String> = points
        .iter()
        .map(|(px, py)| format!("{:.1},{:.1}", x(*px), y(*py)))
        .collect();
    let _ = write!(
        out,
        "<polyline fill=\"none\" stroke=\"#12805c\" stroke-width=\"2\" points=\"{}\"/></svg>",
        line.join(" ")
    );
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_holds_all_and_loads_nothing() {
        let mut report = Report::new("streams <1>");
        let mut latencies = Latencies::default();
        (1..=1_000).for_each(|us| latencies.record(us));
        let encoded = latencies.to_base64();
        report.latencies("hello", latencies);
        report.series("streams open", "s", vec![(0.0, 0.0), (1.0, 500.0)]);
        report.notes.push("both ends are </script> here".to_owned());
        let page = page(&report);
        assert!(page.contains("<h1>streams &lt;1&gt;</h1>"));
        assert!(page.contains(&encoded));
        assert_eq!(page.matches("<polyline").count(), 2);
        assert_eq!(page.matches("</script>").count(), 1);
        assert!(page.contains(">99.9 %</text>"));
        assert!(!page.contains("http://") && !page.contains("https://"));
    }

    #[test]
    fn the_axis_is_linear_in_nines() {
        for (share, expected) in [
            (0.0, 0.0),
            (0.9, 1.0),
            (0.99, 2.0),
            (0.999, 3.0),
            (0.999_99, 5.0),
            (1.0, 5.0),
        ] {
            assert!(
                (nines(share) - expected).abs() < 1e-9,
                "{share}: {}",
                nines(share)
            );
        }
        // Half as many again are above p50 as above p75: as far apart as p99 and p99.5.
        assert!((nines(0.75) - nines(0.5) - (nines(0.995) - nines(0.99))).abs() < 1e-9);
        let mut latencies = Latencies::default();
        (1..=1_000).for_each(|us| latencies.record(us));
        let svg = percentile_plot(&latencies);
        // Six labels from 90 to 720, as far apart.
        for (label, x) in [
            ("0", 90.0),
            ("90", 216.0),
            ("99", 342.0),
            ("99.9", 468.0),
            ("99.99", 594.0),
            ("99.999", 720.0),
        ] {
            assert!(
                svg.contains(&format!(
                    "<text x=\"{x:.1}\" y=\"248\" text-anchor=\"middle\">{label} %</text>"
                )),
                "{svg}"
            );
        }
        // The median stands where half of all are: 0.301 nines, at half the height.
        assert!(
            svg.contains(&format!(
                " {:.1},{:.1} ",
                90.0 + 126.0 * std::f64::consts::LOG10_2,
                226.0 - 212.0 * 0.5
            )),
            "{svg}"
        );
    }

    #[test]
    fn shards_are_whole() {
        let labels = |points: &[(f64, f64)]| -> Vec<String> {
            let svg = series_plot(points, "shards");
            let texts = svg.split("text-anchor=\"middle\">").skip(1);
            texts
                .map(|text| text.split('<').next().unwrap().to_owned())
                .collect()
        };
        let ones = |to: u32| (1..=to).map(|n| (f64::from(n), 1.0)).collect::<Vec<_>>();
        assert_eq!(labels(&ones(2)), ["1 shards", "2 shards"]);
        assert_eq!(labels(&ones(1)), ["1 shards"]);
        assert_eq!(labels(&ones(20)).len(), 7, "every third");
        let halves = [(0.0, 0.0), (0.5, 1.0)];
        assert_eq!(labels(&halves)[1], "0.125 shards");
    }

    #[test]
    fn a_line_ends_where_the_samples_do() {
        let mut latencies = Latencies::default();
        (1..=100).for_each(|us| latencies.record(us));
        let svg = percentile_plot(&latencies);
        // Of 100 the longest is at 99 %: two nines of five.
        let end = 90.0 + 2.0 * 126.0;
        assert!(svg.ends_with(&format!(" {end:.1},14.0\"/></svg>")), "{svg}");
    }

    #[test]
    fn a_plot_spans_its_box() {
        let svg = plot(&[(0.0, 0.0), (10.0, 4.0)], 0.0, 10.0, &[], "");
        assert!(svg.contains("points=\"90.0,226.0 720.0,14.0\""), "{svg}");
    }
}
