//! `greendot fleet` and `doctor --cluster` over a real Redis with real nodes.

use std::process::Output;

use serde_json::Value;

use crate::fleet::{Fleet, fleet, told};
use crate::harness::{LOOK_INTERVAL, until};

impl Fleet {
    fn run(&self, what: &str, more: &[&str]) -> Output {
        let url = self.url();
        self.home
            .run(&[&["fleet", what, "--cluster", &url], more].concat())
    }

    /// One line of JSON each.
    pub(crate) fn json(&self, what: &str) -> (Option<i32>, Vec<Value>) {
        let output = self.run(what, &["--json"]);
        let text = String::from_utf8(output.stdout).expect("text");
        let lines = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"));
        (output.status.code(), lines.collect())
    }

    fn redis(&self, words: &[&str]) -> String {
        let (ip, url) = (self.home.ip(), self.url());
        let port = url.rsplit(':').next().expect("a port").to_owned();
        let ip = ip.to_string();
        let to = [&["-h", &ip, "-p", &port], words].concat();
        let done = self.home.run_program("redis-cli", &to);
        assert!(done.status.success(), "{done:?}");
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr]
        .map(String::from_utf8_lossy)
        .concat()
}

#[test]
fn what_the_database_says_of_nodes_and_partitions() {
    let Some(fleet) = fleet() else { return };
    let none = until("the database answers", || {
        let none = fleet.run("status", &[]);
        (!text(&none).contains("refused")).then_some(none)
    });
    assert_eq!(none.status.code(), Some(1));
    let why = "greendot: there is no fleet in this database: no node has joined it yet, or it has \
               been emptied\n";
    assert_eq!(text(&none), why);

    let (one, mut two) = (fleet.node(), fleet.node());
    let _streams = [
        one.stream("user=bob"),
        two.stream("user=bob"),
        two.stream("user=carol"),
    ];
    told(&one, "carol", true);
    told(&two, "bob", true);
    // A claim of a node that knows the user already is told to nobody.
    until("both nodes claim bob", || {
        let (_, partitions) = fleet.json("partitions");
        (claims(&partitions) == 3).then_some(())
    });
    let (code, status) = fleet.json("status");
    let [status] = &status[..] else {
        panic!("{status:?}");
    };
    assert_eq!(code, Some(0), "{status:#}");
    for (name, expected) in [
        ("nodes_alive", 2),
        ("nodes_gone", 0),
        ("users_online", 2),
        ("partitions", 64),
        ("buckets", 16),
        ("primaries", 1),
    ] {
        assert_eq!(status[name], expected, "{name} of {status:#}");
    }
    assert_eq!(
        status["versions"],
        serde_json::json!([greendot::version::LINE])
    );
    let (code, nodes) = fleet.json("nodes");
    let mut http: Vec<&str> = nodes
        .iter()
        .filter_map(|node| node["http"].as_str())
        .collect();
    let mut expected = [one.http, two.http].map(|at| at.to_string());
    http.sort_unstable();
    expected.sort_unstable();
    assert_eq!(
        (code, http),
        (Some(0), expected.iter().map(|it| &**it).collect())
    );
    for node in &nodes {
        let ages = node["lease_ages_ms"].as_array().expect("three lanes");
        assert_eq!((ages.len(), &node["alive"]), (3, &Value::Bool(true)));
        assert!(
            ages.iter()
                .all(|age| age.as_u64().is_some_and(|ms| ms < 6_000)),
            "{node:#}"
        );
    }
    let (code, partitions) = fleet.json("partitions");
    let users: u64 = partitions
        .iter()
        .filter_map(|it| it["users"].as_u64())
        .sum();
    assert_eq!((code, partitions.len(), users), (Some(0), 64, 2));
    let used = partitions.iter().filter(|it| it["users"] != 0);
    assert!(
        used.clone().all(|it| it["bytes"].as_u64() > Some(100)),
        "{partitions:?}"
    );
    assert_eq!(fleet.json("audit").0, Some(0));

    // One that was killed is gone when its lease has run out.
    two.process.kill();
    until("its lease has run out", || {
        let (_, nodes) = fleet.json("nodes");
        nodes
            .iter()
            .any(|node| node["alive"] == false)
            .then_some(())
    });
    let shown = text(&fleet.run("status", &[]));
    assert!(
        shown.contains("nodes       1 alive, 1 gone within the hour; "),
        "{shown}"
    );
}

/// Claims that all nodes have enrolled.
fn claims(partitions: &[Value]) -> u64 {
    let lives = partitions
        .iter()
        .filter_map(|it| it["lives"].as_array())
        .flatten();
    lives.filter_map(|life| life["claims"].as_u64()).sum()
}

#[test]
fn an_audit_lists_what_differs_and_changes_nothing() {
    let Some(fleet) = fleet() else { return };
    let node = fleet.node();
    let _stream = node.stream("user=bob");
    told(&node, "bob", true);
    let well = fleet.run("audit", &[]);
    assert_eq!(well.status.code(), Some(0), "{}", text(&well));
    assert!(
        text(&well).starts_with("0 of 64 partitions differ, 1 user read in "),
        "{well:?}"
    );
    // Somebody whom nobody has enrolled, and somebody who is none.
    let partitions = greendot::fleet::partition::Partitions::new(64).expect("64 of them");
    let of = |user: &str| {
        let user = greendot::wire::User::from_text(user).expect("a user");
        let partition = partitions.of(user);
        (partition.index(), partitions.hot_key(partition))
    };
    let ((at_mallory, mallory), (at_eve, eve)) = (of("mallory"), of("eve"));
    let script = "return redis.call('HSET', KEYS[1], ARGV[1], \
                  '\\0\\0\\0\\0\\0\\9' .. '\\0' .. 'zzzz' .. '\\2')";
    fleet.redis(&["EVAL", script, "1", &mallory, "mallory"]);
    fleet.redis(&["HSET", &eve, "eve", "odd"]);
    let found = fleet.run("audit", &[]);
    let shown = text(&found);
    assert_eq!(found.status.code(), Some(1), "{shown}");
    let differs = format!(
        "partition {at_mallory}: node 7a7a7a7a has enrolled 0 users, and 1 have its claims"
    );
    let odd = format!(
        "partition {at_eve}: user eve: the field of a user is malformed; does another program \
         write to this database?"
    );
    for line in [&differs, &odd] {
        assert!(
            shown.lines().any(|shown| shown == line),
            "{line} in {shown}"
        );
    }
    // It has mended nothing.
    std::thread::sleep(LOOK_INTERVAL);
    assert_eq!(
        text(&fleet.run("audit", &[])).lines().count(),
        shown.lines().count()
    );
}

#[test]
fn what_can_not_be_read_is_said() {
    let Some(mut fleet) = fleet() else { return };
    let url = fleet.url();
    for (flags, why) in [
        (
            &["--cluster", "http://a"][..],
            "--cluster begins with http://; it is redis://HOST:PORT, or rediss:// for TLS",
        ),
        (
            &[
                "--cluster",
                "redis://:p@127.0.0.1",
                "--cluster-password-file",
                "none",
            ],
            "--cluster has a password, and --cluster-password-file is set too; leave one out",
        ),
        (
            &["--cluster", &url, "--cluster-password-file", "none"],
            "none: the file of --cluster-password-file can not be read: No such file or directory \
             (os error 2)",
        ),
        (
            &[],
            "name the fleet's database with --cluster redis://HOST:PORT, or in GREENDOT_CLUSTER",
        ),
    ] {
        let output = fleet.home.run(&[&["fleet", "status"], flags].concat());
        assert!(
            !output.status.success() && text(&output).contains(why),
            "{output:?}"
        );
    }
    // A key of another type.
    fleet.redis(&["SET", "gd:{layout}", "none"]);
    let output = fleet.run("status", &[]);
    assert_eq!(output.status.code(), Some(1));
    let why = "gd:{layout}: WRONGTYPE Operation against a key holding the wrong kind of value";
    assert!(text(&output).contains(why), "{output:?}");
    fleet.redis.kill();
    let output = fleet.run("status", &[]);
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output);
    let at = url.trim_start_matches("redis://");
    assert!(
        shown.starts_with(&format!("greendot: {at}: Connection refused")),
        "{shown}"
    );
}

#[test]
fn doctor_judges_the_database() {
    let Some(mut fleet) = fleet() else { return };
    let url = fleet.url();
    let doctor = |fleet: &Fleet, more: &[&str]| {
        let own = [
            "doctor",
            "--cluster",
            &url,
            "--key-file=fleet.key",
            "--http=127.0.0.1:1",
        ];
        let udp = [
            "--udp=127.0.0.1:2",
            "--beat-interval-ms=1000",
            "--offline-after-ms=6000",
            "--cluster-partitions=64",
        ];
        let output = fleet
            .home
            .run(&[&own[..], &udp, &["--json"], more].concat());
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let findings = report["findings"].as_array().expect("findings").clone();
        move |subject: &str| {
            let found = findings
                .iter()
                .find(|finding| finding["subject"] == subject);
            found.map(|finding| {
                let word = |name: &str| finding[name].as_str().unwrap_or_default().to_owned();
                (word("verdict"), word("detail"))
            })
        }
    };
    let verdict = |found: Option<(String, String)>| found.map(|(verdict, _)| verdict);
    let healthy = doctor(&fleet, &[]);
    for (subject, expected) in [
        ("fleet database", Some("ok")),
        ("fleet functions", Some("ok")),
        ("fleet eviction", Some("ok")),
        ("fleet memory", Some("ok")),
        // It is alone.
        ("fleet replicas", Some("warn")),
        ("fleet clocks", Some("ok")),
        ("fleet failover", None),
        ("fleet layout", None),
    ] {
        assert_eq!(verdict(healthy(subject)).as_deref(), expected, "{subject}");
    }
    let node = fleet.node();
    told(&node, "nobody", false);
    fleet.redis(&["CONFIG", "SET", "maxmemory", "100mb"]);
    fleet.redis(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let (verdict_of, _) = doctor(&fleet, &[])("fleet layout").expect("there is a fleet now");
    assert_eq!(verdict_of, "ok");
    let odd = doctor(&fleet, &["--cluster-buckets=17"]);
    let (verdict_of, detail) = odd("fleet layout").expect("there is a fleet");
    assert_eq!(verdict_of, "fail");
    assert!(
        detail.starts_with("--cluster-buckets is 17 here and 16"),
        "{detail}"
    );
    fleet.redis(&["CONFIG", "SET", "hash-max-listpack-entries", "128"]);
    let ill = doctor(&fleet, &["--settle-ms=5s"]);
    let (verdict_of, detail) = ill("fleet memory").expect("it is judged");
    assert_eq!(verdict_of, "warn");
    assert!(
        detail.contains("hash-max-listpack-entries is 128"),
        "{detail}"
    );
    let (verdict_of, detail) = ill("fleet eviction").expect("it is judged");
    assert_eq!(verdict_of, "fail");
    assert!(
        detail.contains("maxmemory-policy is allkeys-lru"),
        "{detail}"
    );
    // Each command may be forbidden by itself, and each by its channels.
    for (rule, back, named) in [
        ("-hscan", "+hscan", "'hscan'"),
        ("-xadd", "+xadd", "'xadd'"),
        ("resetchannels", "allchannels", "channels"),
    ] {
        fleet.redis(&["ACL", "SETUSER", "default", rule]);
        let (verdict_of, detail) = doctor(&fleet, &[])("fleet functions").expect("it is judged");
        assert_eq!(verdict_of, "fail");
        assert!(detail.contains(named), "{detail}");
        fleet.redis(&["ACL", "SETUSER", "default", back]);
    }
    assert_eq!(fleet.redis(&["KEYS", "gd:{doctor}*"]), "");
    fleet.redis.kill();
    let (verdict_of, detail) = doctor(&fleet, &[])("fleet database").expect("it is judged");
    assert_eq!(verdict_of, "fail");
    assert!(detail.contains("Connection refused"), "{detail}");
}
