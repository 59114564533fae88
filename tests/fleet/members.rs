//! A cluster of three primaries with a replica each.

use crate::redis::{Answer, Link, Server, wait_until};

const THIRDS: [[&str; 2]; 3] = [["0", "5460"], ["5461", "10922"], ["10923", "16383"]];

/// Three primaries, and the replica of each three places further. None: there is no redis-server.
pub(crate) fn cluster() -> Option<Vec<Server>> {
    let members: Vec<Server> = (0..6).map_while(|_| Server::start_member()).collect();
    if members.is_empty() {
        return None;
    }
    let mut links: Vec<Link> = members.iter().map(Server::link).collect();
    for (epoch, link) in (1..).zip(&mut links) {
        ok(link.ask(["CLUSTER", "SET-CONFIG-EPOCH", &format!("{epoch}")]));
    }
    for (link, [from, to]) in links.iter_mut().zip(THIRDS) {
        ok(link.ask(["CLUSTER", "ADDSLOTSRANGE", from, to]));
    }
    for member in &members[1..] {
        let [port, bus] = [member.port, member.bus].map(|port| port.unwrap().to_string());
        ok(links[0].ask(["CLUSTER", "MEET", "127.0.0.1", &port, &bus]));
    }
    for link in &mut links {
        wait_until("all know each other", || {
            info(link, &["CLUSTER", "INFO"]).contains("cluster_known_nodes:6")
        });
    }
    for at in 3..6 {
        let primary = id(&mut links[at - 3]);
        let link = &mut links[at];
        wait_until("a replica takes its place", || {
            link.ask(["CLUSTER", "REPLICATE", &primary]) == Answer::Word("OK".to_owned())
        });
        wait_until("a replica has everything", || {
            info(link, &["INFO", "replication"]).contains("master_link_status:up")
        });
        // Before its primary knows it, it is told nothing of what is published.
        let link = &mut links[at - 3];
        wait_until("a primary knows its replica", || {
            !link
                .ask(["CLUSTER", "REPLICAS", &primary])
                .list()
                .is_empty()
        });
    }
    for link in &mut links {
        wait_until("the cluster serves", || {
            info(link, &["CLUSTER", "INFO"]).contains("cluster_state:ok")
        });
    }
    links[..3].iter_mut().for_each(Link::load);
    Some(members)
}

pub(crate) fn ok(answer: Answer) {
    assert_eq!(answer, Answer::Word("OK".to_owned()));
}

pub(crate) fn id(link: &mut Link) -> String {
    info(link, &["CLUSTER", "MYID"])
}

pub(crate) fn info(link: &mut Link, words: &[&str]) -> String {
    String::from_utf8(link.ask(words).bytes()).unwrap()
}
