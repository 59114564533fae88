//! `greendot doctor`: is this machine fit for this configuration?
//!
//! Owns the checks that touch something: the data folder, the clock, the addresses. Limits are
//! judged by `limits`; whose they are, the memory, webhooks and a fleet's database in the files
//! below.

#[cfg(feature = "cluster")]
mod cluster;
mod memory;
mod webhooks;
mod whose;

use std::fmt::Write;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::statvfs;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use crate::config::{Config, RoleName};
use crate::fleet_key;
use crate::key_files;
use crate::limits::{Finding, Found, Holding, Verdict, judge};
use crate::store::{STORE_FILES, copies_on_write};
use crate::tools::agent::agent;
use crate::tools::endpoint::{Endpoint, Port};

/// 2024-01-01: a wall clock before it was never set.
const CLOCK_FLOOR_S: i64 = 1_704_067_200;

/// Time of a core for a ping and the request that answers it, in us: a bound. `benches/vouching`
/// measures it: 20.9 with 100,000 streams and 24.8 with 19,000.
const ANSWERED_PING_US: f64 = 25.0;
/// Memory of a million idle connections, kernel's share included, in GiB: 4.4 KB each.
const HOLDERS_GIB: f64 = 4.1;

/// How long a server may take to say that it is there.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What is asked beside the configuration.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Question {
    /// Where the client commands of this environment would look for a server.
    pub named: Vec<Endpoint>,
    /// Whether the machine holds so many streams.
    pub streams: Option<u64>,
    /// The process whose limits count.
    pub pid: Option<i32>,
    /// The report is for programs.
    pub json: bool,
}

/// The report, one line per check, and whether nothing failed.
pub fn run(config: &Config, question: &Question) -> (String, bool) {
    let shards = config.shard_count();
    let mut found = Found::read();
    let whose = whose::settle(&mut found, question.pid);
    let holding = question
        .streams
        .map(|streams| Holding::judge(config, shards, &found, streams));
    let (config, mut findings) = match &holding {
        Some(holding) => (&holding.config, holding.findings.clone()),
        None => (config, judge(config, shards, &found)),
    };
    findings.insert(0, whose);
    findings.push(addresses(config));
    findings.push(key(config));
    findings.extend(identity_files(config));
    findings.extend(webhooks::findings(config));
    #[cfg(feature = "cluster")]
    findings.extend(cluster::findings(config));
    if config.role != RoleName::Realtime {
        findings.extend(folder(config));
        findings.extend(memory::finding(config));
    }
    if config.role != RoleName::Presence {
        findings.push(holders(config.settings.beat_interval_ms));
    }
    findings.push(clock());
    findings.extend(question.named.iter().map(server));
    let fit = findings
        .iter()
        .all(|finding| finding.verdict < Verdict::Fail);
    let lines = lines(&findings, holding.as_ref());
    let out = match question.json {
        true => for_programs(&findings, holding.as_ref(), &lines, fit),
        false => for_people(&findings, holding.as_ref(), &lines, fit),
    };
    (out, fit)
}

/// What to paste, without what is there already.
fn lines(findings: &[Finding], holding: Option<&Holding>) -> Vec<String> {
    let found = findings
        .iter()
        .filter_map(|finding| finding.line.as_deref());
    let mut lines: Vec<String> = found.flat_map(str::lines).map(str::to_owned).collect();
    lines.extend(holding.map(|holding| {
        let conns_max = holding.config.settings.conns_max;
        format!("greendot serve --conns-max {conns_max}")
    }));
    lines
}

fn for_people(
    findings: &[Finding],
    holding: Option<&Holding>,
    lines: &[String],
    fit: bool,
) -> String {
    let mut out = String::new();
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Ok => "OK  ",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        };
        writeln!(out, "{verdict} {:<20} {}", finding.subject, finding.detail)
            .expect("a String takes everything");
    }
    if let Some(holding) = holding {
        let (streams, mib) = (holding.streams, holding.memory_bytes >> 20);
        let does = if fit { "holds" } else { "does not hold" };
        let lines = lines.join("\n  ");
        write!(
            out,
            "\nThis machine {does} {streams} streams, which take {mib} MiB. For them, with \
             LimitNOFILE= in the service's unit or as `ulimit -Hn`:\n\n  {lines}\n"
        )
        .expect("a String takes everything");
    }
    out
}

fn for_programs(
    findings: &[Finding],
    holding: Option<&Holding>,
    lines: &[String],
    fit: bool,
) -> String {
    let told: Vec<_> = findings
        .iter()
        .map(|finding| {
            let verdict = match finding.verdict {
                Verdict::Ok => "ok",
                Verdict::Warn => "warn",
                Verdict::Fail => "fail",
            };
            json!({"verdict": verdict, "subject": finding.subject, "detail": finding.detail})
        })
        .collect();
    let mut report = json!({"fit": fit, "findings": told, "lines": lines});
    if let Some(holding) = holding {
        report["streams"] = holding.streams.into();
        report["conns_max"] = holding.config.settings.conns_max.into();
        report["memory_bytes"] = holding.memory_bytes.into();
    }
    format!("{report}\n")
}

/// What a million streams would cost that vouch for themselves.
fn holders(beat_interval_ms: u64) -> Finding {
    let each_s = 1e9 / beat_interval_ms as f64;
    let cores = each_s * ANSWERED_PING_US / 1e6;
    let detail = format!(
        "a million streams with vouch=self: {each_s:.0} pings and as many requests a second, \
         {cores:.1} cores at {ANSWERED_PING_US} us each; a second connection each, {HOLDERS_GIB} \
         GiB more"
    );
    Finding::new(Verdict::Ok, "self-vouching", detail)
}

/// Whether all addresses can be bound; bound and let go.
fn addresses(config: &Config) -> Finding {
    let udp = (config.role != RoleName::Realtime).then_some(config.udp);
    let all = [
        ("http", Some(config.http)),
        ("https", config.tls.https),
        ("admin", config.admin),
        ("udp", udp),
    ];
    let named = all.into_iter().filter_map(|(name, at)| Some((name, at?)));
    let named: Vec<_> = named.collect();
    let bound = named.iter().try_for_each(|&(name, at)| {
        let bound = match name {
            "udp" => UdpSocket::bind(at).map(drop),
            _ => TcpListener::bind(at).map(drop),
        };
        bound.map_err(|error| (at, name, error))
    });
    let words = named.iter().map(|(name, at)| format!("{name} {at}"));
    let words = words.collect::<Vec<_>>().join(", ");
    match bound {
        Ok(()) => Finding::new(Verdict::Ok, "addresses", format!("free: {words}")),
        // A running server is no fault of the machine's.
        Err((address, name, error)) if error.kind() == std::io::ErrorKind::AddrInUse => {
            Finding::new(
                Verdict::Warn,
                "addresses",
                format!(
                    "{address} is in use, perhaps by a running server; stop it, or set --{name}"
                ),
            )
        }
        Err((address, name, error)) => Finding::new(
            Verdict::Fail,
            "addresses",
            format!("{address}: {error}; set --{name}"),
        ),
    }
}

/// The key file as a node reads it.
fn key(config: &Config) -> Finding {
    let (subject, path) = ("key file", config.key_path());
    if config.makes_key() && !path.exists() {
        let detail = format!("{} is made at the first start", path.display());
        return Finding::new(Verdict::Ok, subject, detail);
    }
    match fleet_key::load(&path, false) {
        Err(fault) => Finding::new(Verdict::Fail, subject, fault.to_string()),
        Ok(_) => Finding::new(
            Verdict::Ok,
            subject,
            format!("{} can be read", path.display()),
        ),
    }
}

/// The files of users' and services' keys, as a node reads them.
fn identity_files(config: &Config) -> Vec<Finding> {
    let identity = &config.identity;
    let mut findings = Vec::new();
    if !identity.jwt_keys.is_empty() {
        findings.push(match key_files::verifying(&identity.jwt_keys) {
            Ok(keys) => Finding::new(Verdict::Ok, "token keys", format!("{keys:?}")),
            Err(fault) => Finding::new(Verdict::Fail, "token keys", fault.to_string()),
        });
    }
    if let Some(path) = &identity.service_keys {
        let subject = "service keys";
        findings.push(match key_files::services(path) {
            Ok((_, Some(warning))) => Finding::new(Verdict::Warn, subject, warning),
            Ok((_, None)) => {
                let detail = format!("{} can be read", path.display());
                Finding::new(Verdict::Ok, subject, detail)
            }
            Err(fault) => Finding::new(Verdict::Fail, subject, fault.to_string()),
        });
    }
    findings
}

fn folder(config: &Config) -> Vec<Finding> {
    let dir = &config.data_dir;
    let Some(existing) = nearest_existing(dir) else {
        return vec![Finding::new(
            Verdict::Fail,
            "data folder",
            format!("{} has no existing parent; set --data-dir", dir.display()),
        )];
    };
    let mut findings = vec![writable(dir, &existing)];
    findings.extend(store_files(dir));
    if let Some(finding) = locked(dir) {
        findings.push(finding);
    }
    if let Ok(stat) = statvfs(&existing) {
        findings.push(space(config, stat.f_bavail.saturating_mul(stat.f_frsize)));
    }
    findings.push(file_system(&existing));
    findings
}

fn nearest_existing(dir: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(dir).ok()?;
    absolute
        .ancestors()
        .find(|path| path.exists())
        .map(Path::to_path_buf)
}

fn writable(dir: &Path, existing: &Path) -> Finding {
    let probe = existing.join(format!(".greendot-doctor-{}", std::process::id()));
    let made = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&probe);
    match made.and_then(|_| std::fs::remove_file(&probe)) {
        Ok(()) => Finding::new(
            Verdict::Ok,
            "data folder",
            format!("{} can be written", dir.display()),
        ),
        Err(error) => Finding::new(
            Verdict::Fail,
            "data folder",
            format!(
                "{}: {error}; give this user the folder, or set --data-dir",
                existing.display()
            ),
        ),
    }
}

/// The store's files that can not be opened as the server opens them: another user's, perhaps.
fn store_files(dir: &Path) -> Vec<Finding> {
    let opened = STORE_FILES.map(|name| {
        let path = dir.join(name);
        let opened = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path);
        (path, opened)
    });
    let faults = opened.into_iter().filter_map(|(path, opened)| {
        let error = opened
            .err()
            .filter(|error| error.kind() != std::io::ErrorKind::NotFound)?;
        let detail = format!(
            "{}: {error}; it must be a file of the user who runs the server",
            path.display()
        );
        Some(Finding::new(Verdict::Fail, "store", detail))
    });
    faults.collect()
}

/// Whether a running server holds the store's lock, which is on users.log; None if there is no
/// store yet.
fn locked(dir: &Path) -> Option<Finding> {
    let path = dir.join(STORE_FILES[0]);
    let file = std::fs::File::open(&path).ok()?;
    Some(match file.try_lock_shared() {
        Ok(()) => Finding::new(Verdict::Ok, "lock", "no other process has the store open"),
        Err(_) => {
            let detail = format!(
                "{} is locked: a server is running on this folder",
                path.display()
            );
            Finding::new(Verdict::Warn, "lock", detail)
        }
    })
}

/// Two 8-byte files and a log of ids of 16 bytes with 16 of framing, for all users that may come.
fn space(config: &Config, free_bytes: u64) -> Finding {
    let needed = u64::from(config.users_max) * (8 + 8 + 32);
    let mib = |bytes: u64| bytes >> 20;
    if free_bytes >= needed {
        return Finding::new(
            Verdict::Ok,
            "free space",
            format!("{} MiB", mib(free_bytes)),
        );
    }
    let detail = format!(
        "{} MiB are less than the some {} MiB that --users-max {} may come to; free some, or lower \
         it",
        mib(free_bytes),
        mib(needed),
        config.users_max
    );
    Finding::new(
        if free_bytes < 64 << 20 {
            Verdict::Fail
        } else {
            Verdict::Warn
        },
        "free space",
        detail,
    )
}

fn file_system(path: &Path) -> Finding {
    let subject = "file system";
    let Ok(stat) = rustix::fs::statfs(path) else {
        return Finding::new(
            Verdict::Warn,
            subject,
            format!("{}: unknown", path.display()),
        );
    };
    // Magic numbers of statfs(2). Mapped files and locks are what a network file system does worst.
    match stat.f_type as u64 {
        0x6969 | 0xff53_4d42 | 0xfe53_4d42 | 0x517b => Finding::new(
            Verdict::Fail,
            subject,
            "a network file system, on which mapped files and locks can not be relied on; use a \
             local disk",
        ),
        0x0102_1994 | 0x8584_58f6 => Finding::new(
            Verdict::Warn,
            subject,
            "in memory: everything is forgotten when the machine restarts; use a disk",
        ),
        _ if copies_on_write(path) => Finding::new(
            Verdict::Warn,
            subject,
            "copy-on-write: when it is full, the server can be killed by a beat; use ext4 or XFS, \
             or watch the free space",
        ),
        magic => Finding::new(Verdict::Ok, subject, format!("local (type {magic:#x})")),
    }
}

/// The wall clock as the kernel knows it: set at all, and kept by somebody.
fn clock() -> Finding {
    let seconds = clock_gettime(ClockId::Realtime).tv_sec;
    if seconds < CLOCK_FLOOR_S {
        let detail = "the wall clock stands before 2024; set it, or every device's beat will be \
                      refused as stale";
        return Finding::new(Verdict::Fail, "clock", detail);
    }
    let synchronised = Path::new("/run/systemd/timesync/synchronized").exists()
        || ["/run/chrony", "/run/ntpd.pid", "/var/run/chronyd.pid"]
            .iter()
            .any(|path| Path::new(path).exists());
    if synchronised {
        Finding::new(Verdict::Ok, "clock", "set, and kept by a time service")
    } else {
        let detail = "no sign of a time service; run chrony or systemd-timesyncd, or devices' \
                      beats may be refused as stale";
        Finding::new(Verdict::Warn, "clock", detail)
    }
}

/// Whether a server is where the environment says; beats are never answered, so of them only that
/// the name is known. A server may be down for good reasons: that is no fault of the machine's.
fn server(endpoint: &Endpoint) -> Finding {
    let subject = endpoint.port().variable();
    let found = endpoint.resolve().and_then(|addresses| {
        if endpoint.port() == Port::Udp {
            return Ok(format!("beats go to {}", addresses[0]));
        }
        let url = format!("{}/readyz", endpoint.base());
        let answer = agent(TIMEOUT, endpoint.trust()?.as_ref()).get(&url).call();
        answer
            .map(|answer| format!("{} answers with {}", url, answer.status().as_u16()))
            .map_err(|error| format!("{endpoint}: {error}; start a server there, or set {subject}"))
    });
    match found {
        Ok(detail) => Finding::new(Verdict::Ok, subject, detail),
        Err(why) => Finding::new(Verdict::Warn, subject, why),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::tools::endpoint::Said;

    fn config(dir: &Path) -> Config {
        let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        Config {
            data_dir: dir.into(),
            http: any,
            udp: any,
            ..Config::default()
        }
    }

    #[test]
    fn a_folder_that_can_be_made_is_fine_and_is_not_made() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("a/b");
        let findings = folder(&config(&dir));
        assert_eq!(findings[0].verdict, Verdict::Ok, "{findings:?}");
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_in_the_way_fails() {
        let parent = tempfile::tempdir().unwrap();
        std::fs::write(parent.path().join("f"), "").unwrap();
        let findings = folder(&config(&parent.path().join("f")));
        assert_eq!(
            (findings[0].verdict, findings[0].subject),
            (Verdict::Fail, "data folder")
        );
    }

    #[test]
    fn a_key_file_that_serve_would_refuse_fails() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        assert_eq!(key(&config).verdict, Verdict::Ok, "it is made");
        let path = dir.path().join("fleet.key");
        config.key_file = Some(path.clone());
        assert_eq!(key(&config).verdict, Verdict::Fail, "a named one is not");
        let mode =
            |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        std::fs::write(&path, "ab".repeat(32)).unwrap();
        mode(0o600);
        assert_eq!(key(&config).verdict, Verdict::Ok);
        mode(0o640);
        assert_eq!(key(&config).verdict, Verdict::Ok, "its group may");
        mode(0o644);
        assert_eq!(key(&config).verdict, Verdict::Fail);
        mode(0o600);
        std::fs::write(&path, "no key").unwrap();
        assert_eq!(key(&config).verdict, Verdict::Fail);
    }

    #[test]
    fn a_store_that_can_not_be_opened_fails() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(store_files(dir.path()), []);
        std::fs::write(dir.path().join("users.log"), "").unwrap();
        assert_eq!(store_files(dir.path()), []);
        // What the superuser may not open either.
        let path = dir.path().join("stamps.map");
        std::fs::create_dir(&path).unwrap();
        let found = store_files(dir.path());
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].verdict, found[0].subject),
            (Verdict::Fail, "store")
        );
        assert!(
            found[0].detail.starts_with(&path.display().to_string()),
            "{found:?}"
        );
    }

    #[test]
    fn a_running_server_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(locked(dir.path()), None);
        let file = std::fs::File::create(dir.path().join("users.log")).unwrap();
        assert_eq!(locked(dir.path()).unwrap().verdict, Verdict::Ok);
        file.lock().unwrap();
        assert_eq!(locked(dir.path()).unwrap().verdict, Verdict::Warn);

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = config(dir.path());
        assert_eq!(addresses(&config).verdict, Verdict::Ok);
        config.http = listener.local_addr().unwrap();
        assert_eq!(addresses(&config).verdict, Verdict::Warn);
        config.http = ([192, 0, 2, 1], 0).into();
        assert_eq!(addresses(&config).verdict, Verdict::Fail);
    }

    #[test]
    fn space_is_for_all_users_that_may_come() {
        let config = Config {
            users_max: 1 << 24,
            ..Config::default()
        };
        assert_eq!(space(&config, 768 << 20).verdict, Verdict::Ok);
        assert_eq!(space(&config, 767 << 20).verdict, Verdict::Warn);
        assert_eq!(space(&config, 1 << 20).verdict, Verdict::Fail);
    }

    #[test]
    fn a_server_that_the_environment_names_is_asked() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let named =
            |kind, text: &str| server(&Endpoint::parse(text, kind, Said::Variable).unwrap());
        let answers = std::thread::spawn(move || {
            let (mut conn, _) = listener.accept().unwrap();
            conn.write_all(b"HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n")
                .unwrap();
            let _ = conn.read(&mut [0; 4_096]);
        });
        let found = named(Port::Http, &format!("localhost:{port}"));
        assert_eq!(
            (found.verdict, found.subject),
            (Verdict::Ok, "GREENDOT_URL")
        );
        assert!(
            found.detail.ends_with("/readyz answers with 503"),
            "{found:?}"
        );
        answers.join().unwrap();
        let found = named(Port::Http, &format!("localhost:{port}"));
        assert_eq!(found.verdict, Verdict::Warn);
        let begins = format!("localhost:{port} (GREENDOT_URL): ");
        assert!(found.detail.starts_with(&begins), "{found:?}");
        assert!(found.detail.ends_with("or set GREENDOT_URL"), "{found:?}");
        assert_eq!(
            named(Port::Udp, "127.0.0.1:9").detail,
            "beats go to 127.0.0.1:9"
        );
    }

    #[test]
    fn the_report_has_a_line_per_check() {
        let dir = tempfile::tempdir().unwrap();
        let (report, _) = run(&config(dir.path()), &Question::default());
        assert!(report.lines().count() >= 8, "{report}");
        assert!(report.lines().all(|line| {
            ["OK   ", "WARN ", "FAIL "]
                .iter()
                .any(|verdict| line.starts_with(verdict))
        }));
    }

    #[test]
    fn so_many_streams_end_in_lines_to_paste_and_in_a_report_for_programs() {
        let dir = tempfile::tempdir().unwrap();
        let mut question = Question {
            streams: Some(1_000_000_000),
            ..Question::default()
        };
        let mut config = config(dir.path());
        config.shards = Some(2);
        let (report, fit) = run(&config, &question);
        assert!(!fit, "{report}");
        assert!(report.contains("\nFAIL memory "), "{report}");
        assert!(
            report.contains(
                "\nThis machine does not hold 1000000000 streams, which take 4173278 MiB."
            ),
            "{report}"
        );
        assert!(
            report.ends_with("\n  greendot serve --conns-max 525000000\n"),
            "{report}"
        );
        question.json = true;
        let (report, _) = run(&config, &question);
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert_eq!(report["fit"], false);
        assert_eq!(report["streams"], 1_000_000_000);
        assert_eq!(report["conns_max"], 525_000_000);
        assert_eq!(report["memory_bytes"], 4_376_000_000_000_u64);
        let lines = report["lines"].as_array().unwrap();
        assert_eq!(
            lines.last().unwrap(),
            "greendot serve --conns-max 525000000"
        );
        question.streams = Some(10);
        let (report, _) = run(&config, &question);
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let findings = report["findings"].as_array().unwrap();
        let memory = findings.iter().find(|found| found["subject"] == "memory");
        assert_eq!(memory.unwrap()["verdict"], "ok");
    }
}
