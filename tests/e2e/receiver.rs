//! A webhook's receiver: one that takes what it is told, or that is slow, lies, or is not there.
//!
//! Checks every signature that it is shown, by the secrets that its test knows.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use greendot::auth::WebhookSecrets;
use serde_json::Value;

use crate::harness::{Home, LOOK_INTERVAL, until};

/// A secret, and another.
pub(crate) const SECRETS: [&str; 2] = [
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
];

/// How it answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Manner {
    /// Well.
    Takes,
    /// Not at all, and keeps the connection.
    Hangs,
    /// By hanging up.
    HangsUp,
    /// With what is no HTTP.
    Babbles,
    /// With 200, a length, and less than that before it hangs up.
    BreaksOff,
    /// With 200 and a body that has no end.
    NeverEnds,
    /// With a head that comes byte by byte, and has no end.
    Trickles,
    /// With this status line and these fields.
    Says(String),
}

/// What it was told in one message.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    pub(crate) target: String,
    pub(crate) id: String,
    /// By how many secrets it is signed.
    pub(crate) signatures: usize,
    pub(crate) presence: Vec<Value>,
    /// How it was answered.
    pub(crate) manner: Manner,
}

struct Shared {
    manner: Manner,
    secrets: String,
    deliveries: Vec<Delivery>,
    conns: usize,
}

pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
}

impl Receiver {
    /// At an address of the home, on a port of its own.
    pub(crate) fn new(home: &Home) -> Receiver {
        Receiver::over(TcpListener::bind((home.ip(), 0)).expect("an address of our own"))
    }

    fn over(listener: TcpListener) -> Receiver {
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Mutex::new(Shared {
            manner: Manner::Takes,
            secrets: SECRETS[0].into(),
            deliveries: Vec::new(),
            conns: 0,
        }));
        let theirs = Arc::clone(&shared);
        // Ends with the process of the tests.
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let shared = Arc::clone(&theirs);
                shared.lock().expect("no holder panics").conns += 1;
                std::thread::spawn(move || serve(socket, &shared));
            }
        });
        Receiver { address, shared }
    }

    pub(crate) fn url(&self, target: &str) -> String {
        format!("http://{}{target}", self.address)
    }

    /// Flags of a server that tells it, with the secret of `hook.secret`.
    pub(crate) fn flags(&self, home: &Home) -> [String; 4] {
        home.keep("hook.secret", SECRETS[0]);
        [
            format!("--webhook={}", self.url("/hook")),
            "--webhook-secret-file=hook.secret".into(),
            "--webhook-private".into(),
            "--webhook-retry-max-ms=200".into(),
        ]
    }

    pub(crate) fn set(&self, manner: Manner) {
        self.shared.lock().expect("no holder panics").manner = manner;
    }

    /// From now on messages are signed by these.
    pub(crate) fn trust(&self, secrets: &str) {
        self.shared.lock().expect("no holder panics").secrets = secrets.into();
    }

    pub(crate) fn conns(&self) -> usize {
        self.shared.lock().expect("no holder panics").conns
    }

    /// What it was told so far, whatever it answered.
    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        let shared = self.shared.lock().expect("no holder panics");
        shared.deliveries.clone()
    }

    /// All that it was told, in order. What changes while the server begins may be told twice, by
    /// the change and by the walk over all states: here it is there once.
    pub(crate) fn records(&self) -> Vec<Value> {
        let mut records = Vec::new();
        for record in self.deliveries().into_iter().flat_map(|it| it.presence) {
            if !records.contains(&record) {
                records.push(record);
            }
        }
        records
    }

    /// By how many secrets the last message about a user was signed.
    pub(crate) fn signatures(&self, user: &str) -> Option<usize> {
        let deliveries = self.deliveries();
        let is_about = |it: &&Delivery| it.presence.iter().any(|record| record["user"] == user);
        let last = deliveries.iter().rev().find(is_about);
        last.map(|it| it.signatures)
    }

    /// How often it was told of a user.
    pub(crate) fn times_told(&self, user: &str) -> usize {
        let records = self.deliveries().into_iter().flat_map(|it| it.presence);
        records.filter(|record| record["user"] == user).count()
    }

    /// All that it was told of a user, in order: status and since.
    pub(crate) fn told(&self, user: &str) -> Vec<(String, u64)> {
        let mut told = Vec::new();
        for record in self.records().iter().filter(|it| it["user"] == user) {
            let status = record["status"].as_str().expect("a status").to_owned();
            told.push((status, record["since"].as_u64().expect("a time")));
        }
        let sinces: Vec<u64> = told.iter().map(|(_, since)| *since).collect();
        assert!(sinces.is_sorted(), "{user}: {told:?}");
        told
    }

    /// Waits until the last that it was told of a user is this.
    pub(crate) fn expect(&self, user: &str, status: &str) -> u64 {
        until(
            &format!("the receiver knows that {user} is {status}"),
            || {
                let told = self.told(user);
                let last = told.last().filter(|(last, _)| last == status);
                last.map(|(_, since)| *since)
            },
        )
    }

    /// Waits for another message that is answered so.
    pub(crate) fn expect_answered(&self, manner: &Manner) {
        until(&format!("a message is answered: {manner:?}"), || {
            let deliveries = self.deliveries();
            let last = deliveries.last();
            last.filter(|last| last.manner == *manner).map(|_| ())
        });
    }
}

/// Reads one message after the other, and answers each as it is to.
fn serve(mut socket: TcpStream, shared: &Mutex<Shared>) {
    let mut buffer = Vec::new();
    while let Some((head, body)) = read(&mut socket, &mut buffer) {
        let manner = {
            let mut shared = shared.lock().expect("no holder panics");
            let manner = shared.manner.clone();
            let delivery = checked(&head, &body, &shared.secrets, manner.clone());
            shared.deliveries.push(delivery);
            manner
        };
        if !answer(&mut socket, &manner) {
            return;
        }
    }
}

fn read(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    loop {
        let end = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8(buffer[..end].to_vec()).expect("a head is text");
            let length: usize = field(&head, "content-length").parse().expect("a length");
            if let Some(body) = buffer.get(end + 4..end + 4 + length) {
                let body = body.to_vec();
                buffer.drain(..end + 4 + length);
                return Some((head, body));
            }
        }
        let mut bytes = [0; 4_096];
        match socket.read(&mut bytes) {
            Ok(length @ 1..) => buffer.extend_from_slice(&bytes[..length]),
            _ => return None,
        }
    }
}

fn field<'h>(head: &'h str, name: &str) -> &'h str {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    let found = lines.find(|(field, _)| field.eq_ignore_ascii_case(name));
    found.unwrap_or_else(|| panic!("{name} in {head}")).1.trim()
}

fn checked(head: &str, body: &[u8], secrets: &str, manner: Manner) -> Delivery {
    let (id, timestamp) = (field(head, "webhook-id"), field(head, "webhook-timestamp"));
    let seconds: u64 = timestamp.parse().expect("Unix seconds");
    let secrets = WebhookSecrets::parse(secrets).expect("they are secrets");
    let signature = field(head, "webhook-signature");
    // Of a server that has not heard of the second secret yet.
    assert!(
        secrets.sign(id, seconds, body).starts_with(signature),
        "{head}"
    );
    assert_eq!(field(head, "content-type"), "application/json");
    let body: Value = serde_json::from_slice(body).expect("it is JSON");
    assert_eq!(
        (&body["version"], &body["type"]),
        (&1.into(), &"presence".into())
    );
    let mut words = head.split(' ');
    assert_eq!(words.next(), Some("POST"));
    Delivery {
        target: words.next().expect("a target").to_owned(),
        id: id.to_owned(),
        signatures: signature.split(' ').count(),
        presence: body["presence"].as_array().expect("a list").clone(),
        manner,
    }
}

/// False: the connection has ended.
fn answer(socket: &mut TcpStream, manner: &Manner) -> bool {
    let mut send = |bytes: &[u8]| socket.write_all(bytes).is_ok();
    match manner {
        Manner::Takes => return send(b"HTTP/1.1 204 No Content\r\n\r\n"),
        Manner::Says(words) => {
            let head = format!("HTTP/1.1 {words}\r\nContent-Length: 0\r\n\r\n");
            return send(head.as_bytes());
        }
        Manner::Hangs => {
            // Until the other side has had enough.
            let _ = socket.set_read_timeout(Some(Duration::from_secs(60)));
            let _ = socket.read(&mut [0]);
        }
        Manner::HangsUp => {}
        Manner::Babbles => drop(send(b"\x16\x03\x01 what is this?\r\n\r\n")),
        Manner::BreaksOff => drop(send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")),
        Manner::NeverEnds => {
            let begun = send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            let chunk = [b"3e8\r\n", &[b'x'; 1_000][..], b"\r\n"].concat();
            while begun && socket.write_all(&chunk).is_ok() {}
        }
        Manner::Trickles => {
            let begun = send(b"HTTP/1.1 200 OK\r\n");
            while begun && socket.write_all(b"A: b\r\n").is_ok() {
                std::thread::sleep(LOOK_INTERVAL);
            }
        }
    }
    false
}
