//! `greendot beat`: real beat datagrams from the command line.
//!
//! Owns the splitting of users over datagrams and the order of their times. The format is
//! `wire::beat`'s.

use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use crate::time::{Clock, Mono, Unix};
use crate::tools::endpoint::Endpoint;
use crate::tools::key_check::{KeyCheck, Word};
use crate::tools::{key, read_enough};
use crate::wire::User;
use crate::wire::beat::{DeviceKey, FleetKey, Writer};

/// What `greendot beat` was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Who is alive.
    pub users: Vec<String>,
    /// Time between two beats, in ms; None: one beat.
    pub every_ms: Option<u64>,
    /// Most beats; None: until interrupted.
    pub count: Option<u64>,
    pub leave: bool,
    /// Where the server receives.
    pub udp: Endpoint,
    /// Where it listens for HTTP, if that is known.
    pub http: Option<Endpoint>,
    /// File whose first key signs.
    pub key_file: PathBuf,
    /// File with a device's key, which signs in its place.
    pub device_key_file: Option<PathBuf>,
}

/// What signs.
enum Signer {
    Fleet(FleetKey),
    Device(DeviceKey),
}

/// Sends as asked, one line on `out` per beat.
///
/// Errors: a sentence for the terminal: no key, no such address, nothing could be sent, or the node
/// refuses the key.
pub fn run(options: &Options, clock: &Clock, out: &mut dyn Write) -> Result<(), String> {
    let mut users = parse_users(&options.users)?;
    let (socket, to) = connect(&options.udp)?;
    let (signer, mut key_check) = signer(options)?;
    if let Signer::Device(key) = &signer {
        if users.iter().any(|user| *user != key.user()) {
            let own = key.user().as_str();
            return Err(format!("the device's key beats for {own:?} alone"));
        }
        users = vec![key.user()];
    }
    let mut times = Times::default();
    let mut sent: u64 = 0;
    let mut due = clock.now().mono;
    loop {
        let now = clock.now();
        if now.mono < due {
            std::thread::sleep(Duration::from_micros(due.micros_since(now.mono)));
            continue;
        }
        let sent_at = times.next(now.unix);
        let datagrams = match &signer {
            Signer::Fleet(key) => datagrams(&users, options.leave, sent_at, key),
            Signer::Device(key) => vec![key.datagram(options.leave, sent_at)],
        };
        let delivered = send_all(&socket, &datagrams, &options.udp);
        match (&delivered, options.every_ms) {
            // A fleet's devices keep beating while the server restarts.
            (Err(why), Some(_)) => {
                tell(why);
            }
            (Err(_), None) => return delivered,
            (Ok(()), _) => {
                let verb = if options.leave { "leave" } else { "beat" };
                let line = format!(
                    "{verb} {} sent_at={} to={} datagrams={}",
                    users
                        .iter()
                        .map(|user| user.as_str())
                        .collect::<Vec<_>>()
                        .join(" "),
                    sent_at.ms(),
                    to,
                    datagrams.len()
                );
                if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush()) {
                    return read_enough(&error);
                }
                let word = key_check.as_mut().and_then(|check| check.look(now.mono));
                match (word, options.every_ms) {
                    (Some(Word::Refused(why)), None) => return Err(why),
                    (word, _) => word.iter().for_each(|word| tell(word.text())),
                }
            }
        }
        sent += 1;
        match options.every_ms {
            Some(every_ms) if options.count.is_none_or(|count| sent < count) => {
                due = next_due(due, every_ms, now.mono)
            }
            _ => return Ok(()),
        }
    }
}

/// What signs, and what asks a node whether it takes that: nobody can ask so for a device.
fn signer(options: &Options) -> Result<(Signer, Option<KeyCheck>), String> {
    let Some(path) = &options.device_key_file else {
        let key = key::read(&options.key_file)?.signing().clone();
        let (http, key_file) = (options.http.clone(), options.key_file.clone());
        let key_check = KeyCheck::new(http, key_file, key.clone());
        return Ok((Signer::Fleet(key), Some(key_check)));
    };
    let shown = path.display();
    let text = std::fs::read(path)
        .map_err(|error| format!("{shown}: the key file can not be read: {error}"))?;
    let (key, _) = DeviceKey::read(&text).ok_or_else(|| {
        format!("{shown}: no device's key; write there what POST /v1/device-key answers")
    })?;
    Ok((Signer::Device(key), None))
}

/// What goes wrong while it goes on; nor does it end because nobody reads that.
fn tell(what: &str) {
    let _ = writeln!(std::io::stderr(), "greendot: {what}");
}

/// When the next beat is due, after one that was due at `due` and sent `now`. Those that were slept
/// through (SIGSTOP, a suspend) are not owed.
fn next_due(due: Mono, every_ms: u64, now: Mono) -> Mono {
    let next = due.plus_ms(every_ms);
    if next > now {
        next
    } else {
        now.plus_ms(every_ms)
    }
}

/// All users, or the first that is none.
pub(crate) fn parse_users(users: &[String]) -> Result<Vec<User<'_>>, String> {
    users
        .iter()
        .map(|user| {
            User::parse(user.as_bytes()).map_err(|fault| format!("{user:?}: {}", fault.explain()))
        })
        .collect()
}

/// The sender's times: each later than the one before, even where two beats fall into one
/// millisecond or the clock steps back, for a beat that is not newer than a goodbye does not undo
/// it.
#[derive(Default)]
struct Times {
    last_ms: u64,
}

impl Times {
    fn next(&mut self, now: Unix) -> Unix {
        self.last_ms = now.ms().max(self.last_ms + 1);
        Unix::from_ms(self.last_ms)
    }
}

/// As few datagrams as hold all users.
fn datagrams(users: &[User<'_>], leave: bool, sent_at: Unix, key: &FleetKey) -> Vec<Vec<u8>> {
    let mut sealed = Vec::new();
    let mut writer = Writer::new(leave, sent_at, key);
    for &user in users {
        if !writer.push(user) {
            sealed.push(std::mem::replace(&mut writer, Writer::new(leave, sent_at, key)).seal(key));
            assert!(writer.push(user), "an empty datagram has room for any user");
        }
    }
    sealed.push(writer.seal(key));
    sealed
}

/// A socket that sends to the first address there is, and that address.
fn connect(endpoint: &Endpoint) -> Result<(UdpSocket, SocketAddr), String> {
    let to = endpoint.resolve()?[0];
    let any: SocketAddr = if to.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    let connected = UdpSocket::bind(any).and_then(|socket| socket.connect(to).map(|()| socket));
    let socket =
        connected.map_err(|error| format!("{endpoint}: no socket to send from: {error}"))?;
    Ok((socket, to))
}

fn send_all(socket: &UdpSocket, datagrams: &[Vec<u8>], to: &Endpoint) -> Result<(), String> {
    for datagram in datagrams {
        let sent = socket.send(datagram).map(|_| ());
        // Beats are never answered, but a host on which nobody receives says so (ICMP port
        // unreachable).
        let told = sent.and_then(|()| {
            socket
                .take_error()
                .and_then(|error| error.map_or(Ok(()), Err))
        });
        told.map_err(|error| match error.kind() {
            std::io::ErrorKind::ConnectionRefused => {
                format!("{to}: nobody receives datagrams there; is `greendot serve` running?")
            }
            _ => format!("{to}: {error}"),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::endpoint::{Port, Said};
    use crate::wire::beat::{self, Keys};

    fn keys() -> Keys {
        Keys::parse(&"ab".repeat(32)).unwrap()
    }

    #[test]
    fn times_only_grow() {
        let mut times = Times::default();
        let given = [5, 5, 3, 9].map(|ms| times.next(Unix::from_ms(ms)).ms());
        assert_eq!(given, [5, 6, 7, 9]);
    }

    #[test]
    fn beats_keep_their_rhythm_and_make_up_for_none() {
        let at = |ms: u64| Mono::default().plus_ms(ms);
        assert_eq!(next_due(at(1_000), 300, at(1_000)), at(1_300));
        assert_eq!(next_due(at(1_000), 300, at(1_299)), at(1_300));
        assert_eq!(next_due(at(1_000), 300, at(9_000)), at(9_300));
    }

    #[test]
    fn every_user_is_in_one_datagram() {
        let names: Vec<String> = (0..200).map(|n| format!("{n:0>100}")).collect();
        let users = parse_users(&names).unwrap();
        let keys = keys();
        let sent_at = Unix::from_ms(1_764_009_600_000);
        let datagrams = datagrams(&users, true, sent_at, keys.signing());
        assert_eq!(datagrams.len(), 200_usize.div_ceil((1_400 - 32) / 101));
        let mut opened = Vec::new();
        for datagram in &datagrams {
            let beats = beat::open(datagram, &keys, sent_at, 0).unwrap();
            assert!(beats.flags.is_leave() && beats.sent_at == sent_at);
            opened.extend(beats.users().map(|user| user.as_str().to_owned()));
        }
        assert_eq!(opened, names);
    }

    #[test]
    fn sends_count_beats_and_prints_each() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = receiver.local_addr().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let key_file = dir.path().join("fleet.key");
        std::fs::write(&key_file, "ab".repeat(32)).unwrap();
        let mut options = Options {
            users: vec!["bob".into()],
            every_ms: Some(1),
            count: Some(3),
            leave: false,
            udp: Endpoint::parse(&to.to_string(), Port::Udp, Said::Flag).unwrap(),
            http: None,
            key_file,
            device_key_file: None,
        };
        let mut out = Vec::new();
        let clock = Clock::new();
        run(&options, &clock, &mut out).unwrap();
        let mut last = Unix::default();
        for _ in 0..3 {
            let mut buffer = [0; 2_000];
            let n = receiver.recv(&mut buffer).unwrap();
            let beats = beat::open(&buffer[..n], &keys(), clock.now().unix, 60_000).unwrap();
            assert!(beats.sent_at > last);
            last = beats.sent_at;
        }
        let out = String::from_utf8(out).unwrap();
        assert_eq!(
            out.lines()
                .filter(|line| line.starts_with("beat bob sent_at="))
                .count(),
            3,
            "{out}"
        );

        drop(receiver);
        (options.every_ms, options.count) = (None, None);
        let fault = run(&options, &clock, &mut Vec::new()).unwrap_err();
        assert_eq!(
            fault,
            format!("{to} (--udp): nobody receives datagrams there; is `greendot serve` running?")
        );
    }

    #[test]
    fn bad_users_are_named() {
        assert_eq!(
            parse_users(&["bob".into(), "a\u{7}".into()]).unwrap_err(),
            "\"a\\u{7}\": the user id holds a control character"
        );
    }
}
