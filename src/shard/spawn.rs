//! Starts the shards' threads, gives them orders, waits for them.
//!
//! Owns the doors (a mailbox and what wakes its owner) and the rule that no thread of the process
//! dies alone: a server that serves some of its users is worse than one that a supervisor starts
//! again.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::Sender;
use mio::{Events, Poll, Waker};

use super::accept::{Acceptor, Tokens};
use super::datagrams::Datagrams;
use super::mailbox::Mailbox;
use super::refused::RefusedLines;
use super::tls::{Tls, TlsParts};
use super::{ADMIN, BEATS, Bound, EVENTS_MAX, HTTPS, LISTENER, Os, Outlet, WAKER, run};
use crate::engine::turn::{Budgets, Driver, Order};
use crate::engine::{EngineParts, Mail, ShardId};
use crate::logs;
use crate::time::Clock;

/// Exit status of a process one of whose threads panicked; Rust's own for its main thread.
const PANIC_STATUS: i32 = 101;

/// Where other threads reach a shard.
pub(super) struct Door {
    pub(super) mailbox: Mailbox<Mail>,
    waker: Waker,
}

impl Door {
    /// Posts a batch and wakes its reader if that sleeps. Returns how many pieces found no room.
    pub(super) fn post(&self, batch: &mut Vec<Mail>, bounced: &mut Vec<Mail>) -> u64 {
        let posted = self.mailbox.post(batch, bounced);
        if posted.wake {
            self.wake();
        }
        posted.refused
    }

    /// Posts one piece for a sender that counts nothing, and wakes its reader if that sleeps.
    fn tell(&self, mail: Mail) {
        if self.mailbox.tell(mail) {
            self.wake();
        }
    }

    fn order(&self, order: Order) {
        if self.mailbox.order(order) {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            // Its own next deadline, at most a sweep interval away, wakes it instead.
            tracing::error!(%error, "a sleeping shard could not be woken");
        }
    }
}

/// What a shard says when it has no connection left while it drains.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Drained {
    pub shard: ShardId,
    /// Whether it accepts nobody any more, so that none will come.
    pub closed: bool,
}

/// A shard's way to say so.
pub(super) struct DrainTeller {
    shard: ShardId,
    channel: Sender<Drained>,
}

impl DrainTeller {
    pub(super) fn tell(&self, order: Order) {
        let (shard, closed) = (self.shard, order >= Order::Close);
        if self.channel.send(Drained { shard, closed }).is_err() {
            tracing::debug!(shard, "drained after the wait for it had ended");
        }
    }
}

/// The running shards.
pub struct Shards {
    doors: Arc<[Door]>,
    threads: Vec<JoinHandle<()>>,
}

/// Starts one thread per set of parts, on the sockets of `bound`, each with its outlet; what speaks
/// TLS does so by `tls`. Each tells `drained` whenever no connection is left while it drains.
///
/// Errors: the kernel gives no thread or no poll; the process cannot serve then.
pub fn spawn(
    bound: Bound,
    parts: Vec<(EngineParts, Outlet)>,
    tls: Option<&TlsParts>,
    clock: &Arc<Clock>,
    drained: &Sender<Drained>,
) -> io::Result<Shards> {
    let (polls, doors) = doors_of(&parts)?;
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    // Fewer shards than cores share the machine with somebody, perhaps with another node that would
    // choose the same cores.
    let pinned = parts.len() == cores.len();
    let refused_lines = Arc::<RefusedLines>::default();
    let tokens = Tokens {
        http: LISTENER,
        https: HTTPS,
        admin: ADMIN,
    };
    let mut listeners = some(bound.listeners);
    let mut https_listeners = some(bound.https_listeners);
    let (mut admins, mut datagrams) = (some(bound.admins), some(bound.datagrams));
    let mut threads = Vec::with_capacity(parts.len());
    for ((parts, outbound), poll) in parts.into_iter().zip(polls) {
        let id = parts.shard;
        let own = [
            listeners.next().flatten(),
            https_listeners.next().flatten(),
            admins.next().flatten(),
        ];
        let acceptor = Acceptor::new(own, poll.registry(), &tokens)?;
        let datagrams = datagrams.next().flatten();
        let datagrams = datagrams
            .map(|socket| Datagrams::new(socket, poll.registry(), BEATS))
            .transpose()?;
        let core = if pinned {
            cores.get(usize::from(id)).copied()
        } else {
            None
        };
        let (clock, doors) = (Arc::clone(clock), Arc::clone(&doors));
        let refused_lines = Arc::clone(&refused_lines);
        let tls = tls.cloned();
        let on_drained = DrainTeller {
            shard: id,
            channel: drained.clone(),
        };
        let thread = vital_thread(format!("shard-{id}"), move || {
            if let Some(core) = core
                && !core_affinity::set_for_current(core)
            {
                tracing::warn!(
                    shard = id,
                    core = core.id,
                    "could not be pinned to its core"
                );
            }
            let budgets = Budgets::of(&parts.settings.load());
            let user_timeout = Duration::from_millis(parts.settings.load().write_stall_max_ms);
            // Made here, on the core that will use its memory.
            let driver = Driver::new(parts, budgets);
            let os = Os {
                id,
                poll,
                events: Events::with_capacity(EVENTS_MAX),
                clock,
                acceptor: Some(acceptor),
                tls: tls.map(Tls::new),
                came_at: None,
                datagrams,
                refused_lines,
                user_timeout,
                doors,
                outbound,
                on_drained,
            };
            run(driver, os)
        })?;
        threads.push(thread);
    }
    Ok(Shards { doors, threads })
}

/// What there is for each shard, or for none.
fn some<T>(of_each: Vec<T>) -> impl Iterator<Item = Option<T>> {
    let none = std::iter::repeat_with(|| None);
    of_each.into_iter().map(Some).chain(none)
}

/// A poll for each shard, and the door that wakes it.
fn doors_of(parts: &[(EngineParts, Outlet)]) -> io::Result<(Vec<Poll>, Arc<[Door]>)> {
    let mut polls = Vec::with_capacity(parts.len());
    let mut doors = Vec::with_capacity(parts.len());
    for (parts, _) in parts {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let settings = parts.settings.load();
        doors.push(Door {
            mailbox: Mailbox::new(settings.mailbox_max, settings.mailbox_bytes_max),
            waker,
        });
        polls.push(poll);
    }
    Ok((polls, doors.into()))
}

/// Posts mail to all shards.
#[derive(Clone)]
pub struct Teller {
    doors: Arc<[Door]>,
}

impl Teller {
    /// Posts a copy to each. A full mailbox becomes a resync.
    pub fn tell(&self, mail: &Mail) {
        self.doors.iter().for_each(|door| door.tell(mail.clone()));
    }

    /// Has each begin a turn, if it sleeps, although there is nothing for it.
    pub fn wake(&self) {
        self.doors.iter().for_each(Door::wake);
    }

    /// Posts it to one of them.
    pub fn tell_one(&self, shard: ShardId, mail: Mail) {
        self.doors[usize::from(shard)].tell(mail);
    }
}

impl Shards {
    /// For threads that are no shards.
    pub fn teller(&self) -> Teller {
        Teller {
            doors: Arc::clone(&self.doors),
        }
    }

    /// Begins the graceful shutdown of every shard; all streams end now if `at_once`. Connections
    /// are accepted all the same, and told.
    pub fn drain(&self, at_once: bool) {
        let order = if at_once {
            Order::DrainAtOnce
        } else {
            Order::Drain
        };
        self.doors.iter().for_each(|door| door.order(order));
    }

    /// Has every shard accept nobody any more: none may go on, for the kernel spreads those who
    /// come over the shards that listen.
    pub fn close(&self) {
        self.doors.iter().for_each(|door| door.order(Order::Close));
    }

    /// Ends every shard's loop, closing what is still open, and waits for the threads.
    pub fn stop(self) {
        self.doors.iter().for_each(|door| door.order(Order::Stop));
        for thread in self.threads {
            // A thread that panicked has ended the process before it could be joined.
            thread
                .join()
                .expect("a vital thread returns or ends the process");
        }
    }
}

/// Runs `work` on a thread without which the process is of no use: if it fails or panics, that is
/// logged and the process exits, with 1 or 101. What was accepted is in the mapped files.
pub fn vital_thread(
    name: String,
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.clone())
        .spawn(move || {
            match catch_unwind(AssertUnwindSafe(work)) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => end_process(1, || {
                    tracing::error!(thread = name, %error, "failed; the server cannot go on");
                }),
                // The panic's own message and place have been logged by the hook.
                Err(_) => end_process(PANIC_STATUS, || {
                    tracing::error!(thread = name, "panicked; the server cannot go on");
                }),
            }
        })
}

/// Ends the process once `say` has said why, and also if that panics.
fn end_process(status: i32, say: impl FnOnce()) {
    struct End(i32);
    impl Drop for End {
        fn drop(&mut self) {
            std::process::exit(self.0);
        }
    }
    let _end = End(status);
    say();
    logs::finish();
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};

    use crossbeam::channel::unbounded;

    use super::super::{BindOptions, bind};
    use super::*;
    use crate::auth::{Keyring, Revoked};
    use crate::engine::settings::Settings;
    use crate::engine::{Operators, Role};
    use crate::metrics::Board;
    use crate::presence::{Presence, StoreOptions};
    use crate::wire::beat::{FleetKey, Keys};

    const SHARDS: u16 = 3;

    fn ask(http: SocketAddr, target: &str) -> TcpStream {
        let mut client = TcpStream::connect(http).unwrap();
        write!(client, "GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        client
    }

    /// Reads until `end` has come, or the end.
    fn read_until(client: &mut TcpStream, end: &str) -> String {
        let (mut text, mut buffer) = (String::new(), [0; 4_096]);
        while !text.contains(end) {
            match client.read(&mut buffer).unwrap() {
                0 => break,
                n => text.push_str(std::str::from_utf8(&buffer[..n]).unwrap()),
            }
        }
        text
    }

    #[test]
    fn shards_serve_tell_each_other_drain_and_stop() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(Clock::new());
        let now = clock.now();
        let settings = Arc::new(Settings {
            drain_ms: 50,
            ..Settings::default()
        });
        let store = StoreOptions {
            dir: dir.path().to_owned(),
            users_max: 10_000,
            offline_after_ms: settings.offline_after_ms,
            restart_grace_ms: settings.restart_grace_ms,
            shards: SHARDS,
            memory: crate::presence::MemoryChoice::Off,
            boot_id: [1; 16],
        };
        let presence = Arc::new(Presence::open(&store, now).unwrap().0);
        let keyrings = Keyring::of_fleet(Keys::single(FleetKey::new([7; 32]))).shared();
        let board = Arc::new(Board::new(usize::from(SHARDS)));
        let parts = |shard| EngineParts {
            settings: Arc::clone(&settings).into(),
            shard,
            shards: SHARDS,
            role: Role::All,
            operators: Operators::default(),
            presence: Arc::clone(&presence),
            heard: Arc::clone(&presence),
            keyrings: Arc::clone(&keyrings),
            revoked: Arc::new(Revoked::new(1_000, 86_400_000)),
            secret: [2; 32],
            seed: u64::from(shard),
            mirrors: 0,
            has_webhooks: false,
            homes: crate::engine::Homes::default(),
            name: None,
            board: Arc::clone(&board),
            now,
        };
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let options = BindOptions {
            http: any,
            https: None,
            admin: None,
            udp: Some(any),
            shards: SHARDS,
            backlog: 128,
            udp_buffer_bytes: 65_536,
            write_stall_max_ms: 30_000,
        };
        let bound = bind(&options).unwrap();
        let http = bound.http;
        let (sender, drained) = unbounded();
        let outlet =
            || -> Outlet { Box::new(|_| unreachable!("a node of its own has nobody to send to")) };
        let parts = (0..SHARDS).map(|shard| (parts(shard), outlet())).collect();
        let shards = spawn(bound, parts, None, &clock, &sender).unwrap();

        // Twelve watchers, which the kernel spreads over the shards, and a publisher on one of
        // them.
        let mut watchers: Vec<_> = (0..12).map(|_| ask(http, "/v1/stream?watch=bob")).collect();
        for watcher in &mut watchers {
            assert!(read_until(watcher, "event: snapshot").starts_with("HTTP/1.1 200 OK\r\n"));
        }
        let mut publisher = ask(http, "/v1/stream?user=bob");
        for watcher in &mut watchers {
            assert!(read_until(watcher, "\"online\"").contains("event: presence"));
        }

        shards.drain(false);
        for client in watchers.iter_mut().chain([&mut publisher]) {
            assert!(read_until(client, "nothing: until the end").contains("event: goodbye"));
        }
        let who = |closed| {
            let told = drained.iter().filter(|told| told.closed == closed);
            let mut ids: Vec<_> = told.map(|told| told.shard).take(SHARDS.into()).collect();
            ids.sort_unstable();
            ids
        };
        assert_eq!(who(false), [0, 1, 2]);
        let probed = read_until(&mut ask(http, "/readyz"), "nothing: until the end");
        assert!(probed.starts_with("HTTP/1.1 503 "), "{probed}");
        shards.close();
        assert_eq!(who(true), [0, 1, 2]);
        assert!(TcpStream::connect(http).is_err(), "nobody listens");
        shards.stop();
    }
}
