//! One node and the servers, without a network: what is asked for comes at once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use greendot::fleet::calls::{Caller, Mode, Vouch};
use greendot::fleet::flags::{Saying, UserFlags};
use greendot::fleet::held::{Gone, Here, Kinds};
use greendot::fleet::member::{Layout, Local, Member, Settings, Standing, Ticket};
use greendot::fleet::partition::{LAYOUT as LAYOUT_KEY, Partition, Partitions, bucket_of};
use greendot::fleet::traffic::{Command, Event, Failed, Reply, Server, Tag, To};
use greendot::fleet::{Birth, Life};
use greendot::status::Status;
use greendot::time::{Mono, Now, Unix};
use greendot::wire::{User, UserBuf};

use crate::cluster::Cluster;
use crate::db::{Db, OFFLINE_AFTER_MS};
use crate::world::EPOCH_MS;

struct One {
    member: Member<Db>,
    cluster: Cluster,
    partitions: Arc<Partitions>,
    ms: u64,
    /// No server can be reached.
    is_cut: bool,
    /// What a server says comes so much later.
    late_ms: u64,
    /// And answers by so much more than what it publishes.
    answers_late_ms: u64,
    late: VecDeque<(u64, Event)>,
    /// No message comes.
    is_deaf: bool,
    /// A command that servers refuse, and in which words; how often they have.
    refuses: Option<(&'static str, &'static str)>,
    refused: u32,
    /// The node's clock is behind those of the servers.
    slow_ms: u64,
}

impl One {
    fn start(cluster: Cluster, layout: Layout, seed: u64) -> One {
        let settings = Settings {
            layout,
            forget_after_ms: FORGET_AFTER_MS,
            ..Settings::default()
        };
        One::start_as(cluster, settings, seed)
    }

    fn start_as(cluster: Cluster, settings: Settings, seed: u64) -> One {
        let partitions = Arc::new(Partitions::new(64).unwrap());
        let random = fastrand::Rng::with_seed(seed);
        let now = now(1_000);
        let member = Member::new(settings, partitions.clone(), Db::default(), random, now);
        let mut one = One {
            member,
            cluster,
            partitions,
            ms: 1_000,
            is_cut: false,
            late_ms: 0,
            answers_late_ms: 0,
            late: VecDeque::new(),
            is_deaf: false,
            refuses: None,
            refused: 0,
            slow_ms: 0,
        };
        one.subscribe();
        one.pass(3_000);
        one
    }

    /// All channels are heard from now on.
    fn subscribe(&mut self) {
        for partition in self.partitions.all() {
            let server = Server(self.process(partition) as u32);
            let event = Event::Subscribed { partition, server };
            self.member.handle_event(event, self.now());
        }
    }

    fn process(&self, partition: Partition) -> usize {
        let key = self.partitions.hot_key(partition);
        self.cluster.process_of(key.as_bytes())
    }

    fn now(&self) -> Now {
        let now = now(self.ms);
        Now {
            unix: now.unix.minus_ms(self.slow_ms),
            ..now
        }
    }

    /// Time passes, and what is due is done.
    fn pass(&mut self, ms: u64) {
        let end = self.ms + ms;
        while self.ms < end {
            self.ms += 5;
            let at = self.now();
            if self.ms.is_multiple_of(500) && !self.is_cut {
                for server in self.cluster.primaries.map(|process| Server(process as u32)) {
                    let event = Event::Heard { server, ago_ms: 0 };
                    self.member.handle_event(event, at);
                }
            }
            self.member.handle_timeout(at);
            while let Some(command) = self.member.poll_command() {
                self.execute(command);
                self.hear(at);
            }
            self.hear(at);
        }
    }

    fn execute(&mut self, command: Command) {
        let due_ms = self.ms + self.late_ms;
        let tag = command.tag;
        if self.is_cut {
            let why = Failed::Unreached;
            self.late.push_back((due_ms, Event::Failed { tag, why }));
            return;
        }
        let key = match command.to {
            To::Partition(partition) => self.partitions.hot_key(partition).into_bytes(),
            To::Key(key) => key.as_bytes().to_vec(),
        };
        let process = self.cluster.process_of(&key);
        let unix_ms = EPOCH_MS + self.ms;
        let server = Server(process as u32);
        let is_refused = |(name, _): &(&str, &str)| {
            let mut calls = command.calls.iter();
            calls.any(|call| call.words().next() == Some(name.as_bytes()))
        };
        if let Some((_, text)) = self.refuses.filter(is_refused) {
            self.refused += 1;
            let replies = vec![Reply::Error(text.to_owned()); command.calls.len()];
            let event = Event::Answered {
                tag,
                server,
                replies,
            };
            return self.late.push_back((due_ms, event));
        }
        let done = self.cluster.execute(process, &key, &command.calls, unix_ms);
        let (replies, published) = done.unwrap();
        let published = published.into_iter().filter(|_| !self.is_deaf);
        for (channel, message) in published {
            let mut all = self.partitions.all();
            let is_its = |one: &Partition| self.partitions.hot_key(*one).as_bytes() == channel;
            let event = Event::Published {
                partition: all.find(is_its).unwrap(),
                server,
                message,
            };
            self.late.push_back((due_ms, event));
        }
        let event = Event::Answered {
            tag,
            server,
            replies,
        };
        self.late.push_back((due_ms + self.answers_late_ms, event));
        self.late
            .make_contiguous()
            .sort_by_key(|(due_ms, _)| *due_ms);
    }

    /// What has come by now.
    fn hear(&mut self, at: Now) {
        while let Some((_, event)) = self.late.pop_front_if(|(due_ms, _)| *due_ms <= self.ms) {
            self.member.handle_event(event, at);
        }
    }

    fn beat(&mut self, user: User<'_>) {
        let at = self.now();
        let slot = self.member.local_mut().beat(user, at.unix, at);
        self.member.changed(slot, at);
        self.pass(20);
    }

    /// A stream that vouches for its holder.
    fn open(&mut self, user: User<'_>) {
        self.stream(user, true);
    }

    fn close(&mut self, user: User<'_>) {
        self.stream(user, false);
    }

    fn stream(&mut self, user: User<'_>, opens: bool) {
        let at = self.now();
        let slot = self.member.local_mut().stream(user, true, opens, at);
        self.member.changed(slot, at);
        self.pass(20);
    }

    fn say(&mut self, user: User<'_>, said: Saying) {
        let at = self.now();
        self.member.local_mut().say(user, said);
        self.member.set_flags(user, said, Some(Ticket(1)), at);
        self.pass(30);
        assert_eq!(
            std::mem::take(&mut self.member.local_mut().done),
            [Ticket(1)]
        );
    }

    fn goodbye(&mut self, user: User<'_>) {
        let at = self.now();
        let kinds = self.member.local_mut().goodbye(user, at.unix);
        self.member.said_goodbye(user, kinds, at.unix, at.unix, at);
        self.pass(50);
    }

    fn field(&self, user: User<'_>, offline: bool) -> Option<Vec<u8>> {
        let partition = self.partitions.of(user);
        let data = &self.cluster.processes[self.process(partition)].data;
        let key = match offline {
            false => self.partitions.hot_key(partition),
            true => self
                .partitions
                .offline_key(partition, bucket_of(user, LAYOUT.buckets)),
        };
        data.get(key.as_bytes())?
            .get(user.as_str().as_bytes())
            .cloned()
    }
}

/// After an outage nobody is told before that who has gone.
const SETTLE_MS: u64 = 6_000;
/// All buckets and hot keys of all partitions are looked at in 256 s.
const FORGET_AFTER_MS: u64 = 400_000;

const LAYOUT: Layout = Layout {
    partitions: 64,
    buckets: 3,
    offline_after_ms: OFFLINE_AFTER_MS as u32,
    format: Layout::FORMAT,
};

fn now(ms: u64) -> Now {
    Now {
        mono: Mono::from_micros(ms * 1_000),
        unix: Unix::from_ms(EPOCH_MS + ms),
    }
}

fn bob() -> UserBuf {
    UserBuf::from_text("bob").unwrap()
}

#[test]
fn a_node_that_is_configured_otherwise_takes_no_part_and_says_why() {
    let first = One::start(Cluster::new([0; 3]), LAYOUT, 1);
    assert_eq!(first.member.standing(first.now()), Standing::Member);
    let other = Layout {
        offline_after_ms: 25_000,
        ..LAYOUT
    };
    let second = One::start(first.cluster, other, 2);
    let why = second.member.disagreement().unwrap().to_string();
    assert_eq!(
        why,
        "--offline-after-ms is 25000 here and 6000 in the fleet; all nodes must have the same"
    );
    assert_eq!(second.member.standing(second.now()), Standing::Joining);
    assert_eq!(second.member.peers(), []);
}

#[test]
fn a_database_of_another_format_is_left_alone_and_the_error_says_why() {
    let mut first = One::start(Cluster::new([0; 3]), LAYOUT, 1);
    let process = first.cluster.process_of(LAYOUT_KEY.as_bytes());
    let data = &mut first.cluster.processes[process].data;
    let fields = data.get_mut(LAYOUT_KEY.as_bytes()).unwrap();
    // What the others mean there is not known here.
    fields.insert(b"partitions".to_vec(), b"7".to_vec());
    fields.insert(b"format".to_vec(), b"2".to_vec());
    let second = One::start(first.cluster, LAYOUT, 2);
    let why = second.member.disagreement().unwrap().to_string();
    assert_eq!(
        why,
        "the fleet's database is of format 2, and this greendot keeps format 1; a newer greendot \
         made it: upgrade this node"
    );
    assert_eq!(second.member.standing(second.now()), Standing::Joining);
}

#[test]
fn who_goes_is_kept_with_the_time_that_redis_says() {
    let (mut one, bob) = (One::start(Cluster::new([70, 70, 70]), LAYOUT, 1), bob());
    one.beat(bob.user());
    let here = Here::parse(&one.field(bob.user(), false).unwrap()).unwrap();
    let view = one.member.local().view(bob.user()).unwrap();
    assert_eq!((view.is_here, view.since), (true, here.since));
    assert_eq!(one.field(bob.user(), true), None);
    let beat_ms = one.ms - 20;
    one.pass(OFFLINE_AFTER_MS + 100);
    let slot = one.member.local().find(bob.user()).unwrap();
    let at = one.now();
    one.member.changed(slot, at);
    one.pass(500);
    assert_eq!(one.field(bob.user(), false), None);
    let gone = Gone::parse(&one.field(bob.user(), true).unwrap()).unwrap();
    let view = one.member.local().view(bob.user()).unwrap();
    assert_eq!((view.is_here, view.since), (false, gone.since));
    assert_eq!(gone.last_active, Unix::from_ms(EPOCH_MS + beat_ms));
}

#[test]
fn whoever_is_away_for_long_is_forgotten() {
    let (mut one, bob) = (One::start(Cluster::new([0; 3]), LAYOUT, 1), bob());
    one.beat(bob.user());
    let at = one.now();
    one.member
        .said_goodbye(bob.user(), Default::default(), at.unix, at.unix, at);
    one.pass(FORGET_AFTER_MS - 1_000);
    assert_eq!(one.member.counts().forgotten, 0);
    assert!(one.field(bob.user(), true).is_some());
    one.pass(258_000);
    assert_eq!(one.member.counts().forgotten, 1);
    assert_eq!(one.field(bob.user(), true), None);
}

const HIDES: Saying = Saying {
    status: None,
    invisible: Some(true),
};
const BUSY: Saying = Saying {
    status: Some(Status::Busy),
    invisible: None,
};

/// No bucket has them: who said something and never came, and who was never seen to be here.
#[test]
fn whose_flags_alone_are_kept_is_forgotten_too() {
    let mut one = One::start(Cluster::new([0; 3]), LAYOUT, 1);
    let [said, hid, went, stays, late] =
        ["said", "hid", "went", "stays", "late"].map(|id| UserBuf::from_text(id).unwrap());
    one.say(said.user(), BUSY);
    one.say(hid.user(), HIDES);
    one.beat(hid.user());
    one.goodbye(hid.user());
    one.say(went.user(), BUSY);
    one.beat(went.user());
    one.goodbye(went.user());
    let kept = |one: &One, user: &UserBuf| [false, true].map(|off| one.field(user.user(), off));
    for user in [&said, &hid] {
        let [hot, gone] = kept(&one, user);
        assert_eq!(
            (hot.map(|hot| hot.len()), gone),
            (Some(7), None),
            "{user:?}"
        );
    }
    assert!(kept(&one, &went).iter().all(Option::is_some));
    // Both hide where others have seen them, so that buckets tell of then; one goes much later.
    for user in [&stays, &late] {
        one.open(user.user());
        one.say(user.user(), HIDES);
        assert!(kept(&one, user).iter().all(Option::is_some));
    }
    one.pass(FORGET_AFTER_MS - 2_000);
    assert_eq!(one.member.counts().forgotten, 0);
    one.close(late.user());
    one.goodbye(late.user());
    one.pass(258_000);
    assert_eq!(one.member.counts().forgotten, 3);
    for user in [&said, &hid, &went] {
        assert_eq!(kept(&one, user), [None, None], "{user:?}");
    }
    for user in [&stays, &late] {
        assert!(kept(&one, user).iter().all(Option::is_some), "{user:?}");
    }
}

/// The servers tell 20 fields at a time.
#[test]
fn whoever_is_to_be_forgotten_is_found_in_a_partition_with_many() {
    let mut one = One::start(Cluster::new([0; 3]), LAYOUT, 1);
    let names = (0..).map(|id| UserBuf::from_text(format!("z{id:05}")).unwrap());
    let partition = one.partitions.of(bob().user());
    let all = one.partitions.clone();
    let mut names = names.filter(|name| all.of(name.user()) == partition);
    let here: Vec<UserBuf> = names.by_ref().take(50).collect();
    here.iter().for_each(|user| one.open(user.user()));
    let last = names.next().unwrap();
    one.say(last.user(), BUSY);
    one.pass(FORGET_AFTER_MS + 262_000);
    assert_eq!(one.member.counts().forgotten, 1);
    assert_eq!(one.field(last.user(), false), None);
    assert!(
        here.iter()
            .all(|user| one.field(user.user(), false).is_some())
    );
}

#[test]
fn nothing_is_left_of_whoever_is_erased() {
    let (mut one, bob) = (One::start(Cluster::new([0; 3]), LAYOUT, 1), bob());
    one.beat(bob.user());
    let at = one.now();
    one.member
        .said_goodbye(bob.user(), Default::default(), at.unix, at.unix, at);
    one.pass(100);
    assert!(one.field(bob.user(), true).is_some());
    let at = one.now();
    one.member.erase(bob.user(), Some(Ticket(7)), at);
    one.pass(100);
    assert_eq!(one.field(bob.user(), false), None);
    assert_eq!(one.field(bob.user(), true), None);
    assert_eq!(one.member.local().ended, [bob]);
    assert_eq!(one.member.local().done, [Ticket(7)]);
}

#[test]
fn what_is_said_while_its_user_is_away_counts_when_it_comes() {
    let (mut one, bob) = (One::start(Cluster::new([0; 3]), LAYOUT, 1), bob());
    let busy = Saying {
        status: Some(Status::Busy),
        invisible: None,
    };
    one.say(bob.user(), busy);
    assert_eq!(
        one.member.local().view(bob.user()),
        None,
        "it was never here"
    );
    one.beat(bob.user());
    let view = one.member.local().view(bob.user()).unwrap();
    assert_eq!((view.is_here, view.flags.status()), (true, Status::Busy));
    one.goodbye(bob.user());
    let since = one.member.local().view(bob.user()).unwrap().since;
    // Neither what it says then nor a log-out moves the time at which it went.
    let away = Saying {
        status: Some(Status::Away),
        invisible: None,
    };
    one.say(bob.user(), away);
    let at = one.now();
    one.member.log_out(bob.user(), at.unix, None, at);
    one.member
        .log_out(User::from_text("nobody").unwrap(), at.unix, None, at);
    one.pass(50);
    let gone = Gone::parse(&one.field(bob.user(), true).unwrap()).unwrap();
    assert_eq!(gone.since, since);
    let nobody = User::from_text("nobody").unwrap();
    assert_eq!(
        [true, false].map(|off| one.field(nobody, off)),
        [None, None]
    );
    // Another node reads all that.
    let mut second = One::start(one.cluster, LAYOUT, 2);
    let at = second.now();
    second.member.ask(bob.user(), false, at);
    second.pass(50);
    let view = second.member.local().view(bob.user()).unwrap();
    let expected = (false, since, UserFlags::new(Status::Away, false));
    assert_eq!((view.is_here, view.since, view.flags), expected);
}

#[test]
fn of_whoever_hides_nothing_is_written_that_others_read() {
    let (mut one, bob) = (One::start(Cluster::new([0; 3]), LAYOUT, 1), bob());
    let hide = |invisible| Saying {
        status: None,
        invisible: Some(invisible),
    };
    one.say(bob.user(), hide(true));
    one.beat(bob.user());
    assert_eq!(one.member.local().public(bob.user()), Some(false));
    one.goodbye(bob.user());
    assert_eq!(one.field(bob.user(), true), None, "it was never here");
    one.beat(bob.user());
    one.say(bob.user(), hide(false));
    assert_eq!(one.member.local().public(bob.user()), Some(true));
    one.say(bob.user(), hide(true));
    let hid = one.member.local().view(bob.user()).unwrap().since;
    let gone = |one: &One| Gone::parse(&one.field(bob.user(), true).unwrap()).unwrap();
    let expected = Gone {
        since: hid,
        last_active: hid,
    };
    assert_eq!(gone(&one), expected);
    one.goodbye(bob.user());
    one.beat(bob.user());
    assert_eq!(gone(&one), expected);
    // A watcher by name at another node is told that, and no more.
    let mut second = One::start(one.cluster, LAYOUT, 2);
    let at = second.now();
    second.member.ask(bob.user(), false, at);
    second.pass(50);
    let view = second.member.local().view(bob.user()).unwrap();
    assert_eq!((view.is_here, view.flags.invisible), (true, true));
    assert_eq!(view.gone_since, Some(hid));
}

#[test]
fn a_name_gets_a_slot_when_somebody_has_heard_of_it() {
    let bob = bob();
    let mut first = One::start(Cluster::new([0; 3]), LAYOUT, 1);
    first.beat(bob.user());
    let since = first.member.local().view(bob.user()).unwrap().since;
    let mut second = One::start(first.cluster, LAYOUT, 2);
    let at = second.now();
    second.member.ask(bob.user(), false, at);
    second
        .member
        .ask(User::from_text("nobody").unwrap(), false, at);
    second.pass(50);
    let view = second.member.local().view(bob.user()).unwrap();
    assert_eq!((view.is_here, view.since), (true, since));
    assert_eq!(second.member.local().slots(), 1);
    assert_eq!(second.member.peers().len(), 2);
}

#[test]
fn idle_it_says_little() {
    let mut one = One::start(Cluster::new([0; 3]), LAYOUT, 1);
    // All partitions are looked at together when a node starts: what follows is spread.
    let mut each_s = Vec::new();
    for _ in 0..60 {
        let before = one.member.counts().commands;
        one.pass(1_000);
        each_s.push(one.member.counts().commands - before);
    }
    // Each second three renewals and a bucket; in 30 s an audit of each of 64 partitions, two or
    // three a second, and a look at the layout.
    assert_eq!(each_s.iter().sum::<u64>(), 60 * (3 + 1) + 2 * (64 + 1));
    assert!(
        each_s.iter().all(|each| (6..=8).contains(each)),
        "{each_s:?}"
    );
}

#[test]
fn a_log_out_is_done_a_moment_after_redis_has_done_it() {
    let (mut one, bob) = (One::start(Cluster::new([0; 3]), LAYOUT, 1), bob());
    one.beat(bob.user());
    let at = one.now();
    one.member.log_out(bob.user(), at.unix, Some(Ticket(3)), at);
    one.pass(20);
    assert_eq!(one.field(bob.user(), false), None);
    assert_eq!(one.member.local().done, []);
    one.pass(10);
    assert_eq!(one.member.local().done, [Ticket(3)]);
}

#[test]
fn a_beat_behind_a_log_out_counts_though_its_message_comes_late() {
    for (beat_at_ms, is_here) in [(0, false), (50, true)] {
        let (mut one, bob) = (One::start(Cluster::new([0; 3]), LAYOUT, 1), bob());
        one.beat(bob.user());
        one.late_ms = 100;
        let at = one.now();
        one.member.log_out(bob.user(), at.unix, None, at);
        one.pass(beat_at_ms);
        let at = one.now();
        let slot = one.member.local_mut().beat(bob.user(), at.unix, at);
        one.member.changed(slot, at);
        one.pass(400);
        assert_eq!(one.field(bob.user(), false).is_some(), is_here);
        assert_eq!(one.member.local().public(bob.user()), Some(is_here));
    }
}

/// What another node says of somebody.
fn say_elsewhere(one: &mut One, user: User<'_>, k: u64, say: impl Fn(&mut Vouch)) {
    let mut vouch = Vouch::new(&Caller {
        life: Life(*b"else"),
        mode: Mode::Enrol,
        birth: Birth(*b"birthday"),
        k,
        not_after: Unix::LATEST,
    });
    say(&mut vouch);
    let partition = one.partitions.of(user);
    one.execute(Command {
        tag: Tag(u64::MAX),
        to: To::Partition(partition),
        calls: vec![vouch.call(&one.partitions.hot_key(partition))],
    });
    one.pass(20);
}

#[test]
fn a_word_that_passes_an_older_answer_counts() {
    type Word = fn(&mut Vouch, User<'_>, Unix);
    // What is shown here then, and whether anything is known.
    let words: [(Word, Option<bool>); 4] = [
        (
            |vouch, user, _| {
                let (status, invisible) = (None, Some(true));
                vouch.set_flags(user, Saying { status, invisible });
            },
            Some(false),
        ),
        (
            |vouch, user, now| vouch.goodbye(user, Kinds::beat(now), now, now),
            Some(false),
        ),
        (|vouch, user, now| vouch.log_out(user, now), Some(false)),
        (|vouch, user, _| vouch.erase(user), None),
    ];
    for (number, (word, expected)) in words.into_iter().enumerate() {
        let (mut one, bob) = (One::start(Cluster::new([0; 3]), LAYOUT, 1), bob());
        let sent = one.now().unix;
        say_elsewhere(&mut one, bob.user(), 1, |vouch| {
            vouch.claim(bob.user(), Some(UserFlags::PLAIN), Kinds::beat(sent), None);
        });
        assert_eq!(one.member.local().view(bob.user()), None);
        // The answer is from before, and comes behind the word.
        one.answers_late_ms = 60;
        let at = one.now();
        one.member.ask(bob.user(), false, at);
        one.pass(10);
        one.answers_late_ms = 0;
        let now = one.now().unix;
        say_elsewhere(&mut one, bob.user(), 2, |vouch| {
            word(vouch, bob.user(), now)
        });
        one.pass(500);
        let public = one.member.local().public(bob.user());
        assert_eq!(public, expected, "word {number}");
    }
}

/// Names of the same partition as that one.
fn beside(one: &One, name: &UserBuf) -> impl Iterator<Item = UserBuf> + use<> {
    let (partitions, of) = (one.partitions.clone(), one.partitions.of(name.user()));
    let names = (0..).map(|at| UserBuf::from_text(format!("user-{at}")).unwrap());
    names.filter(move |name| partitions.of(name.user()) == of)
}

/// Somebody beats here, and has a stream that vouches for itself.
fn hold(one: &mut One, user: User<'_>) {
    let at = one.now();
    let slot = one.member.local_mut().stream(user, false, true, at);
    one.member.changed(slot, at);
    one.beat(user);
}

/// The ring keeps 32 messages, and none that names somebody who is erased.
#[test]
fn what_took_a_claim_is_done_here_though_its_message_was_missed() {
    type Word = fn(&mut Vouch, User<'_>, Unix);
    let out: Word = |vouch, user, now| vouch.log_out(user, now);
    let erased: Word = |vouch, user, _| vouch.erase(user);
    for (number, (word, erases_another, more)) in [
        (out, false, 0),
        (out, true, 0),
        (out, false, 70),
        (erased, false, 0),
        (erased, false, 70),
    ]
    .into_iter()
    .enumerate()
    {
        let (mut one, bob) = (One::start(Cluster::new([0; 3]), LAYOUT, 1), bob());
        hold(&mut one, bob.user());
        one.pass(100);
        let mut others = beside(&one, &bob);
        // Who stays, and has told this node so since.
        let stays = others.next().unwrap();
        hold(&mut one, stays.user());
        one.is_deaf = true;
        let now = one.now().unix;
        say_elsewhere(&mut one, bob.user(), 1, |vouch| {
            word(vouch, bob.user(), now)
        });
        if erases_another {
            let another = others.next().unwrap();
            say_elsewhere(&mut one, bob.user(), 2, |vouch| vouch.erase(another.user()));
        }
        for k in 0..more {
            let another = others.next().unwrap();
            say_elsewhere(&mut one, bob.user(), k + 3, |vouch| {
                vouch.claim(another.user(), None, Kinds::beat(now), None);
            });
        }
        one.is_deaf = false;
        one.subscribe();
        one.pass(1_000);
        assert_eq!(
            one.member.local().ended,
            std::slice::from_ref(&bob),
            "{number}"
        );
        assert_eq!(one.member.local().public(bob.user()), Some(false));
        assert_eq!(one.field(bob.user(), false), None);
        let is_kept = one.field(bob.user(), true).is_some();
        assert!(!is_kept, "what another node keeps of him is its business");
        assert_eq!(one.member.local().public(stays.user()), Some(true));
        // Whoever beats again comes anew.
        one.beat(bob.user());
        assert!(one.field(bob.user(), false).is_some());
    }
}

#[test]
fn a_subscription_that_is_lost_with_nothing_missed_has_no_user_read() {
    let (mut one, bob) = (One::start(Cluster::new([0; 3]), LAYOUT, 1), bob());
    hold(&mut one, bob.user());
    one.pass(100);
    let others: Vec<UserBuf> = beside(&one, &bob).take(3).collect();
    let at = one.now();
    for other in &others {
        one.member.ask(other.user(), false, at);
    }
    one.pass(500);
    let read = one.member.counts().users_read;
    for _ in 0..5 {
        one.subscribe();
        one.pass(1_000);
    }
    assert_eq!(one.member.counts().users_read, read);
    // One message that is missed is read from the ring, and nobody with it.
    one.is_deaf = true;
    let sent = one.now().unix;
    say_elsewhere(&mut one, bob.user(), 1, |vouch| {
        vouch.claim(others[0].user(), None, Kinds::beat(sent), None);
    });
    one.is_deaf = false;
    one.subscribe();
    one.pass(1_000);
    assert_eq!(one.member.local().public(others[0].user()), Some(true));
    assert_eq!(one.member.counts().users_read, read);
}

#[test]
fn what_redis_has_lost_is_claimed_again_and_ends_nothing() {
    let (mut one, bob) = (One::start(Cluster::new([0; 3]), LAYOUT, 1), bob());
    hold(&mut one, bob.user());
    one.pass(100);
    for process in &mut one.cluster.processes {
        process.data.clear();
    }
    one.subscribe();
    beat_on(&mut one, bob.user(), 2);
    assert!(one.field(bob.user(), false).is_some());
    assert_eq!(one.member.local().ended, []);
    // An older copy takes over: what was said last is lost, and the number of the last call.
    let copies: Vec<_> = one
        .cluster
        .processes
        .iter()
        .map(|it| it.data.clone())
        .collect();
    // More than a call names, and than a read does.
    let late: Vec<UserBuf> = beside(&one, &bob).take(700).collect();
    let at = one.now();
    for late in &late {
        one.member.local_mut().stream(late.user(), false, true, at);
        let slot = one.member.local_mut().beat(late.user(), at.unix, at);
        one.member.changed(slot, at);
    }
    one.pass(500);
    for (process, copy) in one.cluster.processes.iter_mut().zip(copies) {
        process.data = copy;
    }
    one.subscribe();
    beat_on(&mut one, bob.user(), 2);
    for late in &late {
        assert!(one.field(late.user(), false).is_some(), "{late:?}");
    }
    assert_eq!(one.member.local().ended, []);
}

#[test]
fn a_server_that_refuses_is_told_again_and_what_is_known_is_old_until_then() {
    for (text, all_stale) in [
        (
            "OOM command not allowed when used memory > 'maxmemory'.",
            true,
        ),
        ("WRONGTYPE Operation against a key", false),
    ] {
        let (mut one, bob) = (One::start(Cluster::new([0; 3]), LAYOUT, 1), bob());
        one.refuses = Some(("FCALL", text));
        let at = one.now();
        let slot = one.member.local_mut().beat(bob.user(), at.unix, at);
        one.member.changed(slot, at);
        one.pass(900);
        // Who comes is told here.
        assert_eq!(one.member.local().public(bob.user()), Some(true), "{text}");
        let key = one.partitions.hot_key(one.partitions.of(bob.user()));
        assert_eq!(
            one.member.take_refusal(),
            Some(format!("{key}: {text}").into())
        );
        assert_eq!(one.member.standing(one.now()), Standing::Doubtful);
        let stale = one.member.stale_partitions(one.now());
        assert!(if all_stale { stale > 1 } else { stale == 1 }, "{stale}");
        one.refuses = None;
        one.pass(1_000);
        assert!(one.field(bob.user(), false).is_some());
        assert_eq!(one.member.standing(one.now()), Standing::Member);
        assert_eq!(one.member.stale_partitions(one.now()), 0);
    }
}

/// While lanes are renewed, all else is asked by HMGET.
#[test]
fn who_may_not_be_read_is_asked_for_once_a_second() {
    let (mut one, bob) = (One::start(Cluster::new([0; 3]), LAYOUT, 1), bob());
    one.refuses = Some(("HMGET", "NOPERM this user has no permissions"));
    let at = one.now();
    one.member.ask(bob.user(), true, at);
    one.pass(10_000);
    // And audits of 64 partitions, each once a second.
    assert!(
        (10..=10 + 64 * 10).contains(&one.refused),
        "{}",
        one.refused
    );
    let before = one.refused;
    one.pass(2_000);
    assert!(one.refused > before);
    one.refuses = None;
    one.pass(4_000);
    assert_eq!(one.member.stale_partitions(one.now()), 0);
}

#[test]
fn a_damaged_partition_is_made_anew() {
    for field in [&b"\0m"[..], b"\0L", b"bob"] {
        let (mut one, bob) = (One::start(Cluster::new([0; 3]), LAYOUT, 1), bob());
        one.beat(bob.user());
        let partition = one.partitions.of(bob.user());
        let key = one.partitions.hot_key(partition).into_bytes();
        let process = one.process(partition);
        let hash = one.cluster.processes[process].data.get_mut(&key).unwrap();
        for (_, value) in hash.iter_mut().filter(|(name, _)| name.starts_with(field)) {
            // Its claims are cut short.
            *value = b"junk junk".to_vec();
        }
        one.subscribe();
        beat_on(&mut one, bob.user(), 2);
        let another = beside(&one, &bob).next().unwrap();
        one.beat(another.user());
        one.pass(1_000);
        for name in [&bob, &another] {
            assert!(one.field(name.user(), false).is_some(), "{field:?}");
            assert_eq!(one.member.local().public(name.user()), Some(true));
        }
        if field[0] == 0 {
            let text = one.member.take_refusal().unwrap();
            assert!(text.contains("malformed: "), "{text}");
        }
        one.pass(4_000);
        assert_eq!(one.member.stale_partitions(one.now()), 0);
    }
}

#[test]
fn what_waits_for_redis_for_too_long_is_refused_and_goodbyes_make_room() {
    let (mut one, bob) = (One::start(Cluster::new([0; 3]), LAYOUT, 1), bob());
    one.is_cut = true;
    one.pass(2_500);
    let at = one.now();
    let names: Vec<UserBuf> = beside(&one, &bob).take(4_098).collect();
    one.member
        .said_goodbye(names[0].user(), Kinds::beat(at.unix), at.unix, at.unix, at);
    for (number, name) in names[1..].iter().enumerate() {
        one.member
            .log_out(name.user(), at.unix, Some(Ticket(number as u64)), at);
    }
    // 4,096 wait: all but the last, for whose sake the goodbye has made room once.
    assert_eq!(one.member.local().done.len(), 4_096);
    assert_eq!(one.member.local().done.last(), Some(&Ticket(4_095)));
    assert_eq!(one.member.counts().acts_dropped, 2);
}

#[test]
fn acts_but_goodbyes_are_never_given_up() {
    let (mut one, bob) = (One::start(Cluster::new([0; 3]), LAYOUT, 1), bob());
    one.beat(bob.user());
    let [gone, out] = ["gone", "out"].map(|name| UserBuf::from_text(name).unwrap());
    one.beat(out.user());
    one.is_cut = true;
    one.pass(2_500);
    let at = one.now();
    let busy = Saying {
        status: Some(Status::Busy),
        invisible: None,
    };
    one.member.local_mut().say(bob.user(), busy);
    one.member.set_flags(bob.user(), busy, Some(Ticket(1)), at);
    one.member.erase(gone.user(), Some(Ticket(2)), at);
    one.member.log_out(out.user(), at.unix, Some(Ticket(3)), at);
    beat_on(&mut one, bob.user(), 3);
    // What a user says of itself is told here at once, and its streams here end.
    assert_eq!(one.member.local().done, [1, 3].map(Ticket));
    assert!(one.field(out.user(), false).is_some());
    one.is_cut = false;
    beat_on(&mut one, bob.user(), 1);
    // Others may have yet to say whom they have.
    assert!(one.field(out.user(), false).is_some());
    beat_on(&mut one, bob.user(), SETTLE_MS / 1_000);
    assert!(one.member.local().done.contains(&Ticket(2)));
    assert_eq!(one.field(out.user(), false), None);
    let here = Here::parse(&one.field(bob.user(), false).unwrap()).unwrap();
    assert_eq!(here.flags.status(), Status::Busy);
}

#[test]
fn whoever_comes_when_there_is_no_room_is_said_in_turn() {
    let settings = Settings {
        layout: LAYOUT,
        in_flight_max: 1,
        ..Settings::default()
    };
    let mut one = One::start_as(Cluster::new([0; 3]), settings, 1);
    one.late_ms = 10;
    let names = (0..300).map(|at| UserBuf::from_text(format!("user-{at}")).unwrap());
    let names: Vec<UserBuf> = names.collect();
    let at = one.now();
    for name in &names {
        let slot = one.member.local_mut().beat(name.user(), at.unix, at);
        one.member.changed(slot, at);
    }
    // Some 22 partitions of each server, one call of 10 ms and what else it has.
    one.pass(600);
    let said = names
        .iter()
        .filter(|name| one.field(name.user(), false).is_some());
    assert_eq!(said.count(), 300);
}

#[test]
fn a_goodbye_that_has_waited_for_long_ends_nothing_elsewhere() {
    for (late_ms, is_here) in [(400, false), (600, true)] {
        let (mut one, bob) = (One::start(Cluster::new([0; 3]), LAYOUT, 1), bob());
        one.beat(bob.user());
        let sent = one.now().unix;
        say_elsewhere(&mut one, bob.user(), 1, |vouch| {
            vouch.claim(bob.user(), Some(UserFlags::PLAIN), Kinds::beat(sent), None);
        });
        one.pass(100);
        // A call of the partition is under way for so long.
        let partition = one.partitions.of(bob.user());
        let is_beside = |name: &UserBuf| one.partitions.of(name.user()) == partition;
        let mut names = (0..).map(|at| UserBuf::from_text(format!("user-{at}")).unwrap());
        let beside = names.find(is_beside).unwrap();
        one.late_ms = late_ms;
        one.beat(beside.user());
        one.late_ms = 0;
        one.goodbye(bob.user());
        assert!(one.field(bob.user(), false).is_some());
        one.pass(1_500);
        assert_eq!(one.field(bob.user(), false).is_some(), is_here, "{late_ms}");
    }
}

#[test]
fn whom_a_goodbye_ended_that_could_not_be_said_is_taken_back() {
    let (mut one, bob) = (One::start(Cluster::new([0; 3]), LAYOUT, 1), bob());
    one.beat(bob.user());
    one.pass(1_000);
    one.is_cut = true;
    one.goodbye(bob.user());
    one.pass(900);
    one.is_cut = false;
    one.pass(SETTLE_MS + 2_000);
    assert_eq!(one.field(bob.user(), false), None);
    assert_eq!(one.member.local().public(bob.user()), Some(false));
}

/// Somebody beats each second, for so long.
fn beat_on(one: &mut One, user: User<'_>, seconds: u64) {
    for _ in 0..seconds {
        one.beat(user);
        one.pass(980);
    }
}

#[test]
fn who_came_while_redis_was_away_came_then_if_that_is_not_long_ago() {
    for (away_s, is_then) in [(4, true), (12, false)] {
        let (mut one, bob) = (One::start(Cluster::new([0; 3]), LAYOUT, 1), bob());
        one.is_cut = true;
        one.pass(3_000);
        let came_ms = one.ms;
        beat_on(&mut one, bob.user(), away_s);
        assert_eq!(one.member.local().public(bob.user()), Some(true));
        one.is_cut = false;
        let back_ms = one.ms;
        beat_on(&mut one, bob.user(), 2);
        let here = Here::parse(&one.field(bob.user(), false).unwrap()).unwrap();
        let since_ms = here.since.ms() - EPOCH_MS;
        let expected = match is_then {
            true => came_ms - 10..came_ms + 30,
            false => back_ms..back_ms + 1_000,
        };
        assert!(expected.contains(&since_ms), "{since_ms} of {expected:?}");
        let view = one.member.local().view(bob.user()).unwrap();
        assert_eq!((view.is_here, view.since), (true, here.since));
    }
}

#[test]
fn who_came_and_went_while_redis_was_away_is_kept_with_when() {
    // Whether he is told as of a time that Redis' clock has and this node's has not yet, or not.
    for (slow_ms, back_after_ms) in [(0, 12_000), (700, 12_000), (0, 3_000)] {
        let (mut one, bob) = (One::start(Cluster::new([0; 3]), LAYOUT, 1), bob());
        one.slow_ms = slow_ms;
        one.is_cut = true;
        one.pass(3_000);
        one.beat(bob.user());
        let heard = one.now().unix.minus_ms(20);
        assert_eq!(one.member.local().public(bob.user()), Some(true));
        one.pass(OFFLINE_AFTER_MS + 1_000);
        let slot = one.member.local().find(bob.user()).unwrap();
        one.member.changed(slot, one.now());
        // Nobody is told that he went before all may have spoken.
        assert_eq!(one.member.local().public(bob.user()), Some(true));
        one.is_cut = false;
        one.pass(back_after_ms);
        if back_after_ms > SETTLE_MS {
            assert_eq!(one.member.local().public(bob.user()), Some(false));
            let gone = Gone::parse(&one.field(bob.user(), true).unwrap()).unwrap();
            assert_eq!(gone.last_active, heard, "{slow_ms}");
        }
        // He comes back, as of then.
        let back_ms = one.ms;
        one.beat(bob.user());
        one.pass(100);
        let here = Here::parse(&one.field(bob.user(), false).unwrap()).unwrap();
        assert!(here.since.ms() >= EPOCH_MS + back_ms);
    }
}

#[test]
fn what_is_lost_shortly_after_another_loss_is_found_as_soon() {
    let mut one = One::start(Cluster::new([0; 3]), LAYOUT, 1);
    let names = (0..40).map(|at| UserBuf::from_text(format!("user-{at}")).unwrap());
    let names: Vec<UserBuf> = names.collect();
    for name in &names {
        one.beat(name.user());
    }
    one.pass(500);
    // Three of one server's, in a partition each.
    let mut beside = BTreeMap::new();
    for name in &names {
        let partition = one.partitions.of(name.user());
        if one.process(partition) == one.process(one.partitions.of(names[0].user())) {
            beside.insert(partition.index(), name);
        }
    }
    let mut beside = beside.into_values();
    let [first, second, silent] = [(); 3].map(|()| beside.next().unwrap());
    let lose = |one: &mut One, name: &UserBuf| {
        let partition = one.partitions.of(name.user());
        let (process, hot) = (one.process(partition), one.partitions.hot_key(partition));
        let data = &mut one.cluster.processes[process].data;
        data.remove(hot.as_bytes()).unwrap();
    };
    // A loss is found by what is said there, and all is looked at.
    lose(&mut one, first);
    one.goodbye(first.user());
    one.pass(300);
    lose(&mut one, silent);
    lose(&mut one, second);
    one.goodbye(second.user());
    one.pass(3_000);
    assert!(one.field(silent.user(), false).is_some());
}

#[test]
fn who_went_while_redis_lost_everything_comes_back_as_of_then() {
    let (mut one, bob) = (One::start(Cluster::new([0; 3]), LAYOUT, 1), bob());
    one.beat(bob.user());
    one.is_cut = true;
    one.pass(OFFLINE_AFTER_MS + 1_000);
    let slot = one.member.local().find(bob.user()).unwrap();
    one.member.changed(slot, one.now());
    for process in &mut one.cluster.processes {
        process.data.clear();
    }
    one.is_cut = false;
    // Before it is believed that he has gone.
    one.pass(3_000);
    assert_eq!(one.member.local().public(bob.user()), Some(true));
    let back_ms = one.ms;
    one.beat(bob.user());
    one.pass(500);
    let here = Here::parse(&one.field(bob.user(), false).unwrap()).unwrap();
    assert!(here.since.ms() >= EPOCH_MS + back_ms);
    let view = one.member.local().view(bob.user()).unwrap();
    assert_eq!((view.is_here, view.since), (true, here.since));
}
