//! A link that is driven on a thread of its own, and a check of each event against those before it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use greendot::bridge::driver::{Core, Inbox, run};
use greendot::bridge::{Figures, Observer, Options, ServerStatus};
use greendot::fleet::calls::Call;
use greendot::fleet::partition::{Partition, Partitions};
use greendot::fleet::ticks::Ticks;
use greendot::fleet::traffic::{Command, Event, Failed, Reply, Server, Tag, To};
use greendot::redis_url::Servers;
use greendot::time::{Clock, Mono, Now};

/// Longest wait for anything. A failover takes the servers some seconds.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Ear {
    pub partitions: Arc<Partitions>,
    inbox: Arc<Inbox<Command>>,
    events: Receiver<Event>,
    observer: Observer,
    thread: Option<JoinHandle<()>>,
    next_tag: u64,
    /// From whom each partition is heard.
    pub heard_at: Vec<Option<Server>>,
    /// What was published, in order, and not looked at yet.
    pub messages: Vec<(Partition, Vec<u8>)>,
    /// What came of commands.
    outcomes: BTreeMap<Tag, Outcome>,
    /// Who is silent, in order.
    pub silent: Vec<Server>,
    /// Events of each kind, in order, since they were looked at: for what must come before what.
    pub log: Vec<Noted>,
}

/// An event without what it carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Noted {
    Subscribed(Server),
    Unsubscribed,
    Heard(Server),
    Answered(Server),
    Silent(Server),
}

/// What came of a command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Answered(Server, Vec<Reply>),
    Failed(Failed),
}

/// Hands everything on.
struct Wire {
    events: Sender<Event>,
    commands: VecDeque<Command>,
}

impl Core for Wire {
    type Mail = Command;

    fn handle_event(&mut self, event: Event, _: Now) {
        let _ = self.events.send(event);
    }

    fn handle_mail(&mut self, command: Command, _: Now) {
        self.commands.push_back(command);
    }

    fn handle_timeout(&mut self, _: Now) {
        panic!("nothing is due");
    }

    fn end_turn(&mut self, _: Now) {}

    fn handle_lost(&mut self, _: Now) {
        panic!("nothing is lost");
    }

    fn may_end(&mut self, _: Now) -> bool {
        true
    }

    fn fault(&self) -> Option<String> {
        None
    }

    fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    fn ticks(&self) -> Ticks {
        Ticks::from(Mono::default(), 1_000)
    }

    fn poll_timeout(&self) -> Mono {
        Mono::NEVER
    }
}

impl Ear {
    pub(crate) fn new(url: &str, partitions: u32) -> Ear {
        Ear::with(options(url), partitions)
    }

    pub(crate) fn with(options: Options, partitions: u32) -> Ear {
        let partitions = Arc::new(Partitions::new(partitions).unwrap());
        let inbox = Arc::new(Inbox::new(100_000));
        let (events, receiver) = channel();
        let (observers, observer) = channel();
        let wire = Wire {
            events,
            commands: VecDeque::new(),
        };
        let (its_inbox, its_partitions) = (Arc::clone(&inbox), Arc::clone(&partitions));
        let thread = std::thread::spawn(move || {
            let observe = |observer| observers.send(observer).unwrap();
            run(
                wire,
                options,
                its_partitions,
                &its_inbox,
                &Clock::new(),
                observe,
            )
            .unwrap();
        });
        Ear {
            heard_at: vec![None; partitions.count().into()],
            partitions,
            inbox,
            events: receiver,
            observer: observer.recv().unwrap(),
            thread: Some(thread),
            next_tag: 0,
            messages: Vec::new(),
            outcomes: BTreeMap::new(),
            silent: Vec::new(),
            log: Vec::new(),
        }
    }

    /// Takes events until something is so.
    pub(crate) fn until(&mut self, what: &str, mut is_so: impl FnMut(&Ear) -> bool) {
        let clock = Clock::new();
        let end = clock.now().mono.plus_ms(PATIENCE.as_millis() as u64);
        while !is_so(self) {
            if clock.now().mono >= end {
                let heard = self.heard_at.iter().flatten().count();
                panic!(
                    "{what}: not within {PATIENCE:?}; {heard} are heard; {:?}; {:?}",
                    self.observer.status(),
                    self.log.iter().rev().take(20).collect::<Vec<_>>()
                );
            }
            if let Ok(event) = self.events.recv_timeout(Duration::from_millis(20)) {
                self.note(event);
            }
        }
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Answered {
                tag,
                server,
                replies,
            } => {
                self.log.push(Noted::Answered(server));
                let outcome = Outcome::Answered(server, replies);
                assert!(self.outcomes.insert(tag, outcome).is_none());
            }
            Event::Failed { tag, why } => {
                assert!(self.outcomes.insert(tag, Outcome::Failed(why)).is_none());
            }
            Event::Subscribed { partition, server } => {
                self.log.push(Noted::Subscribed(server));
                let heard_at = &mut self.heard_at[partition.index()];
                assert_eq!(heard_at.replace(server), None, "{partition:?} twice");
            }
            Event::Unsubscribed { partition } => {
                self.log.push(Noted::Unsubscribed);
                let heard_at = self.heard_at[partition.index()].take();
                assert!(heard_at.is_some(), "{partition:?} was not heard");
            }
            Event::Published {
                partition,
                server,
                message,
            } => {
                assert_eq!(self.heard_at[partition.index()], Some(server));
                self.messages.push((partition, message));
            }
            Event::Heard { server, ago_ms } => {
                assert!(ago_ms < 10_000, "{ago_ms}");
                self.log.push(Noted::Heard(server));
            }
            Event::Silent { server } => {
                self.log.push(Noted::Silent(server));
                self.silent.push(server);
            }
        }
    }

    /// And commands are taken.
    pub(crate) fn until_all_heard(&mut self) {
        self.until("all partitions are heard", |ear| {
            let (servers, _) = ear.status();
            let mut used = servers.iter().filter(|server| server.partitions > 0);
            ear.heard_at.iter().all(Option::is_some) && used.all(|server| server.takes_commands)
        });
    }

    pub(crate) fn server_of(&self, partition: Partition) -> Option<Server> {
        self.heard_at[partition.index()]
    }

    pub(crate) fn send(&mut self, to: To, calls: Vec<Call>) -> Tag {
        self.next_tag += 1;
        let tag = Tag(self.next_tag);
        self.inbox.push(Command { tag, to, calls }).unwrap();
        tag
    }

    pub(crate) fn outcome(&mut self, tag: Tag) -> Outcome {
        self.until("a command has an outcome", |ear| {
            ear.outcomes.contains_key(&tag)
        });
        self.outcomes.remove(&tag).unwrap()
    }

    pub(crate) fn ask(&mut self, to: To, calls: Vec<Call>) -> Outcome {
        let tag = self.send(to, calls);
        self.outcome(tag)
    }

    pub(crate) fn ask_partition(&mut self, partition: Partition, call: Call) -> Outcome {
        self.ask(To::Partition(partition), vec![call])
    }

    /// What is published of each partition is heard, once.
    pub(crate) fn expect_all_to_be_heard(&mut self, text: &str) {
        self.messages.clear();
        let all: Vec<Partition> = self.partitions.all().collect();
        let mut left = all.clone();
        while !left.is_empty() {
            let sent: Vec<(Partition, Tag)> = left
                .iter()
                .map(|&partition| {
                    let hot = self.partitions.hot_key(partition);
                    let call = words(&["SPUBLISH", &hot, &format!("{text} {hot}")]);
                    (partition, self.send(To::Partition(partition), vec![call]))
                })
                .collect();
            left.clear();
            for (partition, tag) in sent {
                match self.outcome(tag) {
                    Outcome::Answered(..) => {}
                    // Who is heard may not take commands yet.
                    Outcome::Failed(why) => {
                        assert_ne!(why, Failed::Lost);
                        left.push(partition);
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            }
        }
        self.until("all messages are heard", |ear| {
            ear.messages.len() >= all.len()
        });
        let mut heard = std::mem::take(&mut self.messages);
        heard.sort_unstable();
        let expected: Vec<_> = all
            .iter()
            .map(|&partition| {
                let message = format!("{text} {}", self.partitions.hot_key(partition));
                (partition, message.into_bytes())
            })
            .collect();
        assert_eq!(heard, expected);
    }

    pub(crate) fn figures(&self) -> Figures {
        self.observer.figures()
    }

    pub(crate) fn status(&self) -> (Vec<ServerStatus>, Option<String>) {
        self.observer.status()
    }

    /// Why nobody is known, as soon as that is so.
    pub(crate) fn fault(&mut self) -> String {
        self.until("there is a fault", |ear| ear.status().1.is_some());
        self.status().1.unwrap()
    }

    pub(crate) fn partition(&self, index: usize) -> Partition {
        self.partitions.all().nth(index).unwrap()
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.inbox.close();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

pub(crate) fn options(url: &str) -> Options {
    Options {
        servers: Servers::parse(url).unwrap(),
        password: None,
        trust: None,
    }
}

pub(crate) fn words(words: &[&str]) -> Call {
    Call::plain(words.iter().map(|word| word.as_bytes()))
}

pub(crate) fn url(port: Option<u16>) -> String {
    format!("redis://127.0.0.1:{}", port.unwrap())
}
