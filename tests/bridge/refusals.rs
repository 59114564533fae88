//! Servers that refuse, or are none: what an operator reads.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use greendot::bridge::Options;
use greendot::fleet::traffic::{Failed, Reply};
use greendot::redis_url::{Password, Servers};
use greendot::trust::Trust;
use rcgen::{CertificateParams, KeyPair};

use crate::ear::{Ear, Outcome, options, url, words};
use crate::members::{info, ok};
use crate::redis::{Server, free_port, wait_until};

#[test]
fn passwords_and_access_lists() {
    let Some(server) = Server::start_on_port(&["--requirepass", "s3cret"]) else {
        return;
    };
    let port = server.port.unwrap();
    let address = format!("127.0.0.1:{port}");
    let mut admin = server.link();
    admin.ask(["AUTH", "s3cret"]);
    admin.ask([
        "ACL", "SETUSER", "blind", "on", ">s3cret", "~*", "&*", "+@all", "-info",
    ]);
    admin.ask([
        "ACL",
        "SETUSER",
        "mute",
        "on",
        ">s3cret",
        "~*",
        "&*",
        "+@all",
        "-function",
    ]);
    admin.ask([
        "ACL",
        "SETUSER",
        "deaf",
        "on",
        ">s3cret",
        "~*",
        "+@all",
        "resetchannels",
    ]);
    let noperm = "the user's access list does not allow what a fleet needs (NOPERM this user has \
                  no permissions to run the";
    for (login, expected) in [
        (
            "",
            format!("{address}: it asks for a password, and none is given (NOAUTH "),
        ),
        (
            ":wrong@",
            format!(
                "{address}: it knows no such user with this password (WRONGPASS invalid \
                 username-password pair or user is disabled.)"
            ),
        ),
        (
            "nobody:s3cret@",
            format!("{address}: it knows no such user with this password ("),
        ),
        ("blind:s3cret@", format!("{address}: {noperm} 'info'")),
    ] {
        let mut ear = Ear::new(&format!("redis://{login}127.0.0.1:{port}"), 64);
        let fault = ear.fault();
        assert!(fault.starts_with(&expected), "{fault}");
        assert!(
            !fault.contains("wrong@") && !fault.contains("s3cret"),
            "{fault}"
        );
        let outcome = ear.ask_partition(ear.partition(0), words(&["PING"]));
        assert_eq!(outcome, Outcome::Failed(Failed::Unreached));
    }
    for (user, expected) in [
        (
            "mute",
            "the user's access list does not allow what a fleet needs (NOPERM ",
        ),
        (
            "deaf",
            "the user's access list does not allow what a fleet needs (NOPERM ",
        ),
    ] {
        let mut ear = Ear::new(&format!("redis://{user}:s3cret@127.0.0.1:{port}"), 64);
        let fault_of = |ear: &Ear| {
            ear.status()
                .0
                .first()
                .and_then(|server| server.fault.clone())
        };
        ear.until("there is a fault", |ear| fault_of(ear).is_some());
        let fault = fault_of(&ear).unwrap();
        assert!(fault.starts_with(expected), "{user}: {fault}");
        assert!(ear.heard_at.iter().all(Option::is_none) || user == "mute");
    }
    // A password by file stands in for the one of the URL.
    let mut options = options(&format!("redis://:wrong@127.0.0.1:{port}"));
    options.password = Some(Password::new("s3cret".into()));
    let mut ear = Ear::with(options, 64);
    ear.until_all_heard();
    ear.expect_all_to_be_heard("in");
}

#[test]
fn who_is_no_redis() {
    let port = free_port();
    let mut ear = Ear::new(&url(Some(port)), 64);
    let refused = format!("127.0.0.1:{port}: Connection refused (os error 111)");
    assert_eq!(ear.fault(), refused);
    drop(ear);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answering = std::thread::spawn(move || {
        // Whoever comes first gets the answer; later ones are let go.
        for (mut stream, answer) in listener.incoming().flatten().zip(ANSWERS) {
            let mut bytes = [0; 1_024];
            let _ = stream.read(&mut bytes);
            let _ = stream.write_all(answer.as_bytes());
            let _ = stream.read(&mut bytes);
        }
    });
    const ANSWERS: [&str; 3] = [
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "%2\r\n+version\r\n+6.2.14\r\n+mode\r\n+standalone\r\n",
        "-ERR unknown command `HELLO`, with args beginning with: `3`\r\n",
    ];
    for expected in [
        "it answers with what is no RESP3",
        "it is version \"6.2.14\"; a fleet needs Redis 7.0, Valkey 7.2 or newer",
        "it speaks no RESP3; a fleet needs Redis 7.0 or newer (ERR unknown command `HELLO`, with \
         args beginning with: `3`)",
    ] {
        let mut ear = Ear::new(&url(Some(port)), 64);
        assert_eq!(ear.fault(), format!("127.0.0.1:{port}: {expected}"));
    }
    drop(answering);
}

#[test]
fn servers_that_are_down_do_not_hide_one_that_is_up() {
    let Some(server) = Server::start_on_port(&[]) else {
        return;
    };
    let url = format!(
        "redis://127.0.0.1:{},localhost:{}",
        free_port(),
        server.port.unwrap()
    );
    let mut ear = Ear::new(&url, 64);
    ear.until_all_heard();
    assert_eq!(ear.status().1, None);
}

/// A certificate of `127.0.0.1` that is its own authority, and its key.
fn issue(folder: &Path, name: &str) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    std::fs::write(folder.join(name).with_extension("pem"), certificate).unwrap();
    std::fs::write(folder.join(name).with_extension("key"), key.serialize_pem()).unwrap();
}

/// What a server is told that has certificate `server`.
fn tls_args(folder: &Path, port: u16) -> Vec<String> {
    let path = |name| folder.join(name).to_str().unwrap().to_owned();
    let flags = [
        ("--tls-port", port.to_string()),
        ("--tls-cert-file", path("server.pem")),
        ("--tls-key-file", path("server.key")),
        ("--tls-ca-cert-file", path("server.pem")),
        ("--tls-auth-clients", "no".to_owned()),
    ];
    let words = flags
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value]);
    words.collect()
}

/// What docs/CLUSTER.md says that a user of an access list needs.
const ACCESS: &str = "+@read +@write +@pubsub +@connection +@scripting +info +cluster +time ~gd:* \
                      &gd:*";

#[test]
fn a_cluster_by_tls_takes_a_user_of_an_access_list() {
    let folder = tempfile::tempdir().unwrap();
    issue(folder.path(), "server");
    let ports = RefCell::new(Vec::new());
    let start = || {
        let server = Server::start_member_with(|| {
            let port = free_port();
            ports.borrow_mut().push(port);
            let mut args = tls_args(folder.path(), port);
            args.extend(["--tls-cluster", "yes"].map(str::to_owned));
            args
        });
        let port = ports.borrow().last().copied();
        server.zip(port)
    };
    let (Some((first, first_port)), Some((second, second_port))) = (start(), start()) else {
        return;
    };
    let mut links = [first.link(), second.link()];
    for (link, [from, to]) in links.iter_mut().zip([["0", "8191"], ["8192", "16383"]]) {
        ok(link.ask(["CLUSTER", "ADDSLOTSRANGE", from, to]));
        let user = ["ACL", "SETUSER", "green", "on", ">s3cret/x@y"].into_iter();
        ok(link.ask(user.chain(ACCESS.split(' '))));
    }
    let (port, bus) = (second_port.to_string(), second.bus.unwrap().to_string());
    ok(links[0].ask(["CLUSTER", "MEET", "127.0.0.1", &port, &bus]));
    for link in &mut links {
        wait_until("the cluster serves", || {
            info(link, &["CLUSTER", "INFO"]).contains("cluster_state:ok")
        });
    }
    let authority = folder.path().join("server.pem");
    let mut ear = Ear::with(
        Options {
            servers: Servers::parse(&format!("rediss://green@127.0.0.1:{first_port}")).unwrap(),
            password: Some(Password::new("s3cret/x@y".into())),
            trust: Some(Trust::read(&authority).unwrap()),
        },
        64,
    );
    ear.until_all_heard();
    ear.expect_all_to_be_heard("sealed");
    let heard: BTreeSet<_> = ear.heard_at.iter().flatten().collect();
    assert_eq!(heard.len(), 2, "{heard:?}");
    for at in [0, 63] {
        let partition = ear.partition(at);
        let hot = ear.partitions.hot_key(partition);
        let outcome = ear.ask_partition(partition, words(&["HINCRBY", &hot, "count", "1"]));
        assert!(matches!(outcome, Outcome::Answered(_, replies) if replies == [Reply::Number(1)]));
    }
}

#[test]
fn by_tls_whoever_is_believed() {
    let Some(there) = Command::new("redis-server").arg("--version").output().ok() else {
        return;
    };
    drop(there);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    issue(folder.path(), "server");
    issue(folder.path(), "other");
    let tls_port = free_port();
    let args = tls_args(folder.path(), tls_port);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let server = Server::start_on_port(&args);
    let sealed = |authority: Option<&str>| Options {
        servers: Servers::parse(&format!("rediss://127.0.0.1:{tls_port}")).unwrap(),
        password: None,
        trust: authority.map(|name| Trust::read(path(name).as_ref()).unwrap()),
    };
    let mut ear = Ear::with(sealed(Some("server.pem")), 1_024);
    ear.until_all_heard();
    ear.expect_all_to_be_heard("sealed");
    let partition = ear.partition(0);
    let hot = ear.partitions.hot_key(partition);
    let long = "x".repeat(1 << 20);
    let outcome = ear.ask_partition(partition, words(&["HSET", &hot, "long", &long]));
    assert!(matches!(outcome, Outcome::Answered(_, replies) if replies == [Reply::Number(1)]));
    let outcome = ear.ask_partition(partition, words(&["HGET", &hot, "long"]));
    let expected = [Reply::Bytes(long.into_bytes())];
    assert!(matches!(outcome, Outcome::Answered(_, replies) if replies == expected));

    for (authority, expected) in [
        (Some("other.pem"), "invalid peer certificate: "),
        (
            None,
            "nobody is believed there; name the authorities of rediss:// with --tls-ca",
        ),
    ] {
        let mut ear = Ear::with(sealed(authority), 64);
        let fault = ear.fault();
        let expected = format!("127.0.0.1:{tls_port}: {expected}");
        assert!(fault.starts_with(&expected), "{fault}");
    }
    drop(server);
}
