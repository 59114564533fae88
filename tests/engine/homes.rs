//! A node of a fleet, and beats of users whose home is another one.

use std::net::SocketAddr;
use std::sync::Arc;

use greendot::engine::{
    Asker, Came, Home, HomeList, Mail, Outbound, PartitionSet, Passed, Place, Role,
};
use greendot::metrics::Counter;
use greendot::presence::{LeaveOutcome, Source};
use greendot::status::Status;
use greendot::time::Unix;
use greendot::wire::beat::{Flags, Keys, Writer, open};
use greendot::wire::nodes::Nodes;
use greendot::wire::record::Told;
use greendot::wire::{User, UserBuf};

use super::harness::{NO_CONTENT, START, World, json, record, unseen};

const PARTITIONS: u16 = 64;

fn udp(node: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node], 8081))
}

fn homes(own_away: PartitionSet) -> HomeList {
    let home = |node| Home {
        udp: udp(node),
        away: match node {
            0 => own_away.clone(),
            _ => PartitionSet::default(),
        },
    };
    HomeList::new((0..3).map(home).collect(), udp(0), PARTITIONS)
}

/// Node 0 of three that see each other.
fn world(shards: u16) -> World {
    let role = Role::Fleet(Arc::new(Nodes::new(["redis"])));
    let mut world = World::of_role(shards, role, 10_000);
    world.homes.store(homes(PartitionSet::default()));
    world.turn();
    world
}

fn named(user: &str) -> User<'_> {
    User::from_text(user).expect("a user")
}

/// Users at home at that node, the first of many.
fn at_home<const N: usize>(node: usize) -> [String; N] {
    let list = homes(PartitionSet::default());
    let is_there = |user: &String| match list.place(named(user)) {
        Place::Here => node == 0,
        Place::There(home) | Place::Both(home) => node == home,
    };
    let all = (0..).map(|number| format!("user-{number}"));
    let mut found = all.filter(is_there);
    std::array::from_fn(|_| found.next().expect("there are more"))
}

/// What is for other nodes and for the bridge since the last look.
#[derive(Default, Debug, PartialEq)]
struct Said {
    /// To which node, sent when, what, of whom.
    homeward: Vec<(SocketAddr, u64, Flags, Vec<String>)>,
    goodbyes: Vec<(String, u64)>,
    words: Vec<String>,
    passes: Vec<(Asker, usize)>,
}

fn said(world: &mut World) -> Said {
    let keys = Keys::single(world.key().clone());
    let now = world.now().unix;
    let mut said = Said::default();
    for (_, outbound) in world.outbound() {
        match outbound {
            Outbound::Homeward { to, datagrams } => {
                for datagram in datagrams.iter() {
                    let beats = open(datagram, &keys, now, 30_000).expect("sealed");
                    let users = beats.users().map(|user| user.as_str().to_owned());
                    let sent = beats.sent_at.ms() - START;
                    let beats = (to, sent, beats.flags, users.collect());
                    said.homeward.push(beats);
                }
            }
            Outbound::Goodbyes(goodbyes) => {
                let goodbye = |(user, at): (UserBuf, Unix)| (user.as_str().into(), at.ms() - START);
                said.goodbyes.extend(goodbyes.into_iter().map(goodbye));
            }
            Outbound::Words(words) => {
                let word = |word: UserBuf| word.as_str().to_owned();
                said.words.extend(words.into_iter().map(word));
            }
            Outbound::Pass { part, .. } => said.passes.push((part.asker, part.index)),
            _ => {}
        }
    }
    said
}

fn passed_on(world: &World, flags: Flags, users: &[&str]) -> Vec<u8> {
    let mut writer = Writer::of(flags.passed_on(), world.now().unix, world.key());
    for user in users {
        assert!(writer.push(named(user)));
    }
    writer.seal(world.key())
}

fn is_heard(world: &mut World, user: &str) -> bool {
    let slot = world.presence().lookup(named(user));
    // A slot is made for who is heard here, and for nobody else.
    slot.is_some()
}

fn names(users: &[&str]) -> Vec<String> {
    users.iter().map(|user| (*user).to_owned()).collect()
}

#[test]
fn beats_go_home_once_and_keep_the_time_at_which_they_were_sent() {
    let mut world = world(1);
    let [[own, _], [first, second]] = [at_home::<2>(0), at_home::<2>(1)];
    let [third] = at_home(2);
    world.at(1_000);
    let sent_at = world.now().unix.minus_ms(300);
    let users = [&own, &first, &third, &second].map(String::as_str);
    world.datagram_of(0, &users, sent_at, false);
    world.at(1_010);
    let beat = Flags::BEAT.passed_on();
    let expected = [
        (udp(1), 700, beat, names(&[&first, &second])),
        (udp(2), 700, beat, names(&[&third])),
    ];
    assert_eq!(said(&mut world).homeward, expected);
    assert!(is_heard(&mut world, &own) && !is_heard(&mut world, &first));
    assert_eq!(world.count(0, Counter::BeatsUdp), 1);
    assert_eq!(world.count(0, Counter::FleetBeatsPassedOn), 3);
    // What a node has passed on counts here, whoever it thinks is whose home.
    let datagram = passed_on(&world, Flags::BEAT, &[&first, &own]);
    world.datagram(0, &datagram);
    world.at(2_000);
    assert_eq!(said(&mut world).homeward, []);
    assert!(is_heard(&mut world, &first));
    assert_eq!(world.count(0, Counter::FleetBeatsFromNodes), 2);
    assert_eq!(world.count(0, Counter::BeatsUdp), 3);
}

/// The fleet's word of a goodbye comes between two sweeps, and the next beat as well.
#[test]
fn a_beat_behind_a_goodbye_that_nobody_has_looked_at_is_news_for_the_fleet() {
    let mut world = world(1);
    let [user] = at_home(0);
    let heard_of = |world: &mut World| {
        let outbound = world.outbound().into_iter();
        let slots = outbound.filter_map(|(_, outbound)| match outbound {
            Outbound::Heard(slots) => Some(slots),
            _ => None,
        });
        slots.flatten().collect::<Vec<_>>()
    };
    world.at(1_000).beat(0, &[&user]);
    let slot = world.presence().lookup(named(&user)).expect("it is heard");
    assert_eq!(heard_of(&mut world), [slot]);
    world.at(2_000);
    let now = world.now();
    assert_eq!(
        world.heard().record_leave(slot, now.unix, now),
        LeaveOutcome::Left
    );
    world.beat(0, &[&user]);
    assert_eq!(heard_of(&mut world), [slot]);
    // And one more is none.
    world.beat(0, &[&user]);
    assert_eq!(heard_of(&mut world), []);
}

#[test]
fn what_a_beat_says_of_its_user_goes_home_with_it() {
    let mut world = world(1);
    let [user] = at_home(1);
    let flags = Flags::of(greendot::wire::beat::Outset {
        status: greendot::status::Status::Busy,
        invisible: true,
    });
    world.at(1_000);
    let mut writer = Writer::of(flags, world.now().unix, world.key());
    assert!(writer.push(named(&user)));
    let datagram = writer.seal(world.key());
    world.datagram(0, &datagram).at(1_200);
    let expected = [(udp(1), 1_000, flags.passed_on(), names(&[&user]))];
    assert_eq!(said(&mut world).homeward, expected);
}

#[test]
fn who_holds_a_stream_here_counts_here() {
    let mut world = world(2);
    let [user] = at_home(1);
    world.at(1_000);
    let holder = world.connect(1);
    world.get(holder, &format!("/v1/stream?user={user}"));
    said(&mut world);
    world.beat(0, &[&user]).at(2_000);
    assert_eq!(said(&mut world).homeward, []);
    assert!(world.count(0, Counter::BeatsUdp) >= 1);
}

#[test]
fn a_beat_by_http_goes_home_and_its_node_answers_from_it_at_once() {
    let mut world = world(2);
    let [user, other] = at_home(2);
    world.at(1_000);
    let client = world.connect(0);
    let body = format!("{{\"users\":[\"{user}\"]}}");
    world.post(client, "/v1/beat", &body);
    world.expect(client, NO_CONTENT);
    let beat = Flags::BEAT.passed_on();
    let expected = [(udp(2), 1_000, beat, names(&[&user]))];
    world.at(1_010);
    assert_eq!(said(&mut world).homeward, expected);
    // The fleet does not know it yet, and says so, to whichever shard.
    let ask = |world: &mut World, user: &str, told: Told| {
        let client = world.connect(1);
        world.get(client, &format!("/v1/presence/{user}"));
        let passes = said(world).passes;
        let [(asker, index)] = passes[..] else {
            panic!("{passes:?}");
        };
        let came = Some(Came::States(vec![told]));
        let passed = Passed { asker, index, came };
        world.tell_all(&Mail::Passed([passed].into()));
        world.taken(client)
    };
    let never = |user: &str| Told::unseen(UserBuf::from_text(user).expect("a user"));
    let answer = ask(&mut world, &user, never(&user));
    assert_eq!(answer, json(&record(&user, "online", 1_000, 1_000)));
    let answer = ask(&mut world, &other, never(&other));
    assert_eq!(answer, json(&unseen(&other)), "nobody spoke of that one");
    // The fleet's word counts, and after two seconds whatever it is.
    let told = Told {
        status: greendot::status::Status::Online,
        since: Some(Unix::from_ms(START + 20)),
        last_active: Some(Unix::from_ms(START + 30)),
        ..never(&user)
    };
    let answer = ask(&mut world, &user, told);
    assert_eq!(answer, json(&record(&user, "online", 20, 30)));
    world.at(3_000);
    let answer = ask(&mut world, &user, never(&user));
    assert_eq!(answer, json(&unseen(&user)));
}

#[test]
fn a_goodbye_is_the_fleets_to_judge_and_its_home_hears_of_it() {
    let mut world = world(1);
    let [own, _] = at_home::<2>(0);
    let [user] = at_home(1);
    world.at(1_000);
    world.beat(0, &[&user]);
    // In the same turn, behind the beat.
    world.leave(0, &[&user]);
    let Said {
        homeward, goodbyes, ..
    } = said(&mut world);
    let (beat, leave) = (Flags::BEAT.passed_on(), Flags::LEAVE.passed_on());
    let expected = [
        (udp(1), 1_000, beat, names(&[&user])),
        (udp(1), 1_000, leave, names(&[&user])),
    ];
    assert_eq!(homeward, expected);
    assert_eq!(goodbyes, [(user.clone(), 1_000)]);
    // One that is passed on counts against a beat of which the fleet knows nothing, by when both
    // were sent; and it is judged once more.
    let earlier = passed_on(&world, Flags::LEAVE, &[&own]);
    world.at(1_500).beat(0, &[&own]);
    world.datagram(0, &earlier);
    world.at(1_600);
    assert_eq!(said(&mut world).goodbyes, []);
    let later = passed_on(&world, Flags::LEAVE, &[&own]);
    world.datagram(0, &later).at(1_700);
    let Said {
        homeward, goodbyes, ..
    } = said(&mut world);
    assert_eq!((homeward, goodbyes), (vec![], vec![(own.clone(), 1_600)]));
    assert_eq!(world.count(0, Counter::FleetGoodbyesFromNodes), 2);
}

/// The fleet was told of the goodbye before it knew of the beat, and knows of that now.
#[test]
fn a_goodbye_that_overtakes_the_beat_before_it_counts_when_that_has_come() {
    let mut world = world(1);
    let [early, late] = at_home(0);
    world.at(1_000).beat(0, &[&early]);
    world.at(1_010);
    let slot = world.presence().lookup(named(&early)).expect("a slot");
    let told = Told {
        status: Status::Online,
        since: Some(world.now().unix),
        user: named(&early).into(),
        last_active: None,
        stale: false,
        heard: None,
    };
    let now = world.now();
    let news = world.presence().adopt(slot, &told, Source::InStep, now);
    assert!(news.is_some(), "the fleet has told of it");
    world.at(1_020);
    let beat = passed_on(&world, Flags::BEAT, &[&late]);
    world.at(1_040);
    let leave = passed_on(&world, Flags::LEAVE, &[&early, &late]);
    world.datagram(0, &leave).at(1_050);
    world.datagram(0, &beat).at(1_060);
    assert_eq!(said(&mut world).goodbyes, []);
    // One who beats on stays.
    world.at(1_539);
    assert_eq!(said(&mut world).goodbyes, []);
    world.at(1_545);
    let gone = [(early.clone(), 1_040), (late.clone(), 1_040)];
    assert_eq!(said(&mut world).goodbyes, gone);
    world.at(3_000);
    assert_eq!(said(&mut world).goodbyes, []);
    // One that is said here may overtake a beat that another node has passed on.
    let [.., third] = at_home::<3>(0);
    let beat = passed_on(&world, Flags::BEAT, &[&third]);
    world.at(3_010).leave(0, &[&third]);
    world.datagram(0, &beat).at(3_020);
    assert_eq!(said(&mut world).goodbyes, [(third.clone(), 3_010)]);
    world.at(3_600);
    assert_eq!(said(&mut world).goodbyes, [(third, 3_010)]);
    // A later beat says otherwise.
    let leave = passed_on(&world, Flags::LEAVE, &[&early]);
    world.at(3_700).beat(0, &[&early]);
    world.datagram(0, &leave).at(4_300);
    assert_eq!(said(&mut world).goodbyes, []);
}

/// Another node has a stream of the user's, which ends soon after.
#[test]
fn a_goodbye_that_the_fleet_judged_knowing_the_user_is_not_looked_at_again() {
    for (here_ms, is_judged) in [(1_000, true), (2_500, false)] {
        let mut world = world(1);
        let [user] = at_home(0);
        world.at(1_000).beat(0, &[&user]);
        let slot = world.presence().lookup(named(&user)).expect("a slot");
        world.at(here_ms);
        let told = Told {
            status: Status::Online,
            since: Some(world.now().unix),
            user: named(&user).into(),
            last_active: None,
            stale: false,
            heard: None,
        };
        let now = world.now();
        world.presence().adopt(slot, &told, Source::InStep, now);
        world.at(3_000);
        let leave = passed_on(&world, Flags::LEAVE, &[&user]);
        world.datagram(0, &leave).at(4_000);
        let expected: &[(String, u64)] = match is_judged {
            true => &[],
            false => &[(user.clone(), 3_000)],
        };
        assert_eq!(said(&mut world).goodbyes, expected, "{here_ms}");
    }
}

#[test]
fn a_node_that_can_not_tell_the_fleet_hands_its_users_over() {
    let mut world = world(1);
    world.homes.store(homes(PartitionSet::all(PARTITIONS)));
    let [own] = at_home(0);
    world.at(1_000);
    // Beats count here too, for whoever watches here.
    world.beat(0, &[&own]);
    world.at(1_100);
    let sent = said(&mut world).homeward;
    let [(to, 1_000, _, users)] = &sent[..] else {
        panic!("{sent:?}");
    };
    assert!(*to != udp(0) && *users == names(&[&own]));
    assert!(is_heard(&mut world, &own));
    // So do streams, when they open and from then on.
    let holder = world.connect(0);
    world.get(holder, &format!("/v1/stream?user={own}"));
    let interval_ms = world.settings.beat_interval_ms;
    for turn in 0..3 {
        world.pass(interval_ms);
        let sent = said(&mut world).homeward;
        assert!(!sent.is_empty(), "turn {turn}");
        assert!(
            sent.iter().all(|(to, _, _, users)| {
                *to != udp(0) && users.iter().all(|user| *user == own)
            })
        );
    }
    // Until it is back.
    world.homes.store(homes(PartitionSet::default()));
    world.pass(1_000);
    said(&mut world);
    world.pass(2 * interval_ms);
    assert_eq!(said(&mut world).homeward, []);
}

#[test]
fn words_are_for_the_bridge_and_for_fleets() {
    let mut world = world(1);
    world.at(1_000);
    let word = |world: &World| {
        let mut writer = Writer::of(Flags::WORD, world.now().unix, world.key());
        assert!(writer.push(named("ask 07 10.0.0.1:8081")));
        writer.seal(world.key())
    };
    let datagram = word(&world);
    world.datagram(0, &datagram);
    assert_eq!(said(&mut world).words, ["ask 07 10.0.0.1:8081"]);
    assert!(!is_heard(&mut world, "ask 07 10.0.0.1:8081"));
    let mut alone = World::new(1);
    let datagram = word(&alone);
    alone.datagram(0, &datagram);
    assert_eq!(alone.count(0, Counter::FleetWordsRefused), 1);
    assert_eq!(alone.presence().users(), 0);
}

/// Each of its streams vouches until it ends, and they end one after the other.
#[test]
fn who_was_logged_out_elsewhere_is_not_here_by_what_its_streams_said_before_they_ended() {
    let mut world = world(2);
    let peers = [0, 1].map(|shard| world.stream(shard, "user=bob", 0).0);
    let bob = world.presence().lookup(named("bob")).expect("he is known");
    assert!(!world.heard().has_left(bob));
    // As the fleet's side of the node does when it hears of the log-out, before shards read of it.
    world.heard().record_leave(bob, Unix::LATEST, world.now());
    assert!(world.heard().has_left(bob));
    world.pass(10_000);
    assert!(!world.heard().has_left(bob), "his streams have vouched");
    world.tell_all(&Mail::LoggedOut([bob].into()));
    world.turn();
    for peer in peers {
        world.expect_closed(peer);
    }
    assert!(world.heard().has_left(bob));
    // What comes then is a new stay.
    world.stream(1, "user=bob", 0);
    assert!(!world.heard().has_left(bob));
}
