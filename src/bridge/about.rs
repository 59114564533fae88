//! What servers say about themselves and about each other.
//!
//! Owns the reading of `HELLO`, `INFO` and `CLUSTER`. Never asks: what is read here was asked for
//! elsewhere.

use crate::fleet::partition::CLUSTER_SLOTS;
use crate::fleet::traffic::Reply;
use crate::redis_url::Address;

/// The first version that has functions and channels of slots.
const VERSION_MIN: u32 = 7;

/// How servers are put together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// One, or one with replicas.
    Single,
    /// A cluster.
    Cluster,
}

/// Which data a server has: another process, or the same with another's data, is another one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Identity {
    /// Of the process.
    run: String,
    /// Of what it replicates to others. A replica has its primary's, and takes a new one when it
    /// is promoted; so whoever was a replica in between has another one than before.
    pub(super) replication: String,
}

/// What a server says in `INFO replication`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Replication {
    pub(super) is_primary: bool,
    pub(super) id: String,
    /// Whom it replicates, and who replicates it.
    pub(super) others: Vec<Address>,
}

/// A view of a cluster, as one of its servers has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct View {
    /// Grows with every change of who has which slots.
    pub(super) epoch: u64,
    /// Who says so believes that the cluster serves.
    pub(super) is_ok: bool,
    /// First and last slot, and whose they are; in order.
    pub(super) ranges: Vec<(u16, u16, Address)>,
}

impl Identity {
    pub(super) fn new(run: &str, replication: &str) -> Identity {
        Identity {
            run: run.to_owned(),
            replication: replication.to_owned(),
        }
    }
}

/// What the answer to `HELLO` says.
///
/// Errors: greendot does not work with it; the text says why.
pub(super) fn kind_of(hello: &Reply) -> Result<Kind, String> {
    let field = |name: &str| -> Option<&[u8]> {
        let Reply::List(pairs) = hello else {
            return None;
        };
        let (pairs, _) = pairs.as_chunks::<2>();
        let found = pairs
            .iter()
            .find(|pair| bytes(&pair[0]) == Some(name.as_bytes()));
        found.and_then(|pair| bytes(&pair[1]))
    };
    let version = String::from_utf8_lossy(field("version").unwrap_or_default()).into_owned();
    let major = version
        .split('.')
        .next()
        .and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < VERSION_MIN) {
        return Err(format!(
            "it is version {version:?}; a fleet needs Redis 7.0, Valkey 7.2 or newer"
        ));
    }
    match field("mode") {
        Some(b"standalone") => Ok(Kind::Single),
        Some(b"cluster") => Ok(Kind::Cluster),
        Some(b"sentinel") => Err("it is a Sentinel; name the servers that have the data".into()),
        _ => Err("it does not say which mode it runs in".into()),
    }
}

/// The value of a line of `INFO`.
pub(super) fn info<'i>(text: &'i str, name: &str) -> Option<&'i str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim_end)
}

/// Reads `INFO replication`. None: it is something else.
pub(super) fn replication_of(text: &str) -> Option<Replication> {
    let mut others = Vec::new();
    if let (Some(host), Some(port)) = (info(text, "master_host"), info(text, "master_port")) {
        others.extend(address_of(host, port));
    }
    for line in text.lines().filter(|line| line.starts_with("slave")) {
        let part = |name: &str| {
            let (_, values) = line.split_once(':')?;
            let mut values = values.trim_end().split(',');
            values.find_map(|value| value.strip_prefix(name)?.strip_prefix('='))
        };
        if let (Some(host), Some(port)) = (part("ip"), part("port")) {
            others.extend(address_of(host, port));
        }
    }
    Some(Replication {
        is_primary: info(text, "role")? == "master",
        id: info(text, "master_replid")?.to_owned(),
        others,
    })
}

/// Reads `CLUSTER INFO` and `CLUSTER SLOTS`, which the server at `asked` has answered. None: they
/// are something else.
pub(super) fn view_of(info_text: &Reply, slots: &Reply, asked: &Address) -> Option<View> {
    let text = std::str::from_utf8(bytes(info_text)?).ok()?;
    let Reply::List(rows) = slots else {
        return None;
    };
    let mut ranges = Vec::new();
    for row in rows {
        let Reply::List(row) = row else {
            return None;
        };
        let [
            Reply::Number(first),
            Reply::Number(last),
            Reply::List(primary),
            ..,
        ] = &row[..]
        else {
            return None;
        };
        let [host, Reply::Number(port), ..] = &primary[..] else {
            return None;
        };
        // Who does not know its own address leaves it out.
        let host = match host {
            Reply::Nil => &asked.host,
            host => match std::str::from_utf8(bytes(host)?).ok()? {
                "" => &asked.host,
                // A name is wanted and not set: nobody can be reached by that.
                "?" => continue,
                host => host,
            },
        };
        let slot = |number: &i64| {
            u16::try_from(*number)
                .ok()
                .filter(|slot| *slot < CLUSTER_SLOTS)
        };
        let address = Address {
            host: host.to_owned(),
            port: u16::try_from(*port).ok()?,
        };
        ranges.push((slot(first)?, slot(last)?, address));
    }
    ranges.sort_unstable();
    Some(View {
        epoch: info(text, "cluster_current_epoch")?.parse().ok()?,
        is_ok: info(text, "cluster_state")? == "ok",
        ranges,
    })
}

/// Where a redirection leads: `MOVED 17 127.0.0.1:7000`, or `ASK`. None: it is none.
pub(super) fn redirected(error: &str, asked: &Address) -> Option<Address> {
    let mut words = error.split(' ');
    if !["MOVED", "ASK"].contains(&words.next()?) {
        return None;
    }
    let (host, port) = words.nth(1)?.rsplit_once(':')?;
    let host = match host {
        "" => &asked.host,
        "?" => return None,
        host => host,
    };
    address_of(host, port)
}

/// Nothing was done, and the server serves this key, or any, to nobody for now.
pub(super) fn is_elsewhere(error: &str) -> bool {
    let code = error.split(' ').next().unwrap_or_default();
    [
        "MOVED",
        "ASK",
        "CLUSTERDOWN",
        "LOADING",
        "READONLY",
        "MASTERDOWN",
        "TRYAGAIN",
        "BUSY",
    ]
    .contains(&code)
}

pub(super) fn bytes(reply: &Reply) -> Option<&[u8]> {
    match reply {
        Reply::Bytes(bytes) => Some(bytes),
        _ => None,
    }
}

fn address_of(host: &str, port: &str) -> Option<Address> {
    let port = port.parse().ok().filter(|&port| port != 0)?;
    (!host.is_empty()).then(|| Address {
        host: host.to_owned(),
        port,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Reply {
        Reply::Bytes(text.into())
    }

    fn address(host: &str, port: u16) -> Address {
        Address {
            host: host.to_owned(),
            port,
        }
    }

    #[test]
    fn greetings() {
        let hello = |version: &str, mode: &str| {
            kind_of(&Reply::List(vec![
                text("server"),
                text("redis"),
                text("version"),
                text(version),
                text("id"),
                Reply::Number(7),
                text("mode"),
                text(mode),
                text("modules"),
                Reply::List(vec![]),
            ]))
        };
        assert_eq!(hello("7.0.15", "standalone"), Ok(Kind::Single));
        assert_eq!(hello("10.1", "cluster"), Ok(Kind::Cluster));
        for (version, mode, fault) in [
            (
                "6.2.14",
                "cluster",
                "it is version \"6.2.14\"; a fleet needs Redis 7.0, Valkey 7.2 or newer",
            ),
            (
                "",
                "cluster",
                "it is version \"\"; a fleet needs Redis 7.0, Valkey 7.2 or newer",
            ),
            (
                "7.0.0",
                "sentinel",
                "it is a Sentinel; name the servers that have the data",
            ),
            ("7.0.0", "", "it does not say which mode it runs in"),
        ] {
            assert_eq!(hello(version, mode), Err(fault.to_owned()));
        }
        assert!(kind_of(&Reply::Nil).is_err());
    }

    #[test]
    fn replication() {
        let primary = "# Replication\r\nrole:master\r\nconnected_slaves:2\r\n\
                       slave0:ip=10.0.0.2,port=7001,state=online,offset=1,lag=0\r\n\
                       slave1:ip=::1,port=7002,state=online,offset=1,lag=1\r\n\
                       master_failover_state:no-failover\r\nmaster_replid:abc\r\n";
        let expected = Replication {
            is_primary: true,
            id: "abc".into(),
            others: vec![address("10.0.0.2", 7_001), address("::1", 7_002)],
        };
        assert_eq!(replication_of(primary), Some(expected));
        let replica = "# Replication\r\nrole:slave\r\nmaster_host:10.0.0.1\r\n\
                       master_port:7000\r\nslave_read_only:1\r\nmaster_replid:abc\r\n";
        let expected = Replication {
            is_primary: false,
            id: "abc".into(),
            others: vec![address("10.0.0.1", 7_000)],
        };
        assert_eq!(replication_of(replica), Some(expected));
        assert_eq!(replication_of("role:master\r\n"), None);
        assert_eq!(replication_of(""), None);
    }

    #[test]
    fn views() {
        let about = text("cluster_enabled:1\r\ncluster_state:ok\r\ncluster_current_epoch:6\r\n");
        let row = |first, last, host: Reply, port| {
            let primary = Reply::List(vec![
                host,
                Reply::Number(port),
                text("id"),
                Reply::List(vec![]),
            ]);
            let replica = Reply::List(vec![text("b"), Reply::Number(9), text("id")]);
            Reply::List(vec![
                Reply::Number(first),
                Reply::Number(last),
                primary,
                replica,
            ])
        };
        let asked = address("asked", 1);
        let slots = Reply::List(vec![
            row(8_000, 16_383, text("a"), 2),
            row(0, 7_000, text(""), 1),
            row(7_001, 7_001, Reply::Nil, 3),
            row(7_002, 7_002, text("?"), 3),
        ]);
        let expected = View {
            epoch: 6,
            is_ok: true,
            ranges: vec![
                (0, 7_000, address("asked", 1)),
                (7_001, 7_001, address("asked", 3)),
                (8_000, 16_383, address("a", 2)),
            ],
        };
        assert_eq!(view_of(&about, &slots, &asked), Some(expected));
        for bad in [
            Reply::Nil,
            Reply::List(vec![Reply::Nil]),
            Reply::List(vec![row(0, 16_384, text("a"), 1)]),
            Reply::List(vec![row(-1, 1, text("a"), 1)]),
            Reply::List(vec![row(0, 1, text("a"), 65_536)]),
        ] {
            assert_eq!(view_of(&about, &bad, &asked), None);
        }
        let down = text("cluster_state:fail\r\ncluster_current_epoch:7\r\n");
        let view = view_of(&down, &Reply::List(vec![]), &asked).unwrap();
        assert_eq!((view.is_ok, view.epoch, view.ranges.len()), (false, 7, 0));
        assert_eq!(view_of(&text("cluster_state:ok"), &slots, &asked), None);
    }

    #[test]
    fn redirections() {
        let asked = address("asked", 1);
        for (error, expected) in [
            ("MOVED 17 127.0.0.1:7000", Some(address("127.0.0.1", 7_000))),
            ("ASK 17 ::1:7000", Some(address("::1", 7_000))),
            ("MOVED 17 :7000", Some(address("asked", 7_000))),
            ("MOVED 17 ?:7000", None),
            ("MOVED 17 a:0", None),
            ("MOVED", None),
            ("CLUSTERDOWN 17 a:1", None),
        ] {
            assert_eq!(redirected(error, &asked), expected, "{error}");
        }
        for error in [
            "MOVED 1 a:1",
            "CLUSTERDOWN Hash slot not served",
            "LOADING Redis is",
        ] {
            assert!(is_elsewhere(error), "{error}");
        }
        for error in ["GDLATE 17", "ERR MOVED", "NOPERM no", ""] {
            assert!(!is_elsewhere(error), "{error}");
        }
    }
}
