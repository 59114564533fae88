//! The generator against a server that lies: honest, it passes; each lie is named and ends with exit code 1.

#[expect(clippy::unwrap_used, reason = "the helper of a test")]
mod fake;

use std::process::Command;

use fake::{Fake, Lie};
use serde_json::Value;

#[expect(clippy::unwrap_used, reason = "the helper of a test")]
/// Runs the binary against a fake server; its exit code and its report.
fn run(lie: Lie, arguments: &[&str]) -> (i32, Value) {
    let fake = Fake::start(lie);
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let html = folder.path().join("report.html");
    let out = Command::new(env!("CARGO_BIN_EXE_greendot-loadgen"))
        .args(arguments)
        .args(["--http", &fake.http.to_string(), "--udp", &fake.udp.to_string()])
        .arg("--key-file")
        .arg(&fake.key_file)
        .arg("--json")
        .arg(&json)
        .arg("--report")
        .arg(&html)
        .output()
        .unwrap();
    let code = out.status.code().unwrap();
    assert!(code < 2, "{}", String::from_utf8_lossy(&out.stderr));
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    check_page(&std::fs::read_to_string(&html).unwrap(), &report);
    (code, report)
}

/// What a report's page must have: a plot for every histogram and series, the command, version and machine, the raw
/// histograms, and nothing to load.
#[expect(clippy::unwrap_used, reason = "the helper of a test")]
fn check_page(page: &str, report: &Value) {
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    let latencies = report["latencies"].as_object().unwrap();
    let series = report["series"].as_array().unwrap();
    assert_eq!(page.matches("<polyline").count(), latencies.len() + series.len());
    for (name, latency) in latencies {
        assert!(page.contains(&format!("<h2>{name} latency</h2>")), "{name}");
        assert!(page.contains(latency["hdr_v2_base64"].as_str().unwrap()), "{name}");
    }
    for name in series.iter().map(|s| s["name"].as_str().unwrap()) {
        assert!(page.contains(&format!("<h2>{name}</h2>")), "{name}");
    }
    let nines = ["0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"];
    assert!(latencies.is_empty() || nines.iter().all(|tick| page.contains(&format!(">{tick}</text>"))));
    let version = format!("greendot-loadgen {} on ", report["version"].as_str().unwrap());
    assert!(page.contains("<code>") && page.contains(&version) && page.contains(report["machine"].as_str().unwrap()));
    for loads in ["http://", "https://", "src=", "href=", "url(", "@import"] {
        assert!(!page.contains(loads), "the page loads something: {loads}");
    }
}

/// What a report accuses the server of, without the counts.
fn accusations(report: &Value) -> Vec<&str> {
    let failures = report["failures"].as_array().into_iter().flatten();
    failures
        .filter_map(Value::as_str)
        .filter_map(|failure| Some(failure.split_once(' ')?.1))
        .collect()
}

fn fanout(lie: Lie) -> (i32, Value) {
    fanout_with(lie, "100")
}

fn fanout_with(lie: Lie, streams_per_process: &str) -> (i32, Value) {
    run(
        lie,
        &[
            "fanout",
            "--streams-per-process",
            streams_per_process,
            "--watchers",
            "20",
            "--transitions",
            "12",
            "--rate",
            "10",
            "--settle",
            "40ms",
            "--late-after",
            "700ms",
            "--wait",
            "2s",
        ],
    )
}

#[test]
fn fanout_believes_an_honest_server() {
    let (code, report) = fanout(Lie::Honest);
    assert_eq!((code, &report["failures"]), (0, &serde_json::json!([])));
    assert_eq!(report["values"]["deliveries"], 240.0);
    assert_eq!(report["latencies"]["last watcher"]["count"], 12);
}

#[test]
fn fanout_in_several_processes_believes_an_honest_server() {
    let (code, report) = fanout_with(Lie::Honest, "6");
    assert_eq!((code, &report["failures"]), (0, &serde_json::json!([])));
    assert_eq!(report["values"]["deliveries"], 240.0);
    assert_eq!(report["latencies"]["each delivery"]["count"], 240);
    assert_eq!(report["latencies"]["last watcher"]["count"], 12);
}

#[test]
fn fanout_catches_each_lie() {
    for (lie, accusation) in [
        (Lie::Drop, "states were not told to a watcher"),
        (Lie::Double, "states were told to a watcher beyond one for each change"),
    ] {
        // One process, and seven that each know a part of what was told.
        for streams_per_process in ["100", "3"] {
            let (code, report) = fanout_with(lie, streams_per_process);
            // Every seventh of 20 x 12, and nothing else.
            let failures = serde_json::json!([format!("34 {accusation}")]);
            assert_eq!((code, &report["failures"]), (1, &failures), "{lie:?}: {report:#}");
        }
    }
    let (code, report) = fanout(Lie::Flip);
    assert_eq!(code, 1);
    assert!(report["values"]["never_caused"].as_f64() > Some(0.0), "{report:#}");
    assert!(
        accusations(&report).contains(&"states were told that nothing had caused"),
        "{report:#}"
    );
    // Behind newer ones of the same publisher they are out of order; the last ones, told to nobody after, are late.
    let (code, report) = fanout(Lie::Delay(900));
    assert_eq!(code, 1);
    assert!(
        report["values"]["out_of_order"].as_f64() > Some(0.0) && report["values"]["late"].as_f64() > Some(0.0),
        "{report:#}"
    );
}

fn churn(lie: Lie) -> (i32, Value) {
    churn_with(lie, "100")
}

fn churn_with(lie: Lie, streams_per_process: &str) -> (i32, Value) {
    run(
        lie,
        &[
            "churn",
            "--streams-per-process",
            streams_per_process,
            "--users",
            "60",
            "--watchers",
            "12",
            "--contacts",
            "20",
            "--minutes",
            "0.06",
            "--loss",
            "0.3",
            "--session",
            "2s",
            "--link",
            "3s",
            "--settle",
            "600ms",
        ],
    )
}

#[test]
fn churn_believes_an_honest_server() {
    let (code, report) = churn(Lie::Honest);
    assert_eq!((code, &report["failures"]), (0, &serde_json::json!([])));
    for name in ["states_told", "beats_lost_on_purpose", "goodbyes", "reconnects"] {
        assert!(report["values"][name].as_f64() > Some(3.0), "{name}: {report:#}");
    }
}

#[test]
fn churn_in_several_processes_believes_an_honest_server() {
    let (code, report) = churn_with(Lie::Honest, "5");
    assert_eq!((code, &report["failures"]), (0, &serde_json::json!([])));
    assert!(report["values"]["states_told"].as_f64() > Some(3.0), "{report:#}");
}

#[test]
fn churn_catches_each_lie() {
    let lies = [
        (Lie::Drop, "100", "views disagreed with what had long been so"),
        (Lie::Double, "100", "states were told twice on one stream"),
        (Lie::Flip, "100", "states said online of somebody who had not beaten"),
        (Lie::Delay(1_200), "100", "views disagreed with what had long been so"),
        (Lie::Impatient, "100", "states said offline of somebody who had beaten"),
        (Lie::Deaf, "100", "final views disagreed with the truth"),
        (Lie::Double, "5", "states were told twice on one stream"),
        (Lie::Drop, "5", "views disagreed with what had long been so"),
    ];
    // Side by side: each mostly waits.
    std::thread::scope(|scope| {
        for (lie, streams_per_process, accusation) in lies {
            scope.spawn(move || {
                let (code, report) = churn_with(lie, streams_per_process);
                assert_eq!(code, 1, "{lie:?}");
                assert!(accusations(&report).contains(&accusation), "{lie:?}: {report:#}");
                if lie == Lie::Double {
                    assert_eq!(accusations(&report), [accusation], "{report:#}");
                }
            });
        }
    });
}

#[test]
fn the_other_subcommands_run_to_their_end() {
    let (code, report) = run(
        Lie::Honest,
        &[
            "streams",
            "--streams",
            "50",
            "--rate",
            "500",
            "--watch",
            "3",
            "--hold",
            "300ms",
        ],
    );
    assert_eq!(
        (code, &report["values"]["streams_held"]),
        (0, &serde_json::json!(50.0)),
        "{report:#}"
    );
    assert_eq!(report["latencies"]["snapshot"]["count"], 50);
    let (code, report) = run(
        Lie::Honest,
        &["query", "--rate", "200", "--seconds", "500ms", "--connections", "4"],
    );
    assert_eq!((code, &report["values"]["answers"]), (0, &serde_json::json!(100.0)));
    let (code, report) = run(
        Lie::Honest,
        &[
            "query",
            "--rate",
            "max",
            "--seconds",
            "300ms",
            "--connections",
            "2",
            "--pipeline",
            "8",
        ],
    );
    assert_eq!((code, &report["values"]["unanswered"]), (0, &serde_json::json!(0.0)));
    let (code, report) = run(
        Lie::Honest,
        &[
            "beats",
            "--rate",
            "2000",
            "--users",
            "100",
            "--entries",
            "10",
            "--seconds",
            "500ms",
        ],
    );
    assert_eq!(
        (code, &report["values"]["datagrams_sent"]),
        (0, &serde_json::json!(100.0))
    );
    // The fake knows nothing of its streams' users, so its snapshots say offline: a storm must call that false transitions.
    let (code, report) = run(
        Lie::Honest,
        &[
            "storm",
            "--streams",
            "30",
            "--rate",
            "500",
            "--watch",
            "2",
            "--hold",
            "200ms",
        ],
    );
    assert_eq!((code, &report["values"]["streams_back"]), (1, &serde_json::json!(30.0)));
    assert_eq!(report["values"]["false_transitions"], 60.0);
}
