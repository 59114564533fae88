//! An operator's look at a cluster: who is asked, and what is said when somebody does not answer.

use greendot::bridge::Survey;
use greendot::fleet::partition::{Partitions, key_slot};
use greendot::fleet::traffic::Reply;
use rustix::process::Signal;

use crate::ear::{options, url, words};
use crate::failing::signal;
use crate::members::{cluster, ok};
use crate::redis::wait_until;

#[test]
fn each_primary_of_a_cluster_is_asked() {
    let Some(members) = cluster() else {
        return;
    };
    // A replica knows who has what.
    let mut survey = Survey::open(&options(&url(members[5].port)), false).unwrap();
    let ports: Vec<u16> = survey
        .servers()
        .iter()
        .map(|server| server.address.port)
        .collect();
    let expected: Vec<u16> = members[..3]
        .iter()
        .filter_map(|member| member.port)
        .collect();
    assert_eq!(ports, expected);
    let cluster = survey.cluster().unwrap();
    assert_eq!((cluster.is_ok, cluster.slots), (true, 16_384));
    let partitions = Partitions::new(64).unwrap();
    for (at, server) in [(0, 0), (31, 1), (63, 2)] {
        let partition = partitions.all().nth(at).unwrap();
        assert_eq!(survey.server_of(partitions.slot(partition)), Some(server));
        let hot = partitions.hot_key(partition);
        let length = words(&["HLEN", &hot]);
        let calls = [length.clone(), words(&["CLUSTER", "KEYSLOT", &hot])];
        let answers = survey.ask(server, &calls).unwrap();
        let expected = i64::from(key_slot(hot.as_bytes()));
        assert_eq!(answers, [Reply::Number(0), Reply::Number(expected)]);
        // Asked of another, it is an answer as well.
        let answers = survey.ask((server + 1) % 3, &[length]).unwrap();
        assert!(
            matches!(&answers[0], Reply::Error(why) if why.starts_with("MOVED ")),
            "{answers:?}"
        );
    }

    // One stands still: it is named, and asked no more. The others answer.
    signal(&members[0], Signal::STOP);
    let ping = [words(&["PING"])];
    let why = survey.ask(0, &ping).unwrap_err();
    let at = format!("127.0.0.1:{}", expected[0]);
    assert_eq!(why, format!("{at}: no answer within 5 s"));
    assert_eq!(survey.ask(0, &ping).unwrap_err(), why);
    assert_eq!(
        survey.servers()[0].fault.as_deref(),
        Some("no answer within 5 s")
    );
    assert_eq!(
        survey.ask(1, &ping).unwrap(),
        [Reply::Bytes(b"PONG".into())]
    );
    signal(&members[0], Signal::CONT);
}

#[test]
fn slots_of_nobody_are_counted() {
    let Some(members) = cluster() else {
        return;
    };
    for member in &members {
        ok(member
            .link()
            .ask(["CONFIG", "SET", "cluster-require-full-coverage", "yes"]));
    }
    ok(members[0].link().ask(["CLUSTER", "DELSLOTS", "0", "1"]));
    let look = || Survey::open(&options(&url(members[0].port)), true).unwrap();
    wait_until("the cluster does not serve", || {
        !look().cluster().unwrap().is_ok
    });
    assert_eq!(look().cluster().unwrap().slots, 16_382);
    assert_eq!(look().server_of(1), None);
}
