//! Lives that claim, withdraw, say goodbye, log out, erase, die and come back at random, beside a
//! model of the rules; calls are lost and come twice. After each call its answer and its message
//! are the model's, and now and then all of the partition is.

use std::collections::BTreeMap;

use fastrand::Rng;
use greendot::fleet::Life;
use greendot::fleet::calls::{Caller, Mode, Vouch, fence};
use greendot::fleet::flags::{Saying, UserFlags};
use greendot::fleet::held::{Claim, Here, Kinds};
use greendot::fleet::message::{Follows, Message, What};
use greendot::fleet::replies::{Fenced, Outcome, Refusal, Vouched};
use greendot::status::Status;
use greendot::time::Unix;

use crate::redis::Answer;
use crate::world::{BIRTH, HOT, World, user};

const STEPS: u32 = 1_500;
const USERS: [&str; 10] = [
    "ann",
    "bob",
    "carol",
    "dave",
    "erin",
    "frank",
    "gina",
    "h\u{e9}l\u{e8}ne",
    "\u{1f7e2}",
    "j k",
];
const ALL: Kinds = Kinds {
    beat: Some(Unix::from_ms(0)),
    stream: true,
    open: true,
    unattended: false,
};

/// The users who are here, and those who are not and have said something, by the rules.
#[derive(Default)]
struct Model {
    users: BTreeMap<&'static str, Here>,
    /// When the call was done, and when somebody went last.
    now: Unix,
    left: Unix,
}

/// What is said of a user.
#[derive(Clone, Copy, Debug)]
enum Op {
    Claim(Option<UserFlags>, Kinds, Option<Unix>),
    Withdraw(Kinds, Unix),
    Goodbye(Kinds, Unix, Unix),
    LogOut(Unix),
    SetFlags(Saying),
    Erase,
}

/// One node after the other, as far as a partition knows them.
struct Node {
    life: Life,
    k: u64,
    /// A call of it was lost.
    is_behind: bool,
    is_enrolled: bool,
}

#[test]
fn whatever_comes_the_partition_is_as_the_rules_say() {
    let Some(mut world) = World::start() else {
        return;
    };
    let seed = std::env::var("FLEET_SEED").map_or_else(|_| 7, |seed| seed.parse().unwrap());
    println!("FLEET_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let mut lives = 0..;
    let mut node = || Node {
        life: Life(u32::to_be_bytes(lives.next().unwrap())),
        k: 0,
        is_behind: false,
        is_enrolled: false,
    };
    let (mut nodes, mut model, mut mirror) =
        ([(); 4].map(|()| node()), Model::default(), BTreeMap::new());
    let mut seen = BTreeMap::<&str, u32>::new();
    for step in 0..STEPS {
        let at = random.usize(..nodes.len());
        let chance = random.u8(..);
        if chance < 5 {
            die(&mut world, &mut model, &mut mirror, nodes[at].life);
            nodes[at] = node();
            *seen.entry("deaths").or_default() += 1;
            continue;
        }
        let now = world.now();
        let said = said(&mut random, now);
        let one = &mut nodes[at];
        one.k += 1;
        if chance < 20 && one.is_enrolled {
            one.is_behind = true;
            *seen.entry("lost").or_default() += 1;
            continue;
        }
        if one.is_behind || !one.is_enrolled {
            let refusal = Refusal::parse(&send(&mut world, Mode::InTurn, one, &said).refused());
            let expected = match one.is_enrolled {
                true => matches!(refusal, Some(Refusal::Gap(_))),
                false => refusal == Some(Refusal::NotEnrolled),
            };
            assert!(expected, "step {step}: {refusal:?}");
        }
        let mode = match one.is_behind || !one.is_enrolled {
            true => Mode::Enrol,
            false => Mode::InTurn,
        };
        let answer = send(&mut world, mode, one, &said);
        (one.is_behind, one.is_enrolled) = (false, true);
        check(&mut world, &mut model, &mut mirror, one.life, &said, answer);
        let goodbyes = said.iter().filter(|(_, op)| matches!(op, Op::Goodbye(..)));
        *seen.entry("goodbyes").or_default() += goodbyes.count() as u32;
        if chance > 235 {
            let again = Vouched::parse(&send(&mut world, mode, one, &said).bytes());
            assert!(matches!(again, Ok(Vouched::Duplicate { k, .. }) if k == one.k));
            world.expect_silence();
            *seen.entry("duplicates").or_default() += 1;
        }
        if step % 100 == 0 {
            compare(&mut world, &model, &mirror);
        }
    }
    compare(&mut world, &model, &mirror);
    for what in ["deaths", "lost", "goodbyes", "duplicates"] {
        assert!(seen.get(what).is_some_and(|&times| times > 10), "{seen:?}");
    }
}

fn said(random: &mut Rng, now: Unix) -> Vec<(&'static str, Op)> {
    let mut users = USERS;
    random.shuffle(&mut users);
    let ids = users[..random.usize(1..5)].iter();
    ids.map(|&id| (id, op(random, now))).collect()
}

fn op(random: &mut Rng, now: Unix) -> Op {
    let flags = UserFlags::new(Status::ALL[random.usize(..3)], random.u8(..) < 50);
    // Mostly it is not said since when the user is here; else perhaps later than Redis knows.
    let known = match random.u8(..4) {
        0 => Some(now.minus_ms(random.u64(..60))),
        1 => Some(Unix::from_ms(random.u64(1..50))),
        _ => None,
    };
    let part = random.u8(1..4);
    let saying = Saying {
        status: (part & 1 != 0).then_some(flags.status()),
        invisible: (part & 2 != 0).then_some(flags.invisible),
    };
    let mut at = || Unix::from_ms(random.u64(1..50));
    let (sent, last_active, beat) = (at(), at(), at());
    let bits = random.u8(1..8);
    let kinds = Kinds {
        beat: (bits & 1 != 0).then_some(beat),
        stream: bits & 2 != 0 && random.bool(),
        open: bits & 4 != 0,
        unattended: false,
    };
    let unattended = random.bool();
    match random.u8(..20) {
        0..8 => {
            let kinds = match kinds == Kinds::default() {
                true => Kinds::beat(beat),
                false => kinds,
            };
            Op::Claim(
                (random.u8(..4) > 0).then_some(flags),
                Kinds {
                    unattended,
                    ..kinds
                },
                known,
            )
        }
        8..13 => Op::Withdraw(kinds, last_active),
        13..17 => Op::Goodbye(kinds, sent, last_active),
        17 => Op::LogOut(last_active),
        18 => Op::SetFlags(saying),
        _ => Op::Erase,
    }
}

fn send(world: &mut World, mode: Mode, node: &Node, said: &[(&'static str, Op)]) -> Answer {
    let mut vouch = Vouch::new(&Caller {
        life: node.life,
        mode,
        birth: BIRTH,
        k: node.k,
        not_after: world.soon(),
    });
    for &(id, op) in said {
        let user = user(id);
        match op {
            Op::Claim(flags, kinds, known) => vouch.claim(user, flags, kinds, known),
            Op::Withdraw(kinds, active) => vouch.withdraw(user, kinds, active),
            Op::Goodbye(kinds, sent, active) => vouch.goodbye(user, kinds, sent, active),
            Op::LogOut(active) => vouch.log_out(user, active),
            Op::SetFlags(said) => vouch.set_flags(user, said),
            Op::Erase => vouch.erase(user),
        }
    }
    world.link.call(&vouch.call(HOT))
}

/// Fenced, and reaped of all that it claims.
fn die(world: &mut World, model: &mut Model, mirror: &mut BTreeMap<String, UserFlags>, life: Life) {
    let call = fence(HOT, life, BIRTH, world.soon());
    let fenced = Fenced::parse(&world.link.call(&call).bytes()).unwrap();
    assert_eq!(fenced.count, model.count(life));
    let said: Vec<_> = USERS
        .map(|id| (id, Op::Withdraw(ALL, Unix::from_ms(3))))
        .into();
    let node = Node {
        life,
        k: 0,
        is_behind: false,
        is_enrolled: true,
    };
    let answer = send(world, Mode::Reap, &node, &said);
    check(world, model, mirror, life, &said, answer);
    assert_eq!(world.count(life), 0);
}

/// The answer and the message are those of the model.
fn check(
    world: &mut World,
    model: &mut Model,
    mirror: &mut BTreeMap<String, UserFlags>,
    life: Life,
    said: &[(&'static str, Op)],
    answer: Answer,
) {
    let Ok(Vouched::Done {
        number,
        count,
        outcomes,
        since,
        ..
    }) = Vouched::parse(&answer.clone().bytes())
    else {
        panic!("{answer:?}");
    };
    model.now = since;
    let (mut expected, mut events) = (Vec::new(), Vec::new());
    for &(id, op) in said {
        let (outcome, what) = model.apply(life, id, op);
        expected.push(outcome);
        events.extend(what.map(|what| (id.to_owned(), what)));
    }
    assert_eq!(outcomes, expected, "{said:?}");
    assert_eq!(count, model.count(life));
    if !events.is_empty() {
        let bytes = world.heard();
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(world.base.follows(&message), Follows::InStep);
        world.base.number = message.number();
        let records = message.records();
        let told: Vec<_> = records
            .map(|one| (one.user.as_str().to_owned(), one.what))
            .collect();
        assert_eq!(told, events, "{said:?}");
        for (id, what) in told {
            match what {
                What::Arrived(flags) | What::StillHere { flags, .. } | What::Is { flags, .. } => {
                    mirror.insert(id, flags)
                }
                What::Gone { .. } | What::LoggedOut { .. } | What::Erased => mirror.remove(&id),
                What::Keeps(_) | What::StreamsEnd(_) => {
                    assert!(!mirror.contains_key(&id));
                    None
                }
            };
        }
    }
    assert_eq!(number, world.base.number);
}

/// All of the partition is as the model, and as whoever heard all messages takes it to be.
fn compare(world: &mut World, model: &Model, mirror: &BTreeMap<String, UserFlags>) {
    world.expect_silence();
    for id in USERS {
        let here = world.here(id);
        assert_eq!(here.as_ref(), model.users.get(id), "{id}");
        let here = here.filter(Here::is_here);
        let told = mirror.get(id).map(|flags| (flags.said(), flags.shown()));
        let is = here.map(|here| (here.flags.said(), here.flags.shown()));
        assert_eq!(told.map(|it| it.0), is.map(|it| it.0));
        if told.is_some_and(|(said, _)| !said.invisible) {
            assert_eq!(told, is, "{id}");
        }
    }
}

/// What flags show; None: nothing.
fn shown(flags: UserFlags) -> Option<Status> {
    (!flags.invisible).then(|| flags.shown())
}

fn is_unattended(claims: &[Claim]) -> bool {
    let mut proofs = claims
        .iter()
        .filter(|claim| claim.kinds.is_proof())
        .peekable();
    proofs.peek().is_some() && proofs.all(|claim| claim.kinds.unattended)
}

impl Model {
    fn count(&self, life: Life) -> u32 {
        let claims = self.users.values().flat_map(|here| &here.claims);
        claims.filter(|claim| claim.life == life).count() as u32
    }

    fn apply(&mut self, life: Life, id: &'static str, op: Op) -> (Outcome, Option<What>) {
        let known = self.users.get(id).cloned();
        let here = known.clone().filter(Here::is_here);
        match (op, here) {
            (Op::Claim(flags, kinds, known), Some(here)) => {
                self.claim_more(life, (id, here), flags, kinds, known)
            }
            (Op::Claim(flags, kinds, since), None) => {
                self.claim(life, (id, known), flags, kinds, since)
            }
            (Op::Withdraw(..) | Op::Goodbye(..), None) => (Outcome::NotHere, None),
            (Op::Withdraw(kinds, last_active), Some(here)) => {
                let (claims, changed) = take_back(life, &here.claims, kinds);
                let lives = claims.iter().any(|claim| claim.kinds.is_proof());
                if !changed {
                    return (Outcome::Quiet, None);
                }
                if lives {
                    return self.put(id, &here, here.flags, here.since, claims);
                }
                let (flags, said_at) = (here.flags.said(), None);
                let what = What::Gone {
                    flags,
                    last_active,
                    said_at,
                };
                (self.leave(id, &here), Some(what))
            }
            (Op::Goodbye(kinds, sent, last_active), Some(here)) => {
                let (claims, changed) = take_back(life, &here.claims, kinds);
                let left = claims.iter().map(|claim| claim.kinds);
                let leaves = changed && !left.clone().any(Kinds::is_proof);
                let block = if left.clone().any(|kinds| kinds.stream || kinds.open) {
                    Some(Outcome::Streams)
                } else {
                    let mut beats = left.filter_map(|kinds| kinds.beat);
                    beats.any(|beat| beat > sent).then_some(Outcome::Later)
                };
                if let Some(block) = block.filter(|_| !leaves) {
                    if !changed {
                        return (block, None);
                    }
                    let (_, what) = self.put(id, &here, here.flags, here.since, claims);
                    return (block, what);
                }
                let what = What::Gone {
                    flags: here.flags.said(),
                    last_active,
                    said_at: Some(sent),
                };
                (self.leave(id, &here), Some(what))
            }
            (Op::LogOut(last_active), Some(here)) => {
                let flags = here.flags.said();
                let what = What::LoggedOut { flags, last_active };
                (self.leave(id, &here), Some(what))
            }
            (Op::LogOut(_), None) => {
                let flags = known.map_or(UserFlags::PLAIN, |kept| kept.flags);
                (Outcome::NotHere, Some(What::StreamsEnd(flags)))
            }
            (Op::SetFlags(said), Some(here)) => {
                let claims = here.claims.clone();
                self.put(id, &here, here.flags.after(said), here.since, claims)
            }
            (Op::SetFlags(said), None) => {
                let had = known.map_or(UserFlags::PLAIN, |kept| kept.flags);
                let flags = had.after(said);
                if flags == had {
                    return (Outcome::NotHere, None);
                }
                self.keep(id, flags);
                (Outcome::NotHere, Some(What::Keeps(flags)))
            }
            (Op::Erase, here) => {
                if here.is_some() {
                    self.left = self.now;
                }
                self.users.remove(id);
                (Outcome::Told, Some(What::Erased))
            }
        }
    }

    /// What somebody who is not here says of itself stays, unless it says nothing.
    fn keep(&mut self, id: &'static str, flags: UserFlags) {
        let (since, claims) = (self.now, Vec::new());
        let kept = Here {
            since,
            flags,
            claims,
        };
        match flags == UserFlags::PLAIN {
            true => self.users.remove(id),
            false => self.users.insert(id, kept),
        };
    }

    fn leave(&mut self, id: &'static str, here: &Here) -> Outcome {
        self.left = self.now;
        self.keep(id, here.flags.said());
        match here.flags.invisible {
            true => Outcome::Private,
            false => Outcome::Told,
        }
    }

    fn put(
        &mut self,
        id: &'static str,
        had: &Here,
        flags: UserFlags,
        since: Unix,
        claims: Vec<Claim>,
    ) -> (Outcome, Option<What>) {
        let unattended = is_unattended(&claims);
        let flags = flags.with_unattended(unattended);
        let since = match shown(flags) != shown(had.flags) && since == had.since {
            true => self.now,
            false => since,
        };
        self.users.insert(
            id,
            Here {
                since,
                flags,
                claims,
            },
        );
        if flags.said() == had.flags.said() && since == had.since {
            return (Outcome::Quiet, None);
        }
        let hides = flags.invisible && !had.flags.invisible;
        let outcome = if hides {
            Outcome::Told
        } else {
            Outcome::Updated
        };
        (outcome, Some(What::Is { flags, since }))
    }

    fn claim_more(
        &mut self,
        life: Life,
        (id, here): (&'static str, Here),
        flags: Option<UserFlags>,
        kinds: Kinds,
        known: Option<Unix>,
    ) -> (Outcome, Option<What>) {
        let mut claims = here.claims.clone();
        match claims.iter_mut().find(|claim| claim.life == life) {
            None => claims.push(Claim { life, kinds }),
            Some(claim) => {
                claim.kinds = Kinds {
                    beat: claim.kinds.beat.max(kinds.beat),
                    stream: claim.kinds.stream | kinds.stream,
                    open: claim.kinds.open | kinds.open,
                    unattended: kinds.unattended,
                }
            }
        }
        match known.filter(|known| *known > here.since) {
            Some(known) => self.put(id, &here, flags.unwrap_or(here.flags), known, claims),
            None => self.put(id, &here, here.flags, here.since, claims),
        }
    }

    fn claim(
        &mut self,
        life: Life,
        (id, kept): (&'static str, Option<Here>),
        flags: Option<UserFlags>,
        kinds: Kinds,
        known: Option<Unix>,
    ) -> (Outcome, Option<What>) {
        if !kinds.is_proof() {
            return (Outcome::NotHere, None);
        }
        let kept_at = kept.as_ref().map_or(Unix::default(), |kept| kept.since);
        let known = known.filter(|known| *known > kept_at.max(self.left));
        // Of whom nothing is kept whoever hides stays hidden.
        let hides = flags.filter(|flags| flags.invisible);
        let flags = flags.filter(|_| known.is_some()).unwrap_or_else(|| {
            let kept = kept.map(|kept| kept.flags);
            kept.or(hides).unwrap_or(UserFlags::PLAIN)
        });
        let flags = flags.with_unattended(kinds.unattended);
        let since = known.unwrap_or(self.now);
        let claims = vec![Claim { life, kinds }];
        self.users.insert(
            id,
            Here {
                since,
                flags,
                claims,
            },
        );
        let what = match known {
            _ if flags.invisible => What::Is { flags, since },
            Some(_) => What::StillHere { flags, since },
            None => What::Arrived(flags),
        };
        (Outcome::Told, Some(what))
    }
}

/// The claims after that, and whether they are others.
fn take_back(life: Life, claims: &[Claim], kinds: Kinds) -> (Vec<Claim>, bool) {
    let mut left = claims.to_vec();
    for claim in left.iter_mut().filter(|claim| claim.life == life) {
        claim.kinds = Kinds {
            beat: claim.kinds.beat.filter(|_| kinds.beat.is_none()),
            stream: claim.kinds.stream & !kinds.stream,
            open: claim.kinds.open & !kinds.open,
            unattended: claim.kinds.unattended,
        };
    }
    let changed = left != claims;
    left.retain(|claim| claim.kinds.is_proof() || claim.kinds.open);
    (left, changed)
}
