//! The generator against a server that lies: honest, it passes; each lie is named and ends with
//! exit code 1.

#[expect(clippy::unwrap_used, reason = "the helper of a test")]
mod fake;

use std::process::{Command, Stdio};
use std::time::Duration;

use fake::{Fake, Lie, Manners};
use greendot_loadgen::stats::Latencies;
use serde_json::Value;

/// Runs the binary against a fake server; its exit code and its report.
fn run(manners: Manners, arguments: &[&str]) -> (i32, Value) {
    run_against(&Fake::start(manners), arguments)
}

fn run_against(fake: &Fake, arguments: &[&str]) -> (i32, Value) {
    run_at(
        fake,
        &fake.http.to_string(),
        &fake.udp.to_string(),
        arguments,
    )
}

#[expect(clippy::unwrap_used, reason = "the helper of a test")]
fn run_at(fake: &Fake, http: &str, udp: &str, arguments: &[&str]) -> (i32, Value) {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let html = folder.path().join("report.html");
    let out = Command::new(env!("CARGO_BIN_EXE_greendot-loadgen"))
        .args(arguments)
        .args(["--http", http, "--udp", udp])
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

/// What a report's page must have: a plot for every histogram and series, the command, version and
/// machine, the raw histograms, and nothing to load.
#[expect(clippy::unwrap_used, reason = "the helper of a test")]
fn check_page(page: &str, report: &Value) {
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    let latencies = report["latencies"].as_object().unwrap();
    let series = report["series"].as_array().unwrap();
    assert_eq!(
        page.matches("<polyline").count(),
        latencies.len() + series.len()
    );
    for (name, latency) in latencies {
        assert!(page.contains(&format!("<h2>{name} latency</h2>")), "{name}");
        assert!(
            page.contains(latency["hdr_histogram"].as_str().unwrap()),
            "{name}"
        );
    }
    for name in series.iter().map(|s| s["name"].as_str().unwrap()) {
        assert!(page.contains(&format!("<h2>{name}</h2>")), "{name}");
    }
    let nines = ["0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"];
    assert!(
        latencies.is_empty()
            || nines
                .iter()
                .all(|tick| page.contains(&format!(">{tick}</text>")))
    );
    let version = format!(
        "greendot-loadgen {} on ",
        report["version"].as_str().unwrap()
    );
    assert!(
        page.contains("<code>")
            && page.contains(&version)
            && page.contains(report["machine"].as_str().unwrap())
    );
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

fn lying(lie: Lie) -> Manners {
    Manners {
        lie,
        ..Manners::default()
    }
}

/// 20 watchers are told of 12 changes, 100 ms apart: 240 deliveries.
fn fanout_with(lie: Lie, more: &[&str]) -> (i32, Value) {
    let line = "fanout --watchers 20 --transitions 12 --rate 10 --settle 40ms --wait 2s";
    run(
        lying(lie),
        &[&line.split(' ').collect::<Vec<_>>(), more].concat(),
    )
}

fn value(report: &Value, name: &str) -> f64 {
    report["values"][name]
        .as_f64()
        .unwrap_or_else(|| panic!("no {name} in {report:#}"))
}

#[test]
fn fanout_believes_an_honest_server() {
    for more in [&[][..], &["--streams-per-process", "6"]] {
        let (code, report) = fanout_with(Lie::Honest, more);
        assert_eq!((code, &report["failures"]), (0, &serde_json::json!([])));
        assert_eq!(report["values"]["deliveries"], 240.0);
        assert_eq!(report["latencies"]["each delivery"]["count"], 240);
        assert_eq!(report["latencies"]["last watcher"]["count"], 12);
    }
}

/// One process, and seven that each know a part of what was told.
const PROCESSES: [&[&str]; 2] = [&[], &["--streams-per-process", "3"]];

/// Every seventh of the 240 is wrong, and nothing else. Where this machine dawdled, what stood only
/// for a moment before the next change came is rightly called skipped.
#[test]
fn fanout_catches_what_is_not_told() {
    for more in PROCESSES {
        let (code, report) = fanout_with(Lie::Drop, more);
        assert_eq!(code, 1);
        let [missing, coalesced, unsettled] =
            ["missing", "coalesced", "unsettled"].map(|name| value(&report, name));
        // Of the last change, events 224, 231 and 238.
        assert_eq!((missing + coalesced, unsettled), (34.0, 3.0), "{report:#}");
        assert!(missing > 3.0, "{report:#}");
        let failures = serde_json::json!([
            format!("{missing} states were not told to a watcher"),
            "3 final states were never told"
        ]);
        assert_eq!(report["failures"], failures, "{report:#}");
    }
}

#[test]
fn fanout_catches_what_is_told_twice() {
    for more in PROCESSES {
        let (code, report) = fanout_with(Lie::Double, more);
        let failures =
            serde_json::json!(["34 states were told to a watcher beyond one for each change"]);
        assert_eq!((code, &report["failures"]), (1, &failures), "{report:#}");
    }
}

#[test]
fn fanout_catches_what_nothing_caused() {
    for more in PROCESSES {
        // A state of its own; in place of the right one, with its time; before its cause, which
        // then changes nothing.
        for lie in [Lie::Flip, Lie::Opposite, Lie::Premature(40)] {
            let (code, report) = fanout_with(lie, more);
            let accused =
                accusations(&report).contains(&"states were told that nothing had caused");
            assert!(code == 1 && accused, "{lie:?}: {report:#}");
            if lie == Lie::Opposite {
                assert_eq!(value(&report, "never_caused"), 34.0, "{report:#}");
            }
        }
    }
}

#[test]
fn fanout_catches_what_is_late() {
    // Behind newer ones of the same publisher they are out of order; the last ones, told to nobody
    // after, are late.
    let (code, report) = fanout_with(Lie::Delay(900), &["--late-after", "700ms"]);
    assert_eq!(code, 1);
    assert!(
        value(&report, "out_of_order") > 0.0 && value(&report, "late") > 0.0,
        "{report:#}"
    );
}

/// 7 s of a world in which everybody is heard of twice a second and expires after 2 s.
fn churn(lie: Lie, more: &[&str]) -> (i32, Value) {
    let line = "churn --users 60 --watchers 12 --contacts 20 --minutes 0.12 --loss 0.3 --session \
                2s --link 3s --settle 1s";
    let manners = Manners {
        offline_after_ms: 2_000,
        ..lying(lie)
    };
    run(
        manners,
        &[&line.split(' ').collect::<Vec<_>>(), more].concat(),
    )
}

#[test]
fn churn_believes_an_honest_server() {
    std::thread::scope(|scope| {
        for more in [&[][..], &["--streams-per-process", "5"]] {
            scope.spawn(move || {
                let (code, report) = churn(Lie::Honest, more);
                assert_eq!(
                    (code, &report["failures"]),
                    (0, &serde_json::json!([])),
                    "{report:#}"
                );
                for name in [
                    "states_told",
                    "beats_lost_on_purpose",
                    "goodbyes",
                    "reconnects",
                ] {
                    assert!(value(&report, name) > 3.0, "{name}: {report:#}");
                }
            });
        }
    });
}

#[test]
fn churn_catches_each_lie() {
    let several = &["--streams-per-process", "5"][..];
    let lies = [
        (
            Lie::Drop,
            &[][..],
            "views disagreed with what had long been so",
        ),
        (Lie::Double, &[], "states were told twice on one stream"),
        (
            Lie::Flip,
            &[],
            "states said online of somebody who had not beaten",
        ),
        (
            Lie::Opposite,
            &[],
            "views disagreed with what had long been so",
        ),
        (
            Lie::Delay(2_500),
            &[],
            "views disagreed with what had long been so",
        ),
        (
            Lie::Impatient,
            &[],
            "states said offline of somebody who had beaten",
        ),
        (Lie::Deaf, &[], "final views disagreed with the truth"),
        (
            Lie::WrongSnapshot,
            &[],
            "states contradicted what had been told of the same time",
        ),
        (
            Lie::Forgetful,
            &[],
            "states contradicted what had been told of the same time",
        ),
        (Lie::Double, several, "states were told twice on one stream"),
        (
            Lie::Drop,
            several,
            "views disagreed with what had long been so",
        ),
    ];
    // Side by side: each mostly waits.
    std::thread::scope(|scope| {
        for (lie, more, accusation) in lies {
            scope.spawn(move || {
                let (code, report) = churn(lie, more);
                assert_eq!(code, 1, "{lie:?}");
                assert!(
                    accusations(&report).contains(&accusation),
                    "{lie:?}: {report:#}"
                );
                if lie == Lie::Double {
                    assert_eq!(accusations(&report), [accusation], "{report:#}");
                }
            });
        }
    });
}

#[expect(clippy::unwrap_used, reason = "the helper of a test")]
/// How many latencies of `name` were at least `us`, and the longest.
fn from_us(report: &Value, name: &str, us: u64) -> (u64, u64) {
    let text = report["latencies"][name]["hdr_histogram"].as_str().unwrap();
    let latencies = Latencies::from_base64(text).unwrap();
    (latencies.count_from_us(us), latencies.max_us())
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

/// A server that does nothing for 600 ms once, while things fall due at a steady rate: they wait
/// for it, all of them, and from when they were due. Who counts from when it sends, or sends the
/// next when the last is answered, would see one long wait.
#[test]
fn a_pause_of_the_server_is_charged_to_all_that_fell_due_meanwhile() {
    let paused = Manners {
        pause: Some((40, 600)),
        ..Manners::default()
    };
    for (line, latency, due_in_500_ms) in [
        (
            "fanout --watchers 4 --transitions 60 --rate 40",
            "each delivery",
            20 * 4,
        ),
        (
            "query --rate 200 --seconds 1500ms --connections 4",
            "answer",
            100,
        ),
        ("streams --streams 100 --rate 100 --hold 100ms", "hello", 50),
    ] {
        let (code, report) = run(paused, &words(line));
        assert_eq!(code, 0, "{report:#}");
        let (waited, longest_us) = from_us(&report, latency, 100_000);
        assert!(longest_us >= 500_000, "{line}: {longest_us} us");
        assert!(waited >= due_in_500_ms * 9 / 10, "{line}: {waited}");
    }
}

/// Runs the generator, stops it for a moment, and lets it go on: it was late, and knows.
#[expect(clippy::unwrap_used, reason = "the helper of a test")]
fn run_lagging(line: &str) -> (Option<i32>, Value, String) {
    let fake = Fake::start(Manners::default());
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let generator = Command::new(env!("CARGO_BIN_EXE_greendot-loadgen"))
        .args(words(line))
        .args([
            "--http",
            &fake.http.to_string(),
            "--udp",
            &fake.udp.to_string(),
            "--quiet",
        ])
        .arg("--key-file")
        .arg(&fake.key_file)
        .arg("--json")
        .arg(&json)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let signal = |name: &str| {
        let pid = generator.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .unwrap()
                .success()
        );
    };
    std::thread::sleep(Duration::from_millis(1_200));
    signal("-STOP");
    std::thread::sleep(Duration::from_millis(600));
    signal("-CONT");
    let out = generator.wait_with_output().unwrap();
    assert!(json.exists(), "{}", String::from_utf8_lossy(&out.stderr));
    let report = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    (
        out.status.code(),
        report,
        String::from_utf8_lossy(&out.stderr).into_owned(),
    )
}

#[test]
fn a_generator_that_lags_certifies_nothing() {
    for line in [
        "fanout --watchers 4 --transitions 100 --rate 40",
        "query --rate 200 --seconds 2500ms --connections 4",
    ] {
        let (code, report, complaint) = run_lagging(line);
        // The server did nothing wrong; but the run says, even a quiet one, that it is not to be
        // published.
        assert_eq!(
            (code, &report["certified"]),
            (Some(0), &false.into()),
            "{report:#}"
        );
        assert!(
            value(&report, "generator_lag_p99_us") > 300_000.0,
            "{report:#}"
        );
        assert!(
            complaint.contains("NOT CERTIFIED: the generator's own lag"),
            "{complaint}"
        );
        // What it did late counts from when it was due, all the same.
        let latency = if line.starts_with("query") {
            "answer"
        } else {
            "each delivery"
        };
        assert!(
            from_us(&report, latency, 100_000).1 >= 500_000,
            "{report:#}"
        );
    }
}

#[test]
fn streams_and_queries_run_to_their_end() {
    let honest = Manners::default();
    let (code, report) = run(
        honest,
        &words("streams --streams 50 --rate 500 --watch 3 --hold 300ms"),
    );
    assert_eq!(
        (code, value(&report, "streams_held")),
        (0, 50.0),
        "{report:#}"
    );
    assert_eq!(report["latencies"]["snapshot"]["count"], 50);
    let (code, report) = run(
        honest,
        &words("query --rate 200 --seconds 500ms --connections 4"),
    );
    assert_eq!((code, value(&report, "answers")), (0, 100.0), "{report:#}");
    let (code, report) = run(
        honest,
        &words("query --rate max --seconds 300ms --connections 2 --pipeline 8"),
    );
    assert_eq!((code, value(&report, "unanswered")), (0, 0.0), "{report:#}");
}

#[test]
fn a_query_is_answered_of_those_asked_about() {
    let manners = Manners {
        answer: Some(
            "{\"user\":\"bob\",\"status\":\"offline\",\"online\":false,\
             \"since\":null,\"last_active\":null}",
        ),
        ..Manners::default()
    };
    let (code, report) = run(
        manners,
        &words("query --rate 100 --seconds 300ms --connections 2"),
    );
    assert_eq!(
        (code, accusations(&report)),
        (1, vec!["answers were not of those asked about"])
    );
}

/// A server closes connections over which nothing is asked.
#[test]
fn slow_queries_open_their_connections_again() {
    let manners = Manners {
        idle_ms: 200,
        ..Manners::default()
    };
    let (code, report) = run(
        manners,
        &words("query --rate 5 --seconds 2s --connections 2"),
    );
    assert_eq!((code, value(&report, "answers")), (0, 10.0), "{report:#}");
    assert!(value(&report, "connections_opened") > 5.0, "{report:#}");
}

#[test]
fn beats_are_counted_by_the_server_or_the_run_is_worth_nothing() {
    let line = words("beats --rate 2000 --users 100 --entries 10 --seconds 500ms --introduce");
    let (code, report) = run(Manners::default(), &line);
    assert_eq!(
        (code, value(&report, "datagrams_sent")),
        (0, 100.0),
        "{report:#}"
    );
    assert_eq!(value(&report, "beats_accepted"), 1_000.0);
    let line = words("beats --rate 2000 --users 100 --entries 10 --seconds 500ms");
    let (code, report) = run(lying(Lie::Miscount), &line);
    assert_eq!(
        (code, accusations(&report)),
        (1, vec!["datagrams are unaccounted for"])
    );
    assert!(
        value(&report, "datagrams_unaccounted_for") > 10.0,
        "{report:#}"
    );
    let (_, report) = run(lying(Lie::Mute), &line);
    let doubts = report["doubts"].to_string();
    assert!(doubts.contains("counted none of the datagrams"), "{doubts}");
    assert_eq!(report["certified"], false);
}

#[test]
fn beats_that_nobody_receives_were_never_sent() {
    let fake = Fake::start(Manners::default());
    // Nobody listens there, and the kernel says so after the first.
    let nobody = std::net::UdpSocket::bind("127.0.0.9:0").and_then(|socket| socket.local_addr());
    let udp = nobody.expect("a port").to_string();
    let line =
        "beats --rate 2000 --users 100 --entries 10 --seconds 500ms --flows 1 --batching none";
    let (_, report) = run_at(&fake, &fake.http.to_string(), &udp, &words(line));
    let [sent, never_sent] =
        ["datagrams_sent", "datagrams_never_sent"].map(|name| value(&report, name));
    assert_eq!(sent + never_sent, 100.0, "{report:#}");
    assert!(never_sent > 10.0, "{report:#}");
    assert!(
        report["doubts"].to_string().contains("were never sent"),
        "{report:#}"
    );
}

#[test]
fn storm_catches_false_transitions() {
    // The fake knows nothing of its streams' users, so its snapshots say offline: a storm must call
    // that false transitions.
    let (code, report) = run(
        Manners::default(),
        &words("storm --streams 30 --rate 500 --watch 2 --hold 200ms"),
    );
    assert_eq!(
        (code, value(&report, "streams_back")),
        (1, 30.0),
        "{report:#}"
    );
    assert_eq!(value(&report, "false_transitions"), 60.0);
    assert_eq!(
        accusations(&report),
        ["transitions were told although nobody left"]
    );
}

/// Clients come back after the delay that they were told, and say what they were told last.
#[test]
fn storm_comes_back_as_clients_do() {
    let fake = Fake::start(Manners {
        retry_ms: 2_000,
        ..Manners::default()
    });
    let (code, report) = run_against(
        &fake,
        &words("storm --streams 5 --rate 500 --watch 2 --hold 200ms"),
    );
    assert_eq!(
        (code, value(&report, "streams_back")),
        (1, 5.0),
        "{report:#}"
    );
    assert_eq!(
        (value(&report, "reconnects"), value(&report, "retry_ms_max")),
        (5.0, 2_000.0)
    );
    let seen = fake.seen();
    let (first, again) = seen.asked.split_at(5);
    assert!(
        first.iter().all(|asked| asked.last_event_id.is_none()),
        "{seen:#?}"
    );
    assert!(
        again.len() == 5 && again.iter().all(|asked| asked.last_event_id.is_some()),
        "{seen:#?}"
    );
    let cut_ms = seen.closed_ms.iter().min().copied().unwrap_or(u64::MAX);
    // Half of it, lest a moment in which the fake had no core is held against the generator.
    for asked in again {
        assert!(asked.at_ms >= cut_ms + 1_000, "{cut_ms}: {asked:?}");
        assert!(
            first.iter().any(|before| before.target == asked.target),
            "{asked:?}"
        );
    }
}

/// An outage may be shorter than the time between two looks at the streams.
#[test]
fn storm_sees_the_shortest_outage() {
    let fake = Fake::start(Manners {
        retry_ms: 1,
        ..Manners::default()
    });
    let (_, report) = run_against(
        &fake,
        &words("storm --streams 5 --rate 500 --hold 200ms --patience 20s"),
    );
    assert_eq!(value(&report, "reconnects"), 5.0, "{report:#}");
    assert!(
        value(&report, "all_back_s") < 20.0 && value(&report, "connects_per_s_peak") > 0.0,
        "{report:#}"
    );
    assert!(
        report["series"].to_string().contains("connects a second"),
        "{report:#}"
    );
}
