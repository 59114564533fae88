use super::*;
use crate::config::nodes::{PresenceNode, RealtimeNode};

fn plenty() -> Found {
    Found {
        nofile_soft: Some(1_024),
        nofile_hard: Some(1 << 20),
        nr_open: Some(1 << 20),
        file_max: Some(u64::MAX),
        somaxconn: Some(4_096),
        rmem_max: Some(8 << 20),
        tcp_mem_pages: Some(1 << 20),
        port_range: Some((32_768, 60_999)),
        conntrack_max: None,
        memory_max: None,
        memory_available: Some(16 << 30),
        kernel: Some((6, 1)),
    }
}

fn bad(found: &Found) -> Vec<(Verdict, &'static str)> {
    let findings = judge(&Config::default(), 2, found);
    findings
        .iter()
        .filter(|finding| finding.verdict > Verdict::Ok)
        .map(|finding| (finding.verdict, finding.subject))
        .collect()
}

#[test]
fn plenty_is_enough() {
    assert_eq!(bad(&plenty()), []);
    assert_eq!(
        bad(&Found::default()),
        [],
        "what can not be read is not blamed"
    );
}

#[test]
fn each_limit_is_missed_alone() {
    let conntrack = Found {
        conntrack_max: Some(65_536),
        ..plenty()
    };
    assert_eq!(bad(&conntrack), [(Verdict::Warn, "nf_conntrack_max")]);
    assert_eq!(
        bad(&Found {
            somaxconn: Some(128),
            ..plenty()
        }),
        [(Verdict::Warn, "somaxconn")]
    );
    assert_eq!(
        bad(&Found {
            rmem_max: Some(212_992),
            ..plenty()
        }),
        [(Verdict::Warn, "rmem_max")]
    );
    assert_eq!(
        bad(&Found {
            tcp_mem_pages: Some(100_000),
            ..plenty()
        }),
        [(Verdict::Warn, "tcp_mem")]
    );
    assert_eq!(
        bad(&Found {
            file_max: Some(100_000),
            ..plenty()
        }),
        [(Verdict::Warn, "file-max")]
    );
    assert_eq!(
        bad(&Found {
            kernel: Some((4, 19)),
            ..plenty()
        }),
        [(Verdict::Warn, "kernel")]
    );
    assert_eq!(
        bad(&Found {
            kernel: Some((3, 8)),
            ..plenty()
        }),
        [(Verdict::Fail, "kernel")]
    );
    assert_eq!(
        bad(&Found {
            nofile_hard: Some(100),
            ..plenty()
        }),
        [(Verdict::Fail, "nofile")]
    );
}

#[test]
fn nofile_says_what_to_set() {
    let found = Found {
        nofile_hard: Some(4_096),
        nr_open: Some(100_000),
        ..plenty()
    };
    let findings = judge(&Config::default(), 2, &found);
    assert_eq!(
        findings[0].detail,
        "4096 file descriptors are fewer than the 200208 that 200000 connections need, so a shard \
         takes 1944 of them; set LimitNOFILE=200208 (systemd) or `ulimit -Hn 200208` after `sysctl \
         -w fs.nr_open=200208`, or lower --conns-max"
    );
}

/// 64 for the process; 8, 64 to refuse on and 16 a presence node for each shard; 2 a node.
#[test]
fn connections_leave_descriptors_for_the_rest() {
    let with = |presence: &[(&str, &str)], realtime: &[&str]| {
        let node = |(udp, http): &(&str, &str)| PresenceNode {
            udp: (*udp).into(),
            http: (*http).into(),
        };
        let http = |http: &&str| RealtimeNode {
            http: (*http).into(),
        };
        Config {
            presence_nodes: presence.iter().map(node).collect(),
            realtime_nodes: realtime.iter().map(http).collect(),
            ..Config::default()
        }
    };
    let alone = with(&[], &[]);
    assert_eq!(nofile_reserve(&alone, 1), 64 + 72);
    let mut tls = with(&[], &[]);
    tls.tls.https = Some(([127, 0, 0, 1], 0).into());
    tls.tls.handshakes_max = 1_000;
    assert_eq!(nofile_reserve(&tls, 2), 64 + 2 * (72 + 1_000));
    assert_eq!(nofile_reserve(&alone, 4), 64 + 4 * 72);
    let nodes = [("a:1", "http://a:2"), ("b:1", "http://b:2")];
    assert_eq!(
        nofile_reserve(&with(&nodes, &[]), 3),
        64 + 3 * (72 + 32) + 4
    );
    assert_eq!(
        nofile_reserve(&with(&[], &["http://a:2"]), 3),
        64 + 3 * 72 + 2
    );

    let enough = 100_000 * 2 + nofile_reserve(&alone, 2);
    for (nofile, conns) in [
        (None, 100_000),
        (Some(u64::MAX), 100_000),
        (Some(enough), 100_000),
        (Some(enough - 1), 99_999),
        (Some(1_024), (1_024 - 208) / 2),
        // Half of them at the most is held back, and one connection is always taken.
        (Some(256), 64),
        (Some(2), 1),
        (Some(0), 1),
    ] {
        assert_eq!(conns_max(&alone, 2, nofile), conns, "{nofile:?}");
    }
}

#[test]
fn what_is_not_taken_is_remarked() {
    let config = Config::default();
    assert_eq!(remark(&config, 2, &plenty()), "");
    assert_eq!(remark(&config, 2, &Found::default()), "");
    let few = Found {
        nofile_hard: Some(4_096),
        ..plenty()
    };
    assert_eq!(
        remark(&config, 2, &few),
        "# conns_max: 4096 file descriptors leave 1944 for each of 2 shards\n"
    );
}

#[test]
fn this_machine_can_be_read() {
    let found = Found::read();
    assert!(found.somaxconn.is_some() && found.kernel.is_some());
    raise_nofile().unwrap();
    let raised = getrlimit(Resource::Nofile);
    assert_eq!(raised.current, raised.maximum);
}

#[test]
fn a_million_streams_on_a_machine_of_another_size() {
    let found = Found {
        nofile_hard: Some(20_000),
        nr_open: Some(1 << 20),
        ..plenty()
    };
    let holding = Holding::judge(&Config::default(), 2, &found, 1_000_000);
    assert_eq!(holding.config.settings.conns_max, 525_000);
    assert_eq!(holding.memory_bytes, 1_000_000 * (4_200 + 160 + 16));
    assert!(!holding.fits());
    let of = |subject: &str| {
        let mut found = holding.findings.iter();
        found.find(|found| found.subject == subject).unwrap()
    };
    let nofile = of("nofile");
    assert_eq!(nofile.verdict, Verdict::Fail);
    assert_eq!(
        nofile.line.as_deref(),
        Some("sysctl -w fs.nr_open=1050208\nLimitNOFILE=1050208")
    );
    assert_eq!(
        of("memory").detail,
        "4173 MiB, 4376 bytes a stream with one watch, 16 more for each further; 16384 MiB are free"
    );
    assert_eq!(of("tcp_mem").verdict, Verdict::Warn);
    assert!(
        of("proxies")
            .detail
            .starts_with("a proxy in front needs 36 addresses")
    );
}

#[test]
fn memory_for_streams_is_what_is_free_or_what_the_group_allows() {
    let memory = |available, max| {
        let found = Found {
            memory_available: available,
            memory_max: max,
            ..plenty()
        };
        let holding = Holding::judge(&Config::default(), 2, &found, 100_000);
        let mut findings = holding.findings.into_iter();
        findings
            .find(|found| found.subject == "memory")
            .map(|found| found.verdict)
    };
    let needed = 100_000 * 4_376;
    assert_eq!(memory(Some(2 * needed), None), Some(Verdict::Ok));
    assert_eq!(memory(Some(needed + 1), None), Some(Verdict::Warn));
    assert_eq!(memory(Some(needed - 1), None), Some(Verdict::Fail));
    assert_eq!(
        memory(Some(2 * needed), Some(needed / 2)),
        Some(Verdict::Fail)
    );
    assert_eq!(memory(None, Some(2 * needed)), Some(Verdict::Ok));
    assert_eq!(memory(None, None), None);
}
