//! Is the database fit for a fleet, and is this node told what its fleet has?
//!
//! Owns what is asked of each primary and its judgement. Gives them the library, as a node does,
//! and changes nothing else.

use crate::bridge::{Options as Link, Survey};
use crate::config::Config;
use crate::engine::RESUME_SLACK_MS;
use crate::fleet::calls::Call;
use crate::fleet::library;
use crate::fleet::partition::CLUSTER_SLOTS;
use crate::fleet::traffic::Reply;
use crate::key_files;
use crate::limits::{Finding, Verdict};
use crate::redis_url::Password;
use crate::time::Clock;
use crate::tools::fleet::{layout, ms_of};
use crate::trust::Trust;

/// What a failover takes beside the time after which a primary is taken to have failed, in ms.
const FAILOVER_MS: u64 = 2_000;
/// Clocks that are further apart show in what users are told, in ms.
const CLOCKS_APART_MS_MAX: u64 = 1_000;

/// Fewer entries than a plan gives a bucket, or values shorter than ids mostly are, make a hash a
/// table: 93 bytes a user and not 33 (docs/PERFORMANCE.md).
const LISTPACK_MIN: [u64; 2] = [256, 64];
const LISTPACK: [&str; 2] = ["hash-max-listpack-entries", "hash-max-listpack-value"];

/// A key that nothing is kept at.
const KEY: &[u8] = b"gd:{doctor}";
/// What nodes send beside calls of functions, so that it changes nothing: an access list may forbid
/// each by itself. It is looked at before the server says that the key is another one's.
const ALSO_SENT: [&[&[u8]]; 10] = [
    &[b"GET", KEY],
    &[b"HMGET", KEY, b"f"],
    &[b"HGETALL", KEY],
    &[b"HSCAN", KEY, b"0"],
    &[b"HDEL", KEY, b"f"],
    &[b"XLEN", KEY],
    &[b"XRANGE", KEY, b"-", b"+", b"COUNT", b"1"],
    &[b"XADD", KEY, b"NOMKSTREAM", b"*", b"f", b"v"],
    &[b"SET", KEY, b"v", b"XX"],
    &[b"SPUBLISH", KEY, b""],
];

/// What one primary has said.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Facts {
    address: String,
    version: String,
    maxmemory_bytes: u64,
    policy: String,
    replicas: u64,
    /// None: it is no cluster, or does not tell.
    node_timeout_ms: Option<u64>,
    /// Up to which entries and bytes a hash is one piece. None: it does not tell.
    listpack: Option<[u64; 2]>,
    /// How far its clock is from this machine's.
    clock_apart_ms: u64,
    /// Why the library's functions can not be called.
    refuses: Option<String>,
}

/// What is to be said of the database; nothing without one.
pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let subject = "fleet database";
    let fail = |why: String| vec![Finding::new(Verdict::Fail, subject, why)];
    let Some(link) = link(config) else {
        return Vec::new();
    };
    let link = match link {
        Ok(link) => link,
        Err(why) => return fail(why),
    };
    let mut survey = match Survey::open(&link, true) {
        Ok(survey) => survey,
        Err(why) => return fail(format!("{}: {why}", link.servers)),
    };
    let mut findings = vec![coverage(&survey)];
    let count = survey.servers().len();
    let facts = (0..count).filter_map(|at| match facts(&mut survey, at) {
        Ok(facts) => Some(facts),
        Err(why) => {
            findings.push(Finding::new(Verdict::Fail, subject, why));
            None
        }
    });
    let facts: Vec<Facts> = facts.collect();
    findings.extend(judge(&facts, survey.cluster().is_some()));
    findings.extend(agreement(config, &mut survey));
    findings
}

/// How the database is reached. None: the node is in no fleet.
fn link(config: &Config) -> Option<Result<Link, String>> {
    let servers = config.fleet.servers.clone()?;
    let password = config
        .fleet
        .password_file
        .as_deref()
        .map(key_files::password);
    let trust = config.tls.authorities.as_deref().map(Trust::read);
    Some((|| {
        let password = password.transpose().map_err(|fault| fault.to_string())?;
        Ok(Link {
            servers,
            password: password.map(Password::new),
            trust: trust.transpose().map_err(|fault| fault.to_string())?,
        })
    })())
}

/// Whether all slots are somebody's.
fn coverage(survey: &Survey) -> Finding {
    let subject = "fleet database";
    let primaries = survey.servers().len();
    let Some(cluster) = survey.cluster() else {
        let detail = format!("a single primary, {}", survey.servers()[0].address);
        return Finding::new(Verdict::Ok, subject, detail);
    };
    let missing = u32::from(CLUSTER_SLOTS) - cluster.slots;
    match (cluster.is_ok, missing) {
        (true, 0) => Finding::new(
            Verdict::Ok,
            subject,
            format!("a cluster of {primaries} primaries that has all slots, and serves"),
        ),
        (_, 1..) => Finding::new(
            Verdict::Fail,
            subject,
            format!("{missing} slots are nobody's; give them to somebody: redis-cli --cluster fix"),
        ),
        (false, _) => Finding::new(
            Verdict::Fail,
            subject,
            "the cluster does not serve; see cluster_state of redis-cli cluster info",
        ),
    }
}

fn facts(survey: &mut Survey, at: usize) -> Result<Facts, String> {
    // A call without arguments is refused by the library, if the function may be called at all.
    let fence = library::function("fence");
    let [entries, value] = LISTPACK.map(str::as_bytes);
    let words: [&[&[u8]]; 6] = [
        &[b"INFO"],
        &[b"CONFIG", b"GET", b"cluster-node-timeout"],
        &[b"TIME"],
        &[b"FCALL", fence.as_bytes(), b"0"],
        &[b"ACL", b"WHOAMI"],
        &[b"CONFIG", b"GET", entries, value],
    ];
    let words = words.iter().chain(&ALSO_SENT);
    let calls: Vec<Call> = words
        .map(|words| Call::plain(words.iter().copied()))
        .collect();
    let clock = Clock::new();
    let began = clock.now();
    let replies = survey.ask(at, &calls)?;
    let took_ms = clock.now().mono.ms_since(began.mono);
    let address = survey.servers()[at].address.to_string();
    Ok(read(address, &replies, began.unix.ms(), took_ms))
}

/// `here_ms`: this machine's time before they were asked; `took_ms`: until they had answered.
fn read(address: String, replies: &[Reply], here_ms: u64, took_ms: u64) -> Facts {
    let text = |reply: &Reply| match reply {
        Reply::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        _ => String::new(),
    };
    let info = replies.first().map(text).unwrap_or_default();
    let line = |name: &str| {
        let lines = info.lines();
        let mut found = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        found.next().unwrap_or_default().to_owned()
    };
    let node_timeout_ms = match replies.get(1) {
        Some(Reply::List(pair)) => pair.get(1).and_then(|value| text(value).parse().ok()),
        _ => None,
    };
    let setting = |name: &str| match replies.get(5) {
        Some(Reply::List(pairs)) => {
            let mut pairs = pairs.chunks_exact(2);
            let found = pairs.find(|pair| text(&pair[0]) == name);
            found.and_then(|pair| text(&pair[1]).parse().ok())
        }
        _ => None,
    };
    let [entries, value] = LISTPACK.map(setting);
    let there_ms = match replies.get(2) {
        Some(Reply::List(time)) => ms_of(time),
        _ => None,
    };
    // It was read at some moment within.
    let apart = there_ms.map(|ms| ms.abs_diff(here_ms));
    let user = || replies.get(4).map(text).unwrap_or_default();
    let refuses = match replies.get(3) {
        Some(Reply::Error(error)) if error.starts_with("GDARGS") => {
            let forbidden = replies.iter().skip(6).find_map(|reply| match reply {
                Reply::Error(error) if error.starts_with("NOPERM") => Some(error),
                _ => None,
            });
            forbidden.map(|error| format!("{error} (user {})", user()))
        }
        Some(Reply::Error(error)) => Some(format!("{error} (user {})", user())),
        _ => Some("FCALL is answered by what is no answer of the library".to_owned()),
    };
    Facts {
        address,
        version: line("redis_version"),
        maxmemory_bytes: line("maxmemory").parse().unwrap_or_default(),
        policy: line("maxmemory_policy"),
        replicas: line("connected_slaves").parse().unwrap_or_default(),
        node_timeout_ms,
        listpack: entries.zip(value).map(|(entries, value)| [entries, value]),
        clock_apart_ms: apart.unwrap_or_default().saturating_sub(took_ms),
        refuses,
    }
}

/// The judgement of what primaries say, the worst of each kind.
fn judge(facts: &[Facts], is_cluster: bool) -> Vec<Finding> {
    let mut findings = vec![
        functions(facts),
        eviction(facts),
        memory(facts),
        replicas(facts),
        clocks(facts),
    ];
    if is_cluster {
        findings.push(node_timeout(facts));
    }
    findings
}

fn functions(facts: &[Facts]) -> Finding {
    let subject = "fleet functions";
    if let Some(bad) = facts.iter().find(|facts| facts.refuses.is_some()) {
        let why = bad.refuses.as_deref().unwrap_or_default();
        let detail = format!(
            "{}: {why}; allow it +@read +@write +@pubsub +@connection +@scripting +info +cluster \
             +time ~gd:* &gd:*",
            bad.address
        );
        return Finding::new(Verdict::Fail, subject, detail);
    }
    let mut versions: Vec<&str> = facts.iter().map(|facts| &*facts.version).collect();
    versions.sort_unstable();
    versions.dedup();
    let detail = format!(
        "version {}; the library is loaded and may be called",
        versions.join(", ")
    );
    Finding::new(Verdict::Ok, subject, detail)
}

fn eviction(facts: &[Facts]) -> Finding {
    let subject = "fleet eviction";
    let evicts = |facts: &&Facts| facts.maxmemory_bytes > 0 && facts.policy != "noeviction";
    let Some(bad) = facts.iter().find(evicts) else {
        let limited = facts
            .iter()
            .filter(|facts| facts.maxmemory_bytes > 0)
            .count();
        let detail = match limited {
            0 => "maxmemory is not set, so nothing is evicted; watch the machine's memory",
            _ => "maxmemory-policy is noeviction: a full server refuses writes and forgets nobody",
        };
        return Finding::new(Verdict::Ok, subject, detail);
    };
    let (verdict, lost) = match bad.policy.starts_with("volatile-") {
        true => (
            Verdict::Warn,
            "when it is full it forgets what has an expiry: revocations and spent tickets",
        ),
        false => (
            Verdict::Fail,
            "when it is full it deletes whole partitions: who is offline is forgotten, and all \
             nodes say again whom they have",
        ),
    };
    let detail = format!(
        "{}: maxmemory-policy is {}; {lost}. Set it to noeviction",
        bad.address, bad.policy
    );
    Finding::new(verdict, subject, detail)
}

fn memory(facts: &[Facts]) -> Finding {
    let subject = "fleet memory";
    for facts in facts {
        let limits = facts.listpack.into_iter().flatten();
        let named = limits.zip(LISTPACK).zip(LISTPACK_MIN);
        let low = named.into_iter().find(|((limit, _), least)| limit < least);
        if let Some(((limit, name), least)) = low {
            let detail = format!(
                "{}: {name} is {limit}, so users who are offline may take three times as much \
                 memory; set it to {least} at least",
                facts.address
            );
            return Finding::new(Verdict::Warn, subject, detail);
        }
    }
    let detail = match facts.iter().all(|facts| facts.listpack.is_some()) {
        true => "users who are offline are kept in one piece a bucket",
        false => {
            "whether users who are offline are kept in one piece can not be read; see \
             hash-max-listpack-entries of redis-cli config get"
        }
    };
    Finding::new(Verdict::Ok, subject, detail)
}

fn replicas(facts: &[Facts]) -> Finding {
    let subject = "fleet replicas";
    match facts.iter().find(|facts| facts.replicas == 0) {
        Some(bad) => Finding::new(
            Verdict::Warn,
            subject,
            format!(
                "{} has no replica: while it is away its users' states stand still",
                bad.address
            ),
        ),
        None => Finding::new(
            Verdict::Ok,
            subject,
            "each primary has one; greendot reads from none of them, so no lag shows",
        ),
    }
}

fn clocks(facts: &[Facts]) -> Finding {
    let subject = "fleet clocks";
    let worst = facts.iter().max_by_key(|facts| facts.clock_apart_ms);
    match worst.filter(|facts| facts.clock_apart_ms > CLOCKS_APART_MS_MAX) {
        Some(bad) => Finding::new(
            Verdict::Warn,
            subject,
            format!(
                "{} is {:.1} s apart from this machine; run chrony or systemd-timesyncd on both",
                bad.address,
                bad.clock_apart_ms as f64 / 1e3
            ),
        ),
        None => Finding::new(
            Verdict::Ok,
            subject,
            "those of all primaries agree with this one",
        ),
    }
}

fn node_timeout(facts: &[Facts]) -> Finding {
    let subject = "fleet failover";
    let known: Option<Vec<u64>> = facts.iter().map(|facts| facts.node_timeout_ms).collect();
    let longest_ms = known.and_then(|all| all.into_iter().max());
    let fits_ms = RESUME_SLACK_MS - FAILOVER_MS;
    match longest_ms {
        None => Finding::new(
            Verdict::Warn,
            subject,
            format!(
                "cluster-node-timeout can not be read; it should be at most {fits_ms} ms, 5000 say"
            ),
        ),
        Some(ms) if ms > fits_ms => Finding::new(
            Verdict::Warn,
            subject,
            format!(
                "cluster-node-timeout is {ms} ms: states stand still for that long when a primary \
                 fails, and streams that come back meanwhile are told everything anew; set it to \
                 5000"
            ),
        ),
        Some(ms) => Finding::new(
            Verdict::Ok,
            subject,
            format!(
                "cluster-node-timeout is {ms} ms: a primary that fails is replaced soon enough"
            ),
        ),
    }
}

/// Whether this node is told what its fleet was made with.
fn agreement(config: &Config, survey: &mut Survey) -> Option<Finding> {
    let subject = "fleet layout";
    // No node has joined it: this one will make it.
    let layout = layout(survey).ok()?;
    let here = [
        (
            "cluster-partitions",
            u64::from(config.fleet.partitions),
            u64::from(layout.partitions),
        ),
        (
            "cluster-buckets",
            u64::from(config.fleet.buckets),
            u64::from(layout.buckets),
        ),
        (
            "offline-after-ms",
            config.settings.offline_after_ms,
            u64::from(layout.offline_after_ms),
        ),
    ];
    let odd = here.iter().find(|(_, here, fleet)| here != fleet);
    Some(match odd {
        Some((flag, here, fleet)) => Finding::new(
            Verdict::Fail,
            subject,
            format!("--{flag} is {here} here and {fleet} in the fleet, so a node would not start"),
        ),
        None => Finding::new(
            Verdict::Ok,
            subject,
            "the fleet was made with what is set here",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            address: "10.0.0.1:6379".into(),
            version: "7.0.15".into(),
            policy: "noeviction".into(),
            replicas: 1,
            node_timeout_ms: Some(5_000),
            listpack: Some([512, 64]),
            ..Facts::default()
        }
    }

    fn verdicts(facts: &[Facts]) -> Vec<(&'static str, Verdict)> {
        let findings = judge(facts, true);
        findings
            .iter()
            .map(|it| (it.subject, it.verdict))
            .filter(|it| it.1 > Verdict::Ok)
            .collect()
    }

    #[test]
    fn what_a_primary_says_is_read() {
        let info = "# Server\r\nredis_version:7.0.15\r\nmaxmemory:1073741824\r\n\
                    maxmemory_human:1.00G\r\nmaxmemory_policy:allkeys-lru\r\n\
                    connected_slaves:2\r\n";
        let bytes = |text: &str| Reply::Bytes(text.into());
        let replies = [
            bytes(info),
            Reply::List(vec![bytes("cluster-node-timeout"), bytes("15000")]),
            Reply::List(vec![bytes("1764000001"), bytes("500000")]),
            Reply::Error("GDARGS gd1_fence takes one key and a head of 18 bytes".into()),
            bytes("green"),
            Reply::List([LISTPACK[1], "64", LISTPACK[0], "512"].map(bytes).into()),
        ];
        let read = |replies: &[Reply]| {
            super::read("10.0.0.1:6379".into(), replies, 1_764_000_000_000, 200)
        };
        let expected = Facts {
            maxmemory_bytes: 1 << 30,
            policy: "allkeys-lru".into(),
            replicas: 2,
            node_timeout_ms: Some(15_000),
            clock_apart_ms: 1_300,
            ..facts()
        };
        assert_eq!(read(&replies), expected);
        let mut refused = replies.clone();
        refused[1] = Reply::Error("NOPERM no permission to run config|get".into());
        refused[3] = Reply::Error("NOPERM no permission to run fcall".into());
        refused[5] = refused[1].clone();
        let found = read(&refused);
        assert_eq!((found.node_timeout_ms, found.listpack), (None, None));
        let why = "NOPERM no permission to run fcall (user green)";
        assert_eq!(found.refuses.as_deref(), Some(why));
        let moved = Reply::Error("MOVED 7 10.0.0.2:6379".into());
        let forbidden = Reply::Error("NOPERM no permission to run hscan".into());
        assert_eq!(
            read(&[&replies[..], &[moved, forbidden]].concat())
                .refuses
                .as_deref(),
            Some("NOPERM no permission to run hscan (user green)")
        );
    }

    #[test]
    fn each_fault_has_its_finding() {
        assert_eq!(verdicts(&[facts(), facts()]), []);
        use Verdict::{Fail, Warn};
        let evicting = |policy: &str| Facts {
            maxmemory_bytes: 1,
            policy: policy.into(),
            ..facts()
        };
        assert_eq!(verdicts(&[evicting("noeviction")]), []);
        for (bad, expected) in [
            (evicting("allkeys-lfu"), ("fleet eviction", Fail)),
            (evicting("volatile-ttl"), ("fleet eviction", Warn)),
            (
                Facts {
                    refuses: Some("NOPERM".into()),
                    ..facts()
                },
                ("fleet functions", Fail),
            ),
            (
                Facts {
                    replicas: 0,
                    ..facts()
                },
                ("fleet replicas", Warn),
            ),
            (
                Facts {
                    clock_apart_ms: 1_001,
                    ..facts()
                },
                ("fleet clocks", Warn),
            ),
            (
                Facts {
                    listpack: Some([128, 64]),
                    ..facts()
                },
                ("fleet memory", Warn),
            ),
            (
                Facts {
                    listpack: Some([512, 32]),
                    ..facts()
                },
                ("fleet memory", Warn),
            ),
            (
                Facts {
                    node_timeout_ms: None,
                    ..facts()
                },
                ("fleet failover", Warn),
            ),
            (
                Facts {
                    node_timeout_ms: Some(15_000),
                    ..facts()
                },
                ("fleet failover", Warn),
            ),
        ] {
            assert_eq!(verdicts(&[facts(), bad]), [expected]);
        }
        // What it does not tell is not held against it.
        let silent = Facts {
            listpack: None,
            ..facts()
        };
        assert_eq!(verdicts(&[silent]), []);
        // Without a limit nothing is evicted, whatever the policy.
        assert_eq!(
            verdicts(&[Facts {
                policy: "allkeys-lru".into(),
                ..facts()
            }]),
            []
        );
        assert!(
            judge(&[facts()], false)
                .iter()
                .all(|it| it.subject != "fleet failover")
        );
    }
}
